"""The application's own login tokens at the token endpoint: who gets a presence token with one, and who does not."""

import asyncio
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from joserfc import jwt
from joserfc.jwk import ECKey, Key, OctKey, RSAKey

from tests.support.clients import Clients, RawClient
from tests.support.server import API_KEY, Server, shared

PATH = "/api/online-status/rts-token"
SECRET = "login-secret-of-the-application-0123456789"
LOGIN = OctKey.import_key(SECRET)
RSA, EC = RSAKey.generate_key(2048), ECKey.generate_key("P-256")
FILE_RSA = RSAKey.generate_key(2048, {"kid": "r1"})
FILE_EC = ECKey.generate_key("P-256", {"kid": "e1"})
FILE_OCT = OctKey.generate_key(256, {"kid": "h1"})

KINDS: dict[str, tuple[dict[str, str], Key]] = {
    "a secret": ({"alg": "HS256"}, LOGIN),
    "an RSA key": ({"alg": "RS256"}, RSA),
    "an EC key": ({"alg": "ES256"}, EC),
    "an RSA key of the file": ({"alg": "RS256", "kid": "r1"}, FILE_RSA),
    "an EC key of the file": ({"alg": "ES256", "kid": "e1"}, FILE_EC),
    "a secret of the file": ({"alg": "HS256", "kid": "h1"}, FILE_OCT),
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    file: Path = tmp_path_factory.mktemp("login") / "keys.json"
    public = [key.as_dict(private=key is FILE_OCT) for key in (FILE_RSA, FILE_EC, FILE_OCT)]
    file.write_text(json.dumps({"keys": public}))
    pems = [key.as_pem(private=False).decode() for key in (RSA, EC)]
    yield from shared({"auth.login_keys": ",".join([SECRET, *pems]), "auth.login_jwks_file": file})


def login(kind: str = "a secret", **claims: object) -> str:
    """A login token of kol_1, good for a minute; a claim of None is left out."""
    header, key = KINDS[kind]
    said = {"sub": "kol_1", "exp": int(time.time()) + 60, **claims}
    return jwt.encode(dict(header), {name: value for name, value in said.items() if value is not None}, key)


def ask(server: Server, token: str | None, **asked: object) -> tuple[int, Any]:
    status, answer, _ = server.http("POST", PATH, {"user_id": "kol_1", **asked}, key=token)
    return status, answer


def refused(server: Server, token: str | None, status: int, **asked: object) -> str:
    got, answer = ask(server, token, **asked)
    assert got == status, answer
    assert answer["error"]["code"] == {401: "unauthorized", 403: "forbidden"}.get(status, "bad_field")
    assert "signature" not in answer
    return str(answer["error"]["message"])


@pytest.mark.parametrize("kind", KINDS)
def test_a_login_token_of_each_kind_gets_a_presence_token_that_connects(server: Server, kind: str) -> None:
    status, answer = ask(server, login(kind, user_type="kol", rooms=["lobby"]), room_id="lobby", expire_time=120)
    assert status == 200, answer
    assert (answer["user_id"], answer["user_type"], answer["room_id"]) == ("kol_1", "kol", "lobby")
    assert 118 <= answer["expires_at"] - time.time() <= 121

    async def connects() -> None:
        async with Clients(server) as clients:
            host = await clients.connect("kol_1", "kol", token=answer["signature"])
            welcome = host.came("welcome")[0]
            assert (welcome["user_id"], welcome["user_type"]) == ("kol_1", "kol")

    asyncio.run(connects())


def test_the_type_and_the_rooms_are_what_the_application_says_and_never_what_the_request_asks(server: Server) -> None:
    assert ask(server, login())[1]["user_type"] == "user"
    assert ask(server, login(user_type="kol"))[1]["user_type"] == "kol"
    assert ask(server, login(user_type="kol"), user_type="kol")[0] == 200
    assert refused(server, login(), 403, user_type="kol").startswith("user_type:")
    assert refused(server, login(user_type="kol"), 403, user_type="user").startswith("user_type:")
    assert refused(server, login(user_type="boss"), 403).startswith("user_type:")
    assert refused(server, login(user_type="boss"), 403, user_type="boss").startswith("user_type:")
    assert ask(server, login(rooms="*"), room_id="anywhere")[0] == 200
    assert ask(server, login(rooms=["a", "b"]), room_id="b")[0] == 200
    assert refused(server, login(rooms=["a", "b"]), 403, room_id="c").startswith("room_id:")
    assert refused(server, login(rooms=[]), 403, room_id="a").startswith("room_id:")
    assert refused(server, login(), 403, room_id="a").startswith("room_id:")
    assert ask(server, login(rooms=["a"]))[1]["room_id"] is None


def test_another_users_login_token_is_refused_by_the_fields_name(server: Server) -> None:
    assert refused(server, login(sub="kol_2"), 403).startswith("user_id:")
    assert refused(server, login(sub="KOL_1"), 403).startswith("user_id:")
    assert refused(server, login(sub="not a user id"), 403).startswith("user_id:")


def test_what_is_no_login_token_of_this_application_is_refused(server: Server) -> None:
    now = int(time.time())
    stranger = OctKey.generate_key(256)
    forged = {
        "the login token's signature is wrong": jwt.encode(
            {"alg": "HS256"}, {"sub": "kol_1", "exp": now + 60}, stranger
        ),
        "the login token has expired": login(exp=now - 1),
        "the login token is not valid yet": login(nbf=now + 3600, exp=now + 7200),
        "the login token's claims are missing or of a wrong type": login(exp=None),
        "the login token is for an audience, and auth.login_audience is not set": login(aud="another"),
        "neither an API key nor a login token": API_KEY + "x",
        "the login token is too long": login(pad="x" * 9000),
        "the login token's algorithm is not its key's": jwt.encode(
            {"alg": "RS256", "kid": "h1"}, {"sub": "kol_1", "exp": now + 60}, RSA
        ),
    }
    for reason, token in forged.items():
        assert refused(server, token, 401) == reason
    assert "login token" in refused(server, None, 401)


def test_a_login_token_opens_the_token_endpoint_and_nothing_else(server: Server) -> None:
    token = login(user_type="kol", rooms="*")
    assert server.http("GET", "/api/online-status/kol_1", key=token)[0] == 401
    assert server.http("POST", "/api/online-status/query", {"user_ids": ["kol_1"]}, key=token)[0] == 401

    async def connects() -> None:
        async with RawClient.open(server) as raw:
            raw.send(RawClient.upgrade_request(token))
            assert (await raw.response())[0] == 401

    asyncio.run(connects())
    signature = ask(server, token)[1]["signature"]
    assert server.http("GET", "/api/online-status/kol_1", key=signature)[0] == 200
    refused(server, signature, 401)


def test_the_body_is_held_to_the_same_as_with_an_api_key_and_lives_no_longer_than_a_day(server: Server) -> None:
    assert refused(server, login(), 422, expire_time=86_401).startswith("expire_time:")
    assert refused(server, login(), 422, user_type=None).startswith("user_type:")
    assert refused(server, login(), 422, user_id="not a user id").startswith("user_id:")
    day = ask(server, login(), expire_time=86_400)[1]
    assert 86_395 <= day["expires_at"] - time.time() <= 86_401


def test_an_api_key_still_says_what_it_likes(server: Server) -> None:
    status, answer = ask(server, API_KEY, user_type="kol", room_id="anywhere")
    assert (status, answer["user_type"], answer["room_id"]) == (200, "kol", "anywhere")
    assert refused(server, API_KEY, 422, user_type="boss").startswith("user_type:")


def test_no_login_token_is_ever_in_the_log(server: Server) -> None:
    token = login(exp=1)
    ask(server, token)
    log = json.dumps(server.events)
    assert token not in log
    assert token.split(".")[2] not in log
    assert SECRET not in log
