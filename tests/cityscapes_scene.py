"""Made-up Cityscapes: images of instance ids on disk, and detections in them."""

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

HEIGHT, WIDTH = 64, 128
CLASSES = (24, 25, 26, 27, 28, 31, 32, 33)


def write(root, split, scenes):
    """Writes {(city, name): ids} in Cityscapes' layout, each with a grey photograph."""
    for (city, name), ids in scenes.items():
        for kind, suffix, pixels in (
            ("leftImg8bit", "leftImg8bit", np.full((*ids.shape, 3), 127, np.uint8)),
            ("gtFine", "gtFine_instanceIds", ids.astype(np.uint16)),
        ):
            path = root / kind / split / city / f"{name}_{suffix}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
    return root


def random_ids(rng, classes=CLASSES):
    """Void, road, groups and objects of all sizes, each hiding some of those before."""
    ids = np.full((HEIGHT, WIDTH), 7)
    ids[: rng.integers(0, 12)] = 23
    for number in range(rng.integers(4, 18)):
        class_ = int(rng.choice(classes))
        id_ = rng.choice([class_ * 1000 + number, class_, rng.integers(0, 34)], p=[0.75, 0.15, 0.1])
        ids[_ellipse(rng)] = id_
    return ids


def random_detections(rng, ids, image_id, classes=CLASSES):
    """Regions moved a little, with equal scores, doubles, wrong classes and inventions among them."""
    found = []
    for id_ in np.unique(ids):
        class_ = int(id_ // 1000 or id_)
        for _ in range(rng.integers(0, 3)):
            if class_ not in classes and rng.random() < 0.5:
                class_ = int(rng.choice(classes))
            if class_ in classes:
                mask = np.roll(ids == id_, rng.integers(-2, 3, 2), (0, 1)) & (rng.random(ids.shape) > 0.1)
                found.append(_result(image_id, class_, mask, rng))
    for _ in range(rng.integers(0, 4)):
        found.append(_result(image_id, int(rng.choice(classes)), _ellipse(rng), rng))
    return found


def result(image_id, category_id, mask, score):
    """One detection as COCO has it."""
    coded = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    segmentation = {"size": coded["size"], "counts": coded["counts"].decode()}
    return {"image_id": image_id, "category_id": category_id, "score": score, "segmentation": segmentation}


def _result(image_id, category_id, mask, rng):
    return result(image_id, category_id, mask, round(float(rng.random()), 1))


def _ellipse(rng):
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    cy, cx = rng.uniform(0, HEIGHT), rng.uniform(0, WIDTH)
    b, a = np.exp(rng.uniform(np.log(1.5), np.log(24), 2))
    return ((y - cy) / b) ** 2 + ((x - cx) / a) ** 2 <= 1
