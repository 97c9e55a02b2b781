"""Every experiment file: it parses, builds, has exactly the parameters that it should, and is in the zoo table."""

import gzip
import json
import math
import re
from pathlib import Path

import jax
import pytest

from mrcnn_jax.models import plain, zoo

ROOT = Path(__file__).parents[1]
STATE_DICTS = json.loads(gzip.decompress((ROOT / "tests" / "golden" / "state_dicts.json.gz").read_bytes()))

NUM_PARAMETERS = {
    "balloon": 15_870_811,
    "finetune": 44_343_216,
    "mask_rcnn_r18_fpn_coco": 31_317_936,
    "shapes": 3_926_525,
    "family/rcnn": 460_873,
    "family/fast_rcnn": 1_927_241,
    "family/faster_rcnn": 2_080_630,
    "family/mask_rcnn": 3_926_525,
    "rcnn/alexnet_voc07": 57_691_621,
    "rcnn/alexnet_voc07_bb": 57_691_621,
    "rcnn/vgg16_voc07": 136_353_701,
    "rcnn/vgg16_voc07_bb": 136_353_701,
    "fast_rcnn/alexnet_voc07": 57_282_021,
    "fast_rcnn/alexnet_voc0712": 57_282_021,
    "fast_rcnn/alexnet_voc07_svm": 57_282_021,
    "fast_rcnn/vgg16_voc07": 134_674_341,
    "fast_rcnn/vgg16_voc0712": 134_674_341,
    "fast_rcnn/vgg16_voc07_no_difficult": 134_674_341,
    "fast_rcnn/vgg16_voc07_no_regression": 134_674_341,
    "fast_rcnn/vgg16_voc07_svm": 134_674_341,
    "fast_rcnn/vgg_m_voc07": 86_329_061,
    "fast_rcnn/vgg_m_voc0712": 86_329_061,
    "fast_rcnn/vgg_m_voc07_svm": 86_329_061,
    "faster_rcnn/vgg16_coco": 138_294_029,
    "faster_rcnn/vgg16_voc07": 137_057_234,
    "faster_rcnn/vgg16_voc0712": 137_057_234,
    "faster_rcnn/vgg16_voc0712_alternating": 137_057_234,
    "faster_rcnn/vgg16_voc07_alternating": 137_057_234,
    "faster_rcnn/zf_voc07": 59_276_050,
    "faster_rcnn/zf_voc0712": 59_276_050,
    "faster_rcnn/zf_voc07_alternating": 59_276_050,
    "mask_rcnn/table1_r101_c4": 54_849_516,
    "mask_rcnn/table1_r101_fpn": 63_283_120,
    "mask_rcnn/table1_x101_fpn": 102_091_696,
    "mask_rcnn/table2a_r50_c4": 35_909_612,
    "mask_rcnn/table2a_r50_fpn": 44_343_216,
    "mask_rcnn/table2b_class_agnostic": 35_889_309,
    "mask_rcnn/table2b_softmax": 35_909_869,
    "mask_rcnn/table2c_roialign_max": 35_909_612,
    "mask_rcnn/table2c_roipool": 35_909_612,
    "mask_rcnn/table2c_roiwarp_max": 35_909_612,
    "mask_rcnn/table2c_roiwarp_mean": 35_909_612,
    "mask_rcnn/table2d_roialign": 172_353_516,
    "mask_rcnn/table2d_roipool": 172_353_516,
    "mask_rcnn/table2e_mlp_2fc": 158_418_784,
    "mask_rcnn/table2e_mlp_3fc": 159_468_384,
    "mask_rcnn/table3_faster_r101_fpn": 60_639_840,
    "mask_rcnn/table4_keypoints": 59_133_158,
    "mask_rcnn/table4_keypoints_masks": 61_756_135,
    "mask_rcnn/table5_boxes": 41_295_061,
    "mask_rcnn/table5_masks": 43_918_038,
    "mask_rcnn/table6_roipool": 59_133_158,
    "mask_rcnn/table7_fine": 43_955_712,
    "mask_rcnn/table7_fine_coco": 43_955_712,
    "mask_rcnn/table8_updated": 101_497_761,
    "mask_rcnn/table8_updated_e2e": 102_091_696,
    "mask_rcnn/table8_updated_in5k": 102_091_696,
    "mask_rcnn/table8_x101_augmented": 102_091_696,
    "mask_rcnn/table8_x152": 140_916_656,
    "mask_rcnn/table8_x152_non_local": 143_016_368,
    "mask_rcnn/table8_x152_non_local_tta": 143_016_368,
    "mask_rcnn/table9_r101": 78_073_062,
    "mask_rcnn/table9_r50": 59_133_158,
    "mask_rcnn/table9_x101": 116_881_638,
    "detectron2/cascade_mask_rcnn_r50_fpn_1x": 71_984_926,
    "detectron2/cascade_mask_rcnn_r50_fpn_3x": 71_984_926,
    "detectron2/fast_rcnn_r50_fpn_1x": 41_106_001,
    "detectron2/faster_rcnn_r101_c4_3x": 52_731_548,
    "detectron2/faster_rcnn_r101_dc5_3x": 184_521_372,
    "detectron2/faster_rcnn_r101_fpn_3x": 60_639_840,
    "detectron2/faster_rcnn_r50_c4_1x": 33_791_644,
    "detectron2/faster_rcnn_r50_c4_3x": 33_791_644,
    "detectron2/faster_rcnn_r50_c4_voc0712": 33_176_944,
    "detectron2/faster_rcnn_r50_dc5_1x": 165_581_468,
    "detectron2/faster_rcnn_r50_dc5_3x": 165_581_468,
    "detectron2/faster_rcnn_r50_fpn_1x": 41_699_936,
    "detectron2/faster_rcnn_r50_fpn_3x": 41_699_936,
    "detectron2/faster_rcnn_r50_fpn_noaug_1x": 41_699_936,
    "detectron2/faster_rcnn_x101_fpn_3x": 104_784_480,
    "detectron2/keypoint_rcnn_r101_fpn_3x": 78_073_062,
    "detectron2/keypoint_rcnn_r50_fpn_1x": 59_133_158,
    "detectron2/keypoint_rcnn_r50_fpn_3x": 59_133_158,
    "detectron2/keypoint_rcnn_r50_fpn_noaug_1x": 59_133_158,
    "detectron2/keypoint_rcnn_x101_fpn_3x": 122_217_702,
    "detectron2/mask_rcnn_r101_c4_3x": 54_849_516,
    "detectron2/mask_rcnn_r101_dc5_3x": 191_293_420,
    "detectron2/mask_rcnn_r101_fpn_1x": 63_283_120,
    "detectron2/mask_rcnn_r101_fpn_3x": 63_283_120,
    "detectron2/mask_rcnn_r101_fpn_lsj_100ep": 65_293_360,
    "detectron2/mask_rcnn_r101_fpn_lsj_200ep": 65_293_360,
    "detectron2/mask_rcnn_r101_fpn_lsj_400ep": 65_293_360,
    "detectron2/mask_rcnn_r50_c4_1x": 35_909_612,
    "detectron2/mask_rcnn_r50_c4_3x": 35_909_612,
    "detectron2/mask_rcnn_r50_dc5_1x": 172_353_516,
    "detectron2/mask_rcnn_r50_dc5_3x": 172_353_516,
    "detectron2/mask_rcnn_r50_fpn_1x": 44_343_216,
    "detectron2/mask_rcnn_r50_fpn_3x": 44_343_216,
    "detectron2/mask_rcnn_r50_fpn_3x_gn": 45_711_152,
    "detectron2/mask_rcnn_r50_fpn_3x_syncbn": 45_711_152,
    "detectron2/mask_rcnn_r50_fpn_cityscapes": 43_955_712,
    "detectron2/mask_rcnn_r50_fpn_lsj_100ep": 46_301_232,
    "detectron2/mask_rcnn_r50_fpn_lsj_200ep": 46_301_232,
    "detectron2/mask_rcnn_r50_fpn_lsj_400ep": 46_301_232,
    "detectron2/mask_rcnn_r50_fpn_noaug_1x": 44_343_216,
    "detectron2/mask_rcnn_r50_fpn_scratch_3x_gn": 45_711_152,
    "detectron2/mask_rcnn_r50_fpn_scratch_9x_gn": 45_711_152,
    "detectron2/mask_rcnn_r50_fpn_scratch_9x_syncbn": 45_711_152,
    "detectron2/mask_rcnn_x101_fpn_3x": 107_427_760,
    "detectron2/rpn_r50_c4_1x": 18_027_787,
    "detectron2/rpn_r50_fpn_1x": 27_393_231,
}
# Whose public checkpoint has as many, without the buffers of its normalisation.
CHECKPOINTS = {
    "detectron2/cascade_mask_rcnn_r50_fpn_3x": "d2_cascade_mask_rcnn_R_50_FPN_3x",
    "detectron2/fast_rcnn_r50_fpn_1x": "d2_fast_rcnn_R_50_FPN_1x",
    "detectron2/faster_rcnn_r50_c4_3x": "d2_faster_rcnn_R_50_C4_3x",
    "detectron2/faster_rcnn_r50_c4_voc0712": "d2_voc_faster_rcnn_R_50_C4",
    "detectron2/faster_rcnn_r50_dc5_3x": "d2_faster_rcnn_R_50_DC5_3x",
    "detectron2/faster_rcnn_r50_fpn_3x": "d2_faster_rcnn_R_50_FPN_3x",
    "detectron2/faster_rcnn_x101_fpn_3x": "d2_faster_rcnn_X_101_32x8d_FPN_3x",
    "detectron2/keypoint_rcnn_r50_fpn_3x": "d2_keypoint_rcnn_R_50_FPN_3x",
    "detectron2/mask_rcnn_r101_fpn_3x": "d2_mask_rcnn_R_101_FPN_3x",
    "detectron2/mask_rcnn_r50_c4_3x": "d2_mask_rcnn_R_50_C4_3x",
    "detectron2/mask_rcnn_r50_dc5_3x": "d2_mask_rcnn_R_50_DC5_3x",
    "detectron2/mask_rcnn_r50_fpn_3x": "d2_mask_rcnn_R_50_FPN_3x",
    "detectron2/mask_rcnn_r50_fpn_3x_gn": "d2_mask_rcnn_R_50_FPN_3x_gn",
    "detectron2/mask_rcnn_r50_fpn_3x_syncbn": "d2_mask_rcnn_R_50_FPN_3x_syncbn",
    "detectron2/mask_rcnn_r50_fpn_cityscapes": "d2_cityscapes_mask_rcnn_R_50_FPN",
    "detectron2/mask_rcnn_r50_fpn_lsj_100ep": "d2_mask_rcnn_R_50_FPN_100ep_LSJ",
    "detectron2/mask_rcnn_x101_fpn_3x": "d2_mask_rcnn_X_101_32x8d_FPN_3x",
}


@pytest.fixture(scope="module")
def table():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "scripts"))
        import zoo_table

        yield zoo_table


@pytest.fixture(scope="module")
def size(table):
    import model_size

    return model_size


@pytest.fixture(scope="module")
def load(table):
    return lambda name, mode="": table.load(name).get_config(mode)


def test_no_experiment_is_untested(table):
    assert sorted(NUM_PARAMETERS) == sorted(table.names())


@pytest.mark.parametrize("name", NUM_PARAMETERS)
def test_parameters(name, load, size):
    assert size.num_parameters(load(name).model) == NUM_PARAMETERS[name]


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_parameters_equal_the_public_checkpoint(name, load):
    buffers = r"running_|num_batches_tracked|cell_anchors"
    if load(name).model.backbone.norm == "frozen_bn":
        buffers += r"|norm\.(weight|bias)$"
    shapes = STATE_DICTS[CHECKPOINTS[name]].items()
    assert sum(math.prod(shape) for key, shape in shapes if not re.search(buffers, key)) == NUM_PARAMETERS[name]


@pytest.mark.parametrize("name", NUM_PARAMETERS)
def test_smoke_mode_is_small_and_keeps_the_architecture(name, load):
    whole, smoke = load(name), load(name, "smoke")
    assert smoke.train.steps == 3
    assert smoke.train.init == ""
    assert smoke.data.kind == "shapes"
    files = ("train_images", "train_annotations", "val_images", "val_annotations", "train_proposals", "val_proposals")
    assert not [key for key in files if smoke.data[key]]
    assert smoke.eval.metric == "coco"
    assert (smoke.svm, smoke.alternating) == (whole.svm, whole.alternating)
    for part in ("fpn", "mask", "keypoint"):
        assert smoke.model[part] == whole.model[part]
    if whole.model.backbone is None:
        assert (smoke.model.backbone, smoke.model.trunk) == (None, whole.model.trunk)
        return
    backbone = whole.model.backbone.to_dict()
    if backbone.get("norm") == "frozen_bn":
        backbone["norm"] = "gn"
    assert smoke.model.backbone.to_dict() == backbone


@pytest.mark.parametrize("name", NUM_PARAMETERS)
def test_a_file_says_what_it_reproduces(name, table, load):
    module, config = table.load(name), load(name)
    assert config.name == name
    title = module.__doc__.splitlines()[0]
    assert title.endswith(".")
    assert "|" not in title
    assert module.SOURCE
    assert all(0 < figure < 100 for figure in module.PUBLISHED.values())
    assert hasattr(module, "OURS") == hasattr(module, "LOG")
    assert all(0 < figure < 100 for figure in getattr(module, "OURS", {}).values())
    if config.model.rpn is None:
        assert "proposals" in module.__doc__
    if config.data.kind != "shapes" and "random weights" not in module.__doc__:
        assert "--config.train.init" in module.__doc__


def test_an_unknown_mode_is_refused(load):
    with pytest.raises(ValueError, match="unknown mode 'quick'"):
        load("shapes", "quick")


def test_readme_is_up_to_date(table):
    text = table.README.read_text(encoding="utf-8")
    assert table.render(table.counted(text)) == text


def test_readme_keeps_counted_figures(table):
    line = "| [r50](mask_rcnn/r50.py) | Mask R-CNN | 44,343,216 | 291.6 at 800 x 1344 | 1 x 2 | none | none | `x` |"
    assert table.counted(f"# Title\n\n{line}\n") == {"mask_rcnn/r50": "291.6 at 800 x 1344"}


@pytest.mark.parametrize(
    ("variant", "make", "published"),
    [
        (zoo.torchvision_v1, zoo.faster_rcnn, 134.38),
        (zoo.torchvision_v2, zoo.mask_rcnn, 333.58),
    ],
)
def test_gigaflops_equal_those_that_torchvision_publishes(variant, make, published, size):
    config = variant(make(50))
    config.num_classes = 90
    assert size.gigaflops(config, 800, 800) == pytest.approx(published, abs=0.01)


def test_gigaflops_of_regions_are_those_of_their_network(size):
    # torchvision publishes 15.47 for its classifier.
    assert size.gigaflops(plain.rcnn("vgg16"), 64, 64, 128) / 128 == pytest.approx(15.47, abs=0.01)


def test_loops_count_with_their_turns(size):
    def repeated(x):
        return jax.lax.scan(lambda carry, _: (carry @ x, None), x, length=5)[0]

    def branches(x):
        return jax.lax.cond(x[0, 0] > 0, lambda x: x @ x, lambda x: x, x)

    x = jax.numpy.ones((3, 3))
    assert size.multiplications(jax.make_jaxpr(repeated)(x).jaxpr) == 5 * 27
    assert size.multiplications(jax.make_jaxpr(repeated)(x).jaxpr, loops_once=True) == 27
    assert size.multiplications(jax.make_jaxpr(branches)(x).jaxpr) == 27


def test_what_nothing_depends_on_does_not_count(size):
    def wasteful(x):
        x @ x
        return x @ x[:, :1]

    def wasteful_turns(x):
        return jax.lax.scan(lambda carry, _: (carry + 1.0, (x @ x, x[:, :1] @ x[:1])), 0.0, length=5)[1][1]

    assert size.multiplications(jax.make_jaxpr(wasteful_turns)(jax.numpy.ones((3, 3))).jaxpr) == 5 * 9
    assert size.multiplications(jax.make_jaxpr(wasteful)(jax.numpy.ones((3, 3))).jaxpr) == 9


def test_smoke_all_goes_on_after_a_failure_and_repeats_that_alone(table, tmp_path, monkeypatch, capsys):
    import smoke_all

    ran = []

    def run(name, out):
        ran.append(name)
        return {"passed": name != "balloon" or len(ran) > 2, "seconds": 1, "last": "step 3"}

    monkeypatch.setattr(smoke_all, "run", run)
    arguments = ["balloon", "shapes", f"--out={tmp_path}"]
    with pytest.raises(SystemExit, match="failed: balloon; see"):
        smoke_all.main(arguments)
    assert "1 of 2 passed" in capsys.readouterr().out
    smoke_all.main(arguments)
    assert ran == ["balloon", "shapes", "balloon"]
    with pytest.raises(smoke_all.UserError, match="there is no experiment circles"):
        smoke_all.main(["circles"])
