"""However polls, sockets, failures, restarts and the users' doings are interleaved: the client's copy is right.

The machine under test is the client's core. What answers it is the real presence core and the real answer to a poll,
with small pages; sockets are answered in the protocol's words. Every complete answer is compared with the truth.
"""

from typing import Any
from unittest import mock

import msgspec
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from fastpresence.client.core import ClientCore
from fastpresence.client.machine import Connect, Phase, Poll
from fastpresence.client.polling import PollAnswer, RosterAnswer, RosterRequest
from fastpresence.client.roster import Change
from fastpresence.client.schedule import Timing
from fastpresence.errors import NotOnline
from fastpresence.messages import (
    Ack,
    Heartbeat,
    HeartbeatAck,
    RoomOccupancy,
    Status,
    StatusEntry,
    Subscribe,
    UserOnline,
    UserOnlineStatus,
    Welcome,
)
from fastpresence.presence.service import OnlineStatusService
from fastpresence.presence.sessions import Now, Session
from fastpresence.worker import poll as poll_module
from fastpresence.worker.poll import changes

OTHERS = ["kol_1", "kol_2", "kol_3", "user_1", "user_2", "user_3"]
ROOMS = ["lobby", "studio"]
ROSTER_LIMIT = 2
STATUSES: list[Status] = ["online", "busy", "away", "offline"]
users = st.sampled_from(OTHERS)
rooms = st.sampled_from(ROOMS)


class Socket:
    """Stands for a connection; only its identity counts."""


class PollingMachine(RuleBasedStateMachine):
    @initialize(
        present=st.sets(users),
        members=st.sets(st.tuples(users, rooms)),
        watched=st.sets(users, max_size=2),
        joined=st.sets(rooms),
    )
    def first(self, present: set[str], members: set[tuple[str, str]], watched: set[str], joined: set[str]) -> None:
        self.pages = mock.patch.object(poll_module, "PAGE", 2)
        self.pages.start()
        self.now = Now(1_000_000, 1_700_000_000_000_000)
        self.epochs = 0
        self.begin_service()
        timing = Timing(delays_ms=(0,), jitter=0.0)
        self.core = ClientCore(random=lambda: 0.5, timing=timing, user_id="me", device="d", online=True, renewable=True)
        self.shown: dict[str, StatusEntry] = {}
        self.asked: Poll | None = None
        self.socket: Socket | None = None
        self.session: Session | None = None
        for user_id in sorted(present):
            self.change(user_id, "online")
        for user_id, room in sorted(members):
            if user_id in present:
                self.service.join_room(self.sessions[user_id], None, room, now=self.now)
        self.core.copy.watch(sorted(watched))
        self.core.wishes.rooms.update(dict.fromkeys(sorted(joined)))
        self.core.start(self.now.ms)
        self.pump()
        self.core.lost(self.now.ms, reason="refused")
        self.pump()
        assert self.core.phase is Phase.RESTING

    def teardown(self) -> None:
        if hasattr(self, "pages"):
            self.pages.stop()

    def begin_service(self) -> None:
        self.epochs += 1
        self.service = OnlineStatusService(
            epoch=f"e{self.epochs}",
            public_types={"kol"},
            heartbeat_timeout_ms=60_000,
            disconnect_grace_ms=None,
            room_roster_limit=ROSTER_LIMIT,
        )
        self.sessions: dict[str, Session] = {}

    def pump(self) -> None:
        self.core.tick(self.now.ms)
        for event in self.core.events():
            if isinstance(event, Change):
                shown = self.shown.get(event.user_id)
                assert event.previous == shown or shown is None or event.left or shown.online is False
                self.shown[event.user_id] = event.entry
            elif isinstance(event, Poll):
                assert self.asked is None
                self.asked = event
            elif isinstance(event, Connect):
                self.brought = event.cursor
        self.forget_unseen()

    # What the others do.

    @rule(user_id=users, status=st.sampled_from(STATUSES))
    def change(self, user_id: str, status: Status) -> None:
        session = self.sessions.get(user_id)
        try:
            if session is None:
                raise NotOnline
            self.service.handle_status_change(session, status, now=self.now)
        except NotOnline:
            self.sessions[user_id] = self.service.handle_user_online(
                user_id, user_id.split("_")[0], status=status, connection=Socket(), now=self.now
            )

    @rule(user_id=users)
    def leave(self, user_id: str) -> None:
        session = self.sessions.pop(user_id, None)
        if session is not None:
            self.service.handle_user_offline(session, now=self.now)

    @rule(room=rooms)
    def crowd(self, room: str) -> None:
        """Everybody into one room."""
        for session in self.sessions.values():
            self.service.join_room(session, None, room, now=self.now)
        self.service.audience.changed_rooms(0)

    @precondition(lambda self: self.sessions)
    @rule(data=st.data(), room=rooms, into=st.booleans())
    def move(self, data: st.DataObject, room: str, into: bool) -> None:
        session = self.sessions[data.draw(st.sampled_from(sorted(self.sessions)))]
        if into:
            self.service.join_room(session, None, room, now=self.now)
        else:
            self.service.audience.leave(session, room, self.now)

    @rule(seconds=st.sampled_from([0.001, 1.0, 5.0, 30.0, 400.0]))
    def wait(self, seconds: float) -> None:
        self.now = Now(self.now.ms + int(seconds * 1000), self.now.wall_us + int(seconds * 1_000_000))
        self.service.cleanup_expired_status(now=self.now)
        self.service.audience.changed_rooms(0)

    @precondition(lambda self: self.core.phase is Phase.RESTING)
    @rule()
    def restart(self) -> None:
        """The server's memory is gone, and so is everybody."""
        self.begin_service()

    # What the client wants.

    @precondition(lambda self: self.core.polling)
    @rule(user_id=users, wants=st.booleans())
    def watch(self, user_id: str, wants: bool) -> None:
        (self.core.watch if wants else self.core.unwatch)([user_id], self.now.ms)
        self.forget_unseen()

    @precondition(lambda self: self.core.polling)
    @rule(room=rooms, wants=st.booleans())
    def join(self, room: str, wants: bool) -> None:
        (self.core.join if wants else self.core.leave_room)(room, self.now.ms)
        self.forget_unseen()

    # What it asks and is answered.

    @precondition(lambda self: self.core.phase in (Phase.RESTING, Phase.PROBING))
    @rule()
    def ask(self) -> None:
        """A poll that is due goes out, or the next one is waited for."""
        if self.asked is None:
            self.pump()
        if self.asked is None and self.core.phase is Phase.RESTING:
            deadline = self.core.next_deadline_ms()
            assert deadline is not None
            self.wait(max(0.0, deadline - self.now.ms) / 1000 + 0.001)
            self.pump()

    @precondition(lambda self: self.core.phase in (Phase.RESTING, Phase.PROBING))
    @rule()
    def poll(self) -> None:
        """A whole round, with nobody doing anything meanwhile; or the rest of one."""
        whole = self.core._poller.between_rounds
        for _ in range(2 * len(OTHERS)):
            self.ask()
            if self.asked is None:
                return
            self.answer()
            if self.core.freshness == "polled" and self.core._poller.between_rounds:
                if whole:
                    self.check_members()
                return

    @precondition(lambda self: self.asked is not None)
    @rule()
    def answer(self) -> None:
        assert self.asked is not None
        request, self.asked = self.asked.request, None
        if isinstance(request, RosterRequest):
            self.core.polled(self.roster(request.room), self.now.ms)
            self.drain()
            return
        rooms = request.rooms or []
        self.service.handle_poll("me", device=request.device, status=request.status, rooms=rooms, now=self.now)
        self.service.audience.changed_rooms(0)
        body = changes(self.service, request.cursor, rooms, request.user_ids or [])
        told = msgspec.json.decode(msgspec.json.encode(body), type=PollAnswer)
        # Wishes that came behind this poll are told by the next.
        asked = {*rooms, *(request.user_ids or [])}
        same = asked == {*self.core.wishes.rooms, *self.core.copy.watched}
        self.core.polled(told, self.now.ms)
        self.drain()
        if not told.more and same and {r.room for r in told.room_occupancy} == self.crowded_rooms():
            self.check()

    def roster(self, name: str) -> RosterAnswer:
        """As the server's route answers it."""
        room = self.service.audience.rooms.get(name)
        if room is None:
            return RosterAnswer(name, 0, [])
        if room.crowded:
            return RosterAnswer(name, room.shown)
        entries = [member.record.entry() for member in room.members.values() if not member.left]
        return RosterAnswer(name, len(entries), entries)

    @precondition(lambda self: self.asked is not None)
    @rule()
    def fail(self) -> None:
        self.asked = None
        self.core.poll_failed(self.now.ms, reason="no route")
        self.drain()

    def drain(self) -> None:
        """What happened, without anything that is due by now."""
        for event in self.core.events():
            if isinstance(event, Change):
                self.shown[event.user_id] = event.entry
        self.forget_unseen()

    def forget_unseen(self) -> None:
        """Who is seen for no reason any more is dropped, and nobody is told."""
        for user_id in self.shown.keys() - self.core.copy.entries.keys():
            del self.shown[user_id]

    # The way back, and away again.

    @precondition(lambda self: self.core.phase is Phase.RESTING)
    @rule()
    def probe(self) -> None:
        self.core.start(self.now.ms)
        self.pump()

    @precondition(lambda self: self.core.phase is Phase.PROBING)
    @rule(up=st.booleans(), cut=st.integers(0, 3))
    def socket_comes(self, up: bool, cut: int) -> None:
        if not up:
            self.core.lost(self.now.ms, reason="refused")
            self.pump()
            return
        self.socket = Socket()
        self.session = None
        self.tell(Welcome("s", "me", "user", 30, 60, 2_000_000_000, self.service.epoch, self.now.wall_us // 10**6))
        if self.core.phase is not Phase.UP:
            return  # it has reason not to go on with the cursor it brought
        self.asked = None
        with mock.patch.object(poll_module, "PAGE", 1000):
            body = changes(self.service, self.brought, (), ())
        entries: list[StatusEntry] = body["user_status"]
        if body["full"] and cut:
            self.tell(UserOnlineStatus(entries[:cut], full=True, more=True))
            entries = entries[cut:]
        self.tell(UserOnlineStatus(entries, full=body["full"], cursor=body["cursor"]))
        while frames := self.core.frames_to_send():
            for frame in frames:
                self.answer_frame(frame)
        assert not self.core.stale
        self.check()

    @precondition(lambda self: self.core.phase is Phase.UP)
    @rule()
    def socket_breaks(self) -> None:
        if self.session is not None:
            self.service.handle_connection_lost(self.session, last_heard_ms=self.now.ms, now=self.now)
        self.core.lost(self.now.ms)
        self.pump()
        if self.core.phase is Phase.OPENING:
            self.core.lost(self.now.ms, reason="refused")
            self.pump()
        assert self.core.state in ("failed", "disconnected")
        while self.core.phase is not Phase.RESTING:
            self.pump()
            self.core.lost(self.now.ms, reason="refused")
        self.pump()

    def tell(self, frame: Any) -> None:
        self.core.receive(frame, self.now.ms)
        self.drain()

    def answer_frame(self, frame: Any) -> None:
        match frame:
            case Heartbeat():
                self.tell(HeartbeatAck(0, frame.id))
            case UserOnline():
                self.session = self.service.handle_user_online(
                    "me", device=frame.device, status=frame.status, connection=self.socket, now=self.now
                )
                self.tell(Ack(frame.id or 0))
            case Subscribe(user_ids=user_ids, rooms=rooms, cursor=cursor):
                assert cursor is None  # what is dark has to be told anew
                self.tell(Ack(frame.id or 0))
                if user_ids:
                    entries = [self.service.get_user_status(user_id) for user_id in user_ids]
                    self.tell(UserOnlineStatus(entries, full=True, cursor="w"))
                for name in rooms or ():
                    room = self.service.join_room(self.session, self.socket, name, now=self.now)
                    self.service.audience.changed_rooms(0)
                    if room.crowded:
                        self.tell(RoomOccupancy(name, room.shown))
                    else:
                        entries = [member.record.entry() for member in room.members.values() if not member.left]
                        self.tell(UserOnlineStatus(entries, full=True, cursor="r", room=name))

    # The truth.

    def crowded_rooms(self) -> set[str]:
        found = {name: self.service.audience.rooms.get(name) for name in self.core.wishes.rooms}
        return {name for name, room in found.items() if room is not None and room.crowded}

    def check(self) -> None:
        seen = set(self.core.copy.watched)
        for name in self.core.wishes.rooms:
            room = self.service.audience.rooms.get(name)
            if room is not None and not room.crowded:
                seen.update(member.record.user_id for member in room.members.values() if not member.left)
        for user_id in OTHERS:
            held, true = self.core.copy.status_of(user_id), self.service.get_user_status(user_id)
            if true.online and (user_id.startswith("kol") or user_id in seen):
                assert held == true
            else:
                assert not held.online, (held, true, seen)

    def check_members(self) -> None:
        for name in self.core.wishes.rooms:
            roster = self.roster(name)
            if roster.user_status is None:
                assert self.core.copy.occupancy[name] == roster.count
            else:
                assert set(self.core.copy.rooms[name]) == {entry.user_id for entry in roster.user_status}

    @invariant()
    def changes_add_up_to_the_copy(self) -> None:
        for user_id, held in self.core.copy.entries.items():
            shown = self.shown.get(user_id)
            assert shown == held or not (held.online or (shown is not None and shown.online))


TestPollingMachine = PollingMachine.TestCase
TestPollingMachine.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
