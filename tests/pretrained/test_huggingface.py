"""Models of transformers convert both ways with equal outputs; errors name misfits."""

import json
import warnings

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdl.errors import UserError
from jdl.models import GPT, RNN, ViT
from jdl.pretrained import load, save
from jdl.pretrained.layouts import LAYOUTS
from tests.saved_models import (
    GPT_SIZES,
    IMAGES,
    OURS,
    TOKENS,
    leaves,
    made,
    outputs,
    rewrite,
    settled,
    tensors_of,
)

pytest.importorskip("safetensors", reason="safetensors are not installed")


@pytest.fixture(scope="module")
def peers():
    """PyTorch and transformers, which warn while they load."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch = pytest.importorskip("torch", reason="torch is not installed")
        transformers = pytest.importorskip("transformers", reason="transformers are not installed")
        transformers.logging.disable_progress_bar()
        transformers.logging.set_verbosity_error()
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # more wait for each other longer than such models take
        yield torch, transformers
        torch.set_num_threads(threads)


SIZES = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2}
GPT2 = {"vocab_size": 11, "n_positions": 12, "n_embd": 8, "n_layer": 2, "n_head": 2}
TEXTS = {**SIZES, "vocab_size": 11, "max_position_embeddings": 12, "intermediate_size": 12}
PICTURES = {**SIZES, "intermediate_size": 32, "image_size": 12, "patch_size": 3, "num_channels": 2}
THEIRS = [
    ("GPT2LMHeadModel", "GPT2Config", GPT2),
    (
        "GPT2LMHeadModel",
        "GPT2Config",
        {**GPT2, "tie_word_embeddings": False, "n_inner": 12, "layer_norm_epsilon": 1e-3},
    ),
    ("BertForMaskedLM", "BertConfig", TEXTS),
    ("BertForSequenceClassification", "BertConfig", {**TEXTS, "num_labels": 3}),
    ("BertForSequenceClassification", "BertConfig", {**TEXTS, "hidden_act": "gelu_new"}),
    ("BertModel", "BertConfig", {**TEXTS, "type_vocab_size": 1}),
    ("ViTForImageClassification", "ViTConfig", {**PICTURES, "num_labels": 5}),
]


def theirs(peers, kind, config, settings):
    """A model of transformers whose parameters are all random."""
    torch, transformers = peers
    torch.manual_seed(0)
    model = getattr(transformers, kind)(getattr(transformers, config)(**settings)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3)
    return model


def their_outputs(peers, model):
    torch, _ = peers
    with torch.no_grad():
        if type(model).__name__.startswith("ViT"):
            return model(pixel_values=torch.tensor(IMAGES.transpose(0, 3, 1, 2))).logits.numpy()
        tokens, more = torch.tensor(TOKENS.astype(np.int64)), {}
        if type(model).__name__.startswith("Bert"):
            more["attention_mask"] = (tokens != model.config.pad_token_id).long()
        found = model(input_ids=tokens, **more)
        return (found.pooler_output if "pooler_output" in found else found.logits).numpy()


@pytest.mark.parametrize(("kind", "config", "settings"), THEIRS)
def test_a_model_of_transformers_has_the_same_outputs_here(kind, config, settings, peers, tmp_path):
    model = theirs(peers, kind, config, settings)
    model.save_pretrained(tmp_path)
    expected = their_outputs(peers, model)
    assert expected.std() > 0.1
    np.testing.assert_allclose(outputs(*load(tmp_path)), expected, atol=1e-4)


@pytest.mark.parametrize("model", OURS.values(), ids=OURS)
def test_a_model_of_ours_has_the_same_outputs_there(model, peers, tmp_path):
    params = made(model)
    save(model, params, tmp_path)
    (name,) = json.loads((tmp_path / "config.json").read_text())["architectures"]
    found, info = getattr(peers[1], name).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()), "nothing is missing, unknown or of another shape"
    expected = outputs(model, params)
    assert np.std(expected) > 0.1
    np.testing.assert_allclose(their_outputs(peers, found.eval()), expected, atol=1e-4)


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.kind)
def test_what_a_config_leaves_unsaid_is_what_transformers_take(layout, peers):
    names = {"gpt2": "GPT2Config", "bert": "BertConfig", "vit": "ViTConfig"}
    config = getattr(peers[1], names[layout.kind])().to_dict()
    defaults = {entry.key: entry.default for entry in layout.entries} | layout.required
    # Absolute positions are all that today's BERT has.
    assert defaults.keys() - config.keys() <= {"position_embedding_type"}
    assert {key: config.get(key, defaults[key]) for key in defaults} == defaults


@pytest.mark.parametrize("model", OURS.values(), ids=OURS)
def test_what_is_saved_is_loaded_bit_for_bit(model, tmp_path):
    params = made(model)
    save(model, params, tmp_path)
    found, loaded = load(tmp_path)
    assert found == model.clone(dropout_rate=model.dropout_rate)
    before, after = leaves(params), leaves(loaded)
    assert after.keys() == before.keys()
    for path, array in before.items():
        assert after[path].dtype == np.float32
        np.testing.assert_array_equal(after[path], array)


def test_a_scanned_model_is_saved_block_by_block(tmp_path):
    model = GPT(**GPT_SIZES, scan=True, remat=True)
    params = made(model)
    save(model, params, tmp_path)
    found, loaded = load(tmp_path)
    assert found == model.clone(scan=False, remat=False)
    np.testing.assert_allclose(outputs(found, loaded), outputs(model, params), atol=1e-5)


@pytest.mark.parametrize("dtype", [np.float16, jnp.bfloat16, np.float64])
def test_numbers_of_other_widths_become_float32(dtype, saved):
    directory, _, params = saved
    rewrite(directory, {name: x.astype(dtype) for name, x in tensors_of(directory).items()})
    loaded = leaves(load(directory)[1])
    for path, array in leaves(params).items():
        assert loaded[path].dtype == np.float32
        np.testing.assert_array_equal(loaded[path], array.astype(dtype).astype(np.float32))


def test_several_files_are_read_by_their_index(saved):
    directory, _, params = saved
    tensors = tensors_of(directory)
    (directory / "model.safetensors").unlink()
    places = {name: f"model-{i % 3}.safetensors" for i, name in enumerate(tensors)}
    for file in set(places.values()):
        rewrite(directory, {n: x for n, x in tensors.items() if places[n] == file}, file)
    index = directory / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": places}))
    jax.tree.map(np.testing.assert_array_equal, load(directory)[1], params)
    (directory / "model-1.safetensors").unlink()
    with pytest.raises(UserError, match=r"index\.json names missing files: model-1.safetens"):
        load(directory)
    for names in ("3", '{"a": 3}', '{"a": null}', f'{{"a": "{"x" * 5000}"}}'):
        index.write_text(f'{{"weight_map": {names}}}')
        with pytest.raises(UserError, match="is not an index of files"):
            load(directory)


def test_old_names_and_tensors_that_repeat_others_are_known(saved, tmp_path):
    directory, _, params = saved
    old = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    tensors = tensors_of(directory)
    for new, name in old.items():
        tensors = {k.replace(new, name): v for k, v in tensors.items()}
    tensors["bert.embeddings.position_ids"] = np.arange(12)[None]
    tensors["cls.seq_relationship.weight"] = np.zeros((2, 8), np.float32)
    rewrite(directory, tensors)
    jax.tree.map(np.testing.assert_array_equal, load(directory)[1], params)

    gpt, params = OURS["gpt"], made(OURS["gpt"])
    save(gpt, params, tmp_path / "gpt")
    tensors = tensors_of(tmp_path / "gpt")
    tensors = {name.removeprefix("transformer."): array for name, array in tensors.items()}
    tensors["h.1.attn.bias"] = np.ones((1, 1, 12, 12), bool)
    tensors["lm_head.weight"] = tensors["wte.weight"]
    rewrite(tmp_path / "gpt", tensors)
    jax.tree.map(np.testing.assert_array_equal, load(tmp_path / "gpt")[1], params)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"model_type": "llama"}, "model_type 'llama' is not supp.*; supported: bert, gpt2, vit$"),
        ({"model_type": "gpt"}, "supported: bert, gpt2, vit; did you mean 'gpt2'"),
        ({"model_type": []}, r"model_type \[\] is not supported"),
        ({"architectures": ["BertForQuestionAnswering"]}, "'BertForQuestionAnswering' is not supp"),
        ({"architectures": None}, "architectures None is not supported; supported: BertForMasked"),
        ({"hidden_act": "gelu_nw"}, "hidden_act 'gelu_nw' is not .*; did you mean 'gelu_new'"),
        ({"is_decoder": True}, "a model that jdl does not have: is_decoder=True, not False"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type='relative_key'"),
        ({"num_attention_heads": 3}, "a hidden size of 8 cannot be divided by 3 heads"),
        ({"hidden_size": "8"}, "hidden_size must be an integer from 1, not '8'"),
        ({"num_hidden_layers": 10**9}, r"it has 1000000000 blocks, but there are only \d+ tensors"),
        ({"vocab_size": 10**30}, "vocab_size must be an integer from 1, not 10{30}"),
        ({"num_hidden_layers": 0}, "num_hidden_layers must be an integer from 1, not 0"),
        ({"pad_token_id": None}, "pad_token_id must be an integer from 0, not None"),
        ({"layer_norm_eps": -1}, r"layer_norm_eps must be a number in \[0, 1\), not -1"),
    ],
)
def test_a_config_that_ours_cannot_be_is_refused(changes, complaint, saved):
    settled(saved[0], **changes)
    with pytest.raises(UserError, match=complaint):
        load(saved[0])


def test_files_that_are_missing_or_damaged_are_named(saved, tmp_path):
    directory, *_ = saved
    file, config = directory / "model.safetensors", directory / "config.json"
    whole = file.read_bytes()
    for content in (whole[:-10], whole[:50], b"", b"\xff" * 64):
        file.write_bytes(content)
        with pytest.raises(UserError, match=r"model\.safetensors is damaged, or not a safetensors"):
            load(directory)
    file.unlink()
    with pytest.raises(UserError, match=r"has no model\.safetensors: save"):
        load(directory)
    (directory / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    with pytest.raises(UserError, match=r"has only pytorch_model\.bin: pickled weights are never"):
        load(directory)
    for text in ("{", "", "\x00", "[" * 100_000):
        config.write_text(text)
        with pytest.raises(UserError, match=r"config\.json is not valid JSON"):
            load(directory)
    config.write_text("[]")
    with pytest.raises(UserError, match=r"config\.json is not a JSON object"):
        load(directory)
    for nowhere in (tmp_path, tmp_path / "nowhere", str(config)):
        with pytest.raises(UserError, match=r"has no config\.json"):
            load(nowhere)


def test_all_tensors_that_do_not_fit_are_named_at_once(saved):
    directory, *_ = saved
    tensors = tensors_of(directory)
    del tensors["classifier.bias"], tensors["bert.encoder.layer.1.attention.self.key.bias"]
    tensors["bert.encoder.layer.2.output.dense.bias"] = np.zeros(8, np.float32)
    tensors["qa_outputs.bias"] = np.zeros(2, np.float32)
    tensors["classifier.weight"] = np.zeros((2, 8), np.float32)
    tensors["bert.pooler.dense.bias"] = np.zeros(8, np.int64)
    rewrite(directory, tensors)
    with pytest.raises(UserError) as caught:
        load(directory)
    assert str(caught.value) == (
        f"the tensors in {directory} do not fit its config.json: "
        "missing encoder.layer.1.attention.self.key.bias, classifier.bias; "
        "unknown encoder.layer.2.output.dense.bias, qa_outputs.bias; "
        "pooler.dense.bias has dtype I64, not a float type; "
        "classifier.weight has shape (2, 8), not (3, 8)"
    )


@pytest.mark.parametrize(
    ("model", "complaint"),
    [
        (RNN(vocab_size=11), "RNN has no format of transformers; .*: BERT, GPT, ViT$"),
        (
            GPT(**GPT_SIZES, position_embedding="rotary"),
            r"position_embedding='rotary' \(only 'learned'\)$",
        ),
        (
            GPT(
                **GPT_SIZES,
                num_kv_heads=1,
                gated=True,
                norm="rms",
                use_bias=False,
                activation=nn.tanh,
            ),
            "gpt2 does not support num_kv_heads=1 .*; norm='rms' .*; gated=True .*; "
            "use_bias=False .*; activation=tanh$",
        ),
        (
            ViT(patch_size=3, num_layers=1, num_heads=2, embed_dim=8, pool="mean"),
            r"pool='mean' \(only 'first'\)$",
        ),
        (
            ViT(patch_size=3, num_layers=1, num_heads=2, embed_dim=8, num_classes=0),
            "num_classes=0$",
        ),
    ],
)
def test_a_model_that_the_layout_does_not_support_is_not_saved(model, complaint, tmp_path):
    with pytest.raises(UserError, match=complaint):
        save(model, made(model), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_parameters_of_another_model_are_not_saved(tmp_path):
    params = made(OURS["bert"])
    with pytest.raises(UserError, match=r"missing logits\.bias, .*; unknown bias, transform"):
        save(OURS["bert, classes"], params, tmp_path / "out")
    with pytest.raises(UserError, match=r"positions has shape \(12, 8\), not \(13, 8\)"):
        save(OURS["bert"].clone(max_position_embeddings=13), params, tmp_path / "out")
    with pytest.raises(UserError, match=r"missing positions, patches\.kernel"):
        save(OURS["vit"], params["block_0"], tmp_path / "out")
    wide = ViT(patch_size=3, num_layers=1, num_heads=2, embed_dim=8)
    with pytest.raises(UserError, match=r"square images, but .* have 6 patches"):
        save(wide, made(wide, jnp.zeros((1, 6, 9, 1))), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_directory_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    model = OURS["gpt"]
    with pytest.raises(UserError, match="file cannot be written"):
        save(model, made(model), tmp_path / "file")
