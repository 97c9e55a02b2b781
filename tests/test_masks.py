"""Mask targets from packed bitmaps against both libraries, and the rules on padding and memory."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pycocotools import mask as rle

from mrcnn_jax.data.object_masks import box_mask
from mrcnn_jax.ops.masks import crop_targets, select_class, unpack

# pycocotools does not know NumPy 2's signature of `__array__`.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")

GOLDEN = dict(np.load(Path(__file__).parent / "golden" / "ops_roi_mask_targets.npz"))
M = 112


def packed(segmentations, boxes):
    bitmaps = [
        box_mask(s, np.asarray(box, np.float64), 100, 120, M) for s, box in zip(segmentations, boxes, strict=True)
    ]
    return jnp.asarray(np.packbits(np.stack(bitmaps), axis=-1)), jnp.asarray(boxes, jnp.float32)


def packed_polygons():
    objects = [[GOLDEN[f"poly.{name}"].tolist() for name in parts] for parts in (["0.0"], ["1.0", "1.1"], ["2.0"])]
    points = [np.concatenate(polygons).reshape(-1, 2) for polygons in objects]
    return packed(objects, [[*p.min(axis=0), *p.max(axis=0)] for p in points])


def packed_bitmaps():
    pixels = [np.nonzero(mask) for mask in GOLDEN["gt_masks"]]
    boxes = [[x.min(), y.min(), x.max() + 1, y.max() + 1] for y, x in pixels]
    return packed([rle.encode(np.asfortranarray(mask)) for mask in GOLDEN["gt_masks"]], boxes)


def crop(masks, gt_boxes, soft, index=None, boxes=None):
    index = jnp.asarray(GOLDEN["matched"], jnp.int32) if index is None else index
    boxes = jnp.asarray(GOLDEN["boxes"]) if boxes is None else boxes
    return jax.jit(crop_targets, static_argnums=(4, 5))(masks, gt_boxes, index, boxes, 28, soft)


def random_objects(g=5, s=7, seed=0):
    rng = np.random.default_rng(seed)
    masks = rng.integers(0, 256, (g, M, M // 8), dtype=np.uint8)
    corner = rng.uniform(0, 60, (g, 2))
    gt_boxes = np.concatenate([corner, corner + rng.uniform(5, 50, (g, 2))], axis=1).astype(np.float32)
    index = rng.integers(0, g, s).astype(np.int32)
    boxes = (gt_boxes[index] + rng.uniform(-4, 4, (s, 4))).astype(np.float32)
    return map(jnp.asarray, (masks, gt_boxes, index, boxes))


def test_unpack():
    bits = np.random.default_rng(0).random((3, 16, 16)) > 0.5
    unpacked = unpack(jnp.asarray(np.packbits(bits, axis=-1)))
    assert unpacked.dtype == bool
    np.testing.assert_array_equal(unpacked, bits)


def test_binary_targets_nearly_equal_detectron2():
    """Both are approximations; the reference's own two ways differ from each other by 1.0 % of the pixels."""
    targets = np.asarray(crop(*packed_polygons(), soft=False))
    assert set(np.unique(targets)) == {0.0, 1.0}
    polygons = np.unpackbits(GOLDEN["d2.polygon_crop_and_resize"], axis=-1, count=28)
    assert np.mean(targets != polygons) < 0.01
    bitmaps = np.unpackbits(GOLDEN["d2.bitmask_crop_and_resize"], axis=-1, count=28)
    assert np.mean(np.asarray(crop(*packed_bitmaps(), soft=False)) != bitmaps) < 0.01


def test_soft_targets_nearly_equal_torchvision():
    targets = crop(*packed_bitmaps(), soft=True)
    expected = GOLDEN["tv.project_masks_on_boxes"]
    assert np.mean(np.abs(targets - expected)) < 0.006
    assert np.mean((targets >= 0.5) != (expected >= 0.5)) < 0.002


def test_bilinear_samples_at_the_centres():
    masks, gt_boxes, index, boxes = random_objects()
    bits = np.asarray(unpack(masks), np.float64)
    expected = np.zeros((7, 28, 28))
    for s, (i, (x1, y1, x2, y2)) in enumerate(zip(np.asarray(index), np.asarray(boxes, np.float64), strict=True)):
        left, top, right, bottom = np.asarray(gt_boxes[i], np.float64)
        x = (x1 + (np.arange(28) + 0.5) / 28 * (x2 - x1) - left) * M / (right - left) + 0.5
        y = (y1 + (np.arange(28) + 0.5) / 28 * (y2 - y1) - top) * M / (bottom - top) + 0.5
        padded = np.pad(bits[i], 1)
        for p, q in np.ndindex(28, 28):
            row, column = int(np.floor(y[p])), int(np.floor(x[q]))
            if 0 <= row <= M and 0 <= column <= M:
                down, along = np.asarray([row + 1 - y[p], y[p] - row]), np.asarray([column + 1 - x[q], x[q] - column])
                expected[s, p, q] = down @ padded[row : row + 2, column : column + 2] @ along
    np.testing.assert_array_equal(crop(masks, gt_boxes, False, index, boxes), expected >= 0.5)


@pytest.mark.parametrize("soft", [False, True])
def test_nothing_outside_the_object_and_all_inside(soft):
    masks = jnp.full((1, M, M // 8), 255, jnp.uint8)
    gt_boxes = jnp.asarray([[10.0, 10.0, 50.0, 90.0]])
    boxes = jnp.asarray([[60.0, 10.0, 80.0, 90.0], [20.0, 20.0, 40.0, 60.0], [10.0, 10.0, 90.0, 90.0]])
    outside, inside, half = crop(masks, gt_boxes, soft, jnp.zeros(3, jnp.int32), boxes)
    assert not np.any(outside)
    np.testing.assert_allclose(inside, 1, rtol=1e-6)
    np.testing.assert_allclose(half[2:-2, :13], 1, rtol=1e-6)
    assert not np.any(half[:, 15:])


@pytest.mark.parametrize("poison", [np.nan, np.inf, 1e6, 7.0])
def test_poisoned_rows_leave_the_others_alone(poison):
    masks, gt_boxes, index, boxes = random_objects()
    clean = crop(masks, gt_boxes, True, index, boxes)
    index = index.at[2].set(4)
    used = np.flatnonzero(np.asarray(index) != 4)
    targets = crop(masks.at[4].set(255), gt_boxes.at[4].set(poison), True, index, boxes.at[2].set(poison))
    assert np.isfinite(targets).all()
    np.testing.assert_array_equal(targets[used], clean[used])
    assert not np.any(targets[2])


def test_index_of_a_background_sample_may_be_anything():
    masks, gt_boxes, index, boxes = random_objects()
    targets = crop(masks, gt_boxes, False, index.at[0].set(-1).at[1].set(2**30), boxes)
    assert np.isfinite(targets).all()


def test_batch_equals_one_image_at_a_time():
    images = [tuple(random_objects(seed=seed)) for seed in range(2)]
    batched = jax.vmap(lambda *image: crop_targets(*image, 28, True))(*map(jnp.stack, zip(*images, strict=True)))
    for targets, (masks, gt_boxes, index, boxes) in zip(batched, images, strict=True):
        np.testing.assert_allclose(targets, crop(masks, gt_boxes, True, index, boxes), atol=1e-4)


def test_memory_does_not_depend_on_the_number_of_objects():
    def temporary(g):
        arguments = tuple(random_objects(g=g, s=128))
        compiled = jax.jit(crop_targets, static_argnums=(4, 5)).lower(*arguments, 28, False).compile()
        assert np.isfinite(compiled(*arguments)).all()
        return compiled.memory_analysis().temp_size_in_bytes

    assert temporary(300) == temporary(10) < 8e6


def test_select_class():
    logits = jnp.asarray(np.random.default_rng(0).standard_normal((3, 4, 4, 5)), jnp.float32)
    chosen = select_class(logits, jnp.asarray([1, 5, 3]))
    np.testing.assert_array_equal(chosen, np.stack([logits[0, ..., 0], logits[1, ..., 4], logits[2, ..., 2]]))
    agnostic = select_class(logits[..., :1], jnp.asarray([1, 5, 0]))
    np.testing.assert_array_equal(agnostic, logits[..., 0])
    # Background samples take some class; the loss leaves them out.
    assert select_class(logits, jnp.asarray([0, 0, 0])).shape == (3, 4, 4)
