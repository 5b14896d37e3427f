"""The HTTP requests of the public port: who may ask what, and the status of every way of asking wrongly."""

from typing import Any

import msgspec
import pytest

from fastpresence.credentials import ApiKeys
from fastpresence.errors import Unavailable, UserOffline
from fastpresence.http import HttpError, Request, RequestParser
from fastpresence.messages import CallCancelled, CallRejected, StatusEntry
from fastpresence.presence.service import OnlineStatusService
from fastpresence.presence.sessions import Now
from fastpresence.settings import AuthSettings, LimitsSettings, PresenceSettings, ServerSettings, Settings, TokenKey
from fastpresence.tokens import TokenKeys
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

    def revoke(self, user_id: str, now: Now) -> int:
        return now.wall_us // 1_000_000


def routes_of(service: OnlineStatusService, *, public_url: str | None = None, actions: Nobody | None = None) -> Routes:
    settings = Settings(
        server=ServerSettings(public_url=public_url),
        auth=AuthSettings(api_keys=(API_KEY,)),
        presence=PresenceSettings(user_types=("kol", "user")),
    )
    return Routes(settings, service, KEYS, ApiKeys([API_KEY]), actions=actions or Nobody())


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
        ("GET", BASE + "/rooms/r/x"), ("GET", BASE + "/rooms/"), ("POST", BASE + "/users/u"),
        ("POST", BASE + "/users//status"), ("POST", BASE + "/users/u/status/"), ("POST", BASE + "/users/u/nothing"),
        ("GET", BASE + "/tokens/x"), ("POST", BASE + "/poll/x"), ("POST", BASE + "/tokens/revoke/x"),
        ("POST", "/query"), ("OPTIONS", "*"),
    ],
)  # fmt: skip
def test_a_path_that_is_none_is_404(routes: Routes, method: str, path: str) -> None:
    assert refused(routes, request(method, path)).status == 404


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("PUT", "rts-token", "POST, GET, HEAD"), ("DELETE", "query", "POST, GET, HEAD"),
        ("PUT", "poll", "POST, GET, HEAD"), ("GET", "tokens/revoke", "POST"), ("HEAD", "tokens/revoke", "POST"),
        ("GET", "users/u/status", "POST"), ("PUT", "users/u/messages", "POST"), ("GET", "users/u/sessions", "DELETE"),
        ("POST", "users/u/sessions", "DELETE"), ("POST", "rooms/r", "GET, HEAD"), ("DELETE", "rooms/r", "GET, HEAD"),
        ("POST", "kol_1", "GET, HEAD"), ("DELETE", "kol_1", "GET, HEAD"), ("PATCH", "kol_1", "GET, HEAD"),
    ],
)  # fmt: skip
def test_a_method_that_the_path_does_not_take_is_405_and_told_which(
    routes: Routes, method: str, path: str, allow: str
) -> None:
    error = refused(routes, request(method, f"{BASE}/{path}", {"user_ids": ["a"]}))
    assert error.status == 405
    assert error.headers == (("Allow", allow),)


@pytest.mark.parametrize("user_id", ["poll", "query", "rts-token", "rooms", "users", "tokens", "online-status", "ws"])
def test_a_user_may_be_called_like_a_path(routes: Routes, service: OnlineStatusService, user_id: str) -> None:
    service.handle_user_online(user_id, "kol", status="away", now=MOMENT)
    for method in ("GET", "HEAD"):
        entry = routes.handle(request(method, f"{BASE}/{user_id}"), MOMENT)
        assert (entry.user_id, entry.status) == (user_id, "away")


@pytest.mark.parametrize(
    ("method", "path", "bearer", "status"),
    [
        ("POST", "query", API_KEY, None), ("POST", "poll", token(), None), ("OPTIONS", "poll", None, None),
        ("GET", "kol_1", API_KEY, None), ("DELETE", "users/u/sessions", API_KEY, None),
        ("POST", "poll", API_KEY, 401), ("POST", "query", "wrong", 401), ("POST", "rts-token", None, 401),
        ("POST", "users/u/messages", token(), 401), ("POST", "kol_1", API_KEY, 405), ("POST", "a/b", API_KEY, 404),
        ("OPTIONS", "a/b", None, 404), ("POST", "../../ws", API_KEY, 404),
    ],
)  # fmt: skip
def test_a_head_alone_tells_whether_its_body_is_worth_sending(
    routes: Routes, method: str, path: str, bearer: str | None, status: int | None
) -> None:
    found = request(method, f"{BASE}/{path}", bearer=bearer)
    if status is None:
        routes.admit(found, MOMENT)
        return
    with pytest.raises(HttpError) as caught:
        routes.admit(found, MOMENT)
    assert caught.value.status == status


def test_the_websocket_s_path_without_an_upgrade_is_426(routes: Routes) -> None:
    error = refused(routes, request("GET", "/ws"))
    assert error.status == 426
    assert ("Upgrade", "websocket") in error.headers


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"nonsense", b"\xff\xfe", b'{"user_id":"u"', b'{"user_id":"u"}x', b'{"user_id":"\xff"}',
     b"[" * 60_000, b'{"user_id":7,', b"user_id=u"],
)  # fmt: skip
@pytest.mark.parametrize(
    "path", ["rts-token", "query", "poll", "users/kol_1/status", "users/kol_1/messages", "tokens/revoke"]
)
def test_a_body_that_is_no_json_is_400(routes: Routes, path: str, body: bytes) -> None:
    error = refused(routes, request("POST", f"{BASE}/{path}", body, bearer=token() if path == "poll" else API_KEY))
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
        ("rts-token", {"user_id": "u", "watch": "u"}, "watch"),
        ("rts-token", {"user_id": "u", "rooms": ["a b"]}, "rooms"),
        ("rts-token", {"user_id": "u", "rooms": ["a-long-name"] * 1001}, "rooms"),
        ("rts-token", {"user_id": "u", "watch": [f"a-long-name-{n}" for n in range(500)]}, "watch"),
        ("poll", {"cursor": 1}, "cursor"),
        ("poll", {"status": "asleep"}, "status"),
        ("poll", {"rooms": {}}, "rooms"),
        ("poll", {"rooms": [f"r{n}" for n in range(51)]}, "rooms"),
        ("poll", {"user_ids": [1]}, "user_ids"),
        ("poll", {"user_ids": [f"u{n}" for n in range(5001)]}, "user_ids"),
        ("poll", {"device": ""}, "device"),
        ("poll", {"calls": [{"type": "call_accept", "call_id": "c"}]}, "calls[0].type"),
        ("poll", {"calls": [{"type": "call_end", "call_id": ""}]}, "calls[0].call_id"),
        ("poll", {"calls": [{"type": "call_end", "call_id": "c"}] * 101}, "calls"),
        ("users/kol_1/status", {}, "status"),
        ("users/kol_1/status", {"status": "hidden"}, "status"),
        ("users/a%20b/status", {"status": "busy"}, "user_id"),
        ("users/kol_1/messages", {"message": "m"}, "from_user_id"),
        ("users/kol_1/messages", {"from_user_id": "a"}, "message"),
        ("users/kol_1/messages", {"from_user_id": "a", "message": ""}, "message"),
        ("users/kol_1/messages", {"from_user_id": "a", "message": "m" * 8193}, "message"),
        ("users/%00/messages", {"from_user_id": "a", "message": "m"}, "user_id"),
        ("tokens/revoke", {}, "user_id"),
        ("tokens/revoke", {"user_id": ["u"]}, "user_id"),
    ],
)
def test_a_wrong_field_is_422_and_named(routes: Routes, path: str, body: Any, field: str | None) -> None:
    bearer = token() if path == "poll" else API_KEY
    error = refused(routes, request("POST", f"{BASE}/{path}", b"null" if body is None else body, bearer=bearer))
    assert (error.status, error.code) == (422, "bad_field")
    if field not in (None, "frame"):
        assert error.message.startswith(str(field))


def test_no_refusal_repeats_what_a_stranger_sent(routes: Routes) -> None:
    for body in ({"user_id": "SECRET !"}, {"user_id": "u", "user_type": "SECRET"}, {"user_id": {"SECRET": 1}}):
        assert "SECRET" not in refused(routes, request("POST", f"{BASE}/rts-token", body)).message
    calls = {"calls": [{"type": "SECRET", "call_id": "c"}]}
    assert "SECRET" not in refused(routes, request("POST", f"{BASE}/poll", calls, bearer=token())).message
    assert "SECRET" not in refused(routes, request("GET", f"{BASE}/SECRET%20")).message
    assert "SECRET" not in refused(routes, request("GET", "/SECRET")).message


# What only the application may, and what only a user may.


@pytest.mark.parametrize("bearer", [None, "wrong", "a.b.c", token()])
@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "users/kol_1/status", {"status": "away"}),
        ("POST", "users/kol_1/messages", {"message": "m", "from_user_id": "a"}),
        ("DELETE", "users/kol_1/sessions", None),
        ("POST", "tokens/revoke", {"user_id": "kol_1"}),
        ("POST", "users/a%20b/status", b"no JSON"),
    ],
)
def test_the_application_s_requests_are_its_own(
    routes: Routes, service: OnlineStatusService, method: str, path: str, body: object, bearer: str | None
) -> None:
    error = refused(routes, request(method, f"{BASE}/{path}", body, bearer=bearer))
    assert (error.status, error.code) == (401, "unauthorized")
    assert service.get_user_status("kol_1").status == "busy"


@pytest.mark.parametrize("bearer", [None, "wrong", API_KEY, token(now=NOW - 60)])
def test_nobody_polls_for_another(routes: Routes, bearer: str | None) -> None:
    assert refused(routes, request("POST", f"{BASE}/poll", {}, bearer=bearer)).status == 401


def test_one_who_polls_is_present_and_one_whose_poll_is_refused_is_not(
    routes: Routes, service: OnlineStatusService
) -> None:
    stranger = KEYS.issue("x", "admin", room=None, expire_time=60, now=NOW)[0]
    assert refused(routes, request("POST", f"{BASE}/poll", {}, bearer=stranger)).status == 403
    narrow = KEYS.issue("x", "user", room=None, expire_time=60, now=NOW, rooms=("r",))[0]
    assert refused(routes, request("POST", f"{BASE}/poll", {"rooms": ["s"]}, bearer=narrow)).status == 403
    assert refused(routes, request("POST", f"{BASE}/poll", {"status": 1}, bearer=narrow)).status == 422
    assert service.record("x") is None
    answer = routes.handle(request("POST", f"{BASE}/poll", {"status": "away"}, bearer=narrow), MOMENT)
    assert (answer["full"], [entry.user_id for entry in answer["user_status"]]) == (True, ["kol_1"])
    assert service.get_user_status("x").status == "away"


def test_a_user_who_polls_too_often_is_told_when_to_come_again(service: OnlineStatusService) -> None:
    routes = routes_of(service)
    found = request("POST", f"{BASE}/poll", {}, bearer=token())
    for _ in range(LimitsSettings().burst):
        routes.handle(found, MOMENT)
    error = refused(routes, found)
    assert (error.status, error.code, error.headers) == (429, "rate_limited", (("Retry-After", "1"),))
    routes.handle(request("POST", f"{BASE}/poll", {}, bearer=token("another")), MOMENT)


def test_polls_that_ask_for_thousands_count_as_many(service: OnlineStatusService) -> None:
    routes = routes_of(service)
    long = request("POST", f"{BASE}/poll", {"user_ids": [f"user_{n}" for n in range(4_600)]}, bearer=token())
    for _ in range(5):  # of 1 + 23 each
        routes.handle(long, MOMENT)
    assert refused(routes, long).status == 429


@pytest.mark.parametrize(
    ("caller", "kind", "told"),
    [
        ("u", "call_end", CallCancelled), ("u", "call_cancel", CallCancelled), ("u", "call_reject", None),
        ("kol_1", "call_end", CallRejected), ("kol_1", "call_reject", CallRejected), ("kol_1", "call_cancel", None),
    ],
)  # fmt: skip
def test_a_poll_hangs_up_as_a_frame_would(
    routes: Routes, service: OnlineStatusService, caller: str, kind: str, told: type[object] | None
) -> None:
    (host,) = service.sessions_of("kol_1")
    service.handle_status_change(host, "online", now=MOMENT)
    mine = service.handle_user_online("u", "user", connection="a socket", device="d", now=MOMENT)
    to_user_id = "kol_1" if caller == "u" else "u"
    service.handle_call(mine if caller == "u" else host, "c", to_user_id, video=True, audio=True, now=MOMENT)
    service.handle_connection_lost(mine, last_heard_ms=MOMENT.ms, now=MOMENT)
    service.calls.outbox.clear()
    body = {"device": "d", "calls": [{"type": kind, "call_id": call_id} for call_id in ("unknown", "c")]}
    assert routes.handle(request("POST", f"{BASE}/poll", body, bearer=token()), MOMENT)["full"]
    assert [type(frame) for session, frame in service.calls.outbox if session is host] == ([told] if told else [])


class Somebody(Nobody):
    """A worker that does as it is told."""

    def __init__(self) -> None:
        self.did: list[tuple[object, ...]] = []

    def deliver(self, from_user_id: str, to_user_id: str, text: str, now: Now) -> int:
        self.did.append(("deliver", from_user_id, to_user_id, text))
        if to_user_id == "full":
            raise Unavailable("no room")
        return 2

    def kick(self, user_id: str, now: Now) -> int:
        self.did.append(("kick", user_id))
        return 3

    def revoke(self, user_id: str, now: Now) -> int:
        self.did.append(("revoke", user_id))
        return now.wall_us // 1_000_000


def test_what_the_application_asks_for_is_done_to_the_user_it_names(service: OnlineStatusService) -> None:
    worker = Somebody()
    routes = routes_of(service, actions=worker)

    def ask(method: str, path: str, body: object = None) -> Any:
        return routes.handle(request(method, f"{BASE}/{path}", body), MOMENT)

    message = {"message": "m", "from_user_id": "a"}
    assert ask("POST", "users/kol%5f1/messages", message) == {"delivered": 2}
    assert ask("DELETE", "users/a%40b/sessions") == {"user_id": "a@b", "disconnected": 3}
    assert ask("POST", "tokens/revoke", {"user_id": "u"}) == {"user_id": "u", "revoked_until": NOW}
    assert worker.did == [("deliver", "a", "kol_1", "m"), ("kick", "a@b"), ("revoke", "u")]
    assert ask("POST", "users/kol_1/status", {"status": "away"}) == service.get_user_status("kol_1")
    assert service.get_user_status("kol_1").status == "away"
    for path, body, status, code in [
        ("users/full/messages", message, 503, "unavailable"),
        ("users/nobody/status", {"status": "busy"}, 409, "not_online"),
    ]:
        error = refused(routes, request("POST", f"{BASE}/{path}", body))
        assert (error.status, error.code) == (status, code)
    error = refused(routes_of(service), request("POST", f"{BASE}/users/nobody/messages", message))
    assert (error.status, error.code) == (409, "user_offline")


def test_a_room_s_state_is_its_roster_or_its_number(service: OnlineStatusService) -> None:
    routes = routes_of(service)

    def room() -> Any:
        return routes.handle(request("GET", f"{BASE}/rooms/r"), MOMENT)

    assert room() == {"room": "r", "count": 0, "user_status": []}
    sessions = [
        service.handle_user_online(f"u{n}", rooms=["r"], connection=f"socket {n}", now=MOMENT) for n in range(3)
    ]
    service.handle_status_change(sessions[0], "offline", now=MOMENT)
    service.leave_room(sessions[1], "socket 1", "r", now=MOMENT)
    assert room() == {"room": "r", "count": 1, "user_status": [service.get_user_status("u2")]}
    service.audience.rooms["r"].crowded = True
    assert room() == {"room": "r", "count": 1}


def test_what_a_token_does_not_allow_is_403_and_names_nobody(routes: Routes) -> None:
    narrow = KEYS.issue("u", "user", room="own", expire_time=60, now=NOW, watch=("kol_1",), rooms=("r",))[0]
    for method, path, body, allowed in [
        ("GET", "kol_1", None, True),
        ("GET", "u", None, True),
        ("GET", "kol_2", None, False),
        ("GET", "rooms/r", None, True),
        ("GET", "rooms/own", None, True),
        ("GET", "rooms/s", None, False),
        ("POST", "query", {"user_ids": ["kol_1", "u"]}, True),
        ("POST", "query", {"user_ids": ["kol_1", "kol_2"]}, False),
        ("POST", "poll", {"user_ids": ["kol_1"], "rooms": ["r"]}, True),
        ("POST", "poll", {"user_ids": ["kol_2"]}, False),
        ("POST", "poll", {"rooms": ["s"]}, False),
    ]:
        found = request(method, f"{BASE}/{path}", body, bearer=narrow)
        if allowed:
            routes.handle(found, MOMENT)
        else:
            error = refused(routes, found)
            assert (error.status, error.code) == (403, "forbidden"), path
            assert "kol_2" not in error.message
