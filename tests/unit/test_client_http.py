"""The connection that polls, against a server that says what it is told to, byte by byte."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
import uvloop

from fastpresence.client import http as http_module
from fastpresence.client.http import HttpAnswer, HttpLink, poll_url
from fastpresence.errors import ConnectionFailed

DEADLINE_S = 10.0
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"

Story = Callable[[HttpLink, "Server"], Awaitable[None]]


class Server:
    """Answers each request with the next of its `answers`; None hangs up instead."""

    def __init__(self, *answers: bytes | None, hangs_up: bool = False) -> None:
        self.answers = list(answers)
        self.requests: list[bytes] = []
        self.connections = 0
        self.hangs_up = hangs_up  # after each answer
        self.closed = asyncio.Event()  # a connection has ended

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[str]:
        server = await asyncio.start_server(self.connected, "127.0.0.1", 0)
        try:
            yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/api/poll?public=0"
        finally:
            server.close()
            await server.wait_closed()

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.partition(b"Content-Length: ")[2].partition(b"\r\n")[0] or b"0")
                self.requests.append(head + await reader.readexactly(length))
                answer = self.answers.pop(0)
                if answer is None:
                    break
                for at in range(0, len(answer), 1 + len(answer) // 40):
                    writer.write(answer[at : at + 1 + len(answer) // 40])
                    await writer.drain()
                if self.hangs_up:
                    break
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()
            self.closed.set()


Run = Callable[[Callable[[], Server], Story], None]


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Run:
    """Runs a story against a server, with a deadline."""

    def runner(server: Callable[[], Server], story: Story) -> None:
        async def main() -> None:
            async with asyncio.timeout(DEADLINE_S):
                behind = server()
                async with behind.listening() as url:
                    link = HttpLink(url)
                    try:
                        await story(link, behind)
                    finally:
                        await link.close()

        factory = uvloop.new_event_loop if request.param == "uvloop" else None
        with asyncio.Runner(loop_factory=factory) as loop:
            loop.run(main())

    return runner


def test_one_connection_carries_one_poll_after_the_other(run: Run) -> None:
    async def story(link: HttpLink, server: Server) -> None:
        for _ in range(3):
            assert await link.post("token", b'{"cursor":"c"}') == HttpAnswer(200, b"{}", 0.0)
        assert server.connections == 1
        head, _, body = server.requests[0].partition(b"\r\n\r\n")
        assert head.startswith(b"POST /api/poll?public=0 HTTP/1.1\r\nHost: 127.0.0.1:")
        assert b"\r\nAuthorization: Bearer token\r\n" in head
        assert body == b'{"cursor":"c"}'

    run(lambda: Server(OK, OK, OK), story)


def test_what_is_beside_the_polls_is_asked_for_on_the_same_connection(run: Run) -> None:
    async def story(link: HttpLink, server: Server) -> None:
        await link.post("t", b"{}")
        assert (await link.get("rooms/a%3Ab", "t")).body == b"{}"
        assert server.connections == 1
        assert server.requests[1].startswith(b"GET /api/rooms/a%3Ab HTTP/1.1\r\n")

    run(lambda: Server(OK, OK), story)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (b"HTTP/1.1 429 Slow\r\nRetry-After: 7\r\nContent-Length: 0\r\n\r\n", HttpAnswer(429, b"", 7_000.0)),
        (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n",
            HttpAnswer(200, b"abcde", 0.0),
        ),
        (b"HTTP/1.1 100 Continue\r\n\r\n" + OK, HttpAnswer(200, b"{}", 0.0)),
        (b"HTTP/1.1 302 Found\r\nLocation: http://else/\r\nContent-Length: 0\r\n\r\n", HttpAnswer(302, b"", 0.0)),
    ],
)
def test_answers_of_all_forms_are_read(run: Run, answer: bytes, expected: HttpAnswer) -> None:
    async def story(link: HttpLink, server: Server) -> None:
        assert await link.post("t", b"{}") == expected
        assert await link.post("t", b"{}") == HttpAnswer(200, b"{}", 0.0)
        assert server.connections == 1

    run(lambda: Server(answer, OK), story)


def test_a_body_that_ends_with_the_connection_is_read_to_its_end(run: Run) -> None:
    async def story(link: HttpLink, server: Server) -> None:
        assert (await link.post("t", b"{}")).body == b"all of it"
        assert (await link.post("t", b"{}")).body == b"{}"
        assert server.connections == 2

    run(lambda: Server(b"HTTP/1.1 200 OK\r\n\r\nall of it", OK, hangs_up=True), story)


def test_a_connection_that_was_closed_while_it_waited_is_replaced_once(run: Run) -> None:
    async def story(link: HttpLink, server: Server) -> None:
        await link.post("t", b"{}")
        await server.closed.wait()
        assert (await link.post("t", b"again")).status == 200
        assert server.connections == 2
        assert [request[-5:] for request in server.requests[1:]] == [b"again"]

    run(lambda: Server(OK, OK, hangs_up=True), story)


def test_the_last_words_of_a_server_that_will_not_go_on_are_heeded(run: Run) -> None:
    async def story(link: HttpLink, server: Server) -> None:
        await link.post("t", b"{}")
        await link.post("t", b"{}")
        assert server.connections == 2

    run(lambda: Server(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n", OK), story)


@pytest.mark.parametrize(
    "answer",
    [
        None,
        b"",
        b"SSH-2.0-OpenSSH\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf",
        b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"a" * 70_000,
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
    ],
)
def test_what_is_no_whole_answer_is_a_failure(run: Run, answer: bytes | None) -> None:
    async def story(link: HttpLink, server: Server) -> None:
        with pytest.raises((ConnectionFailed, ConnectionError)):
            await link.post("t", b"{}")
        server.hangs_up = False
        assert (await link.post("t", b"{}")).status == 200  # and the next one is not disturbed

    run(lambda: Server(answer, OK, hangs_up=True), story)


def test_an_answer_without_end_is_not_read_to_its_end(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_module, "BODY_MAX", 1_000)

    async def story(link: HttpLink, server: Server) -> None:
        with pytest.raises(ConnectionFailed, match="too long"):
            await link.post("t", b"{}")

    run(lambda: Server(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n" + b"a" * 100_000), story)


def test_a_poll_that_is_given_up_leaves_no_connection_open(run: Run) -> None:
    async def story(link: HttpLink, server: Server) -> None:
        async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read()
            writer.close()
            ended.set()

        ended = asyncio.Event()
        async with await asyncio.start_server(silent, "127.0.0.1", 0) as deaf:
            url = f"http://127.0.0.1:{deaf.sockets[0].getsockname()[1]}/"
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.1):
                    await HttpLink(url).post("t", b"{}")
            await ended.wait()

    run(Server, story)


@pytest.mark.parametrize("token", ["", "t\r\nX-Evil: 1", "a" * 9_000])
def test_a_token_that_is_none_never_reaches_the_wire(run: Run, token: str) -> None:
    async def story(link: HttpLink, server: Server) -> None:
        with pytest.raises(ConnectionFailed):
            await link.post(token, b"{}")
        assert server.connections == 0

    run(Server, story)


def test_where_a_servers_polls_are_follows_from_where_its_socket_is() -> None:
    assert poll_url("ws://127.0.0.1:8080/ws") == "http://127.0.0.1:8080/api/online-status/poll"
    assert poll_url("wss://a.example/ws?shard=3") == "https://a.example/api/online-status/poll"
    assert poll_url("wss://a.example/presence/ws") == "https://a.example/presence/api/online-status/poll"


def test_what_is_no_url_fails_when_it_is_needed(run: Run) -> None:
    async def story(link: HttpLink, server: Server) -> None:
        with pytest.raises(ConnectionFailed, match="not an HTTP URL"):
            await HttpLink("ftp://example").post("t", b"{}")

    run(Server, story)
