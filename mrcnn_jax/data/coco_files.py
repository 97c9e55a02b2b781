"""Where a COCO data set keeps its files: the usual layouts, and the image that a file name means."""

import os
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

from mrcnn_jax.errors import UserError

_NAMES = {
    "train": ("train2017", "train2014", "train"),
    "val": ("val2017", "val2014", "val", "valid", "validation"),
}
# {0} is the split's name. COCO and CVAT; Roboflow; CVAT by subset; Label Studio; and what people write by hand.
_ANNOTATIONS = (
    "annotations/instances_{0}.json",
    "annotations/{0}.json",
    "{0}/_annotations.coco.json",
    "{0}/instances_default.json",
    "{0}/annotations/instances_default.json",
    "{0}/result.json",
    "{0}/annotations.json",
    "instances_{0}.json",
    "{0}.json",
)
_WHOLE = (
    "instances_default.json",
    "annotations/instances_default.json",
    "_annotations.coco.json",
    "result.json",
    "annotations.json",
    "coco.json",
)
_IMAGES = ("{0}/images", "images/{0}", "{0}", "images")


def find(root: str | Path, split: str) -> tuple[Path, Path]:
    """Finds images folder and annotations in the layouts of COCO, CVAT, Roboflow, Label Studio and the balloon set.

    One file for everything is taken for training. A test split is never taken for validation. The images folder may
    be the root itself: names are looked up below it.

    Args:
        split: "train" or "val".

    Raises:
        UserError: nothing is found; names places that were tried.
    """
    root = Path(root)
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; give the folder that holds images and annotations")
    names = _NAMES[split]
    for name in names:
        for pattern in _ANNOTATIONS:
            annotations = root / pattern.format(name)
            if annotations.is_file():
                folders = (root / pattern.format(name) for pattern in _IMAGES)
                return next((folder for folder in folders if folder.is_dir()), root), annotations
    whole = next((root / name for name in _WHOLE if (root / name).is_file()), None)
    if split == "train" and whole:
        return (root / "images" if (root / "images").is_dir() else root), whole
    tried = ", ".join([_ANNOTATIONS[0].format(names[0]), _ANNOTATIONS[1].format(split), _ANNOTATIONS[2].format(split)])
    alike = ", to those of training if there are no others" if split == "val" else ""
    raise UserError(
        f"{root}: no COCO annotations for {split} (tried {tried}, ...); set config.data.{split}_annotations and "
        f"config.data.{split}_images, both below {root}{alike}"
    )


class ImageFiles:
    """The files below a folder, looked up by the names that annotation tools write.

    Tried in turn: the name as it stands; with forward slashes, without a URL's query and %-escapes; then the files
    with the same last part, in either case, of which the one with the most folders in common is taken. A file
    outside the folder is never opened and nothing is downloaded.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._listed: dict[str, set[str]] = {}
        self._by_name: dict[str, list[str]] | None = None

    def exact(self, name: str) -> str | None:
        """`name` if there is such a file, relative to the folder."""
        parent, _, last = name.rpartition("/")
        if name.startswith("/") or ".." in parent.split("/") or "\0" in name:
            return None
        if parent not in self._listed:
            self._listed[parent] = _names(self.folder / parent)
        return name if last in self._listed[parent] else None

    def similar(self, name: str) -> list[str]:
        """The files that `name` may mean, equally well: one is an answer, several are a question."""
        plain = unquote(name.replace("\\", "/").split("?")[0])
        if found := self.exact(plain):
            return [found]
        if self._by_name is None:
            self._by_name = defaultdict(list)
            for path in self._walk():
                self._by_name[path.rsplit("/", 1)[-1].casefold()].append(path)
        wanted = PurePosixPath(plain).parts
        candidates = self._by_name.get(wanted[-1].casefold(), []) if wanted else []
        closeness = [_common_suffix(PurePosixPath(path).parts, wanted) for path in candidates]
        return [path for path, n in zip(candidates, closeness, strict=True) if n == max(closeness)]

    def _walk(self) -> Iterator[str]:
        for parent, _, names in os.walk(self.folder):
            relative = Path(parent).relative_to(self.folder)
            yield from ((relative / name).as_posix() for name in sorted(names))


def _names(folder: Path) -> set[str]:
    try:
        with os.scandir(folder) as entries:
            return {entry.name for entry in entries if entry.is_file()}
    except OSError:
        return set()


def _common_suffix(parts: tuple[str, ...], others: tuple[str, ...]) -> tuple[int, int]:
    """Equal parts from the end, without and with regard to case."""
    pairs = list(zip(reversed(parts), reversed(others), strict=False))
    loose = next((i for i, (a, b) in enumerate(pairs) if a.casefold() != b.casefold()), len(pairs))
    exact = next((i for i, (a, b) in enumerate(pairs) if a != b), len(pairs))
    return loose, exact
