"""GRU on IMDb reviews (Cho et al., 2014): `imdb_lstm` with another recurrent cell.

    TFDS_DATA_DIR=DIR jdl train imdb_gru

Expect: test accuracy 0.8635 (3 seeds, min 0.8571), 378.1 s, 2 busy cores of an AMD EPYC
"""

import dataclasses

from imdb_lstm import experiment as lstm

from jdl.models import RNN

experiment = dataclasses.replace(lstm, model=RNN(embed_dim=128, hidden_size=128, cell="gru"))
