"""Heartbeats that need no Python: what about a client's beat may change while it stays the same beat.

    first beat --carried out here--> likeness --> engine.learn: the next one like it, after a silence, is answered there

A client says the same every 30 s, but for its clock. The engine compares bytes and knows no JSON, so it is told which
bytes may differ: those of the timestamp, which the server does not look at. Whatever is not plainly so is not taught;
a beat that the engine does not know goes the long way, and nothing is lost but microseconds. Pure.
"""

import re
from typing import Any, Final

import msgspec

from fastpresence.codec import Codec
from fastpresence.messages import Heartbeat

__all__ = ["likeness"]

#: Bytes: a beat that says more than it must is not worth learning.
LONGEST: Final = 512
#: All that a plain beat has. With another key some bytes that look like the timestamp might mean something else.
KEYS: Final = frozenset({"type", "user_id", "user_type", "timestamp"})
_DECIMAL: Final = re.compile(rb'"timestamp"[ \t\r\n]*:[ \t\r\n]*([1-9][0-9]{0,14})[ \t\r\n]*[,}]')
#: A map's key and an unsigned 32-bit integer: what every encoder makes of the time, until the year 2106.
_UINT32: Final = re.compile(rb"\xa9timestamp\xce(.{4})", re.DOTALL)


def likeness(codec: Codec, data: bytes, beat: Heartbeat) -> tuple[int, int, bool] | None:
    """The bytes [start, end) of a beat that may differ, and whether they are digits; None for one that is not plain.

    `beat` is what `data` say. Every message that is like it so is a heartbeat of the same author, without an `id`.
    """
    if beat.id is not None or len(data) > LONGEST:
        return None
    try:
        raw: Any = codec.decode_any(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    if type(raw) is not dict or not KEYS.issuperset(raw):
        return None
    if "timestamp" not in raw:
        return 0, 0, False
    pattern = _DECIMAL if codec.is_text else _UINT32
    found = pattern.search(data)
    if found is None or type(raw["timestamp"]) is not int or data.count(b"timestamp") != 1:
        return None
    return found.start(1), found.end(1), codec.is_text
