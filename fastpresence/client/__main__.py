"""`python -m fastpresence.client URL`: show live changes, one line each, until Ctrl-C.

The token comes from the environment variable FASTPRESENCE_TOKEN, never from the command line. With `--online` the
user of the token comes online, and polls where no WebSocket can be had; without it, it is an observer that nobody sees.
What is printed last on stderr says whether the view is live, polled or stale.
"""

import argparse
import asyncio
import base64
import binascii
import os
import sys
import time
from functools import partial
from typing import Any, Final, get_args

import msgspec

from fastpresence.client.connection import PresenceClient
from fastpresence.client.machine import Freshness
from fastpresence.client.roster import Change
from fastpresence.client.schedule import Timing
from fastpresence.errors import ConnectionFailed, FastPresenceError
from fastpresence.messages import Status, StatusEntry

__all__ = ["main", "show"]

FRESHNESS: Final[dict[Freshness, str]] = {
    "live": "live: every change as it happens",
    "polled": "polled: no WebSocket, changes come some seconds late",
    "stale": "stale: changes may be missing",
}


def claims_of(token: str) -> dict[str, Any]:
    """What a token says of itself, unverified: good for names to show, for nothing else."""
    try:
        body = token.split(".")[1]
        claims = msgspec.json.decode(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
    except (IndexError, ValueError, binascii.Error):  # msgspec's errors are ValueErrors
        return {}
    return claims if isinstance(claims, dict) else {}


def line(user: StatusEntry, was: str, *, stale: bool = False, room: str | None = None, left: bool = False) -> str:
    """One change, as it is printed: time, user, from -> to."""
    now = time.time()
    clock = f"{time.strftime('%H:%M:%S', time.localtime(now))}.{int(now * 1000) % 1000:03d}"
    notes = [f"in {room}" if room and not left else f"left {room}" if room else "", "stale" if stale else ""]
    note = ", ".join(note for note in notes if note)
    return f"{clock}  {user.user_id:<24} {was:>7} -> {user.status}{f'  ({note})' if note else ''}"


def line_of(change: Change) -> str:
    was = change.previous.status if change.previous is not None else "-"
    return line(change.entry, was, stale=change.stale, room=change.room, left=change.left)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m fastpresence.client",
        description="Show live presence changes, one line each. The token comes from FASTPRESENCE_TOKEN.",
    )
    parser.add_argument("url", metavar="URL", help="the WebSocket's URL, such as ws://127.0.0.1:8080/ws")
    parser.add_argument("--user-id", metavar="ID", help="whose token this must be (default: whose it is)")
    parser.add_argument("--user-type", metavar="TYPE", help="of which type (default: as the token says)")
    parser.add_argument("--online", metavar="STATUS", choices=get_args(Status), help="come online, showing STATUS")
    parser.add_argument("--watch", metavar="ID", action="append", default=[], help="see this user too; repeatable")
    parser.add_argument("--room", metavar="ROOM", action="append", default=[], help="join this room; repeatable")
    parser.add_argument("--poll-url", metavar="URL", help="where to poll (default: derived from the WebSocket's URL)")
    parser.add_argument("--codec", choices=["json", "msgpack"], default="json")
    return parser.parse_args(arguments)


def note(text: str) -> None:
    print(f"-- {text}", file=sys.stderr, flush=True)


async def show(options: argparse.Namespace, token: str, timing: Timing | None = None) -> None:
    """Print until the client ends. Raises what PresenceClient does."""
    claims = claims_of(token)
    client = PresenceClient(
        options.url,
        token=token,
        user_id=options.user_id or claims.get("sub"),
        user_type=options.user_type or claims.get("typ"),
        codec=options.codec,
        online=options.online is not None,
        status=options.online,
        poll_url=options.poll_url,
        timing=timing,
    )
    client.on_state(lambda state: note(f"{state}{f': {client.reason}' if client.reason else ''}"))
    client.on_freshness(lambda freshness: note(FRESHNESS[freshness]))
    client.on_occupancy(lambda room, count: note(f"{room}: {count} members, too many for a roster"))
    async with client:
        changes = client.changes()
        for entry in sorted(client.statuses().values(), key=lambda entry: entry.user_id):
            print(line(entry, "-"), flush=True)
        for wish in (partial(client.watch, *options.watch), *(partial(client.join, room) for room in options.room)):
            try:
                await wish()
            except ConnectionFailed as exc:
                note(f"{exc}; the next connection asks for it")
        async for change in changes:
            print(line_of(change), flush=True)


def main(arguments: list[str] | None = None) -> int:
    """0 after Ctrl-C, 1 when the server can't be reached or refuses, 2 for a wrong command line."""
    options = parse(arguments)
    token = os.environ.get("FASTPRESENCE_TOKEN", "").strip()
    if not token:
        print("set FASTPRESENCE_TOKEN to a token (`fastpresence token` makes one)", file=sys.stderr)
        return 2
    try:
        asyncio.run(show(options, token))
    except KeyboardInterrupt:
        return 0
    except (FastPresenceError, OSError) as exc:
        print(exc, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
