"""The client's states as a table, and what the machine tells the outside.

    WAITING -due-> OPENING -welcomed-> UP -lost-> WAITING ...   five attempts spent: RESTING
    RESTING -due-> PROBING -welcomed-> UP                       PROBING -lost-> RESTING
    refused for good: STOPPED, and there it stays      told to leave: UP -> LEAVING -> CLOSED, from elsewhere CLOSED

Source: docs/protocol.md, section 5. The code to the table is client.core.
"""

from enum import Enum
from typing import Final, Literal

from msgspec import Struct

from fastpresence.client.roster import Change
from fastpresence.errors import FastPresenceError
from fastpresence.messages import Ack, ClientFrame, HeartbeatAck, Message, TokenExpiring, UserOnlineStatus

__all__ = [
    "NEXT",
    "SHOWS",
    "Answer",
    "Answered",
    "Connect",
    "Cue",
    "Disconnect",
    "Event",
    "Phase",
    "State",
    "StateChanged",
    "Synced",
]

State = Literal["connecting", "connected", "disconnected", "failed"]

Answer = Ack | HeartbeatAck | UserOnlineStatus


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


class Synced(Struct, frozen=True):
    """Everything missed has been caught up; the copy is not stale any more."""


class Answered(Struct, frozen=True):
    """A request ended: with an answer, or with why there is none."""

    request_id: int
    request: ClientFrame
    answer: Answer | None
    error: FastPresenceError | None = None


Event = Connect | Disconnect | StateChanged | Synced | Answered | Change | Message | TokenExpiring
