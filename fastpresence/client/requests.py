"""Requests that wait for their answers, and what has to be remembered of each until then.

Sans-IO. Invariant: each that was added is taken out exactly once, with its answer or with why there is none. Used by
client.core.
"""

from msgspec import Struct, structs

from fastpresence.client.machine import SentFrame
from fastpresence.messages import Status

__all__ = ["Pending", "Requests"]


class Pending(Struct):
    """One request."""

    request: SentFrame
    deadline_ms: float
    before: Status | None = None  #: what a status change took the place of
    covers: tuple[str, ...] = ()  #: watched users whose state the cursor covers once this is answered
    new: tuple[str, ...] = ()  #: users or rooms that were not wanted before
    again: bool = False  #: not the user's own: a subscription of a reconnect
    polled: bool = False  #: told by a poll


class Requests:
    """One client's, by id."""

    def __init__(self) -> None:
        self._pending: dict[int, Pending] = {}
        self._last_id = 0

    def add(self, pending: Pending) -> tuple[int, SentFrame]:
        """Its id, and the frame that bears it."""
        self._last_id += 1
        pending.request = structs.replace(pending.request, id=self._last_id)
        self._pending[self._last_id] = pending
        return self._last_id, pending.request

    def find(self, request_id: int | None) -> Pending | None:
        """The request, while it waits."""
        return None if request_id is None else self._pending.get(request_id)

    def take(self, request_id: int) -> Pending | None:
        """It waits no more; None when it did not before."""
        return self._pending.pop(request_id, None)

    def ids(self) -> list[int]:
        """Of all that wait, oldest first."""
        return list(self._pending)

    def overdue(self, now_ms: float) -> list[int]:
        """Those whose answer should have come by now."""
        return [request_id for request_id, pending in self._pending.items() if now_ms >= pending.deadline_ms]

    def told_by_polls(self) -> list[int]:
        """Those that go out with a poll and not as a frame."""
        return [request_id for request_id, pending in self._pending.items() if pending.polled]

    def next_deadline_ms(self) -> float | None:
        return min((pending.deadline_ms for pending in self._pending.values()), default=None)
