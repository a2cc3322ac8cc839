"""Hyperparameter search for an MLP on scikit-learn's digits; takes a minute.

    jdl tune digits_mlp_search --trials 30

Five epochs on four fifths of the training images. Accuracy on the 287 held-out images is too
coarse to rank trials; for a finer metric add `--metric validation.loss`.
`python -m benchmarks.samplers` compares samplers on it.
"""

from jdl import Experiment
from jdl.data import Digits, Scale
from jdl.models import MLP
from jdl.optimizers import AdamW
from jdl.sweeps.search import Int, LogUniform, Uniform

experiment = Experiment(
    model=MLP(widths=(64,)),
    data=Digits(validation_fraction=0.2, device_transforms=(Scale(divisor=16.0),)),
    optimizer=AdamW(1e-3),
    hooks=(),
    epochs=5,
    batch_size=32,
)
space = {
    "model.widths.0": Int(16, 128, step=16),
    "model.dropout_rate": Uniform(0, 0.8),
    "optimizer.learning_rate": LogUniform(1e-5, 1),
    "optimizer.weight_decay": LogUniform(1e-5, 10),
    "optimizer.b1": Uniform(0, 0.99),
}
