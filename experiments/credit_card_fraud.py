"""MLP that finds fraudulent payments by card, of the hours after those it was trained on.

    jdl prepare credit_card_fraud
    jdl train credit_card_fraud

284,807 payments of two days, 492 of them fraudulent, with 28 principal components that hide what
they mean (Dal Pozzolo et al., 2015). The split is by time: the last fifth is tested, the tenth
before it validated, since a random split would train on payments of the frauds that it tests.
Average precision (`auprc`) and the recall at a precision of 0.9 count, not the accuracy, which is
0.998 for a constant. `jdl report` fits logistic regression and gradient boosting of scikit-learn on
the same rows beside it. Not measured: the file is downloaded, which was not possible here.
"""

from jdl import Experiment
from jdl.data import Table
from jdl.metrics import AUPRC, AUROC, RecallAtPrecision
from jdl.models import MLP
from jdl.optimizers import AdamW, Cosine
from jdl.tasks import BinaryClassification

experiment = Experiment(
    model=MLP(widths=(64, 64), features=1, dropout_rate=0.2),
    task=BinaryClassification(
        inputs="x", targets="y", metrics=(AUPRC(), AUROC(), RecallAtPrecision(precision=0.9))
    ),
    data=Table(
        "creditcard.csv",
        "Class",
        columns=(*(f"V{i}" for i in range(1, 29)), "Amount"),
        categorical=True,
        ordered=True,
    ),
    optimizer=AdamW(1e-3, schedule=Cosine(), weight_decay=1e-3),
    epochs=10,
    batch_size=256,
)
