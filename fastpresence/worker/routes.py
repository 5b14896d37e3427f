"""The table of HTTP requests of the public port (the protocol's section 6), and who may make them.

A handler is given a complete request and returns what to answer as JSON; everything else is an `HttpError`. What goes
beyond the presence core (messages, closing connections) is the worker's: `Actions`.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import Annotated, Any, Final, Literal, Protocol, TypeVar
from urllib.parse import unquote, urlsplit

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from fastpresence.codec import field_problem
from fastpresence.credentials import ApiKeys
from fastpresence.errors import Forbidden, NotOnline, RequestError, TokenError, TooMany, Unavailable, UserOffline
from fastpresence.http import HttpError, Request
from fastpresence.messages import (
    USER_ID_PATTERN,
    CallCancel,
    CallEnd,
    CallReject,
    DeviceId,
    RoomId,
    Status,
    Text,
    UserId,
    UserIds,
)
from fastpresence.presence.service import OnlineStatusService
from fastpresence.presence.sessions import Now
from fastpresence.settings import Settings
from fastpresence.tokens import Claims, LoginClaims, LoginKeys, Rights, TokenKeys
from fastpresence.worker.limits import Pace
from fastpresence.worker.poll import changes

__all__ = ["BASE", "WEBSOCKET", "Actions", "Routes"]

_T = TypeVar("_T")

WEBSOCKET: Final = "/ws"
BASE: Final = "/api/online-status"
#: Users whose polls are counted: the latest.
POLLERS: Final = 16_384
#: How a refused request of the core is told over HTTP.
STATUS_OF: Final[dict[type[RequestError], int]] = {
    Forbidden: 403,
    NotOnline: 409,
    UserOffline: 409,
    TooMany: 422,
    Unavailable: 503,
}


class Actions(Protocol):
    """What the worker does for the application's server."""

    def deliver(self, from_user_id: str, to_user_id: str, text: str, now: Now) -> int:
        """Hands a message to every session of a user; how many took it. Raises RequestError."""

    def kick(self, user_id: str, now: Now) -> int:
        """Ends the user's sessions and closes his connections; how many those were."""

    def revoke(self, user_id: str, now: Now) -> int:
        """The tokens that the user has stop working, here and everywhere: those issued up to this Unix second."""


_Names = Literal["*"] | Annotated[tuple[UserId, ...], Meta(max_length=1000)] | UnsetType


class TokenRequest(Struct, frozen=True):
    """Body of `rts-token`."""

    user_id: UserId
    room_id: RoomId | None = None
    user_type: str | UnsetType = UNSET
    expire_time: Annotated[int, Meta(ge=1, le=86_400)] = 3600  #: seconds
    #: Whom the user may ask for by name and which rooms he may join; for an API key only, a login token says it itself.
    watch: _Names = UNSET
    rooms: _Names = UNSET


class Query(Struct, frozen=True):
    """Body of `query`."""

    user_ids: UserIds


class Poll(Struct, frozen=True):
    """Body of `poll`."""

    cursor: str | None = None
    status: Status | None = None  #: left out: as it is
    rooms: list[RoomId] | None = None  #: all that the user is in; left out: as they are, and not told of
    user_ids: list[UserId] = []
    device: DeviceId | None = None  #: so that a poll and a socket of one device know each other
    #: That are over for this user, who has no socket to say it with.
    calls: Annotated[list[CallCancel | CallReject | CallEnd], Meta(max_length=100)] = []


class ForcedStatus(Struct, frozen=True):
    """Body of `users/{user_id}/status`."""

    status: Status


class ServerMessage(Struct, frozen=True):
    """Body of `users/{user_id}/messages`."""

    message: Text
    from_user_id: UserId


class Revocation(Struct, frozen=True):
    """Body of `tokens/revoke`."""

    user_id: UserId


#: A path's parts behind BASE; None stands for a name.
_Path = tuple[str | None, ...]
#: Who asks, by the head alone (raises HttpError); then what to answer, given that and the names in the path.
_Route = tuple[Callable[[Request, Now], Any], Callable[..., Any]]


class Routes:
    """What the public port answers besides the WebSocket. One for a worker."""

    def __init__(
        self,
        settings: Settings,
        service: OnlineStatusService,
        keys: TokenKeys,
        api_keys: ApiKeys,
        login_keys: LoginKeys | None = None,
        *,
        actions: Actions,
    ) -> None:
        self._service = service
        self._actions = actions
        self._farewells: dict[type[Struct], Callable[..., None]] = {
            CallCancel: service.handle_call_cancel,
            CallReject: service.handle_call_reject,
            CallEnd: service.handle_call_end,
        }
        self._polls = Pace(settings.limits.rate, settings.limits.burst, POLLERS)
        self.renew(settings, keys, api_keys, login_keys)
        self._table: dict[_Path, dict[str, _Route]] = {
            ("rts-token",): {"POST": (self._login, self._rts_token)},
            ("query",): {"POST": (self._authorize, self._query)},
            ("poll",): {"POST": (self._pollster, self._poll)},
            ("tokens", "revoke"): {"POST": (self._api_only, self._revoke)},
            ("users", None, "status"): {"POST": (self._api_only, self._force_status)},
            ("users", None, "messages"): {"POST": (self._api_only, self._message)},
            ("users", None, "sessions"): {"DELETE": (self._api_only, self._kick)},
            ("rooms", None): {"GET": (self._authorize, self._room)},
            (None,): {"GET": (self._authorize, self._entry)},
        }

    def renew(self, settings: Settings, keys: TokenKeys, api_keys: ApiKeys, login_keys: LoginKeys | None) -> None:
        """From now on, these."""
        self._settings = settings
        self._keys = keys
        self._api_keys = api_keys
        self._login_keys = login_keys

    def handle(self, request: Request, now: Now) -> Any:
        """The answer's JSON to a request that is no upgrade. Raises HttpError."""
        (guard, handler), names = self._find(request)
        who = guard(request, now)
        try:
            return handler(request, now, who, *names)
        except RequestError as error:
            raise HttpError(STATUS_OF.get(type(error), 422), error.code, str(error)) from None

    def admit(self, request: Request, now: Now) -> None:
        """Whether the body is worth sending, by the request's head. Raises HttpError."""
        if request.method == "OPTIONS":
            self.methods(request)
        else:
            (guard, _), _ = self._find(request)
            guard(request, now)

    def methods(self, request: Request) -> tuple[str, ...]:
        """What the request's path takes. Raises HttpError."""
        methods = [method for routes, _ in self._matches(request) for method in routes]
        if not methods:
            raise HttpError(404, "not_found", "no such path")
        if "GET" in methods:
            methods.append("HEAD")
        return tuple(methods)

    def _find(self, request: Request) -> tuple[_Route, list[str]]:
        """Who answers a request, and the names in its path, unquoted. Raises HttpError."""
        method = "GET" if request.method == "HEAD" else request.method
        for routes, names in self._matches(request):
            if method in routes:
                return routes[method], names
        allowed = ", ".join(self.methods(request))
        raise HttpError(405, "bad_request", f"{allowed} is what this path takes", (("Allow", allowed),))

    def _matches(self, request: Request) -> Iterator[tuple[dict[str, _Route], list[str]]]:
        """What a path takes by method, and the names in it: those with fewer names first. Raises HttpError."""
        if request.path == WEBSOCKET:
            raise HttpError(426, "upgrade_required", "this path speaks WebSocket", (("Upgrade", "websocket"),))
        if request.path.startswith(f"{BASE}/"):
            parts = request.path.removeprefix(f"{BASE}/").split("/")
            for path, routes in self._table.items():
                if len(path) == len(parts) and all(
                    part if mine is None else part == mine for mine, part in zip(path, parts, strict=True)
                ):
                    yield routes, [unquote(part) for mine, part in zip(path, parts, strict=True) if mine is None]

    # Who may: each of these is asked before the body is looked at.

    def _authorize(self, request: Request, now: Now) -> Claims | None:
        """What the request's token says; None for an API key. Raises HttpError 401."""
        credential = request.bearer()
        if credential is None:
            raise HttpError(401, "unauthorized", "Authorization: Bearer and a token or an API key is required")
        if self._api_keys.contains(credential):
            return None
        try:
            return self._keys.verify(credential, now=now.wall_us // 1_000_000)
        except TokenError as error:
            raise HttpError(401, "unauthorized", str(error)) from None

    def _api_only(self, request: Request, now: Now) -> None:
        """The application's server. Raises HttpError 401."""
        credential = request.bearer()
        if credential is None or not self._api_keys.contains(credential):
            raise HttpError(401, "unauthorized", "Authorization: Bearer and an API key is required")

    def _pollster(self, request: Request, now: Now) -> Claims:
        """A user with a token of his own. Raises HttpError 401, 403."""
        claims = self._authorize(request, now)
        if claims is None:
            raise HttpError(401, "unauthorized", "a user polls with a token of his own")
        if claims.user_type not in self._settings.presence.user_types:
            raise HttpError(403, "forbidden", "the token's user type is not one of presence.user_types")
        return claims

    def _login(self, request: Request, now: Now) -> LoginClaims | None:
        """What the application says of its user; None for the application itself. Raises HttpError 401."""
        credential = request.bearer()
        if credential is not None:
            if self._api_keys.contains(credential):
                return None
            if self._login_keys:
                try:
                    return self._login_keys.verify(credential, now=now.wall_us // 1_000_000)
                except TokenError as error:
                    raise HttpError(401, "unauthorized", str(error)) from None
        needed = "an API key or a login token" if self._login_keys else "an API key"
        raise HttpError(401, "unauthorized", f"Authorization: Bearer and {needed} is required")

    # What is asked.

    def _rts_token(self, request: Request, now: Now, login: LoginClaims | None) -> Any:
        asked = _body(request, TokenRequest)
        user_types = self._settings.presence.user_types
        if login is not None:
            user_type = _allowed(asked, login)
            if user_type not in user_types:
                raise HttpError(403, "forbidden", "user_type: the login token's is not one of presence.user_types")
            watch, rooms = _names_of(login.watch), _names_of(login.rooms)
        else:
            user_type = "user" if asked.user_type is UNSET else asked.user_type
            if user_type not in user_types:
                raise HttpError(422, "bad_field", "user_type: not one of presence.user_types")
            watch = "*" if asked.watch is UNSET else asked.watch
            rooms = "*" if asked.rooms is UNSET else asked.rooms
        try:
            token, expires_at = self._keys.issue(
                asked.user_id,
                user_type,
                room=asked.room_id,
                expire_time=asked.expire_time,
                now=now.wall_us // 1_000_000,
                watch=watch,
                rooms=rooms,
            )
        except TokenError as error:  # names that are too many for one token
            raise HttpError(422, "bad_field", f"watch, rooms: {error}") from None
        return {
            "user_id": asked.user_id,
            "user_type": user_type,
            "room_id": asked.room_id,
            "signature": token,
            "expires_at": expires_at,
            "ws_url": self._ws_url(request),
        }

    def _ws_url(self, request: Request) -> str:
        public = self._settings.server.public_url
        if public is None:
            return f"{'wss' if self._settings.server.tls_cert else 'ws'}://{request.header(b'host')}{WEBSOCKET}"
        parts = urlsplit(public)
        scheme = {"http": "ws", "https": "wss"}.get(parts.scheme, parts.scheme)
        path = parts.path.rstrip("/") or WEBSOCKET
        return f"{scheme}://{parts.netloc}{path}"

    def _query(self, request: Request, now: Now, claims: Claims | None) -> Any:
        asked = _body(request, Query)
        _check_rights(claims, user_ids=asked.user_ids)
        return {"user_status": [self._service.get_user_status(user_id) for user_id in asked.user_ids]}

    def _entry(self, request: Request, now: Now, claims: Claims | None, user_id: str) -> Any:
        _check_rights(claims, user_ids=[user_id])
        return self._service.get_user_status(_name("user_id", user_id))

    def _room(self, request: Request, now: Now, claims: Claims | None, name: str) -> Any:
        _check_rights(claims, rooms=[name])
        room = self._service.audience.rooms.get(_name("room_id", name))
        if room is None:
            return {"room": name, "count": 0, "user_status": []}
        if room.crowded:
            return {"room": name, "count": room.shown}
        entries = [member.record.entry() for member in room.members.values() if not member.left]
        return {"room": name, "count": len(entries), "user_status": entries}

    def _poll(self, request: Request, now: Now, claims: Claims) -> Any:
        if self._polls.is_over(claims.user_id, now.ms):
            raise HttpError(429, "rate_limited", "too many polls of this user", (("Retry-After", "1"),))
        asked = _body(request, Poll)
        self._polls.weigh(claims.user_id, now.ms, len(asked.user_ids))
        limits = self._settings.limits
        if len(asked.user_ids) > limits.watches:
            raise HttpError(422, "bad_field", f"user_ids: at most {limits.watches}")
        if len(asked.rooms or ()) > limits.rooms:
            raise HttpError(422, "bad_field", f"rooms: at most {limits.rooms}")
        rights = Rights.of(claims)
        if rights is not None:
            rights.check(asked.user_ids, asked.rooms or ())
        own = () if claims.room is None else (claims.room,)
        rooms = tuple(dict.fromkeys((*own, *(asked.rooms or ()))))
        service = self._service
        session = service.handle_poll(
            claims.user_id,
            claims.user_type,
            status=asked.status,
            device=asked.device,
            rooms=None if asked.rooms is None else rooms,
            now=now,
        )
        for farewell in asked.calls:
            with suppress(RequestError):  # it is over already
                self._farewells[type(farewell)](session, farewell.call_id, now=now)
        if session.connection is None:  # else its rooms are that connection's to say
            for room in own:
                service.join_room(session, None, room, now=now)
            if rights is not None and rights.rooms is not None:
                for room in set(session.rooms or ()).difference(rights.rooms):  # which it had by another token
                    service.leave_room(session, None, room, now=now)
        return changes(service, asked.cursor, rooms, asked.user_ids)

    # What only the application's server may do.

    def _force_status(self, request: Request, now: Now, who: None, user_id: str) -> Any:
        asked = _body(request, ForcedStatus)
        self._service.force_status(_name("user_id", user_id), asked.status, now=now)
        return self._service.get_user_status(user_id)

    def _message(self, request: Request, now: Now, who: None, user_id: str) -> Any:
        asked = _body(request, ServerMessage)
        to_user_id = _name("user_id", user_id)
        return {"delivered": self._actions.deliver(asked.from_user_id, to_user_id, asked.message, now)}

    def _kick(self, request: Request, now: Now, who: None, user_id: str) -> Any:
        return {"user_id": user_id, "disconnected": self._actions.kick(_name("user_id", user_id), now)}

    def _revoke(self, request: Request, now: Now, who: None) -> Any:
        asked = _body(request, Revocation)
        return {"user_id": asked.user_id, "revoked_until": self._actions.revoke(asked.user_id, now)}


def _check_rights(claims: Claims | None, *, user_ids: Iterable[str] = (), rooms: Iterable[str] = ()) -> None:
    """Whoever asks may see these: the application anybody, a user whom his token names. Raises Forbidden."""
    rights = None if claims is None else Rights.of(claims)
    if rights is not None:
        rights.check(user_ids, rooms)


def _name(field: str, text: str) -> str:
    """A user's or a room's name out of a path. Raises HttpError 422."""
    try:
        return msgspec.convert(text, UserId)
    except msgspec.ValidationError:
        raise HttpError(422, "bad_field", f"{field}: 1 to 128 characters of A-Z a-z 0-9 _ . : @ -") from None


def _names_of(claim: tuple[str, ...] | Literal["*"]) -> tuple[str, ...] | Literal["*"]:
    """A login token's claim without the names that are none here."""
    return "*" if claim == "*" else tuple(name for name in claim if re.fullmatch(USER_ID_PATTERN, name))


def _allowed(asked: TokenRequest, login: LoginClaims) -> str:
    """The user type that a login token gives who asks with it. Raises HttpError 403 for what it does not allow."""
    if asked.user_id != login.user_id:
        raise HttpError(403, "forbidden", "user_id: the login token is another user's")
    if asked.user_type is not UNSET and asked.user_type != login.user_type:
        raise HttpError(403, "forbidden", "user_type: the login token says another")
    if asked.watch is not UNSET or asked.rooms is not UNSET:
        raise HttpError(403, "forbidden", "watch, rooms: the login token's own claims say them")
    if asked.room_id is not None and not login.may_join(asked.room_id):
        raise HttpError(403, "forbidden", "room_id: not among the login token's rooms")
    return login.user_type


def _body(request: Request, kind: type[_T]) -> _T:
    """The request's JSON, checked. Raises HttpError 400 for no JSON, 422 with the field's name for a wrong one."""
    try:
        request.body.decode()  # JSON is UTF-8 (RFC 8259, section 8.1), also where msgspec does not look
        try:
            return msgspec.json.decode(request.body, type=kind)
        except msgspec.ValidationError as error:
            msgspec.json.decode(request.body)  # what stands behind the wrong field may be no JSON
            raise HttpError(422, "bad_field", field_problem(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise HttpError(400, "bad_request", "the body is not JSON") from None
