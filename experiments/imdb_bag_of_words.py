"""fastText on IMDb reviews: the mean of word embeddings, without word order.

    TFDS_DATA_DIR=DIR jdl train imdb_bag_of_words --seeds 3

Joulin et al. (2017). The baseline for the recurrent networks, on the last 400 words of each review.

Expect: test accuracy 0.8816 (3 seeds, min 0.8792), 11.5 s, 2 busy cores of an AMD EPYC
"""

import dataclasses

from imdb_lstm import experiment as lstm

from jdl.data import TFDS, Words
from jdl.models import BagOfWords
from jdl.optimizers import Adam

experiment = dataclasses.replace(
    lstm,
    model=BagOfWords(vocab_size=10_000, embed_dim=16),
    data=Words(TFDS("imdb_reviews"), vocab_size=10_000, length=400),
    optimizer=Adam(1e-2, eps=1e-7),
    compiler_options=(),
    epochs=10,
)
