"""Login tokens of the application: good ones say who it is; a table of forged ones, each made out of a good one."""

import base64
import hmac
import json
import re
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from fastpresence.errors import StartError, TokenError
from fastpresence.settings import AuthSettings, TokenKey
from fastpresence.tokens import LEEWAY, MAX_LOGIN_TOKEN_LENGTH, LoginClaims, LoginKeys, TokenKeys

NOW = 1_700_000_000
CLAIMS: dict[str, Any] = {"sub": "kol_1", "iat": NOW, "exp": NOW + 60, "user_type": "kol", "rooms": ["room_1"]}
SECRET = "the-application's-own-secret-of-40-chars"

Sign = Callable[[bytes], bytes]
Token = str


def b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def number(value: int) -> str:
    return b64(value.to_bytes((value.bit_length() + 7) // 8, "big"))


def hs256(secret: bytes) -> Sign:
    return lambda signed: hmac.digest(secret, signed, "sha256")


def rs256(key: rsa.RSAPrivateKey) -> Sign:
    return lambda signed: key.sign(signed, padding.PKCS1v15(), hashes.SHA256())


def es256(key: ec.EllipticCurvePrivateKey) -> Sign:
    def sign(signed: bytes) -> bytes:
        r, s = decode_dss_signature(key.sign(signed, ec.ECDSA(hashes.SHA256())))
        return r.to_bytes(32, "big") + s.to_bytes(32, "big")

    return sign


def pem(key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey) -> str:
    public = key.public_key()
    return public.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo).decode()


def der(key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey) -> bytes:
    return key.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def rsa_jwk(key: rsa.RSAPrivateKey, **more: Any) -> dict[str, Any]:
    numbers = key.public_key().public_numbers()
    return {"kty": "RSA", "n": number(numbers.n), "e": number(numbers.e), **more}


def ec_jwk(key: ec.EllipticCurvePrivateKey, **more: Any) -> dict[str, Any]:
    numbers = key.public_key().public_numbers()
    x, y = (b64(value.to_bytes(32, "big")) for value in (numbers.x, numbers.y))
    return {"kty": "EC", "crv": "P-256", "x": x, "y": y, **more}


RSA = rsa.generate_private_key(65_537, 2048)
OTHER_RSA = rsa.generate_private_key(65_537, 2048)
WEAK_RSA = rsa.generate_private_key(65_537, 1024)
CHEAP_RSA = rsa.generate_private_key(3, 2048)
EC = ec.generate_private_key(ec.SECP256R1())
OTHER_EC = ec.generate_private_key(ec.SECP256R1())
EC_384 = ec.generate_private_key(ec.SECP384R1())
OCT_JWK = {"kty": "oct", "kid": "h1", "k": b64(SECRET.encode())}
JWKS = {"keys": [OCT_JWK, rsa_jwk(RSA, kid="r1", use="sig", alg="RS256"), ec_jwk(EC, kid="e1", key_ops=["verify"])]}


def keys(*items: str, jwks: object = None, audience: str | None = None) -> LoginKeys:
    text = jwks if isinstance(jwks, str) or jwks is None else json.dumps(jwks)
    auth = AuthSettings(login_keys=items, login_jwks_file=jwks and "keys.json", login_audience=audience)  # type: ignore[arg-type]
    return LoginKeys(auth, text)


class Good:
    """A way of being right: the server's keys, and a token that one of them signed."""

    def __init__(self, ring: LoginKeys, header: dict[str, Any], sign: Sign, public: list[bytes]) -> None:
        self.ring, self.header, self.sign = ring, header, sign
        self.public = public  # the forms in which everybody may know the key

    def token(
        self, claims: object = None, header: object = None, sign: Sign | None = None, *, raw: bytes | None = None
    ) -> Token:
        """The good token, or one that is wrong in one thing and right in all others: also signed by the right key."""
        head = b64(json.dumps(self.header if header is None else header).encode() if raw is None else raw)
        signed = f"{head}.{b64(json.dumps(CLAIMS if claims is None else claims).encode())}"
        return f"{signed}.{b64((sign or self.sign)(signed.encode()))}"

    def parts(self) -> list[str]:
        return self.token().split(".")


GOOD = {
    "a secret": Good(keys(SECRET), {"alg": "HS256", "typ": "JWT"}, hs256(SECRET.encode()), []),
    "an RSA key": Good(keys(pem(RSA)), {"alg": "RS256"}, rs256(RSA), [pem(RSA).encode(), der(RSA)]),
    "an EC key": Good(keys(pem(EC)), {"alg": "ES256"}, es256(EC), [pem(EC).encode(), der(EC)]),
    "a JWKS's secret": Good(
        keys(jwks=JWKS), {"alg": "HS256", "kid": "h1"}, hs256(SECRET.encode()), [pem(RSA).encode(), pem(EC).encode()]
    ),
    "a JWKS's RSA key": Good(
        keys(jwks=JWKS), {"alg": "RS256", "kid": "r1", "x5t": "AAAA"}, rs256(RSA),
        [pem(RSA).encode(), der(RSA), json.dumps(rsa_jwk(RSA)).encode()],
    ),
    "a JWKS's EC key": Good(
        keys(jwks=JWKS), {"alg": "ES256", "kid": "e1", "typ": "at+jwt"}, es256(EC),
        [pem(EC).encode(), der(EC), json.dumps(ec_jwk(EC)).encode()],
    ),
    "one key of many": Good(
        keys("another-secret-of-the-application", SECRET, pem(OTHER_RSA), pem(RSA), pem(OTHER_EC), pem(EC), jwks=JWKS),
        {"alg": "RS256", "kid": "theirs"}, rs256(RSA), [pem(RSA).encode(), der(RSA), pem(EC).encode()],
    ),
}  # fmt: skip


def header(good: Good, **change: Any) -> Token:
    return good.token(header={**good.header, **change})


def without(names: dict[str, Any], *missing: str) -> dict[str, Any]:
    return {name: value for name, value in names.items() if name not in missing}


def claims(good: Good, **change: Any) -> Token:
    return good.token({**CLAIMS, **change})


def swapped(good: Good, **change: Any) -> Token:
    """Other claims under the good one's signature."""
    head, _, signature = good.parts()
    return f"{head}.{b64(json.dumps({**CLAIMS, **change}).encode())}.{signature}"


def signature(good: Good, change: Callable[[bytes], bytes]) -> Token:
    head, payload, last = good.parts()
    return f"{head}.{payload}.{b64(change(base64.urlsafe_b64decode(last + '==')))}"


def none(spelling: str, last: str = "") -> Callable[[Good], Token]:
    def forge(good: Good) -> Token:
        head = b64(json.dumps({**good.header, "alg": spelling}).encode())
        return f"{head}.{good.parts()[1]}.{last or good.parts()[2]}"

    return forge


def unsigned(spelling: str) -> Callable[[Good], Token]:
    def forge(good: Good) -> Token:
        return f"{b64(json.dumps({**good.header, 'alg': spelling}).encode())}.{good.parts()[1]}."

    return forge


def confused(form: int) -> Callable[[Good], Token]:
    """HS256 with what is public as the secret; where nothing is, with nothing."""

    def forge(good: Good) -> Token:
        secret = good.public[form] if form < len(good.public) else b""
        return good.token(header={**good.header, "alg": "HS256"}, sign=hs256(secret))

    return forge


def other_key(good: Good) -> Token:
    signs = {"HS256": hs256(b"x" * 40), "RS256": rs256(OTHER_RSA), "ES256": es256(OTHER_EC)}
    other = signs[good.header["alg"]]
    if good is GOOD["one key of many"]:
        other = rs256(rsa.generate_private_key(65_537, 2048))
    return good.token(sign=other)


def brings(good: Good, **more: Any) -> Token:
    """The header brings a key, and that key signed."""
    return good.token(header={**good.header, "alg": "RS256", **more}, sign=rs256(OTHER_RSA))


MALLORY = rsa_jwk(OTHER_RSA, kid="mallory")

#: Refused whatever key the application uses. Everything that is not the point is right, the signature included.
FORGED: dict[str, Callable[[Good], Token]] = {
    # alg none, in all spellings, with no signature and with the good one's
    "none": unsigned("none"),
    "None": unsigned("None"),
    "NONE": unsigned("NONE"),
    "nOnE": unsigned("nOnE"),
    "none with a blank": unsigned("none "),
    "none with a zero byte": unsigned("none\0"),
    "an empty alg": unsigned(""),
    "none under the good signature": none("none"),
    "None under the good signature": none("None"),
    "none with a signature of one character": none("none", "AA"),
    "none, signed": lambda good: header(good, alg="none"),
    # the signature
    "no signature": lambda good: ".".join([*good.parts()[:2], ""]),
    "no signature and no dot": lambda good: ".".join(good.parts()[:2]),
    "a signature that is cut": lambda good: signature(good, lambda s: s[:-1]),
    "half a signature": lambda good: signature(good, lambda s: s[: len(s) // 2]),
    "a longer signature": lambda good: signature(good, lambda s: s + b"\0"),
    "a signature twice": lambda good: signature(good, lambda s: s + s),
    "a signature of zeros": lambda good: signature(good, lambda s: bytes(len(s))),
    "a signature of ones": lambda good: signature(good, lambda s: b"\xff" * len(s)),
    "a signature that is backwards": lambda good: signature(good, lambda s: s[::-1]),
    "one bit of the signature": lambda good: signature(good, lambda s: bytes([s[0] ^ 1]) + s[1:]),
    "a signature of another key": other_key,
    "a signature with an empty secret": lambda good: good.token(sign=hs256(b"")),
    "HS256 with an empty secret": lambda good: good.token(header={**good.header, "alg": "HS256"}, sign=hs256(b"")),
    "a signature in DER": lambda good: good.token(
        header={**good.header, "alg": "ES256"}, sign=lambda signed: EC.sign(signed, ec.ECDSA(hashes.SHA256()))
    ),
    "a signature of the payload alone": lambda good: good.token(sign=lambda s: good.sign(s.split(b".")[1])),
    # claims of one's own under the good signature
    "another user under the signature": lambda good: swapped(good, sub="kol_2"),
    "another type under the signature": lambda good: swapped(good, user_type="user"),
    "all rooms under the signature": lambda good: swapped(good, rooms="*"),
    "a longer life under the signature": lambda good: swapped(good, exp=NOW + 61),
    "the same claims in other words": lambda good: ".".join(
        [good.parts()[0], b64(json.dumps(CLAIMS, indent=1).encode()), good.parts()[2]]
    ),
    # another algorithm
    "HS384": lambda good: header(good, alg="HS384"),
    "HS512": lambda good: header(good, alg="HS512"),
    "RS384": lambda good: header(good, alg="RS384"),
    "RS512": lambda good: header(good, alg="RS512"),
    "PS256": lambda good: header(good, alg="PS256"),
    "ES384": lambda good: header(good, alg="ES384"),
    "ES256K": lambda good: header(good, alg="ES256K"),
    "EdDSA": lambda good: header(good, alg="EdDSA"),
    "an encryption's alg": lambda good: header(good, alg="RSA-OAEP", enc="A256GCM"),
    "alg in small letters": lambda good: header(good, alg=good.header["alg"].lower()),
    "alg with a blank": lambda good: header(good, alg=good.header["alg"] + " "),
    "no alg": lambda good: good.token(header=without(good.header, "alg")),
    "alg null": lambda good: header(good, alg=None),
    "alg in a list": lambda good: header(good, alg=[good.header["alg"]]),
    "alg in an object": lambda good: header(good, alg={"": good.header["alg"]}),
    "alg a number": lambda good: header(good, alg=256),
    "alg twice, none at last": lambda good: good.token(raw=b'{"alg":"HS256","alg":"none"}'),
    # confusion: what is public as a secret
    "a public key as the secret": confused(0),
    "a public key in DER as the secret": confused(1),
    "a public key in JSON as the secret": confused(2),
    "a public key without its last line end as the secret": lambda good: good.token(
        header={**good.header, "alg": "HS256"}, sign=hs256((good.public or [b"x"])[0].strip())
    ),
    "RS256 over an HMAC": lambda good: good.token(header={**good.header, "alg": "RS256"}, sign=hs256(SECRET.encode())),
    "ES256 over an HMAC": lambda good: good.token(header={**good.header, "alg": "ES256"}, sign=hs256(SECRET.encode())),
    "ES256 over an RSA signature": lambda good: good.token(header={**good.header, "alg": "ES256"}, sign=rs256(RSA)),
    # a header that brings a key, or names a place or a rule
    "jku": lambda good: brings(good, jku="https://127.0.0.1:1/keys.json", kid="mallory"),
    "jku beside a good signature": lambda good: header(good, jku="https://127.0.0.1:1/keys.json"),
    "jku to a file": lambda good: header(good, jku="file:///etc/passwd"),
    "jku null": lambda good: header(good, jku=None),
    "jwk": lambda good: brings(good, jwk=MALLORY, kid="mallory"),
    "jwk with the good kid": lambda good: brings(good, jwk=MALLORY),
    "jwk of a secret": lambda good: good.token(
        header={**good.header, "alg": "HS256", "jwk": {"kty": "oct", "k": "AAAA"}}, sign=hs256(b"\0\0\0")
    ),
    "x5u": lambda good: brings(good, x5u="https://127.0.0.1:1/cert.pem"),
    "x5c": lambda good: brings(good, x5c=[b64(der(OTHER_RSA))]),
    "crit": lambda good: header(good, crit=["exp"]),
    "crit of nothing": lambda good: header(good, crit=[]),
    "crit of what is there": lambda good: header(good, crit=["kid"], kid=good.header.get("kid", "x")),
    "b64 false": lambda good: header(good, b64=False),
    "b64 false and critical": lambda good: header(good, b64=False, crit=["b64"]),
    "kid null": lambda good: header(good, kid=None),
    "kid a list": lambda good: header(good, kid=[good.header.get("kid", "x")]),
    "kid a number": lambda good: header(good, kid=0),
    "kid a path to nothing, signed with nothing": lambda good: good.token(
        header={"alg": "HS256", "kid": "../../../../dev/null"}, sign=hs256(b"")
    ),
    "kid a path": lambda good: good.token(header={"alg": "HS256", "kid": "/etc/hostname"}, sign=hs256(b"localhost\n")),
    "kid an injection": lambda good: good.token(
        header={"alg": "HS256", "kid": "x' UNION SELECT 'secret"}, sign=hs256(b"secret")
    ),
    "kid a command": lambda good: good.token(header={"alg": "HS256", "kid": "|sleep 5"}, sign=hs256(b"")),
    "a logout token": lambda good: header(good, typ="logout+jwt"),
    "typ a number": lambda good: header(good, typ=1),
    # time
    "expired": lambda good: claims(good, exp=NOW - 1),
    "expired now": lambda good: claims(good, exp=NOW),
    "expired by a fraction": lambda good: claims(good, exp=NOW - 0.5),
    "expired for ever": lambda good: claims(good, exp=0),
    "expired before time began": lambda good: claims(good, exp=-1),
    "no exp": lambda good: good.token(without(CLAIMS, "exp")),
    "exp null": lambda good: claims(good, exp=None),
    "exp a string": lambda good: claims(good, exp=str(NOW + 60)),
    "exp true": lambda good: claims(good, exp=True),
    "exp a list": lambda good: claims(good, exp=[NOW + 60]),
    "exp without an end": lambda good: claims(good, exp=1e300),
    "exp that is no number": lambda good: claims(good, exp=float("nan")),
    "exp infinite": lambda good: claims(good, exp=float("inf")),
    "not yet valid": lambda good: claims(good, nbf=NOW + LEEWAY + 1, exp=NOW + 900),
    "issued in the future": lambda good: claims(good, iat=NOW + LEEWAY + 1, exp=NOW + 900),
    "nbf a string": lambda good: claims(good, nbf="0"),
    "iat null": lambda good: claims(good, iat=None),
    # other claims
    "no sub": lambda good: good.token(without(CLAIMS, "sub")),
    "sub null": lambda good: claims(good, sub=None),
    "sub empty": lambda good: claims(good, sub=""),
    "sub a number": lambda good: claims(good, sub=1),
    "sub a list": lambda good: claims(good, sub=["kol_1"]),
    "user_type null": lambda good: claims(good, user_type=None),
    "user_type a list": lambda good: claims(good, user_type=["user", "kol"]),
    "rooms a name": lambda good: claims(good, rooms="room_1"),
    "rooms with a number": lambda good: claims(good, rooms=["room_1", 1]),
    "rooms true": lambda good: claims(good, rooms=True),
    "rooms null": lambda good: claims(good, rooms=None),
    "rooms an object": lambda good: claims(good, rooms={"room_1": True}),
    "for another audience": lambda good: claims(good, aud="https://another.example"),
    "for other audiences": lambda good: claims(good, aud=["a", "b"]),
    "aud a number": lambda good: claims(good, aud=1),
    "claims that are a list": lambda good: good.token([CLAIMS]),
    "claims that are a string": lambda good: good.token("kol_1"),
    "no claims": lambda good: good.token({}),
    # shape
    "empty": lambda good: "",
    "a dot": lambda good: ".",
    "two dots": lambda good: "..",
    "four parts": lambda good: good.token() + ".AAAA",
    "five parts": lambda good: good.token() + ".AAAA.AAAA",
    "a dot behind": lambda good: good.token() + ".",
    "a dot before": lambda good: "." + good.token(),
    "a line end behind": lambda good: good.token() + "\n",
    "a blank before": lambda good: " " + good.token(),
    "a blank in the signature": lambda good: good.token()[:-4] + " " + good.token()[-4:],
    "padding": lambda good: good.token() + "==",
    "padding of the header": lambda good: good.parts()[0] + "=." + ".".join(good.parts()[1:]),
    "the other base64": lambda good: ".".join(good.parts()[:2]) + "." + "+/" * 22,
    "a zero byte": lambda good: good.token() + "\0",
    "other letters": lambda good: "ａ" + good.token()[1:],
    "half a character": lambda good: "\ud800" + good.token(),
    "a header of one character": lambda good: "e." + ".".join(good.parts()[1:]),
    "a header that is no JSON": lambda good: good.token(raw=b"alg: HS256"),
    "a header that is a list": lambda good: good.token(header=[good.header]),
    "a header that is a string": lambda good: good.token(header="alg"),
    "a header that is empty": lambda good: good.token(header={}),
    "a header that is no UTF-8": lambda good: good.token(raw=b'{"alg":"HS256","kid":"\xff"}'),
    "a header that is cut": lambda good: good.token(raw=json.dumps(good.header).encode()[:-1]),
    "a header that goes deep": lambda good: good.token(raw=b'{"alg":"HS256","a":' + b"[" * 2000),
    "a header that is long": lambda good: header(good, pad="x" * 3000),
    "too long": lambda good: claims(good, pad="x" * MAX_LOGIN_TOKEN_LENGTH),
    "very long": lambda good: "a" * 1_000_000,
    "an encrypted one": lambda good: "eyJhbGciOiJkaXIiLCJlbmMiOiJBMTI4R0NNIn0..AAAA.AAAA.AAAA",
    "an API key": lambda good: "some-api-key-of-the-application",
    "a presence token": lambda good: TokenKeys([TokenKey("k1", "the-server's-own-secret-of-40-characters")]).issue(
        "kol_1", "kol", room=None, expire_time=60, now=NOW
    )[0],
}


class Watch:
    """What the interpreter was asked to do outside of its memory."""

    def __init__(self) -> None:
        self.is_on = False
        self.seen: list[str] = []
        sys.addaudithook(self._note)

    def _note(self, name: str, arguments: tuple[object, ...]) -> None:
        if self.is_on and name.startswith(("open", "socket.", "subprocess.", "os.", "urllib.")):
            self.seen.append(f"{name} {arguments}")


@pytest.fixture(scope="module")
def _hook() -> Watch:
    return Watch()


@pytest.fixture
def watch(_hook: Watch) -> Iterator[Watch]:
    _hook.seen.clear()
    yield _hook
    _hook.is_on = False


def refusal(ring: LoginKeys, token: str, now: int = NOW) -> str:
    with pytest.raises(TokenError) as caught:
        ring.verify(token, now=now)
    return str(caught.value)


@pytest.mark.parametrize("kind", GOOD)
def test_a_good_token_says_who_it_is(kind: str) -> None:
    good = GOOD[kind]
    assert good.ring.verify(good.token(), now=NOW) == LoginClaims("kol_1", "kol", ("room_1",))


@pytest.mark.parametrize("kind", GOOD)
@pytest.mark.parametrize("forgery", FORGED)
def test_a_forged_token_is_refused_with_a_plain_reason_and_nothing_outside_is_asked(
    kind: str, forgery: str, watch: Watch
) -> None:
    good = GOOD[kind]
    token = FORGED[forgery](good)
    watch.is_on = True
    reason = refusal(good.ring, token)
    watch.is_on = False
    assert watch.seen == []
    assert re.fullmatch(r"(the|neither an API key nor a) login token[a-zA-Z0-9 ,._']*", reason)
    assert "mallory" not in reason


def test_the_table_is_as_long_as_it_says() -> None:
    assert len(FORGED) >= 45
    tokens = {FORGED[name](GOOD["an RSA key"]) for name in FORGED}
    assert len(tokens) > len(FORGED) - 8  # a few come out the same where a key has no such form


@pytest.mark.parametrize("kind", GOOD)
def test_a_changed_character_anywhere_is_refused(kind: str) -> None:
    good = GOOD[kind]
    token = good.token()
    for position in range(len(token)):
        other = "A" if token[position] != "A" else "B"
        refusal(good.ring, token[:position] + other + token[position + 1 :])


@pytest.mark.parametrize(
    ("forgery", "reason"),
    [
        ("none", "neither an API key nor a login token"),
        ("none under the good signature", "the login token's algorithm is not its key's"),
        ("jku", "the login token's header brings a key or a rule of its own"),
        ("crit", "the login token's header brings a key or a rule of its own"),
        ("a signature of another key", "the login token's signature is wrong"),
        ("a public key as the secret", "the login token's algorithm is not its key's"),
        ("expired", "the login token has expired"),
        ("not yet valid", "the login token is not valid yet"),
        ("no exp", "the login token's claims are missing or of a wrong type"),
        ("for another audience", "the login token is for an audience, and auth.login_audience is not set"),
        ("a logout token", "the login token is of another type than JWT"),
        ("too long", "the login token is too long"),
        ("alg null", "the login token's header is malformed"),
    ],
)
def test_the_reason_says_what_to_mend(forgery: str, reason: str) -> None:
    good = GOOD["an EC key"]
    assert refusal(good.ring, FORGED[forgery](good)) == reason


def test_what_a_token_leaves_out_is_user_and_no_room() -> None:
    good = GOOD["a secret"]
    said = good.ring.verify(good.token({"sub": "auth0|1", "exp": NOW + 1}), now=NOW)
    assert said == LoginClaims("auth0|1", "user", ())
    assert not said.may_join("room_1")


def test_rooms_are_names_or_all_of_them() -> None:
    good = GOOD["a secret"]
    some = good.ring.verify(claims(good, rooms=["a", "b", "*"]), now=NOW)
    assert [some.may_join(room) for room in ("a", "b", "c", "")] == [True, True, False, False]
    every = good.ring.verify(claims(good, rooms="*"), now=NOW)
    assert every.may_join("c")


def test_what_has_no_meaning_here_is_not_looked_at() -> None:
    good = GOOD["a JWKS's RSA key"]
    token = good.token(
        {**CLAIMS, "iss": "https://idp.example", "groups": [1, {}], "nonce": None},
        {**good.header, "typ": "application/JWT", "cty": "x", "cat": "y", "x5t#S256": "AAAA"},
    )
    assert good.ring.verify(token, now=NOW).user_id == "kol_1"


def test_times_may_have_a_fraction_and_a_little_skew_is_forgiven() -> None:
    good = GOOD["a secret"]
    for change in (
        {"exp": NOW + 0.5},
        {"iat": NOW + LEEWAY, "nbf": NOW + LEEWAY, "exp": NOW + 900},
        {"iat": NOW - 0.5},
    ):
        good.ring.verify(claims(good, **change), now=NOW)


def test_the_audience_that_is_set_must_be_among_the_tokens() -> None:
    good = GOOD["a secret"]
    ring = keys(SECRET, audience="presence")
    for right in ("presence", ["app", "presence"]):
        ring.verify(claims(good, aud=right), now=NOW)
    for wrong in ("presence2", ["app"], [], ""):
        assert refusal(ring, claims(good, aud=wrong)) == "the login token is for another audience"
    assert refusal(ring, good.token()) == "the login token is for another audience"


def test_a_kid_finds_its_key_and_no_other_and_one_that_names_nothing_falls_to_the_keys_without_a_name() -> None:
    ring = keys(jwks={"keys": [rsa_jwk(RSA, kid="a"), rsa_jwk(OTHER_RSA, kid="b")]})
    good = GOOD["an RSA key"]
    ring.verify(good.token(header={"alg": "RS256", "kid": "a"}), now=NOW)
    assert refusal(ring, good.token(header={"alg": "RS256", "kid": "b"})) == "the login token's signature is wrong"
    for header in ({"alg": "RS256", "kid": "c"}, {"alg": "RS256", "kid": ""}, {"alg": "RS256"}):
        assert refusal(ring, good.token(header=header)) == "the login token names no key of the application"
    both = keys(pem(RSA), jwks={"keys": [rsa_jwk(OTHER_RSA, kid="b")]})
    both.verify(good.token(header={"alg": "RS256", "kid": "c"}), now=NOW)
    refusal(both, good.token(header={"alg": "RS256", "kid": "b"}))
    unnamed = keys(jwks={"keys": [rsa_jwk(RSA)]})
    unnamed.verify(good.token(header={"alg": "RS256"}), now=NOW)


def test_a_key_of_a_jwks_that_is_for_something_else_is_passed_over() -> None:
    others = [
        rsa_jwk(OTHER_RSA, kid="enc", use="enc", alg="RSA-OAEP"),
        rsa_jwk(OTHER_RSA, kid="rs512", alg="RS512"),
        rsa_jwk(OTHER_RSA, kid="sign", key_ops=["sign"]),
        {"kty": "OKP", "crv": "Ed25519", "x": "AAAA", "kid": "okp"},
        {"kty": "EC", "crv": "P-521", "x": "AAAA", "y": "AAAA", "kid": "p521"},
        {"kty": "AKP", "kid": "future"},
    ]
    ring = keys(jwks={"keys": [*others, rsa_jwk(RSA, kid="r1")]})
    good = GOOD["a JWKS's RSA key"]
    ring.verify(good.token(), now=NOW)
    for other in others:
        token = good.token(header={"alg": "RS256", "kid": other["kid"]}, sign=rs256(OTHER_RSA))
        assert refusal(ring, token) == "the login token names no key of the application"


def private_pem(key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey) -> str:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()


@pytest.mark.parametrize(
    ("item", "reason"),
    [
        (pem(WEAK_RSA), "is an RSA key of 1024 bits: 2048 to 8192 are taken"),
        (pem(CHEAP_RSA), "is an RSA key with the exponent 3: at least 65537 is needed"),
        (pem(EC_384), "is an EC key on the curve P-384: ES256 needs P-256"),
        (private_pem(RSA), "is a private key: it stays with the application, its public half belongs here"),
        (private_pem(EC), "is a private key: it stays with the application, its public half belongs here"),
        (pem(RSA)[:120], "is no PEM public key of RSA or EC that can be read"),
        (pem(RSA).replace("M", "!"), "is no PEM public key of RSA or EC that can be read"),
        ("-----BEGIN PUBLIC KEY-----\n-----END PUBLIC KEY-----", "is no PEM public key of RSA or EC that can be read"),
        (
            "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----",
            "is a certificate: take the public key out of it (openssl x509 -pubkey -noout)",
        ),
        ("ssh-rsa AAAAB3NzaC1yc2EAAAADAQAB", "is a public key of SSH: give it in PEM (ssh-keygen -e -m PKCS8)"),
        (
            base64.b64encode(der(RSA)).decode(),
            "is a public key without its PEM lines: it would serve as a secret",
        ),
        (
            base64.encodebytes(der(EC)).decode(),
            "is a public key without its PEM lines: it would serve as a secret",
        ),
        (json.dumps(rsa_jwk(RSA)), "is JSON: keys in that form belong into auth.login_jwks_file"),
        ("short", "is a secret of 5 bytes, at least 16 are needed"),
    ],
)  # fmt: skip
def test_a_key_that_will_not_do_is_refused_at_the_start_in_one_line_that_names_the_setting(
    item: str, reason: str
) -> None:
    with pytest.raises(StartError) as caught:
        keys(SECRET, item)
    assert str(caught.value) == f"auth.login_keys: item 2 {reason}"


@pytest.mark.parametrize(
    ("jwks", "reason"),
    [
        ("", 'is no JWKS ({"keys": [...]}, RFC 7517)'),
        ("not JSON", 'is no JWKS ({"keys": [...]}, RFC 7517)'),
        ("[]", 'is no JWKS ({"keys": [...]}, RFC 7517)'),
        (rsa_jwk(RSA), 'is no JWKS ({"keys": [...]}, RFC 7517)'),
        ({"keys": {}}, 'is no JWKS ({"keys": [...]}, RFC 7517)'),
        ({"keys": [{"kid": "x"}]}, 'is no JWKS ({"keys": [...]}, RFC 7517)'),
        ({"keys": [rsa_jwk(RSA, kid=1)]}, 'is no JWKS ({"keys": [...]}, RFC 7517)'),
        ({"keys": [OCT_JWK] * 101}, 'is no JWKS ({"keys": [...]}, RFC 7517)'),
        ('{"keys":' + "[" * 5000, 'is no JWKS ({"keys": [...]}, RFC 7517)'),
        ({"keys": []}, "has no key for HS256, RS256 or ES256"),
        ({"keys": [rsa_jwk(RSA, use="enc")]}, "has no key for HS256, RS256 or ES256"),
        ({"keys": [OCT_JWK, ec_jwk(EC, kid="h1")]}, "has the kid 'h1' twice"),
        ({"keys": [OCT_JWK, {"kty": "RSA"}]}, "key 2 cannot be read"),
        ({"keys": [{"kty": "RSA", "n": "!!", "e": "AQAB"}]}, "key 1 cannot be read"),
        ({"keys": [ec_jwk(EC) | {"x": "AAAA"}]}, "key 1 cannot be read"),
        ({"keys": [ec_jwk(EC) | {"y": ec_jwk(OTHER_EC)["y"]}]}, "key 1 cannot be read"),
        ({"keys": [{"kty": "oct", "k": "####"}]}, "key 1 cannot be read"),
        ({"keys": [{"kty": "oct", "k": ""}]}, "key 1 is a secret of 0 bytes, at least 16 are needed"),
        ({"keys": [{"kty": "oct", "k": b64(b"short")}]}, "key 1 is a secret of 5 bytes, at least 16 are needed"),
        (
            {"keys": [{"kty": "oct", "k": b64(der(RSA))}]},
            "key 1 is a public key without its PEM lines: it would serve as a secret",
        ),
        ({"keys": [rsa_jwk(WEAK_RSA)]}, "key 1 is an RSA key of 1024 bits: 2048 to 8192 are taken"),
        ({"keys": [rsa_jwk(RSA) | {"e": "Aw"}]}, "key 1 is an RSA key with the exponent 3: at least 65537 is needed"),
        ({"keys": [rsa_jwk(RSA) | {"e": "AQ"}]}, "key 1 cannot be read"),
        (
            {"keys": [rsa_jwk(RSA, d="AAAA")]},
            "key 1 is a private key: it stays with the application, its public half belongs here",
        ),
    ],
)
def test_a_jwks_that_will_not_do_is_refused_in_one_line_that_names_setting_and_file(jwks: object, reason: str) -> None:
    with pytest.raises(StartError) as caught:
        LoginKeys(AuthSettings(login_jwks_file="keys.json"), jwks if isinstance(jwks, str) else json.dumps(jwks))
    assert str(caught.value) == f"auth.login_jwks_file: keys.json {reason}"


def test_a_secret_in_pem_lines_or_of_the_servers_own_is_no_secret() -> None:
    own = TokenKey("k1", SECRET)
    for auth, jwks in (
        (AuthSettings(token_keys=(own,), login_keys=(SECRET,)), None),
        (AuthSettings(token_keys=(own,), login_jwks_file="f"), json.dumps({"keys": [OCT_JWK]})),
    ):
        with pytest.raises(StartError, match=r"a secret of auth\.token_keys is there too"):
            LoginKeys(auth, jwks)


def test_a_refused_key_is_not_repeated() -> None:
    with pytest.raises(StartError) as caught:
        keys("-----BEGIN PRIVATE KEY----- c2VjcmV0")
    assert "c2VjcmV0" not in str(caught.value)


def test_a_pem_key_may_come_with_the_line_ends_of_an_environment_file() -> None:
    good = GOOD["an RSA key"]
    keys(pem(RSA).strip().replace("\n", "\\n")).verify(good.token(), now=NOW)


def test_no_keys_are_no_keys() -> None:
    ring = LoginKeys(AuthSettings(), None)
    assert not ring
    assert refusal(ring, GOOD["a secret"].token()) == "the login token names no key of the application"
