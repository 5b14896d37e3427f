"""What does the core take for a heartbeat, a change, and for collecting what a flush has to tell?

Unit: time an operation, with 10,000 users present. Leaves out: decoding, answering and telling anybody (test_codec.py,
test_flush.py).
"""

import itertools

from pytest_benchmark.fixture import BenchmarkFixture

from fastpresence.messages import Status
from fastpresence.presence.service import OnlineStatusService
from fastpresence.presence.sessions import Now, Session

USERS = 10_000
NOW = Now(1_000_000, 1_700_000_000_000_000)


def present() -> tuple[OnlineStatusService, list[Session]]:
    service = OnlineStatusService(
        epoch="e", public_types={"kol"}, heartbeat_timeout_ms=60_000, disconnect_grace_ms=None
    )
    sessions = [service.handle_user_online(f"kol_{n}", "kol", connection=f"socket {n}", now=NOW) for n in range(USERS)]
    return service, sessions


def test_heartbeat(benchmark: BenchmarkFixture) -> None:
    service, sessions = present()
    turn = itertools.cycle(sessions)
    benchmark(lambda: service.handle_heartbeat(next(turn), now=NOW))


def test_status_change(benchmark: BenchmarkFixture) -> None:
    """Always a real one: busy, away, busy, ..."""
    service, sessions = present()
    statuses: list[Status] = ["busy", "away"]
    turn = itertools.cycle([(session, status) for status in statuses for session in sessions])

    def change() -> None:
        session, status = next(turn)
        service.handle_status_change(session, status, now=NOW)

    benchmark(change)


def test_online_and_offline(benchmark: BenchmarkFixture) -> None:
    """One session's whole life, of a user who was here before."""
    service, _ = present()

    def live() -> None:
        service.handle_user_offline(service.handle_user_online("user_1", connection="socket", now=NOW), now=NOW)

    benchmark(live)


def test_collect(benchmark: BenchmarkFixture) -> None:
    """The 16 latest changes of 10,000 users: what changed has to matter, not what exists."""
    service, sessions = present()
    since = service.version
    for session in sessions[:: USERS // 16][:16]:
        service.handle_status_change(session, "busy", now=NOW)
    assert len(benchmark(service.collect, since).public) == 16
