"""LSTM and GRU sequences whose backward pass computes each weight gradient in one product."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from jdl.ops import foreign, onednn
from jdl.ops.dot import product

Array = jax.Array

UNROLL = 20
"""Steps per iteration of a scan on GPUs; 1 elsewhere. On GPUs a step is a handful of kernels of
microseconds, and XLA fuses across unrolled steps what a rolled loop launches one by one: an LSTM of
128 units over 200 steps, forward and backward, takes 4.2 ms rolled on an H200 and 2.3 ms unrolled
by 20; cuDNN's, by `jax.experimental.rnn`, takes 6.9 ms.
"""


def _scan(step: Any, carry: Any, xs: Any, **options: Any) -> Any:
    rolled = functools.partial(jax.lax.scan, step, **options)
    unrolled = functools.partial(rolled, unroll=UNROLL)
    return jax.lax.platform_dependent(carry, xs, cuda=unrolled, rocm=unrolled, default=rolled)


LEAST = 100_000
"""Multiplications of the smallest step for which the library of the extra `onednn` is called."""


def _run(function: Any, target: str, kernel: Array, *arguments: Array) -> tuple[Array, ...]:
    """Runs a recurrence by `jdl.ops.foreign`, if its steps are large enough."""
    rows = arguments[1].shape[0]
    large = jax.export.is_symbolic_dim(rows) or rows * kernel.size >= LEAST
    return foreign.call(function, target, *arguments) if large else function(*arguments)


def sigmoid(x: Array) -> Array:
    """The logistic function through tanh, which CPUs vectorize, unlike a division."""
    return 0.5 * jnp.tanh(0.5 * x) + 0.5


def lstm_step(projected: Array, h: Array, c: Array, kernel: Array) -> tuple[Array, Array]:
    """One LSTM step (Hochreiter and Schmidhuber, 1997; Gers et al., 2000).

    Args:
      projected: input times its kernel plus bias, (batch, 4 * hidden): input, forget and output
        gate, then the candidate.
      h: hidden state, (batch, hidden).
      c: cell state, (batch, hidden).
      kernel: the recurrent kernel, (hidden, 4 * hidden).

    Returns:
      The new hidden and cell state, (batch, hidden) each.
    """
    i, f, o, g = jnp.split(projected + h @ kernel, 4, axis=-1)
    c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
    return jax.nn.sigmoid(o) * jnp.tanh(c), c


@jax.custom_vjp
def lstm(projected: Array, h: Array, c: Array, kernel: Array) -> tuple[Array, Array]:
    """Scans `lstm_step` over a sequence of projected inputs.

    Equal to `jax.lax.scan` over `lstm_step`, whose derivative accumulates the kernel's gradient at
    every step. This version keeps the gradients of the gates and computes the kernel's in one
    product over all steps (Appleyard et al., 2016). It supports reverse mode only, once: for
    `jax.jvp` and second derivatives, scan over `lstm_step`. Programs for GPUs take `UNROLL` steps
    per iteration. cuDNN's LSTM is not used, since it took three times as long there.

    Args:
      projected: (time, batch, 4 * hidden), as in `lstm_step`.
      h: initial hidden state, (batch, hidden).
      c: initial cell state, (batch, hidden).
      kernel: the recurrent kernel, (hidden, 4 * hidden).

    Returns:
      The hidden states after each step, (time, batch, hidden), and the last cell state,
      (batch, hidden).
    """
    # The library would write what only a gradient needs.
    hs, cs, *_ = _lstm_by_scan(projected, h, c, kernel)
    return hs, cs[-1] if len(cs) else c


def _lstm_forward(projected: Array, h: Array, c: Array, kernel: Array) -> tuple[Any, Any]:
    saved = _run(_lstm_by_scan, onednn.LSTM, kernel, projected, h, c, kernel)
    hs, cs, *_ = saved
    return (hs, cs[-1] if len(cs) else c), (h, c, kernel, *saved)


def _lstm_by_scan(projected: Array, h: Array, c: Array, kernel: Array) -> tuple[Array, ...]:
    """Hidden and cell states, input, forget and output gates side by side, and candidates."""
    units = h.shape[-1]

    def step(carry: Any, z: Array) -> tuple[Any, Any]:
        h, c = carry
        z = z + product(h, kernel)
        # The three gates are adjacent, so one sigmoid covers them.
        gates, g = sigmoid(z[:, : 3 * units]), jnp.tanh(z[:, 3 * units :])
        i, f, o = gates[:, :units], gates[:, units : 2 * units], gates[:, 2 * units :]
        c = f * c + i * g
        h = o * jnp.tanh(c)
        return (h, c), (h, c, gates, g)

    return _scan(step, (h, c), projected)[1]


def _lstm_backward(saved: Any, cotangents: Any) -> tuple[Array, Array, Array, Array]:
    """Backpropagation through time; `dz` are gradients before the gates' nonlinearities."""
    h, c, kernel, hs, *rest = saved
    arguments = (*cotangents, c, kernel, *rest)
    dz, dh, dc = _run(_lstm_gradient_by_scan, onednn.LSTM_GRADIENT, kernel, *arguments)
    return dz, dh, dc, _kernel_gradient(h, hs, dz)


def _lstm_gradient_by_scan(
    dhs: Array, dc: Array, c: Array, kernel: Array, cs: Array, gates: Array, g: Array
) -> tuple[Array, ...]:
    """Gradients by the projected inputs, and by the initial hidden and cell state."""
    before = jnp.concatenate([c[None], cs[:-1]])  # the cell state that each step started from
    transposed = kernel.T  # once, outside of the scan

    def step(carry: Any, saved: Any) -> tuple[Any, Array]:
        dh, dc = carry
        given, c, before, gates, g = saved
        i, f, o = jnp.split(gates, 3, axis=-1)
        # dh: from the next step plus from this step's output. tanh(c) is recomputed, not stored.
        dh, squashed = dh + given, jnp.tanh(c)
        dc = dc + dh * o * (1 - squashed * squashed)
        dz = jnp.concatenate(
            [
                dc * g * i * (1 - i),  # input gate
                dc * before * f * (1 - f),  # forget gate
                dh * squashed * o * (1 - o),  # output gate
                dc * i * (1 - g * g),  # candidate
            ],
            axis=-1,
        )
        return (product(dz, transposed), dc * f), dz

    (dh, dc), dz = _scan(step, (jnp.zeros_like(c), dc), (dhs, cs, before, gates, g), reverse=True)
    return dz, dh, dc


lstm.defvjp(_lstm_forward, _lstm_backward)


def gru_step(projected: Array, h: Array, kernel: Array, bias: Array) -> Array:
    """One GRU step (Cho et al., 2014), with the reset gate after the product as in cuDNN.

    Args:
      projected: input times its kernel plus bias, (batch, 3 * hidden): reset gate, update gate,
        candidate.
      h: hidden state, (batch, hidden).
      kernel: the recurrent kernel, (hidden, 3 * hidden).
      bias: of the candidate's recurrent part, (hidden,).

    Returns:
      The new hidden state, (batch, hidden).
    """
    units = h.shape[-1]
    recurrent = h @ kernel
    gates = jax.nn.sigmoid(projected[:, : 2 * units] + recurrent[:, : 2 * units])
    r, u = gates[:, :units], gates[:, units:]
    n = jnp.tanh(projected[:, 2 * units :] + r * (recurrent[:, 2 * units :] + bias))
    return n + u * (h - n)  # (1 - u) n + u h


@jax.custom_vjp
def gru(projected: Array, h: Array, kernel: Array, bias: Array) -> Array:
    """Scans `gru_step` over a sequence of projected inputs.

    Equal to `jax.lax.scan` over `gru_step`, with one product for the kernel's gradient as in
    `lstm`. It supports reverse mode only, once: for `jax.jvp` and second derivatives, scan over
    `gru_step`.

    Args:
      projected: (time, batch, 3 * hidden), as in `gru_step`.
      h: initial hidden state, (batch, hidden).
      kernel: the recurrent kernel, (hidden, 3 * hidden).
      bias: of the candidate's recurrent part, (hidden,).

    Returns:
      The hidden states after each step, (time, batch, hidden).
    """
    return _gru_forward(projected, h, kernel, bias)[0]


def _gru_forward(projected: Array, h: Array, kernel: Array, bias: Array) -> tuple[Array, Any]:
    units = h.shape[-1]

    def step(h: Array, z: Array) -> tuple[Array, Any]:
        recurrent = product(h, kernel)
        gates = sigmoid(z[:, : 2 * units] + recurrent[:, : 2 * units])
        r, u = gates[:, :units], gates[:, units:]
        inner = recurrent[:, 2 * units :] + bias
        n = jnp.tanh(z[:, 2 * units :] + r * inner)
        h = n + u * (h - n)
        return h, (h, r, u, n, inner)

    _, saved = _scan(step, h, projected)
    return saved[0], (h, kernel, *saved)


def _gru_backward(saved: Any, dhs: Array) -> tuple[Array, Array, Array, Array]:
    """Backpropagation through time; see `_lstm_backward`."""
    h, kernel, hs, *gates = saved
    before = jnp.concatenate([h[None], hs[:-1]])  # the hidden state that each step started from
    transposed = kernel.T

    def step(dh: Array, saved: Any) -> tuple[Array, Any]:
        given, before, r, u, n, inner = saved
        dh = dh + given
        dn = dh * (1 - u) * (1 - n * n)
        dr = dn * inner * r * (1 - r)
        du = dh * (before - n) * u * (1 - u)
        # The candidate's recurrent part is multiplied by r, its input part is not.
        recurrent = jnp.concatenate([dr, du, dn * r], axis=-1)
        return dh * u + product(recurrent, transposed), (dn, recurrent)

    dh, (dn, recurrent) = _scan(step, jnp.zeros_like(h), (dhs, before, *gates), reverse=True)
    units = h.shape[-1]
    projected = jnp.concatenate([recurrent[..., : 2 * units], dn], axis=-1)
    dbias = recurrent[..., 2 * units :].sum((0, 1))
    return projected, dh, _kernel_gradient(h, hs, recurrent), dbias


gru.defvjp(_gru_forward, _gru_backward)


def _kernel_gradient(h: Array, hs: Array, dz: Array) -> Array:
    """sum_t h_{t-1}^T dz_t as one product: (time * batch, hidden)^T (time * batch, gates)."""
    before = jnp.concatenate([h[None], hs[:-1]])
    return product(before.reshape(-1, before.shape[-1]), dz.reshape(-1, dz.shape[-1]), (0, 0))
