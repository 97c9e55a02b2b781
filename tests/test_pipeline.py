"""Batches from small drawn data sets: contents, hosts, workers and going on after a stop."""

import io
import json
from dataclasses import replace

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from mrcnn_jax.data import pipeline
from mrcnn_jax.data.collate import ground_truth
from mrcnn_jax.data.dataset import Category, Dataset, Record
from mrcnn_jax.data.transforms import Example
from mrcnn_jax.errors import UserError

CATEGORIES = (Category(7, "block", ("left", "right"), (1, 0)), Category(9, "other"))


def record(index: int, height: int, width: int, objects: int = 1) -> Record:
    """Blocks of colour 200 on a ground whose first channel is the index."""
    image = np.full((height, width, 3), (index, 0, 0), np.uint8)
    boxes = np.array([[4 + 2 * i, 6, 12 + 3 * i, 20] for i in range(objects)], np.float32).reshape(-1, 4)
    for x1, y1, x2, y2 in boxes.astype(int):
        image[y1:y2, x1:x2, 1] = 200
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    polygons = [[[x1, y1, x2, y1, x2, y2, x1, y2]] for x1, y1, x2, y2 in boxes.tolist()]
    return Record(
        image_id=1000 + index,
        source=file.getvalue(),
        height=height,
        width=width,
        boxes=boxes,
        classes=np.ones(objects, np.int32),
        crowd=np.zeros(objects, bool),
        areas=np.prod(boxes[:, 2:] - boxes[:, :2], axis=1),
        segmentations=tuple(polygons),
        keypoints=np.stack([np.concatenate([boxes[:, :2], np.full((objects, 1), 2)], 1)] * 2, 1).astype(np.float32),
    )


def dataset(count: int = 11) -> Dataset:
    """Landscape and portrait pictures, the last one without an object."""
    shapes = [(30, 40), (40, 30), (36, 40)]
    records = [record(i, *shapes[i % 3], objects=1 + i % 2) for i in range(count - 1)]
    return Dataset(CATEGORIES, (*records, record(count - 1, *shapes[(count - 1) % 3], objects=0)), "blocks")


def config(**data) -> ConfigDict:
    values = {
        "short_sides": (30, 36, 42),
        "max_size": 64,
        "buckets": ((48, 64), (64, 48)),
        "flip": 0.5,
        "jitter": None,
        "max_objects": 4,
        "mask_size": 16,
        "num_workers": 0,
        "keep_empty": False,
        "keypoints": True,
    }
    preprocess = {"rounding": "round", "interpolation": "cv2", "short_side": 42, "max_size": 64}
    return ConfigDict({"data": {**values, **data}, "model": {"preprocess": preprocess}})


def take(loader: pipeline.Loader, count: int) -> list:
    batches = [next(loader) for _ in range(count)]
    loader.close()
    return batches


def assert_same(first, second) -> None:
    for one, other in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        np.testing.assert_array_equal(one, other)


def test_train_batch_is_padded_and_true_to_the_picture():
    for batch in take(pipeline.train_loader(dataset(), config(), seed=0, batch_size=4), 6):
        assert batch.image.shape[1:3] in [(48, 64), (64, 48)]
        assert batch.image.dtype == np.uint8
        assert batch.valid.all()
        assert batch.gt.masks.shape == (4, 4, 16, 2)
        np.testing.assert_array_equal(batch.num_dropped, 0)
        for row in range(4):
            height, width = batch.size[row]
            assert not batch.image[row, height:].any()
            assert not batch.image[row, :, width:].any()
            assert (batch.image[row, :height, :width, 0] == batch.image_id[row] - 1000).all()
            green = batch.image[row, ..., 1] > 100
            objects = np.flatnonzero(batch.gt.valid[row])
            ys, xs = np.nonzero(green)
            boxes = batch.gt.boxes[row, objects]
            extent = np.concatenate([boxes[:, :2].min(axis=0), boxes[:, 2:].max(axis=0)])
            np.testing.assert_allclose(extent, [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1], atol=1)
            np.testing.assert_array_equal(batch.gt.has_mask[row], batch.gt.valid[row])
            assert np.unpackbits(batch.gt.masks[row, objects], axis=-1).all()
            assert not batch.gt.masks[row, len(objects) :].any()
            # One keypoint sits on each object's corner, the other on the same one before the flip.
            np.testing.assert_allclose(batch.gt.keypoints[row, objects, :, 1], boxes[:, [1, 1]] + height / 80, atol=0.6)


def test_epochs_are_complete_and_leave_out_empty_images():
    loader = pipeline.train_loader(dataset(), config(), seed=1, batch_size=2)
    assert (loader.num_images, loader.num_skipped) == (10, 1)
    # Five batches an epoch, but for what the odd bucket sizes carry over.
    counts = np.zeros(11, int)
    for batch in take(loader, 10):
        counts += np.bincount(batch.image_id - 1000, minlength=11)
    assert counts[10] == 0
    assert set(counts[:10]) <= {1, 2, 3}
    assert counts.sum() == 20
    kept = pipeline.train_loader(dataset(), config(keep_empty=True), seed=1, batch_size=2)
    assert (kept.num_images, kept.num_skipped) == (11, 0)


def test_a_keypoint_model_trains_on_images_with_a_labelled_keypoint():
    """As Detectron2's MIN_KEYPOINTS_PER_IMAGE; a crowd's do not count, since it is never a positive."""
    whole = dataset()
    first, second, third, *others = whole.records
    unlabelled = replace(first, keypoints=first.keypoints * np.array([1, 1, 0], np.float32))
    crowd = replace(second, crowd=np.ones(len(second.boxes), bool))
    without = replace(third, keypoints=None)
    images = replace(whole, records=(unlabelled, crowd, without, *others))
    for settings, num_left in ((config(), 7), (config(keypoints=False), 9), (config(keep_empty=True), 11)):
        loader = pipeline.train_loader(images, settings, seed=0, batch_size=1)
        assert (loader.num_images, loader.num_skipped) == (num_left, 11 - num_left)
    with pytest.raises(UserError, match="no image with an object with a labelled keypoint"):
        pipeline.train_loader(images.subset([0, 1, 2]), config(), 0, 1)


@pytest.mark.parametrize("hosts", [2, 4])
def test_hosts_share_out_the_same_global_batches(hosts):
    whole = take(pipeline.train_loader(dataset(), config(), seed=0, batch_size=4), 4)
    parts = [
        take(pipeline.train_loader(dataset(), config(), 0, 4, process_index=host, process_count=hosts), 4)
        for host in range(hosts)
    ]
    for step, batch in enumerate(whole):
        joined = jax.tree.map(lambda *rows: np.concatenate(rows), *(part[step] for part in parts))
        assert_same(joined, batch)


@pytest.mark.parametrize("workers", [0, 2])
def test_state_continues_bit_for_bit(workers):
    straight = take(pipeline.train_loader(dataset(), config(), seed=0, batch_size=3), 7)
    loader = pipeline.train_loader(dataset(), config(num_workers=workers), seed=0, batch_size=3)
    for batch in straight[:3]:
        assert_same(next(loader), batch)
    state = json.loads(json.dumps(loader.get_state()))
    for batch in straight[3:5]:
        assert_same(next(loader), batch)
    loader.set_state(state)
    assert_same(next(loader), straight[3])
    loader.close()
    started_there = pipeline.train_loader(dataset(), config(), seed=0, batch_size=3, start_step=state["step"])
    for batch in straight[3:]:
        assert_same(next(started_there), batch)
    started_there.close()


def test_eval_visits_every_image_once():
    for hosts in (1, 2):
        seen = []
        for host in range(hosts):
            loader = pipeline.eval_loader(dataset(), config(), 4, process_index=host, process_count=hosts)
            for batch in loader:
                assert batch.gt is None
                assert batch.image.shape[0] == 4 // hosts
                assert not batch.image[~batch.valid].any()
                seen.extend(batch.image_id[batch.valid].tolist())
                for row in np.flatnonzero(batch.valid):
                    assert max(batch.size[row]) <= 64
                    assert min(batch.size[row]) in (42, 48)
                    index = batch.image_id[row] - 1000
                    assert batch.original_size[row].tolist() == [[30, 40], [40, 30], [36, 40]][index % 3]
        assert sorted(seen) == list(range(1000, 1011))


def test_eval_is_the_same_every_time():
    first, second = (list(pipeline.eval_loader(dataset(), config(), 4)) for _ in range(2))
    assert len(first) == len(second) == 3
    for one, other in zip(first, second, strict=True):
        assert_same(one, other)


def test_image_goes_to_the_bucket_that_shrinks_it_least():
    settings = config(buckets=((48, 64), (64, 48), (48, 48)), short_sides=(48,))
    shapes = [(30, 40), (40, 30), (40, 40), (30, 90), (90, 30)]
    records = tuple(record(i, *shape) for i, shape in enumerate(shapes))
    members = pipeline.bucket_members(Dataset(CATEGORIES, records), settings, 48, 64, keep_empty=True)
    assert [indices.tolist() for indices in members] == [[0, 3], [1, 4], [2]]


def test_content_larger_than_every_bucket_is_shrunk_to_fit():
    settings = config(buckets=((24, 24),), short_sides=(100,), max_size=400, flip=0.0)
    batch = take(pipeline.train_loader(Dataset(CATEGORIES, (record(0, 30, 40),)), settings, 0, 1), 1)[0]
    np.testing.assert_array_equal(batch.size, [[18, 24]])
    np.testing.assert_allclose(batch.gt.boxes[0, 0], np.array([4, 6, 12, 20]) * 0.6, rtol=1e-6)


def test_jitter_fills_the_bucket_or_less():
    settings = config(buckets=((64, 64),), jitter=(0.3, 2.0))
    sizes = [batch.size for batch in take(pipeline.train_loader(dataset(), settings, 0, 4), 6)]
    sizes = np.concatenate(sizes)
    assert sizes.max() == 64
    assert sizes.min() < 40


def test_the_largest_objects_are_kept_and_the_rest_counted():
    sides = np.array([3, 9, 1, 7, 5, 8], np.float32)
    example = Example(
        image=np.zeros((20, 20, 3), np.uint8),
        boxes=np.stack([0 * sides, 0 * sides, sides, sides], axis=-1),
        classes=np.arange(1, 7, dtype=np.int32),
        crowd=np.array([False, True, False, False, False, False]),
        segmentations=(
            None,
            None,
            None,
            [[0.0, 0.0, 7.0, 0.0, 7.0, 7.0, 0.0, 7.0]],
            None,
            [[0.0, 0.0, 1.0, 0.0, 0.0, 0.0]],
        ),
        source_size=(20, 20),
    )
    truth, dropped = ground_truth(example, max_objects=3, mask_size=8)
    assert dropped == 3
    np.testing.assert_array_equal(truth.classes, [2, 4, 6])
    np.testing.assert_array_equal(truth.crowd, [True, False, False])
    np.testing.assert_array_equal(truth.has_mask, [False, True, False])
    np.testing.assert_array_equal(truth.masks[1], np.full((8, 1), 255))
    truth, dropped = ground_truth(example, max_objects=8, mask_size=0)
    assert (dropped, truth.valid.sum(), truth.masks, truth.has_mask) == (0, 6, None, None)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_image_is_named(workers):
    broken = Record(
        image_id=77,
        source=b"not an image",
        height=30,
        width=40,
        boxes=np.array([[0, 0, 9, 9]], np.float32),
        classes=np.array([1], np.int32),
        crowd=np.array([False]),
        areas=np.array([81], np.float32),
        segmentations=(None,),
    )
    settings = config(num_workers=workers, keypoints=False)
    loader = pipeline.train_loader(Dataset(CATEGORIES, (broken,)), settings, 0, 1)
    with pytest.raises(UserError, match="77"):
        next(loader)
    loader.close()


def test_what_cannot_work_is_said_at_once():
    with pytest.raises(UserError, match="no image with an object"):
        pipeline.train_loader(dataset().subset([10]), config(), 0, 1)
    with pytest.raises(UserError, match="hosts"):
        pipeline.train_loader(dataset(), config(), 0, 3, process_count=2)
    with pytest.raises(UserError, match="mask_size"):
        pipeline.train_loader(dataset(), config(mask_size=28), 0, 1)
    with pytest.raises(UserError, match="keypoints"):
        pipeline.train_loader(Dataset((CATEGORIES[1],), dataset().records), config(), 0, 1)


def test_too_little_shared_memory_is_said_before_a_worker_dies(monkeypatch):
    usage = pipeline.shutil.disk_usage("/")._replace(free=1000)
    monkeypatch.setattr(pipeline.shutil, "disk_usage", lambda path: usage)
    monkeypatch.setattr(pipeline.Path, "is_dir", lambda self: True)
    with pytest.raises(UserError, match="shm"):
        pipeline.train_loader(dataset(), config(num_workers=2), 0, 4)
