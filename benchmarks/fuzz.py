"""The random calls and spoiled files of tests/fuzz_cases.py with fresh seeds, for as long as asked.

    python benchmarks/fuzz.py --minutes 10

Prints how many cases ran, how they ended, and each distinct failure with its smallest example. Exit code 1 if any. A
case that does not end is a failure; one that not even a signal ends prints where it is and takes the run with it.
"""

from __future__ import annotations

import argparse
import collections
import faulthandler
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, seed, settings

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from fuzz_cases import READERS, call, calls, read_spoiled, samples, spoiled

ROUND = settings(deadline=None, database=None, max_examples=100, suppress_health_check=list(HealthCheck))
SLOW = 5.0
"""A case of more seconds than this is reported."""
NEVER = 20
"""After so many seconds a case is taken to have no end."""


class Endless(BaseException):
    """Not an Exception: no handler within the command takes it for its own."""


def in_time(run: Callable[[Any], object], case: Any) -> object:
    """run(case). Raises AssertionError after NEVER seconds."""

    def stop(*_: object) -> None:
        raise Endless

    signal.signal(signal.SIGALRM, stop)
    signal.alarm(NEVER)
    faulthandler.dump_traceback_later(6 * NEVER, exit=True)
    try:
        return run(case)
    except Endless:
        raise AssertionError(f"no end in {NEVER} s") from None
    finally:
        signal.alarm(0)


def targets() -> dict[str, tuple[Any, Callable[[Any], object]]]:
    """name -> (strategy, what to do with a case); calls twice as often as any kind of file."""
    readable = [kind for kind in READERS if kind in samples()]
    found: dict[str, tuple[Any, Callable[[Any], object]]] = {
        kind: (spoiled(kind), lambda content, kind=kind: read_spoiled(kind, content)) for kind in readable
    }
    return {**found, "calls": (calls(), call), "calls again": (calls(), call)}


def one_round(strategy: Any, run: Callable[[Any], object], ended: collections.Counter[str]) -> None:
    """A hundred cases from a fresh seed. Raises what a case raises, shrunk."""

    @seed(random.SystemRandom().getrandbits(64))
    @settings(ROUND)
    @given(case=strategy)
    def check(case: Any) -> None:
        begun = time.perf_counter()
        ended[str(in_time(run, case))] += 1
        taken = time.perf_counter() - begun
        assert taken < SLOW, f"{taken:.1f} s"

    check()


def main() -> int:
    """Run, and tell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0)
    deadline = time.monotonic() + 60 * parser.parse_args().minutes
    faulthandler.enable()
    ended: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    failures: dict[str, str] = {}
    while time.monotonic() < deadline:
        for name, (strategy, run) in targets().items():
            if time.monotonic() >= deadline:
                break
            try:
                one_round(strategy, run, ended[name.split()[0]])
            except Exception as error:
                told = f"{name}: {type(error).__name__}: {str(error)[:300]}"
                if told not in failures:
                    failures[told] = "\n".join(getattr(error, "__notes__", []))[:3000]
                    print(f"FOUND {told}\n{failures[told]}\n", flush=True)
    for name, counts in sorted(ended.items()):
        print(f"{name:14} {counts.total():7} cases: " + ", ".join(f"{k}: {n}" for k, n in counts.most_common()))
    print(f"{sum(c.total() for c in ended.values())} cases, {len(failures)} failures")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
