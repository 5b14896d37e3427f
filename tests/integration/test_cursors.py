"""Who learns of a change, and how he catches up: public users, watches, rooms, and the cursors of each.

A cursor brought back gets the latest state of what changed since and nothing else; one that is none, or of another
life, gets everything; neither gets an error or a wrong state.
"""

import asyncio
from collections.abc import Iterator

import pytest

from tests.conftest import Start
from tests.support.clients import Client, Clients, Codec, Frame, View
from tests.support.scene import Scene, fresh
from tests.support.server import Server, shared

both_codecs = pytest.mark.parametrize("codec", ["json", "msgpack"])


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    yield from shared({"presence.heartbeat_timeout": 60, "limits.rate": 10_000, "limits.burst": 10_000})


def users_of(frame: Frame) -> list[str]:
    return [entry["user_id"] for entry in frame["user_status"]]


#: Texts that are no cursor of ours.
NO_CURSORS = ["garbage", "~", "~~", "-1", "0", "%00", "%C3%A9", "a" * 256, "a" * 300, "..~..~..", "x~p~1"]


def spoilt(cursor: str, server_epoch: str) -> list[str]:
    """Texts that look very much like this one, and are none of this life and scope."""
    version = int(cursor.rpartition("~")[2])
    return [
        cursor.replace(server_epoch, "0" * len(server_epoch)),
        f"{cursor.rpartition('~')[0]}~{version + 1_000_000}",
        f"{cursor.rpartition('~')[0]}~-{version}",
        f"{cursor.rpartition('~')[0]}~{version}x",
        f"{cursor.rpartition('~')[0]}~00{version}",
        f"{cursor.rpartition('~')[0]}~{'9' * 30}",
        cursor[:-1] + "~",
    ]


# The public users.


@both_codecs
def test_a_newcomer_gets_the_public_users_and_then_their_changes_and_nobody_else(server: Server, codec: Codec) -> None:
    async def story() -> None:
        async with Clients(server) as clients:
            host = await clients.online(fresh("kol"), "kol", status="busy")
            user = await clients.online(fresh("user"), "user")
            hidden = await clients.online(fresh("kol"), "kol", status="offline")
            newcomer = await clients.connect(fresh("user"), codec=codec)
            frame = newcomer.came("user_online_status")[0]
            assert frame["full"] is True
            assert frame["cursor"]
            assert users_of(frame).count(host.user_id) == 1
            assert not {user.user_id, hidden.user_id} & set(users_of(frame))
            await user.do("status_change", status="busy")
            await host.do("status_change", status="away")
            await newcomer.sees(host.user_id, "away")
            assert newcomer.view.status(user.user_id) is None
            assert newcomer.came("user_online_status")[-1]["full"] is False

    asyncio.run(story())


def test_who_opts_out_of_the_public_users_gets_neither_a_snapshot_nor_changes(server: Server) -> None:
    async def story() -> None:
        async with Clients(server) as clients:
            host = await clients.online(fresh("kol"), "kol")
            out = await clients.connect(fresh("user"), public=False)
            seeing = await clients.connect(fresh("user"))
            await host.do("status_change", status="busy")
            await seeing.sees(host.user_id, "busy")
            await out.beat()
            assert not out.came("user_online_status")

    asyncio.run(story())


def test_observers_see_and_are_not_seen(server: Server) -> None:
    async def story() -> None:
        async with Clients(server) as clients:
            room = fresh("room")
            member = await clients.online(fresh("user"), room_id=room)
            watcher = await clients.connect(fresh("user"), "kol")
            observer = await clients.connect(fresh("kol"), "kol")
            await watcher.do("subscribe", user_ids=[observer.user_id])
            await observer.do("subscribe", rooms=[room], user_ids=[member.user_id])
            await observer.until(lambda: observer.view.rooms.get(room) == {member.user_id}, "the room's roster")
            await observer.close(1000)
            await member.do("status_change", status="busy")
            await member.beat()
            for client in (member, watcher):
                assert client.view.status(observer.user_id) in (None, "offline")
            assert member.view.rooms[room] == {member.user_id}
            assert server.http("GET", f"/api/online-status/{observer.user_id}")[1]["rev"] == 0
            server.event("status changed", user_id=member.user_id)
            assert not server.logged("user online", user_id=observer.user_id)

    asyncio.run(story())


@both_codecs
def test_a_reconnect_with_its_cursor_gets_only_what_changed_since_in_its_latest_state(
    server: Server, codec: Codec
) -> None:
    async def story() -> None:
        async with Clients(server) as clients:
            changing, leaving, still = [await clients.online(fresh("kol"), "kol", codec=codec) for _ in range(3)]
            watcher = await clients.connect(fresh("user"), codec=codec)
            seeing = await clients.connect(fresh("user"))
            for host in (changing, leaving, still):
                await watcher.sees(host.user_id, "online")
            await watcher.cut()
            for status in ("busy", "away", "busy"):
                await changing.do("status_change", status=status)
            await leaving.do("user_offline")
            coming = await clients.online(fresh("kol"), "kol", codec=codec)
            await seeing.sees(coming.user_id, "online")  # a flush that is still due may tell things twice
            back = await clients.connect(watcher.user_id, codec=codec, cursor=watcher.view.cursor, view=watcher.view)
            frame = await back.take("user_online_status")
            assert frame["full"] is False
            assert sorted(users_of(frame)) == sorted([changing.user_id, leaving.user_id, coming.user_id])
            assert back.view.status(changing.user_id) == "busy"
            assert back.view.status(leaving.user_id) == "offline"
            # And the next cursor goes on from there.
            await back.cut()
            again = await clients.connect(watcher.user_id, codec=codec, cursor=back.view.cursor, view=back.view)
            await still.do("status_change", status="busy")
            await again.sees(still.user_id, "busy")
            for frame in again.came("user_online_status"):
                assert set(users_of(frame)) <= {still.user_id}

    asyncio.run(story())


def test_a_cursor_that_is_none_or_of_another_life_gets_a_full_snapshot_and_never_an_error(server: Server) -> None:
    async def story() -> None:
        async with Clients(server) as clients:
            host = await clients.online(fresh("kol"), "kol", status="busy")
            watcher = await clients.connect(fresh("user"))
            cursor, epoch = watcher.view.cursor, watcher.view.epoch
            assert cursor
            assert epoch
            for bad in [*NO_CURSORS, *spoilt(cursor, epoch)]:
                client = await clients.connect(fresh("user"), cursor=bad)
                frame = await client.take("user_online_status")
                assert frame["full"] is True, bad
                assert host.user_id in users_of(frame), bad
                await client.close()

    asyncio.run(story())


@both_codecs
def test_a_snapshot_of_many_comes_in_pages_and_changes_during_it_are_not_lost(start: Start, codec: Codec) -> None:
    server = start(presence__heartbeat_timeout=60, limits__rate=10_000, limits__burst=10_000)
    many = 1_203

    async def story() -> None:
        async with Clients(server) as clients:
            # One connection each is what it takes to be present.
            hosts: list[Client] = []
            for number in range(0, many, 50):
                ids = [f"kol_{n}" for n in range(number, min(many, number + 50))]
                hosts += await asyncio.gather(*[clients.online(user_id, "kol", public=False) for user_id in ids])
            newcomers = [asyncio.create_task(clients.connect(f"user_{n}", codec=codec)) for n in range(5)]
            for host in hosts[::7]:
                await host.send("status_change", status="busy")
            for newcomer in await asyncio.gather(*newcomers):
                snapshot = [frame for frame in newcomer.came("user_online_status") if frame["full"]]
                assert [frame.get("more", False) for frame in snapshot] == [True, True, False]
                assert all(len(frame["user_status"]) <= 500 for frame in snapshot)
                assert ["cursor" in frame for frame in snapshot] == [False, False, True]
                assert len({user for frame in snapshot for user in users_of(frame)}) == many
                for host in hosts[::7]:
                    await newcomer.sees(host.user_id, "busy")
                assert newcomer.view.status("kol_1") == "online"

    asyncio.run(story())


# Watches.


@both_codecs
def test_a_subscription_is_answered_with_the_present_state_of_exactly_those_users(server: Server, codec: Codec) -> None:
    async def story() -> None:
        async with Clients(server) as clients:
            busy = await clients.online(fresh("user"), status="busy")
            other = await clients.online(fresh("user"))
            watcher = await clients.connect(fresh("user"), codec=codec, public=False)
            await watcher.do("subscribe", user_ids=[busy.user_id, "nobody"])
            frame = await watcher.take("user_online_status")
            assert frame["full"] is True
            assert frame["cursor"]
            assert "room" not in frame
            assert sorted(users_of(frame)) == sorted([busy.user_id, "nobody"])
            assert watcher.view.status(busy.user_id) == "busy"
            await other.do("status_change", status="away")
            await busy.do("status_change", status="away")
            await watcher.sees(busy.user_id, "away")
            assert watcher.view.status(other.user_id) is None
            # Who was not there yet is watched as well.
            await watcher.do("subscribe", user_ids=["late.comer"])
            late = await clients.online("late.comer")
            await watcher.sees("late.comer", "online")
            await late.do("user_offline")
            await watcher.sees("late.comer", "offline")

    asyncio.run(story())


def test_after_unsubscribe_nothing_more_is_told_of_those_users(server: Server) -> None:
    async def story() -> None:
        async with Clients(server) as clients:
            first, second = await clients.online(fresh("user")), await clients.online(fresh("user"))
            watcher = await clients.connect(fresh("user"), public=False)
            await watcher.do("subscribe", user_ids=[first.user_id, second.user_id])
            await watcher.sees(second.user_id, "online")
            await watcher.do("unsubscribe", user_ids=[first.user_id, "nobody"])
            await first.do("status_change", status="busy")
            await second.do("status_change", status="busy")
            await watcher.sees(second.user_id, "busy")
            assert watcher.view.status(first.user_id) == "online"
            await watcher.do("subscribe", user_ids=[first.user_id])
            await watcher.sees(first.user_id, "busy")

    asyncio.run(story())


def test_who_sees_a_user_for_several_reasons_is_told_in_an_order_that_never_goes_back(server: Server) -> None:
    async def story() -> None:
        async with Clients(server) as clients:
            room = fresh("room")
            host = await clients.online(fresh("kol"), "kol", room_id=room)
            watcher = await clients.online(fresh("user"), room_id=room)
            await watcher.do("subscribe", user_ids=[host.user_id])
            for number in range(60):
                await host.send("status_change", status=("busy", "away", "online")[number % 3])
            await host.do("status_change", status="busy")
            await watcher.sees(host.user_id, "busy")
            revs = [sight.rev for sight in watcher.view.seen[host.user_id]]
            assert revs == sorted(revs)  # and what went back would be a violation in `Clients`

    asyncio.run(story())


@both_codecs
def test_a_watch_resumed_by_its_cursor_gets_the_delta_and_a_foreign_or_spoilt_cursor_gets_all(
    server: Server, codec: Codec
) -> None:
    async def story() -> None:
        async with Clients(server) as clients:
            changing, still = await clients.online(fresh("user")), await clients.online(fresh("user"))
            both = [changing.user_id, still.user_id]
            watcher = await clients.connect(fresh("user"), codec=codec, public=False)
            await watcher.do("subscribe", user_ids=both)
            cursor = (await watcher.take("user_online_status"))["cursor"]
            public_cursor = (await clients.connect(fresh("user"))).view.cursor
            epoch = watcher.view.epoch
            assert public_cursor
            assert epoch
            await watcher.cut()

            async def resumed(user_ids: list[str], bring: str | None) -> Frame:
                back = await clients.connect(watcher.user_id, codec=codec, public=False)
                await back.do("subscribe", user_ids=user_ids, cursor=bring)
                frame = await back.take("user_online_status")
                await back.close()
                return frame

            nothing = await resumed(both, cursor)
            assert (nothing["full"], nothing["user_status"]) == (False, [])
            await changing.do("status_change", status="busy")
            await changing.do("status_change", status="away")
            delta = await resumed(both[::-1], cursor)
            assert (delta["full"], users_of(delta)) == (False, [changing.user_id])
            assert delta["user_status"][0]["status"] == "away"
            onward = await resumed(both, delta["cursor"])
            assert (onward["full"], onward["user_status"]) == (False, [])
            for bad in [None, public_cursor, *NO_CURSORS, *spoilt(cursor, epoch)]:
                frame = await resumed(both, bad)
                assert (frame["full"], sorted(users_of(frame))) == (True, sorted(both)), bad
            # A wider scope: the state of what is new in it has to be there.
            wider = await resumed([*both, "nobody"], cursor)
            assert wider["full"] is True
            assert set(users_of(wider)) == {*both, "nobody"}

    asyncio.run(story())


# Rooms.


@both_codecs
def test_a_token_with_a_room_joins_it_at_user_online_and_its_members_see_each_other(
    server: Server, codec: Codec
) -> None:
    async def story() -> None:
        async with Clients(server) as clients:
            room = fresh("room")
            first = await clients.online(fresh("user"), codec=codec, room_id=room, public=False)
            await first.until(lambda: first.view.rooms.get(room) == {first.user_id}, "himself in the roster")
            not_yet = await clients.connect(fresh("user"), room_id=room, public=False)
            second = await clients.online(fresh("user"), room_id=room, public=False, status="busy")
            await first.until(lambda: first.view.rooms[room] == {first.user_id, second.user_id}, "the second")
            assert first.view.status(second.user_id) == "busy"
            assert not_yet.view.rooms == {}
            await second.until(lambda: second.view.rooms.get(room) == {first.user_id, second.user_id}, "the roster")
            frame = second.came("user_online_status")[0]
            assert (frame["full"], frame["room"]) == (True, room)
            await not_yet.do("user_online")
            await first.until(lambda: not_yet.user_id in first.view.rooms[room], "the third")

    asyncio.run(story())


@both_codecs
def test_who_leaves_a_room_or_goes_offline_is_told_with_left(server: Server, codec: Codec) -> None:
    async def story() -> None:
        async with Clients(server) as clients:
            room = fresh("room")
            observer = await clients.connect(fresh("user"), codec=codec, public=False)
            await observer.do("subscribe", rooms=[room])
            empty = await observer.take("user_online_status", room=room)
            assert (empty["full"], empty["user_status"]) == (True, [])
            going, leaving, hiding = [await clients.online(fresh("user"), public=False) for _ in range(3)]
            everybody = {going.user_id, leaving.user_id, hiding.user_id}
            for member in (going, leaving, hiding):
                await member.do("subscribe", rooms=[room])
            await observer.until(lambda: observer.view.rooms[room] == everybody, "all three")

            async def told_of(user_id: str) -> Frame:
                await observer.until(lambda: user_id not in observer.view.rooms[room], f"{user_id} left")
                frames = [frame for frame in observer.came("user_online_status") if frame.get("room") == room]
                entry = next(entry for entry in frames[-1]["user_status"] if entry["user_id"] == user_id)
                assert entry["left"] is True
                return dict(entry)

            await leaving.do("unsubscribe", rooms=[room])
            assert (await told_of(leaving.user_id))["status"] == "online"
            await going.do("user_offline")
            assert (await told_of(going.user_id))["status"] == "offline"
            await hiding.do("status_change", status="offline")
            assert (await told_of(hiding.user_id))["status"] == "offline"
            await hiding.do("status_change", status="away")
            await observer.until(lambda: observer.view.rooms[room] == {hiding.user_id}, "he is back")
            assert observer.view.status(hiding.user_id) == "away"
            # Out of the room he is not told of any more.
            await leaving.do("status_change", status="busy")
            await hiding.do("status_change", status="busy")
            await observer.sees(hiding.user_id, "busy")
            assert observer.view.status(leaving.user_id) == "online"
            # And a newcomer is not told of those who left.
            newcomer = await clients.connect(fresh("user"), public=False)
            await newcomer.do("subscribe", rooms=[room])
            assert users_of(await newcomer.take("user_online_status", room=room)) == [hiding.user_id]

    asyncio.run(story())


def test_a_room_resumed_by_its_cursor_gets_the_delta_with_who_left_and_a_spoilt_cursor_gets_all(
    server: Server,
) -> None:
    async def story() -> None:
        async with Clients(server) as clients:
            room, other_room = fresh("room"), fresh("room")
            still, leaving, changing = [await clients.online(fresh("user"), public=False) for _ in range(3)]
            for member in (still, leaving, changing):
                await member.do("subscribe", rooms=[room, other_room])
            observer = await clients.connect(fresh("user"), public=False)
            await observer.do("subscribe", rooms=[room, other_room])
            cursor = (await observer.take("user_online_status", room=room))["cursor"]
            other_cursor = (await observer.take("user_online_status", room=other_room))["cursor"]
            epoch = observer.view.epoch
            assert epoch
            await observer.cut()
            await leaving.do("unsubscribe", rooms=[room])
            await changing.do("status_change", status="busy")
            coming = await clients.online(fresh("user"), public=False, room_id=room)

            async def resumed(bring: str | None) -> Frame:
                back = await clients.connect(observer.user_id, public=False)
                await back.do("subscribe", rooms=[room], cursor=bring)
                frame = await back.take("user_online_status", room=room)
                await back.close()
                return frame

            delta = await resumed(cursor)
            assert delta["full"] is False
            told = {entry["user_id"]: (entry["status"], entry.get("left", False)) for entry in delta["user_status"]}
            assert told == {
                leaving.user_id: ("online", True),
                changing.user_id: ("busy", False),
                coming.user_id: ("online", False),
            }
            for bad in [None, other_cursor, *NO_CURSORS, *spoilt(cursor, epoch)]:
                full = await resumed(bad)
                assert full["full"] is True, bad
                assert sorted(users_of(full)) == sorted([still.user_id, changing.user_id, coming.user_id]), bad

    asyncio.run(story())


def test_a_cut_and_a_return_in_time_leave_the_room_as_it_was(server: Server) -> None:
    async def story() -> None:
        async with Clients(server) as clients:
            room = fresh("room")
            scene = await Scene.begin(clients)
            await scene.witness.do("subscribe", rooms=[room])
            await scene.actor.do("subscribe", rooms=[room])
            await scene.witness.until(lambda: scene.actor.user_id in scene.witness.view.rooms[room], "in the room")
            frames = len(scene.witness.came("user_online_status"))
            await scene.actor.cut()
            back = await clients.online(scene.actor.user_id, "kol", public=False, view=View())
            await scene.nothing_was_seen()
            about_room = [
                frame for frame in scene.witness.came("user_online_status")[frames:] if frame.get("room") == room
            ]
            assert not about_room
            assert scene.witness.view.rooms[room] == {scene.actor.user_id}
            await back.do("user_offline")
            await scene.witness.until(lambda: not scene.witness.view.rooms[room], "out of the room")

    asyncio.run(story())


# Conflation.


def test_many_changes_in_a_flush_window_are_told_as_the_latest_state_of_each_and_nobody_misses_the_last(
    server: Server,
) -> None:
    changes = 200

    async def story() -> None:
        async with Clients(server) as clients:
            hosts = [await clients.online(fresh("kol"), "kol", public=False) for _ in range(10)]
            watchers = [await clients.connect(fresh("user"), codec=codec) for codec in ("json", "msgpack")]
            before = [len(watcher.came("user_online_status")) for watcher in watchers]
            for number in range(changes):
                for host in hosts:
                    await host.send("status_change", status="busy" if number % 2 else "away")
            for host in hosts:
                await host.do("status_change", status="online")
            for watcher, frames in zip(watchers, before, strict=True):
                for host in hosts:
                    await watcher.sees(host.user_id, "online")
                told = watcher.came("user_online_status")[frames:]
                # Far fewer frames than changes, and no user twice in one of them.
                assert len(told) < changes * len(hosts) / 5
                assert all(len(users_of(frame)) == len(set(users_of(frame))) for frame in told)

    asyncio.run(story())
