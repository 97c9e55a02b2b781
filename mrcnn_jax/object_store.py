"""Paths that may lie in Google Cloud Storage: gs://BUCKET/FOLDER beside those of disks.

A path of the first kind has pathlib's methods too, but is no `pathlib.Path`.
"""

import functools
import logging
import os
import re
from os import PathLike
from pathlib import Path

from etils import epath

from mrcnn_jax.errors import UserError

AnyPath = Path | epath.Path


def any_path(path: str | PathLike) -> AnyPath:
    """The path that a text names.

    Raises:
        UserError: it is of an object store other than Google's, or gs:// is misspelt.
    """
    text = os.fspath(path)
    if re.match(r"gs://[^/]+/+[^/]", text):
        # Other processes write there, and TensorStore does: a listing is never what it was a moment ago.
        import fsspec

        fsspec.config.conf.setdefault("gcs", {})["use_listings_cache"] = False
        # What it logs, with a traceback, is raised too.
        logging.getLogger("gcsfs").setLevel(logging.CRITICAL)
        # Where TensorFlow is installed, its file system would be taken instead.
        os.environ.setdefault("EPATH_USE_TF", "false")
        return epath.Path(text)
    if text.lower().startswith("gs:"):
        raise UserError(f"{text} is no path in Google Cloud Storage: write it as gs://BUCKET/FOLDER, and as a text")
    # One letter is a drive of Windows.
    if scheme := re.match(r"[A-Za-z][\w+.-]+(?=:/)", text):
        raise UserError(f"{text}: {scheme[0]}:// is not supported: give a folder of a disk, or gs://BUCKET/FOLDER")
    return Path(path)


def local_path(path: str | PathLike) -> Path:
    """As `any_path`, where only a disk will do."""
    found = any_path(path)
    if not isinstance(found, Path):
        raise UserError(f"{path} is in an object store: give a path on a disk of this machine")
    return found


def absolute(path: str | PathLike) -> AnyPath:
    """As `any_path`; on a disk, from its root."""
    found = any_path(path)
    return found.absolute() if isinstance(found, Path) else found


def rename(folder: AnyPath, target: AnyPath) -> None:
    """Renames a folder; in an object store, all of it is copied before anything is deleted."""
    if isinstance(folder, Path):
        folder.rename(target)
        return
    import fsspec

    # Of the store's own, which moves one object after the other, half would be left in either place after a crash.
    fsspec.filesystem("gcs").copy(str(folder), str(target), recursive=True)
    folder.rmtree()


def in_one_line(error: Exception) -> str:
    """The kind of an error and what it says."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def require(path: AnyPath) -> None:
    """Raises `UserError` where a path is in a bucket that cannot be reached from here."""
    if not isinstance(path, Path):
        _require_bucket(path.parts[2])


# What was there once is not asked for again; errors are not remembered.
@functools.cache
def _require_bucket(bucket: str) -> None:
    try:
        # For paths, for Orbax, and what tells why a bucket cannot be reached.
        import gcsfs  # noqa: F401
        from google.api_core.exceptions import Forbidden, NotFound
        from google.auth.exceptions import DefaultCredentialsError
        from google.cloud import storage
    except ModuleNotFoundError as error:
        raise UserError(f"gs://{bucket} needs the package {error.name}: pip install 'mrcnn_jax[gcs]'") from None
    try:
        client = storage.Client()
        try:
            client.get_bucket(bucket, timeout=20)
        finally:
            client.close()
    except DefaultCredentialsError:
        reason = "there are no credentials here: make them with `gcloud auth application-default login`"
    except NotFound:
        reason = f"no such bucket: correct the path, or make it with `gcloud storage buckets create gs://{bucket}`"
    except Forbidden:
        reason = (
            "these credentials may not use it: grant them roles/storage.objectUser and, since storage.buckets.get is "
            "asked for too, roles/storage.legacyBucketReader"
        )
    # Whatever is wrong with a network, or a file of credentials.
    except Exception as error:
        reason = f"it cannot be reached ({in_one_line(error)}): try again"
    else:
        return
    raise UserError(f"gs://{bucket}: {reason}")
