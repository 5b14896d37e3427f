"""What can be said of repeated measurements on a machine that is never quite quiet: spread, chance, many at once."""

import math
import operator
from collections.abc import Sequence
from itertools import accumulate
from statistics import fmean, median, quantiles, variance
from typing import Final

__all__ = ["REPETITIONS", "chance", "holm", "interval", "spread"]

#: With fewer, nothing tells a difference from noise.
REPETITIONS: Final = 3
#: How often the interval of a median may miss it.
MISSES: Final = 0.05


def spread(values: Sequence[float]) -> float:
    """Half the distance between the quartiles, as a share of the median; 0 for a single value."""
    if len(values) < 2:
        return 0.0
    low, _, high = quantiles(values, n=4, method="inclusive")
    middle = median(values)
    return (high - low) / 2 / abs(middle) if middle else 0.0


def interval(values: Sequence[float]) -> tuple[float, float]:
    """What holds the median of whatever these are drawn from, in 19 of 20 cases; of fewer than six in fewer cases.

    From order statistics, so that it takes nothing for granted of how the values are spread.
    """
    ordered, cut = sorted(values), 0
    # The median lies outside of the values from `cut + 1` on both sides as often as a coin falls so one-sidedly.
    while 2 * sum(math.comb(len(ordered), i) for i in range(cut + 2)) / 2 ** len(ordered) <= MISSES:
        cut += 1
    return ordered[cut], ordered[-1 - cut]


def chance(old: Sequence[float], new: Sequence[float], least: float) -> float:
    """How often values differ as much as these do, up or down, where the truth differs by the share `least` or less.

    Welch's test (Biometrika 34, 1947) of the logarithms, as noise multiplies: for positive values, REPETITIONS of each.
    An outlier makes it more cautious, not less. It reaches small chances with five values a side, which ranks can't
    (at best 2 of 252), and so it is left with something after a correction for many figures.
    """
    before, after = [math.log(value) for value in old], [math.log(value) for value in new]
    differs, bound = abs(fmean(after) - fmean(before)), math.log1p(least)
    a, b = variance(before) / len(before), variance(after) / len(after)
    if a + b == 0:
        return float(differs <= bound)
    # Rounded down, which is the cautious side; not for an error in the last digit.
    freedom = int((a + b) ** 2 / (a**2 / (len(before) - 1) + b**2 / (len(after) - 1)) + 1e-9)
    error = math.sqrt(a + b)
    return min(1.0, _tail((differs - bound) / error, freedom) + _tail((differs + bound) / error, freedom))


def _tail(t: float, freedom: int) -> float:
    """How often Student's t is greater (Abramowitz and Stegun, 26.7.3 and 26.7.4: whole degrees of freedom)."""
    angle = math.atan(t / math.sqrt(freedom))
    odd = freedom % 2
    # 1, 1/2 cos^2, 1*3/(2*4) cos^4, ... for even degrees; cos, 2/3 cos^3, 2*4/(3*5) cos^5, ... for odd ones.
    factors = [(k - 1) / k * math.cos(angle) ** 2 for k in range(2 + odd, freedom - 1, 2)]
    terms = accumulate(factors, operator.mul, initial=math.cos(angle) ** odd)
    total = math.fsum(terms) if freedom > 1 else 0.0
    inside = 2 / math.pi * (angle + math.sin(angle) * total) if odd else math.sin(angle) * total
    return (1 - inside) / 2


def holm(chances: Sequence[float], level: float) -> list[bool]:
    """Which of these are more than chance, so that even one of them is wrong at most as often as `level` says.

    Holm's procedure (Scandinavian Journal of Statistics 6, 1979). Not Benjamini and Hochberg's, which lets a share of
    what it finds be wrong: here a single wrong one makes the exit code wrong.
    """
    found = [False] * len(chances)
    for passed, which in enumerate(sorted(range(len(chances)), key=chances.__getitem__)):
        if chances[which] * (len(chances) - passed) > level:
            break
        found[which] = True
    return found
