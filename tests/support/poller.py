"""A user without a WebSocket: polls over plain HTTP and shares no code with our client.

    begin -> a poll every so often, each with the cursor of the one before -> View: what the answers add up to

The list is flat, so that this view knows who is how, and not who is in which room.
"""

import asyncio
import json
import time
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

from tests.support.clients import RawClient, View
from tests.support.server import DEADLINE, Server

__all__ = ["Poller"]

Frame = dict[str, Any]


class Poller:
    """One user who polls, from entering to leaving. Afterwards he is not heard of any more."""

    def __init__(self, server: Server, user_id: str, *, every_s: float, **scope: list[str]) -> None:
        self.user_id = user_id
        self.view = View()
        self.polls = 0
        self._server = server
        self._token = server.token(user_id)
        self._every_s = every_s
        self._scope = scope
        self._known: set[str] = set()  # in the scope, as far as was told
        self._cursor: str | None = None
        self._news = asyncio.Condition()
        self._polling: asyncio.Task[None] | None = None

    async def caught_up(self) -> None:
        """A poll that began after this call has been answered."""
        target = self.polls + 2
        async with self._news, asyncio.timeout(DEADLINE):
            await self._news.wait_for(lambda: self.polls >= target or self._failed())
        if self._failed() and self._polling:
            self._polling.result()

    def _failed(self) -> bool:
        return self._polling is None or self._polling.done()

    async def _poll(self) -> None:
        async with RawClient.open(self._server) as raw:
            try:
                while True:
                    more = await self._one(raw)
                    async with self._news:
                        self._news.notify_all()
                    if not more:
                        await asyncio.sleep(self._every_s)
            finally:
                async with self._news:
                    self._news.notify_all()

    async def _one(self, raw: RawClient) -> bool:
        """One poll; whether there is more to tell."""
        asked: Frame = {**self._scope, "device": "poller"}
        if self._cursor is not None:
            asked["cursor"] = self._cursor
        body = json.dumps(asked).encode()
        raw.send(
            b"POST /api/online-status/poll HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer %b\r\n"
            b"Content-Length: %d\r\n\r\n%b" % (self._token.encode(), len(body), body)
        )
        status, _, answer = await raw.response()
        assert status == 200, answer
        told: Frame = json.loads(answer)
        at_s = time.monotonic()
        entries: list[Frame] = told["user_status"]
        if told["full"]:
            listed = {entry["user_id"] for entry in entries}
            for user_id in self._known - listed:
                gone = {**self.view.known[user_id], "status": "offline", "online": False}
                self.view.take({"user_status": [gone], "full": False}, "watch", [], at_s)
            self._known.clear()
        for entry in entries:
            (self._known.discard if entry.pop("left", False) else self._known.add)(entry["user_id"])
        self.view.take({"user_status": entries, "full": False}, "watch", [], at_s)
        self._cursor = told["cursor"]
        self.polls += 1
        return bool(told.get("more"))

    async def __aenter__(self) -> Self:
        self._polling = asyncio.create_task(self._poll())
        await self.caught_up()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        if self._polling is not None:
            self._polling.cancel()
            with suppress(asyncio.CancelledError):
                await self._polling
        if exc is None:
            assert not self.view.violations, self.view.violations
