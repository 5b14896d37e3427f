"""A client that stops reading: it delays nobody, costs its socket buffer, is caught up when it reads, and is let go.

Small buffers on both sides, so that a hundred changes are enough to fill them.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from tests.conftest import Start
from tests.support.clients import Client, Clients, Codec, RawClient
from tests.support.server import Server

HOSTS = 30
ROUNDS = 60
LAG_TIME = 1.0
TICK = 0.25
SLACK = 0.5
STATUSES = ("busy", "away", "online")

both_codecs = pytest.mark.parametrize("codec", ["json", "msgpack"])


def start_server(start: Start, *, lag_time: float = 60, send_buffer: int = 8192) -> Server:
    # A send buffer smaller than what loopback sends in one piece makes the kernel wait for delayed ACKs: 40 ms each.
    return start(
        presence__heartbeat_timeout=60,
        presence__flush_window_ms=1,
        limits__send_buffer=send_buffer,
        limits__lag_time=lag_time,
        limits__rate=10_000,
        limits__burst=10_000,
    )


class Stir:
    """Hosts that change their statuses, and what each shows in the end."""

    def __init__(self, clients: Clients, hosts: list[Client]) -> None:
        self.clients = clients
        self.hosts = hosts
        self.last: dict[str, str] = {host.user_id: "online" for host in hosts}

    @classmethod
    @asynccontextmanager
    async def begin(cls, server: Server) -> AsyncIterator["Stir"]:
        async with Clients(server) as clients:
            ids = [f"kol_{number}" for number in range(HOSTS)]
            hosts = [
                await clients.online(user_id, "kol", public=False, room_id="studio" if number < 5 else None)
                for number, user_id in enumerate(ids)
            ]
            yield cls(clients, hosts)

    async def round(self, number: int) -> None:
        """Every host that is still there changes, in more than one flush."""
        for at, host in enumerate(self.hosts):
            if host.code is not None:
                continue
            status = STATUSES[(number + at) % 3]
            await host.send("status_change", status=status)
            self.last[host.user_id] = status
            if at % 10 == 9:
                await host.beat()

    async def all_seen_by(self, client: Client, users: list[str] | None = None) -> None:
        for user_id, status in self.last.items():
            if users is None or user_id in users:
                await client.sees(user_id, status)


@both_codecs
def test_a_reader_that_stops_delays_nobody_and_is_caught_up_to_the_latest_state_when_it_reads_again(
    start: Start, codec: Codec
) -> None:
    server = start_server(start)

    async def story() -> None:
        async with Stir.begin(server) as stir:
            everything = await stir.clients.connect("everything")
            slow = await stir.clients.connect("slow", codec=codec, receive_buffer=4096, deflate=False)
            slow_watcher = await stir.clients.connect("watcher", codec=codec, receive_buffer=4096, public=False)
            watched = [f"kol_{number}" for number in range(5, 25)]
            await slow_watcher.do("subscribe", user_ids=watched, rooms=["studio"])
            await stir.all_seen_by(slow)
            await stir.all_seen_by(slow_watcher, [*watched, "kol_0"])
            for client in (slow, slow_watcher):
                client.pause()
            frames_before = len(slow.frames)
            latencies = []
            for number in range(ROUNDS):
                await stir.round(number)
                begun_s = time.monotonic()
                await stir.all_seen_by(everything)
                latencies.append(time.monotonic() - begun_s)
            # What it had not read by then is a backlog that nobody keeps for it.
            assert sorted(latencies)[ROUNDS // 2] < 0.05
            await stir.hosts[0].do("user_offline")
            await stir.hosts[0].ended()
            stir.last["kol_0"] = "offline"
            await everything.sees("kol_0", "offline")
            for client in (slow, slow_watcher):
                client.resume()
            await stir.all_seen_by(slow)
            await stir.all_seen_by(slow_watcher, [*watched, *(f"kol_{number}" for number in range(5))])
            assert "kol_0" not in slow_watcher.view.rooms["studio"]
            # It got the latest state, not what the others saw of it.
            got = sum(len(frame["user_status"]) for _, frame in slow.frames[frames_before:] if "user_status" in frame)
            told = sum(len(frame["user_status"]) for frame in everything.came("user_online_status"))
            assert got < told / 2
            # And goes on like everybody else.
            await stir.round(ROUNDS)
            for client in (everything, slow):
                await stir.all_seen_by(client)
            await slow.beat()
            await slow_watcher.beat()

    asyncio.run(story())


def test_a_reader_that_is_behind_for_longer_than_lag_time_is_ended_and_only_detached(start: Start) -> None:
    server = start_server(start, lag_time=LAG_TIME)

    async def story() -> None:
        async with Stir.begin(server) as stir:
            seeing = await stir.clients.connect("seeing")
            await seeing.do("subscribe", user_ids=["slow"])
            slow = await stir.clients.online("slow", receive_buffer=4096)
            await seeing.sees("slow", "online")
            slow.pause()
            begun_s = time.monotonic()
            slow.keep_beating(0.1)  # alive, but it does not read
            number = 0
            while not server.logged("slow reader", user_id="slow"):
                await stir.round(number)
                number += 1
                await asyncio.sleep(0.05)
                assert time.monotonic() - begun_s < LAG_TIME + 5
            assert time.monotonic() - begun_s >= LAG_TIME - 0.002
            slow.resume()
            assert await slow.ended() in (4009, 1006)
            await slow.stop_beating()
            assert seeing.view.status("slow") == "online"
            # It comes back with its cursor, and nobody noticed.
            back = await stir.clients.online("slow", cursor=slow.view.cursor, view=slow.view)
            await stir.all_seen_by(back)
            assert seeing.view.statuses("slow")[-1] == "online"
            assert "offline" not in seeing.view.statuses("slow")[1:]

    asyncio.run(story())


def test_a_slow_newcomer_costs_one_page_and_gets_the_whole_snapshot_when_it_reads(start: Start) -> None:
    server = start_server(start, send_buffer=65_536)

    async def story() -> None:
        async with Clients(server) as clients:
            many = 1_100
            for begin in range(0, many, 50):
                await asyncio.gather(
                    *[clients.online(f"kol_{n}", "kol", public=False) for n in range(begin, begin + 50)]
                )
            token = server.token("slow")
            async with RawClient.open(server, receive_buffer=16_384) as raw:
                raw.send(RawClient.upgrade_request(token))
                assert (await raw.response())[0] == 101
                raw.pause()
                seeing = await clients.connect("seeing")
                host = await clients.online("kol_late", "kol")
                await seeing.sees("kol_late", "online")
                await host.do("status_change", status="busy")
                await seeing.sees("kol_late", "busy")
                raw.resume()
                text = b""
                while b'"kol_late","user_type":"kol","status":"busy"' not in text:
                    opcode, payload = await raw.frame()
                    assert opcode == RawClient.TEXT
                    text += payload
                assert all(b'"kol_%d"' % number in text for number in range(many))

    asyncio.run(story())


def test_who_does_not_read_his_answers_is_not_read_from_until_he_does(start: Start) -> None:
    server = start_server(start, send_buffer=65_536)

    async def story() -> None:
        async with Clients(server) as clients, RawClient.upgraded(server, "greedy") as raw:
            question = b'{"type":"request_online_status","user_ids":[%s],"id":%d}'
            asked = b",".join(b'"user_%d"' % number for number in range(500))
            count = 100
            for number in range(count):
                raw.send_frame(RawClient.TEXT, question % (asked, number))
            other = await clients.online("other")
            await other.beat()
            for number in range(count):
                _, payload = await raw.frame()
                assert b'"reply_to":%d}' % number in payload

    asyncio.run(story())


def test_messages_to_a_receiver_who_does_not_read_are_refused_with_unavailable_at_their_limit(start: Start) -> None:
    server = start_server(start)

    async def story() -> None:
        async with Clients(server) as clients:
            sender = await clients.online("sender")
            receiver = await clients.online("receiver", public=False, receive_buffer=4096)
            receiver.pause()
            delivered = 0
            for number in range(2000):
                answer = await sender.ask("message", to_user_id="receiver", message=f"{number:08}" + "x" * 1000)
                if answer["type"] == "error":
                    break
                delivered += 1
            assert answer["code"] == "unavailable"
            # What waits is bounded: the limit, the sockets' buffers and one more.
            assert 60 <= delivered <= 500
            receiver.resume()
            await receiver.until(lambda: len(receiver.came("message")) == delivered, "what was delivered")
            numbers = [int(message["message"][:8]) for message in receiver.came("message")]
            assert numbers == list(range(delivered))
            await sender.do("message", to_user_id="receiver", message="again")

    asyncio.run(story())


@pytest.mark.parametrize("leave", ["reset", "half_close"])
@pytest.mark.parametrize("goodbye", ["close frame", "user_offline"])
def test_the_goodbye_of_one_who_does_not_read_and_hangs_up_counts_at_once(
    start: Start, goodbye: str, leave: str
) -> None:
    # The timeout after which he would be gone anyway is four times what a wait here may take.
    server = start_server(start)

    async def story() -> None:
        async with Clients(server) as clients, RawClient.upgraded(server, "slow") as slow:
            slow.send_frame(RawClient.TEXT, b'{"type":"user_online"}')
            seeing = await clients.online("seeing")
            await seeing.do("subscribe", user_ids=["slow"])
            await seeing.sees("slow", "online")
            slow.pause()
            answer = {"type": "ack"}
            while answer["type"] == "ack":  # until nothing more goes into his socket, nor may wait for it
                answer = await seeing.ask("message", to_user_id="slow", message="x" * 2000)
            assert answer["code"] == "unavailable"
            if goodbye == "user_offline":
                slow.send_frame(RawClient.TEXT, b'{"type":"user_offline"}')
            else:
                slow.send_frame(RawClient.CLOSE, (1000).to_bytes(2, "big"))
            getattr(slow, leave)()
            await seeing.sees("slow", "offline")
            assert server.event("user offline", user_id="slow")["reason"] == (
                "goodbye" if goodbye == "user_offline" else "closed"
            )

    asyncio.run(story())
