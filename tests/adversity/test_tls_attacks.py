"""Attacks on the TLS handshake: A-01, A-02, A-10 and A-12 over TLS; see README.md in this folder."""

import contextlib
import os
import resource
import socket
import ssl
import time
from collections.abc import Callable, Iterator

import pytest

from tests.adversity.test_handshake_attacks import SLACK, is_served
from tests.support.certificate import certify
from tests.support.server import Server
from tests.support.siege import Siege, client_hello, close_all, connect, hung_up, secure

#: A siege takes seconds, and says little where others use the machine: for CI, and for who asks.
pytestmark = pytest.mark.long

#: Longer than a newcomer may take: who has to wait until others are cut off is too late.
CONNECT_TIMEOUT = 4.0
NEWCOMER_S = 2.0

HELLO = client_hello()
GARBAGE = b"\x16\x03\x01\x02\x00" + os.urandom(512)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    made = certify(tmp_path_factory.mktemp("certificate"))
    with Server(
        {
            "server.tls_cert": made.cert, "server.tls_key": made.key,
            "limits.connect_timeout": CONNECT_TIMEOUT, "presence.heartbeat_timeout": 60,
        }
    ) as running:  # fmt: skip
        yield running


def says(data: bytes) -> Callable[[Server, socket.socket], socket.socket]:
    def attack(server: Server, sock: socket.socket) -> socket.socket:
        with contextlib.suppress(ConnectionError):
            sock.sendall(data)
        return sock

    return attack


SHAPES: dict[str, Callable[[Server, socket.socket], socket.socket]] = {
    "nothing": says(b""),
    "the first byte": says(HELLO[:1]),
    "all of a hello but its last byte": says(HELLO[:-1]),
    "a hello, and no more": says(HELLO),
    "garbage": says(GARBAGE),
    "TLS, and no request": secure,
}


@pytest.mark.parametrize(("count", "sources"), [(300, 1), (2000, 100)])
@pytest.mark.parametrize("shape", SHAPES)
def test_whatever_strangers_leave_unsaid_a_newcomer_is_in_at_once_and_they_are_cut_off_in_time(
    server: Server, shape: str, count: int, sources: int
) -> None:
    token = server.token("newcomer")
    with Siege(server, f"TLS: {shape} ({count} of {sources})") as siege:
        socks = []
        waits = []
        for number in range(count):
            sock = connect(server, source=f"127.0.0.{2 + number % sources}")
            socks.append(siege.add(SHAPES[shape](server, sock)))
            if (number + 1) % (count // 4) == 0:
                waits.append(is_served(server, token))
        print(f"\n{shape}: newcomers' waits {[round(each_s * 1000) for each_s in waits]} ms")
        assert max(waits) < NEWCOMER_S
        hung_up(socks, CONNECT_TIMEOUT + SLACK)


@pytest.mark.parametrize("sources", [1, 100])
def test_who_dribbles_his_hello_keeps_nobody_waiting_and_is_cut_off_in_time(server: Server, sources: int) -> None:
    token = server.token("newcomer")
    with Siege(server, f"TLS: a byte each quarter of a second ({sources})") as siege:
        socks = [siege.add(connect(server, source=f"127.0.0.{2 + number % sources}")) for number in range(1000)]
        begun_s = time.monotonic()
        waits = []
        for at in range(round((CONNECT_TIMEOUT - 1) / 0.25)):
            for sock in socks:
                sock.send(HELLO[at : at + 1])
            waits.append(is_served(server, token))
            time.sleep(max(0.0, begun_s + 0.25 * (at + 1) - time.monotonic()))
        assert max(waits) < NEWCOMER_S
        hung_up(socks, CONNECT_TIMEOUT + SLACK)
        assert time.monotonic() - begun_s < CONNECT_TIMEOUT + SLACK


def test_a_hello_inside_of_a_connection_is_the_end_of_it(server: Server) -> None:
    token = server.token("newcomer")
    old = ssl.create_default_context(cafile=server.cert)
    old.maximum_version = ssl.TLSVersion.TLSv1_2  # which could begin anew; 1.3 has no such thing
    with Siege(server, "TLS: a second hello") as siege:
        socks = []
        for _ in range(100):
            sock = old.wrap_socket(connect(server, source="127.0.0.2"), server_hostname="127.0.0.1")
            socks.append(siege.add(sock))
            os.write(sock.fileno(), HELLO)
        assert is_served(server, token) < NEWCOMER_S
        hung_up(socks, SLACK)


def test_connections_that_come_and_go_in_crowds_cost_what_the_first_crowd_did(server: Server) -> None:
    # Found by measuring: each transport of uvloop's own TLS had 256 KB of the heap, and another part of it touched.
    levels = []
    for _ in range(5):
        socks = [secure(server, connect(server)) for _ in range(700)]
        levels.append(resident(server.worker_pid))
        close_all(socks)
    assert levels[-1] - levels[1] < 8 << 20, levels


def resident(pid: int) -> int:
    """Bytes of a process in memory."""
    with open(f"/proc/{pid}/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()
