"""RoIWarp and RoIAlign by maxima against plain NumPy, forward and backward."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mrcnn_jax.ops.roi_align import roi_align
from mrcnn_jax.ops.roi_warp import roi_align_max, whole_cells

SIZE, RATIO, STRIDE = 3, 2, 4
EXTENT = (18, 21)


def example(n=8):
    rng = np.random.default_rng(0)
    corner = rng.uniform(-12, 60, (n, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(0.5, 50, (n, 2))], axis=1)
    # Halves are rounded away from zero; a box thinner than a cell still has one.
    boxes[0], boxes[1] = [10, 14, 30, 42], [21, 8, 21.5, 30]
    return [x.astype(np.float32) for x in (rng.standard_normal((20, 24, 2)), boxes, rng.standard_normal((n, 3, 3, 2)))]


def round_away(x):
    return np.trunc(x) + np.sign(x) * (np.abs(x - np.trunc(x)) >= 0.5)


def numpy_samples(height, width, box, warp):
    """Of every bin of one box, its samples as lists of (cell, weight)."""
    x1, y1, x2, y2 = box / STRIDE
    if warp:
        x1, y1, x2, y2 = round_away(x1), round_away(y1), round_away(x2) + 1, round_away(y2) + 1
    for p, q in np.ndindex(SIZE, SIZE):
        samples = []
        for i, j in np.ndindex(RATIO, RATIO):
            y = y1 + (p + (i + 0.5) / RATIO) * (y2 - y1) / SIZE - 0.5
            x = x1 + (q + (j + 0.5) / RATIO) * (x2 - x1) / SIZE - 0.5
            cells = []
            if -1 <= y <= height and -1 <= x <= width:
                y, x = np.clip(y, 0, height - 1), np.clip(x, 0, width - 1)
                for row in {int(y), min(int(y) + 1, height - 1)}:
                    for column in {int(x), min(int(x) + 1, width - 1)}:
                        weight = (1 - abs(y - row)) * (1 - abs(x - column))
                        cells.append(((row, column), weight))
            samples.append(cells)
        yield (p, q), samples


def numpy_pool(features, boxes, cotangent, warp, largest):
    out, gradient = np.zeros((len(boxes), SIZE, SIZE, features.shape[-1])), np.zeros(features.shape)
    for n, box in enumerate(boxes.astype(np.float64)):
        for (p, q), samples in numpy_samples(*EXTENT, box, warp):
            values = np.array([sum((w * features[cell] for cell, w in cells), np.zeros(2)) for cells in samples])
            if largest:
                share = np.arange(RATIO**2)[:, None] == values.argmax(axis=0)[None]
            else:
                share = np.full(values.shape, 1 / RATIO**2)
            out[n, p, q] = (share * values).sum(axis=0)
            for cells, part in zip(samples, share, strict=True):
                for cell, weight in cells:
                    gradient[cell] += weight * part * cotangent[n, p, q]
    return out, gradient


def run(warp, largest):
    def pool(features, boxes):
        levels, strides = jnp.zeros(len(boxes), jnp.int32), jnp.full(len(boxes), STRIDE, jnp.float32)
        boxes = whole_cells(boxes, strides) if warp else boxes
        function = roi_align_max if largest else roi_align
        return function(
            [features], [jnp.asarray(EXTENT)], [STRIDE], boxes,
            size=SIZE, sampling_ratio=RATIO, aligned=True, levels=levels,
        )  # fmt: skip

    @jax.jit
    def with_gradient(features, boxes, cotangent):
        out, transpose = jax.vjp(lambda features: pool(features, boxes), features)
        return out, transpose(cotangent)[0]

    return with_gradient


@pytest.mark.parametrize(("warp", "largest"), [(True, False), (True, True), (False, True)])
def test_equals_numpy_forward_and_backward(warp, largest):
    features, boxes, cotangent = example()
    out, gradient = run(warp, largest)(features, boxes, cotangent)
    expected, expected_gradient = numpy_pool(features, boxes, cotangent, warp, largest)
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-4, atol=1e-5)


def test_one_image_at_a_time_equals_the_batch():
    features, boxes, cotangent = example()
    batch = jnp.stack([features, -features]), jnp.stack([boxes, boxes[::-1]]), jnp.stack([cotangent, cotangent])
    together = jax.jit(jax.vmap(run(True, True)))(*batch)
    for i in range(2):
        single = run(True, True)(*(x[i] for x in batch))
        jax.tree.map(
            lambda many, one, i=i: np.testing.assert_allclose(many[i], one, rtol=1e-5, atol=1e-5), together, single
        )


def test_whole_cells_are_those_of_roi_pool():
    boxes = jnp.asarray([[6.0, 5.9, 13.9, 14.1], [-6.0, 0.0, 3.0, 1.0], [9.0, 9.0, 9.0, 9.0]])
    expected = [[8, 4, 16, 20], [-8, 0, 8, 4], [8, 8, 12, 12]]
    np.testing.assert_array_equal(whole_cells(boxes, jnp.full(3, 4.0)), expected)


@pytest.mark.parametrize("poison", [np.nan, 1e6, -np.inf])
def test_poisoned_rows_are_zero_and_leave_the_others_alone(poison):
    features, boxes, cotangent = example()
    pool = run(True, True)
    clean, _ = pool(features, boxes, cotangent)
    boxes[[3, 7]] = poison
    found, gradient = pool(features, boxes, cotangent)
    kept = np.delete(np.arange(8), [3, 7])
    np.testing.assert_array_equal(found[kept], clean[kept])
    assert not np.any(found[jnp.asarray([3, 7])])
    assert np.isfinite(gradient).all()


def test_an_unknown_number_of_samples_is_refused():
    features, boxes = map(jnp.asarray, example()[:2])
    with pytest.raises(ValueError, match="adaptive"):
        roi_align_max(
            [features], [jnp.asarray(EXTENT)], [STRIDE], boxes,
            size=3, sampling_ratio=0, aligned=True, levels=jnp.zeros(8, jnp.int32),
        )  # fmt: skip
