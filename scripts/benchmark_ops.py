"""Figures of single operations: RoIAlign with its gradient, and suppression."""

import jax
import jax.numpy as jnp
import numpy as np
from benchmark_report import Report, Work, measure

from mrcnn_jax.ops.nms import nms
from mrcnn_jax.ops.roi_align import assign_levels, roi_align


def ops(report: Report, repeats: int, size: tuple[int, int] = (800, 1344), channels: int = 256) -> None:
    """RoIAlign over levels 2 to 5 of one image, in float32, and ten problems of suppression as an RPN has them."""
    for name, work in (_roi_align(size, channels) | _nms()).items():
        for label, samples in measure({name: work}, repeats).items():
            report.add("ops", label, "ms", [1000 * s for s in samples])


def _roi_align(size: tuple[int, int], channels: int) -> dict[str, Work]:
    """Of the pyramid alone is the gradient taken, as in training."""
    rng = np.random.default_rng(0)
    shapes = [(-(-size[0] // 2**level), -(-size[1] // 2**level)) for level in range(2, 6)]
    pyramid = [jnp.array(rng.standard_normal((*shape, channels)), jnp.float32) for shape in shapes]
    extents, strides = jnp.array(shapes, jnp.int32), [2**level for level in range(2, 6)]
    works = {}
    for number, side, sampling_ratio in ((512, 7, 2), (512, 7, 0), (128, 14, 2), (128, 14, 0)):
        boxes = _boxes(rng, number, size)

        def forward(pyramid, boxes, side=side, sampling_ratio=sampling_ratio):
            levels = assign_levels(boxes, 2, 5) - 2
            return roi_align(
                pyramid, extents, strides, boxes, size=side, sampling_ratio=sampling_ratio, aligned=True, levels=levels
            )

        cotangent = jnp.array(rng.standard_normal((number, side, side, channels)), jnp.float32)
        gradient = jax.grad(lambda pyramid, boxes, f=forward, c=cotangent: jnp.vdot(f(pyramid, boxes), c))
        what = f"{number} RoIs {side}x{side}, {'adaptive' if sampling_ratio == 0 else '2x2'} samples"
        works[f"RoIAlign, {what}"] = _calls(forward, pyramid, boxes)
        works[f"RoIAlign gradient, {what}"] = _calls(gradient, pyramid, boxes)
    return works


def _nms() -> dict[str, Work]:
    works = {}
    for number in (1000, 2000):
        rng = np.random.default_rng(number)
        boxes = jnp.stack([_boxes(rng, number, (800, 1344), spots=number // 8) for _ in range(10)])
        scores = jnp.array(rng.uniform(0, 1, (10, number)), jnp.float32)
        suppress = jax.vmap(lambda boxes, scores: nms(boxes, scores, jnp.ones(scores.shape, bool), 0.7))
        works[f"NMS, 10 x {number} boxes"] = _calls(suppress, boxes, scores)
    return works


def _boxes(rng: np.random.Generator, number: int, size: tuple[int, int], spots: int | None = None) -> jax.Array:
    """Boxes within an image of `size`, of all scales; with `spots`, in so many places, each with its share of boxes."""
    spots = spots or number
    sides = min(size) * np.exp(rng.uniform(np.log(0.02), np.log(0.7), (spots, 2)))
    corners = rng.uniform(0, 1, (spots, 2)) * (np.array(size[::-1]) - sides)
    boxes = np.concatenate([corners, corners + sides], axis=-1)
    sides = np.tile(sides, 2)
    where = rng.integers(0, spots, number) if spots < number else np.arange(number)
    noise = 0.1 * sides[where] * rng.standard_normal((number, 4)) if spots < number else 0.0
    return jnp.array(np.clip(boxes[where] + noise, 0, np.tile(size[::-1], 2)), jnp.float32)


def _calls(function, *arguments) -> Work:
    compiled = jax.jit(function)

    def work(times: int) -> None:
        for _ in range(times):
            result = compiled(*arguments)
        jax.block_until_ready(result)

    return work
