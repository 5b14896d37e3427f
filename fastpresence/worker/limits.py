"""What one connection may do, and how fast.

The rate limit is a virtual schedule (GCRA, ITU-T I.371): one number a connection, the time at which everything it sent
so far would have been due at the allowed rate. No bucket to refill, no timer. Pure.
"""

from typing import Final

__all__ = ["REFUSED", "TOO_MUCH", "RateLimit"]

REFUSED: Final = -1.0
TOO_MUCH: Final = -2.0


class RateLimit:
    """`rate` frames a second in the long run, `burst` of them at once. One for all connections."""

    __slots__ = ("_give_up_ms", "_period_ms", "_tolerance_ms")

    def __init__(self, rate: float, burst: int) -> None:
        self._period_ms = 1000 / rate
        self._tolerance_ms = (burst - 0.5) * self._period_ms  # half a frame of slack for what floats round away
        self._give_up_ms = 2 * burst * self._period_ms

    def next(self, due_ms: float, now_ms: int) -> float:
        """The connection's new number for one more frame, or `REFUSED`: the number then moves by `charge`."""
        if due_ms <= now_ms:
            return now_ms + self._period_ms
        if due_ms - now_ms > self._tolerance_ms:
            return REFUSED
        return due_ms + self._period_ms

    def charge(self, due_ms: float, now_ms: int) -> float:
        """The new number after a refusal, or `TOO_MUCH` for one that goes on regardless for another whole burst."""
        due_ms += self._period_ms
        return TOO_MUCH if due_ms - now_ms > self._give_up_ms else due_ms
