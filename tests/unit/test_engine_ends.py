"""The end of those who go while nobody reads them, of those who only read, and of a crowd at once."""

import asyncio
import select
import socket
import time
from collections.abc import Callable
from itertools import pairwise

import pytest

from fastpresence._native import engine as native
from fastpresence._native.engine import CLOSED, DRAINED, ENDED, LOST, SILENT, Engine
from fastpresence._native.framing import CLOSE, TEXT, build, build_masked
from fastpresence.settings import LimitsSettings
from tests.support.engine import KEY, SMALL, Carrier, Client, MakeRig, Rig
from tests.support.world import World

GOODBYE = build_masked(CLOSE, (1000).to_bytes(2, "big"), KEY)
RUN_OUTS = 128  #: deadlines that run out in one call


def messages(rig: Rig) -> list[bytes]:
    return [event[3] for event in rig.events if event[0] == native.TEXT]


def ends(rig: Rig) -> list[tuple[int, int]]:
    """How, and the code."""
    return [(how, data[0]) for _, how, data in rig.of(ENDED)]


def is_ready(rig: Rig, wait_s: float = 0.0) -> bool:
    return bool(select.select([rig.engine.fileno()], [], [], wait_s)[0])


def end_half(client: Client) -> None:
    """It says no more, and might still read."""
    client.socket.shutdown(socket.SHUT_WR)


both_ways = pytest.mark.parametrize("go", [end_half, Client.close], ids=["end of its half", "reset"])


# Who goes while his socket is full.


@both_ways
def test_what_one_says_before_he_goes_counts_though_his_socket_is_full(
    make_rig: MakeRig, go: Callable[[Client], None]
) -> None:
    rig = make_rig(**SMALL)
    slow = rig.stall()
    slow.send(build_masked(TEXT, b"last words", KEY) + GOODBYE)
    go(slow)  # what he has not read makes a reset of it
    rig.until(lambda: rig.stat("connections") == 0)
    assert messages(rig) == [b"last words"]
    assert ends(rig) == [(CLOSED, 1000)]


@both_ways
def test_all_that_he_said_is_heard_in_bounded_turns_and_then_he_is_lost(
    make_rig: MakeRig, go: Callable[[Client], None]
) -> None:
    rig = make_rig(**SMALL)
    slow = rig.stall()
    count = 300  # more than one visit takes
    slow.send(b"".join(build_masked(TEXT, b"%d" % number, KEY) for number in range(count)))
    go(slow)
    turns = []
    while not rig.of(ENDED):
        before = len(messages(rig))
        assert is_ready(rig, 10.0)
        rig.engine.run()
        turns.append(len(messages(rig)) - before)
    assert messages(rig) == [b"%d" % number for number in range(count)]
    assert max(turns) <= 64
    assert ends(rig) == [(LOST, 1006)]


def test_one_who_goes_is_told_as_drained_so_that_nobody_waits_for_him_and_is_sent_nothing_more(
    make_rig: MakeRig,
) -> None:
    rig = make_rig(**SMALL)
    audience = rig.engine.new_audience()
    slow = rig.stall()
    rig.engine.join(slow.handle, audience)
    rig.engine.flush_begin(7, [(audience, (build(TEXT, b"missed"),))])
    assert rig.engine.flush_step(1_000_000)
    rig.engine.hold(slow.handle, True)  # so that his end comes later
    end_half(slow)
    rig.until(lambda: rig.of(DRAINED))
    assert rig.of(DRAINED) == [(slow.handle, slow.handle, None)]  # what he missed is nobody's to catch up
    assert not rig.engine.lagging(slow.handle)
    sent = rig.stat("bytes_sent")
    assert rig.engine.answer(slow.handle, b"y" * 100_000)
    rig.engine.send()
    assert rig.engine.waiting(slow.handle) == 0
    assert rig.stat("bytes_sent") == sent
    rig.engine.hold(slow.handle, False)
    rig.until(lambda: ends(rig) == [(LOST, 1006)])


def test_one_who_went_and_is_closed_is_gone_at_once(make_rig: MakeRig) -> None:
    rig = make_rig(**SMALL)
    slow = rig.stall()
    rig.engine.hold(slow.handle, True)
    end_half(slow)
    rig.until(lambda: rig.of(DRAINED))
    rig.engine.close(slow.handle, 1000)
    assert rig.stat("connections") == 0


# Who goes while he is held.


def test_one_that_is_held_and_reset_is_heard_when_he_is_let_go_and_keeps_no_loop_busy(make_rig: MakeRig) -> None:
    rig = make_rig()
    crowd = [rig.open() for _ in range(100)]  # more than one turn looks at
    for client in crowd:
        rig.engine.hold(client.handle, True)
        client.send_frame(TEXT, b"heard")
        client.reset()
    told = 0
    while is_ready(rig):
        told += rig.engine.run()
        assert told <= len(crowd), "the same again and again"
    assert messages(rig) == []
    assert ends(rig) == []
    for client in crowd:
        rig.engine.hold(client.handle, False)
    rig.until(lambda: rig.stat("connections") == 0)
    assert messages(rig) == [b"heard"] * len(crowd)
    assert ends(rig) == [(LOST, 1006)] * len(crowd)


@pytest.mark.parametrize("full", [False, True])
def test_a_carried_one_that_is_lost_while_it_is_held_or_full_is_heard_first(full: bool) -> None:
    events: list[tuple[int, object, object, object]] = []
    engine = Engine(events.extend)
    carrier = Carrier(engine)
    handle = carrier.handle
    assert handle is not None
    engine.upgrade(handle, True, 0)
    engine.hold(handle, True)
    if full:
        engine.full(handle)
    engine.feed(handle, build_masked(TEXT, b"heard", KEY) * 100)
    engine.lost(handle)
    assert [event[0] for event in events] == [DRAINED] * full
    assert not carrier.is_cut
    engine.full(handle)  # too late: what is for it is dropped
    assert engine.answer(handle, b"unheard")
    engine.send()
    assert (carrier.came, engine.waiting(handle)) == (b"", 0)
    engine.hold(handle, False)
    del events[:full]
    assert [event[0] for event in events] == [native.TEXT] * 100 + [ENDED]
    assert events[-1][2] == LOST
    assert carrier.is_cut
    engine.close_all()


# Who is silent.


def test_one_who_reads_and_says_nothing_is_silent_since_his_last_frame(make_rig: MakeRig) -> None:
    rig = make_rig(**{**SMALL, "heartbeat_timeout_ms": 700})
    slow = rig.stall()
    begun_s = time.monotonic()
    rig.until(lambda: time.monotonic() > begun_s + 0.1)
    slow.reading = True
    rig.until(lambda: rig.of(DRAINED))
    rig.until(lambda: rig.of(ENDED))
    [(_, how, (code, heard_ms))] = rig.of(ENDED)
    assert (how, code) == (SILENT, 4008)
    assert heard_ms <= begun_s * 1000
    rig.until(lambda: slow.codes)
    assert slow.codes == [4008]


def test_one_whose_socket_stays_full_is_silent_all_the_same_unless_something_of_his_waits(make_rig: MakeRig) -> None:
    rig = make_rig(**{**SMALL, "heartbeat_timeout_ms": 500})
    silent, beating = rig.stall(), rig.stall()
    beating.send_frame(TEXT, b"not read yet")
    begun_s = time.monotonic()
    rig.until(lambda: rig.of(ENDED))
    assert [(owner, how) for owner, how, _ in rig.of(ENDED)] == [(silent.handle, SILENT)]
    rig.until(lambda: time.monotonic() > begun_s + 1.2)
    assert len(rig.of(ENDED)) == 1
    beating.reading = True
    rig.until(lambda: messages(rig))
    assert rig.engine.heard_ms(beating.handle) >= begun_s * 1000


def test_one_who_is_full_again_whenever_he_has_drained_is_heard(make_rig: MakeRig) -> None:
    rig = make_rig(**SMALL)
    slow = rig.stall()

    def fill_again(event: tuple[int, object, int, object]) -> None:
        if event[0] == DRAINED:
            rig.engine.answer(slow.handle, b"y" * 600_000)

    rig.on_event = fill_again
    slow.send(b"".join(build_masked(TEXT, b"%d" % number, KEY) for number in range(100)))
    slow.reading = True
    rig.until(lambda: len(messages(rig)) == 100)


def test_one_that_is_held_is_not_silent_meanwhile(make_rig: MakeRig) -> None:
    rig = make_rig(heartbeat_timeout_ms=300)
    held = rig.open()
    rig.engine.hold(held.handle, True)
    begun_s = time.monotonic()
    rig.until(lambda: time.monotonic() > begun_s + 1.0)
    assert rig.of(ENDED) == []
    rig.engine.hold(held.handle, False)
    rig.until(lambda: ends(rig) == [(SILENT, 4008)])


def test_one_that_has_been_closed_lags_no_more_for_whoever_waits(make_rig: MakeRig) -> None:
    # Nobody is told when it drains, so that whoever waited for that would wait for ever.
    rig = make_rig(**SMALL)
    slow = rig.stall()
    rig.engine.close(slow.handle, 4010)
    assert rig.stat("lagging") == 1
    assert not rig.engine.lagging(slow.handle)


# A crowd.


def test_a_crowd_that_is_silent_is_handed_up_in_slices_and_who_is_heard_meanwhile_is_not() -> None:
    batches: list[list[tuple[int, int, int, object]]] = []
    engine = Engine(batches.append, heartbeat_timeout_ms=300)
    handles = [Carrier(engine).handle for _ in range(700)]
    for handle in handles:
        assert handle is not None
        engine.upgrade(handle, True, 0)
    time.sleep(0.8)  # all of them are due
    assert engine.advance()
    assert [len(batch) for batch in batches] == [RUN_OUTS]
    gone = [event[1] for event in batches[0]]
    heard = [handle for handle in handles if handle is not None and handle not in set(gone)][::3]
    for handle in heard:
        engine.feed(handle, build_masked(TEXT, b"still here", KEY))
    batches.clear()
    while engine.advance():
        pass
    assert max(len(batch) for batch in batches) <= RUN_OUTS
    gone += [event[1] for batch in batches for event in batch]
    assert len(gone) == len(set(gone))
    assert set(gone) == set(handles).difference(heard)
    assert not engine.advance()
    engine.close_all()


def test_a_worker_goes_on_with_a_crowd_in_its_next_turns_not_at_its_next_tick() -> None:
    world = World(limits=LimitsSettings(connect_timeout=0.3))
    for _ in range(700):
        assert Carrier(world.worker.engine).handle is not None
    time.sleep(0.8)  # no request is complete: all of them are due
    left = [world.stat("connections")]

    async def take_turns() -> None:
        async with asyncio.timeout(10):  # who stood still reads what waits before deadlines count
            while left[-1] == 700:
                await asyncio.sleep(0)
                left[-1] = world.stat("connections")
        left.insert(0, 700)
        for _ in range(20):
            await asyncio.sleep(0)
            left.append(world.stat("connections"))

    world.loop.run_until_complete(take_turns())
    # The tick's own slice and the first that it puts off may come in the same turn.
    assert max(before - after for before, after in pairwise(left)) <= 2 * RUN_OUTS
    assert left[-1] == 0
    world.close()
