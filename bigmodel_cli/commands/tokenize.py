"""``bigmodel data tokenize``: a text of any size, as token shards that training reads in place."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bigmodel_cli.commands.arguments import options as opt
from bigmodel_cli.commands.display import console
from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.processes.cpu_count import available_cores

if TYPE_CHECKING:
    from bigmodel_cli.core.types import TextSpec
    from bigmodel_cli.data.token_shards.tokenizing import Progress, Unit

DEFAULT_VOCAB_SIZE = 8192
SHARD_TOKENS = 100_000_000


Paths = Annotated[
    list[Path],
    typer.Argument(metavar="PATH", help='Text files, JSON lines with a "text" field, or folders of them.'),
]
VocabSize = Annotated[
    int | None,
    typer.Option(
        "--vocab-size",
        metavar="N",
        min=300,
        max=1 << 20,
        help=f"Train a byte-level BPE tokenizer of N tokens.  [default: {DEFAULT_VOCAB_SIZE}]",
    ),
]
Tokenizer = Annotated[
    str | None,
    typer.Option(
        "--tokenizer", metavar="NAME", help="Use this tokenizer instead: byte, char, gpt2, or a tokenizer.json file."
    ),
]
Processes = Annotated[
    int | None,
    typer.Option(
        "--processes",
        metavar="N",
        min=1,
        max=256,
        help="Worker processes.  [default: one per core]",
    ),
]
ShardTokens = Annotated[int, typer.Option("--shard-tokens", metavar="N", min=1, help="Tokens per shard file.")]
Encoding = Annotated[
    str, typer.Option("--encoding", metavar="NAME", help="Encoding of the text: auto, utf-8, latin-1, ...")
]


def tokenize(
    paths: Paths,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder to write.")] = Path("shards"),
    vocab_size: VocabSize = None,
    tokenizer: Tokenizer = None,
    processes: Processes = None,
    shard_tokens: ShardTokens = SHARD_TOKENS,
    encoding: Encoding = "auto",
    data_dir: opt.DataDir = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the shards in --out.")] = False,
    json: opt.Json = False,
) -> None:
    """Tokenize a text once into shards that training reads in place, with a new tokenizer or a given one.

    The shards are byte-for-byte the same for any number of processes. An interrupted command leaves none.

    Examples:

        bigmodel data tokenize corpus/ --vocab-size 8192 --out shards

        bigmodel data tokenize book.txt --tokenizer byte

        bigmodel train gpt-nano --data ./shards
    """
    from bigmodel_cli.core.recipe import data_root
    from bigmodel_cli.data.token_shards.files import check_writable
    from bigmodel_cli.data.token_shards.tokenizing import list_text_files

    if vocab_size is not None and tokenizer is not None:
        raise InputError("--vocab-size and --tokenizer together", "expected one: a new tokenizer or an existing one")
    clock = time.perf_counter()
    out = Path(os.path.normpath(out.expanduser().absolute()))
    for note in check_writable(out, overwrite):
        console.note(note)
    files = [file for path in paths for file in list_text_files(path.expanduser())]
    choice = TokenizerChoice(tokenizer, vocab_size or DEFAULT_VOCAB_SIZE, data_root(data_dir))
    index, notes = _write_shards(files, out, choice, encoding, shard_tokens, processes or available_cores(), overwrite)
    seconds = time.perf_counter() - clock
    if json:
        shown = {k: v for k, v in index.items() if k != "vocabulary"}
        console.print_json({"folder": str(out), "seconds": seconds, "notes": notes, **shown})
        return
    for note in notes:
        console.note(note)
    amount = f"{index['tokens']:,} tokens in {index['documents']:,} documents, {len(index['shards'])} files"
    console.say(f"{amount}; {index['bytes'] / max(index['tokens'], 1):.2f} bytes per token; {seconds:.1f} s")
    console.say(f"tokenizer {index['tokenizer']}, {index['vocabulary_size']:,} tokens")
    console.say(f"written: {out}")
    console.say(f"next: bigmodel train gpt-nano --data {out}")


@dataclass(frozen=True)
class TokenizerChoice:
    """An existing tokenizer by `name`, or a new one of `size` tokens where `name` is None."""

    name: str | None
    size: int
    root: Path

    def spec(self, units: Sequence[Unit], progress: Progress) -> TextSpec:
        """The tokenizer for the text in `units`."""
        from bigmodel_cli.core.types import TextSpec
        from bigmodel_cli.data.text.tokenizer_choice import choose_tokenizer
        from bigmodel_cli.data.token_shards import tokenizing

        if self.name is None:
            return TextSpec("bpe", (tokenizing.train_tokenizer(units, self.size, progress),), 2)
        texts = [tokenizing.collect_characters(units, progress)] if self.name == "char" else []
        return choose_tokenizer(self.name, None, 2, self.root, texts, end=True)


def _write_shards(
    files: list[Path],
    out: Path,
    choice: TokenizerChoice,
    encoding: str,
    shard_tokens: int,
    processes: int,
    overwrite: bool,
) -> tuple[dict[str, Any], list[str]]:
    """Write the shards; return their index, and notes on the text."""
    from bigmodel_cli.commands.display.progress import WaitBars
    from bigmodel_cli.data.token_shards.files import ShardWriter
    from bigmodel_cli.data.token_shards.tokenizing import plan_units, write_units

    with WaitBars() as bars:
        units, notes = plan_units(files, encoding)
        if not units:
            raise InputError(f"{files[0]}: the file is empty", "expected text")
        spec = choice.spec(units, bars.read)
        with ShardWriter(out, spec, shard_tokens, overwrite) as writer:
            write_units(units, spec, writer, processes, bars.read)
            source = {"files": len(files), "bytes": sum(unit.stop - unit.start for unit in units)}
            return writer.finish(source), notes


def show_shards(folder: Path, json: bool) -> None:
    """Print what token shards hold, once every byte is verified.

    Raises:
        InputError: the index is damaged, or a file differs from its checksum.
    """
    from bigmodel_cli.core.tokenizers.tokens import tokenizer
    from bigmodel_cli.data.token_shards.files import read_index

    index = read_index(folder, context=2)
    damaged_files = index.damaged_files()
    if damaged_files:
        what = f"{folder / damaged_files[0]}: damaged ({len(damaged_files)} of {len(index.shards) + 1} files)"
        raise InputError(what, "expected the bytes of its checksum", "copy the shards again, or tokenize again")
    lengths = index.document_lengths()
    facts = {
        "tokens": index.tokens, "documents": index.documents, "files": len(index.shards),
        "tokenizer": index.spec.tokenizer, "vocabulary": tokenizer(index.spec).size, "type": index.kind.name,
        "shortest document": lengths[0], "median document": lengths[1], "longest document": lengths[2],
    }  # fmt: skip
    if json:
        console.print_json({"folder": str(folder), "damaged": damaged_files, **facts})
        return
    rows = [(name, f"{value:,}" if isinstance(value, int) else str(value)) for name, value in facts.items()]
    console.show(console.table(f"token shards in {folder}", ("", "value"), rows, right=True))
    console.say("every file matches its checksum")
    console.say(f"next: bigmodel train gpt-nano --data {folder}")
