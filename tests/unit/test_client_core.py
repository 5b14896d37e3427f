"""The client's machine by example: connecting, coming back, beating, draining, leaving."""

from collections.abc import Callable
from typing import Any

import pytest

from fastpresence.client.core import ClientCore
from fastpresence.client.machine import (
    NEXT,
    SHOWS,
    Answered,
    Connect,
    Cue,
    Disconnect,
    Event,
    Phase,
    SentFrame,
    StateChanged,
    Synced,
)
from fastpresence.client.roster import Change
from fastpresence.client.schedule import Timing
from fastpresence.errors import ConnectionFailed, RequestRefused
from fastpresence.messages import (
    Ack,
    Draining,
    Error,
    Heartbeat,
    HeartbeatAck,
    Message,
    RoomOccupancy,
    ServerFrame,
    StatusChange,
    StatusEntry,
    Subscribe,
    TokenExpiring,
    TokenRefresh,
    UserOffline,
    UserOnline,
    UserOnlineStatus,
    Welcome,
)

KOL_1 = StatusEntry("kol_1", "kol", "online", True, 1_700_000_000, 5)


def welcome(epoch: str = "e1", *, expires_in: int = 3600, user_id: str = "user_1") -> Welcome:
    return Welcome("s1", user_id, "user", 30, 60, 1_700_000_000 + expires_in, epoch, 1_700_000_000)


def full(*entries: StatusEntry, cursor: str = "c1", room: str | None = None) -> UserOnlineStatus:
    return UserOnlineStatus(list(entries), full=True, cursor=cursor, room=room)


class Rig:
    """A machine with a clock, and a server that answers what it is told to."""

    def __init__(self, *, random: Callable[[], float] = lambda: 0.0, **options: Any) -> None:
        self.now_ms = 1_000.0
        self.core = ClientCore(random=random, **options)
        self.seen: list[Event] = []
        self.sent: list[SentFrame] = []
        self.mute = False  # the server answers no beats

    def look(self) -> list[Event]:
        events = self.core.events()
        self.seen.extend(events)
        self.sent = self.core.frames_to_send()
        return events

    def start(self) -> list[Event]:
        self.core.start(self.now_ms)
        return self.look()

    def get(self, *frames: ServerFrame) -> list[Event]:
        for frame in frames:
            self.core.receive(frame, self.now_ms)
        return self.look()

    def lose(self, **how: Any) -> list[Event]:
        self.core.lost(self.now_ms, **how)
        return self.look()

    def wait(self, ms: float) -> list[Event]:
        """Let time pass, deadline by deadline."""
        end = self.now_ms + ms
        events: list[Event] = []
        sent: list[SentFrame] = []
        while (deadline := self.core.next_deadline_ms()) is not None and deadline <= end:
            self.now_ms = max(self.now_ms, deadline)
            self.core.tick(self.now_ms)
            events.extend(self.look())
            sent.extend(self.sent)
            if Heartbeat() in self.sent and not self.mute:
                self.core.receive(HeartbeatAck(0), self.now_ms)
        self.now_ms = end
        self.sent = sent
        return events

    def answer_all(self) -> list[Event]:
        """Answer every request just sent, as the server would."""
        answers: list[ServerFrame] = []
        for frame in self.sent:
            assert frame.id is not None
            answers.append(HeartbeatAck(0, frame.id) if isinstance(frame, Heartbeat) else Ack(frame.id))
        return self.get(*answers)

    def connect(self, *entries: StatusEntry, epoch: str = "e1", cursor: str = "c1") -> None:
        """From an attempt under way to a machine that is up and caught up."""
        self.get(welcome(epoch))
        requests = self.sent
        self.get(full(*entries, cursor=cursor))
        self.sent = requests
        self.answer_all()
        assert self.core.state == "connected"
        assert not self.core.stale


def of(events: list[Event], kind: type[Any]) -> list[Any]:
    return [event for event in events if isinstance(event, kind)]


def up(**options: Any) -> Rig:
    rig = Rig(**options)
    rig.start()
    rig.connect(KOL_1)
    return rig


def test_every_phase_shows_one_of_the_four_states_and_has_its_row() -> None:
    assert set(NEXT) == set(SHOWS) == set(Phase)
    assert set(SHOWS.values()) == {"connecting", "connected", "disconnected", "failed"}


def test_a_refused_cue_changes_nothing() -> None:
    rig = Rig()
    rig.core.leave(rig.now_ms)
    rig.look()
    rig.core.refuse(ConnectionFailed("late"))
    assert Cue.REFUSED not in NEXT[rig.core.phase]
    assert (rig.core.phase, rig.look()) == (Phase.CLOSED, [])


def test_it_connects_at_once_comes_online_and_proves_itself_caught_up() -> None:
    rig = Rig(online=True, device="laptop")
    assert rig.start() == [StateChanged("connecting", None), Connect(None, False)]
    rig.get(welcome())
    online, settling = rig.sent
    assert isinstance(online, UserOnline)
    assert (online.device, online.status, online.attempt) == ("laptop", None, None)
    assert isinstance(settling, Heartbeat)
    assert rig.core.stale
    rig.get(full(KOL_1), Ack(online.id or 0))
    assert rig.core.stale
    assert of(rig.get(HeartbeatAck(0, settling.id)), Synced)
    assert not rig.core.stale


def test_an_observer_does_not_come_online() -> None:
    rig = Rig()
    rig.start()
    rig.get(welcome())
    assert [type(frame) for frame in rig.sent] == [Heartbeat]


def test_five_attempts_at_the_protocols_times_then_failed_and_every_60_s() -> None:
    rig = up()
    rig.wait(31_000)
    rig.lose()
    lost_at = rig.now_ms
    started = []
    for _ in range(8):
        deadline = rig.core.next_deadline_ms()
        assert deadline is not None
        assert of(rig.wait(deadline - rig.now_ms), Connect)
        started.append(rig.now_ms - lost_at)
        rig.lose(reason="refused")
    assert started == [0, 3_000, 9_000, 21_000, 45_000, 105_000, 165_000, 225_000]
    states = [event.state for event in of(rig.seen, StateChanged)]
    assert states == ["connecting", "connected", *(["disconnected", "connecting"] * 5), "failed"]


def test_a_connection_of_30_s_starts_the_count_afresh_and_a_shorter_one_does_not() -> None:
    rig = up()
    rig.lose()
    assert rig.core.next_deadline_ms() == rig.now_ms
    rig.wait(0)
    rig.connect(KOL_1)
    rig.lose()
    assert rig.core.next_deadline_ms() == rig.now_ms + 3_000
    rig.wait(3_000)
    rig.connect(KOL_1)
    rig.wait(30_000)
    rig.lose()
    assert rig.core.next_deadline_ms() == rig.now_ms


def test_an_attempt_without_a_welcome_is_given_up_after_30_s() -> None:
    rig = Rig()
    rig.start()
    assert rig.wait(29_999) == []
    events = rig.wait(1)
    assert of(events, Disconnect) == [Disconnect(None)]
    assert rig.core.state == "disconnected"


def test_on_the_way_back_come_cursor_status_watches_and_rooms() -> None:
    rig = up(online=True, device="d")
    rig.core.set_status("busy", rig.now_ms)
    rig.core.watch(["user_2"], rig.now_ms)
    rig.core.join("lobby", rig.now_ms)
    rig.look()
    rig.answer_all()
    rig.get(full(StatusEntry("user_2", "user", "away", True, 1, 1), cursor="c2"))
    rig.get(full(cursor="r1", room="lobby"))
    rig.core.watch(["user_3"], rig.now_ms)
    rig.look()
    rig.lose()
    (again,) = of(rig.wait(0), Connect)
    assert again.cursor == "c1"
    rig.get(welcome())
    online, known, new, room, _ = rig.sent
    assert isinstance(online, UserOnline)
    assert (online.status, online.device, online.attempt) == ("busy", "d", 1)
    assert isinstance(known, Subscribe)
    assert (known.user_ids, known.cursor) == (["user_2"], "c2")
    assert isinstance(new, Subscribe)
    assert (new.user_ids, new.cursor) == (["user_3"], None)
    assert isinstance(room, Subscribe)
    assert (room.rooms, room.cursor) == (["lobby"], "r1")


def test_the_watches_cursor_is_the_one_from_before_the_new_connection() -> None:
    rig = up()
    rig.core.watch(["user_2"], rig.now_ms)
    rig.look()
    rig.answer_all()
    rig.get(full(cursor="old"))
    rig.lose()
    rig.wait(0)
    rig.core.receive(welcome(), rig.now_ms)
    rig.core.receive(UserOnlineStatus([], full=False, cursor="new"), rig.now_ms)
    rig.look()
    assert isinstance(rig.sent[0], Subscribe)
    assert rig.sent[0].cursor == "old"
    # Lost before the answer: the connection's cursor has moved on, but the watch has not been caught up.
    rig.lose()
    rig.wait(3_000)
    rig.get(welcome())
    assert isinstance(rig.sent[0], Subscribe)
    assert rig.sent[0].cursor is None


def test_requests_pending_when_the_connection_breaks_fail() -> None:
    rig = up(online=True)
    request = rig.core.send_message("kol_1", "hello", rig.now_ms)
    (answered,) = of(rig.lose(), Answered)
    assert answered.request_id == request
    assert isinstance(answered.error, ConnectionFailed)
    with pytest.raises(ConnectionFailed):
        rig.core.send_message("kol_1", "hello", rig.now_ms)


def test_answers_find_their_requests() -> None:
    rig = up(online=True)
    first = rig.core.send_message("kol_1", "hello", rig.now_ms)
    second = rig.core.send_message("kol_2", "hello", rig.now_ms)
    third = rig.core.ask(["kol_1"], rig.now_ms)
    answer = UserOnlineStatus([KOL_1], full=True, reply_to=third)
    events = rig.get(Error("user_offline", "no session", second), Ack(first, delivered=2), answer)
    refused, delivered, asked = of(events, Answered)
    assert isinstance(refused.error, RequestRefused)
    assert refused.error.code == "user_offline"
    assert delivered.answer == Ack(first, delivered=2)
    assert asked.answer is answer


def test_a_request_without_an_answer_ends_after_its_time() -> None:
    rig = up(online=True)
    request = rig.core.send_message("kol_1", "hello", rig.now_ms)
    (answered,) = of(rig.wait(10_000), Answered)
    assert (answered.request_id, type(answered.error)) == (request, ConnectionFailed)


def test_beats_come_every_interval_from_a_random_phase_on() -> None:
    rig = up(random=lambda: 0.5)
    beats = []
    for _ in range(100):
        rig.wait(1_000)
        if rig.sent:
            assert rig.sent == [Heartbeat()]
            beats.append(rig.now_ms)
    assert beats == [16_000, 46_000, 76_000]


def test_a_beat_that_nothing_answers_ends_the_connection_before_the_server_gives_up() -> None:
    rig = up(random=lambda: 0.5)
    rig.mute = True
    events = rig.wait(31_000)
    assert of(events, Disconnect) == [Disconnect(None)]
    assert rig.now_ms <= 1_000 + 60_000
    assert of(events, Connect)


def test_a_server_that_never_answers_the_first_requests_is_left() -> None:
    rig = Rig()
    rig.start()
    rig.get(welcome(), full(KOL_1))
    assert of(rig.wait(10_000), Disconnect) == [Disconnect(None)]


@pytest.mark.parametrize("code", [4003, 4010])
def test_it_stops_for_good_when_told_to(code: int) -> None:
    rig = up(renewable=True)
    events = rig.lose(close_code=code)
    assert of(events, StateChanged)[0].state == "failed"
    assert rig.core.over
    assert rig.core.next_deadline_ms() is None


def test_a_revoked_token_is_replaced_at_once_and_without_a_provider_it_is_the_end() -> None:
    rig = up(renewable=True)
    rig.lose(close_code=4001)
    assert of(rig.wait(0), Connect) == [Connect("c1", True)]
    plain = up()
    plain.lose(close_code=4001)
    assert plain.core.over


def test_a_fresh_token_that_is_refused_as_well_is_not_fetched_in_a_hot_loop() -> None:
    rig = Rig(renewable=True)
    rig.start()
    rig.lose(http_status=401)
    assert of(rig.wait(0), Connect) == [Connect(None, True)]
    rig.lose(http_status=401)
    assert rig.core.next_deadline_ms() == rig.now_ms + 3_000


def test_after_an_attempt_that_never_opened_and_near_its_end_the_token_is_fetched_anew() -> None:
    rig = Rig(renewable=True)
    rig.start()
    rig.lose(reason="refused")
    assert of(rig.wait(3_000), Connect) == [Connect(None, True)]
    rig.get(welcome(expires_in=90))
    rig.lose()
    assert of(rig.wait(6_000), Connect) == [Connect(None, False)]
    rig.get(welcome(expires_in=90))
    rig.answer_all()
    rig.wait(31_000)
    rig.lose()
    assert of(rig.wait(0), Connect) == [Connect(None, True)]


@pytest.mark.parametrize("code", [1011, 1012, 1013, 4029])
def test_some_closes_ask_for_back_off(code: int) -> None:
    rig = up()
    rig.wait(31_000)
    rig.lose(close_code=code)
    assert rig.core.next_deadline_ms() == rig.now_ms + 3_000


def test_too_slow_for_too_long_comes_back_at_once_with_its_cursor() -> None:
    rig = up()
    rig.lose(close_code=4009)
    assert of(rig.wait(0), Connect) == [Connect("c1", False)]


def test_after_a_protocol_error_nothing_that_may_be_wrong_is_brought_back() -> None:
    rig = up()
    rig.lose(close_code=1002)
    assert of(rig.wait(0), Connect) == [Connect(None, False)]


def test_retry_after_is_honoured() -> None:
    rig = Rig()
    rig.start()
    rig.lose(http_status=503, retry_after_ms=20_000)
    assert rig.core.next_deadline_ms() == rig.now_ms + 20_000


def test_a_forbidden_handshake_stops_it() -> None:
    rig = Rig(renewable=True)
    rig.start()
    rig.lose(http_status=403)
    assert rig.core.over
    assert "403" in str(rig.core.reason)


def test_a_draining_server_is_left_at_the_given_moment_and_the_next_found_at_once() -> None:
    rig = up()
    rig.get(Draining(500))
    assert rig.wait(499) == []
    events = rig.wait(1)
    assert of(events, Disconnect) == [Disconnect(1001)]
    assert of(events, Connect) == [Connect("c1", False)]


def test_a_drain_that_closes_first_needs_no_back_off() -> None:
    rig = up()
    rig.get(Draining(500))
    rig.lose(close_code=1012)
    assert of(rig.wait(0), Connect)


def test_while_disconnected_the_copy_stays_and_says_it_is_stale() -> None:
    rig = up()
    rig.lose()
    assert rig.core.stale
    assert rig.core.copy.status_of("kol_1").online
    assert not of(rig.seen[-3:], Change)[1:]


def test_in_failed_everyone_shows_offline_until_it_is_back() -> None:
    rig = up(timing=Timing(delays_ms=(0,)))
    rig.lose()
    rig.wait(0)
    (change,) = of(rig.lose(), Change)
    assert (change.user_id, change.stale, change.entry.online) == ("kol_1", True, False)
    assert rig.core.state == "failed"
    rig.wait(60_000)
    assert rig.core.state == "failed"
    rig.connect(KOL_1)
    assert rig.core.copy.status_of("kol_1").online


def test_the_network_event_tries_at_once() -> None:
    rig = up(timing=Timing(delays_ms=(0,)))
    rig.lose()
    rig.wait(0)
    rig.lose()
    assert of(rig.start(), Connect)
    assert rig.start() == []


def test_a_users_wish_stays_when_nobody_can_be_told_and_goes_when_it_is_refused() -> None:
    rig = up(online=True)
    rig.lose()
    with pytest.raises(ConnectionFailed):
        rig.core.set_status("away", rig.now_ms)
    with pytest.raises(ConnectionFailed):
        rig.core.watch(["user_2"], rig.now_ms)
    rig.wait(0)
    rig.get(welcome())
    online, watch, settling = rig.sent
    assert isinstance(online, UserOnline)
    assert online.status == "away"
    assert isinstance(watch, Subscribe)
    rig.get(Error("too_many", "watches", watch.id), Ack(online.id or 0), HeartbeatAck(0, settling.id))
    assert rig.core.copy.watched == {}


def test_who_is_watched_no_more_is_seen_until_the_answer_and_may_be_watched_again() -> None:
    rig = up()
    user_2 = StatusEntry("user_2", "user", "online", True, 1, 1)
    rig.core.watch(["user_2"], rig.now_ms)
    rig.look()
    rig.answer_all()
    rig.get(full(user_2))
    rig.core.unwatch(["user_2"], rig.now_ms)
    rig.core.watch(["user_2"], rig.now_ms)
    rig.look()
    stop, again = rig.sent
    rig.get(full(user_2), Ack(stop.id or 0), Ack(again.id or 0), full(user_2))
    assert rig.core.copy.watched == {"user_2": True}
    rig.core.unwatch(["user_2"], rig.now_ms)
    rig.look()
    rig.answer_all()
    assert set(rig.core.copy.entries) == {"kol_1"}


def test_a_refused_status_is_not_brought_back() -> None:
    rig = up(online=True)
    request = rig.core.set_status("busy", rig.now_ms)
    rig.get(Error("rate_limited", "slowly", request))
    assert rig.core.status is None


def test_a_user_who_may_not_come_online_is_stopped_the_first_time() -> None:
    rig = Rig(online=True)
    rig.start()
    rig.get(welcome())
    rig.get(Error("forbidden", "no", rig.sent[0].id))
    assert rig.core.over
    assert isinstance(rig.core.reason, RequestRefused)


def test_a_token_for_somebody_else_is_the_end() -> None:
    rig = Rig(user_id="user_2")
    rig.start()
    assert of(rig.get(welcome(user_id="user_1")), Disconnect)
    assert rig.core.over


def test_an_expiring_token_is_told_and_its_replacement_goes_out() -> None:
    rig = up(renewable=True)
    rig.wait(3_540_000)
    (told,) = of(rig.get(TokenExpiring(1_700_003_600)), TokenExpiring)
    assert told == TokenExpiring(1_700_003_600)
    request = rig.core.refresh_token("new", rig.now_ms)
    rig.look()
    assert rig.sent == [TokenRefresh(token="new", id=request)]
    assert of(rig.get(Ack(request, expires_at=1_700_007_200)), Answered)


def test_a_token_of_seconds_is_replaced_at_half_its_life_and_not_all_the_time() -> None:
    rig = Rig(renewable=True)
    rig.start()
    rig.get(welcome(expires_in=2))
    rig.answer_all()
    assert not of(rig.get(TokenExpiring(1_700_000_002)), TokenExpiring)
    assert not of(rig.wait(999), TokenExpiring)
    assert of(rig.wait(1), TokenExpiring)


def test_messages_pass_and_a_big_room_tells_its_count() -> None:
    rig = up()
    message = Message("kol_1", "user_1", "hello", 0)
    assert rig.get(message, RoomOccupancy("r", 700)) == [message, RoomOccupancy("r", 700)]
    assert rig.core.copy.occupancy == {"r": 700}


def test_leaving_says_goodbye_and_waits_a_short_time_for_the_close() -> None:
    rig = up(online=True)
    rig.core.leave(rig.now_ms)
    rig.look()
    (goodbye,) = rig.sent
    assert isinstance(goodbye, UserOffline)
    rig.get(Ack(goodbye.id or 0))
    assert not rig.core.over
    rig.lose(close_code=1000)
    assert rig.core.phase is Phase.CLOSED
    silent = up(online=True)
    silent.core.leave(silent.now_ms)
    assert of(silent.wait(2_000), Disconnect) == [Disconnect(None)]
    assert silent.core.phase is Phase.CLOSED


def test_an_observer_leaves_with_a_close_alone() -> None:
    rig = up()
    rig.core.leave(rig.now_ms)
    assert of(rig.look(), Disconnect) == [Disconnect(1000)]
    assert rig.sent == []
    assert rig.core.over


def test_a_status_change_is_sent_as_asked() -> None:
    rig = up(online=True)
    request = rig.core.set_status("offline", rig.now_ms)
    rig.look()
    assert rig.sent == [StatusChange(status="offline", id=request)]


def test_what_is_forbidden_on_the_way_back_is_wanted_no_more_and_the_rest_is() -> None:
    rig = up()
    watched = [f"user_{number}" for number in range(8)]
    rig.core.watch(watched, rig.now_ms)
    rig.core.join("lobby", rig.now_ms)
    rig.core.join("studio", rig.now_ms)
    rig.look()
    rig.answer_all()
    rig.get(full(*(StatusEntry(user_id, "user", "online", True, 1, 1) for user_id in watched)))
    rig.get(full(StatusEntry("user_9", "user", "online", True, 1, 1), cursor="r1", room="lobby"))
    rig.get(full(cursor="r2", room="studio"))
    rig.lose()
    rig.wait(0)
    rig.get(welcome())
    requests = rig.sent
    asked = 0
    while requests:
        request = requests.pop(0)
        assert request.id is not None
        if isinstance(request, Subscribe) and {"user_3", "lobby"} & {*(request.user_ids or []), *(request.rooms or [])}:
            asked += 1
            rig.get(Error("forbidden", "not this one", request.id))
            requests.extend(rig.sent)
        else:
            answer = HeartbeatAck(0, request.id) if isinstance(request, Heartbeat) else Ack(request.id)
            assert rig.core.stale
            rig.get(answer)
            if isinstance(request, Subscribe) and request.user_ids:
                rig.get(UserOnlineStatus([], full=False, cursor="c3"))
    assert not rig.core.stale
    assert asked == 4 + 1
    assert set(rig.core.copy.watched) == set(watched) - {"user_3"}
    assert set(rig.core.copy.rooms) == {"studio"}
    assert not rig.core.copy.status_of("user_9").online
    rig.lose()
    rig.wait(3_000)
    rig.get(welcome())
    again = [frame for frame in rig.sent if isinstance(frame, Subscribe)]
    assert [frame.rooms for frame in again if frame.rooms] == [["studio"]]
    assert "user_3" not in [user_id for frame in again for user_id in frame.user_ids or []]


def test_a_server_that_forbids_everybody_is_not_asked_for_each() -> None:
    rig = up()
    rig.core.watch([f"user_{number}" for number in range(1000)], rig.now_ms)
    rig.look()
    rig.answer_all()
    rig.get(full())
    rig.lose()
    rig.wait(0)
    rig.get(welcome())
    requests, count = rig.sent, 0
    while requests:
        request = requests.pop(0)
        count += 1
        assert request.id is not None
        if isinstance(request, Subscribe):
            rig.get(Error("forbidden", "nobody", request.id))
            requests.extend(rig.sent)
        else:
            rig.get(HeartbeatAck(0, request.id))
    assert rig.core.copy.watched == {}
    assert not rig.core.stale
    assert count < 250


def test_over_the_rate_nothing_is_forgotten_on_the_way_back() -> None:
    rig = up()
    rig.core.join("lobby", rig.now_ms)
    rig.look()
    rig.answer_all()
    rig.get(full(cursor="r1", room="lobby"))
    rig.lose()
    rig.wait(0)
    rig.get(welcome())
    assert of(rig.get(Error("rate_limited", "slowly", rig.sent[0].id)), Disconnect) == [Disconnect(1001)]
    rig.wait(3_000)
    rig.get(welcome())
    assert isinstance(rig.sent[0], Subscribe)


@pytest.mark.parametrize(("code", "kept"), [("rate_limited", True), ("forbidden", False)])
def test_who_asks_again_for_what_he_has_loses_it_only_when_it_is_forbidden(code: str, kept: bool) -> None:
    rig = up()
    rig.core.watch(["user_2"], rig.now_ms)
    rig.core.join("lobby", rig.now_ms)
    rig.look()
    rig.answer_all()
    rig.get(full())
    requests = [rig.core.watch(["user_2"], rig.now_ms), rig.core.join("lobby", rig.now_ms)]
    rig.get(*(Error(code, "no", request) for request in requests))
    assert ("user_2" in rig.core.copy.watched) is kept
    rig.lose()
    rig.wait(0)
    rig.get(welcome())
    assert bool([frame for frame in rig.sent if isinstance(frame, Subscribe)]) is kept


def test_a_crowded_room_is_taken_anew_on_the_way_back() -> None:
    rig = up()
    rig.core.join("lobby", rig.now_ms)
    rig.look()
    rig.answer_all()
    user_2 = StatusEntry("user_2", "user", "online", True, 1, 1)
    rig.get(full(user_2, cursor="r1", room="lobby"))
    rig.get(RoomOccupancy("lobby", 700))
    assert (rig.core.copy.rooms, rig.core.copy.occupancy) == ({}, {"lobby": 700})
    rig.lose()
    rig.wait(0)
    rig.get(welcome())
    assert isinstance(rig.sent[0], Subscribe)
    assert rig.sent[0].cursor is None
    rig.answer_all()
    (change,) = of(rig.get(full(user_2, cursor="r2", room="lobby")), Change)
    assert (change.user_id, change.room) == ("user_2", "lobby")
    assert rig.core.copy.occupancy == {}


def test_behind_a_new_token_everything_is_asked_for_again_and_what_it_forbids_is_dropped() -> None:
    rig = up(renewable=True)
    rig.core.watch(["user_2", "user_3"], rig.now_ms)
    rig.look()
    rig.answer_all()
    rig.get(full(*(StatusEntry(user_id, "user", "online", True, 1, 1) for user_id in ("user_2", "user_3")), cursor="w"))
    request = rig.core.refresh_token("narrower", rig.now_ms)
    rig.look()
    rig.get(Ack(request, expires_at=1_700_007_200))
    again, settling = rig.sent
    assert isinstance(again, Subscribe)
    assert again.user_ids == ["user_2", "user_3"]
    rig.get(Error("forbidden", "not both", again.id), HeartbeatAck(0, settling.id))
    first, second, _ = rig.sent
    rig.get(Ack(first.id or 0), full(StatusEntry("user_2", "user", "online", True, 1, 1), cursor="w2"))
    rig.get(Error("forbidden", "nor him", second.id))
    assert set(rig.core.copy.watched) == {"user_2"}
    assert not rig.core.copy.status_of("user_3").online
    assert (rig.core.state, rig.core.stale) == ("connected", False)
