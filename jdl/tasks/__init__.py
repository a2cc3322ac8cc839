"""Tasks: the loss that a model is trained on, its metrics and its predictions."""

from jdl.tasks.base import HostMetrics, Task
from jdl.tasks.binary import BinaryClassification
from jdl.tasks.classification import Classification, balanced_weights
from jdl.tasks.detection import Detection
from jdl.tasks.diffusion import Diffusion
from jdl.tasks.distillation import Distillation
from jdl.tasks.fairness import AdversarialClassification, FairClassification
from jdl.tasks.forecast import Forecast
from jdl.tasks.forward import forward
from jdl.tasks.game import Game, Play
from jdl.tasks.gan import GAN, hinge, non_saturating, relativistic
from jdl.tasks.language import LanguageModeling
from jdl.tasks.masked import MaskedLanguageModeling
from jdl.tasks.multi_label import MultiLabelClassification
from jdl.tasks.pixel_losses import CrossEntropy, Dice, Focal
from jdl.tasks.randomness import row_keys, with_row_keys
from jdl.tasks.regression import Regression
from jdl.tasks.scores import SampleScores
from jdl.tasks.segmentation import Segmentation
from jdl.tasks.style import StyleTransfer
from jdl.tasks.translation import Translation
from jdl.tasks.untrained import Frozen, teacher_params
from jdl.tasks.variational import VariationalAutoencoding
from jdl.tasks.views import MIRROR, MIRROR_AND_FLIP, MIRROR_AND_SHIFT, View, sliding_windows

__all__ = [
    "GAN",
    "MIRROR",
    "MIRROR_AND_FLIP",
    "MIRROR_AND_SHIFT",
    "AdversarialClassification",
    "BinaryClassification",
    "Classification",
    "CrossEntropy",
    "Detection",
    "Dice",
    "Diffusion",
    "Distillation",
    "FairClassification",
    "Focal",
    "Forecast",
    "Frozen",
    "Game",
    "HostMetrics",
    "LanguageModeling",
    "MaskedLanguageModeling",
    "MultiLabelClassification",
    "Play",
    "Regression",
    "SampleScores",
    "Segmentation",
    "StyleTransfer",
    "Task",
    "Translation",
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
