"""JSON and MessagePack: the two ways a frame is written, and how a bad one is explained.

A `Codec` is one subprotocol: reused encoder and decoders, text or binary frames. Server and Python client share it.
Cost: decoding a heartbeat takes well under a microsecond (bench/micro/test_codec.py).
"""

import re
from collections.abc import Callable
from typing import Any, Final

import msgspec

from fastpresence.errors import BadField, BadFrame, RequestError, UnknownType
from fastpresence.messages import ClientFrame, ServerFrame

__all__ = ["CODECS", "JSON", "MSGPACK", "Codec", "field_problem", "request_id"]

# msgspec ends a validation error with the path of what was wrong: "... - at `$.user_ids[3]`".
_PATH = re.compile(r" - at `(?:key in )?\$\.?([^`]*)`\Z")
_MISSING = re.compile(r"\AObject missing required field `([^`]+)`")


class Codec:
    """One subprotocol. `is_text` says which kind of WebSocket frame carries it."""

    def __init__(self, name: str, *, is_text: bool, encode: Callable[[Any], bytes], decoder: type[Any]) -> None:
        self.subprotocol = f"fastpresence.v1.{name}"
        self.is_text = is_text
        self.encode = encode
        #: Raises what `explain` turns into a `RequestError`.
        self.decode_request: Callable[[bytes], ClientFrame] = decoder(ClientFrame).decode
        self.decode_answer: Callable[[bytes], ServerFrame] = decoder(ServerFrame).decode
        self.decode_any: Callable[[bytes], Any] = decoder(Any).decode

    def explain(self, data: bytes, error: Exception) -> tuple[RequestError, int | str | None]:
        """What was wrong with a client's frame that `decode_request` refused, and the `id` to answer with."""
        if not isinstance(error, msgspec.ValidationError):
            return BadFrame("not a single object of the negotiated format"), None
        try:
            raw = self.decode_any(data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raw = None
        if not isinstance(raw, dict):
            return BadFrame("a frame is one object"), None
        reply_to = request_id(raw.get("id"))
        text = str(error)
        where = _PATH.search(text)
        path = where.group(1) if where else ""
        if path == "type" and isinstance(raw.get("type"), str):
            return UnknownType("no such type of frame"), reply_to
        return BadField(field_problem(error)), reply_to


def field_problem(error: msgspec.ValidationError) -> str:
    """What is wrong with which field, in one line that repeats nothing of what the stranger sent."""
    text = str(error)
    missing = _MISSING.match(text)
    if missing:
        return f"{missing.group(1)}: missing"
    where = _PATH.search(text)
    path = where.group(1) if where else ""
    reason = text[: where.start()] if where else text
    # What is not one of the protocol's own field names is a stranger's text.
    field = path if re.fullmatch(r"[a-z_]+(\[(\d+|\.\.\.)\](\.[a-z_]+)?)?", path) else "frame"
    return f"{field}: {_plain(reason)}"


def request_id(value: object) -> int | str | None:
    """`value` where it may serve as the `id` of a request, else None."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int) and -(2**53) <= value <= 2**53:
        return value
    if isinstance(value, str) and len(value) <= 64:
        return value
    return None


def _plain(reason: str) -> str:
    """msgspec's reason without the value that a stranger sent."""
    if reason.startswith(("Invalid enum value", "Invalid value")):
        return "not one of the allowed values"
    if "matching regex" in reason:
        return "1 to 128 characters of A-Z a-z 0-9 _ . : @ -"
    return reason[0].lower() + reason[1:] if reason else "not valid"


JSON: Final = Codec("json", is_text=True, encode=msgspec.json.Encoder().encode, decoder=msgspec.json.Decoder)
MSGPACK: Final = Codec(
    "msgpack", is_text=False, encode=msgspec.msgpack.Encoder().encode, decoder=msgspec.msgpack.Decoder
)
#: By subprotocol name; the first is the default.
CODECS: Final[dict[str, Codec]] = {codec.subprotocol: codec for codec in (JSON, MSGPACK)}
