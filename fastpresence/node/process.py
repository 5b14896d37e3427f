"""One worker process as the node sees it: its pid, its link, what it said of itself.

The process is born with its end of a socket pair and its listening socket; everything else it learns over the link.
"""

import asyncio
import contextlib
import logging
import os
import socket
import sys
import time
from collections.abc import Sequence
from typing import Final

from fastpresence.errors import StartError
from fastpresence.link import Boot, FrameReader, LinkFrame, Stats, encode
from fastpresence.logs import event
from fastpresence.node.timeline import Roll
from fastpresence.settings import Settings

__all__ = ["Worker", "module_argv"]

LOG: Final = logging.getLogger("fastpresence.node")

#: Seconds a worker may live on after it closed its link.
LINGER_TIME: Final = 5.0
#: Bytes that wait for a worker that does not read its link before it is replaced; its successor is told everything.
UNREAD: Final = 8 * 1024 * 1024


def module_argv(module: str) -> list[str]:
    """The command that runs a module of ours. It looks for modules where this process does, and nowhere else."""
    # `-m` would put the working directory in front of everything, where anybody's logging.py may lie (-P: it does not).
    is_from_here = "" in sys.path or os.getcwd() in sys.path
    return [sys.executable, *([] if is_from_here else ["-P"]), "-m", module]


class Worker:
    """One worker process and its link: born by `start`, gone when `gone` returns."""

    def __init__(
        self,
        number: int,
        settings: Settings,
        process: asyncio.subprocess.Process,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        self.number = number
        self.pid = process.pid
        self.started_s = time.monotonic()
        self.stats = Stats(connections=0, users=0)
        self.is_ready = False  #: it listens
        self.roll = Roll(number)
        self.settings = settings  #: that it was born with
        self.generation = 0  #: of the last Reload that it answered
        self._process, self._reader, self._writer = process, reader, writer
        self._frames = FrameReader()

    @classmethod
    async def start(
        cls, number: int, listener: socket.socket, settings: Settings, login_jwks: str | None, argv: Sequence[str]
    ) -> "Worker":
        """A new process with its end of the link and its listener; Boot is on its way."""
        try:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        except OSError as error:
            raise StartError(f"a worker cannot be started (a link for it: {error.strerror})") from None
        # Secrets reach the worker in Boot; its environment need not hold them, nor systemd's socket.
        env = {k: v for k, v in os.environ.items() if k != "NOTIFY_SOCKET" and not k.startswith("FASTPRESENCE_")}
        try:
            process = await asyncio.create_subprocess_exec(
                *argv,
                "--link-fd",
                str(theirs.fileno()),
                stdin=asyncio.subprocess.DEVNULL,
                pass_fds=(theirs.fileno(), listener.fileno()),
                start_new_session=True,
                env=env,
            )
        except OSError as error:
            ours.close()
            raise StartError(f"a worker cannot be started ({argv[0]}: {error.strerror})") from None
        finally:
            theirs.close()
        reader, writer = await asyncio.open_unix_connection(sock=ours)
        worker = cls(number, settings, process, reader, writer)
        worker.send(Boot(settings, number, listener.fileno(), login_jwks))
        return worker

    def send(self, frame: LinkFrame) -> None:
        if self._writer.is_closing():
            return
        if self._writer.transport.get_write_buffer_size() > UNREAD:
            event(LOG, logging.ERROR, "worker does not read", worker=self.number, pid=self.pid)
            self.kill()
            self._writer.transport.abort()
            return
        self._writer.write(encode(frame))

    async def drained(self) -> None:
        """Wait until it has read most of what it was sent; or has ended."""
        with contextlib.suppress(ConnectionError):
            await self._writer.drain()

    async def receive(self) -> list[LinkFrame] | None:
        """The next frames; None at the end of the link."""
        try:
            data = await self._reader.read(65_536)
        except ConnectionError:
            return None
        return self._frames.feed(data) if data else None

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()

    async def gone(self) -> int:
        """Its exit status (negative: the signal), once it is reaped; what outlives its link is killed."""
        self._writer.close()
        try:
            async with asyncio.timeout(LINGER_TIME):
                return await self._process.wait()
        except TimeoutError:
            self.kill()
            return await self._process.wait()
