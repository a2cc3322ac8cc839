"""NeuMF: a product of embeddings and an MLP on them, on MovieLens 100K (He et al., 2017).

    jdl train movielens_100k_neumf
    jdl train movielens_100k_neumf --data.protocol temporal

Protocols and baselines are those of `movielens_100k`.
"""

from dataclasses import replace

from movielens_100k import experiment as factorization

from jdl.models import NeuMF
from jdl.optimizers import AdamW, Cosine

experiment = replace(
    factorization,
    model=NeuMF(num_users=943, num_items=1682, embed_dim=16, dropout_rate=0.3),
    optimizer=AdamW(2e-3, schedule=Cosine(), weight_decay=1e-2),
    epochs=10,
)
