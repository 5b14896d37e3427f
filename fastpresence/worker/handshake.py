"""The upgrade request: accepted or refused. Pure: a request in, an `Accepted` out or an `HttpError` raised.

RFC 6455 section 4.2 for the WebSocket's part, the protocol's section 1 for token, subprotocol and origin.
"""

import binascii
import re
from base64 import b64decode, b64encode
from collections.abc import Collection
from hashlib import sha1
from typing import Final

from msgspec import Struct

from fastpresence.codec import CODECS, JSON, Codec
from fastpresence.errors import TokenError
from fastpresence.http import HttpError, Request
from fastpresence.tokens import Claims, TokenKeys
from fastpresence.worker.cors import Origins
from fastpresence.worker.deflate import negotiate

__all__ = ["Accepted", "accept", "compression", "switching", "upgrade_key"]

TOKEN: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110, section 5.6.2
GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455, section 1.3


class Accepted(Struct, frozen=True, gc=False):
    """Who it is, how it speaks, and what to answer."""

    claims: Claims
    codec: Codec
    inflates: bool  #: its messages may be compressed
    deflates: bool  #: ours may be
    public: bool  #: wants to hear of the public users
    cursor: str | None
    response: bytes


def upgrade_key(request: Request) -> str:
    """The Sec-WebSocket-Key of a request that may be upgraded (RFC 6455, section 4.2.1). Raises HttpError."""
    if request.method != "GET":
        raise HttpError(405, "bad_request", "the WebSocket is opened with GET", (("Allow", "GET"),))
    for name in (b"upgrade", b"sec-websocket-version", b"sec-websocket-key"):
        if len(request.values(name)) > 1:  # section 11.3: which one would count?
            raise HttpError(400, "bad_request", f"{name.decode()}: more than once")
    if not request.upgrade or "websocket" not in [name.lower() for name in request.all(b"upgrade")]:
        raise HttpError(426, "upgrade_required", "this path speaks WebSocket", (("Upgrade", "websocket"),))
    if request.header(b"sec-websocket-version") != "13":
        headers = (("Upgrade", "websocket"), ("Sec-WebSocket-Version", "13"))  # RFC 9110, 15.5.22; RFC 6455, 4.4
        raise HttpError(426, "upgrade_required", "Sec-WebSocket-Version: 13", headers)
    key = request.header(b"sec-websocket-key") or ""
    try:
        if len(key) != 24 or len(b64decode(key, validate=True)) != 16:
            raise HttpError(400, "bad_request", "Sec-WebSocket-Key: 16 bytes in base64")
    except (binascii.Error, ValueError):
        raise HttpError(400, "bad_request", "Sec-WebSocket-Key: 16 bytes in base64") from None
    return key


def compression(request: Request) -> tuple[str, bool] | None:
    """What to answer to the request's extensions, and whether we compress (`deflate.negotiate`). Raises HttpError."""
    header = ",".join(request.values(b"sec-websocket-extensions"))
    if not header:
        return None
    try:
        return negotiate(header)
    except ValueError:
        raise HttpError(400, "bad_request", "Sec-WebSocket-Extensions: not a list of extensions") from None


def switching(key: str, subprotocol: str | None, extension: str | None) -> bytes:
    """The response that makes it a WebSocket."""
    digest = b64encode(sha1(key.encode("ascii") + GUID, usedforsecurity=False).digest()).decode("ascii")
    chosen = f"Sec-WebSocket-Protocol: {subprotocol}\r\n" if subprotocol else ""
    extended = f"Sec-WebSocket-Extensions: {extension}\r\n" if extension else ""
    return (
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Accept: {digest}\r\n{chosen}{extended}\r\n"
    ).encode("latin-1")


def accept(request: Request, *, keys: TokenKeys, origins: Origins, user_types: Collection[str], now: int) -> Accepted:
    """Check a GET of the WebSocket's path. `now`: Unix epoch, seconds. Raises HttpError."""
    key = upgrade_key(request)
    named = request.values(b"origin")
    if len(named) > 1 or (named and not origins.allows(named[0], request.header(b"host") or "")):
        raise HttpError(403, "forbidden", "this origin may not connect")
    offered = request.all(b"sec-websocket-protocol")
    if not all(TOKEN.fullmatch(name) for name in offered):  # section 4.1; the answer repeats one of them
        raise HttpError(400, "bad_request", "Sec-WebSocket-Protocol: not a list of tokens")
    query = request.query()
    token, chosen = _token(request, offered, query)
    if token is None:
        raise HttpError(401, "unauthorized", "a token is required")
    try:
        claims = keys.verify(token, now=now)
    except TokenError as error:
        raise HttpError(401, "unauthorized", str(error)) from None
    if claims.user_type not in user_types:
        raise HttpError(403, "forbidden", "the token's user type is not one of presence.user_types")
    codec = JSON
    for name in offered:
        if name in CODECS:
            codec, chosen = CODECS[name], name
            break
    agreed = compression(request)
    return Accepted(
        claims=claims,
        codec=codec,
        inflates=agreed is not None,
        deflates=agreed is not None and agreed[1],
        public=query.get("public") != "0",
        cursor=query.get("cursor"),
        response=switching(key, chosen, agreed[0] if agreed else None),
    )


def _token(request: Request, offered: list[str], query: dict[str, str]) -> tuple[str | None, str | None]:
    """The token, looked for in the protocol's order, and the subprotocol that brought it.

    A browser gives up when none of the subprotocols that it offered comes back: where the token is all it offered,
    the token's is answered.
    """
    for name in offered:
        if name.startswith("token."):
            return request.bearer() or name.removeprefix("token."), name
    return request.bearer() or query.get("token"), None
