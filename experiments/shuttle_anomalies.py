"""Anomalies among sensors of the space shuttle, from normal rows alone.

    pip download --no-deps river
    jdl prepare shuttle --from river-*.whl
    jdl train shuttle_anomalies

49,097 rows of nine sensors, 7.2 % of them anomalies, none of which is in the training split. A
network tells rows from copies with noise. It is no fraud, and not hard: on all rows the column f1
alone has an average precision (`auprc`) of 0.960, on the test split 0.956, and there an isolation
forest, fitted on the same normal rows, one of 0.984 (`jdl.report.baselines`).

Expect: test auprc 0.9974 (3 seeds, min 0.9960), 5 s, 1 busy core of an Intel Xeon
"""

from jdl import Experiment, Runtime
from jdl.data import Table
from jdl.metrics import AUPRC, AUROC
from jdl.models import MLP
from jdl.optimizers import AdamW, Cosine
from jdl.tasks import AnomalyDetection

experiment = Experiment(
    model=MLP(widths=(128, 128), features=1),
    task=AnomalyDetection(metrics=(AUPRC(), AUROC())),
    data=Table(
        "shuttle.csv",
        "anomaly",
        categorical=True,
        train_limits=(("1", 0),),
        test_fraction=0.3,
        validation_fraction=0.0,
    ),
    optimizer=AdamW(2e-3, schedule=Cosine(), weight_decay=1e-3),
    epochs=10,
    batch_size=256,
    runtime=Runtime(malloc_arenas=0),
)
