"""Checks that token ids are below the vocabulary size of a model."""

import numpy as np

from jdl.data.base import Data
from jdl.data.documents import Texts
from jdl.data.tokenizers import MASK, special_ids
from jdl.data.transforms import MaskTokens
from jdl.errors import UserError

HINT = ": set model.vocab_size to {}"


def check_token_ids(
    tokens: np.ndarray, vocab_size: int, where: str, *, least: int = 0, hint: str = HINT
) -> None:
    """Raises a UserError unless `least <= tokens < vocab_size`.

    Args:
      tokens: integers of any shape.
      vocab_size: the model's vocabulary size.
      where: subject of the message, such as "split 'train': 'tokens'".
      least: the smallest id; -1 where the task masks padding of that id.
      hint: what to do about an id that is too large, with the size needed in place of `{}`.
    """
    wrong = tokens[(tokens < least) | (tokens >= vocab_size)]
    if wrong.size:
        worst = wrong.max() if wrong.max() >= vocab_size else wrong.min()
        hint = hint.format(worst + 1) if worst >= vocab_size else ""
        raise UserError(
            f"{where} has token {worst}, outside the model's vocabulary 0..{vocab_size - 1}{hint}"
        )


def check_vocab_size(data: Data, vocab_size: int) -> None:
    """Raises a UserError if the tokenizer or a transform has more tokens than the model."""
    size = data.tokenizer().vocab_size if data.has_tokenizer else 0
    if size > vocab_size:
        raise UserError(
            f"the tokenizer of {data.full_name()} has {size} tokens, the model {vocab_size}: "
            f"set model.vocab_size to {size}"
        )
    for index, transform in enumerate(data.device_transforms):
        if isinstance(transform, MaskTokens) and transform.vocab_size > vocab_size:
            raise UserError(
                f"data.device_transforms.{index}.vocab_size is {transform.vocab_size}, but "
                f"model.vocab_size is {vocab_size}: set both to the same"
            )
        if isinstance(transform, MaskTokens) and data.has_tokenizer:
            mask = special_ids(data.tokenizer()).get("mask")
            if mask != MASK:
                raise UserError(
                    f"data.device_transforms.{index} (MaskTokens) hides tokens behind that of id "
                    f"{MASK}, which in the tokenizer of {data.full_name()} is "
                    f"{'missing' if mask is None else mask}: set data.encoding to bpe"
                )


def check_pad_token(data: Data, pad_token_id: int) -> None:
    """Raises a UserError if the data pads with another token than the model ignores."""
    if data.has_tokenizer and isinstance(data, Texts):
        padded = special_ids(data.tokenizer())["pad"]
        if padded != pad_token_id:
            raise UserError(
                f"the tokenizer of {data.full_name()} pads with token {padded}, the model ignores "
                f"{pad_token_id}: set model.pad_token_id to {padded}"
            )
