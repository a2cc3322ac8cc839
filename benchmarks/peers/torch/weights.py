"""PyTorch layers initialized with jdl's weights."""

import numpy as np
import torch
from torch import nn

Params = dict[str, np.ndarray]


def fill(layer: nn.Module, **weights: np.ndarray) -> None:
    """Copies weights in PyTorch's layout into a layer's parameters."""
    with torch.no_grad():
        for name, value in weights.items():
            layer.get_parameter(name).copy_(torch.tensor(np.ascontiguousarray(value)))


def joint(params: Params, name: str, heads: int, kinds: int = 3) -> nn.Linear:
    """Fuses all queries, keys and values, or the last two; jdl's are grouped by head."""
    apart = {}
    for path in (f"{name}.kernel", f"{name}.bias"):
        array = params[path]
        parts = array.reshape(*array.shape[:-1], heads, kinds, -1).swapaxes(-3, -2)
        apart[path] = parts.reshape(array.shape)
    return linear(apart, name)


def linear(params: Params, name: str, shape: tuple[int, ...] | None = None) -> nn.Linear:
    """A dense layer; `shape` (channels, height, width) is what was flattened before it, if so.

    jdl flattens channels last and PyTorch channels first: the inputs are permuted.
    """
    kernel, bias = params[f"{name}.kernel"], params[f"{name}.bias"]
    if shape:
        channels, height, width = shape
        kernel = kernel.reshape(height, width, channels, -1).transpose(2, 0, 1, 3)
        kernel = kernel.reshape(channels * height * width, -1)
    layer = nn.Linear(*kernel.shape)
    fill(layer, weight=kernel.T, bias=bias)
    return layer


def convolution(
    params: Params, name: str, padding: str | int, strides: int | tuple[int, int] = 1
) -> nn.Conv2d:
    """A convolution from a kernel (height, width, inputs, outputs), biased where jdl's is."""
    kernel, bias = params[f"{name}.kernel"], params.get(f"{name}.bias")
    height, width, inputs, outputs = kernel.shape
    options = {"padding": padding, "bias": bias is not None}
    layer = nn.Conv2d(inputs, outputs, (height, width), strides, **options)
    fill(layer, weight=kernel.transpose(3, 2, 0, 1), **({} if bias is None else {"bias": bias}))
    return layer


def normed(params: Params, name: str, strides: int = 1) -> tuple[nn.Conv2d, nn.BatchNorm2d]:
    """`jdl.layers.NormedConv`."""
    size = len(params[f"{name}.Conv_0.kernel"])
    scale, bias = (params[f"{name}.BatchNorm_0.BatchNorm_0.{leaf}"] for leaf in ("scale", "bias"))
    norm = nn.BatchNorm2d(len(scale), eps=1e-5, momentum=0.1)  # the share that is new
    fill(norm, weight=scale, bias=bias)
    return convolution(params, f"{name}.Conv_0", size // 2, strides), norm


def recurrent(params: Params, layers: int) -> nn.LSTM:
    """LSTMs whose second bias stays zero, so that both together move as jdl's one does."""
    lstm = nn.LSTM(
        len(params["LSTM_0.kernel"]), len(params["LSTM_0.recurrent"]), layers, batch_first=True
    )
    for index in range(layers):
        kernel, outer, bias = (
            params[f"LSTM_{index}.{part}"] for part in ("kernel", "recurrent", "bias")
        )
        i, f, o, g = np.split(np.arange(len(bias)), 4)
        order = np.concatenate([i, f, g, o])
        weights = {
            "weight_ih": kernel.T[order],
            "weight_hh": outer.T[order],
            "bias_ih": bias[order],
            "bias_hh": np.zeros_like(bias),
        }
        fill(lstm, **{f"{name}_l{index}": value for name, value in weights.items()})
        lstm.get_parameter(f"bias_hh_l{index}").requires_grad_(False)
    return lstm


def layer_norm(params: Params, name: str, eps: float = 1e-5) -> nn.LayerNorm:
    """A layer norm."""
    scale, bias = params[f"{name}.scale"], params[f"{name}.bias"]
    layer = nn.LayerNorm(len(scale), eps=eps)
    fill(layer, weight=scale, bias=bias)
    return layer
