"""One annotation file of Pascal VOC, as any tool writes it, to plain arrays.

Files may come from anywhere: one that declares entities or a DOCTYPE, which could make a small file large, is refused
before it is parsed, and so is one that is too long or too deeply nested.
"""

import io
import math
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from jaxtyping import Bool, Float64

# VOC's own files have at most 30 kB and five levels; 8 MiB are some 20,000 objects.
SIZE_LIMIT, DEPTH_LIMIT = 8 << 20, 16


class BadXml(ValueError):
    """Says what is wrong with a file and the remedy, without its name, so that others with the same fault count up."""


@dataclass(frozen=True)
class Annotation:
    """What a file says of its image and the n objects in it."""

    # Height and width; zeros where they are absent or no positive numbers.
    size: tuple[int, int]
    # Empty for an object without a name.
    names: list[str]
    # xmin, ymin, xmax, ymax as the file has them: pixels counted from one, the last one included. NaN is no number.
    corners: Float64[np.ndarray, "n 4"]
    difficult: Bool[np.ndarray, " n"]


def read(path: Path) -> Annotation:
    """Reads the size, and of each object name, box and `difficult`; the rest (`part`, `truncated`, ...) is not read.

    Raises:
        BadXml: the file is missing or no VOC annotation, or it is refused.
    """
    root = _root(_content(path))
    if root.tag != "annotation":
        raise BadXml("XML file that is no VOC annotation (its root is not <annotation>), export it again as Pascal VOC")
    objects = root.findall("object")
    corners = [[_number(one, f"bndbox/{side}") for side in ("xmin", "ymin", "xmax", "ymax")] for one in objects]
    size = [_number(root, f"size/{side}") for side in ("height", "width")]
    height, width = (int(side) if 1 <= side < 2**31 else 0 for side in size)
    return Annotation(
        size=(height, width) if height and width else (0, 0),
        names=[" ".join(one.findtext("name", "").split()) for one in objects],
        corners=np.array(corners, np.float64).reshape(-1, 4),
        difficult=np.array([one.findtext("difficult", "").strip().lower() in ("1", "true") for one in objects], bool),
    )


def _content(path: Path) -> bytes:
    try:
        with open(path, "rb") as file:
            content = file.read(SIZE_LIMIT + 1)
    except FileNotFoundError:
        raise BadXml("annotation file that is not there, fetch it or take its image out of the image set") from None
    except OSError as error:
        raise BadXml(f"annotation file that cannot be read ({error.strerror or error}), check it") from None
    if len(content) > SIZE_LIMIT:
        raise BadXml(f"annotation file of more than {SIZE_LIMIT >> 20} MiB, refused; cut its image into tiles")
    # In UTF-16 the next test would see nothing. All other encodings that the parser knows spell these as ASCII does.
    if b"\0" in content:
        raise BadXml("annotation file that is UTF-16 or no text, save it as UTF-8")
    if b"<!DOCTYPE" in content or b"<!ENTITY" in content:
        raise BadXml("annotation file with a DOCTYPE or entities, refused; take them out")
    return content


def _root(content: bytes) -> ElementTree.Element:
    root, depth = None, 0
    try:
        for event, element in ElementTree.iterparse(io.BytesIO(content), ("start", "end")):
            root = element if root is None else root
            depth += 1 if event == "start" else -1
            if depth > DEPTH_LIMIT:
                raise BadXml(f"annotation file nested more than {DEPTH_LIMIT} levels deep, export it again")
    # An unknown encoding is a LookupError or a ValueError.
    except (ElementTree.ParseError, LookupError, ValueError) as error:
        if isinstance(error, BadXml):
            raise
        raise BadXml("annotation file that is no sound XML, export it again or remove it") from error
    if root is None:
        raise BadXml("annotation file that is no sound XML, export it again or remove it")
    return root


def _number(element: ElementTree.Element, path: str) -> float:
    try:
        return float(element.findtext(path, ""))
    except ValueError:
        return math.nan
