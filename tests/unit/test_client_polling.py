"""The polling fallback by example: when, what is asked, what the answers add up to, and the way back to a socket."""

from typing import Any

import pytest

from fastpresence.client.core import ClientCore
from fastpresence.client.machine import (
    Answered,
    Connect,
    Disconnect,
    Event,
    Phase,
    Poll,
    Stale,
    StateChanged,
    StopPolling,
    Synced,
)
from fastpresence.client.polling import PollAnswer, Poller, PollRequest, RoomCount, RosterAnswer, RosterRequest, Told
from fastpresence.client.roster import Change
from fastpresence.client.schedule import Timing
from fastpresence.errors import ConnectionFailed
from fastpresence.messages import (
    Ack,
    CallReject,
    CallRinging,
    Heartbeat,
    HeartbeatAck,
    RoomOccupancy,
    Status,
    StatusEntry,
    Subscribe,
    UserOnline,
    UserOnlineStatus,
    Welcome,
)


def entry(user_id: str, status: Status = "online", rev: int = 1, *, left: bool = False) -> StatusEntry:
    return StatusEntry(user_id, user_id.split("_")[0], status, status != "offline", 1_700_000_000, rev, left)


def answer(*entries: StatusEntry, full: bool = False, cursor: str = "p1", **fields: Any) -> PollAnswer:
    return PollAnswer(list(entries), cursor, full, **fields)


# What is asked.


def poller(**timing: Any) -> Poller:
    poller = Poller(Timing(**timing), lambda: 0.5, "laptop")
    poller.begin(0)
    return poller


def asked(polls: Poller, rooms: list[str], watched: list[str], status: Status | None) -> PollRequest:
    request = polls.ask(rooms, watched, status)
    assert isinstance(request, PollRequest)
    return request


def answered(polls: Poller, told: PollAnswer, now_ms: float) -> Told | None:
    """And on to what is next."""
    found = polls.answered(told, now_ms)
    if found is not None:
        polls.advance(now_ms)
    return found


def test_polls_come_every_interval_with_jitter_and_bring_their_cursor() -> None:
    polls = poller()
    assert polls.due_ms == 0
    assert asked(polls, [], [], None) == PollRequest(rooms=[], device="laptop")
    assert polls.due_ms is None
    told = answered(polls, answer(full=True, cursor="p1"), 100)
    assert told is not None
    assert (polls.works, told.full, told.part.whole) == (True, True, True)
    assert polls.due_ms == 100 + 5_500
    assert asked(polls, [], [], None) == PollRequest(cursor="p1", rooms=[], device="laptop")


def test_pages_are_asked_for_at_once_and_told_together() -> None:
    polls = poller()
    asked(polls, [], [], None)
    assert answered(polls, answer(entry("kol_1"), full=True, more=True, cursor="half"), 10) is None
    assert polls.due_ms == 10
    assert asked(polls, [], [], None).cursor == "half"
    told = answered(polls, answer(entry("kol_2"), full=False, cursor="whole"), 20)
    assert told is not None
    assert ([e.user_id for e in told.entries], told.full) == (["kol_1", "kol_2"], True)
    assert asked(polls, [], [], None).cursor == "whole"


def test_a_full_answer_in_the_middle_of_changes_replaces_them() -> None:
    polls = poller()
    asked(polls, [], [], None)
    answered(polls, answer(entry("kol_1"), more=True, cursor="half"), 10)
    asked(polls, [], [], None)
    told = answered(polls, answer(entry("kol_2"), full=True), 20)
    assert told is not None
    assert ([e.user_id for e in told.entries], told.full) == (["kol_2"], True)


def test_half_an_answer_is_void_when_the_rest_fails() -> None:
    polls = poller()
    asked(polls, [], [], None)
    answered(polls, answer(entry("kol_1"), full=True, more=True, cursor="half"), 10)
    asked(polls, [], [], None)
    polls.failed(20)
    assert asked(polls, [], [], None).cursor is None


def test_the_status_is_told_first_when_it_changes_and_when_it_may_have_been_forgotten() -> None:
    polls = poller()

    def told(status: Status | None) -> Status | None:
        request = asked(polls, [], [], status)
        answered(polls, answer(), 0)
        return request.status

    assert [told("busy"), told("busy"), told("away"), told("away")] == ["busy", None, "away", None]
    asked(polls, [], [], "away")
    polls.failed(0)
    assert told("away") == "away"


def test_who_watches_many_asks_in_parts_and_the_round_is_over_with_the_last() -> None:
    polls = poller()
    watched = [f"user_{number}" for number in range(2_500)]
    sizes: list[tuple[int, list[str] | None]] = []
    named: list[str] = []
    while not named or not polls.between_rounds:
        request = asked(polls, ["lobby"], watched, None)
        named.extend(request.user_ids or [])
        sizes.append((len(request.user_ids or []), request.rooms))
        told = answered(polls, answer(cursor=f"part {len(sizes)}"), 0)
        assert told is not None
        assert told.part.whole == (len(sizes) == 1)
        assert polls.works == polls.between_rounds
    assert sizes == [(1000, ["lobby"]), (1000, None), (500, None)]
    assert named == watched
    assert asked(polls, ["lobby"], watched, None).cursor == "part 1"


def test_a_poll_fits_into_the_body_that_a_server_takes() -> None:
    import msgspec

    polls = poller()
    request = asked(polls, [f"r{n}" + "r" * 120 for n in range(50)], ["u" * 123 + f"{n:05}" for n in range(5000)], None)
    assert len(msgspec.json.encode(request)) < 65_536


def test_another_scope_has_no_cursor_yet() -> None:
    polls = poller()
    asked(polls, [], [], None)
    answered(polls, answer(), 0)
    assert asked(polls, ["lobby"], [], None).cursor is None


def test_failures_come_less_and_less_often_and_retry_after_is_heeded() -> None:
    polls = poller(jitter=0.0)
    waits = []
    for _ in range(6):
        asked(polls, [], [], None)
        polls.failed(0, http_status=500)
        waits.append(polls.due_ms)
    assert waits == [5_000, 10_000, 20_000, 40_000, 60_000, 60_000]
    asked(polls, [], [], None)
    answered(polls, answer(), 0)
    assert polls.due_ms == 5_000
    asked(polls, [], [], None)
    polls.failed(0, http_status=429, retry_after_ms=30_000)
    polls.soon(0)
    assert polls.due_ms == 30_000


def test_a_refused_token_is_replaced_at_once_and_only_once() -> None:
    polls = poller()
    asked(polls, [], [], None)
    polls.failed(7, http_status=401)
    assert (polls.due_ms, polls.fresh_token) == (7, True)
    asked(polls, [], [], None)
    polls.failed(8, http_status=401)
    assert polls.due_ms == 8 + 5_500
    asked(polls, [], [], None)
    answered(polls, answer(), 9)
    assert not polls.fresh_token


def test_what_is_not_allowed_is_not_asked_for_any_more() -> None:
    polls = poller()
    assert asked(polls, ["secret"], ["kol_1"], None).rooms == ["secret"]
    polls.failed(0, http_status=403)
    assert polls.due_ms == 0
    assert asked(polls, ["secret"], ["kol_1"], None) == PollRequest(rooms=[], device="laptop")


def test_something_to_tell_is_polled_at_once_or_right_after_the_poll_under_way() -> None:
    polls = poller()
    asked(polls, [], [], None)
    polls.soon(5)
    assert polls.due_ms is None
    answered(polls, answer(), 10)
    assert polls.due_ms == 10
    asked(polls, [], [], None)
    answered(polls, answer(), 10)
    polls.soon(20)
    assert polls.due_ms == 20


def test_rosters_are_asked_for_behind_the_last_part_and_some_in_each_round() -> None:
    polls = poller()
    rooms = [f"room_{number}" for number in range(7)]
    seen = []
    for told in (True, False, False):
        asked(polls, rooms, [], None)
        assert polls.answered(answer(), 0)
        if told:
            polls.rosters(rooms)
        while not polls.advance(0):
            assert polls.due_ms == 0
            request = polls.ask(rooms, [], None)
            assert isinstance(request, RosterRequest)
            assert polls.roster_answered() == request.room
            seen.append(request.room)
        seen.append("")
    assert seen == [*rooms[:5], "", *rooms[5:], "", ""]


def test_a_roster_that_did_not_come_is_asked_for_in_the_next_round() -> None:
    polls = poller()
    for _ in range(2):
        asked(polls, ["lobby"], [], None)
        assert polls.answered(answer(), 0)
        polls.rosters(["lobby"])
        assert not polls.advance(0)
        assert polls.ask(["lobby"], [], None) == RosterRequest("lobby")
        polls.failed(0)
        assert not polls.works
    asked(polls, ["lobby"], [], None)
    assert polls.answered(answer(), 0)
    assert not polls.advance(0)
    assert polls.ask(["lobby"], [], None) == RosterRequest("lobby")


def test_who_has_stopped_polls_no_more_and_begins_anew() -> None:
    polls = poller()
    asked(polls, [], [], None)
    answered(polls, answer(), 0)
    asked(polls, [], [], None)
    assert polls.stop()
    assert not polls.stop()
    assert answered(polls, answer(), 0) is None
    polls.soon(0)
    assert polls.due_ms is None
    polls.begin(3)
    assert polls.due_ms == 3
    assert asked(polls, [], [], None).cursor is None


# In the machine.


class Rig:
    """A machine that was online once, whose socket can't be had, and its clock."""

    ATTEMPT_MS = 30_000

    def __init__(self, *, online: bool = True, renewable: bool = True, **options: Any) -> None:
        self.now_ms = 0.0
        self.rosters: dict[str, list[StatusEntry]] = {}
        timing = Timing(delays_ms=(0,), jitter=0.0, attempt_timeout_ms=self.ATTEMPT_MS)
        self.core = ClientCore(
            random=lambda: 0.5, timing=timing, online=online, renewable=renewable, device="laptop", **options
        )
        self.core.start(self.now_ms)
        self.greet(entry("kol_1"))

    def greet(self, *present: StatusEntry, full: bool = True) -> list[object]:
        self.core.receive(Welcome("s", "user_1", "user", 30, 60, 9_999_999, "e", 0), self.now_ms)
        self.core.receive(UserOnlineStatus(list(present), full=full, cursor="s1"), self.now_ms)
        return self.answer_all()

    def answer_all(self) -> list[object]:
        sent = [frame for frame in self.core.frames_to_send() if frame.id is not None]
        for frame in sent:
            assert isinstance(frame.id, int)
            self.core.receive(HeartbeatAck(0, frame.id) if isinstance(frame, Heartbeat) else Ack(frame.id), self.now_ms)
            if isinstance(frame, Subscribe) and frame.user_ids:
                answer = UserOnlineStatus([entry(u) for u in frame.user_ids], full=True, cursor="w")
                self.core.receive(answer, self.now_ms)
        return list(sent)

    def fail(self) -> list[Event]:
        """From a connection to `failed`."""
        self.core.lost(self.now_ms)
        self.core.tick(self.now_ms)
        self.core.lost(self.now_ms, reason="refused")
        assert self.core.phase is Phase.RESTING
        return self.tick()

    def tick(self) -> list[Event]:
        self.core.tick(self.now_ms)
        return self.core.events()

    def wait(self, ms: float) -> list[Event]:
        end = self.now_ms + ms
        events: list[Event] = []
        while (deadline := self.core.next_deadline_ms()) is not None and deadline <= end:
            self.now_ms = max(self.now_ms, deadline)
            events.extend(self.tick())
        self.now_ms = end
        return events

    def ring(self, call_id: str) -> None:
        """It rang here before the socket was lost, as far as the machine knows."""
        about = CallRinging(call_id, "kol_1", "user_1", True, True, 0)
        self.core._events.extend(self.core.calls.take(about))
        self.core.events()

    def poll(self, told: PollAnswer) -> list[Event]:
        """The poll under way is answered, and so are rosters that are asked for behind it."""
        self.core.polled(told, self.now_ms)
        events = self.core.events()
        while self.core._poller._rosters and not self.core._poller._parts:
            (asked,) = of(self.tick(), Poll)
            entries = self.rosters.get(asked.request.room, [])
            self.core.polled(RosterAnswer(asked.request.room, len(entries), entries), self.now_ms)
            events.extend(self.core.events())
        return events


def of(events: list[Event], kind: type[Any]) -> list[Any]:
    return [event for event in events if isinstance(event, kind)]


def polling() -> Rig:
    rig = Rig()
    rig.fail()
    rig.poll(answer(entry("kol_1"), full=True))
    assert rig.core.polling
    return rig


def test_in_failed_everyone_is_offline_until_a_poll_is_answered() -> None:
    rig = Rig()
    events = rig.fail()
    assert of(events, Poll) == [Poll(PollRequest(rooms=[], device="laptop"), False)]
    assert not rig.core.copy.status_of("kol_1").online
    assert (rig.core.stale, rig.core.freshness) == (True, "stale")
    events = rig.poll(answer(entry("kol_1", "busy", 2), full=True))
    (change,) = of(events, Change)
    assert (change.entry.status, change.stale) == ("busy", False)
    assert of(events, Synced) == [Synced(polled=True)]
    assert (rig.core.state, rig.core.freshness) == ("failed", "polled")


def test_polls_go_on_beside_the_slow_attempts_which_disturb_nothing() -> None:
    rig = polling()
    events: list[Event] = []
    polls = 0
    while rig.core.phase is not Phase.PROBING:
        for event in rig.wait(1_000):
            events.append(event)
            if isinstance(event, Poll):
                polls += 1
                events.extend(rig.poll(answer(cursor=f"p{polls}")))
    assert rig.now_ms == 60_000
    assert polls == 12
    (attempt,) = of(events, Connect)
    assert attempt.cursor in ("p11", "p12")
    rig.core.lost(rig.now_ms, reason="refused")
    events.extend(rig.core.events())
    assert not of(events, Stale)
    assert not of(events, Change)
    assert not of(events, StateChanged)
    assert rig.core.polling
    assert of(rig.wait(5_000), Poll)


def test_an_observer_does_not_poll() -> None:
    rig = Rig(online=False)
    events = [*rig.fail(), *rig.wait(59_000)]
    assert not of(events, Poll)
    assert of(rig.wait(1_000), Connect)


def test_a_status_is_told_by_a_poll_at_once_and_the_wish_is_answered_with_it() -> None:
    rig = polling()
    request = rig.core.set_status("busy", rig.now_ms)
    (poll,) = of(rig.tick(), Poll)
    assert poll.request.status == "busy"
    (answered,) = of(rig.poll(answer()), Answered)
    assert (answered.request_id, answered.error) == (request, None)


def test_a_wish_that_comes_while_a_poll_is_under_way_waits_for_the_next() -> None:
    rig = polling()
    assert of(rig.wait(5_000), Poll)
    rig.core.watch(["kol_9"], rig.now_ms)
    assert not of(rig.poll(answer()), Answered)
    (poll,) = of(rig.tick(), Poll)
    assert poll.request.user_ids == ["kol_9"]
    assert of(rig.poll(answer(entry("kol_1"), entry("kol_9"), full=True)), Answered)
    assert rig.core.copy.status_of("kol_9").online


def test_who_is_watched_no_more_is_not_asked_for() -> None:
    rig = polling()
    rig.core.watch(["kol_9"], rig.now_ms)
    rig.core.unwatch(["kol_9"], rig.now_ms)
    rig.core.join("lobby", rig.now_ms)
    (poll,) = of(rig.tick(), Poll)
    assert (poll.request.user_ids, poll.request.rooms) == (None, ["lobby"])
    assert len(of(rig.poll(answer(entry("kol_1"), full=True)), Answered)) == 3


@pytest.mark.parametrize("under_way", [True, False])
def test_who_is_watched_again_after_a_while_is_told_anew(under_way: bool) -> None:
    rig = polling()
    rig.core.watch(["user_2"], rig.now_ms)
    rig.tick()
    rig.poll(answer(entry("kol_1"), entry("user_2"), full=True))
    if under_way:
        assert of(rig.wait(5_000), Poll)
    rig.core.unwatch(["user_2"], rig.now_ms)
    rig.core.watch(["user_2"], rig.now_ms)
    if under_way:
        rig.poll(answer(cursor="p2"))
    (poll,) = of(rig.tick(), Poll)
    assert (poll.request.user_ids, poll.request.cursor) == (["user_2"], None)


def test_to_hang_up_is_told_by_the_next_poll_at_once() -> None:
    rig = polling()
    rig.ring("c1")
    rig.core.hang_up("c1", rig.now_ms)
    (poll,) = of(rig.tick(), Poll)
    assert poll.request.calls == [CallReject(call_id="c1")]
    (answered,) = of(rig.poll(answer()), Answered)
    assert (answered.error, rig.core.calls.farewells) == (None, {})
    (poll,) = of(rig.wait(6_000), Poll)
    assert poll.request.calls == []


def test_what_a_poll_could_not_tell_of_a_call_the_next_one_tells_or_the_socket() -> None:
    rig = polling()
    rig.ring("c1")
    rig.core.hang_up("c1", rig.now_ms)
    rig.tick()
    rig.core.poll_failed(rig.now_ms, reason="no route")
    (answered,) = of(rig.core.events(), Answered)
    assert isinstance(answered.error, ConnectionFailed)
    events = rig.wait(6_000)
    assert [poll.request.calls for poll in of(events, Poll)] == [[CallReject(call_id="c1")]]
    assert list(rig.core.calls.farewells) == ["c1"]  # nobody has said that he heard it
    rig.poll(answer())
    assert not rig.core.calls.farewells


def test_a_call_that_is_hung_up_while_a_poll_is_under_way_goes_with_the_next() -> None:
    rig = polling()
    rig.ring("c1")
    (poll,) = of(rig.wait(6_000), Poll)
    assert poll.request.calls == []
    rig.core.hang_up("c1", rig.now_ms)
    assert of(rig.poll(answer()), Answered) == []
    (poll,) = of(rig.tick(), Poll)
    assert poll.request.calls == [CallReject(call_id="c1")]
    assert of(rig.poll(answer()), Answered)


def test_messages_and_calls_need_a_socket() -> None:
    rig = polling()
    with pytest.raises(ConnectionFailed):
        rig.core.send_message("kol_1", "hello", rig.now_ms)
    with pytest.raises(ConnectionFailed):
        rig.core.call("c1", "kol_1", rig.now_ms, video=True, audio=True)


def test_a_failed_poll_makes_the_copy_stale_fails_wishes_and_after_three_everyone_is_offline() -> None:
    rig = polling()
    rig.core.set_status("away", rig.now_ms)
    rig.tick()
    events: list[Event] = []
    for _ in range(3):
        rig.core.poll_failed(rig.now_ms, reason="no route")
        events.extend(rig.core.events())
        if not of(events, Change):
            assert rig.core.copy.status_of("kol_1").online
        while rig.core.next_deadline_ms() is not None and not of(rig.wait(1_000), Poll):
            pass
    (answered,) = of(events, Answered)
    assert isinstance(answered.error, ConnectionFailed)
    assert of(events, Stale) == [Stale()]
    assert [change.stale for change in of(events, Change)] == [True]
    (change,) = of(rig.poll(answer(entry("kol_1"), full=True)), Change)
    assert change.entry.online


def test_a_wish_survives_a_token_that_has_run_out() -> None:
    rig = polling()
    rig.core.set_status("away", rig.now_ms)
    rig.tick()
    rig.core.poll_failed(rig.now_ms, http_status=401)
    (poll,) = of(rig.tick(), Poll)
    assert (poll.fresh_token, poll.request.status) == (True, "away")
    assert of(rig.poll(answer()), Answered)


def test_a_plain_token_that_is_refused_is_the_end() -> None:
    rig = Rig(renewable=False)
    rig.fail()
    rig.core.poll_failed(rig.now_ms, http_status=401)
    assert rig.core.over
    assert rig.core.next_deadline_ms() is None


def test_a_new_socket_ends_the_polling_and_tells_what_a_poll_was_to_tell() -> None:
    rig = polling()
    request = rig.core.set_status("away", rig.now_ms)
    assert of(rig.tick(), Poll)
    rig.core.start(rig.now_ms)
    assert rig.core.phase is Phase.PROBING
    rig.core.receive(Welcome("s", "user_1", "user", 30, 60, 9_999_999, "e", 0), rig.now_ms)
    events = rig.core.events()
    assert of(events, StopPolling)
    assert not of(events, Answered)
    assert rig.core.state == "connected"
    rig.core.polled(answer(entry("kol_1", "offline", 9)), rig.now_ms)  # nobody listens any more
    assert rig.core.copy.status_of("kol_1").online
    online, settling = rig.answer_all()
    assert isinstance(online, UserOnline)
    assert (online.status, online.device) == ("away", "laptop")
    assert isinstance(settling, Heartbeat)
    events = rig.core.events()
    assert request in [answered.request_id for answered in of(events, Answered) if answered.error is None]
    assert of(events, Synced) == [Synced()]
    assert (rig.core.stale, rig.core.freshness) == (False, "live")
    assert not of(rig.wait(20_000), Poll)


def test_a_socket_goes_on_from_the_polls_cursor_when_it_is_clear_who_is_public() -> None:
    rig = polling()
    rig.core.start(rig.now_ms)
    assert of(rig.core.events(), Connect) == [Connect("p1", True)]
    rig.greet(entry("kol_2"), full=False)
    assert {user_id for user_id, held in rig.core.copy.entries.items() if held.online} == {"kol_1", "kol_2"}


def test_a_socket_that_has_a_room_to_see_takes_everything_anew_and_nobody_flickers() -> None:
    rig = Rig()
    rig.core.join("lobby", rig.now_ms)
    rig.answer_all()
    rig.core.receive(UserOnlineStatus([entry("user_2")], full=True, room="lobby", cursor="r"), rig.now_ms)
    rig.fail()
    rig.rosters["lobby"] = [entry("user_2"), entry("user_3")]
    rig.poll(answer(entry("kol_1"), entry("kol_2"), entry("user_2"), entry("user_3"), full=True))
    assert set(rig.core.copy.rooms["lobby"]) == {"user_2", "user_3"}
    rig.core.start(rig.now_ms)
    assert of(rig.core.events(), Connect) == [Connect(None, True)]
    rig.core.receive(Welcome("s", "user_1", "user", 30, 60, 9_999_999, "e", 0), rig.now_ms)
    # kol_2 has gone since the last poll.
    rig.core.receive(UserOnlineStatus([entry("kol_1")], full=True, cursor="s2"), rig.now_ms)
    sent = rig.core.frames_to_send()
    assert [change.user_id for change in of(rig.core.events(), Change)] == ["kol_2"]
    for frame in sent:
        assert isinstance(frame.id, int)
        rig.core.receive(HeartbeatAck(0, frame.id) if isinstance(frame, Heartbeat) else Ack(frame.id), rig.now_ms)
        if isinstance(frame, Subscribe):
            roster = UserOnlineStatus([entry("user_2"), entry("user_3")], full=True, room="lobby", cursor="r2")
            rig.core.receive(roster, rig.now_ms)
    changes = of(rig.core.events(), Change)
    assert changes == []
    assert {user_id for user_id, held in rig.core.copy.entries.items() if held.online} == {"kol_1", "user_2", "user_3"}
    assert rig.core.freshness == "live"


def test_a_socket_that_brought_a_cursor_before_a_stranger_was_polled_is_not_gone_on_with() -> None:
    rig = polling()
    assert of(rig.wait(5_000), Poll)
    rig.core.start(rig.now_ms)
    assert of(rig.core.events(), Connect) == [Connect("p1", True)]
    rig.poll(answer(entry("guest_1")))  # of a type that no socket has told of: public, or not?
    rig.core.receive(Welcome("s", "user_1", "user", 30, 60, 9_999_999, "e", 0), rig.now_ms)
    events = rig.core.events()
    assert of(events, Disconnect) == [Disconnect(1001)]
    assert rig.core.polling
    assert of(rig.tick(), Connect) == [Connect(None, True)]


def test_crowded_rooms_tell_their_count_in_polls_too_and_everything_is_told_when_that_changes() -> None:
    rig = polling()
    rig.core.join("lobby", rig.now_ms)
    rig.tick()
    rig.poll(answer(entry("kol_1"), entry("user_2"), full=True))

    def poll(told: PollAnswer) -> tuple[str | None, list[Event]]:
        (asked,) = of(rig.wait(5_000), Poll)
        return asked.request.cursor, rig.poll(told)

    crowded = [RoomCount("lobby", 5000)]
    assert of(poll(answer(room_occupancy=crowded))[1], RoomOccupancy) == [RoomOccupancy("lobby", 5000)]
    assert rig.core.copy.occupancy == {"lobby": 5000}
    cursor, events = poll(answer(entry("kol_1"), full=True, room_occupancy=crowded))
    assert cursor is None
    assert not of(events, RoomOccupancy)
    assert [change.user_id for change in of(events, Change)] == ["user_2"]
    assert poll(answer(cursor="p4"))[0] == "p1"
    assert rig.core.copy.occupancy == {}
    assert poll(answer(entry("kol_1"), entry("user_2"), full=True))[0] is None
    assert rig.core.copy.status_of("user_2").online


def test_answers_that_do_not_get_on_are_not_asked_for_in_a_hot_loop() -> None:
    rig = polling()
    rig.wait(5_000)
    rig.poll(answer(full=True, more=True, cursor="half"))
    assert of(rig.tick(), Poll)
    assert of(rig.poll(answer(full=True, more=True, cursor="half")), Stale)
    assert not of(rig.wait(4_999), Poll)
    assert of(rig.wait(1), Poll)


def test_who_leaves_or_is_stopped_polls_no_more() -> None:
    rig = polling()
    assert of(rig.wait(5_000), Poll)
    rig.core.leave(rig.now_ms)
    assert of(rig.core.events(), StopPolling)
    assert rig.core.next_deadline_ms() is None


# Between the attempts of the table, which take longer than the server's patience.


class Away(Rig):
    """One that was heard of last at 0 s, has lost its socket, and whose next attempt hangs."""

    ATTEMPT_MS = 100_000

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.core.events()
        self.core.lost(self.now_ms)

    def polls_until(self, ms: float) -> list[tuple[float, PollRequest]]:
        """The polls that go out meanwhile, with when; of them only the first is not answered."""
        found: list[tuple[float, PollRequest]] = []
        while (deadline := self.core.next_deadline_ms()) is not None and deadline <= ms:
            self.now_ms = max(self.now_ms, deadline)
            for poll in of(self.tick(), Poll):
                found.append((self.now_ms, poll.request))
                if len(found) == 1:
                    self.core.poll_failed(self.now_ms, reason="no route")
                else:
                    self.core.polled(answer(entry("kol_1", "offline", 9), full=True), self.now_ms)
        return found


def test_a_client_that_is_long_in_coming_back_lets_the_server_know_and_hears_nothing() -> None:
    rig = Away(status="busy")
    kept = PollRequest(cursor="s1", status="busy", device="laptop")
    assert rig.polls_until(59_999) == [(40_000.0, kept), (45_000.0, kept)]
    assert rig.core.state in ("connecting", "disconnected")
    assert (rig.core.stale, rig.core.copy.cursor) == (True, "s1")
    assert rig.core.copy.status_of("kol_1").online  # as it was


def test_it_says_nothing_any_more_when_it_is_too_late() -> None:
    rig = Away()
    rig.now_ms = 60_000.0
    rig.core.tick(rig.now_ms)
    assert rig.core.phase is Phase.OPENING
    assert not of(rig.core.events(), Poll)
    assert not of(rig.wait(20_000), Poll)


def test_an_observer_and_one_who_was_never_online_need_not_say_it() -> None:
    assert Away(online=False).polls_until(59_999) == []
    core = ClientCore(random=lambda: 0.5, online=True)
    core.start(0)
    core.tick(29_000)
    assert not of(core.events(), Poll)


@pytest.mark.parametrize("comes_back", [True, False])
def test_what_comes_next_ends_a_poll_that_only_kept_it_present(comes_back: bool) -> None:
    rig = Away()
    assert of(rig.wait(40_000), Poll)
    if comes_back:
        assert rig.core.phase is Phase.OPENING
        rig.core.receive(Welcome("s", "user_1", "user", 30, 60, 9_999_999, "e", 0), rig.now_ms)
        assert of(rig.core.events(), StopPolling)
        rig.answer_all()
        assert not rig.core.stale
    else:
        rig.core.lost(rig.now_ms, reason="refused")
        events = [*rig.core.events(), *rig.tick()]
        assert rig.core.phase is Phase.RESTING
        assert [type(event) for event in events if isinstance(event, (Poll, StopPolling))] == [StopPolling, Poll]


# What polls tell, in the copy.


def test_who_left_the_rooms_is_seen_no_more_and_who_is_watched_stays() -> None:
    rig = Rig()
    rig.core.join("lobby", rig.now_ms)
    rig.core.watch(["user_3"], rig.now_ms)
    rig.answer_all()
    rig.core.receive(UserOnlineStatus([entry("user_2"), entry("user_3")], full=True, room="lobby"), rig.now_ms)
    rig.fail()
    rig.rosters["lobby"] = [entry("user_2"), entry("user_3")]  # and user_4 in a room whose roster can't be had
    rig.poll(answer(entry("kol_1"), entry("user_2"), entry("user_3"), entry("user_4"), full=True))
    rig.rosters["lobby"] = [entry("user_3")]
    rig.wait(5_000)
    changes = of(rig.poll(answer(entry("user_2", rev=2, left=True), entry("user_4", rev=2, left=True))), Change)
    assert [(change.user_id, change.room, change.left) for change in changes] == [
        ("user_2", "lobby", True),
        ("user_4", None, True),
    ]
    assert set(rig.core.copy.entries) == {"kol_1", "user_3"}
    assert set(rig.core.copy.rooms["lobby"]) == {"user_3"}


def test_who_does_not_want_the_public_users_sees_those_he_watches_and_the_members_of_his_rooms() -> None:
    rig = Rig(public=False)
    rig.core.watch(["user_1"], rig.now_ms)
    rig.core.join("lobby", rig.now_ms)
    rig.answer_all()
    rig.fail()
    rig.rosters["lobby"] = [entry("user_2")]
    rig.poll(answer(entry("kol_1"), entry("user_1"), entry("user_2"), full=True))
    assert {user_id for user_id, held in rig.core.copy.entries.items() if held.online} == {"user_1", "user_2"}
    rig.wait(5_000)
    changes = of(rig.poll(answer(entry("kol_1", rev=2), entry("user_2", "away", rev=2))), Change)
    assert [(change.user_id, change.entry.status) for change in changes] == [("user_2", "away")]


def test_an_older_entry_of_a_poll_is_refused() -> None:
    rig = polling()
    rig.wait(5_000)
    assert of(rig.poll(answer(entry("kol_1", "offline", 0), entry("kol_1", "busy", 7))), Change)
    rig.wait(5_000)
    assert not of(rig.poll(answer(entry("kol_1", "offline", 6), entry("kol_1", "away", 6, left=True))), Change)
    assert rig.core.copy.status_of("kol_1").status == "busy"


def test_a_full_answer_to_one_part_says_nothing_of_the_others() -> None:
    rig = Rig()
    watched = [f"user_{number}" for number in range(1_001)]
    rig.core.watch(watched, rig.now_ms)
    rig.answer_all()
    rig.fail()
    assert not of(rig.poll(answer(entry("kol_1"), *(entry(u) for u in watched[:1000]), full=True)), Synced)
    rig.tick()
    events = rig.poll(answer(entry("kol_1"), entry(watched[1000]), full=True))
    assert of(events, Synced)
    assert all(rig.core.copy.status_of(user_id).online for user_id in ["kol_1", *watched])
    rig.wait(5_000)
    rig.poll(answer())
    rig.tick()
    (change,) = of(rig.poll(answer(full=True)), Change)
    assert (change.user_id, change.entry.online) == (watched[1000], False)
