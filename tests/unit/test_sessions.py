"""Sessions: the table of phases, what many add up to, whom a new one supersedes, and the deadlines of detached ones."""

import gc
import sys
from itertools import product

import pytest

from fastpresence.messages import Status
from fastpresence.presence.roster import Record
from fastpresence.presence.sessions import (
    NEXT,
    Cue,
    Deadlines,
    Now,
    Phase,
    Session,
    predecessor,
    present_session,
    strongest,
)

TICK_MS = 250


def session(
    number: int = 1,
    *,
    device: str | None = None,
    attached: bool = True,
    status: Status = "online",
    heard_ms: int = 0,
) -> Session:
    return Session(number, Record("kol_1", "kol"), device, object() if attached else None, status, heard_ms)


def test_a_session_with_a_connection_is_born_attached_and_one_without_detached() -> None:
    assert session(attached=True).phase is Phase.ATTACHED
    assert session(attached=False).phase is Phase.DETACHED


def test_a_lost_connection_detaches_and_lets_go_of_the_connection() -> None:
    one = session()
    assert one.take(Cue.LOST)
    assert one.phase is Phase.DETACHED
    assert one.connection is None


def test_nothing_leads_out_of_gone() -> None:
    one = session()
    assert one.take(Cue.GOODBYE)
    for cue in Cue:
        assert not one.take(cue)
        assert one.phase is Phase.GONE


def test_a_detached_session_cannot_lose_its_connection_again() -> None:
    one = session(attached=False)
    assert not one.take(Cue.LOST)
    assert one.phase is Phase.DETACHED


def test_every_phase_has_a_row_and_every_way_leads_towards_gone() -> None:
    assert set(NEXT) == set(Phase)
    assert all(after > before for before, row in NEXT.items() for after in row.values())


ORDER: list[Status] = ["away", "online", "busy"]


@pytest.mark.parametrize(("one", "other"), list(product(ORDER, ORDER)))
def test_the_stronger_of_two_statuses_wins_whichever_session_is_older(one: Status, other: Status) -> None:
    stronger = ORDER[max(ORDER.index(one), ORDER.index(other))]
    assert strongest([session(1, status=one), session(2, status=other)]) == stronger


def test_no_sessions_add_up_to_offline() -> None:
    assert strongest([]) == "offline"


def test_a_device_finds_its_own_session_attached_or_not() -> None:
    phone, tablet = session(1, device="phone"), session(2, device="tablet", attached=False)
    assert predecessor([phone, tablet], "phone") is phone
    assert predecessor([phone, tablet], "tablet") is tablet
    assert predecessor([phone, tablet], "desk") is None


def test_without_a_device_an_attached_session_or_one_with_a_device_is_never_taken_over() -> None:
    assert predecessor([session(1), session(2, device="phone", attached=False)], None) is None


def test_without_a_device_the_detached_session_heard_last_is_taken_over() -> None:
    early = session(1, attached=False, heard_ms=10)
    late = session(2, attached=False, heard_ms=30)
    middle = session(3, attached=False, heard_ms=20)
    assert predecessor([early, late, middle], None) is late


def test_of_two_heard_at_the_same_moment_the_younger_is_taken_over() -> None:
    older, younger = session(1, attached=False), session(2, attached=False)
    assert predecessor([older, younger], None) is younger


def test_a_poll_speaks_with_its_device_s_session_attached_or_not_and_with_no_other() -> None:
    phone, tablet = session(1, device="phone"), session(2, device="tablet", attached=False)
    assert present_session([phone, tablet], "phone") is phone
    assert present_session([phone, tablet], "tablet") is tablet
    assert present_session([phone, tablet, session(3)], "desk") is None
    assert present_session([], "phone") is None


def test_a_poll_without_a_device_speaks_with_a_detached_session_before_an_attached_one() -> None:
    attached, detached = session(1, heard_ms=99), session(2, attached=False, heard_ms=1)
    late = session(3, heard_ms=100)
    assert present_session([attached, detached, late], None) is detached
    assert present_session([attached, late], None) is late
    assert present_session([late, attached], None) is late
    assert present_session([session(4, device="phone")], None) is None


def test_a_past_moment_has_the_wall_time_it_had_and_a_future_one_is_now() -> None:
    now = Now(ms=5_000, wall_us=9_000_000)
    assert now.wall_us_at(3_000) == 7_000_000
    assert now.wall_us_at(6_000) == 9_000_000


def test_a_deadline_is_never_early_and_late_by_less_than_a_tick() -> None:
    for offset in (0, 1, 100, 249, 250, 251, 999):
        deadlines, one = Deadlines(), session(attached=False)
        deadline_ms = 10_000 + offset
        deadlines.arm(one, deadline_ms, now_ms=7_777)
        assert deadlines.expired(deadline_ms - 1, 10) == []
        assert deadlines.expired(deadline_ms + TICK_MS - 1, 10) == [one]
        assert len(deadlines) == 0


def test_a_moved_deadline_does_not_run_out_at_the_old_moment() -> None:
    deadlines, one = Deadlines(), session(attached=False)
    deadlines.arm(one, 1_000, now_ms=0)
    deadlines.arm(one, 5_000, now_ms=0)
    assert deadlines.expired(4_999, 10) == []
    assert deadlines.expired(5_250, 10) == [one]


def test_a_timer_given_back_and_taken_again_does_not_end_the_wrong_session() -> None:
    deadlines, one, other = Deadlines(), session(1, attached=False), session(2, attached=False)
    deadlines.arm(one, 1_000, now_ms=0)
    deadlines.disarm(one)
    deadlines.arm(other, 9_000, now_ms=0)
    assert deadlines.expired(5_000, 10) == []
    assert deadlines.expired(9_250, 10) == [other]


def test_a_crowd_comes_in_portions_and_nobody_twice() -> None:
    deadlines, crowd = Deadlines(), [session(number, attached=False) for number in range(10)]
    for one in crowd:
        deadlines.arm(one, 1_000, now_ms=0)
    portions = [deadlines.expired(2_000, 4) for _ in range(4)]
    assert [len(portion) for portion in portions] == [4, 4, 2, 0]
    assert {one.number for portion in portions for one in portion} == set(range(10))


def test_disarming_what_was_never_armed_does_nothing() -> None:
    deadlines = Deadlines()
    deadlines.disarm(session())
    assert deadlines.expired(1_000_000, 10) == []


def test_a_session_and_a_record_stay_small_and_take_no_stray_attributes() -> None:
    one = session()
    assert sys.getsizeof(one) <= 96
    assert sys.getsizeof(one.record) <= 112
    assert not hasattr(one, "__dict__")
    assert not hasattr(one.record, "__dict__")
    assert gc.is_tracked(one)
