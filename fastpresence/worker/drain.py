"""The end of a worker: newcomers are refused, every client gets its own moment to leave, then it is over.

Stop --> 503 for handshakes; `draining` to each --> 1012 to each, spread --> closing handshakes --> done
"""

import asyncio
from typing import Final

from fastpresence.messages import Draining
from fastpresence.worker.peer import Peer
from fastpresence.worker.worker import Worker

__all__ = ["drain"]

#: Milliseconds that each client has to itself, where the drain is long enough: a crowd must not return in step.
STEP_MS: Final = 1
#: How much of the drain is for sending clients away; the rest is for what comes after.
SHARE: Final = 0.8
#: Seconds that the closing handshakes may take.
CLOSE_WAIT_S: Final = 1.0
LOOK_EVERY_S: Final = 0.01


async def drain(worker: Worker, drain_time: float) -> None:
    """Send every client away within `drain_time` seconds, soon where there are few."""
    worker.draining = True
    peers = [owner for owner in worker.engine.owners() if type(owner) is Peer]
    step_ms = min(STEP_MS, drain_time * 1000 * SHARE / max(1, len(peers)))
    for number, peer in enumerate(peers):
        after_ms = round(number * step_ms)
        peer.send(Draining(after_ms))
        worker.loop.call_later(after_ms / 1000, _send_away, worker, peer)
    worker.engine.send()
    await asyncio.sleep(len(peers) * step_ms / 1000)
    for _ in range(round(CLOSE_WAIT_S / LOOK_EVERY_S)):
        if not worker.engine.stats()["connections"]:
            return
        await asyncio.sleep(LOOK_EVERY_S)


def _send_away(worker: Worker, peer: Peer) -> None:
    if peer.closed:
        return
    worker.lose_session(peer, worker.engine.heard_ms(peer.handle), worker.now())
    peer.close(1012, "this server is going away")
    worker.engine.send()
