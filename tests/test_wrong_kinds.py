"""What Python users pass by habit or mistake gets a sentence, not a traceback.

The cases run in one process of their own, without the type checks of the tests.
"""

import re
import subprocess
import sys

import pytest

SETUP = """
import dataclasses
import flax.linen as nn
import numpy as np
from flax import nnx
import jdl
from jdl.data import Arrays, Scale
from jdl.data.arrays import ArraySource
from jdl.data.base import Data
from jdl.hooks import Evaluate
from jdl.optimizers import Adam
from jdl.tasks import Classification

x = np.random.default_rng(0).normal(size=(64, 3))
y = (x[:, 0] > 0).astype(int)
arrays = Arrays({"train": {"image": x, "label": y}})

class Nameless(Data):
    def load(self):
        return {"train": ArraySource({"image": x, "label": y})}

class Empty(Data):
    pass

def experiment(**changes):
    plain = {"model": nn.Dense(2), "data": arrays, "epochs": 1, "hooks": ()}
    return jdl.Experiment(**{**plain, **changes})

def data(**changes):
    return jdl.train(experiment(data=dataclasses.replace(arrays, **changes)))

run = jdl.train(experiment())
labeled = data(transforms=(lambda e: {"image": e["image"] + e["label"], "label": e["label"]},))
"""

CASES = {
    "experiment(optimizer=Adam)": r"optimizer is the class Adam, not an .*: write Adam\(\.\.\.\)",
    "experiment(optimizer='adam')": r"optimizer must be an optimizer such as Adam\(1e-3\), or .*",
    "experiment(data=(x, y))": r"data must be a data set such as Arrays\(.*, not tuple",
    "experiment(task=Classification)": "task is the class Classification, not an instance",
    "experiment(model=nn.Dense)": "model is the class Dense, not an instance",
    "experiment(strategy=None)": r"strategy must be .* such as DataParallel\(\), not NoneType",
    "experiment(model=nnx.Linear(2, 3, rngs=nnx.Rngs(0)))": (
        r"model must be .*the nnx module Linear: wrap its class, .*to_linen\(Linear, \.\.\.\)"
    ),
    "experiment(hooks=(Evaluate,))": r"hooks\.0 must be Evaluate\(\)",
    "experiment(hooks=(print,))": r"hooks\.0 must be a Hook of jdl\.hooks",
    "jdl.train(nn.Dense(2), arrays)": r"jdl\.train takes an Experiment, not Dense: .*jdl\.fit",
    "jdl.fit(nn.Dense(2), x, y, validation_data=x)": r"validation_data must be a pair \(x, y\)",
    "Arrays((x, y))": "arrays are given by split and name: Arrays",
    "Arrays({'image': x, 'label': y})": r"arrays need a split 'train' .*: Arrays",
    "Arrays({'train': (x, y)})": "arrays of split 'train' need names, not tuple: Arrays",
    "jdl.train(experiment(data=Nameless()))": "Nameless defines no full_name: return",
    "jdl.train(experiment(data=Empty()))": "Empty defines no load: return its splits",
    "data(transforms=(Scale,))": r"data\.transforms\.0 is the class Scale: write Scale\(\)",
    "data(device_transforms=Scale())": r"data\.device_transforms must be a tuple .* \(Scale\(.*,\)",
    "data(transforms=(3,))": r"data\.transforms\.0 must be a function, not 3",
    "data(transforms=(lambda e: None,))": (
        r"example 0 of split 'train': data\.transforms\.0 \(<lambda>\) returns NoneType"
    ),
    "data(transforms=(lambda e: {'image': e['imag']},))": (
        r"example 0 of split 'train': "
        r"data\.transforms\.0 \(<lambda>\) fails on an example with 'image', 'label': "
        r"KeyError: 'imag'"
    ),
    "run.predict('text')": "predict takes examples along axis 0, not 'text'",
    "run.predict(None)": "predict takes examples along axis 0, not None",
    "run.predict([[1], [1, 2]])": r"'image' has shape \(1,\) in example 0 .*\(2,\)",
    "run.predict({})": "there is nothing to predict: the dict has no arrays",
    "run.predict(x.astype(str))": "the input's 'image' holds .* where the model reads numbers",
    "run.predict([['a', 'b', 'c']])": "the input's 'image' holds .* where the model reads numbers",
    "run.predict([[None, 1, 2]])": "the input's 'image' holds .* where the model reads numbers",
    "run.predict(np.array([[None, 1, 2]]))": "image holds a missing value at row 0",
    "run.predict(np.ma.masked_less(x, 9))": "image holds a masked value at row 0",
    "run.predict(x + 1j)": "'image' is complex: convert it",
    "run.predict({'image': x, 'mask': x > 0})": "the data has an array 'mask', by which a batch",
    "run.evaluate(None)": r"there is no split None \(there are",
    "jdl.train(experiment(data=Arrays({'train': {'image': x, 'label': y, 'mask': y}})))": (
        r"example 0 of split 'train': "
        "the data has an array 'mask', by which a batch"
    ),
    "jdl.train(experiment(data=Arrays({'train': {'image': x + 1j, 'label': y}})))": (
        r"example 0 of split 'train': "
        "'image' is complex: convert it"
    ),
    "jdl.fit(nn.Dense(2), x, y, epochs='3')": "epochs must be a number, not '3'",
    "jdl.fit(nn.Dense(2), x, y, batch_size=None)": "batch_size must be a whole number, not None",
    "jdl.fit(nn.Dense(2), x, y, batch_size=8.0)": "batch_size must be a whole number, not 8.0",
    "jdl.fit(nn.Dense(2), x, y, seed='1')": "seed must be a whole number, not '1'",
    "jdl.fit(nn.Dense(2), x, y, validation_fraction='0.1')": (
        r"data\.validation_fraction is a share in \[0, 1\), not '0.1'"
    ),
    "jdl.fit(nn.Dense(2), x, y, class_weight=3)": "class_weight must be 'balanced', a dict or a",
    "jdl.fit(nn.Dense(2), x, y, class_weight={0: 'a', 1: 1})": "class_weight must be 'balanced'",
    "run.predict(x[:, :2])": r"the input's 'image' has shape \(2,\), where .* trained on \(3,\)",
    "run.predict({'inputs': x})": r"the input has no array 'image', .* \(it has 'inputs'\)",
    "run.predict({'image': x, 'label': y[1:]})": "the arrays to predict from differ in length",
    "labeled.predict(x)": r"data\.transforms\.0 .* with 'image': KeyError: 'label'",
    "run.evaluate('tset')": r"there is no split 'tset' .*did you mean 'test'",
}

LOOP = """
for case in {cases!r}:
    try:
        eval(case)
        print("no error")
    except Exception as error:
        print(type(error).__name__, " ".join(str(error).split()))
"""


@pytest.fixture(scope="module")
def messages():
    ended = subprocess.run(
        [sys.executable, "-c", SETUP + LOOP.format(cases=list(CASES))],
        capture_output=True,
        text=True,
        check=True,
    )
    return dict(zip(CASES, ended.stdout.splitlines()[-len(CASES) :], strict=True))


@pytest.mark.parametrize("case", CASES)
def test_it_is_refused_in_a_sentence(case, messages):
    assert re.match("UserError " + CASES[case], messages[case]), messages[case]
