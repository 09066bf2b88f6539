"""Words that are counted and encoded in one pass are those that the plain functions give."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from bigmodel_cli.core.registry import tokenizers
from bigmodel_cli.core.tokenizers.word import word_vocabulary
from bigmodel_cli.core.types import TextSpec
from bigmodel_cli.data.text.counted_words import CountedWords
from bigmodel_cli.data.text.rows import encode_rows

WORDS = st.sampled_from(
    ["a", "A", "bb", "bb\n", "İ", "<unk>", "<pad>", "\u2028", "\u200b", "ß", "zz", " ", "", "a.", "!a"]
)
TEXTS = st.lists(st.lists(WORDS, max_size=9).map(" ".join), min_size=1, max_size=12)


@settings(max_examples=150, deadline=None)
@given(TEXTS, st.integers(2, 12), st.integers(0, 6), st.sampled_from(["word", "wordpunct"]))
def test_one_pass_gives_what_two_functions_give(texts: list[str], most: int, less: int, kind: str) -> None:
    pairs = [(text, f"g{len(text)}" if len(text) % 2 else None) for text in texts]
    split = tokenizers.get(kind).meta["split"]
    counted, context = CountedWords(pairs, most, kind, split), max(2, most - less)
    assert counted.longest == max(len(split(text)) for text in texts)
    vocabulary = counted.vocabulary()
    assert vocabulary == word_vocabulary(texts, split=split)
    expected = encode_rows(pairs, TextSpec(kind, vocabulary, context))
    found = counted.rows(vocabulary, context)
    assert [found[i].tolist() for i in range(len(texts))] == [expected[i].tolist() for i in range(len(texts))]
    assert (found.cut, found.groups.tolist()) == (expected.cut, expected.groups.tolist())
    assert [found.head(i) for i in range(len(texts))] == [expected.head(i) for i in range(len(texts))]
