"""COCO JSON as people's tools write it: mended, dropped or refused, and always reported."""

import json
import pickle

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as rle

from mrcnn_jax.data import coco, segmentations
from mrcnn_jax.data.coco_categories import flip_permutation
from mrcnn_jax.data.dataset import Category
from mrcnn_jax.data.report import Report
from mrcnn_jax.errors import UserError

HEIGHT, WIDTH = 30, 40
SQUARE = [5, 5, 15, 5, 15, 15, 5, 15]


@pytest.fixture
def folder(tmp_path):
    """Two images and their annotations, without a fault: the tests put faults in."""
    (tmp_path / "images").mkdir()
    for name in ("a.png", "b.png"):
        Image.new("RGB", (WIDTH, HEIGHT), "grey").save(tmp_path / "images" / name)
    return tmp_path


def sound():
    return {
        "images": [
            {"id": 1, "file_name": "a.png", "height": HEIGHT, "width": WIDTH},
            {"id": 2, "file_name": "b.png", "height": HEIGHT, "width": WIDTH},
        ],
        "annotations": [annotation(1), annotation(2, image_id=2, category_id=7)],
        "categories": [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}],
    }


def annotation(number=1, **changes):
    fields = {"id": number, "image_id": 1, "category_id": 3, "bbox": [5, 5, 10, 10], "area": 100, "iscrowd": 0}
    return {**fields, "segmentation": [SQUARE], **changes}


def read(folder, content, categories=None, action=coco.load):
    path = folder / "instances.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return action(folder / "images", path, categories)


def with_annotation(folder, **changes):
    """The record of a changed first annotation, None if the annotation was dropped, and the report."""
    content = sound()
    content["annotations"][0].update(changes)
    content["annotations"] = [{k: v for k, v in a.items() if v != "absent"} for a in content["annotations"]]
    dataset, report = read(folder, content)
    return (dataset.records[0] if len(dataset.records[0].boxes) else None), report


def test_sound_data_pass_without_a_word(folder):
    dataset, report = read(folder, sound())
    assert report.lines() == []
    assert dataset.classes == ("cat", "dog")
    assert [c.id for c in dataset.categories] == [3, 7]
    first, second = dataset.records
    assert (first.image_id, first.height, first.width, first.file_name) == (1, HEIGHT, WIDTH, "a.png")
    np.testing.assert_array_equal(first.boxes, np.array([[5, 5, 15, 15]], np.float32))
    np.testing.assert_array_equal(second.classes, np.array([2], np.int32))
    assert first.segmentations == ([[float(v) for v in SQUARE]],)
    assert first.image().shape == (HEIGHT, WIDTH, 3)
    assert [a["category_id"] for a in dataset.to_coco()["annotations"]] == [3, 7]
    assert pickle.loads(pickle.dumps(dataset)).records[1].annotation_ids.tolist() == [2]
    with pytest.raises(IndexError):
        dataset.records[2]


class TestIds:
    def test_annotation_ids_from_zero(self, folder):
        content = sound()
        content["annotations"][0]["id"] = 0
        dataset, report = read(folder, content)
        assert [r.annotation_ids.tolist() for r in dataset.records] == [[1], [2]]
        assert "renumbered: 2 (annotation 0, 2)" in report.notes[0]

    def test_annotation_id_twice(self, folder):
        content = sound()
        content["annotations"][1]["id"] = 1
        dataset, report = read(folder, content)
        assert [r.annotation_ids.tolist() for r in dataset.records] == [[1], [2]]
        assert "used twice, all renumbered from 1: 1 (annotation 1)" in report.warnings[0]

    @pytest.mark.parametrize("identity", ["1", 1.0])
    def test_ids_compare_as_text(self, folder, identity):
        record, _ = with_annotation(folder, image_id=identity, category_id="3")
        assert record.classes.tolist() == [1]

    def test_uuids_are_renumbered(self, folder):
        content = json.loads(json.dumps(sound()).replace('"image_id": 1', '"image_id": "x-1"'))
        content["images"][0]["id"] = "x-1"
        dataset, report = read(folder, content)
        assert [r.image_id for r in dataset.records] == [1, 2]
        assert "image ids are not distinct whole numbers" in report.warnings[0]

    def test_category_ids_with_zero_and_gaps(self, folder):
        content = sound()
        content["categories"] = [{"id": 90, "name": "dog"}, {"id": 0, "name": "cat"}]
        content["annotations"][0]["category_id"], content["annotations"][1]["category_id"] = 0, 90
        dataset, _ = read(folder, content)
        assert dataset.classes == ("cat", "dog")
        assert [a["category_id"] for a in dataset.to_coco()["annotations"]] == [0, 90]

    def test_image_id_for_two_files(self, folder):
        content = sound()
        content["images"][1]["id"] = 1
        with pytest.raises(UserError, match=r"instances\.json: image id used for two files.*image 1"):
            read(folder, content)

    def test_image_listed_twice(self, folder):
        content = sound()
        content["images"].append(content["images"][0])
        dataset, report = read(folder, content)
        assert len(dataset.records) == 2
        assert "listed twice" in report.warnings[0]

    @pytest.mark.parametrize("field", ["image_id", "category_id"])
    def test_few_unknown_references_are_dropped_and_many_refused(self, folder, field):
        content = sound()
        content["annotations"] = [annotation(i) for i in range(1, 41)] + [annotation(99, **{field: 555})]
        dataset, report = read(folder, content)
        assert len(dataset.records[0].boxes) == 40
        assert f"{field} that no" in report.warnings[0]
        assert "1 (annotation 99)" in report.warnings[0]
        content["annotations"] += [annotation(i, **{field: 555}) for i in (100, 101)]
        with pytest.raises(UserError, match=rf"{field} that no .*over 5%.*annotation 99, 100, 101"):
            read(folder, content)


class TestCategories:
    def test_parent_without_annotations_is_left_out(self, folder):
        content = sound()
        for category in content["categories"]:
            category["supercategory"] = "pets"
        content["categories"] += [
            {"id": 0, "name": "pets"},
            {"id": 1, "name": "_background_"},
            {"id": 9, "name": "cow"},
        ]
        dataset, report = read(folder, content)
        assert dataset.classes == ("cat", "dog", "cow")
        assert "left out: 2 (category 0, 1)" in report.notes[0]

    def test_own_name_as_supercategory_is_kept(self, folder):
        content = sound()
        content["categories"].append({"id": 9, "name": "cow", "supercategory": "cow"})
        assert read(folder, content)[0].classes == ("cat", "dog", "cow")

    def test_one_name_twice_is_one_class(self, folder):
        content = sound()
        content["categories"][1]["name"] = "cat"
        dataset, report = read(folder, content)
        assert [r.classes.tolist() for r in dataset.records] == [[1], [1]]
        assert "merged: 1 (category 7 cat)" in report.warnings[0]

    def test_validation_follows_the_training_classes_by_name(self, folder):
        training = (Category(1, "cow"), Category(2, "dog"), Category(3, "cat"))
        dataset, _ = read(folder, sound(), training)
        assert dataset.classes == ("cow", "dog", "cat")
        assert [r.classes.tolist() for r in dataset.records] == [[3], [2]]
        # In this file cat is 3 and dog is 7, and results for it say so.
        assert [a["category_id"] for a in dataset.to_coco()["annotations"]] == [3, 7]
        assert len({c.id for c in dataset.categories}) == 3

    def test_class_that_training_lacks_is_an_error_showing_both(self, folder):
        with pytest.raises(UserError, match=r"training set does not have \(it has cat, cow\).*class dog"):
            read(folder, sound(), (Category(1, "cat"), Category(2, "cow")))

    def test_keypoints(self, folder):
        content = sound()
        content["categories"][0].update(keypoints=["nose", "left_eye", "right_eye"], skeleton=[[1, 2], [2, 3], [3, 9]])
        content["annotations"][0]["keypoints"] = [8, 9, 2, 7, 8, 1, 0, 0, 0]
        content["annotations"].append(annotation(5, keypoints=[1, 2]))
        dataset, report = read(folder, content)
        assert dataset.categories[0].flip == (0, 2, 1)
        assert dataset.categories[0].skeleton == ((0, 1), (1, 2))
        expected = np.zeros((2, 3, 3), np.float32)
        expected[0] = [[8, 9, 2], [7, 8, 1], [0, 0, 0]]
        np.testing.assert_array_equal(dataset.records[0].keypoints, expected)
        np.testing.assert_array_equal(dataset.records[1].keypoints, np.zeros((1, 3, 3), np.float32))
        assert "three numbers for each name, not used: 1 (annotation 5)" in report.warnings[0]

    @pytest.mark.parametrize(
        ("names", "flip"),
        [
            (("nose", "left_eye", "right_eye"), (0, 2, 1)),
            (("LeftArm", "RightArm", "head"), (1, 0, 2)),
            (("l_ear", "r_ear", "tail_L", "tail_R"), (1, 0, 3, 2)),
            (("left_paw", "tail"), (0, 1)),
            (("left", "left", "right"), (0, 1, 2)),
            ((), ()),
        ],
    )
    def test_flip_permutation(self, names, flip):
        assert flip_permutation(names) == flip


class TestBoxes:
    @pytest.mark.parametrize(
        ("bbox", "finding"),
        [
            ([5, 5, 0, 10], "without area"),
            ([5, 5, -3, 10], "without area"),
            ([50, 5, 10, 10], "outside the image"),
            ([-20, 5, 10, 10], "outside the image"),
        ],
    )
    def test_empty_and_outside_are_dropped(self, folder, bbox, finding):
        record, report = with_annotation(folder, bbox=bbox)
        assert record is None
        assert f"box {finding}, dropped: 1 (annotation 1)" in report.warnings[0]

    def test_reaching_outside_is_clipped(self, folder):
        record, report = with_annotation(folder, bbox=[-5, 20, 20, 20])
        np.testing.assert_array_equal(record.boxes, np.array([[0, 20, 15, 30]], np.float32))
        assert "clipped: 1 (annotation 1)" in report.warnings[0]

    @pytest.mark.parametrize("bbox", ["absent", None, [], [1, 2, 3], [5, 5, float("nan"), 10], "box"])
    def test_absent_is_taken_from_the_mask(self, folder, bbox):
        record, report = with_annotation(folder, bbox=bbox)
        np.testing.assert_array_equal(record.boxes, np.array([[5, 5, 15, 15]], np.float32))
        assert "taken from the mask: 1" in report.notes[0]

    def test_neither_box_nor_mask(self, folder):
        record, report = with_annotation(folder, bbox=None, segmentation=None)
        assert record is None
        assert "no mask, dropped: 1 (annotation 1)" in report.warnings[0]

    def test_numbers_as_text(self, folder):
        record, report = with_annotation(folder, bbox=["5", "5", "10.0", "10"], segmentation=[[str(v) for v in SQUARE]])
        np.testing.assert_array_equal(record.boxes, np.array([[5, 5, 15, 15]], np.float32))
        assert record.segmentations[0] == [[float(v) for v in SQUARE]]
        assert "written as text" in report.warnings[0]

    def test_shares_of_the_image(self, folder):
        content = sound()
        for a in content["annotations"]:
            a.update(bbox=[0.25, 0.5, 0.5, 0.5], segmentation=[[0, 0, 0.5, 0, 0.5, 1]], area=0)
        dataset, report = read(folder, content)
        np.testing.assert_array_equal(dataset.records[0].boxes, np.array([[10, 15, 30, 30]], np.float32))
        assert dataset.records[1].segmentations[0] == [[0.0, 0.0, 20.0, 0.0, 20.0, 30.0]]
        assert "scaled to pixels" in report.warnings[0]

    def test_corners_instead_of_sizes_are_refused(self, folder):
        content = sound()
        for a in content["annotations"]:
            a["bbox"] = [25, 20, 38, 29]
        with pytest.raises(UserError, match="only as x1, y1, x2, y2"):
            read(folder, content)

    @pytest.mark.parametrize("area", ["absent", None, 0, -4, float("nan")])
    def test_area(self, folder, area):
        record, _ = with_annotation(folder, area=area, segmentation=[[5, 5, 15, 5, 15, 15]])
        assert record.areas.tolist() == [50]
        record, _ = with_annotation(folder, area=area, segmentation=[])
        assert record.areas.tolist() == [100]

    def test_rotation_is_told(self, folder):
        _, report = with_annotation(folder, attributes={"rotation": 30.5})
        assert "rotated box" in report.warnings[0]


class TestSegmentations:
    @pytest.mark.parametrize(
        "value",
        [
            pytest.param(SQUARE, id="flat"),
            pytest.param([[SQUARE]], id="too deep"),
            pytest.param([[5, 5], [15, 5], [15, 15], [5, 15]], id="points"),
            pytest.param([[[5, 5], [15, 5], [15, 15], [5, 15]]], id="points of a part"),
            pytest.param([[5, 5, 15, 15]], id="two corners"),
            pytest.param([SQUARE, [1, 2, 3, 4, 5]], id="one bad part"),
        ],
    )
    def test_polygons(self, folder, value):
        record, _ = with_annotation(folder, segmentation=value)
        assert record.segmentations[0] == [[float(v) for v in SQUARE]]

    @pytest.mark.parametrize(
        ("ring", "finding"),
        [
            ([1, 2], "fewer than three points"),
            ([1, 2, 3, 4, 5, 6, 7], "odd number"),
            ([5, 5, 15, 15, 10, 10], "without area"),
            ([5, 5, 1e9, 5, 15, 15], "far outside"),
            ([5, 5, float("nan"), 5, 15, 15], "not finite"),
            ([5, 5, 10**400, 5, 15, 15], "far outside"),
            (["a", 1000000000000, 1, 2, 3, 4], "not made of numbers"),
            ([None] * 6, "not made of numbers"),
        ],
    )
    def test_bad_parts_are_dropped(self, folder, ring, finding):
        record, report = with_annotation(folder, segmentation=[ring])
        assert record.segmentations == (None,)
        assert finding in report.warnings[0]
        assert "annotation 1" in report.warnings[0]
        assert "only the box is used" in report.warnings[1]

    @pytest.mark.parametrize("value", ["absent", None, [], {}, "", 3])
    def test_box_only(self, folder, value):
        record, report = with_annotation(folder, segmentation=value)
        assert record.segmentations == (None,)
        assert any("left out of the mask loss: 1" in line for line in report.warnings)

    @pytest.mark.parametrize("coding", ["list", "text", "bytes"])
    def test_rle(self, coding):
        mask = np.random.default_rng(0).integers(0, 2, (HEIGHT, WIDTH)).astype(np.uint8)
        packed = rle.encode(np.asfortranarray(mask))
        counts = {
            "list": segmentations.runs(packed["counts"]).tolist(),
            "text": packed["counts"].decode(),
            "bytes": packed["counts"],
        }[coding]
        report = Report()
        found = segmentations.canonical({"size": [HEIGHT, WIDTH], "counts": counts}, HEIGHT, WIDTH, report, 1)
        assert found == {"size": [HEIGHT, WIDTH], "counts": packed["counts"]}
        assert report.lines() == []

    def test_runs_are_pycocotools_runs(self):
        rng = np.random.default_rng(0)
        for density in (0.001, 0.02, 0.5, 0.98):
            mask = rng.random((97, 211)) < density
            flat = np.concatenate([[False], mask.reshape(-1, order="F"), [False]])
            edges = np.flatnonzero(np.diff(flat.astype(np.int8)))
            expected = np.diff(np.concatenate([[0], edges, [mask.size]]))
            found = segmentations.runs(rle.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"])
            np.testing.assert_array_equal(found, expected[: len(found)])
            assert found.sum() == mask.size

    @pytest.mark.parametrize(
        ("changes", "finding"),
        [
            ({"size": [WIDTH, HEIGHT]}, "size is not"),
            ({"size": None}, "size is not"),
            ({"counts": [10, 20]}, "do not fill"),
            ({"counts": [10, -20, HEIGHT * WIDTH + 10]}, "do not fill"),
            ({"counts": [0, 10**30]}, "do not fill"),
            ({"counts": ["1", "2"]}, "do not fill"),
            ({"counts": "zzzz"}, "do not fill"),
            ({"counts": "\u00e9\n"}, "do not fill"),
            ({"counts": "o" * 50 + "0"}, "do not fill"),
            ({"counts": ""}, "do not fill"),
            ({"counts": None}, "do not fill"),
        ],
    )
    def test_rle_that_does_not_fit_is_refused(self, folder, changes, finding):
        value = {"size": [HEIGHT, WIDTH], "counts": [0, HEIGHT * WIDTH], **changes}
        with pytest.raises(UserError, match=rf"{finding}.*annotation 1"):
            with_annotation(folder, segmentation=value)

    def test_rle_without_a_pixel(self, folder):
        record, report = with_annotation(folder, segmentation={"size": [HEIGHT, WIDTH], "counts": [HEIGHT * WIDTH]})
        assert record.segmentations == (None,)
        assert "without a pixel" in report.warnings[0]


class TestCrowds:
    MASK = {"size": [HEIGHT, WIDTH], "counts": [155, 300, HEIGHT * WIDTH - 455]}  # noqa: RUF012

    def crowds(self, folder, crowds, others, **changes):
        content = sound()
        content["annotations"] = [
            annotation(i + 1, iscrowd=1, segmentation=self.MASK, **changes) for i in range(crowds)
        ]
        content["annotations"] += [annotation(500 + i, category_id=7) for i in range(others)]
        dataset, report = read(folder, content)
        return int(dataset.records[0].crowd.sum()), report

    @pytest.mark.parametrize(
        ("crowds", "others", "left"), [(1, 3, 1), (3, 0, 0), (10, 10, 10), (11, 50, 0), (11, 200, 0), (5, 900, 5)]
    )
    def test_brushed_masks_are_objects(self, folder, crowds, others, left):
        found, report = self.crowds(folder, crowds, others)
        assert found == left
        assert any("READ AS SINGLE OBJECTS" in line for line in report.warnings) == (left == 0)

    def test_ignore_stays_a_crowd(self, folder):
        assert self.crowds(folder, 30, 3, ignore=1)[0] == 30

    def test_crowd_without_a_mask_stays_one(self, folder):
        record, report = with_annotation(folder, iscrowd=True, segmentation=[])
        assert record.crowd.tolist() == [True]
        assert report.warnings == []


class TestImages:
    @pytest.mark.parametrize(
        "name",
        [
            "images\\\\a.png",
            "../../media/upload/4/a.png",
            "/home/someone/a.png",
            "https://host/data/a.png?d=3",
            "A.PNG",
            "./a.png",
            "%61.png",
        ],
    )
    def test_names_of_other_tools(self, folder, name):
        content = sound()
        content["images"][0]["file_name"] = name
        dataset, _ = read(folder, content)
        assert dataset.records[0].source.resolve() == folder / "images" / "a.png"
        assert dataset.records[0].file_name == name

    def test_same_name_in_two_folders(self, folder):
        for sub in ("x", "y"):
            (folder / "images" / sub).mkdir()
            Image.new("RGB", (WIDTH, HEIGHT)).save(folder / "images" / sub / "c.png")
        content = sound()
        content["images"][0]["file_name"] = "old/x/c.png"
        assert read(folder, content)[0].records[0].source == folder / "images" / "x" / "c.png"
        content["images"][0]["file_name"] = "old/c.png"
        with pytest.raises(UserError, match=r"fits several files.*x/c\.png and y/c\.png"):
            read(folder, content)

    def test_a_name_never_takes_anothers_file(self, folder):
        content = sound()
        content["images"][0]["file_name"] = "other/b.png"
        dataset, report = read(folder, content)
        assert [r.file_name for r in dataset.records] == ["b.png"]
        assert "not on disk, left out: 1 (image 1 other/b.png)" in report.warnings[0]

    def test_missing_is_left_out_with_its_annotations(self, folder):
        (folder / "images" / "a.png").unlink()
        dataset, report = read(folder, sound())
        assert [r.image_id for r in dataset.records] == [2]
        assert dataset.records[0].classes.tolist() == [2]
        assert "annotation of an image that is left out, dropped: 1 (annotation 1)" in report.warnings[1]

    def test_none_there(self, folder):
        with pytest.raises(UserError, match=r"none of its 2 images is found \(tried .*a\.png.*b\.png"):
            coco.load(folder / "elsewhere", self._written(folder))

    @staticmethod
    def _written(folder):
        path = folder / "instances.json"
        path.write_text(json.dumps(sound()))
        return path

    @pytest.mark.parametrize("size", [{}, {"height": None, "width": None}, {"height": 0, "width": 0}])
    def test_size_is_read_from_the_image(self, folder, size):
        content = sound()
        content["images"][0] = {"id": 1, "file_name": "a.png", **size}
        dataset, report = read(folder, content)
        assert (dataset.records[0].height, dataset.records[0].width) == (HEIGHT, WIDTH)
        assert "read from the image: 1 (image 1)" in report.notes[0]

    def test_size_of_a_spoilt_image(self, folder):
        (folder / "images" / "a.png").write_bytes(b"<html>")
        content = sound()
        del content["images"][0]["height"]
        with pytest.raises(UserError, match=r"without width and height that cannot be read.*1 .*a\.png"):
            read(folder, content)

    def test_absurd_size_is_refused(self, folder):
        content = sound()
        content["images"][0].update(height=10**6, width=10**6)
        with pytest.raises(UserError, match=r"pixels.*image 1"):
            read(folder, content)

    def test_negatives_are_kept(self, folder):
        content = sound()
        del content["annotations"][1]
        dataset, report = read(folder, content)
        assert len(dataset.records) == 2
        assert dataset.records[1].boxes.shape == (0, 4)
        assert "kept as a negative: 1 (image 2)" in report.notes[0]


class TestFile:
    @pytest.mark.parametrize(
        ("text", "finding"),
        [
            ("", "not JSON"),
            ("{", "not JSON"),
            ("[" * 100_000, "nested too deeply"),
            ("[]", "a list"),
            ("3", "not COCO"),
            ("{}", "no 'images'"),
            ('{"images": [{}], "categories": [{}]}', "no 'annotations'"),
            ('{"images": {}, "annotations": [], "categories": []}', "'images' is not a list"),
            ('{"images": [], "annotations": [], "categories": [{}]}', "'images' is empty"),
            ('{"images": [{}], "annotations": [], "categories": []}', "'categories' is empty"),
            ('{"images": [1], "annotations": [{"segments_info": 1}], "categories": [1]}', "panoptic"),
        ],
    )
    def test_not_coco_is_one_line_with_the_file(self, folder, text, finding):
        with pytest.raises(UserError, match=rf"instances\.json: .*{finding}") as error:
            read(folder, text)
        assert "\n" not in str(error.value)

    def test_missing_file(self, folder):
        with pytest.raises(UserError, match=r"gone\.json.*No such file"):
            coco.load(folder, folder / "gone.json")

    def test_too_large(self, folder, monkeypatch):
        monkeypatch.setattr(coco, "FILE_LIMIT", 100)
        with pytest.raises(UserError, match="over the limit"):
            read(folder, sound())

    def test_byte_order_mark(self, folder):
        assert len(read(folder, "\ufeff" + json.dumps(sound()))[0].records) == 2

    def test_junk_entries_never_crash(self, folder):
        junk = [None, 3, "x", [], {}, {"id": []}, {"id": {}, "image_id": {}, "category_id": []}, {"id": float("nan")}]
        content = sound()
        content["annotations"] += [*junk, *({**annotation(), key: value} for key in annotation() for value in junk)]
        _, report = read(folder, content, action=coco.read)
        assert report.errors
        content = sound()
        content["images"] += junk
        content["categories"] += junk
        _, report = read(folder, content, action=coco.read)
        assert any("image without an id" in line for line in report.errors)
        assert all("\n" not in line for line in report.lines())

    def test_first_error_and_the_number_of_others(self, folder):
        content = sound()
        content["annotations"][0]["segmentation"] = {"size": [1, 1], "counts": [1]}
        content["annotations"][1]["image_id"] = 77
        with pytest.raises(UserError, match="; and 1 more, see `mrcnn check`"):
            read(folder, content)


class TestFind:
    @pytest.mark.parametrize(
        ("annotations", "images", "split"),
        [
            ("annotations/instances_train2017.json", "train2017", "train"),
            ("annotations/instances_val2017.json", "val2017", "val"),
            ("annotations/instances_train.json", "images/train", "train"),
            ("train/_annotations.coco.json", "train", "train"),
            ("valid/_annotations.coco.json", "valid", "val"),
            ("train/instances_default.json", "train/images", "train"),
            ("instances_default.json", "images", "train"),
            ("result.json", "images", "train"),
            ("annotations/instances_val.json", ".", "val"),
        ],
    )
    def test_layouts(self, tmp_path, annotations, images, split):
        for path in (annotations, f"{images}/a.jpg"):
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / path).touch()
        assert coco.find(tmp_path, split) == (tmp_path / images, tmp_path / annotations)

    def test_test_is_not_validation(self, tmp_path):
        (tmp_path / "test").mkdir()
        (tmp_path / "test" / "_annotations.coco.json").touch()
        with pytest.raises(UserError, match=r"for val \(tried .*val_annotations"):
            coco.find(tmp_path, "val")

    def test_no_folder(self, tmp_path):
        with pytest.raises(UserError, match="no such folder"):
            coco.find(tmp_path / "gone", "train")
