"""Why is X offline? The last transitions of every worker, and who was there when one died.

    worker: Journal, Present --> Roll (who is there, one for each life of a worker)
                            \\--> Timeline (one ring)  <-- `crash`, for everybody on the roll of a worker that died

    ring       | 40 A | 41 B | 42 A | 43 C |   then 44 overwrites 40
    previous   |  -   |  12  |  40  |  -   |   each entry's elder brother: a user's cost what he has
    latest     A -> 42, B -> 41, C -> 43

Sans-IO: every moment comes in as an argument. A crowd's crash is written some users at a time; whoever is asked about,
or comes back, before it is his turn, is written first: his own entries are always complete and in order.
Invariant: `latest` has a user exactly as long as an entry of his is in the ring.
"""

import sys
from array import array
from collections.abc import Iterable
from typing import Any

from msgspec import Struct

from fastpresence.link import JournalLine, PresentUser

__all__ = ["Chronicle", "Roll", "Timeline"]


class Timeline:
    """The last `size` lines of all workers' journals, and an index by user.

    An entry takes up to 480 bytes, where each is another user's; 48 MB for 100,000. Adding one takes 1 µs.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._lines: list[JournalLine | None] = [None] * size
        self._workers = array("H", bytes(2 * size))
        self._previous = array("q", bytes(8 * size))  # number of the same user's entry before, from 1; 0: none
        self._latest: dict[str, int] = {}
        self._count = 0  # entries ever added; the number of the last one

    def __len__(self) -> int:
        return min(self._count, self._size)

    def add(self, line: JournalLine, worker: int) -> None:
        """One more; the oldest goes when there is no room."""
        self._count = number = self._count + 1
        slot = number % self._size
        oldest = self._lines[slot]
        if oldest is not None and self._latest[oldest.user_id] == number - self._size:
            del self._latest[oldest.user_id]
        self._previous[slot] = self._latest.get(line.user_id, 0)
        self._latest[line.user_id] = number
        self._lines[slot] = line
        self._workers[slot] = worker

    def known(self, user_id: str) -> str:
        """The same text, as an entry here has it, if one does."""
        elder = self._lines[self._latest.get(user_id, 0) % self._size]
        return user_id if elder is None or elder.user_id != user_id else elder.user_id

    def of(self, user_id: str, limit: int) -> list[tuple[JournalLine, int]]:
        """A user's entries, each with its worker, the newest first; at most `limit`."""
        found: list[tuple[JournalLine, int]] = []
        number = self._latest.get(user_id, 0)
        while number > max(0, self._count - self._size) and len(found) < limit:
            slot = number % self._size
            line = self._lines[slot]
            if line is not None:
                found.append((line, self._workers[slot]))
            number = self._previous[slot]
        return found


class _Present(Struct, gc=False):
    """A user with sessions in a worker."""

    user_type: str
    status: str
    rev: int
    sessions: tuple[int, ...]


class Roll:
    """Who is there in one life of a worker, as far as its journal has come. Some 300 bytes for a user."""

    def __init__(self, worker: int) -> None:
        self.worker = worker
        self._users: dict[str, _Present] = {}

    def __len__(self) -> int:
        return len(self._users)

    def note(self, line: JournalLine) -> None:
        """What a line says of who is there."""
        user = self._users.get(line.user_id)
        if line.kind == "offline":
            if user is not None:
                user.sessions = tuple(number for number in user.sessions if number != line.session)
                if not user.sessions:
                    del self._users[line.user_id]
        elif line.kind in ("online", "reconnect"):
            if user is None:
                user = self._users[line.user_id] = _Present("", "", 0, ())
            gone = (line.session, line.superseded)
            user.sessions = (*(number for number in user.sessions if number not in gone), line.session)
            user.user_type = line.user_type
        if user is not None:
            user.status, user.rev = line.status, line.rev

    def replace(self, users: Iterable[PresentUser], *, is_first: bool) -> None:
        """What a page says; with the first one everybody else is forgotten."""
        if is_first:
            self._users = {}
        for user in users:
            self._users[user.user_id] = _Present(user.user_type, user.status, user.rev, tuple(user.sessions))

    def strike(self, user_id: str | None, at_us: int) -> list[JournalLine]:
        """Takes a user from the roll (None: any), and returns the `crash` of each of his sessions; [] for nobody.

        No stamp was made for it: `rev` is that of his last state.
        """
        if user_id is None:
            if not self._users:
                return []
            user_id, user = self._users.popitem()
        else:
            known = self._users.pop(user_id, None)
            if known is None:
                return []
            user = known
        return [
            JournalLine(user_id, user.user_type, session, "offline", user.status, "offline", "crash", user.rev, at_us)
            for session in user.sessions
        ]


class Chronicle:
    """The timeline of a machine: what its workers journal, and what became of those who were in a dead one."""

    def __init__(self, size: int) -> None:
        self._timeline = Timeline(size)
        self._dead: dict[Roll, int] = {}  # not all written yet; and when the node saw it (Unix microseconds)
        self.dropped = 0  #: lines that were lost on the way

    def __len__(self) -> int:
        return len(self._timeline)

    def note(self, roll: Roll, lines: Iterable[JournalLine]) -> list[tuple[JournalLine, int]]:
        """Lines of a living worker. Returns the crashes that had to be written before them, each with its worker."""
        crashed: list[tuple[JournalLine, int]] = []
        for line in lines:
            if self._dead:
                crashed += self.settle(line.user_id)
            line = _compact(line, self._timeline.known(line.user_id))
            roll.note(line)
            self._timeline.add(line, roll.worker)
        return crashed

    def died(self, roll: Roll, at_us: int) -> None:
        """A worker died just now, at this Unix microsecond, and with it everybody on its roll."""
        if roll:
            self._dead[roll] = at_us

    def settle(self, user_id: str | None = None) -> list[tuple[JournalLine, int]]:
        """Write the crashes of one user; of any one, for None. Returns them; [] when there is nobody left."""
        written: list[tuple[JournalLine, int]] = []
        for roll, at_us in [*self._dead.items()]:
            for line in roll.strike(user_id, at_us):
                self._timeline.add(line, roll.worker)
                written.append((line, roll.worker))
            if not roll:
                del self._dead[roll]
            if written and user_id is None:
                break
        return written

    def of(self, user_id: str, limit: int) -> list[dict[str, Any]]:
        """A user's entries as the admin face shows them, the newest first. `settle` his crashes before."""
        return [_shown(line, worker) for line, worker in self._timeline.of(user_id, limit)]


def _compact(line: JournalLine, user_id: str) -> JournalLine:
    """The same with every text that is there already: a decoded line brings six of its own."""
    intern = sys.intern
    return JournalLine(
        user_id,
        intern(line.user_type),
        line.session,
        intern(line.kind),
        intern(line.was),
        intern(line.status),
        intern(line.reason),
        line.rev,
        line.rev if line.rev == line.at_us else line.at_us,
        line.attempt,
        line.superseded,
    )


def _shown(line: JournalLine, worker: int) -> dict[str, Any]:
    shown: dict[str, Any] = {
        "at": line.at_us / 1_000_000,  # Unix seconds; exact to the microsecond until 2242
        "event": line.kind,
        "was": line.was,
        "status": line.status,
        "cause": line.reason,
        "rev": line.rev,
        "user_type": line.user_type,
        "session": line.session,
        "worker": worker,
    }
    if line.attempt is not None:
        shown["attempt"] = line.attempt
    if line.superseded:
        shown["superseded"] = line.superseded
    return shown
