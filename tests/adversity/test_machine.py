"""A machine that fails its server: a wall clock that jumps, a core and memory that it does not get.

R-19 to R-21 of the checklist; see README.md in this folder. R-03, a worker that stands still, is in
`tests/integration/test_alive.py`.
"""

import asyncio
import contextlib
import os
import resource
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import Start
from tests.support.clients import Clients
from tests.support.scene import Scene, fresh
from tests.support.server import ROOT, Server
from tests.support.siege import Siege, close_all, connect, message, received, upgrade_request, websocket

pytestmark = pytest.mark.long

HOUR = 3600
TIMEOUT = 1.0  #: heartbeat timeout, seconds


class Clock:
    """The wall clock of one server, as it believes."""

    def __init__(self, folder: Path) -> None:
        self._file, library = folder / "shift", folder / "clock_shift.so"
        compiler = os.environ.get("CC") or shutil.which("cc") or "gcc"
        source = ROOT / "tests/support/clock_shift.c"
        subprocess.run([compiler, "-O1", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
        self.env = {"LD_PRELOAD": str(library), "CLOCK_SHIFT": str(self._file)}
        self.jump_to(0)

    def jump_to(self, shift_s: int) -> None:
        """From now on it is off by so many seconds."""
        new = self._file.with_suffix(".new")
        new.write_text(str(shift_s))
        new.rename(self._file)


@pytest.mark.skipif("libasan" in os.environ.get("LD_PRELOAD", ""), reason="a sanitizer wants to be the first library")
def test_r19_a_wall_clock_that_jumps_an_hour_ends_nobody_and_judges_tokens_by_its_new_time(tmp_path: Path) -> None:
    clock = Clock(tmp_path)
    settings: dict[str, object] = {"presence.heartbeat_interval": 0.3, "presence.heartbeat_timeout": TIMEOUT}

    async def story(server: Server) -> None:
        async with Clients(server) as clients:
            scene = await Scene.begin(clients)
            minutes = server.token("user", expire_time=HOUR // 2)
            for client in (scene.actor, scene.marker, scene.witness):
                client.keep_beating(0.2)
            revs = [scene.witness.view.seen[scene.actor.user_id][-1].rev]
            for shift_s, status in ((HOUR, "busy"), (-HOUR, "away"), (0, "online")):
                clock.jump_to(shift_s)
                welcome = (await clients.connect(fresh("user"), public=False)).came("welcome")[0]
                assert abs(welcome["timestamp"] - time.time() - shift_s) < 30
                with connect(server) as sock:  # expired by then, not valid yet, good again
                    sock.sendall(upgrade_request(minutes))
                    assert sock.recv(12) == (b"HTTP/1.1 401" if shift_s else b"HTTP/1.1 101"), shift_s
                await asyncio.sleep(2 * TIMEOUT)  # whoever were to go would be gone
                await scene.nothing_was_seen()
                await scene.actor.do("status_change", status=status)
                sight = await scene.witness.sees(scene.actor.user_id, status)
                await scene.seen()
                revs.append(sight.rev)
            assert revs == sorted(set(revs)), "a rev went back"
            # And silence still counts, by the clock that does not jump.
            await scene.actor.stop_beating()
            begun_s = time.monotonic()
            await scene.witness.sees(scene.actor.user_id, "offline")
            assert time.monotonic() - begun_s < 3 * TIMEOUT

    with Server(settings, env=clock.env) as server:
        asyncio.run(story(server))


@contextlib.contextmanager
def busy_core(core: int, rivals: int) -> Iterator[None]:
    """Others who compute on this core without a pause."""
    command = ["taskset", "-c", str(core), sys.executable, "-c", "while True: pass"]
    others = [subprocess.Popen(command) for _ in range(rivals)]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


def test_r21_who_beats_in_time_stays_although_the_server_hardly_gets_a_core(start: Start) -> None:
    server = start(presence__heartbeat_interval=1, presence__heartbeat_timeout=3, limits__rate=10_000)
    core = max(os.sched_getaffinity(0))
    for pid in (server.pid, server.worker_pid):
        os.sched_setaffinity(pid, {core})

    async def story() -> None:
        async with Clients(server) as clients:
            scene = await Scene.begin(clients)
            crowd = [scene.actor, scene.marker, scene.witness]
            for client in crowd:
                client.keep_beating(1.0)
            while len(crowd) < 100:
                crowd.append(await clients.online(fresh("user"), public=False))
                crowd[-1].keep_beating(1.0)
            begun_s, rounds = time.monotonic(), 0
            with busy_core(core, 4):
                while time.monotonic() < begun_s + 10:
                    for status in ("busy", "online"):
                        await scene.actor.do("status_change", status=status)
                        await scene.witness.sees(scene.actor.user_id, status)
                    rounds += 1
                for client in crowd:
                    await client.beat()  # all of them are still there
            print(f"\nR-21: {rounds} times busy and online again in 10 s, with a fifth of a core")
            assert set(await scene.seen()) == {"online", "busy"}

    asyncio.run(story())


def test_r20_without_memory_newcomers_are_refused_before_anybody_who_is_there_is_lost(start: Start) -> None:
    server = start(presence__heartbeat_timeout=60)
    token = server.token("user")
    with Siege(server, "R-20") as siege:
        there = [siege.add(websocket(server, token)) for _ in range(20)]
        pid = server.worker_pid
        with open(f"/proc/{pid}/statm") as statm:
            size = int(statm.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        _, hard = resource.prlimit(pid, resource.RLIMIT_AS)
        resource.prlimit(pid, resource.RLIMIT_AS, (size + 300_000, hard))
        newcomers: list[socket.socket] = []
        refused = 0
        while refused < 200:
            assert len(newcomers) < 15_000, "the limit was to be felt"
            newcomers.append(connect(server))
            newcomers[-1].sendall(upgrade_request(token))
            refused += newcomers[-1].recv(12) == b"HTTP/1.1 503"
        for sock in there:
            sock.sendall(message(type="heartbeat", id="still there?"))
            received(sock, until=lambda data: b"still there?" in data)
        print(f"\nR-20: {len(newcomers) - refused} newcomers found room")
        close_all(newcomers)
        resource.prlimit(pid, resource.RLIMIT_AS, (hard, hard))
        siege.add(websocket(server, token))  # by itself, as soon as there is memory
        assert server.worker_pid == pid
