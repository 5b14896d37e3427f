"""The HTTP requests of the public port: who may ask what, and the status of every way of asking wrongly."""

from typing import Any

import msgspec
import pytest

from fastpresence.errors import UserOffline
from fastpresence.http import HttpError, Request, RequestParser
from fastpresence.messages import StatusEntry
from fastpresence.presence.service import OnlineStatusService
from fastpresence.presence.sessions import Now
from fastpresence.settings import AuthSettings, PresenceSettings, ServerSettings, Settings, TokenKey
from fastpresence.tokens import ApiKeys, TokenKeys
from fastpresence.worker.routes import Routes

NOW = 1_700_000_000
MOMENT = Now(1_000, NOW * 1_000_000)
KEYS = TokenKeys([TokenKey("k", "a-secret-of-thirty-two-characters")])
API_KEY = "an-api-key-of-ours"
BASE = "/api/online-status"


@pytest.fixture
def service() -> OnlineStatusService:
    service = OnlineStatusService(
        epoch="e", public_types={"kol"}, heartbeat_timeout_ms=60_000, disconnect_grace_ms=None
    )
    service.handle_user_online("kol_1", "kol", status="busy", connection="socket", now=MOMENT)
    return service


class Nobody:
    """A worker without connections."""

    def deliver(self, from_user_id: str, to_user_id: str, text: str, now: Now) -> int:
        raise UserOffline(to_user_id)

    def kick(self, user_id: str, now: Now) -> int:
        return 0

    def revoke(self, user_id: str, now: Now) -> None:
        pass


def routes_of(service: OnlineStatusService, *, public_url: str | None = None) -> Routes:
    settings = Settings(
        server=ServerSettings(public_url=public_url),
        auth=AuthSettings(api_keys=(API_KEY,)),
        presence=PresenceSettings(user_types=("kol", "user")),
    )
    return Routes(settings, service, KEYS, ApiKeys([API_KEY]), actions=Nobody())


@pytest.fixture
def routes(service: OnlineStatusService) -> Routes:
    return routes_of(service)


def token(user_id: str = "u", now: int = NOW) -> str:
    return KEYS.issue(user_id, "user", room=None, expire_time=60, now=now)[0]


def request(
    method: str, path: str, body: object = None, *, bearer: str | None = API_KEY, host: str = "h:8080"
) -> Request:
    """A request through the real parser; a body that is no bytes is sent as JSON."""
    data = body if isinstance(body, bytes) else b"" if body is None else msgspec.json.encode(body)
    lines = [f"{method} {path} HTTP/1.1", f"Host: {host}", f"Content-Length: {len(data)}"]
    if bearer is not None:
        lines.append(f"Authorization: Bearer {bearer}")
    (found,) = RequestParser(65_536).feed("\r\n".join([*lines, "", ""]).encode() + data)
    return found


def refused(routes: Routes, found: Request) -> HttpError:
    with pytest.raises(HttpError) as caught:
        routes.handle(found, MOMENT)
    return caught.value


# rts-token.


def test_an_api_key_gets_a_token_that_verifies(routes: Routes) -> None:
    body = {"user_id": "kol_1", "user_type": "kol", "room_id": "r", "expire_time": 60}
    answer = routes.handle(request("POST", f"{BASE}/rts-token", body), MOMENT)
    claims = KEYS.verify(answer.pop("signature"), now=NOW)
    assert (claims.user_id, claims.user_type, claims.room, claims.expires_at) == ("kol_1", "kol", "r", NOW + 60)
    assert answer == {
        "user_id": "kol_1", "user_type": "kol", "room_id": "r", "expires_at": NOW + 60, "ws_url": "ws://h:8080/ws",
    }  # fmt: skip


def test_what_is_left_out_of_a_token_has_the_protocol_s_defaults(routes: Routes) -> None:
    answer = routes.handle(request("POST", f"{BASE}/rts-token", {"user_id": "u", "unknown": 1}), MOMENT)
    assert (answer["user_type"], answer["room_id"], answer["expires_at"]) == ("user", None, NOW + 3600)


@pytest.mark.parametrize("expire_time", [1, 86_400])
def test_a_token_may_live_from_a_second_to_a_day(routes: Routes, expire_time: int) -> None:
    body = {"user_id": "u", "expire_time": expire_time}
    assert routes.handle(request("POST", f"{BASE}/rts-token", body), MOMENT)["expires_at"] == NOW + expire_time


@pytest.mark.parametrize(
    ("public_url", "ws_url"),
    [
        (None, "ws://h:8080/ws"),
        ("https://chat.example", "wss://chat.example/ws"),
        ("http://chat.example:81/", "ws://chat.example:81/ws"),
        ("wss://chat.example/presence/ws", "wss://chat.example/presence/ws"),
        ("ws://chat.example/ws/", "ws://chat.example/ws"),
    ],
)
def test_the_url_to_connect_to_is_the_public_one(
    service: OnlineStatusService, public_url: str | None, ws_url: str
) -> None:
    routes = routes_of(service, public_url=public_url)
    assert routes.handle(request("POST", f"{BASE}/rts-token", {"user_id": "u"}), MOMENT)["ws_url"] == ws_url


@pytest.mark.parametrize("bearer", [None, "wrong", API_KEY + "x", API_KEY[:-1], API_KEY.upper()])
def test_only_an_api_key_gets_tokens(routes: Routes, bearer: str | None) -> None:
    error = refused(routes, request("POST", f"{BASE}/rts-token", {"user_id": "u"}, bearer=bearer))
    assert (error.status, error.code) == (401, "unauthorized")


def test_a_token_gets_no_other_token(routes: Routes) -> None:
    assert refused(routes, request("POST", f"{BASE}/rts-token", {"user_id": "u"}, bearer=token())).status == 401


def test_a_stranger_is_told_nothing_about_his_body(routes: Routes) -> None:
    for path in ("rts-token", "query"):
        assert refused(routes, request("POST", f"{BASE}/{path}", b"nonsense", bearer="wrong")).status == 401


# Asking for states.


def test_one_user_s_state_is_asked_with_a_token_or_an_api_key(routes: Routes, service: OnlineStatusService) -> None:
    for bearer in (API_KEY, token()):
        entry = routes.handle(request("GET", f"{BASE}/kol_1", bearer=bearer), MOMENT)
        assert entry == service.get_user_status("kol_1")
        assert (entry.status, entry.online, entry.last_seen) == ("busy", True, NOW)


def test_an_unknown_user_is_offline_and_not_404(routes: Routes) -> None:
    entry = routes.handle(request("GET", f"{BASE}/nobody"), MOMENT)
    assert entry == StatusEntry("nobody", "", "offline", False, None, 0)


def test_a_name_may_be_percent_encoded(routes: Routes) -> None:
    assert routes.handle(request("GET", f"{BASE}/kol%5f1"), MOMENT).status == "busy"
    assert routes.handle(request("GET", f"{BASE}/a%40b%3Ac"), MOMENT).user_id == "a@b:c"


@pytest.mark.parametrize("name", ["a%20b", "%2e%2e%2f", "a%2Fb", "%00", "a%0A", "%C3%BC", "x" * 129, "%ff", "a+b!"])
def test_a_name_that_nobody_can_have_is_422(routes: Routes, name: str) -> None:
    error = refused(routes, request("GET", f"{BASE}/{name}"))
    assert (error.status, error.code) == (422, "bad_field")
    assert error.message.startswith("user_id: ")


def test_a_query_has_an_entry_for_each_user_in_order(routes: Routes) -> None:
    body = {"user_ids": ["nobody", "kol_1", "nobody"]}
    answer = routes.handle(request("POST", f"{BASE}/query", body, bearer=token()), MOMENT)
    assert [(entry.user_id, entry.status) for entry in answer["user_status"]] == [
        ("nobody", "offline"), ("kol_1", "busy"), ("nobody", "offline"),
    ]  # fmt: skip


def test_a_query_may_ask_for_a_thousand_users_and_no_more(routes: Routes) -> None:
    names = [f"u{n}" for n in range(1001)]
    answer = routes.handle(request("POST", f"{BASE}/query", {"user_ids": names[:1000]}), MOMENT)
    assert len(answer["user_status"]) == 1000
    assert refused(routes, request("POST", f"{BASE}/query", {"user_ids": names})).status == 422


@pytest.mark.parametrize("bearer", [None, "wrong", "a.b.c", "x" * 5_000])
@pytest.mark.parametrize(("method", "path"), [("GET", "kol_1"), ("POST", "query")])
def test_without_a_credential_nothing_is_told(routes: Routes, method: str, path: str, bearer: str | None) -> None:
    error = refused(routes, request(method, f"{BASE}/{path}", {"user_ids": ["kol_1"]}, bearer=bearer))
    assert (error.status, error.code) == (401, "unauthorized")


def test_a_token_that_has_run_out_is_no_credential(routes: Routes) -> None:
    error = refused(routes, request("GET", f"{BASE}/kol_1", bearer=token(now=NOW - 60)))
    assert error.status == 401
    assert "expired" in error.message


# Asking wrongly.


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/"), ("GET", "/api"), ("GET", BASE), ("GET", BASE + "/"), ("POST", BASE),
        ("GET", "/api/online-statu/kol_1"), ("GET", BASE + "x/kol_1"), ("GET", BASE + "/a/b"), ("GET", "/wss"),
        ("GET", "/ws/"), ("GET", "/WS"), ("POST", BASE + "/query/"), ("GET", "//api/online-status/kol_1"),
        ("GET", BASE + "/rooms/r/x"), ("GET", BASE + "/rooms/"), ("POST", "/query"), ("OPTIONS", "*"),
    ],
)  # fmt: skip
def test_a_path_that_is_none_is_404(routes: Routes, method: str, path: str) -> None:
    assert refused(routes, request(method, path)).status == 404


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("GET", "rts-token", "POST"), ("PUT", "rts-token", "POST"), ("GET", "query", "POST"),
        ("DELETE", "query", "POST"),
        ("POST", "kol_1", "GET"), ("DELETE", "kol_1", "GET"), ("PATCH", "kol_1", "GET"),
    ],
)  # fmt: skip
def test_a_method_that_the_path_does_not_take_is_405_and_told_which(
    routes: Routes, method: str, path: str, allow: str
) -> None:
    error = refused(routes, request(method, f"{BASE}/{path}", {"user_ids": ["a"]}))
    assert error.status == 405
    assert error.headers == (("Allow", allow),)


def test_the_websocket_s_path_without_an_upgrade_is_426(routes: Routes) -> None:
    error = refused(routes, request("GET", "/ws"))
    assert error.status == 426
    assert ("Upgrade", "websocket") in error.headers


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"nonsense", b"\xff\xfe", b'{"user_id":"u"', b'{"user_id":"u"}x', b'{"user_id":"\xff"}',
     b"[" * 60_000, b'{"user_id":7,', b"user_id=u"],
)  # fmt: skip
@pytest.mark.parametrize("path", ["rts-token", "query"])
def test_a_body_that_is_no_json_is_400(routes: Routes, path: str, body: bytes) -> None:
    error = refused(routes, request("POST", f"{BASE}/{path}", body))
    assert (error.status, error.code) == (400, "bad_request")


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("rts-token", {}, "user_id"),
        ("rts-token", [], "frame"),
        ("rts-token", None, None),
        ("rts-token", "user", "frame"),
        ("rts-token", {"user_id": None}, "user_id"),
        ("rts-token", {"user_id": 7}, "user_id"),
        ("rts-token", {"user_id": ""}, "user_id"),
        ("rts-token", {"user_id": "a b"}, "user_id"),
        ("rts-token", {"user_id": "x" * 129}, "user_id"),
        ("rts-token", {"user_id": "u", "room_id": ""}, "room_id"),
        ("rts-token", {"user_id": "u", "room_id": 1}, "room_id"),
        ("rts-token", {"user_id": "u", "user_type": "admin"}, "user_type"),
        ("rts-token", {"user_id": "u", "user_type": None}, "user_type"),
        ("rts-token", {"user_id": "u", "expire_time": 0}, "expire_time"),
        ("rts-token", {"user_id": "u", "expire_time": 86_401}, "expire_time"),
        ("rts-token", {"user_id": "u", "expire_time": 1.5}, "expire_time"),
        ("rts-token", {"user_id": "u", "expire_time": "60"}, "expire_time"),
        ("rts-token", {"user_id": "u", "expire_time": True}, "expire_time"),
        ("query", {}, "user_ids"),
        ("query", {"user_ids": []}, "user_ids"),
        ("query", {"user_ids": "kol_1"}, "user_ids"),
        ("query", {"user_ids": ["kol_1", 7]}, "user_ids"),
        ("query", {"user_ids": ["not a name"]}, "user_ids"),
    ],
)
def test_a_wrong_field_is_422_and_named(routes: Routes, path: str, body: Any, field: str | None) -> None:
    error = refused(routes, request("POST", f"{BASE}/{path}", b"null" if body is None else body))
    assert (error.status, error.code) == (422, "bad_field")
    if field not in (None, "frame"):
        assert error.message.startswith(str(field))


def test_no_refusal_repeats_what_a_stranger_sent(routes: Routes) -> None:
    for body in ({"user_id": "SECRET !"}, {"user_id": "u", "user_type": "SECRET"}, {"user_id": {"SECRET": 1}}):
        assert "SECRET" not in refused(routes, request("POST", f"{BASE}/rts-token", body)).message
    assert "SECRET" not in refused(routes, request("GET", f"{BASE}/SECRET%20")).message
    assert "SECRET" not in refused(routes, request("GET", "/SECRET")).message
