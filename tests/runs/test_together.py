"""What is told of members in lanes, beside NumPy's equations of one network."""

from itertools import pairwise

import jax.numpy as jnp
import numpy as np
import pytest

from flowsim.losses import SquaredLoss
from flowsim.methods.jax_support import as_argument, float64
from flowsim.network import imbalance_change
from flowsim.runs.together import Equations, Together
from flowsim.runs.walking import _put


@pytest.mark.parametrize("halo", [(2, 7, 8, 6, 1), (2, 4, 5, 4, 1)])
def test_the_drift_in_lanes_is_that_of_the_whole_matrices(rng, halo):
    """Where only the corners move, and where all does."""
    dims, lanes = (2, 4, 5, 4, 1), 3
    start = [rng.standard_normal((*shape, lanes)) for shape in pairwise(halo)]
    changes = [rng.standard_normal((*shape, lanes)) for shape in pairwise(dims)]
    with float64():
        together = Together(as_argument(SquaredLoss(np.ones((2, 1)))), np.ones(lanes), start, None)
        equations = Equations(together, dims, halo)
        moved = jnp.concatenate([C.reshape(-1, lanes) for C in changes])
        drift = np.asarray(equations.drift(equations.initial + moved))
    for k in range(lanes):
        whole = [np.zeros(shape) for shape in pairwise(halo)]
        for W, C in zip(whole, changes, strict=True):
            W[: C.shape[0], : C.shape[1]] = C[..., k]
        assert drift[:, k] == pytest.approx(imbalance_change([W[..., k] for W in start], whole), rel=1e-12)


def test_a_row_of_its_own_is_put_for_each_lane_and_none_beyond_the_last():
    found = _put(jnp.zeros((3, 4)), jnp.array([0, 2, 3, 1]), jnp.arange(1.0, 5.0))
    assert found.tolist() == [[1, 0, 0, 0], [0, 0, 0, 4], [0, 2, 0, 0]]
