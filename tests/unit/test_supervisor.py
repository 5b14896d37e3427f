"""The node process, with real child processes and real signals. Every wait has a deadline."""

import contextlib
import http.client
import json
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import uvloop

from fastpresence.errors import StartError
from fastpresence.node import supervisor
from fastpresence.node.listeners import open_admin, open_listeners, raise_file_limit
from fastpresence.node.supervisor import Backoff, Supervisor, module_argv, notify
from fastpresence.settings import AdminSettings, ServerSettings, Settings

ROOT = Path(__file__).parents[2]
STUB = [sys.executable, str(ROOT / "tests/support/dying_worker.py")]
#: Seconds that anything here may take.
DEADLINE = 20.0

NODE = """
import asyncio, json, sys, uvloop
from fastpresence.errors import StartError
from fastpresence.logs import Repeats, setup
from fastpresence.node import process, supervisor
from fastpresence.node.supervisor import Supervisor
from fastpresence.settings import AdminSettings, ServerSettings, Settings
argv, drain_time, is_dev, reads, workers, unborn, repeat_s = json.loads(sys.argv[1])
births, fork = [], asyncio.create_subprocess_exec
async def perhaps(*args, **options):
    births.append(args)
    if len(births) in unborn:
        raise BlockingIOError(11, "Resource temporarily unavailable")
    return await fork(*args, **options)
asyncio.create_subprocess_exec = perhaps
stop = setup("debug", "json")
supervisor.RELOAD_TIME = 0.5
process.UNREAD = 200_000
process.LINGER_TIME = 1.0
def settings_of(**server):
    return Settings(
        server=ServerSettings(**{"host": "127.0.0.1", "port": 0, "drain_time": drain_time, **server}),
        admin=AdminSettings(port=0, key="the-admin-key-of-the-tests"),
    )
settings = settings_of()
def read_again():
    if not reads:
        raise StartError("there is nothing to read")
    return settings_of(**reads.pop(0)), None
async def main():
    again = None if reads is None else read_again
    node = Supervisor(settings, argv=argv, is_dev=is_dev, read_again=again)
    node._count = workers
    node._repeats = Repeats(repeat_s)
    return await node.run()
status = uvloop.run(main())
stop()
sys.exit(status)
"""


class Node:
    """A node process whose workers are stubs, and the events it logs."""

    def __init__(
        self,
        *mode: str,
        drain_time: float = 5,
        is_dev: bool = False,
        reads: list[dict[str, Any]] | None = None,  # what it finds at each SIGHUP, in server.*
        env: dict[str, str] | None = None,
        workers: int = 1,
        unborn: Sequence[int] = (),  # which of its children, from 1, the system has no room for
        repeat_s: float = 10,  # between two lines about the same warning
    ):
        given = [[*STUB, *mode], drain_time, is_dev, reads, workers, unborn, repeat_s]
        self.process = subprocess.Popen(
            [sys.executable, "-c", NODE, json.dumps(given)],
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(ROOT), **(env or {})},
        )
        self._events: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr
        for line in self.process.stderr:
            is_event = line.startswith(b"{")  # else the last words of a stub whose node was killed
            self._events.put(json.loads(line) if is_event else {"event": "stub", "says": line.decode()})

    def event(self, name: str) -> dict[str, Any]:
        """The next event of that name."""
        until = time.monotonic() + DEADLINE
        while True:
            found = self._events.get(timeout=max(0.01, until - time.monotonic()))
            if found["event"] == name:
                return found

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def end(self) -> int:
        return self.process.wait(DEADLINE)


Start = Callable[..., Node]


@pytest.fixture
def start() -> Iterator[Start]:
    nodes: list[Node] = []

    def starter(*mode: str, **options: Any) -> Node:
        nodes.append(Node(*mode, **options))
        return nodes[-1]

    yield starter
    for node in nodes:
        with contextlib.suppress(ProcessLookupError):
            for number in (signal.SIGTERM, signal.SIGINT):  # two, so that it takes its worker along at once
                node.process.send_signal(number)
        node.end()
        node._reader.join(DEADLINE)
        assert node.process.stderr
        node.process.stderr.close()


def ask(port: int) -> str:
    """What the worker that accepts the connection answers."""
    with socket.create_connection(("127.0.0.1", port), timeout=DEADLINE) as sock:
        return b"".join(iter(lambda: sock.recv(65536), b"")).decode()


def is_gone(pid: int) -> bool:
    """Whether the process ends before the deadline."""
    until = time.monotonic() + DEADLINE
    with contextlib.suppress(ProcessLookupError):
        fd = os.pidfd_open(pid)
        try:
            import select

            return bool(select.select([fd], [], [], until - time.monotonic())[0])
        finally:
            os.close(fd)
    return True


def test_a_worker_serves_on_the_sockets_that_the_node_opened(start: Start) -> None:
    node = start("serve")
    born = node.event("worker started")
    port = node.event("listening")["port"]
    assert int(ask(port)) == born["pid"] != node.process.pid


def test_sigterm_stops_the_worker_and_ends_with_0(start: Start) -> None:
    node = start("serve")
    node.event("listening")
    node.signal(signal.SIGTERM)
    assert node.event("stopping")["signal"] == "SIGTERM"
    assert node.event("worker ended")["status"] == 0
    assert node.end() == 0


def test_a_worker_that_died_has_a_successor_at_once(start: Start) -> None:
    node = start("serve")
    port = node.event("listening")["port"]
    first = int(ask(port))
    os.kill(first, signal.SIGKILL)
    died = node.event("worker died")
    assert (died["pid"], died["signal"], died["restart_in_s"]) == (first, "SIGKILL", 0)
    assert node.event("worker ready")["restarts"] == 1
    assert int(ask(port)) != first


def test_a_connection_that_waits_for_a_worker_that_dies_is_accepted_by_its_successor(
    start: Start, tmp_path: Path
) -> None:
    node = start("lazy", str(tmp_path / "lived"))
    first = node.event("worker started")["pid"]
    port = node.event("listening")["port"]
    with socket.create_connection(("127.0.0.1", port), timeout=DEADLINE) as waiting:
        os.kill(first, signal.SIGKILL)
        second = node.event("worker started")["pid"]
        assert int(waiting.recv(100)) == second


def test_a_worker_that_keeps_dying_is_started_ever_more_slowly(start: Start) -> None:
    node = start("flap")
    died = [node.event("worker died") for _ in range(4)]
    assert [event["restart_in_s"] for event in died] == [0, 0.1, 0.2, 0.4]
    assert {event["status"] for event in died} == {5}
    node.signal(signal.SIGTERM)
    assert node.end() == 0


def test_the_back_off_has_a_longest_and_is_forgotten_after_a_healthy_life() -> None:
    backoff = Backoff()
    assert [backoff.after(0) for _ in range(9)] == [0, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5, 5]
    assert [backoff.after(Backoff.HEALTHY), backoff.after(9.9)] == [0, 0.1]


def test_a_worker_ends_when_its_node_is_killed(start: Start) -> None:
    node = start("serve")
    worker = node.event("worker started")["pid"]
    node.event("listening")
    node.signal(signal.SIGKILL)
    assert is_gone(worker)


def test_a_worker_that_takes_no_notice_is_killed_when_the_drain_time_is_over(start: Start) -> None:
    node = start("deaf", drain_time=1)
    node.event("listening")
    node.signal(signal.SIGTERM)
    assert node.event("worker ended")["signal"] == "SIGKILL"
    assert node.end() == 0


def test_a_second_signal_ends_it_at_once(start: Start) -> None:
    node = start("deaf", drain_time=3600)
    node.event("listening")
    node.signal(signal.SIGTERM)
    node.event("stopping")
    node.signal(signal.SIGINT)
    assert node.event("worker ended")["signal"] == "SIGKILL"
    assert node.end() == 1


def test_ctrl_c_reaches_the_node_alone(start: Start) -> None:
    node = start("serve")
    worker = node.event("worker started")["pid"]
    node.event("listening")
    assert os.getsid(worker) != os.getsid(node.process.pid)
    node.signal(signal.SIGINT)
    assert node.event("worker ended")["status"] == 0
    assert node.end() == 0


def test_sighup_ends_a_server_that_somebody_tries_out_and_no_other(start: Start) -> None:
    node, tried = start("serve"), start("serve", is_dev=True)
    node.event("listening")
    tried.event("listening")
    for each in (node, tried):
        each.signal(signal.SIGHUP)
    assert tried.end() == 0
    node.event("no reload")
    assert node.process.poll() is None


def test_a_worker_that_talks_nonsense_is_replaced(start: Start) -> None:
    node = start("garbage")
    ask(node.event("listening")["port"])
    assert "frame" in node.event("link broken")["error"]
    assert node.event("worker died")["signal"] == "SIGKILL"
    node.event("worker ready")


def test_a_worker_that_closed_its_link_and_stays_is_killed(start: Start) -> None:
    node = start("closed")
    assert node.event("worker died")["signal"] == "SIGKILL"


def test_a_node_whose_worker_is_not_ready_yet_says_so(start: Start) -> None:
    node = start("mute")
    port = node.event("admin listening")["port"]
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=DEADLINE)) as connection:
        connection.request("GET", "/readyz")
        response = connection.getresponse()
        assert response.status == 503
        assert json.loads(response.read())["error"]["message"] == "worker 0 is starting"


def test_the_end_of_a_burst_of_wrong_keys_is_told_though_nobody_tries_any_more(start: Start) -> None:
    node = start("serve", repeat_s=0.5)
    port = node.event("admin listening")["port"]
    for _ in range(4):
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=DEADLINE)) as connection:
            connection.request("GET", "/api/users/u/timeline", headers={"Authorization": "Bearer wrong"})
            assert connection.getresponse().status == 401
    told = 0
    while told < 4:
        told += node.event("admin key refused").get("count", 1)
    assert told == 4


# Revocations.


def revoked_at(port: int, pid: int, wanted: set[str]) -> None:
    """Waits until the worker of that pid, one of those at the port, was told of these."""
    until = time.monotonic() + DEADLINE
    while True:
        answer = json.loads(ask(port))
        assert str(answer["pid"]) not in answer["revoked"]
        if answer["pid"] == pid and wanted <= set(answer["revoked"]):
            return
        assert time.monotonic() < until, answer


def test_what_one_worker_revokes_all_the_others_are_told_and_it_is_not_told_again(start: Start) -> None:
    node = start("revoke", workers=3)
    pids = [node.event("worker started")["pid"] for _ in range(3)]
    port = node.event("listening")["port"]
    for pid in pids:
        revoked_at(port, pid, {str(other) for other in pids if other != pid})


def test_a_worker_whose_successor_can_not_be_started_has_one_as_soon_as_it_can(start: Start) -> None:
    node = start("serve", unborn=[2, 3])
    first = node.event("worker started")["pid"]
    port = node.event("listening")["port"]
    os.kill(first, signal.SIGKILL)
    for _ in range(2):
        assert "Resource temporarily unavailable" in node.event("worker not started")["reason"]
    second = node.event("worker started")["pid"]
    node.event("worker ready")
    assert ask(port) == str(second)


def test_a_worker_is_told_what_was_revoked_before_its_time(start: Start) -> None:
    node = start("revoke")
    pids = [node.event("worker started")["pid"]]
    port = node.event("listening")["port"]
    revoked_at(port, pids[0], set())
    for _ in range(2):
        os.kill(pids[-1], signal.SIGKILL)
        pids.append(node.event("worker started")["pid"])
        revoked_at(port, pids[-1], {str(pid) for pid in pids[:-1]})


def test_a_worker_that_does_not_read_is_replaced_before_much_waits_for_it_and_the_others_live(start: Start) -> None:
    node = start("flood", workers=2)
    born = {event["worker"]: event["pid"] for event in (node.event("worker started") for _ in range(2))}
    blind = node.event("worker does not read")
    assert (blind["worker"], blind["pid"]) == (1, born[1])
    died = node.event("worker died")
    assert (died["pid"], died["signal"]) == (born[1], "SIGKILL")
    assert node.event("worker started")["worker"] == 1
    os.kill(born[0], 0)


def test_a_workers_environment_holds_neither_secrets_nor_the_managers_socket(start: Start, tmp_path: Path) -> None:
    env = {"FASTPRESENCE_AUTH_TOKEN_KEYS": "k:hush", "NOTIFY_SOCKET": str(tmp_path / "none"), "OTHER": "stays"}
    node = start("env", env=env)
    seen = json.loads(ask(node.event("listening")["port"]))
    assert seen["OTHER"] == "stays"
    assert not [name for name in seen if name.startswith("FASTPRESENCE_") or name == "NOTIFY_SOCKET"]


def test_systemd_hears_of_ready_counts_and_stopping(start: Start, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(DEADLINE)
        node = start("serve", env={"NOTIFY_SOCKET": str(tmp_path / "notify")})
        assert manager.recv(1000) == b"READY=1"
        assert manager.recv(1000) == b"STATUS=0 connections, 0 users, 1 workers"
        assert manager.recv(1000) == b"STATUS=7 connections, 3 users, 1 workers"
        node.signal(signal.SIGTERM)
        assert manager.recv(1000) == b"STOPPING=1"
        assert node.end() == 0


# SIGHUP.


def test_a_reload_is_over_when_the_worker_has_answered_and_a_refused_one_changes_nothing(start: Start) -> None:
    node = start("reload", reads=[{"drain_time": 7}])
    node.event("listening")
    node.signal(signal.SIGHUP)
    assert node.event("reloaded")["generation"] == 1
    node.signal(signal.SIGHUP)
    assert node.event("reload refused")["reason"] == "there is nothing to read"
    node.signal(signal.SIGTERM)
    assert node.event("stopping")["drain_time"] == 7
    assert node.end() == 0


def test_a_worker_that_could_not_take_the_new_settings_over_is_told_of(start: Start) -> None:
    node = start("reload", reads=[{"public_url": "ws://no"}, {}])
    node.event("listening")
    node.signal(signal.SIGHUP)
    failed = node.event("reload failed")
    assert (failed["worker"], failed["generation"], failed["reason"]) == (0, 1, "ws://no")
    node.signal(signal.SIGHUP)
    assert node.event("reloaded")["generation"] == 2


def test_a_worker_that_does_not_answer_holds_a_reload_up_for_no_longer_than_its_time(
    start: Start, tmp_path: Path
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(DEADLINE)
        node = start("serve", reads=[{}], env={"NOTIFY_SOCKET": str(tmp_path / "notify")})
        for state in (b"READY=1", b"STATUS=0", b"STATUS=7"):
            assert manager.recv(1000).startswith(state)
        node.signal(signal.SIGHUP)
        assert manager.recv(1000).startswith(b"RELOADING=1\nMONOTONIC_USEC=")
        assert node.event("reload not answered")["workers"] == "[0]"
        assert manager.recv(1000) == b"READY=1"


def test_a_worker_that_dies_during_a_reload_does_not_hold_it_up(start: Start) -> None:
    node = start("reload", reads=[{}])
    pid = node.event("worker started")["pid"]
    node.event("listening")
    os.kill(pid, signal.SIGSTOP)
    node.signal(signal.SIGHUP)
    time.sleep(0.1)
    os.kill(pid, signal.SIGKILL)
    assert node.event("reloaded")["generation"] == 1


def test_what_belongs_to_the_node_is_late_whatever_worker_runs(start: Start) -> None:
    node = start("reload", reads=[{"port": 1, "workers": 3, "tls_cert": "c", "tls_key": "k"}] * 2)
    first = node.event("worker started")["pid"]
    node.event("listening")
    node.signal(signal.SIGHUP)
    late = "server.port,server.tls_cert,server.tls_key,server.workers"
    assert node.event("reload: needs a restart")["settings"] == late
    node.event("reloaded")
    os.kill(first, signal.SIGKILL)
    node.event("worker ready")
    node.signal(signal.SIGHUP)
    assert node.event("reload: needs a restart")["settings"] == "server.port,server.workers"


def test_without_a_service_manager_nothing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    notify("READY=1")
    monkeypatch.setenv("NOTIFY_SOCKET", "@fastpresence-test-nobody")
    notify("READY=1")


# Failed starts: StartError, one line that says what to do.


def failed(*mode: str, argv: list[str] | None = None, **server: Any) -> str:
    settings = Settings(
        server=ServerSettings(**{"host": "127.0.0.1", "port": 0, **server}), admin=AdminSettings(port=0)
    )

    async def main() -> int:
        return await Supervisor(settings, argv=[*STUB, *mode] if argv is None else argv).run()

    with pytest.raises(StartError) as caught:
        uvloop.run(main())
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def _path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


@pytest.mark.usefixtures("_path")
def test_a_worker_that_ends_before_it_ever_listened_fails_the_start() -> None:
    assert "status 4" in failed("early")


@pytest.mark.usefixtures("_path")
def test_a_worker_that_is_never_ready_fails_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "READY_TIME", 0.5)
    assert "SIGKILL" in failed("mute")


def test_a_worker_that_cannot_be_started_fails_the_start() -> None:
    assert "/nonexistent" in failed(argv=["/nonexistent"])


@pytest.mark.parametrize("is_shared", [False, True])
def test_a_taken_port_fails_the_start_even_when_its_owner_would_share_it(is_shared: bool) -> None:
    with socket.socket() as other:
        if is_shared:
            other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        assert f"port {port} is taken" in failed("serve", port=port)


def test_an_address_of_another_machine_or_of_none_fails_the_start() -> None:
    assert "no address of this machine" in failed("serve", host="192.0.2.1")
    assert "cannot be resolved" in failed("serve", host="no-such-host.invalid")


def test_a_taken_admin_port_is_a_warning_unless_somebody_chose_it(caplog: pytest.LogCaptureFixture) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with caplog.at_level("WARNING", "fastpresence"):
            assert open_admin("127.0.0.1", port, is_port_given=False) is None
        assert [record.getMessage() for record in caplog.records] == ["no admin face"]
        with pytest.raises(StartError, match=f"port {port} is taken.*--admin-port"):
            open_admin("127.0.0.1", port, is_port_given=True)
    for is_given in (False, True):
        with pytest.raises(StartError, match=r"admin\.host 192\.0\.2\.1 is no address of this machine"):
            open_admin("192.0.2.1", 0, is_port_given=is_given)
        with pytest.raises(StartError, match=r"admin\.host .* cannot be resolved"):
            open_admin("no-such-host.invalid", 0, is_port_given=is_given)


def test_every_worker_gets_a_socket_of_its_own_on_one_port() -> None:
    listeners = open_listeners("127.0.0.1", 0, 3)
    assert len({sock.getsockname() for sock in listeners}) == 1
    assert len({sock.fileno() for sock in listeners}) == 3
    assert not any(sock.getblocking() or os.get_inheritable(sock.fileno()) for sock in listeners)
    for sock in listeners:
        sock.close()


def test_the_file_limit_ends_no_lower_than_it_was() -> None:
    import resource

    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(256, before[1]), before[1]))
        assert raise_file_limit() >= min(before[1], 1_048_576)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_a_worker_takes_no_module_from_the_working_directory_unless_the_node_does(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sys, "path", ["/somewhere"])
    assert module_argv("x.worker") == [sys.executable, "-P", "-m", "x.worker"]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    assert module_argv("x.worker") == [sys.executable, "-m", "x.worker"]
