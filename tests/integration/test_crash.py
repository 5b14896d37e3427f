"""kill -9 of the worker: the node starts another, newcomers hardly wait, and whoever was there comes back."""

import asyncio
import contextlib
import os
import signal
import time

import pytest

from fastpresence.client import PresenceClient
from tests.conftest import Start
from tests.support.clients import Clients, RawClient, until
from tests.support.server import Server

#: Seconds from the kill to the answered handshake: the bar of a new worker.
NEW_HANDSHAKE = 1.5
#: Seconds in which clients have to be back: their second attempt is after 3.
RETURN = 10.0


def kill(server: Server) -> float:
    """When the worker was killed (monotonic)."""
    os.kill(server.worker_pid, signal.SIGKILL)
    return time.monotonic()


async def handshake(server: Server, token: str) -> float:
    """When a handshake begun now was answered (monotonic)."""
    async with RawClient.open(server) as raw:
        raw.send(RawClient.upgrade_request(token))
        status, _, _ = await raw.response()
        assert status == 101
        return time.monotonic()


def client_of(server: Server, user_id: str, user_type: str = "user", **kwargs: object) -> PresenceClient:
    return PresenceClient(
        server.url,
        token=lambda: server.token(user_id, user_type),
        user_id=user_id,
        **kwargs,  # type: ignore[arg-type]
    )


@pytest.mark.skipif("libasan" in os.environ.get("LD_PRELOAD", ""), reason="a sanitized process starts slowly")
def test_the_first_handshake_after_a_kill_of_the_worker_is_answered_within_a_second_and_a_half(start: Start) -> None:
    server = start()
    server.expect("worker died")

    async def twice() -> None:
        token = server.token("user_1")
        for deaths in (1, 2):
            pid = server.worker_pid
            killed_s = kill(server)
            answered_s = await handshake(server, token)
            assert answered_s - killed_s < NEW_HANDSHAKE
            died = server.event("worker died", nth=deaths)
            assert (died["pid"], died["signal"]) == (pid, "SIGKILL")
            assert server.event("worker ready", nth=deaths)["restarts"] == deaths
            assert server.worker_pid != pid

    asyncio.run(twice())


def test_a_connection_that_waited_while_the_worker_died_is_served_by_the_next(start: Start) -> None:
    server = start()
    server.expect("worker died")

    async def waiting() -> None:
        token = server.token("user_1")
        # A stopped worker accepts nothing: this connection waits in the queue when it is killed.
        os.kill(server.worker_pid, signal.SIGSTOP)
        async with RawClient.open(server) as raw:
            raw.send(RawClient.upgrade_request(token))
            kill(server)
            status, _, _ = await raw.response()
            assert status == 101

    asyncio.run(waiting())


def test_after_a_crash_clients_come_back_by_themselves_with_their_statuses_and_everybody_converges(
    start: Start,
) -> None:
    server = start()
    server.expect("worker died")
    truth = {"kol_1": "busy", "kol_2": "away", "kol_3": "online"}

    async def story() -> None:
        async with contextlib.AsyncExitStack() as stack:
            hosts = {
                user_id: await stack.enter_async_context(
                    client_of(server, user_id, "kol", device="phone", codec="msgpack" if user_id == "kol_2" else "json")
                )
                for user_id in truth
            }
            watcher = await stack.enter_async_context(client_of(server, "user_1"))
            observer = await stack.enter_async_context(client_of(server, "user_2", online=False, public=False))
            await watcher.join("studio")
            await hosts["kol_1"].join("studio")
            await observer.watch("kol_1", "user_1")
            everybody = [*hosts.values(), watcher, observer]
            for user_id, status in truth.items():
                await hosts[user_id].set_status(status)  # type: ignore[arg-type]

            def converged() -> bool:
                return (
                    all(not client.stale for client in everybody)
                    and all(
                        client.status_of(user_id).status == status
                        for client in [*hosts.values(), watcher]
                        for user_id, status in truth.items()
                    )
                    and observer.status_of("kol_1").status == "busy"
                    and observer.status_of("user_1").status == "online"
                    and set(watcher.members("studio")) == {"kol_1", "user_1"}
                )

            await until(converged, "everybody knows before the crash")
            for deaths in (1, 2):
                states: list[str] = []
                stop = watcher.on_state(states.append)
                kill(server)
                await watcher.wait_state("disconnected", RETURN)
                await until(converged, f"everybody knows after crash {deaths}", RETURN)
                stop()
                assert states[-1] == "connected"
                assert "failed" not in states
                assert server.event("worker died", nth=deaths)["signal"] == "SIGKILL"
            # They are not merely shown: who is online on the server can be reached.
            for user_id in truth:
                assert await watcher.send_message(user_id, "still there?") == 1
            # And what happens next reaches everybody.
            await hosts["kol_1"].set_status("online")
            truth["kol_1"] = "online"
            await until(
                lambda: all(client.status_of("kol_1").status == "online" for client in everybody), "the next change"
            )
            assert server.http("GET", "/api/online-status/kol_2")[1]["status"] == "away"

    asyncio.run(story())


def test_after_a_crash_an_old_cursor_is_answered_with_a_full_snapshot_of_a_new_epoch(start: Start) -> None:
    server = start()
    server.expect("worker died")

    async def story() -> None:
        async with Clients(server) as clients:
            host = await clients.online("kol_1", "kol", status="busy")
            gone = await clients.online("kol_2", "kol")
            watcher = await clients.connect("user_1")
            assert (watcher.view.status("kol_1"), watcher.view.status("kol_2")) == ("busy", "online")
            before = watcher.view
            epoch = before.epoch
            kill(server)
            for client in (host, gone, watcher):
                assert await client.ended() == 1006
            host = await clients.online("kol_1", "kol", status="busy", view=host.view)
            back = await clients.connect("user_1", cursor=before.cursor, view=before)
            frame = await back.take("user_online_status")
            assert back.view.epoch != epoch
            assert frame["full"] is True
            assert [entry["user_id"] for entry in frame["user_status"]] == ["kol_1"]
            assert (back.view.status("kol_1"), back.view.status("kol_2")) == ("busy", "offline")

    asyncio.run(story())


def test_the_node_ends_in_order_when_its_worker_died_before(start: Start) -> None:
    server = start()
    server.expect("worker died")
    kill(server)
    server.event("worker ready")
    worker = server.worker_pid
    server.signal(signal.SIGTERM)
    assert server.wait() == 0
    with pytest.raises(ProcessLookupError):
        os.kill(worker, 0)
