"""A tiny WordPiece tokenizer in the format of transformers."""

import json

PIECES = (
    "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "un", "##aff", "##able", "cat", "##s",
    ",", "ete", "!", "[", "]", "sep", "#",
)  # fmt: skip


def wordpiece(pieces=PIECES):
    """The text of a tokenizer.json as BERT's, that truncates and pads as sentence transformers'."""
    special = [{"id": pieces.index(x), "content": x, **FLAGS} for x in PIECES[:5]]
    wrap = [{"SpecialToken": {"id": name, "type_id": 0}} for name in ("[CLS]", "[SEP]")]
    ids = {x: {"id": x, "ids": [pieces.index(x)], "tokens": [x]} for x in ("[CLS]", "[SEP]")}
    text = {"Sequence": {"id": "A", "type_id": 0}}
    strategy = {"max_length": 5, "strategy": "LongestFirst", "stride": 0, "direction": "Right"}
    return json.dumps(
        {
            "version": "1.0",
            "truncation": strategy,
            "padding": {
                "strategy": {"Fixed": 5}, "direction": "Right", "pad_to_multiple_of": None,
                "pad_id": 0, "pad_type_id": 0, "pad_token": "[PAD]",
            },
            "added_tokens": special,
            "normalizer": {
                "type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True,
                "strip_accents": None, "lowercase": True,
            },
            "pre_tokenizer": {"type": "BertPreTokenizer"},
            "post_processor": {
                "type": "TemplateProcessing",
                "single": [wrap[0], text, wrap[1]],
                "pair": [wrap[0], text, wrap[1]],
                "special_tokens": ids,
            },
            "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
            "model": {
                "type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
                "max_input_chars_per_word": 100, "vocab": {x: i for i, x in enumerate(pieces)},
            },
        }
    )  # fmt: skip


FLAGS = {
    "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True,
}  # fmt: skip
