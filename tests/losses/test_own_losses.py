"""One contract for a user's own loss: the same flow by every method, and one sentence where it is broken."""

import copy
import dataclasses
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flowsim as fs
from flowsim.errors import InputError
from flowsim.losses import adapted, excess, minimum_of
from flowsim.methods import METHODS
from flowsim.runs import ensembles

NETWORK = fs.fan_in((2, 4, 1), seed=0)
TARGET = np.array([[1.0], [-0.5]])


class Plain:
    """sqrt(1 + r^2) - 1, summed, with NumPy; it writes into what it is handed and returns one buffer every time."""

    shape = (2, 1)

    def __init__(self, target=TARGET):
        self.target, self.buffer = target, np.zeros((2, 1))

    def value(self, W):
        W -= self.target
        return float((np.sqrt(1 + W**2) - 1).sum())

    def gradient(self, W):
        W -= self.target
        self.buffer[:] = W / np.sqrt(1 + W**2)
        return self.buffer


class Curved(Plain):
    """With its Hessian, and how often it was asked for."""

    asked = 0

    def hessian_product(self, W, V):
        self.asked += 1
        return V * (1 + (W - self.target) ** 2) ** -1.5


class Traceable:
    """The same with jax.numpy."""

    shape = (2, 1)
    target = TARGET

    def value(self, W):
        return (jnp.sqrt(1 + (W - self.target) ** 2) - 1).sum()

    def gradient(self, W):
        return (W - self.target) / jnp.sqrt(1 + (W - self.target) ** 2)


class Floating(Traceable):
    """Its value is a Python number, which jax cannot trace."""

    def value(self, W):
        return float(super().value(W))


class Quarter(fs.SquaredLoss):
    """A subclass of one of flowsim's, with another gradient."""

    def excess(self, W):
        return super().excess(W) / 2

    def gradient(self, W):
        return super().gradient(W) / 2


OWN = [Plain(), Curved(), Traceable(), Floating()]
TIGHT = fs.Scipy("DOP853", 1e-12, 1e-14)
END = fs.simulate(fs.Problem(Plain(), NETWORK), TIGHT, t1=2.0).product_at(2.0)
NUMPY_METHODS = [name for name in METHODS if name.removeprefix("projected-") in ("rk23", "rk45", "dop853", "rkc")] + [
    "radau",
    "bdf",
    "lsoda",
    "gauss-legendre-1",
    "gauss-legendre-4",
]


def by_name(name):
    kind = METHODS[name][1]
    coarse = kind.order is not None and kind.order <= 2
    return fs.method_named(name, rtol=1e-4, atol=1e-6) if coarse else fs.method_named(name)


@pytest.mark.parametrize("loss", OWN, ids=lambda loss: type(loss).__name__)
@pytest.mark.parametrize("name", NUMPY_METHODS)
def test_the_same_flow_by_every_method_of_numpy(name, loss):
    method = by_name(name)
    run = fs.simulate(fs.Problem(loss, NETWORK), method, t1=2.0, save_points=3)
    assert run.status == "completed"
    assert np.abs(run.product_at(2.0) - END).max() < 100 * method.rtol


@pytest.mark.parametrize(
    ("method", "loss"),
    [(fs.Diffrax("Tsit5"), OWN[0]), (fs.Diffrax("Tsit5"), OWN[3]), (fs.Diffrax("Kvaerno3", 1e-5, 1e-7), OWN[0])],
    ids=["tsit5, called back", "tsit5, traced", "kvaerno3, called back"],
)
def test_the_same_flow_by_the_methods_that_jax_compiles(method, loss):
    run = fs.simulate(fs.Problem(loss, NETWORK), method, t1=2.0, save_points=3)
    assert run.status == "completed"
    assert np.abs(run.product_at(2.0) - END).max() < 100 * method.rtol
    between = fs.simulate(fs.Problem(loss, NETWORK), TIGHT, t1=2.0).product_at(1.37)
    assert np.abs(run.product_at(1.37) - between).max() < 100 * method.rtol


@pytest.mark.parametrize("loss", OWN, ids=lambda loss: type(loss).__name__)
def test_descent_by_numpy_and_by_jax(loss):
    runs = [fs.simulate(fs.Problem(loss, NETWORK), fs.GradientDescent(0.01, b), t1=1.0) for b in ("numpy", "jax")]
    assert runs[0].excess == pytest.approx(runs[1].excess, rel=1e-12)


def test_an_ensemble_of_own_losses(monkeypatch):
    monkeypatch.setattr(ensembles, "BATCH", 4)  # each place of a batch is called back, whether a member takes it or not
    for loss in (OWN[0], OWN[3]):
        runs = [
            fs.ensemble(
                lambda seed, f=loss: fs.Problem(f, fs.fan_in((2, 5, 1), seed=seed)), 3, t1=0.5, method=m, save_points=3
            )
            for m in (fs.GradientDescent(0.01), fs.GradientDescent(0.01, "jax"))
        ]
        assert (runs[1].scalars["status"] == "completed").all()
        assert runs[0].excess == pytest.approx(runs[1].excess, rel=1e-12)


def test_a_failing_member_does_not_stop_the_others():
    def draw(seed):
        k = seed.spawn_key[0]
        if k == 1:
            raise ZeroDivisionError("no such member")
        loss = NotFinite() if k == 2 else Cliff() if k == 3 else Plain()
        return fs.Problem(loss, fs.fan_in((2, 5, 1), seed=seed))

    runs = fs.ensemble(draw, 4, t1=50.0, method=fs.Scipy(), save_points=3)
    assert list(runs.scalars["status"]) == ["completed", "failed", "failed", "diverged"]
    reasons = runs.scalars["reason"]
    assert "ZeroDivisionError: no such member" in reasons[1]
    assert "finite" in reasons[2]
    assert "over the cliff" in reasons[3]


def test_jax_losses_run_in_float64_whatever_the_setting():
    assert not jax.config.jax_enable_x64
    loss = adapted(Traceable()).check(np.zeros((2, 1)))
    W = np.array([[1e-3], [0.2]])
    assert loss.gradient(W) == pytest.approx(adapted(Plain()).gradient(W), rel=1e-15)
    assert excess(Floating(), W) == pytest.approx(float(excess(Plain(), W)), rel=1e-14)
    steps = [fs.simulate(fs.Problem(loss, NETWORK), t1=2.0).stats["steps"] for loss in (Plain(), Traceable())]
    assert steps[0] == steps[1]


@pytest.mark.parametrize("loss", OWN, ids=lambda loss: type(loss).__name__)
def test_the_hessian_is_the_losses_own_or_jaxs_or_a_difference(loss):
    W, V = np.array([[0.3], [2.0]]), np.array([[[1.0], [-2.0]], [[0.0], [0.0]], [[1e-9], [1e-9]]])
    found = adapted(loss).check(W).hessian_product(W, V)
    assert found == pytest.approx(V * (1 + (W - TARGET) ** 2) ** -1.5, rel=1e-8)


@pytest.mark.parametrize("loss", OWN, ids=lambda loss: type(loss).__name__)
def test_jax_differentiates_the_gradient(loss):
    """Under vmap too, as implicit methods do to form a Jacobian."""
    W, own = np.array([[0.3], [2.0]]), adapted(loss)
    with jax.enable_x64(True):
        push = jax.vmap(lambda V: jax.jvp(own.gradient, (jnp.asarray(W),), (V,))[1])
        found = push(jnp.eye(2).reshape(2, 2, 1))
    expected = np.eye(2).reshape(2, 2, 1) * (1 + (W - TARGET) ** 2) ** -1.5
    assert found == pytest.approx(expected, rel=1e-8, abs=1e-10)


def test_an_own_hessian_is_used():
    for method in (fs.GaussLegendre(4), fs.RKC(1e-4, 1e-6), fs.Scipy("Radau")):
        loss = Curved()
        fs.simulate(fs.Problem(loss, NETWORK), method, t1=2.0)
        assert loss.asked > 0


def test_a_loss_that_changes_between_problems_is_not_served_from_what_was_compiled():
    loss = Traceable()
    first = fs.simulate(fs.Problem(loss, NETWORK), fs.GradientDescent(0.1, "jax"), t1=1.0).excess[-1]
    loss.target = 3 * TARGET
    again = fs.simulate(fs.Problem(loss, NETWORK), fs.GradientDescent(0.1, "jax"), t1=1.0).excess[-1]
    plain = fs.simulate(fs.Problem(Plain(3 * TARGET), NETWORK), fs.GradientDescent(0.1), t1=1.0).excess[-1]
    assert again == pytest.approx(plain, rel=1e-12)
    assert again != pytest.approx(first, rel=1e-3)


def test_round_off_below_the_minimum_ends_no_run():
    """Near its minimum this loss is a difference of large numbers, of either sign."""
    loss = broken(minimum=0.0, value=lambda self, W: float(((W - TARGET) ** 2).sum() / 2 + 1 / 3 - 1 / 3 - 1e-17))
    for problem in (fs.Problem(loss, NETWORK), copy.copy(fs.Problem(loss, NETWORK))):
        run = fs.simulate(problem, t1=50.0)
        assert run.status == "completed"
        assert run.excess.min() < 0


def test_a_loss_in_numpy_is_simulated_without_jax():
    code = (
        "import sys, numpy as np, flowsim as fs\n"
        "class Own:\n"
        "    shape = (2, 1)\n"
        "    def value(self, W): return float((W**4).sum())\n"
        "    def gradient(self, W): return 4 * W**3\n"
        "fs.simulate(fs.Problem(Own(), fs.fan_in((2, 3, 1), seed=0)), t1=1.0)\n"
        "assert 'jax' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# ------------------------------------------------------------------------------------------------- the contract, broken


class NotFinite(Plain):
    def gradient(self, W):
        return np.full((2, 1), np.nan)


class Cliff(Plain):
    """Its value cannot be computed near the minimum."""

    def gradient(self, W):
        if np.abs(W - self.target).max() < 0.1:
            raise ValueError("over the cliff")
        return super().gradient(W)


def broken(**changes):
    return type("Broken", (Plain,), changes)()


@pytest.mark.parametrize(
    ("loss", "words"),
    [
        (broken(gradient=lambda self, W: np.ones(2)), r"shape \(2, 1\) as gradient.*\(2,\)"),
        (broken(gradient=lambda self, W: np.ones((1, 2))), r"returns one of shape \(1, 2\)"),
        (broken(gradient=lambda self, W: W + 0j), "real numbers as gradient.*complex128"),
        (broken(gradient=lambda self, W: W.astype(np.float32)), "float64.*float32"),
        (broken(gradient=lambda self, W: None), "real numbers as gradient"),
        (broken(gradient=lambda self, W: np.ma.masked_array(W, W > 0)), "masked"),
        (broken(gradient=lambda self, W: 1 / 0), "gradient raised ZeroDivisionError"),
        (broken(gradient=lambda self: 0), "gradient raised TypeError"),
        (broken(value=lambda self, W: W.sum(0)), "number as value"),
        (broken(value=lambda self, W: 1j), "real numbers as value.*complex"),
        (broken(value=lambda self, W: np.nan), "finite at the initial product, but its value"),
        (broken(value=lambda self, W: np.inf), "finite at the initial product, but its value"),
        (broken(value=lambda self, W: np.float32(1)), "float64.*float32"),
        (broken(minimum=100.0), "minimum, declared as 100"),
        (broken(minimum=np.nan), "minimum"),
        (broken(minimum="0"), "minimum"),
        (broken(minimiser=np.ones(2)), "minimiser"),
        (broken(constants=2.0), "LossConstants"),
        (broken(excess=lambda self, W: W), "number as excess"),
        (broken(hessian_product=lambda self, W, V: V[0]), "shape .* as hessian_product"),
        (broken(shape=3), "sizes"),
        (broken(shape=(2,)), "sizes"),
        (NotFinite(), "finite at the initial product, but its gradient"),
    ],
)
def test_a_broken_contract_is_one_sentence(loss, words):
    with pytest.raises(InputError, match=words):
        fs.Problem(loss, NETWORK)


def test_a_loss_in_jax_that_cannot_be_traced_is_refused_where_it_would_be_compiled():
    class Branching(Traceable):
        def gradient(self, W):
            return super().gradient(W) if float(W.sum()) < 100 else W

    problem = fs.Problem(Branching(), NETWORK)
    assert fs.simulate(problem, t1=0.5).status == "completed"
    with pytest.raises(InputError, match=r"traceable.*jax\.numpy alone"):
        fs.simulate(problem, fs.Diffrax("Tsit5"), t1=0.5)


@pytest.mark.parametrize(
    "method",
    [fs.Scipy(), fs.Scipy("Radau"), fs.Scipy("LSODA"), fs.RKC(1e-4), fs.GaussLegendre(2), fs.GradientDescent(0.1)],
    ids=lambda m: m.name,
)
def test_a_loss_that_fails_later_ends_the_run_there(method):
    run = fs.simulate(fs.Problem(Cliff(), NETWORK), method, t1=50.0)
    assert run.status == "diverged"
    assert "over the cliff" in run.message
    assert 0 < run.time[-1] < 50
    assert np.isfinite(run.excess).all()


def test_a_minimum_that_is_not_one_ends_the_run():
    run = fs.simulate(fs.Problem(broken(minimum=0.1), NETWORK), t1=50.0)
    assert run.status == "diverged"
    assert "declared as 0.1" in run.message
    assert run.loss[-1] >= 0.1


# ----------------------------------------------------------------------------------------------------------- subclasses


def test_what_a_subclass_inherits_says_nothing_of_what_it_overrides():
    loss = Quarter(np.ones((2, 1)))
    assert minimum_of(loss) == 0.0  # its own excess is f - f*
    assert minimum_of(type("Other", (fs.SquaredLoss,), {"value": Quarter.excess})(np.ones((2, 1)))) is None
    assert fs.certify(fs.Problem(loss, NETWORK)).best is None
    assert fs.certify(fs.Problem(loss, NETWORK))["min-2021"].applies is False
    W, V = np.zeros((2, 1)), np.ones((2, 1))
    assert adapted(loss).hessian_product(W, V) == pytest.approx(V / 2, rel=1e-8)
    half = fs.simulate(fs.Problem(loss, NETWORK), fs.GaussLegendre(4), t1=2.0)
    whole = fs.simulate(fs.Problem(fs.SquaredLoss(np.ones((2, 1))), NETWORK), fs.GaussLegendre(4), t1=1.0)
    assert half.product_at(2.0) == pytest.approx(whole.product_at(1.0), rel=1e-7)


def test_what_a_subclass_declares_anew_counts():
    class Declared(Quarter):
        constants = fs.LossConstants(gamma=1.0, dominance="quadratic")

    problem = fs.Problem(Declared(np.ones((2, 1))), NETWORK)
    assert minimum_of(problem.loss) == 0.0
    whole = fs.certify(fs.Problem(fs.SquaredLoss(np.ones((2, 1))), NETWORK))
    assert fs.certify(problem)["theorem-1-A1"].rate == whole["theorem-1-A1"].rate / 2
    assert fs.simulate(problem, t1=50.0, stop_loss=1e-3).status == "converged"


def test_a_subclass_is_never_loaded_as_its_base(tmp_path):
    loss = Quarter(np.ones((2, 1)))
    run = fs.simulate(fs.Problem(loss, NETWORK), t1=1.0)
    run.save(tmp_path / "run.nc")
    loaded = fs.load(tmp_path / "run.nc")
    assert type(loaded.problem.loss).__name__ == "UnknownLoss"
    with pytest.raises(InputError, match="loss="):
        fs.resume(loaded, t1=2.0)
    longer = fs.resume(fs.load(tmp_path / "run.nc", loss=loss), t1=2.0)
    assert longer.product_at(2.0) == pytest.approx(fs.resume(run, t1=2.0).product_at(2.0), rel=1e-12)


def test_an_own_loss_that_is_false_in_a_condition_is_loaded(tmp_path):
    class Empty(Plain):
        def __len__(self):
            return 0

    run = fs.simulate(fs.Problem(Empty(), NETWORK), t1=1.0)
    run.save(tmp_path / "run.nc")
    assert isinstance(fs.load(tmp_path / "run.nc", loss=Empty()).problem.loss, Empty)


@pytest.mark.parametrize("name", ["velocity", "gradients", "jacobian_product", "excess"])
def test_a_problem_with_other_equations_is_refused(name):
    kind = type("Damped", (fs.Problem,), {name: lambda self, *arguments: None})
    with pytest.raises(InputError, match=f"overrides {name}"):
        kind(fs.SquaredLoss(np.ones((2, 1))), NETWORK)


def test_where_the_minimum_is_not_known_the_summary_speaks_of_the_loss():
    run = fs.simulate(fs.Problem(Plain(), NETWORK), t1=1.0)
    assert "f* is not known" in run.summary()
    assert "of L itself" in run.summary()
    known = dataclasses.replace(run, problem=fs.Problem(broken(minimum=0.0), NETWORK))
    assert "L - f* to" in known.summary()
