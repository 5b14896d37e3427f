"""A TCP proxy in front of a server, which is the network of a test: it cuts, stalls and refuses on demand.

    client <-> Proxy <-> server      cut(): RST to both      stall(): no byte passes      refuse(): newcomers are reset
                                     block(): no WebSocket begins, while other HTTP passes

It also keeps what passed, so that a test can see what a client brought and what a server sent.
"""

import asyncio
import contextlib
import socket
import struct
from types import TracebackType
from typing import Final, Self

__all__ = ["Passed", "Proxy"]

_CHUNK: Final = 65_536


class Passed:
    """One connection's bytes so far, each way."""

    def __init__(self) -> None:
        self.from_client = b""
        self.from_server = b""

    @property
    def target(self) -> str:
        """Of the first request."""
        return self.from_client.split(b" ", 2)[1].decode()


class Proxy:
    """One listener on loopback and a free port. Event-loop thread only."""

    def __init__(self, port: int) -> None:
        self.connections: list[Passed] = []  #: every one that was let in, oldest first
        self.attempts = 0  #: those that were refused as well
        self._upstream = port
        self._flows = asyncio.Event()
        self._flows.set()
        self._refusing = False
        self._blocking = False
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    @property
    def url(self) -> str:
        """What to connect to instead of the server."""
        assert self._server is not None
        return f"ws://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/ws"

    # The network's moods.

    def cut(self) -> None:
        """Every connection is reset, at both ends."""
        for writer in list(self._writers):
            _reset(writer)

    def stall(self) -> None:
        """Nothing passes any more, and nobody is told."""
        self._flows.clear()

    def flow(self) -> None:
        """What was held back passes, and everything else."""
        self._flows.set()

    def refuse(self, refusing: bool = True) -> None:
        """Newcomers are reset, or not any more."""
        self._refusing = refusing

    def block(self, blocking: bool = True) -> None:
        """Whoever asks for a WebSocket is told 403, as by a proxy on the way that knows of none, or not any more."""
        self._blocking = blocking

    def lead_to(self, port: int) -> None:
        """Newcomers come to another server."""
        self._upstream = port

    # Beneath.

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        self.cut()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.attempts += 1
        if self._refusing:
            _reset(writer)
            return
        passed = Passed()
        self.connections.append(passed)
        task = asyncio.create_task(self._connect(reader, writer, passed))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, passed: Passed) -> None:
        begun = b""
        if self._blocking:
            try:
                begun = await reader.readuntil(b"\r\n\r\n")
            except (asyncio.IncompleteReadError, ConnectionError):
                writer.close()
                return
            if b"upgrade: websocket" in begun.lower():
                page = b"<html><h1>Blocked</h1></html>"
                writer.write(b"HTTP/1.1 403 Forbidden\r\nContent-Type: text/html\r\nConnection: close\r\n")
                writer.write(b"Content-Length: %d\r\n\r\n%b" % (len(page), page))
                writer.close()
                return
        upstream_reader, upstream_writer = await asyncio.open_connection("127.0.0.1", self._upstream)
        both = {writer, upstream_writer}
        self._writers |= both
        passed.from_client += begun
        upstream_writer.write(begun)
        try:
            await asyncio.gather(
                self._pump(reader, upstream_writer, passed, "from_client"),
                self._pump(upstream_reader, writer, passed, "from_server"),
            )
        except ConnectionError:
            for each in both:
                _reset(each)
        finally:
            self._writers -= both
            for each in both:
                each.close()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, passed: Passed, way: str) -> None:
        while data := await reader.read(_CHUNK):
            await self._flows.wait()
            setattr(passed, way, getattr(passed, way) + data)
            writer.write(data)
            await writer.drain()
        await self._flows.wait()
        with contextlib.suppress(OSError):
            writer.write_eof()


def _reset(writer: asyncio.StreamWriter) -> None:
    sock = writer.get_extra_info("socket")
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
