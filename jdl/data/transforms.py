"""Transforms: per example on the host, per batch on the device."""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from jdl.data.tokenizers import MASK, SPECIAL_TOKENS
from jdl.errors import UserError
from jdl.typing import Batch, Keys


@dataclass(frozen=True, kw_only=True)
class Scale:
    """Device: `(x - offset) / divisor` in float32."""

    divisor: float = 255.0  # divides after the subtraction
    offset: float = 0.0  # subtracted first
    name: str = "image"  # of the array

    def __call__(self, batch: Batch, keys: Keys | None) -> Batch:
        """Returns the batch with the array scaled."""
        del keys
        scaled = (batch[self.name].astype(jnp.float32) - self.offset) / self.divisor
        return {**batch, self.name: scaled}


@dataclass(frozen=True, kw_only=True)
class Normalize:
    """Device: `(x / 255 - mean) / std` for each channel of bytes, in float32.

    By default with ImageNet's statistics, as torchvision.
    """

    mean: tuple[float, ...] = (0.485, 0.456, 0.406)  # of each channel, of values in [0, 1]
    std: tuple[float, ...] = (0.229, 0.224, 0.225)  # of each channel, above 0
    name: str = "image"  # of the array (..., channels)

    def __post_init__(self) -> None:
        if len(self.mean) != len(self.std) or not all(std > 0 for std in self.std):
            raise UserError(
                f"Normalize needs a mean and a std above 0 for each channel, not {self.mean} and "
                f"{self.std}"
            )

    def __call__(self, batch: Batch, keys: Keys | None) -> Batch:
        """Returns the batch with the array normalized."""
        del keys
        x = batch[self.name]
        if x.shape[-1] != len(self.mean):
            raise UserError(
                f"Normalize has {len(self.mean)} means, where {self.name!r} has {x.shape[-1]} "
                f"channels: give it one for each"
            )
        scaled = (x.astype(jnp.float32) / 255 - jnp.array(self.mean)) / jnp.array(self.std)
        return {**batch, self.name: scaled}


@dataclass(frozen=True, kw_only=True)
class Binarize:
    """Device: makes each element 1 with its value as probability, else 0 (Salakhutdinov, 2008).

    Bytes are divided by 255 first; floats are from 0 to 1. Training draws anew each time from the
    example's key; evaluation derives the draw from the example itself, so that it is the same in
    any batch of any run. Adds the array `gray`, the values before, float32.
    """

    name: str = "image"  # of the array
    gray: str = "gray"  # name of the added array

    def __call__(self, batch: Batch, keys: Keys | None) -> Batch:
        """Returns the batch with the array binarized."""
        x = batch[self.name]
        if x.dtype not in (jnp.uint8, jnp.float32):
            raise UserError(f"Binarize takes uint8 or float32, where {self.name!r} is {x.dtype}")
        values = x.astype(jnp.float32) / (255 if x.dtype == jnp.uint8 else 1)
        if keys is None:
            keys = content_keys(jax.lax.bitcast_convert_type(values, jnp.uint32))
        draws = jax.vmap(lambda key: jax.random.uniform(key, x.shape[1:]))(keys)
        return {**batch, self.name: (draws < values).astype(jnp.float32), self.gray: values}


@dataclass(frozen=True, kw_only=True)
class MaskTokens:
    """Device: masks tokens for masked language modeling (Devlin et al., 2019, appendix A.1).

    Selects a fraction `mlm_probability` of each text's tokens, special ones excluded and at least
    one: 80 % become `<mask>`, 10 % a random token, 10 % stay. Adds `mlm_positions` and `targets`
    (batch, n) int32, the original tokens there, and `weights` (batch, n) float32, 0 where a text
    has fewer than n. Training draws a new mask each time from the example's key; evaluation derives
    it from the text's tokens, so that a text scores the same in any batch of any run.
    """

    vocab_size: int = 8192  # the model's
    mlm_probability: float = 0.15  # fraction of tokens to select
    name: str = "tokens"  # of the array (batch, length)

    def __post_init__(self) -> None:
        if not 0 < self.mlm_probability <= 1:
            raise UserError(
                f"MaskTokens.mlm_probability must be in (0, 1], not {self.mlm_probability}"
            )
        if self.vocab_size <= len(SPECIAL_TOKENS):
            raise UserError(
                f"MaskTokens.vocab_size must exceed the special tokens {SPECIAL_TOKENS}"
            )

    def __call__(self, batch: Batch, keys: Keys | None) -> Batch:
        """Returns the batch with tokens masked."""
        tokens = batch[self.name]
        keys = content_keys(tokens) if keys is None else keys
        return {**batch, **jax.vmap(self._hide)(tokens, keys)}

    def _hide(self, tokens: jax.Array, key: jax.Array) -> dict[str, jax.Array]:
        """Masks one text, (length,) int32."""
        where, how, what = jax.random.split(key, 3)
        may = tokens >= len(SPECIAL_TOKENS)
        count = math.ceil(self.mlm_probability * len(tokens))
        ranked = jnp.where(may, jax.random.uniform(where, tokens.shape), -1.0)
        positions = jax.lax.top_k(ranked, count)[1].astype(jnp.int32)
        wanted = jnp.maximum(jnp.round(self.mlm_probability * may.sum()), 1)
        hidden = (jnp.arange(count) < wanted) & may[positions]
        targets = tokens[positions]
        draw = jax.random.uniform(how, (count,))
        other = jax.random.randint(what, (count,), len(SPECIAL_TOKENS), self.vocab_size)
        shown = jnp.where(draw < 0.8, MASK, jnp.where(draw < 0.9, other, targets))
        return {
            self.name: tokens.at[positions].set(jnp.where(hidden, shown, targets)),
            "mlm_positions": positions,
            "targets": targets,
            "weights": hidden.astype(jnp.float32),
        }


def content_keys(tokens: jax.Array) -> Keys:
    """Returns a key for each row of integers (batch, ...), a function of these alone."""
    factors = jax.random.bits(jax.random.key(0), tokens.shape[1:], jnp.uint32)
    products = (tokens.astype(jnp.uint32) * factors).reshape(len(tokens), -1)
    hashes = products.sum(1, dtype=jnp.uint32)
    return jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(1), hashes)
