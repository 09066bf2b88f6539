"""Text files as people have them: the encoding is declared, or found and said; what is no text is named."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.readers.text_files import find_encoding, read_lines, read_text

WESTERN = "The café's “naïve” façade cost 5 € in all.\n" * 3


@pytest.mark.parametrize(
    ("raw", "text", "said"),
    [
        (b"plain\r\ntext\r\n", "plain\ntext\n", ""),
        ("Grüße, мир".encode(), "Grüße, мир", ""),
        ("marked é".encode("utf-8-sig"), "marked é", ""),
        (WESTERN.encode("utf-16"), WESTERN, ""),
        (WESTERN.encode("utf-32"), WESTERN, ""),
        (WESTERN.encode("utf-16-le"), WESTERN, "read as utf-16-le"),
        (WESTERN.encode("utf-16-be"), WESTERN, "read as utf-16-be"),
        (WESTERN.encode("cp1252"), WESTERN, "not UTF-8 (byte 7 is 0xe9), read as cp1252"),
        (b"caf\xe9 and a control \x81", "café and a control \x81", "read as latin-1"),
        (b"cut in a character \xc3", "cut in a character Ã", "byte 19 is 0xc3"),
        (b"", "", ""),
    ],
)
def test_an_encoding_is_found_and_a_guess_is_said(raw: bytes, text: str, said: str, tmp_path: Path) -> None:
    file, notes = tmp_path / "a.txt", list[str]()
    file.write_bytes(raw)
    assert read_text(file, "auto", notes) == text
    assert len(notes) == bool(said) and said in "".join(notes)


def test_a_real_file_that_is_not_utf_8_is_found(data_dir: Path) -> None:
    """Called Latin-1 where it comes from; its dashes are Windows-1252."""
    file, notes = data_dir / "rt-polarity" / "rt-polarity.pos", list[str]()
    lines = read_lines(file, "auto", notes)
    assert len(lines) == 5331 and "songs — a few potential hits" in lines[57] and "read as cp1252" in notes[0]


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")), st.integers(1, 7))
def test_blocks_cut_no_character(text: str, size: int) -> None:
    raw = text.encode()
    blocks = [raw[i : i + size] for i in range(0, len(raw), size)]
    found, note = find_encoding(Path("x"), blocks)
    assert not note and (found == "utf-8" or raw[:2] in (b"\xff\xfe", b"\xfe\xff"))


@pytest.mark.parametrize(
    ("raw", "encoding", "said"),
    [
        ("Привет, мир".encode("koi8-r"), "auto", "are not ASCII; expected an explicit encoding"),
        ("日本語の文章".encode("shift_jis"), "auto", "are not ASCII"),
        (b"text \0 with a zero", "auto", "1 of its 18 bytes are NUL"),
        (b"text \0 with a zero", "utf-8", "character 5 is NUL"),
        (b"caf\xe9", "utf-8", "not utf-8: byte 3 is 0xe9"),
        (b"odd", "utf-16", "not utf-16: byte 2 is 0x64"),
        (b"x", "klingon", "unknown encoding 'klingon'"),
        (b"x", "hex", "unknown encoding 'hex'"),
        (b"x", "a\0b", "unknown encoding"),
    ],
)
def test_what_is_no_text_of_that_encoding_is_named(raw: bytes, encoding: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(raw)
    with pytest.raises(InputError) as caught:
        read_text(tmp_path / "a.txt", encoding)
    assert said in caught.value.line and len(caught.value.line) <= 200


def test_a_gzipped_text_and_a_damaged_one(tmp_path: Path) -> None:
    file = tmp_path / "a.txt.gz"
    file.write_bytes(gzip.compress(b"hello\n" * 1000))
    assert read_lines(file) == ["hello"] * 1000
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(InputError, match="cannot read"):
        read_text(file)
