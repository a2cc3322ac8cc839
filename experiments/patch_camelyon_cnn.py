"""Tumor or none in the middle of stained lymph node sections: a CNN on PatchCamelyon.

    jdl train patch_camelyon_cnn --seeds 3

Metrics: area under the ROC curve (as in Veeling et al., 2018), sensitivity at 95 % specificity, and
calibration error. Not measured.
"""

from jdl import Experiment
from jdl.data import TFDS, ColorJitter, RandomFlip, Scale
from jdl.hooks import Checkpoint, Evaluate, Progress, RetraceWarning, TensorBoard
from jdl.metrics import AUROC, CalibrationError, SensitivityAtSpecificity
from jdl.models import CNN
from jdl.optimizers import AdamW, Cosine
from jdl.tasks import BinaryClassification

experiment = Experiment(
    CNN(
        channels=(32, 64, 128, 256),
        repeats=(2, 2, 2, 2),
        dense=(128,),
        num_classes=1,
        batch_norm=True,
        dropout_rate=0.5,
        global_pooling=True,
    ),
    task=BinaryClassification(
        metrics=(AUROC(), SensitivityAtSpecificity(specificity=0.95), CalibrationError())
    ),
    data=TFDS(
        "patch_camelyon",
        device_transforms=(
            RandomFlip(mode="horizontal_and_vertical"),
            ColorJitter(brightness=0.2, contrast=0.2, saturation=0.2),
            Scale(),
        ),
    ),
    optimizer=AdamW(1e-3, weight_decay=1e-4, schedule=Cosine(warmup=0.05), ema_decay=0.999),
    hooks=(
        Progress(),
        TensorBoard(),
        Evaluate(every=2048),
        Checkpoint(every=2048, best=1, metric="validation.auroc"),
        RetraceWarning(),
    ),
    epochs=8,
    batch_size=128,
    precision="bf16",
)
