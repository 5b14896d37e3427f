"""Which web pages may use the public port, and how a browser is told (the Fetch standard, section 3.2).

Pure. The WebSocket's handshake refuses a foreign page itself; for HTTP it is the browser that asks and refuses.
"""

from typing import Final
from urllib.parse import urlsplit

from fastpresence.http import HttpError, Request, answer

__all__ = ["Origins", "preflight"]

#: Seconds for which a browser need not ask again.
MAX_AGE: Final = 600


class Origins:
    """Which web pages may connect: those of the same host, and those listed."""

    def __init__(self, allowed: tuple[str, ...]) -> None:
        self._exact = frozenset(origin for origin in allowed if not origin.endswith(":*"))
        self._any_port = frozenset(origin.removesuffix(":*") for origin in allowed if origin.endswith(":*"))

    def allows(self, origin: str, host: str) -> bool:
        """`origin` as the browser wrote it; `host` as in the request's Host."""
        origin = origin.lower()
        if origin in self._exact:
            return True
        try:
            parts = urlsplit(origin)
            if parts.scheme not in ("http", "https") or parts.path or not parts.netloc or "@" in parts.netloc:
                return False
            without_port = f"{parts.scheme}://{parts.netloc.removesuffix(f':{parts.port}')}"
        except ValueError:
            return False
        return parts.netloc == host.lower() or without_port in self._any_port

    def headers(self, request: Request) -> tuple[tuple[str, str], ...]:
        """What an answer needs so that the page which asked may read it; nothing for a page that may not."""
        named = request.values(b"origin")
        if len(named) != 1:
            return ()
        if not named[0].isascii() or not self.allows(named[0], request.header(b"host") or ""):
            return (("Vary", "Origin"),)
        return (("Access-Control-Allow-Origin", named[0]), ("Vary", "Origin"))


def preflight(methods: tuple[str, ...], headers: tuple[tuple[str, str], ...], *, keep_alive: bool) -> bytes:
    """The answer to OPTIONS on a path that takes these methods; `headers` are those of `Origins.headers`."""
    if len(headers) == 1:
        raise HttpError(403, "forbidden", "this origin may not ask")
    allowed = ", ".join((*methods, "OPTIONS"))
    more: tuple[tuple[str, str], ...] = (("Allow", allowed),)
    if headers:
        more += (
            ("Access-Control-Allow-Methods", allowed),
            ("Access-Control-Allow-Headers", "Authorization, Content-Type"),
            ("Access-Control-Max-Age", str(MAX_AGE)),
        )
    return answer(204, headers=(*headers, *more), keep_alive=keep_alive)
