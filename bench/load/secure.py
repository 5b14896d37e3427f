"""What TLS costs: the same beats, the same deltas and the same server, once plain and once encrypted.

The swarm speaks no TLS. The clients here are picows on uvloop, in this process, a few hundred of them: slower than the
swarm by far, but what is measured is the server's CPU time, and the same clients stand on either side.
"""

import asyncio
import contextlib
import datetime
import ipaddress
import ssl
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from statistics import median

import uvloop
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from picows import WSCloseCode, WSFrame, WSListener, WSMsgType, WSTransport, ws_connect

from bench.load import procfs
from bench.load.pairs import COMMON, SILENCE, complaints
from bench.load.servers import LONG_SILENCE, Server, real
from bench.load.setting import Setting
from bench.load.tokens import token
from bench.outcome import BenchError, Outcome

__all__ = ["tls"]

TIMEOUT_S = 30.0
PARALLEL = 32  #: handshakes of ours in progress
ROUND_TIMEOUT_S = 5.0


class Crowd:
    """All clients at one server, and what they do: every one beats, or a host changes and every one listens."""

    def __init__(self, server: Server, context: ssl.SSLContext | None) -> None:
        self.server = server
        self.context = context
        self.clients: list[Client] = []
        self.operations = 0
        self.errors = 0
        self.driving = False
        self.bring_up_us = 0.0
        self._seen = 0
        self._changes = 0

    async def connect(self, clients: int) -> None:
        before, gate = procfs.cpu_ns(self.server.pid), asyncio.Semaphore(PARALLEL)

        async def one(number: int) -> Client:
            name = f"kol_{number:03}" if number == 0 else f"user_{number:05}"
            scheme = "ws" if self.context is None else "wss"
            url = f"{scheme}://127.0.0.1:{self.server.port}/ws?public={int(number != 0)}"
            headers = {"Authorization": f"Bearer {token(name, 'kol' if number == 0 else 'user')}"}
            async with gate:
                _, listener = await ws_connect(
                    lambda: Client(self), url, ssl_context=self.context, extra_headers=headers
                )
                assert isinstance(listener, Client)
                await asyncio.wait_for(listener.ready, TIMEOUT_S)
            return listener

        # The host is the first: everybody's snapshot holds it, and nobody is told of it.
        self.clients = [await one(0), *await asyncio.gather(*(one(number) for number in range(1, clients + 1)))]
        self.bring_up_us = (procfs.cpu_ns(self.server.pid) - before) / 1000 / clients

    def beat(self) -> None:
        for client in self.clients[1:]:
            client.say(BEAT)

    def change(self) -> None:
        self._seen = 0
        self._changes += 1
        self.clients[0].say(BUSY if self._changes % 2 else ONLINE)

    def saw(self) -> None:
        self.operations += 1
        self._seen += 1
        if self._seen == len(self.clients) - 1 and self.driving:
            self.change()

    async def measure(self, begin: Callable[[], None], seconds: float, warmup_s: float) -> tuple[float, float, float]:
        """Server CPU an operation in microseconds, operations a second, and this process's share of its core."""
        self.driving = True
        await asyncio.to_thread(self.server.begin_load)
        begin()
        await asyncio.sleep(warmup_s)
        operations, cpu = self.operations, procfs.cpu_ns(self.server.pid)
        began, own = time.monotonic(), time.process_time()
        await asyncio.sleep(seconds)
        operations, cpu = self.operations - operations, procfs.cpu_ns(self.server.pid) - cpu
        elapsed, own = time.monotonic() - began, time.process_time() - own
        self.driving = False
        await asyncio.sleep(0.2)  # what is in flight
        if not operations:
            raise BenchError(f"{self.server.name}: nothing was done")
        return cpu / 1000 / operations, operations / elapsed, own / elapsed


BEAT = b'{"type":"heartbeat"}'
BUSY = b'{"type":"status_change","status":"busy"}'
ONLINE = b'{"type":"status_change","status":"online"}'


class Client(WSListener):
    def __init__(self, crowd: Crowd) -> None:
        self.crowd = crowd
        self.ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.transport: WSTransport | None = None

    def say(self, payload: bytes) -> None:
        if self.transport is not None:
            self.transport.send(WSMsgType.TEXT, payload)

    def on_ws_connected(self, transport: WSTransport) -> None:
        self.transport = transport
        self.say(b'{"type":"user_online","id":1}')

    def on_ws_disconnected(self, transport: WSTransport) -> None:
        self.transport = None
        self.crowd.errors += 1

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        said = frame.get_payload_as_bytes()
        if b'"type":"user_online_status"' in said:
            if b'"full":true' not in said:
                self.crowd.saw()
        elif b'"type":"heartbeat_ack"' in said:
            self.crowd.operations += 1
            if self.crowd.driving:
                self.say(BEAT)
        elif b'"type":"ack"' in said and not self.ready.done():
            self.ready.set_result(None)
        elif b'"type":"error"' in said:
            self.crowd.errors += 1


def tls(setting: Setting) -> Outcome:
    clients, pairs = setting.size(400, 20), setting.size(7, 2)
    seconds, warmup_s = setting.seconds(2.0, 0.3), setting.seconds(0.4, 0.1)
    outcome = Outcome(
        "tls",
        "What does TLS cost the server: a heartbeat and its answer, a delivery, a newcomer, a connection's memory?",
        "a real network, handshakes that resume a session; clients are Python, so rates are theirs",
        f"{clients} present users and a host, TLS 1.3, ECDSA P-256; {pairs} pairs of {seconds} s; {COMMON}, {SILENCE}",
        ["server CPU, µs", "best", "median", "worst", "a second", "client busy"],
    )
    cert, key = certificate(setting.directory)
    paths = {"FASTPRESENCE_SERVER_TLS_CERT": str(cert), "FASTPRESENCE_SERVER_TLS_KEY": str(key)}
    with (
        real(setting, LONG_SILENCE) as plain,
        real(setting, LONG_SILENCE | paths) as secure,
    ):
        uvloop.run(_measure(outcome, plain, secure, clients, pairs, seconds, warmup_s))
        complaints(outcome, plain)
        complaints(outcome, secure)
    return outcome


async def _measure(
    outcome: Outcome, plain: Server, secure: Server, clients: int, pairs: int, seconds: float, warmup_s: float
) -> None:
    async with _crowd(outcome, plain, None, clients) as bare, _crowd(outcome, secure, _trust(), clients) as veiled:
        for name, what in (("heartbeat and answer", Crowd.beat), ("delivery", Crowd.change)):
            runs: tuple[list[tuple[float, float, float]], ...] = ([], [])
            for i in range(pairs):
                for which in (i % 2, 1 - i % 2):
                    crowd = (bare, veiled)[which]
                    figures = await crowd.measure(lambda c=crowd, w=what: w(c), seconds, warmup_s)  # type: ignore[misc]
                    runs[which].append(figures)
                    outcome.runs.append(
                        {"server": ("plain", "TLS")[which], "what": name, "us": figures[0], "a_second": figures[1]}
                    )
            for which, label in enumerate(("plain", "TLS")):
                costs = [cost for cost, _, _ in runs[which]]
                rate, busy = median(rate for _, rate, _ in runs[which]), max(busy for _, _, busy in runs[which])
                outcome.rows.append(
                    [
                        f"{name}, {label}",
                        *(f"{cost:.2f}" for cost in (min(costs), median(costs), max(costs))),
                        *(f"{rate:,.0f}", f"{busy:.2f}"),
                    ]
                )
            ratios = sorted(t[0] / p[0] for p, t in zip(*runs, strict=True))
            outcome.figure(f"{name} over TLS", "µs CPU", [cost for cost, _, _ in runs[1]])
            outcome.figure(f"{name} over TLS, beside plain", "times", ratios)
            outcome.notes.append(
                f"{name}: TLS / plain: median of {pairs} pairs {median(ratios):.2f} "
                f"({ratios[0]:.2f} to {ratios[-1]:.2f})"
            )
        outcome.notes.append(
            f"a newcomer, once each: {bare.bring_up_us:.0f} µs plain, {veiled.bring_up_us:.0f} µs over TLS"
        )
        for crowd in (bare, veiled):
            if crowd.errors:
                outcome.faults.append(f"{crowd.server.name}: {crowd.errors} errors or lost connections")


@contextlib.asynccontextmanager
async def _crowd(
    outcome: Outcome, server: Server, context: ssl.SSLContext | None, clients: int
) -> AsyncIterator[Crowd]:
    crowd = Crowd(server, context)
    empty = procfs.memory(server.pid)
    try:
        await crowd.connect(clients)
        await asyncio.sleep(0.5)
        growth = procfs.memory(server.pid) - empty
        outcome.notes.append(
            f"{'plain' if context is None else 'TLS'}: {growth.pss / clients / 1000:.1f} KB of user memory a connection"
        )
        yield crowd
    finally:
        for client in crowd.clients:
            if client.transport is not None:
                client.transport.send_close(WSCloseCode.OK)
        await asyncio.sleep(0.2)


def certificate(directory: Path) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 that nobody trusts, and its key, good for a day."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "fastpresence bench")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=5))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    cert_file, key_file = directory / "cert.pem", directory / "key.pem"
    cert_file.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    key_file.touch(mode=0o600)
    key_file.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return cert_file, key_file


def _trust() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context
