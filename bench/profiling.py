"""`python -m bench profile SCENARIO`: the scenario as it always runs, with py-spy looking at the worker.

It looks from the first run on, so that bringing a crowd up is not in the picture, 200 times a second, at native frames
too. A look stops the worker for some 100 µs: what the scenario measures meanwhile is worth nothing, and is not kept.
"""

import contextlib
import importlib.util
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from bench.load import procfs
from bench.load.servers import Server
from bench.outcome import BenchError, table
from bench.stages import flame, read_samples, sorted_by_stage

__all__ = ["Profiler"]

RATE: Final = 200  #: looks a second
END_TIMEOUT_S: Final = 60


class Profiler:
    """Observes every real server of a scenario, one after the other, or several at once."""

    def __init__(self, name: str, folder: Path) -> None:
        if importlib.util.find_spec("py_spy") is None and not self._program().exists():
            raise BenchError("profiling needs py-spy: pip install -e '.[bench]'")
        self._name = name
        self._folder = folder
        self._raw: list[Path] = []
        self.cpu_ns = 0

    @staticmethod
    def _program() -> Path:
        return Path(sys.executable).with_name("py-spy")

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
            *(str(self._program()), "record", "--pid", str(server.pid), "--native", "--rate", str(RATE)),
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

    def tell(self) -> list[str]:
        """The table of stages; writes the flame graph. Raises BenchError when there is nothing to tell."""
        samples = [sample for path in self._raw if path.exists() for sample in read_samples(path.read_text())]
        for path in self._raw:
            path.unlink(missing_ok=True)
        total = sum(count for _, count in samples)
        if not total:
            raise BenchError("py-spy saw nothing: may it look at other processes (kernel.yama.ptrace_scope)?")
        picture = self._folder / f"profile-{self._name}.svg"
        picture.write_text(flame(samples, self._name))
        rows = []
        for stage, (user, kernel) in sorted_by_stage(samples).items():
            shares = [100 * count / total for count in (user, kernel, user + kernel)]
            seconds = (user + kernel) / total * self.cpu_ns / 1e9
            rows.append([stage, *(f"{share:.1f}" for share in shares), f"{seconds:.2f}"])
        return [
            *table(["stage", "user, %", "kernel, %", "both, %", "CPU s"], rows),
            f"{total:,} samples, {self.cpu_ns / 1e9:.1f} s of the worker's CPU; flame graph: {picture}",
        ]
