"""What this client wants to see beside the public users: whom it watches, which rooms it is in.

Sans-IO: requests come out. Wishes outlive connections: each new one is asked for all of them again, from the cursors
that the copy of the roster has. What the server does not allow any more is wanted no more; of many users that were
refused together it is found out, in halves, who it was. Used by client.core.
"""

from collections.abc import Iterable
from typing import Final

from msgspec import structs

from fastpresence.client.roster import RosterCopy
from fastpresence.messages import Subscribe, Unsubscribe

__all__ = ["Wishes"]

#: Users in one request (docs/protocol.md, section 2).
USERS_ASKED: Final = 1000
#: Requests refused on one connection that are tried in halves; beyond, what is refused is wanted no more as a whole.
HALVINGS_MAX: Final = 64


class Wishes:
    """One client's wishes. Those for users are kept in the copy, which drops who is seen for no reason."""

    def __init__(self, copy: RosterCopy) -> None:
        self.rooms: dict[str, None] = {}
        self._copy = copy
        self._halvings = 0

    @property
    def any(self) -> bool:
        return bool(self.rooms or self._copy.watched)

    def watch(self, user_ids: list[str]) -> tuple[str, ...]:
        """These users too; those of them that were not watched before."""
        new = tuple(user_id for user_id in user_ids if user_id not in self._copy.watched)
        self._copy.watch(user_ids)
        return new

    def join(self, room: str) -> tuple[str, ...]:
        """This room too; it, when it was not wanted before."""
        new = () if room in self.rooms else (room,)
        self.rooms[room] = None
        return new

    def see_no_more(self, request: Unsubscribe) -> None:
        """The copy is done with these. A room may be wanted again by now."""
        self._copy.unwatch(request.user_ids or ())
        for room in request.rooms or ():
            self._copy.leave_room(room)

    def drop(self, user_ids: Iterable[str], rooms: Iterable[str]) -> None:
        """These are wanted no more: the server does not allow them."""
        self._copy.unwatch(user_ids)
        for room in rooms:
            self.rooms.pop(room, None)
            self._copy.leave_room(room)

    def again(self) -> tuple[list[Subscribe], tuple[str, ...]]:
        """Everything, on a new connection; and the users whom the cursor will cover once all of it is answered."""
        self._halvings = 0
        watched, cursor = self._copy.watched, self._copy.watch_cursor
        known = tuple(user_id for user_id, covered in watched.items() if covered and cursor is not None)
        new = [user_id for user_id in watched if user_id not in set(known)]
        # Until all answers have come, no cursor covers them for sure: lost before, they start afresh.
        watched.update(dict.fromkeys(known, False))
        cursors = self._copy.room_cursors
        return [
            *(Subscribe(user_ids=batch, cursor=cursor) for batch in _batches(known)),
            *(Subscribe(user_ids=batch) for batch in _batches(new)),
            *(Subscribe(rooms=[room], cursor=cursors.get(room)) for room in self.rooms),
        ], known

    def refused(self, request: Subscribe) -> list[Subscribe]:
        """One of `again` is not allowed: what to ask for instead; nothing, where it is clear what that was."""
        wanted = [user_id for user_id in request.user_ids or () if user_id in self._copy.watched]
        if len(wanted) < 2 or self._halvings >= HALVINGS_MAX:
            self.drop(wanted, request.rooms or ())
            return []
        self._halvings += 1
        half = len(wanted) // 2
        return [structs.replace(request, id=None, user_ids=part) for part in (wanted[:half], wanted[half:])]


def _batches(user_ids: Iterable[str]) -> Iterable[list[str]]:
    ids = list(user_ids)
    return (ids[start : start + USERS_ASKED] for start in range(0, len(ids), USERS_ASKED))
