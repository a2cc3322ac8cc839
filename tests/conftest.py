"""Two virtual devices and checked types for every test; set before JAX starts its backend."""

import atexit
import gc
import os
import shutil
import tempfile
from pathlib import Path

import pytest
from beartype import BeartypeConf, FrozenDict
from beartype.claw import beartype_package

from tests.flags import devices

# The garbage collector's default thresholds cost a tenth of the tests' time: tracing makes many
# objects and few cycles.
gc.set_threshold(100_000, 20, 50)
os.environ["XLA_FLAGS"] = devices(2)
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
os.environ.pop("TFDS_DATA_DIR", None)
# Each checkpoint waits for `fsync`: on a disk longer than most tests compute.
_memory = Path("/dev/shm")
if os.access(_memory, os.W_OK) and shutil.disk_usage(_memory).free > 4 << 30:
    os.environ.setdefault("TMPDIR", str(_memory))
    tempfile.tempdir = None  # pytest has asked for it before
# All that is compiled is kept for this process and those that it starts, the workers too, and then
# forgotten: loading a program takes a quarter of the time of compiling it.
if "PYTEST_XDIST_WORKER" not in os.environ:
    _caches = tempfile.TemporaryDirectory(prefix="jdl-tests-")
    atexit.register(_caches.cleanup)
    os.environ["XDG_CACHE_HOME"] = _caches.name
    os.environ["JAX_COMPILATION_CACHE_DIR"] = f"{_caches.name}/compiled"
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")

import jax  # noqa: E402 - it reads what was set above

# Checks every annotated argument and result of the package while it is tested; not of the state,
# in whose place JAX puts shapes, shardings and None while it maps over trees, nor of operations
# with gradients of their own, which it would wrap. Where runs are trained together, arrays stand in
# the place of numbers.
beartype_package(
    "jdl",
    conf=BeartypeConf(
        hint_overrides=FrozenDict({float: float | int | jax.Array}),
        claw_skip_package_names=("jdl.state", "jdl.ops"),
    ),
)


@pytest.fixture(scope="module", autouse=True)
def _forget():
    """Lets go of what was compiled for a module: a process that holds all of it becomes slow."""
    import jax

    yield
    jax.clear_caches()


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """The directory of a run of `tests.interruptions` that was never stopped."""
    import jdl
    from tests.interruptions import make_experiment

    workdir = tmp_path_factory.mktemp("plain") / "run"
    jdl.train(make_experiment(), workdir)
    return workdir


@pytest.fixture
def saved(tmp_path):
    """A directory with a small model in the layout of transformers, the model, its parameters."""
    from jdl.pretrained import save
    from tests.saved_models import OURS, made

    model = OURS["bert, classes"]
    params = made(model)
    save(model, params, tmp_path / "bert")
    return tmp_path / "bert", model, params


@pytest.fixture(scope="module")
def clouds(tmp_path_factory):
    """The file of `tests.experiment_source`."""
    from tests.experiment_source import SOURCE

    path = tmp_path_factory.mktemp("files") / "clouds.py"
    path.write_text(SOURCE)
    return path


@pytest.fixture(scope="module")
def trained(tmp_path_factory, clouds):
    """The directory of a finished run of `tests.experiment_source`."""
    from jdl.cli.main import main
    from tests.experiment_source import FLAGS

    workdir = tmp_path_factory.mktemp("runs") / "run"
    assert main(["train", str(clouds), "--workdir", str(workdir), *FLAGS]) == 0
    return workdir


@pytest.fixture
def command(capsys, monkeypatch, tmp_path):
    """Gives a command in an empty directory; returns exit code, output and complaints."""
    from jdl.cli.main import main

    monkeypatch.chdir(tmp_path)

    def run(*words):
        capsys.readouterr()
        code = main([str(word) for word in words])
        return code, *capsys.readouterr()

    return run
