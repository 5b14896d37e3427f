"""The results folder: one file for each run, JSON lines, the machine first and then a line for each scenario.

    {"kind": "machine", ...}
    {"kind": "scenario", "quick": false, "outcome": {...}}      written as soon as the scenario has ended

Files are never changed afterwards. Whoever names one may say its path, or any part of its name that fits one file only.
"""

import sys
import time
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct

from bench.machine import Machine
from bench.outcome import BenchError, Outcome

__all__ = ["FOLDER", "Results", "Writer", "find", "newest"]

FOLDER: Final = Path(__file__).resolve().parent / "results"


class MachineLine(Struct, tag_field="kind", tag="machine", frozen=True):
    machine: Machine


class ScenarioLine(Struct, tag_field="kind", tag="scenario", frozen=True):
    outcome: Outcome
    quick: bool


class Results(Struct):
    """One file, read."""

    path: Path
    machine: Machine
    scenarios: dict[str, ScenarioLine]  #: by name

    @classmethod
    def read(cls, path: Path) -> "Results":
        """A line that can't be read is left out, and said so: a run may have been cut off while it wrote."""
        decoder = msgspec.json.Decoder(MachineLine | ScenarioLine)
        machine: Machine | None = None
        scenarios = {}
        try:
            lines = path.read_bytes().splitlines()
        except OSError as error:
            raise BenchError(f"{path}: {error}") from None
        for number, line in enumerate(lines, 1):
            try:
                match decoder.decode(line):
                    case MachineLine(found):
                        machine = found
                    case scenario:
                        scenarios[scenario.outcome.name] = scenario
            except msgspec.DecodeError as error:
                print(f"bench: {path}, line {number}, is left out: {error}", file=sys.stderr)
        if machine is None:
            raise BenchError(f"{path}: it does not say on what machine it was measured")
        return cls(path, machine, scenarios)


class Writer:
    """The file of this run. It comes into being with the first scenario that ends."""

    def __init__(self, machine: Machine, folder: Path = FOLDER) -> None:
        self._machine = machine
        moment = time.strftime("%Y%m%dT%H%M%S", time.gmtime())
        self.path = folder / f"{moment}-{machine.commit}.jsonl"

    def write(self, outcome: Outcome, *, quick: bool) -> None:
        """Add one scenario."""
        lines = [] if self.path.exists() else [msgspec.json.encode(MachineLine(self._machine))]
        lines.append(msgspec.json.encode(ScenarioLine(outcome, quick)))
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab") as file:
            file.write(b"\n".join(lines) + b"\n")


def find(name: str, folder: Path = FOLDER) -> Path:
    """The results file that `name` means. Raises BenchError when it means none, or several."""
    if Path(name).is_file():
        return Path(name)
    fitting = [path for path in sorted(folder.glob("*.jsonl")) if name in path.name]
    if len(fitting) != 1:
        known = ", ".join(path.stem for path in (fitting or sorted(folder.glob("*.jsonl")))[-8:]) or "none"
        raise BenchError(f"{name!r} fits {len(fitting)} files of {folder}; there are: {known}")
    return fitting[0]


def newest(folder: Path = FOLDER) -> list[Results]:
    """Of every scenario the newest outcome, measured in full if there is one; by file, the newest file first."""
    files = []
    for path in sorted(folder.glob("*.jsonl"), reverse=True):
        try:
            files.append(Results.read(path))
        except BenchError as error:
            print(f"bench: left out: {error}", file=sys.stderr)
    chosen: dict[str, Results] = {}
    for quick in (False, True):
        for file in files:
            for name, line in file.scenarios.items():
                if line.quick is quick:
                    chosen.setdefault(name, file)
    picked = []
    for file in files:
        names = [name for name, owner in chosen.items() if owner is file]
        if names:
            picked.append(Results(file.path, file.machine, {name: file.scenarios[name] for name in names}))
    return picked
