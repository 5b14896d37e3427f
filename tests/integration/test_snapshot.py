"""A snapshot of thousands, shared by a crowd of newcomers while users change: a real worker and real sockets.

The worker runs in the test's own loop, so that changes can be put between two pages.
"""

import asyncio
import random
import time
from collections.abc import Iterator

import pytest

from fastpresence._native.framing import Frame, Stream
from fastpresence.codec import JSON, MSGPACK, Codec
from fastpresence.messages import SNAPSHOT_PAGE, Status, UserOnlineStatus
from fastpresence.presence.sessions import Session
from fastpresence.settings import LimitsSettings
from fastpresence.worker import flush
from tests.support.world import World

USERS = 2_300
DEADLINE_S = 15.0
STATUSES: list[Status] = ["online", "busy", "away"]


class Crowded(World):
    """One with users who are there from the start."""

    def __init__(self) -> None:
        super().__init__(limits=LimitsSettings(rate=1e6, burst=1_000_000))
        now = self.worker.now()
        self.sessions = [
            self.worker.service.handle_user_online(f"kol_{number}", "kol", now=now) for number in range(USERS)
        ]
        self.worker.flusher.touch()
        self.random = random.Random(7)

    def change(self, count: int) -> None:
        """Some change their status, some leave, some who left come back."""
        service, now = self.worker.service, self.worker.now()
        for session in self.random.sample(self.sessions, count):
            status = self.random.choice(STATUSES)
            if session.record.sessions and self.random.random() < 0.3:
                service.handle_user_offline(session, now=now)
            elif session.record.sessions:
                service.handle_status_change(session, status, now=now)
            else:
                self._back(session)
        self.worker.settle()
        self.worker.engine.send()

    def _back(self, session: Session) -> None:
        user_id = session.record.user_id
        self.sessions[self.sessions.index(session)] = self.worker.service.handle_user_online(
            user_id, "kol", now=self.worker.now()
        )

    def truth(self) -> dict[str, str]:
        return {record.user_id: record.status for record in self.worker.service.roster.public.values()}


@pytest.fixture
def world() -> Iterator[Crowded]:
    world = Crowded()
    yield world
    world.close()


class Newcomer:
    """What one connection was told of the public users."""

    def __init__(self, world: Crowded, codec: Codec) -> None:
        self._world = world
        self._codec = codec
        self._stream = Stream(masked=False, frame_size=1 << 24, message_size=1 << 24)
        self.full: list[UserOnlineStatus] = []
        self.is_told = False  #: the full answer is complete
        self.view: dict[str, str] = {}

    async def connect(self, number: int) -> None:
        self._socket = await self._world.connect()
        request = self._world.request(f"user_{number}", "user", self._codec)
        self._take(self._stream.feed(await self._world.upgrade(self._socket, request)))

    async def read(self) -> None:
        data = await asyncio.wait_for(self._world.loop.sock_recv(self._socket, 1 << 16), DEADLINE_S)
        assert data, "the server closed"
        self._take(self._stream.feed(data))

    def _take(self, frames: list[Frame]) -> None:
        for frame in frames:
            answer = self._codec.decode_answer(frame.payload)
            if isinstance(answer, UserOnlineStatus):
                assert len(answer.user_status) <= SNAPSHOT_PAGE
                if answer.full:
                    assert not self.is_told, "a full answer after a full answer"
                    self.full.append(answer)
                    self.is_told = not answer.more
                else:
                    assert self.is_told, "a change between the pages"
                self.view.update((entry.user_id, entry.status) for entry in answer.user_status)

    async def until_told(self) -> None:
        while not self.is_told:
            await self.read()

    async def until_right(self) -> None:
        """Every user as he is; who was never told is offline."""
        deadline_s = time.monotonic() + DEADLINE_S
        while any(self.view.get(user, "offline") != status for user, status in self._world.truth().items()):
            assert time.monotonic() < deadline_s
            await self.read()

    def close(self) -> None:
        self._socket.close()


@pytest.mark.parametrize("codec", [JSON, MSGPACK], ids=["json", "msgpack"])
def test_newcomers_share_pages_and_miss_nothing_that_changes_between_them(world: Crowded, codec: Codec) -> None:
    async def story() -> None:
        early = Newcomer(world, codec)
        await early.connect(0)
        await early.until_told()
        shared = world.worker.pager._latest
        assert shared is not None
        crowd = []
        for number in range(1, 6):
            world.change(30)
            newcomer = Newcomer(world, codec)
            crowd.append(newcomer)
            await newcomer.connect(number)
            await newcomer.read()
            world.change(10)
        assert world.worker.pager._latest is shared, "what changed is little: the pages serve all of them"
        for newcomer in [early, *crowd]:
            await newcomer.until_told()
            await newcomer.until_right()
        for newcomer in crowd:
            cursors = [frame.cursor for frame in newcomer.full]
            assert all(not isinstance(cursor, str) for cursor in cursors[:-1])
            assert isinstance(cursors[-1], str)
        for newcomer in [early, *crowd]:
            newcomer.close()

    world.loop.run_until_complete(story())


def test_one_who_changes_while_the_pages_are_told_is_in_the_full_answer(world: Crowded) -> None:
    """Else a client that had him online would show him offline for a moment: `full` replaces what it knows."""

    async def story() -> None:
        newcomer = Newcomer(world, JSON)
        await newcomer.connect(0)
        page = world.worker.service.roster.public.page(-1, world.worker.service.version, USERS)[0]
        late = page[-1].sessions[0]  # his page is the last one
        world.worker.service.handle_status_change(late, "busy", now=world.worker.now())
        await newcomer.until_told()
        assert {entry.user_id for frame in newcomer.full for entry in frame.user_status} == set(world.truth())
        await newcomer.until_right()
        newcomer.close()

    world.loop.run_until_complete(story())


def test_a_snapshot_is_made_anew_when_much_has_changed_and_let_go_when_nobody_comes(
    world: Crowded, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flush, "SNAPSHOT_KEPT_S", 0.05)

    async def story() -> None:
        first = Newcomer(world, JSON)
        await first.connect(0)
        await first.until_told()
        shared = world.worker.pager._latest
        world.change(2 * USERS // flush.SNAPSHOT_SHARE)  # of whom some change to what they are
        second = Newcomer(world, JSON)
        await second.connect(1)
        assert world.worker.pager._latest is not shared
        await second.until_told()
        await second.until_right()
        deadline_s = time.monotonic() + DEADLINE_S
        while world.worker.pager._latest is not None:
            assert time.monotonic() < deadline_s
            await asyncio.sleep(0.01)
        first.close()
        second.close()

    world.loop.run_until_complete(story())
