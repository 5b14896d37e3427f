"""An engine with a listening loopback socket, and the clients that connect to it: all in one thread, no sleeps.

`Rig.until(condition)` lets both sides go on until the condition holds; the test fails when that takes too long.
"""

import select
import socket
import struct
import time
from collections.abc import Callable
from typing import Any

from fastpresence._native import engine as native
from fastpresence._native.engine import Engine
from fastpresence._native.framing import CLOSE, PING, PONG, TEXT, Frame, Stream, build_masked

KEY = b"\x12\x34\x56\x78"
DEADLINE_S = 10.0
#: Of an engine whose sockets are soon full.
SMALL = {"send_buffer": 4608, "lag_time_ms": 60_000}


class Client:
    """A WebSocket client from behind the handshake on. Reads whenever the rig turns, unless `reading` is False."""

    def __init__(self, address: tuple[str, int], receive_buffer: int | None = None) -> None:
        self.socket = socket.socket()
        if receive_buffer is not None:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.connect(address)
        self.socket.setblocking(False)
        self.handle = -1  #: of the engine's side, once it is open
        self.reading = True
        self.raw = b""  #: all that came
        self.frames: list[Frame] = []  #: what came since `stream` took over
        self.stream: Stream | None = None
        self.ended = False  #: the server's end of the stream came, or a reset

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def send_frame(self, opcode: int, payload: bytes = b"") -> None:
        self.send(build_masked(opcode, payload, KEY))

    def read(self, size: int = 1 << 20) -> int:
        """What is there, at most `size` bytes; returns how many."""
        try:
            data = self.socket.recv(size)
        except BlockingIOError:
            return 0
        except ConnectionResetError:
            data = b""
        if not data:
            self.ended = True
        self.raw += data
        if self.stream is not None:
            self.frames += self.stream.feed(data)
        return len(data)

    def close(self) -> None:
        self.ended = True
        self.socket.close()

    def reset(self) -> None:
        """Go without a word, and leave no port waiting."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close()

    def told(self, payload: bytes) -> int:
        """How often this came in a text frame."""
        return self.frames.count(Frame(TEXT, payload))

    @property
    def codes(self) -> list[int]:
        """The codes of the close frames that came."""
        return [int.from_bytes(frame.payload[:2]) for frame in self.frames if frame.opcode == CLOSE]


class Rig:
    """The engine's owner: keeps every event, decides nothing unless `on_event` does."""

    def __init__(self, **settings: int) -> None:
        self.events: list[tuple[int, Any, int, Any]] = []
        self.on_event: Callable[[tuple[int, Any, int, Any]], None] | None = None
        self.engine = Engine(self._on_batch, **settings)
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self.listener.setblocking(False)
        self.engine.listen(self.listener.fileno())
        self.address: tuple[str, int] = self.listener.getsockname()
        self.clients: list[Client] = []

    def _on_batch(self, events: list[tuple[int, Any, int, Any]]) -> None:
        self.events += events
        if self.on_event is not None:
            for event in events:
                self.on_event(event)

    def of(self, kind: int) -> list[tuple[Any, Any, Any]]:
        """(owner, handle or how, data) of the events of one kind."""
        return [event[1:] for event in self.events if event[0] == kind]

    def stat(self, name: str) -> int:
        return self.engine.stats()[name]

    def turn(self, wait_s: float = 0.0) -> None:
        """What is ready on both sides."""
        reading = [client for client in self.clients if client.reading and not client.ended]
        sockets = [client.socket.fileno() for client in reading]
        select.select([self.engine.fileno(), *sockets], [], [], wait_s)
        self.engine.run()
        self.engine.advance()
        for client in reading:
            client.read()

    def until(self, condition: Callable[[], object], deadline_s: float = DEADLINE_S) -> None:
        end_s = time.monotonic() + deadline_s
        while not condition():
            assert time.monotonic() < end_s, f"still not so after {deadline_s} s: {self.engine.stats()}"
            self.turn(0.01)

    def settle(self) -> None:
        """Until a ping and its pong have gone through every open connection: what was sent before has arrived."""
        self.turn()
        waiting = [client for client in self.clients if client.reading and client.stream is not None]
        waiting = [client for client in waiting if not client.ended and not client.codes]
        for client in waiting:
            client.send_frame(PING, b"settled?")
        pong = Frame(PONG, b"settled?")
        self.until(lambda: all(client.ended or client.frames[-1:] == [pong] for client in waiting))
        for client in waiting:
            if not client.ended:
                client.frames.pop()

    def connect(self, *, receive_buffer: int | None = None) -> Client:
        """A connection that has said something and still speaks HTTP."""
        client = Client(self.address, receive_buffer)
        self.clients.append(client)
        before = len(self.of(native.REQUEST))
        client.send(b"hello")
        self.until(lambda: len(self.of(native.REQUEST)) > before)
        client.handle = self.of(native.REQUEST)[-1][1]
        return client

    def open(self, *, text: bool = True, variant: int = 0, receive_buffer: int | None = None) -> Client:
        """An upgraded one."""
        client = self.connect(receive_buffer=receive_buffer)
        self.engine.upgrade(client.handle, text, variant)
        client.stream = Stream(masked=False, frame_size=1 << 24, message_size=1 << 24)
        return client

    def stall(self, *, size: int = 600_000) -> Client:
        """A client that reads nothing, and whose socket is full."""
        client = self.open(receive_buffer=4096)
        client.reading = False
        assert self.engine.answer(client.handle, b"x" * size)
        self.engine.send()
        assert self.engine.lagging(client.handle)
        return client

    def end(self) -> None:
        """Every client goes; then nothing may be left."""
        for client in self.clients:
            client.close()
        self.clients = []
        try:
            self.until(lambda: self.stat("connections") == 0)
            assert (self.stat("open"), self.stat("lagging")) == (0, 0)
            assert self.engine.owners() == []
        finally:
            self.engine.close_all()
            self.listener.close()


MakeRig = Callable[..., Rig]


class Carrier:
    """A connection that comes through somebody else: keeps what is written to it."""

    def __init__(self, engine: Engine, address: str = "192.0.2.1") -> None:
        self.address = address
        self.came = b""
        self.is_cut = False
        self.handle = engine.adopt(self)

    def write(self, data: bytes) -> None:
        self.came += data

    def end(self) -> None: ...

    def cut(self) -> None:
        self.is_cut = True

    def hold(self, held: bool) -> None: ...
