"""The two servers of every comparison: the real one, started as a user would start it, and the C limit.

Both are pinned to the same CPU; the swarm, this driver and the node process share another one. Only the one that is
measured is driven: a server that nobody talks to costs nothing. What is charged is the process that holds the sockets:
for the real server the worker, not the node process.

Each server gets a session of its own: the kernel shares a busy core between sessions, not processes, and a server in
the session of the spinning swarm would be preempted more often than the other one.

Every process started here is ended here, by its own id.
"""

import contextlib
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from bench.load import procfs
from bench.load.build import program
from bench.load.sampler import Sampler
from bench.load.setting import Setting
from bench.load.tokens import SECRET
from bench.outcome import BenchError

__all__ = ["API_KEY", "LIMITS_OFF", "LONG_SILENCE", "Server", "end", "limit", "real"]

START_TIMEOUT_S: Final = 20
END_TIMEOUT_S: Final = 10
OBSERVER_TIMEOUT_S: Final = 30
API_KEY: Final = f"api-{SECRET}"
#: A swarm sends more on one connection than any client may; the check itself stays in.
LIMITS_OFF: Final = {"FASTPRESENCE_LIMITS_RATE": "1000000", "FASTPRESENCE_LIMITS_BURST": "1000000"}
#: Observers of the swarm only listen; the deadline is still kept for each of them.
LONG_SILENCE: Final = {
    "FASTPRESENCE_PRESENCE_HEARTBEAT_INTERVAL": "1800",
    "FASTPRESENCE_PRESENCE_HEARTBEAT_TIMEOUT": "3600",
}


def _set() -> threading.Event:
    event = threading.Event()
    event.set()
    return event


@dataclass(frozen=True)
class Server:
    """A running server. `pid` is the process that holds the sockets."""

    name: str
    port: int
    pid: int
    is_real: bool
    log: Path | None = None
    dialect: str = "raw"  #: how the swarm speaks to it when it is not real
    sampler: Sampler | None = None
    loaded: threading.Event = field(default_factory=threading.Event)  #: set when the first run begins
    awaited: threading.Event = field(default_factory=_set)  #: not set: whoever looks on is not ready to

    def begin_load(self) -> None:
        """A run begins; the first one waits for whoever looks on."""
        self.loaded.set()
        self.awaited.wait(OBSERVER_TIMEOUT_S)

    def sampled(self) -> AbstractContextManager[None]:
        """Its memory is looked at while the context lasts."""
        return self.sampler.running() if self.sampler is not None else contextlib.nullcontext()

    def complaints(self) -> list[str]:
        """What the server logged: at this level, nothing good."""
        if self.log is None:
            return []
        lines = self.log.read_text(errors="replace").splitlines()
        return [line for line in lines if line.strip()]


@contextlib.contextmanager
def limit(setting: Setting, name: str = "C limit", *, join: bool = False) -> Iterator[Server]:
    """The C limit; `join`: it sends all that one turn has for a connection at once."""
    command = [str(program("epoll_server")), "--port", "0", *(["--join"] if join else [])]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        procfs.pin(process.pid, setting.cpus.server)
        assert process.stdout is not None
        words = process.stdout.readline().split()
        if len(words) != 2:
            raise BenchError("the C server did not start")
        server = Server(name, int(words[1]), process.pid, is_real=False, sampler=Sampler(process.pid))
        with server.sampled():
            yield server
    finally:
        end(process)


@contextlib.contextmanager
def real(setting: Setting, settings: Mapping[str, str], name: str = "fastpresence") -> Iterator[Server]:
    """fastpresence with one worker, no database, and `settings` (environment variables) on top."""
    cpus, directory = setting.cpus, setting.directory
    env = {name: value for name, value in os.environ.items() if not name.startswith("FASTPRESENCE_")}
    env |= {
        "FASTPRESENCE_AUTH_TOKEN_KEYS": f"k1:{SECRET}",
        "FASTPRESENCE_AUTH_API_KEYS": API_KEY,
        "FASTPRESENCE_DATABASE_URL": "none",
        "FASTPRESENCE_SERVER_HOST": "127.0.0.1",
        "FASTPRESENCE_SERVER_DRAIN_TIME": "0",
        "FASTPRESENCE_ADMIN_PORT": "0",
        "FASTPRESENCE_LOG_LEVEL": "warning",
        "XDG_STATE_HOME": str(directory),
        **LIMITS_OFF,
        **settings,
    }
    log = directory / f"server-{time.monotonic_ns()}.log"
    command = [sys.executable, "-m", "fastpresence", "serve", "--port", "0", "--workers", "1"]
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, env=env, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        )
    worker: int | None = None
    try:
        procfs.pin(process.pid, cpus.swarm)
        port, worker = _wait_until_up(process, log, secure="FASTPRESENCE_SERVER_TLS_CERT" in settings)
        procfs.pin(worker, cpus.server)
        server = Server(name, port, worker, is_real=True, log=log, sampler=Sampler(worker))
        with server.sampled(), setting.observe(server) if setting.observe else contextlib.nullcontext():
            yield server
    finally:
        end(process)
        if worker is not None:
            _end_orphan(worker)


def _wait_until_up(process: "subprocess.Popen[bytes]", log: Path, *, secure: bool) -> tuple[int, int]:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise BenchError(f"fastpresence ended at once, code {process.returncode}:\n{_tail(log)}")
        for pid, command in procfs.descendants(process.pid):
            # The line that says `listening` is below the level logged here; the socket itself is the surer sign.
            ports = procfs.listening_ports(pid) if "fastpresence.worker" in command else []
            if ports and _answers(ports[0], secure=secure):
                return ports[0], pid
        time.sleep(0.02)
    raise BenchError(f"fastpresence was not up within {START_TIMEOUT_S} s:\n{_tail(log)}")


def _answers(port: int, *, secure: bool) -> bool:
    """Whether the worker has finished its start: it answers a question, asked with the key so that it logs nothing."""
    request = f"GET /api/online-status/nobody HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {API_KEY}\r\n\r\n"
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=START_TIMEOUT_S) as connection:
            if not secure:
                connection.sendall(request.encode())
                return bool(connection.recv(1))
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # our own, of this minute
            with context.wrap_socket(connection) as wrapped:
                wrapped.sendall(request.encode())
                return bool(wrapped.recv(1))
    except OSError:
        return False


def _tail(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-12:])


def end(process: "subprocess.Popen[bytes] | subprocess.Popen[str]") -> None:
    """Its end, by its own id: asked first, then made."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(END_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    if process.stdout is not None:
        process.stdout.close()


def _end_orphan(worker: int) -> None:
    """A worker that outlived its node process, which must not happen, is ended all the same."""
    try:
        command = Path(f"/proc/{worker}/cmdline").read_bytes()
        if b"fastpresence.worker" in command:
            os.kill(worker, signal.SIGKILL)
    except (FileNotFoundError, ProcessLookupError):
        pass
