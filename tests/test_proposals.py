"""Files of proposals from both libraries' days, and Fast R-CNN trained, scored and used on what comes with the data."""

import io
import pickle
import sys
import types
from dataclasses import replace
from enum import IntEnum
from pathlib import Path

import chex
import jax
import numpy as np
import pytest
import test_evaluate
import test_pipeline
import test_train
import tiny
from PIL import Image

from mrcnn_jax import distributed
from mrcnn_jax.cli import main
from mrcnn_jax.commands import demo
from mrcnn_jax.data import pipeline, proposals, shapes, sources, tfds_builders
from mrcnn_jax.data.collate import fit_proposals
from mrcnn_jax.data.proposals import read_proposals, write_proposals
from mrcnn_jax.data.transforms import crop, flip_horizontal, load_example, resize_example
from mrcnn_jax.errors import UserError
from mrcnn_jax.evaluation.run import Evaluator
from mrcnn_jax.model import Model
from mrcnn_jax.models.build import build
from mrcnn_jax.train import train
from mrcnn_jax.types import Proposals

KEY = jax.random.key(3)
NUM = 12
# As images of a data set have them: best first, none of equal score.
GIVEN = {
    7: (np.array([[1, 2, 30, 40], [5.5, 0, 9, 8]], np.float32), np.array([3, -1.5], np.float32)),
    2**40: (np.zeros((0, 4), np.float32), np.zeros(0, np.float32)),
    "a": (np.array([[0, 0, 640, 480]], np.float32), np.array([0.25], np.float32)),
}


def as_detectron2(**changed) -> dict:
    """The content of a file with ids 1 and 2, the first image's worse box first."""
    return {
        "ids": [1, 2],
        "boxes": [np.array([[0, 0, 5, 6], [1, 2, 3, 4]], np.float32), np.array([[7, 7, 9, 9]], np.float32)],
        "objectness_logits": [np.array([-2.0, 1.0], np.float32), np.array([0.5], np.float32)],
    } | changed


def pickled(path: Path, content, protocol: int = 2) -> Path:
    path.write_bytes(pickle.dumps(content, protocol))
    return path


def assert_same(found, expected) -> None:
    assert list(found) == list(expected)
    for identity, (boxes, scores) in expected.items():
        np.testing.assert_array_equal(found[identity].boxes, boxes)
        np.testing.assert_array_equal(found[identity].scores, scores)
        assert found[identity].valid.all()


def test_a_file_that_is_written_reads_back_equal_here_and_as_a_plain_pickle(tmp_path):
    path = tmp_path / "new" / "proposals.pkl"
    write_proposals(path, GIVEN)
    found = read_proposals(path)
    assert_same(found, GIVEN)
    # Ids compare as text.
    assert found["7"].scores.tolist() == found[7].scores.tolist() == [3, -1.5]
    assert 8 not in found
    content = pickle.loads(path.read_bytes())
    assert content["ids"] == list(GIVEN)
    for boxes, logits, (expected, scores) in zip(
        content["boxes"], content["objectness_logits"], GIVEN.values(), strict=True
    ):
        np.testing.assert_array_equal(boxes, expected)
        np.testing.assert_array_equal(logits, scores)
    # NumPy 1 has no numpy._core.
    assert b"_core" not in path.read_bytes()


@pytest.mark.parametrize("protocol", range(6))
def test_any_protocol_and_either_name_of_a_list(tmp_path, protocol):
    new = as_detectron2()
    old = {"indexes": new["ids"], "boxes": new["boxes"], "scores": new["objectness_logits"], "cfg": "MODEL: ..."}
    for content in (new, old):
        found = read_proposals(pickled(tmp_path / "p.pkl", content, protocol))
        assert found[1].boxes.tolist() == [[1, 2, 3, 4], [0, 0, 5, 6]]
        assert found[1].scores.tolist() == [1, -2]
        assert found[2].boxes.tolist() == [[7, 7, 9, 9]]


def test_numbers_of_any_kind(tmp_path):
    content = as_detectron2(ids=np.array([5, 6]), boxes=np.arange(16).reshape(2, 2, 4))
    content["objectness_logits"] = np.array([[0.5, 1], [1, 0.5]], np.float16)
    found = read_proposals(pickled(tmp_path / "p.pkl", content))
    assert list(found) == [5, 6]
    assert found[5].boxes.tolist() == [[4, 5, 6, 7], [0, 1, 2, 3]]
    assert found[6].boxes.dtype == np.float32
    content = as_detectron2(ids=[np.int64(5), "000005"], boxes=[[[1, 2, 3, 4], [2, 3, 4, 5]], [[0.5, 0, 1, 1]]])
    assert list(read_proposals(pickled(tmp_path / "p.pkl", content))) == [5, "000005"]


def test_what_python_2_wrote(tmp_path):
    """Its strings hold the bytes of arrays."""
    boxes, scores = np.array([[1, 2, 3, 200]], "<f4"), np.array([1.5], "<f4")

    def array(value: np.ndarray) -> bytes:
        raw, shape = value.tobytes(), b"".join(b"K" + bytes([side]) for side in value.shape)
        kind = b"cnumpy\ndtype\n(U\x02f4K\x00K\x01tR(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        blank = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tU\x01btR"
        return blank + b"(K\x01(" + shape + b"t" + kind + b"\x89U" + bytes([len(raw)]) + raw + b"tb"

    data = b"\x80\x02}(U\x07indexes](K\x09eU\x05boxes](" + array(boxes) + b"eU\x06scores](" + array(scores) + b"eu."
    (tmp_path / "p.pkl").write_bytes(data)
    assert_same(read_proposals(tmp_path / "p.pkl"), {9: (boxes, scores)})


@pytest.fixture
def box_mode(monkeypatch) -> type:
    """Detectron2's enumeration, which exists while a file is written and not when it is read."""

    class BoxMode(IntEnum):
        XYXY_ABS = 0
        XYWH_ABS = 1
        XYXY_REL = 2

    BoxMode.__module__, BoxMode.__qualname__ = "detectron2.structures.boxes", "BoxMode"
    module = types.ModuleType("detectron2.structures.boxes")
    module.BoxMode = BoxMode
    for name in ("detectron2", "detectron2.structures"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return BoxMode


def test_box_modes(tmp_path, box_mode):
    path = tmp_path / "p.pkl"
    for mode in (0, box_mode.XYXY_ABS):
        assert read_proposals(pickled(path, as_detectron2(bbox_mode=mode)))[1].boxes[0].tolist() == [1, 2, 3, 4]
    for mode in (1, box_mode.XYWH_ABS):
        assert read_proposals(pickled(path, as_detectron2(bbox_mode=mode)))[1].boxes[0].tolist() == [1, 2, 4, 6]
    for mode in (box_mode.XYXY_REL, 4, "xyxy"):
        with pytest.raises(UserError, match="bbox_mode"):
            read_proposals(pickled(path, as_detectron2(bbox_mode=mode)))


def test_a_member_by_name_as_python_3_11_wrote_it(tmp_path):
    member = b"cbuiltins\ngetattr\n(cdetectron2.structures.boxes\nBoxMode\nX\x08\x00\x00\x00XYWH_ABStR"
    data = pickle.dumps(as_detectron2(), 2)
    assert data.endswith(b"u.")
    path = tmp_path / "p.pkl"
    path.write_bytes(data[:-2] + b"X\x09\x00\x00\x00bbox_mode" + member + b"u.")
    assert read_proposals(path)[1].boxes[0].tolist() == [1, 2, 4, 6]
    path.write_bytes(data[:-2] + b"X\x09\x00\x00\x00bbox_mode" + member.replace(b"structures", b"evil") + b"u.")
    with pytest.raises(UserError, match="was not run"):
        read_proposals(path)


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (as_detectron2(ids=[1]), "has 1 ids, 2 arrays of boxes and 2 of objectness_logits"),
        (as_detectron2(ids=[1, "1"]), "has image id 1 twice"),
        (as_detectron2(ids=[1, 2.5]), "has a float as an image id"),
        (as_detectron2(ids=3), "has 'ids' that are no list"),
        ({"boxes": [], "ids": []}, "has no 'objectness_logits'"),
        ([1, 2], "holds a list, where proposals are a dictionary"),
        (
            as_detectron2(boxes=[np.full((2, 4), np.nan), np.ones((1, 4))]),
            "image id 1 has a box or a score that is not",
        ),
        (as_detectron2(boxes=[np.full((2, 4), 1e300), np.ones((1, 4))]), "image id 1 has a box or a score that is not"),
        (as_detectron2(boxes=[np.ones((2, 5)), np.ones((1, 4))]), r"image id 1 has boxes .* of shape \(2, 5\)"),
        (as_detectron2(boxes=[None, np.ones((1, 4))]), "image id 1 has boxes that are object"),
        (as_detectron2(objectness_logits=[np.ones(2), np.ones(3)]), r"image id 2 has .* of shape \(3,\) for 1 boxes"),
        (as_detectron2(objectness_logits=[np.ones(2), np.array([np.inf])]), "image id 2 has .* not finite"),
        (as_detectron2(boxes=[Path("x"), np.ones((1, 4))]), "was not run|image id 1"),
        (as_detectron2(extra=io.UnsupportedOperation()), "asks for io.UnsupportedOperation"),
    ],
)
def test_what_is_wrong_is_told_in_one_line(tmp_path, content, line):
    path = pickled(tmp_path / "p.pkl", content)
    with pytest.raises(UserError, match=line) as error:
        read_proposals(path)
    assert str(error.value).startswith(str(path))
    assert "\n" not in str(error.value)


def test_a_file_that_is_none_or_not_there(tmp_path):
    whole = pickle.dumps(as_detectron2())
    for data in (b"", b"no pickle", whole[:-30], whole[:40]):
        (tmp_path / "p.pkl").write_bytes(data)
        with pytest.raises(UserError, match=r"p\.pkl is "):
            read_proposals(tmp_path / "p.pkl")
    with pytest.raises(UserError, match="No such file"):
        read_proposals(tmp_path / "gone.pkl")
    with pytest.raises(UserError, match="image id 3 has boxes"):
        write_proposals(tmp_path / "new.pkl", {3: (np.ones((2, 3)), np.ones(2))})
    assert not (tmp_path / "new.pkl").exists()


def test_a_file_and_a_data_set_have_to_agree(tmp_path):
    dataset = test_pipeline.dataset()
    given = {record.image_id: (record.boxes, np.ones(len(record.boxes))) for record in dataset.records}
    write_proposals(tmp_path / "p.pkl", given | {5: GIVEN[7]})
    found, lines = proposals.attach_file(dataset, read_proposals(tmp_path / "p.pkl"))
    assert [record.proposals.boxes.tolist() for record in found.records] == [r.boxes.tolist() for r in dataset.records]
    assert lines == [
        f"proposals of {tmp_path / 'p.pkl'}: note: image for which there are none: 1 (image 1010)",
        f"proposals of {tmp_path / 'p.pkl'}: note: image that is not in the data set, left out: 1 (image 5)",
    ]
    far = np.array([[-40, -40, -10, -10]], np.float32)
    wide = np.concatenate([given[1002][0], far, given[1002][0] + [-500, 0, 0, 0]]).astype(np.float32)
    write_proposals(tmp_path / "p.pkl", given | {1002: (wide, np.ones(len(wide)))})
    _, lines = proposals.attach_file(dataset, read_proposals(tmp_path / "p.pkl"))
    assert [line.partition("image of which ")[2] for line in lines[1:]] == [
        "some reach over the border, and are clipped: 1 (image 1002)",
        "some have no area inside it, and are left out: 1 (image 1002)",
    ]
    del given[1002], given[1004]
    write_proposals(tmp_path / "p.pkl", given)
    with pytest.raises(
        UserError, match=r"p\.pkl has no proposals for 2 of 11 images of 'blocks' \(image id 1002, 1004\)"
    ):
        proposals.attach_file(dataset, read_proposals(tmp_path / "p.pkl"))


def test_a_tfds_data_set_takes_a_file(tmp_path):
    dataset = test_pipeline.dataset(3)
    tfds_builders.write({"train": dataset}, tmp_path / "data")
    write_proposals(tmp_path / "data" / "p.pkl", {r.image_id: GIVEN[7] for r in dataset.records})
    config = experiment()
    config.data.update({"kind": "tfds", "root": str(tmp_path / "data"), "train_proposals": "p.pkl"})
    found, lines = sources.load(config, "train")
    # Two of the pictures are smaller than what is proposed for all.
    assert [line.partition(": note: ")[2] for line in lines] == [
        "image of which some reach over the border, and are clipped: 2 (image 1000, 1002)"
    ]
    np.testing.assert_array_equal(found.records[2].proposals.boxes, GIVEN[7][0])


def moved(record):
    """A record whose proposals are its objects, as an example."""
    scores = np.arange(len(record.boxes), 0, -1, np.float32)
    return load_example(replace(record, proposals=Proposals(record.boxes, scores, scores > 0)))


@pytest.mark.parametrize(
    "move",
    [
        lambda example: resize_example(example, (71, 33), "cv2"),
        flip_horizontal,
        lambda example: crop(example, 1, 2, 27, 35),
        lambda example: crop(flip_horizontal(resize_example(example, (71, 33), "cv2")), 3, 1, 65, 30),
    ],
)
def test_proposals_move_as_boxes(move):
    example = move(moved(test_pipeline.record(0, 30, 40, objects=3)))
    assert len(example.boxes) == 3
    np.testing.assert_array_equal(example.proposals.boxes, example.boxes)


def test_proposals_are_clipped_and_empty_ones_dropped():
    boxes = np.array([[-5, -5, 10, 10], [50, 0, 60, 10], [30, 20, 70, 90], [3, 3, 3, 9], [1, 2, 3, 4]], np.float32)
    given = proposals.best_first(boxes)
    found = fit_proposals(given, (30, 40), 4)
    np.testing.assert_array_equal(found.valid, [True, True, True, False])
    np.testing.assert_array_equal(found.boxes, [[0, 0, 10, 10], [30, 20, 40, 30], [1, 2, 3, 4], [0, 0, 0, 0]])
    np.testing.assert_array_equal(found.scores, [5, 3, 1, 0])
    # The best are counted once the empty ones are gone.
    np.testing.assert_array_equal(fit_proposals(given, (30, 40), 2).boxes, found.boxes[:2])


@pytest.mark.parametrize("workers", [0, 1])
def test_batches_bring_proposals_along(workers):
    dataset = proposals.attach_drawn(test_pipeline.dataset(), seed=0)
    settings = test_pipeline.config(num_proposals=(50, 20), num_workers=workers)
    (batch,) = test_pipeline.take(pipeline.train_loader(dataset, settings, seed=0, batch_size=4), 1)
    assert batch.proposals.boxes.shape == (4, 50, 4)
    for row in range(4):
        valid, (height, width) = batch.proposals.valid[row], batch.size[row]
        assert valid[:40].all()
        boxes = batch.proposals.boxes[row][valid]
        assert (boxes >= 0).all()
        assert (boxes <= [width, height, width, height]).all()
        assert (np.diff(batch.proposals.scores[row][valid]) <= 0).all()
    # The last batch of a bucket is filled up with images of none.
    batches = list(pipeline.eval_loader(dataset, settings, 4))
    assert {batch.proposals.scores.shape for batch in batches} == {(4, 20)}
    for batch in batches:
        np.testing.assert_array_equal(batch.proposals.valid.any(axis=1), batch.valid)
    with pytest.raises(UserError, match=r"config\.data\.num_proposals=\(0, 20\)"):
        pipeline.train_loader(dataset, test_pipeline.config(num_proposals=(0, 20)), 0, 1)


def test_drawn_proposals_follow_seed_and_image_and_cover_the_objects():
    records = shapes.load("val", 6, seed=1, size=(64, 64)).records
    first, again, other = (proposals.drawn(records[0], seed) for seed in (1, 1, 2))
    chex.assert_trees_all_equal(first, again)
    assert not np.array_equal(first.boxes, other.boxes)
    for record in records:
        found = proposals.drawn(record, 0)
        for box in record.boxes[~record.crowd]:
            shared = np.minimum(found.boxes[:, 2:], box[2:]) - np.maximum(found.boxes[:, :2], box[:2])
            shared = np.prod(np.maximum(shared, 0), axis=1)
            areas = np.prod(found.boxes[:, 2:] - found.boxes[:, :2], axis=1) + np.prod(box[2:] - box[:2])
            assert (shared / (areas - shared)).max() > 0.5


# Fast R-CNN.


def fast_config():
    config = tiny.model_config()
    config.rpn = config.mask = None
    return config


@pytest.fixture(scope="module")
def model():
    return build(fast_config())


@pytest.fixture(scope="module")
def variables(model):
    return tiny.variables(model)


@pytest.fixture(scope="module")
def loss_and_gradient(model):
    return tiny.loss_and_gradient(model, KEY)


def test_without_proposals_the_model_says_so(loss_and_gradient, variables):
    with pytest.raises(UserError, match="finds no proposals of its own"):
        loss_and_gradient(variables, tiny.batch())


def experiment():
    """The tiny experiment without its RPN and masks."""
    config = test_train.config()
    config.model.rpn = config.model.mask = None
    config.data.num_proposals = (40, 30)
    config.train.update({"steps": 2, "save_every": 2})
    return config


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run on drawn shapes and their own proposals."""
    workdir = tmp_path_factory.mktemp("fast") / "run"
    figures = train(experiment(), workdir, log=lambda line: None)
    assert {name for name in figures if name.endswith("/AP")} == {"box/AP"}
    return workdir


def test_a_run_is_scored_alike_with_the_same_proposals_from_a_file(run, tmp_path):
    config = experiment()
    drawn, _ = sources.load(config, "val")
    given = {r.image_id: (r.proposals.boxes, r.proposals.scores) for r in drawn.records}
    write_proposals(tmp_path / "val.pkl", given)
    config.data.update({"root": str(tmp_path), "val_proposals": "val.pkl"})
    dataset, lines = sources.load(config, "val")
    assert lines == []
    mesh = distributed.make_mesh()
    config.model.num_classes = dataset.num_classes
    network = build(config.model)
    some = tiny.variables(network)
    scored = [Evaluator(network, data, config, mesh)(some, out_dir=tmp_path) for data in (drawn, dataset)]
    assert scored[0] == scored[1]
    assert scored[0]["bbox"].num_detections > 0


def test_a_config_and_its_proposals_have_to_fit(tmp_path):
    config = experiment()
    config.data.update({"kind": "coco", "root": str(tmp_path)})
    shapes_config = test_train.config()
    shapes_config.data.train_proposals = "train.pkl"
    with pytest.raises(UserError, match=r"config\.data\.train_proposals=train\.pkl would not be used"):
        sources.load(shapes_config, "train")
    shapes.write_coco(shapes.load("train", 2, size=(64, 64)), tmp_path, "train")
    with pytest.raises(UserError, match=r"name a file of proposals with --config\.data\.train_proposals=FILE"):
        sources.load(config, "train")
    config.data.train_proposals = "gone.pkl"
    with pytest.raises(UserError, match=r"gone\.pkl: cannot read the proposals"):
        sources.load(config, "train")


@pytest.fixture(scope="module")
def predictor() -> Model:
    config = fast_config()
    config.preprocess.update({"short_side": 64, "max_size": 64, "interpolation": "cv2"})
    config.num_classes = test_evaluate.DATASET.num_classes
    return Model(config, test_evaluate.DATASET.categories, tiny.variables(build(config)), num_proposals=NUM)


def test_predict_takes_proposals_in_pixels_of_the_image(predictor):
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (64, 64, 3)).astype(np.uint8)
    corner = rng.uniform(0, 40, (NUM, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(4, 24, corner.shape)], axis=-1).astype(np.float32)
    (one,) = predictor.predict([small], [boxes])
    assert len(one.boxes) > 0
    # With scores, any order; more than the model looks at, and empty ones, change nothing.
    order = rng.permutation(NUM)
    scores = np.arange(NUM, 0, -1.0)
    more = np.concatenate([boxes[order], [[70, 0, 90, 9]], rng.uniform(0, 64, (5, 4))]).astype(np.float32)
    lower = np.concatenate([scores[order], [99], -np.ones(5)])
    both = predictor.predict([small, small], [(more, lower), np.zeros((0, 4))])
    np.testing.assert_allclose(both[0].boxes, one.boxes, atol=1e-2)
    np.testing.assert_array_equal(both[0].labels, one.labels)
    assert len(both[1].boxes) == 0
    # Twice as large, without a change in what the network sees.
    (large,) = predictor.predict([small.repeat(2, 0).repeat(2, 1)], [boxes * 2])
    assert len(large.boxes) == len(one.boxes)
    np.testing.assert_allclose(large.boxes / 2, one.boxes, atol=0.5)


def test_predict_says_what_is_wrong_with_proposals(predictor):
    image = np.zeros((64, 64, 3), np.uint8)
    for given, line in (
        (None, "pass `proposals`"),
        ([np.ones((1, 4))] * 2, "proposals has 2 entries for 1 images"),
        ([np.ones((1, 5))], r"proposals\[0\] has boxes that are float64 of shape \(1, 5\)"),
        ([(np.ones((1, 4)), np.ones(2))], r"proposals\[0\] has float64 scores of shape \(2,\) for 1 boxes"),
        ([np.full((1, 4), np.nan)], r"proposals\[0\] has a box or a score that is not finite"),
    ):
        with pytest.raises(UserError, match=line):
            predictor.predict([image], given)


def test_the_predict_command_matches_ids_to_names(run, tmp_path, capsys):
    rng = np.random.default_rng(0)
    for name in ("000000000139.png", "b.png"):
        Image.fromarray(rng.integers(0, 256, (48, 64, 3)).astype(np.uint8)).save(tmp_path / name)
    box = np.array([[4, 4, 40, 40]], np.float32), np.ones(1, np.float32)
    write_proposals(tmp_path / "p.pkl", {139: box, "b": box, "c": box})
    arguments = ["predict", f"--checkpoint={run}", str(tmp_path), f"--proposals={tmp_path / 'p.pkl'}"]
    assert main([*arguments, f"--out={tmp_path / 'out'}"]) == 0
    assert "2 images" in capsys.readouterr().out
    write_proposals(tmp_path / "p.pkl", {139: box})
    assert main([*arguments, f"--out={tmp_path / 'out'}"]) == 2
    assert "has no proposals for 1 of 2 images" in capsys.readouterr().err
    write_proposals(tmp_path / "p.pkl", {139: box, "b": box, "0139": box})
    assert main([*arguments, f"--out={tmp_path / 'out'}"]) == 2
    assert "two ids of it are called the same" in capsys.readouterr().err
    assert main([arguments[0], arguments[1], arguments[2], f"--out={tmp_path / 'out'}"]) == 2
    assert "pass `proposals`" in capsys.readouterr().err


def test_the_demo_shows_what_is_found_in_its_proposals(run, capsys):
    demo.run(experiment(), run)
    assert capsys.readouterr().out.splitlines()[-1].startswith("demo: box AP ")
    assert (run / "predictions.png").is_file()
