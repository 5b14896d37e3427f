"""When to tell, what to encode, whom to skip, and how a lagging reader catches up.

    quiet --change--> flush in the same turn --> [slices of 2 ms, I/O in between] --> quiet
                         the next one: the flush window after this one's start, or at its end, whichever is later

Each flush tells what changed since the last one: of every user only the last state, encoded once for each kind of
recipient. A recipient that was left out (its socket was full) is caught up from its own version once it drains, in
pages, while presence goes on for everybody else.

Invariant: every connection that is neither lagging nor being paged has been told everything up to `told`, or is about
to be by the running flush.
"""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final

from msgspec import UNSET

from fastpresence._native import framing
from fastpresence._native.engine import Engine
from fastpresence.codec import JSON, MSGPACK, Codec
from fastpresence.messages import SNAPSHOT_PAGE, StatusEntry, UserOnlineStatus
from fastpresence.presence.audience import Room, RoomMember
from fastpresence.presence.roster import PUBLIC_SCOPE, Record, make_cursor, room_scope
from fastpresence.presence.service import OnlineStatusService
from fastpresence.worker.deflate import LEAST, deflate

if TYPE_CHECKING:
    from fastpresence.worker.peer import Peer

__all__ = ["SLICE_US", "VARIANTS", "Flusher", "Pager", "frame_of"]

SLICE_US: Final = 2000  #: microseconds of fan-out between two looks at the sockets
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
        self._next_s = self._loop.time() + self._window_s
        told = self.told
        delta = self._service.collect(told)
        self.told = delta.version
        jobs: list[tuple[int, tuple[bytes | None, ...]]] = []
        if delta.public and self._engine.audience_size(self._public):
            cursor = make_cursor(self._epoch, PUBLIC_SCOPE, delta.version)
            entries = [record.entry() for record in delta.public]
            jobs.append((self._public, self._frames(entries, cursor, None)))
        for room, members in delta.rooms:
            if room.audience is not None and self._engine.audience_size(room.audience):
                jobs.append((room.audience, self._room_frames(room, members, delta.version)))
        if delta.watched:
            self._tell_watchers(delta.watched, delta.version)
        if jobs:
            self._engine.flush_begin(told, jobs)
            self._running = True
            self._step()

    def _frames(self, entries: list[StatusEntry], cursor: str, room: str | None) -> tuple[bytes | None, ...]:
        """For each kind of recipient what it is sent: one frame, or several pages in one piece."""
        messages = [
            UserOnlineStatus(entries[at : at + SNAPSHOT_PAGE], full=False, more=True, room=room)
            for at in range(0, len(entries) - SNAPSHOT_PAGE, SNAPSHOT_PAGE)
        ]
        last = entries[len(messages) * SNAPSHOT_PAGE :]
        messages.append(UserOnlineStatus(last, full=False, cursor=cursor, room=room))
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

    def _room_frames(self, room: Room, members: Iterable[RoomMember], version: int) -> tuple[bytes | None, ...]:
        entries = [member.record.entry(left=member.left) for member in members]
        return self._frames(entries, make_cursor(self._epoch, room_scope(room.name), version), room.name)

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
            self._engine.send()
        else:
            self._loop.call_soon(self._step)


class Pager:
    """Long lists of public users, a page a turn: snapshots for newcomers, and what a lagging reader missed.

    A peer that is being paged is not told of changes of the public users; after the last page it gets what changed
    since the first one, and so on until it has caught up. Pages are written only while its socket takes them, so a
    slow newcomer costs one page.
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
        self._pages: dict[Peer, tuple[Sequence[Record], int, bool, int]] = {}
        self._scheduled = False
        self._snapshots: list[tuple[int, bytes] | None] = [None] * len(VARIANTS)

    def __contains__(self, peer: "Peer") -> bool:
        return peer in self._pages

    def forget(self, peer: "Peer") -> None:
        """The peer is gone."""
        self._pages.pop(peer, None)

    def begin(self, peer: "Peer", since: int | None) -> None:
        """Tell a peer of the public users: all of them, or what changed since a version; then it is in the audience."""
        view = self._service.roster.public
        records = None if since is None else view.changes_since(since)
        if records is not None:
            self._send(peer, records, full=False)  # an empty one, too: it says that there was nothing
        elif len(view) <= SNAPSHOT_PAGE:
            self._engine.write(peer.handle, self._snapshot(peer.variant))
            self._engine.join(peer.handle, self._public)
        else:
            self._send(peer, [record for record in view.values() if record.status != "offline"], full=True)

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

    def _send(self, peer: "Peer", records: Sequence[Record], *, full: bool) -> None:
        version = self._service.version
        if len(records) <= SNAPSHOT_PAGE:
            self._page(peer, records, full=full, version=version, more=False)
            self._engine.join(peer.handle, self._public)
            return
        # Told of no change until the last page: a change's cursor would claim the pages that are still to come.
        self._engine.leave(peer.handle, self._public)
        self._pages[peer] = (records, 0, full, version)
        self.kick()

    def _page(self, peer: "Peer", records: Sequence[Record], *, full: bool, version: int, more: bool) -> None:
        entries = [record.entry() for record in records]
        cursor = UNSET if more else make_cursor(self._epoch, PUBLIC_SCOPE, version)
        peer.send(UserOnlineStatus(entries, full=full, cursor=cursor, more=more))

    def kick(self) -> None:
        """Go on with the pages in the next turn."""
        if self._pages and not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._turn)

    def _turn(self) -> None:
        """One page for each peer whose socket takes it, for about one slice; the others have their turn later."""
        self._scheduled = False
        until_s = self._loop.time() + SLICE_US / 1_000_000
        wrote = False
        for peer in list(self._pages):
            if self._engine.lagging(peer.handle):
                continue  # its socket is full: `drained` kicks
            records, at, full, version = self._pages.pop(peer)
            end = at + SNAPSHOT_PAGE
            more = end < len(records)
            self._page(peer, records[at:end], full=full, version=version, more=more)
            if more:
                self._pages[peer] = (records, end, full, version)  # at the end of the queue
            else:
                self.begin(peer, version)  # what changed while it was being paged
            wrote = True
            if self._loop.time() >= until_s:
                break
        self._engine.send()
        if wrote:
            self.kick()
