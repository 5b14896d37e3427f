"""The reconnect table, its jitter, and what the ends of a connection mean."""

import pytest

from fastpresence.client.schedule import Backoff, Then, Timing, after_close, after_refusal


def delays(backoff: Backoff, count: int) -> list[tuple[float, bool]]:
    return [backoff.delay_ms(Then.AGAIN, opened=False) for _ in range(count)]


def test_after_a_lost_connection_come_five_attempts_then_the_slow_phase_for_ever() -> None:
    backoff = Backoff(Timing(), lambda: 0.0)
    first = backoff.delay_ms(Then.AGAIN, opened=True)
    assert [first, *delays(backoff, 7)] == [
        (0, False),
        (3_000, False),
        (6_000, False),
        (12_000, False),
        (24_000, False),
        (60_000, True),
        (60_000, True),
        (60_000, True),
    ]


def test_jitter_adds_at_most_a_fifth_and_nothing_to_the_first_attempt() -> None:
    backoff = Backoff(Timing(), lambda: 0.999999)
    assert backoff.delay_ms(Then.AGAIN, opened=True) == (0, False)
    for base in (3_000, 6_000, 12_000, 24_000, 60_000):
        delay, _ = backoff.delay_ms(Then.AGAIN, opened=False)
        assert base < delay <= base * 1.2


def test_a_first_connection_that_never_opened_is_not_tried_again_at_once() -> None:
    backoff = Backoff(Timing(), lambda: 0.0)
    assert [delay for delay, _ in delays(backoff, 2)] == [3_000, 6_000]


def test_a_stable_connection_starts_the_count_afresh() -> None:
    backoff = Backoff(Timing(), lambda: 0.0)
    delays(backoff, 4)
    backoff.stable()
    assert backoff.delay_ms(Then.AGAIN, opened=True) == (0, False)


def test_backing_off_skips_the_attempt_at_once() -> None:
    backoff = Backoff(Timing(), lambda: 0.0)
    assert backoff.delay_ms(Then.BACK_OFF, opened=True) == (3_000, False)


@pytest.mark.parametrize("then", [Then.NEW_TOKEN, Then.AT_ONCE])
def test_a_return_outside_the_table_is_granted_once_between_stable_connections(then: Then) -> None:
    backoff = Backoff(Timing(), lambda: 0.0)
    assert backoff.delay_ms(then, opened=True) == (0, False)
    assert backoff.delay_ms(then, opened=True) == (3_000, False)
    backoff.stable()
    assert backoff.delay_ms(then, opened=True) == (0, False)


def test_retry_after_is_heeded_up_to_the_slow_phase() -> None:
    backoff = Backoff(Timing(), lambda: 0.0)
    assert backoff.delay_ms(Then.BACK_OFF, opened=False, at_least_ms=10_000) == (10_000, False)
    assert backoff.delay_ms(Then.BACK_OFF, opened=False, at_least_ms=1e12) == (60_000, False)


@pytest.mark.parametrize(
    ("code", "then"),
    [
        (None, Then.AGAIN),
        (1001, Then.AGAIN),
        (1002, Then.MEND),
        (1007, Then.MEND),
        (1011, Then.BACK_OFF),
        (1012, Then.BACK_OFF),
        (1013, Then.BACK_OFF),
        (4001, Then.NEW_TOKEN),
        (4003, Then.STOP),
        (4008, Then.AGAIN),
        (4009, Then.AGAIN),
        (4010, Then.STOP),
        (4029, Then.BACK_OFF),
        (4999, Then.BACK_OFF),
    ],
)
def test_close_codes_mean_what_the_protocol_says(code: int | None, then: Then) -> None:
    assert after_close(code) is then


@pytest.mark.parametrize(
    ("status", "then"),
    [
        (400, Then.STOP),
        (401, Then.NEW_TOKEN),
        (403, Then.STOP),
        (404, Then.STOP),
        (429, Then.BACK_OFF),
        (500, Then.BACK_OFF),
        (503, Then.BACK_OFF),
        (301, Then.STOP),
    ],
)
def test_refused_handshakes_mean_what_the_protocol_says(status: int, then: Then) -> None:
    assert after_refusal(status) is then


def test_scaled_timings_keep_the_jitters_share() -> None:
    timing = Timing().scaled(0.01)
    assert timing.delays_ms == (0, 30, 60, 120, 240)
    assert (timing.jitter, timing.slow_retry_ms, timing.stable_after_ms) == (0.2, 600, 300)


@pytest.mark.parametrize(
    ("status", "by_server", "then"),
    [
        (401, True, Then.NEW_TOKEN),
        (401, False, Then.NEW_TOKEN),
        (403, True, Then.STOP),
        (403, False, Then.BACK_OFF),
        (404, False, Then.BACK_OFF),
        (426, True, Then.BACK_OFF),
        (503, True, Then.BACK_OFF),
        (302, False, Then.BACK_OFF),
    ],
)
def test_only_the_server_itself_can_send_us_away_for_good(status: int, by_server: bool, then: Then) -> None:
    assert after_refusal(status, by_server=by_server) is then
