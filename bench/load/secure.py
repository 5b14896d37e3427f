"""What TLS costs: the same beats, the same deltas and the same server, once plain and once encrypted.

The swarm speaks no TLS. The clients here are picows on uvloop, in this process, a few hundred of them: slower than the
swarm by far, but what is measured is the server's CPU time, and the same clients stand on either side.
"""

import asyncio
import datetime
import ipaddress
import os
import ssl
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import uvloop
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from picows import WSCloseCode, WSFrame, WSListener, WSMsgType, WSTransport, ws_connect

from bench.load import procfs
from bench.load.driver import Run
from bench.load.pairs import COMMON, COST_COLUMNS, SILENCE, alternate, complaints, find_pace
from bench.load.rule import Share
from bench.load.servers import LONG_SILENCE, Server, real
from bench.load.setting import Setting
from bench.load.tokens import token
from bench.outcome import Outcome

__all__ = ["tls"]

TIMEOUT_S = 30.0
PARALLEL = 32  #: handshakes of ours in progress


class Crowd:
    """All clients at one server, and what they do: every one beats, or a host changes and every one listens."""

    def __init__(self, server: Server, context: ssl.SSLContext | None) -> None:
        self.server = server
        self.context = context
        self.clients: list[Client] = []
        self.operations = 0
        self.sent = 0
        self.frame_bytes = 0
        self.errors = 0
        self.lost = 0
        self.spontaneous = False  #: what is next follows what was answered: no pace
        self.bring_up_us = 0.0
        self.memory_bytes = 0.0
        self._seen = 0
        self._changes = 0

    async def connect(self, clients: int) -> None:
        gate = asyncio.Semaphore(PARALLEL)
        empty, before = procfs.memory(self.server.pid), procfs.cpu_ns(self.server.pid)

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
        await asyncio.sleep(0.5)
        self.memory_bytes = (procfs.memory(self.server.pid) - empty).pss / clients

    async def leave(self) -> None:
        for client in self.clients:
            if client.transport is not None:
                client.transport.send_close(WSCloseCode.OK)
        await asyncio.sleep(0.2)

    def heartbeats(self) -> None:
        """Everybody beats; without a pace once more when it is answered."""
        for client in self.clients[1:]:
            client.say(BEAT)

    def fanout(self) -> None:
        """The host changes; without a pace once more when all have heard of it."""
        self._seen = 0
        self._changes += 1
        self.clients[0].say(BUSY if self._changes % 2 else ONLINE)

    def saw(self) -> None:
        self._seen += 1
        if self._seen == len(self.clients) - 1 and self.spontaneous:
            self.fanout()

    async def run(self, mode: str, seconds: float, warmup_s: float, pace_ms: float) -> Run:
        """As a swarm does it: rounds `pace_ms` apart, or (0) as fast as it goes."""
        begin = {"heartbeats": self.heartbeats, "fanout": self.fanout}[mode]
        await asyncio.to_thread(self.server.begin_load)
        self.spontaneous = not pace_ms
        rounds = asyncio.create_task(self._paced(begin, pace_ms / 1000))
        begin()
        await asyncio.sleep(warmup_s)
        before = (self.operations, self.sent, self.frame_bytes, procfs.cpu_ns(self.server.pid))
        began, load = time.monotonic(), Share(os.getpid())
        await asyncio.sleep(seconds)
        after = (self.operations, self.sent, self.frame_bytes, procfs.cpu_ns(self.server.pid))
        share, elapsed = load.now(), time.monotonic() - began
        self.spontaneous = False
        rounds.cancel()
        await asyncio.sleep(0.2)  # what is in flight
        operations, sent, frame_bytes, cpu_ns = (b - a for a, b in zip(before, after, strict=True))
        return Run(
            mode=mode, seconds=elapsed, operations=operations, server_cpu_ns=cpu_ns, sent=sent, frames=operations,
            frame_bytes=frame_bytes, entries=operations if mode == "fanout" else 0, compressed=0, errors=self.errors,
            lost=self.lost, unfinished=False, swarm_cpu=share, swarm_busy=share,
        )  # fmt: skip

    async def _paced(self, begin: Callable[[], None], pace_s: float) -> None:
        due = time.monotonic()
        while pace_s:
            due += pace_s
            await asyncio.sleep(due - time.monotonic())
            begin()


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
            self.crowd.sent += 1
            self.transport.send(WSMsgType.TEXT, payload)

    def on_ws_connected(self, transport: WSTransport) -> None:
        self.transport = transport
        self.say(b'{"type":"user_online","id":1}')

    def on_ws_disconnected(self, transport: WSTransport) -> None:
        self.transport = None
        self.crowd.lost += 1

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        said = frame.get_payload_as_bytes()
        if b'"type":"user_online_status"' in said:
            if b'"full":true' not in said:
                self._counts(said)
                self.crowd.saw()
        elif b'"type":"heartbeat_ack"' in said:
            self._counts(said)
            if self.crowd.spontaneous:
                self.say(BEAT)
        elif b'"type":"ack"' in said and not self.ready.done():
            self.ready.set_result(None)
        elif b'"type":"error"' in said:
            self.crowd.errors += 1

    def _counts(self, said: bytes) -> None:
        self.crowd.operations += 1
        self.crowd.frame_bytes += len(said) + (2 if len(said) < 126 else 4)


def tls(setting: Setting) -> Outcome:
    clients, pairs = setting.size(400, 20), setting.size(7, 2)
    seconds, warmup_s = setting.seconds(2.0, 0.3), setting.seconds(0.4, 0.1)
    outcome = Outcome(
        "tls",
        "What does TLS cost the server: a heartbeat and its answer, a delivery, a newcomer, a connection's memory?",
        "a real network, handshakes that resume a session; clients are Python, so rates are theirs",
        f"{clients} present users and a host, TLS 1.3, ECDSA P-256; {pairs} pairs of {seconds} s; {COMMON}, {SILENCE}",
        list(COST_COLUMNS),
    )
    cert, key = certificate(setting.directory)
    paths = {"FASTPRESENCE_SERVER_TLS_CERT": str(cert), "FASTPRESENCE_SERVER_TLS_KEY": str(key)}
    with (
        real(setting, LONG_SILENCE | paths, "TLS") as secure,
        real(setting, LONG_SILENCE, "plain") as plain,
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as loop,
    ):
        veiled, bare = Crowd(secure, _trust()), Crowd(plain, None)
        for crowd in (veiled, bare):
            loop.run(crowd.connect(clients))
            outcome.notes.append(
                f"{crowd.server.name}: {crowd.memory_bytes / 1000:.1f} KB of user memory a connection, a newcomer "
                f"{crowd.bring_up_us:.0f} µs, once"
            )
        sides = ((secure, veiled), (plain, bare))
        for name, mode in (("a heartbeat and its answer", "heartbeats"), ("a delivery", "fanout")):

            def measure(crowd: Crowd, pace_ms: float, mode: str = mode) -> Run:
                return loop.run(crowd.run(mode, seconds, warmup_s, pace_ms))

            pace_ms = find_pace(setting, outcome, sides, clients, measure)
            runs = alternate(setting, outcome, sides, pairs, partial(measure, pace_ms=pace_ms), name)
            outcome.rows += runs.rows((f"{name}, TLS", f"{name}, plain"))
            outcome.notes.append(runs.note(f"{name}, TLS / plain"))
            runs.figures(outcome, f"{name} over TLS", "plain")
        for crowd in (veiled, bare):
            loop.run(crowd.leave())
            complaints(outcome, crowd.server)
    return outcome


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
