"""What the edge is for: slow-readers, deflate, storm.

Each has a neighbour to be compared with: the same readers without the frozen ones, C's send of the same bytes, the same
crowd one round before.
"""

import contextlib
import time
import zlib
from functools import partial
from statistics import median
from typing import Final

import msgspec
from msgspec import structs

from bench.load import procfs
from bench.load.crowd import right
from bench.load.driver import Run, Swarm
from bench.load.pairs import COMMON, COST_COLUMNS, SILENCE, SPIN, Pairs, alternate, complaints
from bench.load.rule import add_bar, counts, record
from bench.load.scenarios import fan
from bench.load.servers import LONG_SILENCE, Server, real
from bench.load.setting import Setting
from bench.load.tokens import host_names, token, user_names, write_tokens
from bench.outcome import Bar, Outcome

__all__ = ["deflate", "slow_readers", "storm"]

SLOWER_BAR: Final = 1.25  #: p99 of who reads, with frozen readers beside them
FROZEN_BAR_KB: Final = 200  #: a frozen reader, in the worker and in its socket
DEFLATE_BAR: Final = 1.15
BACK_BAR_S: Final = 5.0
PULSE_BAR_MS: Final = 250
PULSE_RATE: Final = 500  #: beats of the bystander a second, each due at its moment
#: That much is no growth: from round to round PSS goes up and down by a megabyte or two (arenas, tables that double).
ROUND_BAR_PERCENT: Final = 5.0


def slow_readers(setting: Setting) -> Outcome:
    observers, frozen = setting.size(1000, 50), setting.size(250, 10)
    hosts, rate, pairs = setting.size(100, 20), 100, setting.size(4, 1)
    names = ("nobody frozen", f"{frozen} frozen")
    seconds, warmup_s = setting.seconds(16.0, 2.0), setting.seconds(2.0, 0.5)
    outcome = Outcome(
        "slow-readers",
        "Do readers that stop reading delay the others, what do they cost, and are they right when they go on?",
        "TLS, a real network; the time the swarm takes to read is in the latency",
        f"{observers} observers, {hosts} hosts, {rate} changes a second in all, open loop; {pairs} pairs of {seconds} s"
        f" with and without {frozen} more who freeze for {seconds + warmup_s:.0f} s; {COMMON}, {SILENCE}",
        ["p99 of who reads, ms", "best", "median", "worst", "p50", "cores", "load busy"],
    )
    tokens = write_tokens(setting.directory / "slow-readers", host_names(hosts))
    runs = Pairs(setting)  #: with and without
    losses = procfs.network_losses()
    memory: tuple[list[int], list[int]] = ([], [])  #: in the worker and in its sockets, shortly before the thaw
    setting.progress.expect(2 * pairs)
    with real(setting, LONG_SILENCE) as ours:
        with Swarm(
            *("sync", ours, setting.cpus),
            connections=observers,
            publishers=hosts,
            tokens=tokens,
            observer_token=token("observer", "user"),
            options=["--rate", str(rate), "--freezing", str(frozen), SPIN],
        ) as swarm:
            swarm.run(setting.seconds(3.0, 0.5))  # to warm up
            for i in range(pairs):
                for with_frozen in (i % 2, 1 - i % 2):
                    swarm.begin(seconds, warmup_s=warmup_s, freeze=frozen * with_frozen)
                    time.sleep(warmup_s + seconds * 0.95)
                    user, (kernel, _) = procfs.memory(ours.pid), procfs.socket_memory(ours.port)
                    memory[with_frozen].append(user.pss + kernel)
                    name = names[with_frozen]
                    run = record(setting, outcome, ours, swarm.result(60), name)
                    outcome.add_histogram(name, run.histogram)
                    outcome.runs[-1] |= {"frozen": frozen * with_frozen, "pss": user.pss, "sockets": kernel}
                    (runs.ours if with_frozen else runs.limit).append(run)
                    if run.changes < rate * (seconds + warmup_s) * 0.98:
                        outcome.behind.append(f"the swarm sent only {run.changes} changes")
        complaints(outcome, ours)
    for name, some in zip(names, (runs.limit, runs.ours), strict=True):
        late = [run.p99_ms for run in some]
        cores = median(run.server_cpu_ns / 1e9 / run.seconds for run in some)
        middle, busy = median(run.p50_ms for run in some), max(run.load_share for run in some)
        outcome.rows.append(
            [name, *(f"{ms:.1f}" for ms in (min(late), median(late), max(late), middle)), f"{cores:.2f}", f"{busy:.2f}"]
        )
    ratios = [with_.p99_ms / without.p99_ms for with_, without in runs.that_count()]
    best = [min(run.p99_ms for run in some) for some in (runs.limit, runs.ours)]
    each_kb = max(a - b for b, a in zip(*memory, strict=True)) / frozen / 1000
    outcome.notes += [
        f"p99 with / without, pair by pair: {', '.join(f'{ratio:.2f}' for ratio in ratios)}; of the best run on either "
        f"side, the one that other work disturbed least: {best[1] / best[0]:.2f}",
        f"worker and sockets at most {max(memory[0]) / 1e6:.1f} MB without, {max(memory[1]) / 1e6:.1f} MB with",
        f"all that had thawed were up to date after at most {max(run.thaw_ms for run in runs.ours):.0f} ms, "
        f"{sum(run.thawed_late for run in runs.ours)} of {pairs * frozen} only after more than 2 s; "
        f"packets {_lost_since(losses)}",
        f"a reader that thawed was sent at most {max(run.thawing_frames for run in runs.ours)} frames, of "
        f"{runs.ours[-1].frames / observers:.0f} that the others got in the window",
    ]
    outcome.figure("p99 of who reads beside frozen readers, beside that without", "times", ratios)
    add_bar(
        outcome,
        f"p99 of who reads at most {SLOWER_BAR} times that without the frozen (here {{}})",
        ratios,
        lambda ratio: ratio <= SLOWER_BAR,
    )
    outcome.bars += [
        Bar(f"under {FROZEN_BAR_KB} KB of the server's side a frozen reader (here {each_kb:.0f} at worst)",
            each_kb < FROZEN_BAR_KB, by_time=False),
    ]  # fmt: skip
    right(outcome, "all runs", *runs.limit, *runs.ours)
    return outcome


def _lost_since(losses: dict[str, int]) -> str:
    return ", ".join(f"{count - losses[why]} {why}" for why, count in procfs.network_losses().items())


def deflate(setting: Setting) -> Outcome:
    observers, pairs, hosts = setting.size(5000, 100), setting.size(7, 2), 36
    seconds, warmup_s = setting.seconds(2.0, 0.3), setting.seconds(0.5, 0.1)
    outcome = Outcome(
        "deflate",
        "What does a 4 KB delta cost that is compressed once and sent to all, beside C's send of as many bytes?",
        "TLS, a real network, slow readers; what clients save in bytes",
        f"{observers} observers with permessage-deflate, {hosts} hosts that change at once; "
        f"{pairs} pairs of {seconds} s; {COMMON}, {SILENCE}",
        list(COST_COLUMNS),
    )
    runs, payload = fan(setting, outcome, observers, hosts, pairs, seconds, warmup_s, ["--deflate"])
    outcome.rows += runs.rows(("fastpresence", "C limit, at our pace"))
    outcome.notes.append(runs.note())
    runs.figures(outcome, "a delivery of 4 KB, compressed")
    frames = sum(run.frames for run in runs.ours)
    per_frame = sum(run.entries for run in runs.ours) / max(1, frames)
    plain = _inflated(outcome, runs.ours[-1], hosts)
    outcome.notes.append(
        f"{per_frame:.1f} entries a frame, {plain} bytes when inflated, {payload} as sent; "
        f"{100 * sum(run.compressed for run in runs.ours) / max(1, frames):.1f} % of the frames compressed"
    )
    _beside_plain(setting, outcome, observers, payload, pairs, seconds, warmup_s)
    add_bar(
        outcome,
        f"server CPU a delivery at most {DEFLATE_BAR} times C's send of the same bytes (here {{}})",
        runs.ratios(),
        lambda ratio: ratio <= DEFLATE_BAR,
    )
    return outcome


def _beside_plain(
    setting: Setting, outcome: Outcome, observers: int, payload: int, pairs: int, seconds: float, warmup_s: float
) -> None:
    """The same delta compressed and, at a second server of ours, a delta of two hosts with names so long that it has
    the same length without compressing."""
    hosts = 36
    crowd = partial(Swarm, "fanout", cpus=setting.cpus, connections=observers, observer_token=token("observer", "user"))

    def plainly(server: Server, observers: int, names: list[str]) -> Swarm:
        tokens = write_tokens(setting.directory / "plain", names)
        return crowd(server, publishers=2, connections=observers, tokens=tokens, options=[SPIN, "--eager"])

    tokens = write_tokens(setting.directory / "deflate", host_names(hosts))
    with real(setting, LONG_SILENCE) as ours, real(setting, LONG_SILENCE, "fastpresence, plain") as other:
        with plainly(other, 10, host_names(2)) as swarm:
            padding = "x" * min(120, max(0, (payload - swarm.run(0.2).payload_bytes) // 2))
        with (
            crowd(ours, publishers=hosts, tokens=tokens, options=[SPIN, "--eager", "--deflate"]) as squeezed,
            plainly(other, observers, [name + padding for name in host_names(2)]) as plain,
        ):
            runs = alternate(
                *(setting, outcome, ((ours, squeezed), (other, plain)), pairs),
                lambda swarm: swarm.run(seconds, warmup_s=warmup_s),
                "beside our own plain frame",
            )
    outcome.rows += runs.rows(("ours, compressed", "ours, plain"))
    beside = f"beside a delta of two hosts of our own with {runs.limit[-1].payload_bytes} bytes, not compressed"
    outcome.notes.append(runs.note(beside))


def _inflated(outcome: Outcome, run: Run, hosts: int) -> int:
    """Looks at one frame with zlib, not with the swarm's own eyes. Bytes of its JSON."""
    try:
        stretcher = zlib.decompressobj(-15)
        text = stretcher.decompress(bytes.fromhex(run.sample) + b"\0\0\xff\xff")
        frame = msgspec.json.decode(text)
        users = {entry["user_id"] for entry in frame["user_status"]}
        if frame["type"] != "user_online_status" or not users <= set(host_names(hosts)) or stretcher.eof:
            raise ValueError("not a delta")
    except (zlib.error, ValueError, KeyError, TypeError) as error:
        outcome.faults.append(f"a compressed frame that is none: {error!r}, {run.sample[:80]}")
        return 0
    return len(text)


#: A run that ends with its swarm.
FOR_EVER_S: Final = 86_400


def storm(setting: Setting) -> Outcome:
    processes, each, hosts = 4, setting.size(2500, 50), setting.size(100, 20)
    clients, rounds, watch_s = processes * each, setting.size(5, 3), setting.seconds(8.0, 2.0)
    outcome = Outcome(
        "storm",
        "All clients are cut and come back at once: how soon, does a bystander notice, and does anything stay behind?",
        "TLS, a real network; back-off and jitter, which spread a real crowd; logs of more than warnings",
        f"{clients} present users, a device each, in {processes} processes, {hosts} hosts in the snapshot, no cursor, "
        f"{rounds} rounds; "
        f"log.level warning (the default is info), {COMMON}",
        ["round", "all back, s", "p50, s", "bystander worst", "its p99", "server cores", "load busy", "PSS after"],
    )
    tokens = write_tokens(setting.directory / "storm-hosts", host_names(hosts))
    beats = ["--present", "--period", "20"]
    # With a device a session that comes back takes the old one's place even when its loss was not noticed yet; without
    # one both would stay for a minute, and memory would say how often that happened.
    back = ["--present", "--device", "phone"]
    growth: list[int] = []
    times: list[float] = []
    worst: list[float] = []
    with real(setting, {}) as ours, contextlib.ExitStack() as swarms:
        up = partial(Swarm, server=ours, cpus=setting.cpus)
        swarms.enter_context(up("idle", connections=hosts, tokens=tokens, options=beats)).begin(FOR_EVER_S)
        alone = write_tokens(setting.directory / "storm-bystander", ["bystander"])
        pulse = swarms.enter_context(
            up("pulse", connections=1, tokens=alone, options=["--present", "--rate", str(PULSE_RATE)])
        )
        crowds = []
        for i in range(processes):
            part = write_tokens(setting.directory / f"storm-{i}", user_names(clients)[i * each : (i + 1) * each])
            crowds.append(
                swarms.enter_context(
                    up("storm", connections=each, tokens=part, options=[*back, "--snapshot", str(hosts)])
                )
            )
        calm = pulse.run(setting.seconds(2.0, 0.5))
        for i in range(rounds):
            back_s, pulsed = _round(setting, outcome, ours, crowds, pulse, watch_s)
            time.sleep(setting.seconds(2.0, 0.2))
            growth.append(procfs.memory(ours.pid).pss)
            if counts(setting, pulsed.load_share):
                times.append(back_s)
                worst.append(pulsed.max_ms)
            outcome.rows[-1] = [str(i + 1), *outcome.rows[-1], f"{growth[-1] / 1e6:.2f} MB"]
            outcome.runs[-1] |= {"round": i + 1, "pss": growth[-1]}
        complaints(outcome, ours)
    outcome.figure("all back", "s", times)
    outcome.figure("a bystander's worst round trip", "ms", worst)
    percent = 100 * (growth[-1] - growth[1]) / growth[1]
    outcome.notes.append(f"the bystander before the first round: p99 {calm.p99_ms:.1f} ms, worst {calm.max_ms:.1f} ms")
    add_bar(outcome, f"all back within {BACK_BAR_S:.0f} s at worst (here {{}})", [max(times, default=0)],
            lambda back_s: back_s <= BACK_BAR_S, runs=len(times))  # fmt: skip
    add_bar(outcome, f"a bystander's worst round trip under {PULSE_BAR_MS} ms (here {{}})", [max(worst, default=0)],
            lambda worst_ms: worst_ms < PULSE_BAR_MS, runs=len(worst))  # fmt: skip
    outcome.bars.append(
        Bar(f"no growth of the worker after round 2: under {ROUND_BAR_PERCENT:.0f} % (here {percent:+.1f} %)",
            percent < ROUND_BAR_PERCENT)
    )  # fmt: skip
    return outcome


def _round(
    setting: Setting, outcome: Outcome, ours: Server, crowds: list[Swarm], pulse: Swarm, watch_s: float
) -> tuple[float, Run]:
    """One storm. Seconds until the last one was back, and what the bystander says."""
    pulse.begin(watch_s)
    time.sleep(setting.seconds(0.5, 0.2))
    losses, before, began = procfs.network_losses(), procfs.cpu_ns(ours.pid), time.monotonic()
    for crowd in crowds:
        crowd.begin()
    runs = [crowd.result(120) for crowd in crowds]
    server_cores = (procfs.cpu_ns(ours.pid) - before) / 1e9 / (time.monotonic() - began)
    pulsed = pulse.result(watch_s + 60)
    seconds = (max(run.back_ns for run in runs) - min(run.begin_ns for run in runs)) / 1e9
    # All of them share one core: each counts with what the others used of it, the bystander during the storm as well.
    load = sum(run.swarm_cpu * run.seconds for run in runs) / seconds + pulsed.swarm_cpu
    *runs, pulsed = (structs.replace(run, beside=load - run.load_share) for run in (*runs, pulsed))
    for run in (*runs, pulsed):
        record(setting, outcome, ours, run, "a bystander" if run is pulsed else "a storm", drawn=False)
        outcome.add_histogram(
            "until a client is back" if run is not pulsed else "a bystander's round trip", run.histogram
        )
    if seconds > watch_s - 0.5:
        outcome.faults.append(f"the storm of {seconds:.1f} s outlasted the bystander's watch")
    begun_s = (max(run.begun_ns for run in runs) - min(run.begin_ns for run in runs)) / 1e9
    outcome.notes.append(
        f"all were cut and had asked anew after {begun_s:.2f} s; packets {_lost_since(losses)}; the bystander's beats "
        f"left at most {pulsed.sent_late_ms:.1f} ms late, which is in his times"
    )
    half = median(run.p50_ms for run in runs) / 1000
    outcome.rows.append(
        [
            *(f"{seconds:.2f}", f"{half:.2f}", f"{pulsed.max_ms:.0f} ms", f"{pulsed.p99_ms:.1f} ms"),
            *(f"{server_cores:.2f}", f"{load:.2f}"),
        ]
    )
    return seconds, pulsed
