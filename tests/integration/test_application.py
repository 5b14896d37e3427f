"""What the application's server may do with its key: force a status, send a message, disconnect, look into a room."""

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from tests.conftest import Start
from tests.support.clients import Clients, Codec
from tests.support.scene import Scene, fresh
from tests.support.server import Server, shared
from tests.support.tokens import signed

BASE = "/api/online-status"
both_codecs = pytest.mark.parametrize("codec", ["json", "msgpack"])

#: Every request of the application alone: method, path, and a body that is good.
ITS_OWN: list[tuple[str, str, object]] = [
    ("POST", "users/u/status", {"status": "busy"}),
    ("POST", "users/u/messages", {"message": "m", "from_user_id": "support"}),
    ("DELETE", "users/u/sessions", None),
    ("POST", "tokens/revoke", {"user_id": "nobody-at-all"}),
]


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    yield from shared({"presence.heartbeat_timeout": 60, "limits.rate": 10_000, "limits.burst": 10_000})


def force(server: Server, user_id: str, status: str) -> dict[str, Any]:
    """The answer to a status that was forced."""
    got, entry, _ = server.http("POST", f"{BASE}/users/{user_id}/status", {"status": status})
    assert got == 200, entry
    assert set(entry) == {"user_id", "user_type", "status", "online", "last_seen", "rev"}
    assert entry == server.http("GET", f"{BASE}/{user_id}")[1]
    return dict(entry)


def say(server: Server, user_id: str, **fields: object) -> tuple[int, Any]:
    body = {"message": "m", "from_user_id": "support", **fields}
    return server.http("POST", f"{BASE}/users/{user_id}/messages", body)[:2]


# Forced status.


def test_a_forced_status_is_that_of_every_session_until_one_says_its_own(server: Server) -> None:
    async def story() -> None:
        async with Clients(server) as clients:
            scene = await Scene.begin(clients)
            user_id = scene.actor.user_id
            tablet = await clients.online(user_id, "kol", device="tablet", status="busy", public=False)
            detached = await clients.online(user_id, "kol", device="laptop", status="busy", public=False)
            await detached.cut()
            assert await scene.seen() == ["busy"]
            assert force(server, user_id, "away")["status"] == "away"
            assert await scene.seen() == ["away"]
            assert server.event("status changed", user_id=user_id, status="away")["was"] == "busy"
            force(server, user_id, "away")
            await scene.nothing_was_seen()
            # One of them says its own; the others still say what they were told to.
            await tablet.do("status_change", status="online")
            assert await scene.seen() == ["online"]
            await tablet.do("user_offline")
            assert await scene.seen() == ["away"]
            # Who comes later says his own from the start.
            await clients.online(user_id, "kol", device="phone", public=False)
            assert await scene.seen() == ["online"]
            force(server, user_id, "busy")
            assert await scene.seen() == ["busy"]
            await scene.actor.do("user_online", status="away")
            await scene.nothing_was_seen()

    asyncio.run(story())


def test_offline_is_a_status_that_can_be_forced_and_taken_back(server: Server) -> None:
    async def story() -> None:
        async with Clients(server) as clients:
            scene = await Scene.begin(clients)
            user_id = scene.actor.user_id
            tablet = await clients.online(user_id, "kol", device="tablet", status="away", public=False)
            assert force(server, user_id, "offline")["online"] is False
            assert await scene.seen() == ["offline"]
            await scene.actor.beat()
            assert say(server, user_id)[0] == 409
            force(server, user_id, "offline")  # he is there: it is no conflict
            await scene.nothing_was_seen()
            await tablet.do("status_change", status="busy")
            assert await scene.seen() == ["busy"]
            await tablet.do("status_change", status="offline")
            assert await scene.seen() == ["offline"]
            assert force(server, user_id, "away")["status"] == "away"  # also of one who hid himself
            assert await scene.seen() == ["away"]
            assert say(server, user_id) == (200, {"delivered": 2})

    asyncio.run(story())


def test_a_status_that_is_forced_in_a_call_shows_when_the_call_ends(server: Server) -> None:
    async def story() -> None:
        async with Clients(server) as clients:
            scene = await Scene.begin(clients)
            caller = await clients.online(fresh("user"), public=False)
            call_id = fresh("call")
            call = {"call_id": call_id, "to_user_id": scene.actor.user_id, "video": True, "audio": True}
            await caller.do("call", **call)
            await scene.actor.do("call_accept", call_id=call_id)
            assert await scene.seen() == ["busy"]
            assert force(server, scene.actor.user_id, "away")["status"] == "busy"
            await scene.nothing_was_seen()
            await scene.actor.do("call_end", call_id=call_id)
            assert await scene.seen() == ["away"]

    asyncio.run(story())


def test_a_status_can_be_forced_on_one_who_polls_and_not_on_one_who_has_no_session(server: Server) -> None:
    async def story() -> None:
        async with Clients(server) as clients:
            poller = fresh("user")
            assert server.http("POST", f"{BASE}/poll", {}, key=signed(poller))[0] == 200
            assert force(server, poller, "busy")["status"] == "busy"
            server.http("POST", f"{BASE}/poll", {}, key=signed(poller))
            assert server.http("GET", f"{BASE}/{poller}")[1]["status"] == "busy"
            observer = await clients.connect(fresh("user"))
            gone = await clients.online(fresh("user"))
            await gone.do("user_offline")
            for user_id in ("nobody", observer.user_id, gone.user_id):
                status, answer, _ = server.http("POST", f"{BASE}/users/{user_id}/status", {"status": "busy"})
                assert (status, answer["error"]["code"]) == (409, "not_online")

    asyncio.run(story())


# Messages.


@both_codecs
def test_a_message_of_the_application_reaches_every_connected_session(server: Server, codec: Codec) -> None:
    async def story() -> None:
        async with Clients(server) as clients:
            user_id = fresh("kol")
            sessions = [
                await clients.online(user_id, "kol", device=device, codec=each, public=False)
                for device, each in (("phone", "json"), ("tablet", "msgpack"), ("laptop", codec))
            ]
            observer = await clients.connect(user_id, "kol")
            text = "\u4f60\u597d \U0001f600" * 1000 + "x" * 4192
            assert say(server, user_id, message=text[:8192]) == (200, {"delivered": 3})
            for session in sessions:
                frame = await session.take("message")
                assert (frame["from_user_id"], frame["to_user_id"]) == ("support", user_id)
                assert frame["message"] == text[:8192]
            await sessions[0].cut()
            assert say(server, user_id, from_user_id="a@b") == (200, {"delivered": 2})
            await observer.beat()
            assert not observer.came("message")

    asyncio.run(story())


def test_a_message_that_reaches_nobody_is_a_conflict_or_unavailable(server: Server) -> None:
    async def story() -> None:
        async with Clients(server) as clients:
            hidden = await clients.online(fresh("user"), status="offline")
            observer = await clients.connect(fresh("user"))
            detached = await clients.online(fresh("user"))
            await detached.cut()
            for user_id in ("nobody", hidden.user_id, observer.user_id):
                status, answer = say(server, user_id)
                assert (status, answer["error"]["code"]) == (409, "user_offline")
            status, answer = say(server, detached.user_id)
            assert (status, answer["error"]["code"]) == (503, "unavailable")
            assert not hidden.came("message")

    asyncio.run(story())


def test_messages_of_the_application_arrive_in_order_with_those_of_others_between(server: Server) -> None:
    async def story() -> None:
        async with Clients(server) as clients:
            receiver, sender = [await clients.online(fresh("user"), public=False) for _ in range(2)]
            for number in range(20):
                await sender.send("message", to_user_id=receiver.user_id, message=f"s{number}")
                assert say(server, receiver.user_id, message=f"a{number}")[0] == 200
            await receiver.until(lambda: len(receiver.came("message")) == 40, "forty messages")
            texts = [frame["message"] for frame in receiver.came("message")]
            for who in "as":
                assert [text for text in texts if text[0] == who] == [f"{who}{number}" for number in range(20)]

    asyncio.run(story())


# Disconnecting.


def test_a_user_who_is_disconnected_is_gone_at_once_with_all_he_had(server: Server) -> None:
    async def story() -> None:
        async with Clients(server) as clients:
            scene = await Scene.begin(clients)
            user_id = scene.actor.user_id
            tablet = await clients.online(user_id, "kol", device="tablet", public=False)
            observer = await clients.connect(user_id, "kol")
            detached = await clients.online(user_id, "kol", device="laptop", status="away", public=False)
            await detached.cut()
            token = signed(user_id, "kol")
            assert server.http("POST", f"{BASE}/poll", {"device": "browser"}, key=token)[0] == 200
            caller = await clients.online(fresh("user"), public=False)
            call = {"call_id": fresh("call"), "to_user_id": user_id, "video": True, "audio": True}
            await caller.do("call", **call)
            await scene.seen()
            answer = server.http("DELETE", f"{BASE}/users/{user_id}/sessions")
            assert answer[:2] == (200, {"user_id": user_id, "disconnected": 3})
            for client in (scene.actor, tablet, observer):
                assert await client.ended() == 4010
            assert (await caller.take("call_end"))["reason"] == "offline"
            assert (await scene.seen())[-1] == "offline"
            assert server.event("user offline", user_id=user_id)["reason"] == "kicked"
            await caller.beat()  # nobody else
            assert server.http("DELETE", f"{BASE}/users/{user_id}/sessions")[1]["disconnected"] == 0
            # It is no revocation: who stops obeying may come back, as somebody new.
            back = await clients.online(user_id, "kol", token=token, public=False)
            assert (await scene.seen())[-1] == "online"
            assert (await back.do("message", to_user_id=user_id, message="m"))["delivered"] == 1

    asyncio.run(story())


def test_who_has_no_connection_is_disconnected_too(server: Server) -> None:
    async def story() -> None:
        async with Clients(server) as clients:
            scene = await Scene.begin(clients)
            await scene.actor.cut()
            await scene.nothing_was_seen()
            path = f"{BASE}/users/{scene.actor.user_id}/sessions"
            assert server.http("DELETE", path)[1] == {"user_id": scene.actor.user_id, "disconnected": 0}
            assert await scene.seen() == ["offline"]
            assert server.http("DELETE", f"{BASE}/users/nobody/sessions")[1]["disconnected"] == 0

    asyncio.run(story())


# Rooms.


def test_the_state_of_a_room_is_its_roster_as_its_members_see_it(server: Server) -> None:
    async def story() -> None:
        async with Clients(server) as clients:
            room = fresh("room")
            path = f"{BASE}/rooms/{room}"
            nothing = {"room": room, "count": 0, "user_status": []}
            assert server.http("GET", path)[:2] == (200, nothing)
            observer = await clients.connect(fresh("user"), public=False)
            await observer.do("subscribe", rooms=[room])
            assert server.http("GET", path)[1] == nothing
            members = [
                await clients.online(fresh("user"), status=status, room_id=room, public=False)
                for status in ("busy", "away", "offline")
            ]
            leaving = await clients.online(fresh("user"), room_id=room, public=False)
            await leaving.do("unsubscribe", rooms=[room])
            for key in (signed(fresh("user")), server.token(fresh("user"))):
                status, answer, _ = server.http("GET", path, key=key)
                assert (status, answer["room"], answer["count"]) == (200, room, 2)
                entries = {entry["user_id"]: entry for entry in answer["user_status"]}
                assert set(entries) == {members[0].user_id, members[1].user_id}
                for user_id, entry in entries.items():
                    assert entry == server.http("GET", f"{BASE}/{user_id}")[1]

    asyncio.run(story())


# Who may, and what is wrong.


@pytest.mark.parametrize(("method", "path", "body"), ITS_OWN)
def test_nobody_else_may(server: Server, method: str, path: str, body: object) -> None:
    for key in (None, "wrong", "a.b.c", signed("u"), signed("u", "kol")):
        status, answer, _ = server.http(method, f"{BASE}/{path}", body, key=key)
        assert (status, answer["error"]["code"]) == (401, "unauthorized")


@pytest.mark.parametrize(("method", "path", "body"), ITS_OWN)
def test_a_path_takes_its_own_method_alone(server: Server, method: str, path: str, body: object) -> None:
    for other in {"GET", "POST", "PUT", "DELETE", "PATCH"} - {method}:
        status, answer, headers = server.http(other, f"{BASE}/{path}", body)
        assert (status, headers["allow"]) == (405, method)
        assert answer["error"]["code"]


@pytest.mark.parametrize(
    ("path", "body", "status", "field"),
    [
        ("users/u/status", {}, 422, "status"),
        ("users/u/status", {"status": "asleep"}, 422, "status"),
        ("users/u/status", {"status": None}, 422, "status"),
        ("users/a%20b/status", {"status": "busy"}, 422, "user_id"),
        ("users/u/status", b"busy", 400, ""),
        ("users/u/messages", {"from_user_id": "a"}, 422, "message"),
        ("users/u/messages", {"message": "", "from_user_id": "a"}, 422, "message"),
        ("users/u/messages", {"message": "é" * 8193, "from_user_id": "a"}, 422, "message"),
        ("users/u/messages", {"message": 5, "from_user_id": "a"}, 422, "message"),
        ("users/u/messages", {"message": "m"}, 422, "from_user_id"),
        ("users/u/messages", {"message": "m", "from_user_id": "a b"}, 422, "from_user_id"),
        ("users/%00/messages", {"message": "m", "from_user_id": "a"}, 422, "user_id"),
        ("users/u/messages", b"{", 400, ""),
        ("users/u/messages", b"{" + b" " * 65_536, 413, ""),
        ("tokens/revoke", {}, 422, "user_id"),
        ("tokens/revoke", {"user_id": "a b"}, 422, "user_id"),
        ("tokens/revoke", {"user_id": None}, 422, "user_id"),
        ("tokens/revoke", b"", 400, ""),
    ],
)
def test_what_is_wrong_is_named(server: Server, path: str, body: object, status: int, field: str) -> None:
    got, answer, _ = server.http("POST", f"{BASE}/{path}", body)
    assert got == status
    assert set(answer) == {"error"}
    assert field in answer["error"]["message"]


def test_names_in_paths_are_checked_and_may_be_encoded(server: Server) -> None:
    for path in (f"{BASE}/users/a%2Fb/sessions", f"{BASE}/users/{'a' * 129}/sessions"):
        assert server.http("DELETE", path)[0] == 422
    assert server.http("DELETE", f"{BASE}/users/a%40b%3Ac/sessions")[1]["user_id"] == "a@b:c"
    assert server.http("GET", f"{BASE}/rooms/a%40b")[1]["room"] == "a@b"
    assert server.http("GET", f"{BASE}/rooms/a%20b")[0] == 422
    for path in (
        "users",
        "users/u",
        "users/u/status/x",
        "rooms",
        "rooms/",
        "tokens",
        "tokens/revoke/u",
        "users//status",
    ):
        assert server.http("POST", f"{BASE}/{path}", {})[0] in (404, 405), path


def test_a_session_over_the_limit_is_refused_until_one_of_them_ends(start: Start) -> None:
    server = start(presence__heartbeat_timeout=60, limits__sessions=2)

    async def story() -> None:
        async with Clients(server) as clients:
            phone, tablet = [await clients.online("kol_1", "kol", device=device) for device in ("phone", "tablet")]
            third = await clients.connect("kol_1", "kol")
            error = await third.refused("user_online", "too_many", device="laptop")
            assert "2" in error["message"]
            await third.refused("status_change", "not_online", status="busy")
            # Whoever takes another's place needs none of his own.
            again = await clients.online("kol_1", "kol", device="phone")
            await phone.refused("status_change", "not_online", status="busy")
            await tablet.cut()
            await third.refused("user_online", "too_many", device="laptop")  # it is there for its grace
            await again.do("user_offline")
            await third.do("user_online", device="laptop")
            await clients.online("kol_2", "kol")  # the limit is each user's own

    asyncio.run(story())
