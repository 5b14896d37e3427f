"""Tokens: the server's own, issued and verified, and the application's login tokens, verified.

Sans-IO: `now` (Unix epoch, seconds) and the text of the JWKS file come in as arguments.

    TokenKeys   a JWT (RFC 7519), signed with HS256 by one of the server's own keys
        issue:   claims --msgspec--> JSON --joserfc.jws--> header.payload.signature
        verify:  the other way round; then every claim is checked by one struct
    LoginKeys   a JWT that the application signed: its secret, RSA or EC key, found by `kid` or by trying
        header --own check--> candidates --joserfc.jws--> payload --one struct--> who, what type, which rooms

Invariant: a key is used with one algorithm, which its own kind says and never a header. Nothing that a header names
(`jku`, `x5u`, `kid` as a path) is ever looked up anywhere but among the keys in memory.

A check costs 18 µs and issuing one 15 µs (CPython 3.11, one core, a token of 232 characters, median of nine runs of
5,000). The keys are imported once, and the payload never becomes a dict: joserfc.jwt, which makes one, costs 22 µs for
the same. A login token costs 19 µs with HS256, 45 µs with RS256 (2,048 bits; 102 µs with 4,096), 107 µs with ES256; a
wrong one costs as much. Importing joserfc costs a process some 70 ms, because it brings cryptography:
nobody else here may import it. May import `credentials`, `errors`, `messages`, and the structs of keys from `settings`.
"""

import binascii
import contextlib
import re
import secrets
import warnings
from base64 import b64decode, urlsafe_b64decode
from collections.abc import Iterable, Iterator, Sequence
from typing import Annotated, Any, Final, Literal

import msgspec
from joserfc.errors import BadSignatureError, JoseError
from joserfc.jwk import ECKey, GuestProtocol, Key, OctKey, RSAKey
from joserfc.jws import JWSRegistry, deserialize_compact, serialize_compact
from msgspec import UNSET, Meta, Struct, UnsetType

from fastpresence.credentials import Revocations
from fastpresence.errors import Forbidden, StartError, TokenError
from fastpresence.messages import RoomId, UserId
from fastpresence.settings import MIN_SECRET, AuthSettings, TokenKey

__all__ = [
    "LEEWAY",
    "MAX_LOGIN_TOKEN_LENGTH",
    "MAX_TOKEN_LENGTH",
    "Claims",
    "LoginClaims",
    "LoginKeys",
    "Rights",
    "TokenKeys",
]

#: The only algorithms there are: `none` and every other one are refused, whatever a header says.
ALGORITHMS: Final = ["HS256"]
#: Characters. Ours have some 230; a handshake carries at most this much of a stranger's token.
MAX_TOKEN_LENGTH: Final = 4096
#: How far in the future another machine's `iat` may lie: seconds of clock skew that are forgiven.
LEEWAY: Final = 60
#: Characters. An identity provider's tokens, with their groups and scopes, may have thousands.
MAX_LOGIN_TOKEN_LENGTH: Final = 8192
#: What joserfc raises, besides its own errors, for a header or a key of a shape that it did not expect.
TRIPS: Final = (JoseError, ValueError, TypeError, AttributeError, KeyError, RecursionError)


class Claims(Struct, frozen=True, gc=False):
    """What a verified token says. Times are Unix epoch, seconds."""

    user_id: str
    user_type: str
    room: str | None
    issued_at: int
    expires_at: int
    token_id: str
    watch: tuple[str, ...] | Literal["*"] = "*"  #: whom its user may ask for by name
    rooms: tuple[str, ...] | Literal["*"] = "*"  #: which rooms he may join, besides `room`


class Rights(Struct, frozen=True):
    """What a token that does not allow everything does allow."""

    watch: frozenset[str] | None  #: None: anybody
    rooms: frozenset[str] | None  #: None: any room

    @classmethod
    def of(cls, claims: Claims) -> "Rights | None":
        """None for a token that allows everything. Everybody may ask for himself, and join the token's room."""
        if claims.watch == "*" and claims.rooms == "*":
            return None
        own_room = () if claims.room is None else (claims.room,)
        return cls(
            None if claims.watch == "*" else frozenset((*claims.watch, claims.user_id)),
            None if claims.rooms == "*" else frozenset((*claims.rooms, *own_room)),
        )

    def check(self, user_ids: Iterable[str], rooms: Iterable[str]) -> None:
        """Raises Forbidden for what is not among it."""
        if self.watch is not None and not self.watch.issuperset(user_ids):
            raise Forbidden("user_ids: the token does not allow all of them")
        if self.rooms is not None and not self.rooms.issuperset(rooms):
            raise Forbidden("rooms: the token does not allow all of them")


class _Payload(Struct, frozen=True, gc=False, omit_defaults=True):
    """The claims as they are written. An integer stays an integer: a fraction of a second is refused."""

    sub: UserId
    typ: Annotated[str, Meta(pattern=r"^[a-z][a-z0-9_]{0,31}\Z")]
    iat: Annotated[int, Meta(ge=0, le=2**53)]
    exp: Annotated[int, Meta(ge=0, le=2**53)]
    jti: Annotated[str, Meta(max_length=128)]
    room: RoomId | None = None
    nbf: Annotated[int, Meta(ge=0, le=2**53)] = 0
    watch: tuple[UserId, ...] | Literal["*"] = "*"
    rooms: tuple[RoomId, ...] | Literal["*"] = "*"


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(_Payload).decode


class TokenKeys:
    """The ring of keys that tokens are signed with: the first signs, all verify."""

    def __init__(self, keys: Sequence[TokenKey], revocations: "Revocations | None" = None) -> None:
        if not keys:
            raise ValueError("a ring needs a key")
        self._revocations = Revocations() if revocations is None else revocations
        self._ring = {key.kid: OctKey.import_key(key.secret) for key in keys}
        self._signer = keys[0].kid
        self._registry = JWSRegistry(algorithms=ALGORITHMS)

    def issue(
        self,
        user_id: str,
        user_type: str,
        *,
        room: str | None,
        expire_time: int,
        now: int,
        watch: tuple[str, ...] | Literal["*"] = "*",
        rooms: tuple[str, ...] | Literal["*"] = "*",
    ) -> tuple[str, int]:
        """A token that is good for `expire_time` seconds, and when it runs out (Unix epoch, seconds).

        `watch` and `rooms`: see Claims. The caller has checked the names; a token that `verify` would refuse raises
        TokenError here. In the second in which the user's tokens were revoked the new one is dated a second later.
        """
        revoked = self._revocations.before(user_id)
        payload = _encode(
            _Payload(
                user_id,
                user_type,
                iat=now if revoked is None else max(now, revoked + 1),
                exp=now + expire_time,
                jti=secrets.token_urlsafe(12),
                room=room,
                watch=watch,
                rooms=rooms,
            )
        )
        try:
            _decode(payload)
        except msgspec.ValidationError as error:
            raise TokenError(f"no such token can be issued: {error}") from None
        header = {"alg": ALGORITHMS[0], "typ": "JWT", "kid": self._signer}
        token = serialize_compact(header, payload, self._ring[self._signer], registry=self._registry)
        if len(token) > MAX_TOKEN_LENGTH:
            raise TokenError(f"no such token can be issued: over {MAX_TOKEN_LENGTH} characters")
        return token, now + expire_time

    def verify(self, token: str | bytes, *, now: int) -> Claims:
        """What the token says. Raises TokenError with a reason that may be told to the other end."""
        if not token:
            raise TokenError("no token")
        if len(token) > MAX_TOKEN_LENGTH:
            raise TokenError("the token is too long")
        try:
            payload = deserialize_compact(token, self._find, registry=self._registry).payload
        except BadSignatureError:
            raise TokenError("the token's signature is wrong") from None
        except TokenError:
            raise
        except TRIPS:
            # joserfc expects a header of the right shape and trips over others in its own ways.
            raise TokenError("the token is malformed or of an algorithm that is not allowed") from None
        try:
            said = _decode(payload)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise TokenError("the token's claims are missing or of a wrong type") from None
        if said.exp <= now:
            raise TokenError("the token has expired")
        if said.iat > now + LEEWAY or said.nbf > now + LEEWAY:
            raise TokenError("the token is not valid yet")
        if self._revocations.is_revoked(said.sub, said.iat):
            raise TokenError("the token was revoked")
        return Claims(said.sub, said.typ, said.room, said.iat, said.exp, said.jti, said.watch, said.rooms)

    def _find(self, signature: GuestProtocol) -> OctKey:
        kid = signature.headers().get("kid")
        key = self._ring.get(kid) if isinstance(kid, str) else None
        if key is None:
            raise TokenError("the token names no key of ours")
        return key


# The application's own login tokens.


class LoginClaims(Struct, frozen=True, gc=False):
    """What a verified login token says of its user."""

    user_id: str  #: as the token writes it: it need not be a user id of ours
    user_type: str
    rooms: tuple[str, ...] | Literal["*"]
    watch: tuple[str, ...] | Literal["*"] = "*"

    def may_join(self, room: str) -> bool:
        """Whether the application lets its user into this room."""
        return self.rooms == "*" or room in self.rooms


class _LoginHeader(Struct, frozen=True, gc=False):
    """A login token's header. What is not named here means nothing to us, and is not asked to."""

    alg: str
    kid: str | UnsetType = UNSET
    typ: str | UnsetType = UNSET
    # Who sends one of these wants to be checked with a key of his own, or by rules that we do not know (RFC 7515
    # sections 4.1.2 to 4.1.6 and 4.1.11, RFC 7797).
    jku: Any = UNSET
    jwk: Any = UNSET
    x5u: Any = UNSET
    x5c: Any = UNSET
    crit: Any = UNSET
    b64: Any = UNSET

    @property
    def is_scheming(self) -> bool:
        return any(name is not UNSET for name in (self.jku, self.jwk, self.x5u, self.x5c, self.crit, self.b64))


#: RFC 7519 section 2: a number, which need not be an integer.
_Date = Annotated[float, Meta(ge=0, le=2**53)]


class _LoginPayload(Struct, frozen=True, gc=False):
    """The claims of a login token that we look at."""

    sub: Annotated[str, Meta(min_length=1)]
    exp: _Date
    iat: _Date = 0
    nbf: _Date = 0
    aud: str | list[str] | UnsetType = UNSET
    user_type: str = "user"
    rooms: tuple[str, ...] | Literal["*"] = ()
    watch: tuple[str, ...] | Literal["*"] = "*"


class _Jwk(Struct, frozen=True):
    """One key of a JWKS (RFC 7517 section 4, RFC 7518 section 6)."""

    kty: str
    kid: str | UnsetType = UNSET
    use: str | UnsetType = UNSET
    key_ops: list[str] | UnsetType = UNSET
    alg: str | UnsetType = UNSET
    crv: str | UnsetType = UNSET
    n: str = ""
    e: str = ""
    x: str = ""
    y: str = ""
    k: str = ""
    d: Any = UNSET  #: only a private key has one


class _Jwks(Struct, frozen=True):
    keys: Annotated[list[_Jwk], Meta(max_length=100)]


class _LoginKey(Struct, frozen=True):
    """A key, and the one algorithm that goes with it."""

    algorithm: str
    key: Key
    registry: JWSRegistry


_decode_login_header = msgspec.json.Decoder(_LoginHeader).decode
_decode_login = msgspec.json.Decoder(_LoginPayload).decode
#: The whole of a compact JWS; what joserfc would make of anything else need not be known.
_COMPACT: Final = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+")
#: By a key's kind (`kty`): its algorithm, and whether a curve is asked for.
LOGIN_ALGORITHMS: Final = {"oct": "HS256", "RSA": "RS256", "EC": "ES256"}
CURVE: Final = "P-256"
#: RSA: bits of the modulus (RFC 7518 section 3.3; more than the upper ones nobody has), least exponent (FIPS 186-5).
RSA_BITS: Final = range(2048, 8192 + 1)
RSA_EXPONENT: Final = 65_537


class LoginKeys:
    """The application's keys: those of `auth.login_keys` have no `kid`, those of the JWKS file mostly have one.

    `jwks`: the text of `auth.login_jwks_file`. Raises StartError, one line that names the setting.
    """

    def __init__(self, auth: AuthSettings, jwks: str | None) -> None:
        self._audience = auth.login_audience
        self._unnamed: list[_LoginKey] = []
        self._named: dict[str, _LoginKey] = {}
        for position, text in enumerate(auth.login_keys, 1):
            try:
                self._unnamed.append(_key_of_text(text))
            except _Unusable as error:
                raise StartError(f"auth.login_keys: item {position} {error}") from None
        if jwks is not None:
            try:
                for kid, key in _keys_of_jwks(jwks):
                    if kid is None:
                        self._unnamed.append(key)
                    elif self._named.setdefault(kid, key) is not key:
                        raise _Unusable(f"has the kid {kid!r:.100} twice")
            except _Unusable as error:
                raise StartError(f"auth.login_jwks_file: {auth.login_jwks_file} {error}") from None
        secrets_of_theirs = [key.key.raw_value for key in (*self._unnamed, *self._named.values())]
        if any(token_key.secret.encode() in secrets_of_theirs for token_key in auth.token_keys):
            # A presence token would be a login token too: good for another one, and for ever.
            raise StartError("auth.login_keys: a secret of auth.token_keys is there too: give each its own")

    def __bool__(self) -> bool:
        return bool(self._unnamed or self._named)

    def verify(self, token: str, *, now: int) -> LoginClaims:
        """What a login token says. Raises TokenError with a reason that may be told to the other end."""
        if len(token) > MAX_LOGIN_TOKEN_LENGTH:
            raise TokenError("the login token is too long")
        if not _COMPACT.fullmatch(token):
            raise TokenError("neither an API key nor a login token")
        payload = self._payload(token, self._candidates(token.partition(".")[0]))
        try:
            said = _decode_login(payload)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise TokenError("the login token's claims are missing or of a wrong type") from None
        if said.exp <= now:
            raise TokenError("the login token has expired")
        if said.iat > now + LEEWAY or said.nbf > now + LEEWAY:
            raise TokenError("the login token is not valid yet")
        self._check_audience(said.aud)
        return LoginClaims(said.sub, said.user_type, said.rooms, said.watch)

    def _candidates(self, head: str) -> list[_LoginKey]:
        """The keys that this header may have been signed with: by its `kid`, or all that have none."""
        try:
            header = _decode_login_header(urlsafe_b64decode(head + "=" * (-len(head) % 4)))
        except (binascii.Error, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise TokenError("the login token's header is malformed") from None
        if header.is_scheming:
            raise TokenError("the login token's header brings a key or a rule of its own")
        # RFC 8725 section 3.11: a logout token, say, may be signed with the same key.
        if header.typ is not UNSET and header.typ.lower().removeprefix("application/") not in ("jwt", "at+jwt"):
            raise TokenError("the login token is of another type than JWT")
        named = None if header.kid is UNSET else self._named.get(header.kid)
        keys = self._unnamed if named is None else [named]
        if not keys:
            raise TokenError("the login token names no key of the application")
        keys = [key for key in keys if key.algorithm == header.alg]
        if not keys:
            raise TokenError("the login token's algorithm is not its key's")
        return keys

    def _payload(self, token: str, keys: list[_LoginKey]) -> bytes:
        for key in keys:
            try:
                return deserialize_compact(token, key.key, registry=key.registry).payload
            except BadSignatureError:
                continue
            except TRIPS:
                raise TokenError("the login token is malformed") from None
        raise TokenError("the login token's signature is wrong")

    def _check_audience(self, given: str | list[str] | UnsetType) -> None:
        """RFC 7519 section 4.1.3: who is not among a token's audience must refuse it."""
        audience = [] if given is UNSET else [given] if isinstance(given, str) else given
        if self._audience is None and audience:
            raise TokenError("the login token is for an audience, and auth.login_audience is not set")
        if self._audience is not None and self._audience not in audience:
            raise TokenError("the login token is for another audience")


class _Unusable(ValueError):
    """What is wrong with a key of the application's, said of it."""


def _login_key(key: Key, algorithm: str) -> _LoginKey:
    registry = JWSRegistry(algorithms=[algorithm], strict_check_header=False)
    registry.max_header_length = 2048  # characters, for a provider's kid, x5t and what else he writes
    registry.max_signature_length = 2048  # characters, for the longest RSA key
    return _LoginKey(algorithm, key, registry)


def _key_of_text(text: str) -> _LoginKey:
    """An item of `auth.login_keys`: a public key in PEM, else a secret. Raises _Unusable."""
    if "-----BEGIN" not in text:
        return _secret_key(text.encode())
    if "PRIVATE KEY" in text:
        raise _Unusable("is a private key: it stays with the application, its public half belongs here")
    if "CERTIFICATE" in text:
        raise _Unusable("is a certificate: take the public key out of it (openssl x509 -pubkey -noout)")
    pem = text.replace("\\n", "\n")  # as environment files write a line's end
    for kind in (RSAKey, ECKey):
        try:
            return _checked(_quietly(kind, pem))
        except _Unusable:
            raise
        except TRIPS:
            continue
    raise _Unusable("is no PEM public key of RSA or EC that can be read")


def _secret_key(secret: bytes) -> _LoginKey:
    """A secret; a public key by any other name is none (it would be an HMAC key that everybody knows)."""
    if secret.startswith((b"ssh-", b"ecdsa-sha2-", b"---- BEGIN")):
        raise _Unusable("is a public key of SSH: give it in PEM (ssh-keygen -e -m PKCS8)")
    if secret.lstrip().startswith(b"{"):
        raise _Unusable("is JSON: keys in that form belong into auth.login_jwks_file")
    if len(secret) < MIN_SECRET:
        raise _Unusable(f"is a secret of {len(secret)} bytes, at least {MIN_SECRET} are needed")
    readings = [secret]
    with contextlib.suppress(binascii.Error):
        readings.append(b64decode(b"".join(secret.split()), validate=True))
    for reading in readings:
        try:
            _quietly(OctKey, reading)
        except ValueError:  # joserfc tries every loader of public keys on it
            raise _Unusable("is a public key without its PEM lines: it would serve as a secret") from None
    return _login_key(_quietly(OctKey, secret), LOGIN_ALGORITHMS["oct"])


def _checked(key: Key) -> _LoginKey:
    """A key as strong as its algorithm asks for."""
    if isinstance(key, RSAKey):
        bits, exponent = key.public_key.key_size, key.public_key.public_numbers().e
        if bits not in RSA_BITS:
            raise _Unusable(f"is an RSA key of {bits} bits: {RSA_BITS[0]} to {RSA_BITS[-1]} are taken")
        if exponent < RSA_EXPONENT:
            raise _Unusable(f"is an RSA key with the exponent {exponent}: at least {RSA_EXPONENT} is needed")
    elif isinstance(key, ECKey) and key.curve_name != CURVE:
        raise _Unusable(f"is an EC key on the curve {key.curve_name}: ES256 needs {CURVE}")
    return _login_key(key, LOGIN_ALGORITHMS[key.key_type])


def _keys_of_jwks(text: str) -> Iterator[tuple[str | None, _LoginKey]]:
    """The keys of a JWKS that check signatures of ours, each with its `kid`. Raises _Unusable."""
    try:
        keys = msgspec.json.decode(text, type=_Jwks).keys
    except (msgspec.DecodeError, UnicodeEncodeError, RecursionError):
        raise _Unusable('is no JWKS ({"keys": [...]}, RFC 7517)') from None
    count = 0
    for position, jwk in enumerate(keys, 1):
        algorithm = LOGIN_ALGORITHMS.get(jwk.kty)
        # RFC 7517 section 5: other keys are for others. A provider lists its encryption keys as well.
        if (
            algorithm is None
            or (jwk.alg is not UNSET and jwk.alg != algorithm)
            or (jwk.use is not UNSET and jwk.use != "sig")
            or (jwk.key_ops is not UNSET and "verify" not in jwk.key_ops)
            or (jwk.kty == "EC" and jwk.crv != CURVE)
        ):
            continue
        try:
            key = _key_of_jwk(jwk)
        except _Unusable as error:
            raise _Unusable(f"key {position} {error}") from None
        except TRIPS:
            raise _Unusable(f"key {position} cannot be read") from None
        count += 1
        yield (None if jwk.kid is UNSET else jwk.kid), key
    if not count:
        raise _Unusable("has no key for HS256, RS256 or ES256")


def _key_of_jwk(jwk: _Jwk) -> _LoginKey:
    if jwk.kty == "oct":
        return _secret_key(b64decode(jwk.k + "=" * (-len(jwk.k) % 4), b"-_", validate=True))
    if jwk.d is not UNSET:
        raise _Unusable("is a private key: it stays with the application, its public half belongs here")
    if jwk.kty == "RSA":
        return _checked(_quietly(RSAKey, {"kty": "RSA", "n": jwk.n, "e": jwk.e}))
    return _checked(_quietly(ECKey, {"kty": "EC", "crv": CURVE, "x": jwk.x, "y": jwk.y}))


def _quietly(kind: type[OctKey] | type[RSAKey] | type[ECKey], value: Any) -> Key:
    """A key, without joserfc's warnings: what they warn of is refused here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return kind.import_key(value)
