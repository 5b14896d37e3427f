"""What polls tell, taken into the copy of the roster; and what they ask for, out of what the client wants to see.

Sans-IO. The poller knows when and how much to ask, the copy who is how: this is what lies between them. Used by
client.core.
"""

from collections.abc import Iterable

from fastpresence.client.calls import Farewell
from fastpresence.client.polling import PollAnswer, Poller, PollRequest, RosterAnswer, RosterRequest, Told
from fastpresence.client.roster import Change, RosterCopy
from fastpresence.client.wishes import Wishes
from fastpresence.messages import RoomOccupancy, Status, UserOnlineStatus

__all__ = ["Fallback"]


class Fallback:
    """One client's polls and its copy."""

    def __init__(self, poller: Poller, copy: RosterCopy, wishes: Wishes) -> None:
        self._poller = poller
        self._copy = copy
        self._wishes = wishes

    def ask(self, status: Status | None, farewells: Iterable[Farewell]) -> PollRequest | RosterRequest:
        """The request that is due."""
        return self._poller.ask(self._wishes.rooms, self._copy.watched, status, farewells)

    def take(self, answer: PollAnswer | RosterAnswer, now_ms: float) -> list[Change | RoomOccupancy] | None:
        """The request under way was answered: what happened. None when the answers lead nowhere."""
        asked = self._poller.asked
        if isinstance(answer, RosterAnswer):
            return self._take_roster(answer)
        if isinstance(asked, PollRequest) and answer.more and answer.cursor == asked.cursor:
            return None
        told = self._poller.answered(answer, now_ms)
        if told is None:
            return []
        return self._take_told(told, {room.room: room.count for room in answer.room_occupancy})

    def _take_told(self, told: Told, crowded: dict[str, int]) -> list[Change | RoomOccupancy]:
        copy, part = self._copy, told.part
        happened: list[Change | RoomOccupancy] = []
        if part.whole:
            if crowded.keys() != copy.occupancy.keys() and not told.full:
                self._poller.forget_cursors()  # there are others in the scope: all that is known of them is to be told
            for room in copy.occupancy.keys() - crowded.keys():
                del copy.occupancy[room]
            happened.extend(RoomOccupancy(room, n) for room, n in crowded.items() if copy.crowded(room, n))
            if self._wishes.rooms.keys() >= set(part.rooms) and copy.watched.keys() >= set(part.user_ids):
                copy.cursor = told.cursor  # a socket goes on from here
        happened.extend(copy.take_poll(told.entries, full=told.full, user_ids=part.user_ids, whole=part.whole))
        if told.full or told.entries:
            self._poller.rosters({*self._wishes.rooms, *copy.rooms} - crowded.keys())
        return happened

    def _take_roster(self, answer: RosterAnswer) -> list[Change | RoomOccupancy]:
        room = self._poller.roster_answered()
        if room is None or not (room in self._wishes.rooms or room in self._copy.rooms):
            return []
        if answer.user_status is not None:
            return [*self._copy.take(UserOnlineStatus(answer.user_status, full=True, room=room))]
        return [RoomOccupancy(room, answer.count)] if self._copy.crowded(room, answer.count) else []
