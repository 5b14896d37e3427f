"""When to tell, what to encode, whom to skip, and how a lagging reader catches up.

    quiet --change--> flush in the same turn --> [slices of 2 ms, I/O in between] --> quiet
                         the next one: the flush window after this one's start, or at its end, whichever is later

Each flush tells what changed since the last one: of every user only the last state, encoded once for each kind of
recipient; of a crowded room only how many are in it, and that once a second at most. A recipient that was left out (its
socket was full) is caught up from its own version once it drains, in pages, while presence goes on for everybody else.

Invariant: every connection that is neither lagging nor being paged has been told everything up to `told`, or is about
to be by the running flush.
"""

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from msgspec import UNSET, Struct

from fastpresence._native import framing
from fastpresence._native.engine import Engine
from fastpresence.codec import JSON, MSGPACK, Codec
from fastpresence.messages import SNAPSHOT_PAGE, RoomOccupancy, StatusEntry, UserOnlineStatus
from fastpresence.presence.audience import Room, RoomDelta
from fastpresence.presence.roster import PUBLIC_SCOPE, UNLISTED, Record, View, make_cursor, room_scope
from fastpresence.presence.service import OnlineStatusService
from fastpresence.worker.deflate import LEAST, deflate

if TYPE_CHECKING:
    from fastpresence.worker.peer import Peer

__all__ = ["SLICE_US", "VARIANTS", "Flusher", "Pager", "frame_of"]

SLICE_US: Final = 2000  #: microseconds of fan-out between two looks at the sockets
LOOK_EVERY: Final = 8  #: watchers between two looks at the clock
OCCUPANCY_S: Final = 1.0  #: seconds between two counts of a crowded room
SNAPSHOT_SHARE: Final = 8  #: of the public users that may have changed since a snapshot that is used once more
SNAPSHOT_KEPT_S: Final = 5.0  #: without anybody who wants it: some 25 MB for each 100,000 users
#: Kinds of recipients, in the order of `Peer.variant`: codec, and whether frames may be compressed.
VARIANTS: Final = ((JSON, False), (MSGPACK, False), (JSON, True), (MSGPACK, True))


def frame_of(variant: int, message: object) -> bytes:
    """A whole WebSocket frame, as every recipient of this variant may share it."""
    codec, compressed = VARIANTS[variant]
    return _frame(codec, codec.encode(message), compressed)


def _frame(codec: Codec, payload: bytes, compressed: bool) -> bytes:
    opcode = framing.TEXT if codec.is_text else framing.BINARY
    if compressed and len(payload) >= LEAST:
        return framing.build(opcode | framing.COMPRESSED, deflate(payload))
    return framing.build(opcode, payload)


def _pages(
    entries: list[StatusEntry], cursor: str, room: str | None = None, *, full: bool = False
) -> list[UserOnlineStatus]:
    """One message, or one for each page of what is many; the last has the cursor."""
    if len(entries) <= SNAPSHOT_PAGE:
        return [UserOnlineStatus(entries, full=full, cursor=cursor, room=room)]
    messages = [
        UserOnlineStatus(entries[at : at + SNAPSHOT_PAGE], full=full, more=True, room=room)
        for at in range(0, len(entries) - SNAPSHOT_PAGE, SNAPSHOT_PAGE)
    ]
    last = entries[len(messages) * SNAPSHOT_PAGE :]
    messages.append(UserOnlineStatus(last, full=full, cursor=cursor, room=room))
    return messages


#: What one audience is told: a buffer for each kind of recipient.
_Job = tuple[int, tuple[bytes | None, ...]]


class Flusher:
    """Tells everybody who may know what changed. One for a worker."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        engine: Engine,
        service: OnlineStatusService,
        *,
        epoch: str,
        window_ms: float,
        public_audience: int,
        variants: Sequence[int],
    ) -> None:
        self._loop = loop
        self._engine = engine
        self._service = service
        self._counter = service.roster.counter
        self._epoch = epoch
        self._window_s = window_ms / 1000
        self._public = public_audience
        self._variants = variants  # how many peers are open, by variant
        self.told = service.version
        self._next_s = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._running = False
        self._watching: list[tuple[Any, list[Record]]] = []  # who watches and is still to be told
        self._watched_version = 0
        self._owed: dict[Room, None] = {}  # crowded rooms whose count changed and was not told yet
        self._owed_timer: asyncio.TimerHandle | None = None

    def touch(self) -> None:
        """Something may have changed in this turn: tell it now, or as soon as the window allows."""
        if self._counter.version == self.told or self._running or self._timer is not None:
            return
        now_s = self._loop.time()
        if now_s >= self._next_s:
            self._begin(now_s)
        else:
            self._timer = self._loop.call_at(self._next_s, self._due)

    def _due(self) -> None:
        self._timer = None
        if not self._running and self._service.version != self.told:
            self._begin(self._loop.time())
            self._engine.send()

    def _begin(self, now_s: float) -> None:
        self._next_s = now_s + self._window_s
        told = self.told
        delta = self._service.collect(told)
        self.told = delta.version
        jobs: list[_Job] = []
        if delta.public and self._engine.audience_size(self._public):
            cursor = make_cursor(self._epoch, PUBLIC_SCOPE, delta.version)
            entries = [record.entry() for record in delta.public]
            jobs.append((self._public, self._frames(entries, cursor)))
        for change in delta.rooms:
            room = change.room
            if room.audience is None or not self._engine.audience_size(room.audience):
                continue
            if room.crowded:
                self._owed[room] = None
            else:
                room.told_count = None
                jobs.append((room.audience, self._room_frames(change, delta.version)))
        if delta.watched:
            self._watching, self._watched_version = list(delta.watched.items()), delta.version
        if self._owed:
            jobs += self._counts(now_s)
        self._run(told, jobs)

    def _run(self, told: int, jobs: "list[_Job]") -> None:
        if jobs or self._watching:
            self._engine.flush_begin(told, jobs)
            self._running = True
            self._step()

    # Crowded rooms.

    def _counts(self, now_s: float) -> "list[_Job]":
        """What is to be told now of how many are in which rooms; the rest has a timer."""
        jobs: list[_Job] = []
        for room in list(self._owed):
            if room.crowded and room.audience is not None and room.shown != room.told_count:
                if room.tell_again_s > now_s:
                    continue
                room.told_count, room.tell_again_s = room.shown, now_s + OCCUPANCY_S
                message = RoomOccupancy(room.name, room.shown)
                frames = [frame_of(i, message) if count else None for i, count in enumerate(self._variants)]
                jobs.append((room.audience, tuple(frames)))
            del self._owed[room]
        if self._owed and self._owed_timer is None:
            due_s = min(room.tell_again_s for room in self._owed)
            self._owed_timer = self._loop.call_at(due_s, self._owed_due)
        return jobs

    def _owed_due(self) -> None:
        self._owed_timer = None
        if not self._running:  # else its end looks after them
            self._run(self.told, self._counts(self._loop.time()))
            self._engine.send()

    def _frames(
        self, entries: list[StatusEntry], cursor: str, room: str | None = None, *, full: bool = False
    ) -> tuple[bytes | None, ...]:
        """For each kind of recipient what it is sent: one frame, or several pages in one piece."""
        messages = _pages(entries, cursor, room, full=full)
        payloads: dict[Codec, list[bytes]] = {}  # encoded once, whether or not they are then compressed
        frames: list[bytes | None] = [None] * len(VARIANTS)
        for variant, count in enumerate(self._variants):
            if not count:
                continue
            codec, compressed = VARIANTS[variant]
            encoded = payloads.get(codec)
            if encoded is None:
                encoded = payloads[codec] = list(map(codec.encode, messages))
            frames[variant] = b"".join([_frame(codec, payload, compressed) for payload in encoded])
        return tuple(frames)

    def _room_frames(self, change: RoomDelta, version: int) -> tuple[bytes | None, ...]:
        entries = [member.record.entry(left=member.left) for member in change.members]
        name = change.room.name
        return self._frames(entries, make_cursor(self._epoch, room_scope(name), version), name, full=change.full)

    def _tell_watchers(self, until_s: float) -> None:
        """Watchers are told one by one, for about a slice; of those who watch the same and hear the same one frame.

        A frame says what is true when it is made, and is shared within one slice only: between two of them a watcher
        may have been answered with something newer.
        """
        public, watches_of = self._service.roster.public, self._service.audience.watches_of
        watching, version = self._watching, self._watched_version
        frames: dict[tuple[object, ...], bytes] = {}
        while watching:
            peer, records = watching.pop()
            if peer.public:  # the public frame tells it of these
                records = [record for record in records if record.user_id not in public]
            watched = watches_of(peer)  # by now
            records = [record for record in records if record.user_id in watched]
            if not records or peer.scope is None:
                continue
            key = (peer.variant, peer.scope, *[record.user_id for record in records])
            frame = frames.get(key)
            if frame is None:
                entries = [record.entry() for record in records]
                messages = _pages(entries, make_cursor(self._epoch, peer.scope, version))
                frame = frames[key] = b"".join([frame_of(peer.variant, message) for message in messages])
            self._engine.tell(peer.handle, frame)
            if len(watching) % LOOK_EVERY == 0 and self._loop.time() >= until_s:
                return

    def _step(self) -> None:
        if self._watching:
            self._tell_watchers(self._loop.time() + SLICE_US / 1_000_000)
        if not self._engine.flush_step(SLICE_US) or self._watching:
            self._engine.send()
            self._loop.call_soon(self._step)
            return
        self._running = False
        self.touch()
        if self._owed and not self._running:
            self._run(self.told, self._counts(self._loop.time()))
        self._engine.send()


class _Snapshot:
    """The public users at one version, in pages that are encoded once for each kind of recipient.

    A page is made when somebody first comes to it. Who has changed since the version is in no page that is made later,
    and in one that was made before as he was then: whoever has read all pages needs what changed since the version.
    """

    __slots__ = ("_epoch", "_frames", "_pages", "_reached", "_view", "version")

    def __init__(self, view: View[Record], version: int, epoch: str) -> None:
        self.version = version
        self._view = view
        self._epoch = epoch
        self._reached = UNLISTED
        self._pages: list[list[StatusEntry]] = []
        self._frames: list[dict[tuple[int, bool], bytes]] = []

    def make(self, at: int) -> bool:
        """The page `at`, which is one that was made or the next, is there now. Whether it is the last."""
        if at == len(self._pages):
            records, self._reached = self._view.page(self._reached, self.version, SNAPSHOT_PAGE)
            self._pages.append([record.entry() for record in records if record.status != "offline"])
            self._frames.append({})
        return at == len(self._pages) - 1 and self._reached == self.version

    def frame(self, at: int, variant: int, *, final: bool) -> bytes:
        """The page `at` for this kind of recipient; `final`: nothing has changed since the version."""
        frame = self._frames[at].get((variant, final))
        if frame is None:
            cursor = make_cursor(self._epoch, PUBLIC_SCOPE, self.version) if final else UNSET
            message = UserOnlineStatus(self._pages[at], full=True, cursor=cursor, more=not final)
            frame = self._frames[at][variant, final] = frame_of(variant, message)
        return frame


class _Reading(Struct, frozen=True, gc=False):
    """How far a peer has come with what it is told of the public users."""

    snapshot: _Snapshot | None  #: it reads its pages first; None: it is told of changes
    at: int  #: the next page; of changes the version up to which they are told
    full: bool  #: what it is told replaces what it knows


class Pager:
    """Long lists of public users, a page a turn: snapshots for newcomers, and what a lagging reader missed.

    Both are walks in the order of versions: a peer costs two numbers, and no list. A peer that is being paged is not
    told of changes of the public users; the walk ends when it has caught up with them. Pages are written only while its
    socket takes them, so a slow newcomer costs one page. A crowd of newcomers shares a snapshot.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        engine: Engine,
        service: OnlineStatusService,
        *,
        epoch: str,
        public_audience: int,
    ) -> None:
        self._loop = loop
        self._engine = engine
        self._service = service
        self._epoch = epoch
        self._public = public_audience
        self._readings: dict[Peer, _Reading] = {}
        self._scheduled = False
        self._latest: _Snapshot | None = None
        self._latest_until_s = 0.0  # when nobody has wanted it for long enough

    def __contains__(self, peer: "Peer") -> bool:
        return peer in self._readings

    def forget(self, peer: "Peer") -> None:
        """The peer is gone."""
        self._readings.pop(peer, None)

    def begin(self, peer: "Peer", since: int | None) -> None:
        """Tell a peer of the public users: all of them, or what changed since a version; then it is in the audience."""
        if since is not None and self._service.roster.public.floor <= since <= self._service.version:
            reading = _Reading(None, since, full=False)
        else:
            reading = _Reading(self._snapshot(), 0, full=True)
        more = self._go_on(peer, reading)
        if more is not None:
            # Told of no change until the last page: a change's cursor would claim the pages that are still to come.
            self._engine.leave(peer.handle, self._public)
            self._readings[peer] = more
            self.kick()

    def _snapshot(self) -> _Snapshot:
        """The latest one, while what changed since is little; of few users, while nothing has."""
        view = self._service.roster.public
        latest = self._latest
        if latest is not None and latest.version >= view.floor:
            spare = len(view) // SNAPSHOT_SHARE if len(view) > SNAPSHOT_PAGE else 0
            if view.count_newer(latest.version) <= spare:
                self._latest_until_s = self._loop.time() + SNAPSHOT_KEPT_S
                return latest
        if latest is None:
            self._loop.call_later(SNAPSHOT_KEPT_S, self._let_go)
        self._latest_until_s = self._loop.time() + SNAPSHOT_KEPT_S
        self._latest = latest = _Snapshot(view, self._service.version, self._epoch)
        return latest

    def _let_go(self) -> None:
        """Of a snapshot that nobody wants any more."""
        left_s = self._latest_until_s - self._loop.time()
        if left_s > 0:
            self._loop.call_later(left_s, self._let_go)
        else:
            self._latest = None

    def kick(self) -> None:
        """Go on with the pages in the next turn."""
        if self._readings and not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._turn)

    def _turn(self) -> None:
        """One page for each peer whose socket takes it, for about one slice; the others have their turn later."""
        self._scheduled = False
        until_s = self._loop.time() + SLICE_US / 1_000_000
        wrote = False
        for peer in list(self._readings):
            if self._engine.lagging(peer.handle):
                continue  # its socket is full: `drained` kicks
            more = self._go_on(peer, self._readings.pop(peer))
            if more is not None:
                self._readings[peer] = more  # at the end of the queue
            wrote = True
            if self._loop.time() >= until_s:
                break
        self._engine.send()
        if wrote:
            self.kick()

    def _go_on(self, peer: "Peer", reading: _Reading) -> _Reading | None:
        """One page more. What is left to read; None for a peer that has caught up, and is in the audience now."""
        view = self._service.roster.public
        snapshot = reading.snapshot
        if snapshot is not None:
            is_last = snapshot.make(reading.at)
            final = is_last and snapshot.version >= view.newest
            self._engine.write(peer.handle, snapshot.frame(reading.at, peer.variant, final=final))
            if not final:
                return _Reading(None, snapshot.version, True) if is_last else _Reading(snapshot, reading.at + 1, True)
        elif reading.at >= view.floor:
            version = self._service.version
            records, reached = view.page(reading.at, version, SNAPSHOT_PAGE)
            final = reached == version
            entries = [record.entry() for record in records]
            cursor = make_cursor(self._epoch, PUBLIC_SCOPE, version) if final else UNSET
            # An empty one, too, when it is the last: it says that there was nothing.
            peer.send(UserOnlineStatus(entries, full=reading.full, cursor=cursor, more=not final))
            if not final:
                return _Reading(None, reached, reading.full)
        elif reading.full:
            peer.give_up("too slow for the snapshot")  # who left was dropped meanwhile: its pages can't be mended
            return None
        else:
            return _Reading(self._snapshot(), 0, True)  # the same, but so far it was told of changes alone
        self._engine.join(peer.handle, self._public)
        return None
