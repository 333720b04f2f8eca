"""A compressed network from a file, in bases that can grow again."""

from __future__ import annotations

import numpy as np

from flowsim.compression.bases import KrylovBases
from flowsim.compression.core import CompressedNetwork
from flowsim.compression.sampling import redrawn
from flowsim.errors import InputError
from flowsim.network import LinearNetwork, Network, flatten, unflatten

SAME = 1e-10
"""The core that is found again must be that of the file, as a part of its norm: round-off of another machine."""


def regrown(network: CompressedNetwork, whole: Network, states: np.ndarray) -> tuple[CompressedNetwork, np.ndarray]:
    """(the network in bases that can grow, states of its core in these): the given ones where they can.

    `whole` is the problem's network. Its weights give the Krylov bases again, up to rotations within the levels; a
    network drawn in compressed form is drawn again, with the same digits.
    Raises InputError where neither is possible, or does not give the same core.
    """
    if network.bases.can_grow:
        return network, states
    if isinstance(whole, LinearNetwork):
        found = CompressedNetwork(KrylovBases(whole.weights), network.steps, network.scale, network.origin)
    else:
        found = redrawn(network.origin, network.steps)
    if found.core.dims == network.core.dims and found.scale == network.scale:
        start = flatten(network.core.weights)
        missed = np.linalg.norm(_rotated(network, found, start) - flatten(found.core.weights))
        if np.isfinite(missed) and missed <= SAME * np.linalg.norm(start):
            return found, _rotated(network, found, states)
    raise InputError("The compressed network that is found from its weights or its seed is another than the file's.")


def _rotated(old: CompressedNetwork, new: CompressedNetwork, states: np.ndarray) -> np.ndarray:
    """States in the coordinates of the new bases: What_l -> Q_{l-1} What_l Q_l^T, Q_l = P_l'^T P_l."""
    if old.bases.vectors is None or new.bases.vectors is None:
        return states
    sizes, dims = new.core.dims, new.dims
    pairs = zip(new.bases.vectors, old.bases.vectors, sizes[1:-1], strict=True)
    inner = [P[:, :k].T @ R[:, :k] for P, R, k in pairs]
    turns = [np.eye(dims[0]), *inner, np.eye(dims[-1])]
    weights = unflatten(states, sizes)
    turned = [Q @ W @ R.T for Q, W, R in zip(turns, weights, turns[1:], strict=False)]
    return np.concatenate([W.reshape(*W.shape[:-2], -1) for W in turned], axis=-1)
