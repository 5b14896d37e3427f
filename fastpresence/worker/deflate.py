"""permessage-deflate (RFC 7692) without context takeover: negotiated, inflated under a limit, deflated once for all.

No side keeps a window between messages: an idle connection costs nothing for it, and one compressed frame serves every
recipient. isal compresses two to three times as fast as zlib at about its ratio; where it has no wheel, zlib does.
Each message ends with a sync flush: a final block (BFINAL) is legal, but breaks the WebSocket of Node.
Pure: values in, values out.
"""

import re
import zlib
from typing import Final

from fastpresence.errors import PeerError

try:
    from isal import isal_zlib
except ImportError:  # no wheel for this machine
    isal_zlib = None  # type: ignore[assignment]

__all__ = ["EXTENSION", "LEAST", "BadMessage", "deflate", "inflate", "negotiate"]

EXTENSION: Final = "permessage-deflate"
#: Bytes: what is smaller is sent as it is, since it hardly shrinks.
LEAST: Final = 256
#: What a sync flush ends with; left out on the wire (section 7.2.1).
TAIL: Final = b"\x00\x00\xff\xff"
#: A final block with nothing in it. What ends where a block may begin ends exactly with it; what was cut off does not.
END: Final = b"\x03\x00"
#: Extensions and parameters that are looked at in one request.
OFFERS_MAX: Final = 32
#: DEFLATE streams in one message: a sender may begin anew behind a final block (section 7.2.3.4), but not for ever.
STREAMS_MAX: Final = 16

_TOKEN = re.compile(r"[ \t]*([!#$%&'*+.^_`|~0-9A-Za-z-]+)[ \t]*")
#: A token, or a quoted string that is one once it is unquoted (RFC 6455, section 9.1).
_VALUE = re.compile(r'[ \t]*(?:([!#$%&\'*+.^_`|~0-9A-Za-z-]+)|"((?:\\?[!#$%&\'*+.^_`|~0-9A-Za-z-])+)")[ \t]*')
#: Elements of a list may be empty (RFC 2616, section 2.1, which RFC 6455 is written in; RFC 9110, section 5.6.1).
_COMMAS = re.compile(r"[ \t,]*")
_BITS = re.compile(r"[89]|1[0-5]")


class BadMessage(PeerError):
    """A compressed message that can't be taken; `close_code` says why."""

    def __init__(self, close_code: int, reason: str) -> None:
        super().__init__(reason)
        self.close_code = close_code


def negotiate(header: str) -> tuple[str, bool] | None:
    """The answer to a Sec-WebSocket-Extensions header, and whether we compress; None for no compression at all.

    The first offer that can be met is taken (section 5.1). Whoever asks us for a smaller window than ours is sent
    uncompressed messages, which is always allowed: frames are made once for all. Raises ValueError for what is no
    list of extensions.
    """
    for name, parameters in _parse(header):
        if name != EXTENSION or parameters is None:
            continue
        bits = parameters.get("server_max_window_bits")
        answer = f"{EXTENSION}; server_no_context_takeover; client_no_context_takeover"
        if bits is not None:
            answer += f"; server_max_window_bits={bits}"
        return answer, bits in (None, "15")
    return None


def _parse(header: str) -> list[tuple[str, dict[str, str | None] | None]]:
    """Extensions in order with their parameters; None in their place where one is not as section 7.1 wants it."""
    found: list[tuple[str, dict[str, str | None] | None]] = []
    at = _commas(header, 0)
    seen = 0
    while at < len(header):
        token = _TOKEN.match(header, at)
        if token is None:
            raise ValueError("not a list of extensions")
        name, at = token.group(1), token.end()
        parameters: dict[str, str | None] | None = {}
        while header[at : at + 1] == ";":
            token = _TOKEN.match(header, at + 1)
            if token is None:
                raise ValueError("not a list of extensions")
            key, value, at = token.group(1), None, token.end()
            if header[at : at + 1] == "=":
                given = _VALUE.match(header, at + 1)
                if given is None:
                    raise ValueError("not a list of extensions")
                value, at = given.group(1) or given.group(2).replace("\\", ""), given.end()
            if parameters is not None:
                parameters = {**parameters, key: value} if key not in parameters and _is_good(key, value) else None
            seen += 1
        found.append((name, parameters))
        seen += 1
        if seen > OFFERS_MAX:
            raise ValueError("too many extensions")
        if at < len(header) and header[at] != ",":
            raise ValueError("not a list of extensions")
        at = _commas(header, at)
    return found


def _commas(header: str, at: int) -> int:
    """Behind the commas and spaces here."""
    spaces = _COMMAS.match(header, at)
    return spaces.end() if spaces else at


def _is_good(key: str, value: str | None) -> bool:
    """Whether a parameter of permessage-deflate is one that there is, with a value that it may have."""
    if key in ("server_no_context_takeover", "client_no_context_takeover"):
        return value is None
    if key == "client_max_window_bits":
        return value is None or _BITS.fullmatch(value) is not None
    return key == "server_max_window_bits" and value is not None and _BITS.fullmatch(value) is not None


def deflate(payload: bytes) -> bytes:
    """The payload of a compressed frame. Costs some 5 to 12 microseconds for what a flush tells."""
    if isal_zlib is not None:
        squeezer = isal_zlib.compressobj(1, isal_zlib.DEFLATED, -15)
        return bytes(squeezer.compress(payload) + squeezer.flush(isal_zlib.Z_SYNC_FLUSH))[:-4]
    plain = zlib.compressobj(1, zlib.DEFLATED, -15)
    return (plain.compress(payload) + plain.flush(zlib.Z_SYNC_FLUSH))[:-4]


def inflate(data: bytes, limit: int) -> bytes:
    """The message in a compressed payload; never more than `limit` bytes of it come into being. Raises BadMessage."""
    if not data:
        return b""  # section 7.2.3.6 has one byte for it; nothing is lost by taking none
    # Data as section 7.2.1 wants them never end in 0xff: who left the tail on is understood as well.
    rest = data + END if data.endswith(TAIL) else data + TAIL + END
    parts: list[bytes] = []
    have = 0
    try:
        for _ in range(STREAMS_MAX):
            stretcher = zlib.decompressobj(-15)
            parts.append(stretcher.decompress(rest, limit + 1 - have))
            have += len(parts[-1])
            if have > limit:
                raise BadMessage(1009, "message too big")
            if not stretcher.eof:
                raise BadMessage(1002, "DEFLATE data end too soon")
            rest = stretcher.unused_data
            if rest in (b"", TAIL + END):  # the latter behind a final block without its empty one (section 7.2.3.4)
                return b"".join(parts)
    except zlib.error:
        raise BadMessage(1002, "not DEFLATE") from None
    raise BadMessage(1002, "too many DEFLATE streams in one message")
