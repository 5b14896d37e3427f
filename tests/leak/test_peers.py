"""Thousands of peers come and go at a real worker: nothing of them is left, and no collector had to look for it.

    connect -> user_online -> subscribe -> gone: by a reset, the end of the stream, a close, a goodbye

With the collector off, only reference counts free anything: one cycle in a connection's life would keep them all.
"""

import asyncio
import contextlib
import gc
import logging
import os
import resource
import socket
import ssl
import struct
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from fastpresence._native.framing import CLOSE, TEXT, Stream, build_masked
from fastpresence.presence.audience import Room, RoomMember
from fastpresence.presence.roster import Record
from fastpresence.presence.sessions import Now, Session
from fastpresence.settings import LimitsSettings, ServerSettings
from fastpresence.worker.peer import Peer
from fastpresence.worker.tls import Carried
from fastpresence.worker.worker import HttpClient
from tests.support.certificate import certify, trusting
from tests.support.world import World

pytestmark = pytest.mark.long

CYCLES = 5_000
ROUND = 500
TLS_CYCLES = 400
AT_ONCE = 50
KEY = b"mask"
DEADLINE_S = 30.0
KINDS = (Peer, HttpClient, Carried, Session, Record, Room, RoomMember)
#: Bytes that the second half of the cycles may cost: fragments of the heap. 1 KB for each peer would be more.
GROWTH = 2 << 20


class Turning(World):
    """One whose clients come and go, while its time runs ahead."""

    def __init__(self, certificate: tuple[str, str] | None = None) -> None:
        cert, key = certificate or (None, None)
        super().__init__(limits=LimitsSettings(connect_timeout=5), server=ServerSettings(tls_cert=cert, tls_key=key))
        self.ahead_ms = 0  # of the true time: never less than before
        self.worker.now = self.now  # type: ignore[method-assign]
        self.context = None if cert is None else trusting(Path(cert))

    def now(self) -> Now:
        return Now(time.monotonic_ns() // 1_000_000 + self.ahead_ms, time.time_ns() // 1_000 + self.ahead_ms * 1_000)

    async def until_all_are_gone(self) -> None:
        end_s = time.monotonic() + DEADLINE_S
        while self.worker.engine.stats()["connections"]:
            assert time.monotonic() < end_s, self.worker.engine.stats()
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.05)

    async def cycle(self, number: int) -> None:
        """One client's life."""
        user_id = f"user_{number}"
        sock = await self.connect()
        name = None if self.context is None else "127.0.0.1"
        reader, writer = await asyncio.open_connection(sock=sock, ssl=self.context, server_hostname=name)
        try:
            request = self.request(user_id, "kol", room="r0")
            if number % 10 == 9:
                writer.write(request[: number % len(request)])
                return
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 101 "), head
            stream = Stream(masked=False, frame_size=1 << 24, message_size=1 << 24)
            others = ",".join(f'"user_{number + each}"' for each in range(1, 20))
            said = [
                b'{"type":"user_online","device":"phone"}',
                f'{{"type":"subscribe","user_ids":[{others}],"rooms":["r{number % 100}","of_{user_id}"]}}'.encode(),
                b'{"type":"nonsense"}',
                b'{"type":"heartbeat","id":2}',
            ]
            writer.write(b"".join(build_masked(TEXT, each, KEY) for each in said))
            await self.read_until(reader, stream, b'"reply_to":2')
            if number % 10 < 2:
                writer.write(build_masked(CLOSE, b"\x03\xe8", KEY))
                await reader.read()
            elif number % 10 < 4:
                writer.write(build_masked(TEXT, b'{"type":"user_offline"}', KEY))
                await self.read_until(reader, stream, b"goodbye")
            elif number % 10 < 6:
                writer.write(build_masked(TEXT, b"half a message", KEY)[:-3])
        finally:
            if number % 2:  # RST, not FIN
                sock = writer.get_extra_info("socket")
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                writer.transport.abort()
            else:
                writer.close()
            with contextlib.suppress(OSError, ssl.SSLError):
                await writer.wait_closed()

    @staticmethod
    async def read_until(reader: asyncio.StreamReader, stream: Stream, mark: bytes) -> None:
        while not any(mark in frame.payload for frame in stream.feed(await reader.read(65_536))):
            assert not reader.at_eof(), f"it ended before {mark!r}"

    async def cycles(self, first: int, count: int) -> None:
        for at in range(first, first + count, AT_ONCE):
            await asyncio.wait_for(
                asyncio.gather(*[self.cycle(number) for number in range(at, at + AT_ONCE)]), DEADLINE_S
            )
        await self.until_all_are_gone()

    def let_time_pass(self) -> None:
        """Every grace and every retention is over."""
        service = self.worker.service
        for minutes in (5, 6):  # the grace, then the retention
            self.ahead_ms += minutes * 60_000
            for _ in range(100):
                service.cleanup_expired_status(now=self.now())
        self.worker._free_audiences()


def census() -> Counter[str]:
    """How many there are of each kind of object that belongs to somebody's presence."""
    found = Counter(type(each).__name__ for each in gc.get_objects() if type(each) in KINDS)
    return Counter({kind.__name__: found[kind.__name__] for kind in KINDS})


def resident() -> int:
    """Bytes of this process in memory."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


@pytest.fixture
def no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    logging.disable()  # pytest keeps every record until the end of a test
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
        gc.enable()
        gc.collect()


def check_that_nothing_is_left(world: Turning, before: Counter[str]) -> None:
    worker = world.worker
    stats = worker.engine.stats()
    assert (stats["connections"], stats["open"], stats["lagging"]) == (0, 0, 0)
    assert worker.engine.owners() == []
    assert not worker.peers
    assert not any(worker._variants)
    world.let_time_pass()
    assert worker.users == 0
    service = worker.service
    assert not service.audience.rooms
    assert not service.audience.watchers
    assert sum(worker.engine.audience_size(audience) for audience in range(10_000)) == 0
    # Those of rooms were given back: a new one is one of them.
    assert worker.engine.new_audience() < 100 + 2 * AT_ONCE
    left = census() - before
    # The order in which records and rooms changed is tidied in steps: a View keeps up to 32 of what is gone.
    assert left.pop("Record", 0) <= 2 * 32
    assert left.pop("Room", 0) <= 32
    assert not left


@pytest.mark.usefixtures("no_collector")
def test_of_five_thousand_peers_that_came_and_went_nothing_is_left() -> None:
    world = Turning()
    try:
        before = census()
        levels = []
        for first in range(0, CYCLES, ROUND):
            world.loop.run_until_complete(world.cycles(first, ROUND))
            world.let_time_pass()
            levels.append(resident())
        check_that_nothing_is_left(world, before)
        assert world.worker.engine.stats()["accepted"] == CYCLES
        if "libasan" not in os.environ.get("LD_PRELOAD", ""):  # a sanitizer keeps what was freed
            assert levels[-1] - levels[len(levels) // 2] < GROWTH, levels
    finally:
        world.close()


@pytest.mark.usefixtures("no_collector")
def test_of_hundreds_of_tls_peers_that_came_and_went_nothing_is_left(tmp_path: Path) -> None:
    made = certify(tmp_path)
    world = Turning((str(made.cert), str(made.key)))
    try:
        before = census()
        world.loop.run_until_complete(world.cycles(0, TLS_CYCLES))
        world.let_time_pass()
        check_that_nothing_is_left(world, before)
    finally:
        world.close()
