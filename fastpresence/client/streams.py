"""What the user of the client iterates over: changes, messages, calls and what happens in one, each bounded.

    Changes   conflates per user and room: who reads slowly gets the latest state, not a backlog
    Mailbox   keeps the newest of what comes only once, drops the oldest and counts them

An iterator ends when the client is left, and raises when the client stopped for good. Event-loop thread only.
"""

import asyncio
from collections import OrderedDict, deque
from typing import Generic, TypeVar

from msgspec import structs

from fastpresence.client.roster import Change
from fastpresence.errors import FastPresenceError

__all__ = ["Changes", "Mailbox"]

T = TypeVar("T")


class _Stream(Generic[T]):
    """An iterator that other code fills; several tasks may wait on it."""

    def __init__(self) -> None:
        self._waiters: deque[asyncio.Future[None]] = deque()
        self._ended = False
        self._error: FastPresenceError | None = None

    def __aiter__(self) -> "_Stream[T]":
        return self

    async def __anext__(self) -> T:
        while not self:
            if self._error is not None:
                raise self._error
            if self._ended:
                raise StopAsyncIteration
            waiter = asyncio.get_running_loop().create_future()
            self._waiters.append(waiter)
            try:
                await waiter
            except asyncio.CancelledError:
                if waiter.done() and not waiter.cancelled():
                    self._wake()  # the turn was ours; give it to the next
                raise
        return self._take()

    def __len__(self) -> int:
        """How many are waiting to be read."""
        raise NotImplementedError

    def _take(self) -> T:
        raise NotImplementedError

    def _wake(self) -> None:
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return

    def end(self, error: FastPresenceError | None = None) -> None:
        """Nothing more comes; what is there can still be read. A later end changes nothing."""
        if self._ended:
            return
        self._ended = True
        self._error = error
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)
        self._waiters.clear()


class Changes(_Stream[Change]):
    """Changes since this object was made. Its size is bounded by the users seen, each once per room."""

    def __init__(self) -> None:
        super().__init__()
        self._changes: OrderedDict[tuple[str, str | None], Change] = OrderedDict()

    def __len__(self) -> int:
        return len(self._changes)

    def put(self, change: Change) -> None:
        """Add a change; one of the same user that nobody has read yet becomes one with it."""
        key = (change.user_id, change.room)
        waiting = self._changes.pop(key, None)
        if waiting is not None:
            change = structs.replace(change, previous=waiting.previous)
        self._changes[key] = change
        self._wake()

    def _take(self) -> Change:
        return self._changes.popitem(last=False)[1]


class Mailbox(_Stream[T]):
    """Messages, say, read once each, at most `limit` waiting; `dropped` counts those that were not read in time."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self.dropped = 0
        self._messages: deque[T] = deque()
        self._limit = limit

    def __len__(self) -> int:
        return len(self._messages)

    def put(self, message: T) -> None:
        """Add a message, at the cost of the oldest when there are too many."""
        if len(self._messages) >= self._limit:
            self._messages.popleft()
            self.dropped += 1
        self._messages.append(message)
        self._wake()

    def _take(self) -> T:
        return self._messages.popleft()
