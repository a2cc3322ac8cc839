"""Transformer blocks: attention and position-wise feed-forward networks."""

import functools
from collections.abc import Callable
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core import lift
from flax.linen import transforms
from jax.experimental.layout import Layout, with_layout_constraint

from jdl import ops
from jdl.errors import UserError
from jdl.layers.attention import WEIGHTS, Attention
from jdl.layers.dropout import Dropout
from jdl.ops.platforms import is_portable
from jdl.state import CACHE


def exact_gelu(x: jax.Array) -> jax.Array:
    """GELU by the error function, without the tanh approximation (Hendrycks and Gimpel, 2016)."""
    return nn.gelu(x, approximate=False)


class FeedForward(nn.Module):
    """Two dense layers with an activation between (Vaswani et al., 2017, section 3.3).

    With `gated`, the activation multiplies the output of a third layer: SwiGLU with
    `flax.linen.silu` (Shazeer, 2020).
    """

    mlp_dim: int  # hidden units
    activation: Callable[[jax.Array], jax.Array] = nn.gelu  # of the hidden units
    gated: bool = False  # multiply the activation by a third layer's output
    use_bias: bool = True  # in the layers
    dropout_rate: float = 0.0  # of the output
    output_stddev: float = 0.02  # of the initial output kernel
    dtype: Any = jnp.float32  # of the computation; parameters are float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Maps (..., width) to the same shape."""
        # Products are stored for the backward pass; bias and activation are computed again, which
        # takes less time than reading what they would store.
        hidden = nn.remat(FeedForward._hidden, policy=ops.products_saveable)(self, x)
        x = self._dense(x.shape[-1], "outer", self.output_stddev)(hidden)
        return Dropout(self.dropout_rate, deterministic=not train)(x)

    def _hidden(self, x: jax.Array) -> jax.Array:
        hidden = self.activation(self._dense(self.mlp_dim, "inner", 0.02)(x))
        return hidden * self._dense(self.mlp_dim, "gate", 0.02)(x) if self.gated else hidden

    def _dense(self, features: int, name: str, stddev: float) -> nn.Dense:
        return nn.Dense(
            features,
            use_bias=self.use_bias,
            kernel_init=nn.initializers.normal(stddev),
            dtype=self.dtype,
            dot_general=ops.dot_general,
            name=name,
        )


SIZES = (
    "vocab_size", "type_vocab_size", "max_position_embeddings", "patch_size", "num_layers",
    "num_heads", "num_kv_heads", "embed_dim", "mlp_dim",
)  # fmt: skip
"""Fields of transformers that are at least 1."""


class Block(nn.Module):
    """Self-attention, in a decoder also cross-attention, and a feed-forward network.

    Each sublayer is residual and normalizes its input (Radford et al., 2019, section 2.3), or with
    `pre_norm=False` its sum (Vaswani et al., 2017).
    """

    num_heads: int  # of the attention
    num_kv_heads: int | None = None  # grouped queries; None: num_heads
    causal: bool = False  # mask later positions
    cross: bool = False  # add cross-attention to a memory
    mlp_dim: int | None = None  # hidden units of the feed-forward network; None: 4 * embed_dim
    activation: Callable[[jax.Array], jax.Array] = nn.gelu  # of the hidden units
    gated: bool = False  # gated feed-forward networks: SwiGLU with silu
    norm: Literal["layer", "rms"] = "layer"  # layer or RMS normalization
    pre_norm: bool = True  # normalize before each sublayer, not after it
    epsilon: float = 1e-5  # of the normalization layers
    rotary_base: float | None = None  # rotary position embedding (Su et al., 2021)
    use_bias: bool = True  # in dense layers
    dropout_rate: float = 0.0  # of the output of each sublayer
    output_stddev: float = 0.02  # of the initial kernels of residual projections
    dtype: Any = jnp.float32  # of the computation; parameters are float32

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        *,
        mask: jax.Array | None = None,
        memory: jax.Array | None = None,
        memory_mask: jax.Array | None = None,
        positions: jax.Array | None = None,
        train: bool = False,
        decode: bool = False,
    ) -> jax.Array:
        """Maps (batch, time, embed) to the same shape; for the arguments see `Attention`."""
        modes: Any = {"train": train, "decode": decode}
        attention = self._attention("attention", self.causal, self.rotary_base)
        x = self._add(x, "norm1", lambda y: attention(y, mask=mask, positions=positions, **modes))
        if self.cross:
            look = self._attention("cross", False, None)
            x = self._add(
                x, "norm_cross", lambda y: look(y, memory=memory, mask=memory_mask, **modes)
            )
        network = FeedForward(
            self.mlp_dim or 4 * x.shape[-1], self.activation, self.gated, self.use_bias,
            self.dropout_rate, self.output_stddev, self.dtype, name="feed_forward",
        )  # fmt: skip
        return self._add(x, "norm2", lambda y: network(y, train))

    def _add(self, x: jax.Array, name: str, part: Callable[[jax.Array], jax.Array]) -> jax.Array:
        norm = normalization(self.norm, self.dtype, name, self.epsilon)
        return x + part(norm(x)) if self.pre_norm else norm(x + part(x))

    def _attention(self, name: str, causal: bool, rotary_base: float | None) -> Attention:
        return Attention(
            self.num_heads, self.num_kv_heads, causal, rotary_base, self.use_bias,
            self.dropout_rate, self.output_stddev, self.dtype, name=name,
        )  # fmt: skip


def stack(
    block: Callable[..., nn.Module],
    num_layers: int,
    x: jax.Array,
    *,
    remat: bool = False,
    scan: bool = False,
    **inputs: Any,
) -> jax.Array:
    """Applies a stack of blocks; call it inside a module's compact `__call__`.

    Args:
      block: builds a block given its `name`, such as `functools.partial(Block, num_heads=4)`.
      num_layers: number of blocks, named `block_0`, `block_1`, ...
      x: (batch, time, embed).
      remat: recompute activations in the backward pass, to save memory.
      scan: compile one block, named `blocks`, and scan over its stacked weights.
      **inputs: keyword arguments of each block; booleans are static.

    Returns:
      (batch, time, embed).
    """

    def apply(module: nn.Module, x: jax.Array, arrays: dict[str, Any]) -> jax.Array:
        return module(x, **arrays, **modes)

    modes = {name: value for name, value in inputs.items() if isinstance(value, bool)}
    arrays = {name: value for name, value in inputs.items() if not isinstance(value, bool)}
    apply = nn.remat(apply) if remat else apply
    x = _row_major(x)
    if not scan:
        for index in range(num_layers):
            x = apply(block(name=f"block_{index}"), x, arrays)
        return x
    module = block(name="blocks")

    def looped(unroll: int) -> Callable[[nn.Module, jax.Array], jax.Array]:
        scanned = nn.scan(
            lambda module, x, _: (apply(module, x, arrays), None),
            variable_axes={"params": 0, CACHE: 0, WEIGHTS: 0},
            split_rngs={"params": True, "dropout": True},
            length=num_layers,
            unroll=unroll,
        )
        return lambda module, x: scanned(module, x, None)[0]

    if module.is_initializing():
        return looped(1)(module, x)
    # XLA:CPU runs matrix products inside a rolled loop slower.
    return _platform_dependent(module, x, cpu=looped(num_layers), default=looped(1))


def _row_major(x: jax.Array) -> jax.Array:
    """Returns `x`, on GPUs constrained to row-major layout.

    The sum over the batch in the gradient of position embeddings otherwise makes XLA put the batch
    last in the whole stack of blocks, and transpose it at every norm.
    """
    if is_portable():
        return x

    def constrained(x: jax.Array) -> jax.Array:
        return with_layout_constraint(x, Layout(tuple(range(x.ndim))))

    return jax.lax.platform_dependent(x, cuda=constrained, rocm=constrained, default=lambda x: x)


def _platform_dependent(
    module: nn.Module,
    x: jax.Array,
    cpu: Callable[[nn.Module, jax.Array], jax.Array],
    default: Callable[[nn.Module, jax.Array], jax.Array],
) -> jax.Array:
    """`jax.lax.platform_dependent` for functions of a module whose variables exist."""

    def lifted(cpu: Any, default: Any, scopes: Any, x: jax.Array) -> jax.Array:
        def inner(to_scope: Any, from_scope: Any, variables: Any, rngs: Any) -> Any:
            def pure(form: Any, x: jax.Array) -> Any:
                scope = to_scope(variables, rngs)
                return form(scope, x), from_scope(scope)

            forms = {name: functools.partial(pure, form) for name, form in given.items()}
            return jax.lax.platform_dependent(x, **forms)

        given = {"cpu": cpu, "default": default}
        return lift.pack(inner, (True,), (True,), (True,), name="platform_dependent")(scopes)

    return transforms.lift_direct_transform(lifted, (cpu, default), module, x)


def check_sizes(model: nn.Module) -> None:
    """Raises a UserError if one of a model's sizes is less than 1; None is allowed."""
    for name in SIZES:
        size = getattr(model, name, None)
        if size is not None and size < 1:
            raise UserError(f"model.{name} must be at least 1, not {size}")


def normalization(
    kind: Literal["layer", "rms"], dtype: Any, name: str, epsilon: float = 1e-5
) -> nn.Module:
    """Returns a layer norm (Ba et al., 2016) or an RMS norm (Zhang and Sennrich, 2019).

    Statistics are float32.
    """
    norm = nn.LayerNorm if kind == "layer" else nn.RMSNorm
    return norm(epsilon=epsilon, dtype=dtype, name=name)
