"""What the kernel says of a process: memory, sockets, children; and which CPU it may use. Linux only.

Time on a CPU is mostly read by the swarm itself, in the same moment as its counters.
"""

import contextlib
import os
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

__all__ = [
    "Memory",
    "Usage",
    "cpu_ns",
    "descendants",
    "listening_ports",
    "memory",
    "network_losses",
    "pin",
    "socket_memory",
]

PROC = Path("/proc")
PRIORITY = -15  #: as of nice(1): some thirty times the share of an ordinary session
#: linux/netlink.h, linux/inet_diag.h, linux/sock_diag.h
NETLINK_SOCK_DIAG, SOCK_DIAG_BY_FAMILY, NLM_F_DUMP_REQUEST, NLMSG_ERROR, NLMSG_DONE = 4, 20, 0x301, 2, 3
INET_DIAG_SKMEMINFO, TCP_ESTABLISHED = 7, 1


@dataclass(frozen=True)
class Memory:
    """User memory of one process, in bytes. Kernel memory of its sockets is not in it."""

    pss: int  #: shared pages counted by share
    private_dirty: int  #: pages that only this process has and has written

    def __sub__(self, other: "Memory") -> "Memory":
        return Memory(self.pss - other.pss, self.private_dirty - other.private_dirty)


def memory(pid: int) -> Memory:
    kilobytes = {}
    for line in (PROC / str(pid) / "smaps_rollup").read_text().splitlines()[1:]:
        name, value = line.split(":", 1)
        kilobytes[name] = int(value.split()[0])
    return Memory(kilobytes["Pss"] * 1024, kilobytes["Private_Dirty"] * 1024)


def socket_memory(port: int) -> tuple[int, int]:
    """Kernel memory of the established TCP sockets (IPv4) of a local port, in bytes, and how many there are.

    The kernel's own count, as `ss -tm` shows it: what waits to be sent or read with all that the kernel puts around it,
    and what is set aside. The peer's sockets have another local port and are not in it.
    """
    request = struct.pack("=BBBBI", socket.AF_INET, socket.IPPROTO_TCP, 1 << (INET_DIAG_SKMEMINFO - 1), 0,
                          1 << TCP_ESTABLISHED) + struct.pack(">H", port) + bytes(46)  # fmt: skip
    total = count = 0
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_SOCK_DIAG) as kernel:
        header = struct.pack("=IHHII", 16 + len(request), SOCK_DIAG_BY_FAMILY, NLM_F_DUMP_REQUEST, 1, 0)
        kernel.sendto(header + request, (0, 0))
        while True:
            answer, at = kernel.recv(1 << 20), 0
            while at < len(answer):
                length, kind = struct.unpack_from("=IH", answer, at)
                if kind == NLMSG_DONE:
                    return total, count
                if kind == NLMSG_ERROR:
                    raise OSError("the kernel does not tell of sockets (inet_diag)")
                body = answer[at + 16 : at + length]  # struct inet_diag_msg, 72 bytes, then attributes
                if struct.unpack_from(">H", body, 4)[0] == port:
                    total += _memory_of(body)
                    count += 1
                at += (length + 3) & ~3


def _memory_of(message: bytes) -> int:
    at = 72
    while at < len(message):
        length, kind = struct.unpack_from("=HH", message, at)
        if kind == INET_DIAG_SKMEMINFO:
            read, _, _, _, set_aside, queued, options, backlog = struct.unpack_from("=8I", message, at + 4)
            return int(read + set_aside + queued + options + backlog)
        at += (length + 3) & ~3
    return 0


def network_losses() -> dict[str, int]:
    """Packets that this machine lost or had to send again, by why, since boot."""
    counts: dict[str, int] = {}
    for file in ("net/netstat", "net/snmp"):
        lines = (PROC / file).read_text().splitlines()
        for names, values in zip(lines[::2], lines[1::2], strict=True):
            counts |= zip(names.split()[1:], map(int, values.split()[1:]), strict=True)
    dropped = sum(int(line.split()[1], 16) for line in (PROC / "net/softnet_stat").read_text().splitlines())
    return {
        "lost in the device's queue": dropped,
        "turned away at a full accept queue": counts.get("ListenOverflows", 0),
        "sent again": counts.get("RetransSegs", 0),
    }


def cpu_ns(pid: int) -> int:
    """Nanoseconds that the threads of `pid` have been on a CPU."""
    return sum(int((PROC / f"{pid}/task/{task}/schedstat").read_text().split()[0]) for task in threads(pid))


def threads(pid: int) -> list[int]:
    return [int(task.name) for task in (PROC / str(pid) / "task").iterdir()]


def descendants(pid: int) -> Iterator[tuple[int, str]]:
    """Process id and command line of every child, grandchild and so on of `pid`."""
    try:
        children = [
            int(child) for task in threads(pid) for child in (PROC / f"{pid}/task/{task}/children").read_text().split()
        ]
    except FileNotFoundError:
        return
    for child in children:
        try:
            command = (PROC / str(child) / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except FileNotFoundError:
            continue
        yield child, command
        yield from descendants(child)


def listening_ports(pid: int) -> list[int]:
    """TCP ports (IPv4) that `pid` holds a listening socket of."""
    inodes = set()
    for descriptor in (PROC / str(pid) / "fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            inodes.add(os.readlink(descriptor))
    ports = []
    for line in (PROC / str(pid) / "net" / "tcp").read_text().splitlines()[1:]:
        _, local, _, state, *_, inode = line.split()[:10]
        if state == "0A" and f"socket:[{inode}]" in inodes:
            ports.append(int(local.split(":")[1], 16))
    return ports


def pin(pid: int, cpu: int) -> None:
    """Ties every thread of `pid` to one CPU; threads and children that come later inherit it.

    Where we may (as root), its session also goes before other work on that CPU: the kernel shares a busy core between
    sessions (sched(7), autogroups), and what is measured should not be how many of them there are.
    """
    for task in threads(pid):
        os.sched_setaffinity(task, {cpu})
    with contextlib.suppress(OSError):
        (PROC / str(pid) / "autogroup").write_text(str(PRIORITY))


@dataclass(frozen=True)
class Usage:
    """CPU seconds since boot: of the whole machine, and of this process with the children it has waited for."""

    total: float
    busy: float
    steal: float  #: taken by the host
    own: float

    @classmethod
    def now(cls) -> "Usage":
        second = os.sysconf("SC_CLK_TCK")
        user, nice, system, idle, iowait, irq, softirq, steal = (
            int(value) / second for value in (PROC / "stat").read_text().splitlines()[0].split()[1:9]
        )
        busy = user + nice + system + irq + softirq
        return cls(busy + idle + iowait + steal, busy, steal, sum(os.times()[:4]))

    def since(self, before: "Usage") -> tuple[float, float]:
        """Percent of the machine that the host took, and cores that other work used."""
        total = max(0.01, self.total - before.total)
        seconds = total / (os.cpu_count() or 1)
        foreign = (self.busy - before.busy) - (self.own - before.own)
        return 100 * (self.steal - before.steal) / total, max(0.0, foreign / seconds)
