"""Attacks on the handshake: A-01 to A-12 of the checklist, S-06, S-09 and S-10; see README.md in this folder."""

import json
import time
from collections.abc import Iterator

import pytest

from tests.conftest import Start
from tests.support.server import Server
from tests.support.siege import Siege, close_all, connect, flood, hung_up, received, upgrade_request, websocket

#: A siege takes seconds, and says little where others use the machine: for CI, and for who asks.
pytestmark = pytest.mark.long

CONNECT_TIMEOUT = 2.0
#: A tick of the engine's, and a busy machine.
SLACK = 2.0


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server({"limits.connect_timeout": CONNECT_TIMEOUT, "presence.heartbeat_timeout": 60}) as running:
        yield running


def is_served(server: Server, token: str) -> float:
    """Seconds that a newcomer waits for his welcome."""
    begun_s = time.monotonic()
    close_all([websocket(server, token)])
    return time.monotonic() - begun_s


@pytest.mark.parametrize("count", [200, 1000])
def test_a01_slowloris_is_cut_off_in_time_and_newcomers_are_served_meanwhile(server: Server, count: int) -> None:
    token = server.token("newcomer")
    with Siege(server, f"A-01 ({count})") as siege:
        socks = [siege.add(connect(server)) for _ in range(count)]
        head = upgrade_request(token)
        begun_s = time.monotonic()
        waits = []
        for at in range(round(CONNECT_TIMEOUT / 0.25)):
            for sock in socks:
                sock.send(head[at : at + 1])
            waits.append(is_served(server, token))
            time.sleep(max(0.0, begun_s + 0.25 * (at + 1) - time.monotonic()))
        hung_up(socks, SLACK)
        assert time.monotonic() - begun_s < CONNECT_TIMEOUT + SLACK
        assert max(waits) < 2.0


@pytest.mark.parametrize("count", [300, 3000])
def test_a02_silent_connections_are_cut_off_in_time(server: Server, count: int) -> None:
    with Siege(server, f"A-02 ({count})") as siege:
        socks = [siege.add(connect(server)) for _ in range(count)]
        assert hung_up(socks, CONNECT_TIMEOUT + SLACK) <= CONNECT_TIMEOUT + SLACK


QUERY = b"POST /api/online-status/query HTTP/1.1\r\nHost: a\r\n"


@pytest.mark.parametrize(
    ("begin", "more"),
    [
        (b"GET /ws HTTP/1.1\r\nHost: a\r\nX-Endless: ", b"x" * 65_536),
        (b"GET /ws HTTP/1.1\r\nHost: a\r\n", b"X-List: x\r\n" * 6_000),
        (b"GET /", b"x" * 65_536),
        (b"", b"G" * 65_536),
        (QUERY + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n" * 9_000),
        (QUERY + b"Content-Length: 9999999999\r\n\r\n", b"x" * 65_536),
    ],
    ids=["header", "header list", "target", "method", "chunks", "body"],
)  # fmt: skip
def test_a03_what_has_no_end_is_answered_or_hung_up_and_costs_nothing(
    server: Server, begin: bytes, more: bytes
) -> None:
    with Siege(server, f"A-03 ({begin[:20]!r})") as siege:
        socks = [siege.add(connect(server)) for _ in range(8)]
        for sock in socks:
            if begin:
                sock.sendall(begin)
        flood(socks, more, 1.5, bytes_each=64 << 20)
        for sock in socks:
            answer = received(sock)
            assert answer[:12] in (b"", b"HTTP/1.1 431", b"HTTP/1.1 414", b"HTTP/1.1 413", b"HTTP/1.1 400"), answer
        assert siege.grown() < 16 << 20


def test_a04_two_thousand_headers_are_refused(server: Server) -> None:
    head = upgrade_request(server.token("user"))[:-2]
    with Siege(server, "A-04") as siege:
        for name in (b"X-%d: 1\r\n", b"Connection: x%d\r\n", b"Sec-WebSocket-Protocol: x%d\r\n", b"a%d:\r\n"):
            for where in (head, b"GET /ws HTTP/1.1\r\nHost: a\r\n"):
                sock = siege.add(connect(server))
                sock.sendall(where + b"".join(name % number for number in range(2000)) + b"\r\n")
                assert received(sock)[:12] in (b"HTTP/1.1 431", b"HTTP/1.1 400")


SLOW = [
    "Sec-WebSocket-Extensions: " + "," * 14_000,
    "Sec-WebSocket-Extensions: " + "a;" * 7_000,
    "Sec-WebSocket-Extensions: permessage-deflate" + " " * 14_000 + "x",
    "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits=" + '"' + "\\" * 13_000,
    "Sec-WebSocket-Protocol: " + " ," * 7_000,
    "Sec-WebSocket-Protocol: token." + "." * 14_000,
    "Sec-WebSocket-Protocol: " + "a" + " " * 14_000 + "b",
    "Authorization: " + "Bearer " * 2_000,
    "Origin: http://" + "a." * 7_000,
    "Cookie: " + "a=b;" * 3_500,
]


@pytest.mark.parametrize("header", SLOW, ids=lambda header: header[:40])
def test_a05_no_header_is_slow_to_parse(server: Server, header: str) -> None:
    token = None if header.startswith("Authorization") else server.token("user")
    worst_s = 0.0
    for _ in range(5):
        begun_s = time.monotonic()
        sock = connect(server)
        sock.sendall(upgrade_request(token, "/ws?public=0", header))
        answer = received(sock, until=lambda data: b"\r\n\r\n" in data)
        worst_s = max(worst_s, time.monotonic() - begun_s)
        close_all([sock])
        assert answer.startswith(b"HTTP/1.1 ")
    print(f"\nA-05 ({header[:40]}): {worst_s * 1000:.1f} ms at worst")
    assert worst_s < 0.5


@pytest.mark.parametrize(
    ("target", "header"),
    [
        ("/ws?x=%0d%0aX-Evil:%201", "X-A: b"),
        ("/nowhere/%0d%0aX-Evil:%201", "X-A: b"),
        ("/api/online-status/a%0d%0aX-Evil:%201", "X-A: b"),
        ("/ws", "Sec-WebSocket-Protocol: token.x\x0bX-Evil: 1"),
        ("/ws", "Sec-WebSocket-Protocol: fastpresence.v1.json, X-Evil"),
        ("/ws", "Sec-WebSocket-Extensions: permessage-deflate; x-evil=1"),
        ("/ws", "Sec-WebSocket-Extensions: x-evil"),
        ("/ws", "Origin: http://x-evil"),
        ("/ws", "X-Forwarded-For: x-evil"),
        ("/ws", "Sec-WebSocket-Version: x-evil"),
    ],
)
def test_a08_no_header_of_an_answer_is_made_of_a_stranger_s_text(server: Server, target: str, header: str) -> None:
    for token in (None, server.token("user")):
        sock = connect(server)
        sock.sendall(upgrade_request(token, target, header))
        head = received(sock, until=lambda data: b"\r\n\r\n" in data).partition(b"\r\n\r\n")[0]
        close_all([sock])
        assert head.startswith(b"HTTP/1.1 ")
        assert b"evil" not in head.lower()


HELLO = bytes.fromhex("16030100c8010000c40303") + bytes(range(189))


@pytest.mark.parametrize("garbage", [HELLO, b"\0" * 100, b"\xff" * 20_000, b"SSH-2.0-x\r\n", b"\r\n" * 5_000])
def test_a10_what_is_no_http_is_answered_or_hung_up_and_no_long_line_is_logged(server: Server, garbage: bytes) -> None:
    with Siege(server, f"A-10 ({garbage[:8]!r})") as siege:
        socks = [siege.add(connect(server)) for _ in range(20)]
        for sock in socks:
            sock.sendall(garbage)
        for sock in socks:
            assert received(sock)[:12] in (b"", b"HTTP/1.1 400", b"HTTP/1.1 431")
    for event in server.logged("rejected handshake"):
        assert len(json.dumps(event)) < 500


@pytest.mark.parametrize("count", [600, 3000])
def test_a11_a_flood_from_one_address_takes_its_places_and_no_more(start: Start, count: int) -> None:
    places = 100
    server = start(limits__connections_per_address=places, presence__heartbeat_timeout=60, limits__connect_timeout=5)
    token = server.token("user")
    with Siege(server, f"A-11 ({count})", source="127.0.0.2") as siege:
        answers: dict[bytes, int] = {}
        for _ in range(count):
            sock = siege.add(connect(server))
            try:
                sock.sendall(upgrade_request(token))
                answer = sock.recv(12)
            except ConnectionError:
                answer = b"reset"
            answers[answer] = answers.get(answer, 0) + 1
        assert answers.pop(b"HTTP/1.1 101") == places
        assert set(answers) <= {b"HTTP/1.1 429", b"reset"}
        assert answers[b"HTTP/1.1 429"] > count / 2
        elsewhere = siege.add(connect(server, source="127.0.0.3"))
        elsewhere.sendall(upgrade_request(token))
        assert elsewhere.recv(12) == b"HTTP/1.1 101"
    assert len(server.logged("rejected handshake")) <= 10
    assert server.event("rejected handshake", status=429)["count"] > 0


def test_a12_who_brings_no_token_is_refused_and_who_says_nothing_with_one_is_nobody(server: Server) -> None:
    with Siege(server, "A-12") as siege:
        for _ in range(50):
            sock = siege.add(connect(server))
            sock.sendall(upgrade_request(None))
            assert received(sock).startswith(b"HTTP/1.1 401 ")
        token = server.token("nobody")
        for _ in range(50):
            siege.add(websocket(server, token))
        assert server.http("GET", "/api/online-status/nobody")[1]["online"] is False


def test_s06_no_token_is_ever_in_the_log(server: Server) -> None:
    good = server.token("user")
    bad = good[:-8] + "AAAAAAAA"
    for token, header in (
        (bad, "X-A: b"), (None, f"Sec-WebSocket-Protocol: token.{bad}"), (None, f"Cookie: {bad}"),
    ):  # fmt: skip
        for target in ("/ws", f"/ws?token={bad}", f"/nowhere?token={bad}", f"/{bad}"):
            sock = connect(server)
            sock.sendall(upgrade_request(token, target, header))
            received(sock, until=lambda data: b"\r\n\r\n" in data)
            close_all([sock])
    close_all([websocket(server, good, target=f"/ws?token={bad}")])
    time.sleep(0.3)
    signature = good.rpartition(".")[2][:20]
    claims = good.split(".")[1]
    log = json.dumps(server.events)
    assert signature not in log
    assert claims not in log


@pytest.mark.parametrize("count", [300, 1000])
def test_s09_who_guesses_tokens_is_told_to_wait_and_who_has_one_comes_in(start: Start, count: int) -> None:
    server = start(presence__heartbeat_timeout=60)
    token = server.token("user")
    with Siege(server, f"S-09 ({count})") as siege:
        statuses = []
        for number in range(count):
            sock = siege.add(connect(server))
            sock.sendall(upgrade_request(f"{token[:-6]}{number:06}"))
            statuses.append(received(sock)[9:12])
        assert statuses[0] == b"401"
        assert statuses[-1] == b"429"
        siege.add(websocket(server, token))
    assert len(server.logged("rejected handshake")) <= 20


@pytest.mark.parametrize("path", ["/metrics", "/healthz", "/readyz", "/admin", "/dashboard", "/debug", "/", "/status"])
def test_s10_the_public_port_shows_nothing_of_the_admin_face(server: Server, path: str) -> None:
    for key in (None, "wrong"):
        assert server.http("GET", path, key=key)[0] in (401, 404)


def test_pipelined_requests_whose_answers_nobody_reads_cost_little(server: Server) -> None:
    token = server.token("user")
    question = b'{"user_ids":[' + b",".join([b'"a"'] * 1000) + b"]}"
    one = (
        b"POST /api/online-status/query HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer %s\r\nContent-Length: %d\r\n\r\n%s"
        % (token.encode(), len(question), question)
    )
    small = b"GET /nowhere HTTP/1.1\r\nHost: a\r\n\r\n"
    for name, data in (("questions", one), ("small", small * 500)):
        with Siege(server, f"HTTP pipelining ({name})") as siege:
            socks = [siege.add(connect(server, receive_buffer=4096)) for _ in range(40)]
            flood(socks, data, 2.0)
