"""Files at an address of fsspec: copied whole, checked, bounded, again after a change; no credential is written."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from PIL import Image

from bigmodel_cli.core.errors import InputError, MachineError
from bigmodel_cli.core.files import remote_files
from bigmodel_cli.core.files.remote_files import is_remote, local_copy


@pytest.fixture
def memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setenv("BIGMODEL_CACHE", str(tmp_path / "cache"))
    system = fsspec.filesystem("memory")
    yield system
    system.store.clear()
    system.pseudo_dirs[:] = [""]


def test_what_is_an_address() -> None:
    for text in ("s3://bucket/a", "gs://b/c.pt", "hf://datasets/a/b", "s3:/bucket/a"):
        assert is_remote(text)
    for text in (
        "runs/a",
        "hf:gpt2",
        "timm:resnet18",
        "https://x.org/a.tar",
        "C:/data",
        "s3://b/{000..009}.tar",
        "s3:",
    ):
        assert not is_remote(text)


def test_a_folder_is_copied_once_and_again_when_it_has_changed(memory: Any) -> None:
    memory.pipe({"/data/a/1.txt": b"one", "/data/b/2.txt": b"two"})
    first = local_copy("memory://data")
    assert first.name == "data" and (first / "a/1.txt").read_bytes() == b"one" and (first / "b/2.txt").exists()
    (first / "mark").touch()
    assert (local_copy("memory:/data") / "mark").exists()  # as a Path, which has lost a slash
    memory.pipe("/data/b/2.txt", b"three")
    again = local_copy("memory://data")
    assert again != first and (again / "b/2.txt").read_bytes() == b"three"
    assert local_copy("memory://data/a/1.txt").read_bytes() == b"one"
    assert not [path for path in first.parents[1].iterdir() if path.name.startswith(".")]


def test_what_is_refused(memory: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    memory.pipe({"/data/a.txt": b"0123456789", "/data/b.txt": b"0"})
    with pytest.raises(InputError, match="nothing is there"):
        local_copy("memory://none")
    monkeypatch.setenv("BIGMODEL_REMOTE_GB", "0.00000001")
    with pytest.raises(InputError, match="expected at most"):
        local_copy("memory://data")
    monkeypatch.delenv("BIGMODEL_REMOTE_GB")
    get = type(memory).get_file
    cut = lambda self, path, target, **options: Path(target).write_bytes(self.cat(path)[:-1])  # noqa: E731
    monkeypatch.setattr(type(memory), "get_file", cut)
    with pytest.raises(MachineError, match="bytes arrived of"):
        local_copy("memory://data")
    monkeypatch.setattr(type(memory), "get_file", get)
    assert (local_copy("memory://data") / "a.txt").read_bytes() == b"0123456789"
    listed = {"/data/../../out": {"name": "x", "size": 1, "type": "file"}}
    monkeypatch.setattr(type(memory), "find", lambda self, root, detail: listed)
    with pytest.raises(InputError, match="refused: a file called"):
        local_copy("memory://data")


def test_a_checksum_that_a_service_tells_is_compared(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"abc")
    told = {"type": "file", "size": 3, "ETag": '"900150983cd24fb0d6963f7d28e17f72"'}
    remote_files.check_copy("s3://b", "x", told, path)
    remote_files.check_copy("s3://b", "x", {**told, "ETag": '"900150983cd24fb0d6963f7d28e17f72-2"'}, path)  # of parts
    with pytest.raises(MachineError, match="MD5"):
        remote_files.check_copy("s3://b", "x", {**told, "ETag": "0" * 32}, path)


SETUP = """
import fsspec
from pathlib import Path
system = fsspec.filesystem("memory")
for path in Path({folder!r}).rglob("*"):
    if path.is_file():
        for place in ("bucket", "me:hunter22@bucket"):  # the store takes no password out of an address
            system.pipe("/" + place + "/" + str(path.relative_to({folder!r})), path.read_bytes())
"""


def test_data_and_runs_at_an_address_and_no_credential_is_written(run_cli: Any, tmp_path: Path) -> None:
    """The plug-in stands for the service: it fills the store of this process."""
    for kind, shade in (("a", 20), ("b", 220)):
        (tmp_path / "bucket/photos" / kind).mkdir(parents=True)
        for i in range(8):
            Image.new("L", (8, 8), shade + i).save(tmp_path / "bucket/photos" / kind / f"{i}.png")
    (tmp_path / "service.py").write_text(SETUP.format(folder=str(tmp_path / "bucket")))
    service = ("--import", "service.py")
    variables = {"BIGMODEL_CACHE": str(tmp_path / "cache")}

    def run(*arguments: str) -> Any:
        done = run_cli(*arguments, *service, variables=variables)
        assert done.returncode == 0, done.stderr
        return done

    run("train", "mlp", "--data", "memory://me:hunter22@bucket/photos", "--epochs", "1", "--out", "bucket/run")
    written = [path for path in (tmp_path / "bucket/run").iterdir() if path.is_file()]
    assert not any(b"hunter22" in path.read_bytes() for path in written)
    assert "memory://bucket/photos" in (tmp_path / "bucket/run/recipe.yaml").read_text()
    shown = json.loads(run("predict", "memory://bucket/run", "memory://bucket/photos/a/0.png", "--json").stdout)
    assert shown
    assert run("eval", "memory://bucket/run", "--json").stdout


def test_a_service_whose_package_is_missing_says_what_to_type(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*given: Any) -> Any:
        raise ImportError("Install s3fs to access S3", name="s3fs")

    monkeypatch.setattr(fsspec.core, "url_to_fs", missing)
    with pytest.raises(MachineError, match="s3fs is not installed") as caught:
        local_copy("s3://bucket/x")
    assert "remote" in str(caught.value.hint)
