"""Masked-language-model pretraining of a small BERT on IMDb reviews, for `imdb_bert`.

    TFDS_DATA_DIR=DIR jdl train imdb_mlm --workdir runs/imdb_mlm

Devlin et al. (2019): of each review's last 127 tokens, 15 % are masked, drawn anew in every epoch.
A byte-pair vocabulary of 8,192, learned from the training text; 4 layers, 4 heads, width 128.

Expect: test loss 6.0650 (1 seed, max 6.0650), 1379 s, 2 busy cores of an AMD EPYC
"""

from jdl import Experiment, Runtime
from jdl.data import BPE, TFDS, MaskTokens, Texts
from jdl.hooks import Checkpoint, Evaluate, Progress, TensorBoard
from jdl.models import BERT
from jdl.optimizers import AdamW, Linear
from jdl.tasks import MaskedLanguageModeling

experiment = Experiment(
    model=BERT(
        vocab_size=8192, max_position_embeddings=128, num_layers=4, num_heads=4, embed_dim=128
    ),
    task=MaskedLanguageModeling(),
    data=Texts(
        TFDS("imdb_reviews"),
        encoding=BPE(8192, lowercase=True),
        length=128,
        truncation_side="left",
        device_transforms=(MaskTokens(vocab_size=8192),),
    ),
    optimizer=AdamW(
        1e-3, schedule=Linear(warmup=0.05, end=0.0), b2=0.98, weight_decay=0.01, clip_norm=1.0
    ),
    hooks=(Progress(), TensorBoard(), Evaluate(), Checkpoint()),
    epochs=5,
    batch_size=64,
    runtime=Runtime(malloc_arenas=0),
)
