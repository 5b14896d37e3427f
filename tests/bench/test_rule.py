"""The one rule: which runs count, and which bars are judged."""

import os
import time
from pathlib import Path

import pytest

from bench.load.driver import Run
from bench.load.rule import Share, add_bar, counted, keep
from bench.load.setting import Cpus, Setting
from bench.outcome import Outcome


def setting(folder: Path, *, quick: bool = False) -> Setting:
    return Setting(Cpus(0, 0), folder, quick)


def run(*, swarm_cpu: float = 0.1, swarm_busy: float = 0.1, spin: bool = False, beside: float = 0.0) -> Run:
    return Run(
        mode="storm", seconds=1.0, operations=1, server_cpu_ns=1, sent=1, frames=1, frame_bytes=1, entries=0,
        compressed=0, errors=0, lost=0, unfinished=False, swarm_cpu=swarm_cpu, swarm_busy=swarm_busy, spin=spin,
        beside=beside,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("one", "counts"),
    [
        (run(swarm_cpu=0.8), True),
        (run(swarm_cpu=0.81), False),
        (run(swarm_cpu=0.5, beside=0.25), True),
        (run(swarm_cpu=0.5, beside=0.35), False),
        (run(swarm_cpu=1.0, swarm_busy=0.7, spin=True), True),
        (run(swarm_cpu=1.0, swarm_busy=0.7, spin=True, beside=0.2), False),
    ],
)
def test_a_run_counts_while_all_processes_of_the_load_together_leave_a_fifth_of_their_core(
    tmp_path: Path, one: Run, *, counts: bool
) -> None:
    assert counted(setting(tmp_path), [one]) == ([one] if counts else [])
    assert counted(setting(tmp_path, quick=True), [one]) == [one]


def test_a_run_that_does_not_count_is_kept_and_told(tmp_path: Path) -> None:
    outcome = Outcome("a", "What?", "nothing", "none")
    assert keep(setting(tmp_path), outcome, 0.5, {"us": 1})
    assert not keep(setting(tmp_path), outcome, 0.9, {"us": 2})
    assert keep(setting(tmp_path, quick=True), outcome, 0.9, {"us": 3})
    assert [one["counts"] for one in outcome.runs] == [True, False, True]
    assert outcome.uncounted == 1


@pytest.mark.parametrize(
    ("values", "verdict"), [([], "NOT JUDGED"), ([1, 1], "NOT JUDGED"), ([1, 1, 9], "met"), ([9, 9, 1], "MISSED")]
)
def test_a_bar_is_judged_from_three_runs_that_count_on_and_else_not_met(values: list[float], verdict: str) -> None:
    outcome = Outcome("a", "What?", "nothing", "none")
    add_bar(outcome, "at most 2 (here {})", values, lambda value: value <= 2)
    assert outcome.text(quick=False).splitlines()[-1].endswith(f": {verdict}")
    assert outcome.passed(quick=False) is (verdict == "met")
    assert outcome.passed(quick=True)


def test_a_bar_on_one_value_is_judged_by_the_runs_behind_it() -> None:
    outcome = Outcome("a", "What?", "nothing", "none")
    add_bar(outcome, "at most 2 (here {})", [1.0], lambda value: value <= 2, runs=2)
    add_bar(outcome, "at most 2 (here {})", [1.0], lambda value: value <= 2, runs=3)
    assert [bar.verdict(quick=False) for bar in outcome.bars] == ["NOT JUDGED", "met"]


def test_a_share_is_the_cpu_time_of_all_its_processes() -> None:
    load, until = Share(os.getpid(), os.getpid()), time.process_time() + 0.05
    while time.process_time() < until:
        pass
    assert load.now(seconds=0.1) >= 1.0  # twice 50 ms of 100
