"""Any interleaving of what clients, connections and clocks do: the core and a plain model of the protocol agree.

Five users of at most four sessions, three rooms, and whoever looks: connections that watch and subscribe (told by
`collect`), pollers (told by pages of `changes`), and cursors that are brought back much later. The times and the marks
are those of production; the limits are small enough to be met.
Leaves out: several processes, a user whose type changes, and what only the worker does (frames, sockets, slow readers).

500 examples in the everyday run. In the long one 10,000; EXAMPLES=... in the environment asks for another number.
"""

import os
import sys
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from itertools import groupby
from typing import TypeVar
from unittest import mock

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from fastpresence.errors import RequestError
from fastpresence.messages import CallFrame, CallRinging, CallSignalled, Status, StatusEntry
from fastpresence.presence import calls
from fastpresence.presence.roster import PUBLIC_SCOPE, Record, read_cursor
from fastpresence.presence.service import OnlineStatusService
from fastpresence.presence.sessions import GONE, Now, Phase
from fastpresence.presence.sessions import Session as CoreSession
from fastpresence.worker import poll
from tests.property.model import (
    HEARTBEAT_MS,
    RETENTION_MS,
    SESSIONS,
    Frame,
    Model,
    Refused,
    Session,
)
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

KINDS = {"kol_1": "kol", "kol_2": "kol", "user_1": "user", "user_2": "user", "user_3": "user"}
PUBLIC = {user for user, kind in KINDS.items() if kind == "kol"}
ROOMS = ["r1", "r2", "r3"]
PAGE = 2
EPOCH = "e"
MARKS = 40  #: cursors that are kept, the latest

# Steps are multiples of the wheel's tick, so that what is due is due exactly.
TICK_MS = 250
STEPS_MS = [TICK_MS, 1_000, 10_000, HEARTBEAT_MS // 2, HEARTBEAT_MS - TICK_MS, HEARTBEAT_MS, RETENTION_MS]

USERS = st.sampled_from(sorted(KINDS))
SETS = st.frozensets(USERS, max_size=3)
DEVICES = st.sampled_from([None, None, "phone", "tablet", "desk"])
STATUSES: st.SearchStrategy[Status] = st.sampled_from(["online", "busy", "away", "offline"])
NAMES = st.sampled_from(ROOMS)
NAME_SETS = st.frozensets(NAMES, max_size=2)
VERBS = st.sampled_from(["accept", "reject", "reject", "cancel", "cancel", "end", "end", "signal", "signal"])
INDEX = st.integers(0, 1_000)  # counted around

T = TypeVar("T")
U = TypeVar("U")

somebody = precondition(lambda self: bool(self.core))
connected = precondition(lambda self: bool(self.connections))
several = precondition(lambda self: len({each.user for each in self.model.sessions() if each.attached}) > 1)
calling = precondition(lambda self: bool(self.model.calls))


class Presence(RuleBasedStateMachine):
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

    @initialize(
        grace_ms=st.sampled_from([None, 0, 10_000]),
        roster_limit=st.sampled_from([2, 2, 3, 10]),
        limits=st.sampled_from([(1, 3), (8, 2)]),
        crowd=st.lists(st.tuples(USERS, DEVICES, NAME_SETS), min_size=3, max_size=8),
    )
    def start(
        self,
        grace_ms: int | None,
        roster_limit: int,
        limits: tuple[int, int],
        crowd: list[tuple[str, str | None, frozenset[str]]],
    ) -> None:
        """Some are there from the start. `limits`: calls that one session lets ring, and that ring at one user."""
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
        for user, device, rooms in crowd:
            self.online(user, device, None, rooms, False)

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

    # What clients do.

    @rule(user=USERS, device=DEVICES, status=st.none() | STATUSES, rooms=NAME_SETS, again=st.booleans())
    def online(self, user: str, device: str | None, status: Status | None, rooms: frozenset[str], again: bool) -> None:
        """On a new connection, or (`again`) on one that observes, or whose session was superseded."""
        idle = [each for each in self.connections if each.user == user and self.session_of(each) is None]
        connection = idle[0] if again and idle else Connection(user)
        before, now = dict(connection.rooms), self.now
        rooms = rooms.union(before)
        connection.rooms.update({name: {} for name in rooms})
        if connection not in idle:
            self.connections.append(connection)
        done = self.both(
            lambda: self.model.online(user, device, status, True, rooms),
            lambda: self.service.handle_user_online(
                user, KINDS[user], status=status, device=device, connection=connection, rooms=rooms, now=now
            ),
        )
        if done is None:
            connection.rooms = before
            if connection not in idle:
                self.hang_up(connection)
        elif connection in self.connections:
            for name in rooms:
                connection.rooms[name] = whole_room(self.service, name)
        self.keep_gone()

    @somebody
    @rule(index=INDEX, status=st.sampled_from([None, None, "online", "busy", "away", "offline"]), rooms=NAME_SETS)
    def come_back(self, index: int, status: Status | None, rooms: frozenset[str]) -> None:
        """A device that is here, or was, on a new connection."""
        session = self.pick(index)
        self.online(session.user, session.device, status, rooms, False)

    @somebody
    @rule(
        index=INDEX,
        what=st.sampled_from(["heartbeat", "status_change", "user_online"]),
        status=STATUSES,
        device=DEVICES,
    )
    def say(self, index: int, what: str, status: Status, device: str | None) -> None:
        """Also one that was superseded."""
        session, now = self.pick(index), self.now
        real = self.core[session]
        if what == "heartbeat":
            self.both(lambda: self.model.hear(session), lambda: self.service.handle_heartbeat(real, now=now))
        elif what == "status_change":
            self.both(
                lambda: self.model.change(session, status),
                lambda: self.service.handle_status_change(real, status, now=now),
            )
        else:
            say = None if index % 2 else status
            others = [each.device for each in self.model.people[session.user].sessions if each is not session]
            if others and index % 3:  # mostly the name of a device that there is
                device = others[index % len(others)]
            self.both(
                lambda: self.model.update(session, say, device),
                lambda: self.service.handle_update(real, status=say, device=device, now=now),
            )
        self.keep_gone()

    @connected
    @rule(index=INDEX, name=NAMES, joins=st.booleans())
    def subscribe(self, index: int, name: str, joins: bool) -> None:
        """As a member where the connection has a session, as an observer else."""
        connection = self.connection_of(index)
        session = self.session_of(connection)
        real = None if session is None else self.core[session]
        if joins:
            connection.rooms.setdefault(name, {})
            self.both(
                lambda: None if session is None else self.model.join(session, name),
                lambda: self.service.join_room(real, connection, name, now=self.now),
            )
            connection.rooms[name] = whole_room(self.service, name)
        else:
            connection.rooms.pop(name, None)
            self.both(
                lambda: None if session is None else self.model.leave(session, name),
                lambda: self.service.leave_room(real, connection, name, now=self.now),
            )

    @connected
    @rule(index=INDEX, users=SETS, watches=st.booleans())
    def watch(self, index: int, users: frozenset[str], watches: bool) -> None:
        connection = self.connection_of(index)
        if watches:
            self.service.watch(connection, users)
            for user in users:
                connection.watched[user] = self.service.get_user_status(user)
        else:
            self.service.unwatch(connection, users)
            for user in users:
                connection.watched.pop(user, None)

    @rule(
        number=st.integers(0, 1),
        user=USERS,
        device=DEVICES,
        status=st.none() | STATUSES,
        rooms=st.none() | NAME_SETS,
        users=st.none() | SETS,
    )
    def poll(
        self,
        number: int,
        user: str,
        device: str | None,
        status: Status | None,
        rooms: frozenset[str] | None,
        users: frozenset[str] | None,
    ) -> None:
        """One page, by the cursor of the last one. Without `users` in the scope of before, else in a new one."""
        now = self.now
        done = self.both(
            lambda: self.model.poll(user, device, status, rooms),
            lambda: self.service.handle_poll(user, KINDS[user], status=status, device=device, rooms=rooms, now=now),
        )
        if done is None:
            return
        poller = self.pollers[number]
        if users is not None:
            poller.rooms, poller.users = rooms or frozenset(), users
        poller.take(poll.changes(self.service, poller.cursor, poller.rooms, poller.users))
        self.poller_sees_what_is(poller)
        self.poll_marks.append(
            Poller(poller.rooms, poller.users, dict(poller.copy), poller.cursor, poller.more, poller.crowded)
        )

    # Calls.

    @several
    @rule(
        index=INDEX,
        at=INDEX,
        again=st.sampled_from([False, False, True]),
        callee=USERS,
        video=st.booleans(),
        audio=st.booleans(),
    )
    def call(self, index: int, at: int, again: bool, callee: str, video: bool, audio: bool) -> None:
        """Mostly somebody who can hear it. `again`: by an id that there is, if there is one."""
        session = self.acting(index)
        assert session is not None
        self.ids += 1
        call_id = self.model.calls[0].call_id if again and self.model.calls else f"c{self.ids}"
        if at % 4:
            others = {each.user for each in self.model.sessions() if each.attached} - {session.user}
            callee = sorted(others)[at % len(others)]
        real, now = self.core[session], self.now
        done = self.both(
            lambda: self.model.call(session, call_id, callee, video, audio),
            lambda: self.service.handle_call(real, call_id, callee, video=video, audio=audio, now=now),
        )
        if done is not None and not self.taken:  # it rang at nobody
            self.model.calls.remove(done[0])
            self.service.calls.withdraw(done[1])
            self.settle()

    @several
    @rule(index=INDEX, at=INDEX, callee=USERS, then=st.none() | VERBS)
    def talk(self, index: int, at: int, callee: str, then: str | None) -> None:
        """A call that is accepted at once, and perhaps moved on by another device."""
        self.call(index, at, False, callee, True, True)
        self.accept(-1)
        if then is not None and self.model.calls:
            self.move_call(-1, at, then)

    @calling
    @rule(index=INDEX, at=INDEX, what=VERBS)
    def move_call(self, index: int, at: int, what: str) -> None:
        """By a session of either party, and sometimes by whomever."""
        call = self.model.calls[index % len(self.model.calls)]
        parties = [each for user in reversed(call.users()) for each in self.model.people[user].sessions]
        among = [each for each in parties if each.attached] if at % 5 else []
        session = among[at % len(among)] if among else self.acting(index)
        if session is not None:
            self.act(session, call.call_id if at % 7 else "no such call", what)

    @calling
    @rule(index=INDEX)
    def accept(self, index: int) -> None:
        """By a session at which it rings, where there is one."""
        call = self.model.calls[index % len(self.model.calls)] if self.model.calls else None
        among = [each for each in call.ringing if each.attached] if call else []
        if call and among:
            self.act(among[index % len(among)], call.call_id, "accept")

    def act(self, session: Session, call_id: str, what: str) -> None:
        model, service, real, now = self.model, self.service, self.core[session], self.now
        steps: dict[str, tuple[Callable[[], None], Callable[[], None]]] = {
            "accept": (
                lambda: model.accept(session, call_id),
                lambda: service.handle_call_accept(real, call_id, now=now),
            ),
            "reject": (
                lambda: model.reject(session, call_id),
                lambda: service.handle_call_reject(real, call_id, now=now),
            ),
            "cancel": (
                lambda: model.cancel(session, call_id),
                lambda: service.handle_call_cancel(real, call_id, now=now),
            ),
            "end": (
                lambda: model.hang_up(session, call_id),
                lambda: service.handle_call_end(real, call_id, now=now),
            ),
            "signal": (
                lambda: model.signal(session, call_id, "offer"),
                lambda: service.handle_call_signal(real, call_id, "offer", now=now),
            ),
        }
        self.both(*steps[what])

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
            self.break_connection(session, self.model.ms)
        return taken

    # What connections and clocks do.

    @somebody
    @rule(
        index=INDEX,
        how=st.sampled_from(["broken", "broken", "silent", "goodbye"]),
        ago=st.sampled_from([0, 1_000, HEARTBEAT_MS // 2, HEARTBEAT_MS]),
    )
    def leave(self, index: int, how: str, ago: int) -> None:
        """A connection ends, and a session perhaps. Also a late goodbye of one that was superseded."""
        session, now = self.pick(index), self.now
        real = self.core[session]
        connection = real.connection
        if how == "broken":
            self.break_connection(session, now.ms - ago)
            return
        if how == "goodbye":
            self.both(lambda: self.model.goodbye(session), lambda: self.service.handle_user_offline(real, now=now))
        elif connection is not None:  # the heartbeat timeout ran out
            heard_ms = now.ms - HEARTBEAT_MS
            self.both(
                lambda: self.model.fall_silent(session, heard_ms),
                lambda: self.service.handle_timeout(real, last_heard_ms=heard_ms, now=now),
            )
        if connection is not None:
            self.hang_up(connection)
        self.keep_gone()

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

    @rule(index=INDEX, what=st.sampled_from(["opens", "ends", "jams"]), user=USERS)
    def connection(self, index: int, what: str, user: str) -> None:
        """One that observes comes or goes; one takes no more of what it is told of calls, or takes it again."""
        if what == "opens" or not self.connections:
            self.connections.append(Connection(user))
            return
        connection = self.connection_of(index)
        if what == "jams":
            connection.jammed = not connection.jammed
        elif self.session_of(connection) is None:
            self.hang_up(connection)

    @rule(step_ms=st.sampled_from(STEPS_MS), skew_s=st.just(0) | st.integers(-10_000, 10_000))
    def wait(self, step_ms: int, skew_s: int) -> None:
        """Meanwhile the wall clock may be set, either way."""
        self.model.ms += step_ms
        self.model.wall_us += step_ms * 1000 + skew_s * 1_000_000

    @rule(limit=st.sampled_from([1, 2, 1024]))
    def clean_up(self, limit: int) -> None:
        """Of those whose time is up any may be first, as far as the limit goes."""
        if self.model.ms - self.flushed_ms >= RETENTION_MS:
            self.flush()
        due = self.model.due()
        ended = self.service.cleanup_expired_status(now=self.now, limit=limit)
        assert ended == min(limit, len(due))
        for session in due:
            real = self.core[session]
            if real.phase is GONE or (session.attached and real not in self.service._inherited):
                self.model.expire(session)
                ended -= 1
        assert ended == 0
        self.model.stop_ringing()
        self.settle()
        self.forget(limit)
        self.settle()
        self.keep_gone()

    def forget(self, limit: int) -> None:
        """Who went offline in the same moment as another may be forgotten before him."""
        due = self.model.unknown_soon()
        forgotten = [user for user in due if self.service.get_user_status(user).rev == 0]
        assert len(forgotten) == min(limit, len(due))
        since = [self.model.people[user].offline_since_ms for user in due]
        assert sorted(self.model.people[user].offline_since_ms for user in forgotten) == since[:limit]
        for user in forgotten:
            self.model.forget(user)

    # What the application does.

    @rule(user=USERS, status=STATUSES)
    def force(self, user: str, status: Status) -> None:
        self.both(
            lambda: self.model.force(user, status),
            lambda: self.service.force_status(user, status, now=self.now),
        )

    @rule(user=USERS)
    def kick(self, user: str) -> None:
        for session in list(self.model.people[user].sessions):
            real = self.core[session]
            self.both(
                lambda: self.model.goodbye(session),  # noqa: B023
                lambda: self.service.handle_user_offline(real, now=self.now, reason="kicked"),  # noqa: B023
            )
        for connection in [each for each in self.connections if each.user == user]:
            self.hang_up(connection)
        self.keep_gone()

    # What observers are told.

    @rule()
    def flush(self) -> None:
        """Everybody is told what changed since the last one, each user once; whoever was told knows what is."""
        again = self.model.turn_rooms({name for name, _ in self.touched_in})
        delta = self.service.collect(self.flushed)
        self.version = self.flushed = delta.version
        self.flushed_ms = self.model.ms
        assert delta.version == self.service.version
        assert ids(delta.public) == sorted(self.touched & PUBLIC)
        apply(self.public, delta.public)
        for connection in self.connections:
            records = delta.watched.pop(connection, [])
            assert ids(records) == sorted(self.touched & set(connection.watched))
            apply(connection.watched, records)
        assert not delta.watched
        for change in delta.rooms:
            name = change.room.name
            assert name in {each for each, _ in self.touched_in}
            assert change.room.subscribers == set(self.subscribers(name)) != set()
            assert change.room.crowded == (name in self.model.crowded)
            assert change.full == (name in again)
            for connection in self.subscribers(name):
                copy = connection.rooms[name]
                if change.room.crowded:
                    assert not change.members
                    connection.rooms[name] = change.room.shown
                elif change.full:
                    connection.rooms[name] = roster(change.members)
                else:
                    assert {(name, member.record.user_id) for member in change.members} <= self.touched_in
                    assert isinstance(copy, dict)
                    apply_members(copy, change.members)
        self.touched.clear()
        self.touched_in.clear()
        self.observers_see_what_is()
        for mark in self.room_marks:  # a slow reader's version, too, of when the room was crowded
            if mark.name in again:
                self.room_cursor_catches_up(mark)
        self.mark()

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

    @rule(index=INDEX)
    def cursors_catch_up(self, index: int) -> None:
        """Whoever brings a cursor back knows what is, however long ago and however much happened."""
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

    def teardown(self) -> None:
        """Once everybody is gone, and the retention has passed, nothing is left of anybody."""
        self.patches.close()
        if sys.exc_info()[0] is not None or not hasattr(self, "model"):
            return
        for user in KINDS:
            self.kick(user)
        self.flush()
        self.wait(RETENTION_MS, 0)
        self.clean_up(1024)
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


def examples(number: int) -> settings:
    return settings(
        max_examples=number,
        stateful_step_count=80,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
    )


class PresenceForLong(Presence):
    """The same again: a machine has one test case."""


TestPresence = Presence.TestCase
TestPresence.settings = examples(500)
TestPresenceForLong = pytest.mark.timeout(3600)(pytest.mark.long(PresenceForLong.TestCase))
TestPresenceForLong.settings = examples(int(os.environ.get("EXAMPLES", "10000")))
