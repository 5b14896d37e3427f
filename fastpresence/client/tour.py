"""`python -m fastpresence.client.tour --url ws://HOST:PORT/ws --api-key KEY`: the lifecycle in a few seconds.

Two hosts and three users, real clients on connections of their own, JSON and MessagePack mixed, against a running
server: they come online, beat, a host turns busy, a message is answered, a host's connection is cut and comes back
with nobody seeing it, a host leaves. Each observer says what it saw, and how long after its cause. Leaves out: the
network (all clients share this process, its clock and its one core). Exit code 0 when everyone saw what they should.
"""

import argparse
import asyncio
import json
import os
import sys
import time
import urllib.request
from collections.abc import Awaitable
from contextlib import AsyncExitStack
from typing import Final, Literal
from urllib.parse import urlsplit, urlunsplit

from fastpresence.client.connection import PresenceClient
from fastpresence.client.roster import Change
from fastpresence.client.streams import Changes
from fastpresence.errors import FastPresenceError

__all__ = ["main"]

#: Everybody must have seen a change by then: the tour's deadline, not the server's promise (50 ms).
DEADLINE_S: Final = 5.0
#: How long the tour watches for what must not be seen.
QUIET_S: Final = 1.0
#: A token outlives the tour, and not by much.
TOKEN_S: Final = 300

Codec = Literal["json", "msgpack"]

CAST: Final[tuple[tuple[str, str, Codec], ...]] = (
    ("kol_1", "kol", "json"),
    ("kol_2", "kol", "msgpack"),
    ("user_1", "user", "json"),
    ("user_2", "user", "msgpack"),
    ("user_3", "user", "json"),
)


class Unseen(Exception):
    """Somebody did not see what they should, or saw what they should not."""


class Observer:
    """One client of the cast, and when it saw what."""

    def __init__(self, client: PresenceClient, name: str, codec: str) -> None:
        self.client = client
        self.name = name
        self.codec = codec
        self.seen: list[tuple[float, Change]] = []
        self._moved = asyncio.Event()

    async def watch(self, changes: Changes) -> None:
        """Note every change and its moment, until the client leaves."""
        async for change in changes:
            self.seen.append((time.perf_counter(), change))
            self._moved.set()

    async def saw(self, user_id: str, status: str, since: float) -> float:
        """Wait until this user showed this status; the moment."""
        while True:
            for moment, change in self.seen:
                if moment >= since and change.user_id == user_id and change.entry.status == status:
                    return moment
            self._moved.clear()
            await self._moved.wait()


class Tour:
    """The cast, the script, and the worst latency so far."""

    def __init__(self, url: str, api_key: str) -> None:
        self.url = url
        self.api_key = api_key
        self.worst_ms = 0.0
        self.seen = 0
        self.cast: dict[str, Observer] = {}

    async def token(self, user_id: str, user_type: str) -> str:
        """From the server's token endpoint, as an application's backend would fetch it."""
        parts = urlsplit(self.url)
        scheme = {"ws": "http", "wss": "https"}[parts.scheme]
        url = urlunsplit((scheme, parts.netloc, "/api/online-status/rts-token", "", ""))
        body = json.dumps({"user_id": user_id, "user_type": user_type, "expire_time": TOKEN_S}).encode()
        headers = {"Authorization": f"Bearer {self.api_key}", "Content-Type": "application/json"}

        def post() -> str:
            request = urllib.request.Request(url, body, headers)  # noqa: S310
            with urllib.request.urlopen(request, timeout=DEADLINE_S) as answer:  # noqa: S310
                return str(json.load(answer)["signature"])

        return await asyncio.to_thread(post)

    async def enter(self, stack: AsyncExitStack, user_id: str, user_type: str, codec: Codec, token: str) -> None:
        client = PresenceClient(
            self.url, token=token, user_id=user_id, codec=codec, device="tour", connect_timeout=DEADLINE_S
        )
        observer = Observer(client, user_id, codec)
        await stack.enter_async_context(client)
        self.cast[user_id] = observer
        watching = asyncio.create_task(observer.watch(client.changes()))

        async def stop() -> None:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)

        stack.push_async_callback(stop)

    def others(self, name: str) -> list[Observer]:
        return [observer for observer in self.cast.values() if observer.name != name]

    async def scene(self, title: str, user_id: str, status: str, act: Awaitable[None]) -> None:
        """Something happens to a host; everyone else must see it."""
        print(f"\n{title}")
        since = time.perf_counter()

        async def look(observer: Observer) -> tuple[float, str]:
            try:
                async with asyncio.timeout(DEADLINE_S):
                    moment = await observer.saw(user_id, status, since)
            except TimeoutError:
                raise Unseen(f"{observer.name} did not see {user_id} {status} within {DEADLINE_S:g} s") from None
            return moment, f"{observer.name} ({observer.codec}) saw {user_id} {status}"

        acting = asyncio.ensure_future(act)
        looking = [asyncio.create_task(look(observer)) for observer in self.others(user_id)]
        try:
            await asyncio.gather(acting, *looking)
        finally:
            for task in (acting, *looking):
                task.cancel()
            await asyncio.gather(acting, *looking, return_exceptions=True)
        for task in looking:
            moment, what = task.result()
            self.note(what, moment - since)

    def note(self, what: str, seconds: float) -> None:
        self.seen += 1
        self.worst_ms = max(self.worst_ms, seconds * 1000)
        print(f"  {what} after {seconds * 1000:.1f} ms")

    async def converse(self) -> None:
        """A message and its answer."""
        print("\nuser_1 writes to kol_2, who answers")
        asking, host = self.cast["user_1"].client, self.cast["kol_2"].client
        for sender, receiver, text in ((asking, host, "Hello, can we talk?"), (host, asking, "In a minute.")):
            since = time.perf_counter()
            if receiver.user_id is None or sender.user_id is None:
                raise Unseen("somebody has no name")
            delivered, message = await asyncio.wait_for(
                asyncio.gather(sender.send_message(receiver.user_id, text), anext(receiver.messages())), DEADLINE_S
            )
            took = time.perf_counter() - since
            if (message.message, message.from_user_id, delivered) != (text, sender.user_id, 1):
                raise Unseen(f"{receiver.user_id} got {message}, delivered to {delivered}")
            self.note(f"{receiver.user_id} read {message.message!r} from {sender.user_id}", took)

    async def cut(self) -> None:
        """A connection breaks without a word; its user comes back before anybody can tell."""
        host = self.cast["kol_2"]
        print("\nkol_2's TCP connection is cut")
        marks = {observer.name: len(observer.seen) for observer in self.others("kol_2")}
        since = time.perf_counter()
        if host.client.transport is None:
            raise Unseen("kol_2 has no connection to cut")
        host.client.transport.abort()
        await host.client.wait_state("disconnected", DEADLINE_S)
        await host.client.wait_synced(DEADLINE_S)
        print(f"  kol_2 is back, cursor and status brought along, after {(time.perf_counter() - since) * 1000:.1f} ms")
        await asyncio.sleep(QUIET_S)
        for observer in self.others("kol_2"):
            flickers = [change for _, change in observer.seen[marks[observer.name] :] if not change.entry.online]
            if flickers:
                raise Unseen(f"{observer.name} saw {flickers[0].user_id} go offline")
            if not observer.client.status_of("kol_2").online:
                raise Unseen(f"{observer.name} does not see kol_2")
        print(f"  nobody saw kol_2 offline, then or in the {QUIET_S:g} s since")

    async def play(self) -> None:
        tokens = {name: await self.token(name, kind) for name, kind, _ in CAST}
        async with AsyncExitStack() as all_others, AsyncExitStack() as first_host:
            for name, kind, codec in CAST:
                if kind == "user":
                    await self.enter(all_others, name, kind, codec, tokens[name])
            print("user_1, user_2 and user_3 are online, in JSON and in MessagePack")
            for name, kind, codec in CAST:
                if kind == "kol":
                    stack = first_host if name == "kol_1" else all_others
                    coming = self.enter(stack, name, kind, codec, tokens[name])
                    await self.scene(f"{name} connects and comes online", name, "online", coming)
            print("\neveryone beats")
            beats = await asyncio.gather(*(observer.client.beat() for observer in self.cast.values()))
            print(f"  {len(beats)} beats, the slowest answered after {max(beats) * 1000:.1f} ms")
            busy = self.cast["kol_1"].client.set_status("busy")
            await self.scene("kol_1 turns busy", "kol_1", "busy", busy)
            await self.converse()
            await self.cut()
            await self.scene("kol_1 leaves", "kol_1", "offline", first_host.aclose())


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m fastpresence.client.tour",
        description="The lifecycle with real clients against a running server, in a few seconds.",
    )
    parser.add_argument("--url", required=True, help="the WebSocket's URL, such as ws://127.0.0.1:8080/ws")
    parser.add_argument("--api-key", help="an API key of a trial server (default: from FASTPRESENCE_API_KEY)")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """0 when everyone saw what they should; 1 when not, or without a server; 2 for a wrong command line."""
    options = parse(arguments)
    api_key = options.api_key or os.environ.get("FASTPRESENCE_API_KEY", "").strip()
    if not api_key or urlsplit(options.url).scheme not in ("ws", "wss"):
        print("an API key, and a URL that begins with ws:// or wss://, please", file=sys.stderr)
        return 2
    tour = Tour(options.url, api_key)
    began = time.perf_counter()
    try:
        asyncio.run(tour.play())
    except KeyboardInterrupt:
        return 1
    except (Unseen, FastPresenceError, OSError, TimeoutError) as exc:
        print(f"\nfailed: {exc or type(exc).__name__}", file=sys.stderr)
        return 1
    took = time.perf_counter() - began
    print(f"\n{tour.seen} sightings, every one as it should be; the slowest after {tour.worst_ms:.1f} ms; {took:.1f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
