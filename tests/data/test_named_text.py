"""The named texts: downloaded whole with their checksum, or asked for; and the same as where they lie already."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from web import folder_served

from bigmodel_cli.core.errors import InputError, MachineError
from bigmodel_cli.core.registry import data


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that is served as the mirror of every download."""
    folder = tmp_path / "mirror"
    folder.mkdir()
    with folder_served(folder) as address:
        monkeypatch.setenv("BIGMODEL_MIRROR", address)
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        yield folder


@pytest.mark.parametrize("name", ["tinyshakespeare", "multi30k-en-de"])
def test_a_missing_text_is_downloaded_with_its_checksum(
    name: str, mirror: Path, tmp_path: Path, data_dir: Path
) -> None:
    for file in (data_dir / name).iterdir():
        shutil.copyfile(file, mirror / file.name)  # the files there are read-only
    options = {} if name == "tinyshakespeare" else {"tokenizer": "word"}
    fetched = data.get(name)(tmp_path / "data", **options)
    assert fetched.fingerprint == data.get(name)(data_dir, **options).fingerprint
    first = sorted(mirror.iterdir())[0]
    first.write_bytes(first.read_bytes()[:-1] + b"?")
    with pytest.raises(MachineError):
        data.get(name)(tmp_path / "again", **options)
    assert first.name not in [p.name for p in (tmp_path / "again").rglob("*")]


def test_what_is_not_downloaded_says_where_it_is(mirror: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"rt-polarity\.neg: no such file; it is not downloaded") as caught:
        data.get("rt-polarity")(tmp_path)
    assert "rt-polaritydata.tar.gz" in str(caught.value.hint)
