"""What does a WebSocket frame cost to take apart and to build, by its size?

Unit: time a call from Python, so that some 100 to 200 ns of each are the face and not the kernel. Leaves out: sockets,
and the engine, which calls the kernel without Python in between.
"""

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from fastpresence._native.framing import BINARY, TEXT, Stream, build, build_masked

sizes = pytest.mark.parametrize("size", [80, 1_500, 60_000])


@sizes
def test_parse_text(benchmark: BenchmarkFixture, size: int) -> None:
    """Masked, whole, UTF-8 checked: ASCII, as nearly all of it is."""
    data = build_masked(TEXT, b"a" * size, b"mask")
    stream = Stream()
    assert len(benchmark(stream.feed, data)) == 1


@sizes
def test_parse_binary(benchmark: BenchmarkFixture, size: int) -> None:
    data = build_masked(BINARY, b"a" * size, b"mask")
    stream = Stream()
    assert len(benchmark(stream.feed, data)) == 1


def test_parse_text_beyond_ascii(benchmark: BenchmarkFixture) -> None:
    """What the check costs at its worst: no run of eight ASCII bytes anywhere."""
    data = build_masked(TEXT, ("é€😀" * 200).encode(), b"mask")
    stream = Stream()
    assert len(benchmark(stream.feed, data)) == 1


def test_parse_hundred_of_one_read(benchmark: BenchmarkFixture) -> None:
    """A hundred heartbeats in one read: what is left a frame, when the call is shared."""
    data = build_masked(TEXT, b"a" * 80, b"mask") * 100
    stream = Stream()
    assert len(benchmark(stream.feed, data)) == 100


@sizes
def test_build(benchmark: BenchmarkFixture, size: int) -> None:
    assert benchmark(build, TEXT, b"a" * size)
