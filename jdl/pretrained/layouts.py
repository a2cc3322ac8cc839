"""Tables that map fields and parameters of jdl's models to Hugging Face transformers.

Letters of axes: v vocabulary, t positions, k token types, n positions of an image, w and o the
width, h heads, d head dimension, q the query, key and value, f hidden units, c classes, y and x
rows and columns of a patch, i channels.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax

from jdl.layers import exact_gelu
from jdl.models import BERT, GPT, ViT
from jdl.pretrained.axes import axes

ACTIVATIONS: Mapping[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": exact_gelu,
    "gelu_new": nn.gelu,
    "gelu_pytorch_tanh": nn.gelu,
    "relu": nn.relu,
    "silu": nn.silu,
}
"""Activations by name in transformers; the first name of a function is the one written."""

LABELS = "labels"
"""Placeholder for the number of classes, given by `id2label` in config.json."""


@dataclass(frozen=True)
class Entry:
    """A field of a model and the equivalent entry of config.json."""

    field: str
    key: str
    default: Any  # the default of transformers


@dataclass(frozen=True)
class Row:
    """A parameter and the tensors that hold it; `*` is the index of the block."""

    path: str
    tensor: str  # a part such as `query|key|value` names several, stacked along a new axis 0
    source: str  # axes of the tensors (see `jdl.pretrained.axes`)
    target: str  # axes of the parameter


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The format of one model type."""

    kind: str  # its `model_type` in config.json
    model: type[nn.Module]
    architectures: Mapping[str, Mapping[str, Any]]  # classes of transformers: fields that differ
    prefix: str  # prefix of all tensor names except those of a head
    heads: tuple[str, ...]  # first parts of a head's tensor names; without a head, no prefix
    entries: tuple[Entry, ...]
    fixed: Mapping[str, Any]  # fields that config.json cannot represent, with the values it implies
    required: Mapping[str, Any]  # entries with the only supported value, which is also the default
    rows: tuple[Row, ...]
    unused: tuple[str, ...]  # patterns of tensors that repeat others or belong to unsupported heads
    written: Mapping[str, Any]  # other entries, which affect training in transformers only
    images: bool = False  # whether inputs are images: uses `image_size` and `num_channels`


def _dense(path: str, tensor: str, source: str, target: str) -> tuple[Row, Row]:
    """Kernel and bias of a dense layer; the bias has the kernel's output axes."""
    outputs = axes(target)[-1]
    kept = [axis for axis in axes(source) if set(axis) <= set(outputs)]
    return (
        Row(f"{path}.kernel", f"{tensor}.weight", source, target),
        Row(f"{path}.bias", f"{tensor}.bias", _side(kept), _side([outputs])),
    )


def _side(axes: list[list[str]]) -> str:
    return " ".join(f"({' '.join(axis)})" for axis in axes)


def _norm(path: str, tensor: str) -> tuple[Row, Row]:
    return (
        Row(f"{path}.scale", f"{tensor}.weight", "w", "w"),
        Row(f"{path}.bias", f"{tensor}.bias", "w", "w"),
    )


def _encoder(
    attention: str, output: str, norm1: str, norm2: str, inner: str, outer: str
) -> tuple[Row, ...]:
    """A block of BERT or ViT, given the layers' names in transformers."""
    layer = "encoder.layer.*"
    return (
        *_dense(
            "block_*.attention.qkv", f"{layer}.{attention}.query|key|value",
            "q (h d) w", "w (h q d)",
        ),
        *_dense("block_*.attention.output", f"{layer}.{output}", "w (h d)", "(h d) w"),
        *_norm("block_*.norm1", f"{layer}.{norm1}"),
        *_norm("block_*.norm2", f"{layer}.{norm2}"),
        *_dense("block_*.feed_forward.inner", f"{layer}.{inner}", "f w", "w f"),
        *_dense("block_*.feed_forward.outer", f"{layer}.{outer}", "w f", "f w"),
    )  # fmt: skip


_ENCODER_ENTRIES = (
    Entry("num_layers", "num_hidden_layers", 12),
    Entry("num_heads", "num_attention_heads", 12),
    Entry("embed_dim", "hidden_size", 768),
    Entry("mlp_dim", "intermediate_size", 3072),
    Entry("activation", "hidden_act", "gelu"),
    Entry("epsilon", "layer_norm_eps", 1e-12),
)
"""Entries that BERT and ViT share."""

GPT2_LAYOUT = Layout(
    kind="gpt2",
    model=GPT,
    architectures={"GPT2LMHeadModel": {}},
    prefix="transformer.",
    heads=("lm_head",),
    entries=(
        Entry("vocab_size", "vocab_size", 50_257),
        Entry("max_position_embeddings", "n_positions", 1024),
        Entry("num_layers", "n_layer", 12),
        Entry("num_heads", "n_head", 12),
        Entry("embed_dim", "n_embd", 768),
        Entry("mlp_dim", "n_inner", None),
        Entry("activation", "activation_function", "gelu_new"),
        Entry("epsilon", "layer_norm_epsilon", 1e-5),
        Entry("tie_word_embeddings", "tie_word_embeddings", True),
        Entry("dropout_rate", "resid_pdrop", 0.1),
        Entry("dropout_rate", "embd_pdrop", 0.1),
    ),
    fixed={
        "num_kv_heads": None, "position_embedding": "learned", "norm": "layer",
        "gated": False, "use_bias": True,
    },
    required={
        "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False,
        "add_cross_attention": False,
    },
    written={"attn_pdrop": 0.0},
    rows=(
        Row("tokens.embedding", "wte.weight", "v w", "v w"),
        Row("positions", "wpe.weight", "t w", "t w"),
        *_norm("block_*.norm1", "h.*.ln_1"),
        *_dense("block_*.attention.qkv", "h.*.attn.c_attn", "w (q h d)", "w (h q d)"),
        *_dense("block_*.attention.output", "h.*.attn.c_proj", "(h d) w", "(h d) w"),
        *_norm("block_*.norm2", "h.*.ln_2"),
        *_dense("block_*.feed_forward.inner", "h.*.mlp.c_fc", "w f", "w f"),
        *_dense("block_*.feed_forward.outer", "h.*.mlp.c_proj", "f w", "f w"),
        *_norm("norm", "ln_f"),
        Row("logits", "lm_head.weight", "v w", "v w"),
    ),
    unused=("h.*.attn.bias", "h.*.attn.masked_bias"),  # masks
)  # fmt: skip

BERT_LAYOUT = Layout(
    kind="bert",
    model=BERT,
    architectures={
        "BertForMaskedLM": {"num_classes": None},
        "BertForSequenceClassification": {"num_classes": LABELS},
        "BertModel": {"num_classes": 0},
    },
    prefix="bert.",
    heads=("cls", "classifier"),
    entries=(
        Entry("vocab_size", "vocab_size", 30_522),
        Entry("max_position_embeddings", "max_position_embeddings", 512),
        *_ENCODER_ENTRIES,
        Entry("type_vocab_size", "type_vocab_size", 2),
        Entry("pad_token_id", "pad_token_id", 0),
        Entry("dropout_rate", "hidden_dropout_prob", 0.1),
    ),
    fixed={"pool": "first"},
    required={
        "position_embedding_type": "absolute",
        "is_decoder": False,
        "add_cross_attention": False,
        "tie_word_embeddings": True,
    },
    written={"attention_probs_dropout_prob": 0.0},
    rows=(
        Row("tokens.embedding", "embeddings.word_embeddings.weight", "v w", "v w"),
        Row("positions", "embeddings.position_embeddings.weight", "t w", "t w"),
        Row("kinds", "embeddings.token_type_embeddings.weight", "k w", "k w"),
        *_norm("norm", "embeddings.LayerNorm"),
        *_encoder(
            "attention.self", "attention.output.dense", "attention.output.LayerNorm",
            "output.LayerNorm", "intermediate.dense", "output.dense",
        ),
        *_dense("pooler", "pooler.dense", "o w", "w o"),
        *_dense("logits", "classifier", "c w", "w c"),
        *_dense("transform", "cls.predictions.transform.dense", "o w", "w o"),
        *_norm("transform_norm", "cls.predictions.transform.LayerNorm"),
        Row("bias", "cls.predictions.bias", "v", "v"),
    ),
    unused=("embeddings.position_ids", "cls.predictions.decoder.*", "cls.seq_relationship.*"),
)  # fmt: skip

VIT_LAYOUT = Layout(
    kind="vit",
    model=ViT,
    architectures={"ViTForImageClassification": {"num_classes": LABELS}},
    prefix="vit.",
    heads=("classifier",),
    entries=(
        Entry("patch_size", "patch_size", 16),
        *_ENCODER_ENTRIES,
        Entry("dropout_rate", "hidden_dropout_prob", 0.0),
    ),
    fixed={"pool": "first"},
    required={"qkv_bias": True},
    rows=(
        Row("first", "embeddings.cls_token", "1 1 w", "1 1 w"),
        Row("positions", "embeddings.position_embeddings", "1 n w", "n w"),
        *_dense("patches", "embeddings.patch_embeddings.projection", "w i y x", "(y x i) w"),
        *_encoder(
            "attention.attention", "attention.output.dense", "layernorm_before",
            "layernorm_after", "intermediate.dense", "output.dense",
        ),
        *_norm("norm", "layernorm"),
        *_dense("logits", "classifier", "c w", "w c"),
    ),
    unused=("pooler.dense.*", "embeddings.mask_token"),
    written={"attention_probs_dropout_prob": 0.0},
    images=True,
)  # fmt: skip

LAYOUTS = (GPT2_LAYOUT, BERT_LAYOUT, VIT_LAYOUT)
