"""Which columns of a table hold what: by ``--columns``, by usual names, or because only one is left.

A *role* is what a column is for: ``text``, ``label``, ``image``, ``source``, ``target``, ``split``, ``group``,
``user``, ``item``, ``rating``, ``time``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated

from pydantic import BeforeValidator, Field

from bigmodel_cli.core.errors import InputError, nearest

USUAL: dict[str, tuple[str, ...]] = {
    "text": ("text", "sentence", "review", "content", "body", "message", "comment", "comment_text", "tweet", "document",
             "utterance", "headline"),
    "label": ("label", "labels", "class", "class_name", "label_name", "category", "target", "sentiment", "species",
              "breed", "diagnosis", "tag", "y"),
    "image": ("path", "image", "file_name", "filename", "file", "img", "image_path", "img_path", "filepath",
              "file_path", "image_name", "img_name", "image_file", "image_id", "photo", "picture", "id"),
    "source": ("source", "src"),
    "target": ("target", "tgt"),
    "split": ("split", "subset", "partition"),
    "user": ("user", "user_id", "userid", "uid", "customer", "customer_id", "user_id_token", "username", "user_name",
             "reviewer_id", "reviewerid", "visitor_id", "visitorid", "member_id", "viewer_id"),
    "item": ("item", "item_id", "itemid", "iid", "movie", "movie_id", "movieid", "product", "product_id", "article_id",
             "item_id_token", "film", "film_id", "book", "book_id", "isbn", "song", "song_id", "track", "track_id",
             "asin", "sku"),
    "rating": ("rating", "click", "clicks", "score", "value", "stars", "rating_float", "ratings", "overall"),
    "time": ("time", "timestamp", "date", "datetime", "ts", "timestamp_float", "when", "created_at", "rated_at",
             "event_time", "unixreviewtime"),
}  # fmt: skip
"""The usual names of the columns of each role, the surest first; compared by :func:`plain_name`."""
OPTIONAL = ("split", "group")
ABSENT = (*OPTIONAL, "rating", "time")
"""Roles that a table may lack: those of any table, and those of interactions."""
INDEXES = ("", "index", "unnamed_0", "row")
"""Columns that number the rows; they are never the one that is left."""
NO_LABELS = (*USUAL["image"], *USUAL["text"], "uid", "uuid", "key", "url", "date", "title", "name")
"""Columns that are not taken for the label only because no other is left."""


def read_columns(given: str) -> dict[str, str]:
    """``image=id,label=breed`` as {role: column}.

    Raises:
        InputError: it has another form.
    """
    found: dict[str, str] = {}
    for part in re.split(r",(?=\s*[a-z_]+\s*=)", given):
        role, equals, column = part.partition("=")
        if not equals or not role.strip() or not column.strip():
            raise InputError(f"--columns {given}", "expected ROLE=COLUMN,..., as text=title+body,label=3")
        found[role.strip()] = column.strip()
    return found


def _validated(given: object) -> object:
    """For pydantic, which turns a ValueError into a message."""
    try:
        return read_columns(given) if isinstance(given, str) else given
    except InputError as error:
        raise ValueError(error.expected) from None


Columns = Annotated[
    dict[str, str],
    BeforeValidator(_validated),
    Field(description="columns by role, as text=title+body,label=3; numbers from 1 for a table without a header"),
]
GroupBy = Annotated[
    str | None, Field(description="column whose equal values stay on one side when val is carved, as a patient's id")
]
TableEncoding = Annotated[str, Field(description="of a table: auto, utf-8, latin-1, utf-16, ...")]


def plain_name(name: str) -> str:
    """`name` as it is compared: without case, blanks and punctuation around its words."""
    return re.sub(r"[^\w]+", "_", name.strip().casefold()).strip("_")


@dataclass(frozen=True)
class Chosen:
    """The places of the columns of each role in a row, and what a person should know of the choice."""

    places: Mapping[str, tuple[int, ...]]
    names: Sequence[str]
    notes: Sequence[str] = field(default=())

    def named(self, role: str) -> str:
        """The columns of `role`, as a message shows them."""
        return "+".join(self.names[i] or f"column {i + 1}" for i in self.places[role])


def by_number(given: Mapping[str, str]) -> bool:
    """Whether all columns are given as numbers."""
    return bool(given) and all(part.strip().isdigit() for value in given.values() for part in value.split("+"))


def choose_columns(
    where: str,
    header: Sequence[str],
    roles: Sequence[str],
    given: Mapping[str, str],
    numbered: bool = False,
    remaining: bool = True,
) -> Chosen:
    """Find the columns of `roles` in `header`. Roles in ABSENT may be absent unless `given` names them.

    With `numbered`, the table has no header: `given` counts columns from 1. With `remaining`, the label may be the only
    column of another name, in a table of two columns and perhaps a number of the row.

    Raises:
        InputError: a column is not there, is there twice, or may be several; the message lists what is there.
    """
    unknown = [role for role in given if role not in roles]
    if unknown:
        raise InputError(f"--columns {unknown[0]}=...", f"expected {', '.join(roles)} here")
    plain = [plain_name(name) for name in header]
    places = {role: _places(where, role, value, header, plain, numbered) for role, value in given.items()}
    guessed = list[str]()
    for role in [] if numbered else roles:
        if role not in places:
            # Groups may be those of another role's column, as for the metrics of each label.
            taken = {i for other, columns in places.items() if other != "group" for i in columns}
            free = [i for i in range(len(header)) if i not in taken]
            found = next((i for name in USUAL.get(role, (role,)) for i in free if plain[i] == name), None)
            if found is not None:
                places[role] = (_once(where, found, header, plain),)
    missing = [role for role in roles if role not in places and role not in ABSENT]
    taken = {i for columns in places.values() for i in columns}
    left = [i for i in range(len(header)) if i not in taken and plain[i] not in INDEXES]
    lone = len(left) == 1 and plain[left[0]] not in NO_LABELS and len(header) <= 3
    if missing == ["label"] and lone and places and remaining and not numbered:
        places["label"], missing = (left[0],), []
        guessed.append(f"label: the column {header[left[0]]!r}, the only other one")
        left = []
    if missing:
        raise _missing(where, header, missing, roles, numbered)
    if left and not numbered:
        shown = ", ".join(header[i] or f"column {i + 1}" for i in left[:5]) + (", ..." if len(left) > 5 else "")
        guessed.append(f"columns not used: {shown}")
    elif left:
        guessed.append(f"columns not used: {', '.join(str(i + 1) for i in left[:5])}")
    return Chosen(places, tuple(header), tuple(guessed))


def _missing(
    where: str, header: Sequence[str], missing: Sequence[str], roles: Sequence[str], numbered: bool
) -> InputError:
    wanted = [role for role in roles if role not in ABSENT]
    example = ",".join(f"{role}={i + 1 if numbered else 'NAME'}" for i, role in enumerate(wanted))
    shown = ", ".join(name.strip()[:30] or "(no name)" for name in header[:8]) + (", ..." if len(header) > 8 else "")
    hint = f"--columns {example}" + ("" if numbered else ", or with numbers if the first line is no header")
    return InputError(f"{where}: no column {' or '.join(missing)}; it has {shown}", hint=hint)


def _places(
    where: str, role: str, value: str, header: Sequence[str], plain: Sequence[str], numbered: bool
) -> tuple[int, ...]:
    """The places of the columns that `value` names, joined by ``+``."""
    if not numbered:
        whole = _find(value, header, plain)
        if whole is not None:
            return (_once(where, whole, header, plain),)
    found = []
    for part in value.split("+"):
        if numbered or (part.strip().isdigit() and _find(part, header, plain) is None):
            place: int | None = int(part) - 1
            if not 0 <= int(part) - 1 < len(header):
                raise InputError(f"{where}: {len(header)} columns", f"--columns {role}={value} names column {part}")
        else:
            place = _find(part, header, plain)
        if place is None:
            expected = nearest(part.strip(), [name for name in header if name])
            raise InputError(f"{where}: no column {part.strip()!r}", expected, f"--columns {role}=...")
        found.append(place if numbered else _once(where, place, header, plain))
    return tuple(found)


def _find(name: str, header: Sequence[str], plain: Sequence[str]) -> int | None:
    for wanted, names in ((name, header), (name.strip(), [h.strip() for h in header]), (plain_name(name), plain)):
        if wanted and wanted in names:
            return list(names).index(wanted)
    return None


class RepeatedColumnError(InputError):
    """A column that is wanted is there twice under one name."""


def _once(where: str, place: int, header: Sequence[str], plain: Sequence[str]) -> int:
    same = [i for i, name in enumerate(plain) if name == plain[place] and header[i].strip() == header[place].strip()]
    if len(same) > 1:
        numbers = " and ".join(str(i + 1) for i in same)
        what = f"{where}: columns {numbers} are both called {header[place]!r}"
        raise RepeatedColumnError(what, "rename one, or name the columns by numbers")
    return place
