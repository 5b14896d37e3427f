"""What can be said of repeated measurements on a machine that is never quite quiet: median, spread, better or worse."""

import itertools
import math
from collections.abc import Sequence
from enum import StrEnum
from statistics import median, quantiles
from typing import Final

__all__ = ["Verdict", "chance", "judge", "spread"]

#: A difference that chance explains more often than that is none.
CHANCE: Final = 0.05
#: A difference smaller than that is of no interest, however sure it is.
LEAST: Final = 0.03
#: With fewer repetitions chance can't be told: then the ranges must be apart, and by at least so much.
REPETITIONS: Final = 4
LEAST_OF_FEW: Final = 0.10
#: Arrangements that are tried out one by one; beyond, the normal distribution is close enough.
EXACT_MAX: Final = 20_000


class Verdict(StrEnum):
    """What became of a figure."""

    BETTER = "better"
    WORSE = "WORSE"
    SAME = "same within the noise"


def spread(values: Sequence[float]) -> float:
    """Half the distance between the quartiles, as a share of the median; 0 for a single value."""
    if len(values) < 2:
        return 0.0
    low, _, high = quantiles(values, n=4, method="inclusive")
    middle = median(values)
    return (high - low) / 2 / abs(middle) if middle else 0.0


def chance(a: Sequence[float], b: Sequence[float]) -> float:
    """How often two samples of one distribution differ as much as these (Mann and Whitney, 1947; two-sided)."""
    n, m = len(a), len(b)
    ranks = _ranks([*a, *b])
    middle = n * (n + m + 1) / 2
    off = abs(sum(ranks[:n]) - middle)
    if math.comb(n + m, n) <= EXACT_MAX:
        sums = [sum(some) for some in itertools.combinations(ranks, n)]
        return sum(abs(one - middle) >= off - 1e-9 for one in sums) / len(sums)
    deviation = math.sqrt(n * m * (n + m + 1) / 12)
    return math.erfc(off / deviation / math.sqrt(2))


def _ranks(values: Sequence[float]) -> list[float]:
    """From 1 on; equal ones share the mean of theirs."""
    order = sorted(values)
    first = {value: order.index(value) for value in set(values)}
    counts = {value: order.count(value) for value in set(values)}
    return [first[value] + (counts[value] + 1) / 2 for value in values]


def judge(old: Sequence[float], new: Sequence[float], *, higher_is_better: bool) -> Verdict:
    """Whether `new` differs from `old` beyond the noise that both show."""
    before, after = median(old), median(new)
    if before == after or before == 0:
        return Verdict.SAME
    change = after / before - 1
    if min(len(old), len(new)) >= REPETITIONS:
        sure = abs(change) >= LEAST and chance(old, new) <= CHANCE
    else:
        sure = abs(change) >= LEAST_OF_FEW and (max(old) < min(new) or max(new) < min(old))
    if not sure:
        return Verdict.SAME
    return Verdict.BETTER if (change > 0) == higher_is_better else Verdict.WORSE
