"""Rooms: coming and going at any time, a crowd that is told as a number and back, and who is in them for others."""

import asyncio
import time
from collections.abc import Iterator

import pytest

from tests.conftest import Start
from tests.support.clients import Client, Clients, Codec, Frame
from tests.support.scene import fresh
from tests.support.server import Server, shared
from tests.support.tokens import signed

LIMIT = 3  #: members of a room that are told by name; a crowded one has a roster again with 2
ROSTER_AGAIN = 2

both_codecs = pytest.mark.parametrize("codec", ["json", "msgpack"])


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    yield from shared(
        {
            "presence.heartbeat_timeout": 60,
            "presence.room_roster_limit": LIMIT,
            "limits.rate": 10_000,
            "limits.burst": 10_000,
        }
    )


def about(client: Client, room: str) -> list[Frame]:
    """Everything that the client was told of this room, in order."""
    return [frame for _, frame in client.frames if frame.get("room") == room]


async def observe(clients: Clients, room: str, codec: Codec = "json") -> Client:
    observer = await clients.connect(fresh("observer"), codec=codec, public=False)
    await observer.do("subscribe", rooms=[room])
    return observer


async def enter(clients: Clients, room: str, count: int = 1) -> list[Client]:
    return [await clients.online(fresh("user"), public=False, room_id=room) for _ in range(count)]


async def told_count(client: Client, room: str, count: int) -> None:
    """Wait until the latest that the client was told of the room is this number."""
    await client.until(
        lambda: about(client, room)[-1:] == [{"type": "room_occupancy", "room": room, "count": count}],
        f"{count} in {room}",
    )


async def told_roster(client: Client, room: str, members: list[Client]) -> None:
    wanted = {member.user_id for member in members}
    await client.until(lambda: client.view.rooms.get(room) == wanted, f"the roster of {room}")


def test_one_who_heard_another_count_than_the_others_hears_the_next(server: Server) -> None:
    """The others were told 5 and are right again without a word; he was told 4."""

    async def story() -> None:
        async with Clients(server) as clients:
            room = fresh("room")
            observer = await observe(clients, room)
            members = await enter(clients, room, 5)
            await told_count(observer, room, 5)
            await members.pop().do("user_offline")
            late = await observe(clients, room)
            await told_count(late, room, 4)
            await enter(clients, room)
            await told_count(late, room, 5)
            await told_count(observer, room, 5)

    asyncio.run(story())


# Coming and going.


@both_codecs
def test_rooms_can_be_joined_and_left_at_any_time_before_user_online_and_after(server: Server, codec: Codec) -> None:
    async def story() -> None:
        async with Clients(server) as clients:
            room = fresh("room")
            observer = await observe(clients, room, codec)
            early = await clients.connect(fresh("user"), codec=codec, public=False)
            await early.do("subscribe", rooms=[room])  # still an observer
            await told_roster(observer, room, [])
            await early.do("user_online", status="away")  # and now he is in it
            await told_roster(observer, room, [early])
            assert observer.view.status(early.user_id) == "away"
            late = await clients.online(fresh("user"), codec=codec, public=False)
            await late.do("subscribe", rooms=[room])
            snapshot = await late.take("user_online_status", room=room)
            assert {entry["user_id"] for entry in snapshot["user_status"]} == {early.user_id, late.user_id}
            await told_roster(observer, room, [early, late])
            for client in (early, late):
                await client.do("unsubscribe", rooms=[room])
            await told_roster(observer, room, [])
            heard = len(about(early, room))
            await early.do("subscribe", rooms=[room])
            await told_roster(observer, room, [early])
            assert about(early, room)[heard]["full"] is True
            # Who left before is told nothing more: the last he heard is of the other one's leaving or his own coming.
            heard = len(about(late, room))
            await early.do("status_change", status="busy")
            await observer.sees(early.user_id, "busy")
            await late.beat()
            assert len(about(late, room)) == heard

    asyncio.run(story())


def test_one_who_goes_offline_and_returns_on_the_same_connection_is_in_his_rooms_again(server: Server) -> None:
    async def story() -> None:
        async with Clients(server) as clients:
            room = fresh("room")
            observer = await observe(clients, room)
            first = await clients.online(fresh("user"), public=False, device="phone", room_id=room)
            await told_roster(observer, room, [first])
            # Another connection takes over, says goodbye, and the first one comes back.
            second = await clients.online(first.user_id, public=False, device="phone")
            await second.do("user_offline")
            await told_roster(observer, room, [])
            await first.refused("status_change", "not_online", status="busy")
            await first.do("user_online", status="busy")
            await told_roster(observer, room, [first])
            assert observer.view.status(first.user_id) == "busy"

    asyncio.run(story())


def test_a_user_is_in_a_room_while_any_of_his_devices_is(server: Server) -> None:
    async def story() -> None:
        async with Clients(server) as clients:
            room = fresh("room")
            observer = await observe(clients, room)
            user_id = fresh("user")
            phone = await clients.online(user_id, public=False, device="phone", room_id=room)
            tablet = await clients.online(user_id, public=False, device="tablet", room_id=room)
            laptop = await clients.online(user_id, public=False, device="laptop")
            await told_roster(observer, room, [phone])
            await phone.do("unsubscribe", rooms=[room])
            await tablet.do("status_change", status="busy")
            await observer.sees(user_id, "busy")
            assert observer.view.rooms[room] == {user_id}
            await tablet.do("user_offline")
            await told_roster(observer, room, [])
            entry = about(observer, room)[-1]["user_status"][0]
            assert (entry["left"], entry["status"]) == (True, "online")  # out of the room, not offline
            await laptop.do("user_offline")
            await observer.beat()
            assert about(observer, room)[-1]["user_status"][0] == entry

    asyncio.run(story())


@pytest.mark.parametrize("asks_again", [False, True])
def test_a_session_that_supersedes_is_in_the_rooms_of_the_older_one_until_the_timeout_unless_it_asks_for_them(
    start: Start, asks_again: bool
) -> None:
    server = start(presence__heartbeat_interval=0.3, presence__heartbeat_timeout=1)

    async def story() -> None:
        async with Clients(server) as clients:
            room, other_room = fresh("room"), fresh("room")
            observer = await observe(clients, room)
            await observer.do("subscribe", rooms=[other_room])
            observer.keep_beating(0.2)
            old = await clients.online(fresh("user"), public=False, device="phone", room_id=room)
            await old.do("subscribe", rooms=[other_room])
            await told_roster(observer, room, [old])
            await told_roster(observer, other_room, [old])
            before = len(about(observer, room))
            begun_s = time.monotonic()
            new = await clients.online(old.user_id, public=False, device="phone")
            new.keep_beating(0.2)
            if asks_again:
                await new.do("subscribe", rooms=[room])
            await told_roster(observer, other_room, [])
            assert 0.99 <= time.monotonic() - begun_s < 1 + 0.25 + 1
            assert observer.view.status(old.user_id) == "online"
            if asks_again:
                await new.do("status_change", status="busy")
                await observer.sees(old.user_id, "busy")
                assert observer.view.rooms[room] == {old.user_id}
            else:
                await told_roster(observer, room, [])
                # One frame: that he left. Nobody saw him go and come when the sessions changed.
                assert [len(frame["user_status"]) for frame in about(observer, room)[before:]] == [1]

    asyncio.run(story())


# Crowds.


@both_codecs
def test_a_crowded_room_is_told_as_a_number_and_with_a_tenth_less_by_its_whole_roster_again(
    server: Server, codec: Codec
) -> None:
    async def story() -> None:
        async with Clients(server) as clients:
            room = fresh("room")
            observer = await observe(clients, room, codec)
            members = await enter(clients, room, LIMIT)
            await told_roster(observer, room, members)
            members += await enter(clients, room)
            await told_count(observer, room, LIMIT + 1)
            # Its members are told the same, and a change of one of them is told to nobody.
            await told_count(members[0], room, LIMIT + 1)
            before = len(about(observer, room))
            await members[1].do("status_change", status="busy")
            # One less is not enough, or whoever comes and goes would flip it.
            await members.pop().do("user_offline")
            await told_count(observer, room, LIMIT)
            assert len(about(observer, room)) == before + 1
            await members.pop(0).do("unsubscribe", rooms=[room])
            await told_roster(observer, room, members)
            whole = about(observer, room)[-1]
            assert (whole["full"], len(whole["user_status"])) == (True, ROSTER_AGAIN)
            assert observer.view.status(members[0].user_id) == "busy"
            # And its changes, with cursors.
            await members[1].do("status_change", status="away")
            await observer.sees(members[1].user_id, "away")
            delta = about(observer, room)[-1]
            assert (delta["full"], len(delta["user_status"])) == (False, 1)
            again = await clients.connect(fresh("observer"), codec=codec, public=False)
            await again.do("subscribe", rooms=[room], cursor=delta["cursor"])
            answer = await again.take("user_online_status", room=room)
            assert (answer["full"], answer["user_status"]) == (False, [])

    asyncio.run(story())


def test_the_number_is_told_once_a_second_at_most_and_the_last_one_is_the_right_one(server: Server) -> None:
    async def story() -> None:
        async with Clients(server) as clients:
            room = fresh("room")
            observer = await observe(clients, room)
            begun_s = time.monotonic()
            await enter(clients, room, LIMIT + 1)
            (guest,) = await enter(clients, room)
            changes = 0
            while time.monotonic() - begun_s < 2.2:
                await guest.do("unsubscribe", rooms=[room])
                await guest.do("subscribe", rooms=[room])
                changes += 2
            await guest.do("unsubscribe", rooms=[room])
            await guest.do("subscribe", user_ids=["nobody"])
            await told_count(observer, room, LIMIT + 1)
            counts = [frame for frame in about(observer, room) if frame["type"] == "room_occupancy"]
            assert changes > 20
            assert 2 <= len(counts) <= 1 + time.monotonic() - begun_s

    asyncio.run(story())


@both_codecs
def test_who_subscribes_to_a_crowded_room_gets_its_number_without_a_cursor(server: Server, codec: Codec) -> None:
    async def story() -> None:
        async with Clients(server) as clients:
            room = fresh("room")
            first = await observe(clients, room)
            members = await enter(clients, room, LIMIT)
            await told_roster(first, room, members)
            cursor = first.view.room_cursors[room]
            members += await enter(clients, room, 2)
            await told_count(first, room, LIMIT + 2)
            for brought in (None, cursor):
                late = await clients.connect(fresh("observer"), codec=codec, public=False)
                await late.do("subscribe", rooms=[room], cursor=brought)
                await late.beat()
                assert about(late, room) == [{"type": "room_occupancy", "room": room, "count": LIMIT + 2}]
            state = server.http("GET", f"/api/online-status/rooms/{room}")
            assert state[:2] == (200, {"room": room, "count": LIMIT + 2})
            # A cursor from before the crowd has missed too much.
            for member in members[ROSTER_AGAIN:]:
                await member.do("user_offline")
            await told_roster(first, room, members[:ROSTER_AGAIN])
            for brought, full in ((cursor, True), (first.view.room_cursors[room], False)):
                back = await clients.connect(fresh("observer"), codec=codec, public=False)
                await back.do("subscribe", rooms=[room], cursor=brought)
                answer = await back.take("user_online_status", room=room)
                assert answer["full"] is full
                assert len(answer["user_status"]) == (ROSTER_AGAIN if full else 0)
            _, state, _ = server.http("GET", f"/api/online-status/rooms/{room}")
            assert (state["count"], len(state["user_status"])) == (ROSTER_AGAIN, ROSTER_AGAIN)

    asyncio.run(story())


def test_one_who_appears_offline_is_not_counted(server: Server) -> None:
    async def story() -> None:
        async with Clients(server) as clients:
            room = fresh("room")
            observer = await observe(clients, room)
            members = await enter(clients, room, LIMIT + 2)
            await told_count(observer, room, LIMIT + 2)
            await members[0].do("status_change", status="offline")
            await told_count(observer, room, LIMIT + 1)
            await members[0].do("status_change", status="online")
            await told_count(observer, room, LIMIT + 2)

    asyncio.run(story())


def test_a_subscriber_who_did_not_read_is_told_the_number_or_the_whole_roster_when_he_does(start: Start) -> None:
    server = start(
        presence__heartbeat_timeout=60,
        presence__room_roster_limit=LIMIT,
        presence__flush_window_ms=1,
        limits__send_buffer=8192,
        limits__lag_time=60,
        limits__rate=10_000,
        limits__burst=10_000,
    )

    async def story() -> None:
        async with Clients(server) as clients:
            room, noisy = fresh("room"), fresh("room")
            slow = await clients.connect(fresh("slow"), public=False, receive_buffer=4096, deflate=False)
            await slow.do("subscribe", rooms=[room, noisy])
            observer = await observe(clients, room)
            (noise,) = await enter(clients, noisy)
            members = await enter(clients, room, LIMIT)
            await told_roster(slow, room, members)

            async def stall() -> None:
                """Its socket is full afterwards."""
                slow.pause()
                for number in range(300):
                    await noise.do("status_change", status="busy" if number % 2 else "away")

            await stall()
            members += await enter(clients, room, 2)
            await told_count(observer, room, LIMIT + 2)
            await members[0].do("status_change", status="busy")
            slow.resume()
            await told_count(slow, room, LIMIT + 2)
            await stall()
            for member in members[ROSTER_AGAIN:]:
                await member.do("user_offline")
            await told_roster(observer, room, members[:ROSTER_AGAIN])
            await members[1].do("status_change", status="away")
            slow.resume()
            await told_roster(slow, room, members[:ROSTER_AGAIN])
            for member, status in ((members[0], "busy"), (members[1], "away")):
                await slow.sees(member.user_id, status)
            await slow.sees(noise.user_id, "busy")

    asyncio.run(story())


# What a token has of rooms.


def test_a_refreshed_token_s_room_counts_from_then_on(server: Server) -> None:
    async def story() -> None:
        async with Clients(server) as clients:
            old_room, new_room = fresh("room"), fresh("room")
            observer = await observe(clients, old_room)
            await observer.do("subscribe", rooms=[new_room])
            user_id = fresh("user")
            client = await clients.connect(user_id, public=False, token=signed(user_id, room=old_room, rooms=[]))
            await client.do("token_refresh", token=signed(user_id, room=new_room, rooms=[]))
            await client.refused("subscribe", "forbidden", rooms=[old_room])
            await client.do("user_online")
            await told_roster(observer, new_room, [client])
            assert observer.view.rooms[old_room] == set()

    asyncio.run(story())
