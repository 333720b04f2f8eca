"""The oracles of the tests: closed forms of the flow for f = 1/2 ||Y - W||_F^2, and lambda_min(T) without rounding."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from flowsim.checks import as_count, as_float_array, as_matrix, as_number
from flowsim.errors import InputError
from flowsim.network import LinearNetwork

LARGEST_EXPONENT = 600.0
"""e^{ft} up to e^600 stays within float64."""


def saxe_mode(t: ArrayLike, s: float, u0: float) -> np.ndarray:
    """u(t) = s e^{2st} / (e^{2st} - 1 + s/u0): a singular value of W_1 W_2, balanced and aligned (Saxe et al. 2014).

    It solves du/dt = 2 u (s - u), u(0) = u0. Raises InputError unless s > 0 and u0 > 0.

    A small mode waits, for about log(s / u0) / 2s, and then is learned:

    >>> import numpy as np
    >>> import flowsim as fs
    >>> half = np.log(1e6 - 1) / 4  # u = s/2 where s = 2, u0 = 2e-6
    >>> fs.exact.saxe_mode([0.0, half, 2 * half + 5], s=2.0, u0=2e-6).round(6).tolist()
    [2e-06, 1.0, 2.0]
    """
    s, u0 = as_number(s, "s", above=0.0), as_number(u0, "u0", above=0.0)
    decay = np.exp(-2 * s * as_float_array(t, "t"))
    return s / (1 + (s / u0 - 1) * decay)


def balanced_mode(t: ArrayLike, s: float, u0: float, depth: int) -> np.ndarray:
    """A singular value of the product of `depth` balanced, aligned layers: du/dt = L u^{2-2/L} (s - u), u(0) = u0.

    With v = u^{1/L}, dv/dt = v^{L-1} (s - v^L); integrated in w = log(u) by DOP853 at rtol 1e-13, which holds for
    every depth (Arora et al. 2018). Depth 2 is saxe_mode. Raises InputError unless s > 0, u0 > 0, depth >= 2.

    >>> import numpy as np
    >>> import flowsim as fs
    >>> t = np.linspace(0.0, 3.0, 7)
    >>> np.allclose(fs.exact.balanced_mode(t, s=2.0, u0=0.1, depth=2), fs.exact.saxe_mode(t, s=2.0, u0=0.1))
    True
    """
    from scipy.integrate import solve_ivp

    s, u0, L = as_number(s, "s", above=0.0), as_number(u0, "u0", above=0.0), as_count(depth, "depth", 2)
    times = np.atleast_1d(as_float_array(t, "t"))

    def velocity(_: float, w: np.ndarray) -> np.ndarray:
        return L * np.exp((1 - 2 / L) * w) * (s - np.exp(w))

    order = np.argsort(times)
    solution = solve_ivp(
        velocity, (0.0, times.max() or 1.0), [np.log(u0)], "DOP853", t_eval=np.unique(times), rtol=1e-13, atol=1e-14
    )
    values = np.interp(times[order], solution.t, np.exp(solution.y[0]))
    result = np.empty_like(values)
    result[order] = values
    return result.reshape(np.shape(t))


def riccati(network: LinearNetwork, Y: ArrayLike, t: ArrayLike, tolerance: float = 1e-10) -> np.ndarray:
    """W(t) of two layers with D_1 = lambda I_h, for any target Y, at the times t: shape (len(t), n, m).

    Q = [W_1; W_2^T], F = [[lambda/2 I, Y], [Y^T, -lambda/2 I]],
    Q Q^T(t) = e^{Ft} Q_0 [I + Q_0^T (int_0^t e^{2Fs} ds) Q_0]^{-1} Q_0^T e^{Ft}, and W = W_1 W_2 is its upper right
    block. Evaluated in the eigenbasis of F, bounded and accurate until e^{|F|t} reaches e^600.
    Raises InputError unless depth is 2, scale is 1, ||D_1 - lambda I||_F <= tolerance max(1, ||D_1||_F), and for a t
    beyond that.

    >>> import numpy as np
    >>> import flowsim as fs
    >>> network = fs.lambda_balanced((4, 3, 3), imbalance=1.5, seed=0)
    >>> W = fs.exact.riccati(network, np.ones((4, 3)), [0.0, 50.0])
    >>> np.allclose(W[0], network.product), np.allclose(W[1], np.ones((4, 3)))
    (True, True)
    """
    if network.depth != 2 or network.scale != 1.0:
        raise InputError("Argument `network` must have two layers and scale 1, but it has others.")
    W1, W2 = network.weights
    n, m = network.dims[0], network.dims[-1]
    Y = as_matrix(Y, "Y", (n, m))
    D = network.imbalance(1)
    h = len(D)
    lam = float(np.trace(D)) / h
    if np.linalg.norm(D - lam * np.eye(h)) > tolerance * max(1.0, float(np.linalg.norm(D))):
        raise InputError("Argument `network` must have D_1 = lambda I, but its imbalance is not a multiple of I.")
    F = np.block([[lam / 2 * np.eye(n), Y], [Y.T, -lam / 2 * np.eye(m)]])
    f, V = np.linalg.eigh(F)
    Q0 = V.T @ np.vstack([W1, W2.T])
    return np.array([(V @ _gram(f, Q0, float(s)) @ V.T)[:n, n:] for s in np.atleast_1d(as_float_array(t, "t"))])


def _gram(f: np.ndarray, Q0: np.ndarray, t: float) -> np.ndarray:
    """Q Q^T(t) in the eigenbasis of F: E Q0 (I + Q0^T M Q0)^{-1} Q0^T E, E = e^{ft}, M = int_0^t e^{2fs} ds.

    If Z is the lower part of the orthonormal factor of [I; M^{1/2} Q0], that is E M^{-1/2} Z Z^T M^{-1/2} E: bounded
    for every t. Rows of very different size are sorted and columns pivoted, which keeps each row's relative accuracy
    (Cox and Higham 1998). M^{1/2} = N^{1/2} e^{[f]_+ t} with N = (1 - e^{-2|f|t}) / 2|f|.
    """
    from scipy.linalg import qr

    if t == 0:
        return Q0 @ Q0.T
    growth, size = np.maximum(f, 0.0), np.abs(f)
    top = float(growth.max())
    if top * t > LARGEST_EXPONENT:
        raise InputError(
            f"Argument `t` must be at most {LARGEST_EXPONENT / top:.4g} for this network, but it is {t:g}."
        )
    root = np.sqrt(
        np.where(size * t < 1e-8, t * (1 - size * t), -np.expm1(-2 * size * t) / np.where(size, 2 * size, 1))
    )
    rows = (root * np.exp((growth - top) * t))[:, None] * Q0
    stacked = np.vstack([np.exp(-top * t) * np.eye(Q0.shape[1]), rows])
    order = np.argsort(-np.abs(stacked).max(axis=1))
    factor = np.empty_like(stacked)
    factor[order] = qr(stacked[order], mode="economic", pivoting=True)[0]
    Z = (np.exp(np.minimum(f, 0.0) * t) / root)[:, None] * factor[Q0.shape[1] :]
    return Z @ Z.T


def least_eigenvalue_of_T(network: LinearNetwork) -> float:
    """lambda_min(T) = lambda_min(scale^2 sum_l A_l A_l^T (x) B_l^T B_l) in multiple precision, for small n m.

    The digits are as many as products of the entries, from the smallest to the greatest, can ask for: the value is
    right to float64's, however ill-conditioned T is. Raises InputError where mpmath (extra `test`) is missing.

    >>> import flowsim as fs
    >>> network = fs.LinearNetwork(([[1e8, 1.0]], [[1.0, 0.0], [1e8, 1e-8]], [[1e-8], [1e8]]))
    >>> fs.exact.least_eigenvalue_of_T(network) == network.lambda_min_T  # a number: n = m = 1
    True
    >>> fs.exact.least_eigenvalue_of_T(fs.LinearNetwork(([[1e8, 0.0], [1e8, 1e-8]], [[1e8], [1e-8]]))) > 0
    True
    """
    try:
        import mpmath
    except ImportError as missing:
        raise InputError("least_eigenvalue_of_T needs mpmath: pip install mpmath.") from missing
    spreads = [np.log10(np.abs(W[W != 0])) for W in network.weights if W.any()]
    digits = 50 + 2 * int(sum(np.ptp(spread) for spread in spreads))
    with mpmath.workdps(digits):
        n, m = network.dims[0], network.dims[-1]
        layers = [mpmath.matrix(W.tolist()) for W in network.weights]
        prefixes, suffixes = [mpmath.eye(n)], [mpmath.eye(m)]
        for W in layers[:-1]:
            prefixes.append(prefixes[-1] * W)
        for W in reversed(layers[1:]):
            suffixes.append(W * suffixes[-1])
        T = mpmath.zeros(n * m)
        for A, B in zip(prefixes, reversed(suffixes), strict=True):
            P, Q = A * A.T, B.T * B
            for i, j in np.ndindex(n * m, n * m):
                T[i, j] += P[i // m, j // m] * Q[i % m, j % m]
        least = min(mpmath.eigsy(T, eigvals_only=True)) * mpmath.mpf(network.scale) ** 2
        return max(float(least), 0.0) if abs(least) > mpmath.mpf(10) ** (10 - digits) * mpmath.norm(T) else 0.0
