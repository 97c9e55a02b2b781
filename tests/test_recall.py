"""Recall of proposals: against a loop over pairs, and cases worked out by hand."""

import json

import numpy as np
import pytest

from mrcnn_jax.data.proposals import best_first, read_proposals, write_proposals
from mrcnn_jax.evaluation.recall import IOUS, proposal_recall

SIDE = 400
# COCO's sizes in words of their own.
SIZES = {"": (0, 1e10), "s": (0, 1024), "m": (1024, 9216), "l": (9216, 1e10)}


def truth(boxes_of: dict[int, list], **flags) -> dict:
    """Ground truth with the boxes (xyxy) of each image; their areas are those of the boxes."""
    annotations = [
        {"image_id": number, "bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1), "iscrowd": 0, **flags}
        for number, boxes in boxes_of.items()
        for x1, y1, x2, y2 in np.asarray(boxes, float).reshape(-1, 4).tolist()
    ]
    images = [{"id": number, "height": SIDE, "width": SIDE} for number in boxes_of]
    return {"images": images, "annotations": annotations, "categories": []}


def random_boxes(rng: np.random.Generator, count: int) -> np.ndarray:
    corner = rng.uniform(0, SIDE * 0.7, (count, 2))
    return np.concatenate([corner, np.minimum(corner + rng.uniform(8, 180, (count, 2)), SIDE)], axis=1)


def overlap(a, b) -> float:
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    shared = max(width, 0) * max(height, 0)
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)


def naive_recall(content: dict, proposals: dict, limit: int, size: str) -> list[float]:
    """At each IoU, by taking the best pair that is left, again and again."""
    low, high = SIZES[size]
    covered, count = [], 0
    for image in content["images"]:
        objects = []
        for annotation in content["annotations"]:
            if annotation["image_id"] == image["id"] and low <= annotation["area"] <= high:
                x, y, w, h = annotation["bbox"]
                objects.append((x, y, x + w, y + h))
        count += len(objects)
        found = proposals[image["id"]].boxes[:limit].astype(float).tolist()
        pairs = sorted(
            ((overlap(a, b), i, j) for i, a in enumerate(found) for j, b in enumerate(objects)), reverse=True
        )
        while pairs:
            best, row, column = pairs[0]
            covered.append(best)
            pairs = [pair for pair in pairs if pair[1] != row and pair[2] != column]
    return [sum(value >= iou for value in covered) / count for iou in IOUS]


def test_figures_are_those_of_a_loop_over_pairs():
    rng = np.random.default_rng(0)
    objects = {number: random_boxes(rng, int(rng.integers(0, 6))) for number in range(12)}
    proposals = {}
    for number, boxes in objects.items():
        near = np.repeat(boxes, 3, axis=0) + rng.normal(0, 8, (3 * len(boxes), 4))
        both = np.clip(np.concatenate([near, random_boxes(rng, 20)]), 0, SIDE)
        proposals[number] = best_first(both[rng.permutation(len(both))])
    content = truth(objects)
    recall = proposal_recall(content, proposals, limits=(5, 15, 100))
    for limit in (5, 15, 100):
        for size in SIZES:
            expected = naive_recall(content, proposals, limit, size)
            assert recall[f"AR{size}{limit}"] == pytest.approx(np.mean(expected))
        assert recall.recalls[limit] == pytest.approx(naive_recall(content, proposals, limit, ""))
    assert 0.1 < recall["AR5"] < recall["AR15"] < recall["AR100"] < 0.9
    assert min(recall.num_objects.values()) > 0
    assert recall.num_objects["all"] == sum(map(len, objects.values()))


def test_one_proposal_covers_one_object():
    # Both objects overlap most with the first proposal: 0.9 and 0.6. The second has to do with 0.5.
    content = truth({1: [[0, 0, 90, 100], [0, 0, 60, 100]]})
    proposals = {1: best_first([[0, 0, 100, 100], [0, 0, 30, 100]])}
    recall = proposal_recall(content, proposals, limits=(1, 2))
    assert recall.recalls[1] == pytest.approx([0.5] * 9 + [0])
    assert recall.recalls[2] == pytest.approx([1] + [0.5] * 8 + [0])
    assert recall["AR1"] == pytest.approx(0.45)
    assert recall["AR2"] == pytest.approx(0.5)


def test_an_object_on_the_edge_of_two_sizes_counts_in_both():
    content = truth({1: [[0, 0, 32, 32], [100, 100, 196, 196]]})
    recall = proposal_recall(content, {1: best_first([[0, 0, 32, 32]])}, limits=(10,))
    assert recall.num_objects == {"all": 2, "small": 1, "medium": 2, "large": 1}
    assert recall.figures == pytest.approx({"AR10": 0.5, "ARs10": 1.0, "ARm10": 0.5, "ARl10": 0.0})


@pytest.mark.parametrize("flag", ["iscrowd", "difficult"])
def test_crowds_and_difficult_objects_count_neither_as_found_nor_as_missed(flag):
    content = truth({1: [[0, 0, 50, 50]]})
    expected = proposal_recall(content, {1: best_first([[0, 0, 50, 50]])})
    content["annotations"] += truth({1: [[0, 0, 50, 50], [60, 60, 90, 90]]}, **{flag: 1})["annotations"]
    assert proposal_recall(content, {1: best_first([[0, 0, 50, 50]])}) == expected
    assert expected["AR100"] == 1.0


def test_images_without_proposals_and_without_objects():
    content = truth({1: [[0, 0, 50, 50]], 2: [], 3: [[0, 0, 50, 50]]})
    nothing = best_first(np.zeros((0, 4)))
    recall = proposal_recall(content, {1: nothing, 2: best_first([[1, 1, 9, 9]]), 3: best_first([[0, 0, 50, 50]])})
    # Detectron2 would not count the object of image 1.
    assert recall["AR100"] == 0.5
    assert (recall.num_without, recall.num_images, recall.num_proposals) == (1, 3, 2)
    empty = proposal_recall(truth({1: [], 2: []}), {1: nothing, 2: nothing})
    assert set(empty.figures.values()) == {-1.0}
    assert "n/a" in empty.table()
    with pytest.raises(KeyError):
        proposal_recall(content, {1: nothing})


def test_proposals_outside_are_clipped_and_counted():
    content = truth({1: [[300, 300, 400, 400]]})
    boxes = [[300, 300, 600, 600], [500, 500, 600, 600], [-0.5, 0, 10, 400.5], [0, 0, 10, 10]]
    recall = proposal_recall(content, {1: best_first(boxes)}, limits=(1, 4))
    assert recall["AR1"] == 1.0
    assert recall.num_outside == 2
    assert "clipped: 2" in recall.table()


def test_a_file_of_proposals_is_scored_as_it_is(tmp_path):
    boxes = np.array([[0, 0, 50, 50], [1, 1, 9, 9]], np.float32)
    write_proposals(tmp_path / "p.pkl", {"7": (boxes, np.array([1.0, 2.0]))})
    recall = proposal_recall(truth({7: boxes[:1]}), read_proposals(tmp_path / "p.pkl"), limits=(1, 2))
    assert recall.figures["AR1"] == 0.0
    assert recall.figures["AR2"] == 1.0


def test_the_table_has_a_column_for_each_limit_and_json_has_everything():
    content = truth({1: [[0, 0, 50, 50]], 2: [[0, 0, 20, 20]]})
    proposals = {1: best_first([[0, 0, 50, 50]]), 2: best_first([[0, 0, 20, 15]])}
    recall = proposal_recall(content, proposals, limits=(100, 1000))
    lines = recall.table().splitlines()
    assert lines[0] == "2 images, 2 objects, 1.0 proposals an image"
    assert lines[1].split()[-2:] == ["100", "1000"]
    assert lines[2].split() == ["IoU", "0.50", "1.000", "1.000"]
    assert lines[-4].split()[:4] == ["average,", "all", "0.800", "0.800"]
    assert max(map(len, lines)) <= 80
    again = json.loads(json.dumps(recall.to_dict()))
    assert again["figures"]["AR1000"] == recall["AR1000"] == pytest.approx(0.8)
    assert again["recalls"]["100"] == list(recall.recalls[100])
