"""One HTTP/1.1 connection for polls, on asyncio's streams and httptools: bounded in size; time is the caller's.

    post() -> HttpAnswer, whatever its status      the connection stays open for the next one, if the server lets it

A server may close a connection that waits at the very moment a request goes out; such a request is made once more, on a
new connection. Redirects are not followed: a token is for the host it was meant for. Event-loop thread only. Used by
client.driver.
"""

import asyncio
import contextlib
from ssl import SSLContext, create_default_context
from typing import Any, Final
from urllib.parse import urlsplit, urlunsplit

import httptools
from msgspec import Struct

from fastpresence.client.link import bearer, retry_after_ms
from fastpresence.errors import ConnectionFailed

__all__ = ["HttpAnswer", "HttpLink", "poll_url"]

HEAD_MAX: Final = 65_536  #: bytes of status line and headers
BODY_MAX: Final = 16 * 1024 * 1024  #: the same as a WebSocket message may have
_CHUNK: Final = 65_536

_PORTS: Final = {"http": 80, "https": 443}


class HttpAnswer(Struct, frozen=True):
    """A complete response."""

    status: int
    body: bytes
    retry_after_ms: float  #: what the server asks for; 0 when it does not


class _Closed(Exception):
    """The connection that was kept open is closed, and the server has said nothing."""


class _Response:
    """What httptools calls back while it reads one response."""

    def __init__(self) -> None:
        self.body = bytearray()
        self.headers: dict[str, str] = {}
        self.in_head = True
        self.complete = False
        self.keep_alive = False
        self.parser: Any = httptools.HttpResponseParser(self)

    @property
    def status(self) -> int:
        return int(self.parser.get_status_code())

    @property
    def ends_with_the_connection(self) -> bool:
        """RFC 9112, section 6.3: neither length nor chunks."""
        return not self.in_head and not {"content-length", "transfer-encoding"} & self.headers.keys()

    def on_header(self, name: bytes, value: bytes) -> None:
        if self.in_head:
            self.headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        self.in_head = False
        self.keep_alive = bool(self.parser.should_keep_alive())

    def on_body(self, part: bytes) -> None:
        self.body += part

    def on_message_complete(self) -> None:
        if 100 <= self.status < 200:  # not the answer yet (RFC 9110, section 15.2)
            self.in_head = True
            self.headers.clear()
        else:
            self.complete = True


class HttpLink:
    """Requests to one host, one at a time. `url` is where polls go."""

    def __init__(self, url: str, ssl_context: SSLContext | None = None) -> None:
        parts = urlsplit(url)
        self._url = url
        self._host = parts.hostname if parts.scheme in _PORTS else None
        self._port = parts.port or _PORTS.get(parts.scheme, 0)
        self._tls = parts.scheme == "https"
        self._ssl_context = ssl_context
        self._authority = parts.netloc.rpartition("@")[2]
        self._target = urlunsplit(("", "", parts.path or "/", parts.query, ""))
        self._free = asyncio.Lock()  # one that was given up may not have left yet
        self._base = parts.path.rpartition("/")[0]
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def post(self, token: str, body: bytes) -> HttpAnswer:
        """The answer to a JSON body. Raises ConnectionFailed or OSError; cancelled, it leaves no connection open."""
        head = f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        return await self._request("POST", self._target, token, head, body)

    async def get(self, path: str, token: str) -> HttpAnswer:
        """The answer of what is at `path` beside the polls, such as `rooms/lobby`; names in it are quoted. The same."""
        return await self._request("GET", f"{self._base}/{path}", token)

    async def _request(self, method: str, target: str, token: str, head: str = "", body: bytes = b"") -> HttpAnswer:
        request = (
            f"{method} {target} HTTP/1.1\r\nHost: {self._authority}\r\nAuthorization: {bearer(token)}\r\n{head}\r\n"
        ).encode("latin-1") + body
        async with self._free:
            kept = self._writer is not None
            done = False
            try:
                try:
                    answer = await self._exchange(request)
                except (_Closed, ConnectionError):
                    if not kept:
                        raise
                    self._drop()
                    answer = await self._exchange(request)
                done = True
            except _Closed:
                raise ConnectionFailed("the server hung up without an answer") from None
            finally:
                if not done:
                    self._drop()
            return answer

    async def close(self) -> None:
        """Nothing is left open."""
        writer = self._writer
        self._drop()
        if writer is not None:
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    def _drop(self) -> None:
        if self._writer is not None:
            self._writer.transport.abort()
        self._reader = self._writer = None

    async def _exchange(self, request: bytes) -> HttpAnswer:
        reader, writer = await self._connected()
        writer.write(request)
        response = _Response()
        received = 0
        while not response.complete:
            data = await reader.read(_CHUNK)
            if not data:
                if response.ends_with_the_connection:
                    break
                if not received:
                    raise _Closed
                raise ConnectionFailed("the server hung up in the middle of an answer")
            received += len(data)
            try:
                response.parser.feed_data(data)
            except (httptools.HttpParserError, httptools.HttpParserUpgrade) as exc:
                raise ConnectionFailed(f"not an HTTP answer: {exc}") from exc
            if (response.in_head and received > HEAD_MAX) or len(response.body) > BODY_MAX:
                raise ConnectionFailed("the answer is too long")
        if not response.complete or not response.keep_alive:
            self._drop()
        wait_ms = retry_after_ms(response.headers.get("retry-after"))
        return HttpAnswer(response.status, bytes(response.body), wait_ms)

    async def _connected(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if not self._host:
            raise ConnectionFailed(f"not an HTTP URL: {self._url}")
        if self._reader is None or self._writer is None:
            context = (self._ssl_context or create_default_context()) if self._tls else None
            self._reader, self._writer = await asyncio.open_connection(self._host, self._port, ssl=context)
        return self._reader, self._writer


def poll_url(url: str) -> str:
    """Where the server of a WebSocket URL is polled: `ws://host/ws` -> `http://host/api/online-status/poll`."""
    parts = urlsplit(url)
    scheme = {"ws": "http", "wss": "https"}.get(parts.scheme, parts.scheme)
    base = parts.path.rpartition("/")[0]
    return urlunsplit((scheme, parts.netloc, f"{base}/api/online-status/poll", "", ""))
