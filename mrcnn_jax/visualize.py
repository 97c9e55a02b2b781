"""Pictures: objects drawn on images, contact sheets, training curves."""

import colorsys
import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from PIL import Image, ImageDraw
from pycocotools import mask as coco_mask

from mrcnn_jax.data.dataset import Record
from mrcnn_jax.data.segmentations import decode
from mrcnn_jax.errors import UserError
from mrcnn_jax.labels import Colour, Label, font, write_labels


@dataclass(frozen=True)
class Truth:
    """The annotations of an image, in the form of a result."""

    boxes: Float[np.ndarray, "d 4"]
    labels: Int[np.ndarray, " d"]
    masks: Bool[np.ndarray, "d h w"]
    keypoints: Float[np.ndarray, "d j 3"] | None
    crowd: Bool[np.ndarray, " d"]
    scores: None = None


def truth(record: Record) -> Truth:
    """What is annotated in a record, to be drawn beside what was found; an object without a mask has an empty one."""
    masks = np.zeros((len(record.boxes), record.height, record.width), bool)
    for mask, segmentation in zip(masks, record.segmentations, strict=True):
        if isinstance(segmentation, dict):
            mask[:] = decode(segmentation)
        elif segmentation:
            mask[:] = decode(coco_mask.merge(coco_mask.frPyObjects(segmentation, record.height, record.width)))
    keypoints = None
    if record.keypoints is not None:
        keypoints = record.keypoints + np.array([0.5, 0.5, 0], np.float32)
    return Truth(record.boxes, record.classes - 1, masks, keypoints, record.crowd)


def draw(
    image: UInt8[np.ndarray, "h w 3"],
    result: Any,
    classes: Sequence[str],
    *,
    threshold: float = 0.5,
    max_objects: int = 100,
    skeleton: Sequence[tuple[int, int]] = (),
) -> UInt8[np.ndarray, "h2 w2 3"]:
    """An image with its objects: translucent masks with contours, boxes, names, scores and keypoints.

    Each object has its own colour. Big ones are drawn first. A small image is enlarged up to four times, so that its
    labels can be read; lines and letters grow with a large one.

    Args:
        image: uint8 RGB.
        result: what `Model.predict` or `truth` returns: `boxes` xyxy, `labels` 0..K-1, `scores`, `masks` bool
            [d, h, w] and `keypoints` (the last three or None).
        classes: names of the K classes.
        threshold: lowest score that is drawn.
        max_objects: of those, how many, best first.
        skeleton: pairs of keypoints (from zero) to join.
    """
    height, width = image.shape[:2]
    zoom = int(np.clip(np.ceil(512 / max(height, width)), 1, 4))
    canvas = image.copy()
    if zoom > 1:
        canvas = cv2.resize(canvas, (width * zoom, height * zoom), interpolation=cv2.INTER_CUBIC)
    line = max(canvas.shape[0] * 2 + canvas.shape[1] * 2, 1200) / 1900
    chosen = _chosen(result, threshold, max_objects)
    boxes = np.asarray(result.boxes, np.float64)[chosen] * zoom
    colours = [_colour(i) for i in range(len(chosen))]
    sides = boxes[:, 2:] - boxes[:, :2]
    for i in np.argsort(-sides.prod(axis=1), kind="stable"):
        # A line as thick as a tiny object would hide it.
        thin = min(line, sides[i].min() / 12)
        if result.masks is not None:
            _draw_mask(canvas, np.asarray(result.masks[chosen[i]]), zoom, colours[i], thin)
        _draw_box(canvas, boxes[i], colours[i], thin)
    if result.keypoints is not None:
        for i in range(len(chosen)):
            points = np.asarray(result.keypoints[chosen[i]], np.float64)
            _draw_keypoints(canvas, points, zoom, skeleton, colours[i], line)
    labels = [
        Label(_text(result, row, classes), tuple(box), colour)
        for row, box, colour in zip(chosen, boxes.tolist(), colours, strict=True)
    ]
    crowded = 1 if len(labels) <= 15 else 0.8
    return write_labels(canvas, labels, boxes, max(round(12 * line * crowded), 10))


def sheet(
    images: Sequence[UInt8[np.ndarray, "_ _ 3"]], columns: int, captions: Sequence[str] | None = None, width: int = 420
) -> UInt8[np.ndarray, "h w 3"]:
    """Pictures in rows of `columns`, each in a cell `width` pixels wide, with a caption above where there is one."""
    gap, letters = 12, font(15)
    bar = letters.size + 12 if captions else 0
    tiles = [_fitted(image, width) for image in images]
    rows = [tiles[i : i + columns] for i in range(0, len(tiles), columns)]
    heights = [max(tile.shape[0] for tile in row) for row in rows]
    size = (gap + min(columns, len(tiles)) * (width + gap), gap + sum(h + bar + gap for h in heights))
    page = Image.new("RGB", size, (250, 250, 250))
    pen = ImageDraw.Draw(page)
    y = gap
    for number, (row, height) in enumerate(zip(rows, heights, strict=True)):
        for column, tile in enumerate(row):
            x = gap + column * (width + gap)
            if captions:
                pen.text(
                    (x, y + bar / 2), captions[number * columns + column], fill=(60, 60, 60), font=letters, anchor="lm"
                )
            page.paste(Image.fromarray(tile), (x + (width - tile.shape[1]) // 2, y + bar))
        y += height + bar + gap
    return np.asarray(page)


def save(image: UInt8[np.ndarray, "h w 3"], path: Path) -> None:
    """Writes a PNG or JPEG. Raises `UserError` where that is not possible."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path}: the picture cannot be written ({error}): choose another place, or .png or .jpg"
        ) from error


def curves(csv_path: Path, out_png: Path) -> None:
    """Draws a run's `metrics.csv`: the loss with its parts, the learning rate, and AP where it was measured.

    Raises:
        UserError: the file is missing or holds no step.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    series = _series(csv_path)
    losses = [name for name in series if name == "loss" or name.startswith("loss/")]
    figures = [name for name in series if name.endswith(("/AP", "/AP50"))]
    panels = {
        "loss": losses,
        "learning rate": [n for n in series if n == "learning_rate"],
        "average precision": figures,
    }
    panels = {title: names for title, names in panels.items() if names}
    figure = Figure(figsize=(5.2 * len(panels), 3.8), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (title, names) in zip(np.atleast_1d(figure.subplots(1, len(panels))), panels.items(), strict=True):
        for name in names:
            steps, values = series[name]
            if name in figures:
                best = int(np.argmax(values))
                style = {"marker": "o", "markersize": 3, "label": f"{name}, best {values[best]:.3f}"}
                (drawn,) = axes.plot(steps, values, **style)
                axes.plot(steps[best], values[best], "*", markersize=12, color=drawn.get_color())
            elif name == "loss":
                axes.plot(steps, values, label="all", color="black", linewidth=1.8)
            else:
                axes.plot(steps, values, label=name.removeprefix("loss/").replace("_", " "), linewidth=1.1)
        axes.set(title=title, xlabel="step")
        axes.set_ylim(bottom=0, top=1 if names is figures else None)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        if len(names) > 1:
            axes.legend(frameon=False, fontsize=8)
    figure.savefig(out_png)


def _series(csv_path: Path) -> dict[str, tuple[list[int], list[float]]]:
    """Of each column its steps and values, without the cells that are empty."""
    try:
        with open(csv_path, newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except OSError as error:
        raise UserError(f"{csv_path}: cannot be read ({error.strerror}): name the metrics.csv of a run") from None
    if not rows or "step" not in rows[0]:
        raise UserError(f"{csv_path}: no steps in it: name the metrics.csv of a run that has logged at least once")
    series = {}
    for name in rows[0]:
        cells = [(int(row["step"]), float(row[name])) for row in rows if name != "step" and row[name]]
        if cells:
            steps, values = zip(*cells, strict=True)
            series[name] = list(steps), list(values)
    return series


def _chosen(result: Any, threshold: float, max_objects: int) -> list[int]:
    """Rows to draw, best first; annotations in the order of their size."""
    if result.scores is None:
        sides = np.asarray(result.boxes)[:, 2:] - np.asarray(result.boxes)[:, :2]
        return np.argsort(-sides.prod(axis=1), kind="stable")[:max_objects].tolist()
    scores = np.asarray(result.scores)
    order = np.argsort(-scores, kind="stable")
    return order[scores[order] >= threshold][:max_objects].tolist()


def _colour(index: int) -> Colour:
    """Hues a golden angle apart, so that any few neighbours in the list differ, in three shades."""
    shade = index // 7 % 3
    hue, saturation, value = (0.58 + index * 0.618034) % 1, (0.85, 0.6, 0.95)[shade], (0.95, 0.95, 0.7)[shade]
    r, g, b = colorsys.hsv_to_rgb(hue, saturation, value)
    return round(255 * r), round(255 * g), round(255 * b)


def _text(result: Any, row: int, classes: Sequence[str]) -> str:
    name = classes[int(result.labels[row])]
    if result.scores is not None:
        return f"{name} {result.scores[row]:.2f}"
    return f"crowd of {name}" if result.crowd is not None and result.crowd[row] else name


def _draw_mask(canvas: np.ndarray, mask: np.ndarray, zoom: int, colour: Colour, line: float) -> None:
    """Tints the pixels of a mask and draws their outline, in place."""
    x, y, w, h = cv2.boundingRect(mask.astype(np.uint8))
    if w == 0:
        return
    crop = mask[y : y + h, x : x + w].astype(np.uint8) * 255
    inside = cv2.resize(crop, (w * zoom, h * zoom), interpolation=cv2.INTER_LINEAR) > 127
    region = canvas[y * zoom : (y + h) * zoom, x * zoom : (x + w) * zoom]
    tinted = region[inside] * 0.6 + np.array(colour) * 0.4
    region[inside] = tinted.astype(np.uint8)
    outline, _ = cv2.findContours(
        inside.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE, offset=(x * zoom, y * zoom)
    )
    cv2.drawContours(canvas, outline, -1, colour, max(round(line), 1), cv2.LINE_AA)


def _draw_box(canvas: np.ndarray, box: np.ndarray, colour: Colour, line: float) -> None:
    # The outermost pixels that the box covers, kept inside the image so that no side is lost.
    high = np.array(canvas.shape[1::-1]) - 1
    x0, y0 = np.clip(np.floor(box[:2]), 0, high).astype(int).tolist()
    x1, y1 = np.clip(np.ceil(box[2:]) - 1, 0, high).astype(int).tolist()
    cv2.rectangle(canvas, (x0, y0), (x1, y1), colour, max(round(line), 1), cv2.LINE_AA)


def _draw_keypoints(
    canvas: np.ndarray, points: np.ndarray, zoom: int, skeleton: Sequence[tuple[int, int]], colour: Colour, line: float
) -> None:
    """Joints as dots, hollow where an annotated one is hidden; those without a score or label are left out."""
    at = np.floor(points[:, :2] * zoom).astype(int).tolist()
    seen = points[:, 2] > 0.05
    for a, b in skeleton:
        if seen[a] and seen[b]:
            cv2.line(canvas, at[a], at[b], colour, max(round(1.5 * line), 1), cv2.LINE_AA)
    for joint in np.flatnonzero(seen):
        radius = max(round(2.2 * line), 2)
        cv2.circle(canvas, at[joint], radius, colour, -1, cv2.LINE_AA)
        cv2.circle(canvas, at[joint], radius, (255, 255, 255), max(round(0.7 * line), 1), cv2.LINE_AA)


def _fitted(image: np.ndarray, width: int) -> np.ndarray:
    """An image scaled to fit a cell: never enlarged, and at most one and a half times as high as wide."""
    scale = min(width / image.shape[1], 1.5 * width / image.shape[0], 1.0)
    if scale == 1.0:
        return image
    size = max(round(image.shape[1] * scale), 1), max(round(image.shape[0] * scale), 1)
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA)
