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
IMAGES = ("cnn", "resnet50", "vit_s16")
"""Workloads that convolve, and so have channels that may come last."""

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

    def __init__(self, case: Case) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for i in range(len(case.model["channels"])):
            conv = convolution(case.params, f"Conv_{i}", case.model["padding"].lower())
            layers += [conv, nn.ReLU(inplace=True), nn.MaxPool2d(2)]
        with torch.no_grad():
            image = torch.zeros(case.arrays["image"].shape[1:]).permute(2, 0, 1)
            shape = nn.Sequential(*layers)(image[None]).shape[1:]
        layers.append(nn.Flatten())
        for i in range(len(case.model["dense"])):
            dense = linear(case.params, f"Dense_{i}", None if i else shape)
            layers += [dense, nn.ReLU(inplace=True)]
        self.layers = nn.Sequential(*layers, linear(case.params, "logits"))

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        """The mean loss."""
        logits = self.layers(images / 255).float()
        return F.binary_cross_entropy_with_logits(logits[:, 0], labels)


class Bottleneck(nn.Module):
    """`jdl.layers.Residual` with a bottleneck."""

    def __init__(self, params: Params, name: str, strides: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *normed(params, f"{name}.conv0"),
            nn.ReLU(inplace=True),
            *normed(params, f"{name}.conv1", strides),
            nn.ReLU(inplace=True),
            *normed(params, f"{name}.conv2"),
        )
        changes = f"{name}.project.Conv_0.kernel" in params
        project = normed(params, f"{name}.project", strides) if changes else ()
        self.project = nn.Sequential(*project)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels, height, width), height and width divided by the strides."""
        return F.relu(self.layers(x) + self.project(x), inplace=True)


class ResNet(nn.Module):
    """`jdl.models.ResNet50`: images (batch, channels, height, width) uint8, labels int64."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        stem = normed(case.params, "stem", 2)
        blocks = (
            Bottleneck(case.params, f"stage{i}_block{j}", 2 if i and not j else 1)
            for i, count in enumerate(case.model["stages"])
            for j in range(count)
        )
        pool = nn.MaxPool2d(3, 2, 1)
        self.layers = nn.Sequential(*stem, nn.ReLU(inplace=True), pool, *blocks)
        self.logits = linear(case.params, "logits")

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        """The mean loss."""
        x = self.layers(images / 255).mean((2, 3))
        return F.cross_entropy(self.logits(x).float(), labels)


class Recurrent(nn.Module):
    """LSTM layers one upon the other, (batch, time, features) to outputs and last states."""

    def __init__(self, params: Params, layers: int = 1) -> None:
        super().__init__()
        self.lstm = recurrent(params, layers)
        self.onednn = True  # let that library run the LSTM

    def forward(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """As `nn.LSTM`."""
        native = contextlib.nullcontext if self.onednn else torch.backends.mkldnn.flags
        with native():
            return self.lstm(x)


class LSTM(nn.Module):
    """`jdl.models.RNN` with its LSTM: tokens (batch, time) int64, labels float32."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        table = torch.tensor(case.params["Embed_0.embedding"])
        self.embedding = nn.Embedding.from_pretrained(table, freeze=False)
        self.lstm = Recurrent(case.params)
        self.logits = linear(case.params, "logits")

    def forward(self, tokens: Tensor, labels: Tensor) -> Tensor:
        """The mean loss."""
        _, (last, _) = self.lstm(self.embedding(tokens))
        logits = self.logits(last[0]).float()
        return F.binary_cross_entropy_with_logits(logits[:, 0], labels)


class LanguageModel(nn.Module):
    """`jdl.models.RecurrentLM`: tokens and those that follow them, (batch, time) int64."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        table = torch.tensor(case.params["tokens.embedding"])
        self.tokens = nn.Embedding.from_pretrained(table, freeze=False)
        self.lstm = Recurrent(case.params, case.model["layers"])
        self.logits = nn.Parameter(torch.tensor(case.params["logits"]))

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """The mean loss."""
        logits = F.linear(self.lstm(self.tokens(tokens))[0], self.logits).float()
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


class Block(nn.Module):
    """`jdl.layers.Block`: causal and with GPT's GELU, or neither; normed before or after."""

    def __init__(
        self,
        params: Params,
        name: str,
        heads: int,
        causal: bool = True,
        eps: float = 1e-5,
        pre_norm: bool = True,
    ) -> None:
        super().__init__()
        self.heads, self.causal, self.pre_norm = heads, causal, pre_norm
        self.gelu = nn.GELU(approximate="tanh" if causal else "none")
        self.norm1 = layer_norm(params, f"{name}.norm1", eps)
        self.qkv = joint(params, f"{name}.attention.qkv", heads)
        self.output = linear(params, f"{name}.attention.output")
        self.norm2 = layer_norm(params, f"{name}.norm2", eps)
        self.inner = linear(params, f"{name}.feed_forward.inner")
        self.outer = linear(params, f"{name}.feed_forward.outer")

    def forward(self, x: Tensor, seen: Tensor | None = None) -> Tensor:
        """(batch, time, width) to the same; `seen` (batch, 1, 1, time) is True where one looks."""
        if self.pre_norm:
            x = x + self.output(self.attention(self.qkv(self.norm1(x)), seen))
            return x + self.outer(self.gelu(self.inner(self.norm2(x))))
        x = self.norm1(x + self.output(self.attention(self.qkv(x), seen)))
        return self.norm2(x + self.outer(self.gelu(self.inner(x))))

    def attention(self, joint: Tensor, seen: Tensor | None) -> Tensor:
        """Queries, keys and values (batch, time, 3 width) to (batch, time, width)."""
        query, key, value = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in joint.chunk(3, -1)
        )
        x = F.scaled_dot_product_attention(query, key, value, seen, is_causal=self.causal)
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


class ViT(nn.Module):
    """`jdl.models.ViT` of the patches' mean: images (batch, channels, height, width) uint8."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        params, side = case.params, case.model["patch"]
        kernel = params["patches.kernel"].reshape(side, side, -1, case.model["width"])
        patches = {"patches.kernel": kernel, "patches.bias": params["patches.bias"]}
        self.patches = convolution(patches, "patches", 0, side)
        self.positions = nn.Parameter(torch.tensor(params["positions"]))
        heads, layers = case.model["heads"], case.model["layers"]
        self.blocks = nn.Sequential(
            *(Block(params, f"block_{i}", heads, False, 1e-6) for i in range(layers))
        )
        self.norm = layer_norm(params, "norm", 1e-6)
        self.logits = linear(params, "logits")

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        """The mean loss."""
        x = self.patches(images / 255).flatten(2).transpose(1, 2) + self.positions
        logits = self.logits(self.norm(self.blocks(x)).mean(1))
        return F.cross_entropy(logits.float(), labels)


class BERT(nn.Module):
    """`jdl.models.BERT` with one output: tokens (batch, time) int64, labels float32."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        params, model = case.params, case.model
        table = torch.tensor(params["tokens.embedding"])
        self.tokens = nn.Embedding.from_pretrained(table, freeze=False)
        self.positions = nn.Parameter(torch.tensor(params["positions"]))
        self.kinds = nn.Parameter(torch.tensor(params["kinds"]))
        self.norm = layer_norm(params, "norm", 1e-12)
        self.blocks = nn.ModuleList(
            Block(params, f"block_{i}", model["heads"], False, 1e-12, pre_norm=False)
            for i in range(model["layers"])
        )
        self.pooler, self.logits = linear(params, "pooler"), linear(params, "logits")

    def forward(self, tokens: Tensor, labels: Tensor) -> Tensor:
        """The mean loss."""
        x = self.tokens(tokens) + self.positions[: tokens.shape[1]] + self.kinds[0]
        x, seen = self.norm(x), (tokens != 0)[:, None, None]
        for block in self.blocks:
            x = block(x, seen)
        logits = self.logits(torch.tanh(self.pooler(x[:, 0]))).float()
        return F.binary_cross_entropy_with_logits(logits[:, 0], labels)


MODELS = {
    "mlp": MLP,
    "cnn": CNN,
    "resnet50": ResNet,
    "vit_s16": ViT,
    "bert_base": BERT,
    "lstm": LSTM,
    "lstm_lm": LanguageModel,
    "transformer": GPT,
}


def fill(layer: nn.Module, **weights: np.ndarray) -> None:
    """Copies weights, already in PyTorch's form, into a layer's parameters."""
    with torch.no_grad():
        for name, value in weights.items():
            layer.get_parameter(name).copy_(torch.tensor(value))


def joint(params: Params, name: str, heads: int) -> nn.Linear:
    """All queries, all keys, all values, which jdl has side by side for each head."""
    apart = {}
    for path in (f"{name}.kernel", f"{name}.bias"):
        array = params[path]
        parts = array.reshape(*array.shape[:-1], heads, 3, -1).swapaxes(-3, -2)
        apart[path] = parts.reshape(array.shape)
    return linear(apart, name)


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


def tensors(case: Case) -> tuple[Tensor, Tensor]:
    """Inputs and targets of all examples, in the dtypes that PyTorch's layers and losses take."""
    data = {name: torch.tensor(array, device=DEVICE) for name, array in case.arrays.items()}
    if "label" not in data:
        tokens = data["tokens"].long()
        return tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
    label = data["label"].float() if case.model["outputs"] == 1 else data["label"].long()
    if "tokens" in data:
        return data["tokens"].long(), label
    if case.name in IMAGES:
        return data["image"].permute(0, 3, 1, 2).contiguous(), label
    return data["image"], label


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
    if variant == "channels_last" and case.name not in IMAGES:
        known = " and ".join(IMAGES)
        raise UserError(f"channels_last is a layout of images: use it for {known}, not {case.name}")
    if variant == "compile" and case.name in ("lstm", "lstm_lm"):
        raise UserError("torch.compile leaves nn.LSTM to eager mode: use the variant eager")
    torch.set_num_threads(case.threads)
    inputs, targets = tensors(case)
    model = MODELS[case.name](case).to(DEVICE)
    # Compiled for CPUs, images that lie channels first get wrong gradients in PyTorch 2.13.
    if case.name in IMAGES and variant != "eager":
        model = model.to(memory_format=torch.channels_last)
        inputs = inputs.contiguous(memory_format=torch.channels_last)
    if variant == "compile":
        model.compile(fullgraph=True)  # an error where a part would be left to eager mode
    training = Training(case, model, (inputs, targets))
    try:
        training.gradient()  # compiles both passes before anything is timed
    except RuntimeError:
        if not hasattr(model, "lstm") or case.dtype != "bf16":
            raise
        model.lstm.onednn = False  # its LSTM takes bf16 only on CPUs with AVX-512
    return training
