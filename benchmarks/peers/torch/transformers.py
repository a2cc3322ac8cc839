"""Transformers in the style of nanoGPT."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.peers.torch.weights import Params, convolution, joint, layer_norm, linear
from benchmarks.trainer import Case


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
        """(batch, time, width) to the same; `seen` (batch, 1, 1, time) is the mask."""
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
            Block(params, f"block_{i}", case.model["num_heads"])
            for i in range(case.model["num_layers"])
        )
        self.blocks = nn.Sequential(*blocks)
        self.norm = layer_norm(params, "norm")

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """The mean loss."""
        x = self.tokens(tokens) + self.positions[: tokens.shape[1]]
        logits = F.linear(self.norm(self.blocks(x)), self.tokens.weight).float()
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


class ViT(nn.Module):
    """`jdl.models.ViT` with mean pooling: images (batch, channels, height, width) uint8."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        params, side = case.params, case.model["patch_size"]
        kernel = params["patches.kernel"].reshape(side, side, -1, case.model["embed_dim"])
        patches = {"patches.kernel": kernel, "patches.bias": params["patches.bias"]}
        self.patches = convolution(patches, "patches", 0, side)
        self.positions = nn.Parameter(torch.tensor(params["positions"]))
        heads, layers = case.model["num_heads"], case.model["num_layers"]
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
            Block(params, f"block_{i}", model["num_heads"], False, 1e-12, pre_norm=False)
            for i in range(model["num_layers"])
        )
        self.pooler = None if model["pool"] == "mean" else linear(params, "pooler")
        self.logits = linear(params, "logits")

    def forward(self, tokens: Tensor, labels: Tensor) -> Tensor:
        """The mean loss."""
        x = self.tokens(tokens) + self.positions[: tokens.shape[1]] + self.kinds[0]
        x, seen = self.norm(x), (tokens != 0)[:, None, None]
        for block in self.blocks:
            x = block(x, seen)
        logits = self.logits(self._pool(x, tokens != 0)).float()
        return F.binary_cross_entropy_with_logits(logits[:, 0], labels)

    def _pool(self, x: Tensor, seen: Tensor) -> Tensor:
        if self.pooler is not None:
            return torch.tanh(self.pooler(x[:, 0]))
        return (x * seen[..., None]).sum(1) / seen.sum(1, keepdim=True)
