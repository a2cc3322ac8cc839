"""A small chat model on questions about Python's standard library.

    jdl train stdlib_chat --workdir runs/stdlib_chat
    jdl chat runs/stdlib_chat --temperature 0

Conversations are made of docstrings; only answers are learned. Functions of the test split were
never seen: what they do cannot be known, but their module and their name are in the conversation.
"""

from jdl import Experiment, Runtime
from jdl.data import BPE, Chats, StandardLibraryChats
from jdl.hooks import Checkpoint, Evaluate, Progress, TensorBoard
from jdl.models import GPT
from jdl.optimizers import AdamW, Cosine
from jdl.tasks import LanguageModeling

experiment = Experiment(
    model=GPT(
        vocab_size=2048,
        max_position_embeddings=128,
        num_layers=4,
        num_heads=4,
        embed_dim=192,
        position_embedding="rotary",
        dropout_rate=0.1,
    ),
    task=LanguageModeling(),
    data=Chats(
        StandardLibraryChats(test_fraction=0.1, validation_fraction=0.05),
        encoding=BPE(2048),
        length=128,
    ),
    optimizer=AdamW(2e-3, schedule=Cosine(warmup=0.05), weight_decay=0.1, clip_norm=1.0),
    hooks=(Progress(), TensorBoard(), Evaluate(), Checkpoint()),
    epochs=12,
    batch_size=32,
    runtime=Runtime(malloc_arenas=0),
)
