"""The checkpoint file: durable before it has its name, held to its schema and to a digest that mixes nothing up."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from bigmodel_cli.core.errors import InputError, MachineError
from bigmodel_cli.engine.checkpoint import checkpoint, sharded

META = {
    "arch": "mlp", "arch_args": {}, "task": "image_classification", "classes": ["a"], "input": {}, "data": {},
    "recipe": {}, "env": {}, "created": 1.0,
}  # fmt: skip


def state(**changed: Any) -> dict[str, Any]:
    whole = {
        "format": "bigmodel.checkpoint", "version": 1, "model": {"w": torch.arange(6.0).view(2, 3)}, "model_ema": None,
        "optimizer": {}, "scheduler": None, "scaler": None, "progress": {"step": 3}, "rng": {}, "meta": META,
    }  # fmt: skip
    return {**whole, **changed}


def sealed(path: Path, content: dict[str, Any]) -> Path:
    """`content` as a file with the right digest, whatever it lacks."""
    integrity = {"algo": "sha256", "digest": checkpoint.digest(content)}
    torch.save({**content, "integrity": integrity}, path)
    return path


def test_what_is_saved_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """fsync of the file, rename, fsync of the folder: else a power cut leaves an empty file under the name."""
    done: list[tuple[str, int]] = []
    real_sync, real_replace = os.fsync, os.replace

    def fsync(descriptor: int) -> None:
        done.append(("sync", os.fstat(descriptor).st_ino))
        assert os.fstat(descriptor).st_size > 0  # nothing waits in Python's own buffer
        real_sync(descriptor)

    def replace(source: Any, target: Any) -> None:
        done.append(("rename", os.stat(source).st_ino))  # noqa: PTH116
        real_replace(source, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)
    checkpoint.save(tmp_path / "last.pt", state())
    file, folder = (tmp_path / "last.pt").stat().st_ino, tmp_path.stat().st_ino
    assert done == [("sync", file), ("rename", file), ("sync", folder)]


def test_a_save_that_nobody_wants_ends_and_leaves_the_old_file(tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "last.pt", state())
    asked: list[int] = []

    def abandoned() -> bool:
        asked.append(1)
        return len(asked) > 3  # in the middle of the file

    big = state(model={str(i): torch.ones(10_000) for i in range(9)})
    with pytest.raises(MachineError):
        checkpoint.save(tmp_path / "last.pt", big, abandoned)
    assert len(asked) > 3 and [p.name for p in tmp_path.iterdir()] == ["last.pt"]
    assert checkpoint.load(tmp_path / "last.pt")["model"].keys() == {"w"}


@pytest.mark.parametrize("value", [None, 3], ids=["missing", "of another type"])
@pytest.mark.parametrize("key", [*checkpoint.SCHEMA, *(f"meta.{key}" for key in checkpoint.META)])
def test_every_field_is_there_and_of_its_type(key: str, value: Any, tmp_path: Path) -> None:
    """In a file whose digest is right: somebody made it so."""
    content: dict[str, Any] = state(meta=dict(META))
    section, _, inner = key.rpartition(".")
    into = content[section] if section else content
    if value is None:
        into.pop(inner, None)
    else:
        into[inner] = [3] if key in ("version", "meta.created") else b"x" if key == "integrity" else value
    if key == "integrity":
        torch.save({**content, **({} if value is None else {"integrity": 3})}, tmp_path / "x.pt")
    else:
        sealed(tmp_path / "x.pt", content)
    with pytest.raises(InputError) as caught:
        checkpoint.load(tmp_path / "x.pt")
    assert caught.value.what.startswith(str(tmp_path / "x.pt"))
    if key not in ("format", "version"):
        assert inner in caught.value.what or value is not None


@pytest.mark.parametrize("version", [0, -1, True, "1", None, 2], ids=repr)
def test_versions_that_there_never_were_are_refused(version: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError):
        checkpoint.load(sealed(tmp_path / "x.pt", state(version=version)))


@pytest.mark.parametrize("content", [[1, 2], torch.ones(3), {"w": torch.ones(2)}], ids=["list", "tensor", "state dict"])
def test_what_others_saved_is_foreign_and_yet_readable(content: Any, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(InputError):
        checkpoint.load(tmp_path / "x.pt")
    assert checkpoint.digest(checkpoint.read(tmp_path / "x.pt")) == checkpoint.digest(content)


def in_parts(folder: Path, value: Any) -> Path:
    folder.mkdir()
    plain, tensors = sharded.split_state(value, lambda tensor: None, True)
    sharded.write_shard(folder, 0, tensors)
    sharded.write_index(folder, plain, 1, 10, lambda: False)
    return folder


def test_one_in_parts_is_held_to_the_same_schema(tmp_path: Path) -> None:
    version, found = checkpoint.load_with_version(in_parts(tmp_path / "good", state()))
    assert version == 1 and checkpoint.digest(found) == checkpoint.digest(state())
    lacking = {k: v for k, v in META.items() if k != "classes"}
    for i, broken in enumerate(
        ([torch.ones(2)], state(meta=lacking), {k: v for k, v in state().items() if k != "rng"})
    ):
        with pytest.raises(InputError):
            checkpoint.load(in_parts(tmp_path / str(i), broken))


DIFFERENT: list[Any] = [
    None, "None", True, "True", 1, "1", 1.0, 0, False, 0.0, -0.0, "", [], (), {}, [1], (1,), {1: 1}, {"1": 1}, {1: "1"},
    [[1], 2], [1, [2]], [1, 2], ["1", "2"], ["12"], "12", {"a": 1, "b": 2}, {"a": 2, "b": 1}, {"a": {"b": 2}}, "\ud800",
    torch.zeros(2), torch.zeros(2, 1), torch.zeros(1, 2), torch.zeros(2, dtype=torch.int32), torch.zeros(2).bfloat16(),
    torch.zeros(0), torch.zeros(0, 2), torch.tensor(0.0), torch.tensor(-0.0), torch.tensor([0.0, 1.0]), [0.0, 0.0],
    float("inf"), torch.tensor([1.0, 0.0]), 10**30,
]  # fmt: skip


def test_no_two_values_have_one_digest() -> None:
    assert len({checkpoint.digest(value) for value in DIFFERENT}) == len(DIFFERENT)


def test_one_value_has_one_digest_however_it_lies_in_memory() -> None:
    one = {"a": torch.arange(6.0).view(2, 3), "b": [1, (2.5, None)], 3: "x"}
    turned = torch.arange(6.0).view(2, 3).t().contiguous().t()  # the same numbers, column by column
    assert not turned.is_contiguous()
    assert checkpoint.digest({3: "x", "b": [1, (2.5, None)], "a": turned}) == checkpoint.digest(one)
    assert checkpoint.digest(torch.nn.Parameter(one["a"])) == checkpoint.digest(one["a"])  # type: ignore[arg-type]
    assert len(checkpoint.digest(one)) == 64 and int(checkpoint.digest(one), 16) > 0


class Text(str):
    pass


@pytest.mark.parametrize(
    "value",
    [{1.5: 1}, {(1,): 1}, {True: 1}, {None: 1}, Text("x"), b"x", {1}, range(2), object()],
    ids=lambda value: "object" if type(value) is object else repr(value),
)
def test_what_does_not_belong_is_never_written(value: Any, tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        checkpoint.save(tmp_path / "x.pt", state(progress={"deep": [value]}))
    assert list(tmp_path.iterdir()) == []


def test_keys_of_both_types_and_half_characters_come_back(tmp_path: Path) -> None:
    kept = {"b": 1, 2: "x", "a": "\ud800", 1: float("inf")}
    checkpoint.save(tmp_path / "x.pt", state(progress=kept))
    found = checkpoint.load(tmp_path / "x.pt")
    assert found["progress"] == kept and "integrity" not in found


def made(path: Path, step: Any, created: float = 1.0, written: float = 1.0) -> None:
    sealed(path, state(progress={"step": step, "epoch": 1}, meta={**META, "created": created}))
    os.utime(path, (written, written))


def newest(folder: Path) -> str:
    return checkpoint.newest_valid(folder).path.name


def test_of_two_at_one_step_the_last_is_gone_on_with(tmp_path: Path) -> None:
    for names in (("best.pt", "last.pt"), ("last.pt", "best.pt")):
        for name in names:
            made(tmp_path / name, 5)
        assert newest(tmp_path) == "last.pt"


def test_progress_decides_and_no_clock(tmp_path: Path) -> None:
    """The clock of a machine may be set back between two saves, and a copy has new times."""
    made(tmp_path / "best.pt", 4000, created=9000.0, written=9000.0)
    made(tmp_path / "last.pt", 4005, created=5400.0, written=5400.0)
    assert newest(tmp_path) == "last.pt"
    made(tmp_path / "last.pt", 3999, created=9999.0, written=9999.0)  # negative control: neither does the name
    assert newest(tmp_path) == "best.pt"


def test_one_that_does_not_tell_its_progress_is_named(tmp_path: Path) -> None:
    made(tmp_path / "a.pt", 7)
    (tmp_path / "b.pt").write_bytes(b"not a checkpoint")
    (tmp_path / "d.pt").symlink_to(tmp_path / "nowhere")
    found = checkpoint.newest_valid(tmp_path)
    assert found.path.name == "a.pt" and {path.name for path, _ in found.skipped} == {"b.pt", "d.pt"}


def test_each_that_was_passed_over_is_told_and_none_at_all_is_an_error(tmp_path: Path) -> None:
    for i, name in enumerate("abc"):
        made(tmp_path / f"{name}.pt", i)
    for name in "bc":
        raw = bytearray((tmp_path / f"{name}.pt").read_bytes())
        raw[len(raw) // 3] ^= 1
        (tmp_path / f"{name}.pt").write_bytes(raw)
    path, found, skipped = checkpoint.newest_valid(tmp_path)
    assert path.name == "a.pt" and found["progress"]["step"] == 0
    assert len(skipped) == 2 and {name for name in "abc" for _, line in skipped if f"{name}.pt" in line} == {"b", "c"}
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError) as caught:
        checkpoint.newest_valid(tmp_path / "empty")
    assert caught.value.exit_code == 2 and caught.value.hint


@pytest.mark.parametrize(
    "make", [lambda: state(), lambda: [torch.ones(3).half(), (torch.ones(2, 2).double(), 5)]], ids=["state", "lists"]
)
def test_the_size_is_that_of_the_bytes_of_all_tensors(make: Callable[[], Any]) -> None:
    value = make()
    tensors = [value["model"]["w"]] if isinstance(value, dict) else [value[0], value[1][0]]
    assert checkpoint.tensor_bytes(value) == sum(t.numpy().nbytes for t in tensors) > 0


def test_a_safetensors_file_is_read_too(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"w": torch.arange(4.0)}, tmp_path / "x.safetensors")
    assert torch.equal(checkpoint.read(tmp_path / "x.safetensors")["w"], torch.arange(4.0))


def test_a_damaged_file_of_others_which_has_no_digest_is_refused_too(tmp_path: Path) -> None:
    """torch.load does not look at the checksums of the zip file."""
    path = tmp_path / "x.pt"
    torch.save({"w": torch.ones(1000)}, path)
    raw = bytearray(path.read_bytes())
    raw[raw.index(torch.ones(20).numpy().tobytes()) + 6] ^= 1  # within the numbers
    path.write_bytes(raw)
    assert not torch.load(path)["w"].eq(1).all()
    with pytest.raises(InputError):
        checkpoint.read(path)


def test_what_torch_itself_will_not_read_is_bad_input(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(2)}, tmp_path / "x.pt")
    with zipfile.ZipFile(tmp_path / "x.pt") as old, zipfile.ZipFile(tmp_path / "y.pt", "w") as new:
        for entry in old.infolist():
            odd = entry.filename.endswith("byteorder")
            new.writestr(entry.filename, b"middle" if odd else old.read(entry))
    with pytest.raises(InputError) as caught:
        checkpoint.read(tmp_path / "y.pt")
    assert caught.value.exit_code == 2 and "weights_only" not in caught.value.line
