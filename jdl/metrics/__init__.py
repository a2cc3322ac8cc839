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
from jdl.metrics.classification import CalibrationError, ConfusionMatrix, MacroF1, TopKAccuracy
from jdl.metrics.curves import AUPRC, AUROC, RecallAtPrecision, SensitivityAtSpecificity
from jdl.metrics.distribution import (
    FrechetDistance,
    frechet_distance,
    kernel_distance,
    nearest_distances,
    precision_and_recall,
)
from jdl.metrics.embeddings import ClusterAgreement, EqualErrorRate, RecallAtK, equal_error
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
from jdl.metrics.segmentation import DiceScore, IoU, MeanIoU

__all__ = [
    "AUPRC",
    "AUROC",
    "HIGHER_IS_BETTER",
    "AveragePrecision",
    "BitsPerByte",
    "CalibrationError",
    "ClusterAgreement",
    "ConfusionMatrix",
    "DiceScore",
    "EqualErrorRate",
    "FrechetDistance",
    "IoU",
    "MacroF1",
    "Mean",
    "MeanIoU",
    "Metric",
    "Metrics",
    "Packed",
    "Perplexity",
    "RecallAtK",
    "RecallAtPrecision",
    "RootMean",
    "Rows",
    "SensitivityAtSpecificity",
    "SumOfMeans",
    "Sums",
    "TopKAccuracy",
    "check_additive",
    "compute",
    "equal_error",
    "frechet_distance",
    "kernel_distance",
    "merge",
    "nearest_distances",
    "precision_and_recall",
    "scalars",
    "sum_over_devices",
    "without_duplicates",
]
