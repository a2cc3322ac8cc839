"""PyTorch, on an NVIDIA card where there is one: models as its examples write them.

The initial weights are jdl's.
Variants: `eager`; `channels_last`, the memory layout that PyTorch recommends for convolutions; and
`compile`, where the model and its loss go through `torch.compile`, images again channels last.
"""

import contextlib
import itertools
import time
from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.trainer import Case
from jdl.errors import UserError, nearest

VERSION = torch.__version__
VARIANTS = ("eager", "compile", "channels_last")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

Params = dict[str, np.ndarray]


class MLP(nn.Module):
    """`jdl.models.MLP`: images (batch, height, width, channels) uint8, labels int64."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        hidden = [f"Dense_{i}" for i in range(len(case.model["widths"]))]
        dense = itertools.chain(*((linear(case.params, name), nn.ReLU()) for name in hidden))
        self.layers = nn.Sequential(nn.Flatten(), *dense, linear(case.params, "logits"))

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        """The mean loss."""
        return F.cross_entropy(self.layers(images / 255).float(), labels)


class CNN(nn.Module):
    """`jdl.models.CNN`: images (batch, channels, height, width) uint8, labels float32."""

    def __init__(self, case: Case, images: Tensor) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for i in range(len(case.model["channels"])):
            conv = convolution(case.params, f"Conv_{i}", case.model["padding"])
            layers += [conv, nn.ReLU(inplace=True), nn.MaxPool2d(2)]
        with torch.no_grad():
            shape = nn.Sequential(*layers)(images[:1].cpu() / 255).shape[1:]
        layers.append(nn.Flatten())
        for i in range(len(case.model["dense"])):
            dense = linear(case.params, f"Dense_{i}", None if i else shape)
            layers += [dense, nn.ReLU(inplace=True)]
        self.layers = nn.Sequential(*layers, linear(case.params, "logits"))

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        """The mean loss."""
        logits = self.layers(images / 255).float()
        return F.binary_cross_entropy_with_logits(logits[:, 0], labels)


class LSTM(nn.Module):
    """`jdl.models.RNN` with its LSTM: tokens (batch, time) int64, labels float32."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        table = torch.tensor(case.params["Embed_0.embedding"])
        self.embedding = nn.Embedding.from_pretrained(table, freeze=False)
        self.lstm = recurrent(case.params, "LSTM_0")
        self.logits = linear(case.params, "logits")
        self.onednn = True  # let that library run the LSTM

    def forward(self, tokens: Tensor, labels: Tensor) -> Tensor:
        """The mean loss."""
        native = contextlib.nullcontext if self.onednn else torch.backends.mkldnn.flags
        with native():
            _, (last, _) = self.lstm(self.embedding(tokens))
        logits = self.logits(last[0]).float()
        return F.binary_cross_entropy_with_logits(logits[:, 0], labels)


class Block(nn.Module):
    """`jdl.layers.Block`, causal."""

    def __init__(self, params: Params, name: str, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = layer_norm(params, f"{name}.norm1")
        self.qkv = linear(params, f"{name}.attention.qkv")
        self.output = linear(params, f"{name}.attention.output")
        self.norm2 = layer_norm(params, f"{name}.norm2")
        self.inner = linear(params, f"{name}.inner")
        self.outer = linear(params, f"{name}.outer")

    def forward(self, x: Tensor) -> Tensor:
        """(batch, time, width) to the same."""
        x = x + self.output(self.attention(self.qkv(self.norm1(x))))
        return x + self.outer(F.gelu(self.inner(self.norm2(x)), approximate="tanh"))

    def attention(self, joint: Tensor) -> Tensor:
        """Queries, keys and values (batch, time, 3 width) to (batch, time, width)."""
        query, key, value = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in joint.chunk(3, -1)
        )
        x = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        return x.transpose(1, 2).flatten(2)


class GPT(nn.Module):
    """`jdl.models.GPT`: tokens and those that follow them, (batch, time) int64."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        params = case.params
        table = torch.tensor(params["tokens.embedding"])
        self.tokens = nn.Embedding.from_pretrained(table, freeze=False)
        self.positions = nn.Parameter(torch.tensor(params["positions"]))
        blocks = (
            Block(params, f"block_{i}", case.model["heads"]) for i in range(case.model["layers"])
        )
        self.blocks = nn.Sequential(*blocks)
        self.norm = layer_norm(params, "norm")

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """The mean loss."""
        x = self.tokens(tokens) + self.positions[: tokens.shape[1]]
        logits = F.linear(self.norm(self.blocks(x)), self.tokens.weight).float()
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def fill(layer: nn.Module, **weights: np.ndarray) -> None:
    """Copies weights, already in PyTorch's form, into a layer's parameters."""
    with torch.no_grad():
        for name, value in weights.items():
            layer.get_parameter(name).copy_(torch.tensor(value))


def linear(params: Params, name: str, shape: tuple[int, ...] | None = None) -> nn.Linear:
    """A dense layer; `shape` (channels, height, width) is what was flattened before it, if so.

    jdl flattens channels last and PyTorch channels first: the inputs change places.
    """
    kernel, bias = params[f"{name}.kernel"], params[f"{name}.bias"]
    if shape:
        channels, height, width = shape
        kernel = kernel.reshape(height, width, channels, -1).transpose(2, 0, 1, 3)
        kernel = kernel.reshape(channels * height * width, -1)
    layer = nn.Linear(*kernel.shape)
    fill(layer, weight=kernel.T, bias=bias)
    return layer


def convolution(params: Params, name: str, padding: str) -> nn.Conv2d:
    """A convolution from a kernel (height, width, inputs, outputs)."""
    kernel, bias = params[f"{name}.kernel"], params[f"{name}.bias"]
    height, width, inputs, outputs = kernel.shape
    layer = nn.Conv2d(inputs, outputs, (height, width), padding=padding.lower())
    fill(layer, weight=kernel.transpose(3, 2, 0, 1), bias=bias)
    return layer


def recurrent(params: Params, name: str) -> nn.LSTM:
    """An LSTM whose second bias stays zero, so that both together move as jdl's one does."""
    kernel, outer, bias = (params[f"{name}.{part}"] for part in ("kernel", "recurrent", "bias"))
    i, f, o, g = np.split(np.arange(len(bias)), 4)
    order = np.concatenate([i, f, g, o])
    layer = nn.LSTM(kernel.shape[0], outer.shape[0], batch_first=True)
    fill(
        layer,
        weight_ih_l0=kernel.T[order],
        weight_hh_l0=outer.T[order],
        bias_ih_l0=bias[order],
        bias_hh_l0=np.zeros_like(bias),
    )
    layer.bias_hh_l0.requires_grad_(False)
    return layer


def layer_norm(params: Params, name: str) -> nn.LayerNorm:
    """A layer norm."""
    scale, bias = params[f"{name}.scale"], params[f"{name}.bias"]
    layer = nn.LayerNorm(len(scale), eps=1e-5)
    fill(layer, weight=scale, bias=bias)
    return layer


def tensors(case: Case) -> tuple[Tensor, Tensor]:
    """Inputs and targets of all examples, in the dtypes that PyTorch's layers and losses take."""
    data = {name: torch.tensor(array, device=DEVICE) for name, array in case.arrays.items()}
    if case.name == "transformer":
        tokens = data["tokens"].long()
        return tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
    if case.name == "lstm":
        return data["tokens"].long(), data["label"].float()
    if case.name == "cnn":
        return data["image"].permute(0, 3, 1, 2).contiguous(), data["label"].float()
    return data["image"], data["label"].long()


class Training:
    """A model, Adam, and the data that it is trained on."""

    def __init__(self, case: Case, model: nn.Module, data: tuple[Tensor, Tensor]) -> None:
        self._case, self._model, self._data = case, model, data
        self._first = (data[0][: case.batch], data[1][: case.batch])
        self._feed = self._shuffled() if case.loop else itertools.repeat(self._first)
        half = torch.autocast(DEVICE, torch.bfloat16)
        self._precision = half if case.dtype == "bf16" else contextlib.nullcontext()
        self._initial = {name: value.clone() for name, value in model.state_dict().items()}
        self._reset()

    def gradient(self) -> tuple[float, float]:
        """See `Trainer.gradient`."""
        self._reset()
        loss = self._backward(self._first)
        gradients = [p.grad.flatten() for p in self._model.parameters() if p.grad is not None]
        # In float32 the sum over millions of squares would be wrong in the fourth digit.
        norm = torch.linalg.vector_norm(torch.cat(gradients), dtype=torch.float64)
        return loss.item(), norm.item()

    def curve(self, steps: int) -> list[float]:
        """See `Trainer.curve`."""
        self._reset()
        return [self._step(self._first).item() for _ in range(steps)]

    def run(self, steps: int) -> float:
        """See `Trainer.run`; reading the mean loss waits for the device."""
        total = torch.zeros((), device=DEVICE)
        begun = time.perf_counter()
        for batch in itertools.islice(self._feed, steps):
            total += self._step(batch)
        _ = (total / steps).item()  # what a user would log
        return time.perf_counter() - begun

    def _reset(self) -> None:
        self._model.load_state_dict(self._initial)
        trained = (p for p in self._model.parameters() if p.requires_grad)
        case = self._case
        self._optimizer = torch.optim.Adam(trained, lr=case.rate, eps=case.eps, fused=True)

    def _shuffled(self) -> Iterator[tuple[Tensor, Tensor]]:
        inputs, targets = self._data
        while True:
            for rows in torch.randperm(len(inputs)).split(self._case.batch):
                yield inputs[rows], targets[rows]

    def _backward(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        self._optimizer.zero_grad()
        with self._precision:
            loss = self._model(*batch)
        loss.backward()
        return loss.detach()

    def _step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        loss = self._backward(batch)
        self._optimizer.step()
        return loss


def build(case: Case, variant: str) -> Training:
    """The trainer of a workload.

    Raises:
      UserError: if the variant is unknown, or of no use to the workload.
    """
    if variant not in VARIANTS:
        raise UserError(
            f"torch has no variant {variant!r}, only {', '.join(VARIANTS)}"
            + nearest(variant, VARIANTS)
        )
    if variant == "channels_last" and case.name != "cnn":
        raise UserError(f"channels_last is a layout of images: use it for cnn, not {case.name}")
    if variant == "compile" and case.name == "lstm":
        raise UserError("torch.compile leaves nn.LSTM to eager mode: use the variant eager")
    torch.set_num_threads(case.threads)
    inputs, targets = tensors(case)
    if case.name == "cnn":
        model = CNN(case, inputs)
    else:
        model = {"mlp": MLP, "lstm": LSTM, "transformer": GPT}[case.name](case)
    model = model.to(DEVICE)
    # Compiled for CPUs, images that lie channels first get wrong gradients in PyTorch 2.13.
    if case.name == "cnn" and variant != "eager":
        model = model.to(memory_format=torch.channels_last)
        inputs = inputs.contiguous(memory_format=torch.channels_last)
    if variant == "compile":
        model.compile(fullgraph=True)  # an error where a part would be left to eager mode
    training = Training(case, model, (inputs, targets))
    try:
        training.gradient()  # compiles both passes before anything is timed
    except RuntimeError:
        if not isinstance(model, LSTM) or case.dtype != "bf16":
            raise
        model.onednn = False  # its LSTM takes bf16 only on CPUs with AVX-512
    return training
