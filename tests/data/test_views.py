"""An example seen several times, each time augmented apart."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdl.data import (
    AlternatingFlip,
    ColorJitter,
    CutMix,
    Cutout,
    MaskTokens,
    Mixup,
    Normalize,
    OnViews,
    RandAugment,
    RandomAffine,
    RandomCrop,
    RandomFlip,
    Scale,
    Views,
)
from jdl.errors import UserError
from jdl.models import MLP
from jdl.optimizers import SGD
from jdl.step import Program, transform
from jdl.tasks import Classification

ROWS = 4
KEYS = jax.random.split(jax.random.key(0), ROWS)
BUILT_IN = [
    AlternatingFlip(),
    ColorJitter(brightness=0.5, contrast=0.5, saturation=0.5),
    CutMix(num_classes=3),
    Cutout(size=3),
    Mixup(num_classes=3),
    Normalize(),
    RandAugment(magnitude=20),
    RandomAffine(rotation_range=30.0, width_shift_range=0.3),
    RandomCrop(padding=2),
    RandomFlip(),
    Scale(),
]


def batch():
    rng = np.random.default_rng(0)
    return {
        "image": jnp.asarray(rng.integers(0, 256, (ROWS, 6, 7, 3)), jnp.uint8),
        "label": jnp.arange(ROWS) % 3,
        "index": jnp.arange(ROWS),
        "epoch": jnp.zeros(ROWS, jnp.int32),
        "mask": jnp.ones(ROWS, bool),
    }


def apply(*transforms, keys=KEYS, given=None):
    program = Program(MLP((), 3), Classification(), SGD(0.1).build(1), transforms)
    return transform(program, given or batch(), keys)


@pytest.mark.parametrize("each", BUILT_IN, ids=lambda each: type(each).__name__)
def test_every_built_in_transform_changes_each_view_as_a_batch_of_its_own(each):
    found = apply(Views(3), each)
    assert found["image"].shape == (ROWS, 3, 6, 7, 3)
    for view in range(3):
        keys = jax.vmap(jax.random.fold_in, (0, None))(KEYS, 0x76696577 + view)
        expected = apply(each, keys=keys)
        np.testing.assert_array_equal(found["image"][:, view], expected["image"])
        label = found["label"] if found["label"].ndim == 1 else found["label"][:, view]
        np.testing.assert_array_equal(label, expected["label"])
    for name in ("mask", "index", "epoch"):
        np.testing.assert_array_equal(found[name], batch()[name])
    drawn = not isinstance(each, (AlternatingFlip, Normalize, Scale))
    assert drawn == bool(np.any(found["image"][:, 0] != found["image"][:, 1]))


def test_masked_tokens_have_views_too():
    tokens = jnp.asarray(np.random.default_rng(0).integers(4, 50, (ROWS, 20)), jnp.int32)
    given = {"tokens": tokens, "mask": jnp.ones(ROWS, bool)}
    found = apply(Views(2, names=("tokens",)), MaskTokens(vocab_size=50), given=given)
    assert found["mlm_positions"].shape[:2] == found["tokens"].shape[:2] == (ROWS, 2)
    assert np.any(found["mlm_positions"][:, 0] != found["mlm_positions"][:, 1])


def test_a_strong_augmentation_of_one_view():
    weak, strong = RandomCrop(padding=1), Scale(divisor=2.0)
    found = apply(Views(2), Scale(divisor=1.0), weak, OnViews(strong))["image"]
    once = apply(Views(2), Scale(divisor=1.0), weak)["image"]
    np.testing.assert_array_equal(found[:, 0], once[:, 0])
    np.testing.assert_array_equal(found[:, 1], once[:, 1] / 2)


def test_views_of_an_evaluation_are_equal():
    found = apply(Views(2), *BUILT_IN[3:5], Scale(), keys=None)["image"]
    np.testing.assert_array_equal(found[:, 0], batch()["image"] / 255)
    np.testing.assert_array_equal(found[:, 0], found[:, 1])


def hides_mask(given, keys):
    return {**given, "mask": given["mask"] & True}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Views(0), "needs count >= 1"),
        (lambda: apply(Views(2), Views(2)), "has Views twice"),
        (lambda: apply(OnViews(Scale())), "OnViews follows Views"),
        (lambda: apply(Views(2), OnViews(Scale(), views=(2,))), r"view 2, where they are 0\.\.1"),
        (lambda: apply(Views(2, names=("x",))), r"device_transforms\.0 \(Views\) fails"),
        (lambda: apply(Views(2), hides_mask), "changes 'mask'"),
    ],
)
def test_what_cannot_be_meant_is_refused(make, message):
    with pytest.raises(UserError, match=message):
        make()
