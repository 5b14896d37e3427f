"""Polling: present without a socket, and to a socket and back without anybody seeing a flicker."""

import asyncio
import json
import os
import signal
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.conftest import Start
from tests.support.clients import Clients, Frame, RawClient
from tests.support.scene import Scene, fresh
from tests.support.server import API_KEY, Server, shared
from tests.support.tokens import signed

BASE = "/api/online-status"
POLL = f"{BASE}/poll"
TICK = 0.25  #: how late a deadline may be noticed, seconds
SLACK = 0.3  #: how long a busy machine may take to tell of it


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    yield from shared(
        {
            "presence.heartbeat_timeout": 60,
            "presence.room_roster_limit": 3,
            "limits.rate": 10_000,
            "limits.burst": 10_000,
            "limits.sessions": 3,
            "limits.watches": 4,
            "limits.rooms": 4,
        }
    )


class Poller:
    """Somebody who has no socket: what he asks for, his cursor, and what he believes."""

    def __init__(self, server: Server, user_id: str, user_type: str = "user", *, token: str | None = None) -> None:
        self.server = server
        self.user_id = user_id
        self.token = token or signed(user_id, user_type)
        self.cursor: str | None = None
        self.believes: dict[str, str] = {}

    async def poll(self, **asked: object) -> dict[str, Any]:
        """One poll from where the last one ended."""
        body = {"cursor": self.cursor, **asked} if self.cursor is not None else asked
        status, answer, _ = await asyncio.to_thread(self.server.http, "POST", POLL, body, key=self.token)
        assert status == 200, answer
        assert {"user_status", "cursor", "full"} <= set(answer) <= {
            "user_status", "cursor", "full", "more", "room_occupancy",
        }  # fmt: skip
        self.cursor = answer["cursor"]
        if answer["full"]:
            self.believes.clear()
        for entry in answer["user_status"]:
            assert entry["online"] is (entry["status"] != "offline")
            self.believes[entry["user_id"]] = entry["status"]
            if entry.get("left"):
                del self.believes[entry["user_id"]]
        return dict(answer)

    async def refused(self, status: int, code: str, body: object) -> dict[str, Any]:
        got, answer, headers = await asyncio.to_thread(self.server.http, "POST", POLL, body, key=self.token)
        assert (got, answer["error"]["code"]) == (status, code), answer
        return {**answer["error"], "headers": headers}


# Being present.


def test_a_poll_makes_its_user_present_keeps_him_alive_and_says_his_status(server: Server) -> None:
    async def story() -> None:
        async with Clients(server) as clients:
            scene = await Scene.begin(clients, online=False)
            poller = Poller(server, scene.actor.user_id, "kol")
            await poller.poll()
            assert await scene.seen() == ["online"]
            assert server.event("user online", user_id=poller.user_id)["status"] == "online"
            await poller.poll()
            await scene.nothing_was_seen()
            await poller.poll(status="busy")
            assert await scene.seen() == ["busy"]
            await poller.poll()  # left out: as it was
            await scene.nothing_was_seen()
            await poller.poll(status="offline")
            assert await scene.seen() == ["offline"]
            await poller.poll()
            await scene.nothing_was_seen()
            await poller.poll(status="away")
            assert await scene.seen() == ["away"]
            # Nobody can send him anything just now.
            friend = await clients.online(fresh("user"), public=False)
            await friend.refused("message", "unavailable", to_user_id=poller.user_id, message="m")
            call = {"call_id": fresh("call"), "to_user_id": poller.user_id, "video": True, "audio": True}
            await friend.refused("call", "unavailable", **call)

    asyncio.run(story())


def test_one_who_polls_no_more_goes_offline_by_the_timeout_and_one_who_polls_does_not(start: Start) -> None:
    timeout = 0.8
    server = start(presence__heartbeat_interval=0.3, presence__heartbeat_timeout=timeout)

    async def story() -> None:
        async with Clients(server) as clients:
            scene = await Scene.begin(clients, online=False)
            scene.witness.keep_beating(0.2)
            scene.marker.keep_beating(0.2)
            poller = Poller(server, scene.actor.user_id, "kol")
            until_s = time.monotonic() + 1.8 * timeout
            while time.monotonic() < until_s:
                before_s = time.monotonic()
                await poller.poll()
                after_s = time.monotonic()
                await asyncio.sleep(timeout / 4)
            sight = await scene.witness.sees(poller.user_id, "offline")
            assert before_s + timeout - 0.01 <= sight.at_s <= after_s + timeout + TICK + SLACK
            assert scene.witness.view.statuses(poller.user_id) == ["offline", "online", "offline"]
            assert server.event("user offline", user_id=poller.user_id)["reason"] == "timeout"
            # Last seen is the last poll, and he may begin anew.
            assert sight.last_seen is not None
            assert abs(sight.last_seen - (time.time() - timeout)) <= 1.6
            await poller.poll()
            await scene.witness.sees(poller.user_id, "online")

    asyncio.run(story())


# From a socket to polls and back.


def test_from_a_socket_to_polls_and_back_nobody_sees_a_flicker(start: Start) -> None:
    timeout = 0.8
    server = start(presence__heartbeat_interval=0.3, presence__heartbeat_timeout=timeout)

    async def to_and_fro(clients: Clients, device: str | None) -> None:
        room = fresh("room")
        scene = await Scene.begin(clients, online=False)
        scene.witness.keep_beating(0.2)
        scene.marker.keep_beating(0.2)
        await scene.witness.do("subscribe", rooms=[room])
        user_id = scene.actor.user_id
        named = {} if device is None else {"device": device}
        socket = await clients.online(user_id, "kol", status="busy", device=device, room_id=room)
        assert await scene.seen() == ["busy"]
        await scene.witness.until(lambda: user_id in scene.witness.view.rooms[room], "in the room")
        told = len(scene.witness.came("user_online_status"))
        poller = Poller(server, user_id, "kol", token=signed(user_id, "kol", room=room))
        for _ in range(2):
            await socket.cut()
            poller.cursor = socket.view.cursor
            until_s = time.monotonic() + 1.3 * timeout  # longer than the socket's session would have lived
            while time.monotonic() < until_s:
                await poller.poll(**named)
                await asyncio.sleep(timeout / 4)
            socket = await clients.online(
                user_id, "kol", status="busy", device=device, room_id=room, cursor=poller.cursor, view=socket.view
            )
        socket.keep_beating(0.2)
        await asyncio.sleep(timeout + TICK)  # what the polls had would be gone by now
        await scene.nothing_was_seen()
        about = [
            frame
            for frame in scene.witness.came("user_online_status")[told:]
            if frame.get("room") == room or user_id in str(frame["user_status"])
        ]
        assert not about
        assert scene.witness.view.rooms[room] == {user_id}
        assert (await socket.do("message", to_user_id=user_id, message="m"))["delivered"] == 1
        await socket.do("user_offline")
        assert await scene.seen() == ["offline"]

    async def story() -> None:
        async with Clients(server) as clients:
            await asyncio.gather(to_and_fro(clients, None), to_and_fro(clients, "phone"))

    asyncio.run(story())


@pytest.mark.parametrize("device", [None, "phone"])
def test_a_poll_that_comes_late_neither_ends_nor_doubles_the_session_of_the_socket(
    server: Server, device: str | None
) -> None:
    async def story() -> None:
        async with Clients(server) as clients:
            scene = await Scene.begin(clients, online=False)
            user_id = scene.actor.user_id
            named = {} if device is None else {"device": device}
            poller = Poller(server, user_id, "kol")
            await poller.poll(**named)
            socket = await clients.online(user_id, "kol", device=device, public=False)
            await poller.poll(**named)  # it was on its way already
            assert (await socket.do("message", to_user_id=user_id, message="still mine"))["delivered"] == 1
            await socket.take("message")
            await socket.do("status_change", status="busy")
            assert (await scene.seen())[-1] == "busy"
            await socket.do("user_offline")
            assert await scene.seen() == ["offline"]  # no second session is left behind

    asyncio.run(story())


def test_polls_of_two_devices_are_two_sessions_and_of_none_is_one(server: Server) -> None:
    async def story() -> None:
        async with Clients(server) as clients:
            scene = await Scene.begin(clients, online=False)
            user_id = scene.actor.user_id
            poller = Poller(server, user_id, "kol")
            await poller.poll(device="phone", status="away")
            await poller.poll(device="tablet", status="busy")
            await scene.settle()
            assert scene.witness.view.status(user_id) == "busy"
            tablet = await clients.online(user_id, "kol", device="tablet", public=False, status="busy")
            await tablet.do("user_offline")
            await scene.settle()
            assert scene.witness.view.status(user_id) == "away"
            await poller.poll(status="online")
            await poller.poll(status="away")  # the same session again
            await scene.settle()
            assert scene.witness.view.status(user_id) == "away"
            # A session of its own for each, and over the limit of sessions none.
            await poller.poll(device="tablet")
            assert "sessions" in (await poller.refused(422, "too_many", {"device": "laptop"}))["message"]

    asyncio.run(story())


# What polls tell.


def test_polls_tell_what_a_socket_tells_and_a_cursor_goes_on_in_either(server: Server) -> None:
    async def story() -> None:
        async with Clients(server) as clients:
            hosts = [await clients.online(fresh("kol"), "kol", public=False) for _ in range(3)]
            socket = await clients.connect(fresh("user"))
            poller = Poller(server, fresh("user"))
            assert (await poller.poll())["full"] is True

            async def agree() -> None:
                """By poll and by socket the same users are the same."""
                for host in hosts:
                    status = server.http("GET", f"{BASE}/{host.user_id}")[1]["status"]
                    await socket.sees(host.user_id, status)
                    assert poller.believes.get(host.user_id, "offline") == status

            await agree()
            await hosts[0].do("status_change", status="busy")
            await hosts[1].do("user_offline")
            answer = await poller.poll()
            assert answer["full"] is False
            assert {entry["user_id"] for entry in answer["user_status"]} == {hosts[0].user_id, hosts[1].user_id}
            await agree()
            # The poll's cursor on a socket, and the socket's in a poll.
            await socket.cut()
            await hosts[2].do("status_change", status="away")
            socket = await clients.connect(socket.user_id, cursor=poller.cursor, view=socket.view)
            frame = await socket.take("user_online_status")
            assert (frame["full"], [entry["user_id"] for entry in frame["user_status"]]) == (False, [hosts[2].user_id])
            await hosts[0].do("status_change", status="away")
            await socket.sees(hosts[0].user_id, "away")
            late = Poller(server, fresh("user"))
            late.cursor = socket.view.cursor
            answer = await late.poll()
            assert (answer["full"], answer["user_status"]) == (False, [])
            answer = await poller.poll()
            assert {entry["user_id"] for entry in answer["user_status"]} == {hosts[0].user_id, hosts[2].user_id}
            await agree()
            # One of a wider scope serves a socket, too; the other way it costs everything.
            wide = await poller.poll(user_ids=[hosts[0].user_id], rooms=["somewhere"])
            assert wide["full"] is True
            again = await clients.connect(fresh("user"), cursor=wide["cursor"])
            frame = await again.take("user_online_status")
            assert frame["full"] is False
            assert not {entry["user_id"] for entry in frame["user_status"]} & {host.user_id for host in hosts}

    asyncio.run(story())


def test_the_scope_of_a_poll_is_the_public_users_its_rooms_and_its_watches_each_user_once(server: Server) -> None:
    async def story() -> None:
        async with Clients(server) as clients:
            room, other_room = fresh("room"), fresh("room")
            host = await clients.online(fresh("kol"), "kol", public=False)
            member, watched, stranger = [await clients.online(fresh("user"), public=False) for _ in range(3)]
            for client in (host, member):
                await client.do("subscribe", rooms=[room])
            poller = Poller(server, fresh("user"))
            scope = {"rooms": [room, other_room], "user_ids": [watched.user_id, "nobody", host.user_id]}
            answer = await poller.poll(**scope)
            told = [entry["user_id"] for entry in answer["user_status"]]
            assert len(told) == len(set(told))
            expected = {host.user_id, member.user_id, watched.user_id, "nobody", poller.user_id}
            assert expected <= set(told)
            assert stranger.user_id not in told
            # What happens next, and nothing of those whom he did not ask for.
            for client in (host, member, watched, stranger):
                await client.do("status_change", status="busy")
            answer = await poller.poll(**scope)
            assert answer["full"] is False
            assert sorted(entry["user_id"] for entry in answer["user_status"]) == sorted(
                [host.user_id, member.user_id, watched.user_id]
            )
            # The member leaves, the host too: of the one that is the last word, the other one is public.
            await member.do("unsubscribe", rooms=[room])
            await host.do("unsubscribe", rooms=[room])
            answer = await poller.poll(**scope)
            left = {entry["user_id"]: entry.get("left", False) for entry in answer["user_status"]}
            assert left == {member.user_id: True, host.user_id: False}
            await member.do("status_change", status="away")
            assert (await poller.poll(**scope))["user_status"] == []
            assert (await poller.poll(rooms=[room]))["full"] is True  # another scope

    asyncio.run(story())


def test_rooms_are_those_that_are_named_and_left_out_they_stay_as_they_are(server: Server) -> None:
    async def story() -> None:
        async with Clients(server) as clients:
            own, room, other_room = fresh("room"), fresh("room"), fresh("room")
            observer = await clients.connect(fresh("user"), public=False)
            await observer.do("subscribe", rooms=[own, room, other_room])
            user_id = fresh("user")
            poller = Poller(server, user_id, token=signed(user_id, room=own))

            async def in_rooms(*names: str) -> None:
                def reached() -> bool:
                    return {name for name, members in observer.view.rooms.items() if user_id in members} == set(names)

                await observer.until(reached, f"in {names}")

            answer = await poller.poll()
            assert user_id in poller.believes  # of the token's room he is told
            await in_rooms(own)
            await poller.poll(rooms=[room])
            await in_rooms(own, room)
            answer = await poller.poll()
            await in_rooms(own, room)
            await poller.poll(rooms=[other_room, other_room, own])
            await in_rooms(own, other_room)
            # A socket takes them over, and polls that come late take none of them away.
            socket = await clients.online(user_id, public=False, room_id=own)
            await socket.do("subscribe", rooms=[other_room])
            await poller.poll(rooms=[])
            await in_rooms(own, other_room)
            await socket.detach()
            answer = await poller.poll(rooms=[])
            await in_rooms(own)
            assert set(poller.believes) & {user_id} == {user_id}
            assert "room_occupancy" not in answer

    asyncio.run(story())


def test_a_crowded_room_is_told_to_polls_as_a_number_and_then_by_its_roster_again(server: Server) -> None:
    async def story() -> None:
        async with Clients(server) as clients:
            room = fresh("room")
            observer = await clients.connect(fresh("user"), public=False)
            await observer.do("subscribe", rooms=[room])
            members = [await clients.online(fresh("user"), public=False, room_id=room) for _ in range(2)]
            ids = {member.user_id for member in members}
            poller = Poller(server, fresh("user"))
            await poller.poll(rooms=[room])
            answer = await poller.poll(rooms=[room])
            assert {*ids, poller.user_id} <= set(poller.believes)
            assert "room_occupancy" not in answer
            guest = await clients.online(fresh("user"), public=False, room_id=room)
            await observer.take("room_occupancy", count=4)
            answer = await poller.poll(rooms=[room])
            assert answer["room_occupancy"] == [{"room": room, "count": 4}]
            assert not ids & set(poller.believes)
            await members[0].do("status_change", status="busy")
            answer = await poller.poll(rooms=[room])
            assert (answer["full"], answer["user_status"]) == (False, [])
            for client in (guest, members[1]):
                await client.do("user_offline")
            await observer.until(lambda: observer.view.rooms[room] == {members[0].user_id, poller.user_id}, "a roster")
            answer = await poller.poll(rooms=[room])
            assert "room_occupancy" not in answer
            assert poller.believes[members[0].user_id] == "busy"
            assert not {guest.user_id, members[1].user_id} & set(poller.believes)

    asyncio.run(story())


def test_one_who_appears_offline_polls_unseen_and_sees(server: Server) -> None:
    async def story() -> None:
        async with Clients(server) as clients:
            room = fresh("room")
            scene = await Scene.begin(clients)
            await scene.witness.do("subscribe", rooms=[room])
            await scene.actor.do("subscribe", rooms=[room])
            hidden = Poller(server, fresh("kol"), "kol")
            await scene.witness.do("subscribe", user_ids=[hidden.user_id])
            await hidden.poll(status="offline", rooms=[room])
            await hidden.poll(rooms=[room])
            assert hidden.believes[scene.actor.user_id] == "online"
            await scene.settle()
            assert scene.witness.view.statuses(hidden.user_id) == ["offline"]
            assert hidden.user_id not in scene.witness.view.rooms[room]
            assert server.http("GET", f"{BASE}/{hidden.user_id}")[1]["rev"] == 0

    asyncio.run(story())


# Who may, what is wrong, how often.


def test_a_user_polls_with_a_token_of_his_own_and_with_nothing_else(server: Server) -> None:
    for key in (API_KEY, None, "a.b.c", signed("u", age=100, life=99)):
        status, answer, _ = server.http("POST", POLL, {}, key=key)
        assert (status, answer["error"]["code"]) == (401, "unauthorized")
    status, answer, _ = server.http("POST", POLL, {}, key=signed("u", "admin"))
    assert (status, answer["error"]["code"]) == (403, "forbidden")


@pytest.mark.parametrize(
    ("body", "status", "field"),
    [
        (b"", 400, ""),
        (b"cursor=x", 400, ""),
        ([], 422, ""),
        ({"cursor": 5}, 422, "cursor"),
        ({"status": "asleep"}, 422, "status"),
        ({"rooms": "r"}, 422, "rooms"),
        ({"rooms": ["a b"]}, 422, "rooms"),
        ({"rooms": [f"r{number}" for number in range(5)]}, 422, "rooms"),
        ({"user_ids": ["a b"]}, 422, "user_ids"),
        ({"user_ids": None}, 422, "user_ids"),
        ({"user_ids": [f"u{number}" for number in range(5)]}, 422, "user_ids"),
        ({"device": ""}, 422, "device"),
        ({"device": "d" * 65}, 422, "device"),
    ],
)
def test_a_poll_with_a_wrong_body_is_refused_by_the_field_s_name_and_makes_nobody_present(
    server: Server, body: object, status: int, field: str
) -> None:
    async def story() -> None:
        poller = Poller(server, fresh("user"))
        code = "bad_request" if status == 400 else "bad_field"
        assert field in (await poller.refused(status, code, body))["message"]
        assert server.http("GET", f"{BASE}/{poller.user_id}")[1]["rev"] == 0

    asyncio.run(story())


@pytest.mark.parametrize("cursor", ["", "garbage", "x~p~1", "~~", "a" * 256, "a" * 5000, "é", "\u0000"])
def test_a_cursor_that_is_none_costs_everything_and_no_error(server: Server, cursor: str) -> None:
    async def story() -> None:
        async with Clients(server) as clients:
            host = await clients.online(fresh("kol"), "kol", public=False)
            poller = Poller(server, fresh("user"))
            poller.cursor = cursor
            assert (await poller.poll())["full"] is True
            assert poller.believes[host.user_id] == "online"

    asyncio.run(story())


def test_who_polls_more_often_than_a_connection_may_send_is_told_to_wait_and_nobody_else_is(start: Start) -> None:
    server = start(presence__heartbeat_timeout=60, limits__rate=5, limits__burst=10)

    async def story() -> None:
        token = signed("user_1")
        request = f"POST {POLL} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\nContent-Length: 2\r\n\r\n{{}}"
        statuses = []
        async with RawClient.open(server) as raw:
            raw.send(request.encode() * 40)
            for _ in range(40):
                status, headers, _ = await raw.response()
                statuses.append(status)
                assert status == 200 or int(headers["retry-after"]) >= 1
        assert statuses[:10] == [200] * 10
        assert set(statuses[15:]) == {429}
        await Poller(server, "user_2").poll()
        assert server.http("GET", f"{BASE}/user_1", key=token)[0] == 200

    asyncio.run(story())


def test_after_the_worker_died_polls_go_on_with_everything_anew(start: Start) -> None:
    server = start(presence__heartbeat_timeout=60)
    server.expect("worker died")

    async def story() -> None:
        async with Clients(server) as clients:
            poller = Poller(server, "kol_1", "kol")
            host = await clients.online("kol_2", "kol", status="busy")
            await poller.poll(status="away")
            assert poller.believes == {"kol_1": "away", "kol_2": "busy"}
            os.kill(server.worker_pid, signal.SIGKILL)
            assert await host.ended() == 1006
            server.event("worker ready")
            assert (await poller.poll(status="away"))["full"] is True
            await poller.poll()
            assert poller.believes == {"kol_1": "away"}
            back = await clients.connect("user_1", cursor=poller.cursor)
            frame = await back.take("user_online_status")
            assert (frame["full"], frame["user_status"]) == (False, [])

    asyncio.run(story())


# Very many.


def test_long_lists_come_in_frames_of_five_hundred_and_changes_too(start: Start) -> None:
    """Those who are many are here by polls: pipelined, they cost no connection each."""
    server = start(presence__heartbeat_timeout=60, limits__rate=10_000, limits__burst=10_000)
    ids = [f"kol_{number}" for number in range(520)]

    async def all_poll(cursor: str, **asked: object) -> None:
        body = json.dumps({"cursor": cursor, "rooms": ["studio"], **asked})
        async with RawClient.open(server) as raw:
            for user_id in ids:
                head = f"POST {POLL} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {signed(user_id, 'kol')}\r\n"
                raw.send(f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode())
            for _ in ids:
                assert (await raw.response())[0] == 200

    def whole(frames: list[Frame], *, full: bool) -> str:
        """Two frames that tell of everybody once; the cursor of the last."""
        first, last = frames
        assert (first["full"], last["full"]) == (full, full)
        assert (first["more"], "more" in last) == (True, False)
        assert "cursor" not in first
        assert (len(first["user_status"]), len(last["user_status"])) == (500, 20)
        assert {entry["user_id"] for frame in frames for entry in frame["user_status"]} == set(ids)
        return str(last["cursor"])

    async def story() -> None:
        async with Clients(server) as clients:

            async def frames(count: int, public: str | None, scopes: list[tuple[dict[str, Any], str | None]]) -> Any:
                """What a newcomer is told who brings these cursors, or none."""
                client = await clients.connect(fresh("user"), cursor=public)
                await client.until(lambda: len(client.came("user_online_status")) >= count, "the public users")
                told = [client.came("user_online_status")[:count]]
                for scope, cursor in scopes:
                    before = len(client.came("user_online_status"))
                    await client.do("subscribe", **scope, cursor=cursor)
                    await client.beat()
                    told.append(client.came("user_online_status")[before : before + count])
                await client.close()
                return told

            scopes: list[dict[str, Any]] = [{"user_ids": ids}, {"rooms": ["studio"]}]
            poller = Poller(server, "user_1")
            await poller.poll(rooms=["studio"])
            assert poller.cursor is not None
            observer = await clients.connect("observer", public=False)
            await observer.do("subscribe", user_ids=ids[-1:])
            await all_poll(poller.cursor)
            await observer.sees(ids[-1], "online")  # what a flush had still to tell has been told
            told = await frames(2, None, [(scope, None) for scope in scopes])
            whole(told[0], full=True)
            assert [len(frame["user_status"]) for frame in told[2]] == [500, 21]  # the poller is in the room, too
            cursors = [told[0][-1]["cursor"], whole(told[1], full=True), told[2][-1]["cursor"]]
            answer = await poller.poll(rooms=["studio"])
            assert {entry["user_id"] for entry in answer["user_status"]} == {*ids}
            await all_poll(answer["cursor"], status="busy")
            await observer.sees(ids[-1], "busy")
            told = await frames(2, cursors[0], list(zip(scopes, cursors[1:], strict=True)))
            for each in told:
                whole(each, full=False)
                assert {entry["status"] for frame in each for entry in frame["user_status"]} == {"busy"}
            state = server.http("GET", f"{BASE}/rooms/studio")[1]
            assert (state["count"], len(state["user_status"])) == (521, 521)

    asyncio.run(story())
