"""Tokenizers: lossless round trips, no special tokens from text, saving."""

import json
import pickle
import re
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jdl.data.tokenizers import (
    BPE,
    SPECIAL_TOKENS,
    Bytes,
    Chars,
    CharTokenizer,
    Saved,
    SubwordTokenizer,
    Tokenizer,
    read_tokenizer,
)
from jdl.errors import UserError, install_command
from jdl.files import RunDirectory

TEXTS = ["the cat sat on the mat", "the dog; the cats' house", "dogs  sit\n\ton mats, é 🙂"] * 3
PIECES = BPE(300).build(TEXTS)


@pytest.mark.parametrize("tokenizer", [Bytes(), PIECES], ids=["bytes", "pieces"])
def test_any_text_comes_back_and_every_byte_is_counted(tokenizer):
    sizes = tokenizer.token_bytes()

    @settings(max_examples=60, deadline=None)
    @given(st.text() | st.sampled_from(["", *TEXTS, "<eos>", "a<mask><pad> <bos>"]))
    def check(text):
        tokens = tokenizer.encode(text)
        assert tokenizer.decode(tokens) == text
        assert all(0 <= token < tokenizer.vocab_size for token in tokens)
        assert sizes[tokens].sum() == len(text.encode())

    check()
    assert sizes.shape == (tokenizer.vocab_size,)


@settings(max_examples=40, deadline=None)
@given(st.text(min_size=1))
def test_characters_are_numbered_in_unicode_order(text):
    tokenizer = Chars().build([text[:1], text[1:]])
    tokens = tokenizer.encode(text)
    assert tokens == [sorted(set(text)).index(character) for character in text]
    assert tokenizer.decode(tokens) == text
    assert tokenizer.token_bytes()[tokens].sum() == len(text.encode())


def test_a_character_without_a_token_is_named():
    with pytest.raises(UserError, match="the text contains 'x', 'é', which the training"):
        Chars().build(["abc"]).encode("éax")


def test_frequent_pairs_become_pieces():
    """Sennrich's algorithm by hand: "ab" is merged first, then "ab" and "c"."""
    pieces = BPE(256 + len(SPECIAL_TOKENS) + 2).build(["abc"] * 4 + ["abd"] * 3)
    assert pieces.vocab_size == 262
    assert [pieces.decode([token]) for token in pieces.encode("abcab")] == ["abc", "ab"]
    assert BPE(8192).build(["abc"]).vocab_size < 300  # no more than the text has to give


def test_learning_again_gives_the_same_pieces_and_other_texts_give_others():
    assert BPE(300).build(iter(TEXTS)) == PIECES
    assert BPE(300).build(["zebra zebras"] * 5) != PIECES


def test_special_tokens_in_a_text_are_plain_text():
    learned = BPE(320).build(["<eos> <eos> <pad><mask>"] * 50)
    for tokenizer in (PIECES, learned, pickle.loads(pickle.dumps(PIECES))):
        for special in SPECIAL_TOKENS:
            tokens = tokenizer.encode(special)
            assert min(tokens) >= len(SPECIAL_TOKENS)
            assert tokenizer.decode(tokens) == special
    assert PIECES.decode([1, *PIECES.encode("cat"), 2, 0, 3]) == "cat"
    assert not PIECES.token_bytes()[: len(SPECIAL_TOKENS)].any()


def test_capitals_may_be_lost():
    pieces = BPE(300, lowercase=True).build(TEXTS)
    assert pieces.encode("The CAT") == pieces.encode("the cat")
    assert pieces.decode(pieces.encode("The CAT")) == "the cat"


def test_broken_characters_show_as_replaced():
    for tokenizer in (Bytes(), PIECES):
        first, _ = tokenizer.encode("ß")
        assert tokenizer.decode([first]) == "\ufffd"


@pytest.mark.parametrize("tokenizer", [Bytes(), CharTokenizer("ab\nñ"), PIECES], ids=repr)
def test_what_is_saved_is_read_again(tokenizer, tmp_path):
    assert isinstance(tokenizer, Tokenizer)
    assert read_tokenizer(tokenizer.to_json()) == tokenizer
    text = json.dumps(json.loads(tokenizer.to_json()), indent=2)
    (RunDirectory(tmp_path).tokenizer).write_text(text)
    again = Saved(str(tmp_path)).build([])
    assert again.encode("ab\nñ" * 2) == tokenizer.encode("ab\nñ" * 2)
    assert again.vocab_size == tokenizer.vocab_size


GARBAGE = {
    "nothing": "",
    "no JSON": "{",
    "a number": "3",
    "a list": "[]",
    "an empty object": "{}",
    "another kind": '{"jdl": "words"}',
    "another kind, with characters": '{"jdl": "words", "characters": "ab"}',
    "no characters": '{"jdl": "characters"}',
    "numbers for characters": '{"jdl": "characters", "characters": [1, 2]}',
    "a character twice": '{"jdl": "characters", "characters": "aba"}',
    "a piece of one": PIECES.to_json()[:2000],
    "no model": json.dumps({**json.loads(PIECES.to_json()), "model": {"type": "?"}}),
}


@pytest.mark.parametrize("text", GARBAGE.values(), ids=GARBAGE)
def test_garbage_is_refused_in_a_sentence(text, tmp_path):
    with pytest.raises(UserError, match="this is not a tokenizer saved by jdl"):
        read_tokenizer(text)
    (RunDirectory(tmp_path).tokenizer).write_text(text)
    with pytest.raises(UserError, match=r"tokenizer\.json cannot be read: this is not a tokenizer"):
        Saved(str(tmp_path)).build([])


def test_a_run_without_a_tokenizer_is_named(tmp_path):
    with pytest.raises(UserError, match=r"nowhere has no tokenizer\.json"):
        Saved(str(tmp_path / "nowhere")).build([])
    (RunDirectory(tmp_path).tokenizer).write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match=r"tokenizer\.json cannot be read: 'utf-8' codec"):
        Saved(str(tmp_path)).build([])


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(UserError, match=re.escape(install_command("text"))):
        BPE().build(TEXTS)
    with pytest.raises(UserError, match=re.escape(install_command("text"))):
        read_tokenizer(SubwordTokenizer(PIECES.text).to_json())


def test_a_vocabulary_needs_room_for_every_byte():
    with pytest.raises(UserError, match=r"BPE\.vocab_size must be at least 260, not 259"):
        BPE(259)
    assert BPE(260).build(TEXTS).encode("cat") == [
        PIECES.encode(letter)[0] for letter in "cat"
    ]  # letters alone


def test_bytes_are_those_of_utf8():
    assert Bytes().build(TEXTS).encode("é!") == list(np.frombuffer("é!".encode(), np.uint8))
