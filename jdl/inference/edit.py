"""Reads an image to edit, and its mask, from files."""

from pathlib import Path

import numpy as np

from jdl.data.images import decode_image, image_size
from jdl.errors import UserError
from jdl.trainer.run import Run
from jdl.trainer.sampling import check_mask


def read_prompt(run: Run, path: Path, mask: Path | None) -> tuple[np.ndarray, np.ndarray | None]:
    """Returns an image file with the channels of the run's images, and its mask.

    Args:
      run: whose model will change it.
      path: the image.
      mask: an image of the same size, white where pixels are drawn anew; None: none.

    Returns:
      (height, width, channels), as in the data set before transforms, and bool (height, width).

    Raises:
      UserError: a file cannot be read, or is of another size; or the mask covers all or nothing.
    """
    name = run.experiment.task.input_names[0]
    if name not in run.batch or len(run.batch[name].shape) != 4:
        raise UserError(f"the run reads no images but {name!r}, so that none can be edited")
    height, width = run.batch[name].shape[1:3]
    for file in (path,) if mask is None else (path, mask):
        rows, columns = image_size(file)
        if (rows, columns) != (height, width):
            raise UserError(
                f"{file} is {columns}x{rows} pixels, where the run makes images of "
                f"{width}x{height}: resize or crop it first"
            )
    image = run.experiment.data.reader()(path)[name][0]
    if mask is None:
        return image, None
    pixels = decode_image(mask, "L")[..., 0] >= 128
    check_mask(pixels, str(mask))
    return image, pixels
