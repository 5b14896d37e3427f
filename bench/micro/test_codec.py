"""What does it cost to decode what clients say, and to encode what they are told?

Unit: time a frame, in both subprotocols; a delta has 16 entries, as under load. Leaves out: WebSocket framing
(test_framing.py) and what is done about the frame (test_presence.py).
"""

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from fastpresence.codec import JSON, MSGPACK, Codec
from fastpresence.messages import Ack, Heartbeat, StatusChange, StatusEntry, UserOnlineStatus

codecs = pytest.mark.parametrize("codec", [JSON, MSGPACK], ids=["json", "msgpack"])
DELTA = UserOnlineStatus(
    [StatusEntry(f"kol_{n}", "kol", "busy", True, 1_700_000_000, 1_700_000_000_000_000 + n) for n in range(16)],
    full=False,
    cursor="0123456789ab~p~123456",
)


@codecs
def test_decode_heartbeat(benchmark: BenchmarkFixture, codec: Codec) -> None:
    """As the lifecycle's clients send it: with the fields that the token makes unnecessary."""
    data = codec.encode(Heartbeat(user_id="user_123", user_type="user", timestamp=1_700_000_000))
    assert isinstance(benchmark(codec.decode_request, data), Heartbeat)


@codecs
def test_decode_status_change(benchmark: BenchmarkFixture, codec: Codec) -> None:
    data = codec.encode(StatusChange(id=17, status="busy"))
    assert isinstance(benchmark(codec.decode_request, data), StatusChange)


@codecs
def test_encode_ack(benchmark: BenchmarkFixture, codec: Codec) -> None:
    assert benchmark(codec.encode, Ack(17))


@codecs
def test_encode_delta(benchmark: BenchmarkFixture, codec: Codec) -> None:
    data = benchmark(codec.encode, DELTA)
    benchmark.extra_info["bytes"] = len(data)


@codecs
def test_decode_delta(benchmark: BenchmarkFixture, codec: Codec) -> None:
    """The client's half."""
    assert benchmark(codec.decode_answer, codec.encode(DELTA)) == DELTA
