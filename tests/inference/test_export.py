"""Exported predictions equal the run's, for any number of rows and without jdl."""

import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.cudnn import fused_attention_stablehlo
from numpy.testing import assert_array_equal

import jdl
from jdl.data import Arrays, Scale
from jdl.inference.export import export_prediction, signature, write_export
from jdl.models import CNN, GPT, RNN
from jdl.optimizers import SGD
from jdl.tasks import BinaryClassification, Classification, LanguageModeling
from jdl.trainer.opening import open
from jdl.trainer.record import read_run

pytest.importorskip("flatbuffers", reason="flatbuffers are not installed")

READ = """
import sys
import jax
import numpy as np
from jax import export

with open(sys.argv[1], "rb") as file:
    function = export.deserialize(bytearray(file.read()))
np.save(sys.argv[3], function.call(image=np.load(sys.argv[2])))
print(sorted({"jdl", "flax", "optax", "orbax"} & {name.split(".")[0] for name in sys.modules}))
"""


def test_an_export_gives_the_runs_predictions_without_jdl(trained, command, tmp_path):
    file = tmp_path / "clouds.stablehlo"
    code, out, err = command("export", trained, file)
    assert (code, err) == (0, "")
    assert out == f"{file}: (image: float32[rows,3]) -> float32[rows,2] on cpu, cuda\n"
    images = np.random.default_rng(0).normal(size=(11, 3)).astype(np.float32)
    np.save(tmp_path / "images.npy", images)
    command_line = [sys.executable, "-c", READ, file, tmp_path / "images.npy", tmp_path / "out.npy"]
    done = subprocess.run(command_line, capture_output=True, text=True, timeout=600)
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr
    recorded = read_run(trained)
    run = open(trained, recorded.experiment)
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), run.predict(images), atol=1e-6)
    assert command("export", trained, file)[0] == 0, "an export may be replaced"


PIXELS = np.random.default_rng(0).integers(0, 255, (16, 8, 8, 1)).astype(np.uint8)
TOKENS = np.random.default_rng(0).integers(1, 9, (16, 7)).astype(np.int32)
LABELS = np.arange(16) % 2
CASES = {
    "statistics and device transforms": (
        CNN(channels=(4,), dense=(5,), num_classes=2, batch_norm=True),
        Classification(),
        {"image": PIXELS, "label": LABELS},
        "(image: uint8[rows,8,8,1]) -> float32[rows,2] on cpu, cuda",
    ),
    "attention": (
        GPT(vocab_size=9, max_position_embeddings=6, num_layers=1, num_heads=2, embed_dim=8),
        LanguageModeling(),
        {"tokens": TOKENS},
        "(tokens: int32[rows,7]) -> float32[rows,6,9] on cpu, cuda",
    ),
    "recurrence": (
        RNN(vocab_size=9, embed_dim=4, hidden_size=5),
        BinaryClassification(inputs="tokens"),
        {"tokens": TOKENS, "label": LABELS},
        "(tokens: int32[rows,7]) -> float32[rows] on cpu, cuda",
    ),
}


def trained_on(model, task, arrays, tmp_path):
    data = Arrays(
        {"train": arrays},
        test_fraction=0.0,
        validation_fraction=0.0,
        device_transforms=(Scale(),) if "image" in arrays else (),
    )
    experiment = jdl.Experiment(
        model=model, task=task, data=data, optimizer=SGD(0.1, ema_decay=0.5), steps=2, batch_size=4,
        hooks=(),
    )  # fmt: skip
    return jdl.train(experiment, tmp_path / "run")


@pytest.mark.parametrize(("model", "task", "arrays", "expected"), CASES.values(), ids=CASES)
def test_the_prediction_is_exported_with_all_that_it_takes(model, task, arrays, expected, tmp_path):
    run = trained_on(model, task, arrays, tmp_path)
    write_export(tmp_path / "file", export_prediction(run))
    function = jax.export.deserialize(bytearray((tmp_path / "file").read_bytes()))
    assert signature(function) == expected
    for rows in (1, 6):
        given = {task.inputs: arrays[task.inputs][:rows]}
        np.testing.assert_allclose(
            function.call(**given), run.predict(given[task.inputs]), rtol=1e-5, atol=1e-6
        )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "run"]


HALF = GPT(
    vocab_size=9, max_position_embeddings=6, num_layers=1, num_heads=1, embed_dim=8,
    dtype=jnp.bfloat16,
)  # fmt: skip


@pytest.mark.parametrize(
    ("model", "task", "arrays", "sign"),  # an operation that the forms have more or less of
    [
        (*CASES["statistics and device transforms"][:3], "convolution("),
        (*CASES["attention"][:3], "reshape "),
        (HALF, LanguageModeling(), {"tokens": TOKENS}, "reshape "),
        (*CASES["recurrence"][:3], "reshape "),
    ],
    ids=["convolution", "attention", "attention in 16 bits", "recurrence"],
)
def test_each_platform_has_its_own_form(model, task, arrays, sign, tmp_path, monkeypatch):
    # As on a machine with an NVIDIA GPU, where attention in 16 bits is cuDNN's.
    monkeypatch.setattr(sys.modules["jdl.ops.attention"], "_has_cudnn", lambda: True)
    monkeypatch.setattr(fused_attention_stablehlo, "check_cudnn_version", lambda: 91100)
    run = trained_on(model, task, arrays, tmp_path)
    found = {}
    for platforms in (("cpu",), ("cuda",), ("cpu", "cuda", "tpu")):
        function = export_prediction(run, platforms)
        assert function.platforms == platforms
        assert "cudnn" not in function.mlir_module()
        found[platforms] = function.mlir_module().count(f"stablehlo.{sign}")
    cpu, cuda, both = found.values()
    assert cpu != cuda
    assert both > max(cpu, cuda), "it holds the forms of both"
    given = arrays[task.inputs][:4]
    assert_array_equal(function.call(**{task.inputs: given}), run.predict(given))


def test_platforms_are_chosen_on_the_command_line(trained, command, tmp_path):
    code, out, err = command("export", trained, "a", "--platforms", "tpu", "cpu", "cpu")
    assert (code, err) == (0, "")
    assert out == "a: (image: float32[rows,3]) -> float32[rows,2] on tpu, cpu\n"
    code, _, err = command("export", trained, "b", "--platforms", "gpu")
    assert (code, err) == (2, "jdl: --platforms: 'gpu' is not of type cpu|cuda|rocm|tpu\n")


def test_a_file_that_cannot_be_written_is_named(trained, command, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    for file, complaint in (
        ("nowhere/a.stablehlo", "there is no directory nowhere to write a.stablehlo into"),
        (".", ". is a directory: name a file"),
        ("notes.txt", "notes.txt exists and is no export that could be replaced"),
    ):
        code, out, err = command("export", trained, file)
        assert (code, out) == (2, "")
        assert err.startswith(f"jdl: {complaint}")
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_run_that_cannot_be_exported_is_named(trained, command, tmp_path):
    file = tmp_path / "a.stablehlo"
    assert "is no run directory" in command("export", tmp_path, file)[2]
    begun = tmp_path / "begun"
    begun.mkdir()
    for name in ("experiment.json", "experiment.py", "overrides.json"):
        (begun / name).write_bytes((trained / name).read_bytes())
    code, _, err = command("export", begun, file)
    assert (code, err) == (2, f"jdl: {begun} has no checkpoint yet: train it first\n")
    assert not file.exists()


def test_an_unfinished_run_is_exported_and_said_to_be(trained, command, tmp_path):
    shutil.copytree(trained, tmp_path / "run")
    (tmp_path / "run" / "result.json").unlink()
    code, _, err = command("export", tmp_path / "run", "a.stablehlo")
    assert (code, err) == (
        0,
        f"{tmp_path / 'run'} is not finished: this is its newest checkpoint\n",
    )
