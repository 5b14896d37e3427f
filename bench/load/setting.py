"""What every scenario is given: who runs where, how much of it, and who looks on."""

import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from bench.progress import Progress

if TYPE_CHECKING:
    from bench.load.servers import Server

__all__ = ["Cpus", "Setting"]


@dataclass(frozen=True)
class Cpus:
    """Who runs where. With one CPU both are the same, and figures mean little."""

    server: int
    swarm: int
    count: int = 2  #: that the bench may use

    @classmethod
    def allowed(cls) -> "Cpus":
        cpus = sorted(os.sched_getaffinity(0))
        return cls(cpus[0], cpus[-1], len(cpus))


@dataclass(frozen=True)
class Setting:
    """What every scenario is given."""

    cpus: Cpus
    directory: Path  #: for tokens and logs, gone at the end
    quick: bool  #: seconds instead of minutes: does it work, not how fast
    progress: Progress = field(default_factory=Progress)
    #: Looks at every real server while it is up: the profiler.
    observe: "Callable[[Server], AbstractContextManager[None]] | None" = None

    def size(self, full: int, quick: int) -> int:
        return quick if self.quick else full

    def seconds(self, full: float, quick: float) -> float:
        return quick if self.quick else full
