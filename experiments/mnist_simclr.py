"""SimCLR on MNIST: embeddings without labels, probed with 100 labels and with all.

    TFDS_DATA_DIR=DIR jdl train mnist_simclr --seeds 3

Chen et al. (2020). Rows of `validation` follow training by the nearest neighbors of 5,000 training
examples. The linear probe of all labels is right in 0.9887, the nearest neighbors in 0.9655. The
row to beat is the same network without training, `--optimizer.learning-rate 0 --steps 100`: 0.7907
with 100 labels, 0.9561 with all, nearest neighbors 0.9304. Another loss of the same views:
`--task.objective vicreg`, or `barlow_twins`.

Expect: test linear_accuracy_100 0.9187 (3 seeds, min 0.9153), 1608 s, 1 busy core of an Intel Xeon
"""

from jdl import Experiment, Runtime
from jdl.data import TFDS, Cutout, RandomAffine, Scale, Views
from jdl.hooks import Checkpoint, Evaluate, Progress, TensorBoard
from jdl.metrics import ClusterAgreement
from jdl.models import CNN, MLP, Projected
from jdl.optimizers import AdamW, Cosine
from jdl.tasks import Embedding, KNNProbe, LinearProbe, NTXent

augment = RandomAffine(
    rotation_range=20.0,
    width_shift_range=0.15,
    height_shift_range=0.15,
    shear_range=25.0,
    zoom_range=0.3,
    fill_mode="constant",
)
experiment = Experiment(
    model=Projected(
        CNN(channels=(32, 64, 128), dense=(), num_classes=256, batch_norm=True),
        MLP((256,), 128),
    ),
    task=Embedding(
        objective=NTXent(temperature=0.2),
        metrics=(ClusterAgreement(), ClusterAgreement(score="ari")),
        probes=(
            KNNProbe(splits=("validation", "test"), num_train=5000),
            LinearProbe(num_train=100),
            LinearProbe(),
        ),
    ),
    data=TFDS("mnist", device_transforms=(Scale(), Views(2), augment, Cutout(size=8))),
    optimizer=AdamW(2e-3, schedule=Cosine(warmup=0.1), weight_decay=1e-3),
    hooks=(Progress(), TensorBoard(), Evaluate(every=500), Checkpoint(every=500)),
    steps=2000,
    batch_size=256,
    precision="bf16",
    final_train_evaluation=False,
    runtime=Runtime(malloc_arenas=0),
)
