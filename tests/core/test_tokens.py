"""Tokenizers: what goes in comes out, what is unknown is named, and every byte of a text is counted."""

from __future__ import annotations

import re
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.tokenizers.char import char_vocabulary
from bigmodel_cli.core.tokenizers.tokens import encode_padded, token_id_map, tokenizer
from bigmodel_cli.core.tokenizers.word import word_vocabulary
from bigmodel_cli.core.tokenizers.wordpunct import split_marks
from bigmodel_cli.core.types import TextSpec

PLAIN = st.text(st.characters(exclude_categories=["Cs"]))


def spec(kind: str, vocabulary: tuple[str, ...] = ()) -> TextSpec:
    return TextSpec(kind, vocabulary, 8)


@given(PLAIN)
def test_bytes_and_characters_give_the_text_back(text: str) -> None:
    for found in (tokenizer(spec("byte")), tokenizer(spec("char", char_vocabulary([text + "a"])))):
        ids = list(found.encode(text))
        assert found.decode(ids) == text
        assert all(0 <= i < found.size for i in ids)
        assert sum(found.byte_lengths()[i] for i in ids) == len(text.encode())


def test_a_character_that_training_never_saw_is_named() -> None:
    with pytest.raises(InputError, match="the character 'é' is not in the vocabulary"):
        tokenizer(spec("char", ("a", "b"))).encode("abé")
    known = tokenizer(spec("char", ("<unk>", "a")))
    assert known.encode("aé") == [1, 0]


def test_words_are_lower_case_and_a_special_token_cannot_be_written() -> None:
    vocabulary = word_vocabulary(["The film the film the", "a film <pad>"], least=2)
    assert vocabulary == ("<pad>", "<unk>", "<start>", "<end>", "film", "the")
    known = tokenizer(spec("word", vocabulary))
    assert known.encode("THE film <pad> <end> gone") == [5, 4, 1, 1, 1]
    assert known.decode([2, 5, 4, 3, 0]) == "the film"


@given(st.text(st.characters(max_codepoint=0x24F) | st.sampled_from("東京、。“”…—👍€\u3000")))
def test_marks_are_divided_as_bert_divides_them(text: str) -> None:
    library, text = pytest.importorskip("tokenizers"), text.replace("'", "")
    bert = library.normalizers.BertNormalizer(False, True, False, True)
    pieces = library.pre_tokenizers.BertPreTokenizer().pre_tokenize_str(bert.normalize_str(text.lower()))
    symbol = re.compile("[" + "".join(re.escape(c) for c in set(text) if unicodedata.category(c)[0] == "S") + "€]")
    expected = [part for piece, _ in pieces for part in re.split(f"({symbol.pattern})", piece) if part]
    known = tokenizer(spec("wordpunct", ("<pad>", "<unk>", "a")))
    found = split_marks(text)
    assert found == [part for piece in expected for part in piece.split()]
    assert list(known.encode(text)) == [2 if word == "a" else 1 for word in found]


def test_an_apostrophe_within_a_word_is_a_part_of_it() -> None:
    assert split_marks("Don't! the film’s 'end'") == ["don't", "!", "the", "film’s", "'", "end", "'"]


def test_padding_is_at_the_end_and_the_context_cuts() -> None:
    known = spec("word", ("<pad>", "<unk>", "a", "b"))
    assert encode_padded(["a b", "", "a b a b a b a b a b"], known).tolist() == [
        [2, 3, 0, 0, 0, 0, 0, 0],
        [0] * 8,
        [2, 3, 2, 3, 2, 3, 2, 3],
    ]
    assert encode_padded([""], known).tolist() == [[0]]


def test_tokens_of_other_data_are_matched_by_name() -> None:
    ours, theirs = spec("char", ("a", "b", "c")), spec("char", ("b", "d", "a"))
    assert token_id_map(ours, theirs) == (1, -1, 0)
    assert token_id_map(ours, ours) is None
    assert token_id_map(spec("word", ("<pad>", "<unk>", "x")), spec("word", ("<pad>", "<unk>", "y", "x"))) == (
        0,
        1,
        1,
        2,
    )
    for other in (spec("byte"), spec("char", ("x",))):
        with pytest.raises(InputError, match="expected the same tokenizer"):
            token_id_map(ours, other)


@pytest.mark.parametrize(
    ("kind", "vocabulary"),
    [
        ("char", ()),
        ("char", ("a", "a")),
        ("word", ("a",)),
        ("wordpunct", ("<unk>", "a")),
        ("nonsense", ("a",)),
        ("char", (1, 2)),
    ],
)
def test_a_checkpoint_with_a_broken_tokenizer_is_refused(kind: str, vocabulary: tuple[str, ...]) -> None:
    with pytest.raises(InputError):
        tokenizer(TextSpec(kind, vocabulary, 8))
