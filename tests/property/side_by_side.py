"""The core and the model of the protocol side by side: one moment, each operation done by both, and what must be so.

    operation -> both() -> settle(): who looks different now, and rooms moved -> tell(): what sessions hear of calls

Observers (tests.property.observers) know only what they are told; `flush`, polls and cursors that are brought back must
leave them with what the model says. The rules, which make all of that happen, are in tests.property.test_presence.
"""

from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from itertools import groupby
from typing import TypeVar
from unittest import mock

import pytest
from hypothesis.stateful import RuleBasedStateMachine, invariant

from fastpresence.errors import RequestError
from fastpresence.messages import CallFrame, CallRinging, CallSignalled, StatusEntry
from fastpresence.presence import calls
from fastpresence.presence.roster import PUBLIC_SCOPE, Record, read_cursor
from fastpresence.presence.service import OnlineStatusService
from fastpresence.presence.sessions import Now, Phase
from fastpresence.presence.sessions import Session as CoreSession
from fastpresence.worker import poll
from tests.property.model import HEARTBEAT_MS, RETENTION_MS, SESSIONS, Frame, Model, Refused, Session
from tests.property.observers import (
    Connection,
    Copy,
    Mark,
    Poller,
    apply,
    apply_members,
    roster,
    walk,
    whole_room,
)

__all__ = ["KINDS", "PUBLIC", "ROOMS", "SideBySide", "ids"]

KINDS = {"kol_1": "kol", "kol_2": "kol", "user_1": "user", "user_2": "user", "user_3": "user"}
PUBLIC = {user for user, kind in KINDS.items() if kind == "kol"}
ROOMS = ["r1", "r2", "r3"]
PAGE = 2
EPOCH = "e"
MARKS = 40  #: cursors that are kept, the latest

T = TypeVar("T")
U = TypeVar("U")


class SideBySide(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.patches = ExitStack()
        self.patches.enter_context(mock.patch.object(poll, "PAGE", PAGE))
        self.core: dict[Session, CoreSession] = {}
        self.gone: list[Session] = []
        self.connections: list[Connection] = []  # open
        self.public: Copy = {}
        self.pollers = [Poller(), Poller()]
        self.public_marks: list[Mark] = []
        self.room_marks: list[Mark] = []
        self.watch_marks: list[Mark] = []
        self.poll_marks: list[Poller] = []
        self.flushed = 0
        self.flushed_ms = 0
        self.version = 0
        self.taken = 0
        self.ids = 0
        self.rev = 0
        self.revs = dict.fromkeys(KINDS, 0)
        self.shown: set[tuple[str, str]] = set()  # (room, user)
        # Since the last flush: whom there is something to tell of, and in which rooms.
        self.touched: set[str] = set()
        self.touched_in: set[tuple[str, str]] = set()

    def begin(self, grace_ms: int | None, roster_limit: int, limits: tuple[int, int]) -> None:
        """`limits`: calls that one session lets ring, and that ring at one user."""
        self.model = Model(KINDS, grace_ms, roster_limit, *limits)
        self.patches.enter_context(mock.patch.object(calls, "OUTGOING_MAX", limits[0]))
        self.patches.enter_context(mock.patch.object(calls, "INCOMING_MAX", limits[1]))
        self.service = OnlineStatusService(
            epoch=EPOCH,
            public_types={"kol"},
            heartbeat_timeout_ms=HEARTBEAT_MS,
            disconnect_grace_ms=grace_ms,
            retention_ms=RETENTION_MS,
            room_roster_limit=roster_limit,
            sessions_per_user=SESSIONS,
        )

    # Both at once.

    @property
    def now(self) -> Now:
        return Now(self.model.ms, self.model.wall_us)

    def both(self, mine: Callable[[], T], core: Callable[[], U]) -> tuple[T, U] | None:
        """Has the model and the core carry an operation out, or refuse it for a reason that the protocol gives."""
        try:
            result = mine()
        except Refused as refused:
            with pytest.raises(RequestError) as error:
                core()
            assert error.value.code in refused.codes  # noqa: PT017
            self.settle()
            return None
        done = result, core()
        if isinstance(done[0], Session) and isinstance(done[1], CoreSession):
            self.core[done[0]] = done[1]
        self.settle()
        return done

    def settle(self) -> None:
        """What the operation made visible, and what it has for sessions; nothing is stamped without that."""
        changed = self.model.settle()
        for user in changed:
            rev = self.service.get_user_status(user).rev
            assert rev > self.revs[user]
            assert rev > self.rev
            assert rev >= self.model.wall_us
            self.model.people[user].rev = self.revs[user] = rev
        self.rev = max(self.revs.values())
        shown = {(name, user) for name in ROOMS for user in self.model.room(name)}
        moved = (shown ^ self.shown) | {(name, user) for name, user in shown if user in changed}
        version = self.service.version
        assert (version > self.version) if changed or moved else (version == self.version)
        self.version, self.shown = version, shown
        self.touched.update(changed)
        self.touched_in |= moved
        self.forget_crowds()
        self.taken = self.tell()

    def forget_crowds(self) -> None:
        """Of rooms where nobody is, and nobody hears."""
        for name in list(self.model.crowded):
            if not self.model.room(name) and not self.subscribers(name):
                self.model.crowded.remove(name)

    def tell(self) -> int:
        """Hands out what sessions are told of calls: exactly what the model says. Returns how much was taken.

        A connection that should take what it must not miss, and can't, is closed for that.
        """
        outbox, self.service.calls.outbox = self.service.calls.outbox, []
        sessions = {real: session for session, real in self.core.items()}
        told: dict[Session, list[Frame]] = {}
        stuck: dict[Session, None] = {}
        taken = 0
        for real, frame in outbox:
            session = sessions[real]
            told.setdefault(session, []).append(plain(frame))
            assert isinstance(real.connection, Connection)
            if not real.connection.jammed:
                taken += 1
                continue
            self.service.calls.miss(real, frame)
            if not isinstance(frame, CallRinging | CallSignalled):
                session.missed.append(plain(frame))
                stuck[session] = None
        for session in self.model.sessions():
            assert by_call(told.pop(session, [])) == by_call(session.told)
            session.told = []
        assert not told
        for session in stuck:
            if session.attached:  # what became of the one before may have broken it already
                self.break_connection(session, self.model.ms)
        return taken

    def break_connection(self, session: Session, heard_ms: int) -> None:
        real = self.core[session]
        connection = real.connection
        self.both(
            lambda: self.model.lose(session, heard_ms),
            lambda: self.service.handle_connection_lost(real, last_heard_ms=heard_ms, now=self.now),
        )
        if connection is not None:
            self.hang_up(connection)
        self.keep_gone()

    # Who there is.

    def pick(self, index: int) -> Session:
        """A session that lives, or the last that did."""
        among = [*self.model.sessions(), *self.gone[-1:]]
        return among[index % len(among)]

    def acting(self, index: int) -> Session | None:
        """One with a connection, or the last that had one."""
        among = [session for session in self.model.sessions() if session.attached]
        if not among or index % 10 == 9:
            among = self.gone[-1:] or among
        return among[index % len(among)] if among else None

    def connection_of(self, index: int) -> Connection:
        return self.connections[index % len(self.connections)]

    def session_of(self, connection: Connection) -> Session | None:
        for session in self.model.sessions():
            if self.core[session].connection is connection:
                return session
        return None

    def subscribers(self, name: str) -> list[Connection]:
        return [connection for connection in self.connections if name in connection.rooms]

    def entry(self, user: str) -> StatusEntry:
        """The user as the protocol says that others see him."""
        person = self.model.people[user]
        if not person.known:
            return StatusEntry(user, "", "offline", False, None, 0)
        online = person.status != "offline"
        return StatusEntry(user, person.kind, person.status, online, person.last_seen, person.rev)

    def hang_up(self, connection: Connection) -> None:
        """The connection ends, after its session was seen to."""
        assert {room.name for room in self.service.forget(connection)} == set(connection.rooms)
        self.connections.remove(connection)
        self.forget_crowds()

    def keep_gone(self) -> None:
        self.gone = [session for session in self.core if session.gone][-2:]
        self.core = {each: real for each, real in self.core.items() if not each.gone or each in self.gone}

    # What observers know.

    def observers_see_what_is(self) -> None:
        self.is_what_is(self.public, PUBLIC)
        for connection in self.connections:
            self.is_what_is(connection.watched, set(connection.watched))
            for name, copy in connection.rooms.items():
                members = self.model.room(name)
                if name in self.model.crowded:
                    assert copy == len(members)
                else:
                    assert isinstance(copy, dict)
                    self.is_what_is(copy, members)

    def is_what_is(self, copy: Copy, scope: set[str]) -> None:
        """The copy says of everybody in the scope what others see of him, and of nobody else that he is online."""
        assert online(copy) == {user: self.entry(user) for user in scope if self.model.people[user].status != "offline"}
        for user, entry in copy.items():
            if user in scope and entry.rev and self.model.people[user].known:
                assert entry == self.entry(user)

    def poller_sees_what_is(self, poller: Poller) -> None:
        if poller.more:
            return
        scope = PUBLIC | poller.users
        crowded = {}
        for name in poller.rooms:
            if name in self.model.crowded:
                crowded[name] = len(self.model.room(name))
            else:
                scope |= self.model.room(name)
        self.is_what_is(poller.copy, scope)
        assert poller.crowded == crowded

    # Cursors.

    def mark(self) -> None:
        """Everything that is known now, to come back to."""
        version = self.service.version
        everyone = {user: self.service.get_user_status(user) for user in KINDS}
        self.public_marks.append(Mark(version, {user: everyone[user] for user in PUBLIC}))
        self.watch_marks.append(Mark(version, everyone))
        for name in ROOMS:
            copy = whole_room(self.service, name)
            self.room_marks.append(Mark(version, copy if isinstance(copy, dict) else None, name))
        for marks in (self.public_marks, self.watch_marks, self.room_marks, self.poll_marks):
            del marks[:-MARKS]

    def catch_up(self, index: int) -> None:
        """Whoever brings a cursor back knows what is, however long ago and however much happened. Some of them."""
        for kind, catch_up in (
            (self.public_marks, self.public_cursor_catches_up),
            (self.watch_marks, self.watch_cursor_catches_up),
            (self.room_marks, self.room_cursor_catches_up),
        ):
            for mark in kind[index % len(kind) :: 7] if kind else ():
                catch_up(mark)
        for poller in self.poll_marks[index % len(self.poll_marks) :: 7] if self.poll_marks else ():
            self.poll_cursor_catches_up(poller)

    def public_cursor_catches_up(self, mark: Mark) -> None:
        view = self.service.roster.public
        changes = view.changes_since(mark.version)
        assert (changes is None) == (mark.version < view.floor)
        copy = dict(mark.copy or {})
        if changes is None:
            copy, changes = {}, [record for record in view.values() if record.status != "offline"]
        else:
            assert self.pages(mark.version) == changes
        apply(copy, changes)
        self.is_what_is(copy, PUBLIC)

    def pages(self, after: int) -> list[Record]:
        """The same in pages, as a slow reader gets them."""
        found: list[Record] = []
        while after < self.service.version:
            records, after = self.service.roster.public.page(after, self.service.version, PAGE)
            assert len(records) <= PAGE
            found += records
        return found

    def watch_cursor_catches_up(self, mark: Mark) -> None:
        changes = self.service.changes_among(KINDS, mark.version)
        copy = dict(mark.copy or {})
        if changes is None:
            copy = {user: self.service.get_user_status(user) for user in KINDS}
        else:
            assert [record.version for record in changes] == sorted({record.version for record in changes})
            apply(copy, changes)
        self.is_what_is(copy, set(KINDS))

    def room_cursor_catches_up(self, mark: Mark) -> None:
        room = self.service.audience.rooms.get(mark.name)
        if room is None or room.crowded:
            assert (room.shown if room else 0) == len(self.model.room(mark.name))
            return
        members = room.members.changes_since(mark.version)
        if members is None:
            copy = roster(room.members.values())
        else:
            assert mark.copy is not None  # else it has never heard of those who did not change since
            copy = dict(mark.copy)
            apply_members(copy, members)
        self.is_what_is(copy, self.model.room(mark.name))

    def poll_cursor_catches_up(self, mark: Poller) -> None:
        poller = Poller(mark.rooms, mark.users, dict(mark.copy), mark.cursor)
        walk(poller, lambda cursor: poll.changes(self.service, cursor, poller.rooms, poller.users))
        self.poller_sees_what_is(poller)
        # Of the public users it stands for a socket, too.
        version = read_cursor(mark.cursor or "", EPOCH, PUBLIC_SCOPE)
        if version is not None and not mark.more:
            self.public_cursor_catches_up(Mark(version, {u: e for u, e in mark.copy.items() if u in PUBLIC}))

    # What is true after every step.

    @invariant()
    def everybody_is_as_the_model_says(self) -> None:
        for user, person in self.model.people.items():
            entry = self.service.get_user_status(user)
            assert entry == self.entry(user)
            record = self.service.record(user)
            assert list(record.sessions if record else ()) == [self.core[session] for session in person.sessions]
            reachable = [] if entry.status == "offline" else [self.core[session] for session in person.sessions]
            assert list(self.service.sessions_of(user)) == reachable
            assert record is None or record.hidden == person.hidden
            rooms = Counter(name for session in person.sessions for name in session.rooms)
            assert ((record and record.rooms) or {}) == rooms

    @invariant()
    def sessions_are_where_the_model_has_them(self) -> None:
        timed = 0
        for session, real in self.core.items():
            assert (real.phase is Phase.GONE) == session.gone
            assert (real.phase is Phase.ATTACHED) == session.attached == (real.connection is not None)
            assert (real.rooms or set()) == session.rooms
            timed += session.until_ms is not None
        assert len(self.service._deadlines) == timed

    @invariant()
    def rooms_are_as_the_model_says(self) -> None:
        rooms = self.service.audience.rooms
        for name in ROOMS:
            members, subscribers = self.model.room(name), self.subscribers(name)
            assert (name in rooms) == bool(members or subscribers)
            if name in rooms:
                assert roster(rooms[name].members.values()) == {user: self.entry(user) for user in members}
                assert rooms[name].shown == len(members)
                if not members and not rooms[name].crowded:
                    self.model.crowded.discard(name)  # nobody was left for a moment: it is another room
                assert rooms[name].crowded == (name in self.model.crowded)

    @invariant()
    def calls_are_as_the_model_says_and_nothing_outlives_its_parties(self) -> None:
        live = {self.core[session] for session in self.model.sessions()}
        core = self.service.calls
        assert list(core.by_id) == [call.call_id for call in self.model.calls]
        for call in self.model.calls:
            real = core.by_id[call.call_id]
            assert real.caller is self.core[call.caller]
            assert real.taker is (None if call.taker is None else self.core[call.taker])
            assert set(real.rung) == {self.core[session] for session in call.ringing}
            assert {real.caller, *real.rung} <= live
            assert real.callee.sessions
        busy = [user for user in KINDS for _ in self.model.accepted(user)]
        assert len(set(busy)) == len(busy)
        assert sorted(record.user_id for record in core._active) == sorted(busy)
        assert live.issuperset(core._ends)
        assert live.issuperset(core.missed)
        assert not core.outbox
        assert not core.changed

    def nothing_is_left(self) -> None:
        roster, audience, core = self.service.roster, self.service.audience, self.service.calls
        left = (
            *(roster.everyone, roster.public, roster.unlisted, roster._offline, self.service._inherited),
            *(audience.rooms, audience.watchers, audience._left, audience._watched_by, audience._subscribed_by),
            *(core.by_id, core.missed, core._active, core._ringing, core._ringing_at, core._ends),
        )
        assert not any(left)
        assert not len(self.service._deadlines)


def plain(frame: CallFrame) -> Frame:
    """As the model has it."""
    kind = str(type(frame).__struct_config__.tag)
    more = str(getattr(frame, "reason", getattr(frame, "data", "")))
    return (kind, frame.call_id, frame.from_user_id, frame.to_user_id, frame.video, frame.audio, frame.timestamp, more)


def by_call(frames: list[Frame]) -> list[tuple[str, list[Frame]]]:
    """Frames of one call keep their order; those of several calls have none."""
    return [(call_id, list(each)) for call_id, each in groupby(sorted(frames, key=lambda f: f[1]), lambda f: f[1])]


def ids(records: list[Record]) -> list[str]:
    return sorted(record.user_id for record in records)


def online(copy: Copy) -> Copy:
    return {user: entry for user, entry in copy.items() if entry.status != "offline"}
