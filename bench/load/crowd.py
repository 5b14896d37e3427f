"""A crowd as it is in life: sync (many changes, every screen right and soon) and idle (many users, no changes)."""

import time
from pathlib import Path
from typing import Final

from bench.load import procfs
from bench.load.driver import Run, Swarm
from bench.load.report import Bar, Outcome
from bench.load.scenarios import COMMON, SILENCE, SPIN, Setting, complaints, record
from bench.load.servers import LONG_SILENCE, Server, real, rival
from bench.load.tokens import host_names, token, user_names, write_tokens

__all__ = ["idle", "right", "sync"]

FRAMES_BAR: Final = 105  #: presence frames a second at one observer
LATENCY_BAR_MS: Final = 50
MEMORY_BAR: Final = 2500  #: bytes a connection
SETTLE_S: Final = 2.0  #: between the last connection and the look at memory


def sync(setting: Setting) -> Outcome:
    observers, hosts, rate = setting.size(1000, 50), setting.size(100, 20), setting.size(2000, 400)
    seconds, warmup_s = setting.seconds(20.0, 2.0), setting.seconds(2.0, 0.5)
    outcome = Outcome(
        "sync",
        "With thousands of changes a second, does every screen end up right, how soon, and with how many frames?",
        "TLS, a real network, slow readers; the time the swarm takes to read is in the latency",
        f"{observers} observers, {hosts} hosts, {rate} changes a second in all, open loop, {seconds} s; "
        f"{COMMON}, {SILENCE}",
        ("", "p50", "p99", "p99.9", "max"),
    )
    tokens = write_tokens(setting.directory / "sync", host_names(hosts))
    with real(setting.cpus, setting.directory, LONG_SILENCE) as ours:
        with Swarm(
            *("sync", ours, setting.cpus),
            connections=observers,
            publishers=hosts,
            tokens=tokens,
            observer_token=token("observer", "user"),
            options=["--rate", str(rate), SPIN],
        ) as swarm:
            run = record(outcome, ours, swarm.run(seconds, warmup_s=warmup_s))
        complaints(outcome, ours)
    outcome.rows.append(
        ["change to screen, ms", *(f"{ms:.1f}" for ms in (run.p50_ms, run.p99_ms, run.p999_ms, run.max_ms))]
    )
    outcome.notes += [
        f"{run.samples:,} samples from the scheduled moment; sent at most {run.sent_late_ms:.1f} ms late; "
        f"worker {run.server_cpu_ns / 1e9 / run.seconds:.2f} cores, swarm busy {run.swarm_busy:.2f}",
        f"{run.entries / max(1, run.frames):.1f} entries, {run.frame_bytes / max(1, run.frames):,.0f} bytes a frame; "
        f"at most {run.frames_max_in_a_second} frames in any one second at any one observer",
        f"p99 is {run.p99_newest_ms:.1f} ms when an entry is taken for the newest change it can be, not the oldest; "
        f"{run.matched_too_old} final states were matched too old; {run.repeated} entries came twice",
    ]
    if run.changes < rate * (seconds + warmup_s) * 0.98:
        outcome.faults.append(f"the swarm sent only {run.changes} changes")
    right(outcome, run)
    outcome.bars += [
        Bar(f"at most {FRAMES_BAR} presence frames a second at each observer (here {run.frames_a_second:.1f})",
            run.frames_a_second <= FRAMES_BAR),
        Bar(f"under {LATENCY_BAR_MS} ms at p99 (here {run.p99_ms:.1f})", run.p99_ms < LATENCY_BAR_MS),
    ]  # fmt: skip
    return outcome


def right(outcome: Outcome, *runs: Run) -> None:
    """The bar that has nothing to do with speed."""
    wrong = {
        "observers' states differ from the last sent": sum(run.wrong for run in runs),
        "observers differ in a rev": sum(run.rev_differs for run in runs),
        "times a rev went back": sum(run.rev_back for run in runs),
        "entries fit no order of what was sent": sum(run.unmatched for run in runs),
    }
    faults = [f"{count} {what}" for what, count in wrong.items() if count]
    outcome.bars.append(
        Bar("every observer ends with the right state of every host" + "".join(f"; {fault}" for fault in faults),
            not faults, by_time=False)
    )  # fmt: skip


def idle(setting: Setting) -> Outcome:
    connections = setting.size(15_000, 300)
    seconds, period_s = setting.seconds(60.0, 2.0), setting.seconds(30.0, 1.0)
    outcome = Outcome(
        "idle",
        "What does a present, authenticated, quiet connection cost in memory, and a crowd of them in CPU?",
        "kernel memory of the sockets (the same for every server, some 5 KB), TLS",
        f"{connections} connections, a beat every {period_s:.0f} s each at its own moment, {seconds:.0f} s; {COMMON}",
        ("server", "PSS a connection", "private dirty", "empty server", "CPU of a core", "µs CPU a beat"),
    )
    tokens = write_tokens(setting.directory / "idle", user_names(connections))
    with real(setting.cpus, setting.directory, {}) as ours:
        growth, our_run = _hold(setting, outcome, ours, connections, tokens, seconds, period_s)
        complaints(outcome, ours)
    with rival(setting.cpus) as limit:
        _, limit_run = _hold(setting, outcome, limit, connections, tokens, seconds, period_s)
    # Shared pages move between processes while others start and end; what is dirty and private does not.
    per_connection = max(growth.pss, growth.private_dirty) / connections
    ratio = (our_run.server_cpu_ns / our_run.seconds) / (limit_run.server_cpu_ns / limit_run.seconds)
    outcome.bars += [
        Bar(f"at most {MEMORY_BAR} bytes of user memory a connection (here {per_connection:,.0f}; target 1,200)",
            per_connection <= MEMORY_BAR),
        Bar(f"idle CPU at most twice the C server's at the same rate (here {ratio:.2f})", ratio <= 2.0),
    ]  # fmt: skip
    return outcome


def _hold(
    setting: Setting, outcome: Outcome, server: Server, connections: int, tokens: Path, seconds: float, period_s: float
) -> tuple[procfs.Memory, Run]:
    time.sleep(0.5)
    empty = procfs.memory(server.pid)
    options = ["--period", str(period_s), SPIN, *(["--present"] if server.is_real else [])]
    with Swarm("idle", server, setting.cpus, connections=connections, tokens=tokens, options=options) as swarm:
        time.sleep(setting.seconds(SETTLE_S, 0.3))
        growth = procfs.memory(server.pid) - empty
        run = record(outcome, server, swarm.run(seconds))
    if run.connections != connections:
        outcome.faults.append(f"{server.name}: only {run.connections} connections were held")
    if run.unanswered > connections * 0.01 + 1:
        outcome.faults.append(f"{server.name}: {run.unanswered} beats without an answer")
    outcome.runs[-1] |= {"pss_growth": growth.pss, "private_dirty_growth": growth.private_dirty, "empty_pss": empty.pss}
    outcome.rows.append(
        [
            server.name,
            f"{growth.pss / connections:,.0f} B",
            f"{growth.private_dirty / connections:,.0f} B",
            f"{empty.pss / 1e6:.1f} MB",
            f"{run.server_cpu_ns / 1e9 / run.seconds:.4f}",
            f"{run.us_per_operation:.1f}",
        ]
    )
    outcome.notes.append(f"{server.name}: up in {swarm.bring_up_seconds:.1f} s, {run.operations} beats answered")
    return growth, run
