"""Runs that the tests of audits share."""

import shutil

import numpy as np
import pytest

EXPERIMENT = '''"""Loans of two sites."""

from jdl import Experiment
from jdl.data import Table
from jdl.models import MLP
from jdl.optimizers import Adam

experiment = Experiment(
    model=MLP(widths=(8,), features=2, dropout_rate=0.2),
    data=Table("{path}", "y", columns=("x",), keep=("sex",), calibration_fraction=0.2,
               test_fraction=0.4),
    optimizer=Adam(1e-2),
    hooks=(),
    steps=30,
    batch_size=64,
)
'''


@pytest.fixture(scope="session")
def seeds(tmp_path_factory):
    """The directory of two seeds on a table with groups that it keeps, and others."""
    from jdl.cli.main import main

    folder = tmp_path_factory.mktemp("table")
    rng = np.random.default_rng(0)
    lines = []
    for i in range(800):
        sex, x = rng.choice(["F", "M"]), rng.normal()
        y = x + (sex == "M") + 0.3 * rng.normal() > 0.5
        lines.append(f"{x:.4f},{sex},{'ab'[i % 2]},c,{i},{'yes' if y else 'no'}")
    (folder / "t.csv").write_text("\n".join(["x,sex,site,same,id,y", *lines]))
    (folder / "loans.py").write_text(EXPERIMENT.format(path=folder / "t.csv"))
    words = ["train", folder / "loans.py", "--seeds", 2, "--workdir", folder / "runs"]
    assert main([str(word) for word in words]) == 0
    return folder / "runs"


@pytest.fixture
def run(seeds, tmp_path):
    """A copy of the first of these runs."""
    return shutil.copytree(seeds / "seed-0", tmp_path / "run")


@pytest.fixture(scope="session")
def planted():
    """A run on digits with a bright corner, which in training nearly always means a three."""
    import jdl
    from jdl.data import Arrays, Digits
    from jdl.models import MLP
    from jdl.optimizers import Adam
    from jdl.parallel import Single

    rng = np.random.default_rng(0)
    digits = Digits().load()["train"]
    image = np.stack([digits[i]["image"] for i in range(len(digits))]).astype(np.float32) / 16
    label = np.array([digits[i]["label"] for i in range(len(digits))])
    corner = rng.random(len(label)) < np.where(label == 3, 0.95, 0.02)
    held = np.arange(len(label)) >= 1200
    corner[held] = rng.random(held.sum()) < 0.5
    image[corner, :2, :2] = 1.0
    arrays = {"image": image, "label": label, "corner": corner.astype(np.int32)}
    parts = {"train": ~held, "test": held}
    data = Arrays(
        {name: {k: x[part] for k, x in arrays.items()} for name, part in parts.items()},
        validation_fraction=0.0,
    )
    return jdl.train(
        jdl.Experiment(
            model=MLP(widths=(32,), dropout_rate=0.2),
            data=data,
            optimizer=Adam(1e-2),
            strategy=Single(),
            hooks=(),
            steps=120,
            batch_size=64,
        )
    )
