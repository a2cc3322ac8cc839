"""DCGAN, whose players take each step from the same parameters."""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.peers.flax.training import Bare, Batch, State
from benchmarks.peers.flax.weights import convert
from benchmarks.trainer import Case, first_batch


class Generator(nn.Module):
    """Noise (batch, features) and classes (batch,) to images in [0, 1]."""

    shape: tuple[int, int, int]  # height, width and channels of an image
    channels: tuple[int, ...]  # of each level, from the coarsest
    num_classes: int  # of the images
    dtype: Any  # of the computation

    @nn.compact
    def __call__(self, noise: jax.Array, label: jax.Array) -> jax.Array:
        """Applies the layers."""
        *sides, features = self.shape
        height, width = (side >> len(self.channels) - 1 for side in sides)
        x = noise * nn.Embed(self.num_classes, noise.shape[1])(label)
        x = nn.Dense(height * width * self.channels[0], use_bias=False, dtype=self.dtype)(x)
        x = self._normed(x.reshape(-1, height, width, self.channels[0]))
        for channels in self.channels[1:]:
            x = x.repeat(2, axis=1).repeat(2, axis=2)
            x = nn.Conv(channels, (3, 3), use_bias=False, dtype=self.dtype)(x)
            x = self._normed(x)
        x = nn.Conv(features, (3, 3), dtype=self.dtype)(x)
        return nn.sigmoid(x.astype(jnp.float32))

    def _normed(self, x: jax.Array) -> jax.Array:
        return nn.relu(nn.BatchNorm(use_running_average=False, dtype=self.dtype)(x))


class Critic(nn.Module):
    """Images and classes (batch,) to scores (batch,)."""

    channels: tuple[int, ...]  # of each convolution
    num_classes: int  # of the images
    dtype: Any  # of the computation

    @nn.compact
    def __call__(self, image: jax.Array, label: jax.Array) -> jax.Array:
        """Applies the layers."""
        x = image.astype(self.dtype)
        for channels in self.channels:
            x = nn.leaky_relu(nn.Conv(channels, (3, 3), strides=2, dtype=self.dtype)(x), 0.2)
        x = x.reshape(len(x), -1)
        score = nn.Dense(1, dtype=self.dtype)(x)[:, 0]
        score += (nn.Embed(self.num_classes, x.shape[1], dtype=self.dtype)(label) * x).sum(1)
        return score.astype(jnp.float32)


def loss_function(case: Case) -> tuple[Callable[..., tuple[jax.Array, Any]], Any, Any, Batch]:
    """See `benchmarks.peers.flax.training.loss_function`.

    The loss is the sum of the players' non-saturating ones, each of which is constant in the
    other's parameters, without the penalty R1 unless it is called with `penalize`.
    """
    model, half = case.model, {"fp32": jnp.float32, "bf16": jnp.bfloat16}[case.dtype]
    classes = model["num_classes"]
    generator = Generator(model["shape"], model["generator_channels"], classes, half)
    critic = Critic(model["critic_channels"], classes, half)

    def loss(params: Any, rest: Any, batch: Batch, penalize: bool = False) -> Any:
        image, label = batch["image"].astype(jnp.float32) / 255, batch["label"]

        def judge(params: Any, image: jax.Array) -> jax.Array:
            return critic.apply({"params": params}, image, label)

        variables = {"params": params["generator"], **rest}
        fake, rest = generator.apply(variables, batch["noise"], label, mutable=["batch_stats"])
        fixed = jax.lax.stop_gradient((params["critic"], fake))
        own = nn.softplus(-judge(fixed[0], fake))
        its = nn.softplus(judge(params["critic"], fixed[1]))
        its += nn.softplus(-judge(params["critic"], image))
        if penalize:
            slopes = jax.grad(lambda image: judge(params["critic"], image).sum())(image)
            its += case.r1 / 2 * case.penalty_every * (slopes**2).sum((1, 2, 3))
        return own.mean() + its.mean(), rest

    assert case.noise is not None
    batch = {**first_batch(case), "noise": case.noise[0]}
    shapes = jax.eval_shape(generator.init, jax.random.key(0), batch["noise"], batch["label"])
    rest = {"batch_stats": shapes["batch_stats"]}
    # Training writes and never reads them: their initial values do not matter.
    rest = jax.tree.map(lambda shape: np.zeros(shape.shape, shape.dtype), rest)
    return loss, convert(case), rest, batch


def train_step(state: State, batch: Batch, penalize: bool) -> tuple[State, jax.Array]:
    """One step of Adam for both players, on new noise unless the batch has some."""
    if "noise" not in batch:
        key = jax.random.fold_in(jax.random.key(0), state.step)
        shape = len(batch["label"]), len(state.params["generator"]["Dense_0"]["kernel"])
        batch = {**batch, "noise": jax.random.normal(key, shape)}
    gradient = jax.value_and_grad(state.apply_fn, has_aux=True)
    (loss, rest), gradients = gradient(state.params, state.rest, batch, penalize)
    return state.apply_gradients(grads=gradients, rest=rest), loss


class Adversarial(Bare):
    """The jitted steps with and without penalty, on one batch."""

    def __init__(self, case: Case) -> None:
        self._taken = 0
        step = jax.jit(train_step, static_argnames="penalize", donate_argnums=0)
        super().__init__(case, loss_function, step)
        self._advance(2 * case.penalty_every)

    def gradient(self) -> tuple[float, float]:
        """See `Trainer.gradient`."""
        function = jax.value_and_grad(partial(self._loss, penalize=True), has_aux=True)
        (loss, _), gradients = jax.jit(function)(self._params, self._rest, self._batch)
        return float(loss), float(optax.tree.norm(gradients))

    def curve(self, steps: int) -> list[float]:
        """See `Trainer.curve`; the noise is jdl's."""
        state, losses = self._fresh(), []
        assert self._case.noise is not None
        for step, noise in enumerate(self._case.noise[:steps]):
            penalize = step % self._case.penalty_every == 0
            state, loss = self._step(state, {**self._batch, "noise": noise}, penalize=penalize)
            losses.append(float(loss))
        return losses

    def _advance(self, steps: int) -> None:
        batch = {name: self._batch[name] for name in ("image", "label")}
        for _ in range(steps):
            penalize = self._taken % self._case.penalty_every == 0
            self._state, _ = self._step(self._state, batch, penalize=penalize)
            self._taken += 1
        jax.block_until_ready(self._state)
