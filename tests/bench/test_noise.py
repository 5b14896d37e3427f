"""Better, worse, or noise."""

import pytest

from bench.noise import Verdict, chance, judge, spread

CALM = [10.0, 10.1, 10.2, 9.9, 10.05]


def test_a_run_compared_with_itself_is_the_same() -> None:
    assert judge(CALM, CALM, higher_is_better=False) is Verdict.SAME


def test_a_cost_that_grew_in_every_repetition_is_worse_and_the_reverse_is_better() -> None:
    grown = [value * 1.2 for value in CALM]
    assert judge(CALM, grown, higher_is_better=False) is Verdict.WORSE
    assert judge(grown, CALM, higher_is_better=False) is Verdict.BETTER


def test_a_rate_that_grew_is_better() -> None:
    assert judge(CALM, [value * 1.2 for value in CALM], higher_is_better=True) is Verdict.BETTER


def test_a_difference_within_the_spread_is_noise() -> None:
    assert judge([10, 14, 9, 13, 11], [11, 15, 10, 14, 12], higher_is_better=False) is Verdict.SAME


def test_a_sure_difference_of_one_percent_is_of_no_interest() -> None:
    assert judge(CALM, [value + 0.1 for value in CALM], higher_is_better=False) is Verdict.SAME


def test_single_runs_must_differ_by_a_tenth() -> None:
    assert judge([10.0], [10.9], higher_is_better=False) is Verdict.SAME
    assert judge([10.0], [11.1], higher_is_better=False) is Verdict.WORSE


def test_few_runs_whose_ranges_overlap_say_nothing() -> None:
    assert judge([10.0, 20.0], [19.0, 30.0], higher_is_better=False) is Verdict.SAME


def test_a_figure_that_was_nothing_has_no_change_in_percent() -> None:
    assert judge([0.0] * 5, [1.0] * 5, higher_is_better=False) is Verdict.SAME


def test_chance_of_two_samples_that_are_wholly_apart_is_known() -> None:
    # Of the 252 ways to pick five of ten, two are as far apart.
    assert chance([1, 2, 3, 4, 5], [6, 7, 8, 9, 10]) == pytest.approx(2 / 252)


def test_chance_of_equal_values_is_one() -> None:
    assert chance([1, 1, 1], [1, 1, 1]) == 1.0


def test_chance_of_large_samples_follows_the_normal_distribution() -> None:
    low, high = [float(n) for n in range(30)], [float(n) for n in range(20, 50)]
    assert chance(low, high) < 0.001
    assert chance(low, low) == pytest.approx(1.0)


def test_spread_is_half_the_quartiles_distance() -> None:
    assert spread([1, 2, 3, 4, 5]) == pytest.approx(1 / 3)
    assert spread([7.0]) == 0.0
