"""The machine that a figure comes from, with all that may have moved it: without it, the figure says nothing."""

import contextlib
import importlib.metadata
import os
import platform
import re
import resource
import shutil
import subprocess
import time
from pathlib import Path
from typing import Final

from msgspec import Struct

from bench.load.build import BUILD
from bench.load.procfs import PRIORITY
from bench.load.setting import Cpus
from bench.sources import commit, native_hash

__all__ = ["Machine", "cpu_name"]

#: Kernel settings that load figures depend on, below /proc/sys.
KERNEL_SETTINGS: Final = (
    "net/core/somaxconn",
    "net/core/netdev_max_backlog",
    "net/ipv4/tcp_congestion_control",
    "net/ipv4/tcp_rmem",
    "net/ipv4/tcp_wmem",
    "net/ipv4/tcp_max_syn_backlog",
    "net/ipv4/ip_local_port_range",
    "vm/overcommit_memory",
)
PACKAGES: Final = ("uvloop", "msgspec", "picows", "httptools", "joserfc", "isal", "Cython", "websockets", "socketify")
#: The compiler, and rivals that are no packages of Python: what prints their version.
PROGRAMS: Final = {
    "cc": ("cc", "--version"),
    "nginx": ("nginx", "-v"),
    "nchan": ("dpkg-query", "-W", "-f", "${Version}", "libnginx-mod-nchan"),
    "nats-server": ("nats-server", "--version"),
    "mosquitto": ("mosquitto", "-h"),
    "node": ("node", "--version"),
    "ws": ("grep", '"version"', str(BUILD / "node_modules" / "ws" / "package.json")),
}
VERSION: Final = re.compile(r"\d+(\.\d+)+[\w.+~-]*")
OURS: Final = "native build"
CAP_SYS_NICE: Final = 23  #: linux/capability.h


class Machine(Struct, frozen=True):
    """One machine at one moment."""

    cpu: str
    cpus: int  #: that the bench may use
    memory_bytes: int
    kernel: str
    settings: dict[str, str]  #: of the kernel, the limits of this process, who runs where and before whom
    versions: dict[str, str]  #: of what runs, rivals among it; the hash of our own native modules
    commit: str  #: of the sources measured; "+" when there were changes on top
    at: str  #: UTC, ISO 8601
    load: float  #: of the last minute, before we began

    @classmethod
    def here(cls, cpus: Cpus) -> "Machine":
        settings = {}
        for name in KERNEL_SETTINGS:
            try:
                settings[name.replace("/", ".")] = " ".join(Path("/proc/sys", name).read_text().split())
            except OSError:
                settings[name.replace("/", ".")] = "unknown"
        governor = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
        settings["cpufreq.governor"] = governor.read_text().strip() if governor.exists() else "none"
        settings["open files"] = "{} to {}".format(*resource.getrlimit(resource.RLIMIT_NOFILE))
        settings["pinned"] = f"server to CPU {cpus.server}, swarm to CPU {cpus.swarm}"
        settings["priority"] = _priority()
        return cls(
            cpu=cpu_name(Path("/proc/cpuinfo").read_text()),
            cpus=cpus.count,
            memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
            kernel=platform.release(),
            settings=settings,
            versions=_versions(),
            commit=commit(),
            at=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            load=os.getloadavg()[0],
        )

    def text(self) -> str:
        return (
            f"{self.cpu}, {self.cpus} CPUs, {self.memory_bytes / 2**30:.0f} GiB, Linux {self.kernel}, "
            f"Python {self.versions['Python']}, commit {self.commit}, {self.at}"
        )

    def unlike(self, older: "Machine") -> list[str]:
        """What makes it another machine, so that plain figures of the two can't be compared."""
        pairs = {
            "CPU": (older.cpu, self.cpu),
            "CPUs": (older.cpus, self.cpus),
            "kernel": (older.kernel, self.kernel),
        } | {name: (older.settings.get(name), self.settings.get(name)) for name in older.settings | self.settings}
        return [f"{name}: {a}, now {b}" for name, (a, b) in pairs.items() if a != b]

    def newer_versions(self, older: "Machine") -> list[str]:
        """What else was exchanged between the two, besides our own code."""
        pairs = {name: (older.versions.get(name), self.versions.get(name)) for name in older.versions | self.versions}
        return [f"{name}: {a}, now {b}" for name, (a, b) in pairs.items() if a != b and name != OURS]


def cpu_name(told: str) -> str:
    """A name that does not change with its clock, and is no other model's."""
    fields: dict[str, str] = {}
    for line in told.splitlines():
        name, _, value = line.partition(":")
        fields.setdefault(name.strip(), value.strip())
    model = re.sub(r"\((R|TM)\)|\bCPU\b|@.*|[\d.]+ *[MG]Hz.*", " ", fields.get("model name", platform.machine()))
    kind = [fields[name] for name in ("cpu family", "model", "stepping", "CPU part") if name in fields]
    return " ".join([*model.split(), f"({'-'.join(kind)})"])


def _priority() -> str:
    """Whether servers and swarm go before other work: see procfs.pin."""
    status = Path("/proc/self/status").read_text()
    effective = int(re.findall(r"^CapEff:\s*(\w+)", status, re.MULTILINE)[0], 16)
    may = effective >> CAP_SYS_NICE & 1 and Path("/proc/self/autogroup").exists()
    return f"session {PRIORITY}" if may else "none"


def _versions() -> dict[str, str]:
    found = {"Python": platform.python_version(), "libc": " ".join(platform.libc_ver()), OURS: native_hash()}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin"
    for name, (program, *words) in PROGRAMS.items():
        if place := shutil.which(program, path=path):
            result = subprocess.run([place, *words], capture_output=True, text=True)
            if version := VERSION.search(result.stdout + result.stderr):
                found[name] = version[0]
    return found
