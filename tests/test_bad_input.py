"""What goes wrong is told in one line that names the culprit and the remedy; the exit status is 2; nothing is lost."""

import errno
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from coco_json import HEIGHT, WIDTH, annotation, sound, write_images
from PIL import Image
from test_commands import EXPERIMENT

from mrcnn_jax.checkpoints import state
from mrcnn_jax.checkpoints.params import load_params
from mrcnn_jax.cli import main
from mrcnn_jax.config_files import load_config
from mrcnn_jax.data import sources

STEPS = 2


@pytest.fixture(scope="module")
def experiment(tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("experiments") / "tiny.py"
    file.write_text(EXPERIMENT)
    return file


@pytest.fixture(scope="module")
def finished(experiment, tmp_path_factory) -> Path:
    workdir = tmp_path_factory.mktemp("runs") / "finished"
    assert main(["train", f"--config={experiment}", f"--workdir={workdir}", f"--config.train.steps={STEPS}"]) == 0
    return workdir


@pytest.fixture
def run(finished, tmp_path) -> Path:
    """A run of its own, to go on with."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


@pytest.fixture
def data(tmp_path) -> Path:
    """A sound folder: two images, and their annotations for training and for validation."""
    folder = tmp_path / "data"
    folder.mkdir()
    write_images(folder)
    for name in ("train.json", "val.json"):
        (folder / name).write_text(json.dumps(sound()))
    return folder


def with_data(folder: Path) -> list[str]:
    return ["--config.data.kind=coco", f"--config.data.root={folder}"]


def change(folder: Path, edit, name: str = "train.json") -> None:
    content = sound()
    edit(content)
    (folder / name).write_text(json.dumps(content))


@pytest.fixture
def refused(capsys):
    """Runs a command that has to fail with one line, in which all the words are."""

    def run(arguments: list[str], *words: str, status: int = 2) -> None:
        capsys.readouterr()
        assert main([str(argument) for argument in arguments]) == status
        told = capsys.readouterr().err
        assert told.startswith("mrcnn: error: ")
        assert told.count("\n") == 1, told
        assert "unexpected" not in told
        for word in words:
            assert word in told

    return run


NOT_COCO = {
    "empty": ("", "not JSON", "export it again"),
    "cut": ('{"images": [{"id": 1', "not JSON", "export it again"),
    "bytes": (b"\xff\xd8\xff\xe0", "not JSON", "export it again"),
    "results": ("[]", "a list, as results are", "images, annotations, categories"),
    "text": ('"coco"', "not COCO annotations", "export"),
    "via": ('{"file.jpg123": {"regions": []}}', "no 'images'", "file.jpg123", "export it again"),
    "captions": ('{"images": [{"id": 1}], "annotations": []}', "no 'categories'", "export it again"),
    "dictionary": ('{"images": {}, "annotations": [], "categories": []}', "'images' is not a list", "export it again"),
    "no_images": ('{"images": [], "annotations": [], "categories": [{"id": 1}]}', "'images' is empty"),
    "panoptic": (
        '{"images": [{"id": 1}], "annotations": [{"segments_info": []}], "categories": [{"id": 1}]}',
        "a panoptic file", "take the instances file",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", NOT_COCO)
def test_a_json_that_is_not_coco(experiment, data, refused, tmp_path, case):
    text, *words = NOT_COCO[case]
    (data / "train.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    workdir = tmp_path / "run"
    refused(["train", f"--config={experiment}", f"--workdir={workdir}", *with_data(data)], "train.json", *words)
    assert not workdir.exists()
    arguments = [*with_data(data), f"--config.data.train_annotations={case}.json"]
    words = [f"{case}.json", "No such file", "check the path"]
    refused(["train", f"--config={experiment}", f"--workdir={workdir}", *arguments], *words)


def no_file(content):
    content["images"][0]["file_name"] = "gone.png"


def undeclared_category(content):
    content["annotations"][0]["category_id"] = 99


def undeclared_image(content):
    content["annotations"][0]["image_id"] = 99


def two_images_of_one_id(content):
    content["images"][1]["id"] = 1


def two_names_of_one_id(content):
    content["categories"].append({"id": 3, "name": "cow"})


def corners_for_boxes(content):
    for entry in content["annotations"]:
        entry["bbox"] = [20, 15, 30, 25]


def mask_of_another_image(content):
    content["annotations"][0]["segmentation"] = {"size": [4, 4], "counts": [16]}


STOPS = {
    no_file: ("not on disk", "1 gone.png", "fetch it or take it out"),
    undeclared_category: ("category_id that no category has", "annotation 1", "is it the right file?"),
    undeclared_image: ("image_id that no image has", "annotation 1", "is it the right file?"),
    two_images_of_one_id: ("image id used for two files, number them anew", "image 1"),
    two_names_of_one_id: ("category id with two names, correct one", "category 3"),
    corners_for_boxes: ("COCO wants x, y, width, height; convert them", "annotation 1, 2"),
    mask_of_another_image: ("RLE mask whose size is not the image's", "annotation 1", "export it again"),
}


@pytest.mark.parametrize("edit", STOPS, ids=lambda edit: edit.__name__)
def test_annotations_that_stop_a_run(experiment, data, refused, capsys, tmp_path, edit):
    change(data, edit)
    arguments = [f"--config={experiment}", *with_data(data)]
    refused(["train", *arguments, f"--workdir={tmp_path / 'run'}"], "train.json", *STOPS[edit])
    assert main(["check", *arguments]) == 1
    told = capsys.readouterr().out
    assert all(word in told for word in STOPS[edit])


def outside(content):
    content["annotations"].append(annotation(5, bbox=[WIDTH + 3, 5, 9, 9]))


def half_outside(content):
    content["annotations"].append(annotation(5, bbox=[WIDTH - 5, HEIGHT - 5, 9, 9]))


def without_area(content):
    content["annotations"].append(annotation(5, bbox=[5, 5, 0, 9]))


def two_points(content):
    content["annotations"].append(annotation(5, segmentation=[[5, 5, 5, 9], [1, 2]]))


def one_unknown_category_in_many(content):
    content["annotations"] += [annotation(n) for n in range(10, 40)] + [annotation(5, category_id=99)]


def one_id_twice(content):
    content["annotations"].append(annotation(2))


MENDED = {
    outside: "box outside the image, dropped: 1 (annotation 5)",
    half_outside: "box reaches more than a pixel outside the image, clipped: 1 (annotation 5)",
    without_area: "box without area, dropped: 1 (annotation 5)",
    two_points: "polygon of fewer than three points, part dropped: 1 (annotation 5)",
    one_unknown_category_in_many: "category_id that no category has, annotation dropped: 1 (annotation 5)",
    one_id_twice: "annotation id used twice, all renumbered from 1: 1 (annotation 2)",
}


@pytest.mark.parametrize("edit", MENDED, ids=lambda edit: edit.__name__)
def test_annotations_that_are_mended_are_told_by_id(experiment, data, capsys, edit):
    change(data, edit)
    assert main(["check", f"--config={experiment}", *with_data(data)]) == 1
    assert f"warning: {MENDED[edit]}" in capsys.readouterr().out
    # What a run prints first of all.
    config = load_config(str(experiment), [f"data.root={data}", "data.kind=coco"])
    assert f"warning: {MENDED[edit]}" in sources.load(config, "train")[1]


def test_a_sound_folder_passes_the_check(experiment, data, capsys, tmp_path):
    (data / "val").mkdir()
    Image.new("RGB", (WIDTH, HEIGHT), "red").save(data / "val" / "a.png")
    Image.new("RGB", (WIDTH, HEIGHT), "blue").save(data / "val" / "b.png")
    Image.new("RGB", (WIDTH, HEIGHT), "green").save(data / "images" / "b.png")
    arguments = ["check", f"--config={experiment}", *with_data(data), f"--json={tmp_path / 'new' / 'found.json'}"]
    assert main(arguments) == 0
    assert capsys.readouterr().out.count("0 kinds of error, 0 of warning") == 2
    assert set(json.loads((tmp_path / "new" / "found.json").read_text())) == {"train", "val"}
    (data / "val" / "a.png").write_bytes((data / "images" / "a.png").read_bytes())
    assert main(arguments) == 1
    assert "picture of train in val, which flatters figures; use other pictures" in capsys.readouterr().out


def test_no_validation_set(experiment, data, refused, capsys, tmp_path):
    (data / "val.json").unlink()
    words = ("no COCO annotations for val", "set config.data.val_annotations", "to those of training")
    refused(["train", f"--config={experiment}", f"--workdir={tmp_path / 'run'}", *with_data(data)], *words)
    assert main(["check", f"--config={experiment}", *with_data(data)]) == 1
    told = capsys.readouterr().out
    assert "2 images, 2 objects, 2 classes" in told
    assert all(word in told for word in words)


def test_a_class_that_only_validation_has(experiment, data, refused, tmp_path):
    change(data, lambda content: content["categories"][1].update(name="cow"), "val.json")
    refused(["train", f"--config={experiment}", f"--workdir={tmp_path / 'run'}", *with_data(data)],
            "val.json", "cow", "cat, dog", "rename or remove it")  # fmt: skip


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["data.kind=coco"], ["config.data.root is empty", "--config.data.root=DIR"]),
        (["data.kind=coco", "data.root=/nowhere"], ["config.data.root=/nowhere is not a folder"]),
        (["data.kind=tfds", "data.root=tests"], ["no TFDS data set", "dataset_info.json"]),
        (["data.kind=voc", "data.root=tests"], ["tests: neither it nor a folder in it has ImageSets", "VOCdevkit"]),
        (["data.kind=pascal"], ["config.data.kind='pascal'", "'coco', 'voc', 'cityscapes', 'tfds' or 'shapes'"]),
        (["eval.metric=voc"], ["config.eval.metric='voc'", "'voc12' or 'cityscapes'"]),
        (["train.batch_size=3"], ["config.train.batch_size=3 does not divide over", "devices", "use a multiple of"]),
        (["train.batch_size=0"], ["config.train.batch_size=0: give 1 or more"]),
        (["train.steps=-3"], ["config.train.steps=-3: give 1 or more"]),
        (["seed=None"], ["config.seed=None: give 0 or more"]),
        (["seed=-1"], ["config.seed=-1: give 0 or more"]),
        (["train.log_every=None"], ["config.train.log_every=None: give 1 or more"]),
        (["train.stepz=3"], ["config.train.stepz", "did you mean train.steps?"]),
        (["train.steps=many"], ["config.train.steps=many", "a whole number, such as 6"]),
        (["train.init=gone.npz"], ["config.train.init=gone.npz does not exist", "leave it empty"]),
        (["optimizer.name=adam"], ["optimizer.name is 'adam'", "'sgd' or 'adamw'"]),
        (["data.mask_size=30"], ["config.data.mask_size=30", "multiple of 8"]),
    ],
)  # fmt: skip
def test_a_config_that_cannot_be_used(experiment, refused, tmp_path, overrides, words):
    arguments = [f"--config.{override}" for override in overrides]
    refused(["train", f"--config={experiment}", f"--workdir={tmp_path / 'run'}", *arguments], *words)


def test_an_experiment_that_cannot_be_used(refused, tmp_path):
    workdir = f"--workdir={tmp_path / 'run'}"
    refused(["train", "--config=experiments/shaps.py", workdir], "experiments/shaps.py", "did you mean shapes.py?")
    refused(["train", "--config=experiments/shapes.py:smok", workdir], "unknown mode 'smok'", "'smoke'")
    broken = tmp_path / "broken.py"
    broken.write_text("def get_config(mode):\n    return 1 / 0\n")
    refused(["train", f"--config={broken}", workdir], "broken.py:2: ZeroDivisionError")
    refused(["check", "--config=experiments/shapes.py"], "config.data.kind='shapes' has no files to check")


def test_results_that_do_not_fit_their_ground_truth(data, refused, tmp_path):
    truth, other = data / "val.json", tmp_path / "other.json"
    found = {"image_id": 1, "category_id": 3, "bbox": [5, 5, 10, 10], "score": 0.5}
    for content, words in (
        ([found, found | {"image_id": 99}], ["detection 1: image 99 is not in the ground truth", "another split?"]),
        ([found | {"category_id": 99}], ["category 99 is not in the ground truth", "(which has 3, 7)"]),
        ([{"image_id": 1, "score": 0.5}], ["category None is not in the ground truth"]),
        ({"images": []}, ["COCO results are a list of detections, not dict"]),
    ):
        other.write_text(json.dumps(content))
        refused(["score", f"--gt={truth}", f"--dt={other}"], str(other), *words)
    for text, words in (
        ("[]", ["not COCO ground truth", "images, annotations and categories"]),
        ('{"images": [], "categories": []}', ["no annotations", "ground truth is needed"]),
        ("{", ["not valid JSON"]),
    ):
        other.write_text(text)
        refused(["score", f"--gt={other}", f"--dt={other}"], str(other), *words)
    refused(["score", f"--gt={tmp_path}/gone.json", f"--dt={other}"], "gone.json", "No such file")


def test_a_workdir_that_cannot_be_used(experiment, refused, run, tmp_path, monkeypatch):
    other = ["train", f"--config={experiment}", "--config.optimizer.learning_rate=0.5"]
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    refused([*other, f"--workdir={run}"], str(run), "config.optimizer.learning_rate (", "choose another --workdir")
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before
    file = tmp_path / "file"
    file.write_text("mine")
    refused(["train", f"--config={experiment}", f"--workdir={file}"], str(file), "choose another folder")
    assert file.read_text() == "mine"

    # The superuser, as who tests may run, can write everywhere.
    def read_only(path, metadata):
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    monkeypatch.setattr(state, "write", read_only)
    refused(["train", f"--config={experiment}", f"--workdir={tmp_path / 'new'}"], "Read-only", "choose another folder")


def full(*arguments, **options):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(
    ("where", "words"),
    [
        ("mrcnn_jax.metrics_writer.csv.DictWriter.writerow",
         ["the disk is full while writing", "/run: free some space", "same command again"]),
        ("orbax.checkpoint.CheckpointManager.save",
         ["the disk is full; earlier checkpoints are intact", "free some space"]),
    ],
)  # fmt: skip
def test_a_full_disk_loses_nothing(experiment, refused, run, monkeypatch, where, words):
    arguments = ["train", f"--config={experiment}", f"--workdir={run}", f"--config.train.steps={STEPS + 1}"]
    with monkeypatch.context() as patch:
        patch.setattr(where, full)
        refused(arguments, *words)
    assert load_params(run / "checkpoints" / str(STEPS))
    rows = (run / "metrics.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in rows[1:]].count(str(STEPS)) > 0


def test_an_image_that_is_cut_short_stops_training_by_name(experiment, data, refused, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(data / "images" / "b.png")
    whole = (data / "images" / "b.png").read_bytes()
    (data / "images" / "b.png").write_bytes(whole[: len(whole) // 2])
    refused(["train", f"--config={experiment}", f"--workdir={tmp_path / 'run'}", *with_data(data)],
            "image id 2", "b.png", "damaged or cut short", "fetch it again or remove it")  # fmt: skip


# When one array of a checkpoint cannot be read, TensorStore goes on reading the others, and calls back into the event
# loop that Orbax has closed meanwhile.
@pytest.mark.filterwarnings(
    "ignore:(?s)Exception ignored in. None.*Event loop is closed:pytest.PytestUnraisableExceptionWarning"
)
def test_weights_that_cannot_be_used(refused, finished, data, experiment, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "a.txt").write_text("no image")
    image = data / "images" / "a.png"
    for path in (empty, tmp_path / "gone"):
        refused(["eval", f"--checkpoint={path}"], str(path), "holds no checkpoint", "give a run's workdir")
        refused(["predict", f"--checkpoint={path}", image, f"--out={tmp_path / 'out'}"], "holds no checkpoint")
    text = empty / "a.txt"
    refused(["eval", f"--checkpoint={text}"], str(text), "name an experiment with --config")
    refused(["predict", f"--checkpoint={text}", image, f"--out={tmp_path / 'out'}"], str(text), "of no format")
    damaged = tmp_path / "damaged"
    shutil.copytree(finished / "checkpoints" / str(STEPS), damaged)
    shutil.rmtree(damaged / "state" / "d")
    refused(["eval", f"--checkpoint={damaged}"], str(damaged), "cannot be read as a checkpoint", "new copy")
    refused(["eval", f"--config={experiment}", f"--workdir={finished}", *with_data(data)], "cat, dog", "circle, square")
