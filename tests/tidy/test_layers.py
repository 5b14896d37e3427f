"""Who may import whom: the arrows of the house layout, read from the source and not from what happens to run.

errors <- settings, messages, codec, credentials, tokens, http, logs, link <- _native <- presence <- worker, node <- cli
messages, codec, errors <- client
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "fastpresence"

#: The floor that each part of the package stands on: a part may import parts of lower floors, and `SIDEWAYS`.
FLOORS = {
    "errors": 0,
    **dict.fromkeys(["settings", "messages", "codec", "credentials", "tokens", "http", "logs", "link"], 1),
    "_native": 2,
    "presence": 3,
    "worker": 4,
    "node": 4,
    "cli": 5,
    "__main__": 6,
}
#: On the ground floor: who may lean on whom.
SIDEWAYS = {"codec": {"messages"}, "tokens": {"credentials", "messages", "settings"}, "link": {"settings"}}
#: Outside of the tower.
ALONE = {"client": {"messages", "codec", "errors"}, "__init__": {"client", "errors"}}
IMPURE = {"asyncio", "uvloop", "socket", "time", "random", "logging"}

FILES = sorted(PACKAGE.rglob("*.py"))


def part_of(file: Path) -> str:
    """The first name below the package: a module of the top level, or a folder."""
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(file: Path) -> Iterator[tuple[int, str]]:
    """(line, absolute name) of every import of a file, in functions and under TYPE_CHECKING as well."""
    for node in ast.walk(ast.parse(file.read_text(), str(file))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = ["fastpresence", *file.relative_to(PACKAGE).parts[: -node.level]]
                base = ".".join([*parents, base]) if base else ".".join(parents)
            for alias in node.names:
                yield node.lineno, f"{base}.{alias.name}"


def wrong(file: Path) -> list[str]:
    """What this file imports and may not."""
    part = part_of(file)
    faults = []
    for line, name in imports(file):
        top, *rest = name.split(".")
        if top == "fastpresence" and rest:
            other = rest[0]
            if other == part or other in ("__version__",):
                continue
            if part in ALONE:
                allowed = other in ALONE[part]
            else:
                allowed = FLOORS.get(other, 99) < FLOORS.get(part, -1) or other in SIDEWAYS.get(part, ())
            if not allowed:
                faults.append(f"{file.name}:{line}: {part} may not import {other}")
        elif part == "presence" and top in IMPURE:
            faults.append(f"{file.name}:{line}: the core may not import {top}")
        elif top == "joserfc" and part != "tokens":
            faults.append(f"{file.name}:{line}: {part} may not import joserfc: it costs a process 70 ms")
    return faults


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_no_import_points_up_or_sideways(file: Path) -> None:
    assert wrong(file) == []


def test_every_part_of_the_package_has_its_place() -> None:
    parts = {part_of(file) for file in FILES}
    assert parts <= FLOORS.keys() | ALONE.keys()
    assert parts >= {"errors", "messages", "codec", "presence", "worker", "node", "client", "cli"}


def test_the_ground_floor_has_no_cycle() -> None:
    done: set[str] = set()
    left = {part for part, floor in FLOORS.items() if floor == 1}
    while left:
        free = {part for part in left if SIDEWAYS.get(part, set()) <= done}
        assert free, f"a cycle among {sorted(left)}"
        done |= free
        left -= free


@pytest.mark.parametrize(
    ("where", "line", "fault"),
    [
        ("presence/roster.py", "import time", "the core may not import time"),
        ("presence/roster.py", "from asyncio import Queue", "the core may not import asyncio"),
        ("presence/roster.py", "def f():\n    import socket", "the core may not import socket"),
        ("presence/roster.py", "from fastpresence.worker import peer", "presence may not import worker"),
        ("presence/roster.py", "from ..worker.peer import Peer", "presence may not import worker"),
        ("worker/peer.py", "import fastpresence.node.supervisor", "worker may not import node"),
        ("node/supervisor.py", "from fastpresence import worker", "node may not import worker"),
        ("client/core.py", "from fastpresence.presence.roster import Record", "client may not import presence"),
        ("client/core.py", "from fastpresence import settings", "client may not import settings"),
        ("errors.py", "import fastpresence.messages", "errors may not import messages"),
        ("messages.py", "from fastpresence import codec", "messages may not import codec"),
        ("http.py", "from fastpresence.settings import Settings", "http may not import settings"),
        ("cli.py", "from joserfc import jwt", "cli may not import joserfc"),
    ],
)
def test_this_test_would_notice(
    where: str, line: str, fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / where
    file.parent.mkdir(exist_ok=True)
    file.write_text(line)
    monkeypatch.setattr(f"{__name__}.PACKAGE", tmp_path)
    assert any(fault in found for found in wrong(file))
