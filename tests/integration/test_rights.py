"""What a token allows: its claims `watch` and `rooms`, however the token came about, in every request that asks."""

import asyncio
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from joserfc import jwt
from joserfc.jwk import OctKey

from tests.support.clients import Client, Clients, Codec
from tests.support.scene import fresh
from tests.support.server import API_KEY, Server, shared
from tests.support.tokens import signed

BASE = "/api/online-status"
LOGIN_SECRET = "login-secret-of-the-application-0123456789"
FRIEND, FOE, OWN, OPEN, CLOSED = "friend", "foe", "own-room", "open-room", "closed-room"

both_codecs = pytest.mark.parametrize("codec", ["json", "msgpack"])


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    yield from shared(
        {
            "presence.heartbeat_timeout": 60,
            "auth.login_keys": LOGIN_SECRET,
            "limits.rate": 10_000,
            "limits.burst": 10_000,
        }
    )


def by_hand(server: Server, user_id: str) -> str:
    return signed(user_id, room=OWN, watch=[FRIEND], rooms=[OPEN])


def by_api_key(server: Server, user_id: str) -> str:
    asked = {"user_id": user_id, "room_id": OWN, "watch": [FRIEND], "rooms": [OPEN]}
    status, answer, _ = server.http("POST", f"{BASE}/rts-token", asked)
    assert status == 200, answer
    return str(answer["signature"])


def login(user_id: str, **claims: object) -> str:
    """What the application gives its user."""
    said = {"sub": user_id, "exp": int(time.time()) + 60, **claims}
    return jwt.encode({"alg": "HS256"}, said, OctKey.import_key(LOGIN_SECRET))


def by_login(server: Server, user_id: str) -> str:
    asked = {"user_id": user_id, "room_id": OWN}
    key = login(user_id, watch=[FRIEND], rooms=[OPEN, OWN])
    status, answer, _ = server.http("POST", f"{BASE}/rts-token", asked, key=key)
    assert status == 200, answer
    return str(answer["signature"])


every_way = pytest.mark.parametrize("token_of", [by_hand, by_api_key, by_login])
TokenOf = Callable[[Server, str], str]


@every_way
@both_codecs
def test_what_a_token_does_not_allow_is_forbidden_on_a_socket_and_subscribes_to_nothing(
    server: Server, token_of: TokenOf, codec: Codec
) -> None:
    async def story() -> None:
        async with Clients(server) as clients:
            friend, foe, host = [await clients.online(user, public=False) for user in (FRIEND, FOE, fresh("user"))]
            kol = await clients.online(fresh("kol"), "kol", public=False)
            for member in (friend, foe):
                await member.do("subscribe", rooms=[OPEN, CLOSED])
            user_id = fresh("user")
            client = await clients.online(user_id, token=token_of(server, user_id), codec=codec)
            await client.take("user_online_status", room=OWN)  # its own room
            heard = len(client.came("user_online_status"))
            for user_ids, rooms in [
                ([FOE], None),
                ([FRIEND, FOE], None),
                ([FRIEND], [CLOSED]),
                ([FOE], [OPEN]),
                (None, [OPEN, CLOSED]),
                ([kol.user_id], None),  # told anyway, but not to be asked for by name
            ]:
                await client.refused("subscribe", "forbidden", user_ids=user_ids, rooms=rooms)
            for user_ids in ([FOE], [FRIEND, FOE], [host.user_id]):
                await client.refused("request_online_status", "forbidden", user_ids=user_ids)
            for member in (friend, foe):
                await member.do("status_change", status="busy")
            await kol.do("status_change", status="busy")
            await client.sees(kol.user_id, "busy")
            told = {
                entry["user_id"]
                for frame in client.came("user_online_status")[heard:]
                for entry in frame["user_status"]
            }
            told.discard(user_id)
            # The hosts of tests before may go meanwhile; they are public, too.
            assert kol.user_id in told
            assert all(name.startswith("kol_") for name in told)
            # And what it does allow is as ever.
            await client.do("subscribe", user_ids=[FRIEND, user_id], rooms=[OPEN, OWN])
            await client.sees(FRIEND, "busy")
            await client.until(lambda: user_id in client.view.rooms.get(OPEN, ()), "himself in the open room")
            asked = await client.ask("request_online_status", user_ids=[user_id, FRIEND])
            assert [entry["status"] for entry in asked["user_status"]] == ["online", "busy"]
            await client.do("unsubscribe", user_ids=[FOE], rooms=[CLOSED])  # what one never had can be given up
            # Messages and calls are no questions.
            assert (await client.do("message", to_user_id=FOE, message="m"))["delivered"] == 1

    asyncio.run(story())


@every_way
def test_what_a_token_does_not_allow_is_403_over_http(server: Server, token_of: TokenOf) -> None:
    user_id = fresh("user")
    token = token_of(server, user_id)

    def status(method: str, path: str, body: object = None, key: str = token) -> int:
        got, answer, _ = server.http(method, f"{BASE}/{path}", body, key=key)
        if got == 403:
            assert answer["error"]["code"] == "forbidden"
            assert FOE not in answer["error"]["message"]
        return got

    allowed_paths = (FRIEND, user_id, f"rooms/{OWN}", f"rooms/{OPEN}")
    for path in (*allowed_paths, FOE, f"rooms/{CLOSED}"):
        allowed = path in allowed_paths
        assert status("GET", path) == (200 if allowed else 403), path
        assert status("GET", path, key=API_KEY) == 200
    for user_ids, allowed in [([FRIEND, user_id], True), ([FOE], False), ([FRIEND, FOE], False)]:
        assert status("POST", "query", {"user_ids": user_ids}) == (200 if allowed else 403)
        assert status("POST", "query", {"user_ids": user_ids}, API_KEY) == 200
    for body, allowed in [
        ({}, True),
        ({"user_ids": [FRIEND, user_id], "rooms": [OPEN, OWN]}, True),
        ({"user_ids": [FOE]}, False),
        ({"rooms": [CLOSED]}, False),
        ({"user_ids": [FRIEND], "rooms": [OPEN, CLOSED]}, False),
    ]:
        assert status("POST", "poll", body) == (200 if allowed else 403), body


def test_a_poll_that_is_forbidden_makes_nobody_present(server: Server) -> None:
    user_id = fresh("user")
    asked = {"rooms": [CLOSED], "status": "busy"}
    assert server.http("POST", f"{BASE}/poll", asked, key=by_hand(server, user_id))[0] == 403
    assert server.http("GET", f"{BASE}/{user_id}")[1]["rev"] == 0


def test_each_claim_limits_its_own_and_none_of_them_limits_nothing(server: Server) -> None:
    user_id = fresh("user")
    cases: list[tuple[dict[str, Any], int, int]] = [
        ({}, 200, 200),
        ({"watch": "*", "rooms": "*"}, 200, 200),
        ({"watch": []}, 403, 200),
        ({"rooms": []}, 200, 403),
        ({"watch": [], "rooms": "*"}, 403, 200),
    ]
    for claims, watch, room in cases:
        token = signed(user_id, **claims)
        assert server.http("GET", f"{BASE}/{FOE}", key=token)[0] == watch, claims
        assert server.http("GET", f"{BASE}/rooms/{CLOSED}", key=token)[0] == room, claims
        assert server.http("GET", f"{BASE}/{user_id}", key=token)[0] == 200
    wrong: list[dict[str, Any]] = [{"watch": "kol_1"}, {"watch": None}, {"rooms": ["a b"]}, {"rooms": {}}]
    for claims in wrong:
        assert server.http("GET", f"{BASE}/{user_id}", key=signed(user_id, **claims))[0] == 401, claims


# The token endpoint.


def test_an_api_key_may_ask_for_rights_and_what_is_wrong_with_them_is_422(server: Server) -> None:
    for field in ("watch", "rooms"):
        for wrong in ("kol_1", None, 5, [5], ["a b"], [""], {"a": 1}):
            status, answer, _ = server.http("POST", f"{BASE}/rts-token", {"user_id": "u", field: wrong})
            assert (status, answer["error"]["code"]) == (422, "bad_field"), (field, wrong)
            assert field in answer["error"]["message"]
        too_many = [f"a-name-that-is-rather-long-{number}" for number in range(200)]
        status, answer, _ = server.http("POST", f"{BASE}/rts-token", {"user_id": "u", field: too_many})
        assert (status, answer["error"]["code"]) == (422, "bad_field")
        assert field in answer["error"]["message"]
        for right in ("*", [], ["kol_1", "a@b:c"]):
            assert server.http("POST", f"{BASE}/rts-token", {"user_id": "u", field: right})[0] == 200


def test_who_has_a_login_token_gets_the_rights_that_it_says_and_can_not_ask_for_others(server: Server) -> None:
    user_id = fresh("user")
    for field, value in (("watch", "*"), ("watch", [FOE]), ("rooms", "*"), ("rooms", [])):
        asked = {"user_id": user_id, field: value}
        status, answer, _ = server.http("POST", f"{BASE}/rts-token", asked, key=login(user_id, watch=[], rooms=[]))
        assert (status, answer["error"]["code"]) == (403, "forbidden")
        assert field in answer["error"]["message"]
    cases: list[tuple[dict[str, Any], int, int]] = [
        ({}, 200, 403),
        ({"rooms": "*"}, 200, 200),
        ({"watch": []}, 403, 403),
    ]
    for claims, watch, room in cases:
        answer = server.http("POST", f"{BASE}/rts-token", {"user_id": user_id}, key=login(user_id, **claims))[1]
        token = answer["signature"]
        assert server.http("GET", f"{BASE}/{FOE}", key=token)[0] == watch, claims
        assert server.http("GET", f"{BASE}/rooms/{CLOSED}", key=token)[0] == room, claims


# A token that is replaced.


@both_codecs
def test_a_narrower_token_ends_the_watches_and_rooms_that_it_does_not_allow(server: Server, codec: Codec) -> None:
    async def story() -> None:
        async with Clients(server) as clients:
            room, other_room = fresh("room"), fresh("room")
            kept, dropped = [await clients.online(fresh("user"), public=False) for _ in range(2)]
            observer = await clients.connect(fresh("user"), public=False)
            await observer.do("subscribe", rooms=[room, other_room])
            user_id = fresh("user")
            client = await clients.online(user_id, public=False, codec=codec)
            await client.do("subscribe", user_ids=[kept.user_id, dropped.user_id], rooms=[room, other_room])

            async def rooms_are(*names: str) -> None:
                def reached() -> bool:
                    return all((user_id in observer.view.rooms[name]) is (name in names) for name in (room, other_room))

                await observer.until(reached, f"in {names}")

            async def changes(status: str) -> None:
                for user in (dropped, kept):
                    await user.do("status_change", status=status)

            await rooms_are(room, other_room)
            narrow = signed(user_id, watch=[kept.user_id], rooms=[room])
            await client.do("token_refresh", token=narrow)
            await rooms_are(room)
            await changes("busy")
            await client.sees(kept.user_id, "busy")
            assert client.view.status(dropped.user_id) == "online"
            await client.refused("subscribe", "forbidden", user_ids=[dropped.user_id])
            await client.refused("subscribe", "forbidden", rooms=[other_room])
            # The cursor that comes with changes is of what is left.
            back = await clients.connect(user_id, public=False, codec=codec, token=narrow)
            await back.do("subscribe", user_ids=[kept.user_id], cursor=client.view.watch_cursor)
            answer = await back.take("user_online_status")
            assert (answer["full"], answer["user_status"]) == (False, [])
            # None at all; himself he may watch.
            await client.do("token_refresh", token=signed(user_id, watch=[], rooms=[]))
            await rooms_are()
            await changes("away")
            await client.do("subscribe", user_ids=[user_id])
            await client.sees(user_id, "online")
            assert client.view.status(kept.user_id) == "busy"
            # And a wider one gives nothing back by itself, but may be asked.
            await client.do("token_refresh", token=server.token(user_id))
            await client.do("subscribe", user_ids=[dropped.user_id], rooms=[other_room])
            await client.sees(dropped.user_id, "away")
            await rooms_are(other_room)

    asyncio.run(story())


@pytest.mark.parametrize("how", ["reconnects", "takes its device's name", "polls"])
def test_a_session_that_supersedes_is_in_no_room_that_its_own_token_does_not_allow(server: Server, how: str) -> None:
    async def story() -> None:
        async with Clients(server) as clients:
            room, other_room = fresh("room"), fresh("room")
            observer = await clients.connect(fresh("user"), public=False)
            await observer.do("subscribe", rooms=[room, other_room])
            user_id = fresh("user")
            old = await clients.online(user_id, device="phone", public=False)
            await old.do("subscribe", rooms=[room, other_room])
            both = [room, other_room]
            await observer.until(lambda: all(user_id in observer.view.rooms[name] for name in both), "in both")
            narrow = signed(user_id, rooms=[room])
            if how == "polls":
                await old.cut()
                assert server.http("POST", f"{BASE}/poll", {"device": "phone"}, key=narrow)[0] == 200
            elif how == "reconnects":
                await clients.online(user_id, device="phone", token=narrow, public=False)
            else:
                new = await clients.online(user_id, token=narrow, public=False)
                await new.do("user_online", device="phone")
            await observer.until(lambda: user_id not in observer.view.rooms[other_room], "out of the other room")
            await observer.beat()
            assert observer.view.rooms[room] == {user_id}

    asyncio.run(story())


def test_a_token_that_is_refused_leaves_the_old_one_and_its_rights(server: Server) -> None:
    async def story() -> None:
        async with Clients(server) as clients:
            user_id = fresh("user")
            client: Client = await clients.online(user_id, token=signed(user_id, watch=[FRIEND], rooms=[]))
            for token, code in [
                (signed(fresh("user")), "forbidden"),
                (signed(user_id, "kol"), "forbidden"),
                (signed(user_id, age=100, life=99), "unauthorized"),
                (signed(user_id, watch="everybody"), "unauthorized"),
                ("a.b.c", "unauthorized"),
            ]:
                await client.refused("token_refresh", code, token=token)
            await client.refused("subscribe", "forbidden", user_ids=[FOE])
            await client.do("subscribe", user_ids=[FRIEND])

    asyncio.run(story())
