"""The polling fallback: what changed since a cursor, for whoever can't have a socket.

    cursor -> one version -> public users, rooms, watched users, each from its own view -> one list, oldest change first

An answer has at most `PAGE` users: where there is more to tell, its cursor stands at the last one told, and the next
poll goes on from there. Between the pages of a full answer it also says when that answer began: whoever was dropped for
being gone before, was not in it, so that old departures do not make it begin again. Pure: presence core in, what goes
on the wire out.
"""

import re
from bisect import bisect_right
from collections.abc import Collection
from operator import itemgetter
from typing import Any, Final

from fastpresence.presence.audience import Room
from fastpresence.presence.roster import UNLISTED, Record, make_cursor, read_cursor, union_scope
from fastpresence.presence.service import OnlineStatusService

__all__ = ["PAGE", "changes"]

#: Users in one answer, at most: some 200 KB, and some 2 ms.
PAGE: Final = 2000

#: A cursor between two pages of a full answer: an ordinary one, and the version at which that answer began.
_HALFWAY: Final = re.compile(r"([^~]*~[^~]*~[^~]*)~(0|[1-9][0-9]{0,15})", re.ASCII)


def changes(
    service: OnlineStatusService, cursor: str | None, rooms: Collection[str], user_ids: Collection[str]
) -> dict[str, Any]:
    """The body of the answer. Costs what is told, and a look at each room and watched user."""
    return _Answer(service, rooms, user_ids).body(cursor)


#: At which version, who, his record (None: nothing is known of him), whether he left. Entries are made of those alone
#: that the answer has room for.
_Told = tuple[int, str, Record | None, bool]
_version = itemgetter(0)


class _Answer:
    def __init__(self, service: OnlineStatusService, rooms: Collection[str], user_ids: Collection[str]) -> None:
        self._service = service
        self._user_ids = dict.fromkeys(user_ids)
        found = {name: service.audience.rooms.get(name) for name in rooms}
        self._crowded = [room for room in found.values() if room is not None and room.crowded]
        self._rooms = [room for room in found.values() if room is not None and not room.crowded]
        # Nobody is told of by name in a room that is crowded, and nobody is in one that is not there.
        untold = [name for name, room in found.items() if room is None or room.crowded]
        self._scope = union_scope(rooms, user_ids, untold)
        self._told: dict[str, _Told] = {}

    def body(self, cursor: str | None) -> dict[str, Any]:
        since, begun = (None, None) if cursor is None or len(cursor) > 256 else self._since(cursor)
        full = since is None
        if full:
            begun = self._service.version
        reached = self._gather(UNLISTED if since is None else since, full)
        told = sorted(self._told.values(), key=_version)
        if reached < self._service.version:
            del told[bisect_right(told, reached, key=_version) :]
        if len(told) > PAGE:
            del told[PAGE:]
            reached = _version(told[-1])
        status_of = self._service.get_user_status
        body: dict[str, Any] = {
            "user_status": [
                status_of(user_id) if record is None else record.entry(left=left) for _, user_id, record, left in told
            ],
            "cursor": make_cursor(self._service.epoch, self._scope, reached),
            "full": full,
        }
        if reached < self._service.version:
            body["more"] = True
            if begun is not None:
                body["cursor"] += f"~{begun}"
        if self._crowded:
            body["room_occupancy"] = [{"room": room.name, "count": room.shown} for room in self._crowded]
        return body

    def _since(self, cursor: str) -> tuple[int | None, int | None]:
        """The version of a cursor from which on changes tell everything, None for any other text.

        Then the version at which the full answer began that goes on from there; None behind a complete answer. One of
        a wider scope won't do: its holder knows users who are not in this one.
        """
        service = self._service
        match = _HALFWAY.fullmatch(cursor)
        text, begun = (cursor, None) if match is None else (match[1], int(match[2]))
        if not text.startswith(f"{service.epoch}~{self._scope}~"):
            return None, None
        since = read_cursor(text, service.epoch, self._scope)
        known = since if begun is None else begun
        floors = [service.roster.public.floor, *(room.members.floor for room in self._rooms)]
        if self._user_ids:
            floors.append(service.roster.everyone.floor)
        if since is None or known is None or known < max(floors) or max(since, known) > service.version:
            return None, None
        return since, begun

    def _gather(self, since: int, full: bool) -> int:
        """Everyone to tell of, by user; returns the version up to which that is complete."""
        service = self._service
        version = service.version
        reached = version
        everyone, told = service.roster.everyone, self._told
        for user_id in self._user_ids:  # thousands
            watched = everyone.get(user_id)
            if watched is None:
                if full:
                    told[user_id] = (0, user_id, None, False)
            elif watched.version > since:
                told[user_id] = (watched.version, user_id, watched, False)
        for room in self._rooms:
            members, until = room.members.page(since, version, PAGE)
            reached = min(reached, until)
            for member in members:
                left = member.left and not self._is_seen(member.record)
                if not (full and left):
                    self._tell(member.version, member.record, left=left)
        records, until = service.roster.public.page(since, version, PAGE)
        reached = min(reached, until)
        for record in records:
            if not full or record.status != "offline":
                self._tell(record.version, record)
        return reached

    def _tell(self, version: int, record: Record, *, left: bool = False) -> None:
        """The later stamp of two, so that nothing is told before its time; the user's state is the same in each."""
        before = self._told.get(record.user_id)
        if before is None or before[0] <= version:
            self._told[record.user_id] = (version, record.user_id, record, left)

    def _is_seen(self, record: Record) -> bool:
        """Whether a user who left one of the rooms is still told of for another reason."""
        user_id = record.user_id
        if user_id in self._user_ids or user_id in self._service.roster.public:
            return True
        return any(self._shows(room, user_id) for room in self._rooms)

    @staticmethod
    def _shows(room: Room, user_id: str) -> bool:
        member = room.members.get(user_id)
        return member is not None and not member.left
