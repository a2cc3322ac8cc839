"""Networks other than transformers, as in PyTorch's examples."""

import contextlib
import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.peers.torch.weights import Params, convolution, linear, normed, recurrent
from benchmarks.trainer import Case


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
            for i, count in enumerate(case.model["stage_sizes"])
            for j in range(count)
        )
        pool = nn.MaxPool2d(3, 2, 1)
        self.layers = nn.Sequential(*stem, nn.ReLU(inplace=True), pool, *blocks)
        self.logits = linear(case.params, "logits")

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        """The mean loss."""
        x = self.layers(images / 255).mean((2, 3))
        return F.cross_entropy(self.logits(x).float(), labels)


class Basic(nn.Module):
    """`jdl.layers.Residual` without a bottleneck, its shortcut padded with zero channels."""

    def __init__(self, params: Params, name: str, strides: int) -> None:
        super().__init__()
        first, second = (normed(params, f"{name}.conv{i}", s) for i, s in ((0, strides), (1, 1)))
        self.layers = nn.Sequential(*first, nn.ReLU(inplace=True), *second)
        self.strides = strides

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels, height, width), height and width divided by the strides."""
        y = self.layers(x)
        x = x[:, :, :: self.strides, :: self.strides]
        return F.relu(y + F.pad(x, (0, 0, 0, 0, 0, y.shape[1] - x.shape[1])), inplace=True)


class SmallResNet(nn.Module):
    """`jdl.models.ResNet8`: images (batch, channels, height, width) uint8, labels int64."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        blocks = (
            Basic(case.params, f"stage{i}_block{j}", 2 if i and not j else 1)
            for i, count in enumerate(case.model["stage_sizes"])
            for j in range(count)
        )
        stem = normed(case.params, "stem")
        self.layers = nn.Sequential(*stem, nn.ReLU(inplace=True), *blocks)
        self.logits = linear(case.params, "logits")

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        """The mean loss."""
        x = self.layers(images / 255).mean((2, 3))
        return F.cross_entropy(self.logits(x).float(), labels)


class Recurrent(nn.Module):
    """Stacked LSTM layers, (batch, time, features) to outputs and last states."""

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
        self.lstm = Recurrent(case.params, case.model["num_layers"])
        self.logits = nn.Parameter(torch.tensor(case.params["logits"]))

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """The mean loss."""
        logits = F.linear(self.lstm(self.tokens(tokens))[0], self.logits).float()
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())
