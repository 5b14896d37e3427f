"""Drives one client's machine on an event loop: its socket, its timer, its tasks, and who waits for what.

One timer and one task for each connection; a connection that the machine has done with has a short time to close and
nothing more to say. Invariant: after `close` no task, timer or socket is left. Used by client.connection.
"""

import asyncio
import inspect
import logging
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from ssl import SSLContext
from typing import Any, Final
from urllib.parse import quote
from weakref import WeakSet

import msgspec

from fastpresence.client.calls import CallMoved, CallRecord, Rang, Signal
from fastpresence.client.core import ClientCore
from fastpresence.client.http import HttpLink
from fastpresence.client.link import Link, Refused, with_query
from fastpresence.client.machine import (
    Answer,
    Answered,
    Connect,
    Disconnect,
    Event,
    Freshness,
    Poll,
    Stale,
    State,
    StateChanged,
    StopPolling,
    Synced,
)
from fastpresence.client.phone import Call
from fastpresence.client.polling import PollAnswer, PollRequest, RosterAnswer
from fastpresence.client.roster import Change
from fastpresence.client.schedule import Timing
from fastpresence.client.streams import Changes, Mailbox
from fastpresence.codec import Codec
from fastpresence.errors import ConnectionFailed, FastPresenceError, RequestRefused
from fastpresence.messages import Message, RoomOccupancy, TokenExpiring

__all__ = ["Driver", "TokenProvider"]

log = logging.getLogger("fastpresence.client")

TokenProvider = Callable[[], str | Awaitable[str]]

#: Messages that wait to be read; beyond, the oldest is dropped and counted.
MESSAGES_KEPT: Final = 1000
#: The same for calls; most of those dropped have ended long since.
CALLS_KEPT: Final = 100

_decode_poll: Final = msgspec.json.Decoder(PollAnswer).decode
_decode_roster: Final = msgspec.json.Decoder(RosterAnswer).decode


class Driver:
    """One client's surroundings. Event-loop thread only."""

    def __init__(
        self,
        core: ClientCore,
        *,
        url: str,
        poll_url: str,
        token: str | TokenProvider,
        codec: Codec,
        timing: Timing,
        ssl_context: SSLContext | None,
    ) -> None:
        self.core = core
        self.streams: WeakSet[Changes] = WeakSet()
        self.mailbox: Mailbox[Message] = Mailbox(MESSAGES_KEPT)
        self.incoming: Mailbox[Call] = Mailbox(CALLS_KEPT)
        self.calls: dict[str, Call] = {}  #: that have not ended, by call_id
        self.state_callbacks: list[Callable[[State], object]] = []
        self.freshness_callbacks: list[Callable[[Freshness], object]] = []
        self.occupancy_callbacks: list[Callable[[str, int], object]] = []
        self.over = False  #: left, or stopped for good
        self._url = url
        self._token = token if isinstance(token, str) else None
        self._provider = None if isinstance(token, str) else token
        self._codec = codec
        self._timing = timing
        self._ssl_context = ssl_context
        self._turn = 0  # which connection is the current one; earlier ones have nothing to say
        self._link: Link | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._http = HttpLink(poll_url, ssl_context)
        self._polling: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._answers: dict[int, asyncio.Future[Answer]] = {}
        self._waiters: set[asyncio.Future[None]] = set()
        self._pumping = False

    @property
    def transport(self) -> asyncio.Transport | None:
        return None if self._link is None else self._link.transport

    def start(self) -> None:
        """Try to connect now."""
        self.core.start(self.now_ms())
        self.pump()

    def now_ms(self) -> float:
        return asyncio.get_running_loop().time() * 1000

    async def ask(self, request_id: int) -> Answer:
        """The answer to a request that the machine has just taken."""
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._answers[request_id] = future
        self.pump()
        try:
            return await future
        finally:
            self._answers.pop(request_id, None)

    async def until(self, reached: Callable[[], bool]) -> None:
        while not reached():
            if self.over:
                raise self.stop_reason() or ConnectionFailed("the client has left")
            waiter = asyncio.get_running_loop().create_future()
            self._waiters.add(waiter)
            try:
                await waiter
            finally:
                self._waiters.discard(waiter)

    def stop_reason(self) -> FastPresenceError | None:
        return self.core.reason if self.core.state == "failed" else None

    def pump(self) -> None:
        """Carry out what the machine wants, until it wants nothing more; then set the timer."""
        if self._pumping:  # a callback of the user's came back in: the outer call goes on
            return
        self._pumping = True
        try:
            while True:
                frames, events = self.core.frames_to_send(), self.core.events()
                if not frames and not events:
                    break
                for frame in frames:
                    if self._link is not None:
                        self._link.send(self._codec.encode(frame))
                for event in events:
                    self._happened(event)
        finally:
            self._pumping = False
        if self.core.over and not self.over:
            self.over = True
            for stream in list(self.streams):
                stream.end(self.stop_reason())
            self.mailbox.end(self.stop_reason())
            self.incoming.end(self.stop_reason())
            self._wake()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        deadline_ms = self.core.next_deadline_ms()
        if deadline_ms is not None:
            self._timer = asyncio.get_running_loop().call_at(deadline_ms / 1000, self._tick)

    def _tick(self) -> None:
        self._timer = None
        self.core.tick(self.now_ms())
        self.pump()

    def _happened(self, event: Event) -> None:
        match event:
            case Change():
                for stream in list(self.streams):
                    stream.put(event)
            case Answered():
                self._answered(event)
            case Message():
                self.mailbox.put(event)
            case Connect():
                self._turn += 1
                self._connecting = self._spawn(self._live(event, self._turn))
            case Disconnect():
                self._retire(event.code)
            case Rang(call=record):
                self.incoming.put(self.hold(record))
            case CallMoved() | Signal():
                self._call_moved(event)
            case Poll():
                self._polling = self._spawn(self._poll(event))
            case StopPolling():
                self._stop_polling()
            case TokenExpiring():
                if self._provider is not None:
                    self._spawn(self._refresh_token())
            case StateChanged():
                log.info("%s%s", event.state, f": {event.reason}" if event.reason is not None else "")
                self._call_back(self.state_callbacks, event.state)
            case Synced(polled=polled):
                self._call_back(self.freshness_callbacks, "polled" if polled else "live")
            case Stale():
                self._call_back(self.freshness_callbacks, "stale")
            case RoomOccupancy(room=room, count=count):
                self._call_back(self.occupancy_callbacks, room, count)

    def _answered(self, event: Answered) -> None:
        future = self._answers.pop(event.request_id, None)
        if future is None or future.done():
            if isinstance(event.error, RequestRefused):
                log.warning("%s was refused: %s", type(event.request).__name__, event.error)
        elif event.error is not None:
            future.set_exception(event.error)
        elif event.answer is not None:
            future.set_result(event.answer)

    def hold(self, record: CallRecord) -> Call:
        """A call that the user of the client is given."""
        call = Call(record, self.core, self.ask, self.now_ms)
        self.calls[record.call_id] = call
        return call

    def give_up(self, call: Call) -> None:
        """Nobody waits for this call to ring any more: hang up, as soon as anybody can be told."""
        try:
            self.core.hang_up(call.call_id, self.now_ms())
        except FastPresenceError as exc:
            log.debug("nobody was told of a call given up: %s", exc)
        self.pump()

    def _call_moved(self, event: CallMoved | Signal) -> None:
        call = self.calls.get(event.call_id)
        if call is not None:
            if isinstance(event, CallMoved) and event.state == "ended":
                del self.calls[event.call_id]
            call.happened(event)

    def _call_back(self, callbacks: list[Callable[..., object]], *arguments: object) -> None:
        for callback in list(callbacks):
            try:
                callback(*arguments)
            except Exception as exc:
                self._complain("a callback raised", exc)
        self._wake()

    def _wake(self) -> None:
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)

    # Connections.

    async def _live(self, connect: Connect, turn: int) -> None:
        """One connection, from the token to its end, which the machine is told."""
        link = Link(self._codec, partial(self._heard, turn))
        ended: dict[str, Any]
        try:
            token = await self._fetch_token(fresh=connect.fresh_token)
            if turn != self._turn:
                return
            self._link = link
            url = with_query(self._url, cursor=connect.cursor)
            await link.open(url, token, self._ssl_context)
            ended = {"close_code": await link.wait_closed()}
        except Refused as refused:
            ended = {
                "http_status": refused.status,
                "retry_after_ms": refused.retry_after_ms,
                "by_server": refused.by_server,
            }
        except (OSError, FastPresenceError) as exc:
            ended = {"reason": str(exc) or type(exc).__name__}
        if turn == self._turn:
            self._link = None
            self.core.lost(self.now_ms(), **ended)
            self.pump()

    async def _poll(self, poll: Poll) -> None:
        """One poll, whose end the machine is told."""
        failed: dict[str, Any] = {}
        answer: PollAnswer | RosterAnswer | None = None
        request = poll.request
        try:
            async with asyncio.timeout(self._timing.poll_timeout_ms / 1000):
                token = await self._fetch_token(fresh=poll.fresh_token)
                if isinstance(request, PollRequest):
                    response = await self._http.post(token, msgspec.json.encode(request))
                else:
                    response = await self._http.get(f"rooms/{quote(request.room, safe='')}", token)
            if response.status == 200:
                answer = (_decode_poll if isinstance(request, PollRequest) else _decode_roster)(response.body)
            else:
                failed = {"http_status": response.status, "retry_after_ms": response.retry_after_ms}
        except (OSError, FastPresenceError) as exc:
            failed = {"reason": str(exc) or type(exc).__name__}
        except (msgspec.DecodeError, UnicodeDecodeError) as exc:
            failed = {"reason": f"the answer to a poll is none: {exc}"}
        if self._polling is not asyncio.current_task():
            return
        self._polling = None
        if answer is not None:
            self.core.polled(answer, self.now_ms())
        else:
            log.warning("a poll failed: %s", failed.get("reason") or f"HTTP {failed['http_status']}")
            self.core.poll_failed(self.now_ms(), **failed)
        self.pump()

    def _stop_polling(self) -> None:
        task, self._polling = self._polling, None
        if task is not None:
            task.cancel()

    async def _fetch_token(self, *, fresh: bool) -> str:
        if self._provider is not None and (fresh or self._token is None):
            try:
                answer = self._provider()
                self._token = await answer if inspect.isawaitable(answer) else answer
            except Exception as exc:
                raise ConnectionFailed(f"no token: {exc or type(exc).__name__}") from exc
        if self._token is None:
            raise ConnectionFailed("no token")
        return self._token

    async def _refresh_token(self) -> None:
        """Replace the token of the living connection. Failing that, the server ends it, and a new one is fetched."""
        try:
            async with asyncio.timeout(self._timing.attempt_timeout_ms / 1000):
                token = await self._fetch_token(fresh=True)
            await self.ask(self.core.refresh_token(token, self.now_ms()))
        except (TimeoutError, FastPresenceError) as exc:
            log.warning("the token could not be refreshed: %s", exc)

    def _heard(self, turn: int, data: bytes) -> None:
        if turn != self._turn:
            return
        try:
            frame = self._codec.decode_answer(data)
        except msgspec.ValidationError as exc:
            log.debug("a frame of a kind we do not know: %s", exc)  # a newer server's, perhaps
            return
        except (msgspec.DecodeError, UnicodeDecodeError):
            if self._link is not None:
                self._link.fault(1007)
            return
        self.core.receive(frame, self.now_ms())
        self.pump()

    def _retire(self, code: int | None) -> None:
        """The machine has done with the current connection: nobody listens to it any more."""
        self._turn += 1
        link, self._link = self._link, None
        task, self._connecting = self._connecting, None
        if link is not None and link.transport is not None:
            link.mute()
            link.close(code, self._timing.goodbye_ms / 1000)
        elif task is not None:
            task.cancel()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._finished)
        return task

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if task is self._connecting:
            self._connecting = None
        if task.cancelled() or task.exception() is None:
            return
        # A fault of ours: say so, and do not go on as if nothing had happened.
        exc = task.exception()
        self._complain("a task of the client failed", exc)
        error = ConnectionFailed(f"the client failed: {exc!r}")
        error.__cause__ = exc
        self.core.refuse(error)
        self.pump()

    def _complain(self, message: str, exc: BaseException | None) -> None:
        asyncio.get_running_loop().call_exception_handler({"message": message, "exception": exc})

    async def close(self, *, graceful: bool) -> None:
        """Say goodbye within a short time, then make an end of everything."""
        grace_s = self._timing.goodbye_ms / 1000
        try:
            if graceful:
                self.core.leave(self.now_ms())
                self.pump()
                if self._tasks:
                    # The machine gives up after one grace, the closing handshake after another.
                    await asyncio.wait(self._tasks, timeout=2 * grace_s + 0.1)
        finally:
            self.core.abandon()
            self.pump()
            tasks = list(self._tasks)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self._http.close()
            for future in self._answers.values():
                if not future.done():
                    future.set_exception(ConnectionFailed("the client has left"))
            self._wake()
