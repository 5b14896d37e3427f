"""When to connect again: what each end of a connection means, and the reconnect table.

Pure: time and randomness come in as arguments. Source: docs/protocol.md, sections 4 and 5.

    attempt   1        2    3    4     5     then `failed`, and from there on
    after     at once  3 s  6 s  12 s  24 s  60 s, again and again; from the second on up to 20 % more

Invariant: between two attempts that are both at once lies a connection that stayed up for `stable_after_ms`, or the
one return that is spared (a new token, a drain). Used by client.core.
"""

from collections.abc import Callable
from enum import Enum
from typing import Final

from msgspec import Struct

__all__ = ["Backoff", "Then", "Timing", "after_close", "after_refusal"]


class Timing(Struct, frozen=True, kw_only=True):
    """How long the client waits for what. The defaults are the protocol's; tests use `scaled`."""

    delays_ms: tuple[float, ...] = (0, 3_000, 6_000, 12_000, 24_000)  #: before attempt 1, 2, ...
    jitter: float = 0.2  #: share of a delay that is added at most, from the second attempt on
    stable_after_ms: float = 30_000  #: a connection this old starts the count afresh
    slow_retry_ms: float = 60_000  #: between attempts once all of the table's have failed
    attempt_timeout_ms: float = 30_000  #: from the start of an attempt to `welcome`
    request_timeout_ms: float = 10_000  #: from a request to its answer
    goodbye_ms: float = 2_000  #: for the last answer and the closing handshake when the client leaves
    silence_floor_ms: float = 1_000  #: a beat is given at least this long to be answered
    poll_interval_ms: float = 5_000  #: between polls, while no socket can be had; jittered as the delays are
    poll_timeout_ms: float = 30_000  #: from the start of a poll to the end of its answer

    def scaled(self, factor: float) -> "Timing":
        """The same timings, `factor` times as long; the jitter's share stays."""
        return Timing(
            delays_ms=tuple(delay * factor for delay in self.delays_ms),
            jitter=self.jitter,
            stable_after_ms=self.stable_after_ms * factor,
            slow_retry_ms=self.slow_retry_ms * factor,
            attempt_timeout_ms=self.attempt_timeout_ms * factor,
            request_timeout_ms=self.request_timeout_ms * factor,
            goodbye_ms=self.goodbye_ms * factor,
            silence_floor_ms=self.silence_floor_ms * factor,
            poll_interval_ms=self.poll_interval_ms * factor,
            poll_timeout_ms=self.poll_timeout_ms * factor,
        )


class Then(Enum):
    """What to do after a connection, or an attempt at one, has ended."""

    AGAIN = "as the table says"
    AT_ONCE = "at once, outside the table; once between two stable connections"
    BACK_OFF = "as the table says, but not at once"
    MEND = "as the table says, and without the cursors: something in what we brought back was wrong"
    NEW_TOKEN = "at once with a fresh token"  # noqa: S105
    STOP = "never"


_CLOSES: Final = {
    1000: Then.BACK_OFF,  # normal, but we did not ask for it: a proxy on the way, perhaps
    1001: Then.AGAIN,
    1002: Then.MEND,
    1003: Then.MEND,
    1007: Then.MEND,
    1009: Then.MEND,
    1011: Then.BACK_OFF,
    1012: Then.BACK_OFF,
    1013: Then.BACK_OFF,
    4001: Then.NEW_TOKEN,
    4003: Then.STOP,
    4008: Then.AGAIN,
    4009: Then.AGAIN,
    4010: Then.STOP,
    4029: Then.BACK_OFF,
}

_REFUSALS: Final = {
    401: Then.NEW_TOKEN,
    408: Then.BACK_OFF,
    425: Then.BACK_OFF,
    426: Then.BACK_OFF,  # something on the way took the upgrade out of our request
    429: Then.BACK_OFF,
}


def after_close(code: int | None) -> Then:
    """What a close code asks for; None and 1005, 1006 are connections that broke without one."""
    if code in (None, 1005, 1006):
        return Then.AGAIN
    return _CLOSES.get(code, Then.BACK_OFF)


def after_refusal(status: int, *, by_server: bool = True) -> Then:
    """What the HTTP status of a refused handshake asks for.

    What is not said `by_server` says nothing of us: WebSockets do not come through here, polls may.
    """
    return _REFUSALS.get(status, Then.STOP if by_server and status < 500 else Then.BACK_OFF)


class Backoff:
    """Which attempt comes next, and after how long.

    `attempt` is 0 for the first connection of all, then counts the reconnect attempts since the last stable one.
    """

    def __init__(self, timing: Timing, random: Callable[[], float]) -> None:
        self.attempt = 0
        self._timing = timing
        self._random = random  # uniform in [0, 1)
        self._spared = True

    def stable(self) -> None:
        """The connection that just ended had stayed up long enough: count afresh."""
        self.attempt = 0
        self._spared = True

    def delay_ms(self, then: Then, *, opened: bool, at_least_ms: float = 0.0) -> tuple[float, bool]:
        """Milliseconds until the next attempt, and whether the table is used up (`failed`).

        `opened`: whether the connection that ended had come up. `at_least_ms`: what the server asked for; it is
        heeded up to the slow phase's own delay.
        """
        timing = self._timing
        at_least_ms = min(at_least_ms, timing.slow_retry_ms)
        if then in (Then.AT_ONCE, Then.NEW_TOKEN) and self._spared:
            self._spared = False
            return at_least_ms, False
        row = self.attempt
        if row == 0 and (not opened or then in (Then.AT_ONCE, Then.NEW_TOKEN, Then.BACK_OFF)):
            row = 1  # the attempt at once has been used, or is not wanted
        if row >= len(timing.delays_ms):
            return max(self._jittered(timing.slow_retry_ms), at_least_ms), True
        self.attempt = row + 1
        delay = timing.delays_ms[row]
        return max(delay if row == 0 else self._jittered(delay), at_least_ms), False

    def _jittered(self, delay_ms: float) -> float:
        return delay_ms * (1.0 + self._timing.jitter * self._random())
