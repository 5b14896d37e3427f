"""`python -m bench profile SCENARIO`: the scenario as it always runs, with py-spy looking at the worker.

It looks from the first run on, so that bringing a crowd up is not in the picture, 200 times a second, at native frames
too. A look stops the worker for some 100 µs: what the scenario measures meanwhile is worth nothing, and is not kept.
Whether it may look at all is tried out before anything else.
"""

import contextlib
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from bench.load import procfs
from bench.load.servers import Server
from bench.outcome import BenchError, Outcome
from bench.stages import flame, read_samples, sorted_by_stage

__all__ = ["Profiler"]

RATE: Final = 200  #: looks a second
END_TIMEOUT_S: Final = 60
PROBE_TIMEOUT_S: Final = 30


class Profiler:
    """Observes every real server of a scenario, one after the other, or several at once."""

    def __init__(self, name: str, folder: Path) -> None:
        program = Path(sys.executable).with_name("py-spy")
        if not program.exists():
            raise BenchError("profiling needs py-spy: pip install -e '.[bench]'")
        self._program = program
        with _beside() as pid:
            self.probe(pid)
        self._name = name
        self._folder = folder
        self._raw: list[Path] = []
        self.cpu_ns = 0

    def probe(self, pid: int) -> None:
        """One look at a process. Raises BenchError when it may not be looked at."""
        command = [str(self._program), "dump", "--native", "--pid", str(pid)]
        look = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=PROBE_TIMEOUT_S
        )
        if look.returncode:
            words = " ".join(look.stderr.partition("Stack backtrace")[0].split())
            raise BenchError(
                f"py-spy may not look at other processes: {words}\n"
                "  It needs root, the capability SYS_PTRACE (in a container: --cap-add SYS_PTRACE), or "
                "sysctl kernel.yama.ptrace_scope=0"
            )

    @contextlib.contextmanager
    def observe(self, server: Server) -> Iterator[None]:
        """Look at it from its first run until the context ends."""
        over = threading.Event()
        server.awaited.clear()
        thread = threading.Thread(target=self._look, args=(server, over), daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            server.loaded.set()  # it may never have been
            thread.join()

    def _look(self, server: Server, over: threading.Event) -> None:
        server.loaded.wait()
        if not over.is_set():
            self._record(server, over)
        server.awaited.set()

    def _record(self, server: Server, over: threading.Event) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        output = self._folder / f"profile-{self._name}-{len(self._raw)}.raw"
        self._raw.append(output)
        command = [
            *(str(self._program), "record", "--pid", str(server.pid), "--native", "--rate", str(RATE)),
            *("--format", "raw", "--output", str(output), "--duration", "unlimited"),
        ]
        spy = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert spy.stdout is not None
        for line in spy.stdout:
            if "Sampling process" in line:
                break
        before = procfs.cpu_ns(server.pid)
        server.awaited.set()
        while not over.wait(0.2) and spy.poll() is None:
            pass
        with contextlib.suppress(OSError):
            self.cpu_ns += procfs.cpu_ns(server.pid) - before
        if spy.poll() is None:
            spy.send_signal(signal.SIGINT)  # it writes what it has
        _, words = spy.communicate(timeout=END_TIMEOUT_S)
        if not output.exists():
            print(f"py-spy saw nothing: {words.strip()[-400:]}", file=sys.stderr)

    def outcome(self, seen: Outcome) -> Outcome:
        """The table of stages and the flame graph, which is written too, of the scenario that it looked at.

        Raises BenchError when there is nothing to tell.
        """
        samples = [sample for path in self._raw if path.exists() for sample in read_samples(path.read_text())]
        for path in self._raw:
            path.unlink(missing_ok=True)
        total = sum(count for _, count in samples)
        if not total:
            raise BenchError("py-spy saw nothing: see its words above")
        picture = self._folder / f"profile-{self._name}.svg"
        rows = []
        for stage, (user, kernel) in sorted_by_stage(samples).items():
            shares = [100 * count / total for count in (user, kernel, user + kernel)]
            seconds = (user + kernel) / total * self.cpu_ns / 1e9
            rows.append([stage, *(f"{share:.1f}" for share in shares), f"{seconds:.2f}"])
        outcome = Outcome(
            f"profile-{self._name}",
            f"Where does the worker's CPU go in {self._name}?",
            "bringing the crowd up; the node process; what the looks themselves cost",
            f"py-spy with native frames, {RATE} looks a second; {seen.settings}",
            ["stage", "user, %", "kernel, %", "both, %", "CPU s"],
            rows,
            [f"{total:,} samples, {self.cpu_ns / 1e9:.1f} s of the worker's CPU; flame graph: {picture}"],
            steal_percent=seen.steal_percent,
            foreign_cores=seen.foreign_cores,
            seconds=seen.seconds,
            flame=flame(samples, self._name),
        )
        picture.write_text(outcome.flame)
        return outcome


@contextlib.contextmanager
def _beside() -> Iterator[int]:
    """A Python process that is no child of py-spy, as the worker is none."""
    process = subprocess.Popen(
        [sys.executable, "-c", "print(flush=True); input()"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdout.readline()  # it is up
        yield process.pid
    finally:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()
