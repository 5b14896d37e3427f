"""The worker's journal on its way to the node: transitions in batches, and what happens when there are too many.

    note(transition) --> list --> at once, then every 100 ms --> Journal frame --> uplink
                                                     full uplink: lost and counted
                                        room again:  Journal(dropped), then everybody who is there, page by page

A transition costs 0.1 µs here, and 0.2 µs more in its batch. Lost lines are lost for the
node's timeline, but not for what it knows of who is there: that is told anew, as state.
"""

import asyncio
from typing import Final, cast

from fastpresence.link import Journal, JournalLine, Present, PresentUser
from fastpresence.presence.roster import Roster
from fastpresence.presence.sessions import Transition
from fastpresence.worker.uplink import Uplink

__all__ = ["JournalWriter"]

#: Seconds from one batch to the next.
EVERY_S: Final = 0.1
#: Lines of one frame: half a millisecond.
BATCH: Final = 400
#: Users of one page, about as long.
PAGE: Final = 400
#: Seconds between two pages.
PAGE_EVERY_S: Final = 0.005


class JournalWriter:
    """Takes every transition of this worker; `note` never fails and never calls back."""

    def __init__(self, loop: asyncio.AbstractEventLoop, uplink: Uplink, roster: Roster) -> None:
        self._loop = loop
        self._uplink = uplink
        self._roster = roster
        self._lines: list[Transition] = []
        self._next_s = 0.0  # no batch goes before that, unless it is full
        self._lost = asyncio.Event()  # set while the node may be wrong about who is there
        self.dropped = 0  #: lines that were lost and not told of yet; while there are any, all are

    def note(self, change: Transition) -> None:
        """One more line."""
        self._lines.append(change)
        count = len(self._lines)
        if count == 1:
            wait_s = self._next_s - self._loop.time()
            if wait_s > 0:
                self._loop.call_later(wait_s, self.send)
            else:
                self._loop.call_soon(self.send)
        elif count == BATCH:
            self._loop.call_soon(self.send)

    def send(self) -> None:
        """Hand over what has been noted. Nothing happens when there is nothing."""
        changes, self._lines = self._lines, []
        if changes:
            self._next_s = self._loop.time() + EVERY_S
        for at in range(0, len(changes), BATCH):
            part = changes[at : at + BATCH]
            # On the link they are the same: both are arrays, of the same fields.
            if self.dropped or not self._uplink.offer(Journal(cast("list[JournalLine]", part))):
                self.dropped += len(part)
                self._lost.set()

    async def run(self) -> None:
        """After each loss, as soon as there is room: tell how much was lost, and who is there."""
        while True:
            await self._lost.wait()
            await self._uplink.room()
            self.send()  # they are lost as well, and counted
            self._lost.clear()
            self._uplink.tell(Journal([], self.dropped))
            self.dropped = 0
            await self._tell_everybody()

    async def _tell_everybody(self) -> None:
        """In pages; given up when there is no room again, and then begun anew."""
        users = [*self._roster.everyone, *self._roster.unlisted]
        for at in range(0, max(1, len(users)), PAGE):
            self.send()  # what happened before the page was made goes before it
            page = [user for user_id in users[at : at + PAGE] if (user := self._present(user_id)) is not None]
            if self._lost.is_set() or not self._uplink.offer(Present(page, is_first=at == 0)):
                self._lost.set()
                return
            await asyncio.sleep(PAGE_EVERY_S)

    def _present(self, user_id: str) -> PresentUser | None:
        record = self._roster.find(user_id)
        if record is None or not record.sessions:
            return None
        sessions = [session.number for session in record.sessions]
        return PresentUser(user_id, record.user_type, record.status, record.rev, sessions)
