"""RoIAlign against the reference kernels and a scalar one, and the rules on padding, batches and platforms."""

import json
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

from mrcnn_jax.ops.roi_align import assign_levels, batch_max, divide, roi_align

HERE = Path(__file__).parent / "golden"
GOLDEN = dict(np.load(HERE / "ops_roi_align.npz"))
LEVELS = dict(np.load(HERE / "ops_roi_levels.npz"))
CASES = json.loads(str(GOLDEN["cases"]))
VARIANTS = [(size, ratio, aligned) for size in (7, (2, 3)) for ratio in (0, 1, 2, 3) for aligned in (False, True)]
SHAPES = ((40, 56), (20, 28), (10, 14))
STRIDES = (4.0, 8.0, 16.0)


def nhwc(x):
    return np.moveaxis(x, 1, -1)


def scalar_roi_align(pyramid, extents, strides, boxes, levels, size, ratio, aligned):
    """One sample at a time, in double precision but for the sides of the boxes, which decide the counts."""
    n, c = len(boxes), pyramid[0].shape[-1]
    out = np.zeros((n, size, size, c))
    for i, (box, level) in enumerate(zip(boxes.astype(np.float32), levels, strict=True)):
        features, (height, width) = pyramid[level].astype(np.float64), extents[level]
        x1, y1, x2, y2 = box / np.float32(strides[level]) - np.float32(0.5 * aligned)
        sides = [y2 - y1, x2 - x1] if aligned else [max(y2 - y1, np.float32(1)), max(x2 - x1, np.float32(1))]
        steps = [side / np.float32(size) for side in sides]
        counts = [ratio or int(np.ceil(step)) for step in steps]
        for p, q in np.ndindex(size, size):
            for a, b in np.ndindex(*(max(count, 0) for count in counts)):
                y = float(y1) + (p + (a + 0.5) / counts[0]) * float(steps[0])
                x = float(x1) + (q + (b + 0.5) / counts[1]) * float(steps[1])
                if -1 <= y <= height and -1 <= x <= width:
                    y, x = np.clip(y, 0, height - 1), np.clip(x, 0, width - 1)
                    top, left = int(y), int(x)
                    bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
                    upper = features[top, left] * (left + 1 - x) + features[top, right] * (x - left)
                    lower = features[bottom, left] * (left + 1 - x) + features[bottom, right] * (x - left)
                    out[i, p, q] += upper * (top + 1 - y) + lower * (y - top)
            out[i, p, q] /= max(counts[0] * counts[1], 1)
    return out


def example(seed=0, n=9, c=3, batch=()):
    rng = np.random.default_rng(seed)
    pyramid = tuple(rng.standard_normal((*batch, h, w, c), dtype=np.float32) for h, w in SHAPES)
    extents = np.broadcast_to(np.asarray(SHAPES, np.int32) - np.asarray([[5, 8], [2, 4], [1, 2]]), (*batch, 3, 2))
    corner = rng.uniform(-10, 130, (*batch, n, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(1, 120, (*batch, n, 2))], axis=-1).astype(np.float32)
    levels = rng.integers(0, 3, (*batch, n)).astype(np.int32)
    return jax.tree.map(jnp.asarray, (pyramid, extents.astype(np.int32), boxes, levels))


def pool(pyramid, extents, boxes, levels, **options):
    options = {"size": 7, "sampling_ratio": 0, "aligned": True, **options}
    return roi_align(pyramid, extents, STRIDES, boxes, levels=levels, **options)


def with_gradient(function):
    """The output, and the gradient in the pyramid of a fixed random projection of it."""

    def run(pyramid, *args):
        out, transpose = jax.vjp(lambda pyramid: function(pyramid, *args), pyramid)
        return out, transpose(jnp.cos(jnp.arange(out.size, dtype=jnp.float32)).reshape(out.shape).astype(out.dtype))[0]

    return jax.jit(run)


def check_golden(size, ratio, aligned, implementation):
    """Both spatial scales of a variant. Every box is pooled from both images, and the wrong one is left out."""
    images, rois = jnp.asarray(nhwc(GOLDEN["x"])), GOLDEN["rois"]
    own = rois[:, 0][None] == np.arange(2)[:, None]

    @jax.jit
    def run(images, stride, cotangent):
        def one(features):
            return roi_align(
                (features,), jnp.asarray([[17, 23]]), stride, jnp.asarray(rois[:, 1:]), levels=jnp.zeros(15, jnp.int32),
                size=size, sampling_ratio=ratio, aligned=aligned, implementation=implementation,
            )  # fmt: skip

        out, transpose = jax.vjp(jax.vmap(one), images)
        return out, transpose(cotangent)[0]

    bins = [size, size] if isinstance(size, int) else list(size)
    cotangent = nhwc(GOLDEN["cotangent.{}x{}".format(*bins)])
    cases = [c for c in CASES if (c["output_size"], c["sampling_ratio"], c["aligned"]) == (bins, ratio, aligned)]
    assert len(cases) == 2
    for case in cases:
        stride = jnp.asarray([1 / case["spatial_scale"]], jnp.float32)
        out, gradient = run(images, stride, jnp.where(own[:, :, None, None, None], cotangent[None], 0))
        expected, expected_gradient = (nhwc(GOLDEN[f"align.{case['i']}.{name}"]) for name in ("y", "grad_x"))
        out = np.where(own[0][:, None, None, None], out[0], out[1])
        np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())
        np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-4, atol=1e-5 * np.abs(expected_gradient).max())


@pytest.mark.parametrize(("size", "ratio", "aligned"), VARIANTS)
def test_gather_equals_the_reference_kernels(size, ratio, aligned):
    check_golden(size, ratio, aligned, "gather")


@pytest.mark.parametrize(("size", "ratio", "aligned"), [(7, 0, True), ((2, 3), 2, False)])
def test_matmul_equals_the_reference_kernels(size, ratio, aligned):
    check_golden(size, ratio, aligned, "matmul")


@pytest.mark.parametrize("ratio", [0, 2])
def test_both_implementations_agree(ratio):
    gather, matmul = (
        with_gradient(partial(pool, sampling_ratio=ratio, implementation=name))(*example())
        for name in ("gather", "matmul")
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), gather, matmul)


@pytest.mark.parametrize(
    ("name", "size", "ratio", "aligned"),
    [("tv.box", 7, 2, False), ("tv.mask", 14, 2, False), ("d2.ROIAlignV2_sr0", 7, 0, True)],
)
def test_pyramid_poolers_of_both_libraries(name, size, ratio, aligned):
    maps = [nhwc(LEVELS[f"feat.{level}"]) for level in range(4)]
    first = 0
    for image, boxes in enumerate((LEVELS["boxes.0"], LEVELS["boxes.1"])):
        out = jax.jit(
            lambda maps, boxes: roi_align(
                maps, jnp.asarray([m.shape[:2] for m in maps]), (4, 8, 16, 32), boxes, levels=assign_levels(boxes) - 2,
                size=size, sampling_ratio=ratio, aligned=aligned,
            )
        )([jnp.asarray(m[image]) for m in maps], jnp.asarray(boxes))  # fmt: skip
        expected = nhwc(LEVELS[f"{name}.y"])[first : first + len(boxes)]
        np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-5)
        first += len(boxes)


def test_levels_of_both_libraries():
    assign = jax.jit(assign_levels, static_argnames="eps")
    edges = jnp.asarray(LEVELS["edge_boxes"])
    np.testing.assert_array_equal(assign(edges, eps=1e-6), LEVELS["tv.edge_levels"] + 2)
    np.testing.assert_array_equal(assign(edges[:22], eps=1e-8), LEVELS["d2.edge_levels"] + 2)
    boxes = jnp.concatenate([jnp.asarray(LEVELS["boxes.0"]), jnp.asarray(LEVELS["boxes.1"])])
    np.testing.assert_array_equal(assign(boxes, eps=1e-6), LEVELS["tv.levels"] + 2)
    np.testing.assert_array_equal(assign(boxes, eps=1e-8), LEVELS["d2.levels"] + 2)


def test_levels_of_boxes_without_an_area_are_the_lowest():
    boxes = jnp.asarray([[5, 5, 4, 9], [3, 3, 3, 3], [np.nan] * 4, [0, 0, np.inf, np.nan]], jnp.float32)
    np.testing.assert_array_equal(assign_levels(boxes), 2)


def test_adaptive_sampling_is_exact_for_slivers_and_whole_multiples():
    rng = np.random.default_rng(3)
    pyramid = [rng.standard_normal((h, w, 2), dtype=np.float32) for h, w in ((6, 340), (30, 4))]
    # 1300 x 1 and 1 x 110 pixels; sides of exactly 15 bins, where a count of 16 would be wrong; inverted; empty.
    boxes = np.asarray(
        [
            [20, 9, 1320, 10],
            [3, 5, 4, 115],
            [0, 0, 4 * 105, 20],
            [8, 4, 8 + 4 * 7 * 3, 18],
            [60, 20, 40, 4],
            [7, 7, 7, 7],
        ]
    )
    levels = np.asarray([0, 1, 0, 0, 0, 0], np.int32)
    for aligned in (True, False):
        out = jax.jit(partial(roi_align, strides=(4.0, 4.0), size=7, sampling_ratio=0, aligned=aligned))(
            tuple(map(jnp.asarray, pyramid)), jnp.asarray([[6, 340], [30, 4]]), boxes=jnp.asarray(boxes, jnp.float32),
            levels=jnp.asarray(levels),
        )  # fmt: skip
        expected = scalar_roi_align(pyramid, [(6, 340), (30, 4)], (4, 4), boxes, levels, 7, 0, aligned)
        np.testing.assert_allclose(out, expected, rtol=1e-4, atol=2e-5)


def test_division_is_correctly_rounded_when_compiled():
    x = np.concatenate([np.arange(1, 3000), np.random.default_rng(0).uniform(0, 60, 5000)]).astype(np.float32)
    for divisor in (7, 14, 224):
        np.testing.assert_array_equal(jax.jit(lambda x, by=divisor: divide(x, by))(x), x / np.float32(divisor))


@pytest.mark.parametrize("implementation", ["gather", "matmul"])
def test_map_ends_at_its_extent(implementation):
    """Padding beyond the extent is never read, and gets no gradient, whatever it holds."""
    pyramid, extents, boxes, levels = example()
    run = with_gradient(partial(pool, implementation=implementation))
    cut = tuple(features[:h, :w] for features, (h, w) in zip(pyramid, np.asarray(extents), strict=True))
    expected, expected_gradient = run(cut, extents, boxes, levels)
    np.testing.assert_allclose(
        expected, scalar_roi_align(*jax.tree.map(np.asarray, (cut, extents, STRIDES, boxes, levels)), 7, 0, True),
        rtol=1e-4, atol=2e-5,
    )  # fmt: skip
    out, gradient = run(pyramid, extents, boxes, levels)
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-6)
    for full, part, (h, w) in zip(gradient, expected_gradient, np.asarray(extents), strict=True):
        np.testing.assert_allclose(full[:h, :w], part, rtol=1e-5, atol=1e-5)
        assert not np.any(full[h:])
        assert not np.any(full[:, w:])


def test_nan_beyond_the_extent_is_never_gathered():
    pyramid, extents, boxes, levels = example()
    run = with_gradient(partial(pool, implementation="gather"))
    poisoned = tuple(f.at[h:].set(jnp.nan).at[:, w:].set(jnp.nan) for f, (h, w) in zip(pyramid, extents, strict=True))
    jax.tree.map(
        np.testing.assert_array_equal, run(poisoned, extents, boxes, levels), run(pyramid, extents, boxes, levels)
    )


@pytest.mark.parametrize(("ratio", "implementation"), [(0, "gather"), (2, "gather"), (0, "matmul")])
def test_poisoned_rows_are_zero_and_leave_the_others_alone(ratio, implementation):
    pyramid, extents, boxes, levels = example()
    run = with_gradient(partial(pool, sampling_ratio=ratio, implementation=implementation))
    pooled = {}
    for poison in (np.nan, 1e6, np.inf, -np.inf):
        pooled[poison] = run(pyramid, extents, boxes.at[jnp.asarray([2, 8])].set(poison), levels)
        assert not np.any(pooled[poison][0][jnp.asarray([2, 8])])
        jax.tree.map(np.testing.assert_array_equal, pooled[poison], pooled[np.nan])
    kept = np.delete(np.arange(9), [2, 8])
    clean, _ = run(pyramid, extents, boxes, levels)
    np.testing.assert_array_equal(pooled[np.nan][0][kept], clean[kept])


@pytest.mark.parametrize("ratio", [0, 2])
def test_only_samples_with_a_weight_are_scattered(ratio):
    """Also for speed: on a GPU rows that all add to the same cell wait for each other, be it zeros that they add."""
    pyramid, extents, boxes, levels = example()
    boxes = boxes.at[jnp.asarray([2, 8])].set(0.0 if ratio == 0 else jnp.nan)

    def transposed(cotangent):
        run = partial(pool, sampling_ratio=ratio, implementation="gather")
        return jax.vjp(lambda pyramid: run(pyramid, extents, boxes, levels), pyramid)[1](cotangent)[0]

    cotangent = jnp.asarray(np.random.default_rng(1).standard_normal((9, 7, 7, 3)), jnp.float32)
    clean, poisoned = transposed(cotangent), transposed(cotangent.at[jnp.asarray([2, 8])].set(jnp.nan))
    jax.tree.map(np.testing.assert_array_equal, poisoned, clean)
    assert any(np.any(features) for features in clean)


def test_batch_equals_one_image_at_a_time():
    """With very different numbers of samples an image."""
    pyramid, extents, boxes, levels = example(batch=(3,))
    boxes = boxes.at[1].set(jnp.asarray([3.0, 3.0, 5.0, 4.0])).at[2, 0].set(jnp.asarray([0.0, 0.0, 220.0, 150.0]))
    levels = levels.at[2, 0].set(0)

    def pool_and_transpose(batched, pyramid, cotangent, *rest):
        function = jax.vmap(pool) if batched else pool
        out, transpose = jax.vjp(lambda pyramid: function(pyramid, *rest), pyramid)
        return out, transpose(cotangent)[0]

    run = jax.jit(pool_and_transpose, static_argnums=0)
    cotangent = jnp.asarray(np.random.default_rng(1).standard_normal((3, 9, 7, 7, 3)), jnp.float32)
    batch = pyramid, cotangent, extents, boxes, levels
    singles = [run(False, *jax.tree.map(lambda x, i=i: x[i], batch)) for i in range(3)]
    expected = jax.tree.map(lambda *x: jnp.stack(x), *singles)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), run(True, *batch), expected)


def test_loops_of_a_batch_share_their_number_of_turns():
    x = jnp.asarray([[1, 5], [3, 2]])
    assert jax.vmap(batch_max, out_axes=None)(x) == 5
    assert jax.vmap(jax.vmap(batch_max, out_axes=None), out_axes=None)(x) == 5


def test_devices_give_the_same():
    arguments = example(batch=(4,), n=5)
    mesh = Mesh(np.asarray(jax.devices()[:4]), ("data",))

    def gradient(pyramid, *rest):
        return jax.grad(lambda pyramid: jnp.sum(jax.vmap(pool)(pyramid, *rest) ** 2))(pyramid)

    data = PartitionSpec("data")
    sharded = jax.jit(jax.shard_map(gradient, mesh=mesh, in_specs=data, out_specs=data))(*arguments)
    expected = jax.jit(gradient)(*arguments)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-4), sharded, expected)


@pytest.mark.parametrize(("implementation", "atol"), [("gather", 1e-3), ("matmul", 2**-7)])
def test_bfloat16_maps_are_summed_in_float32(implementation, atol):
    """By matrices, weights and what is between the two products are rounded too, as a matrix unit does it by itself."""
    pyramid, *rest = example()
    run = with_gradient(partial(pool, implementation=implementation))
    pyramid = tuple(features.astype(jnp.bfloat16) for features in pyramid)
    out, gradient = run(pyramid, *rest)
    exact, exact_gradient = run(tuple(features.astype(jnp.float32) for features in pyramid), *rest)
    assert out.dtype == jnp.bfloat16
    assert {g.dtype for g in gradient} == {jnp.dtype(jnp.bfloat16)}
    np.testing.assert_allclose(out.astype(jnp.float32), exact, rtol=2**-7, atol=atol)
    for a, b in zip(gradient, exact_gradient, strict=True):
        # The output's rounding reaches the projection's sign nowhere; only the cotangent and the result are rounded.
        np.testing.assert_allclose(a.astype(jnp.float32), b, rtol=2**-6, atol=2**-6)


def test_boxes_get_no_gradient():
    pyramid, extents, boxes, levels = example()
    gradient = jax.jit(jax.grad(lambda boxes: jnp.sum(pool(pyramid, extents, boxes, levels) ** 2)))(boxes)
    np.testing.assert_array_equal(gradient, 0)


@pytest.mark.parametrize(("platform", "matrices"), [("tpu", True), ("cuda", False), ("cpu", False)])
def test_lowers_for_every_platform(platform, matrices):
    program = jax.jit(with_gradient(jax.vmap(pool)))
    text = jax.export.export(program, platforms=[platform])(*example(batch=(2,))).mlir_module()
    assert ("stablehlo.dot_general" in text) == matrices
    assert ("stablehlo.scatter" in text) != matrices


def test_memory_does_not_grow_with_the_samples():
    """The derivative keeps no sample: its temporary memory is some maps and one cotangent, at any sampling ratio."""
    arguments = example(n=64, c=32)
    sizes = [
        with_gradient(partial(pool, sampling_ratio=ratio))
        .lower(*arguments)
        .compile()
        .memory_analysis()
        .temp_size_in_bytes
        for ratio in (1, 0)
    ]
    maps = sum(features.nbytes for features in arguments[0])
    cotangent = 64 * 7 * 7 * 32 * 4
    assert max(sizes) < 3 * (maps + cotangent)
    assert max(sizes) < 1.5 * min(sizes)


def test_no_boxes_give_no_features():
    pyramid, extents, boxes, levels = example()
    out, gradient = with_gradient(pool)(pyramid, extents, boxes[:0], levels[:0])
    assert out.shape == (0, 7, 7, 3)
    assert not any(np.any(g) for g in gradient)
