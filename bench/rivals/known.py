"""Which rivals there are, how each is got, started and spoken to.

Each listens on the loopback address, is one process that holds all sockets, and is pinned to the server's CPU; Go and
node are told that they have one. What each is told for speed is said beside it, with the place that advises it.
"""

import contextlib
import functools
import importlib.util
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from ctypes.util import find_library
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from bench.load import procfs
from bench.load.build import BUILD
from bench.load.sampler import Sampler
from bench.load.servers import Server, end
from bench.load.setting import Setting
from bench.outcome import BenchError

__all__ = ["RIVALS", "Rival", "running"]

HERE: Final = Path(__file__).resolve().parent
START_TIMEOUT_S: Final = 20


@dataclass(frozen=True)
class Rival:
    """One server that is not ours."""

    name: str
    hint: str  #: how to get it
    command: Callable[[int, Path], list[str]]  #: port, a folder of its own
    missing: Callable[[], bool]
    dialect: str = "raw"
    env: dict[str, str] = field(default_factory=dict)
    holder: str = ""  #: what the command line of the process that holds the sockets has in it, when it is a child
    lacks: Callable[[], str] = str  #: what its documentation advises and is not here; empty: nothing

    @property
    def label(self) -> str:
        """Its name, and what it has to do without."""
        lacks = self.lacks()
        return f"{self.name} without {lacks}" if lacks else self.name

    @property
    def answers(self) -> bool:
        """Whether it answers who speaks to it, or only passes on."""
        return self.dialect != "nchan"


def _no_module(name: str) -> Callable[[], bool]:
    return lambda: importlib.util.find_spec(name) is None


def _program(name: str) -> str | None:
    return shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin")


def _no_program(name: str) -> Callable[[], bool]:
    return lambda: _program(name) is None


def _python(file: str) -> Callable[[int, Path], list[str]]:
    return lambda port, _: [sys.executable, str(HERE / file), str(port)]


def _configured(program: str, text: str, *words: str) -> Callable[[int, Path], list[str]]:
    """A program with a configuration file, written from a text with {port} and {folder} in it."""

    def command(port: int, folder: Path) -> list[str]:
        file = folder / "config"
        file.write_text(text.replace("{port}", str(port)).replace("{folder}", str(folder)))
        return [_program(program) or program, *(word.replace("{file}", str(file)) for word in words)]

    return command


NODE_ENV: Final = {"NODE_PATH": str(BUILD / "node_modules"), "NODE_ENV": "production"}


@functools.cache
def _node_has(module: str) -> bool:
    """Whether node can load it: it is native code, for which there may be no build here."""
    result = subprocess.run(["node", "-e", f"require('{module}')"], env=os.environ | NODE_ENV, capture_output=True)
    return result.returncode == 0


NCHAN_MODULE: Final = Path("/usr/lib/nginx/modules/ngx_nchan_module.so")
#: nchan.io, "Performance": memory store, no Redis, few messages kept; nginx's own: no access log, one worker a core.
NCHAN: Final = """
load_module modules/ngx_nchan_module.so;
worker_processes 1;
worker_rlimit_nofile 20000;
daemon off;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
events { worker_connections 19000; }
http {
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    nchan_shared_memory_size 128M;
    server {
        listen 127.0.0.1:{port} backlog=4096;
        location = /ws {
            nchan_pubsub websocket;
            nchan_channel_id updates;
            nchan_subscriber_first_message newest;
            nchan_message_buffer_length 64;
            nchan_websocket_ping_interval 0;
        }
    }
}
"""
#: docs.nats.io, "WebSocket Configuration": compression off costs least CPU. No pings of its own while it is measured.
NATS: Final = """
listen: "127.0.0.1:-1"
max_connections: 19000
ping_interval: "1h"
websocket { listen: "127.0.0.1:{port}", no_tls: true, compression: false }
"""
#: mosquitto.conf(5): no persistence, no `$SYS` statistics, TCP_NODELAY for latency, logs of errors only. Version 2.0
#: does not start with WebSocket listeners alone: the Unix socket is for that.
MOSQUITTO: Final = """
listener 0 {folder}/socket
listener {port} 127.0.0.1
protocol websockets
allow_anonymous true
persistence false
sys_interval 0
set_tcp_nodelay true
max_queued_messages 0
log_type error
connection_messages false
user root
"""

RIVALS: Final = (
    Rival(
        "picows", "pip install picows (fastpresence's own client has it)", _python("picows_server.py"),
        _no_module("picows"),
    ),
    Rival("websockets", "pip install -e '.[bench]'", _python("websockets_server.py"), _no_module("websockets")),
    Rival(
        "socketify", "pip install -e '.[bench]'; its library needs libuv (Debian: apt-get install libuv1)",
        _python("socketify_server.py"), lambda: _no_module("socketify")() or find_library("uv") is None,
    ),
    Rival(
        "nchan", "Debian: apt-get install nginx libnginx-mod-nchan (no service needs to run)",
        _configured("nginx", NCHAN, "-e", "stderr", "-c", "{file}"),
        lambda: _program("nginx") is None or not NCHAN_MODULE.exists(), dialect="nchan", holder="worker process",
    ),
    Rival(
        "nats-server", "Debian: apt-get install nats-server (no service needs to run)",
        _configured("nats-server", NATS, "-c", "{file}"), _no_program("nats-server"), dialect="nats",
        env={"GOMAXPROCS": "1"},
    ),
    Rival(
        "mosquitto", "Debian: apt-get install mosquitto (no service needs to run)",
        _configured("mosquitto", MOSQUITTO, "-c", "{file}"), _no_program("mosquitto"), dialect="mqtt",
    ),
    Rival(
        "node ws", f"node 18 or newer, and: npm install --prefix {BUILD.relative_to(HERE.parents[1])} ws bufferutil",
        lambda port, _: ["node", str(HERE / "ws_server.cjs"), str(port)],
        lambda: _program("node") is None or not (BUILD / "node_modules" / "ws").is_dir(),
        env=NODE_ENV, lacks=lambda: "" if _node_has("bufferutil") else "bufferutil",
    ),
)  # fmt: skip


@contextlib.contextmanager
def running(setting: Setting, rival: Rival) -> Iterator[Server]:
    """The rival, up and pinned to the server's CPU."""
    folder = setting.directory / rival.name.replace(" ", "-")
    folder.mkdir(exist_ok=True)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    log = folder / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            rival.command(port, folder),
            env=os.environ | rival.env,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        procfs.pin(process.pid, setting.cpus.server)
        _wait_until_up(rival, process, port, log)
        holder = process.pid
        for pid, command in procfs.descendants(process.pid) if rival.holder else ():
            holder = pid if rival.holder in command else holder
        for pid in {process.pid, holder}:
            procfs.pin(pid, setting.cpus.server)
        server = Server(rival.label, port, holder, is_real=False, dialect=rival.dialect, sampler=Sampler(holder))
        with server.sampled():
            yield server
    finally:
        end(process)


def _wait_until_up(rival: Rival, process: "subprocess.Popen[bytes]", port: int, log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.05)
    words = "\n".join(log.read_text(errors="replace").splitlines()[-6:])
    raise BenchError(f"{rival.name} was not up within {START_TIMEOUT_S} s, code {process.poll()}:\n{words}")
