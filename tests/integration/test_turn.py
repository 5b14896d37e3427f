"""What a worker does by itself, between what its clients send: a real worker in the test's own loop, real sockets.

The worker's clock runs ahead of the true one when a test says so: nobody waits for ten seconds to pass.
"""

import asyncio
import itertools
import json
import logging
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest

from fastpresence._native.framing import CLOSE, TEXT, Frame, Stream, build_masked
from fastpresence.presence.sessions import Now
from fastpresence.worker.backlog import HEAVY, Backlog
from fastpresence.worker.drain import drain
from fastpresence.worker.peer import Peer
from fastpresence.worker.worker import Worker
from tests.support.world import DEADLINE_S, World

KEY = b"mask"


class Ahead(World):
    """One whose clock can be moved on."""

    def __init__(self) -> None:
        super().__init__()
        self.ahead_s = 0
        self.worker.now = self.now  # type: ignore[method-assign]

    def now(self) -> Now:
        return Now(
            time.monotonic_ns() // 1_000_000 + self.ahead_s * 1000, time.time_ns() // 1000 + self.ahead_s * 1_000_000
        )

    def run(self, story: Awaitable[None]) -> None:
        self.loop.run_until_complete(asyncio.wait_for(story, DEADLINE_S))


@pytest.fixture
def world() -> Iterator[Ahead]:
    made = Ahead()
    yield made
    made.close()


async def until(condition: Callable[[], object]) -> None:
    """The caller's deadline is the world's."""
    while not condition():
        await asyncio.sleep(0.01)


class Client:
    """A WebSocket's other end."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.stream = Stream(masked=False)
        self.frames: list[Frame] = []

    async def open(self, user_id: str, query: str = "") -> "Client":
        self.socket = await self.world.connect()
        rest = await self.world.upgrade(self.socket, self.world.request(user_id, "user", query=query))
        self.frames += self.stream.feed(rest)
        return self

    async def take(self) -> Frame:
        while not self.frames:
            got = await self.world.loop.sock_recv(self.socket, 65_536)
            assert got, "closed without a close frame"
            self.frames += self.stream.feed(got)
        return self.frames.pop(0)

    async def say(self, **frame: object) -> None:
        await self.world.loop.sock_sendall(self.socket, build_masked(TEXT, json.dumps(frame).encode(), KEY))

    async def told(self, kind: str) -> dict[str, Any]:
        """The next frame of that type."""
        while True:
            opcode, payload = await self.take()
            assert opcode == TEXT, payload
            frame: dict[str, Any] = json.loads(payload)
            if frame["type"] == kind:
                return frame

    async def ended(self) -> int:
        """The code that it is closed with."""
        while (frame := await self.take()).opcode != CLOSE:
            pass
        return int.from_bytes(frame.payload[:2])


# Repeated warnings.


def test_the_end_of_a_burst_of_refusals_is_told_though_nobody_is_refused_any_more(
    world: Ahead, caplog: pytest.LogCaptureFixture
) -> None:
    def told() -> list[int]:
        """For how many refusals each line stands."""
        lines = [record.fields for record in caplog.records if record.getMessage() == "rejected handshake"]  # type: ignore[attr-defined]
        return [fields["count"] or 1 for fields in lines]

    async def story() -> None:
        for _ in range(4):
            with await world.connect() as client:
                await world.loop.sock_sendall(client, b"GET /ws HTTP/1.1\r\nHost: h\r\n\r\n")
                assert (await world.loop.sock_recv(client, 65_536)).startswith(b"HTTP/1.1 426 ")
        assert told() == [1]
        world.ahead_s += 10
        await until(lambda: len(told()) > 1)
        assert told() == [1, 3]

    caplog.set_level(logging.WARNING)
    world.run(story())


# A user's connections.


def test_a_kick_ends_every_connection_of_the_user_and_no_other(world: Ahead) -> None:
    async def story() -> None:
        worker = world.worker
        present, other, elder, observer = [
            await Client(world).open(user_id, "&public=0") for user_id in ("one", "two", "one", "one")
        ]
        for client in (elder, present, other):  # of one device: `elder` is superseded, and has no session any more
            await client.say(type="user_online", id=1, device="phone")
            await client.told("ack")
        assert worker.kick("one", worker.now()) == 3
        assert [await client.ended() for client in (present, elder, observer)] == [4010] * 3
        assert worker.kick("one", worker.now()) == 0
        assert worker.kick("nobody", worker.now()) == 0
        await other.say(type="heartbeat", id=2)
        assert (await other.told("heartbeat_ack"))["reply_to"] == 2

    world.run(story())


def test_a_worker_knows_the_connections_of_a_user_as_long_as_they_are_open(world: Ahead) -> None:
    """So that a kick or a revocation looks at those alone."""

    def known() -> dict[str, int]:
        return {user_id: len(peers) if isinstance(peers, set) else 1 for user_id, peers in world.worker.peers.items()}

    async def story() -> None:
        one, two, three, other = [await Client(world).open(user_id) for user_id in ("one", "one", "one", "two")]
        assert known() == {"one": 3, "two": 1}
        two.socket.close()
        await until(lambda: known() == {"one": 2, "two": 1})
        one.socket.close()
        await until(lambda: known() == {"one": 1, "two": 1})
        await three.say(type="user_offline")
        assert await three.ended() == 1000
        await until(lambda: known() == {"two": 1})
        one = await Client(world).open("one")
        assert known() == {"one": 1, "two": 1}
        assert world.worker.kick("one", world.worker.now()) == 1
        assert known() == {"two": 1}
        other.socket.close()
        await until(lambda: not known())

    world.run(story())


# An end that is put off.


def test_whoever_gets_the_place_of_one_whose_end_is_still_to_come_is_closed_when_his_token_runs_out(
    world: Ahead, monkeypatch: pytest.MonkeyPatch
) -> None:
    def place(user_id: str) -> int:
        peer = world.worker.peers[user_id]
        assert isinstance(peer, Peer)
        return peer.handle & 0xFFFFFFFF

    async def story() -> None:
        first = await Client(world).open("first")
        taken = place("first")
        longer, _ = world.worker.keys.issue("first", "user", room=None, expire_time=500_000, now=int(time.time()))
        said = [{"type": "heartbeat", "padding": "x" * HEAVY}, {"type": "token_refresh", "token": longer}]
        heavy = b"".join(build_masked(TEXT, json.dumps(frame).encode(), KEY) for frame in said)
        goodbye = build_masked(CLOSE, (1000).to_bytes(2, "big"), KEY)
        with monkeypatch.context() as patch:
            patch.setattr(Backlog, "kick", lambda backlog: None)  # others have all of its turns
            with monkeypatch.context() as late:
                late.setattr(sys.modules[Worker.__module__], "SLICE_S", -1)
                await world.loop.sock_sendall(first.socket, heavy + goodbye)
                first.socket.close()
                await until(lambda: not world.stat("connections"))
            second = await Client(world).open("second")
        assert place("second") == taken
        assert "first" in world.worker.peers  # his end is still to come
        world.worker.backlog.kick()
        await until(lambda: "first" not in world.worker.peers)
        world.ahead_s += 90_000
        assert await second.ended() == 4001

    world.run(story())


# The drain.


def test_a_drain_of_a_worker_without_clients_is_over_at_once(world: Ahead) -> None:
    world.run(drain(world.worker, 3600))


def test_clients_are_given_moments_spread_over_the_drain_and_newcomers_get_503_meanwhile(world: Ahead) -> None:
    async def story() -> None:
        clients = [await Client(world).open(f"user_{number}", "&public=0") for number in range(40)]
        draining = asyncio.create_task(drain(world.worker, 3600))
        after_ms = [(await client.told("draining"))["reconnect_after_ms"] for client in clients]
        assert min(after_ms) > 0.04 * 3_600_000  # they have time to hear of it, and newcomers too
        assert 0.75 * 3_600_000 < max(after_ms) <= 0.8 * 3_600_000
        steps = [later - sooner for sooner, later in itertools.pairwise(sorted(after_ms))]
        assert max(steps) < 2 * min(steps)
        with await world.connect() as late:
            await world.loop.sock_sendall(late, world.request("late", "user"))
            head = await world.loop.sock_recv(late, 65_536)
            assert head.startswith(b"HTTP/1.1 503 ")
            assert b"\r\nRetry-After: " in head
        await clients[0].say(type="heartbeat", id=1)
        await clients[0].told("heartbeat_ack")  # its moment has not come
        for client in clients:
            client.socket.close()
        await draining  # nobody is left: over at once

    world.run(story())


def test_a_few_clients_do_not_make_a_drain_as_long_as_it_may_be(world: Ahead) -> None:
    async def story() -> None:
        clients = [await Client(world).open(f"user_{number}", "&public=0") for number in range(2)]
        draining = asyncio.create_task(drain(world.worker, 3600))
        first, second = [(await client.told("draining"))["reconnect_after_ms"] for client in clients]
        assert 0.09 * 3_600_000 < max(first, second) <= 0.1 * 3_600_000
        draining.cancel()

    world.run(story())


@pytest.mark.parametrize("drain_time", [0, 1])
def test_everybody_is_closed_with_1012_before_a_drain_is_over(world: Ahead, drain_time: float) -> None:
    async def story() -> None:
        clients = [await Client(world).open(f"user_{number}") for number in range(30)]
        draining = asyncio.create_task(drain(world.worker, drain_time))
        for client in clients:
            assert (await client.told("draining"))["reconnect_after_ms"] <= drain_time * 800
        for client in clients:
            assert await client.ended() == 1012
            client.socket.close()
        await draining
        assert not world.worker.peers
        assert not world.stat("connections")

    world.run(story())


def test_a_crowd_is_told_of_the_drain_some_in_a_turn(world: Ahead, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[drain.__module__], "SLICE_S", 0)
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async def story() -> None:
        clients = [await Client(world).open(f"user_{number}", "&public=0") for number in range(30)]
        counting = asyncio.create_task(count())
        draining = asyncio.create_task(drain(world.worker, 0))
        while world.worker.peers:
            await asyncio.sleep(0)
        assert turns >= 2 * len(clients)  # a turn for each, to be told and to be closed
        counting.cancel()
        draining.cancel()

    world.run(story())
