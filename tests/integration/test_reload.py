"""SIGHUP on the real server: keys are rotated under live connections, and what is bad or too late changes nothing."""

import asyncio
import json
import os
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from joserfc import jws, jwt
from joserfc.jwk import ECKey

from tests.conftest import Start
from tests.support.clients import Clients, RawClient
from tests.support.server import API_KEY, DEADLINE, TOKEN_SECRET, Server

OLD = f"k1:{TOKEN_SECRET}"
NEW = "k2:the-second-secret-of-the-integration-tests"
NEW_API_KEY = "the-second-api-key-of-the-tests"
RTS = "/api/online-status/rts-token"


class Config:
    """The server's settings file, in which everything may change that a test wants changed."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "fastpresence.toml"
        self.tables: dict[str, dict[str, Any]] = {"auth": {"token_keys": [OLD], "api_keys": [API_KEY]}}
        self.write()

    def write(self, text: str | None = None, **changes: Any) -> None:
        for section, values in changes.items():
            self.tables.setdefault(section, {}).update(values)
        lines = [
            line
            for section, values in self.tables.items()
            for line in (f"[{section}]", *(f"{name} = {json.dumps(value)}" for name, value in values.items()))
        ]
        fresh = self.path.with_suffix(".new")
        fresh.write_text("\n".join(lines) if text is None else text)
        fresh.replace(self.path)  # never half a file

    def begin(self, start: Start) -> Server:
        return start(**{name.replace(".", "__"): value for name, value in self.settings().items()})

    def settings(self) -> dict[str, object]:
        """What the server is told otherwise: these keys by the file alone."""
        return {
            "config": self.path,
            "auth.token_keys": None,
            "auth.api_keys": None,
            "presence.heartbeat_timeout": 60,
        }


def hang_up(server: Server, generation: int) -> None:
    """SIGHUP, and every worker runs with the new settings."""
    server.signal(signal.SIGHUP)
    server.event("reloaded", generation=generation)


def handshake(server: Server, token: str, *headers: str) -> int:
    async def attempt() -> int:
        async with RawClient.open(server) as raw:
            raw.send(RawClient.upgrade_request(token, "/ws", *headers))
            return (await raw.response())[0]

    return asyncio.run(attempt())


def rts_status(server: Server, key: str) -> int:
    return server.http("POST", RTS, {"user_id": "user_1"}, key=key)[0]


def test_keys_are_rotated_without_a_connection_noticing_and_a_removed_key_opens_nothing_more(
    start: Start, tmp_path: Path
) -> None:
    config = Config(tmp_path)
    server = config.begin(start)

    async def rotation() -> None:
        async with Clients(server) as clients:
            old_token = server.token("user_1")
            host = await clients.connect("kol_1", "kol")
            watcher = await clients.connect("user_1", token=old_token)
            await host.do("user_online")
            worker = server.worker_pid

            # The new key signs, the old one still checks.
            config.write(auth={"token_keys": [NEW, OLD], "api_keys": [NEW_API_KEY, API_KEY]})
            await asyncio.to_thread(hang_up, server, 1)
            new_token = await asyncio.to_thread(server.token, "user_1")
            assert await asyncio.to_thread(handshake, server, old_token) == 101
            assert await asyncio.to_thread(handshake, server, new_token) == 101
            assert await asyncio.to_thread(rts_status, server, NEW_API_KEY) == 200

            # The old key is gone.
            config.write(auth={"token_keys": [NEW], "api_keys": [NEW_API_KEY]})
            await asyncio.to_thread(hang_up, server, 2)
            assert await asyncio.to_thread(handshake, server, old_token) == 401
            assert await asyncio.to_thread(handshake, server, new_token) == 101
            assert await asyncio.to_thread(rts_status, server, API_KEY) == 401
            assert await asyncio.to_thread(rts_status, server, NEW_API_KEY) == 200

            # Who was connected with it still is, is told of changes, and may go on with a token of the new key.
            await host.do("status_change", status="busy")
            await watcher.sees("kol_1", "busy")
            await watcher.beat()
            await watcher.refused("token_refresh", "unauthorized", token=old_token)
            await watcher.do("token_refresh", token=new_token)
            assert (host.code, watcher.code) == (None, None)
            assert server.worker_pid == worker
            assert not server.logged("worker died")

    asyncio.run(rotation())


def test_a_worker_that_starts_later_has_the_new_keys_too(start: Start, tmp_path: Path) -> None:
    config = Config(tmp_path)
    server = config.begin(start)
    server.expect("worker died")
    old_token = server.token("user_1")
    config.write(auth={"token_keys": [NEW]})
    hang_up(server, 1)
    new_token = server.token("user_1")
    os.kill(server.worker_pid, signal.SIGKILL)
    server.event("worker ready")
    assert handshake(server, old_token) == 401
    assert handshake(server, new_token) == 101


def test_settings_that_are_bad_change_nothing_and_one_line_says_why(start: Start, tmp_path: Path) -> None:
    config = Config(tmp_path)
    server = config.begin(start)
    server.expect("reload refused")
    token = server.token("user_1")
    missing = tmp_path / "missing.json"
    weak = tmp_path / "weak.json"
    weak.write_text('{"keys": [{"kty": "oct", "k": "AAAA"}]}')
    good = config.path.read_text()
    bad: list[tuple[Callable[[], object], str]] = [
        (lambda: config.write("[auth"), f"{config.path}: not TOML"),
        (lambda: config.write(good + "\n[nonsense]\nx = 1\n"), "nonsense"),
        (lambda: config.write(good + '\n[server]\nport = "x"\nhost = 1\n'), "server."),
        (lambda: config.write(good.replace(OLD, "k1:short")), "auth.token_keys"),
        (lambda: config.write(good.replace(f'"{OLD}"', "")), "auth.token_keys is not set"),
        (lambda: config.write(good + "\n[log]\nlevel = 'loud'\n"), "log.level"),
        (lambda: config.write(auth={"login_keys": ["-----BEGIN PUBLIC KEY-----"]}), "auth.login_keys: item 1"),
        (lambda: config.write(auth={"login_keys": [], "login_jwks_file": str(missing)}), "auth.login_jwks_file"),
        (lambda: config.write(auth={"login_jwks_file": str(weak)}), "auth.login_jwks_file"),
        (lambda: config.path.unlink(), f"{config.path}: cannot be read"),
    ]
    for number, (spoil, reason) in enumerate(bad, 1):
        spoil()
        server.signal(signal.SIGHUP)
        line = server.event("reload refused", nth=number)
        assert line["level"] == "error"
        assert line["reason"].startswith(reason), line
        assert TOKEN_SECRET not in str(line)
        assert handshake(server, token) == 101
        assert rts_status(server, API_KEY) == 200
    assert server.logged("reload refused")[2]["more"] == 1
    assert not server.logged("reloaded")
    # The next worker is born with the settings that were good.
    server.expect("worker died")
    os.kill(server.worker_pid, signal.SIGKILL)
    server.event("worker ready")
    assert handshake(server, token) == 101
    # And a file that is good again is taken.
    config.write(good.replace(OLD, NEW))
    hang_up(server, 1)
    assert handshake(server, token) == 401


def test_what_cannot_change_in_place_is_named_in_one_line_and_left_as_it_was(start: Start, tmp_path: Path) -> None:
    config = Config(tmp_path)
    server = config.begin(start)
    changed: dict[str, Any] = {
        "limits": {"frame_size": 2048, "message_size": 4096},
        "presence": {"heartbeat_interval": 7, "public_types": ["kol", "user"]},
        "server": {"allowed_origins": ["https://new.example"], "public_url": "wss://chat.example", "workers": 999},
        "auth": {"token_keys": [NEW]},
    }
    config.write(**changed)
    # The environment of these tests wins over the file for this one.
    server.signal(signal.SIGHUP)
    server.event("reloaded", generation=1)
    line = server.event("reload: needs a restart")
    assert line["settings"] == "limits.frame_size,limits.message_size,presence.public_types,server.workers"
    assert line["level"] == "warning"
    token = server.http("POST", RTS, {"user_id": "user_1"})[1]
    assert token["ws_url"] == "wss://chat.example/ws"
    assert handshake(server, token["signature"], "Origin: https://new.example") == 101
    assert handshake(server, token["signature"], "Origin: https://old.example") == 403

    async def large_frame() -> None:
        async with Clients(server) as clients:
            client = await clients.connect("user_1", token=token["signature"])
            await client.do("user_online")
            await client.ask("message", to_user_id="nobody", message="m" * 8000)
            assert client.code is None

    asyncio.run(large_frame())
    # A worker that is born afterwards has those that are a worker's.
    server.expect("worker died")
    os.kill(server.worker_pid, signal.SIGKILL)
    server.event("worker ready")
    hang_up(server, 2)
    assert server.event("reload: needs a restart", nth=2)["settings"] == "server.workers"


def test_a_jwks_file_that_is_replaced_is_read_with_sighup_and_not_before(start: Start, tmp_path: Path) -> None:
    first, second = (ECKey.generate_key("P-256", {"kid": kid}) for kid in ("one", "two"))
    file = tmp_path / "keys.json"

    def publish(*keys: ECKey) -> None:
        fresh = tmp_path / "fresh.json"
        fresh.write_text(json.dumps({"keys": [key.as_dict(private=False) for key in keys]}))
        fresh.replace(file)

    def ask(key: ECKey, kid: str) -> int:
        token = jwt.encode({"alg": "ES256", "kid": kid}, {"sub": "user_1", "exp": int(time.time()) + 60}, key)
        return rts_status(server, token)

    publish(first)
    server = start(auth__login_jwks_file=file)
    assert (ask(first, "one"), ask(second, "two")) == (200, 401)
    publish(first, second)
    assert ask(second, "two") == 401
    # Nor does a new worker read a file that nobody said is ready.
    server.expect("worker died")
    os.kill(server.worker_pid, signal.SIGKILL)
    server.event("worker ready")
    assert (ask(first, "one"), ask(second, "two")) == (200, 401)
    hang_up(server, 1)
    assert (ask(first, "one"), ask(second, "two")) == (200, 200)
    publish(second)
    hang_up(server, 2)
    assert (ask(first, "one"), ask(second, "two")) == (401, 200)
    file.write_text("{")
    server.expect("reload refused")
    server.signal(signal.SIGHUP)
    assert str(file) in server.event("reload refused")["reason"]
    assert (ask(first, "one"), ask(second, "two")) == (401, 200)


def test_systemd_is_told_of_the_reload_and_of_its_end(start: Start, tmp_path: Path) -> None:
    config = Config(tmp_path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(DEADLINE)

        def told() -> bytes:
            while True:
                message = manager.recv(1000)
                if not message.startswith(b"STATUS="):
                    return message

        with Server(config.settings(), env={"NOTIFY_SOCKET": str(tmp_path / "notify")}) as server:
            assert told() == b"READY=1"
            for spoil in (False, True):
                if spoil:
                    config.write("[auth")
                    server.expect("reload refused")
                before_us = time.monotonic_ns() // 1000
                server.signal(signal.SIGHUP)
                state, _, moment = told().partition(b"\n")
                assert state == b"RELOADING=1"
                name, _, value = moment.partition(b"=")
                assert name == b"MONOTONIC_USEC"
                assert before_us <= int(value) <= time.monotonic_ns() // 1000
                assert told() == b"READY=1"


def test_many_sighups_at_once_end_with_the_last_settings(start: Start, tmp_path: Path) -> None:
    config = Config(tmp_path)
    server = config.begin(start)
    for number in range(20):
        config.write(auth={"token_keys": [f"k{number}:the-secret-of-the-many-{number:04}"]})
        server.signal(signal.SIGHUP)
    config.write(auth={"token_keys": [NEW]})
    server.signal(signal.SIGHUP)

    until = time.monotonic() + DEADLINE
    while jws.extract_compact(server.token("user_1").encode()).headers()["kid"] != "k2":
        assert time.monotonic() < until
    time.sleep(0.1)
    server.token("user_1")
