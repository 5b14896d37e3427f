"""One turn of the loop while a crowd asks for much in small frames: everybody has one, what more there is waits.

The worker runs in the test's own loop, whose turns a test can count, and whose clock says that this turn took long
enough: what may be put off is put off.
"""

import asyncio
import contextlib
import time
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from fastpresence._native.framing import TEXT, Stream, build_masked
from fastpresence.settings import LimitsSettings
from fastpresence.worker import worker as worker_module
from fastpresence.worker.backlog import FURTHER
from tests.support.world import DEADLINE_S, World

CROWD = 20
EACH = 50  #: frames of each of them at once, within the rate


class Talker:
    """A client that keeps what it is answered."""

    def __init__(self, world: World, user_id: str) -> None:
        self.world = world
        self.user_id = user_id
        self.stream = Stream(masked=False, frame_size=1 << 20, message_size=1 << 20)
        self.frames: list[dict[str, Any]] = []

    async def begin(self, *, receive_buffer: int | None = None) -> None:
        self.socket = await self.world.connect(receive_buffer)
        request = self.world.request(self.user_id, "user", query="&public=0")
        self.take(await self.world.upgrade(self.socket, request))
        await self.say(type="user_online", id="hello")
        await self.hear("hello")

    async def say(self, *messages: dict[str, Any], **message: Any) -> None:
        frames = [build_masked(TEXT, msgspec.json.encode(each), b"mask") for each in messages or (message,)]
        await self.world.loop.sock_sendall(self.socket, b"".join(frames))

    def take(self, data: bytes) -> None:
        """This came."""
        self.frames += [msgspec.json.decode(frame.payload) for frame in self.stream.feed(data)]

    async def hear(self, reply_to: object) -> None:
        """Until this is answered."""
        while not any(frame.get("reply_to") == reply_to for frame in self.frames):
            await self.hear_more()

    async def hear_more(self) -> None:
        data = await asyncio.wait_for(self.world.loop.sock_recv(self.socket, 1 << 16), DEADLINE_S)
        assert data, "closed"
        self.take(data)

    @property
    def answered(self) -> list[object]:
        return [frame["reply_to"] for frame in self.frames if "reply_to" in frame]


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    world = World(limits=LimitsSettings(send_buffer=4608))
    monkeypatch.setattr(worker_module, "SLICE_S", -1.0)  # every turn has taken long enough as soon as somebody asks
    yield world
    world.close()


async def crowd_of(world: World, count: int) -> list[Talker]:
    crowd = [Talker(world, f"user_{number}") for number in range(count)]
    for talker in crowd:
        await talker.begin()
    return crowd


def test_a_crowd_that_floods_with_small_frames_keeps_nobody_waiting_for_more_than_one_of_each(world: World) -> None:
    async def story() -> None:
        *crowd, other = await crowd_of(world, CROWD + 1)
        before = world.stat("frames_sent")
        for talker in crowd:
            await talker.say(
                *[{"type": "status_change", "status": ("busy", "away")[n % 2], "id": n} for n in range(EACH)]
            )
        await other.say(type="heartbeat", id="in time")
        world.worker.engine.run()
        assert world.stat("frames_sent") - before <= CROWD + 1 + FURTHER
        await other.hear("in time")
        for talker in crowd:
            await talker.hear(EACH - 1)
            assert talker.answered[1:] == list(range(EACH))

    world.loop.run_until_complete(story())


def test_a_small_question_for_whole_rooms_waits_and_is_answered_in_its_place(world: World) -> None:
    async def story() -> None:
        *members, curious = await crowd_of(world, CROWD + 1)
        for member in members:
            await member.say(type="subscribe", rooms=["hall"], id="joined")
            await member.hear("joined")
        before = world.stat("frames_sent")
        await curious.say(
            {"type": "subscribe", "rooms": ["hall"], "id": 1},
            {"type": "subscribe", "id": 2},
            {"type": "heartbeat", "id": 3},
        )
        world.worker.engine.run()
        assert world.stat("frames_sent") == before
        await curious.hear(3)
        assert curious.answered[1:] == [1, 2, 3]
        told = [frame for frame in curious.frames if frame.get("full", True)][-4:]  # not that he joined
        assert [frame["type"] for frame in told] == ["ack", "user_online_status", "error", "heartbeat_ack"]
        assert len(told[1]["user_status"]) == CROWD + 1

    world.loop.run_until_complete(story())


def test_a_small_question_for_many_rooms_makes_no_more_wait_than_one_turn_may_answer(world: World) -> None:
    rooms = [f"room_{number}" for number in range(40)]

    async def story() -> None:
        members = await crowd_of(world, 60)
        for member in members:
            await member.say(type="subscribe", rooms=rooms, id="joined")
            await member.hear("joined")
        greedy = Talker(world, "greedy")
        await greedy.begin(receive_buffer=4096)
        peer = next(peer for peer in world.worker.engine.owners() if peer.user_id == "greedy")
        await greedy.say({"type": "subscribe", "rooms": rooms, "id": 1}, {"type": "heartbeat", "id": 2})
        waiting = 0
        while "greedy" not in world.worker.service.audience.rooms[rooms[-1]].members:
            await greedy.hear_more()
            waiting = max(waiting, world.worker.engine.waiting(peer.handle))
        # What a turn may answer, a room, and what is told of the rooms meanwhile; all of them are 240,000.
        assert waiting < 2 * 65_536
        await greedy.hear(2)
        told = [frame["room"] for frame in greedy.frames if frame["type"] == "user_online_status" and frame["full"]]
        assert told == rooms
        assert greedy.answered[1:] == [1, 2]

    world.loop.run_until_complete(story())


def test_what_a_reader_missed_waits_its_turn_when_he_reads_again_and_is_the_latest_then(world: World) -> None:
    async def story() -> None:
        host, slow = Talker(world, "host"), Talker(world, "slow")
        await host.begin()
        await slow.begin(receive_buffer=4096)
        await slow.say(type="subscribe", user_ids=["host"], rooms=["hall"], id="watching")
        await slow.hear("watching")
        peer = next(peer for peer in world.worker.engine.owners() if peer.user_id == "slow")
        number = 0
        while host.frames[-1]["type"] != "error":  # his socket is full, and nothing more may wait for it
            number += 1
            await host.say({"type": "message", "to_user_id": "slow", "message": "x" * 2000, "id": number})
            await host.hear(number)
        assert host.frames[-1]["code"] == "unavailable"
        assert world.worker.engine.lagging(peer.handle)
        skipped = world.stat("skipped")
        await host.say(type="status_change", status="busy", id="busy")
        await host.hear("busy")
        while world.stat("skipped") == skipped:
            await asyncio.sleep(0)
        end_s = time.monotonic() + DEADLINE_S
        while world.worker.engine.lagging(peer.handle):  # the loop has no turn in between
            assert time.monotonic() < end_s
            with contextlib.suppress(BlockingIOError):
                slow.take(slow.socket.recv(1 << 16))
            world.worker.engine.run()
        assert peer in world.worker.backlog
        await host.say(type="status_change", status="away", id="away")
        while not any(entry["status"] == "away" for frame in slow.frames for entry in frame.get("user_status", ())):
            await slow.hear_more()
        await slow.say(type="heartbeat", id="beat")
        await slow.hear("beat")
        assert not world.worker.backlog

    world.loop.run_until_complete(story())
