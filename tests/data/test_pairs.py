"""Pairs of texts are tokenized, and errors name those that cannot be translated."""

import subprocess
import sys

import numpy as np
import pytest

from jdl.data import TFDS, Arrays, Pairs, PairTable
from jdl.data.prepare import prepare
from jdl.data.tokenizers import BOS, BPE, EOS, PAD
from jdl.errors import UserError
from tests.data.originals import write_multi30k

EN = ["A dog runs.", "Two men are sitting on a bench.", "A dog.", "Two dogs run on a bench."]
DE = ["Ein Hund läuft.", "Zwei Männer sitzen auf einer Bank.", "Ein Hund.", "Zwei Hunde laufen."]
SMALL = BPE(vocab_size=300)


def split(*rows, sources="en", targets="de"):
    sides = ((sources, EN), (targets, DE))
    return {name: np.array([side[row] for row in rows], object) for name, side in sides}


def pairs(train=None, test=None, **options):
    arrays = {"train": train or split(0, 1, 2), "test": test or split(3)}
    return Pairs(Arrays(arrays, validation_fraction=0.0), **{"encoding": SMALL} | options)


def decode(data, tokens):
    return data.tokenizer().decode(tokens.tolist())


def test_both_sides_are_tokens_between_begin_and_end():
    data = pairs(max_source_length=40, max_target_length=40)
    train, tokenizer = data.splits()["train"], data.tokenizer()
    assert len(train) == 3
    for row in range(3):
        source, target = train[row]["source"], train[row]["target"]
        assert (source.shape, target.shape, source.dtype) == ((40,), (41,), np.int32)
        english, german = tokenizer.encode(EN[row]), tokenizer.encode(DE[row])
        assert source.tolist() == [*english, EOS, *[PAD] * (39 - len(english))]
        assert target.tolist() == [BOS, *german, EOS, *[PAD] * (39 - len(german))]
        assert (decode(data, source), decode(data, target)) == (EN[row], DE[row])
    np.testing.assert_array_equal(data.encode(EN[:3]), [train[i]["source"] for i in range(3)])


def test_pieces_are_learned_from_both_sides_of_the_training_split_alone():
    strange = {"en": np.array(["zzzzzz zzzzzz"], object), "de": np.array(["qqqqqq"], object)}
    found = pairs(split(0, 1, 2), strange).tokenizer()
    assert found == pairs().tokenizer()
    assert found.to_json() == SMALL.build([*EN[:3], *DE[:3]]).to_json()
    assert len(found.encode("zzzzzz")) == 6
    whole = pairs(split(0, 1, 2), encoding=BPE(vocab_size=360)).tokenizer()
    assert [len(whole.encode(word)) for word in (" dog", " Hund")] == [1, 1]


def test_pieces_are_the_same_in_another_process():
    code = f"from jdl.data.tokenizers import BPE; print(BPE(300).build({EN + DE}).to_json())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == SMALL.build(EN + DE).to_json()


def test_long_pairs_lose_their_end_in_training_and_never_in_scoring(caplog):
    data = pairs(split(0, 1, 2), split(1), max_source_length=6, max_target_length=30)
    splits, tokenizer = data.splits(), data.tokenizer()
    assert splits["train"][1]["source"].tolist() == tokenizer.encode(EN[1])[:6]
    assert "of 3 training pairs of arrays are longer than 6 and 30 tokens" in caplog.text
    long = sum(len(tokenizer.encode(text)) + 1 > 6 for text in EN[:3])
    assert caplog.text.count(f"{long} of 3")
    test = splits["test"][0]
    assert test["source"].tolist() == [*tokenizer.encode(EN[1]), EOS]
    assert decode(data, test["target"]) == DE[1]
    assert data.encode([EN[1], EN[2]]).shape == (2, len(tokenizer.encode(EN[1])) + 1)


def test_what_looks_like_a_special_token_is_text():
    given = {"en": np.array(["<eos> <pad>"], object), "de": np.array(["a<bos>b"], object)}
    data = pairs(given, given)
    source = data.splits()["train"][0]["source"]
    assert decode(data, source) == "<eos> <pad>"
    assert (source == EOS).sum() == 1


def test_a_prepared_set_is_read(tmp_path):
    written = write_multi30k(tmp_path / "raw")
    prepare("multi30k", raw=tmp_path / "raw", data_dir=tmp_path, report=lambda sentence: None)
    data = Pairs(TFDS("multi30k", data_dir=str(tmp_path)), encoding=SMALL)
    splits = data.splits()
    assert {name: len(source) for name, source in splits.items()} == {
        "train": 3, "validation": 2, "test": 1,
    }  # fmt: skip
    found = {decode(data, splits["train"][i]["target"]) for i in range(3)}
    assert found == {pair["de"].decode() for pair in written}
    assert data.full_name() == "multi30k:1.0.0"
    back = Pairs(
        TFDS("multi30k", data_dir=str(tmp_path)), source_lang="de", target_lang="en", encoding=SMALL
    )
    assert decode(data, splits["test"][0]["source"]) == decode(
        back, back.splits()["test"][0]["target"]
    )


@pytest.mark.parametrize("kind", ["csv", "tsv"])
def test_a_table_of_pairs_is_read(tmp_path, kind):
    path = tmp_path / f"pairs.{kind}"
    rows = [("de", "en"), *((d, e) for e, d in zip(EN * 5, DE * 5, strict=True)), ('Er: "ja"', '"')]
    if kind == "csv":
        quoted = [[field.replace('"', '""') for field in row] for row in rows]
        text = "".join(",".join(f'"{field}"' for field in row) + "\n" for row in quoted)
    else:
        text = "".join("\t".join(row) + "\n" for row in rows)
    path.write_text(text)
    data = Pairs(PairTable(str(path), test_fraction=0.0, validation_fraction=0.0), encoding=SMALL)
    (train,) = data.splits().values()
    examples = [train[i] for i in range(len(train))]
    found = [(decode(data, e["target"]), decode(data, e["source"])) for e in examples]
    assert found == rows[1:]
    parts = Pairs(PairTable(str(path)), encoding=SMALL).splits()
    assert {name: len(part) for name, part in parts.items()} == {
        "train": 15, "test": 4, "validation": 2,
    }  # fmt: skip


def test_what_cannot_be_translated_is_named(tmp_path):
    cases = [
        (lambda: pairs(source_lang="fr"), "arrays has no text 'fr' .it has 'en', 'de'."),
        (lambda: pairs(target_lang="dee"), "no text 'dee' .*; did you mean 'de'"),
        (lambda: pairs({"en": np.array([1]), "de": np.array([2])}), "no text 'en' .it has none."),
    ]
    for make, message in cases:
        with pytest.raises(UserError, match=message):
            make().splits()
    empty = split(0, 1, 2)
    empty["de"][1] = " "
    with pytest.raises(UserError, match="the text 'de' of example 2 in split 'train' is empty"):
        pairs(empty).splits()
    with pytest.raises(UserError, match="max_target_length must be at least 2, not 1"):
        pairs(max_target_length=1)
    with pytest.raises(UserError, match="lowercase must stay false"):
        pairs(encoding=BPE(lowercase=True))
    with pytest.raises(UserError, match="jdl translate"):
        pairs().reader()


def test_a_missing_library_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(
        UserError, match=r"BPE needs the package tokenizers: pip install .*\[text\]"
    ):
        pairs().splits()
