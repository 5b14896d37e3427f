"""Runs kept, counted and told in pairs: one at the real server, one at its neighbour, a moment apart, by turns.

The machine drifts by a third within minutes; a ratio taken within a pair hardly does. A pair counts when both its runs
do (`rule.py`). So that they do, both sides are given the same pace where full speed would be too much (`find_pace`).
"""

import contextlib
from collections.abc import Callable, Iterator
from statistics import median
from typing import Final, TypeVar

from bench.load.driver import Run
from bench.load.rule import LOAD_AIM, counts, record
from bench.load.servers import LIMITS_OFF, Server, limit, real
from bench.load.setting import Setting
from bench.outcome import Outcome

__all__ = [
    "COMMON",
    "COST_COLUMNS",
    "SILENCE",
    "SPIN",
    "Pairs",
    "alternate",
    "both",
    "complaints",
    "find_pace",
]

SPIN: Final = "--spin"
COMMON: Final = f"limits.rate and limits.burst {LIMITS_OFF['FASTPRESENCE_LIMITS_RATE']}"
SILENCE: Final = "observers may be silent for an hour"
COST_COLUMNS: Final = ("server", "µs CPU best", "median", "worst", "a second", "load busy")


@contextlib.contextmanager
def both(setting: Setting, settings: dict[str, str]) -> Iterator[tuple[Server, Server]]:
    """The real server and the C limit, side by side on one core."""
    with real(setting, settings) as ours, limit(setting) as theirs:
        yield ours, theirs


def complaints(outcome: Outcome, server: Server) -> None:
    lines = server.complaints()
    if lines:
        outcome.notes.append(f"the server logged {len(lines)} lines, the first: {lines[0][:160]}")


#: Whoever drives: a swarm, or clients here.
Driver = TypeVar("Driver")
Sides = tuple[tuple[Server, Driver], tuple[Server, Driver]]


def find_pace(
    setting: Setting, outcome: Outcome, sides: Sides[Driver], operations: int, measure: Callable[[Driver, float], Run]
) -> float:
    """Milliseconds between two rounds of so many `operations` that leave the swarm time to spare; 0: no need.

    Each side runs once at full speed, which tells what the swarm could do at most; these runs are not kept.
    """
    if setting.quick:
        return 0.0
    runs = [measure(swarm, 0.0) for _, swarm in sides]
    if all(run.load_share <= LOAD_AIM for run in runs):
        return 0.0
    most = min(run.operations / run.seconds / max(0.01, run.load_share) for run in runs)
    pace_ms = 1000 * operations / (LOAD_AIM * most)
    outcome.notes.append(
        f"a round of {operations} every {pace_ms:.2f} ms at either server: at full speed the swarm, not a server, "
        f"would be the limit (it needed {', '.join(f'{run.load_share:.2f}' for run in runs)} of its core)"
    )
    return pace_ms


def alternate(
    setting: Setting,
    outcome: Outcome,
    sides: Sides[Driver],
    pairs: int,
    measure: Callable[[Driver], Run],
    question: str = "",
) -> "Pairs":
    """`pairs` times `measure` on either side, ours first and the other first by turns."""
    runs = Pairs(setting)
    setting.progress.expect(2 * pairs)
    for i in range(pairs):
        for which in (0, 1) if i % 2 == 0 else (1, 0):
            server, swarm = sides[which]
            (runs.limit if which else runs.ours).append(record(setting, outcome, server, measure(swarm), question))
    return runs


class Pairs:
    """Runs by pair, and their ratios."""

    def __init__(self, setting: Setting) -> None:
        self.ours: list[Run] = []
        self.limit: list[Run] = []
        self._setting = setting

    def that_count(self) -> list[tuple[Run, Run]]:
        return [
            (ours, theirs)
            for ours, theirs in zip(self.ours, self.limit, strict=True)
            if counts(self._setting, max(ours.load_share, theirs.load_share))
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
            busy = max(run.load_share for run in runs)
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

    def figures(self, outcome: Outcome, what: str, beside: str = "C") -> None:
        """The two figures of a cost: what it is, and how many times the other's."""
        outcome.figure(what, "µs CPU", self.costs())
        outcome.figure(f"{what}, beside {beside}", "times", self.ratios())
