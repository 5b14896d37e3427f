"""An echo application on the server's own engine, HTTP parser, handshake and compression, for conformance suites.

    python -m tests.support.echo --port N [--deflate] [--max-message BYTES]

One message back for each, of the same kind, on any path, with no token; compressed when that was negotiated and pays.
Prints `listening on 127.0.0.1:PORT` (`--port 0`: any that is free) and runs until SIGTERM or SIGINT.
"""

import argparse
import asyncio
import signal
import socket
from collections.abc import Sequence
from typing import Any, Final

import uvloop

from fastpresence._native import engine as native
from fastpresence._native import framing
from fastpresence._native.engine import Engine
from fastpresence.http import HttpError, Request, RequestParser, answer_error
from fastpresence.worker.deflate import LEAST, BadMessage, deflate, inflate
from fastpresence.worker.handshake import compression, switching, upgrade_key

__all__ = ["FRAGMENTS", "MESSAGE_SIZE", "Echo"]

MESSAGE_SIZE: Final = 32 << 20  #: bytes
FRAGMENTS: Final = 131_072
TICK_S: Final = 0.25
BODY_SIZE: Final = 65_536  #: bytes
#: Milliseconds without a whole message, and in which an answer must have been read: suites send big ones in small bits.
PATIENCE_MS: Final = 120_000


class Client:
    """One connection: HTTP until `open`."""

    __slots__ = ("closed", "deflates", "handle", "open", "parser")

    def __init__(self, handle: int) -> None:
        self.handle = handle
        self.parser = RequestParser(BODY_SIZE)
        self.open = False
        self.deflates = False  #: what is sent to it may be compressed
        self.closed = False


class Echo:
    """Every connection of one listening socket."""

    def __init__(self, *, with_deflate: bool, message_size: int = MESSAGE_SIZE, fragments: int = FRAGMENTS) -> None:
        self._with_deflate = with_deflate
        self._message_size = message_size
        # What may wait behind a full socket: all that one read can ask for. While it waits nothing more is read.
        self._bound = 2 * message_size + (8 << 20)
        self.engine = Engine(
            self._on_batch,
            frame_size=message_size,
            message_size=message_size,
            fragments=fragments,
            heartbeat_timeout_ms=PATIENCE_MS,
            lag_time_ms=PATIENCE_MS,
        )

    def _on_batch(self, events: list[tuple[int, Any, int, Any]]) -> None:
        for kind, owner, what, data in events:
            if kind == native.REQUEST:
                self._on_request(owner, what, data)
            elif kind == native.ENDED:
                if isinstance(owner, Client):
                    owner.closed = True
            elif kind != native.DRAINED and not owner.closed:
                self._on_message(owner, kind, data)

    def _on_request(self, owner: Any, handle: int, data: bytes) -> None:
        client = owner
        if not isinstance(client, Client):
            client = Client(handle)
            self.engine.own(handle, client)
        try:
            for request in client.parser.feed(data):
                self._upgrade(client, request)
        except HttpError as error:
            self.engine.write(handle, answer_error(error))
            self.engine.finish(handle)

    def _upgrade(self, client: Client, request: Request) -> None:
        key = upgrade_key(request)
        agreed = compression(request) if self._with_deflate else None
        client.open = True
        client.deflates = agreed is not None and agreed[1]
        self.engine.write(client.handle, switching(key, None, agreed[0] if agreed else None))
        self.engine.upgrade(client.handle, True, 0, request.after, deflate=agreed is not None)

    def _on_message(self, client: Client, kind: int, data: bytes) -> None:
        opcode = framing.TEXT if kind in (native.TEXT, native.DEFLATED_TEXT) else framing.BINARY
        if kind in (native.DEFLATED_TEXT, native.DEFLATED_BINARY):
            try:
                data = inflate(data, self._message_size)
                if opcode == framing.TEXT:
                    data.decode()
            except BadMessage as error:
                self._close(client, error.close_code, str(error))
                return
            except UnicodeDecodeError:
                self._close(client, 1007, "text is not UTF-8")
                return
        if client.deflates and len(data) >= LEAST:
            smaller = deflate(data)
            if len(smaller) < len(data):
                opcode, data = opcode | framing.COMPRESSED, smaller
        if not self.engine.write(client.handle, framing.build(opcode, data), self._bound):
            self._close(client, 1013, "too much waits already")

    def _close(self, client: Client, code: int, reason: str) -> None:
        client.closed = True
        self.engine.close(client.handle, code, reason.encode())

    async def serve(self, listener: socket.socket) -> None:
        """Until SIGTERM or SIGINT."""
        loop = asyncio.get_running_loop()
        ended = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, ended.set)
        self.engine.listen(listener.fileno())
        loop.add_reader(self.engine.fileno(), self.engine.run)
        print(f"listening on 127.0.0.1:{listener.getsockname()[1]}", flush=True)
        while not ended.is_set():
            self.engine.advance()
            try:
                await asyncio.wait_for(ended.wait(), TICK_S)
            except TimeoutError:
                continue
        loop.remove_reader(self.engine.fileno())
        self.engine.close_all()


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="tests.support.echo", description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--port", type=int, required=True, help="on 127.0.0.1; 0: any that is free")
    parser.add_argument("--deflate", action="store_true", help="agree to permessage-deflate")
    parser.add_argument("--max-message", type=int, default=MESSAGE_SIZE, metavar="BYTES", help="and of one frame")
    parser.add_argument("--max-fragments", type=int, default=FRAGMENTS, metavar="N", help="frames of one message")
    given = parser.parse_args(arguments)
    with socket.create_server(("127.0.0.1", given.port), backlog=1024) as listener:
        listener.setblocking(False)
        echo = Echo(with_deflate=given.deflate, message_size=given.max_message, fragments=given.max_fragments)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(echo.serve(listener))


if __name__ == "__main__":
    main()
