"""What comes out of a scenario: figures, rows, bars that are met or missed, faults, and what the report draws."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any, Literal

from bench.histogram import Histogram
from bench.noise import spread

__all__ = ["Bar", "BenchError", "Curve", "Figure", "Outcome", "Ranking", "Series", "table"]


class BenchError(Exception):
    """The bench itself could not go on: nothing was measured. One line that says why."""


@dataclass(frozen=True)
class Bar:
    """One promise of the project, and what was measured."""

    text: str
    met: bool
    by_time: bool = True  #: a figure, not a matter of right and wrong: of no weight in a quick run
    judged: bool = True  #: False: too few runs count to say, and so it is not met

    def verdict(self, *, quick: bool) -> str:
        if quick and self.by_time:
            return "not judged in a quick run"
        return "met" if self.met else "MISSED" if self.judged else "NOT JUDGED"


@dataclass(frozen=True)
class Figure:
    """One named quantity with every repetition of it: what `compare` compares."""

    name: str
    unit: str
    values: list[float]
    better: Literal["lower", "higher"] = "lower"

    @property
    def is_ratio(self) -> bool:
        """Whether it is a cost beside a neighbour's in the same run: the machine's speed is not in it."""
        return self.unit == "times"

    def text(self) -> str:
        return f"{self.name}: {median(self.values):,.4g} {self.unit} ± {100 * spread(self.values):.1f} %"


@dataclass
class Series:
    """A quantity over time, at even steps."""

    name: str
    unit: str
    step_s: float
    values: list[float]
    question: str = ""  #: what was asked meanwhile: series of one question and one unit stand in one chart


@dataclass(frozen=True)
class Curve:
    """A quantity over another one, with a fit's line where there is one."""

    name: str
    x_label: str
    y_label: str
    points: list[tuple[float, float]]
    fit: list[tuple[float, float]] = field(default_factory=list)
    fit_text: str = ""
    limit: float | None = None  #: a bar, drawn across
    uncounted: list[tuple[float, float]] = field(default_factory=list)  #: of runs that do not count
    text: str = ""  #: what the curve says, in a few words


@dataclass(frozen=True)
class Ranking:
    """One quantity of several servers: less is better."""

    name: str
    unit: str
    values: dict[str, float]
    ours: str


@dataclass
class Outcome:
    """What one scenario found. `faults` are results that must not occur at any speed."""

    name: str
    question: str
    leaves_out: str
    settings: str  #: how the servers were set up where that differs from the defaults, and the sizes
    columns: list[str] = field(default_factory=list)
    rows: list[list[str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    bars: list[Bar] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    behind: list[str] = field(default_factory=list)  #: what did not keep its pace: a fault, but not of a quick run
    figures: list[Figure] = field(default_factory=list)
    histograms: dict[str, Histogram] = field(default_factory=dict)
    latency_bar_ms: float | None = None  #: at the 99th percentile of the histograms
    series: list[Series] = field(default_factory=list)
    curves: list[Curve] = field(default_factory=list)
    rankings: list[Ranking] = field(default_factory=list)
    runs: list[dict[str, Any]] = field(default_factory=list)  #: every single run, for whoever wants to look closer
    uncounted: int = 0  #: runs in which the load may have been the limit: in no figure
    steal_percent: float = 0.0  #: of the machine's CPU time, taken by its host meanwhile
    foreign_cores: float = 0.0  #: used by work that was not ours meanwhile: the fewer, the better the figures
    seconds: float = 0.0
    failed: bool = False  #: it could not be run to its end; `faults` says why
    flame: str = ""  #: of a profile: the flame graph, SVG

    @classmethod
    def failure(cls, name: str, question: str, error: Exception) -> "Outcome":
        """Of a scenario that could not be run to its end."""
        why = f"{type(error).__name__}: {error}" if not isinstance(error, BenchError) else str(error)
        return cls(name, question, "everything", "", faults=[f"it failed: {why}"], failed=True)

    def figure(
        self, name: str, unit: str, values: Sequence[float], better: Literal["lower", "higher"] = "lower"
    ) -> None:
        """Keep a figure; one without a single value is none."""
        if values:
            self.figures.append(Figure(name, unit, list(values), better))

    def add_histogram(self, name: str, histogram: Histogram | None) -> None:
        """Add the times of one run to what goes by that name."""
        if histogram is not None and histogram.buckets:
            older = self.histograms.get(name, Histogram())
            self.histograms[name] = Histogram.merged([older, histogram])

    def add_series(self, name: str, unit: str, step_s: float, values: Sequence[float], question: str = "") -> None:
        """Put the values of one run behind what goes by that name."""
        if not values:
            return
        for series in self.series:
            if (series.name, series.unit, series.question) == (name, unit, question):
                series.values += values
                return
        self.series.append(Series(name, unit, step_s, list(values), question))

    def passed(self, *, quick: bool) -> bool:
        return (
            not self.faults
            and (quick or not self.behind)
            and all(bar.met or (quick and bar.by_time) for bar in self.bars)
        )

    def text(self, *, quick: bool) -> str:
        lines = [
            f"== {self.name}: {self.question}",
            f"   leaves out: {self.leaves_out}",
            f"   {self.settings}".rstrip(),
        ]
        if self.rows:
            lines += ["   " + line for line in table(self.columns, self.rows)]
        lines += [f"   {note}" for note in self.notes]
        if self.uncounted:
            lines.append(
                f"   {self.uncounted} of {len(self.runs)} runs DO NOT COUNT: the load used more than 80 % of its core"
            )
        lines.append(
            f"   meanwhile other work used {self.foreign_cores:.2f} cores, the host {self.steal_percent:.1f} %; "
            f"{self.seconds:.0f} s"
        )
        for bar in self.bars:
            lines.append(f"   bar: {bar.text}: {bar.verdict(quick=quick)}")
        lines += [f"   FAULT: {fault}" for fault in self.faults]
        lines += [f"   BEHIND: {fault}" for fault in self.behind]
        return "\n".join(lines)


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table: the first column to the left, the rest to the right."""
    widths = [max(len(row[i]) for row in [columns, *rows]) for i in range(len(columns))]
    lines = []
    for first, *rest in [columns, *rows]:
        cells = [first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True))]
        lines.append("  ".join(cells).rstrip())
    return lines
