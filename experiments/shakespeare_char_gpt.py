"""GPT on Shakespeare, character by character: the CPU size of nanoGPT's first example.

    TFDS_DATA_DIR=DIR jdl train shakespeare_char_gpt

4 layers, 4 heads, width 128, 64 characters of context, batches of 12. Validation is the last tenth
of the text, every character scored once.
"""

from jdl import Experiment
from jdl.data import TFDS, Tokens
from jdl.hooks import Checkpoint, Evaluate, Progress, TensorBoard
from jdl.models import GPT
from jdl.optimizers import AdamW, Cosine
from jdl.tasks import LanguageModeling

experiment = Experiment(
    model=GPT(vocabulary=65, context=64, layers=4, heads=4, width=128),
    task=LanguageModeling(),
    data=Tokens(TFDS("tiny_shakespeare"), length=64),
    optimizer=AdamW(
        1e-3,
        schedule=Cosine(warmup=0.05, end=0.1),
        b2=0.99,
        weight_decay=0.1,
        clip_norm=1.0,
    ),
    hooks=(Progress(), TensorBoard(), Evaluate(every=500), Checkpoint(every=500)),
    steps=2000,
    batch_size=12,
    malloc_arenas=0,
    log_every=100,
)
