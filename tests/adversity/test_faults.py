"""Faults of the machine under the public port: R-07 and R-22 of the checklist; see README.md in this folder."""

import asyncio
import os
import resource
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import Start
from tests.support.clients import Clients
from tests.support.server import API_KEY, DEADLINE, ROOT, TOKEN_SECRET
from tests.support.siege import Siege, close_all, connect, cpu_s, message, received, upgrade_request, websocket

#: A siege takes seconds, and says little where others use the machine: for CI, and for who asks.
pytestmark = pytest.mark.long


def test_r07_at_the_descriptor_limit_those_who_are_there_are_served_newcomers_are_told_and_it_recovers(
    start: Start,
) -> None:
    server = start(presence__heartbeat_timeout=60, limits__connect_timeout=3)
    token = server.token("user")
    with Siege(server, "R-07") as siege:
        there = [siege.add(websocket(server, token)) for _ in range(20)]
        pid = server.worker_pid
        _, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (siege.files() + 5, hard))
        time.sleep(0.6)  # a tick: the spare descriptor counts, too
        newcomers = [connect(server) for _ in range(200)]
        begun_s, cpu_before_s = time.monotonic(), siege.cpu_s()
        told = 0
        for sock in newcomers:
            sock.settimeout(0.01)
            sock.sendall(upgrade_request(token))
        for sock in there:  # those who are there are served
            sock.sendall(message(type="heartbeat", id="still there?"))
            received(sock, until=lambda data: b"still there?" in data)
        time.sleep(3.0)
        spent = (siege.cpu_s() - cpu_before_s) / (time.monotonic() - begun_s)
        for sock in newcomers:
            try:
                told += sock.recv(12) == b"HTTP/1.1 503"
            except (TimeoutError, ConnectionError):
                continue
        took_s = time.monotonic() - begun_s
        lines = server.logged("rejected handshake")
        print(f"\nR-07: {spent:.2f} of a core; {told} of 200 told 503; {len(lines)} log lines in {took_s:.1f} s")
        assert spent < 0.5
        assert told >= 150
        assert 1 <= len(lines) <= took_s + 1
        assert lines[-1]["count"] > 1
        close_all(newcomers)
        close_all(there[:10])
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (hard, hard))
        # By itself: somebody comes in within a tick or two.
        begun_s = time.monotonic()
        siege.add(websocket(server, token))
        assert time.monotonic() - begun_s < 2.0


def test_r07_the_limit_of_connections_is_answered_with_503_and_recovers(start: Start) -> None:
    server = start(presence__heartbeat_timeout=60, limits__connections=50)
    token = server.token("user")
    with Siege(server, "limits.connections") as siege:
        there = [siege.add(websocket(server, token)) for _ in range(49)]
        for _ in range(100):
            sock = siege.add(connect(server))
            assert received(sock).startswith(b"HTTP/1.1 503 ")
        close_all(there[:5])
        end_s = time.monotonic() + DEADLINE
        while True:
            sock = siege.add(connect(server))
            sock.sendall(upgrade_request(token))
            if sock.recv(12) == b"HTTP/1.1 101":
                break
            assert time.monotonic() < end_s
    assert server.event("rejected handshake", status=503)["count"] >= 1


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


@pytest.mark.parametrize("kind", ["its reader hangs", "the disk is full"])
def test_r22_a_log_that_takes_nothing_delays_nobody(kind: str, tmp_path: Path) -> None:
    port = free_port()
    env = {
        **{name: value for name, value in os.environ.items() if not name.startswith("FASTPRESENCE_")},
        "FASTPRESENCE_AUTH_TOKEN_KEYS": f"k1:{TOKEN_SECRET}",
        "FASTPRESENCE_AUTH_API_KEYS": API_KEY,
        "FASTPRESENCE_DATABASE_URL": "none",
        "FASTPRESENCE_ADMIN_PORT": "0",
        "FASTPRESENCE_SERVER_DRAIN_TIME": "1",
        "FASTPRESENCE_LIMITS_RATE": "10000",
        "FASTPRESENCE_LIMITS_BURST": "10000",
        "STATE_DIRECTORY": str(tmp_path),
    }
    command = [sys.executable, "-m", "fastpresence", "serve", "--host", "127.0.0.1", "--port", str(port)]
    read_end, write_end = os.pipe()
    full = os.open("/dev/full", os.O_WRONLY)
    process = subprocess.Popen(
        [*command, "--log-format", "json"],
        stdin=subprocess.DEVNULL,
        stderr=write_end if kind == "its reader hangs" else full,
        cwd=ROOT,
        env=env,
    )
    try:
        os.close(write_end)
        os.close(full)
        server = Quiet(port)
        server.wait()
        worst_s = 0.0

        async def story() -> None:
            nonlocal worst_s
            async with Clients(server) as clients:  # type: ignore[arg-type]
                actor = await clients.online("actor")
                other = await clients.online("other")
                for number in range(300):  # ten lines each: more than a pipe holds
                    for at in range(10):
                        await actor.send("status_change", status=("busy", "away", "online")[(number + at) % 3])
                    begun_s = time.monotonic()
                    await other.beat()
                    worst_s = max(worst_s, time.monotonic() - begun_s)

        asyncio.run(story())
        print(f"\nR-22 ({kind}): worst heartbeat {worst_s * 1000:.1f} ms; node {cpu_s(process.pid):.2f} s of CPU")
        assert worst_s < 0.5
        process.terminate()
        assert process.wait(DEADLINE) == 0
    finally:
        process.kill()
        process.wait()
        os.close(read_end)


class Quiet:
    """As much of a `Server` as clients need of one whose log nobody reads."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.tls = None
        self.url = f"ws://127.0.0.1:{port}/ws"

    def wait(self) -> None:
        """Until it listens."""
        end_s = time.monotonic() + DEADLINE
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return
            except OSError:
                assert time.monotonic() < end_s
                time.sleep(0.05)

    def token(self, user_id: str, user_type: str = "user", *, room_id: str | None = None) -> str:
        """Made by the command line, as an operator would."""
        command = [sys.executable, "-m", "fastpresence", "token", "--user-id", user_id, "--user-type", user_type]
        env = {**os.environ, "FASTPRESENCE_AUTH_TOKEN_KEYS": f"k1:{TOKEN_SECRET}"}
        return subprocess.run(command, cwd=ROOT, env=env, check=True, capture_output=True, text=True).stdout.strip()
