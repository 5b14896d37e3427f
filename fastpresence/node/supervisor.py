"""The node process: it opens the listening sockets, starts the workers, and outlives them.

    open sockets -> start worker -> Boot, Revoked -> Ready -> (all: `listening`)
                       ^                               |
                       +-------- back-off <--------- died           SIGTERM: Stop -> wait -> kill -> end
    Revoke of one worker -> remembered for those that start later, told to all others
    Journal of a worker -> timeline; a worker died -> `crash` for everybody who was there
    SIGHUP: read the settings again -> bad: one line in the log, everything as it was
                                    -> good: Reload -> Reloaded of each worker

Invariant: from its opening to the end of the node every listening socket stays open here, so that a connection that
waits in a dead worker's queue is accepted by its successor. A worker lives in a session of its own: Ctrl-C reaches the
node alone, and a worker learns of the node's death from the end of its link. One worker for now; every worker already
has a number, a socket and a link of its own.
"""

import asyncio
import contextlib
import logging
import math
import os
import signal
import socket
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

import uvloop

from fastpresence.credentials import Revocations
from fastpresence.errors import PeerError, SettingsError, StartError
from fastpresence.link import (
    Journal,
    JournalLine,
    Present,
    Ready,
    Reload,
    Reloaded,
    Revoke,
    Revoked,
    Stats,
    Stop,
)
from fastpresence.logs import Repeats, event, set_level
from fastpresence.node.admin import AdminFace
from fastpresence.node.listeners import open_admin, open_listeners, raise_file_limit
from fastpresence.node.process import Worker, module_argv
from fastpresence.node.timeline import Chronicle
from fastpresence.settings import Settings, changed, replaceable

__all__ = ["Backoff", "Read", "Supervisor", "module_argv", "notify", "run"]

LOG: Final = logging.getLogger("fastpresence.node")

#: What a worker runs; called with `--link-fd N`.
WORKER: Final = "fastpresence.worker"
#: Seconds from a worker's start to its Ready.
READY_TIME: Final = 30.0
#: Seconds that even a drain_time of 0 leaves for closing every connection.
LAST_WORDS: Final = 1.0
#: Seconds in which every worker answers a Reload.
RELOAD_TIME: Final = 10.0
#: Seconds between two looks at what the log was not told of repeated warnings.
REST_EVERY: Final = 1.0
#: Revocations in one frame: about two milliseconds, and 300 KB.
REVOKED_PAGE: Final = 5_000
#: Users whose crash is written in one turn, and seconds between two turns: as fast as the log can follow.
CRASHES: Final = 200
CRASHES_EVERY: Final = 0.01
#: What belongs to the node or its sockets: a new worker does not bring it.
OF_THE_NODE: Final = ("server.host", "server.port", "server.workers", "redis.", "database.", "admin.", "log.format")

#: Reads settings and JWKS file again, as at the start, and checks them. Raises SettingsError, StartError.
Read = Callable[[], tuple[Settings, str | None]]
#: Told the port, and the admin face's.
OnListening = Callable[[int, int | None], None]


class Backoff:
    """How long to wait before a dead worker's successor starts: 0, 0.1, 0.2, 0.4 ... 5 seconds."""

    FIRST: Final = 0.1
    LONGEST: Final = 5.0
    #: Seconds of life after which a death counts as the first again.
    HEALTHY: Final = 10.0

    def __init__(self) -> None:
        self._next = 0.0

    def after(self, lived_s: float) -> float:
        """Seconds to wait, given how long the dead one lived."""
        delay = 0.0 if lived_s >= self.HEALTHY else self._next
        self._next = min(self.LONGEST, delay * 2 or self.FIRST)
        return delay


def notify(state: str) -> None:
    """Tell systemd, when it asked to be told (sd_notify(3)): one datagram to $NOTIFY_SOCKET."""
    path = os.environ.get("NOTIFY_SOCKET")
    if not path:
        return
    if path.startswith("@"):  # an abstract socket
        path = "\0" + path[1:]
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        sock.connect(path)
        sock.send(state.encode())


class Supervisor:
    """Starts the workers, starts them again when they die, and ends them in order. `run` is its whole life."""

    def __init__(
        self,
        settings: Settings,
        *,
        login_jwks: str | None = None,
        read_again: Read | None = None,
        argv: Sequence[str] | None = None,
        on_listening: OnListening | None = None,
        is_dev: bool = False,
        is_admin_port_given: bool = False,
    ) -> None:
        """`on_listening`: called with the port, once every worker listens, and with the admin face's if there is one.

        `is_admin_port_given`: somebody chose `admin.port`; when it is taken, that is a failed start.
        """
        self._settings = settings  # for the next worker
        self._login_jwks = login_jwks
        self._first_settings = settings
        self._read_again = read_again
        self._generation = 0  # how often the settings were read again
        self._told_generation = 0
        self._reload_failed = False  # by a worker, in this generation
        self._reload_deadline: asyncio.TimerHandle | None = None  # while workers have not answered
        self._argv = module_argv(WORKER) if argv is None else argv
        self._on_listening = on_listening
        self._is_dev = is_dev
        self._is_admin_port_given = is_admin_port_given
        self._admin: AdminFace | None = None
        self._admin_port: int | None = None
        self._chronicle = Chronicle(settings.admin.timeline_size)
        self._is_writing_crashes = False
        self._repeats = Repeats()
        self._count = 1  # workers: more come with the relay that joins them
        self._workers: dict[int, Worker] = {}
        self._ready: set[int] = set()  # numbers of the workers that were ready at least once
        self._stop_asked = asyncio.Event()
        self._is_forced = False
        self._port = 0
        self._revocations = Revocations()
        self.restarts = 0

    async def run(self) -> int:
        """Serve until a signal ends it. The exit status: 0, or 1 when a second signal cut the drain short.

        Raises StartError when the port can't be had or the first worker never listens.
        """
        server = self._settings.server
        listeners = open_listeners(server.host, server.port, self._count)
        self._port = listeners[0].getsockname()[1]
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop, number)
        loop.add_signal_handler(signal.SIGHUP, self._hang_up)
        keepers: list[asyncio.Task[None]] = []
        teller = asyncio.create_task(self._tell_rest())
        try:
            await self._open_admin()
            keepers += [asyncio.create_task(self._keep(n, listener)) for n, listener in enumerate(listeners)]
            await asyncio.gather(*keepers)
        finally:
            for keeper in keepers:
                keeper.cancel()
            self._kill()
            await asyncio.gather(*keepers, return_exceptions=True)
            if self._admin is not None:
                self._admin.close()
            for listener in listeners:
                listener.close()
            teller.cancel()
            self._repeats.rest(math.inf)
        event(LOG, logging.INFO, "stopped", forced=self._is_forced or None)
        return 1 if self._is_forced else 0

    async def _keep(self, number: int, listener: socket.socket) -> None:
        """One worker after the other under this number, until the node stops."""
        backoff = Backoff()
        while not self._stop_asked.is_set():
            generation = self._generation
            try:
                worker = await Worker.start(number, listener, self._settings, self._login_jwks, self._argv)
            except StartError as error:
                if number not in self._ready:
                    raise
                delay_s = backoff.after(0.0)
                event(LOG, logging.ERROR, "worker not started", worker=number, reason=str(error), again_in_s=delay_s)
                await self._pause(delay_s)
                continue
            self._workers[number] = worker
            worker.generation = generation
            if generation != self._generation:  # the settings were read again while it was being born
                worker.send(Reload(self._generation, self._settings, self._login_jwks))
            event(LOG, logging.DEBUG, "worker started", worker=number, pid=worker.pid)
            if self._is_forced:  # the signals came while it was being born
                worker.kill()
            elif self._stop_asked.is_set():
                worker.send(self._last_order())
            briefing = asyncio.create_task(self._tell_revoked(worker))
            try:
                await self._listen_to(worker)
            except BaseException:
                worker.kill()
                raise
            finally:
                worker.is_ready = False
                briefing.cancel()
                status = await worker.gone()
                del self._workers[number]
                self._look_who_reloaded()
            lived_s = time.monotonic() - worker.started_s
            if self._stop_asked.is_set():
                event(LOG, logging.DEBUG, "worker ended", worker=number, pid=worker.pid, **_ended(status))
                return
            if number not in self._ready:
                how = " ".join(f"{key} {value}" for key, value in _ended(status).items())
                raise StartError(f"worker {number} ended before it listened ({how}): its own words are above")
            self._chronicle.died(worker.roll, time.time_ns() // 1000)
            delay_s = backoff.after(lived_s)
            self.restarts += 1
            event(
                LOG, logging.ERROR, "worker died",
                worker=number, pid=worker.pid, **_ended(status), lived_s=round(lived_s, 3), restart_in_s=delay_s,
            )  # fmt: skip
            if not self._is_writing_crashes:
                self._write_crashes()
            await self._pause(delay_s)

    async def _pause(self, delay_s: float) -> None:
        """Until the next attempt, or the node's end."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(delay_s):
                await self._stop_asked.wait()

    async def _listen_to(self, worker: Worker) -> None:
        """Take what the worker says until its link ends; kill one that is not ready in time or talks nonsense."""
        try:
            async with asyncio.timeout(READY_TIME) as deadline:
                while (frames := await worker.receive()) is not None:
                    for frame in frames:
                        if isinstance(frame, Ready):
                            deadline.reschedule(None)
                            self._is_ready(worker)
                        elif isinstance(frame, Stats):
                            worker.stats = frame
                            self._tell_counts()
                        elif isinstance(frame, Reloaded):
                            self._has_reloaded(worker, frame)
                        elif isinstance(frame, Revoke):
                            self._revoke(worker, frame)
                        elif isinstance(frame, Journal):
                            self._note(worker, frame)
                        elif isinstance(frame, Present):
                            worker.roll.replace(frame.users, is_first=frame.is_first)
        except TimeoutError:
            event(LOG, logging.ERROR, "worker not ready", worker=worker.number, pid=worker.pid, waited_s=READY_TIME)
            worker.kill()
        except PeerError as error:
            event(LOG, logging.ERROR, "link broken", worker=worker.number, pid=worker.pid, error=str(error))
            worker.kill()

    def _is_ready(self, worker: Worker) -> None:
        worker.is_ready = True
        is_first = len(self._ready) < self._count
        self._ready.add(worker.number)
        if not is_first:
            event(LOG, logging.INFO, "worker ready", worker=worker.number, pid=worker.pid, restarts=self.restarts)
        elif len(self._ready) == self._count and not self._stop_asked.is_set():
            host = self._settings.server.host
            shown = f"[{host}]" if ":" in host else host
            scheme = "ws" if self._settings.server.tls_cert is None else "wss"
            event(LOG, logging.INFO, "listening", url=f"{scheme}://{shown}:{self._port}/ws", port=self._port)
            self._tell_ready()
            self._tell_counts()
            if self._on_listening:
                self._on_listening(self._port, self._admin_port)

    # The admin face, and what it is asked.

    async def _open_admin(self) -> None:
        admin, limits = self._settings.admin, self._settings.limits
        listener = None
        if admin.enabled:
            listener = open_admin(admin.host, admin.port, is_port_given=self._is_admin_port_given)
        if listener is None:
            return
        self._admin = AdminFace(
            key=admin.key,
            body_size=limits.http_body_size,
            request_time=limits.connect_timeout,
            not_ready=self.not_ready,
            timeline=self.timeline,
            repeats=self._repeats,
        )
        await self._admin.listen(listener)
        self._admin_port = listener.getsockname()[1]
        shown = f"[{admin.host}]" if ":" in admin.host else admin.host
        event(LOG, logging.INFO, "admin listening", url=f"http://{shown}:{self._admin_port}", port=self._admin_port)

    def not_ready(self) -> str | None:
        """Why this node is not ready to serve; None when it is."""
        if self._stop_asked.is_set():
            return "draining"
        for number in range(self._count):
            worker = self._workers.get(number)
            if worker is None or not worker.is_ready:
                return f"worker {number} {'is down' if number in self._ready else 'is starting'}"
        return None

    def timeline(self, user_id: str, limit: int) -> list[dict[str, Any]]:
        """A user's last transitions, the newest first."""
        self._tell_crashes(self._chronicle.settle(user_id))
        return self._chronicle.of(user_id, limit)

    def _note(self, worker: Worker, frame: Journal) -> None:
        if frame.dropped:
            self._chronicle.dropped += frame.dropped
            self._repeats.log(
                LOG, logging.WARNING, "journal lines dropped",
                now_s=time.monotonic(), worker=worker.number, lines=frame.dropped,
            )  # fmt: skip
        self._tell_crashes(self._chronicle.note(worker.roll, frame.lines))

    def _write_crashes(self) -> None:
        """Of a crowd some in each turn of the loop."""
        for _ in range(CRASHES):
            crashed = self._chronicle.settle()
            if not crashed:
                self._is_writing_crashes = False
                return
            self._tell_crashes(crashed)
        self._is_writing_crashes = True
        asyncio.get_running_loop().call_later(CRASHES_EVERY, self._write_crashes)

    @staticmethod
    def _tell_crashes(crashed: list[tuple[JournalLine, int]]) -> None:
        for line, worker in crashed:
            event(
                LOG, logging.INFO, "user offline",
                user_id=line.user_id, user_type=line.user_type, reason=line.reason, worker=worker,
            )  # fmt: skip

    # Revocations.

    def _revoke(self, worker: Worker, frame: Revoke) -> None:
        self._revocations.add(frame.user_id, frame.before, int(time.time()))
        for other in self._workers.values():
            if other is not worker:
                other.send(frame)

    async def _tell_revoked(self, worker: Worker) -> None:
        """What was revoked before its time, in pages. What is revoked meanwhile it hears as everybody does."""
        users = self._revocations.users()
        for at in range(0, max(1, len(users)), REVOKED_PAGE):
            page = users[at : at + REVOKED_PAGE]
            known = ((user_id, self._revocations.before(user_id)) for user_id in page)
            entries = [(user_id, before) for user_id, before in known if before is not None]
            worker.send(Revoked(entries, is_last=at + REVOKED_PAGE >= len(users)))
            await worker.drained()
            await asyncio.sleep(0)

    async def _tell_rest(self) -> None:
        """How often repeated warnings were not told, until cancelled."""
        while True:
            await asyncio.sleep(REST_EVERY)
            self._repeats.rest(time.monotonic())

    def _tell_counts(self) -> None:
        connections = sum(worker.stats.connections for worker in self._workers.values())
        users = sum(worker.stats.users for worker in self._workers.values())
        notify(f"STATUS={connections} connections, {users} users, {len(self._workers)} workers")

    def _stop(self, number: signal.Signals) -> None:
        if self._stop_asked.is_set():
            self._is_forced = True
            event(LOG, logging.WARNING, "stopping at once", signal=number.name)
            self._kill()
            return
        drain_s = self._settings.server.drain_time
        event(LOG, logging.INFO, "stopping", signal=number.name, drain_time=drain_s)
        notify("STOPPING=1")
        self._stop_asked.set()
        for worker in self._workers.values():
            worker.send(self._last_order())
        asyncio.get_running_loop().call_later(max(drain_s, LAST_WORDS), self._kill)

    def _last_order(self) -> Stop:
        """Stop, with a little less time than is left until `_kill`, so that a worker in time is never killed."""
        drain_s = self._settings.server.drain_time
        return Stop(drain_s - min(1.0, drain_s / 10))

    def _hang_up(self) -> None:
        if self._is_dev:  # the terminal is gone, and with it whoever was trying things out
            self._stop(signal.SIGHUP)
        elif self._read_again is None:
            event(LOG, logging.WARNING, "no reload", reason="this node was not told where its settings are")
        elif not self._stop_asked.is_set():
            # sd_notify(3): systemd asks for the moment, so that it can tell this reload from an earlier one.
            notify(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")
            self._reload(self._read_again)
            self._look_who_reloaded()

    # SIGHUP.

    def _reload(self, read_again: Read) -> None:
        """Read the settings again; where they are good they go to every worker."""
        if self._reload_deadline is None:
            loop = asyncio.get_running_loop()
            self._reload_deadline = loop.call_later(RELOAD_TIME, self._give_up_reload)
        try:
            settings, login_jwks = read_again()
        except (SettingsError, StartError) as error:
            problems = error.problems if isinstance(error, SettingsError) else [str(error)]
            more = len(problems) - 1 or None
            event(LOG, logging.ERROR, "reload refused", reason=problems[0], more=more)
            return
        late = self._need_a_restart(settings)
        if late:
            event(LOG, logging.WARNING, "reload: needs a restart", settings=",".join(late))
        self._settings, self._login_jwks = settings, login_jwks
        self._generation += 1
        self._reload_failed = False
        set_level(settings.log.level)
        for worker in self._workers.values():
            worker.send(Reload(self._generation, settings, login_jwks))

    def _need_a_restart(self, settings: Settings) -> list[str]:
        """The settings that are not in force here, or in some worker, and can't come into force as it runs."""
        late = {key for key in changed(self._first_settings, settings) if key.startswith(OF_THE_NODE)}
        for worker in self._workers.values():
            at_once = replaceable(worker.settings, settings)
            late.update(
                key
                for key in changed(worker.settings, settings)
                if key not in at_once and not key.startswith(OF_THE_NODE)
            )
        return sorted(late)

    def _has_reloaded(self, worker: Worker, answer: Reloaded) -> None:
        worker.generation = answer.generation
        if answer.problem is not None:
            event(
                LOG, logging.ERROR, "reload failed",
                worker=worker.number, pid=worker.pid, generation=answer.generation, reason=answer.problem,
            )  # fmt: skip
            self._reload_failed = True
        self._look_who_reloaded()

    def _look_who_reloaded(self) -> None:
        """Tell the end of a reload as soon as no worker is left to answer."""
        if self._reload_deadline is None or any(w.generation < self._generation for w in self._workers.values()):
            return
        self._reload_deadline.cancel()
        self._reload_deadline = None
        if self._told_generation != self._generation:
            self._told_generation = self._generation
            if not self._reload_failed:
                event(LOG, logging.INFO, "reloaded", generation=self._generation)
        self._tell_ready()

    def _give_up_reload(self) -> None:
        self._reload_deadline = None
        late = [worker.number for worker in self._workers.values() if worker.generation < self._generation]
        event(LOG, logging.ERROR, "reload not answered", workers=str(late), waited_s=RELOAD_TIME)
        self._tell_ready()

    def _tell_ready(self) -> None:
        """READY=1, once every worker listens, and again after each reload."""
        if len(self._ready) == self._count and not self._stop_asked.is_set():
            notify("READY=1")

    def _kill(self) -> None:
        for worker in self._workers.values():
            worker.kill()


def _ended(status: int) -> dict[str, object]:
    """The fields that say how a process ended."""
    if status >= 0:
        return {"status": status}
    try:
        return {"signal": signal.Signals(-status).name}
    except ValueError:
        return {"signal": -status}


def run(
    settings: Settings,
    *,
    login_jwks: str | None = None,
    read_again: Read | None = None,
    on_listening: OnListening | None = None,
    is_dev: bool = False,
    is_admin_port_given: bool = False,
) -> int:
    """Be the node process, from the opened port to the last worker's end. Returns the exit status; see Supervisor."""
    raise_file_limit()

    async def main() -> int:
        supervisor = Supervisor(
            settings,
            login_jwks=login_jwks,
            read_again=read_again,
            on_listening=on_listening,
            is_dev=is_dev,
            is_admin_port_given=is_admin_port_given,
        )
        return await supervisor.run()

    return uvloop.run(main())
