"""The client's asyncio face: `PresenceClient`, what an application uses.

    async with PresenceClient(url, token=fetch_token, device="laptop") as client:
        await client.set_status("busy")
        async for change in client.changes():
            ...

The machine is client.core, what drives it client.driver. Invariant: after `async with` no task, timer or socket of
the client is left; every wait ends, at the latest then.
"""

import asyncio
import random
import secrets
from collections.abc import Callable, Iterable
from ssl import SSLContext
from types import TracebackType
from typing import Final, Literal, Self, TypeVar
from uuid import uuid4

from fastpresence.client.core import ClientCore
from fastpresence.client.driver import Driver, TokenProvider
from fastpresence.client.http import poll_url as poll_url_of
from fastpresence.client.link import with_query
from fastpresence.client.machine import Freshness, State
from fastpresence.client.phone import Call
from fastpresence.client.schedule import Timing
from fastpresence.client.streams import Changes, Mailbox
from fastpresence.codec import JSON, MSGPACK
from fastpresence.errors import ConnectionFailed, FastPresenceError
from fastpresence.messages import Ack, Message, Status, StatusEntry, UserOnlineStatus

__all__ = ["PresenceClient", "TokenProvider"]

#: Users in one request (docs/protocol.md, section 2).
USERS_ASKED: Final = 1000

_C = TypeVar("_C", bound=Callable[..., object])

_CODECS: Final = {"json": JSON, "msgpack": MSGPACK}


class PresenceClient:
    """One user's presence, or an observer's view of it, over one WebSocket that comes back by itself.

    Where no WebSocket can be had, a user's client polls over HTTP until one can: the user stays present and the copy of
    the roster some seconds old at most; messages and calls have to wait. An observer's does not: a poll is a presence.

    - `token`: a token, or a callable (sync, and then quick, or async) that fetches one. With a callable, a refused or
      expiring token is replaced by itself; with a plain token, its end is the client's.
    - `user_id`, `user_type`: whose token this should be; None takes what the token says.
    - `device`: which of the user's devices this is; a new session of the same device takes the older one's place. None
      is one of its own for this client: whoever starts anew and wants to take his own place gives a name that he keeps.
    - `online`: False makes an observer, who sees and is not seen. `status`: what the user shows as from the start;
      None is online, unless another device of the user has hidden him.
    - `public`: whether to see the public users (hosts).
    - `poll_url`: where to poll; None derives it from `url` (`ws://host/ws`: `http://host/api/online-status/poll`).
    - `connect_timeout`: seconds that entering may take, first snapshot included.
    """

    def __init__(
        self,
        url: str,
        *,
        token: str | TokenProvider,
        user_id: str | None = None,
        user_type: str | None = None,
        device: str | None = None,
        codec: Literal["json", "msgpack"] = "json",
        online: bool = True,
        status: Status | None = None,
        public: bool = True,
        poll_url: str | None = None,
        connect_timeout: float = 30.0,
        timing: Timing | None = None,
        ssl_context: SSLContext | None = None,
    ) -> None:
        self._url = url
        self._connect_timeout = connect_timeout
        timing = timing or Timing()
        self._core = ClientCore(
            random=random.random,
            timing=timing,
            user_id=user_id,
            user_type=user_type,
            device=device or f"client-{secrets.token_hex(8)}",
            online=online,
            status=status,
            public=public,
            renewable=not isinstance(token, str),
        )
        poll_url = poll_url or poll_url_of(url)
        self._driver = Driver(
            self._core,
            url=url if public else with_query(url, public="0"),
            poll_url=poll_url if public else with_query(poll_url, public="0"),
            token=token,
            codec=_CODECS[codec],
            timing=timing,
            ssl_context=ssl_context,
        )
        self._entered = False

    # Life.

    async def __aenter__(self) -> Self:
        """Connect, come online and take the first snapshot.

        Raises ConnectionFailed when that can't be done in time or is refused for good, RequestRefused when the server
        does not let this user come online.
        """
        if self._entered:
            raise RuntimeError("a PresenceClient is entered once")
        self._entered = True
        try:
            self._driver.start()
            try:
                async with asyncio.timeout(self._connect_timeout):
                    await self._driver.until(lambda: not self.stale)
            except TimeoutError:
                reason = self._core.reason
                raise ConnectionFailed(f"no connection within {self._connect_timeout:g} s: {reason}") from reason
        except BaseException:
            await self._driver.close(graceful=False)
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._driver.close(graceful=True)

    # What the user wants. Each waits for the server's answer. RequestRefused: the server said no, nothing changed.
    # ConnectionFailed: nobody could be told, or the connection broke before the answer; a status, watches and rooms
    # are then told at the next connection.

    async def set_status(self, status: Status) -> None:
        """Show as `status` from now on; "offline" hides this user while he stays connected."""
        await self._driver.ask(self._core.set_status(status, self._driver.now_ms()))

    async def send_message(self, to_user_id: str, text: str) -> int:
        """Send a text to every session of a user; the number of connected sessions it was handed to."""
        answer = await self._driver.ask(self._core.send_message(to_user_id, text, self._driver.now_ms()))
        return answer.delivered if isinstance(answer, Ack) and isinstance(answer.delivered, int) else 0

    async def watch(self, *user_ids: str) -> None:
        """Learn of every change of these users from now on, and of their present state."""
        for batch in _batches(user_ids):
            await self._driver.ask(self._core.watch(batch, self._driver.now_ms()))

    async def unwatch(self, *user_ids: str) -> None:
        """Stop watching these users."""
        for batch in _batches(user_ids):
            await self._driver.ask(self._core.unwatch(batch, self._driver.now_ms()))

    async def join(self, room: str) -> None:
        """Join a room: see its members and, unless an observer, be seen by them."""
        await self._driver.ask(self._core.join(room, self._driver.now_ms()))

    async def leave(self, room: str) -> None:
        """Leave a room."""
        await self._driver.ask(self._core.leave_room(room, self._driver.now_ms()))

    async def call(self, to_user_id: str, *, video: bool = True, audio: bool = True) -> Call:
        """Call a user: it rings on all of his devices when this returns, and ends by itself after a minute.

        Raises RequestRefused with `user_offline`, `user_busy` (he, or this user), `unavailable`, `too_many`.
        """
        request_id, record = self._core.call(uuid4().hex, to_user_id, self._driver.now_ms(), video=video, audio=audio)
        call = self._driver.hold(record)
        try:
            await self._driver.ask(request_id)
        except asyncio.CancelledError:
            self._driver.give_up(call)
            raise
        return call

    async def request_status(self, *user_ids: str) -> dict[str, StatusEntry]:
        """Ask once how these users are; unknown ones are offline with `rev` 0."""
        found: dict[str, StatusEntry] = {}
        for batch in _batches(user_ids):
            answer = await self._driver.ask(self._core.ask(batch, self._driver.now_ms()))
            if isinstance(answer, UserOnlineStatus):
                found.update((entry.user_id, entry) for entry in answer.user_status)
        return found

    async def beat(self) -> float:
        """Send a heartbeat now, beside those that go out by themselves; seconds until it was answered."""
        loop = asyncio.get_running_loop()
        sent = loop.time()
        await self._driver.ask(self._core.beat(self._driver.now_ms()))
        return loop.time() - sent

    def retry(self) -> None:
        """Try to connect now: the network is back."""
        self._driver.start()

    # What the user sees.

    def status_of(self, user_id: str) -> StatusEntry:
        """How a user is, as far as this connection sees him; offline with `rev` 0 when nothing is known."""
        return self._core.copy.status_of(user_id)

    def statuses(self) -> dict[str, StatusEntry]:
        """Everyone in the copy of the roster, by user id."""
        return dict(self._core.copy.entries)

    def members(self, room: str) -> dict[str, StatusEntry]:
        """The members of a joined room; none for a room that only tells its `occupancy`."""
        entries = self._core.copy.entries
        return {user_id: entries[user_id] for user_id in self._core.copy.rooms.get(room, ())}

    def occupancy(self, room: str) -> int:
        """How many members a joined room has."""
        copy = self._core.copy
        return copy.occupancy.get(room, len(copy.rooms.get(room, ())))

    def changes(self) -> Changes:
        """Every change from now on, conflated for a slow reader; ends when the client is left."""
        stream = Changes()
        if self._driver.over:
            stream.end(self._driver.stop_reason())
        else:
            self._driver.streams.add(stream)
        return stream

    def calls(self) -> Mailbox[Call]:
        """The calls for this user, as they begin to ring, each read once, whoever reads.

        One that was read late may have ended: look at its `state`. `dropped` counts those that were not read in time.
        """
        return self._driver.incoming

    @property
    def open_calls(self) -> list[Call]:
        """Calls, incoming and outgoing, that have not ended."""
        return list(self._driver.calls.values())

    def messages(self) -> Mailbox[Message]:
        """The messages for this user, each read once, whoever reads; `dropped` counts those not read in time."""
        return self._driver.mailbox

    @property
    def state(self) -> State:
        return self._core.state

    @property
    def stale(self) -> bool:
        """Whether the copy of the roster may have missed changes: neither connected nor polling, or not caught up."""
        return self._core.stale

    @property
    def freshness(self) -> Freshness:
        """How good the copy is: `live`, `polled` (some seconds old at most) or `stale`."""
        return self._core.freshness

    @property
    def user_id(self) -> str | None:
        """Who this is: as given, else as the server said."""
        return self._core.user_id

    @property
    def user_type(self) -> str | None:
        return self._core.user_type

    @property
    def reason(self) -> FastPresenceError | None:
        """Why the client is not connected."""
        return self._core.reason

    @property
    def transport(self) -> asyncio.Transport | None:
        """The transport of the connection, to break it on purpose in tests and demonstrations."""
        return self._driver.transport

    def on_state(self, callback: Callable[[State], object]) -> Callable[[], None]:
        """Call `callback` with each new state, in the event loop; call what comes back to stop that."""
        return _registered(self._driver.state_callbacks, callback)

    def on_freshness(self, callback: Callable[[Freshness], object]) -> Callable[[], None]:
        """The same with how good the copy of the roster is, whenever that changes."""
        return _registered(self._driver.freshness_callbacks, callback)

    def on_occupancy(self, callback: Callable[[str, int], object]) -> Callable[[], None]:
        """The same with room and number of members, for rooms that are too big for a roster."""
        return _registered(self._driver.occupancy_callbacks, callback)

    async def wait_state(self, state: State, timeout: float | None = None) -> None:  # noqa: ASYNC109
        """Wait until the client is in `state`, however shortly. Raises TimeoutError, or ConnectionFailed at its end."""
        seen = self.state == state

        def note(new: State) -> None:
            nonlocal seen
            seen = seen or new == state

        stop = self.on_state(note)
        try:
            async with asyncio.timeout(timeout):
                await self._driver.until(lambda: seen)
        finally:
            stop()

    async def wait_synced(self, timeout: float | None = None) -> None:  # noqa: ASYNC109
        """Wait until the copy is not stale. Raises as `wait_state` does."""
        async with asyncio.timeout(timeout):
            await self._driver.until(lambda: not self.stale)


def _registered(callbacks: list[_C], callback: _C) -> Callable[[], None]:
    callbacks.append(callback)

    def stop() -> None:
        if callback in callbacks:
            callbacks.remove(callback)

    return stop


def _batches(user_ids: Iterable[str]) -> list[list[str]]:
    ids = list(user_ids)
    return [ids[start : start + USERS_ASKED] for start in range(0, len(ids), USERS_ASKED)]
