"""The Python client against the real server, with a network between them that cuts, stalls and refuses."""

import asyncio
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from fastpresence.client import Change, ConnectionFailed, RequestRefused
from tests.conftest import Start
from tests.support.clients import Clients, Codec, until
from tests.support.ours import client_of, run
from tests.support.proxy import Proxy
from tests.support.scene import fresh
from tests.support.server import API_KEY, DEADLINE, Server, shared

HEARTBEAT_TIMEOUT = 2.0

both_codecs = pytest.mark.parametrize("codec", ["json", "msgpack"])


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    yield from shared({"presence.heartbeat_interval": 0.5, "presence.heartbeat_timeout": HEARTBEAT_TIMEOUT})


@both_codecs
def test_a_client_is_seen_sees_sends_and_receives(server: Server, codec: Codec) -> None:
    async def story() -> None:
        host_id, user_id = fresh("kol"), fresh("user")
        async with client_of(server, host_id, "kol", codec=codec) as host:
            async with client_of(server, user_id, codec="json" if codec == "msgpack" else "msgpack") as user:
                assert (user.state, user.stale) == ("connected", False)
                assert user.status_of(host_id).status == "online"
                changes = user.changes()
                await host.set_status("busy")
                async for change in changes:
                    if change.user_id == host_id:
                        break
                assert (change.entry.status, change.previous and change.previous.status) == ("busy", "online")
                assert await user.send_message(host_id, "Hello, can we talk?") == 1
                async for message in host.messages():
                    assert (message.from_user_id, message.message) == (user_id, "Hello, can we talk?")
                    break
                with pytest.raises(RequestRefused) as refused:
                    await user.send_message("nobody", "Hello?")
                assert refused.value.code == "user_offline"
                assert host.status_of(user_id).online is False  # not watched, not public
                await host.watch(user_id)
                await until(lambda: host.status_of(user_id).status == "online", "the watched user")
                found = await host.request_status(user_id, "nobody")
                assert (found[user_id].online, found["nobody"].rev) == (True, 0)
                room = fresh("room")
                await host.join(room)
                await user.join(room)
                await until(lambda: set(host.members(room)) == {host_id, user_id}, "both in the room")
                await user.leave(room)
                await until(lambda: set(host.members(room)) == {host_id}, "one in the room")
                await host.unwatch(user_id)
                await user.set_status("offline")
            assert server.event("user offline", user_id=user_id)["reason"] == "goodbye"
            async for change in changes:  # what was not read yet; then it ends, with the client
                assert change.user_id != host_id or change.entry.status == "busy"

    run(story)


def test_a_cut_is_seen_by_the_client_alone_and_it_resumes_by_its_cursors(server: Server) -> None:
    async def story() -> None:
        names = [fresh("kol") for _ in range(3)]
        async with Proxy(server.port) as proxy, Clients(server) as others:
            first, second = [await others.online(name, "kol") for name in names[:2]]
            for other in (first, second):
                other.keep_beating(0.4)
            seeing = first
            watched = await others.online(fresh("user"))
            watched.keep_beating(0.4)
            async with client_of(server, names[2], "kol", url=proxy.url, device="phone") as client:
                await client.set_status("busy")
                await client.watch(watched.user_id)
                await until(lambda: client.status_of(watched.user_id).online, "the watched user")
                # The cursors that it will bring cover what it was told until now.
                await second.do("status_change", status="away")
                await until(lambda: client.status_of(names[1]).status == "away", "the change before the cut")
                await watched.do("status_change", status="away")
                await until(lambda: client.status_of(watched.user_id).status == "away", "the watched user's change")
                sight = await seeing.sees(names[2], "busy")
                states: list[str] = []
                client.on_state(states.append)
                changes = client.changes()
                proxy.refuse()
                proxy.cut()
                await client.wait_state("disconnected", DEADLINE)
                assert client.stale
                assert client.status_of(names[0]).status == "online"  # as it was, and said to be stale
                await first.do("status_change", status="busy")
                proxy.refuse(False)
                await client.wait_state("connected", DEADLINE)
                await client.wait_synced(DEADLINE)
                assert states[0] == "disconnected"
                assert states[-2:] == ["connecting", "connected"]
                assert "failed" not in states
                assert client.status_of(names[0]).status == "busy"
                assert (await anext(aiter(changes))).user_id == names[0]
                back = proxy.connections[-1]
                assert len(proxy.connections) == 2
                assert "cursor=" in back.target
                assert b'"full":true' not in back.from_server
                assert b'"user_id":"%s"' % names[1].encode() not in back.from_server  # he had not changed
                # Nobody saw anything, and what he shows as is still his.
                await client.request_status(names[0])
                assert seeing.view.seen[names[2]][-1] == sight
                assert server.event("reconnect", user_id=names[2])["attempt"] >= 1
                await watched.do("status_change", status="busy")
                await until(lambda: client.status_of(watched.user_id).status == "busy", "watches go on")
            await seeing.sees(names[2], "offline")

    run(story)


def test_a_network_that_stalls_is_noticed_by_the_unanswered_beat_before_the_server_gives_the_user_up(
    server: Server,
) -> None:
    async def story() -> None:
        name = fresh("kol")
        async with Proxy(server.port) as proxy, Clients(server) as others:
            seeing = await others.connect(fresh("user"))
            seeing.keep_beating(0.4)
            async with client_of(server, name, "kol", url=proxy.url) as client:
                sight = await seeing.sees(name, "online")
                proxy.stall()
                stalled_s = time.monotonic()
                await client.wait_state("disconnected", DEADLINE)
                assert time.monotonic() - stalled_s < HEARTBEAT_TIMEOUT
                proxy.cut()  # the new way is open, the old one never recovers
                proxy.flow()
                await client.wait_state("connected", DEADLINE)
                await client.wait_synced(DEADLINE)
                await client.request_status(name)
                await seeing.beat()
                assert seeing.view.seen[name][-1] == sight

    run(story)


def test_after_five_attempts_the_client_has_failed_shows_everyone_offline_and_goes_on_trying(server: Server) -> None:
    async def story() -> None:
        name, host_id = fresh("user"), fresh("kol")
        async with Proxy(server.port) as proxy, client_of(server, host_id, "kol") as host:
            cut_off = client_of(server, name, url=proxy.url)
            async with cut_off as client:
                assert client.status_of(host_id).online
                states: list[str] = []
                client.on_state(states.append)
                changes = client.changes()
                proxy.refuse()
                proxy.cut()
                await client.wait_state("failed", DEADLINE)
                assert states == ["disconnected", *["connecting", "disconnected"] * 4, "connecting", "failed"]
                assert proxy.attempts == 1 + 5
                assert not client.status_of(host_id).online
                gone: Change = await anext(aiter(changes))
                assert gone.stale
                with pytest.raises(ConnectionFailed):
                    await client.send_message(host_id, "Hello?")
                proxy.refuse(False)
                await client.wait_state("connected", DEADLINE)
                await client.wait_synced(DEADLINE)
                assert client.status_of(host_id).online
                assert await host.send_message(name, "there you are") == 1

    run(story)


def test_a_request_that_the_cut_left_without_an_answer_fails_and_a_status_set_meanwhile_is_told_afterwards(
    server: Server,
) -> None:
    async def story() -> None:
        name = fresh("kol")
        async with Proxy(server.port) as proxy:
            seen_by, cut_off = client_of(server, fresh("user")), client_of(server, name, "kol", url=proxy.url)
            async with seen_by as seeing, cut_off as client:
                proxy.stall()
                waiting = asyncio.create_task(client.send_message(name, "into the void"))
                await asyncio.sleep(0)
                proxy.refuse()
                proxy.cut()
                with pytest.raises(ConnectionFailed):
                    await waiting
                with pytest.raises(ConnectionFailed):
                    await client.set_status("away")
                proxy.flow()
                proxy.refuse(False)
                await client.wait_state("connected", DEADLINE)
                await until(lambda: seeing.status_of(name).status == "away", "the status told afterwards")

    run(story)


def test_an_expiring_token_is_replaced_on_the_living_connection(server: Server) -> None:
    async def story() -> None:
        name = fresh("kol")
        fetched: list[float] = []

        async def provider() -> str:
            fetched.append(time.monotonic())
            return await asyncio.to_thread(server.token, name, "kol", expire_time=2)

        async with client_of(server, name, "kol", token=provider) as client:
            states: list[str] = []
            client.on_state(states.append)
            begun_s = time.monotonic()
            while time.monotonic() - begun_s < 4.5:  # more than two tokens' lives
                await client.request_status(name)
                await asyncio.sleep(0.1)
            assert states == []
            assert len(fetched) >= 3
            assert len(server.logged("user online", user_id=name)) == 1

    run(story)


def test_a_refused_token_is_replaced_at_once_and_a_wrong_one_that_can_not_be_is_the_end(server: Server) -> None:
    async def story() -> None:
        name = fresh("user")
        tokens = iter(["a.b.c"])

        def provider() -> str:
            return next(tokens, "") or server.token(name)

        async with client_of(server, name, token=provider) as client:
            assert client.state == "connected"
        with pytest.raises(ConnectionFailed):
            async with client_of(server, name, token="a.b.c"):
                pass
        with pytest.raises(ConnectionFailed):
            async with client_of(server, name, token=server.token(fresh("user"))):
                pass  # somebody else's

    run(story)


def test_a_revoked_token_is_replaced_and_a_plain_one_is_the_end(server: Server) -> None:
    async def story() -> None:
        host_id, name = fresh("kol"), fresh("user")
        fetched = 0

        def provider() -> str:
            nonlocal fetched
            fetched += 1
            return server.token(host_id, "kol")

        plain = client_of(server, host_id, "kol", token=server.token(host_id, "kol"), device="old")
        async with client_of(server, name) as seeing, client_of(server, host_id, "kol", token=provider) as host, plain:
            states: list[str] = []
            host.on_state(states.append)
            status, answer, _ = server.http("POST", "/api/online-status/tokens/revoke", {"user_id": host_id})
            assert (status, answer["user_id"]) == (200, host_id)
            with pytest.raises(ConnectionFailed, match="4001"):
                await anext(plain.messages())
            assert plain.state == "failed"
            # Within the second of the revocation every new token is refused as well.
            await host.wait_state("disconnected", DEADLINE)
            await host.wait_state("connected", DEADLINE)
            await host.wait_synced(DEADLINE)
            assert fetched >= 2
            assert await seeing.send_message(host_id, "welcome back") == 1

    run(story)


def test_a_plain_tokens_end_is_the_clients_and_whoever_iterates_is_told(server: Server) -> None:
    async def story() -> None:
        name = fresh("user")
        async with client_of(server, name, token=server.token(name, expire_time=3)) as client:
            with pytest.raises(ConnectionFailed):
                async for _ in client.changes():
                    pass
            assert client.state == "failed"

    run(story)


def test_a_drained_server_is_left_and_found_again(start: Start, server: Server) -> None:
    leaving = start(presence__heartbeat_timeout=20)

    async def story() -> None:
        name = fresh("kol")
        async with Proxy(leaving.port) as proxy, client_of(server, name, "kol", url=proxy.url) as client:
            await client.set_status("busy")
            proxy.lead_to(server.port)
            leaving.signal(signal.SIGTERM)
            await client.wait_state("disconnected", DEADLINE)
            await client.wait_state("connected", DEADLINE)
            await client.wait_synced(DEADLINE)
            assert server.http("GET", f"/api/online-status/{name}")[1]["status"] == "busy"
            assert await asyncio.to_thread(leaving.wait) == 0

    run(story)


# The programs.


def _program(*arguments: str, **env: str) -> "subprocess.Popen[str]":
    clean = {key: value for key, value in os.environ.items() if not key.startswith("FASTPRESENCE_")}
    return subprocess.Popen(
        [sys.executable, "-m", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**clean, **env, "PYTHONUNBUFFERED": "1"},
    )


def test_the_live_view_prints_who_is_online_and_every_change_until_it_is_interrupted(server: Server) -> None:
    async def story() -> None:
        name = fresh("kol")
        async with client_of(server, name, "kol") as host:
            process = _program("fastpresence.client", server.url, FASTPRESENCE_TOKEN=server.token(fresh("user")))
            try:
                assert process.stdout
                line = await asyncio.to_thread(process.stdout.readline)
                while name not in line:
                    assert line
                    line = await asyncio.to_thread(process.stdout.readline)
                assert re.search(rf"{name} .*- -> online", line)
                await host.set_status("busy")
                line = await asyncio.to_thread(process.stdout.readline)
                assert re.search(rf"{name} .*online -> busy", line)
                process.send_signal(signal.SIGINT)
                _, err = await asyncio.to_thread(process.communicate, None, DEADLINE)
                assert process.returncode == 0, err
                assert "Traceback" not in err
            finally:
                process.kill()
                process.communicate()

    run(story)


def test_the_tour_of_a_running_server_ends_with_0(start: Start) -> None:
    server = start()
    process = _program("fastpresence.client.tour", "--url", server.url, FASTPRESENCE_API_KEY=API_KEY)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, out + err
    assert "busy" in out
