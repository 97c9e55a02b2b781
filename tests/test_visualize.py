"""Pictures: what is drawn where. How it looks is for people to judge."""

from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from mrcnn_jax.data.dataset import Record
from mrcnn_jax.errors import UserError
from mrcnn_jax.labels import Label, write_labels
from mrcnn_jax.visualize import curves, draw, save, sheet, truth

# From inside pycocotools' decode, under NumPy 2.

CLASSES = ("cat", "dog")


def grey(height, width):
    return np.full((height, width, 3), 90, np.uint8)


def result(boxes, scores=None, masks=None, keypoints=None):
    boxes = np.array(boxes, np.float32).reshape(-1, 4)
    labels = np.arange(len(boxes)) % 2
    crowd = np.zeros(len(boxes), bool)
    return SimpleNamespace(boxes=boxes, labels=labels, scores=scores, masks=masks, keypoints=keypoints, crowd=crowd)


def changed(picture, height, width):
    return (picture != grey(height, width)).any(axis=2)


@pytest.mark.parametrize(("size", "expected"), [((100, 80), 4), ((128, 128), 4), ((300, 200), 2), ((480, 640), 1)])
def test_small_images_are_enlarged(size, expected):
    picture = draw(grey(*size), result([[10, 10, 40, 40]]), CLASSES)
    assert picture.shape == (size[0] * expected, size[1] * expected, 3)
    assert picture.dtype == np.uint8


def test_mask_and_box_are_drawn_where_they_are():
    masks = np.zeros((1, 600, 800), bool)
    masks[0, 200:300, 100:300] = True
    picture = draw(grey(600, 800), result([[100, 200, 300, 300]], np.array([0.9]), masks), CLASSES)
    where = changed(picture, 600, 800)
    assert where[200:300, 100:300].all()
    # Beyond the object only its label, right above or below.
    assert not where[:, 330:].any()
    assert not where[:150].any()
    assert not where[350:].any()
    assert where.sum() > masks.sum()


def test_the_image_itself_is_left_alone():
    image = grey(600, 800)
    draw(image, result([[100, 200, 300, 300]], masks=np.ones((1, 600, 800), bool)), CLASSES)
    np.testing.assert_array_equal(image, grey(600, 800))


def test_low_scores_and_excess_are_left_out():
    boxes = [[10, 100, 200, 300], [300, 100, 500, 300], [550, 100, 750, 300]]
    found = result(boxes, np.array([0.6, 0.9, 0.3]))

    def drawn(**options):
        where = changed(draw(grey(600, 800), found, CLASSES, **options), 600, 800)
        return [bool(where[:, x0:x1].any()) for x0, x1 in ((0, 250), (280, 520), (540, 800))]

    assert drawn() == [True, True, False]
    assert drawn(threshold=0.2) == [True, True, True]
    assert drawn(threshold=0.2, max_objects=1) == [False, True, False]


def test_neighbours_have_different_colours():
    boxes = [[50 * i, 100, 50 * i + 40, 400] for i in range(12)]
    picture = draw(grey(600, 800), result(boxes), CLASSES).astype(int)
    colours = picture[250, [50 * i for i in range(12)]]
    distances = np.abs(colours[:, None] - colours[None]).sum(axis=2)[~np.eye(12, dtype=bool)]
    assert distances.min() > 40


def test_nothing_found_leaves_the_image():
    np.testing.assert_array_equal(draw(grey(600, 800), result([], np.zeros(0)), CLASSES), grey(600, 800))


def test_keypoints_and_limbs():
    points = np.array([[[100, 100, 2], [300, 100, 1], [500, 500, 0]]], np.float32)
    found = result([[50, 50, 700, 550]], keypoints=points)
    where = changed(draw(grey(600, 800), found, CLASSES, skeleton=[(0, 1), (1, 2)]), 600, 800)
    assert where[100, 100]
    assert where[100, 100:301].all()
    assert not where[480:520, 480:520].any()


def plates(labels, objects, height=300, width=300):
    return changed(write_labels(grey(height, width), labels, np.array(objects, float), 14), height, width)


def test_labels_stay_inside_the_image():
    """At every border as much of the plate is seen as in the middle."""
    middle = plates([Label("zebra 0.95", (100.0, 100.0, 200.0, 200.0), (200, 0, 0))], [[100, 100, 200, 200]]).sum()
    for box in [(0, 0, 60, 60), (240, 0, 300, 60), (0, 240, 60, 300), (240, 240, 300, 300), (0, 0, 300, 300)]:
        assert plates([Label("zebra 0.95", tuple(map(float, box)), (200, 0, 0))], [box]).sum() == pytest.approx(
            middle, rel=0.02
        )


def test_labels_do_not_hide_small_objects_or_each_other():
    small = [(150, 130, 170, 140), (150, 160, 170, 170)]
    objects = [(100, 150, 250, 290), *small]
    labels = [Label("person 0.99", tuple(map(float, box)), (0, 0, 250)) for box in objects]
    where = plates(labels, objects)
    for x0, y0, x1, y1 in small:
        assert where[y0:y1, x0:x1].mean() < 0.2
    singly = sum(plates([label], objects).sum() for label in labels)
    assert where.sum() == pytest.approx(singly, rel=0.05)


def test_sheet_holds_every_picture():
    images = [np.full((100, 200, 3), 10 * i, np.uint8) for i in range(5)] + [np.full((900, 900, 3), 70, np.uint8)]
    page = sheet(images, columns=2, captions=[f"number {i}" for i in range(6)], width=250)
    for i in range(5):
        assert (page == 10 * i).all(axis=2).sum() >= 100 * 200
    assert (page == 70).all(axis=2).sum() >= 250 * 250
    assert page.shape[1] == 12 + 2 * 262
    assert sheet(images[:1], columns=4).shape[1] < 450


def test_truth_of_a_record():
    record = Record(
        image_id=1,
        source=grey(40, 60),
        height=40,
        width=60,
        boxes=np.array([[5, 5, 25, 15], [0, 0, 10, 10], [20, 20, 30, 30]], np.float32),
        classes=np.array([2, 1, 1], np.int32),
        crowd=np.array([False, True, False]),
        areas=np.array([200, 100, 100], np.float32),
        segmentations=([[5, 5, 25, 5, 25, 15, 5, 15]], {"size": [40, 60], "counts": b"0:n0:n0:n0:n0:n0PS1"}, None),
        keypoints=np.zeros((3, 2, 3), np.float32),
    )
    shown = truth(record)
    assert shown.masks.sum(axis=(1, 2)).tolist()[::2] == [200, 0]
    assert shown.masks[0, 5:15, 5:25].all()
    np.testing.assert_array_equal(shown.labels, [1, 0, 0])
    assert shown.scores is None
    assert shown.keypoints[0, 0, 0] == 0.5
    draw(record.image(), shown, CLASSES)


def test_save(tmp_path):
    save(grey(20, 30), tmp_path / "new" / "a.png")
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "new" / "a.png")), grey(20, 30))
    with pytest.raises(UserError, match=r"a\.nonsense"):
        save(grey(20, 30), tmp_path / "a.nonsense")


def test_curves(tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_text(
        "step,loss,loss/mask,learning_rate,box/AP\n10,2.0,1.0,0.1,\n20,1.5,0.7,0.2,\n20,,,,0.3\n30,nan,0.5,0.1,\n30,,,,0.2\n"
    )
    curves(path, tmp_path / "curves.png")
    with Image.open(tmp_path / "curves.png") as picture:
        assert picture.width > 3 * picture.height
    path.write_text("step,loss\n")
    with pytest.raises(UserError, match="no steps"):
        curves(path, tmp_path / "curves.png")
    with pytest.raises(UserError, match="cannot be read"):
        curves(tmp_path / "none.csv", tmp_path / "curves.png")
