"""Tokens for a crowd, made as the server's own would be (protocol: HS256, `kid` in the header), 100,000 a second."""

import base64
import hashlib
import hmac
import itertools
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import msgspec

__all__ = ["SECRET", "host_names", "token", "user_names", "write_tokens"]

#: Of the bench's own servers only, which listen on the loopback address for a few minutes.
SECRET: Final = "a-benchmark-secret-of-sufficient-length"
LIFETIME_S: Final = 6 * 3600
_HEADER: Final = base64.urlsafe_b64encode(b'{"alg":"HS256","typ":"JWT","kid":"k1"}').rstrip(b"=") + b"."
_number = itertools.count()


def token(user_id: str, user_type: str) -> str:
    now = int(time.time())
    claims = {"sub": user_id, "typ": user_type, "iat": now, "exp": now + LIFETIME_S, "jti": f"bench-{next(_number)}"}
    signed = _HEADER + base64.urlsafe_b64encode(msgspec.json.encode(claims)).rstrip(b"=")
    digest = hmac.digest(SECRET.encode(), signed, hashlib.sha256)
    return (signed + b"." + base64.urlsafe_b64encode(digest).rstrip(b"=")).decode()


def user_names(count: int) -> list[str]:
    return [f"user_{i:05}" for i in range(count)]


def host_names(count: int) -> list[str]:
    """The swarm knows hosts by the first letters of their names."""
    return [f"kol_{i:03}" for i in range(count)]


def write_tokens(path: Path, names: Iterable[str]) -> Path:
    """One `token user_id` a line, for the swarm."""
    path.write_text("".join(f"{token(name, 'kol' if name.startswith('kol') else 'user')} {name}\n" for name in names))
    return path
