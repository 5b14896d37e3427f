"""The timers of a living connection: beats, silence, drain, and the token's life."""

import pytest

from fastpresence.client.pulse import Due, Pulse
from fastpresence.client.schedule import Timing
from fastpresence.messages import Welcome

START_MS = 5_000.0


def welcome(*, interval: float = 30, timeout: float = 60, expires_in: int = 3600) -> Welcome:
    return Welcome("s", "user_1", "user", interval, timeout, 1_700_000_000 + expires_in, "e", 1_700_000_000)


def living(*, phase: float = 0.5, **fields: float) -> Pulse:
    pulse = Pulse(Timing(), lambda: phase)
    pulse.welcomed(welcome(**fields), START_MS)  # type: ignore[arg-type]
    return pulse


def test_nothing_is_due_before_a_welcome_and_after_the_end() -> None:
    pulse = Pulse(Timing(), lambda: 0.0)
    assert (pulse.next_deadline_ms(), pulse.take(1e12)) == (None, [])
    pulse.welcomed(welcome(), START_MS)
    pulse.expiring(START_MS)
    pulse.draining(1, START_MS)
    pulse.stop()
    assert (pulse.next_deadline_ms(), pulse.take(1e12), pulse.is_draining) == (None, [], False)


@pytest.mark.parametrize("phase", [0.0, 0.25, 0.999])
def test_the_first_beat_has_a_random_phase_and_missed_ones_are_not_made_up_for(phase: float) -> None:
    pulse = living(phase=phase)
    assert pulse.next_deadline_ms() == START_MS + 30_000 * phase
    late_ms = START_MS + 200_000
    assert pulse.take(late_ms) == [Due.BEAT]
    pulse.sign_of_life()
    assert pulse.next_deadline_ms() == late_ms + 30_000


def test_a_beat_without_any_sign_of_life_is_silence_in_half_of_what_the_server_leaves() -> None:
    pulse = living(phase=0.0)
    assert pulse.take(START_MS) == [Due.BEAT]
    assert pulse.take(START_MS + 14_999) == []
    assert pulse.take(START_MS + 15_000) == [Due.SILENCE]
    pulse = living(phase=0.0)
    pulse.take(START_MS)
    pulse.sign_of_life()
    assert pulse.take(START_MS + 29_999) == []


def test_a_second_beat_does_not_put_off_the_end_of_patience() -> None:
    pulse = living(phase=0.0, interval=1, timeout=10)
    beats = [pulse.take(START_MS + second * 1_000) for second in range(5)]
    assert beats == [[Due.BEAT]] * 4 + [[Due.BEAT]]
    assert Due.SILENCE in pulse.take(START_MS + 4_500)


def test_a_server_in_a_hurry_still_gets_the_floor_to_answer() -> None:
    pulse = living(phase=0.0, interval=0.2, timeout=0.4)
    pulse.take(START_MS)
    assert Due.SILENCE not in pulse.take(START_MS + 999)
    assert Due.SILENCE in pulse.take(START_MS + 1_000)


def test_a_token_is_replaced_when_told_to_but_not_before_half_of_its_life() -> None:
    pulse = living(expires_in=100)
    assert pulse.expires_at == 1_700_000_100
    pulse.expiring(START_MS + 1_000)
    assert Due.RENEWAL not in pulse.take(START_MS + 49_999)
    assert Due.RENEWAL in pulse.take(START_MS + 50_000)
    pulse.expiring(START_MS + 60_000)
    assert pulse.take(START_MS + 60_000)[0] is Due.RENEWAL
    pulse.expiring(START_MS + 60_000)
    pulse.new_token(1_700_000_200, START_MS + 60_000)
    assert Due.RENEWAL not in pulse.take(START_MS + 60_000)
    assert pulse.token_ends_ms == START_MS + 200_000


def test_the_server_gives_up_a_timeout_after_the_last_word_it_is_known_to_have_heard() -> None:
    pulse = living()
    assert pulse.given_up_ms == START_MS + 60_000
    pulse.sign_of_life()
    assert pulse.given_up_ms == START_MS + 60_000
    pulse.answered(START_MS + 7_000)
    assert pulse.given_up_ms == START_MS + 67_000
