"""House rules that a reader of the source can check, checked over every file."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from bigmodel_cli.core.registry import exports

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "bigmodel_cli"
FILES = sorted(PACKAGE.rglob("*.py"))
NAMES = [str(p.relative_to(PACKAGE)) for p in FILES]

FORBIDDEN_CALLS = {
    "pickle.load", "pickle.loads", "torch.hub.load", "torch.hub.load_state_dict_from_url", "yaml.load",
    "yaml.unsafe_load", "yaml.full_load", "eval", "exec", "os.system", "os.popen", "joblib.load", "dill.load",
}  # fmt: skip
FORBIDDEN_OPTIONS = {("weights_only", False), ("shell", True), ("allow_pickle", True)}
READS_THE_CLOCK = {
    "data/image/decode_cache.py", "engine/training/run.py", "engine/training/weights_only.py",
}  # fmt: skip
"""A clock may jump: two write the time into a checkpoint, and the cache asks it for the age of what nobody uses."""
ONLY_IN = {"torch.load": "engine/checkpoint/checkpoint.py", "print": "commands/display/console.py"}


def tree(name: str) -> ast.Module:
    return ast.parse((PACKAGE / name).read_text(encoding="utf-8"))


def breaches(name: str, source: ast.Module) -> Iterator[str]:
    """What `source`, taken for the file `name`, does that the house forbids."""
    for node in ast.walk(source):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            modules = [a.name for a in node.names] + [getattr(node, "module", None) or ""]
            yield from (f"imports {m}" for m in modules if m.split(".")[0] in ("pickle", "dill", "joblib"))
            if isinstance(node, ast.ImportFrom) and node.module == "torch":
                yield from (f"imports torch.{a.name} by name" for a in node.names if a.name in ("load", "hub"))
        if isinstance(node, ast.Attribute) and ast.unparse(node) == "torch.hub":
            yield "torch.hub"
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        if called in FORBIDDEN_CALLS:
            yield f"line {node.lineno}: {called}"
        if called in ("time.time", "time.time_ns") and name not in READS_THE_CLOCK:
            yield f"line {node.lineno}: {called}: time.monotonic, or the system's own order"
        if called in ONLY_IN and ONLY_IN[called] != name:
            yield f"line {node.lineno}: {called} belongs in {ONLY_IN[called]}"
        # Left out, it is None in transformers, which then asks on standard input whether to run a folder's code.
        if called.endswith(".from_pretrained") and "trust_remote_code" not in {k.arg for k in node.keywords}:
            yield f"line {node.lineno}: {called} without trust_remote_code=False"
        for option in node.keywords:
            value = option.value.value if isinstance(option.value, ast.Constant) else None
            trusts = option.arg == "trust_remote_code" and value is not False
            if trusts or (option.arg, value) in FORBIDDEN_OPTIONS:
                yield f"line {node.lineno}: {option.arg}={ast.unparse(option.value)}"


@pytest.mark.parametrize("name", NAMES)
def test_nothing_forbidden_is_called(name: str) -> None:
    assert list(breaches(name, tree(name))) == []


def test_the_programs_beside_exports_keep_the_rules() -> None:
    """But that they print: they are source in a string."""
    for name in exports.names():
        own = exports.get(name).meta["runtime"]
        found = breaches(name, ast.parse(f"{own.imports}\n{own.run}"))
        assert [line for line in found if ": print " not in line] == [], name


@pytest.mark.parametrize(
    "source",
    [
        "import pickle", "from torch import load", "import torch\ntorch.load('x')", "torch.hub.load('x', 'y')",
        "yaml.load(text)", "eval(text)", "subprocess.run('ls', shell=True)", "f(weights_only=False)",
        "AutoModel.from_pretrained(x, trust_remote_code=flag)", "kind.from_pretrained(x, **options)",
        "numpy.load(p, allow_pickle=True)", "print(1)",
        "age = time.time() - path.stat().st_mtime",
    ],
)  # fmt: skip
def test_the_rule_can_fail(source: str) -> None:
    assert list(breaches("models/one.py", ast.parse(source)))


PROBED = {"task", "source", "spec", "model", "inner", "train", "val", "split", "augment"}


def probes(source: ast.Module) -> Iterator[str]:
    """Where `source` asks by name for what a task, source, spec or model may have: protocols are for that."""
    for node in ast.walk(source):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("hasattr", "getattr") and len(node.args) > 1:
            asked, name = ast.unparse(node.args[0]), node.args[1]
            if asked.rpartition(".")[2] in PROBED and isinstance(name, ast.Constant):
                yield f"line {node.lineno}: {ast.unparse(node)}"


@pytest.mark.parametrize("name", [n for n in NAMES if not n.startswith("models/")])
def test_capabilities_are_protocols(name: str) -> None:
    assert list(probes(tree(name))) == []


def test_the_rule_of_capabilities_can_fail() -> None:
    assert list(probes(ast.parse("hasattr(run.task, 'labels')"))) and list(probes(ast.parse("getattr(spec, 'a', ())")))
    assert not list(probes(ast.parse("getattr(error, 'reason', error)")))


def test_one_place_loads_checkpoints() -> None:
    calls = [
        (name, node)
        for name in NAMES
        for node in ast.walk(tree(name))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load"
    ]
    assert [name for name, _ in calls] == ["engine/checkpoint/checkpoint.py"]
    options = {k.arg: ast.unparse(k.value) for k in calls[0][1].keywords}
    assert options["weights_only"] == "True"


def test_every_file_has_a_name_of_its_own() -> None:
    leftovers = {"utils", "util", "helpers", "helper", "common", "misc", "tools"}
    folders = {part for name in NAMES for part in Path(name).with_suffix("").parts}
    assert not leftovers & folders


def test_every_test_file_has_a_name_of_its_own() -> None:
    """Folders of tests are no packages: pytest imports two files of one name as one module, and stops."""
    names = sorted(path.name for path in (ROOT / "tests").rglob("*.py"))
    assert len(set(names)) == len(names), [name for name in names if names.count(name) > 1]


def test_sizes() -> None:
    """At most 300 lines a file and 50 a function."""
    over = []
    for name in NAMES:
        lines = len((PACKAGE / name).read_text(encoding="utf-8").splitlines())
        over += [f"{name}: {lines}"] if lines > 300 else []
        for node in ast.walk(tree(name)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                lines = (node.end_lineno or 0) - node.lineno + 1
                over += [f"{name}: {node.name}: {lines}"] if lines > 50 else []
    assert over == []


def test_nothing_is_unfinished() -> None:
    words = ("TO" + "DO", "FIX" + "ME", "NotImplemented" + "Error", "XX" + "X")
    for path in [*FILES, *ROOT.glob("recipes/**/*.yaml"), *ROOT.glob("docs/*.md"), ROOT / "README.md"]:
        text = path.read_text(encoding="utf-8")
        assert not [w for w in words if w in text], path


@pytest.mark.parametrize(
    "module",
    ["bigmodel_cli", "bigmodel_cli.cli", "bigmodel_cli.core.registry", "bigmodel_cli.engine.device.env_check"],
)
def test_no_torch_until_it_is_needed(module: str) -> None:
    program = f"import sys, {module}; assert sys.modules.get('{module}'); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout == "False\n", done.stderr


def test_constraints_pin_every_direct_dependency() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *(r for group in project["optional-dependencies"].values() for r in group)]
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = {line.partition("==")[0].lower() for line in lines}
    assert all("==" in line and "://" not in line and "@" not in line for line in lines)
    for requirement in wanted:
        name = requirement
        for sign in "<>=![ ;":
            name = name.partition(sign)[0]
        assert name.lower() in pinned or name == "bigmodel", requirement


def test_the_recipes_travel_in_the_wheel() -> None:
    build = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert build["force-include"] == {"recipes": "bigmodel_cli/recipes"}


def test_the_source_names_what_the_registries_hold() -> None:
    """Reading the source and importing every file agree, for each registry there is."""
    from bigmodel_cli.core import registry as registries

    every = {k: v for k, v in vars(registries).items() if isinstance(v, registries.Registry)}
    assert len(every) >= 9
    for variable, registry in every.items():
        assert registry.variable == variable
        folder = ROOT / registry.package.replace(".", "/")
        for file in sorted(folder.rglob("*.py")):
            inside = ".".join(file.relative_to(folder).with_suffix("").parts)
            importlib.import_module(f"{registry.package}.{inside}".removesuffix(".__init__"))
        assert set(registry._entries) == set(registry.found), variable


def test_every_part_of_the_loop_fits_a_screen() -> None:
    """All of it is in one file, and no function of it is longer than a screen."""
    loop = tree("engine/training/loop.py")
    lengths = {n.name: (n.end_lineno or 0) - n.lineno + 1 for n in ast.walk(loop) if isinstance(n, ast.FunctionDef)}
    assert {"fit", "train_step", "settle", "end_epoch"} <= set(lengths)
    assert max(lengths.values()) <= 40, lengths
