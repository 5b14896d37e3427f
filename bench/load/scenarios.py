"""Costs beside the C limit: heartbeats, fanout, joined, handshakes.

Server CPU time per operation is the figure: unlike a rate it is nearly the same whoever else uses the machine.
"""

from collections.abc import Sequence
from functools import partial
from statistics import median

from bench.load.driver import Run, Swarm
from bench.load.pairs import (
    COMMON,
    COST_COLUMNS,
    SILENCE,
    SPIN,
    Pairs,
    alternate,
    both,
    complaints,
    find_pace,
)
from bench.load.rule import add_bar, record
from bench.load.servers import LONG_SILENCE
from bench.load.setting import Setting
from bench.load.tokens import host_names, token, user_names, write_tokens
from bench.outcome import Outcome

__all__ = ["fan", "fanout", "handshakes", "heartbeats", "joined"]


def heartbeats(setting: Setting) -> Outcome:
    connections, pairs = setting.size(1000, 50), setting.size(9, 2)
    seconds, warmup_s = setting.seconds(2.0, 0.3), setting.seconds(0.5, 0.1)
    outcome = Outcome(
        "heartbeats",
        "What does a heartbeat and its answer cost beside a bare echo in C?",
        "TLS, a real network, MessagePack; every beat is alone in its read",
        f"{connections} present users, JSON, one beat in flight each; {pairs} pairs of {seconds} s; {COMMON}",
        list(COST_COLUMNS),
    )
    tokens = write_tokens(setting.directory / "heartbeats", user_names(connections))
    crowd = partial(Swarm, "heartbeats", cpus=setting.cpus, connections=connections, tokens=tokens)
    with both(setting, {}) as (ours, limit):
        with crowd(ours, options=["--present", SPIN]) as us, crowd(limit, options=[SPIN]) as them:
            sides = ((ours, us), (limit, them))

            def measure(swarm: Swarm, pace_ms: float) -> Run:
                return swarm.run(seconds, warmup_s=warmup_s, pace_ms=pace_ms)

            pace_ms = find_pace(setting, outcome, sides, connections, measure)
            runs = alternate(setting, outcome, sides, pairs, lambda swarm: measure(swarm, pace_ms))
        complaints(outcome, ours)
    outcome.rows += runs.rows()
    outcome.notes.append(runs.note())
    runs.figures(outcome, "a heartbeat and its answer")
    add_bar(outcome, "at most 1.50 times the C server's echo (here {})", runs.ratios(), lambda ratio: ratio <= 1.5)
    return outcome


def fanout(setting: Setting) -> Outcome:
    observers, pairs = setting.size(5000, 100), setting.size(9, 2)
    seconds, warmup_s = setting.seconds(2.0, 0.3), setting.seconds(0.5, 0.1)
    outcome = Outcome(
        "fanout",
        "What does it cost to tell one change to everybody, beside one prebuilt frame and a send loop in C?",
        "TLS, a real network, slow readers, compression",
        f"{observers} observers and a host, one change in flight; {pairs} pairs of {seconds} s; {COMMON}, {SILENCE}",
        list(COST_COLUMNS),
    )
    runs, _ = fan(setting, outcome, observers, 1, pairs, seconds, warmup_s)
    outcome.rows += runs.rows()
    outcome.notes.append(runs.note())
    sizes = sorted({(run.payload_min, run.payload_max) for run in runs.ours})
    outcome.notes.append(f"payloads of ours (bytes, least and most): {sizes}; C limit: {runs.limit[-1].payload_bytes}")
    outcome.notes.append(
        f"a round, from the change to the last observer: {median(run.round_ms for run in runs.ours):.1f} ms, "
        f"C {median(run.round_ms for run in runs.limit):.1f} ms"
    )
    runs.figures(outcome, "a delivery")
    outcome.figure("deliveries", "a CPU second", [1e6 / run.us_per_operation for run, _ in runs.that_count()], "higher")
    add_bar(
        outcome,
        "at least 0.90 of the C server's deliveries per CPU second (here {}; target 0.97)",
        [1 / ratio for ratio in runs.ratios()],
        lambda share: share >= 0.90,
    )
    return outcome


def joined(setting: Setting) -> Outcome:
    observers, pairs, hosts = setting.size(1000, 100), setting.size(9, 2), 16
    seconds, warmup_s = setting.seconds(2.0, 0.3), setting.seconds(0.5, 0.1)
    outcome = Outcome(
        "joined",
        "Do 16 changes in flight travel together, and what does such a frame cost beside C's send of its bytes?",
        "TLS, a real network, slow readers, compression",
        f"{observers} observers, {hosts} hosts, each changes again when a quarter have seen its last change; C sends "
        f"frames of the same length as often as ours; {pairs} pairs of {seconds} s; {COMMON}, {SILENCE}",
        list(COST_COLUMNS),
    )
    runs, payload = fan(setting, outcome, observers, hosts, pairs, seconds, warmup_s)
    outcome.rows += runs.rows(("fastpresence", "C limit, at our pace"))
    outcome.notes.append(runs.note("cost of a frame of ours / C"))
    counting = [ours for ours, _ in runs.that_count()] or runs.ours
    entries = sum(run.entries for run in counting)
    per_frame = entries / max(1, sum(run.frames for run in counting))
    per_second = [run.entries / (run.server_cpu_ns / 1e9) for run in counting]
    outcome.notes.append(
        f"{per_frame:.2f} entries a frame, {payload} bytes of payload a frame, "
        f"{median(per_second):,.0f} entries per CPU second"
    )
    runs.figures(outcome, "a frame of 16 entries")
    outcome.figure("entries", "a CPU second", per_second, "higher")
    each = [ours.entries / max(1, ours.frames) for ours, _ in runs.that_count()]
    add_bar(outcome, "at least 15 entries a frame (here {})", each, lambda entries: entries >= 15)
    add_bar(
        outcome,
        "a frame at most 1.30 times C's send of the same bytes (here {})",
        runs.ratios(),
        lambda ratio: ratio <= 1.3,
    )
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
) -> tuple[Pairs, int]:
    """Pairs of the real server with `hosts` publishers and the C limit with one, whose frames are as long as ours.

    With several hosts the C limit sends one frame as often as ours: a send after a rest costs more than one of a row,
    and a server that joins changes rests. Then the mean payload, in bytes. `more` are options of the swarm at the real
    server.
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
            first = record(setting, outcome, ours, measure(us))  # for the length of our frames, and to warm up
            sides = ((ours, us), (limit, them))
            if hosts == 1:
                pace_ms = find_pace(setting, outcome, sides, observers, measure)
                runs = alternate(setting, outcome, sides, pairs, lambda swarm: measure(swarm, pace_ms))
            else:
                latest = first  # of ours: the first of all was slower than those that follow

                def keep_up(swarm: Swarm) -> Run:
                    nonlocal latest
                    if swarm is them:
                        return measure(swarm, 1000 * latest.seconds * observers / max(1, latest.frames))
                    latest = measure(swarm)
                    return latest

                runs = alternate(setting, outcome, sides, pairs, keep_up)
        complaints(outcome, ours)
    return runs, payload


def handshakes(setting: Setting) -> Outcome:
    many, rounds = setting.size(4000, 200), setting.size(7, 2)
    outcome = Outcome(
        "handshakes",
        "What does a newcomer cost: accept, upgrade, token check, welcome, snapshot, user_online and its ack?",
        "TLS, a real network; the connection ends with a reset, whose cost is included",
        f"{rounds} rounds of {many} distinct users, at most 64 in progress; {COMMON}",
        list(COST_COLUMNS),
    )
    tokens = write_tokens(setting.directory / "handshakes", user_names(many * (rounds + 2)))
    crowd = partial(Swarm, "handshakes", cpus=setting.cpus, connections=1, tokens=tokens)
    with both(setting, {}) as (ours, limit):
        with crowd(ours, options=["--present", SPIN]) as us, crowd(limit, options=[SPIN]) as them:
            sides = ((ours, us), (limit, them))

            def measure(swarm: Swarm, pace_ms: float) -> Run:
                return swarm.run(many, pace_ms=pace_ms)

            pace_ms = find_pace(setting, outcome, sides, 1, measure)
            runs = alternate(setting, outcome, sides, rounds, lambda swarm: measure(swarm, pace_ms))
        complaints(outcome, ours)
    outcome.rows += runs.rows(("fastpresence", "C limit, upgrade only"))
    runs.figures(outcome, "a newcomer")
    add_bar(outcome, "at most 120 µs of server CPU (here {})", runs.costs(), lambda cost: cost <= 120)
    return outcome
