"""A heartbeat that the engine answers by itself is one that Python would have answered the same way.

First what is taught: whatever is like a plain beat is a beat of the same author. Then the whole worker: beats in every
disguise, each after a silence, get the answers that the codec and the protocol say, learnt or not.
"""

import asyncio
import contextlib
import json
import time
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from fastpresence._native.framing import BINARY, TEXT, Stream, build_masked
from fastpresence.codec import JSON, MSGPACK, Codec
from fastpresence.messages import Heartbeat
from fastpresence.settings import LimitsSettings
from fastpresence.worker.beats import likeness
from tests.support.world import World

KEY = b"mask"
USER = "user_1"
DEADLINE_S = 10.0
#: Silence after which the engine may answer, with the limits below; and a little more.
QUIET_S = 0.003

codecs = st.sampled_from([JSON, MSGPACK])
stamps = st.integers(-1, 20) | st.integers(1_600_000_000, 2**32 - 1) | st.integers(-(2**63), 2**63 - 1)
names = st.sampled_from([USER, USER, USER, "user_2", "timestamp", "1700000000", None])
tricks = st.sampled_from([
    b'{"type":"heartbeat","timestamp":5,"timestamp":1700000000}',
    b'{"type":"heartbeat","time\\u0073tamp":1700000000}',
    b'{"type":"heartbeat","x":{"timestamp":17},"id":4}',
    b'{"type":"heartbeat","x":"\\"timestamp\\":1700000000,"}',
    b'{"type":"heartbeat","\\"timestamp":1700000000}',
    b'{"type":"heartbeat","id":1,"timestamp":1700000000}',
    b'{"type":"heartbeat","id":null,"timestamp":1700000000}',
    b'{"type":"heartbeat","timestamp":1.7e9}',
    b'{"type":"heartbeat","timestamp":1700000000.0}',
    b'{"type":"heartbeat","timestamp":null}',
    b'{"type":"heartbeat" , "timestamp" :\n1700000000\t}',
    b'{"timestamp":1700000000,"type":"heartbeat"}',
    b'{"type":"heartbeat"}',
    b"\x82\xa4type\xa9heartbeat\xa9timestamp\xce\x65\x53\xf1\x00",
    b"\x83\xa4type\xa9heartbeat\xa9timestamp\xce\x65\x53\xf1\x00\xa2id\xc0",
    b"\x83\xa4type\xa9heartbeat\xa1x\xaf\xa9timestamp\xce\xa2id\xc0\xa9timestamp\xc0",
    b"\x84\xa4type\xa9heartbeat\xa9timestamp\xce\x65\x53\xf1\x00\xa9timestamp\x05\xa7user_id\xa6user_1",
    b"\xde\x00\x02\xa4type\xa9heartbeat\xa9timestamp\xce\x65\x53\xf1\x00",
    b"\x82\xa4type\xa9heartbeat\xd9\x09timestamp\xce\x65\x53\xf1\x00",
    b"\x82\xa4type\xa9heartbeat\xa9timestamp\xcf\x00\x00\x00\x00\x65\x53\xf1\x00",
])  # fmt: skip


@st.composite
def beats(draw: st.DrawFn, codec: Codec) -> bytes:
    """A heartbeat as some client might write it, seldom a plain one with something wrong."""
    fields: dict[str, Any] = {"type": "heartbeat"}
    for name, values in {"user_id": names, "user_type": st.sampled_from(["user", "kol"]), "timestamp": stamps}.items():
        if draw(st.integers(0, 3)):
            fields[name] = draw(values)
    if draw(st.integers(0, 9)) == 0:
        fields["id"] = draw(st.none() | st.integers(0, 3) | st.text(max_size=3))
    if draw(st.integers(0, 9)) == 0:
        fields[draw(st.text(max_size=5))] = draw(st.none() | st.integers() | st.text(max_size=20) | st.just([1, {}]))
    fields = dict(draw(st.permutations(list(fields.items()))))
    if not codec.is_text:
        try:
            return msgspec.msgpack.encode(fields)
        except OverflowError:
            return msgspec.msgpack.encode({"type": "heartbeat"})
    text = json.dumps(fields, separators=draw(st.sampled_from([(",", ":"), (", ", ": "), (" ,\t", " :\n")])))
    return text.encode("utf-8", "replace")


def read(codec: Codec, data: bytes) -> Any:
    try:
        return codec.decode_request(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


@st.composite
def alike(draw: st.DrawFn, data: bytes, start: int, end: int, digits: bool) -> bytes:
    """Another message that the engine would take for this one."""
    size = end - start
    if digits:
        middle = str(draw(st.integers(10 ** (size - 1), 10**size - 1))).encode()
    else:
        middle = draw(st.binary(min_size=size, max_size=size))
    return data[:start] + middle + data[end:]


@settings(deadline=None, max_examples=500)
@given(data=st.data(), codec=codecs)
def test_whatever_is_like_a_beat_is_a_beat_of_the_same_author(data: st.DataObject, codec: Codec) -> None:
    said = data.draw(beats(codec) | tricks)
    beat = read(codec, said)
    if not isinstance(beat, Heartbeat):
        return
    found = likeness(codec, said, beat)
    if found is None:
        return
    start, end, digits = found
    assert 0 <= start <= end <= len(said) <= 512
    for _ in range(5):
        other = read(codec, said if start == end else data.draw(alike(said, start, end, digits)))
        assert isinstance(other, Heartbeat)
        assert (other.id, other.user_id, other.user_type) == (None, beat.user_id, beat.user_type)


@pytest.mark.parametrize("codec", [JSON, MSGPACK], ids=["json", "msgpack"])
def test_what_every_client_sends_is_learnt(codec: Codec) -> None:
    for beat in (
        Heartbeat(user_id=USER, user_type="user", timestamp=1_700_000_000),
        Heartbeat(timestamp=1_700_000_000),
        Heartbeat(),
    ):
        said = codec.encode(beat)
        found = likeness(codec, said, beat)
        assert found is not None
        start, end, digits = found
        if beat.timestamp is not None:
            assert said[start:end] == (b"1700000000" if codec.is_text else (1_700_000_000).to_bytes(4))
            assert digits is codec.is_text


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    # Its engine may answer after a moment's silence.
    world = World(limits=LimitsSettings(rate=1000, burst=1))
    yield world
    world.close()


async def talk(world: World, codec: Codec, sayings: list[bytes]) -> list[Any]:
    """The answers to these, each said after a silence."""
    client = await world.connect()
    stream = Stream(masked=False, frame_size=1 << 20, message_size=1 << 20)
    came: list[Any] = []

    async def hear(count: int) -> None:
        while len(came) < count:
            got = await asyncio.wait_for(world.loop.sock_recv(client, 65_536), DEADLINE_S)
            assert got, "closed"
            came.extend(codec.decode_answer(frame.payload) for frame in stream.feed(got))

    try:
        rest = await world.upgrade(client, world.request(USER, "user", codec, query="&public=0"))
        came.extend(codec.decode_answer(frame.payload) for frame in stream.feed(rest))
        await hear(1)
        for number, said in enumerate(sayings):
            await asyncio.sleep(QUIET_S)
            await world.loop.sock_sendall(client, build_masked(TEXT if codec.is_text else BINARY, said, KEY))
            await hear(number + 2)
    finally:
        client.close()
    return came[1:]


def due(codec: Codec, said: bytes) -> tuple[str, Any]:
    """What the protocol says: kind of answer, `reply_to`."""
    beat = read(codec, said)
    if not isinstance(beat, Heartbeat):
        raw: Any = None
        with contextlib.suppress(msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raw = codec.decode_any(said)
        asked = raw.get("id") if isinstance(raw, dict) else None
        is_id = (isinstance(asked, int) and -(2**53) <= asked <= 2**53) or (isinstance(asked, str) and len(asked) <= 64)
        return "Error", asked if is_id and not isinstance(asked, bool) else None
    own = beat.user_id in (None, USER) and beat.user_type in (None, "user")
    return "HeartbeatAck" if own else "Error", beat.id


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), codec=codecs)
@example(data=None, codec=JSON)
@example(data=None, codec=MSGPACK)
def test_beats_get_the_answers_they_deserve_whoever_gives_them(
    world: World, data: st.DataObject | None, codec: Codec
) -> None:
    plain = codec.encode(Heartbeat(user_id=USER, user_type="user", timestamp=1_700_000_000))
    sayings = [plain, plain.replace(b"1700", b"1800"), plain.replace(b"user_1", b"user_2"), plain]
    if data is not None:
        said = data.draw(beats(codec) | tricks)
        sayings = [said, said]
        for _ in range(4):  # the same but for a few bytes, wherever they are
            changed = bytearray(said)
            for _ in range(data.draw(st.integers(0, 2))):
                at = data.draw(st.integers(0, len(said) - 1))
                changed[at] = data.draw(st.sampled_from(b"0123456789") if codec.is_text else st.integers(0, 255))
            sayings += [bytes(changed), said]
    if codec.is_text:
        sayings = [said.decode("utf-8", "replace").encode() for said in sayings]
    begun = int(time.time())
    answered = world.stat("answered")
    answers = world.loop.run_until_complete(talk(world, codec, sayings))
    for said, answer in zip(sayings, answers, strict=True):
        assert (type(answer).__name__, answer.reply_to) == due(codec, said)
        if hasattr(answer, "timestamp"):
            assert begun <= answer.timestamp <= time.time()
    if data is None:
        assert world.stat("answered") >= answered + 2
