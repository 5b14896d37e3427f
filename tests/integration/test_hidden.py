"""Appearing offline: to everybody else it is the same, byte by byte, as being gone, by every way one can look.

Two users do the same, one goes and one hides: what is told of the one must differ from what is told of the other in
names and numbers alone.
"""

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest

from tests.support.clients import Client, Clients, Codec, RawClient
from tests.support.scene import Scene, fresh
from tests.support.server import API_KEY, Server, shared
from tests.support.tokens import signed

BASE = "/api/online-status"


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    yield from shared({"presence.heartbeat_timeout": 60, "limits.rate": 10_000, "limits.burst": 10_000})


def same(data: bytes, *names: str) -> bytes:
    """What was said, without who it was, when, and how often anything happened before."""
    for name in names:
        data = data.replace(name.encode(), b"NAME")
    data = re.sub(rb"~(r|p\.|w)[0-9a-f]{16}~", rb"~\1SCOPE~", data)  # a cursor's
    return re.sub(rb"\d+", b"0", data)


class Eyes:
    """Everybody who might notice something of one user, by raw frames."""

    def __init__(self, server: Server, user_id: str, room: str, sockets: dict[str, RawClient]) -> None:
        self.server = server
        self.user_id, self.room = user_id, room
        self.sockets = sockets

    @classmethod
    @asynccontextmanager
    async def on(cls, server: Server, user_id: str, room: str) -> AsyncIterator["Eyes"]:
        async with AsyncExitStack() as stack:
            sockets = {}
            for kind in ("public", "watcher", "member"):
                raw = sockets[kind] = await stack.enter_async_context(RawClient.open(server))
                target = "/ws" if kind == "public" else "/ws?public=0"
                raw.send(RawClient.upgrade_request(signed(fresh("eye")), target))
                assert (await raw.response())[0] == 101
                await raw.frame()  # welcome
                if kind == "public":
                    await raw.frame()  # snapshot
                else:
                    asked = {"user_ids": [user_id]} if kind == "watcher" else {"rooms": [room]}
                    raw.send_frame(RawClient.TEXT, json.dumps({"type": "subscribe", **asked}).encode())
                    await raw.frame()  # its state; without an id there is no ack
            yield cls(server, user_id, room, sockets)

    async def next(self, kind: str) -> bytes:
        """The next frame that is about this user."""
        while True:
            _, payload = await self.sockets[kind].frame()
            if self.user_id.encode() in payload:
                return payload

    async def told(self) -> dict[str, bytes]:
        """What each of them is told next."""
        return {kind: same(await self.next(kind), self.user_id, self.room) for kind in self.sockets}

    async def told_nothing(self) -> None:
        """Not since the last look: what comes is the answer to a ping."""
        for kind, raw in self.sockets.items():
            raw.send_frame(RawClient.PING, b"now")
            while (frame := await raw.frame()) != (RawClient.PONG, b"now"):
                assert self.user_id.encode() not in frame[1], kind

    async def asked(self, friend: Client, cursor: str | None = None) -> dict[str, object]:
        """Every question there is, and its answer as it comes."""
        answers: dict[str, object] = {}
        token = signed(fresh("eye"))
        scope = {"user_ids": [self.user_id], "rooms": [self.room]}
        requests = {
            "entry": ("GET", f"{BASE}/{self.user_id}", None),
            "room": ("GET", f"{BASE}/rooms/{self.room}", None),
            "query": ("POST", f"{BASE}/query", {"user_ids": [self.user_id]}),
            "poll": ("POST", f"{BASE}/poll", {**scope, "cursor": cursor, "status": "offline"}),
        }
        for kind, (method, path, body) in requests.items():
            async with RawClient.open(self.server) as raw:
                data = b"" if body is None else json.dumps(body).encode()
                head = f"{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(data)}\r\n"
                key = API_KEY if kind == "room" else token
                raw.send(f"{head}Authorization: Bearer {key}\r\n\r\n".encode() + data)
                answers[kind] = await raw.response()
        answers["message"] = await friend.ask("message", to_user_id=self.user_id, message="m")
        call = {"to_user_id": self.user_id, "video": True, "audio": True}
        answers["call"] = await friend.ask("call", call_id=fresh("call"), **call)
        answers["question"] = await friend.ask("request_online_status", user_ids=[self.user_id])
        answers["server message"] = self.server.http(
            "POST", f"{BASE}/users/{self.user_id}/messages", {"message": "m", "from_user_id": "a"}
        )
        return answers


async def begin(clients: Clients, user_id: str, room: str) -> Client:
    client = await clients.online(user_id, "kol", device="phone", room_id=room, public=False)
    await client.take("user_online_status", room=room)
    return client


def test_one_who_hides_and_one_who_goes_are_told_of_in_the_same_bytes_by_every_way(server: Server) -> None:
    async def story() -> None:
        async with Clients(server) as clients:
            friend = await clients.online(fresh("user"), public=False)
            told, answers = [], []
            for how in ("goes", "hides"):
                user_id, room = fresh("kol"), fresh("room")
                keeper = await clients.online(fresh("user"), public=False, room_id=room)
                async with Eyes.on(server, user_id, room) as eyes:
                    client = await begin(clients, user_id, room)
                    await eyes.told()
                    if how == "goes":
                        await client.do("user_offline")
                    else:
                        await client.do("status_change", status="offline")
                    told.append(await eyes.told())
                    names = (user_id, room, keeper.user_id)
                    answers.append(
                        {key: same(repr(answer).encode(), *names) for key, answer in (await eyes.asked(friend)).items()}
                    )
            assert told[0] == told[1]
            assert set(told[0]) == {"public", "watcher", "member"}
            assert b'"left":true' in told[0]["member"]
            for key, answer in answers[0].items():
                assert answer == answers[1][key], key

    asyncio.run(story())


def test_whatever_one_who_hides_does_nobody_is_told_anything_and_his_entry_stands_still(server: Server) -> None:
    async def story() -> None:
        async with Clients(server) as clients:
            user_id, room, other_room = fresh("kol"), fresh("room"), fresh("room")
            friend = await clients.online(fresh("user"), public=False)
            await clients.online(fresh("user"), public=False, room_id=room)
            async with Eyes.on(server, user_id, room) as eyes:
                client = await begin(clients, user_id, room)
                await eyes.told()
                await client.do("status_change", status="offline")
                await eyes.told()
                entry = server.http("GET", f"{BASE}/{user_id}")[1]
                state = server.http("GET", f"{BASE}/rooms/{room}")[1]
                answer = server.http("POST", f"{BASE}/poll", {"user_ids": [user_id]}, key=signed("poller"))[1]

                async def unseen() -> None:
                    await eyes.told_nothing()
                    assert server.http("GET", f"{BASE}/{user_id}")[1] == entry
                    assert server.http("GET", f"{BASE}/rooms/{room}")[1] == state
                    assert server.http("GET", f"{BASE}/rooms/{other_room}")[1]["count"] == 0
                    body = {"user_ids": [user_id], "cursor": answer["cursor"]}
                    since = server.http("POST", f"{BASE}/poll", body, key=signed("poller"))[1]
                    assert (since["full"], since["user_status"]) == (False, [])
                    assert since["cursor"] == answer["cursor"]  # not even the count of all changes has moved
                    await friend.refused("message", "user_offline", to_user_id=user_id, message="m")

                await client.beat()
                await client.ping()
                await client.do("status_change", status="offline")
                await client.do("user_online")
                await unseen()
                await client.do("message", to_user_id=friend.user_id, message="boo")
                assert (await friend.take("message"))["from_user_id"] == user_id
                await client.do("subscribe", rooms=[other_room], user_ids=[friend.user_id])
                await client.do("unsubscribe", rooms=[room])
                await client.do("subscribe", rooms=[room])
                await unseen()
                tablet = await clients.online(user_id, "kol", device="tablet", room_id=room, public=False)
                await tablet.do("user_offline")
                assert server.http("POST", f"{BASE}/poll", {"device": "tv"}, key=signed(user_id, "kol"))[0] == 200
                await client.cut()
                client = await clients.online(user_id, "kol", device="phone", room_id=room, public=False)
                await unseen()
                # Seconds pass, and he was last seen when he hid.
                while time.time() < entry["last_seen"] + 2:
                    await client.beat()
                    await asyncio.sleep(0.1)
                await unseen()
                # He is kicked out, and nobody who thought him gone hears that he went.
                server.http("DELETE", f"{BASE}/users/{user_id}/sessions")
                assert await client.ended() == 4010
                await unseen()
                # When he is back, he is back; and his rev goes on.
                await begin(clients, user_id, room)
                told = await eyes.told()
                assert b'"status":"online"' in told["public"]
                assert server.http("GET", f"{BASE}/{user_id}")[1]["rev"] > entry["rev"]

    asyncio.run(story())


def test_one_who_was_hidden_from_the_start_is_as_unknown_as_nobody(server: Server) -> None:
    async def story() -> None:
        async with Clients(server) as clients:
            friend = await clients.online(fresh("user"), public=False)
            answers = []
            for hides in (False, True):
                user_id, room = fresh("kol"), fresh("room")
                keeper = await clients.online(fresh("user"), public=False, room_id=room)
                async with Eyes.on(server, user_id, room) as eyes:
                    if hides:
                        await clients.online(user_id, "kol", status="offline", room_id=room, public=False)
                    await eyes.told_nothing()
                    names = (user_id, room, keeper.user_id)
                    answers.append(
                        {key: same(repr(answer).encode(), *names) for key, answer in (await eyes.asked(friend)).items()}
                    )
            for key, answer in answers[0].items():
                assert answer == answers[1][key], key

    asyncio.run(story())


@pytest.mark.parametrize("codec", ["json", "msgpack"])
def test_he_himself_sees_and_is_served_as_ever_and_any_device_shows_him_again(server: Server, codec: Codec) -> None:
    async def story() -> None:
        async with Clients(server) as clients:
            scene = await Scene.begin(clients, codec)
            user_id = scene.actor.user_id
            tablet = await clients.online(user_id, "kol", device="tablet", codec=codec)
            host = await clients.online(fresh("kol"), "kol", public=False)
            await scene.actor.do("status_change", status="offline")
            assert await scene.seen() == ["offline"]
            await host.do("status_change", status="busy")
            await tablet.sees(host.user_id, "busy")
            await tablet.sees(user_id, "offline")  # he is told of himself what others are
            await scene.actor.do("user_online", status="offline")
            await tablet.do("user_online")  # says nothing of a status
            await scene.nothing_was_seen()
            await tablet.do("user_online", status="away")
            assert await scene.seen() == ["online"]

    asyncio.run(story())
