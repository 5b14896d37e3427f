"""Calls over real sockets: who rings, who is told what, who is busy by it, and that nobody ever stays so."""

import asyncio
import os
import signal
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.conftest import Start
from tests.support.clients import Client, Clients, Codec, Frame
from tests.support.scene import fresh
from tests.support.server import Server, shared

both_codecs = pytest.mark.parametrize("codec", ["json", "msgpack"])
VERBS = ("call_accept", "call_reject", "call_cancel", "call_end", "call_signal")


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    yield from shared({"presence.heartbeat_timeout": 60, "limits.rate": 10_000, "limits.burst": 10_000})


def about(client: Client, call_id: str) -> list[Frame]:
    """What the client was told of this call, in order."""
    return [frame for _, frame in client.frames if frame.get("call_id") == call_id]


def kinds(client: Client, call_id: str) -> list[str]:
    return [frame["type"] for frame in about(client, call_id)]


async def online(clients: Clients, kind: str = "user", **kwargs: Any) -> Client:
    return await clients.online(kwargs.pop("user_id", None) or fresh(kind), kind, public=False, **kwargs)


async def ring(caller: Client, callee: Client, *devices: Client) -> str:
    """A new call, which has reached the callee and these devices of his."""
    call_id = fresh("call")
    await caller.do("call", call_id=call_id, to_user_id=callee.user_id, video=True, audio=True)
    for device in (callee, *devices):
        await device.take("call", call_id=call_id)
    return call_id


async def connect_call(caller: Client, callee: Client, *devices: Client) -> str:
    """A call that the callee took, as everybody in it knows."""
    call_id = await ring(caller, callee, *devices)
    await callee.do("call_accept", call_id=call_id)
    for other in (caller, *devices):
        await other.take("call_accept", call_id=call_id)
    return call_id


async def watch(clients: Clients, *users: Client) -> Client:
    """Somebody who sees what these show as."""
    watcher = await clients.connect(fresh("watcher"), public=False)
    await watcher.do("subscribe", user_ids=[user.user_id for user in users])
    await watcher.until(lambda: all(watcher.view.status(user.user_id) for user in users), "the users")
    return watcher


async def nothing_is_left(client: Client, call_id: str) -> None:
    """Of a call that is over nothing can be moved."""
    for verb in VERBS:
        fields = {"data": "x"} if verb == "call_signal" else {}
        await client.refused(verb, "unknown_call", call_id=call_id, **fields)


# The way of a call.


@both_codecs
def test_a_call_rings_at_every_device_is_taken_by_one_and_makes_both_busy_until_it_ends(
    server: Server, codec: Codec
) -> None:
    async def story() -> None:
        async with Clients(server) as clients:
            caller = await online(clients, codec=codec)
            host = fresh("kol")
            phone = await online(clients, "kol", user_id=host, device="phone", codec="json")
            tablet = await online(clients, "kol", user_id=host, device="tablet", codec="msgpack", status="away")
            watcher = await watch(clients, caller, phone)
            stranger = await online(clients)
            call_id = fresh("call")
            before = int(time.time())
            await caller.do("call", call_id=call_id, to_user_id=host, video=False, audio=True, timestamp=1)
            named = {"call_id": call_id, "video": False, "audio": True}
            to_host = {**named, "from_user_id": caller.user_id, "to_user_id": host}
            to_caller = {**named, "from_user_id": host, "to_user_id": caller.user_id}
            for device in (phone, tablet):
                frame = dict(await device.take("call"))
                assert before <= frame.pop("timestamp") <= int(time.time())
                assert frame == {"type": "call", **to_host}
            assert watcher.view.statuses(host) == ["online"]  # ringing is not busy
            await tablet.do("call_accept", call_id=call_id)
            for told in (caller, phone):
                frame = dict(await told.take("call_accept"))
                assert before <= frame.pop("timestamp") <= int(time.time())
                assert frame == {"type": "call_accept", **to_caller}
            await watcher.sees(host, "busy")
            await watcher.sees(caller.user_id, "busy")
            # Signals go to the other end and to nobody else.
            await caller.do("call_signal", call_id=call_id, data='{"sdp": "é\u0000"}')
            frame = dict(await tablet.take("call_signal"))
            assert isinstance(frame.pop("timestamp"), int)
            assert frame == {"type": "call_signal", **to_host, "data": '{"sdp": "é\u0000"}'}
            await tablet.do("call_signal", call_id=call_id, data="a" * 16_384)
            assert (await caller.take("call_signal"))["data"] == "a" * 16_384
            await caller.do("call_end", call_id=call_id)
            frame = dict(await tablet.take("call_end"))
            assert isinstance(frame.pop("timestamp"), int)
            assert frame == {"type": "call_end", **to_host, "reason": "hangup"}
            await watcher.sees(host, "online")
            await watcher.sees(caller.user_id, "online")
            for each in (caller, phone, tablet, stranger):
                await each.beat()
            assert kinds(phone, call_id) == ["call", "call_accept"]
            assert kinds(tablet, call_id) == ["call", "call_signal", "call_end"]
            assert kinds(caller, call_id) == ["call_accept", "call_signal"]
            assert kinds(stranger, call_id) == []
            assert watcher.view.statuses(host) == ["online", "busy", "online"]
            await nothing_is_left(caller, call_id)

    asyncio.run(story())


@both_codecs
@pytest.mark.parametrize(
    ("who", "verb", "told"),
    [
        ("callee", "call_reject", "call_reject"),
        ("callee", "call_end", "call_reject"),
        ("caller", "call_cancel", "call_cancel"),
        ("caller", "call_end", "call_cancel"),
        ("caller's other", "call_cancel", "call_cancel"),
    ],
)
def test_a_call_that_rings_can_be_rejected_or_taken_back_and_everybody_else_in_it_is_told(
    server: Server, codec: Codec, who: str, verb: str, told: str
) -> None:
    async def story() -> None:
        async with Clients(server) as clients:
            caller = await online(clients, codec=codec, device="phone")
            callee = await online(clients, "kol", codec=codec, device="phone")
            tablet = await online(clients, "kol", user_id=callee.user_id, codec=codec, device="tablet")
            others = await online(clients, user_id=caller.user_id, codec=codec, device="laptop")
            watcher = await watch(clients, caller, callee)
            call_id = await ring(caller, callee, tablet)
            actor = {"callee": callee, "caller": caller, "caller's other": others}[who]
            await actor.do(verb, call_id=call_id)
            for each in {caller, callee, tablet} - {actor}:
                frame = await each.take(told, call_id=call_id)
                assert frame["from_user_id"] == actor.user_id
                assert "reason" not in frame
            await nothing_is_left(caller, call_id)
            await watcher.beat()
            assert watcher.view.statuses(callee.user_id) == ["online"]
            assert all(kind in ("call", told) for each in (caller, callee, tablet) for kind in kinds(each, call_id))
            await connect_call(caller, callee, tablet)  # and he may be called again

    asyncio.run(story())


def test_a_call_that_was_taken_is_ended_by_either_user_from_any_session_but_not_undone_by_another_device(
    server: Server,
) -> None:
    async def story() -> None:
        async with Clients(server) as clients:
            caller, callee = await online(clients, device="a"), await online(clients, "kol", device="phone")
            tablet = await online(clients, "kol", user_id=callee.user_id, device="tablet")
            laptop = await online(clients, user_id=caller.user_id, device="b")
            # A reject that comes late.
            call_id = await connect_call(caller, callee, tablet)
            await tablet.refused("call_reject", "unknown_call", call_id=call_id)
            await tablet.refused("call_accept", "unknown_call", call_id=call_id)
            await callee.do("call_accept", call_id=call_id)  # said again by who did not hear of it
            await callee.refused("call_cancel", "unknown_call", call_id=call_id)
            await caller.refused("call_accept", "unknown_call", call_id=call_id)
            await caller.refused("call_reject", "unknown_call", call_id=call_id)
            await callee.do("call_signal", call_id=call_id, data="still here")
            await caller.take("call_signal", call_id=call_id)
            # Whoever took it undoes it.
            await callee.do("call_reject", call_id=call_id)
            assert (await caller.take("call_end", call_id=call_id))["reason"] == "hangup"
            for actor, verb in ((tablet, "call_end"), (laptop, "call_end"), (caller, "call_cancel")):
                call_id = await connect_call(caller, callee, tablet)
                await actor.do(verb, call_id=call_id)
                for each in {caller, callee} - {actor}:
                    frame = await each.take("call_end", call_id=call_id)
                    assert (frame["reason"], frame["from_user_id"]) == ("hangup", actor.user_id)
                await nothing_is_left(actor, call_id)

    asyncio.run(story())


# What can't ring.


@both_codecs
def test_a_call_that_can_not_ring_says_why_and_changes_nothing(server: Server, codec: Codec) -> None:
    async def story() -> None:
        async with Clients(server) as clients:
            caller = await online(clients, codec=codec)
            observer = await clients.connect(fresh("user"))
            busy, hidden = await online(clients, "kol", status="busy"), await online(clients, "kol", status="offline")
            detached = await online(clients, "kol")
            await detached.cut()
            gone = await online(clients, "kol")
            await gone.do("user_offline")
            in_call, other = await online(clients, "kol"), await online(clients, "kol")
            taken = await connect_call(other, in_call)
            free = await online(clients, "kol")

            async def refused(code: str, to: str, call_id: str = "x") -> None:
                await caller.refused("call", code, call_id=call_id, to_user_id=to, video=True, audio=True)

            await refused("user_offline", "nobody")
            for user in (observer, hidden, gone):
                await refused("user_offline", user.user_id)
            for user in (busy, in_call, other):
                await refused("user_busy", user.user_id)
            await refused("unavailable", detached.user_id)
            await refused("bad_field", caller.user_id)
            await refused("bad_field", free.user_id, taken)
            await nothing_is_left(caller, "x")
            await nothing_is_left(caller, taken)  # it is another's
            await in_call.refused("call", "user_busy", call_id="y", to_user_id=free.user_id, video=True, audio=True)
            await observer.refused("call", "not_online", call_id="y", to_user_id=free.user_id, video=True, audio=True)
            for verb in VERBS:
                fields = {"data": "x"} if verb == "call_signal" else {}
                await observer.refused(verb, "not_online", call_id=taken, **fields)
            for each in (busy, hidden, free, in_call):
                await each.beat()
                assert not kinds(each, "x")
                assert not kinds(each, "y")

    asyncio.run(story())


def test_eight_calls_of_a_session_may_ring_and_one_more_when_one_of_them_is_over(server: Server) -> None:
    async def story() -> None:
        async with Clients(server) as clients:
            caller = await online(clients)
            hosts = [await online(clients, "kol") for _ in range(9)]
            first, *_ = [await ring(caller, host) for host in hosts[:8]]
            last = {"to_user_id": hosts[8].user_id, "video": True, "audio": True}
            await caller.refused("call", "too_many", call_id="ninth", **last)
            await hosts[0].do("call_reject", call_id=first)
            await caller.do("call", call_id="ninth", **last)
            # Whoever is taken lets nothing else ring.
            await hosts[8].do("call_accept", call_id="ninth")
            for host in hosts[1:8]:
                assert (await host.take("call_end"))["reason"] == "busy"
            await caller.do("call_end", call_id="ninth")

    asyncio.run(story())


# Races.


@pytest.mark.parametrize("devices", [1, 2])
def test_of_callers_who_race_for_one_host_exactly_one_gets_him_and_nobody_stays_busy(
    server: Server, devices: int
) -> None:
    async def story() -> None:
        async with Clients(server) as clients:
            callers = [await online(clients) for _ in range(2)]
            host = fresh("kol")
            phones = [await online(clients, "kol", user_id=host, device=f"d{number}") for number in range(devices)]
            watcher = await watch(clients, phones[0], *callers)
            for _ in range(10):
                ids = await asyncio.gather(*[ring(caller, *phones) for caller in callers])
                takers = [phones[0], phones[-1]]
                answers = await asyncio.gather(
                    *[taker.ask("call_accept", call_id=call_id) for taker, call_id in zip(takers, ids, strict=True)]
                )
                outcome = [str(answer.get("code", answer["type"])) for answer in answers]
                assert sorted(outcome) == ["ack", "unknown_call"]
                winner = outcome.index("ack")
                loser = 1 - winner
                await callers[winner].take("call_accept", call_id=ids[winner])
                assert (await callers[loser].take("call_end", call_id=ids[loser]))["reason"] == "busy"
                for phone in phones:
                    assert (await phone.take("call_end", call_id=ids[loser]))["reason"] == "busy"
                await watcher.sees(host, "busy")
                await watcher.sees(callers[winner].user_id, "busy")
                assert watcher.view.status(callers[loser].user_id) == "online"
                late = {"to_user_id": host, "video": True, "audio": True}
                await callers[loser].refused("call", "user_busy", call_id=fresh("call"), **late)
                await callers[winner].do("call_end", call_id=ids[winner])
                await takers[winner].take("call_end", call_id=ids[winner])
                for user_id in (host, *[caller.user_id for caller in callers]):
                    await watcher.sees(user_id, "online")
                for call_id in ids:
                    await nothing_is_left(callers[0], call_id)

    asyncio.run(story())


def test_two_who_call_each_other_at_once_end_in_one_call(server: Server) -> None:
    async def story() -> None:
        async with Clients(server) as clients:
            one, two = await online(clients), await online(clients)
            first, second = await asyncio.gather(ring(one, two), ring(two, one))
            answers = await asyncio.gather(
                two.ask("call_accept", call_id=first), one.ask("call_accept", call_id=second)
            )
            assert sorted(answer["type"] for answer in answers) == ["ack", "error"]
            for each in (one, two):
                assert (await each.take("call_end"))["reason"] == "busy"
            await one.do("call_end", call_id=first if answers[0]["type"] == "ack" else second)
            await ring(one, two)

    asyncio.run(story())


# Busy is a layer over what sessions say.


def test_statuses_go_on_beneath_a_call_and_show_when_it_ends(server: Server) -> None:
    async def story() -> None:
        async with Clients(server) as clients:
            caller, host = await online(clients, status="away"), await online(clients, "kol")
            watcher = await watch(clients, caller, host)
            call_id = await connect_call(caller, host)
            await watcher.sees(host.user_id, "busy")
            await watcher.sees(caller.user_id, "busy")
            await host.do("status_change", status="away")
            await caller.do("user_online", status="online")
            tablet = await online(clients, "kol", user_id=host.user_id, device="tablet", status="away")
            await tablet.do("user_offline")
            friend = await online(clients)
            assert (await friend.do("message", to_user_id=host.user_id, message="later?"))["delivered"] == 1
            asked = await friend.ask("request_online_status", user_ids=[host.user_id])
            assert asked["user_status"] == [watcher.view.known[host.user_id]]
            await friend.beat()
            await host.do("call_end", call_id=call_id)
            await watcher.sees(host.user_id, "away")
            await watcher.sees(caller.user_id, "online")
            assert watcher.view.statuses(host.user_id) == ["online", "busy", "away"]
            assert watcher.view.statuses(caller.user_id) == ["away", "busy", "online"]

    asyncio.run(story())


def test_one_who_hides_in_a_call_shows_offline_and_stays_in_it(server: Server) -> None:
    async def story() -> None:
        async with Clients(server) as clients:
            caller, host = await online(clients), await online(clients, "kol")
            watcher = await watch(clients, caller, host)
            call_id = await connect_call(caller, host)
            await watcher.sees(host.user_id, "busy")
            await host.do("status_change", status="offline")
            await watcher.sees(host.user_id, "offline")
            await caller.do("call_signal", call_id=call_id, data="are you there?")
            await host.take("call_signal")
            assert kinds(caller, call_id) == ["call_accept"]
            stranger = await online(clients)
            asked = {"to_user_id": host.user_id, "video": True, "audio": True}
            await stranger.refused("call", "user_offline", call_id=fresh("call"), **asked)
            await caller.do("call_end", call_id=call_id)
            await watcher.sees(caller.user_id, "online")
            await host.do("status_change", status="online")
            await watcher.sees(host.user_id, "online")
            assert watcher.view.statuses(host.user_id) == ["online", "busy", "offline", "online"]

    asyncio.run(story())


def test_to_whoever_rings_him_one_who_hides_is_one_who_goes(server: Server) -> None:
    async def story() -> None:
        async with Clients(server) as clients:
            ends = []
            for how in ("hides", "goes"):
                caller, host = await online(clients), await online(clients, "kol")
                call_id = await ring(caller, host)
                if how == "hides":
                    await host.do("status_change", status="offline")
                else:
                    await host.do("user_offline")
                frame = await caller.take("call_end")
                assert (frame["from_user_id"], frame["to_user_id"]) == (host.user_id, caller.user_id)
                ends.append({key: frame[key] for key in ("type", "reason", "video", "audio")})
                await nothing_is_left(caller, call_id)
                asked = {"to_user_id": host.user_id, "video": True, "audio": True}
                error = await caller.refused("call", "user_offline", call_id=fresh("call"), **asked)
                ends.append({"message": error["message"].replace(host.user_id, "him")})
            assert ends[:2] == ends[2:]

    asyncio.run(story())


# Connections that break, and sessions that end.


async def returns(clients: Clients, before: Client) -> Client:
    """The same user and device on a new connection, in time."""
    return await clients.online(before.user_id, "kol" if "kol" in before.user_id else "user", public=False)


def test_who_reconnects_has_his_call_and_is_told_what_he_missed_behind_the_ack(server: Server) -> None:
    async def story() -> None:
        async with Clients(server) as clients:
            caller, host = await online(clients), await online(clients, "kol")
            watcher = await watch(clients, caller, host)
            # The caller misses that it was accepted.
            call_id = await ring(caller, host)
            await caller.cut()
            await host.do("call_accept", call_id=call_id)
            await host.refused("call_signal", "unavailable", call_id=call_id, data="offer")
            caller = await returns(clients, caller)
            await caller.take("call_accept", call_id=call_id)
            assert [frame["type"] for _, frame in caller.frames[:3]] == ["welcome", "ack", "call_accept"]
            for client in (caller, host):
                await watcher.sees(client.user_id, "busy")
            await host.do("call_signal", call_id=call_id, data="offer")
            assert (await caller.take("call_signal"))["data"] == "offer"
            # The host misses that it ended.
            await host.cut()
            await caller.refused("call_signal", "unavailable", call_id=call_id, data="answer")
            await caller.do("call_end", call_id=call_id)
            host = await returns(clients, host)
            assert (await host.take("call_end", call_id=call_id))["reason"] == "hangup"
            for client in (caller, host):
                await watcher.sees(client.user_id, "online")
            # He misses that it was taken back, and it rings again for him when it was not.
            taken_back, rings = await ring(caller, host), await ring(caller, host)
            await host.cut()
            await caller.do("call_cancel", call_id=taken_back)
            host = await returns(clients, host)
            await host.take("call_cancel", call_id=taken_back)
            await host.take("call", call_id=rings)
            await host.do("call_reject", call_id=rings)
            await caller.take("call_reject", call_id=rings)
            await watcher.beat()
            assert watcher.view.statuses(host.user_id) == ["online", "busy", "online"]
            assert watcher.view.statuses(caller.user_id) == ["online", "busy", "online"]

    asyncio.run(story())


def test_what_was_for_a_session_is_told_before_the_next_frame_of_the_same_turn_supersedes_it(server: Server) -> None:
    async def story() -> None:
        async with Clients(server) as clients:
            caller, host = await online(clients), await online(clients, "kol", device="phone")
            again = await clients.connect(host.user_id, "kol", public=False)
            call_id = await ring(caller, host)
            os.kill(server.worker_pid, signal.SIGSTOP)
            try:  # both frames wait for the worker's next turn
                await caller.send("call_cancel", call_id=call_id)
                await asyncio.sleep(0.1)
                await again.send("user_online", device="phone")
                await asyncio.sleep(0.1)
            finally:
                os.kill(server.worker_pid, signal.SIGCONT)
            await host.take("call_cancel", call_id=call_id)
            assert kinds(again, call_id) == []

    asyncio.run(story())


def test_a_device_that_comes_while_it_rings_rings_too_and_may_take_it(server: Server) -> None:
    async def story() -> None:
        async with Clients(server) as clients:
            caller, phone = await online(clients), await online(clients, "kol", device="phone")
            call_id = await ring(caller, phone)
            tablet = await online(clients, "kol", user_id=phone.user_id, device="tablet", codec="msgpack")
            frame = await tablet.take("call", call_id=call_id)
            assert (frame["from_user_id"], frame["video"]) == (caller.user_id, True)
            await phone.do("user_offline")  # one of two that ring
            await tablet.do("call_accept", call_id=call_id)
            await caller.take("call_accept", call_id=call_id)
            # It supersedes itself: the new connection has the call.
            again = await online(clients, "kol", user_id=phone.user_id, device="tablet")
            await caller.do("call_signal", call_id=call_id, data="offer")
            await again.take("call_signal", call_id=call_id)
            await again.do("call_end", call_id=call_id)
            await caller.take("call_end", call_id=call_id)

    asyncio.run(story())


@pytest.mark.parametrize("accepted", [False, True], ids=["while it rings", "once it was taken"])
@pytest.mark.parametrize("who", ["caller", "callee"])
@pytest.mark.parametrize("how", ["user_offline", "1000"])
def test_a_side_that_ends_ends_the_call_at_once(server: Server, accepted: bool, who: str, how: str) -> None:
    async def story() -> None:
        async with Clients(server) as clients:
            caller, callee = await online(clients), await online(clients, "kol", status="away")
            watcher = await watch(clients, caller, callee)
            call_id = await (connect_call if accepted else ring)(caller, callee)
            going, other = (caller, callee) if who == "caller" else (callee, caller)
            if how == "user_offline":
                await going.do("user_offline")
            else:
                await going.close(1000)
            frame = await other.take("call_end", call_id=call_id)
            assert (frame["reason"], frame["from_user_id"]) == ("offline", going.user_id)
            await watcher.sees(other.user_id, "away" if other is callee else "online")
            await nothing_is_left(other, call_id)

    asyncio.run(story())


@pytest.mark.parametrize("accepted", [False, True], ids=["while it rings", "once it was taken"])
@pytest.mark.parametrize("who", ["caller", "callee"])
def test_a_side_that_breaks_off_has_its_grace_and_then_the_other_is_free(
    start: Start, accepted: bool, who: str
) -> None:
    server = start(presence__heartbeat_interval=0.3, presence__heartbeat_timeout=1)

    async def story() -> None:
        async with Clients(server) as clients:
            caller, callee = await online(clients), await online(clients, "kol")
            watcher = await watch(clients, caller, callee)
            call_id = await (connect_call if accepted else ring)(caller, callee)
            going, other = (caller, callee) if who == "caller" else (callee, caller)
            for each in (other, watcher):
                each.keep_beating(0.2)
            if accepted:
                await watcher.sees(going.user_id, "busy")
            begun_s = time.monotonic()
            await going.beat()
            await going.cut()
            await other.beat()
            assert "call_end" not in kinds(other, call_id)
            assert (await other.take("call_end", call_id=call_id))["reason"] == "offline"
            assert 0.99 <= time.monotonic() - begun_s < 1 + 0.25 + 1
            await watcher.sees(going.user_id, "offline")
            await watcher.sees(other.user_id, "online")
            expected = ["online", "busy"] if accepted else ["online"]
            assert watcher.view.statuses(going.user_id) == [*expected, "offline"]
            await nothing_is_left(other, call_id)

    asyncio.run(story())


def test_after_a_kill_of_the_worker_no_call_is_left_and_nobody_is_busy(start: Start) -> None:
    server = start(presence__heartbeat_timeout=60)
    server.expect("worker died")

    async def story() -> None:
        async with Clients(server) as clients:
            caller, host = await online(clients), await online(clients, "kol")
            watcher = await watch(clients, caller, host)
            call_id = await connect_call(caller, host)
            await watcher.sees(host.user_id, "busy")
            os.kill(server.worker_pid, signal.SIGKILL)
            for client in (caller, host, watcher):
                assert await client.ended() == 1006
            # Clients bring their own statuses back, not the call's.
            caller, host = await returns(clients, caller), await returns(clients, host)
            watcher = await watch(clients, caller, host)
            for client in (caller, host):
                assert watcher.view.status(client.user_id) == "online"
                await nothing_is_left(client, call_id)
            await connect_call(caller, host)

    asyncio.run(story())


# Those who do not read.


def test_who_does_not_read_can_not_be_rung_and_learns_of_the_end_when_he_is_back(start: Start) -> None:
    server = start(
        presence__heartbeat_timeout=60,
        limits__send_buffer=8192,
        limits__messages_waiting=20_000,
        limits__rate=10_000,
        limits__burst=10_000,
    )

    async def fill(sender: Client, slow: Client) -> None:
        """Nothing more fits, not even a letter."""
        slow.pause()
        for size in (1000, 100, 1):
            for _ in range(2000):
                answer = await sender.ask("message", to_user_id=slow.user_id, message="x" * size)
                if answer["type"] == "error":
                    break
            assert answer["code"] == "unavailable"

    async def story() -> None:
        async with Clients(server) as clients:
            caller = await online(clients)
            slow = await online(clients, "kol", receive_buffer=4096, deflate=False)
            await fill(caller, slow)
            call = {"to_user_id": slow.user_id, "video": True, "audio": True}
            call_id = fresh("call")
            await caller.refused("call", "unavailable", call_id=call_id, **call)
            await nothing_is_left(caller, call_id)
            slow.resume()
            await slow.beat()
            assert kinds(slow, call_id) == []
            call_id = await connect_call(caller, slow)
            await fill(caller, slow)
            await caller.refused("call_signal", "unavailable", call_id=call_id, data="x")
            await caller.do("call_end", call_id=call_id)
            slow.resume()
            assert await slow.ended() in (4009, 1006)
            back = await returns(clients, slow)
            assert (await back.take("call_end", call_id=call_id))["reason"] == "hangup"
            await connect_call(caller, back)

    asyncio.run(story())


# Silence.


@pytest.mark.long
def test_a_call_that_nobody_answers_rings_for_a_minute(server: Server) -> None:
    async def story() -> None:
        async with Clients(server) as clients:
            caller, host = await online(clients), await online(clients, "kol")
            for client in (caller, host):
                client.keep_beating(5)
            begun_s = time.monotonic()
            call_id = await ring(caller, host)
            for client in (caller, host):
                assert (await client.take("call_end", call_id=call_id, deadline=70))["reason"] == "timeout"
            assert 59.99 <= time.monotonic() - begun_s < 60 + 0.25 + 1
            await nothing_is_left(caller, call_id)

    asyncio.run(story())
