"""Pascal VOC's folders, sound and with every fault that its tools and strangers put in."""

import json

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from experiments import shapes
from mrcnn_jax.commands import check as check_command
from mrcnn_jax.data import pipeline, sources, voc, voc_xml
from mrcnn_jax.data.check import check_dataset
from mrcnn_jax.data.dataset import Category
from mrcnn_jax.data.published_classes import published_classes
from mrcnn_jax.errors import UserError

HEIGHT, WIDTH = 30, 40


def thing(name="cat", box=(5, 6, 14, 20), more="<difficult>0</difficult>"):
    sides = "".join(f"<{side}>{v}</{side}>" for side, v in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True))
    return f"<object><name>{name}</name><pose>Left</pose>{more}<bndbox>{sides}</bndbox></object>"


def difficult(name="cat", box=(5, 6, 14, 20)):
    return thing(name, box, "<difficult>1</difficult>")


def xml(*objects, size=f"<size><width>{WIDTH}</width><height>{HEIGHT}</height><depth>3</depth></size>"):
    return f"<annotation><filename>x.jpg</filename>{size}{''.join(objects)}</annotation>"


def write(folder, sets, files):
    """Image sets (name: stems) and annotation files (stem: XML, or None for neither file nor image)."""
    for name in ("ImageSets/Main", "Annotations", "JPEGImages"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for name, stems in sets.items():
        (folder / "ImageSets" / "Main" / f"{name}.txt").write_text("".join(f"{stem}\n" for stem in stems))
    for number, (stem, content) in enumerate(files.items()):
        if content is not None:
            (folder / "Annotations" / f"{stem}.xml").write_text(content)
            Image.new("RGB", (WIDTH, HEIGHT), (number, 9, 9)).save(folder / "JPEGImages" / f"{stem}.jpg")
    return folder


def one(tmp_path, content, **options):
    """What is read of a single annotation file, and the report."""
    dataset, report = voc.read(write(tmp_path, {"train": ["000001"]}, {"000001": content}), "train", **options)
    return dataset.records[0], report


def with_sound(tmp_path, content, stem="000002", **options):
    """The report on a file beside a sound one, whose image is what is left."""
    folder = write(tmp_path, {"train": ["000001", stem]}, {"000001": xml(thing()), stem: content})
    dataset, report = voc.read(folder, "train", **options)
    return dataset, report


def test_boxes_are_continuous_pixels(tmp_path):
    content = xml(thing("dog"), difficult(box=(1, 1, WIDTH, HEIGHT)), thing("cow", ("5.5", " 6 ", "14.25", "20")))
    record, report = one(tmp_path, content)
    assert report.errors == report.warnings == []
    assert report.notes == [
        "difficult object, not trained on unless config.data.use_difficult=True: 1 (file 000001.xml)"
    ]
    np.testing.assert_array_equal(
        record.boxes, np.array([[4, 5, 14, 20], [0, 0, 40, 30], [4.5, 5, 14.25, 20]], np.float32)
    )
    np.testing.assert_array_equal(record.areas, np.array([150, 1200, 146.25], np.float32))
    assert record.classes.tolist() == [12, 8, 10]
    assert record.difficult.tolist() == [False, True, False]
    assert record.crowd.tolist() == [False] * 3
    assert (record.image_id, record.height, record.width, record.file_name) == (1, HEIGHT, WIDTH, "000001.jpg")
    assert record.segmentations == (None,) * 3
    assert record.image().shape == (HEIGHT, WIDTH, 3)
    assert [record.boxes.dtype, record.areas.dtype, record.classes.dtype] == [np.float32, np.float32, np.int32]


def test_parts_are_no_objects_and_flags_may_be_absent(tmp_path):
    part = "<part><name>head</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>3</xmax><ymax>3</ymax></bndbox></part>"
    record, report = one(tmp_path, xml(thing("person", more=""), thing("person", more=part)))
    assert report.lines() == []
    assert record.boxes.tolist() == [[4, 5, 14, 20]] * 2
    assert record.difficult.tolist() == [False, False]


@pytest.mark.parametrize(
    ("bad", "told"),
    [
        pytest.param(thing(box=(7, 9, 7, 9)), "box without area, dropped", id="no size"),
        pytest.param(thing(box=(7, 9, 5, 12)), "box without area, dropped", id="inverted"),
        pytest.param(thing(box=(50, 9, 60, 12)), "box outside the image, dropped", id="outside"),
        pytest.param(thing(box=(7, "left", 9, 12)), "box absent or not four numbers, dropped", id="text"),
        pytest.param(thing(box=(7, "inf", 9, 12)), "box absent or not four numbers, dropped", id="infinite"),
        pytest.param(thing(box=(7, "nan", 9, 12)), "box absent or not four numbers, dropped", id="nan"),
        pytest.param("<object><name>cat</name></object>", "box absent or not four numbers, dropped", id="no box"),
        pytest.param(thing(name=""), "object without a name, dropped", id="no name"),
        pytest.param("<object/>", "object without a name, dropped", id="nothing"),
    ],
)
def test_objects_of_no_use_are_dropped_and_told(tmp_path, bad, told):
    record, report = one(tmp_path, xml(thing(), bad, thing(box=(1, 1, 9, 9)), bad))
    assert report.warnings == [f"{told}: 2 (file 000001.xml, 000001.xml)"]
    assert report.errors == []
    assert record.boxes.tolist() == [[4, 5, 14, 20], [0, 0, 9, 9]]
    assert len(record.classes) == len(record.difficult) == len(record.areas) == 2


def test_boxes_that_reach_out_are_clipped(tmp_path):
    record, report = one(tmp_path, xml(thing(box=(-9, 0, 20, 30)), thing(box=(0, 0, 41, 31)), thing(box=(3, 3, 99, 9))))
    assert record.boxes.tolist() == [[0, 0, 20, 30], [0, 0, 40, 30], [2, 2, 40, 9]]
    # A pixel of slack: many tools count from zero.
    assert report.warnings == [
        "box reaches more than a pixel outside the image, clipped: 2 (file 000001.xml, 000001.xml)"
    ]


def test_images_without_objects_are_kept(tmp_path):
    dataset, report = with_sound(tmp_path, xml())
    assert [len(record.boxes) for record in dataset.records] == [1, 0]
    assert dataset.records[1].boxes.shape == (0, 4)
    assert report.lines() == ["note: image without annotations, kept as a negative: 1 (image 000002.jpg)"]


def test_nothing_to_learn(tmp_path):
    _, report = one(tmp_path, xml())
    assert report.warnings == ["no annotation is left: there is nothing to learn"]


NESTED = "<annotation>" + "<a>" * 20 + "</a>" * 20 + "</annotation>"
ENTITIES = '<!DOCTYPE a [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;&a;&a;">]>' + xml(thing("&b;"))


@pytest.mark.parametrize(
    ("content", "told"),
    [
        pytest.param(None, "annotation file that is not there, fetch it", id="missing"),
        pytest.param("", "annotation file that is no sound XML", id="empty"),
        pytest.param(xml(thing())[:-20], "annotation file that is no sound XML", id="cut short"),
        pytest.param("<annotation>&nope;</annotation>", "annotation file that is no sound XML", id="unknown entity"),
        pytest.param('<?xml version="1.0" encoding="klingon"?><annotation/>', "no sound XML", id="encoding"),
        pytest.param('<?xml version="1.0" encoding="utf-7"?><annotation/>', "no sound XML", id="wide encoding"),
        pytest.param("<html></html>", "XML file that is no VOC annotation", id="not VOC"),
        pytest.param(ENTITIES, "annotation file with a DOCTYPE or entities, refused", id="entities"),
        pytest.param('<!DOCTYPE annotation SYSTEM "file:///x">' + xml(), "DOCTYPE or entities, refused", id="doctype"),
        pytest.param(NESTED, "annotation file nested more than 16 levels deep", id="deep"),
        pytest.param(xml(size="<size><width>41</width><height>30</height></size>"),
                     "image whose size is not the annotated one", id="another size"),
    ],
)  # fmt: skip
def test_files_that_cannot_be_used_are_errors(tmp_path, content, told):
    dataset, report = with_sound(tmp_path, content)
    assert len(report.errors) == 1
    assert told in report.errors[0]
    assert "000002" in report.errors[0]
    assert [record.image_id for record in dataset.records] == [1]
    with pytest.raises(UserError, match="000002"):
        voc.load(tmp_path, "train")


def test_utf16_and_long_files_are_refused(tmp_path, monkeypatch):
    folder = write(tmp_path, {"train": ["1", "2"]}, {"1": xml(thing()), "2": ""})
    (folder / "Annotations" / "2.xml").write_bytes(ENTITIES.encode("utf-16"))
    assert "UTF-16 or no text, save it as UTF-8: 1 (file 2.xml)" in voc.read(folder, "train")[1].errors[0]
    monkeypatch.setattr(voc_xml, "SIZE_LIMIT", 1 << 20)
    (folder / "Annotations" / "2.xml").write_text(xml() + " " * (1 << 20))
    assert "annotation file of more than 1 MiB, refused" in voc.read(folder, "train")[1].errors[0]


def test_images_that_are_missing_damaged_or_ambiguous(tmp_path):
    folder = write(tmp_path, {"train": list("12345")}, dict.fromkeys("12345", xml(thing())))
    images = folder / "JPEGImages"
    (images / "1.jpg").unlink()
    (images / "2.jpg").write_bytes(b"nothing")
    (images / "3.jpg").rename(images / "3.JPEG")
    Image.new("RGB", (WIDTH, HEIGHT)).save(images / "3.png")
    # VOC's own extension comes first, whatever else has the name.
    Image.new("RGB", (8, 8)).save(images / "4.png")
    (images / "5.jpg").unlink()
    Image.new("RGB", (WIDTH, HEIGHT)).save(images / "5.png")
    dataset, report = voc.read(folder, "train")
    assert [record.file_name for record in dataset.records] == ["4.jpg", "5.png"]
    assert report.errors == [
        "image that is not on disk, fetch it or take it out of the image set: 1 (image 1)",
        "image that cannot be read or is too large; fetch it again or remove it: 1 (image 2.jpg)",
        "several images for one annotation, leave one of them: 1 (image 3.JPEG and 3.png)",
    ]


@pytest.mark.parametrize("size", ["", "<size><width>0</width><height>0</height></size>"])
def test_a_size_that_is_absent_is_read_from_the_image(tmp_path, size):
    record, report = one(tmp_path, xml(thing(), size=size))
    assert (record.height, record.width) == (HEIGHT, WIDTH)
    assert report.notes == ["width or height absent, read from the image: 1 (image 000001.jpg)"]


@pytest.mark.parametrize(
    ("stems", "ids"),
    [
        (["000005", "000012"], [5, 12]),
        (["2008_000002", "2007_000027"], [2008000002, 2007000027]),
        (["BloodImage_00007", "BloodImage_00000"], [7, 0]),
        # No number, numbers that are not distinct, and one of 2**31.
        (["dog", "cat 1"], [2, 1]),
        (["b1", "a1"], [2, 1]),
        (["2147483648", "7"], [1, 2]),
        (["9" * 60, "7"], [2, 1]),
    ],
)
def test_image_ids(tmp_path, stems, ids):
    folder = write(tmp_path, {"train": stems}, dict.fromkeys(stems, xml(thing())))
    dataset, _ = voc.load(folder, "train")
    assert [record.image_id for record in dataset.records] == ids


def test_classes(tmp_path):
    folder = write(
        tmp_path, {"train": ["1"], "val": ["2"]}, {"1": xml(thing("zebra"), thing("ant")), "2": xml(thing())}
    )
    train, _ = voc.load(folder, "train")
    assert train.categories == (Category(1, "ant"), Category(2, "zebra"))
    assert train.records[0].classes.tolist() == [2, 1]
    val, _ = voc.load(folder, "val")
    assert val.categories == published_classes(20)
    assert val.categories[7].name == "cat"
    dataset, report = voc.read(folder, "val", train.categories)
    assert dataset.categories == train.categories
    assert len(dataset.records[0].boxes) == 0
    assert report.errors == [
        "class that the training set does not have (it has ant, zebra), rename or remove it: 1 (class cat)"
    ]


@pytest.fixture
def devkit(tmp_path):
    write(
        tmp_path / "VOC2007",
        {"trainval": ["000001"], "test": ["000002"]},
        dict.fromkeys(["000001", "000002"], xml(thing())),
    )
    write(
        tmp_path / "VOC2012",
        {"trainval": ["2008_000001"], "cat_trainval": ["2008_000001 -1"]},
        {"2008_000001": xml(thing())},
    )
    return tmp_path


def test_sets_of_several_folders(devkit):
    dataset, report = voc.load(devkit, "VOC2007/trainval, VOC2012/trainval")
    assert [record.image_id for record in dataset.records] == [1, 2008000001]
    assert report.lines() == []
    twice, report = voc.load(devkit / "VOC2007", "trainval,trainval")
    assert len(twice.records) == 1
    assert report.warnings == ["image listed twice, used once: 1 (image 000001)"]


def test_sets_that_are_no_use(devkit):
    with pytest.raises(UserError, match=r"VOC2007/ImageSets/Main/val\.txt: .* there are test, trainval"):
        voc.load(devkit, "VOC2007/val")
    with pytest.raises(UserError, match="image set of one class"):
        voc.load(devkit, "VOC2012/cat_trainval")
    (devkit / "VOC2007/ImageSets/Main/odd.txt").write_text("../../secret\n")
    with pytest.raises(UserError, match=r"path in an image set.*\.\./\.\./secret"):
        voc.load(devkit, "VOC2007/odd")
    (devkit / "VOC2007/ImageSets/Main/odd.txt").write_bytes(b"\xff\xfe\xfd")
    with pytest.raises(UserError, match="it is no UTF-8 text"):
        voc.load(devkit, "VOC2007/odd")
    (devkit / "VOC2007/ImageSets/Main/odd.txt").write_text("\n\n")
    with pytest.raises(UserError, match="list no image"):
        voc.load(devkit, "VOC2007/odd")


def test_sets_are_looked_for(devkit):
    # Where trainval is for training, val is a part of it.
    assert (voc.find(devkit / "VOC2007", "train"), voc.find(devkit / "VOC2007", "val")) == ("trainval", "test")
    write(devkit / "VOC2007", {"val": ["000001"]}, {})
    assert voc.find(devkit / "VOC2007", "val") == "test"
    write(devkit / "VOC2007", {"train": ["000001"]}, {})
    assert (voc.find(devkit / "VOC2007", "train"), voc.find(devkit / "VOC2007", "val")) == ("train", "val")
    with pytest.raises(UserError, match=r"folders VOC2007, VOC2012: .*train_annotations=VOC2012/train$"):
        voc.find(devkit, "train")
    with pytest.raises(UserError, match=r"no set for val \(it has trainval\)"):
        voc.find(devkit / "VOC2012", "val")
    with pytest.raises(UserError, match="neither it nor a folder in it"):
        voc.find(devkit / "VOC2012" / "JPEGImages", "train")
    (devkit / "VOC2012" / "ImageSets").rename(devkit / "VOC2012" / "elsewhere")
    assert voc.find(devkit, "val") == "VOC2007/val"


def config(root, **data):
    found = shapes.get_config("smoke").copy_and_resolve_references()
    found.data.update({"kind": "voc", "root": str(root), **data})
    return found


def test_a_config_names_sets_of_both_splits_or_of_none(devkit):
    named = config(devkit, train_annotations="VOC2007/trainval,VOC2012/trainval", val_annotations="VOC2007/test")
    train, lines = sources.load(named, "train")
    assert (len(train.records), lines) == (2, [])
    assert len(sources.load(named, "val", train.categories)[0].records) == 1
    assert len(sources.load(config(devkit / "VOC2007"), "val")[0].records) == 1
    with pytest.raises(UserError, match=r"val_annotations is empty, and the other split's is VOC2007/trainval"):
        sources.load(config(devkit, train_annotations="VOC2007/trainval"), "val")
    with pytest.raises(UserError, match=r"config\.data\.train_images=x would not be used"):
        sources.load(config(devkit / "VOC2007", train_images="x"), "train")


@pytest.mark.parametrize("use_difficult", [False, True])
def test_difficult_objects_in_training_and_validation(tmp_path, use_difficult):
    files = {"1": xml(thing(), difficult("dog", (1, 1, 9, 9))), "2": xml(difficult())}
    write(tmp_path, {"train": ["1", "2"], "val": ["1"]}, files)
    experiment = config(tmp_path, use_difficult=use_difficult, keep_empty=False, num_workers=0, flip=0.0)
    train, _ = sources.load(experiment, "train")
    assert [len(record.boxes) for record in train.records] == ([2, 1] if use_difficult else [1, 0])
    loader = pipeline.train_loader(train, experiment, seed=0, batch_size=1)
    assert (loader.num_images, loader.num_skipped) == ((2, 0) if use_difficult else (1, 1))
    classes = {label for _ in range(4) for label in next(loader).gt.classes.ravel().tolist()}
    loader.close()
    assert classes == ({0, 8, 12} if use_difficult else {0, 8})
    val, _ = sources.load(experiment, "val", train.categories)
    assert [a.get("difficult") for a in val.to_coco()["annotations"]] == [None, 1]


def test_check_reads_both_sets(tmp_path, capsys):
    files = {"1": xml(thing()), "2": xml(thing(box=(4, 4, 4, 4))), "3": xml(thing())}
    folder = write(tmp_path / "data", {"train": ["1", "2"], "val": ["3"]}, files)
    (folder / "JPEGImages" / "3.jpg").write_bytes((folder / "JPEGImages" / "1.jpg").read_bytes())
    assert check_command.run(config(folder), None, None, tmp_path / "findings.json") == 1
    told = capsys.readouterr().out
    assert "2 images, 1 objects, 20 classes" in told
    assert "box without area, dropped: 1 (file 2.xml)" in told
    assert "picture of train in val, which flatters figures" in told
    assert json.loads((tmp_path / "findings.json").read_text())["val"]["images"] == 1
    content = (folder / "JPEGImages" / "3.jpg").read_bytes()
    (folder / "JPEGImages" / "3.jpg").write_bytes(content[:-20])
    result = check_dataset(lambda: voc.read(folder, "val"))
    assert "image that cannot be read, is cut short or too large" in result.errors[0]
    result = check_dataset(lambda: voc.read(folder, "nowhere"))
    assert "nowhere.txt: cannot read this image set" in result.errors[0]


def test_a_kind_without_files_has_no_reader():
    with pytest.raises(UserError, match=r"config\.data\.kind='tfds' has no files to check"):
        sources.reader(ConfigDict({"data": {"kind": "tfds"}}), "train")
    with pytest.raises(UserError, match="use 'coco', 'voc', 'cityscapes', 'tfds' or 'shapes'"):
        sources.load(config("", kind="pascal"), "train")
