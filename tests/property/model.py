"""The protocol's presence and calls in plain lists and sets: what the core is measured against.

Written from docs/protocol.md (sections 2, 3 and "Polling"), and slow on purpose: everything is computed anew from the
sessions and the calls. It knows nothing of versions, views, wheels or cursors.

    operation -> sessions and calls change -> settle() -> who looks different to others, and what that makes of him

What sessions are told of calls is with them: `told` for their connection to take now, `missed` for their successor.
Invariant: a person's list has exactly his sessions that count. Driven by tests.property.test_presence.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

from fastpresence.messages import Status

__all__ = [
    "HEARTBEAT_MS",
    "RETENTION_MS",
    "RING_MS",
    "SESSIONS",
    "Call",
    "Frame",
    "Model",
    "Person",
    "Refused",
    "Session",
]

HEARTBEAT_MS = 60_000
RING_MS = 60_000
RETENTION_MS = 300_000
SESSIONS = 4  #: of one user: a limit that is met

ORDER: list[Status] = ["offline", "away", "online", "busy"]

#: type, call_id, from, to, video, audio, Unix seconds, reason or data
Frame = tuple[str, str, str, str, bool, bool, int, str]


class Refused(Exception):
    """The request changes nothing. Where several things are wrong with it the protocol lets the server choose."""

    def __init__(self, *codes: str) -> None:
        super().__init__(codes)
        self.codes = codes


@dataclass(eq=False)
class Session:
    user: str
    number: int
    device: str | None
    attached: bool
    heard_ms: int
    status: Status = "online"
    rooms: set[str] = field(default_factory=set)
    lent: dict[str, int] = field(
        default_factory=dict
    )  #: rooms of those it superseded, not asked for yet, and until when
    until_ms: int | None = None  #: when it ends (detached), or when it leaves what is lent to it (attached)
    gone: bool = False
    away_until_ms: int | None = None  #: without a connection, and in calls: how long those wait for it
    told: list[Frame] = field(default_factory=list)
    missed: list[Frame] = field(default_factory=list)


@dataclass(eq=False)
class Call:
    call_id: str
    caller: Session
    callee: str
    video: bool
    audio: bool
    until_ms: int
    ringing: list[Session] = field(default_factory=list)
    taker: Session | None = None

    def users(self) -> tuple[str, str]:
        return self.caller.user, self.callee


@dataclass
class Person:
    kind: str
    sessions: list[Session] = field(default_factory=list)  # oldest first
    hidden: bool = False
    heard_ms: int = 0  # in a session that ended
    # As others see him.
    known: bool = False
    status: Status = "offline"
    last_seen: int | None = None
    rev: int = 0
    offline_since_ms: int = 0


class Model:
    def __init__(
        self, kinds: dict[str, str], grace_ms: int | None, roster_limit: int, outgoing: int, incoming: int
    ) -> None:
        self.ms = 1_000_000
        self.wall_us = 1_640_995_200_000_000
        self.people = {user: Person(kind) for user, kind in kinds.items()}
        self.calls: list[Call] = []  # oldest first
        self.crowded: set[str] = set()
        self.grace_ms = grace_ms
        self.roster_limit = roster_limit
        self.outgoing = outgoing  # calls of one session that ring
        self.incoming = incoming  # calls that ring at one user
        self.made = 0

    # What is.

    def sessions(self) -> Iterable[Session]:
        return (session for person in self.people.values() for session in person.sessions)

    def sum_up(self, user: str) -> Status:
        """What others see: "busy, then online, then away, then offline", with the lease of a call above."""
        person = self.people[user]
        if person.hidden or not person.sessions:
            return "offline"
        if self.accepted(user):
            return "busy"
        return max((session.status for session in person.sessions), key=ORDER.index)

    def accepted(self, user: str) -> list[Call]:
        return [call for call in self.calls if call.taker is not None and user in call.users()]

    def ringing_at(self, user: str) -> list[Call]:
        return [call for call in self.calls if call.taker is None and call.callee == user]

    def room(self, name: str) -> set[str]:
        """Who is shown in the room."""
        return {session.user for session in self.sessions() if name in session.rooms and self.is_seen(session.user)}

    def is_seen(self, user: str) -> bool:
        return self.sum_up(user) != "offline"

    def predecessor(self, user: str, device: str | None) -> Session | None:
        """Whom a new session of this device supersedes."""
        mine = [session for session in self.people[user].sessions if session.device == device]
        if device is None:
            mine = [session for session in mine if not session.attached]
        return max(mine, key=lambda session: (session.heard_ms, session.number), default=None)

    # After each operation.

    def settle(self) -> list[str]:
        """Who looks different to others now."""
        changed = []
        for user, person in self.people.items():
            status = self.sum_up(user)
            if status != person.status:
                changed.append(user)
                if status == "offline":
                    person.offline_since_ms = self.ms
                person.status, person.known = status, True
                heard_ms = max([person.heard_ms, *(session.heard_ms for session in person.sessions)])
                second = (self.wall_us - (self.ms - heard_ms) * 1000) // 1_000_000
                person.last_seen = second if person.last_seen is None else max(person.last_seen, second)
            if not person.known and not person.sessions:
                person.last_seen, person.heard_ms = None, 0
        return changed

    def turn_rooms(self, names: Iterable[str]) -> set[str]:
        """At a flush: which rooms are told by number from now on. Returns those that are told by name again."""
        again = {name for name in self.crowded if len(self.room(name)) <= 0.9 * self.roster_limit}
        self.crowded -= again
        self.crowded |= {name for name in names if len(self.room(name)) > self.roster_limit}
        return again

    # Sessions.

    def online(
        self, user: str, device: str | None, status: Status | None, attached: bool, rooms: Collection[str]
    ) -> Session:
        person = self.people[user]
        older = self.predecessor(user, device)
        if older is None and len(person.sessions) >= SESSIONS:
            raise Refused("too_many")
        self.made += 1
        session = Session(user, self.made, device, attached, self.ms)
        person.sessions.append(session)
        if not attached:
            session.until_ms = self.ms + HEARTBEAT_MS
        session.rooms = set(rooms)
        if older is not None:
            self._supersede(older, session)
        self._say(session, status)
        self._ring_here(session)
        return session

    def poll(self, user: str, device: str | None, status: Status | None, rooms: Collection[str] | None) -> Session:
        session = self.predecessor(user, device)
        if session is None and device is None:
            mine = [each for each in self.people[user].sessions if each.device is None]
            session = max(mine, key=lambda each: (each.heard_ms, each.number), default=None)
        if session is None:
            session = self.online(user, device, status, False, ())
        else:
            self.hear(session)
            self._say(session, status)
        if rooms is not None and not session.attached:
            session.rooms.intersection_update(rooms)
            for name in rooms:
                self.join(session, name)
        return session

    def update(self, session: Session, status: Status | None, device: str | None) -> None:
        self._present(session)
        older = None
        if device is not None and device != session.device:
            older = self.predecessor(session.user, device)
            session.device = device
            if older is not None:
                self._supersede(older, session)
        self._say(session, status)
        if older is not None:
            self._ring_here(session)

    def change(self, session: Session, status: Status) -> None:
        self._present(session)
        self._say(session, status)

    def force(self, user: str, status: Status) -> None:
        person = self.people[user]
        if not person.sessions:
            raise Refused("not_online")
        for session in person.sessions:
            self._say(session, status)

    def hear(self, session: Session) -> None:
        session.heard_ms = self.ms
        if not session.attached and not session.gone:
            session.until_ms = self.ms + HEARTBEAT_MS

    def goodbye(self, session: Session) -> None:
        if not session.gone:
            self.end(session, self.ms if session.attached else session.heard_ms)

    def lose(self, session: Session, heard_ms: int) -> None:
        """Its connection broke."""
        if session.gone or not session.attached:
            return
        session.heard_ms = max(session.heard_ms, heard_ms)
        until_ms = max(session.heard_ms + HEARTBEAT_MS, self.ms + 1)
        if self.grace_ms is not None:
            until_ms = min(until_ms, self.ms + self.grace_ms)
        if self.grace_ms == 0:
            self.end(session, session.heard_ms)
        else:
            self._detach(session, until_ms)

    def fall_silent(self, session: Session, heard_ms: int) -> None:
        """Its connection said nothing for the heartbeat timeout. Polls may have come beside it."""
        if session.gone:
            return
        if session.heard_ms > heard_ms and session.heard_ms + HEARTBEAT_MS > self.ms:
            self._detach(session, session.heard_ms + HEARTBEAT_MS)
        else:
            self.end(session, max(session.heard_ms, heard_ms))

    def end(self, session: Session, heard_ms: int) -> None:
        person = self.people[session.user]
        person.heard_ms = max(person.heard_ms, heard_ms)
        self._remove(session)
        if not person.sessions:
            person.hidden = False
        for call in list(self.calls):
            if session in call.ringing:
                call.ringing.remove(session)
            if session in (call.caller, call.taker) or (call.callee == session.user and not person.sessions):
                self._finish(call, "offline")

    def _remove(self, session: Session) -> None:
        self.people[session.user].sessions.remove(session)
        session.gone, session.attached, session.until_ms = True, False, None
        session.rooms, session.lent, session.missed = set(), {}, []

    def _detach(self, session: Session, until_ms: int) -> None:
        session.attached, session.until_ms = False, until_ms
        if any(session in (call.caller, call.taker, *call.ringing) for call in self.calls):
            session.away_until_ms = self.ms + HEARTBEAT_MS

    def _supersede(self, older: Session, session: Session) -> None:
        """`session` has the rooms and the calls of `older`, and hears what that one could not."""
        names = older.rooms - session.rooms
        session.rooms |= names
        for name in names:
            session.lent[name] = max(older.lent.get(name, self.ms + HEARTBEAT_MS), self.ms + 1)
        if session.attached:
            session.until_ms = min(session.lent.values(), default=None)
        for call in self.calls:
            if call.caller is older:
                call.caller = session
            if call.taker is older:
                call.taker = session
            if older in call.ringing:
                call.ringing.remove(older)
                if session not in call.ringing:
                    call.ringing.append(session)
        missed = older.missed
        session.away_until_ms = None if session.attached else older.away_until_ms
        self._remove(older)
        for frame in missed:
            self._tell(session, frame)

    def _present(self, session: Session) -> None:
        if session.gone:
            raise Refused("not_online")
        self.hear(session)

    def _say(self, session: Session, status: Status | None) -> None:
        person = self.people[session.user]
        if status == "offline":
            person.hidden = True
            for call in self.ringing_at(session.user):
                self._finish(call, "offline")
        elif status is not None:
            person.hidden = False
            session.status = status

    # Rooms.

    def join(self, session: Session, name: str) -> None:
        if not session.gone:
            session.rooms.add(name)
            self._asked_for(session, name)

    def leave(self, session: Session, name: str) -> None:
        session.rooms.discard(name)
        self._asked_for(session, name)

    def _asked_for(self, session: Session, name: str) -> None:
        if name in session.lent:
            del session.lent[name]
            if session.attached:
                session.until_ms = min(session.lent.values(), default=None)

    # Time.

    def due(self) -> list[Session]:
        return [each for each in self.sessions() if each.until_ms is not None and each.until_ms <= self.ms]

    def expire(self, session: Session) -> None:
        """Its time is up."""
        if session.attached:
            over = {name for name, until_ms in session.lent.items() if until_ms <= self.ms}
            session.rooms -= over
            session.lent = {name: until_ms for name, until_ms in session.lent.items() if name not in over}
            session.until_ms = min(session.lent.values(), default=None)
        else:
            self.end(session, session.heard_ms)

    def stop_ringing(self) -> None:
        for call in list(self.calls):
            if call.taker is None and call.until_ms <= self.ms:
                self._finish(call, "timeout")
        for session in self.sessions():
            if session.away_until_ms is not None and session.away_until_ms <= self.ms:
                session.away_until_ms = None
                for call in list(self.calls):
                    if session in (call.caller, call.taker):
                        self._finish(call, "offline")

    def unknown_soon(self) -> list[str]:
        """Who went offline so long ago that nobody need remember him, longest first."""
        due = [
            user
            for user, person in self.people.items()
            if person.known and person.status == "offline" and person.offline_since_ms + RETENTION_MS <= self.ms
        ]
        return sorted(due, key=lambda user: self.people[user].offline_since_ms)

    def forget(self, user: str) -> None:
        self.people[user].known = False

    # Calls.

    def call(self, session: Session, call_id: str, callee: str, video: bool, audio: bool) -> Call:
        self._present(session)
        status = self.sum_up(callee)
        codes = []
        if callee == session.user or any(call.call_id == call_id for call in self.calls):
            codes.append("bad_field")
        if status == "offline":
            codes.append("user_offline")
        elif not any(each.attached for each in self.people[callee].sessions):
            codes.append("unavailable")
        if status == "busy" or self.accepted(session.user) or len(self.ringing_at(callee)) >= self.incoming:
            codes.append("user_busy")
        if sum(call.caller is session for call in self.calls) >= self.outgoing:
            codes.append("too_many")
        if codes:
            raise Refused(*codes)
        call = Call(call_id, session, callee, video, audio, self.ms + RING_MS)
        self.calls.append(call)
        for each in self.people[callee].sessions:
            self._ring(call, each)
        return call

    def accept(self, session: Session, call_id: str) -> None:
        call = self._find(session, call_id)
        if call.taker is session:
            return
        if session.user != call.callee or call.taker is not None:
            raise Refused("unknown_call")
        self._tell_all([call.caller, *call.ringing], self._frame("call_accept", call, session.user), but=session)
        call.taker, call.ringing = session, []
        for other in list(self.calls):
            if other.taker is None and set(other.users()) & set(call.users()):
                self._finish(other, "busy")

    def reject(self, session: Session, call_id: str) -> None:
        call = self._find(session, call_id)
        if call.taker is None and session.user == call.callee:
            self._drop(call, "call_reject", session)
        elif call.taker is session:
            self._drop(call, "call_end", session, "hangup")
        else:
            raise Refused("unknown_call")

    def cancel(self, session: Session, call_id: str) -> None:
        call = self._find(session, call_id)
        if session.user != call.caller.user:
            raise Refused("unknown_call")
        if call.taker is None:
            self._drop(call, "call_cancel", session)
        else:
            self._drop(call, "call_end", session, "hangup")

    def hang_up(self, session: Session, call_id: str) -> None:
        call = self._find(session, call_id)
        if call.taker is not None:
            self._drop(call, "call_end", session, "hangup")
        elif session.user == call.callee:
            self.reject(session, call_id)
        else:
            self.cancel(session, call_id)

    def signal(self, session: Session, call_id: str, data: str) -> None:
        call = self._find(session, call_id)
        if session.user == call.callee:
            targets = [call.caller]
        else:
            targets = call.ringing if call.taker is None else [call.taker]
        if not any(each.attached for each in targets):
            raise Refused("unavailable")
        self._tell_all(targets, self._frame("call_signal", call, session.user, data))

    def _find(self, session: Session, call_id: str) -> Call:
        self._present(session)
        for call in self.calls:
            if call.call_id == call_id and session.user in call.users():
                return call
        raise Refused("unknown_call")

    def _frame(self, kind: str, call: Call, sender: str, more: str = "") -> Frame:
        (other,) = set(call.users()) - {sender}
        return (kind, call.call_id, sender, other, call.video, call.audio, self.wall_us // 1_000_000, more)

    def _tell(self, session: Session, frame: Frame) -> None:
        """What rings or signals is for now; everything else can be heard later."""
        if session.attached:
            session.told.append(frame)
        elif frame[0] not in ("call", "call_signal"):
            session.missed.append(frame)

    def _tell_all(self, sessions: Iterable[Session], frame: Frame, but: Session | None = None) -> None:
        for session in sessions:
            if session is not but:
                self._tell(session, frame)

    def _ring(self, call: Call, session: Session) -> None:
        if session.attached:
            if session not in call.ringing:
                call.ringing.append(session)
            self._tell(session, self._frame("call", call, call.caller.user))

    def _ring_here(self, session: Session) -> None:
        for call in self.ringing_at(session.user):
            self._ring(call, session)

    def _drop(self, call: Call, kind: str, session: Session, more: str = "") -> None:
        """`session` ended it."""
        self.calls.remove(call)
        ends = [call.caller, *call.ringing] if call.taker is None else [call.caller, call.taker]
        self._tell_all(ends, self._frame(kind, call, session.user, more), but=session)

    def _finish(self, call: Call, reason: str) -> None:
        """Nobody asked for its end: each side hears of it from the other. Who is gone hears nothing."""
        self.calls.remove(call)
        caller, callee = call.users()
        if not call.caller.gone:
            self._tell(call.caller, self._frame("call_end", call, callee, reason))
        for session in call.ringing if call.taker is None else [call.taker]:
            if not session.gone:
                self._tell(session, self._frame("call_end", call, caller, reason))
