"""permessage-deflate (RFC 7692) on real sockets: what is agreed upon, that messages stand alone, what is refused."""

import asyncio
import json
import zlib
from collections.abc import Callable, Iterator

import msgspec
import pytest

from tests.support.clients import Clients, Codec, Frame, RawClient
from tests.support.scene import Scene, fresh
from tests.support.server import Server, shared

LIMIT = 16_384  #: bytes of a frame, and of a message before it was deflated


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    yield from shared(
        {
            "presence.heartbeat_timeout": 60,
            "limits.frame_size": LIMIT,
            "limits.message_size": LIMIT,
            "limits.burst": 1000,
        }
    )


def deflated(data: bytes, *, flush: int = zlib.Z_SYNC_FLUSH) -> bytes:
    """RFC 7692, section 7.2.1."""
    squeezer = zlib.compressobj(9, zlib.DEFLATED, -15)
    squeezed = squeezer.compress(data) + squeezer.flush(flush)
    return squeezed.removesuffix(b"\x00\x00\xff\xff") if flush == zlib.Z_SYNC_FLUSH else squeezed + b"\x00"


@pytest.mark.parametrize(
    ("offer", "parameters"),
    [
        ("permessage-deflate", set()),
        ("permessage-deflate; client_max_window_bits", set()),
        ("permessage-deflate; server_no_context_takeover; client_no_context_takeover", set()),
        ('permessage-deflate; server_max_window_bits="15"', {"server_max_window_bits=15"}),
        ("permessage-deflate; server_max_window_bits=10", {"server_max_window_bits=10"}),
        ("x-webkit-deflate-frame, permessage-deflate", set()),
        ("permessage-deflate; server_max_window_bits=7, permessage-deflate", set()),
        ("x-webkit-deflate-frame", None),
        ("permessage-deflate; a_parameter_of_tomorrow", None),
        ("permessage-deflate; server_no_context_takeover; server_no_context_takeover", None),
        ("permessage-deflate; server_max_window_bits", None),
        ("permessage-deflate; server_max_window_bits=16", None),
    ],
)
def test_the_first_good_offer_is_taken_without_context_takeover_and_a_bad_one_is_passed_over(
    server: Server, offer: str, parameters: set[str] | None
) -> None:
    async def story() -> None:
        async with RawClient.open(server) as raw:
            header = f"Sec-WebSocket-Extensions: {offer}"
            raw.send(RawClient.upgrade_request(server.token(fresh("user")), "/ws?public=0", header))
            status, headers, _ = await raw.response()
            assert status == 101
            agreed = headers.get("sec-websocket-extensions")
            if parameters is None:
                assert agreed is None
            else:
                assert agreed
                name, *given = [part.strip() for part in agreed.split(";")]
                assert name == "permessage-deflate"
                assert set(given) == {"server_no_context_takeover", "client_no_context_takeover", *parameters}
            raw.deflates = agreed is not None
            assert b"welcome" in (await raw.frame())[1]

    asyncio.run(story())


@pytest.mark.parametrize("codec", ["json", "msgpack"])
def test_every_deflated_message_stands_alone_and_tells_what_a_plain_one_tells(server: Server, codec: Codec) -> None:
    encode = msgspec.json.encode if codec == "json" else msgspec.msgpack.encode
    decode: Callable[[bytes], Frame] = msgspec.json.decode if codec == "json" else msgspec.msgpack.decode

    async def story() -> None:
        async with Clients(server) as clients:
            users = [await clients.online(fresh("user"), public=False) for _ in range(20)]
            names = [user.user_id for user in users]
            plain = await clients.connect(fresh("user"), public=False, deflate=False)
            await plain.do("subscribe", user_ids=names)
            async with RawClient.upgraded(server, fresh("user"), codec=codec, deflate=True) as raw:
                kind = raw.TEXT if codec == "json" else raw.BINARY
                subscription = encode({"type": "subscribe", "user_ids": names, "id": 1})
                raw.send_frame(kind | raw.DEFLATED, deflated(subscription))
                opcode, payload = await raw.frame()
                assert (opcode, decode(payload)) == (kind, {"type": "ack", "reply_to": 1})
                assert not raw.was_deflated  # too short to be worth it
                known: dict[str, Frame] = {}
                for status in ("online", "busy", "away"):
                    if status != "online":
                        await asyncio.gather(*[user.do("status_change", status=status) for user in users])
                    while {known.get(name, {}).get("status") for name in names} != {status}:
                        opcode, payload = await raw.frame()
                        frame = decode(payload)
                        assert opcode == kind
                        assert raw.was_deflated or len(frame["user_status"]) < 5
                        known.update({entry["user_id"]: entry for entry in frame["user_status"]})
                    for name in names:
                        await plain.sees(name, status)
                assert known == plain.view.known

    asyncio.run(story())


def test_a_client_that_wants_a_smaller_window_gets_plain_messages_and_may_send_deflated_ones(server: Server) -> None:
    async def story() -> None:
        async with RawClient.open(server) as raw:
            header = "Sec-WebSocket-Extensions: permessage-deflate; server_max_window_bits=8"
            raw.send(RawClient.upgrade_request(server.token(fresh("user")), "/ws?public=0", header))
            assert "sec-websocket-extensions" in (await raw.response())[1]
            raw.deflates = True
            await raw.frame()
            question = json.dumps({"type": "request_online_status", "user_ids": ["nobody"] * 50, "id": 1}).encode()
            raw.send_frame(raw.TEXT | raw.DEFLATED, deflated(question))
            assert len(json.loads((await raw.frame())[1])["user_status"]) == 50
            assert not raw.was_deflated

    asyncio.run(story())


def test_a_deflated_message_may_come_in_fragments_with_pings_between_in_any_block_type(server: Server) -> None:
    message = b'{"type":"heartbeat","id":"%s"}' % (b"0123456789abcdef" * 4)
    stored = b"\x00" + len(message).to_bytes(2, "little") + (len(message) ^ 0xFFFF).to_bytes(2, "little") + message
    ways = {
        "sync flush": deflated(message),
        "final block": deflated(message, flush=zlib.Z_FINISH),  # section 7.2.3.4
        "stored block": stored + b"\x00",  # section 7.2.3.3
        "two blocks": deflated(message[:9]) + b"\x00\x00\xff\xff" + deflated(message[9:]),  # section 7.2.3.5
    }

    async def story() -> None:
        async with RawClient.upgraded(server, fresh("user"), deflate=True) as raw:
            for way, payload in ways.items():
                for at, byte in enumerate(payload):
                    raw.send_frame((raw.TEXT | raw.DEFLATED) if at == 0 else 0x0, bytes([byte]), fin=False)
                    if at % 16 == 0:
                        raw.send_frame(raw.PING, b"p")
                        assert await raw.frame() == (raw.PONG, b"p")
                raw.send_frame(0x0, b"")
                assert b"0123456789abcdef" in (await raw.frame())[1], way

    asyncio.run(story())


def in_two(raw: RawClient, first: int, second: int) -> None:
    payload = deflated(b'{"type":"heartbeat"}') if first & raw.DEFLATED else b'{"type":"heartbeat"}'
    raw.send_frame(first, payload[:5], fin=False)
    raw.send_frame(second, payload[5:])


BROKEN: dict[str, tuple[Callable[[RawClient], object], int]] = {
    "no DEFLATE": (lambda raw: raw.send_frame(raw.TEXT | raw.DEFLATED, b"\xff" * 50), 1002),
    "a message that grows a thousandfold": (
        lambda raw: raw.send_frame(raw.TEXT | raw.DEFLATED, deflated(b" " * (LIMIT * 900))),
        1009,
    ),
    "a message one byte too long": (
        lambda raw: raw.send_frame(raw.TEXT | raw.DEFLATED, deflated(b" " * (LIMIT + 1))),
        1009,
    ),
    "streams without end": (
        lambda raw: raw.send_frame(raw.TEXT | raw.DEFLATED, deflated(b"", flush=zlib.Z_FINISH)[:-1] * 5000),
        1002,
    ),
    "text that is not UTF-8": (lambda raw: raw.send_frame(raw.TEXT | raw.DEFLATED, deflated(b'{"\xff')), 1007),
    "the wrong kind": (lambda raw: raw.send_frame(raw.BINARY | raw.DEFLATED, deflated(b"{}")), 1003),
    "a deflated ping": (lambda raw: raw.send_frame(raw.PING | raw.DEFLATED, b""), 1002),
    "a deflated close": (lambda raw: raw.send_frame(raw.CLOSE | raw.DEFLATED, b"\x03\xe8"), 1002),
    "a continuation that says it is deflated": (lambda raw: in_two(raw, raw.TEXT, raw.DEFLATED), 1002),
    "a deflated message with a deflated continuation": (
        lambda raw: in_two(raw, raw.TEXT | raw.DEFLATED, raw.DEFLATED),
        1002,
    ),
}


@pytest.mark.parametrize("what", BROKEN)
def test_broken_compression_closes_with_its_code_and_only_detaches_the_session(server: Server, what: str) -> None:
    send, code = BROKEN[what]

    async def story() -> None:
        async with Clients(server) as clients:
            scene = await Scene.begin(clients)
            user_id = fresh("kol")
            await scene.witness.do("subscribe", user_ids=[user_id])
            async with RawClient.upgraded(server, user_id, "kol", deflate=True) as raw:
                raw.send_frame(raw.TEXT | raw.DEFLATED, deflated(b'{"type":"user_online","status":"busy"}'))
                sight = await scene.witness.sees(user_id, "busy")
                send(raw)
                assert await raw.closed() == code
            await scene.settle()
            assert scene.witness.view.seen[user_id][-1] == sight

    asyncio.run(story())


def test_what_is_over_the_rate_is_refused_with_its_id_deflated_or_not(server: Server) -> None:
    async def story() -> None:
        async with RawClient.upgraded(server, fresh("user"), deflate=True) as raw:
            for number in range(1100):
                raw.send_frame(raw.TEXT | raw.DEFLATED, deflated(b'{"type":"heartbeat","id":%d}' % number))
            answers = [json.loads((await raw.frame())[1]) for _ in range(1100)]
            assert [answer["reply_to"] for answer in answers] == list(range(1100))
            assert answers[-1]["code"] == "rate_limited"

    asyncio.run(story())
