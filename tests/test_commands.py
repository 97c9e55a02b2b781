"""The commands from end to end on one tiny run, and the same run in Python."""

import json
import math
import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from ml_collections import ConfigDict
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from test_train import STEPS, config

import mrcnn_jax
from mrcnn_jax.checkpoints.params import load_params
from mrcnn_jax.cli import main
from mrcnn_jax.data import shapes, tfds_builders
from mrcnn_jax.data.dataset import Category, Dataset
from mrcnn_jax.data.images import size_of
from mrcnn_jax.errors import UserError
from mrcnn_jax.evaluation.run import Evaluator
from mrcnn_jax.metrics_writer import MetricsWriter
from mrcnn_jax.models import zoo
from mrcnn_jax.types import Detections

EXPERIMENT = "from test_train import config\n\n\ndef get_config(mode):\n    return config().lock()\n"
# Neither dense nor in the order of the classes.
IDS = (7, 3, 90, 12, 13, 1, 44, 5)


@pytest.fixture(scope="module")
def experiment(tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("experiments") / "tiny.py"
    file.write_text(EXPERIMENT)
    return file


@pytest.fixture(scope="module")
def run(experiment, tmp_path_factory) -> Path:
    workdir = tmp_path_factory.mktemp("runs") / "tiny"
    assert main(["train", f"--config={experiment}", f"--workdir={workdir}"]) == 0
    return workdir


@pytest.fixture(scope="module")
def model(run) -> mrcnn_jax.Model:
    return mrcnn_jax.load(run)


@pytest.fixture(scope="module")
def drawn() -> dict[str, Dataset]:
    """The images of the tiny run as a data set with ids of its own."""
    data, found = config().data, {}
    for split, count in (("train", data.num_train), ("val", data.num_val)):
        dataset = shapes.load(split, count, seed=0, size=(64, 64))
        categories = tuple(replace(c, id=number) for c, number in zip(dataset.categories, IDS, strict=True))
        found[split] = replace(dataset, categories=categories)
    return found


def figures(path: Path) -> dict:
    return {kind: part["figures"] for kind, part in json.loads(path.read_text()).items()}


def noise(seed: int, height: int, width: int) -> np.ndarray:
    """Coarse blots, which an untrained network sees as different objects."""
    blots = np.random.default_rng(seed).integers(0, 255, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(blots).resize((width, height)))


def test_eval_gives_the_figures_of_the_runs_end(run, tmp_path, capsys):
    expected = figures(run / "metrics.json")
    for source in (f"--workdir={run}", f"--checkpoint={run / 'checkpoints' / str(STEPS)}"):
        assert main(["eval", source, f"--json={tmp_path / 'figures.json'}"]) == 0
        assert figures(tmp_path / "figures.json") == expected
    told = capsys.readouterr().out
    assert "bbox: 4 images" in told
    assert "AP of each class" in told
    last = (run / "metrics.csv").read_text().splitlines()[-1].split(",")
    assert repr(expected["bbox"]["AP"]) in last


def test_a_run_that_is_stopped_twice_ends_in_the_same_bits(experiment, run, monkeypatch, capfd, tmp_path):
    """By Ctrl-C in the evaluation after step 2, and by SIGTERM, in a process of its own, in the middle of step 4."""
    workdir = tmp_path / "run"
    # No checkpoint but those of the interruptions and of the end.
    arguments = ["train", f"--config={experiment}", f"--workdir={workdir}", "--config.train.save_every=100"]
    told = "mrcnn: stopped at step {}, saved in {}: run the same command to go on"

    with monkeypatch.context() as patch:
        patch.setattr(Evaluator, "__call__", lambda *_, **__: signal.raise_signal(signal.SIGINT))
        assert main([*arguments, "--config.train.eval_every=2"]) == 130
    assert capfd.readouterr().err.splitlines()[-1] == told.format(2, workdir)
    assert steps_saved(workdir) == {"2"}

    here = Path(__file__).parent
    code = (
        "import sys; sys.path[:0] = sys.argv[1:3]; import conftest, test_commands, signal\n"
        "from mrcnn_jax.cli import main\n"
        "test_commands.interrupt_at(4, signal.SIGTERM)\n"
        "sys.exit(main(sys.argv[3:]))"
    )
    # The process makes its own devices, as many as there are here: the same bits need the same number.
    devices = f"--config.train.cpu_devices={jax.device_count()}"
    process = [sys.executable, "-c", code, str(here), str(here.parent), *arguments, devices]
    done = subprocess.run(process, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.splitlines()[-1]) == (143, told.format(4, workdir))
    assert "resumed from step 2" in done.stdout
    assert steps_saved(workdir) == {"2", "4"}

    assert main(arguments) == 0
    expected, stats, _ = load_params(run)
    params, stats_now, _ = load_params(workdir)
    jax.tree.map(np.testing.assert_array_equal, (params, stats_now), (expected, stats))
    assert figures(workdir / "metrics.json") == figures(run / "metrics.json")


def interrupt_at(number: int, what: signal.Signals) -> None:
    """Makes this process send itself a signal while the loop writes what it logs of a step."""
    write = MetricsWriter.write

    def interrupted(self, step, values):
        write(self, step, values)
        if step == number:
            signal.raise_signal(what)

    MetricsWriter.write = interrupted


def steps_saved(workdir: Path) -> set[str]:
    return {path.name for path in (workdir / "checkpoints").iterdir()}


def test_demo_ends_with_its_line_on_fewer_images_than_it_would_draw(experiment, run, capsys):
    before = figures(run / "metrics.json")
    assert main(["demo", f"--config={experiment}", f"--workdir={run}"]) == 0
    line = capsys.readouterr().out.splitlines()[-1]
    box, mask = before["bbox"]["AP"], before["segm"]["AP"]
    assert line.startswith(f"demo: box AP {box:.3f}  mask AP {mask:.3f}  images 4  training ")
    assert line.endswith(" min")
    # Six cells of 420 pixels and a gap in each of two rows: four images annotated, and as predicted.
    assert size_of(run / "predictions.png")[1] == 6 * 432 + 12
    assert (run / "curves.png").is_file()


@pytest.fixture(scope="module")
def photographs(tmp_path_factory) -> Path:
    """Two folders with every kind of file, and a name in common."""
    folder = tmp_path_factory.mktemp("images")
    for name in ("one", "two"):
        (folder / name).mkdir()
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.fromarray(noise(0, 40, 60)).save(folder / "one" / "a.png")
    Image.fromarray(noise(1, 60, 40)).convert("L").save(folder / "one" / "grey.jpg")
    Image.fromarray(noise(2, 50, 50)).convert("CMYK").save(folder / "one" / "print.JPG")
    Image.fromarray(noise(3, 30, 70)).save(folder / "two" / "a.jpg", exif=turned)
    (folder / "two" / "notes.txt").write_text("no image")
    return folder


def test_predict_writes_overlays_and_coco_results(run, photographs, tmp_path, capsys):
    arguments = [str(photographs / "one"), str(photographs / "two"), f"--out={tmp_path / 'out'}"]
    assert main(["predict", f"--checkpoint={run}", *arguments, "--threshold=0"]) == 0
    assert "4 images" in capsys.readouterr().out
    overlays = sorted(path.name for path in (tmp_path / "out").glob("*.png"))
    assert overlays == ["a-1.png", "a-4.png", "grey.png", "print.png"]
    # Put upright by its EXIF tag, and enlarged four times to be legible.
    assert size_of(tmp_path / "out" / "a-4.png") == (70 * 4, 30 * 4)

    entries = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert {(e["image_id"], e["file_name"]) for e in entries} <= {
        (1, "a.png"), (2, "grey.jpg"), (3, "print.JPG"), (4, "a.jpg"),
    }  # fmt: skip
    assert {e["image_id"] for e in entries} == {1, 2, 3, 4}
    sizes = {1: (40, 60), 2: (60, 40), 3: (50, 50), 4: (70, 30)}
    categories = [{"id": i + 1, "name": name} for i, name in enumerate(mrcnn_jax.load(run).classes)]
    truth = {
        "images": [{"id": i, "height": h, "width": w} for i, (h, w) in sizes.items()],
        "categories": categories,
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 2, "bbox": [4, 4, 9, 9], "area": 81, "iscrowd": 0,
             "segmentation": [[4, 4, 13, 4, 13, 13, 4, 13]]}
        ],
    }  # fmt: skip
    (tmp_path / "gt.json").write_text(json.dumps(truth))
    for entry in entries:
        x, y, w, h = entry["bbox"]
        height, width = sizes[entry["image_id"]]
        assert 0 <= x < x + w <= width + 1e-4
        assert 0 <= y < y + h <= height + 1e-4
        assert entry["segmentation"]["size"] == [height, width]
    results = COCO(str(tmp_path / "gt.json")).loadRes(str(tmp_path / "out" / "predictions.json"))
    assert len(results.getAnnIds()) == len(entries)
    capsys.readouterr()
    for kind in ("bbox", "segm"):
        files = [f"--gt={tmp_path / 'gt.json'}", f"--dt={tmp_path / 'out' / 'predictions.json'}"]
        assert main(["score", *files, f"--type={kind}"]) == 0
        assert json.loads(capsys.readouterr().out)["num_detections"] == len(entries)


def test_predict_does_the_others_where_some_cannot_be_read(run, photographs, tmp_path, capsys):
    images = tmp_path / "images"
    (images / "empty").mkdir(parents=True)
    for name in ("a.png", "z.png"):
        (images / name).write_bytes((photographs / "one" / "a.png").read_bytes())
    whole = (photographs / "two" / "a.jpg").read_bytes()
    (images / "cut.jpg").write_bytes(whole[:-99])
    (images / "text.jpg").write_text("no image")
    (images / "zero.png").write_bytes(b"")
    out, bad = tmp_path / "out", [images / "gone.jpg", images / "empty"]
    assert main(["predict", f"--checkpoint={run}", *map(str, [*bad, images]), f"--out={out}", "--threshold=0"]) == 2
    told = capsys.readouterr()
    assert told.err.startswith("mrcnn: error: 5 of 7 images and folders could not be read: ")
    assert told.err.count("\n") == 1
    for name, reason in (
        ("empty", "no image in this folder"),
        ("gone.jpg", "No such file"),
        ("cut.jpg", "damaged or cut short"),
        ("text.jpg", "not an image"),
        ("zero.png", "not an image"),
    ):
        assert re.search(rf"{name}: [^;]*{reason}", told.err), name
    assert "2 images, " in told.out
    assert sorted(path.name for path in out.iterdir()) == ["a.png", "predictions.json", "z.png"]
    entries = json.loads((out / "predictions.json").read_text())
    found = {name: [e["bbox"] for e in entries if e["file_name"] == name] for name in ("a.png", "z.png")}
    assert len(found["a.png"]) > 0
    assert found["a.png"] == found["z.png"]
    assert len(entries) == 2 * len(found["a.png"])


def test_predict_tells_the_first_of_many_that_cannot_be_read(run, tmp_path, capsys):
    for number in range(30):
        (tmp_path / f"{number:02}.png").write_bytes(b"")
    assert main(["predict", f"--checkpoint={run}", str(tmp_path), f"--out={tmp_path / 'out'}"]) == 2
    told = capsys.readouterr().err
    assert told.startswith("mrcnn: error: 30 of 30 images and folders could not be read: ")
    assert told.endswith("; and 20 more\n")
    assert json.loads((tmp_path / "out" / "predictions.json").read_text()) == []


def test_images_together_give_what_they_give_alone(model, tmp_path):
    sizes = [(40, 60), (64, 64), (60, 40), (30, 90), (90, 31), (200, 260), (17, 33)]
    images = [noise(i, *size) for i, size in enumerate(sizes)]
    Image.fromarray(images[2]).save(tmp_path / "2.png")
    images[2] = tmp_path / "2.png"
    alone = [model.predict([image])[0] for image in images]
    together = model.predict(images)
    for size, one, many in zip(sizes, alone, together, strict=True):
        assert len(one.boxes) > 0
        assert one.masks.shape == (len(one.boxes), *size)
        assert (np.diff(one.scores) <= 0).all()
        np.testing.assert_allclose(many.boxes, one.boxes, atol=1e-3)
        np.testing.assert_allclose(many.scores, one.scores, atol=1e-5)
        np.testing.assert_array_equal(many.labels, one.labels)
        assert (many.masks != one.masks).mean() < 1e-3


def test_a_score_threshold_leaves_out_what_is_below_it(model):
    image = noise(0, 40, 60)
    whole = model.predict([image])[0]
    threshold = float(np.median(whole.scores))
    part = model.predict([image], score_threshold=threshold)[0]
    keep = whole.scores >= threshold
    assert 0 < keep.sum() < len(keep)
    for name in ("boxes", "scores", "labels", "category_ids", "masks"):
        np.testing.assert_array_equal(getattr(part, name), getattr(whole, name)[keep])
    nothing = model.predict([image], score_threshold=1.0)[0]
    assert nothing.boxes.shape == (0, 4)
    assert nothing.masks.shape == (0, 40, 60)


class Finder(mrcnn_jax.Model):
    """Finds the one white rectangle of an image; the score is a hundredth of the short side that the image got."""

    def detect(self, params, batch):
        self.traced.append(batch.image.shape)
        white = (batch.image > 127).all(axis=-1)

        def extent(lines):
            return jnp.argmax(lines, axis=1), lines.shape[1] - jnp.argmax(lines[:, ::-1], axis=1)

        (top, bottom), (left, right) = extent(white.any(axis=2)), extent(white.any(axis=1))
        boxes = jnp.stack([left, top, right, bottom], axis=-1).astype(jnp.float32)
        return Detections(
            boxes=boxes[:, None],
            scores=batch.size.min(axis=1).astype(jnp.float32)[:, None] / 100,
            classes=jnp.ones((len(boxes), 1), jnp.int32),
            valid=batch.valid[:, None],
        )


@pytest.fixture
def finder() -> Finder:
    config = zoo.mask_rcnn()
    config.preprocess.update({"short_side": 64, "max_size": 96})
    finder = Finder(config, (Category(7, "white"),), params={})
    finder.traced = []
    return finder


def with_rectangle(height: int, width: int) -> tuple[np.ndarray, list[int]]:
    """A black image, and where in it there is a white rectangle."""
    image, box = np.zeros((height, width, 3), np.uint8), [width // 4, height // 4, width - width // 4, height]
    image[box[1] : box[3], box[0] : box[2]] = 255
    return image, box


SIZES = [(48, 64), (64, 48), (64, 64), (20, 200), (200, 20), (9, 16), (600, 900), (70, 71)]


@pytest.mark.parametrize(
    ("asked", "shapes", "short_side"),
    [
        ({}, {(64, 96), (96, 64)}, 64),
        ({"min_size": 32}, {(32, 96), (96, 32)}, 32),
        ({"max_size": 64}, {(64, 64)}, 48),
        ({"min_size": 100, "max_size": 200}, {(128, 224), (224, 128)}, 100),
    ],
)
def test_sizes_change_the_resize_and_results_are_in_pixels_of_the_image(finder, tmp_path, asked, shapes, short_side):
    images, boxes = zip(*(with_rectangle(*size) for size in SIZES), strict=True)
    grey = tmp_path / "grey.png"
    Image.fromarray(images[0]).convert("L").save(grey)
    for _ in range(2):
        results = finder.predict([*images, grey], **asked)
    for size, box, result in zip([*SIZES, SIZES[0]], [*boxes, boxes[0]], results, strict=True):
        # A resized pixel is up to this many of the image's own.
        np.testing.assert_allclose(result.boxes, [box], atol=max(1, max(size) / 64))
        assert result.category_ids.tolist() == [7]
    # 48 x 64 gets its short side, unless its long side is at the limit before.
    assert results[0].scores == pytest.approx(short_side / 100)
    assert results[-1].scores == pytest.approx(short_side / 100)
    assert {shape[1:3] for shape in finder.traced} == shapes


def test_any_number_of_sizes_compiles_twice_and_twice_more_for_single_images(finder):
    images = [with_rectangle(*size)[0] for size in SIZES]
    finder.predict(images)
    finder.predict(images[::-1] * 3)
    assert len(finder.traced) == 2
    for image in images:
        finder.predict([image])
    assert len(finder.traced) == len(set(finder.traced)) == 4


@pytest.mark.parametrize("asked", [{"min_size": 0}, {"max_size": -5}, {"batch_size": 0}])
def test_sizes_that_cannot_be_are_refused_by_name(finder, asked):
    ((name, value),) = asked.items()
    with pytest.raises(UserError, match=f"{name}={value}: give 1 or more"):
        finder.predict([np.zeros((9, 9, 3), np.uint8)], **asked)


def test_load_takes_overrides(run):
    model = mrcnn_jax.load(run, {"box.score_threshold": 0.9, "box.max_detections": 3})
    assert (model.config.box.score_threshold, model.config.box.max_detections) == (0.9, 3)
    for key, value, line in (
        ("box.score_treshold", 0.5, "there is no config.box.score_treshold: did you mean box.score_threshold?"),
        ("box", 3, "config.box is a group: set one of its keys"),
        ("box.max_detections", "many", "config.box.max_detections='many' is not a whole number, such as 20"),
        ("mask.paste", 3, "config.mask.paste=3 is not a text, such as detectron2"),
    ):
        with pytest.raises(UserError) as error:
            mrcnn_jax.load(run, {key: value})
        assert str(error.value).startswith(line)


def test_create_gives_the_architecture_alone():
    model = mrcnn_jax.create("mask_rcnn_r50_fpn", num_classes=80)
    assert len(model.classes) == 80
    # Nothing is computed: shapes alone.
    batch = tiny.batch(num_images=2)
    params = jax.eval_shape(model.init, jax.random.key(0))
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params["params"])) == 44_343_216
    losses, watched = jax.eval_shape(model.losses, params, batch, jax.random.key(1))
    assert set(losses) == {"rpn_objectness", "rpn_box", "box_class", "box_regression", "mask"}
    assert all(leaf.shape == () for leaf in jax.tree.leaves((losses, watched)))
    # Out of their container, which in tests is checked to hold arrays: what `eval_shape` returns are shapes.
    found = jax.eval_shape(lambda params, batch: vars(model.detect(params, batch)), params, batch)
    assert found["boxes"].shape == (2, 100, 4)
    assert found["masks"].shape == (2, 100, 28, 28)
    with pytest.raises(UserError, match="no weights: use mrcnn_jax"):
        model.predict([noise(0, 9, 9)])


def test_create_takes_overrides_and_refuses_what_does_not_exist():
    model = mrcnn_jax.create("mask_rcnn_r18_fpn", num_classes=3, **{"box.beta": 0.5})
    assert (model.config.num_classes, model.config.box.beta) == (3, 0.5)
    for arguments, line in (
        ({"name": "mask_rcnn_r51_fpn", "num_classes": 3}, "no architecture named 'mask_rcnn_r51_fpn'"),
        ({"name": "mask_rcnn_r50_fpn", "num_classes": 0}, "num_classes=0: give 1 or more"),
        ({"name": "mask_rcnn_r50_fpn", "num_classes": 3, "box.bta": 0.5}, "there is no config.box.bta"),
    ):
        with pytest.raises(UserError, match=line):
            mrcnn_jax.create(**arguments)


def trained(experiment: Path, workdir: Path, kind: str, root: Path) -> ConfigDict:
    data = [f"--config.data.kind={kind}", f"--config.data.root={root}", "--config.train.steps=2"]
    assert main(["train", f"--config={experiment}", f"--workdir={workdir}", *data]) == 0
    return json.loads((workdir / "metadata.json").read_text())


def scored(truth: Path, workdir: Path, capsys) -> dict:
    """What `mrcnn score` gives for each kind of results that evaluation has left in a run's folder."""
    found = {}
    for kind in ("bbox", "segm"):
        capsys.readouterr()
        results = workdir / f"predictions_{kind}.json"
        assert main(["score", f"--gt={truth}", f"--dt={results}", f"--type={kind}"]) == 0
        found[kind] = json.loads(capsys.readouterr().out)["figures"]
    return found


def with_objects_of(truth: Path, workdir: Path) -> dict:
    """Ground truth in which every third detection of a run is an object; without those whose mask is empty."""
    boxes, masks = (json.loads((workdir / f"predictions_{kind}.json").read_text()) for kind in ("bbox", "segm"))
    annotations = []
    for number, (found, of_mask) in enumerate(zip(boxes[::3], masks[::3], strict=True), 1):
        mask = of_mask["segmentation"]
        kept = {key: found[key] for key in ("image_id", "category_id", "bbox")} | {"segmentation": mask}
        if area := int(coco_mask.area(mask)):
            annotations.append({"id": number, "area": area, "iscrowd": 0, **kept})
    return json.loads(truth.read_text()) | {"annotations": annotations}


def test_a_folder_with_coco_annotations_keeps_its_ids(experiment, drawn, tmp_path, capsys):
    for split, dataset in drawn.items():
        shapes.write_coco(dataset, tmp_path / "data", split)
    assert (
        main(["check", f"--config={experiment}", "--config.data.kind=coco", f"--config.data.root={tmp_path / 'data'}"])
        == 0
    )
    assert "star" in capsys.readouterr().out
    metadata = trained(experiment, tmp_path / "run", "coco", tmp_path / "data")
    # Classes in order of their ids, each with its own name.
    assert [c["id"] for c in metadata["categories"]] == sorted(IDS)
    assert {c["id"]: c["name"] for c in metadata["categories"]} == {c.id: c.name for c in drawn["val"].categories}
    results = json.loads((tmp_path / "run" / "predictions_bbox.json").read_text())
    assert {r["category_id"] for r in results} <= set(IDS)
    assert {r["image_id"] for r in results} <= {1, 2, 3, 4}
    # What training has left is scored alike by itself, against the very file that the run was scored on.
    truth = tmp_path / "data" / "annotations" / "instances_val.json"
    assert scored(truth, tmp_path / "run", capsys) == figures(tmp_path / "run" / "metrics.json")
    # So few steps find nothing that is right. Where some of it is made the truth, the figures are not all zero.
    echo = truth.with_name("echo.json")
    echo.write_text(json.dumps(with_objects_of(truth, tmp_path / "run")))
    other = [f"--config={experiment}", "--config.data.kind=coco", f"--config.data.root={tmp_path / 'data'}",
             "--config.data.val_images=val", "--config.data.val_annotations=annotations/echo.json"]  # fmt: skip
    assert main(["eval", f"--workdir={tmp_path / 'run'}", *other]) == 0
    found = figures(tmp_path / "run" / "metrics.json")
    assert min(found["bbox"]["AP"], found["segm"]["AP"]) > 0.1
    assert scored(echo, tmp_path / "run", capsys) == found
    model = mrcnn_jax.load(tmp_path / "run")
    result = model.predict([drawn["val"].records[0].image()])[0]
    np.testing.assert_array_equal(result.category_ids, np.array(sorted(IDS))[result.labels])


def test_a_tfds_data_set_trains_alike(experiment, drawn, tmp_path):
    tfds_builders.write(drawn, tmp_path / "data")
    metadata = trained(experiment, tmp_path / "run", "tfds", tmp_path / "data")
    assert [c["id"] for c in metadata["categories"]] == list(IDS)
    results = json.loads((tmp_path / "run" / "predictions_bbox.json").read_text())
    assert {r["category_id"] for r in results} <= set(IDS)
    assert math.isfinite(figures(tmp_path / "run" / "metrics.json")["segm"]["AP"])
