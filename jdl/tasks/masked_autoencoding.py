"""Masked autoencoding: predicting the pixels of hidden patches of images."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jdl.errors import UserError
from jdl.layers import cut_patches, join_patches
from jdl.metrics import Mean
from jdl.state import TrainState
from jdl.tasks.base import Task
from jdl.tasks.embedding import check_class_labels
from jdl.tasks.forward import forward, initialize
from jdl.tasks.randomness import row_keys
from jdl.typing import Batch, Key, PyTree


@dataclass(frozen=True, kw_only=True)
class MaskedAutoencoding(Task):
    """The squared error of the pixels of hidden patches (He et al., 2022).

    The model has a field `patch_size` and a method `encode(images)`, and its
    `__call__(images, visible)` returns all patches, as `jdl.models.MaskedAutoencoder`. The
    prediction is the features of the whole image, which `probes` and `metrics` of embeddings judge;
    a sample is an image whose hidden patches are the model's. Each row hides its own random
    patches: in evaluation the same ones for the same key.

    Metrics: `loss`, the mean over hidden patches.
    """

    mask_ratio: float = 0.75  # share of the patches that are hidden
    normalize_patches: bool = (
        True  # predict pixels less the mean of their patch, over its deviation
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.mask_ratio < 1:
            raise UserError(f"task.mask_ratio is a share between 0 and 1, not {self.mask_ratio}")

    @property
    def required_names(self) -> tuple[str, ...]:
        """See `Task.required_names`: targets only where they are read."""
        return super().required_names if self.metrics or self.probes else self.input_names

    def init(self, model: nn.Module, key: Key, batch: Batch) -> dict[str, PyTree]:
        """See `Task.init`.

        Raises:
          UserError: the model is of another kind.
        """
        if not (hasattr(model, "patch_size") and hasattr(type(model), "encode")):
            raise UserError(
                f"MaskedAutoencoding needs a model with a field patch_size and a method encode, "
                f"such as jdl.models.MaskedAutoencoder, not {type(model).__name__}"
            )
        images = batch[self.input_names[0]]
        return initialize(model, key, images, self._order(model, batch)[0])

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
        images = batch[self.input_names[0]]
        visible, hidden = self._order(model, batch)
        found, collections = forward(
            model, params, state.collections, images, visible, train=train, key=key
        )
        wanted, mean, deviation = self._targets(model, images)
        errors = ((found - (wanted - mean) / deviation) ** 2).mean(-1)
        errors = jnp.take_along_axis(errors, hidden, axis=1)
        mask = jnp.broadcast_to(batch["mask"][:, None], errors.shape)
        metrics: dict[str, Any] = {"loss": Mean.of(errors, mask)}
        if not train and self.metrics:
            metrics |= self.further_metrics(self.predict(model, state, batch), batch, train=False)
        return metrics, collections

    def predict(self, model: nn.Module, state: TrainState, batch: Batch) -> jax.Array:
        """Returns features of the whole images, (batch, features) float32."""
        images = batch[self.input_names[0]]
        return forward(
            model, state.params, state.collections, images, train=False, method="encode"
        )[0]

    def sample(self, model: nn.Module, state: TrainState, batch: Batch) -> jax.Array:
        """Returns the images with predicted pixels in hidden patches."""
        images = batch[self.input_names[0]]
        visible, _ = self._order(model, batch)
        found, _ = forward(model, state.params, state.collections, images, visible, train=False)
        wanted, mean, deviation = self._targets(model, images)
        rows = jnp.arange(len(images))[:, None]
        seen = jnp.zeros(found.shape[:2], bool).at[rows, visible].set(True)
        patches = jnp.where(seen[..., None], wanted, found * deviation + mean)
        return join_patches(patches, images.shape[1:], self._side(model))

    def validate_batch(self, batch: Mapping[str, np.ndarray], outputs: Any, where: str) -> None:
        """Also requires one integer label for each example, where labels are read."""
        super().validate_batch(batch, outputs, where)
        if self.targets in self.required_names:
            check_class_labels(np.asarray(batch[self.targets]), self.targets, where)

    def _side(self, model: Any) -> int:
        return model.patch_size

    def _order(self, model: nn.Module, batch: Batch) -> tuple[jax.Array, jax.Array]:
        """Returns the indices of visible and of hidden patches of each row.

        Raises:
          UserError: all would be visible, or none.
        """
        images = batch[self.input_names[0]]
        if images.ndim != 4 or not jnp.issubdtype(images.dtype, jnp.floating):
            raise UserError(
                f"MaskedAutoencoding needs images (batch, height, width, channels) of floats, not "
                f"{images.dtype}{list(images.shape[1:])}: add Scale() to data.device_transforms"
            )
        count = cut_patches(images[:1], self._side(model)).shape[1]
        kept = round(count * (1 - self.mask_ratio))
        if not 0 < kept < count:
            raise UserError(
                f"task.mask_ratio={self.mask_ratio} hides {count - kept} of {count} patches: set "
                f"another, or a smaller model.patch_size"
            )
        draws = jax.vmap(lambda key: jax.random.uniform(key, (count,)))(row_keys(batch))
        order = jnp.argsort(draws, axis=1)
        return order[:, :kept], order[:, kept:]

    def _targets(
        self, model: nn.Module, images: jax.Array
    ) -> tuple[jax.Array, jax.Array | float, jax.Array | float]:
        """Returns patches, and the mean and deviation by which they are normalized."""
        patches = cut_patches(images.astype(jnp.float32), self._side(model))
        if not self.normalize_patches:
            return patches, 0.0, 1.0
        deviation = jnp.sqrt(patches.var(-1, keepdims=True) + 1e-6)
        return patches, patches.mean(-1, keepdims=True), deviation
