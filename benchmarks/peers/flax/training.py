"""The loss, the jitted step and the loop, as in Flax's examples."""

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct
from flax.training.train_state import TrainState

from benchmarks.peers.flax.dense import UNet, detection_loss, segmentation_loss
from benchmarks.peers.flax.models import CNN, MLP, RNN, LanguageModel, ResNet, SmallResNet
from benchmarks.peers.flax.seq2seq import EncoderDecoder
from benchmarks.peers.flax.speech import SpeechEncoder, ctc_loss
from benchmarks.peers.flax.transformers import BERT, GPT, ViT
from benchmarks.peers.flax.weights import convert
from benchmarks.trainer import Case, first_batch

Batch = dict[str, np.ndarray]

MODELS = {
    "mlp": MLP,
    "cnn": CNN,
    "resnet50": ResNet,
    "cifar10_resnet": SmallResNet,
    "unet": UNet,
    "detector": UNet,
    "vit_s16": ViT,
    "bert_base": BERT,
    "bert_finetune": BERT,
    "lstm": RNN,
    "lstm_lm": LanguageModel,
    "transformer": GPT,
    "seq2seq": EncoderDecoder,
    "ctc": SpeechEncoder,
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
        inputs, labels = _split(batch)
        variables = {"params": params, **rest}
        logits, rest = model.apply(variables, *inputs, mutable=["batch_stats"])
        logits = logits.astype(jnp.float32)
        if "audio" in batch:
            return ctc_loss(logits, batch), rest
        if "segmentation_mask" in batch:
            return segmentation_loss(logits, labels), rest
        if "boxes" in batch:
            return detection_loss(logits, batch), rest
        if "target" in batch:
            return _translation_loss(logits, labels, case.smoothing), rest
        if case.model.get("num_classes", case.model.get("features")) == 1:
            return optax.sigmoid_binary_cross_entropy(logits[:, 0], labels).mean(), rest
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), rest

    batch = first_batch(case)
    shapes = dict(jax.eval_shape(model.init, jax.random.key(0), *_split(batch)[0]))
    shapes.pop("params")
    # Training writes and never reads them: their initial values do not matter.
    rest = jax.tree.map(lambda shape: np.zeros(shape.shape, shape.dtype), shapes)
    return loss, convert(case), rest, batch


def _translation_loss(logits: jax.Array, targets: Any, smoothing: float) -> jax.Array:
    """The mean over targets that are no padding; smoothed labels as in Flax's WMT example."""
    labels = optax.smooth_labels(jax.nn.one_hot(targets, logits.shape[-1]), smoothing)
    return optax.softmax_cross_entropy(logits, labels).mean(where=targets != 0)


def _split(batch: Batch) -> tuple[tuple[Any, ...], Any]:
    """Inputs of the model, and targets."""
    if "audio" in batch:
        return (batch["audio"], batch["audio_mask"]), batch["tokens"]
    if "target" in batch:
        return (batch["source"], batch["target"][:, :-1]), batch["target"][:, 1:]
    if "segmentation_mask" in batch or "boxes" in batch:
        return (batch["image"],), batch.get("segmentation_mask")
    if "label" not in batch:
        return (batch["tokens"][:, :-1],), batch["tokens"][:, 1:]
    return (batch["image" if "image" in batch else "tokens"],), batch["label"]


class State(TrainState):
    """With the statistics of batch norm, as in Flax's ImageNet example."""

    rest: Any
    crop_and_flip: int = struct.field(pytree_node=False, default=0)


def crop_and_flip(images: jax.Array, pad: int, step: jax.Array) -> jax.Array:
    """Images padded with zeros, each cropped and flipped at random."""
    padded = jnp.pad(images, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    crop, flip = jax.random.split(jax.random.fold_in(jax.random.key(0), step))
    begin = jax.random.randint(crop, (len(images), 2), 0, 2 * pad + 1)

    def cut(image: jax.Array, begin: jax.Array) -> jax.Array:
        return jax.lax.dynamic_slice(image, (*begin, 0), images.shape[1:])

    images = jax.vmap(cut)(padded, begin)
    turned = jax.random.bernoulli(flip, shape=(len(images), 1, 1, 1))
    return jnp.where(turned, images[:, :, ::-1], images)


def train_step(state: State, batch: Batch) -> tuple[State, jax.Array]:
    """One step of Adam; `apply_fn` gives the loss."""
    gradient = jax.value_and_grad(state.apply_fn, has_aux=True)
    if state.crop_and_flip:
        batch = {**batch, "image": crop_and_flip(batch["image"], state.crop_and_flip, state.step)}
    (loss, rest), gradients = gradient(state.params, state.rest, batch)
    return state.apply_gradients(grads=gradients, rest=rest), loss


class Bare:
    """The jitted step on one batch."""

    def __init__(
        self, case: Case, define: Callable[[Case], Any] = loss_function, step: Any = None
    ) -> None:
        self._case = case
        self._loss, self._params, self._rest, batch = define(case)
        self._batch = jax.device_put(batch)
        self._step = step or jax.jit(train_step, donate_argnums=0)
        self._state = self._fresh()
        self._advance(2)  # compiles; the second step has the sharding and types of later ones

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
        return State.create(
            apply_fn=self._loss,
            params=params,
            tx=adam,
            rest=rest,
            crop_and_flip=self._case.crop_and_flip,
        )


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
