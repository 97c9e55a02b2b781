"""Every experiment file: it parses, builds, and has exactly the parameters that it should."""

import importlib
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny

import experiments
from mrcnn_jax.models.build import build

# R50, R101 and LSJ: the sums over the state dicts of Detectron2's models, without the buffers of their normalisation.
NUM_PARAMETERS = {
    "balloon": 15_870_811,
    "fast_rcnn_r50_fpn_1x_coco": 41_106_001,
    "finetune": 44_343_216,
    "keypoint_rcnn_r50_fpn_1x_coco": 59_133_158,
    "mask_rcnn_r18_fpn_coco": 31_317_936,
    "mask_rcnn_r50_fpn_1x_coco": 44_343_216,
    "mask_rcnn_r50_fpn_3x_coco": 44_343_216,
    "mask_rcnn_r50_fpn_lsj_coco": 46_301_232,
    "mask_rcnn_r101_fpn_1x_coco": 63_283_120,
    "mask_rcnn_r101_fpn_3x_coco": 63_283_120,
    "shapes": 3_926_525,
}
FILES = Path(experiments.__path__[0]).glob("*.py")
NAMES = sorted(file.stem for file in FILES if file.stem not in ("__init__", "base"))


def experiment(name: str, mode: str = ""):
    return importlib.import_module(f"experiments.{name}").get_config(mode)


def test_no_experiment_is_untested():
    assert sorted(NUM_PARAMETERS) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_parameters(name):
    config = experiment(name)
    model = build(config.model)
    variables = jax.eval_shape(lambda key: model.init(key, tiny.batch(), method="touch"), jax.random.key(0))
    assert sum(int(np.prod(x.shape)) for x in jax.tree.leaves(variables["params"])) == NUM_PARAMETERS[name]


@pytest.mark.parametrize("name", NAMES)
def test_smoke_mode_is_small_and_keeps_the_architecture(name):
    whole, smoke = experiment(name), experiment(name, "smoke")
    assert smoke.train.steps == 3
    assert smoke.data.kind == "shapes"
    for part in ("fpn", "mask", "keypoint"):
        assert smoke.model[part] == whole.model[part]
    norm = {"frozen_bn": "gn"}.get(whole.model.backbone.norm, whole.model.backbone.norm)
    assert smoke.model.backbone.to_dict() == whole.model.backbone.to_dict() | {"norm": norm}


@pytest.mark.parametrize("name", NAMES)
def test_docstring_promises_a_figure_or_says_that_there_is_none(name):
    text = importlib.import_module(f"experiments.{name}").__doc__
    assert f"mrcnn train --config=experiments/{name}.py" in text
    assert "box AP" in text or "not trained" in text.lower() or "none is promised" in text


def test_an_unknown_mode_is_refused():
    with pytest.raises(ValueError, match="unknown mode 'quick'"):
        experiment("shapes", "quick")
