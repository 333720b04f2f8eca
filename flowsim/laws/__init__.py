"""diagnose: which laws of gradient flow (or of gradient descent) a trajectory obeys, each to the level to expect."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal

from flowsim.checks import as_number
from flowsim.laws import descent, laws, recorded
from flowsim.laws.levels import Levels
from flowsim.laws.result import STOPPED, Diagnosis, Law
from flowsim.losses import UnknownLoss
from flowsim.progress import Count, counting
from flowsim.runs import words
from flowsim.runs.stopping import largest_order
from flowsim.runs.tight import Deadline, WallLimit
from flowsim.runs.trajectory import Trajectory, as_trajectory
from flowsim.threads import threads_for

__all__ = ["Diagnosis", "Law", "diagnose"]

Title = tuple[str, str]


def diagnose(
    trajectory: Trajectory, *, progress: Count | bool | None = None, wall_limit: float | None = None
) -> Diagnosis:
    """Check a trajectory, simulated or loaded, against every law that it should obey.

    record: the saved losses are those of the saved weights. flow: between checkpoints the weights move as a far tighter
    solve of dW_l/dt = -dL/dW_l from the first of them does (recurrence: as gradient descent does). imbalance D_l:
    D_l(t) = D_l(0); for gradient descent the drift law D_l(k+1) - D_l(k) = step_size^2 (G_l^T G_l - G_{l+1} G_{l+1}^T).
    energy: L(0) - L(t) = integral of ||grad L||_F^2. monotone loss. rates: the loss stays below every certificate that
    applies (of gradient descent: its own; with momentum there are none, nor a law of D_l, nor does the loss fall in
    every step). compression: the estimated error stays within what the compression promised.
    Where the tolerance allows errors as large as what a law compares, the law is not judged unless it is broken all the
    same.

    Of weights that were recorded elsewhere the residuals of the flow's laws are told, and none is judged.

    The level to expect is MARGIN times what an undisturbed run of the same method at the same tolerance shows on the
    same problem, but (unless its steps are fixed) never more than LOCAL_ERRORS tolerances a step; for methods that
    promise the imbalance to round-off, round-off.

    Work: the run is repeated once, and solved again at 1/100 of its tolerance or less, from checkpoint to checkpoint,
    by a method fit for the problem (`runs.tight.Tight`); twice where it is apart from its repeat, as a run that was
    tampered with is. Measured, right-hand sides (a product with the Jacobian counts as two): at most
    8 times those of the run and 40 for each checkpoint, 1.3 to 8.7 times in all on runs of DOP853, Radau, RKC and
    Gauss-Legendre with 101 checkpoints for condition numbers of the data from 1 to 1000. Runs that jax has compiled
    take so much less time for each right-hand side that the diagnosis may take some tens of times their seconds.

    progress(done, of how many) is called as intervals between checkpoints are done; True shows a bar. wall_limit:
    seconds, looked at after every step. What was judged until then, or until Ctrl-C, is kept: the other laws are not
    checked, and Diagnosis.status is "wall_limit" (exit code 3) or "interrupted" (130).

    Raises InputError for something that is no trajectory, or a wall_limit out of range.

    >>> import numpy as np
    >>> import flowsim as fs
    >>> problem = fs.Problem(fs.SquaredLoss(np.ones((2, 2))), fs.fan_in((2, 4, 2), seed=0))
    >>> flow = fs.simulate(problem, t1=1.0, save_points=11)
    >>> law = fs.diagnose(flow)["imbalance D_1"]
    >>> law.equation, law.holds, law.residual < law.expected
    ('D_1(t) = D_1(0)', True, True)
    """
    as_trajectory(trajectory)
    deadline = Deadline(None if wall_limit is None else as_number(wall_limit, "wall_limit", above=0.0))
    order = largest_order(trajectory.simulated, trajectory.method)
    with counting(progress, "interval") as tell, threads_for(order):
        return _judge(trajectory, _checks(trajectory, deadline, tell))


class _Check:
    """Laws that are judged together: their names and equations, and what judges them."""

    def __init__(self, titles: Sequence[Title], judge: Callable[[], Law | list[Law]]) -> None:
        self.titles, self.judge = titles, judge

    def judged(self) -> list[Law]:
        found = self.judge()
        return found if isinstance(found, list) else [found]

    def unjudged(self, reason: str) -> list[Law]:
        return [Law(*title, None, None, None, reason=reason) for title in self.titles]


def _checks(trajectory: Trajectory, deadline: Deadline, tell: Count | None) -> list[_Check]:
    """All that is to be judged of the trajectory, as it is shown."""
    compression = _Check([laws.COMPRESSION], lambda: laws.compression(trajectory))
    if isinstance(trajectory.problem.loss, UnknownLoss):
        reason = "the file does not hold the user's own loss; pass it to load(path, loss=...)"
        return [_Check([], lambda: Law(*laws.flow(trajectory), None, None, None, reason=reason)), compression]
    if trajectory.method.kind.recorded:
        return [_Check([], lambda: recorded.laws_of(trajectory))]
    case = Levels(trajectory, deadline, tell)
    record, proved = _Check([laws.RECORD], lambda: laws.record(case)), _Check([laws.RATES], lambda: laws.rates(case))
    if case.descends:
        recurrence = _Check([descent.RECURRENCE], lambda: descent.recurrence(case))
        if trajectory.method.carries:
            return [record, recurrence, compression]
        drift = _Check(descent.drifts(trajectory), lambda: descent.drift_laws(case))
        if trajectory.method.stochastic:
            return [record, recurrence, drift, compression]
        falls = laws.MONOTONE if trajectory.motion.is_plain else laws.MONOTONE_ENERGY
        monotone = _Check([falls], lambda: laws.monotone(case))
        return [record, recurrence, drift, monotone, proved, compression]
    found = [record, _Check([laws.flow(trajectory)], lambda: laws.motion(case))]
    if trajectory.dynamics.keeps_imbalance:
        found.append(_Check(laws.conserved(trajectory), lambda: laws.imbalances(case)))
    if titles := laws.told(case):
        found.append(_Check(titles, lambda: laws.of_the_dynamics(case)))
    for energy, falls in laws.energies(trajectory):
        found.append(_Check([energy], lambda: laws.energy(case)))
        found.append(_Check([falls], lambda: laws.monotone(case)))
    return [*found, proved, compression]


def _judge(trajectory: Trajectory, checks: list[_Check]) -> Diagnosis:
    """The laws in order; judged are first those that cost least."""
    status: Literal["completed", "interrupted", "wall_limit"] = "completed"
    found: dict[int, list[Law]] = {}
    for place in sorted(range(len(checks)), key=lambda k: _cost(checks[k], laws.flow(trajectory)[0])):
        if status == "completed":
            try:
                found[place] = checks[place].judged()
                continue
            except KeyboardInterrupt:
                status = "interrupted"
            except WallLimit:
                status = "wall_limit"
        found[place] = checks[place].unjudged(STOPPED[status])
    diagnosis = Diagnosis(tuple(law for place in range(len(checks)) for law in found[place]), status)
    return diagnosis if diagnosis.broken else replace(diagnosis, tail=words.tail(trajectory))


def _cost(check: _Check, flow_name: str) -> int:
    """The order in which laws are judged: what needs no solve, one repeated run, the flow between checkpoints."""
    names = {name for name, _ in check.titles}
    if names <= {laws.RECORD[0], laws.COMPRESSION[0]}:
        return 0
    return 2 if names & {flow_name, descent.RECURRENCE[0]} else 1
