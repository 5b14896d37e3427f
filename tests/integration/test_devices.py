"""Several devices of one user, and what one who looks on is told of them: what changed, once, and nothing else."""

import asyncio
import random
from collections.abc import Iterator

import pytest

from tests.conftest import Start
from tests.support.clients import Client, Clients, Codec
from tests.support.scene import Scene, fresh
from tests.support.server import Server, shared

ORDER = ["offline", "away", "online", "busy"]

both_codecs = pytest.mark.parametrize("codec", ["json", "msgpack"])


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    yield from shared({"presence.heartbeat_timeout": 60, "limits.rate": 10_000, "limits.burst": 10_000})


@pytest.mark.parametrize("seed", range(4))
def test_the_strongest_of_all_devices_shows_and_only_its_changes_are_told(server: Server, seed: int) -> None:
    """Devices come, go, break off, come back and say this and that, at random; after each step all is as it must be."""

    async def story() -> None:
        chance = random.Random(seed)
        async with Clients(server) as clients:
            scene = await Scene.begin(clients, online=False)
            user_id = scene.actor.user_id
            devices: dict[str, Client] = {}
            says: dict[str, str] = {}
            hidden = False
            shown = "offline"
            for _ in range(40):
                device = chance.choice(["phone", "tablet", "desk"])
                step = chance.choice(["online", "online", "away", "busy", "offline", "goodbye", "1000", "cut"])
                client = devices.get(device)
                if step in ("goodbye", "1000", "cut"):
                    if client is None:
                        continue
                    if step == "cut":
                        await client.cut()  # and is back before anybody could know
                        devices[device] = await clients.online(user_id, "kol", device=device, status=says[device])
                        hidden = False
                    else:
                        await (client.do("user_offline") if step == "goodbye" else client.close(1000))
                        del devices[device], says[device]
                        hidden = hidden and bool(devices)
                else:
                    if client is None:
                        devices[device] = await clients.online(user_id, "kol", device=device, status=step)
                        says[device] = "online"
                    else:
                        await client.do("status_change", status=step)
                    hidden = step == "offline"
                    if step != "offline":
                        says[device] = step
                merged = "offline" if hidden else max(says.values(), key=ORDER.index, default="offline")
                assert await scene.seen() == ([merged] if merged != shown else []), step
                shown = merged
            answer = server.http("GET", f"/api/online-status/{user_id}")[1]
            assert answer["status"] == shown

    asyncio.run(story())


@both_codecs
def test_a_change_that_is_heard_as_a_public_one_is_not_heard_again_as_a_watched_one(
    server: Server, codec: Codec
) -> None:
    async def story() -> None:
        async with Clients(server) as clients:
            host = await clients.online(fresh("kol"), "kol", public=False)
            user = await clients.online(fresh("user"), public=False)
            both = await clients.connect(fresh("watcher"), codec=codec)
            await both.do("subscribe", user_ids=[host.user_id, user.user_id])
            await both.sees(user.user_id, "online")
            before = len(both.came("user_online_status"))
            await host.do("status_change", status="busy")
            await both.sees(host.user_id, "busy")
            await user.do("status_change", status="busy")
            await both.sees(user.user_id, "busy")
            told = [entry for frame in both.came("user_online_status")[before:] for entry in frame["user_status"]]
            busy = [entry["user_id"] for entry in told if entry["status"] == "busy"]  # a flush was still to come before
            assert busy == [host.user_id, user.user_id]

    asyncio.run(story())


def test_who_brings_a_cursor_gets_one_frame_even_when_nothing_changed(start: Start) -> None:
    server = start(presence__heartbeat_timeout=60)  # where nobody else comes and goes

    async def story() -> None:
        codecs: list[Codec] = ["json", "msgpack"]
        async with Clients(server) as clients:
            for codec in codecs:
                first = await clients.connect(fresh("watcher"), codec=codec)
                again = await clients.connect(fresh("watcher"), codec=codec, cursor=first.view.cursor)
                frame = await again.take("user_online_status")
                assert (frame["full"], frame["user_status"], "more" in frame) == (False, [], False)
                assert frame["cursor"] == first.view.cursor
                await again.beat()
                assert len(again.came("user_online_status")) == 1

    asyncio.run(story())


def test_who_is_closed_for_going_on_over_the_rate_may_return_unseen(start: Start) -> None:
    server = start(presence__heartbeat_timeout=60, limits__rate=10, limits__burst=20)

    async def story() -> None:
        async with Clients(server) as clients:
            scene = await Scene.begin(clients)
            for _ in range(60):
                await scene.actor.send("heartbeat")
            assert await scene.actor.ended() == 4029
            await clients.online(scene.actor.user_id, "kol", public=False)
            await scene.nothing_was_seen()

    asyncio.run(story())


# Messages.


def test_messages_of_each_sender_arrive_in_his_order_at_every_device_of_the_receiver(server: Server) -> None:
    count = 40

    async def story() -> None:
        async with Clients(server) as clients:
            user_id = fresh("user")
            codecs: list[Codec] = ["json", "msgpack"]
            devices = [await clients.online(user_id, device=codec, codec=codec, public=False) for codec in codecs]
            senders = [await clients.online(fresh("sender"), codec=codec, public=False) for codec in codecs]

            async def talk(sender: Client) -> None:
                for number in range(count):
                    await sender.send("message", to_user_id=user_id, message=str(number), id=f"m{number}")
                for number in range(count):
                    assert (await sender.answer(f"m{number}"))["delivered"] == 2

            await asyncio.gather(*map(talk, senders))
            for device in devices:
                for _ in range(2 * count):
                    await device.take("message")
                for sender in senders:
                    said = [each for each in device.came("message") if each["from_user_id"] == sender.user_id]
                    assert [each["message"] for each in said] == [str(number) for number in range(count)]

    asyncio.run(story())


@both_codecs
def test_the_longest_message_is_8192_characters_of_any_kind_that_a_frame_can_hold(server: Server, codec: Codec) -> None:
    async def story() -> None:
        async with Clients(server) as clients:
            sender = await clients.online(fresh("sender"), codec=codec, public=False)
            receiver = await clients.online(fresh("user"), public=False)
            for text in ("x" * 8192, "\U0001f600" * 8192, "é", "\x00"):
                assert (await sender.do("message", to_user_id=receiver.user_id, message=text))["delivered"] == 1
                assert (await receiver.take("message"))["message"] == text
            for text in ("", "x" * 8193):
                await sender.refused("message", "bad_field", to_user_id=receiver.user_id, message=text)
            await receiver.beat()
            assert len(receiver.came("message")) == 4

    asyncio.run(story())
