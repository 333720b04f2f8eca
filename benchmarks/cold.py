"""One run of flowsim from a cold process, on a task that benchmarks/solvers.py wrote.

python benchmarks/cold.py METHOD TASK.npz RTOL
"""

import sys

import numpy as np

import flowsim as fs

name, path, rtol = sys.argv[1:]
with np.load(path) as arrays:
    task = dict(arrays)
weights = [task[f"W{k}"] for k in range(1, sum(key.startswith("W") for key in task) + 1)]
if "G" in task:
    values, vectors = np.linalg.eigh(task["G"])
    values, vectors = values[values > 1e-12 * values[-1]], vectors[:, values > 1e-12 * values[-1]]
    loss: object = fs.LeastSquares(
        np.sqrt(values)[:, None] * vectors.T, (vectors.T @ task["H"]) / np.sqrt(values)[:, None]
    )
else:
    loss = fs.ExponentialLoss(task["X"], task["y"])
times, method = task["times"], fs.method_named(name, rtol=float(rtol), atol=float(rtol) / 100)
flow = fs.simulate(fs.Problem(loss, fs.LinearNetwork(tuple(weights))), method, t1=times[-1], save_points=times)
for t in times:
    flow.weights_at(t)
