"""The worker process: its loop, its listener, its link to the node.

    node --Boot--> Worker, Ready --> ... Stats, Reload, Reloaded ... --Stop--> drain --> end

A worker that loses its link ends at once: nobody would start it again or hold its port.
"""

import argparse
import asyncio
import gc
import os
import socket
import sys
from typing import Any, Final

import uvloop

from fastpresence.errors import PeerError
from fastpresence.link import Boot, FrameReader, Ready, Reload, Reloaded, Stats, Stop, encode
from fastpresence.logs import setup
from fastpresence.worker.drain import drain
from fastpresence.worker.worker import Worker

__all__ = ["main", "serve"]

STATS_EVERY_S: Final = 2.0


async def serve(link: socket.socket) -> None:
    """Be a worker, from the node's Boot to its Stop or its end."""
    loop = asyncio.get_running_loop()
    reader = FrameReader()
    waiting: list[Any] = []
    while not waiting:
        data = await loop.sock_recv(link, 65_536)
        if not data:
            return
        waiting += reader.feed(data)
    boot = waiting.pop(0)
    if not isinstance(boot, Boot):
        raise PeerError("the node's first word was no Boot")
    stop_logs = setup(boot.settings.log.level, boot.settings.log.format, worker=boot.worker)
    try:
        worker = Worker(boot.settings, boot.worker, loop, login_jwks=boot.login_jwks)
        # Full collections would stop the loop for as long as all peers together take to visit; peers make no cycles.
        gc.collect()
        gc.freeze()
        gc.set_threshold(gc.get_threshold()[0], gc.get_threshold()[1], 1_000_000)
        worker.start(boot.listener_fd)
        with socket.socket(fileno=os.dup(boot.listener_fd)) as listener:
            port = listener.getsockname()[1]
        await loop.sock_sendall(link, encode(Ready(port, os.getpid())))
        stats = loop.create_task(_tell_stats(worker, link))
        try:
            while True:
                for frame in waiting:
                    if isinstance(frame, Stop):
                        await drain(worker, frame.drain_time)
                        return
                    if isinstance(frame, Reload):
                        await loop.sock_sendall(link, encode(_reload(worker, frame)))
                data = await loop.sock_recv(link, 65_536)
                if not data:
                    return  # the node is gone: nobody would start us again or hold our port
                waiting = list(reader.feed(data))
        finally:
            stats.cancel()
            loop.remove_reader(worker.engine.fileno())
            worker.engine.close_all()
    finally:
        stop_logs()


def _reload(worker: Worker, frame: Reload) -> Reloaded:
    try:
        worker.reload(frame.settings, frame.login_jwks)
    except Exception as error:  # whatever it was: the old settings are in force, and connections are alive
        return Reloaded(frame.generation, str(error) or type(error).__name__)
    return Reloaded(frame.generation)


async def _tell_stats(worker: Worker, link: socket.socket) -> None:
    while True:
        await asyncio.sleep(STATS_EVERY_S)
        stats = Stats(connections=worker.engine.stats()["connections"], users=worker.users)
        await worker.loop.sock_sendall(link, encode(stats))


def main() -> None:
    """The process's entry: `--link-fd N` is the socket that it was born with."""
    parser = argparse.ArgumentParser(prog="fastpresence.worker", description="Started by the node; not for people.")
    parser.add_argument("--link-fd", type=int, required=True)
    arguments = parser.parse_args()
    link = socket.socket(fileno=arguments.link_fd)
    link.setblocking(False)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(link))
    sys.exit(0)
