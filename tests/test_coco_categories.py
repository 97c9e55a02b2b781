"""Categories to classes: order, merging, validation by name, keypoints."""

import numpy as np
import pytest
from coco_json import annotation, read, sound, write_images

from mrcnn_jax.data.coco_categories import flip_permutation
from mrcnn_jax.data.dataset import Category
from mrcnn_jax.errors import UserError


@pytest.fixture
def folder(tmp_path):
    return write_images(tmp_path)


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
