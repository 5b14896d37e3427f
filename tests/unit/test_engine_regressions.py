"""What a review of the engine and of its neighbours found: each fault once, so that it does not come back."""

import contextlib
import gc

import pytest

from fastpresence.http import HttpError, RequestParser

CHUNKED = b"POST /p HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\nHost: h\r\nX: half a he",
        b"GET / HTTP/1.1\r\nHost: h\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: h\r\n" + b"A: b\r\n" * 100 + b"\r\n",
        b"no request\r\n\r\n",
    ],
    ids=["half", "whole", "upgrade", "refused by us", "refused in a header", "refused by the library"],
)
def test_a_connection_that_spoke_http_leaves_no_cycle(data: bytes) -> None:
    # The worker's full collections are off: a cycle that grew old with its connection would stay for good.
    gc.collect()
    gc.disable()
    try:
        parser = RequestParser(1_000)
        with contextlib.suppress(HttpError):
            parser.feed(data)
        del parser
        assert gc.collect() == 0
    finally:
        gc.enable()


def test_a_trailer_is_no_header_and_brings_no_credential() -> None:
    [request] = RequestParser(1_000).feed(CHUNKED + b"2\r\n{}\r\n0\r\nAuthorization: Bearer key\r\n\r\n")
    assert request.body == b"{}"
    assert request.bearer() is None
