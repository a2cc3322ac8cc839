"""Scores of samples: comparisons with images in the features of a classifier."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jdl.data.base import Data
from jdl.data.splits import Splits
from jdl.data.views import Seen
from jdl.errors import UserError, nearest
from jdl.metrics.distribution import (
    CHUNK,
    frechet_distance,
    kernel_distance,
    nearest_distances,
    precision_and_recall,
)
from jdl.state import TrainState
from jdl.tasks.base import HostMetrics
from jdl.tasks.untrained import Frozen
from jdl.typing import Batch

SIDE = 32
"""Longest side of the images between which distances in pixels are computed."""


@dataclass(frozen=True, kw_only=True)
class SampleScores(Frozen):
    """A classifier in whose features the samples of a task are compared with a split's images.

    As a field of a task, which delegates three methods to it:

        scores: SampleScores | None = None

        def has_host_metrics(self, split, data):
            return self.scores is not None and split in self.scores.splits

        def host_outputs(self, model, state, batch):
            return self.scores.outputs(state, self.sample(model, state, batch), batch["image"])

        def compute_metrics(self, prediction, batch, data):
            return self.scores.compute_metrics(prediction, data)

    As many samples are drawn as the split has images. Both are images in the range of values that
    the classifier was trained on. Metrics:

    - `kernel_distance` and `frechet_distance` of the features, and `precision` and `recall`
      (`jdl.metrics.distribution`).
    - `confidence`, the mean probability of the most probable class, beside the images' own
      `real_confidence`; `min_class_share` and `max_class_share`, of the rarest and of the most
      common class among the samples; `class_accuracy`, the share of samples of the class that was
      asked for, if there are labels.
    - `nearest_distance`, the mean Euclidean distance in pixels to the nearest training image,
      beside `real_nearest_distance`. Copies of training images score well otherwise, and are nearer
      than new images are. Larger images are reduced to 32 pixels.

    Scores of different networks, layers or splits are not comparable.
    """

    name: str = "scores"  # of its collection in the state
    layer: str = "logits"  # module whose inputs are the features, and whose outputs the classes
    splits: tuple[str, ...] = ("validation", "test")  # to score
    normalize: bool = True  # divide features by the root mean square of the images'
    num_neighbors: int = 3  # of precision and recall
    num_subsets: int = 100  # of the kernel distance
    subset_size: int = 1000  # rows of each subset
    num_nearest: int = 1000  # samples and images whose nearest training image is found; 0: none

    def outputs(self, state: TrainState, samples: jax.Array, images: jax.Array) -> dict[str, Any]:
        """Computes what `compute_metrics` reads, inside of the compiled evaluation.

        Args:
          state: of the run.
          samples: (batch, height, width, channels).
          images: of the data, of the same shape.

        Raises:
          UserError: the shapes differ, or the network has no such layer.
        """
        if jnp.shape(samples) != jnp.shape(images):
            raise UserError(
                f"samples of shape {jnp.shape(samples)[1:]} cannot be scored against images of "
                f"shape {jnp.shape(images)[1:]}: let the model make images of that shape"
            )
        found = {}
        for name, x in (("sample", samples), ("image", images)):
            features, logits = self.features(state, x)
            found[name] = {
                "features": features,
                "probabilities": jax.nn.softmax(logits),
                **({"pixels": _reduced(x)} if self.num_nearest else {}),
            }
        return found

    def features(self, state: TrainState, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Computes the inputs and outputs of `layer`.

        Args:
          state: of the run.
          images: (batch, height, width, channels).

        Returns:
          (batch, features) and (batch, classes), float32.

        Raises:
          UserError: the network calls no such module, or that has no such outputs.
        """
        found: dict[str, Any] = {}

        def keep(call: Any, args: Any, named: Any, context: Any) -> Any:
            output = call(*args, **named)
            if context.method_name == "__call__":
                found[".".join(context.module.path)] = (args, output)
            return output

        with nn.intercept_methods(keep):
            self(state, images)
        if self.layer not in found:
            known = [name for name in found if name]
            raise UserError(
                f"task.{self.name}.layer: {type(self.model).__name__} has no module "
                f"{self.layer!r}{nearest(self.layer, known)} (it has {', '.join(known)})"
            )
        (inputs, *_), logits = found[self.layer]
        if logits.ndim != 2:
            raise UserError(
                f"task.{self.name}.layer: the outputs of {self.layer} have shape {logits.shape}, "
                f"not (batch, classes): name the last layer of a classifier"
            )
        return inputs.reshape(len(images), -1).astype(jnp.float32), logits.astype(jnp.float32)

    def compute_metrics(
        self, outputs: Any, data: Data, labels: np.ndarray | None = None
    ) -> HostMetrics:
        """Computes the scores of a split.

        Args:
          outputs: of the method `outputs`, for the whole split, as NumPy arrays.
          data: the data set, whose training split is read.
          labels: (examples,) the class that was asked for in each sample; None: no class was.

        Returns:
          Scores without those that so few images cannot give. The signatures name the network; a
          line for each sample has its class and the probability.
        """
        made, real = outputs["sample"], outputs["image"]
        found = self._of_features(made["features"], real["features"])
        chosen, confidence = made["probabilities"].argmax(1), made["probabilities"].max(1)
        shares = np.bincount(chosen, minlength=made["probabilities"].shape[1]) / len(chosen)
        found |= {
            "confidence": confidence.mean(),
            "real_confidence": real["probabilities"].max(1).mean(),
            "min_class_share": shares.min(),
            "max_class_share": shares.max(),
        }
        if labels is not None:
            found["class_accuracy"] = (chosen == labels).mean()
        if self.num_nearest:
            found |= self._in_pixels(made["pixels"], real["pixels"], data)
        network = f"{type(self.model).__name__} of {self.run or 'random weights'}"
        signature = f"inputs of {self.layer} in {network}, {len(chosen)} samples"
        names = ("kernel_distance", "frechet_distance", "precision", "recall")
        return HostMetrics(
            {name: float(value) for name, value in found.items() if not np.isnan(value)},
            {name: signature for name in names if name in found},
            [f"{a} {b:.4f}" for a, b in zip(chosen, confidence, strict=True)],
        )

    def _of_features(self, made: np.ndarray, real: np.ndarray) -> dict[str, Any]:
        if self.normalize:
            scale = np.sqrt(np.mean(np.square(real, dtype=np.float64))) or 1.0
            made, real = made / scale, real / scale
        subsets = {"num_subsets": self.num_subsets, "subset_size": self.subset_size}
        precision, recall = precision_and_recall(made, real, num_neighbors=self.num_neighbors)
        return {
            "kernel_distance": kernel_distance(made, real, **subsets)[0],
            "frechet_distance": frechet_distance(made, real),
            "precision": precision,
            "recall": recall,
        }

    def _in_pixels(self, made: np.ndarray, real: np.ndarray, data: Data) -> dict[str, Any]:
        """Returns mean distances to the nearest training image, of evenly spaced rows."""
        index = np.unique(np.linspace(0, len(made) - 1, self.num_nearest).round().astype(int))
        rows = np.concatenate([made[index], real[index]])
        found = np.full(len(rows), np.inf)
        for part in self._training_images(data):
            found = np.minimum(found, nearest_distances(rows, part))
        own, others = np.split(found, 2)
        return {"nearest_distance": own.mean(), "real_nearest_distance": others.mean()}

    def _training_images(self, data: Data) -> Iterator[np.ndarray]:
        """Yields the pixels of all training images, some at a time."""
        name = self.inputs if isinstance(self.inputs, str) else self.inputs[0]

        @jax.jit
        def reduced(batch: Batch) -> jax.Array:
            seen = Seen()
            for transform in data.device_transforms:
                batch, seen = seen.apply(transform, batch, None)
            return _reduced(batch[name])

        pipeline = Splits(data).pipeline("train")
        for begin in range(0, len(pipeline), CHUNK):
            index = np.arange(begin, min(begin + CHUNK, len(pipeline)))
            batch = {**pipeline.examples(index), "mask": np.ones(len(index), bool)}
            yield np.asarray(reduced(batch))


def _reduced(images: jax.Array) -> jax.Array:
    """Returns the pixels of images, reduced to at most `SIDE` a side, (batch, pixels) float32."""
    batch, height, width, channels = images.shape
    shape = (batch, min(height, SIDE), min(width, SIDE), channels)
    if shape != images.shape:
        images = jax.image.resize(images, shape, "linear")
    return images.reshape(batch, -1).astype(jnp.float32)
