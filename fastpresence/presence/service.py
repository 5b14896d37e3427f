"""OnlineStatusService: the core's front door, what the worker and the simulator drive.

Pure: no I/O, no clock, no randomness. Each operation takes the moment it happens at and carries itself out at once:

    operation -> sessions change -> what they add up to (`_settle`) -> a visible change is stamped -> rooms move along
    flush:  collect(version of the last one) -> what the public, the rooms and the watchers have to be told
    calls:  what single sessions have to be told waits in `calls.outbox`; the caller takes it after every operation

Who owns what: sessions belong to records, records to the roster, rooms and watches to the audience. A session that ends
leaves its record, so that nothing the core holds makes a cycle with what is gone.
Invariant: an operation after which others would see the same as before stamps nothing.
"""

from collections.abc import Callable, Collection, Hashable, Iterable, Sequence
from typing import Any, Literal

from msgspec import Struct

from fastpresence.errors import NotOnline, TooMany
from fastpresence.messages import Status, StatusEntry
from fastpresence.presence.audience import Audience, Room, RoomDelta
from fastpresence.presence.calls import Calls, RunningCall
from fastpresence.presence.roster import Record, Roster
from fastpresence.presence.sessions import (
    ATTACHED,
    DETACHED,
    GONE,
    Cue,
    Deadlines,
    Now,
    Session,
    Transition,
    predecessor,
    present_session,
    strongest,
)

__all__ = ["Delta", "OnlineStatusService"]


class Delta(Struct, frozen=True):
    """What changed between two flushes: each item in its latest state, each list oldest change first."""

    version: int  #: everything up to here is in; the `since` of the next
    public: list[Record]
    rooms: list[RoomDelta]  #: of rooms that somebody subscribes to
    watched: dict[Hashable, list[Record]]  #: by connection


class OnlineStatusService:
    """Who is online, on which sessions, and who must be told."""

    def __init__(
        self,
        *,
        epoch: str,
        public_types: Collection[str],
        heartbeat_timeout_ms: int,
        disconnect_grace_ms: int | None,
        retention_ms: int = 300_000,
        room_roster_limit: int = 1000,
        sessions_per_user: int = 100,
        journal: Callable[[Transition], None] | None = None,
        heard_ms: Callable[[Any], int] | None = None,
    ) -> None:
        """`disconnect_grace_ms` None: a broken connection has what is left of the heartbeat timeout.

        `retention_ms`: how long after a user went offline, or left a room, cursors can tell of it.
        `room_roster_limit`: members of a room that are told by name; of more only the number is.
        `journal` is called in the middle of operations: it must not call back. `heard_ms(connection)` says when an
        attached session's connection was last heard, for owners who do not pass on every heartbeat.
        """
        self.epoch = epoch  #: the life of this memory; part of every cursor
        self.roster = Roster(public_types, retention_ms)
        self.audience = Audience(self.roster.counter, retention_ms, room_roster_limit)
        self.calls = Calls()
        self._heartbeat_timeout_ms = heartbeat_timeout_ms
        self._disconnect_grace_ms = disconnect_grace_ms
        self._sessions_per_user = sessions_per_user
        self._journal = journal
        self._heard_ms = heard_ms
        self._deadlines = Deadlines()
        #: Rooms that a session has from the one it superseded, until its client asks for them or the time (monotonic
        #: milliseconds) is up, which no further session puts off.
        self._inherited: dict[Session, dict[str, int]] = {}
        self._latest_number = 0

    @property
    def version(self) -> int:
        """The version of the latest change."""
        return self.roster.counter.version

    # A session's life.

    def handle_user_online(
        self,
        user_id: str,
        user_type: str = "user",
        *,
        status: Status | None = None,
        device: str | None = None,
        connection: Any | None = None,
        rooms: Iterable[str] = (),
        now: Now,
        attempt: int | None = None,
    ) -> Session:
        """The user is present with a new session, which supersedes the one it comes back for (see `predecessor`).

        `status` None is the default: online, but a user whom another session hides stays hidden. "offline" hides him.
        Without a `connection` the session is detached from the start and lives by `handle_heartbeat`. `rooms` are
        joined and subscribed to; those of the superseded session are joined as well, and left after the heartbeat
        timeout unless the client asks for them. Raises TooMany for a user with sessions enough.
        """
        found = self.roster.find(user_id)
        older = None if found is None else predecessor(found.sessions, device)
        if found is not None and older is None and len(found.sessions) >= self._sessions_per_user:
            raise TooMany(f"at most {self._sessions_per_user} sessions for one user")
        record = self.roster.admit(user_id, user_type)
        was = record.status
        own: Status = "online" if status is None or status == "offline" else status
        self._latest_number += 1
        session = Session(self._latest_number, record, device, connection, own, now.ms)
        record.sessions = (*record.sessions, session)
        if older is not None:
            self._supersede(older, session, now)
        if status == "offline":
            # Before he is in the rooms: nobody there may be told that he would have come.
            self._hide(record, now)
            self._settle(record, now)
        elif status is not None:
            record.hidden = False
        for name in rooms:
            self.join_room(session, connection, name, now=now)
        if connection is None:
            self._deadlines.arm(session, now.ms + self._heartbeat_timeout_ms, now_ms=now.ms)
        retyped = record.user_type != user_type and not record.hidden
        if retyped:
            record.user_type = user_type
        self._settle(record, now, retyped)
        if self._journal is not None:
            kind: Literal["online", "reconnect"] = "online" if older is None else "reconnect"
            self._note(session, kind, was, "user_online", now, attempt, older)
        if self.calls.by_id:
            self.calls.session_came(session, now)
        return session

    def handle_poll(
        self,
        user_id: str,
        user_type: str = "user",
        *,
        status: Status | None = None,
        device: str | None = None,
        rooms: Collection[str] | None = None,
        now: Now,
    ) -> Session:
        """The user is present by asking from time to time: a session without a connection, and its sign of life.

        It is the session that a reconnect would take over, else an attached one of the same `device` (or without, like
        this one): a poll that comes late, when its client has its socket back already, must not end that session.
        `rooms`, where given, are all the rooms it is in; those of an attached one are its connection's to say. Raises
        TooMany.
        """
        record = self.roster.find(user_id)
        session = None if record is None else present_session(record.sessions, device)
        if session is not None and session.phase is DETACHED and rooms is not None:
            # Before he shows, as he enters the others after he hid: nobody is told of rooms that he never showed in.
            for name in set(session.rooms or ()).difference(rooms):
                self.audience.leave(session, name, now)
        if session is None:
            session = self.handle_user_online(user_id, user_type, status=status, device=device, now=now)
        elif status is None:
            self.handle_heartbeat(session, now=now)
        else:
            self.handle_status_change(session, status, now=now)
        if session.phase is DETACHED:
            for name in rooms or ():
                self.audience.enter(session, name, now)
                self._asked_for(session, name, now)
        return session

    def handle_update(self, session: Session, *, status: Status | None, device: str | None, now: Now) -> None:
        """A second `user_online` on the same connection: what is not None is new. NotOnline when the session is GONE.

        A session that takes a device's name supersedes the one that had it.
        """
        self._hear(session, now)
        record = session.record
        was, before = record.status, (session.status, record.hidden)
        older = None
        if device is not None and device != session.device:
            older = predecessor(record.sessions, device)
            session.device = device
            if older is not None:
                self._supersede(older, session, now)
        self._say(session, status, now)
        self._settle(record, now)
        if older is not None:
            self.calls.session_came(session, now)
        if self._journal is not None:
            if older is not None:
                self._note(session, "reconnect", was, "user_online", now, None, older)
            elif (session.status, record.hidden) != before:
                self._note(session, "status", was, "user_online", now)

    def handle_status_change(self, session: Session, status: Status, *, now: Now) -> None:
        """The session's new status; "offline" hides the user on all devices until any of them sets another.

        NotOnline when the session is GONE.
        """
        self._hear(session, now)
        record = session.record
        was, own, hidden = record.status, session.status, record.hidden
        self._say(session, status, now)
        self._settle(record, now)
        if session.status != own or record.hidden != hidden:
            self._note(session, "status", was, "status_change", now)

    def force_status(self, user_id: str, status: Status, *, now: Now) -> None:
        """Every session of the user says this until it says something else itself. Raises NotOnline without any."""
        record = self.roster.find(user_id)
        if record is None or not record.sessions:
            raise NotOnline(f"{user_id} has no session")
        was = record.status
        for session in record.sessions:
            self._say(session, status, now)
        self._settle(record, now)
        self._note(record.sessions[-1], "status", was, "forced", now)

    def handle_heartbeat(self, session: Session, *, now: Now) -> None:
        """A sign of life. Moves the deadline of a detached session; an attached one's is its connection's."""
        session.last_heard_ms = now.ms
        if session.phase is DETACHED:
            self._deadlines.arm(session, now.ms + self._heartbeat_timeout_ms, now_ms=now.ms)

    def handle_user_offline(self, session: Session, *, now: Now, reason: str = "goodbye") -> None:
        """Ends the session at once: its user's goodbye, or an administrator's. Nothing happens to a GONE one."""
        # A detached session was not there to say anything: it was last heard when it was last heard.
        heard_ms = session.last_heard_ms if session.phase is DETACHED else now.ms
        self._end(session, Cue.GOODBYE, heard_ms, reason, now)

    def handle_connection_lost(self, session: Session, *, last_heard_ms: int, now: Now) -> None:
        """The connection broke: the session is detached until its time is up. With no grace at all it ends at once.

        One whose time is up already ends at the next tick: its client may be about to come back, and was only heard
        late, as everybody was.
        """
        if not session.take(Cue.LOST):
            return
        self.calls.session_lost(session, now.ms + self._heartbeat_timeout_ms)
        session.last_heard_ms = max(session.last_heard_ms, last_heard_ms)
        deadline_ms = max(session.last_heard_ms + self._heartbeat_timeout_ms, now.ms + 1)
        if self._disconnect_grace_ms is not None:
            deadline_ms = min(deadline_ms, now.ms + self._disconnect_grace_ms)
        if self._disconnect_grace_ms == 0:
            self._end(session, Cue.SILENCE, session.last_heard_ms, "timeout", now)
        else:
            self._deadlines.arm(session, deadline_ms, now_ms=now.ms)

    def handle_timeout(self, session: Session, *, last_heard_ms: int, now: Now) -> None:
        """The connection's own deadline ran out: the session ends, last seen when it was last heard.

        One that is heard of otherwise, by polls beside a connection that is dead, goes on without it.
        """
        heard_ms = max(session.last_heard_ms, last_heard_ms)
        if session.phase is ATTACHED and heard_ms > last_heard_ms and heard_ms + self._heartbeat_timeout_ms > now.ms:
            session.take(Cue.LOST)
            self.calls.session_lost(session, now.ms + self._heartbeat_timeout_ms)
            self._deadlines.arm(session, heard_ms + self._heartbeat_timeout_ms, now_ms=now.ms)
        else:
            self._end(session, Cue.SILENCE, heard_ms, "timeout", now)

    def cleanup_expired_status(self, *, now: Now, limit: int = 1024) -> int:
        """Ends detached sessions whose time is up and drops what has been offline for the retention.

        To be called about every 250 ms; cheap when nothing is due. About `limit` of each kind, so that the expiry of a
        crowd doesn't hold up the loop: when the answer, the number of ended sessions, is `limit`, call again soon.
        """
        expired = self._deadlines.expired(now.ms, limit)
        for session in expired:
            if session.phase is DETACHED:
                self._end(session, Cue.SILENCE, session.last_heard_ms, "timeout", now)
            else:
                for name, until_ms in list(self._inherited.get(session, {}).items()):
                    if until_ms <= now.ms:
                        self.audience.leave(session, name, now)
                        self._asked_for(session, name, now)
        self.calls.expire(now)
        self._settle_calls("call_end", now)
        self.roster.drop_expired(now.ms, limit)
        self.audience.drop_expired(now.ms, limit)
        return len(expired)

    # Calls. Each operation raises a RequestError (NotOnline for a session that is GONE) when it changes nothing.

    def handle_call(
        self, session: Session, call_id: str, to_user_id: str, *, video: bool, audio: bool, now: Now
    ) -> RunningCall:
        """Rings at every session of the user that has a connection."""
        self._hear(session, now)
        return self.calls.ring(session, call_id, self.roster.find(to_user_id), video, audio, now)

    def handle_call_accept(self, session: Session, call_id: str, *, now: Now) -> None:
        """Both users are busy from now on."""
        self._hear(session, now)
        self.calls.accept(session, call_id, now)
        self._settle_calls("call_accept", now)

    def handle_call_reject(self, session: Session, call_id: str, *, now: Now) -> None:
        """The called user does not want it."""
        self._hear(session, now)
        self.calls.reject(session, call_id, now)
        self._settle_calls("call_end", now)

    def handle_call_cancel(self, session: Session, call_id: str, *, now: Now) -> None:
        """The caller takes it back."""
        self._hear(session, now)
        self.calls.cancel(session, call_id, now)
        self._settle_calls("call_end", now)

    def handle_call_end(self, session: Session, call_id: str, *, now: Now) -> None:
        """Either user hangs up: both show what their sessions say again."""
        self._hear(session, now)
        self.calls.end(session, call_id, now)
        self._settle_calls("call_end", now)

    def handle_call_signal(self, session: Session, call_id: str, data: str, *, now: Now) -> None:
        """For the call's other side."""
        self._hear(session, now)
        self.calls.signal(session, call_id, data, now)

    # Questions.

    def get_user_status(self, user_id: str) -> StatusEntry:
        """The user as others may see him. Unknown is offline: no type, last seen None, `rev` 0."""
        record = self.roster.everyone.get(user_id)
        if record is None:
            return StatusEntry(user_id, "", "offline", False, None, 0)
        return record.entry()

    def record(self, user_id: str) -> Record | None:
        """The user's record with all its sessions, also when he appears offline."""
        return self.roster.find(user_id)

    def sessions_of(self, user_id: str) -> Sequence[Session]:
        """The sessions others may reach, oldest first: none of a user who appears offline (see `record`)."""
        record = self.roster.everyone.get(user_id)
        return () if record is None or record.hidden else record.sessions

    def changes_among(self, user_ids: Iterable[str], version: int) -> list[Record] | None:
        """`changes_since` for watched users, at the cost of those and not of all that changed."""
        if version < self.roster.everyone.floor or version > self.version:
            return None
        everyone = self.roster.everyone
        found = (everyone.get(user_id) for user_id in set(user_ids))
        changed = [record for record in found if record is not None and record.version > version]
        return sorted(changed, key=lambda record: record.version)

    # Rooms and watches. `connection` is any hashable object; its owner says `forget` when it ends.

    def join_room(self, session: Session | None, connection: Hashable | None, room: str, *, now: Now) -> Room:
        """The session joins, the connection is told of changes. Without a session (or a GONE one): an observer's."""
        if session is not None and session.phase is not GONE:
            self.audience.enter(session, room, now)
            self._asked_for(session, room, now)
        return self.audience.subscribe(connection, room)

    def leave_room(self, session: Session | None, connection: Hashable | None, room: str, *, now: Now) -> Room | None:
        """The opposite. Returns the room, for its `audience`, even if that dropped it; None when there was none."""
        found = self.audience.unsubscribe(connection, room)
        if session is not None:
            self.audience.leave(session, room, now)
            self._asked_for(session, room, now)
        return found

    def watch(self, connection: Hashable, user_ids: Iterable[str]) -> None:
        """The connection is told of these users' changes."""
        self.audience.watch(connection, user_ids)

    def unwatch(self, connection: Hashable, user_ids: Iterable[str]) -> None:
        """And no more."""
        self.audience.unwatch(connection, user_ids)

    def forget(self, connection: Hashable) -> list[Room]:
        """The connection ended: drops its watches and subscriptions, and returns the rooms it subscribed to."""
        return self.audience.forget(connection)

    # Flush.

    def collect(self, since: int) -> Delta:
        """What changed after `since`, the version of the last flush, not longer ago than the retention."""
        version = self.roster.counter.version
        rooms = self.audience.changed_rooms(since)
        watched: dict[Hashable, list[Record]] = {}
        watchers = self.audience.watchers
        if watchers:
            for record in self.roster.everyone.newer_than(since):
                for connection in watchers.get(record.user_id, ()):
                    watched.setdefault(connection, []).append(record)
        return Delta(version, self.roster.public.newer_than(since), rooms, watched)

    # Beneath.

    def _hear(self, session: Session, now: Now) -> None:
        if session.phase is ATTACHED:
            session.last_heard_ms = now.ms
        elif session.phase is GONE:
            raise NotOnline("send user_online first")
        else:
            self.handle_heartbeat(session, now=now)

    def _hide(self, record: Record, now: Now) -> None:
        record.hidden = True
        if self.calls.by_id:
            self.calls.user_hid(record, now)

    def _say(self, session: Session, status: Status | None, now: Now) -> None:
        if status == "offline":
            self._hide(session.record, now)
        elif status is not None:
            session.record.hidden = False
            session.status = status

    def _settle(self, record: Record, now: Now, even_if_same: bool = False) -> None:
        """Makes visible what the sessions add up to, if it is anything new."""
        status = "offline" if record.hidden else strongest(record.sessions)
        if status != "offline" and self.calls.is_busy(record):
            status = "busy"
        if status != record.status or even_if_same:
            if self._heard_ms is not None:
                for session in record.sessions:
                    if session.connection is not None and session.last_heard_ms < now.ms:
                        session.last_heard_ms = max(session.last_heard_ms, self._heard_ms(session.connection))
            version = self.roster.change(record, status, now)
            if record.rooms is not None:
                self.audience.move(record, version, now)

    def _settle_calls(self, reason: str, now: Now) -> None:
        """Whoever became busy by a call, or is no more."""
        changed = self.calls.changed
        while changed:
            record = changed.pop()
            was = record.status
            self._settle(record, now)
            if record.status != was and record.sessions:
                self._note(record.sessions[-1], "status", was, reason, now)

    def _supersede(self, older: Session, session: Session, now: Now) -> None:
        """`session`, of the same user, takes the place of `older`: whoever looks sees no gap."""
        self._deadlines.disarm(older)
        until = self._inherited.pop(older, {})
        older.take(Cue.SUPERSEDED)
        if self.calls.by_id or self.calls.missed:
            self.calls.session_superseded(session, older, now)
        names = (older.rooms or set()).difference(session.rooms or ())
        self.audience.inherit(session, older, now)
        if names:
            # A page that is left for another does not ask again: its rooms go when the older session would have gone.
            until_ms = max(older.last_heard_ms, session.last_heard_ms) + self._heartbeat_timeout_ms
            inherited = self._inherited.setdefault(session, {})
            # One whose time is up already goes in a moment: its client may be about to ask for it.
            inherited.update((name, max(until.get(name, until_ms), now.ms + 1)) for name in names)
            if session.phase is ATTACHED:
                self._deadlines.arm(session, min(inherited.values()), now_ms=now.ms)
        record = session.record
        record.sessions = tuple(each for each in record.sessions if each is not older)

    def _asked_for(self, session: Session, room: str, now: Now) -> None:
        """The room is the session's own from now on, or none of its rooms any more."""
        inherited = self._inherited.get(session)
        if inherited is None or inherited.pop(room, None) is None:
            return
        if not inherited:
            del self._inherited[session]
        if session.phase is not ATTACHED:
            return  # it has a deadline of its own
        if not inherited:
            self._deadlines.disarm(session)
        elif (until_ms := min(inherited.values())) > now.ms:  # else it is due already
            self._deadlines.arm(session, until_ms, now_ms=now.ms)

    def _end(self, session: Session, cue: Cue, heard_ms: int, reason: str, now: Now) -> None:
        self._deadlines.disarm(session)
        self._inherited.pop(session, None)
        if not session.take(cue):
            return
        record = session.record
        was = record.status
        record.heard_ms = max(record.heard_ms, heard_ms)
        record.sessions = tuple(each for each in record.sessions if each is not session)
        if self.calls.by_id or self.calls.missed:
            self.calls.session_gone(session, now)
        if record.sessions:
            self.audience.leave_all(session, now)
            self._settle(record, now)
        else:
            # Offline first: that takes him out of his rooms, too, with the same version.
            record.hidden = False
            self._settle(record, now)
            session.rooms = record.rooms = None
            self.roster.release(record)
        if self._journal is not None:
            self._note(session, "offline", was, reason, now)
        self._settle_calls("call_end", now)

    def _note(
        self,
        session: Session,
        kind: Literal["online", "offline", "status", "reconnect"],
        was: Status,
        reason: str,
        now: Now,
        attempt: int | None = None,
        older: Session | None = None,
    ) -> None:
        record = session.record
        if self._journal is not None:
            self._journal(
                Transition(
                    record.user_id,
                    record.user_type,
                    session.number,
                    kind,
                    was,
                    record.status,
                    reason,
                    record.rev,
                    now.wall_us,
                    attempt,
                    0 if older is None else older.number,
                )
            )
