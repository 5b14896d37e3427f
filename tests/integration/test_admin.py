"""The admin face of the real server: why is X offline, after whatever end, and is this node ready?"""

import asyncio
import os
import select
import signal
import socket
import time
from collections.abc import Callable
from typing import Any

from tests.conftest import Start
from tests.support.clients import Client, Clients
from tests.support.server import API_KEY, DEADLINE, Server


def timeline(server: Server, user_id: str) -> list[dict[str, Any]]:
    status, body = server.admin(f"/api/users/{user_id}/timeline")
    assert status == 200, body
    assert body["user_id"] == user_id
    found = body["timeline"]
    assert isinstance(found, list)
    return found


def eventually(server: Server, user_id: str, is_there: Callable[[list[dict[str, Any]]], bool]) -> list[dict[str, Any]]:
    """The user's timeline, as soon as it says so: transitions are on their way for a tenth of a second."""
    until = time.monotonic() + DEADLINE
    while not is_there(found := timeline(server, user_id)):
        assert time.monotonic() < until, found
        time.sleep(0.01)
    return found


def readiness(server: Server, wanted: int) -> str:
    """Waits until /readyz answers so; what it says of why not."""
    until = time.monotonic() + DEADLINE
    while (answer := server.admin("/readyz", key=None))[0] != wanted:
        assert time.monotonic() < until, answer
        time.sleep(0.01)
    return "" if wanted == 200 else str(answer[1]["error"]["message"])


def test_a_life_is_told_from_its_end_to_its_beginning(start: Start) -> None:
    server = start()
    began = time.time()

    async def story() -> None:
        async with Clients(server) as clients:
            host = await clients.online("kol_1", "kol")
            await host.do("status_change", status="busy")
            await host.do("user_offline")

    asyncio.run(story())
    found = eventually(server, "kol_1", lambda entries: len(entries) >= 3)
    assert [(one["event"], one["was"], one["status"], one["cause"]) for one in found] == [
        ("offline", "busy", "offline", "goodbye"),
        ("status", "online", "busy", "status_change"),
        ("online", "offline", "online", "user_online"),
    ]
    assert began - 1 < found[-1]["at"] <= found[0]["at"] < time.time() + 1
    assert found[0]["rev"] > found[1]["rev"] > found[2]["rev"]
    assert {(one["worker"], one["session"], one["user_type"]) for one in found} == {(0, found[0]["session"], "kol")}
    assert timeline(server, "nobody") == []
    assert len(server.admin("/api/users/kol_1/timeline?limit=2")[1]["timeline"]) == 2


def test_after_a_kill_of_the_worker_everybody_who_was_there_has_a_crash_and_who_had_left_has_none(
    start: Start,
) -> None:
    server = start()
    server.expect("worker died")

    async def story() -> None:
        async with Clients(server) as clients:
            left = await clients.online("user_left")
            await left.do("user_offline")
            for number in range(20):
                await clients.online(f"user_{number}")
            await clients.online("kol_1", "kol", device="phone", status="away")
            await clients.online("kol_1", "kol", device="phone", status="busy")  # supersedes it
            await clients.online("kol_1", "kol", device="tablet")
            eventually(server, "kol_1", lambda entries: len(entries) == 3)
            os.kill(server.worker_pid, signal.SIGKILL)
            server.event("worker ready")
            found = timeline(server, "kol_1")
            crashes = [one for one in found if one["cause"] == "crash"]
            assert found[:2] == crashes
            assert {(one["was"], one["status"], one["event"]) for one in crashes} == {("busy", "offline", "offline")}
            sessions = [one["session"] for one in found[::-1] if one["cause"] != "crash"]
            assert sorted(one["session"] for one in crashes) == sessions[1:]
            for number in range(20):
                assert timeline(server, f"user_{number}")[0]["cause"] == "crash"
            assert [one["cause"] for one in timeline(server, "user_left")] == ["goodbye", "user_online"]
            # Whoever comes back is online again, and what was before is still there.
            await clients.online("user_7")
            found = eventually(server, "user_7", lambda entries: entries[0]["event"] == "online")
            assert [one["cause"] for one in found] == ["user_online", "crash", "user_online"]

    asyncio.run(story())
    logged = [event["user_id"] for event in server.logged("user offline", reason="crash")]
    assert sorted(logged) == sorted([*(f"user_{number}" for number in range(20)), "kol_1", "kol_1"])


def test_a_node_that_stood_still_misses_transitions_says_so_and_still_knows_who_was_there(start: Start) -> None:
    server = start(limits__rate=1_000_000, limits__burst=10_000_000, presence__heartbeat_timeout=60)
    server.expect("worker died")
    hosts = [f"host_{number}_".ljust(128, "x") for number in range(8)]  # long names: fewer are more than can wait

    async def story() -> None:
        async with Clients(server) as clients:
            connected = [await clients.online(user_id, "kol", public=False) for user_id in hosts]
            leaver = await clients.online("leaver", public=False)
            worker = server.worker_pid
            os.kill(server.pid, signal.SIGSTOP)
            try:

                async def flip(host: Client) -> None:
                    for _ in range(2500):
                        await host.send("status_change", status="busy")
                        await host.send("status_change", status="away")
                    await host.do("status_change", status="busy")

                await asyncio.gather(*map(flip, connected))
                await clients.online("newcomer", public=False)  # nothing of these three reaches the node
                await leaver.do("user_offline")
            finally:
                os.kill(server.pid, signal.SIGCONT)
            assert server.event("journal lines dropped")["lines"] > 1000
            await asyncio.to_thread(eventually, server, hosts[0], lambda entries: entries != [])
            late = await clients.online("late", public=False)  # its line comes behind the pages
            await asyncio.to_thread(eventually, server, "late", lambda entries: entries != [])
            os.kill(worker, signal.SIGKILL)
            assert await late.ended() == 1006
            server.event("worker ready")
            for user_id, was in [*((host, "busy") for host in hosts), ("newcomer", "online"), ("late", "online")]:
                newest = timeline(server, user_id)[0]
                assert (newest["cause"], newest["was"]) == ("crash", was)
            assert "crash" not in [entry["cause"] for entry in timeline(server, "leaver")]

    asyncio.run(story())


def test_every_end_has_its_cause(start: Start) -> None:
    server = start()

    async def story() -> None:
        async with Clients(server) as clients:
            for user_id in ("silent", "kicked", "revoked", "closed"):
                client = await clients.online(user_id)
                if user_id == "closed":
                    await client.close()
            assert server.http("DELETE", "/api/online-status/users/kicked/sessions")[0] == 200
            assert server.http("POST", "/api/online-status/tokens/revoke", {"user_id": "revoked"})[0] == 200
            for user_id, cause in {
                "silent": "timeout", "kicked": "kicked", "revoked": "token", "closed": "closed"
            }.items():  # fmt: skip
                found = await asyncio.to_thread(eventually, server, user_id, lambda entries: len(entries) > 1)
                assert (found[0]["event"], found[0]["cause"]) == ("offline", cause)

    asyncio.run(story())


def test_readiness_follows_the_worker_and_health_stays(start: Start) -> None:
    server = start()
    server.expect("worker died")
    assert readiness(server, 200) == ""
    os.kill(server.worker_pid, signal.SIGKILL)
    assert readiness(server, 503) == "worker 0 is down"
    assert server.admin("/healthz", key=None) == (200, {"status": "ok"})
    readiness(server, 200)


def test_a_draining_node_is_alive_and_not_ready(start: Start) -> None:
    server = start(server__drain_time=5)

    async def story() -> None:
        async with Clients(server) as clients:
            host = await clients.online("kol_1", "kol")
            os.kill(server.worker_pid, signal.SIGSTOP)  # a drain that takes its time
            server.signal(signal.SIGTERM)
            assert readiness(server, 503) == "draining"
            assert server.admin("/healthz", key=None)[0] == 200
            os.kill(server.worker_pid, signal.SIGCONT)
            await host.ended()

    asyncio.run(story())
    assert server.wait() == 0


def test_only_the_admin_key_opens_a_timeline(start: Start) -> None:
    server = start()
    for key in (None, API_KEY, server.token("kol_1")):
        assert server.admin("/api/users/kol_1/timeline", key=key)[0] == 401
    assert server.admin("/api/users/kol_1/timeline")[0] == 200
    keyless = start(admin__key=None)
    status, body = keyless.admin("/api/users/kol_1/timeline")
    assert status == 401
    assert "admin.key must be set" in body["error"]["message"]


def test_the_admin_face_can_be_turned_off(start: Start) -> None:
    server = start(admin__enabled="false")
    assert server.token("user_1")
    assert server.logged("admin listening") == []


def test_garbage_at_the_admin_port_disturbs_neither_its_other_users_nor_the_supervisor(start: Start) -> None:
    server = start()
    server.expect("worker died")
    port = int(server.event("admin listening")["port"])
    garbage = [
        b"\x16\x03\x01" + bytes(range(256)) * 64,
        b"GET / HTTP/1.1\r\nHost: x\r\n" + b"X: y\r\n" * 1000,
        b"POST /healthz HTTP/1.1\r\nHost: x\r\nContent-Length: 9999999\r\n\r\n" + b"x" * 500_000,
        b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n" * 5000,
        b"G",
    ]
    open_ones = []
    for data in garbage * 3:
        sock = socket.create_connection(("127.0.0.1", port), timeout=DEADLINE)
        sock.setblocking(False)
        try:
            while data and select.select([], [sock], [], 0.05)[1]:
                data = data[sock.send(data) :]
        except ConnectionError:
            pass
        open_ones.append(sock)
        assert server.admin("/healthz", key=None)[0] == 200
    os.kill(server.worker_pid, signal.SIGKILL)
    server.event("worker ready")
    assert readiness(server, 200) == ""
    for sock in open_ones:
        sock.close()
