"""The HTTP side of the public port: the handshake and its refusals, tokens, questions; every error with its body."""

import asyncio
import json
import time
from collections.abc import Iterator

import pytest

from fastpresence.settings import TokenKey
from fastpresence.tokens import TokenKeys
from tests.conftest import Start
from tests.support.clients import Clients, RawClient
from tests.support.scene import fresh
from tests.support.server import API_KEY, TOKEN_SECRET, Server, shared

BASE = "/api/online-status"


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    yield from shared({"presence.heartbeat_timeout": 60, "server.allowed_origins": "https://ours.example"})


def exchange(server: Server, request: bytes) -> tuple[int, dict[str, str], bytes]:
    """One request as it is, and its response."""

    async def run() -> tuple[int, dict[str, str], bytes]:
        async with RawClient.open(server) as raw:
            raw.send(request)
            return await raw.response()

    return asyncio.run(run())


def error_of(body: bytes) -> dict[str, str]:
    """What an error's body says; it has to be of the protocol's shape."""
    decoded = json.loads(body)
    assert set(decoded) == {"error"}
    assert set(decoded["error"]) == {"code", "message"}
    assert decoded["error"]["code"]
    assert decoded["error"]["message"]
    return dict(decoded["error"])


# The handshake.


@pytest.mark.parametrize(
    ("target", "headers", "token", "status"),
    [
        ("/ws", ["Sec-WebSocket-Key:"], True, 400),
        ("/ws", ["Sec-WebSocket-Key: c2hvcnQ="], True, 400),
        ("/ws", ["Sec-WebSocket-Key: !!!!!!!!!!!!!!!!!!!!!!=="], True, 400),
        ("/ws", ["Host:"], True, 400),
        ("/ws", [], False, 401),
        ("/ws", ["Authorization: Bearer a.b.c"], False, 401),
        ("/ws", ["Authorization: Basic dXNlcjpwYXNz"], False, 401),
        ("/ws?token=", [], False, 401),
        ("/ws?token=a.b.c", [], False, 401),
        ("/ws", ["Sec-WebSocket-Protocol: fastpresence.v1.json, token.a.b.c"], False, 401),
        ("/ws", [f"Authorization: Bearer {API_KEY}"], False, 401),
        ("/ws", ["Origin: https://theirs.example"], True, 403),
        ("/ws", ["Origin: null"], True, 403),
        ("/ws", ["Origin: https://ours.example.theirs.example"], True, 403),
        ("/", [], True, 404),
        ("/wss", [], True, 404),
        ("/ws/", [], True, 404),
        ("/ws", ["Upgrade:", "Connection:"], True, 426),
        ("/ws", ["Upgrade: h2c"], True, 426),
        ("/ws", ["Sec-WebSocket-Version: 8"], True, 426),
    ],
)
def test_a_handshake_that_fails_is_an_http_answer_that_says_why(
    server: Server, target: str, headers: list[str], token: bool, status: int
) -> None:
    signature = server.token(fresh("user")) if token else None
    got, received, body = exchange(server, RawClient.upgrade_request(signature, target, *headers))
    assert got == status
    assert received["content-type"] == "application/json"
    error = error_of(body)
    assert TOKEN_SECRET not in str(error)
    if status == 426:
        assert received["upgrade"] == "websocket"
        assert error["code"] == "upgrade_required"


def test_a_token_of_a_wrong_key_an_expired_one_and_one_without_a_signature_are_refused(server: Server) -> None:
    now = int(time.time())

    def issued(kid: str, secret: str, issued_at: int = now) -> str:
        return TokenKeys([TokenKey(kid, secret)]).issue("u", "user", room=None, expire_time=60, now=issued_at)[0]

    good = issued("k1", TOKEN_SECRET)
    head, payload, signature = good.split(".")
    none = "eyJhbGciOiJub25lIiwia2lkIjoiazEifQ"  # {"alg":"none","kid":"k1"}
    bad = {
        "another secret": issued("k1", "x" * 32),
        "another kid": issued("k2", TOKEN_SECRET),
        "expired": issued("k1", TOKEN_SECRET, now - 61),
        "no signature": f"{head}.{payload}.",
        "alg none": f"{none}.{payload}.",
        "alg none, signed": f"{none}.{payload}.{signature}",
        "half of it": good[:40],
        "too long": "a" * 5000,
    }
    assert exchange(server, RawClient.upgrade_request(good))[0] == 101
    for name, token in bad.items():
        status, _, body = exchange(server, RawClient.upgrade_request(token))
        assert (status, error_of(body)["code"]) == (401, "unauthorized"), name
        assert server.http("GET", f"{BASE}/u", key=token)[0] == 401, name


def test_the_token_may_come_in_three_places_and_the_first_of_them_counts(server: Server) -> None:
    user_id = fresh("user")
    token, bad = server.token(user_id), "a.b.c"

    def attempt(bearer: str | None, protocol: str | None, query: str | None) -> int:
        headers = [] if protocol is None else [f"Sec-WebSocket-Protocol: fastpresence.v1.json, token.{protocol}"]
        target = "/ws" if query is None else f"/ws?public=0&token={query}"
        return exchange(server, RawClient.upgrade_request(bearer, target, *headers))[0]

    assert [attempt(token, None, None), attempt(None, token, None), attempt(None, None, token)] == [101] * 3
    assert attempt(token, bad, bad) == 101
    assert attempt(bad, token, token) == 401
    assert attempt(None, token, bad) == 101
    assert attempt(None, bad, token) == 401


def test_the_subprotocol_decides_the_frames_and_json_is_the_default(server: Server) -> None:
    token = server.token(fresh("user"))

    async def first_frame(*headers: str) -> tuple[str | None, int]:
        async with RawClient.open(server) as raw:
            raw.send(RawClient.upgrade_request(token, "/ws", *headers))
            status, received, _ = await raw.response()
            assert status == 101
            assert received["upgrade"].lower() == "websocket"
            opcode, payload = await raw.frame()
            assert b"welcome" in payload
            return received.get("sec-websocket-protocol"), opcode

    async def story() -> None:
        name = "Sec-WebSocket-Protocol"
        assert await first_frame() == (None, RawClient.TEXT)
        assert await first_frame(f"{name}: fastpresence.v1.json") == ("fastpresence.v1.json", RawClient.TEXT)
        assert await first_frame(f"{name}: fastpresence.v1.msgpack") == ("fastpresence.v1.msgpack", RawClient.BINARY)
        both = f"{name}: something.else, fastpresence.v1.msgpack, fastpresence.v1.json"
        assert await first_frame(both) == ("fastpresence.v1.msgpack", RawClient.BINARY)
        assert await first_frame(f"{name}: something.else") == (None, RawClient.TEXT)

    asyncio.run(story())


def test_the_key_is_answered_as_rfc_6455_has_it(server: Server) -> None:
    # The example of RFC 6455, section 1.3.
    key = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="
    status, received, _ = exchange(server, RawClient.upgrade_request(server.token(fresh("user")), "/ws", key))
    assert status == 101
    assert received["sec-websocket-accept"] == "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="


@pytest.mark.parametrize("origin", ["https://ours.example", "HTTPS://OURS.EXAMPLE", "http://127.0.0.1"])
def test_a_page_of_the_same_host_or_of_a_listed_origin_may_connect(server: Server, origin: str) -> None:
    token = server.token(fresh("user"))
    assert exchange(server, RawClient.upgrade_request(token, "/ws", f"Origin: {origin}"))[0] == 101


def test_a_handshake_may_come_byte_by_byte_and_frames_may_come_with_it(server: Server) -> None:
    async def story() -> None:
        async with RawClient.open(server) as raw:
            for byte in RawClient.upgrade_request(server.token(fresh("user")), "/ws?public=0"):
                raw.send(bytes([byte]))
                await raw.drain()
            assert (await raw.response())[0] == 101
            assert b"welcome" in (await raw.frame())[1]
        async with RawClient.open(server) as raw:
            ping = b"\x89\x80\x00\x00\x00\x00"
            raw.send(RawClient.upgrade_request(server.token(fresh("user")), "/ws?public=0") + ping)
            assert (await raw.response())[0] == 101
            frames = [await raw.frame(), await raw.frame()]
            assert (RawClient.PONG, b"") in frames

    asyncio.run(story())


# Tokens.


def test_rts_token_answers_with_a_token_that_connects_and_says_what_it_is_for(server: Server) -> None:
    before = int(time.time())
    user_id = fresh("kol")
    asked = {"user_id": user_id, "user_type": "kol", "room_id": "studio", "expire_time": 60}
    status, answer, headers = server.http("POST", f"{BASE}/rts-token", asked)
    assert status == 200
    assert headers["content-type"] == "application/json"
    assert set(answer) == {"user_id", "user_type", "room_id", "signature", "expires_at", "ws_url"}
    assert (answer["user_id"], answer["user_type"], answer["room_id"]) == (user_id, "kol", "studio")
    assert before + 60 <= answer["expires_at"] <= int(time.time()) + 60
    assert answer["ws_url"] == f"ws://127.0.0.1:{server.port}/ws"

    async def story() -> None:
        async with Clients(server) as clients:
            client = await clients.connect(user_id, "kol", token=answer["signature"], url=answer["ws_url"])
            assert client.came("welcome")[0]["expires_at"] == answer["expires_at"]

    asyncio.run(story())
    _, answer, _ = server.http("POST", f"{BASE}/rts-token", {"user_id": user_id})
    assert (answer["user_type"], answer["room_id"]) == ("user", None)
    assert 3595 <= answer["expires_at"] - before <= 3605


@pytest.mark.parametrize(
    ("body", "status", "names"),
    [
        ({}, 422, "user_id"),
        ({"user_id": 5}, 422, "user_id"),
        ({"user_id": ""}, 422, "user_id"),
        ({"user_id": "a b"}, 422, "user_id"),
        ({"user_id": "a\n"}, 422, "user_id"),
        ({"user_id": "a" * 129}, 422, "user_id"),
        ({"user_id": "u", "user_type": "admin"}, 422, "user_type"),
        ({"user_id": "u", "room_id": "a/b"}, 422, "room_id"),
        ({"user_id": "u", "expire_time": 0}, 422, "expire_time"),
        ({"user_id": "u", "expire_time": 86_401}, 422, "expire_time"),
        ({"user_id": "u", "expire_time": "3600"}, 422, "expire_time"),
        ({"user_id": "u", "expire_time": 1.5}, 422, "expire_time"),
        (["u"], 422, ""),
        (b"", 400, ""),
        (b"{", 400, ""),
        (b"user_id=u", 400, ""),
        (b'{"user_id":"\xff"}', 400, ""),
        (b"[" * 50_000, 400, ""),
        (b'{"user_id":5', 400, ""),
    ],
)
def test_a_token_request_with_a_wrong_body_is_refused_with_the_fields_name(
    server: Server, body: object, status: int, names: str
) -> None:
    got, answer, _ = server.http("POST", f"{BASE}/rts-token", body)
    assert got == status
    assert names in error_of(json.dumps(answer).encode())["message"]


def test_who_has_no_api_key_gets_no_token_and_who_has_no_credential_gets_no_answer(server: Server) -> None:
    user_token = server.token(fresh("user"))
    for key in (None, "", "wrong", API_KEY[:-1], API_KEY + "x", user_token):
        assert server.http("POST", f"{BASE}/rts-token", {"user_id": "u"}, key=key)[0] == 401
    for key in (None, "wrong", "a.b.c"):
        status, answer, _ = server.http("GET", f"{BASE}/u", key=key)
        assert (status, answer["error"]["code"]) == (401, "unauthorized")
        assert server.http("POST", f"{BASE}/query", {"user_ids": ["u"]}, key=key)[0] == 401


# Questions.


def test_one_user_and_many_can_be_asked_for_with_a_token_or_an_api_key(server: Server) -> None:
    async def story() -> None:
        async with Clients(server) as clients:
            host = await clients.online(fresh("kol"), "kol", status="busy")
            for key in (API_KEY, server.token(fresh("user"))):
                status, entry, _ = server.http("GET", f"{BASE}/{host.user_id}", key=key)
                assert status == 200
                assert set(entry) == {"user_id", "user_type", "status", "online", "last_seen", "rev"}
                assert (entry["user_id"], entry["status"], entry["online"]) == (host.user_id, "busy", True)
                asked = {"user_ids": ["nobody", host.user_id]}
                status, answer, _ = server.http("POST", f"{BASE}/query", asked, key=key)
                assert status == 200
                assert answer["user_status"][1] == entry
                unknown = answer["user_status"][0]
                assert (unknown["online"], unknown["last_seen"], unknown["rev"]) == (False, None, 0)
            asked_on_socket = await host.ask("request_online_status", user_ids=[host.user_id])
            assert asked_on_socket["user_status"] == [entry]

    asyncio.run(story())


def test_every_character_of_a_user_id_can_be_asked_for_and_others_can_not(server: Server) -> None:
    status, entry, _ = server.http("GET", f"{BASE}/A-z_0.9:x@y")
    assert (status, entry["user_id"]) == (200, "A-z_0.9:x@y")
    status, entry, _ = server.http("GET", f"{BASE}/A%2Dz%5F0.9%3Ax%40y")
    assert (status, entry["user_id"]) == (200, "A-z_0.9:x@y")
    for bad in ("a%20b", "a" * 129, "%00", "%c3%a9", "a%0a"):
        status, answer, _ = server.http("GET", f"{BASE}/{bad}")
        assert status == 422
        assert "user_id" in answer["error"]["message"]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 404),
        ("GET", "/api", 404),
        ("GET", f"{BASE}/", 404),
        ("GET", f"{BASE}/a/b", 404),
        ("GET", f"{BASE}/../../etc/passwd", 404),
        ("PUT", f"{BASE}/rts-token", 405),
        ("GET", f"{BASE}/tokens/revoke", 405),
        ("DELETE", f"{BASE}/u", 405),
        ("POST", f"{BASE}/u", 405),
    ],
)
def test_other_paths_and_methods_are_refused(server: Server, method: str, path: str, status: int) -> None:
    got, answer, _ = server.http(method, path)
    assert got == status
    error_of(json.dumps(answer).encode())


def test_a_head_is_answered_like_a_get_without_its_body(server: Server) -> None:
    async def story() -> None:
        async with RawClient.open(server) as raw:
            for path, key in (("poll", API_KEY), ("rooms/r", API_KEY), ("u", "wrong"), ("a/b", API_KEY)):
                get, head = (
                    f"{method} {BASE}/{path} HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer {key}\r\n\r\n".encode()
                    for method in ("GET", "HEAD")
                )
                raw.send(head + get)
                like = await raw.response(is_head=True)
                status, headers, body = await raw.response()
                assert (status, headers) == like[:2]
                assert len(body) == int(headers["content-length"]) > 0
        async with RawClient.open(server) as raw:
            raw.send(b"HEAD /ws HTTP/1.1\r\nHost: h\r\n\r\n")
            assert (await raw.response(is_head=True))[0] == 405
            assert await raw.eof() == b""

    asyncio.run(story())


# A client that asks before it sends a body.


def expecting(key: str, target: str = "query", *, length: int = 19, expect: str = "100-continue") -> bytes:
    return (
        f"POST {BASE}/{target} HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer {key}\r\nOrigin: https://ours.example\r\n"
        f"Expect: {expect}\r\nContent-Length: {length}\r\n\r\n"
    ).encode()


def test_who_asks_before_he_sends_a_body_is_told_to_go_on_and_then_answered(server: Server) -> None:
    async def story() -> None:
        async with RawClient.open(server) as raw:
            for _ in range(2):
                # What came before it on the connection is answered before it.
                raw.send(f"GET {BASE}/u HTTP/1.1\r\nHost: h\r\n\r\n".encode() + expecting(API_KEY))
                assert (await raw.response())[0] == 401
                assert await raw.response() == (100, {}, b"")
                raw.send(b'{"user_ids": ["u"]}')
                status, _, body = await raw.response()
                assert (status, json.loads(body)["user_status"][0]["user_id"]) == (200, "u")
            raw.send(expecting(API_KEY) + b'{"user_ids": ["u"]}')  # it did not wait
            assert (await raw.response())[0] == 200

    asyncio.run(story())


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (expecting("wrong"), 401),
        (expecting(API_KEY, "poll"), 401),
        (expecting(API_KEY, "u"), 405),
        (expecting(API_KEY, "a/b"), 404),
        (expecting(API_KEY, length=65_537), 413),
        (expecting(API_KEY, expect="a-miracle"), 417),
    ],
)
def test_who_need_not_send_his_body_is_told_so_at_once(server: Server, request_: bytes, status: int) -> None:
    async def story() -> None:
        async with RawClient.open(server) as raw:
            raw.send(request_)
            got, headers, body = await raw.response()
            assert got == status
            error_of(body)
            assert headers["connection"] == "close"
            assert headers["access-control-allow-origin"] == "https://ours.example"
            assert await raw.eof() == b""

    asyncio.run(story())


def test_a_query_for_none_or_too_many_is_refused(server: Server) -> None:
    for user_ids in ([], [f"u{n}" for n in range(1001)], "u", [5], ["a b"], None):
        status, answer, _ = server.http("POST", f"{BASE}/query", {"user_ids": user_ids})
        assert status == 422
        assert "user_ids" in answer["error"]["message"]


def test_a_body_that_is_too_large_is_refused_so_that_the_answer_arrives(server: Server) -> None:
    status, answer, _ = server.http("POST", f"{BASE}/query", b" " * (64 * 1024 + 1))
    assert (status, set(answer)) == (413, {"error"})
    status, answer, _ = server.http("POST", f"{BASE}/query", b" " * 700_000)
    assert (status, set(answer)) == (413, {"error"})
    head = f"POST {BASE}/query HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {API_KEY}\r\n"
    chunk = b"2000\r\n" + b" " * 0x2000 + b"\r\n"
    request = f"{head}Transfer-Encoding: chunked\r\n\r\n".encode() + chunk * 20
    got, _, body = exchange(server, request)
    assert got == 413
    error_of(body)


def test_several_requests_may_follow_each_other_on_one_connection(server: Server) -> None:
    async def story() -> None:
        async with RawClient.open(server) as raw:
            one = f"GET {BASE}/u HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {API_KEY}\r\n\r\n".encode()
            missing = b"GET /nowhere HTTP/1.1\r\nHost: x\r\n\r\n"
            raw.send(one + missing + one)
            assert [(await raw.response())[0] for _ in range(3)] == [200, 404, 200]
            raw.send(one)
            assert (await raw.response())[0] == 200
            raw.send(RawClient.upgrade_request(server.token(fresh("user")), "/ws"))
            assert (await raw.response())[0] == 101
            assert b"welcome" in (await raw.frame())[1]

    asyncio.run(story())


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(64)),  # TLS, where none is spoken
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET /ws\r\n\r\n",
        b"GET /ws HTTP/1.0\r\nHost: x\r\n\r\n",
        b"\x00" * 100,
        b"GET /ws HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n",
        b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\n" + b"X: y\r\n" * 100 + b"\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ],
)
def test_what_is_not_http_1_1_is_refused_with_a_body_and_the_connection_ends(server: Server, garbage: bytes) -> None:
    async def story() -> None:
        async with RawClient.open(server) as raw:
            raw.send(garbage)
            status, _, body = await raw.response()
            assert 400 <= status < 500
            error_of(body)
            raw.half_close()
            await raw.eof()

    asyncio.run(story())


def test_ws_url_is_built_from_public_url_where_that_is_set(start: Start) -> None:
    server = start(server__public_url="https://presence.example/live")
    _, answer, _ = server.http("POST", f"{BASE}/rts-token", {"user_id": "u"})
    assert answer["ws_url"] == "wss://presence.example/live"


def test_who_guesses_credentials_by_the_thousand_is_told_to_wait_and_a_good_one_is_still_let_in(start: Start) -> None:
    server = start()

    async def run() -> list[int]:
        statuses = []
        async with RawClient.open(server) as raw:
            for number in range(1_000):
                raw.send(
                    f"GET {BASE}/kol_1 HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer guess{number}\r\n\r\n".encode()
                )
                statuses.append((await raw.response())[0])
        return statuses

    statuses = asyncio.run(run())
    assert statuses[:100] == [401] * 100
    assert statuses.count(429) > 500
    good = f"GET {BASE}/kol_1 HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {API_KEY}\r\n\r\n"
    assert exchange(server, good.encode())[0] == 200
