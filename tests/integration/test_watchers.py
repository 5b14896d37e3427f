"""A crowd of watchers, told in slices while users go on changing: a real worker and real sockets.

The worker runs in the test's own loop, so that changes can be put between two slices.
"""

import asyncio
import socket
import time
from collections.abc import Callable, Iterator

import pytest

from fastpresence._native.framing import TEXT, Stream, build_masked
from fastpresence.codec import JSON
from fastpresence.messages import SNAPSHOT_PAGE, Status, Subscribe, Unsubscribe, UserOnlineStatus
from fastpresence.worker import flush
from tests.support.world import World

CROWD = 60
DEADLINE_S = 15.0
STATUSES: list[Status] = ["busy", "away", "online"]


class Watcher:
    """One who watches the common user, and one of his own."""

    def __init__(self, world: World, number: int) -> None:
        self.own = f"user_{number}"
        self.socket = socket.create_connection(world.listener.getsockname())
        self.socket.setblocking(False)
        self.stream = Stream(masked=False, frame_size=1 << 20, message_size=1 << 20)
        self.head = b""
        self.seen: dict[str, list[tuple[int, Status]]] = {}
        self.frames: list[UserOnlineStatus] = []
        self.socket.send(world.request(f"watcher_{number}", "user", query="&public=0"))

    def say(self, frame: object) -> None:
        self.socket.send(build_masked(TEXT, JSON.encode(frame), b"mask"))

    def hear(self) -> None:
        try:
            data = self.socket.recv(1 << 20)
        except BlockingIOError:
            return
        assert data, "closed"
        if not self.head.endswith(b"\r\n\r\n"):
            before, _, data = data.partition(b"\r\n\r\n")
            self.head = before + b"\r\n\r\n"
        for frame in self.stream.feed(data):
            answer = JSON.decode_answer(frame.payload)
            if isinstance(answer, UserOnlineStatus):
                self.frames.append(answer)
                for entry in answer.user_status:
                    self.seen.setdefault(entry.user_id, []).append((entry.rev, entry.status))


@pytest.fixture
def world() -> Iterator[World]:
    world = World()
    yield world
    world.close()


async def until(condition: Callable[[], bool], watchers: list[Watcher]) -> None:
    """Everybody hears until it is so."""
    end_s = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < end_s
        await asyncio.sleep(0)
        for watcher in watchers:
            watcher.hear()


def test_a_crowd_of_watchers_is_told_in_slices_and_everyone_ends_with_the_latest(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flush, "SLICE_US", 0)
    worker = world.worker
    watchers = [Watcher(world, number) for number in range(CROWD)]

    async def play() -> None:
        await until(lambda: all(watcher.head for watcher in watchers), watchers)
        for watcher in watchers:
            watcher.say(Subscribe(user_ids=["common", watcher.own]))
        await until(lambda: all(len(watcher.seen) == 2 for watcher in watchers), watchers)
        service = worker.service
        common = service.handle_user_online("common", "user", now=worker.now())
        slices = 0
        for number in range(90):
            # Changes fall between the slices of the flush that tells of the ones before.
            service.handle_status_change(common, STATUSES[number % 3], now=worker.now())
            worker.settle()
            worker.engine.send()
            slices += len(worker.flusher._watching) > 0
            if number == 40:
                watchers[0].say(Unsubscribe(user_ids=["common"]))
            if number == 60:
                watchers[1].say(Subscribe(user_ids=["common"]))  # is told at once, in the middle of it
            await asyncio.sleep(0.001)
            for watcher in watchers:
                watcher.hear()
        assert slices > 0
        last = service.get_user_status("common")
        await until(lambda: all(watcher.seen["common"][-1][0] == last.rev for watcher in watchers[1:]), watchers)
        for watcher in watchers:
            revs = [rev for rev, _ in watcher.seen["common"]]
            assert revs == sorted(revs), "an older state came behind a newer one"
        assert all(watcher.seen["common"][-1] == (last.rev, last.status) for watcher in watchers[1:])
        assert watchers[0].seen["common"][-1][0] < last.rev

    try:
        world.loop.run_until_complete(play())
    finally:
        for watcher in watchers:
            watcher.socket.close()


def test_a_delta_of_many_watched_users_comes_in_pages_the_last_with_the_cursor(world: World) -> None:
    many = 2 * SNAPSHOT_PAGE + 100
    users = [f"many_{number}" for number in range(many)]
    watcher = Watcher(world, 0)

    async def play() -> None:
        await until(lambda: bool(watcher.head), [watcher])
        for at in range(0, many, 1000):
            watcher.say(Subscribe(user_ids=users[at : at + 1000]))
        await until(lambda: len(watcher.seen) == many, [watcher])
        watcher.frames.clear()
        for user_id in users:
            world.worker.service.handle_user_online(user_id, "user", now=world.worker.now())
        world.worker.settle()
        await until(lambda: sum(len(frame.user_status) for frame in watcher.frames) == many, [watcher])
        assert [len(frame.user_status) for frame in watcher.frames] == [SNAPSHOT_PAGE, SNAPSHOT_PAGE, 100]
        assert [frame.more for frame in watcher.frames] == [True, True, False]
        assert [isinstance(frame.cursor, str) for frame in watcher.frames] == [False, False, True]

    try:
        world.loop.run_until_complete(play())
    finally:
        watcher.socket.close()
