"""The exported artefact: in a process of its own, on images as they are, it finds what `predict` finds."""

import subprocess
import sys

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from mrcnn_jax.checkpoints.stablehlo import PLATFORMS, export_stablehlo, resize
from mrcnn_jax.data import transforms
from mrcnn_jax.data.dataset import Category
from mrcnn_jax.errors import UserError
from mrcnn_jax.model import Model
from mrcnn_jax.models import zoo
from mrcnn_jax.models.build import build

HEIGHT, WIDTH = 90, 120
# What the documentation shows; only jax, flatbuffers and NumPy are imported.
LOADER = """
import sys, jax, jax.export, numpy
images, model, out = numpy.load(sys.argv[1]), sys.argv[2], sys.argv[3]
detect = jax.export.deserialize(bytearray(open(model, "rb").read()))
found = {name: numpy.asarray(value) for name, value in detect.call(images).items()}
numpy.savez(out, **found)
assert not any(name.split(".")[0] in ("mrcnn_jax", "flax", "ml_collections") for name in sys.modules)
"""


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (3, HEIGHT, WIDTH, 3)).astype(np.uint8)


@pytest.mark.parametrize("shape", [(64, 85), (130, 173), (90, 120), (200, 300)])
def test_resizing_is_pillows_to_the_bit(images, shape):
    expected = [transforms.resize(image, shape, "pil") for image in images]
    found = jax.jit(resize, static_argnums=(1, 2))(images, shape, "pil")
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(("interpolation", "tolerance"), [("torchvision", 1e-3), ("cv2", 1)])
def test_resizing_without_antialiasing(images, interpolation, tolerance):
    for shape in ((64, 85), (130, 173)):
        expected = [transforms.resize(image, shape, interpolation) for image in images]
        found = np.asarray(resize(jnp.asarray(images), shape, interpolation))
        assert found.dtype == expected[0].dtype
        assert np.abs(found.astype(np.float32) - np.stack(expected).astype(np.float32)).max() <= tolerance


@pytest.mark.parametrize("library", ["detectron2", "torchvision"])
def test_the_artefact_finds_what_predict_finds(images, tmp_path, library):
    config = tiny.model_config()
    config.preprocess.update({"short_side": 64, "max_size": 100})
    config = zoo.torchvision(config) if library == "torchvision" else config
    variables = tiny.variables(build(config))
    path = tmp_path / "model.stablehlo"
    export_stablehlo(path, variables, config, height=HEIGHT, width=WIDTH)
    exported = jax.export.deserialize(bytearray(path.read_bytes()))
    assert exported.platforms == PLATFORMS == ("cpu", "cuda", "tpu")

    np.save(tmp_path / "images.npy", images)
    command = [sys.executable, "-c", LOADER, tmp_path / "images.npy", path, tmp_path / "found.npz"]
    subprocess.run(command, check=True, capture_output=True, cwd=tmp_path, timeout=300)
    found = np.load(tmp_path / "found.npz")
    model = Model(config, tuple(Category(i, f"class {i}") for i in range(1, 4)), variables)
    for row, expected in enumerate(model.predict(list(images), batch_size=3)):
        valid = found["valid"][row]
        assert valid.sum() == len(expected.boxes) > 0
        np.testing.assert_array_equal(found["classes"][row][valid], expected.labels)
        np.testing.assert_allclose(found["scores"][row][valid], expected.scores, atol=2e-4)
        # These random weights make large deltas, which multiply rounding errors.
        np.testing.assert_allclose(found["boxes"][row][valid], expected.boxes, atol=2e-2)
        assert found["masks"].shape == (3, 10, 28, 28)


def test_a_model_that_needs_proposals_is_refused(tmp_path):
    with pytest.raises(UserError, match="without an RPN"):
        export_stablehlo(tmp_path / "m", {}, zoo.fast_rcnn(50), height=64, width=64)
    assert not list(tmp_path.iterdir())
