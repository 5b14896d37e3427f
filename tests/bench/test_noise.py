"""How sure a difference is, one by one and many at once."""

import random

import pytest

from bench.noise import chance, holm, interval, spread

CALM = [10.0, 10.1, 10.2, 9.9, 10.05]


def test_values_compared_with_themselves_differ_by_chance() -> None:
    assert chance(CALM, CALM, 0.0) == 1.0


def test_the_chance_is_that_of_student_s_table() -> None:
    # Logarithms -1, 0, 1 and -1 + d, d, 1 + d: error sqrt(2/3), 4 degrees of freedom; t = 2.7764 is 5 %, 4.6041 is 1 %.
    for t, expected in ((2.7764, 0.05), (4.6041, 0.01)):
        shift = t * (2 / 3) ** 0.5
        old, new = ([2.718281828459045 ** (each + d) for each in (-1, 0, 1)] for d in (0, shift))
        assert chance(old, new, 0.0) == pytest.approx(expected, rel=1e-3)


def test_odd_degrees_of_freedom_are_in_student_s_table_too() -> None:
    # One side without spread: 3 degrees of freedom are left; t = 3.1824 is 5 %.
    old, new = [1.0] * 4, [2.718281828459045 ** (each + 3.1824 * (5 / 12) ** 0.5) for each in (-1.5, -0.5, 0.5, 1.5)]
    assert chance(old, new, 0.0) == pytest.approx(0.05, rel=1e-3)


def test_up_and_down_are_as_sure() -> None:
    grown = [value * 1.2 for value in CALM]
    assert chance(CALM, grown, 0.05) == pytest.approx(chance(grown, CALM, 0.05))
    assert chance(CALM, grown, 0.05) < 1e-6


def test_a_difference_below_the_least_is_never_sure_however_calm_it_is() -> None:
    assert chance(CALM, [value * 1.04 for value in CALM], 0.05) > 0.5
    assert chance([1.0] * 5, [1.04] * 5, 0.05) == 1.0
    assert chance([1.0] * 5, [1.06] * 5, 0.05) == 0.0


def test_an_outlier_makes_it_more_cautious() -> None:
    grown = [value * 1.2 for value in CALM]
    assert chance(CALM, grown, 0.0) < 1e-6
    assert chance(CALM, [*grown[:-1], 20.0], 0.0) > 0.01


def test_samples_of_one_distribution_are_found_different_as_often_as_the_chance_says() -> None:
    dice = random.Random(4)

    def sample() -> list[float]:
        return [dice.lognormvariate(0, 0.05) for _ in range(5)]

    chances = [chance(sample(), sample(), 0.0) for _ in range(4000)]
    for level in (0.05, 0.2, 0.5):
        assert sum(each <= level for each in chances) / len(chances) == pytest.approx(level, abs=0.1 * level + 0.01)


def test_of_many_the_surest_must_be_so_much_surer() -> None:
    assert holm([0.04], 0.05) == [True]
    assert holm([0.04, 0.9], 0.05) == [False, False]
    assert holm([0.9, 0.001, 0.04, 0.02], 0.05) == [False, True, False, False]
    assert holm([0.01, 0.02, 0.03], 0.05) == [True, True, True]
    assert holm([], 0.05) == []


def test_spread_is_half_the_quartiles_distance() -> None:
    assert spread([1, 2, 3, 4, 5]) == pytest.approx(1 / 3)
    assert spread([7.0]) == 0.0


@pytest.mark.parametrize(
    ("count", "cut"),
    # By hand from the binomial: of 8 values the median is below all but one, or above, in 2 * 9 of 256 cases.
    [(1, 0), (5, 0), (8, 0), (9, 1), (11, 1), (12, 2), (20, 5)],
)
def test_the_interval_of_a_median_leaves_out_as_many_values_as_chance_allows(count: int, cut: int) -> None:
    values = [float(value) for value in range(count)]
    assert interval(values[::-1]) == (cut, count - 1 - cut)
