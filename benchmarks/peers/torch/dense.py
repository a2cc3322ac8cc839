"""U-Net, with the losses of segmentation and of detection by centers."""

import itertools
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.peers.torch.weights import Params, convolution, fill, linear
from benchmarks.trainer import Case

PRIOR = 0.1
"""Probability of a center where the output is 0."""


class UNet(nn.Module):
    """`jdl.models.UNet`: images (batch, channels, height, width) uint8, masks int64."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.stride = case.model["stride"]
        numbers = itertools.count()
        levels = case.model["channels"]
        self.down = nn.ModuleList(block(case.params, numbers) for _ in levels)
        self.up = nn.ModuleList(block(case.params, numbers) for _ in levels[1:])
        self.pool = nn.MaxPool2d(2, ceil_mode=True)
        self.logits = linear(case.params, "logits")

    def outputs(self, images: Tensor) -> Tensor:
        """(batch, features, height / stride, width / stride) float32."""
        count, channels, height, width = images.shape
        side = self.stride
        x = (images / 255).view(count, channels, height // side, side, width // side, side)
        x = x.permute(0, 3, 5, 1, 2, 4).reshape(count, -1, height // side, width // side)
        skips: list[Tensor] = []
        for level, layers in enumerate(self.down):
            if level:
                skips.append(x)
                x = self.pool(x)
            x = layers(x)
        for layers in self.up:
            skip = skips.pop()
            x = F.interpolate(x, scale_factor=2.0)[:, :, : skip.shape[2], : skip.shape[3]]
            x = layers(torch.cat([x, skip], 1))
        return F.conv2d(x, self.logits.weight[:, :, None, None], self.logits.bias).float()

    def forward(self, images: Tensor, masks: Tensor) -> Tensor:
        """The mean cross-entropy over pixels of a class; the id after the last is ignored."""
        logits = F.interpolate(self.outputs(images), masks.shape[1:], mode="bilinear")
        return F.cross_entropy(logits, masks, ignore_index=logits.shape[1])


class Detector(UNet):
    """The same, with boxes (batch, n, 6): corners, class, and 1, or 0 for padding."""

    def forward(self, images: Tensor, objects: Tensor) -> Tensor:
        """The penalty-reduced focal loss and L1 of offset and log size, a mean over boxes."""
        outputs = self.outputs(images)
        heat, found = outputs[:, :-4] + math.log(PRIOR / (1 - PRIOR)), outputs[:, -4:].flatten(2)
        _, classes, height, width = heat.shape
        boxes, labels, kept = objects[..., :4], objects[..., 4].long(), objects[..., 5]
        cells = boxes * (width / images.shape[3])
        center, side = (cells[..., :2] + cells[..., 2:]) / 2, cells[..., 2:] - cells[..., :2]
        place = center.floor().clamp(min=0)
        place = place.minimum(place.new_tensor([width - 1, height - 1]))
        spread = (0.54 * side + 1) / 6
        columns, rows = torch.arange(width), torch.arange(height)
        across = (columns.to(place) - place[..., :1]) / spread[..., :1]
        down = (rows.to(place) - place[..., 1:]) / spread[..., 1:]
        gaussians = (-(down[..., :, None] ** 2 + across[..., None, :] ** 2) / 2).exp()
        own = F.one_hot(labels, classes) * kept[..., None]
        target = (gaussians[:, :, None] * own[..., None, None]).amax(1)
        share = heat.sigmoid()
        focal = torch.where(
            target == 1,
            (1 - share) ** 2 * F.softplus(-heat),
            (1 - target) ** 4 * share**2 * F.softplus(heat),
        )
        index = (place[..., 1] * width + place[..., 0]).long()
        found = found.gather(2, index[:, None].expand(-1, 4, -1)).transpose(1, 2)
        wanted = torch.cat([center - place, side.log()], -1)
        # Padding has the size 0, whose logarithm is infinite.
        l1 = torch.where(kept[..., None] > 0, (found - wanted).abs(), 0).sum()
        return (focal.sum() + l1) / kept.sum(1).clamp(min=1).sum()


def block(params: Params, numbers: "itertools.count[int]") -> nn.Sequential:
    """Two convolutions, each with group norm and relu."""
    layers: list[nn.Module] = []
    for index in itertools.islice(numbers, 2):
        scale, bias = (params[f"GroupNorm_{index}.{leaf}"] for leaf in ("scale", "bias"))
        norm = nn.GroupNorm(len(scale) // 8, len(scale), eps=1e-6)
        fill(norm, weight=scale, bias=bias)
        layers += [convolution(params, f"Conv_{index}", 1), norm, nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)
