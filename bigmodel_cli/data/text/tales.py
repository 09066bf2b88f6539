"""Made-up stories in plain words: a text that comes with the package, for a first language model."""

from __future__ import annotations

import functools
import random
from pathlib import Path

from bigmodel_cli.core.registry import data
from bigmodel_cli.core.types import DataBundle, TextSpec
from bigmodel_cli.data.text.tokenizer_choice import as_text_spec, choose_tokenizer
from bigmodel_cli.data.text.windows import CharTokenizer, Context, build_windows

STORIES = 1200
WHO = {
    "girl": "she", "boy": "he", "queen": "she", "king": "he", "mother": "she", "farmer": "he", "fox": "it",
    "hare": "it", "owl": "it", "bear": "it", "old woman": "she", "old man": "he",
}  # fmt: skip
NAMES = {"girl": ["Ada", "Mia", "Rosa"], "boy": ["Tom", "Ben", "Leo"], "queen": ["Maud"], "king": ["Otto"]}
PLACES = ["the wood", "the river", "the market", "the hill", "the old mill", "the garden", "the sea"]
THINGS = [
    "a red apple",
    "a silver key",
    "a loaf of bread",
    "a little boat",
    "a lost lamb",
    "a golden ring",
    "a lamp",
]
MOODS = ["happy", "tired", "hungry", "brave", "curious", "lonely", "merry"]
TIMES = ["One morning", "One cold night", "Long ago", "In the spring", "After the rain", "On a summer day"]
ENDS = [
    "From that day on {p} was never {m} again.", "And so {p} went home and slept.", "That was the end of it.",
    "Everyone in {place} heard of it.", "And if {p} has not left, {p} is there still.",
]  # fmt: skip


def _story(rng: random.Random) -> str:
    who, other = rng.sample(sorted(WHO), 2)
    p, mood, place, thing = WHO[who], rng.choice(MOODS), rng.choice(PLACES), rng.choice(THINGS)
    named = f" named {rng.choice(NAMES[who])}" if who in NAMES and rng.random() < 0.6 else ""
    article = "an" if who[0] in "aeiou" else "a"
    lines = [
        f"{rng.choice(TIMES)} {article} {who}{named} went to {place}.",
        f"There {p} found {thing}." if rng.random() < 0.7 else f"There {p} looked for {thing}, but found none.",
        f"The {who} was {mood}, and {p} sang a song.",
        f'"What have you there?" asked the {other}.',
        f'"Only {thing}," said the {who}.' if rng.random() < 0.6 else f'"Nothing at all," said the {who}.',
        f"Then the {other} {rng.choice(['laughed', 'wept', 'danced', 'ran away', 'sat down'])}.",
        rng.choice(ENDS).format(p=p, m=mood, place=place),
    ]
    return " ".join(line for i, line in enumerate(lines) if i in (0, 6) or rng.random() < 0.8)


@functools.cache
def _text() -> str:
    rng = random.Random(2026)  # Python keeps the numbers of a seed from version to version
    return "\n\n".join(_story(rng) for _ in range(STORIES)) + "\n"


@data.register(task="language_modeling", files=())
def tales(
    root: Path, like: TextSpec | None = None, *, context: Context = 64, tokenizer: CharTokenizer = "auto"
) -> DataBundle:
    """1,200 short made-up stories in plain words, 0.2 MB, bundled: needs no network."""
    text = _text()
    like = as_text_spec(like)
    spec = choose_tokenizer("char" if (tokenizer, like) == ("auto", None) else tokenizer, like, context, root, [text])
    return build_windows(spec, {"train": text[: int(len(text) * 0.9)], "val": text[int(len(text) * 0.9) :]})
