"""Images in a Hugging Face data set: a folder written by ``save_to_disk``, or a data set on the Hub."""

from __future__ import annotations

import contextlib
import functools
import json
import os
from collections.abc import Iterator, Sequence
from http.client import HTTPException
from pathlib import Path
from typing import Any

from bigmodel_cli.core.counted import counted
from bigmodel_cli.core.errors import InputError, MachineError, service_reason
from bigmodel_cli.core.extras import install_line
from bigmodel_cli.core.files.regular_files import open_regular
from bigmodel_cli.core.registry import natural
from bigmodel_cli.core.splits import split_of
from bigmodel_cli.data.download import open_url
from bigmodel_cli.data.image.listing import Item, Listing, build_listing

SCHEME = "hf:"
HUB = "https://huggingface.co/"
TIMEOUT = 3.0  # seconds to wait for the Hub's first response; a missing network should fail fast
LABELS = ("label", "labels", "fine_label", "class")
"""Column names to look for if there is not exactly one column of type ClassLabel."""


def is_saved(folder: Path) -> bool:
    """Whether ``save_to_disk`` wrote the folder."""
    return (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file()


def from_hub(where: str, image: str | None = None, label: str | None = None, group_by: str | None = None) -> Listing:
    """The images of the data set at `where`: a folder, or ``hf:owner/name`` or ``hf:owner/name:configuration``.

    `image` and `label` name the columns if there is more than one candidate; `group_by` is that of the groups.
    Rows without a class (the test split of a competition) are skipped.

    Raises:
        MachineError: the library is not installed, or the Hub cannot be reached.
        InputError: there is no such data set, or it has no image or class column.
    """
    found = _load_splits(where)
    notes: list[str] = []
    images: dict[str, dict[str, list[Item]]] = {}
    order: Sequence[str] = ()
    versions = []
    for name, rows in found.items():
        split = split_of(name)
        if split is None:
            notes.append(f"not used: the split {name}")
            continue
        column, classes = _columns(where, rows, image, label)
        order = order or _class_names(rows, classes)
        labelled = _items_by_class(rows, name, column, classes, group_by)
        if labelled:
            images[split] = labelled
            versions.append(f"{name}:{rows._fingerprint}")
        left = len(rows) - sum(map(len, labelled.values()))
        notes += [f"{name}: {counted(left, 'row')} without a class skipped"] if left else []
    if not images:
        raise InputError(f"{where}: splits {', '.join(found)}", "expected train, with classes")
    absent = [name for name in order if name not in images.get("train", {})]
    notes += [f"no images of {', '.join(absent[:5])}{', ...' if len(absent) > 5 else ''}"] if absent else []
    return build_listing(where, images, notes, order, " ".join(versions))


def values_of(where: str, column: str) -> list[Any]:
    """The values of `column` in all splits of the data set at `where`.

    Raises:
        InputError: it has no such column.
    """
    found: list[Any] = []
    for rows in _load_splits(where).values():
        if column not in rows.features:
            raise InputError(f"{where}: no column {column!r}", f"expected one of {', '.join(rows.features)}")
        found += rows[column]
    return found


def _import_datasets() -> Any:
    try:
        import datasets
    except ImportError:
        what = "datasets is not installed"
        raise MachineError(what, "it needs the extra datasets", install_line("datasets")) from None
    datasets.disable_progress_bars()
    return datasets


def _load_splits(where: str) -> dict[str, Any]:
    """Split -> rows."""
    if not where.startswith(SCHEME):
        library = _import_datasets()
        try:
            found = library.load_from_disk(where)
        except Exception as error:  # a damaged Arrow file or JSON can raise anything
            reason = str(error).partition("\n")[0][:100]
            raise InputError(f"{where}: cannot be read ({reason})", "expected what save_to_disk wrote") from None
    else:
        found = _load_from_hub(where)
    return dict(found) if isinstance(found, dict) else {"train": found}


def _load_from_hub(where: str) -> Any:
    """Load from the Hub, or offline from the library's cache."""
    name, _, configuration = where.removeprefix(SCHEME).partition(":")
    reason = _unreachable(name)
    library = _import_datasets()
    with _offline() if reason else contextlib.nullcontext():
        try:
            return library.load_dataset(name, configuration or None)
        except Exception as error:
            if reason is None:
                what = f"{where}: cannot be loaded ({service_reason(error)})"
                raise InputError(what, f"its configurations are at {HUB}datasets/{name}") from None
    hint = f"where there is a network: datasets.load_dataset({name!r}).save_to_disk(FOLDER); then --data FOLDER"
    raise MachineError(f"{where}: not on this machine, and {reason}", hint=hint)


def _unreachable(name: str) -> str | None:
    """Why the Hub cannot be reached; None if it can.

    Raises:
        InputError: it has no data set called `name`.
    """
    if os.environ.get("HF_HUB_OFFLINE", "") not in ("", "0"):
        return "HF_HUB_OFFLINE is set"
    endpoint = os.environ.get("HF_ENDPOINT", HUB).rstrip("/")
    try:
        with open_url(f"{endpoint}/api/datasets/{name}", TIMEOUT) as reply:
            json.loads(reply.read(1 << 24))
    except (OSError, HTTPException, ValueError) as error:
        if getattr(error, "code", None) in (401, 404):
            raise InputError(f"{SCHEME}{name}: no such data set on the Hub", "expected owner/name") from None
        return f"{endpoint} cannot be reached ({getattr(error, 'reason', error)})"
    return None


@contextlib.contextmanager
def _offline() -> Iterator[None]:
    """Make the library use only its cache; its own retries would take a minute."""
    import datasets
    import huggingface_hub.constants

    before = huggingface_hub.constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE
    huggingface_hub.constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        huggingface_hub.constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE = before


def _columns(where: str, rows: Any, image: str | None, label: str | None) -> tuple[str, str]:
    """The image column and the class column.

    Raises:
        InputError: there is none, or several and none is named.
    """
    import datasets

    kinds = rows.features
    images = [name for name, kind in kinds.items() if isinstance(kind, datasets.Image)]
    classes = [name for name, kind in kinds.items() if isinstance(kind, datasets.ClassLabel)]
    usual = [name for name in LABELS if name in kinds]
    classes = classes if len(classes) == 1 else usual[:1] or classes
    there = ", ".join(kinds)
    for what, named, able in (("image", image, images), ("label", label, classes)):
        if named is not None and named not in kinds:
            raise InputError(f"data.{what}_column = {named}", f"expected one of {there}")
        if named is None and len(able) != 1:
            what = f"{where}: {len(able)} columns may be the {what}, of {there}"
            texts = "texts are read from files that Dataset.to_parquet('train.parquet') writes"
            columns = "--set data.image_column=... --set data.label_column=..."
            raise InputError(what, hint=columns if images else texts)
    column = image or images[0]
    if column not in images:
        raise InputError(f"data.image_column = {column}", f"expected a column of images: {', '.join(images)}")
    return column, label or classes[0]


def _class_names(rows: Any, column: str) -> list[str]:
    """The class names in the declared order, or else sorted."""
    declared = getattr(rows.features[column], "names", None)
    return declared or sorted({str(k) for k in rows[column] if k is not None}, key=natural)


def _items_by_class(rows: Any, split: str, column: str, classes: str, group_by: str | None) -> dict[str, list[Item]]:
    import datasets

    if group_by is not None and group_by not in rows.features:
        raise InputError(f"--group-by {group_by}", f"expected one of {', '.join(rows.features)}")
    groups = rows[group_by] if group_by is not None else None

    names = getattr(rows.features[classes], "names", None)
    encoded = rows.cast_column(column, datasets.Image(decode=False)).select_columns([column])
    files = [Path(part["filename"]) for part in rows.cache_files]
    stats = [path.stat() for path in files if path.is_file()]
    stamp = (len(rows), max((s.st_ctime_ns for s in stats), default=0), sum(s.st_size for s in stats))
    found: dict[str, list[Item]] = {}
    for index, value in enumerate(rows[classes]):
        if value is None or value == -1:
            continue
        content = functools.partial(_read_encoded, encoded, index, column)
        item = Item(f"{split}[{index}]", -1, f"{split}:{rows._fingerprint}", 0, stamp, index, content)
        item.group = f"group {groups[index]}" if groups is not None else ""
        found.setdefault(names[value] if names else str(value), []).append(item)
    return found


def _read_encoded(rows: Any, index: int, column: str) -> bytes:
    image = rows[index][column] or {}
    if image.get("bytes") is not None:
        return image["bytes"]  # type: ignore[no-any-return]
    try:
        with open_regular(image.get("path") or "") as file:
            return file.read()
    except (InputError, OSError) as error:
        raise InputError(f"row {index}: no image ({error})", "expected its bytes, or a file") from None
