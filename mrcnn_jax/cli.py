"""The `mrcnn` command. Handlers live in `commands` and are imported when they run, so that `mrcnn --help` is quick."""

import argparse
import math
import os
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from mrcnn_jax import __version__, determinism, disk_space
from mrcnn_jax.errors import UserError
from mrcnn_jax.hosts import together
from mrcnn_jax.hosts.place import WAIT, find
from mrcnn_jax.hosts.roll_call import Everywhere
from mrcnn_jax.interruption import Interrupted

if TYPE_CHECKING:
    from mrcnn_jax.object_store import AnyPath

_CONFIG_HELP = "an experiment, e.g. experiments/shapes.py or experiments/shapes.py:smoke"
_MODEL_OVERRIDES = (
    "What no file of weights tells, such as the size of images, can be set: --model.preprocess.short_side=1024"
)
_OVERRIDES = "Every key of the experiment can be changed: --config.train.steps=100 --config.data.root=DIR"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit status, after one line for whatever is not 0 or 1.

    0 is well done, 1 that `check` found something wrong or `plan` a batch that does not fit, 2 an error, 75 that
    another host was lost, the run stood still or an object store did not answer, 130 Ctrl-C, and 143 SIGTERM while
    training. After 75 and 143 the same command goes on where the run was.
    """
    parser = _parser()
    options, overrides = _parse(parser, sys.argv[1:] if arguments is None else list(arguments))
    try:
        return _run(options, overrides)
    except UserError as error:
        return _fail(str(error), everywhere=isinstance(error, Everywhere), status=error.status)
    except Interrupted as stop:
        return _tell(str(stop), status=128 + stop.signal)
    except KeyboardInterrupt:
        again = ": run the same command to go on" if options.command in ("train", "demo", "propose") else ""
        if together.several():
            together.fail(f"interrupted{again}", 130)
        return _tell(f"interrupted{again}", status=130)
    except BrokenPipeError:
        # The reader (`| head`) has left. Python would complain once more when it flushes stdout at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        # Where a collective failed because a host is gone, that comes to be known, and ends this process.
        time.sleep(2 if together.several() else 0)
        if disk_space.is_full(error):
            workdir = getattr(options, "workdir", None)
            where = f" while writing {workdir}" if workdir else ""
            return _fail(f"the disk is full{where}: free some space and run the same command again")
        return _fail(_unexpected(error, getattr(options, "workdir", None)))


def _run(options: argparse.Namespace, overrides: list[str]) -> int:
    def command(name: str) -> Callable[..., Any]:
        return import_module(f"mrcnn_jax.commands.{name}").run

    if options.command == "score":
        command("score")(options.gt, options.dt, options.type, options.backend, options.metric)
        return 0
    if options.command == "predict":
        command("predict")(options.checkpoint, options.images, options.out, options.threshold, options.proposals)
        return 0

    if options.command == "import":
        command("import_weights")(
            options.file, options.arch, options.out, options.allow_partial, options.classes, options.model
        )
        return 0
    if options.command == "export":
        command("export")(options.checkpoint, options.format, options.out, options.image_size, options.batch_size)
        return 0

    if options.command in ("train", "eval"):
        if options.deterministic and not determinism.require():
            print("--deterministic changes nothing here: it is for GPUs, and no plugin of JAX for them is installed")
        place = find(options.coordinator, options.num_processes, options.process_id)
        if place is not None:
            from mrcnn_jax.distributed import joined

            with joined(place, float(options.wait)):
                together.same({"--deterministic": options.deterministic}, "give it to all hosts or to none")
                return _with_config(options, overrides, command)
    return _with_config(options, overrides, command)


def _with_config(
    options: argparse.Namespace, overrides: list[str], command: Callable[[str], Callable[..., Any]]
) -> int:
    config = None
    if options.config:
        from mrcnn_jax.config_files import load_config

        config = load_config(options.config, overrides)
    if options.command == "propose":
        workers = (os.cpu_count() or 1) if options.workers is None else options.workers
        command("propose")(
            config, options.split, options.images, options.method, options.checkpoint, options.out, options.num,
            workers, options.json,
        )  # fmt: skip
        return 0
    if options.command == "check":
        return command("check")(config, options.images, options.annotations, options.json)
    if options.command == "plan":
        return command("plan")(
            config, options.topology, options.batch_per_chip, options.search, options.full, options.json
        )
    if options.command == "eval":
        command("evaluate")(config, options.workdir, options.checkpoint, options.json)
    else:
        command(options.command)(config, options.workdir)
    return 0


class _Parser(argparse.ArgumentParser):
    """Tells a mistake in one line, as every other error is told, without the usage above it."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"mrcnn: error: {message} (`{self.prog} --help` tells more)\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="mrcnn", description="Train, score and use detectors of the R-CNN family in JAX.", allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=f"mrcnn_jax {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    def add(name: str, summary: str, epilog: str | None = None) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=summary, description=summary, epilog=epilog, allow_abbrev=False)

    demo = add("demo", "Train, score and draw on drawn shapes; needs no data and no arguments.", _OVERRIDES)
    demo.add_argument("--config", default="experiments/shapes.py", metavar="FILE[:MODE]", help=_CONFIG_HELP)
    demo.add_argument("--workdir", type=_place, default=Path("runs/demo"), metavar="DIR", help="default: %(default)s")

    check = add("check", "Read a whole data set before a run and say what is wrong.", _OVERRIDES)
    check.add_argument("--config", metavar="FILE[:MODE]", help=f"check the data of {_CONFIG_HELP}")
    check.add_argument("--images", type=_disk, metavar="DIR", help="folder of images")
    check.add_argument("--annotations", type=_disk, metavar="JSON", help="their COCO annotations")
    check.add_argument("--json", type=_disk, metavar="FILE", help="write the findings as JSON too")

    train = add("train", "Train, or go on with a run that was stopped.", _OVERRIDES)
    train.add_argument("--config", required=True, metavar="FILE[:MODE]", help=_CONFIG_HELP)
    train.add_argument("--workdir", type=_place, required=True, metavar="DIR", help="where the run is kept")

    evaluate = add("eval", "Score a run or a checkpoint on its validation images.", _OVERRIDES)
    evaluate.add_argument("--config", metavar="FILE[:MODE]", help=f"{_CONFIG_HELP}; by default, the run's own")
    evaluate.add_argument("--workdir", type=_place, metavar="DIR", help="the run whose best checkpoint is scored")
    evaluate.add_argument("--checkpoint", type=_place, metavar="PATH", help="a checkpoint, instead of --workdir")
    evaluate.add_argument("--json", type=_disk, metavar="FILE", help="write the figures as JSON too")

    for several in (train, evaluate):
        several.add_argument(
            "--deterministic", action="store_true", help="the same bits in every run on the same GPUs; slower"
        )
        hosts = several.add_argument_group("several hosts", "Found by itself on TPU pods, under SLURM and Open MPI.")
        hosts.add_argument("--coordinator", metavar="HOST:PORT", help="the first host, and a free port of it")
        hosts.add_argument("--num-processes", type=_positive, metavar="N", help="how many hosts there are")
        hosts.add_argument("--process-id", type=_count, metavar="I", help="which of them this is, from 0 on")
        hosts.add_argument(
            "--wait", type=_positive, default=WAIT, metavar="SECONDS", help="for the others (default: %(default)s)"
        )
    plan = add("plan", "Tell whether a run fits on TPUs or GPUs that are not here, and what it needs.", _OVERRIDES)
    plan.add_argument("--config", required=True, metavar="FILE[:MODE]", help=_CONFIG_HELP)
    plan.add_argument("--topology", required=True, metavar="KIND:AxB", help="such as v5e:2x2, v5p:4x4x4 or h100:8")
    plan.add_argument(
        "--batch-per-chip",
        type=_positive,
        metavar="N",
        help="images a chip; by default config.train.batch_size dealt out",
    )
    plan.add_argument("--no-search", dest="search", action="store_false", help="do not look for the largest batch")
    plan.add_argument("--full", action="store_true", help="compile with all optimisations: several times as long")
    plan.add_argument("--json", type=_disk, metavar="FILE", help="write the figures as JSON too")

    predict = add("predict", "Detect in images: draws them and writes predictions.json (COCO results).")
    predict.add_argument("images", nargs="+", metavar="IMAGE", help="image files or folders")
    predict.add_argument(
        "--checkpoint", type=_place, required=True, metavar="PATH", help="a run's folder or a checkpoint"
    )
    predict.add_argument("--out", type=_disk, required=True, metavar="DIR", help="where to write")
    predict.add_argument(
        "--threshold", type=_score, metavar="SCORE", help="lowest score drawn (0.5, or a margin of 0 where SVMs score)"
    )

    predict.add_argument(
        "--proposals", type=_disk, metavar="FILE", help="for a model without an RPN: Detectron2's, ids as images' names"
    )

    propose = add("propose", "Make a file of region proposals, for models without an RPN.", _OVERRIDES)
    propose.add_argument("--config", metavar="FILE[:MODE]", help=f"propose for the images of {_CONFIG_HELP}")
    propose.add_argument("--split", choices=("train", "val"), help="which of the config's images")
    propose.add_argument("--images", type=_disk, metavar="DIR", help="instead of --config: ids are the images' names")
    propose.add_argument(
        "--method", required=True, choices=("selective_search_fast", "selective_search_quality", "rpn"), help="by what"
    )
    propose.add_argument("--checkpoint", type=_place, metavar="PATH", help="for rpn: a run's folder or a checkpoint")
    propose.add_argument("--out", type=_disk, required=True, metavar="FILE", help="the .pkl to write, as Detectron2's")
    propose.add_argument(
        "--num", type=_positive, metavar="N", help="proposals kept an image; by default 2000, or the RPN's own number"
    )
    propose.add_argument(
        "--workers", type=_count, metavar="N", help="processes of selective search; by default one a CPU, 0 for none"
    )
    propose.add_argument("--json", type=_disk, metavar="FILE", help="write the figures as JSON too")

    score = add("score", "Score COCO results against COCO ground truth; prints JSON.")
    score.add_argument("--gt", type=_disk, required=True, metavar="JSON", help="ground truth")
    score.add_argument("--dt", type=_disk, required=True, metavar="JSON", help="results")
    score.add_argument("--type", choices=("bbox", "segm", "keypoints"), default="bbox", help="default: %(default)s")
    score.add_argument(
        "--metric", choices=("coco", "voc07", "voc12", "cityscapes"), default="coco", help="default: %(default)s"
    )
    score.add_argument("--backend", choices=("hotcoco", "pycocotools"), default="hotcoco", help="default: %(default)s")

    importing = add("import", "Turn weights of torchvision or Detectron2 into a checkpoint.", _MODEL_OVERRIDES)
    importing.add_argument("file", type=_disk, metavar="FILE", help=".pth, .pkl, .safetensors or .npz")
    importing.add_argument("--arch", metavar="NAME", help="the architecture; by default it is recognised")
    importing.add_argument("--out", type=_disk, required=True, metavar="DIR", help="the checkpoint to write")
    importing.add_argument(
        "--classes", metavar="NAME,...", help="their names in order, or the COCO .json that was trained on"
    )
    importing.add_argument(
        "--allow-partial", action="store_true", help="take what fits, though arrays are missing or left over"
    )

    export = add("export", "Write a checkpoint in the form that other programs load.")
    export.add_argument(
        "--checkpoint", type=_place, required=True, metavar="PATH", help="a run's folder or a checkpoint"
    )
    export.add_argument(
        "--format", required=True, choices=("torchvision", "detectron2", "safetensors", "stablehlo"), help="the form"
    )
    export.add_argument("--out", type=_disk, required=True, metavar="FILE", help="the file to write")
    export.add_argument("--image-size", type=_size, metavar="HxW", help="of the images that a stablehlo artefact takes")
    export.add_argument("--batch-size", type=_positive, metavar="N", help="images at a time; by default any number")
    return parser


def _place(text: str) -> Any:
    """A path on a disk or in an object store."""
    return _path(text, "any_path")


def _disk(text: str) -> Any:
    """A path on a disk."""
    return _path(text, "local_path")


def _path(text: str, kind: str) -> Any:
    # Few paths are worth the quarter of a second that the import takes.
    if ":" not in text:
        return Path(text)
    try:
        return getattr(import_module("mrcnn_jax.object_store"), kind)(text)
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _score(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not a number from 0 to 1")
    return value


def _size(text: str) -> tuple[int, int]:
    height, _, width = text.partition("x")
    if not (height.isdecimal() and width.isdecimal() and int(height) and int(width)):
        raise argparse.ArgumentTypeError(f"{text} is not a height and a width in pixels, such as 480x640")
    return int(height), int(width)


def _positive(text: str) -> int:
    if not (text.isdecimal() and int(text)):
        raise argparse.ArgumentTypeError(f"{text} is not a whole number from 1 on")
    return int(text)


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text} is not a whole number from 0 on")
    return int(text)


def _parse(parser: argparse.ArgumentParser, arguments: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """The options, and the overrides (`--config.a.b=value`) as `a.b=value`."""
    prefix = "--config."
    overrides = [argument.removeprefix(prefix) for argument in arguments if argument.startswith(prefix)]
    arguments = [argument for argument in arguments if not argument.startswith(prefix)]
    model = "--model."
    changes = [argument.removeprefix(model) for argument in arguments if argument.startswith(model)]
    options = parser.parse_args([argument for argument in arguments if not argument.startswith(model)])
    options.model = changes
    if changes and options.command != "import":
        parser.error(f"--model.{changes[0]} is for `mrcnn import`: elsewhere write --config.model.{changes[0]}")
    if getattr(options, "config", None) == "":
        parser.error("argument --config: name an experiment, such as experiments/shapes.py")
    if overrides and not getattr(options, "config", None):
        parser.error(f"--config.{overrides[0]} changes an experiment: name it with --config=FILE")
    if options.command == "check" and not options.config and not (options.images and options.annotations):
        parser.error("check: give --images and --annotations, or --config")
    if options.command == "eval" and not (options.workdir or options.checkpoint):
        parser.error("eval: give --workdir or --checkpoint")
    if options.command == "propose":
        _check_propose(parser, options)
    with_weights = options.command == "eval" or (options.command == "propose" and options.method == "rpn")
    if with_weights and (model := [o for o in overrides if o.startswith("model.")]):
        parser.error(f"{options.command}: --config.{model[0]} has no effect: the model's config comes with its weights")
    return options, overrides


def _check_propose(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    if bool(options.config) == bool(options.images):
        parser.error("propose: give --config and --split, or --images")
    if bool(options.config) != bool(options.split):
        parser.error("propose: --config and --split=train or --split=val belong together")
    if (options.method == "rpn") != bool(options.checkpoint):
        parser.error("propose: --method=rpn and --checkpoint=PATH belong together")


def _unexpected(error: Exception, workdir: "AnyPath | None") -> str:
    """Keeps the traceback in a file and returns the line that says so."""
    summary = f"unexpected {type(error).__name__}: {str(error).partition(chr(10))[0][:300]}"
    try:
        file = (workdir if workdir and workdir.is_dir() else Path()) / "error.log"
        file.write_text("".join(traceback.format_exception(error)))
    # An object store may raise anything.
    except Exception:
        traceback.print_exception(error)
        return summary
    return f"{summary} (the traceback is in {file})"


def _fail(message: str, everywhere: bool = False, status: int = 2) -> int:
    if together.several():
        # Not in the usual way, in which JAX would wait for hosts that wait for this one.
        together.fail(message, status, tell=not everywhere)
    return _tell(f"error: {' '.join(message.splitlines())}", status=status)


def _tell(line: str, status: int) -> int:
    print(f"mrcnn: {line}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
