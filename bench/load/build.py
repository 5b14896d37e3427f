"""Compiles the C of the bench into `bench/.build/`, when a source is newer than what is there."""

import os
import subprocess
from pathlib import Path
from typing import Final

from bench.outcome import BenchError

__all__ = ["BUILD", "library", "program"]

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
#: What Python calls by itself, as shared libraries: a kernel of ours, the guard's marks.
LIBRARIES: Final = {
    "mask": BENCH.parent / "native" / "kernel" / "mask.c",
    "marks": BENCH / "guard" / "marks.c",
}
FLAGS: Final = ["-std=gnu11", "-Wall", "-Wextra", "-Werror"]


def program(name: str) -> Path:
    """The path of the compiled program, up to date."""
    binary, sources = BUILD / name, SOURCES[name]
    depends = [*sources, *(LOAD.glob("*.h") if name == "swarm" else [])]
    return _built(binary, depends, ["-O2", *map(str, sources)])


def library(name: str) -> Path:
    """The path of a shared library, built as the package builds its kernels, up to date."""
    source = LIBRARIES[name]
    include = BENCH.parent / "native" / "include"
    words = ["-O3", "-shared", "-fPIC", "-I", str(include), str(source)]
    return _built(BUILD / f"{name}.so", [source, *include.glob("*.h")], words)


def _built(binary: Path, depends: list[Path], words: list[str]) -> Path:
    if binary.exists() and binary.stat().st_mtime > max(path.stat().st_mtime for path in depends):
        return binary
    BUILD.mkdir(exist_ok=True)
    fresh = BUILD / f"{binary.name}.{os.getpid()}"  # moved into place: a second bench may be running the old one
    try:
        result = subprocess.run(["cc", *FLAGS, "-o", str(fresh), *words], capture_output=True, text=True)
    except OSError as error:
        raise BenchError(f"{binary.name} needs cc, a C compiler: {error} (Debian: apt-get install gcc)") from None
    if result.returncode:
        raise BenchError(f"cc could not build {binary.name}:\n{result.stderr}")
    fresh.rename(binary)
    return binary
