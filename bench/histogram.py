"""A distribution of times, as the swarm counts it (`load/swarm.h`): log-linear, 64 steps to a doubling.

A value of up to 63 ns has a bucket of its own; above, a bucket is at most 1.6 % wide. What is read off is a bucket's
upper edge: never too low, at most 1.6 % too high. Buckets add up, so that runs and processes can be merged.
"""

import bisect
from collections.abc import Iterable, Iterator
from itertools import accumulate
from typing import Final

from msgspec import Struct

__all__ = ["Histogram", "edge_ns", "index_of"]

STEPS: Final = 64
#: Ticks to half the distance that is left, as HdrHistogram's percentile files have them.
TICKS: Final = 5
LAST_TICK: Final = 1e-7


def index_of(value_ns: int) -> int:
    """The bucket of a value."""
    if value_ns < STEPS:
        return value_ns
    shift = value_ns.bit_length() - 7
    return (shift + 1) * STEPS + (value_ns >> shift) - STEPS


def edge_ns(index: int) -> int:
    """The highest value of a bucket."""
    shift, step = divmod(index, STEPS)
    return index if shift == 0 else ((STEPS + step + 1) << (shift - 1)) - 1


class Histogram(Struct):
    """Counts by bucket, rising."""

    buckets: list[tuple[int, int]] = []  #: index, count; no empty ones
    max_ns: int = 0

    @classmethod
    def of(cls, values_ns: Iterable[int]) -> "Histogram":
        """A histogram of single values."""
        counts: dict[int, int] = {}
        most = 0
        for value in values_ns:
            index = index_of(value)
            counts[index] = counts.get(index, 0) + 1
            most = max(most, value)
        return cls(sorted(counts.items()), most)

    @classmethod
    def merged(cls, histograms: Iterable["Histogram"]) -> "Histogram":
        """All of them as one."""
        counts: dict[int, int] = {}
        most = 0
        for histogram in histograms:
            most = max(most, histogram.max_ns)
            for index, count in histogram.buckets:
                counts[index] = counts.get(index, 0) + count
        return cls(sorted(counts.items()), most)

    @property
    def count(self) -> int:
        return sum(count for _, count in self.buckets)

    def at(self, share: float) -> int:
        """Nanoseconds that `share` (0 to 1) of all values do not exceed; 0 when there is none."""
        return self.all_at([share])[0]

    def all_at(self, shares: Iterable[float]) -> list[int]:
        """`at` for many shares."""
        sums = list(accumulate(count for _, count in self.buckets))
        if not sums:
            return [0 for _ in shares]
        found = []
        for share in shares:
            place = min(bisect.bisect_right(sums, sums[-1] * share), len(sums) - 1)
            found.append(min(edge_ns(self.buckets[place][0]), self.max_ns))
        return found

    def percentiles(self) -> Iterator[tuple[float, int]]:
        """(share, nanoseconds) in steps that get finer towards 1, up to the share that a single value makes."""
        if not self.count:
            return
        least = max(LAST_TICK, 1 / self.count)
        shares, left = [0.0], 1.0
        while left > least:
            shares += [1 - left + left / 2 * tick / TICKS for tick in range(1, TICKS + 1)]
            left /= 2
        yield from zip([*shares, 1.0], self.all_at([*shares, 1.0]), strict=True)

    def text(self) -> str:
        """The percentile file of HdrHistogram, in milliseconds: its plotters read it."""
        total = self.count
        lines = [f"{'Value':>12} {'Percentile':>14} {'TotalCount':>10} {'1/(1-Percentile)':>14}", ""]
        for share, value in self.percentiles():
            left = f"{1 / (1 - share):14.2f}" if share < 1 else ""
            lines.append(f"{value / 1e6:12.3f} {share:14.12f} {round(share * total):10d} {left}".rstrip())
        lines.append(f"#[Max = {self.max_ns / 1e6:12.3f}, Total count = {total:12d}]")
        return "\n".join(lines) + "\n"
