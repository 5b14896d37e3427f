"""TLS on the public port: the same server behind it, and what is no TLS, too old, too slow or too many stays out."""

import asyncio
import contextlib
import json
import os
import select
import signal
import socket
import ssl
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fastpresence.settings import ServerSettings
from fastpresence.worker.tls import REFUSALS
from tests.conftest import Start
from tests.integration.test_slow_reader import HOSTS, ROUNDS, Stir
from tests.support.certificate import Certificate, certify, trusting
from tests.support.clients import Clients, RawClient
from tests.support.server import API_KEY, DEADLINE, ROOT, TOKEN_SECRET, Server
from tests.support.siege import client_hello
from tests.support.world import World

BEAT = 0.3
TICK = 0.25
SLACK = 0.5


@pytest.fixture
def certificate(tmp_path: Path) -> Certificate:
    return certify(tmp_path)


def begin(start: Start, certificate: Certificate, **settings: object) -> Server:
    """A server that speaks TLS."""
    return start(server__tls_cert=certificate.cert, server__tls_key=certificate.key, **settings)


def plain(server: Server, source: str = "127.0.0.1") -> socket.socket:
    """A TCP connection that has said nothing yet."""
    return socket.create_connection(("127.0.0.1", server.port), DEADLINE, source_address=(source, 0))


def shake(server: Server, context: ssl.SSLContext | None = None, source: str = "127.0.0.1") -> ssl.SSLSocket:
    """A TLS connection that has said nothing yet."""
    context = context or server.tls
    assert context is not None
    return context.wrap_socket(plain(server, source), server_hostname="127.0.0.1")


def hung_up(crowd: list[socket.socket]) -> int:
    """How many of these the server has let go of, or spoken to."""
    poll = select.poll()
    for each in crowd:
        poll.register(each, select.POLLIN)
    return len(poll.poll(0))


def seconds_until_cut_off(connection: socket.socket) -> float:
    """How long the server keeps a connection that says nothing more."""
    begun_s = time.monotonic()
    connection.settimeout(DEADLINE)
    with contextlib.suppress(ConnectionError, ssl.SSLError):
        while connection.recv(65_536):
            pass
    return time.monotonic() - begun_s


def test_the_address_is_wss_in_the_log_and_in_the_answer_to_a_token_request(
    start: Start, certificate: Certificate
) -> None:
    server = begin(start, certificate)
    assert server.event("listening")["url"] == f"wss://127.0.0.1:{server.port}/ws"
    _, answer, _ = server.http("POST", "/api/online-status/rts-token", {"user_id": "user_1"})
    assert answer["ws_url"] == f"wss://127.0.0.1:{server.port}/ws"


def test_the_lifecycle_reaches_everybody_over_tls_whatever_he_speaks(start: Start, certificate: Certificate) -> None:
    server = begin(start, certificate)

    async def story() -> None:
        async with Clients(server) as clients:
            kinds = [(codec, deflate) for codec in ("json", "msgpack") for deflate in (True, False)]
            watchers = [
                await clients.online(f"user_{number}", codec=codec, deflate=deflate)
                for number, (codec, deflate) in enumerate(kinds * 5)
            ]
            room = await clients.connect("in_the_room", codec="msgpack", public=False)
            await room.do("subscribe", rooms=["studio"])
            watching = await clients.connect("watching", public=False)
            await watching.do("subscribe", user_ids=["kol_1", "user_1"])
            for client in clients.all:
                client.keep_beating(BEAT)
            kol_1 = await clients.online("kol_1", "kol", room_id="studio")
            latencies = []
            for status in ("busy", "away", "online", "busy"):
                begun_s = time.monotonic()
                await kol_1.do("status_change", status=status)
                sights = await asyncio.gather(*[each.sees("kol_1", status) for each in [*watchers, room, watching]])
                latencies += [sight.at_s - begun_s for sight in sights]
            assert statistics.median(latencies) < 0.05
            sent = await watchers[1].do("message", to_user_id="kol_1", message="grüß dich" * 100)
            assert sent["delivered"] == 1
            assert (await kol_1.take("message"))["message"] == "grüß dich" * 100
            await kol_1.ping()
            # Cut and back: nobody notices.
            await kol_1.cut()
            server.event("user online", user_id="kol_1")
            back = await clients.online("kol_1", "kol", room_id="studio", status="busy", view=kol_1.view)
            await back.beat()
            for watcher in watchers:
                assert watcher.view.statuses("kol_1")[-1] == "busy"
                assert "offline" not in watcher.view.statuses("kol_1")
            # A call, and the end of it by an administrator.
            await back.do("status_change", status="online")
            await watchers[1].do("call", call_id="c", to_user_id="kol_1", video=True, audio=True)
            await back.take("call", call_id="c")
            await back.do("call_accept", call_id="c")
            await watchers[1].take("call_accept", call_id="c")
            assert server.http("DELETE", "/api/online-status/users/kol_1/sessions")[1]["disconnected"] == 1
            assert await back.ended() == 4010
            assert (await watchers[1].take("call_end", call_id="c"))["reason"] == "offline"
            for watcher in [*watchers, room, watching]:
                await watcher.sees("kol_1", "offline")

    asyncio.run(story())


def test_a_snapshot_of_many_pages_and_a_message_of_the_largest_size_come_whole(
    start: Start, certificate: Certificate
) -> None:
    server = begin(start, certificate, presence__heartbeat_timeout=60, limits__rate=10_000, limits__burst=10_000)
    count = 700

    async def story() -> None:
        async with Clients(server) as clients:
            watched = [f"user_{'x' * 60}{number}" for number in range(count)]
            watcher = await clients.connect("watcher")
            await watcher.do("subscribe", user_ids=watched)
            await watcher.until(lambda: len(watcher.view.known) == count, "all of the watched")
            receiver = await clients.online("receiver")
            await watcher.do("user_online")
            text = "x" * 8192
            for _ in range(5):
                await watcher.do("message", to_user_id="receiver", message=text)
                assert (await receiver.take("message"))["message"] == text

    asyncio.run(story())


def test_every_close_has_its_code(start: Start, certificate: Certificate) -> None:
    server = begin(start, certificate)

    async def story() -> None:
        async with RawClient.upgraded(server, "user_1") as raw:
            raw.send_frame(RawClient.TEXT, b"\xff")
            assert await raw.closed() == 1007
        async with RawClient.upgraded(server, "user_1") as raw:
            raw.send_frame(RawClient.TEXT, b"{}", masked=False)
            assert await raw.closed() == 1002
        async with RawClient.upgraded(server, "user_1") as raw:
            raw.send_frame(RawClient.BINARY, b"", claimed=1 << 40)
            assert await raw.closed() == 1009
        async with RawClient.upgraded(server, "user_1") as raw:
            raw.send_frame(RawClient.BINARY, b"{}")
            assert await raw.closed() == 1003
        async with RawClient.upgraded(server, "user_1") as raw:
            raw.send_frame(RawClient.CLOSE, b"\x0f\xa5bye")
            assert await raw.closed() == 0x0FA5
        async with Clients(server) as clients:
            client = await clients.online("user_2")
            await client.do("user_offline")
            assert await client.ended() == 1000

    asyncio.run(story())


def test_silence_is_ended_with_4008_and_an_expired_token_with_4001(start: Start, certificate: Certificate) -> None:
    server = begin(start, certificate, presence__heartbeat_interval=0.3, presence__heartbeat_timeout=0.9)

    async def story() -> None:
        async with Clients(server) as clients:
            watcher = await clients.connect("watcher")
            watcher.keep_beating(BEAT)
            await watcher.do("subscribe", user_ids=["silent"])
            silent = await clients.online("silent")
            assert await silent.ended() == 4008
            assert time.monotonic() - silent.last_answer_s >= 0.9 - 0.002
            assert time.monotonic() - silent.last_sent_s <= 0.9 + TICK + 2 * SLACK
            await watcher.sees("silent", "offline")
            token = server.token("brief", expire_time=2)
            brief = await clients.online("brief", token=token)
            brief.keep_beating(BEAT)
            assert await brief.ended() == 4001

    asyncio.run(story())


def test_a_slow_tls_reader_delays_nobody_and_is_caught_up_to_the_latest_state(
    start: Start, certificate: Certificate
) -> None:
    server = begin(
        start, certificate, presence__heartbeat_timeout=60, presence__flush_window_ms=1, limits__send_buffer=8192,
        limits__lag_time=60, limits__rate=10_000, limits__burst=10_000,
    )  # fmt: skip

    async def story() -> None:
        async with Stir.begin(server) as stir:
            everything = await stir.clients.connect("everything")
            slow = await stir.clients.connect("slow", receive_buffer=4096, deflate=False)
            await stir.all_seen_by(slow)
            slow.pause()
            frames_before = len(slow.frames)
            latencies = []
            for number in range(ROUNDS * 2):
                await stir.round(number)
                begun_s = time.monotonic()
                await stir.all_seen_by(everything)
                latencies.append(time.monotonic() - begun_s)
            assert sorted(latencies)[ROUNDS] < 0.05
            await stir.hosts[0].do("user_offline")
            await stir.hosts[0].ended()
            stir.last["kol_0"] = "offline"
            await everything.sees("kol_0", "offline")
            slow.resume()
            await stir.all_seen_by(slow)
            got = sum(len(frame["user_status"]) for _, frame in slow.frames[frames_before:] if "user_status" in frame)
            told = sum(len(frame["user_status"]) for frame in everything.came("user_online_status"))
            assert told > ROUNDS * HOSTS
            assert got < told * 0.75  # the rest was never kept for it
            await stir.round(ROUNDS * 2)
            await stir.all_seen_by(slow)
            await slow.beat()

    asyncio.run(story())


def test_a_tls_reader_that_is_behind_for_longer_than_lag_time_is_ended(start: Start, certificate: Certificate) -> None:
    server = begin(
        start, certificate, presence__heartbeat_timeout=60, presence__flush_window_ms=1, limits__send_buffer=8192,
        limits__lag_time=1, limits__rate=10_000, limits__burst=10_000,
    )  # fmt: skip

    async def story() -> None:
        async with Stir.begin(server) as stir:
            slow = await stir.clients.online("slow", receive_buffer=4096, deflate=False)
            slow.pause()
            slow.keep_beating(0.1)
            begun_s = time.monotonic()
            number = 0
            while not server.logged("slow reader", user_id="slow"):
                await stir.round(number)
                number += 1
                await asyncio.sleep(0.01)
                assert time.monotonic() - begun_s < 15
            assert time.monotonic() - begun_s >= 1 - 0.002
            slow.resume()
            assert await slow.ended() in (4009, 1006)
            await slow.stop_beating()

    asyncio.run(story())


def test_plain_text_on_the_tls_port_is_cut_off_and_served_nothing(start: Start, certificate: Certificate) -> None:
    server = begin(start, certificate)
    for said in (b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n", b"\x00" * 100, bytes(range(256)) * 300):
        with plain(server) as connection:
            with contextlib.suppress(ConnectionError):
                connection.sendall(said)
            assert b"HTTP" not in read_all(connection)
    server.event("rejected handshake", reason="TLS")
    shake(server).close()


def read_all(connection: socket.socket) -> bytes:
    """Everything up to the end, which has to come."""
    came = b""
    with contextlib.suppress(ConnectionError):
        while data := connection.recv(65_536):
            came += data
    return came


def test_tls_1_2_and_1_3_are_spoken_and_nothing_older(start: Start, certificate: Certificate) -> None:
    server = begin(start, certificate)
    for version, name in ((ssl.TLSVersion.TLSv1_2, "TLSv1.2"), (ssl.TLSVersion.TLSv1_3, "TLSv1.3")):
        context = trusting(certificate.cert)
        context.minimum_version = context.maximum_version = version
        with shake(server, context) as connection:
            assert connection.version() == name
            assert connection.selected_alpn_protocol() == "http/1.1"
            assert connection.compression() is None
            cipher = connection.cipher()
            assert cipher is not None
            assert "GCM" in cipher[0] or "CHACHA20" in cipher[0]
    old = trusting(certificate.cert)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        old.minimum_version = ssl.TLSVersion.TLSv1
        old.maximum_version = ssl.TLSVersion.TLSv1_1
    old.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.raises(ssl.SSLError) as refused:
        shake(server, old)
    # It is the server that does not want to (uvloop closes without an alert); a client that can't says so otherwise.
    assert isinstance(refused.value, ssl.SSLEOFError) or "ALERT" in str(refused.value)
    weak = trusting(certificate.cert)
    weak.maximum_version = ssl.TLSVersion.TLSv1_2
    weak.set_ciphers("AES128-SHA:AES256-GCM-SHA384:ECDHE-ECDSA-AES128-SHA:@SECLEVEL=0")
    with pytest.raises(ssl.SSLError):
        shake(server, weak)


def test_whoever_says_nothing_or_half_of_it_is_cut_off_in_time(start: Start, certificate: Certificate) -> None:
    server = begin(start, certificate, limits__connect_timeout=0.5)
    hello = client_hello()
    for said in (b"", hello[:5], hello[:-1]):
        with plain(server) as connection:
            connection.sendall(said)
            assert 0.4 < seconds_until_cut_off(connection) < 0.5 + TICK + SLACK
    with shake(server) as connection:  # all of TLS, and then nothing
        assert 0.4 < seconds_until_cut_off(connection) < 0.5 + TICK + 1 + SLACK
    with shake(server) as connection:  # half a request
        connection.sendall(b"GET /ws HTTP/1.1\r\nHost: a\r\n")
        assert 0.4 < seconds_until_cut_off(connection) < 0.5 + TICK + 1 + SLACK


def test_a_crowd_that_never_finishes_its_handshakes_keeps_nobody_waiting(
    start: Start, certificate: Certificate
) -> None:
    # Found in review: 256 silent connections kept newcomers out until they were cut off.
    server = begin(start, certificate)  # who has to wait for the others' end waits for ten seconds

    async def story() -> None:
        async with Clients(server) as clients:
            crowd = [plain(server) for _ in range(300)]
            for connection, said in zip(crowd, [b"", client_hello()[:-1], client_hello()] * 100, strict=True):
                connection.sendall(said)
            try:
                token = await asyncio.to_thread(server.token, "newcomer")
                await clients.online("newcomer", token=token)
                assert hung_up(crowd) <= 100  # who said a hello was answered; of the others all are still there
            finally:
                for connection in crowd:
                    connection.close()

    asyncio.run(story())


def test_a_crowd_s_hellos_keep_one_of_another_network_waiting_for_a_turn_and_all_are_answered(
    certificate: Certificate,
) -> None:
    world = World(server=ServerSettings(tls_cert=str(certificate.cert), tls_key=str(certificate.key)))

    def says_hello(source: str) -> socket.socket:
        sock = socket.create_connection(world.listener.getsockname(), DEADLINE, source_address=(source, 0))
        sock.sendall(client_hello())
        return sock

    async def until(count: Callable[[], bool]) -> None:
        async with asyncio.timeout(DEADLINE):
            while not count():
                await asyncio.sleep(0)

    async def story() -> None:
        # All of them are there before the worker looks, in this order.
        crowd = [says_hello("127.0.0.2") for _ in range(200)]
        newcomer = says_hello("127.0.0.3")
        await until(lambda: hung_up([newcomer]) == 1)
        assert hung_up(crowd) < 100
        await until(lambda: hung_up(crowd) == 200)
        for each in (*crowd, newcomer):
            each.close()
        await until(lambda: world.stat("connections") == 0)
        front = world.worker.tls
        assert front is not None
        await until(lambda: not (front._silent or front._waiting or front._begun or front._under_way))

    try:
        world.loop.run_until_complete(story())
    finally:
        world.close()


def test_beyond_the_limit_of_connections_nobody_is_served_until_one_leaves(
    start: Start, certificate: Certificate
) -> None:
    server = begin(start, certificate, limits__connections=3, presence__heartbeat_timeout=60)
    tokens = [server.token(f"user_{number}") for number in range(4)]

    async def story() -> None:
        async with Clients(server) as clients:
            first = [await clients.online(f"user_{number}", token=tokens[number]) for number in range(3)]
            for _ in range(5):
                with shake(server) as extra:
                    extra.sendall(b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n")
                    assert read_all(extra).startswith(b"HTTP/1.1 503 ")
            for client in first:
                await client.beat()
            await first[0].close()
            for _ in range(100):
                with contextlib.suppress(OSError, EOFError):
                    async with RawClient.open(server) as raw:
                        raw.send(RawClient.upgrade_request(tokens[3]))
                        status = (await raw.response())[0]
                        assert status in (101, 503)  # the place is free when the one who left is wholly gone
                        if status == 101:
                            return
                await asyncio.sleep(0.02)
            raise AssertionError("the place that came free is never given")

    asyncio.run(story())


@pytest.mark.long
def test_over_the_limit_of_an_address_the_answer_is_429_and_half_a_handshake_counts(
    start: Start, certificate: Certificate
) -> None:
    server = begin(start, certificate, limits__connections_per_address=2, limits__connect_timeout=6)

    def turned_away() -> bytes:
        with shake(server) as extra:
            with contextlib.suppress(OSError):  # it is over already
                extra.sendall(b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n")
            return read_all(extra)

    with plain(server) as silent, plain(server) as half:
        half.sendall(client_hello()[:40])
        answer = turned_away()
        assert answer.startswith(b"HTTP/1.1 429 ")
        assert b"Retry-After: " in answer
        assert b'"code":"too_many"' in answer
        # Their time runs from the accept; then there is room again.
        for each in (silent, half):
            seconds_until_cut_off(each)
    assert not turned_away().startswith(b"HTTP/1.1 429 ")
    assert server.event("rejected handshake", status=429)["count"] >= 1


def test_a_crowd_over_the_limit_of_its_address_is_hung_up_on_and_others_are_served(
    start: Start, certificate: Certificate
) -> None:
    server = begin(start, certificate, limits__connections_per_address=50, limits__connect_timeout=5)
    crowd = [plain(server) for _ in range(200)]
    try:
        # Those within the limit are waited for; of the others a few would be told so, the rest is hung up on.
        end_s = time.monotonic() + DEADLINE
        while hung_up(crowd) < 150 - REFUSALS:
            assert time.monotonic() < end_s
            time.sleep(0.01)
        assert hung_up(crowd) <= 150
        with shake(server, source="127.0.0.2") as elsewhere:
            elsewhere.sendall(b"GET /nowhere HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
            assert read_all(elsewhere).startswith(b"HTTP/1.1 404 ")
    finally:
        for each in crowd:
            each.close()


def test_a_new_certificate_is_for_new_connections_and_old_ones_live_on(start: Start, tmp_path: Path) -> None:
    old = certify(tmp_path)
    server = begin(start, old, presence__heartbeat_timeout=60)

    async def story() -> None:
        async with Clients(server) as clients:
            client = await clients.online("user_1")
            new = certify(tmp_path)
            assert new.der != old.der
            with shake(server) as connection:
                assert connection.getpeercert(binary_form=True) == old.der
            server.signal(signal.SIGHUP)
            await asyncio.to_thread(server.event, "reloaded", generation=1)
            with shake(server, trusting(new.cert)) as connection:
                assert connection.getpeercert(binary_form=True) == new.der
            with pytest.raises(ssl.SSLCertVerificationError):
                shake(server)
            await client.beat()
            # What is no certificate changes nothing.
            server.expect("reload refused")
            new.cert.write_text("no certificate")
            server.signal(signal.SIGHUP)
            line = await asyncio.to_thread(server.event, "reload refused")
            assert "server.tls_cert" in str(line["reason"])
            with shake(server, trusting_der(tmp_path, new.der)) as connection:
                assert connection.getpeercert(binary_form=True) == new.der
            await client.beat()

    asyncio.run(story())


def trusting_der(folder: Path, der: bytes) -> ssl.SSLContext:
    path = folder / "trusted.crt"
    path.write_text(ssl.DER_cert_to_PEM_cert(der))
    return trusting(path)


def serve_once(**settings: str) -> subprocess.CompletedProcess[str]:
    """A server that is not meant to start."""
    ours = {f"FASTPRESENCE_{name.upper()}": value for name, value in settings.items()}
    clean = {name: value for name, value in os.environ.items() if not name.startswith("FASTPRESENCE_")}
    return subprocess.run(
        [sys.executable, "-m", "fastpresence", "serve", "--port", "0", "--log-format", "json"],
        env={
            **clean, "FASTPRESENCE_AUTH_TOKEN_KEYS": f"k1:{TOKEN_SECRET}", "FASTPRESENCE_AUTH_API_KEYS": API_KEY,
            "FASTPRESENCE_DATABASE_URL": "none", "FASTPRESENCE_SERVER_HOST": "127.0.0.1",
            "FASTPRESENCE_ADMIN_PORT": "0", **ours,
        },
        cwd=ROOT, capture_output=True, text=True, timeout=DEADLINE * 2, check=False,
    )  # fmt: skip


def test_a_certificate_that_cannot_be_used_is_one_line_at_the_start_and_exit_1(
    certificate: Certificate, tmp_path: Path
) -> None:
    other = certify(tmp_path, "other")
    garbage = tmp_path / "garbage.pem"
    garbage.write_text("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    for cert, key in (
        (tmp_path / "missing.crt", certificate.key),
        (certificate.cert, tmp_path / "missing.key"),
        (garbage, certificate.key),
        (certificate.cert, other.key),  # another's
        (certificate.key, certificate.cert),
    ):
        done = serve_once(server_tls_cert=str(cert), server_tls_key=str(key))
        assert done.returncode == 1, done
        lines = [line for line in done.stderr.splitlines() if not is_warning(line)]
        assert len(lines) == 1, done.stderr
        assert "server.tls_cert" in lines[0]
        assert "Traceback" not in done.stderr
    half = serve_once(server_tls_cert=str(certificate.cert))
    assert half.returncode != 0
    assert "server.tls_key" in half.stderr


def is_warning(line: str) -> bool:
    try:
        event: Any = json.loads(line)
    except ValueError:
        return False
    return bool(event.get("level") == "warning")
