"""`python -m bench`: list, run, compare, report, micro, rivals, scale, profile, guard.

Exit code 0 when every bar asked about is met, 1 when one is missed, a result is wrong or a comparison got worse, 2 for
bad usage or when nothing could be measured or compared. A quick run judges right and wrong, not speed.
"""

import argparse
import contextlib
import os
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Final

from bench.compare import compare
from bench.guard.compare import guard
from bench.load import crowd, edge, life, procfs, scenarios, secure, watch
from bench.load.scale import scale
from bench.load.servers import Server
from bench.load.setting import Cpus, Setting
from bench.machine import Machine
from bench.micro.run import micro
from bench.outcome import BenchError, Outcome
from bench.profiling import Profiler
from bench.progress import Progress
from bench.report.page import write
from bench.results import FOLDER, Results, Writer, find, newest
from bench.rivals.table import hints, rivals
from bench.sources import need_fresh_build

Scenario = Callable[[Setting], Outcome]

SCENARIOS: Final[dict[str, tuple[Scenario, str]]] = {
    "sync": (crowd.sync, "the headline: change to screen, 2,000 observers at 100 a second, 5,000 at 10; the knee"),
    "updates": (crowd.updates, "up to 20,000 changes a second, 1,000 observers: right, soon, few frames"),
    "heartbeats": (scenarios.heartbeats, "a heartbeat and its answer, beside a bare echo in C"),
    "fanout": (scenarios.fanout, "one change to 5,000 observers, beside a send loop in C"),
    "joined": (scenarios.joined, "16 changes in flight: entries a frame, and what a frame costs"),
    "handshakes": (scenarios.handshakes, "accept, upgrade, token check, user_online"),
    "messages": (life.messages, "from user to user, up to 20,000 a second: how soon, at what cost"),
    "churn": (life.churn, "400 of a crowd come back every second, and as many leave"),
    "slow-readers": (
        edge.slow_readers,
        "250 frozen readers among 1,000: who waits, what they cost, are they right later",
    ),
    "deflate": (edge.deflate, "a 4 KB delta compressed once for 5,000, beside C's send of as many bytes"),
    "storm": (edge.storm, "10,000 clients cut at once and back at once, and a bystander"),
    "watchers": (watch.watchers, "a change while up to 10,000 connections watch others"),
    "snapshot": (watch.snapshot, "100,000 public users told to a newcomer"),
    "tls": (secure.tls, "heartbeats and deliveries over TLS, beside the same without"),
    "idle": (crowd.idle, "15,000 quiet connections: memory and CPU"),
    "scale": (scale, "how cost grows with connections, watchers and changes, fitted"),
    "rivals": (rivals, "other servers at the same job: one table of ratios"),
    "micro": (micro, "single functions: frames, codec, wheel, roster, flush"),
}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench", description="What fastpresence costs, beside plain C.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="the scenarios")
    run = commands.add_parser("run", help="measure; every run leaves a file in bench/results")
    choices = [*SCENARIOS, "all"]
    run.add_argument("names", nargs="+", metavar="NAME", choices=choices, help=", ".join(choices))
    run.add_argument("--quick", action="store_true", help="seconds, small, no bar by time: does it work")
    comparing = commands.add_parser("compare", help="what got better or worse beyond the noise")
    comparing.add_argument("old", metavar="OLD", help="a results file, or a part of its name")
    comparing.add_argument("new", metavar="NEW")
    comparing.add_argument("--anyway", action="store_true", help="ratios at least, also of two machines")
    beside = commands.add_parser("rivals", help="run rivals: one table of ratios, and where fastpresence loses")
    beside.add_argument("--install-hints", action="store_true", help="how to get each rival, and which are here")
    beside.add_argument("--quick", action="store_true", help="seconds, small: does it work")
    single = commands.add_parser("micro", help="run micro: single functions")
    single.add_argument("--quick", action="store_true", help="seconds: does it work")
    growing = commands.add_parser("scale", help="run scale: how cost grows, with its fits")
    growing.add_argument("--quick", action="store_true", help="seconds, small: does it work")
    profiling = commands.add_parser("profile", help="a flame graph of the worker, and its CPU by stage")
    profiling.add_argument("name", metavar="SCENARIO", choices=list(SCENARIOS))
    profiling.add_argument("--quick", action="store_true", help="seconds, small: does it work")
    guarding = commands.add_parser("guard", help="instructions of fixed hot paths, beside what this was made from")
    guarding.add_argument(
        "--base", metavar="REV", default=os.environ.get("GUARD_BASE") or None,
        help="default: GUARD_BASE, or where HEAD left origin/main, or the commit before",
    )  # fmt: skip
    reporting = commands.add_parser(
        "report", help="one HTML file of the newest outcome of every scenario, and PNG files"
    )
    reporting.add_argument("files", nargs="*", metavar="FILE", help="of these results files only")
    for command in (run, comparing, reporting, beside, single, growing, profiling, guarding):
        command.add_argument("--results", type=Path, default=FOLDER, metavar="FOLDER", help="default: %(default)s")
    given = parser.parse_args(arguments)
    for number in (signal.SIGTERM, signal.SIGHUP):  # what was started is ended on every way out
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    try:
        if given.command == "list":
            for name, (_, question) in SCENARIOS.items():
                print(f"{name:<12} {question}")
            return 0
        if given.command == "compare":
            old, new = (Results.read(find(name, given.results)) for name in (given.old, given.new))
            lines, code = compare(old, new, anyway=given.anyway)
            print("\n".join(lines))
            return code
        if given.command == "guard":
            # It builds its own trees, and needs every CPU.
            counting = {"guard": (partial(guard, base=given.base), "instructions of fixed hot paths")}
            return measure(counting, Cpus.allowed(), quick=False, folder=given.results)
        if given.command == "report":
            files = [Results.read(find(name, given.results)) for name in given.files] or newest(given.results)
            page, count = write(files, given.results)
            print(f"{page}, and its {count} charts in {page.parent / 'report'}")
            return 0
        if given.command == "rivals" and given.install_hints:
            print("\n".join(hints()))
            return 0
        if given.command == "profile":
            return profile(given.name, quick=given.quick, folder=given.results)
        names = given.names if given.command == "run" else [given.command]
        chosen = {name: SCENARIOS[name] for name in (SCENARIOS if "all" in names else names)}
        with beside_server() as cpus:
            return measure(chosen, cpus, quick=given.quick, folder=given.results)
    except BenchError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2


@contextlib.contextmanager
def beside_server() -> Iterator[Cpus]:
    """What is started meanwhile is what the sources say, and runs on the swarm's CPU until it is pinned elsewhere."""
    need_fresh_build()
    allowed, cpus = os.sched_getaffinity(0), Cpus.allowed()
    if cpus.server == cpus.swarm:
        print("only one CPU: server and swarm share it, the figures say little")
    try:
        os.sched_setaffinity(0, {cpus.swarm})
        yield cpus
    finally:
        os.sched_setaffinity(0, allowed)


def measure(chosen: Mapping[str, tuple[Scenario, str]], cpus: Cpus, *, quick: bool, folder: Path) -> int:
    machine = Machine.here(cpus)
    print(machine.text(), flush=True)
    outcomes: list[Outcome] = []
    progress, writer = Progress(), Writer(machine, folder)
    with progress.shown(len(chosen)):
        for name, (scenario, question) in chosen.items():
            progress.scenario(name)
            try:
                outcome = run_one(scenario, cpus, quick=quick, progress=progress)
            except Exception as error:  # whatever it was: the others are still worth having
                if not isinstance(error, BenchError):
                    traceback.print_exc()
                outcome = Outcome.failure(name, question, error)
            progress.ended()
            outcomes.append(outcome)
            writer.write(outcome, quick=quick)
            print(outcome.text(quick=quick), flush=True)
    print(f"kept in {writer.path}")
    if all(outcome.failed for outcome in outcomes):
        return 2
    return 0 if all(outcome.passed(quick=quick) for outcome in outcomes) else 1


def profile(name: str, *, quick: bool, folder: Path) -> int:
    """Run a scenario with the profiler beside it; what it saw is kept, the scenario's own figures are not."""
    profiler = Profiler(name, folder)
    with beside_server() as cpus:
        writer = Writer(Machine.here(cpus), folder)
        seen = run_one(SCENARIOS[name][0], cpus, quick=quick, progress=Progress(), observe=profiler.observe)
    outcome = profiler.outcome(seen)
    writer.write(outcome, quick=quick)
    print(outcome.text(quick=quick), f"kept in {writer.path}", sep="\n")
    return 0


def run_one(
    scenario: Callable[[Setting], Outcome],
    cpus: Cpus,
    *,
    quick: bool,
    progress: Progress,
    observe: Callable[[Server], AbstractContextManager[None]] | None = None,
) -> Outcome:
    """One scenario, with what the machine did besides."""
    _raise_file_limit()
    with tempfile.TemporaryDirectory(prefix="fastpresence-bench-") as directory:
        before, began = procfs.Usage.now(), time.monotonic()
        outcome = scenario(Setting(cpus, Path(directory), quick, progress, observe))
    outcome.seconds = time.monotonic() - began
    outcome.steal_percent, outcome.foreign_cores = procfs.Usage.now().since(before)
    return outcome


def _raise_file_limit() -> None:
    """For everything that is started from here: not every server does it by itself."""
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


if __name__ == "__main__":
    sys.exit(main())
