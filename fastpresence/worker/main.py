"""The worker process: its loop, its listener, its link to the node.

    node --Boot, Revoked--> Worker, Ready --> ... Stats, Reload, Reloaded, Revoke ... --Stop--> drain --> end

A worker that loses its link ends at once: nobody would start it again or hold its port.
"""

import argparse
import asyncio
import gc
import math
import os
import socket
import sys
import time
from collections import deque
from collections.abc import Sequence
from typing import Final

import uvloop

from fastpresence.errors import PeerError
from fastpresence.link import Boot, FrameReader, LinkFrame, Ready, Reload, Reloaded, Revoke, Revoked, Stats, Stop
from fastpresence.logs import setup
from fastpresence.worker.drain import drain
from fastpresence.worker.journal import JournalWriter
from fastpresence.worker.uplink import Uplink
from fastpresence.worker.worker import Worker

__all__ = ["main", "serve"]

STATS_EVERY_S: Final = 2.0


async def serve(link: socket.socket) -> None:
    """Be a worker, from the node's Boot to its Stop or its end."""
    loop = asyncio.get_running_loop()
    node = _Node(loop, link)
    boot = await node.next()
    if boot is None:
        return
    if not isinstance(boot, Boot):
        raise PeerError("the node's first word was no Boot")
    stop_logs = setup(boot.settings.log.level, boot.settings.log.format, worker=boot.worker)
    tasks: list[asyncio.Task[None]] = []
    try:
        worker = Worker(boot.settings, boot.worker, loop, login_jwks=boot.login_jwks)
        uplink = Uplink(loop, link, worker.repeats)
        tasks.append(loop.create_task(uplink.run()))
        journal = JournalWriter(loop, uplink, worker.service.roster)
        worker.tell_node, worker.note = uplink.tell, journal.note
        if not await _learn_revoked(worker, node):
            return
        # Full collections would stop the loop for as long as all peers together take to visit; peers make no cycles.
        gc.collect()
        gc.freeze()
        gc.set_threshold(gc.get_threshold()[0], gc.get_threshold()[1], 1_000_000)
        worker.start(boot.listener_fd)
        with socket.socket(fileno=os.dup(boot.listener_fd)) as listener:
            port = listener.getsockname()[1]
        uplink.tell(Ready(port, os.getpid()))
        tasks += [loop.create_task(_tell_stats(worker, uplink)), loop.create_task(journal.run())]
        try:
            while (frame := await node.next()) is not None:  # else nobody would start us again or hold our port
                if isinstance(frame, Stop):
                    await drain(worker, frame.drain_time)
                    journal.send()
                    await uplink.finish()
                    return
                if isinstance(frame, Reload):
                    uplink.tell(_reload(worker, frame))
                elif isinstance(frame, Revoke):
                    worker.on_revoked(frame.user_id, frame.before)
        finally:
            worker.stop()
            worker.repeats.rest(math.inf)
    finally:
        for task in tasks:
            task.cancel()
        stop_logs()


class _Node:
    """The node's words, one after the other."""

    def __init__(self, loop: asyncio.AbstractEventLoop, link: socket.socket) -> None:
        self._loop = loop
        self._link = link
        self._reader = FrameReader()
        self._buffer = bytearray(65_536)  # taken while there is memory: a worker without must still hear of its end
        self._waiting: deque[LinkFrame] = deque()

    async def next(self) -> LinkFrame | None:
        """The next frame; None at the end of the link."""
        while not self._waiting:
            size = await self._loop.sock_recv_into(self._link, self._buffer)
            if not size:
                return None
            self._waiting.extend(self._reader.feed(bytes(memoryview(self._buffer)[:size])))
        return self._waiting.popleft()

    def put_back(self, frames: Sequence[LinkFrame]) -> None:
        """They come next, in this order."""
        self._waiting.extendleft(reversed(frames))


async def _learn_revoked(worker: Worker, node: _Node) -> bool:
    """Take in what was revoked before this worker's time; False when the link ended. All else can wait."""
    others: list[LinkFrame] = []
    while (frame := await node.next()) is not None:
        if not isinstance(frame, Revoked):
            others.append(frame)
            continue
        now = int(time.time())
        for user_id, before in frame.entries:
            worker.revocations.add(user_id, before, now)
        if frame.is_last:
            node.put_back(others)
            return True
    return False


def _reload(worker: Worker, frame: Reload) -> Reloaded:
    try:
        worker.reload(frame.settings, frame.login_jwks)
    except Exception as error:  # whatever it was: the old settings are in force, and connections are alive
        return Reloaded(frame.generation, str(error) or type(error).__name__)
    return Reloaded(frame.generation)


async def _tell_stats(worker: Worker, uplink: Uplink) -> None:
    while True:
        await asyncio.sleep(STATS_EVERY_S)
        uplink.offer(Stats(connections=worker.engine.stats()["connections"], users=worker.users))


def main() -> None:
    """The process's entry: `--link-fd N` is the socket that it was born with."""
    parser = argparse.ArgumentParser(prog="fastpresence.worker", description="Started by the node; not for people.")
    parser.add_argument("--link-fd", type=int, required=True)
    arguments = parser.parse_args()
    link = socket.socket(fileno=arguments.link_fd)
    link.setblocking(False)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(link))
    sys.exit(0)
