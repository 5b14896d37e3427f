"""A hundred thousand users: who watches some of them (watchers), and who is told of all at once (snapshot)."""

import asyncio
import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from statistics import median
from typing import Any, Final

import msgspec
import uvloop
from picows import WSCloseCode, WSFrame, WSListener, WSMsgType, WSTransport, ws_connect

from bench.fit import along, line, power
from bench.load import procfs
from bench.load.driver import Swarm
from bench.load.populated import name_of
from bench.load.rule import Share, add_bar, keep
from bench.load.sampler import Sampler
from bench.load.servers import Server, end
from bench.load.setting import Setting
from bench.load.tokens import token, user_names, write_tokens
from bench.outcome import Bar, BenchError, Curve, Outcome

__all__ = ["Population", "populated", "snapshot", "watchers"]

FLAT_BAR: Final = 1.4
STALL_BAR_MS: Final = 5.0
SNAPSHOT_BAR_S: Final = 1.0
PAGE: Final = 500  #: entries of one frame, at most
WATCHES: Final = 20  #: users that each of the others watches
CHANGES_A_FLUSH: Final = 20
TIMEOUT_S: Final = 60.0


class Population:
    """A worker with users in it (`populated.py`), and its commands."""

    def __init__(self, server: Server, process: "subprocess.Popen[bytes]") -> None:
        self.server = server
        self._process = process

    def ask(self, command: str) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self.server.begin_load()
        self._process.stdin.write(f"{command}\n".encode())
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise BenchError(f"the worker with users gave up at {command!r}: see its words above")
        answer: dict[str, Any] = msgspec.json.decode(line)
        return answer


@contextlib.contextmanager
def populated(setting: Setting, users: int, user_type: str, *, watch_turns: bool = False) -> Iterator[Population]:
    """A worker with so many users, on the server's CPU."""
    command = [sys.executable, "-m", "bench.load.populated", "--users", str(users), "--type", user_type]
    process = subprocess.Popen(
        [*command, *(["--watch-turns"] if watch_turns else [])],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        procfs.pin(process.pid, setting.cpus.server)
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise BenchError("the worker with users did not start: see its words above")
        procfs.pin(process.pid, setting.cpus.server)
        port = msgspec.json.decode(line)["port"]
        server = Server("fastpresence", port, process.pid, is_real=True, sampler=Sampler(process.pid))
        with server.sampled(), setting.observe(server) if setting.observe else contextlib.nullcontext():
            yield Population(server, process)
    finally:
        if process.stdin is not None:
            process.stdin.close()
        end(process)


class Reader(WSListener):
    """Keeps what it is sent, and when; it is read afterwards."""

    def __init__(self) -> None:
        self.frames: list[tuple[int, bytes]] = []
        self.whole: asyncio.Future[None] = asyncio.get_running_loop().create_future()  #: a frame with a cursor came
        self.transport: WSTransport | None = None

    def on_ws_connected(self, transport: WSTransport) -> None:
        self.transport = transport

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        said = frame.get_payload_as_bytes()
        self.frames.append((time.monotonic_ns(), said))
        if b'"cursor":"' in said[:200] + said[-200:] and not self.whole.done():
            self.whole.set_result(None)

    def on_ws_disconnected(self, transport: WSTransport) -> None:
        if not self.whole.done():
            self.whole.set_exception(BenchError("the connection was lost"))

    def entries(self) -> list[list[dict[str, Any]]]:
        """The entries of each frame that has some."""
        decoded = [msgspec.json.decode(said) for _, said in self.frames]
        return [frame["user_status"] for frame in decoded if frame["type"] == "user_online_status"]


async def _open(server: Server, *, public: bool) -> Reader:
    url = f"ws://127.0.0.1:{server.port}/ws?public={int(public)}&token={token('reader', 'user')}"
    _, listener = await ws_connect(Reader, url)
    assert isinstance(listener, Reader)
    return listener


def watchers(setting: Setting) -> Outcome:
    users, many = setting.size(100_000, 2000), setting.size(1000, 100)
    crowds = (10, 50, 100) if setting.quick else (100, 1000, 10_000)
    changes, repetitions = setting.size(20_000, 1000), setting.size(5, 2)
    outcome = Outcome(
        "watchers",
        "Does a change cost more when many connections watch somebody else, and does a watcher hear exactly of his?",
        "decoding a client's request: changes are made in the worker's own service; TLS, a real network",
        f"{users:,} users in one worker, {changes:,} changes in no order, {CHANGES_A_FLUSH} a flush; one watcher of "
        f"{many:,} of them; crowds of {', '.join(f'{n:,}' for n in crowds)} who watch {WATCHES} others each; "
        f"{repetitions} runs each, by turns",
        ["who watch others", "µs CPU a change, best", "median", "worst"],
    )
    costs: dict[int, list[float]] = {crowd: [] for crowd in crowds}
    with populated(setting, users, "user") as population:
        setting.progress.expect(repetitions * len(crowds))
        population.ask(f"change {changes} {CHANGES_A_FLUSH} 0")  # to warm up
        for _ in range(repetitions):
            for crowd in crowds:
                tokens = write_tokens(setting.directory / "watchers", user_names(crowd))
                options = ["--period", "0", "--watches", str(WATCHES)]
                with Swarm(
                    "idle", population.server, setting.cpus, connections=crowd, tokens=tokens, options=options
                ) as swarm:
                    time.sleep(setting.seconds(0.5, 0.1))
                    load = Share(swarm.pid)
                    answer = population.ask(f"change {changes} {CHANGES_A_FLUSH} 0")
                    share = load.now(answer["seconds"])
                cost_us = answer["cpu_ns"] / 1000 / changes
                if keep(setting, outcome, share, {"crowd": crowd, "us": cost_us}):
                    costs[crowd].append(cost_us)
        uvloop.run(_hears_exactly(outcome, population, users, many, changes))
    measured = {crowd: some for crowd, some in costs.items() if some}
    for crowd, some in measured.items():
        outcome.rows.append([f"{crowd:,}", f"{min(some):.2f}", f"{median(some):.2f}", f"{max(some):.2f}"])
        outcome.figure(f"a change while {crowd:,} watch others", "µs CPU", some)
    points = [(float(crowd), median(some)) for crowd, some in measured.items()]
    if len(points) > 1:
        fit = line(points)
        text = f"{fit.base:.2f} µs + {1000 * fit.each:.3g} ns each, power {power(points):.3f}"
        outcome.curves.append(
            Curve("a change, by how many watch others", "connections that watch others", "µs CPU a change", points,
                  fit=along(points, fit.at), fit_text=text)
        )  # fmt: skip
    best = [
        min(some) for some in measured.values()
    ]  # the least disturbed run: what a change costs without interference
    add_bar(outcome, f"flat within a factor {FLAT_BAR}, the best of {repetitions} runs each (here {{}})",
            [max(best) / min(best)] if best else [], lambda factor: factor <= FLAT_BAR,
            runs=min(map(len, costs.values())))  # fmt: skip
    return outcome


async def _hears_exactly(outcome: Outcome, population: Population, users: int, many: int, changes: int) -> None:
    mine = {name_of("user", number) for number in range(0, users, users // many)}
    reader = await _open(population.server, public=False)
    assert reader.transport is not None
    reader.transport.send(WSMsgType.TEXT, msgspec.json.encode({"type": "subscribe", "user_ids": sorted(mine)}))
    await asyncio.wait_for(reader.whole, TIMEOUT_S)
    reader.frames.clear()
    answer = await asyncio.to_thread(population.ask, f"change {changes} {CHANGES_A_FLUSH} 0")
    await asyncio.sleep(0.5)
    told: dict[str, str] = {}
    entries = 0
    for page in reader.entries():
        entries += len(page)
        told |= {entry["user_id"]: entry["status"] for entry in page}
    meant = {user: status for user, status in answer["changed"].items() if user in mine}
    strangers = told.keys() - mine
    outcome.notes.append(
        f"the watcher of {len(mine):,} of {users:,} users was told of {len(told):,}, in {entries:,} entries, while "
        f"{len(answer['changed']):,} changed"
    )
    outcome.bars.append(
        Bar(f"he is told of exactly those of his that changed ({len(meant):,}), {len(strangers)} strangers among them",
            told == meant, by_time=False)
    )  # fmt: skip
    reader.transport.send_close(WSCloseCode.OK)
    await asyncio.sleep(0.1)


def snapshot(setting: Setting) -> Outcome:
    users, repetitions, at_once = setting.size(100_000, 2000), setting.size(5, 2), setting.size(5, 2)
    outcome = Outcome(
        "snapshot",
        "A newcomer is told of 100,000 public users: how soon, in what pieces, and does anybody else wait for it?",
        "TLS, a real network, a slow reader; the client is Python and only keeps what it gets",
        f"{users:,} public users in one worker; {repetitions} newcomers one after the other, then {at_once} at once",
        [
            "newcomers",
            "all told, s",
            "frames",
            "MB",
            "entries a frame, most",
            "longest turn, ms",
            "its own",
            "load busy",
        ],
    )
    times: list[float] = []
    turns: list[float] = []
    with populated(setting, users, "kol", watch_turns=True) as population:
        setting.progress.expect(repetitions + 1)
        uvloop.run(_read_all(setting, outcome, population, users, 1))  # to warm up
        outcome.rows.clear()
        outcome.runs.clear()
        outcome.uncounted = 0
        for _ in range(repetitions):
            seconds, turn_ms, counts = uvloop.run(_read_all(setting, outcome, population, users, 1))
            if counts:
                times.append(seconds)
                turns.append(turn_ms)
        seconds, _, counts = uvloop.run(_read_all(setting, outcome, population, users, at_once))
    outcome.figure("a snapshot", "s", times)
    outcome.figure("the longest turn of the loop meanwhile", "ms", turns)
    outcome.figure(f"{at_once} snapshots at once", "s", [seconds] if counts else [])
    add_bar(outcome, f"under {SNAPSHOT_BAR_S:.0f} s in all (here {{}})", times, lambda s: s < SNAPSHOT_BAR_S)
    add_bar(outcome, f"no turn of the loop over {STALL_BAR_MS:.0f} ms, median of {len(turns)} newcomers (here {{}})",
            turns, lambda ms: ms <= STALL_BAR_MS)  # fmt: skip
    return outcome


async def _read_all(
    setting: Setting, outcome: Outcome, population: Population, users: int, newcomers: int
) -> tuple[float, float, bool]:
    """Seconds until each has all, the longest turn of the worker's loop meanwhile, without waits for a CPU, and whether
    it counts: the clients are here."""
    await asyncio.sleep(0.2)
    await asyncio.to_thread(population.ask, "stalls")
    begin, load = time.monotonic_ns(), Share(os.getpid())
    readers = await asyncio.gather(*(_open(population.server, public=True) for _ in range(newcomers)))
    await asyncio.gather(*(asyncio.wait_for(reader.whole, TIMEOUT_S) for reader in readers))
    share = load.now()
    seconds = (max(reader.frames[-1][0] for reader in readers) - begin) / 1e9
    stalls = await asyncio.to_thread(population.ask, "stalls")
    pages = readers[0].entries()
    most = max(len(page) for page in pages)
    megabytes = sum(len(said) for _, said in readers[0].frames) / 1e6
    outcome.rows.append(
        [str(newcomers), f"{seconds:.3f}", str(len(pages)), f"{megabytes:.1f}", str(most),
         f"{stalls['turn_ms']:.2f}", f"{stalls['turn_own_ms']:.2f}", f"{share:.2f}"]
    )  # fmt: skip
    told = {"newcomers": newcomers, "seconds": seconds, "frames": len(pages), **stalls}
    counts = keep(setting, outcome, share, told)
    for reader in readers:
        named = [entry["user_id"] for page in reader.entries() for entry in page]
        if len(named) != users or len(set(named)) != users:
            outcome.faults.append(f"{len(named)} entries of {len(set(named))} users, not {users}")
        if reader.transport is not None:
            reader.transport.send_close(WSCloseCode.OK)
    if most > PAGE:
        outcome.faults.append(f"a frame of {most} entries")
    await asyncio.sleep(0.1)
    return seconds, float(stalls["turn_own_ms"]), counts
