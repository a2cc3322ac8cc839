"""Generative adversarial networks."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import flax.linen as nn
import jax
import numpy as np

from jdl.data.base import Data
from jdl.errors import UserError
from jdl.metrics import Mean
from jdl.state import TrainState
from jdl.tasks.base import HostMetrics
from jdl.tasks.forward import forward
from jdl.tasks.game import Game, Play
from jdl.tasks.labels import check_labels, draw_labels
from jdl.tasks.randomness import row_keys
from jdl.tasks.scores import SampleScores
from jdl.typing import Batch

CLASSES = 1
"""The stream of `row_keys` from which the classes of samples are drawn."""

Losses = Callable[[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]
"""Maps the critic's scores (batch,) of real and of generated images to each row's loss of the
generator and of the critic."""


def non_saturating(real: jax.Array, fake: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The logistic losses of Goodfellow et al. (2014), of the generator the non-saturating one."""
    return nn.softplus(-fake), nn.softplus(fake) + nn.softplus(-real)


def hinge(real: jax.Array, fake: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The hinge losses (Lim and Ye, 2017; Miyato et al., 2018, equations 16 and 17)."""
    return -fake, nn.relu(1 - real) + nn.relu(1 + fake)


def relativistic(real: jax.Array, fake: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The logistic losses of pairs of a real and a generated image (Jolicoeur-Martineau, 2019).

    With penalties `r1` and `r2` this is R3GAN's objective (Huang et al., 2024).
    """
    return nn.softplus(real - fake), nn.softplus(fake - real)


@dataclass(frozen=True, kw_only=True)
class GAN(Game):
    """A generator of images and a critic that tells them from real ones (Goodfellow et al., 2014).

    The model has two modules, `generator` and `critic`, and two methods, as `jdl.models.DCGAN`:
    `generate` returns images of keys (batch,), and `judge` the score (batch,) of images. With
    `num_classes` both also take `label` (batch,). Images are in [0, 1].

    Metrics: `generator_loss`, `critic_loss` with the penalties, their sum `loss`, and those of
    `scores`.
    """

    unconditional: ClassVar[bool] = True

    targets: str = "image"  # name of the arrays that `metrics` compare samples with
    objective: Losses = non_saturating
    """Of the players: `non_saturating`, `hinge` or `relativistic` of `jdl.tasks.gan`, or a function
    like them."""
    r1: float = 0.0
    """Factor of half the squared gradient of the critic at real images (Mescheder et al., 2018)."""
    r2: float = 0.0  # of the same at generated images
    penalty_every: int = 1  # steps between penalties, each multiplied by their number (`Play.lazy`)
    num_classes: int = 0  # classes to condition on; 0: none
    labels: str = "label"  # name of the classes in a batch
    scores: SampleScores | None = None  # of samples; None: none

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.r1, self.r2, self.num_classes) < 0:
            raise UserError("task.r1, r2 and num_classes must be at least 0")

    def losses(self, play: Play, batch: Batch) -> Mapping[str, Mean]:
        """See `Game.losses`."""
        real, label = batch[self.input_names[0]], self._label(batch)
        fake = play("generate", row_keys(batch), **label)
        if fake.shape != real.shape:
            raise UserError(
                f"the generator makes images of shape {fake.shape[1:]}, where those of the data "
                f"have {real.shape[1:]}: set the model's shape to that"
            )
        scores = play("judge", real, **label), play("judge", fake, **label)
        generator, critic = self.objective(*scores)
        for factor, image in ((self.r1, real), (self.r2, fake)):
            if factor:
                critic += factor / 2 * play.lazy(self.penalty_every, _squares(play, image, label))
        rows = {"generator": generator, "critic": critic}
        return {player: Mean.of(loss, batch["mask"]) for player, loss in rows.items()}

    def sample(self, model: nn.Module, state: TrainState, batch: Batch) -> jax.Array:
        """Returns a generated image for each row; its class is drawn if the batch has none."""
        label: dict[str, Any] = self._label(batch) if self.labels in batch else {}
        if self.num_classes and not label:
            label = {"label": draw_labels(row_keys(batch, CLASSES), self.num_classes)}
        found, _ = forward(
            model, state.params, state.collections, row_keys(batch), train=False,
            method="generate", **label,
        )  # fmt: skip
        return found

    @property
    def required_names(self) -> tuple[str, ...]:
        """See `Task.required_names`."""
        return (*super().required_names, *([self.labels] if self.num_classes else []))

    def validate_batch(self, batch: Mapping[str, np.ndarray], outputs: Any, where: str) -> None:
        """See `Task.validate_batch`."""
        super().validate_batch(batch, outputs, where)
        if not self.num_classes:
            return
        check_labels(
            np.asarray(batch[self.labels]),
            self.num_classes,
            where,
            name=self.labels,
            task="a GAN with classes",
            origin=f"task.num_classes is {self.num_classes}",
        )

    def has_host_metrics(self, split: str, data: Data) -> bool:
        """Whether `scores` has the split."""
        del data
        return self.scores is not None and split in self.scores.splits

    def host_outputs(self, model: nn.Module, state: TrainState, batch: Batch) -> Any:
        """Returns what `scores` are made of."""
        assert self.scores is not None
        samples = self.sample(model, state, batch)
        return self.scores.outputs(state, samples, batch[self.input_names[0]])

    def compute_metrics(
        self, prediction: Any, batch: Mapping[str, np.ndarray], data: Data
    ) -> HostMetrics:
        """Computes `scores`."""
        assert self.scores is not None
        labels = batch[self.labels] if self.num_classes else None
        return self.scores.compute_metrics(prediction, data, labels)

    def _label(self, batch: Batch) -> dict[str, Any]:
        return {"label": batch[self.labels]} if self.num_classes else {}


def _squares(play: Play, image: jax.Array, label: Mapping[str, Any]) -> Any:
    """Returns a function that computes the squared norm of the critic's gradient at each image."""
    return lambda: (play.gradient("judge", image, **label) ** 2).sum((1, 2, 3))
