"""RFC 6455, sections 5 to 8: each case against the echo application, whole and byte by byte, and against `/ws`."""

import random

import pytest

from tests.conformance.cases import CASES, CLOSES, INVALID_UTF8, VALID_UTF8, Case, first_bad
from tests.support.server import Server
from tests.support.wire import (
    BINARY,
    CLOSE,
    CONTINUATION,
    KEY,
    PING,
    TEXT,
    EchoProcess,
    Frame,
    Wire,
    close_payload,
    frame,
    upgrade,
)

EVERY = {**CASES, **CLOSES}
#: What is sent in many small writes is small, but for the long tables.
SMALL = {name: case for name, case in EVERY.items() if len(case.sends) <= 2_000}
BIG = {name: case for name, case in EVERY.items() if len(case.sends) > 2_000}


def table(cases: dict[str, Case]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(
        "case", cases.values(), ids=[f"{case.section} {name}" for name, case in cases.items()]
    )


def codes(frames: list[Frame]) -> list[int]:
    """Of the close frames; also checks that the reason is UTF-8 (section 5.5.1)."""
    found = []
    for one in frames:
        if one.opcode == CLOSE:
            one.payload[2:].decode()
            found.append(int.from_bytes(one.payload[:2], "big") if one.payload else 1005)
    return found


def check(wire: Wire, case: Case, step: int | None = None) -> None:
    if case.code is None:
        wire.send(case.sends, step=step)
        assert wire.frames_until_pong() == list(case.answers)
        wire.send(frame(CLOSE, close_payload(1000)))
        assert wire.frames() == [Frame(CLOSE, close_payload(1000))]
    else:
        wire.send_all(case.sends, step=step)
        frames = wire.frames()  # to the end of the stream: the server ends it first (section 7.1.1)
        assert frames[:-1] == list(case.answers)
        assert codes(frames) == [case.code]


@table(EVERY)
def test_an_echo_server_answers_and_ends_as_the_rfc_wants(echo: EchoProcess, case: Case) -> None:
    with Wire.open(echo.port) as wire:
        check(wire, case)


@table(SMALL)
def test_how_the_bytes_are_cut_makes_no_difference(echo: EchoProcess, case: Case) -> None:
    with Wire.open(echo.port) as wire:
        check(wire, case, step=1)


@table({name: case for name, case in EVERY.items() if "reserved bits 1" not in name or case.section != "5.2"})
def test_an_agreed_compression_changes_nothing_for_messages_without_it(deflating: EchoProcess, case: Case) -> None:
    with Wire.open(deflating.port, "Sec-WebSocket-Extensions: permessage-deflate") as wire:
        assert wire.deflate
        check(wire, case)


@pytest.mark.long
@pytest.mark.parametrize("step", [3, 61, 997])
@table(EVERY)
def test_other_cuts_make_no_difference_either(echo: EchoProcess, case: Case, step: int) -> None:
    with Wire.open(echo.port) as wire:
        check(wire, case, step)


@pytest.mark.long
@table(BIG)
def test_nor_do_single_bytes_of_big_frames(echo: EchoProcess, case: Case) -> None:
    with Wire.open(echo.port) as wire:
        check(wire, case, step=1)


#: Those that a server of JSON does not end before: it takes no binary messages.
FATAL = {
    name: case
    for name, case in EVERY.items()
    if case.code is not None and all(one.opcode != BINARY for one in case.answers)
}


@table(FATAL)
def test_the_presence_server_ends_as_the_rfc_wants(server: Server, token: str, case: Case) -> None:
    with Wire.open(server.port, f"Authorization: Bearer {token}", target="/ws?public=0") as wire:
        wire.send_all(case.sends)
        frames = wire.frames()
        # Its own answers to data frames are its protocol's; the end is the RFC's.
        assert codes(frames) == [case.code]
        assert frames[-1].opcode == CLOSE


@table({name: case for name, case in EVERY.items() if case.code is None and case.section in ("5.5", "5.5.2", "5.5.3")})
def test_the_presence_server_answers_pings(server: Server, token: str, case: Case) -> None:
    with Wire.open(server.port, f"Authorization: Bearer {token}", target="/ws?public=0") as wire:
        wire.send(case.sends)
        assert [one for one in wire.frames_until_pong() if one.opcode > CLOSE] == list(case.answers)


# Section 8.1, "fail fast": the byte that breaks the text ends the connection, whatever was to follow.


@pytest.mark.parametrize("payload", INVALID_UTF8.values(), ids=INVALID_UTF8.keys())
def test_a_bad_byte_is_refused_within_its_unfinished_frame(echo: EchoProcess, payload: bytes) -> None:
    bad = first_bad(payload)
    sent = frame(TEXT, payload[: bad + 1], length=1000)
    with Wire.open(echo.port) as wire:
        wire.send(sent[:-1])
        assert wire.silent(0.01)
        wire.send(sent[-1:])
        assert codes(wire.frames()) == [1007]


@pytest.mark.parametrize("payload", INVALID_UTF8.values(), ids=INVALID_UTF8.keys())
def test_a_bad_byte_is_refused_in_the_fragment_that_it_came_in(echo: EchoProcess, payload: bytes) -> None:
    bad = first_bad(payload)
    with Wire.open(echo.port) as wire:
        wire.send(frame(TEXT, payload[:bad], fin=False))
        assert wire.frames_until_pong() == []
        wire.send(frame(CONTINUATION, payload[bad : bad + 1], fin=False))
        assert codes(wire.frames()) == [1007]


@pytest.mark.parametrize("payload", VALID_UTF8.values(), ids=VALID_UTF8.keys())
def test_a_good_text_may_be_cut_anywhere(echo: EchoProcess, payload: bytes) -> None:
    with Wire.open(echo.port) as wire:
        cuts = range(0, len(payload) + 1, max(1, len(payload) // 30))
        for cut in cuts:
            wire.send(frame(TEXT, payload[:cut], fin=False) + frame(CONTINUATION, payload[cut:]))
        assert wire.frames_until_pong() == [Frame(TEXT, payload)] * len(cuts)


def test_random_bytes_are_a_text_exactly_when_python_says_so(echo: EchoProcess) -> None:
    chance = random.Random(6455)
    alphabet = [b"a", "é".encode(), "€".encode(), "𝄞".encode(), b"\x80", b"\xed\xa0", b"\xf4\x90", b"\xe0", b"\xc0"]
    seen = {True: 0, False: 0}
    for _ in range(300):
        weights = [20, 8, 8, 8, *[1] * 5] if chance.random() < 0.7 else [10, 20, 20, 20, 0, 0, 0, 0, 0]
        payload = b"".join(chance.choices(alphabet, weights, k=chance.randrange(1, 12)))
        try:
            payload.decode()
            good = True
        except UnicodeDecodeError:
            good = False
        seen[good] += 1
        cut = chance.randrange(len(payload) + 1)
        with Wire.open(echo.port) as wire:
            wire.send_all(frame(TEXT, payload[:cut], fin=False) + frame(CONTINUATION, payload[cut:]))
            if good:
                assert wire.frames_until_pong() == [Frame(TEXT, payload)], payload
            else:
                assert codes(wire.frames()) == [1007], payload
    assert min(seen.values()) > 30


# What the first bytes of a frame decide is not waited for.


@pytest.mark.parametrize(
    ("start", "code"),
    [
        (b"\xf1\x80", 1002),  # reserved bits
        (b"\x83\x80", 1002),  # reserved opcode
        (b"\x81\x05", 1002),  # no mask
        (b"\x89\xfe", 1002),  # a ping of 126 bytes or more
        (b"\x09\x80", 1002),  # a fragmented ping
        (b"\x80\x80", 1002),  # a continuation of nothing
        (frame(BINARY, length=1 << 63), 1002),
        (frame(BINARY, length=1 << 40), 1009),
        (frame(BINARY, length=125, form=16), 1002),
    ],
)
def test_a_frame_is_refused_at_the_byte_that_breaks_it(echo: EchoProcess, start: bytes, code: int) -> None:
    with Wire.open(echo.port) as wire:
        wire.send(start)
        assert codes(wire.frames()) == [code]


def test_frames_may_come_with_the_handshake(echo: EchoProcess) -> None:
    with Wire(echo.port) as wire:
        wire.send(upgrade() + frame(TEXT, b"early") + frame(PING, b"bird") + frame(CLOSE, close_payload(1000)))
        assert wire.response().status == 101
        frames = wire.frames()
        assert sorted(frames[:-1]) == sorted([Frame(TEXT, b"early"), Frame(10, b"bird")])
        assert codes(frames) == [1000]


def test_each_frame_has_a_mask_of_its_own(echo: EchoProcess) -> None:
    sent = [frame(BINARY, bytes(range(200)), key=bytes([n, 255 - n, n * 7 % 256, 3])) for n in range(50)]
    with Wire.open(echo.port) as wire:
        wire.send(b"".join(sent), step=777)
        assert wire.frames_until_pong() == [Frame(BINARY, bytes(range(200)))] * 50


def test_connections_do_not_mix(echo: EchoProcess) -> None:
    wires = [Wire.open(echo.port) for _ in range(24)]
    streams = [
        b"".join(frame(TEXT, b"%d.%d" % (number, n), key=bytes([number, n % 256, 7, 9])) for n in range(200))
        for number in range(len(wires))
    ]
    for at in range(0, max(map(len, streams)), 501):
        for wire, stream in zip(wires, streams, strict=True):
            wire.send(stream[at : at + 501])
    for number, wire in enumerate(wires):
        with wire:
            assert wire.frames_until_pong() == [Frame(TEXT, b"%d.%d" % (number, n)) for n in range(200)]


# Section 7: how it ends.


def test_the_server_ends_the_stream_first(echo: EchoProcess) -> None:
    with Wire.open(echo.port) as wire:
        wire.send(frame(CLOSE, close_payload(1000)))
        assert wire.frame() == Frame(CLOSE, close_payload(1000))
        assert wire.ended()  # and nobody closed this end


def test_a_client_that_closes_without_a_word_is_let_go(echo: EchoProcess) -> None:
    with Wire.open(echo.port) as wire:
        wire.end_half()
        assert wire.frames() == []


def test_a_client_that_ends_its_half_behind_its_close_is_answered(echo: EchoProcess) -> None:
    with Wire.open(echo.port) as wire:
        wire.send(frame(TEXT, b"bye") + frame(CLOSE, close_payload(1000)))
        wire.end_half()
        assert wire.frames() == [Frame(TEXT, b"bye"), Frame(CLOSE, close_payload(1000))]


def test_a_client_that_ends_its_half_within_a_frame_is_let_go(echo: EchoProcess) -> None:
    with Wire.open(echo.port) as wire:
        wire.send(frame(TEXT, b"half", length=100))
        wire.end_half()
        assert wire.frames() == []


@pytest.mark.long
def test_a_close_of_the_server_s_that_nobody_answers_has_a_time_limit(deflating: EchoProcess) -> None:
    with Wire.open(deflating.port, "Sec-WebSocket-Extensions: permessage-deflate") as wire:
        wire.send(frame(BINARY, b"\xff" * 20, rsv=4))
        assert codes([wire.frame() or Frame(0, b"")]) == [1002]
        wire.send(frame(TEXT, b"too late") + frame(PING, b"too late"))  # section 5.5.1: no more than ignored
        assert wire.frames() == []


def test_bytes_that_keep_coming_behind_the_end_are_cut_off(echo: EchoProcess) -> None:
    with Wire.open(echo.port) as wire:
        wire.send(frame(CLOSE, close_payload(1000)))
        assert codes(wire.frames()) == [1000]
        with pytest.raises(OSError, match=r"Broken pipe|reset"):
            wire.send(bytes(100_000_000))


def test_an_answer_is_masked_by_nobody_and_the_key_is_not_seen(echo: EchoProcess) -> None:
    with Wire.open(echo.port) as wire:
        wire.send(frame(BINARY, bytes(64), key=KEY))
        assert wire.frame() == Frame(BINARY, bytes(64))
