"""Any interleaving of what clients, connections and clocks do: the core and a plain model of the protocol agree.

The model keeps lists of sessions and sets of room names and computes everything anew each time; it knows nothing of
versions, views or retention. Observers (of the public, of watches, of rooms) know only what `collect` told them.
Leaves out: several processes, and calls.
"""

from dataclasses import dataclass, field
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from fastpresence.errors import NotOnline
from fastpresence.messages import Status
from fastpresence.presence.audience import RoomMember
from fastpresence.presence.roster import Record
from fastpresence.presence.service import OnlineStatusService
from fastpresence.presence.sessions import Now, Phase, Session

TYPES = {"kol_1": "kol", "kol_2": "kol", "user_1": "user", "user_2": "user"}
USERS = st.sampled_from(sorted(TYPES))
DEVICES = st.sampled_from([None, "phone", "tablet"])
STATUSES: st.SearchStrategy[Status] = st.sampled_from(["online", "busy", "away", "offline"])
ROOMS = ["r1", "r2"]
ORDER: list[Status] = ["offline", "away", "online", "busy"]
INDEX = st.integers(0, 1_000)  # of a session ever made, counted around

# All times are multiples of the wheel's tick, so that what is due is due exactly.
TICK_MS = 250
HEARTBEAT_MS = 3_000
RETENTION_MS = 5_000


@dataclass
class Life:
    """A session as the model sees it, beside the core's own."""

    real: Session
    user: str
    device: str | None
    attached: bool
    status: Status
    heard_ms: int
    rooms: set[str]
    #: Of a detached one: when it ends. Of an attached one: when it leaves the rooms that it inherited.
    deadline_ms: int | None = None
    inherited: set[str] = field(default_factory=set)
    gone: bool = False


@dataclass
class Person:
    """A user as the model sees him."""

    hidden: bool = False
    shown: Status = "offline"
    last_seen: int | None = None
    heard_ms: int = 0
    rev: int = 0
    offline_since_ms: int | None = None
    listed: bool = False  # others know of him


@dataclass
class Observer:
    """A connection without presence. Holds what it was told."""

    connection: str
    watched: dict[str, tuple[Status, int]] = field(default_factory=dict)  # (status, rev)
    rooms: dict[str, dict[str, Status]] = field(default_factory=dict)


class Presence(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.ms = 1_000_000
        self.wall_us = 1_640_995_200_000_000
        self.lives: list[Life] = []
        self.people = {user: Person() for user in TYPES}
        self.observers = [Observer(f"observer {number}") for number in range(2)]
        self.public: dict[str, tuple[Status, int]] = {}
        self.flushed = 0
        # Earlier cursors, of the public and of rooms, each with what was known at it.
        self.cursors: list[tuple[int, dict[str, tuple[Status, int]]]] = []
        self.room_cursors: list[tuple[int, str, dict[str, Status]]] = []

    @initialize(grace_ms=st.sampled_from([None, 0, 1_000]))
    def start(self, grace_ms: int | None) -> None:
        self.grace_ms = grace_ms
        self.service = OnlineStatusService(
            epoch="e",
            public_types={"kol"},
            heartbeat_timeout_ms=HEARTBEAT_MS,
            disconnect_grace_ms=grace_ms,
            retention_ms=RETENTION_MS,
        )

    # The model.

    @property
    def now(self) -> Now:
        return Now(self.ms, self.wall_us)

    def alive(self, user: str) -> list[Life]:
        return [life for life in self.lives if life.user == user and not life.gone]

    def pick(self, index: int) -> Life:
        return self.lives[index % len(self.lives)]

    def merged(self, user: str) -> Status:
        if self.people[user].hidden:
            return "offline"
        return max((life.status for life in self.alive(user)), key=ORDER.index, default="offline")

    def room(self, name: str) -> dict[str, Status]:
        """Who is shown in the room, and how."""
        return {
            user: self.merged(user)
            for user in TYPES
            if self.merged(user) != "offline" and any(name in life.rooms for life in self.alive(user))
        }

    def settle(self, user: str) -> None:
        """After each operation: what a visible change must have done, and that there was none otherwise."""
        person, status = self.people[user], self.merged(user)
        record = self.service.record(user)
        if status != person.shown:
            person.shown = status
            person.listed = True
            heard_ms = max([person.heard_ms, *(life.heard_ms for life in self.alive(user))])
            second = (self.wall_us - (self.ms - heard_ms) * 1_000) // 1_000_000
            person.last_seen = second if person.last_seen is None else max(person.last_seen, second)
            person.offline_since_ms = self.ms if status == "offline" else None
            assert record is not None
            assert record.rev > person.rev
            person.rev = record.rev
        if not self.alive(user) and not person.listed:
            person.last_seen, person.heard_ms = None, 0

    def end(self, life: Life, heard_ms: int) -> None:
        person = self.people[life.user]
        person.heard_ms = max(person.heard_ms, heard_ms)
        life.gone, life.rooms, life.deadline_ms = True, set(), None
        if not self.alive(life.user):
            person.hidden = False
        self.settle(life.user)

    def supersede(self, life: Life, device: str | None) -> None:
        """Ends whom `life` supersedes; it takes over the rooms, for a while."""
        others = [other for other in self.alive(life.user) if other is not life and other.device == device]
        if device is None:
            others = sorted((o for o in others if not o.attached), key=lambda o: (o.heard_ms, o.real.number))[-1:]
        assert len(others) <= 1
        for other in others:
            names = other.rooms - life.rooms
            if names and life.attached:
                life.inherited |= names
                life.deadline_ms = max(life.heard_ms, other.heard_ms) + HEARTBEAT_MS
            life.rooms |= names
            other.rooms, other.gone, other.deadline_ms = set(), True, None

    def ask(self, life: Life, name: str) -> None:
        """The client of `life` named this room."""
        if name in life.inherited:
            life.inherited.remove(name)
            if not life.inherited:
                life.deadline_ms = None

    def say(self, life: Life, status: Status | None) -> None:
        if status is not None:
            self.people[life.user].hidden = status == "offline"
            life.status = life.status if status == "offline" else status

    def hear(self, life: Life) -> None:
        life.heard_ms = self.ms
        if not life.attached and not life.gone:
            life.deadline_ms = self.ms + HEARTBEAT_MS

    # What clients do.

    @rule(
        user=USERS,
        device=DEVICES,
        status=st.none() | STATUSES,
        attached=st.booleans(),
        rooms=st.sets(st.sampled_from(ROOMS)),
    )
    def online(self, user: str, device: str | None, status: Status | None, attached: bool, rooms: set[str]) -> None:
        connection = f"connection {len(self.lives)}" if attached else None
        real = self.service.handle_user_online(
            user, TYPES[user], status=status, device=device, connection=connection, rooms=rooms, now=self.now
        )
        life = Life(real, user, device, attached, "online", self.ms, set(rooms))
        life.deadline_ms = None if attached else self.ms + HEARTBEAT_MS
        self.supersede(life, device)
        self.lives.append(life)
        self.say(life, status)
        self.settle(user)

    @precondition(lambda self: self.lives)
    @rule(index=INDEX, status=st.none() | STATUSES, device=DEVICES)
    def update(self, index: int, status: Status | None, device: str | None) -> None:
        life = self.pick(index)
        try:
            self.service.handle_update(life.real, status=status, device=device, now=self.now)
        except NotOnline:
            assert life.gone
            return
        assert not life.gone
        self.hear(life)
        if device is not None and device != life.device:
            life.device = device
            self.supersede(life, device)
        self.say(life, status)
        self.settle(life.user)

    @precondition(lambda self: self.lives)
    @rule(index=INDEX, status=STATUSES)
    def change(self, index: int, status: Status) -> None:
        life = self.pick(index)
        try:
            self.service.handle_status_change(life.real, status, now=self.now)
        except NotOnline:
            assert life.gone
            return
        assert not life.gone
        self.hear(life)
        self.say(life, status)
        self.settle(life.user)

    @precondition(lambda self: self.lives)
    @rule(index=INDEX)
    def beat(self, index: int) -> None:
        life = self.pick(index)
        self.service.handle_heartbeat(life.real, now=self.now)
        self.hear(life)

    @precondition(lambda self: self.lives)
    @rule(index=INDEX)
    def goodbye(self, index: int) -> None:
        life = self.pick(index)
        self.service.handle_user_offline(life.real, now=self.now)
        if not life.gone:
            self.end(life, self.ms if life.attached else life.heard_ms)

    @precondition(lambda self: self.lives)
    @rule(index=INDEX, name=st.sampled_from(ROOMS), joins=st.booleans())
    def move(self, index: int, name: str, joins: bool) -> None:
        life = self.pick(index)
        if joins:
            self.service.join_room(life.real, life.real.connection, name, now=self.now)
            if not life.gone:
                life.rooms.add(name)
                self.ask(life, name)
        else:
            self.service.leave_room(life.real, life.real.connection, name, now=self.now)
            life.rooms.discard(name)
            if not life.gone:
                self.ask(life, name)

    # What connections and clocks do.

    @precondition(lambda self: self.lives)
    @rule(index=INDEX, ago=st.integers(0, 16))
    def lose(self, index: int, ago: int) -> None:
        life = self.pick(index)
        connection = life.real.connection
        heard_ms = max(life.heard_ms, self.ms - ago * TICK_MS)
        self.service.handle_connection_lost(life.real, last_heard_ms=heard_ms, now=self.now)
        if connection is not None:
            self.service.forget(connection)
        if life.gone or not life.attached:
            return
        life.attached, life.heard_ms, life.inherited = False, heard_ms, set()
        life.deadline_ms = heard_ms + HEARTBEAT_MS
        if self.grace_ms is not None:
            life.deadline_ms = min(life.deadline_ms, self.ms + self.grace_ms)
        if life.deadline_ms <= self.ms:
            self.end(life, heard_ms)

    @precondition(lambda self: self.lives)
    @rule(index=INDEX, ago=st.integers(0, 16))
    def fall_silent(self, index: int, ago: int) -> None:
        life = self.pick(index)
        heard_ms = max(life.heard_ms, self.ms - ago * TICK_MS)
        self.service.handle_timeout(life.real, last_heard_ms=heard_ms, now=self.now)
        if not life.gone:
            self.end(life, heard_ms)

    @rule(ticks=st.integers(1, 8) | st.integers(1, 30))
    def wait(self, ticks: int) -> None:
        self.ms += ticks * TICK_MS
        self.wall_us += ticks * TICK_MS * 1_000

    @rule(seconds=st.integers(-10_000, 10_000))
    def step_the_wall_clock(self, seconds: int) -> None:
        self.wall_us += seconds * 1_000_000

    @rule()
    def clean_up(self) -> None:
        self.flush()
        due = [life for life in self.lives if life.deadline_ms is not None and life.deadline_ms <= self.ms]
        assert self.service.cleanup_expired_status(now=self.now) == len(due)
        for user in TYPES:
            for life in due:
                if life.user == user and life.attached:
                    life.rooms -= life.inherited
                    life.inherited, life.deadline_ms = set(), None
                elif life.user == user:
                    self.people[user].heard_ms = max(self.people[user].heard_ms, life.heard_ms)
                    life.gone, life.rooms, life.deadline_ms = True, set(), None
            if not self.alive(user):
                self.people[user].hidden = False
            # One by one or all at once: only the last of several changes in one moment can be told apart.
            self.settle(user)
            person = self.people[user]
            if person.offline_since_ms is not None and person.offline_since_ms + RETENTION_MS <= self.ms:
                person.listed, person.offline_since_ms = False, None
                self.settle(user)

    # What observers do.

    @rule(number=st.integers(0, 1), users=st.sets(USERS), watches=st.booleans())
    def watch(self, number: int, users: set[str], watches: bool) -> None:
        observer = self.observers[number]
        if not watches:
            self.service.unwatch(observer.connection, users)
            for user in users:
                observer.watched.pop(user, None)
            return
        self.service.watch(observer.connection, users)
        for user in users:
            entry = self.service.get_user_status(user)
            observer.watched[user] = (entry.status, entry.rev)

    @rule(number=st.integers(0, 1), name=st.sampled_from(ROOMS), subscribes=st.booleans())
    def subscribe(self, number: int, name: str, subscribes: bool) -> None:
        observer = self.observers[number]
        if not subscribes:
            self.service.leave_room(None, observer.connection, name, now=self.now)
            observer.rooms.pop(name, None)
            return
        room = self.service.join_room(None, observer.connection, name, now=self.now)
        observer.rooms[name] = {user: member.record.status for user, member in room.members.items() if not member.left}

    @rule(number=st.integers(0, 1))
    def observer_ends(self, number: int) -> None:
        observer = self.observers[number]
        rooms = self.service.forget(observer.connection)
        assert {room.name for room in rooms} == set(observer.rooms)
        observer.watched.clear()
        observer.rooms.clear()

    @rule()
    def flush(self) -> None:
        delta = self.service.collect(self.flushed)
        self.flushed = delta.version
        for record in delta.public:
            apply(self.public, record)
        for observer in self.observers:
            for record in delta.watched.get(observer.connection, ()):
                assert record.user_id in observer.watched
                apply(observer.watched, record)
            for change in delta.rooms:
                room = change.room
                if room.name in observer.rooms:
                    assert observer.connection in room.subscribers
                    apply_members(observer.rooms[room.name], change.members)
        self.observers_see_what_is()
        self.earlier_cursors_catch_up()
        self.cursors.append((self.flushed, dict(self.public)))
        for name in self.service.audience.rooms:
            self.room_cursors.append((self.flushed, name, self.room(name)))

    def observers_see_what_is(self) -> None:
        for user, kind in TYPES.items():
            if kind == "kol":
                assert self.public.get(user, ("offline", 0))[0] == self.merged(user)
            else:
                assert user not in self.public
        for observer in self.observers:
            for user, (status, _) in observer.watched.items():
                assert status == self.merged(user)
            for name, view in observer.rooms.items():
                assert view == self.room(name)
        assert set(self.service.audience.rooms) == {
            name for name in ROOMS if self.room(name) or any(self.subscribers(name))
        }

    def subscribers(self, name: str) -> set[Any]:
        room = self.service.audience.rooms.get(name)
        return set() if room is None else set(room.subscribers)

    def earlier_cursors_catch_up(self) -> None:
        roster = self.service.roster
        for version, known in self.cursors:
            changes = roster.public.changes_since(version)
            if version < roster.public.floor:
                assert changes is None
                continue
            assert changes is not None
            assert [record.version for record in changes] == sorted({record.version for record in changes})
            assert {user for user in self.public if known.get(user) != self.public[user]} <= {
                record.user_id for record in changes
            }
            view = dict(known)
            for record in changes:
                apply(view, record)
            assert view == self.public
            assert self.service.changes_among(list(roster.public), version) in (None, changes)
        for version, name, there in self.room_cursors:
            room = self.service.audience.rooms.get(name)  # perhaps another than then, of the same name
            told = None if room is None else room.members.changes_since(version)
            if room is None or version < room.members.floor:
                assert told is None
                continue
            assert told is not None
            seen = dict(there)
            apply_members(seen, told)
            assert seen == self.room(name)

    # What is true after every step.

    @invariant()
    def everybody_is_as_the_model_says(self) -> None:
        for user, person in self.people.items():
            entry = self.service.get_user_status(user)
            assert entry.status == self.merged(user) == person.shown
            if person.listed:
                assert (entry.last_seen, entry.rev, entry.user_type) == (person.last_seen, person.rev, TYPES[user])
            else:
                assert (entry.last_seen, entry.rev, entry.user_type) == (None, 0, "")
            assert entry.online == (entry.status != "offline")
            reachable = [] if person.hidden else [life.real for life in self.alive(user)]
            assert list(self.service.sessions_of(user)) == (reachable if entry.online else [])
            record = self.service.record(user)
            assert list(record.sessions if record else ()) == [life.real for life in self.alive(user)]

    @invariant()
    def sessions_are_where_the_model_has_them(self) -> None:
        timed = 0
        for life in self.lives:
            real = life.real
            assert (real.phase is Phase.GONE) == life.gone
            if not life.gone:
                assert (real.phase is Phase.ATTACHED) == life.attached
                timed += life.deadline_ms is not None
            assert (real.connection is None) == (real.phase is not Phase.ATTACHED)
            assert (real.rooms or set()) == life.rooms
        assert len(self.service._deadlines) == timed


def apply(view: dict[str, tuple[Status, int]], record: Record) -> None:
    """What a client does with an entry of a delta; the core must never make it refuse one."""
    known = view.get(record.user_id)
    assert known is None or record.rev >= known[1]
    view[record.user_id] = (record.status, record.rev)


def apply_members(view: dict[str, Status], members: list[RoomMember]) -> None:
    for member in members:
        if member.left:
            view.pop(member.record.user_id, None)
        else:
            view[member.record.user_id] = member.record.status


Presence.TestCase.settings = settings(
    max_examples=300, stateful_step_count=50, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
TestPresence = Presence.TestCase
