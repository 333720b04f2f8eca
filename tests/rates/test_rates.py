"""Every certificate against the least eigenvalue of T, and against the loss along simulated trajectories."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import flowsim as fs
from flowsim.rates.certificate import OVERFLOW, along_trajectory, at_this_instant
from flowsim.rates.homogeneous import chain_bound, homogeneous_imbalance
from flowsim.rates.imbalance import Spectrum, spectra
from flowsim.rates.margin import present
from flowsim.rates.product_bound import product_bound
from flowsim.rates.theorem_2 import delta_star

SLACK = 1 + 1e-9


def gaussian(rng, dims):
    """Layers of very different sizes: the imbalance then has many signs."""
    factors = 10 ** rng.uniform(-1, 1, len(dims) - 1)
    pairs = zip(factors, dims, dims[1:], strict=False)
    return fs.LinearNetwork(tuple(c * rng.standard_normal((r, k)) for c, r, k in pairs), scale=rng.uniform(0.5, 2))


def random_dims(rng, depth, widest=6):
    n, m = (int(k) for k in rng.integers(1, 5, 2))
    return (n, *(int(k) for k in rng.integers(min(n, m), widest + min(n, m), depth - 1)), m)


def random_unimodal(rng, depth, dims=None):
    dims = random_dims(rng, depth) if dims is None else dims
    return fs.unimodal(
        dims,
        peak=int(rng.integers(1, depth + 1)),
        imbalance=rng.uniform(0, 2, depth - 1),
        seed=int(rng.integers(2**31)),
    )


def sigma_min(network):
    return float(np.linalg.svd(network.product, compute_uv=False)[-1])


def round_off(network):
    """Of eigenvalues of T, whose norm is at most the sum of these products of squared norms."""
    squares = [float((W**2).sum()) for W in network.weights]
    return 1e-13 * network.scale**2 * sum(np.prod(squares[:k] + squares[k + 1 :]) for k in range(len(squares)))


def assert_no_violation(network):
    for certificate in fs.certify(network):
        if certificate.applies:
            assert certificate.alpha <= network.lambda_min_T * SLACK + round_off(network), certificate


@settings(max_examples=150)
@given(depth=st.integers(2, 5), seed=st.integers(0, 2**31))
def test_no_certificate_exceeds_the_least_eigenvalue(depth, seed):
    rng = np.random.default_rng(seed)
    assert_no_violation(gaussian(rng, random_dims(rng, depth)))


@settings(max_examples=100)
@given(depth=st.integers(2, 6), seed=st.integers(0, 2**31))
def test_nor_for_unimodal_weights(depth, seed):
    network = random_unimodal(np.random.default_rng(seed), depth)
    assert fs.certify(network)["theorem-3-unimodal"].applies
    assert_no_violation(network)


@settings(max_examples=60)
@given(depth=st.integers(2, 6), size=st.integers(1, 4), seed=st.integers(0, 2**31))
def test_homogeneous_bounds(depth, size, seed):
    """The sharp bound is the least eigenvalue itself; the paper's lies below it, and Arora's where all D_l = 0."""
    rng = np.random.default_rng(seed)
    d = rng.uniform(-2, 2, depth - 1) * rng.integers(0, 2)
    network = fs.homogeneous((size,) * (depth + 1), imbalance=d, seed=seed)
    certificates = fs.certify(network)
    assert certificates["theorem-3-homogeneous"].applies
    assert certificates["arora-2018"].applies == (not d.any())
    found, _ = homogeneous_imbalance(network, 1e-12)
    assert found == pytest.approx(d, abs=1e-12)
    tight = chain_bound([Spectrum(np.full(size, one)) for one in found], network.dims, present(network))
    assert tight == pytest.approx(network.lambda_min_T, rel=1e-6, abs=1e-9 + round_off(network))
    assert certificates["theorem-3-homogeneous"].alpha <= tight * SLACK + round_off(network)
    assert_no_violation(network)


@settings(max_examples=60)
@given(seed=st.integers(0, 2**31))
def test_the_unimodal_product_is_theorem_2_for_three_layers(seed):
    rng = np.random.default_rng(seed)
    network = random_unimodal(rng, 3)
    certificates = fs.certify(network)
    expected = certificates["theorem-2"].alpha
    assert certificates["theorem-3-unimodal"].alpha == pytest.approx(expected, rel=1e-9, abs=round_off(network))


@settings(max_examples=60)
@given(seed=st.integers(0, 2**31))
def test_lemma_3_is_the_least_eigenvalue_of_scalar_models(seed):
    rng = np.random.default_rng(seed)
    network = gaussian(rng, (1, int(rng.integers(1, 6)), 1))
    assert fs.certify(network)["lemma-3"].alpha == pytest.approx(network.lambda_min_T, rel=1e-9)


@settings(max_examples=150)
@given(seed=st.integers(0, 2**31), scalar=st.booleans())
def test_the_bound_with_the_product_lies_between_theorem_2_and_the_truth(seed, scalar):
    rng = np.random.default_rng(seed)
    dims = random_dims(rng, 3)
    network = gaussian(rng, (1, *dims[1:-1], 1) if scalar else dims)
    network = fs.LinearNetwork(network.weights)
    ours = product_bound(*spectra(network), network.dims[0], network.dims[-1], sigma_min(network))
    assert max(delta_star(network), 0.0) <= ours * SLACK + round_off(network)
    assert ours <= network.lambda_min_T * SLACK + round_off(network)


def test_the_bound_with_the_product_is_exact_for_balanced_weights():
    network = fs.balanced((3, 6, 5, 3), seed=1)
    nu = sigma_min(network)
    ours = product_bound(*spectra(network), 3, 3, nu)
    assert ours == pytest.approx(3 * nu ** (4 / 3), rel=1e-7)
    assert ours == pytest.approx(network.lambda_min_T, rel=1e-7)
    assert delta_star(network) == pytest.approx(0.0, abs=1e-12)


def test_the_constants_and_the_margin_of_a_weighted_loss():
    """Weights 2 to 8: gamma = 4, K = 8, mu = 2, nu = sigma_min(Y) - sqrt(2 L(0) / mu); none if one is 0."""
    network, mask = fs.balanced((2, 6, 5, 2), seed=2), np.array([[2.0, 4.0], [6.0, 8.0]])
    distance = 0.1 * sigma_min(network)
    loss = fs.MaskedSquaredLoss(network.product + np.array([[0.0, 0.0], [0.0, distance]]), mask)
    assert loss.constants == fs.LossConstants(gamma=4.0, dominance="quadratic", mu=2.0, K=8.0)
    nu = np.linalg.svd(loss.minimiser, compute_uv=False)[-1] - 2 * distance
    certificate = fs.certify(fs.Problem(loss, network))["corollary-2"]
    assert certificate.rate == pytest.approx(4 * 3 * nu ** (4 / 3), rel=1e-9)
    unseen = fs.MaskedSquaredLoss(loss.Y, np.where(mask == 6, 0.0, mask))
    assert unseen.constants == fs.LossConstants(gamma=4.0, dominance="quadratic", mu=0.0, K=8.0)
    assert fs.certify(fs.Problem(unseen, network))["corollary-2"].rate == 0


def test_the_bound_with_the_product_is_strictly_above_theorem_2_where_it_says_so(rng):
    """Near a target, with nearly balanced weights, the margin beats the imbalance."""
    network = fs.LinearNetwork(tuple(W + 1e-3 for W in fs.balanced((2, 5, 6, 2), seed=3).weights))
    problem = fs.Problem(fs.SquaredLoss(network.product + 1e-3), network)
    certificates = fs.certify(problem)
    assert certificates["theorem-2-product"].alpha > 10 * certificates["theorem-2"].alpha
    assert certificates.best.name == "combined"
    assert certificates.best.alpha >= certificates["theorem-2-product"].alpha


def near_target(rng, network, distance=0.5):
    """A target so near that the margin is positive."""
    step = rng.standard_normal(network.product.shape)
    return fs.SquaredLoss(network.product + distance * sigma_min(network) * step / np.linalg.norm(step))


def assert_below_every_bound(problem, t1):
    """At the ends of all steps until the loss has fallen by 1e-12."""
    flow = fs.simulate(problem, fs.Scipy("DOP853", 1e-10, 1e-13), t1=t1, stop_loss=1e-12, save_points=2)
    certificates = [c for c in fs.certify(problem) if c.applies and c.rate is not None]
    for certificate in certificates:
        bound = certificate.bound(flow.step_time)
        assert (flow.steps.excess <= bound * (1 + 1e-7) + 1e-12 * flow.excess[0]).all(), certificate
    return [c.name for c in certificates]


@pytest.mark.parametrize("seed", range(8))
def test_the_loss_stays_below_the_bounds_with_a_margin(seed):
    rng = np.random.default_rng(seed)
    for make, name in (
        (lambda: gaussian(rng, random_dims(rng, 2)), "theorem-1-A2"),
        (lambda: gaussian(rng, random_dims(rng, 3)), "theorem-2-product"),
        (lambda: fs.homogeneous((2,) * 5, imbalance=rng.uniform(-1, 1, 3), seed=seed), "corollary-2"),
    ):
        network = make()
        assert name in assert_below_every_bound(fs.Problem(near_target(rng, network), network), 5.0)


@pytest.mark.parametrize(("dims", "name"), [((2, 5, 1), "theorem-1-A2"), ((2, 6, 5, 2), "corollary-2")])
def test_the_margin_of_a_loss_of_condition_number_9(dims, name):
    """nu = sigma_min(W*) - sqrt(2 (L(0) - f*) / mu), here 3 times the step in the steep direction of X = diag(2, 6);
    balanced weights have alpha = L nu^(2 - 2/L), with two layers and m = 1 nu alone."""
    network = fs.balanced(dims, seed=2)
    step = np.zeros(network.product.shape)
    step[1, 0] = 0.1 * sigma_min(network)
    X, target = np.diag([2.0, 6.0]), network.product + step
    nu = np.linalg.svd(target, compute_uv=False)[-1] - 3 * step[1, 0]
    alpha = nu if len(dims) == 3 else 3 * nu ** (4 / 3)
    certificate = fs.certify(fs.Problem(fs.LeastSquares(X, X @ target), network))[name]
    assert certificate.alpha == pytest.approx(alpha, rel=1e-9)
    assert certificate.rate == pytest.approx(8 * alpha, rel=1e-9)  # gamma = 2 mu = 8


@pytest.mark.parametrize("excess", [0.01, 1.0, 40.0])
def test_the_laws_solve_their_equations(excess):
    """dE/dt = -rate E and dE/dt = -rate E^2, from E(0) = excess."""
    t = np.array([0.0, 0.3, 2.0, 50.0])
    exponential, hyperbolic = (
        fs.Certificate("mine", True, alpha=2.0, rate=0.7, law=law, excess=excess).bound(t)
        for law in ("exponential", "hyperbolic")
    )
    assert exponential == pytest.approx(excess * np.exp(-0.7 * t), rel=1e-14)
    assert 1 / hyperbolic == pytest.approx(1 / excess + 0.7 * t, rel=1e-14)


@pytest.mark.parametrize("depth", [2, 3, 5])
def test_theorem_4(depth, rng):
    X = rng.standard_normal((30, 3))
    y = np.sign(X @ rng.standard_normal(3))
    network = random_unimodal(rng, depth, (3, *[3] * (depth - 1), 1))
    problem = fs.Problem(fs.ExponentialLoss(X, y), network)
    certificate = fs.certify(problem)["theorem-4"]
    assert certificate.law == "hyperbolic"
    assert certificate.rate == pytest.approx(certificate.alpha * problem.loss.margin**2)
    assert assert_below_every_bound(problem, 20.0) == ["theorem-4"]
    assert fs.certify(problem).best.name == "theorem-4"


def test_a_masked_loss_obeys_the_bounds_that_need_A1_only(rng):
    network = fs.fan_out((3, 30, 40, 2), seed=5)
    problem = fs.Problem(fs.MaskedSquaredLoss(rng.standard_normal((3, 2)), [[1, 0], [1, 1], [0, 1]]), network)
    assert assert_below_every_bound(problem, 0.3) == ["theorem-2", "homogeneous-sharp", "ball", "path", "combined"]
    assert "A2" in fs.certify(problem)["theorem-2-product"].reason


def test_losses_without_dominance_are_refused(rng):
    X = rng.standard_normal((10, 3))
    certificates = fs.certify(fs.Problem(fs.LogisticLoss(X, np.sign(X[:, 0])), fs.fan_in((3, 5, 6, 1), seed=0)))
    assert not any(c.applies and c.scope == "trajectory" for c in certificates)
    assert certificates.best is None
    assert "A1'" in certificates["theorem-4"].reason


def test_cheap_certificates_are_lower_bounds_from_a_few_products():
    for scheme, dims in (("fan_out", (1, 300, 500, 1)), ("fan_in", (5, 200, 300, 2)), ("xavier", (2, 40, 30, 3))):
        network = fs.initialize(scheme, dims, seed=1)
        cheap, full = (fs.certify(network, cheap=cheap)["theorem-2"].alpha for cheap in (True, False))
        assert 0 < cheap <= full * SLACK
        assert cheap > 0.1 * full
    assert not fs.certify(network, cheap=True)["theorem-3-unimodal"].applies


def test_drawn_networks_and_operators_are_certified(rng):
    drawn = fs.sample_compressed("fan_out", (1, 10**9, 10**9, 1), seed=0, steps=8)
    certificate = fs.certify(fs.Problem(fs.SquaredLoss([[1.0]]), drawn))["theorem-2"]
    assert 0 < certificate.rate <= 2 * drawn.lambda_min_T
    from scipy.sparse import csr_array

    full = fs.fan_out((1, 60, 80, 1), seed=0)
    sparse = fs.LinearNetwork((full.weights[0], csr_array(full.weights[1]), full.weights[2]))
    assert fs.certify(sparse)["theorem-2"].alpha <= fs.certify(full)["theorem-2"].alpha * SLACK


def test_two_layers_drawn_in_compressed_form_have_all_that_theorem_1_needs():
    full = fs.fan_in((2, 50, 3), seed=4)
    for name in ("lemma-3", "theorem-1-A1"):
        expected = fs.certify(full)[name].alpha
        assert fs.certify(fs.compress(full))[name].alpha == pytest.approx(expected, rel=1e-9)


def test_the_table_says_what_each_theorem_says():
    """Scalar weights 3 and 1: |D_1| = 8 of lambda_min(T) = 10; Lemma 3 holds at this instant and has no rate."""
    problem = fs.Problem(fs.SquaredLoss([[2.0]]), fs.LinearNetwork(([[3.0]], [[1.0]])))
    rows = {row[0]: row[1:6] for row in fs.certify(problem).shown().rows}
    assert rows["theorem-1-A1"] == ("yes", "8", "16", "exponential", "trajectory")
    assert rows["lemma-3"] == ("yes", "10", "-", "-", "instant")
    assert rows["theorem-2"] == ("no", "-", "-", "-", "-")


def test_reasons_carry_numbers():
    certificates = fs.certify(fs.fan_out((3, 5, 6, 3), seed=0))
    assert "eigenvalues of D_1 from" in certificates["theorem-3-unimodal"].reason
    assert "no multiple of I" in certificates["theorem-3-homogeneous"].reason
    assert "has the eigenvalue" in certificates["yun-2020"].reason


def test_tolerance_decides_what_counts_as_balanced():
    network = fs.balanced((2, 4, 4, 2), seed=0)
    nudged = fs.LinearNetwork(tuple(W * (1 + 1e-7) ** k for k, W in enumerate(network.weights)))
    assert not fs.certify(nudged)["arora-2018"].applies
    assert fs.certify(nudged, tolerance=1e-5)["arora-2018"].applies


@pytest.mark.parametrize("method", [fs.Scipy("DOP853", 1e-10, 1e-13), fs.Diffrax("Dopri8", 1e-10, 1e-13)])
def test_a_posteriori_bounds_the_loss_and_beats_the_a_priori_ones(method, rng):
    network = fs.fan_out((3, 60, 90, 2), seed=2)
    problem = fs.Problem(fs.SquaredLoss(rng.standard_normal((3, 2))), network)
    flow = fs.simulate(problem, method, t1=0.2)
    rate = fs.a_posteriori(flow)
    assert (flow.excess <= rate.bound * (1 + 1e-7) + 1e-12 * flow.excess[0]).all()
    assert rate.error[-1] <= 1e-6 * rate.integral[-1]
    assert rate.alpha >= rate.least >= fs.certify(problem).best.alpha
    assert rate.lambda_min_T[0] == pytest.approx(network.lambda_min_T, rel=1e-9)
    assert rate.lambda_min_T[-1] == pytest.approx(flow.core_at(flow.time[-1]).lambda_min_T, rel=1e-9)
    assert "a_posteriori_bound" in rate.dataset


def test_a_posteriori_is_exact_for_scalar_weights():
    """One mode: d log(L) / dt = -gamma lambda_min(T), so that the bound is the loss."""
    network = fs.LinearNetwork(([[0.3]], [[0.5]], [[-0.7]]))
    flow = fs.simulate(fs.Problem(fs.SquaredLoss([[1.0]]), network), fs.Scipy("DOP853", 1e-12, 1e-14), t1=3.0)
    rate = fs.a_posteriori(flow)
    assert rate.bound == pytest.approx(flow.excess, rel=1e-7)


@pytest.mark.parametrize("start", [-1.5, 0.2, 3.0])
def test_a_posteriori_is_exact_for_scalar_weights_and_one_point_too(start):
    """f = exp(-W) has gradient -f, so that A1' holds with gamma = 1 and equality: dL/dt = -lambda_min(T) L^2."""
    network = fs.LinearNetwork(([[1.0]], [[start]]))
    problem = fs.Problem(fs.ExponentialLoss([[1.0]], [1.0]), network)
    flow = fs.simulate(problem, fs.Scipy("DOP853", 1e-12, 1e-14), t1=3.0)
    assert flow.excess[0] == pytest.approx(np.exp(-start))
    assert fs.a_posteriori(flow).bound == pytest.approx(flow.excess, rel=1e-7)


def test_a_posteriori_hyperbolic_law_and_refusals(rng):
    X = rng.standard_normal((12, 2))
    labels = np.sign(X @ [1.0, 2.0])
    network = fs.fan_in((2, 5, 1), seed=3)
    flow = fs.simulate(fs.Problem(fs.ExponentialLoss(X, labels), network), t1=2.0)
    rate = fs.a_posteriori(flow)
    assert rate.law == "hyperbolic"
    assert (flow.excess <= rate.bound * (1 + 1e-7)).all()
    assert fs.a_posteriori(fs.simulate(fs.Problem(fs.LogisticLoss(X, labels), network), t1=1.0)).bound is None


def test_certificates_by_place_and_by_name():
    certificates = fs.certify(fs.Problem(fs.SquaredLoss(np.ones((2, 2))), fs.fan_in((2, 6, 2), seed=0)))
    for place, entry in enumerate(certificates):
        assert certificates[place] is entry
        assert certificates[entry.name] is entry
    assert "<= lambda_min(T), for all t >= 0" in str(certificates.best)


def test_an_alpha_that_overflows_certifies_nothing():
    network = fs.fan_out((1, 4, 1), seed=0)
    for scope, made in (
        ("instant", at_this_instant("theorem-2", np.inf)),
        ("trajectory", along_trajectory("theorem-2", network, None, np.inf)),
    ):
        assert (made.applies, made.alpha, made.scope, made.reason) == (False, None, scope, OVERFLOW)


@pytest.mark.parametrize("dims", [(2, 5, 3), (3, 7, 6, 2), (2, 2, 2, 2, 2), (1, 4, 5, 3, 1)])
@pytest.mark.parametrize("factor", [1e-3, 40.0])
def test_certificates_scale_with_the_weights(dims, factor):
    """Weights times c and a target times c^L: alpha and lambda_min(T) times c^(2 L - 2)."""
    rng, depth = np.random.default_rng(5), len(dims) - 1
    for weights in (gaussian(rng, dims).weights, fs.balanced(dims, seed=1).weights):
        target = np.linalg.multi_dot(weights) + 0.05 * rng.standard_normal((dims[0], dims[-1]))
        plain, scaled = (
            fs.certify(fs.Problem(fs.SquaredLoss(target * c**depth), fs.LinearNetwork(tuple(c * W for W in weights))))
            for c in (1.0, factor)
        )
        size = plain.lambda_min_T
        for mine, theirs in zip(plain, scaled, strict=True):
            assert mine.applies == theirs.applies, mine.name
            if mine.alpha is not None:
                told = theirs.alpha / factor ** (2 * depth - 2)
                blur = {"path": 2e-3, "combined": 2e-3, "ball": 1e-6}.get(mine.name, 1e-9)  # rounding decides on cuts
                assert told == pytest.approx(mine.alpha, rel=blur, abs=blur * size), mine.name
