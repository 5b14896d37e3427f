"""What does a flush cost before the first byte of it is sent: collect, make entries, encode for both subprotocols?

Unit: time a flush of so many changes among 10,000 public users. Leaves out: sending, which is the engine's and is
measured on sockets (bench/load), and rooms and watches.
"""

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from bench.micro.test_presence import NOW, USERS, present
from fastpresence.messages import UserOnlineStatus
from fastpresence.presence.roster import PUBLIC_SCOPE, make_cursor
from fastpresence.worker.flush import VARIANTS, frame_of


@pytest.mark.parametrize("changes", [1, 16, 200])
def test_prepare(benchmark: BenchmarkFixture, changes: int) -> None:
    service, sessions = present()
    since = service.version
    for session in sessions[:: USERS // changes][:changes]:
        service.handle_status_change(session, "busy", now=NOW)

    def prepare() -> list[bytes]:
        delta = service.collect(since)
        cursor = make_cursor("e", PUBLIC_SCOPE, delta.version)
        message = UserOnlineStatus([record.entry() for record in delta.public], full=False, cursor=cursor)
        return [frame_of(variant, message) for variant in range(len(VARIANTS))]

    frames = benchmark(prepare)
    benchmark.extra_info["bytes"] = [len(frame) for frame in frames]
