"""What is timed: experiments of this repository at stated sizes, on random data."""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import jdl
from jdl.data import Scale
from jdl.optimizers import Adam

Arrays = dict[str, np.ndarray]

EXPERIMENTS = Path(__file__).resolve().parents[1] / "experiments"

ONEDNN = (
    ("xla_cpu_use_onednn", "True"),
    ("xla_cpu_experimental_onednn_fusion_type", "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT"),
)
"""Matrix products by oneDNN, which on CPUs is the fastest from a few hundred rows and columns."""

ADAM = {"optimizer": Adam(1e-4, eps=1e-7)}
"""What every implementation optimises with; an experiment's own schedule is left out."""


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
    draw: Callable[[np.random.Generator, int], Arrays]  # random examples, never zeros

    @property
    def key(self) -> dict[str, Any]:
        """What names it among all, as a worker is told."""
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


def _reviews(vocabulary: int, length: int) -> Callable[[np.random.Generator, int], Arrays]:
    def draw(rng: np.random.Generator, count: int) -> Arrays:
        tokens = rng.integers(1, vocabulary, (count, length), np.int32)
        return {"tokens": tokens, "label": rng.integers(0, 2, count, np.int32)}

    return draw


def _text(vocabulary: int, length: int) -> Callable[[np.random.Generator, int], Arrays]:
    def draw(rng: np.random.Generator, count: int) -> Arrays:
        return {"tokens": rng.integers(0, vocabulary, (count, length + 1), np.int32)}

    return draw


def _pairs(vocabulary: int, length: int) -> Callable[[np.random.Generator, int], Arrays]:
    """Sources and targets of 2 tokens to as many as have room, as `jdl.data.Pairs` pads them."""

    def side(rng: np.random.Generator, count: int, length: int) -> np.ndarray:
        tokens = rng.integers(1, vocabulary, (count, length), np.int32)
        lengths = rng.integers(2, length + 1, (count, 1))
        return np.where(np.arange(length) < lengths, tokens, 0)

    def draw(rng: np.random.Generator, count: int) -> Arrays:
        return {"source": side(rng, count, length), "target": side(rng, count, length + 1)}

    return draw


def gpt(
    size: str,
    *,
    layers: int,
    width: int,
    context: int,
    batch: int,
    heads: int,
    vocabulary: int = 65,
    **settings: Any,
) -> Workload:
    """A GPT of any size, with further settings of the experiment by path."""
    shape = {"layers": layers, "width": width, "context": context, "heads": heads}
    return Workload(
        name="transformer",
        size=size,
        experiment="shakespeare_char_gpt",
        changes={
            **{f"model.{k}": v for k, v in {**shape, "vocabulary": vocabulary}.items()},
            **settings,
        },
        batch=batch,
        tokens=context,
        draw=_text(vocabulary, context),
    )


def lstm(batch: int = 128, length: int = 200, width: int = 128) -> Workload:
    """The IMDb LSTM of any size."""
    return Workload(
        name="lstm",
        size=f"T={length}, {width}",
        experiment="imdb_lstm",
        changes={"model.features": width, "model.units": width},
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
    layers: int = 2,
    units: int = 650,
    vocabulary: int = 10_000,
) -> Workload:
    """A language model of LSTMs, by default the medium one of Zaremba et al. (2014).

    Every window begins at zero, in all implementations: to carry the state would cost nothing.
    """
    shape = {"layers": layers, "units": units, "vocabulary": vocabulary}
    changes = {**{f"model.{k}": v for k, v in shape.items()}, "data.streams": batch}
    return Workload(
        name="lstm_lm",
        size=f"{layers}x{units}, T={length}",
        experiment="shakespeare_char_lstm",
        changes={**changes, "model.dropout": 0.0, "model.carry": False},
        batch=batch,
        tokens=length,
        draw=_text(vocabulary, length),
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
    changes = {f"model.{name}": value for name, value in {"outputs": classes, **model}.items()}
    return Workload(
        name="resnet50",
        size=f"{side}x{side}x3",
        experiment="imagenet_resnet50",
        changes={**changes, "data.device_transforms": (Scale(),), "task.label_smoothing": 0.0},
        batch=batch,
        draw=_images(side, side, 3, classes=classes),
    )


def vit_s16(batch: int = 4, side: int = 224, **model: Any) -> Workload:
    """ViT-S/16, with further fields of the model by name; no augmentation."""
    changes = {f"model.{name}": value for name, value in {"outputs": 1000, **model}.items()}
    return Workload(
        name="vit_s16",
        size=f"{side}x{side}x3",
        experiment="imagenet_vit_s16",
        changes={**changes, "data.device_transforms": (Scale(),)},
        batch=batch,
        draw=_images(side, side, 3, classes=changes["model.outputs"]),
    )


def bert_base(batch: int = 8, length: int = 128, **model: Any) -> Workload:
    """BERT-base judges texts, with further fields of the model by name; no dropout."""
    base = {"vocabulary": 30_522, "context": 512, "layers": 12, "heads": 12, "width": 768}
    fields = {**base, "dropout": 0.0, **model}
    return Workload(
        name="bert_base",
        size=f"T={length}",
        experiment="imdb_bert",
        changes={f"model.{name}": value for name, value in fields.items()},
        batch=batch,
        tokens=length,
        draw=_reviews(fields["vocabulary"], length),
    )


def seq2seq(
    batch: int = 128,
    *,
    length: int = 32,
    layers: int = 4,
    width: int = 128,
    vocabulary: int = 8192,
    **model: Any,
) -> Workload:
    """A transformer translates, with further fields of the model by name; no dropout."""
    shape = {"layers": layers, "width": width, "vocabulary": vocabulary}
    return Workload(
        name="seq2seq",
        size=f"{layers}x{width}, T={length}",
        experiment="multi30k_transformer",
        changes={f"model.{k}": v for k, v in {**shape, "dropout": 0.0, **model}.items()},
        batch=batch,
        tokens=length,  # places of a target, padding included; those of its source do not count
        draw=_pairs(vocabulary, length),
    )


def augmented(batch: int = 32) -> Workload:
    """The CNN that sees every photograph moved at random."""
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
        large = {"layers": 12, "width": 768, "context": 1024, "heads": 12, "vocabulary": 50_304}
        gpt2 = gpt("GPT-2 124M", batch=32, **large)
        images = (resnet50(256), vit_s16(256))
        base = {"layers": 6, "heads": 8, "width": 512, "hidden": 2048, "vocabulary": 37_000}
        translation = seq2seq(length=64, **base, pre_norm=False)
        return mlp(), cnn(256), lstm(), gpt2, lstm_lm(), *images, bert_base(64), translation
    tiny = gpt("tiny", layers=4, width=128, context=64, batch=12, heads=4)
    shape = {"layers": 6, "width": 384, "context": 256, "batch": 8, "heads": 6}
    small = gpt("small", **shape, compiler_options=ONEDNN, malloc_arenas=1)
    images = (resnet50(), vit_s16())
    return mlp(), cnn(), lstm(), tiny, small, lstm_lm(), *images, bert_base(), seq2seq()
