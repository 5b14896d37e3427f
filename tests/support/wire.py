"""A WebSocket client that does what it is told, byte by byte: for conformance tests. Blocking, on a real socket.

    frame(...) builds any frame, wrong ones too; Wire sends, reads frames and knows when the server ended its half

Shares no code with the server. Every wait has a deadline.
"""

import base64
import hashlib
import os
import re
import select
import socket
import subprocess
import sys
import time
import zlib
from pathlib import Path
from types import TracebackType
from typing import Final, NamedTuple, Self

__all__ = [
    "BINARY", "CLOSE", "CONTINUATION", "KEY", "PING", "PONG", "TEXT",
    "EchoProcess", "Frame", "Response", "Wire", "close_payload", "compress", "frame", "upgrade",
]  # fmt: skip

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10
KEY: Final = b"\x37\xfa\x21\x3d"
GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
DEADLINE: Final = 20.0
ROOT: Final = Path(__file__).parents[2]


class Frame(NamedTuple):
    """One frame of the server's; a compressed one is inflated."""

    opcode: int
    payload: bytes


class Response(NamedTuple):
    status: int
    headers: list[tuple[str, str]]  #: names in lower case
    body: bytes

    def header(self, name: str) -> str | None:
        return next((value for key, value in self.headers if key == name), None)


def frame(
    opcode: int,
    payload: bytes = b"",
    *,
    fin: bool = True,
    rsv: int = 0,
    key: bytes | None = KEY,
    length: int | None = None,
    form: int | None = None,
) -> bytes:
    """Any frame (section 5.2). `rsv`: RSV1 is 4. `length`: announced, if not the true one. `form`: 7, 16 or 64 bits."""
    size = len(payload) if length is None else length
    masked = 0x80 if key is not None else 0
    if form is None:
        form = 7 if size < 126 else 16 if size < 65_536 else 64
    head = bytes([(0x80 if fin else 0) | rsv << 4 | opcode])
    if form == 7:
        head += bytes([masked | size])
    elif form == 16:
        head += bytes([masked | 126]) + size.to_bytes(2, "big")
    else:
        head += bytes([masked | 127]) + size.to_bytes(8, "big")
    if key is None:
        return head + payload
    stream = (key * (len(payload) // 4 + 1))[: len(payload)]
    mixed = int.from_bytes(payload, "little") ^ int.from_bytes(stream, "little")
    return head + key + mixed.to_bytes(len(payload), "little")


def close_payload(code: int, reason: bytes = b"") -> bytes:
    """Section 5.5.1."""
    return code.to_bytes(2, "big") + reason


def compress(payload: bytes, *, bits: int = 15, final: bool = False, level: int = 6) -> bytes:
    """The payload of a compressed message (RFC 7692, section 7.2.1)."""
    squeezer = zlib.compressobj(level, zlib.DEFLATED, -bits)
    if final:
        return squeezer.compress(payload) + squeezer.flush()
    return (squeezer.compress(payload) + squeezer.flush(zlib.Z_SYNC_FLUSH))[:-4]


def upgrade(*extra: str, target: str = "/", without: tuple[str, ...] = (), method: str = "GET") -> bytes:
    """A good upgrade request, less the headers in `without`, and with `extra` lines."""
    lines = {
        "host": "Host: 127.0.0.1",
        "upgrade": "Upgrade: websocket",
        "connection": "Connection: Upgrade",
        "key": f"Sec-WebSocket-Key: {base64.b64encode(os.urandom(16)).decode()}",
        "version": "Sec-WebSocket-Version: 13",
    }
    kept = [line for name, line in lines.items() if name not in without]
    return "\r\n".join([f"{method} {target} HTTP/1.1", *kept, *extra, "", ""]).encode("latin-1")


class Wire:
    """One TCP connection to a server on loopback."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), DEADLINE)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.deflate = False
        self._have = b""
        self.compressed = 0  #: frames that came with RSV1
        self.final_blocks = 0  #: those of them with a final block (BFINAL), which Node's WebSocket can't read

    @classmethod
    def open(cls, port: int, *extra: str, target: str = "/") -> Self:
        """An upgraded one; `extra` header lines."""
        wire = cls(port)
        request = upgrade(*extra, target=target)
        wire.send(request)
        response = wire.response()
        assert response.status == 101, response
        key = re.search(rb"Sec-WebSocket-Key: (\S+)", request)
        assert key
        digest = base64.b64encode(hashlib.sha1(key[1] + GUID, usedforsecurity=False).digest()).decode()
        assert response.header("sec-websocket-accept") == digest  # section 4.2.2, 5
        assert (response.header("upgrade") or "").lower() == "websocket"
        assert (response.header("connection") or "").lower() == "upgrade"
        wire.deflate = response.header("sec-websocket-extensions") is not None
        return wire

    def send(self, data: bytes, *, step: int | None = None) -> None:
        """All of it, or in writes of `step` bytes. While the server does not read, what it sends is read."""
        for at in range(0, len(data), step or max(len(data), 1)):
            part = memoryview(data)[at : at + (step or len(data))]
            while part:
                readable, writable, _ = select.select([self.socket], [self.socket], [], DEADLINE)
                assert readable or writable, "the server neither reads nor writes"
                if writable:
                    part = part[self.socket.send(part, socket.MSG_DONTWAIT) :]
                else:
                    self._read()

    def send_all(self, data: bytes, *, step: int | None = None) -> None:
        """The same, for what makes the server hang up."""
        try:
            self.send(data, step=step)
        except (BrokenPipeError, ConnectionResetError):
            return

    def _read(self) -> bool:
        """False at the end of the server's stream."""
        try:
            data = self.socket.recv(1 << 20)
        except ConnectionResetError:
            data = b""
        self._have += data
        return bool(data)

    def _take(self, size: int) -> bytes | None:
        """None when the server ends its stream right there."""
        if len(self._have) < size:
            parts = [self._have]
            have = len(self._have)
            while have < size:
                try:
                    data = self.socket.recv(1 << 20)
                except ConnectionResetError:
                    data = b""
                if not data:
                    assert have == 0, f"the stream ends inside of something: {b''.join(parts)[:100]!r}"
                    return None
                parts.append(data)
                have += len(data)
            self._have = b"".join(parts)
        taken, self._have = self._have[:size], self._have[size:]
        return taken

    def frame(self) -> Frame | None:
        """The next frame; None at the end. Checks what a server must not do."""
        head = self._take(2)
        if head is None:
            return None
        opcode, size = head[0] & 15, head[1] & 127
        assert head[0] & 0x80, "a server of ours never fragments"
        assert not head[1] & 0x80, "a server must not mask (section 5.1)"
        assert not head[0] & 0x30, "no extension has RSV2 and RSV3"
        if size == 126:
            size = int.from_bytes(self._take(2) or b"", "big")
            assert size > 125, "length not minimal (section 5.2)"
        elif size == 127:
            size = int.from_bytes(self._take(8) or b"", "big")
            assert size > 65_535, "length not minimal (section 5.2)"
        payload = self._take(size) if size else b""
        assert payload is not None
        if head[0] & 0x40:
            assert self.deflate, "RSV1 without an extension"
            assert opcode in (TEXT, BINARY), "RSV1 on a control frame (RFC 7692, section 6.1)"
            stretcher = zlib.decompressobj(-15)
            payload = stretcher.decompress(payload + b"\0\0\xff\xff")
            self.final_blocks += stretcher.eof
            self.compressed += 1
        if opcode >= CLOSE:
            assert len(payload) <= 125
        return Frame(opcode, payload)

    def frames(self) -> list[Frame]:
        """All frames up to the end of the server's stream."""
        found = []
        while (one := self.frame()) is not None:
            found.append(one)
        return found

    def frames_until_pong(self, payload: bytes = b"marker") -> list[Frame]:
        """Ping, and the frames before its pong: the connection is alive."""
        self.send(frame(PING, payload))
        found: list[Frame] = []
        while (one := self.frame()) != Frame(PONG, payload):
            assert one is not None, f"closed, after {found}"
            found.append(one)
        return found

    def silent(self, seconds: float) -> bool:
        """True when nothing comes in that time."""
        return not self._have and not select.select([self.socket], [], [], seconds)[0]

    def response(self) -> Response:
        """One HTTP response."""
        while b"\r\n\r\n" not in self._have:
            assert self._read(), f"no whole response: {self._have!r}"
        head, _, self._have = self._have.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        headers = []
        for line in lines:
            name, _, value = line.partition(":")
            headers.append((name.lower(), value.strip()))
        response = Response(int(first.split()[1]), headers, b"")
        return response._replace(body=self._take(int(response.header("content-length") or 0)) or b"")

    def ended(self) -> bool:
        """Waits for the end of the server's stream; False when something comes before."""
        return not self._have and not self._read()

    def end_half(self) -> None:
        """FIN."""
        self.socket.shutdown(socket.SHUT_WR)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.socket.close()


class EchoProcess:
    """`python -m tests.support.echo`, as a suite would run it."""

    def __init__(self, *arguments: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.echo", "--port", "0", *arguments], stdout=subprocess.PIPE, cwd=ROOT
        )
        assert self._process.stdout
        line = self._process.stdout.readline().decode()
        assert line.startswith("listening on 127.0.0.1:"), line
        self.port = int(line.rpartition(":")[2])

    def memory(self, kind: str = "VmRSS") -> int:
        """Bytes; `VmHWM`: the most there ever was."""
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        found = re.search(rf"{kind}:\s+(\d+) kB", status)
        assert found
        return int(found[1]) * 1024

    def settled_memory(self, at_most: int) -> int:
        """Bytes, as soon as they are no more than that."""
        give_up = time.monotonic() + 5
        while self.memory() > at_most and time.monotonic() < give_up:
            time.sleep(0.05)
        return self.memory()

    def end(self) -> int:
        """SIGTERM; its exit status."""
        self._process.terminate()
        try:
            return self._process.wait(DEADLINE)
        finally:
            self._process.kill()
            self._process.wait()
            assert self._process.stdout
            self._process.stdout.close()
