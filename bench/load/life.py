"""What a crowd does besides beating: its members come and go (churn), and write to each other (messages)."""

import http.client
from typing import Final

import msgspec

from bench.load import procfs
from bench.load.driver import Run, Swarm
from bench.load.pairs import COMMON, SPIN, complaints
from bench.load.rule import add_bar, counted, record
from bench.load.servers import API_KEY, Server, real
from bench.load.setting import Setting
from bench.load.tokens import user_names, write_tokens
from bench.outcome import Bar, Outcome

__all__ = ["churn", "messages"]

MESSAGE_BAR_MS: Final = 100
CHURN_BAR_MS: Final = 50
#: What is left of a session that came back elsewhere goes when its grace would have ended: sooner than a run does.
GRACE_S: Final = 4
ASKED_AT_ONCE: Final = 1000  #: users of one query
#: That much is no growth: a table that doubles, an arena.
GROWTH_BAR_PERCENT: Final = 5.0


def churn(setting: Setting) -> Outcome:
    clients, rate = setting.size(2000, 60), setting.size(400, 40)
    repetitions, seconds = setting.size(5, 2), setting.seconds(6.0, 1.0)
    warmup_s = setting.seconds(2.0, 0.5)
    outcome = Outcome(
        "churn",
        "Members of a crowd come and go all the time, hosts among them: what does it cost, and how soon is one back?",
        "TLS, a real network; a log of more than warnings",
        f"{clients} present users, every tenth a host whom all see; {rate} a second come back and as many leave, by a "
        f"goodbye and by a reset, open loop; {repetitions} runs of {seconds} s; "
        f"presence.disconnect_grace {GRACE_S}, {COMMON}",
        ["run", "back a second", "µs CPU each", "entries told", "p50 ms", "p99", "max", "cores", "load busy", "PSS"],
        latency_bar_ms=CHURN_BAR_MS,
    )
    names = [f"kol_{i:04}" if i % 10 == 0 else name for i, name in enumerate(user_names(clients))]
    tokens = write_tokens(setting.directory / "churn", names)
    setting.progress.expect(repetitions)
    runs: list[Run] = []
    memory: list[int] = []
    with real(setting, {"FASTPRESENCE_PRESENCE_DISCONNECT_GRACE": str(GRACE_S)}) as ours:
        options = ["--present", "--device", "phone", "--distinct", "--rate", str(rate), SPIN]
        with Swarm("churn", ours, setting.cpus, connections=clients, tokens=tokens, options=options) as swarm:
            swarm.run(2 * seconds)  # until the tables are as large as the crowd makes them
            for number in range(repetitions):
                run = record(setting, outcome, ours, swarm.run(seconds, warmup_s=warmup_s))
                runs.append(run)
                memory.append(procfs.memory(ours.pid).pss)
                outcome.runs[-1]["pss"] = memory[-1]
                outcome.add_histogram("due until back", run.histogram)
                outcome.rows.append(
                    [
                        *(str(number + 1), f"{run.operations / run.seconds:.0f}", f"{run.us_per_operation:.0f}"),
                        *(f"{run.entries:,}", f"{run.p50_ms:.1f}", f"{run.p99_ms:.1f}", f"{run.max_ms:.1f}"),
                        *(f"{run.server_cpu_ns / 1e9 / run.seconds:.2f}", f"{run.load_share:.2f}"),
                        f"{memory[-1] / 1e6:.2f} MB",
                    ]
                )
                online = _is_online(ours, names)
                missing = [name for name in names if not online[name]]
                if missing:
                    outcome.faults.append(f"{len(missing)} who are back are not online, {missing[0]} among them")
                if run.operations < rate * seconds * 0.95:
                    outcome.behind.append(f"only {run.operations} came back")
        _note_log(outcome, ours)
    counting = counted(setting, runs)
    outcome.figure("a coming and a going, what others are told of it included", "µs CPU",
                   [run.us_per_operation for run in counting])  # fmt: skip
    outcome.figure("due until back, p99", "ms", [run.p99_ms for run in counting])
    percent = 100 * (memory[-1] - memory[1]) / memory[1]
    add_bar(outcome, f"back within {CHURN_BAR_MS} ms at p99 (here {{}})", [run.p99_ms for run in counting],
            lambda p99: p99 < CHURN_BAR_MS)  # fmt: skip
    outcome.bars.append(
        Bar(f"no growth of the worker from run 2 to the last: under {GROWTH_BAR_PERCENT:.0f} % (here {percent:+.1f} %)",
            percent < GROWTH_BAR_PERCENT)
    )  # fmt: skip
    return outcome


def _note_log(outcome: Outcome, server: Server) -> None:
    """A reset is followed by a `reconnect` in the log, at warning: that is how it is meant."""
    others = [line for line in server.complaints() if '"reconnect"' not in line]
    if others:
        outcome.notes.append(f"the server logged {len(others)} lines besides reconnects, the first: {others[0][:160]}")


def _is_online(server: Server, names: list[str]) -> dict[str, bool]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    found: dict[str, bool] = {}
    for at in range(0, len(names), ASKED_AT_ONCE):
        body = msgspec.json.encode({"user_ids": names[at : at + ASKED_AT_ONCE]})
        connection.request("POST", "/api/online-status/query", body, {"Authorization": f"Bearer {API_KEY}"})
        answer = msgspec.json.decode(connection.getresponse().read())
        found |= {entry["user_id"]: entry["online"] for entry in answer["user_status"]}
    connection.close()
    return found


def messages(setting: Setting) -> Outcome:
    users, rates = setting.size(2000, 50), (1000,) if setting.quick else (1000, 10_000, 20_000)
    repetitions, seconds, warmup_s = setting.size(5, 1), setting.seconds(4.0, 1.0), setting.seconds(1.0, 0.2)
    outcome = Outcome(
        "messages",
        "How soon does a message from one user to another arrive, and what does it cost with its ack?",
        "TLS, a real network, several workers; messages of more than 40 characters",
        f"{users} present users who write to each other, open loop; {repetitions} runs of {seconds} s a rate; {COMMON}",
        ["messages a second", "µs CPU each", "p50 ms", "p99", "p99.9", "max", "cores", "load busy"],
        latency_bar_ms=MESSAGE_BAR_MS,
    )
    tokens = write_tokens(setting.directory / "messages", user_names(users))
    with real(setting, {}) as ours:
        for rate in rates:
            name = f"{rate:,} messages a second"
            setting.progress.expect(repetitions)
            options = ["--present", "--rate", str(rate), SPIN]
            with Swarm("messages", ours, setting.cpus, connections=users, tokens=tokens, options=options) as swarm:
                runs = [
                    record(setting, outcome, ours, swarm.run(seconds, warmup_s=warmup_s), name)
                    for _ in range(repetitions)
                ]
            counting = counted(setting, runs)
            run = sorted(runs, key=lambda run: run.p99_ms)[len(runs) // 2]
            outcome.rows.append(
                [
                    *(f"{rate:,}", f"{run.us_per_operation:.1f}"),
                    *(f"{ms:.2f}" for ms in (run.p50_ms, run.p99_ms, run.p999_ms, run.max_ms)),
                    *(f"{run.server_cpu_ns / 1e9 / run.seconds:.2f}", f"{run.load_share:.2f}"),
                ]
            )
            for run in runs:
                outcome.add_histogram(name, run.histogram)
                if run.wrong:
                    outcome.faults.append(f"{run.wrong} messages came to the wrong user, twice, or were not delivered")
                if run.operations < rate * seconds * 0.98:
                    outcome.behind.append(
                        f"only {run.operations} of {rate * seconds:.0f} messages arrived in the window"
                    )
            outcome.figure(f"a message and its ack, {name}", "µs CPU", [run.us_per_operation for run in counting])
            outcome.figure(f"p99, {name}", "ms", [run.p99_ms for run in counting])
            add_bar(outcome, f"{name}: under {MESSAGE_BAR_MS} ms at p99 (here {{}})", [run.p99_ms for run in counting],
                    lambda p99: p99 < MESSAGE_BAR_MS)  # fmt: skip
        complaints(outcome, ours)
    return outcome
