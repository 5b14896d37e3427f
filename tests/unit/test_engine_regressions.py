"""What a review of the engine and of its neighbours found: each fault once, so that it does not come back."""

import contextlib
import gc
import subprocess
import sys
import time

import pytest

from fastpresence._native.engine import ENDED, Engine
from fastpresence._native.framing import CLOSE, TEXT, build_masked
from fastpresence.http import HttpError, RequestParser
from tests.support.engine import KEY, Rig

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


@pytest.mark.parametrize(
    "last",
    [
        build_masked(CLOSE, (1001).to_bytes(2, "big"), KEY),
        build_masked(TEXT, b"beat", KEY) + build_masked(CLOSE, b"", KEY),
        build_masked(TEXT, b"beat", KEY) + b"\xff\xff",
    ],
    ids=["close", "message and close", "message and violation"],
)
def test_a_frame_that_comes_with_the_end_is_the_last_sign_of_life(rig: Rig, last: bytes) -> None:
    # Else the session's grace would be counted from the frame before it: next to none for one who beats seldom.
    client = rig.open()
    time.sleep(0.05)
    sent_ms = time.monotonic_ns() // 1_000_000
    client.send(last)
    rig.until(lambda: rig.of(ENDED))
    [(_, _, (_, heard_ms))] = rig.of(ENDED)
    assert heard_ms >= sent_ms


def test_an_engine_that_could_not_be_made_closes_no_descriptor_of_others() -> None:
    program = """
import os
from fastpresence._native.engine import Engine
try:
    Engine(print, no_such_setting=1)
except TypeError:
    pass
os.fstat(0)
"""
    subprocess.run([sys.executable, "-c", program], stdin=subprocess.DEVNULL, check=True, timeout=60)


def test_a_new_audience_costs_the_same_among_many() -> None:
    engine = Engine(lambda batch: None)

    def cost_us(count: int = 300) -> float:
        began_s = time.perf_counter()
        for _ in range(count):
            engine.new_audience()
        return (time.perf_counter() - began_s) / count * 1e6

    few = min(cost_us() for _ in range(3))
    numbers = [engine.new_audience() for _ in range(100_000)]
    assert len(set(numbers)) == len(numbers)
    many = min(cost_us() for _ in range(3))
    assert many < 10 * few + 5  # a walk over 100,000 took 60 us

    # What was given back is used first, each number once.
    for number in numbers[:3]:
        assert engine.free_audience(number)
        assert engine.free_audience(number)
    assert sorted(engine.new_audience() for _ in range(3)) == sorted(numbers[:3])
    engine.close_all()
    assert engine.new_audience() == 0


def test_a_tick_that_comes_after_the_end_finds_nothing_to_do() -> None:
    program = """
from fastpresence._native.engine import Engine
engine = Engine(print)
engine.close_all()
engine.advance()
engine.send()
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
