"""Rooms and watches: who is shown, who is told, and what is forgotten when."""

import pytest

from fastpresence.presence.audience import Audience, Room
from fastpresence.presence.roster import Roster
from fastpresence.presence.service import OnlineStatusService
from fastpresence.presence.sessions import Now, Session

RETENTION_MS = 300_000
NOW = Now(1_000, 1_640_995_200_000_000)


def later(ms: int) -> Now:
    return Now(NOW.ms + ms, NOW.wall_us + ms * 1_000)


@pytest.fixture
def service() -> OnlineStatusService:
    return OnlineStatusService(
        epoch="e",
        public_types={"kol"},
        heartbeat_timeout_ms=60_000,
        disconnect_grace_ms=None,
        retention_ms=RETENTION_MS,
    )


def online(service: OnlineStatusService, user_id: str, *rooms: str, device: str | None = None) -> Session:
    return service.handle_user_online(
        user_id, "user", device=device, connection=f"socket of {user_id} {device}", rooms=rooms, now=NOW
    )


def roster_of(room: Room) -> dict[str, str]:
    return {user_id: member.record.status for user_id, member in room.members.items() if not member.left}


def told(service: OnlineStatusService, since: int) -> dict[str, list[tuple[str, str, bool]]]:
    """room -> (user, status, left) as the flush would tell."""
    return {
        delta.room.name: [(member.record.user_id, member.record.status, member.left) for member in delta.members]
        for delta in service.collect(since).rooms
    }


def test_a_member_is_shown_with_his_status_and_moves_with_it(service: OnlineStatusService) -> None:
    session = online(service, "user_1", "r")
    room = service.audience.rooms["r"]
    since = service.version
    service.handle_status_change(session, "busy", now=NOW)
    assert roster_of(room) == {"user_1": "busy"}
    assert told(service, since) == {"r": [("user_1", "busy", False)]}


def test_coming_online_in_a_room_is_one_change_not_two(service: OnlineStatusService) -> None:
    online(service, "user_1", "r")
    assert service.version == 1


def test_an_observer_sees_and_is_not_seen(service: OnlineStatusService) -> None:
    room = service.join_room(None, "observer", "r", now=NOW)
    online(service, "user_1", "r")
    assert roster_of(room) == {"user_1": "online"}
    assert "observer" in room.subscribers
    assert room.shown == 1


def test_one_who_leaves_is_told_as_left_and_stays_online(service: OnlineStatusService) -> None:
    session = online(service, "user_1", "r")
    service.join_room(None, "observer", "r", now=NOW)
    since = service.version
    service.leave_room(session, session.connection, "r", now=NOW)
    assert told(service, since) == {"r": [("user_1", "online", True)]}
    assert session.rooms is None
    assert session.record.rooms is None


def test_one_who_goes_offline_leaves_his_rooms_as_offline(service: OnlineStatusService) -> None:
    session = online(service, "user_1", "r")
    service.join_room(None, "observer", "r", now=NOW)
    since = service.version
    service.handle_user_offline(session, now=NOW)
    assert told(service, since) == {"r": [("user_1", "offline", True)]}
    assert service.version == since + 1


def test_one_who_hides_leaves_like_one_who_goes_and_returns_like_one_who_comes(service: OnlineStatusService) -> None:
    session = online(service, "user_1", "r")
    room = service.join_room(None, "observer", "r", now=NOW)
    since = service.version
    service.handle_status_change(session, "offline", now=NOW)
    assert told(service, since) == {"r": [("user_1", "offline", True)]}
    assert session.record.rooms == {"r": 1}
    service.handle_status_change(session, "away", now=NOW)
    assert roster_of(room) == {"user_1": "away"}


def test_one_who_is_hidden_joins_and_leaves_without_a_trace(service: OnlineStatusService) -> None:
    session = online(service, "user_1")
    room = service.join_room(None, "observer", "r", now=NOW)
    service.handle_status_change(session, "offline", now=NOW)
    since = service.version
    service.join_room(session, session.connection, "r", now=NOW)
    service.leave_room(session, session.connection, "r", now=NOW)
    service.join_room(session, session.connection, "r", now=NOW)
    assert service.version == since
    assert not room.members
    service.handle_status_change(session, "online", now=NOW)
    assert roster_of(room) == {"user_1": "online"}


def test_one_who_hides_as_he_comes_into_a_room_is_not_told_to_have_left_it(service: OnlineStatusService) -> None:
    online(service, "user_1", device="phone")
    service.join_room(None, "observer", "r", now=NOW)
    since = service.version
    service.handle_user_online("user_1", status="offline", device="tablet", connection="c", rooms=["r"], now=NOW)
    assert service.get_user_status("user_1").status == "offline"
    assert told(service, since) == {}


def test_one_who_shows_again_as_he_leaves_a_room_is_not_told_to_have_been_in_it(service: OnlineStatusService) -> None:
    service.join_room(None, "observer", "r", now=NOW)
    service.join_room(None, "observer", "s", now=NOW)
    service.handle_poll("user_1", status="offline", rooms=["r"], now=NOW)
    since = service.version
    service.handle_poll("user_1", status="online", rooms=["s"], now=NOW)
    assert told(service, since) == {"s": [("user_1", "online", False)]}


def test_a_user_stays_in_the_room_while_any_of_his_sessions_does(service: OnlineStatusService) -> None:
    phone = online(service, "user_1", "r", device="phone")
    tablet = online(service, "user_1", "r", device="tablet")
    room = service.audience.rooms["r"]
    since = service.version
    service.handle_user_offline(phone, now=NOW)
    assert roster_of(room) == {"user_1": "online"}
    assert service.version == since
    service.leave_room(tablet, tablet.connection, "r", now=NOW)
    assert roster_of(room) == {}
    assert service.version == since + 1


def test_a_reconnect_inherits_the_rooms_and_nobody_sees_him_leave(service: OnlineStatusService) -> None:
    old = online(service, "user_1", "r", "s", device="phone")
    service.handle_connection_lost(old, last_heard_ms=NOW.ms, now=NOW)
    service.forget("socket of user_1 phone")
    since = service.version
    new = online(service, "user_1", device="phone")
    assert service.version == since
    assert new.rooms == {"r", "s"}
    assert old.rooms is None
    assert roster_of(service.audience.rooms["r"]) == {"user_1": "online"}


def test_joining_a_room_that_the_superseded_session_was_in_counts_once(service: OnlineStatusService) -> None:
    online(service, "user_1", "r", "s", device="phone")
    new = online(service, "user_1", "r", device="phone")
    assert new.rooms == {"r", "s"}
    assert new.record.rooms == {"r": 1, "s": 1}
    service.leave_room(new, new.connection, "r", now=NOW)
    assert new.record.rooms == {"s": 1}


def test_joining_twice_counts_once(service: OnlineStatusService) -> None:
    session = online(service, "user_1", "r")
    since = service.version
    service.join_room(session, session.connection, "r", now=NOW)
    assert session.record.rooms == {"r": 1}
    assert service.version == since


def test_a_second_device_in_the_same_room_is_no_change(service: OnlineStatusService) -> None:
    online(service, "user_1", "r", device="phone")
    since = service.version
    online(service, "user_1", "r", device="tablet")
    assert service.version == since


def test_a_session_that_takes_over_a_device_in_the_same_room_counts_once(service: OnlineStatusService) -> None:
    online(service, "user_1", "r", "s", device="phone")
    other = online(service, "user_1", "r", device="tablet")
    service.handle_update(other, status=None, device="phone", now=NOW)
    assert other.rooms == {"r", "s"}
    assert other.record.rooms == {"r": 1, "s": 1}


def test_a_gone_session_joins_as_an_observer(service: OnlineStatusService) -> None:
    old = online(service, "user_1", device="phone")
    online(service, "user_1", device="phone")
    room = service.join_room(old, "old socket", "r", now=NOW)
    assert room.subscribers == {"old socket"}
    assert not room.members
    assert old.rooms is None


def test_a_room_lives_while_it_has_a_member_or_a_subscriber(service: OnlineStatusService) -> None:
    session = online(service, "user_1", "r")
    service.forget(session.connection)
    assert "r" in service.audience.rooms
    service.join_room(None, "observer", "r", now=NOW)
    service.handle_user_offline(session, now=NOW)
    assert "r" in service.audience.rooms
    service.leave_room(None, "observer", "r", now=NOW)
    assert "r" not in service.audience.rooms


def test_a_cursor_of_a_room_that_was_dropped_meanwhile_needs_everything(service: OnlineStatusService) -> None:
    first = service.join_room(None, "observer", "r", now=NOW)
    session = online(service, "user_1", "r")
    cursor = service.version
    service.handle_user_offline(session, now=NOW)
    service.forget("observer")
    service.forget("socket of user_1 None")
    again = service.join_room(None, "observer", "r", now=NOW)
    assert again is not first
    assert again.members.changes_since(cursor) is None
    assert again.members.changes_since(service.version) == []


def test_one_who_left_is_told_to_cursors_for_the_retention_and_then_needs_everything(
    service: OnlineStatusService,
) -> None:
    room = service.join_room(None, "observer", "r", now=NOW)
    session = online(service, "user_1", "r")
    cursor = service.version
    service.leave_room(session, session.connection, "r", now=NOW)
    service.cleanup_expired_status(now=later(RETENTION_MS - 1))
    assert [member.left for member in room.members.changes_since(cursor) or ()] == [True]
    service.cleanup_expired_status(now=later(RETENTION_MS))
    assert room.members.changes_since(cursor) is None
    assert not room.members


def test_one_who_left_and_came_back_is_not_dropped_when_the_retention_of_his_leaving_ends(
    service: OnlineStatusService,
) -> None:
    session = online(service, "user_1", "r")
    service.join_room(None, "observer", "r", now=NOW)
    service.leave_room(session, session.connection, "r", now=NOW)
    service.join_room(session, session.connection, "r", now=NOW)
    service.cleanup_expired_status(now=later(RETENTION_MS))
    assert roster_of(service.audience.rooms["r"]) == {"user_1": "online"}


def test_a_member_left_of_a_dropped_record_makes_way_for_the_same_user_anew() -> None:
    """Their retentions end together, but portions may part them."""
    roster = Roster({"kol"}, RETENTION_MS)
    audience = Audience(roster.counter, RETENTION_MS, 1000)
    room = audience.subscribe("observer", "r")
    first = roster.admit("user_1", "user")
    session = Session(1, first, None, "socket", "online", NOW.ms)
    audience.enter(session, "r", NOW)
    audience.move(first, roster.change(first, "online", NOW), NOW)
    audience.move(first, roster.change(first, "offline", NOW), NOW)
    session.rooms = first.rooms = None
    roster.drop_expired(NOW.ms + RETENTION_MS, 10)
    second = roster.admit("user_1", "user")
    assert second is not first
    audience.enter(Session(2, second, None, "socket", "online", NOW.ms), "r", NOW)
    audience.move(second, roster.change(second, "online", NOW), NOW)
    audience.drop_expired(NOW.ms + RETENTION_MS, 10)
    assert room.members["user_1"].record is second
    assert room.shown == 1


def test_rooms_that_nobody_subscribes_to_are_not_collected(service: OnlineStatusService) -> None:
    session = online(service, "user_1", "r")
    service.forget(session.connection)
    assert service.collect(0).rooms == []


# Watches.


def test_a_watcher_gets_his_users_and_nobody_elses(service: OnlineStatusService) -> None:
    service.watch("watcher", ["user_1", "user_9"])
    online(service, "user_1")
    online(service, "user_2")
    watched = service.collect(0).watched
    assert [record.user_id for record in watched["watcher"]] == ["user_1"]
    assert list(watched) == ["watcher"]


def test_one_who_unwatches_or_ends_gets_nothing_and_leaves_nothing(service: OnlineStatusService) -> None:
    service.watch("one", ["user_1"])
    service.watch("other", ["user_1", "user_2"])
    service.unwatch("one", ["user_1", "never watched"])
    service.forget("other")
    online(service, "user_1")
    assert service.collect(0).watched == {}
    assert service.audience.watchers == {}
    assert not service.audience.watches_of("other")


@pytest.mark.parametrize("count", [1, 4, 5, 30])
def test_however_many_watch_a_user_each_is_told_once_until_he_stops(service: OnlineStatusService, count: int) -> None:
    names = [f"watcher_{number}" for number in range(count)]
    for name in names:
        service.watch(name, ["user_1", "user_1"])
        service.watch(name, ["user_1"])
    session = online(service, "user_1")
    for left in range(count, -1, -1):
        since = service.version
        service.handle_status_change(session, "busy" if left % 2 else "away", now=NOW)
        watched = service.collect(since).watched
        assert sorted(watched, key=str) == sorted(names[:left])
        assert all(len(records) == 1 for records in watched.values())
        if left:
            service.unwatch(names[left - 1], ["user_1"])
    assert service.audience.watchers == {}


def test_forgetting_a_connection_returns_its_rooms_and_a_stranger_has_none(service: OnlineStatusService) -> None:
    service.join_room(None, "observer", "r", now=NOW)
    service.join_room(None, "observer", "s", now=NOW)
    assert {room.name for room in service.forget("observer")} == {"r", "s"}
    assert service.forget("observer") == []
    assert service.forget("stranger") == []
    assert not service.audience.rooms


def test_watched_changes_since_a_cursor_come_oldest_first_and_none_below_the_floor(
    service: OnlineStatusService,
) -> None:
    sessions = {name: online(service, name) for name in ("user_1", "user_2", "user_3")}
    cursor = service.version
    for name in ("user_3", "user_1"):
        service.handle_status_change(sessions[name], "busy", now=NOW)
    found = service.changes_among(["user_1", "user_2", "user_3", "user_9"], cursor)
    assert found is not None
    assert [record.user_id for record in found] == ["user_3", "user_1"]
    assert service.changes_among(["user_1"], service.version + 1) is None
    service.handle_user_offline(sessions["user_2"], now=NOW)
    service.cleanup_expired_status(now=later(RETENTION_MS))
    assert service.changes_among(["user_1"], cursor) is None


# Crowds.

LIMIT = 10


@pytest.fixture
def small() -> OnlineStatusService:
    """Rooms of more than ten are crowded; they have a roster again with nine."""
    return OnlineStatusService(
        epoch="e",
        public_types=(),
        heartbeat_timeout_ms=60_000,
        disconnect_grace_ms=None,
        retention_ms=RETENTION_MS,
        room_roster_limit=LIMIT,
    )


def flushed(service: OnlineStatusService, since: int) -> tuple[bool, bool, list[tuple[str, bool]]]:
    """Of the one room that changed: crowded, told in full, and who with `left`."""
    (delta,) = service.collect(since).rooms
    members = [(member.record.user_id, member.left) for member in delta.members]
    return delta.room.crowded, delta.full, members


def test_a_room_is_crowded_above_the_limit_and_has_its_roster_again_with_a_tenth_less(
    small: OnlineStatusService,
) -> None:
    small.join_room(None, "observer", "r", now=NOW)
    sessions = [online(small, f"u{number}", "r") for number in range(LIMIT)]
    assert flushed(small, 0) == (False, False, [(f"u{number}", False) for number in range(LIMIT)])
    since = small.version
    sessions.append(online(small, "one more", "r"))
    assert flushed(small, since) == (True, False, [])
    # At the limit itself it stays a crowd.
    since = small.version
    small.handle_user_offline(sessions.pop(), now=NOW)
    assert flushed(small, since) == (True, False, [])
    since = small.version
    small.handle_user_offline(sessions.pop(), now=NOW)
    assert flushed(small, since) == (False, True, [(f"u{number}", False) for number in range(LIMIT - 1)])
    since = small.version
    sessions.append(online(small, "back", "r"))
    assert flushed(small, since) == (False, False, [("back", False)])


def test_a_cursor_from_before_or_in_a_crowd_has_missed_too_much_and_one_from_after_has_not(
    small: OnlineStatusService,
) -> None:
    small.join_room(None, "observer", "r", now=NOW)
    sessions = [online(small, f"u{number}", "r") for number in range(LIMIT)]
    before = small.version
    sessions += [online(small, f"more{number}", "r") for number in range(5)]
    small.collect(0)
    during = small.version
    for session in sessions[LIMIT - 1 :]:
        small.handle_user_offline(session, now=NOW)
    small.collect(during)
    room = small.audience.rooms["r"]
    assert room.members.changes_since(before) is None
    assert room.members.changes_since(during) is None
    assert room.members.changes_since(small.version) == []


def test_a_crowd_that_nobody_hears_of_is_a_crowd_and_none_all_the_same(small: OnlineStatusService) -> None:
    sessions = [small.handle_user_online(f"u{number}", connection=None, now=NOW) for number in range(LIMIT + 1)]
    for session in sessions:
        small.audience.enter(session, "r", NOW)
    assert small.collect(0).rooms == []
    room = small.audience.rooms["r"]
    assert room.crowded
    since = small.version
    for session in sessions[:2]:
        small.handle_user_offline(session, now=NOW)
    small.collect(since)
    assert not room.crowded


def test_a_new_crowd_of_the_same_size_as_the_last_one_is_told(small: OnlineStatusService) -> None:
    sessions = [small.handle_user_online(f"u{number}", connection=None, now=NOW) for number in range(LIMIT + 1)]
    for session in sessions:
        small.audience.enter(session, "r", NOW)
    small.collect(0)
    room = small.audience.rooms["r"]
    room.told_count = room.shown  # as the worker writes it down
    since = small.version
    for session in sessions[:2]:
        small.audience.leave(session, "r", NOW)
    small.collect(since)
    since = small.version
    for session in sessions[:2]:
        small.audience.enter(session, "r", NOW)
    small.collect(since)
    assert room.crowded
    assert room.told_count is None
