"""Looks at a server's memory while it is measured: one read of /proc every so often, from the swarm's core."""

import contextlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Final

__all__ = ["STEP_S", "Sampler"]

STEP_S: Final = 0.25
PAGE: Final = os.sysconf("SC_PAGE_SIZE")


class Sampler:
    """Resident memory of one process, in bytes, every `STEP_S`."""

    def __init__(self, pid: int) -> None:
        self._file = Path(f"/proc/{pid}/statm")
        self._values: list[float] = []
        self._over = threading.Event()

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        thread = threading.Thread(target=self._look, daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._over.set()
            thread.join()

    def _look(self) -> None:
        while not self._over.wait(STEP_S):
            try:
                self._values.append(float(self._file.read_text().split()[1]) * PAGE)
            except OSError:
                return  # it is gone; whoever started it says so

    def take(self) -> list[float]:
        """What was seen since the last call."""
        values, self._values = self._values, []
        return values
