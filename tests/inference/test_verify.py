"""Verification of image files by the embeddings of a run, on folders of persons."""

import json

import numpy as np
import pytest
from PIL import Image

import jdl

FILE = '''"""Persons."""

from jdl import Experiment
from jdl.data import ImageFolder, Scale, Selection, Views
from jdl.metrics import EqualErrorRate, RecallAtK
from jdl.models import MLP
from jdl.tasks import Classification, Embedding, SupCon

people = Selection(
    ImageFolder("people"), classes=(0, 2), test_classes=(1, 3),
    device_transforms=(Scale(), Views(2)),
)
verification = Embedding(
    objective=SupCon(), metrics=(EqualErrorRate(), EqualErrorRate(threshold=True), RecallAtK())
)
experiment = Experiment(MLP((), 4), task=verification, data=people, steps=2, batch_size=8, hooks=())
'''


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Trains in folders of two persons in train, and of two others in test."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for split, names in (("train", "ac"), ("test", "bd")):
        for name in names:
            face = rng.integers(0, 256, (4, 4, 3))
            for number in range(6):
                folder = tmp_path / "people" / split / name
                folder.mkdir(parents=True, exist_ok=True)
                pixels = (face + rng.integers(0, 9, face.shape)).clip(0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.png")
    (tmp_path / "tiny.py").write_text(FILE)
    file = jdl.load(tmp_path / "tiny.py")
    return jdl.train(file.experiment, tmp_path / "run", file=file)


def test_files_of_persons_never_seen_are_told_apart(run, command, tmp_path):
    scores = run.result["metrics"]["test"]
    assert scores["equal_error_rate"] == 0
    assert scores["recall_at_1"] == 1
    assert run.experiment.data.output_names() == ("a", "c", "b", "d")
    test = tmp_path / "people" / "test"
    first, others = test / "b" / "0.png", [test / "b" / "1.png", *sorted((test / "d").iterdir())]
    code, out, err = command("verify", "run", first, others[0], test / "d")
    assert (code, err) == (0, "")
    lines = [json.loads(line) for line in out.splitlines()]
    assert [line["other"] for line in lines] == list(map(str, others))
    assert [line["same"] for line in lines] == [True, *[False] * 6]
    pixels = np.stack([np.asarray(Image.open(path)) for path in (first, *others)])
    x = run.predict(pixels)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    assert [line["similarity"] for line in lines] == pytest.approx(x[1:] @ x[0], abs=1e-5)
    assert lines[0]["threshold"] == pytest.approx(scores["equal_error_threshold"], abs=1e-6)
    code, out, _ = command("verify", "run", first, others[1], "--threshold", "-1")
    assert json.loads(out)["same"]

    (tmp_path / "torn.png").write_bytes(b"no image")
    assert "torn.png" in complaint(command, "run", first, "torn.png")
    Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save("large.png")
    assert command("verify", "run", first, "large.png")[0] == 0, "images are resized"
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    del result["metrics"]["test"]["equal_error_threshold"]
    (tmp_path / "run" / "result.json").write_text(json.dumps(result))
    assert "give one with --threshold" in complaint(command, "run", first, others[0])
    source = FILE.replace("task=verification", "task=Classification()").replace(" Views(2)", "")
    (tmp_path / "other.py").write_text(source)
    file = jdl.load(tmp_path / "other.py")
    jdl.train(file.experiment, tmp_path / "other", file=file)
    found = complaint(command, "other", first, others[0], "--threshold", "0")
    assert "name a run of the task Embedding" in found


def complaint(command, *words):
    code, out, err = command("verify", *words)
    assert code != 0
    assert out == ""
    return err
