"""`python -m bench micro`: these benchmarks as one scenario, judged, kept and compared like the others.

Each repetition is a process of its own. The best round of each stands for it: of a function that takes microseconds the
other rounds tell what else the machine did.
"""

import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from statistics import median
from typing import Any, Final

import msgspec

from bench.load.setting import Setting
from bench.outcome import Bar, BenchError, Outcome
from bench.sources import ROOT

__all__ = ["micro", "read", "tell"]

HERE: Final = Path(__file__).resolve().parent
NAME: Final = re.compile(r"test_(\w+)\.py::test_(\S+)$")


def micro(setting: Setting) -> Outcome:
    repetitions, seconds = setting.size(5, 1), setting.seconds(0.2, 0.05)
    outcome = Outcome(
        "micro",
        "What do single functions cost, each called in a loop?",
        "cold caches, and everything around the function",
        f"{repetitions} repetitions, {seconds} s of each benchmark or a few rounds; the best round of each repetition",
        ["benchmark", "µs best", "median", "worst"],
    )
    setting.progress.expect(repetitions)
    found: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for _ in range(repetitions):
        for name, benchmark in read(_measure(setting.directory / "micro.json", seconds)).items():
            found[name].append(benchmark)
        setting.progress.ran()
    tell(outcome, found)
    return outcome


def _measure(file: Path, seconds: float) -> bytes:
    # Rounds of 100 µs: of less, what it takes to read the clock is a part of the figure, now and then.
    words = ["--benchmark-only", f"--benchmark-max-time={seconds}", "--benchmark-min-time=0.0001"]
    words += [f"--benchmark-json={file}", str(HERE)]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *words]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if result.returncode:
        raise BenchError(
            f"the micro benchmarks failed (pip install -e '.[bench]'?):\n{result.stdout[-2000:]}{result.stderr[-500:]}"
        )
    return file.read_bytes()


def read(told: bytes) -> dict[str, dict[str, Any]]:
    """What pytest-benchmark wrote, by a short name: `wheel: rearm`."""
    benchmarks = {}
    for each in msgspec.json.decode(told)["benchmarks"]:
        found = NAME.search(each["fullname"])
        benchmarks[f"{found[1]}: {found[2]}" if found else each["fullname"]] = each
    return benchmarks


def tell(outcome: Outcome, found: dict[str, list[dict[str, Any]]]) -> None:
    """Rows, figures and bars of benchmarks by name, one of each repetition.

    A bar is a benchmark's `extra_info["bar"]`: what it is about, and the most that `extra_info` may say of that.
    """
    for name, benchmarks in found.items():
        best = [1e6 * each["stats"]["min"] for each in benchmarks]
        outcome.rows.append([name, *(f"{value:,.3f}" for value in (min(best), median(best), max(best)))])
        outcome.figure(name, "µs", best)
        info = benchmarks[0]["extra_info"]
        if "bar" in info:
            what, most = info["bar"]
            value = min(each["extra_info"][what] for each in benchmarks)
            outcome.bars.append(Bar(f"{name}: {what}, at most {most} (here {value})", value <= most))
