"""What most integration tests begin with: somebody who acts, somebody who would notice, and a way to be sure.

That nothing was seen can't be waited for. It is known once something that happened later has been seen: a third user
changes his status, and what a flush tells of is in the order of what happened.
"""

import itertools
from typing import Final

from tests.support.clients import Client, Clients, Codec, Sight

__all__ = ["Scene", "fresh"]

_NUMBERS: Final = itertools.count(1)


def fresh(kind: str) -> str:
    """A user id that no other test has."""
    return f"{kind}_{next(_NUMBERS)}"


class Scene:
    """An actor who is online, a witness who watches him, and a marker."""

    def __init__(self, clients: Clients, actor: Client, witness: Client, marker: Client) -> None:
        self.clients = clients
        self.actor, self.witness = actor, witness
        self.marker = marker
        self._marks = itertools.cycle(["away", "online"])
        self._before = self._seen()

    @classmethod
    async def begin(cls, clients: Clients, codec: Codec = "json", *, online: bool = True) -> "Scene":
        """`online` False: the actor has yet to say `user_online`."""
        user_id = fresh("kol")
        marker = await clients.online(fresh("marker"), public=False)
        actor = await clients.connect(user_id, "kol", codec=codec, public=False)
        if online:
            await actor.do("user_online")
        witness = await clients.connect(fresh("witness"), public=False)
        await witness.do("subscribe", user_ids=[user_id, marker.user_id])
        await witness.sees(user_id, "online" if online else "offline")
        await witness.sees(marker.user_id, "online")
        return cls(clients, actor, witness, marker)

    def _seen(self) -> list[Sight]:
        return list(self.witness.view.seen[self.actor.user_id])

    async def settle(self) -> None:
        """Afterwards the witness has seen whatever there was to see until now."""
        mark = next(self._marks)
        await self.marker.do("status_change", status=mark)
        await self.witness.sees(self.marker.user_id, mark)

    async def nothing_was_seen(self) -> None:
        """Since the beginning, or the last call of `seen`."""
        await self.settle()
        assert self._seen() == self._before

    async def seen(self) -> list[str]:
        """What the witness saw of the actor since the last call."""
        await self.settle()
        sights, self._before = self._seen()[len(self._before) :], self._seen()
        return [sight.status for sight in sights]
