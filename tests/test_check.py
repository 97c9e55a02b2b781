"""The data-set doctor finds what is wrong, with ids, and counts what is there."""

import json

import numpy as np
import pytest
from PIL import Image

from mrcnn_jax.data.check import check, check_proposals
from mrcnn_jax.data.proposals import write_proposals

HEIGHT, WIDTH = 30, 40


def write_image(path, seed, **options):
    pixels = np.random.default_rng(seed).integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, **options)


@pytest.fixture
def folder(tmp_path):
    """Four sound images with a cat of growing size in each of the first three, the last a crowd."""
    content = {
        "images": [{"id": i, "file_name": f"{i}.png", "height": HEIGHT, "width": WIDTH} for i in range(1, 5)],
        "annotations": [
            {
                "id": i,
                "image_id": i,
                "category_id": 9,
                "bbox": [1, 2, 4 * i, 4 * i],
                "area": 16 * i * i,
                "iscrowd": int(i == 3),
                "segmentation": [[1, 2, 1 + 4 * i, 2, 1 + 4 * i, 2 + 4 * i]] if i < 3 else None,
            }
            for i in range(1, 4)
        ],
        "categories": [{"id": 9, "name": "cat"}, {"id": 11, "name": "dog"}],
    }
    for i in range(1, 5):
        write_image(tmp_path / f"{i}.png", i)
    write(tmp_path, content)
    return tmp_path


def write(folder, content):
    (folder / "instances.json").write_text(json.dumps(content))


def edit(folder, change):
    content = json.loads((folder / "instances.json").read_text())
    change(content)
    write(folder, content)


def run(folder, **options):
    return check(folder, folder / "instances.json", **options)


def test_sound_data(folder):
    result = run(folder)
    assert (result.errors, result.warnings) == ([], [])
    assert (result.num_images, result.num_objects) == (4, 3)
    cat, dog = result.classes
    assert (cat.id, cat.name, cat.images, cat.objects, cat.crowd, cat.masks) == (9, "cat", 3, 3, 1, 2)
    assert (cat.smallest, cat.median, cat.largest) == (4, 8, 12)
    assert (dog.objects, dog.largest) == (0, 0)
    text = "\n".join(result.lines())
    assert "4 images, 3 objects, 2 classes" in text
    assert "class without objects: 1 (category 11 dog)" in text
    assert "kept as a negative: 1 (image 4)" in text
    assert "0 kinds of error" in text


def test_json_holds_the_findings(folder):
    (folder / "2.png").unlink()
    content = json.loads(json.dumps(run(folder).to_json()))
    assert content["images"] == 3
    assert content["classes"][0]["name"] == "cat"
    assert content["findings"]["error"][0] == {
        "text": "image that is not on disk, fetch it or take it out of the annotations",
        "what": "image",
        "count": 1,
        "ids": ["2 2.png"],
    }


def test_missing_image_is_an_error(folder):
    (folder / "2.png").unlink()
    result = run(folder)
    assert result.errors == ["image that is not on disk, fetch it or take it out of the annotations: 1 (image 2 2.png)"]
    assert any("annotation of an image that is left out" in line for line in result.warnings)


@pytest.mark.parametrize("decode", [True, False])
def test_damaged_images(folder, decode):
    data = (folder / "1.png").read_bytes()
    (folder / "1.png").write_bytes(data[: len(data) // 2])
    (folder / "2.png").write_bytes(b"<html>")
    (line,) = run(folder, decode=decode).errors
    # A header alone does not tell that the rest is missing.
    assert line.endswith("2 (image 1 1.png, 2 2.png)" if decode else "1 (image 2 2.png)")


def test_size_that_is_not_the_annotated_one(folder):
    edit(folder, lambda content: content["images"][3].update(height=31))
    (line,) = run(folder).errors
    assert "size is not the annotated one" in line
    assert "1 (image 4 4.png)" in line


def test_exif_rotation(folder):
    exif = Image.Exif()
    exif[0x0112] = 6
    for i in (3, 4):
        write_image(folder / f"{i}.png", i, exif=exif)
    edit(folder, lambda content: content["images"][3].update(height=WIDTH, width=HEIGHT))
    result = run(folder)
    assert result.errors == []
    assert any("annotated and used as it is stored" in line and "3 3.png" in line for line in result.warnings)
    assert any("turned upright" in line and "4 4.png" in line for line in result.report.notes)


@pytest.mark.parametrize("decode", [True, False])
@pytest.mark.parametrize("orientation", [2, 3, 4])
def test_exif_that_keeps_the_size(folder, orientation, decode):
    exif = Image.Exif()
    exif[0x0112] = orientation
    write_image(folder / "3.png", 3, exif=exif)
    exif[0x0112] = 1
    write_image(folder / "4.png", 4, exif=exif)
    (line,) = run(folder, decode=decode).warnings
    assert line.startswith("image that its EXIF tag turns but not its size")
    assert "1 (image 3 3.png)" in line


def test_one_picture_under_two_names(folder):
    (folder / "4.png").write_bytes((folder / "1.png").read_bytes())
    result = run(folder)
    assert "one picture under two names: 1 (image 1 1.png and 4 4.png)" in result.warnings


def test_picture_in_training_and_validation(folder, tmp_path_factory):
    other = tmp_path_factory.mktemp("val")
    (other / "instances.json").write_bytes((folder / "instances.json").read_bytes())
    for i in range(1, 5):
        write_image(other / f"{i}.png", i if i == 2 else 10 + i)
    assert run(folder).shared_pictures(run(other)) == ["2 2.png"]


def test_annotations_at_fault_are_listed_with_ids(folder):
    def spoil(content):
        first = content["annotations"][0]
        content["annotations"] = [
            {**first, "id": 1, "bbox": [5, 5, 0, 3]},
            {**first, "id": 2, "bbox": [500, 5, 3, 3]},
            {**first, "id": 3, "segmentation": [[1, 2, 3]]},
            {**first, "id": 4, "category_id": 77},
            {**first, "id": 5, "image_id": 77},
            {**first, "id": 3},
            {**first, "id": 6, "segmentation": {"size": [1, 1], "counts": "0"}},
        ]

    edit(folder, spoil)
    result = run(folder)
    errors, warnings = "\n".join(result.errors), "\n".join(result.warnings)
    for finding in ("image_id that no image has", "category_id that no category has", "RLE mask whose size"):
        assert finding in errors
    for finding in ("without area, dropped: 1 (annotation 1)", "outside the image, dropped: 1 (annotation 2)"):
        assert finding in warnings
    assert "odd number of coordinates, part dropped: 1 (annotation 3)" in warnings
    assert "annotation id used twice, all renumbered from 1: 1 (annotation 3)" in warnings
    assert result.lines()[-1] == "3 kinds of error, 6 of warning"


def test_only_five_ids_and_their_number(folder):
    def spoil(content):
        content["annotations"] = [{**content["annotations"][0], "id": i, "bbox": [0, 0, 0, 0]} for i in range(1, 9)]

    edit(folder, spoil)
    assert "box without area, dropped: 8 (annotation 1, 2, 3, 4, 5, ...)" in run(folder).warnings


def test_file_that_is_no_coco_is_a_finding(folder):
    (folder / "instances.json").write_text("{}")
    result = run(folder)
    assert "no 'images'" in result.errors[0]
    assert result.to_json()["classes"] == []


def test_proposals_are_checked_against_the_objects(folder):
    """The cats have boxes of 4, 8 and 12 pixels from (1, 2) on; the last is a crowd, which does not count."""
    one = (np.array([[1, 2, 5, 6]], np.float32), np.array([0.5], np.float32))
    far = (np.array([[0, 0, 80, 60]], np.float32), np.array([0.5], np.float32))
    write_proposals(folder / "proposals.pkl", {1: one, 2: far, 3: one, 4: one, 5: one})
    result = run(folder)
    check_proposals(result, folder / "proposals.pkl")
    assert (result.errors, result.warnings) == ([], [])
    told = "\n".join(result.lines())
    assert "cover 50.0% of 2 objects" in told
    assert "some reach over the border, and are clipped: 1 (image 2)" in told
    assert "image that is not in the data set, left out: 1 (image 5)" in told

    write_proposals(folder / "proposals.pkl", {1: one, 2: far})
    check_proposals(result, folder / "proposals.pkl")
    assert "has no proposals for 2 of 4 images" in result.errors[0]


def test_number_of_threads_changes_nothing(folder):
    (folder / "2.png").write_bytes(b"")
    assert run(folder, workers=1).lines() == run(folder, workers=3).lines()
