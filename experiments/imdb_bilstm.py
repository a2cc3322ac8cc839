"""Two directions and dropout for the network of `imdb_lstm`.

    TFDS_DATA_DIR=DIR jdl train imdb_bilstm

Schuster and Paliwal (1997) read a sequence both ways; half of the last states are dropped.
"""

import dataclasses

from imdb_lstm import experiment as lstm

from jdl.models import RNN

experiment = dataclasses.replace(
    lstm, model=RNN(features=128, units=64, bidirectional=True, dropout=0.5)
)
