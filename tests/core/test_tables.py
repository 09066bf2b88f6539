"""Tables as programs write them are read as they meant them: Python's csv, pandas and json are the oracles."""

from __future__ import annotations

import csv
import gzip
import io
import json
from pathlib import Path
from typing import Any

import pandas
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.readers.columns import choose_columns, read_columns
from bigmodel_cli.core.readers.tables import as_text, open_table

CELL = st.text(st.characters(exclude_characters="\0\x1a", exclude_categories=("Cs",)), max_size=12).filter(
    lambda text: text.strip() and text == text.strip()
)
RETURNS = CELL.filter(lambda text: "\r" not in text)  # pandas does not quote them where lines end in \n
ROWS = st.lists(st.tuples(CELL, CELL), min_size=1, max_size=8)
QUICK = settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def read(path: Path, roles: tuple[str, ...] = ("text", "label"), **options: Any) -> list[tuple[Any, ...]]:
    return [tuple(values) for _, values in open_table(path, roles, **options).rows(*roles)]


@QUICK
@given(ROWS, st.sampled_from(",;|"), st.sampled_from([csv.QUOTE_ALL, csv.QUOTE_MINIMAL]), st.booleans())
def test_what_pythons_csv_writes(
    tmp_path: Path, rows: list[tuple[str, str]], separator: str, how: Any, z: bool
) -> None:
    out = io.StringIO(newline="")
    csv.writer(out, delimiter=separator, quoting=how).writerows([("text", "label"), *rows])
    path = tmp_path / ("a.csv.gz" if z else "a.csv")
    path.write_bytes(gzip.compress(out.getvalue().encode()) if z else out.getvalue().encode())
    assert read(path, encoding="utf-8") == rows
    assert rows == [
        tuple(row) for row in list(csv.reader(io.StringIO(out.getvalue(), newline=""), delimiter=separator))[1:]
    ]


@QUICK
@given(
    st.lists(st.tuples(RETURNS, RETURNS), min_size=1, max_size=8),
    st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-32"]),
    st.sampled_from(["\n", "\r\n"]),
)
def test_what_pandas_writes_and_reads(tmp_path: Path, rows: list[tuple[str, str]], encoding: str, newline: str) -> None:
    path = tmp_path / "a.csv"
    frame = pandas.DataFrame(rows, columns=["Text", "Label"])
    frame.to_csv(path, index=True, encoding=encoding, lineterminator=newline)
    again = pandas.read_csv(path, encoding=encoding, dtype=str, keep_default_na=False)
    # Without a name for it, the index is a column without a name, which is no one's label.
    assert read(path) == list(zip(again["Text"], again["Label"], strict=True))


@QUICK
@given(st.lists(st.tuples(RETURNS, RETURNS), min_size=1, max_size=8), st.booleans())
def test_tabs_as_pandas_quotes_them(tmp_path: Path, rows: list[tuple[str, str]], everything: bool) -> None:
    """A program that quotes doubles each quotation mark; then the cells are as it meant them."""
    rows = [('he said "so"\tand\nleft', "yes"), *rows]
    path = tmp_path / "a.tsv"
    how = csv.QUOTE_ALL if everything else csv.QUOTE_MINIMAL
    pandas.DataFrame(rows, columns=["text", "label"]).to_csv(path, sep="\t", index=False, quoting=how)
    back = pandas.read_csv(path, sep="\t", dtype=str, keep_default_na=False)
    assert read(path, encoding="utf-8") == list(back.itertuples(index=False, name=None))


PLAIN = st.text(st.characters(exclude_characters="\0\t\n\r\x1a", exclude_categories=("Cs",)), min_size=1, max_size=12)


@QUICK
@given(st.lists(st.tuples(PLAIN, PLAIN), min_size=1, max_size=8))
def test_tabs_without_quoting(tmp_path: Path, rows: list[tuple[str, str]]) -> None:
    """As corpora are written: each line a row, a quotation mark a character; csv with QUOTE_NONE reads them so."""
    rows = [('"an opening one', "alone"), *rows, ('in the mid"dle', "of it")]
    text = "text\tlabel\n" + "".join(f"{a}\t{b}\n" for a, b in rows)
    path = tmp_path / "a.tsv"
    path.write_bytes(text.encode())
    oracle = list(csv.reader(io.StringIO(text, newline=""), delimiter="\t", quoting=csv.QUOTE_NONE))[1:]
    kept = [tuple(row) for row in oracle if any(cell.strip() for cell in row)]
    assert read(path, encoding="utf-8") == kept


VALUE = st.one_of(CELL, st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.booleans(), st.lists(CELL))


@QUICK
@given(st.lists(st.tuples(CELL, VALUE), min_size=1, max_size=6), st.sampled_from(["lines", "array", "wrapped"]))
def test_json_in_each_form_is_as_json_has_it(tmp_path: Path, rows: list[tuple[str, Any]], form: str) -> None:
    objects = [{"text": text, "label": label} for text, label in rows]
    path = tmp_path / "a.json"
    content: Any = {"data": objects, "version": 1} if form == "wrapped" else objects
    lines = "\n".join(json.dumps(row, ensure_ascii=False) for row in objects)
    path.write_text(lines if form == "lines" else json.dumps(content), encoding="utf-8")
    assert [list(row) for row in read(path)] == [[row["text"], row["label"]] for row in json.loads(json.dumps(objects))]


TOLD = [
    ("a.csv", "text,label\na,b\nc,d,e\n", ":3: 3 cells; the header has 2"),
    ("a.csv", "text,label\na,b\nc\n", ":3: 1 cell; the header has 2"),
    ("a.tsv", "text\tlabel\na\tb\tc\n", ":2: 3 cells; the header has 2"),
    ("a.csv", 'text,label\n"a,b\nc,d\n', ":2: a quotation mark opens a text and none closes it"),
    ("a.csv", 'text,label\n"a" b,c\n', ":2: text after a closing quotation mark"),
    ("a.csv", "text,text,label\na,b,c\n", "columns 1 and 2 are both called 'text'"),
    ("a.csv", "v1,v2\na,b\n", ":1: no column text or label; it has v1, v2"),
    ("a.csv", "\n\n", "it is empty"),
    ("a.json", "[]", "it is empty"),
    ("a.json", '[{"text": "a", "label": "b"}, {"text": "c"}]', ":2: no 'label'"),
    ("a.json", '[{"text": "a", "label": "b"}, 3]', ":2: a number; expected an object"),
    ("a.json", '{"text": "a", "labels": [', "not JSON"),
]


@pytest.mark.parametrize(("name", "text", "words"), TOLD)
def test_what_does_not_fit_is_named_with_its_line(name: str, text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError) as caught:
        read(tmp_path / name)
    assert words in caught.value.line and len(caught.value.line) <= 200


SAID = [
    ("a.csv", "\n\ntext,label\na,b\n", [("a", "b")], ""),
    ("a.csv", "sep=;\ntext;label\na;b\n", [("a", "b")], "semicolons"),
    ("a.csv", "text\tlabel\na, b\tc\n", [("a, b", "c")], "tabs"),
    ("a.tsv", "text,label\na,b\n", [("a", "b")], "commas"),
    ("a.csv", "TEXT , Label\na, b\n", [("a", " b")], ""),
    ("a.csv", "text,label,,\na,b,,\n,,,\n", [("a", "b")], "1 empty row not used"),
    ("a.csv", "title,text,label\nt,a,b\n", [("a", "b")], "columns not used: title"),
    ("a.csv", "id,review,sentiment\n1,a,b\n", [("a", "b")], "columns not used: id"),
    ("a.csv", "text,mood\na,b\n", [("a", "b")], "label: the column 'mood', the only other one"),
    ("a.tab", 'text\tlabel\n5" long\tb\n', [('5" long', "b")], "quotation marks are read as text"),
]


@pytest.mark.parametrize(("name", "text", "rows", "words"), SAID)
def test_what_was_decided_is_said(name: str, text: str, rows: list[Any], words: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    notes: list[str] = []
    assert read(tmp_path / name, notes=notes) == rows
    assert words in " ".join(notes) and bool(words) == bool(notes)


def test_a_table_without_a_header_by_numbers(tmp_path: Path) -> None:
    """AG News as it is published."""
    (tmp_path / "a.csv").write_text('"3","Wall St.","Short ""sellers"""\n"4","Sky","A, comma"\n')
    found = read(tmp_path / "a.csv", given=read_columns("label=1,text=2+3"))
    assert found == [('Wall St. Short "sellers"', "3"), ("Sky A, comma", "4")]
    (tmp_path / "b.csv").write_text("label,text\n3,a\n")  # a header all the same
    assert read(tmp_path / "b.csv", given=read_columns("label=1,text=2")) == [("a", "3")]
    with pytest.raises(InputError, match="names column 4"):
        read(tmp_path / "a.csv", given={"label": "1", "text": "4"})


def test_columns_by_name(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("Doc Id,the title,body+more,kind\n1,t,b,k\n")
    assert read(tmp_path / "a.csv", given=read_columns("text=The Title+kind,label=Doc Id")) == [("t k", "1")]
    assert read(tmp_path / "a.csv", given={"text": "body+more", "label": "kind"}) == [("b", "k")]
    with pytest.raises(InputError, match="no column 'genre'"):
        read(tmp_path / "a.csv", given={"text": "body+more", "label": "genre"})
    with pytest.raises(InputError, match="expected ROLE=COLUMN"):
        read_columns("text")
    with pytest.raises(InputError, match="expected text, label here"):
        choose_columns("x", ["text", "label"], ["text", "label"], {"image": "text"})


def test_a_cell_as_text() -> None:
    assert [as_text(value, "x", "y") for value in ("a", 3, 3.0, 2.5, -1e300)] == ["a", "3", "3", "2.5", "-1e+300"]
    for value in (None, True, [1], {}, "\ud800", "a\0"):
        with pytest.raises(InputError, match="x: y"):
            as_text(value, "x", "y")
