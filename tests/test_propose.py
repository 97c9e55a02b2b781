"""`mrcnn propose` from end to end: files, recall, going on after a stop, what is wrong in one line."""

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import test_train
import tiny
from PIL import Image

from mrcnn_jax.checkpoints.metadata import describe
from mrcnn_jax.checkpoints.params import save_params
from mrcnn_jax.cli import main
from mrcnn_jax.data import selective_search, shapes
from mrcnn_jax.data.dataset import Category
from mrcnn_jax.data.proposal_parts import Parts
from mrcnn_jax.data.proposals import best_first, read_proposals
from mrcnn_jax.errors import UserError
from mrcnn_jax.models.build import build

NUM_IMAGES = 5
EXPERIMENT = """
from test_train import config


def get_config(mode):
    experiment = config()
    # As for Fast R-CNN, which has no proposals yet.
    experiment.model.rpn = None
    experiment.data.kind = "coco"
    return experiment.lock()
"""


@pytest.fixture(scope="module")
def experiment(tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("experiments") / "coco.py"
    file.write_text(EXPERIMENT)
    return file


@pytest.fixture(scope="module")
def drawn(tmp_path_factory) -> Path:
    """Drawn shapes as a COCO data set; the last image has no object."""
    root = tmp_path_factory.mktemp("drawn")
    shapes.write_coco(shapes.load("val", NUM_IMAGES, size=(64, 64), clutter=0, seed=1), root, "val")
    file = root / "annotations" / "instances_val.json"
    content = json.loads(file.read_text())
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] != NUM_IMAGES]
    file.write_text(json.dumps(content))
    return root


@pytest.fixture
def data(drawn, tmp_path) -> Path:
    """A copy in which a test may spoil something."""
    return shutil.copytree(drawn, tmp_path / "data")


def arguments(experiment, root, out, *more) -> list[str]:
    method = [] if any(word.startswith("--method") for word in more) else ["--method=selective_search_fast"]
    source = [f"--config={experiment}", f"--config.data.root={root}", "--split=val"]
    return ["propose", *source, *method, f"--out={out}", *more]


@pytest.fixture
def searched(monkeypatch) -> list:
    """Selective search that is quick: the image and its right half. What was searched is counted."""
    images = []

    def propose(image, mode):
        images.append(image)
        height, width = image.shape[:2]
        return np.array([[0, 0, width, height], [width / 2, 0, width, height]], np.float32)

    monkeypatch.setattr(selective_search, "propose", propose)
    return images


def test_two_processes_write_the_bytes_of_one_and_recall_is_told(experiment, drawn, tmp_path, capsys):
    files = [tmp_path / f"{workers}.pkl" for workers in (1, 2)]
    for workers, file in enumerate(files, start=1):
        more = ["--num=50", f"--workers={workers}", f"--json={tmp_path / 'figures.json'}"]
        assert main(arguments(experiment, drawn, file, *more)) == 0
    assert files[0].read_bytes() == files[1].read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1.pkl", "2.pkl", "figures.json"]

    found = read_proposals(files[0])
    assert list(found) == list(range(1, NUM_IMAGES + 1))
    record = shapes.load("val", NUM_IMAGES, size=(64, 64), clutter=0, seed=1).records[1]
    np.testing.assert_array_equal(found.of(record).boxes, selective_search.propose(record.image(), "fast")[:50])
    assert (np.diff(found.of(record).scores) < 0).all()
    told = capsys.readouterr().out
    figures = json.loads((tmp_path / "figures.json").read_text())
    count = sum(len(found[number].scores) for number in found)
    assert f"{NUM_IMAGES} images, {count} proposals: see {files[0]}" in told
    assert figures["proposals"] == figures["recall"]["num_proposals"] == count
    assert figures["recall"]["figures"]["AR100"] > 0.4
    assert f"average, all        {figures['recall']['figures']['AR100']:.3f}" in told


def test_a_run_that_is_interrupted_goes_on(experiment, drawn, tmp_path, searched, monkeypatch, capsys):
    whole, stopped = tmp_path / "whole.pkl", tmp_path / "stopped.pkl"
    assert main(arguments(experiment, drawn, whole, "--workers=0")) == 0
    assert len(searched) == NUM_IMAGES
    quick = selective_search.propose

    def interrupt(image, mode):
        if len(searched) == NUM_IMAGES + 2:
            signal.raise_signal(signal.SIGINT)
        return quick(image, mode)

    with monkeypatch.context() as patch:
        patch.setattr(selective_search, "propose", interrupt)
        assert main(arguments(experiment, drawn, stopped, "--workers=0")) == 130
    told = capsys.readouterr().err.splitlines()[-1]
    assert told == f"mrcnn: stopped, 2 images are kept in {stopped}.parts: run the same command to go on"
    assert not stopped.exists()

    assert main(arguments(experiment, drawn, stopped, "--workers=0")) == 0
    assert f"going on: 2 of {NUM_IMAGES} images were done before" in capsys.readouterr().out
    assert len(searched) == 2 * NUM_IMAGES
    assert stopped.read_bytes() == whole.read_bytes()
    assert not Path(f"{stopped}.parts").exists()


def test_a_run_that_is_killed_goes_on(experiment, drawn, tmp_path, searched):
    whole, killed = tmp_path / "whole.pkl", tmp_path / "killed.pkl"
    assert main(arguments(experiment, drawn, whole, "--workers=0")) == 0
    here = Path(__file__).parent
    code = (
        "import sys; sys.path[:0] = sys.argv[1:3]; import conftest, test_propose\n"
        "from mrcnn_jax.cli import main\n"
        "test_propose.kill_at_the_fourth()\n"
        "sys.exit(main(sys.argv[3:]))"
    )
    process = [sys.executable, "-c", code, here, here.parent, *arguments(experiment, drawn, killed, "--workers=0")]
    done = subprocess.run(list(map(str, process)), capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL
    assert sorted(path.name for path in Path(f"{killed}.parts").iterdir()) == [
        "000000.pkl", "000001.pkl", "000002.pkl", "settings.json",
    ]  # fmt: skip
    assert main(arguments(experiment, drawn, killed, "--workers=0")) == 0
    assert len(searched) == NUM_IMAGES + 2
    assert killed.read_bytes() == whole.read_bytes()


def kill_at_the_fourth() -> None:
    """Makes this process write a part for each image, and end without a word in the fourth."""
    from mrcnn_jax.data import proposal_parts

    number = iter(range(NUM_IMAGES))

    def propose(image, mode):
        if next(number) == 3:
            signal.raise_signal(signal.SIGKILL)
        height, width = image.shape[:2]
        return np.array([[0, 0, width, height], [width / 2, 0, width, height]], np.float32)

    proposal_parts._SAVE_EVERY = 0.0
    selective_search.propose = propose


def test_parts_of_other_settings_or_another_folder_are_not_used(experiment, data, tmp_path, searched, capsys):
    out = tmp_path / "p.pkl"
    picture = data / "val" / "000000000002.png"
    picture.write_bytes(b"")
    assert main(arguments(experiment, data, out, "--workers=0")) == 2
    capsys.readouterr()
    assert main(arguments(experiment, data, out, "--workers=0", "--num=7")) == 2
    assert "p.pkl.parts holds the parts of a run that was stopped and differs in num (2000 there, 7 now): set it" in (
        capsys.readouterr().err
    )
    assert main(arguments(experiment, data, out, "--workers=0", "--method=selective_search_quality")) == 2
    assert "differs in method (selective_search_fast there, selective_search_quality now)" in capsys.readouterr().err
    # The same ids, and other images.
    assert len(searched) == NUM_IMAGES - 1
    (tmp_path / "other").mkdir()
    for number in range(1, 4):
        Image.new("RGB", (30, 20), "red").save(tmp_path / "other" / f"{number}.png")
    folder = ["propose", f"--images={tmp_path / 'other'}", "--method=selective_search_fast", f"--out={out}"]
    assert main([*folder, "--workers=0"]) == 0
    assert len(searched) == NUM_IMAGES - 1 + 3
    assert read_proposals(out)["2"].boxes.tolist() == [[0, 0, 30, 20], [15, 0, 30, 20]]


def test_parts_that_cannot_be_trusted_are_an_error(tmp_path):
    parts = Parts(tmp_path / "p.pkl", {"num": (1, 2)})
    parts.add("1 a.png 3x4", best_first([[0, 0, 1, 1]]))
    parts.save()
    again = Parts(tmp_path / "p.pkl", {"num": (1, 2)})
    assert again["1 a.png 3x4"].boxes.tolist() == [[0, 0, 1, 1]]
    (parts.folder / "settings.json").write_text("{")
    with pytest.raises(UserError, match=r"settings\.json: cannot be read.* remove .*p\.pkl\.parts"):
        Parts(tmp_path / "p.pkl", {"num": (1, 2)})
    parts.remove()
    assert list(tmp_path.iterdir()) == []


def test_an_image_that_cannot_be_read_is_named_and_the_others_are_kept(experiment, data, tmp_path, searched, capsys):
    out, picture = tmp_path / "p.pkl", data / "val" / "000000000002.png"
    whole = picture.read_bytes()
    picture.write_bytes(whole[:-40])
    assert main(arguments(experiment, data, out, "--workers=0")) == 2
    told = capsys.readouterr().err
    assert f"{out} was not written, since 1 of 5 images could not be read: image id 2: {picture}: the image is" in told
    assert told.count("\n") == 1
    assert not out.exists()
    picture.write_bytes(whole)
    assert main(arguments(experiment, data, out, "--workers=0")) == 0
    assert len(searched) == NUM_IMAGES
    assert list(read_proposals(out)) == list(range(1, NUM_IMAGES + 1))


def test_a_folder_of_images_of_every_kind(tmp_path, capsys):
    folder, out = tmp_path / "images", tmp_path / "p.pkl"
    folder.mkdir()
    picture = np.full((30, 40, 3), 90, np.uint8)
    picture[5:20, 8:30] = 220
    Image.fromarray(picture).save(folder / "000000000139.jpg")
    Image.fromarray(picture).convert("L").save(folder / "grey.png")
    Image.new("RGB", (1, 1)).save(folder / "pixel.png")
    Image.new("RGB", (60, 1)).save(folder / "strip.png")
    (folder / "notes.txt").write_text("no image")
    command = ["propose", f"--images={folder}", "--method=selective_search_fast", f"--out={out}", "--workers=0"]
    assert main([*command, f"--json={tmp_path / 'p.json'}"]) == 0
    found = read_proposals(out)
    assert list(found) == ["000000000139", "grey", "pixel", "strip"]
    for name in ("000000000139", "grey"):
        assert np.abs(found[name].boxes - [8, 5, 30, 20]).max(axis=1).min() <= 1
    assert found["pixel"].boxes.tolist() == [[0, 0, 1, 1]]
    assert len(found["strip"].boxes) == 0
    assert "note: image in which nothing was proposed: 1 (image strip)" in capsys.readouterr().out
    assert json.loads((tmp_path / "p.json").read_text())["recall"] is None

    (folder / "grey.jpg").write_bytes((folder / "000000000139.jpg").read_bytes())
    assert main(command) == 2
    assert "two images are called grey: rename one" in capsys.readouterr().err
    assert main(["propose", f"--images={tmp_path}", *command[2:]]) == 2
    assert "no image in this folder" in capsys.readouterr().err
    assert main(["propose", f"--images={tmp_path / 'gone'}", *command[2:]]) == 2
    assert "gone: cannot be read as a folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--method=selective_search_fast"], "give --config and --split, or --images"),
        (["--method=selective_search_fast", "--config=a.py", "--images=b"], "give --config and --split, or --images"),
        (["--method=selective_search_fast", "--config=a.py"], "--config and --split=train or --split=val belong"),
        (["--method=selective_search_fast", "--images=b", "--split=val"], "--config and --split=train or --split=val"),
        (["--method=rpn", "--images=b"], "--method=rpn and --checkpoint=PATH belong together"),
        (["--method=selective_search_fast", "--images=b", "--checkpoint=c"], "--method=rpn and --checkpoint=PATH"),
        (["--method=edges", "--images=b"], "invalid choice: 'edges'"),
        (["--method=selective_search_fast", "--images=b", "--num=0"], "0 is not a whole number from 1 on"),
        (["--method=selective_search_fast", "--images=b", "--workers=-1"], "-1 is not a whole number from 0 on"),
        (["--method=rpn", "--checkpoint=c", "--config=a.py", "--split=val", "--config.model.rpn.min_size=3"],
         "propose: --config.model.rpn.min_size=3 has no effect: the model's config comes with its weights"),
    ],
)  # fmt: skip
def test_wrong_arguments_are_one_line(words, line, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["propose", "--out=p.pkl", *words])
    assert stop.value.code == 2
    told = capsys.readouterr().err
    assert line in told
    assert told.count("\n") == 1


# With an RPN.


def checkpoint(folder: Path, model) -> Path:
    """Random weights for a model config, as a checkpoint."""
    variables = tiny.variables(build(model))
    config = test_train.config()
    config.model = model
    names = [Category(i + 1, f"class {i + 1}") for i in range(tiny.NUM_CLASSES)]
    save_params(folder, variables["params"], variables.get("batch_stats", {}), describe(config, names))
    return folder


@pytest.fixture(scope="module")
def rpn(tmp_path_factory) -> Path:
    """A whole Mask R-CNN, which sees images at twice their size."""
    config = tiny.model_config()
    config.preprocess.update({"short_side": 128, "max_size": 128, "interpolation": "cv2"})
    return checkpoint(tmp_path_factory.mktemp("rpn") / "checkpoint", config)


def test_an_rpns_proposals_are_in_pixels_of_the_image(experiment, drawn, rpn, tmp_path, capsys):
    out, more = tmp_path / "p.pkl", ["--method=rpn", f"--checkpoint={rpn}", "--config.data.buckets=((128,128),)"]
    assert main(arguments(experiment, drawn, out, *more)) == 0
    assert "recall of the best" in capsys.readouterr().out
    found = read_proposals(out)
    assert list(found) == list(range(1, NUM_IMAGES + 1))
    for number in found:
        # tiny.model_config's post_nms.
        assert 0 < len(found[number].scores) <= 24
        assert (np.diff(found[number].scores) <= 0).all()
        assert found[number].boxes.min() >= 0
        assert found[number].boxes.max() <= 64
    assert max(len(found[number].scores) for number in found) == 24
    assert max(found[number].boxes.max() for number in found) > 50

    # More of them begin with the same.
    assert main(arguments(experiment, drawn, tmp_path / "more.pkl", *more, "--num=60")) == 0
    many = read_proposals(tmp_path / "more.pkl")
    assert max(len(many[number].scores) for number in many) > 24
    assert len(many[1].scores) <= 60
    np.testing.assert_allclose(many[1].boxes[0], found[1].boxes[0], atol=1e-3)


def test_an_rpn_leaves_out_an_image_that_cannot_be_read_and_takes_a_folder(data, rpn, tmp_path, capsys):
    folder, out = data / "val", tmp_path / "p.pkl"
    command = ["propose", f"--images={folder}", "--method=rpn", f"--checkpoint={rpn}", f"--out={out}"]
    assert main(command) == 0
    whole = out.read_bytes()
    assert list(read_proposals(out)) == [f"{number:012}" for number in range(1, NUM_IMAGES + 1)]
    picture = folder / f"{3:012}.png"
    pixels = picture.read_bytes()
    picture.write_bytes(pixels[:-40])
    capsys.readouterr()
    assert main(command) == 2
    told = capsys.readouterr().err
    assert f"since 1 of 5 images could not be read: image id 3: {picture}: the image is damaged" in told
    picture.write_bytes(pixels)
    assert main(command) == 0
    assert f"going on: {NUM_IMAGES - 1} of {NUM_IMAGES} images" in capsys.readouterr().out
    again = read_proposals(out)
    out.write_bytes(whole)
    expected = read_proposals(out)
    for name in expected:
        np.testing.assert_allclose(again[name].scores, expected[name].scores, atol=1e-4)


def test_a_model_without_an_rpn_is_told_so(experiment, drawn, tmp_path, capsys):
    config = tiny.model_config()
    config.rpn = config.mask = None
    without = checkpoint(tmp_path / "fast", config)
    more = ["--method=rpn", f"--checkpoint={without}"]
    assert main(arguments(experiment, drawn, tmp_path / "p.pkl", *more)) == 2
    assert f"{without} is a model without an RPN" in capsys.readouterr().err
    assert not (tmp_path / "p.pkl.parts").exists()
