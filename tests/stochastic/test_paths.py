"""Many paths: their noise, descent's own paths, the law of the mean drift, and the flow as the limit."""

import numpy as np
import pytest

import flowsim as fs
from flowsim.errors import InputError
from flowsim.methods.jax_support import float64
from flowsim.stochastic.flow import applied, factors, noise_of, squares

ROWS = 12


def problem_of(kind="least squares", dims=(3, 6, 2), weight_decay=0.0):
    rng = np.random.default_rng(0)
    X, Y = rng.standard_normal((ROWS, dims[0])) / ROWS**0.5, rng.standard_normal((ROWS, dims[-1])) / ROWS**0.5
    loss = {
        "least squares": lambda: fs.LeastSquares(X, Y),
        "squared": lambda: fs.SquaredLoss(Y[: dims[0]]),
        "masked": lambda: fs.MaskedSquaredLoss(Y[: dims[0]], np.array([[1, 0], [2, 1], [0, 1.0]])),
        "logistic": lambda: fs.LogisticLoss(X, np.sign(Y)),
        "exponential": lambda: fs.ExponentialLoss(X, np.sign(Y)),
    }[kind]()
    return fs.Problem(loss, fs.fan_in(dims, seed=1), weight_decay=weight_decay)


NOISES = [
    ("least squares", None, 0.3),
    ("least squares", 5, 0.0),
    ("least squares", 5, 0.3),
    ("squared", None, 0.3),
    ("squared", 4, 0.3),
    ("masked", None, 0.3),
    ("masked", 2, 0.0),
    ("masked", 2, 0.3),
    ("logistic", 4, 0.0),
    ("exponential", 3, 0.0),
]


@pytest.mark.parametrize(("kind", "batch_size", "label_noise"), NOISES)
def test_the_noise_has_the_covariance_of_batches_and_labels(kind, batch_size, label_noise):
    """Of 8,000 batches drawn by descent's own hand; and Q_l is the mean square of the noise in the layers."""
    problem = problem_of(kind)
    method = fs.GradientDescent(
        0.1, batch_size=batch_size, label_noise=label_noise, independent_batches=bool(batch_size)
    )
    W = problem.network.product
    from flowsim.methods.descent_steps import batches_of

    batches = batches_of(method, problem.loss)
    drawn = np.array([batches.at(k).loss(batches.kind).gradient(W) - problem.loss.gradient(W) for k in range(8_000)])
    sampled = drawn.reshape(len(drawn), -1)
    true = sampled.T @ sampled / len(sampled)
    of, noise = noise_of(problem.loss, batch_size, label_noise)
    with float64():
        terms = noise.terms(of, W)
        basis = []
        for place, (U, _, _) in enumerate(terms):
            for i in range(len(U)):
                normals = [np.eye(len(T))[i] if j == place else np.zeros(len(T)) for j, (T, _, _) in enumerate(terms)]
                basis.append(np.ravel(applied(terms, normals)))
        told = sum(np.outer(b, b) for b in basis)
        A, B = factors(problem.network.weights, 1.0, *W.shape)
        Q = [np.asarray(q) for q in squares(terms, A, B)]
    assert np.abs(told - true).max() < 0.1 * np.abs(true).max()
    A, B = [np.asarray(a) for a in A], [np.asarray(b) for b in B]
    exact = sum(
        (A[0].T @ N @ B[0].T).T @ (A[0].T @ N @ B[0].T) - (A[1].T @ N @ B[1].T) @ (A[1].T @ N @ B[1].T).T
        for N in (b.reshape(W.shape) for b in basis)
    )
    assert Q[0] == pytest.approx(exact, abs=1e-12)


@pytest.mark.parametrize(
    ("dims", "settings"),
    [((3, 6, 2), {"label_noise": 0.3}), ((3, 5, 4, 2), {"batch_size": 5, "label_noise": 0.2})],
)
def test_each_path_of_descent_is_the_run_of_its_seed(dims, settings):
    problem = problem_of(dims=dims, weight_decay=0.1)
    method = fs.GradientDescent(0.05, **settings, schedule=fs.StepDecay(10, 0.5))
    many = fs.stochastic_paths(problem, method, t1=0.7, paths=3, save_points=4, seed=5)
    for seed, losses in zip(many.seeds, many.excess, strict=True):
        own = fs.GradientDescent(0.05, **settings, schedule=fs.StepDecay(10, 0.5), seed=seed)
        run = fs.simulate(problem, own, t1=0.7, save_points=4)
        assert losses == pytest.approx(run.excess, rel=1e-10)
        assert many.time == pytest.approx(run.time)


@pytest.mark.parametrize(
    ("kind", "settings", "weight_decay"),
    [
        ("least squares", {"label_noise": 0.5}, 0.0),
        ("masked", {"label_noise": 0.5}, 0.2),
        ("least squares", {"batch_size": 4, "independent_batches": True}, 0.2),
        ("logistic", {"batch_size": 4, "independent_batches": True}, 0.0),
    ],
)
def test_the_mean_drift_of_descent_is_the_predicted(kind, settings, weight_decay):
    problem = problem_of(kind, weight_decay=weight_decay)
    many = fs.stochastic_paths(problem, fs.GradientDescent(0.1, **settings), t1=4.0, paths=500, save_points=3)
    scores = many.scores(1)[1:]
    assert np.abs(scores).max() < 4.5  # of 2 x 21 numbers
    assert 0.5 < scores.std() < 1.6
    size = np.linalg.norm(many.changes[0][-1])
    error = np.sqrt((many.deviations[0][-1] ** 2).sum() / len(many))
    assert error < 0.1 * size  # the prediction says something
    assert weight_decay or np.trace(many.predictions[0][-1]) != 0


def test_a_wrong_prediction_is_seen():
    """Without Q_l, what the noise does, the scores are far off."""
    problem = problem_of()
    many = fs.stochastic_paths(problem, fs.GradientDescent(0.1, label_noise=0.5), t1=4.0, paths=500, save_points=3)
    silent = fs.simulate(problem, fs.GradientDescent(0.1), t1=4.0, save_points=3)
    W, V = silent.weights_at(silent.time[-1])
    W0, V0 = problem.network.weights
    without = W.T @ W - V @ V.T - (W0.T @ W0 - V0 @ V0.T)
    error = many.deviations[0][-1] / len(many) ** 0.5
    assert np.abs((many.changes[0][-1] - without) / error).max() > 20


def test_the_flow_has_its_law_as_its_steps_become_short():
    """dD_l/dt = step_size Q_l: what Euler-Maruyama misses of it is of first order in its step."""
    problem, gaps = problem_of(), []
    for h in (0.05, 0.0125):
        many = fs.stochastic_paths(
            problem,
            fs.StochasticFlow(0.1, batch_size=5, label_noise=0.2),
            t1=3.0,
            paths=200,
            save_points=2,
            step_size=h,
        )
        gaps.append(np.linalg.norm(many.changes[0][-1] - many.predictions[0][-1]))
    assert gaps[1] < 0.5 * gaps[0]
    assert gaps[1] < 0.2 * np.linalg.norm(many.predictions[0][-1])


def test_descent_with_small_steps_is_near_the_flow():
    """The mean loss of both, within their standard errors and what first order leaves."""
    problem = problem_of()
    flow = fs.stochastic_paths(problem, fs.StochasticFlow(0.05, label_noise=0.3), t1=4.0, paths=500, save_points=5)
    steps = fs.stochastic_paths(
        problem, fs.GradientDescent(0.05, label_noise=0.3), t1=4.0, paths=500, save_points=5, seed=1
    )
    error = np.hypot(flow.standard_error, steps.standard_error)
    assert (np.abs(flow.mean - steps.mean)[1:] < 5 * error[1:] + 0.05 * steps.mean[1:]).all()
    silent = fs.simulate(problem, fs.GradientDescent(0.05), t1=4.0)  # D_l of the steps without noise drifts too
    (W, V), (W0, V0) = silent.weights_at(silent.time[-1]), problem.network.weights
    drift = W.T @ W - V @ V.T - (W0.T @ W0 - V0 @ V0.T)
    change = steps.changes[0][-1]
    assert np.linalg.norm(flow.changes[0][-1] - change) > 0.2 * np.linalg.norm(change)
    assert np.linalg.norm(flow.changes[0][-1] + drift - change) < 0.15 * np.linalg.norm(change)


def test_seeds_say_all_and_two_layers_are_compressed():
    loss = problem_of().loss
    wide = fs.Problem(loss, fs.fan_in((3, 2000, 2), seed=0))
    for subject in (fs.GradientDescent(1e-3, label_noise=0.3), fs.StochasticFlow(1e-3, label_noise=0.3)):
        one, same, other = (fs.stochastic_paths(wide, subject, t1=0.03, paths=4, seed=s) for s in (0, 0, 1))
        assert (one.excess == same.excess).all()
        assert not np.allclose(one.excess[:, -1], other.excess[:, -1])
        assert "compressed: exact" in one.width
        assert one.changes[0].shape[1] < 20
        assert dict(one.dataset.sizes)["path"] == 4
        assert one.dataset.seed.values.tolist() == list(one.seeds)
        assert "4 of" in str(one)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: fs.StochasticFlow(0.1), "label_noise.*batch_size"),
        (lambda: fs.StochasticFlow(0.0, label_noise=1.0), "step_size"),
        (lambda: fs.StochasticFlow(0.1, batch_size=0), "batch_size"),
        (lambda: fs.stochastic_paths(problem_of(), fs.GradientDescent(0.1), t1=1.0), "batch_size or label_noise"),
        (
            lambda: fs.stochastic_paths(problem_of(), fs.GradientDescent(0.1, momentum=0.9, batch_size=2), t1=1.0),
            "no momentum",
        ),
        (lambda: fs.stochastic_paths(problem_of(), "gd", t1=1.0), "subject.*str"),
        (
            lambda: fs.stochastic_paths(problem_of("logistic"), fs.StochasticFlow(0.1, label_noise=1.0), t1=1.0),
            "-1 and",
        ),
        (lambda: fs.stochastic_paths(problem_of(), fs.StochasticFlow(0.1, batch_size=99), t1=1.0), "at most 12"),
        (lambda: fs.stochastic_paths(problem_of(), fs.StochasticFlow(0.1, batch_size=2), t1=1.0, paths=0), "paths"),
    ],
)
def test_what_cannot_be_is_refused(make, words):
    with pytest.raises(InputError, match=words):
        make()


def test_paths_that_diverge_are_told():
    with pytest.raises(fs.errors.NumericalFailure, match="diverged"):
        fs.stochastic_paths(problem_of(), fs.GradientDescent(50.0, label_noise=1.0), t1=5000.0, paths=2)


def test_one_path_has_no_standard_error():
    one = fs.stochastic_paths(problem_of(), fs.GradientDescent(0.05, label_noise=0.3), t1=0.5, paths=1, save_points=3)
    assert np.isnan(one.standard_error).all()
    assert np.isnan(one.scores(1)).all()
    assert "standard error not known" in str(one)
