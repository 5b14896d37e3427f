"""The rate limit: a burst at once, the rate in the long run, and an end to those who go on regardless."""

import math

from hypothesis import given, settings
from hypothesis import strategies as st

from fastpresence.worker.limits import ENTRIES, REFUSED, TOO_MUCH, Guesses, Pace, RateLimit


def send(limit: RateLimit, due_ms: float, now_ms: int, frames: int) -> tuple[float, int]:
    """(new number, how many of so many frames at one moment were let through)."""
    taken = 0
    for _ in range(frames):
        new = limit.next(due_ms, now_ms)
        if new != REFUSED:
            due_ms = new
            taken += 1
    return due_ms, taken


def test_a_burst_is_let_through_at_once_and_not_one_frame_more() -> None:
    assert send(RateLimit(50, 100), 0.0, 1_000_000, 500)[1] == 100


def test_a_burst_of_one_is_one_frame_at_a_time() -> None:
    limit = RateLimit(10, 1)
    due_ms, taken = send(limit, 0.0, 1_000, 5)
    assert taken == 1
    assert limit.next(due_ms, 1_040) == REFUSED
    assert limit.next(due_ms, 1_101) != REFUSED


def test_after_a_burst_the_rate_is_what_there_is() -> None:
    limit = RateLimit(50, 100)
    due_ms, _ = send(limit, 0.0, 1_000_000, 500)
    total = 0
    for now_ms in range(1_000_000, 1_010_000, 5):
        due_ms, taken = send(limit, due_ms, now_ms, 3)
        total += taken
    assert 499 <= total <= 501


def test_a_quiet_while_earns_a_new_burst_and_no_more_than_that() -> None:
    limit = RateLimit(50, 100)
    due_ms, _ = send(limit, 0.0, 1_000_000, 500)
    due_ms, taken = send(limit, due_ms, 1_002_001, 500)
    assert taken == 100
    _, taken = send(limit, due_ms, 9_000_000, 500)
    assert taken == 100


def test_heartbeats_are_never_refused() -> None:
    limit = RateLimit(50, 100)
    due_ms = 0.0
    for now_ms in range(0, 3_600_000, 30_000):
        due_ms = limit.next(due_ms, now_ms)
        assert due_ms != REFUSED


def test_a_refusal_costs_and_a_whole_burst_of_them_is_too_much() -> None:
    limit = RateLimit(50, 100)
    due_ms, _ = send(limit, 0.0, 1_000_000, 500)
    refusals = 0
    while True:
        assert limit.next(due_ms, 1_000_000) == REFUSED
        due_ms = limit.charge(due_ms, 1_000_000)
        if due_ms == TOO_MUCH:
            break
        refusals += 1
    assert 99 <= refusals <= 101


def test_one_who_slows_down_after_a_refusal_is_forgiven() -> None:
    limit = RateLimit(50, 100)
    due_ms, _ = send(limit, 0.0, 1_000_000, 500)
    for _ in range(50):
        due_ms = limit.charge(due_ms, 1_000_000)
    assert limit.next(due_ms, 1_001_100) != REFUSED


@settings(deadline=None)
@given(
    st.floats(0.5, 10_000),
    st.integers(1, 1_000),
    st.lists(st.tuples(st.integers(0, 5_000), st.integers(1, 50)), max_size=40),
)
def test_no_pattern_gets_more_than_burst_and_rate_together(
    rate: float, burst: int, pattern: list[tuple[int, int]]
) -> None:
    limit = RateLimit(rate, burst)
    start_ms = now_ms = 10_000_000
    due_ms = 0.0
    total = 0
    for pause_ms, frames in pattern:
        now_ms += pause_ms
        due_ms, taken = send(limit, due_ms, now_ms, frames)
        total += taken
    assert total <= burst + rate * (now_ms - start_ms) / 1000 + 1


def test_who_keeps_guessing_is_refused_until_he_has_been_quiet_and_nobody_else_is() -> None:
    guesses = Guesses()
    assert [guesses.is_over("192.0.2.1", 0) for _ in range(300)] == [False] * 200 + [True] * 100
    assert not guesses.is_over("192.0.2.2", 0)
    assert guesses.is_over("192.0.2.1", 10)
    assert not guesses.is_over("192.0.2.1", 10_000)


def test_what_weighs_more_is_paid_for_before_the_next_and_a_refusal_forgives_nothing() -> None:
    pace = Pace(10, 20, 100)
    assert not pace.is_over("a", 0)
    pace.weigh("a", 0, ENTRIES - 1)
    assert [pace.is_over("a", 0) for _ in range(19)] == [False] * 19
    pace.weigh("a", 0, 5 * ENTRIES)
    assert [pace.is_over("a", now_ms) for now_ms in (0, 100, 500)] == [True] * 3  # it owes 25 at 10 a second
    assert not pace.is_over("a", 600)
    assert not pace.is_over("b", 0)


def test_guesses_from_ever_new_addresses_are_remembered_up_to_a_limit() -> None:
    guesses = Guesses()
    for number in range(3 * Guesses.ADDRESSES):
        assert not guesses.is_over(f"address {number}", 0)
    assert len(guesses._due_ms) == Guesses.ADDRESSES


def test_a_heavy_frame_is_let_through_and_paid_for_by_the_frames_after_it() -> None:
    limit = RateLimit(50, 100)
    now_ms = 1_000_000
    due_ms, heavy = 0.0, 0
    while (new := limit.next(due_ms, now_ms)) != REFUSED:
        due_ms = limit.weigh(new, now_ms, 5)
        heavy += 1
    assert heavy == 100 // 6 + 1
    for later_ms in range(now_ms, now_ms + 10_000, 10):
        if (new := limit.next(due_ms, later_ms)) != REFUSED:
            due_ms = limit.weigh(new, later_ms, 5)
            heavy += 1
    assert 17 + 10 * 50 // 6 - 1 <= heavy <= 17 + 10 * 50 // 6 + 1


@given(st.floats(0.5, 10_000), st.integers(1, 1_000), st.integers(0, 10_000))
def test_whatever_a_heavy_frame_weighs_the_next_one_is_refused_at_worst(rate: float, burst: int, frames: int) -> None:
    limit = RateLimit(rate, burst)
    now_ms = 1_000_000
    due_ms = limit.weigh(limit.next(0.0, now_ms), now_ms, frames)
    if limit.next(due_ms, now_ms) == REFUSED:
        assert limit.charge(due_ms, now_ms) != TOO_MUCH or burst == 1


@given(st.floats(0.5, 1_000), st.integers(1, 1_000), st.integers(0, 3_000))
def test_who_waits_as_long_as_he_is_told_is_let_through(rate: float, burst: int, frames: int) -> None:
    limit = RateLimit(rate, burst)
    now_ms = 1_000_000
    due_ms, _ = send(limit, 0.0, now_ms, frames)
    assert limit.next(due_ms, now_ms + math.ceil(limit.wait_ms(due_ms, now_ms))) != REFUSED
