"""Attribution methods against formulas, and against Captum's values on the same networks."""

import dataclasses
import itertools
import json
import math
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jdl
from jdl import explain as ex
from jdl.explain import cards, method
from jdl.explain.features import grid_features
from jdl.explain.gradients import quadrature
from jdl.explain.method import Request
from jdl.models import CNN, RNN, ViT
from jdl.state import TrainState
from jdl.tasks import BinaryClassification, Classification
from tests.explain import twins

CAPTUM = json.loads(Path(__file__).with_name("captum.json").read_text())


def make_request(model, task, params, target=None, **arrays):
    """Returns a request about the predicted class."""
    count = len(next(iter(arrays.values())))
    arrays = {name: jnp.asarray(array) for name, array in arrays.items()}
    batch = {**arrays, "mask": np.ones(count, bool)}
    state = TrainState(
        step=jnp.zeros((), jnp.int32), key=jax.random.key(0), params=params, collections={},
        opt_state=(),
    )  # fmt: skip
    target = target or ex.Class()
    subject = ex.Subject(task, model, state, target, batch)
    prediction = np.asarray(jax.jit(lambda: task.predict(model, state, batch))())
    resolved, _ = target.resolve(task, prediction, batch, ())
    x = subject.inputs(batch)
    return Request(
        subject=subject, params=params, x=x,
        rows={"batch": jax.tree.map(np.asarray, batch), "target": resolved},
        features=grid_features(x, subject.embedded, {}),
    )  # fmt: skip


@pytest.fixture(scope="module")
def requests():
    """Requests about the twins of `captum_values`."""
    cnn = CNN(channels=(3, 4), dense=(5,), num_classes=3)
    lstm = RNN(vocab_size=11, embed_dim=3, hidden_size=4, features=2)
    vit = ViT(
        patch_size=2, num_layers=1, num_heads=2, embed_dim=8, mlp_dim=12, num_classes=3, pool="mean"
    )

    def params(shapes):
        return twins.tree(twins.weights(shapes))

    return {
        "cnn": make_request(cnn, Classification(), params(twins.CNN), image=twins.images(8)),
        "lstm": make_request(
            lstm, Classification(inputs="tokens"), params(twins.LSTM), tokens=twins.tokens()
        ),
        "vit": make_request(vit, Classification(), params(twins.VIT), image=twins.images(4)),
    }


ZERO = ex.Baseline("zero")


@pytest.mark.parametrize(
    ("name", "key", "asked"),
    [
        *((n, "gradient", ex.Gradient()) for n in ("cnn", "lstm", "vit")),
        *(
            (
                n,
                "integrated_gradients",
                ex.IntegratedGradients(steps=64, max_steps=64, baseline=ZERO),
            )
            for n in ("cnn", "lstm", "vit")
        ),
        ("cnn", "occlusion", ex.Occlusion(window=3, stride=1)),
        ("lstm", "occlusion", ex.Occlusion(baseline=ZERO)),
        ("vit", "occlusion", ex.Occlusion(window=2, stride=1)),
        ("cnn", "deep_lift", ex.DeepLIFT(baseline=ex.Baseline("mean"))),
        *(
            (n, "deep_lift", ex.DeepLIFT(baseline=ZERO, products="gradient"))
            for n in ("lstm", "vit")
        ),
    ],
)
def test_attributions_equal_captums(requests, name, key, asked) -> None:
    request = dataclasses.replace(requests[name], reference=lambda: {"image": twins.baselines()})
    np.testing.assert_allclose(request.scores(), CAPTUM[name]["scores"], rtol=1e-4, atol=1e-5)
    ((_, found),) = asked.attribute(request).items()
    expected = np.array(CAPTUM[name][key])
    np.testing.assert_allclose(np.broadcast_to(found, expected.shape), expected, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "layer"), [("cnn", "Conv_1"), ("lstm", "LSTM_0"), ("vit", "block_0.norm1")]
)
def test_grad_cam_equals_captums(requests, name, layer) -> None:
    request, cam = requests[name], ex.GradCAM(layer=layer)
    expected = np.array(CAPTUM[name]["grad_cam"])
    found = np.asarray(cam.maps(request, cam.find(request)))
    np.testing.assert_allclose(
        found.reshape(len(found), -1), expected.reshape(len(found), -1), atol=1e-4
    )
    ((key, x),) = request.x.items()
    assert cam.attribute(request)[key].shape == (*x.shape[:-1], 1)
    # Without a name the last layer with pixels or positions is found, on which the class depends.
    last = {"cnn": "Conv_1", "lstm": "LSTM_0", "vit": "norm"}
    assert ex.GradCAM().find(request) == last[name]


@pytest.mark.parametrize("name", ["cnn", "lstm", "vit"])
@pytest.mark.parametrize(
    "asked", [ex.DeepLIFT(), ex.IntegratedGradients()], ids=lambda m: type(m).__name__
)
def test_attributions_sum_to_the_difference_from_the_baseline(requests, name, asked) -> None:
    request = requests[name]
    ((_, found),) = asked.attribute(request).items()
    wanted = request.scores() - asked.baseline_scores(request)
    rtol = asked.tolerance if isinstance(asked, ex.IntegratedGradients) else 1e-3
    np.testing.assert_allclose(found.reshape(len(found), -1).sum(1), wanted, rtol=rtol, atol=1e-4)


@pytest.mark.parametrize("steps", [1, 50, 300, 513, 1024])
def test_a_path_is_integrated_by_rules_in_a_row(steps) -> None:
    nodes, weights = quadrature(steps)
    assert nodes.shape == weights.shape == (steps,)
    assert np.all(np.diff(nodes) > 0)
    kink = 0.3  # a ReLU that starts on the way
    np.testing.assert_allclose(weights.sum(), 1, rtol=1e-12)
    np.testing.assert_allclose((weights * nodes).sum(), 0.5, rtol=1e-12)
    assert abs((weights * (nodes > kink)).sum() - (1 - kink)) <= 2 / steps


def test_chunks_of_bounded_memory_give_the_same(requests, monkeypatch) -> None:
    asked = ex.IntegratedGradients(steps=8, max_steps=8)
    whole = asked.attribute(requests["cnn"])["image"]
    monkeypatch.setattr(method, "ELEMENTS", 4 * 64)  # four images at once
    assert requests["cnn"].points(1000) == 4
    np.testing.assert_allclose(asked.attribute(requests["cnn"])["image"], whole, atol=1e-6)


class Product(nn.Module):
    """A function of six inputs with products, of which Shapley values are no gradients."""

    @nn.compact
    def __call__(self, x):
        score = (
            x[:, 0] * x[:, 1] + jnp.sin(3 * x[:, 2]) * x[:, 3] * x[:, 0] - x[:, 4] ** 2 * x[:, 5]
        )
        return jnp.stack([score, -score], 1)


@pytest.fixture(scope="module")
def product():
    x = np.random.default_rng(0).normal(size=(2, 6)).astype(np.float32)
    return make_request(
        Product(), Classification(inputs="x", targets="y"), {}, target=ex.Class(0), x=x
    )


def test_kernel_shap_over_all_coalitions_is_exact(product) -> None:
    count = 6
    sets = np.array(list(itertools.product((0, 1), repeat=count)), np.float32)
    # Values of all coalitions, in the order of their binary numbers.
    x = product.x["x"]
    each = np.stack([product.scores({"x": x * keep}) for keep in sets]).astype(np.float64)
    number = sets @ (2 ** np.arange(count)[::-1])
    assert (number == np.arange(len(sets))).all()
    expected = np.zeros((2, count))
    for place in range(count):
        for keep, index in zip(sets, range(len(sets)), strict=True):
            if keep[place] == 0:
                size = int(keep.sum())
                weight = math.factorial(size) * math.factorial(count - size - 1)
                more = index + 2 ** (count - 1 - place)
                expected[:, place] += weight / math.factorial(count) * (each[more] - each[index])
    found = ex.KernelSHAP().values(product)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    sampled = ex.ShapleySampling(orders=2000).attribute(product)["x"]
    np.testing.assert_allclose(sampled, expected, atol=0.1)
    np.testing.assert_allclose(sampled.sum(1), product.scores(), atol=1e-4)


def test_lime_and_gradients_of_a_linear_model_are_its_weights() -> None:
    x = np.random.default_rng(1).normal(size=(2, 5)).astype(np.float32)
    kernel = np.random.default_rng(2).normal(size=(5, 3)).astype(np.float32)
    request = make_request(
        nn.Dense(3, use_bias=False), Classification(inputs="x", targets="y"), {"kernel": kernel},
        target=ex.Class(1), x=x,
    )  # fmt: skip
    own = x * kernel[:, 1]
    for asked in (
        ex.IntegratedGradients(steps=1),
        ex.InputXGradient(),
        ex.KernelSHAP(),
        ex.DeepLIFT(),
    ):
        np.testing.assert_allclose(asked.attribute(request)["x"], own, atol=1e-5)
    lime = ex.LIME(ridge=1e-8).attribute(request)["x"]
    np.testing.assert_allclose(lime, own, atol=1e-4)
    smooth = ex.SmoothGrad(samples=5).attribute(request)["x"]
    np.testing.assert_allclose(smooth, np.tile(kernel[:, 1], (2, 1)), atol=1e-5)


def test_expected_gradients_are_the_mean_over_training_examples(product) -> None:
    known = np.random.default_rng(3).normal(size=(3, 6)).astype(np.float32)
    request = dataclasses.replace(product, reference=lambda: {"x": known})
    asked = ex.IntegratedGradients(baseline=ex.Baseline("expected"), max_steps=64)
    found = asked.attribute(request)["x"].sum(1)
    mean = np.mean([product.scores({"x": np.tile(k, (2, 1))}) for k in known], 0)
    np.testing.assert_allclose(found, product.scores() - mean, rtol=0.02, atol=1e-2)
    with pytest.raises(jdl.UserError, match="needs training examples"):
        asked.attribute(product)


def test_attention_rollout_is_the_product_of_layers(requests) -> None:
    found = ex.AttentionRollout().attribute(requests["vit"])["image"]
    w = twins.weights(twins.VIT)
    x = twins.images(4).reshape(3, 2, 2, 2, 2, 1).swapaxes(2, 3).reshape(3, 4, 4)
    x = x @ w["patches.kernel"] + w["patches.bias"] + w["positions"]
    y = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    y = y * w["block_0.norm1.scale"] + w["block_0.norm1.bias"]
    joint = y @ w["block_0.attention.qkv.kernel"] + w["block_0.attention.qkv.bias"]
    joint = joint.reshape(3, 4, 2, 3, 4)
    scores = np.einsum("nthd,nshd->nhts", joint[..., 0, :], joint[..., 1, :]) / 2
    weights = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
    expected = (0.5 * weights.mean(1) + 0.5 * np.eye(4)).mean(1).reshape(3, 2, 2)
    expected = jax.image.resize(expected, (3, 4, 4), "bilinear")
    np.testing.assert_allclose(found[..., 0], expected, atol=1e-5)
    with pytest.raises(jdl.UserError, match="attention rollout needs layers"):
        ex.AttentionRollout().attribute(requests["cnn"])


class Useless(ex.Method):
    """A map that shows the input and nothing of the model."""

    def attribute(self, request):
        return {name: np.abs(x) for name, x in request.x.items()}


def test_a_useless_map_is_caught_by_its_card(requests) -> None:
    card = cards.check(requests["cnn"], Useless(), Useless().attribute(requests["cnn"]), 3)
    assert cards.last_correlation(card.randomization) == pytest.approx(1)
    assert card.random_logit == pytest.approx(1)
    assert any("random last layers" in sentence for sentence in card.failures)
    assert any("another class" in sentence for sentence in card.failures)


def test_the_card_of_a_linear_model_is_perfect(product) -> None:
    asked = ex.KernelSHAP()
    card = cards.check(product, asked, asked.attribute(product), 2)
    assert card.completeness is not None
    assert card.completeness.max() < 1e-5
    assert card.random_logit == pytest.approx(-1)  # of two logits that are each other's negative
    assert card.deletion.mean() < card.random_deletion.mean()
    assert card.insertion.mean() > card.random_insertion.mean()
    assert card.randomization == ()


class Rounding(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(3)(jnp.round(x))


class Table(nn.Module):
    @nn.compact
    def __call__(self, tokens):
        return self.param("table", nn.initializers.normal(), (11, 3))[tokens].sum(1)


class Looked(Table):
    @nn.compact
    def __call__(self, tokens):
        return self.embed(tokens).sum(1)

    def embed(self, tokens):
        return self.param("table", nn.initializers.normal(), (11, 3))[tokens]


def test_models_that_cannot_be_explained_say_what_would_work() -> None:
    x = np.random.default_rng(0).normal(0, 2, (2, 4)).astype(np.float32)
    task = Classification(inputs="x", targets="y")
    params = Rounding().init(jax.random.key(0), x)["params"]
    request = make_request(Rounding(), task, params, x=x)
    for asked in (ex.Gradient(), ex.IntegratedGradients()):
        with pytest.raises(jdl.UserError, match=r"0 everywhere.*--method occlusion"):
            asked.attribute(request)
    assert ex.Occlusion().attribute(request)["x"].any()
    texts = Classification(inputs="tokens")
    params = Table().init(jax.random.key(0), twins.tokens())["params"]
    with pytest.raises(jdl.UserError, match=r"without an embedding.*flax.linen.Embed"):
        make_request(Table(), texts, params, tokens=twins.tokens())
    request = make_request(Looked(), texts, params, tokens=twins.tokens())
    assert request.x["tokens"].shape == (3, 5, 3)
    np.testing.assert_allclose(ex.Gradient().attribute(request)["tokens"].sum((1, 2)), 5)


class Two(nn.Module):
    @nn.compact
    def __call__(self, left, right):
        words = nn.Embed(11, 3)(right).mean(1)
        return nn.Dense(1)(jnp.concatenate([left, words], 1))


def test_several_inputs_are_explained_together() -> None:
    left = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    params = Two().init(jax.random.key(0), left, twins.tokens())["params"]
    task = BinaryClassification(inputs=("left", "right"))
    request = make_request(Two(), task, params, left=left, right=twins.tokens())
    asked = ex.IntegratedGradients()
    found = asked.attribute(request)
    assert found["left"].shape == (3, 4)
    assert found["right"].shape == (3, 5, 3)
    total = sum(each.reshape(3, -1).sum(1) for each in found.values())
    np.testing.assert_allclose(total, request.scores() - asked.baseline_scores(request), rtol=0.01)
    assert request.num_features == 4 + 5
    with pytest.raises(jdl.UserError, match="slides over one image"):
        ex.Occlusion(window=2).attribute(request)
