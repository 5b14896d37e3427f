"""Arbitrary bytes, arbitrarily cut, against a real worker on a real socket.

Whatever comes: nothing is raised, every answer is one of the protocol's, the connection goes on or is closed with the
code that the bytes deserve, and when everybody is gone nothing is left of them.
"""

import asyncio
import gc
import logging
import socket
import time
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastpresence._native.framing import BINARY, CLOSE, PING, PONG, TEXT, Frame, FrameError, Stream, build_masked
from fastpresence.codec import JSON, MSGPACK, Codec
from fastpresence.http import PHRASES
from fastpresence.messages import Error
from fastpresence.settings import LimitsSettings
from fastpresence.worker.peer import Peer
from tests.support.world import API_KEY, World

ERROR_CODES = {
    "bad_frame", "bad_field", "unknown_type", "unauthorized", "forbidden", "not_online", "user_offline", "too_many",
    "rate_limited", "unavailable", "user_busy", "unknown_call",
}  # fmt: skip
#: What a peer may be closed with though its bytes are good frames: goodbye, wrong kind of frame, over the rate.
OWN_CODES = {1000, 1003, 4029}
FRAME_SIZE = 4_096
DEADLINE_S = 10.0
END = b"the end"
KEY = b"mask"


class Faults(logging.Handler):
    """Everything that was logged as an error."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.found.append(self.format(record))


class Watched(World):
    """One whose faults are noticed."""

    def __init__(self) -> None:
        self.faults = Faults()
        logging.getLogger("fastpresence").addHandler(self.faults)
        super().__init__(limits=LimitsSettings(frame_size=FRAME_SIZE, message_size=FRAME_SIZE, watches=20, rooms=3))
        self.loop.set_exception_handler(lambda _, context: self.faults.found.append(str(context)))

    async def until(self, condition: Any) -> None:
        end_s = time.monotonic() + DEADLINE_S
        while not condition():
            assert time.monotonic() < end_s, self.worker.engine.stats()
            await asyncio.sleep(0.0005)

    async def send(self, client: socket.socket, data: bytes, chunks: list[int]) -> None:
        """In chunks of these sizes, the rest at once; the worker has a turn after each."""
        at = 0
        for size in [*chunks, len(data)]:
            if at >= len(data):
                return
            try:
                await self.loop.sock_sendall(client, data[at : at + size])
            except OSError:
                return  # it is closed already
            at += size
            await asyncio.sleep(0)

    def close(self) -> None:
        super().close()
        logging.getLogger("fastpresence").removeHandler(self.faults)


@pytest.fixture(scope="module")
def world() -> Iterator[Watched]:
    world = Watched()
    yield world
    # Everybody has gone: no peer is left, nobody watches or hears anything any more.
    gc.collect()
    assert [each for each in gc.get_objects() if type(each) is Peer] == []
    assert world.worker.service.audience.watchers == {}
    assert not any(room.subscribers for room in world.worker.service.audience.rooms.values())
    world.close()


def predicted(data: bytes) -> tuple[int | None, list[Frame]]:
    """(the close code that these bytes deserve or None, the frames before that), by the frame kernel alone."""
    stream = Stream(frame_size=FRAME_SIZE, message_size=FRAME_SIZE)
    frames: list[Frame] = []
    for at in range(len(data)):
        try:
            frames += stream.feed(data[at : at + 1])
        except FrameError as error:
            return error.close_code, frames
        if frames and frames[-1].opcode == CLOSE:
            payload = frames[-1].payload
            return (int.from_bytes(payload[:2]) if len(payload) > 1 else 1002 if payload else 1005), frames
    return None, frames


async def story(world: Watched, user_id: str, codec: Codec, room: str | None, data: bytes, chunks: list[int]) -> None:
    """One client's life: handshake, these bytes, a ping to see that all were taken, the end."""
    worker = world.worker
    client = await world.connect()
    try:
        rest = await world.upgrade(client, world.request(user_id, user_id.partition("_")[0], codec, room=room))
        sent = data + build_masked(PING, END, KEY)
        deserved, frames = predicted(sent)
        answered = deserved is None and frames[-1:] == [Frame(PING, END)]
        received = world.stat("bytes_received")
        stream = Stream(masked=False, frame_size=1 << 24, message_size=1 << 24)
        came = stream.feed(rest)
        await world.send(client, sent, chunks)
        ended = False

        async def read() -> None:
            nonlocal ended
            try:
                got = await world.loop.sock_recv(client, 65_536)
            except ConnectionResetError:
                got = b""
            ended = not got
            came.extend(stream.feed(got))

        def done() -> bool:
            return ended or any(frame.opcode == CLOSE for frame in came) or Frame(PONG, END) in came

        end_s = time.monotonic() + DEADLINE_S
        while not done():
            if not answered and deserved is None and world.stat("bytes_received") >= received + len(sent):
                break  # the last frame is not whole: nothing more will come
            assert time.monotonic() < end_s, "neither answered nor closed"
            try:
                await asyncio.wait_for(read(), 0.02)
            except TimeoutError:
                continue
        check(codec, came, deserved, answered=answered)
        if came[-1].opcode == CLOSE:
            await world.send(client, build_masked(CLOSE, came[-1].payload[:2], KEY), [])
    finally:
        client.close()
    await world.until(lambda: world.stat("connections") == 0)
    await asyncio.sleep(0)
    assert world.faults.found == []
    assert (world.stat("open"), world.stat("lagging")) == (0, 0)
    assert not worker.peers
    assert not any(worker._variants)
    assert worker.engine.owners() == []
    # Nobody is present without a connection and without a deadline: a detached session has one.
    for session in worker.service.sessions_of(user_id):
        assert session.connection is None


def check(codec: Codec, came: list[Frame], deserved: int | None, *, answered: bool) -> None:
    """Every frame is one of the protocol's, and the end is the one that the bytes deserve."""
    for number, frame in enumerate(came):
        if frame.opcode == CLOSE:
            assert number == len(came) - 1
            code = int.from_bytes(frame.payload[:2]) if frame.payload else 1005
            # A close payload that is wrong in itself is answered with 1002 or 1007.
            assert code in OWN_CODES or (deserved is not None and code in {deserved, 1002, 1007})
        elif frame.opcode != PONG:
            assert frame.opcode == (TEXT if codec.is_text else BINARY)
            answer = codec.decode_answer(frame.payload)
            assert not isinstance(answer, Error) or answer.code in ERROR_CODES
    if answered:
        assert came[-1] == Frame(PONG, END) or came[-1].opcode == CLOSE or Frame(PONG, END) in came


users = st.sampled_from(["kol_1", "user_1", "user_2"])
codecs = st.sampled_from([JSON, MSGPACK])
rooms = st.sampled_from([None, "r1"])
sizes = st.lists(st.integers(1, 300), max_size=30)

names = st.sampled_from(["kol_1", "user_1", "user_2", "nobody"] * 8 + ["", "not a name", "x" * 129])
ids = st.none() | st.integers(-(2**63), 2**64 - 1) | st.text(max_size=70) | st.booleans()
texts = st.text(max_size=20)
anything: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False, allow_infinity=False)
    | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=5,
)  # fmt: skip
right: dict[str, st.SearchStrategy[Any]] = {
    "id": ids,
    "user_id": names,
    "user_type": st.sampled_from(["kol", "user"]),
    "timestamp": st.integers(0, 2**31),
    "status": st.sampled_from(["online", "busy", "away", "offline", "sleepy"]),
    "device": st.sampled_from(["phone", "tablet", ""]),
    "attempt": st.integers(-1, 10),
    "user_ids": st.lists(names, max_size=4),
    "rooms": st.lists(st.sampled_from(["r1", "r2", "r3", "r4"]), max_size=4),
    "cursor": texts,
    "to_user_id": names,
    "from_user_id": names,
    "message": texts,
    "token": texts,
    "call_id": st.sampled_from(["c1", "c2", "c3", ""]),
    "video": st.booleans(),
    "audio": st.booleans(),
    "data": texts,
}
#: What a request of each kind says when it is right; the others may be added.
usual = {
    "user_online": ["status", "device"],
    "heartbeat": ["id"],
    "status_change": ["status", "id"],
    "user_offline": ["id"],
    "request_online_status": ["user_ids", "id"],
    "subscribe": ["user_ids", "rooms"],
    "unsubscribe": ["user_ids", "rooms"],
    "message": ["to_user_id", "message"],
    "token_refresh": ["token"],
    "call": ["call_id", "to_user_id", "video", "audio"],
    "call_accept": ["call_id"],
    "call_reject": ["call_id"],
    "call_cancel": ["call_id"],
    "call_end": ["call_id"],
    "call_signal": ["call_id", "data"],
}
kinds = st.sampled_from([
    "user_online", "user_online", "user_online", "heartbeat", "status_change", "status_change", "message", "message",
    "user_offline", "request_online_status", "subscribe",
    "subscribe", "unsubscribe", "message", "token_refresh", "", "welcome",
    "call", "call", "call_accept", "call_reject", "call_cancel", "call_end", "call_signal",
])  # fmt: skip


@st.composite
def requests(draw: st.DrawFn) -> dict[str, Any]:
    """An object that is often a request: right fields mostly, sometimes anything in their place."""
    frame: dict[str, Any] = {"type": draw(kinds)}
    for name in usual.get(frame["type"], ()):
        frame[name] = draw(right[name])
    if draw(st.integers(0, 3)) == 3:
        for name in draw(st.lists(st.sampled_from(sorted(right)), max_size=3)):
            frame[name] = draw(anything | right[name])
            if draw(st.booleans()):
                del frame[name]
    return frame


def cut(draw: st.DrawFn, opcode: int, payload: bytes) -> bytes:
    """One message in one to three frames."""
    cuts = sorted(draw(st.lists(st.integers(0, len(payload)), max_size=2)))
    parts = [payload[a:b] for a, b in zip([0, *cuts], [*cuts, len(payload)], strict=True)]
    return b"".join(
        build_masked(opcode if number == 0 else 0, part, KEY, fin=number == len(parts) - 1)
        for number, part in enumerate(parts)
    )


@st.composite
def sayings(draw: st.DrawFn, codec: Codec) -> bytes:
    """A message that leaves the connection open: mostly a request, else another object, or bytes that are none."""
    choice = draw(st.integers(0, 9))
    if choice == 9:
        return build_masked(draw(st.sampled_from([PING, PONG])), draw(st.binary(max_size=125)), KEY)
    payload = codec.encode(draw(requests() if choice < 7 else anything))
    if choice == 8:
        payload = payload[: draw(st.integers(0, 20))] + draw(st.binary(max_size=20)).replace(b"\xff", b"")
    if codec.is_text:
        payload = payload.decode(errors="replace").encode()
    return cut(draw, TEXT if codec.is_text else BINARY, payload)


@st.composite
def breaches(draw: st.DrawFn, codec: Codec) -> bytes:
    """What ends a connection: a close, bytes that are no frame, too much, the wrong kind."""
    choice = draw(st.integers(0, 5))
    if choice == 0:
        return build_masked(CLOSE, draw(st.sampled_from([b"", b"\x03\xe8", b"\x03\xe9", b"\x0f\xa8bye"])), KEY)
    if choice == 1:
        return build_masked(CLOSE, draw(st.binary(max_size=125)), KEY)
    if choice == 2:
        return draw(st.binary(min_size=1, max_size=60))
    if choice == 3:
        return build_masked(BINARY, b"x" * (FRAME_SIZE + 1), KEY)
    if choice == 4:
        return cut(draw, TEXT, draw(st.binary(max_size=200)))
    return cut(draw, BINARY if codec.is_text else TEXT, codec.encode({"type": "heartbeat"}))


CALM = settings(
    deadline=None,
    max_examples=200,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)


@CALM
@given(data=st.data(), user_id=users, codec=codecs, room=rooms, chunks=sizes)
def test_whatever_a_peer_says_it_is_answered_by_the_protocol_and_leaves_nothing(
    world: Watched, data: st.DataObject, user_id: str, codec: Codec, room: str | None, chunks: list[int]
) -> None:
    said = b"".join(data.draw(st.lists(sayings(codec), min_size=3, max_size=25)))
    if data.draw(st.booleans()):
        said += data.draw(breaches(codec)) + b"".join(data.draw(st.lists(sayings(codec), max_size=3)))
    world.loop.run_until_complete(story(world, user_id, codec, room, said, chunks))


@CALM
@given(said=st.binary(max_size=400), user_id=users, codec=codecs, chunks=sizes)
def test_any_bytes_behind_the_handshake_do_no_harm(
    world: Watched, said: bytes, user_id: str, codec: Codec, chunks: list[int]
) -> None:
    world.loop.run_until_complete(story(world, user_id, codec, None, said, chunks))


@pytest.mark.parametrize("codec", [JSON, MSGPACK], ids=["json", "msgpack"])
def test_one_who_says_goodbye_and_goes_on_in_the_same_breath_is_gone(world: Watched, codec: Codec) -> None:
    """Found by reading: everything below comes up in one batch, and the peer is closed by the second frame of it."""
    opcode = TEXT if codec.is_text else BINARY
    breath = [{"type": "user_online"}, {"type": "user_offline"}, {"type": "user_online"}, {"type": "heartbeat"}]
    said = b"".join(build_masked(opcode, codec.encode(frame), KEY) for frame in breath)
    for end in (b"", build_masked(CLOSE, b"\x03\xe8", KEY), build_masked(3, b"", KEY)):
        world.loop.run_until_complete(story(world, "kol_goodbye", codec, None, said + end, []))
        assert world.worker.service.get_user_status("kol_goodbye").status == "offline"


# HTTP.

request_parts = st.sampled_from([
    b"GET ", b"POST ", b"HEAD ", b"/", b"/ws", b"/api/online-status/", b"kol_1", b"poll",
    b"users/", b"/status", b"/messages", b"/sessions", b"rooms/", b"tokens/revoke", b"OPTIONS ", b"DELETE ",
    b"Origin: http://h\r\n", b"query", b"rts-token", b"?token=x",
    b" HTTP/1.1\r\n", b" HTTP/1.0\r\n", b"Host: h\r\n", b"Connection: Upgrade\r\n", b"Connection: close\r\n",
    b"Upgrade: websocket\r\n", b"Sec-WebSocket-Version: 13\r\n", b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n",
    b"Content-Length: 3\r\n", b"Content-Length: 99999999\r\n", b"Transfer-Encoding: chunked\r\n",
    b"Expect: 100-continue\r\n",
    b"Authorization: Bearer " + API_KEY.encode() + b"\r\n", b"\r\n", b"\r\n", b"{}", b"3\r\nabc\r\n", b"0\r\n\r\n",
    b'{"user_ids":["kol_1"]}', b"\0", b" ", b"\r", b"\n", b"%", b"\xff",
])  # fmt: skip
whole_requests = st.sampled_from([
    b"GET /api/online-status/kol_1 HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer " + API_KEY.encode() + b"\r\n\r\n",
    b"POST /api/online-status/query HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\n{}",
    b"GET /ws HTTP/1.1\r\nHost: h\r\n\r\n",
    b"GET /nowhere HTTP/1.1\r\nHost: h\r\n\r\n",
])  # fmt: skip


@CALM
@given(
    said=st.lists(whole_requests, max_size=3).map(b"".join).flatmap(
        lambda good: (st.lists(request_parts, max_size=25).map(b"".join) | st.binary(max_size=300)).map(
            lambda bad: good + bad
        )
    ),
    chunks=sizes,
)  # fmt: skip
def test_whatever_is_said_instead_of_a_request_is_answered_by_the_protocol(
    world: Watched, said: bytes, chunks: list[int]
) -> None:
    async def tell() -> None:
        client = await world.connect()
        try:
            received = world.stat("bytes_received")
            await world.send(client, said, chunks)
            await world.until(
                lambda: world.stat("bytes_received") >= received + len(said) or not world.stat("connections")
            )
            client.shutdown(socket.SHUT_WR)
            answer = b""
            while got := await asyncio.wait_for(world.loop.sock_recv(client, 65_536), DEADLINE_S):
                answer += got
        except (ConnectionResetError, BrokenPipeError, OSError):
            answer = b""
        finally:
            client.close()
        while answer:
            head, separator, answer = answer.partition(b"\r\n\r\n")
            assert separator
            status, *lines = head.split(b"\r\n")
            assert int(status.split()[1]) in PHRASES
            assert int(status.split()[1]) < 500
            headers = dict(line.split(b": ", 1) for line in lines)
            length = int(headers[b"Content-Length"])
            assert len(answer) >= length
            answer = answer[length:]
        await world.until(lambda: world.stat("connections") == 0)
        assert world.faults.found == []
        assert world.worker.engine.owners() == []

    world.loop.run_until_complete(tell())
