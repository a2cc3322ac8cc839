"""Flax: linen modules, a jitted step and a `TrainState`, as Flax's own examples write them."""

import time
from collections.abc import Callable
from typing import Any

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.training.train_state import TrainState
from flax.traverse_util import unflatten_dict

from benchmarks.trainer import Case, Trainer, first_batch
from jdl.errors import UserError

VERSION = flax.__version__

Batch = dict[str, np.ndarray]


class MLP(nn.Module):
    """Dense layers with relu between; uint8 images (batch, ...) to logits (batch, outputs)."""

    widths: tuple[int, ...]  # units of each hidden layer
    outputs: int  # units of the last layer
    dtype: Any  # of the computation

    @nn.compact
    def __call__(self, image: jax.Array) -> jax.Array:
        """Applies the layers."""
        x = image.reshape(image.shape[0], -1).astype(jnp.float32) / 255
        for width in self.widths:
            x = nn.relu(nn.Dense(width, dtype=self.dtype)(x))
        return nn.Dense(self.outputs, dtype=self.dtype, name="logits")(x)


class CNN(nn.Module):
    """Convolutions, each with relu and a pool, then dense layers; uint8 images to logits."""

    channels: tuple[int, ...]  # of each convolution
    dense: tuple[int, ...]  # units of each hidden dense layer
    outputs: int  # units of the last layer
    padding: str  # of the convolutions
    dtype: Any  # of the computation

    @nn.compact
    def __call__(self, image: jax.Array) -> jax.Array:
        """Applies the layers."""
        x = image.astype(jnp.float32) / 255
        for channels in self.channels:
            x = nn.Conv(channels, (3, 3), padding=self.padding, dtype=self.dtype)(x)
            x = nn.max_pool(nn.relu(x), (2, 2), strides=(2, 2))
        x = x.reshape(x.shape[0], -1)
        for width in self.dense:
            x = nn.relu(nn.Dense(width, dtype=self.dtype)(x))
        return nn.Dense(self.outputs, dtype=self.dtype, name="logits")(x)


class RNN(nn.Module):
    """Embedding, recurrent layer, dense layer on its last state; tokens (batch, time) to logits."""

    vocabulary: int  # tokens that have an embedding
    features: int  # of an embedding
    units: int  # of the recurrent layer
    cell: str  # lstm or gru
    outputs: int  # units of the last layer
    dtype: Any  # of the computation

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Applies the layers."""
        x = nn.Embed(self.vocabulary, self.features, dtype=self.dtype)(tokens)
        kind = {"lstm": nn.OptimizedLSTMCell, "gru": nn.GRUCell}[self.cell]
        x = nn.RNN(kind(self.units, dtype=self.dtype, name="cell"))(x)[:, -1]
        return nn.Dense(self.outputs, dtype=self.dtype, name="logits")(x)


class Block(nn.Module):
    """Attention and two dense layers, each normed before and added after."""

    heads: int  # of the attention
    dtype: Any  # of the computation

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        """(batch, time, width) to the same."""
        width = x.shape[-1]
        y = nn.LayerNorm(epsilon=1e-5, dtype=self.dtype, name="norm1")(x)
        attention = nn.MultiHeadDotProductAttention(self.heads, dtype=self.dtype, name="attention")
        x = x + attention(y, mask=mask)
        y = nn.LayerNorm(epsilon=1e-5, dtype=self.dtype, name="norm2")(x)
        y = nn.gelu(nn.Dense(4 * width, dtype=self.dtype, name="inner")(y))
        return x + nn.Dense(width, dtype=self.dtype, name="outer")(y)


class GPT(nn.Module):
    """A decoder with tied embeddings; tokens (batch, time) to logits (..., vocabulary)."""

    vocabulary: int  # tokens that there are
    context: int  # longest sequence
    layers: int  # blocks
    heads: int  # of each attention
    width: int  # of the sequence
    dtype: Any  # of the computation

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Applies the layers."""
        embed = nn.Embed(self.vocabulary, self.width, dtype=self.dtype, name="tokens")
        init = nn.initializers.normal(0.02)
        positions = self.param("positions", init, (self.context, self.width))
        x = embed(tokens) + positions[: tokens.shape[1]].astype(self.dtype)
        mask = nn.make_causal_mask(tokens[:1], dtype=bool)
        for i in range(self.layers):
            x = Block(self.heads, self.dtype, name=f"block_{i}")(x, mask)
        return embed.attend(nn.LayerNorm(epsilon=1e-5, dtype=self.dtype, name="norm")(x))


MODELS = {"mlp": MLP, "cnn": CNN, "lstm": RNN, "transformer": GPT}


def loss_function(case: Case) -> tuple[Callable[[Any, Batch], jax.Array], Any, Batch]:
    """The mean training loss, its parameters and the first batch; nothing is computed.

    Returns:
      `(function, params, batch)`, where `function(params, batch)` is a float32 scalar.
    """
    kind = MODELS[case.name]
    fields = {name: case.model[name] for name in kind.__annotations__ if name in case.model}
    model = kind(**fields, dtype={"fp32": jnp.float32, "bf16": jnp.bfloat16}[case.dtype])

    def loss(params: Any, batch: Batch) -> jax.Array:
        if case.name == "transformer":
            inputs, labels = batch["tokens"][:, :-1], batch["tokens"][:, 1:]
        else:
            inputs, labels = batch["tokens" if case.name == "lstm" else "image"], batch["label"]
        logits = model.apply({"params": params}, inputs).astype(jnp.float32)
        if case.model.get("outputs") == 1:
            return optax.sigmoid_binary_cross_entropy(logits[:, 0], labels).mean()
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    return loss, _convert(case), first_batch(case)


def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, jax.Array]:
    """One step of Adam; `apply_fn` gives the loss."""
    loss, gradients = jax.value_and_grad(state.apply_fn)(state.params, batch)
    return state.apply_gradients(grads=gradients), loss


class Bare:
    """The jitted step on one batch."""

    def __init__(self, case: Case) -> None:
        self._case = case
        self._loss, self._params, batch = loss_function(case)
        self._batch = jax.device_put(batch)
        self._step = jax.jit(train_step, donate_argnums=0)
        self._state = self._fresh()
        self._advance(2)  # compiles; the second sees a state as steps leave it

    def gradient(self) -> tuple[float, float]:
        """See `Trainer.gradient`."""
        loss, gradients = jax.jit(jax.value_and_grad(self._loss))(self._params, self._batch)
        return float(loss), float(optax.tree.norm(gradients))

    def curve(self, steps: int) -> list[float]:
        """See `Trainer.curve`."""
        state, losses = self._fresh(), []
        for _ in range(steps):
            state, loss = self._step(state, self._batch)
            losses.append(float(loss))
        return losses

    def run(self, steps: int) -> float:
        """See `Trainer.run`."""
        begun = time.perf_counter()
        self._advance(steps)
        return time.perf_counter() - begun

    def _advance(self, steps: int) -> None:
        for _ in range(steps):
            self._state, _ = self._step(self._state, self._batch)
        jax.block_until_ready(self._state)

    def _fresh(self) -> TrainState:
        params = jax.tree.map(jnp.array, self._params)  # copies: the step overwrites its state
        adam = optax.adam(self._case.rate, eps=self._case.eps)
        return TrainState.create(apply_fn=self._loss, params=params, tx=adam)


class Loop(Bare):
    """Epochs over arrays in memory, as in Flax's MNIST example."""

    def _advance(self, steps: int) -> None:
        arrays, size = self._case.arrays, self._case.batch
        examples, random = len(arrays["label"]), np.random.default_rng(0)
        while steps:
            epoch = random.permutation(examples)[: examples // size * size].reshape(-1, size)
            losses = []
            for rows in epoch[:steps]:
                batch = {name: array[rows] for name, array in arrays.items()}
                self._state, loss = self._step(self._state, batch)
                losses.append(loss)
            np.mean(jax.device_get(losses))  # what a user logs
            steps -= len(losses)
        jax.block_until_ready(self._state)


def build(case: Case, variant: str) -> Trainer:
    """The trainer of a workload.

    Raises:
      UserError: for a variant other than `default`.
    """
    if variant != "default":
        raise UserError(f"flax has the variant 'default' only, not {variant!r}")
    return (Loop if case.loop else Bare)(case)


def _convert(case: Case) -> Any:
    """jdl's weights in Flax's layout: attention by heads, the LSTM's gates each on its own."""
    params: dict[str, np.ndarray] = {}
    for path, array in case.params.items():
        if path.startswith(("LSTM_0", "GRU_0")):
            params |= _gates(*path.split("."), array)
        elif ".attention." in path:
            params |= _heads(path, array, case.model["heads"])
        else:
            params[path] = array
    return unflatten_dict(params, sep=".")


def _gates(layer: str, name: str, array: np.ndarray) -> dict[str, np.ndarray]:
    """Splits the gates, and says where Flax's cells have them."""
    inner, outer = "cell.i{}.kernel", "cell.h{}.kernel"
    if layer == "LSTM_0":
        gates, bias = "ifog", "cell.h{}.bias"
    else:
        gates, bias = "rzn", "cell.i{}.bias"
    if name == "recurrent_bias":
        return {"cell.hn.bias": array}
    path = {"kernel": inner, "recurrent": outer, "bias": bias}[name]
    parts = np.split(array, len(gates), axis=-1)
    return {path.format(gate): part for gate, part in zip(gates, parts, strict=True)}


def _heads(path: str, array: np.ndarray, heads: int) -> dict[str, np.ndarray]:
    """Splits query, key and value, and the width of each into heads."""
    place, layer, leaf = path.rsplit(".", 2)
    if layer == "output":
        shape = (heads, -1, array.shape[-1]) if leaf == "kernel" else array.shape
        return {f"{place}.out.{leaf}": array.reshape(shape)}
    parts = (part.reshape(*part.shape[:-1], heads, -1) for part in np.split(array, 3, axis=-1))
    return {f"{place}.{n}.{leaf}": p for n, p in zip(("query", "key", "value"), parts, strict=True)}
