"""The protocol's table of client frames, row by row: what each does, what comes back, and what others see of it."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest

from tests.support.clients import Client, Clients, Codec
from tests.support.scene import Scene, fresh
from tests.support.server import Server, shared

both_codecs = pytest.mark.parametrize("codec", ["json", "msgpack"])


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    yield from shared({"presence.heartbeat_timeout": 60})


async def somebody(scene: Scene) -> Client:
    """Another user; whoever was it before has gone, and with him his calls."""
    for client in scene.clients.all:
        if client.user_id.startswith("somebody") and client.code is None:
            await client.do("user_offline")
    return await scene.clients.online(fresh("somebody"), public=False)


async def rung(scene: Scene) -> dict[str, Any]:
    """A call that rings at the actor."""
    caller = await somebody(scene)
    call = {"call_id": fresh("call"), "to_user_id": scene.actor.user_id, "video": True, "audio": True}
    await caller.do("call", **call)
    return {"call_id": call["call_id"]}


async def to_ring(scene: Scene) -> dict[str, Any]:
    """A call that the actor may make."""
    callee = await somebody(scene)
    return {"call_id": fresh("call"), "to_user_id": callee.user_id, "video": True, "audio": False}


async def ringing(scene: Scene) -> dict[str, Any]:
    """A call that the actor made."""
    call = await to_ring(scene)
    await scene.actor.send("call", **call)
    await scene.clients.all[-1].take("call", call_id=call["call_id"])
    return {"call_id": call["call_id"]}


Fields = dict[str, Any]


def always(fields: Callable[[Scene], Fields]) -> Callable[[Scene], Awaitable[Fields]]:
    """What needs no preparation."""

    async def prepare(scene: Scene) -> Fields:
        return fields(scene)

    return prepare


async def to_signal(scene: Scene) -> Fields:
    return {**await rung(scene), "data": "candidate"}


#: Every request of somebody who is online, how it is prepared, and the type of its answer.
REQUESTS: dict[str, tuple[Callable[[Scene], Awaitable[Fields]], str]] = {
    "user_online": (always(lambda scene: {"device": "phone", "attempt": 2}), "ack"),
    "heartbeat": (always(lambda scene: {"timestamp": 1_640_995_200}), "heartbeat_ack"),
    "status_change": (always(lambda scene: {"status": "busy"}), "ack"),
    "request_online_status": (always(lambda scene: {"user_ids": [scene.actor.user_id]}), "user_online_status"),
    "subscribe": (always(lambda scene: {"user_ids": ["nobody"], "rooms": [fresh("room")]}), "ack"),
    "unsubscribe": (always(lambda scene: {"user_ids": ["nobody"], "rooms": ["nowhere"]}), "ack"),
    "message": (always(lambda scene: {"to_user_id": scene.actor.user_id, "message": "m"}), "ack"),
    "call": (to_ring, "ack"),
    "call_accept": (rung, "ack"),
    "call_reject": (rung, "ack"),
    "call_cancel": (ringing, "ack"),
    "call_end": (rung, "ack"),
    "call_signal": (to_signal, "ack"),
    "token_refresh": (always(lambda scene: {"token": scene.clients.server.token(scene.actor.user_id, "kol")}), "ack"),
    "user_offline": (always(lambda scene: {}), "ack"),
}
IDS = [0, -5, 2**53, "", "é" * 64]


@both_codecs
@pytest.mark.parametrize("kind", REQUESTS)
def test_every_request_gets_exactly_one_answer_which_carries_its_id(server: Server, codec: Codec, kind: str) -> None:
    prepare, answer_kind = REQUESTS[kind]

    async def story() -> None:
        async with Clients(server) as clients:
            scene = await Scene.begin(clients, codec)
            actor = scene.actor
            for request_id in IDS if kind != "user_offline" else IDS[:1]:
                names = {"user_id": actor.user_id, "user_type": "kol", "an unknown field": {"is": ["ignored"]}}
                answer = await actor.ask(kind, **{**names, **await prepare(scene), "id": request_id})
                assert answer["type"] == answer_kind
            if kind != "user_offline":
                await actor.beat()  # what there was of second answers would have come before this one's
            # `Clients` fails the test for a second answer.

    asyncio.run(story())


@both_codecs
@pytest.mark.parametrize("kind", [kind for kind, (_, answer) in REQUESTS.items() if answer == "ack"])
def test_a_request_without_an_id_is_carried_out_without_an_ack(server: Server, codec: Codec, kind: str) -> None:
    async def story() -> None:
        async with Clients(server) as clients:
            scene = await Scene.begin(clients, codec)
            fields = await REQUESTS[kind][0](scene)
            before = len(scene.actor.came("ack"))
            await scene.actor.send(kind, **fields)
            if kind == "user_offline":
                assert await scene.actor.ended() == 1000
            else:
                await scene.actor.beat()
            assert len(scene.actor.came("ack")) == before
            assert not scene.actor.came("error")
            expected = {"status_change": ["busy"], "call_accept": ["busy"], "user_offline": ["offline"]}
            assert await scene.seen() == expected.get(kind, [])

    asyncio.run(story())


def test_welcome_says_who_one_is_how_to_beat_and_when_the_token_ends(server: Server) -> None:
    async def story() -> None:
        async with Clients(server) as clients:
            before = int(time.time())
            client = await clients.connect(fresh("user"), token=None)
            welcome = client.came("welcome")[0]
            assert set(welcome) == {
                "type", "session_id", "user_id", "user_type", "heartbeat_interval", "heartbeat_timeout",
                "expires_at", "epoch", "timestamp",
            }  # fmt: skip
            assert (welcome["heartbeat_interval"], welcome["heartbeat_timeout"]) == (1, 60)
            assert isinstance(welcome["heartbeat_interval"], int)
            assert before <= welcome["timestamp"] <= int(time.time())
            assert 3595 <= welcome["expires_at"] - before <= 3605
            other = await clients.connect(fresh("user"))
            again = other.came("welcome")[0]
            assert again["epoch"] == welcome["epoch"]
            assert again["session_id"] != welcome["session_id"]

    asyncio.run(story())


def test_a_heartbeat_moves_neither_rev_nor_last_seen_and_is_seen_by_nobody(server: Server) -> None:
    async def story() -> None:
        async with Clients(server) as clients:
            scene = await Scene.begin(clients)
            before = int(time.time())
            ack = await scene.actor.ask("heartbeat", timestamp=5)
            assert before <= ack["timestamp"] <= int(time.time())  # the server's clock, not the client's
            await scene.nothing_was_seen()

    asyncio.run(story())


# Sessions of one user.


def test_a_new_session_of_the_same_device_supersedes_the_old_one_whatever_that_says_afterwards(server: Server) -> None:
    async def story() -> None:
        async with Clients(server) as clients:
            scene = await Scene.begin(clients)
            old = scene.actor
            await old.do("user_online", device="phone", status="busy")
            assert await scene.seen() == ["busy"]
            new = await clients.online(old.user_id, "kol", device="phone", status="away", public=False)
            assert await scene.seen() == ["away"]
            assert server.event("reconnect", user_id=old.user_id)
            await old.beat()
            await old.refused("status_change", "not_online", status="busy")
            sent = await new.do("message", to_user_id=old.user_id, message="to all of my sessions")
            assert sent["delivered"] == 1
            await old.do("user_offline")
            assert await old.ended() == 1000
            await scene.nothing_was_seen()
            await new.do("status_change", status="online")
            assert await scene.seen() == ["online"]
            await new.do("user_offline")
            assert await scene.seen() == ["offline"]

    asyncio.run(story())


def test_a_session_without_a_device_takes_over_a_detached_one_without_a_device_and_no_other(server: Server) -> None:
    async def story() -> None:
        async with Clients(server) as clients:
            scene = await Scene.begin(clients)
            user_id = scene.actor.user_id
            phone = await clients.online(user_id, "kol", device="phone", status="busy", public=False)
            assert await scene.seen() == ["busy"]
            second = await clients.online(user_id, "kol", public=False)  # takes over neither of the attached ones
            await scene.nothing_was_seen()
            assert (await phone.do("message", to_user_id=user_id, message="m"))["delivered"] == 3
            await phone.cut()
            await second.cut()
            third = await clients.online(user_id, "kol", public=False)  # takes over `second`: the phone is still busy
            await scene.nothing_was_seen()
            assert (await third.do("message", to_user_id=user_id, message="m"))["delivered"] == 2
            back = await clients.online(user_id, "kol", device="phone", status="online", public=False)
            assert await scene.seen() == ["online"]
            await back.do("user_offline")
            await third.do("user_offline")
            await scene.nothing_was_seen()
            await scene.actor.do("user_offline")
            assert await scene.seen() == ["offline"]

    asyncio.run(story())


def test_a_user_shows_the_strongest_status_of_his_sessions(server: Server) -> None:
    async def story() -> None:
        async with Clients(server) as clients:
            scene = await Scene.begin(clients)
            user_id = scene.actor.user_id
            tablet = await clients.online(user_id, "kol", device="tablet", status="away", public=False)
            laptop = await clients.online(user_id, "kol", device="laptop", status="busy", public=False)
            assert await scene.seen() == ["busy"]
            await scene.actor.do("status_change", status="away")
            assert await scene.seen() == []
            await laptop.do("user_offline")
            assert await scene.seen() == ["away"]
            await tablet.do("status_change", status="online")
            assert await scene.seen() == ["online"]
            await tablet.close(1000)
            assert await scene.seen() == ["away"]
            await scene.actor.close(1000)
            assert await scene.seen() == ["offline"]

    asyncio.run(story())


def test_a_second_user_online_only_updates(server: Server) -> None:
    async def story() -> None:
        async with Clients(server) as clients:
            scene = await Scene.begin(clients)
            await scene.actor.do("user_online", status="busy")
            assert await scene.seen() == ["busy"]
            await scene.actor.do("user_online")  # nothing is said, nothing changes
            await scene.nothing_was_seen()
            assert (await scene.actor.do("message", to_user_id=scene.actor.user_id, message="m"))["delivered"] == 1
            await scene.actor.do("user_offline")
            assert await scene.seen() == ["offline"]
            server.event("user offline", user_id=scene.actor.user_id)
            assert len(server.logged("user online", user_id=scene.actor.user_id)) == 1

    asyncio.run(story())


# Appearing offline.


def test_offline_as_a_status_hides_the_user_on_all_devices_until_any_of_them_sets_another(server: Server) -> None:
    async def story() -> None:
        async with Clients(server) as clients:
            scene = await Scene.begin(clients)
            user_id = scene.actor.user_id
            tablet = await clients.online(user_id, "kol", device="tablet", public=False)
            friend = await clients.online(fresh("user"), public=False)
            await scene.actor.do("status_change", status="offline")
            assert await scene.seen() == ["offline"]
            hidden = scene.witness.view.known[user_id]
            assert hidden["online"] is False
            await tablet.beat()
            await friend.refused("message", "user_offline", to_user_id=user_id, message="are you there?")
            asked = await friend.ask("request_online_status", user_ids=[user_id])
            assert asked["user_status"] == [hidden]  # last_seen stands still, too
            assert not scene.actor.came("message")
            # It is the user who is hidden: a device of his that comes later does not show him.
            later = await clients.online(user_id, "kol", device="later", public=False)
            await scene.nothing_was_seen()
            # He himself is not cut off.
            assert (await scene.actor.do("message", to_user_id=friend.user_id, message="I see you"))["delivered"] == 1
            await tablet.do("status_change", status="away")
            assert await scene.seen() == ["online"]  # the strongest of away, online and online
            assert (await friend.do("message", to_user_id=user_id, message="there you are"))["delivered"] == 3
            await later.do("user_offline")
            await scene.nothing_was_seen()

    asyncio.run(story())


def test_who_comes_online_as_offline_is_seen_by_nobody_until_he_shows_himself(server: Server) -> None:
    async def story() -> None:
        async with Clients(server) as clients:
            scene = await Scene.begin(clients, online=False)
            await scene.actor.do("user_online", status="offline")
            await scene.nothing_was_seen()
            newcomer = await clients.connect(fresh("user"))
            assert newcomer.view.status(scene.actor.user_id) is None
            await scene.actor.do("user_online", status="away")
            assert await scene.seen() == ["away"]
            await newcomer.sees(scene.actor.user_id, "away")
            await scene.actor.do("user_online", status="offline")
            assert await scene.seen() == ["offline"]
            await scene.actor.do("user_offline")
            await scene.nothing_was_seen()

    asyncio.run(story())


# Messages.


@both_codecs
def test_a_message_reaches_every_session_of_its_receiver_and_nobody_else(server: Server, codec: Codec) -> None:
    async def story() -> None:
        async with Clients(server) as clients:
            sender = await clients.online(fresh("user"), codec=codec)
            receiver = fresh("kol")
            sessions = [
                await clients.online(receiver, "kol", device=device, codec=each)
                for device, each in (("phone", "json"), ("tablet", "msgpack"), ("laptop", codec))
            ]
            same_user_observing = await clients.connect(receiver, "kol")
            other = await clients.online(fresh("user"))
            text = "你好, can we talk? \U0001f600\x00\n" * 300
            before = int(time.time())
            ack = await sender.do("message", to_user_id=receiver, message=text, timestamp=1)
            assert ack["delivered"] == 3
            for session in sessions:
                message = await session.take("message")
                stamp = message.pop("timestamp")
                assert before <= stamp <= int(time.time())
                assert message == {
                    "type": "message", "from_user_id": sender.user_id, "to_user_id": receiver, "message": text,
                }  # fmt: skip
            await sessions[0].cut()
            assert (await sender.do("message", to_user_id=receiver, message="again"))["delivered"] == 2
            for client in (same_user_observing, other, sender):
                await client.beat()
                assert not client.came("message")

    asyncio.run(story())


def test_a_message_that_reaches_nobody_says_why(server: Server) -> None:
    async def story() -> None:
        async with Clients(server) as clients:
            sender = await clients.online(fresh("user"))
            await sender.refused("message", "user_offline", to_user_id="nobody", message="m")
            observer = await clients.connect(fresh("user"))
            await sender.refused("message", "user_offline", to_user_id=observer.user_id, message="m")
            detached = await clients.online(fresh("user"))
            await detached.cut()
            asked = await sender.ask("request_online_status", user_ids=[detached.user_id])
            assert asked["user_status"][0]["online"] is True
            await sender.refused("message", "unavailable", to_user_id=detached.user_id, message="m")
            gone = await clients.online(fresh("user"))
            await gone.do("user_offline")
            await sender.refused("message", "user_offline", to_user_id=gone.user_id, message="m")

    asyncio.run(story())


def test_messages_of_one_sender_arrive_in_order(server: Server) -> None:
    async def story() -> None:
        async with Clients(server) as clients:
            sender, receiver = await clients.online(fresh("user")), await clients.online(fresh("user"))
            for number in range(50):
                await sender.send("message", to_user_id=receiver.user_id, message=str(number))
            await receiver.until(lambda: len(receiver.came("message")) == 50, "fifty messages")
            assert [message["message"] for message in receiver.came("message")] == [str(n) for n in range(50)]

    asyncio.run(story())


# Asking once.


@both_codecs
def test_a_question_is_answered_with_one_entry_for_each_id_asked_unknown_ones_offline(
    server: Server, codec: Codec
) -> None:
    async def story() -> None:
        async with Clients(server) as clients:
            scene = await Scene.begin(clients, codec)
            await scene.actor.do("user_online", status="busy")
            asked = [scene.actor.user_id, "nobody", scene.actor.user_id]
            answer = await scene.actor.ask("request_online_status", user_ids=asked)
            assert "cursor" not in answer
            assert "room" not in answer
            assert [entry["user_id"] for entry in answer["user_status"]] == asked
            known, unknown, _ = answer["user_status"]
            assert set(known) == {"user_id", "user_type", "status", "online", "last_seen", "rev"}
            assert (known["status"], known["online"], known["user_type"]) == ("busy", True, "kol")
            assert (unknown["status"], unknown["online"], unknown["last_seen"], unknown["rev"]) == (
                "offline", False, None, 0,
            )  # fmt: skip
            full = [f"u{number}" for number in range(1000)]
            answer = await scene.actor.ask("request_online_status", user_ids=full)
            assert len(answer["user_status"]) == 1000

    asyncio.run(story())


def test_rev_of_a_user_grows_with_every_change_and_is_told_alike_to_everybody(server: Server) -> None:
    async def story() -> None:
        async with Clients(server) as clients:
            scene = await Scene.begin(clients)
            user_id = scene.actor.user_id
            public = await clients.connect(fresh("user"))
            for status in ("busy", "away", "offline", "online", "busy"):
                await scene.actor.do("status_change", status=status)
                await scene.settle()
                await public.sees(user_id, status)
                asked = (await public.ask("request_online_status", user_ids=[user_id]))["user_status"]
                fetched = server.http("GET", f"/api/online-status/{user_id}")[1]
                told = [public.view.known[user_id], scene.witness.view.known[user_id], *asked, fetched]
                assert all(entry == told[0] for entry in told)
            revs = [sight.rev for sight in scene.witness.view.seen[user_id]]
            assert revs == sorted(set(revs))
            assert 0 < revs[0] < revs[-1] < 2**53
            # Microseconds of wall time.
            assert abs(revs[-1] / 1e6 - time.time()) < 60

    asyncio.run(story())


# The token of a living connection.


@both_codecs
def test_token_refresh_takes_a_token_of_the_same_user_and_no_other(server: Server, codec: Codec) -> None:
    async def story() -> None:
        async with Clients(server) as clients:
            scene = await Scene.begin(clients, codec)
            user_id = scene.actor.user_id
            before = int(time.time())
            token = server.token(user_id, "kol", expire_time=7200)
            ack = await scene.actor.do("token_refresh", token=token)
            assert 7195 <= ack["expires_at"] - before <= 7205
            await scene.actor.refused("token_refresh", "forbidden", token=server.token(fresh("kol"), "kol"))
            await scene.actor.refused("token_refresh", "forbidden", token=server.token(user_id, "user"))
            changed = token[:-6] + ("AAAAAA" if token[-6:] != "AAAAAA" else "BBBBBB")
            await scene.actor.refused("token_refresh", "unauthorized", token=changed)
            await scene.actor.beat()
            await scene.nothing_was_seen()

    asyncio.run(story())
