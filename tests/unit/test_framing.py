"""Every MUST of RFC 6455 section 5 that a client can break, and every frame that it may send.

Each case is fed whole and one byte at a time: what came of it may not depend on where the bytes were cut.
"""

import struct

import pytest

from fastpresence._native.framing import (
    BINARY,
    CLOSE,
    PING,
    PONG,
    TEXT,
    Frame,
    FrameError,
    Stream,
    build,
    build_masked,
    check_close,
)

KEY = b"\x37\xfa\x21\x3d"  # the key of the examples in section 5.7
CONTINUATION = 0


def stream_of(*, frame_size: int = 200_000, message_size: int = 300_000, fragments: int = 4) -> Stream:
    return Stream(frame_size=frame_size, message_size=message_size, fragments=fragments)


def frame(opcode: int, payload: bytes = b"", *, fin: bool = True, bits: int = 0) -> bytes:
    """A masked frame; `bits` are RSV1 to RSV3 (4, 2, 1)."""
    built = build_masked(opcode, payload, KEY, fin=fin)
    return bytes([built[0] | bits << 4]) + built[1:]


def header(first: int, second: int, length: bytes = b"", key: bytes = KEY) -> bytes:
    return bytes([first, second]) + length + key


def take(data: bytes, chunk: int, **limits: int) -> tuple[list[Frame], int | None, int]:
    """(frames, close code of the error or None, bytes that went in by then), fed `chunk` bytes at a time."""
    stream = stream_of(**limits)
    frames: list[Frame] = []
    for at in range(0, len(data), chunk):
        try:
            frames += stream.feed(data[at : at + chunk])
        except FrameError as error:
            return frames, error.close_code, min(at + chunk, len(data))
    return frames, None, len(data)


def both(data: bytes, **limits: int) -> tuple[list[Frame], int | None]:
    """What comes of `data` fed whole; the same must come of it byte by byte."""
    whole, code, _ = take(data, max(len(data), 1), **limits)
    single, single_code, _ = take(data, 1, **limits)
    assert code == single_code
    assert code is not None or whole == single
    return single, code


GOOD = [
    ("5.2 text", frame(TEXT, b"Hello"), [(TEXT, b"Hello")]),
    ("5.2 the masked example of 5.7", b"\x81\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58", [(TEXT, b"Hello")]),
    ("5.2 empty text", frame(TEXT), [(TEXT, b"")]),
    ("5.2 empty binary", frame(BINARY), [(BINARY, b"")]),
    ("5.2 the longest 7-bit length", frame(BINARY, b"x" * 125), [(BINARY, b"x" * 125)]),
    ("5.2 the shortest 16-bit length", frame(BINARY, b"x" * 126), [(BINARY, b"x" * 126)]),
    ("5.2 the longest 16-bit length", frame(BINARY, b"x" * 65535), [(BINARY, b"x" * 65535)]),
    ("5.2 the shortest 64-bit length", frame(BINARY, b"x" * 65536), [(BINARY, b"x" * 65536)]),
    ("5.3 a key of zeros", build_masked(TEXT, b"plain", b"\0\0\0\0"), [(TEXT, b"plain")]),
    (
        "5.4 three fragments",
        frame(TEXT, b"a", fin=False) + frame(CONTINUATION, b"b", fin=False) + frame(CONTINUATION, b"c"),
        [(TEXT, b"abc")],
    ),
    (
        "5.4 fragments without a byte",
        frame(TEXT, fin=False) + frame(CONTINUATION, fin=False) + frame(CONTINUATION),
        [(TEXT, b"")],
    ),
    (
        "5.4 controls between fragments",
        frame(BINARY, b"a", fin=False) + frame(PING, b"p") + frame(CONTINUATION, b"b", fin=False) + frame(PONG)
        + frame(CONTINUATION, b"c"),
        [(PING, b"p"), (PONG, b""), (BINARY, b"abc")],
    ),
    ("5.4 as many fragments as may be", frame(TEXT, fin=False) + frame(0, fin=False) * 2 + frame(0), [(TEXT, b"")]),
    ("5.4 a message after a message", frame(TEXT, b"a") + frame(BINARY, b"b"), [(TEXT, b"a"), (BINARY, b"b")]),
    ("5.5 a control frame of 125 bytes", frame(PING, b"p" * 125), [(PING, b"p" * 125)]),
    ("5.5.1 a close without a code", frame(CLOSE), [(CLOSE, b"")]),
    ("5.5.3 a pong that nobody asked for", frame(PONG, b"x"), [(PONG, b"x")]),
    ("5.6 text of all lengths of characters", frame(TEXT, "aé€😀".encode()), [(TEXT, "aé€😀".encode())]),
    ("5.6 binary need not be UTF-8", frame(BINARY, b"\xff\xfe"), [(BINARY, b"\xff\xfe")]),
    (
        "5.6 a character cut by a fragment",
        frame(TEXT, "€".encode()[:1], fin=False) + frame(CONTINUATION, "€".encode()[1:]),
        [(TEXT, "€".encode())],
    ),
    (
        "5.6 a control frame that is no UTF-8 inside a character",
        frame(TEXT, b"\xe2", fin=False) + frame(PING, b"\xff") + frame(CONTINUATION, b"\x82\xac"),
        [(PING, b"\xff"), (TEXT, "€".encode())],
    ),
]  # fmt: skip


@pytest.mark.parametrize(("data", "expected"), [case[1:] for case in GOOD], ids=[case[0] for case in GOOD])
def test_what_the_rfc_allows_is_taken(data: bytes, expected: list[tuple[int, bytes]]) -> None:
    frames, code = both(data)
    assert code is None
    assert frames == expected


BAD = [
    *[(f"5.2 reserved bit {bit}", frame(TEXT, b"a", bits=bit), 1002) for bit in (1, 2, 4, 7)],
    ("5.2 reserved bit of a control frame", frame(PING, bits=4), 1002),
    ("5.2 reserved bit of a continuation", frame(TEXT, fin=False) + frame(0, bits=4), 1002),
    *[(f"5.2 reserved opcode {opcode}", frame(opcode), 1002) for opcode in (3, 4, 5, 6, 7, 11, 12, 13, 14, 15)],
    ("5.1 no mask", build(TEXT, b"Hello"), 1002),
    ("5.1 no mask and no payload", build(TEXT, b""), 1002),
    ("5.1 a control frame without mask", build(PING, b""), 1002),
    ("5.2 16-bit length of 0", header(0x82, 0xFE, b"\0\0"), 1002),
    ("5.2 16-bit length of 125", header(0x82, 0xFE, struct.pack(">H", 125)) + b"x" * 125, 1002),
    ("5.2 64-bit length of 0", header(0x82, 0xFF, bytes(8)), 1002),
    ("5.2 64-bit length of 125", header(0x82, 0xFF, struct.pack(">Q", 125)), 1002),
    ("5.2 64-bit length of 65535", header(0x82, 0xFF, struct.pack(">Q", 65535)), 1002),
    ("5.2 64-bit length with the top bit", header(0x82, 0xFF, struct.pack(">Q", 1 << 63)), 1002),
    ("5.2 64-bit length of all ones", header(0x82, 0xFF, b"\xff" * 8), 1002),
    ("5.2 the top bit and a small length", header(0x82, 0xFF, struct.pack(">Q", 1 << 63 | 5)), 1002),
    ("5.4 a continuation of nothing", frame(CONTINUATION, b"a"), 1002),
    ("5.4 a continuation of a whole message", frame(TEXT, b"a") + frame(CONTINUATION, b"b"), 1002),
    ("5.4 text inside a message", frame(TEXT, b"a", fin=False) + frame(TEXT, b"b"), 1002),
    ("5.4 binary inside a message", frame(TEXT, b"a", fin=False) + frame(BINARY, b"b", fin=False), 1002),
    ("5.4 a message inside an empty fragment's", frame(BINARY, fin=False) + frame(BINARY), 1002),
    *[(f"5.5 control frame {opcode} in fragments", frame(opcode, b"a", fin=False), 1002) for opcode in (8, 9, 10)],
    *[(f"5.5 control frame {op} of 126 bytes", frame(op, b"x" * 126), 1002) for op in (8, 9, 10)],
    ("5.5 control frame of 65536 bytes", frame(PING, b"x" * 65536), 1002),
    ("5.5 control frame that only announces 126", header(0x89, 0xFE, b"\0\x05") + b"hello", 1002),
    ("10.4 frame over the limit", frame(BINARY, b"x" * 200_001), 1009),
    ("10.4 a length of 2**32, no byte of it", header(0x82, 0xFF, struct.pack(">Q", 1 << 32)), 1009),
    ("10.4 a length of 2**32 + 1, which narrows to 1", header(0x82, 0xFF, struct.pack(">Q", (1 << 32) + 1)), 1009),
    ("10.4 a length of 2**63 - 1", header(0x82, 0xFF, struct.pack(">Q", (1 << 63) - 1)), 1009),
    (
        "10.4 a message over the limit by its last frame",
        frame(BINARY, b"x" * 150_001, fin=False) + frame(0, b"x" * 150_000),
        1009,
    ),
    (
        "10.4 a fragment whose length wraps the message's",
        frame(BINARY, b"x", fin=False) + header(0x80, 0xFF, struct.pack(">Q", (1 << 63) - 1)),
        1009,
    ),
    ("10.4 too many fragments", frame(TEXT, fin=False) + frame(0, fin=False) * 3 + frame(0), 1009),
    ("8.1 a continuation byte first", frame(TEXT, b"\x80"), 1007),
    ("8.1 an overlong slash", frame(TEXT, b"\xc0\xaf"), 1007),
    ("8.1 C1", frame(TEXT, b"\xc1\xbf"), 1007),
    ("8.1 overlong in three bytes", frame(TEXT, b"\xe0\x9f\xbf"), 1007),
    ("8.1 overlong in four bytes", frame(TEXT, b"\xf0\x8f\xbf\xbf"), 1007),
    ("8.1 a surrogate", frame(TEXT, b"\xed\xa0\x80"), 1007),
    ("8.1 the last surrogate", frame(TEXT, b"\xed\xbf\xbf"), 1007),
    ("8.1 above U+10FFFF", frame(TEXT, b"\xf4\x90\x80\x80"), 1007),
    ("8.1 F5", frame(TEXT, b"\xf5\x80\x80\x80"), 1007),
    ("8.1 FE and FF", frame(TEXT, b"\xfe\xff"), 1007),
    ("8.1 a character that is cut short", frame(TEXT, b"ok \xe2\x82"), 1007),
    ("8.1 ASCII inside a character", frame(TEXT, b"\xe2\x82a"), 1007),
    ("8.1 a bad byte behind much ASCII", frame(TEXT, b"a" * 1001 + b"\xff" + b"a" * 7), 1007),
    ("8.1 a character cut by a message's end", frame(TEXT, b"\xe2", fin=False) + frame(0, b"\x82"), 1007),
    ("8.1 a bad byte in a later fragment", frame(TEXT, b"\xe2", fin=False) + frame(0, b"a", fin=False), 1007),
]


@pytest.mark.parametrize(("data", "code"), [case[1:] for case in BAD], ids=[case[0] for case in BAD])
def test_what_the_rfc_forbids_is_answered_with_its_close_code(data: bytes, code: int) -> None:
    assert both(data)[1] == code


@pytest.mark.parametrize(
    ("data", "at"),
    [
        (frame(TEXT, b"a", bits=4), 2),  # what two bytes decide is decided at the second
        (frame(3), 2),
        (build(TEXT, b"Hello"), 2),
        (frame(PING, b"x" * 126), 2),
        (frame(PING, fin=False), 2),
        (frame(CONTINUATION, b"a" * 50), 2),
        (frame(TEXT, b"", fin=False) + frame(TEXT), 8),
        (header(0x82, 0xFF, b"\xff" * 8) + b"x" * 20, 14),
        (frame(BINARY, b"x" * 200_001), 14),  # not one byte of what is too long is waited for
        (frame(TEXT, b"abc\xffdef"), 6 + 4),
        (frame(TEXT, b"\xe2", fin=False) + frame(0, b"ab", fin=False), 7 + 7),
    ],
)
def test_a_violation_is_found_at_the_byte_that_makes_it_one(data: bytes, at: int) -> None:
    assert take(data, 1)[2] == at


def test_a_bad_byte_of_a_text_fails_the_frame_that_it_arrives_in_not_the_message() -> None:
    stream = Stream()
    assert stream.feed(frame(TEXT, "ok €".encode(), fin=False)) == []
    with pytest.raises(FrameError) as caught:
        stream.feed(frame(CONTINUATION, b"\xff", fin=False))
    assert caught.value.close_code == 1007


def test_a_text_of_the_next_message_starts_afresh() -> None:
    frames, code = both(frame(TEXT, "é".encode()) + frame(TEXT, b"\xa9"))
    assert code == 1007
    assert frames == [(TEXT, "é".encode())]


def test_after_a_violation_nothing_is_taken_any_more() -> None:
    stream = Stream()
    with pytest.raises(FrameError):
        stream.feed(frame(3))
    for data in (frame(TEXT, b"a"), b"", frame(PING)):
        with pytest.raises(FrameError):
            stream.feed(data)
    assert not stream.idle


def test_a_masked_frame_is_refused_on_a_client() -> None:
    with pytest.raises(FrameError) as caught:
        Stream(masked=False).feed(frame(TEXT, b"a"))
    assert caught.value.close_code == 1002  # section 5.1: a client MUST close


def test_a_client_takes_unmasked_frames() -> None:
    assert Stream(masked=False).feed(build(TEXT, b"a") + build(PING, b"")) == [(TEXT, b"a"), (PING, b"")]


def test_the_limits_themselves_are_allowed() -> None:
    exact = {"frame_size": 1000, "message_size": 1500, "fragments": 2}
    assert both(frame(BINARY, b"x" * 1000), **exact)[1] is None
    assert both(frame(BINARY, b"x" * 1001), **exact)[1] == 1009
    assert both(frame(BINARY, b"x" * 1000, fin=False) + frame(0, b"x" * 500), **exact)[1] is None
    assert both(frame(BINARY, b"x" * 1000, fin=False) + frame(0, b"x" * 501), **exact)[1] == 1009
    assert both(frame(BINARY, b"", fin=False) + frame(0, b""), **exact)[1] is None
    assert both(frame(BINARY, b"", fin=False) + frame(0, b"", fin=False), **exact)[1] is None
    assert both(frame(BINARY, b"", fin=False) + frame(0, b"", fin=False) + frame(0), **exact)[1] == 1009


def test_controls_between_fragments_count_as_no_fragments() -> None:
    data = frame(TEXT, b"a", fin=False) + frame(PING) * 50 + frame(0, b"b")
    frames, code = both(data, fragments=2)
    assert code is None
    assert frames[-1] == (TEXT, b"ab")


def test_the_count_of_fragments_starts_again_with_each_message() -> None:
    data = (frame(TEXT, fin=False) + frame(0)) * 10
    assert both(data, fragments=2)[1] is None


@pytest.mark.parametrize("size", [60_000, 199_999])
def test_a_huge_length_that_is_only_announced_takes_no_memory(size: int) -> None:
    stream = stream_of()
    length = struct.pack(">H", size) if size < 65536 else struct.pack(">Q", size)
    stream.feed(header(0x82, 0xFE if size < 65536 else 0xFF, length))
    assert stream.buffered == 0
    stream.feed(b"x" * 10)
    assert stream.buffered <= 256


def test_memory_grows_with_the_bytes_that_came() -> None:
    stream = Stream(frame_size=1 << 20, message_size=1 << 20)
    data = frame(BINARY, bytes(1 << 20))
    for at in range(0, len(data) - 1, 1000):
        stream.feed(data[at : min(at + 1000, len(data) - 1)])
        assert stream.buffered <= 2 * (at + 1000) + 256
    (message,) = stream.feed(data[-1:])
    assert message.payload == bytes(1 << 20)


def test_a_message_that_lies_whole_in_the_bytes_takes_no_memory() -> None:
    stream = Stream()
    stream.feed(frame(TEXT, b"x" * 60_000) + frame(PING, b"p"))
    assert stream.buffered == 0
    assert stream.idle


def test_a_stream_is_idle_between_messages_only() -> None:
    stream = Stream()
    for byte in frame(TEXT, b"a", fin=False) + frame(PING) + frame(0, b"b")[:-1]:
        stream.feed(bytes([byte]))
        assert not stream.idle
    stream.feed(frame(0, b"b")[-1:])
    assert stream.idle


def test_the_bytes_that_are_fed_are_not_changed() -> None:
    data = bytearray(frame(TEXT, b"Hello"))
    before = bytes(data)
    Stream().feed(data)
    assert bytes(data) == before


@pytest.mark.parametrize("size", [0, 1, 3, 4, 5, 7, 8, 9, 15, 16, 31, 33, 63, 64, 65, 127, 1000])
def test_every_length_is_unmasked_wherever_the_bytes_are_cut(size: int) -> None:
    payload = bytes(range(256)) * 4
    data = build_masked(BINARY, payload[:size], b"\x01\x20\x44\x80")
    for chunk in (1, 3, 5, 7, 8, 64, 2000):
        assert take(data, chunk)[0] == [(BINARY, payload[:size])]


@pytest.mark.parametrize("size", [0, 1, 125, 126, 65535, 65536, 70_000])
def test_a_frame_of_ours_has_the_shortest_length_and_no_mask(size: int) -> None:
    built = build(BINARY, b"x" * size)
    if size < 126:
        assert built[:2] == bytes([0x82, size])
        head = 2
    elif size < 65536:
        assert built[:4] == b"\x82\x7e" + struct.pack(">H", size)
        head = 4
    else:
        assert built[:10] == b"\x82\x7f" + struct.pack(">Q", size)
        head = 10
    assert built[head:] == b"x" * size


def test_a_mask_key_has_four_bytes() -> None:
    for key in (b"", b"abc", b"abcde"):
        with pytest.raises(ValueError, match="four bytes"):
            build_masked(TEXT, b"a", key)


# Section 7.4: codes that may be sent are 1000-1003, 1007-1014 (IANA's registry) and 3000-4999.
@pytest.mark.parametrize("code", [1000, 1001, 1002, 1003, *range(1007, 1015), 3000, 3999, 4000, 4008, 4999])
def test_a_close_code_that_may_be_sent_is_taken(code: int) -> None:
    assert check_close(struct.pack(">H", code)) == code
    assert check_close(struct.pack(">H", code) + "grüß dich".encode()) == code


@pytest.mark.parametrize("code", [0, 1, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65535])
def test_a_close_code_that_may_not_be_sent_is_a_violation(code: int) -> None:
    with pytest.raises(FrameError) as caught:
        check_close(struct.pack(">H", code))
    assert caught.value.close_code == 1002


def test_a_close_without_payload_has_the_code_for_none() -> None:
    assert check_close(b"") == 1005  # section 7.1.5


def test_a_close_payload_of_one_byte_is_a_violation() -> None:
    with pytest.raises(FrameError) as caught:
        check_close(b"\x03")  # section 5.5.1: the first two bytes are the code
    assert caught.value.close_code == 1002


@pytest.mark.parametrize("reason", [b"\xff", b"ok \xe2\x82", b"\xed\xa0\x80"])
def test_a_close_reason_is_utf8(reason: bytes) -> None:
    with pytest.raises(FrameError) as caught:
        check_close(struct.pack(">H", 1000) + reason)
    assert caught.value.close_code == 1007
