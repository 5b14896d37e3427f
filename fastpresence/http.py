"""HTTP/1.1 requests and answers on httptools, sans-IO: for the public port and the admin face.

    bytes -> RequestParser.feed() -> [Request, ...]  or HttpError (answer it, then end the connection)
                          .expecting() -> a Request whose body comes when it was told CONTINUE

One parser lives while its connection speaks HTTP. Everything it holds is bounded: head, number of headers, body. A
request that asks for an upgrade ends the parser: `Request.after` has the bytes that came behind it. May import errors.
"""

import re
from typing import Any, Final
from urllib.parse import parse_qsl, unquote

import httptools
import msgspec

from fastpresence.errors import FastPresenceError

__all__ = ["CONTINUE", "HttpError", "Request", "RequestParser", "answer", "answer_error"]

HEAD_MAX: Final = 16_384  #: bytes of request line and headers
HEADERS_MAX: Final = 64
#: Bytes on the wire for each byte of a chunked body, at most: chunks of one byte cost six.
CHUNK_COST: Final = 8

#: Go on with the body (RFC 9110, section 15.2.1).
CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"

PHRASES: Final = {
    200: "OK",
    204: "No Content",
    400: "Bad Request",
    401: "Unauthorized",
    403: "Forbidden",
    404: "Not Found",
    405: "Method Not Allowed",
    408: "Request Timeout",
    409: "Conflict",
    413: "Content Too Large",
    414: "URI Too Long",
    417: "Expectation Failed",
    422: "Unprocessable Content",
    426: "Upgrade Required",
    429: "Too Many Requests",
    431: "Request Header Fields Too Large",
    500: "Internal Server Error",
    503: "Service Unavailable",
}

#: The first line of a connection, as strict as RFC 9112 (section 3) allows: httptools takes more spaces, and a bare LF
#: before it. An empty line before it is ignored (section 2.2).
_FIRST_LINE: Final = re.compile(rb"(?:\r\n)*[A-Z-]+ [^ ]+ HTTP/[0-9.]+\r\n")
_LINE_ENDS: Final = b"\r\n"
#: uri-host [":" port] (RFC 9112, section 3.2; RFC 3986, section 3.2.2), and not empty.
_HOST: Final = re.compile(rb"(?:\[[0-9A-Fa-f:.]+\]|[\w.~!$&'()*+,;=%-]+)(?::[0-9]*)?", re.ASCII)
#: A request target in absolute form, which a server has to take (RFC 9112, section 3.2.2; RFC 6455, section 4.2.1).
_ABSOLUTE: Final = re.compile(rb"https?://([^/?#]*)([^#]*)", re.IGNORECASE)
#: NEL outside of a character of several bytes: some take it for a line end.
_NEL: Final = re.compile(rb"(?<![\x80-\xff])\x85")

_encode = msgspec.json.Encoder().encode


class HttpError(FastPresenceError):
    """Answer with `status` and the error body of the protocol."""

    def __init__(self, status: int, code: str, message: str, headers: tuple[tuple[str, str], ...] = ()) -> None:
        super().__init__(f"{status} {code}: {message}")
        self.status = status
        self.code = code
        self.message = message
        self.headers = headers


class Request:
    """One complete request. Header names are lower case; of a name that comes twice `header` gives the first."""

    __slots__ = ("after", "body", "headers", "keep_alive", "method", "path", "query_string", "upgrade")

    def __init__(self, method: str, target: bytes, headers: list[tuple[bytes, bytes]], keep_alive: bool) -> None:
        path, _, query = target.partition(b"?")
        self.method = method
        self.path = path.decode("latin-1")
        self.query_string = query
        self.headers = headers
        self.body = b""
        self.keep_alive = keep_alive
        self.upgrade = False
        self.after = b""

    def header(self, name: bytes) -> str | None:
        for key, value in self.headers:
            if key == name:
                return value.decode("latin-1")
        return None

    def values(self, name: bytes) -> list[str]:
        """Every value of a header that may come several times."""
        return [value.decode("latin-1") for key, value in self.headers if key == name]

    def all(self, name: bytes) -> list[str]:
        """The same, split at their commas."""
        items = [item.strip(" \t") for value in self.values(name) for item in value.split(",")]
        return [item for item in items if item]

    def query(self) -> dict[str, str]:
        """The query's parameters; of a name that comes twice the last."""
        if not self.query_string:
            return {}
        return dict(parse_qsl(self.query_string.decode("latin-1"), keep_blank_values=True))

    def segments(self) -> list[str]:
        """The path between its slashes, each part unquoted."""
        return [unquote(part) for part in self.path.split("/")[1:]]

    def bearer(self) -> str | None:
        """The token of `Authorization: Bearer ...`."""
        scheme, _, token = (self.header(b"authorization") or "").partition(" ")
        return token.strip() if scheme.lower() == "bearer" and token.strip() else None


class RequestParser:
    """Cuts requests out of one connection's bytes. After an `HttpError` or an upgrade it is of no more use."""

    def __init__(self, body_size: int) -> None:
        self._cutter = _Cutter(body_size)
        self._native = httptools.HttpRequestParser(self._cutter)

    def feed(self, data: bytes) -> list[Request]:
        """Take in bytes; returns the requests that they complete. Raises `HttpError`."""
        return self._cutter.feed(self._native, data)

    def expecting(self) -> Request | None:
        """The request whose client waits for a word before it sends the body (`Expect`); told once."""
        cutter = self._cutter
        if not cutter.expects:
            return None
        cutter.expects = False
        return cutter.head

    @property
    def head(self) -> Request:
        """What came so far of the request that is being read, or was refused; its method once its head was whole."""
        return self._cutter.head


class _Refused(Exception):
    """Out of httptools, at once; the `HttpError` is kept by the cutter."""


class _Cutter:
    """What httptools calls back. It knows its parser only inside `feed`.

    The parser holds it, and a cycle of the two would outlive a connection that was there for a while: the worker's full
    collections are off.
    """

    def __init__(self, body_size: int) -> None:
        self._body_size = body_size
        self._parser: Any = None
        self._done: list[Request] = []
        self._fault: HttpError | None = None
        #: What came of the connection's first line; None once it was looked at.
        self._first: bytes | None = b""
        self._begin()

    def _begin(self) -> None:
        self._target = b""
        self._headers: list[tuple[bytes, bytes]] = []
        self._head_size = 0
        self._body: list[bytes] = []
        self._body_have = 0
        self._behind_head = 0
        self._in_head = True
        self._method = ""
        self._current: Request | None = None
        self.expects = False  #: the client waits for a word before it sends the body

    @property
    def head(self) -> Request:
        return self._current or Request(self._method, self._target, self._headers, False)

    def feed(self, parser: Any, data: bytes) -> list[Request]:
        self._done = []
        if self._first is not None:
            self._check_first_line(data)
        if self._in_head:
            # Counted before parsing: what a head is made of does not matter, only that it ends in time.
            self._head_size += len(data)
        else:
            self._behind_head += len(data)
        self._parser = parser
        try:
            parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            if self._done:
                self._done[-1].upgrade = True
                self._done[-1].after = data[upgrade.args[0] :]
        except httptools.HttpParserCallbackError as error:
            raise self._take_fault() from error
        except httptools.HttpParserError as error:
            raise HttpError(400, "bad_request", "not a valid HTTP/1.1 request") from error
        finally:
            self._parser = None
        if self._in_head and self._head_size > HEAD_MAX:
            raise HttpError(431, "bad_request", "request head too long")
        if self._current is not None and self._behind_head > HEAD_MAX + CHUNK_COST * self._body_have:
            raise HttpError(413, "too_large", "chunk heads or trailers too long")
        return self._done

    def _check_first_line(self, data: bytes) -> None:
        """Before the parser sees it."""
        line = (self._first or b"") + data[: HEAD_MAX + 1]
        begin = len(line) - len(line.lstrip(_LINE_ENDS))
        end = line.find(b"\n", begin)
        if end < 0:
            self._first = line if len(line) <= HEAD_MAX else None  # it is too long, and will be refused for that
            return
        self._first = None
        if not _FIRST_LINE.fullmatch(line, 0, end + 1):
            raise HttpError(400, "bad_request", "not a valid HTTP/1.1 request")

    # The fault is neither kept nor a local of a frame that raises: a traceback holds its frames, and they hold us.

    def _refuse(self, status: int, code: str, message: str) -> None:
        self._fault = HttpError(status, code, message)
        raise _Refused

    def _take_fault(self) -> HttpError:
        fault, self._fault = self._fault, None
        return fault or HttpError(400, "bad_request", "not a valid request")

    # Callbacks of httptools.

    def on_url(self, part: bytes) -> None:
        self._target += part
        if len(self._target) > HEAD_MAX:
            self._refuse(414, "bad_request", "request target too long")

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._in_head:
            return  # a trailer is no header (RFC 9110, section 6.5.1): no credential comes behind the body
        if not value.isascii() and _NEL.search(value):
            self._refuse(400, "bad_request", "a line end that is none")
        self._headers.append((name.lower(), value.strip(b" \t")))
        if len(self._headers) > HEADERS_MAX:
            self._refuse(431, "bad_request", "too many headers")

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._method = self._parser.get_method().decode("latin-1")
        if self._parser.get_http_version() != "1.1":
            self._refuse(400, "bad_request", "HTTP/1.1 is spoken here")
        if len(self._target) + sum(len(name) + len(value) + 4 for name, value in self._headers) > HEAD_MAX:
            self._refuse(431, "bad_request", "request head too long")
        self._check_headers()
        absolute = _ABSOLUTE.fullmatch(self._target)
        if absolute is not None:
            host, self._target = absolute.groups()
            if not _HOST.fullmatch(host):
                self._refuse(400, "bad_request", "not a valid request target")
            if not self._target.startswith(b"/"):
                self._target = b"/" + self._target
            # It wins over the header (RFC 9112, section 3.2.2).
            self._headers = [(name, host if name == b"host" else value) for name, value in self._headers]
        elif b"#" in self._target:
            self._refuse(400, "bad_request", "a request target has no fragment")
        self._current = Request(self._method, self._target, self._headers, self._parser.should_keep_alive())

    def _check_headers(self) -> None:
        """What decides where this request goes and where the next one begins (RFC 9112, sections 3.2 and 6)."""
        hosts = 0
        has_body = expects = False
        for name, value in self._headers:
            if name == b"host":
                hosts += 1
                if not _HOST.fullmatch(value):
                    self._refuse(400, "bad_request", "Host: not a host")
            elif name == b"content-length":
                if not value.isdigit():
                    self._refuse(400, "bad_request", "Content-Length: not a number")
                if len(value) > 19 or int(value) > self._body_size:
                    self._refuse(413, "too_large", f"body over {self._body_size} bytes")
                has_body = has_body or int(value) > 0
            elif name == b"transfer-encoding":
                has_body = True
                if value.lower() != b"chunked":
                    self._refuse(400, "bad_request", "Transfer-Encoding: only chunked is known here")
            elif name == b"expect":
                expects = True
                if value.lower() != b"100-continue":  # RFC 9110, section 10.1.1
                    self._refuse(417, "bad_request", "Expect: only 100-continue is known here")
        if hosts != 1:
            self._refuse(400, "bad_request", "one Host header is required")
        if has_body and self._parser.should_upgrade():
            self._refuse(400, "bad_request", "a request that asks for an upgrade has no body")
        self.expects = expects and has_body

    def on_body(self, part: bytes) -> None:
        self.expects = False
        self._body_have += len(part)
        if self._body_have > self._body_size:
            self._refuse(413, "too_large", f"body over {self._body_size} bytes")
        self._body.append(part)

    def on_message_complete(self) -> None:
        request = self._current
        if request is None:
            return
        request.body = b"".join(self._body)
        self._begin()
        self._done.append(request)


def answer(
    status: int,
    body: Any = None,
    *,
    headers: tuple[tuple[str, str], ...] = (),
    keep_alive: bool = True,
    is_head: bool = False,
) -> bytes:
    """A whole response; `body` is encoded as JSON. Header values are ours, never a stranger's text.

    `is_head`: to a HEAD, which is answered without the body that its headers speak of (RFC 9110, section 9.3.2).
    """
    payload = b"" if body is None else _encode(body)
    lines = [f"HTTP/1.1 {status} {PHRASES.get(status, 'Unknown')}"]
    if body is not None:
        lines.append("Content-Type: application/json")
    if status != 204:  # which must not have one (RFC 9110, section 8.6)
        lines.append(f"Content-Length: {len(payload)}")
    lines.append("Cache-Control: no-store")
    if not keep_alive:
        lines.append("Connection: close")
    lines.extend(f"{name}: {value}" for name, value in headers)
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + (b"" if is_head else payload)


def answer_error(error: HttpError, *, keep_alive: bool = False, is_head: bool = False) -> bytes:
    """The response that an `HttpError` asks for."""
    body = {"error": {"code": error.code, "message": error.message}}
    headers = error.headers
    if error.status == 401:
        headers = (*headers, ("WWW-Authenticate", "Bearer"))  # RFC 9110, section 15.5.2
    return answer(error.status, body, headers=headers, keep_alive=keep_alive, is_head=is_head)
