"""Tokens: what is issued verifies, and every way of being wrong is refused with its reason."""

import base64
import hmac
import json
from typing import Any

import pytest

from fastpresence.credentials import Revocations
from fastpresence.errors import Forbidden, TokenError
from fastpresence.settings import TokenKey
from fastpresence.tokens import LEEWAY, MAX_TOKEN_LENGTH, Claims, Rights, TokenKeys

NOW = 1_700_000_000
OLD = TokenKey("k0", "an-older-secret-of-32-characters")
NEW = TokenKey("k1", "the-newer-secret-of-32-character")
CLAIMS: dict[str, Any] = {"sub": "kol_1", "typ": "kol", "iat": NOW, "exp": NOW + 60, "jti": "x"}


@pytest.fixture
def keys() -> TokenKeys:
    return TokenKeys([NEW, OLD])


def b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def forge(claims: object, header: object = None, secret: str = NEW.secret, digest: str = "sha256") -> str:
    """A token made by hand, so that it may be wrong in any one way."""
    head = {"alg": "HS256", "kid": "k1"} if header is None else header
    signed = f"{b64(json.dumps(head).encode())}.{b64(json.dumps(claims).encode())}"
    return f"{signed}.{b64(hmac.digest(secret.encode(), signed.encode(), digest))}"


def refusal(keys: TokenKeys, token: str | bytes, now: int = NOW) -> str:
    with pytest.raises(TokenError) as caught:
        keys.verify(token, now=now)
    return str(caught.value)


def test_what_was_issued_verifies_to_the_same_claims(keys: TokenKeys) -> None:
    token, expires_at = keys.issue("kol_1", "kol", room="room:1", expire_time=3600, now=NOW)
    assert expires_at == NOW + 3600
    claims = keys.verify(token, now=NOW)
    assert claims == Claims("kol_1", "kol", "room:1", NOW, NOW + 3600, claims.token_id)
    assert keys.verify(token.encode(), now=NOW) == claims


def test_a_token_carries_the_claims_of_the_protocol_and_its_kid_in_the_header(keys: TokenKeys) -> None:
    token, _ = keys.issue("kol_1", "kol", room=None, expire_time=3600, now=NOW)
    header, payload = (json.loads(base64.urlsafe_b64decode(part + "==")) for part in token.split(".")[:2])
    assert header == {"alg": "HS256", "typ": "JWT", "kid": "k1"}
    assert set(payload) == {"sub", "typ", "iat", "exp", "jti"}


def test_two_tokens_never_share_their_id(keys: TokenKeys) -> None:
    tokens = {keys.issue("u", "user", room=None, expire_time=1, now=NOW)[0] for _ in range(50)}
    assert len({keys.verify(token, now=NOW).token_id for token in tokens}) == 50


def test_a_token_made_by_hand_from_the_standard_verifies(keys: TokenKeys) -> None:
    assert keys.verify(forge(CLAIMS), now=NOW).user_id == "kol_1"
    assert keys.verify(forge(CLAIMS | {"more": [1, {}]}), now=NOW).room is None


def test_an_older_key_of_the_ring_still_verifies_and_a_removed_one_does_not(keys: TokenKeys) -> None:
    token, _ = TokenKeys([OLD]).issue("u", "user", room=None, expire_time=60, now=NOW)
    assert keys.verify(token, now=NOW).user_id == "u"
    assert refusal(TokenKeys([NEW]), token) == "the token names no key of ours"


def test_a_token_is_good_until_the_second_before_it_runs_out(keys: TokenKeys) -> None:
    token, expires_at = keys.issue("u", "user", room=None, expire_time=60, now=NOW)
    keys.verify(token, now=expires_at - 1)
    assert refusal(keys, token, expires_at) == "the token has expired"


@pytest.mark.parametrize("claim", ["iat", "nbf"])
def test_a_little_clock_skew_is_forgiven_and_more_is_not(keys: TokenKeys, claim: str) -> None:
    keys.verify(forge(CLAIMS | {claim: NOW + LEEWAY, "exp": NOW + 900}), now=NOW)
    assert refusal(keys, forge(CLAIMS | {claim: NOW + LEEWAY + 1, "exp": NOW + 900})) == "the token is not valid yet"


def test_a_changed_character_anywhere_is_refused(keys: TokenKeys) -> None:
    token, _ = keys.issue("kol_1", "kol", room="r", expire_time=60, now=NOW)
    for position in range(len(token)):
        other = "A" if token[position] != "A" else "B"
        refusal(keys, token[:position] + other + token[position + 1 :])


def test_a_shortened_token_is_refused_at_every_length(keys: TokenKeys) -> None:
    token, _ = keys.issue("kol_1", "kol", room="r", expire_time=60, now=NOW)
    for length in range(len(token)):
        refusal(keys, token[:length])


def test_the_right_kid_with_the_wrong_secret_is_refused(keys: TokenKeys) -> None:
    assert refusal(keys, forge(CLAIMS, secret=OLD.secret)) == "the token's signature is wrong"


@pytest.mark.parametrize(
    "header",
    [
        {"alg": "none", "kid": "k1"},
        {"alg": "None", "kid": "k1"},
        {"alg": "HS512", "kid": "k1"},
        {"alg": "RS256", "kid": "k1"},
        {"alg": ["HS256"], "kid": "k1"},
        {"alg": "HS256"},
        {"alg": "HS256", "kid": None},
        {"alg": "HS256", "kid": ["k1"]},
        {"alg": "HS256", "kid": "../k1"},
        {"alg": "HS256", "kid": "k1", "crit": ["x"], "x": 1},
        {"alg": "HS256", "kid": "k1", "b64": False},
        {"kid": "k1"},
        {},
        [],
        ["alg"],
        "alg",
        "alg b64",
        1,
        {"alg": "HS256", "kid": "k1", "pad": "x" * 3000},
    ],
)
def test_a_header_that_is_not_ours_is_refused(keys: TokenKeys, header: object) -> None:
    refusal(keys, forge(CLAIMS, header))


def test_the_algorithm_is_ours_to_choose_even_with_a_right_signature_of_another(keys: TokenKeys) -> None:
    refusal(keys, forge(CLAIMS, {"alg": "HS384", "kid": "k1"}, digest="sha384"))
    signed = forge(CLAIMS, {"alg": "none", "kid": "k1"}).rpartition(".")[0]
    refusal(keys, f"{signed}.")


@pytest.mark.parametrize(
    "change",
    [
        {"sub": None},
        {"sub": ""},
        {"sub": "a b"},
        {"sub": "kol\n"},
        {"sub": "x" * 129},
        {"sub": 1},
        {"typ": 1},
        {"typ": "Kol"},
        {"typ": ""},
        {"exp": None},
        {"exp": "9999999999"},
        {"exp": NOW + 60.5},
        {"exp": True},
        {"exp": 2**60},
        {"iat": -1},
        {"iat": None},
        {"nbf": "x"},
        {"jti": 1},
        {"jti": "x" * 129},
        {"room": "a b"},
        {"room": 1},
    ],
)
def test_a_wrong_claim_is_refused_although_the_signature_is_right(keys: TokenKeys, change: dict[str, object]) -> None:
    assert refusal(keys, forge(CLAIMS | change)) == "the token's claims are missing or of a wrong type"


@pytest.mark.parametrize("missing", ["sub", "typ", "iat", "exp", "jti"])
def test_a_missing_claim_is_refused(keys: TokenKeys, missing: str) -> None:
    refusal(keys, forge({key: value for key, value in CLAIMS.items() if key != missing}))


@pytest.mark.parametrize(
    "token",
    ["", ".", "..", "...", "a.b.c", "a.b.c.d", b"\xff.\xff.\xff", "ä.ö.ü", "\ud800.a.b", "\0", " " * 10, "=.=.="],
)
def test_what_is_no_token_at_all_is_refused(keys: TokenKeys, token: str | bytes) -> None:
    refusal(keys, token)


@pytest.mark.parametrize("claims", [[], "x", 1, None])
def test_claims_that_are_no_object_are_refused(keys: TokenKeys, claims: object) -> None:
    refusal(keys, forge(claims))


def test_a_very_long_token_is_refused_before_any_work(keys: TokenKeys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastpresence.tokens.deserialize_compact", lambda *_a, **_k: pytest.fail("was parsed"))
    assert refusal(keys, "a" * (MAX_TOKEN_LENGTH + 1)) == "the token is too long"


def test_a_refusal_repeats_nothing_of_the_token(keys: TokenKeys) -> None:
    assert "evil" not in refusal(keys, forge(CLAIMS | {"sub": "<evil>"}))
    assert "evil" not in refusal(keys, forge(CLAIMS, {"alg": "evil", "kid": "evil"}))


@pytest.mark.parametrize(
    ("user_id", "user_type", "room"), [("a b", "kol", None), ("u", "Kol", None), ("u", "kol", "a/b"), ("", "kol", None)]
)
def test_what_would_not_verify_is_not_issued(keys: TokenKeys, user_id: str, user_type: str, room: str | None) -> None:
    with pytest.raises(TokenError):
        keys.issue(user_id, user_type, room=room, expire_time=60, now=NOW)


def test_a_ring_without_keys_is_a_mistake_of_the_caller() -> None:
    with pytest.raises(ValueError, match="needs a key"):
        TokenKeys([])


def test_a_token_that_is_issued_in_the_second_of_a_revocation_is_good_and_those_before_are_not() -> None:
    revocations = Revocations()
    keys = TokenKeys([TokenKey("k", "a-secret-of-thirty-two-characters")], revocations)
    old, _ = keys.issue("user_1", "user", room=None, expire_time=60, now=1000)
    revocations.add("user_1", 1000, 1000)
    new, _ = keys.issue("user_1", "user", room=None, expire_time=60, now=1000)
    with pytest.raises(TokenError, match="revoked"):
        keys.verify(old, now=1000)
    assert keys.verify(new, now=1000).issued_at == 1001


# Rights.


def rights(**claims: Any) -> Rights | None:
    return Rights.of(Claims("me", "user", claims.pop("room", None), NOW, NOW + 60, "x", **claims))


def allows(found: Rights | None, user_ids: list[str], rooms: list[str]) -> bool:
    if found is None:
        return True
    try:
        found.check(user_ids, rooms)
    except Forbidden:
        return False
    return True


def test_watch_and_rooms_are_issued_and_verified_and_anything_is_what_they_are_without() -> None:
    keys = TokenKeys([NEW])
    token, _ = keys.issue("u", "user", room=None, expire_time=60, now=NOW, watch=("kol_1", "kol_2"), rooms=())
    claims = keys.verify(token, now=NOW)
    assert (claims.watch, claims.rooms) == (("kol_1", "kol_2"), ())
    claims = keys.verify(forge(CLAIMS), now=NOW)
    assert (claims.watch, claims.rooms) == ("*", "*")
    token, _ = keys.issue("u", "user", room=None, expire_time=60, now=NOW)
    assert not {"watch", "rooms"} & set(json.loads(base64.urlsafe_b64decode(token.split(".")[1] + "==")))


@pytest.mark.parametrize("claim", ["watch", "rooms"])
@pytest.mark.parametrize("value", ["", "kol_1", "**", None, 5, {}, [5], [""], ["a b"], ["*"], ["x" * 129], [["a"]]])
def test_a_claim_that_is_neither_a_list_of_names_nor_a_star_is_refused(
    keys: TokenKeys, claim: str, value: object
) -> None:
    assert "claims" in refusal(keys, forge({**CLAIMS, claim: value}))


def test_a_token_without_limits_has_no_rights_to_check() -> None:
    assert rights() is None
    assert rights(watch="*", rooms="*", room="r") is None


def test_rights_allow_what_is_named_and_oneself_and_the_token_s_room_and_nothing_else() -> None:
    narrow = rights(watch=("kol_1",), rooms=("r",), room="own")
    assert allows(narrow, ["kol_1", "me"], ["r", "own"])
    assert allows(narrow, [], [])
    assert not allows(narrow, ["kol_2"], [])
    assert not allows(narrow, ["kol_1", "kol_2"], ["r"])
    assert not allows(narrow, ["kol_1"], ["own", "s"])
    assert not allows(narrow, ["*"], [])


def test_each_claim_limits_its_own_and_an_empty_list_allows_nobody_else() -> None:
    assert allows(rights(watch=()), ["me"], ["any"])
    assert not allows(rights(watch=()), ["you"], [])
    assert allows(rights(rooms=()), ["anybody"], [])
    assert not allows(rights(rooms=()), ["anybody"], ["any"])


def test_names_that_are_too_many_for_one_token_are_not_issued(keys: TokenKeys) -> None:
    with pytest.raises(TokenError, match="4096"):
        keys.issue("u", "user", room=None, expire_time=60, now=NOW, rooms=tuple(f"room_{n:04}" for n in range(400)))
