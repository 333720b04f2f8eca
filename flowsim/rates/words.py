"""Norms of words in the layers, and how fast they can grow: what the path certificate integrates.

A word is a product of layers and their transposes, such as W_1 W_2 W_2^T; it is written as a tuple, k for W_k and -k
for W_k^T: (1, 2, -2). Norms are spectral. In the clock ds = ||grad f(W)||_F dt gradient flow is

    dW_k/ds = -c A_k^T Ehat B_k^T,    A_k = W_1 ... W_{k-1},  B_k = W_{k+1} ... W_L,  ||Ehat||_F = 1,  c the scale,

so that the derivative of a word u W_k v contains the term -c (u A_k^T) Ehat (B_k^T v), of norm at most
c |u A_k^T| |B_k^T v|, two words again; a transposed letter gives c |u B_k| |A_k v|. The norms of the words below thus
obey y' <= c F(y) with F a sum of monomials with nonnegative coefficients: non-decreasing in every argument, and the
solution of Y' = c F(Y), Y(0) >= y(0), is an upper bound for all s (Kamke).

Where the layers are also moved otherwise, dW_k/ds = .. + delta_k with |delta_k| <= eps, a word grows by |u| |v| eps
more for each of its letters: `disturbance`.

What is wanted, |A_l A_l^T|, |B_l^T B_l| and the words in their derivatives, calls for further words, and these for
others. Every word so obtained has an end that is n or m wide: its norm costs a few thin products. Those of at most
`longest` letters are followed; a longer one is cut, where the product of what bounds its parts is least, into such
words and single layers. Norms of products are what makes the bounds good: those of wide random layers are small, the
products of norms large.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, lru_cache

import numpy as np

Word = tuple[int, ...]
Monomial = dict[int, float]
"""Index of a followed word -> exponent, a multiple of 1/2."""
EPS = float(np.finfo(float).eps)


@lru_cache(2**16)
def transposed(word: Word) -> Word:
    """Of the transposed product."""
    return tuple(-letter for letter in reversed(word))


@lru_cache(2**16)
def _canonical(word: Word) -> Word:
    return min(word, transposed(word))


def _is_gram(word: Word) -> bool:
    """Whether the product is U U^T."""
    return len(word) % 2 == 0 and word == transposed(word)


class Words:
    """The words that are followed, upper bounds of their norms at the start, and their growth.

    layers: W_1, ..., W_L, or what stands for them in coordinates in which words of up to `longest` letters with an end
    at W_1 or W_L are exact; norms: upper bounds of |W_l|; disturbed: whether `disturbance` will be asked for.
    """

    def __init__(
        self, layers: Sequence[np.ndarray], norms: Sequence[float], longest: int, disturbed: bool = False
    ) -> None:
        self.layers, self.norms, self.longest = layers, norms, longest
        depth = self.depth = len(layers)
        self.before = [tuple(range(1, k)) for k in range(1, depth + 1)]
        self.after = [tuple(range(k + 1, depth + 1)) for k in range(1, depth + 1)]
        self.grams_before = [A + transposed(A) for A in self.before]
        self.grams_after = [transposed(B) + B for B in self.after]
        self.words: list[Word] = []
        self.places: dict[Word, int] = {}
        self.products: dict[Word, np.ndarray] = {}
        self.sizes: dict[Word, float] = {}
        self.bounds: dict[Word, Monomial] = {}
        for word in (*self.grams_before, *self.grams_after):
            if word:
                self._follow(word)
        growth, disturbance = Terms(), Terms()
        for row, word in self._growing():
            for left, right in self._pieces(word):
                growth.add(row, _times(self._bound(left), self._bound(right)))
            for place in range(len(word) if disturbed else 0):
                disturbance.add(row, _times(self._bound(word[:place]), self._bound(word[place + 1 :])))
        self.start = np.array([self._norm(word) for word in self.words])
        self._growth, self._disturbance = growth.compiled(len(self.words)), disturbance.compiled(len(self.words))

    def place(self, word: Word) -> int:
        """The index of a followed word; -1 of the empty one, whose norm is 1."""
        return self.places[_canonical(word)] if word else -1

    def growth(self, norms: np.ndarray) -> np.ndarray:
        """F at upper bounds of the norms of all words."""
        return self._growth(norms)

    def disturbance(self, norms: np.ndarray) -> np.ndarray:
        """How fast the words grow besides, over eps."""
        return self._disturbance(norms)

    def _growing(self) -> Iterator[tuple[int, Word]]:
        row = 0
        while row < len(self.words):  # looking at one word may add others
            yield row, self.words[row]
            row += 1

    def _pieces(self, word: Word) -> Iterator[tuple[Word, Word]]:
        """The two words on both sides of Ehat in every term of the derivative."""
        for place, letter in enumerate(word):
            left, right, layer = word[:place], word[place + 1 :], abs(letter) - 1
            if letter > 0:
                yield left + transposed(self.before[layer]), transposed(self.after[layer]) + right
            else:
                yield left + self.after[layer], self.before[layer] + right

    def _follow(self, word: Word) -> int:
        word = _canonical(word)
        if word not in self.places:
            self.places[word] = len(self.words)
            self.words.append(word)
        return self.places[word]

    def _bound(self, word: Word) -> Monomial:
        """A monomial in followed words that is at least the norm of the word."""
        if not word:
            return {}
        word = _canonical(word)
        if word not in self.bounds:
            self.bounds[word] = self._bound_of(word)
        return self.bounds[word]

    def _bound_of(self, word: Word) -> Monomial:
        if word in self.places:
            return {self.places[word]: 1.0}
        if _is_gram(word):
            if len(word) <= 2 * self.depth - 2:
                return {self._follow(word): 1.0}
            return _power(self._bound(word[: len(word) // 2]), 2)
        for gram in (word + transposed(word), transposed(word) + word):
            if _canonical(gram) in self.places:
                return {self.places[_canonical(gram)]: 0.5}
        if self._is_short(word):
            return {self._follow(word): 1.0}
        cut = self._cut(word)
        return _times(self._bound(word[:cut]), self._bound(word[cut:]))

    def _is_short(self, word: Word) -> bool:
        return len(word) == 1 or (len(word) <= self.longest and self._has_a_thin_end(word))

    def _size(self, word: Word) -> float:
        """What a word's bound is at the start."""
        if word not in self.sizes:
            if self._is_short(word):
                self.sizes[word] = self._norm(word)
            else:
                cut = self._cut(word)
                self.sizes[word] = self._size(word[:cut]) * self._size(word[cut:])
        return self.sizes[word]

    def _cut(self, word: Word) -> int:
        """Where a word is best cut in two."""
        if not self._has_a_thin_end(word):
            return 1
        return min(range(1, len(word)), key=lambda cut: self._size(word[:cut]) * self._size(word[cut:]))

    def _starts_thin(self, word: Word) -> bool:
        return word[0] in (1, -self.depth)

    def _has_a_thin_end(self, word: Word) -> bool:
        return self._starts_thin(word) or self._starts_thin(transposed(word))

    def _norm(self, word: Word) -> float:
        """An upper bound of the norm at the start, up to the rounding of the products."""
        if _is_gram(word):
            return self._norm(word[: len(word) // 2]) ** 2
        if len(word) == 1 and not self._has_a_thin_end(word):
            return self.norms[abs(word[0]) - 1]
        word = word if self._starts_thin(word) else transposed(word)
        product = self._product(word)
        size = float(np.prod([self.norms[abs(k) - 1] for k in word])) * min(product.shape) ** 0.5
        widest = max(max(layer.shape) for layer in self.layers)
        return float(np.linalg.norm(product, 2)) + 4 * (widest + 4) * len(word) * EPS * size

    def _product(self, word: Word) -> np.ndarray:
        """From its thin end on."""
        if word not in self.products:
            last = self.layers[word[-1] - 1] if word[-1] > 0 else self.layers[-word[-1] - 1].T
            self.products[word] = self._product(word[:-1]) @ last if len(word) > 1 else last
        return self.products[word]

    @cached_property
    def ends(self) -> tuple[np.ndarray, np.ndarray]:
        """The places of A_l A_l^T and of B_l^T B_l, l = 1 .. L; -1 where it is I."""
        return tuple(np.array([self.place(w) for w in words]) for words in (self.grams_before, self.grams_after))  # type: ignore[return-value]


class Terms:
    """Sums of monomials, a sum for each row."""

    def __init__(self) -> None:
        self.rows: list[int] = []
        self.monomials: list[Monomial] = []

    def add(self, row: int, monomial: Monomial) -> None:
        """To the sum of a row."""
        self.rows.append(row)
        self.monomials.append(monomial)

    def compiled(self, count: int) -> Callable[[np.ndarray], np.ndarray]:
        """Norms y (count,) -> the sums (count,): each monomial as indices into (1, y, y^(1/2)), padded."""
        lists = []
        for monomial in self.monomials:
            indices: list[int] = []
            for place, exponent in monomial.items():
                whole, half = divmod(exponent, 1.0)
                indices += [1 + place] * int(whole) + [1 + count + place] * (half > 0)
            lists.append(indices)
        longest = max(map(len, lists), default=0)
        rows = np.array(self.rows, int)
        padded = [indices + [0] * (longest - len(indices)) for indices in lists]
        factors = np.array(padded, int).reshape(len(rows), longest)

        def sums(y: np.ndarray) -> np.ndarray:
            known = np.concatenate([[1.0], y, np.sqrt(y)])
            return np.bincount(rows, known[factors].prod(axis=1), minlength=count)

        return sums


def _times(a: Monomial, b: Monomial) -> Monomial:
    return {place: a.get(place, 0.0) + b.get(place, 0.0) for place in a.keys() | b.keys()}


def _power(monomial: Monomial, exponent: int) -> Monomial:
    return {place: exponent * power for place, power in monomial.items()}
