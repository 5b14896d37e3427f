"""When deadlines have to wait, since the process stood still: stopped, moved to another machine, kept from its core.

What clients said meanwhile waits in their sockets, while the clock has gone on: whoever looks at deadlines first takes
all of them for silent. Pure.
"""

from typing import Final

__all__ = ["Standstill"]

#: Later than this a tick shows that the process stood still, milliseconds.
LATE_MS: Final = 250
#: The longest time to read what waits, milliseconds: a beat costs some microseconds, and there may be 100,000.
PATIENCE_MS: Final = 2000


class Standstill:
    """Asked at each tick whether deadlines count. `tick_ms`: between two ticks of a process that runs."""

    __slots__ = ("_from_ms", "_last_ms", "_tick_ms")

    def __init__(self, tick_ms: int, now_ms: int) -> None:
        self._tick_ms = tick_ms
        self._last_ms = now_ms
        self._from_ms = 0  # deadlines count again from then on; 0: they do

    def is_over(self, now_ms: int) -> bool:
        """Do deadlines count at this tick?

        They wait as long as the process stood still, at most `PATIENCE_MS`, and once: where every tick is late they
        count at every second one, so that nobody stays for ever on a machine that has too much to do.
        """
        late_ms = now_ms - self._last_ms - self._tick_ms
        self._last_ms = now_ms
        if not self._from_ms and late_ms > LATE_MS:
            self._from_ms = now_ms + min(late_ms, PATIENCE_MS)
        if now_ms < self._from_ms:
            return False
        self._from_ms = 0
        return True
