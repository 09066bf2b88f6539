"""Tables of interactions, their splits and samples, each held against a plain loop over the rows."""

from __future__ import annotations

import hashlib
import io
import random
import zipfile
from pathlib import Path

import pytest
import torch
from web import Answer, answering

from bigmodel_cli.core.errors import InputError, MachineError
from bigmodel_cli.core.interactions import InteractionSpec, everything
from bigmodel_cli.core.registry import data
from bigmodel_cli.core.resolve import Layer, resolve
from bigmodel_cli.data.interactions import movielens
from bigmodel_cli.data.interactions.table import build_table
from bigmodel_cli.data.user_path import source_for
from bigmodel_cli.engine.training.build_run import build

Row = tuple[str, str, float, int]


def rows(count: int = 400) -> list[Row]:
    """Interactions of 20 users with 30 items; few seconds, so that many are tied, and some pairs occur twice."""
    draw = random.Random(0)
    return [(f"u{draw.randrange(20)}", f"i{draw.randrange(30)}", float(draw.randrange(1, 6)), draw.randrange(40))
            for _ in range(count)]  # fmt: skip


def write(path: Path, given: list[Row]) -> Path:
    lines = ["user,item,rating,time", *(",".join(map(str, row)) for row in given)]
    path.write_text("\n".join(lines) + "\n")
    return path


def held_out(bundle: object, split: str) -> dict[str, set[str]]:
    """What `split` of a ranking bundle holds out, by user, in ids."""
    spec, batch = bundle.spec, everything(bundle.load[split]())  # type: ignore[attr-defined]
    return {
        spec.user_ids[u]: {spec.item_ids[i] for i in items if i >= 0}
        for u, items in zip(batch["user"].tolist(), batch["relevant"].tolist(), strict=True)
    }


def test_leave_last_out_is_what_a_loop_over_the_rows_finds(tmp_path: Path) -> None:
    given = [(u, i, r, n) for n, (u, i, r, _) in enumerate(rows())]  # no ties
    bundle = data.get("interaction_file")(tmp_path, path=str(write(tmp_path / "a.csv", given)))
    latest: dict[str, dict[str, int]] = {}
    for user, item, _, time in given:
        latest.setdefault(user, {})[item] = time
    order = {user: sorted(items, key=items.__getitem__) for user, items in latest.items()}
    for split, place in (("test", -1), ("val", -2)):
        assert held_out(bundle, split) == {user: {items[place]} for user, items in order.items()}
    source = bundle.load["test"]()
    batch = everything(source)
    for user, history in zip(batch["user"].tolist(), batch["history"].tolist(), strict=True):
        seen = [bundle.spec.item_ids[i - 1] for i in history if i]
        assert seen == order[bundle.spec.user_ids[user]][:-1]


@pytest.mark.parametrize("ties", ["hashed", "item"])
def test_the_order_of_a_file_changes_nothing_and_ties_are_said(tmp_path: Path, ties: str) -> None:
    given = list({(u, i): (u, i, r, t) for u, i, r, t in rows()}.values())
    turned = given[::-1]
    read = [data.get("interaction_file")(tmp_path, path=str(write(tmp_path / f"{n}.csv", g)), ties=ties)
            for n, g in enumerate((given, turned))]  # fmt: skip
    assert held_out(read[0], "test") == held_out(read[1], "test")
    assert read[0].fingerprint == read[1].fingerprint
    assert any("share their time" in note for note in read[0].notes)
    by_file = [data.get("interaction_file")(tmp_path, path=str(tmp_path / f"{n}.csv"), ties="file") for n in (0, 1)]
    assert held_out(by_file[0], "test") != held_out(by_file[1], "test")


def test_of_a_repeated_pair_the_latest_stays_and_the_rest_is_counted() -> None:
    table = build_table(["a", "a", "a"], ["x", "y", "x"], [1, 2, 5], [3, 2, 4], "hashed")
    assert table.duplicates == 1 and table.rating.tolist() == [2, 5]


@pytest.mark.parametrize("context", [1, 3, 7, 100])
def test_windows_train_every_item_once_with_what_came_before_it(tmp_path: Path, context: int) -> None:
    bundle = data.get("interaction_file")(tmp_path, path=str(write(tmp_path / "a.csv", rows())), context=context)
    source = bundle.load["train"]()
    batch = everything(source)
    for user in range(bundle.spec.users):
        wanted = [i for i in source.trained(torch.tensor([user]))[0].tolist() if i]
        pairs = {}
        for row in batch["items"][batch["user"] == user].tolist():
            real = [i for i in row if i >= 0]
            pairs.update(dict(zip(real[1:], real[:-1], strict=True)))
        assert pairs == dict(zip(wanted, [0, *wanted[:-1]], strict=True))


def test_splits_share_no_interaction_and_lose_none(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", rows())
    for split in ("random", "last"):
        bundle = data.get("interaction_file")(tmp_path, "rating_prediction", path=str(path), split=split)
        parts = [everything(load()) for load in bundle.load.values()]
        pairs = [p for b in parts for p in zip(b["user"].tolist(), b["item"].tolist(), strict=True)]
        assert len(pairs) == len(set(pairs)) == len({(u, i) for u, i, _, _ in rows()})
        assert sum(bundle.spec.item_counts) == len(parts[0]["user"])


def test_attributes_titles_and_their_gaps(tmp_path: Path) -> None:
    (tmp_path / "items.csv").write_text("item,title,genre,price\n" + "".join(
        f"i{n},Film {n},{'a|b' if n % 2 else ''},{n * 1.5}\n" for n in range(40)))  # fmt: skip
    path = write(tmp_path / "a.csv", rows())
    bundle = data.get("interaction_file")(tmp_path, path=str(path), items=str(tmp_path / "items.csv"))
    genre, price = bundle.spec.item_columns
    assert genre.values == ("a", "b") and set(genre.codes) == {(), (0, 1)}
    assert len(price.values) == 10 and all(len(codes) == 1 for codes in price.codes)
    assert bundle.spec.titles[0] == f"Film {bundle.spec.item_ids[0][1:]}"
    assert any("10 of 40 rows are about ids without an interaction" in note for note in bundle.notes)
    assert InteractionSpec.from_dict(bundle.spec.to_dict()) == bundle.spec


@pytest.mark.parametrize(
    ("name", "head", "row", "columns"),
    [
        ("a.csv", "User ID;Item;Rating;Timestamp", "{};{};{};{}", None),
        ("a.tsv", "user_id\tMOVIE_ID\tscore\tdate", "{}\t{}\t{}\t{}", None),
        ("a.inter", "user_id:token\titem_id:token\trating:float\ttimestamp:float", "{}\t{}\t{}\t{}", None),
        ("a.csv", "user_id,movie,stars,when", "{},{},{},{}", None),
        ("a.csv", "who,what,stars,at", "{},{},{},{}", {"user": "who", "item": "what", "time": "at"}),
        ("a.csv", None, "{},{},{},{}", {"user": "1", "item": "2", "rating": "3", "time": "4"}),
        ("a.jsonl", None, '{{"user": "{}", "item": "{}", "rating": {}, "time": {}}}', None),
    ],
)
def test_a_table_is_read_however_it_is_written(
    tmp_path: Path, name: str, head: str | None, row: str, columns: dict[str, str] | None
) -> None:
    given = rows()
    text = "\n".join([*([head] if head else []), *(row.format(*r) for r in given)]) + "\n"
    (tmp_path / name).write_text(text)
    read = data.get("interaction_file")
    found = read(tmp_path, path=str(tmp_path / name), columns=columns)
    assert found.fingerprint == read(tmp_path, path=str(write(tmp_path / "plain.csv", given))).fingerprint
    assert source_for(tmp_path / name, columns) == "interaction_file"


def test_milliseconds_are_no_dates(tmp_path: Path) -> None:
    """Python would read one of them as a day in the year 1512, and the others not."""
    times = {"x": "1433221332117", "y": "1512011512345", "z": "1700000000000"}
    (tmp_path / "a.csv").write_text("user,item,time\n" + "".join(f"u,{i},{t}\n" for i, t in reversed(times.items())))
    bundle = data.get("interaction_file")(tmp_path, path=str(tmp_path / "a.csv"))
    assert (held_out(bundle, "val"), held_out(bundle, "test")) == ({"u": {"y"}}, {"u": {"z"}})


def test_parquet_is_read_as_the_table_it_was_made_of(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    given = rows()
    frame = pandas.DataFrame(given, columns=["who", "item", "rating", "time"])
    frame["time"] = pandas.to_datetime(frame["time"], unit="s")
    frame.to_parquet(tmp_path / "a.parquet")
    read = data.get("interaction_file")
    found = read(tmp_path, path=str(tmp_path / "a.parquet"), columns={"user": "who"})
    assert found.fingerprint == read(tmp_path, path=str(write(tmp_path / "a.csv", given))).fingerprint


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("user,rating\na,1\n", "no column item"), ("user,item,rating\na,b,x\n", "a.csv:2: rating is 'x'"),
        ("user,item,rating\na,b\n", "a.csv:2: 2 cells"), ("user,item\n", "it is empty"),
        ("user,item,time\na,b,inf\n", "a.csv:2: time is 'inf'"),
        ("user,item,time\na,b,31/01/2024\n", "a.csv:2: time is '31/01/2024'; expected a number of seconds, or a date"),
        ("user,item\na,b\n", "expected some users"),
        ("user,item\na,\n", "a.csv:2: no item"),
    ],
)  # fmt: skip
def test_a_bad_table_is_refused_with_its_line(tmp_path: Path, text: str, line: str) -> None:
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(InputError, match=line):
        data.get("interaction_file")(tmp_path, path=str(tmp_path / "a.csv"))


def test_ratings_that_are_all_the_same_are_not_predicted(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("user,item\n" + "".join(f"u{i % 6},i{i % 5}\n" for i in range(30)))
    own = {"name": "interaction_file", "path": str(tmp_path / "a.csv")}
    recipe = resolve([Layer("test", {"model": {"name": "mf"}, "data": own})]).recipe
    with pytest.raises(InputError, match="every rating is 1; expected ratings that differ"):
        build(recipe, measure=False)


def test_movielens_as_grouplens_ships_it(data_dir: Path) -> None:
    if not (data_dir / "movielens-100k" / "u.data").is_file():
        pytest.skip("no MovieLens 100K")
    ratings = data.get("movielens-100k")(data_dir, "rating_prediction")
    lines = (data_dir / "movielens-100k" / "u1.test").read_text().split("\n")
    wanted = {tuple(line.split()[:3]) for line in lines if line}
    test, spec = everything(ratings.load["test"]()), ratings.spec
    found = {(spec.user_ids[u], spec.item_ids[i], f"{r:.0f}") for u, i, r in
             zip(*(test[k].tolist() for k in ("user", "item", "rating")), strict=True)}  # fmt: skip
    assert found == wanted and (spec.users, spec.items, spec.low, spec.high) == (943, 1682, 1.0, 5.0)
    assert spec.titles[spec.item_index("50")] == "Star Wars (1977)"
    assert [c.name for c in spec.user_columns] == ["age", "gender", "occupation", "region"]
    with pytest.raises(InputError, match=r"u2\.(base|test): no such file"):
        data.get("movielens-100k")(data_dir, "rating_prediction", fold=2)


def grouplens_zip() -> bytes:
    """MovieLens 100K in small: the files that are read, as GroupLens packs them."""
    given = list({(u, i): (u, i, r, t) for u, i, r, t in rows()}.values())
    films = "".join(f"i{n}|Film {n} (1995)|01-Jan-1995||url|{'|'.join('01'[k == n % 19] for k in range(19))}\n"
                    for n in range(30))  # fmt: skip
    files = {
        "u.data": "".join(f"{u}\t{i}\t{r:.0f}\t{t}\n" for u, i, r, t in given),
        "u.user": "".join(f"u{n}|{20 + n}|M|writer|{n}0000\n" for n in range(20)), "u.item": films,
        "u.genre": "".join(f"genre{k}|{k}\n" for k in range(19)),
    }  # fmt: skip
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name, text in files.items():
            archive.writestr(f"ml-100k/{name}", text.encode("latin-1"))
    return packed.getvalue()


def test_movielens_is_downloaded_with_its_checksum(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content, asked = grouplens_zip(), list[str]()

    def answer(path: str) -> Answer:
        asked.append(path)
        return 200, content, {}

    monkeypatch.setenv("no_proxy", "127.0.0.1")
    read = data.get("movielens-100k")
    with answering(answer) as address:
        monkeypatch.setenv("BIGMODEL_MIRROR", address)
        with pytest.raises(MachineError, match="SHA-256"):
            read(tmp_path)
        assert not list(tmp_path.rglob("*.zip*")), "what is not GroupLens' file is not kept"
        monkeypatch.setitem(movielens.SHA256, "ml-100k", hashlib.sha256(content).hexdigest())
        asked.clear()
        bundle = read(tmp_path)
        again = read(tmp_path)
    assert asked == ["/ml-100k.zip"], "once"
    assert bundle.fingerprint == again.fingerprint and bundle.spec.titles[3] == "Film 3 (1995)"
    assert {u: len(held) for u, held in held_out(bundle, "test").items()} == {f"u{n}": 1 for n in range(20)}
