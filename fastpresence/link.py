"""What node and worker say to each other, over the one Unix socket that a worker is born with.

Sans-IO: bytes in, structs out. A frame is four bytes of length (big-endian, unsigned) and one MessagePack map.

    node:   Boot Revoked ...        Reload                  Stop
    worker:                  Ready           Reloaded            (ends)
    at any time after that: Stats, Journal, Present by the worker, Revoke by either

Both ends come from the same installation and trust each other; what is checked is checked against a mix-up. Either
end takes the other's end of file for its death. The deltas of the relay will join `LinkFrame` here. May import
`errors`, `settings`.
"""

import struct
from typing import Final

import msgspec
from msgspec import Struct

from fastpresence.errors import PeerError
from fastpresence.settings import Settings

__all__ = [
    "MAX_FRAME",
    "Boot",
    "FrameReader",
    "Journal",
    "JournalLine",
    "LinkFrame",
    "Present",
    "PresentUser",
    "Ready",
    "Reload",
    "Reloaded",
    "Revoke",
    "Revoked",
    "Stats",
    "Stop",
    "encode",
]

#: Bytes of one frame: far above a whole roster's page, far below what a length gone wrong would ask for.
MAX_FRAME: Final = 16 * 1024 * 1024
_HEAD: Final = struct.Struct(">I")


class Boot(Struct, tag="boot", frozen=True):
    """Node to worker, the first frame: who you are, and where you listen."""

    settings: Settings
    worker: int  #: from 0; the label of logs and metrics
    listener_fd: int  #: inherited, listening, non-blocking; the node keeps it open as well
    login_jwks: str | None = None  #: the text of `auth.login_jwks_file`: read and checked by the node


class Revoked(Struct, tag="revoked", frozen=True):
    """Node to worker, after Boot: what was revoked so far, in pages. There is always one; the last says so."""

    entries: list[tuple[str, int]]  #: user id, and up to and including which Unix second
    is_last: bool


class Revoke(Struct, tag="revoke", frozen=True, gc=False):
    """Worker to node, which tells all the others: this user's tokens stopped working."""

    user_id: str
    before: int  #: those that were issued up to and including this Unix second


class Reload(Struct, tag="reload", frozen=True):
    """Node to worker: the settings were read again; take over what can be replaced in place."""

    generation: int  #: how often they were read again, from 1
    settings: Settings
    login_jwks: str | None = None


class Reloaded(Struct, tag="reloaded", frozen=True, gc=False):
    """Worker to node, the answer to `Reload`."""

    generation: int
    problem: str | None = None  #: why everything is as it was


class Ready(Struct, tag="ready", frozen=True, gc=False):
    """Worker to node: it accepts connections."""

    port: int  #: that it serves, as its listener says
    pid: int


class Stop(Struct, tag="stop", frozen=True, gc=False):
    """Node to worker: drain, then end. A worker that is still there afterwards is killed."""

    drain_time: float  #: seconds, counted from the receipt


class Stats(Struct, tag="stats", frozen=True, gc=False):
    """Worker to node, every few seconds."""

    connections: int
    users: int  #: present ones


class JournalLine(Struct, array_like=True, frozen=True, gc=False):
    """A session came, went or changed: see `presence.sessions.Transition`, which is written as one of these."""

    user_id: str
    user_type: str
    session: int  #: unique in one life of the worker; 0: a change that no session made
    kind: str  #: online, offline, status, reconnect
    was: str  #: what others saw of the user before
    status: str  #: and after
    reason: str
    rev: int
    at_us: int  #: Unix epoch, microseconds
    attempt: int | None = None
    superseded: int = 0  #: the session whose place this one took


class Journal(Struct, tag="journal", frozen=True):
    """Worker to node, some hundred milliseconds after it happened at most: lines, oldest first."""

    lines: list[JournalLine]
    dropped: int = 0  #: lines that were lost right before these, since the node did not read; `Present` follows


class PresentUser(Struct, array_like=True, frozen=True):
    """A user with sessions in this worker."""

    user_id: str
    user_type: str
    status: str
    rev: int
    sessions: list[int]


class Present(Struct, tag="present", frozen=True):
    """Worker to node, after lines were lost, in pages: everybody who has a session there when the page is made."""

    users: list[PresentUser]
    is_first: bool  #: whoever is not in this page or one of the next, or in a later line, is gone


LinkFrame = Boot | Journal | Present | Ready | Reload | Reloaded | Revoke | Revoked | Stop | Stats

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(LinkFrame).decode


def encode(frame: LinkFrame) -> bytes:
    """The bytes of one frame. Raises ValueError when it is too big for the link."""
    payload = _encode(frame)
    if len(payload) > MAX_FRAME:
        raise ValueError(f"a frame of {len(payload)} bytes is too big for the link")
    return _HEAD.pack(len(payload)) + payload


class FrameReader:
    """Cuts a stream into frames, wherever its pieces end."""

    def __init__(self) -> None:
        self._rest = bytearray()

    @property
    def is_between_frames(self) -> bool:
        """Whether the stream may end here without having lost anything."""
        return not self._rest

    def feed(self, data: bytes) -> list[LinkFrame]:
        """The frames that are complete now. Raises PeerError for what is no frame; the link is then of no more use."""
        rest = self._rest
        rest += data
        frames: list[LinkFrame] = []
        at = 0
        while len(rest) - at >= _HEAD.size:
            (size,) = _HEAD.unpack_from(rest, at)
            if size > MAX_FRAME:
                raise PeerError(f"the other end of the link announces a frame of {size} bytes")
            end = at + _HEAD.size + size
            if len(rest) < end:
                break
            try:
                frames.append(_decode(bytes(rest[at + _HEAD.size : end])))
            except msgspec.DecodeError as error:
                raise PeerError(f"the other end of the link sent no frame of ours: {error}") from None
            at = end
        del rest[:at]
        return frames
