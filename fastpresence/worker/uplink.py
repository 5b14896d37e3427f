"""What this worker tells its node: one queue, bounded in bytes, and one task that writes it to the link.

    tell, offer --> encoded, sent at once while nothing waits --> the node
                       `--> else queued --> run(): joined, sent --^

So what was told before an answer went out is not lost with the worker, unless the node had stopped reading. Two
bounds, since a node that is busy, or stopped, must cost a worker neither memory nor its life: what may be left out is
refused at the lower one (`offer`), what must arrive at the higher one only (`tell`), with a line in the log.
"""

import asyncio
import logging
import socket
from collections import deque
from typing import Final

from fastpresence.link import LinkFrame, encode
from fastpresence.logs import Repeats

__all__ = ["Uplink"]

LOG: Final = logging.getLogger("fastpresence.worker")

#: Bytes that wait before `offer` refuses; some 40,000 transitions.
ENOUGH: Final = 4 * 1024 * 1024
#: Bytes that wait before `tell` refuses, too; some 300,000 revocations.
TOO_MUCH: Final = 16 * 1024 * 1024
#: Bytes that are joined for one write.
CHUNK: Final = 65_536
#: Seconds that `finish` waits for a node that does not read.
LAST_WORDS_S: Final = 0.5


class Uplink:
    """The worker's end of the link, outgoing: a non-blocking socket. While something waits, `run` alone writes."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        link: socket.socket,
        repeats: Repeats,
        enough: int = ENOUGH,
        too_much: int = TOO_MUCH,
    ) -> None:
        self._loop = loop
        self._link = link
        self._enough, self._too_much = enough, too_much
        self._queue: deque[bytes] = deque()
        self._news = asyncio.Event()  # set while something waits
        self._idle = asyncio.Event()  # set while nothing does
        self._idle.set()
        self._room = asyncio.Event()  # cleared when something was refused, set when half of that is free
        self._room.set()
        self._repeats = repeats
        self.queued_bytes = 0  #: with what is being written

    def offer(self, frame: LinkFrame) -> bool:
        """Queue what may be left out; False when it was."""
        if self.queued_bytes >= self._enough:
            self._room.clear()
            return False
        self._put(encode(frame))
        return True

    def tell(self, frame: LinkFrame) -> None:
        """Queue what must arrive."""
        data = encode(frame)
        if self.queued_bytes + len(data) > self._too_much:
            kind = type(frame).__name__
            self._repeats.log(LOG, logging.ERROR, "link full", now_s=self._loop.time(), frame=kind)
            return
        self._put(data)

    def _put(self, data: bytes) -> None:
        if self._idle.is_set():
            try:
                data = data[self._link.send(data) :]
            except BlockingIOError:
                pass
            except OSError:
                return  # the link ended: whoever reads it will say so
            if not data:
                return
        self._queue.append(data)
        self.queued_bytes += len(data)
        self._news.set()
        self._idle.clear()

    async def run(self) -> None:
        """Write what is queued, until cancelled or until the link ends."""
        while True:
            await self._news.wait()
            parts = [self._queue.popleft()]
            size = len(parts[0])
            while self._queue and size + len(self._queue[0]) <= CHUNK:
                parts.append(self._queue.popleft())
                size += len(parts[-1])
            try:
                await self._loop.sock_sendall(self._link, b"".join(parts))
            except OSError:
                return
            self.queued_bytes -= size
            if self.queued_bytes <= self._enough // 2:
                self._room.set()
            if not self._queue:
                self._news.clear()
                self._idle.set()

    async def room(self) -> None:
        """Wait until what may be left out is taken again, and not just for a moment."""
        await self._room.wait()

    async def finish(self) -> None:
        """Wait until everything is written, but not for long."""
        try:
            async with asyncio.timeout(LAST_WORDS_S):
                await self._idle.wait()
        except TimeoutError:
            return
