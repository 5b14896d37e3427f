"""The wire: what clients and server say to each other, one tagged union each way.

Frozen structs, decoded and checked by msgspec in one step. The tag is the field `type`. The same structs serve both
subprotocols (JSON and MessagePack, see `codec`) and both ends (server and Python client). Reference: docs/protocol.md.
May import nothing of the package.
"""

from typing import Annotated, Literal

from msgspec import UNSET, Meta, Struct, UnsetType

Status = Literal["online", "busy", "away", "offline"]

#: A user's name, unique across user types: 1 to 128 of these characters.
USER_ID_PATTERN = r"^[A-Za-z0-9_.:@-]{1,128}\Z"
UserId = Annotated[str, Meta(pattern=USER_ID_PATTERN)]
RoomId = UserId
#: A request's own mark, given back as `reply_to`; integers stay exact in every client language.
RequestId = Annotated[int, Meta(ge=-(2**53), le=2**53)] | Annotated[str, Meta(max_length=64)] | None
DeviceId = Annotated[str, Meta(min_length=1, max_length=64)]
UserIds = Annotated[list[UserId], Meta(min_length=1, max_length=1000)]
RoomIds = Annotated[list[RoomId], Meta(min_length=1, max_length=1000)]
Text = Annotated[str, Meta(min_length=1, max_length=8192)]
CallId = Annotated[str, Meta(min_length=1, max_length=64)]
#: What the two ends of a call say to each other to find their media connection; opaque here.
SignalData = Annotated[str, Meta(max_length=16_384)]
EndReason = Literal["hangup", "timeout", "offline", "busy"]
#: Any text: one that is no cursor of ours is answered with everything, never with an error.
Cursor = str

#: Entries in one frame of a snapshot, at most.
SNAPSHOT_PAGE = 500


class StatusEntry(Struct, frozen=True, gc=False, omit_defaults=True):
    """One user's state as others may see it. A later entry for the same user is never older."""

    user_id: str
    user_type: str
    status: Status
    online: bool  #: True for every status but "offline"
    last_seen: int | None  #: when the server last heard from the user: Unix epoch, seconds
    rev: int  #: order of this user's states across workers and machines; compare, don't compute
    left: bool = False  #: in a room's roster: no longer in the room


# Client to server. `user_id` and `user_type` name the author and may be left out: the token says who it is.


class Request(Struct, frozen=True, gc=False, omit_defaults=True, kw_only=True):
    """What every frame of a client may carry. `timestamp` is informative: the server never trusts it."""

    id: RequestId = None
    user_id: str | None = None
    user_type: str | None = None
    timestamp: int | None = None  #: Unix epoch, seconds


class UserOnline(Request, tag="user_online", frozen=True, gc=False):
    """The user is present with this session."""

    status: Status | None = None  #: left out: online, but a user who appears offline elsewhere stays so
    device: DeviceId | None = None  #: which of the user's devices this is
    attempt: Annotated[int, Meta(ge=0, le=2**31)] | None = None  #: which reconnect attempt this was, for the log


class Heartbeat(Request, tag="heartbeat", frozen=True, gc=False):
    """Keeps the session alive; answered with `heartbeat_ack`."""


class StatusChange(Request, tag="status_change", frozen=True, gc=False):
    """The user's new status; "offline" hides the user on all devices until another status is set."""

    status: Status


class UserOffline(Request, tag="user_offline", frozen=True, gc=False):
    """Ends this session's presence now; answered, then the server closes with 1000."""


class RequestOnlineStatus(Request, tag="request_online_status", frozen=True, gc=False):
    """Asks once for these users."""

    user_ids: UserIds


class Subscribe(Request, tag="subscribe", frozen=True, gc=False):
    """Watches these users; joins these rooms; from `cursor` on, when there is one."""

    user_ids: UserIds | None = None
    rooms: RoomIds | None = None
    cursor: Cursor | None = None


class Unsubscribe(Request, tag="unsubscribe", frozen=True, gc=False):
    """Stops watching these users; leaves these rooms."""

    user_ids: UserIds | None = None
    rooms: RoomIds | None = None


class Addressed(Request, frozen=True, gc=False, omit_defaults=True, kw_only=True):
    """What is meant for another user names its author once more, or leaves it out."""

    from_user_id: str | None = None


class SendMessage(Addressed, tag="message", frozen=True, gc=False):
    """Delivers a text to every session of a user."""

    to_user_id: UserId
    message: Text


class Call(Addressed, tag="call", frozen=True, gc=False):
    """Rings every session of a user."""

    call_id: CallId  #: the caller's own name for it; nobody else's call may have it
    to_user_id: UserId
    video: bool
    audio: bool


class CallAccept(Addressed, tag="call_accept", frozen=True, gc=False):
    """The called user takes the call, on this device."""

    call_id: CallId


class CallReject(Addressed, tag="call_reject", frozen=True, gc=False):
    """The called user does not."""

    call_id: CallId


class CallCancel(Addressed, tag="call_cancel", frozen=True, gc=False):
    """The caller has thought better of it."""

    call_id: CallId


class CallEnd(Addressed, tag="call_end", frozen=True, gc=False):
    """Either side hangs up."""

    call_id: CallId


class CallSignal(Addressed, tag="call_signal", frozen=True, gc=False):
    """Something for the call's other side."""

    call_id: CallId
    data: SignalData


class TokenRefresh(Request, tag="token_refresh", frozen=True, gc=False):
    """Replaces the token of this connection, same user only."""

    token: Annotated[str, Meta(min_length=1, max_length=8192)]


ClientFrame = (
    UserOnline
    | Heartbeat
    | StatusChange
    | UserOffline
    | RequestOnlineStatus
    | Subscribe
    | Unsubscribe
    | SendMessage
    | Call
    | CallAccept
    | CallReject
    | CallCancel
    | CallEnd
    | CallSignal
    | TokenRefresh
)


# Server to client.


class Welcome(Struct, tag="welcome", frozen=True, gc=False):
    """First frame on every connection."""

    session_id: str
    user_id: str
    user_type: str
    heartbeat_interval: float  #: seconds
    heartbeat_timeout: float  #: seconds
    expires_at: int  #: when the token runs out: Unix epoch, seconds
    epoch: str  #: names the life of the server's memory; when it changes a client drops its fences
    timestamp: int


class Ack(Struct, tag="ack", frozen=True, gc=False, omit_defaults=True):
    """A request that carried an `id` was carried out."""

    reply_to: int | str
    delivered: int | UnsetType = UNSET  #: of `message`: how many connected sessions it was handed to
    expires_at: int | UnsetType = UNSET  #: of `token_refresh`: Unix epoch, seconds


class Error(Struct, tag="error", frozen=True, gc=False, omit_defaults=True):
    """A request was refused; nothing was changed."""

    code: str
    message: str
    reply_to: int | str | None = None


class HeartbeatAck(Struct, tag="heartbeat_ack", frozen=True, gc=False, omit_defaults=True):
    """After each heartbeat."""

    timestamp: int
    reply_to: int | str | None = None


class UserOnlineStatus(Struct, tag="user_online_status", frozen=True, omit_defaults=True):
    """The state of users: a snapshot (`full` true) or the changes since the last frame."""

    user_status: list[StatusEntry]
    full: bool
    cursor: str | UnsetType = UNSET  #: "I have everything of my scope up to here"; opaque
    more: bool = False  #: the list goes on in the next frame
    room: str | None = None  #: whose roster this is, for a room's
    reply_to: int | str | None = None


class RoomOccupancy(Struct, tag="room_occupancy", frozen=True, gc=False):
    """Instead of a roster once a room has more members than `room_roster_limit`."""

    room: str
    count: int


class Message(Struct, tag="message", frozen=True, gc=False):
    """A message for this user."""

    from_user_id: str
    to_user_id: str
    message: str
    timestamp: int


class CallFrame(Struct, frozen=True, gc=False):
    """What every frame about a call says: which, who moved it, and whom that concerns."""

    call_id: str
    from_user_id: str
    to_user_id: str
    video: bool
    audio: bool
    timestamp: int


class CallRinging(CallFrame, tag="call", frozen=True, gc=False):
    """Somebody calls this user."""


class CallAccepted(CallFrame, tag="call_accept", frozen=True, gc=False):
    """The called user took the call: to the caller, and to the other devices, which stop ringing."""


class CallRejected(CallFrame, tag="call_reject", frozen=True, gc=False):
    """He did not: to the same."""


class CallCancelled(CallFrame, tag="call_cancel", frozen=True, gc=False):
    """The caller took it back."""


class CallEnded(CallFrame, tag="call_end", frozen=True, gc=False):
    """It is over: the other side hung up, or why else."""

    reason: EndReason


class CallSignalled(CallFrame, tag="call_signal", frozen=True, gc=False):
    """Something from the call's other side."""

    data: str


class TokenExpiring(Struct, tag="token_expiring", frozen=True, gc=False):
    """60 s before the token runs out."""

    expires_at: int


class Draining(Struct, tag="draining", frozen=True, gc=False):
    """This worker is going away; reconnect by then."""

    reconnect_after_ms: int


ServerFrame = (
    Welcome
    | Ack
    | Error
    | HeartbeatAck
    | UserOnlineStatus
    | RoomOccupancy
    | Message
    | CallRinging
    | CallAccepted
    | CallRejected
    | CallCancelled
    | CallEnded
    | CallSignalled
    | TokenExpiring
    | Draining
)
