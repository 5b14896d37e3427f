"""Compiles the C of the bench into `bench/.build/`, when a source is newer than what is there."""

import os
import subprocess
from pathlib import Path
from typing import Final

from bench.outcome import BenchError

__all__ = ["program"]

BENCH: Final = Path(__file__).resolve().parent.parent
BUILD: Final = BENCH / ".build"
LOAD: Final = BENCH / "load"
SOURCES: Final = {
    "epoll_server": [BENCH / "rivals" / "epoll_server.c"],
    "swarm": [
        LOAD / f"{name}.c"
        for name in ("swarm", "wire", "dialect", "decode", "inflate", "modes", "fanout", "sync", "storm", "life")
    ],
}
FLAGS: Final = ["-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror"]


def program(name: str) -> Path:
    """The path of the compiled program, up to date."""
    binary, sources = BUILD / name, SOURCES[name]
    depends = [*sources, *(LOAD.glob("*.h") if name == "swarm" else [])]
    if binary.exists() and binary.stat().st_mtime > max(path.stat().st_mtime for path in depends):
        return binary
    BUILD.mkdir(exist_ok=True)
    fresh = BUILD / f"{name}.{os.getpid()}"  # moved into place: a second bench may be running the old one
    result = subprocess.run(["cc", *FLAGS, "-o", str(fresh), *map(str, sources)], capture_output=True, text=True)
    if result.returncode:
        raise BenchError(f"cc could not build {name}:\n{result.stderr}")
    fresh.rename(binary)
    return binary
