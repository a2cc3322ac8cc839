"""Imports: side effects, the import contract, and a step of every shipped experiment."""

import ast
import dataclasses
import gzip
import struct
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
import pytest

import jdl
from jdl.data import BPE, TFDS, Pairs, Series, Source, Streams, Subset, Texts, Tokens
from jdl.data.base import Data
from jdl.data.prepare import prepare
from jdl.errors import UserError
from jdl.trainer.training_run import TrainingRun

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared" / "tfds"
AT_HAND = ("digits_cnn", "digits_mlp", "mnist")  # whose data is here, or is made
LARGE = ("mnist_flow", "mnist_gan", "mnist_mae", "mnist_simclr")  # take seconds to compile
HEAVY = ["grain", "tensorflow_datasets", "orbax", "matplotlib", "sklearn", "optuna"]
HEAVY += ["torch", "tensorflow", "tokenizers", "sacrebleu", "safetensors"]
MODULES = sorted(
    {path.parent.name for path in ROOT.glob("jdl/*/__init__.py")}
    | {path.stem for path in ROOT.glob("jdl/[!_]*.py")}
)


def python(code, **options):
    """Runs code in a process of its own."""
    command = [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, timeout=600, **options)


@pytest.mark.parametrize(
    "code",
    [
        "import jdl",
        "import jdl; jdl.Experiment, jdl.override, jdl.train, jdl.fit, jdl.load",
        f"import jdl; {', '.join(f'jdl.{name}' for name in MODULES)}; jdl.pretrained.load",
    ],
)
def test_what_is_heavy_loads_when_it_is_used(code):
    ask = f"import sys; print(*[name for name in {HEAVY} if name in sys.modules])"
    done = python(f"{code}\n{ask}")
    assert (done.returncode, done.stdout, done.stderr) == (0, "\n", "")


def test_the_package_itself_loads_none_of_its_modules():
    code = "import jdl, sys; print(*sorted(x for x in sys.modules if x.startswith(('jdl', 'jax'))))"
    done = python(code)
    assert (done.returncode, done.stdout, done.stderr) == (0, "jdl jdl._version\n", "")


def test_each_layer_imports_only_from_those_below():
    code = "import sys, importlinter.cli; sys.exit(importlinter.cli.lint_imports(no_cache=True))"
    done = python(code, cwd=ROOT)
    assert done.returncode == 0, done.stdout
    assert "1 kept, 0 broken" in done.stdout


def test_every_module_has_its_layer():
    with (ROOT / "pyproject.toml").open("rb") as file:
        (contract,) = tomllib.load(file)["tool"]["importlinter"]["contracts"]
    layered = {name.strip() for layer in contract["layers"] for name in layer.split("|")}
    package = ROOT / "jdl"
    modules = {path.stem for path in package.glob("*.py")} - {"__init__"}
    modules |= {path.parent.name for path in package.glob("*/__init__.py")}
    assert layered == modules


def test_every_module_says_what_it_is():
    files = [path for folder in ("jdl", "experiments") for path in (ROOT / folder).rglob("*.py")]
    assert len(files) > 30
    silent = [path for path in files if not ast.get_docstring(ast.parse(path.read_text()))]
    assert silent == []


def test_every_public_name_is_there_and_explained():
    for name in jdl.__all__:
        assert getattr(jdl, name).__doc__
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        jdl.trian  # noqa: B018


@dataclass(frozen=True, kw_only=True)
class Few(Data):
    """The first examples of each split of another set."""

    whole: Data

    def load(self) -> dict[str, Source]:
        splits = self.whole.splits()
        return {name: Subset(s, np.arange(min(12, len(s)))) for name, s in splits.items()}

    def full_name(self):
        return self.whole.full_name()


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A data directory with a tiny MNIST."""
    raw, root = tmp_path_factory.mktemp("raw"), tmp_path_factory.mktemp("sets")
    for part in ("train", "t10k"):
        for kind, shape in (("images-idx3", (20, 28, 28)), ("labels-idx1", (20,))):
            head = bytes((0, 0, 8, len(shape))) + struct.pack(f">{len(shape)}I", *shape)
            content = np.random.default_rng(0).integers(0, 10, shape, dtype=np.uint8).tobytes()
            (raw / f"{part}-{kind}-ubyte.gz").write_bytes(gzip.compress(head + content))
    prepare("mnist", raw=raw, data_dir=root, report=lambda sentence: None)
    return root


def found(data, tiny):
    """The data of an experiment where they can be had: tiny, or the real ones."""
    if isinstance(data, (Pairs, Streams, Tokens)):
        return dataclasses.replace(data, text=found(data.text, tiny))
    if isinstance(data, Texts):
        fractions = {"test_fraction": 0.0, "validation_fraction": 0.0}
        few = Few(whole=found(data.text, tiny), **fractions)
        return dataclasses.replace(data, text=few, encoding=BPE(300))
    places, reason = [data], ""
    if isinstance(data, TFDS):
        places = [dataclasses.replace(data, data_dir=str(root)) for root in (tiny, SHARED)]
    elif isinstance(data, Series):
        series = SHARED.with_name("time_series") / data.path
        places = [dataclasses.replace(data, path=str(series))]
    for place in places:
        try:
            place.splits()
        except UserError as error:
            reason = str(error)
        else:
            return place
    return pytest.skip(reason)


@pytest.mark.parametrize(
    "path",
    [
        # Others read data that few have; `tests/test_experiments.py` has stand-ins for theirs.
        pytest.param(
            path,
            marks=()
            if path.stem.startswith(AT_HAND) and path.stem not in LARGE
            else pytest.mark.slow,
        )
        for path in sorted((ROOT / "experiments").glob("*.py"))
    ],
    ids=lambda p: p.stem,
)
def test_an_experiment_takes_a_step(path, tiny, tmp_path):
    experiment = jdl.load(path).experiment
    whole = found(experiment.data, tiny)
    data = Few(
        whole=whole,
        transforms=whole.transforms,
        device_transforms=whole.device_transforms,
        test_fraction=0.0,
        validation_fraction=0.0,
    )
    changes = {"data": data, "steps": 6, "batch_size": 4 * experiment.num_microbatches}
    run = TrainingRun(dataclasses.replace(experiment, **changes), path.stem, tmp_path)
    assert run.prediction.shape[0] == run.experiment.batch_size

    state = run.compiled.init(jax.random.key(0))
    before = jax.device_get(run.compiled.gather(state))
    step_inputs = run.step_inputs(0)
    # The first may be one of warming up, at a rate of zero; behind weights that begin at zero
    # parameters move one step later.
    for step in range(1, 6):
        state, packed = run.compiled.update(state, run.compiled.put(next(step_inputs)))
        (metrics,) = packed.unpack()
        assert float(metrics["skipped"].total) == 0
        assert np.isfinite(metrics["loss"].compute())
        after = jax.device_get(run.compiled.gather(state))
        assert int(after.step) == step
        stayed = jax.tree.map(np.array_equal, before.params, after.params)
        if not any(jax.tree.leaves(stayed)):
            return
    pytest.fail(f"parameters have not moved: {stayed}")
