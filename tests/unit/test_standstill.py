"""When deadlines wait for a process that stood still, and that they never wait for ever."""

import pytest

from fastpresence.worker.standstill import Standstill

TICK = 250


def test_deadlines_count_at_every_tick_of_a_process_that_runs() -> None:
    standstill = Standstill(TICK, 1000)
    assert all(standstill.is_over(1000 + TICK * tick) for tick in range(1, 100))


@pytest.mark.parametrize("late", [0, 100, 250])
def test_a_tick_that_is_a_little_late_makes_nobody_wait(late: int) -> None:
    standstill = Standstill(TICK, 1000)
    assert standstill.is_over(1000 + TICK + late)


@pytest.mark.parametrize(("late", "wait"), [(251, 251), (1500, 1500), (2000, 2000), (90_000, 2000)])
def test_after_a_standstill_they_wait_as_long_as_it_lasted_and_no_longer_than_two_seconds(late: int, wait: int) -> None:
    standstill = Standstill(TICK, 1000)
    begin = 1000 + TICK + late
    answers = {now: standstill.is_over(now) for now in range(begin, begin + 4 * TICK * 10, TICK)}
    assert [now - begin for now, counts in answers.items() if not counts] == list(range(0, wait, TICK))


def test_where_every_tick_is_late_they_count_at_every_second_one() -> None:
    standstill = Standstill(TICK, 0)
    assert [standstill.is_over(tick * 3000) for tick in range(1, 7)] == [False, True] * 3


def test_a_second_standstill_within_the_first_ones_wait_does_not_make_it_longer() -> None:
    standstill = Standstill(TICK, 0)
    assert not standstill.is_over(5000)
    assert not standstill.is_over(6000)
    assert standstill.is_over(7000)
    assert standstill.is_over(7000 + TICK)
