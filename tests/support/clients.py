"""Clients that share no code with ours: one on the websockets library, one that writes every byte itself.

    Clients -> Client: JSON or MessagePack frames -> View: a copy of the roster that obeys `rev`, and all it ever saw
    RawClient: a TCP connection, for handshakes and frames that no library would send

Every wait has a deadline. A `View` outlives its client: a reconnect goes on with it. It fails nobody by itself; what
the protocol rules out (an entry that is older than the one before it, an answer that comes twice) is kept in
`violations`, which `Clients` looks at when it ends.
"""

import asyncio
import base64
import contextlib
import json
import os
import socket
import struct
import time
import zlib
from collections.abc import AsyncIterator, Callable
from types import TracebackType
from typing import Any, Final, Literal, NamedTuple, Self

import msgspec
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed
from websockets.typing import Subprotocol

from tests.support.server import DEADLINE, Server

__all__ = ["Client", "Clients", "Frame", "RawClient", "Sight", "View", "until"]

Frame = dict[str, Any]
Codec = Literal["json", "msgpack"]

#: Answers to requests, by `reply_to`.
ANSWERS: Final = ("ack", "error", "heartbeat_ack", "user_online_status")


async def until(reached: Callable[[], bool], what: str, deadline: float = DEADLINE) -> None:
    """Wait until something that no event tells of is so."""
    give_up = time.monotonic() + deadline
    while not reached():
        assert time.monotonic() < give_up, f"not within {deadline} s: {what}"
        await asyncio.sleep(0.005)


class Sight(NamedTuple):
    """One state of one user, as somebody saw it."""

    status: str
    rev: int
    at_s: float  #: monotonic
    last_seen: int | None


class View:
    """One person's copy of the roster, over all his connections."""

    def __init__(self) -> None:
        self.known: dict[str, Frame] = {}
        self.seen: dict[str, list[Sight]] = {}  #: every state that differed from the one before, oldest first
        self.rooms: dict[str, set[str]] = {}
        self.public: set[str] = set()
        self.cursor: str | None = None  #: of the public users
        self.watch_cursor: str | None = None
        self.room_cursors: dict[str, str] = {}
        self.violations: list[str] = []
        self.epoch: str | None = None
        self._pages: dict[str, list[Frame]] = {}

    def statuses(self, user_id: str) -> list[str]:
        """What this user showed as, in the order it was seen."""
        return [sight.status for sight in self.seen.get(user_id, ())]

    def status(self, user_id: str) -> str | None:
        """What this user shows as now; None when nothing was ever told."""
        entry = self.known.get(user_id)
        return None if entry is None else str(entry["status"])

    def welcome(self, frame: Frame) -> None:
        """A connection begins."""
        self._pages.clear()
        if frame["epoch"] != self.epoch:  # another memory: fences are dropped
            self.epoch = frame["epoch"]
            for entry in self.known.values():
                entry["rev"] = 0

    def take(self, frame: Frame, scope: str, asked: list[str], at_s: float) -> None:
        """A frame of states; `scope`: "public", "watch", or the room's after "room:"."""
        entries: list[Frame] = frame["user_status"]
        for entry in entries:
            if entry["online"] is not (entry["status"] != "offline"):
                self.violations.append(f"online contradicts status: {entry}")
            self._see(entry, at_s)
        room = scope.removeprefix("room:") if scope.startswith("room:") else None
        if room is not None:
            members = self.rooms.setdefault(room, set())
            for entry in entries:
                (members.discard if entry.get("left") else members.add)(entry["user_id"])
        if frame["full"]:
            pages = self._pages.setdefault(scope, [])
            pages.extend(entries)
            if not frame.get("more"):
                self._replace(scope, asked, self._pages.pop(scope), at_s)
        elif scope == "public":
            self.public.update(entry["user_id"] for entry in entries)
        if "cursor" in frame:
            if room is not None:
                self.room_cursors[room] = frame["cursor"]
            elif scope == "watch":
                self.watch_cursor = frame["cursor"]
            else:
                self.cursor = frame["cursor"]

    def _replace(self, scope: str, asked: list[str], entries: list[Frame], at_s: float) -> None:
        listed = {entry["user_id"] for entry in entries}
        before: set[str]
        if scope == "public":
            before, self.public = self.public, listed
        elif scope == "watch":
            before = set(asked)
        else:
            room = scope.removeprefix("room:")
            before, self.rooms[room] = self.rooms.get(room, set()), listed
        for user_id in before - listed:
            if user_id in self.known:
                self._see({**self.known[user_id], "status": "offline", "online": False}, at_s)

    def _see(self, entry: Frame, at_s: float) -> None:
        user_id, rev = entry["user_id"], entry["rev"]
        if not isinstance(rev, int) or not 0 <= rev < 2**53:
            self.violations.append(f"no rev: {entry}")
        before = self.known.get(user_id)
        if before is not None and 0 < rev < before["rev"]:
            self.violations.append(f"an older entry after a newer one: {before} then {entry}")
            return
        self.known[user_id] = dict(entry)
        sights = self.seen.setdefault(user_id, [])
        if not sights or sights[-1].status != entry["status"] or sights[-1].rev != rev:
            sights.append(Sight(entry["status"], rev, at_s, entry["last_seen"]))


class Client:
    """One WebSocket on the websockets library. `Clients.connect` makes it."""

    def __init__(self, connection: ClientConnection, codec: Codec, user_id: str, view: View, *, public: bool) -> None:
        self.user_id = user_id
        self.view = view
        self.frames: list[tuple[float, Frame]] = []  #: everything that came, with when (monotonic, seconds)
        self.code: int | None = None  #: what it was closed with; None while open, 1006 when it broke
        self.last_sent_s = 0.0  #: monotonic: not later than the server's last sign of life from here
        self.last_answer_s = 0.0  #: monotonic: not earlier than the sign of life that was answered last
        self._connection = connection
        self._codec: Codec = codec
        self._public = public
        self._subscriptions: list[list[str]] = []  # users of subscriptions whose state is to come
        self._asked: dict[int | str, list[str]] = {}  # subscriptions that are not answered yet
        self._answered: set[int | str] = set()
        self._inbox: list[Frame] = []
        self._next_id = 0
        self._news = asyncio.Condition()
        self._beating: asyncio.Task[None] | None = None
        self._receiving = asyncio.create_task(self._receive())

    # In.

    async def _receive(self) -> None:
        try:
            async for data in self._connection:
                self._take(data)
                async with self._news:
                    self._news.notify_all()
        except ConnectionClosed:
            pass
        finally:
            await self._connection.wait_closed()
            self.code = self._connection.close_code or 1006
            async with self._news:
                self._news.notify_all()

    def _take(self, data: str | bytes) -> None:
        now_s = time.monotonic()
        if isinstance(data, str) is not (self._codec == "json"):
            self.view.violations.append(f"a frame of the wrong kind: {data!r}")
        frame: Frame = json.loads(data) if isinstance(data, str) else msgspec.msgpack.decode(data)
        self.frames.append((now_s, frame))
        self._inbox.append(frame)
        kind, reply_to = frame["type"], frame.get("reply_to")
        if reply_to is not None:
            if reply_to in self._answered:
                self.view.violations.append(f"a second answer: {frame}")
            self._answered.add(reply_to)
            asked = self._asked.pop(reply_to, None)
            if kind == "ack" and asked:
                self._subscriptions.append(asked)
        if kind in ANSWERS and kind != "user_online_status":
            self.last_answer_s = now_s
        if kind == "welcome":
            self.view.welcome(frame)
        elif kind == "user_online_status" and reply_to is None:
            self._take_states(frame, now_s)

    def _take_states(self, frame: Frame, now_s: float) -> None:
        asked: list[str] = []
        if frame.get("room") is not None:
            scope = f"room:{frame['room']}"
        elif self._subscriptions:
            # Answers are in order: the frames behind the ack of a subscription, up to one with a cursor, are its state.
            scope, asked = "watch", self._subscriptions[0]
            if not frame.get("more"):
                self._subscriptions.pop(0)
        else:
            # What follows is of the public users or of watched ones; only a full one has to be told apart.
            listed = {entry["user_id"] for entry in frame["user_status"]}
            watches = self.view.watch_cursor is not None and not listed & self.view.public and not frame["full"]
            scope = "watch" if watches or not self._public else "public"
        self.view.take(frame, scope, asked, now_s)

    async def take(self, kind: str, *, deadline: float = DEADLINE, **fields: object) -> Frame:
        """The first frame not yet taken of that type and with these fields, as soon as it is there."""

        def find() -> Frame | None:
            for frame in self._inbox:
                if frame["type"] == kind and all(frame.get(key) == value for key, value in fields.items()):
                    return frame
            return None

        async with self._news:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(deadline):
                    await self._news.wait_for(lambda: find() is not None or self.code is not None)
        found = find()
        assert found is not None, f"no {kind} {fields} within {deadline} s; came: {self._inbox}; closed: {self.code}"
        self._inbox.remove(found)
        return found

    async def until(self, reached: Callable[[], bool], what: str = "", deadline: float = DEADLINE) -> None:
        """Wait until what came makes it so."""
        async with self._news:
            try:
                async with asyncio.timeout(deadline):
                    await self._news.wait_for(lambda: reached() or self.code is not None)
            except TimeoutError:
                pass
        assert reached(), f"not within {deadline} s: {what}; closed: {self.code}; came last: {self.frames[-5:]}"

    async def sees(self, user_id: str, status: str, *, rev: int = 0, deadline: float = DEADLINE) -> Sight:
        """Wait until the user shows as `status`, with that `rev` or a later one."""

        def reached() -> bool:
            return self.view.status(user_id) == status and int(self.view.known[user_id]["rev"]) >= rev

        await self.until(reached, f"{self.user_id} sees {user_id} {status}", deadline)
        return self.view.seen[user_id][-1]

    async def ended(self, deadline: float = DEADLINE) -> int:
        """The close code, as soon as the connection is gone."""
        async with self._news, asyncio.timeout(deadline):
            await self._news.wait_for(lambda: self.code is not None)
        assert self.code is not None
        return self.code

    def came(self, kind: str) -> list[Frame]:
        """All frames of that type so far."""
        return [frame for _, frame in self.frames if frame["type"] == kind]

    # Out.

    async def send_bytes(self, data: bytes) -> None:
        """A whole message, as it is."""
        self.last_sent_s = time.monotonic()
        await self._connection.send(data, text=self._codec == "json")

    async def send_value(self, value: object) -> None:
        """Whatever the subprotocol can carry."""
        encode = msgspec.json.encode if self._codec == "json" else msgspec.msgpack.encode
        await self.send_bytes(encode(value))

    async def send(self, kind: str, **fields: object) -> None:
        """One frame."""
        if kind == "subscribe" and "id" in fields and fields.get("user_ids"):
            users = fields["user_ids"]
            assert isinstance(users, list)
            assert isinstance(fields["id"], (int, str))
            self._asked[fields["id"]] = users
        await self.send_value({"type": kind, **fields})

    async def ask(self, kind: str, **fields: object) -> Frame:
        """One request and its answer, whatever that is."""
        self._next_id += 1
        request_id = fields.setdefault("id", self._next_id)
        await self.send(kind, **fields)
        return await self.answer(request_id)

    async def answer(self, request_id: object, *, deadline: float = DEADLINE) -> Frame:
        """The answer to a request that was sent with this id."""

        def find() -> Frame | None:
            for frame in self._inbox:
                same = frame.get("reply_to") == request_id and type(frame.get("reply_to")) is type(request_id)
                if same and frame["type"] in ANSWERS:
                    return frame
            return None

        await self.until(lambda: find() is not None, f"the answer to {request_id!r}", deadline)
        found = find()
        assert found is not None
        self._inbox.remove(found)
        return found

    async def do(self, kind: str, **fields: object) -> Frame:
        """One request that has to be acknowledged."""
        answer = await self.ask(kind, **fields)
        assert answer["type"] == "ack", answer
        return answer

    async def refused(self, kind: str, code: str, **fields: object) -> Frame:
        """One request that has to be refused with this code."""
        answer = await self.ask(kind, **fields)
        assert answer["type"] == "error", answer
        assert answer["code"] == code, answer
        assert answer["message"]
        return answer

    async def beat(self) -> None:
        """One heartbeat and its answer."""
        answer = await self.ask("heartbeat")
        assert answer["type"] == "heartbeat_ack"

    def keep_beating(self, every_s: float) -> None:
        """Beat from now on, until told otherwise or gone."""

        async def beats() -> None:
            with contextlib.suppress(ConnectionClosed):
                while True:
                    await self.send("heartbeat")
                    await asyncio.sleep(every_s)

        self._beating = asyncio.create_task(beats())

    async def stop_beating(self) -> None:
        """Be silent."""
        if self._beating is not None:
            self._beating.cancel()
            await asyncio.gather(self._beating, return_exceptions=True)
            self._beating = None

    async def ping(self) -> None:
        """A WebSocket ping and its pong."""
        self.last_sent_s = time.monotonic()
        pong = await self._connection.ping()
        async with asyncio.timeout(DEADLINE):
            await pong

    # Its end.

    async def close(self, code: int = 1000) -> None:
        """The closing handshake."""
        await self.stop_beating()
        await self._connection.close(code)
        await self._receiving

    async def cut(self) -> None:
        """The network is gone from one moment to the next: a reset, no closing handshake."""
        await self.stop_beating()
        _reset_on_close(self._connection.transport.get_extra_info("socket"))
        self._connection.transport.abort()
        await self._receiving

    async def detach(self) -> None:
        """Go with 1001: the session stays for its grace."""
        await self.close(1001)

    def pause(self) -> None:
        """Read no more from the socket."""
        limit = getattr(self._connection.transport, "set_read_buffer_limits", None)
        if limit is not None:  # TLS has a buffer of its own
            limit(high=4096)
        self._connection.transport.pause_reading()

    def resume(self) -> None:
        """Read again."""
        self._connection.transport.resume_reading()


class Clients:
    """Everybody in one test: closed at its end, and held to what the protocol promises everybody."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.all: list[Client] = []

    async def connect(
        self,
        user_id: str,
        user_type: str = "user",
        *,
        codec: Codec = "json",
        room_id: str | None = None,
        public: bool = True,
        cursor: str | None = None,
        token: str | None = None,
        view: View | None = None,
        receive_buffer: int | None = None,
        url: str | None = None,
        deflate: bool = True,
    ) -> Client:
        """An observer: connected, welcomed and, where it is to be, told of the public users."""
        token = token or self.server.token(user_id, user_type, room_id=room_id)
        query = "".join([f"&cursor={cursor}" if cursor else "", "" if public else "&public=0"]).lstrip("&")
        sock = socket.socket()
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # asyncio does so for sockets it made itself
            if receive_buffer is not None:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
            sock.setblocking(False)
            await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", self.server.port))
            connection = await connect(
                f"{url or self.server.url}{'?' + query if query else ''}",
                sock=sock,
                ssl=self.server.tls,
                subprotocols=[Subprotocol(f"fastpresence.v1.{codec}")],
                additional_headers={"Authorization": f"Bearer {token}"},
                compression="deflate" if deflate else None,
                ping_interval=None,  # a ping is a sign of life: tests send their own
                open_timeout=DEADLINE,
                close_timeout=DEADLINE,
                max_size=None,
                max_queue=None,
                proxy=None,
            )
        except BaseException:
            sock.close()
            raise
        assert connection.subprotocol == f"fastpresence.v1.{codec}"
        client = Client(connection, codec, user_id, view or View(), public=public)
        self.all.append(client)
        welcome = await client.take("welcome")
        assert client.frames[0][1] is welcome
        assert (welcome["user_id"], welcome["user_type"]) == (user_id, user_type)
        if public and cursor is None:
            await client.until(lambda: client.view.cursor is not None, "the snapshot of the public users")
        return client

    async def online(
        self,
        user_id: str,
        user_type: str = "user",
        *,
        status: str | None = None,
        device: str | None = None,
        **kwargs: Any,
    ) -> Client:
        """Connected and present."""
        client = await self.connect(user_id, user_type, **kwargs)
        fields = {"status": status, "device": device}
        await client.do("user_online", **{key: value for key, value in fields.items() if value is not None})
        return client

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await asyncio.gather(*[client.close() for client in self.all if client.code is None], return_exceptions=True)
        for client in self.all:
            await client.stop_beating()
        if exc is None:
            violations = {id(client.view): client.view.violations for client in self.all}
            assert not any(violations.values()), [each for each in violations.values() if each]


def _reset_on_close(sock: Any) -> None:
    """No FIN when it is closed, but RST (socket(7), SO_LINGER)."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


class RawClient:
    """A TCP connection to the server that says exactly what it is told to."""

    TEXT: Final = 0x1
    BINARY: Final = 0x2
    CLOSE: Final = 0x8
    PING: Final = 0x9
    PONG: Final = 0xA
    #: Beside an opcode: RSV1.
    DEFLATED: Final = 0x40

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self.deflates = False  #: permessage-deflate was agreed upon
        self.was_deflated = False  #: the last frame

    @classmethod
    @contextlib.asynccontextmanager
    async def open(cls, server: Server, receive_buffer: int | None = None) -> AsyncIterator[Self]:
        """A connection, closed at the end of the block. `receive_buffer`: the kernel's, in bytes."""
        sock = socket.create_connection(("127.0.0.1", server.port), DEADLINE)
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if receive_buffer is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        name = None if server.tls is None else "127.0.0.1"
        reader, writer = await asyncio.open_connection(sock=sock, ssl=server.tls, server_hostname=name)
        try:
            yield cls(reader, writer)
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    @classmethod
    @contextlib.asynccontextmanager
    async def upgraded(
        cls, server: Server, user_id: str, user_type: str = "user", *, codec: Codec = "json", deflate: bool = False
    ) -> AsyncIterator[Self]:
        """A WebSocket behind its handshake and its first frames (public=0: that is only `welcome`)."""
        async with cls.open(server) as raw:
            protocol = f"Sec-WebSocket-Protocol: fastpresence.v1.{codec}"
            extensions = ["Sec-WebSocket-Extensions: permessage-deflate"] if deflate else []
            raw.send(cls.upgrade_request(server.token(user_id, user_type), "/ws?public=0", protocol, *extensions))
            status, headers, _ = await raw.response()
            assert status == 101
            raw.deflates = "sec-websocket-extensions" in headers
            assert raw.deflates is deflate
            opcode, payload = await raw.frame()
            assert opcode == (cls.TEXT if codec == "json" else cls.BINARY)
            assert b"welcome" in payload
            yield raw

    @staticmethod
    def upgrade_request(token: str | None, target: str = "/ws", *headers: str) -> bytes:
        """A good one, unless the arguments spoil it: `headers` come in the place of ours of the same name."""
        lines = {
            "host": "Host: 127.0.0.1",
            "upgrade": "Upgrade: websocket",
            "connection": "Connection: Upgrade",
            "sec-websocket-version": "Sec-WebSocket-Version: 13",
            "sec-websocket-key": f"Sec-WebSocket-Key: {base64.b64encode(os.urandom(16)).decode()}",
        }
        if token is not None:
            lines["authorization"] = f"Authorization: Bearer {token}"
        for header in headers:
            name, _, value = header.partition(":")
            lines[name.lower()] = header
            if not value.strip():
                del lines[name.lower()]  # "Name:" takes ours away
        return "\r\n".join([f"GET {target} HTTP/1.1", *lines.values(), "", ""]).encode()

    def send(self, data: bytes) -> None:
        """These bytes, as far as the socket takes them."""
        self._writer.write(data)

    def send_frame(
        self, opcode: int, payload: bytes, *, masked: bool = True, fin: bool = True, claimed: int | None = None
    ) -> None:
        """One frame (RFC 6455, section 5.2); `claimed` is the length its head names instead of the true one."""
        length = len(payload) if claimed is None else claimed
        head = bytes([opcode | (0x80 if fin else 0)])
        mask_bit = 0x80 if masked else 0
        if length < 126:
            head += bytes([mask_bit | length])
        elif length < 65_536:
            head += bytes([mask_bit | 126]) + length.to_bytes(2, "big")
        else:
            head += bytes([mask_bit | 127]) + length.to_bytes(8, "big")
        if masked:
            key = os.urandom(4)
            payload = bytes(byte ^ key[at % 4] for at, byte in enumerate(payload))
            head += key
        self.send(head + payload)

    async def response(self, *, is_head: bool = False) -> tuple[int, dict[str, str], bytes]:
        """An HTTP response: status, headers (names in lower case), body. `is_head`: to a HEAD, which has no body."""
        async with asyncio.timeout(DEADLINE):
            head = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            headers = {}
            for line in head[1:-2]:
                name, _, value = line.partition(":")
                headers[name.lower()] = value.strip()
            body = b"" if is_head else await self._reader.readexactly(int(headers.get("content-length", "0")))
            return int(head[0].split()[1]), headers, body

    async def frame(self) -> tuple[int, bytes]:
        """The next frame: opcode and payload, inflated. The server never masks and never fragments."""
        async with asyncio.timeout(DEADLINE):
            first, second = await self._reader.readexactly(2)
            assert first & 0x80, "a fragment"
            assert not second & 0x80, "masked"
            length = second & 0x7F
            if length >= 126:
                length = int.from_bytes(await self._reader.readexactly(2 if length == 126 else 8), "big")
            opcode, payload = first & 0x0F, await self._reader.readexactly(length)
        self.was_deflated = bool(first & self.DEFLATED)
        assert first & 0x70 in ((0, self.DEFLATED) if self.deflates and opcode < self.CLOSE else (0,))
        if self.was_deflated:  # RFC 7692, section 7.2.2; a new window each time: no context is taken over
            payload = zlib.decompressobj(-15).decompress(payload + b"\x00\x00\xff\xff")
        return opcode, payload

    async def closed(self) -> int:
        """The code of the close frame, which is the next frame; the closing handshake, and the end of the stream."""
        opcode, payload = await self.frame()
        assert opcode == self.CLOSE, (opcode, payload)
        payload[2:].decode()  # RFC 6455, section 5.5.1: the reason is UTF-8
        self.send_frame(self.CLOSE, payload[:2])
        assert await self.eof() == b""
        return int.from_bytes(payload[:2], "big")

    async def eof(self) -> bytes:
        """What still comes before the end of the stream."""
        async with asyncio.timeout(DEADLINE):
            try:
                return await self._reader.read()
            except ConnectionResetError:
                return b""

    def pause(self) -> None:
        """Read no more from the socket."""
        self._writer.transport.pause_reading()  # type: ignore[attr-defined]

    def resume(self) -> None:
        """Read again."""
        self._writer.transport.resume_reading()  # type: ignore[attr-defined]

    async def drain(self) -> None:
        """Let what was sent go its way."""
        await self._writer.drain()

    def reset(self) -> None:
        """RST, at once."""
        _reset_on_close(self._writer.get_extra_info("socket"))
        self._writer.transport.abort()

    def half_close(self) -> None:
        """FIN: nothing more will be sent."""
        self._writer.write_eof()
