"""Checks a folder for ``transformers`` by its content, before that library reads any of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.files.regular_files import read_regular, require_few_containers
from bigmodel_cli.core.readers.json_lines import unique_keys
from bigmodel_cli.core.tokenizers.files import MAX_BYTES, checked_tokenizer
from bigmodel_cli.core.tokenizers.huggingface_json import TARGETS
from bigmodel_cli.export.checksums import is_file_of
from bigmodel_cli.export.contents import check_safetensors, refuse
from bigmodel_cli.export.folder import EXPORT, LABELS, PREPROCESS, PROOF

CODE_SUFFIXES = frozenset({".py", ".bin", ".pt", ".pth", ".pkl", ".pickle", ".so", ".dll", ".dylib", ".ts", ".pt2"})
MAX_CONFIG_BYTES = 16_000_000
TOKENIZER = "tokenizer.json"
FOREIGN_KEYS = frozenset({"auto_map", "configuration_files", "fast_tokenizer_files"})
"""What names Python code, or other files to read in the place of the checked ones."""
FOREIGN_FILES = frozenset({"adapter_config.json"})
"""What names another folder whose weights are to be loaded first."""


def check_huggingface(path: Path) -> None:
    """Weights as safetensors, settings that name no code and no other file, a tokenizer within its limits, no link out.

    Raises:
        InputError: the folder holds anything else, or a file is larger than its kind may be.
    """
    folder = path.parent
    own = {folder / name for name in (EXPORT, LABELS, PREPROCESS, PROOF)}
    tokenizers = {folder / TOKENIZER, folder / TARGETS}
    check_safetensors(path)
    for file in folder.rglob("*"):
        if not is_file_of(folder, file) and (file.is_symlink() or not file.is_dir()):
            what = f"{file}: no regular file of this folder"
            raise InputError(what, "expected no links out of the folder", "export it again")
        if file.suffix.lower() in CODE_SUFFIXES and file != folder / "example.py":
            raise refuse(file, "can hold code", "only safetensors, JSON and text files in the folder")
        if file.name in FOREIGN_FILES:
            raise refuse(file, "names weights elsewhere", "the weights of the whole model")
        if file in tokenizers:
            _check_tokenizer(file)
        elif file.suffix.lower() == ".json" and not file.is_dir() and file not in own:
            _check_settings(file)
    if not (folder / TOKENIZER).is_file():  # transformers would look for a tokenizer in other, unchecked files
        raise InputError(f"{folder / TOKENIZER}: not there", hint="restore it, or export it again")


def _check_settings(file: Path) -> None:
    raw = read_regular(file, MAX_CONFIG_BYTES)
    require_few_containers(file, raw)
    try:
        values = json.loads(raw.decode("utf-8"), object_pairs_hook=unique_keys)
    except (ValueError, RecursionError) as error:
        raise refuse(file, f"cannot be read: {error}", "JSON") from None
    left: list[Any] = [values]
    while left:
        value = left.pop()
        if isinstance(value, dict):
            for key in sorted(FOREIGN_KEYS & value.keys()):
                raise refuse(file, f"names code or files of its own ({key})", "one of transformers' own models")
            left += value.values()
        elif isinstance(value, list):
            left += value


def _check_tokenizer(file: Path) -> None:
    try:
        checked_tokenizer(read_regular(file, 4 * MAX_BYTES).decode("utf-8"))
    except (InputError, UnicodeDecodeError) as error:
        raise InputError(f"{file}: {error}", hint="export it again") from None
