"""DCGAN, whose players take each step from the same parameters.

Everything is mirrored: a strided convolution that pads on the left, as PyTorch's do, is then jdl's,
which pads on the right.
"""

from collections.abc import Iterator

import numpy as np
import torch
import torch._functorch.config
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.peers.torch.training import DEVICE, Training
from benchmarks.peers.torch.weights import Params, convolution, fill, linear
from benchmarks.trainer import Case


class Generator(nn.Module):
    """Noise (batch, features) and classes (batch,) to images in [0, 1]."""

    def __init__(self, case: Case, params: Params) -> None:
        super().__init__()
        channels = case.model["generator_channels"]
        height, width = (side >> len(channels) - 1 for side in case.model["shape"][:2])
        self.shape = channels[0], height, width
        kernel = params["Dense_0.kernel"]
        self.embed = embedding(params["Embed_0.embedding"])
        self.dense = nn.Linear(*kernel.shape, bias=False)
        fill(self.dense, weight=channels_first(kernel, height, width).T)
        self.norms = nn.ModuleList(norm(params, f"BatchNorm_{i}") for i in range(len(channels)))
        self.convs = nn.ModuleList(
            convolution(params, f"Conv_{i}", 1) for i in range(len(channels))
        )

    def forward(self, noise: Tensor, label: Tensor) -> Tensor:
        """(batch, channels, height, width) float32."""
        x = self.dense(noise * self.embed(label)).view(-1, *self.shape)
        *inner, last = self.convs
        for index, conv in enumerate(inner):
            x = F.relu(self.norms[index](x))
            x = conv(F.interpolate(x, scale_factor=2.0))
        return last(F.relu(self.norms[-1](x))).float().sigmoid()


class Critic(nn.Module):
    """Images and classes (batch,) to scores (batch,)."""

    def __init__(self, case: Case, params: Params) -> None:
        super().__init__()
        channels = case.model["critic_channels"]
        height, width = (-(-side // 2 ** len(channels)) for side in case.model["shape"][:2])
        self.convs = nn.ModuleList(
            convolution(params, f"Conv_{i}", 1, 2) for i in range(len(channels))
        )
        kernel = params["Dense_0.kernel"].reshape(height, width, -1, 1)[::-1, ::-1]
        flat = {**params, "Dense_0.kernel": kernel.reshape(-1, 1)}
        self.dense = linear(flat, "Dense_0", (channels[-1], height, width))
        self.embed = embedding(channels_first(params["Embed_0.embedding"], height, width))

    def forward(self, image: Tensor, label: Tensor) -> Tensor:
        """(batch,) float32."""
        x = image
        for conv in self.convs:
            x = F.leaky_relu(conv(x), 0.2)
        x = x.flatten(1)
        return (self.dense(x)[:, 0] + (self.embed(label) * x).sum(1)).float()


class GAN(nn.Module):
    """`jdl.models.DCGAN` with classes."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        params = {
            name: array[::-1, ::-1] if array.ndim == 4 else array
            for name, array in case.params.items()
        }
        parts = {
            player: {
                name.removeprefix(f"{player}."): array
                for name, array in params.items()
                if name.startswith(player)
            }
            for player in ("generator", "critic")
        }
        self.generator = Generator(case, parts["generator"])
        self.critic = Critic(case, parts["critic"])


class Adversarial(Training):
    """Both players, Adam, and the training data."""

    def __init__(self, case: Case, model: GAN, data: tuple[Tensor, Tensor]) -> None:
        # Both backward passes go through what the critic has computed of the generated images.
        torch._functorch.config.donated_buffer = False
        self._players, self._given, self._taken = model, iter(()), 0
        super().__init__(case, model, (data[0].flip(2, 3), data[1]))

    def run(self, steps: int) -> float:
        """See `Trainer.run`."""
        self._given = iter(())
        return super().run(steps)

    def _reset(self) -> None:
        super()._reset()
        self._given: Iterator[Tensor] = iter(torch.tensor(self._case.noise, device=DEVICE))
        self._taken = 0

    def _backward(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Sets the gradients of each player's non-saturating loss, the critic's with R1."""
        image, label = batch[0] / 255, batch[1]
        generator, critic = self._players.generator, self._players.critic
        noise = next(self._given, None)
        if noise is None:
            noise = torch.randn(len(image), generator.dense.in_features, device=DEVICE)
        penalize = self._taken % self._case.penalty_every == 0
        self._taken += 1
        self._optimizer.zero_grad()
        with self._precision:
            score = critic(generator(noise, label), label)
            own, its = F.softplus(-score).mean(), F.softplus(score).mean()
            its = its + F.softplus(-critic(image, label)).mean()
            if penalize:
                its = its + self._case.penalty_every * self._penalty(image, label)
        own.backward(inputs=list(generator.parameters()), retain_graph=True)
        its.backward(inputs=list(critic.parameters()))
        return (own + its).detach()

    def _penalty(self, image: Tensor, label: Tensor) -> Tensor:
        image = image.requires_grad_()
        # Not compiled: compiled functions cannot be differentiated twice.
        scores = self._players.critic.forward(image, label)
        (slopes,) = torch.autograd.grad(scores.sum(), image, create_graph=True)
        return self._case.r1 / 2 * slopes.square().sum((1, 2, 3)).mean()


def embedding(weights: np.ndarray) -> nn.Embedding:
    """An embedding of classes."""
    layer = nn.Embedding(*weights.shape)
    fill(layer, weight=weights)
    return layer


def norm(params: Params, name: str) -> nn.BatchNorm2d:
    """Batch norm."""
    scale, bias = (params[f"{name}.BatchNorm_0.{leaf}"] for leaf in ("scale", "bias"))
    layer = nn.BatchNorm2d(len(scale), eps=1e-5, momentum=0.01)  # the share that is new
    fill(layer, weight=scale, bias=bias)
    return layer


def channels_first(matrix: np.ndarray, height: int, width: int) -> np.ndarray:
    """Columns (height, width, channels), joined, to mirrored (channels, height, width)."""
    apart = matrix.reshape(len(matrix), height, width, -1)[:, ::-1, ::-1]
    return apart.transpose(0, 3, 1, 2).reshape(matrix.shape)
