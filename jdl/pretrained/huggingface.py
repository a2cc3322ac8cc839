"""Reads and writes GPT-2, BERT and ViT in the format of Hugging Face transformers."""

import fnmatch
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import unflatten_dict

from jdl.errors import UserError
from jdl.files import write_json
from jdl.layers import merge_lora
from jdl.models import ViT
from jdl.paths import path_name
from jdl.pretrained.axes import rearrange, shape
from jdl.pretrained.config import CONFIG, labels, read_config, read_head, read_model, write_config
from jdl.pretrained.layouts import Layout, Row
from jdl.pretrained.tensors import FLOATS, Tensor, describe, write
from jdl.typing import Json, PyTree

Shape = tuple[int, ...]


def load(directory: str | Path) -> tuple[nn.Module, dict[str, Any]]:
    """Loads a model that transformers saved.

    GPT2LMHeadModel becomes a `GPT`; BertForMaskedLM, BertForSequenceClassification and BertModel
    become a `BERT`; ViTForImageClassification becomes a `ViT`. Outputs are the same. Only
    JSON and safetensors are read, in one file or sharded with an index; tensors of 16 or 64 bits
    become float32. Tensors of heads that the class does not have are ignored.

    Args:
      directory: contains config.json and model.safetensors.

    Returns:
      The model and its parameters, for `model.apply({"params": ...})`.

    Raises:
      UserError: a file is missing or damaged, the model type is not supported, or tensors are
        missing, unknown or of the wrong shape; the message lists all of them.
    """
    directory = Path(directory).expanduser()
    layout, config = read_config(directory)
    path = directory / CONFIG
    model = read_model(layout, config, path).clone(**read_head(layout, config, path))
    given = _given(directory, layout, model)
    wanted = _shapes(model, config)
    slots = list(_slots(layout, model, config))
    known = [name for slot in slots for name in slot.names]
    slots = [slot for slot in slots if slot.path in wanted]
    needed = {name: slot.shape for slot in slots for name in slot.names}
    wrong = _misfits(needed, given, [*known, *layout.unused])
    if wrong:
        raise UserError(f"the tensors in {directory} do not fit its {CONFIG}: {wrong}")
    params = {slot.path: jnp.asarray(slot.read(given)) for slot in slots}
    return model, unflatten_dict(params, sep=".")


def save(model: nn.Module, params: PyTree, directory: str | Path) -> None:
    """Saves a GPT, BERT or ViT for `from_pretrained` of transformers.

    `dropout_rate` becomes that of embeddings and layers; that of attention weights becomes 0.
    A model with `scan` is written block by block, one with `LoRA` merged. Existing files are
    overwritten.

    Args:
      model: a `GPT`, `BERT` or `ViT`.
      params: its parameters, from `init` or a run (`run.gather_state().params`).
      directory: created if missing.

    Raises:
      UserError: the format cannot represent the model, the parameters do not fit it, or the
        directory cannot be written.
    """
    directory = Path(directory).expanduser()
    model, params = merge_lora(model, params)
    arrays = _unstacked({path_name(p): x for p, x in jax.tree_util.tree_leaves_with_path(params)})
    layout, config = write_config(model)
    config |= _image(model, arrays)
    wanted = _shapes(model, config)
    wrong = _misfits(wanted, {name: np.shape(array) for name, array in arrays.items()})
    if wrong:
        raise UserError(f"the parameters do not fit the model: {wrong}")
    tensors = {}
    for slot in _slots(layout, model, config):
        if slot.path in wanted:
            tensors |= slot.write(np.asarray(arrays[slot.path], np.float32))
    bare = getattr(model, "num_classes", None) == 0
    write(directory, tensors if bare else {_full(layout, n): x for n, x in tensors.items()})
    write_json(directory / CONFIG, config)


def read_arrays(directory: Path, scan: bool = False) -> tuple[nn.Module, dict[str, np.ndarray]]:
    """Reads a directory's model and all of its parameters by path, with any head.

    Args:
      directory: contains config.json and safetensors.
      scan: whether to stack the parameters of the blocks, for a model with `scan`.

    Raises:
      UserError: a file is missing or damaged, the model type is not supported, or the shape of
        a tensor does not match config.json.
    """
    layout, config = read_config(directory)
    model = read_model(layout, config, directory / CONFIG)
    given = _given(directory, layout, model)
    slots = [s for s in _slots(layout, model, config) if all(n in given for n in s.names)]
    wrong = _misfits({n: slot.shape for slot in slots for n in slot.names}, given, ["*"])
    if wrong:
        raise UserError(f"the tensors in {directory} do not fit its {CONFIG}: {wrong}")
    arrays = {slot.path: slot.read(given) for slot in slots}
    return model, _stacked(arrays) if scan else arrays


@dataclass(frozen=True)
class _Slot:
    """A parameter of a model and the tensors that hold it."""

    path: str
    names: tuple[str, ...]
    row: Row
    sizes: Mapping[str, int]

    @property
    def shape(self) -> Shape:
        """The shape of each tensor."""
        whole = shape(self.row.source, self.sizes)
        return whole[1:] if len(self.names) > 1 else whole

    def read(self, given: Mapping[str, Tensor]) -> np.ndarray:
        arrays = [given[name].read() for name in self.names]
        array = np.stack(arrays) if len(arrays) > 1 else arrays[0]
        return rearrange(array, self.row.source, self.row.target, self.sizes)

    def write(self, array: np.ndarray) -> dict[str, np.ndarray]:
        array = rearrange(array, self.row.target, self.row.source, self.sizes)
        return dict(zip(self.names, array if len(self.names) > 1 else [array], strict=True))


def _slots(layout: Layout, model: Any, config: Mapping[str, Json]) -> Iterator[_Slot]:
    """Yields all parameters of the layout, of any head."""
    fields = {
        "v": "vocab_size", "t": "max_position_embeddings", "k": "type_vocab_size", "w": "embed_dim",
        "o": "embed_dim", "h": "num_heads", "y": "patch_size", "x": "patch_size",
    }  # fmt: skip
    sizes = {letter: getattr(model, name, 0) for letter, name in fields.items()}
    sizes |= {
        "q": 3,
        "d": model.embed_dim // model.num_heads,
        "f": model.mlp_dim or 4 * model.embed_dim,
    }
    sizes["c"] = labels(config)
    if layout.images:
        sizes["n"] = 1 + (config["image_size"] // model.patch_size) ** 2
        sizes["i"] = config["num_channels"]
    for row in layout.rows:
        for block in range(model.num_layers) if "*" in row.path else [0]:
            names = (name.replace("*", str(block)) for name in _names(row.tensor))
            yield _Slot(row.path.replace("*", str(block)), tuple(names), row, sizes)


def _names(tensor: str) -> list[str]:
    """Expands `a.b|c` to `a.b` and `a.c`."""
    choice = re.search(r"\w+(?:\|\w+)+", tensor)
    return [tensor.replace(choice[0], x) for x in choice[0].split("|")] if choice else [tensor]


def _given(directory: Path, layout: Layout, model: Any) -> dict[str, Tensor]:
    """The tensors of a directory by name, without prefix, with current normalization names.

    Raises:
      UserError: fewer tensors than blocks; listing every missing one would be unbounded.
    """
    found = {}
    for name, tensor in describe(directory).items():
        name = re.sub(r"LayerNorm\.gamma$", "LayerNorm.weight", name)
        name = re.sub(r"LayerNorm\.beta$", "LayerNorm.bias", name)
        found[name.removeprefix(layout.prefix)] = tensor
    if model.num_layers > len(found):
        raise UserError(
            f"the tensors in {directory} do not fit its {CONFIG}: it has {model.num_layers} "
            f"blocks, but there are only {len(found)} tensors"
        )
    return found


def _full(layout: Layout, name: str) -> str:
    return name if name.split(".")[0] in layout.heads else layout.prefix + name


def _shapes(model: nn.Module, config: Mapping[str, Json]) -> dict[str, Shape]:
    """The shape of each parameter of a model, block by block."""
    side = config.get("image_size")
    given = jnp.zeros((1, 1), jnp.int32)
    if side is not None:
        given = jax.ShapeDtypeStruct((1, side, side, config["num_channels"]), jnp.float32)
    plain: Any = {"scan": False, "remat": False}
    shapes = jax.eval_shape(model.clone(**plain).init, jax.random.key(0), given)["params"]
    return {path_name(p): x.shape for p, x in jax.tree_util.tree_leaves_with_path(shapes)}


def _unstacked(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """Splits the stacked parameters `blocks` of a scan into `block_0`, `block_1`, ..."""
    found = {}
    for path, array in arrays.items():
        root, _, rest = path.partition(".")
        if root == "blocks":
            found |= {f"block_{i}.{rest}": part for i, part in enumerate(array)}
        else:
            found[path] = array
    return found


def _stacked(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Stacks the parameters of `block_0`, `block_1`, ... into `blocks`."""
    found, blocks = {}, {}
    for path, array in arrays.items():
        root, _, rest = path.partition(".")
        if root.startswith("block_"):
            blocks.setdefault(rest, {})[int(root.removeprefix("block_"))] = array
        else:
            found[path] = array
    stacks = {rest: [parts[i] for i in sorted(parts)] for rest, parts in blocks.items()}
    return found | {f"blocks.{rest}": np.stack(stack) for rest, stack in stacks.items()}


def _image(model: nn.Module, arrays: Mapping[str, Any]) -> dict[str, int]:
    """Infers `image_size` and `num_channels` from the parameters of an image model.

    Raises:
      UserError: the images are not square, or the parameters do not fit the model.
    """
    if not isinstance(model, ViT):
        return {}
    if missing := [name for name in ("positions", "patches.kernel") if name not in arrays]:
        raise UserError(f"the parameters do not fit the model: missing {', '.join(missing)}")
    count = len(arrays["positions"]) - 1
    if math.isqrt(count) ** 2 != count:
        raise UserError(
            f"transformers' ViT reads square images, but this model's have {count} patches"
        )
    channels = len(arrays["patches.kernel"]) // model.patch_size**2
    return {"image_size": model.patch_size * math.isqrt(count), "num_channels": channels}


def _misfits(
    needed: Mapping[str, Shape], given: Mapping[str, Any], known: Iterable[str] = ()
) -> str:
    """Describes missing, unknown and misshapen tensors; empty if there are none.

    Args:
      needed: shapes by name.
      given: tensors or shapes by name.
      known: patterns of names that are also allowed.
    """
    missing = [name for name in needed if name not in given]
    patterns = re.compile("|".join(map(fnmatch.translate, known)) or r"\Z.")
    extra = [name for name in given if name not in needed and not patterns.match(name)]
    parts = [f"missing {', '.join(missing)}"] if missing else []
    parts += [f"unknown {', '.join(extra)}"] if extra else []
    for name, expected in needed.items():
        found = given.get(name)
        has = found.shape if isinstance(found, Tensor) else found
        if found is not None and has != expected:
            parts.append(f"{name} has shape {has}, not {expected}")
        elif isinstance(found, Tensor) and found.dtype not in FLOATS:
            parts.append(f"{name} has dtype {found.dtype}, not a float type")
    return "; ".join(parts)
