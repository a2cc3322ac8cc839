"""Runs initialized from models of transformers; one that computes differently is refused."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import unflatten_dict

import jdl
from jdl.data import Arrays
from jdl.errors import UserError
from jdl.models import GPT
from jdl.optimizers import SGD
from jdl.parallel import Single
from jdl.pretrained import InitFrom, save
from jdl.state import TrainState
from jdl.tasks import Classification
from tests.saved_models import (
    BERT_SIZES,
    OURS,
    TOKENS,
    given_to,
    leaves,
    made,
    outputs,
    rewrite,
    settled,
    tensors_of,
)

pytest.importorskip("safetensors", reason="safetensors are not installed")


def experiment(init_from, **changes):
    """A classifier of texts, which takes one step at a rate of zero."""
    label = np.array([0, 1, 2] * 4)
    tokens = np.tile(TOKENS, (4, 1))
    settings = {
        "model": OURS["bert, classes"].clone(num_classes=4),
        "task": Classification(inputs="tokens"),
        "data": Arrays(
            {"train": {"tokens": tokens, "label": label}},
            test_fraction=0.0,
            validation_fraction=0.0,
        ),
        "optimizer": SGD(0.0),
        "strategy": Single(),
        "hooks": (),
        "steps": 1,
        "batch_size": 4,
        "init_from": init_from,
        **changes,
    }
    return jdl.Experiment(**settings)


def test_a_run_begins_with_a_model_of_transformers_but_its_head(saved, tmp_path):
    directory, _, params = saved
    # Of a class that `load` does not read, with a head that nobody asks for.
    settled(directory, architectures=["BertForQuestionAnswering"])
    rewrite(directory, tensors_of(directory) | {"qa_outputs.bias": np.zeros(2, np.float32)})
    fresh = jdl.train(experiment(InitFrom()), tmp_path / "fresh").gather_state()
    init_from = InitFrom(run=str(directory), skip=("logits",))
    found = jdl.train(experiment(init_from), tmp_path / "run").gather_state()
    given, begun = leaves(params), leaves(fresh.params)
    for path, array in leaves(found.params).items():
        expected = begun if path.startswith("logits") else given
        np.testing.assert_array_equal(array, expected[path])


def test_a_model_of_transformers_that_does_not_fit_a_run(saved, tmp_path):
    whole = InitFrom(run=str(saved[0]))
    with pytest.raises(
        UserError, match=r"params\.logits\.bias, of shape \(4,\) .* shape \(3,\) in"
    ):
        jdl.train(experiment(whole), tmp_path / "run")
    other = experiment(whole, model=saved[1].clone(type_vocab_size=2), steps=2)
    with pytest.raises(
        UserError, match=r"kinds, of shape \(2, 8\) in this model, has shape \(3, 8\)"
    ):
        jdl.train(other, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def begun(model, directory, **chosen):
    """The arrays that a run of the model begins with, by path."""
    variables = jax.eval_shape(model.init, jax.random.key(0), given_to(model))
    zero = jnp.zeros((), jnp.int32)
    like = TrainState(zero, jax.random.key(0), variables["params"], {}, {})
    taken = InitFrom(run=str(directory), **chosen).read(like, model)
    return {path.removeprefix("params."): array for path, array in taken.items()}


BERT_4 = OURS["bert, classes"].clone(num_heads=4, epsilon=1e-5, activation=nn.relu, pad_token_id=0)
OTHERS = [
    (
        "bert, classes",
        BERT_4,
        "model.num_heads is 2 there, not 4; model.epsilon is 1e-12 there, not 1e-05; "
        "model.activation is gelu there, not relu; model.pad_token_id is 1 there, not 0",
    ),
    (
        "bert, classes",
        OURS["bert, classes"].clone(num_layers=1),
        "model.num_layers is 2 there, not 1",
    ),
    ("bert", GPT(**BERT_SIZES), "model is a BERT there, not a GPT"),
    (
        "gpt",
        OURS["gpt"].clone(position_embedding="rotary", norm="rms", use_bias=False),
        "model.norm is layer there, not rms; model.use_bias is True there, not False; "
        "model.position_embedding is learned there, not rotary",
    ),
    (
        "gpt, untied",
        OURS["gpt, untied"].clone(tie_word_embeddings=True),
        "model.tie_word_embeddings is False there, not True",
    ),
    ("vit", OURS["vit"].clone(num_heads=1), "model.num_heads is 2 there, not 1"),
]


@pytest.mark.parametrize(("name", "model", "differences"), OTHERS)
def test_a_model_that_computes_otherwise_with_the_same_arrays_is_refused(
    name, model, differences, tmp_path
):
    save(OURS[name], made(OURS[name]), tmp_path)
    with pytest.raises(UserError) as caught:
        begun(model, tmp_path)
    assert str(caught.value) == (
        f"init_from.run: the model of {tmp_path} computes another function of the "
        f"same arrays: {differences}"
    )


def test_a_run_is_refused_before_anything_is_written(saved, tmp_path):
    whole = InitFrom(run=str(saved[0]), skip=("logits",))
    with pytest.raises(UserError, match=r"model\.num_heads is 2 there, not 4; model\.eps"):
        jdl.train(experiment(whole, model=BERT_4), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_what_changes_no_output_may_differ(saved):
    directory, model, params = saved
    same = model.clone(dropout_rate=0.5, remat=True, dtype=jnp.bfloat16, name="classifier")
    assert begun(same, directory).keys() == leaves(params).keys()
    save(OURS["gpt"], made(OURS["gpt"]), directory)
    assert begun(OURS["gpt"].clone(mlp_dim=32, num_kv_heads=2), directory)


def test_what_is_chosen_may_be_of_another_model(saved):
    directory, model, params = saved
    (taken,) = begun(BERT_4, directory, modules=("tokens",)).items()
    assert taken[0] == "tokens.embedding"
    np.testing.assert_array_equal(taken[1], params["tokens"]["embedding"])
    deeper = model.clone(num_layers=3)
    with pytest.raises(UserError, match=r"params\.block_2\..* is not in "):
        begun(deeper, directory)
    assert begun(deeper, directory, skip=("block_2",)).keys() == leaves(params).keys()
    one = begun(model.clone(num_layers=1), directory, modules=("tokens", "block_0"))
    assert {path.split(".")[0] for path in one} == {"tokens", "block_0"}


def test_a_scanned_model_begins_with_blocks_that_are_stacked(tmp_path):
    model, params = OURS["gpt"], made(OURS["gpt"])
    save(model, params, tmp_path)
    scanned = model.clone(scan=True)
    taken = unflatten_dict(begun(scanned, tmp_path), sep=".")
    np.testing.assert_allclose(outputs(scanned, taken), outputs(model, params), atol=1e-5)
