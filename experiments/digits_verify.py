"""Supervised contrastive learning of the digits 0 to 4, verified on 5 to 9 (Khosla et al., 2020).

    jdl train digits_verify --seeds 3

The test split has only digits that training has not. Whether two images show the same one is told
by the cosine similarity of their embeddings; `jdl verify RUN A B` does that with two files. Five
classes of 8x8 pixels teach little that holds for others: on new images of 0 to 4 the rate is below
0.002.

Expect: test equal_error_rate 0.3198 (3 seeds, max 0.3327), 12 s, 2 cores of an Intel Xeon
"""

from jdl import Experiment
from jdl.data import Digits, RandomAffine, Scale, Selection, Views
from jdl.metrics import EqualErrorRate, RecallAtK
from jdl.models import CNN
from jdl.optimizers import AdamW, Cosine
from jdl.tasks import Embedding, SupCon

augment = RandomAffine(rotation_range=15.0, width_shift_range=0.1, height_shift_range=0.1)
data = Selection(
    Digits(),
    classes=(0, 1, 2, 3, 4),
    test_classes=(5, 6, 7, 8, 9),
    device_transforms=(Scale(divisor=16.0), Views(2), augment),
)
experiment = Experiment(
    model=CNN(channels=(32, 64), dense=(128,), num_classes=32, batch_norm=True),
    task=Embedding(
        objective=SupCon(temperature=0.1),
        metrics=(EqualErrorRate(), EqualErrorRate(threshold=True), RecallAtK()),
    ),
    data=data,
    optimizer=AdamW(2e-3, schedule=Cosine(warmup=0.1), weight_decay=1e-3),
    epochs=60,
    batch_size=128,
)
