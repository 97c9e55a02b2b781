"""`mrcnn check`: what is wrong with a data set, before a run finds out."""

from pathlib import Path

from ml_collections import ConfigDict

from mrcnn_jax.data.check import CheckResult, check, check_dataset, check_proposals
from mrcnn_jax.data.report import Report
from mrcnn_jax.data.sources import reader
from mrcnn_jax.errors import UserError
from mrcnn_jax.evaluation.results import write_json


def run(config: ConfigDict | None, images: Path | None, annotations: Path | None, json_path: Path | None) -> int:
    """Read one data set, or both of a config's, and print the findings.

    Returns 0 where all is well, 1 where something stops a run, or has to be repaired or left out.
    """
    if images is not None and annotations is not None:
        results = {annotations.name: check(images, annotations)}
    elif config is not None:
        results = _both(config)
    else:
        raise UserError("nothing to check: give --images and --annotations, or --config")
    for name, result in results.items():
        print("\n".join([f"{name}:", *result.lines()]))
    if json_path is not None:
        write_json({name: result.to_json() for name, result in results.items()}, json_path)
    return int(any(result.errors or result.warnings for result in results.values()))


def _both(config: ConfigDict) -> dict[str, CheckResult]:
    """Training and validation images, the second by the classes of the first."""
    train = check_dataset(reader(config, "train"))
    try:
        val = check_dataset(reader(config, "val", train.categories or None))
    except UserError as error:
        # What is wrong with the training set is worth knowing all the same.
        val = CheckResult(Report())
        val.report.error(str(error))
    for split, result in (("train", train), ("val", val)):
        if path := config.data.get(f"{split}_proposals"):
            check_proposals(result, Path(config.data.root).expanduser() / path)
    if shared := train.shared_pictures(val):
        text = "picture of train in val, which flatters figures; use other pictures for one of them"
        val.report.warning(text, "image", shared)
    return {"train": train, "val": val}
