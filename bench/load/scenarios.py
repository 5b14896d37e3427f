"""Costs beside the C limit: heartbeats, fanout, joined, handshakes.

Each is told in pairs: one run at the real server, one at the C limit, the same swarm on the same cores, a moment apart,
the order turned each time. The machine drifts by a third within minutes; a ratio taken within a pair hardly does.
Server CPU time per operation is the figure: unlike a rate it is nearly the same whoever else uses the machine.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Final

from bench.load.driver import Run, Swarm
from bench.load.report import Bar, Outcome
from bench.load.servers import LIMITS_OFF, LONG_SILENCE, Cpus, Server, real, rival
from bench.load.tokens import host_names, token, user_names, write_tokens

__all__ = [
    "COMMON",
    "COST_COLUMNS",
    "SILENCE",
    "SPIN",
    "Setting",
    "alternate",
    "complaints",
    "fan",
    "fanout",
    "handshakes",
    "heartbeats",
    "joined",
    "record",
]

SPIN: Final = "--spin"
COMMON: Final = f"limits.rate and limits.burst {LIMITS_OFF['FASTPRESENCE_LIMITS_RATE']}"
SILENCE: Final = "observers may be silent for an hour"


@dataclass(frozen=True)
class Setting:
    """What every scenario is given."""

    cpus: Cpus
    directory: Path  #: for tokens and logs, gone at the end
    quick: bool  #: seconds instead of minutes: does it work, not how fast

    def size(self, full: int, quick: int) -> int:
        return quick if self.quick else full

    def seconds(self, full: float, quick: float) -> float:
        return quick if self.quick else full


@contextlib.contextmanager
def both(setting: Setting, settings: dict[str, str]) -> Iterator[tuple[Server, Server]]:
    """The real server and the C limit, side by side on one core."""
    with real(setting.cpus, setting.directory, settings) as ours, rival(setting.cpus) as limit:
        yield ours, limit


def record(outcome: Outcome, server: Server, run: Run) -> Run:
    outcome.runs.append({"server": server.name, **run.as_dict()})
    outcome.faults += [f"{server.name}: {fault}" for fault in run.faults()]
    return run


def complaints(outcome: Outcome, server: Server) -> None:
    lines = server.complaints()
    if lines:
        outcome.notes.append(f"the server logged {len(lines)} lines, the first: {lines[0][:160]}")


def alternate(
    outcome: Outcome,
    sides: tuple[tuple[Server, Swarm], tuple[Server, Swarm]],
    pairs: int,
    measure: Callable[[Swarm], Run],
) -> "Pairs":
    """`pairs` times `measure` on either side, ours first and the C limit first by turns."""
    runs = Pairs()
    for i in range(pairs):
        for which in (0, 1) if i % 2 == 0 else (1, 0):
            server, swarm = sides[which]
            (runs.limit if which else runs.ours).append(record(outcome, server, measure(swarm)))
    return runs


class Pairs:
    """Runs by pair, and the two ways to sum up their ratio."""

    def __init__(self) -> None:
        self.ours: list[Run] = []
        self.limit: list[Run] = []

    def ratios(self) -> list[float]:
        """Cost of ours over cost of the limit, pair by pair."""
        return [
            ours.us_per_operation / limit.us_per_operation for ours, limit in zip(self.ours, self.limit, strict=True)
        ]

    def of_medians(self) -> float:
        return self.cost(self.ours) / self.cost(self.limit)

    @staticmethod
    def cost(runs: list[Run]) -> float:
        return median(run.us_per_operation for run in runs)

    def rows(self, names: tuple[str, str] = ("fastpresence", "C limit")) -> list[list[str]]:
        rows = []
        for name, runs in zip(names, (self.ours, self.limit), strict=True):
            costs = [run.us_per_operation for run in runs]
            busy = max(run.swarm_busy for run in runs)
            rate = median(run.operations / run.seconds for run in runs)
            rows.append(
                [name, f"{min(costs):.2f}", f"{median(costs):.2f}", f"{max(costs):.2f}", f"{rate:,.0f}", f"{busy:.2f}"]
            )
        return rows

    def note(self) -> str:
        ratios = sorted(self.ratios())
        middle, least, most = median(ratios), ratios[0], ratios[-1]
        return (
            f"cost of ours / C: median of {len(ratios)} pairs {middle:.3f} ({least:.2f} to {most:.2f}), "
            f"of medians {self.of_medians():.3f}"
        )


COST_COLUMNS: Final = ("server", "µs CPU best", "median", "worst", "a second", "swarm busy")


def heartbeats(setting: Setting) -> Outcome:
    connections, pairs = setting.size(1000, 50), setting.size(9, 2)
    seconds, warmup_s = setting.seconds(2.0, 0.3), setting.seconds(0.5, 0.1)
    outcome = Outcome(
        "heartbeats",
        "What does a heartbeat and its answer cost beside a bare echo in C?",
        "TLS, a real network, MessagePack; every beat is alone in its read",
        f"{connections} present users, JSON, one beat in flight each; {pairs} pairs of {seconds} s; {COMMON}",
        COST_COLUMNS,
    )
    tokens = write_tokens(setting.directory / "heartbeats", user_names(connections))
    crowd = partial(Swarm, "heartbeats", cpus=setting.cpus, connections=connections, tokens=tokens)
    with both(setting, {}) as (ours, limit):
        with crowd(ours, options=["--present", SPIN]) as us, crowd(limit, options=[SPIN]) as them:
            runs = alternate(
                outcome, ((ours, us), (limit, them)), pairs, lambda swarm: swarm.run(seconds, warmup_s=warmup_s)
            )
        complaints(outcome, ours)
    outcome.rows += runs.rows()
    outcome.notes.append(runs.note())
    ratio = median(runs.ratios())
    outcome.bars.append(Bar(f"at most 1.50 times the C server's echo (here {ratio:.2f})", ratio <= 1.5))
    return outcome


def fanout(setting: Setting) -> Outcome:
    observers, pairs = setting.size(5000, 100), setting.size(9, 2)
    seconds, warmup_s = setting.seconds(2.0, 0.3), setting.seconds(0.5, 0.1)
    outcome = Outcome(
        "fanout",
        "What does it cost to tell one change to everybody, beside one prebuilt frame and a send loop in C?",
        "TLS, a real network, slow readers, compression",
        f"{observers} observers and a host, one change in flight; {pairs} pairs of {seconds} s; {COMMON}, {SILENCE}",
        COST_COLUMNS,
    )
    runs, _, _ = fan(setting, outcome, observers, 1, pairs, seconds, warmup_s)
    outcome.rows += runs.rows()
    outcome.notes.append(runs.note())
    sizes = sorted({(run.payload_min, run.payload_max) for run in runs.ours})
    outcome.notes.append(f"payloads of ours (bytes, least and most): {sizes}; C limit: {runs.limit[-1].payload_bytes}")
    outcome.notes.append(
        f"a round, from the change to the last observer: {median(run.round_ms for run in runs.ours):.1f} ms, "
        f"C {median(run.round_ms for run in runs.limit):.1f} ms"
    )
    share = median(1 / ratio for ratio in runs.ratios())
    outcome.bars.append(
        Bar(f"at least 0.90 of the C server's deliveries per CPU second (here {share:.3f}; target 0.97)", share >= 0.90)
    )
    return outcome


def joined(setting: Setting) -> Outcome:
    observers, pairs, hosts = setting.size(1000, 100), setting.size(7, 2), 16
    seconds, warmup_s = setting.seconds(2.0, 0.3), setting.seconds(0.5, 0.1)
    outcome = Outcome(
        "joined",
        "Do 16 changes in flight travel together, and what does such a frame cost beside C's send of its bytes?",
        "TLS, a real network, slow readers, compression",
        f"{observers} observers, {hosts} hosts, each changes again when a quarter have seen its last change; "
        f"{pairs} pairs of {seconds} s; {COMMON}, {SILENCE}",
        COST_COLUMNS,
    )
    runs, paced, payload = fan(setting, outcome, observers, hosts, pairs, seconds, warmup_s)
    outcome.rows += runs.rows()
    outcome.rows.append(paced.rows(("", "C limit, at our pace"))[1])
    outcome.notes.append(runs.note())
    outcome.notes.append(f"with C at our pace: {paced.note()}")
    entries = sum(run.entries for run in runs.ours)
    per_frame = entries / max(1, sum(run.frames for run in runs.ours))
    per_second = entries / (sum(run.server_cpu_ns for run in runs.ours) / 1e9)
    outcome.notes.append(
        f"{per_frame:.2f} entries a frame, {payload} bytes of payload a frame, {per_second:,.0f} entries per CPU second"
    )
    ratio = median(runs.ratios())
    outcome.bars.append(Bar(f"at least 15 entries a frame (here {per_frame:.2f})", per_frame >= 15))
    outcome.bars.append(Bar(f"a frame at most 1.30 times C's send of the same bytes (here {ratio:.2f})", ratio <= 1.3))
    return outcome


def fan(
    setting: Setting,
    outcome: Outcome,
    observers: int,
    hosts: int,
    pairs: int,
    seconds: float,
    warmup_s: float,
    more: Sequence[str] = (),
) -> tuple[Pairs, Pairs, int]:
    """Pairs of the real server with `hosts` publishers and the C limit with one, whose frames are as long as ours.

    The second pairs, for several hosts only, have the C limit send one frame as often as ours: a send after a rest
    costs more than one of a row, and a server that joins changes rests. Then the mean payload, in bytes. `more` are
    options of the swarm at the real server.
    """
    tokens = write_tokens(setting.directory / outcome.name, host_names(hosts))
    crowd = partial(
        Swarm,
        "fanout",
        cpus=setting.cpus,
        connections=observers,
        tokens=tokens,
        observer_token=token("observer", "user"),
    )
    # The one host of `fanout` listens as well: the C server sends to everybody, and so do we.
    options = [SPIN, "--publishers-public"] if hosts == 1 else [SPIN, "--eager", *more]
    payload = 0

    def measure(swarm: Swarm, pace_ms: float = 0.0) -> Run:
        nonlocal payload
        run = swarm.run(seconds, warmup_s=warmup_s, payload_bytes=payload, pace_ms=pace_ms)
        payload = run.payload_bytes or payload  # the limit gives back what it was given
        return run

    with both(setting, LONG_SILENCE) as (ours, limit):
        with crowd(ours, publishers=hosts, options=options) as us, crowd(limit, publishers=1, options=[SPIN]) as them:
            record(outcome, ours, measure(us))  # for the length of our frames, and to warm up
            sides = ((ours, us), (limit, them))
            runs = alternate(outcome, sides, pairs, measure)
            paced = Pairs()
            if hosts > 1:
                pace_ms = 1000 / median(run.frames / observers / run.seconds for run in runs.ours)
                paced = alternate(outcome, sides, pairs, lambda swarm: measure(swarm, pace_ms if swarm is them else 0))
        complaints(outcome, ours)
    return runs, paced, payload


def handshakes(setting: Setting) -> Outcome:
    many, rounds = setting.size(4000, 200), setting.size(5, 1)
    outcome = Outcome(
        "handshakes",
        "What does a newcomer cost: accept, upgrade, token check, welcome, snapshot, user_online and its ack?",
        "TLS, a real network; the connection ends with a reset, whose cost is included",
        f"{rounds} rounds of {many} distinct users, 64 in progress; {COMMON}",
        COST_COLUMNS,
    )
    tokens = write_tokens(setting.directory / "handshakes", user_names(many * (rounds + 1)))
    crowd = partial(Swarm, "handshakes", cpus=setting.cpus, connections=1, tokens=tokens)
    with both(setting, {}) as (ours, limit):
        with crowd(ours, options=["--present", SPIN]) as us, crowd(limit, options=[SPIN]) as them:
            us.run(many)  # to warm up
            them.run(many)
            runs = alternate(outcome, ((ours, us), (limit, them)), rounds, lambda swarm: swarm.run(many))
        complaints(outcome, ours)
    outcome.rows += runs.rows(("fastpresence", "C limit, upgrade only"))
    cost = Pairs.cost(runs.ours)
    outcome.bars.append(Bar(f"at most 120 µs of server CPU (here {cost:.1f})", cost <= 120))
    return outcome
