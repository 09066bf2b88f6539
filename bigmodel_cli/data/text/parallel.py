"""Parallel texts for translation. Shapes: B batch, S source tokens, T target tokens."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from bigmodel_cli.core.counted import counted
from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.readers.text_files import read_lines
from bigmodel_cli.core.registry import data
from bigmodel_cli.core.special_tokens import PAD, SPECIALS
from bigmodel_cli.core.splits import name_hash
from bigmodel_cli.core.tokenizers.framing import encode_source, encode_target, source_is_cut, target_is_cut
from bigmodel_cli.core.tokenizers.tokens import tokenizer, train_bpe
from bigmodel_cli.core.types import Batch, DataBundle, TextSpec
from bigmodel_cli.data.download import download
from bigmodel_cli.data.text.labelled import cut_note
from bigmodel_cli.data.text.tokenizer_choice import as_text_spec, new_tokenizer

Context = Annotated[
    int | None,
    Field(ge=2, le=1 << 12, description="tokens per text; longer ones are cut; null: a checkpoint's, or 64"),
]
USUAL = 64
Size = Annotated[int, Field(ge=300, le=1 << 17, description="size of the BPE vocabulary")]
Pieces = Annotated[Literal["auto", "bpe", "word"], Field(description="auto: the checkpoint's, or bpe")]
FILES = {"train": "train", "val": "val", "test": "test_2016_flickr"}
MULTI30K = "https://raw.githubusercontent.com/multi30k/dataset/a3d2e0d26b56f3846f66a952536ffed4e401d05a/data/task1/raw/"
MULTI30K_SHA256 = {
    "train.en.gz": "d79cfa999dd4c51d2cb42499b6796d5a882c3a8a961923c25a898c90f8bbd56f",
    "train.de.gz": "726e39b2fa9eb9ffb6dc763fb35a179f80fae06ffc5d28b6ace5faa883de28a6",
    "val.en.gz": "14f7d25ddd868909a9213e361768460edcacdd6ab9d1e77b92560dc10c10dc28",
    "val.de.gz": "f0cba2f995189cf5770f29a8a9a537a3ad3f51657ad873405082ff6863a5e75a",
    "test_2016_flickr.en.gz": "611d361c6334bc7246101d48097c13cf5c4413c5befc793cc629934359d532d9",
    "test_2016_flickr.de.gz": "9204244e408ccb38d2a55cfcd344df15005fc42a07a6e55ca6c52b6ababb8cc8",
}
Pairs = tuple[list[str], list[str]]


class ParallelTexts:
    """One split: `pairs` of sources and targets. A batch is padded to its longest text on either side."""

    def __init__(self, pairs: Pairs, spec: TextSpec, split: str, groups: Sequence[str] | None = None) -> None:
        # Pairs of one source stay on one side, so that no translation in val was learnt by heart.
        self.groups = torch.tensor([name_hash(name) for name in groups or pairs[0]])
        self.split, self.sources, self.targets = split, *pairs
        self.pad = tokenizer(spec).special[PAD]
        self.source = [torch.tensor(encode_source(t, spec) or [self.pad], dtype=torch.int32) for t in pairs[0]]
        # <start> comes first; truncation leaves room for <end>.
        self.target = [torch.tensor(encode_target(t, spec), dtype=torch.int32) for t in pairs[1]]
        sides = zip(*pairs, self.source, self.target, strict=True)
        cut = [(source_is_cut(a, len(x), spec), target_is_cut(b, len(y), spec)) for a, b, x, y in sides]
        self.notes = [
            *cut_note(split, sum(source for source, _ in cut), len(self), spec, "sources"),
            *cut_note(split, sum(target for _, target in cut), len(self), spec, "targets"),
        ]

    def __len__(self) -> int:
        return len(self.source)

    @functools.cached_property
    def lengths(self) -> Tensor:
        """(n,) tokens in each pair, source and target together, so that batches hold pairs of similar length."""
        return torch.tensor([len(a) + len(b) for a, b in zip(self.source, self.target, strict=True)])

    def gather(self, indices: Tensor) -> Batch:
        chosen = indices.tolist()
        sides = {"source": self.source, "target": self.target}
        rows = {k: pad_sequence([v[i] for i in chosen], True, self.pad) for k, v in sides.items()}
        return {**rows, "index": indices}

    def name(self, index: int) -> str:
        return f"{self.split}[{index}] {self.sources[index][:60]}"


def build_parallel(
    splits: Mapping[str, Pairs],
    kind: str,
    like: TextSpec | None,
    size: int,
    context: int | None,
    notes: Sequence[str] = (),
    groups: Mapping[str, Sequence[str]] = MappingProxyType({}),
) -> DataBundle:
    """Build the bundle from (sources, targets) by split, with one vocabulary: `like`'s, or from the train split.

    `groups` are the groups of the pairs in a split, which stay on one side when val is carved; default: their sources.
    """
    notes = list(notes)
    own = like.context if like is not None and like.conventions is None else USUAL  # published ones are long
    context = context or own
    if kind == "auto" and like is not None:
        spec = like.with_(context=context)
    elif "train" not in splits:
        raise InputError(f"no train split, only {', '.join(splits)}", "a vocabulary comes from train", "bigmodel eval")
    else:
        train = [*splits["train"][0], *splits["train"][1]]
        bpe = kind in ("auto", "bpe")
        spec = (
            TextSpec("bpe", (train_bpe(train, size),), context)
            if bpe
            else new_tokenizer(kind, train, SPECIALS, context)
        )

    @functools.cache
    def load(split: str) -> ParallelTexts:
        texts = ParallelTexts(splits[split], spec, split, groups.get(split))
        notes.extend(texts.notes)
        return texts

    digest = hashlib.sha256(repr([splits[s] for s in sorted(splits)]).encode("utf-8", "surrogatepass")).hexdigest()
    return DataBundle(spec, {split: functools.partial(load, split) for split in splits}, digest, notes)


def read_pair(source: Path, target: Path, encoding: str = "utf-8", notes: list[str] | None = None) -> Pairs:
    """Read two files with one sentence per line; pairs with an empty side are left out.

    Raises:
        InputError: the line counts differ, or the files are empty.
    """
    pair = read_lines(source, encoding, notes), read_lines(target, encoding, notes)
    if len(pair[0]) != len(pair[1]) or not pair[0]:
        raise InputError(
            f"{source}: {len(pair[0])} lines, {target.name} has {len(pair[1])}", "expected the same number"
        )
    full = [both for both in zip(*pair, strict=True) if both[0].strip() and both[1].strip()]
    if notes is not None and len(full) < len(pair[0]):
        unused = counted(len(pair[0]) - len(full), "pair")
        notes.append(f"{unused} not used: an empty line in {source.name} or {target.name}")
    return [first for first, _ in full], [second for _, second in full]


@data.register("multi30k-en-de", task="translation", files=("train.en.gz",))
def multi30k_en_de(
    root: Path,
    like: TextSpec | None = None,
    *,
    context: Context = None,
    tokenizer: Pieces = "auto",
    vocabulary: Size = 8000,
) -> DataBundle:
    """31,014 image captions, English to German (Elliott et al. 2016); the test split is test_2016_flickr."""
    folder = root / "multi30k-en-de"
    for file, checksum in MULTI30K_SHA256.items():
        if not (folder / file).is_file():
            hint = "--data-dir DIR with its six files in multi30k-en-de/"
            download([MULTI30K + file], folder / file, sha256=checksum, what="multi30k-en-de", hint=hint)
    splits = {split: read_pair(folder / f"{f}.en.gz", folder / f"{f}.de.gz") for split, f in FILES.items()}
    return build_parallel(splits, tokenizer, as_text_spec(like), vocabulary, context)
