"""The interface of an implementation that is benchmarked."""

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np


@dataclass(frozen=True)
class Case:
    """A workload as given to every implementation.

    Attributes:
      name: of the workload, such as `mlp`.
      model: fields of jdl's model, such as `num_layers` and `num_heads`.
      params: initial weights by path, joined by dots, as jdl's model has them.
      arrays: a batch by name, or for `loop` the whole data set, before any transform.
      batch: examples of a step.
      dtype: of the computation, `fp32` or `bf16`; parameters and Adam's moments are fp32.
      loop: whether a step also fetches its batch from the data set.
      threads: that computation may use.
      rate: learning rate of Adam.
      eps: added to the root mean square in Adam.
      smoothing: share of each label that is spread over all classes.
      crop_and_flip: pixels of padding of a random crop, with a random flip; 0: images as they are.
      noise: that jdl draws in the first steps, (steps, batch, features) float32; later steps, and
        a workload with none here, draw their own.
      r1: factor of half the squared gradient of a GAN's critic at real images.
      penalty_every: steps between these penalties, each multiplied by their number.
    """

    name: str
    model: dict[str, Any]
    params: dict[str, np.ndarray]
    arrays: dict[str, np.ndarray]
    batch: int
    dtype: str
    loop: bool
    threads: int
    rate: float = 1e-4
    eps: float = 1e-7
    smoothing: float = 0.0
    crop_and_flip: int = 0
    noise: np.ndarray | None = None
    r1: float = 0.0
    penalty_every: int = 1


class Trainer(Protocol):
    """A workload in one framework; made by its module's `build(case)`."""

    def gradient(self) -> tuple[float, float]:
        """Mean loss and global gradient norm of the first batch at the initial weights."""
        ...

    def curve(self, steps: int) -> list[float]:
        """Mean losses of successive steps, all on the first batch, from the initial weights."""
        ...

    def run(self, steps: int) -> float:
        """Takes steps on the first batch, or under `loop` on batch after batch of the data set.

        Returns:
          Seconds of the steps, including the wait for the last, without compiling and preparing
          batches for the device.
        """
        ...


def first_batch(case: Case) -> dict[str, np.ndarray]:
    """The first examples, as many as a batch has."""
    return {name: array[: case.batch] for name, array in case.arrays.items()}
