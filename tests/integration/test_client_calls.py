"""Calls between Python clients over the real server: rung, taken, talked on, hung up, and broken off by the network."""

import asyncio
import os
import signal
from collections.abc import Iterator

import pytest

from fastpresence.client import Call, CallMoved, ConnectionFailed, PresenceClient, RequestRefused, Signal
from tests.conftest import Start
from tests.support.clients import until
from tests.support.ours import client_of, run
from tests.support.proxy import Proxy
from tests.support.scene import fresh
from tests.support.server import DEADLINE, Server, shared


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    yield from shared({"presence.heartbeat_interval": 0.5, "presence.heartbeat_timeout": 2.0})


async def shows(client: PresenceClient, user_id: str, status: str) -> None:
    await until(lambda: client.status_of(user_id).status == status, f"{user_id} shows {status}")


async def a_call(caller: PresenceClient, callee: PresenceClient) -> tuple[Call, Call]:
    """One that is talked on, from both ends."""
    assert callee.user_id is not None
    out = await caller.call(callee.user_id)
    back = await anext(callee.calls())
    await back.accept()
    assert await out.answered()
    return out, back


@pytest.mark.parametrize("codec", ["json", "msgpack"])
def test_a_call_from_the_first_ring_to_the_end(server: Server, codec: str) -> None:
    async def story() -> None:
        host_id, user_id = fresh("kol"), fresh("user")
        async with client_of(server, host_id, "kol", codec=codec) as host, client_of(server, user_id) as user:
            out = await user.call(host_id, video=False)
            assert (out.state, out.outgoing, out.user_id) == ("ringing", True, host_id)
            await out.signal("offer")
            back = await anext(host.calls())
            assert (back.state, back.outgoing, back.user_id) == ("ringing", False, user_id)
            assert (back.call_id, back.video, back.audio) == (out.call_id, False, True)
            assert (user.open_calls, host.open_calls) == ([out], [back])
            await back.accept()
            assert back.state == "active"
            await back.signal("answer")
            assert await out.answered()
            await shows(user, host_id, "busy")
            assert server.http("GET", f"/api/online-status/{user_id}")[1]["status"] == "busy"
            await host.set_status("away")  # beneath the lease
            await out.end()
            assert (out.state, out.outcome) == ("ended", "hangup")
            assert await back.ended() == "hangup"
            assert [event async for event in out] == [
                CallMoved(out.call_id, "ringing"),
                CallMoved(out.call_id, "active"),
                Signal(out.call_id, "answer"),
                CallMoved(out.call_id, "ended", "hangup"),
            ]
            assert [event async for event in back] == [
                Signal(out.call_id, "offer"),
                CallMoved(out.call_id, "active"),
                CallMoved(out.call_id, "ended", "hangup"),
            ]
            await shows(user, host_id, "away")
            assert (user.open_calls, host.open_calls) == ([], [])
            with pytest.raises(RequestRefused) as refused:
                await out.signal("too late")
            assert refused.value.code == "unknown_call"

    run(story)


def test_a_call_is_rejected_or_cancelled_and_nobody_is_busy(server: Server) -> None:
    async def story() -> None:
        host_id = fresh("kol")
        async with client_of(server, host_id, "kol") as host, client_of(server, fresh("user")) as user:
            out = await user.call(host_id)
            await (await anext(host.calls())).reject()
            assert not await out.answered()
            assert await out.ended() == "rejected"
            out = await user.call(host_id)
            back = await anext(host.calls())
            await out.cancel()
            assert (out.outcome, await back.ended()) == ("cancelled", "cancelled")
            with pytest.raises(RequestRefused):
                await back.accept()
            out = await user.call(host_id)
            await (await anext(host.calls())).end()
            assert await out.ended() == "rejected"
            assert user.status_of(host_id).status == "online"

    run(story)


def test_nobody_answers_at_once_when_a_user_is_away_busy_or_oneself(server: Server) -> None:
    async def story() -> None:
        host_id = fresh("kol")
        async with client_of(server, fresh("user")) as user, client_of(server, host_id, "kol") as host:
            assert user.user_id is not None
            await host.set_status("busy")
            for who, code in ((fresh("kol"), "user_offline"), (host_id, "user_busy"), (user.user_id, "bad_field")):
                with pytest.raises(RequestRefused) as refused:
                    await user.call(who)
                assert refused.value.code == code
            assert user.open_calls == []

    run(story)


def test_every_device_rings_and_the_others_stop_when_one_takes_the_call(server: Server) -> None:
    async def story() -> None:
        host_id = fresh("kol")
        phone, laptop, late = (client_of(server, host_id, "kol", device=name) for name in ("phone", "laptop", "late"))
        async with client_of(server, fresh("user")) as user, phone, laptop:
            out = await user.call(host_id)
            on_phone, on_laptop = await anext(phone.calls()), await anext(laptop.calls())
            async with late:
                on_late = await anext(late.calls())  # it came while it rang
                await on_laptop.accept()
                assert [await on_phone.ended(), await on_late.ended()] == ["elsewhere", "elsewhere"]
                assert await out.answered()
                await on_laptop.end()
                assert await out.ended() == "hangup"

    run(story)


def test_of_two_who_call_one_host_one_gets_him_and_the_other_hears_busy(server: Server) -> None:
    async def story() -> None:
        host_id = fresh("kol")
        first, second = client_of(server, fresh("user")), client_of(server, fresh("user"))
        async with client_of(server, host_id, "kol") as host, first, second:
            calls = dict(
                zip(
                    (first.user_id, second.user_id),
                    await asyncio.gather(first.call(host_id), second.call(host_id)),
                    strict=True,
                )
            )
            ringing = [await anext(host.calls()), await anext(host.calls())]
            # Both at once: one wins.
            results = await asyncio.gather(*(call.accept() for call in ringing), return_exceptions=True)
            assert [type(result) for result in results] == [type(None), RequestRefused]
            winner, loser = ringing
            assert await calls[winner.user_id].answered()
            assert await calls[loser.user_id].ended() == "busy"
            assert loser.state == "ended"
            assert host.open_calls == [winner]
            await winner.end()
            await shows(first, host_id, "online")

    run(story)


def test_two_devices_that_take_two_calls_at_once_get_one(server: Server) -> None:
    async def story() -> None:
        host_id = fresh("kol")
        phone, laptop = (
            client_of(server, host_id, "kol", device="phone"),
            client_of(server, host_id, "kol", device="pc"),
        )
        callers = client_of(server, fresh("user")), client_of(server, fresh("user"))
        async with phone, laptop, callers[0], callers[1]:
            out = [await caller.call(host_id) for caller in callers]
            ringing = {client: [await anext(client.calls()) for _ in out] for client in (phone, laptop)}
            taken = ringing[phone][0], ringing[laptop][1]
            results = await asyncio.gather(*(call.accept() for call in taken), return_exceptions=True)
            assert sorted(type(result).__name__ for result in results) == ["NoneType", "RequestRefused"]
            won = results.index(None)
            assert await out[won].answered()
            assert await out[1 - won].ended() == "busy"
            assert [len(client.open_calls) for client in (phone, laptop)] == [1 - won, won]
            await taken[won].end()
            assert await out[won].ended() == "hangup"
            await shows(callers[0], host_id, "online")

    run(story)


def test_a_call_outlives_a_reconnect_of_either_side(server: Server) -> None:
    async def story() -> None:
        host_id = fresh("kol")
        async with Proxy(server.port) as proxy:
            host_client = client_of(server, host_id, "kol", url=proxy.url, device="phone")
            async with host_client as host, client_of(server, fresh("user")) as user:
                out, back = await a_call(user, host)
                proxy.cut()
                await host.wait_state("disconnected", DEADLINE)
                await host.wait_state("connected", DEADLINE)
                await host.wait_synced(DEADLINE)
                assert (out.state, back.state) == ("active", "active")
                await out.signal("still there?")
                events = aiter(back)
                while not isinstance(event := await anext(events), Signal):
                    pass
                assert event.data == "still there?"
                assert server.http("GET", f"/api/online-status/{host_id}")[1]["status"] == "busy"
                await back.end()
                assert await out.ended() == "hangup"

    run(story)


def test_what_happened_to_a_call_during_a_break_is_heard_afterwards(server: Server) -> None:
    async def story() -> None:
        host_id, user_id = fresh("kol"), fresh("user")
        async with Proxy(server.port) as proxy, client_of(server, host_id, "kol") as host:

            async def away(user: PresenceClient) -> None:
                proxy.refuse()
                proxy.cut()
                await user.wait_state("disconnected", DEADLINE)

            async def back_again(user: PresenceClient) -> None:
                proxy.refuse(False)
                await user.wait_state("connected", DEADLINE)

            async with client_of(server, user_id, url=proxy.url, device="phone") as user:
                # The caller is away when it is accepted.
                out = await user.call(host_id)
                ringing = await anext(host.calls())
                await away(user)
                await ringing.accept()
                await back_again(user)
                assert await out.answered()
                # He is away when it is hung up.
                await away(user)
                await ringing.end()
                assert out.state == "active"
                await back_again(user)
                assert await out.ended() == "hangup"
                # What still rings, rings again, and is the same call.
                out = await host.call(user_id)
                ringing = await anext(user.calls())
                await away(user)
                await back_again(user)
                await user.wait_synced(DEADLINE)
                assert user.open_calls == [ringing]
                await ringing.accept()
                assert await out.answered()
                # He hangs up where nobody hears him, and is heard when he is back.
                await away(user)
                with pytest.raises(ConnectionFailed):
                    await ringing.end()
                assert (ringing.state, out.state) == ("ended", "active")
                await back_again(user)
                assert await out.ended() == "hangup"

    run(story)


def test_who_leaves_in_a_call_hangs_up_and_one_who_never_comes_back_is_gone(server: Server) -> None:
    async def story() -> None:
        host_id = fresh("kol")
        async with Proxy(server.port) as proxy, client_of(server, host_id, "kol") as host:
            async with client_of(server, fresh("user")) as user:
                out, back = await a_call(user, host)
            assert (out.outcome, await back.ended()) == ("hangup", "hangup")
            cut_off = client_of(server, fresh("user"), url=proxy.url, online=True)
            async with cut_off as user:
                out, back = await a_call(user, host)
                await shows(user, host_id, "busy")
                proxy.refuse()
                proxy.cut()
                assert await back.ended() == "offline"
                assert await out.ended() == "offline"
            assert server.http("GET", f"/api/online-status/{host_id}")[1]["status"] == "online"

    run(story)


def test_a_call_that_nobody_waits_for_any_more_stops_ringing(server: Server) -> None:
    async def story() -> None:
        host_id = fresh("kol")
        async with Proxy(server.port) as proxy, client_of(server, host_id, "kol") as host:
            impatient = client_of(server, fresh("user"), url=proxy.url)
            async with impatient as user:
                proxy.stall()
                calling = asyncio.create_task(user.call(host_id))
                await until(lambda: bool(user.open_calls), "the request is out")
                calling.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await calling
                assert user.open_calls == []
                proxy.flow()
                assert await (await anext(host.calls())).ended() == "cancelled"

    run(story)


def test_when_the_worker_dies_every_call_is_over_on_both_sides(start: Start) -> None:
    server = start(presence__heartbeat_interval=0.5, presence__heartbeat_timeout=2.0)
    server.expect("worker died")

    async def story() -> None:
        host_id = fresh("kol")
        async with client_of(server, host_id, "kol") as host, client_of(server, fresh("user")) as user:
            out, back = await a_call(user, host)
            os.kill(server.worker_pid, signal.SIGKILL)
            assert [await out.ended(), await back.ended()] == ["offline", "offline"]
            await user.wait_synced(DEADLINE)
            await shows(user, host_id, "online")

    run(story)
