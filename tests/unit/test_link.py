"""The link: every chunking gives the same frames, and what is no frame is refused."""

import struct

import pytest

from fastpresence.errors import PeerError
from fastpresence.link import (
    MAX_FRAME,
    Boot,
    FrameReader,
    LinkFrame,
    Ready,
    Reload,
    Reloaded,
    Revoke,
    Revoked,
    Stats,
    Stop,
    encode,
)
from fastpresence.settings import AuthSettings, Settings, TokenKey

FRAMES: list[LinkFrame] = [
    Boot(Settings(auth=AuthSettings(token_keys=(TokenKey("k", "s" * 16),))), worker=0, listener_fd=5),
    Ready(port=8080, pid=123),
    Revoked([("kol_1", 1_700_000_000), ("user_2", 1_700_000_001)], is_last=False),
    Revoked([], is_last=True),
    Revoke("user_3", before=1_700_000_002),
    Reload(3, Settings(auth=AuthSettings(login_jwks_file="f")), '{"keys": []}'),
    Reloaded(3),
    Reloaded(4, "a problem"),
    Stats(connections=15_000, users=7),
    Stop(drain_time=2.5),
]


@pytest.mark.parametrize("step", [1, 2, 3, 5, 7, 64, 1000, 1_000_000])
def test_the_frames_are_the_same_however_the_bytes_are_cut(step: int) -> None:
    stream = b"".join(encode(frame) for frame in FRAMES)
    reader = FrameReader()
    frames = [frame for at in range(0, len(stream), step) for frame in reader.feed(stream[at : at + step])]
    assert frames == FRAMES
    assert reader.is_between_frames


def test_a_frame_that_is_not_complete_yet_is_not_given_out() -> None:
    reader = FrameReader()
    assert reader.feed(encode(FRAMES[1])[:-1]) == []
    assert not reader.is_between_frames


def test_an_announced_length_over_the_limit_is_refused_before_its_bytes_come() -> None:
    with pytest.raises(PeerError, match="16777217"):
        FrameReader().feed(struct.pack(">I", MAX_FRAME + 1))


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\xc0",
        b"\x80",
        b"\x81\xa4type\xa4nope",
        b"\x82\xa4type\xa5ready\xa4port\xa1x",
        b"\xff" * 9,
        b"{}",
        b"\xc1",
    ],
)
def test_what_is_no_frame_of_ours_is_refused(payload: bytes) -> None:
    with pytest.raises(PeerError):
        FrameReader().feed(struct.pack(">I", len(payload)) + payload)


def test_a_frame_that_the_other_end_would_refuse_is_not_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastpresence.link.MAX_FRAME", 10)
    with pytest.raises(ValueError, match="too big"):
        encode(FRAMES[0])
