"""What is done to every example: on the host one by one, on the device batch by batch."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np

from jdl.errors import UserError
from jdl.typing import Batch, Keys


@dataclass(frozen=True, kw_only=True)
class Resize:
    """Host: scales an image (height, width, channels) uint8 to a fixed size, bilinearly."""

    height: int = 150  # pixels
    width: int = 150  # pixels
    name: str = "image"  # of the array

    def __post_init__(self) -> None:
        if self.height < 1 or self.width < 1:
            raise UserError(f"Resize needs a positive size, not {self.height}x{self.width}")

    def __call__(self, example: Mapping[str, Any]) -> dict[str, Any]:
        """The example with the image at its new size."""
        from PIL import Image

        image = np.asarray(example[self.name])
        grey = image.shape[-1] == 1
        picture = Image.fromarray(image[..., 0] if grey else image)
        small = np.asarray(picture.resize((self.width, self.height), Image.Resampling.BILINEAR))
        return {**example, self.name: small[..., None] if grey else small}


@dataclass(frozen=True, kw_only=True)
class Scale:
    """Device: `(x - offset) / divisor` in float32."""

    divisor: float = 255.0  # what is divided by, after the subtraction
    offset: float = 0.0  # what is subtracted first
    name: str = "image"  # of the array

    def __call__(self, batch: Batch, keys: Keys | None) -> Batch:
        """The batch with the array scaled."""
        del keys
        scaled = (batch[self.name].astype(jnp.float32) - self.offset) / self.divisor
        return {**batch, self.name: scaled}
