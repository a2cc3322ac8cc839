"""Workloads: experiments of this repository at given sizes, on random data."""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import jdl
from jdl.data import RandomCrop, RandomFlip, Scale
from jdl.optimizers import Adam

Arrays = dict[str, np.ndarray]

EXPERIMENTS = Path(__file__).resolve().parents[1] / "experiments"

ONEDNN = (
    ("xla_cpu_use_onednn", "True"),
    ("xla_cpu_experimental_onednn_fusion_type", "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT"),
)
"""Matrix products by oneDNN, which on CPUs is the fastest from a few hundred rows and columns."""

ADAM = {"optimizer": Adam(1e-4, eps=1e-7)}
"""What every implementation optimizes with; an experiment's own schedule is left out."""


@dataclass(frozen=True, kw_only=True)
class Workload:
    """An experiment at one size."""

    name: str  # what the command line calls it
    size: str  # distinguishes sizes of one workload
    experiment: str  # the file in `experiments/` whose step is timed
    changes: Mapping[str, Any] = field(default_factory=dict)  # to the experiment, by path
    batch: int  # examples of a step
    tokens: int = 0  # of an example; 0 where it has none
    loop: bool = False  # time the whole training loop, not the bare step
    random: bool = False  # steps draw at random, so that loss curves differ between implementations
    draw: Callable[[np.random.Generator, int], Arrays]  # random examples, never zeros

    @property
    def key(self) -> dict[str, Any]:
        """The unique name that is passed to a worker."""
        return {"name": self.name, "size": self.size, "batch": self.batch}

    def load(self, dtype: str) -> jdl.Experiment:
        """The experiment at this size, with the optimizer that all implementations share."""
        file = jdl.load(EXPERIMENTS / f"{self.experiment}.py")
        changes = {**self.changes, **ADAM, "batch_size": self.batch, "precision": dtype}
        return jdl.override(file.experiment, changes)

    def examples(self, count: int | None = None) -> Arrays:
        """Random examples, one batch by default; the same for every implementation."""
        return self.draw(np.random.default_rng(0), count or self.batch)


def _images(*shape: int, classes: int) -> Callable[[np.random.Generator, int], Arrays]:
    def draw(rng: np.random.Generator, count: int) -> Arrays:
        image = rng.integers(0, 256, (count, *shape), np.uint8)
        return {"image": image, "label": rng.integers(0, classes, count, np.int32)}

    return draw


def _reviews(vocab_size: int, length: int) -> Callable[[np.random.Generator, int], Arrays]:
    def draw(rng: np.random.Generator, count: int) -> Arrays:
        tokens = rng.integers(1, vocab_size, (count, length), np.int32)
        return {"tokens": tokens, "label": rng.integers(0, 2, count, np.int32)}

    return draw


def _text(vocab_size: int, length: int) -> Callable[[np.random.Generator, int], Arrays]:
    def draw(rng: np.random.Generator, count: int) -> Arrays:
        return {"tokens": rng.integers(0, vocab_size, (count, length + 1), np.int32)}

    return draw


def _pairs(vocab_size: int, length: int) -> Callable[[np.random.Generator, int], Arrays]:
    """Sources and targets of 2 tokens up to the maximum, as `jdl.data.Pairs` pads them."""

    def side(rng: np.random.Generator, count: int, length: int) -> np.ndarray:
        tokens = rng.integers(1, vocab_size, (count, length), np.int32)
        lengths = rng.integers(2, length + 1, (count, 1))
        return np.where(np.arange(length) < lengths, tokens, 0)

    def draw(rng: np.random.Generator, count: int) -> Arrays:
        return {"source": side(rng, count, length), "target": side(rng, count, length + 1)}

    return draw


def gpt(
    size: str,
    *,
    num_layers: int,
    embed_dim: int,
    max_position_embeddings: int,
    batch: int,
    num_heads: int,
    vocab_size: int = 65,
    **settings: Any,
) -> Workload:
    """A GPT of any size, with further settings of the experiment by path."""
    shape = {
        "num_layers": num_layers,
        "embed_dim": embed_dim,
        "max_position_embeddings": max_position_embeddings,
        "num_heads": num_heads,
        "vocab_size": vocab_size,
    }
    return Workload(
        name="transformer",
        size=size,
        experiment="shakespeare_char_gpt",
        changes={**{f"model.{name}": value for name, value in shape.items()}, **settings},
        batch=batch,
        tokens=max_position_embeddings,
        draw=_text(vocab_size, max_position_embeddings),
    )


def lstm(batch: int = 128, length: int = 200, hidden_size: int = 128) -> Workload:
    """The IMDb LSTM of any size."""
    return Workload(
        name="lstm",
        size=f"T={length}, {hidden_size}",
        experiment="imdb_lstm",
        changes={"model.embed_dim": hidden_size, "model.hidden_size": hidden_size},
        batch=batch,
        tokens=length,
        draw=_reviews(10_000, length),
    )


def gru() -> Workload:
    """The IMDb network with a GRU in place of the LSTM."""
    plain = lstm()
    changes = {**plain.changes, "model.cell": "gru"}
    return dataclasses.replace(plain, size="GRU, T=200, 128", changes=changes)


def lstm_lm(
    batch: int = 20,
    *,
    length: int = 35,
    num_layers: int = 2,
    hidden_size: int = 650,
    vocab_size: int = 10_000,
) -> Workload:
    """A language model of LSTMs, by default the medium one of Zaremba et al. (2014).

    Every window starts from a zero state, in all implementations: carrying it would cost nothing.
    """
    shape = {"num_layers": num_layers, "hidden_size": hidden_size, "vocab_size": vocab_size}
    changes = {**{f"model.{k}": v for k, v in shape.items()}, "data.num_streams": batch}
    return Workload(
        name="lstm_lm",
        size=f"{num_layers}x{hidden_size}, T={length}",
        experiment="shakespeare_char_lstm",
        changes={**changes, "model.dropout_rate": 0.0, "model.carry": False},
        batch=batch,
        tokens=length,
        draw=_text(vocab_size, length),
    )


def cnn(batch: int = 32) -> Workload:
    """The cats and dogs CNN."""
    return Workload(
        name="cnn",
        size="150x150x3",
        experiment="cats_vs_dogs_cnn",
        batch=batch,
        draw=_images(150, 150, 3, classes=2),
    )


def resnet50(batch: int = 4, side: int = 224, classes: int = 1000, **model: Any) -> Workload:
    """ResNet-50, with further fields of the model by name; no augmentation, no smoothing."""
    changes = {f"model.{name}": value for name, value in {"num_classes": classes, **model}.items()}
    return Workload(
        name="resnet50",
        size=f"{side}x{side}x3",
        experiment="imagenet_resnet50",
        changes={**changes, "data.device_transforms": (Scale(),), "task.label_smoothing": 0.0},
        batch=batch,
        draw=_images(side, side, 3, classes=classes),
    )


def cifar10_resnet(batch: int = 128, **model: Any) -> Workload:
    """ResNet-8 on small images, cropped and flipped at random; no smoothing."""
    shape = {"num_filters": 16, "stage_sizes": (1, 1, 1), **model}
    changes = {
        **{f"model.{name}": value for name, value in shape.items()},
        "data.device_transforms": (RandomCrop(padding=4), RandomFlip(), Scale()),
        "task.label_smoothing": 0.0,
    }
    return Workload(
        name="cifar10_resnet",
        size="32x32x3, crop and flip",
        experiment="cifar10_resnet",
        changes=changes,
        batch=batch,
        random=True,
        draw=_images(32, 32, 3, classes=10),
    )


def _scenes(height: int, width: int) -> Callable[[np.random.Generator, int], Arrays]:
    """Masks in squares of 20 pixels, of 11 classes and an id that is ignored."""

    def draw(rng: np.random.Generator, count: int) -> Arrays:
        image = rng.integers(0, 256, (count, height, width, 3), np.uint8)
        squares = rng.integers(0, 12, (count, -(-height // 20), -(-width // 20), 1), np.uint8)
        masks = squares.repeat(20, axis=1).repeat(20, axis=2)[:, :height, :width]
        return {"image": image, "segmentation_mask": masks}

    return draw


def _objects(height: int, width: int) -> Callable[[np.random.Generator, int], Arrays]:
    """One to 32 boxes of 10 to 60 pixels, of 3 classes."""

    def draw(rng: np.random.Generator, count: int) -> Arrays:
        image = rng.integers(0, 256, (count, height, width, 3), np.uint8)
        side = rng.uniform(10, 60, (count, 32, 2))
        corner = rng.uniform(0, 1, side.shape) * (np.array([width, height]) - side)
        kept = np.arange(32) < rng.integers(1, 33, (count, 1))
        boxes = np.concatenate([corner, corner + side], -1) * kept[..., None]
        labels = rng.integers(0, 3, (count, 32), np.int32)
        return {
            "image": image,
            "boxes": boxes.astype(np.float32),
            "labels": labels,
            "boxes_mask": kept,
        }

    return draw


def unet(batch: int = 8, size: tuple[int, int] = (180, 240), **model: Any) -> Workload:
    """A U-Net as for CamVid, with group norm, and further fields by name; no weights of classes."""
    changes = {f"model.{name}": value for name, value in {"norm": "group", **model}.items()}
    return Workload(
        name="unet",
        size=f"{size[0]}x{size[1]}x3",
        experiment="camvid_segmentation",
        changes={**changes, "data.device_transforms": (Scale(),), "task.class_weights": ()},
        batch=batch,
        draw=_scenes(*size),
    )


def detector(batch: int = 8, size: tuple[int, int] = (240, 320), **model: Any) -> Workload:
    """A detector as for BCCD, with group norm, and further fields of the model by name."""
    changes = {f"model.{name}": value for name, value in {"norm": "group", **model}.items()}
    return Workload(
        name="detector",
        size=f"{size[0]}x{size[1]}x3",
        experiment="bccd_detection",
        changes={**changes, "data.device_transforms": (Scale(),)},
        batch=batch,
        draw=_objects(*size),
    )


def gan(batch: int = 64, **model: Any) -> Workload:
    """The DCGAN of MNIST, with further fields of the model by name; without scores of samples."""
    return Workload(
        name="gan",
        size="28x28x1",
        experiment="mnist_gan",
        changes={**{f"model.{name}": value for name, value in model.items()}, "task.scores": None},
        batch=batch,
        draw=_images(*model.get("shape", (28, 28, 1)), classes=model.get("num_classes", 10)),
    )


def vit_s16(batch: int = 4, side: int = 224, **model: Any) -> Workload:
    """ViT-S/16, with further fields of the model by name; no augmentation."""
    changes = {f"model.{name}": value for name, value in {"num_classes": 1000, **model}.items()}
    return Workload(
        name="vit_s16",
        size=f"{side}x{side}x3",
        experiment="imagenet_vit_s16",
        changes={**changes, "data.device_transforms": (Scale(),)},
        batch=batch,
        draw=_images(side, side, 3, classes=changes["model.num_classes"]),
    )


def bert_base(batch: int = 8, length: int = 128, **model: Any) -> Workload:
    """BERT-base as a text classifier, with further fields of the model by name; no dropout."""
    base = {
        "vocab_size": 30_522,
        "max_position_embeddings": 512,
        "num_layers": 12,
        "num_heads": 12,
        "embed_dim": 768,
    }
    fields = {**base, "dropout_rate": 0.0, **model}
    return Workload(
        name="bert_base",
        size=f"T={length}",
        experiment="imdb_bert",
        changes={f"model.{name}": value for name, value in fields.items()},
        batch=batch,
        tokens=length,
        draw=_reviews(fields["vocab_size"], length),
    )


def _padded_reviews(vocab_size: int, length: int) -> Callable[[np.random.Generator, int], Arrays]:
    """Reviews of half the length up to the whole, padded at their ends."""
    whole = _reviews(vocab_size, length)

    def draw(rng: np.random.Generator, count: int) -> Arrays:
        found = whole(rng, count)
        lengths = rng.integers(length // 2, length + 1, (count, 1))
        return {**found, "tokens": np.where(np.arange(length) < lengths, found["tokens"], 0)}

    return draw


def bert_finetune(batch: int = 32, length: int = 128, **model: Any) -> Workload:
    """Fine-tuning of MiniLM (`imdb_minilm`), with further fields by name; no dropout."""
    fields = {"dropout_rate": 0.0, **model}
    return Workload(
        name="bert_finetune",
        size=f"MiniLM, T={length}",
        experiment="imdb_minilm",
        changes={f"model.{name}": value for name, value in fields.items()},
        batch=batch,
        tokens=length,
        draw=_padded_reviews(fields.get("vocab_size", 30_522), length),
    )


def seq2seq(
    batch: int = 128,
    *,
    length: int = 32,
    num_layers: int = 4,
    embed_dim: int = 128,
    vocab_size: int = 8192,
    **model: Any,
) -> Workload:
    """A transformer for translation, with further fields of the model by name; no dropout."""
    shape = {"num_layers": num_layers, "embed_dim": embed_dim, "vocab_size": vocab_size}
    return Workload(
        name="seq2seq",
        size=f"{num_layers}x{embed_dim}, T={length}",
        experiment="multi30k_transformer",
        changes={f"model.{k}": v for k, v in {**shape, "dropout_rate": 0.0, **model}.items()},
        batch=batch,
        tokens=length,  # places of a target, padding included; those of its source do not count
        draw=_pairs(vocab_size, length),
    )


def ctc(batch: int = 64, frames: int = 256, **model: Any) -> Workload:
    """The encoder of spoken strings with its loss, on features; further fields by name."""

    def draw(rng: np.random.Generator, count: int) -> Arrays:
        mask = np.arange(frames) < rng.integers(frames // 2, frames + 1, (count, 1))
        audio = rng.normal(size=(count, frames, 40)).astype(np.float32)
        tokens = rng.integers(1, fields["num_classes"], (count, 5), np.int32)
        kept = np.arange(5) < rng.integers(3, 6, (count, 1))
        return {"audio": audio, "audio_mask": mask, "tokens": tokens * kept.astype(np.int32)}

    fields = {"num_classes": 11, "dropout_rate": 0.0, **model}
    return Workload(
        name="ctc",
        size=f"5x128, T={frames}" if not model else f"T={frames}",
        experiment="spoken_strings_ctc",
        changes={
            **{f"model.{name}": value for name, value in fields.items()},
            "data.device_transforms": (),
        },
        batch=batch,
        draw=draw,
    )


def augmented(batch: int = 32) -> Workload:
    """The CNN with random augmentation."""
    experiment = "cats_vs_dogs_augmented"
    return dataclasses.replace(cnn(batch), size="150x150x3, augmented", experiment=experiment)


def mlp(batch: int = 32) -> Workload:
    """The MNIST MLP, with its training loop."""
    return Workload(
        name="mlp",
        size="784-128-10, loop",
        experiment="mnist_mlp",
        batch=batch,
        loop=True,
        draw=_images(28, 28, 1, classes=10),
    )


def workloads(accelerator: bool) -> tuple[Workload, ...]:
    """All workloads, at the sizes for this kind of machine."""
    if accelerator:
        large = {
            "num_layers": 12,
            "embed_dim": 768,
            "max_position_embeddings": 1024,
            "num_heads": 12,
            "vocab_size": 50_304,
        }
        gpt2 = gpt("GPT-2 124M", batch=32, **large)
        images = (resnet50(256), cifar10_resnet(1024), vit_s16(256))
        dense = (unet(64), detector(64), gan(512))
        base = {
            "num_layers": 6,
            "num_heads": 8,
            "embed_dim": 512,
            "mlp_dim": 2048,
            "vocab_size": 37_000,
        }
        translation = seq2seq(length=64, **base, pre_norm=False)
        texts = (bert_base(64), bert_finetune(256), translation)
        others = (mlp(), cnn(256), lstm(), gpt2, lstm_lm(), *texts, ctc(256))
        return (*others, *images, *dense)
    tiny = gpt(
        "tiny", num_layers=4, embed_dim=128, max_position_embeddings=64, batch=12, num_heads=4
    )
    shape = {
        "num_layers": 6,
        "embed_dim": 384,
        "max_position_embeddings": 256,
        "batch": 8,
        "num_heads": 6,
    }
    small = gpt("small", **shape, compiler_options=ONEDNN, **{"runtime.malloc_arenas": 1})
    images = (resnet50(), cifar10_resnet(), vit_s16(), unet(), detector(), gan())
    texts = (bert_base(), bert_finetune(), seq2seq())
    return mlp(), cnn(), lstm(), tiny, small, lstm_lm(), *images, *texts, ctc()
