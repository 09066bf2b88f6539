"""``bigmodel data tokenize``: a text of any size to token shards, which training reads where they lie."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bigmodel_cli.commands import console
from bigmodel_cli.commands import options as opt
from bigmodel_cli.core.cpu_count import available_cores
from bigmodel_cli.core.errors import InputError

if TYPE_CHECKING:
    from bigmodel_cli.core.types import TextSpec
    from bigmodel_cli.data.token_shards.tokenizing import Progress, Unit

DEFAULT_SIZE = 8192
SHARD_TOKENS = 100_000_000


def tokenize(
    paths: Annotated[
        list[Path], typer.Argument(metavar="PATH...", help='Text, folders of it, JSON lines with "text".')
    ],
    out: Annotated[Path, typer.Option("--out", help="Folder to make.")] = Path("shards"),
    vocab_size: Annotated[
        int | None, typer.Option("--vocab-size", min=300, max=1 << 20, help="Train a byte-level BPE of so many tokens.")
    ] = None,
    tokenizer: Annotated[
        str | None, typer.Option("--tokenizer", help="Or take one: byte, char, gpt2, or a tokenizer.json.")
    ] = None,
    processes: Annotated[
        int | None, typer.Option("--processes", min=1, max=256, help="How many work at once.  [default: one a core]")
    ] = None,
    shard_tokens: Annotated[int, typer.Option("--shard-tokens", min=1, help="Tokens a file.")] = SHARD_TOKENS,
    encoding: Annotated[str, typer.Option("--encoding", help="Of the files: auto, utf-8, latin-1, ...")] = "auto",
    data_dir: opt.DataDir = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the shards in --out.")] = False,
    json: opt.Json = False,
) -> None:
    """Make token shards of a text: train a tokenizer on it, or take one, and cut it into tokens once.

    The shards are the same to the byte whatever the number of processes, and whole or not there.

    Examples:

        bigmodel data tokenize corpus/ --vocab-size 8192 --out shards

        bigmodel data tokenize book.txt --tokenizer byte

        bigmodel train gpt-nano --data ./shards
    """
    from bigmodel_cli.commands.progress import WaitBars
    from bigmodel_cli.core.recipe import data_root
    from bigmodel_cli.data.token_shards.files import Writer, check_free
    from bigmodel_cli.data.token_shards.tokenizing import plan, text_of_files, write

    if vocab_size is not None and tokenizer is not None:
        raise InputError("--vocab-size and --tokenizer together", "expected a new tokenizer or one that is there")
    clock = time.perf_counter()
    out = Path(os.path.normpath(out.expanduser().absolute()))
    check_free(out, overwrite)
    files = [file for path in paths for file in text_of_files(path.expanduser())]
    with WaitBars() as bars:
        units, notes = plan(files, encoding)
        if not units:
            raise InputError(f"{paths[0]}: it is empty", "expected text")
        spec = _spec(units, tokenizer, vocab_size or DEFAULT_SIZE, data_root(data_dir), bars.read)
        with Writer(out, spec, shard_tokens, overwrite) as writer:
            write(units, spec, writer, processes or available_cores(), bars.read)
            source = {"files": len(files), "bytes": sum(unit.stop - unit.start for unit in units)}
            made = writer.finish(source)
    seconds = time.perf_counter() - clock
    if json:
        shown = {k: v for k, v in made.items() if k != "vocabulary"}
        console.print_json({"folder": str(out), "seconds": seconds, "notes": notes, **shown})
        return
    for note in notes:
        console.note(note)
    amount = f"{made['tokens']:,} tokens of {made['documents']:,} documents in {len(made['shards'])} files"
    console.say(f"{amount}, {made['bytes'] / max(made['tokens'], 1):.2f} bytes a token, {seconds:.1f} s")
    console.say(f"tokenizer {made['tokenizer']}, {made['vocabulary_size']:,} tokens; in {out}")
    console.say(f"next: bigmodel train gpt-nano --data {out}")


def _spec(units: Sequence[Unit], name: str | None, size: int, root: Path, tell: Progress) -> TextSpec:
    """The tokenizer to cut with: a new one of `size` tokens where none is named."""
    from bigmodel_cli.core.types import TextSpec
    from bigmodel_cli.data.text.tokenizer_choice import chosen
    from bigmodel_cli.data.token_shards import tokenizing

    if name is None:
        return TextSpec("bpe", (tokenizing.trained_tokenizer(units, size, tell),), 2)
    texts = [tokenizing.characters(units, tell)] if name == "char" else []
    return chosen(name, None, 2, root, texts, end=True)


def show_shards(folder: Path, json: bool) -> None:
    """What token shards hold, and whether every byte is what was written.

    Raises:
        InputError: the index is not one, or a file is not what was written.
    """
    from bigmodel_cli.core.tokens import tokenizer
    from bigmodel_cli.data.token_shards.files import read_index

    index = read_index(folder, context=2)
    damaged = index.damaged()
    if damaged:
        what = f"{folder / damaged[0]}: damaged ({len(damaged)} of {len(index.shards) + 1} files)"
        raise InputError(what, "expected the bytes of its checksum", "copy or make the shards again")
    lengths = index.document_lengths()
    facts = {
        "tokens": index.tokens, "documents": index.documents, "files": len(index.shards),
        "tokenizer": index.spec.tokenizer, "vocabulary": tokenizer(index.spec).size, "type": index.kind.name,
        "shortest document": lengths[0], "median document": lengths[1], "longest document": lengths[2],
    }  # fmt: skip
    if json:
        console.print_json({"folder": str(folder), "damaged": damaged, **facts})
        return
    rows = [(name, f"{value:,}" if isinstance(value, int) else str(value)) for name, value in facts.items()]
    console.show(console.table(f"token shards in {folder}", ("what", "value"), rows, right=True))
    console.say("every byte is what was written")
    console.say(f"next: bigmodel train gpt-nano --data {folder}")
