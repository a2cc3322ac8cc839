"""A linear probe of MiniLM's frozen features on IMDb reviews, beside `imdb_minilm`.

    TFDS_DATA_DIR=DIR jdl train imdb_minilm_probe

Weights and tokenizer as there; only the last layer is trained.
"""

import dataclasses

from imdb_minilm import EMBEDDINGS
from imdb_minilm import experiment as tuned

from jdl.optimizers import AdamW, Linear

experiment = dataclasses.replace(
    tuned,
    model=tuned.model.clone(dropout_rate=0.0),
    optimizer=AdamW(
        1e-2,
        schedule=Linear(end=0.0),
        weight_decay=0.0,
        frozen=(*EMBEDDINGS, *(f"block_{i}" for i in range(6))),
    ),
    epochs=1,
)
