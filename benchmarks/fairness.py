"""Accuracy against the gap between women and men on Adult, by method, strength and seed.

    python -m benchmarks.fairness [--strengths 0 3 10 30] [--seeds 3] [--methods penalty ...]

Beside Fairlearn's ThresholdOptimizer, which needs the group to predict, and ExponentiatedGradient,
both with logistic regression on the same arrays. The gap is demographic parity's, of `sex`, on the
test split; a method is fitted on the training split, thresholds on the calibration split.
"""

import argparse
import dataclasses
import json
import statistics
import tempfile
from pathlib import Path

import numpy as np

import jdl
from jdl.audit.groups import as_column
from jdl.audit.report import predict_split
from jdl.audit.thresholds import decide, fit_thresholds, rate_gap
from jdl.config.experiment_file import load
from jdl.data import Reweighed
from jdl.data.splits import Splits
from jdl.models import Debiased
from jdl.tasks import AdversarialClassification, Classification, FairClassification

METHODS = ("plain", "penalty", "worst_group", "adversary", "reweighing", "thresholds", "fairlearn")


def main() -> None:
    """Prints a line of JSON for each result, then the means over seeds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--strengths", type=float, nargs="+", default=[3, 10, 30])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--epochs", type=float, default=None)
    args = parser.parse_args()
    rows = []
    base = dataclasses.replace(load("adult_mlp").experiment, hooks=())
    if args.epochs is not None:
        base = dataclasses.replace(base, epochs=args.epochs)
    data = Splits(base.data)
    arrays = {split: _arrays(data, split) for split in ("train", "calibration", "test")}
    for method in args.methods:
        strengths = args.strengths if method in ("penalty", "worst_group", "adversary") else [0.0]
        for strength in strengths:
            for seed in range(1 if method == "fairlearn" else args.seeds):
                for name, found in _results(method, strength, seed, base, arrays):
                    row = {"method": name, "strength": strength, "seed": seed, **found}
                    rows.append(row)
                    print(json.dumps(row), flush=True)
    print(f"{'method':24} {'strength':>8} {'accuracy':>8} {'worst':>7} {'gap':>7} {'worst':>7}")
    for key in dict.fromkeys((row["method"], row["strength"]) for row in rows):
        own = [row for row in rows if (row["method"], row["strength"]) == key]
        accuracy, gap = ([row[name] for row in own] for name in ("accuracy", "gap"))
        print(
            f"{key[0]:24} {key[1]:8g} {statistics.fmean(accuracy):8.4f} {min(accuracy):7.4f} "
            f"{statistics.fmean(gap):7.4f} {max(gap):7.4f}"
        )


def _arrays(data, split):
    pipeline = data.pipeline(split)
    return pipeline.examples(np.arange(len(pipeline)))


def _results(method, strength, seed, base, arrays):
    """Yields the name of a method with its accuracy and gap."""
    test, calibration = arrays["test"], arrays["calibration"]
    if method == "fairlearn":
        yield from _fairlearn(arrays)
        return
    with tempfile.TemporaryDirectory() as folder:
        run = jdl.train(_experiment(method, strength, seed, base), Path(folder) / "run")
        labels, p = predict_split(run, "test")
        decided = p[:, 1] > 0.5
        if method == "thresholds":
            known, scores = predict_split(run, "calibration")
            column = as_column("sex", calibration["sex"])
            fitted = fit_thresholds(known, scores[:, 1], column, "demographic_parity")
            decided = decide(p[:, 1], as_column("sex", test["sex"]), fitted)
    yield method, _scores(labels, decided, test["sex"])


def _experiment(method, strength, seed, base):
    changes = {"seed": seed}
    groups = {"group": "sex", "num_groups": (2,), "strength": strength}
    if method == "penalty":
        changes |= {"task": FairClassification(**groups), "batch_size": 512}
    if method == "worst_group":
        criterion = {"criterion": "worst_group"}
        changes |= {"task": FairClassification(**groups | criterion), "batch_size": 512}
    if method == "adversary":
        model = Debiased(base.model, num_groups=2)
        changes |= {"task": AdversarialClassification(**groups), "model": model, "batch_size": 512}
    if method == "reweighing":
        task = Classification(example_weights="weight")
        changes |= {"task": task, "data": Reweighed(base.data, group="sex")}
    return dataclasses.replace(base, **changes)


def _scores(labels, decided, sex):
    column = as_column("sex", sex)
    gap = rate_gap(labels, decided, column, "demographic_parity")
    return {"accuracy": float((decided == labels).mean()), "gap": gap}


def _fairlearn(arrays):
    """Yields the scores of logistic regression, alone and with Fairlearn's two methods."""
    from fairlearn.postprocessing import ThresholdOptimizer
    from fairlearn.reductions import DemographicParity, ExponentiatedGradient
    from sklearn.linear_model import LogisticRegression

    # ThresholdOptimizer fails on probabilities in float32, which those of such inputs are.
    train, calibration, test = (
        {**arrays[name], "x": arrays[name]["x"].astype(np.float64)}
        for name in ("train", "calibration", "test")
    )
    plain = LogisticRegression(max_iter=1000).fit(train["x"], train["y"])
    yield "logistic regression", _scores(test["y"], plain.predict(test["x"]), test["sex"])
    optimizer = ThresholdOptimizer(
        estimator=plain,
        constraints="demographic_parity",
        prefit=True,
        predict_method="predict_proba",
    )
    optimizer.fit(calibration["x"], calibration["y"], sensitive_features=calibration["sex"])
    decided = optimizer.predict(test["x"], sensitive_features=test["sex"], random_state=0)
    yield "ThresholdOptimizer", _scores(test["y"], decided, test["sex"])
    reduction = ExponentiatedGradient(LogisticRegression(max_iter=1000), DemographicParity())
    reduction.fit(train["x"], train["y"], sensitive_features=train["sex"])
    decided = reduction.predict(test["x"], random_state=0)
    yield "ExponentiatedGradient", _scores(test["y"], decided, test["sex"])


if __name__ == "__main__":
    main()
