"""Which runs count, and which bars are judged: one rule for every scenario.

A run in which the load, all its processes together, used more than 80 % of its core does not count: it may have been
the load that was measured. It is told of and kept, and is in no figure. A bar on a median is judged from three runs
that count on; with fewer it is not judged, which is no pass. Quick runs, which are not about speed, all count.
"""

import os
import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any, Final

from bench.load import procfs
from bench.load.driver import Run
from bench.load.sampler import STEP_S
from bench.load.servers import Server
from bench.load.setting import Setting
from bench.outcome import Bar, Outcome

__all__ = ["COUNTED_LEAST", "LOAD_AIM", "LOAD_MOST", "Share", "add_bar", "counted", "counts", "keep", "record"]

LOAD_MOST: Final = 0.8  #: of its core
#: Of a load that is given a pace: so far below the most that a slow moment of the machine does not spoil the run.
LOAD_AIM: Final = 0.62
COUNTED_LEAST: Final = 3


class Share:
    """What processes of the load use of their core: from the birth of this on, read while they live.

    For those that do not tell of themselves, as a driven swarm does (`Run.load_share`).
    """

    def __init__(self, *pids: int) -> None:
        self._pids = pids
        self._cpu_ns, self._began_ns = self._used_ns(), time.monotonic_ns()

    def _used_ns(self) -> int:
        # What the kernel tells of a process is late by up to a tick (4 ms), which is a lot where it is our own.
        return sum(time.process_time_ns() if pid == os.getpid() else procfs.cpu_ns(pid) for pid in self._pids)

    def now(self, seconds: float | None = None) -> float:
        """Of the time since then, or of the `seconds` within which all of it was done."""
        elapsed_ns = time.monotonic_ns() - self._began_ns if seconds is None else 1e9 * seconds
        return (self._used_ns() - self._cpu_ns) / max(1.0, elapsed_ns)


def counts(setting: Setting, share: float) -> bool:
    """Whether a run counts in which the load had that share of its core."""
    return setting.quick or share <= LOAD_MOST


def keep(setting: Setting, outcome: Outcome, share: float, told: dict[str, Any]) -> bool:
    """Keep a run in which the load had that share of its core. Whether it counts."""
    good = counts(setting, share)
    outcome.runs.append({**told, "counts": good, "load_share": round(share, 3)})
    outcome.uncounted += not good
    setting.progress.ran()
    return good


def record(
    setting: Setting, outcome: Outcome, server: Server, run: Run, question: str = "", *, drawn: bool = True
) -> Run:
    """Keep a run of a swarm: its figures in the file, its faults in the outcome, what the report draws of it.

    `question` is what was asked, where a scenario asks several: each has a chart of its throughput, unless not `drawn`.
    """
    kept = {name: value for name, value in run.as_dict().items() if name not in ("histogram", "slices", "sample")}
    keep(setting, outcome, run.load_share, {"server": server.name, "question": question, **kept})
    outcome.faults += [f"{server.name}: {fault}" for fault in run.faults()]
    if run.slices and drawn:
        speeds = [operations / run.slice_s for operations in run.slices]
        outcome.add_series(server.name, f"{run.unit} a second", run.slice_s, speeds, question)
    if server.sampler is not None:
        outcome.add_series(server.name, "MB resident", STEP_S, [each / 1e6 for each in server.sampler.take()])
    return run


def counted(setting: Setting, runs: Sequence[Run]) -> list[Run]:
    """Those in which the server was measured, not the load."""
    return [run for run in runs if counts(setting, run.load_share)]


def add_bar(
    outcome: Outcome, text: str, values: Sequence[float], met: Callable[[float], bool], *, runs: int | None = None
) -> None:
    """A bar on a median, which takes the place of `{}` in the text; `runs` of them count, if not one for each value."""
    runs = len(values) if runs is None else runs
    told = f"{median(values):,.2f}" if values else "nothing"
    if runs < COUNTED_LEAST or not values:
        told += f", but only {runs} runs count, and it takes {COUNTED_LEAST}"
        outcome.bars.append(Bar(text.format(told), met=False, judged=False))
    else:
        outcome.bars.append(Bar(text.format(told), met(median(values))))
