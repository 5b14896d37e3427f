"""The Python client where no WebSocket can be had: it polls the real server, and nobody sees the way there or back."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fastpresence.client import ConnectionFailed, PresenceClient, RequestRefused, Timing
from fastpresence.client import __main__ as live_view
from tests.conftest import Start
from tests.support.certificate import certify
from tests.support.clients import Client, Clients, until
from tests.support.ours import FAST, client_of, run
from tests.support.proxy import Proxy
from tests.support.scene import fresh
from tests.support.server import DEADLINE, Server, shared

HEARTBEAT_TIMEOUT = 2.0
ROOM_LIMIT = 6


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    yield from shared(
        {
            "presence.heartbeat_interval": 0.5,
            "presence.heartbeat_timeout": HEARTBEAT_TIMEOUT,
            "presence.room_roster_limit": ROOM_LIMIT,
        }
    )


async def onlooker(others: Clients, *user_ids: str) -> Client:
    """Somebody who keeps beating and watches these."""
    seeing = await others.online(fresh("user"))
    seeing.keep_beating(0.4)
    await seeing.do("subscribe", user_ids=list(user_ids))
    return seeing


async def without_sockets(proxy: Proxy, client: PresenceClient) -> None:
    """No WebSocket can be had from now on; returns once the client polls."""
    proxy.block()
    proxy.cut()
    await client.wait_state("failed", DEADLINE)
    await until(lambda: client.freshness == "polled", "polls keep the copy up to date")


async def with_sockets(proxy: Proxy, client: PresenceClient) -> None:
    proxy.block(False)
    await client.wait_state("connected", DEADLINE)
    await until(lambda: client.freshness == "live", "the socket has caught up")


@pytest.mark.parametrize("device", ["laptop", pytest.param(None, marks=pytest.mark.long)])
def test_there_and_back_the_user_stays_present_and_his_copy_right(server: Server, device: str | None) -> None:
    async def story() -> None:
        host_id, other_id, name, room = fresh("kol"), fresh("user"), fresh("kol"), fresh("room")
        async with Proxy(server.port) as proxy, Clients(server) as others:
            host, other = await others.online(host_id, "kol"), await others.online(other_id)
            for each in (host, other):
                each.keep_beating(0.4)
            seeing = await onlooker(others, name)
            async with client_of(server, name, "kol", url=proxy.url, device=device, status="busy") as client:
                await client.watch(other_id)
                await client.join(room)
                sight = await seeing.sees(name, "busy")
                freshness: list[str] = []
                client.on_freshness(freshness.append)

                await without_sockets(proxy, client)
                assert client.status_of(host_id).status == "online"
                assert client.status_of(other_id).status == "online"
                await host.do("status_change", status="away")
                await other.do("status_change", status="busy")
                await until(lambda: client.status_of(host_id).status == "away", "a public user, polled")
                await until(lambda: client.status_of(other_id).status == "busy", "a watched user, polled")
                with pytest.raises(ConnectionFailed):
                    await client.send_message(host_id, "polls carry none")
                with pytest.raises(ConnectionFailed):
                    await client.call(host_id)
                # Longer than a session lives without a sign of life: polls are one.
                await asyncio.sleep(HEARTBEAT_TIMEOUT + 0.5)
                assert seeing.view.seen[name][-1] == sight

                await client.set_status("away")
                sight = await seeing.sees(name, "away")
                late_id = fresh("kol")
                late = await others.online(late_id, "kol")
                late.keep_beating(0.4)
                await until(lambda: client.status_of(late_id).online, "somebody who came while it polled")

                await with_sockets(proxy, client)
                assert client.status_of(host_id).status == "away"
                assert client.status_of(other_id).status == "busy"
                assert client.status_of(late_id).online
                assert set(client.members(room)) == {name}
                assert await client.send_message(host_id, "there you are") == 1
                # Longer than the session that polled would have lived.
                await asyncio.sleep(HEARTBEAT_TIMEOUT + 0.5)
                assert seeing.view.seen[name][-1] == sight
                assert freshness == ["stale", "polled", "stale", "live"]
            await seeing.sees(name, "offline")

    run(story)


def test_two_clients_of_a_user_that_poll_and_name_no_device_are_two(server: Server) -> None:
    async def story() -> None:
        name = fresh("kol")
        async with Proxy(server.port) as proxy, Clients(server) as others:
            seeing = await onlooker(others, name)
            one = client_of(server, name, "kol", url=proxy.url, status="away")
            async with one:
                async with client_of(server, name, "kol", url=proxy.url) as two:
                    proxy.block()
                    proxy.cut()
                    await until(lambda: [one.freshness, two.freshness] == ["polled"] * 2, "both poll")
                    await two.set_status("busy")
                    await seeing.sees(name, "busy")
                await seeing.sees(name, "away")  # the other one is there, and has not changed its mind

    run(story)


def test_a_client_that_polls_hangs_up_at_once(start: Start) -> None:
    server = start(presence__heartbeat_timeout=60)  # by then the call would be over by itself

    async def story() -> None:
        host_id, name = fresh("kol"), fresh("user")
        async with (
            Proxy(server.port) as proxy,
            client_of(server, host_id, "kol") as host,
            client_of(server, name, url=proxy.url) as user,
        ):
            out = await user.call(host_id)
            back = await anext(host.calls())
            await back.accept()
            assert await out.answered()
            await without_sockets(proxy, user)
            await out.end()
            assert await back.ended() == "hangup"

    run(story)


@pytest.mark.long
def test_attempts_that_take_longer_than_the_server_s_patience_are_seen_by_nobody(server: Server) -> None:
    slow = Timing(
        delays_ms=(0, 2_000, 2_000),
        slow_retry_ms=400,
        silence_floor_ms=500,
        poll_interval_ms=150,
        poll_timeout_ms=5_000,
    )

    async def story() -> None:
        name, other_id = fresh("kol"), fresh("kol")
        async with Proxy(server.port) as proxy, Clients(server) as others:
            other = await others.online(other_id, "kol")
            other.keep_beating(0.4)
            seeing = await onlooker(others, name)
            token = server.token(name, "kol")
            leaving = PresenceClient(proxy.url, token=lambda: token, device="phone", status="busy", timing=slow)
            async with leaving as client:
                sight = await seeing.sees(name, "busy")
                proxy.block()
                proxy.cut()
                await client.wait_state("disconnected", DEADLINE)
                await other.do("status_change", status="away")
                assert (client.freshness, client.status_of(other_id).status) == ("stale", "online")
                await client.wait_state("failed", DEADLINE)
                await until(lambda: client.status_of(other_id).status == "away", "it polls")
                await with_sockets(proxy, client)
                await seeing.beat()
                assert seeing.view.seen[name][-1] == sight

    run(story)


def test_a_watch_and_a_room_of_a_client_that_polls_take_effect_with_the_next_poll(server: Server) -> None:
    async def story() -> None:
        name, other_id, room = fresh("user"), fresh("user"), fresh("room")
        async with Proxy(server.port) as proxy, Clients(server) as others:
            other = await others.online(other_id)
            other.keep_beating(0.4)
            await other.do("subscribe", rooms=[room])
            async with client_of(server, name, url=proxy.url, device="d") as client:
                await without_sockets(proxy, client)
                assert not client.status_of(other_id).online
                await client.join(room)
                assert client.status_of(other_id).online
                assert set(client.members(room)) == {name, other_id}
                await until(lambda: name in other.view.rooms[room], "the one who polls is in the room")
                await other.do("unsubscribe", rooms=[room])
                await until(lambda: not client.status_of(other_id).online, "the one who left is seen no more")
                assert set(client.members(room)) == {name}
                await client.watch(other_id)
                assert client.status_of(other_id).online
                await client.leave(room)
                status, roster, _ = server.http("GET", f"/api/online-status/rooms/{room}")
                assert (status, roster["count"]) == (200, 0)
                await client.unwatch(other_id)
                assert not client.status_of(other_id).online

    run(story)


def test_when_not_even_polls_come_through_the_copy_says_so_and_recovers(server: Server) -> None:
    async def story() -> None:
        host_id = fresh("kol")
        async with Proxy(server.port) as proxy, Clients(server) as others:
            host = await others.online(host_id, "kol")
            host.keep_beating(0.4)
            async with client_of(server, fresh("user"), url=proxy.url, device="d") as client:
                await without_sockets(proxy, client)
                assert client.status_of(host_id).online
                proxy.refuse()
                proxy.cut()
                await until(lambda: client.stale, "a poll failed")
                await until(lambda: not client.status_of(host_id).online, "it goes on failing: everyone shows offline")
                with pytest.raises(ConnectionFailed):
                    await client.set_status("away")
                proxy.refuse(False)
                await until(lambda: client.freshness == "polled", "polls again")
                assert client.status_of(host_id).online
                assert server.http("GET", f"/api/online-status/{client.user_id}")[1]["status"] == "away"

    run(story)


def test_a_client_that_never_had_a_socket_enters_by_polling(server: Server) -> None:
    async def story() -> None:
        host_id, name = fresh("kol"), fresh("user")
        async with Proxy(server.port) as proxy, Clients(server) as others:
            host = await others.online(host_id, "kol")
            host.keep_beating(0.4)
            proxy.block()
            async with client_of(server, name, url=proxy.url) as client:
                assert (client.state, client.freshness) == ("failed", "polled")
                assert client.status_of(host_id).online
                assert server.http("GET", f"/api/online-status/{name}")[1]["online"]
                await with_sockets(proxy, client)
                assert client.status_of(host_id).online

    run(story)


def test_a_token_revoked_under_a_poller_is_replaced(server: Server) -> None:
    async def story() -> None:
        name = fresh("user")
        fetched: list[str] = []

        def provider() -> str:
            fetched.append(server.token(name))
            return fetched[-1]

        async with Proxy(server.port) as proxy, client_of(server, name, url=proxy.url, token=provider) as client:
            await without_sockets(proxy, client)
            status, _, _ = server.http("POST", "/api/online-status/tokens/revoke", {"user_id": name})
            assert status == 200
            before = len(fetched)
            await until(lambda: len(fetched) > before, "the poll was refused")
            # Within the second of the revocation a new token is refused as well.
            await until(lambda: client.freshness == "polled", "with a new token it is not")
            await client.set_status("away")
            await with_sockets(proxy, client)

    run(story)


def test_a_public_member_s_coming_and_going_shows_in_a_polled_room(server: Server) -> None:
    async def story() -> None:
        host_id, room, other_room = fresh("kol"), fresh("room"), fresh("room")
        async with Proxy(server.port) as proxy, Clients(server) as others:
            host = await others.online(host_id, "kol")
            host.keep_beating(0.4)
            async with client_of(server, fresh("user"), url=proxy.url, device="d") as client:
                await client.join(room)
                await client.join(other_room)
                await without_sockets(proxy, client)
                await host.do("subscribe", rooms=[room])
                await until(lambda: host_id in client.members(room), "he came")
                await host.do("unsubscribe", rooms=[room])
                await until(lambda: host_id not in client.members(room), "he went")
                assert client.status_of(host_id).online
                assert host_id not in client.members(other_room)

    run(story)


def test_polls_go_over_tls_to_an_address_of_their_own(start: Start, tmp_path: Path) -> None:
    certificate = certify(tmp_path)
    server = start(server__tls_cert=certificate.cert, server__tls_key=certificate.key)

    async def story() -> None:
        host_id = fresh("kol")
        async with Clients(server) as others:
            host = await others.online(host_id, "kol")
            host.keep_beating(0.4)
            nowhere = client_of(
                server,
                fresh("user"),
                url="wss://127.0.0.1:1/ws",
                poll_url=f"https://127.0.0.1:{server.port}/api/online-status/poll",
                ssl_context=server.tls,
            )
            async with nowhere as client:
                assert (client.state, client.freshness) == ("failed", "polled")
                await host.do("status_change", status="busy")
                await until(lambda: client.status_of(host_id).status == "busy", "a change, polled")

    run(story)


def test_an_observer_without_a_socket_is_seen_by_nobody(server: Server) -> None:
    async def story() -> None:
        name = fresh("user")
        async with Proxy(server.port) as proxy, Clients(server) as others:
            seeing = await onlooker(others, name)
            async with client_of(server, name, url=proxy.url, online=False) as client:
                proxy.block()
                proxy.cut()
                await client.wait_state("failed", DEADLINE)
                attempts = proxy.attempts
                await until(lambda: proxy.attempts >= attempts + 2, "it goes on trying")
                assert (client.state, client.freshness) == ("failed", "stale")
                assert not [each for each in proxy.connections if "poll" in each.from_client.decode("latin-1")]
                await with_sockets(proxy, client)
            await seeing.beat()
            assert seeing.view.statuses(name) == ["offline"]

    run(story)


def test_a_crowded_room_is_a_number_on_a_socket_and_in_polls_and_then_a_roster_again(server: Server) -> None:
    async def story() -> None:
        name, room = fresh("user"), fresh("room")
        async with Proxy(server.port) as proxy, Clients(server) as others:

            async def crowd(size: int) -> list[Client]:
                found = [await others.online(fresh("user"), public=False) for _ in range(size)]
                for each in found:
                    each.keep_beating(0.4)
                    await each.do("subscribe", rooms=[room])
                return found

            members = await crowd(2)
            async with client_of(server, name, url=proxy.url, device="d") as client:
                counts: list[int] = []
                client.on_occupancy(lambda where, count: counts.append(count) if where == room else None)
                await client.join(room)
                await until(lambda: len(client.members(room)) == 3, "the roster")
                more = await crowd(ROOM_LIMIT)
                total = 3 + ROOM_LIMIT
                await until(lambda: client.occupancy(room) == total, "the number")
                assert client.members(room) == {}
                assert counts[-1] == total
                await without_sockets(proxy, client)
                assert client.occupancy(room) == total
                for each in more:
                    await each.do("unsubscribe", rooms=[room])
                await until(lambda: len(client.members(room)) == 3, "members again, polled")
                assert members[0].user_id in client.members(room)
                await with_sockets(proxy, client)
                await until(lambda: len(client.members(room)) == 3, "the roster again")
                assert client.occupancy(room) == 3

    run(story)


def test_what_a_token_does_not_allow_is_refused_and_not_asked_for_again_and_again(server: Server) -> None:
    async def story() -> None:
        name, allowed, secret = fresh("user"), fresh("user"), fresh("user")
        rights: dict[str, Any] = {}

        def provider() -> str:
            asked = {"user_id": name, **rights}
            status, answer, _ = server.http("POST", "/api/online-status/rts-token", asked)
            assert status == 200, answer
            return str(answer["signature"])

        async with Proxy(server.port) as proxy, client_of(server, name, url=proxy.url, token=provider) as client:
            room, closed = fresh("room"), fresh("room")
            await client.watch(allowed, secret)
            await client.join(room)
            await client.join(closed)
            rights.update(watch=[allowed], rooms=[room])
            proxy.refuse()  # an attempt that never opened: the next one brings a new token
            proxy.cut()
            await until(lambda: proxy.attempts >= 2, "an attempt in vain")
            proxy.refuse(False)
            await client.wait_state("connected", DEADLINE)
            await client.wait_synced(DEADLINE)
            assert list(client.members(closed)) == []
            assert list(client.members(room)) == [name]
            with pytest.raises(RequestRefused) as refused:
                await client.watch(secret)
            assert refused.value.code == "forbidden"
            with pytest.raises(RequestRefused) as refused:
                await client.join(closed)
            assert refused.value.code == "forbidden"
            proxy.cut()
            await client.wait_state("disconnected", DEADLINE)
            await client.wait_state("connected", DEADLINE)
            await client.wait_synced(DEADLINE)
            assert b"forbidden" not in proxy.connections[-1].from_server
            # And the same way for a poll.
            rights.update(watch=[], rooms=[])
            await without_sockets(proxy, client)

    run(story)


def test_a_narrower_token_on_the_living_connection_ends_what_it_does_not_allow(server: Server) -> None:
    async def story() -> None:
        name, allowed, secret = fresh("user"), fresh("user"), fresh("user")
        fetched = 0

        def provider() -> str:
            nonlocal fetched
            fetched += 1
            asked: dict[str, Any] = {"user_id": name, "expire_time": 2 if fetched == 1 else 3600}
            if fetched > 1:
                asked["watch"] = [allowed]
            return str(server.http("POST", "/api/online-status/rts-token", asked)[1]["signature"])

        async with Clients(server) as others:
            for user_id in (allowed, secret):
                (await others.online(user_id)).keep_beating(0.4)
            async with client_of(server, name, token=provider) as client:
                states: list[str] = []
                client.on_state(states.append)
                await client.watch(allowed, secret)
                assert client.status_of(secret).online
                await until(lambda: not client.status_of(secret).online, "it is not told of any more")
                assert client.status_of(allowed).online
                assert (fetched, states, client.freshness) == (2, [], "live")

    run(story)


def test_the_live_view_says_when_it_is_polled_stale_and_live_again(
    server: Server, capfd: pytest.CaptureFixture[str]
) -> None:
    async def story() -> None:
        host_id, name, room = fresh("kol"), fresh("user"), fresh("room")
        out, err = "", ""

        def printed(text: str) -> bool:
            nonlocal out, err
            more = capfd.readouterr()
            out, err = out + more.out, err + more.err
            return text in out or text in err

        async with Proxy(server.port) as proxy, Clients(server) as others:
            host = await others.online(host_id, "kol")
            host.keep_beating(0.4)
            options = live_view.parse([proxy.url, "--online", "online", "--room", room])
            viewing = asyncio.create_task(live_view.show(options, server.token(name), FAST))
            await until(lambda: printed("live: "), "the live view")
            assert printed(host_id)
            proxy.block()
            proxy.cut()
            await until(lambda: printed("stale: "), "it lost its socket")
            await until(lambda: printed("polled: "), "it polls")
            await host.do("status_change", status="busy")
            await until(lambda: printed("-> busy"), "a change, polled")
            err = ""
            proxy.block(False)
            await until(lambda: printed("live: "), "it has a socket again")
            viewing.cancel()
            await asyncio.gather(viewing, return_exceptions=True)

    run(story)
