"""Convolutional encoder of speech with `torch.nn.functional.ctc_loss`."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.peers.torch.weights import Params, fill, layer_norm, linear
from benchmarks.trainer import Case


class SpeechEncoder(nn.Module):
    """`jdl.models.SpeechEncoder`: features (batch, frames, bands + 1), whose last is the mask."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        params, self.stride = case.params, case.model["stride"]
        self.embed, self.logits = linear(params, "embed"), linear(params, "logits")
        self.norm = layer_norm(params, "norm", 1e-6)
        places = range(len(case.model["dilations"]))
        self.norms = nn.ModuleList(layer_norm(params, f"norm_{i}", 1e-6) for i in places)
        self.mixes = nn.ModuleList(linear(params, f"mix_{i}") for i in places)
        self.convolutions = nn.ModuleList(
            convolution(params, f"conv_{i}", dilation)
            for i, dilation in enumerate(case.model["dilations"])
        )

    def forward(self, inputs: Tensor, tokens: Tensor) -> Tensor:
        """The mean loss over tokens, padded with 0, the blank."""
        kept, x = inputs[..., -1:], inputs[..., :-1]
        count, frames, _ = x.shape
        x = (x * kept).reshape(count, frames // self.stride, -1)
        kept = kept.reshape(count, frames // self.stride, -1).amax(-1, keepdim=True)
        x = self.embed(x)
        layers = zip(self.norms, self.convolutions, self.mixes, strict=True)
        for norm, convolution, mix in layers:
            y = (norm(x) * kept).transpose(1, 2)
            y = F.gelu(convolution(y).transpose(1, 2), approximate="tanh")
            x = x + mix(y)
        logits = self.logits(self.norm(x)).float()
        lengths = (tokens > 0).sum(1)
        loss = F.ctc_loss(
            logits.log_softmax(-1).transpose(0, 1),
            tokens,
            kept[..., 0].sum(1).long(),
            lengths,
            reduction="sum",
        )
        return loss / lengths.sum()


def convolution(params: Params, name: str, dilation: int) -> nn.Conv1d:
    """A convolution over time from a kernel (steps, inputs, outputs)."""
    kernel = params[f"{name}.kernel"]
    size, inputs, outputs = kernel.shape
    layer = nn.Conv1d(inputs, outputs, size, padding="same", dilation=dilation)
    fill(layer, weight=kernel.transpose(2, 1, 0), bias=params[f"{name}.bias"])
    return layer


def features(data: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Features with their mask as a further band, and tokens."""
    mask = data["audio_mask"][..., None].float()
    return torch.cat([data["audio"], mask], -1), data["tokens"].long()
