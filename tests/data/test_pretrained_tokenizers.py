"""Tokenizers of pretrained models: WordPiece as transformers', special tokens, refusals."""

import json

import numpy as np
import pytest

import jdl
from jdl.data import (
    BPE,
    Arrays,
    Documents,
    MaskTokens,
    Pairs,
    Saved,
    Texts,
    TokenizerFile,
)
from jdl.data.tokenizers import read_tokenizer, special_ids
from jdl.files import RunDirectory
from jdl.models import BERT
from jdl.optimizers import Adam
from jdl.tasks import BinaryClassification
from tests.wordpiece import PIECES, wordpiece

TEXTS = np.array(["The un##affable cats, été!", "cat [SEP] " + "cats " * 20], object)


def split(**more):
    return Arrays({"train": {"text": TEXTS, **more}}, validation_fraction=0, test_fraction=0)


@pytest.fixture
def directory(tmp_path):
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "tokenizer.json").write_text(wordpiece())
    return tmp_path / "bert"


def test_wordpiece_is_that_of_bert(directory):
    """The expected pieces are those of transformers' BertTokenizer with this vocabulary."""
    pieces = TokenizerFile(str(directory)).build(())
    assert pieces == TokenizerFile(str(directory / "tokenizer.json")).build(())
    found = [PIECES[token] for token in pieces.encode("Unaffable cats, ÉTÉ! x")]
    assert found == ["un", "##aff", "##able", "cat", "##s", ",", "ete", "!", "[UNK]"]
    assert special_ids(pieces) == {"pad": 0, "bos": 2, "eos": 3, "mask": 4}
    assert pieces.decode([2, *pieces.encode("unaffable cats!"), 3, 0]) == "unaffable cats!"
    sizes = dict(zip(PIECES, pieces.token_bytes(), strict=True))
    assert (sizes["un"], sizes["##aff"], sizes["[UNK]"], sizes["[CLS]"]) == (2, 3, 0, 0)


def test_texts_are_in_the_special_tokens_of_the_model(directory, tmp_path):
    data = Texts(split(), encoding=TokenizerFile(str(directory)), length=12)
    first, second = (data.splits()["train"][i]["tokens"] for i in range(2))
    encode = data.tokenizer().encode
    assert first.tolist() == [2, *encode(TEXTS[0])[:10], 3]
    # What is written "[SEP]" in a text is no special token.
    assert second.tolist() == [2, *encode(TEXTS[1])[:10], 3]
    assert 3 not in encode(TEXTS[1])
    short = Texts(split(), encoding=TokenizerFile(str(directory)), length=64)
    padded = short.splits()["train"][0]["tokens"]
    count = len(encode(TEXTS[0]))
    assert padded[count + 1] == 3
    assert not padded[count + 2 :].any()
    left = Texts(split(), encoding=TokenizerFile(str(directory)), length=6, truncation_side="left")
    assert left.splits()["train"][1]["tokens"].tolist() == [2, *encode(TEXTS[1])[-4:], 3]
    RunDirectory(tmp_path).tokenizer.write_text(data.tokenizer().to_json())
    assert Saved(str(tmp_path)).build(()) == data.tokenizer()


def experiment(directory, device_transforms=(), **changes):
    sizes = {"max_position_embeddings": 16, "num_layers": 1, "num_heads": 1, "embed_dim": 4}
    encoding = TokenizerFile(str(directory))
    fields = {
        "model": BERT(vocab_size=len(PIECES), num_classes=1, **sizes),
        "task": BinaryClassification(),
        "data": Texts(
            split(label=np.array([0, 1])),
            encoding=encoding,
            length=8,
            device_transforms=device_transforms,
        ),
        "optimizer": Adam(1e-3),
        "batch_size": 2,
        "steps": 1,
        "hooks": (),
    }
    return jdl.Experiment(**{**fields, **changes})


def changed(directory, **changes):
    path = directory / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


REFUSED = {
    "no directory": (
        lambda here: TokenizerFile("nowhere").build(()),
        r"nowhere cannot be read .* name the tokenizer.json of a pretrained model, or its dir",
    ),
    "a run's": (
        lambda here: (
            (here / "tokenizer.json").write_text('{"jdl": "bytes"}'),
            TokenizerFile(str(here)).build(()),
        ),
        "tokenizer.json is a tokenizer of jdl: name its run with the encoding Saved",
    ),
    "damaged": (
        lambda here: (
            (here / "tokenizer.json").write_text(wordpiece()[:500]),
            TokenizerFile(str(here)).build(()),
        ),
        "tokenizer.json is not a tokenizer saved by jdl or transformers",
    ),
    "of another kind": (
        lambda here: (
            changed(here, model={"type": "Unigram", "unk_id": 0, "vocab": [["a", 0.0]]}),
            TokenizerFile(str(here)).build(()),
        ),
        "tokenizer of the kind Unigram; supported: WordPiece and byte-level BPE",
    ),
    "hides behind another token": (
        lambda here: jdl.train(experiment(here, (MaskTokens(vocab_size=len(PIECES)),))),
        "MaskTokens. hides tokens behind that of id 3, which in the tokenizer of arrays is 4",
    ),
    "other padding": (
        lambda here: jdl.train(
            experiment(here, model=experiment(here).model.clone(pad_token_id=1))
        ),
        "the tokenizer of arrays pads with token 0, the model ignores 1: set model.pad_token_id",
    ),
    "translates": (
        lambda here: Pairs(
            Arrays({"train": {"en": TEXTS, "de": TEXTS}}, validation_fraction=0, test_fraction=0),
            source_lang="en",
            target_lang="de",
            encoding=TokenizerFile(str(here)),
        ).splits(),
        "tokens with the ids of jdl's own",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_refused_in_a_sentence(case, directory):
    make, message = REFUSED[case]
    with pytest.raises(jdl.UserError, match=message):
        make(directory)


def test_documents_take_the_ends_of_texts_of_any_tokenizer(directory):
    data = Documents(split(), encoding=TokenizerFile(str(directory)), length=8)
    tokens = data.splits()["train"][0]["tokens"]
    assert tokens[0] == 2
    assert read_tokenizer(data.tokenizer().to_json()) == data.tokenizer()
    own = Documents(split(), encoding=BPE(300), length=8)
    assert own.splits()["train"][0]["tokens"][0] == 1
