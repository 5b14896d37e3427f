"""Runs kept, counted and told in pairs: one at the real server, one at its neighbour, a moment apart, by turns.

The machine drifts by a third within minutes; a ratio taken within a pair hardly does. A run in which the swarm needed
more than 80 % of its core does not count, and neither does its pair: it may have been the swarm that was measured. To
keep below, both sides are given the same pace where full speed would be too much (`find_pace`). Quick runs, which are
not about speed, all count.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from statistics import median
from typing import Final

from bench.load.driver import Run, Swarm
from bench.load.sampler import STEP_S
from bench.load.servers import LIMITS_OFF, Server, limit, real
from bench.load.setting import Setting
from bench.outcome import Bar, Outcome

__all__ = [
    "COMMON",
    "COST_COLUMNS",
    "SILENCE",
    "SPIN",
    "Pairs",
    "add_bar",
    "alternate",
    "both",
    "complaints",
    "counted",
    "find_pace",
    "record",
]

SPIN: Final = "--spin"
COMMON: Final = f"limits.rate and limits.burst {LIMITS_OFF['FASTPRESENCE_LIMITS_RATE']}"
SILENCE: Final = "observers may be silent for an hour"
COST_COLUMNS: Final = ("server", "µs CPU best", "median", "worst", "a second", "swarm busy")
#: Of a swarm that is given a pace: so far below the most that a slow moment of the machine does not spoil the run.
SWARM_AIM: Final = 0.62


@contextlib.contextmanager
def both(setting: Setting, settings: dict[str, str]) -> Iterator[tuple[Server, Server]]:
    """The real server and the C limit, side by side on one core."""
    with real(setting, settings) as ours, limit(setting) as theirs:
        yield ours, theirs


def record(setting: Setting, outcome: Outcome, server: Server, run: Run) -> Run:
    """Keep a run: its figures in the file, its faults in the outcome, what the report draws of it."""
    kept = {name: value for name, value in run.as_dict().items() if name not in ("histogram", "slices", "sample")}
    outcome.runs.append({"server": server.name, "counts": run.counts, **kept})
    outcome.faults += [f"{server.name}: {fault}" for fault in run.faults()]
    if not run.counts and not setting.quick:
        outcome.uncounted += 1
    if run.slices:
        speeds = [operations / run.slice_s for operations in run.slices]
        outcome.add_series(f"{server.name}, {run.mode}", "operations a second", run.slice_s, speeds)
    if server.sampler is not None:
        outcome.add_series(server.name, "MB resident", STEP_S, [each / 1e6 for each in server.sampler.take()])
    setting.progress.ran()
    return run


def counted(setting: Setting, runs: Sequence[Run]) -> list[Run]:
    """Those in which the server was measured, not the swarm."""
    return [run for run in runs if run.counts or setting.quick]


def complaints(outcome: Outcome, server: Server) -> None:
    lines = server.complaints()
    if lines:
        outcome.notes.append(f"the server logged {len(lines)} lines, the first: {lines[0][:160]}")


def add_bar(outcome: Outcome, text: str, values: Sequence[float], met: Callable[[float], bool]) -> None:
    """A bar on a median, which takes the place of `{}` in the text. Without one run that counts it is missed."""
    if values:
        outcome.bars.append(Bar(text.format(f"{median(values):,.2f}"), met(median(values))))
    else:
        outcome.bars.append(Bar(text.format("not one run that counts"), met=False))


Sides = tuple[tuple[Server, Swarm], tuple[Server, Swarm]]


def find_pace(
    setting: Setting, outcome: Outcome, sides: Sides, operations: int, measure: Callable[[Swarm, float], Run]
) -> float:
    """Milliseconds between two rounds of so many `operations` that leave the swarm time to spare; 0: no need.

    Each side runs once at full speed, which tells what the swarm could do at most; these runs are not kept.
    """
    if setting.quick:
        return 0.0
    runs = [measure(swarm, 0.0) for _, swarm in sides]
    if all(run.swarm_share <= SWARM_AIM for run in runs):
        return 0.0
    most = min(run.operations / run.seconds / max(0.01, run.swarm_share) for run in runs)
    pace_ms = 1000 * operations / (SWARM_AIM * most)
    outcome.notes.append(
        f"a round of {operations} every {pace_ms:.2f} ms at either server: at full speed the swarm, not a server, "
        f"would be the limit (it needed {', '.join(f'{run.swarm_share:.2f}' for run in runs)} of its core)"
    )
    return pace_ms


def alternate(setting: Setting, outcome: Outcome, sides: Sides, pairs: int, measure: Callable[[Swarm], Run]) -> "Pairs":
    """`pairs` times `measure` on either side, ours first and the other first by turns."""
    runs = Pairs(quick=setting.quick)
    setting.progress.expect(2 * pairs)
    for i in range(pairs):
        for which in (0, 1) if i % 2 == 0 else (1, 0):
            server, swarm = sides[which]
            (runs.limit if which else runs.ours).append(record(setting, outcome, server, measure(swarm)))
    return runs


class Pairs:
    """Runs by pair, and their ratios."""

    def __init__(self, *, quick: bool) -> None:
        self.ours: list[Run] = []
        self.limit: list[Run] = []
        self._quick = quick

    def that_count(self) -> list[tuple[Run, Run]]:
        return [
            (ours, theirs)
            for ours, theirs in zip(self.ours, self.limit, strict=True)
            if self._quick or (ours.counts and theirs.counts)
        ]

    def ratios(self) -> list[float]:
        """Cost of ours over cost of the other, pair by pair."""
        return [ours.us_per_operation / theirs.us_per_operation for ours, theirs in self.that_count()]

    def costs(self) -> list[float]:
        """Microseconds of server CPU an operation of ours."""
        return [ours.us_per_operation for ours, _ in self.that_count()]

    def rows(self, names: tuple[str, str] = ("fastpresence", "C limit")) -> list[list[str]]:
        rows = []
        for name, runs in zip(names, (self.ours, self.limit), strict=True):
            costs = [run.us_per_operation for run in runs]
            busy = max(run.swarm_busy for run in runs)
            rate = median(run.operations / run.seconds for run in runs)
            rows.append(
                [name, f"{min(costs):.2f}", f"{median(costs):.2f}", f"{max(costs):.2f}", f"{rate:,.0f}", f"{busy:.2f}"]
            )
        return rows

    def note(self, what: str = "cost of ours / C") -> str:
        ratios = sorted(self.ratios())
        if not ratios:
            return f"{what}: not one pair counts"
        return f"{what}: median of {len(ratios)} pairs {median(ratios):.3f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"

    def figures(self, outcome: Outcome, what: str, unit: str = "µs CPU") -> None:
        """The two figures of a cost: what it is, and how many times the other's."""
        outcome.figure(what, unit, self.costs())
        outcome.figure(f"{what}, beside C", "times", self.ratios())
