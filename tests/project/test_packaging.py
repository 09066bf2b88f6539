"""What a user installs: the wheel's files, the server alone, the container, the action and the extras' hints."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import yaml

from bigmodel_cli.core import extras as extras_module
from bigmodel_cli.core.extras import extras, install_line

ROOT = Path(__file__).resolve().parents[2]
HEAVY = ("torch", "torchvision", "sklearn", "scipy", "safetensors", "onnx", "matplotlib")


def test_the_server_alone_requires_what_the_server_of_the_whole_does() -> None:
    whole = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    alone = tomllib.loads((ROOT / "packaging/serve/pyproject.toml").read_text())["project"]
    required = {re.split(r"[<>=\[]", line)[0]: line for line in alone["dependencies"]}
    for line in whole["optional-dependencies"]["serve"]:
        assert required[re.split(r"[<>=\[]", line)[0]] == line
    for line in whole["dependencies"]:
        assert required.get(re.split(r"[<>=\[]", line)[0], line) == line
    assert not {"torch", "torchvision", "scikit-learn"} & set(required)
    assert alone["scripts"] == whole["scripts"]


def test_serving_imports_nothing_heavy() -> None:
    program = f"import sys\nfor name in {HEAVY}: sys.modules[name] = None\n" \
        "import bigmodel_cli.cli, bigmodel_cli.commands.serve, bigmodel_cli.serve.app, bigmodel_cli.serve.server\n" \
        "import bigmodel_cli.serve.model, bigmodel_cli.serve.decoders, bigmodel_cli.serve.service"  # fmt: skip
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


def test_extras_are_those_of_the_package() -> None:
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert {"onnx", "serve", "compress"} <= set(extras()) <= set(declared) - {"dev"}
    assert set(extras()["compress"]) >= {*extras()["onnx"], *extras()["openvino"], "torchao"}


class Installed:
    """A distribution whose ``direct_url.json`` is `record`."""

    def __init__(self, record: Any) -> None:
        self.record = record

    def read_text(self, name: str) -> str | None:
        return None if self.record is None else json.dumps(self.record)


@pytest.mark.parametrize(
    ("record", "line"),
    [
        (None, "pip install 'bigmodel[onnx]'"),
        ({"url": "https://example.org/bigmodel.whl"}, "pip install 'bigmodel[onnx]'"),
        ({"url": "file:///no/such/folder", "dir_info": {}}, "pip install 'bigmodel[onnx]'"),
        ({"url": "CHECKOUT", "dir_info": {}}, "pip install 'CHECKOUT[onnx]'"),
        ({"url": "CHECKOUT", "dir_info": {"editable": True}}, "pip install -e 'CHECKOUT[onnx]'"),
    ],
)
def test_the_line_to_type_fits_how_it_was_installed(
    record: Any, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkout = tmp_path / "check out"
    checkout.mkdir()
    (checkout / "pyproject.toml").touch()
    if record and record["url"] == "CHECKOUT":
        record = {**record, "url": checkout.as_uri()}
    monkeypatch.setattr(metadata, "distribution", lambda name: Installed(record))
    extras_module._source.cache_clear()
    try:
        assert install_line("onnx") == line.replace("CHECKOUT", str(checkout))
        monkeypatch.chdir(checkout)
        assert install_line("onnx") == line.replace("CHECKOUT", ".")
    finally:
        extras_module._source.cache_clear()


def test_the_action_and_the_templates_are_whole() -> None:
    action = yaml.safe_load((ROOT / "action.yml").read_text())
    assert {"name", "description", "inputs", "runs"} <= set(action) and action["runs"]["using"] == "composite"
    steps = action["runs"]["steps"]
    ids = {step.get("id") for step in steps}
    for step in steps:
        assert step["shell"] == "bash" and "${{" not in step["run"], "an input in a script could hold commands"
        done = subprocess.run(["bash", "-n"], input=step["run"], text=True, capture_output=True)
        assert done.returncode == 0, done.stderr
    for output in action["outputs"].values():
        assert re.search(r"steps\.(\w+)\.", output["value"])[1] in ids  # type: ignore[index]
    for template in (ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml"):
        form = yaml.safe_load(template.read_text())
        assert {"name", "description", "body"} <= set(form) and all("type" in field for field in form["body"])
    assert "GITHUB_ACTION_PATH" in steps[0]["run"]  # where "." is the job's own repository
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    from bigmodel_cli import __version__

    assert citation["version"] == __version__ and citation["license"] == "Apache-2.0"
    json.loads((ROOT / ".devcontainer/devcontainer.json").read_text())


def test_the_dockerfile_follows_the_rules_of_its_linters() -> None:
    if hadolint := shutil.which("hadolint", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"):
        done = subprocess.run([hadolint, ROOT / "Dockerfile"], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout
    text = re.sub(r"\\\n", " ", (ROOT / "Dockerfile").read_text())
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    words = [line.split()[0] for line in lines]
    assert words[:2] == ["ARG", "FROM"] and "${BASE}" in lines[1]
    assert ":latest" not in text and "ADD" not in words and "sudo" not in text
    assert words.count("CMD") == words.count("ENTRYPOINT") == 1
    user = next(line.split()[1] for line in reversed(lines) if line.startswith("USER"))
    assert user != "root"
    for line in (line for line in lines if "apt-get install" in line):
        assert "--no-install-recommends" in line and "rm -rf /var/lib/apt/lists" in line and " -y" in line
    for line in (line for line in lines if "pip install" in line):
        assert "--no-cache-dir" in line
    for line in (line for line in lines if line.startswith("COPY")):
        for name in line.split()[1:-1]:
            assert (ROOT / name).exists(), name
