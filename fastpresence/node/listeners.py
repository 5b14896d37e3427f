"""The listening sockets, opened by the node: a failure is one line that says what to do.

The public port has one socket for each worker (SO_REUSEPORT), the admin face one for itself.
"""

import contextlib
import errno
import logging
import resource
import socket
from typing import Any, Final

from fastpresence.errors import StartError
from fastpresence.logs import event

__all__ = ["open_admin", "open_listeners", "raise_file_limit"]

LOG: Final = logging.getLogger("fastpresence.node")

#: Connections that may wait in one worker's queue; the kernel cuts it to net.core.somaxconn.
BACKLOG: Final = 4096


def open_listeners(host: str, port: int, count: int) -> list[socket.socket]:
    """`count` listening sockets on one address, which the kernel spreads connections over. Raises StartError."""
    family, address = _resolved("server", host, port)
    listeners: list[socket.socket] = []
    try:
        # With SO_REUSEPORT a second server of the same user would share the port unseen: ask first without it.
        _bound(family, address, shared=False).close()
        for _ in range(count):
            listener = _bound(family, address, shared=True)
            listeners.append(listener)
            listener.listen(BACKLOG)
            address = (address[0], listener.getsockname()[1], *address[2:])  # port 0: the first one's, for all
    except OSError as error:
        for listener in listeners:
            listener.close()
        raise StartError(_why_not(error, "server", host, port)) from None
    return listeners


def open_admin(host: str, port: int, *, is_port_given: bool) -> socket.socket | None:
    """The admin face's listening socket; None, with a line in the log, when the port that nobody chose is taken.

    Raises StartError.
    """
    family, address = _resolved("admin", host, port)
    try:
        listener = _bound(family, address, shared=False)
    except OSError as error:
        reason = _why_not(error, "admin", host, port)
        if error.errno != errno.EADDRINUSE or is_port_given:
            raise StartError(reason) from None
        event(LOG, logging.WARNING, "no admin face", reason=reason)
        return None
    return listener


def _resolved(section: str, host: str, port: int) -> tuple[int, tuple[Any, ...]]:
    """The address family and the first address of `host`. Raises StartError."""
    try:
        family, _, _, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE | socket.AI_NUMERICSERV
        )[0]
    except socket.gaierror as error:
        reason = f"{section}.host {host!r} cannot be resolved ({error.strerror}): set it to an address"
        raise StartError(reason) from None
    return family, address


def _bound(family: int, address: tuple[object, ...], *, shared: bool) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, address[0] != "::")  # "::" is both families
        sock.bind(address)
    except BaseException:
        sock.close()
        raise
    return sock


def _why_not(error: OSError, section: str, host: str, port: int) -> str:
    """Why nothing can listen there, and what to do; `section` of the settings."""
    flag = "--port" if section == "server" else f"--{section}-port"
    if error.errno == errno.EADDRINUSE:
        return f"port {port} is taken: stop what listens there (ss -ltnp 'sport = {port}'), or choose another {flag}"
    if error.errno == errno.EACCES:
        return f"port {port} is not allowed to this user: choose one above 1023, or grant CAP_NET_BIND_SERVICE"
    if error.errno == errno.EADDRNOTAVAIL:
        return f"{section}.host {host} is no address of this machine: set it to one that is, or to 0.0.0.0 for all"
    return f"cannot listen on {host} port {port}: {error.strerror}"


def raise_file_limit() -> int:
    """Take as many descriptors as the hard limit gives; workers inherit it. Each connection is one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 1_048_576 if hard == resource.RLIM_INFINITY else min(hard, 1_048_576)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):  # a sandbox may forbid it: then it stays as it is
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]
