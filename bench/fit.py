"""How a cost grows with a crowd: a line through the points, and the power that the growth follows."""

import math
from collections.abc import Callable, Sequence
from typing import Final

from msgspec import Struct

__all__ = ["Fit", "along", "line", "power"]


STEPS: Final = 40  #: of a drawn fit


class Fit(Struct, frozen=True):
    """y = base + each * x."""

    base: float
    each: float
    share: float  #: R²: how much of what varies the line explains, 0 to 1

    def at(self, x: float) -> float:
        return self.base + self.each * x


def line(points: Sequence[tuple[float, float]]) -> Fit:
    """The line with the least sum of squares of *relative* errors: a point at 100 counts as much as one at 10,000.

    Points of y <= 0 say nothing and are left out. Raises ValueError for fewer than two different x.
    """
    points = [(x, y) for x, y in points if y > 0]
    weights = [1 / y**2 for _, y in points]
    total = sum(weights)
    if len({x for x, _ in points}) < 2:
        raise ValueError("a line needs two points")
    mean_x = sum(w * x for w, (x, _) in zip(weights, points, strict=True)) / total
    mean_y = sum(w * y for w, (_, y) in zip(weights, points, strict=True)) / total
    both = sum(w * (x - mean_x) * (y - mean_y) for w, (x, y) in zip(weights, points, strict=True))
    each = both / sum(w * (x - mean_x) ** 2 for w, (x, _) in zip(weights, points, strict=True))
    base = mean_y - each * mean_x
    left = sum(w * (y - base - each * x) ** 2 for w, (x, y) in zip(weights, points, strict=True))
    varies = sum(w * (y - mean_y) ** 2 for w, (_, y) in zip(weights, points, strict=True))
    return Fit(base, each, 1 - left / varies if varies else 1.0)


def power(points: Sequence[tuple[float, float]]) -> float:
    """The k of y ~ x^k: 0 is flat, 1 is linear. Least squares on logarithms; raises ValueError as `line` does."""
    logs = [(math.log(x), math.log(y)) for x, y in points if x > 0 and y > 0]
    if len({x for x, _ in logs}) < 2:
        raise ValueError("a power needs two points")
    mean_x = sum(x for x, _ in logs) / len(logs)
    mean_y = sum(y for _, y in logs) / len(logs)
    return sum((x - mean_x) * (y - mean_y) for x, y in logs) / sum((x - mean_x) ** 2 for x, _ in logs)


def along(points: Sequence[tuple[float, float]], fit: Callable[[float], float]) -> list[tuple[float, float]]:
    """The fit over the range of the points, whose x are more than 0, in even steps of the logarithm: to be drawn."""
    low, high = min(x for x, _ in points), max(x for x, _ in points)
    xs = [low * (high / low) ** (step / STEPS) for step in range(STEPS + 1)]
    return [(x, fit(x)) for x in xs]
