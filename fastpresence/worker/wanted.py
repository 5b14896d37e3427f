"""The status that a peer over its rate wants: the last one, carried out as soon as the rate allows.

    status_change over the rate --put--> one for each peer, the newer in place of the older --due--> carried out

A user who flips a switch too often is no enemy: what others see is where it stays. Costs nothing while it is not used.
"""

import asyncio
from typing import TYPE_CHECKING

from fastpresence.messages import StatusChange

if TYPE_CHECKING:
    from fastpresence.worker.peer import Peer

__all__ = ["Wanted"]


class Wanted(dict["Peer", "tuple[StatusChange, asyncio.TimerHandle]"]):
    """Who waits, and what for. One for a worker; nearly always empty, which a dict can tell at no cost."""

    __slots__ = ("_loop",)

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__()
        self._loop = loop

    def put(self, peer: "Peer", frame: StatusChange, wait_ms: float) -> StatusChange | None:
        """Keep it until the rate allows it, in `wait_ms` at the soonest. Returns the one that it supersedes."""
        before = self.get(peer)
        if before is not None:
            self[peer] = (frame, before[1])
            return before[0]
        self[peer] = (frame, self._loop.call_later(wait_ms / 1000, self._due, peer))
        return None

    def take(self, peer: "Peer") -> StatusChange | None:
        """What the peer wanted and nobody waits for any more."""
        found = self.pop(peer, None)
        if found is None:
            return None
        found[1].cancel()
        return found[0]

    def _due(self, peer: "Peer") -> None:
        frame, _ = self.pop(peer)
        wait_ms = peer.on_wanted(frame)
        if wait_ms is not None:
            self.put(peer, frame, wait_ms)
