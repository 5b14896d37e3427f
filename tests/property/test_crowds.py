"""Rooms that crowd and thin out, seen by polls and by flushes, with short pages and much forgetting: all see the truth.

Pollers have scopes of every kind and poll when they like; observers subscribe to rooms, go, and come back with their
cursors. Nobody knows anything but what he was told. Whenever somebody has caught up, what he believes is held against
sessions and rooms as they are. Leaves out: sockets that lag.
"""

from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from fastpresence.messages import Status
from fastpresence.presence.roster import make_cursor, read_cursor, room_scope
from fastpresence.presence.service import OnlineStatusService
from fastpresence.presence.sessions import Now, Session
from fastpresence.worker import poll

LIMIT = 2  #: members of a room that are told by name; crowded ones have a roster again with one
PAGE = 3
HEARTBEAT_MS, RETENTION_MS = 3_000, 5_000
USERS = [*(f"kol_{number}" for number in range(3)), *(f"user_{number}" for number in range(4))]
ROOMS = ["r", "s"]
SCOPES: list[tuple[list[str], list[str]]] = [
    ([], []),
    (["r"], []),
    (["r", "s"], []),
    ([], ["kol_0", "user_0", "nobody"]),
    (["r"], ["user_0", "user_1"]),
]
STATUSES: st.SearchStrategy[Status] = st.sampled_from(["online", "busy", "away", "offline"])
INDEX = st.integers(0, 1_000)


class Poller:
    def __init__(self, rooms: list[str], user_ids: list[str]) -> None:
        self.rooms, self.user_ids = rooms, user_ids
        self.cursor: str | None = None
        self.believes: dict[str, Status] = {}
        self.counts: dict[str, int] = {}

    def poll(self, service: OnlineStatusService) -> bool:
        """One poll; True when there is more."""
        body: dict[str, Any] = poll.changes(service, self.cursor, self.rooms, self.user_ids)
        self.cursor = body["cursor"]
        if body["full"]:
            self.believes.clear()
        assert len(body["user_status"]) <= PAGE
        for entry in body["user_status"]:
            self.believes[entry.user_id] = entry.status
            if entry.left:
                del self.believes[entry.user_id]
        self.counts = {each["room"]: each["count"] for each in body.get("room_occupancy", ())}
        return "more" in body


class Observer:
    """Subscribes to one room. What it believes: who is in it, or how many."""

    def __init__(self, name: str, room: str) -> None:
        self.name, self.room = name, room
        self.is_here = False
        self.cursor: str | None = None
        self.believes: dict[str, Status] | int = {}


class Crowds(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.ms = 1_000_000
        self.service = OnlineStatusService(
            epoch="e",
            public_types={"kol"},
            heartbeat_timeout_ms=HEARTBEAT_MS,
            disconnect_grace_ms=None,
            retention_ms=RETENTION_MS,
            room_roster_limit=LIMIT,
        )
        self.sessions: dict[str, Session] = {}
        self.told = 0
        self.pollers = [Poller(*scope) for scope in SCOPES]
        self.observers = [Observer(f"observer of {room} {number}", room) for room in ROOMS for number in range(2)]

    @property
    def now(self) -> Now:
        return Now(self.ms, 1_640_995_200_000_000 + self.ms * 1000)

    def pick(self, index: int) -> Session:
        return list(self.sessions.values())[index % len(self.sessions)]

    def roster(self, name: str) -> dict[str, Status]:
        return {
            user: session.record.status
            for user, session in self.sessions.items()
            if name in (session.rooms or ()) and session.record.status != "offline"
        }

    @initialize()
    def everybody_comes(self) -> None:
        for user in USERS:
            self.come(user, "online", ROOMS[:1])

    # What happens.

    @rule(user=st.sampled_from(USERS), status=STATUSES, rooms=st.lists(st.sampled_from(ROOMS), unique=True))
    def come(self, user: str, status: Status, rooms: list[str]) -> None:
        if user not in self.sessions:
            kind = user.partition("_")[0]
            session = self.service.handle_user_online(user, kind, status=status, connection=user, now=self.now)
            for room in rooms:
                self.service.audience.enter(session, room, self.now)
            self.sessions[user] = session

    @precondition(lambda self: self.sessions)
    @rule(index=INDEX)
    def go(self, index: int) -> None:
        session = self.pick(index)
        self.service.handle_user_offline(session, now=self.now)
        del self.sessions[session.record.user_id]

    @precondition(lambda self: self.sessions)
    @rule(index=INDEX, status=STATUSES)
    def say(self, index: int, status: Status) -> None:
        self.service.handle_status_change(self.pick(index), status, now=self.now)

    @precondition(lambda self: self.sessions)
    @rule(index=INDEX, room=st.sampled_from(ROOMS), enters=st.booleans())
    def move(self, index: int, room: str, enters: bool) -> None:
        audience = self.service.audience
        (audience.enter if enters else audience.leave)(self.pick(index), room, self.now)

    @rule(room=st.sampled_from(ROOMS), keep=st.integers(0, 3))
    def thin_out(self, room: str, keep: int) -> None:
        """All but a few leave at once."""
        for user in list(self.roster(room))[keep:]:
            self.service.audience.leave(self.sessions[user], room, self.now)

    @rule(room=st.sampled_from(ROOMS))
    def gather(self, room: str) -> None:
        for session in self.sessions.values():
            self.service.audience.enter(session, room, self.now)

    @rule(ms=st.sampled_from([250, 2_500, 5_000]))
    def wait(self, ms: int) -> None:
        self.ms += ms
        self.flush()  # the worker's never wait for so long
        self.service.cleanup_expired_status(now=self.now)

    @rule()
    def flush(self) -> None:
        delta = self.service.collect(self.told)
        self.told = delta.version
        for change in delta.rooms:
            for observer in self.observers:
                if not observer.is_here or observer.room != change.room.name:
                    continue
                if change.room.crowded:
                    observer.believes = change.room.shown
                    continue
                if change.full:
                    observer.believes = {}
                assert isinstance(observer.believes, dict), "a delta for one who knows no roster"
                for member in change.members:
                    observer.believes.pop(member.record.user_id, None)
                    if not member.left:
                        observer.believes[member.record.user_id] = member.record.status
                observer.cursor = make_cursor("e", room_scope(observer.room), delta.version)

    @rule(index=INDEX)
    def subscribe(self, index: int) -> None:
        """With its last cursor, if there is one: what the worker answers then."""
        observer = self.observers[index % len(self.observers)]
        if observer.is_here:
            return
        observer.is_here = True
        room = self.service.join_room(None, observer.name, observer.room, now=self.now)
        if room.crowded:
            observer.believes = room.shown
            return
        scope = room_scope(observer.room)
        since = None if observer.cursor is None else read_cursor(observer.cursor, "e", scope)
        changed = None if since is None else room.members.changes_since(since)
        if changed is None:
            observer.believes = {}
            changed = [member for member in room.members.values() if not member.left]
        assert isinstance(observer.believes, dict), "a delta for one who knows no roster"
        for member in changed:
            observer.believes.pop(member.record.user_id, None)
            if not member.left:
                observer.believes[member.record.user_id] = member.record.status
        observer.cursor = make_cursor("e", scope, self.service.version)

    @rule(index=INDEX)
    def unsubscribe(self, index: int) -> None:
        observer = self.observers[index % len(self.observers)]
        observer.is_here = False
        self.service.forget(observer.name)

    @rule(index=INDEX)
    def poll(self, index: int) -> None:
        """One page; what comes before the next one comes between them."""
        self.pollers[index % len(self.pollers)].poll(self.service)

    @rule(index=INDEX, flushes=st.booleans())
    def read_on(self, index: int, flushes: bool) -> None:
        """To the end, and then the poller knows."""
        if flushes:
            self.flush()
        poller = self.pollers[index % len(self.pollers)]
        answers = 1
        while poller.poll(self.service):
            answers += 1
            assert answers < 50
        rooms = self.service.audience.rooms
        expected = {user: session.record.status for user, session in self.sessions.items() if user.startswith("kol")}
        expected.update((user, self.sessions[user].record.status) for user in poller.user_ids if user in self.sessions)
        counts = {}
        for name in poller.rooms:
            if name in rooms and rooms[name].crowded:
                counts[name] = len(self.roster(name))
            else:
                expected.update(self.roster(name))
        believes = {user: status for user, status in poller.believes.items() if status != "offline"}
        assert believes == {user: status for user, status in expected.items() if status != "offline"}
        assert poller.counts == counts
        assert not poller.poll(self.service)

    @invariant()
    def subscribers_who_were_told_everything_know(self) -> None:
        if self.told != self.service.version:
            return
        for observer in self.observers:
            if observer.is_here:
                roster = self.roster(observer.room)
                crowded = self.service.audience.rooms[observer.room].crowded
                assert observer.believes == (len(roster) if crowded else roster), observer.name
                assert len(roster) <= LIMIT or crowded


Crowds.TestCase.settings = settings(
    max_examples=200, stateful_step_count=50, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)


class TestCrowds(Crowds.TestCase):  # type: ignore[misc, valid-type]
    @pytest.fixture(autouse=True)
    def _short_pages(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(poll, "PAGE", PAGE)
