"""Every setting, its default, its unit and its check, in one place.

    TOML file < credentials < environment < flags  --load-->  settings, sources  --check_start-->  a server may start

The later layer wins, but what an earlier one says is checked as well: a fault never hides behind an override. All
faults are found in one go and raised as one `SettingsError`. `Settings` and all it holds travel by MessagePack, from
the node to a worker. Durations are seconds and sizes are bytes, unless the name says otherwise. A secret never appears
in a message, in a `repr` or in `masked`. May import `errors`.
"""

import os
import re
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Final, Literal, get_type_hints

import msgspec
from msgspec import Meta, Struct

from fastpresence.errors import SettingsError, StartError

__all__ = [
    "AdminSettings",
    "AuthSettings",
    "DatabaseSettings",
    "LimitsSettings",
    "Loaded",
    "LogSettings",
    "PresenceSettings",
    "RedisSettings",
    "ServerSettings",
    "Settings",
    "TokenKey",
    "available_cores",
    "changed",
    "check",
    "check_start",
    "connection_limit",
    "database_url",
    "load",
    "login_jwks",
    "masked",
    "reloaded",
    "replaceable",
    "state_directory",
    "types",
]

DEFAULT_FILE: Final = "/etc/fastpresence/fastpresence.toml"
PREFIX: Final = "FASTPRESENCE_"
#: Variables with our prefix that are no settings: where the file is, and the client's own token.
NOT_SETTINGS: Final = frozenset({"FASTPRESENCE_CONFIG", "FASTPRESENCE_TOKEN"})
#: Settings that are, or may hold, a secret: also taken from `<NAME>_FILE` and from systemd credentials.
SECRETS: Final = frozenset(
    {"auth.token_keys", "auth.api_keys", "auth.login_keys", "admin.key", "redis.url", "database.url"}
)
#: Shorter secrets can be guessed; HS256 itself asks for more (RFC 7518 section 3.2), which `--dev` makes.
MIN_SECRET: Final = 16
#: Descriptors of a process that are no client's: listener, link, epoll sets, log, database, a spare to answer 503.
RESERVED_DESCRIPTORS: Final = 64
#: Bytes of a JWKS file; a provider's have some thousands.
MAX_JWKS: Final = 1_048_576
#: What a running worker can replace (`replaceable`). Everything else is as it was until the next start.
RELOADABLE: Final = frozenset(
    {
        "server.public_url",
        "server.allowed_origins",
        "server.tls_cert",
        "server.tls_key",
        "server.drain_time",
        "auth.token_keys",
        "auth.api_keys",
        "auth.login_keys",
        "auth.login_jwks_file",
        "auth.login_audience",
        "log.level",
    }
)

Port = Annotated[int, Meta(ge=0, le=65535)]
Seconds = Annotated[float, Meta(gt=0, le=86_400)]
Count = Annotated[int, Meta(ge=1, le=100_000_000)]
Secret = Annotated[str, Meta(min_length=MIN_SECRET, max_length=16_384)]
Name = Annotated[str, Meta(min_length=1, max_length=253)]
FilePath = Annotated[str, Meta(min_length=1, max_length=4096)]
#: Also the name of Redis keys (`{user_type}_status:{user_id}`) and of a metric's label.
UserType = Annotated[str, Meta(pattern=r"^[a-z][a-z0-9_]{0,31}\Z")]
#: `scheme://host`, `scheme://host:port`, or `scheme://host:*` for any port of that host.
Origin = Annotated[str, Meta(pattern=r"^https?://[a-z0-9.\[\]:_-]+(:\*)?\Z", max_length=300)]
PublicUrl = Annotated[str, Meta(pattern=r"^(wss?|https?)://[^\s/?#]+(/[^\s?#]*)?\Z", max_length=2048)]
RedisUrl = Annotated[str, Meta(pattern=r"^(redis|rediss|redis\+cluster|redis\+sentinel)://\S+\Z", max_length=2048)]
DatabaseUrl = Annotated[str, Meta(pattern=r"^(sqlite:///\S+|(postgresql|mysql)://\S+|none)\Z", max_length=2048)]


class _Section(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One table of the file. Its `repr` keeps the secrets back."""

    def __repr__(self) -> str:
        section = type(self).__name__.removesuffix("Settings").lower()
        shown = [f"{key}={masked(f'{section}.{key}', getattr(self, key))!r}" for key in self.__struct_fields__]
        return f"{type(self).__name__}({', '.join(shown)})"


class TokenKey(Struct, frozen=True):
    """A key that signs and checks tokens, written `kid:secret`."""

    kid: str  #: goes into the token's header, so that keys can be rotated
    secret: str

    def __repr__(self) -> str:
        return f"TokenKey(kid={self.kid!r})"


class ServerSettings(_Section, frozen=True):
    host: Name = "0.0.0.0"  # noqa: S104 - a public server listens everywhere; --dev does not
    port: Port = 8080  #: 0: any free one
    workers: Annotated[int, Meta(ge=1, le=1024)] | None = None  #: None: one for each core; `load` puts the number in
    public_url: PublicUrl | None = None  #: what clients are told to connect to; None: what the request's Host says
    allowed_origins: tuple[Origin, ...] = ()  #: empty: same host only
    tls_cert: FilePath | None = None
    tls_key: FilePath | None = None
    trusted_proxies: tuple[Name, ...] = ()  #: addresses or networks whose X-Forwarded-For counts
    drain_time: Annotated[float, Meta(ge=0, le=3600)] = 30


class AuthSettings(_Section, frozen=True):
    token_keys: tuple[TokenKey, ...] = ()  #: the first signs, all check
    api_keys: tuple[Secret, ...] = ()
    login_keys: tuple[Secret, ...] = ()  #: the application's own: secrets or PEM public keys
    login_jwks_file: FilePath | None = None
    login_audience: Name | None = None  #: must be among a login token's `aud`; None: a token with `aud` is not for us


class PresenceSettings(_Section, frozen=True):
    heartbeat_interval: Seconds = 30
    heartbeat_timeout: Seconds = 60
    disconnect_grace: Annotated[float, Meta(ge=0, le=86_400)] | None = None  #: None: what is left of the timeout
    user_types: Annotated[tuple[UserType, ...], Meta(min_length=1, max_length=32)] = ("kol", "user")
    public_types: Annotated[tuple[UserType, ...], Meta(max_length=32)] = ("kol",)
    room_roster_limit: Count = 1000  #: members; a larger room is told as a count
    flush_window_ms: Annotated[float, Meta(ge=1, le=1000)] = 10


class LimitsSettings(_Section, frozen=True):
    connections: Count | None = None  #: None: what the file limit allows (`connection_limit`)
    connections_per_address: Annotated[int, Meta(ge=0, le=100_000_000)] = 0  #: 0: no limit
    frame_size: Annotated[int, Meta(ge=1024, le=16_777_216)] = 65_536
    message_size: Annotated[int, Meta(ge=1024, le=16_777_216)] = 65_536  #: all fragments of a message together
    http_body_size: Annotated[int, Meta(ge=1024, le=16_777_216)] = 65_536
    connect_timeout: Seconds = 10  #: a handshake or an HTTP request must be complete by then
    watches: Count = 5000  #: for one connection
    rooms: Count = 50  #: for one connection
    sessions: Count = 100  #: of one user
    rate: Annotated[float, Meta(gt=0, le=1_000_000)] = 50  #: frames a second, for one connection
    burst: Count = 100  #: frames
    send_buffer: Annotated[int, Meta(ge=4608, le=67_108_864)] = 131_072  #: of the socket: what a slow reader may cost
    messages_waiting: Annotated[int, Meta(ge=1024, le=67_108_864)] = 65_536  #: bytes of messages for one connection
    lag_time: Seconds = 30  #: a reader that is behind for longer gets 4009


class RedisSettings(_Section, frozen=True):
    url: RedisUrl | None = None  #: None: one machine needs no Redis
    mirror_ttl: Annotated[int, Meta(ge=10, le=86_400)] = 300


class DatabaseSettings(_Section, frozen=True):
    url: DatabaseUrl | None = None  #: None: SQLite in the state directory (`database_url`); "none": no ledger


class AdminSettings(_Section, frozen=True):
    host: Name = "127.0.0.1"
    port: Port = 9090
    key: Secret | None = None
    enabled: bool = True
    timeline_size: Annotated[int, Meta(ge=100, le=1_000_000)] = 100_000  #: transitions that the node remembers


class LogSettings(_Section, frozen=True):
    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["text", "json"] | None = None  #: None: text on a terminal, json elsewhere


class Settings(Struct, frozen=True, kw_only=True):
    """All of operations.md. Without arguments: the defaults, which have no secrets."""

    server: ServerSettings = ServerSettings()
    auth: AuthSettings = AuthSettings()
    presence: PresenceSettings = PresenceSettings()
    limits: LimitsSettings = LimitsSettings()
    redis: RedisSettings = RedisSettings()
    database: DatabaseSettings = DatabaseSettings()
    admin: AdminSettings = AdminSettings()
    log: LogSettings = LogSettings()


class Loaded(Struct, frozen=True):
    settings: Settings
    sources: dict[str, str]  #: "server.port" -> "default", "--dev", or the place that set it


class _Given(Struct, frozen=True):
    """What one layer says for one setting."""

    key: str
    value: object
    place: str
    is_text: bool  #: from environment, flag or file of its own: numbers and lists are still to be read out of it


def load(flags: Mapping[str, object], env: Mapping[str, str], dev: bool = False) -> Loaded:
    """The settings in force. `flags`: "section.key" -> value, None when not given; "config" names the file.

    With `dev`, what is missing of keys is made for this run, and only loopback may connect. Raises SettingsError.
    """
    problems: list[str] = []
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    bad: set[str] = set()
    config = flags.get("config") or env.get("FASTPRESENCE_CONFIG")
    for given in (
        *_from_file(str(config) if config else None, problems),
        *_from_credentials(env, problems),
        *_from_env(env, problems),
        *_from_flags(flags),
    ):
        try:
            values[given.key] = _convert(given)
            sources[given.key] = given.place
        except ValueError as error:
            bad.add(given.key)
            problems.append(f"{given.key} ({given.place}): {error}")
    if dev:
        for key, value in _dev_values().items():
            if key not in values and key not in bad:
                values[key], sources[key] = value, "--dev"
    values.setdefault("server.workers", available_cores())
    settings = _assemble(values)
    for key in types():
        sources.setdefault(key, "default")
    for keys, check in CONTRADICTIONS:
        complaint = None if bad.intersection(keys) else check(settings)
        if complaint:
            problems.append(f"{complaint} ({', '.join(f'{key}: {sources[key]}' for key in keys)})")
    if problems:
        raise SettingsError(problems)
    return Loaded(settings, sources)


def check(key: str, text: str) -> None:
    """Whether `text`, from the outside, can be the value of `key`. Raises ValueError with the reason."""
    _convert(_Given(key, text, "", True))


def check_start(settings: Settings) -> list[str]:
    """Whether a server may start with this, and warnings for what it will not do. Raises StartError."""
    if not settings.auth.token_keys:
        raise StartError(
            "auth.token_keys is not set: put kid:secret into FASTPRESENCE_AUTH_TOKEN_KEYS"
            " (openssl rand -hex 32 makes a secret), or use serve --dev to try it out"
        )
    warnings = []
    if settings.redis.url:
        warnings.append("redis.url is set, but this version has no Redis mirror yet")
    if settings.server.trusted_proxies:
        warnings.append("server.trusted_proxies is set, but this version does not look at X-Forwarded-For yet")
    return warnings


def login_jwks(auth: AuthSettings) -> str | None:
    """The text of the application's JWKS file; None when there is none. Raises StartError."""
    if auth.login_jwks_file is None:
        return None
    try:
        with open(auth.login_jwks_file, "rb") as file:
            data = file.read(MAX_JWKS + 1)
        if len(data) > MAX_JWKS:
            raise StartError(f"auth.login_jwks_file: {auth.login_jwks_file} is over {MAX_JWKS} bytes")
        return data.decode("utf-8-sig")
    except (OSError, UnicodeDecodeError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8"
        raise StartError(f"auth.login_jwks_file: {auth.login_jwks_file} cannot be read: {reason}") from None


def changed(old: Settings, new: Settings) -> list[str]:
    """The names of the settings that differ."""
    return [key for key in types() if _value(old, key) != _value(new, key)]


def replaceable(running: Settings, wanted: Settings) -> frozenset[str]:
    """The names of the settings that a running worker can take over from `wanted`."""
    if (running.server.tls_cert is None) == (wanted.server.tls_cert is None):
        return RELOADABLE
    return RELOADABLE - {"server.tls_cert", "server.tls_key"}  # files are renewed; TLS comes and goes with a restart


def reloaded(running: Settings, wanted: Settings) -> Settings:
    """`running` with what can be replaced without a restart taken from `wanted`."""
    sections: dict[str, dict[str, Any]] = {}
    for key in replaceable(running, wanted):
        section, _, name = key.partition(".")
        sections.setdefault(section, {})[name] = _value(wanted, key)
    return msgspec.structs.replace(
        running,
        **{name: msgspec.structs.replace(getattr(running, name), **values) for name, values in sections.items()},
    )


def _value(settings: Settings, key: str) -> Any:
    section, _, name = key.partition(".")
    return getattr(getattr(settings, section), name)


def available_cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0))


def connection_limit(limits: LimitsSettings) -> int:
    """How many client connections one process may hold: the setting, but never more than its file limit allows."""
    import resource

    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    possible = 1_048_576 if files == resource.RLIM_INFINITY else max(1, files - RESERVED_DESCRIPTORS)
    return possible if limits.connections is None else min(limits.connections, possible)


def state_directory(env: Mapping[str, str]) -> Path:
    """Where the server keeps what outlives it. Nothing is created here."""
    if env.get("STATE_DIRECTORY"):
        return Path(env["STATE_DIRECTORY"].split(":")[0])  # systemd.exec(5): several are separated by colons
    if env.get("XDG_STATE_HOME"):
        return Path(env["XDG_STATE_HOME"]) / "fastpresence"
    return Path(env.get("HOME") or Path.home()) / ".local/state/fastpresence"


def database_url(database: DatabaseSettings, env: Mapping[str, str]) -> str | None:
    """The database in force; None when there shall be none."""
    if database.url is None:
        return f"sqlite:///{state_directory(env)}/fastpresence.db"
    return None if database.url == "none" else database.url


def masked(key: str, value: Any) -> Any:
    """`value` as it may be shown to anyone: kids stay, a URL loses user and password, other secrets become stars."""
    if key not in SECRETS or value is None or value == ():
        return value
    if key == "auth.token_keys":
        return tuple(f"{token_key.kid}:***" for token_key in value)
    if key.endswith(".url"):
        return re.sub("://.*@", "://***@", re.sub(r"(?i)(password=)[^&]*", r"\1***", value))
    return ("***",) * len(value) if isinstance(value, tuple) else "***"


@cache
def types() -> dict[str, Any]:
    """Every setting's name, "section.key", and its type."""
    return {
        f"{section}.{key}": hint
        for section, struct in get_type_hints(Settings).items()
        for key, hint in get_type_hints(struct, include_extras=True).items()
    }


# The layers.


def _from_file(named: str | None, problems: list[str]) -> Iterator[_Given]:
    import tomllib

    path = named or DEFAULT_FILE
    if named is None and not os.path.exists(path):
        return
    try:
        with open(path, "rb") as file:
            tables = tomllib.load(file)
    except OSError as error:
        problems.append(f"{path}: cannot be read: {error.strerror}")
        return
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        problems.append(f"{path}: not TOML: {error}")
        return
    sections = Settings.__struct_fields__
    for section, table in tables.items():
        if section not in sections:
            problems.append(f"{section} ({path}): no such section{_nearest(section, sections)}")
        elif not isinstance(table, dict):
            problems.append(f"{section} ({path}): is a table, not a value")
        else:
            for key, value in table.items():
                name = f"{section}.{key}"
                if name in types():
                    yield _Given(name, value, path, False)
                else:
                    problems.append(f"{name} ({path}): no such setting{_nearest(name, types())}")


def _from_credentials(env: Mapping[str, str], problems: list[str]) -> Iterator[_Given]:
    directory = env.get("CREDENTIALS_DIRECTORY")
    if not directory:
        return
    for key in sorted(SECRETS):
        for name in (_variable(key), _variable(key).lower()):
            path = os.path.join(directory, name)
            if os.path.exists(path):
                yield from _from_own_file(key, path, f"credential {name}", problems)
                break


def _from_env(env: Mapping[str, str], problems: list[str]) -> Iterator[_Given]:
    variables = {_variable(key): key for key in types()}
    files = {f"{_variable(key)}_FILE": key for key in SECRETS}
    for name, value in sorted(env.items()):
        if not name.startswith(PREFIX) or name in NOT_SETTINGS:
            continue
        if name in variables:
            yield _Given(variables[name], value, f"environment {name}", True)
        elif name in files and name.removesuffix("_FILE") in env:
            problems.append(f"{files[name]} (environment {name}): given twice, {name.removesuffix('_FILE')} is set too")
        elif name in files:
            yield from _from_own_file(files[name], value, f"environment {name}, file {value}", problems)
        else:
            problems.append(f"environment {name}: no such setting{_nearest(name, [*variables, *files])}")


def _from_flags(flags: Mapping[str, object]) -> Iterator[_Given]:
    for key, value in flags.items():
        if key != "config" and value is not None:
            yield _Given(key, value, f"flag --{_flag(key)}", True)


def _from_own_file(key: str, path: str, place: str, problems: list[str]) -> Iterator[_Given]:
    try:
        text = Path(path).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        problems.append(f"{key} ({place}): cannot be read: {getattr(error, 'strerror', None) or 'not UTF-8'}")
        return
    if text:
        yield _Given(key, text, place, True)
    else:
        problems.append(f"{key} ({place}): the file is empty")


def _dev_values() -> dict[str, Any]:
    import secrets

    hosts = ("localhost", "127.0.0.1", "[::1]")
    return {
        "server.host": "127.0.0.1",
        "server.allowed_origins": tuple(f"{s}://{h}{p}" for s in ("http", "https") for h in hosts for p in ("", ":*")),
        "auth.token_keys": (TokenKey("dev", secrets.token_urlsafe(32)),),
        "auth.api_keys": (secrets.token_urlsafe(24),),
        "admin.key": secrets.token_urlsafe(24),
    }


# From what was written to what is meant.


def _convert(given: _Given) -> Any:
    """The checked value. Raises ValueError with a reason that repeats no secret."""
    hint = types()[given.key]
    value = given.value
    is_list = "tuple" in str(hint)
    if given.is_text and isinstance(value, str):
        value = value.strip()
        if is_list:
            # A PEM key spans lines and is one item; anything else is separated by commas or lines.
            items = re.findall(r"-----BEGIN [^-]+-----.*?-----END [^-]+-----|[^,\n]+", value, re.DOTALL)
            value = [item.strip() for item in items if item.strip()]
        elif not value:
            value = None  # an empty variable is how a compose file says "none"
    if given.key == "auth.token_keys":
        return _token_keys(value)
    try:
        return msgspec.convert(value, hint, strict=not given.is_text)
    except msgspec.ValidationError as error:
        raise ValueError(_reason(given.key, hint, value, str(error))) from None


def _token_keys(value: object) -> tuple[TokenKey, ...]:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise ValueError("expected a list of kid:secret")
    keys: list[TokenKey] = []
    for position, item in enumerate(value, 1):
        kid, colon, secret = item.partition(":")
        if not colon or not re.fullmatch(r"[A-Za-z0-9_.-]{1,64}", kid):
            raise ValueError(f"item {position} is not kid:secret (kid: letters, digits, _ . -)")
        if not MIN_SECRET <= len(secret) <= 1024:
            raise ValueError(f"the secret of {kid} has {len(secret)} characters, at least {MIN_SECRET} are needed")
        if any(kid == key.kid for key in keys):
            raise ValueError(f"the kid {kid} is there twice")
        keys.append(TokenKey(kid, secret))
    return tuple(keys)


#: What a pattern means, in words.
PATTERNS: Final = {
    "server.public_url": "a URL that begins with wss://, ws://, https:// or http://",
    "server.allowed_origins": "origins such as https://example.com (in lower case, without a path; :* for any port)",
    "presence.user_types": "names of small letters, digits and _, at most 32 characters",
    "presence.public_types": "names of small letters, digits and _, at most 32 characters",
    "redis.url": "a URL that begins with redis://, rediss://, redis+cluster:// or redis+sentinel://",
    "database.url": "sqlite:///FILE, postgresql://..., mysql://... or none",
}


def _reason(key: str, hint: Any, value: object, error: str) -> str:
    if "enum" in error:
        literal = re.search(r"Literal\[([^]]*)\]", str(hint))
        reason = f"expected one of {literal.group(1)}" if literal else error
    elif "regex" in error:
        reason = f"expected {PATTERNS[key]}"
    else:
        reason = error[0].lower() + error[1:].replace("`", "").partition(" - at ")[0]
        reason = reason.partition(", got ")[0].replace(" | null", "")
    return reason if key in SECRETS else f"{reason}, not {value!r:.100}"


def _assemble(values: Mapping[str, Any]) -> Settings:
    sections = {}
    for section, struct in get_type_hints(Settings).items():
        prefix = f"{section}."
        sections[section] = struct(**{k.removeprefix(prefix): v for k, v in values.items() if k.startswith(prefix)})
    return Settings(**sections)


# What one value alone can't show.


def _timing(s: Settings) -> str | None:
    if s.presence.heartbeat_timeout <= s.presence.heartbeat_interval:
        return "presence.heartbeat_timeout must be longer than presence.heartbeat_interval"
    return None


def _grace(s: Settings) -> str | None:
    if (s.presence.disconnect_grace or 0) > s.presence.heartbeat_timeout:
        return "presence.disconnect_grace can only shorten what is left of presence.heartbeat_timeout"
    return None


def _public(s: Settings) -> str | None:
    unknown = sorted(set(s.presence.public_types) - set(s.presence.user_types))
    return f"presence.public_types has {', '.join(unknown)}, which presence.user_types has not" if unknown else None


def _doubled(s: Settings) -> str | None:
    return "a user type is there twice" if len(set(s.presence.user_types)) < len(s.presence.user_types) else None


def _tls(s: Settings) -> str | None:
    if (s.server.tls_cert is None) != (s.server.tls_key is None):
        return "server.tls_cert and server.tls_key belong together"
    return None


def _sizes(s: Settings) -> str | None:
    if s.limits.message_size < s.limits.frame_size:
        return "limits.message_size must be at least limits.frame_size: a message is one frame or more"
    return None


def _ports(s: Settings) -> str | None:
    if s.admin.enabled and s.server.port == s.admin.port != 0:
        return "server.port and admin.port must differ"
    return None


def _is_host(host: str) -> bool:
    from ipaddress import ip_address

    try:
        ip_address(host)
    except ValueError:
        return bool(re.fullmatch(r"(?=.*[A-Za-z])[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?", host))
    return True


def _proxies(s: Settings) -> str | None:
    from ipaddress import ip_network

    for proxy in s.server.trusted_proxies:
        try:
            ip_network(proxy)
        except ValueError:
            return f"server.trusted_proxies has {proxy!r:.100}, which is neither an address nor a network"
    return None


CONTRADICTIONS: Final[tuple[tuple[tuple[str, ...], Callable[[Settings], str | None]], ...]] = (
    (("server.host",), lambda s: None if _is_host(s.server.host) else "server.host is no address and no host name"),
    (("admin.host",), lambda s: None if _is_host(s.admin.host) else "admin.host is no address and no host name"),
    (("server.trusted_proxies",), _proxies),
    (("server.tls_cert", "server.tls_key"), _tls),
    (("server.port", "admin.port"), _ports),
    (("presence.heartbeat_interval", "presence.heartbeat_timeout"), _timing),
    (("presence.disconnect_grace", "presence.heartbeat_timeout"), _grace),
    (("presence.user_types",), _doubled),
    (("presence.public_types", "presence.user_types"), _public),
    (("limits.frame_size", "limits.message_size"), _sizes),
)


def _variable(key: str) -> str:
    return PREFIX + key.replace(".", "_").upper()


def _flag(key: str) -> str:
    section, _, name = key.partition(".")
    name = name.replace("_", "-")
    return name if section == "server" else f"{section}-{name}"


def _nearest(name: str, known: Any) -> str:
    import difflib

    nearest = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {nearest[0]}?" if nearest else ""
