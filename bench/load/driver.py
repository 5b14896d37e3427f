"""One swarm process: brought up against one server, told to run, ended. Its words are in `swarm.c`."""

import contextlib
import os
import selectors
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import msgspec

from bench.histogram import Histogram
from bench.load import procfs
from bench.load.build import program
from bench.load.servers import Server
from bench.load.setting import Cpus
from bench.outcome import BenchError

__all__ = ["Run", "Swarm"]

READY_TIMEOUT_S: Final = 150
END_TIMEOUT_S: Final = 10
#: What an operation of each mode is.
UNITS: Final = {
    "heartbeats": "beats answered",
    "handshakes": "newcomers",
    "idle": "beats answered",
    "fanout": "deliveries",
    "sync": "changes on a screen",
    "storm": "clients back",
    "pulse": "beats answered",
    "churn": "clients back",
    "messages": "messages read",
}


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """What the swarm says of one run. The lower part is each mode's own."""

    mode: str
    seconds: float  #: of the measured window
    operations: int
    server_cpu_ns: int  #: within the window
    sent: int
    frames: int
    frame_bytes: int  #: heads included
    entries: int
    compressed: int  #: frames, of those
    errors: int  #: `error` frames, since the start
    lost: int  #: connections, since the start
    unfinished: bool  #: something in flight never came
    swarm_cpu: float  #: of one core; a spinning swarm takes all of it
    swarm_busy: float  #: share of the window in which the swarm had work: near 1, it and not the server is the limit
    spin: bool = False
    slice_s: float = 0.0
    slices: list[int] = []  #: operations by slice of the window
    histogram: Histogram | None = None

    receivers: int = 0
    rounds: int = 0
    round_ms: float = 0.0
    payload_min: int = 0
    payload_max: int = 0
    sample: str = ""  #: the longest compressed payload of the window, in hexadecimal
    connections: int = 0
    unanswered: int = 0
    changes: int = 0
    observers: int = 0
    wrong: int = 0
    matched_too_old: int = 0
    rev_differs: int = 0
    rev_back: int = 0
    unmatched: int = 0
    repeated: int = 0
    snapshots: int = 0
    sent_late_ms: float = 0.0
    samples: int = 0
    p50_ms: float = 0.0
    p99_ms: float = 0.0
    p999_ms: float = 0.0
    max_ms: float = 0.0
    p99_newest_ms: float = 0.0  #: with each entry matched with the newest change it can be, not the oldest
    frames_a_second: float = 0.0
    frames_max_in_a_second: int = 0
    thawing_frames: int = 0  #: that one reader was sent after it thawed, at most
    thaw_ms: float = 0.0  #: until the last one that thawed had the last frame
    thawed_late: int = 0  #: how many of them needed more than 2 s
    begin_ns: int = 0  #: of a storm, by the monotonic clock: the first was cut
    begun_ns: int = 0  #: everybody was cut, and had asked for a new connection
    back_ns: int = 0  #: the last one was back
    beside: float = 0.0  #: of the load's core that its other processes used meanwhile; who has several says so

    @property
    def load_share(self) -> float:
        """Of its core that the load needed: a swarm that polls uses all of it, and needs it when it has work."""
        return (self.swarm_busy if self.spin else self.swarm_cpu) + self.beside

    @property
    def unit(self) -> str:
        """What was counted."""
        return UNITS[self.mode]

    @property
    def us_per_operation(self) -> float:
        return self.server_cpu_ns / 1000 / self.operations if self.operations else float("inf")

    @property
    def payload_bytes(self) -> int:
        """The mean payload of the frames received."""
        if not self.frames:
            return 0
        frame = self.frame_bytes / self.frames
        return round(frame - (2 if frame < 128 else 4 if frame < 65540 else 10))

    def faults(self) -> list[str]:
        """What must not happen in any run."""
        found = []
        if not self.operations:
            found.append(f"{self.mode}: nothing was done")
        if self.errors:
            found.append(f"{self.mode}: {self.errors} error frames")
        if self.lost:
            found.append(f"{self.mode}: {self.lost} connections lost")
        if self.unfinished:
            found.append(f"{self.mode}: answers or deliveries that never came")
        return found

    def as_dict(self) -> dict[str, Any]:
        built: dict[str, Any] = msgspec.to_builtins(self)
        return built


class Swarm:
    """A context: on entry every connection is up, on exit every one is closed and the process is gone."""

    def __init__(
        self,
        mode: str,
        server: Server,
        cpus: Cpus,
        *,
        connections: int,
        tokens: Path,
        observer_token: str = "none",
        publishers: int = 0,
        options: Sequence[str] = (),
    ) -> None:
        self._server = server
        self._cpus = cpus
        self._command = [
            *(str(program("swarm")), mode, "--port", str(server.port), "--server-pid", str(server.pid)),
            *("--connections", str(connections), "--publishers", str(publishers)),
            *("--tokens", str(tokens), "--observer-token", observer_token),
            *(["--real"] if server.is_real else ["--dialect", server.dialect]),
            *options,
        ]
        self._buffer = b""
        self._process: subprocess.Popen[bytes] | None = None
        self.bring_up_seconds = 0.0

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
        )
        try:
            procfs.pin(self._process.pid, self._cpus.swarm)
            self.bring_up_seconds = float(self._answer(READY_TIMEOUT_S)["seconds"])
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def run(self, amount: float, *, warmup_s: float = 0.0, payload_bytes: int = 0, pace_ms: float = 0.0) -> Run:
        """`amount` is seconds, for handshakes how many; `payload_bytes` is for fanout; on the pace see `swarm.c`."""
        self.begin(amount, warmup_s=warmup_s, payload_bytes=payload_bytes, pace_ms=pace_ms)
        return self.result(amount + warmup_s + 60)

    def begin(
        self, amount: float = 0, *, warmup_s: float = 0.0, payload_bytes: int = 0, pace_ms: float = 0.0, freeze: int = 0
    ) -> None:
        """A run starts; its result must be fetched before the next one. `freeze` is for sync: how many readers."""
        self._server.begin_load()
        self._say(f"run {amount} {warmup_s} {payload_bytes or freeze} {pace_ms}")

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def use(self, mode: str, active: int = 0) -> None:
        """The same links in another mode; of the publishers `active` publish."""
        self._say(f"use {mode} {active}")

    def _say(self, command: str) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.write(f"{command}\n".encode())
        self._process.stdin.flush()

    def result(self, timeout_s: float) -> Run:
        return msgspec.convert(self._answer(timeout_s), Run)

    def _answer(self, timeout_s: float) -> dict[str, Any]:
        assert self._process is not None
        assert self._process.stdout is not None
        deadline = time.monotonic() + timeout_s
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            while b"\n" not in self._buffer:
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    raise BenchError(f"the swarm ({self._server.name}) said nothing for {timeout_s:.0f} s")
                chunk = os.read(self._process.stdout.fileno(), 65536)
                if not chunk:
                    raise BenchError(f"the swarm ({self._server.name}) gave up: see its line above")
                self._buffer += chunk
        line, self._buffer = self._buffer.split(b"\n", 1)
        answer: dict[str, Any] = msgspec.json.decode(line)
        return answer

    def _end(self) -> None:
        process = self._process
        if process is None:
            return
        assert process.stdin is not None
        assert process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()  # the end of its input is its word to quit
        try:
            process.wait(END_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()
