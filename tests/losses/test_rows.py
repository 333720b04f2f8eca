"""LeastSquares of rows that are read in blocks: memory maps, sparse matrices, weights, means taken off."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse

import flowsim as fs
from flowsim.errors import InputError
from flowsim.losses import rows as rows_module


def data(seed=0, count=50, n=4, m=2):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((count, n)), rng.standard_normal((count, m))


def same(one, other, W):
    """Two losses agree in value, gradient, minimum and constants, whatever their factors' bases."""
    assert one.value(W) == pytest.approx(other.value(W), rel=1e-12)
    assert one.gradient(W) == pytest.approx(other.gradient(W), rel=1e-11, abs=1e-12)
    assert one.minimum == pytest.approx(other.minimum, rel=1e-12, abs=1e-13)
    assert pytest.approx(other.constants.K, rel=1e-12) == one.constants.K
    assert one.constants.gamma == pytest.approx(other.constants.gamma, rel=1e-10)


@given(
    seed=st.integers(0, 99), count=st.integers(1, 40), n=st.integers(1, 5), m=st.integers(1, 3), rank=st.integers(1, 5)
)
def test_factors_of_any_shape_and_rank_are_the_loss(seed, count, n, m, rank):
    """Fewer rows than columns, ranks that are not full: value, gradient and minimum by their definitions."""
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((count, min(rank, count, n))) @ rng.standard_normal((min(rank, count, n), n))
    Y, W = rng.standard_normal((count, m)), rng.standard_normal((n, m))
    loss = fs.LeastSquares(X, Y)
    size = 0.5 * float((Y**2).sum() + ((X @ W) ** 2).sum())
    assert loss.value(W) == pytest.approx(0.5 * ((Y - X @ W) ** 2).sum(), abs=1e-12 * size)
    assert loss.gradient(W) == pytest.approx(X.T @ (X @ W - Y), abs=1e-11 * size)
    best = np.linalg.lstsq(X, Y, rcond=1e-12)[0]
    assert loss.minimum == pytest.approx(0.5 * ((Y - X @ best) ** 2).sum(), abs=1e-12 * size)


@pytest.mark.parametrize("block", [1, 7, 50, 1000])
def test_blocks_of_any_size(block, monkeypatch):
    X, Y = data()
    whole = fs.LeastSquares(X, Y)
    monkeypatch.setattr(rows_module, "BLOCK_BYTES", 8 * 6 * block)
    same(fs.LeastSquares(X, Y), whole, np.ones((4, 2)))


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.uint8])
def test_memory_maps_and_sparse_matrices_are_never_there_as_a_whole(dtype, tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    X, Y = (10 * rng.random((300, 5))).astype(dtype), rng.standard_normal((300, 2))
    np.save(tmp_path / "x.npy", X)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    monkeypatch.setattr(rows_module, "BLOCK_BYTES", 8 * 7 * 40)
    largest = []
    dense = rows_module._dense

    def watched(part, name):
        largest.append(part.shape[0])
        return dense(part, name)

    plain = fs.LeastSquares(X.astype(float), Y)
    monkeypatch.setattr(rows_module, "_dense", watched)
    for one in (mapped, sparse.csr_array(X), sparse.coo_matrix(X), sparse.csc_matrix(X)):
        largest.clear()
        same(fs.LeastSquares(one, Y), plain, np.ones((5, 2)))
        assert max(largest) <= 40


@pytest.mark.parametrize("centre", [False, True])
@pytest.mark.parametrize("weighed", [False, True])
def test_weights_and_means(centre, weighed):
    X, Y = data()
    w = np.random.default_rng(1).uniform(0.0, 3.0, 50) if weighed else np.ones(50)
    w[3] = 0.0
    loss, W = fs.LeastSquares(X, Y, weights=w, centre=centre), np.full((4, 2), 0.3)
    E = Y - X @ W
    if centre:  # the best constant beside W
        E = E - w @ E / w.sum()
    assert loss.value(W) == pytest.approx(0.5 * (w[:, None] * E**2).sum(), rel=1e-12)
    h = 1e-6
    ahead = np.array([[loss.value(W + h * (np.arange(8) == k).reshape(4, 2)) for k in range(8)]])
    behind = np.array([[loss.value(W - h * (np.arange(8) == k).reshape(4, 2)) for k in range(8)]])
    assert ((ahead - behind) / (2 * h)).reshape(4, 2) == pytest.approx(loss.gradient(W), rel=1e-6, abs=1e-6)


def test_balanced_classes_count_alike():
    """Nine rows of one class and one of another: as if each class had five."""
    X = np.vstack([np.tile([[1.0, 0.0]], (9, 1)), [[0.0, 1.0]]])
    Y = np.vstack([np.tile([[1.0, 0.0]], (9, 1)), [[0.0, 1.0]]])
    loss, W = fs.LeastSquares(X, Y, weights="balanced"), np.zeros((2, 2))
    assert loss.value(W) == pytest.approx(0.5 * (5 + 5))
    assert fs.LeastSquares(X, Y).value(W) == pytest.approx(0.5 * 10)
    assert loss.gradient(W) == pytest.approx(-5 * np.eye(2))


def test_batches_of_weighed_and_centred_rows_of_a_sparse_matrix(tmp_path):
    X, Y = data()
    X[X < 0] = 0.0
    loss = fs.LeastSquares(sparse.csr_array(X), Y, weights=np.linspace(0.5, 2.0, 50), centre=True)
    problem = fs.Problem(loss, fs.fan_in((4, 5, 2), seed=0))
    runs = [fs.simulate(problem, fs.GradientDescent(1e-3, b, batch_size=10), t1=0.02) for b in ("numpy", "jax")]
    assert runs[0].products == pytest.approx(runs[1].products, rel=1e-11)
    from flowsim.losses.samples import Batches

    batches, W = Batches(loss, 10, 0.0, 0), np.ones((4, 2))
    mean = np.mean([batches.at(k).loss(batches.kind).gradient(W) for k in range(5)], axis=0)
    assert mean == pytest.approx(loss.gradient(W), rel=1e-11)
    runs[0].save(tmp_path / "run.nc")
    back = fs.load(tmp_path / "run.nc")
    whole = fs.simulate(problem, runs[0].method, t1=0.04)
    assert fs.resume(back, t1=0.04).products[-1] == pytest.approx(whole.products[-1], rel=1e-11)
    for one in (loss, back.problem.loss):
        with pytest.raises(InputError, match="weighed"):
            fs.simulate(fs.Problem(one, problem.network), fs.GradientDescent(1e-3, label_noise=0.1), t1=0.02)


@pytest.mark.parametrize(
    ("X", "Y", "settings", "words"),
    [
        (np.ones((3, 2)), np.ones((2, 1)), {}, "as many rows"),
        (np.ones((3, 2)), np.ones((3, 1)), {"weights": [1.0, 2.0]}, "weights.*3 numbers"),
        (np.ones((3, 2)), np.ones((3, 1)), {"weights": [1.0, -2.0, 1.0]}, "weights.*>= 0"),
        (np.ones((3, 2)), np.ones((3, 1)), {"weights": [0.0, 0.0, 0.0]}, "not all 0"),
        (np.ones((3, 2)), np.ones((3, 1)), {"weights": "equal"}, "balanced"),
        (np.ones((3, 2)), np.ones((3, 1)), {"centre": True}, "must not be zero"),
        (sparse.csr_array(np.full((3, 2), np.nan)), np.ones((3, 1)), {}, "X.*finite"),
        (sparse.csr_array(np.ones((3, 2)) * 1j), np.ones((3, 1)), {}, "X.*real"),
        (np.ones((3, 2)), np.array([[np.inf], [0.0], [1.0]]), {}, "Y.*finite"),
    ],
)
def test_what_cannot_be_is_refused(X, Y, settings, words):
    with pytest.raises(InputError, match=words):
        fs.LeastSquares(X, Y, **settings)
