"""`python -m bench list`, and `python -m bench run NAME... [--quick] [--json FILE]`.

Exit code 0 when every bar asked about is met, 1 when one is missed or a result is wrong, 2 for bad usage or when
nothing could be measured. A quick run judges right and wrong, not speed.
"""

import argparse
import os
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from bench.load import crowd, edge, procfs, scenarios, secure
from bench.load.report import BenchError, Machine, Outcome
from bench.load.servers import Cpus

SCENARIOS: Final[dict[str, tuple[Callable[[scenarios.Setting], Outcome], str]]] = {
    "heartbeats": (scenarios.heartbeats, "a heartbeat and its answer, beside a bare echo in C"),
    "fanout": (scenarios.fanout, "one change to 5,000 observers, beside a send loop in C"),
    "joined": (scenarios.joined, "16 changes in flight: entries a frame, and what a frame costs"),
    "handshakes": (scenarios.handshakes, "accept, upgrade, token check, user_online"),
    "sync": (crowd.sync, "2,000 changes a second, 1,000 observers: right, soon, few frames"),
    "slow-readers": (
        edge.slow_readers,
        "250 frozen readers among 1,000: who waits, what they cost, are they right later",
    ),
    "deflate": (edge.deflate, "a 4 KB delta compressed once for 5,000, beside C's send of as many bytes"),
    "storm": (edge.storm, "10,000 clients cut at once and back at once, and a bystander"),
    "tls": (secure.tls, "heartbeats and deliveries over TLS, beside the same without"),
    "idle": (crowd.idle, "15,000 quiet connections: memory and CPU"),
}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench", description="What fastpresence costs, beside plain C.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="the scenarios")
    run = commands.add_parser("run", help="measure")
    choices = [*SCENARIOS, "all"]
    run.add_argument("names", nargs="+", metavar="NAME", choices=choices, help=", ".join(choices))
    run.add_argument("--quick", action="store_true", help="seconds, small, no bar by time: does it work")
    run.add_argument("--json", type=Path, metavar="FILE", help="every single run, for whoever wants to look closer")
    given = parser.parse_args(arguments)
    if given.command == "list":
        for name, (_, question) in SCENARIOS.items():
            print(f"{name:<12} {question}")
        return 0
    names = list(SCENARIOS) if "all" in given.names else list(dict.fromkeys(given.names))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # what was started is ended on every way out
    try:
        return measure(names, quick=given.quick, json_file=given.json)
    except BenchError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2


def measure(names: list[str], *, quick: bool, json_file: Path | None) -> int:
    allowed, cpus = os.sched_getaffinity(0), Cpus.allowed()
    machine = Machine.here(len(allowed))
    print(machine.text(), flush=True)
    if cpus.server == cpus.swarm:
        print("only one CPU: server and swarm share it, the figures say little")
    outcomes: list[Outcome] = []
    try:
        os.sched_setaffinity(0, {cpus.swarm})  # and so everything started from here, until it is pinned elsewhere
        for name in names:
            with tempfile.TemporaryDirectory(prefix="fastpresence-bench-") as directory:
                before = procfs.Usage.now()
                outcome = SCENARIOS[name][0](scenarios.Setting(cpus, Path(directory), quick))
            outcome.steal_percent, outcome.foreign_cores = procfs.Usage.now().since(before)
            outcomes.append(outcome)
            print(outcome.text(quick=quick), flush=True)
    finally:
        os.sched_setaffinity(0, allowed)
        if json_file is not None:
            json_file.write_bytes(
                msgspec.json.format(
                    msgspec.json.encode({"machine": machine.as_dict(), "quick": quick, "scenarios": outcomes}), indent=1
                )
            )
    return 0 if all(outcome.passed(quick=quick) for outcome in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
