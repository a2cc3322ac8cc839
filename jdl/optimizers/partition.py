"""Different optimizers for different parameters."""

import fnmatch
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import optax

from jdl.errors import UserError, nearest
from jdl.optimizers.optimizers import Optimizer
from jdl.optimizers.schedules import ReduceOnPlateau, check
from jdl.optimizers.transforms import skip_idle
from jdl.paths import path_name
from jdl.typing import PyTree


@dataclass(frozen=True, kw_only=True)
class Partition(Optimizer):
    """Trains each parameter with the first optimizer whose pattern its path matches.

    `Partition(parts=(("*.bias", SGD(0.1)), ("*", Muon(0.02))))`. Each part has its own schedule,
    decay and averages; norms are clipped per part there, over all parameters here. Penalties and
    averages of this optimizer are those of all parts. In a game with a part for each player, a
    player that is idle at a step does not count it.
    """

    learning_rate: float | optax.Schedule = field(
        default=1.0, kw_only=False
    )  # factor of the rates of all parts, the peak of `schedule`
    parts: tuple[tuple[str, Optimizer], ...] = ()
    """Pairs of a path and an optimizer; the path is that of a module or a parameter, or a pattern
    of such, as in a shell: `critic`, `encoder.Dense_1`, `*.bias`, `*`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self, "parts", bool(self.parts), "pairs of a pattern and an optimizer")
        decayed = self.weight_decay != 0
        check(self, "weight_decay", not decayed, "0, and set in the parts instead")
        self._check_last()

    def _check_last(self) -> None:
        """Refuses to change steps after a part has averaged the parameters that they lead to."""
        changes = {
            "lr_multipliers": bool(self.lr_multipliers),
            "lookahead": self.lookahead is not None,
            "schedule": isinstance(self.schedule, ReduceOnPlateau),
        }
        for index, (_, part) in enumerate(self.parts):
            for name in ("ema_decay", "lookahead", "pruning"):
                if getattr(part, name) is not None:
                    for change in (each for each, is_set in changes.items() if is_set):
                        done = "pruned" if name == "pruning" else "averaged"
                        raise UserError(
                            f"optimizer.{change} would change the steps of optimizer.parts.{index} "
                            f"after its {name} has {done} the parameters: set {change} in the "
                            f"parts, or {name} on the whole"
                        )

    def _steps(
        self, steps: int, add_decay: optax.GradientTransformation
    ) -> Sequence[optax.GradientTransformation]:
        del add_decay
        methods: dict[Hashable, optax.GradientTransformation] = {
            str(index): skip_idle(part.build(steps, self.rate))
            for index, (_, part) in enumerate(self.parts)
        }
        return (optax.partition(methods, self._labels),)

    def _labels(self, params: PyTree) -> PyTree:
        """The index of the part of each parameter, as text.

        Raises:
          UserError: a parameter matches no pattern, or a part has no parameters.
        """

        def part_of(path: jax.tree_util.KeyPath, leaf: Any) -> str:
            del leaf
            name = path_name(path)
            for index, (pattern, _) in enumerate(self.parts):
                if _matches(name, pattern):
                    return str(index)
            raise UserError(
                f"optimizer.parts: the parameter {name} matches none of the patterns: end with one "
                f"for all others, '*'"
            )

        # Frozen parameters are masked. They have their part, too, but it does not train them.
        found = jax.tree_util.tree_map_with_path(part_of, params, is_leaf=_is_masked)
        self._check_parts(found)
        return jax.tree_util.tree_map_with_path(part_of, params)

    def _check_parts(self, found: PyTree) -> None:
        """Raises a UserError if a part has no parameters, given the part of each."""
        part = {path_name(path): each for path, each in jax.tree_util.tree_leaves_with_path(found)}
        for index, (pattern, _) in enumerate(self.parts):
            if str(index) in part.values():
                continue
            earlier = {each for name, each in part.items() if _matches(name, pattern)}
            if earlier:
                taken = " and ".join(repr(self.parts[int(each)][0]) for each in sorted(earlier))
                raise UserError(
                    f"optimizer.parts.{index}: {pattern!r} has no parameters left: earlier "
                    f"patterns, {taken}, match all of its: list the more specific first"
                )
            known = list(dict.fromkeys(p for name in part for p in _prefixes(name)))
            raise UserError(
                f"optimizer.parts.{index}: no parameter matches {pattern!r} (they are "
                f"{', '.join(part)}){nearest(pattern, known)}"
            )


def _matches(name: str, pattern: str) -> bool:
    """Whether a parameter, or a module around it, has a path that matches a pattern."""
    return any(fnmatch.fnmatchcase(name, each) for each in (pattern, f"{pattern}.*"))


def _prefixes(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[:count]) for count in range(1, len(parts) + 1)]


def _is_masked(node: object) -> bool:
    return isinstance(node, optax.MaskedNode)
