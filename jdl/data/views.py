"""Views: an example seen several times, each time augmented apart."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp

from jdl.errors import UserError
from jdl.typing import Batch, Keys

_VIEW = 0x76696577
"""Added to the number of a view and folded into the keys of its rows."""


@dataclass(frozen=True, kw_only=True)
class Views:
    """Device: shows each example `count` times: arrays `names` become (batch, views, ...).

    The device transforms that follow are applied to each view apart, with its own random keys; what
    they change of other arrays, such as boxes or mixed labels, gets the axis, too. In evaluation
    all views are equal, unless a transform changes some (`OnViews`).
    """

    count: int = field(default=2, kw_only=False)  # views of an example
    names: tuple[str, ...] = ("image",)  # arrays of a batch that are seen several times

    def __post_init__(self) -> None:
        if self.count < 1 or isinstance(self.names, str):
            raise UserError(f"Views needs count >= 1 and a tuple of names, not {self}")

    def __call__(self, batch: Batch, keys: Keys | None) -> Batch:
        """Returns the batch with each example repeated."""
        del keys
        new = dict(batch)
        for name in self.names:
            x = batch[name]
            new[name] = jnp.broadcast_to(x[:, None], (x.shape[0], self.count, *x.shape[1:]))
        return new


@dataclass(frozen=True, kw_only=True)
class OnViews:
    """Device: applies a transform to some views only, such as a strong augmentation.

    It follows `Views` in `data.device_transforms`.
    """

    transform: Callable[[Batch, Keys | None], Batch] = field(kw_only=False)  # the transform
    views: tuple[int, ...] = (1,)  # numbers of the views, from 0

    def __call__(self, batch: Batch, keys: Keys | None) -> Batch:
        """Raises a UserError: there are no views."""
        raise UserError("OnViews follows Views in data.device_transforms: list that first")

    @property
    def needs_positions(self) -> bool:
        """Whether the transform reads `index` and `epoch`."""
        return getattr(self.transform, "needs_positions", False)


@dataclass(frozen=True)
class Seen:
    """Which arrays of a batch have an axis of views, of what size."""

    names: frozenset[str] = frozenset()
    count: int = 0

    def apply(
        self, transform: Any, batch: Batch, keys: Keys | None
    ) -> tuple[dict[str, Any], "Seen"]:
        """Applies a device transform, to each view apart where there are views.

        Raises:
          UserError: a view is named that does not exist, or views are made of views.
        """
        if isinstance(transform, Views):
            if self.count:
                raise UserError("data.device_transforms has Views twice: list it once")
            return dict(transform(batch, keys)), Seen(frozenset(transform.names), transform.count)
        if not self.count:
            return dict(transform(batch, keys)), self
        chosen = range(self.count)
        if isinstance(transform, OnViews):
            chosen, transform = transform.views, transform.transform
        if wrong := [view for view in chosen if not 0 <= view < self.count]:
            raise UserError(f"OnViews names view {wrong[0]}, where they are 0..{self.count - 1}")
        parts = []
        for view in range(self.count):
            part = {n: x[:, view] if n in self.names else x for n, x in batch.items()}
            if view in chosen:
                part = dict(transform(part, None if keys is None else _of_view(keys, view)))
            parts.append(part)
        return self._joined(batch, parts)

    def _joined(self, batch: Batch, parts: list[dict[str, Any]]) -> tuple[dict[str, Any], "Seen"]:
        """Returns the batch of several views, and which of its arrays have them."""
        new, names = {}, set()
        for name in parts[0]:
            if any(name not in part for part in parts):
                raise UserError(f"only some views have an array {name!r}: give it to all")
            values = [part[name] for part in parts]
            if name not in self.names and all(x is batch.get(name) for x in values):
                new[name] = values[0]
                continue
            if any(x.shape != values[0].shape for x in values):
                shapes = ", ".join(str(x.shape[1:]) for x in values)
                raise UserError(f"the views of {name!r} have shapes {shapes}: make them equal")
            new[name] = jnp.stack(values, 1)
            names.add(name)
        if "mask" in names:
            raise UserError("a transform changes 'mask', by which a batch marks rows of padding")
        return new, Seen(frozenset(names), self.count)


def _of_view(keys: Keys, view: int) -> Keys:
    return jax.vmap(jax.random.fold_in, (0, None))(keys, _VIEW + view)
