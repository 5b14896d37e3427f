"""What keeps a living connection alive, and what ends it: beats, silence, the drain, the token's life.

Sans-IO: the caller passes `now_ms` and asks what is due. Nothing is, until `welcomed`, and from `stop` on.

    welcome --random phase--> beat --interval--> beat ...      a beat is answered in `patience`, or the line is dead
    token_expiring -> renew: at once, or when half of the token's life is over

Invariant: a lost connection is noticed early enough to be back before the server takes the user for gone. Source:
docs/protocol.md, section 3. Used by client.core.
"""

from collections.abc import Callable
from enum import Enum
from typing import Final

from fastpresence.client.schedule import Timing
from fastpresence.messages import Welcome

__all__ = ["Due", "Pulse"]

#: Until a server has said how long it waits for a sign of life.
HEARTBEAT_TIMEOUT_MS: Final = 60_000


class Due(Enum):
    """What it is time for, in the order in which it counts."""

    RENEWAL = "a new token"
    SILENCE = "to give up: a beat was not answered"
    DRAIN = "to go: the server is draining"
    BEAT = "a beat"


class Pulse:
    """One client's timers on a living connection. `random` is uniform in [0, 1)."""

    def __init__(self, timing: Timing, random: Callable[[], float]) -> None:
        self.up_ms = 0.0  #: when the latest connection was welcomed
        self.token_ends_ms: float | None = None  #: by our clock
        self._timing = timing
        self._random = random
        self._deadlines: dict[Due, float] = {}
        self._interval_ms = 0.0
        self._patience_ms = 0.0
        self._timeout_ms = float(HEARTBEAT_TIMEOUT_MS)
        self._heard_ms = 0.0
        self._server_zero_ms = 0.0  # our clock at the server's Unix epoch
        self._token_half_ms = 0.0  # before half of its life is over, a token is not replaced

    def welcomed(self, frame: Welcome, now_ms: float) -> None:
        """A connection has come up."""
        self.up_ms = self._heard_ms = now_ms
        self._server_zero_ms = now_ms - frame.timestamp * 1000
        self._interval_ms = frame.heartbeat_interval * 1000
        self._timeout_ms = frame.heartbeat_timeout * 1000
        margin_ms = (self._timeout_ms - self._interval_ms) / 2
        self._patience_ms = max(margin_ms, self._timing.silence_floor_ms)
        self._deadlines = {Due.BEAT: now_ms + self._interval_ms * self._random()}
        self.new_token(frame.expires_at, now_ms)

    def stop(self) -> None:
        """No connection is alive any more."""
        self._deadlines = {}

    def new_token(self, expires_at: int, now_ms: float) -> None:
        """The connection goes by a token that ends then (Unix epoch, seconds, by the server's clock)."""
        self.token_ends_ms = self._server_zero_ms + expires_at * 1000
        self._token_half_ms = (now_ms + self.token_ends_ms) / 2
        self._deadlines.pop(Due.RENEWAL, None)

    def expiring(self, now_ms: float) -> None:
        """The server tells it a minute ahead, and at once of a token that lives for less than that."""
        self._deadlines[Due.RENEWAL] = max(now_ms, self._token_half_ms)

    @property
    def expires_at(self) -> int:
        """When the token ends: Unix epoch, seconds, by the server's clock."""
        return round((self.token_ends_ms or 0.0) - self._server_zero_ms) // 1000

    def draining(self, after_ms: float, now_ms: float) -> None:
        self._deadlines[Due.DRAIN] = now_ms + after_ms

    @property
    def is_draining(self) -> bool:
        return Due.DRAIN in self._deadlines

    def sign_of_life(self) -> None:
        """The server said something."""
        self._deadlines.pop(Due.SILENCE, None)

    def answered(self, now_ms: float) -> None:
        """The server said something that proves that it had heard from us."""
        self._heard_ms = now_ms

    @property
    def given_up_ms(self) -> float:
        """When the server, without another word from us, will have ended our session."""
        return self._heard_ms + self._timeout_ms

    @property
    def keep_ms(self) -> float:
        """When it is time to be heard of in another way, with a third of that patience left."""
        return self._heard_ms + self._timeout_ms * 2 / 3

    def next_deadline_ms(self) -> float | None:
        return min(self._deadlines.values(), default=None)

    def take(self, now_ms: float) -> list[Due]:
        """What is due by now, each once."""
        due = [each for each in Due if now_ms >= self._deadlines.get(each, float("inf"))]
        for each in due:
            del self._deadlines[each]
        if Due.BEAT in due:
            # Missed beats are not made up for: one now, the next an interval from now.
            self._deadlines[Due.BEAT] = now_ms + self._interval_ms
            self._deadlines.setdefault(Due.SILENCE, now_ms + self._patience_ms)
        return due
