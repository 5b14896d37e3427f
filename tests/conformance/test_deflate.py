"""RFC 7692 (permessage-deflate): what is agreed on, and what compressed messages may be."""

import json
import random
import zlib

import pytest

from tests.support.server import Server
from tests.support.wire import (
    BINARY,
    CLOSE,
    CONTINUATION,
    PING,
    PONG,
    TEXT,
    EchoProcess,
    Frame,
    Wire,
    close_payload,
    compress,
    frame,
    upgrade,
)

NAME = "permessage-deflate"
OFFER = f"Sec-WebSocket-Extensions: {NAME}"
AGREED = {NAME, "server_no_context_takeover", "client_no_context_takeover"}
RSV1 = 4

#: Offers that are taken, and parameters of the answer that are there beside the usual.
TAKEN: dict[str, tuple[list[str], set[str]]] = {
    "7 nothing more": ([NAME], set()),
    "7 spaces around it": ([f" \t{NAME} "], set()),
    "9.1 among others": ([f"x-webkit-deflate-frame, {NAME}, foo; bar=1"], set()),
    "9.1 in a header of its own": (["foo; bar", NAME], set()),
    "9.1 among empty elements": ([f", ,{NAME},"], set()),
    "7.1.1.1 server_no_context_takeover": ([f"{NAME}; server_no_context_takeover"], set()),
    "7.1.1.2 client_no_context_takeover": ([f"{NAME}; client_no_context_takeover"], set()),
    "7.1.1 both": ([f"{NAME}; client_no_context_takeover; server_no_context_takeover"], set()),
    "7.1.1 no spaces": ([f"{NAME};client_no_context_takeover;server_no_context_takeover"], set()),
    "7.1.1 many spaces": ([f"{NAME} ;\t client_no_context_takeover ; server_no_context_takeover "], set()),
    "7.1.2.2 client_max_window_bits": ([f"{NAME}; client_max_window_bits"], set()),
    **{
        f"7.1.2.2 client_max_window_bits={bits}": ([f"{NAME}; client_max_window_bits={bits}"], set())
        for bits in range(8, 16)
    },
    **{
        f"7.1.2.1 server_max_window_bits={bits}": (
            [f"{NAME}; server_max_window_bits={bits}"],
            {f"server_max_window_bits={bits}"},
        )
        for bits in range(8, 16)
    },
    "9.1 a quoted value": ([f'{NAME}; server_max_window_bits="12"'], {"server_max_window_bits=12"}),
    "9.1 a value with quoted pairs": ([f'{NAME}; server_max_window_bits="1\\2"'], {"server_max_window_bits=12"}),
    "9.1 spaces around =": ([f"{NAME}; server_max_window_bits = 12"], {"server_max_window_bits=12"}),
    "7.1 all four": (
        [
            f"{NAME}; server_max_window_bits=10; client_max_window_bits=11; "
            "server_no_context_takeover; client_no_context_takeover"
        ],
        {"server_max_window_bits=10"},
    ),
    "5.1 the second offer when the first is none": ([f"{NAME}; unknown, {NAME}"], set()),
    "5.1 the second offer, in another header": ([f"{NAME}; server_max_window_bits=7", NAME], set()),
    "5.1 the third offer": (
        [f"{NAME}; server_max_window_bits=99, {NAME}; foo=bar, {NAME}; server_max_window_bits=9"],
        {"server_max_window_bits=9"},
    ),
    "5.1 the first of two good ones": (
        [f"{NAME}; server_max_window_bits=11, {NAME}"],
        {"server_max_window_bits=11"},
    ),
}

#: Offers that section 7.1 has declined, without failing the handshake.
DECLINED = {
    "7.1 an unknown parameter": f"{NAME}; foo",
    "7.1 an unknown parameter with a value": f"{NAME}; foo=bar",
    "7.1 a known parameter in capitals": f"{NAME}; SERVER_NO_CONTEXT_TAKEOVER",
    "7.1 server_no_context_takeover twice": f"{NAME}; server_no_context_takeover; server_no_context_takeover",
    "7.1 client_no_context_takeover twice": f"{NAME}; client_no_context_takeover; client_no_context_takeover",
    "7.1 server_max_window_bits twice": f"{NAME}; server_max_window_bits=10; server_max_window_bits=10",
    "7.1 client_max_window_bits twice": f"{NAME}; client_max_window_bits; client_max_window_bits=10",
    "7.1.1.1 a value where none is": f"{NAME}; server_no_context_takeover=1",
    "7.1.1.2 a value where none is": f"{NAME}; client_no_context_takeover=true",
    "7.1.2.1 no value": f"{NAME}; server_max_window_bits",
    **{
        f"7.1.2.1 server_max_window_bits={value}": f"{NAME}; server_max_window_bits={value}"
        for value in ("0", "7", "16", "08", "015", "1000000", "99999999999999999999", "-9", "+9", "9.0", "nine", "0x9")
    },
    **{
        f"7.1.2.2 client_max_window_bits={value}": f"{NAME}; client_max_window_bits={value}"
        for value in ("0", "7", "16", "08", "015", "1000000", "-9", "nine")
    },
    "5.1 no extension that we know": "x-webkit-deflate-frame, permessage-bzip2",
    "7 another name": "permessage-deflate2",
    "7 the name in capitals": "PERMESSAGE-DEFLATE",
}

#: What is no list of extensions at all (RFC 6455, section 9.1).
MALFORMED = {
    "a parameter with no name": f"{NAME};",
    "two semicolons": f"{NAME};; foo",
    "only a parameter": "; foo",
    "no value behind =": f"{NAME}; server_max_window_bits=",
    "a value with a space": f"{NAME}; server_max_window_bits=1 0",
    "two names": f"{NAME} {NAME}",
    "an unfinished string": f'{NAME}; server_max_window_bits="10',
    "a string that is no token": f'{NAME}; server_max_window_bits="1 0"',
    "an empty string": f'{NAME}; server_max_window_bits=""',
    "a name that is no token": "permessage/deflate",
    "a name in quotes": f'"{NAME}"',
    "bytes above 127": f"{NAME}; \xe9",
    "too many": ", ".join(["foo; a; b; c"] * 100),
}


def shake(port: int, *offers: str) -> tuple[int, list[str]]:
    """Status, and the extensions of the answer."""
    with Wire(port) as wire:
        wire.send(upgrade(*(f"Sec-WebSocket-Extensions: {offer}" for offer in offers)))
        response = wire.response()
        return response.status, [value for name, value in response.headers if name == "sec-websocket-extensions"]


@pytest.mark.parametrize("case", TAKEN.values(), ids=TAKEN.keys())
def test_an_offer_that_can_be_met_is_taken(deflating: EchoProcess, case: tuple[list[str], set[str]]) -> None:
    offers, more = case
    status, agreed = shake(deflating.port, *offers)
    assert status == 101
    assert len(agreed) == 1
    parameters = [part.strip() for part in agreed[0].split(";")]
    assert set(parameters) == AGREED | more
    assert len(parameters) == len(set(parameters))


@pytest.mark.parametrize("case", TAKEN.values(), ids=TAKEN.keys())
def test_messages_go_both_ways_whatever_was_agreed(deflating: EchoProcess, case: tuple[list[str], set[str]]) -> None:
    with Wire.open(deflating.port, *(f"Sec-WebSocket-Extensions: {offer}" for offer in case[0])) as wire:
        payload = b"to be or not to be " * 100
        wire.send(frame(TEXT, compress(payload, bits=9), rsv=RSV1) + frame(TEXT, payload))
        assert wire.frames_until_pong() == [Frame(TEXT, payload)] * 2
        # Section 7.1.2.1: no window above what the client asked for; then nothing is compressed at all.
        small = case[1] and case[1] != {"server_max_window_bits=15"}
        assert wire.compressed == (0 if small else 2)


@pytest.mark.parametrize("offer", DECLINED.values(), ids=DECLINED.keys())
def test_an_offer_that_can_not_be_met_is_declined(deflating: EchoProcess, offer: str) -> None:
    assert shake(deflating.port, offer) == (101, [])


@pytest.mark.parametrize("offer", DECLINED.values(), ids=DECLINED.keys())
def test_a_declined_offer_leaves_no_compression(deflating: EchoProcess, offer: str) -> None:
    with Wire.open(deflating.port, f"Sec-WebSocket-Extensions: {offer}") as wire:
        assert not wire.deflate
        wire.send(frame(TEXT, b"a" * 1000))
        assert wire.frames_until_pong() == [Frame(TEXT, b"a" * 1000)]
        wire.send(frame(TEXT, compress(b"hello"), rsv=RSV1))
        assert codes(wire.frames()) == [1002]


@pytest.mark.parametrize("offer", MALFORMED.values(), ids=MALFORMED.keys())
def test_what_is_no_list_of_extensions_fails_the_handshake(deflating: EchoProcess, offer: str) -> None:
    assert shake(deflating.port, offer)[0] == 400


def test_a_long_list_is_parsed_at_once(deflating: EchoProcess) -> None:
    for offer in (f"{NAME}; " + "a" * 15_000, NAME + ";" * 15_000, "," * 15_000, " " * 15_000 + "x", '"' * 15_000):
        assert shake(deflating.port, offer)[0] in (101, 400)


def codes(frames: list[Frame]) -> list[int]:
    return [int.from_bytes(one.payload[:2], "big") for one in frames if one.opcode == CLOSE]


def blocks(parts: list[bytes], flush: int = zlib.Z_SYNC_FLUSH) -> bytes:
    """One message with a flush behind each part."""
    squeezer = zlib.compressobj(6, zlib.DEFLATED, -15)
    return b"".join(squeezer.compress(part) + squeezer.flush(flush) for part in parts)[:-4]


def with_context(payload: bytes, before: bytes) -> bytes:
    """A message that refers to the one before it."""
    squeezer = zlib.compressobj(6, zlib.DEFLATED, -15)
    squeezer.compress(before)
    squeezer.flush(zlib.Z_SYNC_FLUSH)
    return (squeezer.compress(payload) + squeezer.flush(zlib.Z_SYNC_FLUSH))[:-4]


LIPSUM = b"".join(b"%d bottles of beer on the wall, " % number for number in range(99, 0, -1))
NOISE = random.Random(7692).randbytes(5_000)
PARTS = [LIPSUM[at : at + 50] for at in range(0, len(LIPSUM), 50)]

#: Payloads of compressed messages, and what they hold.
MESSAGES: dict[str, tuple[bytes, bytes]] = {
    "7.2.3.1 the example": (bytes.fromhex("f248cdc9c90700"), b"Hello"),
    "7.2.3.3 a block without compression": (bytes.fromhex("000500faff48656c6c6f00"), b"Hello"),
    "7.2.3.4 a final block": (bytes.fromhex("f348cdc9c9070000"), b"Hello"),
    "7.2.3.4 a final block and nothing behind it": (bytes.fromhex("f348cdc9c90700"), b"Hello"),
    "7.2.3.5 two blocks": (bytes.fromhex("f24805000000ffffcac9c90700"), b"Hello"),
    "7.2.3.6 the empty message": (b"\0", b""),
    "7.2.3.6 an empty fixed block": (b"\x02\0", b""),
    "7.2.1 an empty message of zlib's": (compress(b""), b""),
    "7.2.2 no payload at all": (b"", b""),
    "7.2.1 some text": (compress(LIPSUM), LIPSUM),
    "7.2.1 noise": (compress(NOISE), NOISE),
    **{f"7.1.2.2 window bits {bits}": (compress(LIPSUM * 3, bits=bits), LIPSUM * 3) for bits in range(9, 16)},
    **{f"7.2.1 level {level}": (compress(LIPSUM, level=level), LIPSUM) for level in range(10)},
    "7.2.3.4 a final block of some length": (compress(LIPSUM, final=True), LIPSUM),
    "7.2.3.4 two final streams": (
        compress(b"a" * 99, final=True) + compress(b"b" * 99, final=True),
        b"a" * 99 + b"b" * 99,
    ),
    "7.2.3.4 a final stream and another": (
        compress(b"a" * 99, final=True) + compress(b"b" * 99),
        b"a" * 99 + b"b" * 99,
    ),
    "7.2.3.4 ten final streams": (compress(b"abc", final=True) * 10, b"abc" * 10),
    "7.2.3.5 a sync flush every 50 bytes": (blocks(PARTS), LIPSUM),
    "7.2.3.5 a full flush every 50 bytes": (blocks(PARTS, zlib.Z_FULL_FLUSH), LIPSUM),
    "7.2.1 the tail left on": (compress(LIPSUM) + b"\0\0\xff\xff", LIPSUM),
}

#: Payloads that are no DEFLATE, or not all of it.
BROKEN = {
    "a block type that there is not": b"\xff" * 20,
    "noise": b"\x07" + NOISE,
    "a length that does not fit its complement": b"\0\5\0\0\0Hello\0",
    "a reference to the message before": with_context(LIPSUM, LIPSUM),
    "a stream with the head of zlib": zlib.compress(LIPSUM),
    "data cut off in the middle": compress(LIPSUM)[:-50],
    "data cut off at their beginning": compress(LIPSUM)[:3],
    "a block without compression that is cut off": bytes.fromhex("000500faff4865"),
    "bytes behind the final block": compress(LIPSUM, final=True) + b"\xff\xff\xff",
    "a thousand streams": compress(b"", final=True) * 1000,
}

AGREE = pytest.mark.parametrize("opcode", [TEXT, BINARY], ids=["text", "binary"])
compressed_messages = pytest.mark.parametrize(("data", "payload"), MESSAGES.values(), ids=MESSAGES.keys())


@compressed_messages
def test_a_compressed_message_is_inflated(deflating: EchoProcess, data: bytes, payload: bytes) -> None:
    opcode = BINARY if payload == NOISE else TEXT
    with Wire.open(deflating.port, OFFER) as wire:
        wire.send(frame(opcode, data, rsv=RSV1))
        assert wire.frames_until_pong() == [Frame(opcode, payload)]
        # No context is kept: the same again, behind something else.
        wire.send(frame(BINARY, compress(b"else"), rsv=RSV1) + frame(opcode, data, rsv=RSV1))
        assert wire.frames_until_pong() == [Frame(BINARY, b"else"), Frame(opcode, payload)]


@compressed_messages
def test_it_may_be_cut_anywhere(deflating: EchoProcess, data: bytes, payload: bytes) -> None:
    """Section 6.1: RSV1 on the first fragment alone; the cut knows nothing of blocks or characters."""
    with Wire.open(deflating.port, OFFER) as wire:
        cuts = range(0, len(data) + 1, max(1, len(data) // 25))
        for cut in cuts:
            wire.send(
                frame(BINARY, data[:cut], fin=False, rsv=RSV1) + frame(PING, b"p") + frame(CONTINUATION, data[cut:])
            )
        assert [one for one in wire.frames_until_pong() if one.opcode != PONG] == [Frame(BINARY, payload)] * len(cuts)


@compressed_messages
def test_it_may_come_byte_by_byte(deflating: EchoProcess, data: bytes, payload: bytes) -> None:
    with Wire.open(deflating.port, OFFER) as wire:
        single = [data[at : at + 1] for at in range(len(data))] or [b""]
        sent = [
            frame(BINARY if at == 0 else CONTINUATION, part, fin=at == len(single) - 1, rsv=RSV1 if at == 0 else 0)
            for at, part in enumerate(single)
        ]
        wire.send(b"".join(sent), step=5)
        assert wire.frames_until_pong() == [Frame(BINARY, payload)]


@AGREE
@pytest.mark.parametrize("data", BROKEN.values(), ids=BROKEN.keys())
def test_what_is_no_deflate_ends_the_connection(deflating: EchoProcess, data: bytes, opcode: int) -> None:
    with Wire.open(deflating.port, OFFER) as wire:
        wire.send(frame(opcode, LIPSUM) + frame(opcode, data, rsv=RSV1) + frame(PING, b"too late"))
        assert wire.frame() == Frame(opcode, LIPSUM)
        end = wire.frame()
        assert end is not None
        assert codes([end]) in ([1002], [1007])
        wire.send(frame(CLOSE, end.payload[:2]))
        assert wire.ended()


@pytest.mark.parametrize("data", BROKEN.values(), ids=BROKEN.keys())
def test_the_presence_server_ends_the_connection_as_well(server: Server, token: str, data: bytes) -> None:
    with Wire.open(server.port, OFFER, f"Authorization: Bearer {token}", target="/ws?public=0") as wire:
        wire.send(frame(TEXT, data, rsv=RSV1))
        assert codes(_ends(wire)) in ([1002], [1007])


def test_the_presence_server_understands_compressed_requests(server: Server, token: str) -> None:
    with Wire.open(server.port, OFFER, f"Authorization: Bearer {token}", target="/ws?public=0") as wire:
        request = json.dumps(
            {"type": "request_online_status", "user_ids": [f"u{n}" for n in range(100)], "id": 1}
        ).encode()
        wire.send(frame(TEXT, request) + frame(TEXT, compress(request), rsv=RSV1))
        answers = [json.loads(one.payload) for one in wire.frames_until_pong() if one.opcode == TEXT]
        answers = [answer for answer in answers if answer["type"] == "user_online_status"]
        assert len(answers) == 2
        assert answers[0] == answers[1]
        assert wire.compressed == 2


@pytest.mark.parametrize(
    "payload",
    [b"\xff", b"a\xed\xa0\x80", b"\xc0\x80", b"\xf4\x90\x80\x80", b"cut \xe2\x82", LIPSUM + b"\x80"],
)
def test_a_compressed_text_that_is_no_utf_8_is_1007(
    deflating: EchoProcess, server: Server, token: str, payload: bytes
) -> None:
    with Wire.open(deflating.port, OFFER) as wire:
        wire.send(frame(BINARY, compress(payload), rsv=RSV1))
        assert wire.frames_until_pong() == [Frame(BINARY, payload)]
        wire.send(frame(TEXT, compress(payload), rsv=RSV1))
        assert codes([wire.frame() or Frame(0, b"")]) == [1007]
    with Wire.open(server.port, OFFER, f"Authorization: Bearer {token}", target="/ws?public=0") as wire:
        wire.send(frame(TEXT, compress(payload), rsv=RSV1))
        assert codes(_ends(wire)) == [1007]


def _ends(wire: Wire) -> list[Frame]:
    """The close frame, answered."""
    while (one := wire.frame()) is not None and one.opcode != CLOSE:
        pass
    assert one is not None
    wire.send(frame(CLOSE, one.payload[:2]))
    assert wire.ended()
    return [one]


#: RSV1 where it has no meaning (section 6.1).
WRONG_RSV1 = {
    "a continuation": frame(TEXT, compress(b"Hello")[:3], fin=False, rsv=RSV1)
    + frame(CONTINUATION, compress(b"Hello")[3:], rsv=RSV1),
    "a continuation of a message without it": frame(TEXT, b"x", fin=False) + frame(CONTINUATION, b"x", rsv=RSV1),
    "a ping": frame(PING, b"x", rsv=RSV1),
    "a ping within a message": frame(TEXT, b"x", fin=False) + frame(PING, rsv=RSV1),
    "a pong": frame(PONG, rsv=RSV1),
    "a close": frame(CLOSE, close_payload(1000), rsv=RSV1),
    "a text, with RSV2": frame(TEXT, compress(b"x"), rsv=6),
    "a text, with RSV3": frame(TEXT, compress(b"x"), rsv=5),
    "a reserved opcode": frame(3, compress(b"x"), rsv=RSV1),
    "RSV2 alone": frame(TEXT, b"x", rsv=2),
    "RSV3 alone": frame(TEXT, b"x", rsv=1),
}


@pytest.mark.parametrize("sends", WRONG_RSV1.values(), ids=WRONG_RSV1.keys())
def test_rsv1_marks_the_first_frame_of_a_message_and_nothing_else(deflating: EchoProcess, sends: bytes) -> None:
    with Wire.open(deflating.port, OFFER) as wire:
        wire.send(sends + frame(PING, b"too late"))
        frames = wire.frames()
        assert codes(frames) == [1002]
        assert len(frames) == 1


def test_messages_with_and_without_compression_may_alternate(deflating: EchoProcess) -> None:
    with Wire.open(deflating.port, OFFER) as wire:
        payloads = [b"%d " % number * number for number in range(200)]
        wire.send(
            b"".join(
                frame(TEXT, compress(payload), rsv=RSV1) if number % 3 else frame(TEXT, payload)
                for number, payload in enumerate(payloads)
            )
        )
        assert wire.frames_until_pong() == [Frame(TEXT, payload) for payload in payloads]
        assert 0 < wire.compressed < 200  # what is small is left alone


def test_no_message_ends_with_a_final_block_and_each_stands_alone(deflating: EchoProcess) -> None:
    with Wire.open(deflating.port, OFFER) as wire:
        for payload in (LIPSUM, LIPSUM, b"a" * 100_000):
            wire.send(frame(TEXT, payload))
            assert wire.frame() == Frame(TEXT, payload)  # inflated by an inflater of its own
        assert wire.compressed == 3
        assert not wire.final_blocks


SIZES = [16, 64, 256, 1024, 4096, 8192, 16_384, 32_768, 65_536, 131_072]


def echoes_compressed(port: int, offer: str, size: int, fragment: int | None, count: int) -> None:
    chance = random.Random(size)
    with Wire.open(port, f"Sec-WebSocket-Extensions: {offer}") as wire:
        for _ in range(count):
            words = b" ".join(chance.choice(PARTS) for _ in range(size // 50 + 1))[:size]
            data = compress(words)
            step = fragment or len(data)
            starts = range(0, len(data), step)
            wire.send(
                b"".join(
                    frame(
                        BINARY if at == 0 else CONTINUATION,
                        data[at : at + step],
                        fin=at == starts[-1],
                        rsv=0 if at else RSV1,
                    )
                    for at in starts
                )
            )
            assert wire.frame() == Frame(BINARY, words)


@pytest.mark.parametrize("fragment", [None, 256])
@pytest.mark.parametrize("size", SIZES)
def test_compressed_messages_of_all_sizes_come_back(deflating: EchoProcess, size: int, fragment: int | None) -> None:
    echoes_compressed(deflating.port, NAME, size, fragment, 20)


@pytest.mark.long
@pytest.mark.parametrize(
    "offer",
    [
        NAME,
        f"{NAME}; client_no_context_takeover; client_max_window_bits",
        f"{NAME}; server_max_window_bits=9",
        f"{NAME}; server_max_window_bits=15; server_no_context_takeover",
        f"{NAME}; client_no_context_takeover; client_max_window_bits=9, {NAME}",
    ],
)
@pytest.mark.parametrize("size", SIZES)
def test_a_thousand_compressed_messages_come_back(deflating: EchoProcess, size: int, offer: str) -> None:
    echoes_compressed(deflating.port, offer, size, None, 1000)
