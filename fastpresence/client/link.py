"""One WebSocket of the client, on picows: from the TCP connection to the closing handshake.

    open() -> frames through `on_message`, in order -> wait_closed() -> the close code

No compression is offered; fragments are joined. A link that is told to close is gone after a grace, answered or not.
Works on every asyncio event loop. Used by client.connection.
"""

import asyncio
import re
import socket
from collections.abc import Callable
from ssl import SSLContext
from typing import Final
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

import msgspec
from msgspec import Struct
from picows import WSCloseCode, WSError, WSFrame, WSHandshakeError, WSListener, WSMsgType, WSParsedURL, WSTransport
from picows import ws_connect as picows_connect

from fastpresence.codec import JSON, Codec
from fastpresence.errors import ConnectionFailed

__all__ = ["Link", "Refused", "bearer", "retry_after_ms", "with_query"]

#: A frame, or a message of fragments, that is longer breaks the connection (1009). The server's snapshot pages are
#: some 100 KB; a delta after a long absence may be large.
MAX_MESSAGE_BYTES: Final = 16 * 1024 * 1024

_TOKEN = re.compile(r"\A[\x21-\x7e]{1,8192}\Z")


class Refused(ConnectionFailed):
    """The handshake was answered with another status than 101."""

    def __init__(self, status: int, retry_after_ms: float, body: bytes) -> None:
        super().__init__(f"HTTP {status}")
        self.status = status
        self.retry_after_ms = retry_after_ms
        #: Whether it is a server of this protocol that says so (docs/protocol.md, section 1), and not something on the
        #: way there that knows of no WebSockets.
        self.by_server = _is_refusal(body)


class Link(WSListener):
    """One socket. Event-loop thread only; `on_message` may be called before `open` returns, and never after `mute`."""

    def __init__(self, codec: Codec, on_message: Callable[[bytes], None]) -> None:
        self.close_code: int | None = None  #: what the server closed with; None: the connection broke
        self._codec = codec
        self._on_message: Callable[[bytes], None] | None = on_message
        self._kind = WSMsgType.TEXT if codec.is_text else WSMsgType.BINARY
        self._transport: WSTransport | None = None
        self._fragments: list[bytes] = []
        self._fragments_bytes = 0
        self._deadline: asyncio.TimerHandle | None = None

    async def open(self, url: str, token: str, ssl_context: SSLContext | None = None) -> None:
        """Connect and shake hands. Raises Refused, ConnectionFailed or OSError; cancelled, it leaves no socket open."""
        authorization = bearer(token)
        sockets: list[socket.socket] = []

        async def connect(parsed: WSParsedURL) -> socket.socket:
            sockets.append(await _connect_tcp(parsed.host, parsed.port))
            return sockets[-1]

        try:
            _, listener = await picows_connect(
                lambda: self,
                url,
                ssl_context=ssl_context,
                websocket_handshake_timeout=None,  # the machine has a deadline for the whole attempt
                max_frame_size=MAX_MESSAGE_BYTES,
                max_redirects=0,  # a token is for the host it was meant for
                extra_headers=[
                    ("Authorization", authorization),
                    ("Sec-WebSocket-Protocol", self._codec.subprotocol),
                ],
                socket_factory=connect,
                use_aiofastnet=False,
            )
        except BaseException as exc:
            for sock in sockets:
                _hang_up(sock)
            if isinstance(exc, WSHandshakeError) and exc.response is not None:
                wait_ms = retry_after_ms(exc.response.headers.get("Retry-After"))
                raise Refused(exc.response.status, wait_ms, exc.raw_body or b"") from exc
            if isinstance(exc, (WSError, ValueError)):
                raise ConnectionFailed(f"handshake: {exc}") from exc
            raise
        if listener is None:
            raise ConnectionFailed("the server hung up during the handshake")

    @property
    def transport(self) -> asyncio.Transport | None:
        """The socket's transport, to abort it hard in tests and demonstrations."""
        return None if self._transport is None else self._transport.underlying_transport

    def send(self, data: bytes) -> None:
        """Send one message; nothing happens when the connection is gone."""
        if self._transport is not None:
            self._transport.send(self._kind, data)

    def mute(self) -> None:
        """Deliver nothing any more."""
        self._on_message = None

    def close(self, code: int | None, grace_s: float) -> None:
        """Start the closing handshake; cut the connection off after `grace_s` seconds, or at once for None."""
        transport = self._transport
        if transport is None or transport.is_disconnected:
            return
        if code is None:
            transport.disconnect(graceful=False)
            return
        transport.send_close(WSCloseCode(code))
        if self._deadline is None:
            self._deadline = asyncio.get_running_loop().call_later(grace_s, transport.disconnect, False)

    async def wait_closed(self) -> int | None:
        """Wait until the socket is gone; the close code the server sent, or what stands for the fault found."""
        if self._transport is None:
            return None
        try:
            await self._transport.wait_disconnected()
        except asyncio.CancelledError:
            self._transport.disconnect(graceful=False)
            raise
        except WSError:
            # picows found a fault in what the server sent, and has told it so.
            return 1002 if self.close_code is None else self.close_code
        finally:
            if self._deadline is not None:
                self._deadline.cancel()
        return self.close_code

    # What picows calls.

    def on_ws_connected(self, transport: WSTransport) -> None:
        self._transport = transport
        chosen = transport.response.headers.get("Sec-WebSocket-Protocol", JSON.subprotocol)
        if chosen != self._codec.subprotocol:
            self._fault(1002)

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        kind = frame.msg_type
        if kind == WSMsgType.CLOSE:
            payload = frame.get_payload_as_bytes()
            if self.close_code is None and len(payload) >= 2:
                self.close_code = int.from_bytes(payload[:2], "big")
            # RFC 6455 section 5.5.1: answer with the code received. The picows method would also send 0.
            transport.send(WSMsgType.CLOSE, payload[:2])
            transport.disconnect()
        elif kind == WSMsgType.PONG:
            pass
        elif kind == WSMsgType.CONTINUATION or not frame.fin:
            self._join(frame)
        elif kind != self._kind:
            self._fault(1003)
        elif self._on_message is not None:
            self._on_message(frame.get_payload_as_bytes())

    def _join(self, frame: WSFrame) -> None:
        # RFC 6455 section 5.4: one message at a time, its kind told by the first fragment.
        starts = frame.msg_type != WSMsgType.CONTINUATION
        if starts == bool(self._fragments) or (starts and frame.msg_type != self._kind):
            self._fault(1002)
            return
        self._fragments.append(frame.get_payload_as_bytes())
        self._fragments_bytes += frame.payload_size
        if self._fragments_bytes > MAX_MESSAGE_BYTES:
            self._fault(1009)
        elif frame.fin:
            message = b"".join(self._fragments)
            self._fragments.clear()
            self._fragments_bytes = 0
            if self._on_message is not None:
                self._on_message(message)

    def fault(self, code: int) -> None:
        """The server broke the protocol: tell it, and hang up."""
        self._fault(code)

    def _fault(self, code: int) -> None:
        transport = self._transport
        if self.close_code is None:
            self.close_code = code
        self.mute()
        if transport is not None:
            transport.send_close(WSCloseCode(code))
            transport.disconnect()


def bearer(token: str) -> str:
    """The `Authorization` that shows a token. Raises ConnectionFailed for what is no token."""
    if not _TOKEN.match(token):
        raise ConnectionFailed("the token is empty, too long, or holds characters that no token has")
    return f"Bearer {token}"


def with_query(url: str, **parameters: str | None) -> str:
    """The URL with these query parameters, in place of its own of the same name; None leaves one out."""
    parts = urlsplit(url)
    query = [pair for pair in parse_qsl(parts.query, keep_blank_values=True) if pair[0] not in parameters]
    query.extend((name, value) for name, value in parameters.items() if value is not None)
    return urlunsplit(parts._replace(query=urlencode(query), fragment=""))


async def _connect_tcp(host: str, port: int) -> socket.socket:
    """The first address that answers. The event loop's own way hides the socket until the handshake is over."""
    loop = asyncio.get_running_loop()
    failed: OSError = OSError(f"{host} has no address")
    for family, kind, proto, _, address in await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM):
        sock = socket.socket(family, kind, proto)
        sock.setblocking(False)
        try:
            await loop.sock_connect(sock, address)
        except OSError as exc:
            sock.close()
            failed = exc
        except BaseException:
            sock.close()
            raise
        else:
            return sock
    raise failed


class _Error(Struct):
    code: str


class _Refusal(Struct):
    error: _Error


def _is_refusal(body: bytes) -> bool:
    """Whether it is the error body of the protocol."""
    try:
        msgspec.json.decode(body, type=_Refusal)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return False
    return True


def _hang_up(sock: socket.socket) -> None:
    """End a connection whose transport we never got: the transport sees the end and closes itself."""
    try:
        sock.shutdown(socket.SHUT_RDWR)
    except OSError:
        sock.close()  # closed or never connected


def retry_after_ms(value: str | None) -> float:
    """Milliseconds of a `Retry-After` in seconds (RFC 9110 section 10.2.3); a date or nonsense counts as none."""
    return float(value) * 1000 if value is not None and re.fullmatch(r"[0-9]{1,9}", value.strip()) else 0.0
