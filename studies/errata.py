"""Errors of the printed paper: a counterexample each, how often the printed form fails, and the corrected statement.

The paper: Min, Vidal, Mallada, "On the Convergence of Gradient Flow on Multi-layer Linear Models", ICML 2023.
Writes errata.md; takes about two minutes, `--small` seconds.

    python studies/errata.py --out studies
"""

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import hypot
from pathlib import Path

import numpy as np

import flowsim as fs
from flowsim.rates.homogeneous import excesses, homogeneous_imbalance
from flowsim.rates.imbalance import spectra
from flowsim.rates.theorem_1 import two_layer_eigenvalues
from flowsim.rates.theorem_2 import delta_star

SLACK = 1 + 1e-9


@dataclass(frozen=True)
class Erratum:
    """One error: where it is printed, what is right, a counterexample, and counts of violations."""

    place: str
    printed: str
    corrected: str
    counterexample: str
    counts: str

    def markdown(self, number: int) -> str:
        """A section of the page."""
        return "\n".join(
            [
                f"## {number}. {self.place}",
                "",
                f"- Printed: {self.printed}",
                f"- Right: {self.corrected}",
                f"- Counterexample: {self.counterexample}",
                f"- Random networks: {self.counts}",
                "",
            ]
        )


def gaussian(rng: np.random.Generator, depth: int, square: bool = False) -> fs.LinearNetwork:
    """Gaussian layers whose sizes differ up to a hundredfold, n, m in 1..5."""
    n, m = (int(k) for k in rng.integers(1, 6, 2))
    m = n if square else m
    dims = (n, *(int(k) for k in rng.integers(min(n, m), min(n, m) + 8, depth - 1)), m)
    factors = 10 ** rng.uniform(-1, 1, depth)
    return fs.LinearNetwork(
        tuple(c * rng.standard_normal((r, k)) for c, r, k in zip(factors, dims, dims[1:], strict=False))
    )


def sigmas(network: fs.LinearNetwork) -> np.ndarray:
    """The singular values of the product."""
    return np.linalg.svd(network.product, compute_uv=False)


def count(networks: Iterator[fs.LinearNetwork], bound: Callable[[fs.LinearNetwork], float]) -> str:
    """In how many networks the bound exceeds lambda_min(T)."""
    broken = total = 0
    for network in networks:
        norm = sum(np.prod([float((V**2).sum()) for V in network.weights if V is not W]) for W in network.weights)
        total += 1
        broken += bound(network) > network.lambda_min_T * SLACK + 1e-13 * network.scale**2 * norm
    return f"{broken} of {total}"


def scalar_flow(y: float, w: tuple[float, ...], t1: float) -> tuple[fs.Problem, float, float]:
    """(problem, L(0), L(t1)) of scalar layers."""
    problem = fs.Problem(fs.SquaredLoss([[y]]), fs.LinearNetwork(tuple(np.array([[x]]) for x in w)))
    flow = fs.simulate(problem, fs.Scipy("DOP853", 1e-12, 1e-15), t1=t1)
    return problem, float(flow.excess[0]), float(flow.excess[-1])


def printed_lemma_3(network: fs.LinearNetwork) -> float:
    """Eq. (9) as printed: Delta+ with sigma_n, Delta- with sigma_m."""
    n, m = network.dims[0], network.dims[-1]
    D = two_layer_eigenvalues(spectra(network)[0], n, m)
    plus, minus, both = D.top - D.nth, D.bottom - D.mth, D.Delta
    values = sigmas(network)
    at_n, at_m = (values[k - 1] if k <= len(values) else 0.0 for k in (n, m))
    return 0.5 * (hypot(plus + both, 2 * at_n) - plus + hypot(minus + both, 2 * at_m) - minus)


def lemma_3(size: int) -> Erratum:
    """Eqs. (9) and (12): the wrong singular values."""
    network = fs.LinearNetwork((np.diag([10, 0.1]), np.array([[0.1], [0.0]])))
    corrected = fs.certify(network)["lemma-3"].alpha
    draws = [gaussian(np.random.default_rng(seed), 2) for seed in range(size)]
    square = [network for network in draws if network.dims[0] == network.dims[-1]]
    return Erratum(
        "Lemma 3, eq. (9), and Theorem 1, eq. (12): which singular value goes with which Delta",
        "Delta+ with sigma_n(W), Delta- with sigma_m(W).",
        "Delta+ with sigma_m(W), Delta- with sigma_n(W).",
        f"W_1 = diag(10, 0.1), W_2 = (0.1, 0)^T: lambda_min(T) = {network.lambda_min_T:.4g}, printed bound"
        f" {printed_lemma_3(network):.4g}, corrected {corrected:.4g}.",
        f"the printed form fails for {count(iter(draws), printed_lemma_3)} two-layer networks (n = m:"
        f" {count(iter(square), printed_lemma_3)}), the corrected one for"
        f" {count(iter(draws), lambda one: fs.rates.lemma_3(one).alpha)}.",
    )


def theorem_1(size: int) -> Erratum:
    """Eq. (12): the factor 1/2."""
    problem, first, last = scalar_flow(1.0, (0.95, 0.95), 2.0)
    certificate = fs.certify(problem)["theorem-1-A2"]
    printed = first * np.exp(-2 * certificate.rate * 2.0)
    draws = [gaussian(np.random.default_rng(seed), 2) for seed in range(size)]
    return Erratum(
        "Theorem 1, eq. (12): a factor 1/2 is missing",
        "alpha = the sum of the two brackets.",
        "alpha = half that sum, as in Lemma 3.",
        f"y = 1, w = (0.95, 0.95), t = 2: the loss is {last / printed:.0f} times the printed bound and"
        f" {last / certificate.bound(2.0):.2f} of the corrected one.",
        "with the margin at its largest, nu = sigma(W), twice Lemma 3 exceeds lambda_min(T) for"
        f" {count(iter(draws), lambda one: 2 * fs.rates.lemma_3(one).alpha)}.",
    )


def corollary_2(size: int) -> Erratum:
    """Corollary 2: the exponent of nu_min."""
    problem, first, last = scalar_flow(0.1, (0.095 ** (1 / 3),) * 3, 15.0)
    certificate = fs.certify(problem)["corollary-2"]
    nu = 0.1 - abs(0.095 - 0.1)
    printed = first * np.exp(-2 * 3 * nu * 15.0)
    rng = np.random.default_rng(0)
    draws = []
    for seed in range(size // 10):
        depth, n = int(rng.integers(3, 7)), int(rng.integers(1, 5))
        levels = rng.uniform(-2, 2, depth - 1) * rng.integers(0, 2)
        draws.append(fs.homogeneous((n,) * (depth + 1), imbalance=levels, seed=seed))

    def printed_bound(network: fs.LinearNetwork) -> float:
        d, _ = homogeneous_imbalance(network, 1e-12)
        return hypot(float(np.prod(np.sort(excesses(d))[1:])), network.depth * sigmas(network)[-1])

    return Erratum(
        "Corollary 2: the exponent of nu_min",
        "alpha = sqrt((prod d_(i))^2 + (L nu_min)^2).",
        "alpha = sqrt((prod d_(i))^2 + (L nu_min^{2-2/L})^2).",
        f"L = 3, y = 0.1, all w = 0.095^(1/3), t = 15: the loss is {last / printed:.0f} times the printed bound and"
        f" {last / certificate.bound(15.0):.2f} of the corrected one.",
        f"with nu_min = sigma_min(W), homogeneous imbalance and 3 to 6 layers, the printed form fails for"
        f" {count(iter(draws), printed_bound)}, the corrected one for"
        f" {count(iter(draws), lambda one: fs.rates.theorem_3_homogeneous(one).alpha)}.",
    )


def equation_19(size: int) -> Erratum:
    """Eq. (19): only for n = m."""

    def printed(network: fs.LinearNetwork) -> float:
        return network.depth * float(sigmas(network)[-1]) ** (2 - 2 / network.depth)

    two = [fs.balanced((3, 4, 2), seed=seed) for seed in range(size // 100)]
    deep = [fs.balanced((4, 5, 6, 2), seed=seed) for seed in range(size // 100)]
    square = [fs.balanced((3, 5, 6, 3), seed=seed) for seed in range(size // 100)]
    one = two[0]
    return Erratum(
        "Theorem 3, eq. (19), homogeneous imbalance: the condition n = m is missing",
        "lambda_min(T) >= sqrt((prod d_(i))^2 + (L sigma_min(W)^{2-2/L})^2) for all n, m.",
        "the same for n = m only; for n != m the product of the d_(i).",
        f"balanced, dims (3, 4, 2): lambda_min(T) = {one.lambda_min_T:.4g}, printed bound {printed(one):.4g}.",
        f"balanced with dims (3, 4, 2) it fails for {count(iter(two), printed)}, with (4, 5, 6, 2) for"
        f" {count(iter(deep), printed)}, with (3, 5, 6, 3) for {count(iter(square), printed)}.",
    )


def theorem_g2(size: int) -> Erratum:
    """The appendix's Delta*."""
    draws = [gaussian(np.random.default_rng(10**6 + seed), 3) for seed in range(size)]
    one = fs.LinearNetwork((np.array([[2.0]]), np.array([[0.1]]), np.array([[2.0]])))
    return Erratum(
        "Appendix, Theorem G.2: Delta* twice as large as in the main text; and the dashed curves' formula",
        "Delta* without the factors 1/2; bound exp(1 - gamma Delta* k eta).",
        "Delta* of the main text; bound exp(-gamma Delta* k eta) for L / L(0).",
        f"w = (2, 0.1, 2): lambda_min(T) = {one.lambda_min_T:.4g}, Delta* = {delta_star(one):.4g}, Theorem G.2's"
        f" {2 * delta_star(one):.4g}. The dashed formula is e = {np.e:.3f} instead of 1 at k = 0.",
        f"twice Delta* fails for {count(iter(draws), lambda network: 2 * delta_star(network))} three-layer networks,"
        f" Delta* for {count(iter(draws), delta_star)}.",
    )


def ntk_scale(size: int) -> Erratum:
    """The model's factor enters T squared."""
    draws = [fs.ntk((1, 30, 40, 1), seed=seed) for seed in range(size // 100)]
    one = draws[0]
    return Erratum(
        "Appendix A, NTK scaling: the model's factor c enters T as c^2",
        "Delta* of the unscaled weights times c.",
        "Delta* of the unscaled weights times c^2: T is quadratic in the model's factor.",
        f"NTK, dims (1, 30, 40, 1), c = {one.scale:.4g}: lambda_min(T) = {one.lambda_min_T:.4g}, c Delta* ="
        f" {one.scale * delta_star(one):.4g}, c^2 Delta* = {one.scale**2 * delta_star(one):.4g}.",
        f"c Delta* exceeds lambda_min(T) for {count(iter(draws), lambda network: network.scale * delta_star(network))},"
        f" c^2 Delta* for {count(iter(draws), lambda network: network.scale**2 * delta_star(network))}.",
    )


def main() -> None:
    """Compute all of it, print it and write errata.md."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    parser.add_argument("--small", action="store_true")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    size = 200 if arguments.small else 20000
    errata = [make(size) for make in (lemma_3, theorem_1, corollary_2, equation_19, theorem_g2, ntk_scale)]
    page = "\n".join(
        [
            "# Errors of the printed paper",
            "",
            'Min, Vidal, Mallada, "On the Convergence of Gradient Flow on Multi-layer Linear Models", ICML 2023 (PMLR',
            "202:24850-24887). Written by `python studies/errata.py`; every number is computed there. flowsim has the",
            'corrected forms. "Fails" means: exceeds lambda_min(T) by more than 1e-9 relative.',
            "",
            *(erratum.markdown(number) for number, erratum in enumerate(errata, start=1)),
        ]
    )
    (arguments.out / "errata.md").write_text(page, encoding="utf-8")
    print(page)


if __name__ == "__main__":
    main()
