"""Keras 3 on JAX: a functional model, its stateless step jitted, or `fit` for a whole loop."""

import os
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.trainer import Case, Trainer, first_batch
from jdl.errors import UserError

os.environ.setdefault("KERAS_BACKEND", "jax")  # read when Keras is imported

import keras
from keras import layers

if keras.backend.backend() != "jax":
    raise UserError(
        f"Keras runs on {keras.backend.backend()!r} here, where the comparison needs JAX: "
        "set KERAS_BACKEND=jax"
    )

VERSION = keras.__version__

GATES = (0, 1, 3, 2)
"""Places in jdl's LSTM of Keras' gates: input, forget, candidate, output."""

STEPS_PER_EXECUTION = 25
"""Steps of `fit` between two rounds of callbacks; as many as `mnist_mlp` dispatches at once."""


class Positions(layers.Layer):
    """Adds a trained vector to each position of (batch, time, width)."""

    def build(self, shape: Any) -> None:
        """Creates the table."""
        self.table = self.add_weight(shape=shape[1:], name="table")

    def call(self, x: jax.Array) -> jax.Array:
        """(batch, time, width) to the same."""
        return x + self.table


def mlp(model: dict[str, Any], shape: tuple[int, ...], dtype: str) -> keras.Model:
    """Dense layers with relu between; uint8 images (batch, ...) to logits (batch, outputs)."""
    image = keras.Input(shape, dtype="uint8")
    x = layers.Flatten(dtype="float32")(layers.Rescaling(1 / 255, dtype="float32")(image))
    for i, width in enumerate(model["widths"]):
        x = layers.Dense(width, activation="relu", dtype=dtype, name=f"Dense_{i}")(x)
    return keras.Model(image, layers.Dense(model["features"], dtype=dtype, name="logits")(x))


def cnn(model: dict[str, Any], shape: tuple[int, ...], dtype: str) -> keras.Model:
    """Convolutions, each with relu and a pool, then dense layers; uint8 images to logits."""
    image = keras.Input(shape, dtype="uint8")
    x = layers.Rescaling(1 / 255, dtype="float32")(image)
    options = {"padding": model["padding"].lower(), "activation": "relu", "dtype": dtype}
    for i, channels in enumerate(model["channels"]):
        x = layers.Conv2D(channels, 3, **options, name=f"Conv_{i}")(x)
        x = layers.MaxPooling2D(dtype=dtype)(x)
    x = layers.Flatten(dtype=dtype)(x)
    for i, width in enumerate(model["dense"]):
        x = layers.Dense(width, activation="relu", dtype=dtype, name=f"Dense_{i}")(x)
    return keras.Model(image, layers.Dense(model["num_classes"], dtype=dtype, name="logits")(x))


def resnet50(model: dict[str, Any], shape: tuple[int, ...], dtype: str) -> keras.Model:
    """A residual network of bottlenecks ("v1.5"); uint8 images to logits."""

    def normed(x: Any, name: str, channels: int, size: int, strides: int = 1) -> Any:
        options = {"use_bias": False, "dtype": dtype, "name": f"{name}.Conv_0"}
        x = layers.Conv2D(channels, size, strides, **options)(padded(x, size // 2))
        name = f"{name}.BatchNorm_0.BatchNorm_0"
        return layers.BatchNormalization(momentum=0.9, epsilon=1e-5, dtype=dtype, name=name)(x)

    def padded(x: Any, pixels: int) -> Any:
        return layers.ZeroPadding2D(pixels, dtype=dtype)(x) if pixels else x

    image = keras.Input(shape, dtype="uint8")
    x = layers.Rescaling(1 / 255, dtype="float32")(image)
    x = keras.ops.relu(normed(x, "stem", model["num_filters"], 7, 2))
    x = layers.MaxPooling2D(3, 2, dtype=dtype)(padded(x, 1))
    for i, blocks in enumerate(model["stage_sizes"]):
        channels = model["num_filters"] << i
        for j in range(blocks):
            name, strides = f"stage{i}_block{j}", 2 if i and not j else 1
            y = keras.ops.relu(normed(x, f"{name}.conv0", channels, 1))
            y = keras.ops.relu(normed(y, f"{name}.conv1", channels, 3, strides))
            y = normed(y, f"{name}.conv2", 4 * channels, 1)
            if x.shape != y.shape:
                x = normed(x, f"{name}.project", 4 * channels, 1, strides)
            x = keras.ops.relu(x + y)
    x = layers.GlobalAveragePooling2D(dtype=dtype)(x)
    return keras.Model(image, layers.Dense(model["num_classes"], dtype=dtype, name="logits")(x))


def lstm(model: dict[str, Any], shape: tuple[int, ...], dtype: str) -> keras.Model:
    """Embedding, LSTM, and a dense layer on its last state; tokens (batch, time) to logits."""
    tokens = keras.Input(shape, dtype="int32")
    embed = layers.Embedding(model["vocab_size"], model["embed_dim"], dtype=dtype, name="Embed_0")
    x = layers.LSTM(model["hidden_size"], dtype=dtype, name="LSTM_0")(embed(tokens))
    return keras.Model(tokens, layers.Dense(model["features"], dtype=dtype, name="logits")(x))


def lstm_lm(model: dict[str, Any], shape: tuple[int, ...], dtype: str) -> keras.Model:
    """Embedding, LSTM layers, logits; tokens (batch, time) to (..., vocabulary)."""
    size, units = model["vocab_size"], model["hidden_size"]
    tokens = keras.Input(shape, dtype="int32")
    x = layers.Embedding(size, units, dtype=dtype, name="tokens")(tokens)
    for i in range(model["num_layers"]):
        x = layers.LSTM(units, return_sequences=True, dtype=dtype, name=f"LSTM_{i}")(x)
    logits = layers.Dense(size, use_bias=False, dtype=dtype, name="logits")
    return keras.Model(tokens, logits(x))


def transformer(model: dict[str, Any], shape: tuple[int, ...], dtype: str) -> keras.Model:
    """A decoder with tied embeddings; tokens (batch, time) to logits (..., vocabulary)."""
    width, heads = model["embed_dim"], model["num_heads"]
    tokens = keras.Input(shape, dtype="int32")
    embed = layers.ReversibleEmbedding(model["vocab_size"], width, dtype=dtype, name="tokens")
    x = Positions(dtype=dtype, name="positions")(embed(tokens))
    for i in range(model["num_layers"]):
        name = f"block_{i}."
        y = layers.LayerNormalization(epsilon=1e-5, dtype=dtype, name=name + "norm1")(x)
        attention = layers.MultiHeadAttention(
            heads, width // heads, dtype=dtype, name=name + "attention"
        )
        x = x + attention(y, y, use_causal_mask=True)
        y = layers.LayerNormalization(epsilon=1e-5, dtype=dtype, name=name + "norm2")(x)
        y = layers.Dense(4 * width, dtype=dtype, name=name + "inner")(y)
        y = keras.ops.gelu(y, approximate=True)
        x = x + layers.Dense(width, dtype=dtype, name=name + "outer")(y)
    x = layers.LayerNormalization(epsilon=1e-5, dtype=dtype, name="norm")(x)
    return keras.Model(tokens, embed(x, reverse=True))


class Adam(keras.optimizers.Adam):
    """Keras' own, with epsilon at the bias-corrected root (Kingma and Ba, 2015, algorithm 1).

    Keras adds it to the uncorrected root, so it is scaled by that correction here.
    """

    @property
    def epsilon(self) -> Any:
        """The epsilon of the current step."""
        step = keras.ops.cast(self.iterations + 1, "float32")
        return self._epsilon * keras.ops.sqrt(1 - keras.ops.power(self.beta_2, step))

    @epsilon.setter
    def epsilon(self, value: float) -> None:
        self._epsilon = value


MODELS = {
    "mlp": mlp,
    "cnn": cnn,
    "resnet50": resnet50,
    "lstm": lstm,
    "lstm_lm": lstm_lm,
    "transformer": transformer,
}


class Bare:
    """A jitted stateless step on one batch, as in Keras' guide to custom JAX loops."""

    def __init__(self, case: Case) -> None:
        x, y = _pair(first_batch(case))
        policy = {"fp32": "float32", "bf16": "mixed_bfloat16"}[case.dtype]
        self._case = case
        self._model = MODELS[case.name](case.model, x.shape[1:], policy)
        weights = _convert(case)
        for variable in self._model.trainable_variables:
            variable.assign(weights[variable.path.replace("/", ".")])
        self._optimizer = Adam(case.rate, epsilon=case.eps)
        self._optimizer.build(self._model.trainable_variables)
        losses = keras.losses
        one = case.model.get("num_classes", case.model.get("features")) == 1
        kind = losses.BinaryCrossentropy if one else losses.SparseCategoricalCrossentropy
        self._criterion = kind(from_logits=True)
        parts = (self._model.trainable_variables, self._model.non_trainable_variables)
        variables = (*parts, self._optimizer.variables)
        self._initial = jax.tree.map(lambda variable: np.array(variable.value), variables)
        self._batch = jax.device_put((x, y))
        self._step = jax.jit(self._train_step, donate_argnums=0)
        self._warm()

    def gradient(self) -> tuple[float, float]:
        """See `Trainer.gradient`."""
        trained, rest, _ = self._initial
        function = jax.jit(jax.value_and_grad(self._loss, has_aux=True))
        (loss, _), gradients = function(trained, rest, *self._batch)
        return float(loss), float(sum(jnp.vdot(g, g) for g in gradients) ** 0.5)

    def curve(self, steps: int) -> list[float]:
        """See `Trainer.curve`."""
        state, losses = self._fresh(), []
        for _ in range(steps):
            loss, state = self._step(state, *self._batch)
            losses.append(float(loss))
        return losses

    def run(self, steps: int) -> float:
        """See `Trainer.run`."""
        begun = time.perf_counter()
        for _ in range(steps):
            _, self._state = self._step(self._state, *self._batch)
        jax.block_until_ready(self._state)
        return time.perf_counter() - begun

    def _warm(self) -> None:
        self._state = self._fresh()
        self.run(2)

    def _fresh(self) -> Any:
        return jax.tree.map(jnp.array, self._initial)  # copies: the step overwrites its state

    def _loss(self, trained: Any, rest: Any, x: Any, y: Any) -> tuple[jax.Array, Any]:
        logits, rest = self._model.stateless_call(trained, rest, x, training=True)
        return self._criterion(y, logits), rest

    def _train_step(self, state: Any, x: Any, y: Any) -> tuple[jax.Array, Any]:
        trained, rest, moments = state
        function = jax.value_and_grad(self._loss, has_aux=True)
        (loss, rest), gradients = function(trained, rest, x, y)
        trained, moments = self._optimizer.stateless_apply(moments, gradients, trained)
        return loss, (trained, rest, moments)


class Clock(keras.callbacks.Callback):
    """Seconds from the first to the last step of `fit`."""

    seconds = 0.0

    def on_train_begin(self, logs: Any = None) -> None:
        """Starts the clock: everything is compiled, the data is ready."""
        self.begun = time.perf_counter()

    def on_train_end(self, logs: Any = None) -> None:
        """Stops the clock: the last epoch's mean loss has been fetched."""
        self.seconds = time.perf_counter() - self.begun


class Loop(Bare):
    """`fit` on arrays in memory."""

    def run(self, steps: int) -> float:
        """See `Trainer.run`; remaining steps are an epoch of fewer examples."""
        size = self._case.batch
        epochs, rest = divmod(steps, len(self._data[0]) // size)
        seconds = self._fit(len(self._data[0]) // size, epochs) if epochs else 0.0
        return seconds + (self._fit(rest, 1) if rest else 0.0)

    def _warm(self) -> None:
        self._data = _pair(self._case.arrays)
        self._model.compile(
            optimizer=self._optimizer,
            loss=self._criterion,
            steps_per_execution=STEPS_PER_EXECUTION,
        )
        self._fit(2, 1)

    def _fit(self, batches: int, epochs: int) -> float:
        size, clock = self._case.batch, Clock()
        x, y = (array[: batches * size] for array in self._data)
        self._model.fit(x, y, batch_size=size, epochs=epochs, verbose=0, callbacks=[clock])
        return clock.seconds


def build(case: Case, variant: str) -> Trainer:
    """The trainer of a workload.

    Raises:
      UserError: for a variant other than `default`.
    """
    if variant != "default":
        raise UserError(f"keras has the variant 'default' only, not {variant!r}")
    return (Loop if case.loop else Bare)(case)


def _pair(arrays: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and targets."""
    if "label" not in arrays:
        return arrays["tokens"][:, :-1], arrays["tokens"][:, 1:]
    return arrays["image" if "image" in arrays else "tokens"], arrays["label"]


def _convert(case: Case) -> dict[str, np.ndarray]:
    """Converts jdl's weights to Keras' names and layout."""
    weights: dict[str, np.ndarray] = {}
    for name, array in case.params.items():
        path = name.replace(".feed_forward.", ".")
        place, _, leaf = path.rpartition(".")
        if place.startswith("LSTM_"):
            leaf = "recurrent_kernel" if leaf == "recurrent" else leaf
            parts = np.split(array, 4, axis=-1)
            weights[f"{place}.lstm_cell.{leaf}"] = np.concatenate([parts[i] for i in GATES], -1)
        elif ".attention." in path:
            weights |= _heads(path, array, case.model["num_heads"])
        elif path == "logits":
            weights["logits.kernel"] = array.T
        elif "norm" in place.lower():
            weights[f"{place}.{'gamma' if leaf == 'scale' else 'beta'}"] = array
        else:
            renamed = {"embedding": f"{place}.embeddings", "positions": "positions.table"}
            weights[renamed.get(leaf, path)] = array
    return weights


def _heads(path: str, array: np.ndarray, heads: int) -> dict[str, np.ndarray]:
    """Splits the fused queries, keys and values of each head."""
    place, layer, leaf = path.rsplit(".", 2)
    if layer == "output":
        shape = (heads, -1, array.shape[-1]) if leaf == "kernel" else array.shape
        return {f"{place}.attention_output.{leaf}": array.reshape(shape)}
    parts = np.moveaxis(array.reshape(*array.shape[:-1], heads, 3, -1), -2, 0)
    return {f"{place}.{n}.{leaf}": p for n, p in zip(("query", "key", "value"), parts, strict=True)}
