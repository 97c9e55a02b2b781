"""The usual layouts of a data set's folder."""

import pytest

from mrcnn_jax.data import coco
from mrcnn_jax.errors import UserError


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
