"""env-check on this machine, and on machines whose torch is broken, crashes, hangs, or has no compiler."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import time
from importlib import metadata
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from bigmodel_cli.commands.environment.reports import github_lines
from bigmodel_cli.commands.environment.requirements import read_requirements, required
from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.extras import extras
from bigmodel_cli.data.presence import present_in
from bigmodel_cli.engine.device import env_check, probes
from bigmodel_cli.engine.device.check import Check

BROKEN = {
    "missing library": ('raise ImportError("libcudnn.so.9: cannot open shared object file")', "libcudnn.so.9"),
    "illegal instruction": ("import os, signal; os.kill(os.getpid(), signal.SIGILL)", "crashed (SIGILL)"),
    "leaves": ("import os; os._exit(1)", "exited"),
    "empty message": ("raise RuntimeError", "RuntimeError"),
}
NO_COMPILING = {"TORCHDYNAMO_DISABLE": "1"}  # where the compiler is not what is tested: it takes both cores for seconds

SLOW_EXTRAS = ("onnx", "onnxruntime", "openvino", "faiss", "pillow_heif", "torchcodec", "pyarrow", "matplotlib")
"""What the first test imports, and the others need not: after a crash torchcodec alone imports torch again."""


def shadow(folder: Path, name: str, source: str) -> dict[str, str]:
    """An environment in which ``import name`` runs `source`, and that of a slow extra runs nothing."""
    (folder / "shadow").mkdir(exist_ok=True)
    for extra in SLOW_EXTRAS:
        (folder / "shadow" / f"{extra}.py").touch()
    (folder / "shadow" / f"{name}.py").write_text(source)
    return {**os.environ, "PYTHONPATH": str(folder / "shadow"), "OMP_NUM_THREADS": "1", "COLUMNS": "160"}


def report(done: Any) -> dict[str, dict[str, Any]]:
    return {c["name"]: c for c in json.loads(done.stdout)["checks"]}


def required_of(done: Any, require: str) -> dict[str, str]:
    """What ``--require`` makes of the same answers: name -> status."""
    found = [Check(**c) for c in json.loads(done.stdout)["checks"]]
    return {c.name: c.status for c in required(found, read_requirements(require))}


def test_this_machine(run_cli: Any) -> None:
    done = run_cli("env-check", "--json", "--require", "torch")  # so that it waits for each on a busy machine
    assert done.returncode == 0, done.stdout + done.stderr
    found = report(done)
    for name in ("python", "cpu", "torch", "torchvision", "bf16", "disk", "memory", "uvicorn", "torch_pruning"):
        assert found[name]["status"] in ("pass", "warn") and found[name]["value"], name
    import torch

    assert found["torch"]["value"] == torch.__version__
    assert (found["cuda"]["status"] == "pass") == torch.cuda.is_available()
    assert found["bf16"]["status"] == "pass"
    for check in found.values():
        assert check["status"] == "pass" or check["fix"], f"{check['name']}: nothing to do is named"
    assert "download hosts reached" in found["network"]["value"]
    installed = ".".join(torch.__version__.split(".")[:2])
    for require, met in (
        (f"torch>={installed}", True), (f"torch=={installed}", True), ("torch>=99.1", False), ("torch<2", False),
        ("memory>=1MB", True), ("memory>=1000TB", False), ("disk>=1MiB", True), ("disk>=9999TB", False),
        ("cpu>=1", True), ("cpu>=100000", False), ("gpu>=1000", False), ("python>=3.11", True), ("onnx>=1.1", True),
    ):  # fmt: skip
        assert ("fail" not in required_of(done, require).values()) == met, require
    assert required_of(done, "compress")["torch_pruning"] == "pass"
    if not torch.cuda.is_available():
        statuses = required_of(done, "cuda,cudnn,gpu")
        assert {name for name, status in statuses.items() if status == "fail"} == {"cuda", "cudnn", "gpu"}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_torch_is_a_line(name: str, run_cli: Any, tmp_path: Path) -> None:
    source, message = BROKEN[name]
    done = run_cli("env-check", "--json", env=shadow(tmp_path, "torch", source))
    assert done.returncode == 3 and done.stderr == ""
    found = report(done)
    assert json.loads(done.stdout)["status"] == found["torch"]["status"] == found["torchvision"]["status"] == "fail"
    assert message in found["torch"]["value"] and "pip install" in found["torch"]["fix"]
    assert found["bf16"]["status"] == "warn"
    assert found["disk"]["status"] in ("pass", "warn"), "what does not need torch is still tested"
    if name == "leaves":
        table = run_cli("env-check", env=shadow(tmp_path, "torch", source))
        assert table.returncode == 3 and "torch, torchvision" in table.stdout.splitlines()[-1]


def test_a_broken_extra_is_a_warning_unless_it_is_required(run_cli: Any, tmp_path: Path) -> None:
    """What is required is waited for, so the answer does not depend on how busy the machine is."""
    environment = shadow(tmp_path, "onnxruntime", "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
    done = run_cli("env-check", "--json", "--require", "torch", env={**environment, **NO_COMPILING})
    assert done.returncode == 0
    assert report(done)["onnxruntime"]["status"] == "warn" and "SIGSEGV" in report(done)["onnxruntime"]["value"]
    assert report(done)["tokenizers"]["status"] == "pass", "what comes after a crash is still probed"
    assert report(done)["compile"]["value"] == "TORCHDYNAMO_DISABLE=1: nothing is compiled"
    assert required_of(done, "onnx")["onnxruntime"] == "fail"


def test_an_extra_that_hangs_is_ended_and_the_next_is_still_probed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = f"import os, time, pathlib; pathlib.Path({str(tmp_path / 'pid')!r}).write_text(str(os.getpid()))"
    shadow(tmp_path, "tokenizers", source + "; time.sleep(600)")
    monkeypatch.syspath_prepend(str(tmp_path / "shadow"))
    monkeypatch.setattr(probes, "PROBES", dict.fromkeys(("tokenizers", "onnxruntime"), ("warn", "reinstall it")))
    monkeypatch.setattr(env_check, "LEAST_LIMIT", 10.0)
    hanging, next_one = env_check._probed(time.monotonic(), limit=0.0)
    assert hanging.status == "warn" and "no answer after" in hanging.value
    assert next_one.status == "pass", next_one.value
    pid = int((tmp_path / "pid").read_text())
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_without_a_compiler(run_cli: Any, tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    environment = {**os.environ, "PATH": str(tmp_path / "bin"), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    environment = {k: v for k, v in environment.items() if k not in ("CC", "CXX")}
    done = run_cli("env-check", "--json", "--require", "compile", env=environment)
    found = report(done)["compile"]
    assert done.returncode == 3 and found["status"] == "fail"
    assert "failed" in found["value"] and "g++" in found["fix"]


def test_a_misspelt_requirement_is_said_at_once(run_cli: Any) -> None:
    started = time.monotonic()
    done = run_cli("env-check", "--require", "bf61")
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: --require bf61: no such check; did you mean bf16")
    assert time.monotonic() - started < 20, "before anything is tested"


@pytest.mark.parametrize(
    ("asked", "holds"),
    [(">2.11", False), (">2.10", True), (">=2.11.0", True), ("<2.11.0", False), ("==2.11", True), ("<=2.11.0", True)],
)
@pytest.mark.parametrize("version", ["2.11", "2.11.0", "2.11.0+cpu"])
def test_zeros_at_the_end_of_a_version_change_nothing(version: str, asked: str, holds: bool) -> None:
    (requirement,) = read_requirements(f"torch{asked}")
    assert requirement.holds(Check("torch", "pass", version)) is holds


@pytest.mark.parametrize("wrong", ["memory>=x", "gpu>=2.5", "torch>=new", "memory>=16XB", "tourch>=2", "torch=>2"])
def test_a_requirement_that_cannot_be_read_is_bad_input(wrong: str) -> None:
    with pytest.raises(InputError, match="--require"):
        read_requirements(wrong)


def test_a_ci_reads_junit_and_annotations(run_cli: Any, tmp_path: Path) -> None:
    raw = tmp_path / "sets/MNIST/raw"
    raw.mkdir(parents=True)
    for kind in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"):
        (raw / f"{kind}-ubyte").touch()
    environment = shadow(tmp_path, "torch", "raise ImportError('no: 100%, gone')")
    environment["BIGMODEL_DATA"] = str(tmp_path / "sets")
    done = run_cli("env-check", "--json", "--annotations", "--junit", "out.xml", "--require", "disk>=9999TB",
                   cwd=tmp_path, env={**environment, **NO_COMPILING})  # fmt: skip
    checks = report(done)
    assert done.returncode == 3
    suite = ElementTree.parse(tmp_path / "out.xml").getroot()
    failed = {case.get("name") for case in suite if case.find("failure") is not None}
    assert failed == {name for name, check in checks.items() if check["status"] == "fail"} >= {"torch", "disk"}
    assert suite.get("tests") == str(len(checks)) and suite.get("failures") == str(len(failed))
    assert checks["data"]["value"].startswith("digits, mnist, synthetic_")
    errors = [line for line in done.stderr.splitlines() if line.startswith("::error ")]
    assert len(errors) == len(failed) and any("title=env-check torch::" in e and "100%25, gone" in e for e in errors)


def test_annotations_are_of_faults_and_not_of_what_nobody_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(probes.metadata, "version", gone)
    optional = probes.check_without_import("onnxruntime")
    assert optional is not None and optional.status == "warn" and github_lines([optional]) == []
    (asked,) = required([optional], read_requirements("onnxruntime"))
    (line,) = github_lines([asked])
    assert line.startswith("::error ") and "not installed" in line
    (line,) = github_lines([Check("compile", "warn", "torch.compile crashed (SIGILL)", "g++"), optional])
    assert line.startswith("::warning title=env-check compile")


def test_the_data_folder(tmp_path: Path) -> None:
    raw = tmp_path / "sets/MNIST/raw"
    raw.mkdir(parents=True)
    files = (
        "train-images-idx3-ubyte",
        "train-labels-idx1-ubyte",
        "t10k-images-idx3-ubyte",
        "t10k-labels-idx1-ubyte.gz",
    )
    for file in files[:-1]:
        (raw / file).touch()
    assert present_in(tmp_path / "sets") == [
        "digits",
        "synthetic_images",
        "synthetic_interactions",
        "synthetic_text",
        "tales",
    ]
    (raw / files[-1]).touch()
    assert present_in(tmp_path / "sets")[:2] == ["digits", "mnist"]
    gone = env_check._data(tmp_path / "none", [])
    assert gone.status == "warn" and "no folder" in gone.value


def test_the_mirrors_are_those_of_the_data_sources() -> None:
    from urllib.parse import urlsplit

    from bigmodel_cli.data.image.mnist import MIRRORS
    from bigmodel_cli.engine.device.env_check import download_hosts

    assert {urlsplit(a).hostname for addresses in MIRRORS.values() for a in addresses} < set(download_hosts())
    assert "www.cs.toronto.edu" in download_hosts()


def test_every_optional_package_is_looked_for_under_the_name_that_it_is_imported_as() -> None:
    """protobuf was told as broken: it is imported as google.protobuf."""
    there = []
    for package in {name for packages in extras().values() for name in packages}:
        with contextlib.suppress(metadata.PackageNotFoundError):
            there += [package] if metadata.version(package) else []
    assert "protobuf" in there
    assert [name for name in there if importlib.util.find_spec(probes.module_of(name)) is None] == []
