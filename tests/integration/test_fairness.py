"""Who asks too often or for too much: slowed down, never forgotten, and what he makes the server hold is bounded."""

import asyncio
import json

import pytest

from tests.conftest import Start
from tests.support.clients import Clients, Codec, RawClient
from tests.support.scene import Scene
from tests.support.server import Server

both_codecs = pytest.mark.parametrize("codec", ["json", "msgpack"])
STATUSES = ("busy", "away", "online")


def start_server(start: Start, **settings: object) -> Server:
    return start(**{"presence__heartbeat_timeout": 60, "limits__rate": 10, "limits__burst": 10, **settings})


@both_codecs
def test_status_changes_over_the_rate_are_conflated_each_is_answered_once_and_the_last_one_wins(
    start: Start, codec: Codec
) -> None:
    server = start_server(start)

    async def story() -> None:
        async with Clients(server) as clients:
            scene = await Scene.begin(clients, codec)
            count = 301
            for number in range(count):
                await scene.actor.send("status_change", status=STATUSES[number % 3], id=1000 + number)
            await scene.actor.answer(1000 + count - 1)
            assert scene.actor.code is None
            assert not scene.actor.came("error")
            replies = [frame["reply_to"] for frame in scene.actor.came("ack")[-count:]]
            assert sorted(replies) == list(range(1000, 1000 + count))
            assert replies[-1] == 1000 + count - 1
            await scene.witness.sees(scene.actor.user_id, STATUSES[(count - 1) % 3])
            assert len(await scene.seen()) <= 30  # what the rate let through, and the last one
        assert not server.logged("rate limited")

    asyncio.run(story())


def test_a_superseded_status_is_answered_at_once_and_the_last_one_when_the_rate_allows(start: Start) -> None:
    server = start_server(start, limits__rate=2, limits__burst=4)

    async def story() -> None:
        async with Clients(server) as clients:
            scene = await Scene.begin(clients)
            await asyncio.sleep(2.0)
            for number in range(6):
                await scene.actor.send("status_change", status=STATUSES[number % 2], id=1000 + number)
            await scene.actor.answer(1004)
            assert not any(frame.get("reply_to") == 1005 for frame in scene.actor.came("ack"))
            assert (await scene.seen())[-1] == "away"
            await scene.actor.send("status_change", status="online", id=1006)
            await scene.actor.answer(1005)
            await scene.actor.answer(1006)
            assert (await scene.seen())[-1] == "online"
            # What waited is done: it does not come back over a newer one.
            await asyncio.sleep(1.0)
            await scene.actor.do("status_change", status="busy")
            await scene.witness.sees(scene.actor.user_id, "busy")

    asyncio.run(story())


def test_one_who_goes_while_a_status_waits_leaves_nothing_behind(start: Start) -> None:
    server = start_server(start, limits__rate=1, limits__burst=3)

    async def story() -> None:
        async with Clients(server) as clients:
            actor = await clients.online("actor")
            for number in range(10):
                await actor.send("status_change", status=STATUSES[number % 2])
            await actor.close(1001)
            await asyncio.sleep(2.0)
            await clients.online("actor")

    asyncio.run(story())


def test_who_is_not_online_or_names_another_user_is_refused_over_the_rate_too(start: Start) -> None:
    server = start_server(start)

    async def story() -> None:
        async with Clients(server) as clients:
            stranger = await clients.connect("stranger")
            for number in range(15):
                await stranger.send("status_change", status="busy", id=number)
            assert (await stranger.answer(0))["code"] == "not_online"
            assert (await stranger.answer(14))["code"] == "rate_limited"
            liar = await clients.online("liar")
            for number in range(100, 115):
                await liar.send("status_change", status="busy", user_id="other", id=number)
            assert (await liar.answer(114))["code"] == "rate_limited"

    asyncio.run(story())


def test_questions_about_very_many_users_cost_more_than_one_frame(start: Start) -> None:
    server = start_server(start, limits__rate=50, limits__burst=100)

    async def story() -> None:
        async with Clients(server) as clients:
            client = await clients.connect("curious")
            for number in range(40):
                await client.send("request_online_status", user_ids=["a"] * 1000, id=number)
            kinds = [(await client.answer(number))["type"] for number in range(40)]
            answered = kinds.count("user_online_status")
            assert 16 <= answered <= 25
            assert kinds[:16] == ["user_online_status"] * 16

    asyncio.run(story())


def test_a_small_question_with_a_long_answer_is_answered_a_turn_at_a_time_and_in_order(start: Start) -> None:
    # A room of many members: 60 bytes ask for 10 KB, 64 times in one packet.
    server = start(presence__heartbeat_timeout=60, limits__rate=10_000, limits__burst=10_000)

    async def story() -> None:
        async with Clients(server) as clients:
            members = 150
            for begin in range(0, members, 50):
                ids = [f"member_{number}" for number in range(begin, begin + 50)]
                await asyncio.gather(*[clients.online(each, room_id="hall", public=False) for each in ids])
            async with RawClient.upgraded(server, "greedy") as raw:
                raw.pause()
                count = 600
                for number in range(count):
                    raw.send_frame(RawClient.TEXT, b'{"type":"subscribe","rooms":["hall"],"id":%d}' % number)
                other = await clients.online("other")
                for _ in range(20):
                    await other.beat()
                raw.resume()
                acks: list[int] = []
                rosters = 0
                while len(acks) < count or rosters < count:
                    frame = json.loads((await raw.frame())[1])
                    if frame["type"] == "ack":
                        acks.append(frame["reply_to"])
                    elif frame["type"] == "user_online_status" and frame["full"]:
                        assert len(frame["user_status"]) == members
                        rosters += 1
                assert acks == list(range(count))

    asyncio.run(story())


def test_pipelined_http_requests_are_all_answered_in_order(start: Start) -> None:
    server = start(presence__heartbeat_timeout=60)
    token = server.token("asker")

    async def story() -> None:
        async with RawClient.open(server) as raw:
            count = 300
            raw.send(
                b"".join(
                    b"GET /api/online-status/user_%d HTTP/1.1\r\nHost: here\r\nAuthorization: Bearer %s\r\n\r\n"
                    % (number, token.encode())
                    for number in range(count)
                )
            )
            raw.send(RawClient.upgrade_request(token, "/ws?public=0"))
            for number in range(count):
                status, _, body = await raw.response()
                assert status == 200
                assert json.loads(body)["user_id"] == f"user_{number}"
            assert (await raw.response())[0] == 101
            assert b"welcome" in (await raw.frame())[1]

    asyncio.run(story())


def test_over_its_limit_an_address_gets_429_and_a_place_that_comes_free_is_given_again(start: Start) -> None:
    server = start(presence__heartbeat_timeout=60, limits__connections_per_address=5)

    async def story() -> None:
        async with Clients(server) as clients:
            token = server.token("user")
            there = [await clients.connect("user", token=token) for _ in range(5)]
            async with RawClient.open(server) as raw:
                status, headers, body = await raw.response()
                assert status == 429
                assert int(headers["retry-after"]) > 0
                assert json.loads(body)["error"]["code"] == "too_many"
            await there[0].close()
            await clients.connect("user", token=token)
        assert server.event("rejected handshake", status=429)["reason"] == "too many connections of one address"

    asyncio.run(story())
