"""RFC 6455, sections 5 to 8, as a table: what a client sends, what an echo server answers, how it ends.

`sends` may be sent whole or byte by byte, with the same outcome. `code` is that of the close frame, behind which the
server ends its stream (section 7.1.1); None: the connection goes on.
"""

from typing import Final, NamedTuple

from tests.support.wire import (
    BINARY,
    CLOSE,
    CONTINUATION,
    KEY,
    PING,
    PONG,
    TEXT,
    Frame,
    close_payload,
    frame,
)

__all__ = ["CASES", "CLOSES", "INVALID_UTF8", "VALID_UTF8", "Case", "first_bad"]


class Case(NamedTuple):
    section: str
    sends: bytes
    answers: tuple[Frame, ...] = ()
    code: int | None = None


def text(payload: bytes) -> Frame:
    return Frame(TEXT, payload)


def binary(payload: bytes) -> Frame:
    return Frame(BINARY, payload)


def pong(payload: bytes = b"") -> Frame:
    return Frame(PONG, payload)


def fragments(opcode: int, parts: list[bytes], between: bytes = b"", *, fin: bool = True) -> bytes:
    """One message in frames of these payloads, with `between` in the gaps."""
    sent = []
    for at, part in enumerate(parts):
        last = at == len(parts) - 1
        sent.append(frame(opcode if at == 0 else CONTINUATION, part, fin=fin and last))
    return between.join(sent)


HELLO: Final = frame(TEXT, b"hello")
LATER: Final = frame(PING, b"too late")
STAR: Final = b"*" * 300

SIZES: Final = {
    f"{name} of {size} bytes": Case("5.2", frame(opcode, b"\x7f" * size), (Frame(opcode, b"\x7f" * size),))
    for name, opcode in (("a text", TEXT), ("a binary message", BINARY))
    for size in (0, 1, 2, 125, 126, 127, 128, 254, 255, 256, 65_534, 65_535, 65_536, 65_537)
}

MASKS: Final = {
    f"the mask {key.hex()}": Case("5.3", frame(BINARY, bytes(range(256)), key=key), (binary(bytes(range(256))),))
    for key in (b"\0\0\0\0", b"\xff\xff\xff\xff", b"\0\0\0\1", b"\x80\0\0\0", KEY)
}

PINGS: Final = {
    "a ping with nothing": Case("5.5.2", frame(PING), (pong(),)),
    "a ping with text": Case("5.5.3", frame(PING, b"Hello, world!"), (pong(b"Hello, world!"),)),
    "a ping with bytes": Case("5.5.3", frame(PING, bytes([0, 255, 254, 253])), (pong(bytes([0, 255, 254, 253])),)),
    "a ping of 125 bytes": Case("5.5", frame(PING, b"\xfe" * 125), (pong(b"\xfe" * 125),)),
    "a ping of 126 bytes": Case("5.5", frame(PING, b"\xfe" * 126) + LATER, (), 1002),
    "a ping of 0 bytes in the 16 bit form": Case("5.5", frame(PING, form=16) + LATER, (), 1002),
    "a ping of 65536 bytes": Case("5.5", frame(PING, length=65_536, form=64), (), 1002),
    "a pong that nobody asked for": Case("5.5.3", frame(PONG)),
    "such a pong with payload": Case("5.5.3", frame(PONG, b"unsolicited pong payload")),
    "a pong of 126 bytes": Case("5.5", frame(PONG, b"\xfe" * 126), (), 1002),
    "a pong and then a ping": Case("5.5.3", frame(PONG, b"1") + frame(PING, b"2"), (pong(b"2"),)),
    "ten pings": Case(
        "5.5.2", b"".join(frame(PING, b"%d" % n) for n in range(10)), tuple(pong(b"%d" % n) for n in range(10))
    ),
    "a fragmented ping": Case("5.5", frame(PING, b"1", fin=False) + LATER, (), 1002),
    "a fragmented pong": Case("5.5", frame(PONG, b"1", fin=False) + LATER, (), 1002),
    "a fragmented close": Case("5.5", frame(CLOSE, close_payload(1000), fin=False) + LATER, (), 1002),
}

RESERVED: Final = {
    **{
        f"reserved bits {rsv:03b} on opcode {opcode}": Case("5.2", frame(opcode, b"x", rsv=rsv) + LATER, (), 1002)
        for rsv in range(1, 8)
        for opcode in (TEXT, BINARY, PING, PONG)
    },
    **{
        f"reserved bits {rsv:03b} on a close": Case("5.2", frame(CLOSE, close_payload(1000), rsv=rsv), (), 1002)
        for rsv in range(1, 8)
    },
    **{
        f"reserved bits {rsv:03b} behind a message": Case(
            "5.2", HELLO + frame(TEXT, b"x", rsv=rsv) + LATER, (text(b"hello"),), 1002
        )
        for rsv in range(1, 8)
    },
    **{
        f"reserved bits {rsv:03b} on a continuation": Case(
            "5.2", frame(TEXT, b"x", fin=False) + frame(CONTINUATION, b"x", rsv=rsv) + LATER, (), 1002
        )
        for rsv in range(1, 8)
    },
    **{
        f"the reserved opcode {opcode}{name}": Case(
            "5.2", HELLO + frame(opcode, payload) + LATER, (text(b"hello"),), 1002
        )
        for opcode in (3, 4, 5, 6, 7, 11, 12, 13, 14, 15)
        for name, payload in (("", b""), (" with payload", b"reserved opcode payload"))
    },
    "the reserved opcode 3 within a message": Case("5.2", frame(TEXT, b"x", fin=False) + frame(3) + LATER, (), 1002),
}

FRAMES: Final = {
    "no mask": Case("5.1", frame(TEXT, b"hello", key=None) + LATER, (), 1002),
    "no mask and nothing to mask": Case("5.1", frame(TEXT, key=None) + LATER, (), 1002),
    "a ping with no mask": Case("5.1", frame(PING, b"x", key=None), (), 1002),
    "a close with no mask": Case("5.1", frame(CLOSE, close_payload(1000), key=None), (), 1002),
    "no mask behind a message": Case("5.1", HELLO + frame(TEXT, b"hello", key=None), (text(b"hello"),), 1002),
    "0 in the 16 bit form": Case("5.2", frame(TEXT, form=16), (), 1002),
    "125 in the 16 bit form": Case("5.2", frame(TEXT, b"x" * 125, form=16), (), 1002),
    "0 in the 64 bit form": Case("5.2", frame(TEXT, form=64), (), 1002),
    "126 in the 64 bit form": Case("5.2", frame(TEXT, b"x" * 126, form=64), (), 1002),
    "65535 in the 64 bit form": Case("5.2", frame(TEXT, b"x" * 65_535, form=64), (), 1002),
    "a length of 2**63": Case("5.2", frame(TEXT, length=1 << 63), (), 1002),
    "a length of 2**64 - 1": Case("5.2", frame(TEXT, length=(1 << 64) - 1), (), 1002),
    "a length of 2**63 - 1": Case("10.4", frame(TEXT, length=(1 << 63) - 1), (), 1009),
    "a length of 2**40": Case("10.4", frame(BINARY, length=1 << 40), (), 1009),
    "a length of 2**32 + 5": Case("10.4", frame(BINARY, b"12345", length=(1 << 32) + 5), (), 1009),
}

FRAGMENTS: Final = {
    "two fragments": Case("5.4", fragments(TEXT, [b"frag", b"ment"]), (text(b"fragment"),)),
    "two fragments of bytes": Case("5.4", fragments(BINARY, [b"\xff", b"\xfe"]), (binary(b"\xff\xfe"),)),
    "three empty fragments": Case("5.4", fragments(TEXT, [b"", b"", b""]), (text(b""),)),
    "an empty first fragment": Case("5.4", fragments(BINARY, [b"", b"x", b""]), (binary(b"x"),)),
    "a hundred fragments of a byte": Case("5.4", fragments(TEXT, [b"*"] * 100), (text(b"*" * 100),)),
    "fragments of all kinds of lengths": Case(
        "5.4",
        fragments(BINARY, [STAR[:1], STAR[:126], STAR, STAR * 300, b""]),
        (binary(b"*" * (1 + 126 + 300 + 90_000)),),
    ),
    "a ping between fragments": Case(
        "5.4", fragments(TEXT, [b"frag", b"ment"], frame(PING, b"p")), (pong(b"p"), text(b"fragment"))
    ),
    "pings between five fragments": Case(
        "5.4", fragments(TEXT, [b"1", b"2", b"3", b"4", b"5"], frame(PING, b"p")), (*[pong(b"p")] * 4, text(b"12345"))
    ),
    "pongs between fragments": Case("5.4", fragments(TEXT, [b"a", b"b", b"c"], frame(PONG, b"p")), (text(b"abc"),)),
    "a continuation of nothing": Case("5.4", frame(CONTINUATION, b"x") + LATER, (), 1002),
    "a continuation of nothing with no end": Case("5.4", frame(CONTINUATION, b"x", fin=False) + LATER, (), 1002),
    "an empty continuation of nothing": Case("5.4", frame(CONTINUATION) + LATER, (), 1002),
    "a continuation behind a whole message": Case(
        "5.4", HELLO + frame(CONTINUATION, b"x") + LATER, (text(b"hello"),), 1002
    ),
    "a continuation behind a fragmented message": Case(
        "5.4",
        fragments(TEXT, [b"frag", b"ment"]) + frame(CONTINUATION, b"x", fin=False) + HELLO,
        (text(b"fragment"),),
        1002,
    ),
    "a new text inside a message": Case("5.4", frame(TEXT, b"x", fin=False) + HELLO + LATER, (), 1002),
    "a new binary message inside a text": Case("5.4", frame(TEXT, b"x", fin=False) + frame(BINARY) + LATER, (), 1002),
    "a new fragmented message inside a message": Case(
        "5.4", frame(BINARY, b"x", fin=False) + frame(TEXT, b"y", fin=False) + LATER, (), 1002
    ),
    "messages one behind the other": Case(
        "5.4",
        b"".join(frame(TEXT if n % 2 else BINARY, b"%d" % n) for n in range(20)),
        tuple(Frame(TEXT if n % 2 else BINARY, b"%d" % n) for n in range(20)),
    ),
    "a close inside a message": Case(
        "5.4", frame(TEXT, b"x", fin=False) + frame(CLOSE, close_payload(1000)) + LATER, (), 1000
    ),
}

#: Texts that are UTF-8 (section 8.1; the Unicode standard, table 3-7).
VALID_UTF8: Final = {
    "nothing": b"",
    "ASCII": bytes(range(128)),
    "Greek": "κόσμε".encode(),
    "all lengths": "Hello-µ@ßöäüàá-UTF-8!! € 𝄞".encode(),
    "the first of each length": "\0\x80ࠀ\U00010000".encode(),
    "the last of each length": "\x7f\u07ff\uffff\U0010ffff".encode(),
    "around the surrogates": "\ud7ff\ue000\ufffd".encode(),
    "noncharacters": b"".join(chr(plane << 16 | low).encode() for plane in range(17) for low in (0xFFFE, 0xFFFF)),
    "U+FDD0": b"\xef\xb7\x90",
    "NUL within": b"a\0b",
    "a byte order mark": b"\xef\xbb\xbfa",
}

#: Texts that are not, whatever comes behind them.
INVALID_UTF8: Final = {
    **{f"a continuation byte {byte:02x} first": b"ab" + bytes([byte]) for byte in (0x80, 0xBF)},
    **{f"{count} continuation bytes": b"\x80\xbf" * count for count in (1, 2, 3)},
    **{f"the byte {byte:02x}": b"a" + bytes([byte]) + b"b" for byte in (0xC0, 0xC1, *range(0xF5, 0x100))},
    **{
        f"a lead {lead.hex()} and a space": b"x" + lead + b" "
        for lead in (
            b"\xc3",
            b"\xdf",
            b"\xe0\xa0",
            b"\xe1",
            b"\xef\xbf",
            b"\xf0",
            b"\xf0\x90",
            b"\xf0\x90\x80",
            b"\xf4\x8f\xbf",
        )
    },
    "two leads": b"\xce\xce\xba",
    "a slash in two bytes": b"\xc0\xaf",
    "a slash in three bytes": b"\xe0\x80\xaf",
    "a slash in four bytes": b"\xf0\x80\x80\xaf",
    "a slash in five bytes": b"\xf8\x80\x80\x80\xaf",
    "a slash in six bytes": b"\xfc\x80\x80\x80\x80\xaf",
    "U+007F in two bytes": b"\xc1\xbf",
    "U+07FF in three bytes": b"\xe0\x9f\xbf",
    "U+FFFF in four bytes": b"\xf0\x8f\xbf\xbf",
    "NUL in two bytes": b"\xc0\x80",
    **{
        f"the surrogate {point:04x}": chr(point).encode("utf-8", "surrogatepass")
        for point in (0xD800, 0xDB7F, 0xDB80, 0xDBFF, 0xDC00, 0xDF80, 0xDFFF)
    },
    "a pair of surrogates": "\ud800\udc00".encode("utf-8", "surrogatepass"),
    "U+110000": b"\xf4\x90\x80\x80",
    "U+1FFFFF": b"\xf7\xbf\xbf\xbf",
    "five bytes": b"\xfb\xbf\xbf\xbf\xbf",
    "six bytes": b"\xfd\xbf\xbf\xbf\xbf\xbf",
    "good text and then bad": "κόσμε".encode() + b"\xed\xa0\x80edited",
}


#: What completes a character that is cut off anywhere, if anything does.
TAILS: Final = (b"", b"\x80", b"\x80\x80", b"\x80\x80\x80", b"\xa0\x80", b"\x90\x80\x80")


def _is_text(payload: bytes) -> bool:
    try:
        payload.decode()
    except UnicodeDecodeError:
        return False
    return True


def first_bad(payload: bytes) -> int:
    """The place of the first byte behind which nothing makes it a text any more."""
    return next(at for at in range(len(payload)) if not any(_is_text(payload[: at + 1] + tail) for tail in TAILS))


TEXTS: Final = {
    **{
        f"a text of {name}": Case("8.1", frame(TEXT, payload), (text(payload),)) for name, payload in VALID_UTF8.items()
    },
    **{
        f"a text of {name} in fragments of a byte": Case(
            "8.1", fragments(TEXT, [payload[at : at + 1] for at in range(len(payload))] or [b""]), (text(payload),)
        )
        for name, payload in VALID_UTF8.items()
    },
    **{
        f"a text with {name}": Case("8.1", HELLO + frame(TEXT, payload) + LATER, (text(b"hello"),), 1007)
        for name, payload in INVALID_UTF8.items()
    },
    **{
        f"a text with {name} in fragments of a byte": Case(
            "8.1", fragments(TEXT, [payload[at : at + 1] for at in range(len(payload))]) + LATER, (), 1007
        )
        for name, payload in INVALID_UTF8.items()
    },
    **{
        f"a text that ends within a character: {payload.hex()}": Case("8.1", frame(TEXT, payload) + LATER, (), 1007)
        for payload in (b"\xc3", b"a\xe2\x82", b"\xf0\x9d\x84", b"\xf4\x8f", "µ".encode() + b"\xc2")
    },
    "a text that ends within a character in its last fragment": Case(
        "8.1", fragments(TEXT, [b"a\xe2", b"\x82"]) + LATER, (), 1007
    ),
    "a character over three fragments with pings": Case(
        "8.1", fragments(TEXT, [b"\xe2", b"\x82", b"\xac"], frame(PING)), (pong(), pong(), text("€".encode()))
    ),
    "bytes that are no text in a binary message": Case(
        "5.6", frame(BINARY, b"\xff\xfe\xed\xa0\x80"), (binary(b"\xff\xfe\xed\xa0\x80"),)
    ),
    "a character that begins anew in the next message": Case(
        "8.1", frame(BINARY, b"\xe2\x82") + frame(TEXT, b"\xac") + LATER, (binary(b"\xe2\x82"),), 1007
    ),
}

GOOD_CODES: Final = (1000, 1001, 1002, 1003, *range(1007, 1015), 3000, 3999, 4000, 4999)
BAD_CODES: Final = (0, 1, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65_535)

#: `code` is 1005 where the answer carries none (section 7.1.5).
CLOSES: Final = {
    "a close with nothing": Case("7.1.5", frame(CLOSE), (), 1005),
    "a close with one byte": Case("5.5.1", frame(CLOSE, b"a"), (), 1002),
    **{f"the code {code}": Case("7.4.1", frame(CLOSE, close_payload(code)), (), code) for code in GOOD_CODES},
    **{
        f"the code {code} with a reason": Case("7.1.6", frame(CLOSE, close_payload(code, b"why")), (), code)
        for code in GOOD_CODES
    },
    **{f"the bad code {code}": Case("7.4", frame(CLOSE, close_payload(code)), (), 1002) for code in BAD_CODES},
    **{
        f"the bad code {code} with a reason": Case("7.4", frame(CLOSE, close_payload(code, b"why")), (), 1002)
        for code in BAD_CODES
    },
    "a reason of 123 bytes": Case("5.5", frame(CLOSE, close_payload(1000, b"*" * 123)), (), 1000),
    "a reason of 124 bytes": Case("5.5", frame(CLOSE, close_payload(1000, b"*" * 124)), (), 1002),
    "a reason of all lengths": Case("7.1.6", frame(CLOSE, close_payload(1000, "aµ€𝄞".encode())), (), 1000),
    **{
        f"a reason with {name}": Case("5.5.1", frame(CLOSE, close_payload(1000, payload)), (), 1007)
        for name, payload in INVALID_UTF8.items()
    },
    "a reason that ends within a character": Case("5.5.1", frame(CLOSE, close_payload(1000, b"a\xe2\x82")), (), 1007),
    "a close behind a message": Case("5.5.1", HELLO + frame(CLOSE, close_payload(1000)), (text(b"hello"),), 1000),
    "a close behind ten messages": Case(
        "5.5.1", HELLO * 10 + frame(CLOSE, close_payload(1001)), (text(b"hello"),) * 10, 1001
    ),
    "a close behind a ping": Case("5.5.1", frame(PING, b"x") + frame(CLOSE, close_payload(1000)), (pong(b"x"),), 1000),
    "a close twice": Case("5.5.1", frame(CLOSE, close_payload(1000)) + frame(CLOSE, close_payload(1001)), (), 1000),
    "a text behind a close": Case("5.5.1", frame(CLOSE, close_payload(1000)) + HELLO, (), 1000),
    "a ping behind a close": Case("5.5.1", frame(CLOSE, close_payload(1000)) + frame(PING, b"x"), (), 1000),
    "nonsense behind a close": Case("5.5.1", frame(CLOSE, close_payload(1000)) + b"\xff" * 100, (), 1000),
    "a megabyte behind a close": Case(
        "5.5.1", frame(CLOSE, close_payload(1000)) + frame(BINARY, bytes(1_000_000)), (), 1000
    ),
}

CASES: Final = {**SIZES, **MASKS, **PINGS, **RESERVED, **FRAMES, **FRAGMENTS, **TEXTS}
