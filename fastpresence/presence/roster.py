"""Records in order of version, and the one question that everybody asks: what changed since?

Pure data. Every change takes the next number of one counter, its version; a `View` is a dict that also remembers in
which order its items changed:

    dict     user_id -> Record                    what is, in no particular order
    log      v7 A | v8 B | v9 A | v12 C           what changed, oldest first; (v7 A) is dead: A changed again at 9
                          `-- changes_since(8): search for 8, walk on from there

The log is what makes a question cost what changed and not what exists. It is a list and an array beside the dict, and
not the dict's own order (delete, insert again, walk `reversed`): a dict keeps a hole for each deletion until it grows,
and a few users who flip their status among 100,000 others would have every walk step over as many holes. What is dead
here is cut out when it outnumbers what lives, in slices.

Invariants: an item's newest log entry is the one whose stamp is the item's `version`; `floor` is the version of the
last item that was dropped. Used by presence.audience (rooms are views too) and presence.service.
"""

import re
from array import array
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Collection, Iterable
from hashlib import blake2b
from typing import Final, Protocol, TypeVar

from fastpresence.messages import Status, StatusEntry
from fastpresence.presence.sessions import Now, Session

__all__ = [
    "PUBLIC_SCOPE",
    "UNLISTED",
    "Counter",
    "Record",
    "Roster",
    "View",
    "drop_share",
    "make_cursor",
    "read_cursor",
    "room_scope",
    "toggled_scope",
    "union_scope",
    "watch_scope",
]

#: The version of what is in no view: not yet, or not any more.
UNLISTED: Final = -1


class Counter:
    """The two stamps of a process. Shared by everything that stamps."""

    __slots__ = ("rev", "version")

    def __init__(self) -> None:
        self.version = 0  #: of the latest change of any kind; each takes the next
        self.rev = 0  #: the highest stamp given or heard: microseconds

    def next_version(self) -> int:
        """The version of a change that is being made."""
        self.version += 1
        return self.version

    def next_rev(self, wall_us: int) -> int:
        """A hybrid logical clock: the wall time where it has moved on, else one more than before."""
        self.rev = rev = wall_us if wall_us > self.rev else self.rev + 1
        return rev


#: Entries of a log that one move tidies: some 20 µs, where all of 100,000 users' would hold the loop up for many ms.
_SLICE: Final = 256
#: Dead entries that are no reason to tidy: small views needn't care.
_SMALL: Final = 32
#: Entries of a log that a page looks at for each item it may have: more than half of a log is seldom dead.
_STEPS: Final = 4


def drop_share(waiting: int) -> int:
    """How many more of those who wait to be dropped one call may drop, so that no lasting rate of leaving outruns it.

    Whoever leaves waits 300 s, which is 1,200 calls at one every 250 ms: a 1,024th of those waiting is more than come.
    """
    return waiting // 1024


class _Versioned(Protocol):
    version: int


Item = TypeVar("Item", bound=_Versioned)


class View(dict[str, Item]):
    """Items by name, and the order in which they changed. An item's `version` is written by `move` alone."""

    __slots__ = ("_counter", "_items", "_kept", "_stamps", "_swept", "floor")

    def __init__(self, counter: Counter, *, floor: int = 0) -> None:
        super().__init__()
        self._counter = counter
        self.floor = floor  #: a cursor below it may have missed a drop: it needs everything
        self._items: list[Item] = []
        self._stamps = array("q")  # the version of each, ascending
        self._kept: tuple[list[Item], array[int]] | None = None  # while tidying: what lives of the first `_swept`
        self._swept = 0

    @property
    def newest(self) -> int:
        """The version of the latest change here; what was encoded since then still holds."""
        # The floor: the latest to change may have been dropped and tidied away. This never goes back.
        return max(self._stamps[-1], self.floor) if self._stamps else self.floor

    def move(self, name: str, item: Item, version: int) -> None:
        """The item changed (or came) at `version`, which is not below any other's here."""
        item.version = version
        self[name] = item
        items = self._items
        if items and items[-1] is item:
            self._stamps[-1] = version
            return
        items.append(item)
        self._stamps.append(version)
        if self._kept is not None or len(items) > 2 * len(self) + _SMALL:
            self._tidy()

    def drop(self, name: str, version: int) -> None:
        """The item, whose version this is, will be heard of no more. The caller marks it UNLISTED."""
        del self[name]
        self.floor = max(self.floor, version)
        self._tidy()

    def clear(self) -> None:
        """Lets go of everything; for a view that nobody will ask again."""
        super().clear()
        self._items.clear()
        self._stamps = array("q")
        self._kept, self._swept = None, 0

    def newer_than(self, version: int) -> list[Item]:
        """What is here and changed after `version`, oldest first. Says nothing of what was dropped."""
        stamps = self._stamps
        if not stamps or stamps[-1] <= version:
            return []
        start = bisect_right(stamps, version)
        return [item for item, stamp in zip(self._items[start:], stamps[start:], strict=True) if item.version == stamp]

    def changes_since(self, version: int) -> list[Item] | None:
        """What changed after `version`, oldest first; None when only everything will do.

        That is when `version` lies below the floor, or ahead of the counter (it is none of ours).
        """
        if version < self.floor or version > self._counter.version:
            return None
        return self.newer_than(version)

    def count_newer(self, version: int) -> int:
        """At most how many items changed after `version`; costs a search, not what changed."""
        return len(self._stamps) - bisect_right(self._stamps, version)

    def page(self, after: int, until: int, limit: int) -> tuple[list[Item], int]:
        """The next items that changed after `after` and not after `until`, oldest first, and the version to go on from.

        At most `limit` items, and so many steps at most that no call takes long: where those ended before `until`,
        there may be more behind that version, even if none was found. Says nothing of what was dropped.
        """
        start = bisect_right(self._stamps, after)
        end = min(len(self._stamps), start + _STEPS * limit)
        found: list[Item] = []
        for at in range(start, end):
            stamp = self._stamps[at]
            if stamp > until:
                break
            item = self._items[at]
            if item.version == stamp:
                found.append(item)
                if len(found) == limit:
                    return found, stamp
        else:
            if end < len(self._stamps):
                return found, self._stamps[end - 1]
        return found, until

    def _tidy(self) -> None:
        """Cuts out what is dead: copies what lives, a slice with every move, so that no single one takes long."""
        if self._kept is None:
            # As many cheap moves go before each time as there are items.
            if len(self._items) <= 2 * len(self) + _SMALL:
                return
            self._kept = ([], array("q"))
        items, stamps = self._kept
        start, self._swept = self._swept, self._swept + _SLICE
        for item, stamp in zip(self._items[start : self._swept], self._stamps[start : self._swept], strict=True):
            if item.version == stamp:
                items.append(item)
                stamps.append(stamp)
        if self._swept >= len(self._items):
            self._items, self._stamps = items, stamps
            self._kept, self._swept = None, 0


class Record:
    """One user as others may see him, and the sessions beneath."""

    __slots__ = (
        "heard_ms",
        "hidden",
        "last_seen",
        "rev",
        "rooms",
        "sessions",
        "status",
        "user_id",
        "user_type",
        "version",
    )

    def __init__(self, user_id: str, user_type: str) -> None:
        self.user_id = user_id
        self.user_type = user_type
        self.status: Status = "offline"  #: merged; "offline" also while hidden
        self.last_seen: int | None = None  #: Unix epoch, seconds; moves with `rev` only
        self.rev = 0  #: see StatusEntry
        self.version = UNLISTED  #: of the latest visible change
        self.sessions: tuple[Session, ...] = ()  #: those that count, oldest first; replaced, never changed in place
        self.hidden = False  #: appears offline
        self.rooms: dict[str, int] | None = None  #: name -> how many of the sessions are in it; None for none
        self.heard_ms = 0  #: monotonic: when the latest heard of the ended sessions was last heard

    def entry(self, *, left: bool = False) -> StatusEntry:
        """The record as it goes on the wire."""
        status = self.status
        return StatusEntry(self.user_id, self.user_type, status, status != "offline", self.last_seen, self.rev, left)


class Roster:
    """All records of this process. An offline one stays for the retention, so that cursors can tell of it."""

    def __init__(self, public_types: Collection[str], retention_ms: int) -> None:
        self.counter = Counter()
        self.everyone: View[Record] = View(self.counter)
        self.public: View[Record] = View(self.counter)  #: records whose type is public, or was when they came
        #: Records with sessions that nobody may know of: hidden from the start, or for longer than the retention.
        self.unlisted: dict[str, Record] = {}
        self._public_types = frozenset(public_types)
        self._retention_ms = retention_ms
        self._offline: OrderedDict[Record, int] = OrderedDict()  # -> when to drop it (monotonic ms), ascending
        self._second: int | None = None  # the last `last_seen`: one int object serves all who changed in that second

    @property
    def version(self) -> int:
        """The version of the latest change."""
        return self.counter.version

    def find(self, user_id: str) -> Record | None:
        """The user's record, also of one who appears offline."""
        return self.everyone.get(user_id) or self.unlisted.get(user_id)

    def admit(self, user_id: str, user_type: str) -> Record:
        """The record of a user who is coming online, made if need be."""
        record = self.find(user_id)
        if record is None:
            record = self.unlisted[user_id] = Record(user_id, user_type)
        return record

    def release(self, record: Record) -> None:
        """The record's last session is gone: what nobody knows of needs no memory."""
        if record.version == UNLISTED:
            self.unlisted.pop(record.user_id, None)

    def change(self, record: Record, status: Status, now: Now) -> int:
        """Stamps a change that others may see: rev, last seen, version. Returns the version."""
        heard_ms = record.heard_ms
        for session in record.sessions:
            if session.last_heard_ms > heard_ms:
                heard_ms = session.last_heard_ms
        second = now.wall_us_at(heard_ms) // 1_000_000
        last_seen = record.last_seen
        if last_seen is None or second > last_seen:
            if second != self._second:
                self._second = second
            record.last_seen = self._second
        if status == "offline":
            if record.status != "offline":
                self._offline[record] = now.ms + self._retention_ms
        elif record.status == "offline":
            self._offline.pop(record, None)
        record.status = status
        record.rev = self.counter.next_rev(now.wall_us)
        if record.version == UNLISTED:
            del self.unlisted[record.user_id]
        version = self.counter.next_version()
        user_id = record.user_id
        self.everyone.move(user_id, record, version)
        # Whoever saw him listed must see what becomes of him, even if his next token names a type that is not public.
        if record.user_type in self._public_types or user_id in self.public:
            self.public.move(user_id, record, version)
        return version

    def drop_expired(self, now_ms: int, limit: int) -> None:
        """Forgets users who went offline longer ago than the retention: at most `limit`, and more of very many."""
        limit += drop_share(len(self._offline))
        while self._offline and limit > 0:
            record, drop_at_ms = next(iter(self._offline.items()))
            if drop_at_ms > now_ms:
                return
            limit -= 1
            del self._offline[record]
            version = record.version
            record.version = UNLISTED
            self.everyone.drop(record.user_id, version)
            if record.user_id in self.public:
                self.public.drop(record.user_id, version)
            if record.sessions:
                self.unlisted[record.user_id] = record


# A cursor is `epoch~scope~version`: whose memory, of what, how far. It is no secret and no promise: whoever forges one
# gets his own view wrong.

PUBLIC_SCOPE: Final = "p"
_VERSION: Final = re.compile(r"0|[1-9][0-9]{0,15}", re.ASCII)
#: The scope of a poll, which has the public users in it.
_UNION: Final = re.compile(rf"\A([^~]*~){PUBLIC_SCOPE}\.[0-9a-f]{{16}}~", re.ASCII)


def make_cursor(epoch: str, scope: str, version: int) -> str:
    """`epoch` and `scope` are ours, of the characters that a cursor may have, without `~`."""
    return f"{epoch}~{scope}~{version}"


def read_cursor(text: str, epoch: str, scope: str) -> int | None:
    """The version in a cursor of this epoch and scope, or of a poll that had all of it; None for any other text."""
    if scope == PUBLIC_SCOPE:
        text = _UNION.sub(rf"\1{PUBLIC_SCOPE}~", text, count=1)
    prefix = f"{epoch}~{scope}~"
    if not text.startswith(prefix) or not _VERSION.fullmatch(text, len(prefix)):
        return None
    return int(text[len(prefix) :])


def room_scope(name: str) -> str:
    """One room's roster."""
    return "r" + blake2b(name.encode(), digest_size=8).hexdigest()


def union_scope(rooms: Iterable[str], user_ids: Iterable[str], untold: Iterable[str] = ()) -> str:
    """The public users together with these rooms and watched users, as polls see them.

    Which of the rooms are `untold` (crowded, or empty) is part of it: of those a cursor stands for no roster.
    """
    if not rooms and not user_ids:
        return PUBLIC_SCOPE
    # Good in this process alone, as the epoch is, and a tenth of what a digest of each name costs.
    total = hash((frozenset(rooms), frozenset(user_ids), frozenset(untold)))
    return f"{PUBLIC_SCOPE}.{total & 0xFFFF_FFFF_FFFF_FFFF:016x}"


def watch_scope(user_ids: Iterable[str]) -> str:
    """The watched users, in whatever order they were named."""
    return toggled_scope(None, set(user_ids))


def toggled_scope(scope: str | None, user_ids: Iterable[str]) -> str:
    """The scope of watches that these users, each named once, came to or went from; costs these and not all.

    None stands for no watches at all.
    """
    total = 0 if scope is None else int(scope[1:], 16)
    for user_id in user_ids:
        total ^= int.from_bytes(blake2b(user_id.encode(), digest_size=8).digest(), "big")
    return f"w{total:016x}"
