"""The transformer with an encoder and a decoder, written like `nn.Transformer`."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.peers.torch.weights import Params, joint, layer_norm, linear
from benchmarks.trainer import Case


class Layer(nn.Module):
    """`jdl.layers.Block` with relu: an encoder's, or a causal one with cross-attention."""

    def __init__(
        self, params: Params, name: str, heads: int, decoder: bool, pre_norm: bool
    ) -> None:
        super().__init__()
        self.heads, self.decoder, self.pre_norm = heads, decoder, pre_norm
        self.norm1 = layer_norm(params, f"{name}.norm1")
        self.qkv = joint(params, f"{name}.attention.qkv", heads)
        self.output = linear(params, f"{name}.attention.output")
        if decoder:
            self.norm_cross = layer_norm(params, f"{name}.norm_cross")
            self.query = linear(params, f"{name}.cross.query")
            self.kv = joint(params, f"{name}.cross.kv", heads, 2)
            self.cross_output = linear(params, f"{name}.cross.output")
        self.norm2 = layer_norm(params, f"{name}.norm2")
        self.inner = linear(params, f"{name}.feed_forward.inner")
        self.outer = linear(params, f"{name}.feed_forward.outer")

    def forward(self, x: Tensor, seen: Tensor, memory: Tensor | None = None) -> Tensor:
        """(batch, time, width) to the same.

        `seen` (batch, 1, 1, keys) is True where the source, and so the memory, is no padding.
        """
        if self.pre_norm:
            x = x + self.look_around(self.norm1(x), seen)
            if memory is not None:
                x = x + self.look_at(self.norm_cross(x), memory, seen)
            return x + self.feed_forward(self.norm2(x))
        x = self.norm1(x + self.look_around(x, seen))
        if memory is not None:
            x = self.norm_cross(x + self.look_at(x, memory, seen))
        return self.norm2(x + self.feed_forward(x))

    def look_around(self, x: Tensor, seen: Tensor) -> Tensor:
        """Self-attention."""
        query, key, value = (self.split(part) for part in self.qkv(x).chunk(3, -1))
        mask = None if self.decoder else seen
        x = F.scaled_dot_product_attention(query, key, value, mask, is_causal=self.decoder)
        return self.output(x.transpose(1, 2).flatten(2))

    def look_at(self, x: Tensor, memory: Tensor, seen: Tensor) -> Tensor:
        """Cross-attention to the encoder's output."""
        key, value = (self.split(part) for part in self.kv(memory).chunk(2, -1))
        x = F.scaled_dot_product_attention(self.split(self.query(x)), key, value, seen)
        return self.cross_output(x.transpose(1, 2).flatten(2))

    def feed_forward(self, x: Tensor) -> Tensor:
        """Two dense layers with relu between."""
        return self.outer(F.relu(self.inner(x)))

    def split(self, x: Tensor) -> Tensor:
        """(batch, time, width) to (batch, heads, time, depth)."""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class EncoderDecoder(nn.Module):
    """`jdl.models.EncoderDecoder`: source (batch, keys), target (batch, time + 1), int64."""

    positions: Tensor

    def __init__(self, case: Case) -> None:
        super().__init__()
        params, model = case.params, case.model
        table = torch.tensor(params["embedding"])
        self.embedding = nn.Embedding.from_pretrained(table, freeze=False)
        self.register_buffer(
            "positions", sinusoids(model["max_position_embeddings"], model["embed_dim"])
        )
        self.smoothing, self.scale = case.smoothing, model["embed_dim"] ** 0.5
        shape = (model["num_heads"], model["num_layers"], model["pre_norm"])
        self.encoder, self.encoder_norm = side(params, "encoder", *shape)
        self.decoder, self.decoder_norm = side(params, "decoder", *shape)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        """The mean loss of the target's tokens, padding left out."""
        tokens, targets = target[:, :-1], target[:, 1:]
        memory, seen = self.embed(source), (source != 0)[:, None, None]
        for layer in self.encoder:
            memory = layer(memory, seen)
        memory, x = self.encoder_norm(memory), self.embed(tokens)
        for layer in self.decoder:
            x = layer(x, seen, memory)
        logits = F.linear(self.decoder_norm(x), self.embedding.weight).float()
        return F.cross_entropy(
            logits.flatten(0, 1),
            targets.flatten(),
            ignore_index=0,
            label_smoothing=self.smoothing,
        )

    def embed(self, tokens: Tensor) -> Tensor:
        """(batch, time) to (batch, time, width)."""
        return self.embedding(tokens) * self.scale + self.positions[: tokens.shape[1]]


def side(
    params: Params, name: str, heads: int, layers: int, pre_norm: bool
) -> tuple[nn.ModuleList, nn.Module]:
    """The encoder or the decoder, and its last norm, if it has one."""
    decoder = name == "decoder"
    blocks = (Layer(params, f"{name}.block_{i}", heads, decoder, pre_norm) for i in range(layers))
    norm = layer_norm(params, f"{name}.norm") if pre_norm else nn.Identity()
    return nn.ModuleList(blocks), norm


def sinusoids(length: int, width: int) -> Tensor:
    """Interleaved sines and cosines (length, width), as in PyTorch's tutorial on translation."""
    rates = 10_000 ** (-torch.arange(0, width, 2) / width)
    angles = torch.arange(length)[:, None] * rates
    return torch.stack([angles.sin(), angles.cos()], -1).flatten(1)
