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
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Final

from msgspec import UNSET, Struct

from fastpresence._native import framing
from fastpresence._native.engine import Engine
from fastpresence.codec import JSON, MSGPACK, Codec
from fastpresence.messages import SNAPSHOT_PAGE, RoomOccupancy, StatusEntry, UserOnlineStatus
from fastpresence.presence.audience import Room, RoomDelta
from fastpresence.presence.roster import PUBLIC_SCOPE, UNLISTED, Record, make_cursor, room_scope
from fastpresence.presence.service import OnlineStatusService
from fastpresence.worker.deflate import LEAST, deflate

if TYPE_CHECKING:
    from fastpresence.worker.peer import Peer

__all__ = ["SLICE_US", "VARIANTS", "Flusher", "Pager", "frame_of"]

SLICE_US: Final = 2000  #: microseconds of fan-out between two looks at the sockets
OCCUPANCY_S: Final = 1.0  #: seconds between two counts of a crowded room
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
        has_variant: Callable[[int], bool],
    ) -> None:
        self._loop = loop
        self._engine = engine
        self._service = service
        self._counter = service.roster.counter
        self._epoch = epoch
        self._window_s = window_ms / 1000
        self._public = public_audience
        self._has_variant = has_variant
        self.told = service.version
        self._next_s = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._running = False
        self._owed: dict[Room, None] = {}  # crowded rooms whose count changed and was not told yet
        self._owed_timer: asyncio.TimerHandle | None = None

    def touch(self) -> None:
        """Something may have changed in this turn: tell it now, or as soon as the window allows."""
        if self._counter.version == self.told or self._running or self._timer is not None:
            return
        if self._loop.time() >= self._next_s:
            self._begin()
        else:
            self._timer = self._loop.call_at(self._next_s, self._due)

    def _due(self) -> None:
        self._timer = None
        if not self._running and self._service.version != self.told:
            self._begin()
            self._engine.send()

    def _begin(self) -> None:
        now_s = self._loop.time()
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
            self._tell_watchers(delta.watched, delta.version)
        if self._owed:
            jobs += self._counts(now_s)
        self._run(told, jobs)

    def _run(self, told: int, jobs: "list[_Job]") -> None:
        if jobs:
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
                frames = [frame_of(i, message) if self._has_variant(i) else None for i in range(len(VARIANTS))]
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
        messages = [
            UserOnlineStatus(entries[at : at + SNAPSHOT_PAGE], full=full, more=True, room=room)
            for at in range(0, len(entries) - SNAPSHOT_PAGE, SNAPSHOT_PAGE)
        ]
        last = entries[len(messages) * SNAPSHOT_PAGE :]
        messages.append(UserOnlineStatus(last, full=full, cursor=cursor, room=room))
        payloads: dict[Codec, list[bytes]] = {}  # encoded once, whether or not they are then compressed
        frames: list[bytes | None] = []
        for variant, (codec, compressed) in enumerate(VARIANTS):
            if not self._has_variant(variant):
                frames.append(None)
                continue
            if codec not in payloads:
                payloads[codec] = [codec.encode(message) for message in messages]
            frames.append(b"".join([_frame(codec, payload, compressed) for payload in payloads[codec]]))
        return tuple(frames)

    def _room_frames(self, change: RoomDelta, version: int) -> tuple[bytes | None, ...]:
        entries = [member.record.entry(left=member.left) for member in change.members]
        name = change.room.name
        return self._frames(entries, make_cursor(self._epoch, room_scope(name), version), name, full=change.full)

    def _tell_watchers(self, watched: dict[Any, list[Record]], version: int) -> None:
        """Watchers are told one by one; those who watch the same and hear the same share one frame."""
        public = self._service.roster.public
        frames: dict[tuple[object, ...], bytes] = {}
        for peer, records in watched.items():
            if peer.public:  # the public frame tells it of these
                records = [record for record in records if record.user_id not in public]
            if not records or peer.scope is None:
                continue
            key = (peer.variant, peer.scope, *[record.user_id for record in records])
            frame = frames.get(key)
            if frame is None:
                cursor = make_cursor(self._epoch, peer.scope, version)
                message = UserOnlineStatus([record.entry() for record in records], full=False, cursor=cursor)
                frame = frames[key] = frame_of(peer.variant, message)
            self._engine.tell(peer.handle, frame)

    def _step(self) -> None:
        if self._engine.flush_step(SLICE_US):
            self._running = False
            self.touch()
            if self._owed and not self._running:
                self._run(self.told, self._counts(self._loop.time()))
            self._engine.send()
        else:
            self._loop.call_soon(self._step)


class _Reading(Struct, frozen=True, gc=False):
    """How far a peer has come with what it is told of the public users."""

    after: int  #: told up to this version
    until: int  #: the version at which it began: what changes later is told next
    full: bool


class Pager:
    """Long lists of public users, a page a turn: snapshots for newcomers, and what a lagging reader missed.

    Both are the same walk, in the order of versions, from the beginning or from what the peer knows: it holds two
    numbers for each peer, and no list. A peer that is being paged is not told of changes of the public users; after the
    last page it gets what changed since the first one, and so on until it has caught up. Pages are written only while
    its socket takes them, so a slow newcomer costs one page.
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
        self._snapshots: list[tuple[int, bytes] | None] = [None] * len(VARIANTS)

    def __contains__(self, peer: "Peer") -> bool:
        return peer in self._readings

    def forget(self, peer: "Peer") -> None:
        """The peer is gone."""
        self._readings.pop(peer, None)

    def begin(self, peer: "Peer", since: int | None) -> None:
        """Tell a peer of the public users: all of them, or what changed since a version; then it is in the audience."""
        view = self._service.roster.public
        version = self._service.version
        if since is not None and view.floor <= since <= version:
            records, reached = view.page(since, version, SNAPSHOT_PAGE + 1)
            if reached == version and len(records) <= SNAPSHOT_PAGE:
                self._send(peer, records, full=False, cursor=version)  # an empty one, too: it says there was nothing
                self._engine.join(peer.handle, self._public)
                return
            reading = _Reading(since, version, full=False)
        elif len(view) <= SNAPSHOT_PAGE:
            self._engine.write(peer.handle, self._snapshot(peer.variant))
            self._engine.join(peer.handle, self._public)
            return
        else:
            reading = _Reading(UNLISTED, version, full=True)
        # Told of no change until the last page: a change's cursor would claim the pages that are still to come.
        self._engine.leave(peer.handle, self._public)
        self._readings[peer] = reading
        self.kick()

    def _snapshot(self, variant: int) -> bytes:
        """All public users in one frame, encoded once until one of them changes."""
        view = self._service.roster.public
        cached = self._snapshots[variant]
        if cached is not None and cached[0] == view.newest:
            return cached[1]
        entries = [record.entry() for record in view.values() if record.status != "offline"]
        cursor = make_cursor(self._epoch, PUBLIC_SCOPE, self._service.version)
        frame = frame_of(variant, UserOnlineStatus(entries, full=True, cursor=cursor))
        self._snapshots[variant] = (view.newest, frame)
        return frame

    def _send(self, peer: "Peer", records: Iterable[Record], *, full: bool, cursor: int | None) -> None:
        entries = [record.entry() for record in records]
        text = UNSET if cursor is None else make_cursor(self._epoch, PUBLIC_SCOPE, cursor)
        peer.send(UserOnlineStatus(entries, full=full, cursor=text, more=cursor is None))

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
            self._go_on(peer, self._readings.pop(peer))
            wrote = True
            if self._loop.time() >= until_s:
                break
        self._engine.send()
        if wrote:
            self.kick()

    def _go_on(self, peer: "Peer", reading: _Reading) -> None:
        view = self._service.roster.public
        if not reading.full and reading.after < view.floor:
            self.begin(peer, None)  # meanwhile what it had still to be told of was dropped
            return
        records, reached = view.page(reading.after, reading.until, SNAPSHOT_PAGE)
        if reading.full:
            records = [record for record in records if record.status != "offline"]
        if reached < reading.until:
            if records:
                self._send(peer, records, full=reading.full, cursor=None)
            self._readings[peer] = _Reading(reached, reading.until, reading.full)  # at the end of the queue
        else:
            self._send(peer, records, full=reading.full, cursor=reading.until)
            self.begin(peer, reading.until)  # what changed while it was being paged
