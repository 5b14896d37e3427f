"""How cost grows: with connections, with those who watch, with changes. Each is measured at several sizes and fitted.

A cost that grows faster than its cause shows here long before it shows in a crowd that one can afford to bring up.
"""

import contextlib
import resource
import time
from functools import partial
from statistics import median
from typing import Final

from bench.fit import line, power
from bench.load import procfs
from bench.load.driver import Swarm
from bench.load.pairs import COMMON, SILENCE, SPIN, complaints, counted, record
from bench.load.servers import LONG_SILENCE, real
from bench.load.setting import Setting
from bench.load.tokens import host_names, token, user_names, write_tokens
from bench.load.watch import populated
from bench.outcome import Bar, Curve, Outcome

__all__ = ["scale"]

ONE_PROCESS: Final = 10_000  #: connections of one swarm; what is more comes from others
RESERVED: Final = 500  #: descriptors that are no client's
WATCHED: Final = 20
#: A swarm that needs more of its core is given time: so many rounds' worth for one.
SWARM_AIM: Final = 0.6
PACE: Final = 1.6
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
        setting.progress.expect(3)
        with real(setting, LONG_SILENCE) as ours, contextlib.ExitStack() as more:
            time.sleep(0.3)
            empty, cpu = procfs.memory(ours.pid), procfs.cpu_ns(ours.pid)
            up = partial(Swarm, server=ours, cpus=setting.cpus, tokens=tokens, observer_token=token("observer", "user"))
            swarm = more.enter_context(
                up("fanout", connections=min(crowd, one_process), publishers=1, options=[SPIN, "--publishers-public"])
            )
            for _ in range(one_process, crowd, one_process):
                names = user_names(min(one_process, crowd - one_process))
                others = write_tokens(setting.directory / "scale-more", names)
                more.enter_context(
                    Swarm("idle", ours, setting.cpus, connections=len(names), tokens=others, options=["--period", "0"])
                )
            coming.append((crowd, (procfs.cpu_ns(ours.pid) - cpu) / 1e6))
            time.sleep(setting.seconds(1.0, 0.1))
            memory.append((crowd, (procfs.memory(ours.pid) - empty).private_dirty / 1e6))
            seconds, warmup_s = setting.seconds(1.5, 0.3), setting.seconds(0.5, 0.1)
            first = swarm.run(seconds / 3, warmup_s=warmup_s)
            pace_ms = PACE * first.round_ms if first.swarm_share > SWARM_AIM and not setting.quick else 0.0
            runs = [
                record(setting, outcome, ours, swarm.run(seconds, warmup_s=warmup_s, pace_ms=pace_ms)) for _ in range(3)
            ]
            complaints(outcome, ours)
            runs = counted(setting, runs)
            if runs:
                changes.append((crowd, median(run.server_cpu_ns / 1000 / max(1, run.rounds) for run in runs)))
    _fitted(setting, outcome, "a change told to everybody", "connections", "µs CPU a change", changes, "µs")
    _fitted(setting, outcome, "a crowd comes", "connections", "ms CPU in all", coming, "ms")
    _fitted(setting, outcome, "memory of a crowd", "connections", "MB private and dirty", memory, "MB")


def _watchers(setting: Setting, outcome: Outcome) -> None:
    """One change, told to all who watch that user."""
    points: list[tuple[float, float]] = []
    with populated(setting, WATCHED, "user") as population:
        for crowd in (10, 30, 60) if setting.quick else (10, 100, 1000, 10_000):
            setting.progress.expect(1)
            tokens = write_tokens(setting.directory / "scale-watchers", user_names(crowd))
            options = ["--period", "0", "--watches", str(WATCHED), "--common"]
            with Swarm("idle", population.server, setting.cpus, connections=crowd, tokens=tokens, options=options):
                time.sleep(setting.seconds(0.5, 0.1))
                changes = setting.size(max(20, min(400, 100_000 // crowd)), 40)  # some seconds, whatever the crowd
                costs = [population.ask(f"change {changes} 1")["cpu_ns"] / 1000 / changes for _ in range(3)]
            points.append((crowd, median(costs)))
            setting.progress.ran()
    _fitted(setting, outcome, "a change told to who watches", "watchers of the user", "µs CPU a change", points, "µs")


def _changes(setting: Setting, outcome: Outcome) -> None:
    """So many changes a second, told to a thousand."""
    points: list[tuple[float, float]] = []
    observers = setting.size(1000, 50)
    tokens = write_tokens(setting.directory / "scale-hosts", host_names(100))
    with real(setting, LONG_SILENCE) as ours:
        for rate in (20, 200) if setting.quick else (10, 30, 100, 300, 1000, 3000, 10_000):
            setting.progress.expect(1)
            with Swarm(
                *("sync", ours, setting.cpus),
                connections=observers,
                publishers=100,
                tokens=tokens,
                observer_token=token("observer", "user"),
                options=["--rate", str(rate), SPIN],
            ) as swarm:
                run = record(setting, outcome, ours, swarm.run(setting.seconds(3.0, 0.5), warmup_s=0.3))
            if counted(setting, [run]):
                points.append((rate, 1000 * run.server_cpu_ns / 1e9 / run.seconds))
    few = [(x, y) for x, y in points if x <= 100]
    _fitted(setting, outcome, "changes, each in a frame of its own", "changes a second", "ms CPU a second",
            few if len(few) > 1 else points, "ms")  # fmt: skip
    many = [(x, y) for x, y in points if x >= 100]
    if len(many) > 1:
        _fitted(setting, outcome, "changes that travel together", "changes a second", "ms CPU a second", many, "ms")


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
    text = f"{fit.base:,.1f} {unit} + {each:,.3g} {smaller} each (R² {fit.share:.3f}), power {grows:.2f}"
    xs = sorted({x for x, _ in points})
    steps = [xs[0] * (xs[-1] / xs[0]) ** (step / 40) for step in range(41)]
    outcome.curves.append(Curve(name, x, y, points, fit=[(at, fit.at(at)) for at in steps], fit_text=text))
    outcome.rows += [[name, f"{at:,.0f} {x}", f"{value:,.1f} {y}"] for at, value in points]
    outcome.notes.append(f"{name}: {text}")
    outcome.figure(f"{name}, each", smaller, [each])
    outcome.bars.append(
        Bar(f"{name}: grows no faster than its cause, power at most {LINEAR_MOST} (here {grows:.2f})",
            grows <= LINEAR_MOST)
    )  # fmt: skip
