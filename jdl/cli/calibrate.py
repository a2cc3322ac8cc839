"""`jdl calibrate`."""

from typing import Literal

from jdl.cli.arguments import OwnFile, RunDirectory
from jdl.files import to_json


def calibrate(
    directory: RunDirectory,
    /,
    method: Literal["temperature", "vector", "isotonic", "none"] = "temperature",
    split: str = "calibration",
    coverage: float = 0.9,
    marginal: bool = False,
    experiment: OwnFile = None,
) -> None:
    """Calibrate a classifier's probabilities, and the sets of classes that it predicts.

    Fits both on a split that neither training nor early stopping has read, which
    data.calibration_fraction holds out, and writes them to RUN/calibration.json: evaluate, predict
    and export then apply them, and predict also gives the conformal set of each example. Prints a
    line of JSON with the errors on the test split before and after, and the coverage of the sets.

    Args:
        method: temperature changes no predicted class; vector and isotonic may.
        split: to fit on.
        coverage: share of examples whose set shall contain the true class.
        marginal: hold the coverage over all examples, not within each class.
    """
    from jdl.audit.calibrate import calibrate as fit
    from jdl.trainer.record import read_run

    known = read_run(directory, experiment).experiment
    settings = {"method": method, "split": split, "coverage": coverage}
    found = fit(directory, known, per_class=not marginal, **settings)
    print(to_json(found))
