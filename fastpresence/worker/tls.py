"""TLS connections: OpenSSL between uvloop's transports and the same engine.

    listener -> accept -> silent -> its hello is here -> its turn -> transport -> Carried --feed--> engine
                                                         transport <- Carried <--write-- engine

The engine holds a record for each as for any other connection, from the accept on: frames, deadlines, audiences and
closing are its own. Only the two ends differ, and they are here. A transport whose buffer is over its mark counts as a
full socket.

Who has not said a whole hello costs a descriptor and no transport. Who has gets a turn: so many in a turn of the loop,
one of each network after the other, so that a crowd keeps those of other networks waiting for one handshake of its own.
"""

import asyncio
import contextlib
import fcntl
import functools
import logging
import select
import socket
import ssl
import sys
import termios
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Final, cast

from fastpresence._native.engine import Engine
from fastpresence.errors import StartError
from fastpresence.http import HttpError, answer_error
from fastpresence.logs import Repeats

__all__ = ["TlsFront", "context"]

LOG: Final = logging.getLogger("fastpresence.worker")

#: New connections, and those who have something to say, in one turn of the loop, as in the engine.
ACCEPTS: Final = 64
#: Handshakes that begin in one turn of the loop: a quarter of a millisecond each, or one with an RSA key.
HELLOS: Final = 8
#: Handshakes under way, some 50 KB each. For one more the oldest is given up: an honest one takes a round trip.
UNDER_WAY: Final = 1000
#: The head of a TLS record (RFC 8446, section 5.1): its type, an old version, its length.
HEAD: Final = 5
HANDSHAKE: Final = b"\x16\x03"
RECORD: Final = 16_384
#: Bytes that a transport may hold for a reader who does not read, beside the socket's own buffer.
BUFFER: Final = 65_536
#: For those that we have no room for, as the engine says it.
FULL: Final = answer_error(HttpError(503, "unavailable", "too many connections now", (("Retry-After", "5"),)))
CROWDED: Final = answer_error(
    HttpError(429, "too_many", "too many connections of this address", (("Retry-After", "5"),))
)
#: Of those that we have no room for so many at once are told so, which takes a handshake; the others are hung up on.
REFUSALS: Final = 8
#: Seconds that one of them has for it.
REFUSAL_S: Final = 2.0


def context(cert: str, key: str) -> ssl.SSLContext:
    """What the public port speaks: TLS 1.2 and 1.3, forward secrecy, no compression. Raises StartError."""
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.minimum_version = ssl.TLSVersion.TLSv1_2
    made.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION | ssl.OP_CIPHER_SERVER_PREFERENCE
    made.set_ciphers("ECDHE+AESGCM:ECDHE+CHACHA20")  # of TLS 1.2; those of 1.3 are all good
    made.set_alpn_protocols(["http/1.1"])
    try:
        made.load_cert_chain(cert, key)
    except OSError as error:  # SSLError is one
        raise StartError(
            f"server.tls_cert and server.tls_key ({cert}, {key}) are not a certificate and its key in PEM:"
            f" {error.strerror or error}"
        ) from None
    return made


def has_hello(client: socket.socket) -> bool:
    """Whether the first record has come as a whole. Raises OSError when it is no handshake, or what it says is over."""
    head = client.recv(HEAD, socket.MSG_PEEK)
    size = int.from_bytes(head[3:])
    if not head or not HANDSHAKE.startswith(head[:2]) or size > RECORD:
        raise ConnectionError("no TLS")
    waiting = int.from_bytes(fcntl.ioctl(client, termios.FIONREAD, bytes(4)), sys.byteorder)
    return len(head) == HEAD and waiting >= HEAD + size


class Secured(asyncio.Protocol):
    """One TLS connection over a transport for TCP. uvloop's own would keep 256 KB for each, of which little is used."""

    __slots__ = ("_context", "_incoming", "_is_ended", "_is_open", "_outgoing", "_tls", "_transport")

    def __init__(self, context: ssl.SSLContext) -> None:
        self._context = context
        self._transport: asyncio.Transport | None = None
        self._is_open = False  # the handshake is done
        self._is_ended = False  # we send no more

    def opened(self) -> None:
        """The handshake is done."""

    def came(self, data: bytes) -> None:
        """This was said."""

    def refused(self) -> None:
        """There is no handshake to be had with it."""

    # The transport's side.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=BUFFER)
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = self._context.wrap_bio(self._incoming, self._outgoing, server_side=True)

    def data_received(self, data: bytes) -> None:
        self._incoming.write(data)
        said: list[bytes] = []
        more = True
        try:
            if not self._is_open:
                self._tls.do_handshake()
                self._is_open = True
                self.opened()
            while more and (self._incoming.pending or self._tls.pending()):
                said.append(self._tls.read(RECORD))
                more = bool(said[-1])
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLError:
            more = False
            if not self._is_open:
                self.refused()
            self._flush()
            self._is_ended = True  # OpenSSL takes nothing more
        self._flush()
        if said:
            self.came(b"".join(said) if len(said) > 1 else said[0])
        if not more and self._transport is not None:
            self.end()  # it says no more, or nothing that makes sense: what it was answered goes out
            self._transport.close()

    def _flush(self) -> None:
        """What TLS has to say goes out."""
        if self._outgoing.pending and self._transport is not None and not self._is_ended:
            self._transport.write(self._outgoing.read())

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None

    # What is said.

    def write(self, data: bytes) -> None:
        """Send these bytes behind all before."""
        if self._is_open and not self._is_ended:
            left = memoryview(data)
            while left:
                left = left[self._tls.write(left) :]
            self._flush()

    def end(self) -> None:
        """Nothing more comes from us: close once everything is sent, and the other end has closed, too."""
        if self._transport is None or self._is_ended:
            return
        if self._is_open:
            with contextlib.suppress(ssl.SSLError):  # it wants to read the other end's goodbye
                self._tls.unwrap()
            self._flush()
        self._is_ended = True
        self._transport.write_eof()


class Carried(Secured):
    """One that the engine knows: its carrier."""

    __slots__ = ("_engine", "_full", "_handle", "_held", "_note", "_reads", "_settled", "address", "stop")

    def __init__(
        self,
        engine: Engine,
        context: ssl.SSLContext,
        address: str,
        note: Callable[[str], None],
        settled: Callable[["Carried"], None],
    ) -> None:
        super().__init__(context)
        self._engine = engine
        self._note = note
        self._settled = settled
        self._full = False
        self._held = False
        self._reads = True
        self.address = address
        self.stop: Callable[[], object] | None = None  #: ends it while there is no transport yet
        #: Counted, and its time runs, from here on: half a handshake is a connection like half a request.
        self._handle: int | None = engine.adopt(self)

    @property
    def is_known(self) -> bool:
        """Whether the engine has it: not at a limit of connections, nor after its end."""
        return self._handle is not None

    @property
    def network(self) -> int:
        """What limits by address count it by."""
        return 0 if self._handle is None else self._engine.network(self._handle)

    # The transport's side.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        if self._handle is None:  # cut off in this very moment
            transport.abort()  # type: ignore[attr-defined]

    def opened(self) -> None:
        self._settled(self)

    def came(self, data: bytes) -> None:
        if self._handle is not None and data:
            self._engine.feed(self._handle, data)

    def refused(self) -> None:
        self._note(self.address)

    def pause_writing(self) -> None:
        self._full = True
        if self._handle is not None and self._transport is not None:
            self._engine.full(self._handle)
            self._read_or_not()

    def resume_writing(self) -> None:
        self._full = False
        if self._handle is None or self._transport is None:
            return
        self._engine.drained(self._handle)
        if self._full and self._handle is not None:  # what had waited filled it again
            self._engine.full(self._handle)
        self._read_or_not()

    def _read_or_not(self) -> None:
        """Who does not drain its answers is not read from, nor who has asked for enough already."""
        reads = not (self._full or self._held)
        if self._transport is None or self._transport.is_closing() or reads is self._reads:
            return
        self._reads = reads
        if reads:
            self._transport.resume_reading()
        else:
            self._transport.pause_reading()

    def connection_lost(self, error: Exception | None) -> None:
        super().connection_lost(error)
        self.fail()

    def fail(self) -> None:
        """It is over from the other side, or never came to be."""
        if self._handle is not None:
            self._engine.lost(self._handle)

    # The engine's side.

    def hold(self, held: bool) -> None:
        """Read no more, or go on."""
        self._held = held
        self._read_or_not()

    def cut(self) -> None:
        """The engine has let go of it."""
        self._handle = None
        self._settled(self)
        if self._transport is not None:
            self._transport.abort()
        elif self.stop is not None:
            self.stop()


class Refused(Secured):
    """One that we have no room for: it is told so, `over` when that is done or took too long."""

    __slots__ = ("_answer", "_loop", "_over", "_timer")

    def __init__(
        self, loop: asyncio.AbstractEventLoop, context: ssl.SSLContext, answer: bytes, over: Callable[["Refused"], None]
    ) -> None:
        super().__init__(context)
        self._loop = loop
        self._answer = answer
        self._over = over

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._timer = self._loop.call_later(REFUSAL_S, transport.abort)  # type: ignore[attr-defined]

    def opened(self) -> None:
        self.write(self._answer)
        self.end()

    def connection_lost(self, error: Exception | None) -> None:
        super().connection_lost(error)
        self._timer.cancel()
        self._over(self)


class TlsFront:
    """Accepts on the public port where it speaks TLS. One for a worker."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        engine: Engine,
        repeats: Repeats,
        context: ssl.SSLContext,
        *,
        send_buffer: int,
    ) -> None:
        self.context = context  #: of new connections: another one for another certificate
        self._loop = loop
        self._engine = engine
        self._repeats = repeats
        self._send_buffer = send_buffer
        self._listener: socket.socket | None = None
        self._hellos = select.epoll()
        self._silent: dict[int, tuple[socket.socket, Carried]] = {}  # by descriptor
        self._waiting: OrderedDict[int, deque[tuple[socket.socket, Carried]]] = OrderedDict()  # by network
        self._under_way: dict[Carried, None] = {}  # handshakes, the oldest first
        self._refusing: set[Refused] = set()
        self._begun: set[asyncio.Task[object]] = set()  # whose transports come in this turn of the loop

    def listen(self, fd: int) -> None:
        """Accept from this listening socket; it stays the caller's."""
        self._listener = socket.socket(fileno=fd)
        self._listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, self._send_buffer // 2)  # the kernel doubles it
        self._loop.add_reader(fd, self._accept)
        self._loop.add_reader(self._hellos.fileno(), self._hear)

    def close(self) -> None:
        """Accept no more."""
        if self._listener is not None:
            self._loop.remove_reader(self._listener.fileno())
            self._listener.detach()
            self._listener = None
            self._loop.remove_reader(self._hellos.fileno())
            self._hellos.close()

    def _accept(self) -> None:
        listener = self._listener
        if listener is None:
            return
        for _ in range(ACCEPTS):
            try:
                client, address = listener.accept()
            except BlockingIOError:
                return
            except OSError as error:  # out of descriptors, or it is gone already
                self._repeats.log(
                    LOG, logging.WARNING, "rejected handshake", now_s=self._loop.time(), reason=str(error)
                )
                self._loop.remove_reader(listener.fileno())
                self._loop.call_later(0.1, self._listen_again)
                return
            client.setblocking(False)
            carried = Carried(self._engine, self.context, str(address[0]), self._note, self._settled)
            if carried.is_known:
                fd = client.fileno()
                self._silent[fd] = client, carried
                carried.stop = functools.partial(self._drop, fd)
                self._hellos.register(fd, select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLET)
            elif len(self._refusing) < REFUSALS:
                answer = CROWDED if self._engine.has_room else FULL
                refused = Refused(self._loop, self.context, answer, self._refusing.discard)
                self._refusing.add(refused)
                self._connect(client, refused)
            else:
                client.close()

    def _listen_again(self) -> None:
        if self._listener is not None:
            self._loop.add_reader(self._listener.fileno(), self._accept)

    def _drop(self, fd: int) -> None:
        """It never said a whole hello."""
        client, _ = self._silent.pop(fd)
        client.close()

    def _hear(self) -> None:
        """Some have said something, or are gone."""
        for fd, events in self._hellos.poll(0, ACCEPTS):
            client, carried = self._silent[fd]
            if events & ~select.EPOLLIN:  # gone
                carried.fail()
                continue
            try:
                if not has_hello(client):
                    continue
            except OSError:
                self._note(carried.address)
                carried.fail()
                continue
            del self._silent[fd]
            self._hellos.unregister(fd)
            carried.stop = client.close
            if not self._waiting:
                self._loop.call_soon(self._begin)
            self._waiting.setdefault(carried.network, deque()).append((client, carried))

    def _begin(self) -> None:
        """Handshakes of one turn, of one network after the other."""
        for _ in range(HELLOS):
            network, crowd = self._waiting.popitem(last=False)
            client, carried = crowd.popleft()
            if crowd:
                self._waiting[network] = crowd
            if carried.is_known:
                carried.stop = None
                if len(self._under_way) >= UNDER_WAY:
                    next(iter(self._under_way)).fail()
                self._under_way[carried] = None
                self._connect(client, carried)
            if not self._waiting:
                return
        self._loop.call_soon(self._begin)

    def _settled(self, carried: Carried) -> None:
        """Its handshake is done, or nothing comes of it."""
        self._under_way.pop(carried, None)

    def _connect(self, client: socket.socket, secured: Secured) -> None:
        """Give it a transport."""
        task = self._loop.create_task(self._loop.connect_accepted_socket(lambda: secured, client))
        self._begun.add(task)
        task.add_done_callback(self._begun.discard)

    def _note(self, address: str) -> None:
        self._repeats.log(
            LOG, logging.WARNING, "rejected handshake", now_s=self._loop.time(), address=address, reason="TLS"
        )
