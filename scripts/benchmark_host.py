"""Figures of what the host does: the data pipeline and evaluation."""

import dataclasses
import time
from collections.abc import Callable

import cv2
import numpy as np
from benchmark_report import Report, measure

from experiments import base
from mrcnn_jax.data import pipeline, shapes
from mrcnn_jax.data.dataset import Dataset
from mrcnn_jax.evaluation.coco_metrics import score
from mrcnn_jax.evaluation.results import ImageDetections, coco_results
from mrcnn_jax.models import zoo

# The size of most COCO images.
HEIGHT, WIDTH = 480, 640


def data(report: Report, repeats: int) -> None:
    """Training batches as the COCO recipe makes them: decode, flip, resize to 640..800, pack masks, pad to 800x1344."""
    batch_size, batches, num_images = 4, 4, 16
    config = base.experiment("benchmark", zoo.mask_rcnn())
    config.data.update({"buckets": ((800, 1344),), "num_workers": 0})
    drawn = shapes.load("train", num_images, size=(HEIGHT, WIDTH), empty_rate=0.0, crowd_rate=0.0)
    records = tuple(dataclasses.replace(record, source=_jpeg(record.image())) for record in drawn.records)
    loader = pipeline.train_loader(Dataset(drawn.categories, records, "jpeg"), config, 0, batch_size)

    def read() -> None:
        for _ in range(batches):
            next(loader)

    _throughput(report, "data", "480x640 JPEG to 800x1344, no workers", read, batch_size * batches, repeats)
    loader.close()


def evaluation(report: Report, repeats: int, num_images: int) -> None:
    """Masks pasted and run-length encoded, and `num_images` images with 100 detections each scored."""
    found = [_detections(seed) for seed in range(4)]
    ids = list(range(1, 81))

    def encode() -> None:
        for one in found:
            coco_results(one, 1, (HEIGHT, WIDTH), ids)

    _throughput(report, "evaluation", "paste and encode 100 masks, 480x640", encode, len(found), repeats)

    results = [coco_results(one, 1, (HEIGHT, WIDTH), ids) for one in found]
    truth, boxes, masks = _coco(results, num_images)
    works = {
        "bbox": lambda times: [score(truth, boxes, "bbox") for _ in range(times)],
        "segm": lambda times: [score(truth, masks, "segm") for _ in range(times)],
    }
    for kind, samples in measure(works, repeats).items():
        report.add("evaluation", f"score {kind}, {num_images:,} images x 100 detections", "s", samples)


def _throughput(report: Report, part: str, name: str, once: Callable[[], None], images: int, repeats: int) -> None:
    """Images a second as they come, and for each second of CPU time, which other processes take little from."""
    cpu = []

    def work(times: int) -> None:
        start = time.process_time()
        for _ in range(times):
            once()
        cpu.append((time.process_time() - start) / times)

    wall = measure({name: work}, repeats)[name]
    report.rates(part, "images/s", images, {name: wall})
    report.rates(part, "images/s a core", images, {f"{name}, by CPU time": cpu[-len(wall) :]})


def _jpeg(image: np.ndarray) -> bytes:
    return cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 90])[1].tobytes()


def _detections(seed: int) -> ImageDetections:
    """A hundred ellipses of all sizes and 80 classes in one image."""
    rng = np.random.default_rng(seed)
    sides = np.exp(rng.uniform(np.log(16), np.log(400), (100, 2)))
    corners = rng.uniform(0, 1, (100, 2)) * (np.array([WIDTH, HEIGHT]) - sides)
    y, x = np.mgrid[-1:1:28j, -1:1:28j]
    return ImageDetections(
        boxes=np.concatenate([corners, corners + sides], axis=-1).astype(np.float32),
        scores=np.sort(rng.uniform(0.05, 1, 100))[::-1].astype(np.float32),
        classes=rng.integers(1, 81, 100).astype(np.int32),
        masks=np.broadcast_to(1 / (1 + np.exp(8 * (x**2 + y**2 - 0.9))), (100, 28, 28)).astype(np.float32),
    )


def _coco(results: list[list[dict]], num_images: int) -> tuple[dict, list[dict], list[dict]]:
    """Ground truth with seven objects an image (COCO's mean), and results as boxes and as masks."""
    annotations, boxes, masks = [], [], []
    for image_id in range(1, num_images + 1):
        found = results[image_id % len(results)]
        for one in found:
            common = {"image_id": image_id, "category_id": one["category_id"], "score": one["score"]}
            boxes.append(common | {"bbox": one["bbox"]})
            masks.append(common | {"segmentation": one["segmentation"]})
        for one in found[image_id % 90 : image_id % 90 + 7]:
            width, height = one["bbox"][2:]
            annotations.append({
                "id": len(annotations) + 1, "image_id": image_id, "category_id": one["category_id"], "iscrowd": 0,
                "bbox": one["bbox"], "area": width * height, "segmentation": one["segmentation"],
            })  # fmt: skip
    truth = {
        "images": [{"id": i, "height": HEIGHT, "width": WIDTH} for i in range(1, num_images + 1)],
        "categories": [{"id": i, "name": f"class {i}"} for i in range(1, 81)],
        "annotations": annotations,
    }
    return truth, boxes, masks
