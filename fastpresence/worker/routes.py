"""The table of HTTP requests of the public port (the protocol's section 6), and who may make them.

A handler is given a complete request and returns what to answer as JSON; everything else is an `HttpError`.
"""

from collections.abc import Callable
from typing import Annotated, Any, Final, TypeVar
from urllib.parse import urlsplit

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from fastpresence.codec import field_problem
from fastpresence.errors import TokenError
from fastpresence.http import HttpError, Request
from fastpresence.messages import RoomId, UserId, UserIds
from fastpresence.presence.service import OnlineStatusService
from fastpresence.settings import Settings
from fastpresence.tokens import ApiKeys, LoginClaims, LoginKeys, TokenKeys

__all__ = ["BASE", "WEBSOCKET", "Routes"]

_T = TypeVar("_T")

WEBSOCKET: Final = "/ws"
BASE: Final = "/api/online-status"


class TokenRequest(Struct, frozen=True):
    """Body of `rts-token`."""

    user_id: UserId
    room_id: RoomId | None = None
    user_type: str | UnsetType = UNSET
    expire_time: Annotated[int, Meta(ge=1, le=86_400)] = 3600  #: seconds


class Query(Struct, frozen=True):
    """Body of `query`."""

    user_ids: UserIds


class Routes:
    """What the public port answers besides the WebSocket. One for a worker."""

    def __init__(
        self,
        settings: Settings,
        service: OnlineStatusService,
        keys: TokenKeys,
        api_keys: ApiKeys,
        login_keys: LoginKeys | None = None,
    ) -> None:
        self._service = service
        self.renew(settings, keys, api_keys, login_keys)
        self._table: dict[tuple[str, str], Callable[[Request, int], Any]] = {
            ("POST", "rts-token"): self._rts_token,
            ("POST", "query"): self._query,
        }
        self._paths = {path for _, path in self._table}

    def renew(self, settings: Settings, keys: TokenKeys, api_keys: ApiKeys, login_keys: LoginKeys | None) -> None:
        """From now on, these."""
        self._settings = settings
        self._keys = keys
        self._api_keys = api_keys
        self._login_keys = login_keys

    def handle(self, request: Request, now: int) -> Any:
        """The answer's JSON to a request that is no upgrade. `now`: Unix epoch, seconds. Raises HttpError."""
        if request.path == WEBSOCKET:
            raise HttpError(426, "upgrade_required", "this path speaks WebSocket", (("Upgrade", "websocket"),))
        base, _, rest = request.path.rpartition("/")
        if base != BASE or not rest:
            raise HttpError(404, "not_found", "no such path")
        handler = self._table.get((request.method, rest))
        if handler is not None:
            return handler(request, now)
        if rest in self._paths:
            raise HttpError(405, "bad_request", "POST is what this path takes", (("Allow", "POST"),))
        if request.method != "GET":
            raise HttpError(405, "bad_request", "GET is what this path takes", (("Allow", "GET"),))
        return self._entry(request, now)

    def _authorize(self, request: Request, now: int) -> None:
        """An API key or a token. Raises HttpError 401."""
        credential = request.bearer()
        if credential is None:
            raise HttpError(401, "unauthorized", "Authorization: Bearer and a token or an API key is required")
        if self._api_keys.contains(credential):
            return
        try:
            self._keys.verify(credential, now=now)
        except TokenError as error:
            raise HttpError(401, "unauthorized", str(error)) from None

    def _rts_token(self, request: Request, now: int) -> Any:
        login = self._login(request, now)
        asked = _body(request, TokenRequest)
        user_types = self._settings.presence.user_types
        if login is not None:
            user_type = _allowed(asked, login)
            if user_type not in user_types:
                raise HttpError(403, "forbidden", "user_type: the login token's is not one of presence.user_types")
        else:
            user_type = "user" if asked.user_type is UNSET else asked.user_type
            if user_type not in user_types:
                raise HttpError(422, "bad_field", "user_type: not one of presence.user_types")
        token, expires_at = self._keys.issue(
            asked.user_id, user_type, room=asked.room_id, expire_time=asked.expire_time, now=now
        )
        return {
            "user_id": asked.user_id,
            "user_type": user_type,
            "room_id": asked.room_id,
            "signature": token,
            "expires_at": expires_at,
            "ws_url": self._ws_url(request),
        }

    def _login(self, request: Request, now: int) -> LoginClaims | None:
        """What the application says of its user; None for the application itself. Raises HttpError 401."""
        credential = request.bearer()
        if credential is not None:
            if self._api_keys.contains(credential):
                return None
            if self._login_keys:
                try:
                    return self._login_keys.verify(credential, now=now)
                except TokenError as error:
                    raise HttpError(401, "unauthorized", str(error)) from None
        needed = "an API key or a login token" if self._login_keys else "an API key"
        raise HttpError(401, "unauthorized", f"Authorization: Bearer and {needed} is required")

    def _ws_url(self, request: Request) -> str:
        public = self._settings.server.public_url
        if public is None:
            return f"{'wss' if self._settings.server.tls_cert else 'ws'}://{request.header(b'host')}{WEBSOCKET}"
        parts = urlsplit(public)
        scheme = {"http": "ws", "https": "wss"}.get(parts.scheme, parts.scheme)
        path = parts.path.rstrip("/") or WEBSOCKET
        return f"{scheme}://{parts.netloc}{path}"

    def _query(self, request: Request, now: int) -> Any:
        self._authorize(request, now)
        asked = _body(request, Query)
        return {"user_status": [self._service.get_user_status(user_id) for user_id in asked.user_ids]}

    def _entry(self, request: Request, now: int) -> Any:
        self._authorize(request, now)
        try:
            user_id = msgspec.convert(request.segments()[-1], UserId)
        except msgspec.ValidationError:
            raise HttpError(422, "bad_field", "user_id: 1 to 128 characters of A-Z a-z 0-9 _ . : @ -") from None
        return self._service.get_user_status(user_id)


def _allowed(asked: TokenRequest, login: LoginClaims) -> str:
    """The user type that a login token gives who asks with it. Raises HttpError 403 for what it does not allow."""
    if asked.user_id != login.user_id:
        raise HttpError(403, "forbidden", "user_id: the login token is another user's")
    if asked.user_type is not UNSET and asked.user_type != login.user_type:
        raise HttpError(403, "forbidden", "user_type: the login token says another")
    if asked.room_id is not None and not login.may_join(asked.room_id):
        raise HttpError(403, "forbidden", "room_id: not among the login token's rooms")
    return login.user_type


def _body(request: Request, kind: type[_T]) -> _T:
    """The request's JSON, checked. Raises HttpError 400 for no JSON, 422 with the field's name for a wrong one."""
    try:
        try:
            return msgspec.json.decode(request.body, type=kind)
        except msgspec.ValidationError as error:
            msgspec.json.decode(request.body)  # what stands behind the wrong field may be no JSON
            raise HttpError(422, "bad_field", field_problem(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise HttpError(400, "bad_request", "the body is not JSON") from None
