"""The end of a worker: newcomers are refused, every client gets its own moment to leave, then it is over.

Stop --> 503 for handshakes; `draining` to each, some in a turn --> 1012 to each at its moment
     --> closing handshakes --> done                 (nobody left: at once)

| FIRST |  a step a client, spread ...  | SHARE    the rest: closing handshakes | drain_time
"""

import asyncio
import time
from collections.abc import Callable
from typing import Final

from fastpresence.messages import Draining
from fastpresence.worker.peer import Peer
from fastpresence.worker.worker import Worker

__all__ = ["drain"]

#: How much of the drain passes before the first client has to go: meanwhile newcomers hear of it (503), and whoever
#: looks at /readyz. No client has more of it to itself either, so that a few are not kept for long.
FIRST: Final = 0.05
#: How much of the drain has passed when the last one goes; the rest is for what comes after.
SHARE: Final = 0.8
#: Seconds of a turn that are spent here: some hundred clients.
SLICE_S: Final = 0.002
#: Seconds that the closing handshakes may take, and that even a drain of 0 leaves them.
CLOSE_WAIT_S: Final = 1.0
CLOSE_LEAST_S: Final = 0.5
LOOK_EVERY_S: Final = 0.01


async def drain(worker: Worker, drain_time: float) -> None:
    """Send every client away within `drain_time` seconds, soon where there are few. Over when nobody is left."""
    worker.draining = True
    begun_s = time.monotonic()
    peers = [owner for owner in worker.engine.owners() if type(owner) is Peer]
    step = min(FIRST, (SHARE - FIRST) / max(1, len(peers)))
    moments_s = [begun_s + drain_time * (FIRST + number * step) for number in range(len(peers))]
    turn = _Turn(worker)
    for peer, moment_s in zip(peers, moments_s, strict=True):
        if not peer.closed:
            peer.send(Draining(max(0, round((moment_s - time.monotonic()) * 1000))))
            await turn.go_on()
    worker.engine.send()
    for peer, moment_s in zip(peers, moments_s, strict=True):
        await _until(moment_s, lambda: not worker.peers)
        if not peer.closed:
            _send_away(worker, peer)
            await turn.go_on()
    last_s = max(min(time.monotonic() + CLOSE_WAIT_S, begun_s + drain_time), begun_s + CLOSE_LEAST_S)
    await _until(last_s, lambda: not worker.engine.stats()["connections"])


async def _until(moment_s: float, is_over: Callable[[], bool]) -> None:
    """Wait for a moment, or for the end of it all."""
    while not is_over():
        left_s = moment_s - time.monotonic()
        if left_s <= 0:
            return
        await asyncio.sleep(min(left_s, LOOK_EVERY_S))


class _Turn:
    """A turn of the loop, for whoever has something to do for each of a crowd."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._until_s = time.monotonic() + SLICE_S

    async def go_on(self) -> None:
        """In this turn, or, where enough of it is spent, in the next one."""
        if time.monotonic() >= self._until_s:
            self._worker.engine.send()
            await asyncio.sleep(0)
            self._until_s = time.monotonic() + SLICE_S


def _send_away(worker: Worker, peer: Peer) -> None:
    worker.lose_session(peer, worker.engine.heard_ms(peer.handle), worker.now())
    peer.close(1012, "this server is going away")
    worker.engine.send()
