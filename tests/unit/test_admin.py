"""The admin face on a real socket: what it answers, and what a hostile client gets and costs."""

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
import uvloop

from fastpresence.logs import Repeats
from fastpresence.node import admin
from fastpresence.node.admin import CONNECTIONS, GUESSES, MAX_ENTRIES, AdminFace

KEY = "the-admin-key-of-the-tests"
ENTRY = {"at": 1.5, "event": "offline", "cause": "crash", "filler": "x" * 100}
#: Seconds that anything here may take.
DEADLINE = 10.0


class Scene:
    """A face on a free port, and what it is told to say."""

    def __init__(self, face: AdminFace, port: int) -> None:
        self.face = face
        self.port = port
        self.reason: str | None = None
        self.asked: list[tuple[str, int]] = []
        self.entries = [ENTRY]

    def timeline(self, user_id: str, limit: int) -> list[dict[str, Any]]:
        self.asked.append((user_id, limit))
        return self.entries[:limit]

    @contextlib.asynccontextmanager
    async def connected(self) -> AsyncIterator["Client"]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, limit=1 << 24)
        try:
            yield Client(reader, writer)
        finally:
            writer.transport.abort()

    async def ask(self, target: str, method: str = "GET", key: str | None = KEY) -> tuple[int, Any, dict[str, str]]:
        async with self.connected() as client:
            client.send(request(target, method, key))
            return await client.answer()


class Client:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def answer(self) -> tuple[int, Any, dict[str, str]]:
        async with asyncio.timeout(DEADLINE):
            head = (await self.reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:-2])}
            body = await self.reader.readexactly(int(headers["content-length"]))
        return int(head[0].split()[1]), json.loads(body), headers

    async def rest(self) -> bytes:
        """Up to the end; a reset is one."""
        async with asyncio.timeout(DEADLINE):
            try:
                return await self.reader.read()
            except ConnectionError:
                return b"reset"


def request(target: str, method: str = "GET", key: str | None = KEY, more: str = "") -> bytes:
    credential = "" if key is None else f"Authorization: Bearer {key}\r\n"
    return f"{method} {target} HTTP/1.1\r\nHost: localhost\r\n{credential}{more}\r\n".encode()


def run(story: Callable[[Scene], Awaitable[None]], *, key: str | None = KEY, request_time: float = DEADLINE) -> None:
    async def main() -> None:
        scene: Scene
        face = AdminFace(
            key=key,
            body_size=1024,
            request_time=request_time,
            not_ready=lambda: scene.reason,
            timeline=lambda user_id, limit: scene.timeline(user_id, limit),
            repeats=Repeats(),
        )
        sock = socket.create_server(("127.0.0.1", 0))
        scene = Scene(face, sock.getsockname()[1])
        await face.listen(sock)
        try:
            await story(scene)
        finally:
            face.close()  # uvloop waits for what is not closed, for ever
        async with asyncio.timeout(DEADLINE):
            while face.connections:
                await asyncio.sleep(0)

    uvloop.run(main())


def test_health_and_readiness_need_no_key_and_readiness_says_why_not() -> None:
    async def story(scene: Scene) -> None:
        assert (await scene.ask("/healthz", key=None))[:2] == (200, {"status": "ok"})
        assert (await scene.ask("/readyz", key=None))[:2] == (200, {"status": "ready"})
        scene.reason = "worker 0 is down"
        status, body, headers = await scene.ask("/readyz", key=None)
        assert (status, body) == (503, {"error": {"code": "unavailable", "message": "worker 0 is down"}})
        assert headers["retry-after"] == "1"
        assert (await scene.ask("/healthz", key=None))[0] == 200

    run(story)


def test_a_timeline_needs_the_key_and_a_limit_is_passed_on() -> None:
    async def story(scene: Scene) -> None:
        path = "/api/users/kol_1/timeline"
        for key in (None, "", KEY[:-1], KEY + "x", "an-api-key-of-the-public-port"):
            status, body, _ = await scene.ask(path, key=key)
            assert (status, body["error"]["code"]) == (401, "unauthorized")
            assert KEY not in body["error"]["message"]
        assert scene.asked == []
        assert (await scene.ask(path))[:2] == (200, {"user_id": "kol_1", "timeline": [ENTRY]})
        await scene.ask(f"{path}?limit=7&other=1")
        await scene.ask("/api/users/a%40b/timeline")
        assert scene.asked == [("kol_1", 100), ("kol_1", 7), ("a@b", 100)]

    run(story)


def test_without_a_configured_key_a_timeline_is_refused_with_what_to_do() -> None:
    async def story(scene: Scene) -> None:
        for key in (None, "", KEY):
            status, body, _ = await scene.ask("/api/users/kol_1/timeline", key=key)
            assert (status, body["error"]["code"]) == (401, "unauthorized")
            assert "admin.key must be set" in body["error"]["message"]
        assert (await scene.ask("/readyz", key=None))[0] == 200

    run(story, key=None)


@pytest.mark.parametrize(
    ("method", "target", "status", "code"),
    [
        ("GET", "/", 404, "not_found"),
        ("GET", "/api/users/kol_1", 404, "not_found"),
        ("GET", "/api/users/kol_1/timeline/", 404, "not_found"),
        ("GET", "/healthz/", 404, "not_found"),
        ("GET", "/../healthz", 404, "not_found"),
        ("GET", "/api/online-status/kol_1", 404, "not_found"),
        ("POST", "/healthz", 405, "bad_request"),
        ("OPTIONS", "/readyz", 405, "bad_request"),
        ("DELETE", "/api/users/kol_1/timeline", 405, "bad_request"),
        ("GET", "/api/users//timeline", 422, "bad_field"),
        ("GET", "/api/users/a%2Fb/timeline", 422, "bad_field"),
        ("GET", f"/api/users/{'x' * 129}/timeline", 422, "bad_field"),
        ("GET", "/api/users/kol_1/timeline?limit=0", 422, "bad_field"),
        ("GET", "/api/users/kol_1/timeline?limit=-1", 422, "bad_field"),
        ("GET", "/api/users/kol_1/timeline?limit=", 422, "bad_field"),
        ("GET", "/api/users/kol_1/timeline?limit=1.5", 422, "bad_field"),
        ("GET", "/api/users/kol_1/timeline?limit=%D9%A3", 422, "bad_field"),
        ("GET", f"/api/users/kol_1/timeline?limit={MAX_ENTRIES + 1}", 422, "bad_field"),
        ("GET", f"/api/users/kol_1/timeline?limit={'9' * 5000}", 422, "bad_field"),
    ],
)
def test_what_is_asked_wrongly_has_the_protocols_error_and_keeps_the_connection(
    method: str, target: str, status: int, code: str
) -> None:
    async def story(scene: Scene) -> None:
        async with scene.connected() as client:
            client.send(request(target, method))
            got, body, headers = await client.answer()
            assert (got, body["error"]["code"]) == (status, code)
            if status == 405:
                assert headers["allow"] == "GET, HEAD"
            assert scene.asked == []
            client.send(request("/healthz"))
            assert (await client.answer())[0] == 200

    run(story)


def test_a_head_is_answered_like_a_get_without_its_body() -> None:
    async def story(scene: Scene) -> None:
        for target, reason, status in (("/healthz", None, 200), ("/readyz", "draining", 503), ("/nowhere", None, 404)):
            scene.reason = reason
            async with scene.connected() as client:
                client.send(request(target))
                _, body, headers = await client.answer()
                client.send(request(target, "HEAD") + request("/healthz"))
                async with asyncio.timeout(DEADLINE):
                    head = (await client.reader.readuntil(b"\r\n\r\n")).decode()
                assert head.startswith(f"HTTP/1.1 {status} ")
                assert f"\r\nContent-Length: {headers['content-length']}\r\n" in head
                assert body
                assert (await client.answer())[:2] == (200, {"status": "ok"})  # it comes right behind the head

    run(story)


def test_whoever_asks_before_he_sends_a_body_is_told_to_send_it() -> None:
    async def story(scene: Scene) -> None:
        async with scene.connected() as client:
            client.send(request("/healthz", more="Expect: 100-continue\r\nContent-Length: 4\r\n"))
            async with asyncio.timeout(DEADLINE):
                assert await client.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
            client.send(b"body")
            assert (await client.answer())[0] == 200

    run(story)


def test_guessers_are_told_to_wait_and_whoever_has_the_key_is_not() -> None:
    async def story(scene: Scene) -> None:
        path = "/api/users/kol_1/timeline"
        async with scene.connected() as client:
            statuses = []
            for number in range(GUESSES + 50):
                client.send(request(path, key=f"guess-{number}"))
                statuses.append((await client.answer())[0])
            assert set(statuses[:GUESSES]) == {401}
            assert statuses[-1] == 429
        assert (await scene.ask(path))[0] == 200

    run(story)


# Bytes.


def test_requests_in_one_piece_or_byte_by_byte_are_answered_in_order() -> None:
    async def story(scene: Scene) -> None:
        async with scene.connected() as client:
            targets = ["/healthz", "/nowhere", "/api/users/kol_1/timeline", "/readyz"] * 30
            stream = b"".join(request(target) for target in targets)
            client.send(stream)
            expected = [200, 404, 200, 200] * 30
            assert [(await client.answer())[0] for _ in targets] == expected
            for at in range(200):
                client.send(stream[at : at + 1])
                await client.writer.drain()
                await asyncio.sleep(0)
            client.send(stream[200:])
            assert [(await client.answer())[0] for _ in targets] == expected

    run(story)


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 500, 400),
        (b"GET /healthz HTTP/1.0\r\nHost: x\r\n\r\n", 400),
        (b"GET /healthz HTTP/1.1\r\n\r\n", 400),
        (b"GET /healthz HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n", 400),
        (b"GET /healthz HTTP/1.1\r\nHost: x\r\nX: " + b"y" * 40_000, 431),
        (b"GET /healthz HTTP/1.1\r\nHost: x\r\n" + b"X: y\r\n" * 70 + b"\r\n", 431),
        (b"GET /" + b"x" * 20_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", 414),
        (b"POST /healthz HTTP/1.1\r\nHost: x\r\nContent-Length: 2000\r\n\r\n" + b"x" * 2000, 413),
        (b"GET /healthz HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999999999\r\n\r\n", 400),
        (b"GET /healthz HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip\r\n\r\n", 400),
        (b"GET /healthz HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", 400),
    ],
)
def test_what_is_no_request_gets_its_error_and_the_end_while_others_are_served(data: bytes, status: int) -> None:
    async def story(scene: Scene) -> None:
        async with scene.connected() as bystander, scene.connected() as client:
            client.send(request("/healthz") + data)
            answers = [await client.answer()]
            if answers[0][0] == 200:
                answers.append(await client.answer())
            got, body, headers = answers[-1]
            assert (got, set(body["error"])) == (status, {"code", "message"})
            assert headers["connection"] == "close"
            assert await client.rest() == b""
            bystander.send(request("/healthz"))
            assert (await bystander.answer())[0] == 200

    run(story)


def test_an_upgrade_and_a_close_are_answered_and_end_the_connection() -> None:
    async def story(scene: Scene) -> None:
        upgrade = "Connection: Upgrade\r\nUpgrade: websocket\r\n"
        for more, behind in (("Connection: close\r\n", b""), (upgrade, b"what comes behind it")):
            async with scene.connected() as client:
                client.send(request("/healthz", more=more) + behind)
                assert (await client.answer())[0] == 200
                assert await client.rest() == b""

    run(story)


def test_a_client_that_ended_its_half_gets_its_answers() -> None:
    async def story(scene: Scene) -> None:
        async with scene.connected() as client:
            client.send(request("/healthz") * 40)
            client.writer.write_eof()
            assert [(await client.answer())[0] for _ in range(40)] == [200] * 40
            assert await client.rest() == b""
        async with scene.connected() as client:
            client.send(request("/healthz")[:-1])
            client.writer.write_eof()
            assert await client.rest() == b""

    run(story)


def test_an_error_arrives_although_the_rest_of_the_body_is_still_on_its_way() -> None:
    async def story(scene: Scene) -> None:
        async with scene.connected() as client:
            head = b"POST /healthz HTTP/1.1\r\nHost: x\r\nContent-Length: 500000\r\n\r\n"
            client.send(head + b"x" * 500_000)
            assert (await client.answer())[0] == 413
            assert await client.rest() == b""

    run(story)


# Time, room, and those who do not read.


def test_a_request_that_is_not_complete_in_time_is_cut_off_however_it_drips() -> None:
    async def story(scene: Scene) -> None:
        loop = asyncio.get_running_loop()
        async with scene.connected() as silent, scene.connected() as slow:
            began_s = loop.time()

            async def drip() -> None:
                for byte in request("/healthz"):
                    slow.send(bytes([byte]))
                    await asyncio.sleep(0.05)

            dripping = asyncio.create_task(drip())
            assert await silent.rest() in (b"", b"reset")
            assert await slow.rest() in (b"", b"reset")
            assert 0.25 <= loop.time() - began_s < DEADLINE
            dripping.cancel()

    run(story, request_time=0.3)


def test_the_time_begins_anew_with_each_answer() -> None:
    async def story(scene: Scene) -> None:
        async with scene.connected() as client:
            for _ in range(6):
                client.send(request("/healthz"))
                assert (await client.answer())[0] == 200
                await asyncio.sleep(0.15)

    run(story, request_time=0.5)


def test_over_the_number_of_connections_one_is_told_so_and_room_comes_back() -> None:
    async def story(scene: Scene) -> None:
        async with contextlib.AsyncExitStack() as stack:
            for _ in range(CONNECTIONS):
                client = await stack.enter_async_context(scene.connected())
                client.send(request("/healthz"))
                assert (await client.answer())[0] == 200
            async with scene.connected() as one_more:
                assert (await one_more.answer())[0] == 503
                assert await one_more.rest() == b""
            assert len(scene.face.connections) == CONNECTIONS
        async with asyncio.timeout(DEADLINE):
            while scene.face.connections:
                await asyncio.sleep(0)
        assert (await scene.ask("/healthz"))[0] == 200

    run(story)


def test_who_does_not_read_his_answers_is_not_read_from_and_goes_when_his_time_is_over() -> None:
    async def story(scene: Scene) -> None:
        scene.entries = [ENTRY] * MAX_ENTRIES
        ask = request(f"/api/users/kol_1/timeline?limit={MAX_ENTRIES}")
        async with scene.connected() as bystander:
            raw = socket.socket()
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            raw.setblocking(False)
            loop = asyncio.get_running_loop()
            await loop.sock_connect(raw, ("127.0.0.1", scene.port))
            flood = asyncio.create_task(loop.sock_sendall(raw, ask * 20_000))
            until_s = loop.time() + 0.5
            while loop.time() < until_s:
                bystander.send(request("/healthz"))
                assert (await bystander.answer())[0] == 200
            # A few answers fill the socket's buffer; of 20,000 the rest was never looked at.
            assert 0 < len(scene.asked) < 200
            async with asyncio.timeout(DEADLINE):
                while len(scene.face.connections) > 1:
                    bystander.send(request("/healthz"))
                    assert (await bystander.answer())[0] == 200
                with contextlib.suppress(ConnectionError):
                    await flood
            raw.close()

    run(story, request_time=1.0)


def test_a_fault_of_ours_costs_the_one_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(scene: Scene) -> None:
        scene.entries = None  # type: ignore[assignment]
        async with scene.connected() as client:
            client.send(request("/api/users/kol_1/timeline"))
            assert await client.rest() in (b"", b"reset")
        assert (await scene.ask("/healthz"))[0] == 200

    told: list[str] = []
    monkeypatch.setattr(admin.LOG, "exception", told.append)
    run(story)
    assert told == ["fault"]
