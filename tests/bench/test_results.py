"""Results: kept, found again, judged by themselves."""

from pathlib import Path

import pytest

from bench.histogram import Histogram
from bench.load.setting import Cpus
from bench.machine import Machine
from bench.outcome import Bar, BenchError, Curve, Outcome
from bench.results import Results, Writer, find, newest

HERE = Machine.here(Cpus.allowed())


def outcome(name: str, *values: float) -> Outcome:
    made = Outcome(name, "What?", "nothing", "none")
    made.figure("cost", "µs CPU", values)
    return made


def kept(folder: Path, stamp: str, *outcomes: Outcome, quick: bool = False, machine: Machine = HERE) -> Results:
    writer = Writer(machine, folder)
    writer.path = folder / f"{stamp}.jsonl"
    for each in outcomes:
        writer.write(each, quick=quick)
    return Results.read(writer.path)


def test_what_was_kept_is_read_again(tmp_path: Path) -> None:
    made = outcome("fanout", 1.0, 2.0)
    made.add_histogram("latency", Histogram.of([10, 20, 1000]))
    made.add_series("server", "MB", 0.25, [1.0, 2.0])
    made.add_series("server", "MB", 0.25, [3.0])
    made.curves.append(Curve("knee", "x", "y", [(1.0, 2.0)], fit_text="flat"))
    made.bars.append(Bar("fast", met=True))
    read = kept(tmp_path, "one", made)
    assert read.machine == HERE
    assert read.scenarios["fanout"].outcome == made
    assert made.series[0].values == [1.0, 2.0, 3.0]


def test_a_file_is_found_by_a_part_of_its_name_if_only_one_has_it(tmp_path: Path) -> None:
    kept(tmp_path, "20260101-abc", outcome("fanout", 1.0))
    kept(tmp_path, "20260102-abc", outcome("fanout", 1.0))
    assert find("0102", tmp_path).name == "20260102-abc.jsonl"
    with pytest.raises(BenchError, match="fits 2 files"):
        find("abc", tmp_path)
    with pytest.raises(BenchError, match="fits 0 files"):
        find("xyz", tmp_path)


def test_a_line_that_was_cut_off_is_left_out_and_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = kept(tmp_path, "1", outcome("fanout", 1.0), outcome("idle", 1.0)).path
    path.write_bytes(path.read_bytes()[:-20])
    assert list(Results.read(path).scenarios) == ["fanout"]
    assert f"{path}, line 3, is left out" in capsys.readouterr().err


def test_a_file_without_its_machine_is_passed_over_and_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept(tmp_path, "1", outcome("fanout", 1.0))
    (tmp_path / "2.jsonl").write_text('{"kind": "machine"')
    assert [list(results.scenarios) for results in newest(tmp_path)] == [["fanout"]]
    assert "2.jsonl: it does not say on what machine" in capsys.readouterr().err


def test_a_file_that_is_no_results_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "broken.jsonl").write_text('{"kind": "machine"}\n')
    with pytest.raises(BenchError, match=r"broken\.jsonl"):
        Results.read(tmp_path / "broken.jsonl")


def test_the_newest_full_outcome_wins_over_a_newer_quick_one(tmp_path: Path) -> None:
    kept(tmp_path, "1", outcome("fanout", 1.0), outcome("idle", 1.0))
    kept(tmp_path, "2", outcome("fanout", 2.0))
    kept(tmp_path, "3", outcome("fanout", 3.0), outcome("tls", 3.0), quick=True)
    chosen = {name: line.outcome for results in newest(tmp_path) for name, line in results.scenarios.items()}
    assert {name: each.figures[0].values for name, each in chosen.items()} == {
        "fanout": [2.0],
        "idle": [1.0],
        "tls": [3.0],
    }


def test_a_missed_bar_by_time_does_not_fail_a_quick_run_but_a_wrong_result_does() -> None:
    slow = outcome("a", 1.0)
    slow.bars.append(Bar("fast", met=False))
    assert slow.passed(quick=True)
    assert not slow.passed(quick=False)
    slow.bars.append(Bar("right", met=False, by_time=False))
    assert not slow.passed(quick=True)


def test_what_did_not_keep_its_pace_fails_a_full_run_only() -> None:
    slow = outcome("a", 1.0)
    slow.behind.append("only 3 came back")
    assert slow.passed(quick=True)
    assert not slow.passed(quick=False)
    assert "BEHIND: only 3 came back" in slow.text(quick=False)


def test_runs_that_do_not_count_are_told() -> None:
    made = outcome("a", 1.0)
    made.runs, made.uncounted = [{}, {}], 1
    assert "1 of 2 runs DO NOT COUNT" in made.text(quick=False)
