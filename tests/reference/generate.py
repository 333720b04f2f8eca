"""The numbers of cases.json, computed again from the weights and targets beside it, by NumPy and SciPy alone.

    python tests/reference/generate.py [--write] [NAME ...]

prints how far the file is from what is computed, relative to the greatest entry of each number; --write renews it.
Nothing of flowsim is imported: what the tests compare flowsim with has no code in common with it.
"""

import argparse
import json
from functools import reduce
from itertools import pairwise
from pathlib import Path

import numpy as np
from scipy.integrate import solve_ivp

HERE = Path(__file__).parent


def product(weights):
    return reduce(np.matmul, weights, np.eye(len(weights[0])))


def flow(weights, Y, times):
    """(loss at the times, weights at the last), by DOP853 at rtol 1e-12."""
    shapes = [W.shape for W in weights]
    cuts = np.cumsum([W.size for W in weights])[:-1]

    def unpack(state):
        return [part.reshape(shape) for part, shape in zip(np.split(state, cuts), shapes, strict=True)]

    def velocity(_, state):
        W = unpack(state)
        E = product(W) - Y
        before = [product([np.eye(shapes[0][0]), *W[:k]]) for k in range(len(W))]
        after = [reduce(np.matmul, W[k + 1 :], np.eye(shapes[k][1])) for k in range(len(W))]
        return -np.concatenate([(A.T @ E @ B.T).ravel() for A, B in zip(before, after, strict=True)])

    start = np.concatenate([W.ravel() for W in weights])
    found = solve_ivp(velocity, (0, times[-1]), start, "DOP853", times, rtol=1e-12, atol=1e-14)
    states = [unpack(state) for state in found.y.T]
    return [0.5 * float(np.sum((Y - product(W)) ** 2)) for W in states], states[-1]


def lambda_min_T(weights):
    """The least eigenvalue of sum_l (A_l A_l^T) x (B_l^T B_l), dense."""
    n, m = weights[0].shape[0], weights[-1].shape[1]
    T = np.zeros((n * m, n * m))
    for k, W in enumerate(weights):
        A, B = product([np.eye(n), *weights[:k]]), reduce(np.matmul, weights[k + 1 :], np.eye(W.shape[1]))
        T += np.kron(A @ A.T, B.T @ B)
    return float(np.linalg.eigvalsh(T)[0])


def imbalances(weights):
    return [W.T @ W - V @ V.T for W, V in pairwise(weights)]


def theorem_2(weights):
    """Delta* of the paper's Theorem 2, three layers."""
    n, m = weights[0].shape[0], weights[2].shape[1]
    D_1, D_2 = imbalances(weights)
    D_21, D_23 = np.linalg.eigvalsh(-D_1)[::-1], np.linalg.eigvalsh(D_2)[::-1]

    def padded(values, order):
        """The sequence l_1, l_2, ... of a matrix, as far as the other has rows; beyond, nothing dominates."""
        return np.concatenate([values, np.full(max(order - len(values), 0), -np.inf)])[:order]

    def sums(values, ends):
        order = len(values)
        upper = np.maximum(np.maximum(padded(D_21, order), padded(D_23, order)), 0.0)
        lower = np.minimum(upper, np.concatenate([np.full(ends - 1, np.inf), values])[:order])
        return float((upper - lower).sum()), float((upper**2 - lower**2).sum())

    d_21, s_21 = sums(D_21, n)
    d_23, s_23 = sums(D_23, m)
    return 0.5 * (s_21 + d_21**2) + d_21 * d_23 + 0.5 * (s_23 + d_23**2)


def two_layers(weights, Y):
    """(Lemma 3 as corrected, Theorem 1 under A1): 1/2 (-D_+ + sqrt((D_+ + D)^2 + 4 sigma_m^2) and the same of D_-."""
    n, m = weights[0].shape[0], weights[1].shape[1]
    D = np.linalg.eigvalsh(imbalances(weights)[0])[::-1]

    def positive(values, index):
        return max(float(values[index - 1]), 0.0) if index <= len(values) else 0.0

    up = positive(D, 1) - positive(D, n)
    down = positive(-D[::-1], 1) - positive(-D[::-1], m)
    Delta = positive(D, n) + positive(-D[::-1], m)
    sigma = np.linalg.svd(product(weights), compute_uv=False)
    nu_n, nu_m = ((float(sigma[k - 1]) if k <= len(sigma) else 0.0) for k in (n, m))
    lemma = 0.5 * (
        -up + np.sqrt((up + Delta) ** 2 + 4 * nu_m**2) - down + np.sqrt((down + Delta) ** 2 + 4 * nu_n**2)
    )
    return lemma, Delta


def computed(case):
    """The case with its numbers computed again."""
    with np.load(HERE / f"{case['name']}.npz") as arrays:
        weights = [arrays[f"W{k}"] for k in range(1, len(case["dims"]))]
        Y = arrays["Y"]
    losses, last = flow(weights, Y, case["t"])
    found = {
        **{name: case[name] for name in ("name", "dims", "t")},
        "loss": losses,
        "lambda_min_T0": lambda_min_T(weights),
        "lambda_min_T1": lambda_min_T(last),
        "imbalance_norms": [float(np.linalg.norm(D)) for D in imbalances(weights)],
    }
    if len(weights) == 3:
        found["theorem2_alpha"] = theorem_2(weights)
    else:
        found["lemma3_lower_bound"], found["theorem1_A1_alpha"] = two_layers(weights, Y)
    return found


def gaps(case, found):
    """name -> greatest difference, relative to the greatest entry; of a bound, or to lambda_min(T)."""
    result = {}
    for name, value in found.items():
        if name not in ("name", "dims", "t"):
            told, mine = np.atleast_1d(case[name]), np.atleast_1d(value)
            size = max(np.abs(told).max(), case["lambda_min_T0"] if "alpha" in name or "bound" in name else 0.0)
            result[name] = float(np.abs(told - mine).max() / size)
    return result


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write what was computed")
    parser.add_argument("names", nargs="*", help="cases; all unless given")
    options = parser.parse_args()
    path = HERE / "cases.json"
    content = json.loads(path.read_text())
    for k, case in enumerate(content["cases"]):
        if not options.names or case["name"] in options.names:
            found = computed(case)
            print(case["name"], {name: f"{gap:.1e}" for name, gap in gaps(case, found).items()})
            if options.write:
                content["cases"][k] = found
    if options.write:
        path.write_text(json.dumps(content, indent=1))


if __name__ == "__main__":
    main()
