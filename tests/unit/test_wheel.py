"""The wheel's promises by example: never early, late by less than a tick, exactly once, moved or taken away in time."""

import pytest

from fastpresence._native.wheel import Wheel

TICK = 250


def run_out(wheel: Wheel, now_ms: int, limit: int = 1024) -> list[int]:
    """All that has run out by `now_ms`, however many calls that takes."""
    found: list[int] = []
    while True:
        due = wheel.advance(now_ms, limit)
        found += due
        if len(due) < limit:
            return found


def test_a_timer_runs_out_at_the_first_tick_that_is_not_before_its_deadline() -> None:
    wheel = Wheel(TICK)
    wheel.arm(7, 1_001)
    assert run_out(wheel, 1_249) == []
    assert run_out(wheel, 1_250) == [7]
    assert len(wheel) == 0


def test_a_deadline_on_a_tick_runs_out_on_it() -> None:
    wheel = Wheel(TICK)
    wheel.arm(7, 1_000)
    assert run_out(wheel, 999) == []
    assert run_out(wheel, 1_000) == [7]


def test_a_timer_runs_out_once() -> None:
    wheel = Wheel(TICK)
    wheel.arm(7, 100)
    assert run_out(wheel, 250) == [7]
    assert run_out(wheel, 1_000_000) == []


def test_a_deadline_that_is_past_runs_out_at_the_next_tick() -> None:
    wheel = Wheel(TICK, now_ms=10_000)
    wheel.arm(7, 0)
    assert run_out(wheel, 10_249) == []
    assert run_out(wheel, 10_250) == [7]


def test_a_deadline_may_move_later_again_and_again() -> None:
    wheel = Wheel(TICK, slots=8)
    for now_ms in range(0, 60_000, TICK):
        assert run_out(wheel, now_ms) == []
        wheel.arm(7, now_ms + 10_000)
    assert len(wheel) == 1
    assert run_out(wheel, 69_500) == []
    assert run_out(wheel, 69_750) == [7]


def test_a_deadline_may_move_earlier() -> None:
    wheel = Wheel(TICK, slots=8)
    wheel.arm(7, 60_000)
    wheel.arm(7, 500)
    assert run_out(wheel, 500) == [7]
    assert run_out(wheel, 120_000) == []


def test_a_cancelled_timer_does_not_run_out_and_may_be_armed_again() -> None:
    wheel = Wheel(TICK)
    wheel.arm(7, 500)
    wheel.cancel(7)
    assert len(wheel) == 0
    wheel.arm(7, 1_000)
    assert run_out(wheel, 750) == []
    assert run_out(wheel, 1_000) == [7]


def test_cancelling_what_is_not_armed_changes_nothing() -> None:
    wheel = Wheel(TICK)
    wheel.cancel(7)
    wheel.arm(1, 500)
    wheel.cancel(7)
    wheel.cancel(1_000_000)
    assert len(wheel) == 1
    assert run_out(wheel, 500) == [1]
    wheel.cancel(1)
    assert len(wheel) == 0


def test_a_deadline_many_turns_away_does_not_run_out_when_its_slot_comes_by() -> None:
    wheel = Wheel(TICK, slots=4)
    wheel.arm(7, 100 * TICK)
    for tick in range(1, 100):
        assert run_out(wheel, tick * TICK) == []
    assert run_out(wheel, 100 * TICK) == [7]


def test_after_a_pause_of_many_turns_everything_that_is_due_runs_out_and_nothing_else() -> None:
    wheel = Wheel(TICK, slots=4)
    for timer in range(100):
        wheel.arm(timer, timer * 1_000)
    assert sorted(run_out(wheel, 50_000)) == list(range(51))
    assert len(wheel) == 49
    assert sorted(run_out(wheel, 99_000)) == list(range(51, 100))


def test_no_more_than_the_limit_runs_out_in_one_call_and_the_rest_in_the_next() -> None:
    wheel = Wheel(TICK)
    for timer in range(10):
        wheel.arm(timer, 500 + timer)
    batches = [wheel.advance(1_000, 4) for _ in range(4)]
    assert [len(batch) for batch in batches] == [4, 4, 2, 0]
    assert sorted(timer for batch in batches for timer in batch) == list(range(10))


def test_what_is_moved_or_cancelled_between_two_calls_of_one_moment_does_not_run_out() -> None:
    wheel = Wheel(TICK, slots=4)
    for timer in range(6):
        wheel.arm(timer, 500)
    first = wheel.advance(1_000, 2)
    moved, cancelled, *rest = set(range(6)) - set(first)
    wheel.arm(moved, 5_000)
    wheel.cancel(cancelled)
    assert sorted(run_out(wheel, 1_000)) == sorted(rest)
    assert run_out(wheel, 4_999) == []
    assert run_out(wheel, 5_000) == [moved]


def test_a_clock_that_stands_or_goes_back_lets_nothing_run_out() -> None:
    wheel = Wheel(TICK, now_ms=10_000)
    wheel.arm(7, 11_000)
    assert run_out(wheel, 10_000) == []
    assert run_out(wheel, 0) == []
    assert run_out(wheel, 11_000) == [7]


def test_timers_may_be_any_numbers_that_fit() -> None:
    wheel = Wheel(TICK)
    for timer in (0, 63, 64, 100_000):
        wheel.arm(timer, 500)
    assert sorted(run_out(wheel, 500)) == [0, 63, 64, 100_000]


def test_growing_keeps_what_is_armed() -> None:
    wheel = Wheel(TICK)
    for timer in range(5_000):
        wheel.arm(timer, 1_000 + timer)
    assert len(wheel) == 5_000
    assert sorted(run_out(wheel, 10_000)) == list(range(5_000))


def test_a_deadline_beyond_all_ticks_is_no_error_and_never_comes() -> None:
    wheel = Wheel(TICK)
    wheel.arm(7, 2**64 - 1)
    assert run_out(wheel, 10**12) == []
    assert len(wheel) == 1
    wheel.arm(7, 10**12 + 1)
    assert run_out(wheel, 10**12 + TICK) == [7]


def test_a_number_that_is_no_timer_is_refused() -> None:
    wheel = Wheel(TICK)
    with pytest.raises(ValueError, match="timer"):
        wheel.arm(1 << 26, 500)
    with pytest.raises(OverflowError):
        wheel.arm(-1, 500)
    with pytest.raises(OverflowError):
        wheel.arm(1, -500)


@pytest.mark.parametrize(("tick_ms", "slots"), [(0, 512), (1_000_001, 512), (250, 0), (250, (1 << 20) + 1)])
def test_a_wheel_that_could_not_turn_is_refused(tick_ms: int, slots: int) -> None:
    with pytest.raises(ValueError, match=r"tick_ms|slots"):
        Wheel(tick_ms, slots)


@pytest.mark.parametrize("limit", [0, (1 << 20) + 1])
def test_a_limit_that_takes_nothing_or_too_much_is_refused(limit: int) -> None:
    with pytest.raises(ValueError, match="limit"):
        Wheel().advance(0, limit)


def test_a_limit_above_the_stack_s_own_is_honoured() -> None:
    wheel = Wheel()
    for timer in range(3_000):
        wheel.arm(timer, 100)
    assert len(wheel.advance(250, 2_500)) == 2_500
    assert len(wheel.advance(250, 2_500)) == 500
