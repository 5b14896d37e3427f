"""How cost grows: with connections, with those who watch, with changes. Each is measured at several sizes and fitted.

A cost that grows faster than its cause shows here long before it shows in a crowd that one can afford to bring up.
"""

import contextlib
import resource
import time
from functools import partial
from statistics import median
from typing import Final

from msgspec import structs

from bench.fit import along, line, power
from bench.load import procfs
from bench.load.driver import Run, Swarm
from bench.load.pairs import COMMON, SILENCE, SPIN, complaints
from bench.load.rule import COUNTED_LEAST, LOAD_AIM, Share, counted, keep, record
from bench.load.servers import LONG_SILENCE, real
from bench.load.setting import Setting
from bench.load.tokens import host_names, token, user_names, write_tokens
from bench.load.watch import populated
from bench.outcome import Bar, Curve, Outcome

__all__ = ["scale"]

ONE_PROCESS: Final = 10_000  #: connections of one swarm; what is more comes from others
RESERVED: Final = 500  #: descriptors that are no client's
WATCHED: Final = 20
RUNS: Final = 5  #: at each size
#: A power above that is growth that somebody should look at; the fit's own error is some hundredths.
LINEAR_MOST: Final = 1.1


def scale(setting: Setting) -> Outcome:
    outcome = Outcome(
        "scale",
        "How does cost grow with connections, with watchers, with changes?",
        "TLS, a real network, several workers",
        f"one worker; a public host and observers, W connections that watch the same {WATCHED} users, 100 hosts and "
        f"1,000 observers; {COMMON}, {SILENCE}",
        ["what", "at", "measured"],
    )
    _connections(setting, outcome)
    _watchers(setting, outcome)
    _changes(setting, outcome)
    return outcome


def _crowds(setting: Setting) -> list[int]:
    """Up to what the file limit of the server, one process, allows."""
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1] - RESERVED
    sizes = (20, 50, 100) if setting.quick else (100, 300, 1000, 3000, 10_000)
    more = () if setting.quick else (min(most, 18_000), 40_000, 80_000)
    return sorted({size for size in (*sizes, *more) if size <= most})


def _connections(setting: Setting, outcome: Outcome) -> None:
    """A connection's memory, its coming, and its share of a change."""
    changes: list[tuple[float, float]] = []
    memory: list[tuple[float, float]] = []
    coming: list[tuple[float, float]] = []
    tokens = write_tokens(setting.directory / "scale", host_names(1))
    one_process = setting.size(ONE_PROCESS, 60)
    for crowd in _crowds(setting):
        setting.progress.expect(RUNS)
        with real(setting, LONG_SILENCE, f"{crowd:,} connections") as ours, contextlib.ExitStack() as more:
            time.sleep(0.3)
            empty, cpu = procfs.memory(ours.pid), procfs.cpu_ns(ours.pid)
            up = partial(Swarm, server=ours, cpus=setting.cpus, tokens=tokens, observer_token=token("observer", "user"))
            others: list[int] = []  #: swarms that only listen
            swarm = more.enter_context(
                up("fanout", connections=min(crowd, one_process), publishers=1, options=[SPIN, "--publishers-public"])
            )
            for _ in range(one_process, crowd, one_process):
                names = user_names(min(one_process, crowd - one_process))
                theirs = write_tokens(setting.directory / "scale-more", names)
                options = ["--period", "0"]
                idle = Swarm("idle", ours, setting.cpus, connections=len(names), tokens=theirs, options=options)
                others.append(more.enter_context(idle).pid)
            coming.append((crowd, (procfs.cpu_ns(ours.pid) - cpu) / 1e6))
            time.sleep(setting.seconds(1.0, 0.1))
            memory.append((crowd, (procfs.memory(ours.pid) - empty).private_dirty / 1e6))
            first = _run(setting, swarm, others, 0.0)  # to see what the load needs
            pace_ms = first.round_ms * _stretch(setting, first.load_share)
            name = f"a change told to {crowd:,}"
            runs = [
                record(setting, outcome, ours, _run(setting, swarm, others, pace_ms), name, drawn=False)
                for _ in range(RUNS)
            ]
            complaints(outcome, ours)
            costs = [run.server_cpu_ns / 1000 / max(1, run.rounds) for run in counted(setting, runs)]
            _point(outcome, changes, crowd, costs, name)
    _fitted(setting, outcome, "a change told to everybody", "connections", "µs CPU a change", changes, "µs")
    _fitted(setting, outcome, "a crowd comes", "connections", "ms CPU in all", coming, "ms")
    _fitted(setting, outcome, "memory of a crowd", "connections", "MB private and dirty", memory, "MB")


def _run(setting: Setting, swarm: Swarm, others: list[int], pace_ms: float) -> Run:
    """A run of the swarm that drives, and what the others, processes that only listen, use of its core meanwhile."""
    beside = Share(*others)
    run = swarm.run(setting.seconds(1.2, 0.3), warmup_s=setting.seconds(0.3, 0.1), pace_ms=pace_ms)
    return structs.replace(run, beside=beside.now())


def _watchers(setting: Setting, outcome: Outcome) -> None:
    """One change, told to all who watch that user."""
    points: list[tuple[float, float]] = []
    with populated(setting, WATCHED, "user") as population:
        for crowd in (10, 30, 60) if setting.quick else (10, 100, 1000, 10_000):
            setting.progress.expect(RUNS)
            tokens = write_tokens(setting.directory / "scale-watchers", user_names(crowd))
            options = ["--period", "0", "--watches", str(WATCHED), "--common"]
            with Swarm(
                "idle", population.server, setting.cpus, connections=crowd, tokens=tokens, options=options
            ) as swarm:
                time.sleep(setting.seconds(0.5, 0.1))
                changes = setting.size(max(10, min(400, 100_000 // crowd)), 40)  # some seconds, whatever the crowd
                costs: list[float] = []
                pace_ms = 0.0
                for number in range(RUNS + 1):
                    load = Share(swarm.pid)
                    answer = population.ask(f"change {changes} 1 {pace_ms}")
                    share = load.now(answer["seconds"])
                    if number == 0:  # to see what the load needs
                        pace_ms = 1000 * answer["seconds"] / changes * _stretch(setting, share)
                        continue
                    cost_us = answer["cpu_ns"] / 1000 / changes
                    if keep(setting, outcome, share, {"watchers": crowd, "us": cost_us}):
                        costs.append(cost_us)
            _point(outcome, points, crowd, costs, f"{crowd:,} watchers")
    _fitted(setting, outcome, "a change told to who watches", "watchers of the user", "µs CPU a change", points, "µs")


def _changes(setting: Setting, outcome: Outcome) -> None:
    """So many changes a second, told to a thousand."""
    points: list[tuple[float, float]] = []
    observers = setting.size(1000, 50)
    tokens = write_tokens(setting.directory / "scale-hosts", host_names(100))
    with real(setting, LONG_SILENCE, f"{observers:,} observers") as ours:
        for rate in (20, 200) if setting.quick else (10, 30, 100, 300, 1000, 3000, 10_000):
            setting.progress.expect(RUNS)
            with Swarm(
                *("sync", ours, setting.cpus),
                connections=observers,
                publishers=100,
                tokens=tokens,
                observer_token=token("observer", "user"),
                options=["--rate", str(rate), SPIN],
            ) as swarm:
                name = f"{rate:,} changes a second"
                runs = [
                    record(
                        *(setting, outcome, ours),
                        swarm.run(setting.seconds(1.0, 0.3), warmup_s=0.2),
                        name,
                        drawn=False,
                    )
                    for _ in range(RUNS)
                ]
            costs = [1000 * run.server_cpu_ns / 1e9 / run.seconds for run in counted(setting, runs)]
            _point(outcome, points, rate, costs, name)
    few = [(x, y) for x, y in points if x <= 100]
    _fitted(setting, outcome, "changes, each in a frame of its own", "changes a second", "ms CPU a second",
            few if len(few) > 1 else points, "ms")  # fmt: skip
    many = [(x, y) for x, y in points if x >= 100]
    if len(many) > 1:
        _fitted(setting, outcome, "changes that travel together", "changes a second", "ms CPU a second", many, "ms")


def _stretch(setting: Setting, share: float) -> float:
    """How many times as long a round must take so that the load has time to spare; 0: no need."""
    return share / LOAD_AIM if share > LOAD_AIM and not setting.quick else 0.0


def _point(outcome: Outcome, points: list[tuple[float, float]], x: float, costs: list[float], name: str) -> None:
    """The median of what was measured at one size, if enough of it counts."""
    if len(costs) >= COUNTED_LEAST:
        points.append((x, median(costs)))
    else:
        outcome.notes.append(f"{name}: in no fit, {len(costs)} of {RUNS} runs count")


def _fitted(
    setting: Setting, outcome: Outcome, name: str, x: str, y: str, points: list[tuple[float, float]], unit: str
) -> None:
    """A curve with its line, rows of what was measured, and whether it grows as it should."""
    if len({x for x, _ in points}) < 2:
        outcome.behind.append(f"{name}: too few runs count for a fit")
        return
    fit, grows = line(points), power(points)
    each = fit.each * 1000 if unit in ("ms", "MB") else fit.each
    smaller = {"ms": "µs", "MB": "KB", "µs": "µs"}[unit]
    amount = f"{each:,.0f}" if each >= 100 else f"{each:.3g}"
    text = f"{fit.base:,.1f} {unit} + {amount} {smaller} each (R² {fit.share:.3f}), power {grows:.2f}"
    outcome.curves.append(Curve(name, x, y, points, fit=along(points, fit.at), fit_text=text))
    outcome.rows += [[name, f"{at:,.0f} {x}", f"{value:,.1f} {y}"] for at, value in points]
    outcome.notes.append(f"{name}: {text}")
    outcome.figure(f"{name}, each", smaller, [each])
    outcome.bars.append(
        Bar(f"{name}: grows no faster than its cause, power at most {LINEAR_MOST} (here {grows:.2f})",
            grows <= LINEAR_MOST)
    )  # fmt: skip
