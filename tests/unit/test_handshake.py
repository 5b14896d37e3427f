"""The upgrade request: who is let in, as whom, speaking what; and what each of the others is told."""

import base64

import pytest

from fastpresence.codec import JSON, MSGPACK, Codec
from fastpresence.errors import FastPresenceError
from fastpresence.http import HttpError, Request, RequestParser
from fastpresence.settings import TokenKey
from fastpresence.tokens import TokenKeys
from fastpresence.worker.cors import Origins
from fastpresence.worker.handshake import Accepted, accept

NOW = 1_700_000_000
KEYS = TokenKeys([TokenKey("k", "a-secret-of-thirty-two-characters")])
KEY = "dGhlIHNhbXBsZSBub25jZQ=="  # RFC 6455, section 1.3
HOST = "chat.example"


def token(user_id: str, user_type: str = "user", now: int = NOW) -> str:
    return KEYS.issue(user_id, user_type, room=None, expire_time=60, now=now)[0]


def request(target: str = "/ws", *, method: str | None = "GET", **headers: str | None) -> Request:
    """An upgrade request as a browser makes it; `headers` replace or, with None, remove."""
    sent: dict[str, str | None] = {
        "host": HOST, "connection": "Upgrade", "upgrade": "websocket", "sec-websocket-version": "13",
        "sec-websocket-key": KEY,
    }  # fmt: skip
    sent |= {name.replace("_", "-"): value for name, value in headers.items()}
    lines = [f"{method} {target} HTTP/1.1", *[f"{name}: {value}" for name, value in sent.items() if value is not None]]
    (found,) = RequestParser(1000).feed("\r\n".join([*lines, "", ""]).encode("latin-1"))
    return found


def let_in(found: Request, allowed: tuple[str, ...] = ()) -> Accepted:
    return accept(found, keys=KEYS, origins=Origins(allowed), user_types=("kol", "user"), now=NOW)


def refused(found: Request, allowed: tuple[str, ...] = ()) -> HttpError:
    with pytest.raises(FastPresenceError) as caught:
        let_in(found, allowed)
    assert isinstance(caught.value, HttpError)
    return caught.value


def response_of(accepted: Accepted) -> dict[str, str]:
    lines = accepted.response.decode().split("\r\n")
    assert lines[0] == "HTTP/1.1 101 Switching Protocols"
    assert lines[-2:] == ["", ""]
    return dict(line.split(": ", 1) for line in lines[1:-2])


def test_the_answer_proves_that_the_key_was_read() -> None:
    response = response_of(let_in(request(authorization=f"Bearer {token('u')}")))
    assert response["Sec-WebSocket-Accept"] == "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="  # the example of section 1.3
    assert (response["Upgrade"], response["Connection"]) == ("websocket", "Upgrade")


def test_the_claims_are_the_token_s() -> None:
    signed, _ = KEYS.issue("kol_1", "kol", room="r", expire_time=60, now=NOW)
    claims = let_in(request(f"/ws?token={signed}")).claims
    assert (claims.user_id, claims.user_type, claims.room, claims.expires_at) == ("kol_1", "kol", "r", NOW + 60)


# Where the token is looked for, in the protocol's order.


@pytest.mark.parametrize(
    ("bearer", "protocol", "query", "who"),
    [
        ("a", None, None, "a"),
        (None, "b", None, "b"),
        (None, None, "c", "c"),
        ("a", "b", "c", "a"),
        ("a", "b", None, "a"),
        ("a", None, "c", "a"),
        (None, "b", "c", "b"),
    ],
)
def test_the_token_is_looked_for_in_order(
    bearer: str | None, protocol: str | None, query: str | None, who: str
) -> None:
    found = request(
        f"/ws?token={token(query)}" if query else "/ws",
        authorization=f"Bearer {token(bearer)}" if bearer else None,
        sec_websocket_protocol=f"fastpresence.v1.json, token.{token(protocol)}" if protocol else None,
    )
    assert let_in(found).claims.user_id == who


def test_a_bad_token_in_the_first_place_is_not_made_good_by_a_later_place() -> None:
    assert refused(request(f"/ws?token={token('u')}", authorization="Bearer nonsense")).status == 401
    assert refused(request(f"/ws?token={token('u')}", sec_websocket_protocol="token.nonsense")).status == 401


@pytest.mark.parametrize(
    ("found", "why"),
    [
        (request(), "required"),
        (request("/ws?token="), "no token"),
        (request("/ws?token"), "no token"),
        (request(authorization="Basic abc"), "required"),
        (request("/ws?token=nonsense"), "malformed"),
        (request(f"/ws?token={token('u', now=NOW - 60)}"), "expired"),
        (request(f"/ws?token={token('u')}x"), "signature|malformed"),
        (request("/ws?token=" + "a" * 5_000), "too long"),
        (request("/ws?token=%00%ff"), "malformed"),
    ],
)
def test_without_a_good_token_nobody_gets_in(found: Request, why: str) -> None:
    error = refused(found)
    assert (error.status, error.code) == (401, "unauthorized")
    assert any(word in error.message for word in why.split("|"))


def test_another_s_key_opens_nothing() -> None:
    other = TokenKeys([TokenKey("k", "another-secret-of-32-characters!")])
    signed, _ = other.issue("u", "user", room=None, expire_time=60, now=NOW)
    assert refused(request(f"/ws?token={signed}")).status == 401


def test_a_type_of_user_that_is_not_configured_opens_nothing() -> None:
    signed, _ = KEYS.issue("u", "admin", room=None, expire_time=60, now=NOW)
    error = refused(request(f"/ws?token={signed}"))
    assert (error.status, error.code) == (403, "forbidden")


# What is spoken.


@pytest.mark.parametrize(
    ("offered", "codec", "chosen"),
    [
        (None, JSON, None),
        ("fastpresence.v1.json", JSON, "fastpresence.v1.json"),
        ("fastpresence.v1.msgpack", MSGPACK, "fastpresence.v1.msgpack"),
        ("fastpresence.v1.msgpack, fastpresence.v1.json", MSGPACK, "fastpresence.v1.msgpack"),
        ("fastpresence.v1.json,fastpresence.v1.msgpack", JSON, "fastpresence.v1.json"),
        ("chat, fastpresence.v1.msgpack", MSGPACK, "fastpresence.v1.msgpack"),
        ("chat", JSON, None),
        ("fastpresence.v2.json", JSON, None),
        ("FASTPRESENCE.V1.MSGPACK", JSON, None),
    ],
)
def test_the_first_subprotocol_that_is_known_is_chosen(offered: str | None, codec: Codec, chosen: str | None) -> None:
    accepted = let_in(request(authorization=f"Bearer {token('u')}", sec_websocket_protocol=offered))
    assert accepted.codec is codec
    assert response_of(accepted).get("Sec-WebSocket-Protocol") == chosen


def test_a_token_among_the_subprotocols_is_not_the_one_that_is_chosen() -> None:
    signed = token("u")
    for offered in (f"token.{signed}, fastpresence.v1.msgpack", f"fastpresence.v1.msgpack, token.{signed}"):
        accepted = let_in(request(sec_websocket_protocol=offered))
        assert response_of(accepted)["Sec-WebSocket-Protocol"] == "fastpresence.v1.msgpack"
        assert accepted.codec is MSGPACK


def test_a_token_that_is_all_that_was_offered_comes_back_or_a_browser_gives_up() -> None:
    offered = f"token.{token('u')}"
    assert response_of(let_in(request(sec_websocket_protocol=offered)))["Sec-WebSocket-Protocol"] == offered


def test_the_query_says_what_to_hear_and_from_where_on() -> None:
    query = f"/ws?token={token('u')}"
    accepted = let_in(request(query))
    assert (accepted.public, accepted.cursor) == (True, None)
    accepted = let_in(request(query + "&public=0&cursor=e~p~7"))
    assert (accepted.public, accepted.cursor) == (False, "e~p~7")
    assert let_in(request(query + "&public=1")).public


# Where it comes from.

ALLOWED = ("https://app.example", "http://app.example:8080", "http://localhost:*", "https://[::1]:*")


@pytest.mark.parametrize(
    "origin",
    [
        "http://chat.example", "https://chat.example", "HTTPS://Chat.Example", "https://app.example",
        "http://app.example:8080", "http://localhost", "http://localhost:3000", "http://localhost:65535",
        "https://[::1]:9", "https://[::1]",
    ],
)  # fmt: skip
def test_a_page_of_the_same_host_or_of_a_listed_origin_may_connect(origin: str) -> None:
    assert Origins(ALLOWED).allows(origin, HOST)
    let_in(request(authorization=f"Bearer {token('u')}", origin=origin), ALLOWED)


@pytest.mark.parametrize(
    "origin",
    [
        "null", "", "https://", "//chat.example", "chat.example", "file://", "file://chat.example",
        "ftp://chat.example", "ws://chat.example", "javascript:alert(1)", "chrome-extension://chat.example",
        "https://evil.example", "https://chat.example.evil", "https://evilchat.example", "https://evil.chat.example",
        "https://chat.example:444", "https://chat.example@evil.example", "https://evil.example@chat.example",
        "https://evil.example/chat.example", "https://chat.example/", "https://evil.example#chat.example",
        "https://evil.example?chat.example", "https://chat.example\\@evil.example", "https://chat.example.",
        "https://app.example.evil", "https://evil-app.example", "https://app.example:8443", "http://app.example",
        "http://app.example:80800", "https://app.example:8080", "https://localhost:3000", "http://localhost.evil:3000",
        "http://localhost:3000@evil.example", "http://evil@localhost:3000", "http://localhost:3000/",
        "http://localhost:99999", "http://localhost:x", "http://localhost:", "http://localhost:-1",
        "http://[::1", "https://[::2]:9", "https://[::1]:9@evil.example", "http://127.0.0.1:3000",
        "https://chat.example https://evil.example", "https://chat.example,https://evil.example",
    ],
)  # fmt: skip
def test_every_other_page_may_not(origin: str) -> None:
    assert not Origins(ALLOWED).allows(origin, HOST)
    error = refused(request(authorization=f"Bearer {token('u')}", origin=origin), ALLOWED)
    assert (error.status, error.code) == (403, "forbidden")


def test_the_same_host_has_the_same_port() -> None:
    origins = Origins(())
    assert origins.allows("http://h:8080", "h:8080")
    assert origins.allows("http://h:8080", "H:8080")
    assert not origins.allows("http://h", "h:8080")
    assert not origins.allows("http://h:8080", "h")
    assert not origins.allows("http://h:8080", "h:80")


def test_without_a_host_no_page_is_of_the_same() -> None:
    for origin in ("", "http://", "null", "https://h"):
        assert not Origins(()).allows(origin, "")


def test_what_is_no_browser_sends_no_origin_and_is_let_in() -> None:
    assert let_in(request(authorization=f"Bearer {token('u')}")).claims.user_id == "u"


def test_a_stranger_s_page_is_told_nothing_about_its_token() -> None:
    assert refused(request("/ws?token=nonsense", origin="https://evil.example")).status == 403


# The WebSocket's own part: RFC 6455, section 4.2.1.


@pytest.mark.parametrize(
    "key",
    [
        None, "", "short", KEY[:-1], KEY + "=", "====", "a" * 24, base64.b64encode(b"x" * 15).decode(),
        base64.b64encode(b"x" * 17).decode(), base64.b64encode(b"x" * 18).decode(), "dGhlIHNhbXBsZSBub25j!Q==",
        "dGhlIHNhbXBsZSBub25jéQ==", KEY[:-2] + "  ",
    ],
)  # fmt: skip
def test_a_key_that_is_not_16_bytes_in_base64_is_400(key: str | None) -> None:
    assert refused(request(authorization=f"Bearer {token('u')}", sec_websocket_key=key)).status == 400


@pytest.mark.parametrize("version", [None, "", "8", "12", "14", "013", "13, 12", "thirteen"])
def test_another_version_is_426_and_told_which_one(version: str | None) -> None:
    error = refused(request(authorization=f"Bearer {token('u')}", sec_websocket_version=version))
    assert error.status == 426
    assert ("Sec-WebSocket-Version", "13") in error.headers
    assert ("Upgrade", "websocket") in error.headers


@pytest.mark.parametrize(
    "headers",
    [{"upgrade": None, "connection": None}, {"upgrade": "h2c"}, {"connection": "keep-alive"}, {"connection": None},
     {"upgrade": None}],
)  # fmt: skip
def test_the_right_path_without_the_upgrade_is_426_and_told_to_what(headers: dict[str, str | None]) -> None:
    error = refused(request(f"/ws?token={token('u')}", **headers))
    assert error.status == 426
    assert ("Upgrade", "websocket") in error.headers


def test_the_names_of_the_upgrade_may_be_written_in_any_case() -> None:
    let_in(request(authorization=f"Bearer {token('u')}", upgrade="WebSocket", connection="keep-alive, UPGRADE"))


@pytest.mark.parametrize("method", ["POST", "HEAD", "PUT", "DELETE", "OPTIONS"])
def test_a_websocket_is_opened_with_get(method: str) -> None:
    error = refused(request(method=method, authorization=f"Bearer {token('u')}"))
    assert error.status == 405
    assert ("Allow", "GET") in error.headers
