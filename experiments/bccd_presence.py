"""Which cells does a crop of a blood smear hold? A classifier that never sees boxes.

    jdl prepare bccd
    TFDS_DATA_DIR=DIR jdl train bccd_presence --workdir runs/bccd_presence
    jdl explain runs/bccd_presence --split test --count 300 --target Platelets --method grad_cam

Six crops of 120x106 pixels of each image at 240x320; several labels for each, white cells and
platelets whose center is in it. Boxes are carried along for the card of an explanation alone:
`pointing` is the share of the crops with platelets in which Grad-CAM is highest inside a box, the
pointing game of Zhang et al. (2018), beside `area`, a random pixel's, and `center`: 0.939, 0.044
and 0.082.

Expect: test average_precision 0.8204 (1 seed, min 0.8204), 292 s, 1 busy core of an Intel Xeon
"""

from dataclasses import dataclass, field

import numpy as np

from jdl import Experiment
from jdl.data import TFDS, ColorJitter, ConvertBoxes, Data, Pad, Resize, Scale
from jdl.hooks import Checkpoint, Evaluate, Progress
from jdl.metrics import AveragePrecision
from jdl.models import CNN
from jdl.optimizers import AdamW, Cosine
from jdl.tasks import MultiLabelClassification

CLASSES = ("WBC", "Platelets")
ROWS, COLUMNS = 2, 3


@dataclass(frozen=True, kw_only=True)
class Crops(Data):
    """Crops with `label`, 1 for each of `CLASSES` that has a center in it, and boxes of these."""

    data: Data = field(kw_only=False)

    def splits(self):
        """Returns the crops of each split."""
        return {name: Cut(source) for name, source in self.data.splits().items()}

    def output_names(self):
        """The classes."""
        return CLASSES


class Cut:
    """A source of crops, six of each image."""

    def __init__(self, source):
        self.source, self.last = source, (-1, None)

    def __len__(self):
        return ROWS * COLUMNS * len(self.source)

    def __getitem__(self, index):
        number, place = divmod(index, ROWS * COLUMNS)
        if self.last[0] != number:
            image = ConvertBoxes("rel_yxyx")(self.source[number])
            self.last = (number, Resize(height=240, width=320)(image))
        whole = self.last[1]
        height, width = 240 // ROWS, 320 // COLUMNS
        y, x = (place // COLUMNS) * height, (place % COLUMNS) * width
        boxes = np.asarray(whole["boxes"], np.float32).reshape(-1, 4) - np.array([x, y] * 2)
        center = (boxes[:, :2] + boxes[:, 2:]) / 2
        inside = ((center >= 0) & (center < (width, height))).all(1)
        kinds = np.asarray(whole["labels"]) - 1  # red cells are -1: they are everywhere
        kept = inside & (kinds >= 0)
        example = {
            "image": whole["image"][y : y + height, x : x + width],
            "label": np.isin(np.arange(2), kinds[kept]).astype(np.int32),
            "boxes": np.clip(boxes[kept], 0, (width, height) * 2).astype(np.float32),
            "labels": kinds[kept].astype(np.int32),
        }
        return Pad(8)(example)


experiment = Experiment(
    CNN(channels=(16, 32, 64, 64), dense=(), num_classes=2, batch_norm=True, global_pooling=True),
    task=MultiLabelClassification(metrics=(AveragePrecision(),)),
    data=Crops(TFDS("bccd"), device_transforms=(ColorJitter(brightness=0.2), Scale())),
    optimizer=AdamW(2e-3, schedule=Cosine(warmup=0.05), weight_decay=1e-3),
    hooks=(Progress(), Evaluate(), Checkpoint()),
    epochs=20,
    batch_size=32,
)
