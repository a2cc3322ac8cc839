"""Different optimizers for different parameters."""

import fnmatch
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import optax

from jdl.errors import UserError
from jdl.optimizers.optimizers import Optimizer
from jdl.optimizers.schedules import check
from jdl.paths import path_name
from jdl.typing import PyTree


@dataclass(frozen=True, kw_only=True)
class Partition(Optimizer):
    """Trains each parameter with the first optimizer whose pattern its path matches.

    `Partition(parts=(("*.bias", SGD(0.1)), ("*", Muon(0.02))))`. Each part has its own schedule,
    decay and averages; norms are clipped per part there, over all parameters here. Penalties and
    averages of this optimizer are those of all parts.
    """

    learning_rate: float | optax.Schedule = field(
        default=1.0, kw_only=False
    )  # factor of the rates of all parts, the peak of `schedule`
    parts: tuple[tuple[str, Optimizer], ...] = ()
    """Pairs of a pattern of paths, as in a shell (`*.bias`, `logits.*`, `*`), and an optimizer."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self, "parts", bool(self.parts), "pairs of a pattern and an optimizer")
        decayed = self.weight_decay != 0
        check(self, "weight_decay", not decayed, "0, and set in the parts instead")

    def _steps(
        self, steps: int, add_decay: optax.GradientTransformation
    ) -> Sequence[optax.GradientTransformation]:
        del add_decay
        methods: dict[Hashable, optax.GradientTransformation] = {
            str(index): part.build(steps) for index, (_, part) in enumerate(self.parts)
        }
        scale = optax.scale_by_learning_rate(self.rate(steps), flip_sign=False)
        return optax.partition(methods, self._labels), scale

    def _labels(self, params: PyTree) -> PyTree:
        """The index of the part of each parameter, as text.

        Raises:
          UserError: a parameter matches no pattern, or a pattern no parameter.
        """
        paths = [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
        for pattern, _ in self.parts:
            if not any(fnmatch.fnmatchcase(path, pattern) for path in paths):
                raise UserError(
                    f"optimizer.parts: no parameter matches {pattern!r} (they are "
                    f"{', '.join(paths)})"
                )

        def label(path: jax.tree_util.KeyPath, leaf: Any) -> str:
            del leaf
            name = path_name(path)
            for index, (pattern, _) in enumerate(self.parts):
                if fnmatch.fnmatchcase(name, pattern):
                    return str(index)
            raise UserError(
                f"optimizer.parts: the parameter {name} matches none of the patterns: end with one "
                f"for all others, '*'"
            )

        return jax.tree_util.tree_map_with_path(label, params)
