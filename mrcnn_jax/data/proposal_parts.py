"""Proposals kept in parts while they are found, so that a run that was stopped or killed goes on where it was."""

import json
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mrcnn_jax.data.proposals import read_proposals, write_proposals
from mrcnn_jax.errors import UserError
from mrcnn_jax.files import whole_file
from mrcnn_jax.types import Proposals

# Seconds of work that a kill may cost.
_SAVE_EVERY = 30.0


class Parts(Mapping[str, Proposals]):
    """What was found so far, by a key that the caller chooses, in memory and in the folder FILE.parts.

    A part is a file of proposals with the keys as ids, whole or not there. `settings.json` beside them tells how they
    were made.
    """

    def __init__(self, file: Path, settings: Mapping[str, Any]):
        """Reads the parts that there are for `file`, or makes the folder for them.

        Raises:
            UserError: those that there are were made with other settings, cannot be read, or none can be written.
        """
        self.folder = file.with_name(f"{file.name}.parts")
        # As JSON gives them back, to compare.
        settings = json.loads(json.dumps(settings))
        self._found: dict[str, Proposals] = {}
        self._unsaved: dict[str, Proposals] = {}
        paths = sorted(self.folder.glob("[0-9]*.pkl"))
        if paths:
            self._require_same(settings)
        else:
            with whole_file(self.folder / "settings.json") as partial:
                partial.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
        for path in paths:
            part = read_proposals(path)
            self._found |= {str(key): part[key] for key in part}
        self._next = 1 + int(paths[-1].stem) if paths else 0
        self._saved_at = time.monotonic()

    def __getitem__(self, key: str) -> Proposals:
        return self._found[key]

    def __iter__(self):
        return iter(self._found)

    def __len__(self) -> int:
        return len(self._found)

    def add(self, key: str, proposals: Proposals) -> None:
        """Takes those of one image, and writes a part when enough time has gone by since the last."""
        self._found[key] = self._unsaved[key] = proposals
        if time.monotonic() - self._saved_at > _SAVE_EVERY:
            self.save()

    def save(self) -> None:
        """Writes what is in no part yet. Raises `UserError` where that fails."""
        if self._unsaved:
            content = {key: (found.boxes, found.scores) for key, found in self._unsaved.items()}
            write_proposals(self.folder / f"{self._next:06}.pkl", content)
            self._next += 1
            self._unsaved = {}
        self._saved_at = time.monotonic()

    def remove(self) -> None:
        """Takes the folder away, once the whole file is written."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _require_same(self, settings: Mapping[str, Any]) -> None:
        path = self.folder / "settings.json"
        try:
            saved = json.loads(path.read_text(encoding="utf-8"))
            changed = [key for key in saved.keys() | settings.keys() if saved.get(key) != settings.get(key)]
        except (OSError, ValueError, AttributeError, RecursionError) as error:
            raise UserError(
                f"{path}: cannot be read, so nobody knows how these parts were made: remove {self.folder}"
            ) from error
        if changed:
            shown = ", ".join(
                f"{key} ({saved.get(key)!s:.40} there, {settings.get(key)!s:.40} now)" for key in sorted(changed)
            )
            raise UserError(
                f"{self.folder} holds the parts of a run that was stopped and differs in {shown}: set it back to go "
                "on with that run, remove the folder, or choose another --out"
            )
