"""Reads and writes ResNet and ConvNeXt in the format of timm (PyTorch Image Models)."""

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import unflatten_dict

from jdl.errors import UserError, first_line, nearest
from jdl.files import write_json
from jdl.models import (
    ConvNeXt,
    ConvNeXtAtto,
    ConvNeXtBase,
    ConvNeXtLarge,
    ConvNeXtSmall,
    ConvNeXtTiny,
    ResNet18,
    ResNet34,
    ResNet50,
    ResNet101,
    ResNet152,
)
from jdl.paths import path_name
from jdl.pretrained.tensors import FLOATS, Tensor, describe, write
from jdl.typing import Json, PyTree

CONFIG = "config.json"

ARCHITECTURES: Mapping[str, Callable[..., nn.Module]] = {
    "resnet18": ResNet18,
    "resnet34": ResNet34,
    "resnet50": ResNet50,
    "resnet101": ResNet101,
    "resnet152": ResNet152,
    "convnext_atto": ConvNeXtAtto,
    "convnext_tiny": ConvNeXtTiny,
    "convnext_small": ConvNeXtSmall,
    "convnext_base": ConvNeXtBase,
    "convnext_large": ConvNeXtLarge,
}
"""Models by their names in timm."""

LEAVES = {
    "kernel": "weight", "scale": "weight", "bias": "bias",
    "mean": "running_mean", "var": "running_var",
}  # fmt: skip
"""Names of arrays in jdl and in timm."""

UNUSED = re.compile(r".*num_batches_tracked")
"""Tensors that no model of jdl has."""


def is_timm(path: Path) -> bool:
    """Whether a config.json is timm's."""
    try:
        return _is_config(json.loads(path.read_text()))
    except (OSError, ValueError, RecursionError):
        return False


def _is_config(config: Any) -> bool:
    return isinstance(config, dict) and "architecture" in config and "model_type" not in config


def load_timm(directory: str | Path) -> tuple[nn.Module, dict[str, Any]]:
    """Loads a ResNet or ConvNeXt that timm saved, such as with `timm.models.save_for_hf`.

    Logits are the same for images (batch, height, width, channels) that are normalized by
    `pretrained_cfg` in config.json. Only JSON and safetensors are read; tensors of 16 or 64 bits
    become float32.

    Args:
      directory: contains config.json and model.safetensors.

    Returns:
      The model and its variables, `params` and, of a ResNet, `batch_stats`, for `model.apply`.

    Raises:
      UserError: a file is missing or damaged, the architecture is not supported, or tensors are
        missing, unknown or of another shape; the message lists all of them.
    """
    directory = Path(directory).expanduser()
    model, arrays = read_timm(directory)
    wanted = _shapes(model)
    if missing := [_name(model, path) for path in wanted if path not in arrays]:
        raise UserError(f"the tensors in {directory} do not fit: missing {', '.join(missing)}")
    flat = {path: jnp.asarray(arrays[path]) for path in wanted}
    return model, unflatten_dict(flat, sep=".")


def read_timm(directory: Path) -> tuple[nn.Module, dict[str, np.ndarray]]:
    """Reads a directory's model, and its arrays by path, such as `params.logits.kernel`.

    Raises:
      UserError: as `load_timm`; the classifier may be missing.
    """
    path = directory / CONFIG
    try:
        config = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read as JSON: {first_line(error)}") from error
    if not _is_config(config):
        raise UserError(f"{path} has no architecture: give a directory that timm saved")
    model = _model(config, path)
    given, wanted = describe(directory), _shapes(model)
    names = {_name(model, path): path for path in wanted}
    wrong = [f"unknown {name}" for name in given if name not in names and not UNUSED.match(name)]
    found = {}
    for name, path in names.items():
        tensor, shape = given.get(name), _theirs(wanted[path])
        if tensor is None:
            if ".logits." not in path:
                wrong.append(f"missing {name}")
        elif tensor.dtype not in FLOATS:
            wrong.append(f"{name} has dtype {tensor.dtype}, not a float type")
        elif _squeezed(tensor, shape) != shape:
            wrong.append(f"{name} has shape {tensor.shape}, not {shape}")
        else:
            found[path] = (tensor, shape)
    if wrong:
        raise UserError(f"the tensors in {directory} do not fit its {CONFIG}: {'; '.join(wrong)}")
    return model, {path: _ours(x.read().reshape(shape)) for path, (x, shape) in found.items()}


def save_timm(model: nn.Module, variables: PyTree, directory: str | Path) -> None:
    """Saves a ResNet or ConvNeXt for `timm.create_model("local-dir:DIRECTORY")`.

    Existing files are overwritten.

    Args:
      model: one of `ARCHITECTURES`, with any number of classes.
      variables: `params` and, of a ResNet, `batch_stats`.
      directory: created if missing.

    Raises:
      UserError: timm has no such architecture here, the variables do not fit the model, or the
        directory cannot be written.
    """
    directory, classes = Path(directory).expanduser(), getattr(model, "num_classes", 0)
    fits = [name for name, make in ARCHITECTURES.items() if make(**_free(model)) == model]
    if not fits:
        known = ", ".join(ARCHITECTURES)
        raise UserError(f"this {type(model).__name__} is none of those that timm names: {known}")
    leaves = jax.tree_util.tree_leaves_with_path(dict(variables))
    arrays = {path_name(path): np.asarray(leaf, np.float32) for path, leaf in leaves}
    wanted, shapes = _shapes(model), {path: array.shape for path, array in arrays.items()}
    wrong = [p for p in wanted.keys() | shapes.keys() if shapes.get(p) != wanted.get(p)]
    if wrong:
        raise UserError(f"the variables do not fit the model: {', '.join(sorted(wrong))}")
    write(directory, {_name(model, p): _to_theirs(x) for p, x in arrays.items()})
    config: dict[str, Json] = {"architecture": fits[0], "num_classes": classes}
    write_json(directory / CONFIG, config)


def _free(model: Any) -> dict[str, Any]:
    """Returns the fields of a model that its architecture does not determine."""
    return {"num_classes": model.num_classes, "dtype": model.dtype}


def _model(config: Mapping[str, Json], path: Path) -> nn.Module:
    name, classes = config["architecture"], config.get("num_classes", 1000)
    if name not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise UserError(
            f"{path}: architecture {name!r} is not supported; supported: {known}"
            f"{nearest(str(name), ARCHITECTURES)}"
        )
    if config.get("model_args"):
        raise UserError(f"{path}: model_args={config['model_args']!r} are not supported")
    if not isinstance(classes, int) or isinstance(classes, bool) or classes < 1:
        raise UserError(f"{path}: num_classes must be an integer from 1, not {classes!r}")
    return ARCHITECTURES[name](num_classes=classes)


def _shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Returns the shape of each variable by path."""
    image = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), image)
    return {path_name(path): x.shape for path, x in jax.tree_util.tree_leaves_with_path(shapes)}


def _name(model: nn.Module, path: str) -> str:
    """Returns the name in timm of a variable."""
    _, *modules, leaf = path.split(".")
    names = _convnext if isinstance(model, ConvNeXt) else _resnet
    if isinstance(model, ConvNeXt) and leaf == "scale" and "norm" not in modules[-1]:
        return f"{names(modules)}.gamma"
    return f"{names(modules)}.{LEAVES[leaf]}"


def _block(module: str) -> tuple[int, int] | None:
    """Returns stage and index of a block's name, such as stage0_block1."""
    found = re.fullmatch(r"stage(\d+)_block(\d+)", module)
    return (int(found[1]), int(found[2])) if found else None


def _resnet(modules: list[str]) -> str:
    if modules[0] == "logits":
        return "fc"
    is_norm = modules[-1].startswith("BatchNorm")
    if (block := _block(modules[0])) is None:
        return "bn1" if is_norm else "conv1"
    prefix = f"layer{block[0] + 1}.{block[1]}"
    if modules[1] == "project":
        return f"{prefix}.downsample.{int(is_norm)}"
    number = int(modules[1].removeprefix("conv")) + 1
    return f"{prefix}.{'bn' if is_norm else 'conv'}{number}"


def _convnext(modules: list[str]) -> str:
    top = {"stem": "stem.0", "stem_norm": "stem.1", "norm": "head.norm", "logits": "head.fc"}
    if modules[0] in top:
        return top[modules[0]]
    if (block := _block(modules[0])) is not None:
        inner = {"depthwise": ".conv_dw", "norm": ".norm", "inner": ".mlp.fc1", "outer": ".mlp.fc2"}
        last = inner[modules[1]] if len(modules) > 1 else ""
        return f"stages.{block[0]}.blocks.{block[1]}{last}"
    stage, _, kind = modules[0].removeprefix("stage").partition("_")
    return f"stages.{stage}.downsample.{0 if kind == 'norm' else 1}"


def _theirs(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Returns the shape in timm: kernels have their outputs first, before inputs, rows, columns."""
    return (*shape[::-1][:2], *shape[:2]) if len(shape) == 4 else shape[::-1]


def _squeezed(tensor: Tensor, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Returns a tensor's shape; of a dense layer that timm has as a 1x1 convolution, without it."""
    pointwise = len(shape) == 2 and tensor.shape[2:] == (1, 1)
    return tensor.shape[:2] if pointwise else tensor.shape


def _ours(array: np.ndarray) -> np.ndarray:
    """Rearranges a tensor of timm to jdl's axes."""
    return np.ascontiguousarray(array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T)


def _to_theirs(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T)
