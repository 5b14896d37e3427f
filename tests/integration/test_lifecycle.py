"""The lifecycle document's own timeline, on real sockets and a hundred times as fast.

    kol_1:  token - online - beats - busy - beats - cut . . . . back with a fresh token - beats - user_offline
                                                      |  inside the heartbeat timeout: nobody sees anything
                                                      |  past it: everybody sees the offline in time, and the return
    kol_2:  online ------- away --------------------------------------------------------------------- user_offline

Those who watch: public users, members of a room, explicit watches; present ones and observers; JSON and MessagePack,
deflated and not; and two who have no WebSocket and poll, one by our client and one without it.
"""

import asyncio
import itertools
import statistics
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager

import pytest

from fastpresence.client import PresenceClient, Timing
from tests.conftest import Start
from tests.support.clients import Client, Clients, View, until
from tests.support.poller import Poller
from tests.support.proxy import Proxy

BEAT = 0.3  #: seconds, where the protocol has 30
TIMEOUT = 0.9  #: and 60
TICK = 0.25  #: how late a timeout may be noticed
SLACK = 0.3  #: how long a busy machine may take to tell, and us to notice
LATENCY = 0.05  #: from a change to the others' screens, typically
POLL = 0.05  #: seconds between polls, where the protocol's clients have 5


def is_subsequence(part: Iterable[str], whole: Iterable[str]) -> bool:
    rest = iter(whole)
    return all(item in rest for item in part)


class Stage:
    """Everybody in the timeline, and how long each change took to each screen."""

    def __init__(self, clients: Clients, poller: Poller, polling: PresenceClient) -> None:
        self.clients = clients
        self.poller, self.polling = poller, polling
        self.watchers: list[Client] = []
        self.latencies: list[float] = []

    async def everybody_sees(self, user_id: str, status: str, since_s: float) -> None:
        """And note how long it took."""
        sights = await asyncio.gather(*[watcher.sees(user_id, status) for watcher in self.watchers])
        self.latencies.extend(sight.at_s - since_s for sight in sights)

    async def change(self, who: Client, status: str) -> None:
        begun_s = time.monotonic()
        await who.do("status_change", user_id=who.user_id, user_type="kol", status=status, timestamp=int(time.time()))
        await self.everybody_sees(who.user_id, status, begun_s)

    async def come_online(self, who: Client, **fields: object) -> None:
        begun_s = time.monotonic()
        await who.do("user_online", user_id=who.user_id, user_type="kol", device="phone", **fields)
        await self.everybody_sees(who.user_id, str(fields.get("status", "online")), begun_s)

    async def say_goodbye(self, who: Client) -> None:
        begun_s = time.monotonic()
        await who.stop_beating()
        await who.do("user_offline", user_id=who.user_id, user_type="kol", timestamp=int(time.time()))
        assert await who.ended() == 1000
        await self.everybody_sees(who.user_id, "offline", begun_s)


@asynccontextmanager
async def the_stage(clients: Clients) -> AsyncIterator[Stage]:
    """With those who poll: both ask for the public users, the room and some users by name."""
    scope = {"rooms": ["studio"], "user_ids": ["user_1", "kol_1"]}
    timing = Timing(delays_ms=(0, 10), poll_interval_ms=POLL * 1000)
    async with clients, Proxy(clients.server.port) as proxy:
        proxy.block()
        client = PresenceClient(
            proxy.url, token=lambda: clients.server.token("user_5"), user_id="user_5", device="browser", timing=timing
        )
        async with Poller(clients.server, "user_4", every_s=POLL, **scope) as poller, client as polling:
            assert polling.freshness == "polled"
            await polling.join("studio")
            await polling.watch("user_1", "kol_1")
            yield Stage(clients, poller, polling)
            assert polling.freshness == "polled"


async def the_same_is_seen_by_polling(stage: Stage, truth: list[str]) -> None:
    """Of everybody, entry by entry, as those with a socket see it."""
    await stage.poller.caught_up()
    for user_id in ("kol_1", "kol_2", "user_1", "user_2"):
        views: list[View] = [watcher.view for watcher in stage.watchers if user_id in watcher.view.known]
        assert views
        for view in views:
            entry = {key: value for key, value in view.known[user_id].items() if key != "left"}
            assert stage.poller.view.known[user_id] == entry

            def same(user_id: str = user_id, entry: dict[str, object] = entry) -> bool:
                held = stage.polling.status_of(user_id)
                return entry == {name: getattr(held, name) for name in entry}

            await until(same, f"{stage.polling.status_of(user_id)} is {entry}")
    assert is_subsequence(stage.poller.view.statuses("kol_1"), truth)


async def beats(who: Client, count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(BEAT)
        await who.beat()


async def up_to_the_cut(stage: Stage) -> Client:
    """Two hosts and three users come online, and two observers look on; kol_1 turns busy. Returns kol_1's client."""
    clients = stage.clients
    kol_2 = await clients.connect("kol_2", "kol", codec="msgpack", room_id="studio")
    user_1 = await clients.online("user_1")
    user_2 = await clients.online("user_2", codec="msgpack", room_id="studio", public=False)
    user_3 = await clients.online("user_3", public=False, deflate=False)
    await user_3.do("subscribe", user_ids=["kol_1", "kol_2", "user_1"])
    seeing = await clients.connect("observer_1", codec="msgpack", deflate=False)
    in_room = await clients.connect("observer_2", public=False)
    await in_room.do("subscribe", rooms=["studio"])
    stage.watchers = [kol_2, user_1, user_2, user_3, seeing, in_room]
    for watcher in stage.watchers:
        watcher.keep_beating(BEAT)

    kol_1 = await clients.connect("kol_1", "kol", room_id="studio")
    await stage.come_online(kol_1)
    stage.watchers.append(kol_1)
    await stage.come_online(kol_2)
    await beats(kol_1, 2)
    stage.watchers.remove(kol_1)
    await stage.change(kol_1, "busy")
    await stage.change(kol_2, "away")
    sent = await user_3.do("message", to_user_id="kol_1", message="Hello, can we talk?")
    assert sent["delivered"] == 1
    assert (await kol_1.take("message"))["from_user_id"] == "user_3"
    await beats(kol_1, 2)
    for watcher in stage.watchers:
        assert watcher.view.status("kol_1") == "busy"
    return kol_1


async def come_back(stage: Stage, before: Client) -> Client:
    """Re-authentication: a fresh token, the cursor, the last status, the same device."""
    token = stage.clients.server.token("kol_1", "kol", room_id="studio")
    kol_1 = await stage.clients.connect("kol_1", "kol", token=token, cursor=before.view.cursor, view=before.view)
    await stage.come_online(kol_1, status="busy", attempt=1)
    return kol_1


async def to_the_end(stage: Stage, kol_1: Client, truth: list[str]) -> None:
    await beats(kol_1, 2)
    for watcher in stage.watchers:
        assert watcher.view.status("kol_1") == "busy"
    await stage.say_goodbye(kol_1)
    kol_2 = stage.watchers.pop(0)
    await stage.say_goodbye(kol_2)
    for watcher in stage.watchers:
        seen = watcher.view.statuses("kol_1")
        assert is_subsequence(seen, truth), (watcher.user_id, seen)
        assert seen[-1] == "offline"
        assert is_subsequence(watcher.view.statuses("kol_2"), ["offline", "online", "away", "offline"])
        assert watcher.view.statuses("kol_2")[-1] == "offline"
        revs = [sight.rev for sight in watcher.view.seen["kol_1"]]
        assert all(earlier < later for earlier, later in itertools.pairwise(revs))
    for watcher in (each for each in stage.watchers if each.user_id in ("user_2", "observer_2")):
        assert watcher.view.rooms["studio"] == {"user_2", "user_4", "user_5"}
    await the_same_is_seen_by_polling(stage, truth)
    assert statistics.median(stage.latencies) < LATENCY


@pytest.fixture
def fast(start: Start) -> Clients:
    return Clients(start(presence__heartbeat_interval=BEAT, presence__heartbeat_timeout=TIMEOUT))


@pytest.mark.parametrize("loss", ["reset", pytest.param("silence", marks=pytest.mark.long)])
def test_a_cut_and_a_return_inside_the_heartbeat_timeout_are_seen_by_nobody(fast: Clients, loss: str) -> None:
    async def timeline() -> None:
        async with the_stage(fast) as stage:
            clients = stage.clients
            kol_1 = await up_to_the_cut(stage)
            revs = [watcher.view.known["kol_1"]["rev"] for watcher in stage.watchers]
            if loss == "reset":
                await kol_1.cut()
            await asyncio.sleep(TIMEOUT / 3)
            back = await come_back(stage, kol_1)
            # Longer than the old session would have lived. With "silence" its socket does: that matters to nobody now.
            await beats(back, round((TIMEOUT + TICK + SLACK) / BEAT))
            assert await kol_1.ended() == (1006 if loss == "reset" else 4008)
            for watcher, rev in zip(stage.watchers, revs, strict=True):
                assert "offline" not in watcher.view.statuses("kol_1")[1:]
                assert watcher.view.known["kol_1"]["rev"] == rev
                assert "kol_1" in watcher.view.rooms.get("studio", {"kol_1"})
            assert clients.server.event("reconnect", user_id="kol_1")["attempt"] == 1
            assert not clients.server.logged("user offline", user_id="kol_1")
            await to_the_end(stage, back, ["offline", "online", "busy", "offline"])
            assert clients.server.event("user offline", user_id="kol_1")["reason"] == "goodbye"

    asyncio.run(timeline())


@pytest.mark.parametrize("loss", ["reset", pytest.param("silence", marks=pytest.mark.long)])
def test_a_cut_beyond_the_heartbeat_timeout_is_seen_by_everybody_in_time_and_so_is_the_return(
    fast: Clients, loss: str
) -> None:
    async def timeline() -> None:
        async with the_stage(fast) as stage:
            clients = stage.clients
            kol_1 = await up_to_the_cut(stage)
            last_heard_at = time.time()
            if loss == "reset":
                await kol_1.cut()
            # The clocks of both ends are one: 2 ms for rounding to whole ones.
            not_before_s = kol_1.last_sent_s + TIMEOUT - 0.002
            not_after_s = kol_1.last_answer_s + TIMEOUT + TICK + SLACK
            for watcher in stage.watchers:
                sight = await watcher.sees("kol_1", "offline")
                assert not_before_s <= sight.at_s <= not_after_s, (watcher.user_id, sight.at_s - not_before_s)
                assert sight.last_seen is not None
                assert abs(sight.last_seen - last_heard_at) < 1 + SLACK
                assert "kol_1" not in watcher.view.rooms.get("studio", set())
            if loss == "silence":
                assert await kol_1.ended() == 4008
            assert clients.server.event("user offline", user_id="kol_1")["reason"] == "timeout"
            back = await come_back(stage, kol_1)
            for watcher in stage.watchers:
                assert "kol_1" in watcher.view.rooms.get("studio", {"kol_1"})
            await to_the_end(stage, back, ["offline", "online", "busy", "offline", "busy", "offline"])
            clients.server.event("user offline", user_id="kol_2")
            assert not clients.server.logged("reconnect", user_id="kol_1")

    asyncio.run(timeline())
