"""What is known of credentials without checking a signature: API keys, and whose tokens were revoked.

    ApiKeys      compared in constant time
    Revocations  whose tokens stopped working, and up to which moment of issue: asked after `TokenKeys.verify`

Sans-IO: `now` (Unix epoch, seconds) comes in as an argument. Apart from `tokens` so that the node, which signs nothing,
need not import joserfc: that costs 70 ms and 12 MB. May import nothing of the package.
"""

import hmac
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from typing import Final

__all__ = ["ApiKeys", "Revocations"]


class ApiKeys:
    """The keys that the application's servers authenticate with."""

    def __init__(self, keys: Iterable[str]) -> None:
        self._keys = [key.encode() for key in keys]

    def contains(self, key: str | bytes) -> bool:
        """Whether `key` is one of them, in a time that tells nothing about how much of it is right."""
        candidate = key.encode("utf-8", "surrogatepass") if isinstance(key, str) else key
        found = False
        for known in self._keys:
            found |= hmac.compare_digest(known, candidate)
        return found


class Revocations:
    """Whose tokens stopped working: all that were issued to a user up to and including a second.

    Remembers the latest `SIZE` users, each for `KEEP_S` at least: no token of ours lives that long. Older ones are
    forgotten a few at each `add`, so that no call takes long. An entry takes some 190 bytes, a call 1 µs.
    """

    SIZE: Final = 1_000_000
    KEEP_S: Final = 30 * 86_400
    #: Entries that one `add` forgets at most: more than one, so that what has piled up goes away again.
    AT_ONCE: Final = 2

    __slots__ = ("_before", "_size")

    def __init__(self, size: int = SIZE) -> None:
        self._before: OrderedDict[str, int] = OrderedDict()  # the one that was revoked last is last
        self._size = size

    def __len__(self) -> int:
        return len(self._before)

    def add(self, user_id: str, before: int, now: int) -> None:
        """Revoke what was issued to the user up to and including `before`. Both are Unix seconds.

        Adding what is known, or less than that, changes nothing.
        """
        known = self._before.get(user_id)
        if known is not None and known < before:
            del self._before[user_id]  # so that it comes last again, in both orders (see `users`)
            known = None
        if known is None:
            self._before[user_id] = before
        for _ in range(self.AT_ONCE):
            oldest = next(iter(self._before))
            if len(self._before) <= self._size and self._before[oldest] >= now - self.KEEP_S:
                break
            del self._before[oldest]
            if not self._before:
                break

    def is_revoked(self, user_id: str, issued_at: int) -> bool:
        """Whether a token of this user that was issued at this Unix second stopped working."""
        before = self._before.get(user_id)
        return before is not None and issued_at <= before

    def items(self) -> Iterator[tuple[str, int]]:
        """Every user with his second, the one that was revoked first comes first. Nothing may be added meanwhile."""
        return iter(self._before.items())

    def users(self) -> list[str]:
        """The users alone, in the same order; for who takes long over them (see `before`)."""
        return list(dict.keys(self._before))  # OrderedDict's own walk takes 170 ms for a million, dict's 15

    def before(self, user_id: str) -> int | None:
        """The second up to which the user's tokens are revoked; None when nothing is known of him."""
        return self._before.get(user_id)
