"""Calls: who rings whom, and who is busy by it.

    ring -> RINGING -accept-> ACTIVE -hang-up, a side gone-> over
    RINGING -reject, cancel, silence, a side gone, somebody busy-> over

A call is between two users. The caller's end is one session; the callee's are all that ring, then the one that
accepted. A session that comes back in another's place has its ends of calls, too, and is told what it missed.
While a call is ACTIVE both users hold a lease: they show busy, whatever their sessions say beneath (`is_busy`).

Pure: what sessions are to be told waits in `outbox`, whose leases came or went in `changed`, until the caller takes
them. Invariants: a user has at most one ACTIVE call, and none that rings beside it; everything here ends with either
session, at the latest. Bounded by `OUTGOING_MAX` and `INCOMING_MAX`. Driven by presence.service.
"""

from collections import OrderedDict
from enum import IntEnum
from typing import Final

from fastpresence.errors import BadField, TooMany, Unavailable, UnknownCall, UserBusy, UserOffline
from fastpresence.messages import (
    CallAccepted,
    CallCancelled,
    CallEnded,
    CallFrame,
    CallRejected,
    CallRinging,
    CallSignalled,
    EndReason,
)
from fastpresence.presence.roster import Record
from fastpresence.presence.sessions import GONE, Now, Session

__all__ = ["INCOMING_MAX", "NEXT", "OUTGOING_MAX", "RING_MS", "CallCue", "CallPhase", "Calls", "RunningCall"]

#: How long a call rings: 60 s (protocol, section 3).
RING_MS: Final = 60_000
#: Calls of one session that ring at once.
OUTGOING_MAX: Final = 8
#: Calls that ring at one user at once; for whoever comes next he is busy.
INCOMING_MAX: Final = 100


class CallPhase(IntEnum):
    """Where a call is."""

    RINGING = 0
    ACTIVE = 1
    OVER = 2


class CallCue(IntEnum):
    """What happens to a call."""

    ACCEPT = 0
    REJECT = 1
    CANCEL = 2
    HANG_UP = 3
    SILENCE = 4  #: nobody answered in time
    GONE = 5  #: a side's session ended, or the called user does not want to be seen
    TAKEN = 6  #: one of both became busy with another


#: A refused cue (one that a phase does not list) changes nothing.
NEXT: Final = {
    CallPhase.RINGING: {
        CallCue.ACCEPT: CallPhase.ACTIVE,
        CallCue.REJECT: CallPhase.OVER,
        CallCue.CANCEL: CallPhase.OVER,
        CallCue.SILENCE: CallPhase.OVER,
        CallCue.GONE: CallPhase.OVER,
        CallCue.TAKEN: CallPhase.OVER,
    },
    CallPhase.ACTIVE: {CallCue.HANG_UP: CallPhase.OVER, CallCue.GONE: CallPhase.OVER},
    CallPhase.OVER: {},
}
RINGING: Final = CallPhase.RINGING
ACTIVE: Final = CallPhase.ACTIVE


class RunningCall:
    """One call that is not over."""

    __slots__ = ("audio", "call_id", "callee", "caller", "deadline_ms", "phase", "rung", "taker", "video")

    def __init__(
        self, call_id: str, caller: Session, callee: Record, video: bool, audio: bool, deadline_ms: int
    ) -> None:
        self.call_id = call_id
        self.caller = caller
        self.callee = callee
        self.rung: dict[Session, None] = {}  #: sessions of the callee that were told; once ACTIVE none
        self.taker: Session | None = None  #: the one of them that accepted
        self.video = video
        self.audio = audio
        self.deadline_ms = deadline_ms  #: monotonic: when it stops ringing
        self.phase = RINGING

    def frame(self, kind: type[CallFrame], sender: Record, now: Now, **more: str) -> CallFrame:
        """What `sender`, one of both users, tells the other."""
        caller, callee = self.caller.record, self.callee
        other = callee if sender is caller else caller
        second = now.wall_us // 1_000_000
        return kind(self.call_id, sender.user_id, other.user_id, self.video, self.audio, second, **more)


class Calls:
    """All calls of one process."""

    def __init__(self) -> None:
        self.by_id: dict[str, RunningCall] = {}
        self.outbox: list[tuple[Session, CallFrame]] = []  #: to be told, in this order
        self.changed: list[Record] = []  #: whose lease came or went
        self.missed: dict[Session, list[CallFrame]] = {}  #: what sessions without a connection were to be told
        self._active: dict[Record, RunningCall] = {}
        self._ringing: OrderedDict[RunningCall, None] = OrderedDict()  # oldest first: all ring equally long
        self._ringing_at: dict[Record, dict[RunningCall, None]] = {}
        self._ends: dict[Session, dict[RunningCall, None]] = {}  # in which calls a session has a part
        self._away: dict[Session, int] = {}  # parties without a connection -> until when their calls wait (monotonic)

    def is_busy(self, record: Record) -> bool:
        """Whether a call says so."""
        return record in self._active

    # What users do. Each raises a RequestError when it changes nothing.

    def ring(
        self, session: Session, call_id: str, callee: Record | None, video: bool, audio: bool, now: Now
    ) -> RunningCall:
        """A new call, which rings at every session of the callee that has a connection."""
        caller = session.record
        if callee is caller:
            raise BadField("to_user_id: the caller's own")
        if call_id in self.by_id:
            raise BadField("call_id: another call has it")
        if callee is None or callee.status == "offline":
            raise UserOffline("the called user is not online")
        if callee.status == "busy":
            raise UserBusy("the called user is busy")
        if caller in self._active:
            raise UserBusy("you are in a call already")
        if sum(call.caller is session for call in self._ends.get(session, ())) >= OUTGOING_MAX:
            raise TooMany(f"at most {OUTGOING_MAX} calls ring for one session")
        if len(self._ringing_at.get(callee, ())) >= INCOMING_MAX:
            raise UserBusy("the called user is busy")
        if not any(each.connection is not None for each in callee.sessions):
            raise Unavailable("no connection of the called user can be reached just now")
        call = RunningCall(call_id, session, callee, video, audio, now.ms + RING_MS)
        self.by_id[call_id] = call
        self._ringing[call] = None
        self._ringing_at.setdefault(callee, {})[call] = None
        self._take_part(session, call)
        for each in callee.sessions:
            self._ring_at(call, each, now)
        return call

    def accept(self, session: Session, call_id: str, now: Now) -> None:
        """The called user takes the call with this session; whatever else rings for either user is over."""
        call = self._find(session, call_id)
        callee = session.record
        if call.phase is ACTIVE and session is call.taker:
            return  # said again by who did not hear that it was taken
        if callee is not call.callee or not self._move(call, CallCue.ACCEPT):
            raise UnknownCall("no such call rings here")
        self._stop_ringing(call)
        others, call.rung, call.taker = call.rung, {}, session
        self._take_part(session, call)
        for each in (call.caller, *others):
            if each is not session:
                self._tell(each, call.frame(CallAccepted, callee, now))
        for each in others:
            if each is not session:
                self._part(each, call)
        for record in (call.caller.record, callee):
            self._active[record] = call
            self.changed.append(record)
            for other in self._ringing_for(record):
                self._finish(other, CallCue.TAKEN, "busy", now)

    def reject(self, session: Session, call_id: str, now: Now) -> None:
        """The called user does not want it; of an ACTIVE one, the session that took it hangs up."""
        call = self._find(session, call_id)
        if call.phase is ACTIVE and session is call.taker:
            self._hang_up(call, session, now)
        elif session.record is call.callee and self._move(call, CallCue.REJECT):
            self._say_and_drop(call, CallRejected, session, now)
        else:
            raise UnknownCall("no such call rings here")

    def cancel(self, session: Session, call_id: str, now: Now) -> None:
        """The caller takes it back; of one that was ACTIVE already he hangs up."""
        call = self._find(session, call_id)
        if session.record is not call.caller.record:
            raise UnknownCall("no such call of yours")
        if call.phase is ACTIVE:
            self._hang_up(call, session, now)
        elif self._move(call, CallCue.CANCEL):
            self._say_and_drop(call, CallCancelled, session, now)

    def end(self, session: Session, call_id: str, now: Now) -> None:
        """Either user hangs up; while it rings the caller cancels and the called user rejects."""
        call = self._find(session, call_id)
        if call.phase is ACTIVE:
            self._hang_up(call, session, now)
        elif session.record is call.callee:
            self.reject(session, call_id, now)
        else:
            self.cancel(session, call_id, now)

    def signal(self, session: Session, call_id: str, data: str, now: Now) -> None:
        """For the other side: while it rings, for each session of the callee that does."""
        call = self._find(session, call_id)
        if session.record is call.callee:
            targets = [call.caller]
        else:
            targets = [*call.rung] if call.taker is None else [call.taker]
        targets = [each for each in targets if each.connection is not None]
        if not targets:
            raise Unavailable("the other side cannot be reached just now")
        frame = call.frame(CallSignalled, session.record, now, data=data)
        self.outbox.extend((each, frame) for each in targets)

    def withdraw(self, call: RunningCall) -> None:
        """It could not ring anywhere: as if it had never been."""
        if self._move(call, CallCue.CANCEL):
            self._drop(call)

    # What happens to sessions and users.

    def session_lost(self, session: Session, until_ms: int) -> None:
        """Its connection broke. Its calls wait for it until then, also while polls keep the session itself alive."""
        if session in self._ends:
            self._away[session] = until_ms

    def session_superseded(self, session: Session, older: Session, now: Now) -> None:
        """`session` is in the place of `older`: it has its part in calls, and is told what that one missed."""
        until_ms = self._away.pop(older, None)
        if until_ms is not None and session.connection is None:
            self._away[session] = until_ms
        for call in self._ends.pop(older, {}):
            if call.caller is older:
                call.caller = session
            elif call.taker is older:
                call.taker = session
            else:
                del call.rung[older]
                call.rung[session] = None
            self._take_part(session, call)
        for frame in self.missed.pop(older, ()):
            self._tell(session, frame)

    def session_came(self, session: Session, now: Now) -> None:
        """What rings at the user rings here, too: also for one that superseded another, whose client may know of it."""
        for call in self._ringing_at.get(session.record, ()):
            self._ring_at(call, session, now)

    def session_gone(self, session: Session, now: Now) -> None:
        """The session ended; its record does not list it any more."""
        self.missed.pop(session, None)
        self._away.pop(session, None)
        for call in self._ends.pop(session, {}):
            call.rung.pop(session, None)
            if session is call.caller or session is call.taker or not call.callee.sessions:
                self._finish(call, CallCue.GONE, "offline", now, gone=session)
        if not session.record.sessions:
            for call in list(self._ringing_at.get(session.record, ())):
                self._finish(call, CallCue.GONE, "offline", now)

    def user_hid(self, record: Record, now: Now) -> None:
        """The user appears offline from now on: to whoever rings him that is offline."""
        for call in list(self._ringing_at.get(record, ())):
            self._finish(call, CallCue.GONE, "offline", now)

    def expire(self, now: Now) -> None:
        """Ends what has rung for too long, and what has a side that has been away for too long."""
        while self._ringing:
            call = next(iter(self._ringing))
            if call.deadline_ms > now.ms:
                break
            self._finish(call, CallCue.SILENCE, "timeout", now)
        for session, until_ms in list(self._away.items()) if self._away else ():
            if until_ms <= now.ms:
                self._away.pop(session, None)
                for call in list(self._ends.get(session, ())):
                    if session is call.caller or session is call.taker:
                        self._finish(call, CallCue.GONE, "offline", now)

    def miss(self, session: Session, frame: CallFrame) -> None:
        """The session had no connection to be told by: it is told when it is back. What rang rings again then."""
        if session.phase is not GONE and not isinstance(frame, CallRinging | CallSignalled):
            self.missed.setdefault(session, []).append(frame)

    # Beneath.

    def _find(self, session: Session, call_id: str) -> RunningCall:
        call = self.by_id.get(call_id)
        if call is None or session.record not in (call.caller.record, call.callee):
            raise UnknownCall("no such call of yours")
        return call

    @staticmethod
    def _move(call: RunningCall, cue: CallCue) -> bool:
        phase = NEXT[call.phase].get(cue)
        if phase is None:
            return False
        call.phase = phase
        return True

    def _tell(self, session: Session, frame: CallFrame) -> None:
        if session.connection is None:
            self.miss(session, frame)
        else:
            self.outbox.append((session, frame))

    def _ring_at(self, call: RunningCall, session: Session, now: Now) -> None:
        if session.connection is not None:
            call.rung[session] = None
            self._take_part(session, call)
            self._tell(session, call.frame(CallRinging, call.caller.record, now))

    def _ringing_for(self, record: Record) -> list[RunningCall]:
        """What rings at this user, and what he lets ring."""
        found = dict(self._ringing_at.get(record, {}))
        for session in record.sessions:
            found.update((call, None) for call in self._ends.get(session, ()) if call.phase is RINGING)
        return list(found)

    def _hang_up(self, call: RunningCall, session: Session, now: Now) -> None:
        if self._move(call, CallCue.HANG_UP):
            frame = call.frame(CallEnded, session.record, now, reason="hangup")
            for each in (call.caller, call.taker):
                if each is not None and each is not session:
                    self._tell(each, frame)
            self._drop(call)

    def _say_and_drop(self, call: RunningCall, kind: type[CallFrame], session: Session, now: Now) -> None:
        frame = call.frame(kind, session.record, now)
        for each in (call.caller, *call.rung):
            if each is not session:
                self._tell(each, frame)
        self._drop(call)

    def _finish(
        self, call: RunningCall, cue: CallCue, reason: EndReason, now: Now, *, gone: Session | None = None
    ) -> None:
        """Nobody asked for the end: both sides are told, but for the session that is `gone`."""
        if not self._move(call, cue):
            return
        if call.caller is not gone:
            self._tell(call.caller, call.frame(CallEnded, call.callee, now, reason=reason))
        frame = call.frame(CallEnded, call.caller.record, now, reason=reason)
        for each in call.rung if call.taker is None else (call.taker,):
            if each is not gone:
                self._tell(each, frame)
        self._drop(call)

    def _drop(self, call: RunningCall) -> None:
        del self.by_id[call.call_id]
        self._stop_ringing(call)
        for session in (call.caller, *call.rung, call.taker):
            if session is not None:
                self._part(session, call)
        for record in (call.caller.record, call.callee):
            if self._active.get(record) is call:
                del self._active[record]
                self.changed.append(record)

    def _stop_ringing(self, call: RunningCall) -> None:
        if self._ringing.pop(call, call) is call:
            return
        ringing = self._ringing_at[call.callee]
        del ringing[call]
        if not ringing:
            del self._ringing_at[call.callee]

    def _take_part(self, session: Session, call: RunningCall) -> None:
        self._ends.setdefault(session, {})[call] = None

    def _part(self, session: Session, call: RunningCall) -> None:
        calls = self._ends.get(session)
        if calls is not None and calls.pop(call, call) is None and not calls:
            del self._ends[session]
            self._away.pop(session, None)
