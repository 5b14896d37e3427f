"""What the peers of one process share, and the turn of its loop.

    engine.run() --> batch --> Peer / HttpClient --> service --> Flusher --> engine
                     every 250 ms: deadlines of connections, sessions and tokens

All in one thread. The loop sees one descriptor for all client sockets: the engine's.
"""

import asyncio
import logging
import secrets
import time
from collections.abc import Callable, Collection
from typing import Any, Final

from fastpresence._native import engine as native
from fastpresence._native.engine import Engine
from fastpresence._native.wheel import Wheel
from fastpresence.codec import Codec
from fastpresence.credentials import ApiKeys, Revocations
from fastpresence.errors import Unavailable, UserOffline
from fastpresence.http import CONTINUE, HttpError, Request, RequestParser, answer, answer_error
from fastpresence.link import LinkFrame, Revoke
from fastpresence.logs import Repeats, event, set_level
from fastpresence.messages import (
    SNAPSHOT_PAGE,
    CallRinging,
    CallSignalled,
    HeartbeatAck,
    Message,
    RoomOccupancy,
    StatusEntry,
    UserOnlineStatus,
)
from fastpresence.presence.audience import Room
from fastpresence.presence.roster import PUBLIC_SCOPE, make_cursor, read_cursor, room_scope
from fastpresence.presence.service import OnlineStatusService
from fastpresence.presence.sessions import Now, Phase, Transition
from fastpresence.settings import Settings, connection_limit, reloaded
from fastpresence.tokens import LEEWAY, LoginKeys, TokenKeys
from fastpresence.worker.backlog import FURTHER, HEAVY, PIPELINED, PUT_OFF, SLICE_S, Backlog
from fastpresence.worker.cors import Origins, preflight
from fastpresence.worker.flush import VARIANTS, Flusher, Pager, frame_of
from fastpresence.worker.handshake import accept
from fastpresence.worker.limits import Guesses, RateLimit
from fastpresence.worker.peer import Peer
from fastpresence.worker.routes import WEBSOCKET, Routes
from fastpresence.worker.standstill import Standstill
from fastpresence.worker.tls import TlsFront, context
from fastpresence.worker.wanted import Wanted

__all__ = ["TICK_MS", "Worker"]

LOG: Final = logging.getLogger("fastpresence.worker")

TICK_MS: Final = 250  #: of every wheel here
MESSAGES: Final = frozenset({native.TEXT, native.BINARY, native.DEFLATED_TEXT, native.DEFLATED_BINARY})
EXPIRE_AT_ONCE: Final = 256  #: detached sessions that end in one turn of the loop: about 2 ms
#: How the engine counts newcomers that it refused by itself, and what they were answered.
REFUSALS: Final = (
    ("refused", 503, "no room for more connections"),
    ("crowded", 429, "too many connections of one address"),
)
REFUSED_S: Final = 2.0  #: between two lines of the log about them


class HttpClient:
    """A connection that still speaks HTTP."""

    __slots__ = ("handle", "parser")

    def __init__(self, handle: int, body_size: int) -> None:
        self.handle = handle
        self.parser = RequestParser(body_size)


class Worker:
    """What all peers of one process share, and the turn of its loop."""

    def __init__(
        self, settings: Settings, number: int, loop: asyncio.AbstractEventLoop, *, login_jwks: str | None = None
    ) -> None:
        self.settings = settings
        self.number = number
        self.loop = loop
        presence, limits = settings.presence, settings.limits
        self.epoch = secrets.token_hex(6)
        #: Says something to the node; whoever has no node says it to nobody.
        self.tell_node: Callable[[LinkFrame], None] = lambda frame: None
        #: Takes every line of the journal, at the cost of an append.
        self.note: Callable[[Transition], None] = lambda change: None
        self.revocations = Revocations()  #: the node tells all of them before this worker listens
        self.keys = TokenKeys(settings.auth.token_keys, self.revocations)
        self.rate_limit = RateLimit(limits.rate, limits.burst)
        self.engine = Engine(
            self._on_batch,
            heartbeat_timeout_ms=round(presence.heartbeat_timeout * 1000),
            connect_timeout_ms=round(limits.connect_timeout * 1000),
            lag_time_ms=round(limits.lag_time * 1000),
            frame_size=limits.frame_size,
            message_size=limits.message_size,
            send_buffer=limits.send_buffer,
            connections=connection_limit(limits),
            connections_per_address=limits.connections_per_address,
            quiet_ms=self.rate_limit.settled_ms,
        )
        grace = presence.disconnect_grace
        self.service = OnlineStatusService(
            epoch=self.epoch,
            public_types=presence.public_types,
            heartbeat_timeout_ms=round(presence.heartbeat_timeout * 1000),
            disconnect_grace_ms=None if grace is None else round(grace * 1000),
            room_roster_limit=presence.room_roster_limit,
            sessions_per_user=limits.sessions,
            journal=self._journal,
            heard_ms=lambda peer: self.engine.heard_ms(peer.handle),
        )
        self.users = 0  #: not offline
        self._variants = [0] * len(VARIANTS)  # how many peers are open, by variant
        #: Those that are open, by user; one alone stands for itself, since nearly every user has no other.
        self.peers: dict[str, Peer | set[Peer]] = {}
        public_audience = self.engine.new_audience()
        self.flusher = Flusher(
            loop,
            self.engine,
            self.service,
            epoch=self.epoch,
            window_ms=presence.flush_window_ms,
            public_audience=public_audience,
            variants=self._variants,
        )
        self.pager = Pager(loop, self.engine, self.service, epoch=self.epoch, public_audience=public_audience)
        api_keys = ApiKeys(settings.auth.api_keys)
        login_keys = LoginKeys(settings.auth, login_jwks)
        self._routes = Routes(settings, self.service, self.keys, api_keys, login_keys, actions=self)
        self._origins = Origins(settings.server.allowed_origins)
        now_ms = time.monotonic_ns() // 1_000_000
        self._tokens = Wheel(tick_ms=TICK_MS, now_ms=now_ms)
        self._standstill = Standstill(TICK_MS, now_ms)
        self._ack_second = -1
        self.repeats = Repeats()  #: by the monotonic clock
        self._guesses = Guesses()
        server = settings.server
        self.tls: TlsFront | None = None
        if server.tls_cert is not None and server.tls_key is not None:
            self.tls = TlsFront(
                loop,
                self.engine,
                self.repeats,
                context(server.tls_cert, server.tls_key),
                send_buffer=limits.send_buffer,
            )
        self.wanted = Wanted(loop)
        self.backlog = Backlog(loop, self.engine, self._carry_out)
        self.draining = False
        self._refused = {"refused": 0, "crowded": 0}  # newcomers that the log was told of
        self._refused_next_s = 0.0
        self._turn_until_s = 0.0  # monotonic; 0: nobody has looked in this turn
        self.errors: dict[str, int] = {}
        self._empty_rooms: list[Room] = []

    def reload(self, settings: Settings, login_jwks: str | None) -> None:
        """Take over what can be replaced in place; connections stay as they are.

        All or nothing. Raises what a start would raise for settings that it could not use.
        """
        settings = reloaded(self.settings, settings)
        auth, server = settings.auth, settings.server
        keys, login_keys = TokenKeys(auth.token_keys, self.revocations), LoginKeys(auth, login_jwks)
        if self.tls is not None and server.tls_cert is not None and server.tls_key is not None:
            self.tls.context = context(server.tls_cert, server.tls_key)
        self.settings, self.keys, self._origins = settings, keys, Origins(server.allowed_origins)
        self._routes.renew(settings, keys, ApiKeys(auth.api_keys), login_keys)
        set_level(settings.log.level)

    @staticmethod
    def now() -> Now:
        """This moment by both clocks."""
        return Now(time.monotonic_ns() // 1_000_000, time.time_ns() // 1000)

    # The turn.

    def start(self, listener_fd: int) -> None:
        """Accept, and keep the deadlines, from now on."""
        if self.tls is not None:
            self.tls.listen(listener_fd)
        else:
            self.engine.listen(listener_fd)
        self.loop.add_reader(self.engine.fileno(), self.engine.run)
        self._tick(0)

    def stop(self) -> None:
        """Accept no more, and cut everybody off without a word. Its turn goes on, for the loop is about to end."""
        if self.tls is not None:
            self.tls.close()
        self.loop.remove_reader(self.engine.fileno())
        self.engine.close_all()

    def _on_batch(self, events: list[tuple[int, Any, Any, Any]]) -> None:
        now = self.now()
        backlog, calls = self.backlog, self.service.calls
        before: Any = None  # whose message was carried out last
        further, late = 0, False  # messages behind the first of their connection
        for kind, owner, what, data in events:
            try:
                if kind in MESSAGES:
                    # A peer that was closed earlier in this batch has no say any more.
                    if owner.closed:
                        pass
                    elif backlog and owner in backlog:
                        backlog.add(owner, (kind, data))
                    elif (
                        (owner is before and (late or not (further := further + 1) % FURTHER))
                        or len(data) >= HEAVY
                        or kind >= native.DEFLATED_TEXT
                    ) and self.is_late():
                        backlog.begin(owner, (kind, data))
                        late = True
                    else:
                        before = owner
                        owner.on_message(kind, data, now)
                elif kind == native.REQUEST:
                    self._on_request(owner, what, data, now)
                elif type(owner) is not Peer or owner.closed:
                    if kind == native.ENDED:
                        backlog.take(owner)  # whatever an HTTP client asked for: nobody is there to hear it
                    backlog.kick()  # its socket may have drained
                elif kind == native.ENDED:
                    self._on_ended(owner, what, data[0], data[1], now)
                elif data is not None and (owner in backlog or self.is_late()):
                    backlog.begin(owner)
                    if (kind, data) not in backlog[owner]:  # it has drained more than once while this waits
                        backlog.add(owner, (kind, data))
                else:
                    self._on_drained(owner, data)
            except Exception:
                # A fault of ours: the one connection pays for it, the rest of the batch is still to be done.
                LOG.exception("fault")
                self._fail(owner, what, now)
            if calls.outbox:
                self.tell_calls()  # now: the next event may end a session, or supersede it, that is to be told
        self.settle()

    def settle(self) -> None:
        """Something may have been done: who is to hear of it hears of it."""
        if self.service.calls.outbox:
            self.tell_calls()
        self.flusher.touch()

    def is_late(self) -> bool:
        """Whether this turn of the loop has taken long enough. The first to ask in a turn begins it."""
        now_s = time.monotonic()
        if self._turn_until_s == 0.0:
            self._turn_until_s = now_s + SLICE_S
            self.loop.call_soon(self._next_turn)
        return now_s > self._turn_until_s

    def _next_turn(self) -> None:
        self._turn_until_s = 0.0

    def _carry_out(self, owner: Any, item: Any) -> None:
        """What was put off: a message or a request of a peer, what it missed, its end; requests of an HTTP client."""
        now = self.now()
        try:
            if type(owner) is Peer:
                kind, data = item
                if owner.closed:
                    pass
                elif kind == native.ENDED:
                    how, code, heard_ms = data
                    self._on_ended(owner, how, code, heard_ms, now)
                elif kind == native.DRAINED:
                    self._on_drained(owner, data)
                elif kind == PUT_OFF:
                    owner.carry_out(data, now)
                else:
                    owner.on_message(kind, data, now)
            else:
                self._answer_all(owner, item, now)
        except Exception:
            LOG.exception("fault")
            self._fail(owner, owner.handle, now)
        self.settle()

    def put_off(self, peer: Peer) -> None:
        """It was sent a long answer: where enough waits, what it asks for next comes later."""
        if self.backlog.is_full(peer.handle):
            self.backlog.begin(peer)

    def _fail(self, owner: Any, handle: int, now: Now) -> None:
        """Get rid of a connection that something of ours could not cope with."""
        if type(owner) is not Peer:
            self.engine.abort(handle)
        elif not owner.closed:
            self.lose_session(owner, now.ms, now)
            owner.close(1011, "server error")

    def _tick(self, count: int) -> None:
        """Let deadlines run out, on the tick's own beat so that none is late by more than one."""
        self.loop.call_later((TICK_MS - time.monotonic_ns() // 1_000_000 % TICK_MS) / 1000, self._tick, count + 1)
        now = self.now()
        if self._standstill.is_over(now.ms):
            self._run_out()
            self._cleanup(now)
        for slot in self._tokens.advance(now.ms):
            peer = self.engine.owner(slot)
            if type(peer) is Peer:
                peer.on_token_due(now)
        self._free_audiences()
        self._tell_refused()
        self.repeats.rest(now.ms / 1000)
        self.settle()
        self.engine.send()

    def _run_out(self) -> None:
        """Let deadlines of connections run out; of a crowd some in each turn of the loop."""
        if self.engine.advance():
            self.loop.call_soon(self._run_out)

    def _cleanup(self, now: Now) -> None:
        """End the detached sessions whose time is up; of a crowd some in each turn of the loop."""
        if self.service.cleanup_expired_status(now=now, limit=EXPIRE_AT_ONCE) == EXPIRE_AT_ONCE:
            self.loop.call_soon(self._cleanup, now)
        self.settle()  # the last of the crowd, too: nobody waits for the next tick
        self.engine.send()

    # HTTP.

    def _on_request(self, owner: Any, handle: int, data: bytes, now: Now) -> None:
        if type(owner) is not HttpClient:
            owner = HttpClient(handle, self.settings.limits.http_body_size)
            self.engine.own(handle, owner)
        try:
            requests = owner.parser.feed(data)
        except HttpError as error:
            self._reject(handle, owner.parser.head, error, now)
        else:
            if self.is_late():
                self.backlog.begin(owner, requests)
            else:
                self._answer_all(owner, requests, now)

    def _answer_all(self, client: HttpClient, requests: list[Request], now: Now) -> None:
        """Requests of one connection in order: so many in this turn, the others later."""
        for at, request in enumerate(requests):
            if at == PIPELINED or (at and self.backlog.is_full(client.handle)):
                self.backlog.begin(client, requests[at:])
                return
            if not self._answer(client, request, now):
                return
        expecting = client.parser.expecting()
        if expecting is not None:
            self._answer_expectation(client.handle, expecting, now)

    def _once_more(self, handle: int, error: HttpError, now: Now) -> HttpError:
        """What to answer to a failure: whoever keeps guessing credentials is told to wait instead."""
        if error.status != 401 or not self._guesses.is_over(self.engine.network(handle), now.ms):
            return error
        return HttpError(429, "rate_limited", "too many bad credentials from this address", (("Retry-After", "10"),))

    def _answer(self, client: HttpClient, request: Request, now: Now) -> bool:
        """False when the connection speaks HTTP no more."""
        if request.path == WEBSOCKET:
            try:
                self._upgrade(client.handle, request, now)
            except HttpError as error:
                self._reject(client.handle, request, self._once_more(client.handle, error, now), now)
            return False
        keep = request.keep_alive and not request.upgrade
        headers = self._origins.headers(request)
        try:
            if request.method == "OPTIONS":
                response = preflight(self._routes.methods(request), headers, keep_alive=keep)
            else:
                found = self._routes.handle(request, now)
                response = answer(200, found, headers=headers, keep_alive=keep, is_head=request.method == "HEAD")
        except HttpError as error:
            response = self._error_response(request, self._once_more(client.handle, error, now), keep_alive=keep)
        self.engine.write(client.handle, response)
        if keep:
            self.engine.await_request(client.handle)
        else:
            self.engine.finish(client.handle)
        return keep

    def _answer_expectation(self, handle: int, request: Request, now: Now) -> None:
        """The client waits for a word before it sends the body: to go on, or that it need not."""
        try:
            self._routes.admit(request, now)
        except HttpError as error:
            self.engine.write(handle, self._error_response(request, self._once_more(handle, error, now)))
            self.engine.finish(handle)
        else:
            self.engine.write(handle, CONTINUE)

    def _error_response(self, request: Request, error: HttpError, *, keep_alive: bool = False) -> bytes:
        """What an error is told with; a page that may ask may read it, too."""
        error.headers = (*error.headers, *self._origins.headers(request))
        return answer_error(error, keep_alive=keep_alive, is_head=request.method == "HEAD")

    def _reject(self, handle: int, request: Request, error: HttpError, now: Now) -> None:
        """A handshake that fails, or bytes that are no request."""
        self.repeats.log(
            LOG,
            logging.WARNING,
            "rejected handshake",
            now_s=now.ms / 1000,
            status=error.status,
            reason=error.message,
            address=self.engine.address(handle),
        )
        self.engine.write(handle, self._error_response(request, error))
        self.engine.finish(handle)

    def _upgrade(self, handle: int, request: Request, now: Now) -> None:
        """From here on it is a peer. Raises HttpError."""
        if self.draining:
            raise HttpError(503, "unavailable", "this server is going away", (("Retry-After", "1"),))
        second, user_types = now.wall_us // 1_000_000, self.settings.presence.user_types
        accepted = accept(request, keys=self.keys, origins=self._origins, user_types=user_types, now=second)
        peer = Peer(self, handle, accepted)
        self._variants[peer.variant] += 1
        self._remember(peer)
        self.engine.own(handle, peer)
        self.engine.write(handle, accepted.response)
        self.engine.upgrade(handle, accepted.codec.is_text, peer.variant, request.after, deflate=accepted.inflates)
        self.watch_token(peer, now)
        peer.welcome(now)
        if accepted.public:
            self.pager.begin(peer, self.read_cursor(accepted.cursor, PUBLIC_SCOPE))

    def _remember(self, peer: Peer) -> None:
        others = self.peers.setdefault(peer.user_id, peer)
        if isinstance(others, set):
            others.add(peer)
        elif others is not peer:
            self.peers[peer.user_id] = {others, peer}

    # The end of a connection.

    def _on_ended(self, peer: Peer, how: int, code: int, heard_ms: int, now: Now) -> None:
        waiting = self.backlog.take(peer) if self.backlog else None
        if waiting is not None and how in (native.CLOSED, native.VIOLATION):
            while waiting:  # what came before the end counts
                if self.is_late():
                    # Its answers would come too late; what it changes comes in its turn, and then the end.
                    self.backlog.take(peer)
                    self.backlog.begin(peer, *waiting, (native.ENDED, (how, code, heard_ms)))
                    return
                self._carry_out(peer, waiting.popleft())
                if peer.closed:
                    return
        if how == native.CLOSED and code == 1000:
            self.end_session(peer, "closed", now)
        elif how == native.SILENT:
            session = peer.session
            if session is not None and session.phase is not Phase.GONE:
                self.service.handle_timeout(session, last_heard_ms=heard_ms, now=now)
        else:
            if how == native.LAGGED:
                self.repeats.log(LOG, logging.WARNING, "slow reader", now_s=now.ms / 1000, user_id=peer.user_id)
            self.lose_session(peer, heard_ms, now)
        self.forget(peer)

    def end_session(self, peer: Peer, reason: str, now: Now) -> None:
        """The peer's session ends at once."""
        if peer.session is not None and peer.session.phase is not Phase.GONE:
            self.service.handle_user_offline(peer.session, now=now, reason=reason)

    def lose_session(self, peer: Peer, heard_ms: int, now: Now) -> None:
        """The peer's session stays for its grace, without a connection."""
        if peer.session is not None and peer.session.phase is not Phase.GONE:
            self.service.handle_connection_lost(peer.session, last_heard_ms=heard_ms, now=now)

    def forget(self, peer: Peer) -> None:
        """The peer hears and says no more."""
        peer.closed = True
        self._variants[peer.variant] -= 1
        others = self.peers[peer.user_id]
        if isinstance(others, set) and len(others) > 1:
            others.remove(peer)
        else:
            del self.peers[peer.user_id]
        self.pager.forget(peer)
        self.backlog.take(peer)
        self.wanted.take(peer)
        peer.session = None
        if peer.rooms is not None or peer.scope is not None:
            for room in self.service.forget(peer):
                self.free_audience(room)
            peer.rooms = peer.scope = None

    def free_audience(self, room: Room) -> None:
        """Give back the native audience of a room that nobody hears of any more."""
        if room.audience is not None and not room.subscribers:
            if self.engine.free_audience(room.audience):
                room.audience = None
            else:
                self._empty_rooms.append(room)  # the running flush has something for it: next tick

    def _free_audiences(self) -> None:
        rooms, self._empty_rooms = self._empty_rooms, []
        for room in rooms:
            self.free_audience(room)

    # Catching up.

    def _on_drained(self, peer: Peer, missed_from: int | None) -> None:
        """Its socket takes more again: give it what it missed, from its own version on."""
        if missed_from is not None:
            for name in self.service.audience.rooms_of(peer):
                self.show_room(peer, name, missed_from)
            if peer.scope is not None:
                watched = self.service.audience.watches_of(peer)
                self.show_watched(peer, watched, peer.scope, missed_from, in_answer=False)
            if peer.public and peer not in self.pager:
                self.pager.begin(peer, missed_from)
            self.engine.caught_up(peer.handle)
        self.pager.kick()
        self.backlog.kick()

    def show_room(self, peer: Peer, name: str, since: int | None) -> None:
        """A room's roster, or what changed in it since a version; of a crowded one how many are in it."""
        room = self.service.audience.rooms.get(name)
        if room is not None and room.crowded:
            if room.shown != room.told_count:
                room.told_count = None  # not everybody was told the same: the next count is news to somebody
            peer.send(RoomOccupancy(name, room.shown))
            return
        members = None if room is None or since is None else room.members.changes_since(since)
        if members is not None:
            entries = [member.record.entry(left=member.left) for member in members]
        elif room is not None:
            entries = [member.record.entry() for member in room.members.values() if not member.left]
        else:
            entries = []
        self._send_pages(peer, entries, full=members is None, cursor=self._make_cursor(room_scope(name)), room=name)

    def show_watched(
        self, peer: Peer, user_ids: Collection[str], scope: str, since: int | None, *, in_answer: bool = True
    ) -> None:
        """The state of these users, or of those that changed since a version.

        Only the answer to a `subscribe` may be `full`: elsewhere nothing would tell its scope from the public's.
        """
        changed = None if since is None else self.service.changes_among(user_ids, since)
        if changed is not None:
            entries = [record.entry() for record in changed]
        else:
            entries = [self.service.get_user_status(user_id) for user_id in user_ids]
        full = changed is None and in_answer
        self._send_pages(peer, entries, full=full, cursor=self._make_cursor(scope))

    def _send_pages(
        self, peer: Peer, entries: list[StatusEntry], *, full: bool, cursor: str, room: str | None = None
    ) -> None:
        """Entries in frames of a page each, the last with the cursor. Their number is bounded by watches or members."""
        at = 0
        while len(entries) - at > SNAPSHOT_PAGE:
            page = entries[at : at + SNAPSHOT_PAGE]
            peer.send(UserOnlineStatus(page, full=full, more=True, room=room))
            at += SNAPSHOT_PAGE
        peer.send(UserOnlineStatus(entries[at:], full=full, cursor=cursor, room=room))

    def _make_cursor(self, scope: str) -> str:
        """ "Everything of this scope up to now"."""
        return make_cursor(self.epoch, scope, self.service.version)

    def read_cursor(self, text: str | None, scope: str) -> int | None:
        """The version in a cursor of this life and scope; None for any other text."""
        return None if text is None or len(text) > 256 else read_cursor(text, self.epoch, scope)

    # What peers share.

    def renew_standing(self, now: Now) -> None:
        """The engine has the answer to a heartbeat without an `id` from here on, until the second is over."""
        second, rest_us = divmod(now.wall_us, 1_000_000)
        if second != self._ack_second:
            self._ack_second = second
            ack = HeartbeatAck(second)
            until_ms = now.ms + (1_000_000 - rest_us) // 1000
            for variant in range(len(VARIANTS)):
                self.engine.stand(variant, frame_of(variant, ack), until_ms)

    def deliver(self, from_user_id: str, to_user_id: str, text: str, now: Now) -> int:
        """Hand a message to every session of a user. Returns how many took it. Raises RequestError."""
        record = self.service.record(to_user_id)
        if record is None or record.status == "offline":
            raise UserOffline(f"{to_user_id} is not online")
        message = Message(from_user_id, to_user_id, text, now.wall_us // 1_000_000)
        payloads: dict[Codec, bytes] = {}
        delivered = 0
        for session in self.service.sessions_of(to_user_id):
            peer = session.connection
            if peer is None:
                continue
            payload = payloads.get(peer.codec)
            if payload is None:
                payload = payloads[peer.codec] = peer.codec.encode(message)
            delivered += self.engine.answer(peer.handle, payload, self.settings.limits.messages_waiting)
        if not delivered:
            raise Unavailable(f"no connection of {to_user_id} takes messages just now")
        return delivered

    def tell_calls(self) -> int:
        """Hand out what calls have for sessions. Returns how many were taken.

        Called after every event, so that an operation finds nothing here but its own. A ringing or a signal that a
        connection has no room for is its sender's to know of; of everything else the receiver must, so it is closed,
        and told when it is back.
        """
        calls = self.service.calls
        taken = 0
        while calls.outbox:
            told, calls.outbox = calls.outbox, []
            for session, frame in told:
                peer = session.connection
                if peer is None or peer.closed:
                    calls.miss(session, frame)
                elif self.engine.answer(peer.handle, peer.codec.encode(frame), self.settings.limits.messages_waiting):
                    taken += 1
                elif not isinstance(frame, CallRinging | CallSignalled):
                    peer.give_up("too much waits for it")
                    calls.miss(session, frame)
        return taken

    def kick(self, user_id: str, now: Now) -> int:
        """Ends the user's sessions, those without a connection too, and closes his connections."""
        return self._disconnect(user_id, 4010, "disconnected by an administrator", "kicked", now)

    def revoke(self, user_id: str, now: Now) -> int:
        """The tokens that the user has stop working, and what lives by them ends. Up to which second they are dead.

        A token that was issued since an earlier revocation in the same second is dated a second later (`issue`).
        """
        second = now.wall_us // 1_000_000
        before = self.revocations.before(user_id)
        if before is not None and before >= second:
            second = min(before + 1, second + LEEWAY // 2)
        self.on_revoked(user_id, second)
        self.tell_node(Revoke(user_id, second))
        return second

    def on_revoked(self, user_id: str, before: int) -> None:
        """The user's tokens that were issued up to and including the Unix second `before` are dead."""
        now = self.now()
        self.revocations.add(user_id, before, now.wall_us // 1_000_000)
        self._disconnect(user_id, 4001, "token revoked", "token", now)

    def _disconnect(self, user_id: str, code: int, reason: str, why: str, now: Now) -> int:
        record = self.service.record(user_id)
        for session in () if record is None else record.sessions:
            self.service.handle_user_offline(session, now=now, reason=why)
        found = self.peers.get(user_id, ())
        peers = tuple(found) if isinstance(found, set | tuple) else (found,)
        for peer in peers:
            peer.close(code, reason)
        self.settle()
        self.engine.send()
        return len(peers)

    def watch_token(self, peer: Peer, now: Now) -> None:
        """Wake up for the peer's token: a minute before its end, and at its end.

        By its place, and never called off: one who has left may still be heard, and the place be another's by now.
        """
        place = peer.handle & 0xFFFFFFFF
        if self.engine.owner(place) is not peer:
            return
        wait_ms = max(0, round(peer.next_token_event_s * 1000 - now.wall_us / 1000))
        self._tokens.arm(place, now.ms + wait_ms)

    def count_error(self, code: str) -> None:
        """One request was refused."""
        self.errors[code] = self.errors.get(code, 0) + 1

    def _tell_refused(self) -> None:
        """Newcomers that the engine had no room for: in the log at most once a second, with a count."""
        now_s = self.loop.time()
        if now_s < self._refused_next_s:
            return
        stats = self.engine.stats()
        for name, status, reason in REFUSALS:
            count = stats[name] - self._refused[name]
            if count:
                self._refused[name] = stats[name]
                self._refused_next_s = now_s + REFUSED_S
                event(LOG, logging.WARNING, "rejected handshake", status=status, reason=reason, count=count)

    def note_rate_limited(self, peer: Peer, now: Now) -> None:
        """A frame came over the rate."""
        self.count_error("rate_limited")
        self.repeats.log(LOG, logging.WARNING, "rate limited", now_s=now.ms / 1000, user_id=peer.user_id)

    def _journal(self, change: Transition) -> None:
        self.note(change)
        if change.was != change.status:
            self.users += (change.status != "offline") - (change.was != "offline")
        if not LOG.isEnabledFor(logging.WARNING if change.kind == "reconnect" else logging.INFO):
            return
        if change.kind == "status":
            event(LOG, logging.INFO, "status changed", user_id=change.user_id, user_type=change.user_type,
                  was=change.was, status=change.status)  # fmt: skip
        elif change.kind == "reconnect":
            event(LOG, logging.WARNING, "reconnect", user_id=change.user_id, user_type=change.user_type,
                  attempt=change.attempt)  # fmt: skip
        elif change.kind == "online":
            event(LOG, logging.INFO, "user online", user_id=change.user_id, user_type=change.user_type,
                  status=change.status)  # fmt: skip
        else:
            event(LOG, logging.INFO, "user offline", user_id=change.user_id, user_type=change.user_type,
                  reason=change.reason)  # fmt: skip
