"""What does unmasking cost a byte, and does it matter at which of the key's four bytes it begins?

Unit: time a call of the C kernel itself, in place; calling C from Python is some 300 ns of each, so that only the large
sizes speak of masking. Leaves out: finding the frame and checking its text (test_framing.py).
"""

import ctypes
from collections.abc import Callable

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from bench.load.build import library

KEY = b"\x12\x34\x56\x78"


def masking() -> Callable[[ctypes.Array[ctypes.c_char], int, int], None]:
    kernel = ctypes.CDLL(str(library("mask")))

    def mask(data: ctypes.Array[ctypes.c_char], size: int, phase: int) -> None:
        kernel.fp_mask(data, ctypes.c_size_t(size), KEY, ctypes.c_uint(phase))

    return mask


@pytest.mark.parametrize("size", [80, 1_500, 60_000])
def test_mask(benchmark: BenchmarkFixture, size: int) -> None:
    mask, data = masking(), ctypes.create_string_buffer(b"a" * size, size)
    benchmark(mask, data, size, 0)
    assert benchmark.stats is not None
    benchmark.extra_info["bytes a ns"] = round(size / (benchmark.stats.stats.min * 1e9), 2)


@pytest.mark.parametrize("phase", [1, 3])
def test_mask_from_within_the_key(benchmark: BenchmarkFixture, phase: int) -> None:
    """As the rest of a frame that came in two reads."""
    mask, data = masking(), ctypes.create_string_buffer(b"a" * 60_000, 60_000)
    benchmark(mask, data, 60_000, phase)


def test_masking_twice_gives_back_what_was_there() -> None:
    mask, data = masking(), ctypes.create_string_buffer(bytes(range(256)), 256)
    mask(data, 256, 1)
    assert data.raw[0] == 0 ^ KEY[1]
    mask(data, 256, 1)
    assert data.raw == bytes(range(256))
