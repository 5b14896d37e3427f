"""What one stranger may take of the engine: connections from one address, messages in one turn, bytes that wait."""

import contextlib
import re
import socket
from random import Random

import pytest

from fastpresence._native import engine as native
from fastpresence._native.engine import ENDED, Engine
from fastpresence._native.framing import BINARY, CLOSE, TEXT, build, build_masked
from tests.support.engine import KEY, Carrier, Client, MakeRig, Rig

#: What one visit takes: messages, and bytes of messages after which none follows.
VISIT_MESSAGES, VISIT_BYTES = 64, 4096


def messages(rig: Rig) -> list[bytes]:
    return [event[3] for event in rig.events if event[0] in (native.TEXT, native.BINARY)]


# Connections from one address.


def test_over_its_limit_an_address_is_answered_with_429_and_others_are_served(make_rig: MakeRig) -> None:
    rig = make_rig(connections_per_address=3)
    clients = [rig.connect() for _ in range(3)]
    over = Client(rig.address)
    over.send(b"hello")
    rig.clients.append(over)
    rig.until(lambda: over.ended)
    head, _, body = over.raw.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 429 ")
    assert b"Retry-After: " in head
    length = re.search(rb"Content-Length: (\d+)", head)
    assert length is not None
    assert int(length[1]) == len(body)
    assert body.startswith(b'{"error":{"code":"too_many"')
    assert (rig.stat("crowded"), rig.stat("refused"), rig.stat("connections")) == (1, 0, 3)
    with socket.create_connection(rig.address, source_address=("127.0.0.2", 0)) as elsewhere:
        elsewhere.sendall(b"from elsewhere")
        rig.until(lambda: [data for _, _, data in rig.of(native.REQUEST)][-1] == b"from elsewhere")
    rig.engine.abort(clients[0].handle)
    rig.connect()
    assert rig.stat("crowded") == 1


@pytest.mark.parametrize("end", ["abort", "finish", "close", "reset", "violation", "goodbye"])
def test_a_place_is_given_back_with_the_record_however_the_connection_ends(make_rig: MakeRig, end: str) -> None:
    rig = make_rig(connections_per_address=1)
    for _ in range(5):
        client = rig.connect() if end == "finish" else rig.open()
        if end == "abort":
            rig.engine.abort(client.handle)
        elif end == "finish":
            rig.engine.finish(client.handle)
            client.close()
        elif end == "close":
            rig.engine.close(client.handle, 4010)
            rig.until(lambda client=client: client.codes)  # type: ignore[misc]
            client.send(build_masked(CLOSE, b"\x0f\xaa", KEY))
        elif end == "reset":
            client.reset()
        elif end == "violation":
            client.send(b"\xff\xff\xff")
        else:
            client.send(build_masked(CLOSE, b"\x03\xe8", KEY))
        rig.until(lambda client=client: client.ended)  # type: ignore[misc]
        client.close()
        rig.until(lambda: rig.stat("connections") == 0)
    assert rig.stat("crowded") == 0


@pytest.mark.parametrize(
    ("one", "other", "are_the_same"),
    [
        ("192.0.2.1", "192.0.2.1", True),
        ("192.0.2.1", "192.0.2.2", False),
        ("192.0.2.1", "::ffff:192.0.2.1", True),
        ("192.0.2.1", "::ffff:192.0.2.2", False),
        ("192.0.2.1", "::192.0.2.1", False),
        ("192.0.2.1", "0:ffff:c000:201::", True),  # no network has this prefix; were there one, it would be counted
        ("2001:db8::1", "2001:db8::ffff:ffff:ffff:ffff", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("2001:db8:0:8000::1", "2001:db8::1", False),
        ("fe80::1%lo", "fe80::1%eth0", True),
        ("::1", "::2", True),
        ("::1", "127.0.0.1", False),
    ],
)
def test_ipv4_counts_by_the_address_and_ipv6_by_its_64(one: str, other: str, are_the_same: bool) -> None:
    engine = Engine(lambda events: None, connections_per_address=1)
    first, second = Carrier(engine, one), Carrier(engine, other)
    assert first.handle is not None
    assert (second.handle is None) is are_the_same
    assert engine.stats()["crowded"] == are_the_same
    engine.abort(first.handle)
    assert Carrier(engine, one).handle is not None
    engine.close_all()


def test_a_network_is_told_by_the_number_that_limits_count_by() -> None:
    engine = Engine(lambda events: None)

    def network(address: str) -> int:
        handle = Carrier(engine, address).handle
        assert handle is not None
        return engine.network(handle)

    assert network("2001:db8::1") == network("2001:db8::ffff:1") != network("2001:db8:0:1::1")
    assert network("192.0.2.1") == network("::ffff:192.0.2.1") != network("192.0.2.2")
    assert network("nowhere") == network("") == engine.network(1 << 40) == 0
    engine.close_all()


@pytest.mark.parametrize("address", ["", "not an address", "/run/a.socket", "é", "1" * 100, "%", "\0"])
def test_what_is_no_address_is_not_counted(address: str) -> None:
    engine = Engine(lambda events: None, connections_per_address=1)
    assert all(Carrier(engine, address).handle is not None for _ in range(3))
    engine.close_all()


def test_without_a_limit_nothing_is_counted() -> None:
    engine = Engine(lambda events: None)
    assert all(Carrier(engine, "192.0.2.1").handle is not None for _ in range(1000))
    engine.close_all()


@pytest.mark.parametrize("seed", range(3))
def test_however_many_addresses_come_and_go_each_has_its_limit_and_no_less(seed: int) -> None:
    random = Random(seed)
    limit = 3
    engine = Engine(lambda events: None, connections_per_address=limit)
    there: dict[str, list[int]] = {}
    refused = 0
    for step in range(20_000):
        grows = step < 12_000
        number = random.randrange(3_000)
        address = f"10.0.{number >> 8}.{number & 255}" if number % 2 else f"2001:db8:{number:x}::{step:x}"
        name = address if number % 2 else f"{number:x}"
        handles = there.setdefault(name, [])
        if random.random() < (0.8 if grows else 0.2):
            handle = Carrier(engine, address).handle
            assert (handle is None) is (len(handles) == limit)
            if handle is None:
                refused += 1
            else:
                handles.append(handle)
        elif handles:
            engine.abort(handles.pop(random.randrange(len(handles))))
    stats = engine.stats()
    assert stats["crowded"] == refused > 100
    assert stats["connections"] == sum(map(len, there.values()))
    engine.close_all()


# Held connections.


def test_a_crowd_that_is_held_keeps_nobody_else_from_being_seen(make_rig: MakeRig) -> None:
    rig = make_rig()
    crowd = [rig.open() for _ in range(200)]  # more than three times what one turn looks at
    other = rig.open()
    for client in crowd:
        rig.engine.hold(client.handle, True)
        client.send_frame(TEXT, b"me, too")
    other.send_frame(TEXT, b"me")
    rig.until(lambda: messages(rig))
    assert messages(rig) == [b"me"]
    assert rig.engine.run() == 0  # nor is the loop kept busy
    for client in crowd:
        rig.engine.hold(client.handle, False)
    rig.until(lambda: len(messages(rig)) == 201)


def test_one_that_is_held_and_then_closed_says_goodbye_as_everybody_does(make_rig: MakeRig) -> None:
    rig = make_rig()
    client = rig.open()
    rig.engine.hold(client.handle, True)
    client.send_frame(TEXT, b"unheard")
    rig.turn()
    rig.engine.close(client.handle, 4000)
    rig.engine.send()
    rig.until(lambda: client.codes == [4000])
    client.send_frame(CLOSE, b"\x0f\xa0")
    rig.until(lambda: client.ended)
    assert messages(rig) == []


def test_the_carrier_of_one_that_is_held_is_told_once_each_way_and_when_it_is_closed() -> None:
    # Found by reading: a TLS connection that waited its turn was read from all the same, as fast as it could send.
    told: list[bool] = []

    class Held(Carrier):
        def hold(self, held: bool) -> None:
            told.append(held)

    engine = Engine(lambda events: None)
    carrier = Held(engine)
    assert carrier.handle is not None
    engine.upgrade(carrier.handle, True, 0)
    for held in (True, True, False, False, True):
        engine.hold(carrier.handle, held)
    assert told == [True, False, True]
    engine.close(carrier.handle, 4000)  # what it answers is to be read
    assert told == [True, False, True, False]
    engine.close_all()


def test_one_that_is_held_while_its_socket_is_full_goes_on_only_when_both_are_over(make_rig: MakeRig) -> None:
    rig = make_rig(send_buffer=4096)
    client = rig.open(receive_buffer=4096)
    client.reading = False
    rig.engine.write(client.handle, build(TEXT, b"x" * 1_000_000), 1 << 22)
    rig.engine.send()
    assert rig.engine.lagging(client.handle)
    rig.engine.hold(client.handle, True)
    client.send_frame(TEXT, b"later")
    client.reading = True
    rig.until(lambda: not rig.engine.lagging(client.handle))
    rig.turn()
    assert messages(rig) == []
    rig.engine.hold(client.handle, False)
    rig.until(lambda: messages(rig) == [b"later"])


# What one connection may say in one turn.


def test_one_turn_takes_a_bounded_number_of_messages_of_one_connection_and_none_is_forgotten(rig: Rig) -> None:
    talker, other = rig.open(), rig.open()
    count = 1000
    talker.send(b"".join(build_masked(TEXT, b"%d" % number, KEY) for number in range(count)))
    other.send_frame(TEXT, b"heard")
    taken = []
    while len(messages(rig)) < count + 1:
        before = len(messages(rig))
        rig.turn(1.0)
        taken.append(len(messages(rig)) - before)
    assert max(taken) <= VISIT_MESSAGES + 1
    assert b"heard" in messages(rig)[: VISIT_MESSAGES + 1]
    assert [data for data in messages(rig) if data != b"heard"] == [b"%d" % number for number in range(count)]
    talker.send_frame(TEXT, b"as before")
    rig.until(lambda: messages(rig)[-1] == b"as before")


def test_one_turn_takes_a_bounded_number_of_bytes_of_messages_and_always_one(rig: Rig) -> None:
    talker = rig.open()
    sizes = [3000, 2000, 10, 5000, 4096, 1, 4095, 1, 60_000]
    talker.send(b"".join(build_masked(BINARY, b"x" * size, KEY) for size in sizes))
    turns = []
    while len(messages(rig)) < len(sizes):
        before = len(messages(rig))
        rig.turn(1.0)
        turns.append([len(data) for data in messages(rig)[before:]])
    assert [size for turn in turns for size in turn] == sizes
    assert all(sum(turn[:-1]) < VISIT_BYTES for turn in turns)


def test_a_frame_in_two_halves_behind_a_full_visit_is_put_together(rig: Rig) -> None:
    talker = rig.open()
    last = build_masked(TEXT, b"in two halves", KEY)
    talker.send(b"".join(build_masked(TEXT, b"%d" % n, KEY) for n in range(VISIT_MESSAGES)) + last[:5])
    rig.until(lambda: len(messages(rig)) == VISIT_MESSAGES)
    rig.turn()
    rig.turn()
    talker.send(last[5:])
    rig.until(lambda: messages(rig)[-1] == b"in two halves")


def test_what_one_said_before_he_went_is_heard_though_it_takes_several_turns(rig: Rig) -> None:
    talker = rig.open()
    talker.send(b"".join(build_masked(TEXT, b"x", KEY) for _ in range(300)))
    talker.close()
    rig.until(lambda: rig.of(ENDED))
    assert len(messages(rig)) == 300


def test_a_close_of_ours_in_the_middle_of_much_to_say_ends_with_the_peer_s(rig: Rig) -> None:
    talker = rig.open()
    frames = [build_masked(TEXT, b"x", KEY) for _ in range(200)]
    talker.send(b"".join(frames) + build_masked(CLOSE, b"\x0f\xbd", KEY))
    rig.until(lambda: messages(rig))
    rig.engine.close(talker.handle, 4029)
    rig.engine.send()
    rig.until(lambda: talker.ended)
    assert talker.codes == [4029]
    assert len(messages(rig)) == VISIT_MESSAGES
    assert rig.of(ENDED) == []


def test_who_does_not_read_his_answers_is_not_heard_though_what_he_said_is_here(make_rig: MakeRig) -> None:
    rig = make_rig(send_buffer=4608)
    talker = rig.open(receive_buffer=4096)
    talker.reading = False
    talker.send(b"".join(build_masked(TEXT, b"x", KEY) for _ in range(200)))

    def answer(event: tuple[int, object, int, object]) -> None:
        if event[0] == native.TEXT:
            rig.engine.answer(talker.handle, b"y" * 10_000)

    rig.on_event = answer
    rig.until(lambda: rig.engine.lagging(talker.handle))
    for _ in range(20):
        rig.turn(0.01)
    assert len(messages(rig)) == VISIT_MESSAGES
    talker.reading = True
    rig.until(lambda: len(messages(rig)) == 200)
    rig.until(lambda: talker.told(b"y" * 10_000) == 200)


def test_one_who_is_held_is_not_heard_until_he_is_let_go(rig: Rig) -> None:
    talker, other = rig.open(), rig.open()
    talker.send(b"".join(build_masked(TEXT, b"%d" % n, KEY) for n in range(VISIT_MESSAGES + 1)))
    rig.until(lambda: messages(rig))
    rig.engine.hold(talker.handle, True)
    other.send_frame(TEXT, b"other")
    rig.until(lambda: b"other" in messages(rig))
    assert len(messages(rig)) == VISIT_MESSAGES + 1
    rig.engine.hold(talker.handle, False)
    rig.until(lambda: messages(rig)[-1] == b"%d" % VISIT_MESSAGES)
    rig.engine.hold(talker.handle, True)
    rig.engine.close(talker.handle, 4010)
    rig.engine.send()
    talker.send_frame(CLOSE, b"\x0f\xaa")
    rig.until(lambda: talker.ended)


def test_a_carried_connection_is_heard_in_visits_and_stops_while_its_carrier_is_full() -> None:
    batches: list[int] = []
    told: list[bytes] = []

    def on_batch(events: list[tuple[int, object, int, bytes]]) -> None:
        batches.append(len(events))
        told.extend(event[3] for event in events if event[0] == native.TEXT)
        if events[0][0] == native.TEXT and len(told) == 3 * VISIT_MESSAGES and handle is not None:
            engine.full(handle)

    engine = Engine(on_batch)
    carrier = Carrier(engine)
    handle = carrier.handle
    assert handle is not None
    engine.upgrade(handle, True, 0)
    everything = [build_masked(TEXT, b"%d" % number, KEY) for number in range(1000)]
    engine.feed(handle, b"".join(everything[:600]))
    assert len(told) == 3 * VISIT_MESSAGES
    engine.feed(handle, b"".join(everything[600:]))  # its carrier had these already when it was told to stop
    assert len(told) == 3 * VISIT_MESSAGES
    engine.drained(handle)
    assert told == [b"%d" % number for number in range(1000)]
    assert max(batches) <= VISIT_MESSAGES + 1
    engine.hold(handle, True)
    engine.feed(handle, b"".join(everything[:100]))
    assert len(told) == 1000
    engine.hold(handle, False)
    assert len(told) == 1100
    engine.lost(handle)
    assert carrier.is_cut
    engine.close_all()


# What may wait.


def test_what_one_turn_gathers_counts_for_the_bound_of_what_waits(make_rig: MakeRig) -> None:
    rig = make_rig(send_buffer=4608)
    slow = rig.open(receive_buffer=4096)
    slow.reading = False
    bound = 65_536
    taken = [rig.engine.answer(slow.handle, b"%04d" % n + b"y" * 8_000, bound) for n in range(400)]
    assert taken == sorted(taken, reverse=True)
    assert 8 <= taken.count(True) < 300  # not the whole arena: the sockets' buffers and the bound
    assert rig.engine.waiting(slow.handle) <= bound + 8_004
    rig.engine.send()
    slow.reading = True
    rig.until(lambda: len(slow.frames) == taken.count(True))
    assert [int(frame.payload[:4]) for frame in slow.frames] == list(range(taken.count(True)))
    with contextlib.suppress(BlockingIOError):
        rig.until(lambda: rig.engine.waiting(slow.handle) == 0)
