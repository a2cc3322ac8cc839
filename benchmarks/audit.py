"""Time of an audit of all 48,842 rows of Adult, and its difference from Fairlearn's MetricFrame.

    python -m benchmarks.audit [--replicas 1000]

The predictions are those of logistic regression, by scikit-learn, on the inputs of `adult_mlp`.
"""

import argparse
import time

import numpy as np
from fairlearn import metrics as fairlearn
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, precision_score

from jdl.audit import audit_predictions
from jdl.config.experiment_file import load
from jdl.data.splits import Splits


def main() -> None:
    """Prints seconds, and the largest difference of a rate in any group."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--replicas", type=int, default=1000)
    args = parser.parse_args()
    data = load("adult_mlp").experiment.data
    data = data.with_fitted(data.fit())
    splits = Splits(data)
    parts = [splits.pipeline(name) for name in splits.names]
    parts = [part.examples(np.arange(len(part))) for part in parts]
    arrays = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    model = LogisticRegression(max_iter=1000).fit(arrays["x"], arrays["y"])
    p = model.predict_proba(arrays["x"]).astype(np.float32)
    groups = {n: np.array(data.value_names(n))[arrays[n]] for n in ("sex", "race")}
    begun = time.perf_counter()
    found = audit_predictions(arrays["y"], p, groups, replicas=args.replicas)
    seconds = time.perf_counter() - begun
    print(f"{found.examples:,} rows, {args.replicas:,} replicas: {seconds:.1f} s")

    oracles = {
        "accuracy": accuracy_score,
        "selection_rate[1]": fairlearn.selection_rate,
        "true_positive_rate[1]": fairlearn.true_positive_rate,
        "false_positive_rate[1]": fairlearn.false_positive_rate,
        "precision[1]": precision_score,
    }
    worst = 0.0
    for grouping in found.groupings:
        features = {name: groups[name] for name in grouping.column.split(", ")}
        frame = fairlearn.MetricFrame(
            metrics=oracles, y_true=arrays["y"], y_pred=p.argmax(1), sensitive_features=features
        )
        for name in oracles:
            for key, value in frame.by_group[name].items():
                group = ", ".join(key) if isinstance(key, tuple) else key
                worst = max(worst, abs(grouping.scores[name][group].value - value))
    print(f"largest difference from Fairlearn's MetricFrame: {worst:.1e}")


if __name__ == "__main__":
    main()
