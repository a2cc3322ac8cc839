"""LSTM on Shakespeare, character by character, with the state carried from batch to batch.

    TFDS_DATA_DIR=DIR jdl train shakespeare_char_lstm

Two layers of 256, dropout on non-recurrent connections (Zaremba et al., 2014); 32 streams of text,
backpropagation truncated at 64 characters. The validation text is that of `shakespeare_char_gpt`,
scored in windows of 1,024 characters.
"""

from jdl import Experiment
from jdl.data import TFDS, Streams
from jdl.models import RecurrentLM
from jdl.optimizers import Adam, Cosine
from jdl.tasks import LanguageModeling

experiment = Experiment(
    model=RecurrentLM(vocab_size=65, hidden_size=256, num_layers=2, dropout_rate=0.2),
    task=LanguageModeling(),
    data=Streams(TFDS("tiny_shakespeare"), length=64, num_streams=32),
    optimizer=Adam(2e-3, schedule=Cosine(warmup=0.02, end=0.01), clip_norm=1.0),
    epochs=8,
    batch_size=32,
)
