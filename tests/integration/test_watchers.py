"""A crowd of watchers, told in slices while users go on changing: a real worker and real sockets.

The worker runs in the test's own loop, so that changes can be put between two slices.
"""

import asyncio
import socket
import time
from collections.abc import Iterator

import pytest
import uvloop

from fastpresence._native.framing import TEXT, Stream, build_masked
from fastpresence.codec import JSON
from fastpresence.messages import Status, Subscribe, Unsubscribe, UserOnlineStatus
from fastpresence.settings import AuthSettings, Settings, TokenKey
from fastpresence.worker import flush
from fastpresence.worker.worker import Worker

CROWD = 60
DEADLINE_S = 15.0
STATUSES: list[Status] = ["busy", "away", "online"]


class Watcher:
    """One who watches the common user, and one of his own."""

    def __init__(self, worker: Worker, address: tuple[str, int], number: int) -> None:
        self.own = f"user_{number}"
        self.socket = socket.create_connection(address)
        self.socket.setblocking(False)
        self.stream = Stream(masked=False, frame_size=1 << 20, message_size=1 << 20)
        self.head = b""
        self.seen: dict[str, list[tuple[int, Status]]] = {}
        token = worker.keys.issue(f"watcher_{number}", "user", room=None, expire_time=600, now=int(time.time()))[0]
        self.socket.send(
            f"GET /ws?public=0&token={token} HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n".encode()
        )

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
                for entry in answer.user_status:
                    self.seen.setdefault(entry.user_id, []).append((entry.rev, entry.status))


@pytest.fixture
def loop() -> Iterator[uvloop.Loop]:
    loop = uvloop.new_event_loop()
    yield loop
    loop.close()


def test_a_crowd_of_watchers_is_told_in_slices_and_everyone_ends_with_the_latest(
    loop: uvloop.Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flush, "SLICE_US", 0)
    worker = Worker(Settings(auth=AuthSettings(token_keys=(TokenKey("k", "a" * 32),))), 0, loop)
    with socket.create_server(("127.0.0.1", 0), backlog=CROWD) as listener:
        listener.setblocking(False)
        worker.start(listener.fileno())
        watchers = [Watcher(worker, listener.getsockname(), number) for number in range(CROWD)]

        async def until(condition: object) -> None:
            end_s = time.monotonic() + DEADLINE_S
            while not condition():  # type: ignore[operator]
                assert time.monotonic() < end_s
                await asyncio.sleep(0)
                for watcher in watchers:
                    watcher.hear()

        async def play() -> None:
            await until(lambda: all(watcher.head for watcher in watchers))
            for watcher in watchers:
                watcher.say(Subscribe(user_ids=["common", watcher.own]))
            await until(lambda: all(len(watcher.seen) == 2 for watcher in watchers))
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
            await until(lambda: all(watcher.seen["common"][-1][0] == last.rev for watcher in watchers[1:]))
            for watcher in watchers:
                revs = [rev for rev, _ in watcher.seen["common"]]
                assert revs == sorted(revs), "an older state came behind a newer one"
            assert all(watcher.seen["common"][-1] == (last.rev, last.status) for watcher in watchers[1:])
            assert watchers[0].seen["common"][-1][0] < last.rev

        try:
            loop.run_until_complete(play())
        finally:
            loop.remove_reader(worker.engine.fileno())
            worker.engine.close_all()
            for watcher in watchers:
                watcher.socket.close()
