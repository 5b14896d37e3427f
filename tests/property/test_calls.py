"""Any interleaving of calls, devices, broken connections and hiding: every client ends with what is so.

The model is a list of calls that are not over. Clients know only what they were told and what was acknowledged to
them; they live through reconnects. After every operation each connected client's idea of what rings and of what he is
in is held against the model, and so is who shows busy. Leaves out: sessions without a device, and connections that
have no room for a frame.
"""

from dataclasses import dataclass, field

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from fastpresence.errors import BadField, RequestError, Unavailable, UnknownCall, UserBusy, UserOffline
from fastpresence.messages import CallAccepted, CallFrame, CallRinging, CallSignalled, Status
from fastpresence.presence.calls import RING_MS
from fastpresence.presence.service import OnlineStatusService
from fastpresence.presence.sessions import Now, Phase, Session

USERS = ["ada", "bob", "cyd"]
DEVICES = ["phone", "tablet"]
ORDER: list[Status] = ["offline", "away", "online", "busy"]
STATUSES: st.SearchStrategy[Status] = st.sampled_from(["online", "busy", "away", "offline"])
HEARTBEAT_MS = 40_000  # less than a call rings
INDEX = st.integers(0, 1_000)  # of a client or a call, counted around


@dataclass
class Phone:
    """One client: what it believes of calls, over all its connections."""

    user: str
    device: str
    session: Session | None = None
    connections: int = 0
    status: Status = "online"
    heard_ms: int = 0
    rings: set[str] = field(default_factory=set)  #: calls that it could take
    waits: set[str] = field(default_factory=set)  #: calls that it made and nobody took yet
    talks: set[str] = field(default_factory=set)

    @property
    def is_here(self) -> bool:
        """It has a session, with a connection or without."""
        return self.session is not None and self.session.phase is not Phase.GONE

    @property
    def is_connected(self) -> bool:
        return self.session is not None and self.session.phase is Phase.ATTACHED

    def drop(self, call_id: str) -> None:
        for calls in (self.rings, self.waits, self.talks):
            calls.discard(call_id)

    def forget(self) -> None:
        """Its session is over, and so is what it had."""
        self.session = None
        for calls in (self.rings, self.waits, self.talks):
            calls.clear()

    def hear(self, frame: CallFrame) -> None:
        own = frame.from_user_id == self.user
        if isinstance(frame, CallRinging):
            assert frame.to_user_id == self.user
            self.rings.add(frame.call_id)
        elif isinstance(frame, CallAccepted):
            assert frame.call_id in (self.rings if own else self.waits), "what it never heard of was accepted"
            self.drop(frame.call_id)
            if not own:
                self.talks.add(frame.call_id)
        elif not isinstance(frame, CallSignalled):
            assert frame.call_id in self.rings | self.waits | self.talks, "what it never heard of is over"
            self.drop(frame.call_id)


@dataclass
class Ongoing:
    """A call that is not over, as the model sees it."""

    call_id: str
    caller: Phone
    callee: str
    deadline_ms: int
    taker: Phone | None = None

    @property
    def users(self) -> tuple[str, str]:
        return self.caller.user, self.callee


class Calling(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.ms = 1_000_000
        self.service = OnlineStatusService(
            epoch="e", public_types={"kol"}, heartbeat_timeout_ms=HEARTBEAT_MS, disconnect_grace_ms=None
        )
        self.phones = [Phone(user, device) for user in USERS for device in DEVICES]
        self.calls: dict[str, Ongoing] = {}
        self.hidden: set[str] = set()
        self.ids = 0

    @property
    def now(self) -> Now:
        return Now(self.ms, 1_640_995_200_000_000 + self.ms * 1000)

    # The model.

    def of(self, user: str) -> list[Phone]:
        return [phone for phone in self.phones if phone.user == user and phone.is_here]

    def talking(self, user: str) -> bool:
        return any(call.taker is not None and user in call.users for call in self.calls.values())

    def shows(self, user: str) -> Status:
        if user in self.hidden or not self.of(user):
            return "offline"
        return "busy" if self.talking(user) else max((phone.status for phone in self.of(user)), key=ORDER.index)

    def over(self, *calls: Ongoing) -> None:
        for call in calls:
            del self.calls[call.call_id]

    def session_is_over(self, phone: Phone) -> None:
        """What ends with it."""
        phone.forget()
        if not self.of(phone.user):
            self.hidden.discard(phone.user)
        for call in list(self.calls.values()):
            alone = call.callee == phone.user and not self.of(phone.user)
            if phone in (call.caller, call.taker) or alone:
                self.over(call)

    def deliver(self) -> None:
        """What the worker does: hand everything out, or keep it for who has no connection."""
        calls = self.service.calls
        while calls.outbox:
            told, calls.outbox = calls.outbox, []
            for session, frame in told:
                phone = next((phone for phone in self.phones if phone.session is session), None)
                if session.connection is None:
                    calls.miss(session, frame)
                else:
                    assert phone is not None
                    phone.hear(frame)

    def pick(self, index: int) -> Phone:
        phones = [phone for phone in self.phones if phone.is_connected]
        return phones[index % len(phones)]

    def any_call(self, index: int) -> str:
        """Mostly one that goes on."""
        ids = [*self.calls, "no such call"]
        return ids[index % len(ids)]

    @initialize()
    def everybody_comes(self) -> None:
        for index in range(len(self.phones)):
            self.hello(index, None)

    # What happens.

    @rule(index=INDEX, status=st.sampled_from([None, "online", "away", "busy", "offline"]))
    def hello(self, index: int, status: Status | None) -> None:
        """A connection of this device: its first, another one, or one that comes back."""
        phone = self.phones[index % len(self.phones)]
        phone.connections += 1
        connection = f"{phone.user}'s {phone.device} {phone.connections}"
        if not phone.is_here:
            phone.forget()
        old = phone.session
        phone.session = self.service.handle_user_online(
            phone.user, device=phone.device, status=status, connection=connection, now=self.now
        )
        assert old is None or old.phase is Phase.GONE
        phone.status = "online" if status in (None, "offline") else status
        phone.heard_ms = self.ms
        if status == "offline":
            self.hide(phone.user)
        elif status is not None:
            self.hidden.discard(phone.user)

    def hide(self, user: str) -> None:
        """To whoever rings him he has gone."""
        self.hidden.add(user)
        self.over(*[call for call in self.calls.values() if call.callee == user and call.taker is None])

    @precondition(lambda self: any(phone.is_connected for phone in self.phones))
    @rule(index=INDEX)
    def break_off(self, index: int) -> None:
        phone = self.pick(index)
        assert phone.session
        self.service.handle_connection_lost(phone.session, last_heard_ms=phone.heard_ms, now=self.now)
        if not phone.is_here:  # it was silent for too long already
            self.session_is_over(phone)

    @precondition(lambda self: any(phone.is_here for phone in self.phones))
    @rule(index=INDEX)
    def goodbye(self, index: int) -> None:
        """By its user, or by an administrator while it has no connection."""
        phones = [phone for phone in self.phones if phone.is_here]
        phone = phones[index % len(phones)]
        assert phone.session
        self.service.handle_user_offline(phone.session, now=self.now)
        self.session_is_over(phone)

    @precondition(lambda self: any(phone.is_connected for phone in self.phones))
    @rule(index=INDEX, status=STATUSES)
    def say(self, index: int, status: Status) -> None:
        phone = self.pick(index)
        assert phone.session
        self.service.handle_status_change(phone.session, status, now=self.now)
        phone.heard_ms = self.ms
        if status == "offline":
            self.hide(phone.user)
        else:
            self.hidden.discard(phone.user)
            phone.status = status

    @rule(ms=st.sampled_from([250, 1_000, 20_000, 39_750, 40_000, 60_000]))
    def wait(self, ms: int) -> None:
        """Those who are connected beat."""
        self.ms += ms
        for phone in self.phones:
            if phone.is_connected:
                assert phone.session
                self.service.handle_heartbeat(phone.session, now=self.now)
                phone.heard_ms = self.ms
        self.service.cleanup_expired_status(now=self.now)
        for phone in self.phones:
            if phone.session is not None and phone.session.phase is Phase.GONE:
                assert self.ms >= phone.heard_ms + HEARTBEAT_MS
                self.session_is_over(phone)
            assert not phone.is_here or phone.is_connected or self.ms < phone.heard_ms + HEARTBEAT_MS
        late = [call for call in self.calls.values() if call.taker is None and self.ms >= call.deadline_ms]
        self.over(*late)

    # Calls.

    @precondition(lambda self: any(phone.is_connected for phone in self.phones))
    @rule(index=INDEX, callee=st.sampled_from(USERS), again=st.booleans())
    def call(self, index: int, callee: str, again: bool) -> None:
        phone = self.pick(index)
        assert phone.session
        self.ids += 1
        call_id = next(iter(self.calls), "c") if again else f"c{self.ids}"
        expected: type[RequestError] | None = None
        if callee == phone.user or call_id in self.calls:
            expected = BadField
        elif self.shows(callee) == "offline":
            expected = UserOffline
        elif self.shows(callee) == "busy" or self.talking(phone.user):
            expected = UserBusy
        elif not any(other.is_connected for other in self.of(callee)):
            expected = Unavailable
        elif len(phone.waits) >= 8:
            return
        if expected is not None:
            with pytest.raises(expected):
                self.service.handle_call(phone.session, call_id, callee, video=True, audio=True, now=self.now)
            return
        self.service.handle_call(phone.session, call_id, callee, video=True, audio=True, now=self.now)
        phone.heard_ms = self.ms
        phone.waits.add(call_id)
        self.calls[call_id] = Ongoing(call_id, phone, callee, self.ms + RING_MS)

    @precondition(lambda self: self.calls)
    @rule(index=INDEX, which=INDEX)
    def answer(self, index: int, which: int) -> None:
        """One of those at whom it rings, or rang, takes it."""
        call_id = list(self.calls)[which % len(self.calls)]
        phones = [phone for phone in self.of(self.calls[call_id].callee) if phone.is_connected]
        if phones:
            self.accept_at(phones[index % len(phones)], call_id)

    @precondition(lambda self: any(phone.is_connected for phone in self.phones))
    @rule(index=INDEX, which=INDEX)
    def accept(self, index: int, which: int) -> None:
        self.accept_at(self.pick(index), self.any_call(which))

    def accept_at(self, phone: Phone, call_id: str) -> None:
        call = self.calls.get(call_id)
        assert phone.session
        again = call is not None and call.taker is phone
        allowed = again or (call is not None and call.taker is None and call.callee == phone.user)
        try:
            self.service.handle_call_accept(phone.session, call_id, now=self.now)
        except UnknownCall:
            assert not allowed
            return
        assert allowed
        assert call is not None
        if again:
            return
        phone.drop(call.call_id)
        phone.talks.add(call.call_id)
        call.taker = phone
        both = set(call.users)
        self.over(*[other for other in self.calls.values() if other is not call and both & set(other.users)])

    @precondition(lambda self: any(phone.is_connected for phone in self.phones))
    @rule(index=INDEX, which=INDEX, verb=st.sampled_from(["reject", "cancel", "end"]))
    def stop(self, index: int, which: int, verb: str) -> None:
        phone, call_id = self.pick(index), self.any_call(which)
        call = self.calls.get(call_id)
        assert phone.session
        allowed = call is not None and phone.user in call.users
        if call is not None and verb == "cancel":
            allowed = phone.user == call.caller.user
        elif call is not None and verb == "reject":
            allowed = phone.user == call.callee and call.taker in (None, phone)
        handle = {
            "reject": self.service.handle_call_reject,
            "cancel": self.service.handle_call_cancel,
            "end": self.service.handle_call_end,
        }[verb]
        try:
            handle(phone.session, call_id, now=self.now)
        except UnknownCall:
            assert not allowed
            return
        assert allowed
        assert call is not None
        phone.drop(call_id)
        self.over(call)

    @precondition(lambda self: any(phone.is_connected for phone in self.phones))
    @rule(index=INDEX, which=INDEX)
    def signal(self, index: int, which: int) -> None:
        phone, call_id = self.pick(index), self.any_call(which)
        call = self.calls.get(call_id)
        assert phone.session
        try:
            self.service.handle_call_signal(phone.session, call_id, "x", now=self.now)
        except UnknownCall:
            assert call is None or phone.user not in call.users
            return
        except Unavailable:
            assert call is not None
            others = (
                [call.caller] if phone.user == call.callee else [call.taker] if call.taker else self.of(call.callee)
            )
            assert not any(other.is_connected for other in others if other)
            return
        targets = {session for session, frame in self.service.calls.outbox if isinstance(frame, CallSignalled)}
        assert call is not None
        if phone.user == call.callee:
            assert targets == {call.caller.session}
        elif call.taker is not None:
            assert targets == {call.taker.session}
        else:
            assert targets == {other.session for other in self.of(call.callee) if other.is_connected}

    # What has to be so, whatever happened.

    @invariant()
    def everybody_knows(self) -> None:
        self.deliver()
        for phone in self.phones:
            if not phone.is_connected:
                continue
            ringing = {call.call_id for call in self.calls.values() if call.taker is None and call.callee == phone.user}
            waiting = {call.call_id for call in self.calls.values() if call.taker is None and call.caller is phone}
            talking = {
                call.call_id
                for call in self.calls.values()
                if call.taker is not None and phone in (call.caller, call.taker)
            }
            assert (phone.rings, phone.waits, phone.talks) == (ringing, waiting, talking), phone

    @invariant()
    def whoever_talks_shows_busy_and_nobody_else(self) -> None:
        for user in USERS:
            assert self.service.get_user_status(user).status == self.shows(user), user
            assert sum(call.taker is not None and user in call.users for call in self.calls.values()) <= 1

    @invariant()
    def nothing_is_kept_of_what_is_over(self) -> None:
        calls = self.service.calls
        assert set(calls.by_id) == set(self.calls)
        assert {record.user_id for record in calls._active} == {
            user for call in self.calls.values() if call.taker is not None for user in call.users
        }
        living = {phone.session for phone in self.phones if phone.is_here}
        assert set(calls._ends) <= living
        assert set(calls.missed) <= living
        assert {call.call_id for call in calls._ringing} == {
            call.call_id for call in self.calls.values() if call.taker is None
        }
        assert not calls.changed


Calling.TestCase.settings = settings(
    max_examples=200, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
TestCalls = Calling.TestCase
