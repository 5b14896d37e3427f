"""The calls that one client knows of: which ring, which are talked on, and why each ended.

Sans-IO and without a clock: the server's frames and the fate of our requests go in, events come out.

    outgoing   CALLING -it rings-> RINGING -they accept-> ACTIVE -> ENDED
    incoming                       RINGING -we accept---> ACTIVE -> ENDED      (which is reached from every state)

To hang up works at once, whoever can be told: the call is over here, and the server is told until it has answered, at
the next connection again if need be. Invariant: a call_id is in `calls` or in `farewells` or in neither, never in both;
what is in `calls` has not ended. Driven by client.core; reference: docs/protocol.md.
"""

from enum import Enum
from typing import Final, Literal

from msgspec import Struct

from fastpresence.errors import RequestRefused
from fastpresence.messages import (
    Call,
    CallAccept,
    CallAccepted,
    CallCancel,
    CallCancelled,
    CallEnd,
    CallEnded,
    CallFrame,
    CallReject,
    CallRejected,
    CallRinging,
    CallSignalled,
    EndReason,
)

__all__ = [
    "NEXT",
    "CallEvent",
    "CallMoved",
    "CallOutcome",
    "CallRecord",
    "CallState",
    "Calls",
    "Farewell",
    "Rang",
    "Signal",
]

CallState = Literal["calling", "ringing", "active", "ended"]

#: Why a call ended: what the server gives as its reason (`offline` also when the connection to it is lost for too
#: long), `rejected`, `cancelled`, or `elsewhere`: another device of the called user took it.
CallOutcome = EndReason | Literal["rejected", "cancelled", "elsewhere"]

Farewell = CallCancel | CallReject | CallEnd

#: Calls that ring here at once, at most; each ends after a minute, and the server ends those that nobody took.
RINGING_MAX: Final = 1000


class CallCue(Enum):
    """What moves a call."""

    RINGS = "rings"
    TAKEN = "taken"  # outgoing: they accepted; incoming: we did, and the server knows
    OVER = "over"


#: By whether it is an outgoing one, and its state.
NEXT: Final[dict[tuple[bool, CallState], dict[CallCue, CallState]]] = {
    (True, "calling"): {CallCue.RINGS: "ringing", CallCue.TAKEN: "active", CallCue.OVER: "ended"},
    (True, "ringing"): {CallCue.TAKEN: "active", CallCue.OVER: "ended"},
    (True, "active"): {CallCue.OVER: "ended"},
    (True, "ended"): {},
    (False, "ringing"): {CallCue.TAKEN: "active", CallCue.OVER: "ended"},
    (False, "active"): {CallCue.OVER: "ended"},
    (False, "ended"): {},
}


class CallRecord(Struct, eq=False):
    """One call as it stands."""

    call_id: str
    user_id: str  #: the other side
    outgoing: bool
    video: bool
    audio: bool
    state: CallState
    outcome: CallOutcome | None = None  #: why it ended
    accepting: bool = False  #: we said that we accept, and have no answer yet
    said_before: bool = False  #: on an earlier connection


class Rang(Struct, frozen=True):
    """Somebody calls."""

    call: CallRecord


class CallMoved(Struct, frozen=True):
    """A call is in another state."""

    call_id: str
    state: CallState
    outcome: CallOutcome | None = None  #: with `ended`: why


class Signal(Struct, frozen=True):
    """The other side of a call says something that the media connection needs: an offer, an answer, a candidate."""

    call_id: str
    data: str


CallEvent = Rang | CallMoved | Signal


class Calls:
    """One client's calls. Every method returns what happened by it."""

    def __init__(self) -> None:
        self.calls: dict[str, CallRecord] = {}
        self.farewells: dict[str, Farewell] = {}  #: by call_id: what the server has yet to confirm
        self._said: set[str] = set()  # farewells that went out on this connection

    # What this client does.

    def dial(self, call_id: str, to_user_id: str, *, video: bool, audio: bool) -> CallRecord:
        """A call that is about to be asked for. Raises RequestRefused when its id is in use."""
        if call_id in self.calls or call_id in self.farewells:
            raise RequestRefused("bad_field", "call_id: in use")
        record = CallRecord(call_id, to_user_id, True, video, audio, "calling")
        self.calls[call_id] = record
        return record

    def record(self, call_id: str, *, to_accept: bool = False) -> CallRecord:
        """A call that has not ended, and that we may accept. Raises RequestRefused, as the server would."""
        record = self.calls.get(call_id)
        if record is None:
            raise RequestRefused("unknown_call", "the call has ended")
        if to_accept and (record.outgoing or record.state != "ringing"):
            raise RequestRefused("unknown_call", "not a call that rings here")
        return record

    def hang_up(self, call_id: str) -> tuple[Farewell, list[CallEvent]]:
        """End a call here and now; what to tell the server. Raises RequestRefused when it has ended already."""
        record = self.record(call_id)
        farewell: Farewell
        outcome: CallOutcome
        if record.state == "active":
            farewell, outcome = CallEnd(call_id=call_id), "hangup"
        elif record.outgoing:
            farewell, outcome = CallCancel(call_id=call_id), "cancelled"
        else:
            farewell, outcome = CallReject(call_id=call_id), "rejected"
        events = self._move(record, CallCue.OVER, outcome)
        self.farewells[call_id] = farewell
        self._said.add(call_id)
        return farewell, events

    # What becomes of our requests. `error`: RequestRefused, or another one when nobody knows.

    def answered(self, request: object, error: Exception | None) -> list[CallEvent]:
        """A request ended."""
        match request:
            case Call(call_id=call_id) if call_id in self.calls:
                return self._dialled(self.calls[call_id], error)
            case CallAccept(call_id=call_id) if call_id in self.calls:
                return self._accepted(self.calls[call_id], error)
            case CallCancel(call_id=call_id) | CallReject(call_id=call_id) | CallEnd(call_id=call_id):
                if error is None or isinstance(error, RequestRefused):  # it knows, or knew
                    self.farewells.pop(call_id, None)
                    self._said.discard(call_id)
        return []

    def _dialled(self, record: CallRecord, error: Exception | None) -> list[CallEvent]:
        if error is None:
            return self._move(record, CallCue.RINGS)
        if isinstance(error, RequestRefused):
            return self._move(record, CallCue.OVER, "busy" if error.code == "user_busy" else "offline")
        # It may ring or not: nobody here waits for it any more.
        self.farewells[record.call_id] = CallCancel(call_id=record.call_id)
        return self._move(record, CallCue.OVER, "offline")

    def _accepted(self, record: CallRecord, error: Exception | None) -> list[CallEvent]:
        if error is None:
            return self._move(record, CallCue.TAKEN)
        if not isinstance(error, RequestRefused):
            return []  # asked again at the next connection
        if error.code != "unknown_call":
            record.accepting = False
            return []
        if record.said_before:
            # It is over, or the server has our first word and takes the second for nonsense: never busy for nothing.
            self.farewells[record.call_id] = CallEnd(call_id=record.call_id)
        return self._move(record, CallCue.OVER, "offline")

    def unsaid(self) -> list[Farewell]:
        """What the server is to be told now."""
        farewells = [farewell for call_id, farewell in self.farewells.items() if call_id not in self._said]
        self._said.update(farewell.call_id for farewell in farewells)
        return farewells

    # What the server says.

    def connected(self, *, same_memory: bool) -> list[CallEvent]:
        """A new connection; `same_memory`: to a server that can know of our calls."""
        self._said.clear()
        if same_memory:
            return []
        self.farewells.clear()
        return self.end_all("offline")

    def accepting(self) -> list[CallAccept]:
        """What has to be said again on a new connection: we accept, and nobody has confirmed it."""
        records = [record for record in self.calls.values() if record.accepting]
        for record in records:
            record.said_before = True
        return [CallAccept(call_id=record.call_id) for record in records]

    def end_all(self, outcome: CallOutcome, *, tell: bool = False) -> list[CallEvent]:
        """Every call is over. `tell`: the server hears of it, should it think otherwise."""
        events: list[CallEvent] = []
        for record in list(self.calls.values()):
            events.extend(self._move(record, CallCue.OVER, outcome))
            if tell:
                self.farewells[record.call_id] = CallEnd(call_id=record.call_id)
        return events

    def take(self, frame: CallFrame) -> list[CallEvent]:
        """One frame about a call. What is about none of ours is ignored."""
        if isinstance(frame, CallRinging):
            return self._rings(frame)
        record = self.calls.get(frame.call_id)
        if record is None:
            return []
        match frame:
            case CallAccepted() if record.outgoing:
                return self._move(record, CallCue.TAKEN)
            case CallAccepted() if record.state == "ringing":
                return self._move(record, CallCue.OVER, "elsewhere")
            case CallRejected():
                return self._move(record, CallCue.OVER, "rejected")
            case CallCancelled():
                return self._move(record, CallCue.OVER, "cancelled")
            case CallEnded(reason=reason):
                return self._move(record, CallCue.OVER, reason)
            case CallSignalled(data=data):
                return [Signal(record.call_id, data)]
        return []

    def _rings(self, frame: CallRinging) -> list[CallEvent]:
        call_id = frame.call_id
        if call_id in self.calls or call_id in self.farewells or len(self.calls) >= RINGING_MAX:
            return []
        record = CallRecord(call_id, frame.from_user_id, False, frame.video, frame.audio, "ringing")
        self.calls[call_id] = record
        return [Rang(record)]

    def _move(self, record: CallRecord, cue: CallCue, outcome: CallOutcome | None = None) -> list[CallEvent]:
        """Take the transition of the table; a refused cue changes nothing."""
        state = NEXT[record.outgoing, record.state].get(cue)
        if state is None:
            return []
        record.state = state
        record.accepting = False
        if state == "ended":
            record.outcome = outcome
            del self.calls[record.call_id]
        return [CallMoved(record.call_id, state, outcome)]
