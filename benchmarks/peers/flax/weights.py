"""jdl's weights in Flax's layout."""

import re
from typing import Any

import numpy as np
from flax.traverse_util import unflatten_dict

from benchmarks.trainer import Case


def convert(case: Case) -> Any:
    """Converts jdl's weights to Flax's layout: separate heads and LSTM gates."""
    params: dict[str, np.ndarray] = {}
    for name, array in case.params.items():
        path = name.replace(".feed_forward.", ".")
        if path.startswith(("LSTM_", "GRU_")):
            params |= _gates(*path.split("."), array)
        elif ".attention." in path or ".cross." in path:
            params |= _heads(path, array, case.model["num_heads"])
        elif path == "logits":
            params["logits.kernel"] = array.T
        elif path == "embedding":
            params["embedding.embedding"] = array
        elif path == "patches.kernel":
            side = case.model["patch_size"]
            params[path] = array.reshape(side, side, -1, array.shape[-1])
        else:
            params[re.sub(r"(BatchNorm_\d+)\.BatchNorm_0", r"\1", path)] = array
    return unflatten_dict(params, sep=".")


def _gates(layer: str, name: str, array: np.ndarray) -> dict[str, np.ndarray]:
    """Splits the gates by the names of Flax's cells."""
    gates, biased = ("ifog", "h") if layer.startswith("LSTM") else ("rzn", "i")
    if name == "recurrent_bias":
        return {f"{layer}.hn.bias": array}
    places = {"kernel": "i{}.kernel", "recurrent": "h{}.kernel", "bias": biased + "{}.bias"}
    path = f"{layer}.{places[name]}"
    parts = np.split(array, len(gates), axis=-1)
    return {path.format(gate): part for gate, part in zip(gates, parts, strict=True)}


def _heads(path: str, array: np.ndarray, heads: int) -> dict[str, np.ndarray]:
    """Splits the fused queries, keys and values of each head."""
    place, layer, leaf = path.rsplit(".", 2)
    if layer == "output":
        shape = (heads, -1, array.shape[-1]) if leaf == "kernel" else array.shape
        return {f"{place}.out.{leaf}": array.reshape(shape)}
    names = {"qkv": ("query", "key", "value"), "query": ("query",), "kv": ("key", "value")}[layer]
    parts = np.moveaxis(array.reshape(*array.shape[:-1], heads, len(names), -1), -2, 0)
    return {f"{place}.{name}.{leaf}": part for name, part in zip(names, parts, strict=True)}
