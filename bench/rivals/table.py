"""fastpresence beside every server that does the same job, in one run: one table, its losses included.

All servers of a crowd are up at the same time, each with its own clients; only one is driven at a time, in rounds, so
that what the machine does meanwhile meets everybody alike. What is close is then settled in duels: fastpresence and
one other, a moment apart, by turns; their ratio is told with the interval that holds its median 19 times in 20.
A server that would be too fast for the swarm is given a pace that leaves the swarm time to spare; what is counted is
server CPU time, not speed.

What one update is: for ours a status_change of one host, carried out, stamped and told with a cursor; for the others
a message of the same length, passed on as it is. A heartbeat is ours; the others answer the same bytes, or a ping of
their own.

A rival that is not here, or fails, takes nothing from the others; but a bar that speaks of it is not judged.
"""

import contextlib
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from statistics import median
from typing import Final, NamedTuple

from bench.load import procfs
from bench.load.driver import Run, Swarm
from bench.load.pairs import COMMON, SPIN, alternate
from bench.load.rule import COUNTED_LEAST, counted, counts, record
from bench.load.servers import LONG_SILENCE, Server, limit, real
from bench.load.setting import Setting
from bench.load.tokens import host_names, user_names, write_tokens
from bench.noise import interval
from bench.outcome import Bar, BenchError, Outcome, Ranking
from bench.rivals.known import RIVALS, running

__all__ = ["hints", "rivals"]

HOSTS: Final = 16
OBSERVERS: Final = 3000
FEW: Final = 60  #: observers of the small crowd, where what a change costs by itself shows
OURS: Final = "fastpresence"
LIMIT: Final = "C limit"
JOINED: Final = "C limit, joined"
NO_RIVALS: Final = (OURS, LIMIT, JOINED)
UWEBSOCKETS: Final = "socketify"
SINGLE_BAR: Final = 1.11
#: A swarm that needs more of its core at full speed is given a pace, and which share it is given.
BUSY_MOST: Final = 0.72
BUSY_AIM: Final = 0.6
SLOWEST_S: Final = 4.0  #: of one run, for a server that takes a second for a round of all
#: The pace of the small crowd: each change may be told at once, as the flush window is 10 ms.
PACE_MS: Final = 11.0
ROUNDS: Final = COUNTED_LEAST
DUELS: Final = 9  #: pairs of a duel


class Question(NamedTuple):
    """What a run asks."""

    text: str
    mode: str  #: of the swarm
    active: int  #: how many publish
    pace_ms: float = 0.0  #: between two changes of one host, for everybody alike; 0: as fast as it goes

    def cost(self, run: Run) -> float:
        """Microseconds of server CPU an update at one receiver, or a beat and its answer."""
        return run.server_cpu_ns / 1000 / max(1, run.entries if self.active else run.operations)


SINGLE: Final = Question("one update in flight", "fanout", 1)
MANY: Final = Question(f"{HOSTS} in flight", "fanout", HOSTS)
ECHO: Final = Question("a beat and its answer", "heartbeats", 0)
SINGLE_PACED: Final = Question(f"one update every {PACE_MS:g} ms", "fanout", 1, PACE_MS)
MANY_PACED: Final = Question(f"{HOSTS} updates every {PACE_MS:g} ms", "fanout", HOSTS, PACE_MS)


class Crowd(NamedTuple):
    """How many clients each server has, and what is asked of it then."""

    observers: int
    questions: tuple[Question, ...]
    seconds: float  #: of a run
    warmup_s: float

    @property
    def connections(self) -> int:
        return self.observers + HOSTS


@dataclass
class Contestant:
    """One server with its crowd, and what was measured of it."""

    server: Server
    swarm: Swarm
    questions: list[Question]
    connections: int
    memory_bytes: float  #: user memory of a connection at rest
    newcomer_us: float
    pace_ms: dict[Question, float] = field(default_factory=dict)
    seconds: dict[Question, float] = field(default_factory=dict)
    runs: dict[Question, list[Run]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.server.name

    def costs(self, setting: Setting, question: Question) -> list[float]:
        return [question.cost(run) for run in counted(setting, self.runs.get(question, []))]


def hints() -> list[str]:
    """How to get each rival, and whether it is there."""
    rows = [[rival.name, "missing" if rival.missing() else "here", rival.hint] for rival in RIVALS]
    return [f"{name:<12} {state:<8} {hint}" for name, state, hint in [["rival", "", "how to get it"], *rows]]


def rivals(setting: Setting) -> Outcome:
    large = Crowd(
        setting.size(OBSERVERS, 60), (SINGLE, MANY, ECHO), setting.seconds(0.7, 0.2), setting.seconds(0.25, 0.05)
    )
    questions = (SINGLE, MANY, ECHO, SINGLE_PACED, MANY_PACED)
    small = Crowd(setting.size(FEW, 20), questions, setting.seconds(0.5, 0.1), setting.seconds(0.15, 0.05))
    outcome = Outcome(
        "rivals",
        "What does the same job cost other servers, on the same core, driven by the same swarm?",
        "TLS, a real network, compression, what else each of them can do",
        f"{large.connections:,} connections each, then {small.connections}, all of them told every update; "
        f"{setting.size(ROUNDS, 1)} rounds of {large.seconds} and {small.seconds} s each; {COMMON}; fastpresence "
        f"checks tokens, keeps presence and deadlines of its connections, the others pass on and echo; costs in µs of "
        f"server CPU, an update at one receiver",
        ["server", "connections", SINGLE.text, "of C", MANY.text, "of C", "updates a CPU s", "a frame", "echo", "of C",
         SINGLE_PACED.text, "of C", MANY_PACED.text, "of C", "memory, B", "newcomer"],
    )  # fmt: skip
    for crowd in (large, small):
        _Contest(setting, outcome, crowd, judged=crowd is large).run()
    return outcome


class _Contest:
    """One crowd: every server measured, told and, where `judged`, held to the bars."""

    def __init__(self, setting: Setting, outcome: Outcome, crowd: Crowd, *, judged: bool) -> None:
        self._setting = setting
        self._outcome = outcome
        self._crowd = crowd
        self._judged = judged
        self._all: dict[str, Contestant] = {}  # who is measured, ours first
        self._absent: dict[str, str] = {}  # why a server is not measured: not here, or failed
        self._lengths: dict[Question, int] = {}  # of an update in bytes, which is as long as ours

    def run(self) -> None:
        setting, rounds = self._setting, self._setting.size(ROUNDS, 1)
        with contextlib.ExitStack() as stack:
            for name, start, questions in self._everybody():
                self._try(name, partial(self._enter, stack, start, questions))
            for each in list(self._all.values()):
                self._try(each.name, partial(self._calibrate, each))
            setting.progress.expect(rounds * sum(len(each.questions) for each in self._all.values()))
            for number in range(rounds):
                for each in list(self._all.values())[:: 1 if number % 2 == 0 else -1]:
                    self._try(each.name, partial(self._round, each))
            medians = self._tell()
            if self._judged:
                self._judge(medians)

    def _try(self, name: str, do: Callable[[], None]) -> None:
        """What fails at a rival is told, and the rival is out; the others go on. What fails at ours ends it."""
        try:
            do()
        except Exception as error:
            if name == OURS:
                raise
            if not isinstance(error, BenchError):
                traceback.print_exc()
            self._all.pop(name, None)
            why = str(error).partition("\n")[0] or type(error).__name__
            self._absent[name] = f"failed: {why}"

    def _everybody(
        self,
    ) -> Iterator[tuple[str, Callable[[], contextlib.AbstractContextManager[Server]], tuple[Question, ...]]]:
        setting, questions = self._setting, self._crowd.questions
        yield OURS, partial(real, setting, LONG_SILENCE), questions
        yield LIMIT, partial(limit, setting), questions
        several = tuple(question for question in questions if question.active > 1)
        yield JOINED, partial(limit, setting, JOINED, join=True), several
        for rival in RIVALS:
            if rival.missing():
                self._absent[rival.name] = f"not here: {rival.hint}"
            else:
                asked = tuple(question for question in questions if question is not ECHO or rival.answers)
                yield rival.label, partial(running, setting, rival), asked

    # Measuring.

    def _enter(
        self,
        stack: contextlib.ExitStack,
        start: Callable[[], contextlib.AbstractContextManager[Server]],
        questions: tuple[Question, ...],
    ) -> None:
        """A server, and a crowd that is up; memory and CPU of bringing it up."""
        setting, crowd = self._setting, self._crowd
        tokens = write_tokens(setting.directory / "rivals", [*host_names(HOSTS), *user_names(crowd.observers)])
        with contextlib.ExitStack() as own:
            server = own.enter_context(start())
            empty, cpu = procfs.memory(server.pid), procfs.cpu_ns(server.pid)
            swarm = own.enter_context(
                Swarm(
                    *("fanout", server, setting.cpus),
                    connections=crowd.observers,
                    publishers=HOSTS,
                    tokens=tokens,
                    options=[SPIN, "--eager", "--distinct"],
                )
            )
            newcomer_us = (procfs.cpu_ns(server.pid) - cpu) / 1000 / crowd.connections
            growth = procfs.memory(server.pid) - empty
            memory = max(growth.pss, growth.private_dirty) / crowd.connections
            each = Contestant(server, swarm, list(questions), crowd.connections, memory, newcomer_us)
            stack.enter_context(own.pop_all())
        self._all[each.name] = each

    def _calibrate(self, each: Contestant) -> None:
        """Who needs a pace, or more time, and of ours how long an update is. Not kept."""
        setting = self._setting
        for question in each.questions:
            each.seconds[question], each.pace_ms[question] = self._crowd.seconds, question.pace_ms
            run = self._drive(each, question)
            while not run.operations and each.seconds[question] < SLOWEST_S:
                each.seconds[question] *= 2  # a slow one takes seconds for a round of all
                run = self._drive(each, question)
            if each.server.is_real and question.active:
                self._lengths[question] = round(run.payload_bytes * run.frames / max(1, run.entries))
            if run.entries and question.active > 1:
                of_a_round_s = each.connections * HOSTS / run.entries * run.seconds
                each.seconds[question] = max(each.seconds[question], min(SLOWEST_S, 2 * of_a_round_s))
            if run.load_share > BUSY_MOST and not setting.quick:
                _give_pace(each, question, run)

    def _drive(self, each: Contestant, question: Question) -> Run:
        pace_ms, seconds = each.pace_ms[question], each.seconds[question]
        each.swarm.use(question.mode, question.active)
        run = each.swarm.run(
            # Some rounds, whatever the pace.
            max(seconds, 3 * pace_ms / 1000),
            warmup_s=max(self._crowd.warmup_s, pace_ms / 1000),
            payload_bytes=self._lengths.get(question, 0),
            pace_ms=pace_ms,
        )
        if run.lost and not each.server.is_real:
            raise BenchError(f"{run.lost} connections lost")
        return run

    def _measure(self, each: Contestant, question: Question) -> Run:
        run = self._drive(each, question)
        if not counts(self._setting, run.load_share):
            _give_pace(each, question, run)  # and once more: the machine is slower than it was
            run = self._drive(each, question)
        if not each.server.is_real and (faults := run.faults()):
            raise BenchError("; ".join(faults))
        return run

    def _round(self, each: Contestant) -> None:
        for question in each.questions:
            run = self._measure(each, question)
            each.runs.setdefault(question, []).append(
                record(self._setting, self._outcome, each.server, run, self._named(question.text))
            )

    def _duel(self, question: Question, name: str) -> list[float]:
        """Ours and this one by turns: our cost over the other's, of the pairs that count."""
        ours, other = self._all[OURS], self._all[name]
        sides = ((ours.server, ours), (other.server, other))
        pairs = self._setting.size(DUELS, 1)
        found: list[float] = []

        def fight() -> None:
            asked = self._named(f"{question.text}, beside {name}")
            runs = alternate(
                self._setting, self._outcome, sides, pairs, lambda each: self._measure(each, question), asked
            )
            found.extend(question.cost(mine) / question.cost(its) for mine, its in runs.that_count())

        self._try(name, fight)
        return found

    # Telling.

    def _named(self, what: str) -> str:
        return what if self._judged else f"{what}, {self._crowd.connections} connections"

    def _tell(self) -> dict[str, dict[Question, float]]:
        """The table; medians by server and question."""
        setting, outcome, crowd = self._setting, self._outcome, self._crowd
        medians = {
            name: {question: median(costs) for question in each.questions if (costs := each.costs(setting, question))}
            for name, each in self._all.items()
        }
        for name, each in self._all.items():
            cells = [name, f"{crowd.connections:,}"]
            for question in (SINGLE, MANY, ECHO, SINGLE_PACED, MANY_PACED):
                cost, ratio = medians[name].get(question), self._beside_limit(each, question)
                cells += [f"{cost:.2f}" if cost else "-", f"{median(ratio):.2f}" if ratio else "-"]
                if question is MANY:
                    joined = [run.entries / max(1, run.frames) for run in each.runs.get(MANY, [])]
                    cells += [f"{1e6 / cost:,.0f}" if cost else "-", f"{median(joined):.1f}" if joined else "-"]
            if self._judged and name != JOINED:
                cells += [f"{each.memory_bytes:,.0f}", f"{each.newcomer_us:.0f}"]
            else:
                cells += ["-", "-"]  # of so few it says what the server has set aside
            outcome.rows.append(cells)
        ours = self._all[OURS]  # figures are of ours only: what became of the others is no matter of `compare`
        for question in crowd.questions:
            outcome.figure(self._named(question.text), "µs CPU", ours.costs(setting, question))
            outcome.figure(self._named(f"{question.text}, beside C"), "times", self._beside_limit(ours, question))
        if self._judged:
            outcome.figure("memory", "bytes a connection", [ours.memory_bytes])
        for name, why in self._absent.items():
            word = why.partition(":")[0]
            outcome.rows.append([name, f"{crowd.connections:,}", word, *["-"] * (len(outcome.columns) - 3)])
            outcome.notes.append(self._named(f"{name} {why}"))
        for question in crowd.questions:
            values = {name: costs[question] for name, costs in medians.items() if question in costs}
            outcome.rankings.append(Ranking(self._named(question.text), "µs of server CPU", values, OURS))
        if self._judged:
            memory = {name: each.memory_bytes for name, each in self._all.items() if name != JOINED}
            outcome.rankings.append(Ranking("memory of a connection at rest", "bytes", memory, OURS))
        outcome.notes.append(self._losses(medians))
        return medians

    def _beside_limit(self, each: Contestant, question: Question) -> list[float]:
        """Its cost over the C limit's, round by round, of those that count."""
        limit_ = self._all.get(LIMIT)
        runs = zip(each.runs.get(question, []), limit_.runs.get(question, []) if limit_ else [], strict=False)
        return [
            question.cost(a) / question.cost(b)
            for a, b in runs
            if counts(self._setting, max(a.load_share, b.load_share))
        ]

    def _losses(self, medians: dict[str, dict[Question, float]]) -> str:
        """Where somebody else is cheaper."""
        found = []
        ours = self._all[OURS]
        for name, each in self._all.items():
            if name == OURS:
                continue
            for question, cost in medians[name].items():
                mine = medians[OURS].get(question, 0.0)
                if cost < mine:
                    found.append(f"{name}, {question.text}: {mine / cost:.2f} times")
            for what, has, its in (
                ("memory", ours.memory_bytes, each.memory_bytes),
                ("a newcomer", ours.newcomer_us, each.newcomer_us),
            ):
                if its < has and self._judged and name != JOINED:
                    found.append(f"{name}, {what}: {has / max(1.0, its):.2f} times")
        return f"where fastpresence loses with {self._crowd.connections:,} connections: {'; '.join(found) or 'nowhere'}"

    # Judging.

    def _judge(self, medians: dict[str, dict[Question, float]]) -> None:
        bars, ours = self._outcome.bars, self._all[OURS]
        for question, what in (
            (MANY, f"more status updates a CPU second than any rival, {MANY.text}"),
            (ECHO, "a heartbeat is cheaper than any rival's echo"),
        ):
            costs = {name: its[question] for name, its in medians.items() if name not in NO_RIVALS and question in its}
            nearest = min(costs, key=lambda name: costs[name], default="")
            ratios = self._duel(question, nearest) if nearest else []
            missed = [name for name, each in self._all.items() if question in each.questions and name not in NO_RIVALS]
            unknown = [*self._absent_rivals(), *(name for name in missed if question not in medians[name])]
            bars.append(_bar(f"{what}: less than {nearest or 'nobody'}, the nearest", ratios, 1.0, unknown))
        single = self._duel(SINGLE, LIMIT) if LIMIT in self._all else []
        bars.append(
            _bar(f"{SINGLE.text}: at most {SINGLE_BAR} times the C loop's; target 1.03", single, SINGLE_BAR, [])
        )
        heavy = [each for name, each in self._all.items() if name not in (*NO_RIVALS, UWEBSOCKETS)]
        lightest = min(heavy, key=lambda each: each.memory_bytes, default=None)
        what = (
            f"less memory an idle connection than any rival but uWebSockets and the C loop: {ours.memory_bytes:,.0f} B"
        )
        if lightest is not None:
            what += f"; the next, {lightest.name}, {lightest.memory_bytes:,.0f}"
        ratios = [ours.memory_bytes / lightest.memory_bytes] if lightest is not None else []
        unknown = [name for name in self._absent_rivals() if name != UWEBSOCKETS]
        bars.append(_bar(what, ratios, 1.0, unknown, least=1))

    def _absent_rivals(self) -> list[str]:
        return [name for name in self._absent if name not in NO_RIVALS]


def _bar(text: str, ratios: list[float], most: float, unknown: list[str], *, least: int = COUNTED_LEAST) -> Bar:
    """A bar on how many times another's cost ours is. Not judged where somebody of whom it speaks was not measured.

    What is missed beside those who were is missed, whoever else is `unknown`.
    """
    if len(ratios) < least:
        return Bar(f"{text} ({len(ratios)} pairs count, and it takes {least})", met=False, judged=False)
    told = f"here {median(ratios):.3f} times"
    if len(ratios) > 1:
        low, high = interval(ratios)
        told += f", median of {len(ratios)} pairs, {low:.3f} to {high:.3f}{', not sure' if low < most < high else ''}"
    met = median(ratios) <= most
    if met and unknown:
        return Bar(f"{text} ({told}; not measured: {', '.join(unknown)})", met=False, judged=False)
    return Bar(f"{text} ({told})", met)


def _give_pace(each: Contestant, question: Question, run: Run) -> None:
    """So much time for a round that the swarm has some to spare."""
    done = run.entries if question.active else run.operations
    everybody = each.connections * max(1, question.active)
    least_ms = 1000 * everybody * run.load_share * run.seconds / max(1, done) / BUSY_AIM
    each.pace_ms[question] = max(least_ms, 1.2 * each.pace_ms[question])
