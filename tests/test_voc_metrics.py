"""VOC's figures equal published ones, and those of a plain loop over boxes of whole pixels."""

import json
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from ml_collections import ConfigDict

from mrcnn_jax.errors import UserError
from mrcnn_jax.evaluation import coco_metrics, voc_metrics
from mrcnn_jax.evaluation.metrics import best_figure, metric_of, scored_kinds
from mrcnn_jax.evaluation.voc_metrics import score

CASE = json.loads((Path(__file__).parent / "golden" / "voc_ap_case1.json").read_text())
RULES = ("voc07", "voc12")


def coco(objects, detections, num_images=3, names=("thing",)):
    """COCO's form of objects (image, class, box, difficult) and detections (image, class, score, box), boxes xyxy."""
    truth = {
        "images": [{"id": i, "height": 200, "width": 200} for i in range(1, num_images + 1)],
        "categories": [{"id": i, "name": name} for i, name in enumerate(names, 1)],
        "annotations": [
            {"id": i, "image_id": image, "category_id": label, "bbox": xywh(box), "iscrowd": 0, "area": 1.0}
            | ({"difficult": 1} if difficult else {})
            for i, (image, label, box, difficult) in enumerate(objects, 1)
        ],
    }
    results = [
        {"image_id": image, "category_id": label, "score": score, "bbox": xywh(box)}
        for image, label, score, box in detections
    ]
    return truth, results


def xywh(box):
    return [float(box[0]), float(box[1]), float(box[2] - box[0]), float(box[3] - box[1])]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("threshold", ["0.1", "0.3", "0.5", "0.75"])
def test_equals_the_published_case(rule, threshold, monkeypatch):
    monkeypatch.setattr(voc_metrics, "_THRESHOLDS", np.full(10, float(threshold)))

    def box(x, y, w, h):
        return [x, y, x + w + 1, y + h + 1]

    objects = [(image, 1, box(*rest), False) for image, *rest in CASE["objects"]]
    detections = [(image, 1, confidence, box(*rest)) for image, confidence, *rest in CASE["detections"]]
    found = score(*coco(objects, detections, num_images=7), rule)
    # The published numbers have ten decimals and are cut off, not rounded.
    assert found["AP50"] == pytest.approx(CASE[rule][threshold], abs=1e-10)


def naive(objects, detections, label, threshold, rule):
    """One class by loops, on pixels counted from one with the last included, as the challenge's files have them."""
    truth, num_objects = defaultdict(list), 0
    for image, of_class, (x0, y0, x1, y1), difficult in objects:
        if of_class == label:
            truth[image].append({"box": (x0 + 1, y0 + 1, x1, y1), "difficult": difficult, "taken": False})
            num_objects += not difficult
    if num_objects == 0:
        return -1.0
    mine = sorted((d for d in detections if d[1] == label), key=lambda d: d[2], reverse=True)
    right = wrong = 0
    curve = []
    for image, _, _, (x0, y0, x1, y1) in mine:
        a, best, match = (x0 + 1, y0 + 1, x1, y1), -1.0, None
        for one in truth[image]:
            b = one["box"]
            width, height = min(a[2], b[2]) - max(a[0], b[0]) + 1, min(a[3], b[3]) - max(a[1], b[1]) + 1
            if width > 0 and height > 0:
                areas = [(c[2] - c[0] + 1) * (c[3] - c[1] + 1) for c in (a, b)]
                overlap = width * height / (sum(areas) - width * height)
                if overlap > best:
                    best, match = overlap, one
        if match is not None and best >= threshold:
            if not match["difficult"]:
                right += not match["taken"]
                wrong += match["taken"]
                match["taken"] = True
        else:
            wrong += 1
        curve.append((right / num_objects, right / max(right + wrong, 1)))
    if rule == "voc07":
        samples = [max((p for r, p in curve if r >= t), default=0.0) for t in np.arange(0.0, 1.1, 0.1)]
        return sum(samples) / 11
    area, before = 0.0, 0.0
    for i, (recall, _) in enumerate(curve):
        area += (recall - before) * max(p for _, p in curve[i:])
        before = recall
    return area


def random_case(seed):
    """Twelve images of four classes, the last of which has no object that counts; scores of one digit, so with ties."""
    rng = np.random.default_rng(seed)
    objects, detections = [], []

    def box():
        corner, side = rng.integers(0, 100, 2), rng.integers(3, 60, 2)
        return np.concatenate([corner, corner + side])

    for image in range(1, 13):
        for _ in range(rng.integers(0, 7)):
            true, label = box(), int(rng.integers(1, 5))
            objects.append((image, label, true, label == 4 or rng.random() < 0.25))
            for _ in range(rng.integers(0, 4)):
                near = true + rng.integers(-4, 5, 4)
                near[2:] = np.maximum(near[2:], near[:2] + 1)
                guess = label if rng.random() < 0.9 else 1
                detections.append((image, guess, round(float(rng.random()), 1), near))
        detections.append((image, int(rng.integers(1, 5)), round(float(rng.random()), 1), box()))
    return objects, detections


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("seed", range(6))
def test_equals_a_plain_loop(seed, rule):
    objects, detections = random_case(seed)
    names = ("one", "two", "three", "four")
    found = score(*coco(objects, detections, 12, names), rule)
    table = np.array(
        [[naive(objects, detections, label, t / 100, rule) for t in range(50, 100, 5)] for label in (1, 2, 3, 4)]
    )
    assert (table[3] == -1).all()
    assert list(found.per_class) == list(names)
    np.testing.assert_allclose(list(found.per_class.values()), table[:, 0], rtol=0, atol=1e-12)
    counted = table[table[:, 0] >= 0]
    expected = [counted.mean(), counted[:, 0].mean(), counted[:, 5].mean()]
    np.testing.assert_allclose([found[name] for name in ("AP", "AP50", "AP75")], expected, rtol=0, atol=1e-12)
    assert 0 < found["AP"] < found["AP50"] < 1


SQUARE, OTHER = [10, 10, 30, 30], [100, 100, 120, 120]


@pytest.mark.parametrize(
    ("objects", "detections", "expected"),
    [
        pytest.param([(1, 1, SQUARE, 0)], [(1, 1, 0.9, SQUARE)], (1.0, 1.0), id="found"),
        pytest.param([(1, 1, SQUARE, 0)], [(2, 1, 0.9, SQUARE)], (0.0, 0.0), id="in another image"),
        pytest.param([(1, 1, SQUARE, 0)], [], (0.0, 0.0), id="nothing found"),
        pytest.param([], [(1, 1, 0.9, SQUARE)], (-1.0, -1.0), id="nothing to find"),
        pytest.param([(1, 1, SQUARE, 1)], [(1, 1, 0.9, SQUARE)], (-1.0, -1.0), id="nothing but a difficult one"),
        # Half of the objects found first, then a double: precision 1 up to a recall of 1/2.
        pytest.param([(1, 1, SQUARE, 0), (1, 1, OTHER, 0)], [(1, 1, 0.9, SQUARE), (1, 1, 0.8, SQUARE)],
                     (6 / 11, 0.5), id="a double is wrong"),
        pytest.param([(1, 1, SQUARE, 0), (1, 1, OTHER, 0)],
                     [(1, 1, 0.9, SQUARE), (1, 1, 0.8, SQUARE), (1, 1, 0.7, OTHER)],
                     ((6 + 5 * 2 / 3) / 11, 0.5 + 0.5 * 2 / 3), id="and costs precision"),
        pytest.param([(1, 1, SQUARE, 0), (1, 1, OTHER, 1)],
                     [(1, 1, 0.9, OTHER), (1, 1, 0.8, OTHER), (1, 1, 0.7, SQUARE)], (1.0, 1.0),
                     id="a difficult one takes any number"),
        pytest.param([(1, 1, SQUARE, 0)], [(1, 1, 0.5, OTHER), (1, 1, 0.5, SQUARE)], (0.5, 0.5),
                     id="of equal scores the first"),
        # IoU of exactly 1/2.
        pytest.param([(1, 1, SQUARE, 0)], [(1, 1, 0.5, [10, 10, 30, 20])], (1.0, 1.0), id="the threshold reached"),
        # The best object is taken, the second best still free: VOC does not look for it.
        pytest.param([(1, 1, SQUARE, 0), (1, 1, [10, 10, 30, 26], 0)],
                     [(1, 1, 0.9, SQUARE), (1, 1, 0.8, [10, 10, 30, 29])], (6 / 11, 0.5), id="no second choice"),
    ],
)  # fmt: skip
def test_small_cases_by_hand(objects, detections, expected):
    for rule, value in zip(RULES, expected, strict=True):
        assert score(*coco(objects, detections), rule)["AP50"] == pytest.approx(value, abs=1e-12)


def test_a_recall_of_three_tenths_is_sampled_as_in_published_code():
    """Three of ten objects found: recalls 0, .1 and .2 are reached; .3, as a float, is not."""
    boxes = [[20 * i, 0, 20 * i + 10, 10] for i in range(10)]
    objects = [(1, 1, box, 0) for box in boxes]
    found = score(*coco(objects, [(1, 1, 0.9, box) for box in boxes[:3]]), "voc07")
    assert found["AP50"] == pytest.approx(3 / 11)


def test_there_is_no_limit_to_detections():
    found = [(1, 1, 0.9, [0, 0, 5, 5])] * 150 + [(1, 1, 0.1, SQUARE)]
    assert score(*coco([(1, 1, SQUARE, 0)], found), "voc12")["AP50"] == pytest.approx(1 / 151)


def test_crowds_count_neither_way():
    truth, results = coco([(1, 1, SQUARE, 0), (1, 1, OTHER, 0)], [(1, 1, 0.9, OTHER), (1, 1, 0.8, SQUARE)])
    truth["annotations"][1]["iscrowd"] = 1
    assert score(truth, results, "voc12")["AP50"] == 1


def test_what_is_told():
    truth, results = coco([(1, 1, SQUARE, 0), (1, 1, OTHER, 1)], [(1, 1, 0.9, SQUARE)], names=("cat", "dog"))
    metrics = score(truth, results, "voc07")
    assert (metrics.kind, metrics.num_images, metrics.num_objects, metrics.num_detections) == ("voc07", 3, 2, 1)
    assert metrics.per_class == {"cat": 1.0, "dog": -1.0}
    assert json.loads(json.dumps(metrics.to_dict()))["figures"] == {"AP": 1.0, "AP50": 1.0, "AP75": 1.0}
    assert "AP50 of each class\ncat 1.000   dog   n/a" in metrics.table()
    notes = coco_metrics.score(truth, results).notes
    assert notes == ("1 of 2 objects are difficult, which COCO's figures count as any other",)
    with pytest.raises(UserError, match="detection 0: image 9 is not in the ground truth"):
        score(truth, [{**results[0], "image_id": 9}], "voc07")


def test_metrics_by_name():
    assert scored_kinds("voc07", ("bbox", "segm")) == ["bbox"]
    assert scored_kinds("coco", ("bbox", "segm")) == ["bbox", "segm"]
    bests = {"coco": "box/AP", "voc07": "box/AP50", "voc12": "box/AP50", "cityscapes": "mask/AP"}
    for metric, best in bests.items():
        assert best_figure(ConfigDict({"eval": {"metric": metric}, "model": {"box": {}}})) == best
    assert best_figure(ConfigDict({"eval": {"metric": "coco"}, "model": {"box": None}})) == "proposals/AR1000"
    assert metric_of(ConfigDict({"eval": {"metric": "voc12"}})) == "voc12"
    # A config of an earlier version.
    assert metric_of(ConfigDict({"eval": {}})) == "coco"
    with pytest.raises(
        UserError, match=r"config\.eval\.metric='voc' is not known: use 'coco', 'voc07', 'voc12' or 'cityscapes'"
    ):
        metric_of(ConfigDict({"eval": {"metric": "voc"}}))
