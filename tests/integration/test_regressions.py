"""What a review of the worker found, against the real thing: each fault once, so that it does not come back."""

import asyncio

import uvloop

from fastpresence._native.framing import PING, TEXT, build_masked
from fastpresence.settings import AuthSettings, PresenceSettings, Settings, TokenKey
from fastpresence.worker.worker import EXPIRE_AT_ONCE, Worker
from tests.support.clients import RawClient
from tests.support.engine import KEY

TIMEOUT_S = 0.5
AUTH = AuthSettings(token_keys=(TokenKey("k", "an-integration-test-s-secret-of-a-length"),))


def test_the_last_of_a_crowd_whose_time_is_up_are_told_of_as_soon_as_the_first() -> None:
    # They were ended in the same tick, but told of in the next one: 250 ms later.
    async def play() -> tuple[int, int]:
        presence = PresenceSettings(heartbeat_interval=TIMEOUT_S / 2, heartbeat_timeout=TIMEOUT_S)
        worker = Worker(Settings(auth=AUTH, presence=presence), 0, asyncio.get_running_loop())
        try:
            now = worker.now()
            for number in range(EXPIRE_AT_ONCE + 10):
                worker.service.handle_user_online(f"kol_{number}", "kol", now=now)
            worker.flusher.touch()
            await asyncio.sleep(TIMEOUT_S + 0.3)
            assert worker.users == EXPIRE_AT_ONCE + 10
            worker._cleanup(worker.now())  # the tick's part; this worker has no other
            await asyncio.sleep(0.05)
            assert worker.users == 0
            return worker.flusher.told, worker.service.version
        finally:
            worker.engine.close_all()

    told, version = uvloop.run(play())
    assert told == version


class Carrier:
    """Holds nothing: what a carried connection is sent is kept, and that it was let go."""

    address = "192.0.2.1"

    def __init__(self) -> None:
        self.sent = b""

    def write(self, data: bytes) -> None:
        self.sent += data

    def end(self) -> None: ...

    def cut(self) -> None: ...

    def hold(self, held: bool) -> None: ...


def test_whoever_sends_more_than_one_read_behind_his_handshake_leaves_no_ghost() -> None:
    # The second read's worth was taken for another request: the connection lost its peer, the session never ended.
    async def play() -> None:
        worker = Worker(Settings(auth=AUTH), 0, asyncio.get_running_loop())
        try:
            token, _ = worker.keys.issue("u", "user", room=None, expire_time=60, now=worker.now().wall_us // 1_000_000)
            carrier = Carrier()
            handle = worker.engine.adopt(carrier)
            assert handle is not None
            early = build_masked(TEXT, b'{"type":"user_online"}', KEY) + build_masked(PING, b"", KEY) * 20_000
            worker.engine.feed(handle, RawClient.upgrade_request(token, "/ws?public=0") + early)
            assert b"HTTP/1.1 400" not in carrier.sent
            assert worker.users == 1
            worker.engine.lost(handle)
            record = worker.service.record("u")
            assert record is not None
            assert [session.connection for session in record.sessions] == [None]
        finally:
            worker.engine.close_all()

    uvloop.run(play())
