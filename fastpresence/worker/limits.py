"""What one connection may do, and how fast.

The rate limit is a virtual schedule (GCRA, ITU-T I.371): one number a connection, the time at which everything it sent
so far would have been due at the allowed rate. No bucket to refill, no timer. Pure.
"""

import math
from collections import OrderedDict
from collections.abc import Hashable
from typing import Final

__all__ = ["ENTRIES", "REFUSED", "TOO_MUCH", "Guesses", "Pace", "RateLimit"]

REFUSED: Final = -1.0
TOO_MUCH: Final = -2.0
#: Users that a request may ask for at the price of one frame: each costs about a microsecond and a hundred bytes.
ENTRIES: Final = 200


class RateLimit:
    """`rate` frames a second in the long run, `burst` of them at once. One for all connections."""

    __slots__ = ("_give_up_ms", "_period_ms", "_tolerance_ms")

    def __init__(self, rate: float, burst: int) -> None:
        self._period_ms = 1000 / rate
        self._tolerance_ms = (burst - 0.5) * self._period_ms  # half a frame of slack for what floats round away
        self._give_up_ms = 2 * burst * self._period_ms

    @property
    def settled_ms(self) -> int:
        """A silence after which nothing is owed any more, whatever came before: one frame needs no accounts then."""
        return math.ceil(self._give_up_ms)

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

    def weigh(self, due_ms: float, now_ms: int, frames: int) -> float:
        """The new number after a frame that was let through and cost as much as so many more.

        It is paid afterwards, and never so that the next frames are too much: halfway there is the most.
        """
        most_ms = now_ms + (self._tolerance_ms + self._give_up_ms) / 2
        return max(due_ms, min(due_ms + frames * self._period_ms, most_ms))

    def wait_ms(self, due_ms: float, now_ms: int) -> float:
        """How long until one more frame would be let through; a moment more, for what floats round away."""
        return max(0.0, due_ms - self._tolerance_ms - now_ms) + 1.0


class Pace:
    """How fast each of many goes, by name; who is over is told to wait. Remembers the latest `remembered` of them."""

    __slots__ = ("_due_ms", "_limit", "_remembered", "_wait_ms")

    def __init__(self, rate: float, burst: int, remembered: int) -> None:
        self._limit = RateLimit(rate, burst)
        self._wait_ms = burst * 1000 / rate
        self._due_ms: OrderedDict[Hashable, float] = OrderedDict()
        self._remembered = remembered

    def is_over(self, name: Hashable, now_ms: int) -> bool:
        """Count one more; True when that was one too many."""
        owed_ms = self._due_ms.pop(name, 0.0)
        due_ms = self._limit.next(owed_ms, now_ms)
        refused = due_ms is REFUSED
        self._due_ms[name] = max(owed_ms, now_ms + self._wait_ms) if refused else due_ms
        if len(self._due_ms) > self._remembered:
            self._due_ms.popitem(last=False)
        return refused

    def weigh(self, name: Hashable, now_ms: int, entries: int) -> None:
        """What was counted last costs more, as a frame does that asks for so many users."""
        if entries >= ENTRIES:
            self._due_ms[name] = self._limit.weigh(self._due_ms[name], now_ms, entries // ENTRIES)


class Guesses(Pace):
    """Bad credentials by address: an IPv4 one, or a /64 of IPv6, of which everybody has all.

    Only those who fail are counted and refused: behind the same address others come in as before.
    """

    ADDRESSES: Final = 4096
    #: A crowd behind one address whose tokens run out together is no attack yet.
    RATE: Final = 20.0
    BURST: Final = 200

    __slots__ = ()

    def __init__(self) -> None:
        super().__init__(self.RATE, self.BURST, self.ADDRESSES)
