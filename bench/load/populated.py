"""A real worker in a process of its own, with users that are there from the start: python -m bench.load.populated.

A hundred thousand connections are more than one machine's descriptors; a hundred thousand *users* are not. They are put
into the worker's own OnlineStatusService, detached, and change there; everything behind it, from the flush to the
sockets, is what any client meets.

    it prints                                     it reads
    {"port": P}
                                                  change COUNT BATCH PACE COUNT changes, BATCH before each flush,
                                                                          flushes at least PACE ms apart
    {"cpu_ns": ..., "seconds": ..., "changed": {user: status}}
                                                  stalls                  how long the longest turn of the loop took
    {"turn_ms": ..., "turn_own_ms": ...}          since the last time: by the wall clock, and without the time
                                                  that the kernel says it waited for a CPU
                                                  (end of input: it ends)
"""

import argparse
import asyncio
import gc
import os
import random
import socket
import sys
import time
from typing import Final

import msgspec
import uvloop

from bench.load.tokens import SECRET
from fastpresence.logs import setup
from fastpresence.messages import Status
from fastpresence.presence.sessions import Session
from fastpresence.settings import AuthSettings, LimitsSettings, PresenceSettings, Settings, TokenKey
from fastpresence.worker.worker import Worker

__all__ = ["name_of"]

STATUSES: Final[tuple[Status, ...]] = ("online", "busy", "away")
#: Of the flush, in milliseconds: the shortest there is, so that changes a second are bound by their own cost.
WINDOW_MS: Final = 1.0


def name_of(user_type: str, number: int) -> str:
    """The users that are there: from 0 on."""
    return f"{user_type}_{number:06}"


class Populated:
    """The worker, its users, and what the driver asks of them."""

    def __init__(self, users: int, user_type: str, loop: asyncio.AbstractEventLoop) -> None:
        settings = Settings(
            auth=AuthSettings(token_keys=(TokenKey("k1", SECRET),)),
            presence=PresenceSettings(heartbeat_interval=1800, heartbeat_timeout=3600, flush_window_ms=WINDOW_MS),
            limits=LimitsSettings(rate=1_000_000, burst=1_000_000),
        )
        self.worker = Worker(settings, 0, loop)
        self._loop = loop
        self._random = random.Random(1)
        now = self.worker.now()
        self.sessions: list[Session] = [
            self.worker.service.handle_user_online(name_of(user_type, number), user_type, now=now)
            for number in range(users)
        ]
        self._waited = os.open("/proc/thread-self/schedstat", os.O_RDONLY | os.O_CLOEXEC)
        self.turn_ns = self.turn_own_ns = 0
        self._turned_ns = self._turned_waited_ns = 0

    async def change(self, count: int, batch: int, pace_ms: float) -> dict[str, object]:
        """`count` users change, one after the other in no order, each to a status that it did not have."""
        service, flusher, engine = self.worker.service, self.worker.flusher, self.worker.engine
        changed: dict[str, str] = {}
        await asyncio.sleep(0.05)
        before, began = time.process_time_ns(), self._loop.time()
        for number in range(0, count, batch):
            if pace_ms:
                await asyncio.sleep(began + number / batch * pace_ms / 1000 - self._loop.time())
            now = self.worker.now()
            for _ in range(batch):
                session = self._random.choice(self.sessions)
                status = STATUSES[(STATUSES.index(session.status) + self._random.choice((1, 2))) % 3]
                service.handle_status_change(session, status, now=now)
                changed[session.record.user_id] = status
            flusher.touch()
            engine.send()
            await asyncio.sleep(WINDOW_MS / 1000)
            while engine.flush_running or flusher.told != service.version:
                await asyncio.sleep(WINDOW_MS / 1000)  # a long flush: the next changes would travel together
        cpu_ns, seconds = time.process_time_ns() - before, self._loop.time() - began
        await asyncio.sleep(0.05)
        return {"cpu_ns": cpu_ns, "seconds": seconds, "changed": changed}

    def watch_turns(self) -> None:
        """Runs in every turn of the loop: the time since the last one is what a turn took."""
        now_ns, waited_ns = time.monotonic_ns(), int(os.pread(self._waited, 100, 0).split()[1])
        if self._turned_ns:
            turn_ns = now_ns - self._turned_ns
            self.turn_ns = max(self.turn_ns, turn_ns)
            self.turn_own_ns = max(self.turn_own_ns, turn_ns - (waited_ns - self._turned_waited_ns))
        self._turned_ns, self._turned_waited_ns = now_ns, waited_ns
        self._loop.call_soon(self.watch_turns)

    def stalls(self) -> dict[str, object]:
        """The longest turn since the last call."""
        answer: dict[str, object] = {"turn_ms": self.turn_ns / 1e6, "turn_own_ms": self.turn_own_ns / 1e6}
        self.turn_ns = self.turn_own_ns = self._turned_ns = 0
        return answer


async def serve(users: int, user_type: str, *, watch_turns: bool) -> None:
    loop = asyncio.get_running_loop()
    stop_logs = setup("warning", "json", worker=0)
    populated = Populated(users, user_type, loop)
    listener = socket.create_server(("127.0.0.1", 0), backlog=4096)
    listener.setblocking(False)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    populated.worker.start(listener.fileno())
    gc.collect()
    gc.freeze()
    gc.set_threshold(gc.get_threshold()[0], gc.get_threshold()[1], 1_000_000)  # as the worker's own process has it
    if watch_turns:
        populated.watch_turns()
    _print({"port": listener.getsockname()[1]})
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        word, *numbers = line.decode().split()
        if word == "change":
            count, batch, pace_ms = numbers
            _print(await populated.change(int(count), int(batch), float(pace_ms)))
        elif word == "stalls":
            _print(populated.stalls())
        else:
            raise ValueError(f"not a command: {word}")
    populated.worker.stop()
    listener.close()
    stop_logs()


def _print(answer: dict[str, object]) -> None:
    sys.stdout.write(msgspec.json.encode(answer).decode() + "\n")
    sys.stdout.flush()


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench.load.populated", description="Started by the bench; not for people.")
    parser.add_argument("--users", type=int, required=True)
    parser.add_argument("--type", required=True, choices=["user", "kol"])
    parser.add_argument("--watch-turns", action="store_true")
    given = parser.parse_args()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(given.users, given.type, watch_turns=given.watch_turns))


if __name__ == "__main__":
    main()
