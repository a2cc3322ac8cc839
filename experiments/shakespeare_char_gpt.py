"""GPT on Shakespeare, character by character: the CPU size of nanoGPT's first example.

    TFDS_DATA_DIR=DIR jdl train shakespeare_char_gpt

4 layers, 4 heads, width 128, 64 characters of context, batches of 12. The validation split is the
last tenth of the text, with every character scored once.

    jdl generate DIR --prompt "ROMEO:" --max-new-tokens 300 --temperature 0.8 --seed 0

prints, for the run with seed 0:

    ROMEO:
    What the Calll thy causerlan anjuleces,
    Mack's bast iur sow and nequol
    Not he haved in resure sen and the hear fare;
    What oye falows the befolen of my gnear.

    Come:
    As beein:
    And is thou will and thee mard my to with sut of the doight
    Before lief that what Carm istenty whoses the man callisess.

    PR

Expect: validation loss 1.8968 (3 seeds, max 1.8979), 329.8 s, 2 busy cores of an AMD EPYC
"""

from jdl import Experiment, Runtime
from jdl.data import TFDS, Tokens
from jdl.hooks import Checkpoint, Evaluate, Progress, TensorBoard
from jdl.models import GPT
from jdl.optimizers import AdamW, Cosine
from jdl.tasks import LanguageModeling

experiment = Experiment(
    model=GPT(vocab_size=65, max_position_embeddings=64, num_layers=4, num_heads=4, embed_dim=128),
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
    runtime=Runtime(malloc_arenas=0),
)
