"""What may import what: held here, so that the layers stay layers."""

import ast
import pkgutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import mrcnn_jax

ROOT = Path(mrcnn_jax.__file__).parent
MODULES = sorted(module.name for module in pkgutil.walk_packages([str(ROOT)], "mrcnn_jax."))

# A layer, and what of this package it may import besides itself.
ALLOWED = {
    "mrcnn_jax.types": (),
    "mrcnn_jax.errors": (),
    "mrcnn_jax.interruption": ("mrcnn_jax.hosts.stop",),
    "mrcnn_jax.hosts.stop": (),
    "mrcnn_jax.hosts.line": (),
    "mrcnn_jax.ops": ("mrcnn_jax.types",),
    "mrcnn_jax.nn": ("mrcnn_jax.types",),
    "mrcnn_jax.models": ("mrcnn_jax.types", "mrcnn_jax.errors", "mrcnn_jax.ops", "mrcnn_jax.nn"),
    "mrcnn_jax.data": (
        "mrcnn_jax.types",
        "mrcnn_jax.errors",
        "mrcnn_jax.interruption",
        "mrcnn_jax.ops",
        "mrcnn_jax.progress",
        "mrcnn_jax.conventions",
        "mrcnn_jax.files",
        # Files of proposals are pickles.
        "mrcnn_jax.pickles",
    ),
}
# Neither is a dependency: weights are read without torch, data sets without TensorFlow.
FORBIDDEN = ("torch", "torchvision", "tensorflow", "experiments", "tests")


def imported(file: Path) -> set[str]:
    """Every module that the file imports, anywhere in it; `from x import y` counts as x.y, which may be a module."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: imports are absolute, so that they can be searched for"
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


def within(name: str, packages: tuple[str, ...]) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def file_of(module: str) -> Path:
    path = ROOT.parent / module.replace(".", "/")
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_what_its_layer_may(module):
    names = imported(file_of(module))
    assert not [name for name in names if within(name, FORBIDDEN)]
    for layer, allowed in ALLOWED.items():
        if within(module, (layer,)):
            own = [name for name in names if within(name, ("mrcnn_jax",))]
            assert not [name for name in own if not within(name, (layer, *allowed))]


@pytest.mark.parametrize("module", MODULES)
def test_every_module_imports(module):
    import_module(module)


def test_importing_the_package_is_light():
    # Worker processes import parts of it; `mrcnn --help` too.
    code = "import sys, mrcnn_jax; sys.exit(any(name in sys.modules for name in ('jax', 'flax', 'cv2', 'orbax')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
