"""The worker's outgoing half of the link: one writer, two bounds, and a node that does not read costs nothing more."""

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable

import pytest
import uvloop

from fastpresence.link import FrameReader, LinkFrame, Revoke, Stats
from fastpresence.logs import Repeats
from fastpresence.worker.uplink import LAST_WORDS_S, Uplink

STATS = Stats(connections=1, users=1)
Story = Callable[[Uplink, socket.socket], Awaitable[None]]


def run(story: Story, **bounds: int) -> None:
    """The story with an uplink whose writer runs, and the node's end of its link."""

    async def main() -> None:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            for end in (ours, theirs):
                end.setblocking(False)
            uplink = Uplink(asyncio.get_running_loop(), ours, Repeats(), **bounds)
            writer = asyncio.create_task(uplink.run())
            await story(uplink, theirs)
            writer.cancel()

    uvloop.run(main())


async def read(link: socket.socket, count: int) -> list[LinkFrame]:
    loop, reader = asyncio.get_running_loop(), FrameReader()
    frames: list[LinkFrame] = []
    async with asyncio.timeout(10):
        while len(frames) < count:
            frames += reader.feed(await loop.sock_recv(link, 65_536))
    return frames


def revokes(count: int) -> list[LinkFrame]:
    return [Revoke(f"user_{number}", number) for number in range(count)]


def test_what_many_tell_at_once_arrives_whole_and_in_order() -> None:
    async def story(uplink: Uplink, node: socket.socket) -> None:
        told = revokes(20_000)

        async def tell(part: list[LinkFrame]) -> None:
            for frame in part:
                uplink.tell(frame)
                if frame.before % 100 == 0:  # type: ignore[union-attr]
                    await asyncio.sleep(0)

        tellers = [asyncio.create_task(tell(told[at::4])) for at in range(4)]
        frames = await read(node, len(told))
        await asyncio.gather(*tellers)
        assert sorted(map(repr, frames)) == sorted(map(repr, told))
        for at in range(4):  # each one's own in its own order
            assert [f for f in frames if f.before % 4 == at] == told[at::4]  # type: ignore[union-attr]
        await uplink.finish()
        assert uplink.queued_bytes == 0

    run(story)


def test_what_is_told_while_nothing_waits_is_out_of_this_process_at_once() -> None:
    async def story(uplink: Uplink, node: socket.socket) -> None:
        uplink.tell(STATS)  # no turn of the loop between this and the node's reading
        assert FrameReader().feed(node.recv(1000)) == [STATS]

    run(story)


def test_behind_a_node_that_does_not_read_what_may_be_left_out_is_and_what_must_arrive_arrives() -> None:
    async def story(uplink: Uplink, node: socket.socket) -> None:
        must: list[LinkFrame] = []
        taken = 0
        for number in range(20_000):
            taken += uplink.offer(STATS)
            if number % 10 == 0:
                must.append(Revoke(f"user_{number}", number))
                uplink.tell(must[-1])
            if number % 1000 == 0:
                await asyncio.sleep(0)
        assert 0 < taken < 20_000
        assert not uplink.offer(STATS)
        frames = await read(node, len(must) + taken)
        assert [frame for frame in frames if isinstance(frame, Revoke)] == must
        assert frames.count(STATS) == taken
        await uplink.finish()
        assert uplink.offer(STATS)

    run(story, enough=1000)


def test_over_the_higher_bound_nothing_more_is_kept_and_the_log_says_so(caplog: pytest.LogCaptureFixture) -> None:
    async def story(uplink: Uplink, node: socket.socket) -> None:
        with caplog.at_level(logging.ERROR, "fastpresence"):
            for frame in revokes(100_000):
                uplink.tell(frame)
        assert uplink.queued_bytes <= 1_000_000
        assert [record.getMessage() for record in caplog.records] == ["link full"]
        began = asyncio.get_running_loop().time()
        await uplink.finish()  # nobody reads
        assert LAST_WORDS_S <= asyncio.get_running_loop().time() - began < LAST_WORDS_S + 5

    run(story, enough=1000, too_much=1_000_000)


def test_the_end_of_the_link_ends_the_writer_without_a_word() -> None:
    async def story(uplink: Uplink, node: socket.socket) -> None:
        node.close()
        uplink.tell(STATS)
        await asyncio.sleep(0)
        uplink.tell(STATS)

    run(story)
