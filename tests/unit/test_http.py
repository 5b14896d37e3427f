"""The HTTP parser: requests come out however their bytes are cut, and whatever a stranger may make grow is bounded."""

import tracemalloc

import httptools
import pytest

from fastpresence.http import HEAD_MAX, HEADERS_MAX, HttpError, Request, RequestParser, answer, answer_error

BODY_SIZE = 1_000


def parse(data: bytes, chunk: int | None = None, body_size: int = BODY_SIZE) -> list[Request]:
    """The requests in `data`, fed at once or in chunks."""
    parser = RequestParser(body_size)
    found: list[Request] = []
    step = chunk or max(len(data), 1)
    for at in range(0, len(data), step):
        found += parser.feed(data[at : at + step])
        if found and found[-1].upgrade:
            found[-1].after += data[at + step :]  # as the owner would: the parser is of no more use
            break
    return found


def shape(request: Request) -> tuple[object, ...]:
    return (
        request.method, request.path, request.query_string, request.headers, request.body, request.keep_alive,
        request.upgrade, request.after,
    )  # fmt: skip


def both(data: bytes) -> list[Request]:
    """What comes of `data` fed whole; the same must come of it byte by byte."""
    whole = parse(data)
    assert [shape(request) for request in parse(data, 1)] == [shape(request) for request in whole]
    return whole


def refusal(data: bytes, chunk: int | None = None) -> int:
    with pytest.raises(HttpError) as caught:
        parse(data, chunk)
    return caught.value.status


def refused(data: bytes) -> int:
    """The status of the refusal, which does not depend on how the bytes are cut."""
    whole = refusal(data)
    for chunk in (1, 7, 1000):
        assert refusal(data, chunk) == whole
    return whole


GET = b"GET /a/b?x=1 HTTP/1.1\r\nHost: h\r\n\r\n"
POST = b"POST /p HTTP/1.1\r\nHost: h\r\nContent-Length: 4\r\n\r\nbody"
CHUNKED = b"POST /p HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"
UPGRADE = b"GET /ws HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"


def test_a_request_has_its_parts() -> None:
    (request,) = both(b"GET /a/b%20c/?x=1&y=%2f&x=2&z HTTP/1.1\r\nHost: h:80\r\nX-One: 1\r\nx-one: 2\r\n\r\n")
    assert (request.method, request.path, request.query_string) == ("GET", "/a/b%20c/", b"x=1&y=%2f&x=2&z")
    assert request.segments() == ["a", "b c", ""]
    assert request.query() == {"x": "2", "y": "/", "z": ""}
    assert request.header(b"host") == "h:80"
    assert request.header(b"x-one") == "1"
    assert request.header(b"absent") is None
    assert request.body == b""
    assert request.keep_alive
    assert not request.upgrade


def test_a_header_that_comes_several_times_is_one_list() -> None:
    (request,) = both(b"GET / HTTP/1.1\r\nHost: h\r\nX: a, b\r\nY: c\r\nx: d,,e \r\n\r\n")
    assert request.all(b"x") == ["a", "b", "d", "e"]
    assert request.all(b"z") == []


@pytest.mark.parametrize(
    ("value", "token"),
    [
        (b"Bearer abc", "abc"),
        (b"bearer abc", "abc"),
        (b"BEARER   abc  ", "abc"),
        (b"Bearer", None),
        (b"Bearer ", None),
        (b"Basic abc", None),
        (b"abc", None),
        (b"", None),
    ],
)
def test_the_bearer_is_what_follows_the_scheme(value: bytes, token: str | None) -> None:
    (request,) = parse(b"GET / HTTP/1.1\r\nHost: h\r\nAuthorization: " + value + b"\r\n\r\n")
    assert request.bearer() == token


def test_a_body_is_as_long_as_it_says() -> None:
    (request,) = both(POST)
    assert request.body == b"body"


def test_a_chunked_body_is_put_together() -> None:
    (request,) = both(CHUNKED + b"3\r\nabc\r\n1;ext=1\r\nd\r\nA\r\n0123456789\r\n0\r\nTrailer: x\r\n\r\n")
    assert request.body == b"abcd0123456789"


def test_requests_of_one_connection_come_out_in_order() -> None:
    found = both(GET + POST + CHUNKED + b"1\r\nx\r\n0\r\n\r\n" + GET)
    assert [(request.method, request.body) for request in found] == [
        ("GET", b""), ("POST", b"body"), ("POST", b"x"), ("GET", b""),
    ]  # fmt: skip


def test_a_thousand_requests_on_one_connection_do_not_add_up() -> None:
    assert len(parse(GET * 1000, 100)) == 1000


def test_bytes_behind_an_upgrade_are_left_as_they_are() -> None:
    (request,) = both(UPGRADE + b"\x81\x85\r\n\r\n\0")
    assert request.upgrade
    assert request.after == b"\x81\x85\r\n\r\n\0"


def test_an_upgrade_may_follow_other_requests() -> None:
    first, second = both(GET + UPGRADE + b"\x81")
    assert (first.upgrade, second.upgrade, second.after) == (False, True, b"\x81")


def test_an_upgrade_without_the_connection_s_word_is_none() -> None:
    (request,) = both(UPGRADE.replace(b"Connection: Upgrade\r\n", b""))
    assert not request.upgrade


def test_a_connection_that_says_close_is_not_kept() -> None:
    (request,) = both(b"GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
    assert not request.keep_alive


def test_half_a_request_is_none_yet() -> None:
    for data in (GET[:-1], POST[:-1], CHUNKED + b"3\r\nab", b""):
        assert parse(data, 1) == []


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03" + bytes(20),  # a TLS hello
        b"\0" * 10,
        b"hello\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\nHost: h\r\n\r\n",
        b"G@T / HTTP/1.1\r\nHost: h\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET / HTTP/1.0\r\nHost: h\r\n\r\n",
        b"GET /\0 HTTP/1.1\r\nHost: h\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost : h\r\n\r\n",
        b"GET / HTTP/1.1\r\n: h\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: h\0\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",  # no Host
        b"GET / HTTP/1.1\r\nHost: h\r\nhost: h\r\n\r\n",  # two
        b"GET / HTTP/1.1\r\nHost: h\r\nHost: g\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: -1\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 1x\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 99999999999999999999999\r\n\r\n",
        CHUNKED + b"x\r\n",
        CHUNKED + b"-1\r\n",
        CHUNKED + b"fffffffffffffffff\r\n",
        CHUNKED + b"1\r\nabc\r\n",
    ],
)
def test_what_is_no_valid_request_is_400(data: bytes) -> None:
    assert refused(data) == 400


def test_a_body_that_is_announced_too_long_is_413_before_it_comes() -> None:
    assert parse(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 1000\r\n\r\n" + b"x" * 1000)[0].body == b"x" * 1000
    assert refused(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 1001\r\n\r\n") == 413


def test_a_chunked_body_that_grows_too_long_is_413() -> None:
    assert parse(CHUNKED + b"3E8\r\n" + b"x" * 1000 + b"\r\n0\r\n\r\n")[0].body == b"x" * 1000
    assert refused(CHUNKED + b"3E8\r\n" + b"x" * 1000 + b"\r\n1\r\nx\r\n") == 413
    assert refused(CHUNKED + b"3E9\r\n" + b"x" * 1001 + b"\r\n") == 413


EXPECT = b"POST /p HTTP/1.1\r\nHost: h\r\nOrigin: o\r\nExpect: 100-Continue\r\n%b\r\n"


@pytest.mark.parametrize("length", [b"Content-Length: 4\r\n", b"Transfer-Encoding: chunked\r\n"])
def test_a_client_that_waits_for_a_word_is_known_once_its_head_is_whole(length: bytes) -> None:
    parser = RequestParser(BODY_SIZE)
    head = EXPECT % length
    assert parser.feed(GET + head[:-1]) != []
    assert parser.expecting() is None
    assert parser.feed(head[-1:]) == []
    expecting = parser.expecting()
    assert expecting is not None
    assert (expecting.method, expecting.path, expecting.header(b"origin")) == ("POST", "/p", "o")
    assert parser.expecting() is None  # it is told one word
    (request,) = parser.feed(b"body" if length.startswith(b"C") else b"4\r\nbody\r\n0\r\n\r\n")
    assert (request.body, parser.expecting()) == (b"body", None)


@pytest.mark.parametrize(
    "data",
    [EXPECT % b"Content-Length: 4\r\n" + b"b", EXPECT % b"Content-Length: 4\r\n" + b"body",
     EXPECT % b"Content-Length: 0\r\n", EXPECT % b"", POST, POST[:-1]],
)  # fmt: skip
def test_a_client_whose_body_is_there_or_that_has_none_waits_for_nothing(data: bytes) -> None:
    parser = RequestParser(BODY_SIZE)
    parser.feed(data)
    assert parser.expecting() is None


@pytest.mark.parametrize("value", [b"", b"100", b"101-continue", b"100-continue, x", b"100-continue;q=1"])
def test_another_expectation_is_417(value: bytes) -> None:
    assert refused(b"POST /p HTTP/1.1\r\nHost: h\r\nExpect: " + value + b"\r\nContent-Length: 4\r\n\r\n") == 417


def test_an_expectation_of_a_body_that_is_too_long_is_413() -> None:
    assert refused(EXPECT % b"Content-Length: 1001\r\n") == 413


@pytest.mark.parametrize(
    ("data", "method"),
    [(b"HEAD /p HTTP/1.1\r\nHost: h\r\nOrigin: o\r\nContent-Length: 1001\r\n\r\n", "HEAD"),
     (GET + b"POST /p HTTP/1.1\r\nHost: h\r\nOrigin: o\r\nTransfer-Encoding: gzip\r\n\r\n", "POST"),
     (b"POST /p HTTP/1.1\r\nOrigin: o\r\n\r\n", "POST"),
     (CHUNKED.replace(b"Host: h", b"Host: h\r\nOrigin: o") + b"3E9\r\n" + b"x" * 1001, "POST"),
     (b"GET /p HTTP/1.1\r\nHost: h\r\nOrigin: o\r\n" + b"a: b\r\n" * (HEADERS_MAX + 1), "")],
)  # fmt: skip
def test_of_a_request_that_is_refused_its_head_is_known_as_far_as_it_came(data: bytes, method: str) -> None:
    parser = RequestParser(BODY_SIZE)
    with pytest.raises(HttpError):
        parser.feed(data)
    assert (parser.head.method, parser.head.header(b"origin")) == (method, "o")


def test_of_a_request_that_is_over_nothing_is_left_for_the_next() -> None:
    parser = RequestParser(BODY_SIZE)
    parser.feed(b"GET /p HTTP/1.1\r\nHost: h\r\nOrigin: o\r\n\r\n")
    with pytest.raises(HttpError):
        parser.feed(b"nonsense\r\n\r\n")
    assert (parser.head.method, parser.head.header(b"origin")) == ("", None)


def test_a_target_that_is_too_long_is_414_or_431() -> None:
    assert parse(b"GET /" + b"a" * 8_000 + b" HTTP/1.1\r\nHost: h\r\n\r\n")
    whole = b"GET /" + b"a" * HEAD_MAX + b" HTTP/1.1\r\nHost: h\r\n\r\n"
    assert refusal(whole) in (414, 431)
    assert refusal(whole, 1) in (414, 431)
    assert refusal(b"GET /" + b"a" * 1_000_000, 1000) in (414, 431)


@pytest.mark.parametrize(
    "headers",
    [
        b"X: " + b"a" * HEAD_MAX + b"\r\n",
        b"X" * HEAD_MAX + b": a\r\n",
        b"".join(b"X-%d: " % n + b"a" * 1_000 + b"\r\n" for n in range(20)),
        b"".join(b"X-%d: a\r\n" % n for n in range(HEADERS_MAX)),  # and Host
    ],
    ids=["value", "name", "together", "number"],
)
def test_a_head_that_is_too_long_is_431(headers: bytes) -> None:
    assert refused(b"GET / HTTP/1.1\r\nHost: h\r\n" + headers + b"\r\n") == 431


def test_a_head_within_its_limits_is_taken() -> None:
    headers = b"".join(b"X-%d: " % n + b"a" * 240 + b"\r\n" for n in range(HEADERS_MAX - 1))
    assert len(both(b"GET / HTTP/1.1\r\nHost: h\r\n" + headers + b"\r\n")[0].headers) == HEADERS_MAX


@pytest.mark.parametrize(
    ("begin", "more"),
    [
        (b"GET /", b"a" * 1000),
        (b"GET / HTTP/1.1\r\nHost: h\r\nX: ", b"a" * 1000),
        (b"GET / HTTP/1.1\r\nHost: h\r\n", b"X: a\r\n" * 100),
        (b"GET / HTTP/1.1\r\nHost: h\r\n", b"X" * 1000),
        (CHUNKED, b"1\r\nx\r\n" * 100),
        (CHUNKED, b"0" * 1000),
        (CHUNKED + b"1;", b"x" * 1000),
        (CHUNKED + b"1\r\nx\r\n0\r\nX: ", b"a" * 1000),  # a trailer without end
        (CHUNKED + b"1\r\nx\r\n0\r\n", b"X: a\r\n" * 100),
        (b"\r\n", b"\r\n" * 500),
    ],
    ids=["target", "value", "headers", "name", "chunks", "size", "extension", "trailer", "trailers", "blank"],
)
def test_no_request_grows_without_end(begin: bytes, more: bytes) -> None:
    """Two megabytes of something endless are refused long before, and cost little until then."""
    parser = RequestParser(BODY_SIZE)
    tracemalloc.start()
    try:
        parser.feed(begin)
        with pytest.raises(HttpError) as caught:
            any(parser.feed(more) for _ in range(2_000))
        assert tracemalloc.get_traced_memory()[1] < 200_000
    finally:
        tracemalloc.stop()
    assert caught.value.status in (400, 413, 414, 431)


def test_a_refusal_names_no_library() -> None:
    with pytest.raises(HttpError) as caught:
        parse(b"\0\0\0")
    assert isinstance(caught.value.__cause__, httptools.HttpParserError)
    assert "http" not in caught.value.message.replace("HTTP/1.1", "")


def test_an_answer_is_a_whole_response() -> None:
    assert answer(200, {"a": 1}) == (
        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 7\r\nCache-Control: no-store\r\n\r\n"
        b'{"a":1}'
    )
    assert answer(204) == b"HTTP/1.1 204 No Content\r\nCache-Control: no-store\r\n\r\n"


def test_the_answer_to_a_head_has_the_headers_alone() -> None:
    head, _, body = answer(200, {"a": 1}).partition(b"\r\n\r\n")
    assert body
    assert answer(200, {"a": 1}, is_head=True) == head + b"\r\n\r\n"
    assert answer_error(HttpError(404, "not_found", "m"), is_head=True).endswith(b"\r\n\r\n")


def test_an_answer_says_when_it_is_the_last() -> None:
    assert b"\r\nConnection: close\r\n" in answer(200, {}, keep_alive=False)
    assert b"Connection" not in answer(200, {})


def test_an_error_is_answered_with_its_body_and_headers() -> None:
    response = answer_error(HttpError(429, "rate_limited", "later", (("Retry-After", "5"),)))
    head, _, body = response.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 429 Too Many Requests\r\n")
    assert b"\r\nRetry-After: 5" in head
    assert b"\r\nConnection: close" in head
    assert body == b'{"error":{"code":"rate_limited","message":"later"}}'
