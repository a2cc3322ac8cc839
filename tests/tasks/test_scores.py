"""Scores of samples: of a named network, under every strategy, and what is refused."""

import dataclasses
from dataclasses import dataclass

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from sklearn.neighbors import NearestNeighbors

import jdl
from jdl import Experiment
from jdl.data import Arrays, Scale
from jdl.errors import UserError
from jdl.metrics import Mean, frechet_distance, kernel_distance, precision_and_recall
from jdl.models import CNN, MLP
from jdl.optimizers import SGD
from jdl.parallel import FullySharded, Pmap, Single
from jdl.tasks import SampleScores, Task, row_keys

CLASSIFIER = MLP((6,), 3)
PIXELS = np.random.default_rng(0).integers(0, 256, (120, 8, 8, 1)).astype(np.uint8)
LABELS = np.arange(120) % 3


class Generator(nn.Module):
    """Images of one color, by a learned factor."""

    shape: tuple[int, ...] = (8, 8, 1)

    @nn.compact
    def __call__(self, keys):
        scale = self.param("scale", nn.initializers.ones, ())
        return scale * jax.vmap(lambda key: jax.random.uniform(key, self.shape))(keys)


@dataclass(frozen=True, kw_only=True)
class Generation(Task):
    scores: SampleScores

    def init(self, model, key, batch):
        return dict(model.init(key, row_keys(batch)))

    def batch_metrics(self, model, params, state, batch, *, train, key=None):
        made = model.apply({"params": params}, row_keys(batch))
        error = (made.mean((1, 2, 3)) - batch["image"].mean((1, 2, 3))) ** 2
        return {"loss": Mean.of(error, batch["mask"])}, state.collections

    def predict(self, model, state, batch):
        return model.apply({"params": state.params}, row_keys(batch))

    def has_host_metrics(self, split, data):
        return split in self.scores.splits

    def host_outputs(self, model, state, batch):
        return self.scores.outputs(state, self.sample(model, state, batch), batch["image"])

    def compute_metrics(self, prediction, batch, data):
        return self.scores.compute_metrics(prediction, data, batch["label"])


DATA = Arrays(
    {
        "train": {"image": PIXELS[:50], "label": LABELS[:50]},
        "validation": {"image": PIXELS[40:43], "label": LABELS[40:43]},
        "test": {"image": PIXELS[50:], "label": LABELS[50:]},
    },
    device_transforms=(Scale(),),
)
SINGLE = Single()


def make(scores, **changes):
    settings = {
        "model": Generator(), "task": Generation(scores=scores), "data": DATA,
        "optimizer": SGD(0.1), "hooks": (), "strategy": SINGLE, "steps": 2, "batch_size": 16,
    }  # fmt: skip
    return Experiment(**(settings | changes))


def weights():
    """Of the classifier, by path."""
    rng = np.random.default_rng(1)
    shapes = {"Dense_0": (64, 6), "logits": (6, 3)}
    kernels = {f"params.{name}.kernel": rng.normal(size=shape) for name, shape in shapes.items()}
    biases = {f"params.{name}.bias": rng.normal(size=shape[1]) for name, shape in shapes.items()}
    return {name: np.float32(array) for name, array in (kernels | biases).items()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    safetensors = pytest.importorskip("safetensors.numpy")
    folder = tmp_path_factory.mktemp("scores")
    (folder / "classifier").mkdir()
    safetensors.save_file(weights(), folder / "classifier" / "model.safetensors")
    return folder


def scores_of(folder, **changes):
    run = str(folder / "classifier")
    return SampleScores(CLASSIFIER, run=run, **({"subset_size": 20} | changes))


RUNS = {}


def trained(folder, strategy=SINGLE):
    key = type(strategy).__name__
    if key not in RUNS:
        RUNS[key] = jdl.train(make(scores_of(folder), strategy=strategy), folder / key)
    return RUNS[key]


def test_scores_are_those_of_the_samples_and_images_in_the_networks_features(folder):
    run = trained(folder)
    found = run.result["metrics"]["test"]
    samples, images = run.sample(70).pixels, PIXELS[50:] / np.float32(255)
    params = weights()

    def network(x):
        x = np.asarray(x).reshape(len(x), -1)
        x = np.maximum(x @ params["params.Dense_0.kernel"] + params["params.Dense_0.bias"], 0)
        logits = x @ params["params.logits.kernel"] + params["params.logits.bias"]
        return x, scipy.special.softmax(logits, axis=1)

    (made, chosen), (real, truth) = map(network, (samples, images))
    scale = np.sqrt((real.astype(float) ** 2).mean())
    made, real = made / scale, real / scale
    shares = np.bincount(chosen.argmax(1), minlength=3) / 70
    training = PIXELS[:50].reshape(50, -1) / 255
    near = NearestNeighbors(n_neighbors=1).fit(training).kneighbors
    precision, recall = precision_and_recall(made, real)
    expected = {
        "loss": found["loss"],
        "kernel_distance": kernel_distance(made, real, subset_size=20)[0],
        "frechet_distance": frechet_distance(made, real),
        "precision": precision,
        "recall": recall,
        "confidence": chosen.max(1).mean(),
        "real_confidence": truth.max(1).mean(),
        "min_class_share": shares.min(),
        "max_class_share": shares.max(),
        "class_accuracy": (chosen.argmax(1) == LABELS[50:]).mean(),
        "nearest_distance": near(samples.reshape(70, -1))[0].mean(),
        "real_nearest_distance": near(images.reshape(70, -1))[0].mean(),
    }
    assert found == pytest.approx(expected, rel=1e-3)
    assert run.result["signatures"]["kernel_distance"] == (
        f"inputs of logits in MLP of {folder / 'classifier'}, 70 samples"
    )
    lines = (folder / "Single" / "predictions.test.txt").read_text().splitlines()
    assert lines[0] == f"{chosen[0].argmax()} {chosen[0].max():.4f}"
    few = run.result["metrics"]["validation"]
    assert {"kernel_distance", "confidence"} < set(few)
    assert not {"precision", "recall"} & set(few)  # of three images
    assert few["real_nearest_distance"] == 0  # which are among the training images
    assert run.higher_is_better("kernel_distance") is False


@pytest.mark.parametrize(
    "strategy",
    [FullySharded(2, min_elements=1), Pmap(2)],
    ids=lambda x: type(x).__name__,
)
def test_scores_are_the_same_under_every_strategy_and_again(folder, strategy):
    expected = trained(folder).result["metrics"]["test"]
    run = trained(folder, strategy)
    assert run.result["metrics"]["test"] == pytest.approx(expected, rel=1e-4, abs=1e-6)
    if strategy == Pmap(2):  # compiling takes most of the time of this test
        return
    again = jdl.open(run.workdir, run.experiment).evaluate("test")
    assert again == pytest.approx(run.result["metrics"]["test"], rel=1e-6)


def test_samples_that_are_not_finite_have_fewer_scores_and_lose_nothing(folder):
    run = trained(folder)
    state = run.gather_state()
    found = run.evaluate("test", state.replace(params={"scale": jnp.nan * state.params["scale"]}))
    assert "real_confidence" in found
    assert not {"kernel_distance", "frechet_distance", "precision", "nearest_distance"} & set(found)


@dataclass(frozen=True, kw_only=True)
class Repeat:
    """Repeats images along an axis."""

    axis: int

    def __call__(self, batch, keys):
        return {**batch, "image": jnp.repeat(batch["image"], 3, self.axis)}


@pytest.mark.parametrize("axis", [2, 3], ids=["size", "channels"])
def test_a_network_of_another_size_or_other_channels_is_refused(folder, tmp_path, axis):
    data = dataclasses.replace(DATA, device_transforms=(Scale(), Repeat(axis=axis)))
    shape = {2: (8, 24, 1), 3: (8, 8, 3)}[axis]
    message = (
        r"'scores' of the task: .*Dense_0\.kernel, of shape \(192, 6\) .* \(64, 6\) in .*"
        r"images of the same height, width and channels"
    )
    with pytest.raises(UserError, match=message):
        jdl.train(make(scores_of(folder), model=Generator(shape), data=data), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("model", "scores", "message"),
    [
        (
            Generator((8, 8, 3)),
            SampleScores(CLASSIFIER),
            r"samples of shape \(8, 8, 3\) cannot be scored .* of shape \(8, 8, 1\)",
        ),
        (
            Generator(),
            SampleScores(CLASSIFIER, layer="logit"),
            r"task\.scores\.layer: MLP has no module 'logit'; did you mean 'logits'",
        ),
        (
            Generator(),
            SampleScores(CNN((4,), (6,), 3), layer="Conv_0"),
            r"outputs of Conv_0 have shape \(16, 8, 8, 4\), not \(batch, classes",
        ),
    ],
    ids=["samples", "layer", "outputs"],
)
def test_what_does_not_fit_is_a_sentence_before_training(tmp_path, model, scores, message):
    with pytest.raises(UserError, match=message):
        jdl.train(make(scores, model=model), tmp_path / "run")
    assert not (tmp_path / "run").exists()
