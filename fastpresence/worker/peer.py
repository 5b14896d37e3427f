"""One connected client: frames in, requests carried out, answers out.

A `Peer` comes into being with the upgrade and is what the engine calls the connection's owner. Everything that peers
share is the `Worker`, which also drives it; told of changes by worker.flush.

    frame -> decode -> allowed? -> HANDLERS[type] -> service -> answer       (refused: an `error`, nothing changed)

Costs some 160 bytes and its session; peers make no reference cycles that outlive their connection.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec

from fastpresence._native import engine as native
from fastpresence.codec import request_id
from fastpresence.errors import (
    BadField,
    Forbidden,
    NotOnline,
    RequestError,
    TokenError,
    TooMany,
    Unavailable,
)
from fastpresence.messages import (
    Ack,
    Addressed,
    Call,
    CallAccept,
    CallCancel,
    CallEnd,
    CallReject,
    CallSignal,
    Error,
    Heartbeat,
    HeartbeatAck,
    RequestOnlineStatus,
    SendMessage,
    StatusChange,
    Subscribe,
    TokenExpiring,
    TokenRefresh,
    Unsubscribe,
    UserOnline,
    UserOnlineStatus,
    Welcome,
)
from fastpresence.messages import UserOffline as Goodbye
from fastpresence.presence.roster import room_scope, toggled_scope, watch_scope
from fastpresence.presence.sessions import Now, Phase, Session
from fastpresence.tokens import Rights
from fastpresence.worker.backlog import LONG, PUT_OFF
from fastpresence.worker.beats import likeness
from fastpresence.worker.deflate import LEAST, BadMessage, deflate, inflate
from fastpresence.worker.handshake import Accepted
from fastpresence.worker.limits import ENTRIES, REFUSED, TOO_MUCH

if TYPE_CHECKING:
    from fastpresence.worker.worker import Worker

__all__ = ["Peer"]

#: Seconds before its end at which a client is told that its token runs out.
EXPIRY_NOTICE: Final = 60


class Peer:
    """One open WebSocket."""

    __slots__ = (
        "_due_ms",
        "_told_expiring",
        "closed",
        "codec",
        "expires_at",
        "handle",
        "public",
        "rights",
        "room",
        "rooms",
        "scope",
        "session",
        "user_id",
        "user_type",
        "variant",
        "worker",
    )

    def __init__(self, worker: "Worker", handle: int, accepted: Accepted) -> None:
        claims = accepted.claims
        self.worker = worker
        self.handle = handle
        self.codec = accepted.codec
        #: Which prepared buffer of a flush it takes: an index of flush.VARIANTS.
        self.variant = (0 if accepted.codec.is_text else 1) + (2 if accepted.deflates else 0)
        self.user_id = claims.user_id
        self.user_type = claims.user_type
        self.room = claims.room  #: the token's; joined at user_online
        self.rights = Rights.of(claims)  #: what it may watch and join; None: everything
        self.expires_at = claims.expires_at
        self.public = accepted.public  #: hears of the public users
        self.session: Session | None = None
        self.rooms: set[str] | None = None  #: rooms that it hears of
        self.scope: str | None = None  #: of its watches, for cursors; None while it watches nobody
        self.closed = False
        self._due_ms = 0.0  # see worker.limits
        self._told_expiring = False

    # Answers.

    def send(self, frame: object) -> None:
        """Gather one frame for this client."""
        payload = self.codec.encode(frame)
        if self.variant >= 2 and len(payload) >= LEAST:
            taken = self.worker.engine.answer(self.handle, deflate(payload), compressed=True)
        else:
            taken = self.worker.engine.answer(self.handle, payload)
        if not taken:
            self.give_up("too many answers wait")
        elif len(payload) >= LONG:
            self.worker.put_off(self)

    def ack(self, frame: Any, **fields: Any) -> None:
        """Answer a request that carried an `id`."""
        if frame.id is not None:
            self.send(Ack(frame.id, **fields))

    def close(self, code: int, reason: str) -> None:
        """Close it with a code of ours; the caller sees to its session first."""
        self.worker.forget(self)
        self.worker.engine.close(self.handle, code, reason.encode())

    # What comes in.

    def on_message(self, kind: int, data: bytes, now: Now) -> None:
        """One message of the client's."""
        worker = self.worker
        limit = worker.rate_limit
        due_ms = limit.next(self._due_ms, now.ms)
        if due_ms is REFUSED:
            self._over_rate(kind, data, now)
            return
        self._due_ms = due_ms
        codec = self.codec
        if kind >= native.DEFLATED_TEXT:
            kind -= native.DEFLATED_TEXT - native.TEXT
            try:
                data = self._inflate(kind, data)
            except BadMessage as error:
                self._break(error.close_code, str(error), now)
                return
        if (kind == native.TEXT) is not codec.is_text:
            self._break(1003, f"{codec.subprotocol} has {'text' if codec.is_text else 'binary'} frames", now)
            return
        try:
            frame: Any = codec.decode_request(data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            problem, reply_to = codec.explain(data, error)
            self._refuse(problem, reply_to)
            return
        try:
            if not self._is_author(frame):
                raise Forbidden("user_id and user_type are the token's, or left out")
            if type(frame) is Heartbeat:
                self._heartbeat(frame, data, now)
            elif type(frame) in FAR_REACHING and worker.is_late():
                worker.backlog.begin(self, (PUT_OFF, frame))
            else:
                HANDLERS[type(frame)](self, frame, now)
        except RequestError as error:
            self._refuse(error, frame.id)

    def carry_out(self, frame: Any, now: Now) -> None:
        """A request that was decoded and put off."""
        try:
            HANDLERS[type(frame)](self, frame, now)
        except RequestError as error:
            self._refuse(error, frame.id)

    def _is_author(self, frame: Any) -> bool:
        return (frame.user_id is None or frame.user_id == self.user_id) and (
            frame.user_type is None or frame.user_type == self.user_type
        )

    @property
    def _is_present(self) -> bool:
        return self.session is not None and self.session.phase is not Phase.GONE

    def _weigh(self, entries: int, now: Now) -> None:
        """A request that costs more than a frame does."""
        if entries >= ENTRIES:
            self._due_ms = self.worker.rate_limit.weigh(self._due_ms, now.ms, entries // ENTRIES)

    def _refuse(self, error: RequestError, reply_to: int | str | None) -> None:
        self.worker.count_error(error.code)
        self.send(Error(error.code, str(error), reply_to))

    def _break(self, code: int, reason: str, now: Now) -> None:
        """The client broke the protocol: its connection is closed, its session stays for its grace."""
        self.worker.lose_session(self, now.ms, now)
        self.close(code, reason)

    def _inflate(self, kind: int, data: bytes) -> bytes:
        """A compressed message of this kind. Raises BadMessage."""
        data = inflate(data, self.worker.settings.limits.message_size)
        if kind == native.TEXT:
            try:
                data.decode()
            except UnicodeDecodeError:
                raise BadMessage(1007, "text is not UTF-8") from None
        return data

    def _over_rate(self, kind: int, data: bytes, now: Now) -> None:
        frame = self._readable(kind, data)
        if type(frame) is StatusChange and self._is_present and self._is_author(frame):
            older = self.worker.wanted.put(self, frame, self.worker.rate_limit.wait_ms(self._due_ms, now.ms))
            if older is not None:
                self.ack(older)
            return
        due_ms = self.worker.rate_limit.charge(self._due_ms, now.ms)
        self.worker.note_rate_limited(self, now)
        if due_ms is TOO_MUCH:
            self._break(4029, "over the rate limit", now)
            return
        self._due_ms = due_ms
        if frame is not None:
            reply_to = frame.id
        else:
            try:
                raw = self.codec.decode_any(
                    self._inflate(native.BINARY, data) if kind >= native.DEFLATED_TEXT else data
                )
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, BadMessage):
                raw = None
            reply_to = request_id(raw.get("id")) if isinstance(raw, dict) else None
        self.send(Error("rate_limited", "too many frames a second", reply_to))

    def _readable(self, kind: int, data: bytes) -> Any:
        """The request in a message over the rate; None where there is none."""
        try:
            if kind >= native.DEFLATED_TEXT:
                kind -= native.DEFLATED_TEXT - native.TEXT
                data = self._inflate(kind, data)
            return self.codec.decode_request(data) if (kind == native.TEXT) is self.codec.is_text else None
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, BadMessage):
            return None

    def on_wanted(self, frame: StatusChange) -> float | None:
        """A status change that was over the rate: carried out now, or how many milliseconds to wait."""
        worker = self.worker
        now = worker.now()
        due_ms = worker.rate_limit.next(self._due_ms, now.ms)
        if due_ms is REFUSED:
            return worker.rate_limit.wait_ms(self._due_ms, now.ms)
        self._due_ms = due_ms
        try:
            self._status_change(frame, now)
        except RequestError as error:
            self._refuse(error, frame.id)
        worker.settle()
        worker.engine.send()
        return None

    def _forget_wanted(self) -> None:
        """A newer word is here: what was put off before it is no more to be done, and answered all the same."""
        older = self.worker.wanted.take(self)
        if older is not None:
            self.ack(older)

    def give_up(self, reason: str) -> None:
        """More is to be sent to it than may wait. It is closed in the next turn: who sends may have more to do."""
        self.worker.loop.call_soon(self._give_up, reason)

    def _give_up(self, reason: str) -> None:
        # One that has ended may still be heard out; its answers go nowhere, and that is no fault of its.
        if not self.closed and self.worker.engine.owner(self.handle & 0xFFFFFFFF) is self:
            self._break(4009, reason, self.worker.now())
            self.worker.settle()
            self.worker.engine.send()

    # Requests.

    def _user_online(self, frame: UserOnline, now: Now) -> None:
        service = self.worker.service
        session = self.session
        if frame.status is not None:
            self._forget_wanted()
        if session is not None and session.phase is not Phase.GONE:
            service.handle_update(session, status=frame.status, device=frame.device, now=now)
            self._narrow(now)
            self.ack(frame)
            return
        rooms = list(self.rooms or ())
        if self.room is not None and self.room not in rooms:
            rooms.append(self.room)
        self.session = service.handle_user_online(
            self.user_id,
            self.user_type,
            status=frame.status,
            device=frame.device,
            connection=self,
            rooms=rooms,
            now=now,
            attempt=frame.attempt,
        )
        self._narrow(now)
        self.ack(frame)
        if self.room is not None and (self.rooms is None or self.room not in self.rooms):
            self._enter(self.room, None, now)

    def _heartbeat(self, frame: Heartbeat, data: bytes, now: Now) -> None:
        """One that the engine has not learnt yet, or that it leaves to us: see worker.beats."""
        session = self.session
        worker = self.worker
        if session is not None:
            worker.service.handle_heartbeat(session, now=now)
        if frame.id is not None:
            self.send(HeartbeatAck(now.wall_us // 1_000_000, frame.id))
            return
        worker.renew_standing(now)
        if worker.engine.give_standing(self.handle):
            alike = likeness(self.codec, data, frame)
            if alike is not None:
                worker.engine.learn(self.handle, data, *alike)

    def _present(self) -> Session:
        session = self.session
        if session is None or session.phase is Phase.GONE:
            raise NotOnline("user_online comes first")
        return session

    def _status_change(self, frame: StatusChange, now: Now) -> None:
        worker = self.worker
        if worker.wanted:
            self._forget_wanted()
        worker.service.handle_status_change(self._present(), frame.status, now=now)
        self.ack(frame)

    def _user_offline(self, frame: Goodbye, now: Now) -> None:
        self._forget_wanted()
        self.worker.end_session(self, "goodbye", now)
        self.ack(frame)
        self.close(1000, "goodbye")

    def _request_online_status(self, frame: RequestOnlineStatus, now: Now) -> None:
        if self.rights is not None:
            self.rights.check(frame.user_ids, ())
        self._weigh(len(frame.user_ids), now)
        status_of = self.worker.service.get_user_status
        entries = [status_of(user_id) for user_id in frame.user_ids]
        self.send(UserOnlineStatus(entries, full=False, reply_to=frame.id))

    def _sender(self, frame: Addressed) -> Session:
        """The session that says this to another user."""
        session = self._present()
        if frame.from_user_id is not None and frame.from_user_id != self.user_id:
            raise Forbidden("from_user_id is the token's user, or left out")
        return session

    def _message(self, frame: SendMessage, now: Now) -> None:
        self._sender(frame)
        self.ack(frame, delivered=self.worker.deliver(self.user_id, frame.to_user_id, frame.message, now))

    def _token_refresh(self, frame: TokenRefresh, now: Now) -> None:
        from_now = now.wall_us // 1_000_000
        try:
            claims = self.worker.keys.verify(frame.token, now=from_now)
        except TokenError as error:
            problem = RequestError(str(error))
            problem.code = "unauthorized"
            raise problem from None
        if claims.user_id != self.user_id or claims.user_type != self.user_type:
            raise Forbidden("the new token is another user's")
        self.rights = Rights.of(claims)
        self.room = claims.room
        self._narrow(now)
        self.expires_at = claims.expires_at
        self._told_expiring = False
        self.worker.watch_token(self, now)
        self.ack(frame, expires_at=claims.expires_at)

    def _subscribe(self, frame: Subscribe, now: Now) -> None:
        worker = self.worker
        service = worker.service
        user_ids = list(dict.fromkeys(frame.user_ids or ()))
        rooms = list(dict.fromkeys(frame.rooms or ()))
        if not user_ids and not rooms:
            raise BadField("user_ids: missing, and so is rooms")
        if self.rights is not None:
            self.rights.check(user_ids, rooms)
        watched = service.audience.watches_of(self)
        limits = worker.settings.limits
        if len(watched) + sum(user_id not in watched for user_id in user_ids) > limits.watches:
            raise TooMany(f"user_ids: at most {limits.watches} for one connection")
        if len((self.rooms or set()).union(rooms)) > limits.rooms:
            raise TooMany(f"rooms: at most {limits.rooms} for one connection")
        self._weigh(len(user_ids) + len(rooms) * ENTRIES // 2, now)
        self.ack(frame)
        if user_ids:
            self.scope = toggled_scope(self.scope, [user_id for user_id in user_ids if user_id not in watched])
            service.watch(self, user_ids)
            scope = watch_scope(user_ids)
            worker.show_watched(self, user_ids, scope, worker.read_cursor(frame.cursor, scope))
        self._enter_all(Rooms(rooms, frame.cursor), now)

    def _enter_all(self, rooms: "Rooms", now: Now) -> None:
        """As many of them as one turn may answer, the others in those to come."""
        for at, name in enumerate(rooms.names):
            if at and self.worker.backlog.is_full(self.handle):
                self.worker.backlog.begin(self, (PUT_OFF, Rooms(rooms.names[at:], rooms.cursor)))
                return
            self._enter(name, rooms.cursor, now)

    def _enter(self, name: str, cursor: str | None, now: Now) -> None:
        """Hear of a room from now on, and be in it while online."""
        worker = self.worker
        session = self.session if self.session is not None and self.session.phase is not Phase.GONE else None
        room = worker.service.join_room(session, self, name, now=now)
        if self.rooms is None:
            self.rooms = set()
        self.rooms.add(name)
        if room.audience is None:
            room.audience = worker.engine.new_audience()
        worker.engine.join(self.handle, room.audience)
        self._weigh(len(room.members), now)
        worker.show_room(self, name, worker.read_cursor(cursor, room_scope(name)))

    def _unsubscribe(self, frame: Unsubscribe, now: Now) -> None:
        if not frame.user_ids and not frame.rooms:
            raise BadField("user_ids: missing, and so is rooms")
        self._weigh(len(frame.user_ids or ()) + len(frame.rooms or ()), now)
        if frame.user_ids:
            self._unwatch(frame.user_ids)
        for room in frame.rooms or ():
            self._leave(room, now)
        self.ack(frame)

    def _unwatch(self, user_ids: list[str]) -> None:
        service = self.worker.service
        gone = set(user_ids).intersection(service.audience.watches_of(self))
        if gone:
            service.unwatch(self, gone)
            self.scope = toggled_scope(self.scope, gone) if service.audience.watches_of(self) else None

    def _leave(self, name: str, now: Now) -> None:
        # Not only the rooms of this connection: its session may have inherited some from the one it superseded.
        if self.rooms is not None:
            self.rooms.discard(name)
        session = self.session if self.session is not None and self.session.phase is not Phase.GONE else None
        room = self.worker.service.leave_room(session, self, name, now=now)
        if room is not None and room.audience is not None:
            self.worker.engine.leave(self.handle, room.audience)
            self.worker.free_audience(room)

    def _narrow(self, now: Now) -> None:
        """What the token does not allow ends: of an earlier one's, or of a session's that this one superseded."""
        rights = self.rights
        if rights is None:
            return
        watched = self.worker.service.audience.watches_of(self)
        if rights.watch is not None and not rights.watch.issuperset(watched):
            self._unwatch(list(set(watched).difference(rights.watch)))
        if rights.rooms is not None:
            rooms = set(self.rooms or ())
            if self.session is not None:
                rooms.update(self.session.rooms or ())
            for room in rooms.difference(rights.rooms):
                self._leave(room, now)

    # Calls.

    def _call(self, frame: Call, now: Now) -> None:
        worker = self.worker
        call = worker.service.handle_call(
            self._sender(frame), frame.call_id, frame.to_user_id, video=frame.video, audio=frame.audio, now=now
        )
        if not worker.tell_calls():
            worker.service.calls.withdraw(call)
            raise Unavailable("no connection of the called user can be reached just now")
        self.ack(frame)

    def _call_accept(self, frame: CallAccept, now: Now) -> None:
        self.worker.service.handle_call_accept(self._sender(frame), frame.call_id, now=now)
        self.ack(frame)

    def _call_reject(self, frame: CallReject, now: Now) -> None:
        self.worker.service.handle_call_reject(self._sender(frame), frame.call_id, now=now)
        self.ack(frame)

    def _call_cancel(self, frame: CallCancel, now: Now) -> None:
        self.worker.service.handle_call_cancel(self._sender(frame), frame.call_id, now=now)
        self.ack(frame)

    def _call_end(self, frame: CallEnd, now: Now) -> None:
        self.worker.service.handle_call_end(self._sender(frame), frame.call_id, now=now)
        self.ack(frame)

    def _call_signal(self, frame: CallSignal, now: Now) -> None:
        worker = self.worker
        worker.service.handle_call_signal(self._sender(frame), frame.call_id, frame.data, now=now)
        if not worker.tell_calls():
            raise Unavailable("the other side cannot be reached just now")
        self.ack(frame)

    # The connection's beginning.

    def welcome(self, now: Now) -> None:
        """The first frame."""
        worker = self.worker
        presence = worker.settings.presence
        self.send(
            Welcome(
                session_id=f"{worker.epoch}.{self.handle:x}",
                user_id=self.user_id,
                user_type=self.user_type,
                heartbeat_interval=_seconds(presence.heartbeat_interval),
                heartbeat_timeout=_seconds(presence.heartbeat_timeout),
                expires_at=self.expires_at,
                epoch=worker.epoch,
                timestamp=now.wall_us // 1_000_000,
            )
        )

    def on_token_due(self, now: Now) -> None:
        """Its token is about to run out, or has."""
        left = self.expires_at - now.wall_us / 1_000_000
        if left <= 0:
            self.worker.lose_session(self, self.worker.engine.heard_ms(self.handle), now)
            self.close(4001, "token expired")
            return
        if left <= EXPIRY_NOTICE and not self._told_expiring:
            self._told_expiring = True
            self.send(TokenExpiring(self.expires_at))
        self.worker.watch_token(self, now)

    @property
    def next_token_event_s(self) -> float:
        """Unix time of the next thing to do about its token."""
        return self.expires_at if self._told_expiring else self.expires_at - EXPIRY_NOTICE


def _seconds(value: float) -> float:
    """Whole seconds as integers: the protocol's example says 30, not 30.0."""
    return int(value) if value == int(value) else value


class Rooms(NamedTuple):
    """What is left of a subscription."""

    names: list[str]
    cursor: str | None
    id: None = None


#: Requests that may be small and take milliseconds: they are answered with the rosters of rooms.
FAR_REACHING: Final = frozenset({UserOnline, Subscribe})

HANDLERS: Final[dict[type[Any], Callable[[Peer, Any, Now], None]]] = {
    UserOnline: Peer._user_online,
    StatusChange: Peer._status_change,
    Goodbye: Peer._user_offline,
    RequestOnlineStatus: Peer._request_online_status,
    Subscribe: Peer._subscribe,
    Rooms: Peer._enter_all,
    Unsubscribe: Peer._unsubscribe,
    SendMessage: Peer._message,
    Call: Peer._call,
    CallAccept: Peer._call_accept,
    CallReject: Peer._call_reject,
    CallCancel: Peer._call_cancel,
    CallEnd: Peer._call_end,
    CallSignal: Peer._call_signal,
    TokenRefresh: Peer._token_refresh,
}
