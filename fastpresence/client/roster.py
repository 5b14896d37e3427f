"""The client's copy of the roster: who is how, as far as this connection may see.

Sans-IO. Frames go in as they arrive, changes come out. Every user in the copy is seen for a reason: as a public user,
as a watched one, or as a member of a room; who is seen for no reason any more is dropped.

    full pages   collected until the last one, then they replace their scope: who is not listed is offline
    polls        one list for everything asked for: who is listed is seen, for a reason that only a socket will tell
    deltas       taken entry by entry
    fences       an entry with a lower `rev` than the one held is refused; an equal one is taken; `rev` 0 always wins

Which scope a full frame without `room` has, follows from the order of frames on one connection: what comes right
after the `ack` of a subscription is its answer, even between the pages of the public snapshot; the rest is about the
public users. Invariant: within one epoch the `rev` held for a user never goes down, except to 0. Used by client.core.
"""

from collections import deque
from collections.abc import Iterable
from typing import Final

from msgspec import UNSET, Struct, UnsetType, structs

from fastpresence.messages import StatusEntry, UserOnlineStatus

__all__ = ["Change", "RosterCopy", "offline"]

#: Users offline that are kept for their fences; beyond, the one who left first is forgotten.
OFFLINE_KEPT: Final = 10_000


class Change(Struct, frozen=True):
    """What changed for one user. The later of two changes of a user is never older."""

    user_id: str
    entry: StatusEntry  #: as the user shows from now on
    previous: StatusEntry | None  #: as the user showed before; None: not known until now
    stale: bool = False  #: nobody told us: the connection is given up, and everyone shows offline
    room: str | None = None  #: whose roster told it, when a room's did
    left: bool = False  #: the user is no longer in that room


class _Scope:
    """Pages of one full answer as far as they have come, and the deltas between them.

    `asked`: the users of a subscription; None for the public users. `first`: nothing came before it.
    """

    def __init__(self, asked: Iterable[str] | None = None, *, first: bool = False) -> None:
        self.asked = None if asked is None else frozenset(asked)
        self.first = first
        self.pages: list[StatusEntry] = []
        self.open = False  # a page with `more` has come, the last one has not


def offline(entry: StatusEntry) -> StatusEntry:
    """The same user, offline; the fence stays."""
    return structs.replace(entry, status="offline", online=False, left=False)


class RosterCopy:
    """One client's copy. `public`: whether the connection sees the public users."""

    def __init__(self, *, public: bool = True) -> None:
        self.entries: dict[str, StatusEntry] = {}
        self.cursor: str | None = None  #: of the public users
        self.watch_cursor: str | None = None
        self.room_cursors: dict[str, str] = {}
        self.rooms: dict[str, dict[str, int]] = {}  #: members of each room, with the `rev` that told of them
        self.occupancy: dict[str, int] = {}  #: of rooms too big for a roster
        self.watched: dict[str, bool] = {}  #: True: `watch_cursor` covers this user
        self._public_users: set[str] = set()
        self._public_types: set[str] = set()  # whose users have been seen for no other reason than their type
        self._polled: set[str] = set()  # seen by polling, as a public user or in some room
        self._public = public
        self._epoch: str | None = None
        self._unfenced: set[str] = set()
        self._departed: deque[str] = deque()
        self._base = _Scope()  # what is told of the public users
        self._awaited = public  # their snapshot has not come yet
        self._asked: deque[_Scope] = deque()  # subscriptions acknowledged and not answered yet
        self._room_scopes: dict[str, _Scope] = {}

    def status_of(self, user_id: str) -> StatusEntry:
        """The state of a user; offline with `rev` 0 when nothing is known."""
        return self.entries.get(user_id) or StatusEntry(user_id, "", "offline", False, None, 0)

    # What the connection does.

    def connected(self, epoch: str, *, brought: str | UnsetType | None = UNSET) -> None:
        """A `welcome` came: half answers of the old connection are void, another epoch drops the fences.

        `brought`: the cursor that the connection came with; left out, it is the one that the copy has now.
        """
        if epoch != self._epoch:
            self._epoch = epoch
            self._unfenced = set(self.entries)
        self._base = _Scope(first=True)
        self._awaited = self._public and (self.cursor if brought is UNSET else brought) is None
        self._asked.clear()
        self._room_scopes.clear()

    def answering(self, user_ids: Iterable[str]) -> None:
        """A subscription to these users was acknowledged: the next answer without `room` is about them."""
        self._asked.append(_Scope(user_ids))

    @property
    def collecting(self) -> bool:
        """Whether a full answer, or its last page, is still to come."""
        scopes = (self._base, *self._asked, *self._room_scopes.values())
        return self._awaited or any(scope.open for scope in scopes)

    @property
    def unsure(self) -> bool:
        """Whether polls told of users who may be public ones or not: `cursor` does not cover who they are."""
        return bool(self._polled)

    def off_polling(self) -> list[Change]:
        """A connection has caught up: whom only polls told of is seen no more, and offline at that."""
        changes = []
        for user_id in self._polled:
            held = self.entries.get(user_id)
            seen = user_id in self._public_users or self._seen_otherwise(user_id)
            if held is not None and held.online and not seen:
                changes.append(Change(user_id, offline(held), held))
        polled, self._polled = self._polled, set()
        for user_id in polled:
            self._drop_unseen(user_id)
        return changes

    def settled(self, user_ids: Iterable[str]) -> None:
        """Every answer that was under way has come; `watch_cursor` covers these watched users from now on."""
        self._asked.clear()
        for user_id in user_ids:
            if user_id in self.watched:
                self.watched[user_id] = True

    def drop_cursors(self) -> None:
        """Ask for everything again at the next connection."""
        self.cursor = self.watch_cursor = None
        self.room_cursors.clear()
        self.watched = dict.fromkeys(self.watched, False)

    def go_dark(self) -> list[Change]:
        """The connection is given up: everyone shows offline, until a full answer says otherwise."""
        self.drop_cursors()
        changes = []
        for user_id, entry in self.entries.items():
            if entry.online:
                self.entries[user_id] = dark = offline(entry)
                changes.append(Change(user_id, dark, entry, stale=True))
        return changes

    # What the user of the client wants to see.

    def watch(self, user_ids: Iterable[str]) -> None:
        """These users are watched from now on."""
        for user_id in user_ids:
            self.watched.setdefault(user_id, False)

    def unwatch(self, user_ids: Iterable[str]) -> None:
        """These are not watched any more; who is seen for no other reason is dropped."""
        for user_id in user_ids:
            self.watched.pop(user_id, None)
            held = self.entries.get(user_id)
            if held is not None and held.user_type in self._public_types:
                self._public_users.add(user_id)  # as public as those that nobody had to watch to see
            self._drop_unseen(user_id)

    def leave_room(self, room: str) -> None:
        """This room is left; members that are seen for no other reason are dropped."""
        self.occupancy.pop(room, None)
        self._forget_roster(room)

    def crowded(self, room: str, count: int) -> bool:
        """The room tells its occupancy instead of a roster, until a full roster comes again; whether that is news."""
        news = self.occupancy.get(room) != count
        self.occupancy[room] = count
        self._forget_roster(room)
        return news

    def _forget_roster(self, room: str) -> None:
        self.room_cursors.pop(room, None)  # it stands for members that are not held any more
        self._room_scopes.pop(room, None)
        for user_id in self.rooms.pop(room, {}):
            self._drop_unseen(user_id)

    # What the server says.

    def take(self, frame: UserOnlineStatus) -> list[Change]:
        """Take one frame in; what changed by it."""
        if frame.reply_to is not None and frame.cursor is UNSET:
            # The answer to a single question belongs to no scope: it brings those up to date that are held anyway.
            return self._told(entry for entry in frame.user_status if entry.user_id in self.entries)
        if frame.room is not None:
            return self._take_room(frame, frame.room)
        scope = self._asked[0] if self._asked else self._base
        if frame.full:
            scope.open = frame.more
        waits = scope.open or (not frame.full and scope is self._base and self._awaited)
        if frame.full or waits:
            scope.pages.extend(frame.user_status)
        if waits:
            return []
        self._keep_cursor(frame, scope)
        if scope.asked is not None and not frame.more:
            self._asked.popleft()
        if not frame.full:
            return self._seen_now(frame.user_status)
        if scope is self._base:
            self._base = _Scope()
            self._awaited = False
        return self._replace(scope)

    def take_poll(
        self, entries: list[StatusEntry], *, full: bool, user_ids: Iterable[str], whole: bool
    ) -> list[Change]:
        """The whole answer to a poll about these watched users and, if `whole`, the public users and the rooms.

        With `full`, who is in that scope and not listed is offline. Which room somebody is in, polls do not tell, nor
        of which life of the server's memory they are: a full answer passes every fence.
        """
        if full:
            self._unfenced.update(self.entries if whole else user_ids)
        changes: list[Change] = []
        for entry in entries:
            user_id = entry.user_id
            if self._fenced(entry):
                continue
            if entry.left:
                changes.extend(self._leave_everywhere(entry))
                continue
            if not self._public:
                if not self._seen_otherwise(user_id):
                    continue  # a public user, or one whom a room's roster will tell of
            elif user_id not in self.watched:
                (self._public_users if entry.user_type in self._public_types else self._polled).add(user_id)
            change = self._put(entry)
            if change is not None:
                changes.append(change)
        if full:
            asked = set(user_ids)
            changes.extend(self._not_listed({entry.user_id for entry in entries if not entry.left}, asked, whole=whole))
        return changes

    def _not_listed(self, listed: set[str], asked: set[str], *, whole: bool) -> list[Change]:
        """Who is in the scope of a full answer to a poll and not in it, is offline and in no room that we see."""
        changes: list[Change] = []
        for user_id, held in list(self.entries.items()):
            covered = user_id in asked if user_id in self.watched else whole
            if user_id in listed or not covered:
                continue
            for members in self.rooms.values():
                members.pop(user_id, None)
            self._polled.discard(user_id)
            if held.online:
                changes.append(self._set(offline(held), held))
            self._drop_unseen(user_id)
        return changes

    def _leave_everywhere(self, entry: StatusEntry) -> list[Change]:
        """Out of every room that we see him in; and out of the copy, unless he is seen for another reason."""
        user_id = entry.user_id
        held = self.entries.get(user_id)
        rooms = [room for room, members in self.rooms.items() if user_id in members]
        known = user_id in self._polled
        self._polled.discard(user_id)
        if rooms:
            return [self._leave(room, self.rooms[room], entry) for room in rooms]
        if self._seen(user_id):  # for a reason that the poll did not know of yet
            change = self._put(entry)
            return [] if change is None else [change]
        self._drop_unseen(user_id)
        return [Change(user_id, structs.replace(entry, left=False), held, left=True)] if known else []

    def _keep_cursor(self, frame: UserOnlineStatus, scope: _Scope) -> None:
        """A cursor belongs to a scope and does not say to which: the frame's entries do.

        A wrong guess costs a full answer, never a wrong state: the server knows its own.
        """
        if not isinstance(frame.cursor, str):
            return
        if scope.asked is not None or not self._public or self._about_watched(frame.user_status):
            self.watch_cursor = frame.cursor
        elif frame.full or not self._awaited:
            self.cursor = frame.cursor

    def _about_watched(self, entries: list[StatusEntry]) -> bool:
        """Whether these can only be told because they are watched."""
        return bool(entries) and all(
            entry.user_id in self.watched and entry.user_id not in self._public_users for entry in entries
        )

    def _replace(self, scope: _Scope) -> list[Change]:
        """The last page of a full answer has come: it is the truth about its whole scope."""
        listed = {entry.user_id for entry in scope.pages}
        covered = scope.asked
        if covered is None and not scope.first and self.watched and listed == set(self.watched):
            covered = frozenset(listed)  # unasked for, and of everyone watched: a catch-up on the watches
        if covered is None:
            # Of a public user who is in a room as well, this tells; the room's roster only that he is not in it.
            covered = frozenset(self._public_users.difference(self.watched))
            if self._public:
                self._are_public(scope.pages)
                if scope.first:  # nothing was asked for yet: watched or not, these are told for what they are
                    self._public_types.update(entry.user_type for entry in scope.pages)
        changes = self._seen_now(scope.pages)
        for user_id in covered:
            if user_id in self.watched:
                self.watched[user_id] = True
            held = self.entries.get(user_id)
            if user_id not in listed and held is not None and held.online:
                changes.append(self._set(offline(held), held))
        return changes

    def _seen_now(self, entries: list[StatusEntry]) -> list[Change]:
        """Entries of a frame without `room`: who is not watched must be public."""
        if self._public:
            self._are_public(entries)
        return self._told(entry for entry in entries if self._seen(entry.user_id))

    def _are_public(self, entries: list[StatusEntry]) -> None:
        """Who is told of and not watched is public, and so is everybody of his type."""
        for entry in entries:
            if entry.user_id not in self.watched:
                self._public_users.add(entry.user_id)
                self._public_types.add(entry.user_type)

    def _told(self, entries: Iterable[StatusEntry]) -> list[Change]:
        changes = (self._put(entry) for entry in entries if not self._fenced(entry))
        return [change for change in changes if change is not None]

    def _take_room(self, frame: UserOnlineStatus, room: str) -> list[Change]:
        members = self.rooms.setdefault(room, {})
        scope = self._room_scopes.setdefault(room, _Scope())
        self.occupancy.pop(room, None)
        scope.pages.extend(frame.user_status)
        if frame.full:
            scope.open = frame.more
        if scope.open:
            return []
        del self._room_scopes[room]
        changes: list[Change] = []
        if frame.full:
            listed = {entry.user_id for entry in scope.pages}
            for user_id in [user_id for user_id in members if user_id not in listed]:
                changes.append(self._leave(room, members, self.entries[user_id]))
        for entry in scope.pages:
            change = self._seat(room, members, entry)
            if change is not None:
                changes.append(change)
        if isinstance(frame.cursor, str):
            self.room_cursors[room] = frame.cursor
        return changes

    def _seat(self, room: str, members: dict[str, int], entry: StatusEntry) -> Change | None:
        """One entry of a room's roster: the user's state, and whether he is in the room."""
        user_id = entry.user_id
        told = members.get(user_id)
        fenced = self._fenced(entry)
        if entry.left:
            if told is None or (0 < entry.rev < told and user_id not in self._unfenced):
                return None
            return self._leave(room, members, self.entries[user_id] if fenced else entry)
        if fenced:
            return None
        members[user_id] = entry.rev
        held = self.entries.get(user_id)
        change = self._put(entry)
        if change is None and told is None:
            change = Change(user_id, self.entries[user_id], held)
        return None if change is None else structs.replace(change, room=room)

    def _leave(self, room: str, members: dict[str, int], entry: StatusEntry) -> Change:
        """Out of the room; and out of the copy, unless the user is seen for another reason."""
        user_id = entry.user_id
        del members[user_id]
        held = self.entries.get(user_id)
        shown = structs.replace(entry, left=False)
        if self._seen(user_id):
            self._set(shown, held)
        else:
            self._drop_unseen(user_id)
        return Change(user_id, shown, held, room=room, left=True)

    # Entries.

    def _fenced(self, entry: StatusEntry) -> bool:
        held = self.entries.get(entry.user_id)
        return held is not None and 0 < entry.rev < held.rev and entry.user_id not in self._unfenced

    def _put(self, entry: StatusEntry) -> Change | None:
        """Hold an entry that no fence refuses; None when nothing changed by it."""
        held = self.entries.get(entry.user_id)
        if entry.left:
            entry = structs.replace(entry, left=False)
        if entry == held:
            self._unfenced.discard(entry.user_id)
            return None
        change = self._set(entry, held)
        return None if held is None and not entry.online else change

    def _set(self, entry: StatusEntry, held: StatusEntry | None) -> Change:
        user_id = entry.user_id
        self.entries[user_id] = entry
        self._unfenced.discard(user_id)
        if not entry.online and (held is None or held.online):
            self._departed.append(user_id)
            if len(self._departed) > OFFLINE_KEPT:
                self._forget(self._departed.popleft())
        return Change(user_id, entry, held)

    def _forget(self, user_id: str) -> None:
        held = self.entries.get(user_id)
        if held is not None and not held.online and not self._seen_otherwise(user_id):
            self._public_users.discard(user_id)
            self._polled.discard(user_id)
            self._drop_unseen(user_id)

    def _seen_otherwise(self, user_id: str) -> bool:
        """Whether the user is seen for another reason than as a public one, or than that a poll told of him."""
        return user_id in self.watched or any(user_id in members for members in self.rooms.values())

    def _seen(self, user_id: str) -> bool:
        return user_id in self._public_users or user_id in self._polled or self._seen_otherwise(user_id)

    def _drop_unseen(self, user_id: str) -> None:
        if not self._seen(user_id):
            self.entries.pop(user_id, None)
            self._unfenced.discard(user_id)
