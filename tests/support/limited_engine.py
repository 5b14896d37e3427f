"""An engine in a process that may open few files: `limited_engine {spare|no spare} ROOM`.

Prints its port; answers "served" to whatever comes; for each line on its standard input prints turns that took
something, connections and refusals; a number on it is the room from then on. "no spare": the engine finds no
descriptor to keep for the day of need.
"""

import os
import resource
import select
import socket
import sys
import time
from typing import Any

from fastpresence._native.engine import REQUEST, Engine

TICK_MS = 250


def limit(more: int) -> None:
    """So many descriptors above those that are open, which are dense."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) - 1 + more, hard))


def main() -> None:
    listener = socket.create_server(("127.0.0.1", 0), backlog=256)
    listener.setblocking(False)

    def on_batch(events: list[tuple[int, Any, int, Any]]) -> None:
        for kind, _, handle, _ in events:
            if kind == REQUEST:
                engine.write(handle, b"served")

    if sys.argv[1] == "no spare":
        with open("/dev/null"):
            limit(0)
        # One is free now: for the epoll set alone.
    engine = Engine(on_batch)
    engine.listen(listener.fileno())
    limit(int(sys.argv[2]))
    poll = select.poll()
    poll.register(engine.fileno(), select.POLLIN)
    poll.register(0, select.POLLIN)
    print(listener.getsockname()[1], flush=True)
    turns = 0
    next_s = 0.0
    while True:
        ready = dict(poll.poll(TICK_MS))
        if engine.fileno() in ready:
            turns += engine.run() > 0
        if time.monotonic() >= next_s:
            next_s = time.monotonic() + TICK_MS / 1000
            engine.advance()
        if 0 in ready:
            line = os.read(0, 100)
            if not line:
                break
            if line.strip().isdigit():
                limit(int(line))
            print(turns, engine.stats()["connections"], engine.stats()["refused"], flush=True)


if __name__ == "__main__":
    main()
