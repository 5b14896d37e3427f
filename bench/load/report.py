"""What comes out of a scenario: rows, bars that are met or missed, faults; and the machine it was measured on."""

import platform
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["Bar", "BenchError", "Machine", "Outcome", "table"]


class BenchError(Exception):
    """The bench itself could not go on: nothing was measured. One line that says why."""


@dataclass(frozen=True)
class Bar:
    """One promise of the project, and what was measured."""

    text: str
    met: bool
    by_time: bool = True  #: a figure, not a matter of right and wrong: of no weight in a quick run


@dataclass
class Outcome:
    """What one scenario found. `faults` are results that must not occur at any speed."""

    name: str
    question: str
    leaves_out: str
    settings: str  #: how the servers were set up where that differs from the defaults, and the sizes
    columns: Sequence[str] = ()
    rows: list[Sequence[str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    bars: list[Bar] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    runs: list[dict[str, Any]] = field(default_factory=list)  #: every single run, for the JSON file
    steal_percent: float = 0.0  #: of the machine's CPU time, taken by its host meanwhile
    foreign_cores: float = 0.0  #: used by work that was not ours meanwhile: the fewer, the better the figures

    def passed(self, *, quick: bool) -> bool:
        return not self.faults and all(bar.met or (quick and bar.by_time) for bar in self.bars)

    def text(self, *, quick: bool) -> str:
        lines = [f"== {self.name}: {self.question}", f"   leaves out: {self.leaves_out}", f"   {self.settings}"]
        if self.rows:
            lines += ["   " + line for line in table(self.columns, self.rows)]
        lines += [f"   {note}" for note in self.notes]
        lines.append(
            f"   meanwhile other work used {self.foreign_cores:.2f} cores, the host {self.steal_percent:.1f} %"
        )
        for bar in self.bars:
            verdict = "met" if bar.met else "MISSED"
            if quick and bar.by_time:
                verdict = "not judged in a quick run"
            lines.append(f"   bar: {bar.text}: {verdict}")
        lines += [f"   FAULT: {fault}" for fault in self.faults]
        return "\n".join(lines)


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table: the first column to the left, the rest to the right."""
    widths = [max(len(row[i]) for row in [columns, *rows]) for i in range(len(columns))]
    lines = []
    for first, *rest in [columns, *rows]:
        cells = [first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True))]
        lines.append("  ".join(cells))
    return lines


@dataclass(frozen=True)
class Machine:
    """Where a figure comes from: without it, it says nothing."""

    cpu: str
    cpus: int  #: that the bench may use
    kernel: str
    python: str
    commit: str  #: of the sources measured; "+" when there were changes on top

    @classmethod
    def here(cls, cpus: int) -> "Machine":
        model = "unknown CPU"
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                model = line.split(":", 1)[1].strip()
                break
        mhz = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("cpu MHz")]
        if mhz and "GHz" not in model:
            model += f", {float(mhz[0].split(':')[1]) / 1000:.1f} GHz"
        return cls(model, cpus, platform.release(), platform.python_version(), _commit())

    def text(self) -> str:
        return f"{self.cpu}, {self.cpus} CPUs, Linux {self.kernel}, Python {self.python}, commit {self.commit}"

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def _commit() -> str:
    here = Path(__file__).resolve().parent

    def git(*words: str) -> str:
        result = subprocess.run(["git", *words], cwd=here, capture_output=True, text=True, check=True)
        return result.stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "--short", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
