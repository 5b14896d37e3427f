"""Histograms: against the sorted values themselves."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.histogram import Histogram, edge_ns, index_of

times = st.integers(0, 2**45)


@given(times)
def test_a_bucket_holds_its_value_and_is_at_most_one_part_in_64_wide(value: int) -> None:
    index = index_of(value)
    assert edge_ns(index) >= value
    assert index == 0 or edge_ns(index - 1) < value
    assert edge_ns(index) <= value + value // 64


@given(st.lists(times, min_size=1, max_size=200), st.sampled_from([0.0, 0.25, 0.5, 0.9, 0.99, 1.0]))
def test_a_percentile_is_never_too_low_and_at_most_one_part_in_64_too_high(values: list[int], share: float) -> None:
    truth = sorted(values)[min(len(values) - 1, int(len(values) * share))]
    assert truth <= Histogram.of(values).at(share) <= truth + truth // 64


@given(st.lists(times), st.lists(times))
def test_merged_histograms_are_the_histogram_of_all(one: list[int], other: list[int]) -> None:
    assert Histogram.merged([Histogram.of(one), Histogram.of(other)]) == Histogram.of(one + other)


def test_an_empty_one_has_no_percentiles() -> None:
    assert Histogram().at(0.99) == 0
    assert list(Histogram().percentiles()) == []


def test_percentiles_rise_and_end_at_the_highest_value() -> None:
    source = random.Random(7)
    histogram = Histogram.of(int(source.expovariate(1e-6)) for _ in range(10_000))
    shares, values = zip(*histogram.percentiles(), strict=True)
    assert list(shares) == sorted(shares)
    assert list(values) == sorted(values)
    assert shares[-1] == 1.0
    assert values[-1] == histogram.max_ns


def test_the_text_has_a_line_for_each_percentile_and_the_sums_at_the_end() -> None:
    histogram = Histogram.of([1_000_000, 2_000_000, 3_000_000])
    lines = histogram.text().splitlines()
    assert lines[0].split() == ["Value", "Percentile", "TotalCount", "1/(1-Percentile)"]
    assert float(lines[-2].split()[0]) == pytest.approx(3.0)
    assert lines[-1] == "#[Max =        3.000, Total count =            3]"
