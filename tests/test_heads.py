from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mrcnn_jax.nn.heads import BoxHead, BoxPredictor, RPNHead
from mrcnn_jax.nn.mask_heads import Deconv, MaskHead, depth_to_space

GOLDEN = np.load(Path(__file__).parent / "golden" / "nn_layers.npz")
KEY = jax.random.key(0)
ROIS = jax.ShapeDtypeStruct((2, 7, 7, 256), jnp.float32)


def normal(*shape):
    return jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)


def size(model, *args):
    params = jax.eval_shape(lambda *a: model.init(KEY, *a), *args)["params"]
    return sum(x.size for x in jax.tree.leaves(params))


def pyramid(channels=256):
    return {level: (normal(2, 2 ** (6 - level), 2 ** (6 - level), channels), None) for level in (2, 3)}


def with_train(model):
    """The same model with `train` fixed, for `size`."""
    return type("Fixed", (), {"init": lambda self, key, x: model.init(key, x, True)})()


def test_sizes_are_those_of_the_references():
    features = jax.ShapeDtypeStruct((2, 1024), jnp.float32)
    assert size(RPNHead(), pyramid()) == 593_935
    assert size(RPNHead(num_convs=2), pyramid()) == 1_184_015
    assert size(with_train(BoxHead()), ROIS) == 13_895_680
    assert size(with_train(BoxHead(num_convs=4, fc_dims=(1024,), norm="gn")), ROIS) == 15_207_424
    assert size(BoxPredictor(80), features) == 411_025
    assert size(with_train(MaskHead()), ROIS) == 2_643_280
    assert size(with_train(MaskHead(norm="bn")), ROIS) == 2_644_304


def test_a_whole_mask_rcnn_has_the_parameters_of_detectron2():
    trunk, pyramid = 23_454_912, 3_344_384
    features = jax.ShapeDtypeStruct((2, 1024), jnp.float32)
    heads = size(with_train(BoxHead()), ROIS) + size(BoxPredictor(80), features) + size(with_train(MaskHead()), ROIS)
    assert trunk + pyramid + size(RPNHead(), {2: (normal(1, 4, 4, 256), None)}) + heads == 44_343_216


def test_rpn_flattens_by_row_column_anchor():
    maps = pyramid(4)
    (logits, deltas), variables = RPNHead(8, num_anchors=3).init_with_output(KEY, maps)
    p = variables["params"]
    for level, (x, _) in maps.items():
        i = level - 2
        h, w = x.shape[1:3]
        padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        hidden = sum(padded[:, r : r + h, c : c + w] @ p["conv1"]["kernel"][r, c] for r in range(3) for c in range(3))
        hidden = np.maximum(hidden, 0)
        scores, boxes = (hidden @ p[k]["kernel"][0, 0] for k in ("objectness_logits", "anchor_deltas"))
        assert logits[i].shape == (2, h * w * 3)
        for row, column, anchor in [(0, 0, 0), (1, 2, 1), (h - 1, w - 1, 2)]:
            at = (row * w + column) * 3 + anchor
            np.testing.assert_allclose(logits[i][:, at], scores[:, row, column, anchor], atol=1e-6)
            expected = boxes[:, row, column, 4 * anchor : 4 * anchor + 4]
            np.testing.assert_allclose(deltas[i][:, at], expected, atol=1e-6)


def test_rpn_with_two_convolutions_is_blind_to_padding():
    model, x = RPNHead(8, num_convs=2), normal(1, 5, 6, 4)
    padded = jnp.zeros((1, 8, 8, 4)).at[:, :5, :6].set(x)
    variables = model.init(KEY, {2: (x, None)})
    (alone,), _ = model.apply(variables, {2: (x, None)})
    (together,), _ = model.apply(variables, {2: (padded, jnp.array([[5, 6]]))})
    np.testing.assert_allclose(together.reshape(8, 8, 3)[:5, :6], alone.reshape(5, 6, 3), atol=1e-6)


def test_box_head_reads_rows_then_columns_then_channels():
    x = normal(3, 2, 2, 4)
    y, variables = BoxHead(fc_dims=(5,)).init_with_output(KEY, x, True)
    kernel = np.asarray(variables["params"]["fc1"]["kernel"]).reshape(2, 2, 4, 5)
    np.testing.assert_allclose(y, np.maximum(np.einsum("nhwc,hwcf->nf", x, kernel), 0), atol=1e-5)


@pytest.mark.parametrize(("agnostic", "boxes"), [(False, 7), (True, 1)])
def test_box_predictor_shapes(agnostic, boxes):
    (logits, deltas), variables = BoxPredictor(7, agnostic).init_with_output(KEY, normal(3, 9))
    assert logits.shape == (3, 8)
    assert deltas.shape == (3, boxes, 4)
    x, p = normal(3, 9), variables["params"]["bbox_pred"]
    np.testing.assert_allclose(deltas[:, boxes - 1], (x @ p["kernel"])[:, -4:], atol=1e-6)


def test_deconvolution_equals_torch_with_a_transposed_kernel():
    variables = {"params": {"kernel": jnp.asarray(GOLDEN["deconv_kernel"].transpose(2, 3, 0, 1)), "bias": jnp.zeros(3)}}
    y = depth_to_space(Deconv(3).apply(variables, jnp.asarray(GOLDEN["in"].transpose(0, 2, 3, 1))))
    np.testing.assert_allclose(y, GOLDEN["deconv_out"].transpose(0, 2, 3, 1), atol=1e-6)


def test_mask_head_applies_its_predictor_to_the_upsampled_map():
    x, model = normal(3, 4, 4, 6), MaskHead(num_convs=0, dim=8, num_classes=2)
    logits, variables = model.init_with_output(KEY, x, True)
    p = variables["params"]
    up = np.maximum(depth_to_space(Deconv(8).apply({"params": p["deconv"]}, x)), 0)
    assert logits.shape == (3, 8, 8, 2)
    np.testing.assert_allclose(logits, up @ p["predictor"]["kernel"][0, 0], atol=1e-6)


@pytest.mark.parametrize("head", [BoxHead(1, 4, (5,), norm="bn"), MaskHead(1, 4, 2, norm="bn")])
def test_rois_that_do_not_exist_enter_no_statistics(head):
    x, valid = normal(4, 6, 6, 3), jnp.array([True, False, True, False])
    variables = head.init(KEY, x, True)
    run = jax.jit(lambda x, valid: head.apply(variables, x, True, valid, mutable=["batch_stats"]))
    filtered, expected = run(x[::2], None)
    y, updates = run(x.at[1::2].set(1e6), valid)
    np.testing.assert_allclose(y[::2], filtered, atol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), updates, expected)


def test_last_layers_are_float32_whatever_the_features():
    logits, deltas = RPNHead(8, dtype="bfloat16").init_with_output(KEY, pyramid(4))[0]
    assert {x.dtype for x in logits + deltas} == {jnp.dtype("float32")}
    features, variables = BoxHead(1, 8, (8,), dtype="bfloat16").init_with_output(KEY, normal(2, 7, 7, 4), True)
    assert features.dtype == jnp.bfloat16
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(variables))
    assert BoxPredictor(3, dtype="bfloat16").init_with_output(KEY, features)[0][0].dtype == jnp.float32
    assert MaskHead(1, 8, 3, dtype="bfloat16").init_with_output(KEY, normal(2, 4, 4, 4), True)[0].dtype == jnp.float32
