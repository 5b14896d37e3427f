"""What observers of the core know: copies that are built from nothing but what it delivers to them.

    Connection   a socket: watched users and rooms, by what `collect` has for it, and by what a `subscribe` answers
    Poller       polls: one flat copy, by the pages of `worker.poll.changes`
    Mark         a cursor, and the copy of its day: to be brought back later, as after a reconnect

Whatever is delivered must never make a copy refuse it: no entry is older than the one that it replaces.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from fastpresence.messages import StatusEntry
from fastpresence.presence.audience import RoomMember
from fastpresence.presence.roster import Record
from fastpresence.presence.service import OnlineStatusService

__all__ = ["Connection", "Copy", "Mark", "Poller", "apply", "apply_members", "roster", "walk", "whole_room"]

#: By user. Who is not in it is offline to whoever has it.
Copy = dict[str, StatusEntry]
#: How many pages may follow one another: more than there are users is a walk in circles.
PAGES = 12


@dataclass(eq=False)
class Connection:
    """A socket of a user. With a session, or without as an observer."""

    user: str
    watched: Copy = field(default_factory=dict)  # an entry for each
    rooms: dict[str, Copy | int] = field(default_factory=dict)  # a crowded one's count
    jammed: bool = False  # takes no more


@dataclass(eq=False)
class Poller:
    """Asks from time to time, with the cursor that it was given."""

    rooms: frozenset[str] = frozenset()
    users: frozenset[str] = frozenset()
    copy: Copy = field(default_factory=dict)
    cursor: str | None = None
    more: bool = False
    crowded: dict[str, int] = field(default_factory=dict)

    def take(self, body: dict[str, Any]) -> None:
        entries: list[StatusEntry] = body["user_status"]
        assert len({entry.user_id for entry in entries}) == len(entries)
        if body["full"]:
            self.copy = {}
        for entry in entries:
            put(self.copy, entry)
        self.cursor = body["cursor"]
        self.more = body.get("more", False)
        self.crowded = {each["room"]: each["count"] for each in body.get("room_occupancy", ())}


@dataclass
class Mark:
    """`name`: of the room, where it is one's. A crowded room has no copy, but a slow reader's version all the same."""

    version: int
    copy: Copy | None
    name: str = ""


def put(copy: Copy, entry: StatusEntry) -> None:
    """What a client does with an entry."""
    known = copy.get(entry.user_id)
    assert known is None or entry.rev >= known.rev or entry.rev == 0
    if entry.left:
        copy.pop(entry.user_id, None)
    else:
        copy[entry.user_id] = entry


def apply(copy: Copy, records: Iterable[Record]) -> None:
    for record in records:
        put(copy, record.entry())


def apply_members(copy: Copy, members: Iterable[RoomMember]) -> None:
    for member in members:
        put(copy, member.record.entry(left=member.left))


def roster(members: Iterable[RoomMember]) -> Copy:
    return {member.record.user_id: member.record.entry() for member in members if not member.left}


def whole_room(service: OnlineStatusService, name: str) -> Copy | int:
    """What answers a `subscribe` without a cursor."""
    room = service.audience.rooms.get(name)
    if room is None:
        return {}
    return room.shown if room.crowded else roster(room.members.values())


def walk(poller: Poller, ask: Callable[[str | None], dict[str, Any]]) -> None:
    """Asks until there is no more."""
    for _ in range(PAGES):
        poller.take(ask(poller.cursor))
        if not poller.more:
            return
    raise AssertionError(f"there is more and more: {poller.cursor}")
