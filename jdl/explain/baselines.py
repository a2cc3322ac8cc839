"""Baselines: the inputs that attributions are measured from."""

from dataclasses import dataclass
from typing import Literal

import jax
import numpy as np

from jdl.errors import UserError
from jdl.explain.method import Request
from jdl.explain.subject import Inputs
from jdl.tasks import LanguageModeling


@dataclass(frozen=True)
class Baseline:
    """What stands for a missing input.

    `zero`: zeros, of embeddings the zero vector; `pad`: the embedding of token 0, by which texts
    are padded; `blur`: the image, blurred; `mean`: the mean of training examples; `expected`:
    several training examples, over which attributions are averaged (expected gradients; Erion et
    al., 2021). `auto` is `pad` for padded tokens and else `zero`.
    """

    kind: Literal["auto", "zero", "pad", "blur", "mean", "expected"] = "auto"
    count: int = 8  # training examples of `expected`
    sigma: float = 0.1  # deviation of `blur`, as a share of the image's longer side

    def of(self, request: Request) -> Inputs:
        """Returns the baselines of a request, (baselines, rows, ...) for each input.

        Raises:
          UserError: there are no training examples to take, or the input is no image to blur.
        """
        if self.kind in ("mean", "expected"):
            return self._of_examples(request)
        if self.kind == "blur":
            return {name: self._blurred(name, x)[None] for name, x in request.x.items()}
        if self.kind == "pad" or (self.kind == "auto" and _is_padded(request)):
            return _padded(request)
        return jax.tree.map(lambda leaf: np.zeros_like(leaf)[None], request.x)

    def _of_examples(self, request: Request) -> Inputs:
        if request.reference is None:
            raise UserError(
                f"the baseline {self.kind!r} needs training examples: explain a run whose data is "
                f"there, or take the baseline 'zero'"
            )
        known = request.reference()
        if self.kind == "mean":
            return {
                name: np.broadcast_to(known[name].mean(0), x.shape)[None]
                for name, x in request.x.items()
            }
        size = len(next(iter(known.values())))
        chosen = np.linspace(0, size - 1, min(self.count, size)).round().astype(int)
        return {
            name: np.broadcast_to(known[name][chosen][:, None], (len(chosen), *x.shape))
            for name, x in request.x.items()
        }

    def _blurred(self, name: str, x: np.ndarray) -> np.ndarray:
        """Returns images blurred by a Gaussian, beyond the border the nearest pixel."""
        if x.ndim != 4:
            raise UserError(
                f"the baseline 'blur' is for images, and {name!r} has the shape {x.shape[1:]}: "
                f"take the baseline 'zero' or 'mean'"
            )
        for axis in (1, 2):
            sigma = max(self.sigma * max(x.shape[1:3]), 1e-3)
            reach = int(np.ceil(2 * sigma))
            weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
            places = np.arange(x.shape[axis])[:, None] + np.arange(-reach, reach + 1)
            taken = np.take(x, places.clip(0, x.shape[axis] - 1), axis)
            shape = [1] * taken.ndim
            shape[axis + 1] = -1
            x = (taken * (weights / weights.sum()).reshape(shape)).sum(axis + 1).astype(x.dtype)
        return x


def _is_padded(request: Request) -> bool:
    return bool(request.subject.embedded) and not isinstance(request.subject.task, LanguageModeling)


def _padded(request: Request) -> Inputs:
    """Returns the embeddings of token 0, of inputs of real numbers zeros; (1, rows, ...)."""
    subject, batch = request.subject, request.rows["batch"]
    empty = {name: np.zeros_like(batch[name]) for name in subject.embedded}
    found = subject.inputs({**batch, **empty})
    return {
        name: (found[name] if name in subject.embedded else np.zeros_like(x))[None]
        for name, x in request.x.items()
    }
