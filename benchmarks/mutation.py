"""Tests that cannot fail: the source is changed in one place at a time, and what no test notices is listed.

    python benchmarks/mutation.py                        # PER_MODULE mutants of each module: an hour on two cores
    python benchmarks/mutation.py loop --count 20        # some of one
    python benchmarks/mutation.py loop --only 112:8      # those at line 112, column 8
    python benchmarks/mutation.py --json after.json      # and what came of each, for RESULTS-mutation.md

A mutant is one small change: a comparison, an operator, a number, a name in quotes, a keyword
argument left out, a statement left out. What is only read by people (words of messages, docstrings,
annotations) is left alone. A sample of them, the same for the same source, goes one by one into a copy of
the package that stands first on the import path, so that commands which the tests start have the change too.
torch and pytest are imported once; each mutant is a fork of that process which runs the module's own tests
until one fails. Failing, crashing or taking far longer than the unchanged source counts as noticed.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import importlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PER_MODULE = 60
SLOW = 4  # times what the unchanged source takes, and ten seconds, is a loop without end
IMPORTED = (
    "torch", "torchvision", "torch._dynamo", "pytest", "numpy", "sklearn.metrics", "sklearn.datasets", "torchmetrics",
    "pydantic", "typer", "rich.console", "yaml", "safetensors.torch", "hypothesis",
)  # fmt: skip
"""What is slow to import; those that are not there are done without."""

FEATURES, EQUAL = "engine/build/test_load_and_features.py", "equivalence/test_loop_equivalence.py"
RECIPES = "core/test_recipes_and_registry.py"
MODULES: dict[str, tuple[str, tuple[str, ...]]] = {
    "labelled": ("tasks/labelled.py", (
        "tasks/test_labelled.py", "insight/test_class_match.py", f"{FEATURES}::test_classes_are_matched_by_name",
        f"{FEATURES}::test_the_same_classes_in_another_order_train_the_same_head",
    )),
    "batches": ("data/batches.py", (
        "data/test_batches.py", f"{FEATURES}::test_every_sample_once_an_epoch_and_in_another_order",
    )),
    "classification": ("insight/classification.py", ("insight/test_classification_report.py",)),
    "metrics": ("metrics/classification.py", ("metrics/test_metrics.py", "insight/test_classification_report.py")),
    "intervals": ("metrics/intervals.py", ("metrics/test_metrics.py", "insight/test_classification_report.py")),
    "checkpoint": ("engine/checkpoint/checkpoint.py", (
        "engine/checkpoint/test_checkpoint.py", "fuzz/test_checkpoint_files.py", "engine/build/test_versions.py",
        "engine/training/test_writer_and_folder.py",
    )),
    "loop": ("engine/training/loop.py", (
        "engine/training/test_loop.py", "engine/training/test_nonfinite_steps.py",
        f"{FEATURES}::test_averaged_weights_follow_their_formula", f"{FEATURES}::test_early_stopping_and_best",
        f"{FEATURES}::test_clipping_bounds_the_step", f"{EQUAL}::test_accumulation_equals_the_whole_batch",
        f"{EQUAL}::test_out_of_memory_halves_the_micro_batch", f"{EQUAL}::test_batchnorm_resumes_too",
    )),
    "resolve": ("core/resolve.py", ("core/test_resolve.py", RECIPES, "fuzz/test_recipe_files.py")),
    "recipe": ("core/recipe.py", ("core/test_resolve.py", RECIPES, "fuzz/test_recipe_files.py")),
    "registry": ("core/registry.py", ("core/test_registry.py", RECIPES)),
    "inspect": ("engine/checkpoint/inspect.py", ("fuzz/test_checkpoint_files.py", "fuzz/test_hostile_checkpoints.py")),
    "safe_pickle": ("engine/checkpoint/safe_pickle.py", (
        "fuzz/test_checkpoint_files.py", "fuzz/test_hostile_checkpoints.py",
    )),
}  # fmt: skip
"""Source file and the tests that answer for it, the quickest first; a test file that is not there yet is left out."""

COMPARED: dict[type, type] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip
COMBINED: dict[type, type] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv, ast.Pow: ast.Mult, ast.BitOr: ast.BitAnd, ast.BitAnd: ast.BitOr, ast.MatMult: ast.Mult,
    ast.LShift: ast.RShift, ast.And: ast.Or, ast.Or: ast.And,
}  # fmt: skip
WORDS = {"hint", "description", "encoding"}  # keyword arguments that decide nothing here


@dataclass(frozen=True)
class Mutant:
    """One change: the bytes from `start` to `end` of the source become `text`."""

    line: int
    column: int
    old: str
    text: str
    start: int
    end: int

    def __str__(self) -> str:
        old = " ".join(self.old.split())
        return f"{self.line}:{self.column} `{old[:70]}` -> `{' '.join(self.text.split())[:70]}`"


def changes(node: ast.AST) -> Iterator[ast.AST | str]:
    """What may stand for `node`, each another program."""
    match node:
        case ast.Compare(ops=[one]) if type(one) in COMPARED:
            yield ast.Compare(node.left, [COMPARED[type(one)]()], node.comparators)
        case ast.BoolOp():
            yield ast.BoolOp(COMBINED[type(node.op)](), node.values)
        case ast.BinOp() if type(node.op) in COMBINED:
            yield ast.BinOp(node.left, COMBINED[type(node.op)](), node.right)
        case ast.UnaryOp():
            yield node.operand
        case ast.Constant(value=bool()):
            yield ast.Constant(not node.value)
        case ast.Constant(value=int() | float()):
            yield ast.Constant(node.value + 1 if isinstance(node.value, int) else node.value * 2 or 1.0)
        case ast.Constant(value=str(text)) if " " not in text:  # a name; with spaces it is words
            yield ast.Constant(text + "X")
        case ast.IfExp():
            yield ast.IfExp(node.test, node.orelse, node.body)
        case ast.Call():
            for i, option in enumerate(node.keywords):
                if option.arg is not None and option.arg not in WORDS:
                    yield ast.Call(node.func, node.args, node.keywords[:i] + node.keywords[i + 1 :])
        case ast.Expr(value=ast.Call()) | ast.Raise() | ast.Delete() | ast.AugAssign():
            yield "pass"
        case ast.Assign(targets=[ast.Attribute() | ast.Subscript()]):
            yield "pass"
        case ast.Return(value=value) if value is not None and not isinstance(value, ast.Constant):
            yield "return None"
        case ast.Break() | ast.Continue():
            yield "pass"


def decisive(node: ast.AST) -> Iterator[ast.AST]:
    """`node` and all below it that decides what the program does: no annotation, docstring or f-string."""
    if isinstance(node, ast.JoinedStr | ast.Import | ast.ImportFrom):
        return
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        return
    yield node
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns", "decorator_list", "exc"):
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST) and not (isinstance(child, ast.keyword) and child.arg in WORDS):
                yield from decisive(child)


def mutants(source: str) -> list[Mutant]:
    """Every mutant of `source` there is, in the order of the file."""
    starts = [0]
    for line in source.encode().splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    found = []
    for node in decisive(ast.parse(source)):
        for change in changes(node):
            assert isinstance(node, ast.expr | ast.stmt) and node.end_lineno and node.end_col_offset is not None
            start = starts[node.lineno - 1] + node.col_offset
            end = starts[node.end_lineno - 1] + node.end_col_offset
            text = change if isinstance(change, str) else f"({ast.unparse(ast.fix_missing_locations(change))})"
            old = source.encode()[start:end].decode()
            found.append(Mutant(node.lineno, node.col_offset, old, text, start, end))
    return sorted(found, key=lambda m: (m.start, m.end, m.text))


def attempt(package: Path, tests: list[str], limit: float) -> str:
    """What the tests say of the package in the folder `package`: passed, noticed, or took longer than `limit`."""
    pid = os.fork()
    if pid == 0:
        code = 70
        try:
            os.setsid()
            nowhere = os.open(os.environ.get("MUTATION_LOG", os.devnull), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            for descriptor in (1, 2):
                os.dup2(nowhere, descriptor)
            sys.path.insert(0, str(package))
            os.environ.update(PYTHONPATH=str(package), PYTHONDONTWRITEBYTECODE="1")
            sys.dont_write_bytecode = True
            import pytest

            code = int(pytest.main([*tests, "-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "--timeout", "0"]))
        finally:
            os._exit(code)
    end = time.monotonic() + limit
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done or time.monotonic() > end:
            break
        time.sleep(0.02)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)  # and commands that it started
    if not done:
        os.waitpid(pid, 0)
        return "timeout"
    return "survived" if os.waitstatus_to_exitcode(status) == 0 else "killed"


def measure(name: str, count: int, only: str | None) -> dict[str, Any]:
    """What came of `count` mutants of module `name`."""
    file, wanted = MODULES[name]
    tests = [f"{ROOT}/tests/{test}" for test in wanted if (ROOT / "tests" / test.partition("::")[0]).exists()]
    with tempfile.TemporaryDirectory() as folder:
        package = Path(folder)
        shutil.copytree(ROOT / "bigmodel_cli", package / "bigmodel_cli")
        shutil.copytree(ROOT / "recipes", package / "recipes")
        target = package / "bigmodel_cli" / file
        for compiled in (target.parent / "__pycache__").glob(f"{target.stem}.*"):
            compiled.unlink()
        source = target.read_bytes()
        every = mutants(source.decode())
        clock = time.monotonic()
        if attempt(package, tests, 600) != "survived":
            raise SystemExit(f"{name}: the tests fail on the unchanged source")
        baseline = time.monotonic() - clock
        chosen = sorted(random.Random(name).sample(range(len(every)), min(count, len(every))))
        picked = [every[i] for i in chosen]
        if only:
            picked = [m for m in every if f"{m.line}:{m.column}" in only.split(",")]
        outcomes = []
        for mutant in picked:
            target.write_bytes(source[: mutant.start] + mutant.text.encode() + source[mutant.end :])
            outcome = attempt(package, tests, SLOW * baseline + 10)
            outcomes.append([str(mutant), outcome])
            sys.stderr.write(f"{name} {len(outcomes)}/{len(picked)} {outcome}: {mutant}\n")
    noticed = sum(outcome != "survived" for _, outcome in outcomes)
    return {
        "module": file, "possible": len(every), "tried": len(outcomes), "noticed": noticed,
        "tests_s": round(baseline, 1), "seconds": round(time.monotonic() - clock), "outcomes": outcomes,
    }  # fmt: skip


def say(*lines: str) -> None:
    sys.stdout.write("\n".join(lines) + "\n")
    sys.stdout.flush()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("module", nargs="*", help=f"of {', '.join(MODULES)}; none: all of them")
    parser.add_argument("--count", type=int, default=PER_MODULE, help="mutants of each module")
    parser.add_argument("--only", help="those at these places: LINE:COLUMN,...")
    parser.add_argument("--json", type=Path, help="file for what came of each mutant")
    arguments = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    for module in IMPORTED:
        try:
            importlib.import_module(module)
        except ImportError:
            continue
    assert not any(name.startswith("bigmodel_cli") for name in sys.modules)
    results = []
    say("| module | mutants tried of all | noticed | score | its tests, s |", "|---|---|---|---|---|")
    for name in arguments.module or MODULES:
        results.append(found := measure(name, arguments.count, arguments.only))
        score = found["noticed"] / max(found["tried"], 1)
        counts = f"{found['tried']} of {found['possible']} | {found['noticed']} | {score:.0%} | {found['tests_s']}"
        say(f"| {found['module']} | {counts} |")
        if arguments.json:
            arguments.json.write_text(json.dumps(results, indent=1) + "\n")
    for found in results:
        survivors = [text for text, outcome in found["outcomes"] if outcome == "survived"]
        say(f"\n{found['module']}: {len(survivors)} survived", *(f"- {text}" for text in survivors))


if __name__ == "__main__":
    main()
