"""Style transfer: pictures of what one image shows, painted like another."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jdl.data import Resize
from jdl.data.images import MODES, decode_image
from jdl.errors import UserError
from jdl.metrics import Mean
from jdl.state import TrainState
from jdl.tasks.base import Task
from jdl.tasks.forward import forward
from jdl.tasks.outputs import one_array
from jdl.tasks.terms import Terms
from jdl.tasks.untrained import Frozen
from jdl.typing import Batch, Json, Key, PyTree


@dataclass(frozen=True, kw_only=True)
class StyleTransfer(Task):
    """Content of images in the style of another (Gatys, Ecker and Bethge, 2016).

    The model maps images (batch, height, width, channels) from 0 to 1 to pictures of the same
    shape: a network does so for any image (Johnson et al., 2016), and one that returns a parameter
    is the picture itself. Both are compared in the features of a frozen network, after relu.

    Metrics, each 0 for a perfect picture: `content`, the squared distance of the picture's features
    to the image's, over the image's squared norm; `style`, the same of Gram matrices, with those of
    the style image; both are means over layers. `variation` is the mean squared difference of
    neighboring pixels, and `loss` the sum of `loss_terms`. Losses of other networks or layers are
    not comparable.
    """

    targets: str = "image"  # the image itself
    features: Frozen  # the network in whose features pictures are compared
    style: str  # image file, scaled to cover the images: its shorter side is as long as theirs
    content_layers: tuple[str, ...]  # paths of the network's modules, such as Conv_3
    style_layers: tuple[str, ...]  # paths of the network's modules, shallow and deep
    loss_terms: Terms = (("content", 1.0), ("style", 1.0), ("variation", 0.0))

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("content_layers", "style_layers"):
            if isinstance(getattr(self, name), str) or not getattr(self, name):
                raise UserError(f"task.{name} is a tuple of modules, such as ('Conv_3',)")

    def batch_metrics(
        self,
        model: Any,
        params: PyTree,
        state: TrainState,
        batch: Batch,
        *,
        train: bool,
        key: Key | None = None,
    ) -> tuple[dict[str, Any], dict[str, PyTree]]:
        """Computes `content`, `style` and `variation`."""
        images, mask = batch[self.input_names[0]], batch["mask"]
        inputs, named = self.model_inputs(model, batch)
        found, new = forward(
            model, params, state.collections, *inputs, train=train, key=key, **named
        )
        pictures = self._checked(one_array(found, self), images)
        style = jnp.asarray(read_style(self.style, images.shape[1:]), images.dtype) / 255
        rows = {
            **self._distances(state, pictures, images, style[None]),
            "variation": sum((jnp.diff(pictures, axis=a) ** 2).mean((1, 2, 3)) for a in (1, 2)),
        }
        metrics = {name: Mean.of(values, mask) for name, values in rows.items()}
        return {**metrics, **self.further_metrics(pictures, batch, train=train)}, new

    def format_prediction(self, prediction: Any, names: Sequence[str]) -> dict[str, Json]:
        """Returns the size of the picture, which `jdl predict --draw` writes."""
        del names
        height, width = np.shape(prediction)[:2]
        return {"prediction": {"height": height, "width": width}}

    def validate_batch(self, batch: Mapping[str, np.ndarray], outputs: Any, where: str) -> None:
        """Also requires images."""
        super().validate_batch(batch, outputs, where)
        shape = np.shape(batch[self.input_names[0]])
        if len(shape) != 4 or shape[3] not in MODES:
            raise UserError(
                f"{where}: {self.input_names[0]!r} has shape {shape}, where style transfer needs "
                f"images (batch, height, width, 1, 3 or 4)"
            )

    def _distances(
        self, state: TrainState, pictures: jax.Array, images: jax.Array, style: jax.Array
    ) -> dict[str, jax.Array]:
        """Returns `content` and `style` of each row, (batch,) float32."""
        names = tuple(dict.fromkeys((*self.content_layers, *self.style_layers)))

        def features(x: jax.Array, modules: tuple[str, ...]) -> dict[str, jax.Array]:
            maps = self.features.intermediates(state, x, modules=modules)
            for name, each in zip(modules, maps, strict=True):
                if each.ndim != 4:
                    raise UserError(
                        f"the module {name!r} of the task's network returns shape {each.shape}, "
                        f"where style transfer needs maps (batch, height, width, channels): name "
                        f"others in task.content_layers and task.style_layers"
                    )
            return {
                n: jax.nn.relu(x.astype(jnp.float32)) for n, x in zip(modules, maps, strict=True)
            }

        own = features(pictures, names)
        content = features(images, self.content_layers)
        painted = features(style, self.style_layers)
        return {
            "content": _mean([_distance(own[n], content[n]) for n in self.content_layers]),
            "style": _mean([_distance(gram(own[n]), gram(painted[n])) for n in self.style_layers]),
        }

    def _checked(self, pictures: jax.Array, images: jax.Array) -> jax.Array:
        """Returns the pictures if they can be compared with the images.

        Raises:
          UserError: they have another shape, or the images are not floats.
        """
        if not jnp.issubdtype(images.dtype, jnp.floating):
            raise UserError(
                f"{self.input_names[0]!r} is {images.dtype}, where style transfer compares images "
                f"from 0 to 1: add Scale() to data.device_transforms"
            )
        if pictures.shape != images.shape:
            raise UserError(
                f"the model returns pictures of shape {pictures.shape[1:]} for images of shape "
                f"{images.shape[1:]}: let it return the same shape"
            )
        return pictures


def gram(features: jax.Array) -> jax.Array:
    """Returns means over pixels of the products of all pairs of channels.

    Args:
      features: (batch, height, width, channels).

    Returns:
      (batch, channels, channels).
    """
    pixels = features.shape[1] * features.shape[2]
    return jnp.einsum("bhwc,bhwd->bcd", features, features) / pixels


def read_style(file: str, shape: Sequence[int]) -> np.ndarray:
    """Reads a style image, scaled to cover images of a shape; it is not cropped.

    Args:
      file: its path.
      shape: height, width and channels of the images.

    Returns:
      (height, width, channels) uint8.

    Raises:
      UserError: there is no such image.
    """
    path, (height, width, channels) = Path(file).expanduser(), shape
    if not path.is_file():
        raise UserError(f"task.style: {file} does not exist: name an image file")
    image = decode_image(path, MODES[channels])
    tall, wide = image.shape[:2]
    scale = max(height / tall, width / wide)
    return Resize(height=round(tall * scale), width=round(wide * scale))({"image": image})["image"]


def _distance(found: jax.Array, wanted: jax.Array) -> jax.Array:
    """Returns squared distances over the squared norms of what is wanted, (batch,)."""
    axes = tuple(range(1, found.ndim))
    norms = (wanted**2).sum(axes)
    return ((found - wanted) ** 2).sum(axes) / jnp.maximum(norms, 1e-12)


def _mean(rows: Sequence[jax.Array]) -> jax.Array:
    return sum(rows[1:], rows[0]) / len(rows)
