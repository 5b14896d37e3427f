"""The report: one file, with its pictures in it and beside it."""

from pathlib import Path

import msgspec
import pytest

from bench.histogram import Histogram
from bench.load.setting import Cpus
from bench.machine import Machine
from bench.outcome import Bar, BenchError, Curve, Outcome, Ranking
from bench.report.charts import charts
from bench.report.page import write
from bench.results import Results, ScenarioLine
from bench.stages import flame


def results(folder: Path, *, quick: bool = False) -> list[Results]:
    outcome = Outcome("sync", "How <soon>?", "a real network", "2 hosts", ["crowd", "p99"], [["100", "1.0"]])
    outcome.figure("p99", "ms", [1.0, 2.0, 3.0])
    outcome.add_histogram("100 observers", Histogram.of(range(1_000_000, 90_000_000, 1_000_000)))
    outcome.add_series("fastpresence", "changes a second", 0.1, [float(n) for n in range(2000)], "100 observers")
    outcome.add_series("C limit", "changes a second", 0.1, [5.0, 6.0], "100 observers")
    outcome.add_series("fastpresence", "changes a second", 0.1, [7.0, 8.0], "200 observers")
    outcome.add_series("fastpresence", "beats a second", 0.1, [7.0, 8.0], "200 observers")
    outcome.add_series("fastpresence", "MB resident", 0.25, [30.0, 31.0])
    points = [(100.0, 1.0), (10_000.0, 9.0)]
    outcome.curves.append(Curve("the knee", "observers", "p99", points, fit=points, fit_text="linear", limit=5))
    outcome.curves.append(Curve("all too many", "observers", "p99", [], limit=5, uncounted=points, text="none"))
    outcome.rankings.append(Ranking("one update", "µs", {"fastpresence": 1.0, "another": 2.0}, "fastpresence"))
    outcome.bars += [Bar("under 50 ms", met=True), Bar("right", met=False, by_time=False)]
    outcome.faults.append("1 host is wrong")
    outcome.flame = flame([(["main", "send <x>"], 3)], "sync")
    return [Results(folder / "x.jsonl", Machine.here(Cpus.allowed()), {"sync": ScenarioLine(outcome, quick)})]


def test_the_page_holds_everything_and_needs_nothing(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    page, count = write(results(tmp_path), tmp_path)
    text = page.read_text()
    assert count == 9
    assert text.count("data:image/png;base64,") == count
    assert len(list((tmp_path / "report").glob("sync-*.png"))) == count
    assert "How &lt;soon&gt;?" in text
    for word in ("MISSED", "WRONG RESULT", "1 host is wrong", "percentile file of 100 observers", "under 50 ms"):
        assert word in text
    assert "<title>send &lt;x&gt;: 100.0 %</title>" in text
    assert "http://" not in text.replace('xmlns="http://www.w3.org/2000/svg"', "")
    assert "https://" not in text


def test_each_question_and_unit_has_a_chart_of_its_own(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    made = charts(results(tmp_path)[0].scenarios["sync"].outcome)
    assert sum(name.startswith("throughput") for name in made) == 3
    assert sum(name.startswith("memory") for name in made) == 1


def test_pictures_are_png(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    write(results(tmp_path), tmp_path)
    assert all(file.read_bytes().startswith(b"\x89PNG") for file in (tmp_path / "report").iterdir())


def test_a_quick_run_is_marked_and_its_bars_by_time_are_not_judged(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    page, _ = write(results(tmp_path, quick=True), tmp_path)
    assert "a quick run: no figure means anything" in page.read_text()
    assert "not judged in a quick run" in page.read_text()


def test_without_results_it_says_what_to_do(tmp_path: Path) -> None:
    empty = [msgspec.structs.replace(results(tmp_path)[0], scenarios={})]
    with pytest.raises(BenchError, match="python -m bench run"):
        write(empty, tmp_path)
