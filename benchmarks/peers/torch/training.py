"""Training as in PyTorch's examples."""

import contextlib
import itertools
import time
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.peers.torch.speech import features
from benchmarks.trainer import Case

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
IMAGES = ("cnn", "resnet50", "cifar10_resnet", "unet", "detector", "gan", "vit_s16")
"""Workloads that convolve, and so have channels that may come last."""


def tensors(case: Case) -> tuple[Tensor, Tensor]:
    """Inputs and targets of all examples, in the dtypes that PyTorch's layers and losses take."""
    data = {name: torch.tensor(array, device=DEVICE) for name, array in case.arrays.items()}
    if "audio" in data:
        return features(data)
    if "source" in data:
        return data["source"].long(), data["target"].long()
    images = data["image"].permute(0, 3, 1, 2).contiguous() if case.name in IMAGES else None
    if "segmentation_mask" in data:
        assert images is not None
        return images, data["segmentation_mask"][..., 0].long()
    if "boxes" in data:
        assert images is not None
        rest = (data[name][..., None].float() for name in ("labels", "boxes_mask"))
        return images, torch.cat([data["boxes"], *rest], -1)
    if "label" not in data:
        tokens = data["tokens"].long()
        return tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
    one = case.model.get("num_classes", case.model.get("features")) == 1
    label = data["label"].float() if one else data["label"].long()
    if "tokens" in data:
        return data["tokens"].long(), label
    if images is not None:
        return images, label
    return data["image"], label


def crop_and_flip(images: Tensor, pad: int) -> Tensor:
    """Images padded with zeros, each cropped and flipped at random."""
    count, _, height, width = images.shape
    padded = F.pad(images, (pad,) * 4)
    begin = torch.randint(0, 2 * pad + 1, (2, count), device=images.device)
    flip = torch.rand(count, device=images.device) < 0.5
    rows = begin[0, :, None] + torch.arange(height, device=images.device)
    columns = torch.arange(width, device=images.device).expand(count, width)
    columns = begin[1, :, None] + torch.where(flip[:, None], columns.flip(1), columns)
    index = torch.arange(count, device=images.device)[:, None, None]
    # Indices around a slice put the channels last: the layout that is fast.
    return padded[index, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


class Training:
    """A model, Adam, and the training data."""

    def __init__(self, case: Case, model: nn.Module, data: tuple[Tensor, Tensor]) -> None:
        self._case, self._model, self._data = case, model, data
        self._first = (data[0][: case.batch], data[1][: case.batch])
        self._feed = self._shuffled() if case.loop else itertools.repeat(self._first)
        half = torch.autocast(DEVICE, torch.bfloat16)
        self._precision = half if case.dtype == "bf16" else contextlib.nullcontext()
        self._initial = {name: value.clone() for name, value in model.state_dict().items()}
        # JAX's float32 products on GPUs are TF32's by default.
        torch.set_float32_matmul_precision("highest" if DEVICE == "cpu" else "high")
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
        if self._case.crop_and_flip:
            batch = (crop_and_flip(batch[0], self._case.crop_and_flip), batch[1])
        loss = self._backward(batch)
        self._optimizer.step()
        return loss
