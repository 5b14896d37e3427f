"""What got better and what got worse between two results files, beyond the noise.

Figures are judged in two families, each as a whole at the level of chance below (`noise.holm`):

    beside   ratios to a neighbour, taken within pairs of one run, so that the machine's drift is in both halves
    plain    costs, latencies, memory: where a ratio does not speak for them, on the same machine, and where other work
             left it alone in both runs; they drift from one run to the next, and only more than that is a difference

What can't be judged is told with its reason. Worse are also results that became wrong, bars that are not met any more,
and figures that were lost: nobody can say that they are as they were.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Final

from bench.noise import REPETITIONS, chance, holm, spread
from bench.outcome import Figure, Outcome, table
from bench.results import Results, ScenarioLine

__all__ = ["compare"]

#: A family is wrong about one figure or more at most so often.
LEVEL: Final = 0.05
#: What the same code may differ by from one run to the next, as shares: a ratio, and a plain figure, with which the
#: whole machine drifts. Less is no finding, however sure it is.
LEAST_BESIDE: Final = 0.05
LEAST_PLAIN: Final = 0.33
#: Cores used by other work, and percent of the machine taken by its host, beyond which plain figures say little.
FOREIGN_MOST: Final = 0.25
STEAL_MOST: Final = 2.0

WORSE: Final = "WORSE"


@dataclass
class Pair:
    """One figure of both files, and what became of it."""

    scenario: str
    old: Figure
    new: Figure
    verdict: str

    def chance(self) -> float:
        return chance(self.old.values, self.new.values, LEAST_BESIDE if self.new.is_ratio else LEAST_PLAIN)

    def row(self) -> list[str]:
        sides = [(median(figure.values), figure) for figure in (self.old, self.new)]
        change = f"{100 * (sides[1][0] / sides[0][0] - 1):+.1f} %" if sides[0][0] else "-"
        cells = [f"{middle:,.4g} ±{100 * spread(figure.values):.1f}%" for middle, figure in sides]
        return [f"{self.scenario}: {self.new.name}", self.new.unit, *cells, change, self.verdict]


def compare(old: Results, new: Results, *, anyway: bool = False) -> tuple[list[str], int]:
    """Lines for a person, and the exit code: 0 nothing got worse, 1 something did, 2 these can't be compared.

    `anyway`: ratios are compared also between two machines, and having nothing to compare is no failure.
    """
    lines = [f"old: {old.machine.text()}", f"new: {new.machine.text()}"]
    lines += [f"other version of {each}" for each in new.machine.newer_versions(old.machine)]
    unlike = new.machine.unlike(old.machine)
    if unlike:
        lines.append(f"ANOTHER MACHINE: {'; '.join(unlike)}")
        if not anyway:
            return [*lines, "not compared; --anyway compares at least the ratios"], 2
    worse, pairs = [], []
    for name in [name for name in new.scenarios if name in old.scenarios]:
        before, after = old.scenarios[name], new.scenarios[name]
        worse += _right_and_wrong(name, before, after)
        if before.quick or after.quick:
            lines.append(f"{name}: a quick run has no figures to compare")
            continue
        if before.outcome.failed or after.outcome.failed:
            continue
        found, lost = _pairs(name, before.outcome, after.outcome, same_machine=not unlike)
        pairs += found
        worse += lost
    judged = [pair for pair in pairs if not pair.verdict]
    for beside in (True, False):
        _judge([pair for pair in judged if pair.new.is_ratio is beside])
    for name in sorted(old.scenarios.keys() ^ new.scenarios.keys()):
        lines.append(f"{name}: only in {'old' if name in old.scenarios else 'new'}")
    if pairs:
        pairs.sort(key=lambda pair: not pair.new.is_ratio)  # ratios first
        lines += table(["figure", "unit", "old", "new", "change", ""], [pair.row() for pair in pairs])
    worse += [f"{WORSE}: {pair.scenario}: {pair.new.name}" for pair in judged if pair.verdict == WORSE]
    lines += [*worse, f"{len(judged)} of {len(pairs)} figures judged, {len(worse)} findings"]
    if not judged and not worse:
        lines.append("NOTHING WAS COMPARED")
    return lines, 1 if worse else 0 if judged or anyway else 2


def _judge(family: Sequence[Pair]) -> None:
    for pair, sure in zip(family, holm([pair.chance() for pair in family], LEVEL), strict=True):
        if not sure:
            pair.verdict = "same within the noise"
        else:
            up = median(pair.new.values) > median(pair.old.values)
            pair.verdict = "better" if up == (pair.new.better == "higher") else WORSE


def _pairs(name: str, old: Outcome, new: Outcome, *, same_machine: bool) -> tuple[list[Pair], list[str]]:
    """Figures of both sides, with the reason of those that can't be judged; and words on what only one side has."""
    before, after = ({figure.name: figure for figure in outcome.figures} for outcome in (old, new))
    pairs = [
        Pair(name, before[each], figure, _hindrance(before[each], figure, old, new, same_machine=same_machine))
        for each, figure in after.items()
        if each in before
    ]
    pairs += [Pair(name, figure, figure, "new") for each, figure in after.items() if each not in before]
    return pairs, [f"LOST: {name}: {each}" for each in before if each not in after]


def _hindrance(old_figure: Figure, figure: Figure, old: Outcome, new: Outcome, *, same_machine: bool) -> str:
    """Why a figure is not judged; empty where it is."""
    few = min(len(old_figure.values), len(figure.values))
    if few < REPETITIONS:
        return f"not judged: {few} repetition{'s' if few > 1 else ''}"
    if min(*old_figure.values, *figure.values) <= 0:
        return "not judged: not above zero"
    if figure.is_ratio:
        return ""
    if any(other.name.startswith(f"{figure.name}, beside ") for other in new.figures):
        return "its ratio is judged"
    if not same_machine:
        return "not judged: another machine"
    foreign, steal = (max(getattr(side, what) for side in (old, new)) for what in ("foreign_cores", "steal_percent"))
    if foreign > FOREIGN_MOST or steal > STEAL_MOST:
        return f"not judged: other work used {foreign:.1f} cores, the host {steal:.0f} %"
    return ""


def _right_and_wrong(name: str, before: ScenarioLine, after: ScenarioLine) -> list[str]:
    """What is wrong, behind or missed now and was not before."""
    wrong = {_gist(fault) for fault in (*before.outcome.faults, *before.outcome.behind)}
    faults = [*after.outcome.faults, *(() if after.quick else after.outcome.behind)]
    unmet = {_promise(bar.text) for bar in before.outcome.bars if not bar.met}
    return [f"FAULT: {name}: {fault}" for fault in faults if _gist(fault) not in wrong] + [
        f"{bar.verdict(quick=False)}: {name}: {bar.text}"
        for bar in after.outcome.bars
        if not (bar.met or (after.quick and bar.by_time) or _promise(bar.text) in unmet)
    ]


def _gist(fault: str) -> str:
    """A fault without its numbers."""
    return re.sub(r"\d+", "", fault)


def _promise(text: str) -> str:
    """A bar without what was measured."""
    return text.partition(" (here ")[0]
