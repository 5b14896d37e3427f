"""Who learns of a change besides the public: rooms and watches.

Pure data. A connection is whatever hashable object the caller uses for one; the core only compares it.

    room.members      users, through their sessions: a view, so a room has changes and cursors of its own
    room.subscribers  connections, members' and observers' alike: who is told
    watchers          user_id -> connections that watch him

Invariant: a user is shown in a room (`left` false) exactly while he is not offline to others and at least one of his
sessions is in it; `record.rooms` goes on counting beneath while he is hidden. A room without shown members and
subscribers is dropped. Bounds on watches and rooms are the caller's. Driven by presence.service.
"""

from collections import OrderedDict
from collections.abc import Collection, Hashable, Iterable

from msgspec import Struct

from fastpresence.presence.roster import UNLISTED, Counter, Record, View, drop_share
from fastpresence.presence.sessions import Now, Session

__all__ = ["Audience", "Room", "RoomDelta", "RoomMember"]


#: Connections that watch a user, up to which a tuple has them.
FEW = 4


class RoomMember:
    """A user in a room. One who left stays for the retention, so that cursors can tell of it."""

    __slots__ = ("left", "record", "version")

    def __init__(self, record: Record) -> None:
        self.record = record
        self.version = UNLISTED  #: of the latest change of the user in this room
        self.left = False


class Room:
    """A roster of its own, stamped by the process's counter."""

    __slots__ = (
        "audience",
        "crowded",
        "members",
        "name",
        "shown",
        "subscribers",
        "tell_again_s",
        "told_count",
        "version",
    )

    def __init__(self, name: str, counter: Counter) -> None:
        self.name = name
        self.members: View[RoomMember] = View(counter, floor=counter.version)
        self.shown = 0  #: members that have not left
        self.crowded = False  #: told as a number; settled at each flush, and with hysteresis
        self.subscribers: set[Hashable] = set()
        self.version = UNLISTED  #: of the latest change of any member
        # The worker's own.
        self.audience: int | None = None  #: its native audience
        self.told_count: int | None = None  #: of a crowded room: the last count that was told
        self.tell_again_s = 0.0  #: and when the next may be


class RoomDelta(Struct, frozen=True):
    """What there is to tell of one room: how many are in it, or who changed."""

    room: Room
    members: list[RoomMember]  #: none of a crowded room; oldest change first
    full: bool = False  #: it was crowded until now: these are all


class Audience:
    """All rooms and watches of one process. `roster_limit`: members of a room that are told by name."""

    def __init__(self, counter: Counter, retention_ms: int, roster_limit: int) -> None:
        self.rooms: View[Room] = View(counter)
        #: A tuple of few, which most have, takes a third of a set's memory; a set of many.
        self.watchers: dict[str, tuple[Hashable, ...] | set[Hashable]] = {}
        self._counter = counter
        self._retention_ms = retention_ms
        self._roster_limit = roster_limit
        #: A crowded room has a roster again at a tenth less, so that one who comes and goes does not flip it.
        self._roster_again = roster_limit * 9 // 10
        self._left: OrderedDict[RoomMember, tuple[int, Room]] = OrderedDict()  # -> when to drop it (monotonic ms)
        self._watched_by: dict[Hashable, set[str]] = {}
        self._subscribed_by: dict[Hashable, set[str]] = {}

    # Members.

    def enter(self, session: Session, name: str, now: Now) -> None:
        """The session is in the room; its user shows there unless he is offline to others."""
        if session.rooms is None:
            session.rooms = set()
        elif name in session.rooms:
            return
        session.rooms.add(name)
        record = session.record
        if record.rooms is None:
            record.rooms = {}
        count = record.rooms[name] = record.rooms.get(name, 0) + 1
        if count == 1 and record.status != "offline":
            self._show(record, name, self._counter.next_version())

    def leave(self, session: Session, name: str, now: Now) -> None:
        """The session is not in the room any more; its user leaves unless another session stays."""
        if session.rooms is None or name not in session.rooms:
            return
        session.rooms.remove(name)
        if not session.rooms:
            session.rooms = None
        self._release(session.record, name, now)

    def leave_all(self, session: Session, now: Now) -> None:
        """The session ended."""
        names, session.rooms = session.rooms, None
        for name in names or ():
            self._release(session.record, name, now)

    def inherit(self, session: Session, older: Session, now: Now) -> None:
        """`session` superseded `older` and takes its places: nobody sees a coming or going."""
        names, older.rooms = older.rooms, None
        if session.rooms is None:
            session.rooms = names
            return
        for name in names or ():
            if name in session.rooms:
                self._release(session.record, name, now)
            else:
                session.rooms.add(name)

    def move(self, record: Record, version: int, now: Now) -> None:
        """The record changed at `version`: so did the rosters of its rooms."""
        for name in record.rooms or ():
            if record.status == "offline":
                self._hide(record, name, version, now)
            else:
                self._show(record, name, version)

    def _release(self, record: Record, name: str, now: Now) -> None:
        if record.rooms is None:
            return
        record.rooms[name] -= 1
        if record.rooms[name]:
            return
        del record.rooms[name]
        if not record.rooms:
            record.rooms = None
        if record.status != "offline":
            self._hide(record, name, self._counter.next_version(), now)

    def _show(self, record: Record, name: str, version: int) -> None:
        room = self._room(name)
        member = room.members.get(record.user_id)
        if member is None or member.record is not record:
            member = self._newcomer(room, record, member)
        elif member.left:
            del self._left[member]
            member.left = False
            room.shown += 1
        room.members.move(record.user_id, member, version)
        self.rooms.move(name, room, version)

    def _newcomer(self, room: Room, record: Record, former: RoomMember | None) -> RoomMember:
        # The former one left with a record that the roster has dropped since, or is about to.
        if former is not None:
            del self._left[former]
            former.version = UNLISTED
        room.shown += 1
        return RoomMember(record)

    def _hide(self, record: Record, name: str, version: int, now: Now) -> None:
        room = self.rooms.get(name)
        member = room.members.get(record.user_id) if room is not None else None
        if room is None or member is None or member.left:
            return
        member.left = True
        self._left[member] = (now.ms + self._retention_ms, room)
        room.shown -= 1
        room.members.move(record.user_id, member, version)
        self.rooms.move(name, room, version)
        self._drop_if_empty(room)

    # Rooms.

    def _room(self, name: str) -> Room:
        room = self.rooms.get(name)
        if room is None:
            room = self.rooms[name] = Room(name, self._counter)
        return room

    def _drop_if_empty(self, room: Room) -> None:
        if room.shown or room.subscribers:
            return
        for member in room.members.values():
            del self._left[member]
        room.members.clear()
        self.rooms.drop(room.name, room.version)
        room.version = UNLISTED

    def subscribe(self, connection: Hashable | None, name: str) -> Room:
        """The connection is told of the room's changes. None: nobody is, but the room is there if it has members."""
        if connection is None:
            return self.rooms.get(name) or Room(name, self._counter)
        room = self._room(name)
        room.subscribers.add(connection)
        self._subscribed_by.setdefault(connection, set()).add(name)
        return room

    def unsubscribe(self, connection: Hashable | None, name: str) -> Room | None:
        """The connection is told no more. Returns the room, even if that dropped it; None when there was none."""
        names = self._subscribed_by.get(connection)
        if names is None or name not in names:
            return self.rooms.get(name)
        names.remove(name)
        if not names:
            del self._subscribed_by[connection]
        room = self.rooms[name]
        room.subscribers.remove(connection)
        self._drop_if_empty(room)
        return room

    def changed_rooms(self, since: int) -> list[RoomDelta]:
        """What subscribers have to be told of what changed after `since`, the version of the last flush."""
        deltas: list[RoomDelta] = []
        for room in self.rooms.newer_than(since):
            turned = self._settle(room)
            if not room.subscribers:
                continue
            if room.crowded:
                deltas.append(RoomDelta(room, []))
            elif turned:
                members = [member for member in room.members.newer_than(UNLISTED) if not member.left]
                deltas.append(RoomDelta(room, members, full=True))
            else:
                deltas.append(RoomDelta(room, room.members.newer_than(since)))
        return deltas

    def _settle(self, room: Room) -> bool:
        """Whether the room is crowded; True when it was until now. Cursors from before that have missed too much."""
        if not room.crowded:
            if room.shown > self._roster_limit:
                room.crowded = True
                room.told_count = None  # what was told of an earlier crowd, nobody need remember
            return False
        if room.shown > self._roster_again:
            return False
        room.crowded = False
        room.members.floor = max(room.members.floor, self._counter.version)
        return True

    def rooms_of(self, connection: Hashable) -> Collection[str]:
        """Names of the rooms that the connection subscribes to."""
        return self._subscribed_by.get(connection, ())

    def drop_expired(self, now_ms: int, limit: int) -> None:
        """Forgets members who left longer ago than the retention: at most `limit`, and more of very many."""
        limit += drop_share(len(self._left))
        while self._left and limit > 0:
            member, (drop_at_ms, room) = next(iter(self._left.items()))
            if drop_at_ms > now_ms:
                return
            limit -= 1
            del self._left[member]
            room.members.drop(member.record.user_id, member.version)
            member.version = UNLISTED

    # Watches.

    def watch(self, connection: Hashable, user_ids: Iterable[str]) -> None:
        """The connection is told of these users' changes, too."""
        mine = self._watched_by.setdefault(connection, set())
        for user_id in user_ids:
            if user_id not in mine:
                mine.add(user_id)
                self._enlist(connection, user_id)
        if not mine:
            del self._watched_by[connection]

    def unwatch(self, connection: Hashable, user_ids: Iterable[str]) -> None:
        """Of these users no more."""
        mine = self._watched_by.get(connection)
        if mine is None:
            return
        for user_id in user_ids:
            if user_id in mine:
                mine.remove(user_id)
                self._unlist(connection, user_id)
        if not mine:
            del self._watched_by[connection]

    def watches_of(self, connection: Hashable) -> Collection[str]:
        """Ids of the users that the connection watches."""
        return self._watched_by.get(connection, ())

    def forget(self, connection: Hashable) -> list[Room]:
        """The connection ended. Returns the rooms it subscribed to."""
        for user_id in self._watched_by.pop(connection, ()):
            self._unlist(connection, user_id)
        rooms: list[Room] = []
        for name in tuple(self._subscribed_by.get(connection, ())):
            room = self.unsubscribe(connection, name)
            if room is not None:
                rooms.append(room)
        return rooms

    def _enlist(self, connection: Hashable, user_id: str) -> None:
        watchers = self.watchers.get(user_id, ())
        if isinstance(watchers, set):
            watchers.add(connection)
        elif len(watchers) < FEW:
            self.watchers[user_id] = (*watchers, connection)
        else:
            self.watchers[user_id] = {*watchers, connection}

    def _unlist(self, connection: Hashable, user_id: str) -> None:
        watchers = self.watchers[user_id]
        if isinstance(watchers, set):
            watchers.remove(connection)
        else:
            watchers = self.watchers[user_id] = tuple(each for each in watchers if each != connection)
        if not watchers:
            del self.watchers[user_id]
