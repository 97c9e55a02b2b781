"""Cityscapes' AP of instances: the published script's figures on made-up images, and its rules one by one."""

import copy

import numpy as np
import pytest
from cityscapes_scene import CLASSES, HEIGHT, WIDTH, random_detections, random_ids, result, write

from mrcnn_jax.data import cityscapes
from mrcnn_jax.errors import UserError
from mrcnn_jax.evaluation import coco_metrics
from mrcnn_jax.evaluation.cityscapes_metrics import score

NAMES = ("person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle")
# cityscapesscripts 2.3.0 on the images and results of `random_case`: AP, AP50, and AP of each class.
RECORDED = {
    0: (
        0.118535338669267, 0.307979454408026, 0.137561778499278, 0, 0.2, 0.06125,
        0.161111111111111, -1, 0.116491147741148, 0.153333333333333,
    ),
    1: (
        0.0694265572390572, 0.146673581048581, 0.140782828282828, 0.15, 0, 0.0233333333333333,
        0.05, 0.1625, 0.0287962962962963, 0,
    ),
    2: (
        0.114626745435016, 0.278580379520229, 0.0275595238095238, 0.275, 0, 0.0724467418546366,
        0.3, -1, 0.119047619047619, 0.00833333333333333,
    ),
}  # fmt: skip


def random_case(root, seed):
    """Eight images, the first four of three classes only, and results in them."""
    rng = np.random.default_rng(seed)
    ids = [random_ids(rng, CLASSES[::3] if i < 4 else CLASSES) for i in range(8)]
    write(root, "val", {("ulm", f"ulm_{i:06d}_000019"): pixels for i, pixels in enumerate(ids)})
    dataset, _ = cityscapes.load(root, "val")
    return dataset, [d for i, pixels in enumerate(ids, start=1) for d in random_detections(rng, pixels, i)]


@pytest.mark.parametrize("seed", RECORDED)
def test_equals_the_published_script(tmp_path, seed):
    dataset, results = random_case(tmp_path, seed)
    metrics = score(dataset.to_coco(), results)
    found = metrics["AP"], metrics["AP50"], *metrics.per_class.values()
    np.testing.assert_allclose(found, RECORDED[seed], rtol=0, atol=1e-12)
    assert tuple(metrics.per_class) == NAMES
    assert (metrics.kind, metrics.num_images, metrics.num_detections) == ("cityscapes", 8, len(results))
    assert metrics.num_objects == sum(len(r.boxes) for r in dataset.records)
    assert "cityscapes: 8 images" in metrics.table()


def block(y, x, height, width):
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[y : y + height, x : x + width] = True
    return mask


def truth(*objects, void=None):
    """One image with objects (mask, is a group) of one class."""
    image = {"id": 1, "height": HEIGHT, "width": WIDTH}
    if void is not None:
        image["ignored_region"] = result(1, 1, void, 1.0)["segmentation"]
    annotations = [
        {"id": n, "image_id": 1, "category_id": 26, "segmentation": result(1, 1, mask, 1.0)["segmentation"]}
        | {"iscrowd": int(group)}
        for n, (mask, group) in enumerate(objects, start=1)
    ]
    return {"images": [image], "annotations": annotations, "categories": [{"id": 26, "name": "car"}]}


def found(*detections):
    return [result(1, 26, mask, points) for mask, points in detections]


OBJECT, ELSEWHERE = block(0, 0, 10, 20), block(30, 0, 10, 20)


class TestRules:
    def test_perfect(self):
        metrics = score(truth((OBJECT, False)), found((OBJECT, 0.5)))
        assert metrics.figures == {"AP": 1.0, "AP50": 1.0}
        assert metrics.per_class == {"car": 1.0}

    def test_the_area_is_trapezoidal(self):
        # Precision 1 at recall 0; 0 and then 1/2 at recall 0 and 1.
        metrics = score(truth((OBJECT, False)), found((ELSEWHERE, 0.9), (OBJECT, 0.5)))
        assert metrics["AP50"] == 0.25

    def test_equal_scores_are_one_point(self):
        for order in (1, -1):
            metrics = score(truth((OBJECT, False)), found((ELSEWHERE, 0.5), (OBJECT, 0.5))[::order])
            # From (0, 1) to (1, 1/2).
            assert metrics["AP50"] == 0.75

    def test_the_overlap_must_be_above_the_threshold(self):
        half = block(0, 0, 10, 10)
        assert score(truth((OBJECT, False)), found((half, 0.5)))["AP50"] == 0.0
        assert score(truth((OBJECT, False)), found((half | block(0, 10, 1, 1), 0.5)))["AP50"] == 1.0

    def test_of_two_hits_the_worse_is_false(self):
        two = truth((OBJECT, False), (ELSEWHERE, False))
        metrics = score(two, found((OBJECT, 0.9), (OBJECT, 0.8), (ELSEWHERE, 0.7)))
        # Recall 1/2 at precision 1; then 1/2 at 1/2; then 1 at 2/3.
        assert metrics["AP50"] == pytest.approx(0.5 + 0.5 * (1 / 2 + 2 / 3) / 2)

    @pytest.mark.parametrize("group", [False, True])
    def test_ignored_places(self, group):
        """Seven tenths of a false detection lie in void or a group: ignored up to 0.65, counted from 0.70 on."""
        place = block(30, 0, 7, 20)
        objects = [(OBJECT, False)] + [(place, True)] * group
        metrics = score(truth(*objects, void=None if group else place), found((ELSEWHERE, 0.9), (OBJECT, 0.5)))
        assert metrics["AP50"] == 1.0
        assert metrics["AP"] == pytest.approx((4 * 1.0 + 6 * 0.25) / 10)

    def test_places_of_another_class_are_not_ignored(self):
        both = truth((OBJECT, False), (ELSEWHERE, True))
        both["categories"].append({"id": 24, "name": "person"})
        both["annotations"][1]["category_id"] = 24
        assert score(both, found((ELSEWHERE, 0.9), (OBJECT, 0.5)))["AP50"] == 0.25

    def test_small_objects_do_not_count(self):
        small = block(30, 0, 9, 11)
        metrics = score(truth((OBJECT, False), (small, False)), found((OBJECT, 0.9), (small, 0.95)))
        assert metrics["AP"] == 1.0
        # A hundred pixels are enough.
        assert score(truth((block(0, 0, 10, 10), False)), [])["AP"] == 0.0

    def test_a_small_group_counts_twice(self):
        # 60 of 200 pixels, twice: a share of 0.6.
        metrics = score(truth((OBJECT, False), (block(30, 0, 3, 20), True)), found((ELSEWHERE, 0.9), (OBJECT, 0.5)))
        assert metrics["AP50"] == 1.0
        metrics = score(truth((OBJECT, False), (block(30, 0, 5, 20), True)), found((ELSEWHERE, 0.9), (OBJECT, 0.5)))
        assert metrics["AP50"] == 0.25

    def test_nothing_but_ignored_detections(self):
        """Here the script fails."""
        assert score(truth((OBJECT, False), void=ELSEWHERE), found((ELSEWHERE, 0.9)))["AP"] == 0.0

    def test_empty_masks_are_no_detections(self):
        metrics = score(truth((OBJECT, False)), found((np.zeros_like(OBJECT), 0.9), (OBJECT, 0.5)))
        assert metrics["AP"] == 1.0

    def test_undefined_classes_are_left_out_of_the_mean(self):
        two = truth((OBJECT, False))
        two["categories"].append({"id": 24, "name": "person"})
        metrics = score(two, found((OBJECT, 0.5)))
        assert metrics.per_class == {"car": 1.0, "person": -1.0}
        assert metrics["AP"] == 1.0
        assert score(truth(), found((OBJECT, 0.5))).figures == {"AP": -1.0, "AP50": -1.0}


def test_nothing_at_all():
    assert score({"images": [], "annotations": [], "categories": []}, [])["AP"] == -1.0


def test_void_is_missed():
    assert "no image has an ignored_region" in score(truth((OBJECT, False)), []).notes[-1]
    assert not any("void" in note for note in score(truth((OBJECT, False), void=ELSEWHERE), []).notes)


def test_input_is_checked_and_left_alone():
    gt, dt = truth((OBJECT, False), void=ELSEWHERE), found((OBJECT, 0.5))
    before = copy.deepcopy((gt, dt))
    score(gt, dt)
    assert (gt, dt) == before
    gt["images"][0]["ignored_region"]["size"] = [4, 4]
    with pytest.raises(UserError, match=r"ignored_region of image 1: a mask of \[4, 4\]"):
        score(gt, dt)
    with pytest.raises(UserError, match="detection 0: category 3 "):
        score(truth((OBJECT, False)), [dt[0] | {"category_id": 3}])


@pytest.mark.parametrize("backend", ["hotcoco", "pycocotools"])
def test_cocos_figures_do_not_read_the_void(backend):
    results = found((ELSEWHERE, 0.9), (OBJECT, 0.5))
    with_void = coco_metrics.score(truth((OBJECT, False), void=ELSEWHERE), results, "segm", backend=backend)
    without = coco_metrics.score(truth((OBJECT, False)), results, "segm", backend=backend)
    assert with_void.figures == without.figures
