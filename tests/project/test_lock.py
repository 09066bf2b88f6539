"""constraints.lock pins what constraints.txt pins, each file by its SHA-256."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import figures
import pytest

ROOT = Path(__file__).resolve().parents[2]


def plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name.lower())


def differences(locked: dict[str, str], pinned: list[tuple[str, str]]) -> list[str]:
    """The pinned packages of which another version is locked."""
    return [name for name, version in pinned if locked.get(plain(name), version) != version]


def locked() -> dict[str, tuple[str, str]]:
    """The version and the SHA-256 of each locked package."""
    found = {}
    for line in (ROOT / "constraints.lock").read_text().splitlines():
        if not line.startswith("#"):
            name, version, digest = re.fullmatch(r"(\S+)==(\S+) --hash=sha256:([0-9a-f]{64})", line).groups()  # type: ignore[union-attr]
            found[plain(name)] = version, digest
    return found


def test_the_lock_has_every_pinned_version_with_a_hash() -> None:
    """As `make lock` writes it; run that after a change of constraints.txt."""
    versions = {name: version for name, (version, _) in locked().items()}
    assert all(len(set(digest)) > 4 for _, digest in locked().values())
    pinned = re.findall(r"^([\w.-]+)==([^\s;]+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert pinned and differences(versions, pinned) == [], "make lock"
    assert differences({**versions, "torch": "1.0"}, pinned) == ["torch"], "an older one is noticed"
    unlocked = {name for name, _ in pinned if plain(name) not in versions}
    assert not unlocked & {"torch", "torchvision", "typer", "rich", "pydantic", "numpy", "onnx", "transformers"}


def outside_make() -> dict[str, str]:
    """The environment without what make leaves in it, which may run the tests."""
    return {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}


def command_of(target: str) -> list[str]:
    """What `make TARGET` runs once its tools are installed."""
    command = ["make", "-n", "--no-print-directory", "-o", "build/tools/.installed", target]
    done = subprocess.run(command, cwd=ROOT, env=outside_make(), capture_output=True, text=True, check=True)
    (line,) = done.stdout.splitlines()
    return shlex.split(line)


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
@pytest.mark.parametrize(("target", "tool"), [("sbom", "cyclonedx-py"), ("audit", "pip-audit")])
def test_the_lock_is_what_tools_are_given(target: str, tool: str) -> None:
    command = command_of(target)
    assert command[0] == f"build/tools/bin/{tool}" and command.count("constraints.lock") == 1
    assert not [word for word in command if word.endswith(".txt")], "constraints.txt has no hashes"


@pytest.mark.skipif(not figures.SOAK, reason="make soak: installs the tool from an index")
def test_the_bill_of_materials_is_the_lock() -> None:
    """Every locked package with its version and its SHA-256, and no other."""
    subprocess.run(["make", "sbom"], cwd=ROOT, check=True, capture_output=True, timeout=900)
    listed = json.loads((ROOT / "build/sbom.json").read_text())["components"]
    found = {(plain(c["name"]), c["version"], hashes_of(c)) for c in listed}
    assert found == {(name, version, digest) for name, (version, digest) in locked().items()}


def hashes_of(component: dict[str, Any]) -> str:
    """The SHA-256 of a component's file, where the tool puts it."""
    told = [h for reference in component.get("externalReferences", []) for h in reference.get("hashes", [])]
    return next(h["content"] for h in [*component.get("hashes", []), *told] if h["alg"] == "SHA-256")


def wheel(folder: Path, content: str) -> str:
    """Write the wheel of a package with one module; returns its SHA-256."""
    about, file = "tiny-1.0.dist-info", folder / "tiny-1.0-py3-none-any.whl"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("tiny.py", content)
        archive.writestr(f"{about}/METADATA", "Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n")
        archive.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{about}/RECORD", "tiny.py,,\n")
    return hashlib.sha256(file.read_bytes()).hexdigest()


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_a_package_with_another_hash_is_not_installed(tmp_path: Path) -> None:
    """As `make install-locked` asks for it, from a lock that the code of `make lock` wrote, without a network."""
    spec = importlib.util.spec_from_file_location("lock", ROOT / ".ci/lock.py")
    assert spec is not None and spec.loader is not None
    writer = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(writer)
    found = {"metadata": {"name": "tiny", "version": "1.0"},
             "download_info": {"archive_info": {"hashes": {"sha256": wheel(tmp_path, "x = 1\n")}}}}  # fmt: skip
    (tmp_path / "constraints.lock").write_text(writer.lock({"install": [found]}))
    dry = subprocess.run(
        ["make", "-n", "install-locked"], cwd=ROOT, capture_output=True, text=True, check=True, env=outside_make()
    )
    (asked,) = (shlex.split(line)[1:] for line in dry.stdout.splitlines() if "constraints.lock" in line)
    place = ["--no-index", "--no-compile", "--find-links", ".", "--target", "there", "--isolated"]

    def installed() -> tuple[int, bool]:
        done = subprocess.run([sys.executable, "-m", "pip", *asked, *place], cwd=tmp_path, capture_output=True)
        return done.returncode, (tmp_path / "there/tiny.py").exists()

    (file,) = tmp_path.glob("*.whl")
    sound = file.read_bytes()
    wheel(tmp_path, "x = 2\n")
    assert installed() == (1, False)
    file.write_bytes(sound)
    assert installed() == (0, True)  # the control
