"""LoRA: starts as the model, trains its factors alone, and merges into the same function."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jdl
from jdl.data import Arrays
from jdl.inference.export import export_prediction
from jdl.layers import LoRA, merge_lora
from jdl.models import BERT, CNN, GPT
from jdl.optimizers import AdamW
from jdl.parallel import Single
from jdl.pretrained import InitFrom, load, save
from jdl.tasks import Classification
from jdl.tracing import mode_arguments, takes_argument
from tests.saved_models import leaves, made

SIZES = {
    "vocab_size": 11, "max_position_embeddings": 6, "num_layers": 2, "num_heads": 2, "embed_dim": 8,
}  # fmt: skip
BASE = BERT(**SIZES, num_classes=3, pool="mean", dropout_rate=0.0)
TOKENS = np.random.default_rng(0).integers(1, 11, (32, 6)).astype(np.int32)
GIVEN = jnp.asarray(TOKENS[:2])
DATA = {"train": {"tokens": TOKENS, "label": TOKENS[:, 0] % 3}}


def adapted(model=BASE, **fields):
    return LoRA(model, **{"rank": 2, "alpha": 4.0, **fields})


def test_the_paths_are_those_of_the_model_and_the_start_is_the_model():
    params = made(BASE, GIVEN)
    found = adapted().init(jax.random.key(1), GIVEN)["params"]
    more = leaves(found).keys() - leaves(params).keys()
    layers = [f"block_{i}.attention.{name}" for i in range(2) for name in ("qkv", "output")]
    assert more == {f"{layer}.lora_{x}" for layer in layers for x in "ab"}
    assert not np.any(found["block_0"]["attention"]["qkv"]["lora_b"])
    start = adapted().apply({"params": found}, GIVEN)
    np.testing.assert_array_equal(start, BASE.apply({"params": found}, GIVEN))


@pytest.mark.parametrize("scan", [False, True])
def test_what_is_merged_computes_the_same(scan):
    model = adapted(GPT(**SIZES, scan=scan), modules=("*.qkv", "*.inner"))
    params = made(model, GIVEN)
    expected = model.apply({"params": params}, GIVEN)
    base, merged = merge_lora(model, params)
    assert base == model.model
    np.testing.assert_allclose(base.apply({"params": merged}, GIVEN), expected, atol=1e-4)
    without = base.apply({"params": params}, GIVEN)
    assert np.abs(np.asarray(without - expected)).max() > 0.1
    assert merge_lora(base, merged) == (base, merged)


def test_it_has_the_fields_and_the_signature_of_its_model():
    model = adapted(GPT(**SIZES))
    assert model.max_position_embeddings == 6
    assert takes_argument(model, "decode")
    assert not takes_argument(model, "images")
    assert mode_arguments(model, train=True) == {"train": True}
    assert model.clone(rank=3).rank == 3
    changed = model.clone(remat=True, alpha=1.0)
    assert (changed.model, changed.alpha) == (model.model.clone(remat=True), 1.0)
    with pytest.raises(AttributeError):
        _ = model.nothing


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run that begins with saved weights, and the directory of these."""
    directory = tmp_path_factory.mktemp("lora")
    base = BASE.clone(num_classes=0, pool="first")
    save(base, made(base, GIVEN), directory / "bert")
    experiment = jdl.Experiment(
        model=adapted(),
        task=Classification(inputs="tokens"),
        data=Arrays(DATA, validation_fraction=0, test_fraction=0),
        optimizer=AdamW(0.03, weight_decay=0.5, ema_decay=0.5),
        init_from=InitFrom(run=str(directory / "bert"), skip=("logits",)),
        strategy=Single(),
        hooks=(),
        steps=30,
        batch_size=16,
    )
    return jdl.train(experiment, directory / "run"), directory


def test_factors_and_head_are_trained_and_nothing_else(trained):
    run, directory = trained
    _, before = load(directory / "bert")
    after, expected = leaves(run.gather_state().params), leaves(before)
    kept = [path for path in after if path in expected and not path.startswith("logits")]
    assert len(kept) > 20
    for path in kept:
        np.testing.assert_array_equal(after[path], expected[path])
    assert all(np.any(x) for path, x in after.items() if path.endswith("lora_b"))
    assert run.evaluate("train")["loss"] < np.log(3)


def test_an_export_and_a_saved_model_are_merged(trained):
    run, directory = trained
    expected = run.predict(TOKENS[:4])
    function = export_prediction(run, ("cpu",))
    assert "8x2xf32" not in str(function.mlir_module())  # as lora_a has
    np.testing.assert_allclose(function.call(tokens=TOKENS[:4]), expected, atol=1e-4)
    bare = jax.tree.map(lambda x: x, run.params)
    del bare["logits"]
    pooled = adapted(BASE.clone(num_classes=0))
    features = pooled.apply({"params": bare}, jnp.asarray(TOKENS[:4]))
    with pytest.raises(jdl.UserError, match=r"pool='mean' \(only 'first'\)"):
        save(pooled, bare, directory / "merged")
    masked = adapted(BERT(**SIZES, dropout_rate=0.0))
    params = made(masked, GIVEN)
    save(masked, params, directory / "merged")
    found = load(directory / "merged")
    np.testing.assert_allclose(
        found[0].apply({"params": found[1]}, GIVEN),
        masked.apply({"params": params}, GIVEN),
        atol=1e-4,
    )
    assert features.shape == (4, 8)


def test_a_resumed_run_and_an_opened_one_are_the_same(trained):
    run, directory = trained
    opened = jdl.open(directory / "run", run.experiment)
    np.testing.assert_array_equal(opened.predict(TOKENS[:4]), run.predict(TOKENS[:4]))


def test_it_computes_in_bf16(trained):
    run, _ = trained
    model = dataclasses.replace(run.experiment, precision="bf16").compute_model()
    assert model.dtype == jax.numpy.bfloat16
    assert model.rank == 2


REFUSED = {
    "no such layer": (
        lambda: adapted(modules=("*.attention.query",)).init(jax.random.key(0), GIVEN),
        r"no dense layer '\*.attention.query' .it has block_0.attention.output, .*mean",
    ),
    "convolutions": (
        lambda: adapted(CNN(), modules=("Conv_0",)).init(
            jax.random.key(0), jnp.zeros((1, 28, 28, 1))
        ),
        "no dense layer 'Conv_0'",
    ),
    "no rank": (lambda: adapted(rank=0), "model.rank must be at least 1, not 0"),
    "frozen twice": (
        lambda: jdl.Experiment(
            model=adapted(),
            data=Arrays(DATA),
            optimizer=AdamW(frozen=("tokens",)),
            steps=1,
        ),
        "a model with LoRA freezes all but model.trained already",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_adapted_is_refused_in_a_sentence(case):
    make, message = REFUSED[case]
    with pytest.raises(jdl.UserError, match=message):
        make()
