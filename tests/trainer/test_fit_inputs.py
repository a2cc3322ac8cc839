"""What `jdl.fit` makes of arrays, lists and frames, and what it refuses."""

import fractions

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd
import pytest
import scipy.sparse
from flax import nnx

import jdl
from jdl import UserError
from jdl.hooks import EarlyStopping, Evaluate
from jdl.tasks import BinaryClassification, Classification, Regression

GENERATOR = np.random.default_rng(0)
X = GENERATOR.normal(size=(40, 3))
POSITIVE = X[:, 0] > 0
NUMBERS = POSITIVE.astype(int)
TEXTS = np.where(POSITIVE, "yes", "no")


def fitted(y, outputs=2, x=X, **settings):
    return jdl.fit(nn.Dense(outputs), x, y, **{"epochs": 1, "hooks": (), **settings})


LABELS = {
    "integers": NUMBERS,
    "bytes": NUMBERS.astype(np.uint8),
    "a list": NUMBERS.tolist(),
    "booleans": POSITIVE,
    "a column": NUMBERS[:, None],
    "one-hot rows": np.eye(2)[NUMBERS],
    "one-hot integers": np.eye(2, dtype=int)[NUMBERS],
    "a series": pd.Series(NUMBERS),
    "a nullable series": pd.Series(NUMBERS, dtype="Int64"),
    "a frame of a column": pd.DataFrame({"y": NUMBERS}),
    "texts": TEXTS,
    "a list of texts": TEXTS.tolist(),
    "a series of texts": pd.Series(TEXTS),
    "categories": pd.Series(TEXTS, dtype="category"),
    "a JAX array": jnp.asarray(NUMBERS),
    "byte strings": TEXTS.astype("S"),
    "one-hot booleans": np.eye(2, dtype=bool)[NUMBERS],
    "a column of texts": TEXTS[:, None],
    "big-endian integers": NUMBERS.astype(">i4"),
}


@pytest.fixture(scope="module")
def expected():
    return fitted(NUMBERS).predict(X)


@pytest.mark.parametrize("y", LABELS.values(), ids=LABELS)
def test_labels_of_every_kind_are_the_same_classes(y, expected, capsys):
    run = fitted(y)
    assert run.experiment.task == Classification()
    np.testing.assert_array_equal(run.predict(X), expected)
    plain = np.asarray(y).ndim == 1 and np.asarray(y).dtype.kind in "iu"
    printed = capsys.readouterr().out
    assert ("read as" in printed) != (plain or (isinstance(y, pd.Series) and y.dtype == "Int64"))


def test_names_of_classes_are_kept():
    assert fitted(TEXTS).experiment.data.output_names() == ("no", "yes")


@pytest.mark.parametrize("y", [NUMBERS, POSITIVE, TEXTS], ids=["integers", "booleans", "texts"])
def test_one_logit_is_binary_classification(y):
    run = fitted(y, outputs=1, epochs=60, optimizer=optax.sgd(0.5))
    assert run.experiment.task == BinaryClassification()
    assert ((run.predict(X) > 0.5) == POSITIVE).mean() > 0.9


INPUTS = {
    "a list": X.tolist(),
    "a JAX array": jnp.asarray(X),
    "a frame": pd.DataFrame(X, columns=list("abc")),
    "big-endian numbers": X.astype(">f8"),
    "long doubles": X.astype(np.longdouble),
    "objects": X.astype(object),
    "a masked array without masked values": np.ma.array(X),
    "a sequence of rows": tuple(X),
    "a frame of mixed dtypes": pd.DataFrame({0: X[:, 0], 1: X[:, 1], 2: X[:, 2].astype("f4")}),
}


@pytest.mark.parametrize("x", INPUTS.values(), ids=INPUTS)
def test_inputs_of_every_kind_are_the_same_numbers(x, expected):
    run = fitted(NUMBERS, x=x)
    np.testing.assert_allclose(run.predict(x), expected, atol=1e-6)
    np.testing.assert_allclose(run.predict(X), expected, atol=1e-6)


FRAME = pd.DataFrame(X, columns=list("abc"))

REFUSED = {
    r"y holds nan at row 2: fill or drop it": (X, np.where(np.arange(40) == 2, np.nan, 0.5)),
    r"x holds inf at row 3": (np.where(np.arange(40)[:, None] == 3, np.inf, X), NUMBERS),
    r"x\['d'\] holds nan at row 1": (
        FRAME.assign(d=np.where(np.arange(40) == 1, np.nan, 1)),
        NUMBERS,
    ),
    r"x\['d'\] holds the text 'p' at row 0": (FRAME.assign(d=["p"] * 40), NUMBERS),
    r"x\['d'\] holds dates": (FRAME.assign(d=pd.Timestamp("2020-01-01")), NUMBERS),
    r"x\['d'\] holds a missing value at row 5": (
        FRAME.assign(d=[None if row == 5 else "p" if row > 5 else 1 for row in range(40)]),
        NUMBERS,
    ),
    r"x holds 3000000000 at row 0: JAX computes in 32 bits, so scale it": (
        np.full((40, 3), 3_000_000_000),
        NUMBERS,
    ),
    r"x holds 1e\+39 at row 0: JAX computes in 32": (
        np.full((40, 3), 1e39),
        NUMBERS,
    ),
    r"y holds 4294967296 at row 39": (X, np.where(np.arange(40) == 39, 2**32, 1)),
    r"the examples of x differ in shape": ([[1.0], [1.0, 2.0]], [0, 1]),
    r"x is None": (None, NUMBERS),
    r"x has 40 examples, y 39": (X, NUMBERS[1:]),
    r"same index in different orders: .*y = y\.loc\[x\.index\]": (
        FRAME,
        pd.Series(NUMBERS).sample(frac=1, random_state=0),
    ),
    r"y holds integers of shape \(40, 3\) that are no one-hot rows": (X, (X > 0).astype(int)),
    r"y holds texts, and 1 at row 1": (X, ["a", 1] * 20),
    r"x holds a masked value at row 2": (np.ma.masked_greater(X, X[2].max() - 1e-9), NUMBERS),
    r"y holds a masked value at row 1": (X, np.ma.array(NUMBERS, mask=np.arange(40) == 1)),
    r"x is a sparse matrix: pass x\.toarray": (scipy.sparse.csr_array(X), NUMBERS),
    r"x is a structured array": (FRAME.to_records(index=False), NUMBERS),
    r"x is complex: pass real and imaginary parts": (X + 1j, NUMBERS),
    r"y is complex": (X, X[:, 0] + 1j),
    r"x has several columns 'a': rename": (FRAME.set_axis(list("aab"), axis=1), NUMBERS),
    r"x has an input 'mask', by which": ({"mask": X}, NUMBERS),
    r"x has the key 0: inputs are named by strings": ({0: X}, NUMBERS),
    r"x cannot become an array: .*key": (jax.random.split(jax.random.key(0), 40), NUMBERS),
    r"y is a dict: pass an array": (X, {"y": NUMBERS}),
    r"y is a set: pass an array": (X, set(range(40))),
    r"the examples of y differ in shape": (X, [[1], [1, 2]] * 20),
    r"y holds a Fraction at row 0: convert it": (X, [fractions.Fraction(1, 2)] * 40),
    r"y holds integers of shape \(40, 2\) that are no": (X, np.stack([POSITIVE, POSITIVE], 1)),
    r"whole numbers of dtype float64 and the model gives 2 outputs": (X, NUMBERS * 1.0),
    r"whole numbers of dtype float32 and": (X, jnp.asarray(NUMBERS, jnp.bfloat16)),
}


@pytest.mark.parametrize("complaint", REFUSED)
def test_arrays_that_would_be_read_wrong(complaint):
    x, y = REFUSED[complaint]
    with pytest.raises(UserError, match=complaint):
        fitted(y, x=x)


def test_integers_and_one_output_are_ambiguous():
    with pytest.raises(UserError, match=r"integers up to 39 .* or pass task=Regression\(\)"):
        fitted(np.arange(40), outputs=1)
    assert fitted(np.arange(40), outputs=1, task=Regression()).steps == 2


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({"validation_split": 0.1}, r"'validation_split': use validation_fraction=0\.1"),
        ({"callbacks": []}, r"'callbacks': use hooks=\(EarlyStopping\(\), \.\.\.\)"),
        ({"sample_weight": [1]}, "'sample_weight': use class_weight"),
        ({"verbose": 0}, r"'verbose': use hooks=\(\)"),
        ({"epoch": 3}, "'epoch'; did you mean 'epochs'"),
        ({"data": X}, "no argument 'data'"),
        ({"class_weight": {0: 1.0}}, "class_weight lacks the class 1"),
        ({"class_weight": {0: 1.0, 2: 1.0}}, "class_weight has the class 2"),
        ({"class_weight": "even"}, "class_weight must be 'balanced'"),
        ({"task": Regression(), "class_weight": [1, 2]}, "class_weight needs classes"),
        ({"validation_data": (X, NUMBERS), "validation_fraction": 0.5}, "exclude each other"),
        ({"validation_data": (X, X[:, 0])}, "validation y holds real numbers, where y holds class"),
    ],
)
def test_arguments_of_other_libraries_get_a_sentence(given, complaint):
    with pytest.raises(UserError, match=complaint):
        fitted(NUMBERS, **given)


def test_a_class_that_only_validation_has():
    with pytest.raises(UserError, match="validation y holds the class 'maybe' at row 1"):
        fitted(TEXTS, validation_data=(X[:2], ["yes", "maybe"]))


def test_weights_of_classes_by_name_number_or_balance():
    weights = fitted(TEXTS, class_weight={"yes": 3.0, "no": 1.0}).experiment.task.class_weights
    assert weights == (1.0, 3.0)
    assert fitted(NUMBERS, class_weight=[1, 3]).experiment.task.class_weights == (1.0, 3.0)
    balanced = fitted(NUMBERS, class_weight="balanced").experiment.task.class_weights
    counts = np.bincount(NUMBERS)
    np.testing.assert_allclose(balanced * counts, [20, 20])


def test_validation_data_stops_training_early_and_history_has_every_score():
    hooks = (Evaluate(), EarlyStopping(metric="validation.loss", patience=1))
    upside_down = 1 - NUMBERS  # fitting the training labels raises this loss
    run = fitted(NUMBERS, validation_data=(X, upside_down), hooks=hooks, epochs=50)
    losses = run.history["validation"]["loss"]
    assert len(losses) == 2
    assert losses[1] > losses[0]
    assert run.history["validation"]["step"] == [2, 4]
    assert list(pd.DataFrame(run.history["validation"]).columns[:2]) == ["step", "epoch"]


def test_a_fraction_is_held_out_for_validation():
    assert fitted(NUMBERS, validation_fraction=0.25).examples == 30


def test_fewer_examples_than_a_batch_and_numbers_of_numpy():
    run = fitted(NUMBERS[:3], x=X[:3], epochs=np.int64(4), batch_size=np.int32(8))
    assert run.steps == 2  # 4 epochs of 3 examples in batches of 8, rounded up
    assert type(run.experiment.epochs) is int
    assert type(run.experiment.batch_size) is int


def test_a_module_of_nnx_is_trained_through_the_bridge():
    class Network(nnx.Module):
        def __init__(self, rngs):
            self.dense = nnx.Linear(3, 2, rngs=rngs)

        def __call__(self, x):
            return self.dense(x)

    run = jdl.fit(
        nnx.bridge.to_linen(Network), X, NUMBERS, epochs=60, optimizer=optax.sgd(0.5), hooks=()
    )
    assert run.evaluate("train")["accuracy"] > 0.9


VALIDATION = {
    r"validation y holds numbers, where y holds texts": (TEXTS, (X, NUMBERS)),
    r"validation y holds texts, where y holds numbers": (NUMBERS, (X, TEXTS)),
    r"validation x has shape \(2,\) per example, x \(3,\)": (NUMBERS, (X[:, :2], NUMBERS)),
    r"validation x has no column 'a', which the training data has": (
        NUMBERS,
        (FRAME.rename(columns={"a": "z"}), NUMBERS),
    ),
    r"validation y is a masked|validation y holds a masked value at row 3": (
        NUMBERS,
        (X, np.ma.array(NUMBERS, mask=np.arange(40) == 3)),
    ),
}


@pytest.mark.parametrize("complaint", VALIDATION)
def test_validation_data_that_would_be_read_wrong(complaint):
    y, pair = VALIDATION[complaint]
    with pytest.raises(UserError, match=complaint):
        fitted(y, x=FRAME, validation_data=pair)


def test_columns_of_frames_are_arranged_by_their_names(tmp_path):
    shuffled = FRAME[["c", "a", "b"]].assign(other=1.0)
    run = fitted(NUMBERS, x=FRAME, validation_data=(shuffled, NUMBERS), workdir=tmp_path / "run")
    assert run.evaluate("validation") == run.evaluate("train")
    for each in (run, jdl.open(tmp_path / "run")):
        np.testing.assert_array_equal(each.predict(shuffled), run.predict(X))
        with pytest.raises(UserError, match="image has no column 'b', which the training data"):
            each.predict(FRAME.drop(columns="b"))


@pytest.mark.parametrize("y", [NUMBERS * 1.0, np.stack([POSITIVE, POSITIVE], 1) * 0.5])
def test_numbers_that_may_be_meant_as_classes_are_remarked(y, capsys):
    assert fitted(y, outputs=y[0].size).experiment.task == Regression()
    assert "y read as real numbers; for" in capsys.readouterr().out
