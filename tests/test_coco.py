"""COCO JSON as people's tools write it: mended, dropped or refused, and always reported."""

import json
import pickle

import numpy as np
import pytest
from coco_json import HEIGHT, SQUARE, WIDTH, annotation, read, sound, with_annotation, write_images
from PIL import Image

from mrcnn_jax.data import coco
from mrcnn_jax.errors import UserError


@pytest.fixture
def folder(tmp_path):
    return write_images(tmp_path)


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
        with pytest.raises(UserError, match=r"not on disk, .*: 1 \(image 1 other/b\.png\)"):
            read(folder, content)

    def test_missing_stops_a_run_and_the_rest_is_still_looked_at(self, folder):
        (folder / "images" / "a.png").unlink()
        with pytest.raises(UserError, match=r"not on disk, fetch it .*: 1 \(image 1 a\.png\)"):
            read(folder, sound())
        dataset, report = read(folder, sound(), action=coco.read)
        assert [r.image_id for r in dataset.records] == [2]
        assert dataset.records[0].classes.tolist() == [2]
        assert "annotation of an image that is left out, dropped: 1 (annotation 1)" in report.warnings[0]

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
        assert "read from the image: 1 (image 1 a.png)" in report.notes[0]

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


class TestIgnoredRegion:
    def test_it_goes_there_and_back(self, folder):
        content = sound()
        content["images"][1]["ignored_region"] = [SQUARE]
        dataset, report = read(folder, content)
        assert report.lines() == []
        assert [record.ignored_region for record in dataset.records] == [None, [SQUARE]]
        assert ["ignored_region" in image for image in dataset.to_coco()["images"]] == [False, True]

    def test_of_another_size(self, folder):
        content = sound()
        content["images"][1]["ignored_region"] = {"size": [3, 4], "counts": [0, 12]}
        with pytest.raises(UserError, match=r"not the image's height and width.*ignored_region of b\.png"):
            read(folder, content)
