"""LSTM on IMDb reviews: Embedding of 10,000 words, LSTM 128, Dense 1.

    TFDS_DATA_DIR=DIR jdl train imdb_lstm

The last 200 words of each review, ranked by frequency on the training text, as in Keras' example.

Expect: test accuracy 0.8622 (3 seeds, min 0.8584), 548 s, 2 busy cores of an AMD EPYC
"""

from jdl import Experiment
from jdl.data import TFDS, Words
from jdl.hooks import Checkpoint, EarlyStopping, Evaluate, Progress, TensorBoard
from jdl.models import RNN
from jdl.optimizers import Adam
from jdl.tasks import BinaryClassification

experiment = Experiment(
    model=RNN(vocab_size=10_000, embed_dim=128, hidden_size=128),
    task=BinaryClassification(inputs="tokens"),
    data=Words(TFDS("imdb_reviews"), vocab_size=10_000, length=200),
    optimizer=Adam(1e-3, eps=1e-7),
    hooks=(
        Progress(),
        TensorBoard(),
        Evaluate(),
        Checkpoint(),
        EarlyStopping(metric="validation.accuracy", patience=2),
    ),
    # On CPUs the small matmuls of each time step are faster without YNNPACK.
    compiler_options=(("xla_cpu_experimental_ynn_fusion_type", "LIBRARY_FUSION_TYPE_REDUCE"),),
    epochs=6,
    batch_size=128,
)
