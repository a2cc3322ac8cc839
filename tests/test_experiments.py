"""The parts of every experiment fit together, on stand-in data of its shape."""

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest

import jdl
from jdl.data import Arrays
from jdl.parallel import Single
from jdl.pretrained import InitFrom
from jdl.step import update
from jdl.trainer.training_run import TrainingRun

FILES = {path.stem: path for path in (Path(__file__).parents[1] / "experiments").glob("*.py")}
RNG = np.random.default_rng(0)


def images(*shape, classes=10):
    label = np.arange(24) % classes
    image = RNG.integers(0, 120, (24, *shape)) + 120 * label.reshape(-1, 1, 1, 1) // classes
    return {"image": image.astype(np.uint8), "label": label}


def tokens(length, vocabulary, labelled=True):
    found = RNG.integers(1, vocabulary, (24, length)).astype(np.int32)
    return {"tokens": found, "label": np.arange(24) % 2} if labelled else {"tokens": found}


def series(count, columns=1):
    x, y = RNG.normal(size=(24, count, columns)), RNG.normal(size=(24, columns))
    one = np.ones((24, columns))
    return {"x": x, "y": y, "value": y, "offset": 0 * one, "scale": one, "log": np.zeros(24, bool)}


def rows(count):
    return {"x": RNG.normal(size=(24, count)).astype(np.float32), "y": np.arange(24) % 2}


def pairs(length, vocabulary):
    source, target = (tokens(length + extra, vocabulary, False)["tokens"] for extra in (0, 1))
    return {"source": source, "target": target}


def scenes(*shape):
    found = images(*shape)
    ones = np.ones((24, 3), bool)
    boxes = np.tile(np.float32([4, 5, 20, 21]), (24, 3, 1))
    mask = found["image"] // 100
    return {
        **found,
        "segmentation_mask": mask,
        "boxes": boxes,
        "boxes_mask": ones,
        "labels": ones * 1,
    }


def crops(height, width, boxes, classes):
    return {
        "image": images(height, width, 3)["image"],
        "label": RNG.integers(0, 2, (24, classes)).astype(np.int32),
        "boxes": np.tile(np.float32([4, 5, 20, 21]), (24, boxes, 1)),
        "boxes_mask": np.ones((24, boxes), bool),
        "labels": np.zeros((24, boxes), np.int32),
    }


def clips(samples, **further):
    found = {"audio": RNG.integers(-9999, 9999, (24, samples)).astype(np.int16)}
    return {**found, "audio_mask": np.ones((24, samples), bool), **further}


def masked(height, width, classes):
    found = images(height, width, 3)
    return {"image": found["image"], "segmentation_mask": found["image"][..., :1] % classes}


def spoken(classes):
    return {"image": RNG.normal(size=(24, 64, 40, 1)), "label": np.arange(24) % classes}


def horizons(length, horizon, known):
    """Windows of a panel of one target, of which `known` channels are known in advance."""
    one, y = np.ones((24, 1)), RNG.normal(size=(24, horizon, 1))
    return {
        "past": RNG.normal(size=(24, length, 2 + known)),
        "future": RNG.normal(size=(24, horizon, known)),
        "static": RNG.normal(size=(24, 2)),
        "y": y,
        "value": y,
        "observed": y > 0,
        "offset": 0 * one,
        "scale": one,
        "naive_error": one,
    }


def choices(users, items, length=50):
    return {
        "user": RNG.integers(1, users, 24),
        "history": RNG.integers(0, items, (24, length)),
        "item": RNG.integers(1, items, 24),
        "seen": np.zeros((24, items + 1), bool),
        "negatives": np.zeros((24, 0), int),
    }


STAND_INS = {
    "activations": images(28, 28, 1),
    "adult_fair": {**rows(9), "sex": np.arange(24) % 2},
    "adult_mlp": {**rows(9), "sex": np.arange(24) % 2, "race": np.arange(24) % 5},
    "airline_lstm": series(12),
    "bccd_detection": scenes(240, 320, 3),
    "bccd_presence": crops(120, 106, boxes=8, classes=2),
    "camvid_segmentation": masked(180, 240, 11),
    "cats_vs_dogs_augmented": images(150, 150, 3, classes=2),
    "cats_vs_dogs_cnn": images(150, 150, 3, classes=2),
    "cats_vs_dogs_vgg": images(64, 64, 3, classes=2),
    "cells_generated": images(32, 32, 3, classes=3),
    "cifar10_94": images(32, 32, 3),
    "cifar10_resnet": images(32, 32, 3),
    "cifar10_vit": images(32, 32, 3),
    "compas_audit": rows(7),
    "credit_card_fraud": rows(29),
    "digits_cnn": images(8, 8, 1),
    "digits_contrastive": images(8, 8, 1),
    "digits_denoiser": images(8, 8, 1),
    "digits_mean_teacher": {**images(8, 8, 1), "labeled": np.arange(24) < 8},
    "digits_detection": scenes(32, 32, 1),
    "digits_generated": images(28, 28, 1, classes=5),
    "digits_generator": images(28, 28, 1, classes=5),
    "digits_gan": images(8, 8, 1),
    "digits_mlp": images(8, 8, 1),
    "digits_mlp_search": images(8, 8, 1),
    "digits_segmentation": scenes(32, 32, 1),
    "digits_verify": images(8, 8, 1, classes=5),
    "digits_vit": images(8, 8, 1),
    "fashion_mnist_cnn": images(28, 28, 1),
    "fast_style": images(128, 128, 3, classes=2),
    "imagenet_resnet50": images(224, 224, 3),
    "imagenet_vit_s16": images(224, 224, 3),
    "imdb_bag_of_words": tokens(400, 10_000),
    "imdb_bert": tokens(128, 8192),
    "imdb_bilstm": tokens(200, 10_000),
    "imdb_gru": tokens(200, 10_000),
    "imdb_lstm": tokens(200, 10_000),
    "imdb_minilm": tokens(256, 30_522),
    "imdb_minilm_probe": tokens(256, 30_522),
    "imdb_mlm": tokens(128, 8192, labelled=False),
    "mnist_cnn": images(28, 28, 1),
    "mnist_flipped": {**images(28, 28, 1), "flipped": np.arange(24) % 2},
    "mnist_flow": images(28, 28, 1),
    "mnist_distilled": images(28, 28, 1),
    "mnist_nielsen_cross_entropy": images(28, 28, 1),
    "mnist_nielsen_quadratic": images(28, 28, 1),
    "mnist_planted": {
        **crops(28, 28, boxes=1, classes=1),
        **images(28, 28, 3),
        "corner": np.arange(24) % 2,
    },
    "mnist_pruned": images(28, 28, 1),
    "mnist_fixmatch": {**images(28, 28, 1), "labeled": np.arange(24) < 8},
    "mnist_few_digits": images(28, 28, 1, classes=5),
    "mnist_gan": images(28, 28, 1),
    "mnist_low_digits": images(28, 28, 1, classes=5),
    "mnist_mae": images(28, 28, 1),
    "mnist_mlp": images(28, 28, 1),
    "mnist_mlp_dropout": images(28, 28, 1),
    "mnist_mlp_search": images(28, 28, 1),
    "mnist_simclr": images(28, 28, 1),
    "mnist_transfer": images(28, 28, 1, classes=5),
    "mnist_vae": images(28, 28, 1),
    "movielens_100k": choices(943, 1682),
    "movielens_100k_neumf": choices(943, 1682),
    "movielens_100k_sasrec": choices(943, 1682, 20),
    "multi30k_lstm_attention": pairs(32, 8192),
    "multi30k_transformer": pairs(32, 8192),
    "optimizers": images(28, 28, 1),
    "oxford_pets_unet": masked(160, 160, 2),
    "patch_camelyon_cnn": images(96, 96, 3, classes=2),
    "photo_style": {**images(160, 240, 3), "index": np.zeros(24, int)},
    "spoken_digits_judge": spoken(60),
    "spoken_digits_synthetic": spoken(10),
    "spoken_digits_tts": spoken(60),
    "sea_temperature": horizons(96, 48, 8),
    "sea_temperature_autoregressive": horizons(96, 48, 8),
    "sea_temperature_deepar": horizons(96, 48, 8),
    "sea_temperature_tcn": horizons(96, 48, 8),
    "sea_temperature_transformer": horizons(96, 48, 8),
    "shuttle_anomalies": rows(9),
    "shuttle_few_labels": rows(9),
    "shakespeare_char_gpt": tokens(65, 65, labelled=False),
    "shakespeare_char_lstm": {**tokens(65, 65, labelled=False), "begins": np.zeros(24, bool)},
    "stdlib_chat": {**tokens(129, 2048, labelled=False), "loss_mask": np.ones((24, 129), bool)},
    "spoken_digits": clips(8000, label=np.arange(24) % 10),
    "spoken_strings_ctc": clips(14_000, tokens=RNG.integers(1, 11, (24, 5))),
    "spoken_strings_streaming": clips(14_000, tokens=RNG.integers(1, 11, (24, 5))),
    "stdlib_byte_gpt": tokens(129, 256, labelled=False),
    "temperatures_rnn": series(20),
}


def test_every_experiment_is_here():
    assert STAND_INS.keys() == FILES.keys()


def stand_in(name, **changes):
    """An experiment on a stand-in, with its own model, task, device transforms and optimizer."""
    experiment = jdl.load(FILES[name]).experiment
    data = Arrays(
        {"train": STAND_INS[name]},
        device_transforms=experiment.data.device_transforms,
        validation_fraction=0.0,
        test_fraction=0.0,
    )
    fresh = {
        "data": data,
        "init_from": InitFrom(),
        "strategy": Single(),
        "hooks": (),
        "batch_size": 8,
    }
    return dataclasses.replace(experiment, **fresh, **changes)


@pytest.mark.parametrize(
    "name",
    [
        # To trace what takes large images takes a while.
        pytest.param(name, marks=pytest.mark.slow if name.startswith("imagenet") else ())
        for name in STAND_INS
    ],
)
def test_the_parts_of_an_experiment_fit_together(name, tmp_path):
    """Shapes and dtypes of data, model, task and optimizer, without compiling."""
    run = TrainingRun(stand_in(name, epochs=1), name, tmp_path)
    updated, metrics = jax.eval_shape(
        lambda state, batch: update(run.program, state, batch),
        run.compiled.abstract_state,
        run.batch,
    )
    assert jax.tree.structure(updated) == jax.tree.structure(run.compiled.abstract_state)
    assert "loss" in metrics


@pytest.mark.parametrize(
    ("name", "steps", "changes"),
    [
        pytest.param("cifar10_resnet", 30, {}, marks=pytest.mark.slow),
        pytest.param("cifar10_vit", 60, {"model.num_layers": 1}, marks=pytest.mark.slow),
        ("fashion_mnist_cnn", 30, {}),
    ],
)
def test_an_experiment_whose_data_must_be_fetched_learns_a_stand_in(name, steps, changes, tmp_path):
    experiment = stand_in(name, epochs=None, steps=steps, runtime=jdl.Runtime())
    result = jdl.train(jdl.override(experiment, changes), tmp_path / "run").result
    assert result["metrics"]["train"]["loss"] < np.log(10) - 0.3  # better than a guess
