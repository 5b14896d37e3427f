"""Presence tokens signed by hand with the tests' own key, so that they may say what no request would ask for.

By joserfc alone: shares no code with what issues tokens, and makes them with a past or a claim of the test's choice.
"""

import time

from joserfc import jwt
from joserfc.jwk import OctKey

from tests.support.server import TOKEN_SECRET

__all__ = ["signed"]

_KEY = OctKey.import_key(TOKEN_SECRET)


def signed(user_id: str, user_type: str = "user", *, age: int = 0, life: int = 3600, **claims: object) -> str:
    """A token issued `age` seconds ago for `life` seconds, with these claims besides the usual ones."""
    issued_at = int(time.time()) - age
    usual = {"sub": user_id, "typ": user_type, "iat": issued_at, "exp": issued_at + life, "jti": "by hand"}
    return jwt.encode({"alg": "HS256", "kid": "k1"}, {**usual, **claims}, _KEY)
