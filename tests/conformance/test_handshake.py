"""RFC 6455, section 4, and HTTP/1.1 as strict as it has to be in front of it: the echo application and `/ws`."""

import base64
import hashlib

import pytest

from tests.support.server import Server
from tests.support.wire import GUID, TEXT, EchoProcess, Frame, Response, Wire, frame, upgrade

KEY = "dGhlIHNhbXBsZSBub25jZQ=="


def head(*lines: str, first: str = "GET / HTTP/1.1") -> bytes:
    return "\r\n".join([first, *lines, "", ""]).encode("latin-1")


def post(*lines: str) -> bytes:
    return head(HOST, *lines, first="POST / HTTP/1.1")


HOST, UPGRADE, CONNECTION = "Host: 127.0.0.1", "Upgrade: websocket", "Connection: Upgrade"
NONCE, VERSION = f"Sec-WebSocket-Key: {KEY}", "Sec-WebSocket-Version: 13"
GOOD = (HOST, UPGRADE, CONNECTION, NONCE, VERSION)


def but(line: str, *others: str) -> bytes:
    """A good request with other lines in the place of one."""
    return head(*(new for old in GOOD for new in (others if old == line else (old,))))


def ask(port: int, request: bytes, step: int | None = None) -> Response:
    with Wire(port) as wire:
        wire.send_all(request, step=step)
        return wire.response()


#: What opens a WebSocket.
ACCEPTED = {
    "4.2.1 the example of the RFC": head(*GOOD),
    "4.2.1 names in lower case": head(
        *(line.partition(":")[0].lower() + ":" + line.partition(":")[2] for line in GOOD)
    ),
    "4.2.1 names in capitals": head(*(line.partition(":")[0].upper() + ":" + line.partition(":")[2] for line in GOOD)),
    "4.2.1 headers in another order": head(*reversed(GOOD)),
    "4.2.1 no space behind the colon": head(*(line.replace(": ", ":") for line in GOOD)),
    "4.2.1 spaces and tabs around values": head(*(line.replace(": ", ": \t ") + " \t" for line in GOOD)),
    "4.2.1 WebSocket in other letters": but(UPGRADE, "Upgrade: WebSocket"),
    "4.2.1 websocket among others": but(UPGRADE, "Upgrade: h2c, websocket"),
    "4.2.1 upgrade in other letters": but(CONNECTION, "Connection: uPgRaDe"),
    "4.2.1 upgrade among others": but(CONNECTION, "Connection: keep-alive, Upgrade"),
    "4.2.1 upgrade among others, without spaces": but(CONNECTION, "Connection: keep-alive,Upgrade,x"),
    "4.2.1 upgrade among others, with tabs": but(CONNECTION, "Connection: keep-alive\t,\tUpgrade\t"),
    "4.2.1 upgrade among empty elements": but(CONNECTION, "Connection: , ,Upgrade,"),
    "4.2.1 Connection twice": but(CONNECTION, "Connection: keep-alive", CONNECTION),
    "4.2.1 a query": head(*GOOD, first="GET /any/path?a=b&c HTTP/1.1"),
    "4.2.1 an absolute URI": head(*GOOD, first="GET http://127.0.0.1/chat HTTP/1.1"),
    "4.2.1 an absolute https URI with another host": head(*GOOD, first="GET HTTPS://example.com:80/chat?a HTTP/1.1"),
    "4.2.1 a host with a port": but(HOST, "Host: example.com:8080"),
    "4.2.1 a host that is an IPv6 address": but(HOST, "Host: [::1]:80"),
    "4.2.1 headers that nobody knows": head(*GOOD, *(f"X-{n}: {n}" for n in range(40))),
    "4.2.1 a header with all that a value may have": head(*GOOD, "X: \t!\"#$%&'()*+,-./:;<=>?@[]^_`{|}~ \xe9\xff"),
    "4.2.1 an empty header": head(*GOOD, "X:"),
    "4.2.1 an Origin": head(*GOOD, "Origin: http://127.0.0.1"),
    "4.2.1 subprotocols that nobody knows": head(*GOOD, "Sec-WebSocket-Protocol: chat, superchat"),
    "4.2.1 extensions that nobody knows": head(*GOOD, "Sec-WebSocket-Extensions: x-foo; a=1, bar; b"),
    "4.2.1 no body, said explicitly": head(*GOOD, "Content-Length: 0"),
    "RFC 9112, 2.2 an empty line first": b"\r\n" + head(*GOOD),
    "RFC 9112, 2.2 empty lines first": b"\r\n\r\n\r\n" + head(*GOOD),
}

#: What does not: its status, and what its answer must have.
REFUSED: dict[str, tuple[bytes, int, dict[str, str]]] = {
    "4.2.1 POST": (head(*GOOD, first="POST / HTTP/1.1"), 405, {"allow": "GET"}),
    "4.2.1 HEAD": (head(*GOOD, first="HEAD / HTTP/1.1"), 405, {}),
    "4.2.1 OPTIONS": (head(*GOOD, first="OPTIONS / HTTP/1.1"), 405, {}),
    "4.2.1 HTTP/1.0": (head(*GOOD, first="GET / HTTP/1.0"), 400, {}),
    "4.2.1 HTTP/0.9": (b"GET /\r\n\r\n", 400, {}),
    "4.2.1 HTTP/2.0": (head(*GOOD, first="GET / HTTP/2.0"), 400, {}),
    "4.2.1 HTTP/1.10": (head(*GOOD, first="GET / HTTP/1.10"), 400, {}),
    "4.2.1 no Host": (but(HOST), 400, {}),
    "4.2.1 an empty Host": (but(HOST, "Host:"), 400, {}),
    "4.2.1 no Upgrade": (but(UPGRADE), 426, {"upgrade": "websocket"}),
    "4.2.1 another Upgrade": (but(UPGRADE, "Upgrade: h2c"), 426, {"upgrade": "websocket"}),
    "4.2.1 a longer Upgrade": (but(UPGRADE, "Upgrade: websockets"), 426, {"upgrade": "websocket"}),
    "4.2.1 no Connection": (but(CONNECTION), 426, {"upgrade": "websocket"}),
    "4.2.1 another Connection": (but(CONNECTION, "Connection: keep-alive"), 426, {}),
    "4.2.1 a longer word in Connection": (but(CONNECTION, "Connection: upgraded"), 426, {}),
    "4.2.1 Connection with no comma": (but(CONNECTION, "Connection: keep-alive Upgrade"), 426, {}),
    "4.2.1 no key": (but(NONCE), 400, {}),
    "4.2.1 an empty key": (but(NONCE, "Sec-WebSocket-Key:"), 400, {}),
    "4.2.1 a key of 15 bytes": (but(NONCE, f"Sec-WebSocket-Key: {base64.b64encode(bytes(15)).decode()}"), 400, {}),
    "4.2.1 a key of 17 bytes": (but(NONCE, f"Sec-WebSocket-Key: {base64.b64encode(bytes(17)).decode()}"), 400, {}),
    "4.2.1 a key of 18 bytes": (but(NONCE, f"Sec-WebSocket-Key: {base64.b64encode(bytes(18)).decode()}"), 400, {}),
    "4.2.1 a key without padding": (but(NONCE, f"Sec-WebSocket-Key: {KEY[:-2]}"), 400, {}),
    "4.2.1 a key that is no base64": (but(NONCE, "Sec-WebSocket-Key: !!!!!!!!!!!!!!!!!!!!!!=="), 400, {}),
    "4.2.1 a key in the URL alphabet": (but(NONCE, "Sec-WebSocket-Key: -_-_-_-_-_-_-_-_-_-_-g=="), 400, {}),
    "4.2.1 a key with a space": (but(NONCE, f"Sec-WebSocket-Key: {KEY[:10]} {KEY[11:]}"), 400, {}),
    "4.2.1 a key that is not ASCII": (but(NONCE, f"Sec-WebSocket-Key: {KEY[:10]}\xe9{KEY[11:]}"), 400, {}),
    "11.3.1 two keys": (but(NONCE, NONCE, NONCE), 400, {}),
    "11.3.1 two keys in one line": (but(NONCE, f"{NONCE}, {KEY}"), 400, {}),
    "4.4 no version": (but(VERSION), 426, {"sec-websocket-version": "13", "upgrade": "websocket"}),
    **{
        f"4.4 version {text!r}": (but(VERSION, f"Sec-WebSocket-Version: {text}"), 426, {"sec-websocket-version": "13"})
        for text in ("0", "7", "8", "12", "14", "25", "255", "256", "013", "+13", "13.0", "13, 8", "x", "")
    },
    "4.4 two versions": (but(VERSION, VERSION, "Sec-WebSocket-Version: 8"), 400, {}),
    "4.4 the same version twice": (but(VERSION, VERSION, VERSION), 400, {}),
    "4.2.1 two Upgrades": (but(UPGRADE, UPGRADE, UPGRADE), 400, {}),
    "4.2.1 a body": (head(*GOOD, "Content-Length: 4") + b"body", 400, {}),
    "4.2.1 a body in chunks": (head(*GOOD, "Transfer-Encoding: chunked") + b"0\r\n\r\n", 400, {}),
    "3 a fragment in the target": (head(*GOOD, first="GET /chat#part HTTP/1.1"), 400, {}),
    "4.2.1 a target that is none": (head(*GOOD, first="GET chat HTTP/1.1"), 400, {}),
    "4.2.1 a target with a space": (head(*GOOD, first="GET /a b HTTP/1.1"), 400, {}),
    "4.2.1 an absolute URI without a host": (head(*GOOD, first="GET http:///chat HTTP/1.1"), 400, {}),
}

#: HTTP that some parsers read in one way and some in another (RFC 9112): always 400.
STRANGE = {
    "2.2 lines that end in LF": head(*GOOD).replace(b"\r\n", b"\n"),
    "2.2 lines that end in CR": head(*GOOD).replace(b"\r\n", b"\r") + b"\r\n\r\n",
    "2.2 one line that ends in LF": head(*GOOD).replace(b"\r\nUpgrade", b"\nUpgrade"),
    "2.2 one line that ends in CR": head(*GOOD).replace(b"\r\nUpgrade", b"\rUpgrade"),
    "2.2 a first line that ends in LF": head(*GOOD).replace(b"HTTP/1.1\r\n", b"HTTP/1.1\n"),
    "2.2 a last line that ends in LF": head(*GOOD)[:-2] + b"\n",
    "2.2 CR CR LF": head(*GOOD).replace(b"\r\nUpgrade", b"\r\r\nUpgrade"),
    "2.2 LF CR": head(*GOOD).replace(b"\r\nUpgrade", b"\n\rUpgrade"),
    "2.2 a LF before the request": b"\n" + head(*GOOD),
    "2.2 a CR before the request": b"\r" + head(*GOOD),
    "2.2 a space before the request": b" " + head(*GOOD),
    "2.2 a space before the first header": head(" X: y", *GOOD),
    "3 two spaces": head(*GOOD, first="GET  / HTTP/1.1"),
    "3 two spaces behind the target": head(*GOOD, first="GET /  HTTP/1.1"),
    "3 a tab": head(*GOOD, first="GET\t/ HTTP/1.1"),
    "3 a space at the end": head(*GOOD, first="GET / HTTP/1.1 "),
    "3 a method in small letters": head(*GOOD, first="get / HTTP/1.1"),
    "3 a method that is no token": head(*GOOD, first="G@T / HTTP/1.1"),
    "3 no method": head(*GOOD, first="/ HTTP/1.1"),
    "3 no version": head(*GOOD, first="GET /"),
    "3 http in small letters": head(*GOOD, first="GET / http/1.1"),
    "3 another protocol": head(*GOOD, first="GET / HTCPCP/1.1"),
    "3.2 a control in the target": head(*GOOD, first="GET /\x01 HTTP/1.1"),
    "3.2 NUL in the target": head(*GOOD, first="GET /\0 HTTP/1.1"),
    "3.2 a byte above 127 in the target": head(*GOOD, first="GET /\xe9 HTTP/1.1"),
    "3.2 two Hosts": but(HOST, HOST, HOST),
    "3.2 two different Hosts": but(HOST, HOST, "Host: example.com"),
    "3.2 a Host with a space": but(HOST, "Host: a b"),
    "3.2 a Host of two": but(HOST, "Host: a, b"),
    "3.2 a Host with a path": but(HOST, "Host: a/b"),
    "3.2 a Host with a user": but(HOST, "Host: user@a"),
    "3.2 a Host with a port that is none": but(HOST, "Host: a:b"),
    "5.1 a space before the colon": but(UPGRADE, "Upgrade : websocket"),
    "5.1 a tab before the colon": but(UPGRADE, "Upgrade\t: websocket"),
    "5.1 a space in a name": head(*GOOD, "X Y: z"),
    "5.1 a name that is no token": head(*GOOD, "X(: z"),
    "5.1 NUL in a name": head(*GOOD, "X\0: z"),
    "5.1 a byte above 127 in a name": head(*GOOD, "X\xe9: z"),
    "5.1 no name": head(*GOOD, ": z"),
    "5.1 no colon": head(*GOOD, "X"),
    "5.2 a folded header": head(*GOOD, "X: y\r\n z"),
    "5.2 a header folded with a tab": head(*GOOD, "X: y\r\n\tz"),
    "5.2 a header that begins folded": head(*GOOD, "X:\r\n y"),
    **{
        f"5.5 the byte {byte:02x} in a value": head(*GOOD, f"X: a{chr(byte)}b")
        for byte in (*range(9), *range(11, 13), *range(14, 32), 0x7F, 0x85)
    },
    "5.5 a line end of one's own": head(*GOOD, "X: a\x85Y: b"),
    "6.1 both lengths": post("Content-Length: 4", "Transfer-Encoding: chunked") + b"0\r\n\r\n",
    "6.1 both lengths, the other way round": (
        post("Transfer-Encoding: chunked", "Content-Length: 4") + b"0\r\n\r\n"
    ),
    **{
        f"6.1 Transfer-Encoding: {value}": post(f"Transfer-Encoding: {value}") + b"0\r\n\r\n"
        for value in (
            "identity", "xchunked",
            "gzip, chunked", "chunked, gzip", "chunked, chunked", '"chunked"', "chunked;q=1", "", ","
        )
    },
    "6.1 Transfer-Encoding twice": (
        post(*["Transfer-Encoding: chunked"] * 2) + b"0\r\n\r\n"
    ),
    **{
        f"6.2 Content-Length: {value}": post(f"Content-Length: {value}") + b"abcd"
        for value in ("+4", "-4", "4, 4", "4 4", "0x4", "4.0", "", "four", "99999999999999999999999")
    },
    "6.2 Content-Length twice": post(*["Content-Length: 4"] * 2) + b"abcd",
    **{
        f"7.1 the chunks {chunks!r}": (
            post("Transfer-Encoding: chunked") + chunks
        )
        for chunks in (
            b"1\na\r\n0\r\n\r\n", b"1\r\na\n0\r\n\r\n", b"1\r\na\r\n0\n\n", b"1 \r\na\r\n0\r\n\r\n",
            b" 1\r\na\r\n0\r\n\r\n",
            b"0x1\r\na\r\n0\r\n\r\n", b"+1\r\na\r\n0\r\n\r\n", b"1_0\r\na\r\n0\r\n\r\n", b"-1\r\na\r\n0\r\n\r\n",
            b"\r\na\r\n0\r\n\r\n", b"1;a\nb\r\na\r\n0\r\n\r\n", b"1;a\rb\r\na\r\n0\r\n\r\n",
            b"1;a\x01\r\na\r\n0\r\n\r\n",
            b"1\r\nab\r\n0\r\n\r\n", b"1\r\naXX0\r\n\r\n", b"ffffffffffffffffff\r\na", b"0\r\nX: a\r\n b\r\n\r\n",
            b"0\r\nX: a\n\r\n", b"0\r\nContent-Length: 5\r\n\r\n", b"0\r\nTransfer-Encoding: chunked\r\n\r\n",
        )
    },
    "a TLS hello": b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03" + bytes(500),
    "a preface of HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "nothing but zeros": bytes(100),
    "a WebSocket frame": frame(TEXT, b"hello"),
}  # fmt: skip


def both(cases: dict[str, bytes]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("request_bytes", cases.values(), ids=cases.keys())


@pytest.mark.parametrize("step", [None, 1], ids=["whole", "bytes"])
@both(ACCEPTED)
def test_a_good_handshake_is_answered_with_101(echo: EchoProcess, request_bytes: bytes, step: int | None) -> None:
    with Wire(echo.port) as wire:
        wire.send(request_bytes, step=step)
        response = wire.response()
        assert response.status == 101
        names = [name for name, _ in response.headers]
        assert sorted(names) == ["connection", "sec-websocket-accept", "upgrade"]  # no extension, no subprotocol
        assert response.header("sec-websocket-accept") == "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
        wire.send(frame(TEXT, b"hello"))
        assert wire.frame() == Frame(TEXT, b"hello")


def test_the_accept_is_made_of_the_key(echo: EchoProcess) -> None:
    for number in range(20):
        key = base64.b64encode(hashlib.md5(bytes([number]), usedforsecurity=False).digest())
        response = ask(echo.port, but(NONCE, f"Sec-WebSocket-Key: {key.decode()}"))
        digest = hashlib.sha1(key + GUID, usedforsecurity=False).digest()
        assert response.header("sec-websocket-accept") == base64.b64encode(digest).decode()


@pytest.mark.parametrize("step", [None, 1], ids=["whole", "bytes"])
@pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED.keys())
def test_a_wrong_handshake_is_refused(
    echo: EchoProcess, case: tuple[bytes, int, dict[str, str]], step: int | None
) -> None:
    request, status, headers = case
    with Wire(echo.port) as wire:
        wire.send_all(request, step=step)
        response = wire.response()
        assert response.status == status
        assert {name: response.header(name) for name in headers} == headers
        assert response.header("connection") == "close"
        assert wire.ended()


#: The others are about their target.
MOVABLE = {name: case for name, case in REFUSED.items() if b" / HTTP" in case[0]}


@pytest.mark.parametrize("case", MOVABLE.values(), ids=MOVABLE.keys())
def test_the_presence_server_refuses_it_as_well(
    server: Server, token: str, case: tuple[bytes, int, dict[str, str]]
) -> None:
    request, status, headers = case
    request = request.replace(b" / ", b" /ws ", 1).replace(
        b"\r\n", f"\r\nAuthorization: Bearer {token}\r\n".encode(), 1
    )
    response = ask(server.port, request)
    assert response.status == status
    assert {name: response.header(name) for name in headers} == headers


@both({name: request for name, request in ACCEPTED.items() if b"GET / " in request and "first" not in name})
def test_the_presence_server_accepts_what_is_good(server: Server, token: str, request_bytes: bytes) -> None:
    request = request_bytes.replace(b" / ", b" /ws ", 1)
    request = request.replace(b"\r\n", f"\r\nAuthorization: Bearer {token}\r\n".encode(), 1)
    assert ask(server.port, request).status == 101


@pytest.mark.parametrize("step", [None, 1, 7], ids=["whole", "bytes", "sevens"])
@both(STRANGE)
def test_http_that_can_be_read_in_two_ways_is_400(echo: EchoProcess, request_bytes: bytes, step: int | None) -> None:
    with Wire(echo.port) as wire:
        wire.send_all(request_bytes, step=step)
        assert wire.response().status == 400
        assert wire.ended()  # one response at most, and nothing behind it is a request


@both(STRANGE)
def test_the_presence_server_reads_it_in_no_way_either(server: Server, request_bytes: bytes) -> None:
    with Wire(server.port) as wire:
        wire.send_all(request_bytes.replace(b" / ", b" /ws ", 1))
        assert wire.response().status == 400
        assert wire.ended()


def test_nothing_a_client_says_comes_back_in_a_header(server: Server, token: str) -> None:
    for name in ("evil\xe9", 'a"b', "a b", "a;b", "a/b", "<x>"):
        response = ask(
            server.port,
            upgrade(f"Authorization: Bearer {token}", f"Sec-WebSocket-Protocol: token.{name}", target="/ws"),
        )
        assert response.status == 400, name


def test_two_origins_are_refused(server: Server, token: str) -> None:
    own = f"http://127.0.0.1:{server.port}"
    good = (f"Host: 127.0.0.1:{server.port}", f"Authorization: Bearer {token}", f"Origin: {own}")
    assert ask(server.port, upgrade(*good, target="/ws", without=("host",))).status == 101
    for other in ("http://evil.example", own):
        request = upgrade(*good, f"Origin: {other}", target="/ws", without=("host",))
        assert ask(server.port, request).status == 403


def test_the_host_of_an_absolute_target_wins(server: Server, token: str) -> None:
    lines = ("Host: evil.example", f"Authorization: Bearer {token}", "Origin: http://evil.example")
    assert ask(server.port, upgrade(*lines, target="/ws", without=("host",))).status == 101
    request = upgrade(*lines, target="http://127.0.0.1/ws", without=("host",))
    assert ask(server.port, request).status == 403


def test_a_head_that_does_not_end_is_refused(echo: EchoProcess) -> None:
    for request in (
        b"GET /" + b"a" * 100_000,
        b"GET / HTTP/1.1\r\nX: " + b"a" * 100_000,
        b"GET / HTTP/1.1\r\n" + b"X: a\r\n" * 20_000,
        b"GET / HTTP/1.1\r\n" + b"X" * 100_000,
        b"\r\n" * 50_000,
        b"G" * 100_000,
    ):
        with Wire(echo.port) as wire:
            wire.send_all(request, step=1000)
            assert wire.response().status in (400, 414, 431)
