"""The client's asyncio face against a scripted server on real sockets, on asyncio's loop and on uvloop."""

import asyncio
import gc
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, TypeAlias
from urllib.parse import parse_qs, urlsplit

import picows
import pytest
import uvloop

from fastpresence.client import (
    ConnectionFailed,
    PresenceClient,
    RequestRefused,
    StatusEntry,
    Timing,
)
from fastpresence.client import driver as driver_module
from fastpresence.client.streams import Changes, Mailbox
from fastpresence.codec import CODECS, JSON, Codec
from fastpresence.messages import (
    Ack,
    ClientFrame,
    Error,
    Heartbeat,
    HeartbeatAck,
    Message,
    RequestOnlineStatus,
    SendMessage,
    ServerFrame,
    StatusChange,
    Subscribe,
    TokenExpiring,
    TokenRefresh,
    UserOffline,
    UserOnline,
    UserOnlineStatus,
    Welcome,
)

FAST = Timing(
    delays_ms=(0, 20, 40, 80, 160),
    stable_after_ms=300,
    slow_retry_ms=200,
    attempt_timeout_ms=2_000,
    request_timeout_ms=2_000,
    goodbye_ms=300,
)
DEADLINE_S = 10.0


def kol(user_id: str = "kol_1", status: Any = "online", rev: int = 1) -> StatusEntry:
    return StatusEntry(user_id, "kol", status, status != "offline", 1, rev)


class Peer(picows.WSListener):
    """The server's end of one connection."""

    def __init__(self, server: "Server", request: picows.WSUpgradeRequest, codec: Codec) -> None:
        self.server = server
        self.codec = codec
        self.headers = request.headers
        self.query = parse_qs(urlsplit(request.path.decode()).query)
        self.got: list[ClientFrame] = []
        self.closed_with: int | None = None
        self.gone = asyncio.Event()
        self.transport: picows.WSTransport

    def on_ws_connected(self, transport: picows.WSTransport) -> None:
        self.transport = transport
        self.server.peers.append(self)
        self.server.moved()
        if self.server.greets:
            expires_at = 1_700_000_000 + self.server.token_s
            self.send(Welcome("s", "user_1", "user", 30, 60, expires_at, "e", 1_700_000_000))
            self.send(UserOnlineStatus(list(self.server.present), full=True, cursor="c1"))

    def on_ws_frame(self, transport: picows.WSTransport, frame: picows.WSFrame) -> None:
        if frame.msg_type == picows.WSMsgType.CLOSE:
            self.closed_with = int.from_bytes(frame.get_payload_as_bytes()[:2], "big")
            transport.send(picows.WSMsgType.CLOSE, frame.get_payload_as_bytes()[:2])
            transport.disconnect()
            return
        request = self.codec.decode_request(frame.get_payload_as_bytes())
        self.got.append(request)
        self.server.moved()
        for answer in self.server.answers(self, request):
            self.send(answer)
        if isinstance(request, UserOffline) and self.server.closes:
            self.close(1000)

    def on_ws_disconnected(self, transport: picows.WSTransport) -> None:
        self.gone.set()
        self.server.moved()

    def send(self, frame: ServerFrame) -> None:
        kind = picows.WSMsgType.TEXT if self.codec.is_text else picows.WSMsgType.BINARY
        self.transport.send(kind, self.codec.encode(frame))

    def close(self, code: int) -> None:
        self.transport.send(picows.WSMsgType.CLOSE, code.to_bytes(2, "big"))
        self.transport.disconnect()

    def cut(self) -> None:
        self.transport.disconnect(graceful=False)


class Server:
    """Accepts, greets and answers, unless a test tells it otherwise."""

    def __init__(self) -> None:
        self.peers: list[Peer] = []
        self.present: list[StatusEntry] = [kol()]
        self.tokens: list[str] = []
        self.greets = True
        self.closes = True
        self.token_s = 3600
        self.refusal: Callable[[str], picows.WSUpgradeResponse | None] = lambda token: None
        self.answers: Callable[[Peer, ClientFrame], list[ServerFrame]] = default_answers
        self.url = ""
        self._moved = asyncio.Event()

    def accept(self, request: picows.WSUpgradeRequest) -> Any:
        token = request.headers["Authorization"].removeprefix("Bearer ")
        self.tokens.append(token)
        self.moved()
        refused = self.refusal(token)
        if refused is not None:
            return picows.WSUpgradeResponseWithListener(refused, None)
        codec = CODECS[request.headers["Sec-WebSocket-Protocol"]]
        answer = picows.WSUpgradeResponse.create_101_response({"Sec-WebSocket-Protocol": codec.subprotocol})
        return picows.WSUpgradeResponseWithListener(answer, Peer(self, request, codec))

    def moved(self) -> None:
        self._moved.set()

    async def until(self, reached: Callable[[], bool]) -> None:
        while not reached():
            self._moved.clear()
            await self._moved.wait()

    async def peer(self, number: int) -> Peer:
        await self.until(lambda: len(self.peers) > number)
        return self.peers[number]


def default_answers(peer: Peer, request: ClientFrame) -> list[ServerFrame]:
    assert not isinstance(request, Heartbeat) or request.id is None or isinstance(request.id, int)
    match request:
        case Heartbeat():
            return [HeartbeatAck(0, request.id)]
        case RequestOnlineStatus():
            entries = [StatusEntry(user_id, "user", "offline", False, None, 0) for user_id in request.user_ids]
            return [UserOnlineStatus(entries, full=True, reply_to=request.id)]
        case SendMessage(to_user_id="nobody"):
            return [Error("user_offline", "no session", request.id)]
        case SendMessage():
            return [Ack(request.id or 0, delivered=2)]
        case Subscribe(user_ids=list(user_ids)):
            return [Ack(request.id or 0), UserOnlineStatus([kol(u) for u in user_ids], full=True, cursor="c2")]
        case _:
            return [Ack(request.id or 0)]


@asynccontextmanager
async def serving() -> AsyncIterator[Server]:
    server = Server()
    listening = await picows.ws_create_server(server.accept, "127.0.0.1", 0, use_aiofastnet=False)
    server.url = f"ws://127.0.0.1:{listening.sockets[0].getsockname()[1]}/ws"
    try:
        yield server
    finally:
        listening.close()
        for peer in server.peers:
            peer.cut()
        await listening.wait_closed()


def client(server: Server, **options: Any) -> PresenceClient:
    return PresenceClient(server.url, **{"token": "t", "timing": FAST, **options})


Run: TypeAlias = Callable[[Callable[[Server], Awaitable[None]]], None]


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Run:
    """Runs a test's body against a server, with a deadline; no task may be left, and no exception unheard."""

    def runner(body: Callable[[Server], Awaitable[None]]) -> None:
        complaints: list[dict[str, Any]] = []

        async def main() -> None:
            asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
            async with asyncio.timeout(DEADLINE_S), serving() as server:
                await body(server)
                assert asyncio.all_tasks() == {asyncio.current_task()}
            gc.collect()

        factory = uvloop.new_event_loop if request.param == "uvloop" else None
        with asyncio.Runner(loop_factory=factory) as loop:
            loop.run(main())
        assert complaints == []

    return runner


@pytest.mark.parametrize("codec", ["json", "msgpack"])
def test_it_comes_online_sees_asks_speaks_and_says_goodbye(run: Run, codec: str) -> None:
    async def body(server: Server) -> None:
        async with client(server, codec=codec, user_id="user_1", device="d") as me:
            assert (me.state, me.stale, me.user_id, me.user_type) == ("connected", False, "user_1", "user")
            assert me.status_of("kol_1") == kol()
            peer = server.peers[0]
            assert peer.headers["Sec-WebSocket-Protocol"] == f"fastpresence.v1.{codec}"
            assert "Sec-WebSocket-Extensions" not in peer.headers
            assert isinstance(peer.got[0], UserOnline)
            await me.set_status("busy")
            assert isinstance(peer.got[-1], StatusChange)
            assert await me.send_message("kol_1", "hello") == 2
            with pytest.raises(RequestRefused) as refused:
                await me.send_message("nobody", "hello")
            assert refused.value.code == "user_offline"
            assert (await me.request_status("x"))["x"].rev == 0
            await me.watch("user_2")
            assert me.status_of("user_2").online
            await me.unwatch("user_2")
            assert 0 <= await me.beat() < DEADLINE_S
            await me.join("lobby")
            peer.send(UserOnlineStatus([kol("kol_7")], full=True, cursor="r", room="lobby"))
            await me.request_status("x")
            assert (list(me.members("lobby")), me.occupancy("lobby")) == (["kol_7"], 1)
            await me.leave("lobby")
            assert me.members("lobby") == {}
        assert isinstance(peer.got[-1], UserOffline)
        assert me.state == "disconnected"
        await peer.gone.wait()

    run(body)


def test_changes_and_messages_arrive_in_order_and_end_with_the_client(run: Run) -> None:
    async def body(server: Server) -> None:
        async with client(server, online=False) as me:
            changes, messages = me.changes(), me.messages()
            peer = server.peers[0]
            peer.send(UserOnlineStatus([kol(status="busy", rev=2)], full=False, cursor="c2"))
            peer.send(Message("kol_1", "user_1", "hello", 0))
            change = await anext(changes)
            assert change.previous is not None
            assert (change.user_id, change.previous.status, change.entry.status) == ("kol_1", "online", "busy")
            assert (await anext(messages)).message == "hello"
        assert [change async for change in changes] == []
        assert [message async for message in messages] == []

    run(body)


def test_a_cut_connection_comes_back_with_cursor_status_and_watches(run: Run) -> None:
    async def body(server: Server) -> None:
        async with client(server) as me:
            await me.watch("user_2")
            await me.set_status("away")
            states: list[str] = []
            stop = me.on_state(states.append)
            assert me.transport is not None
            me.transport.abort()
            await me.wait_state("disconnected")
            assert me.stale
            assert me.status_of("kol_1").online
            await me.wait_synced()
            stop()
            assert states == ["disconnected", "connecting", "connected"]
            again = await server.peer(1)
            assert again.query["cursor"] == ["c1"]
            online, watch, _ = again.got
            assert isinstance(online, UserOnline)
            assert (online.status, online.attempt) == ("away", 1)
            assert isinstance(watch, Subscribe)
            assert (watch.user_ids, watch.cursor) == (["user_2"], "c2")

    run(body)


def test_a_request_pending_when_the_connection_breaks_fails_and_one_while_it_is_away_as_well(run: Run) -> None:
    async def body(server: Server) -> None:
        async with client(server) as me:

            def silent(peer: Peer, request: ClientFrame) -> list[ServerFrame]:
                return [] if isinstance(request, SendMessage) else default_answers(peer, request)

            server.answers = silent
            asking = asyncio.ensure_future(me.send_message("kol_1", "hello"))
            await server.until(lambda: isinstance(server.peers[0].got[-1], SendMessage))
            server.peers[0].cut()
            with pytest.raises(ConnectionFailed):
                await asking
            with pytest.raises(ConnectionFailed):
                await me.send_message("kol_1", "hello")
            await me.wait_state("connected")

    run(body)


def test_when_no_connection_can_be_had_everyone_shows_offline_until_one_can(run: Run) -> None:
    async def body(server: Server) -> None:
        async with client(server) as me:
            changes = me.changes()
            server.refusal = lambda token: picows.WSUpgradeResponse.create_error_response(503)
            server.peers[0].cut()
            await me.wait_state("failed")
            assert len(server.tokens) == 6
            gone = await anext(changes)
            assert (gone.stale, gone.entry.online, me.status_of("kol_1").online) == (True, False, False)
            server.refusal = lambda token: None
            me.retry()
            await me.wait_synced()
            assert (await anext(changes)).entry.online

    run(body)


def test_a_refused_token_is_fetched_again_and_a_plain_one_is_the_end(run: Run) -> None:
    async def body(server: Server) -> None:
        fetched = iter(["old", "new"])

        async def fetch() -> str:
            return next(fetched)

        def refuse(token: str) -> picows.WSUpgradeResponse | None:
            return picows.WSUpgradeResponse.create_error_response(401) if token == "old" else None

        server.refusal = refuse
        async with client(server, token=fetch):
            assert server.tokens == ["old", "new"]
        with pytest.raises(ConnectionFailed, match="401"):
            async with client(server, token="old"):
                pass

    run(body)


def test_a_server_that_forbids_it_is_the_end_and_something_on_the_way_is_not(run: Run) -> None:
    async def body(server: Server) -> None:
        page = b"<html>403 Forbidden</html>"
        async with client(server, online=False) as me:
            server.refusal = lambda token: picows.WSUpgradeResponse.create_error_response(403, page)
            server.peers[0].cut()
            await me.wait_state("failed")
            assert len(server.tokens) == 6
            assert "on the way" in str(me.reason)
            page = b'{"error": {"code": "forbidden", "message": "not from here"}}'
            with pytest.raises(ConnectionFailed, match="the server refused"):
                await me.wait_synced()

    run(body)


def test_an_expiring_token_is_refreshed_on_the_living_connection(run: Run) -> None:
    async def body(server: Server) -> None:
        tokens = iter(["first", "second"])
        server.token_s = 0
        async with client(server, token=lambda: next(tokens)):
            peer = server.peers[0]
            peer.send(TokenExpiring(0))
            await server.until(lambda: isinstance(peer.got[-1], TokenRefresh))
            assert isinstance(peer.got[-1], TokenRefresh)
            assert peer.got[-1].token == "second"

    run(body)


def test_entering_fails_in_time_when_nobody_listens_or_nobody_greets(run: Run) -> None:
    async def body(server: Server) -> None:
        with pytest.raises(ConnectionFailed):
            async with PresenceClient("ws://127.0.0.1:1/ws", token="t", timing=FAST, connect_timeout=0.2):
                pass
        server.greets = False
        with pytest.raises(ConnectionFailed):
            async with client(server, connect_timeout=0.2):
                pass
        await server.peers[0].gone.wait()

    run(body)


def test_a_handshake_that_never_ends_leaves_no_socket_behind(run: Run) -> None:
    async def body(server: Server) -> None:
        ended = asyncio.Event()

        async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read()
            writer.close()
            ended.set()

        async with await asyncio.start_server(silent, "127.0.0.1", 0) as deaf:
            url = f"ws://127.0.0.1:{deaf.sockets[0].getsockname()[1]}/ws"
            with pytest.raises(ConnectionFailed):
                async with PresenceClient(url, token="t", timing=FAST, connect_timeout=0.2):
                    pass
            await ended.wait()

    run(body)


def test_a_server_that_hangs_up_in_the_handshake_is_a_failed_attempt(run: Run) -> None:
    async def body(server: Server) -> None:
        async def rude(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readline()
            writer.close()

        async with await asyncio.start_server(rude, "127.0.0.1", 0) as deaf:
            url = f"ws://127.0.0.1:{deaf.sockets[0].getsockname()[1]}/ws"
            with pytest.raises(ConnectionFailed):
                async with PresenceClient(url, token="t", timing=FAST, connect_timeout=0.2):
                    pass

    run(body)


def test_an_administrators_disconnect_ends_every_wait(run: Run) -> None:
    async def body(server: Server) -> None:
        async with client(server) as me:
            changes = me.changes()
            server.peers[0].close(4010)
            await me.wait_state("failed")
            with pytest.raises(ConnectionFailed, match="4010"):
                await me.wait_state("connected")
            assert (await anext(changes)).stale
            with pytest.raises(ConnectionFailed, match="4010"):
                await anext(changes)
            with pytest.raises(ConnectionFailed, match="4010"):
                await anext(me.messages())
            with pytest.raises(ConnectionFailed):
                await me.send_message("kol_1", "hello")

    run(body)


def test_fragments_are_joined_pings_answered_and_unknown_frames_ignored(run: Run) -> None:
    async def body(server: Server) -> None:
        async with client(server, online=False) as me:
            changes = me.changes()
            peer = server.peers[0]
            data = JSON.encode(UserOnlineStatus([kol(status="busy", rev=2)], full=False, cursor="c2"))
            peer.transport.send(picows.WSMsgType.TEXT, b'{"type":"call","call_id":"1"}')
            peer.transport.send(picows.WSMsgType.TEXT, data[:10], fin=False)
            peer.transport.send(picows.WSMsgType.PING, b"?")
            peer.transport.send(picows.WSMsgType.CONTINUATION, data[10:20], fin=False)
            peer.transport.send(picows.WSMsgType.CONTINUATION, data[20:])
            assert (await anext(changes)).entry.status == "busy"

    run(body)


@pytest.mark.parametrize(
    ("kind", "payload", "code"),
    [(picows.WSMsgType.TEXT, b"{nonsense", 1007), (picows.WSMsgType.BINARY, b"{}", 1003)],
)
def test_a_server_that_breaks_the_protocol_is_told_and_left(
    run: Run, kind: picows.WSMsgType, payload: bytes, code: int
) -> None:
    async def body(server: Server) -> None:
        async with client(server) as me:
            server.peers[0].transport.send(kind, payload)
            await server.peers[0].gone.wait()
            assert server.peers[0].closed_with == code
            await me.wait_state("connected")
            assert "cursor" not in (await server.peer(1)).query

    run(body)


def test_a_frame_that_no_parser_takes_is_a_lost_connection(run: Run) -> None:
    async def body(server: Server) -> None:
        async with client(server) as me:
            server.peers[0].transport.underlying_transport.write(b"\x8b\x00garbage")
            await server.peer(1)
            await me.wait_state("connected")

    run(body)


def test_leaving_a_server_that_does_not_answer_takes_a_short_time(run: Run) -> None:
    async def body(server: Server) -> None:
        server.closes = False
        async with client(server):
            server.answers = lambda peer, request: []
            before = time.monotonic()
        assert time.monotonic() - before < 2.0

    run(body)


def test_a_fault_in_the_client_is_told_and_ends_it(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    async def body(server: Server) -> None:
        told: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
        async with client(server) as me:

            def broken(*args: object, **kwargs: object) -> str:
                raise ZeroDivisionError

            monkeypatch.setattr(driver_module, "with_query", broken)
            server.peers[0].cut()
            await me.wait_state("failed")
            with pytest.raises(ConnectionFailed, match="ZeroDivisionError"):
                await me.wait_state("connected")
        assert [type(context["exception"]) for context in told] == [ZeroDivisionError]

    run(body)


def test_a_token_provider_that_fails_is_tried_again(run: Run) -> None:
    async def body(server: Server) -> None:
        calls = 0

        async def flaky() -> str:
            nonlocal calls
            calls += 1
            if calls < 3:
                raise OSError("the application's backend is away")
            return "t"

        async with client(server, token=flaky):
            assert calls == 3

    run(body)


def test_public_0_is_asked_for_and_an_own_query_is_kept(run: Run) -> None:
    async def body(server: Server) -> None:
        server.url += "?shard=3"
        async with client(server, public=False, online=False):
            assert server.peers[0].query == {"shard": ["3"], "public": ["0"]}

    run(body)


def test_a_token_with_a_line_break_never_reaches_the_wire(run: Run) -> None:
    async def body(server: Server) -> None:
        with pytest.raises(ConnectionFailed):
            async with client(server, token="t\r\nX-Evil: 1", connect_timeout=0.1):
                pass
        assert server.tokens == []

    run(body)


def run_plain(body: Coroutine[Any, Any, None]) -> None:
    async def main() -> None:
        async with asyncio.timeout(DEADLINE_S):
            await body

    asyncio.run(main())


def test_a_slow_readers_changes_become_one_per_user_with_the_first_previous_and_the_last_entry() -> None:
    from fastpresence.client import Change

    async def body() -> None:
        changes = Changes()
        states = [kol(status=status, rev=rev) for rev, status in enumerate(["online", "busy", "away"])]
        changes.put(Change("kol_1", states[1], states[0]))
        changes.put(Change("kol_2", kol("kol_2"), None))
        changes.put(Change("kol_1", states[2], states[1]))
        changes.end()
        assert [(change.user_id, change.previous, change.entry) async for change in changes] == [
            ("kol_2", None, kol("kol_2")),
            ("kol_1", states[0], states[2]),
        ]

    run_plain(body())


def test_a_full_mailbox_drops_the_oldest_and_counts() -> None:
    async def body() -> None:
        mailbox: Mailbox[Message] = Mailbox(2)
        for number in range(5):
            mailbox.put(Message("a", "b", str(number), 0))
        mailbox.end()
        assert mailbox.dropped == 3
        assert [message.message async for message in mailbox] == ["3", "4"]

    run_plain(body())


def test_a_cancelled_reader_hands_its_turn_to_the_next() -> None:
    async def body() -> None:
        mailbox: Mailbox[Message] = Mailbox(10)
        first, second = asyncio.ensure_future(anext(mailbox)), asyncio.ensure_future(anext(mailbox))
        await asyncio.sleep(0)
        mailbox.put(Message("a", "b", "hello", 0))
        first.cancel()
        assert (await second).message == "hello"

    run_plain(body())
