"""Scaled dot-product attention, implemented per platform."""

import functools
import logging
from collections.abc import Callable
from importlib import metadata
from typing import Any, Literal

import jax
import jax.numpy as jnp

from jdl.ops.platforms import bind, is_portable

Array = jax.Array

BLOCK = 64
"""Queries per block of causal attention on CPUs; a block skips the keys after its last query."""

_log = logging.getLogger(__name__)


def attention(
    query: Array,
    key: Array,
    value: Array,
    *,
    causal: bool = False,
    mask: Array | None = None,
    scale: float | None = None,
) -> Array:
    """softmax(query key^T scale) value (Vaswani et al., 2017, equation 1), head by head.

    Equal to `jax.nn.dot_product_attention`. CPUs compute blocks of queries that skip the keys
    hidden by a causal mask, and a backward pass from the saved probabilities. NVIDIA GPUs use
    cuDNN's flash attention for 16-bit dtypes, or XLA's with a logged reason where cuDNN refuses.
    Other platforms use XLA's. The platform is that which the program is lowered for. Reverse mode
    only: for `jax.jvp` call `jax.nn.dot_product_attention`.

    Args:
      query: (batch, time, heads, depth), any float dtype.
      key: (batch, keys, kv_heads, depth); `kv_heads` divides `heads`, and adjacent heads share one.
      value: (batch, keys, kv_heads, depth).
      causal: mask key j for query i where j > i.
      mask: bool, True where a query attends to a key, broadcast to (batch, heads, time, keys).
      scale: factor of the scores; 1 / sqrt(depth) by default.

    Returns:
      (batch, time, heads, depth), dtype of `query`.
    """
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    forms = {"cpu": bind(_on_cpu, causal=causal, scale=scale)}
    if query.dtype in (jnp.bfloat16, jnp.float16) and not is_portable() and _has_cudnn():
        forms["cuda"] = bind(_fused, causal=causal, scale=scale)
    plain = bind(_plain, causal=causal, scale=scale)
    return jax.lax.platform_dependent(query, key, value, mask, default=plain, **forms)


@functools.cache
def _has_cudnn() -> bool:
    """Whether JAX's plugin for CUDA is installed, without which cuDNN's form cannot be traced."""
    return any("cuda" in plugin.name for plugin in metadata.entry_points(group="jax_plugins"))


def _plain(
    query: Array,
    key: Array,
    value: Array,
    mask: Array | None,
    causal: bool,
    scale: float,
    implementation: Literal["xla", "cudnn"] = "xla",
) -> Array:
    if implementation == "cudnn" and mask is not None and mask.shape[-2] == 1:
        # It takes no mask that broadcasts over queries.
        mask = jnp.broadcast_to(mask, (*mask.shape[:2], query.shape[1], key.shape[1]))
    return jax.nn.dot_product_attention(
        query, key, value, mask=mask, is_causal=causal, scale=scale, implementation=implementation
    )


def _on_cpu(
    query: Array, key: Array, value: Array, mask: Array | None, causal: bool, scale: float
) -> Array:
    repeats = query.shape[2] // key.shape[2]
    if repeats > 1:  # the batched products below need one key per query head
        key, value = jnp.repeat(key, repeats, 2), jnp.repeat(value, repeats, 2)
    # (batch, heads, time, depth): each head is then one contiguous matrix product.
    heads_first = (jnp.swapaxes(x, 1, 2) for x in (query, key, value))
    return jnp.swapaxes(_blocked(*heads_first, mask, causal, scale), 1, 2)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _fused(
    query: Array, key: Array, value: Array, mask: Array | None, causal: bool, scale: float
) -> Array:
    return _with_cudnn(bind(_plain, causal=causal, scale=scale), query, key, value, mask)


def _fused_forward(
    query: Array, key: Array, value: Array, mask: Array | None, causal: bool, scale: float
) -> tuple[Array, Any]:
    trees = []

    # cuDNN refuses more shapes in training than in inference.
    def form(q: Array, k: Array, v: Array, mask: Array | None, implementation: Any) -> Any:
        options = {"causal": causal, "scale": scale, "implementation": implementation}
        output, vjp = jax.vjp(lambda q, k, v: _plain(q, k, v, mask, **options), q, k, v)
        leaves, tree = jax.tree.flatten(vjp)
        trees.append(tree)
        return output, leaves

    output, leaves = _with_cudnn(form, query, key, value, mask)
    return output, (jax.tree.unflatten(trees[-1], leaves), mask)


def _fused_backward(causal: bool, scale: float, saved: Any, gradient: Array) -> tuple[Any, ...]:
    del causal, scale
    vjp, mask = saved
    return *_batched(lambda vjp, gradient: vjp(gradient), mask)(vjp, gradient), None


_fused.defvjp(_fused_forward, _fused_backward)


def _with_cudnn(form: Callable[..., Any], *arrays: Any) -> Any:
    """Traces a form with cuDNN, or with XLA where cuDNN refuses; the last array is the mask."""
    # JAX never selects cuDNN itself, and cuDNN rejects some shapes only when it is traced.
    try:
        return _batched(functools.partial(form, implementation="cudnn"), arrays[-1])(*arrays)
    except (NotImplementedError, RuntimeError, TypeError, ValueError) as error:
        _log.warning("attention runs without cuDNN: %s", error)
        return form(*arrays, implementation="xla")


def _batched(function: Callable[..., Any], mask: Array | None) -> Callable[..., Any]:
    """A function whose `jax.vmap` is a loop if there is a mask, which cuDNN's rule mistakes."""
    return function if mask is None else jax.custom_batching.sequential_vmap(function)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _blocked(
    query: Array, key: Array, value: Array, mask: Array | None, causal: bool, scale: float
) -> Array:
    return _forward(query, key, value, mask, causal, scale)[0]


def _blocks(time: int, keys: int, causal: bool) -> list[tuple[slice, slice]]:
    """Slices of queries, each with the slice of keys that any of them attends to."""
    if not causal:
        return [(slice(0, time), slice(0, keys))]
    starts = range(0, time, BLOCK)
    return [(slice(i, min(i + BLOCK, time)), slice(0, min(i + BLOCK, time, keys))) for i in starts]


def _scores(
    query: Array, key: Array, mask: Array | None, rows: slice, seen: slice, causal: bool
) -> Array:
    """Masked scores (batch, heads, time, keys) float32; `query` is scaled already."""
    scores = jnp.einsum("bhtd,bhsd->bhts", query, key, preferred_element_type=jnp.float32)
    # Finite, as in jax.nn: with -inf a fully masked row would give 0/0.
    hidden = jnp.finfo(jnp.float32).min
    if causal:
        i, j = jnp.arange(rows.start, rows.stop)[:, None], jnp.arange(seen.stop)
        scores = jnp.where(j <= i, scores, hidden)
    if mask is not None:
        part = mask[..., rows if mask.shape[-2] > 1 else slice(None), :]
        scores = jnp.where(part[..., seen if mask.shape[-1] > 1 else slice(None)], scores, hidden)
    return scores


@functools.partial(jax.jit, static_argnums=(4, 5), inline=True)
def _forward(
    query: Array, key: Array, value: Array, mask: Array | None, causal: bool, scale: float
) -> tuple[Array, Any]:
    """Output (batch, heads, time, depth), and the residuals of the backward pass."""
    outputs, kept = [], []
    for rows, seen in _blocks(query.shape[2], key.shape[2], causal):
        q, k, v = query[:, :, rows] * scale, key[:, :, seen], value[:, :, seen]
        scores = _scores(q, k, mask, rows, seen, causal)
        # One division per row: on CPUs a division per element takes longer than its exponential.
        exponents = jnp.exp(scores - scores.max(-1, keepdims=True))
        inverse = 1 / exponents.sum(-1, keepdims=True)
        probabilities = (exponents * inverse).astype(query.dtype)
        outputs.append(probabilities @ v)
        kept.append(probabilities)
    output = jnp.concatenate(outputs, axis=2)
    return output, (query, key, value, output, tuple(kept))


@functools.partial(jax.jit, static_argnums=(0, 1), inline=True)
def _backward(causal: bool, scale: float, saved: Any, gradient: Array) -> tuple[Any, ...]:
    """Gradients of query, key and value, block by block from the saved probabilities P.

    dV = P^T dO, dP = dO V^T, dS = P (dP - rowsum(dP P)), dQ = dS K, dK = dS^T Q (Dao et al., 2022,
    appendix B.2).
    """
    query, key, value, output, kept = saved
    dk, dv = jnp.zeros_like(key), jnp.zeros_like(value)
    dqs = []
    blocks = _blocks(query.shape[2], key.shape[2], causal)
    for (rows, seen), probabilities in zip(blocks, kept, strict=True):
        q, k, v, do = query[:, :, rows], key[:, :, seen], value[:, :, seen], gradient[:, :, rows]
        dp = jnp.einsum("bhtd,bhsd->bhts", do, v, preferred_element_type=jnp.float32)
        # rowsum(dP P) = rowsum(dO O), which is depth instead of keys wide.
        mean = (do * output[:, :, rows]).astype(jnp.float32).sum(-1, keepdims=True)
        ds = (probabilities * (dp - mean) * scale).astype(query.dtype)
        dqs.append(ds @ k)
        # The barrier materializes the transposes: on CPUs a product that contracts an operand's
        # rows in place runs at half the speed.
        turned = jax.lax.optimization_barrier([jnp.swapaxes(x, 2, 3) for x in (probabilities, ds)])
        dv = dv.at[:, :, seen].add(turned[0] @ do)
        dk = dk.at[:, :, seen].add(turned[1] @ q)
    return jnp.concatenate(dqs, axis=2), dk, dv, None


_blocked.defvjp(_forward, _backward)
