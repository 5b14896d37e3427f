"""fastpresence beside every server that does the same job, in one run: one table, its losses included.

All servers are up at the same time, each with its own crowd; only one is driven at a time, in rounds, so that what the
machine does meanwhile meets everybody alike. Ratios are taken within a round. A server that would be too fast for the
swarm is given a pace that leaves the swarm time to spare; what is counted is server CPU time, not speed.

What one update is: for ours a status_change of one host, carried out, stamped and told with a cursor; for the others
a message of the same length, passed on as it is. A heartbeat is ours; the others answer the same bytes, or a ping of
their own.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from statistics import median
from typing import Final

from bench.load import procfs
from bench.load.driver import Run, Swarm
from bench.load.pairs import COMMON, SPIN
from bench.load.rule import add_bar, counted, counts, record
from bench.load.servers import LONG_SILENCE, Server, limit, real
from bench.load.setting import Setting
from bench.load.tokens import host_names, user_names, write_tokens
from bench.outcome import Bar, Outcome, Ranking
from bench.rivals.known import RIVALS, running

__all__ = ["hints", "rivals"]

HOSTS: Final = 16
OBSERVERS: Final = 3000
OURS: Final = "fastpresence"
LIMIT: Final = "C limit"
SINGLE_BAR: Final = 1.11
#: A swarm that needs more of its core at full speed is given a pace, and which share it is given.
BUSY_MOST: Final = 0.72
BUSY_AIM: Final = 0.6
SLOWEST_S: Final = 4.0  #: of one run, for a server that takes a second for a round of all
#: The questions: mode of the swarm, how many publish.
QUESTIONS: Final = {"single": ("fanout", 1), "many": ("fanout", HOSTS), "echo": ("heartbeats", 0)}


@dataclass
class Contestant:
    """One server with its crowd, and what was measured of it."""

    server: Server
    swarm: Swarm
    questions: list[str]
    connections: int
    memory_bytes: float  #: user memory of a connection at rest
    newcomer_us: float
    pace_ms: dict[str, float] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    runs: dict[str, list[Run]] = field(default_factory=lambda: {question: [] for question in QUESTIONS})

    @property
    def name(self) -> str:
        return self.server.name

    def cost(self, setting: Setting, question: str) -> list[float]:
        """Microseconds of server CPU an operation: an update at one receiver, or a beat and its answer."""
        return [
            run.server_cpu_ns / 1000 / max(1, run.entries if question != "echo" else run.operations)
            for run in counted(setting, self.runs[question])
        ]


def hints() -> list[str]:
    """How to get each rival, and whether it is there."""
    rows = [[rival.name, "missing" if rival.missing() else "here", rival.hint] for rival in RIVALS]
    return [f"{name:<12} {state:<8} {hint}" for name, state, hint in [["rival", "", "how to get it"], *rows]]


def rivals(setting: Setting) -> Outcome:
    observers, rounds = setting.size(OBSERVERS, 60), setting.size(4, 1)
    seconds, warmup_s = setting.seconds(0.7, 0.3), setting.seconds(0.25, 0.1)
    outcome = Outcome(
        "rivals",
        "What does the same job cost other servers, on the same core, driven by the same swarm?",
        "TLS, a real network, compression, what else each of them can do",
        f"{observers + HOSTS} connections each, all of them told every update; one update in flight, {HOSTS} in "
        f"flight, one beat in flight on each connection; {rounds} rounds of {seconds} s each; {COMMON}; fastpresence "
        f"checks tokens, keeps presence and deadlines of its connections, the others pass on and echo",
        ["server", "one update in flight, µs", "of C", f"{HOSTS} in flight, µs", "of C", "updates a CPU s", "a frame",
         "echo, µs", "of C", "memory, B", "newcomer, µs"],
    )  # fmt: skip
    with contextlib.ExitStack() as stack:
        contestants = [stack.enter_context(each) for each in _all(setting, outcome, observers)]
        lengths = _calibrate(setting, contestants, seconds, warmup_s)
        setting.progress.expect(rounds * sum(len(each.questions) for each in contestants))
        for number in range(rounds):
            for each in contestants if number % 2 == 0 else reversed(contestants):
                for question in each.questions:
                    run = _run(each, question, warmup_s, lengths[question])
                    if not counts(setting, run.load_share):
                        _give_pace(each, question, run)  # and once more: the machine is slower than it was
                        run = _run(each, question, warmup_s, lengths[question])
                    each.runs[question].append(record(setting, outcome, each.server, run, question))
    _tell(setting, outcome, {each.name: each for each in contestants})
    return outcome


def _all(setting: Setting, outcome: Outcome, observers: int) -> Iterator[contextlib.AbstractContextManager[Contestant]]:
    yield _contestant(setting, real(setting, LONG_SILENCE), observers)
    yield _contestant(setting, limit(setting), observers)
    for rival in RIVALS:
        if rival.missing():
            outcome.notes.append(f"{rival.name} is not here: {rival.hint}")
        else:
            yield _contestant(setting, running(setting, rival), observers, answers=rival.answers)


@contextlib.contextmanager
def _contestant(
    setting: Setting, starting: contextlib.AbstractContextManager[Server], observers: int, *, answers: bool = True
) -> Iterator[Contestant]:
    """A server, and a crowd that is up; memory and CPU of bringing it up."""
    tokens = write_tokens(setting.directory / "rivals", [*host_names(HOSTS), *user_names(observers)])
    with starting as server:
        empty, cpu = procfs.memory(server.pid), procfs.cpu_ns(server.pid)
        with Swarm(
            *("fanout", server, setting.cpus),
            connections=observers,
            publishers=HOSTS,
            tokens=tokens,
            options=[SPIN, "--eager", "--distinct"],
        ) as swarm:
            connections = observers + HOSTS
            newcomer_us = (procfs.cpu_ns(server.pid) - cpu) / 1000 / connections
            growth = procfs.memory(server.pid) - empty
            memory = max(growth.pss, growth.private_dirty) / connections
            questions = [question for question in QUESTIONS if question != "echo" or answers]
            yield Contestant(server, swarm, questions, connections, memory, newcomer_us)


def _run(each: Contestant, question: str, warmup_s: float, length: int) -> Run:
    mode, active = QUESTIONS[question]
    pace_ms, seconds = each.pace_ms.get(question, 0.0), each.seconds[question]
    each.swarm.use(mode, active)
    return each.swarm.run(
        # Some rounds, whatever the pace.
        max(seconds, 3 * pace_ms / 1000),
        warmup_s=max(warmup_s, pace_ms / 1000),
        payload_bytes=length,
        pace_ms=pace_ms,
    )


def _give_pace(each: Contestant, question: str, run: Run) -> None:
    """So much time for a round that the swarm has some to spare."""
    done = run.operations if question == "echo" else run.entries
    everybody = each.connections * max(1, QUESTIONS[question][1])
    least_ms = 1000 * everybody * run.load_share * run.seconds / max(1, done) / BUSY_AIM
    each.pace_ms[question] = max(least_ms, 1.2 * each.pace_ms.get(question, 0.0))


def _calibrate(setting: Setting, contestants: list[Contestant], seconds: float, warmup_s: float) -> dict[str, int]:
    """How long an update is in bytes, which is as long as ours; who needs a pace, or more time. Not kept."""
    lengths = dict.fromkeys(QUESTIONS, 0)
    for each in contestants:
        each.seconds = dict.fromkeys(QUESTIONS, seconds)
        for question in each.questions:
            run = _run(each, question, warmup_s, lengths[question])
            while not run.operations and each.seconds[question] < SLOWEST_S:
                each.seconds[question] *= 2  # a slow one takes seconds for a round of all
                run = _run(each, question, warmup_s, lengths[question])
            if each.server.is_real and question != "echo":
                lengths[question] = round(run.payload_bytes * run.frames / max(1, run.entries))
            if run.entries and question == "many":
                of_a_round_s = each.connections * HOSTS / run.entries * run.seconds
                each.seconds[question] = max(each.seconds[question], min(SLOWEST_S, 2 * of_a_round_s))
            if run.load_share > BUSY_MOST and not setting.quick:
                _give_pace(each, question, run)
    return lengths


def _tell(setting: Setting, outcome: Outcome, contestants: dict[str, Contestant]) -> None:
    ours, limit_ = contestants[OURS], contestants[LIMIT]
    medians = {
        name: {question: median(costs) for question in QUESTIONS if (costs := each.cost(setting, question))}
        for name, each in contestants.items()
    }
    for name, each in contestants.items():
        cells = [name]
        for question in QUESTIONS:
            if question not in medians[name]:
                cells += ["-", "-"]
            else:
                ratio = _ratio(setting, each, limit_, question)
                cells += [f"{medians[name][question]:.2f}", f"{median(ratio):.2f}" if ratio else "-"]
            if question == "many":
                joined = median(run.entries / max(1, run.frames) for run in each.runs["many"])
                cells += [f"{1e6 / medians[name]['many']:,.0f}" if "many" in medians[name] else "-", f"{joined:.1f}"]
        outcome.rows.append([*cells, f"{each.memory_bytes:,.0f}", f"{each.newcomer_us:.0f}"])
    for question in QUESTIONS:  # ours only: what became of the others is no matter of `compare`
        outcome.figure(question, "µs CPU", ours.cost(setting, question))
        outcome.figure(f"{question}, beside C", "times", _ratio(setting, ours, limit_, question))
    outcome.figure("memory", "bytes a connection", [ours.memory_bytes])
    for question, what in (("single", "one update in flight"), ("many", f"{HOSTS} in flight"), ("echo", "a beat")):
        values = {name: costs[question] for name, costs in medians.items() if question in costs}
        outcome.rankings.append(Ranking(what, "µs of server CPU", values, OURS))
    memory = {name: each.memory_bytes for name, each in contestants.items()}
    outcome.rankings.append(Ranking("memory of a connection at rest", "bytes", memory, OURS))
    outcome.notes += _losses(medians, contestants)
    _judge(setting, outcome, medians, contestants, ours, limit_)


def _ratio(setting: Setting, one: Contestant, other: Contestant, question: str) -> list[float]:
    """One's cost over the other's, round by round, of those that count."""
    pairs = [
        (a, b)
        for a, b in zip(one.runs[question], other.runs[question], strict=True)
        if counts(setting, max(a.load_share, b.load_share))
    ]

    def cost(run: Run) -> float:
        return run.server_cpu_ns / max(1, run.operations if question == "echo" else run.entries)

    return [cost(a) / cost(b) for a, b in pairs]


def _losses(medians: dict[str, dict[str, float]], contestants: dict[str, Contestant]) -> list[str]:
    """Where somebody else is cheaper."""
    names = {"single": "one update in flight", "many": f"{HOSTS} in flight", "echo": "a beat and its answer"}
    found = []
    for name, each in contestants.items():
        if name == OURS:
            continue
        for question, costs in ((q, medians[name]) for q in QUESTIONS):
            if question in costs and question in medians[OURS] and costs[question] < medians[OURS][question]:
                found.append(f"{name}, {names[question]}: {medians[OURS][question] / costs[question]:.2f} times")
        for what, mine, its in (
            ("memory", contestants[OURS].memory_bytes, each.memory_bytes),
            ("a newcomer", contestants[OURS].newcomer_us, each.newcomer_us),
        ):
            if its < mine:
                found.append(f"{name}, {what}: {mine / max(1.0, its):.2f} times")
    return [f"where fastpresence loses: {'; '.join(found) or 'nowhere'}"]


def _judge(
    setting: Setting, outcome: Outcome, medians: dict[str, dict[str, float]], contestants: dict[str, Contestant],
    ours: Contestant, limit_: Contestant,
) -> None:  # fmt: skip
    others = [name for name in contestants if name not in (OURS, LIMIT)]
    best = {
        name: min((cost for question, cost in medians[name].items() if question != "echo"), default=float("inf"))
        for name in (*others, LIMIT, OURS)
    }
    rival = min((name for name in best if name != OURS), key=lambda name: best[name])
    outcome.bars.append(
        Bar(f"more status updates a CPU second than anybody (here {1e6 / best[OURS]:,.0f}; the next, {rival}, "
            f"{1e6 / best[rival]:,.0f})", best[OURS] < best[rival])
    )  # fmt: skip
    add_bar(outcome, f"one update in flight at most {SINGLE_BAR} times the C loop's (here {{}}; target 1.03)",
            _ratio(setting, ours, limit_, "single"), lambda ratio: ratio <= SINGLE_BAR)  # fmt: skip
    echoes = {name: medians[name]["echo"] for name in others if "echo" in medians[name]}
    if echoes and "echo" in medians[OURS]:
        cheapest = min(echoes, key=lambda name: echoes[name])
        outcome.bars.append(
            Bar(f"a heartbeat is cheaper than any rival's echo (here {medians[OURS]['echo']:.2f} µs; the next, "
                f"{cheapest}, {echoes[cheapest]:.2f})", medians[OURS]["echo"] < echoes[cheapest])
        )  # fmt: skip
    heavy = {name: contestants[name].memory_bytes for name in others if name != "socketify"}
    if heavy:
        lightest = min(heavy, key=lambda name: heavy[name])
        outcome.bars.append(
            Bar(f"less memory an idle connection than any rival but uWebSockets and the C loop (here "
                f"{ours.memory_bytes:,.0f} B; the next, {lightest}, {heavy[lightest]:,.0f})",
                ours.memory_bytes < heavy[lightest])
        )  # fmt: skip
