"""The fallback when no socket can be had: which poll comes next, what it asks, and what its answers add up to.

Sans-IO: the caller passes `now_ms` and carries the polls out, one at a time.

    begin -> ask -> answered, advance ... a round: every part, every page, rosters -> due again after the interval
                 -> failed                the round is void                        -> due again, less and less often

A poll may name only so many users, so that whoever watches more asks in parts: the first one has the public users and
the rooms, each has some of the watched users and a cursor of its own. Polls do not say who is in which room: where one
told of anything, the rosters of rooms are asked for behind it. Invariant: `asked` is the request under way, and while
there is one, none is due. Driven by client.core; reference: docs/protocol.md, section 6.
"""

from collections.abc import Callable, Iterable
from itertools import islice
from typing import Final

from msgspec import Struct

from fastpresence.client.calls import Farewell
from fastpresence.client.schedule import Timing
from fastpresence.messages import Status, StatusEntry

__all__ = ["Part", "PollAnswer", "PollRequest", "Poller", "RoomCount", "RosterAnswer", "RosterRequest", "Told"]

#: Users in one poll, and characters of their names: a body has 64 KiB, and there is more in it.
USERS_ASKED: Final = 1000
NAMES_ASKED: Final = 48_000
#: Pages of one part, at most: an answer that never ends is none. A page has 500 entries or more.
PAGES_MAX: Final = 4000
#: Calls that one poll hangs up; more go with the next.
FAREWELLS: Final = 100
#: Rosters asked for in one round; who is in more rooms gets the others with the next ones.
ROSTERS_ASKED: Final = 5
#: Polls that failed in a row before what they told is not shown any more.
FAILURES_BORNE: Final = 2


class PollRequest(Struct, frozen=True, omit_defaults=True):
    """Body of a poll."""

    cursor: str | None = None
    status: Status | None = None  #: only when it is to change
    rooms: list[str] | None = None  #: all that the user is in; left out: as they are
    user_ids: list[str] | None = None
    device: str | None = None  #: whose socket this stands in for
    calls: list[Farewell] = []  #: that are over here


class RoomCount(Struct, frozen=True):
    """How many members a room has that is too big for a roster."""

    room: str
    count: int


class PollAnswer(Struct, frozen=True):
    """The answer's body: the state of users in the whole scope, as one list, or what changed of it."""

    user_status: list[StatusEntry]
    cursor: str
    full: bool
    more: bool = False  #: the list goes on: ask again at once, with this cursor
    room_occupancy: list[RoomCount] = []


class RosterRequest(Struct, frozen=True):
    """Who is in this room."""

    room: str


class RosterAnswer(Struct, frozen=True):
    """A room's roster, or, of a room that is too big for one, only its count."""

    room: str
    count: int
    user_status: list[StatusEntry] | None = None


class Part(Struct, frozen=True):
    """What one poll is about. `whole`: the public users and these rooms, too."""

    user_ids: tuple[str, ...]
    rooms: tuple[str, ...]
    whole: bool


class Told(Struct, frozen=True):
    """All pages of the answer to one part."""

    part: Part
    entries: list[StatusEntry]
    full: bool
    cursor: str


class Poller:
    """One client's polls. `random` is uniform in [0, 1)."""

    def __init__(self, timing: Timing, random: Callable[[], float], device: str | None) -> None:
        self.due_ms: float | None = None
        self.asked: PollRequest | RosterRequest | None = None  #: under way
        self.works = False  #: the last poll was answered
        self.fresh_token = False  #: the last one was refused for its token
        self.failures = 0  #: in a row
        self._timing = timing
        self._random = random
        self._device = device
        self._on = False
        self._soon = False  # one more, as soon as this one is done
        self._not_before_ms = 0.0
        self._narrow = False  # what was asked for is not allowed: the public users alone
        self._told_status: Status | None = None
        self._cursors: dict[Part, str] = {}
        self._asked_rosters = False  # in this round
        self._outdated = False  # what the round under way was asked with is not what is wanted to be known now
        self._changed: dict[str, None] = {}  # rooms whose roster may be another by now
        self._rosters: list[str] = []  # of the round that are not answered yet
        self._parts: list[Part] = []  # the same
        self._pages: list[StatusEntry] = []  # of the first of them
        self._page_cursor: str | None = None
        self._full = False
        self._page = 0

    @property
    def between_rounds(self) -> bool:
        """Whether the next poll begins a round."""
        return not self._parts and not self._rosters

    def begin(self, now_ms: float) -> None:
        """Poll from now on. Nothing changes when that is so already."""
        if not self._on:
            self._on = True
            self.due_ms = now_ms

    def stop(self) -> bool:
        """Poll no more, and forget; whether a poll was under way."""
        under_way = self.asked is not None
        self._on = self._soon = self._narrow = self.works = self.fresh_token = False
        self.due_ms = self.asked = self._told_status = None
        self._not_before_ms = 0.0
        self.failures = 0
        self._changed.clear()
        self.forget()
        return under_way

    def forget(self) -> None:
        """What came of the round so far is void, and the next one is to tell everything."""
        self.forget_cursors()
        self._void()

    def forget_cursors(self) -> None:
        """The next round is to tell everything: something of what the cursors stand for is not held any more."""
        self._cursors.clear()
        self._outdated = bool(self._parts)

    def soon(self, now_ms: float) -> None:
        """Poll at once, or as soon as the server allows it: there is something to tell."""
        if self.asked is not None or not self.between_rounds:
            self._soon = True
        elif self._on:
            self.due_ms = max(now_ms, self._not_before_ms)

    def ask(
        self, rooms: Iterable[str], watched: Iterable[str], status: Status | None, farewells: Iterable[Farewell] = ()
    ) -> PollRequest | RosterRequest:
        """The request that is due."""
        if self.between_rounds:
            self._soon = self._outdated = False
            self._parts = [Part((), (), True)] if self._narrow else _split(rooms, watched)
            self._cursors = {part: self._cursors[part] for part in self._parts if part in self._cursors}
        self.due_ms = None
        if not self._parts:
            self.asked = RosterRequest(self._rosters[0])
            return self.asked
        part = self._parts[0]
        self.asked = PollRequest(
            cursor=self._page_cursor or self._cursors.get(part),
            status=status if status != self._told_status else None,
            rooms=list(part.rooms) if part.whole else None,
            user_ids=list(part.user_ids) or None,
            device=self._device,
            calls=list(islice(farewells, FAREWELLS)),
        )
        return self.asked

    def answered(self, answer: PollAnswer, now_ms: float) -> Told | None:
        """The poll under way was answered; what came of it, once all pages of a part are there.

        Then the caller looks at it, says which `rosters` it wants to see for that, and goes on with `advance`.
        """
        request = self.asked
        if not isinstance(request, PollRequest):
            return None
        self.asked = None
        self.fresh_token = False
        self._told_status = request.status or self._told_status
        if answer.full:
            self._pages.clear()  # where there were some, the server does not know how to go on: this is everything
        self._full = self._full or answer.full
        self._pages.extend(answer.user_status)
        self._page += 1
        if answer.more and self._page < PAGES_MAX:
            self._page_cursor = answer.cursor
            self.due_ms = now_ms
            return None
        part = self._parts.pop(0)
        if not self._outdated:
            self._cursors[part] = answer.cursor
        told = Told(part, self._pages, self._full, answer.cursor)
        self._next_part()
        return told

    def rosters(self, rooms: Iterable[str]) -> None:
        """Something was told: whoever is in these rooms may not be the same any more."""
        self._changed.update(dict.fromkeys(rooms))

    def roster_answered(self) -> str | None:
        """The room whose roster was asked for and has come, or can't be had; go on with `advance`."""
        request = self.asked
        if not isinstance(request, RosterRequest):
            return None
        self.asked = None
        self._rosters.remove(request.room)
        self._changed.pop(request.room, None)
        return request.room

    def advance(self, now_ms: float) -> bool:
        """On to what is next; True when the round is complete."""
        if self._changed and not self._parts and not self._rosters and not self._asked_rosters:
            self._asked_rosters = True
            self._rosters = list(self._changed)[:ROSTERS_ASKED]
        if not self.between_rounds:
            self.due_ms = now_ms
            return False
        self._asked_rosters = False
        self.works = True
        self.failures = 0
        self.due_ms = now_ms if self._soon else now_ms + self._jittered(self._timing.poll_interval_ms)
        return True

    def failed(self, now_ms: float, *, http_status: int | None = None, retry_after_ms: float = 0.0) -> None:
        """The poll under way was refused, or nobody answered it."""
        if self.asked is None:
            return
        scope = isinstance(self.asked, PollRequest) and (self.asked.rooms or self.asked.user_ids)
        self.asked = None
        self._void()
        self.works = False
        self._told_status = None  # the session that it was told may end before the next poll
        if http_status == 401 and not self.fresh_token:
            self.fresh_token = True
            self.due_ms = now_ms
        elif http_status in (403, 413, 422) and scope and not self._narrow:
            self._narrow = True
            self.due_ms = now_ms
        else:
            self.failures += 1
            delay_ms = self._timing.poll_interval_ms * 2 ** min(self.failures - 1, 16)
            delay_ms = self._jittered(min(delay_ms, self._timing.slow_retry_ms))
            self._not_before_ms = now_ms + min(retry_after_ms, self._timing.slow_retry_ms)
            self.due_ms = max(now_ms + delay_ms, self._not_before_ms)

    def _void(self) -> None:
        """What came of the round so far is not enough."""
        self._parts = []
        self._rosters = []
        self._asked_rosters = False
        self._next_part()

    def _next_part(self) -> None:
        self._pages = []
        self._page_cursor = None
        self._full = False
        self._page = 0

    def _jittered(self, delay_ms: float) -> float:
        return delay_ms * (1.0 + self._timing.jitter * self._random())


def _split(rooms: Iterable[str], watched: Iterable[str]) -> list[Part]:
    """Parts, each small enough for one poll."""
    batches: list[list[str]] = [[]]
    size = 0
    for user_id in watched:
        if len(batches[-1]) >= USERS_ASKED or size + len(user_id) > NAMES_ASKED:
            batches.append([])
            size = 0
        batches[-1].append(user_id)
        size += len(user_id) + 3  # quotes and a comma
    first, *rest = batches
    return [Part(tuple(first), tuple(rooms), True), *(Part(tuple(batch), (), False) for batch in rest)]
