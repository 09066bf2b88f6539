"""Recipes: YAML without its traps, and no text at all that ends in a traceback."""

from __future__ import annotations

import random
import time
from pathlib import Path
from typing import Any

import figures
import pytest

from bigmodel_cli.core.errors import BigmodelError, InputError
from bigmodel_cli.core.recipe import Recipe
from bigmodel_cli.core.registry import models
from bigmodel_cli.core.resolve import Layer, document_layer, resolve, set_layer
from bigmodel_cli.core.strict_yaml import parse_scalar, parse_yaml, read_yaml

ROOT = Path(__file__).resolve().parents[2]
FILES = [path.read_bytes() for path in sorted(ROOT.glob("recipes/**/*.yaml"))]
SEEDS = [raw for raw in FILES if b"\nruns:" not in raw]  # a study is no recipe, and train refuses every one

FACTS: list[tuple[str, Any]] = [
    ("1e-3", 0.001), ("1E5", 1e5), ("-.5", -0.5), (".inf", float("inf")), ("5", 5), ("-0", 0),
    ("no", "no"), ("yes", "yes"), ("on", "on"), ("Off", "Off"), ("y", "y"), ("true", True), ("False", False),
    ("1:30", "1:30"), ("010", "010"), ("0x10", "0x10"), ("0o10", "0o10"), ("1_000", "1_000"),
    ("2024-01-01", "2024-01-01"), ("null", None), ("~", None), ("", None), ("=", "="), ("<<", "<<"),
    ("$HOME", "$HOME"), ("${HOME}", "${HOME}"), ("`id`", None), ("os.system", "os.system"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "value"), FACTS)
def test_what_a_scalar_is(text: str, value: Any) -> None:
    if text == "`id`":  # YAML reserves the sign
        with pytest.raises(InputError):
            parse_yaml(f"a: {text}")
        return
    found = parse_yaml(f"a: {text}").values["a"]
    assert type(found) is type(value) and found == value
    assert text in ("", "~") or parse_scalar(text) == value


@pytest.mark.parametrize("mark", [",", "|", ";", "-", "&", " ", "\t"])
def test_a_lone_mark_is_itself_where_it_is_typed(mark: str) -> None:
    assert set_layer([f"data.separator={mark}"]).values == {"data": {"separator": mark}}


REFUSED = [
    ("a: &x 1\nb: *x\n", "anchors and aliases"),
    ("a: &x [1]\n", "anchors and aliases"),
    ("a: {<<: 3, <<: 4}\n", "duplicate key"),
    ("a: 1\nb: 2\na: 3\n", "x.yaml:3: duplicate key 'a'"),
    ("a: {b: 1, b: 2}\n", "x.yaml:1: duplicate key 'b'"),
    ("a: !!python/object/apply:os.system ['touch canary']\n", "tag"),
    ("a: !!int '3'\n", "tag"),
    ("!include x: 1\n", "tag"),
    ("? [1, 2]\n: 3\n", "a key is not text"),
    ("1: 2\n", "a key is not text"),
    ("a: " + "[" * 40 + "]" * 40, "nested deeper than 32"),
    ("a: " + "{b: " * 5000, "nested deeper than 32"),
    ("a: 1\n---\nb: 2\n", "expected a single document"),
    ("- 1\n- 2\n", "not a mapping"),
    ("a: \x01\n", "not YAML"),
    ("a: 'x\n", "x.yaml"),
    ("\ta: 1\n", "x.yaml:1"),
    ("a: " + "9" * 400 + "\n", "is too large"),
    ("a: '" + "x" * 300_000 + "'", "larger than"),
    ("a: [" + "1," * 20_000 + "1]\n", "more than 20000 names, values and brackets"),
    ("%YAML 9.9\n---\na: 1\n", "x.yaml:1"),
]


@pytest.mark.parametrize(("text", "message"), REFUSED, ids=[m for _, m in REFUSED])
def test_what_is_refused(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text(text)
    began = time.monotonic()
    with pytest.raises(InputError) as caught:
        read_yaml(tmp_path / "x.yaml")
    assert message in caught.value.line.replace(str(tmp_path) + "/", "") and len(caught.value.line) <= 200
    assert not Path("canary").exists() and time.monotonic() - began < 30


def test_an_alias_bomb_of_300_bytes_is_refused_at_once(tmp_path: Path) -> None:
    bomb = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
        f"{b}: &{b} [{','.join(['*' + a] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
    )
    (tmp_path / "x.yaml").write_text(bomb)
    with pytest.raises(InputError, match="anchors and aliases"):
        read_yaml(tmp_path / "x.yaml")


TOKENS = [
    b"&a ", b"*a", b"!!python/name:os.system ", b"<<: ", b"- ", b"? ", b": ", b"[", b"]", b"{", b"}", b"|\n", b">\n",
    b"'", b'"', b"#", b"\t", b"\0", b"\xff\xfe", b"\x1b[31m", b"\r", b"\xe2\x80\xae", b"%", b"@", b"---\n", b"...\n",
    b"1e999", b"-1", b"nan", b".nan", b"9" * 30, b"null", b"true", b"model:\n", b"name: ", b"train:\n  epochs: ",
    b"model: {name: mlp, hidden: [99999999999]}\n", b"data: {dir: /dev/zero}\n", b"start: {checkpoint: /dev/zero}\n",
]  # fmt: skip


def mutated(rng: random.Random) -> bytes:
    raw = bytearray(rng.choice(SEEDS))
    for _ in range(rng.choice((1, 1, 2, 4, 6))):  # one is often survived, more seldom
        at, kind = rng.randrange(len(raw) + 1), rng.randrange(5)
        if kind == 0 and raw:
            raw[at % len(raw)] = rng.randrange(256)
        elif kind == 1:
            raw[at:at] = rng.choice(TOKENS)
        elif kind == 2:
            del raw[at : at + rng.randint(1, 30)]
        elif kind == 3:
            raw[at:at] = raw[rng.randrange(len(raw) + 1) :][: rng.randint(1, 60)]
        else:
            lines = bytes(raw).split(b"\n")
            rng.shuffle(lines)
            raw = bytearray(b"\n".join(lines))
    return bytes(raw)


def test_mutations_end_in_a_recipe_or_in_one_line(tmp_path: Path) -> None:
    """5,000 in a soak: any exception but InputError fails, as would a line too long or a sign that does not print."""
    rng, file = random.Random(17), tmp_path / "x.yaml"
    outcomes = {"recipe": 0, "refused": 0}
    for _ in range(5000 if figures.SOAK else 400):
        file.write_bytes(mutated(rng))
        try:
            resolve([document_layer(read_yaml(file), str(file))])
            outcomes["recipe"] += 1
        except BigmodelError as error:
            assert error.exit_code == 2 and len(error.line) <= 200 and error.line.isprintable()
            outcomes["refused"] += 1
    assert min(outcomes.values()) > 20, outcomes  # both roads are walked
    figures.record("mutated recipe", sum(outcomes.values()), 0, f"{outcomes['refused']} refused in one line")


NAMES = ["../x", "/etc/passwd", "mlp/../cnn", "", " ", "-x", ".hidden", "a" * 65, "mlp\n", "mlp\0",
         "\uff4dlp", "\x1b[31mmlp", "mlp;id", "$(id)", "os.system", "a.b.c", "__class__", "mlp\u202e"]  # fmt: skip


@pytest.mark.parametrize("name", NAMES, ids=repr)
def test_a_name_is_looked_up_and_nothing_else(name: str) -> None:
    with pytest.raises(InputError) as caught:
        models.get(name)
    assert "unknown model" in caught.value.line and caught.value.line.isprintable() and len(caught.value.line) <= 200
    with pytest.raises(InputError):
        resolve([set_layer([f"model.name='{name}'" if "\n" not in name and "\0" not in name else "model.name=../x"])])


@pytest.mark.parametrize("value", [[0, 0], {"a": 1}, [[]]])
def test_a_list_or_mapping_in_any_field_is_told_or_fits(value: Any) -> None:
    sections = {name: field.annotation for name, field in Recipe.model_fields.items()}
    fields = [(s, key) for s, kind in sections.items() if isinstance(kind, type) for key in kind.model_fields]
    refused = 0
    for section, key in fields:
        base = {"model": {"name": "mlp"}, "data": {"name": "digits"}}
        base[section] = {**base.get(section, {}), key: value}
        try:
            resolve([Layer("base", base)])
        except InputError:
            refused += 1
    assert len(fields) > 50 and refused > len(fields) / 2
