"""What was found wrong with a data set, one line and a few ids for each kind of thing."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from mrcnn_jax.errors import UserError

# Ids shown of each kind; the count tells how many there are.
SHOWN = 5


@dataclass
class Finding:
    """One kind of thing that is wrong, how often it was met, and the first few places."""

    text: str
    # What the ids belong to: "image", "annotation", "category", "file".
    what: str
    count: int = 0
    ids: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        if not self.ids:
            return self.text
        more = ", ..." if self.count > len(self.ids) else ""
        return f"{self.text}: {self.count:,} ({self.what} {', '.join(self.ids)}{more})"


class Report:
    """Findings by weight: errors stop a run, warnings tell of repairs and losses, notes are for information."""

    def __init__(self):
        self._findings: dict[str, dict[tuple[str, str], Finding]] = {"error": {}, "warning": {}, "note": {}}

    def error(self, text: str, what: str = "", ids: Iterable = ()) -> None:
        """Adds to the errors; the same text met again adds to its count."""
        self._add("error", text, what, ids)

    def warning(self, text: str, what: str = "", ids: Iterable = ()) -> None:
        """Adds to the warnings; the same text met again adds to its count."""
        self._add("warning", text, what, ids)

    def note(self, text: str, what: str = "", ids: Iterable = ()) -> None:
        """Adds to the notes; the same text met again adds to its count."""
        self._add("note", text, what, ids)

    def _add(self, level: str, text: str, what: str, ids: Iterable) -> None:
        finding = self._findings[level].setdefault((text, what), Finding(text, what))
        for identity in ids:
            finding.count += 1
            if len(finding.ids) < SHOWN:
                finding.ids.append(_short(identity))

    @property
    def errors(self) -> list[str]:
        """One line for each kind of error."""
        return [str(finding) for finding in self._findings["error"].values()]

    @property
    def warnings(self) -> list[str]:
        """One line for each kind of warning."""
        return [str(finding) for finding in self._findings["warning"].values()]

    @property
    def notes(self) -> list[str]:
        """One line for each kind of note."""
        return [str(finding) for finding in self._findings["note"].values()]

    def stop_if_errors(self, source: str | Path) -> None:
        """Raises a `UserError` that names the source and gives the first error, if there is one."""
        if self.errors:
            more = f"; and {len(self.errors) - 1} more, see `mrcnn check`" if len(self.errors) > 1 else ""
            raise UserError(f"{source}: {self.errors[0]}{more}")

    def lines(self) -> list[str]:
        """Everything, the gravest first."""
        return [f"{level}: {finding}" for level, found in self._findings.items() for finding in found.values()]

    def to_dict(self) -> dict[str, list[dict]]:
        """Everything, fit for JSON: {"error": [{text, what, count, ids}, ...], "warning": ..., "note": ...}."""
        return {level: [asdict(finding) for finding in found.values()] for level, found in self._findings.items()}


def _short(identity) -> str:
    """An id from the file, which may be of any type and length, made fit for a line; the end of a path says most."""
    text = " ".join(str(identity).split())
    return text if len(text) <= 80 else f"{text[:28]}...{text[-49:]}"
