"""One session's phases, what many sessions of one user add up to, and the deadlines of those without a connection.

Sans-IO: every operation is given a `Now` by its caller.

    (hello) -> ATTACHED -lost-> DETACHED -silence-> GONE
    ATTACHED or DETACHED -goodbye, silence, superseded-> GONE      (a reconnect is a new session, superseding the old)

Invariants: `connection` is None exactly when the phase is not ATTACHED; a timer is armed while it is DETACHED, or while
it holds rooms that it inherited; a record lists exactly its sessions that are not GONE. Lowest module of the core;
driven by presence.service.
"""

from collections.abc import Sequence
from enum import IntEnum
from typing import TYPE_CHECKING, Any, Final, Literal

from msgspec import Struct

from fastpresence._native.wheel import Wheel
from fastpresence.messages import Status

if TYPE_CHECKING:
    from fastpresence.presence.roster import Record

__all__ = [
    "NEXT",
    "Cue",
    "Deadlines",
    "Now",
    "Phase",
    "Session",
    "Transition",
    "predecessor",
    "present_session",
    "strongest",
]


class Now(Struct, frozen=True, gc=False):
    """One moment by two clocks. Deadlines go by the first, what others are told by the second."""

    ms: int  #: monotonic, milliseconds
    wall_us: int  #: Unix epoch, microseconds; may step either way

    def wall_us_at(self, ms: int) -> int:
        """The wall time, in microseconds, of the monotonic moment `ms`; never later than now."""
        return self.wall_us - (self.ms - ms) * 1000 if ms < self.ms else self.wall_us


class Phase(IntEnum):
    """Where a session is between hello and gone. IntEnum: its members hash at the speed of integers."""

    ATTACHED = 0  #: a connection owns it
    DETACHED = 1  #: its connection broke (or it never had one: polling); a deadline runs
    GONE = 2  #: ended or superseded; counts for nothing


class Cue(IntEnum):
    """What happens to a session."""

    LOST = 0  #: its connection broke
    GOODBYE = 1  #: it was ended on purpose, by its user or by an administrator
    SILENCE = 2  #: its deadline passed
    SUPERSEDED = 3  #: a new session of the same user took its place


#: A refused cue (one that a phase does not list) changes nothing.
NEXT: Final = {
    Phase.ATTACHED: {
        Cue.LOST: Phase.DETACHED,
        Cue.GOODBYE: Phase.GONE,
        Cue.SILENCE: Phase.GONE,
        Cue.SUPERSEDED: Phase.GONE,
    },
    Phase.DETACHED: {Cue.GOODBYE: Phase.GONE, Cue.SILENCE: Phase.GONE, Cue.SUPERSEDED: Phase.GONE},
    Phase.GONE: {},
}

# Bound once: looking a member up on its class costs more than all else that a heartbeat does.
ATTACHED: Final = Phase.ATTACHED
DETACHED: Final = Phase.DETACHED
GONE: Final = Phase.GONE


class Session:
    """One connection's presence. Outlives the connection while DETACHED."""

    __slots__ = ("connection", "device", "last_heard_ms", "number", "phase", "record", "rooms", "status")

    def __init__(
        self, number: int, record: "Record", device: str | None, connection: Any | None, status: Status, heard_ms: int
    ) -> None:
        self.number = number  #: unique in this process, from 1
        self.record = record
        self.device = device  #: which of the user's devices this is, if its client said so
        self.connection = connection  #: opaque owner while attached
        self.status = status  #: its own: never "offline", since appearing offline is a matter of the whole user
        self.last_heard_ms = heard_ms  #: monotonic, as far as the core was told
        self.phase: Phase = ATTACHED if connection is not None else DETACHED
        self.rooms: set[str] | None = None  #: names of the rooms it is in; None for none

    def take(self, cue: Cue) -> bool:
        """Moves on by `cue`; False when the phase refuses it. Lets go of the connection when that is over."""
        phase = NEXT[self.phase].get(cue)
        if phase is None:
            return False
        self.phase = phase
        self.connection = None
        return True


class Transition(Struct, array_like=True, frozen=True, gc=False):
    """One line of the journal: a session came, went or changed, and what others saw of its user before and after."""

    user_id: str
    user_type: str
    session: int  #: the session's number; 0 for a change that no session made
    kind: Literal["online", "offline", "status", "reconnect"]
    was: Status  #: the user's merged status before
    status: Status  #: and after; the same when other sessions outweigh this one, or while the user appears offline
    reason: str  #: of "offline": "goodbye", "timeout" or what the caller gave; else which request it was
    rev: int  #: the record's, after
    at_us: int  #: Unix epoch, microseconds
    attempt: int | None = None  #: of "online" and "reconnect": which attempt the client says it was
    superseded: int = 0  #: of "reconnect": the number of the session whose place this one took


_RANK: Final[dict[Status, int]] = {"offline": 0, "away": 1, "online": 2, "busy": 3}


def strongest(sessions: Sequence[Session]) -> Status:
    """What these sessions add up to (protocol, section 3): busy, then online, then away, then offline."""
    if len(sessions) == 1:
        return sessions[0].status
    best: Status = "offline"
    for session in sessions:
        if _RANK[session.status] > _RANK[best]:
            best = session.status
    return best


def predecessor(sessions: Sequence[Session], device: str | None) -> Session | None:
    """Which of a user's sessions a new one supersedes (protocol, section 3).

    With a `device`: the one of that device, attached or not. Without: the detached one without device that was heard
    last (of several such the youngest), and never an attached one.
    """
    if device is not None:
        for session in sessions:
            if session.device == device:
                return session
        return None
    latest: Session | None = None
    for session in sessions:
        if session.device is None and session.phase is DETACHED:  # noqa: SIM102
            if latest is None or session.last_heard_ms >= latest.last_heard_ms:
                latest = session
    return latest


def present_session(sessions: Sequence[Session], device: str | None) -> Session | None:
    """Which of a user's sessions speaks when a client without a connection does: see `handle_poll`."""
    found = predecessor(sessions, device)
    if found is None and device is None:
        for session in sessions:
            if session.device is None and (found is None or session.last_heard_ms >= found.last_heard_ms):
                found = session
    return found


class Deadlines:
    """The timers of detached sessions: attached ones have theirs with their connection. Late by less than one tick."""

    __slots__ = ("_free", "_sessions", "_timers", "_wheel")

    def __init__(self) -> None:
        self._wheel: Wheel | None = None  # made at the first use, which knows what time it is
        self._sessions: list[Session | None] = []  # by timer
        self._free: list[int] = []  # timers that nobody has
        self._timers: dict[Session, int] = {}

    def __len__(self) -> int:
        return len(self._timers)

    def arm(self, session: Session, deadline_ms: int, *, now_ms: int) -> None:
        """Moves the session's deadline, or gives it its first."""
        if self._wheel is None:
            self._wheel = Wheel(now_ms=now_ms)
        timer = self._timers.get(session)
        if timer is None:
            if self._free:
                timer = self._free.pop()
                self._sessions[timer] = session
            else:
                timer = len(self._sessions)
                self._sessions.append(session)
            self._timers[session] = timer
        self._wheel.arm(timer, deadline_ms)

    def disarm(self, session: Session) -> None:
        """The session needs no deadline any more; nothing happens when it has none."""
        timer = self._timers.pop(session, None)
        if timer is not None and self._wheel is not None:
            self._wheel.cancel(timer)
            self._sessions[timer] = None
            self._free.append(timer)

    def expired(self, now_ms: int, limit: int) -> list[Session]:
        """Disarms and returns sessions whose deadline passed, at most `limit`; when it is that many, ask again."""
        if self._wheel is None:
            return []
        due: list[Session] = []
        for timer in self._wheel.advance(now_ms, limit):
            session = self._sessions[timer]
            if session is not None:
                del self._timers[session]
                self._sessions[timer] = None
                self._free.append(timer)
                due.append(session)
        return due
