"""Variational autoencoding: the evidence lower bound."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jdl.data.base import Data
from jdl.diffusion.samplers import draw
from jdl.errors import UserError
from jdl.metrics import Mean
from jdl.state import TrainState
from jdl.tasks.base import HostMetrics, Task
from jdl.tasks.forward import forward
from jdl.tasks.randomness import row_keys
from jdl.tasks.scores import SampleScores
from jdl.tasks.terms import Terms
from jdl.typing import Batch, Key, Keys, PyTree


@dataclass(frozen=True, kw_only=True)
class VariationalAutoencoding(Task):
    """The negative evidence lower bound in nats per example (Kingma and Welling, 2014).

    A standard normal prior, and a Bernoulli likelihood of elements that are 0 or 1 (see
    `jdl.data.Binarize`). The model has the methods `encode(x)`, which returns mean and log
    variance (batch, latent) of a Gaussian, and `decode(z)`, which returns one logit for each
    element. A sample has the probabilities of a latent vector from the prior, a prediction those of
    the mean of an input's.

    Metrics: `reconstruction` and `kl`, whose weighted sum is `loss`. In evaluation, `gray_loss` if
    the batch has an array `gray`: the same bound with values from 0 to 1 in place of the elements,
    as many examples report it, and no bound of a likelihood. With `importance_samples`, also
    `importance_loss`, a tighter bound (Burda et al., 2016, equation 8).
    """

    targets: str = "image"  # the same: an example is encoded and decoded
    loss_terms: Terms = (("reconstruction", 1.0), ("kl", 1.0))
    gray: str = "gray"  # name of the array of `gray_loss`
    scores: SampleScores | None = None  # of samples, in evaluations of its splits
    importance_samples: int = 0  # latent vectors for each example in `importance_loss`; 0: without

    unconditional: ClassVar[bool] = True

    def init(self, model: nn.Module, key: Key, batch: Batch) -> dict[str, PyTree]:
        """See `Task.init`."""
        for method in ("encode", "decode"):
            if not hasattr(type(model), method):
                raise UserError(
                    f"{type(model).__name__} has no method {method!r}, which "
                    f"VariationalAutoencoding calls: use a model such as jdl.models.VAE"
                )
        dtype = batch[self.input_names[0]].dtype
        if not jnp.issubdtype(dtype, jnp.floating):
            raise UserError(
                f"VariationalAutoencoding needs floats from 0 to 1, not {dtype}: add "
                f"jdl.data.Binarize() or Scale() to data.device_transforms"
            )
        return super().init(model, key, batch)

    def batch_metrics(
        self,
        model: nn.Module,
        params: PyTree,
        state: TrainState,
        batch: Batch,
        *,
        train: bool,
        key: Key | None = None,
    ) -> tuple[dict[str, Any], dict[str, PyTree]]:
        """See `Task.batch_metrics`."""

        def bound(x: jax.Array, keys: Keys) -> tuple[jax.Array, jax.Array, jax.Array, Any]:
            return self._bound(model, params, state, x, keys, train=train, key=key)

        x, mask, keys = batch[self.input_names[0]], batch["mask"], row_keys(batch)
        nll, kl, _, new = bound(x, keys)
        found = {"reconstruction": Mean.of(nll, mask), "kl": Mean.of(kl, mask)}
        if train:
            return found, new
        if self.gray in batch:
            nll, kl, *_ = bound(batch[self.gray], keys)
            found["gray_loss"] = Mean.of(nll + kl, mask)
        if count := self.importance_samples:
            # One after another, so that the activations of one are in memory at a time.
            split = jax.vmap(lambda key: jax.random.split(key, count), out_axes=1)(keys)
            weights = jax.lax.map(lambda keys: bound(x, keys)[2], split)
            tighter = math.log(count) - jax.nn.logsumexp(weights, axis=0)
            found["importance_loss"] = Mean.of(tighter, mask)
        return found, new

    def predict(self, model: nn.Module, state: TrainState, batch: Batch) -> jax.Array:
        """Returns probabilities shaped like the input, those of its mean latent vector."""
        x, inputs = batch[self.input_names[0]], (model, state.params, state.collections)
        (mean, _), _ = forward(*inputs, x, train=False, method="encode")
        logits, _ = _decode(*inputs, mean, x, train=False)
        return jax.nn.sigmoid(logits).reshape(x.shape)

    def sample(self, model: nn.Module, state: TrainState, batch: Batch) -> jax.Array:
        """Returns probabilities of the elements, of latent vectors drawn from the prior."""
        x, inputs = batch[self.input_names[0]], (model, state.params, state.collections)
        mean, _ = jax.eval_shape(lambda: forward(*inputs, x, train=False, method="encode")[0])
        latent = draw(row_keys(batch), mean.shape[1:])
        logits, _ = _decode(*inputs, latent, x, train=False)
        return jax.nn.sigmoid(logits).reshape(x.shape)

    def has_host_metrics(self, split: str, data: Data) -> bool:
        """See `Task.has_host_metrics`: those of `scores`."""
        return self.scores is not None and split in self.scores.splits

    def host_outputs(self, model: nn.Module, state: TrainState, batch: Batch) -> Any:
        """See `Task.host_outputs`: what `scores` reads, of samples and gray images if there are."""
        assert self.scores is not None
        images = batch.get(self.gray, batch[self.input_names[0]])
        return self.scores.outputs(state, self.sample(model, state, batch), images)

    def compute_metrics(
        self, prediction: Any, batch: Mapping[str, np.ndarray], data: Data
    ) -> HostMetrics:
        """See `Task.compute_metrics`: the scores of samples."""
        del batch
        assert self.scores is not None
        return self.scores.compute_metrics(prediction, data)

    def _bound(
        self,
        model: nn.Module,
        params: PyTree,
        state: TrainState,
        x: jax.Array,
        keys: Keys,
        *,
        train: bool,
        key: Key | None,
    ) -> tuple[jax.Array, jax.Array, jax.Array, dict[str, PyTree]]:
        """Returns, of one latent vector drawn for each row, the parts of the bound.

        Returns:
          nll: minus the log likelihood of x given the vector, (batch,).
          kl: divergence of its distribution from the prior, (batch,).
          log_weight: log of the importance weight p(x, z) / q(z | x), (batch,).
          collections: the model's updated collections.
        """
        (mean, log_variance), collections = forward(
            model, params, state.collections, x, train=train, key=key, method="encode"
        )
        noise = draw(keys, mean.shape[1:])
        z = mean + jnp.exp(log_variance / 2) * noise
        other = None if key is None else jax.random.fold_in(key, 1)
        logits, collections = _decode(model, params, collections, z, x, train=train, key=other)
        rows = x.reshape(len(x), -1)
        nll = optax.sigmoid_binary_cross_entropy(logits, rows).sum(1)
        kl = (jnp.exp(log_variance) + mean**2 - 1 - log_variance).sum(1) / 2
        log_ratio = (noise**2 + log_variance - z**2).sum(1) / 2  # log p(z) - log q(z | x)
        return nll, kl, log_ratio - nll, collections


def _decode(
    model: nn.Module,
    params: PyTree,
    collections: dict[str, PyTree],
    z: jax.Array,
    x: jax.Array,
    **mode: Any,
) -> tuple[jax.Array, dict[str, PyTree]]:
    """Returns logits (batch, elements) of examples like x, and the collections.

    Raises:
      UserError: there are more logits than elements, or fewer.
    """
    logits, collections = forward(model, params, collections, z, method="decode", **mode)
    elements = math.prod(x.shape[1:])
    if logits.shape != (len(x), elements):
        raise UserError(
            f"the decoder returns {logits.shape[1:]} logits for examples of shape {x.shape[1:]}: "
            f"set model.features to {elements}"
        )
    return logits, collections
