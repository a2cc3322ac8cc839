"""Metrics: sums that merge exactly over steps and devices, and what is computed of them."""

from jdl.metrics.base import (
    HIGHER_IS_BETTER,
    BitsPerByte,
    Mean,
    Metrics,
    Perplexity,
    RootMean,
    Rows,
    SumOfMeans,
    Sums,
)
from jdl.metrics.classification import (
    AUPRC,
    AUROC,
    CalibrationError,
    ConfusionMatrix,
    IoU,
    MacroF1,
    MeanIoU,
    TopKAccuracy,
)
from jdl.metrics.distribution import (
    FrechetDistance,
    frechet_distance,
    kernel_distance,
    nearest_distances,
    precision_and_recall,
)
from jdl.metrics.merging import (
    Packed,
    check_additive,
    compute,
    merge,
    scalars,
    sum_over_devices,
    without_duplicates,
)
from jdl.metrics.metric import Metric
from jdl.metrics.multi_label import AveragePrecision

__all__ = [
    "AUPRC",
    "AUROC",
    "HIGHER_IS_BETTER",
    "AveragePrecision",
    "BitsPerByte",
    "CalibrationError",
    "ConfusionMatrix",
    "FrechetDistance",
    "IoU",
    "MacroF1",
    "Mean",
    "MeanIoU",
    "Metric",
    "Metrics",
    "Packed",
    "Perplexity",
    "RootMean",
    "Rows",
    "SumOfMeans",
    "Sums",
    "TopKAccuracy",
    "check_additive",
    "compute",
    "frechet_distance",
    "kernel_distance",
    "merge",
    "nearest_distances",
    "precision_and_recall",
    "scalars",
    "sum_over_devices",
    "without_duplicates",
]
