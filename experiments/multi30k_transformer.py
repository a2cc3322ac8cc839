"""Transformer for English-German translation of image captions, on Multi30k.

    TFDS_DATA_DIR=DIR jdl train multi30k_transformer

The transformer of Vaswani et al. (2017) in the tiny size of Wu et al. (2021) for these 29,000
pairs, with pre-normalization and a cosine schedule. Data: Elliott et al. (2016), task 1; the test
split is test_2016_flickr. Both languages share a vocabulary of 8,192 subwords. BLEU is SacreBLEU's,
on cased and detokenized text: `result.json` holds its signature
(nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:2.6.0), `predictions.test.txt` the
translations.

    jdl translate DIR --text "A brown dog is running through the snow."

prints, for the run with seed 0, "Ein brauner Hund rennt durch den Schnee."

Expect: test bleu 37.4213 (1 seed, min 37.4213), 3288 s, 2 busy cores of an AMD EPYC
"""

from jdl import Experiment
from jdl.data import TFDS, Pairs
from jdl.hooks import Checkpoint, Evaluate, Progress, TensorBoard
from jdl.models import EncoderDecoder
from jdl.optimizers import Adam, Cosine
from jdl.tasks import Translation

experiment = Experiment(
    model=EncoderDecoder(
        vocab_size=8192, num_layers=4, num_heads=4, embed_dim=128, mlp_dim=256, dropout_rate=0.3
    ),
    task=Translation(label_smoothing=0.1),
    data=Pairs(TFDS("multi30k"), max_source_length=32, max_target_length=32),
    optimizer=Adam(2e-3, schedule=Cosine(warmup=0.1), b2=0.98, clip_norm=1.0),
    hooks=(Progress(), TensorBoard(), Evaluate(), Checkpoint()),
    epochs=30,
    batch_size=128,
)
