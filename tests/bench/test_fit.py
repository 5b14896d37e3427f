"""Fits: what goes in must come out."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.fit import along, line, power


@given(st.floats(0, 1e3), st.floats(1e-3, 1e3))
def test_a_line_is_found_again(base: float, each: float) -> None:
    fit = line([(x, base + each * x) for x in (100.0, 1000.0, 10_000.0)])
    assert fit.base == pytest.approx(base, abs=1e-3 * (1 + each))
    assert fit.each == pytest.approx(each, rel=1e-4)
    assert fit.share == pytest.approx(1)


def test_a_power_is_found_again() -> None:
    assert power([(x, 3 * x**1.5) for x in (10.0, 100.0, 1000.0)]) == pytest.approx(1.5)


def test_what_is_flat_has_the_power_zero() -> None:
    points = [(10.0, 5.0), (1000.0, 5.0)]
    assert power(points) == pytest.approx(0)
    assert line(points).each == pytest.approx(0)


def test_a_fit_is_drawn_from_the_first_point_to_the_last() -> None:
    drawn = along([(10.0, 1.0), (1000.0, 2.0), (100.0, 3.0)], lambda x: 2 * x)
    assert drawn[0] == pytest.approx((10, 20))
    assert drawn[-1] == pytest.approx((1000, 2000))


def test_a_small_point_counts_as_much_as_a_large_one() -> None:
    off_at_the_small_end = line([(1.0, 2.0), (1000.0, 1000.0), (2000.0, 2000.0)])
    assert off_at_the_small_end.at(1.0) == pytest.approx(2.0, rel=0.02)


@pytest.mark.parametrize("fit", [line, power])
@pytest.mark.parametrize("points", [[], [(1.0, 1.0)], [(1.0, 1.0), (1.0, 2.0)], [(1.0, 1.0), (2.0, 0.0)]])
def test_one_point_fits_everything_and_is_refused(fit: object, points: list[tuple[float, float]]) -> None:
    with pytest.raises(ValueError, match="two points"):
        fit(points)  # type: ignore[operator]
