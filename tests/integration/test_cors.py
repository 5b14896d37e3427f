"""Web pages of other origins: which of them may use the HTTP requests, and how their browsers are told."""

import asyncio
from collections.abc import Iterator

import pytest

from tests.support.clients import RawClient
from tests.support.server import API_KEY, Server, shared

BASE = "/api/online-status"
OURS, DEV, THEIRS = "https://ours.example", "http://dev.example:5173", "https://theirs.example"

#: Every path, and what it takes.
PATHS = {
    "rts-token": "POST, GET, HEAD",  # it may be a user, too
    "query": "POST, GET, HEAD",
    "poll": "POST, GET, HEAD",
    "tokens/revoke": "POST",
    "users/u/status": "POST",
    "users/u/messages": "POST",
    "users/u/sessions": "DELETE",
    "rooms/r": "GET, HEAD",
    "kol_1": "GET, HEAD",
}


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    yield from shared({"server.allowed_origins": f"{OURS},http://dev.example:*"})


Response = tuple[int, dict[str, str], bytes]


def exchange(server: Server, *requests: str) -> list[Response]:
    """Requests on one connection, one after the other, and their responses."""

    async def run() -> list[Response]:
        async with RawClient.open(server) as raw:
            responses = []
            for request in requests:
                raw.send(request.encode())
                responses.append(await raw.response())
            return responses

    return asyncio.run(run())


def request(method: str, path: str, *headers: str) -> str:
    lines = [f"{method} {path} HTTP/1.1", "Host: presence.example:8080", *headers, "", ""]
    return "\r\n".join(lines)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("origin", [OURS, DEV, "https://presence.example:8080", "http://presence.example:8080"])
def test_a_browser_that_asks_first_is_told_what_the_path_takes(server: Server, path: str, origin: str) -> None:
    asked = [
        f"Origin: {origin}",
        "Access-Control-Request-Method: POST",
        "Access-Control-Request-Headers: authorization",
    ]
    # Without a credential: a browser sends none with this question. The connection goes on behind the answer.
    answers = exchange(server, *[request("OPTIONS", f"{BASE}/{path}", *asked)] * 2)
    for status, headers, body in answers:
        assert (status, body) == (204, b"")
        assert headers["access-control-allow-origin"] == origin
        assert headers["vary"] == "Origin"
        assert headers["access-control-allow-methods"] == f"{PATHS[path]}, OPTIONS" == headers["allow"]
        assert headers["access-control-allow-headers"] == "Authorization, Content-Type"
        assert headers["access-control-max-age"] == "600"
        assert "content-length" not in headers  # RFC 9110, section 8.6
        assert "access-control-allow-credentials" not in headers


@pytest.mark.parametrize(
    "origin",
    [THEIRS, "null", "https://ours.example:444", "http://ours.example", "https://ours.example.theirs.example",
     "https://ours.example/", "http://dev.example.theirs.example:5173", "https://dev.example:5173", "ours.example",
     "https://presence.example", "https://x@presence.example:8080", "http://dev.example:port", "https://[::1"],
)  # fmt: skip
def test_a_page_of_another_origin_is_told_nothing_it_could_use(server: Server, origin: str) -> None:
    asked = [f"Origin: {origin}", f"Authorization: Bearer {API_KEY}"]
    preflight, got = exchange(
        server, request("OPTIONS", f"{BASE}/poll", asked[0]), request("GET", f"{BASE}/kol_1", *asked)
    )
    assert preflight[0] == 403
    assert got[0] == 200  # it is the browser who keeps it from the page
    for _, headers, _ in (preflight, got):
        assert not [name for name in headers if name.startswith("access-control")]
        assert headers["vary"] == "Origin"


def test_who_is_no_page_is_answered_as_ever(server: Server) -> None:
    options, got = exchange(
        server,
        request("OPTIONS", f"{BASE}/poll"),
        request("GET", f"{BASE}/kol_1", f"Authorization: Bearer {API_KEY}"),
    )
    assert (options[0], options[1]["allow"]) == (204, "POST, GET, HEAD, OPTIONS")
    assert got[0] == 200
    for _, headers, _ in (options, got):
        assert not [name for name in headers if name.startswith(("access-control", "vary"))]


@pytest.mark.parametrize(
    ("method", "path", "key", "status"),
    [
        ("GET", f"{BASE}/kol_1", API_KEY, 200),
        ("GET", f"{BASE}/rooms/r", API_KEY, 200),
        ("GET", f"{BASE}/kol_1", "wrong", 401),
        ("GET", f"{BASE}/a%20b", API_KEY, 422),
        ("POST", f"{BASE}/poll", API_KEY, 401),
        ("POST", f"{BASE}/query", API_KEY, 400),
        ("POST", f"{BASE}/kol_1", API_KEY, 405),
        ("DELETE", f"{BASE}/users/u/sessions", API_KEY, 200),
        ("POST", f"{BASE}/users/u/messages", "wrong", 401),
        ("GET", "/nowhere", API_KEY, 404),
    ],
)
def test_a_page_of_ours_may_read_every_answer_errors_too(
    server: Server, method: str, path: str, key: str, status: int
) -> None:
    asked = [f"Origin: {OURS}", f"Authorization: Bearer {key}"]
    if method == "POST":
        asked.append("Content-Length: 0")
    ((got, headers, body),) = exchange(server, request(method, path, *asked))
    assert got == status
    assert headers["access-control-allow-origin"] == OURS
    assert headers["vary"] == "Origin"
    assert body


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        (["Content-Length: 65537"], 413),
        (["Transfer-Encoding: gzip"], 400),
        (["Content-Length: x"], 400),
        (["a: b"] * 65, 431),
    ],
)
def test_a_page_of_ours_may_read_why_its_request_was_none(server: Server, headers: list[str], status: int) -> None:
    for origin, readable in ((OURS, True), (THEIRS, False)):
        ((got, received, _),) = exchange(server, request("POST", f"{BASE}/poll", f"Origin: {origin}", *headers))
        assert got == status
        assert received.get("access-control-allow-origin") == (origin if readable else None)
        assert received["vary"] == "Origin"


def test_options_of_a_path_that_is_none_is_404_and_two_origins_are_none(server: Server) -> None:
    ((status, headers, _),) = exchange(server, request("OPTIONS", "/nowhere", f"Origin: {OURS}"))
    assert (status, headers["access-control-allow-origin"]) == (404, OURS)
    ((status, headers, _),) = exchange(
        server, request("OPTIONS", f"{BASE}/poll", f"Origin: {OURS}", f"Origin: {THEIRS}")
    )
    assert status in (204, 403)
    assert "access-control-allow-origin" not in headers
