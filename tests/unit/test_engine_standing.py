"""Messages that the engine answers by itself: exactly those it was taught, after a silence, while an answer stands."""

import time
from collections.abc import Iterator

import pytest

from fastpresence._native import engine as native
from fastpresence._native.framing import BINARY, COMPRESSED, PING, PONG, TEXT, Frame, build, build_masked
from tests.support.engine import KEY, Client, MakeRig, Rig

BEAT = b'{"who":"me","at":1700000000}'
START, END = BEAT.index(b"1"), BEAT.index(b"}")
ANSWER = b"yours"
QUIET_MS = 20
FOR_EVER = 1 << 50


@pytest.fixture
def make_rig() -> Iterator[MakeRig]:
    rigs: list[Rig] = []

    def make(quiet_ms: int = QUIET_MS, *, until_ms: int = FOR_EVER) -> Rig:
        rig = Rig(quiet_ms=quiet_ms)
        rigs.append(rig)
        rig.engine.stand(0, build(TEXT, ANSWER), until_ms)
        rig.engine.stand(1, build(BINARY, ANSWER), until_ms)
        return rig

    yield make
    for rig in rigs:
        rig.on_event = None
        rig.end()


def taught(rig: Rig, *, digits: bool = True, text: bool = True) -> Client:
    """A connection that has said its beat, which the engine has learnt."""
    client = rig.open(text=text, variant=0 if text else 1)
    client.send_frame(TEXT if text else BINARY, BEAT)
    rig.settle()
    rig.engine.learn(client.handle, BEAT, START, END, digits)
    return client


def be_quiet() -> None:
    time.sleep(QUIET_MS * 1.5 / 1000)


def messages(rig: Rig) -> list[bytes]:
    return [event[3] for event in rig.events if event[0] in (native.TEXT, native.BINARY, native.DEFLATED_TEXT)]


@pytest.mark.parametrize("text", [True, False])
def test_the_same_after_a_silence_is_answered_and_does_not_go_up(make_rig: MakeRig, text: bool) -> None:
    rig = make_rig()
    client = taught(rig, text=text)
    kind = TEXT if text else BINARY
    for at in (b"1700000000", b"1700000030", b"9999999999"):
        be_quiet()
        client.send_frame(kind, BEAT[:START] + at + BEAT[END:])
        rig.settle()
    assert client.frames == [Frame(kind, ANSWER)] * 3
    assert messages(rig) == [BEAT]
    assert rig.stat("answered") == 3


@pytest.mark.parametrize(
    "other",
    [
        BEAT.replace(b"me", b"ma"),
        BEAT.replace(b"1700000000", b"0700000000"),
        BEAT.replace(b"1700000000", b"170000000x"),
        BEAT.replace(b"1700000000", b"17000000-1"),
        BEAT.replace(b"1700000000", b"170000000"),
        BEAT.replace(b"1700000000", b"17000000000"),
        BEAT[:-1] + b"]",
        BEAT + b" ",
        BEAT[:-1],
        b"",
    ],
)
def test_whatever_differs_in_any_other_byte_goes_up(make_rig: MakeRig, other: bytes) -> None:
    rig = make_rig()
    client = taught(rig)
    be_quiet()
    client.send_frame(TEXT, other)
    rig.settle()
    assert messages(rig) == [BEAT, other]
    assert client.frames == []


def test_bytes_that_are_no_digits_may_be_any(make_rig: MakeRig) -> None:
    rig = make_rig()
    client = taught(rig, digits=False, text=False)
    be_quiet()
    client.send_frame(BINARY, BEAT[:START] + bytes(range(250, 256)) + b"\0\0\0\0" + BEAT[END:])
    rig.settle()
    assert client.frames == [Frame(BINARY, ANSWER)]


def test_one_that_comes_too_soon_goes_up_and_so_does_everyone_when_nothing_may_be_answered(make_rig: MakeRig) -> None:
    rig = make_rig(60_000)
    client = taught(rig)
    client.send_frame(TEXT, BEAT)
    rig.settle()
    assert messages(rig) == [BEAT, BEAT]
    rig = make_rig(0)
    client = taught(rig)
    be_quiet()
    client.send_frame(TEXT, BEAT)
    rig.settle()
    assert messages(rig) == [BEAT, BEAT]
    assert rig.engine.give_standing(client.handle) is False


def test_a_flood_gets_one_answer_and_the_rest_goes_up(make_rig: MakeRig) -> None:
    rig = make_rig(1_000)
    client = rig.open()
    rig.engine.learn(client.handle, BEAT, START, END, True)
    time.sleep(1.1)
    client.send(build_masked(TEXT, BEAT, KEY) * 50)
    rig.settle()
    assert messages(rig) == [BEAT] * 49
    assert client.frames == [Frame(TEXT, ANSWER)]


def test_an_answer_that_holds_no_more_is_not_given(make_rig: MakeRig) -> None:
    rig = make_rig(until_ms=time.monotonic_ns() // 1_000_000)
    client = taught(rig)
    be_quiet()
    client.send_frame(TEXT, BEAT)
    rig.settle()
    assert messages(rig) == [BEAT, BEAT]
    rig.engine.stand(0, build(TEXT, b"new"), FOR_EVER)
    be_quiet()
    client.send_frame(TEXT, BEAT)
    rig.settle()
    assert client.frames == [Frame(TEXT, b"new")]


def test_the_other_kind_of_message_and_a_compressed_one_go_up(make_rig: MakeRig) -> None:
    rig = make_rig()
    client = rig.connect()
    rig.engine.upgrade(client.handle, True, 0, deflate=True)
    rig.engine.learn(client.handle, BEAT, START, END, True)
    be_quiet()
    client.send(build_masked(BINARY, BEAT, KEY))
    rig.until(lambda: len(messages(rig)) == 1)
    be_quiet()
    client.send(build_masked(TEXT | COMPRESSED, BEAT, KEY))
    rig.until(lambda: len(messages(rig)) == 2)
    assert rig.stat("answered") == 0


def test_the_next_tenant_of_a_record_has_learnt_nothing(make_rig: MakeRig) -> None:
    rig = make_rig()
    first = taught(rig)
    first.reset()
    rig.until(lambda: rig.stat("connections") == 0)
    second = rig.open()
    assert second.handle & 0xFFFFFFFF == first.handle & 0xFFFFFFFF
    be_quiet()
    second.send_frame(TEXT, BEAT)
    rig.settle()
    assert messages(rig) == [BEAT, BEAT]
    rig.engine.learn(first.handle, BEAT, START, END, True)  # a stale handle teaches nobody
    be_quiet()
    second.send_frame(TEXT, BEAT)
    rig.settle()
    assert messages(rig) == [BEAT] * 3


def test_what_the_running_flush_has_for_it_comes_first(make_rig: MakeRig) -> None:
    rig = make_rig()
    client = taught(rig)
    audience = rig.engine.new_audience()
    rig.engine.join(client.handle, audience)
    be_quiet()
    rig.engine.flush_begin(1, [(audience, (build(TEXT, b"news"), None, None, None))])
    client.send_frame(TEXT, BEAT)
    client.send_frame(PING, b"and?")
    rig.until(lambda: len(client.frames) == 3)
    assert client.frames == [Frame(TEXT, b"news"), Frame(TEXT, ANSWER), Frame(PONG, b"and?")]
    assert rig.engine.flush_step()


def test_it_is_a_sign_of_life_and_the_only_one_needed() -> None:
    rig = Rig(quiet_ms=1, heartbeat_timeout_ms=600)
    rig.engine.stand(0, build(TEXT, ANSWER), FOR_EVER)
    client = rig.open()
    rig.engine.learn(client.handle, BEAT, START, END, True)
    end_s = time.monotonic() + 1.5
    while time.monotonic() < end_s:
        client.send_frame(TEXT, BEAT)
        time.sleep(0.05)
        rig.turn()
    assert rig.of(native.ENDED) == []
    assert client.codes == []
    rig.until(lambda: rig.of(native.ENDED))  # and without it the time runs out
    assert rig.of(native.ENDED)[0][1] == native.SILENT
    rig.end()


def test_what_is_too_long_to_learn_or_to_stand_is_left_alone(make_rig: MakeRig) -> None:
    rig = make_rig()
    client = rig.open()
    for message, start, end in ((b"x" * 513, 0, 1), (b"x" * 300, 0, 256), (b"xx", 1, 3), (b"xx", 2, 1), (b"", 0, 0)):
        rig.engine.learn(client.handle, message, start, end, False)
        be_quiet()
        client.send_frame(TEXT, message)
        rig.settle()
    assert rig.stat("answered") == 0
    rig.engine.learn(client.handle, BEAT, START, END, True)
    rig.engine.stand(0, b"x" * 257, FOR_EVER)
    be_quiet()
    client.send_frame(TEXT, BEAT)
    rig.settle()
    assert rig.stat("answered") == 0
    rig.engine.stand(4, b"x", FOR_EVER)  # there is no such variant


def test_what_stands_is_given_on_request_and_says_whether_to_learn(make_rig: MakeRig) -> None:
    rig = make_rig(60_000)
    client = rig.open()
    client.send_frame(TEXT, BEAT)
    rig.settle()
    assert rig.engine.give_standing(client.handle) is False  # it came at once
    rig.engine.send()
    rig.settle()
    assert client.frames == [Frame(TEXT, ANSWER)]
    rig = make_rig()
    client = rig.open()
    be_quiet()
    client.send_frame(TEXT, BEAT)
    rig.until(lambda: messages(rig) == [BEAT])
    assert rig.engine.give_standing(client.handle) is True
    rig.engine.send()
