"""Attacks with frames and messages: F-02 to F-17 of the checklist, and S-08; see README.md in this folder."""

import asyncio
import contextlib
import json
import os
import random
import socket
import struct
import threading
import time
import zlib
from collections.abc import Callable, Iterator

import pytest

from tests.conftest import Start
from tests.support.clients import Clients
from tests.support.server import Server
from tests.support.siege import (
    BINARY,
    CLOSE,
    CONTINUATION,
    PING,
    PONG,
    TEXT,
    Siege,
    close_all,
    codes,
    connect,
    flood,
    frame,
    hung_up,
    message,
    received,
    upgrade_request,
    websocket,
)  # fmt: skip

#: A siege takes seconds, and says little where others use the machine: for CI, and for who asks.
pytestmark = pytest.mark.long

HEARTBEAT_TIMEOUT = 2.0
LAG_TIME = 1.5
#: A tick of the engine's, its wait for the peer's half of the closing handshake, and a busy machine.
SLACK = 8.0
MB = 1 << 20


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server({"presence.heartbeat_timeout": HEARTBEAT_TIMEOUT, "limits.lag_time": LAG_TIME}) as running:
        yield running


@pytest.fixture(scope="module")
def token(server: Server) -> str:
    return server.token("attacker")


def closed_with(sock: socket.socket) -> list[int]:
    """The codes of the close frames that come, at most one; none where the connection is reset."""
    return codes(received(sock, until=lambda data: bool(codes(data))))


@pytest.mark.parametrize("length", [2**63 - 1, 2**40, 2**32 + 5, 2**63, 2**64 - 1, 65_537])
def test_f02_a_huge_length_is_refused_from_the_head_alone(server: Server, token: str, length: int) -> None:
    with Siege(server, f"F-02 ({length})") as siege:
        for opcode in (TEXT, BINARY):
            for _ in range(10):
                sock = siege.add(websocket(server, token))
                sock.sendall(bytes([0x80 | opcode, 0x80 | 127]) + struct.pack("!Q", length) + b"\0\0\0\0")
                assert closed_with(sock) in ([1009], [1002], [])
        assert siege.grown() < 8 * MB


def test_f03_a_message_over_the_limit_is_refused_and_one_that_is_never_finished_costs_what_came(
    server: Server, token: str
) -> None:
    with Siege(server, "F-03") as siege:
        half = frame(TEXT, b"x" * 40_000, fin=False)
        for data in (
            frame(TEXT, b"x" * 65_537),
            half + frame(CONTINUATION, b"x" * 40_000),
            half + frame(PING, b"between") + frame(CONTINUATION, b"x" * 40_000, fin=False),
        ):
            for _ in range(10):
                sock = siege.add(websocket(server, token))
                sock.sendall(data)
                assert closed_with(sock) == [1009]
        before = siege.grown()
        unfinished = [siege.add(websocket(server, token)) for _ in range(100)]
        for sock in unfinished:
            sock.sendall(frame(TEXT, b"x" * 60_000, fin=False))
        time.sleep(0.5)
        assert siege.grown() - before < 100 * 140_000
        hung_up(unfinished, HEARTBEAT_TIMEOUT + SLACK)


@pytest.mark.parametrize(
    ("first", "fragment", "rsv"),
    [(b"", b"", 0), (b"x", b"x", 0), (b"", b"\0", 4)],
    ids=["empty", "of one byte", "compressed"],
)
def test_f04_a_flood_of_fragments_ends_with_1009(
    server: Server, token: str, first: bytes, fragment: bytes, rsv: int
) -> None:
    deflate = "Sec-WebSocket-Extensions: permessage-deflate"
    with Siege(server, f"F-04 ({fragment!r}, {rsv})") as siege:
        socks = [siege.add(websocket(server, token, deflate)) for _ in range(20)]
        for sock in socks:
            sock.sendall(frame(TEXT, first, fin=False, rsv=rsv))
        flood(socks, frame(CONTINUATION, fragment, fin=False) * 2000, 5, bytes_each=4 * MB)
        for sock in socks:
            assert closed_with(sock) in ([1009], [])
        assert siege.grown() < 16 * MB


@pytest.mark.parametrize("size", [4_000, 60_000])
def test_f05_a_dribbled_frame_costs_its_bytes_and_not_its_reads(server: Server, token: str, size: int) -> None:
    with Siege(server, f"F-05 ({size})") as siege:
        socks = [siege.add(websocket(server, token)) for _ in range(8)]
        # Beside the beats that keep it alive nothing ends: one frame, a byte each time.
        data = frame(TEXT, b'{"type":"heartbeat","id":"' + b"x" * size + b'"}')
        for at in range(len(data) - 1):
            for sock in socks:
                sock.send(data[at : at + 1])
            if at % 500 == 499:
                time.sleep(0.001)
            if at > 500 and at % 10_000 == 0 and at * 8 * 5e-6 > HEARTBEAT_TIMEOUT:
                break
        assert siege.grown() < 8 * MB
        hung_up(socks, HEARTBEAT_TIMEOUT + SLACK)


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("F-06 full", frame(PING, b"x" * 125) * 500),
        ("F-06 empty", frame(PING) * 10_000),
        ("F-07", frame(PONG, b"x" * 125) * 500),
        ("F-07 empty", frame(PONG) * 10_000),
    ],
)
@pytest.mark.parametrize("seconds", [1.5, 5.0])
def test_f06_f07_a_flood_of_pings_or_pongs_that_nobody_reads_costs_little(
    server: Server, token: str, name: str, data: bytes, seconds: float
) -> None:
    with Siege(server, f"{name} ({seconds} s)") as siege:
        socks = [siege.add(websocket(server, token)) for _ in range(20)]
        flood(socks, data, seconds)
        assert siege.grown() < 32 * MB


def bomb(size: int) -> bytes:
    """A compressed text of so many spaces."""
    squeezer = zlib.compressobj(9, zlib.DEFLATED, -15)
    return (squeezer.compress(b" " * size) + squeezer.flush(zlib.Z_SYNC_FLUSH))[:-4]


@pytest.mark.parametrize("count", [1, 20])
def test_f08_a_compression_bomb_costs_the_limit_and_ends_with_1009(server: Server, token: str, count: int) -> None:
    whole = bomb(60 * MB)
    assert len(whole) < 65_536
    # A bomb of bombs: what it inflates to is a bomb again, which nobody inflates.
    nested = zlib.compressobj(9, zlib.DEFLATED, -15)
    twice = (nested.compress(whole) + nested.flush(zlib.Z_SYNC_FLUSH))[:-4]
    with Siege(server, f"F-08 ({count})") as siege:
        deflate = "Sec-WebSocket-Extensions: permessage-deflate"
        socks = [siege.add(websocket(server, token, deflate)) for _ in range(count)]
        for sock in socks:
            sock.sendall(frame(TEXT, whole, rsv=4))
        for sock in socks:
            assert closed_with(sock) == [1009]
        for _ in range(count):
            sock = siege.add(websocket(server, token, deflate))
            sock.sendall(frame(TEXT, whole[:100], fin=False, rsv=4) + frame(CONTINUATION, whole[100:]))
            assert closed_with(sock) == [1009]
            sock = siege.add(websocket(server, token, deflate))
            sock.sendall(frame(TEXT, twice, rsv=4))
            received(sock, until=lambda data: b"bad_frame" in data or bool(codes(data)))
        assert siege.grown() < 16 * MB


@pytest.mark.parametrize("count", [60, 400])
def test_f10_readers_that_do_not_read_delay_nobody_and_are_let_go(start: Start, count: int) -> None:
    server = start(
        presence__heartbeat_timeout=60,
        limits__lag_time=LAG_TIME,
        limits__rate=10_000,
        limits__burst=10_000,
        limits__send_buffer=16_384,
    )
    host_token, token = server.token("kol_1", "kol"), server.token("slow")
    with Siege(server, f"F-10 ({count})") as siege:
        host = siege.add(websocket(server, host_token))
        host.sendall(message(type="user_online"))
        before = siege.files()
        for _ in range(count):
            siege.add(websocket(server, token, target="/ws", receive_buffer=4096))
        assert siege.files() == before + count
        end_s = time.monotonic() + 60
        at = 0
        while siege.files() > before:
            at += 1
            host.sendall(message(type="status_change", status=("busy", "away", "online")[at % 3]))
            time.sleep(0.002)
            assert time.monotonic() < end_s, f"{siege.files() - before} are still there"
    assert server.event("slow reader", user_id="slow")


def test_f10_messages_to_one_who_does_not_read_are_refused_at_their_bound(start: Start) -> None:
    bound = 16_384
    server = start(
        presence__heartbeat_timeout=60,
        limits__rate=10_000,
        limits__burst=10_000,
        limits__send_buffer=8_192,
        limits__messages_waiting=bound,
    )
    slow_token, tokens = server.token("slow"), [server.token(f"sender_{number}") for number in range(20)]
    with Siege(server, "F-10 messages") as siege:
        slow = siege.add(websocket(server, slow_token, receive_buffer=4096))
        slow.sendall(message(type="user_online"))
        senders = [siege.add(websocket(server, each)) for each in tokens]
        for sender in senders:
            sender.sendall(message(type="user_online"))
        text = "x" * 8_000
        for sender in senders:
            sender.sendall(message(type="message", to_user_id="slow", message=text, id=1) * 20)
        said = b"".join(received(sender, until=lambda data: data.count(b'"reply_to":1') >= 20) for sender in senders)
        assert said.count(b'"unavailable"') > 300
        assert said.count(b'"delivered":1') < 100
        assert siege.grown() < 8 * MB


def test_f11_half_a_frame_and_then_silence_is_ended_in_time(server: Server, token: str) -> None:
    whole = message(type="heartbeat")
    with Siege(server, "F-11") as siege:
        socks = []
        for at in range(1, len(whole), 3):
            socks.append(siege.add(websocket(server, token)))
            socks[-1].sendall(whole[:at])
        socks.append(siege.add(websocket(server, token)))
        socks[-1].sendall(frame(TEXT, b"never to be continued", fin=False))
        assert hung_up(socks, HEARTBEAT_TIMEOUT + SLACK) >= HEARTBEAT_TIMEOUT - 1


def test_f12_who_is_silent_is_ended_in_time_and_shows_as_offline(server: Server) -> None:
    with Siege(server, "F-12") as siege:
        socks = []
        for number in range(30):
            socks.append(siege.add(websocket(server, server.token(f"silent_{number}"))))
            socks[-1].sendall(message(type="user_online", id=1))
        begun_s = time.monotonic()
        assert server.http("GET", "/api/online-status/silent_0")[1]["online"] is True
        for sock in socks:
            assert closed_with(sock) == [4008]
        assert time.monotonic() - begun_s < HEARTBEAT_TIMEOUT + 2
        for number in range(30):
            assert server.http("GET", f"/api/online-status/silent_{number}")[1]["online"] is False


TCP_REPAIR = 19


def test_f13_who_vanishes_without_a_word_is_ended_in_time_and_shows_as_offline(server: Server) -> None:
    with Siege(server, "F-13") as siege:
        before = siege.files()
        for number in range(30):
            sock = websocket(server, server.token(f"vanished_{number}"))
            sock.sendall(message(type="user_online", id=1))
            received(sock, until=lambda data: b'"ack"' in data)
            try:
                sock.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR, 1)  # closed now, it sends neither FIN nor RST
            except PermissionError:
                close_all([sock])
                pytest.skip("TCP_REPAIR needs CAP_NET_ADMIN")
            sock.close()
        assert siege.files() >= before + 30
        end_s = time.monotonic() + HEARTBEAT_TIMEOUT + SLACK
        for number in range(30):
            while server.http("GET", f"/api/online-status/vanished_{number}")[1]["online"]:
                assert time.monotonic() < end_s, f"vanished_{number} is still online"
                time.sleep(0.05)


QUESTION = message(type="request_online_status", user_ids=["a"] * 1000, id=1)
FLOODS = {
    "heartbeats": message(type="heartbeat") * 200,
    "heartbeats with an id": message(type="heartbeat", id=1) * 200,
    "no JSON": frame(TEXT, b"[") * 1000,
    "empty": frame(TEXT) * 1000,
    "questions": QUESTION,
    "subscriptions": message(type="subscribe", user_ids=[f"u{n}" for n in range(1000)], id=1),
    "rooms": message(type="subscribe", rooms=[f"r{n}" for n in range(50)], id=1) * 20,
    "big": frame(TEXT, b'{"type":"heartbeat","id":"' + b"x" * 60_000 + b'"}'),
    "unknown": message(type="unknown") * 500,
    "comings": message(type="user_online", device="d", id=1) * 100,
}


@pytest.mark.parametrize("name", FLOODS)
@pytest.mark.parametrize("seconds", [1.5, 4.0])
def test_f14_a_flood_of_messages_is_limited_and_what_it_asks_for_is_bounded(
    server: Server, token: str, name: str, seconds: float
) -> None:
    with Siege(server, f"F-14 {name} ({seconds} s)") as siege:
        socks = [siege.add(websocket(server, token, receive_buffer=4096)) for _ in range(40)]
        flood(socks, FLOODS[name], seconds)
        socks = [siege.add(websocket(server, token)) for _ in range(5)]  # and some who would read
        for sock in socks:
            with contextlib.suppress(OSError):
                sock.sendall(FLOODS[name] * 3)
        time.sleep(0.3)


@pytest.mark.parametrize("count", [100, 400])
def test_f14_very_many_who_ask_for_much_and_read_nothing_cost_a_turn_s_answers_each(start: Start, count: int) -> None:
    server = start(presence__heartbeat_timeout=60, limits__rate=1000, limits__burst=1000)
    token = server.token("attacker")
    with Siege(server, f"F-14 amplification ({count})") as siege:
        socks = [siege.add(websocket(server, token, receive_buffer=4096)) for _ in range(count)]
        flood(socks, QUESTION * 10, 3.0, bytes_each=len(QUESTION) * 50)
        time.sleep(0.5)
        assert siege.grown() / count < 300_000


@pytest.mark.parametrize("goes", [False, True], ids=["stays", "goes"])
@pytest.mark.parametrize("count", [100, 400])
def test_f14_questions_that_are_small_only_until_they_are_inflated_hold_nobody_up(
    start: Start, count: int, goes: bool
) -> None:
    # Found by reading: what is heavy was told by the compressed size, and who asked and closed was answered at once.
    server = start(presence__heartbeat_timeout=60, limits__rate=1000, limits__burst=1000)
    token = server.token("attacker")
    asked = json.dumps({"type": "request_online_status", "user_ids": ["a"] * 1000}, separators=(",", ":")).encode()
    squeezer = zlib.compressobj(9, zlib.DEFLATED, -15)
    small = (squeezer.compress(asked) + squeezer.flush(zlib.Z_SYNC_FLUSH))[:-4]
    assert len(small) < 100
    breath = frame(TEXT, small, rsv=4) * 30 + (frame(CLOSE, b"\x03\xe8") if goes else b"")
    with Siege(server, f"F-14 small questions ({count}, {goes})") as siege:
        socks = [
            siege.add(websocket(server, token, "Sec-WebSocket-Extensions: permessage-deflate", receive_buffer=4096))
            for _ in range(count)
        ]
        flood(socks, breath, 3.0, bytes_each=len(breath))
        time.sleep(1.0)


SMALL: dict[str, Callable[[int], dict[str, object]]] = {
    "status changes": lambda n: {"type": "status_change", "status": ("busy", "away")[n % 2]},
    "watches": lambda n: {"type": ("subscribe", "unsubscribe")[n % 2], "user_ids": [f"u{each}" for each in range(30)]},
    "rooms": lambda n: {"type": ("subscribe", "unsubscribe")[n % 2], "rooms": [f"r{each}" for each in range(25)]},
}


@pytest.mark.parametrize("name", SMALL)
def test_f14_bursts_of_small_frames_within_the_rate_hold_nobody_up_however_many_send_them(
    start: Start, name: str
) -> None:
    # Found by measuring: only long messages were put off in a turn that took long, and 300 times 100 took 0.3 s.
    server = start(presence__heartbeat_timeout=60)
    data = b"".join(message(**SMALL[name](number)) for number in range(90))
    with Siege(server, f"F-14 small frames: {name}", growth=256 * MB) as siege:
        socks = [siege.add(websocket(server, server.token(f"small_{number}"))) for number in range(300)]
        for sock in socks:
            sock.sendall(message(type="user_online"))
        time.sleep(1.0)
        for _ in range(2):
            flood(socks, data, 2.0, bytes_each=len(data))
            time.sleep(2.0)
            for sock in socks:
                sock.setblocking(False)
                with contextlib.suppress(BlockingIOError):
                    while sock.recv(1 << 20):
                        pass


def test_f14_a_flood_of_status_changes_is_conflated_and_never_punished(server: Server) -> None:
    with Siege(server, "F-14 status changes") as siege:
        socks = []
        for number in range(10):
            socks.append(siege.add(websocket(server, server.token(f"fickle_{number}"))))
            socks[-1].sendall(message(type="user_online"))
        data = b"".join(message(type="status_change", status=status) for status in ("busy", "away", "online")) * 50
        flood(socks, data, 2.0)
        for sock in socks:
            sock.settimeout(10)
            # Whole frames again: what the flood left half sent is part of one that this completes.
        assert siege.server.http("GET", "/api/online-status/fickle_0")[1]["online"] is True
    assert not server.logged("rate limited", user_id="fickle_0")


@pytest.mark.parametrize("count", [300, 4000])
def test_f15_garbage_and_changed_octets_crash_nothing(server: Server, token: str, count: int) -> None:
    dice = random.Random(15)
    good = message(type="user_online") + message(type="heartbeat", id=1) + frame(PING, b"p") + QUESTION[:50]
    with Siege(server, f"F-15 ({count})") as siege:
        for number in range(count):
            data = bytearray(good if number % 2 else os.urandom(dice.randrange(1, 2_000)))
            for _ in range(dice.randrange(1, 6)):
                data[dice.randrange(len(data))] = dice.randrange(256)
            if number % 3:
                sock = websocket(server, token)
            else:
                sock = connect(server)
                head = bytearray(upgrade_request(token))
                head[dice.randrange(len(head))] = dice.randrange(256)
                data = head + data
            with contextlib.suppress(OSError):
                sock.sendall(data)
                if dice.random() < 0.5:
                    sock.shutdown(socket.SHUT_WR)
                    sock.settimeout(0.05)
                    sock.recv(65_536)
            close_all([sock])
        assert siege.grown() < 16 * MB


def test_f16_nothing_of_one_connection_is_seen_on_another(server: Server) -> None:
    count, each = 24, 80
    with Siege(server, "F-16") as siege:
        dice = random.Random(16)
        socks = [siege.add(websocket(server, server.token(f"own_{number}"))) for number in range(count)]
        streams = [
            b"".join(
                message(type="request_online_status", user_ids=[f"own_{number}"] * (at % 7 + 1), id=f"{number}/{at}")
                + frame(PING, b"%d/%d" % (number, at))
                for at in range(each)
            )
            for number in range(count)
        ]
        places = [0] * count
        while any(place < len(stream) for place, stream in zip(places, streams, strict=True)):
            number = dice.randrange(count)
            size = dice.choice([1, 2, 3, 10, 100, 1000])
            socks[number].sendall(streams[number][places[number] : places[number] + size])
            places[number] += size
        for number, sock in enumerate(socks):
            last = b"%d/%d" % (number, each - 1)
            data = received(sock, until=lambda data, last=last: data.count(last) >= 2)  # type: ignore[misc]
            said = [part.split(b'"')[0] for part in data.split(b'"reply_to":"')[1:]]
            assert said == [b"%d/%d" % (number, at) for at in range(each)]
            for other in range(count):
                assert other == number or b'"own_%d"' % other not in data


NASTY: list[tuple[str, bytes]] = [
    ("deep list", b'{"type":"heartbeat","id":' + b"[" * 30_000 + b"]" * 30_000 + b"}"),
    ("deep map", b'{"type":' * 8_000 + b"1" + b"}" * 8_000),
    ("deep unknown field", b'{"type":"heartbeat","x":' + b"[" * 500 + b"]" * 500 + b"}"),
    ("huge integer", b'{"type":"heartbeat","id":' + b"9" * 50_000 + b"}"),
    ("huge exponent", b'{"type":"heartbeat","id":1e999999999}'),
    ("negative zero", b'{"type":"heartbeat","timestamp":-0.0}'),
    ("NaN", b'{"type":"heartbeat","timestamp":NaN}'),
    ("wrong types", b'{"type":["heartbeat"],"id":{}}'),
    ("type twice", b'{"type":"heartbeat","type":"user_offline","id":7}'),
    ("no object", b"null"),
    ("unknown fields", b'{"type":"heartbeat",' + b",".join(b'"f%d":1' % n for n in range(5_000)) + b"}"),
    ("long type", b'{"type":"' + b"x" * 60_000 + b'"}'),
    ("long id", b'{"type":"heartbeat","id":"' + b"x" * 60_000 + b'"}'),
    ("NUL", b'{"type":"user_online","device":"\\u0000"}'),
    ("bare NUL", b'{"type":"heartbeat","id":"\0"}'),
    ("right to left", '{"type":"user_online","device":"\u202e\u2066x"}'.encode()),
    ("lone surrogate", b'{"type":"heartbeat","id":"\\ud800"}'),
    ("byte order mark", b'\xef\xbb\xbf{"type":"heartbeat"}'),
    ("10,000 users", b'{"type":"subscribe","user_ids":[' + b",".join(b'"u%d"' % n for n in range(7_000)) + b"]}"),
    ("10,000 rooms", b'{"type":"subscribe","rooms":[' + b",".join(b'"r%d"' % n for n in range(7_000)) + b"]}"),
    ("one room 7,000 times", b'{"type":"subscribe","rooms":[' + b",".join([b'"r"'] * 7_000) + b"]}"),
    ("name of 60 KB", b'{"type":"subscribe","user_ids":["' + b"n" * 60_000 + b'"]}'),
    ("format", b'{"type":"%s%n{0}${jndi:ldap://x}","id":"%s"}'),
    ("a lot of white space", b" " * 60_000 + b"{}"),
]


@pytest.mark.parametrize(("name", "data"), NASTY, ids=[name for name, _ in NASTY])
def test_f17_a_nasty_message_is_answered_and_says_nothing_of_our_insides(
    server: Server, token: str, name: str, data: bytes
) -> None:
    sock = websocket(server, token)
    sock.sendall(frame(TEXT, data) + message(type="request_online_status", user_ids=["a"], id="after"))
    said = received(sock, until=lambda said: b'"after"' in said or bool(codes(said)))
    close_all([sock])
    assert 1011 not in codes(said)
    for word in (b"Traceback", b"File ", b"msgspec", b"Error:", b".py", b"0x7f"):
        assert word not in said
    assert len(said) < 20_000
    assert max(len(json.dumps(event)) for event in server.events[-50:]) < 1_000


def test_f17_the_same_in_messagepack(server: Server, token: str) -> None:
    with Siege(server, "F-17 MessagePack") as siege:
        for data in (
            b"\x81\xa4type" + b"\x91" * 30_000,
            b"\xdf\xff\xff\xff\xff",
            b"\xdd\xff\xff\xff\xff",
            b"\xc6\xff\xff\xff\xff",
            b"\xdb\xff\xff\xff\xff",
            b"\x82\xa4type\xa9heartbeat\xa2id\xc7\x10\x01" + b"x" * 16,
            b"\x81\xa4type\xa9heartbeat" * 10,
            b"\xc1",
            b"",
        ):
            sock = siege.add(websocket(server, token, "Sec-WebSocket-Protocol: fastpresence.v1.msgpack"))
            sock.sendall(frame(BINARY, data) + frame(PING, b"after"))
            said = received(sock, until=lambda said: b"after" in said)
            assert b"error" in said
            assert b"Traceback" not in said


def test_s08_messages_of_users_are_never_compressed(server: Server) -> None:
    # What the attacker says and what the victim hears do not share a DEFLATE stream: no length tells of a secret.
    receiver = websocket(server, server.token("receiver"), "Sec-WebSocket-Extensions: permessage-deflate")
    receiver.sendall(message(type="user_online", id=1))
    received(receiver, until=lambda data: b'"ack"' in data)
    sender = websocket(server, server.token("sender"))
    sender.sendall(message(type="user_online"))
    sender.sendall(message(type="message", to_user_id="receiver", message="secret " * 1000, id=2))
    data = received(receiver, until=lambda data: len(data) > 7_000)
    close_all([receiver, sender])
    assert data[0] == 0x80 | TEXT  # RSV1 not set
    assert b"secret secret" in data


def test_a_crowd_that_comes_and_goes_leaves_no_memory_behind(server: Server, token: str) -> None:
    def round_of(count: int) -> None:
        socks = [websocket(server, token) for _ in range(count)]
        for sock in socks:
            sock.sendall(message(type="subscribe", user_ids=["a", "b"], rooms=["r"]) + message(type="heartbeat"))
        close_all(socks)

    for _ in range(2):
        round_of(200)
    with Siege(server, "come and go", growth=16 * MB) as siege:
        for _ in range(5):
            round_of(200)
        assert siege.grown() < 8 * MB


def test_bystanders_of_many_kinds_go_on_while_everything_is_attacked_at_once(server: Server, token: str) -> None:
    """The real thing on the websockets library: presence goes its way in the middle of floods."""
    stop = threading.Event()

    def attack() -> None:
        while not stop.is_set():
            socks = [websocket(server, token, receive_buffer=4096) for _ in range(20)]
            for sock, data in zip(socks, [*FLOODS.values(), frame(PING) * 5_000] * 2, strict=False):
                flood([sock], data, 0.05)
            close_all(socks)

    async def story() -> None:
        async with Clients(server) as clients:
            host = await clients.online("kol_x", "kol")
            witness = await clients.connect("witness")
            await witness.sees("kol_x", "online")
            for number in range(30):
                status = ("busy", "online")[number % 2]
                await host.do("status_change", status=status)
                await witness.sees("kol_x", status, deadline=2)
                await asyncio.sleep(0.05)

    with Siege(server, "all at once"):
        thread = threading.Thread(target=attack)
        thread.start()
        try:
            asyncio.run(story())
        finally:
            stop.set()
            thread.join()


def test_close_frames_of_every_kind_end_a_connection_and_leave_nothing(server: Server, token: str) -> None:
    with Siege(server, "closes") as siege:
        for payload in (b"", b"\x03", b"\x03\xe8", b"\x03\xe8" + b"x" * 123, b"\x00\x00", b"\xff\xff", b"\x03\xe8\xff"):
            for _ in range(20):
                sock = siege.add(websocket(server, token))
                sock.sendall(frame(CLOSE, payload) + message(type="heartbeat"))
                data = received(sock)
                assert len(codes(data)) <= 1
