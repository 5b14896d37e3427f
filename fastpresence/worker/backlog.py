"""What connections have asked for and get in a later turn, since there was enough to answer in this one.

    answers of a turn over ANSWERS, PIPELINED requests, or a turn over SLICE_S --begin--> held: no more is read of it
        --> a turn each, while its socket takes what it is sent --> empty: let go

So whoever asks for much with little makes the server hold what one turn may answer, not what he may ask for; and a
crowd that asks for what takes long does not keep those waiting who ask for little. The engine bounds what waits here:
one visit's messages, or the requests in one read.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any, Final, Protocol

from fastpresence._native.engine import Engine

__all__ = ["ANSWERS", "FURTHER", "HEAVY", "LONG", "PIPELINED", "PUT_OFF", "SLICE_S", "Backlog"]

#: Bytes of answers that may wait for a connection before the next of its requests is put off.
ANSWERS: Final = 65_536
#: Bytes of an answer from which on that is looked at: of smaller ones a turn has not that many.
LONG: Final = 2048
#: Bytes of a message from which on the clock is looked at: most shorter ones take microseconds.
HEAVY: Final = 256
#: Shorter messages of connections that have had one in this batch, between two looks at the clock.
FURTHER: Final = 16
#: What waits is a request that was decoded already, beside the kinds of the engine's events.
PUT_OFF: Final = -1
#: HTTP requests of one connection in one turn.
PIPELINED: Final = 16
#: Seconds of a turn after which what may take long is put off, and seconds that are spent here.
SLICE_S: Final = 0.005


class Owner(Protocol):
    """A connection's; compared by identity."""

    @property
    def handle(self) -> int: ...


class Backlog(dict[Owner, "deque[Any]"]):
    """Who waits, and what for. One for a worker; nearly always empty, which a dict can tell at no cost.

    `carry_out(owner, item)` does one of the things that were put off, and raises nothing.
    """

    __slots__ = ("_carry_out", "_engine", "_loop", "_scheduled")

    def __init__(self, loop: asyncio.AbstractEventLoop, engine: Engine, carry_out: Callable[[Any, Any], None]) -> None:
        super().__init__()
        self._loop = loop
        self._engine = engine
        self._carry_out = carry_out
        self._scheduled = False

    def is_full(self, handle: int) -> bool:
        """Whether the connection has answers enough for one turn."""
        return self._engine.waiting(handle) > ANSWERS

    def begin(self, owner: Owner, *items: Any) -> None:
        """From now on this connection waits, for these things too."""
        if owner not in self:
            self[owner] = deque()
            self._engine.hold(owner.handle, True)
        self[owner].extend(items)
        self.kick()

    def add(self, owner: Owner, item: Any) -> None:
        """One thing more that a connection which waits has asked for."""
        self[owner].append(item)

    def take(self, owner: Owner) -> "deque[Any] | None":
        """What a connection still waits for, which is no more the backlog's; None for one that does not."""
        return self.pop(owner, None)

    def kick(self) -> None:
        """Go on in the next turn."""
        if self and not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._turn)

    def _turn(self) -> None:
        """For each connection whose socket took everything, until it has enough again."""
        self._scheduled = False
        until_s = self._loop.time() + SLICE_S
        did = False
        for owner in list(self):
            if self._engine.lagging(owner.handle):
                continue  # its socket is full: `drained` kicks
            items = self.take(owner)
            if items is None:
                continue  # ended meanwhile
            did = True
            while items and owner not in self:
                self._carry_out(owner, items.popleft())
                if items and self._loop.time() >= until_s:
                    self.begin(owner)
            if owner in self:
                self[owner].extend(items)
            else:
                self._engine.hold(owner.handle, False)
            if self._loop.time() >= until_s:
                break
        if did:
            self._engine.send()
            self.kick()
