"""Signs of life and their absence: heartbeat timeout, grace, the ends of a connection, the ends of a token, a drain.

Times are held to both sides: nothing ends before its time, and nothing later than one tick and what a busy machine
takes to tell of it.
"""

import asyncio
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import Start
from tests.support.certificate import certify
from tests.support.clients import Client, Clients, RawClient
from tests.support.scene import Scene, fresh
from tests.support.server import DEADLINE, Server, shared

TIMEOUT = 0.8  #: heartbeat timeout, seconds
TICK = 0.25  #: how late a deadline may be noticed
SLACK = 0.3  #: how long a busy machine may take to tell of it
ROUNDING = 0.002  #: the server counts whole milliseconds


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    yield from shared(
        {
            "presence.heartbeat_interval": 0.3,
            "presence.heartbeat_timeout": TIMEOUT,
            "limits.connect_timeout": 0.5,
        }
    )


async def begin(clients: Clients) -> Scene:
    """A scene whose witness stays alive by himself."""
    scene = await Scene.begin(clients)
    scene.witness.keep_beating(0.2)
    return scene


def is_timely(at_s: float, earliest_s: float, latest_s: float) -> bool:
    return earliest_s - ROUNDING <= at_s <= latest_s + TICK + SLACK


# Silence.


def test_a_silent_connection_is_closed_with_4008_in_time_and_its_user_goes_offline(server: Server) -> None:
    async def story() -> None:
        async with Clients(server) as clients:
            scene = await begin(clients)
            await scene.actor.beat()
            sent_s, answered_s = scene.actor.last_sent_s, scene.actor.last_answer_s
            sight = await scene.witness.sees(scene.actor.user_id, "offline")
            assert is_timely(sight.at_s, sent_s + TIMEOUT, answered_s + TIMEOUT)
            assert await scene.actor.ended() == 4008
            assert server.event("user offline", user_id=scene.actor.user_id)["reason"] == "timeout"

    asyncio.run(story())


def test_a_silent_observer_is_closed_with_4008_as_well(server: Server) -> None:
    async def story() -> None:
        async with Clients(server) as clients:
            begun_s = time.monotonic()
            observer = await clients.connect(fresh("user"), public=False)
            connected_s = time.monotonic()
            assert await observer.ended() == 4008
            assert is_timely(time.monotonic(), begun_s + TIMEOUT, connected_s + TIMEOUT)

    asyncio.run(story())


def test_any_complete_frame_is_a_sign_of_life_and_nothing_less(server: Server) -> None:
    async def give(raw: RawClient, sign: str) -> None:
        match sign:
            case "heartbeat":
                raw.send_frame(RawClient.TEXT, b'{"type":"heartbeat"}')
            case "ping":
                raw.send_frame(RawClient.PING, b"")
            case "request":
                raw.send_frame(RawClient.TEXT, b'{"type":"request_online_status","user_ids":["nobody"]}')
            case "refused request":
                raw.send_frame(RawClient.TEXT, b"nonsense")
            case _:
                raw.send_frame(0x0, b" ", fin=False)
                return
        await raw.frame()

    async def live_and_fall_silent(sign: str) -> None:
        async with RawClient.upgraded(server, fresh("user")) as raw:
            if sign == "fragment":
                raw.send_frame(RawClient.TEXT, b"{", fin=False)
            until_s = time.monotonic() + 2.5 * TIMEOUT
            while time.monotonic() < until_s:
                await give(raw, sign)
                await asyncio.sleep(TIMEOUT / 4)
            # Half a frame is none, however slowly it comes.
            last_s = time.monotonic()
            for byte in b"\x81\xff\x00\x00\x00\x00\x00\x00\x01\x00":
                raw.send(bytes([byte]))
                await asyncio.sleep(TIMEOUT / 20)
            assert await raw.closed() == 4008, sign
            assert time.monotonic() - last_s <= TIMEOUT + TICK + SLACK, sign

    async def all_at_once() -> None:
        signs = ["heartbeat", "ping", "request", "refused request", "fragment"]
        await asyncio.gather(*map(live_and_fall_silent, signs))

    asyncio.run(all_at_once())


def test_a_detached_session_lives_on_until_the_timeout_after_its_last_sign_of_life(server: Server) -> None:
    async def story() -> None:
        async with Clients(server) as clients:
            scene = await begin(clients)
            await scene.actor.beat()
            sent_s, answered_s = scene.actor.last_sent_s, scene.actor.last_answer_s
            await asyncio.sleep(TIMEOUT / 2)
            await scene.actor.cut()  # no sign of life
            sight = await scene.witness.sees(scene.actor.user_id, "offline")
            assert is_timely(sight.at_s, sent_s + TIMEOUT, answered_s + TIMEOUT)

    asyncio.run(story())


def test_the_silence_of_one_session_is_not_seen_while_another_speaks(server: Server) -> None:
    async def story() -> None:
        async with Clients(server) as clients:
            scene = await begin(clients)
            second = await clients.online(scene.actor.user_id, "kol", device="tablet", status="busy", public=False)
            await scene.witness.sees(scene.actor.user_id, "busy")
            scene.actor.keep_beating(0.2)
            assert await second.ended() == 4008
            await scene.witness.sees(scene.actor.user_id, "online")
            assert "offline" not in scene.witness.view.statuses(scene.actor.user_id)
            assert (await scene.actor.do("message", to_user_id=scene.actor.user_id, message="m"))["delivered"] == 1

    asyncio.run(story())


# Its own standstill.


def stand_still(server: Server) -> None:
    """Stop the worker for longer than any silence may last, as a machine that is moved or has too much to do would."""
    os.kill(server.worker_pid, signal.SIGSTOP)
    try:
        time.sleep(2 * TIMEOUT)
    finally:
        os.kill(server.worker_pid, signal.SIGCONT)


@pytest.mark.parametrize("kind", ["plain", pytest.param("tls", marks=pytest.mark.long)])
def test_who_spoke_while_the_server_stood_still_is_not_taken_for_silent(
    start: Start, tmp_path: Path, kind: str
) -> None:
    tls = certify(tmp_path) if kind == "tls" else None
    server = start(
        presence__heartbeat_interval=0.3,
        presence__heartbeat_timeout=TIMEOUT,
        server__tls_cert=tls and tls.cert,
        server__tls_key=tls and tls.key,
    )

    async def story() -> None:
        async with Clients(server) as clients:
            scene = await begin(clients)
            for client in (scene.actor, scene.marker):
                client.keep_beating(0.2)
            # One who comes back meanwhile, too: his new connection waits to be accepted.
            lost = await clients.online(fresh("kol"), "kol", device="phone", public=False)
            await scene.witness.do("subscribe", user_ids=[lost.user_id])
            sight = await scene.witness.sees(lost.user_id, "online")
            token = server.token(lost.user_id, "kol")
            still = asyncio.get_running_loop().run_in_executor(None, stand_still, server)
            await asyncio.sleep(TIMEOUT / 4)
            await lost.cut()
            back = await clients.connect(lost.user_id, "kol", public=False, token=token)
            await back.do("user_online", device="phone")
            await still
            back.keep_beating(0.2)
            await scene.actor.beat()
            await asyncio.sleep(TIMEOUT + TICK)  # the deadlines count again
            await scene.nothing_was_seen()
            assert scene.witness.view.seen[lost.user_id][-1:] == [sight], scene.witness.view.seen[lost.user_id]
            await scene.actor.stop_beating()
            await scene.witness.sees(scene.actor.user_id, "offline")

    asyncio.run(story())


# Ends on purpose and others.


def test_user_offline_and_a_close_with_1000_end_the_session_at_once(server: Server) -> None:
    async def story() -> None:
        async with Clients(server) as clients:
            for how in ("user_offline", "1000"):
                scene = await begin(clients)
                begun_s = time.monotonic()
                if how == "user_offline":
                    await scene.actor.do("user_offline")
                    assert await scene.actor.ended() == 1000
                else:
                    await scene.actor.close(1000)
                sight = await scene.witness.sees(scene.actor.user_id, "offline")
                assert sight.at_s - begun_s < SLACK
                reason = "goodbye" if how == "user_offline" else "closed"
                assert server.event("user offline", user_id=scene.actor.user_id)["reason"] == reason

    asyncio.run(story())


def test_every_other_end_only_detaches_the_session_and_a_return_in_time_is_seen_by_nobody(server: Server) -> None:
    async def end(raw: RawClient, how: str) -> None:
        match how:
            case "no code":
                raw.send_frame(RawClient.CLOSE, b"")
                assert (await raw.frame())[0] == RawClient.CLOSE
            case "reset":
                raw.reset()
            case "end of stream":
                raw.half_close()
                await raw.eof()
            case _:
                code = int(how).to_bytes(2, "big")
                raw.send_frame(RawClient.CLOSE, code)
                assert await raw.frame() == (RawClient.CLOSE, code)

    async def come_and_go(clients: Clients, scene: Scene, how: str) -> None:
        user_id = fresh("kol")
        await scene.witness.do("subscribe", user_ids=[user_id])
        async with RawClient.upgraded(server, user_id, "kol") as raw:
            raw.send_frame(RawClient.TEXT, b'{"type":"user_online","status":"busy"}')
            sight = await scene.witness.sees(user_id, "busy")
            await end(raw, how)
        back = await clients.online(user_id, "kol", status="busy", public=False)
        assert server.event("reconnect", user_id=user_id), how
        back.keep_beating(0.2)
        await asyncio.sleep(TIMEOUT + TICK)  # longer than the old session would have lived
        assert scene.witness.view.seen[user_id][-1] == sight, how

    async def story() -> None:
        async with Clients(server) as clients:
            scene = await begin(clients)
            ends = ["1001", "no code", "3000", "4999", "reset", "end of stream"]
            await asyncio.gather(*[come_and_go(clients, scene, how) for how in ends])

    asyncio.run(story())


@pytest.mark.parametrize("grace", [0.0, 0.6])
def test_disconnect_grace_shortens_the_life_of_a_detached_session(start: Start, grace: float) -> None:
    server = start(presence__heartbeat_timeout=20, presence__disconnect_grace=grace)

    async def story() -> None:
        async with Clients(server) as clients:
            scene = await Scene.begin(clients)
            before_s = time.monotonic()
            await scene.actor.cut()
            cut_s = time.monotonic()
            sight = await scene.witness.sees(scene.actor.user_id, "offline")
            assert is_timely(sight.at_s, before_s + grace, cut_s + grace)
            # A reconnect within the grace is seen by nobody.
            if grace:
                again = await clients.online(scene.actor.user_id, "kol", device="phone", public=False)
                sight = await scene.witness.sees(scene.actor.user_id, "online")
                await again.cut()
                await clients.online(scene.actor.user_id, "kol", device="phone", public=False)
                await asyncio.sleep(grace + TICK)
                await scene.settle()
                assert scene.witness.view.seen[scene.actor.user_id][-1] == sight

    asyncio.run(story())


def test_a_handshake_or_a_request_that_is_not_complete_in_time_is_cut_off(server: Server) -> None:
    async def story() -> None:
        for beginning in (b"", b"GET /ws HTTP/1.1\r\nHost: x\r\n", b"POST /api/online-status/query HTTP/1.1\r\n"):
            begun_s = time.monotonic()
            async with RawClient.open(server) as raw:
                raw.send(beginning)
                await raw.eof()
                assert 0.5 - ROUNDING <= time.monotonic() - begun_s <= 0.5 + TICK + SLACK

    asyncio.run(story())


# The token's end.


def test_an_expired_token_is_announced_closes_with_4001_and_only_detaches_the_session(server: Server) -> None:
    async def story() -> None:
        async with Clients(server) as clients:
            scene = await begin(clients)
            user_id = fresh("kol")
            await scene.witness.do("subscribe", user_ids=[user_id])
            token = server.token(user_id, "kol", expire_time=2)
            client = await clients.online(user_id, "kol", token=token, status="busy", public=False)
            client.keep_beating(0.2)
            expires_at = client.came("welcome")[0]["expires_at"]
            assert (await client.take("token_expiring"))["expires_at"] == expires_at
            assert await client.ended() == 4001
            assert expires_at - ROUNDING <= time.time() <= expires_at + TICK + SLACK
            await client.stop_beating()
            assert len(client.came("token_expiring")) == 1
            with pytest.raises(Exception, match="401"):
                await clients.connect(user_id, "kol", token=token)
            await clients.online(user_id, "kol", status="busy", public=False)
            await scene.witness.beat()
            assert scene.witness.view.statuses(user_id) == ["offline", "busy"]

    asyncio.run(story())


def test_a_refreshed_token_carries_the_connection_past_the_old_ones_end(server: Server) -> None:
    async def story() -> None:
        async with Clients(server) as clients:
            user_id = fresh("kol")
            client = await clients.online(user_id, "kol", token=server.token(user_id, "kol", expire_time=2))
            client.keep_beating(0.2)
            ends_at = (await client.take("token_expiring"))["expires_at"]
            ack = await client.do("token_refresh", token=server.token(user_id, "kol", expire_time=4))
            assert (await client.take("token_expiring"))["expires_at"] == ack["expires_at"]
            assert ack["expires_at"] > ends_at
            assert await client.ended() == 4001
            assert ack["expires_at"] - ROUNDING <= time.time() <= ack["expires_at"] + TICK + SLACK
            assert len(client.came("token_expiring")) == 2

    asyncio.run(story())


# The end of the server.


def test_a_drain_tells_everybody_closes_with_1012_and_refuses_newcomers_with_503(start: Start) -> None:
    server = start(server__drain_time=4, presence__heartbeat_timeout=20)

    async def story() -> None:
        async with Clients(server) as clients:
            token = server.token("user_1")
            crowd: list[Client] = [await clients.connect(fresh("user"), public=False) for _ in range(5)]
            async with RawClient.upgraded(server, "user_2") as stubborn:  # answers no close: the drain waits for it
                server.signal(signal.SIGTERM)
                for client in crowd:
                    after_ms = (await client.take("draining"))["reconnect_after_ms"]
                    assert 0 <= after_ms <= 4000
                    assert await client.ended() == 1012
                async with RawClient.open(server) as raw:
                    raw.send(RawClient.upgrade_request(token))
                    status, headers, _ = await raw.response()
                    assert status == 503
                    assert int(headers["retry-after"]) >= 1
                assert b"draining" in (await stubborn.frame())[1]
                opcode, payload = await stubborn.frame()
                assert (opcode, payload[:2]) == (RawClient.CLOSE, (1012).to_bytes(2, "big"))
                assert await asyncio.to_thread(server.wait) == 0

    asyncio.run(asyncio.wait_for(story(), DEADLINE))
