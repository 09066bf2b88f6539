"""The tokenizer in a folder of published weights, and what the files beside it say on its use.

The owners' settings lie in several files: ``tokenizer_config.json`` overrules ``tokenizer.json``, a chat template may
be in either of two files, and ``generation_config.json`` names the ids that end a text. transformers' own
AutoTokenizer puts them together, so that a text has the ids that it has there. It never runs code from the folder.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bigmodel_cli.core.conventions import GENERATION, Conventions
from bigmodel_cli.core.errors import CommandEnd, InputError
from bigmodel_cli.core.readers.json_lines import reject_nan, unique_keys
from bigmodel_cli.core.readers.text_files import read_text
from bigmodel_cli.core.special_tokens import END, PAD, START, UNKNOWN
from bigmodel_cli.core.tokenizers.bpe_tokenizer import library_errors
from bigmodel_cli.core.tokenizers.files import checked_tokenizer
from bigmodel_cli.core.tokenizers.huggingface_json import TARGETS
from bigmodel_cli.core.tokenizers.tokens import require_package
from bigmodel_cli.models.pretrained.sentencepiece_files import require_sentencepiece, tokenizers_of
from bigmodel_cli.models.pretrained.wrapped import import_transformers

ROLES = {PAD: "pad_token", UNKNOWN: "unk_token", START: "bos_token", END: "eos_token"}
NAMES = ("bos_token", "eos_token", "pad_token", "unk_token", "sep_token", "cls_token", "mask_token")
Encode = Callable[..., Sequence[int]]


@dataclass(frozen=True)
class PublishedText:
    """The JSON of a tokenizer, and the conventions of its owners. `targets` is that of targets where it is another."""

    tokenizer: str
    conventions: Conventions
    targets: str = ""

    @property
    def vocabulary(self) -> tuple[str, ...]:
        """As in :class:`~bigmodel_cli.core.specs.TextSpec`."""
        return (self.tokenizer, self.targets) if self.targets else (self.tokenizer,)


def read_published_text(
    folder: Path, translates: bool, languages: tuple[str, str] | None = None, prefix: str = "", own: Path | None = None
) -> PublishedText:
    """The tokenizer and the conventions in `folder`; an adapter's tokenizer is in its `own` folder.

    `translates`: decoding begins with ``decoder_start_token_id`` and targets are framed. `languages` are the codes of
    the source and the target, for a tokenizer that has several. `prefix` is text before every source.

    Raises:
        InputError: there is no tokenizer in it, or it is damaged or malicious.
    """
    place = folder if own is None else own
    text, targets = _text(place / "tokenizer.json"), ""
    values = checked_tokenizer(text) if text else {}
    if translates and text and (place / TARGETS).is_file():
        targets = read_text(place / TARGETS)
        checked_tokenizer(targets)
    config, generation = _read(folder / "config.json"), _read(folder / "generation_config.json")
    special = {name: config.get(f"{role}_id") for name, role in ROLES.items()}
    if values and not (place / "tokenizer_config.json").is_file():
        with library_errors():
            library = require_package("tokenizers").Tokenizer.from_str(json.dumps(values))  # without its padding
            known = Conventions(**_frame(lambda t, bare: library.encode(t, add_special_tokens=not bare).ids))
        template = _text(place / "chat_template.jinja")
    else:
        theirs = _auto_tokenizer(place, folder, languages)
        text, targets = (theirs.backend_tokenizer.to_str(), targets) if theirs.is_fast else tokenizers_of(theirs, place)
        special |= {n: theirs.convert_tokens_to_ids(v) for n, role in ROLES.items() if (v := getattr(theirs, role))}
        names = tuple((role, str(v)) for role in NAMES if (v := getattr(theirs, role)) is not None)
        with library_errors():
            frame = _frame(lambda t, bare: theirs(t, add_special_tokens=not bare).input_ids)
            if translates:
                target = _frame(lambda t, bare: theirs(text_target=t, add_special_tokens=not bare).input_ids)
                frame |= {f"target_{side}": ids for side, ids in target.items()}
        known, template = Conventions(names=names, **frame), _default_template(theirs.chat_template)
    if translates:
        begins = generation.get("decoder_start_token_id", config.get("decoder_start_token_id"))
        special[START] = special[PAD] if begins is None else begins
    ends = generation.get("eos_token_id", config.get("eos_token_id"))
    ends = special[END] if ends is None else ends
    size = int(config["vocab_size"]) if type(config.get("vocab_size")) is int else 1 << 20
    settings = tuple((k, generation[k]) for k in GENERATION if isinstance(generation.get(k), (int, float)))
    own_use = {
        "special": tuple((name, i) for name, i in special.items() if isinstance(i, int) and 0 <= i < size),
        "ends": tuple(i for i in (ends if isinstance(ends, list) else [ends]) if isinstance(i, int)),
        "template": template, "generation": settings, "prefix": prefix,
    }  # fmt: skip
    found = Conventions(**{**vars(known), **own_use})
    found.check()
    return PublishedText(text, found, targets if targets != text else "")


def _text(file: Path) -> str:
    """The text of `file`; empty if there is no such file."""
    return read_text(file) if file.is_file() else ""


def _read(file: Path) -> dict[str, Any]:
    """The JSON object in `file`; empty if there is no such file.

    Raises:
        InputError: it is not a JSON object.
    """
    if not file.is_file():
        return {}
    try:
        values = json.loads(read_text(file), object_pairs_hook=unique_keys, parse_constant=reject_nan)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file}: not JSON: {error}") from None
    if not isinstance(values, dict):
        raise InputError(f"{file}: not a JSON object")
    return values


def _auto_tokenizer(folder: Path, model: Path, languages: tuple[str, str] | None) -> Any:
    """transformers' tokenizer in `folder` for the model in `model`, from local files and without any code of them.

    Raises:
        InputError: it cannot be built.
        MachineError: it needs a package that is not installed.
    """
    transformers = import_transformers()
    require_sentencepiece(folder)
    codes: dict[str, Any] = {} if languages is None else {"src_lang": languages[0], "tgt_lang": languages[1]}
    try:
        if folder != model:  # an adapter's, without a config.json of its own
            codes["config"] = transformers.AutoConfig.from_pretrained(
                model, local_files_only=True, trust_remote_code=False
            )
        with warnings.catch_warnings():
            # Marian's advertises a package that it then never calls.
            warnings.filterwarnings("ignore", "Recommended: pip install sacremoses")
            theirs = transformers.AutoTokenizer.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False, **codes
            )
    # The errors of many tokenizers and of missing packages; a panic of the library is only a BaseException.
    except BaseException as error:
        if isinstance(error, (CommandEnd, KeyboardInterrupt, SystemExit, MemoryError)):
            raise
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        raise InputError(f"{folder}: transformers cannot read its tokenizer: {lines[0][:160]}") from None
    return theirs


def _default_template(value: Any) -> str:
    """The chat template, of several the one called ``default``."""
    return str(value.get("default", "")) if isinstance(value, dict) else str(value or "")


def _frame(encode: Encode) -> dict[str, Any]:
    """The ids that `encode` puts before and after a text."""
    bare, whole = list(encode("a", True)), list(encode("a", False))
    for at in range(len(whole) - len(bare) + 1):
        if whole[at : at + len(bare)] == bare:
            return {"before": tuple(whole[:at]), "after": tuple(whole[at + len(bare) :])}
    return {}
