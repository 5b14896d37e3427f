"""Calls: who is told what, who is busy by it, and that nothing outlives its parties."""

from collections.abc import Callable

import pytest

from fastpresence.errors import (
    BadField,
    NotOnline,
    RequestError,
    TooMany,
    Unavailable,
    UnknownCall,
    UserBusy,
    UserOffline,
)
from fastpresence.messages import CallFrame, Status
from fastpresence.presence.calls import INCOMING_MAX, NEXT, OUTGOING_MAX, RING_MS, CallCue, CallPhase
from fastpresence.presence.service import OnlineStatusService
from fastpresence.presence.sessions import Now, Session

START = Now(1_000_000, 1_640_995_200_000_000)


def later(ms: int) -> Now:
    return Now(START.ms + ms, START.wall_us + ms * 1000)


class Stage:
    """A service, and what each connection was told of calls."""

    def __init__(self) -> None:
        self.service = OnlineStatusService(
            epoch="e", public_types={"kol"}, heartbeat_timeout_ms=60_000, disconnect_grace_ms=None
        )

    def online(self, user_id: str, device: str | None = None, *, status: Status | None = None) -> Session:
        return self.service.handle_user_online(
            user_id, device=device, status=status, connection=f"{user_id} {device}", now=START
        )

    def call(self, caller: Session, to_user_id: str, call_id: str = "c", *, now: Now = START) -> None:
        self.service.handle_call(caller, call_id, to_user_id, video=True, audio=False, now=now)

    def told(self) -> list[tuple[str, str]]:
        """Connection and what it is told, since the last look."""
        outbox, self.service.calls.outbox = self.service.calls.outbox, []
        return [(str(session.connection), _said(frame)) for session, frame in outbox]

    def status(self, user_id: str) -> Status:
        return self.service.get_user_status(user_id).status

    def is_quiet(self) -> bool:
        """Nothing is left of any call."""
        calls = self.service.calls
        rest = (calls.by_id, calls.missed, calls._active, calls._ringing, calls._ringing_at, calls._ends, calls._away)
        return not any(rest)


def _said(frame: CallFrame) -> str:
    kind = type(frame).__struct_config__.tag
    reason = getattr(frame, "reason", None) or getattr(frame, "data", None)
    return f"{kind} {frame.from_user_id}>{frame.to_user_id}" + (f" {reason}" if reason else "")


@pytest.fixture
def stage() -> Stage:
    return Stage()


def test_a_call_rings_at_every_device_and_stops_at_the_others_when_one_accepts(stage: Stage) -> None:
    caller = stage.online("user")
    phone, _ = stage.online("kol", "phone"), stage.online("kol", "tablet")
    stage.call(caller, "kol")
    assert stage.told() == [("kol phone", "call user>kol"), ("kol tablet", "call user>kol")]
    assert stage.status("kol") == "online"  # ringing is not busy
    stage.service.handle_call_accept(phone, "c", now=START)
    assert stage.told() == [("user None", "call_accept kol>user"), ("kol tablet", "call_accept kol>user")]
    assert (stage.status("kol"), stage.status("user")) == ("busy", "busy")
    stage.service.handle_call_end(caller, "c", now=START)
    assert stage.told() == [("kol phone", "call_end user>kol hangup")]
    assert (stage.status("kol"), stage.status("user")) == ("online", "online")
    assert stage.is_quiet()


def test_a_frame_says_what_the_call_is(stage: Stage) -> None:
    caller, _ = stage.online("user"), stage.online("kol")
    stage.call(caller, "kol")
    ((_, frame),) = stage.service.calls.outbox
    assert (frame.call_id, frame.video, frame.audio, frame.timestamp) == ("c", True, False, 1_640_995_200)


def test_a_rejection_reaches_the_caller_and_the_other_devices(stage: Stage) -> None:
    caller, phone, _ = stage.online("user"), stage.online("kol", "phone"), stage.online("kol", "tablet")
    stage.call(caller, "kol")
    stage.told()
    stage.service.handle_call_reject(phone, "c", now=START)
    assert stage.told() == [("user None", "call_reject kol>user"), ("kol tablet", "call_reject kol>user")]
    assert stage.is_quiet()


def test_the_caller_can_take_it_back_and_then_nobody_can_accept(stage: Stage) -> None:
    caller, callee = stage.online("user"), stage.online("kol")
    stage.call(caller, "kol")
    stage.told()
    stage.service.handle_call_cancel(caller, "c", now=START)
    assert stage.told() == [("kol None", "call_cancel user>kol")]
    with pytest.raises(UnknownCall):
        stage.service.handle_call_accept(callee, "c", now=START)
    assert stage.is_quiet()


def test_a_cancel_that_crosses_an_accept_hangs_up(stage: Stage) -> None:
    caller, callee = stage.online("user"), stage.online("kol")
    stage.call(caller, "kol")
    stage.service.handle_call_accept(callee, "c", now=START)
    stage.told()
    stage.service.handle_call_cancel(caller, "c", now=START)
    assert stage.told() == [("kol None", "call_end user>kol hangup")]
    assert stage.is_quiet()


def test_an_accept_that_is_said_again_changes_nothing(stage: Stage) -> None:
    caller, phone, tablet = stage.online("user"), stage.online("kol", "phone"), stage.online("kol", "tablet")
    stage.call(caller, "kol")
    stage.service.handle_call_accept(phone, "c", now=START)
    stage.told()
    version = stage.service.version
    stage.service.handle_call_accept(phone, "c", now=START)
    assert stage.told() == []
    assert stage.service.version == version
    for other in (tablet, caller):
        with pytest.raises(UnknownCall):
            stage.service.handle_call_accept(other, "c", now=START)


def test_a_late_reject_of_another_device_does_not_end_the_call(stage: Stage) -> None:
    caller, phone, tablet = stage.online("user"), stage.online("kol", "phone"), stage.online("kol", "tablet")
    stage.call(caller, "kol")
    stage.service.handle_call_accept(phone, "c", now=START)
    with pytest.raises(UnknownCall):
        stage.service.handle_call_reject(tablet, "c", now=START)
    assert stage.status("kol") == "busy"
    stage.told()
    stage.service.handle_call_reject(phone, "c", now=START)  # its own: it hangs up
    assert stage.told() == [("user None", "call_end kol>user hangup")]


def test_an_end_while_it_rings_is_a_cancel_or_a_reject(stage: Stage) -> None:
    caller, callee = stage.online("user"), stage.online("kol")
    stage.call(caller, "kol")
    stage.told()
    stage.service.handle_call_end(caller, "c", now=START)
    assert stage.told() == [("kol None", "call_cancel user>kol")]
    stage.call(caller, "kol")
    stage.told()
    stage.service.handle_call_end(callee, "c", now=START)
    assert stage.told() == [("user None", "call_reject kol>user")]


def test_of_two_callers_one_wins_and_the_other_is_told_busy(stage: Stage) -> None:
    first, second, host = stage.online("user_1"), stage.online("user_2"), stage.online("kol")
    stage.call(first, "kol", "c1")
    stage.call(second, "kol", "c2")
    stage.told()
    stage.service.handle_call_accept(host, "c2", now=START)
    assert stage.told() == [
        ("user_2 None", "call_accept kol>user_2"),
        ("user_1 None", "call_end kol>user_1 busy"),
        ("kol None", "call_end user_1>kol busy"),
    ]
    assert [stage.status(user) for user in ("kol", "user_1", "user_2")] == ["busy", "online", "busy"]
    with pytest.raises(UserBusy):
        stage.call(first, "kol", "c3")


def test_whoever_becomes_busy_lets_nothing_else_ring(stage: Stage) -> None:
    """Neither what he called himself, nor what calls him who was called."""
    first, second = stage.online("a"), stage.online("b")
    stage.online("c")
    stage.call(first, "c", "out")
    stage.call(second, "a", "in")
    stage.told()
    stage.service.handle_call_accept(first, "in", now=START)
    assert stage.told() == [
        ("b None", "call_accept a>b"),
        ("a None", "call_end c>a busy"),
        ("c None", "call_end a>c busy"),
    ]
    with pytest.raises(UserBusy):
        stage.call(first, "c", "again")


def test_nobody_answers_for_a_minute_and_both_are_told(stage: Stage) -> None:
    caller, _ = stage.online("user"), stage.online("kol")
    stage.call(caller, "kol")
    stage.told()
    stage.service.cleanup_expired_status(now=later(RING_MS - 1))
    assert stage.told() == []
    stage.service.cleanup_expired_status(now=later(RING_MS))
    assert stage.told() == [("user None", "call_end kol>user timeout"), ("kol None", "call_end user>kol timeout")]
    assert stage.is_quiet()


def test_a_call_that_is_accepted_does_not_time_out(stage: Stage) -> None:
    caller, callee = stage.online("user"), stage.online("kol")
    stage.call(caller, "kol")
    stage.service.handle_call_accept(callee, "c", now=START)
    stage.told()
    stage.service.cleanup_expired_status(now=later(10 * RING_MS))
    assert stage.told() == []
    assert stage.status("kol") == "busy"


@pytest.mark.parametrize("accepted", [False, True])
@pytest.mark.parametrize("who", ["user", "kol"])
def test_either_side_s_end_ends_the_call(stage: Stage, accepted: bool, who: str) -> None:
    sessions = {"user": stage.online("user"), "kol": stage.online("kol")}
    stage.call(sessions["user"], "kol")
    if accepted:
        stage.service.handle_call_accept(sessions["kol"], "c", now=START)
    stage.told()
    stage.service.handle_user_offline(sessions.pop(who), now=START)
    ((other, _),) = sessions.items()
    assert stage.told() == [(f"{other} None", f"call_end {who}>{other} offline")]
    assert (stage.status(who), stage.status(other)) == ("offline", "online")
    assert stage.is_quiet()


def test_a_broken_connection_keeps_the_call_until_the_session_ends(stage: Stage) -> None:
    caller, callee = stage.online("user"), stage.online("kol")
    stage.call(caller, "kol")
    stage.service.handle_call_accept(callee, "c", now=START)
    stage.told()
    stage.service.handle_connection_lost(callee, last_heard_ms=START.ms, now=later(1000))
    assert stage.status("kol") == "busy"
    assert stage.told() == []
    stage.service.cleanup_expired_status(now=later(61_000))
    assert stage.told() == [("user None", "call_end kol>user offline")]
    assert (stage.status("kol"), stage.status("user")) == ("offline", "online")
    assert stage.is_quiet()


def test_one_who_reconnects_has_his_call_and_is_told_what_he_missed(stage: Stage) -> None:
    caller, callee = stage.online("user"), stage.online("kol")
    stage.call(caller, "kol")
    stage.service.handle_call_accept(callee, "c", now=START)
    stage.told()
    stage.service.handle_connection_lost(caller, last_heard_ms=START.ms, now=later(1000))
    back = stage.online("user")
    assert stage.told() == []
    stage.service.handle_call_signal(callee, "c", "offer", now=START)
    assert stage.told() == [("user None", "call_signal kol>user offer")]
    stage.service.handle_connection_lost(back, last_heard_ms=START.ms, now=later(2000))
    stage.service.handle_call_end(callee, "c", now=START)
    assert stage.told() == []
    assert stage.status("user") == "online"
    stage.online("user")
    assert stage.told() == [("user None", "call_end kol>user hangup")]
    assert stage.is_quiet()


def test_a_call_does_not_wait_for_ever_for_one_whom_polls_keep_present(stage: Stage) -> None:
    """Polls carry no calls: he could not even hang up."""
    caller, callee = stage.online("user"), stage.online("kol")
    stage.call(caller, "kol")
    stage.service.handle_call_accept(callee, "c", now=START)
    stage.told()
    for session in (caller, callee):
        stage.service.handle_connection_lost(session, last_heard_ms=START.ms, now=START)
    for second in range(10, 70, 10):
        for user in ("user", "kol"):
            stage.service.handle_poll(user, now=later(second * 1000 - 1))
        assert (stage.status("kol"), stage.status("user")) == ("busy", "busy")
        stage.service.cleanup_expired_status(now=later(second * 1000))
    assert (stage.status("kol"), stage.status("user")) == ("online", "online")
    stage.online("user")
    assert stage.told() == [("user None", "call_end kol>user offline")]
    stage.online("kol")
    assert stage.told() == [("kol None", "call_end user>kol offline")]
    assert stage.is_quiet()


def test_what_was_missed_goes_with_the_session_that_missed_it(stage: Stage) -> None:
    caller, callee = stage.online("user"), stage.online("kol")
    stage.call(caller, "kol")
    stage.service.handle_connection_lost(callee, last_heard_ms=START.ms, now=START)
    stage.service.handle_call_cancel(caller, "c", now=START)
    assert stage.service.calls.missed
    stage.service.cleanup_expired_status(now=later(61_000))
    assert stage.is_quiet()


def test_a_device_that_comes_while_it_rings_is_rung_too(stage: Stage) -> None:
    caller, phone = stage.online("user"), stage.online("kol", "phone")
    stage.call(caller, "kol")
    stage.told()
    tablet = stage.online("kol", "tablet")
    assert stage.told() == [("kol tablet", "call user>kol")]
    stage.service.handle_call_accept(tablet, "c", now=START)
    assert stage.told() == [("user None", "call_accept kol>user"), ("kol phone", "call_accept kol>user")]
    stage.service.handle_user_offline(phone, now=START)  # it has no part in it any more
    assert stage.status("kol") == "busy"


def test_one_of_two_devices_that_ring_may_go(stage: Stage) -> None:
    caller, phone, tablet = stage.online("user"), stage.online("kol", "phone"), stage.online("kol", "tablet")
    stage.call(caller, "kol")
    stage.told()
    stage.service.handle_user_offline(phone, now=START)
    assert stage.told() == []
    stage.service.handle_user_offline(tablet, now=START)
    assert stage.told() == [("user None", "call_end kol>user offline")]
    assert stage.is_quiet()


def test_signals_go_to_the_other_side_and_to_nobody_else(stage: Stage) -> None:
    caller, phone, _ = stage.online("user"), stage.online("kol", "phone"), stage.online("kol", "tablet")
    other = stage.online("other")
    stage.call(caller, "kol")
    stage.told()
    stage.service.handle_call_signal(caller, "c", "offer", now=START)
    assert stage.told() == [("kol phone", "call_signal user>kol offer"), ("kol tablet", "call_signal user>kol offer")]
    stage.service.handle_call_accept(phone, "c", now=START)
    stage.told()
    stage.service.handle_call_signal(caller, "c", "candidate", now=START)
    assert stage.told() == [("kol phone", "call_signal user>kol candidate")]
    stage.service.handle_call_signal(phone, "c", "answer", now=START)
    assert stage.told() == [("user None", "call_signal kol>user answer")]
    stage.service.handle_connection_lost(phone, last_heard_ms=START.ms, now=START)
    with pytest.raises(Unavailable):
        stage.service.handle_call_signal(caller, "c", "candidate", now=START)
    with pytest.raises(UnknownCall):
        stage.service.handle_call_signal(other, "c", "candidate", now=START)


def test_what_sessions_say_goes_on_beneath_the_lease(stage: Stage) -> None:
    caller, callee = stage.online("user"), stage.online("kol")
    stage.call(caller, "kol")
    stage.service.handle_call_accept(callee, "c", now=START)
    version = stage.service.version
    stage.service.handle_status_change(callee, "away", now=START)
    assert stage.status("kol") == "busy"
    assert stage.service.version == version
    stage.service.handle_call_end(callee, "c", now=START)
    assert stage.status("kol") == "away"


def test_to_whoever_rings_one_who_hides_he_is_offline(stage: Stage) -> None:
    caller, callee = stage.online("user"), stage.online("kol")
    stage.call(caller, "kol")
    stage.told()
    stage.service.handle_status_change(callee, "offline", now=START)
    assert stage.told() == [("user None", "call_end kol>user offline"), ("kol None", "call_end user>kol offline")]
    with pytest.raises(UserOffline):
        stage.call(caller, "kol")
    assert stage.is_quiet()


def test_one_who_hides_in_a_call_stays_in_it_and_shows_offline(stage: Stage) -> None:
    caller, callee = stage.online("user"), stage.online("kol")
    stage.call(caller, "kol")
    stage.service.handle_call_accept(callee, "c", now=START)
    stage.told()
    stage.service.handle_status_change(callee, "offline", now=START)
    assert stage.told() == []
    assert (stage.status("kol"), stage.status("user")) == ("offline", "busy")
    stage.service.handle_call_end(caller, "c", now=START)
    assert (stage.status("kol"), stage.status("user")) == ("offline", "online")


Refuse = Callable[[Stage, Session], None]


def _call_oneself(stage: Stage, caller: Session) -> None:
    stage.call(caller, "user")


def _call_nobody(stage: Stage, caller: Session) -> None:
    stage.call(caller, "nobody")


def _call_one_who_is_busy(stage: Stage, caller: Session) -> None:
    stage.online("kol", status="busy")
    stage.call(caller, "kol")


def _call_one_without_a_connection(stage: Stage, caller: Session) -> None:
    stage.service.handle_poll("kol", now=START)
    stage.call(caller, "kol")


def _call_by_a_name_that_is_taken(stage: Stage, caller: Session) -> None:
    stage.online("kol")
    stage.call(stage.online("other"), "kol", "taken")
    stage.call(caller, "kol", "taken")


def _call_after_the_end(stage: Stage, caller: Session) -> None:
    stage.online("kol")
    stage.service.handle_user_offline(caller, now=START)
    stage.call(caller, "kol")


@pytest.mark.parametrize(
    ("refuse", "error"),
    [
        (_call_oneself, BadField),
        (_call_nobody, UserOffline),
        (_call_one_who_is_busy, UserBusy),
        (_call_one_without_a_connection, Unavailable),
        (_call_by_a_name_that_is_taken, BadField),
        (_call_after_the_end, NotOnline),
    ],
)
def test_what_can_not_ring_is_refused_and_changes_nothing(
    stage: Stage, refuse: Refuse, error: type[RequestError]
) -> None:
    caller = stage.online("user")
    with pytest.raises(error):
        refuse(stage, caller)
    assert all(call.caller is not caller for call in stage.service.calls.by_id.values())
    assert caller not in stage.service.calls._ends


def test_calls_that_ring_are_bounded_on_either_side(stage: Stage) -> None:
    caller = stage.online("user")
    for number in range(OUTGOING_MAX + 1):
        stage.online(f"kol_{number}")
    for number in range(OUTGOING_MAX):
        stage.call(caller, f"kol_{number}", f"c{number}")
    with pytest.raises(TooMany):
        stage.call(caller, f"kol_{OUTGOING_MAX}", "one more")
    stage.service.handle_call_cancel(caller, "c0", now=START)
    stage.call(caller, f"kol_{OUTGOING_MAX}", "one more")


def test_a_host_whom_a_crowd_calls_is_busy_for_the_rest(stage: Stage) -> None:
    host = stage.online("kol")
    for number in range(INCOMING_MAX):
        stage.call(stage.online(f"user_{number}"), "kol", f"c{number}")
    with pytest.raises(UserBusy):
        stage.call(stage.online("late"), "kol", "late")
    stage.told()
    stage.service.handle_call_accept(host, "c7", now=START)
    assert len(stage.told()) == 1 + 2 * (INCOMING_MAX - 1)
    assert len(stage.service.calls.by_id) == 1


def test_a_call_that_rang_nowhere_leaves_nothing(stage: Stage) -> None:
    caller, _ = stage.online("user"), stage.online("kol")
    call = stage.service.handle_call(caller, "c", "kol", video=True, audio=True, now=START)
    stage.told()
    stage.service.calls.withdraw(call)
    assert stage.told() == []
    assert stage.is_quiet()


def test_the_table_lists_every_phase_and_nothing_leads_out_of_over() -> None:
    assert set(NEXT) == set(CallPhase)
    assert NEXT[CallPhase.OVER] == {}
    assert {cue for cues in NEXT.values() for cue in cues} == set(CallCue)


def test_one_who_comes_back_hidden_is_told_that_what_rang_is_over(stage: Stage) -> None:
    """He was rung before his connection broke: his phone would ring on."""
    caller, phone = stage.online("user"), stage.online("kol", "phone")
    stage.call(caller, "kol")
    stage.told()
    stage.service.handle_connection_lost(phone, last_heard_ms=START.ms, now=START)
    stage.online("kol", "phone", status="offline")
    assert stage.told() == [("user None", "call_end kol>user offline"), ("kol phone", "call_end user>kol offline")]
    assert stage.is_quiet()


def test_one_who_takes_another_device_s_name_has_its_calls_and_rings_once(stage: Stage) -> None:
    caller, phone, other = stage.online("user"), stage.online("kol", "phone"), stage.online("kol")
    stage.call(caller, "kol")
    stage.told()
    stage.service.handle_update(other, status=None, device="phone", now=START)
    assert stage.told() == [("kol None", "call user>kol")]
    assert phone not in stage.service.calls._ends
    stage.service.handle_call_accept(other, "c", now=START)
    assert stage.told() == [("user None", "call_accept kol>user")]
    stage.service.handle_user_offline(other, now=START)
    assert stage.is_quiet()


def test_who_hides_and_calls_himself_calls_himself(stage: Stage) -> None:
    caller = stage.online("user", status="offline")
    with pytest.raises(BadField):
        stage.call(caller, "user")
