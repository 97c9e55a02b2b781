"""A small sound COCO data set on disk, for the tests that put faults in."""

import json

from PIL import Image

from mrcnn_jax.data import coco

HEIGHT, WIDTH = 30, 40
SQUARE = [5, 5, 15, 5, 15, 15, 5, 15]


def write_images(tmp_path):
    """The two images of `sound`, in the folder that `read` looks into."""
    (tmp_path / "images").mkdir()
    for name in ("a.png", "b.png"):
        Image.new("RGB", (WIDTH, HEIGHT), "grey").save(tmp_path / "images" / name)
    return tmp_path


def sound():
    """Annotations without a fault."""
    return {
        "images": [
            {"id": 1, "file_name": "a.png", "height": HEIGHT, "width": WIDTH},
            {"id": 2, "file_name": "b.png", "height": HEIGHT, "width": WIDTH},
        ],
        "annotations": [annotation(1), annotation(2, image_id=2, category_id=7)],
        "categories": [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}],
    }


def annotation(number=1, **changes):
    """One annotation of image 1."""
    fields = {"id": number, "image_id": 1, "category_id": 3, "bbox": [5, 5, 10, 10], "area": 100, "iscrowd": 0}
    return {**fields, "segmentation": [SQUARE], **changes}


def read(folder, content, categories=None, action=coco.load):
    """Writes the annotations, a dictionary or text, and loads them."""
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
