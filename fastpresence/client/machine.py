"""The client's states as a table, and what the machine tells the outside.

    WAITING -due-> OPENING -welcomed-> UP -lost-> WAITING ...   five attempts spent: RESTING
    RESTING -due-> PROBING -welcomed-> UP                       PROBING -lost-> RESTING
    refused for good: STOPPED, and there it stays      told to leave: UP -> LEAVING -> CLOSED, from elsewhere CLOSED

In RESTING and PROBING, who is no observer polls (client.polling), and the slow attempts go on beside it.
Source: docs/protocol.md, section 5. The code to the table is client.core.
"""

from enum import Enum
from typing import Final, Literal

from msgspec import Struct

from fastpresence.client.calls import CallEvent
from fastpresence.client.polling import PollRequest, RosterRequest
from fastpresence.client.roster import Change
from fastpresence.errors import FastPresenceError
from fastpresence.messages import (
    Ack,
    Call,
    CallAccept,
    CallCancel,
    CallEnd,
    CallReject,
    CallSignal,
    ClientFrame,
    HeartbeatAck,
    Message,
    RoomOccupancy,
    TokenExpiring,
    UserOnlineStatus,
)

__all__ = [
    "NEXT",
    "SHOWS",
    "Answer",
    "Answered",
    "Connect",
    "Cue",
    "Disconnect",
    "Event",
    "Freshness",
    "Phase",
    "Poll",
    "SentFrame",
    "Stale",
    "State",
    "StateChanged",
    "StopPolling",
    "Synced",
]

State = Literal["connecting", "connected", "disconnected", "failed"]

#: How good the copy of the roster is: kept up to date by a socket; by polls, and so some seconds old; or neither.
Freshness = Literal["live", "polled", "stale"]

Answer = Ack | HeartbeatAck | UserOnlineStatus

SentFrame = ClientFrame | Call | CallAccept | CallReject | CallCancel | CallEnd | CallSignal


class Phase(Enum):
    """Where the machine is; `SHOWS` says what the user of the client sees of it."""

    WAITING = "waiting"  # for the next attempt of the table
    OPENING = "opening"  # an attempt of the table is under way
    UP = "up"
    LEAVING = "leaving"  # `user_offline` is sent
    RESTING = "resting"  # the table is spent: waiting for the next slow attempt
    PROBING = "probing"  # a slow attempt is under way
    STOPPED = "stopped"  # refused for good
    CLOSED = "closed"  # left


class Cue(Enum):
    """What moves the machine."""

    DUE = "due"
    WELCOMED = "welcomed"
    LOST = "lost"
    SPENT = "spent"
    REFUSED = "refused"
    LEAVE = "leave"
    PART = "part"  # leave without a goodbye: nobody sees this client


NEXT: Final = {
    Phase.WAITING: {Cue.DUE: Phase.OPENING, Cue.REFUSED: Phase.STOPPED, Cue.PART: Phase.CLOSED},
    Phase.OPENING: {
        Cue.WELCOMED: Phase.UP,
        Cue.LOST: Phase.WAITING,
        Cue.SPENT: Phase.RESTING,
        Cue.REFUSED: Phase.STOPPED,
        Cue.PART: Phase.CLOSED,
    },
    Phase.UP: {
        Cue.LOST: Phase.WAITING,
        Cue.SPENT: Phase.RESTING,
        Cue.REFUSED: Phase.STOPPED,
        Cue.LEAVE: Phase.LEAVING,
        Cue.PART: Phase.CLOSED,
    },
    Phase.LEAVING: {Cue.LOST: Phase.CLOSED, Cue.PART: Phase.CLOSED},
    Phase.RESTING: {Cue.DUE: Phase.PROBING, Cue.REFUSED: Phase.STOPPED, Cue.PART: Phase.CLOSED},
    Phase.PROBING: {
        Cue.WELCOMED: Phase.UP,
        Cue.LOST: Phase.RESTING,
        Cue.SPENT: Phase.RESTING,
        Cue.REFUSED: Phase.STOPPED,
        Cue.PART: Phase.CLOSED,
    },
    Phase.STOPPED: {},
    Phase.CLOSED: {},
}

SHOWS: Final[dict[Phase, State]] = {
    Phase.WAITING: "disconnected",
    Phase.OPENING: "connecting",
    Phase.UP: "connected",
    Phase.LEAVING: "connected",
    Phase.RESTING: "failed",
    Phase.PROBING: "failed",
    Phase.STOPPED: "failed",
    Phase.CLOSED: "disconnected",
}


class Connect(Struct, frozen=True):
    """Open a socket, with this cursor in the query; tell `lost` if it fails."""

    cursor: str | None
    fresh_token: bool


class Disconnect(Struct, frozen=True):
    """Close the socket with this code; None: cut it off. The machine has done with it already."""

    code: int | None


class StateChanged(Struct, frozen=True):
    state: State
    reason: FastPresenceError | None


class Poll(Struct, frozen=True):
    """Carry out this poll, or ask for this room's roster; tell `polled`, or `poll_failed`."""

    request: PollRequest | RosterRequest
    fresh_token: bool


class StopPolling(Struct, frozen=True):
    """Break off the poll under way; the machine has done with it already."""


class Synced(Struct, frozen=True):
    """Everything missed has been caught up; the copy is not stale any more. `polled`: by a poll, not by a socket."""

    polled: bool = False


class Stale(Struct, frozen=True):
    """From now on the copy may miss changes."""


class Answered(Struct, frozen=True):
    """A request ended: with an answer, or with why there is none."""

    request_id: int
    request: SentFrame
    answer: Answer | None
    error: FastPresenceError | None = None


Event = (
    Connect
    | Disconnect
    | Poll
    | StopPolling
    | StateChanged
    | Synced
    | Stale
    | Answered
    | Change
    | RoomOccupancy
    | Message
    | CallEvent
    | TokenExpiring
)
