"""The worker's journal on its way: batches at a steady beat, and after a loss the count and the whole truth."""

import asyncio
import socket
from collections.abc import Awaitable, Callable

import uvloop

from fastpresence.link import FrameReader, Journal, Present
from fastpresence.logs import Repeats
from fastpresence.presence.service import OnlineStatusService
from fastpresence.presence.sessions import Now, Session
from fastpresence.worker.journal import BATCH, EVERY_S, JournalWriter
from fastpresence.worker.uplink import Uplink

NOW = Now(1000, 1_700_000_000_000_000)


class Scene:
    """A core whose journal goes to the node's end of a link, which the test reads."""

    def __init__(self, node: socket.socket, writer: Callable[[OnlineStatusService], JournalWriter]) -> None:
        self.node = node
        self.service = OnlineStatusService(
            epoch="e",
            public_types=("kol",),
            heartbeat_timeout_ms=60_000,
            disconnect_grace_ms=None,
            journal=lambda change: self.journal.note(change),
        )
        self.journal = writer(self.service)
        self._reader = FrameReader()

    def online(self, user_id: str, device: str | None = None) -> Session:
        return self.service.handle_user_online(user_id, device=device, connection=object(), now=NOW)

    async def frames(self) -> list[Journal | Present]:
        """The next ones."""
        async with asyncio.timeout(10):
            frames = self._reader.feed(await asyncio.get_running_loop().sock_recv(self.node, 65_536))
        return [frame for frame in frames if isinstance(frame, Journal | Present)]


def run(story: Callable[[Scene], Awaitable[None]], *, enough: int = 4_000_000) -> None:
    async def main() -> None:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            for end in (ours, theirs):
                end.setblocking(False)
            loop = asyncio.get_running_loop()
            uplink = Uplink(loop, ours, Repeats(), enough=enough)
            scene = Scene(theirs, lambda service: JournalWriter(loop, uplink, service.roster))
            tasks = [asyncio.create_task(uplink.run()), asyncio.create_task(scene.journal.run())]
            await story(scene)
            for task in tasks:
                task.cancel()

    uvloop.run(main())


def test_the_first_line_after_a_quiet_moment_goes_at_once_and_the_next_ones_together() -> None:
    async def story(scene: Scene) -> None:
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        scene.online("user_1")
        (first,) = await scene.frames()
        assert isinstance(first, Journal)
        assert [line.user_id for line in first.lines] == ["user_1"]
        for number in (2, 3, 4):
            scene.online(f"user_{number}")
            await asyncio.sleep(0)
        (second,) = await scene.frames()
        assert isinstance(second, Journal)
        assert [line.user_id for line in second.lines] == ["user_2", "user_3", "user_4"]
        assert loop.time() - began_s >= EVERY_S * 0.9

    run(story)


def test_a_full_batch_does_not_wait_and_a_crowd_comes_in_frames_of_a_batch() -> None:
    async def story(scene: Scene) -> None:
        for number in range(2 * BATCH + 1):
            scene.online(f"user_{number}")
        sizes: list[int] = []
        while sum(sizes) < 2 * BATCH + 1:
            sizes += [len(frame.lines) for frame in await scene.frames() if isinstance(frame, Journal)]
        assert sizes == [BATCH, BATCH, 1]

    run(story)


def test_a_line_has_all_that_a_transition_has_and_a_reconnect_names_the_session_it_superseded() -> None:
    async def story(scene: Scene) -> None:
        first = scene.online("user_1", "phone")
        second = scene.online("user_1", "phone")
        scene.service.handle_status_change(second, "busy", now=NOW)
        scene.service.handle_user_offline(second, now=NOW, reason="kicked")
        (frame,) = await scene.frames()
        assert isinstance(frame, Journal)
        assert [
            (line.kind, line.session, line.superseded, line.was, line.status, line.reason) for line in frame.lines
        ] == [
            ("online", first.number, 0, "offline", "online", "user_online"),
            ("reconnect", second.number, first.number, "online", "online", "user_online"),
            ("status", second.number, 0, "online", "busy", "status_change"),
            ("offline", second.number, 0, "busy", "offline", "kicked"),
        ]
        assert all(line.rev >= NOW.wall_us == line.at_us for line in frame.lines)

    run(story)


def test_a_session_that_takes_over_a_devices_name_says_whose_place_it_took() -> None:
    async def story(scene: Scene) -> None:
        older, newer = scene.online("user_1", "phone"), scene.online("user_1")
        scene.service.handle_update(newer, status=None, device="phone", now=NOW)
        (frame,) = await scene.frames()
        assert isinstance(frame, Journal)
        assert (frame.lines[-1].session, frame.lines[-1].superseded) == (newer.number, older.number)

    run(story)


def test_after_a_loss_the_node_is_told_how_much_and_who_is_there() -> None:
    async def story(scene: Scene) -> None:
        sessions = [scene.online(f"user_{number}") for number in range(30_000)]  # nobody reads: most is lost
        await asyncio.sleep(0)
        scene.journal.send()
        for session in sessions[:20_000]:
            scene.service.handle_user_offline(session, now=NOW)
        scene.service.handle_status_change(sessions[-1], "offline", now=NOW)  # there, and hidden
        twice = scene.online("user_25000", "phone")
        scene.journal.send()
        assert scene.journal.dropped > 0
        lines = 0
        dropped = pages = 0
        there: dict[str, list[int]] = {}
        while len(there) < 10_000:
            for frame in await scene.frames():
                if isinstance(frame, Journal):
                    lines += len(frame.lines)
                    dropped += frame.dropped
                else:
                    assert frame.is_first == (pages == 0)
                    pages += 1
                    there |= {user.user_id: user.sessions for user in frame.users}
        assert lines + dropped == 30_000 + 20_000 + 2
        assert there == {
            f"user_{number}": [sessions[number].number] + [twice.number] * (number == 25_000)
            for number in range(20_000, 30_000)
        }
        # From here on lines arrive again.
        scene.service.handle_status_change(sessions[-1], "away", now=NOW)
        late: list[Journal | Present] = []
        while not any(isinstance(frame, Journal) for frame in late):
            late += await scene.frames()
        assert scene.journal.dropped == 0

    run(story, enough=100_000)
