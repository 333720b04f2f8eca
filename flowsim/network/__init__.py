"""Linear networks: W = scale W_1 ... W_L, its gradients, the operator T, and the imbalance matrices.

Notation of Min, Vidal, Mallada (ICML 2023): W_l is h_{l-1} x h_l, h_0 = n, h_L = m;
A_l = W_1 ... W_{l-1}, B_l = W_{l+1} ... W_L, A_1 = I_n, B_L = I_m.
"""

from flowsim.network.functions import (
    backpropagate,
    changed,
    flatten,
    flipped,
    gradient_factors,
    hessian_product,
    imbalance,
    imbalance_change,
    joint_norm,
    probed_change,
    product,
    swept,
    unflatten,
)
from flowsim.network.linear_network import DENSE_LIMIT, LinearNetwork
from flowsim.network.protocol import Network

__all__ = [
    "DENSE_LIMIT",
    "LinearNetwork",
    "Network",
    "backpropagate",
    "changed",
    "flatten",
    "flipped",
    "gradient_factors",
    "hessian_product",
    "imbalance",
    "imbalance_change",
    "joint_norm",
    "probed_change",
    "product",
    "swept",
    "unflatten",
]
