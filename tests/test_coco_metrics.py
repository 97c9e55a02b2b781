"""The figures equal pycocotools' own, with both evaluators; input is mended or refused by name."""

import contextlib
import copy
import io
import json

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from mrcnn_jax.errors import UserError
from mrcnn_jax.evaluation.coco_metrics import score

BACKENDS = ("hotcoco", "pycocotools")


def reference(gt, dt, kind, use_categories=True):
    """pycocotools run as its own demo does, without any of our code."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = copy.deepcopy(gt)
        truth.createIndex()
        evaluator = COCOeval(truth, truth.loadRes(copy.deepcopy(dt)), kind)
        evaluator.params.useCats = use_categories
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    return evaluator.stats


def random_case(seed, masks=False):
    """Twenty images with crowds; detections moved at random, with equal scores, doubles and inventions among them."""
    rng = np.random.default_rng(seed)
    categories = [{"id": int(i), "name": f"thing {i}"} for i in (2, 3, 7)]
    images = [{"id": int(i), "height": 120, "width": 160} for i in rng.permutation(1000)[:20]]
    annotations, detections = [], []

    def box(around=None):
        if around is None:
            w, h = np.exp(rng.uniform(np.log(4), np.log(110), 2))
            x, y = rng.uniform(0, 160 - w), rng.uniform(0, 120 - h)
        else:
            x, y, w, h = around + rng.normal(size=4) * 0.06 * max(around[2:])
        return np.array([x, y, max(w, 1), max(h, 1)])

    def rle(box):
        x0, y0 = np.clip(np.round(box[:2]), 0, [159, 119]).astype(int)
        x1, y1 = np.clip(np.round(box[:2] + box[2:]), 0, [160, 120]).astype(int)
        pixels = np.zeros((120, 160), np.uint8, order="F")
        pixels[y0 : max(y1, y0 + 1), x0 : max(x1, x0 + 1)] = 1
        coded = coco_mask.encode(pixels)
        return {"size": coded["size"], "counts": coded["counts"].decode()}

    for image in images:
        for _ in range(rng.integers(0, 9)):
            true, category = box(), int(rng.choice([2, 3, 7]))
            crowd = int(rng.random() < 0.15)
            entry = {"id": len(annotations) + 1, "image_id": image["id"], "category_id": category, "iscrowd": crowd}
            annotations.append(entry | {"bbox": true.tolist(), "area": float(true[2] * true[3] * 0.8)})
            if masks:
                annotations[-1]["segmentation"] = rle(true)
            for _ in range(rng.integers(0, 4)):
                found = box(true) if rng.random() < 0.9 else box()
                label = category if rng.random() < 0.9 else 3
                result = {"image_id": image["id"], "category_id": label, "score": round(float(rng.random()), 1)}
                detections.append(result | ({"segmentation": rle(found)} if masks else {"bbox": found.tolist()}))
    return {"images": images, "categories": categories, "annotations": annotations}, detections


@pytest.mark.parametrize("backend", BACKENDS)
def test_boxes_of_masks_are_small_or_large_as_their_masks_are(backend):
    gt, dt = random_case(4, masks=True)
    # Masks that fill a quarter of their box.
    grid = np.zeros((120, 160), np.uint8, order="F")
    grid[::2, ::2] = 1
    for result in dt[::2]:
        result["segmentation"] = coco_mask.merge([result["segmentation"], coco_mask.encode(grid)], intersect=True)
    metrics = score(gt, dt, "bbox", backend=backend)
    np.testing.assert_allclose(list(metrics.figures.values()), reference(gt, dt, "bbox"), rtol=0, atol=1e-12)


def test_boxes_may_be_arrays():
    gt, dt = random_case(1)
    arrays = [result | {"bbox": np.array(result["bbox"])} for result in dt]
    assert score(gt, arrays, "bbox").figures == score(gt, dt, "bbox").figures


def keypoint_case(seed, joints=17):
    """People in fifteen images, some of them crowds or without a labelled point, found with small and large errors."""
    rng = np.random.default_rng(seed)
    names = [f"point {i}" for i in range(joints)]
    images = [{"id": i, "height": 240, "width": 320} for i in range(1, 16)]
    annotations, detections = [], []
    for image in images:
        for _ in range(rng.integers(0, 5)):
            side = np.exp(rng.uniform(np.log(30), np.log(200)))
            corner = rng.uniform(0, 40, 2)
            points = corner + rng.uniform(0, side, (joints, 2))
            visible = rng.integers(0, 3, joints) * (rng.random() > 0.1)
            crowd = int(rng.random() < 0.1)
            truth = np.column_stack([np.round(points) * (visible > 0)[:, None], visible])
            annotations.append({
                "id": len(annotations) + 1, "image_id": image["id"], "category_id": 1, "iscrowd": crowd,
                "bbox": [*corner.tolist(), side, side], "area": float(side * side * 0.5),
                "keypoints": truth.astype(int).ravel().tolist(), "num_keypoints": int((visible > 0).sum()),
            })  # fmt: skip
            for _ in range(rng.integers(0, 3)):
                found = points + rng.normal(size=points.shape) * side * rng.choice([0.01, 0.05, 0.2])
                detections.append({
                    "image_id": image["id"], "category_id": 1, "score": round(float(rng.random()), 1),
                    "keypoints": np.column_stack([found, np.ones(joints)]).ravel().tolist(),
                })  # fmt: skip
    categories = [{"id": 1, "name": "person", "keypoints": names}]
    return {"images": images, "categories": categories, "annotations": annotations}, detections


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("seed", range(3))
def test_random_keypoints_with_ties_and_crowd(seed, backend):
    gt, dt = keypoint_case(seed)
    metrics = score(gt, dt, "keypoints", backend=backend)
    np.testing.assert_allclose(list(metrics.figures.values()), reference(gt, dt, "keypoints"), rtol=0, atol=1e-12)
    assert 0 < metrics["APm"] != metrics["APl"] > 0


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("seed", range(5))
def test_random_boxes_with_ties_and_crowd(seed, backend):
    gt, dt = random_case(seed)
    for pooled in (False, True):
        metrics = score(gt, dt, "bbox", backend=backend, use_categories=not pooled)
        expected = reference(gt, dt, "bbox", not pooled)
        np.testing.assert_allclose(list(metrics.figures.values()), expected, rtol=0, atol=1e-12)
        assert 0 < metrics["AP"] < 1


@pytest.mark.parametrize("backend", BACKENDS)
def test_random_masks(backend):
    gt, dt = random_case(11, masks=True)
    expected = reference(gt, dt, "segm")
    np.testing.assert_allclose(
        list(score(gt, dt, "segm", backend=backend).figures.values()), expected, rtol=0, atol=1e-12
    )


@pytest.mark.parametrize(
    ("case", "kind", "frozen"),
    [
        (random_case(0), "bbox", {"AP": 0.1592626167600299, "AP50": 0.38881375310635924, "AR100": 0.33622825178889254}),
        (
            random_case(11, True),
            "segm",
            {"AP": 0.16550908795726968, "APs": 0.19528478244314387, "ARm": 0.4677777777777778},
        ),
        (
            keypoint_case(0),
            "keypoints",
            {"AP": 0.25527553294771055, "AP75": 0.18476525071862024, "ARl": 0.5714285714285714},
        ),
    ],
)
def test_frozen_figures(case, kind, frozen):
    """What pycocotools 2.0.11 gave once, so that a change of evaluator is seen."""
    metrics = score(*case, kind)
    assert {name: metrics[name] for name in frozen} == pytest.approx(frozen, abs=1e-12)


def test_names_of_the_figures():
    metrics = score(*random_case(0), "bbox")
    assert list(metrics.figures) == [
        "AP",
        "AP50",
        "AP75",
        "APs",
        "APm",
        "APl",
        "AR1",
        "AR10",
        "AR100",
        "ARs",
        "ARm",
        "ARl",
    ]


def test_classes_average_to_the_whole():
    metrics = score(*random_case(1), "bbox")
    assert list(metrics.per_class) == ["thing 2", "thing 3", "thing 7"]
    assert np.mean(list(metrics.per_class.values())) == pytest.approx(metrics["AP"], abs=1e-12)


def test_files_give_the_same_as_parsed_data(tmp_path):
    gt, dt = random_case(2)
    (tmp_path / "gt.json").write_text("\ufeff" + json.dumps(gt), encoding="utf-8")
    (tmp_path / "dt.json").write_text(json.dumps(dt))
    assert score(tmp_path / "gt.json", str(tmp_path / "dt.json")).figures == score(gt, dt).figures


def test_input_is_left_as_it_was():
    gt, dt = random_case(3, masks=True)
    before = copy.deepcopy((gt, dt))
    score(gt, dt, "segm", backend="pycocotools")
    assert (gt, dt) == before


@pytest.mark.parametrize("backend", BACKENDS)
def test_nothing_found_and_nothing_to_find(backend):
    gt, dt = random_case(4)
    nothing = score(gt, [], backend=backend)
    assert (nothing["AP"], nothing["AR100"], nothing.num_detections) == (0, 0, 0)
    empty = score(gt | {"annotations": []}, dt, backend=backend)
    assert set(empty.figures.values()) == {-1}
    assert score({"images": [], "categories": [], "annotations": []}, [], backend=backend)["AP"] == -1


def test_table_and_json():
    gt, dt = random_case(11, masks=True)
    gt["categories"].append({"id": 9, "name": "never seen"})
    metrics = score(gt, dt, "segm")
    assert f"{metrics['AP']:.3f}" in metrics.table()
    assert "n/a" in metrics.table()
    assert "-1" not in metrics.table()
    parsed = json.loads(json.dumps(metrics.to_dict()))
    assert parsed["figures"] == metrics.figures
    assert parsed["per_class"] == metrics.per_class


def perfect(gt):
    fields = ("image_id", "category_id", "bbox", "segmentation")
    return [{k: a[k] for k in fields if k in a} | {"score": 0.9} for a in gt["annotations"] if not a["iscrowd"]]


@pytest.mark.parametrize("backend", BACKENDS)
def test_annotation_ids_from_zero_lose_nothing(backend):
    gt, _ = random_case(5)
    for number, annotation in enumerate(gt["annotations"]):
        annotation["id"] = number
    assert score(gt, perfect(gt), backend=backend)["AP"] == pytest.approx(1)


@pytest.mark.parametrize("backend", BACKENDS)
def test_missing_boxes_and_areas_come_from_the_mask(backend):
    gt, _ = random_case(6, masks=True)
    dt = [{k: v for k, v in d.items() if k != "bbox"} for d in perfect(gt)]
    for annotation in gt["annotations"]:
        del annotation["bbox"], annotation["area"]
    for kind in ("bbox", "segm"):
        metrics = score(gt, dt, kind, backend=backend)
        assert metrics["AP"] == pytest.approx(1)
        assert len(metrics.notes) == 2


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_object_without_a_mask_is_neither_right_nor_wrong(backend):
    gt, _ = random_case(7, masks=True)
    dt = [{k: v for k, v in d.items() if k != "bbox"} for d in perfect(gt)]
    masked, kept = copy.deepcopy(gt), []
    for i, annotation in enumerate(gt["annotations"]):
        if i % 4 == 0:
            del annotation["segmentation"]
        else:
            kept.append(masked["annotations"][i])
    metrics = score(gt, dt, "segm", backend=backend)
    assert metrics["AP"] == pytest.approx(1)
    assert "have no mask" in metrics.notes[0]


def refused(gt, dt, *words, kind="bbox", **options):
    with pytest.raises(UserError) as error:
        score(gt, dt, kind, **options)
    assert "\n" not in str(error.value)
    for word in words:
        assert word in str(error.value)


def test_results_that_cannot_be_scored():
    gt, dt = random_case(8)
    refused(gt, [*dt, dt[0] | {"image_id": -5}], f"detection {len(dt)}", "-5")
    refused(gt, [dt[0] | {"category_id": 99}], "detection 0", "99", "2, 3, 7")
    score(gt, [dt[0] | {"category_id": 99}], use_categories=False)
    refused(gt, [{"image_id": dt[0]["image_id"], "category_id": 3, "score": 1.0}], "no bbox")
    refused(gt, [dt[0] | {"bbox": [1, 2, 3]}], "detection 0", "four numbers")
    refused(gt, [dt[0] | {"bbox": [1, 2, float("nan"), 3]}], "finite")
    refused(gt, [dt[0] | {"score": float("nan")}], "score")
    refused(gt, [{k: v for k, v in dt[0].items() if k != "score"}], "score")
    refused(gt, [7], "detection 0")
    refused(gt, {"annotations": dt}, "list of detections")
    refused(gt, dt, "no annotation has a segmentation", kind="segm")
    refused(gt, dt, "no annotation has keypoints", kind="keypoints")
    refused(gt, dt, "max_detections", max_detections=5)
    masked, results = random_case(8, masks=True)
    refused(masked, [{k: v for k, v in results[0].items() if k != "segmentation"}], "no segmentation", kind="segm")
    small = {"size": [10, 10], "counts": "d3"}
    refused(masked, [results[0] | {"segmentation": small}], "[10, 10]", "[120, 160]", kind="segm")


def test_ground_truth_that_cannot_be_used(tmp_path):
    gt, dt = random_case(9)
    first, *rest = gt["annotations"]
    refused(gt | {"annotations": [first | {"image_id": -1}, *rest]}, dt, f"annotation {first['id']}", "image_id -1")
    refused(gt | {"annotations": [first | {"category_id": 5}, *rest]}, dt, "category_id 5")
    refused(gt | {"annotations": [first | {"bbox": None}, *rest]}, dt, f"annotation {first['id']}", "neither a bbox")
    refused(gt | {"annotations": [first | {"bbox": [0, 0, -1, 5]}, *rest]}, dt, "not negative")
    refused(gt | {"images": [*gt["images"], gt["images"][0]]}, dt, "twice")
    refused(gt | {"images": [{"id": "7"}]}, dt, "integer")
    refused({k: v for k, v in gt.items() if k != "annotations"}, dt, "no annotations")
    refused(dt, dt, "not COCO ground truth")
    bad_polygon = first | {"segmentation": [[1, 2, 3, 4]]}
    refused(gt | {"annotations": [bad_polygon]}, dt, "three points", kind="segm")
    refused(tmp_path / "none.json", dt, "none.json", "No such file")
    (tmp_path / "cut.json").write_text('{"images": [')
    refused(tmp_path / "cut.json", dt, "cut.json", "not valid JSON")
