"""Fine-tuning of the BERT of `imdb_mlm` for sentiment classification.

    TFDS_DATA_DIR=DIR jdl train imdb_mlm --workdir runs/imdb_mlm
    TFDS_DATA_DIR=DIR jdl train imdb_bert

Tokenizer and weights, except for the head, are those of that run (Devlin et al., 2019). It does
not beat `imdb_lstm` (0.8622): it reads 127 subword tokens instead of 200 words, and five epochs of
pretraining leave a perplexity of 431 on masked tokens.

Expect: test accuracy 0.8364 (1 seed, min 0.8364), 918.8 s, 2 busy cores of an AMD EPYC
"""

import dataclasses

from imdb_mlm import experiment as mlm

from jdl.data import Saved
from jdl.hooks import Checkpoint, EarlyStopping, Evaluate, Progress, TensorBoard
from jdl.optimizers import AdamW, Linear
from jdl.pretrained import InitFrom
from jdl.tasks import BinaryClassification

experiment = dataclasses.replace(
    mlm,
    model=mlm.model.clone(num_classes=1),
    task=BinaryClassification(inputs="tokens"),
    data=dataclasses.replace(mlm.data, encoding=Saved("runs/imdb_mlm"), device_transforms=()),
    init_from=InitFrom(run="runs/imdb_mlm", skip=("pooler", "logits")),
    optimizer=AdamW(2e-4, schedule=Linear(warmup=0.1, end=0.0), weight_decay=0.01, clip_norm=1.0),
    hooks=(
        Progress(),
        TensorBoard(),
        Evaluate(),
        Checkpoint(),
        EarlyStopping(metric="validation.accuracy", patience=2),
    ),
    epochs=4,
    batch_size=32,
)
