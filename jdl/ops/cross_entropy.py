"""Cross-entropy over a large vocabulary, without all logits in memory."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import PartitionSpec as P

from jdl.ops.dot import product
from jdl.tracing import is_zero, row_axes

Array = jax.Array

LOGITS = {"cpu": 1 << 24, "accelerator": 1 << 28}
"""Maximum number of logits in memory at once; larger products are computed chunk by chunk."""

TOKENS = {"cpu": 512, "accelerator": 4096}
"""Maximum number of tokens per chunk. On CPUs few, so that the last chunk with a weight holds
little padding. On accelerators many, since each chunk reads and writes the kernel's whole gradient:
for 32,768 tokens of width 768 and 50,304 classes, forward and backward take 35 ms on an H200 in
chunks of 512 and 17 ms in chunks of 4,096.
"""


def linear_cross_entropy(
    hidden: Array,
    kernel: Array,
    targets: Array,
    weights: Array | None = None,
    smoothing: float = 0.0,
) -> Array:
    """The weighted sum of cross-entropies of the logits `hidden kernel^T`, in nats.

    Equal to the weighted sum of `optax.softmax_cross_entropy_with_integer_labels`, which computes
    it for up to `LOGITS` logits of the platform that the program is lowered for. More are computed
    in chunks, and their gradients in the same pass (as in Hsu et al., 2024), so that no logit is
    computed twice or stored. Tokens of weight zero, such as padding, are skipped. With a sharded
    batch, each device computes the chunks of its own tokens.

    Beyond the CPU's `LOGITS` it supports, on every platform, reverse mode only, once, and has no
    gradient with respect to `weights`: for `jax.jvp` use the plain form.

    Args:
      hidden: (..., embed), any float dtype; logits are computed in it and summed in float32.
      kernel: (vocab, embed), such as a tied embedding.
      targets: (...) int32.
      weights: (...) float32; None: all 1.
      smoothing: fraction of each target's probability that is spread uniformly over the
        vocabulary, the target included (Szegedy et al., 2016, section 7).

    Returns:
      A float32 scalar.
    """
    weights = (jnp.ones(targets.shape) if weights is None else weights).reshape(-1)
    hidden, targets = hidden.reshape(-1, hidden.shape[-1]), targets.reshape(-1)
    if not is_zero(smoothing):
        # The smoothed loss is logsumexp(z) - (1 - s) z_target - s mean(z), which exceeds the plain
        # one by s (z_target - mean(z)). Logits are linear: mean(z) = hidden . mean(kernel).
        mean = kernel.mean(0, keepdims=True)
        gain = jnp.einsum("nd,nd->n", hidden.astype(jnp.float32), kernel[targets] - mean)
        plain = linear_cross_entropy(hidden, kernel, targets, weights)
        return plain + smoothing * jnp.sum(weights * gain)
    axes = row_axes(hidden.shape[0])
    if axes:
        # Sorting tokens by weight would gather them from all devices. Here each device sorts its
        # own, and the transpose of the replicated kernel adds up its gradients in one all-reduce.
        rows = P(axes)
        local = jax.shard_map(
            lambda *given: _sum(*given)[None], in_specs=(rows, P(), rows, rows), out_specs=rows,
            axis_names=set(axes), check_vma=False,
        )  # fmt: skip
        return local(hidden, kernel, targets, weights).sum()
    return _sum(hidden, kernel, targets, weights)


def _sum(hidden: Array, kernel: Array, targets: Array, weights: Array) -> Array:
    """The sum on one device, plain or in chunks."""
    if hidden.shape[0] * kernel.shape[0] > LOGITS["cpu"]:
        return _in_chunks(hidden, kernel, targets, weights)
    return _plain(hidden, kernel, targets, weights)


def _plain(hidden: Array, kernel: Array, targets: Array, weights: Array) -> Array:
    logits = _logits(hidden, kernel)
    return jnp.sum(weights * optax.softmax_cross_entropy_with_integer_labels(logits, targets))


def _logits(hidden: Array, kernel: Array) -> Array:
    """(tokens, vocab) float32, rounded to the dtype of `hidden`: most of the loss's time is spent
    reading and writing logits, and with 16 bits half as many bytes are."""
    return product(hidden, kernel.astype(hidden.dtype), (1, 1)).astype(jnp.float32)


@jax.custom_vjp
def _in_chunks(hidden: Array, kernel: Array, targets: Array, weights: Array) -> Array:
    return _by_platform(hidden, kernel, targets, weights, gradients=False)[0]


def _forward(hidden: Array, kernel: Array, targets: Array, weights: Array) -> tuple[Array, Any]:
    total, *gradients = _by_platform(hidden, kernel, targets, weights, gradients=True)
    return total, tuple(gradients)


def _by_platform(*arrays: Array, gradients: bool) -> tuple[Any, ...]:
    """Loss, and its gradients by `hidden` and `kernel` or None."""
    hidden, kernel, *_ = arrays
    fits = hidden.shape[0] * kernel.shape[0] <= LOGITS["accelerator"]
    on_cpu = functools.partial(_chunked, platform="cpu", gradients=gradients)
    chunked = functools.partial(_chunked, platform="accelerator", gradients=gradients)
    whole = functools.partial(_whole, gradients=gradients)
    return jax.lax.platform_dependent(*arrays, cpu=on_cpu, default=whole if fits else chunked)


def _whole(
    hidden: Array, kernel: Array, targets: Array, weights: Array, gradients: bool
) -> tuple[Any, ...]:
    """Loss and gradients of all logits at once."""
    if not gradients:
        return _plain(hidden, kernel, targets, weights), None, None
    total, vjp = jax.vjp(lambda h, k: _plain(h, k, targets, weights), hidden, kernel)
    dhidden, dkernel = vjp(jnp.ones(()))
    return total, dhidden, dkernel.astype(jnp.float32)


def _backward(saved: Any, gradient: Array) -> tuple[Any, ...]:
    # The loss is a scalar, so its cotangent only scales the gradients of the forward pass.
    dhidden, dkernel = saved
    return dhidden * gradient.astype(dhidden.dtype), dkernel * gradient, None, None


_in_chunks.defvjp(_forward, _backward)


def _chunked(
    hidden: Array, kernel: Array, targets: Array, weights: Array, platform: str, gradients: bool
) -> tuple[Any, ...]:
    """Loss and gradients summed over chunks of equal length.

    Tokens are sorted so that those with a weight come first; the remaining chunks are skipped.
    """
    tokens = hidden.shape[0]
    size = max(1, min(TOKENS[platform], LOGITS[platform] // kernel.shape[0], tokens))
    # Cast outside the loop: inside `cond`, XLA would cast the kernel again for every chunk.
    operand = kernel.astype(hidden.dtype)
    order, weighted = jnp.argsort(weights == 0, stable=True), jnp.count_nonzero(weights)

    def add(carry: Any, start: Array) -> Any:
        sums, dhidden = carry
        # All chunks have one static length: the last one moves back to end at the last token, and
        # tokens that an earlier chunk has counted get weight 0.
        first = jnp.minimum(start, tokens - size)
        rows = jax.lax.dynamic_slice_in_dim(order, first, size)
        w = jnp.where(first + jnp.arange(size) >= start, weights[rows], 0.0)
        total, dh, dkernel = _chunk(hidden[rows], operand, targets[rows], w, gradients)
        sums = jax.tree.map(jnp.add, sums, (total, dkernel))
        return sums, dhidden.at[rows].add(dh) if gradients else None

    def body(carry: Any, start: Array) -> tuple[Any, None]:
        return jax.lax.cond(start < weighted, add, lambda carry, _: carry, carry, start), None

    zero = jnp.zeros(kernel.shape, jnp.float32) if gradients else None
    begin = (jnp.zeros(()), zero), jnp.zeros_like(hidden) if gradients else None
    ((total, dkernel), dhidden), _ = jax.lax.scan(body, begin, jnp.arange(0, tokens, size))
    return total, dhidden, dkernel


def _chunk(
    hidden: Array, kernel: Array, targets: Array, weights: Array, gradients: bool
) -> tuple[Any, ...]:
    """Loss of a chunk, and its gradients by `hidden` (chunk, embed) and `kernel` (vocab, embed)."""
    logits = _logits(hidden, kernel)
    logits = logits - jax.lax.stop_gradient(logits.max(-1, keepdims=True))
    exponents = jnp.exp(logits)
    sums = exponents.sum(-1)
    right = jnp.take_along_axis(logits, targets[:, None], axis=1)[:, 0]
    total = jnp.sum(weights * (jnp.log(sums) - right))
    if not gradients:
        return total, None, None
    # d loss / d logits = weight (softmax - one_hot); one multiplication per logit, not a division.
    known = targets[:, None] == jnp.arange(kernel.shape[0])
    slopes = exponents * (weights / sums)[:, None] - jnp.where(known, weights[:, None], 0.0)
    slopes = slopes.astype(hidden.dtype)
    if hidden.dtype == jnp.float32:
        dkernel = product(slopes, hidden, (0, 0))
    else:
        dkernel = jnp.einsum("nv,nd->vd", slopes, hidden, preferred_element_type=jnp.float32)
    return total, product(slopes, kernel), dkernel
