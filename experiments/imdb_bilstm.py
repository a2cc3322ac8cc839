"""Bidirectional LSTM on IMDb reviews: `imdb_lstm` with two directions and dropout.

    TFDS_DATA_DIR=DIR jdl train imdb_bilstm

Schuster and Paliwal (1997); dropout of 0.5 on the last states.

Expect: test accuracy 0.8675 (3 seeds, min 0.8660), 343 s, 2 busy cores of an AMD EPYC
"""

import dataclasses

from imdb_lstm import experiment as lstm

from jdl.models import RNN

experiment = dataclasses.replace(
    lstm, model=RNN(embed_dim=128, hidden_size=64, bidirectional=True, dropout_rate=0.5)
)
