"""Chat templates as published with a model: Jinja, rendered in a sandbox; and the tokens that are the assistant's.

The environment is transformers': an immutable sandbox, the same filters and globals, and the tag
``{% generation %}`` around what the assistant says. A template is untrusted: it is bounded in steps and in length.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any

from bigmodel_cli.core.chat.conversation import MaskedTokens
from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.tokenizers.bpe_tokenizer import BPETokenizer, span_bytes

if TYPE_CHECKING:
    from bigmodel_cli.core.conventions import Conventions
    from bigmodel_cli.core.messages import Message

MAX_CHARS = 1 << 24  # of a rendered conversation
MAX_STEPS = 1_000_000  # of loops over ranges in one rendering
MARKS = "\U000f0000", "\U000f0001"  # private-use characters around control tokens that a message spells out
Span = tuple[int, int]


@dataclass
class _Rendering:
    """The pieces of a conversation rendered so far, and the spans of characters inside ``{% generation %}``."""

    pieces: list[str] = field(default_factory=list)
    spans: list[Span] = field(default_factory=list)
    steps: int = 0


def _refuse(message: str) -> None:
    from jinja2.exceptions import TemplateError

    raise TemplateError(message)


def _to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None, **options: Any) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **options)


def _now(form: str) -> str:
    return datetime.now().strftime(form)


def _environment() -> Any:
    """A sandbox; its ``rendering`` is what a template is being rendered into."""
    import jinja2
    from jinja2.exceptions import SecurityError
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """``{% generation %} ... {% endgeneration %}``: what the assistant says."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return jinja2.nodes.CallBlock(self.call_method("_spoken"), [], [], body).set_lineno(line)

        def _spoken(self, caller: Any) -> str:
            rendering, said = environment.rendering, str(caller())
            start = sum(map(len, rendering.pieces))
            rendering.spans.append((start, start + len(said)))
            return said

    class Sandbox(ImmutableSandboxedEnvironment):
        intercepted_binops = frozenset(("*", "**"))
        rendering = _Rendering()

        def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
            if not all(isinstance(x, (int, float)) and abs(x) < 1 << 31 for x in (left, right)) or operator == "**":
                raise SecurityError("multiplication of text and powers are not for chat templates")
            return super().call_binop(context, operator, left, right)

    def steps(*bounds: int) -> Iterator[int]:
        for i in range(*bounds):
            environment.rendering.steps += 1
            if environment.rendering.steps > MAX_STEPS:
                raise SecurityError(f"more than {MAX_STEPS} steps")
            yield i

    environment = Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
    environment.filters["tojson"] = _to_json
    environment.globals |= {"raise_exception": _refuse, "strftime_now": _now, "range": steps}
    return environment


@functools.lru_cache(maxsize=8)
def _compile(source: str) -> Any:
    """The template `source`.

    Raises:
        InputError: it is not a template.
    """
    from jinja2.exceptions import TemplateError

    try:
        return _environment().from_string(source)
    except (TemplateError, RecursionError) as error:
        raise InputError(f"the chat template is not valid Jinja: {error}") from None


def render(
    template: str, messages: Sequence[Message], names: Mapping[str, str], answer: bool = False
) -> tuple[str, list[Span]]:
    """The text of `messages`, and the spans of its characters that the template marks as the assistant's.

    `names` are the variables of special tokens, such as ``bos_token``. `answer`: the assistant's next turn begins.

    Raises:
        ValueError: the template refuses the messages, or does what it may not.
    """
    from jinja2.exceptions import TemplateError

    compiled, rendering = _compile(template), _Rendering()
    compiled.environment.rendering = rendering
    plain = [dict(message) for message in messages]
    size = 0
    try:
        stream = compiled.generate(messages=plain, tools=None, documents=None, add_generation_prompt=answer, **names)
        for piece in stream:
            size += len(piece)
            if size > MAX_CHARS:
                raise ValueError(f"the chat template writes more than {MAX_CHARS} characters")
            rendering.pieces.append(piece)
    except (TemplateError, TypeError, KeyError, IndexError, AttributeError, ArithmeticError, RecursionError) as error:
        raise ValueError(f"the chat template refuses the conversation: {str(error)[:200]}") from None
    return "".join(rendering.pieces), rendering.spans


def encode(messages: Sequence[Message], known: Conventions, tokenizer: BPETokenizer, answer: bool) -> MaskedTokens:
    """The tokens of a conversation as ``apply_chat_template`` gives them, and whether each is the assistant's.

    A control token that the content of a message spells out stays text: nobody speaks for another role. Where the
    template has no ``{% generation %}``, a turn is what rendering it adds to the conversation before it, up to its
    last ending token; a turn that the template renders otherwise later is not trained on.

    Raises:
        ValueError: see :func:`render`.
    """
    names, control = dict(known.names), _control_tokens(tokenizer, known.template)
    marked = [{**m, "content": _mark(m["content"], control)} for m in messages]
    text, spans = render(known.template, marked, names, answer)
    if not re.search(r"\{%-?\s*generation\s*-?%\}", known.template):
        spans = list(_turns(known.template, marked, names, text))
    ids: list[int] = []
    mask: list[bool] = []
    sizes: list[int] = []
    at = 0
    for i, piece in enumerate(re.split(f"[{MARKS[0]}{MARKS[1]}]", text)):
        found = list(_encode_piece(tokenizer, piece, first=i == 0, as_text=i % 2 == 1))
        counts = span_bytes(piece, [span for _, span in found]).tolist()
        for (token, (start, end)), size in zip(found, counts, strict=True):
            ids.append(token)
            mask.append(any(a <= at + start and at + end <= b and start < end for a, b in spans))
            own = piece[start:end]  # a control token has the text before it that no token has, without itself
            sizes.append(size - len(own.encode()) if i % 2 == 0 and own in tokenizer.added else size)
        at += len(piece) + 1  # the mark between two pieces
    return MaskedTokens(ids, _until_end(ids, mask, set(known.ends)), sizes)


def _encode_piece(tokenizer: BPETokenizer, piece: str, first: bool, as_text: bool) -> Iterator[tuple[int, Span]]:
    """The tokens of a piece of a rendered text, with the characters of each; `as_text`: none is a control token."""
    found = tokenizer.encode_spans(piece, special=not as_text, begins=first)
    if as_text and any(token == tokenizer.named[piece] for token, _ in found):
        raise ValueError(f"the content of a message contains {piece!r}, which the tokenizer cannot keep as text")
    yield from found


def _turns(template: str, messages: Sequence[Message], names: Mapping[str, str], text: str) -> Iterator[Span]:
    """The spans in `text` of the assistant's turns."""
    for i, message in enumerate(messages):
        if message["role"] == "assistant" and i:
            before, after = (render(template, messages[: i + n], names, not n)[0] for n in (0, 1))
            if text.startswith(after) and after.startswith(before):
                yield len(before), len(after)


def _until_end(ids: Sequence[int], mask: Sequence[bool], ends: set[int]) -> list[bool]:
    """`mask` without what follows the last ending token of a turn, such as a line break between turns."""
    kept, tail = list(mask), [i for i in range(len(mask)) if mask[i] and (i + 1 == len(mask) or not mask[i + 1])]
    for last in tail:
        first = last
        while first > 0 and mask[first - 1]:
            first -= 1
        stops = [i for i in range(first, last + 1) if ids[i] in ends]
        for i in range(stops[-1] + 1 if stops else last + 1, last + 1):
            kept[i] = False
    return kept


def _control_tokens(tokenizer: BPETokenizer, template: str) -> re.Pattern[str]:
    """Matches the tokens that a message may not write: special ones, and added ones that the template contains."""
    names = [name for name, special in tokenizer.added.items() if special or (name in template and name.strip())]
    return re.compile("|".join(map(re.escape, sorted(names, key=len, reverse=True))) or "(?!)")


def _mark(content: str, control: re.Pattern[str]) -> str:
    plain = content.translate({ord(mark): None for mark in MARKS})
    return control.sub(f"{MARKS[0]}\\g<0>{MARKS[1]}", plain)
