"""Measures how closely imported models follow the reference implementations, on recorded outputs of theirs.

    python scripts/parity.py GOLDEN [MODEL ...] [--json=FILE]

GOLDEN is a folder of recordings: for each model its state-dict keys (MODEL_keys.json), features, RPN outputs and
detections of a batch of two images (MODEL_small.npz), detections of each image alone (MODEL_alone.npz), and losses and
gradient norms (MODEL_train.npz); the weights are made from names by its `fill.py`. Prints a table, a row a model.
"""

import argparse
import importlib.util
import json
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mrcnn_jax.checkpoints.importing import Weights, convert
from mrcnn_jax.checkpoints.names import entries, flatten
from mrcnn_jax.checkpoints.weight_files import WeightFile
from mrcnn_jax.conventions import rule_of
from mrcnn_jax.data.transforms import resize, resize_float, resized_shape
from mrcnn_jax.evaluation.results import to_image
from mrcnn_jax.models import mask
from mrcnn_jax.models.build import build
from mrcnn_jax.ops.roi_align import roi_align
from mrcnn_jax.types import Batch, GroundTruth, Proposals

SHORT, LONG = 256, 512
# Conventions in which a recorded model differs from the published one of its name.
FRESH_V1 = {"backbone.norm_eps": 1e-5}
C4 = {"rpn.post_nms": (500, 200), "roi.num_samples": 64}
OVERRIDES = {
    "tv_fasterrcnn_resnet50_fpn": FRESH_V1, "tv_maskrcnn_resnet50_fpn": FRESH_V1,
    "tv_keypointrcnn_resnet50_fpn": FRESH_V1, "d2_faster_rcnn_R_50_C4": C4, "d2_mask_rcnn_R_50_C4": C4,
    # Its frozen stages take the batch's statistics in training.
    "tv_maskrcnn_resnet50_fpn_v2": {"backbone.frozen_stages": 0},
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("golden", type=Path)
    parser.add_argument("models", nargs="*")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    fill = _module(options.golden / "fill.py").fill
    names = options.models or sorted(p.name.removesuffix("_keys.json") for p in options.golden.glob("*_keys.json"))
    rows = {}
    for name in names:
        start = time.perf_counter()
        rows[name] = measure(options.golden, name, fill)
        print(f"{name}: {json.dumps(rows[name])} ({time.perf_counter() - start:.0f} s)", file=sys.stderr, flush=True)
        jax.clear_caches()
    print(table(rows))
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


def measure(golden: Path, name: str, fill: Callable) -> dict[str, float]:
    """The largest differences of one model, all stages."""
    imported = load(golden, name, fill)
    images = [np.load(golden / "inputs_rgb_uint8.npz")[f"small.{i}"] for i in range(2)]
    reference = np.load(golden / f"{name}_small.npz")
    figures = features(imported, images, reference)
    figures |= {f"batch {k}": v for k, v in detections(imported, images, reference, together=True).items()}
    alone = np.load(golden / f"{name}_alone.npz")
    figures |= {
        f"alone {k}": v for k, v in detections(imported, images, alone, together=False, proposals=reference).items()
    }
    return figures | training(imported, images, np.load(golden / f"{name}_train.npz"), name)


def load(golden: Path, name: str, fill: Callable) -> Weights:
    """The model as `mrcnn import` makes it, from the recorded names."""
    shapes = json.loads((golden / f"{name}_keys.json").read_text())
    file = WeightFile({key: fill(key, shape) for key, shape in shapes.items()}, (), {})
    # The random weights give thousands of candidates over the threshold, of which the references keep all.
    overrides = {"preprocess.short_side": SHORT, "preprocess.max_size": LONG, "box.num_candidates": 20_000}
    return convert(file, name, overrides=overrides | OVERRIDES.get(name, {}))


def make_batch(imported: Weights, images: list[np.ndarray], reference, rows: list[int]) -> Batch:
    """The images resized as the weights expect, and padded as the reference pads a batch of them."""
    p = imported.config.preprocess
    shapes = [resized_shape(*image.shape[:2], SHORT, LONG, p.rounding) for image in images]
    exact = resize_float if p.interpolation == "torchvision" else partial(resize, interpolation=p.interpolation)
    resized = [exact(image, shape) for image, shape in zip(images, shapes, strict=True)]
    height, width = (-(-max(s[axis] for s in shapes) // p.divisor) * p.divisor for axis in (0, 1))
    pixels = np.zeros((len(images), height, width, 3), resized[0].dtype)
    for row, image in enumerate(resized):
        pixels[row, : image.shape[0], : image.shape[1]] = image
    batch = Batch(
        image=pixels,
        size=np.array(shapes, np.int32),
        original_size=np.array([image.shape[:2] for image in images], np.int32),
        image_id=np.arange(len(images), dtype=np.int32),
        valid=np.ones(len(images), bool),
    )
    if imported.config.rpn is None:
        batch = batch.replace(proposals=_stack([reference[f"proposals.boxes.{i}"] for i in rows]))
    return batch


def features(imported: Weights, images: list[np.ndarray], reference) -> dict[str, float]:
    """Relative differences of the maps and of the RPN's outputs, for the recorded batch."""
    network = _network(imported, whole_canvas=True)
    batch = make_batch(imported, images, reference, [0, 1])

    @jax.jit
    def run(variables, batch):
        def read(module, batch):
            pyramid = module.features(batch, train=False)
            rpn = None if module.rpn is None else module.rpn.head(pyramid)
            return {level: maps for level, (maps, _) in pyramid.items()}, rpn

        return network.apply(variables, batch, method=read)

    pyramid, rpn = jax.device_get(run(imported.variables(), batch))
    worst = {"features": 0.0, "rpn": 0.0}
    for level, maps in pyramid.items():
        maps = maps.transpose(0, 3, 1, 2)
        for prefix in (f"feat.p{level}", f"fpn.p{level}", f"feat.res{level}"):
            if f"{prefix}.spmean" in reference:
                worst["features"] = max(
                    worst["features"],
                    _relative(maps.mean((2, 3)), reference[f"{prefix}.chmean"]),
                    _relative(maps.mean(1), reference[f"{prefix}.spmean"]),
                    _relative(maps[:, :4], reference[f"{prefix}.slice"]) if f"{prefix}.slice" in reference else 0.0,
                    _relative(maps, reference[prefix]) if prefix in reference else 0.0,
                )
    for i, (level, maps) in enumerate(sorted(pyramid.items()) if rpn else ()):
        b, h, w, _ = maps.shape
        for ours, theirs, per_anchor in ((rpn[0][i], "objectness", 1), (rpn[1][i], "deltas", 4)):
            key = f"rpn.{theirs}.p{level}" if f"rpn.{theirs}.p{level}" in reference else f"rpn.{theirs}.{i}"
            if key not in reference:
                continue
            expected = reference[key].reshape(b, -1, per_anchor, h, w).transpose(0, 3, 4, 1, 2)
            worst["rpn"] = max(worst["rpn"], _relative(ours.reshape(expected.shape), expected))
    return worst


def detections(
    imported: Weights, images: list[np.ndarray], reference, *, together: bool, proposals=None
) -> dict[str, float]:
    """Differences of the final detections, matched by label and overlap."""
    network = _network(imported, whole_canvas=together)
    detect = jax.jit(lambda variables, batch: network.apply(variables, batch, method="detect"))
    every = list(range(len(images)))
    rows = [every] if together else [[i] for i in every]
    worst = {"unmatched": 0, "box": 0.0, "score": 0.0, "pixels": 0, "keypoint": 0.0}
    for group in rows:
        batch = make_batch(imported, [images[i] for i in group], proposals or reference, group)
        found = jax.device_get(detect(imported.variables(), batch))
        for row, i in enumerate(group):
            one = jax.tree.map(lambda x, row=row: x[row], found)
            size, original = batch.size[row].tolist(), batch.original_size[row].tolist()
            ours = to_image(one, size, original, paste_rule=rule_of(imported.config))
            _compare(ours, reference, i, 0 if imported.config.box.background_output else 1, worst)
    return worst


def _compare(ours, reference, i: int, first_class: int, worst: dict[str, float]) -> None:
    labels = reference[f"out.classes.{i}" if f"out.classes.{i}" in reference else f"out.labels.{i}"] + first_class
    boxes, scores = reference[f"out.boxes.{i}"], reference[f"out.scores.{i}"]
    masks = None
    if f"out.masks_packed.{i}" in reference:
        masks = np.unpackbits(reference[f"out.masks_packed.{i}"], axis=-1)
        masks = masks[..., : reference[f"out.masks_shape.{i}"][-1]].astype(bool)
    worst["unmatched"] += abs(len(boxes) - len(ours.boxes))
    free = np.ones(len(ours.boxes), bool)
    for k, (box, label) in enumerate(zip(boxes, labels, strict=True)):
        distance = np.abs(ours.boxes - box).max(axis=1)
        distance = np.where(free & (ours.classes == label), distance, np.inf)
        best = int(distance.argmin())
        if distance[best] > 1:
            worst["unmatched"] += 1
            continue
        free[best] = False
        worst["box"] = max(worst["box"], float(distance[best]))
        worst["score"] = max(worst["score"], float(abs(ours.scores[best] - scores[k])))
        if masks is not None:
            worst["pixels"] = max(worst["pixels"], int((ours.masks[best] != masks[k]).sum()))
        if f"out.keypoints.{i}" in reference:
            # torchvision's are indices of pixels.
            points = reference[f"out.keypoints.{i}"][k, :, :2] + (0.0 if first_class else 0.5)
            far = np.abs(ours.keypoints[best, :, :2] - points).max()
            worst["keypoint"] = max(worst["keypoint"], float(far))


def training(imported: Weights, images: list[np.ndarray], reference, name: str) -> dict[str, float]:
    """Relative differences of losses and of gradient norms, on the recorded proposals with the first samples."""
    network = _network(imported, whole_canvas=True)
    batch = make_batch(imported, images, reference, [0, 1]).replace(gt=_ground_truth(reference))
    recorded = _stack([reference[f"proposals.boxes.{i}"] for i in range(2)])
    library = "torchvision" if name.startswith("tv_") else "detectron2"

    def use_recorded(call, args, kwargs, context):
        if context.method_name == "propose" and context.module.name is None:
            return recorded
        return call(*args, **kwargs)

    @jax.jit
    def run(params, stats, batch):
        def total(params):
            with nn.intercept_methods(use_recorded):
                (losses, _), _ = network.apply(
                    {"params": params, "batch_stats": stats}, batch, None, method="losses", mutable=["batch_stats"]
                )
            losses = {key: total / jnp.maximum(weight, 1) for key, (total, weight) in losses.items()}
            return sum(losses.values()), losses

        return jax.grad(total, has_aux=True)(params)

    cut = mask.crop_targets
    # The references cut targets from bitmaps of the image, we from bitmaps of the box, which is not what is measured.
    mask.crop_targets = _targets_from_whole_bitmaps
    try:
        gradient, losses = jax.device_get(
            run(imported.variables()["params"], imported.variables()["batch_stats"], batch)
        )
    finally:
        mask.crop_targets = cut
    worst = {"loss": 0.0, "gradient": 0.0}
    for ours, value in losses.items():
        expected = float(reference[f"loss.{_LOSSES[library](ours, len(imported.config.box.iou))}"])
        worst["loss"] = max(worst["loss"], abs(float(value) - expected) / abs(expected))
    norms = dict(zip(reference["grad.names"].tolist(), reference["grad.norms"].tolist(), strict=True))
    leaves = flatten({"params": gradient})
    for entry in entries(imported.config, library):
        if entry.key in norms and not entry.key.endswith("score_lowres.bias"):
            ours = float(np.linalg.norm(leaves[entry.path].astype(np.float64)))
            worst["gradient"] = max(worst["gradient"], abs(ours - norms[entry.key]) / (norms[entry.key] or 1.0))
    return worst


def _ground_truth(reference) -> GroundTruth:
    """The recorded targets; as `masks`, bitmaps of the whole image."""
    prefix = "target_resized" if "target_resized.boxes.0" in reference else "target"
    boxes = [reference[f"{prefix}.boxes.{i}"] for i in range(2)]
    if "target.classes.0" in reference:
        classes = [reference[f"target.classes.{i}"] + 1 for i in range(2)]
    else:
        classes = [reference[f"target.labels.{i}"] for i in range(2)]
    slots = max(map(len, boxes))

    def pad(rows: list[np.ndarray]) -> np.ndarray:
        shape = np.max([row.shape[1:] for row in rows], axis=0).astype(int).tolist()
        out = np.zeros((len(rows), slots, *shape), rows[0].dtype)
        for target, row in zip(out, rows, strict=True):
            target[tuple(map(slice, row.shape))] = row
        return out

    valid = np.arange(slots)[None] < np.array([[len(b)] for b in boxes])
    gt = GroundTruth(pad(boxes), pad(classes).astype(np.int32), valid, np.zeros_like(valid))
    if f"{prefix}.masks_packed.0" in reference:
        whole = [
            np.unpackbits(reference[f"{prefix}.masks_packed.{i}"], axis=-1)[
                ..., : reference[f"{prefix}.masks_shape.{i}"][-1]
            ]
            for i in range(2)
        ]
        gt = gt.replace(masks=pad(whole), has_mask=valid)
    if f"{prefix}.keypoints.0" in reference:
        gt = gt.replace(keypoints=pad([reference[f"{prefix}.keypoints.{i}"] for i in range(2)]))
    return gt


def _targets_from_whole_bitmaps(masks, gt_boxes, index, boxes, size, soft):
    """Mask targets as the references cut them: RoIAlign of the object's bitmap, and from one half on for Detectron2."""
    features = masks.transpose(1, 2, 0).astype(jnp.float32)
    extent = jnp.array(features.shape[:2], jnp.int32)
    pooled = roi_align(
        [features], [extent], [1], boxes, size=size, sampling_ratio=0, aligned=not soft,
        levels=jnp.zeros(boxes.shape[0], jnp.int32),
    )  # fmt: skip
    targets = jnp.take_along_axis(pooled, index[:, None, None, None], axis=3)[..., 0]
    return targets if soft else (targets >= 0.5).astype(jnp.float32)


def _detectron2_loss(name: str, num_stages: int) -> str:
    base, _, stage = name.rpartition("_") if num_stages > 1 and name[-1].isdigit() else (name, "", "")
    names = {
        "rpn_objectness": "loss_rpn_cls", "rpn_box": "loss_rpn_loc", "box_class": "loss_cls",
        "box_regression": "loss_box_reg", "mask": "loss_mask", "keypoint": "loss_keypoint",
    }  # fmt: skip
    return names[base] + (f"_stage{int(stage) - 1}" if stage else "")


def _torchvision_loss(name: str, num_stages: int) -> str:
    names = {
        "rpn_objectness": "loss_objectness", "rpn_box": "loss_rpn_box_reg", "box_class": "loss_classifier",
        "box_regression": "loss_box_reg", "mask": "loss_mask", "keypoint": "loss_keypoint",
    }  # fmt: skip
    return names[name]


_LOSSES = {"detectron2": _detectron2_loss, "torchvision": _torchvision_loss}


def _network(imported: Weights, *, whole_canvas: bool):
    """The model; with the whole canvas it sees its neighbours' padding, as the references do."""
    config = imported.config.copy_and_resolve_references()
    config.preprocess.canvas = not whole_canvas
    return build(config)


def _stack(boxes: list[np.ndarray]) -> Proposals:
    slots = max(map(len, boxes))
    valid = np.arange(slots)[None] < np.array([[len(b)] for b in boxes])
    padded = np.stack([np.pad(b, ((0, slots - len(b)), (0, 0))) for b in boxes])
    return Proposals(padded, np.zeros(valid.shape, np.float32), valid)


def _relative(ours: np.ndarray, theirs: np.ndarray) -> float:
    """The largest difference, as a share of the largest magnitude."""
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


def table(rows: dict[str, dict[str, float]]) -> str:
    """The figures as a Markdown table."""
    columns = list(dict.fromkeys(key for row in rows.values() for key in row))
    lines = ["| model | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for name, row in rows.items():
        cells = [f"{row[c]:.1e}" if isinstance(row[c], float) else str(row[c]) for c in columns]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _module(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("fill", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    main()
