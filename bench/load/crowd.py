"""A crowd as it is in life: sync (a change to every screen), updates (more changes than frames) and idle (none)."""

import contextlib
import time
from collections.abc import Iterator
from functools import partial
from statistics import median
from typing import Final

from bench.load import procfs
from bench.load.driver import Run, Swarm
from bench.load.pairs import COMMON, COST_COLUMNS, SILENCE, SPIN, alternate, both, complaints
from bench.load.rule import add_bar, counted, counts, record
from bench.load.servers import LONG_SILENCE, Server, real
from bench.load.setting import Setting
from bench.load.tokens import host_names, token, user_names, write_tokens
from bench.outcome import Bar, Curve, Outcome

__all__ = ["idle", "right", "sync", "updates"]

FRAMES_BAR: Final = 105  #: presence frames a second at one observer
LATENCY_BAR_MS: Final = 50
MEMORY_BAR: Final = 2500  #: bytes a connection
SETTLE_S: Final = 2.0  #: between the last connection and the look at memory
#: The headline: observers, changes a second.
CROWDS: Final = ((2000, 100), (5000, 10))
#: Where to look for the knee, by changes a second.
KNEE: Final = {100: (1000, 2000, 3000, 4000, 5000, 6000, 8000), 10: (2500, 5000, 7500, 10_000, 12_500, 15_000)}
HOSTS: Final = 100


@contextlib.contextmanager
def _screens(setting: Setting, server: Server, observers: int, hosts: int, rate: float) -> Iterator[Swarm]:
    """Observers, and hosts that change so many times a second in all."""
    tokens = write_tokens(setting.directory / "screens", host_names(hosts))
    with Swarm(
        *("sync", server, setting.cpus),
        connections=observers,
        publishers=hosts,
        tokens=tokens,
        observer_token=token("observer", "user"),
        options=["--rate", str(rate), SPIN],
    ) as swarm:
        yield swarm


def _row(name: str, runs: list[Run]) -> list[str]:
    run = sorted(runs, key=lambda run: run.p99_ms)[len(runs) // 2]
    cores = run.server_cpu_ns / 1e9 / run.seconds
    return [
        name,
        *(f"{ms:.1f}" for ms in (run.p50_ms, run.p99_ms, run.p999_ms, run.max_ms)),
        *(f"{run.frames_a_second:.0f}", f"{cores:.2f}", f"{max(run.load_share for run in runs):.2f}"),
    ]


COLUMNS: Final = ("the median run by p99", "p50 ms", "p99", "p99.9", "max", "frames/s each", "cores", "load busy")


def _sent_all(outcome: Outcome, run: Run, rate: float, seconds: float) -> None:
    if run.changes < rate * seconds * 0.98:
        outcome.behind.append(f"the swarm sent only {run.changes} changes")


def sync(setting: Setting) -> Outcome:
    crowds = ((50, 100), (100, 10)) if setting.quick else CROWDS
    repetitions, hosts = setting.size(5, 2), setting.size(HOSTS, 20)
    seconds, warmup_s = setting.seconds(8.0, 1.0), setting.seconds(1.5, 0.3)
    outcome = Outcome(
        "sync",
        "How soon is a host's change on every screen: 2,000 observers at 100 changes a second, 5,000 at 10?",
        "TLS, a real network, slow readers; the time the swarm takes to read is in the latency",
        f"{hosts} public hosts, open loop, latency from when a change was due; {repetitions} runs of {seconds} s each; "
        f"{COMMON}, {SILENCE}",
        list(COLUMNS),
        latency_bar_ms=LATENCY_BAR_MS,
    )
    with real(setting, LONG_SILENCE) as ours:
        for observers, rate in crowds:
            name = f"{observers:,} observers, {rate} changes a second"
            setting.progress.expect(repetitions)
            with _screens(setting, ours, observers, hosts, rate) as swarm:
                runs = [
                    record(setting, outcome, ours, swarm.run(seconds, warmup_s=warmup_s), name)
                    for _ in range(repetitions)
                ]
            for run in runs:
                outcome.add_histogram(name, run.histogram)
                _sent_all(outcome, run, rate, seconds + warmup_s)
            outcome.rows.append(_row(name, runs))
            late = [run.p99_ms for run in counted(setting, runs)]
            outcome.figure(f"p99, {name}", "ms", late)
            outcome.figure(f"p50, {name}", "ms", [run.p50_ms for run in counted(setting, runs)])
            add_bar(outcome, f"{name}: under {LATENCY_BAR_MS} ms at p99, median of {len(late)} runs (here {{}})", late,
                    lambda p99: p99 < LATENCY_BAR_MS)  # fmt: skip
            right(outcome, name, *runs)
        for rate, sizes in KNEE.items():
            _knee(setting, outcome, ours, rate, sizes[:2] if setting.quick else sizes)
        complaints(outcome, ours)
    return outcome


def _knee(setting: Setting, outcome: Outcome, ours: Server, rate: int, sizes: tuple[int, ...]) -> None:
    """One run for each size of the crowd, up to the first that is too large: where does it end?"""
    points: list[tuple[float, float]] = []
    uncounted: list[tuple[float, float]] = []
    ended = ""
    seconds = setting.seconds(4.0, 0.5)
    for observers in sizes:
        size = setting.size(observers, observers // 25)
        setting.progress.expect(1)
        with _screens(setting, ours, size, setting.size(HOSTS, 20), rate) as swarm:
            run = swarm.run(seconds, warmup_s=setting.seconds(1.0, 0.2))
            record(setting, outcome, ours, run, f"the knee at {rate} changes a second", drawn=False)
        (points if counts(setting, run.load_share) else uncounted).append((size, run.p99_ms))
        cores = run.server_cpu_ns / 1e9 / run.seconds
        if run.p99_ms >= LATENCY_BAR_MS:
            ended = f"{size:,} are too many: p99 {run.p99_ms:.0f} ms, worker {cores:.2f} cores"
            if not counts(setting, run.load_share):
                ended += f", but there the swarm is at its own limit, too (busy {run.load_share:.2f})"
            break
    # A swarm at its own limit makes a latency longer, not shorter: what held beside it holds.
    good = max((size for size, p99 in (*points, *uncounted) if p99 < LATENCY_BAR_MS), default=0)
    ended = ended or f"it holds for {good:,}, the largest crowd tried"
    outcome.notes.append(
        f"the knee at {rate} changes a second: p99 under {LATENCY_BAR_MS} ms up to {good:,.0f}; {ended}"
    )
    outcome.curves.append(
        Curve(f"the knee at {rate} changes a second", "observers", "change to screen, p99, ms", points,
              uncounted=uncounted, text=ended, limit=LATENCY_BAR_MS)
    )  # fmt: skip


def updates(setting: Setting) -> Outcome:
    observers, hosts = setting.size(1000, 50), setting.size(HOSTS, 20)
    rates = (400, 800) if setting.quick else (500, 2000, 10_000, 20_000)
    asked, repetitions = rates[1], setting.size(5, 1)
    seconds, warmup_s = setting.seconds(4.0, 1.0), setting.seconds(1.5, 0.3)
    outcome = Outcome(
        "updates",
        "With more changes than anybody could read: is every screen right, how soon, with how many frames?",
        "TLS, a real network, slow readers; the time the swarm takes to read is in the latency",
        f"{observers} observers, {hosts} hosts, open loop; {repetitions} runs of {seconds} s at each rate; "
        f"{COMMON}, {SILENCE}",
        ["changes a second", "entries told a second", "of all", "entries a frame", "µs CPU an entry", *COLUMNS[2:]],
    )
    with real(setting, LONG_SILENCE) as ours:
        for rate in rates:
            name = f"{rate:,} changes a second"
            setting.progress.expect(repetitions)
            with _screens(setting, ours, observers, hosts, rate) as swarm:
                runs = [
                    record(setting, outcome, ours, swarm.run(seconds, warmup_s=warmup_s), name)
                    for _ in range(repetitions)
                ]
            told = [run.entries / run.seconds for run in runs]
            share = median(told) / rate / observers
            each_us = [run.server_cpu_ns / 1000 / max(1, run.entries) for run in runs]
            per_frame = median(run.entries / max(1, run.frames) for run in runs)
            outcome.rows.append(
                [f"{rate:,}", f"{median(told):,.0f}", f"{100 * share:.0f} %", f"{per_frame:.1f}",
                 f"{median(each_us):.2f}", *_row("", runs)[2:]]
            )  # fmt: skip
            counting = counted(setting, runs)
            for run in runs:
                outcome.add_histogram(name, run.histogram)
                _sent_all(outcome, run, rate, seconds + warmup_s)
            outcome.figure(f"p99, {name}", "ms", [run.p99_ms for run in counting])
            outcome.figure(f"an entry told, {name}", "µs CPU",
                           [run.server_cpu_ns / 1000 / max(1, run.entries) for run in counting])  # fmt: skip
            right(outcome, name, *runs)
            if rate == asked:
                add_bar(outcome, f"{name}: at most {FRAMES_BAR} frames a second at each observer (here {{}})",
                        [run.frames_a_second for run in counting], lambda frames: frames <= FRAMES_BAR)  # fmt: skip
                add_bar(outcome, f"{name}: under {LATENCY_BAR_MS} ms at p99 (here {{}})",
                        [run.p99_ms for run in counting], lambda p99: p99 < LATENCY_BAR_MS)  # fmt: skip
                outcome.notes.append(
                    f"at {name}: p99 is {median(run.p99_newest_ms for run in runs):.1f} ms when an entry is taken for "
                    f"the newest change it can be, not the oldest; at most "
                    f"{max(run.frames_max_in_a_second for run in runs)} frames in any one second at any one observer"
                )
        complaints(outcome, ours)
    return outcome


def right(outcome: Outcome, name: str, *runs: Run) -> None:
    """The bar that has nothing to do with speed."""
    wrong = {
        "observers' states differ from the last sent": sum(run.wrong for run in runs),
        "observers differ in a rev": sum(run.rev_differs for run in runs),
        "times a rev went back": sum(run.rev_back for run in runs),
        "entries fit no order of what was sent": sum(run.unmatched for run in runs),
    }
    faults = [f"{count} {what}" for what, count in wrong.items() if count]
    text = "; ".join([f"{name}: every observer ends with the right state of every host", *faults])
    outcome.bars.append(Bar(text, not faults, by_time=False))


def idle(setting: Setting) -> Outcome:
    connections, pairs = setting.size(15_000, 300), setting.size(7, 2)
    seconds, warmup_s, period_s = setting.seconds(7.0, 1.0), setting.seconds(0.5, 0.1), setting.seconds(30.0, 1.0)
    outcome = Outcome(
        "idle",
        "What does a present, authenticated, quiet connection cost in memory, and a crowd of them in CPU?",
        "kernel memory of the sockets (the same for every server, some 5 KB), TLS",
        f"{connections} connections, a beat every {period_s:.0f} s each at its own moment; {pairs} pairs of "
        f"{seconds:.0f} s; {COMMON}, {SILENCE}",
        list(COST_COLUMNS),
    )
    tokens = write_tokens(setting.directory / "idle", user_names(connections))
    options = ["--period", str(period_s), SPIN]
    crowd = partial(Swarm, "idle", cpus=setting.cpus, connections=connections, tokens=tokens)
    with both(setting, LONG_SILENCE) as (ours, theirs):
        time.sleep(0.5)
        empty = procfs.memory(ours.pid)
        with crowd(ours, options=[*options, "--present"]) as us, crowd(theirs, options=options) as them:
            setting.progress.expect(1)
            record(setting, outcome, ours, us.run(period_s + 1))  # everybody has beaten once: so it goes on from here
            time.sleep(setting.seconds(SETTLE_S, 0.3))
            growth = procfs.memory(ours.pid) - empty
            sides = ((ours, us), (theirs, them))
            runs = alternate(setting, outcome, sides, pairs, lambda swarm: swarm.run(seconds, warmup_s=warmup_s))
        complaints(outcome, ours)
    for name, last in (("ours", runs.ours[-1]), ("C", runs.limit[-1])):
        if last.connections != connections:
            outcome.faults.append(f"{name}: only {last.connections} connections were held")
    # Shared pages move between processes while others start and end; what is dirty and private does not.
    per_connection = max(growth.pss, growth.private_dirty) / connections
    outcome.rows += runs.rows()
    outcome.runs[-1] |= {"pss_growth": growth.pss, "private_dirty_growth": growth.private_dirty, "empty_pss": empty.pss}
    outcome.notes += [
        runs.note(),
        f"memory a connection: PSS {growth.pss / connections:,.0f} bytes, private and dirty "
        f"{growth.private_dirty / connections:,.0f}; the empty worker {empty.pss / 1e6:.1f} MB",
    ]
    outcome.figure("user memory of a connection", "bytes", [per_connection])
    outcome.figure("CPU of the crowd", "cores",
                   [run.server_cpu_ns / 1e9 / run.seconds for run, _ in runs.that_count()])  # fmt: skip
    outcome.figure("CPU of the crowd, beside C", "times", runs.ratios())
    outcome.bars.append(
        Bar(f"at most {MEMORY_BAR} bytes of user memory a connection (here {per_connection:,.0f}; target 1,200)",
            per_connection <= MEMORY_BAR)
    )  # fmt: skip
    add_bar(outcome, "CPU at most twice the C server's at the same rate (here {})", runs.ratios(),
            lambda ratio: ratio <= 2.0)  # fmt: skip
    return outcome
