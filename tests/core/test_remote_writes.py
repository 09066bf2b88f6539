"""``--out`` at an address of fsspec: sent as it changes, resumed elsewhere, never over another's; and by S3."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fake_s3 import Objects

from bigmodel_cli.core.errors import InputError, MachineError
from bigmodel_cli.core.files import remote_writes
from bigmodel_cli.core.files.remote_writes import written_copy

RUN = "memory://bucket/run"


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setenv("BIGMODEL_CACHE", str(tmp_path / "here"))
    monkeypatch.setattr(remote_writes, "SCAN_SECONDS", 0.01)
    system = fsspec.filesystem("memory")
    yield system
    system.store.clear()
    system.pseudo_dirs[:] = [""]


def there(system: Any) -> dict[str, bytes]:
    return {name.removeprefix("/bucket/run/"): bytes(file.getvalue()) for name, file in list(system.store.items())}


def write(copy: Path, **files: str) -> None:
    copy.mkdir(exist_ok=True)
    for name, text in files.items():
        (copy / name.replace("_", ".")).write_text(text)


def test_what_is_written_is_sent_and_another_machine_goes_on_with_it(
    store: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order, put = [], type(store).put_file
    record = lambda self, here, target, **o: (order.append(target), put(self, here, target, **o))[1]  # noqa: E731
    monkeypatch.setattr(type(store), "put_file", record)
    with written_copy(RUN, print) as copy:
        write(copy, status_json="running", last_pt="1", run_lock="held")
        (copy / ".last.pt.123.tmp").write_text("half")
        while "status.json" not in there(store):  # while the command works
            pass
        write(copy, status_json="done", last_pt="22")
        (copy / "parts").mkdir()
        (copy / "parts/a").write_text("b")
    assert there(store) == {"status.json": b"done", "last.pt": b"22", "parts/a": b"b"}
    assert order[-1].endswith("status.json")
    monkeypatch.setenv("BIGMODEL_CACHE", str(tmp_path / "elsewhere"))
    with written_copy(RUN, print) as copy:
        assert (copy / "last.pt").read_text() == "22" and (copy / "parts/a").read_text() == "b"
        (copy / "parts/a").unlink()
        write(copy, last_pt="333")
    assert there(store) == {"status.json": b"done", "last.pt": b"333"}
    monkeypatch.setenv("BIGMODEL_CACHE", str(tmp_path / "here"))
    with written_copy(RUN, print) as copy:  # what was changed elsewhere counts, not the copy
        assert (copy / "last.pt").read_text() == "333" and not (copy / "parts/a").exists()
    assert not list(copy.parent.glob("unsent-*")), "nothing was lost"


def test_what_could_not_be_sent_is_kept_and_sent_the_next_time(store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []

    def full(*given: Any, **options: Any) -> None:
        raise PermissionError("no writing today")

    with monkeypatch.context() as broken:
        broken.setattr(type(store), "put_file", full)
        with (
            pytest.raises(MachineError, match=f"{RUN}: PermissionError") as caught,
            written_copy(RUN, said.append) as copy,
        ):
            write(copy, last_pt="1")
            while not said:
                pass
    assert len(said) == 1 and "tried again" in said[0] and str(copy.parent) in str(caught.value.hint)
    with written_copy(RUN, said.append):
        pass
    assert there(store) == {"last.pt": b"1"} and len(said) == 1


def test_two_writers(store: Any) -> None:
    with written_copy(RUN, print) as copy:
        write(copy, last_pt="1")
        with pytest.raises(MachineError, match="another process is writing to it"), written_copy(RUN, print):
            raise AssertionError
    with pytest.raises(MachineError, match="another process has written it"), written_copy(RUN, print) as copy:
        store.pipe("/bucket/run/last.pt", b"theirs")
        write(copy, last_pt="ours")
    assert there(store) == {"last.pt": b"theirs"}
    said: list[str] = []
    with written_copy(RUN, said.append) as copy:
        assert (copy / "last.pt").read_text() == "theirs"
    (kept,) = copy.parent.glob("unsent-*")
    assert (kept / "last.pt").read_text() == "ours"
    assert len(said) == 1 and "since last.pt could not be sent" in said[0] and str(kept) in said[0]


def test_the_error_of_the_command_is_the_one_that_is_told(store: Any) -> None:
    with pytest.raises(InputError, match="a flag"), written_copy(RUN, print) as copy:
        write(copy, status_json="failed")
        raise InputError("a flag")
    assert there(store) == {"status.json": b"failed"}


def test_a_run_at_s3_is_trained_resumed_elsewhere_read_and_exported(run_cli: Any, tmp_path: Path) -> None:
    pytest.importorskip("s3fs", reason="needs the extra remote")
    with Objects() as service:
        place = {"AWS_ENDPOINT_URL": service.address, "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "hunter22"}
        place |= {"AWS_DEFAULT_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true"}
        cache = [{"BIGMODEL_CACHE": str(tmp_path / name)} for name in ("first", "second")]

        def run(which: int, *arguments: str, ends: int = 0) -> Any:
            done = run_cli(*arguments, variables=place | cache[which])
            assert done.returncode == ends, done.stderr
            written = "--out" in arguments  # then its place is told as the address
            assert "warning" not in done.stderr and not (written and str(tmp_path) in done.stdout + done.stderr)
            return done

        train = ("train", "mlp", "--data", "digits", "--precision", "fp32")
        first = run(0, *train, "--epochs", "1", "--out", "s3://bucket/runs/a")
        assert "best checkpoint: s3://bucket/runs/a/best.pt" in first.stdout
        names = {key.removeprefix("bucket/runs/a/") for key in service.objects}
        assert {"best.pt", "last.pt", "recipe.yaml", "metrics.jsonl", "status.json", "report.html"} <= names
        assert json.loads(service.objects["bucket/runs/a/status.json"])["checkpoint"] == "s3://bucket/runs/a/best.pt"
        refused = run(1, *train, "--out", "s3://bucket/runs/a", ends=2)
        assert "the folder is not empty" in refused.stderr and "--resume to continue" in refused.stderr
        run(1, "train", "--resume", "--out", "s3://bucket/runs/a", "--epochs", "2")
        events = [json.loads(line) for line in service.objects["bucket/runs/a/metrics.jsonl"].splitlines()]
        assert [event["epoch"] for event in events if event["event"] == "epoch"] == [1, 2]
        run(0, "eval", "s3://bucket/runs/a", "--json")
        exported = run(
            0, "export", "s3://bucket/runs/a", "--format", "safetensors", "--seconds", 0, "--out", "s3://bucket/shipped"
        )
        assert "bucket/shipped/model.safetensors" in service.objects and "s3://bucket/shipped" in exported.stdout
        service.fails = True
        unsent = run_cli(*train, "--epochs", "1", "--out", "s3://bucket/b", variables=place | cache[0])
        assert unsent.returncode == 3 and "not all was sent" in unsent.stderr and "hunter22" not in unsent.stderr
