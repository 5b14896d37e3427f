"""Both codecs: every frame survives the way there and back, and every bad one is explained without repeating it."""

from typing import Any

import msgspec
import pytest
from msgspec import UNSET

from fastpresence.codec import CODECS, JSON, MSGPACK, Codec, request_id
from fastpresence.errors import BadField, BadFrame, RequestError, UnknownType
from fastpresence.messages import (
    Ack,
    ClientFrame,
    Draining,
    Error,
    Heartbeat,
    HeartbeatAck,
    Message,
    RequestOnlineStatus,
    RoomOccupancy,
    SendMessage,
    ServerFrame,
    StatusChange,
    StatusEntry,
    Subscribe,
    TokenExpiring,
    TokenRefresh,
    Unsubscribe,
    UserOffline,
    UserOnline,
    UserOnlineStatus,
    Welcome,
)

codecs = pytest.mark.parametrize("codec", [JSON, MSGPACK], ids=["json", "msgpack"])


def encode(codec: Codec, value: object) -> bytes:
    """Anything at all, in the codec's format."""
    return codec.encode(value)


def explained(codec: Codec, data: bytes) -> tuple[RequestError, int | str | None]:
    """What the server says about a frame that it does not take."""
    try:
        frame = codec.decode_request(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        return codec.explain(data, error)
    raise AssertionError(f"taken as {frame}")


def test_the_subprotocols_have_the_protocol_s_names_and_json_is_the_default() -> None:
    assert list(CODECS) == ["fastpresence.v1.json", "fastpresence.v1.msgpack"]
    assert [codec.is_text for codec in CODECS.values()] == [True, False]


REQUESTS: list[ClientFrame] = [
    UserOnline(id=1, user_id="u", user_type="user", timestamp=1, status="busy", device="phone", attempt=3),
    Heartbeat(),
    StatusChange(status="away"),
    UserOffline(id="x" * 64),
    RequestOnlineStatus(user_ids=["a", "b"]),
    Subscribe(user_ids=["a"], rooms=["r"], cursor="e~w~1"),
    Unsubscribe(rooms=["r"]),
    SendMessage(to_user_id="a", message="ünï 😀", from_user_id="b"),
    TokenRefresh(token="t"),
]
ENTRY = StatusEntry("kol_1", "kol", "online", True, 1_700_000_000, 2**53 - 1)
ANSWERS: list[ServerFrame] = [
    Welcome("s", "u", "user", 30, 60, 1_700_000_000, "e", 1_700_000_000),
    Ack(1),
    Ack("a", delivered=0),
    Ack(2**53, expires_at=1),
    Error("bad_field", "status: missing", 7),
    HeartbeatAck(1),
    UserOnlineStatus([ENTRY, StatusEntry("u", "", "offline", False, None, 0, left=True)], full=True, cursor="c"),
    UserOnlineStatus([], full=False, more=True, room="r", reply_to=1),
    RoomOccupancy("r", 1001),
    Message("a", "b", "text", 1),
    TokenExpiring(1),
    Draining(0),
]


@codecs
@pytest.mark.parametrize("frame", REQUESTS, ids=lambda frame: type(frame).__name__)
def test_every_request_survives(codec: Codec, frame: ClientFrame) -> None:
    assert codec.decode_request(codec.encode(frame)) == frame


@codecs
@pytest.mark.parametrize("frame", ANSWERS, ids=lambda frame: type(frame).__name__)
def test_every_answer_survives(codec: Codec, frame: ServerFrame) -> None:
    assert codec.decode_answer(codec.encode(frame)) == frame


@codecs
def test_what_is_not_said_is_not_sent(codec: Codec) -> None:
    assert codec.decode_any(codec.encode(Ack(1))) == {"type": "ack", "reply_to": 1}
    assert codec.decode_any(codec.encode(Heartbeat())) == {"type": "heartbeat"}
    assert codec.decode_any(codec.encode(UserOnlineStatus([], full=False, cursor=UNSET))) == {
        "type": "user_online_status", "user_status": [], "full": False,
    }  # fmt: skip


@codecs
def test_what_has_a_value_to_say_is_sent_even_if_it_is_nothing(codec: Codec) -> None:
    entry = codec.decode_any(codec.encode(StatusEntry("u", "user", "offline", False, None, 0)))
    assert entry == {
        "user_id": "u", "user_type": "user", "status": "offline", "online": False, "last_seen": None, "rev": 0,
    }  # fmt: skip
    assert codec.decode_any(codec.encode(Ack(1, delivered=0)))["delivered"] == 0


@codecs
def test_unknown_fields_are_ignored(codec: Codec) -> None:
    data = encode(codec, {"type": "heartbeat", "id": 1, "new": {"deep": [1]}, "": None})
    assert codec.decode_request(data) == Heartbeat(id=1)


@codecs
def test_any_text_may_be_a_cursor_and_is_no_error(codec: Codec) -> None:
    for cursor in ("", "no cursor", "x" * 10_000):
        frame = codec.decode_request(encode(codec, {"type": "subscribe", "rooms": ["r"], "cursor": cursor}))
        assert frame == Subscribe(rooms=["r"], cursor=cursor)


@codecs
def test_the_fields_may_come_in_any_order(codec: Codec) -> None:
    assert codec.decode_request(encode(codec, {"id": 1, "status": "busy", "type": "status_change"})) == StatusChange(
        id=1, status="busy"
    )


ROOMS = [f"r{n}" for n in range(1001)]
BAD_FIELDS: list[tuple[dict[str, Any], str]] = [
    ({"type": "status_change"}, "status: missing"),
    ({"type": "status_change", "status": "sleepy"}, "status: not one of the allowed values"),
    ({"type": "status_change", "status": None}, "status: expected `str`, got `"),
    ({"type": "status_change", "status": 1}, "status: expected `str`, got `int`"),
    ({"type": "status_change", "status": ["busy"]}, "status: expected `str`, got `array`"),
    ({"type": "message", "message": "hi"}, "to_user_id: missing"),
    ({"type": "message", "to_user_id": "u"}, "message: missing"),
    ({"type": "message", "to_user_id": "u", "message": ""}, "message: expected `str` of length >= 1"),
    ({"type": "message", "to_user_id": "u", "message": "x" * 8193}, "message: expected `str` of length <= 8192"),
    ({"type": "message", "to_user_id": "a b", "message": "x"}, "to_user_id: 1 to 128 characters of A-Z a-z 0-9"),
    ({"type": "message", "to_user_id": "", "message": "x"}, "to_user_id: 1 to 128 characters of A-Z a-z 0-9"),
    ({"type": "message", "to_user_id": "a\n", "message": "x"}, "to_user_id: 1 to 128 characters of A-Z a-z 0-9"),
    ({"type": "message", "to_user_id": "x" * 129, "message": "x"}, "to_user_id: 1 to 128 characters of A-Z a-z 0-9"),
    ({"type": "user_online", "device": ""}, "device: expected `str` of length >= 1"),
    ({"type": "user_online", "device": "x" * 65}, "device: expected `str` of length <= 64"),
    ({"type": "user_online", "attempt": -1}, "attempt: expected `int` >= 0"),
    ({"type": "user_online", "attempt": 1.5}, "attempt: expected `int"),
    ({"type": "user_online", "user_id": 7}, "user_id: expected `str"),
    ({"type": "heartbeat", "timestamp": "now"}, "timestamp: expected `int"),
    ({"type": "heartbeat", "id": 2**53 + 1}, "id: expected `int` <= 9007199254740992"),
    ({"type": "heartbeat", "id": "x" * 65}, "id: expected `str` of length <= 64"),
    ({"type": "heartbeat", "id": True}, "id: expected `int"),
    ({"type": "heartbeat", "id": {}}, "id: expected `int"),
    ({"type": "request_online_status"}, "user_ids: missing"),
    ({"type": "request_online_status", "user_ids": []}, "user_ids: expected `array` of length >= 1"),
    ({"type": "request_online_status", "user_ids": ROOMS}, "user_ids: expected `array` of length <= 1000"),
    ({"type": "request_online_status", "user_ids": ["ok", "not ok"]}, "user_ids["),
    ({"type": "subscribe", "rooms": "r"}, "rooms: expected `array"),
    ({"type": "subscribe", "cursor": 7, "rooms": ["r"]}, "cursor: expected `str"),
    ({"type": "token_refresh", "token": ""}, "token: expected `str` of length >= 1"),
    ({"status": "busy"}, "type: missing"),
    ({}, "type: missing"),
    ({"type": None}, "type: expected `str`"),
    ({"type": 7}, "type: expected `str`"),
]


@codecs
@pytest.mark.parametrize(("frame", "message"), BAD_FIELDS, ids=[str(case[0])[:60] for case in BAD_FIELDS])
def test_a_bad_field_is_named_and_so_is_what_is_expected(codec: Codec, frame: dict[str, Any], message: str) -> None:
    error, reply_to = explained(codec, encode(codec, frame))
    assert type(error) is BadField
    assert str(error).startswith(message)
    assert reply_to is None


@codecs
@pytest.mark.parametrize(
    "frame",
    [
        {"type": "status_change", "status": "SECRET"},
        {"type": "SECRET"},
        {"type": "status_change", "status": {"SECRET": "SECRET"}},
        {"type": "subscribe", "rooms": ["SECRET !"]},
        {"type": "message", "to_user_id": "SECRET !", "message": "SECRET"},
        {"SECRET": 1},
    ],
)
def test_an_explanation_repeats_nothing_of_what_was_sent(codec: Codec, frame: dict[str, Any]) -> None:
    error, _ = explained(codec, encode(codec, frame))
    assert "SECRET" not in str(error)
    assert "\n" not in str(error)


@codecs
@pytest.mark.parametrize(
    "kind", ["room_occupancy", "heartbeat_ack", "welcome", "ack", "", "Heartbeat", "heartbeat ", "x" * 1000]
)
def test_an_unknown_type_is_told_as_such_and_a_server_s_is_unknown(codec: Codec, kind: str) -> None:
    error, reply_to = explained(codec, encode(codec, {"id": 5, "type": kind}))
    assert type(error) is UnknownType
    assert reply_to == 5


@codecs
@pytest.mark.parametrize(
    ("given", "reply_to"),
    [
        (0, 0), (-1, -1), (2**53, 2**53), ("", ""), ("x" * 64, "x" * 64), (None, None),
        (2**53 + 1, None), (-(2**53) - 1, None), ("x" * 65, None), (True, None), (1.0, None), ([1], None), ({}, None),
    ],
)  # fmt: skip
def test_a_refusal_answers_to_an_id_that_may_be_one_and_to_no_other(
    codec: Codec, given: object, reply_to: int | str | None
) -> None:
    assert explained(codec, encode(codec, {"id": given, "type": "nonsense"}))[1] == reply_to
    assert request_id(given) == reply_to


@codecs
@pytest.mark.parametrize("value", [None, 1, "heartbeat", [], [{"type": "heartbeat"}], True, 1.5])
def test_what_is_no_object_is_a_bad_frame(codec: Codec, value: object) -> None:
    error, reply_to = explained(codec, encode(codec, value))
    assert type(error) is BadFrame
    assert reply_to is None


@pytest.mark.parametrize(
    "data",
    [
        b"", b" ", b"{", b'{"type"', b'{"type":"heartbeat"', b'{"type":"heartbeat"}x', b'{"type":"heartbeat"}{}',
        b"{'type':'heartbeat'}", b"\xff", b'{"type":"\xff"}', b'{"type":"heartbeat","id":"\xed\xa0\x80"}', b"nul",
        b'{"type":"heartbeat","id":01}', b'{"type":"heartbeat","id":1,}', b'\xef\xbb\xbf{"type":"heartbeat"}',
        b"[" * 100_000, b'{"type":' * 100_000, b'{"a":' * 5_000 + b"1" + b"}" * 5_000,
        b'{"type":"heartbeat"' + b" " * 70_000,
    ],
)  # fmt: skip
def test_what_is_no_json_is_a_bad_frame_or_a_bad_field_and_never_worse(data: bytes) -> None:
    error, reply_to = explained(JSON, data)
    assert type(error) in (BadFrame, BadField)
    assert reply_to is None


@pytest.mark.parametrize(
    "data",
    [
        b"", b"\xc1", b"\x81", b"\x81\xa4type", b"\x81\xa4type\xa9heartbea", b"\xff", b"\xdf\xff\xff\xff\xff",
        b"\xdd\xff\xff\xff\xff", b"\xdb\xff\xff\xff\xff", b"\x81\xa4type\xa1\xff", b"\x91" * 100_000,
        b"\x81\xa4type" * 100_000, b"\x81\xa4type\xa9heartbeat\x00", b"\x81\x01\x02", b"\x81\xa4type\xc4\x01a",
        b"\xd6\xff\0\0\0\0", b"\xc7\xff\x01",
    ],
)  # fmt: skip
def test_what_is_no_messagepack_is_a_bad_frame_or_a_bad_field_and_never_worse(data: bytes) -> None:
    error, reply_to = explained(MSGPACK, data)
    assert type(error) in (BadFrame, BadField)
    assert reply_to is None


@codecs
def test_a_wrong_field_before_the_bytes_go_wrong_keeps_nothing_of_the_frame(codec: Codec) -> None:
    """The decoder stops at the first fault: what stands behind it may be no frame at all."""
    data = encode(codec, {"id": 7, "type": "status_change", "status": "sleepy", "z": 1})[:-1]
    error, reply_to = explained(codec, data)
    assert type(error) is BadFrame
    assert reply_to is None


@codecs
def test_of_a_field_that_comes_twice_the_last_counts(codec: Codec) -> None:
    once = encode(codec, {"type": "status_change", "status": "busy"})
    if codec is JSON:
        twice = once[:-1] + b',"status":"away"}'
    else:
        twice = b"\x83" + once[1:] + b"\xa6status\xa4away"
    assert codec.decode_request(twice) == StatusChange(status="away")
