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


class NormedConv(nn.Module):
    """A convolution without bias, and batch norm."""

    channels: int  # of the output
    size: int  # of the kernel's sides
    strides: int  # by which height and width shrink
    dtype: Any  # of the computation

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Applies both."""
        sides, pad = (self.size, self.size), self.size // 2
        options = {"padding": pad, "use_bias": False, "dtype": self.dtype}
        x = nn.Conv(self.channels, sides, self.strides, **options)(x)
        return nn.BatchNorm(use_running_average=False, momentum=0.9, dtype=self.dtype)(x)


class Bottleneck(nn.Module):
    """Three convolutions, of which the second has the strides, added to their input."""

    channels: int  # inside; at the end four times as many
    strides: int  # by which height and width shrink
    dtype: Any  # of the computation

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Applies the layers."""
        y = nn.relu(NormedConv(self.channels, 1, 1, self.dtype, name="conv0")(x))
        y = nn.relu(NormedConv(self.channels, 3, self.strides, self.dtype, name="conv1")(y))
        y = NormedConv(4 * self.channels, 1, 1, self.dtype, name="conv2")(y)
        if x.shape != y.shape:
            x = NormedConv(4 * self.channels, 1, self.strides, self.dtype, name="project")(x)
        return nn.relu(x + y)


class ResNet(nn.Module):
    """A residual network of bottlenecks ("v1.5"); uint8 images to logits."""

    stages: tuple[int, ...]  # blocks of each stage
    width: int  # channels of the first stage
    outputs: int  # units of the last layer
    dtype: Any  # of the computation

    @nn.compact
    def __call__(self, image: jax.Array) -> jax.Array:
        """Applies the layers."""
        x = image.astype(jnp.float32) / 255
        x = nn.relu(NormedConv(self.width, 7, 2, self.dtype, name="stem")(x))
        x = nn.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
        for i, blocks in enumerate(self.stages):
            for j in range(blocks):
                strides, name = 2 if i and not j else 1, f"stage{i}_block{j}"
                x = Bottleneck(self.width << i, strides, self.dtype, name=name)(x)
        return nn.Dense(self.outputs, dtype=self.dtype, name="logits")(x.mean((1, 2)))


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
        x = nn.RNN(kind(self.units, dtype=self.dtype, name=f"{self.cell.upper()}_0"))(x)[:, -1]
        return nn.Dense(self.outputs, dtype=self.dtype, name="logits")(x)


class LanguageModel(nn.Module):
    """Embedding, LSTM layers, logits; tokens (batch, time) to (..., vocabulary)."""

    vocabulary: int  # tokens that there are
    units: int  # of the embedding and of each layer
    layers: int  # recurrent layers
    dtype: Any  # of the computation

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Applies the layers."""
        x = nn.Embed(self.vocabulary, self.units, dtype=self.dtype, name="tokens")(tokens)
        for i in range(self.layers):
            x = nn.RNN(nn.OptimizedLSTMCell(self.units, dtype=self.dtype, name=f"LSTM_{i}"))(x)
        return nn.Dense(self.vocabulary, use_bias=False, dtype=self.dtype, name="logits")(x)


class Block(nn.Module):
    """Attention and two dense layers, each normed before and added after."""

    heads: int  # of the attention
    dtype: Any  # of the computation
    epsilon: float = 1e-5  # of the norms
    approximate: bool = True  # the GELU by a hyperbolic tangent

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        """(batch, time, width) to the same."""
        width = x.shape[-1]
        y = nn.LayerNorm(epsilon=self.epsilon, dtype=self.dtype, name="norm1")(x)
        attention = nn.MultiHeadDotProductAttention(self.heads, dtype=self.dtype, name="attention")
        x = x + attention(y, mask=mask)
        y = nn.LayerNorm(epsilon=self.epsilon, dtype=self.dtype, name="norm2")(x)
        y = nn.gelu(nn.Dense(4 * width, dtype=self.dtype, name="inner")(y), self.approximate)
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


class ViT(nn.Module):
    """A vision transformer whose patches' mean is classified; uint8 images to logits."""

    patch: int  # side of a patch
    layers: int  # blocks
    heads: int  # of each attention
    width: int  # of the sequence
    outputs: int  # units of the last layer
    dtype: Any  # of the computation

    @nn.compact
    def __call__(self, image: jax.Array) -> jax.Array:
        """Applies the layers."""
        x, sides = image.astype(jnp.float32) / 255, (self.patch, self.patch)
        x = nn.Conv(self.width, sides, sides, dtype=self.dtype, name="patches")(x)
        x = x.reshape(len(x), -1, self.width)
        init = nn.initializers.normal(0.02)
        x = x + self.param("positions", init, x.shape[1:]).astype(self.dtype)
        for i in range(self.layers):
            x = Block(self.heads, self.dtype, 1e-6, False, name=f"block_{i}")(x)
        x = nn.LayerNorm(epsilon=1e-6, dtype=self.dtype, name="norm")(x).mean(1)
        return nn.Dense(self.outputs, dtype=self.dtype, name="logits")(x)


class EncoderBlock(nn.Module):
    """Attention and two dense layers, each added and then normed."""

    heads: int  # of the attention
    dtype: Any  # of the computation

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        """(batch, time, width) to the same."""
        width = x.shape[-1]
        attention = nn.MultiHeadDotProductAttention(self.heads, dtype=self.dtype, name="attention")
        y = attention(x, mask=mask)
        x = nn.LayerNorm(epsilon=1e-12, dtype=self.dtype, name="norm1")(x + y)
        y = nn.Dense(4 * width, dtype=self.dtype, name="inner")(x)
        y = nn.Dense(width, dtype=self.dtype, name="outer")(nn.gelu(y, approximate=False))
        return nn.LayerNorm(epsilon=1e-12, dtype=self.dtype, name="norm2")(x + y)


class BERT(nn.Module):
    """An encoder normed after each part; tokens (batch, time) to logits from the first place."""

    vocabulary: int  # tokens that there are
    context: int  # longest sequence
    layers: int  # blocks
    heads: int  # of each attention
    width: int  # of the sequence
    outputs: int  # units of the last layer
    dtype: Any  # of the computation

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Applies the layers."""
        init = nn.initializers.normal(0.02)
        positions = self.param("positions", init, (self.context, self.width))
        kinds = self.param("kinds", init, (2, self.width))
        x = nn.Embed(self.vocabulary, self.width, dtype=self.dtype, name="tokens")(tokens)
        x = x + (positions[: tokens.shape[1]] + kinds[0]).astype(self.dtype)
        x = nn.LayerNorm(epsilon=1e-12, dtype=self.dtype, name="norm")(x)
        for i in range(self.layers):
            block = EncoderBlock(self.heads, self.dtype, name=f"block_{i}")
            x = block(x, (tokens != 0)[:, None, None])
        first = nn.tanh(nn.Dense(self.width, dtype=self.dtype, name="pooler")(x[:, 0]))
        return nn.Dense(self.outputs, dtype=self.dtype, name="logits")(first)


MODELS = {
    "mlp": MLP,
    "cnn": CNN,
    "resnet50": ResNet,
    "vit_s16": ViT,
    "bert_base": BERT,
    "lstm": RNN,
    "lstm_lm": LanguageModel,
    "transformer": GPT,
}


def loss_function(case: Case) -> tuple[Callable[..., tuple[jax.Array, Any]], Any, Any, Batch]:
    """The mean training loss and its arguments; nothing is computed.

    Returns:
      `(function, params, rest, batch)`, where `function(params, rest, batch)` gives a float32
      scalar and the statistics of batch norm, `rest`, as they are after the batch.
    """
    kind = MODELS[case.name]
    fields = {name: case.model[name] for name in kind.__annotations__ if name in case.model}
    model = kind(**fields, dtype={"fp32": jnp.float32, "bf16": jnp.bfloat16}[case.dtype])

    def loss(params: Any, rest: Any, batch: Batch) -> tuple[jax.Array, Any]:
        inputs, labels = _pair(batch)
        variables = {"params": params, **rest}
        logits, rest = model.apply(variables, inputs, mutable=["batch_stats"])
        logits = logits.astype(jnp.float32)
        if case.model.get("outputs") == 1:
            return optax.sigmoid_binary_cross_entropy(logits[:, 0], labels).mean(), rest
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), rest

    batch = first_batch(case)
    shapes = dict(jax.eval_shape(model.init, jax.random.key(0), _pair(batch)[0]))
    shapes.pop("params")
    # In training they are written and not read: what they begin with does not matter.
    rest = jax.tree.map(lambda shape: np.zeros(shape.shape, shape.dtype), shapes)
    return loss, _convert(case), rest, batch


def _pair(batch: Batch) -> tuple[Any, Any]:
    """Inputs and targets."""
    if "label" not in batch:
        return batch["tokens"][:, :-1], batch["tokens"][:, 1:]
    return batch["image" if "image" in batch else "tokens"], batch["label"]


class State(TrainState):
    """With the statistics of batch norm, as in Flax's ImageNet example."""

    rest: Any


def train_step(state: State, batch: Batch) -> tuple[State, jax.Array]:
    """One step of Adam; `apply_fn` gives the loss."""
    gradient = jax.value_and_grad(state.apply_fn, has_aux=True)
    (loss, rest), gradients = gradient(state.params, state.rest, batch)
    return state.apply_gradients(grads=gradients, rest=rest), loss


class Bare:
    """The jitted step on one batch."""

    def __init__(self, case: Case) -> None:
        self._case = case
        self._loss, self._params, self._rest, batch = loss_function(case)
        self._batch = jax.device_put(batch)
        self._step = jax.jit(train_step, donate_argnums=0)
        self._state = self._fresh()
        self._advance(2)  # compiles; the second sees a state as steps leave it

    def gradient(self) -> tuple[float, float]:
        """See `Trainer.gradient`."""
        function = jax.jit(jax.value_and_grad(self._loss, has_aux=True))
        (loss, _), gradients = function(self._params, self._rest, self._batch)
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

    def _fresh(self) -> State:
        # Copies: the step overwrites its state.
        params, rest = jax.tree.map(jnp.array, (self._params, self._rest))
        adam = optax.adam(self._case.rate, eps=self._case.eps)
        return State.create(apply_fn=self._loss, params=params, tx=adam, rest=rest)


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
    for name, array in case.params.items():
        path = name.replace(".feed_forward.", ".")
        if path.startswith(("LSTM_", "GRU_")):
            params |= _gates(*path.split("."), array)
        elif ".attention." in path:
            params |= _heads(path, array, case.model["heads"])
        elif path == "logits":
            params["logits.kernel"] = array.T
        elif path == "patches.kernel":
            side = case.model["patch"]
            params[path] = array.reshape(side, side, -1, array.shape[-1])
        else:
            params[path.replace("BatchNorm_0.BatchNorm_0", "BatchNorm_0")] = array
    return unflatten_dict(params, sep=".")


def _gates(layer: str, name: str, array: np.ndarray) -> dict[str, np.ndarray]:
    """Splits the gates, and says where Flax's cells have them."""
    gates, biased = ("ifog", "h") if layer.startswith("LSTM") else ("rzn", "i")
    if name == "recurrent_bias":
        return {f"{layer}.hn.bias": array}
    places = {"kernel": "i{}.kernel", "recurrent": "h{}.kernel", "bias": biased + "{}.bias"}
    path = f"{layer}.{places[name]}"
    parts = np.split(array, len(gates), axis=-1)
    return {path.format(gate): part for gate, part in zip(gates, parts, strict=True)}


def _heads(path: str, array: np.ndarray, heads: int) -> dict[str, np.ndarray]:
    """Takes apart the queries, keys and values, which jdl has side by side for each head."""
    place, layer, leaf = path.rsplit(".", 2)
    if layer == "output":
        shape = (heads, -1, array.shape[-1]) if leaf == "kernel" else array.shape
        return {f"{place}.out.{leaf}": array.reshape(shape)}
    parts = np.moveaxis(array.reshape(*array.shape[:-1], heads, 3, -1), -2, 0)
    return {f"{place}.{n}.{leaf}": p for n, p in zip(("query", "key", "value"), parts, strict=True)}
