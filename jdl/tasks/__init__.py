"""Tasks: the loss that a model is trained on, its metrics and its predictions."""

from jdl.tasks.anomaly import AnomalyDetection
from jdl.tasks.autoregressive import AutoregressiveForecast
from jdl.tasks.base import HostMetrics, Task
from jdl.tasks.binary import BinaryClassification
from jdl.tasks.classification import Classification, balanced_weights
from jdl.tasks.ctc import CTC
from jdl.tasks.detection import Detection
from jdl.tasks.diffusion import Diffusion
from jdl.tasks.distillation import Distillation
from jdl.tasks.embedding import Embedding
from jdl.tasks.embedding_losses import BarlowTwins, EmbeddingLoss, NTXent, SupCon, VICReg
from jdl.tasks.fairness import AdversarialClassification, FairClassification
from jdl.tasks.fixmatch import FixMatch
from jdl.tasks.forecast import Forecast
from jdl.tasks.forward import forward
from jdl.tasks.game import Game, Play
from jdl.tasks.gan import GAN, hinge, non_saturating, relativistic
from jdl.tasks.horizon import QuantileForecast
from jdl.tasks.language import LanguageModeling
from jdl.tasks.masked import MaskedLanguageModeling
from jdl.tasks.masked_autoencoding import MaskedAutoencoding
from jdl.tasks.multi_label import MultiLabelClassification
from jdl.tasks.pixel_losses import CrossEntropy, Dice, Focal
from jdl.tasks.probes import KNNProbe, LinearProbe, Probe
from jdl.tasks.randomness import row_keys, with_row_keys
from jdl.tasks.recommendation import NextItem
from jdl.tasks.regression import Regression
from jdl.tasks.scores import SampleScores
from jdl.tasks.segmentation import Segmentation
from jdl.tasks.speech import SpeechSynthesis
from jdl.tasks.style import StyleTransfer
from jdl.tasks.translation import Translation
from jdl.tasks.untrained import Frozen, teacher_params
from jdl.tasks.variational import VariationalAutoencoding
from jdl.tasks.views import MIRROR, MIRROR_AND_FLIP, MIRROR_AND_SHIFT, View, sliding_windows

__all__ = [
    "CTC",
    "GAN",
    "MIRROR",
    "MIRROR_AND_FLIP",
    "MIRROR_AND_SHIFT",
    "AdversarialClassification",
    "AnomalyDetection",
    "AutoregressiveForecast",
    "BarlowTwins",
    "BinaryClassification",
    "Classification",
    "CrossEntropy",
    "Detection",
    "Dice",
    "Diffusion",
    "Distillation",
    "Embedding",
    "EmbeddingLoss",
    "FairClassification",
    "FixMatch",
    "Focal",
    "Forecast",
    "Frozen",
    "Game",
    "HostMetrics",
    "KNNProbe",
    "LanguageModeling",
    "LinearProbe",
    "MaskedAutoencoding",
    "MaskedLanguageModeling",
    "MultiLabelClassification",
    "NTXent",
    "NextItem",
    "Play",
    "Probe",
    "QuantileForecast",
    "Regression",
    "SampleScores",
    "Segmentation",
    "SpeechSynthesis",
    "StyleTransfer",
    "SupCon",
    "Task",
    "Translation",
    "VICReg",
    "VariationalAutoencoding",
    "View",
    "balanced_weights",
    "forward",
    "hinge",
    "non_saturating",
    "relativistic",
    "row_keys",
    "sliding_windows",
    "teacher_params",
    "with_row_keys",
]
