"""Test-time augmentation: boxes to the file's pixels and back, merged by class; masks averaged upright."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import base
from mrcnn_jax import distributed
from mrcnn_jax.data.dataset import Category, Dataset, Record
from mrcnn_jax.errors import UserError
from mrcnn_jax.evaluation.augmented import Variant, detect, mean_masks, merge, to_file, to_variant, variants
from mrcnn_jax.evaluation.run import Evaluator
from mrcnn_jax.models import zoo
from mrcnn_jax.types import Batch, Detections

# Height and width of two files.
FILES = np.array([[100, 200], [50, 40]], np.int32)


def variant(factors, mirrored):
    """The two files, each `factors` (height, width) times as large."""
    batch = Batch(
        image=np.zeros((2, 8, 8, 3), np.uint8),
        size=FILES * np.array(factors, np.int32),
        original_size=FILES,
        image_id=np.arange(2, dtype=np.int32),
        valid=np.ones(2, bool),
    )
    return Variant(batch, mirrored)


def detections(boxes, scores, classes, valid=None):
    """The same in both images."""

    def twice(values, dtype):
        return jnp.asarray(np.stack([np.asarray(values, dtype)] * 2))

    valid = [True] * len(scores) if valid is None else valid
    return Detections(twice(boxes, np.float32), twice(scores, np.float32), twice(classes, np.int32), twice(valid, bool))


BOXES = [[2, 4, 12, 34], [0, 0, 40, 50]]


class TestCoordinates:
    def test_upright(self):
        found = to_variant(detections(BOXES, [0.9, 0.8], [1, 2]), variant((2, 3), False))
        np.testing.assert_allclose(found.boxes[0], [[6, 8, 36, 68], [0, 0, 120, 100]])
        np.testing.assert_array_equal(found.boxes[0], found.boxes[1])

    def test_mirrored(self):
        found = to_variant(detections(BOXES, [0.9, 0.8], [1, 2]), variant((2, 3), True))
        # The variants are 600 and 120 pixels wide.
        np.testing.assert_allclose(found.boxes[0], [[564, 8, 594, 68], [480, 0, 600, 100]])
        np.testing.assert_allclose(found.boxes[1], [[84, 8, 114, 68], [0, 0, 120, 100]])

    @pytest.mark.parametrize("mirrored", [False, True])
    def test_there_and_back(self, mirrored):
        one = variant((3, 7), mirrored)
        before = detections(BOXES, [0.9, 0.8], [1, 2], [True, False])
        after = to_file(to_variant(before, one).replace(masks=jnp.zeros((2, 2, 4, 4))), one)
        np.testing.assert_allclose(after.boxes, before.boxes, atol=1e-5)
        np.testing.assert_array_equal(after.valid, before.valid)
        assert after.masks is None


class TestMerge:
    def test_a_class_suppresses_itself_alone(self):
        box, near, far = [0, 0, 10, 10], [0, 0, 10, 9], [20, 20, 30, 30]
        one = detections([box, box], [0.9, 0.5], [1, 2])
        two = detections([near, far, near], [0.95, 0.6, 0.99], [1, 1, 1], [True, True, False])
        merged = merge([one, two], FILES, 0.5, 4)
        np.testing.assert_array_equal(merged.valid, [[True, True, True, False]] * 2)
        np.testing.assert_allclose(merged.scores[0, :3], [0.95, 0.6, 0.5])
        np.testing.assert_array_equal(merged.classes[0, :3], [1, 1, 2])
        np.testing.assert_array_equal(merged.boxes[0, :3], [near, far, box])

    def test_the_threshold_and_the_limit(self):
        one, two = detections([[0, 0, 10, 10]], [0.9], [1]), detections([[0, 0, 10, 8]], [0.8], [1])
        assert merge([one, two], FILES, 0.85, 5).valid.sum(axis=1).tolist() == [2, 2]
        assert merge([one, two], FILES, 0.75, 5).valid.sum(axis=1).tolist() == [1, 1]
        np.testing.assert_allclose(merge([one, two], FILES, 0.85, 1).scores, [[0.9]] * 2)

    def test_boxes_are_clipped_to_the_file(self):
        merged = merge([detections([[-5, -5, 300, 300]], [0.9], [1])], FILES, 0.5, 1)
        np.testing.assert_array_equal(merged.boxes[:, 0], [[0, 0, 200, 100], [0, 0, 40, 50]])

    def test_rows_that_do_not_exist_are_not_read(self):
        sound = detections([[0, 0, 10, 10], [1, 1, 5, 5]], [0.9, 0.8], [1, 1], [True, False])
        spoilt = sound.replace(boxes=sound.boxes.at[:, 1].set(jnp.nan), scores=sound.scores.at[:, 1].set(jnp.nan))
        for a, b in zip(
            jax.tree.leaves(merge([sound], FILES, 0.5, 1)), jax.tree.leaves(merge([spoilt], FILES, 0.5, 1)), strict=True
        ):
            np.testing.assert_array_equal(a, b)


def test_masks_are_averaged_upright():
    mask = np.arange(2 * 3 * 4 * 4, dtype=np.float32).reshape(2, 3, 4, 4)
    np.testing.assert_array_equal(mean_masks([mask, mask[..., ::-1]], [False, True]), mask)
    np.testing.assert_array_equal(mean_masks([mask, mask + 2], [False, False]), mask + 1)


class TestDetect:
    """A model that finds a box a variant and tells its left half from its right one."""

    VARIANTS = (variant((1, 1), False), variant((1, 1), True), variant((2, 3), False), variant((2, 3), True))

    def run(self, describe):
        """Everyone finds the same box, less and less surely; the last variant finds another one."""
        number = {id(v.batch): i for i, v in enumerate(self.VARIANTS)}

        def find(batch):
            i = number[id(batch)]
            found = detections([[2, 4, 12, 34] if i < 3 else [20, 4, 32, 34]], [0.9 - i / 10], [1])
            return to_variant(found, self.VARIANTS[i])

        return detect(find, describe, self.VARIANTS, nms_threshold=0.5, max_detections=5)

    def test_boxes_and_masks(self):
        seen = []

        def describe(batch, found):
            seen.append(found)
            mirrored = next(v.mirrored for v in self.VARIANTS if v.batch is batch)
            # Bright where the upright picture has its left.
            mask = jnp.tile(jnp.array([0.9, 0.1]), (2, 5, 2, 1))
            return found.replace(masks=mask[..., ::-1] if mirrored else mask)

        found = self.run(describe)
        np.testing.assert_array_equal(found.valid, [[True, True, False, False, False]] * 2)
        np.testing.assert_allclose(found.boxes[:, :2], [[[2, 4, 12, 34], [20, 4, 32, 34]]] * 2, atol=1e-4)
        np.testing.assert_allclose(found.scores[0, :2], [0.9, 0.6], atol=1e-6)
        np.testing.assert_allclose(found.masks[..., 0], 0.9, atol=1e-6)
        np.testing.assert_allclose(found.masks[..., 1], 0.1, atol=1e-6)
        # Every variant described the merged boxes in its own pixels.
        np.testing.assert_allclose(seen[3].boxes[1, 0], [84, 8, 114, 68], atol=1e-3)

    def test_a_model_without_masks(self):
        assert self.run(lambda batch, found: found).masks is None

    def test_keypoints_are_refused(self):
        with pytest.raises(UserError, match="for boxes and masks"):
            self.run(lambda batch, found: found.replace(keypoints=jnp.zeros((2, 5, 1, 3))))


class Bright(nn.Module):
    """Stands for a model: finds the box of what is bright in an image, and says that its upper left quarter is mask."""

    def apply(self, variables, batch, detections=None, *, method):
        if method == "describe":
            left, right = jnp.zeros((4, 4)).at[:2, :2].set(1.0), jnp.zeros((4, 4)).at[:2, 2:].set(1.0)
            # A mirrored image is darker above on its right half.
            bright = jnp.asarray(batch.image[..., 0], jnp.float32)
            middle = jnp.asarray(batch.size)[:, 1, None, None] // 2
            columns = jnp.arange(bright.shape[2])[None, None]
            right_half = jnp.where(columns >= middle, bright, 0.0).sum((1, 2))
            mirrored = 2 * right_half > bright.sum((1, 2))
            masks = jnp.where(mirrored[:, None, None], right[None], left[None])
            return detections.replace(masks=jnp.broadcast_to(masks[:, None], (*detections.valid.shape, 4, 4)))

        def one(image):
            rows, columns = jnp.any(image > 128, axis=1), jnp.any(image > 128, axis=0)
            ends = [jnp.argmax(columns), jnp.argmax(rows)]
            ends += [len(columns) - jnp.argmax(columns[::-1]), len(rows) - jnp.argmax(rows[::-1])]
            box = jnp.stack([end.astype(jnp.float32) for end in ends])[None]
            return Detections(box, jnp.ones(1), jnp.ones(1, jnp.int32), jnp.ones(1, bool))

        return jax.vmap(one)(jnp.asarray(batch.image)[..., 0])


def bright_record(image_id, height, width):
    """A bright box in the left half of the image, whose upper left quarter is the object."""
    image = np.zeros((height, width, 3), np.uint8)
    image[8:24, 4:20] = 255
    square = [[4.0, 8.0, 12.0, 8.0, 12.0, 16.0, 4.0, 16.0]]
    return Record(
        image_id, image, height, width, np.array([[4, 8, 20, 24]], np.float32), np.ones(1, np.int32), np.zeros(1, bool),
        np.array([64.0], np.float32), (square,),
    )  # fmt: skip


def test_a_data_set_is_scored_in_all_variants(tmp_path):
    records = [bright_record(1, 32, 64), bright_record(2, 64, 48), bright_record(3, 32, 64)]
    dataset = Dataset((Category(1, "bright"),), records, "bright")
    config = base.experiment("bright", zoo.mask_rcnn(18))
    config.model.preprocess.update({"short_side": 32, "max_size": 64})
    config.data.update({"buckets": ((32, 64), (64, 48)), "num_workers": 0})
    config.eval.update({"batch_size": 2, "num_workers": 0, "augment": (32, 64)})

    seen = list(variants(dataset, config, 2))
    assert [len(one) for one in seen] == [4, 4]
    for batch in seen:
        upright, mirrored = batch[2].batch, batch[3].batch
        assert all(np.array_equal(one.batch.image_id, upright.image_id) for one in batch)
        height, width = upright.size[0]
        np.testing.assert_array_equal(mirrored.image[0, :height, :width], upright.image[0, :height, :width][:, ::-1])
        assert not mirrored.image[0, :, width:].any()

    metrics = Evaluator(Bright(), dataset, config, distributed.make_mesh(1))({}, tmp_path)
    assert metrics["bbox"]["AP"] > 0.8
    # A mask that was averaged without being turned back would be half wrong.
    assert metrics["segm"]["AP50"] == pytest.approx(1.0)
