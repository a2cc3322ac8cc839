"""Boxes, masks and images that are predicted of files: COCO JSON, PNG files, overlays."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jdl.data.annotations import Objects, write_coco
from jdl.data.examples import apply_transforms
from jdl.data.images import MODES, decode_image, encode_mask
from jdl.data.readers import Reader
from jdl.errors import UserError
from jdl.inference.video import write_ppm
from jdl.media import Images, overlay
from jdl.step import transform
from jdl.tasks import Detection, Segmentation
from jdl.trainer.run import Run
from jdl.typing import Json

Output = Callable[[Mapping[str, Json], Any, np.ndarray | None], None]
"""Takes where an example is from, its prediction, and its pixels if it is a frame of a video."""


class PictureOutputs:
    """Collects the predictions of images, and writes what was asked for.

    Args:
      run: of the task `Detection` or `Segmentation`, or of one that predicts images.
      read: reads the examples of a file.
      coco: JSON file for boxes.
      masks: folder for masks, PNG files whose palette indices are the classes.
      draw: folder for the pictures with boxes or masks drawn over them, or for predicted images.

    Raises:
      UserError: the task predicts nothing to write.
    """

    def __init__(
        self, run: Run, read: Reader, coco: Path | None, masks: Path | None, draw: Path | None
    ) -> None:
        task = run.experiment.task
        overlays = (Detection, Segmentation)
        self._makes_images = not isinstance(task, overlays) and _predicts_images(run)
        for option, given, kinds in (
            ("--coco", coco, (Detection,)),
            ("--masks", masks, (Segmentation,)),
            ("--draw", draw, overlays),
        ):
            known = isinstance(task, kinds) or (kinds is overlays and self._makes_images)
            if given is not None and not known:
                names = " or ".join(kind.__name__ for kind in kinds)
                also = ", or of one that predicts images" if kinds is overlays else ""
                raise UserError(
                    f"{option} needs a run of the task {names}{also}, not of {type(task).__name__}"
                )
        self._run, self._read = run, read
        self._coco, self._masks, self._draw = coco, masks, draw
        self._names = run.experiment.data.output_names()
        self._items: list[Objects] = []
        self._scores: list[tuple[float, ...]] = []
        self._sizes: set[tuple[int, int]] = set()
        self._count = 0

    def __call__(self, place: Mapping[str, Json], found: Any, pixels: np.ndarray | None) -> None:
        """Writes the masks and the picture of one example, and collects its boxes."""
        file = Path(place["file"])
        frame = f"-{place['frame']:06d}" if "frame" in place else ""
        name, self._count = f"{self._count:05d}-{file.stem}{frame}", self._count + 1
        if self._makes_images:
            self._write(np.asarray(found)[None], name)
        else:
            picture = decode_image(file, "RGB") if pixels is None else pixels
            self._write(self._drawn(place, found, picture, name), name)

    def _drawn(
        self, place: Mapping[str, Json], found: Any, picture: np.ndarray, name: str
    ) -> np.ndarray:
        """Returns a picture with boxes or its mask drawn over it."""
        file, size = Path(place["file"]), picture.shape[:2]
        if size not in self._sizes:
            _check_only_resized(self._run, self._read, size, str(file))
            self._sizes.add(size)
        task = self._run.experiment.task
        if isinstance(task, Detection):
            return self._boxes(task, place, found, picture)
        return self._mask(found, picture, name)

    def close(self) -> None:
        """Writes the boxes."""
        if self._coco is not None:
            task = self._run.experiment.task
            assert isinstance(task, Detection)
            classes = self._names or tuple(map(str, range(task.num_classes)))
            self._coco.parent.mkdir(parents=True, exist_ok=True)
            write_coco(self._coco, self._items, classes, self._scores)

    def _write(self, images: np.ndarray, name: str) -> None:
        if self._draw is not None:
            self._draw.mkdir(parents=True, exist_ok=True)
            Images(images).write(self._draw / name)

    def _boxes(
        self, task: Detection, place: Mapping[str, Json], found: Any, picture: np.ndarray
    ) -> np.ndarray:
        height, width = picture.shape[:2]
        rows, columns = (height, width) if task.any_size else _model_size(self._run)
        corners = found["boxes"]
        is_inside = (corners[:, 2:] > corners[:, :2]).all(1)  # the picture's border cuts others off
        kept = (found["scores"] >= task.min_score) & is_inside
        scale = np.array([width / columns, height / rows] * 2)
        boxes, labels = corners[kept] * scale, found["labels"][kept]
        frame = f"#{place['frame']}" if "frame" in place else ""
        tuples = tuple((x0, y0, x1, y1) for x0, y0, x1, y1 in boxes.astype(float).tolist())
        self._items.append(
            Objects(
                f"{place['file']}{frame}", height, width, tuples,
                tuple(labels.tolist()), (False,) * len(labels),
            )
        )  # fmt: skip
        self._scores.append(tuple(np.round(found["scores"][kept], 6).tolist()))
        return overlay(picture[None], boxes=[boxes], labels=[labels], names=self._names)

    def _mask(self, found: Any, picture: np.ndarray, name: str) -> np.ndarray:
        from PIL import Image

        height, width = picture.shape[:2]
        classes = Image.fromarray(np.argmax(found, -1).astype(np.int32))
        mask = np.asarray(classes.resize((width, height), Image.Resampling.NEAREST))
        if self._masks is not None:
            self._masks.mkdir(parents=True, exist_ok=True)
            encode_mask(self._masks / f"{name}.png", mask)
        return overlay(picture[None], masks=mask[None])


def _predicts_images(run: Run) -> bool:
    """Whether a prediction is one array of images, with 1, 3 or 4 channels."""
    shape = getattr(run.prediction, "shape", ())
    return len(shape) == 4 and shape[3] in MODES


def _model_size(run: Run) -> tuple[int, int]:
    """Returns height and width of the images that the model reads."""
    name = run.experiment.task.input_names[0]
    batch = {name: np.zeros(run.batch[name].shape, run.batch[name].dtype)}
    found = transform(run.program, {**batch, "mask": np.ones(len(batch[name]), bool)}, None)
    height, width = found[name].shape[1:3]
    return height, width


def _check_only_resized(run: Run, read: Reader, size: tuple[int, int], file: str) -> None:
    """Raises a UserError if a picture of this size is cropped, padded or turned on its way.

    Its boxes would then be those of other pixels. Pictures that are black, white, and rise from
    left to right and from top to bottom take the same way, and are compared with what they were.
    """
    import tempfile

    height, width = size
    name = run.experiment.task.input_names[0]
    across = np.broadcast_to(np.linspace(0, 255, width), size)
    down = np.broadcast_to(np.linspace(0, 255, height)[:, None], size)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "probe.ppm"
        for values in (np.zeros(size), np.full(size, 255), across, down):
            pixels = np.repeat(values.round().astype(np.uint8)[..., None], 3, -1)
            write_ppm(pixels, path)
            example = {key: array[0] for key, array in read(path).items()}
            rows.append(apply_transforms(run.prediction_data, example)[name])
    batch = {name: np.stack(rows), "mask": np.ones(4, bool)}
    found = np.asarray(transform(run.program, batch, None)[name], np.float32)[..., 0]
    black, white, x, y = found
    for values, axis in ((x, 1), (y, 0)):
        count, whole = values.shape[axis], size[axis]
        reached = np.mean((values - black) / (white - black), axis=1 - axis)
        place = (np.arange(count) + 0.5) * whole / count - 0.5
        wanted = (place / max(1, whole - 1)).clip(0, 1)
        if not np.abs(reached - wanted).max() < 0.02 + 0.6 / min(count, whole):
            raise UserError(
                f"{file}: the transforms of the data do more than resize a picture of "
                f"{width}x{height}, so that boxes and masks would lie elsewhere in it: leave out "
                f"--coco, --masks and --draw, or train with Resize alone"
            )
