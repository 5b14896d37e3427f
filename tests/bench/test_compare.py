"""Comparing results: what is judged, what is told, and how often that is wrong."""

import random
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import msgspec
import pytest

from bench.compare import compare
from bench.load.setting import Cpus
from bench.machine import Machine
from bench.outcome import Bar, Outcome
from bench.results import Results, ScenarioLine

HERE = Machine.here(Cpus.allowed())
OTHER = msgspec.structs.replace(HERE, cpu="something slower")
CALM = [1.0, 1.01, 0.99, 1.005, 0.995]


def results(*outcomes: Outcome, quick: bool = False, machine: Machine = HERE) -> Results:
    return Results(Path("file"), machine, {each.name: ScenarioLine(each, quick) for each in outcomes})


def outcome(name: str = "fanout", **figures: list[float]) -> Outcome:
    """`plain` is a figure in microseconds, `ratio` one beside C; both may be left out."""
    made = Outcome(name, "What?", "nothing", "none")
    for what, values in figures.items():
        made.figure(what, "times" if what.startswith("ratio") else "us", values)
    return made


def times(factor: float) -> list[float]:
    return [value * factor for value in CALM]


def verdicts(old: Results, new: Results, *, anyway: bool = False) -> tuple[dict[str, str], int]:
    """By figure, of the table; and the code."""
    lines, code = compare(old, new, anyway=anyway)
    first = next(number for number, line in enumerate(lines) if line.startswith("figure"))
    rows = [line.split("  ") for line in lines[first + 1 :] if line.count("\u00b1") == 2]
    return {cells[0].split(": ")[1]: cells[-1].strip() for cells in rows}, code


def test_ratios_and_plain_figures_are_told_apart_and_each_may_get_better_or_worse() -> None:
    old = results(outcome(ratio=CALM, ratio_same=CALM, ratio_less=CALM, plain=CALM, plain_drift=CALM))
    new = results(
        outcome(ratio=times(1.2), ratio_same=times(1.04), ratio_less=times(0.8), plain=times(2), plain_drift=times(1.3))
    )
    found, code = verdicts(old, new)
    assert code == 1
    assert found == {
        "ratio": "WORSE",
        "ratio_same": "same within the noise",
        "ratio_less": "better",
        "plain": "WORSE",
        "plain_drift": "same within the noise",
    }
    assert list(found)[:3] == ["ratio", "ratio_same", "ratio_less"]


def test_a_rate_that_grew_is_better() -> None:
    old, new = outcome(), outcome()
    for made, factor in ((old, 1), (new, 2)):
        made.figure("entries", "a CPU second", times(factor), "higher")
    assert verdicts(results(old), results(new)) == ({"entries": "better"}, 0)


def test_a_cost_whose_ratio_is_there_is_not_judged_by_itself() -> None:
    old, new = outcome(plain=CALM), outcome(plain=times(2))
    for made in (old, new):
        made.figure("plain, beside C", "times", CALM)
    found, code = verdicts(results(old), results(new))
    assert code == 0
    assert found == {"plain": "its ratio is judged", "plain, beside C": "same within the noise"}


def test_two_machines_are_not_compared_unless_asked_for_and_then_by_ratios_only() -> None:
    old = results(outcome(ratio=CALM, plain=CALM))
    new = results(outcome(ratio=CALM, plain=times(3)), machine=OTHER)
    lines, code = compare(old, new)
    assert code == 2
    assert any(line.startswith("ANOTHER MACHINE: CPU: ") and "something slower" in line for line in lines)
    assert not any(line.startswith("figure") for line in lines)
    found, code = verdicts(old, new, anyway=True)
    assert code == 0
    assert found == {"ratio": "same within the noise", "plain": "not judged: another machine"}


def test_other_versions_are_told_and_are_no_other_machine() -> None:
    newer = msgspec.structs.replace(HERE, versions=HERE.versions | {"uvloop": "99", "native build": "another"})
    lines, code = compare(results(outcome(ratio=CALM)), results(outcome(ratio=CALM), machine=newer))
    assert code == 0
    assert [line for line in lines if "version" in line] == [
        f"other version of uvloop: {HERE.versions['uvloop']}, now 99"
    ]


@pytest.mark.parametrize("what", ["foreign_cores", "steal_percent"])
@pytest.mark.parametrize("side", [0, 1])
def test_plain_figures_beside_other_work_are_not_judged_and_ratios_are(what: str, side: int) -> None:
    sides = (outcome(ratio=CALM, plain=CALM), outcome(ratio=CALM, plain=times(3)))
    setattr(sides[side], what, 10.0)
    found, code = verdicts(results(sides[0]), results(sides[1]))
    assert code == 0
    assert found["ratio"] == "same within the noise"
    assert found["plain"].startswith("not judged: other work used")


def test_what_can_t_be_judged_is_told_with_its_reason() -> None:
    old = outcome(ratio=CALM, few=[1.0, 1.0], zero=[0.0, 1.0, 1.0])
    new = outcome(ratio=CALM, few=[9.0, 9.0, 9.0], zero=[1.0, 1.0, 1.0], more=CALM)
    found, code = verdicts(results(old), results(new))
    assert code == 0
    assert found["few"] == "not judged: 2 repetitions"
    assert found["zero"] == "not judged: not above zero"
    assert found["more"] == "new"


def test_a_figure_that_was_lost_is_a_finding() -> None:
    lines, code = compare(results(outcome(ratio=CALM, plain=CALM)), results(outcome(ratio=CALM)))
    assert code == 1
    assert "LOST: fanout: plain" in lines


def test_faults_and_missed_bars_are_findings_when_they_are_new() -> None:
    def failing(faults: list[str], *bars: Bar) -> Results:
        made = outcome(ratio=CALM)
        made.faults, made.bars = faults, list(bars)
        return results(made)

    met, missed = Bar("at most 2 (here 1.5)", met=True), Bar("at most 2 (here 2.5)", met=False)
    assert compare(failing(["3 wrong"], missed), failing(["4 wrong"], missed))[1] == 0
    assert compare(failing(["3 wrong"], missed), failing([], met))[1] == 0
    lines, code = compare(failing([], met), failing(["4 wrong"], missed))
    assert code == 1
    assert lines[-3:-1] == ["FAULT: fanout: 4 wrong", "MISSED: fanout: at most 2 (here 2.5)"]


def test_quick_runs_have_no_figures_but_are_right_or_wrong() -> None:
    old, new = outcome("a", plain=CALM), outcome("a", plain=times(9))
    new.bars.append(Bar("fast", met=False))
    new.behind.append("late")
    lines, code = compare(results(old, outcome("b")), results(new, quick=True))
    assert code == 2
    assert "a: a quick run has no figures to compare" in lines
    assert "b: only in old" in lines
    assert lines[-1] == "NOTHING WAS COMPARED"
    assert compare(results(old), results(new, quick=True), anyway=True)[1] == 0
    new.bars.append(Bar("right", met=False, by_time=False))
    assert compare(results(old), results(new, quick=True))[1] == 1


class Bench:
    """Results of runs of the same code on a machine that is never quite quiet.

    From run to run its speed drifts by a third, of which a ratio sees little; within a run every repetition has noise,
    each figure its own amount, and some are disturbed.
    """

    NAMES, PLAIN = [f"scenario {number}" for number in range(12)], 7

    def __init__(self, seed: int, *, disturbed: float = 0.05, noise: tuple[float, float] = (0.01, 0.06)) -> None:
        self.dice = random.Random(seed)
        self.disturbed, self.noise = disturbed, noise

    def run(self, slower: Mapping[str, float] = MappingProxyType({})) -> Results:
        """Five repetitions of everything; `slower` says by scenario how many times what it was."""
        speed = self.dice.uniform(1, 4 / 3)
        made = []
        for name in self.NAMES:
            each = Outcome(name, "?", "nothing", "none")
            factor = slower.get(each.name, 1.0)
            each.figure("cost, beside C", "times", self._values(factor * self.dice.uniform(0.98, 1.02), 1))
            for plain in range(self.PLAIN):
                each.figure(f"cost {plain}", "us", self._values(factor * speed, 2))
            made.append(each)
        return results(*made)

    def _values(self, middle: float, more: float) -> list[float]:
        noise = more * self.dice.uniform(*self.noise)
        return [
            middle * self.dice.lognormvariate(0, noise) * (1.3 if self.dice.random() < self.disturbed else 1)
            for _ in range(5)
        ]


def test_runs_of_the_same_code_are_not_told_apart() -> None:
    """Of 300 comparisons of 96 figures each, at most what the level allows; with 5 % a figure nearly all would be."""
    bench = Bench(1)
    wrong = [lines for lines, code in (compare(bench.run(), bench.run()) for _ in range(300)) if code]
    assert len(wrong) <= 3


def test_a_server_that_became_a_fifth_slower_is_found_however_disturbed_the_runs_are() -> None:
    bench = Bench(2)
    assert all(compare(bench.run(), bench.run(dict.fromkeys(bench.NAMES, 1.2)))[1] == 1 for _ in range(100))


def test_one_scenario_of_twelve_that_became_a_fifth_slower_is_found_and_named() -> None:
    bench = Bench(3, disturbed=0, noise=(0.01, 0.03))
    found = 0
    for name in bench.NAMES * 10:
        lines, code = compare(bench.run(), bench.run({name: 1.2}))
        found += code == 1 and f"WORSE: {name}: cost, beside C" in lines
    assert found >= 118
