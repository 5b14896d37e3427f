"""The machine that a figure comes from, with all that may have moved it: without it, the figure says nothing."""

import importlib.metadata
import os
import platform
import resource
import subprocess
import time
from pathlib import Path
from typing import Final

from msgspec import Struct

__all__ = ["Machine"]

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
PACKAGES: Final = ("fastpresence", "uvloop", "msgspec", "picows", "httptools", "joserfc", "isal", "Cython")


class Machine(Struct, frozen=True):
    """One machine at one moment."""

    cpu: str
    cpus: int  #: that the bench may use
    memory_bytes: int
    kernel: str
    settings: dict[str, str]  #: of the kernel, and the limits of this process
    versions: dict[str, str]
    commit: str  #: of the sources measured; "+" when there were changes on top
    at: str  #: UTC, ISO 8601
    load: float  #: of the last minute, before we began

    @classmethod
    def here(cls, cpus: int) -> "Machine":
        settings = {}
        for name in KERNEL_SETTINGS:
            try:
                settings[name.replace("/", ".")] = " ".join(Path("/proc/sys", name).read_text().split())
            except OSError:
                settings[name.replace("/", ".")] = "unknown"
        governor = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
        settings["cpufreq.governor"] = governor.read_text().strip() if governor.exists() else "none"
        settings["open files"] = "{} to {}".format(*resource.getrlimit(resource.RLIMIT_NOFILE))
        return cls(
            cpu=_cpu(),
            cpus=cpus,
            memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
            kernel=platform.release(),
            settings=settings,
            versions=_versions(),
            commit=_commit(),
            at=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            load=os.getloadavg()[0],
        )

    def text(self) -> str:
        return (
            f"{self.cpu}, {self.cpus} CPUs, {self.memory_bytes / 2**30:.0f} GiB, Linux {self.kernel}, "
            f"Python {self.versions['Python']}, commit {self.commit}, {self.at}"
        )

    def differs_from(self, other: "Machine") -> list[str]:
        """What keeps figures of two moments from being compared."""
        pairs = {
            "CPU": (self.cpu, other.cpu),
            "CPUs": (self.cpus, other.cpus),
            "kernel": (self.kernel, other.kernel),
            **{name: (self.settings.get(name), other.settings.get(name)) for name in {**self.settings}},
            **{
                name: (version, other.versions.get(name))
                for name, version in self.versions.items()
                if name != "fastpresence"
            },
        }
        return [f"{name}: {a} and {b}" for name, (a, b) in pairs.items() if a != b]


def _cpu() -> str:
    fields: dict[str, str] = {}
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        fields.setdefault(name.strip(), value.strip())
    model = fields.get("model name", "unknown CPU")
    if "cpu MHz" in fields and "GHz" not in model:
        model += f", {float(fields['cpu MHz']) / 1000:.1f} GHz"
    return model


def _versions() -> dict[str, str]:
    found = {"Python": platform.python_version(), "libc": " ".join(platform.libc_ver())}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    try:
        compiler = subprocess.run(["cc", "--version"], capture_output=True, text=True, check=True)
        found["cc"] = compiler.stdout.splitlines()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        found["cc"] = "none"
    return found


def _commit() -> str:
    here = Path(__file__).resolve().parent

    def git(*words: str) -> str:
        result = subprocess.run(["git", *words], cwd=here, capture_output=True, text=True, check=True)
        return result.stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "--short", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
