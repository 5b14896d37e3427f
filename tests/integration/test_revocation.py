"""The token of a living connection: its end is announced, it is replaced, and it is taken back."""

import asyncio
import os
import signal
import time
from collections.abc import Iterator

import pytest

from tests.conftest import Start
from tests.support.clients import Client, Clients, RawClient
from tests.support.scene import Scene, fresh
from tests.support.server import Server, shared
from tests.support.tokens import signed

BASE = "/api/online-status"
TICK = 0.25  #: how late a deadline may be noticed, seconds
SLACK = 0.3  #: how long a busy machine may take to tell of it


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    yield from shared({"presence.heartbeat_timeout": 60})


def revoke(server: Server, user_id: str) -> int:
    """The Unix second up to which the user's tokens are dead from now on."""
    before = int(time.time())
    status, answer, _ = server.http("POST", f"{BASE}/tokens/revoke", {"user_id": user_id})
    assert status == 200, answer
    assert set(answer) == {"user_id", "revoked_until"}
    assert answer["user_id"] == user_id
    assert before <= answer["revoked_until"] <= int(time.time()) + 3
    return int(answer["revoked_until"])


async def handshake(server: Server, token: str) -> int:
    async with RawClient.open(server) as raw:
        raw.send(RawClient.upgrade_request(token))
        return (await raw.response())[0]


async def opens_nothing(server: Server, token: str) -> None:
    """Neither a connection nor a request."""
    assert await handshake(server, token) == 401
    for method, path, body in [
        ("GET", "kol_1", None),
        ("GET", "rooms/r", None),
        ("POST", "query", {"user_ids": ["kol_1"]}),
        ("POST", "poll", {}),
    ]:
        status, answer, _ = server.http(method, f"{BASE}/{path}", body, key=token)
        assert (status, answer["error"]["code"]) == (401, "unauthorized"), path


# The end of a token.


def test_a_token_s_end_is_announced_a_minute_before_and_again_for_its_successor(server: Server) -> None:
    async def story() -> None:
        async with Clients(server) as clients:
            user_id = fresh("user")
            client = await clients.connect(user_id, token=signed(user_id, life=62), public=False)
            expires_at = client.came("welcome")[0]["expires_at"]
            assert not client.came("token_expiring")
            assert (await client.take("token_expiring"))["expires_at"] == expires_at
            assert expires_at - 60 - 0.01 <= time.time() <= expires_at - 60 + TICK + SLACK
            # One that lives for less is announced as soon as it is there.
            ack = await client.do("token_refresh", token=signed(user_id, life=40))
            begun_s = time.monotonic()
            assert (await client.take("token_expiring"))["expires_at"] == ack["expires_at"]
            assert time.monotonic() - begun_s <= TICK + SLACK
            # And one that lives for long is not, nor is the old one any more.
            await client.do("token_refresh", token=signed(user_id))
            await asyncio.sleep(2 * TICK)
            await client.beat()
            assert len(client.came("token_expiring")) == 2

    asyncio.run(story())


def test_an_observer_s_token_ends_as_well(server: Server) -> None:
    async def story() -> None:
        async with Clients(server) as clients:
            user_id = fresh("user")
            token = signed(user_id, life=1)
            observer = await clients.connect(user_id, token=token, public=False)
            expires_at = observer.came("welcome")[0]["expires_at"]
            assert await observer.ended() == 4001
            assert expires_at - 0.01 <= time.time() <= expires_at + TICK + SLACK
            await opens_nothing(server, token)

    asyncio.run(story())


# Revocation.


def test_what_lives_by_a_revoked_token_ends_at_once(server: Server) -> None:
    async def story() -> None:
        async with Clients(server) as clients:
            scene = await Scene.begin(clients)
            user_id = scene.actor.user_id
            tablet = await clients.online(user_id, "kol", device="tablet", codec="msgpack", public=False)
            observer = await clients.connect(user_id, "kol")
            detached = await clients.online(user_id, "kol", device="laptop", status="busy", public=False)
            await detached.cut()
            assert server.http("POST", f"{BASE}/poll", {"device": "tv"}, key=signed(user_id, "kol"))[0] == 200
            friend = await clients.online(fresh("user"), public=False)
            await friend.do("subscribe", user_ids=[user_id])
            call = {"to_user_id": friend.user_id, "video": True, "audio": True}
            await tablet.do("call", call_id="of the revoked", **call)
            await scene.seen()
            revoke(server, user_id)
            for client in (scene.actor, tablet, observer):
                assert await client.ended() == 4001
            assert await scene.seen() == ["offline"]
            assert (await friend.take("call_end", call_id="of the revoked"))["reason"] == "offline"
            assert server.event("user offline", user_id=user_id)["reason"] == "token"
            await friend.refused("message", "user_offline", to_user_id=user_id, message="m")

    asyncio.run(story())


def test_old_tokens_open_nothing_and_those_of_the_next_second_do(server: Server) -> None:
    async def story() -> None:
        async with Clients(server) as clients:
            user_id = fresh("user")
            old = [signed(user_id), signed(user_id, age=30), server.token(user_id)]
            other = signed(fresh("user"))
            until = revoke(server, user_id)
            same_second = signed(user_id, age=int(time.time()) - until)
            for token in (*old, same_second):
                await opens_nothing(server, token)
            # Of the next second; a clock that is a little ahead is forgiven.
            new = signed(user_id, age=int(time.time()) - until - 1)
            client = await clients.online(user_id, token=new)
            await client.beat()
            assert server.http("GET", f"{BASE}/kol_1", key=new)[0] == 200
            # The old ones don't come back through the door behind.
            for token in (*old, same_second):
                error = await client.refused("token_refresh", "unauthorized", token=token)
                assert "revoked" in error["message"]
            await client.do("token_refresh", token=signed(user_id, age=int(time.time()) - until - 1, life=600))
            assert await handshake(server, other) == 101
            # It can be done again, and then they are all dead.
            while revoke(server, user_id) <= until:
                await asyncio.sleep(0.05)
            assert await client.ended() == 4001
            await opens_nothing(server, new)

    asyncio.run(story())


def test_a_token_that_is_issued_between_two_revocations_is_dead_after_the_second(server: Server) -> None:
    user_id = fresh("user")
    for _ in range(3):  # most of them within one second
        token = server.token(user_id)
        assert server.http("GET", f"{BASE}/kol_1", key=token)[0] == 200
        revoke(server, user_id)
        assert server.http("GET", f"{BASE}/kol_1", key=token)[0] == 401


def test_a_user_whom_nobody_knows_can_be_revoked_too(server: Server) -> None:
    async def story() -> None:
        user_id = fresh("user")
        token = signed(user_id)
        revoke(server, user_id)
        await opens_nothing(server, token)

    asyncio.run(story())


def test_a_revocation_outlives_the_worker(start: Start) -> None:
    server = start(presence__heartbeat_timeout=60)
    server.expect("worker died")

    async def story() -> None:
        async with Clients(server) as clients:
            dead, living = signed("dead"), signed("living")
            client: Client = await clients.online("dead", token=dead)
            until = revoke(server, "dead")
            for deaths in (1, 2):
                os.kill(server.worker_pid, signal.SIGKILL)
                assert await handshake(server, dead) == 401  # by the next worker, from its first moment on
                server.event("worker ready", nth=deaths)
                await opens_nothing(server, dead)
                assert await handshake(server, living) == 101
            assert await client.ended() in (4001, 1006)
            assert await handshake(server, signed("dead", age=int(time.time()) - until - 1)) == 101

    asyncio.run(story())
