"""The commands from end to end on one tiny run, and the same run in Python."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image
from pycocotools.coco import COCO
from test_train import STEPS, config

import mrcnn_jax
from mrcnn_jax.cli import main
from mrcnn_jax.data import shapes, tfds_builders
from mrcnn_jax.data.dataset import Dataset
from mrcnn_jax.data.images import size_of
from mrcnn_jax.errors import UserError

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


def test_predict_does_the_other_images_where_one_cannot_be_read(run, photographs, tmp_path, capsys):
    for name in ("a.png", "c.png"):
        (tmp_path / name).write_bytes((photographs / "one" / "a.png").read_bytes())
    whole = (photographs / "two" / "a.jpg").read_bytes()
    (tmp_path / "b.jpg").write_bytes(whole[: len(whole) // 2])
    assert main(["predict", f"--checkpoint={run}", str(tmp_path), f"--out={tmp_path / 'out'}"]) == 2
    told = capsys.readouterr().err
    assert told.startswith("mrcnn: error: 1 of 3 images could not be read; the first: ")
    assert "b.jpg" in told
    assert told.count("\n") == 1
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.png", "c.png", "predictions.json"]
    assert {e["image_id"] for e in json.loads((tmp_path / "out" / "predictions.json").read_text())} == {1, 3}


def test_images_together_give_what_they_give_alone(model, monkeypatch, tmp_path):
    detect, traced = mrcnn_jax.Model.detect, []

    def counted(self, params, batch):
        traced.append(batch.image.shape)
        return detect(self, params, batch)

    monkeypatch.setattr(mrcnn_jax.Model, "detect", counted)
    sizes = [(40, 60), (64, 64), (60, 40), (30, 90), (90, 31), (200, 260), (17, 33)]
    images = [noise(i, *size) for i, size in enumerate(sizes)]
    Image.fromarray(images[2]).save(tmp_path / "2.png")
    images[2] = tmp_path / "2.png"
    alone = [model.predict([image])[0] for image in images]
    together = model.predict(images)
    again = model.predict([noise(9, 50, 70), noise(10, 70, 41), *images[:5]])
    # Landscape and portrait, one image and many: with any number of sizes there are no more.
    assert len(traced) == len(set(traced)) <= 4
    for size, one, many, more in zip(sizes, alone, together, [*again[2:], None, None], strict=True):
        assert len(one.boxes) > 0
        assert one.masks.shape == (len(one.boxes), *size)
        assert (np.diff(one.scores) <= 0).all()
        for other in (many, more) if more else (many,):
            np.testing.assert_allclose(other.boxes, one.boxes, atol=1e-3)
            np.testing.assert_allclose(other.scores, one.scores, atol=1e-5)
            np.testing.assert_array_equal(other.labels, one.labels)
            assert (other.masks != one.masks).mean() < 1e-3


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


def trained(experiment: Path, workdir: Path, kind: str, root: Path) -> ConfigDict:
    data = [f"--config.data.kind={kind}", f"--config.data.root={root}", "--config.train.steps=2"]
    assert main(["train", f"--config={experiment}", f"--workdir={workdir}", *data]) == 0
    return json.loads((workdir / "metadata.json").read_text())


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
    before = figures(tmp_path / "run" / "metrics.json")
    assert main(["eval", f"--workdir={tmp_path / 'run'}"]) == 0
    assert figures(tmp_path / "run" / "metrics.json") == before
    # The file is as good a ground truth as our own.
    truth = tmp_path / "data" / "annotations" / "instances_val.json"
    capsys.readouterr()
    assert main(["score", f"--gt={truth}", f"--dt={tmp_path / 'run' / 'predictions_segm.json'}", "--type=segm"]) == 0
    assert json.loads(capsys.readouterr().out)["figures"] == pytest.approx(before["segm"], abs=1e-12)
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
