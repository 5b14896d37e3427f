"""A call as an application holds it: `Call`, which moves the call and iterates over what happens in it.

    call = await client.call("kol_123")               async for call in client.calls():
    if await call.answered():                             await call.accept()
        await call.signal(offer)                          async for event in call:
        async for event in call: ...                          ...

The machine's side of it is client.calls. Event-loop thread only. Used by client.driver and client.connection.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

from fastpresence.client.calls import CallMoved, CallOutcome, CallRecord, CallState, Signal
from fastpresence.client.core import ClientCore
from fastpresence.client.streams import Mailbox
from fastpresence.errors import RequestRefused

__all__ = ["Call"]

#: Events of one call that wait to be read; beyond, the oldest is dropped and counted.
EVENTS_KEPT: Final = 1000


class Call:
    """One call between this client's user and another one, from its first ring to its end.

    Iterating gives `CallMoved` for each new state and `Signal` for what the other side signals, each read once, whoever
    reads; it ends with the call. `dropped` counts the events that were not read in time.
    """

    def __init__(
        self,
        record: CallRecord,
        core: ClientCore,
        ask: Callable[[int], Awaitable[object]],
        now_ms: Callable[[], float],
    ) -> None:
        self._record = record
        self._core = core
        self._ask = ask
        self._now_ms = now_ms
        self._events: Mailbox[CallMoved | Signal] = Mailbox(EVENTS_KEPT)
        self._moved = asyncio.Event()
        self._taken = False  # it was active, if only for a moment

    # What it is.

    @property
    def call_id(self) -> str:
        return self._record.call_id

    @property
    def user_id(self) -> str:
        """The other side."""
        return self._record.user_id

    @property
    def outgoing(self) -> bool:
        """Whether this client called."""
        return self._record.outgoing

    @property
    def video(self) -> bool:
        return self._record.video

    @property
    def audio(self) -> bool:
        return self._record.audio

    @property
    def state(self) -> CallState:
        """`calling` (nobody rings yet), `ringing`, `active` or `ended`."""
        return self._record.state

    @property
    def outcome(self) -> CallOutcome | None:
        """Why it ended; None until then."""
        return self._record.outcome

    @property
    def dropped(self) -> int:
        """Events that were not read in time."""
        return self._events.dropped

    # What to do with it. Each waits for the server's answer. RequestRefused: the call has ended, or is past that.
    # ConnectionFailed: nobody could be told. A call that was hung up is over all the same, and the server is told at
    # the next connection; one that was accepted is accepted then, if it still rings.

    async def accept(self) -> None:
        """Take an incoming call, on this device; both users show busy until it ends."""
        await self._ask(self._core.accept_call(self.call_id, self._now_ms()))

    async def reject(self) -> None:
        """Refuse an incoming call; it stops ringing on all devices."""
        await self._hang_up()

    async def cancel(self) -> None:
        """Take back an outgoing call that nobody has taken yet."""
        await self._hang_up()

    async def end(self) -> None:
        """Hang up, whichever way the call went and however far it came: rejects or cancels one that still rings."""
        await self._hang_up()

    async def signal(self, data: str) -> None:
        """Say something to the other side, at most 16,384 characters; while it rings, to all of its devices."""
        await self._ask(self._core.signal(self.call_id, data, self._now_ms()))

    async def _hang_up(self) -> None:
        try:
            await self._ask(self._core.hang_up(self.call_id, self._now_ms()))
        except RequestRefused as refused:
            if refused.code != "unknown_call":  # else it is over, as was wanted
                raise

    # What happens.

    async def answered(self) -> bool:
        """Wait until the call is taken (True) or has ended without that (False)."""
        while not self._taken and self._record.outcome is None:
            await self._moved.wait()
        return self._taken

    async def ended(self) -> CallOutcome:
        """Wait until the call is over; why it is."""
        while self._record.outcome is None:
            await self._moved.wait()
        return self._record.outcome

    def __aiter__(self) -> Mailbox[CallMoved | Signal]:
        return self._events

    def happened(self, event: CallMoved | Signal) -> None:
        """The machine tells of an event."""
        self._events.put(event)
        if isinstance(event, CallMoved):
            self._taken = self._taken or event.state == "active"
            self._moved.set()
            self._moved.clear()
            if event.state == "ended":
                self._events.end()
