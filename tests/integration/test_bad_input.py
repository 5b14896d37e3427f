"""Everything a client can get wrong gets exactly what the protocol says, changes nothing, and harms nobody else.

Refused requests: one `error` with its code, and the connection goes on. Broken framing (RFC 6455): a close code,
and the session is only detached. In JSON and in MessagePack.
"""

import asyncio
import contextlib
import struct
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest
from websockets.exceptions import ConnectionClosed

from tests.support.clients import Clients, Codec, RawClient
from tests.support.scene import Scene, fresh
from tests.support.server import Server, shared

FRAME_SIZE = 32_768
BURST = 40

both_codecs = pytest.mark.parametrize("codec", ["json", "msgpack"])


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    yield from shared(
        {
            "presence.heartbeat_timeout": 60,
            "limits.frame_size": FRAME_SIZE,
            "limits.message_size": FRAME_SIZE,
            "limits.rate": 20,
            "limits.burst": BURST,
            "limits.watches": 1500,
            "limits.rooms": 3,
        }
    )


#: What is sent -> the error's code, and what its message has to name. `ID` as `id` is answered with it.
ID = 7
CALL = {"type": "call", "call_id": "c", "to_user_id": "u", "video": True, "audio": True, "id": ID}
REFUSED: dict[str, tuple[object, str, str]] = {
    "a status of a wrong type": ({"type": "status_change", "status": 5, "id": ID}, "bad_field", "status"),
    "a status of null": ({"type": "status_change", "status": None, "id": ID}, "bad_field", "status"),
    "no status": ({"type": "status_change", "id": ID}, "bad_field", "status"),
    "a status that is none": ({"type": "status_change", "status": "asleep", "id": ID}, "bad_field", "status"),
    "a status in capitals": ({"type": "status_change", "status": "BUSY", "id": ID}, "bad_field", "status"),
    "user_online with a bad status": ({"type": "user_online", "status": "asleep", "id": ID}, "bad_field", "status"),
    "a device without a name": ({"type": "user_online", "device": "", "id": ID}, "bad_field", "device"),
    "a device of 65 characters": ({"type": "user_online", "device": "d" * 65, "id": ID}, "bad_field", "device"),
    "a negative attempt": ({"type": "user_online", "attempt": -1, "id": ID}, "bad_field", "attempt"),
    "a timestamp in words": ({"type": "heartbeat", "timestamp": "now", "id": ID}, "bad_field", "timestamp"),
    "a timestamp with a fraction": ({"type": "heartbeat", "timestamp": 1.5, "id": ID}, "bad_field", "timestamp"),
    "somebody else's heartbeat": ({"type": "heartbeat", "user_id": "somebody", "id": ID}, "forbidden", ""),
    "another user type": ({"type": "heartbeat", "user_type": "user", "id": ID}, "forbidden", ""),
    "somebody else's goodbye": ({"type": "user_offline", "user_id": "somebody", "id": ID}, "forbidden", ""),
    "somebody else's status": (
        {"type": "status_change", "user_id": "somebody", "status": "busy", "id": ID},
        "forbidden",
        "",
    ),
    "somebody else's message": (
        {"type": "message", "from_user_id": "somebody", "to_user_id": "u", "message": "m", "id": ID},
        "forbidden",
        "",
    ),
    "somebody else's call": ({**CALL, "from_user_id": "somebody"}, "forbidden", ""),
    "somebody else's answer to a call": (
        {"type": "call_accept", "call_id": "c", "from_user_id": "somebody", "id": ID},
        "forbidden",
        "",
    ),
    "a user_id of a wrong type": ({"type": "heartbeat", "user_id": 5, "id": ID}, "bad_field", "user_id"),
    "an unknown type": ({"type": "nonsense", "id": ID}, "unknown_type", ""),
    "a server's type": ({"type": "welcome", "id": ID}, "unknown_type", ""),
    "a call to nobody": ({**CALL, "to_user_id": "nobody"}, "user_offline", ""),
    "a call without a name": ({**CALL, "call_id": ""}, "bad_field", "call_id"),
    "a call with a name of 65 characters": ({**CALL, "call_id": "c" * 65}, "bad_field", "call_id"),
    "a call with video of a wrong type": ({**CALL, "video": 1}, "bad_field", "video"),
    "a call that says nothing of audio": (
        {"type": "call", "call_id": "c", "to_user_id": "u", "video": True, "id": ID},
        "bad_field",
        "audio",
    ),
    "a call that is unknown is accepted": ({"type": "call_accept", "call_id": "c", "id": ID}, "unknown_call", ""),
    "a call that is unknown is rejected": ({"type": "call_reject", "call_id": "c", "id": ID}, "unknown_call", ""),
    "a call that is unknown is cancelled": ({"type": "call_cancel", "call_id": "c", "id": ID}, "unknown_call", ""),
    "a call that is unknown is ended": ({"type": "call_end", "call_id": "c", "id": ID}, "unknown_call", ""),
    "a signal of an unknown call": ({"type": "call_signal", "call_id": "c", "data": "", "id": ID}, "unknown_call", ""),
    "a signal of 16,385 characters": (
        {"type": "call_signal", "call_id": "c", "data": "d" * 16_385, "id": ID},
        "bad_field",
        "data",
    ),
    "a type of a wrong type": ({"type": 5, "id": ID}, "bad_field", "type"),
    "no type": ({"status": "busy", "id": ID}, "bad_field", "type"),
    "nothing at all": ({}, "bad_field", "type"),
    "a list": (["heartbeat"], "bad_frame", ""),
    "a string": ("heartbeat", "bad_frame", ""),
    "a number": (5, "bad_frame", ""),
    "null": (None, "bad_frame", ""),
    "an id that is a list": ({"type": "status_change", "status": "busy", "id": [1]}, "bad_field", "id"),
    "an id that is an object": ({"type": "status_change", "status": "busy", "id": {}}, "bad_field", "id"),
    "an id that is a fraction": ({"type": "status_change", "status": "busy", "id": 1.5}, "bad_field", "id"),
    "an id that is true": ({"type": "status_change", "status": "busy", "id": True}, "bad_field", "id"),
    "an id of 65 characters": ({"type": "status_change", "status": "busy", "id": "i" * 65}, "bad_field", "id"),
    "a message of 8,193 characters": (
        {"type": "message", "to_user_id": "u", "message": "é" * 8193, "id": ID},
        "bad_field",
        "message",
    ),
    "an empty message": ({"type": "message", "to_user_id": "u", "message": "", "id": ID}, "bad_field", "message"),
    "no message": ({"type": "message", "to_user_id": "u", "id": ID}, "bad_field", "message"),
    "a message to nobody": ({"type": "message", "message": "m", "id": ID}, "bad_field", "to_user_id"),
    "a message to a name with spaces": (
        {"type": "message", "to_user_id": "a b", "message": "m", "id": ID},
        "bad_field",
        "to_user_id",
    ),
    "a message to a name of 129 characters": (
        {"type": "message", "to_user_id": "a" * 129, "message": "m", "id": ID},
        "bad_field",
        "to_user_id",
    ),
    "a question about nobody": ({"type": "request_online_status", "user_ids": [], "id": ID}, "bad_field", "user_ids"),
    "a question about 1,001 users": (
        {"type": "request_online_status", "user_ids": [f"u{n}" for n in range(1001)], "id": ID},
        "bad_field",
        "user_ids",
    ),
    "a question about a bad name": (
        {"type": "request_online_status", "user_ids": ["good", "not good"], "id": ID},
        "bad_field",
        "user_ids[1]",
    ),
    "user_ids that are no list": (
        {"type": "request_online_status", "user_ids": "u", "id": ID},
        "bad_field",
        "user_ids",
    ),
    "a subscription to nothing": ({"type": "subscribe", "id": ID}, "bad_field", "user_ids"),
    "a subscription to 1,001 users": (
        {"type": "subscribe", "user_ids": [f"u{n}" for n in range(1001)], "id": ID},
        "bad_field",
        "user_ids",
    ),
    "a subscription to a bad room": ({"type": "subscribe", "rooms": ["a b"], "id": ID}, "bad_field", "rooms[0]"),
    "more rooms than one connection may have": (
        {"type": "subscribe", "rooms": ["r1", "r2", "r3", "r4"], "id": ID},
        "too_many",
        "rooms",
    ),
    "the end of a subscription to nothing": ({"type": "unsubscribe", "id": ID}, "bad_field", "user_ids"),
    "a token that is none": ({"type": "token_refresh", "token": "a.b.c", "id": ID}, "unauthorized", ""),
    "a token of a wrong type": ({"type": "token_refresh", "token": 5, "id": ID}, "bad_field", "token"),
    "a field with a stranger's name": ({"type": "status_change", "\x00<b>": 1, "id": ID}, "bad_field", "status"),
}


@both_codecs
@pytest.mark.parametrize("what", REFUSED)
def test_a_wrong_request_is_refused_by_name_changes_nothing_and_the_connection_goes_on(
    server: Server, codec: Codec, what: str
) -> None:
    value, code, names = REFUSED[what]

    async def story() -> None:
        async with Clients(server) as clients:
            scene = await Scene.begin(clients, codec)
            await scene.actor.send_value(value)
            error = await scene.actor.take("error")
            assert error["code"] == code
            assert names in error["message"]
            has_id = isinstance(value, dict) and value.get("id") == ID and value["id"] is not True
            assert error.get("reply_to") == (ID if has_id else None)
            assert set(error) <= {"type", "code", "message", "reply_to"}
            await scene.actor.beat()
            assert len(scene.actor.came("error")) == 1
            await scene.nothing_was_seen()
            await scene.actor.do("status_change", status="away")
            assert await scene.seen() == ["away"]

    asyncio.run(story())


NOT_JSON = {
    "nothing": b"",
    "words": b"hello",
    "half an object": b'{"type":"heartbeat"',
    "two objects": b'{"type":"heartbeat"}{"type":"heartbeat"}',
    "a comment": b'{"type":"heartbeat"} // now',
    "NaN": b'{"type":"heartbeat","timestamp":NaN}',
    "a depth of 8,000": b"[" * 8000,
    "half a surrogate pair": b'{"type":"message","to_user_id":"u","message":"\\ud800"}',
}
NOT_MSGPACK = {
    "nothing": b"",
    "half a map": msgspec.msgpack.encode({"type": "heartbeat"})[:-1],
    "two maps": msgspec.msgpack.encode({"type": "heartbeat"}) * 2,
    "the byte that is no type": b"\xc1",
    "a depth of 8,000": b"\x91" * 8000 + b"\xc0",
    "a map of four billion": b"\xdf\xff\xff\xff\xff",
    "a string of four billion": b"\xdb\xff\xff\xff\xff",
    "a string that is not UTF-8": b"\x81\xa4type\xa9heartbe\xff\xfe",
}


@pytest.mark.parametrize(
    ("codec", "data"),
    [("json", data) for data in NOT_JSON.values()] + [("msgpack", data) for data in NOT_MSGPACK.values()],
    ids=[f"json: {name}" for name in NOT_JSON] + [f"msgpack: {name}" for name in NOT_MSGPACK],
)
def test_what_is_not_of_the_negotiated_format_is_a_bad_frame_and_the_connection_goes_on(
    server: Server, codec: Codec, data: bytes
) -> None:
    async def story() -> None:
        async with Clients(server) as clients:
            scene = await Scene.begin(clients, codec)
            await scene.actor.send_bytes(data)
            error = await scene.actor.take("error")
            assert error["code"] == "bad_frame"
            assert "reply_to" not in error
            await scene.actor.beat()
            assert len(scene.actor.came("error")) == 1
            await scene.nothing_was_seen()

    asyncio.run(story())


@both_codecs
def test_who_is_not_online_yet_can_neither_change_a_status_nor_send_a_message(server: Server, codec: Codec) -> None:
    async def story() -> None:
        async with Clients(server) as clients:
            scene = await Scene.begin(clients, codec, online=False)
            await scene.actor.refused("status_change", "not_online", status="busy")
            await scene.actor.refused("message", "not_online", to_user_id=scene.actor.user_id, message="hello")
            await scene.actor.beat()  # which an observer may
            await scene.nothing_was_seen()
            await scene.actor.do("user_online")
            await scene.actor.do("status_change", status="busy")
            assert (await scene.seen())[-1] == "busy"

    asyncio.run(story())


def test_watches_and_rooms_are_limited_for_one_connection_and_a_refused_subscription_subscribes_to_nothing(
    server: Server,
) -> None:
    async def story() -> None:
        async with Clients(server) as clients:
            scene = await Scene.begin(clients)
            other = await clients.online(fresh("user"), public=False)
            watcher = await clients.connect(fresh("user"), public=False)
            await watcher.do("subscribe", user_ids=[f"nobody_{n}" for n in range(1000)])
            await watcher.do("subscribe", user_ids=[f"nobody_{n}" for n in range(1000, 1499)])
            await watcher.refused("subscribe", "too_many", user_ids=[scene.actor.user_id, other.user_id])
            await watcher.do("subscribe", user_ids=[other.user_id, "nobody_0"])
            await watcher.do("subscribe", rooms=["r1", "r2"])
            await watcher.refused("subscribe", "too_many", rooms=["r3", "r4"])
            await watcher.do("subscribe", rooms=["r3", "r1"])
            await scene.actor.do("status_change", status="busy")
            await other.do("status_change", status="busy")
            await watcher.sees(other.user_id, "busy")
            assert watcher.view.status(scene.actor.user_id) is None
            # What is given up can be had again.
            await watcher.do("unsubscribe", user_ids=["nobody_1"], rooms=["r2"])
            await watcher.do("subscribe", user_ids=[scene.actor.user_id], rooms=["r4"])
            await watcher.sees(scene.actor.user_id, "busy")

    asyncio.run(story())


# Broken framing.


def _in_pieces(raw: RawClient, *fragments: tuple[int, bytes]) -> None:
    for opcode, payload in fragments:
        raw.send_frame(opcode, payload, fin=False)


FRAMING: dict[str, tuple[Callable[[RawClient, int], object], int]] = {
    "a frame without a mask": (lambda raw, kind: raw.send_frame(kind, b"{}", masked=False), 1002),
    "a reserved opcode": (lambda raw, _: raw.send_frame(0x3, b"{}"), 1002),
    "a reserved control opcode": (lambda raw, _: raw.send_frame(0xB, b""), 1002),
    "a reserved bit": (lambda raw, kind: raw.send_frame(kind | 0x20, b"{}"), 1002),
    "compression that was not agreed upon": (lambda raw, kind: raw.send_frame(kind | raw.DEFLATED, b"{}"), 1002),
    "a continuation of nothing": (lambda raw, _: raw.send_frame(0x0, b"{}"), 1002),
    "a message within a message": (lambda raw, kind: _in_pieces(raw, (kind, b"{"), (kind, b"}")), 1002),
    "a ping in fragments": (lambda raw, _: raw.send_frame(RawClient.PING, b"", fin=False), 1002),
    "a ping of 126 bytes": (lambda raw, _: raw.send_frame(RawClient.PING, b"p" * 126), 1002),
    "a close of one byte": (lambda raw, _: raw.send_frame(RawClient.CLOSE, b"\x03"), 1002),
    "a close with 1005": (lambda raw, _: raw.send_frame(RawClient.CLOSE, struct.pack("!H", 1005)), 1002),
    "a close with 999": (lambda raw, _: raw.send_frame(RawClient.CLOSE, struct.pack("!H", 999)), 1002),
    "a close whose reason is not UTF-8": (
        lambda raw, _: raw.send_frame(RawClient.CLOSE, struct.pack("!H", 1001) + b"\xff"),
        1007,
    ),
    "a frame too long by one byte": (lambda raw, kind: raw.send_frame(kind, b" " * (FRAME_SIZE + 1)), 1009),
    "a frame that only says it is too long": (
        lambda raw, kind: raw.send_frame(kind, b"", claimed=FRAME_SIZE + 1),
        1009,
    ),
    "a frame that says it is nine exabytes": (lambda raw, kind: raw.send_frame(kind, b"", claimed=2**63 - 1), 1009),
    "fragments that are too long together": (
        lambda raw, kind: _in_pieces(raw, (kind, b" " * 12_000), (0x0, b" " * 12_000), (0x0, b" " * 12_000)),
        1009,
    ),
}


@both_codecs
@pytest.mark.parametrize("what", FRAMING)
def test_broken_framing_closes_with_its_code_and_only_detaches_the_session(
    server: Server, codec: Codec, what: str
) -> None:
    send, code = FRAMING[what]
    asyncio.run(_closes(server, codec, lambda raw: send(raw, _kind(codec)), code))


@both_codecs
def test_the_wrong_kind_of_frame_closes_with_1003_and_only_detaches_the_session(server: Server, codec: Codec) -> None:
    wrong = RawClient.BINARY if codec == "json" else RawClient.TEXT
    asyncio.run(_closes(server, codec, lambda raw: raw.send_frame(wrong, b'{"type":"heartbeat"}'), 1003))


@pytest.mark.parametrize("data", [b"\xff", b"\xc3", b"\xed\xa0\x80", b"\xf8\x88\x80\x80\x80", b"\xc0\xaf"])
def test_text_that_is_not_utf_8_closes_with_1007_and_only_detaches_the_session(server: Server, data: bytes) -> None:
    payload = b'{"type":"heartbeat","user_id":"' + data + b'"}'
    asyncio.run(_closes(server, "json", lambda raw: raw.send_frame(RawClient.TEXT, payload), 1007))


def _kind(codec: Codec) -> int:
    return RawClient.TEXT if codec == "json" else RawClient.BINARY


async def _closes(server: Server, codec: Codec, send: Callable[[RawClient], object], code: int) -> None:
    async with Clients(server) as clients:
        scene = await Scene.begin(clients)
        user_id = fresh("kol")
        encode: Any = msgspec.json.encode if codec == "json" else msgspec.msgpack.encode
        await scene.witness.do("subscribe", user_ids=[user_id])
        async with RawClient.upgraded(server, user_id, "kol", codec=codec) as raw:
            raw.send_frame(_kind(codec), encode({"type": "user_online", "status": "busy", "id": 1}))
            _, payload = await raw.frame()
            assert b"ack" in payload
            sight = await scene.witness.sees(user_id, "busy")
            send(raw)
            assert await raw.closed() == code
        await scene.nothing_was_seen()
        assert scene.witness.view.seen[user_id][-1] == sight
        # It is detached: whoever comes back takes it over, and still nobody sees anything.
        await clients.online(user_id, "kol", status="busy", public=False)
        await scene.settle()
        assert scene.witness.view.seen[user_id][-1] == sight
        assert server.event("reconnect", user_id=user_id)


def test_what_comes_in_one_packet_behind_a_broken_frame_is_not_carried_out(server: Server) -> None:
    async def story() -> None:
        async with Clients(server) as clients:
            scene = await Scene.begin(clients)
            user_id = fresh("kol")
            await scene.witness.do("subscribe", user_ids=[user_id])
            async with RawClient.upgraded(server, user_id, "kol") as raw:
                raw.send_frame(RawClient.TEXT, b'{"type":"user_online"}')
                await scene.witness.sees(user_id, "online")
                raw.send_frame(RawClient.BINARY, b"{}")
                raw.send_frame(RawClient.TEXT, b'{"type":"status_change","status":"busy","id":1}')
                raw.send_frame(RawClient.TEXT, b'{"type":"user_offline","id":2}')
                assert await raw.closed() == 1003
            await scene.settle()
            assert scene.witness.view.statuses(user_id)[-1] == "online"

    asyncio.run(story())


def test_a_frame_of_exactly_the_limit_and_one_in_many_fragments_with_pings_between_are_answered(server: Server) -> None:
    async def story() -> None:
        async with RawClient.upgraded(server, fresh("user")) as raw:
            text = b'{"type":"heartbeat","id":1}'
            raw.send_frame(RawClient.TEXT, text + b" " * (FRAME_SIZE - len(text)))
            assert b'"reply_to":1' in (await raw.frame())[1]
            for at, byte in enumerate('{"type":"heartbeat","id":"é"}'.encode()):
                raw.send_frame(RawClient.TEXT if at == 0 else 0x0, bytes([byte]), fin=False)
                if at % 10 == 0:
                    raw.send_frame(RawClient.PING, bytes([at]))
                    assert await raw.frame() == (RawClient.PONG, bytes([at]))
            raw.send_frame(0x0, b"")
            assert '"reply_to":"é"'.encode() in (await raw.frame())[1]

    asyncio.run(story())


# The rate.


@both_codecs
def test_over_the_rate_requests_are_refused_first_and_then_the_connection_is_closed_with_4029(
    server: Server, codec: Codec
) -> None:
    async def story() -> None:
        async with Clients(server) as clients:
            scene = await Scene.begin(clients, codec)
            before = len(scene.actor.frames)
            for number in range(BURST + 20):
                await scene.actor.send("heartbeat", id=1000 + number)
            await scene.actor.answer(1000 + BURST + 19)
            answers = [frame for _, frame in scene.actor.frames[before:]]
            assert [answer["reply_to"] for answer in answers] == list(range(1000, 1000 + BURST + 20))
            kinds = [answer["type"] for answer in answers]
            carried_out = kinds.index("error")
            assert BURST - 10 <= carried_out <= BURST + 10
            assert all(each["code"] == "rate_limited" for each in answers if each["type"] == "error")
            await scene.nothing_was_seen()
            # It goes on regardless.
            with contextlib.suppress(ConnectionClosed):
                for _ in range(4 * BURST):
                    await scene.actor.send("heartbeat")
            assert await scene.actor.ended() == 4029
            assert server.event("rate limited")
            # Only detached: it was told to come back.
            assert "offline" not in await scene.seen()

    asyncio.run(story())


@both_codecs
def test_who_was_over_the_rate_and_calms_down_is_carried_out_again(server: Server, codec: Codec) -> None:
    async def story() -> None:
        async with Clients(server) as clients:
            scene = await Scene.begin(clients, codec)
            for number in range(BURST + 10):
                await scene.actor.send("heartbeat", id=1000 + number)
            answer = await scene.actor.answer(1000 + BURST + 9)
            assert answer["type"] == "error"
            for attempt in range(100):
                answer = await scene.actor.ask("status_change", status="busy", id=f"again {attempt}")
                if answer["type"] == "ack":
                    break
                assert answer["code"] == "rate_limited"
                await asyncio.sleep(0.1)
            assert answer["type"] == "ack"
            assert await scene.seen() == ["busy"]

    asyncio.run(story())


def test_a_flood_on_one_connection_delays_nobody_else(server: Server) -> None:
    async def story() -> None:
        async with Clients(server) as clients:
            scene = await Scene.begin(clients)
            async with RawClient.upgraded(server, fresh("user")) as raw:
                for _ in range(20_000):
                    raw.send_frame(RawClient.TEXT, b"[")
                async with asyncio.timeout(1):
                    await scene.actor.do("status_change", status="busy")
                    assert await scene.seen() == ["busy"]
                opcode = RawClient.TEXT
                while opcode == RawClient.TEXT:
                    opcode, payload = await raw.frame()
                assert (opcode, payload[:2]) == (RawClient.CLOSE, struct.pack("!H", 4029))

    asyncio.run(story())
