"""The engine on real sockets: every event goes up once, every decision goes down, and nothing is left behind."""

import os
import re
import resource
import socket as native_socket
import struct
import subprocess
import sys
import time
import weakref
from random import Random

import pytest

from fastpresence._native import engine as native
from fastpresence._native.engine import CLOSED, DRAINED, ENDED, LAGGED, LOST, REQUEST, SILENT, UNFINISHED, VIOLATION
from fastpresence._native.framing import BINARY, CLOSE, PING, PONG, TEXT, build, build_masked
from tests.support.engine import KEY, SMALL, Client, MakeRig, Rig


class Owner:
    """Anything with an identity."""


def frame(opcode: int, payload: bytes = b"", *, fin: bool = True) -> bytes:
    return build_masked(opcode, payload, KEY, fin=fin)


def messages(rig: Rig) -> list[tuple[int, bytes]]:
    return [(event[0], event[3]) for event in rig.events if event[0] in (native.TEXT, native.BINARY)]


# HTTP.


def test_the_bytes_of_a_request_go_up_as_they_come(rig: Rig) -> None:
    client = rig.connect()
    assert rig.events == [(REQUEST, client.handle, client.handle, b"hello")]
    client.send(b" world")
    rig.until(lambda: len(rig.events) == 2)
    assert rig.events[1] == (REQUEST, client.handle, client.handle, b" world")


def test_an_owner_stands_for_its_connection_from_then_on(rig: Rig) -> None:
    client = rig.connect()
    owner = Owner()
    rig.engine.own(client.handle, owner)
    client.send(b"more")
    rig.until(lambda: len(rig.events) == 2)
    assert rig.events[1][1] is owner
    assert rig.engine.owner(client.handle & 0xFFFFFFFF) is owner
    assert rig.engine.owners() == [owner]


def test_what_is_written_arrives_before_the_end(rig: Rig) -> None:
    client = rig.connect()
    assert rig.engine.write(client.handle, b"one ")
    assert rig.engine.write(client.handle, b"two")
    rig.engine.finish(client.handle)
    rig.engine.send()
    rig.until(lambda: client.ended)
    assert client.raw == b"one two"


def test_a_connection_that_was_finished_discards_what_still_comes(rig: Rig) -> None:
    client = rig.connect()
    rig.engine.write(client.handle, b"413")
    rig.engine.finish(client.handle)
    client.send(b"x" * 100_000)  # a body that nobody wants: must not turn the answer into a reset
    rig.until(lambda: client.ended)
    assert client.raw == b"413"
    assert len(rig.events) == 1


def test_a_connection_that_was_finished_and_stays_is_cut_off(rig: Rig) -> None:
    client = rig.connect()
    rig.engine.finish(client.handle)
    rig.until(lambda: rig.stat("connections") == 0)
    assert rig.of(ENDED) == []


def test_one_who_goes_before_the_upgrade_is_told_as_lost(rig: Rig) -> None:
    client = rig.connect()
    client.close()
    rig.until(lambda: rig.of(ENDED))
    assert rig.of(ENDED)[0][1] == LOST
    assert rig.stat("connections") == 0


def test_a_request_that_is_not_complete_in_time_is_cut_off(make_rig: MakeRig) -> None:
    rig = make_rig(connect_timeout_ms=300)
    begun_s = time.monotonic()
    client = rig.connect()
    rig.until(lambda: rig.of(ENDED))
    assert rig.of(ENDED)[0][1] == UNFINISHED
    assert 0.3 <= time.monotonic() - begun_s < 0.3 + 0.25 + 1.0  # a tick, and a busy machine
    rig.until(lambda: client.ended)


def test_bytes_alone_do_not_prolong_a_request(make_rig: MakeRig) -> None:
    rig = make_rig(connect_timeout_ms=300)
    client = rig.connect()

    def drip() -> bool:
        if not rig.of(ENDED):
            client.send(b"x")
        return bool(rig.of(ENDED))

    rig.until(drip, 3.0)
    assert rig.of(ENDED)[0][1] == UNFINISHED


def test_waiting_for_the_next_request_begins_the_timeout_anew(make_rig: MakeRig) -> None:
    rig = make_rig(connect_timeout_ms=600)
    client = rig.connect()
    begun_s = time.monotonic()
    rig.until(lambda: time.monotonic() - begun_s > 0.4)
    rig.engine.await_request(client.handle)
    anew_s = time.monotonic()
    rig.until(lambda: rig.of(ENDED))
    assert time.monotonic() - anew_s >= 0.6


def test_the_peer_has_an_address(rig: Rig) -> None:
    client = rig.connect()
    assert rig.engine.address(client.handle) == "127.0.0.1"
    assert rig.engine.address(client.handle + (1 << 32)) == ""


# Messages.


def test_bytes_behind_the_request_are_the_first_of_the_websocket(rig: Rig) -> None:
    client = rig.connect()
    second = frame(BINARY, b"two")
    rig.engine.upgrade(client.handle, True, 0, frame(TEXT, b"one") + second[:4])
    client.send(second[4:])
    rig.until(lambda: len(messages(rig)) == 2)
    assert messages(rig) == [(native.TEXT, b"one"), (native.BINARY, b"two")]


def test_a_message_is_told_once_however_it_is_cut(rig: Rig) -> None:
    client = rig.open()
    data = frame(TEXT, b"ab", fin=False) + frame(0, b"c") + frame(BINARY, b"x" * 60_000)
    for at in range(30):
        client.send(data[at : at + 1])
        rig.turn(0.002)
    client.send(data[30:])
    rig.until(lambda: len(messages(rig)) == 2)
    assert messages(rig) == [(native.TEXT, b"abc"), (native.BINARY, b"x" * 60_000)]


def test_many_messages_of_one_read_keep_their_order(rig: Rig) -> None:
    client = rig.open()
    client.send(b"".join(frame(TEXT, b"%d" % n) for n in range(500)))
    rig.until(lambda: len(messages(rig)) == 500)
    assert [int(payload) for _, payload in messages(rig)] == list(range(500))


def test_an_answer_is_a_frame_of_the_connection_s_own_kind(rig: Rig) -> None:
    text, binary = rig.open(text=True), rig.open(text=False, variant=1)
    for client in (text, binary):
        assert rig.engine.answer(client.handle, b"payload")
    rig.settle()
    assert text.frames == [(TEXT, b"payload")]
    assert binary.frames == [(BINARY, b"payload")]


def test_what_one_turn_has_for_a_connection_goes_out_in_one_call(rig: Rig) -> None:
    clients = [rig.open() for _ in range(3)]
    before = rig.stat("sends")
    for _ in range(10):
        for client in clients:
            rig.engine.answer(client.handle, b"x")
    rig.engine.send()
    assert rig.stat("sends") - before == 3
    rig.settle()
    assert all(client.frames == [(TEXT, b"x")] * 10 for client in clients)


def test_more_pieces_than_one_call_joins_arrive_in_order(rig: Rig) -> None:
    one, other = rig.open(), rig.open()
    for n in range(100):
        rig.engine.answer(one.handle, b"%d" % n)
        rig.engine.answer(other.handle, b"between")
    rig.settle()
    assert [int(payload) for _, payload in one.frames] == list(range(100))


def test_more_answers_than_one_turn_gathers_arrive_in_order(rig: Rig) -> None:
    client = rig.open()
    for n in range(100):
        assert rig.engine.answer(client.handle, b"%d " % n + b"x" * 100_000, 1 << 30)
    rig.until(lambda: len(client.frames) == 100)
    assert [int(payload.split()[0]) for _, payload in client.frames] == list(range(100))


def test_a_ping_is_answered_with_its_payload_and_nobody_else_hears_of_it(rig: Rig) -> None:
    client = rig.open()
    client.send(frame(PING, b"") + frame(PONG, b"unasked") + frame(PING, b"p" * 125))
    rig.until(lambda: len(client.frames) == 2)
    assert client.frames == [(PONG, b""), (PONG, b"p" * 125)]
    assert messages(rig) == []


def test_a_ping_inside_a_message_is_answered_at_once(rig: Rig) -> None:
    client = rig.open()
    client.send(frame(TEXT, b"a", fin=False) + frame(PING, b"p"))
    rig.until(lambda: client.frames == [(PONG, b"p")])
    assert messages(rig) == []
    client.send(frame(0, b"b"))
    rig.until(lambda: messages(rig) == [(native.TEXT, b"ab")])


def test_a_fault_of_the_owner_leaves_run_and_loses_no_answer(rig: Rig) -> None:
    client = rig.open()

    def fault(event: tuple[int, object, int, object]) -> None:
        rig.engine.answer(client.handle, b"answered")
        raise RuntimeError("mine")

    rig.on_event = fault
    client.send(frame(TEXT, b"a"))
    with pytest.raises(RuntimeError, match="mine"):
        rig.until(lambda: False)
    rig.on_event = None
    rig.settle()
    assert client.frames == [(TEXT, b"answered")]


def test_one_batch_takes_a_bounded_number_of_sockets_and_none_is_forgotten(rig: Rig) -> None:
    batches: list[int] = []

    def count(event: tuple[int, object, int, object]) -> None:
        batches[-1] += 1

    clients = [rig.open() for _ in range(150)]
    rig.on_event = count
    for client in clients:
        client.send(frame(TEXT, b"a"))
    batches.append(0)
    taken = rig.engine.run()
    assert 64 <= taken == batches[-1] <= 150  # as many batches as the time for one turn allows
    rig.until(lambda: len(messages(rig)) == 150)


def test_a_turn_ends_in_time_though_more_is_ready(rig: Rig) -> None:
    clients = [rig.open() for _ in range(150)]
    rig.on_event = lambda event: time.sleep(0.001)  # 64 of them take longer than a turn may
    for client in clients:
        client.send(frame(TEXT, b"a"))
    assert rig.engine.run() == 64
    rig.on_event = None
    rig.until(lambda: len(messages(rig)) == 150)


def test_one_turn_reads_a_bounded_number_of_bytes_of_one_socket(rig: Rig) -> None:
    busy, other = rig.open(), rig.open()
    for _ in range(10):
        busy.send(frame(BINARY, b"x" * 20_000))
    other.send(frame(TEXT, b"heard"))
    before = rig.stat("bytes_received")
    rig.engine.run()
    assert rig.stat("bytes_received") - before <= 2 * 65_536
    rig.until(lambda: len(messages(rig)) == 11)


def test_the_moment_of_the_last_complete_frame_is_known(rig: Rig) -> None:
    client = rig.open()
    before_ms = time.monotonic_ns() // 1_000_000
    client.send(frame(TEXT, b"a"))
    rig.until(lambda: messages(rig))
    assert before_ms <= rig.engine.heard_ms(client.handle) <= time.monotonic_ns() // 1_000_000


# The end of a connection.


@pytest.mark.parametrize(
    ("payload", "code"), [(b"", 1005), (b"\x03\xe8", 1000), (b"\x03\xe9bye", 1001), (b"\x0f\xa0", 4000)]
)
def test_a_close_is_answered_with_its_code_and_told_once(rig: Rig, payload: bytes, code: int) -> None:
    client = rig.open()
    owner = Owner()
    rig.engine.own(client.handle, owner)
    client.send(frame(CLOSE, payload) + frame(TEXT, b"too late"))
    rig.until(lambda: client.ended)
    assert client.frames == [(CLOSE, payload[:2])]
    assert [(event[0], event[1], event[2][0]) for event in rig.of(ENDED)] == [(owner, CLOSED, code)]
    assert messages(rig) == []


def test_a_close_of_ours_ends_when_it_is_answered_and_is_not_told(rig: Rig) -> None:
    client = rig.open()
    rig.engine.close(client.handle, 4010, b"by an administrator")
    rig.engine.send()
    rig.until(lambda: client.frames)
    assert client.frames == [(CLOSE, struct.pack(">H", 4010) + b"by an administrator")]
    assert not client.ended
    client.send(frame(TEXT, b"crossed it") + frame(PING, b"p") + frame(CLOSE, b"\x0f\xaa"))
    rig.until(lambda: client.ended)
    assert len(client.frames) == 1  # section 5.5.1: nothing follows a close, not even a pong
    assert rig.of(ENDED) == []
    assert messages(rig) == []


def test_two_closes_that_cross_are_each_other_s_answers(rig: Rig) -> None:
    client = rig.open()
    client.send(frame(CLOSE, b"\x03\xe8"))
    rig.engine.close(client.handle, 4010)
    rig.until(lambda: client.ended)
    assert client.codes == [4010]
    assert rig.of(ENDED) == []


def test_a_reason_that_is_too_long_is_cut_to_what_a_control_frame_holds(rig: Rig) -> None:
    client = rig.open()
    rig.engine.close(client.handle, 4010, b"r" * 500)
    rig.engine.send()
    rig.until(lambda: client.frames)
    assert client.frames == [(CLOSE, struct.pack(">H", 4010) + b"r" * 123)]


@pytest.mark.long
def test_a_close_of_ours_that_nobody_answers_ends_after_a_while(rig: Rig) -> None:
    client = rig.open()
    rig.engine.close(client.handle, 4010)
    begun_s = time.monotonic()
    rig.until(lambda: client.ended)
    assert 4.9 <= time.monotonic() - begun_s < 7.0
    assert rig.stat("connections") == 0


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (build(TEXT, b"no mask"), 1002),
        (frame(3), 1002),
        (frame(0, b"of nothing"), 1002),
        (frame(TEXT, b"\xff"), 1007),
        (frame(BINARY, b"x" * 70_000)[:20], 1009),
        (frame(CLOSE, b"\x03"), 1002),
        (frame(CLOSE, struct.pack(">H", 1005)), 1002),
        (frame(CLOSE, struct.pack(">H", 1000) + b"\xff"), 1007),
        (frame(PING, b"x" * 126), 1002),
    ],
)
@pytest.mark.parametrize("cut", [False, True])
def test_a_violation_is_closed_with_its_code_and_told_once(rig: Rig, data: bytes, code: int, cut: bool) -> None:
    client = rig.open()
    for part in [data[:3], data[3:]] if cut else [data]:
        client.send(part)
        rig.turn()
        rig.turn()
    rig.until(lambda: client.ended)
    assert client.codes == [code]
    assert [(how, data[0]) for _, how, data in rig.of(ENDED)] == [(VIOLATION, code)]


def test_what_was_said_before_a_violation_counts_and_what_comes_after_does_not(rig: Rig) -> None:
    client = rig.open()
    client.send(frame(TEXT, b"before") + build(TEXT, b"no mask") + frame(TEXT, b"after"))
    rig.until(lambda: client.ended)
    assert messages(rig) == [(native.TEXT, b"before")]


def test_a_violation_after_our_close_adds_no_second_close(rig: Rig) -> None:
    client = rig.open()
    rig.engine.close(client.handle, 4010)
    rig.engine.send()
    client.send(build(TEXT, b"no mask"))
    rig.until(lambda: client.ended)
    assert client.codes == [4010]
    assert rig.of(ENDED) == []


def test_a_fragmented_message_of_a_stranger_is_given_up_at_its_limit(make_rig: MakeRig) -> None:
    rig = make_rig(fragments=3)
    client = rig.open()
    client.send(frame(TEXT, b"a", fin=False) + frame(0, b"b", fin=False) * 3)
    rig.until(lambda: client.ended)
    assert client.codes == [1009]


def test_a_silent_connection_is_closed_with_4008_in_time_and_not_before(make_rig: MakeRig) -> None:
    rig = make_rig(heartbeat_timeout_ms=600)
    client = rig.open()
    begun_s = time.monotonic()
    client.send(frame(TEXT, b"a"))
    rig.until(lambda: client.codes)
    assert client.codes == [4008]
    assert 0.6 <= time.monotonic() - begun_s < 0.6 + 0.25 + 1.0
    ((_, how, (code, heard_ms)),) = rig.of(ENDED)
    assert (how, code) == (SILENT, 4008)
    assert abs(heard_ms - begun_s * 1000) < 500


def test_any_complete_frame_is_a_sign_of_life_and_half_a_frame_is_none(make_rig: MakeRig) -> None:
    rig = make_rig(heartbeat_timeout_ms=700)
    pinging, dripping = rig.open(), rig.open()
    half = iter(frame(BINARY, b"x" * 10_000))
    begun_s = time.monotonic()
    next_s = 0.0

    def go_on() -> bool:
        nonlocal next_s
        if time.monotonic() - begun_s >= next_s:
            next_s += 0.1
            pinging.send_frame(PING)
            if not dripping.codes:
                dripping.send(bytes([next(half)]))
        return time.monotonic() - begun_s > 1.5

    rig.until(go_on)
    assert dripping.codes == [4008]
    assert pinging.codes == []


def test_a_reset_is_told_as_lost(rig: Rig) -> None:
    client = rig.open()
    client.reset()
    rig.until(lambda: rig.of(ENDED))
    assert [(how, data[0]) for _, how, data in rig.of(ENDED)] == [(LOST, 1006)]


def test_an_aborted_connection_is_cut_off_and_not_told(rig: Rig) -> None:
    client = rig.open()
    rig.engine.answer(client.handle, b"never sent")
    rig.engine.abort(client.handle)
    rig.until(lambda: client.ended)
    assert client.frames == []
    assert rig.of(ENDED) == []


# Handles and owners.


def test_a_stale_handle_never_reaches_the_slot_s_next_tenant(rig: Rig) -> None:
    gone = rig.open()
    rig.engine.abort(gone.handle)
    tenant = rig.open()
    assert tenant.handle & 0xFFFFFFFF == gone.handle & 0xFFFFFFFF
    assert tenant.handle != gone.handle
    audience = rig.engine.new_audience()
    rig.engine.join(tenant.handle, audience)
    engine, stale = rig.engine, gone.handle
    assert not engine.write(stale, b"x")
    assert not engine.answer(stale, b"x")
    assert not engine.tell(stale, build(TEXT, b"x"))
    assert not engine.join(stale, audience)
    assert not engine.leave(stale, audience)
    assert not engine.lagging(stale)
    assert engine.heard_ms(stale) == 0
    assert engine.address(stale) == ""
    engine.own(stale, Owner())
    engine.upgrade(stale, True, 0)
    engine.caught_up(stale)
    engine.await_request(stale)
    engine.finish(stale)
    engine.close(stale, 4010)
    engine.abort(stale)
    rig.settle()
    assert tenant.frames == []
    assert engine.owners() == []
    assert engine.audience_size(audience) == 1


def test_closing_by_a_stale_handle_leaves_the_tenant_its_owner(rig: Rig) -> None:
    gone = rig.open()
    rig.engine.abort(gone.handle)
    tenant = rig.open()
    owner = Owner()
    rig.engine.own(tenant.handle, owner)
    rig.engine.close(gone.handle, 4010)
    rig.engine.finish(gone.handle)
    rig.engine.abort(gone.handle)
    assert rig.engine.owner(tenant.handle & 0xFFFFFFFF) is owner


def test_a_handle_that_never_was_is_stale(rig: Rig) -> None:
    for handle in (0, 255, 2**32 - 1, 2**64 - 1):
        assert not rig.engine.answer(handle, b"x")
        rig.engine.close(handle, 1000)
        rig.engine.abort(handle)


def test_a_slot_that_is_freed_and_taken_within_one_batch_is_told_apart(rig: Rig) -> None:
    """Its last words and its successor's first ones come in one turn, and each has its own owner."""
    first = rig.open()
    owner = Owner()
    rig.engine.own(first.handle, owner)
    rig.events.clear()
    first.reset()
    second = Client(rig.address)
    rig.clients.append(second)
    second.send(b"hello")
    rig.until(lambda: len(rig.events) == 2)
    told = {event[0]: event for event in rig.events}
    assert told[ENDED][1] is owner
    assert isinstance(told[REQUEST][1], int)
    assert told[REQUEST][2] != first.handle


@pytest.mark.parametrize("end", ["client", "close", "abort", "finish", "another owner"])
def test_the_engine_lets_go_of_an_owner_with_its_connection(rig: Rig, end: str) -> None:
    client = rig.connect() if end == "finish" else rig.open()
    owner = Owner()
    gone = weakref.ref(owner)
    rig.engine.own(client.handle, owner)
    del owner
    assert gone() is not None
    if end == "client":
        client.close()
        rig.until(lambda: rig.of(ENDED))
        rig.events.clear()
    elif end == "close":
        rig.engine.close(client.handle, 1000)
    elif end == "abort":
        rig.engine.abort(client.handle)
    elif end == "finish":
        rig.engine.finish(client.handle)
    else:
        rig.engine.own(client.handle, rig)
        rig.engine.abort(client.handle)
    assert gone() is None


def test_an_engine_that_closes_all_lets_go_of_everybody_without_a_word() -> None:
    rig = Rig()
    clients = [rig.connect(), rig.open(), rig.open()]
    owner = Owner()
    gone = weakref.ref(owner)
    for client in clients:
        rig.engine.own(client.handle, owner)
    del owner
    rig.engine.close_all()
    assert gone() is None
    assert rig.of(ENDED) == []
    for client in clients:
        client.socket.settimeout(5)
        assert client.socket.recv(10) == b""
        client.close()
    rig.listener.close()


# Audiences and the flush.


def jobs_of(*jobs: tuple[int, bytes]) -> list[tuple[int, tuple[bytes | None, ...]]]:
    return [(audience, (build(TEXT, payload), build(BINARY, payload))) for audience, payload in jobs]


def flush(rig: Rig, version: int, *jobs: tuple[int, bytes]) -> None:
    rig.engine.flush_begin(version, jobs_of(*jobs))
    while not rig.engine.flush_step():
        pass


def test_joining_and_leaving_are_counted_once(rig: Rig) -> None:
    client, audience = rig.open(), rig.engine.new_audience()
    assert rig.engine.join(client.handle, audience)
    assert rig.engine.join(client.handle, audience)
    assert rig.engine.audience_size(audience) == 1
    assert rig.engine.leave(client.handle, audience)
    assert not rig.engine.leave(client.handle, audience)
    assert rig.engine.audience_size(audience) == 0


def test_who_is_no_websocket_or_joins_no_audience_does_not_join(rig: Rig) -> None:
    audience = rig.engine.new_audience()
    assert not rig.engine.join(rig.connect().handle, audience)
    assert not rig.engine.join(rig.open().handle, audience + 1)
    assert not rig.engine.leave(rig.open().handle, audience)
    assert rig.engine.audience_size(audience) == 0
    assert rig.engine.audience_size(999) == 0


@pytest.mark.parametrize("end", ["lost", "closed by us", "closed by them", "aborted"])
def test_a_connection_leaves_every_audience_with_its_end(rig: Rig, end: str) -> None:
    client = rig.open()
    audiences = [rig.engine.new_audience() for _ in range(3)]
    for audience in audiences:
        rig.engine.join(client.handle, audience)
    if end == "closed by us":
        rig.engine.close(client.handle, 1000)
    elif end == "aborted":
        rig.engine.abort(client.handle)
    elif end == "lost":
        client.reset()
        rig.until(lambda: rig.of(ENDED))
    else:
        client.send(frame(CLOSE))
        rig.until(lambda: rig.of(ENDED))
    assert [rig.engine.audience_size(audience) for audience in audiences] == [0, 0, 0]


def test_the_number_of_an_audience_that_was_given_back_is_used_again_and_empty(rig: Rig) -> None:
    client = rig.open()
    audience, other = rig.engine.new_audience(), rig.engine.new_audience()
    rig.engine.join(client.handle, audience)
    rig.engine.join(client.handle, other)
    assert rig.engine.free_audience(audience)
    assert not rig.engine.join(client.handle, audience)
    assert rig.engine.new_audience() == audience
    flush(rig, 0, (audience, b"not for you"), (other, b"for you"))
    rig.settle()
    assert client.frames == [(TEXT, b"for you")]


def test_a_flush_tells_every_member_once_and_nobody_else(rig: Rig) -> None:
    members, others = [rig.open() for _ in range(40)], [rig.open() for _ in range(5)]
    audience = rig.engine.new_audience()
    for client in members:
        rig.engine.join(client.handle, audience)
    flush(rig, 0, (audience, b"news"))
    rig.settle()
    assert all(client.frames == [(TEXT, b"news")] for client in members)
    assert all(client.frames == [] for client in others)
    assert rig.stat("deliveries") == 40


def test_each_variant_is_told_its_own_frame_or_nothing(rig: Rig) -> None:
    audience = rig.engine.new_audience()
    clients = [rig.open(text=variant % 2 == 0, variant=variant) for variant in range(4)]
    for client in clients:
        rig.engine.join(client.handle, audience)
    rig.engine.flush_begin(0, [(audience, (build(TEXT, b"zero"), None, build(TEXT, b"two")))])
    assert rig.engine.flush_step()
    rig.settle()
    assert [client.frames for client in clients] == [[(TEXT, b"zero")], [], [(TEXT, b"two")], []]


def test_a_member_of_two_audiences_is_told_both_in_one_call(rig: Rig) -> None:
    client = rig.open()
    one, two = rig.engine.new_audience(), rig.engine.new_audience()
    for audience in (one, two):
        rig.engine.join(client.handle, audience)
    before = rig.stat("sends")
    flush(rig, 0, (one, b"one"), (two, b"two"))
    assert rig.stat("sends") - before == 1
    rig.settle()
    assert sorted(payload for _, payload in client.frames) == [b"one", b"two"]


def test_a_member_of_more_audiences_than_one_call_joins_is_told_all(rig: Rig) -> None:
    client = rig.open()
    audiences = [rig.engine.new_audience() for _ in range(50)]
    for audience in audiences:
        rig.engine.join(client.handle, audience)
    flush(rig, 0, *[(audience, b"%d" % audience) for audience in audiences])
    rig.settle()
    assert sorted(int(payload) for _, payload in client.frames) == audiences


def test_only_one_flush_runs_at_a_time_and_its_audiences_are_not_given_back(rig: Rig) -> None:
    audience = rig.engine.new_audience()
    for _ in range(17):
        rig.engine.join(rig.open().handle, audience)
    rig.engine.flush_begin(0, jobs_of((audience, b"x")))
    assert rig.engine.flush_running
    assert not rig.engine.flush_step(0)
    with pytest.raises(RuntimeError, match="running"):
        rig.engine.flush_begin(1, [])
    assert not rig.engine.free_audience(audience)
    assert rig.engine.flush_step()
    assert not rig.engine.flush_running
    assert rig.engine.flush_step()
    assert rig.engine.free_audience(audience)


def test_a_job_for_no_audience_is_refused_and_leaves_no_flush_running(rig: Rig) -> None:
    with pytest.raises(ValueError, match="no such audience"):
        rig.engine.flush_begin(0, jobs_of((0, b"x")))
    assert not rig.engine.flush_running
    rig.engine.flush_begin(0, [])
    assert rig.engine.flush_step()


def test_a_connection_that_is_answered_during_a_flush_gets_the_flush_first(rig: Rig) -> None:
    clients = [rig.open() for _ in range(60)]
    audience = rig.engine.new_audience()
    for client in clients:
        rig.engine.join(client.handle, audience)
    rig.engine.flush_begin(0, jobs_of((audience, b"flush")))
    assert not rig.engine.flush_step(0)
    for number, client in enumerate(clients):
        if number % 3 == 0:
            assert rig.engine.answer(client.handle, b"answer")
        elif number % 3 == 1:
            assert rig.engine.write(client.handle, build(TEXT, b"answer"))
        else:
            assert rig.engine.tell(client.handle, build(TEXT, b"answer"))
    while not rig.engine.flush_step(0):
        rig.engine.send()
    rig.settle()
    assert all(client.frames == [(TEXT, b"flush"), (TEXT, b"answer")] for client in clients)


def test_one_who_joins_during_a_flush_is_not_told_what_he_knows_newer(rig: Rig) -> None:
    audience, other = rig.engine.new_audience(), rig.engine.new_audience()
    for _ in range(20):
        rig.engine.join(rig.open().handle, audience)
    late = rig.open()
    rig.engine.join(late.handle, other)
    rig.engine.flush_begin(0, jobs_of((audience, b"older"), (other, b"of the other")))
    assert not rig.engine.flush_step(0)
    rig.engine.join(late.handle, audience)
    assert rig.engine.flush_step()
    rig.settle()
    assert late.frames == [(TEXT, b"of the other")]
    flush(rig, 1, (audience, b"newer"))
    rig.settle()
    assert late.frames[1:] == [(TEXT, b"newer")]


@pytest.mark.parametrize("seed", range(8))
def test_whoever_comes_and_goes_during_a_flush_nobody_is_told_twice_and_nobody_is_skipped(rig: Rig, seed: int) -> None:
    """Removal swaps the last member into the hole, in the middle of the walk."""
    random = Random(seed)
    audiences = [rig.engine.new_audience() for _ in range(2)]
    clients = [rig.open() for _ in range(120)]
    inside: list[set[Client]] = [set(), set()]
    for number, audience in enumerate(audiences):
        for client in random.sample(clients, 90):
            rig.engine.join(client.handle, audience)
            inside[number].add(client)
    stayed = [set(members) for members in inside]
    began = [set(members) for members in inside]
    payloads = [b"first", b"second"]
    rig.engine.flush_begin(0, jobs_of(*zip(audiences, payloads, strict=True)))
    while not rig.engine.flush_step(0):
        for _ in range(random.randrange(8)):
            number = random.randrange(2)
            client = random.choice(clients)
            if client in inside[number]:
                assert rig.engine.leave(client.handle, audiences[number])
                inside[number].discard(client)
                stayed[number].discard(client)
            elif random.random() < 0.5:
                assert rig.engine.join(client.handle, audiences[number])
                inside[number].add(client)
        if random.random() < 0.3:
            gone = random.choice(clients)
            clients.remove(gone)
            rig.engine.abort(gone.handle)
            for members in (*inside, *stayed):
                members.discard(gone)
    rig.settle()
    for number, payload in enumerate(payloads):
        for client in clients:
            count = client.told(payload)
            if client in stayed[number]:
                assert count == 1
            else:
                assert count <= (client in began[number])
    assert [rig.engine.audience_size(audience) for audience in audiences] == [len(members) for members in inside]


# Full sockets.


def test_a_full_socket_is_left_out_and_told_as_drained_with_the_version_it_had(make_rig: MakeRig) -> None:
    rig = make_rig(**SMALL)
    audience = rig.engine.new_audience()
    quick, slow = rig.open(), rig.stall()
    owner = Owner()
    rig.engine.own(slow.handle, owner)
    for client in (quick, slow):
        rig.engine.join(client.handle, audience)
    for version in (7, 8, 9):
        flush(rig, version, (audience, b"after %d" % version))
    rig.settle()
    assert quick.frames == [(TEXT, b"after 7"), (TEXT, b"after 8"), (TEXT, b"after 9")]
    assert (rig.stat("lagging"), rig.stat("skipped")) == (1, 3)
    assert rig.of(DRAINED) == []
    slow.reading = True
    rig.until(lambda: rig.of(DRAINED))
    assert rig.of(DRAINED) == [(owner, slow.handle, 7)]
    rig.until(lambda: len(slow.frames) == 1)
    assert slow.frames == [(TEXT, b"x" * 600_000)]
    assert rig.stat("lagging") == 0


def test_one_who_missed_something_is_told_nothing_until_he_has_caught_up(make_rig: MakeRig) -> None:
    rig = make_rig(**SMALL)
    audience = rig.engine.new_audience()
    slow = rig.stall()
    rig.engine.join(slow.handle, audience)
    flush(rig, 7, (audience, b"missed"))
    slow.reading = True
    rig.until(lambda: rig.of(DRAINED))
    flush(rig, 8, (audience, b"too early"))
    assert not rig.engine.tell(slow.handle, build(TEXT, b"too early"))
    assert rig.engine.answer(slow.handle, b"what was missed")
    rig.engine.caught_up(slow.handle)
    flush(rig, 9, (audience, b"again"))
    assert rig.engine.tell(slow.handle, build(TEXT, b"and again"))
    rig.settle()
    assert slow.frames[1:] == [(TEXT, b"what was missed"), (TEXT, b"again"), (TEXT, b"and again")]


def test_one_who_is_caught_up_during_a_flush_is_not_told_its_older_news(make_rig: MakeRig) -> None:
    rig = make_rig(**SMALL)
    audience = rig.engine.new_audience()
    slow = rig.stall()
    rig.engine.join(slow.handle, audience)
    flush(rig, 7, (audience, b"missed"))
    slow.reading = True
    rig.until(lambda: rig.of(DRAINED))
    for _ in range(40):
        rig.engine.join(rig.open().handle, audience)
    rig.engine.flush_begin(8, jobs_of((audience, b"older")))
    assert not rig.engine.flush_step(0)
    rig.engine.answer(slow.handle, b"everything up to now")
    rig.engine.caught_up(slow.handle)
    while not rig.engine.flush_step():
        pass
    rig.settle()
    assert slow.frames[1:] == [(TEXT, b"everything up to now")]


def test_a_full_socket_that_missed_nothing_is_drained_without_a_version(make_rig: MakeRig) -> None:
    rig = make_rig(**SMALL)
    slow = rig.stall()
    slow.reading = True
    rig.until(lambda: rig.of(DRAINED))
    assert rig.of(DRAINED)[0][2] is None


def test_a_flush_fills_a_socket_with_whole_frames_only(make_rig: MakeRig) -> None:
    """Frames that a socket takes half of are finished; those it takes nothing of are left out, with their version."""
    rig = make_rig(**SMALL)
    audience = rig.engine.new_audience()
    slow = rig.open(receive_buffer=4096)
    slow.reading = False
    rig.engine.join(slow.handle, audience)
    for version in range(200):
        flush(rig, version, (audience, b"%d " % version + b"x" * 2_000))
    slow.reading = True
    rig.until(lambda: rig.of(DRAINED))
    rig.settle()
    numbers = [int(payload.split()[0]) for _, payload in slow.frames]
    assert numbers == list(range(len(numbers)))
    assert rig.of(DRAINED)[0][2] == len(numbers) < 200


def test_a_connection_whose_answers_do_not_drain_is_not_read_from(make_rig: MakeRig) -> None:
    rig = make_rig(**SMALL)
    slow, other = rig.stall(), rig.open()
    slow.send(frame(TEXT, b"later"))
    other.send(frame(TEXT, b"now"))
    rig.until(lambda: messages(rig))
    rig.settle()
    assert messages(rig) == [(native.TEXT, b"now")]
    slow.reading = True
    rig.until(lambda: len(messages(rig)) == 2)


def test_a_write_over_the_bound_is_refused_and_leaves_no_half_of_it(make_rig: MakeRig) -> None:
    rig = make_rig(**SMALL)
    slow = rig.stall(size=300_000)
    bound = 350_000
    taken = [rig.engine.answer(slow.handle, b"%d" % n + b"y" * 10_000, bound) for n in range(50)]
    assert 1 <= taken.count(True) <= 10
    assert taken == sorted(taken, reverse=True)
    slow.reading = True
    rig.until(lambda: rig.of(DRAINED))
    rig.settle()
    assert len(slow.frames) == 1 + taken.count(True)


@pytest.mark.skipif("libasan" in os.environ.get("LD_PRELOAD", ""), reason="a sanitizer keeps what was freed")
def test_a_reader_that_is_always_a_little_behind_costs_no_more_than_its_bound(make_rig: MakeRig) -> None:
    rig = make_rig(**SMALL)
    slow = rig.stall(size=60_000)
    before = rss_bytes()
    through = 0
    stream_frames = 0
    while through < 60_000_000:
        if rig.engine.answer(slow.handle, b"y" * 8_000, 64_000):
            stream_frames += 1
        through += slow.read(8_000)
        slow.raw = b""
        slow.frames.clear()
        rig.engine.run()
        assert rig.engine.lagging(slow.handle) or through < 100_000, "drained: the test asks nothing"
    assert stream_frames > 1_000
    assert rss_bytes() - before < 8_000_000


def test_one_who_lags_for_too_long_is_closed_with_4009(make_rig: MakeRig) -> None:
    rig = make_rig(send_buffer=4608, lag_time_ms=400)
    slow = rig.stall()
    begun_s = time.monotonic()
    rig.until(lambda: rig.of(ENDED))
    assert 0.4 <= time.monotonic() - begun_s < 0.4 + 0.25 + 1.0
    assert [(how, data[0]) for _, how, data in rig.of(ENDED)] == [(LAGGED, 4009)]
    slow.reading = True
    rig.until(lambda: slow.codes)
    assert slow.codes == [4009]
    assert slow.frames[0] == (TEXT, b"x" * 600_000)


def test_one_who_drains_in_time_is_not_closed(make_rig: MakeRig) -> None:
    rig = make_rig(send_buffer=4608, lag_time_ms=1_000)
    slow = rig.stall()
    slow.reading = True
    rig.until(lambda: rig.of(DRAINED))
    begun_s = time.monotonic()
    rig.until(lambda: time.monotonic() - begun_s > 1.5)
    rig.settle()
    assert rig.of(ENDED) == []


def test_one_who_goes_while_his_socket_is_full_is_told_as_lost(make_rig: MakeRig) -> None:
    rig = make_rig(**SMALL)
    slow = rig.stall()
    slow.reset()
    rig.until(lambda: rig.of(ENDED))
    assert rig.of(ENDED)[0][1] == LOST
    assert (rig.stat("connections"), rig.stat("lagging")) == (0, 0)


def test_a_close_goes_behind_what_waits(make_rig: MakeRig) -> None:
    rig = make_rig(**SMALL)
    slow = rig.stall()
    rig.engine.close(slow.handle, 4010)
    slow.reading = True
    rig.until(lambda: slow.codes)
    assert [opcode for opcode, _ in slow.frames] == [TEXT, CLOSE]


# Limits.


def test_over_the_limit_of_connections_one_is_answered_with_503_and_accepted_when_there_is_room(
    make_rig: MakeRig,
) -> None:
    rig = make_rig(connections=3)
    clients = [rig.connect() for _ in range(3)]
    over = Client(rig.address)
    rig.clients.append(over)
    rig.until(lambda: over.ended)
    head, _, body = over.raw.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 503 ")
    assert b"Retry-After: " in head
    length = re.search(rb"Content-Length: (\d+)", head)
    assert length is not None
    assert int(length[1]) == len(body)
    assert body.startswith(b'{"error":{"code":"unavailable"')
    assert (rig.stat("refused"), rig.stat("connections")) == (1, 3)
    rig.engine.abort(clients[0].handle)
    rig.connect()


def test_one_who_stops_listening_keeps_its_connections_and_takes_no_more(rig: Rig) -> None:
    client = rig.open()
    rig.engine.stop_listening()
    newcomer = Client(rig.address)
    rig.clients.append(newcomer)
    newcomer.send(b"hello")
    rig.settle()
    client.send(frame(TEXT, b"a"))
    rig.until(lambda: messages(rig))
    assert rig.stat("accepted") == 1


class Limited:
    """An engine in a process of its own that may open `room` more files."""

    def __init__(self, room: int, *, spare: bool = True) -> None:
        command = [sys.executable, "-m", "tests.support.limited_engine", "spare" if spare else "no spare", str(room)]
        self.child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.child.stdin is not None
        assert self.child.stdout is not None
        self.stdin, self.stdout = self.child.stdin, self.child.stdout
        self.clients: list[native_socket.socket] = []
        self.port = int(self.stdout.readline())

    def ask(self, room: int | None = None) -> tuple[int, int, int]:
        """(turns that took something, connections, refused); with `room`, so many more files from now on."""
        self.stdin.write("?\n" if room is None else f"{room}\n")
        self.stdin.flush()
        turns, connections, refused = self.stdout.readline().split()
        return int(turns), int(connections), int(refused)

    def connect(self) -> native_socket.socket:
        client = native_socket.create_connection(("127.0.0.1", self.port), timeout=10)
        self.clients.append(client)
        client.sendall(b"hello")
        return client

    def __enter__(self) -> "Limited":
        return self

    def __exit__(self, *_: object) -> None:
        for client in self.clients:
            client.close()
        self.stdin.close()
        self.stdout.close()
        assert self.child.wait(10) == 0


def test_at_the_descriptor_limit_the_engine_answers_503_serves_what_it_has_and_recovers() -> None:
    with Limited(room=10) as limited:
        served = [limited.connect() for _ in range(10)]
        assert [client.recv(100) for client in served] == [b"served"] * 10
        assert limited.connect().recv(1000).startswith(b"HTTP/1.1 503 ")
        before, connections, _ = limited.ask()
        assert connections == 10
        for _ in range(20):
            served[0].sendall(b"still there?")
            assert served[0].recv(100) == b"served"
        turns, _, refused = limited.ask()
        assert turns - before <= 20 + 5
        assert refused >= 1
        for client in served[2:]:
            client.close()
        # Whoever waits in the queue by now is either told 503 or served; from here on there is room for all.
        deadline_s = time.monotonic() + 5
        while limited.connect().recv(100) != b"served":
            assert time.monotonic() < deadline_s


def test_without_a_spare_descriptor_newcomers_wait_and_are_served_as_soon_as_there_is_room() -> None:
    with Limited(room=0, spare=False) as limited:
        waiting = limited.connect()
        before = limited.ask()[0]
        waiting.settimeout(1.0)
        with pytest.raises(TimeoutError):
            waiting.recv(100)
        turns, connections, _ = limited.ask()
        assert connections == 0
        assert turns - before < 20  # it looks now and then, and does not spin on a listener that it can't serve
        limited.ask(room=5)
        waiting.settimeout(10)
        assert waiting.recv(100) == b"served"


def rss_bytes() -> int:
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * resource.getpagesize()


@pytest.mark.skipif("libasan" in os.environ.get("LD_PRELOAD", ""), reason="a sanitizer keeps what was freed")
def test_ten_thousand_connections_that_come_and_go_leave_nothing(rig: Rig) -> None:
    owner = Owner()
    references = sys.getrefcount(owner)
    audience = rig.engine.new_audience()

    def on_event(event: tuple[int, object, int, object]) -> None:
        if event[0] == REQUEST:
            rig.engine.own(event[2], owner)
            rig.engine.upgrade(event[2], True, 0, frame(TEXT, b"half", fin=False))
            rig.engine.join(event[2], audience)
            rig.engine.answer(event[2], b"welcome")

    def cycles(count: int) -> None:
        for _ in range(count // 50):
            clients = [Client(rig.address) for _ in range(50)]
            for client in clients:
                client.send(b"hello")
            ended = len(rig.of(ENDED))
            rig.until(lambda: rig.engine.audience_size(audience) == 50)
            for client in clients:
                client.reset()  # and no port is left waiting
            rig.until(lambda before=ended: len(rig.of(ENDED)) == before + 50)  # type: ignore[misc]
            rig.events.clear()

    rig.on_event = on_event
    cycles(1_000)
    before = rss_bytes()
    cycles(10_000)
    assert rss_bytes() - before < 2_000_000
    assert sys.getrefcount(owner) == references
    assert rig.stat("accepted") == 11_000
    assert rig.stat("connections") == rig.engine.audience_size(audience) == 0
