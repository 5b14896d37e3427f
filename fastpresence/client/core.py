"""The client's machine: connect, come online, beat, lose the connection, come back with what was known.

Sans-IO: the caller passes `now_ms` (monotonic, milliseconds) and randomness, hands in frames and what became of the
socket, and takes out events and frames to send.

Invariant: a request is pending only in UP and LEAVING, and while polls tell it; each that was taken is answered,
refused or failed by exactly one `Answered`. The table and the events are in client.machine, the copy of the roster in
client.roster, the reconnect table in client.schedule, calls in client.calls, polls in client.polling. Driven by
client.driver.
"""

from collections.abc import Callable, Iterable
from typing import Final

from msgspec import Struct, structs

from fastpresence.client.calls import CallRecord, Calls
from fastpresence.client.machine import (
    NEXT,
    SHOWS,
    Answer,
    Answered,
    Connect,
    Cue,
    Disconnect,
    Event,
    Freshness,
    Phase,
    Poll,
    SentFrame,
    Stale,
    State,
    StateChanged,
    StopPolling,
    Synced,
)
from fastpresence.client.polling import FAILURES_BORNE, PollAnswer, Poller, Told
from fastpresence.client.roster import RosterCopy
from fastpresence.client.schedule import Backoff, Then, Timing, after_close, after_refusal
from fastpresence.errors import ConnectionFailed, FastPresenceError, RequestRefused
from fastpresence.messages import (
    Ack,
    Call,
    CallAccept,
    CallFrame,
    CallSignal,
    Draining,
    Error,
    Heartbeat,
    HeartbeatAck,
    Message,
    RequestOnlineStatus,
    RoomOccupancy,
    SendMessage,
    ServerFrame,
    Status,
    StatusChange,
    Subscribe,
    TokenExpiring,
    TokenRefresh,
    Unsubscribe,
    UserOffline,
    UserOnline,
    UserOnlineStatus,
    Welcome,
)

__all__ = ["TOKEN_MARGIN_MS", "ClientCore"]

#: A token that runs out sooner than this is not worth connecting with.
TOKEN_MARGIN_MS: Final = 60_000
#: Subscriptions of a reconnect that were refused and are tried in halves, to find out what it was that is not allowed.
HALVINGS_MAX: Final = 64
#: Until a server has said how long it waits for a sign of life (docs/protocol.md, section 3).
HEARTBEAT_TIMEOUT_MS: Final = 60_000

_WAITS: Final = (Phase.WAITING, Phase.RESTING)
_TRIES: Final = (Phase.OPENING, Phase.PROBING)
_TALKS: Final = (Phase.UP, Phase.LEAVING)
_POLLS: Final = (Phase.RESTING, Phase.PROBING)


class _Pending(Struct):
    request: SentFrame
    deadline_ms: float
    before: Status | None = None  # what a status change took the place of
    covers: tuple[str, ...] = ()  # watched users whose state the cursor covers once this is answered
    new: tuple[str, ...] = ()  # users or rooms that were not wanted before
    again: bool = False  # not the user's own: a subscription of a reconnect
    polled: bool = False  # told by a poll


class ClientCore:
    """One client's machine and its copy of the roster. `random` is uniform in [0, 1)."""

    def __init__(
        self,
        *,
        random: Callable[[], float],
        timing: Timing | None = None,
        user_id: str | None = None,
        user_type: str | None = None,
        device: str | None = None,
        online: bool = False,
        status: Status | None = None,
        public: bool = True,
        renewable: bool = False,
    ) -> None:
        self.user_id = user_id  #: None until `welcome` names it
        self.user_type = user_type
        self.online = online  #: False: an observer, who sees and is not seen
        self.status = status  #: what this user wants to show as; None: online, unless hidden by another device
        self.phase = Phase.WAITING
        self.reason: FastPresenceError | None = None  #: why it is not connected
        self.stale = True
        self.copy = RosterCopy(public=public)
        self.calls = Calls()
        self._rooms: dict[str, None] = {}
        self._device = device
        self._renewable = renewable
        self._timing = timing or Timing()
        self._random = random
        self._backoff = Backoff(self._timing, random)
        self._events: list[Event] = []
        self._out: list[SentFrame] = []
        self._pending: dict[int, _Pending] = {}
        self._last_id = 0
        self._due_ms: float | None = None  # WAITING, RESTING: the next attempt; while trying or leaving: the deadline
        self._beat_ms: float | None = None
        self._silent_ms: float | None = None  # the deadline for any sign of life after a beat
        self._drain_ms: float | None = None
        self._up_ms = 0.0
        self._interval_ms = 0.0
        self._patience_ms = 0.0
        self._token_ends_ms: float | None = None
        self._token_half_ms = 0.0  # before half of its life is over, a token is not replaced
        self._renew_ms: float | None = None
        self._server_zero_ms = 0.0  # our clock at the server's Unix epoch
        self._fresh_token = False
        self._settling: int | None = None  # the request whose answer proves that everything before it is answered
        self._ever_online = False
        self._halvings = 0
        self._epoch: str | None = None
        self._brought: str | None = None  # the cursor of the attempt under way
        self._heard_ms = 0.0  # the last proof that the server had heard from us
        self._timeout_ms = float(HEARTBEAT_TIMEOUT_MS)
        self._poller = Poller(self._timing, random, device)
        self._carried: list[int] = []  # requests that the poll under way tells

    @property
    def state(self) -> State:
        return SHOWS[self.phase]

    @property
    def over(self) -> bool:
        """Whether it will never connect again."""
        return self.phase in (Phase.STOPPED, Phase.CLOSED)

    @property
    def freshness(self) -> Freshness:
        return "stale" if self.stale else "polled" if self.polling else "live"

    @property
    def polling(self) -> bool:
        """Whether polls keep the copy up to date, in the place of a socket."""
        return self.phase in _POLLS and self._poller.works

    # Out: what to do and what happened.

    def events(self) -> list[Event]:
        """What happened since the last call, in order. Frames to send belong to the socket before a `Disconnect`."""
        events, self._events = self._events, []
        return events

    def frames_to_send(self) -> list[SentFrame]:
        """Frames for the socket, since the last call."""
        frames, self._out = self._out, []
        return frames

    def next_deadline_ms(self) -> float | None:
        """When `tick` is to be called at the latest; None: nothing is waited for."""
        deadlines = [self._due_ms, self._beat_ms, self._silent_ms, self._drain_ms, self._renew_ms]
        deadlines.append(self._poller.due_ms)
        if self.calls.calls and self.phase not in _TALKS:
            deadlines.append(self._heard_ms + self._timeout_ms)
        deadlines.extend(pending.deadline_ms for pending in self._pending.values())
        return min((deadline for deadline in deadlines if deadline is not None), default=None)

    # In: time and the socket.

    def start(self, now_ms: float) -> None:
        """Try to connect, now: at the beginning, or because the network is back."""
        if self.phase in _WAITS:
            self._due_ms = now_ms
            if not self._poller.works:
                self._poller.soon(now_ms)
            self.tick(now_ms)

    def tick(self, now_ms: float) -> None:
        """Do what is due."""
        if self._due_ms is not None and now_ms >= self._due_ms:
            if self.phase in _WAITS:
                self._connect(now_ms)
            elif self.phase in _TRIES:
                self._cut(now_ms, None, Then.AGAIN, "no welcome in time")
            else:
                self._part(None)
        for request_id, pending in list(self._pending.items()):
            if now_ms >= pending.deadline_ms:
                self._answer(request_id, None, ConnectionFailed("no answer in time"))
        if self.phase in _TALKS:
            self._tick_up(now_ms)
            return
        self._expire_calls(now_ms)
        if self._poller.due_ms is not None and now_ms >= self._poller.due_ms:
            if self._poller.between_rounds:
                self._carried = list(self._pending)
            request = self._poller.ask(self._rooms, self.copy.watched, self.status)
            self._events.append(Poll(request, self._renewable and self._poller.fresh_token))

    def _tick_up(self, now_ms: float) -> None:
        """What is due on a living connection."""
        self._say_farewells(now_ms)
        if self._renew_ms is not None and now_ms >= self._renew_ms:
            self._renew_ms = None
            self._events.append(TokenExpiring(round((self._token_ends_ms or 0.0) - self._server_zero_ms) // 1000))
        if self._silent_ms is not None and now_ms >= self._silent_ms:
            self._cut(now_ms, None, Then.AGAIN, "a heartbeat was not answered")
        elif self._settling is not None and self._settling not in self._pending and not self.copy.collecting:
            self._cut(now_ms, None, Then.AGAIN, "the server did not catch us up in time")
        elif self._drain_ms is not None and now_ms >= self._drain_ms:
            self._cut(now_ms, 1001, Then.AT_ONCE, "the server is draining")
        elif self._beat_ms is not None and now_ms >= self._beat_ms:
            self._out.append(Heartbeat())
            # Missed beats are not made up for: one now, the next an interval from now.
            self._beat_ms = now_ms + self._interval_ms
            if self._silent_ms is None:
                self._silent_ms = now_ms + self._patience_ms

    def lost(
        self,
        now_ms: float,
        *,
        close_code: int | None = None,
        http_status: int | None = None,
        retry_after_ms: float = 0.0,
        reason: str = "the connection broke",
    ) -> None:
        """The socket of the last `Connect` is gone, or could not be had."""
        if http_status is not None:
            then = after_refusal(http_status)
            reason = f"the server refused the connection: HTTP {http_status}"
        else:
            then = after_close(close_code)
            if close_code is not None:
                reason = f"the server closed the connection: {close_code}"
            if close_code == 1012 and self._drain_ms is not None:
                then = Then.AT_ONCE  # announced, and spread over the drain already
        self._lost(now_ms, then, reason, retry_after_ms)

    def refuse(self, error: FastPresenceError) -> None:
        """Nothing that a retry could mend: stop for good."""
        if self.phase in _TRIES or self.phase in _TALKS:
            self._events.append(Disconnect(1000))
        self._end(Cue.REFUSED, error)

    # In: polls.

    def polled(self, answer: PollAnswer, now_ms: float) -> None:
        """The poll of the last `Poll` was answered."""
        asked = self._poller.asked
        if asked is None:
            return
        self._heard_ms = now_ms
        if answer.more and answer.cursor == asked.cursor:
            self.poll_failed(now_ms, reason="the answers to polls do not get on")
            return
        told = self._poller.answered(answer, now_ms)
        if told is not None:
            self._take_poll(told, {room.room: room.count for room in answer.room_occupancy})

    def poll_failed(
        self,
        now_ms: float,
        *,
        http_status: int | None = None,
        retry_after_ms: float = 0.0,
        reason: str = "the poll was not answered",
    ) -> None:
        """The poll of the last `Poll` was refused, or could not be had."""
        if self._poller.asked is None:
            return
        if http_status is not None:
            reason = f"the server refused the poll: HTTP {http_status}"
        if http_status == 401 and not self._renewable:
            self.refuse(ConnectionFailed(reason))
            return
        self._poller.failed(now_ms, http_status=http_status, retry_after_ms=retry_after_ms)
        if self._poller.due_ms != now_ms:  # else it is asked again, in another way
            self._fail_pending(ConnectionFailed(reason))
            self._grow_stale()
            if self._poller.failures > FAILURES_BORNE and self.phase is Phase.RESTING:
                self._poller.forget()
                self._events.extend(self.copy.go_dark())

    def _take_poll(self, told: Told, crowded: dict[str, int]) -> None:
        part = told.part
        if part.whole:
            if crowded.keys() != self.copy.occupancy.keys() and not told.full:
                self._poller.forget_cursors()  # there are others in the scope: all that is known of them is to be told
            for room in self.copy.occupancy.keys() - crowded.keys():
                del self.copy.occupancy[room]
            for room, count in crowded.items():
                self._crowded(RoomOccupancy(room, count))
            if self._rooms.keys() >= set(part.rooms) and self.copy.watched.keys() >= set(part.user_ids):
                self.copy.cursor = told.cursor  # a socket goes on from here
        self._events.extend(self.copy.take_poll(told.entries, full=told.full, user_ids=part.user_ids, whole=part.whole))
        if told.last:
            for request_id in self._carried:
                self._answer(request_id, Ack(request_id))
            self._carried = []
            if self.stale:
                self.stale = False
                self._events.append(Synced(polled=True))

    # In: what the user of the client wants. Each returns the id of its request, and raises ConnectionFailed when
    # nobody can be told just now; status, watches and rooms are told at the next connection then. A call that is hung
    # up is over at once, and the server told until it knows. RequestRefused: there is no such call any more.

    def set_status(self, status: Status, now_ms: float) -> int:
        before, self.status = self.status, status
        request_id = self._request(StatusChange(status=status), now_ms)
        self._pending[request_id].before = before
        return request_id

    def watch(self, user_ids: list[str], now_ms: float) -> int:
        new = tuple(user_id for user_id in user_ids if user_id not in self.copy.watched)
        self.copy.watch(user_ids)
        return self._request(Subscribe(user_ids=user_ids), now_ms, new=new)

    def unwatch(self, user_ids: list[str], now_ms: float) -> int:
        return self._stop_seeing(Unsubscribe(user_ids=user_ids), now_ms)

    def join(self, room: str, now_ms: float) -> int:
        new = () if room in self._rooms else (room,)
        self._rooms[room] = None
        return self._request(Subscribe(rooms=[room]), now_ms, new=new)

    def leave_room(self, room: str, now_ms: float) -> int:
        self._rooms.pop(room, None)
        return self._stop_seeing(Unsubscribe(rooms=[room]), now_ms)

    def send_message(self, to_user_id: str, text: str, now_ms: float) -> int:
        return self._request(SendMessage(to_user_id=to_user_id, message=text), now_ms)

    def ask(self, user_ids: list[str], now_ms: float) -> int:
        return self._request(RequestOnlineStatus(user_ids=user_ids), now_ms)

    def beat(self, now_ms: float) -> int:
        return self._request(Heartbeat(), now_ms)

    def refresh_token(self, token: str, now_ms: float) -> int:
        return self._request(TokenRefresh(token=token), now_ms)

    def call(self, call_id: str, to_user_id: str, now_ms: float, *, video: bool, audio: bool) -> tuple[int, CallRecord]:
        record = self.calls.dial(call_id, to_user_id, video=video, audio=audio)
        frame = Call(call_id=call_id, to_user_id=to_user_id, video=video, audio=audio)
        try:
            return self._request(frame, now_ms), record
        except ConnectionFailed:
            del self.calls.calls[call_id]
            raise

    def accept_call(self, call_id: str, now_ms: float) -> int:
        record = self.calls.record(call_id, to_accept=True)
        request_id = self._request(CallAccept(call_id=call_id), now_ms)
        record.accepting = True
        return request_id

    def hang_up(self, call_id: str, now_ms: float) -> int:
        """Reject a call that rings here, cancel one that rings there, end one that is talked on."""
        farewell, events = self.calls.hang_up(call_id)
        self._events.extend(events)
        return self._request(farewell, now_ms)

    def signal(self, call_id: str, data: str, now_ms: float) -> int:
        self.calls.record(call_id)
        return self._request(CallSignal(call_id=call_id, data=data), now_ms)

    def leave(self, now_ms: float) -> None:
        """Go for good: hang up and say goodbye if anybody can see us, then close."""
        if self.phase is Phase.UP and self.online:
            self._settling = None
            self._fail_pending(ConnectionFailed("the client leaves"))
            for call_id in list(self.calls.calls):
                self.hang_up(call_id, now_ms)
            self._say_farewells(now_ms)
            self._request(UserOffline(), now_ms)
            self._move(Cue.LEAVE, None)
            self._due_ms = now_ms + self._timing.goodbye_ms
            self._beat_ms = self._silent_ms = self._drain_ms = self._renew_ms = None
        elif self.phase is not Phase.LEAVING:
            self._part(1000)

    def abandon(self) -> None:
        """Go for good, at once and without a goodbye."""
        self._part(None)

    # In: frames.

    def receive(self, frame: ServerFrame, now_ms: float) -> None:
        """Take one frame of the server in."""
        self._silent_ms = None
        if isinstance(frame, Welcome):
            if self.phase in _TRIES:
                self._on_welcome(frame, now_ms)
            return
        if self.phase not in _TALKS:
            return
        match frame:
            case UserOnlineStatus():
                self._events.extend(self.copy.take(frame))
                if isinstance(frame.reply_to, int):
                    self._answer(frame.reply_to, frame)
                self._settle()
            case Ack() | HeartbeatAck():
                self._heard_ms = now_ms
                if isinstance(frame.reply_to, int):
                    self._on_ack(frame.reply_to, frame, now_ms)
            case Error():
                if isinstance(frame.reply_to, int):
                    self._on_error(frame.reply_to, RequestRefused(frame.code, frame.message), now_ms)
            case Message():
                self._events.append(frame)
            case CallFrame():
                self._events.extend(self.calls.take(frame))
            case TokenExpiring():
                # The server tells it a minute ahead, and at once of a token that lives for less than that.
                self._renew_ms = max(now_ms, self._token_half_ms)
                self.tick(now_ms)
            case RoomOccupancy():
                self._crowded(frame)
            case Draining():
                self._drain_ms = now_ms + frame.reconnect_after_ms

    def _on_welcome(self, frame: Welcome, now_ms: float) -> None:
        for wanted, given in ((self.user_id, frame.user_id), (self.user_type, frame.user_type)):
            if wanted is not None and wanted != given:
                self.refuse(ConnectionFailed(f"the token is for {given!r}, not for {wanted!r}"))
                return
        if self._brought is not None and self.copy.unsure:
            self._cut(
                now_ms, 1001, Then.AT_ONCE, "meanwhile polls told of users that the cursor brought does not cover"
            )
            return
        self.user_id, self.user_type = frame.user_id, frame.user_type
        self._up_ms = now_ms
        self._due_ms = None
        self._fresh_token = False
        self._server_zero_ms = now_ms - frame.timestamp * 1000
        self._new_token(frame.expires_at, now_ms)
        self._interval_ms = frame.heartbeat_interval * 1000
        # A lost connection is noticed early enough to be back before the server takes us for gone.
        self._timeout_ms = frame.heartbeat_timeout * 1000
        margin_ms = (frame.heartbeat_timeout - frame.heartbeat_interval) * 500
        self._patience_ms = max(margin_ms, self._timing.silence_floor_ms)
        self._beat_ms = now_ms + self._interval_ms * self._random()
        self.copy.connected(frame.epoch, brought=self._brought)
        self._stop_polling()
        self._grow_stale()
        self._halvings = 0
        self._expire_calls(now_ms)
        self._events.extend(self.calls.connected(same_memory=frame.epoch == self._epoch))
        self._epoch = frame.epoch
        self._heard_ms = now_ms
        self._move(Cue.WELCOMED, None)
        if self.online:
            attempt = self._backoff.attempt or None
            self._request(UserOnline(status=self.status, device=self._device, attempt=attempt), now_ms)
            for accept in self.calls.accepting():
                self._request(accept, now_ms)
            self._say_farewells(now_ms)
        covers = self._subscribe_again(now_ms)
        # Frames are answered in order: when this one is, everything before it has been.
        self._settling = self._request(Heartbeat(), now_ms, covers=covers)

    def _new_token(self, expires_at: int, now_ms: float) -> None:
        self._token_ends_ms = self._server_zero_ms + expires_at * 1000
        self._token_half_ms = (now_ms + self._token_ends_ms) / 2
        self._renew_ms = None

    def _subscribe_again(self, now_ms: float) -> tuple[str, ...]:
        watched, cursor = self.copy.watched, self.copy.watch_cursor
        known = tuple(user_id for user_id, covered in watched.items() if covered and cursor is not None)
        new = [user_id for user_id in watched if user_id not in set(known)]
        # Until all answers have come, no cursor covers them for sure: lost before, they start afresh.
        watched.update(dict.fromkeys(known, False))
        for batch in _batches(known):
            self._request(Subscribe(user_ids=batch, cursor=cursor), now_ms, again=True)
        for batch in _batches(new):
            self._request(Subscribe(user_ids=batch), now_ms, again=True)
        cursors = self.copy.room_cursors
        for room in self._rooms:
            self._request(Subscribe(rooms=[room], cursor=cursors.get(room)), now_ms, again=True)
        return known

    def _on_ack(self, request_id: int, frame: Ack | HeartbeatAck, now_ms: float) -> None:
        pending = self._pending.get(request_id)
        if pending is None:
            return
        match pending.request:
            case Subscribe(user_ids=list(user_ids)):
                self.copy.watch(user_ids)  # an answer to an older `unwatch` may have come between
                self.copy.answering(user_ids)
            case UserOnline():
                self._ever_online = True
            case TokenRefresh() if isinstance(frame, Ack) and isinstance(frame.expires_at, int):
                self._new_token(frame.expires_at, now_ms)
        self._answer(request_id, frame)
        if request_id == self._settling:
            self.copy.settled(pending.covers)
            self._settle()

    def _on_error(self, request_id: int, error: RequestRefused, now_ms: float) -> None:
        pending = self._pending.get(request_id)
        if pending is None:
            return
        self._heard_ms = now_ms
        self._answer(request_id, None, error)
        match pending.request:
            case UserOnline():
                if self._ever_online:
                    self._cut(now_ms, 1001, Then.BACK_OFF, str(error))
                else:
                    self.refuse(error)
            case StatusChange(status=status) if status == self.status:
                self.status = pending.before
            case Subscribe() if pending.again:
                self._not_again(pending.request, error, now_ms)
            case Subscribe(user_ids=user_ids, rooms=rooms):
                refused = [*(user_ids or ()), *(rooms or ())] if error.code == "forbidden" else pending.new
                self._want_no_more(refused if user_ids else (), refused if rooms else ())
            case Heartbeat() if request_id == self._settling:
                self._cut(now_ms, 1001, Then.BACK_OFF, str(error))
        self._say_farewells(now_ms)

    def _not_again(self, request: Subscribe, error: RequestRefused, now_ms: float) -> None:
        """What was seen before may not be seen any more: of many, find out which, and want those no more."""
        if error.code in ("rate_limited", "unavailable", "not_online"):
            self._cut(now_ms, 1001, Then.BACK_OFF, str(error))
            return
        wanted = [user_id for user_id in request.user_ids or () if user_id in self.copy.watched]
        if len(wanted) < 2 or self._halvings >= HALVINGS_MAX or self._settling is None:
            self._want_no_more(wanted, request.rooms or ())
            return
        self._halvings += 1
        half = len(wanted) // 2
        for user_ids in (wanted[:half], wanted[half:]):
            self._request(Subscribe(user_ids=user_ids, cursor=request.cursor), now_ms, again=True)
        # Caught up is who has these answers, too.
        covers = self._pending[self._settling].covers if self._settling in self._pending else ()
        self._settling = self._request(Heartbeat(), now_ms, covers=covers)

    def _want_no_more(self, user_ids: Iterable[str], rooms: Iterable[str]) -> None:
        self.copy.unwatch(user_ids)
        for room in rooms:
            self._rooms.pop(room, None)
            self.copy.leave_room(room)

    def _settle(self) -> None:
        settled = self._settling is not None and self._settling not in self._pending
        if self.stale and settled and not self.copy.collecting:
            self.stale = False
            self._settling = None
            self._events.extend(self.copy.off_polling())
            for request_id, pending in list(self._pending.items()):
                if pending.polled:  # what a poll was to tell, this connection has told
                    self._answer(request_id, Ack(request_id))
            self._events.append(Synced())

    def _grow_stale(self) -> None:
        if not self.stale:
            self.stale = True
            self._events.append(Stale())

    def _crowded(self, frame: RoomOccupancy) -> None:
        if self.copy.occupancy.get(frame.room) != frame.count:
            self._events.append(frame)
        self.copy.crowded(frame.room, frame.count)

    # Calls.

    def _say_farewells(self, now_ms: float) -> None:
        """Tell the server of calls that are over here."""
        if self.phase is Phase.UP and self.calls.farewells:
            for farewell in self.calls.unsaid():
                self._request(farewell, now_ms)

    def _expire_calls(self, now_ms: float) -> None:
        """The server has not heard from us for so long that it has ended our session, and with it our calls."""
        if self.calls.calls and now_ms >= self._heard_ms + self._timeout_ms:
            self._events.extend(self.calls.end_all("offline", tell=True))

    # Inside.

    def _request(
        self,
        frame: SentFrame,
        now_ms: float,
        *,
        covers: tuple[str, ...] = (),
        new: tuple[str, ...] = (),
        again: bool = False,
    ) -> int:
        polled = self.polling and isinstance(frame, StatusChange | Subscribe | Unsubscribe)
        if self.phase is not Phase.UP and not polled:
            raise ConnectionFailed(f"{self.state}: {self.reason}" if self.reason else self.state)
        self._last_id += 1
        frame = structs.replace(frame, id=self._last_id)
        # A poll may be under way that began too early to tell this.
        patience_ms = 2 * self._timing.poll_timeout_ms if polled else self._timing.request_timeout_ms
        self._pending[self._last_id] = _Pending(
            frame, now_ms + patience_ms, covers=covers, new=new, again=again, polled=polled
        )
        if polled:
            self._poller.soon(now_ms)
        else:
            self._out.append(frame)
        return self._last_id

    def _answer(self, request_id: int, answer: Answer | None, error: FastPresenceError | None = None) -> None:
        pending = self._pending.pop(request_id, None)
        if pending is None:
            return
        if isinstance(pending.request, Unsubscribe) and not pending.polled and not isinstance(error, RequestRefused):
            self._see_no_more(pending.request)
        self._events.append(Answered(request_id, pending.request, answer, error))
        self._events.extend(self.calls.answered(pending.request, error))

    def _stop_seeing(self, request: Unsubscribe, now_ms: float) -> int:
        if self.polling:
            self._see_no_more(request)
            # Who is seen no more may be a public user, which polls do not say, or wanted again before the next one.
            self.copy.cursor = None
            self._poller.forget_cursors()
        # The copy goes on seeing them until a socket's answer: frames about them may be under way.
        try:
            return self._request(request, now_ms)
        except ConnectionFailed:
            self._see_no_more(request)
            raise

    def _see_no_more(self, request: Unsubscribe) -> None:
        self.copy.unwatch(request.user_ids or ())
        for room in request.rooms or ():
            self.copy.leave_room(room)

    def _fail_pending(self, error: FastPresenceError) -> None:
        for request_id in list(self._pending):
            self._answer(request_id, None, error)

    def _connect(self, now_ms: float) -> None:
        ends = self._token_ends_ms
        expiring = ends is not None and ends - now_ms < TOKEN_MARGIN_MS
        self._move(Cue.DUE, self.reason)
        self._due_ms = now_ms + self._timing.attempt_timeout_ms
        self._brought = None if self.copy.unsure else self.copy.cursor
        self._events.append(Connect(self._brought, self._renewable and (self._fresh_token or expiring)))

    def _cut(self, now_ms: float, code: int | None, then: Then, reason: str) -> None:
        self._events.append(Disconnect(code))
        self._lost(now_ms, then, reason)

    def _lost(self, now_ms: float, then: Then, reason: str, retry_after_ms: float = 0.0) -> None:
        if self.phase is Phase.LEAVING:
            self._part(None)
        elif self.phase is Phase.UP or self.phase in _TRIES:
            error = ConnectionFailed(reason)
            opened = self.phase is Phase.UP
            if then is Then.STOP or (then is Then.NEW_TOKEN and not self._renewable):
                self._end(Cue.REFUSED, error)
                return
            if then is Then.MEND:
                self.copy.drop_cursors()
            if opened and now_ms - self._up_ms >= self._timing.stable_after_ms:
                self._backoff.stable()
            self._fresh_token = not opened or then is Then.NEW_TOKEN
            delay_ms, spent = self._backoff.delay_ms(then, opened=opened, at_least_ms=retry_after_ms)
            self._end(Cue.SPENT if spent else Cue.LOST, error)
            self._due_ms = now_ms + delay_ms
            if self.online and self.state == "failed":
                self._poller.begin(now_ms)

    def _part(self, code: int | None) -> None:
        """Leave without, or after, the goodbye."""
        if self.phase in _TRIES or self.phase in _TALKS:
            self._events.append(Disconnect(code))
        self._end(Cue.PART, ConnectionFailed("the client has left"))

    def _end(self, cue: Cue, error: FastPresenceError) -> None:
        phase = NEXT[self.phase].get(cue)
        if phase is None:
            return
        self._due_ms = self._beat_ms = self._silent_ms = self._drain_ms = self._renew_ms = None
        self._out.clear()
        if self.phase is Phase.PROBING and phase is Phase.RESTING:
            self._move(cue, error)  # polls go on as if nothing had happened
            return
        self._settling = None
        self._stop_polling()
        self._fail_pending(error)
        self._grow_stale()
        self._move(cue, error)
        if self.over:
            self._events.extend(self.calls.end_all("offline"))
        if self.state == "failed":
            self._events.extend(self.copy.go_dark())

    def _stop_polling(self) -> None:
        self._carried = []
        if self._poller.stop():
            self._events.append(StopPolling())

    def _move(self, cue: Cue, reason: FastPresenceError | None) -> None:
        """Take the transition of the table; a refused cue changes nothing."""
        before = self.state
        phase = NEXT[self.phase].get(cue)
        if phase is None:
            return
        self.phase = phase
        self.reason = reason
        if self.state != before:
            self._events.append(StateChanged(self.state, reason))


def _batches(user_ids: Iterable[str], size: int = 1000) -> Iterable[list[str]]:
    """At most a thousand to a request (docs/protocol.md, section 2)."""
    ids = list(user_ids)
    return (ids[start : start + size] for start in range(0, len(ids), size))
