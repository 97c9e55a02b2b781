"""Timing and figures: each is a median with its spread, its unit and the load of the machine when it was taken."""

import json
import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

# A round of measurement calls a function until about this many seconds have passed.
SHORTEST_ROUND = 0.3
# No further round begins after this many seconds, once there are two.
LONGEST = 60.0

# Runs its work that many times and returns when all of it is finished, on the device too.
Work = Callable[[int], object]


@dataclass(frozen=True)
class Figure:
    """One figure: the samples, one a round, and the mean number of runnable processes in the minute before the last."""

    part: str
    name: str
    unit: str
    samples: tuple[float, ...]
    load: float

    @property
    def median(self) -> float:
        return statistics.median(self.samples)

    def __str__(self) -> str:
        spread = "" if len(self.samples) == 1 else f" ({_short(min(self.samples))} .. {_short(max(self.samples))})"
        value = f"{_short(self.median):>8} {self.unit}{spread}"
        return f"{self.name:<58} {value:<46} n={len(self.samples)}  load {self.load:.1f}"


@dataclass
class Report:
    """Prints figures as they come and keeps them."""

    header: dict[str, object]
    figures: list[Figure] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, part: str, name: str, unit: str, samples: Sequence[float]) -> None:
        figure = Figure(part, name, unit, tuple(samples), os.getloadavg()[0])
        self.figures.append(figure)
        print(f"{part:<10} {figure}", flush=True)

    def rates(self, part: str, unit: str, amount: float, seconds: dict[str, list[float]]) -> None:
        """`amount` a second for every name."""
        for name, samples in seconds.items():
            self.add(part, name, unit, [amount / s for s in samples])

    def note(self, text: str) -> None:
        self.notes.append(text)
        print(f"# {text}", flush=True)

    def write(self, path: Path) -> None:
        figures = [
            {**asdict(f), "median": f.median, "min": min(f.samples), "max": max(f.samples)} for f in self.figures
        ]
        rounded = json.loads(json.dumps(figures), parse_float=lambda x: float(f"{float(x):.5g}"))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({**self.header, "notes": self.notes, "figures": rounded}, indent=1) + "\n")


def measure(works: dict[str, Work], repeats: int) -> dict[str, list[float]]:
    """Seconds that one call takes, `repeats` times for each.

    All are warmed up first. Then rounds alternate between them, so that a slow spell of the machine falls on all alike,
    and sample i of one may be compared with sample i of another.
    """
    calls = {}
    for name, work in works.items():
        work(1)
        calls[name] = max(1, round(SHORTEST_ROUND / seconds(work, 1)))
    samples: dict[str, list[float]] = {name: [] for name in works}
    start = time.perf_counter()
    for done in range(repeats):
        if done >= 2 and time.perf_counter() - start > LONGEST:
            break
        for name, work in works.items():
            samples[name].append(seconds(work, calls[name]) / calls[name])
    return samples


def seconds(work: Work, calls: int) -> float:
    """Seconds that so many calls take together."""
    start = time.perf_counter()
    work(calls)
    return time.perf_counter() - start


def _short(value: float) -> str:
    """Three digits that count, without an exponent."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
