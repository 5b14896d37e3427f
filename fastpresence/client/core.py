"""The client's machine: connect, come online, beat, lose the connection, come back with what was known.

Sans-IO: the caller passes `now_ms` (monotonic, milliseconds) and randomness, hands in frames and what became of the
socket, and takes out events and frames to send.

Invariant: a request is pending only in UP and LEAVING, and while polls tell it; each that was taken is answered,
refused or failed by exactly one `Answered`. The table and the events are in client.machine, the copy of the roster in
client.roster, what it is to show in client.wishes, the reconnect table in client.schedule, beats in client.pulse,
calls in client.calls, polls in client.polling. Driven by client.driver.
"""

from collections.abc import Callable
from typing import Final

from fastpresence.client.calls import CallRecord, Calls, Farewell
from fastpresence.client.fallback import Fallback
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
from fastpresence.client.polling import FAILURES_BORNE, PollAnswer, Poller, PollRequest, RosterAnswer
from fastpresence.client.pulse import Due, Pulse
from fastpresence.client.requests import Pending, Requests
from fastpresence.client.roster import RosterCopy
from fastpresence.client.schedule import Backoff, Then, Timing, after_close, after_refusal
from fastpresence.client.wishes import Wishes
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

_WAITS: Final = (Phase.WAITING, Phase.RESTING)
_TRIES: Final = (Phase.OPENING, Phase.PROBING)
_TALKS: Final = (Phase.UP, Phase.LEAVING)
_POLLS: Final = (Phase.RESTING, Phase.PROBING)


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
        self.wishes = Wishes(self.copy)
        self.calls = Calls()
        self._device = device
        self._renewable = renewable
        self._timing = timing or Timing()
        self._random = random
        self._backoff = Backoff(self._timing, random)
        self._events: list[Event] = []
        self._out: list[SentFrame] = []
        self._requests = Requests()
        self._due_ms: float | None = None  # WAITING, RESTING: the next attempt; while trying or leaving: the deadline
        self._pulse = Pulse(self._timing, random)
        self._fresh_token = False
        self._settling: int | None = None  # the request whose answer proves that everything before it is answered
        self._ever_online = False
        self._epoch: str | None = None
        self._brought: str | None = None  # the cursor of the attempt under way
        self._poller = Poller(self._timing, random, device)
        self._fallback = Fallback(self._poller, self.copy, self.wishes)
        self._carried: list[int] = []  # requests that the poll under way tells
        self._keeping = False  # a poll is under way that only keeps us present
        self._keep_from_ms = 0.0  # no other one before that

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
        deadlines = [
            self._due_ms,
            self._pulse.next_deadline_ms(),
            self._poller.due_ms,
            self._requests.next_deadline_ms(),
            self._keep_due_ms,
            self._pulse.given_up_ms if self.calls.calls and self.phase not in _TALKS else None,
        ]
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
        for request_id in self._requests.overdue(now_ms):
            self._answer(request_id, None, ConnectionFailed("no answer in time"))
        if self.phase in _TALKS:
            self._tick_up(now_ms)
            return
        self._expire_calls(now_ms)
        keep_due_ms = self._keep_due_ms
        if keep_due_ms is not None and now_ms >= keep_due_ms:
            self._keep_present(now_ms)
        if self._poller.due_ms is not None and now_ms >= self._poller.due_ms:
            if self._poller.between_rounds:
                self._carried = self._requests.ids()
            self._events.append(
                Poll(
                    self._fallback.ask(self.status, self.calls.farewells.values()),
                    self._renewable and self._poller.fresh_token,
                )
            )

    def _tick_up(self, now_ms: float) -> None:
        """What is due on a living connection."""
        self._say_farewells(now_ms)
        due = self._pulse.take(now_ms)
        if Due.RENEWAL in due:
            self._events.append(TokenExpiring(self._pulse.expires_at))
        if Due.SILENCE in due:
            self._cut(now_ms, None, Then.AGAIN, "a heartbeat was not answered")
        elif self._is_settled:
            self._cut(now_ms, None, Then.AGAIN, "the server did not catch us up in time")
        elif Due.DRAIN in due:
            self._cut(now_ms, 1001, Then.AT_ONCE, "the server is draining")
        elif Due.BEAT in due:
            self._out.append(Heartbeat())

    def lost(
        self,
        now_ms: float,
        *,
        close_code: int | None = None,
        http_status: int | None = None,
        retry_after_ms: float = 0.0,
        by_server: bool = True,
        reason: str = "the connection broke",
    ) -> None:
        """The socket of the last `Connect` is gone, or could not be had.

        `by_server`: whether it was the server that refused it, and not something on the way.
        """
        if http_status is not None:
            then = after_refusal(http_status, by_server=by_server)
            who = "the server" if by_server else "something on the way to the server"
            reason = f"{who} refused the connection: HTTP {http_status}"
        else:
            then = after_close(close_code)
            if close_code is not None:
                reason = f"the server closed the connection: {close_code}"
            if close_code == 1012 and self._pulse.is_draining:
                then = Then.AT_ONCE  # announced, and spread over the drain already
        self._lost(now_ms, then, reason, retry_after_ms)

    def refuse(self, error: FastPresenceError) -> None:
        """Nothing that a retry could mend: stop for good."""
        if self.phase in _TRIES or self.phase in _TALKS:
            self._events.append(Disconnect(1000))
        self._end(Cue.REFUSED, error)

    # In: polls.

    def polled(self, answer: PollAnswer | RosterAnswer, now_ms: float) -> None:
        """The request of the last `Poll` was answered."""
        if self._keeping:
            self._keeping = False
            self._pulse.answered(now_ms)
            return
        asked = self._poller.asked
        if asked is None:
            return
        self._pulse.answered(now_ms)
        for farewell in asked.calls if isinstance(asked, PollRequest) else ():
            self.calls.answered(farewell, None)
        happened = self._fallback.take(answer, now_ms)
        if happened is None:
            self.poll_failed(now_ms, reason="the answers to polls do not get on")
            return
        self._events.extend(happened)
        self._next_poll(now_ms)

    def poll_failed(
        self,
        now_ms: float,
        *,
        http_status: int | None = None,
        retry_after_ms: float = 0.0,
        reason: str = "the poll was not answered",
    ) -> None:
        """The poll of the last `Poll` was refused, or could not be had."""
        if self._keeping:
            self._keeping = False
            self._keep_from_ms = now_ms + max(self._timing.poll_interval_ms, retry_after_ms)
            return
        if self._poller.asked is None:
            return
        if http_status is not None:
            reason = f"the server refused the poll: HTTP {http_status}"
        if http_status == 401 and not self._renewable:
            self.refuse(ConnectionFailed(reason))
            return
        if http_status in (403, 404, 405, 422) and self._poller.roster_answered() is not None:
            self._next_poll(now_ms)  # it can't be had: the rest of the round is as good as before
            return
        self._poller.failed(now_ms, http_status=http_status, retry_after_ms=retry_after_ms)
        if self._poller.due_ms != now_ms:  # else it is asked again, in another way
            self._fail_pending(ConnectionFailed(reason))
            self._grow_stale()
            if self._poller.failures > FAILURES_BORNE and self.phase is Phase.RESTING:
                self._poller.forget()
                self._events.extend(self.copy.go_dark())

    @property
    def _keep_due_ms(self) -> float | None:
        """When, between two attempts, a poll has to say that we are still here; None: at no time."""
        if not (self.online and self._ever_online and self.phase in (Phase.WAITING, Phase.OPENING)) or self._keeping:
            return None
        due_ms = max(self._pulse.keep_ms, self._keep_from_ms)
        return due_ms if due_ms < self._pulse.given_up_ms else None

    def _keep_present(self, now_ms: float) -> None:
        """The table of attempts takes longer than the server's patience: be heard of meanwhile, and hear nothing."""
        if now_ms < self._pulse.given_up_ms:
            self._keeping = True
            request = PollRequest(cursor=self.copy.cursor, status=self.status, device=self._device)
            self._events.append(Poll(request, False))
        else:
            self._keep_from_ms = self._pulse.given_up_ms  # the machine slept: too late

    def _next_poll(self, now_ms: float) -> None:
        if not self._poller.advance(now_ms):
            return
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
        pending = self._requests.find(request_id)
        if pending is not None:
            pending.before = before
        return request_id

    def watch(self, user_ids: list[str], now_ms: float) -> int:
        return self._request(Subscribe(user_ids=user_ids), now_ms, new=self.wishes.watch(user_ids))

    def unwatch(self, user_ids: list[str], now_ms: float) -> int:
        return self._stop_seeing(Unsubscribe(user_ids=user_ids), now_ms)

    def join(self, room: str, now_ms: float) -> int:
        return self._request(Subscribe(rooms=[room]), now_ms, new=self.wishes.join(room))

    def leave_room(self, room: str, now_ms: float) -> int:
        self.wishes.rooms.pop(room, None)
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
            self._pulse.stop()
        elif self.phase is not Phase.LEAVING:
            self._part(1000)

    def abandon(self) -> None:
        """Go for good, at once and without a goodbye."""
        self._part(None)

    # In: frames.

    def receive(self, frame: ServerFrame, now_ms: float) -> None:
        """Take one frame of the server in."""
        self._pulse.sign_of_life()
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
                self._pulse.answered(now_ms)
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
                self._pulse.expiring(now_ms)
                self.tick(now_ms)
            case RoomOccupancy():
                if self.copy.crowded(frame.room, frame.count):
                    self._events.append(frame)
            case Draining():
                self._pulse.draining(frame.reconnect_after_ms, now_ms)

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
        self._due_ms = None
        self._fresh_token = False
        self.copy.connected(frame.epoch, brought=self._brought)
        self._stop_polling()
        self._grow_stale()
        self._expire_calls(now_ms)
        self._pulse.welcomed(frame, now_ms)
        self._events.extend(self.calls.connected(same_memory=frame.epoch == self._epoch))
        self._epoch = frame.epoch
        self._move(Cue.WELCOMED, None)
        if self.online:
            attempt = self._backoff.attempt or None
            self._request(UserOnline(status=self.status, device=self._device, attempt=attempt), now_ms)
            for accept in self.calls.accepting():
                self._request(accept, now_ms)
            self._say_farewells(now_ms)
        self._subscribe_again(now_ms)

    def _subscribe_again(self, now_ms: float) -> None:
        """Ask for all wishes, and settle once all is answered."""
        requests, covers = self.wishes.again()
        for request in requests:
            self._request(request, now_ms, again=True)
        self._settle_behind(covers, now_ms)

    def _settle_behind(self, covers: tuple[str, ...], now_ms: float) -> None:
        # Frames are answered in order: when this one is, everything before it has been.
        self._settling = self._request(Heartbeat(), now_ms, covers=covers)

    def _on_ack(self, request_id: int, frame: Ack | HeartbeatAck, now_ms: float) -> None:
        pending = self._requests.find(request_id)
        if pending is None:
            return
        match pending.request:
            case Subscribe(user_ids=list(user_ids)):
                self.copy.watch(user_ids)  # an answer to an older `unwatch` may have come between
                self.copy.answering(user_ids)
            case UserOnline():
                self._ever_online = True
            case TokenRefresh() if isinstance(frame, Ack) and isinstance(frame.expires_at, int):
                self._pulse.new_token(frame.expires_at, now_ms)
                if self.wishes.any:  # a narrower one ends what it does not allow, and nobody says so
                    self._subscribe_again(now_ms)
        self._answer(request_id, frame)
        if request_id == self._settling:
            self.copy.settled(pending.covers)
            self._settle()

    def _on_error(self, request_id: int, error: RequestRefused, now_ms: float) -> None:
        pending = self._requests.find(request_id)
        if pending is None:
            return
        self._pulse.answered(now_ms)
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
                self.wishes.drop(refused if user_ids else (), refused if rooms else ())
            case Heartbeat() if request_id == self._settling:
                self._cut(now_ms, 1001, Then.BACK_OFF, str(error))
        self._say_farewells(now_ms)

    def _not_again(self, request: Subscribe, error: RequestRefused, now_ms: float) -> None:
        """What was seen before may not be seen any more: of many, find out which, and want those no more."""
        if error.code in ("rate_limited", "unavailable", "not_online"):
            self._cut(now_ms, 1001, Then.BACK_OFF, str(error))
            return
        instead = self.wishes.refused(request)
        for each in instead:
            self._request(each, now_ms, again=True)
        if instead:
            settling = self._requests.find(self._settling)
            self._settle_behind(() if settling is None else settling.covers, now_ms)

    @property
    def _is_settled(self) -> bool:
        """Whether what was asked for on a new connection has come, and nobody has noticed yet."""
        waits = self._settling is None or self._requests.find(self._settling) is not None
        return not waits and not self.copy.collecting

    def _settle(self) -> None:
        if not self._is_settled:
            return
        self._settling = None
        if self.stale:
            self.stale = False
            self._events.extend(self.copy.off_polling())
            for request_id in self._requests.told_by_polls():  # this connection has told it
                self._answer(request_id, Ack(request_id))
            self._events.append(Synced())

    def _grow_stale(self) -> None:
        if not self.stale:
            self.stale = True
            self._events.append(Stale())

    # Calls.

    def _say_farewells(self, now_ms: float) -> None:
        """Tell the server of calls that are over here."""
        if self.phase is Phase.UP and self.calls.farewells:
            for farewell in self.calls.unsaid():
                self._request(farewell, now_ms)

    def _expire_calls(self, now_ms: float) -> None:
        """The server has not heard from us for so long that it has ended our session, and with it our calls."""
        if self.calls.calls and now_ms >= self._pulse.given_up_ms:
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
        polled = self.polling and isinstance(frame, StatusChange | Subscribe | Unsubscribe | Farewell)
        if self.phase is not Phase.UP and not polled:
            raise ConnectionFailed(f"{self.state}: {self.reason}" if self.reason else self.state)
        # A poll may be under way that began too early to tell this.
        patience_ms = 2 * self._timing.poll_timeout_ms if polled else self._timing.request_timeout_ms
        request_id, sent = self._requests.add(
            Pending(frame, now_ms + patience_ms, covers=covers, new=new, again=again, polled=polled)
        )
        if polled:
            self._poller.soon(now_ms)
        else:
            self._out.append(sent)
        return request_id

    def _answer(self, request_id: int, answer: Answer | None, error: FastPresenceError | None = None) -> None:
        pending = self._requests.take(request_id)
        if pending is None:
            return
        if isinstance(pending.request, Unsubscribe) and not pending.polled and not isinstance(error, RequestRefused):
            self.wishes.see_no_more(pending.request)
        self._events.append(Answered(request_id, pending.request, answer, error))
        self._events.extend(self.calls.answered(pending.request, error))

    def _stop_seeing(self, request: Unsubscribe, now_ms: float) -> int:
        if self.polling:
            self.wishes.see_no_more(request)
            # Who is seen no more may be a public user, which polls do not say, or wanted again before the next one.
            self.copy.cursor = None
            self._poller.forget_cursors()
        # The copy goes on seeing them until a socket's answer: frames about them may be under way.
        try:
            return self._request(request, now_ms)
        except ConnectionFailed:
            self.wishes.see_no_more(request)
            raise

    def _fail_pending(self, error: FastPresenceError) -> None:
        for request_id in self._requests.ids():
            self._answer(request_id, None, error)

    def _connect(self, now_ms: float) -> None:
        ends = self._pulse.token_ends_ms
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
            if opened and now_ms - self._pulse.up_ms >= self._timing.stable_after_ms:
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
        self._due_ms = None
        self._pulse.stop()
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
        if self._poller.stop() or self._keeping:
            self._events.append(StopPolling())
        self._keeping = False

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
