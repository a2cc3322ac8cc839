"""Bad input: a one-sentence error, if possible before compiling."""

import errno
import json
import os
from pathlib import Path
from typing import Any

import flax.linen as nn
import numpy as np
import pytest

import jdl
import jdl.files
import jdl.parallel
from jdl import UserError
from jdl.cli.main import main
from jdl.data import TFDS, Arrays, Resize, Scale
from jdl.data.pipeline import Shard, open_pipeline
from jdl.hooks import Checkpoint, EarlyStopping, Evaluate
from jdl.models import BERT, CNN, MLP, EncoderDecoder
from jdl.optimizers import SGD
from jdl.tasks import Classification, Regression, Translation


@pytest.fixture(autouse=True)
def traced(monkeypatch):
    """Grows with every compilation of the training step."""
    found, update = [], jdl.parallel.base.update

    def spy(*args, **options):
        found.append(args)
        return update(*args, **options)

    monkeypatch.setattr("jdl.parallel.base.update", spy)
    return found


def examples(count=40):
    generator = np.random.default_rng(0)
    image = generator.normal(size=(count, 4))
    return {"image": image, "label": (image[:, 0] > 0).astype(np.int64)}


def altered(name, index, value):
    arrays = examples()
    arrays[name][index] = value
    return arrays


def arrays(train=None, **options):
    """A set of which nothing is held out, unless that is asked for."""
    whole: Any = {"test_fraction": 0.0, "validation_fraction": 0.0}
    return Arrays({"train": train or examples()}, **whole | options)


def experiment(**changes):
    usual = {"model": MLP(widths=(8,), features=2), "data": arrays(), "optimizer": SGD(0.1)}
    usual |= {"steps": 6, "batch_size": 8, "runtime": jdl.Runtime(log_every=2), "hooks": ()}
    return jdl.Experiment(**usual | changes)


def pictures(odd, **options):
    """Images of 6x6 pixels, but for one."""
    image = np.empty(40, object)
    image[:] = [np.zeros((6, 9 if i == odd else 6, 1), np.uint8) for i in range(40)]
    return arrays({"image": image, "label": np.arange(40) % 2}, **options)


TEXTS = BERT(vocab_size=11, num_layers=1, num_heads=1, embed_dim=4, num_classes=2)


def tokens(largest, target=None, **options):
    """Texts of five tokens each."""
    found = examples() | {"tokens": np.full((40, 5), largest)}
    return arrays(found if target is None else found | {"target": target}, **options)


class Flat(nn.Module):
    """Gives one number per example and no axis of classes."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(1)(x)[:, 0]


class Indexing(nn.Module):
    """Counts on an axis that is not there."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(x.shape[3])(x)


FILE = """
import numpy as np
from jdl import Experiment, Runtime
from jdl.data import Arrays
from jdl.hooks import Checkpoint
from jdl.models import MLP

image = np.random.default_rng(0).normal(size=(40, 4))
experiment = Experiment(
    model=MLP(widths=(8,), features=2),
    data=Arrays({"train": {"image": image, "label": (image[:, 0] > 0).astype(int)}}),
    steps=6,
    batch_size=8,
    runtime=Runtime(log_every=2),
    hooks=(Checkpoint(every=2),),
)
"""

NAN, INFINITE = float("nan"), float("inf")

KNOWN_BEFORE = {
    "batch over two devices": (
        lambda: {"batch_size": 33},
        "batch_size: 33 .* evenly over 2 devices",
    ),
    "micro-batch over two devices": (
        lambda: {"batch_size": 12, "num_microbatches": 4},
        "batch_size: 3 examples of a microbatch cannot be divided evenly over 2 devices",
    ),
    "unknown set": (lambda: {"data": TFDS("minst", data_dir="/nowhere")}, "did you mean 'mnist'"),
    "empty split": (
        lambda: {"data": arrays({k: v[:0] for k, v in examples().items()})},
        "'train' .*empty",
    ),
    "sizes, resident": (lambda: {"data": pictures(odd=17)}, "example 17: .*with Resize"),
    "sizes, grain": (
        lambda: {"data": pictures(odd=39, pipeline="grain")},
        "example 39: .*with Resize",
    ),
    "ragged": (
        lambda: {"data": arrays({"image": [[1.0], [1.0, 2.0]] * 9, "label": [0, 1] * 9})},
        "'image' .*shape",
    ),
    "label too large": (
        lambda: {"data": arrays(altered("label", 33, 2))},
        r"split 'train': label 2 at row 33 is outside 0\.\.1",
    ),
    "negative label": (
        lambda: {"data": arrays(altered("label", 0, -1))},
        "label -1 at row 0 is outside",
    ),
    "label of another split": (
        lambda: {"data": Arrays({"train": examples(), "validation": altered("label", 5, 7)})},
        "split 'validation': label 7 at row 5",
    ),
    "float labels": (
        lambda: {"data": arrays(examples() | {"label": examples()["image"][:, 0]})},
        "'label' has .*float32, where classification needs one integer",
    ),
    "labels of two axes": (
        lambda: {"data": arrays(examples() | {"label": np.zeros((40, 2), int)})},
        r"'label' has shape \(40, 2\)",
    ),
    "labels of text": (
        lambda: {"data": arrays(examples() | {"label": np.array(["cat", "dog"] * 20)})},
        "has no array 'label' .*task.inputs and task.targets",
    ),
    "nan": (lambda: {"data": arrays(altered("image", (31, 2), NAN))}, "'train': 'image' .*row 31"),
    "infinity": (
        lambda: {"data": arrays(altered("image", (0, 0), INFINITE))},
        "NaN or infinity at row 0",
    ),
    "nan, grain": (
        lambda: {"data": arrays(altered("image", slice(None), NAN), pipeline="grain")},
        "'train': 'image' holds NaN",
    ),
    "nan of another split": (
        lambda: {"data": Arrays({"train": examples(), "validation": altered("image", 3, NAN)})},
        "'validation': 'image' .*row 3",
    ),
    "nan in targets": (
        lambda: {
            "data": arrays(examples() | {"label": np.full(40, NAN)}),
            "task": Regression(),
            "model": Flat(),
        },
        "'label' holds NaN",
    ),
    "tokens beyond the vocabulary": (
        lambda: {"data": tokens(11), "model": TEXTS, "task": Classification(inputs="tokens")},
        r"split 'train': 'tokens' has token 11, outside the model's vocabulary 0\.\.10: set mod",
    ),
    "tokens beyond the vocabulary, grain": (
        lambda: {
            "data": tokens(11, pipeline="grain"),
            "model": TEXTS,
            "task": Classification(inputs="tokens"),
        },
        "a batch of split 'train': 'tokens' has token 11",
    ),
    "targets beyond the vocabulary": (
        lambda: {
            "data": tokens(10, target=np.full((40, 5), 12)),
            "model": EncoderDecoder(vocab_size=11, num_layers=1, num_heads=1, embed_dim=4),
            "task": Translation(inputs="tokens"),
        },
        "'target' has token 12, outside the model's vocabulary",
    ),
    "no such array": (
        lambda: {"task": Classification(inputs="picture")},
        "no array 'picture' .*'image', 'label'.*task.inputs",
    ),
    "convolution of vectors": (
        lambda: {"model": CNN()},
        r"the model CNN cannot take inputs of shape \(8, 4\)",
    ),
    "an axis too few": (
        lambda: {"model": Indexing()},
        r"the model Indexing cannot take inputs of shape \(8, 4\).* \(test_bad_input.py, line ",
    ),
    "no logits": (lambda: {"model": Flat()}, r"output has shape \(8,\), .* needs logits"),
    "other targets": (
        lambda: {"task": Regression(), "model": MLP(features=3)},
        r"outputs have shape \(3,\) per example, the targets 'label' \(\)",
    ),
    "stopping on nothing": (
        lambda: {"hooks": (EarlyStopping(),)},
        "validation.loss is never scored",
    ),
    "evaluating nothing": (lambda: {"hooks": (Evaluate(splits=("trian",)),)}, "'trian'"),
    "devices that are not there": (
        lambda: {"strategy": jdl.parallel.DataParallel(devices=4)},
        "strategy.devices is 4, but only 2",
    ),
}


@pytest.mark.parametrize("case", KNOWN_BEFORE)
def test_what_can_be_known_is_said_before_compiling(case, tmp_path, traced):
    changes, message = KNOWN_BEFORE[case]
    with pytest.raises(UserError, match=message) as caught:
        jdl.train(experiment(**changes()), tmp_path / "run")
    assert len(str(caught.value).splitlines()) == 1
    assert traced == []
    assert not (tmp_path / "run").exists()


def test_images_of_several_sizes_are_brought_to_one(traced):
    data = pictures(odd=17, transforms=(Resize(height=4, width=4),))
    assert jdl.train(experiment(data=data, steps=1)).result["step"] == 1
    assert len(traced) == 1  # the cases above would show it, had they compiled anything


LATE = {
    "nan": ("image", NAN, "NaN"),
    "label too large": ("label", 2, r"label 2 .*outside 0\.\.1"),
    "negative label": ("label", -1, r"label -1 .*outside 0\.\.1"),
}


@pytest.mark.parametrize("case", LATE)
def test_what_only_the_stream_shows_is_said_then(case, tmp_path):
    name, value, message = LATE[case]
    data = arrays()
    in_memory = open_pipeline(data, data.load()["train"], "train")
    early = next(in_memory.step_inputs(0, 8, 0, Shard()))
    late = int(np.setdiff1d(np.arange(40), early)[0])
    data = arrays(altered(name, late, value), pipeline="grain")
    with pytest.raises(UserError, match=message) as caught:
        jdl.train(experiment(data=data), tmp_path / "run")
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("case", LATE)
def test_a_streamed_split_is_looked_over_where_it_is_scored(case, tmp_path):
    name, value, message = LATE[case]
    sets = {"train": examples(), "validation": altered(name, 17, value)}
    with pytest.raises(UserError, match="a batch of split 'validation'.*" + message) as caught:
        jdl.train(experiment(data=Arrays(sets, pipeline="grain")), tmp_path / "run")
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("workers", [0, 1])
def test_images_of_several_sizes_in_a_stream(tmp_path, workers):
    data = pictures(odd=17, pipeline="grain")  # not among those probed before
    changed = experiment(data=data, runtime=jdl.Runtime(workers=workers))
    with pytest.raises(UserError, match=r"\(6, 9, 1\) in example .*: .*with Resize") as caught:
        jdl.train(changed, tmp_path / "run")
    assert len(str(caught.value).splitlines()) == 1


def test_what_only_the_device_shows_ends_the_run(tmp_path):
    data = arrays(device_transforms=(Scale(divisor=0.0),))
    with pytest.raises(UserError, match="not finite for 4 steps in a row, up to step 4") as caught:
        jdl.train(
            experiment(data=data, stop_after_skipped=4, runtime=jdl.Runtime(log_every=1)),
            tmp_path / "run",
        )
    assert len(str(caught.value).splitlines()) == 1
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    skipped = [row for row in rows if row["split"] == "skipped"]
    assert [row["metrics"] for row in skipped] == [
        {"first_position": 8 * step, "last_position": 8 * step + 7} for step in range(4)
    ]


def refuse(number):
    def refused(*args, **options):
        raise OSError(number, os.strerror(number), "the file")

    return refused


@pytest.mark.parametrize("what", ["mkdir", "open"])
def test_a_disk_that_cannot_be_written(tmp_path, monkeypatch, traced, what):
    monkeypatch.setattr(Path, what, refuse(errno.EROFS))
    with pytest.raises(UserError, match="run cannot be written: Read-only file system") as caught:
        jdl.train(experiment(), tmp_path / "run")
    assert len(str(caught.value).splitlines()) == 1
    assert traced == []


def test_a_directory_that_may_not_be_written(tmp_path, traced):
    (tmp_path / "locked").mkdir(mode=0o555)
    if os.access(tmp_path / "locked", os.W_OK):
        pytest.skip("this user may write anywhere")
    with pytest.raises(UserError, match="locked/run cannot be written: Permission denied"):
        jdl.train(experiment(), tmp_path / "locked" / "run")
    assert traced == []


def test_a_directory_of_something_else(tmp_path, traced):
    (tmp_path / "thesis.tex").write_text("four years of work")
    with pytest.raises(UserError, match=r"is not empty and holds no run \(it holds thesis.tex\)"):
        jdl.train(experiment(), tmp_path)
    for workdir in (tmp_path / "thesis.tex", tmp_path / "thesis.tex" / "run"):
        with pytest.raises(UserError, match=r"cannot be written: (File exists|Not a directory)"):
            jdl.train(experiment(), workdir)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    assert (tmp_path / "thesis.tex").read_text() == "four years of work"
    assert traced == []


def test_a_disk_full_of_checkpoints(tmp_path, monkeypatch):
    saved = experiment(hooks=(Checkpoint(every=2),))
    whole = jdl.train(saved, tmp_path / "whole").result
    write = Path.write_text

    def full(self, *args, **options):
        if self.parent.name.startswith("4."):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self))
        return write(self, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", full)
        with pytest.raises(UserError, match=r"4\.0 could not be written \(.*No space") as caught:
            jdl.train(saved, tmp_path / "run")
    assert "earlier ones are intact" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    assert not (tmp_path / "run/result.json").exists()
    check_that_it_goes_on(saved, tmp_path / "run", whole)


def test_a_disk_full_of_metrics(tmp_path, monkeypatch, capsys):
    (tmp_path / "clouds.py").write_text(FILE)
    whole = jdl.train(jdl.load(tmp_path / "clouds.py").experiment, tmp_path / "whole").result
    append = jdl.files.MetricsLog.append

    def full(self, row):
        if row["step"] == 4:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        append(self, row)

    with monkeypatch.context() as patch:
        patch.setattr("jdl.files.MetricsLog.append", full)
        code = main(["train", str(tmp_path / "clouds.py"), "--workdir", str(tmp_path / "run")])
    assert code not in (0, None)
    (sentence,) = capsys.readouterr().err.splitlines()
    assert "No space left on device" in sentence
    assert "what was saved is intact" in sentence
    file = jdl.load(tmp_path / "clouds.py")
    check_that_it_goes_on(file.experiment, tmp_path / "run", whole, file=file)


def check_that_it_goes_on(experiment, workdir, whole, **options):
    """The next run resumes from the checkpoint of step 2 and ends like an uninterrupted one."""
    kept = [
        path for path in (workdir / "checkpoints").iterdir() if (path / "manifest.json").exists()
    ]
    assert [path.name.split(".")[0] for path in kept] == ["2"]
    run = jdl.train(experiment, workdir, **options)
    assert run.result["params_sha256"] == whole["params_sha256"]
    assert run.result["metrics"] == whole["metrics"]
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if row["split"] == "train"] == [2, 4, 6]
