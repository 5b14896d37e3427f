"""The micro benchmarks as a scenario: what pytest-benchmark wrote becomes rows, figures and bars."""

from typing import Any

import msgspec
import pytest

from bench.micro.run import read, tell
from bench.outcome import Outcome


def told(best_s: float, **info: Any) -> dict[str, Any]:
    """One benchmark of one repetition, as pytest-benchmark writes it."""
    return {"fullname": "bench/micro/test_wheel.py::test_rearm", "stats": {"min": best_s}, "extra_info": info}


def outcome(*repetitions: dict[str, Any]) -> Outcome:
    made = Outcome("micro", "?", "", "", ["benchmark", "best", "median", "worst"])
    tell(made, {"wheel: rearm": list(repetitions)})
    return made


def test_a_benchmark_goes_by_its_file_and_its_name() -> None:
    each = told(1e-6) | {"fullname": "bench/micro/test_codec.py::test_decode[json]"}
    assert list(read(msgspec.json.encode({"benchmarks": [told(1e-6), each]}))) == [
        "wheel: rearm",
        "codec: decode[json]",
    ]


def test_the_best_round_of_each_repetition_is_kept_in_microseconds() -> None:
    made = outcome(told(3e-6), told(1e-6), told(2e-6))
    assert made.rows == [["wheel: rearm", "1.000", "2.000", "3.000"]]
    assert made.figures[0].values == pytest.approx([3, 1, 2])
    assert not made.bars


def test_a_bar_is_met_by_the_best_repetition_or_missed_by_all() -> None:
    bar = ("ns a rearm", 150)
    met = outcome(told(1.0, **{"ns a rearm": 160.0, "bar": bar}), told(1.0, **{"ns a rearm": 140.0, "bar": bar}))
    assert [(each.text, each.met) for each in met.bars] == [
        ("wheel: rearm: ns a rearm, at most 150 (here 140.0)", True)
    ]
    missed = outcome(told(1.0, **{"ns a rearm": 160.0, "bar": bar}))
    assert not missed.passed(quick=False)
    assert missed.passed(quick=True)
