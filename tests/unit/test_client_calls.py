"""Calls by example: the table, who rings whom, and that nothing is ever left ringing or busy."""

from collections.abc import Callable

import pytest

from fastpresence.client.calls import NEXT, CallMoved, Calls, Rang, Signal
from fastpresence.client.core import ClientCore
from fastpresence.errors import ConnectionFailed, RequestRefused
from fastpresence.messages import (
    Ack,
    Call,
    CallAccept,
    CallAccepted,
    CallCancel,
    CallCancelled,
    CallEnd,
    CallEnded,
    CallFrame,
    CallReject,
    CallRejected,
    CallRinging,
    CallSignal,
    CallSignalled,
    EndReason,
    Heartbeat,
    HeartbeatAck,
    UserOffline,
    UserOnline,
    UserOnlineStatus,
    Welcome,
)

ABOUT = ("c1", "kol_1", "user_1", True, True, 0)
LOST = ConnectionFailed("lost")
UNKNOWN = RequestRefused("unknown_call", "no such call")


def outgoing(calls: Calls) -> None:
    calls.dial("c1", "kol_1", video=True, audio=True)
    assert calls.answered(dial(), None) == [CallMoved("c1", "ringing")]


def dial() -> Call:
    return Call(call_id="c1", to_user_id="kol_1", video=True, audio=True)


def incoming(calls: Calls) -> None:
    (rang,) = calls.take(CallRinging(*ABOUT))
    assert isinstance(rang, Rang)
    assert (rang.call.user_id, rang.call.outgoing, rang.call.state) == ("kol_1", False, "ringing")


def accepted_here(calls: Calls) -> None:
    incoming(calls)
    assert calls.answered(CallAccept(call_id="c1"), None) == [CallMoved("c1", "active")]


def accepted_there(calls: Calls) -> None:
    outgoing(calls)
    assert calls.take(CallAccepted(*ABOUT)) == [CallMoved("c1", "active")]


def test_every_state_but_the_last_leads_on_and_nothing_leads_back() -> None:
    order = ["calling", "ringing", "active", "ended"]
    for (_, state), row in NEXT.items():
        assert all(order.index(state) < order.index(after) for after in row.values())
        assert bool(row) == (state != "ended")


@pytest.mark.parametrize(
    ("begin", "frame", "outcome"),
    [
        (outgoing, CallRejected(*ABOUT), "rejected"),
        (outgoing, CallEnded(*ABOUT, reason="timeout"), "timeout"),
        (outgoing, CallEnded(*ABOUT, reason="busy"), "busy"),
        (incoming, CallCancelled(*ABOUT), "cancelled"),
        (incoming, CallRejected(*ABOUT), "rejected"),
        (incoming, CallAccepted(*ABOUT), "elsewhere"),
        (incoming, CallEnded(*ABOUT, reason="offline"), "offline"),
        (accepted_here, CallEnded(*ABOUT, reason="hangup"), "hangup"),
        (accepted_there, CallEnded(*ABOUT, reason="offline"), "offline"),
    ],
)
def test_the_server_ends_a_call_and_says_why(
    begin: Callable[[Calls], None], frame: CallFrame, outcome: EndReason
) -> None:
    calls = Calls()
    begin(calls)
    record = calls.calls["c1"]
    assert calls.take(frame) == [CallMoved("c1", "ended", outcome)]
    assert (record.state, record.outcome) == ("ended", outcome)
    assert (calls.calls, calls.farewells) == ({}, {})
    assert calls.take(frame) == []


def test_what_is_past_changes_nothing() -> None:
    calls = Calls()
    accepted_here(calls)
    assert calls.take(CallAccepted(*ABOUT)) == []
    assert calls.take(CallRinging(*ABOUT)) == []  # the same call once more
    assert calls.answered(dial(), None) == []
    with pytest.raises(RequestRefused, match="unknown_call"):
        calls.record("c1", to_accept=True)
    with pytest.raises(RequestRefused, match="unknown_call"):
        calls.hang_up("c2")
    with pytest.raises(RequestRefused, match="bad_field"):
        calls.dial("c1", "kol_2", video=True, audio=True)


def test_signals_pass_while_a_call_lives_and_no_longer() -> None:
    calls = Calls()
    incoming(calls)
    assert calls.take(CallSignalled(*ABOUT, data="offer")) == [Signal("c1", "offer")]
    calls.take(CallCancelled(*ABOUT))
    assert calls.take(CallSignalled(*ABOUT, data="late")) == []


@pytest.mark.parametrize(
    ("begin", "farewell", "outcome"),
    [
        (outgoing, CallCancel, "cancelled"),
        (incoming, CallReject, "rejected"),
        (accepted_here, CallEnd, "hangup"),
        (accepted_there, CallEnd, "hangup"),
    ],
)
def test_to_hang_up_works_at_once_and_the_server_is_told_until_it_answers(
    begin: Callable[[Calls], None], farewell: type[object], outcome: EndReason
) -> None:
    calls = Calls()
    begin(calls)
    frame, events = calls.hang_up("c1")
    assert isinstance(frame, farewell)
    assert events == [CallMoved("c1", "ended", outcome)]
    assert calls.take(CallRinging(*ABOUT)) == []  # it rings on, over there, until they have heard
    assert calls.unsaid() == []
    assert calls.answered(frame, LOST) == []
    calls.connected(same_memory=True)
    assert calls.unsaid() == [frame]
    assert calls.unsaid() == []
    calls.answered(frame, None)
    calls.connected(same_memory=True)
    assert calls.unsaid() == []


def test_a_farewell_that_comes_too_late_is_not_said_again() -> None:
    calls = Calls()
    outgoing(calls)
    cancel, _ = calls.hang_up("c1")
    assert calls.take(CallAccepted(*ABOUT)) == []  # they accepted at the same moment, and the cancel hangs up
    calls.answered(cancel, UNKNOWN)
    calls.connected(same_memory=True)
    assert calls.unsaid() == []


def test_a_call_that_nobody_knows_to_ring_is_over_and_cancelled() -> None:
    calls = Calls()
    calls.dial("c1", "kol_1", video=True, audio=True)
    assert calls.answered(dial(), LOST) == [CallMoved("c1", "ended", "offline")]
    assert calls.unsaid() == [CallCancel(call_id="c1")]


@pytest.mark.parametrize(("code", "outcome"), [("user_busy", "busy"), ("user_offline", "offline")])
def test_a_refused_call_is_over_and_nobody_needs_to_be_told(code: str, outcome: EndReason) -> None:
    calls = Calls()
    calls.dial("c1", "kol_1", video=True, audio=True)
    assert calls.answered(dial(), RequestRefused(code, "no")) == [CallMoved("c1", "ended", outcome)]
    assert (calls.calls, calls.farewells) == ({}, {})


def test_an_accept_that_was_not_answered_is_said_again_and_nobody_stays_busy_when_that_is_refused() -> None:
    calls = Calls()
    incoming(calls)
    calls.record("c1", to_accept=True).accepting = True
    assert calls.answered(CallAccept(call_id="c1"), LOST) == []
    assert calls.connected(same_memory=True) == []
    assert calls.accepting() == [CallAccept(call_id="c1")]
    assert calls.answered(CallAccept(call_id="c1"), UNKNOWN) == [CallMoved("c1", "ended", "offline")]
    assert calls.accepting() == []
    assert calls.unsaid() == [CallEnd(call_id="c1")]


def test_an_accept_that_is_refused_the_first_time_is_told_to_nobody() -> None:
    calls = Calls()
    incoming(calls)
    calls.record("c1", to_accept=True).accepting = True
    assert calls.answered(CallAccept(call_id="c1"), UNKNOWN) == [CallMoved("c1", "ended", "offline")]
    assert calls.unsaid() == []


def test_another_memory_of_the_server_knows_of_no_call() -> None:
    calls = Calls()
    outgoing(calls)
    calls.take(CallRinging("c2", "kol_2", "user_1", True, True, 0))
    calls.hang_up("c2")
    assert calls.connected(same_memory=False) == [CallMoved("c1", "ended", "offline")]
    assert calls.unsaid() == []


# In the machine.


class Rig:
    """A machine that is online, its clock, and what it said last."""

    def __init__(self) -> None:
        self.now_ms = 0.0
        self.core = ClientCore(random=lambda: 0.5, online=True, user_id="user_1")
        self.core.start(self.now_ms)
        self.welcome()

    def welcome(self, epoch: str = "e") -> list[object]:
        self.core.receive(Welcome("s", "user_1", "user", 30, 60, 9_999_999, epoch, 0), self.now_ms)
        self.core.receive(UserOnlineStatus([], full=True, cursor="c"), self.now_ms)
        sent = self.sent()
        for frame in sent:
            if isinstance(frame, UserOnline):
                self.core.receive(Ack(int(frame.id or 0)), self.now_ms)
            elif isinstance(frame, Heartbeat) and frame.id is not None:
                self.core.receive(HeartbeatAck(0, frame.id), self.now_ms)
        assert not self.core.stale
        return sent

    def sent(self) -> list[object]:
        return list(self.core.frames_to_send())

    def moves(self) -> list[object]:
        return [event for event in self.core.events() if isinstance(event, CallMoved | Rang)]

    def lose(self) -> None:
        self.core.lost(self.now_ms)
        self.core.tick(self.now_ms)

    def wait(self, ms: float) -> None:
        end = self.now_ms + ms
        while (deadline := self.core.next_deadline_ms()) is not None and deadline <= end:
            self.now_ms = max(self.now_ms, deadline)
            self.core.tick(self.now_ms)
        self.now_ms = end


def rig_with_a_call() -> Rig:
    rig = Rig()
    rig.core.receive(CallRinging(*ABOUT), rig.now_ms)
    request = rig.core.accept_call("c1", rig.now_ms)
    rig.core.receive(Ack(request), rig.now_ms)
    assert rig.core.calls.calls["c1"].state == "active"
    rig.sent()
    rig.moves()
    return rig


def test_a_call_outlives_a_short_break_of_the_connection() -> None:
    rig = rig_with_a_call()
    rig.lose()
    assert rig.moves() == []
    rig.welcome()
    assert rig.moves() == []
    rig.core.receive(CallEnded(*ABOUT, reason="hangup"), rig.now_ms)
    assert rig.moves() == [CallMoved("c1", "ended", "hangup")]


def test_a_call_ends_when_the_server_must_have_given_us_up_and_it_is_told_on_return() -> None:
    rig = rig_with_a_call()
    heard_ms = rig.now_ms
    rig.lose()
    while rig.core.calls.calls:
        deadline = rig.core.next_deadline_ms()
        assert deadline is not None
        assert deadline <= heard_ms + 60_000
        rig.wait(deadline - rig.now_ms)
    assert rig.now_ms == heard_ms + 60_000
    assert rig.moves() == [CallMoved("c1", "ended", "offline")]
    rig.core.start(rig.now_ms)
    assert CallEnd in [type(frame) for frame in rig.welcome()]


def test_another_epoch_ends_the_calls() -> None:
    rig = rig_with_a_call()
    rig.lose()
    rig.welcome("another")
    assert rig.moves() == [CallMoved("c1", "ended", "offline")]


def test_what_could_not_be_said_is_said_behind_user_online_on_the_next_connection() -> None:
    rig = rig_with_a_call()
    rig.lose()
    with pytest.raises(ConnectionFailed):
        rig.core.hang_up("c1", rig.now_ms)
    assert rig.moves() == [CallMoved("c1", "ended", "hangup")]
    sent = rig.welcome()
    assert [type(frame) for frame in sent[:2]] == [UserOnline, CallEnd]


def test_a_call_without_an_answer_is_cancelled_on_the_living_connection() -> None:
    rig = Rig()
    rig.core.call("c1", "kol_1", rig.now_ms, video=True, audio=False)
    rig.sent()
    rig.wait(10_000)
    assert rig.moves() == [CallMoved("c1", "ended", "offline")]
    assert CallCancel in [type(frame) for frame in rig.sent()]


def test_nobody_is_called_without_a_connection() -> None:
    rig = Rig()
    rig.lose()
    with pytest.raises(ConnectionFailed):
        rig.core.call("c1", "kol_1", rig.now_ms, video=True, audio=True)
    assert rig.core.calls.calls == {}


def test_who_leaves_hangs_up_first() -> None:
    rig = rig_with_a_call()
    rig.core.leave(rig.now_ms)
    assert [type(frame) for frame in rig.sent()] == [CallEnd, UserOffline]
    assert rig.moves() == [CallMoved("c1", "ended", "hangup")]


def test_who_is_stopped_has_no_call_any_more() -> None:
    rig = rig_with_a_call()
    rig.core.lost(rig.now_ms, close_code=4010)
    assert rig.moves() == [CallMoved("c1", "ended", "offline")]


def test_signals_go_out_for_a_call_that_lives() -> None:
    rig = rig_with_a_call()
    rig.core.signal("c1", "answer", rig.now_ms)
    (frame,) = rig.sent()
    assert isinstance(frame, CallSignal)
    assert frame.data == "answer"
    with pytest.raises(RequestRefused):
        rig.core.signal("c2", "answer", rig.now_ms)
