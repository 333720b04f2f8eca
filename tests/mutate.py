"""How many small mistakes in the numerical core the tests notice.

    pip install '.[test]' pytest-cov
    python tests/mutate.py --count 100 --seed 0 --out /tmp/mutants

Mutates that many lines of flowsim/rates, reduction, integrators, losses and sweeps, chosen at random with the seed, one
at a time and in copies of the tree, never in the tree itself: a comparison, an arithmetic or logical operator, a
number, a sign, min and max, an index, a condition, what is returned, or a statement that is left out. Docstrings, type
hints, texts and what stands in a raise are never changed.

First all tests run once under coverage, which tells which of them execute a line (for what runs at import: any line of
its file) and how long each takes; then, for each mutant, its tests run from the quickest on until one fails. Those that
exceed --budget seconds together are left out, the slowest: --budget inf runs them all. What stands in --out already is
not done again: after Ctrl-C or kill -9 the same command goes on. With --count 0 it prints the report alone.

A mutant is killed (a test failed), timed out (it ran on for far too long: counts as killed), or it survived.
tests/equivalent_mutants.toml lists, with reasons, survivors that change no number: they do not count.
"""

from __future__ import annotations

import argparse
import ast
import copy
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tomllib
import xml.etree.ElementTree as ElementTree
from collections import Counter, defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any

ROOT = Path(__file__).parent.parent
ROOMS = ("rates", "reduction", "integrators", "losses", "sweeps")
EQUIVALENT = Path(__file__).parent / "equivalent_mutants.toml"
LEFT_OUT = shutil.ignore_patterns(".git", "__pycache__", ".hypothesis", ".*_cache", "build", "dist")
GRACE = 60.0
"""Seconds that a mutant's tests may take beyond twice what they take without it."""

# ----------------------------------------------------------------------------------------------------------- mutations

COMPARISONS = {
    ast.Lt: (ast.LtE, ast.GtE),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
}
ARITHMETIC = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Pow: ast.Mult,
}
OPPOSITE = {"min": "max", "max": "min", "minimum": "maximum", "maximum": "minimum", "any": "all", "all": "any"}
NEUTRAL = {"float": 0.0, "int": 0, "bool": False}
REMOVABLE = (ast.AugAssign, ast.Raise, ast.Continue, ast.Break)
UNTOUCHED = (ast.JoinedStr, ast.Import, ast.ImportFrom)
CHECKS = {"strict", "check_finite"}
"""Arguments that only guard against mistakes of flowsim itself."""


@dataclass(frozen=True)
class Mutant:
    """`before` in lines line .. last of a file becomes `after`; start and end are offsets in its bytes, `text` is the
    first of the lines."""

    file: str
    line: int
    last: int
    text: str
    start: int
    end: int
    before: str
    after: str
    at_import: bool


def expressions(node: ast.expr) -> Iterator[ast.expr]:
    """What an expression may be mistaken for."""
    if isinstance(node, ast.Compare):
        for k, operator in enumerate(node.ops):
            for other in COMPARISONS[type(operator)]:
                changed = copy.deepcopy(node)
                changed.ops[k] = other()
                yield changed
    elif isinstance(node, ast.BinOp) and type(node.op) in ARITHMETIC:
        yield ast.BinOp(node.left, ARITHMETIC[type(node.op)](), node.right)
    elif isinstance(node, ast.BoolOp):
        yield ast.BoolOp(ast.Or() if isinstance(node.op, ast.And) else ast.And(), node.values)
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.USub, ast.Not)):
        yield node.operand
    elif isinstance(node, ast.IfExp):
        yield ast.IfExp(ast.UnaryOp(ast.Not(), node.test), node.body, node.orelse)
    elif isinstance(node, ast.Constant) and isinstance(node.value, bool):
        yield ast.Constant(not node.value)
    elif isinstance(node, ast.Constant) and isinstance(node.value, (int, float)):
        for value in {2 * node.value, node.value + 1, 0 * node.value} - {node.value}:
            yield ast.Constant(value)
    elif isinstance(node, ast.Call) and isinstance(node.func, (ast.Name, ast.Attribute)):
        changed = copy.deepcopy(node)
        name = "id" if isinstance(node.func, ast.Name) else "attr"
        if getattr(node.func, name) in OPPOSITE:
            setattr(changed.func, name, OPPOSITE[getattr(node.func, name)])
            yield changed
    elif isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Name) and isinstance(node.ctx, ast.Load):
        yield ast.Subscript(node.value, ast.BinOp(node.slice, ast.Sub(), ast.Constant(1)), node.ctx)


def statements(node: ast.stmt, returns: str) -> Iterator[ast.stmt]:
    """What a statement may be mistaken for."""
    call = isinstance(node, ast.Expr) and not isinstance(node.value, (ast.Constant, ast.Yield))
    kept = isinstance(node, ast.Assign) and not isinstance(node.targets[0], (ast.Name, ast.Tuple))
    if call or kept or isinstance(node, REMOVABLE) or (isinstance(node, ast.If) and not node.orelse):
        yield ast.Pass()
    if isinstance(node, ast.Return) and node.value is not None:
        yield ast.Return(ast.Constant(NEUTRAL.get(returns)))


class Finder(ast.NodeVisitor):
    """Collects the mutants of a file."""

    def __init__(self, file: str, source: str) -> None:
        self.file, self.source = file, source.encode()
        self.starts = [0]
        for text in self.source.splitlines(keepends=True):
            self.starts.append(self.starts[-1] + len(text))
        self.found: list[Mutant] = []
        self.functions: list[str] = []
        self.visit(ast.parse(source))

    def visit(self, node: ast.AST) -> None:
        if isinstance(node, UNTOUCHED) or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)):
            return
        if isinstance(node, ast.keyword) and node.arg in CHECKS:
            return
        if isinstance(node, ast.expr):
            for changed in expressions(node):
                self.add(node, f"({ast.unparse(ast.fix_missing_locations(changed))})")
        elif isinstance(node, ast.stmt):
            for other in statements(node, self.functions[-1] if self.functions else ""):
                self.add(node, ast.unparse(ast.fix_missing_locations(other)))
        if isinstance(node, (ast.FunctionDef, ast.Lambda)):
            self.visit_function(node)
        elif isinstance(node, ast.ClassDef):
            self.visit_all(node.body)
        elif isinstance(node, ast.AnnAssign):
            self.visit_all([node.value])
        elif isinstance(node, ast.If) and ast.unparse(node.test) != "TYPE_CHECKING":
            self.add(node.test, f"(not ({ast.unparse(node.test)}))")
            self.generic_visit(node)
        elif not isinstance(node, (ast.If, ast.Raise)) and not self.is_list_of_names(node):
            self.generic_visit(node)

    def visit_function(self, node: ast.FunctionDef | ast.Lambda) -> None:
        self.visit_all([*node.args.defaults, *node.args.kw_defaults])
        is_function = isinstance(node, ast.FunctionDef)
        self.functions.append(ast.unparse(node.returns) if is_function and node.returns else "")
        self.visit_all(node.body if isinstance(node.body, list) else [node.body])
        self.functions.pop()

    def visit_all(self, nodes: list[Any]) -> None:
        for node in filter(None, nodes):
            self.visit(node)

    @staticmethod
    def is_list_of_names(node: ast.AST) -> bool:
        return isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"

    def add(self, node: ast.expr | ast.stmt, after: str) -> None:
        last = node.end_lineno or node.lineno
        start = self.starts[node.lineno - 1] + node.col_offset
        end = self.starts[last - 1] + (node.end_col_offset or 0)
        before = self.source[start:end].decode()
        if before != after:
            text = self.source[self.starts[node.lineno - 1] : self.starts[node.lineno]].decode().strip()
            self.found.append(Mutant(self.file, node.lineno, last, text, start, end, before, after, not self.functions))


def chosen(tree: Path, count: int, seed: int) -> list[Mutant]:
    """One mutant for each of `count` lines, drawn without preference from all lines that have one."""
    places: dict[tuple[str, int], list[Mutant]] = defaultdict(list)
    for room in ROOMS:
        for path in sorted((tree / "flowsim" / room).rglob("*.py")):
            file = path.relative_to(tree).as_posix()
            for mutant in Finder(file, path.read_text()).found:
                places[file, mutant.line].append(mutant)
    chance = random.Random(seed)
    lines = chance.sample(sorted(places), min(count, len(places)))
    return [chance.choice(places[line]) for line in lines]


# ----------------------------------------------------------------------------------------------------- tests of a line


def pytest(tree: Path, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(tree), *arguments]


def environment(tree: Path, out: Path) -> dict[str, str]:
    threads = dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    own = {"PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1", "COVERAGE_FILE": str(out / "coverage")}
    cache = {"JAX_COMPILATION_CACHE_DIR": str(out / "jax"), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    return {**os.environ, **threads, **own, **cache}


class Covering:
    """Which tests execute a line, the quickest first, and how many seconds each takes."""

    def __init__(self, tree: Path, out: Path) -> None:
        if not (out / "times.xml").exists():
            self.record(tree, out)
        from coverage import CoverageData

        self.seconds = {
            f"{case.get('classname', '').replace('.', '/')}.py::{case.get('name')}": float(case.get("time", 0.0))
            for case in ElementTree.parse(out / "times.xml").iter("testcase")
            if case.find("skipped") is None
        }
        data = CoverageData(str(out / "coverage"))
        data.read()
        self.lines = {
            "flowsim" + path.rsplit("/flowsim", 1)[1]: data.contexts_by_lineno(path) for path in data.measured_files()
        }

    @staticmethod
    def record(tree: Path, out: Path) -> None:
        print("which test executes which line: all of them run once", flush=True)
        place = copied(tree, out / "recorded")
        unfinished = out / "unfinished.xml"
        options = ("--cov=flowsim", "--cov-context=test", "--cov-report=", f"--junitxml={unfinished}")
        done = subprocess.run(pytest(place, *options), cwd=place, env=environment(place, out), check=False)
        if done.returncode != 0:
            raise SystemExit("The tests fail without any mutant; mend that first.")
        unfinished.rename(out / "times.xml")

    def tests(self, mutant: Mutant) -> list[str]:
        """Those of the mutant's lines; of any line of the file for what runs at import."""
        known = self.lines.get(mutant.file, {})
        places = known if mutant.at_import else range(mutant.line, mutant.last + 1)
        names = {context.split("|")[0] for line in places for context in known.get(line, ())}
        return sorted((name for name in names if name in self.seconds), key=lambda name: self.seconds[name])


# ------------------------------------------------------------------------------------------------------------- running


def copied(tree: Path, place: Path) -> Path:
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(tree, place, ignore=LEFT_OUT)
    return place


def judged(mutant: Mutant, tree: Path, out: Path, tests: list[str], seconds: float) -> tuple[str, str]:
    """(killed, timed out or survived; the test that failed) of a mutant written into a copy of the tree."""
    path, limit = tree / mutant.file, GRACE + 2 * seconds
    source = path.read_bytes()
    path.write_bytes(source[: mutant.start] + mutant.after.encode() + source[mutant.end :])
    command = pytest(tree, "-x", "-n", "0", "--tb=no", "-rfE", f"--basetemp={tree}-files", *tests)
    pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    try:
        with subprocess.Popen(command, cwd=tree, env=environment(tree, out), start_new_session=True, **pipes) as run:
            try:
                printed, _ = run.communicate(timeout=limit)
            except subprocess.TimeoutExpired:
                ended(run)
                return "timed out", ""
    finally:
        path.write_bytes(source)
    failed = [line.split(" ", 1)[1] for line in printed.splitlines() if line.startswith(("FAILED ", "ERROR "))]
    if run.returncode == 0:
        return "survived", ""
    return "killed", failed[0].split(" - ")[0] if failed else printed.strip().rsplit("\n", 1)[-1]


def ended(run: subprocess.Popen[str]) -> None:
    """Interrupt it, so that fixtures clear up, then kill what is left of it and its children."""
    for send in (signal.SIGINT, signal.SIGKILL):
        try:
            os.killpg(run.pid, send)
            run.communicate(timeout=15)
        except (subprocess.TimeoutExpired, ProcessLookupError):
            continue


def run_all(mutants: list[Mutant], tree: Path, out: Path, budget: float, processes: int) -> None:
    """Judge the mutants that have no result yet, several at a time, and note each in results.jsonl."""
    covering = Covering(tree, out)
    known = {json.dumps(result["mutant"], sort_keys=True) for result in results(out)}
    copies: SimpleQueue[Path] = SimpleQueue()
    for k in range(processes):
        copies.put(copied(tree, out / f"copy-{k}"))

    def judge(mutant: Mutant) -> None:
        names, spent, tests = covering.tests(mutant), 0.0, []
        for name in names:
            spent += covering.seconds[name]
            if spent > budget:
                break
            tests.append(name)
        place = copies.get()
        try:
            seconds = sum(covering.seconds[name] for name in tests)
            verdict, by = judged(mutant, place, out, tests, seconds) if tests else ("survived", "")
        finally:
            copies.put(place)
        result = {"mutant": asdict(mutant), "verdict": verdict, "by": by, "tests": len(tests), "of": len(names)}
        with open(out / "results.jsonl", "a") as file:
            file.write(json.dumps(result) + "\n")
        print(f"{verdict}: {mutant.file}:{mutant.line} {shown(mutant.before)} -> {shown(mutant.after)}", flush=True)

    todo = [mutant for mutant in mutants if json.dumps(asdict(mutant), sort_keys=True) not in known]
    with ThreadPoolExecutor(processes) as pool:
        for _ in pool.map(judge, todo):
            pass


def results(out: Path) -> list[dict[str, Any]]:
    path = out / "results.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


# -------------------------------------------------------------------------------------------------------------- report


def shown(text: str) -> str:
    """In one line, not too long."""
    line = " ".join(text.split())
    return line if len(line) <= 70 else f"{line[:67]}..."


def reason(mutant: dict[str, Any]) -> str | None:
    """Why the mutant changes no number, where that has been reviewed: an entry without `after` stands for any."""
    for entry in tomllib.loads(EQUIVALENT.read_text())["mutant"]:
        if all(entry[name] == mutant[name] for name in ("file", "text", "after") if name in entry):
            return str(entry["reason"])
    return None


def report(out: Path) -> str:
    """The score, and a table of the survivors."""
    found = results(out)
    survivors = [r for r in found if r["verdict"] == "survived"]
    survivors.sort(key=lambda r: (r["mutant"]["file"], r["mutant"]["line"]))
    equivalent = [r for r in survivors if reason(r["mutant"])]
    counts = Counter(r["verdict"] for r in found)
    counted = len(found) - len(equivalent)
    caught = counts["killed"] + counts["timed out"]
    lines = [
        f"{len(found)} mutants: {counts['killed']} killed, {counts['timed out']} timed out,"
        f" {counts['survived']} survived, {len(equivalent)} of these equivalent",
        f"score: {caught} / {counted} = {caught / max(counted, 1):.1%}",
        "",
        "| place | before | after | tests run | equivalent, for |",
        "|---|---|---|---|---|",
    ]
    for r in survivors:
        m = r["mutant"]
        cells = f"`{shown(m['before'])}` | `{shown(m['after'])}` | {r['tests']} of {r['of']} | {reason(m) or ''}"
        lines.append(f"| {m['file']}:{m['line']} | {cells} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=100, help="how many lines")
    parser.add_argument("--seed", type=int, default=0, help="which ones")
    parser.add_argument("--out", type=Path, required=True, help="the folder of copies and results")
    parser.add_argument("--tree", type=Path, default=ROOT, help="the tree to mutate copies of")
    parser.add_argument("--budget", type=float, default=60.0, help="seconds of tests for a mutant, the quickest first")
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    out, tree = options.out.absolute(), options.tree.absolute()
    out.mkdir(parents=True, exist_ok=True)
    if options.count:
        run_all(chosen(tree, options.count, options.seed), tree, out, options.budget, options.processes)
    print(report(out))


if __name__ == "__main__":
    main()
