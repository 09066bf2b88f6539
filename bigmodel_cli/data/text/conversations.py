"""Prompts with answers: conversations, completions and preference pairs. Shapes: B batch, T tokens."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from bigmodel_cli.core.chat.conversation import PREFIXES, MaskedTokens
from bigmodel_cli.core.chat.encoding import encode_chat, has_template
from bigmodel_cli.core.counted import counted
from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.files.regular_files import open_regular
from bigmodel_cli.core.messages import conversation_problem, messages_problem
from bigmodel_cli.core.readers.json_lines import read_records, text_problem
from bigmodel_cli.core.readers.text_files import AUTO
from bigmodel_cli.core.registry import data
from bigmodel_cli.core.special_tokens import END, PAD
from bigmodel_cli.core.tokenizers.framing import encode_beginning, encode_continuation
from bigmodel_cli.core.tokenizers.tokens import tokenizer
from bigmodel_cli.core.types import Batch, DataBundle, TextSpec
from bigmodel_cli.data.subset import divide
from bigmodel_cli.data.text.packing import PackedRows, Row
from bigmodel_cli.data.text.tokenizer_choice import Tokenizer, as_text_spec, choose_tokenizer
from bigmodel_cli.data.text.windows import Context
from bigmodel_cli.data.user_path import rows_with

Encoding = Annotated[str, Field(description="of the file: auto (UTF-8, as JSON is), latin-1, ...")]
ValShare = Annotated[
    float | None,
    Field(gt=0, lt=0.9, description="share at the end that validates; null: data.val_fraction, by a hash of each"),
]
Prefixes = Annotated[
    tuple[str, str, str], Field(description="prefixes of the system's, the user's and the assistant's turns")
]
Pack = Annotated[
    bool, Field(description="pack several rows into one window instead of padding, masked from each other")
]
CONTEXT = 256


@dataclass(frozen=True)
class Parts:
    """How val is split off; see :func:`bigmodel_cli.data.subset.divide`."""

    val_fraction: float
    seed: int
    end: float | None


@dataclass(frozen=True)
class ConversationSource:
    """One split of answers, or of ("chosen", "rejected") pairs: rows of tokens and their loss mask, per side.

    A batch has ``tokens``, the loss mask ``learn`` and the ``bytes`` of text that each token stands for (B,T), padded
    to its longest row; for pairs also ``rejected`` and ``rejected_learn``.
    """

    sides: Mapping[str, Sequence[Row]]
    where: Sequence[str]
    fill: int

    def __len__(self) -> int:
        return len(self.where)

    @functools.cached_property
    def lengths(self) -> Tensor:
        """(n,) int64: the tokens in each row, or in the longer side of a pair."""
        rows = zip(*self.sides.values(), strict=True)
        return torch.tensor([max(len(side.ids) for side in row) for row in rows])

    def gather(self, indices: Tensor) -> Batch:
        chosen = indices.tolist()
        batch: Batch = {"index": indices}
        for side, rows in self.sides.items():
            tokens, learn = ("tokens", "learn") if side == "chosen" else (side, f"{side}_learn")
            batch[tokens] = pad_sequence([rows[i].ids for i in chosen], True, self.fill)
            batch[learn] = pad_sequence([rows[i].learn for i in chosen], True, False)
        batch["bytes"] = pad_sequence([self.sides["chosen"][i].sizes for i in chosen], True, 0)
        return batch

    def name(self, index: int) -> str:
        return self.where[index]


@data.register(
    task="language_modeling",
    reads=rows_with(("messages",), ("prompt", "completion"), score=4),
    next="finetune --from CKPT",
)
def chat_file(
    root: Path,
    like: TextSpec | None = None,
    val_fraction: float = 0.1,
    split_seed: int = 0,
    *,
    path: str,
    tokenizer: Tokenizer = "auto",
    context: Context | None = None,
    encoding: Encoding = AUTO,
    val_share: ValShare = None,
    prefixes: Prefixes = PREFIXES,
    pack: Pack = False,
) -> DataBundle:
    """Your own conversations (`messages`) or `prompt` and `completion`, as JSON lines; only answers are trained on."""
    first = _peek(Path(path).expanduser())
    spec = _resolve_spec(like, tokenizer, context, root, prefixes if "messages" in first else None)

    def row(where: str, record: Mapping[str, Any]) -> dict[str, MaskedTokens]:
        if "messages" in record:
            return {"chosen": _encode_messages(where, record["messages"], spec)}
        return {"chosen": _encode_completion(where, record["prompt"], record["completion"], spec)}

    fields: dict[str, Any] = {"prompt": text_problem, "completion": text_problem}
    if "messages" in first:
        fields = {"messages": conversation_problem}
    parts = Parts(val_fraction, split_seed, val_share)
    return _bundle(Path(path).expanduser(), fields, row, spec, encoding, parts, pack)


@data.register(
    task="language_modeling",
    method="dpo",
    reads=rows_with(("prompt", "chosen", "rejected"), score=5),
    next="finetune --from CKPT",
)
def preference_file(
    root: Path,
    like: TextSpec | None = None,
    val_fraction: float = 0.1,
    split_seed: int = 0,
    *,
    path: str,
    tokenizer: Tokenizer = "auto",
    context: Context | None = None,
    encoding: Encoding = AUTO,
    val_share: ValShare = None,
    prefixes: Prefixes = PREFIXES,
) -> DataBundle:
    """Your own preference pairs: JSON lines with `prompt`, `chosen` and `rejected`, as text or messages."""
    first, start = _peek(Path(path).expanduser()), as_text_spec(like)
    plain = all(isinstance(first.get(key), str) for key in ("prompt", "chosen", "rejected"))
    templated = not plain or (start is not None and has_template(start)) or prefixes != PREFIXES
    spec = _resolve_spec(like, tokenizer, context, root, prefixes if templated else None)
    said = ["prompts and answers are put into the model's chat template"] if plain and templated else []

    def row(where: str, record: Mapping[str, Any]) -> dict[str, MaskedTokens]:
        sides = ("chosen", "rejected")
        return {side: _encode_answer(where, record["prompt"], record[side], spec, templated) for side in sides}

    fields = {"prompt": _is_prompt, "chosen": _is_prompt, "rejected": _is_prompt}
    parts = Parts(val_fraction, split_seed, val_share)
    return _bundle(Path(path).expanduser(), fields, row, spec, encoding, parts, False, said)


def _resolve_spec(
    like: TextSpec | None, name: str, context: int | None, root: Path, prefixes: tuple[str, ...] | None
) -> TextSpec:
    """The tokenizer and the chat template, which is the checkpoint's own unless other `prefixes` are set."""
    like = as_text_spec(like)
    spec = choose_tokenizer(name, like, context or (like.context if like else CONTEXT), root)
    if prefixes is None:
        return spec.with_(chat=like.chat if like else ())
    if not all(prefix.strip() for prefix in prefixes) or len(set(prefixes)) < len(prefixes):
        raise InputError(f"data.prefixes = {list(prefixes)}", "expected three different, non-blank ones")
    if prefixes != PREFIXES:
        return spec.with_(chat=prefixes)
    if like is not None and has_template(like):
        return spec.with_(chat=like.chat)
    return spec.with_(chat=prefixes)


def _is_prompt(value: Any) -> str | None:
    return text_problem(value) if isinstance(value, str) else messages_problem(value)


def _encode_messages(where: str, messages: Sequence[Mapping[str, str]], spec: TextSpec) -> MaskedTokens:
    try:
        return encode_chat(messages, spec)
    except ValueError as error:
        raise InputError(f"{where}: {error}", "expected text without it", "--set data.prefixes=[...]") from None
    except InputError as error:
        raise InputError(f"{where}: {error.what}", error.expected, error.hint) from None


def _encode_completion(where: str, prompt: str, answer: str, spec: TextSpec) -> MaskedTokens:
    """Prompt, answer and ``<end>`` without a template; the loss mask excludes the prompt."""
    known = tokenizer(spec)
    try:
        first, (then, sizes) = encode_beginning(str(prompt), spec), encode_continuation(str(answer), spec)
    except InputError as error:
        raise InputError(f"{where}: {error.what}", error.expected, error.hint) from None
    end = [known.special[END]] if END in known.special else []
    learn = [False] * len(first) + [True] * len(then + end)
    return MaskedTokens([*first, *then, *end], learn, [0] * len(first) + sizes + [0] * len(end))


def _encode_answer(where: str, prompt: Any, answer: Any, spec: TextSpec, templated: bool) -> MaskedTokens:
    """A prompt and one of its answers, each text or messages; the loss mask covers only the answer."""
    if not templated and isinstance(prompt, str) and isinstance(answer, str):
        return _encode_completion(where, prompt, answer, spec)
    before = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    after = [{"role": "assistant", "content": answer}] if isinstance(answer, str) else answer
    if list(after[: len(before)]) == list(before):  # some data sets repeat the prompt in the answer
        after = after[len(before) :]
    if not after or any(message["role"] != "assistant" for message in after):
        raise InputError(f"{where}: an answer that is not the assistant's", "expected text, or assistant messages")
    found = _encode_messages(where, [*before, *after], spec)
    start = _common(found.ids, _encode_messages(where, before, spec).ids)
    return found._replace(learn=[False] * start + found.learn[start:])


def _common(first: Sequence[int], second: Sequence[int]) -> int:
    """The number of tokens at the beginning of both."""
    return next(
        (i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), min(len(first), len(second))
    )


def _peek(path: Path) -> dict[str, Any]:
    """The first object in the file, whose fields all others must have; {} if there is none."""
    try:
        with open_regular(path) as file:
            line = next((line for line in iter(lambda: file.readline(1 << 24), b"") if line.strip()), b"")
            found = json.loads(line.decode("utf-8-sig", "replace"))
    except (InputError, OSError, ValueError, RecursionError):
        return {}  # reading the whole file will report what is wrong
    return found if isinstance(found, dict) else {}


def _bundle(
    path: Path,
    fields: Mapping[str, Any],
    row: Callable[[str, Mapping[str, Any]], dict[str, MaskedTokens]],
    spec: TextSpec,
    encoding: str,
    how: Parts,
    pack: bool,
    said: Sequence[str] = (),
) -> DataBundle:
    notes: list[str] = list(said)
    rows = list(_rows(path, fields, row, spec.context, encoding, notes))
    if len(rows) < 2:
        raise InputError(f"{path}: {len(rows)} rows with an answer", "expected at least 2, for train and val")
    parts = divide(rows, [group for _, group, _ in rows], how.val_fraction, how.seed, how.end, path, notes)
    total = hashlib.sha256(repr((spec.chat, pack)).encode())
    for _, _, sides in rows:
        for side in sides.values():
            total.update(side.ids.numpy().tobytes() + side.learn.numpy().tobytes() + b"/")
    known = tokenizer(spec)
    fill = known.special.get(PAD, known.special.get(END, 0))

    @functools.cache
    def load(split: str) -> ConversationSource | PackedRows:
        part = parts[split]
        sides = {side: [sides[side] for _, _, sides in part] for side in part[0][2]}
        places = [where for where, _, _ in part]
        return (
            PackedRows(sides["chosen"], places, spec.context + 1, fill)
            if pack
            else ConversationSource(sides, places, fill)
        )

    return DataBundle(spec, {split: functools.partial(load, split) for split in parts}, total.hexdigest(), notes)


def _rows(
    path: Path,
    fields: Mapping[str, Any],
    row: Callable[[str, Mapping[str, Any]], dict[str, MaskedTokens]],
    context: int,
    encoding: str,
    notes: list[str],
) -> Iterator[tuple[str, str, dict[str, Row]]]:
    """Each row with its location and what its side of a split depends on: the prompt, or else the conversation.

    It is truncated to the context window; rows without an answer in it are dropped.
    """
    cut = lost = 0
    for where, record in read_records(path, fields, encoding, notes):
        sides = row(where, record)
        cut += any(len(found.ids) > context + 1 for found in sides.values())
        short = {side: Row.of(found, context + 1) for side, found in sides.items()}
        if not all(found.learn[1:].any() for found in short.values()):
            lost += 1
            continue
        yield where, json.dumps(record.get("prompt", record.get("messages")), sort_keys=True), short
    notes += [f"{cut} rows are longer than {context} tokens: truncated"] if cut else []
    notes += [f"{counted(lost, 'row')} skipped: no answer within {context} tokens"] if lost else []
