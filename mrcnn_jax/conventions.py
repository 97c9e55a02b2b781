"""Whose rules turn annotations into what a model learns, and what it finds into results."""

from typing import Any, Literal

Rule = Literal["detectron2", "torchvision"]


def rule_of(model: Any) -> Rule:
    """Whose rule turns the detections of a model, told by its config, into results: that of its masks.

    Without masks it is still torchvision's for the models that follow that library, which are those whose box head has
    a background output (`box.background_output`).
    """
    mask = model.get("mask")
    if mask is not None:
        return mask.paste
    box = model.get("box")
    return "torchvision" if box is not None and box.background_output else "detectron2"
