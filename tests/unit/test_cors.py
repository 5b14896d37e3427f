"""Origins: which pages are ours, whatever they are written like, and what a browser's question is answered with."""

import pytest

from fastpresence.http import HttpError, Request
from fastpresence.worker.cors import Origins, preflight

HOST = "presence.example:8080"
ORIGINS = Origins(("https://ours.example", "http://dev.example:*", "http://[::1]:*"))


@pytest.mark.parametrize(
    "origin",
    ["https://ours.example", "HTTPS://Ours.Example", "http://dev.example", "http://dev.example:1", "http://dev.example:65535",
     "http://[::1]:5173", f"https://{HOST}", f"http://{HOST}", "http://PRESENCE.example:8080"],
)  # fmt: skip
def test_listed_origins_any_port_where_so_said_and_the_same_host_are_ours(origin: str) -> None:
    assert ORIGINS.allows(origin, HOST)


@pytest.mark.parametrize(
    "origin",
    ["", "null", "*", "https://", "https://ours.example:443", "http://ours.example", "https://ours.example/",
     "https://ours.example.evil.example", "https://evil.example/https://ours.example", "https://ours.example#x",
     "https://user@ours.example", f"https://user@{HOST}", "ftp://dev.example", f"ftp://{HOST}", "http://dev.example:",
     "http://dev.example:x", "http://dev.example:65536", "http://dev.example:1:2", "https://dev.example:1", "http://[::1",
     "presence.example:8080", "https://presence.example", "https://sub.presence.example:8080", f"https://{HOST}/"],
)  # fmt: skip
def test_everything_else_is_not(origin: str) -> None:
    assert not ORIGINS.allows(origin, HOST)


def test_without_a_list_only_the_same_host_is_ours() -> None:
    assert Origins(()).allows(f"https://{HOST}", HOST)
    assert not Origins(()).allows("https://ours.example", HOST)
    assert not Origins(()).allows("https://ours.example", "")


def asked(*origins: str) -> Request:
    headers = [(b"host", HOST.encode()), *((b"origin", origin.encode("latin-1")) for origin in origins)]
    return Request("OPTIONS", b"/", headers, True)


def test_an_answer_names_the_page_that_asked_and_no_other() -> None:
    assert ORIGINS.headers(asked("https://ours.example")) == (
        ("Access-Control-Allow-Origin", "https://ours.example"),
        ("Vary", "Origin"),
    )
    assert ORIGINS.headers(asked("https://evil.example")) == (("Vary", "Origin"),)
    assert ORIGINS.headers(asked("https://\xe9vil.example")) == (("Vary", "Origin"),)
    assert ORIGINS.headers(asked()) == ()
    assert ORIGINS.headers(asked("https://ours.example", "https://evil.example")) == ()


def test_a_question_is_answered_with_what_the_path_takes() -> None:
    ours = preflight(("GET", "POST"), ORIGINS.headers(asked("https://ours.example")), keep_alive=True)
    assert ours.startswith(b"HTTP/1.1 204 ")
    assert b"\r\nAccess-Control-Allow-Methods: GET, POST, OPTIONS\r\n" in ours
    nobody = preflight(("GET",), (), keep_alive=False)
    assert b"Access-Control" not in nobody
    assert b"\r\nAllow: GET, OPTIONS\r\n" in nobody
    assert b"\r\nConnection: close\r\n" in nobody
    with pytest.raises(HttpError) as caught:
        preflight(("GET",), ORIGINS.headers(asked("https://evil.example")), keep_alive=True)
    assert (caught.value.status, caught.value.headers) == (403, ())
