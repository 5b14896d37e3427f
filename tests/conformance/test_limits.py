"""Limits (RFC 6455, section 10.4) and big messages, whole, in fragments, in small writes; and the memory they leave."""

import os
import random
import time

import pytest

from tests.conformance.conftest import SMALL_FRAGMENTS, SMALL_MESSAGE
from tests.support.wire import (
    BINARY,
    CLOSE,
    CONTINUATION,
    PING,
    TEXT,
    EchoProcess,
    Frame,
    Wire,
    close_payload,
    compress,
    frame,
)

OFFER = "Sec-WebSocket-Extensions: permessage-deflate"
MB = 1 << 20


def code(frames: list[Frame]) -> int:
    """That of the close frame, which is the last."""
    assert frames, "no close frame"
    assert frames[-1].opcode == CLOSE
    return int.from_bytes(frames[-1].payload[:2], "big")


def fragments(opcode: int, payload: bytes, size: int) -> bytes:
    starts = range(0, len(payload), size)
    return b"".join(
        frame(opcode if at == 0 else CONTINUATION, payload[at : at + size], fin=at == starts[-1]) for at in starts
    )


# At the limit, and one over it.


@pytest.mark.parametrize("opcode", [TEXT, BINARY])
def test_a_message_may_be_as_long_as_the_limit(small: EchoProcess, opcode: int) -> None:
    payload = b"*" * SMALL_MESSAGE
    with Wire.open(small.port) as wire:
        wire.send(frame(opcode, payload) + fragments(opcode, payload, 100))
        assert wire.frames_until_pong() == [Frame(opcode, payload)] * 2


@pytest.mark.parametrize(
    "sends",
    [
        frame(BINARY, length=SMALL_MESSAGE + 1),
        frame(TEXT, length=65_536),
        frame(BINARY, bytes(SMALL_MESSAGE), fin=False) + frame(CONTINUATION, length=1),
        frame(BINARY, bytes(600), fin=False) + frame(CONTINUATION, length=401, fin=False),
        frame(BINARY, bytes(600), fin=False) + frame(PING) + frame(CONTINUATION, length=401),
        frame(BINARY, fin=False) + frame(CONTINUATION, length=(1 << 63) - 1),
    ],
    ids=["whole", "a big frame", "a byte more", "unfinished", "with a ping", "all that there is"],
)
def test_a_message_that_will_be_too_long_is_refused_from_its_head(small: EchoProcess, sends: bytes) -> None:
    with Wire.open(small.port) as wire:
        wire.send(sends)
        assert code(wire.frames()) == 1009


@pytest.mark.parametrize("payload", [b"", b"x"], ids=["empty", "a byte"])
@pytest.mark.parametrize("rsv", [0, 4], ids=["plain", "compressed"])
def test_a_message_has_no_more_fragments_than_the_limit(small: EchoProcess, payload: bytes, rsv: int) -> None:
    first = frame(BINARY, payload, fin=False, rsv=rsv)
    more = frame(CONTINUATION, payload, fin=False)
    with Wire.open(small.port, OFFER) as wire:
        wire.send(first + more * (SMALL_FRAGMENTS - 1))
        assert wire.frames_until_pong() == []
        wire.send(more)
        assert code(wire.frames()) == 1009


def test_the_fragments_of_one_message_do_not_count_for_the_next(small: EchoProcess) -> None:
    message = frame(TEXT, b"a", fin=False) + frame(CONTINUATION, b"b", fin=False) * 14 + frame(CONTINUATION, b"c")
    with Wire.open(small.port) as wire:
        wire.send(message * 20)
        assert wire.frames_until_pong() == [Frame(TEXT, b"a" + b"b" * 14 + b"c")] * 20


# Compression: the limit is that of the inflated message.


@pytest.mark.parametrize("final", [False, True], ids=["sync", "final"])
def test_the_inflated_message_may_be_as_long_as_the_limit(small: EchoProcess, final: bool) -> None:
    payload = b"*" * SMALL_MESSAGE
    with Wire.open(small.port, OFFER) as wire:
        wire.send(frame(BINARY, compress(payload, final=final), rsv=4))
        assert wire.frames_until_pong() == [Frame(BINARY, payload)]
        wire.send(frame(BINARY, compress(payload + b"*", final=final), rsv=4))
        frames = [wire.frame()]
        assert code([one for one in frames if one]) == 1009


def test_what_grows_by_compression_may_still_be_as_long_as_the_limit(small: EchoProcess) -> None:
    payload = random.Random(1).randbytes(SMALL_MESSAGE)
    for level in (0, 1, 9):
        compressed = compress(payload, level=level)
        assert len(compressed) > len(payload)
        with Wire.open(small.port, OFFER) as wire:
            wire.send(frame(BINARY, compressed, rsv=4))
            assert wire.frames_until_pong() == [Frame(BINARY, payload)]


def test_a_compressed_message_that_is_too_long_on_the_wire_is_refused_from_its_head(small: EchoProcess) -> None:
    with Wire.open(small.port, OFFER) as wire:
        wire.send(frame(BINARY, rsv=4, length=2 * SMALL_MESSAGE))
        assert code(wire.frames()) == 1009


@pytest.mark.parametrize("final", [False, True], ids=["sync", "final"])
def test_a_bomb_costs_at_most_the_limit(deflating: EchoProcess, final: bool) -> None:
    bomb = compress(bytes(256 * MB), final=final)
    assert len(bomb) < MB
    before = deflating.memory("VmHWM")
    with Wire.open(deflating.port, OFFER) as wire:
        wire.send(frame(BINARY, bomb, rsv=4))
        assert code([wire.frame() or Frame(0, b"")]) == 1009
    assert deflating.memory("VmHWM") - before < 100 * MB  # the limit of 32 MiB, twice, and a bit


@pytest.mark.skipif("libasan" in os.environ.get("LD_PRELOAD", ""), reason="a sanitizer keeps what was freed")
def test_twenty_bombs_cost_no_more_than_one(deflating: EchoProcess) -> None:
    bomb = frame(BINARY, compress(bytes(64 * MB)), rsv=4)
    with Wire.open(deflating.port, OFFER) as first:
        first.send(bomb)
        assert first.frame()
    before = deflating.memory("VmHWM")
    wires = [Wire.open(deflating.port, OFFER) for _ in range(20)]
    for wire in wires:
        wire.send(bomb)
    for wire in wires:
        with wire:
            assert code([wire.frame() or Frame(0, b"")]) == 1009
    assert deflating.memory("VmHWM") - before < 64 * MB


# Memory follows what came, never what was announced.


def test_an_announced_length_takes_no_memory(echo: EchoProcess) -> None:
    before = echo.memory()
    wires = [Wire.open(echo.port) for _ in range(50)]
    for wire in wires:
        wire.send(frame(BINARY, b"x", length=32 * MB))
    with Wire.open(echo.port) as other:
        other.frames_until_pong()
    assert echo.memory() - before < 8 * MB
    for wire in wires:
        with wire:
            pass


@pytest.mark.skipif("libasan" in os.environ.get("LD_PRELOAD", ""), reason="a sanitizer keeps what was freed")
def test_an_answer_of_the_whole_limit_goes_through_and_leaves_nothing(echo: EchoProcess) -> None:
    payload = os.urandom(MB) * 32
    before = echo.memory()
    with Wire.open(echo.port) as wire:
        wire.send(frame(BINARY, payload))
        assert wire.frame() == Frame(BINARY, payload)
        wire.send(frame(TEXT, b"small"))
        assert wire.frames_until_pong() == [Frame(TEXT, b"small")]
        assert echo.settled_memory(before + 64 * MB) - before < 64 * MB
    with Wire.open(echo.port) as wire:
        wire.send(frame(BINARY, length=32 * MB + 1))
        assert code(wire.frames()) == 1009


def test_answers_keep_their_order_behind_a_full_socket(echo: EchoProcess) -> None:
    sizes = [10, 3 * MB, 1, 200_000, 5 * MB, 0, 7, 126, 70_000, 2 * MB, 3]
    payloads = [bytes([number]) * size for number, size in enumerate(sizes)]
    with Wire.open(echo.port) as wire:
        wire.send(b"".join(frame(BINARY, payload) for payload in payloads))
        assert wire.frames_until_pong() == [Frame(BINARY, payload) for payload in payloads]


def test_whoever_does_not_read_is_not_read_from(echo: EchoProcess) -> None:
    before = echo.memory()
    with Wire.open(echo.port) as wire:
        wire.socket.setblocking(False)
        sent = 0
        flood = frame(PING, b"*" * 125) * 500 + frame(TEXT, b"*" * 1000) * 50
        quiet_s = time.monotonic() + 0.5
        while sent < 256 * MB and time.monotonic() < quiet_s:
            try:
                sent += wire.socket.send(flood)
                quiet_s = time.monotonic() + 0.5
            except BlockingIOError:
                time.sleep(0.01)
        assert sent < 64 * MB  # what the sockets hold
        assert echo.memory() - before < 32 * MB
        with Wire.open(echo.port) as other:
            begin = time.monotonic()
            other.frames_until_pong()
            assert time.monotonic() - begin < 1


# Big messages. The whole ladder is for the long run.

LADDER = [64 << 10, 256 << 10, MB]
LONG_LADDER = [4 * MB, 8 * MB, 16 * MB]


def echoes(port: int, opcode: int, size: int, fragment: int | None, step: int | None) -> None:
    payload = (b"0123456789abcdef" * (size // 16 + 1))[:size]
    with Wire.open(port) as wire:
        sent = frame(opcode, payload) if fragment is None else fragments(opcode, payload, fragment)
        wire.send(sent, step=step)
        assert wire.frames_until_pong() == [Frame(opcode, payload)]
        wire.send(frame(CLOSE, close_payload(1000)))
        assert code(wire.frames()) == 1000


@pytest.mark.parametrize("opcode", [TEXT, BINARY])
@pytest.mark.parametrize("size", LADDER)
@pytest.mark.parametrize("fragment", [None, 1300, 65_536])
def test_big_messages_come_back(echo: EchoProcess, opcode: int, size: int, fragment: int | None) -> None:
    echoes(echo.port, opcode, size, fragment, None)


@pytest.mark.parametrize("opcode", [TEXT, BINARY])
@pytest.mark.parametrize("step", [64, 1024, 1460])
def test_big_messages_in_small_writes_come_back(echo: EchoProcess, opcode: int, step: int) -> None:
    echoes(echo.port, opcode, 1 << 18, None, step)


@pytest.mark.parametrize(("opcode", "size"), [(TEXT, 0), (BINARY, 1), (TEXT, 16), (BINARY, 256), (TEXT, 4096)])
def test_a_thousand_messages_come_back(echo: EchoProcess, opcode: int, size: int) -> None:
    with Wire.open(echo.port) as wire:
        wire.send(frame(opcode, b"*" * size) * 1000)
        assert wire.frames_until_pong() == [Frame(opcode, b"*" * size)] * 1000


@pytest.mark.long
@pytest.mark.parametrize("opcode", [TEXT, BINARY])
@pytest.mark.parametrize("size", LONG_LADDER)
@pytest.mark.parametrize("fragment", [None, 256, 4096, 65_536, MB])
def test_bigger_messages_come_back(echo: EchoProcess, opcode: int, size: int, fragment: int | None) -> None:
    echoes(echo.port, opcode, size, fragment, None)


@pytest.mark.long
@pytest.mark.parametrize("opcode", [TEXT, BINARY])
@pytest.mark.parametrize("step", [64, 128, 256, 512, 1024, 2048])
@pytest.mark.parametrize("fragment", [None, 64])
def test_big_messages_in_smaller_writes_come_back(
    echo: EchoProcess, opcode: int, step: int, fragment: int | None
) -> None:
    echoes(echo.port, opcode, 4 * MB, fragment, step)


@pytest.mark.long
def test_as_many_fragments_as_the_default_allows_come_back(echo: EchoProcess) -> None:
    with Wire.open(echo.port) as wire:
        wire.send(fragments(BINARY, bytes(131_072), 1))
        assert wire.frames_until_pong() == [Frame(BINARY, bytes(131_072))]
        wire.send(frame(BINARY, fin=False) + frame(CONTINUATION, fin=False) * 131_072)
        assert code(wire.frames()) == 1009
