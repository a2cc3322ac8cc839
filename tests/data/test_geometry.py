"""Images, masks and boxes move together, as SciPy and NumPy move them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from jdl.data import (
    AlternatingFlip,
    CutMix,
    Mosaic,
    RandAugment,
    RandomAffine,
    RandomCrop,
    RandomFlip,
    RandomResizedCrop,
    Resize,
)
from jdl.data.geometry import Geometric
from jdl.errors import UserError

CASES = 1000
HEIGHT, WIDTH = 24, 30
IGNORED = 255


@functools.cache
def scenes(count=CASES):
    """Random images with a rectangle of class 1 in their masks, and its box beside padding."""
    rng = np.random.default_rng(0)
    top, left = rng.integers(0, 12, count), rng.integers(0, 16, count)
    bottom, right = top + rng.integers(6, 13, count), left + rng.integers(6, 15, count)
    boxes = np.zeros((count, 2, 4), np.float32)
    boxes[:, 0] = np.stack([left, top, right, bottom], 1)
    mask = np.zeros((count, HEIGHT, WIDTH), np.uint8)
    for i in range(count):
        mask[i, top[i] : bottom[i], left[i] : right[i]] = 1
    return {
        "image": rng.uniform(0, 255, (count, HEIGHT, WIDTH, 2)).astype(np.float32),
        "segmentation_mask": mask[..., None],
        "boxes": boxes,
        "boxes_mask": np.tile([True, False], (count, 1)),
        "labels": np.tile(np.int32([1, 0]), (count, 1)),
    }


def keys(count=CASES):
    return jax.random.split(jax.random.key(1), count)


def moved(transform, batch=None):
    batch = scenes() if batch is None else batch
    function = jax.jit(lambda batch: transform(batch, keys(len(batch["image"]))))
    return jax.tree.map(np.asarray, function(batch))


def extents(mask):
    """Boxes (n, 4) of the pixels of class 1 in masks; NaN where there are none."""
    found = np.full((len(mask), 4), np.nan)
    for i, each in enumerate(mask[..., 0] == 1):
        if each.any():
            rows, columns = np.flatnonzero(each.any(1)), np.flatnonzero(each.any(0))
            found[i] = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
    return found


@pytest.fixture(scope="module")
def affine():
    transform = RandomAffine(
        rotation_range=40, width_shift_range=0.2, height_shift_range=0.2, shear_range=15,
        zoom_range=0.3, horizontal_flip=True, fill_mode="constant", mask_cval=IGNORED,
        min_visibility=0.25,
    )  # fmt: skip
    matrices = jax.vmap(lambda key: transform.matrix(key, HEIGHT, WIDTH))(keys())
    return moved(transform), np.asarray(matrices, np.float64)


def test_images_and_masks_equal_scipys(affine):
    found, matrices = affine
    i, j = np.mgrid[:HEIGHT, :WIDTH]
    before = scenes()
    for case, matrix in enumerate(matrices):
        where = matrix[:, 0, None, None] * i + matrix[:, 1, None, None] * j + matrix[:, 2:, None]
        # A position within rounding of the edge, or half between two pixels, may go either way.
        last = np.array([HEIGHT - 1, WIDTH - 1])[:, None, None]
        clear = ((np.abs(where) > 1e-3) & (np.abs(where - last) > 1e-3)).all(0)
        call = functools.partial(
            ndimage.affine_transform, matrix=matrix[:, :2], offset=matrix[:, 2], mode="constant"
        )
        expected = call(before["image"][case, ..., 0].astype(float), order=1)
        np.testing.assert_allclose(found["image"][case, ..., 0][clear], expected[clear], atol=0.05)
        clear &= (np.abs(where % 1 - 0.5) > 1e-3).all(0)
        ids = call(before["segmentation_mask"][case, ..., 0].astype(int), order=0, cval=IGNORED)
        np.testing.assert_array_equal(found["segmentation_mask"][case, ..., 0][clear], ids[clear])


def test_boxes_are_the_hulls_of_their_moved_corners(affine):
    found, matrices = affine
    before = scenes()["boxes"][:, 0].astype(float)
    corners = before[:, [[1, 0], [1, 2], [3, 0], [3, 2]]] - 0.5  # (cases, 4, 2): row, column
    offset = np.moveaxis(corners - matrices[:, None, :, 2], 1, 2)
    to = np.moveaxis(np.linalg.solve(matrices[:, :, :2], offset), 2, 1) + 0.5
    hull = np.concatenate([to.min(1)[:, ::-1], to.max(1)[:, ::-1]], 1)
    clipped = np.clip(hull, 0, [WIDTH, HEIGHT] * 2)
    whole, left = (np.prod(np.maximum(b[:, 2:] - b[:, :2], 0), 1) for b in (hull, clipped))
    kept = found["boxes_mask"][:, 0]
    sure = np.abs(left - 0.25 * whole) > 1e-3
    np.testing.assert_array_equal(kept[sure], (left >= 0.25 * whole)[sure])
    assert 10 < kept.sum() < CASES
    np.testing.assert_allclose(found["boxes"][kept, 0], clipped[kept], atol=1e-3)
    assert not found["boxes"][~kept, 0].any()
    assert not found["boxes_mask"][:, 1].any()


def test_a_boxs_corners_stay_on_its_pixels(affine):
    found, _ = affine
    kept = found["boxes_mask"][:, 0]
    boxes, pixels = found["boxes"][kept, 0], extents(found["segmentation_mask"][kept])
    assert kept.sum() > 900
    # No pixel's center is outside of the box, and the box is no larger than its pixels allow.
    assert (pixels[:, :2] + 0.5 >= boxes[:, :2] - 1e-3).all()
    assert (pixels[:, 2:] - 0.5 <= boxes[:, 2:] + 1e-3).all()
    whole = ((boxes > 0) & (boxes < [WIDTH, HEIGHT] * 2)).all(1)  # none of its corners is cut off
    assert whole.sum() > 400
    assert np.abs(pixels - boxes)[whole].max() < 2.5
    assert np.abs(pixels - boxes)[whole].mean() < 0.6


@pytest.mark.parametrize(
    "transform",
    [
        RandomFlip(min_visibility=0),
        RandomFlip(mode="horizontal_and_vertical", min_visibility=0),
        RandomCrop(padding=7, mask_cval=IGNORED, min_visibility=0),
        RandomCrop(padding=7, mode="edge", min_visibility=0),
        AlternatingFlip(min_visibility=0),
    ],
    ids=lambda t: type(t).__name__,
)
def test_flips_and_crops_are_exact(transform):
    batch = {**scenes(), "index": np.arange(CASES), "epoch": np.zeros(CASES, np.int32)}
    batch["image"] = np.repeat(batch["segmentation_mask"], 2, -1) * 200
    found = moved(transform, batch)
    seen, kept = extents(found["segmentation_mask"]), found["boxes_mask"][:, 0]
    if getattr(transform, "mode", "") != "edge":  # there pixels of the edge are drawn out
        np.testing.assert_array_equal(found["boxes"][kept, 0], seen[kept])
        assert np.isnan(seen[~kept]).all()
    known = found["segmentation_mask"] != IGNORED
    ids, image = found["segmentation_mask"][known], found["image"][..., :1][known]
    np.testing.assert_array_equal(image, ids * 200)
    assert found["segmentation_mask"].dtype == np.uint8
    assert not np.array_equal(found["boxes"], batch["boxes"])


def test_a_mosaic_equals_one_made_by_numpy():
    batch = {name: array[:40] for name, array in scenes().items()}
    found = moved(Mosaic(min_visibility=0), batch)
    assert found["boxes"].shape == (40, 8, 4)
    assert found["labels"].shape == found["boxes_mask"].shape == (40, 8)
    starts = np.asarray(
        jax.vmap(
            lambda key: jax.random.randint(
                key, (2,), jnp.zeros(2, int), jnp.array([HEIGHT + 1, WIDTH + 1])
            )
        )(keys(40))
    )
    for i, (top, left) in enumerate(starts):
        a, b, c, d = (batch["image"][i - place] for place in range(4))
        whole = np.concatenate([np.concatenate([a, b], 1), np.concatenate([c, d], 1)], 0)
        np.testing.assert_array_equal(
            found["image"][i], whole[top : top + HEIGHT, left : left + WIDTH]
        )
    for place in range(4):  # the boxes of one image alone, on a mosaic of its mask alone
        only = np.zeros_like(batch["segmentation_mask"])
        for i, (top, left) in enumerate(starts):
            canvas = np.zeros((2 * HEIGHT, 2 * WIDTH, 1), np.uint8)
            row, column = place // 2 * HEIGHT, place % 2 * WIDTH
            canvas[row : row + HEIGHT, column : column + WIDTH] = batch["segmentation_mask"][
                i - place
            ]
            only[i] = canvas[top : top + HEIGHT, left : left + WIDTH]
        seen, kept = extents(only), found["boxes_mask"][:, 2 * place]
        np.testing.assert_array_equal(found["boxes"][kept, 2 * place], seen[kept])
        assert np.isnan(seen[~kept]).all()


@pytest.mark.parametrize("transform", [RandomFlip(), RandomAffine(), RandomCrop(), Mosaic()])
def test_evaluation_moves_nothing(transform):
    batch = scenes(4)
    assert transform(batch, None) is batch


def test_what_cannot_move_is_refused():
    batch = {name: jnp.asarray(array[:4]) for name, array in scenes().items()}
    with pytest.raises(UserError, match="set mask_cval to the ignored class"):
        RandomCrop()(batch, keys(4))
    with pytest.raises(UserError, match=r"has 5x5 pixels, the images 24x30"):
        RandomFlip()({**batch, "segmentation_mask": jnp.zeros((4, 5, 5, 1))}, keys(4))
    unpadded = {name: array for name, array in batch.items() if name != "boxes_mask"}
    with pytest.raises(UserError, match="add Pad"):
        RandomFlip()(unpadded, keys(4))
    for transform in (RandAugment(), CutMix()):
        with pytest.raises(UserError, match="moves pixels of images and not"):
            transform(batch, keys(4))


@pytest.mark.parametrize(
    ("transform", "rng"),
    [
        (Resize(height=48, width=45), None),
        (RandomResizedCrop(height=40, width=40), None),
        (RandomResizedCrop(height=40, width=40, scale=(0.2, 1.0), min_visibility=0), 3),
    ],
)
def test_host_transforms_move_masks_and_boxes(transform, rng):
    batch, rng = scenes(), np.random.default_rng(rng)
    for i in range(30):
        example = {name: array[i] for name, array in batch.items()}
        example["image"] = np.repeat(example["segmentation_mask"], 3, -1) * 200
        draw = getattr(transform, "random_map", None)
        random = draw is not None and transform.scale[0] == 0.2
        found = draw(example, rng) if random else transform(example)
        assert found["image"].shape == (transform.height, transform.width, 3)
        mask = found["segmentation_mask"]
        assert mask.shape == (transform.height, transform.width, 1)
        seen = extents(mask[None])[0]
        if not found["boxes_mask"][0]:
            continue
        assert np.abs(found["boxes"][0] - seen).max() <= 1  # half a pixel of rounding each way
        agree = (found["image"][..., 0] > 100) == (mask[..., 0] == 1)
        assert agree.mean() > 0.95


def test_a_random_resized_crop_is_within_its_ranges():
    image = np.zeros((60, 90, 3), np.uint8)
    crop, rng = RandomResizedCrop(scale=(0.1, 0.6), ratio=(0.5, 2.0)), np.random.default_rng(0)
    windows = np.array([crop._window(rng, *image.shape[:2]) for _ in range(500)])
    top, left, tall, wide = windows.T
    assert windows.min() >= 0
    assert (top + tall).max() <= 60
    assert (left + wide).max() <= 90
    share = tall * wide / 5400
    assert 0.08 < share.min() < 0.2 < 0.5 < share.max() < 0.63
    assert 0.45 < (wide / tall).min() < 0.7 < 1.5 < (wide / tall).max() < 2.2
    thin = RandomResizedCrop(scale=(1.0, 1.0), ratio=(1.0, 1.0))
    assert thin._window(rng, 60, 90) == (0, 15, 60, 60)  # the fallback


def test_the_evaluation_of_a_resized_crop_is_the_usual_central_one():
    from PIL import Image

    rng = np.random.default_rng(0)
    smooth = ndimage.gaussian_filter(rng.uniform(0, 255, (512, 640, 3)), (9, 9, 0))
    image = np.uint8(np.clip((smooth - 127) * 8 + 127, 0, 255))
    small = Image.fromarray(image).resize((320, 256), Image.Resampling.BILINEAR)
    expected = np.asarray(small)[16:240, 48:272].astype(int)
    found = RandomResizedCrop()({"image": image})["image"].astype(int)
    assert np.abs(found - expected).max() <= 4


@pytest.mark.parametrize(
    "make",
    [
        lambda: Resize(height=0),
        lambda: RandomResizedCrop(scale=(0.5, 0.1)),
        lambda: RandomResizedCrop(scale=(0.5, 1.5)),
        lambda: RandomResizedCrop(ratio=(0.0, 1.0)),
        lambda: RandomResizedCrop(crop_fraction=0.0),
    ],
)
def test_bad_sizes_are_refused(make):
    with pytest.raises(UserError):
        make()


def test_fields_are_named_alike():
    assert Geometric(boxes="faces").boxes_mask == "faces_mask"


def test_a_crop_to_a_size_cuts_masks_and_boxes_alike():
    rows, columns = np.mgrid[:9, :12]
    image = np.broadcast_to(np.stack([rows, columns], -1), (6, 9, 12, 2)).astype(np.float32)
    batch = {
        "image": jnp.asarray(image),
        "segmentation_mask": jnp.asarray(image[..., :1], jnp.int32),
        "boxes": jnp.tile(jnp.float32([[2, 1, 6, 8]]), (6, 1, 1)),
        "boxes_mask": jnp.ones((6, 1), bool),
    }
    crop = RandomCrop(padding=0, size=(5, 7))
    found = crop(batch, keys(6))
    starts = np.asarray(found["image"][:, 0, 0], int)
    assert len({tuple(start) for start in starts.tolist()}) > 2
    for i, (top, left) in enumerate(starts):
        window = np.s_[i, top : top + 5, left : left + 7]
        np.testing.assert_array_equal(found["image"][i], image[window])
        np.testing.assert_array_equal(found["segmentation_mask"][i], image[window][..., :1])
        moved = np.clip([2 - left, 1 - top, 6 - left, 8 - top], 0, [7, 5, 7, 5])
        kept = bool(found["boxes_mask"][i, 0])
        np.testing.assert_allclose(found["boxes"][i, 0], moved * kept, atol=1e-5)
    assert crop(batch, None) is batch
    with pytest.raises(UserError, match="cannot cut 10x7 pixels from images of 9x12"):
        RandomCrop(padding=0, size=(10, 7))(batch, keys(6))
