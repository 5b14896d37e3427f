"""The admin face: HTTP in the node process, for operators and their tools; on loopback unless told otherwise.

    GET /healthz                        200 while the node lives
    GET /readyz                         200 when every worker listens, else 503 and why not
    GET /api/users/{user_id}/timeline   why is X offline? (admin.key)

The same parser and answers as on the public port, on the loop's own transports: few ask here. What anybody may cost the
node is bounded: connections, the time for a request, its size, requests in one turn of the loop, and whoever does not
read his answers is not read from.
"""

import asyncio
import logging
import socket
from collections import deque
from collections.abc import Callable
from typing import Any, Final, cast

import msgspec

from fastpresence.credentials import ApiKeys
from fastpresence.http import CONTINUE, HttpError, Request, RequestParser, answer, answer_error
from fastpresence.logs import Repeats
from fastpresence.messages import UserId

__all__ = ["AdminFace"]

LOG: Final = logging.getLogger("fastpresence.node")

#: Connections at once; more are told so and closed.
CONNECTIONS: Final = 64
#: Bytes of one read: some 250 of the shortest requests.
READ: Final = 16_384
#: Requests of one connection in one turn of the loop.
PIPELINED: Final = 8
#: After an answer that ends the connection: bytes that are read and thrown away, and seconds, so that it arrives.
DISCARD: Final = 1_048_576
LINGER_S: Final = 1.0
#: Entries of a timeline in one answer: what is asked for when nothing is said, and at most.
ENTRIES: Final = 100
MAX_ENTRIES: Final = 1000
#: Wrong keys that get 401, at once and a second in the long run; more get 429. A right key always works.
GUESSES: Final = 100
GUESSES_PER_S: Final = 10.0


class AdminFace:
    """Who listens, and what is answered.

    `not_ready` says why this node is not ready, None when it is; `timeline` gives a user's entries, the newest first.
    """

    def __init__(
        self,
        *,
        key: str | None,
        body_size: int,
        request_time: float,
        not_ready: Callable[[], str | None],
        timeline: Callable[[str, int], list[dict[str, Any]]],
        repeats: Repeats,
    ) -> None:
        self.body_size = body_size  #: bytes
        self.request_time = request_time  #: seconds in which a request must be complete, and its answer be read
        self.buffer = memoryview(bytearray(READ))  #: of all connections: what is read is taken at once
        self.connections: set[_Connection] = set()
        self._keys = ApiKeys([] if key is None else [key])
        self._has_key = key is not None
        self._not_ready = not_ready
        self._timeline = timeline
        self._guesses_due_s = 0.0  # when all bad keys so far would have been due at the allowed rate
        self._repeats = repeats
        self._server: asyncio.Server | None = None

    async def listen(self, sock: socket.socket) -> None:
        """Serve on a bound socket from now on."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: _Connection(self, loop), sock=sock)

    def close(self) -> None:
        """Stop, at once."""
        if self._server is not None:
            self._server.close()
        for connection in [*self.connections]:
            connection.abort()

    def handle(self, request: Request, now_s: float) -> Any:
        """The answer's JSON. `now_s`: monotonic. Raises HttpError."""
        match request.segments():
            case ["healthz"]:
                _only_get(request)
                return {"status": "ok"}
            case ["readyz"]:
                _only_get(request)
                reason = self._not_ready()
                if reason is not None:
                    raise HttpError(503, "unavailable", reason, (("Retry-After", "1"),))
                return {"status": "ready"}
            case ["api", "users", user_id, "timeline"]:
                _only_get(request)
                self._authorize(request, now_s)
                return self._of_user(user_id, request.query())
        raise HttpError(404, "not_found", "no such path")

    def _authorize(self, request: Request, now_s: float) -> None:
        if not self._has_key:
            raise HttpError(401, "unauthorized", "admin.key must be set before this can be asked for")
        credential = request.bearer()
        if credential is not None and self._keys.contains(credential):
            return
        self._repeats.log(LOG, logging.WARNING, "admin key refused", now_s=now_s)
        due_s = max(self._guesses_due_s, now_s - GUESSES / GUESSES_PER_S) + 1 / GUESSES_PER_S
        if due_s > now_s:
            raise HttpError(429, "rate_limited", "too many wrong keys", (("Retry-After", "1"),))
        self._guesses_due_s = due_s
        raise HttpError(401, "unauthorized", "Authorization: Bearer and the admin.key is required")

    def _of_user(self, user_id: str, query: dict[str, str]) -> Any:
        try:
            msgspec.convert(user_id, UserId)
        except msgspec.ValidationError:
            raise HttpError(422, "bad_field", "user_id: 1 to 128 characters of A-Z a-z 0-9 _ . : @ -") from None
        limit = query.get("limit", str(ENTRIES))
        if not (limit.isascii() and limit.isdecimal() and len(limit) <= 9 and 1 <= int(limit) <= MAX_ENTRIES):
            raise HttpError(422, "bad_field", f"limit: 1 to {MAX_ENTRIES}")
        return {"user_id": user_id, "timeline": self._timeline(user_id, int(limit))}


def _only_get(request: Request) -> None:
    if request.method not in ("GET", "HEAD"):
        raise HttpError(405, "bad_request", "GET, HEAD is what this path takes", (("Allow", "GET, HEAD"),))


class _Connection(asyncio.BufferedProtocol):
    """One connection: requests in, answers out, in order.

    reading -> answering (a turn each, and while the peer reads) -> reading ... -> lingering -> gone
    """

    def __init__(self, face: AdminFace, loop: asyncio.AbstractEventLoop) -> None:
        self._face = face
        self._loop = loop
        self._parser = RequestParser(face.body_size)
        self._transport: asyncio.Transport | None = None
        self._requests: deque[Request] = deque()
        self._fault: HttpError | None = None  # to be answered behind the requests
        self._is_over = False  # the peer will send no more
        self._is_full = False  # the peer does not read
        self._is_scheduled = False
        self._discard: int | None = None  # bytes still to be thrown away; None: they are read as requests
        self._deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport = cast(asyncio.Transport, transport)
        if len(self._face.connections) >= CONNECTIONS:
            transport.write(answer_error(HttpError(503, "unavailable", "too many connections to the admin face")))
            transport.close()
            return
        self._face.connections.add(self)
        self._set_deadline(self._face.request_time)

    def connection_lost(self, exc: Exception | None) -> None:
        self._face.connections.discard(self)
        self._requests.clear()
        if self._deadline is not None:
            self._deadline.cancel()
        self._transport = None

    def abort(self) -> None:
        """End it, whatever it is doing."""
        if self._transport is not None:
            self._transport.abort()

    def _set_deadline(self, seconds: float) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        self._deadline = self._loop.call_later(seconds, self.abort)

    # Bytes in.

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._face.buffer

    def buffer_updated(self, nbytes: int) -> None:
        if self._discard is not None:
            self._discard -= nbytes
            if self._discard < 0:
                self.abort()
            return
        if self._transport is None or self._transport.is_closing():
            return
        try:
            self._requests.extend(self._parser.feed(bytes(self._face.buffer[:nbytes])))
        except HttpError as error:
            self._fault = error
        self._answer_some()

    def eof_received(self) -> bool:
        """A peer that has said all may still read: what is complete is answered."""
        self._is_over = True
        return bool(self._requests) and self._discard is None

    # Answers out.

    def pause_writing(self) -> None:
        self._is_full = True

    def resume_writing(self) -> None:
        self._is_full = False
        self._answer_some()

    def _answer_later(self) -> None:
        self._is_scheduled = False
        self._answer_some()

    def _answer_some(self) -> None:
        """A turn's share of the requests that wait; then what comes next."""
        transport = self._transport
        if transport is None or transport.is_closing() or self._discard is not None:
            return
        for _ in range(PIPELINED):
            if not self._requests or self._is_full:
                break
            self._set_deadline(self._face.request_time)
            if not self._answer(transport, self._requests.popleft()):
                self._finish(transport)
                return
        if self._requests:
            transport.pause_reading()
            if not self._is_full and not self._is_scheduled:  # else: when the peer has read
                self._is_scheduled = True
                self._loop.call_soon(self._answer_later)
        elif self._fault is not None:
            transport.write(answer_error(self._fault, is_head=self._parser.head.method == "HEAD"))
            self._finish(transport)
        elif self._is_over:
            self._finish(transport)
        elif self._parser.expecting():
            transport.write(CONTINUE)
            transport.resume_reading()
        elif self._is_full:
            transport.pause_reading()
        else:
            transport.resume_reading()

    def _answer(self, transport: asyncio.Transport, request: Request) -> bool:
        """False when the connection ends behind it."""
        keep = request.keep_alive and not request.upgrade
        is_head = request.method == "HEAD"
        try:
            found = self._face.handle(request, self._loop.time())
            response = answer(200, found, keep_alive=keep, is_head=is_head)
        except HttpError as error:
            response = answer_error(error, keep_alive=keep, is_head=is_head)
        except Exception:
            LOG.exception("fault")  # of ours: this connection pays for it
            transport.abort()
            return True
        transport.write(response)
        return keep

    def _finish(self, transport: asyncio.Transport) -> None:
        """All is said: a close with unread bytes would be a reset, and what was answered would be lost."""
        self._requests.clear()
        self._discard = DISCARD
        if not self._is_over:
            transport.resume_reading()
            transport.write_eof()
            self._set_deadline(self._face.request_time if transport.get_write_buffer_size() else LINGER_S)
        else:
            transport.close()
