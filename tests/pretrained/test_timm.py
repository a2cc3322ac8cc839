"""ResNet and ConvNeXt of timm: equal logits, tensors and files that do not fit.

The logits in timm.json are timm's (1.0.31) for the weights of `tensors`, in eval mode.
"""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jdl
from jdl.data import Arrays
from jdl.errors import UserError
from jdl.models import ConvNeXt, ConvNeXtAtto, ConvNeXtTiny, ResNet18, ResNet20, ResNet50
from jdl.optimizers import SGD
from jdl.pretrained import InitFrom, load_timm, save_timm
from jdl.pretrained.timm import _name, _shapes, _theirs

pytest.importorskip("safetensors", reason="safetensors are not installed")

EXPECTED = json.loads((Path(__file__).parent / "timm.json").read_text())
IMAGES = np.random.default_rng(1).normal(size=(2, 64, 64, 3)).astype(np.float32)
MODELS = {
    "resnet18": ResNet18(num_classes=5),
    "resnet50": ResNet50(num_classes=5),
    "convnext_atto": ConvNeXtAtto(num_classes=5),
    "convnext_tiny": ConvNeXtTiny(num_classes=5),
}


def tensors(model):
    """Random tensors by their names in timm; the script that made timm.json draws the same."""
    rng, found = np.random.default_rng(0), {}
    shapes = {_name(model, path): _theirs(shape) for path, shape in _shapes(model).items()}
    for name in sorted(shapes):
        shape = shapes[name]
        noise = rng.normal(size=shape).astype(np.float32)
        if len(shape) > 1:
            found[name] = noise * np.float32((2 / np.prod(shape[1:])) ** 0.5)
        elif name.endswith(("gamma", "bias", "running_mean")):
            found[name] = np.float32(0.2) * noise
        else:
            found[name] = np.abs(1 + np.float32(0.2) * noise)
    return found


def write(directory, name, given, **config):
    from safetensors.numpy import save_file

    directory.mkdir(exist_ok=True)
    save_file(
        {k: np.ascontiguousarray(v) for k, v in given.items()}, directory / "model.safetensors"
    )
    content = {"architecture": name, "num_classes": 5, "pretrained_cfg": {"mean": [0.5]}, **config}
    (directory / "config.json").write_text(json.dumps(content))


@pytest.mark.parametrize(
    "name",
    [
        "resnet18",
        "convnext_atto",
        pytest.param("resnet50", marks=pytest.mark.slow),
        pytest.param("convnext_tiny", marks=pytest.mark.slow),
    ],
)
def test_logits_are_those_of_timm(name, tmp_path):
    model, given = MODELS[name], tensors(MODELS[name])
    if name == "convnext_atto":  # timm has its dense layers as 1x1 convolutions
        given = {
            k: v[..., None, None] if ".mlp." in k and v.ndim == 2 else v for k, v in given.items()
        }
    given["bn1.num_batches_tracked"] = np.array(3)
    write(tmp_path, name, given)
    found, variables = load_timm(tmp_path)
    assert found == model
    logits = jax.jit(found.apply)(variables, jnp.asarray(IMAGES))
    expected = np.array(EXPECTED[name]["logits"])
    assert expected.std() > 0.05
    np.testing.assert_allclose(logits, expected, atol=1e-4, rtol=1e-4)


def test_parameters_are_as_many_as_in_timm():
    for name, make in (("resnet18", ResNet18), ("convnext_atto", ConvNeXtAtto)):
        shapes = _shapes(make())
        count = sum(int(np.prod(s)) for path, s in shapes.items() if path.startswith("params"))
        assert count == EXPECTED[name]["params1000"]


SMALL = ConvNeXt(stage_sizes=(1, 1), embed_dims=(4, 6), num_classes=3)


def test_a_convnext_starts_as_its_shortcuts_and_reads_multiples_alone():
    given = jnp.asarray(IMAGES)
    variables = SMALL.init(jax.random.key(0), given)
    scaled = jax.tree_util.tree_map_with_path(
        lambda path, x: 0 * x if "block" in path[-2].key and path[-1].key == "scale" else x,
        variables,
    )
    found = SMALL.apply(variables, given)
    assert found.shape == (2, 3)
    np.testing.assert_allclose(SMALL.apply(scaled, given), found, atol=1e-2)
    with pytest.raises(UserError, match=r"64x60 pixels cannot be halved .* multiples of 8"):
        SMALL.apply(variables, given[:, :, :60])
    with pytest.raises(UserError, match=r"names 2 stages and model.embed_dims 1: give each"):
        SMALL.clone(embed_dims=(4,)).init(jax.random.key(0), given)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A directory with random weights of a ResNet-18."""
    directory = tmp_path_factory.mktemp("timm") / "resnet18"
    given = tensors(MODELS["resnet18"])
    write(directory, "resnet18", given)
    return directory, given


def test_what_is_saved_is_read_again(saved, tmp_path):
    directory, given = saved
    model, variables = load_timm(directory)
    save_timm(model, variables, tmp_path)
    from safetensors.numpy import load_file

    again = load_file(tmp_path / "model.safetensors")
    assert again.keys() == given.keys()
    for name, tensor in given.items():
        np.testing.assert_array_equal(again[name], tensor)
    assert json.loads((tmp_path / "config.json").read_text())["architecture"] == "resnet18"
    for wrong, message in (
        (ResNet20(), "this ResNet is none of those that timm names: resnet18"),
        (
            ResNet18(num_classes=4),
            r"do not fit the model: params.logits.bias, params.logits.kernel",
        ),
    ):
        with pytest.raises(UserError, match=message):
            save_timm(wrong, variables, tmp_path)


def experiment(directory, model, **init):
    data = {"train": {"image": IMAGES, "label": np.array([0, 1])}}
    return jdl.Experiment(
        model=model,
        data=Arrays(data, validation_fraction=0, test_fraction=0),
        optimizer=SGD(0.0),
        init_from=InitFrom(run=str(directory), **init),
        hooks=(),
        steps=1,
        batch_size=2,
    )


def read(directory, model, **init):
    """What a run begins with."""
    given = experiment(directory, model, **init)
    variables = jax.eval_shape(model.init, jax.random.key(0), IMAGES)
    like = jdl.state.TrainState(
        step=0, key=None, params=variables["params"], opt_state=(),
        collections={"batch_stats": variables.get("batch_stats", {})},
    )  # fmt: skip
    return given.init_from.read(like, model)


def test_a_run_begins_with_its_weights_and_statistics(saved):
    directory, given = saved
    arrays = read(directory, ResNet18(num_classes=2), skip=("logits",))
    np.testing.assert_array_equal(
        arrays["params.stem.Conv_0.kernel"], given["conv1.weight"].transpose(2, 3, 1, 0)
    )
    path = "collections.batch_stats.stage0_block1.conv0.BatchNorm_0.BatchNorm_0.mean"
    np.testing.assert_array_equal(arrays[path], given["layer1.1.bn1.running_mean"])
    with pytest.raises(UserError, match=r"params.logits.* has shape .* init_from.skip"):
        read(directory, ResNet18(num_classes=2))
    fewer = ResNet18(num_classes=5, stage_sizes=(1, 2, 2, 2))
    with pytest.raises(UserError, match=r"has .*stage0_block1.* which this model lacks"):
        read(directory, fewer)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"architecture": "resnet19"}, "'resnet19' is not supported; .*; did you mean 'resnet1"),
        ({"architecture": 3}, "architecture 3 is not supported"),
        ({"num_classes": "5"}, "num_classes must be an integer from 1, not '5'"),
        ({"model_args": {"stem_width": 3}}, "model_args={'stem_width': 3} are not supported"),
        ({"architecture": "resnet34"}, "missing layer1.2.conv1.weight"),
        ({"num_classes": 7}, r"fc.weight has shape \(5, 512\), not \(7, 512\)"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(changes, complaint, saved):
    directory, _ = saved
    path = directory / "config.json"
    before = path.read_text()
    path.write_text(json.dumps({**json.loads(before), **changes}))
    try:
        with pytest.raises(UserError, match=complaint):
            load_timm(directory)
    finally:
        path.write_text(before)


def test_files_that_are_missing_or_damaged_are_named(tmp_path):
    with pytest.raises(UserError, match=r"config\.json cannot be read as JSON"):
        load_timm(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match="has no architecture: give a directory that timm saved"):
        load_timm(tmp_path)
    (tmp_path / "config.json").write_text('{"architecture": "resnet18"}')
    with pytest.raises(UserError, match=r"has no model\.safetensors"):
        load_timm(tmp_path)
