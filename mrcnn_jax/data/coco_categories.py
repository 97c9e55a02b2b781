"""The "categories" of a COCO JSON to the classes 1..K."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

from mrcnn_jax.data.dataset import Category
from mrcnn_jax.data.normalise import key, numbered
from mrcnn_jax.data.report import Report

_SIDE = re.compile(r"left|right|(?<![a-z])[lr](?![a-z])", re.IGNORECASE)
_OTHER = {"left": "right", "right": "left", "l": "r", "r": "l"}


def classes(
    entries: Sequence, annotated: set[str], given: Sequence[Category] | None, report: Report
) -> tuple[tuple[Category, ...], dict[str, int]]:
    """Classes in order of their ids, and the class 1..K of each category id as text.

    Categories of one name are merged. A category without annotations that only groups others (Roboflow's number 0) or
    is labelme's `_background_` is left out.

    Args:
        annotated: ids, as text, that annotations use.
        given: the training set's classes: then these are the classes, in this order, and categories are found by
        name. Ids
            stay those of the file at hand.
    """
    named = _named(entries, report)
    groups = {str(e.get("supercategory")) for e in named.values() if e["name"] != e.get("supercategory")}
    groups.add("_background_")
    hollow = [identity for identity, e in named.items() if identity not in annotated and e["name"] in groups]
    if given is None and hollow:
        report.note("category without annotations that only groups others, left out", "category", hollow)
        named = {k: entry for k, entry in named.items() if k not in hollow}
    ids = dict(zip(named, numbered(list(named), "category", report), strict=True))

    by_name: dict[str, int] = {}
    for identity in sorted(named, key=ids.__getitem__):
        name = named[identity]["name"]
        if name in by_name:
            report.warning("two categories of one name, merged", "category", [f"{identity} {name}"])
        by_name.setdefault(name, ids[identity])
    if given is None:
        entry_of = {entry["name"]: entry for entry in reversed(list(named.values()))}
        found = tuple(_category(number, entry_of[name], report) for name, number in by_name.items())
    else:
        found = _renumbered(given, by_name)
    class_of = {category.name: number for number, category in enumerate(found, start=1)}
    strange = {k: entry["name"] for k, entry in named.items() if entry["name"] not in class_of}
    if used := sorted({name for identity, name in strange.items() if identity in annotated}):
        ours = ", ".join(class_of)
        report.error(f"class that the training set does not have (it has {ours}), rename or remove it", "class", used)
    elif strange:
        report.note("category that the training set does not have, without annotations, left out", "category", strange)
    return found, {k: class_of[entry["name"]] for k, entry in named.items() if entry["name"] in class_of}


def _named(entries: Sequence, report: Report) -> dict[str, dict]:
    """Entries by id as text, each with a name."""
    named: dict[str, dict] = {}
    for number, entry in enumerate(entries):
        if not isinstance(entry, dict) or "id" not in entry:
            report.error("category without an id", "category", [f"number {number}"])
            continue
        identity = key(entry["id"])
        name = str(entry.get("name") or identity).strip()
        if not entry.get("name"):
            report.warning("category without a name, called by its id", "category", [identity])
        if identity in named and named[identity]["name"] != name:
            report.error("category id with two names, correct one", "category", [identity])
        named.setdefault(identity, {**entry, "name": name})
    return named


def _renumbered(given: Sequence[Category], by_name: Mapping[str, int]) -> tuple[Category, ...]:
    """The given classes with the ids of this file; one that the file lacks keeps its own, or gets a free one."""
    taken = set(by_name.values())
    found = []
    for category in given:
        number = by_name.get(category.name, category.id)
        if category.name not in by_name and number in taken:
            number = max(taken) + 1
        taken.add(number)
        found.append(replace(category, id=number))
    return tuple(found)


def _category(number: int, entry: dict, report: Report) -> Category:
    names = entry.get("keypoints")
    names = tuple(str(name) for name in names) if isinstance(names, list) else ()
    pairs = entry.get("skeleton")
    pairs = [pair for pair in pairs if _is_pair(pair)] if isinstance(pairs, list) else []
    # COCO counts from one; some exporters do not.
    first = 0 if any(0 in pair for pair in pairs) else 1
    skeleton = tuple((a - first, b - first) for a, b in pairs if max(a, b) - first < len(names))
    return Category(number, entry["name"], names, flip_permutation(names), skeleton if names else ())


def _is_pair(pair) -> bool:
    return isinstance(pair, list) and len(pair) == 2 and all(type(n) is int and n >= 0 for n in pair)


def flip_permutation(names: Sequence[str]) -> tuple[int, ...]:
    """For each keypoint the one that takes its place in a mirror: left_eye and right_eye change, nose stays."""
    index = {name: i for i, name in enumerate(names)}
    flip = tuple(index.get(_mirrored(name), i) for i, name in enumerate(names))
    return flip if sorted(flip) == list(range(len(names))) else tuple(range(len(names)))


def _mirrored(name: str) -> str:
    def swap(match: re.Match) -> str:
        word, other = match.group(), _OTHER[match.group().lower()]
        return other.upper() if word.isupper() else other.capitalize() if word[0].isupper() else other

    return _SIDE.sub(swap, name)
