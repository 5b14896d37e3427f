"""Errors, sorted by whose fault it is: the other end's, the operator's, or a client library user's.

Each error that ends a connection knows the close code that tells the other end, and whether a client may retry.
May import nothing of the package.
"""

__all__ = [
    "BadField",
    "BadFrame",
    "ConnectionFailed",
    "FastPresenceError",
    "Forbidden",
    "NotOnline",
    "PeerError",
    "RequestError",
    "RequestRefused",
    "SettingsError",
    "StartError",
    "TokenError",
    "TooMany",
    "Unavailable",
    "UnknownCall",
    "UnknownType",
    "UserBusy",
    "UserOffline",
]


class FastPresenceError(Exception):
    """Root of everything that this package raises on purpose."""


class PeerError(FastPresenceError):
    """The peer broke the protocol; closing its connection is the whole remedy."""

    close_code = 1002
    client_may_retry = False


class RequestError(FastPresenceError):
    """One request was refused and changed nothing; the connection stays open. `code` goes on the wire."""

    code = "bad_frame"


class BadFrame(RequestError):
    """Not an object of the negotiated format."""


class BadField(RequestError):
    """A field is missing, of a wrong type, or out of bounds; the message names it."""

    code = "bad_field"


class UnknownType(RequestError):
    """The frame's `type` names nothing that a client may send."""

    code = "unknown_type"


class Forbidden(RequestError):
    """The frame speaks for somebody else, or asks for what its token does not allow."""

    code = "forbidden"


class NotOnline(RequestError):
    """The request needs `user_online` first."""

    code = "not_online"


class UserOffline(RequestError):
    """The addressed user has no session, or appears offline."""

    code = "user_offline"


class UserBusy(RequestError):
    """The called user's status is busy."""

    code = "user_busy"


class UnknownCall(RequestError):
    """There is no such call, it is another's, or it is past what was asked of it."""

    code = "unknown_call"


class TooMany(RequestError):
    """Over a limit of watches, rooms, sessions or calls."""

    code = "too_many"


class Unavailable(RequestError):
    """None of the addressed user's sessions can be reached just now."""

    code = "unavailable"


class TokenError(FastPresenceError):
    """The token is missing, malformed, expired, not yet valid, or signed by a key that is not ours."""

    client_may_retry = True


class SettingsError(FastPresenceError):
    """The settings are unusable. `problems` lists every fault, each with its name and place."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


class StartError(FastPresenceError):
    """The server can't start; the message is one line that says what to do."""


class RequestRefused(FastPresenceError):
    """Client side: the server answered a request with an `error` frame. `code` is the protocol's error code."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message


class ConnectionFailed(FastPresenceError):
    """Client side: the connection broke, or the server forbids it, before the request was answered."""
