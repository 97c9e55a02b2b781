"""The loop over a data set: every image once, same results with and without processes, what is written."""

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_train
import tiny

from mrcnn_jax import distributed
from mrcnn_jax.conventions import rule_of
from mrcnn_jax.data.dataset import Category, Dataset, Record
from mrcnn_jax.errors import UserError
from mrcnn_jax.evaluation.coco_metrics import score
from mrcnn_jax.evaluation.evaluate import evaluate
from mrcnn_jax.evaluation.run import Evaluator, headline
from mrcnn_jax.model import Model
from mrcnn_jax.models import architectures
from mrcnn_jax.models.build import build
from mrcnn_jax.types import Batch, Detections

SIDE = 40
NUM_IMAGES = 7


def record(image_id):
    """Two squares an image; the last image has none."""
    rng = np.random.default_rng(image_id)
    n = 0 if image_id == NUM_IMAGES * 10 else 2
    corner, side = rng.integers(0, 20, (n, 2)).astype(np.float32), rng.integers(8, 20, (n, 1)).astype(np.float32)
    boxes = np.concatenate([corner, corner + side], axis=1)
    return Record(
        image_id=image_id,
        source=np.zeros((SIDE, SIDE, 3), np.uint8),
        height=SIDE,
        width=SIDE,
        boxes=boxes,
        classes=np.arange(n, dtype=np.int32) % 2 + 1,
        crowd=np.zeros(n, bool),
        areas=side[:, 0] ** 2,
        segmentations=tuple([[x0, y0, x1, y0, x1, y1, x0, y1]] for x0, y0, x1, y1 in boxes.tolist()),
    )


RECORDS = [record(10 * (i + 1)) for i in range(NUM_IMAGES)]
DATASET = Dataset((Category(4, "even"), Category(9, "odd")), RECORDS)


def pairs(detect, batches):
    return ((batch, detect(batch)) for batch in batches)


def batches(records=RECORDS, batch_size=3):
    """Batches filled up with rows that are not valid and hold rubbish; the image carries its id in its first pixel."""
    for start in range(0, len(records), batch_size):
        rows = records[start : start + batch_size]
        image = np.zeros((batch_size, SIDE, SIDE, 3), np.uint8)
        image[: len(rows), 0, 0, 0] = [r.image_id for r in rows]
        fill = batch_size - len(rows)
        yield Batch(
            image=image,
            size=np.full((batch_size, 2), SIDE, np.int32),
            original_size=np.full((batch_size, 2), SIDE, np.int32),
            image_id=np.array([r.image_id for r in rows] + [10] * fill, np.int32),
            valid=np.array([True] * len(rows) + [False] * fill),
        )


TRUE_BOXES = np.zeros((256, 2, 4), np.float32)
for r in RECORDS:
    TRUE_BOXES[r.image_id, : len(r.boxes)] = r.boxes


@jax.jit
def oracle(batch: Batch) -> Detections:
    """Finds what is annotated, each object with a full mask, and a row of NaN."""
    boxes = jnp.asarray(TRUE_BOXES)[batch.image[:, 0, 0, 0].astype(jnp.int32)]
    b = boxes.shape[0]
    boxes = jnp.concatenate([boxes, jnp.full((b, 1, 4), jnp.nan)], axis=1)
    return Detections(
        boxes=boxes,
        scores=jnp.broadcast_to(jnp.array([0.9, 0.8, jnp.nan]), (b, 3)),
        classes=jnp.broadcast_to(jnp.array([1, 2, 0]), (b, 3)),
        valid=jnp.broadcast_to(jnp.array([True, True, False]), (b, 3)),
        masks=jnp.ones((b, 3, 6, 6)),
    )


def test_perfect_detections_score_one(tmp_path):
    metrics, results = evaluate(pairs(oracle, batches()), DATASET, out_dir=tmp_path, progress=False)
    assert list(metrics) == ["bbox", "segm"]
    for kind, m in metrics.items():
        assert m["AP"] == pytest.approx(1)
        assert m.num_images == NUM_IMAGES
        assert m.per_class == pytest.approx({"even": 1, "odd": 1})
        written = json.loads((tmp_path / "metrics.json").read_text())[kind]
        assert written["figures"] == m.figures
        again = score(DATASET.to_coco(), tmp_path / f"predictions_{kind}.json", kind, backend="pycocotools")
        assert again.figures == pytest.approx(m.figures, abs=1e-12)
    # The image without objects has none of the results: empty boxes are dropped.
    assert [r["image_id"] for r in results] == [i for r in RECORDS[:-1] for i in [r.image_id] * 2]
    assert {r["category_id"] for r in results} == {4, 9}
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "metrics.json",
        "predictions_bbox.json",
        "predictions_segm.json",
    ]


def test_processes_give_the_same():
    here = evaluate(pairs(oracle, batches()), DATASET, progress=False)
    there = evaluate(pairs(oracle, batches(batch_size=2)), DATASET, progress=False, num_workers=1)
    assert there[1] == here[1]
    assert there[0] == here[0]


def test_order_of_batches_does_not_matter():
    ordered = evaluate(pairs(oracle, batches()), DATASET, kinds=("bbox",), progress=False)
    turned = evaluate(pairs(oracle, batches(RECORDS[::-1])), DATASET, kinds=("bbox",), progress=False)
    assert turned == ordered
    assert "segmentation" not in ordered[1][0]


def test_each_image_exactly_once():
    with pytest.raises(ValueError, match="20 came twice"):
        evaluate(pairs(oracle, batches([*RECORDS, RECORDS[1]])), DATASET, progress=False)
    with pytest.raises(ValueError, match=r"1 of 7 images never came: \[10\]"):
        evaluate(pairs(oracle, batches(RECORDS[1:])), DATASET, progress=False)
    with pytest.raises(ValueError, match="30 is not in the data set"):
        evaluate(pairs(oracle, batches()), DATASET.subset([0, 1]), progress=False)


def test_a_subset_is_scored_alone():
    metrics, _ = evaluate(pairs(oracle, batches(RECORDS[:2])), DATASET.subset([0, 1]), progress=False)
    assert metrics["bbox"].num_images == 2
    assert metrics["bbox"]["AP"] == pytest.approx(1)


def test_boxes_alone_are_scored_by_box_alone(capsys):
    only_boxes = replace(DATASET, records=[replace(r, segmentations=(None,) * len(r.boxes)) for r in RECORDS])
    metrics, _ = evaluate(pairs(oracle, batches()), only_boxes, progress=False)
    assert list(metrics) == ["bbox"]
    assert "segm is not scored" in capsys.readouterr().out


def test_keypoints_are_scored_as_coco_has_them():
    """The detections have the half pixel that COCO's numbers lack."""
    keypoints = [np.concatenate([r.boxes.reshape(-1, 2, 2), np.full((len(r.boxes), 2, 1), 2)], 2) for r in RECORDS]
    records = [replace(r, keypoints=k.astype(np.float32)) for r, k in zip(RECORDS, keypoints, strict=True)]
    categories = tuple(replace(c, keypoints=("start", "end"), flip=(1, 0)) for c in DATASET.categories)

    def found(batch):
        boxes = oracle(batch).boxes
        points = boxes.reshape(*boxes.shape[:2], 2, 2) + 0.5
        return oracle(batch).replace(keypoints=jnp.pad(points, ((0, 0), (0, 0), (0, 0), (0, 1)), constant_values=0.5))

    dataset = Dataset(categories, records)
    metrics, results = evaluate(pairs(found, batches()), dataset, kinds=("bbox", "keypoints"), progress=False)
    assert {kind: m["AP"] for kind, m in metrics.items()} == pytest.approx({"bbox": 1, "keypoints": 1})
    np.testing.assert_allclose(np.reshape(results[0]["keypoints"], (2, 3))[:, :2], keypoints[0][0, :, :2], atol=1e-5)
    metrics, results = evaluate(pairs(found, batches()), dataset, kinds=("bbox",), progress=False)
    assert "keypoints" not in results[0]


def test_the_rule_of_a_model_is_that_of_its_conventions():
    for name, rule in (
        ("mask_rcnn_r50_fpn", "detectron2"),
        ("torchvision_mask_rcnn_r50_fpn", "torchvision"),
        ("faster_rcnn_r50_fpn", "detectron2"),
        ("torchvision_faster_rcnn_r50_fpn", "torchvision"),
        ("torchvision_keypoint_rcnn_r50_fpn", "torchvision"),
    ):
        assert rule_of(architectures.named(name)) == rule


def test_the_device_runs_one_batch_ahead(monkeypatch):
    """The next batch is handed to the device before the results of the last one are fetched."""
    events = []
    fetch = distributed.fetch
    monkeypatch.setattr(distributed, "fetch", lambda tree: events.append("fetch") or fetch(tree))

    def detect(batch):
        events.append("start")
        return oracle(batch)

    evaluate(pairs(detect, batches()), DATASET, progress=False)
    assert events == ["start", "start", "fetch", "start", "fetch", "fetch"]


def test_a_full_disk_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        evaluate(pairs(oracle, batches()), DATASET, out_dir=tmp_path / "file", progress=False)


def test_vocs_figures_are_of_boxes_alone_and_pass_over_difficult_objects(tmp_path, capsys):
    """The second object of the first image is not found, which only counts where it is not difficult."""
    boxes = RECORDS[0].boxes.copy()
    boxes[1] = [0, 0, 2, 2]
    odd = [replace(RECORDS[0], boxes=boxes, difficult=np.array([False, hard])) for hard in (False, True)]
    missed, passed = (
        evaluate(
            pairs(oracle, batches()), replace(DATASET, records=[one, *RECORDS[1:]]), metric="voc07", progress=False,
            out_dir=tmp_path,
        )[0] for one in odd
    )  # fmt: skip
    assert "config.eval.metric=voc07 does not compare segm" in capsys.readouterr().out
    assert list(missed) == ["bbox"]
    assert missed["bbox"].per_class["even"] == passed["bbox"].per_class["even"] == 1
    assert missed["bbox"].per_class["odd"] < 0.9
    # What was found in its stead touches nothing and is as wrong in either case.
    assert missed["bbox"].per_class["odd"] < passed["bbox"].per_class["odd"]
    assert headline(passed) == {f"box/{name}": passed["bbox"][name] for name in ("AP", "AP50", "AP75")}
    assert json.loads((tmp_path / "metrics.json").read_text())["bbox"]["kind"] == "voc07"


def test_a_model_without_masks_is_scored_and_predicts():
    experiment = test_train.config()
    experiment.model.mask = None
    experiment.model.num_classes = DATASET.num_classes
    network, dataset = build(experiment.model), replace(DATASET, records=RECORDS[:2])
    variables = tiny.variables(network)
    metrics = Evaluator(network, dataset, experiment, distributed.make_mesh(1))(variables)
    assert list(metrics) == ["bbox"]
    assert metrics["bbox"].num_images == 2
    (result,) = Model(experiment.model, dataset.categories, variables).predict([RECORDS[0].source])
    assert result.masks is None
