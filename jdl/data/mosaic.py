"""Mosaic in the compiled step: four images beside each other, with their masks and boxes."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from jdl.data.geometry import Geometric, move_boxes, padded_boxes
from jdl.tracing import roll_rows
from jdl.typing import Batch, Keys

Array = jax.Array


@dataclass(frozen=True, kw_only=True)
class Mosaic(Geometric):
    """Cuts a random window from each image beside, above and above beside its three neighbors.

    The mosaic of Bochkovskiy et al. (2020, section 3.3): image i of the batch is the upper left of
    four of equal size, images i - 1 to i - 3 the others, and the window has the size of one. Boxes
    (batch, n, 4), and the arrays in `box_arrays`, become those of all four, (batch, 4 n, ...).
    """

    box_arrays: tuple[str, ...] = ("labels",)  # with an item for each box, (batch, n, ...)

    def __call__(self, batch: Batch, keys: Keys | None) -> Batch:
        """Returns the batch, each image with its own window."""
        if keys is None:
            return batch
        height, width = batch[self.name].shape[1:3]
        least = jnp.zeros(2, jnp.int32)
        most = jnp.array([height + 1, width + 1])
        starts = jax.vmap(lambda key: jax.random.randint(key, (2,), least, most))(keys)
        found: dict[str, Any] = {**batch, self.name: _cut(batch[self.name], starts)}
        for name in self.masks:
            if name in batch:
                found[name] = _cut(batch[name], starts)
        if self.boxes in batch:
            boxes, mask = padded_boxes(batch, self.boxes)
            every = [self._part(boxes, mask, starts, place, (height, width)) for place in range(4)]
            found[self.boxes], found[self.boxes_mask] = (
                jnp.concatenate(parts, 1) for parts in zip(*every, strict=True)
            )
            for name in self.box_arrays:
                found[name] = jnp.concatenate([roll_rows(batch[name], i) for i in range(4)], 1)
        return found

    def _part(
        self, boxes: Array, mask: Array, starts: Array, place: int, size: tuple[int, int]
    ) -> tuple[Array, Array]:
        """Returns the boxes of the image at a place of the mosaic, in the windows."""
        corner = jnp.array([place // 2 * size[0], place % 2 * size[1]])

        def move(boxes: Array, mask: Array, start: Array) -> tuple[Array, Array]:
            matrix = jnp.concatenate([jnp.eye(2), (start - corner)[:, None]], 1)
            return move_boxes(boxes, mask, matrix, size, self.min_visibility)

        return jax.vmap(move)(roll_rows(boxes, place), roll_rows(mask, place), starts)


def _cut(images: Array, starts: Array) -> Array:
    """Returns a window of each image and its neighbors; arrays (batch, height, width, ...)."""
    parts = [roll_rows(images, place) for place in range(4)]
    rows = [jnp.concatenate(parts[i : i + 2], 2) for i in (0, 2)]
    whole = jnp.concatenate(rows, 1)

    def cut(image: Array, start: Array) -> Array:
        corner = (start[0], start[1], *[0] * (image.ndim - 2))
        return jax.lax.dynamic_slice(image, corner, images.shape[1:])

    return jax.vmap(cut)(whole, starts)
