"""Any interleaving of what clients, connections and clocks do: the core and a plain model of the protocol agree.

Five users of at most four sessions, three rooms, and whoever looks: connections that watch and subscribe (told by
`collect`), pollers (told by pages of `changes`), and cursors that are brought back much later. The times and the marks
are those of production; the limits are small enough to be met.
Leaves out: several processes, a user whose type changes, and what only the worker does (frames, sockets, slow readers).

500 examples in the everyday run, 2,000 in the long one, the same each time; EXAMPLES=10000 in the environment asks the
long one for another number, and for others each time.
"""

import os
import sys
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, precondition, rule

from fastpresence.messages import Status
from fastpresence.presence.sessions import GONE
from fastpresence.worker import poll
from tests.property.model import HEARTBEAT_MS, RETENTION_MS, Session
from tests.property.observers import Connection, Poller, apply, apply_members, roster, whole_room
from tests.property.side_by_side import KINDS, PUBLIC, ROOMS, SideBySide, ids

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

somebody = precondition(lambda self: bool(self.core))
connected = precondition(lambda self: bool(self.connections))
several = precondition(lambda self: len({each.user for each in self.model.sessions() if each.attached}) > 1)
calling = precondition(lambda self: bool(self.model.calls))


class Presence(SideBySide):
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
        """Some are there from the start."""
        self.begin(grace_ms, roster_limit, limits)
        for user, device, rooms in crowd:
            self.online(user, device, None, rooms, False)

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
        own=st.none() | NAMES,
        users=st.none() | SETS,
    )
    def poll(
        self,
        number: int,
        user: str,
        device: str | None,
        status: Status | None,
        rooms: frozenset[str] | None,
        own: str | None,
        users: frozenset[str] | None,
    ) -> None:
        """One page, by the cursor of the last one. Without `users` in the scope of before, else in a new one.

        `own`: the token's room.
        """
        if rooms is not None and own is not None:
            rooms |= {own}
        now = self.now
        done = self.both(
            lambda: self.model.poll(user, device, status, rooms),
            lambda: self.service.handle_poll(user, KINDS[user], status=status, device=device, rooms=rooms, now=now),
        )
        if done is None:
            return
        if own is not None:
            self.both(
                lambda: self.model.join(done[0], own),
                lambda: self.service.join_room(done[1], None, own, now=now),
            )
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
            lent = self.service._inherited.get(real, {})
            if real.phase is GONE or (session.attached and all(until_ms > self.now.ms for until_ms in lent.values())):
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

    @rule(index=INDEX)
    def cursors_catch_up(self, index: int) -> None:
        self.catch_up(index)

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
        self.nothing_is_left()


def examples(number: int) -> settings:
    return settings(
        max_examples=number,
        stateful_step_count=60,
        deadline=None,
        derandomize="EXAMPLES" not in os.environ,  # what lands is what was seen to pass; who explores says how far
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
    )


class PresenceForLong(Presence):
    """The same again: a machine has one test case."""


TestPresence = pytest.mark.timeout(300)(Presence.TestCase)
TestPresence.settings = examples(500)
TestPresenceForLong = pytest.mark.timeout(3600)(pytest.mark.long(PresenceForLong.TestCase))
TestPresenceForLong.settings = examples(int(os.environ.get("EXAMPLES", "2000")))
