"""The command `fastpresence`: serve, token, config.

Exit status: 0 done; 1 a failed start, with one line for each reason that says what to do; 2 bad usage, with one line.
Secrets are printed on purpose only: the token that was asked for, and what `serve --dev` made for this run.
"""

import argparse
import asyncio
import logging
import os
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NoReturn

import msgspec

import fastpresence
from fastpresence import settings as settings_module
from fastpresence.errors import SettingsError, StartError, TokenError
from fastpresence.messages import RoomId, UserId
from fastpresence.settings import Loaded, Settings, check_start, load, login_jwks, masked

__all__ = ["main"]

#: Seconds a token may be good for, here as at the token endpoint; and when nothing is said.
MAX_EXPIRE_TIME: Final = 86_400
EXPIRE_TIME: Final = 3600
#: What `--tour` runs; called with `--url URL --api-key KEY`.
TOUR: Final = "fastpresence.client.tour"

#: Flags of `serve`: the setting, what stands for its value in --help, and what is said of it.
SERVE_FLAGS: Final = {
    "--host": ("server.host", "ADDRESS", "where to listen (0.0.0.0; with --dev 127.0.0.1)"),
    "--port": ("server.port", "PORT", "0: any free one, printed (8080)"),
    "--workers": ("server.workers", "N", "worker processes (one for each core)"),
    "--redis-url": ("redis.url", "URL", "redis://, rediss://, redis+cluster://, redis+sentinel://"),
    "--database-url": ("database.url", "URL", "sqlite:///FILE, postgresql://, mysql://, or none"),
    "--admin-port": ("admin.port", "PORT", "of the admin face (9090)"),
    "--log-level": ("log.level", "LEVEL", "debug, info, warning or error (info)"),
    "--log-format": ("log.format", "FORMAT", "text or json (text on a terminal, json elsewhere)"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Carry out one command. Returns the exit status."""
    arguments = _parser().parse_args(argv)
    try:
        status: int = arguments.run(arguments)
    except SettingsError as error:
        return _fail(*error.problems)
    except StartError as error:
        return _fail(str(error))
    except BrokenPipeError:  # whoever read our output went away; so that the interpreter does not try again
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        return 130
    return status


def _fail(*reasons: str) -> int:
    for reason in reasons:
        print(f"fastpresence: {reason}", file=sys.stderr)
    return 1


class _Parser(argparse.ArgumentParser):
    """Bad usage is one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"fastpresence: {message} (see {self.prog} --help)\n")


def _parser() -> _Parser:
    parser = _Parser(prog="fastpresence", description="A presence server: who is online, busy, away or gone.")
    parser.add_argument("--version", action="version", version=f"fastpresence {fastpresence.__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    serve = commands.add_parser("serve", help="run the server", description="Run the server: node process and worker.")
    serve.set_defaults(run=_serve, refuse=serve.error)
    for flag, (key, metavar, text) in SERVE_FLAGS.items():
        serve.add_argument(flag, dest=key, metavar=metavar, help=text, type=_of_setting(key))
    serve.add_argument(
        "--dev", action="store_true", help="try it out: makes keys for this run, prints them, loopback only"
    )
    serve.add_argument("--tour", action="store_true", help="with --dev: also run the tour against the server")

    token = commands.add_parser(
        "token", help="print a token", description="Print a token made with the configured key."
    )
    token.set_defaults(run=_token, refuse=token.error)
    token.add_argument("--user-id", required=True, metavar="ID", type=_of_type(UserId, "a user id"))
    token.add_argument("--user-type", default="user", metavar="TYPE", help="one of presence.user_types (user)")
    token.add_argument("--room-id", metavar="R", type=_of_type(RoomId, "a room id"), help="a room that the user joins")
    token.add_argument(
        "--expire-time", type=_expire_time, default=EXPIRE_TIME, metavar="S", help="seconds, 1 to 86400 (3600)"
    )

    config = commands.add_parser(
        "config",
        help="print the settings in force",
        description="Print the settings in force and where each came from.",
    )
    config.set_defaults(run=_config, refuse=config.error)
    config.add_argument("--dev", action="store_true", help="as serve --dev would have them")

    for command in (serve, token, config):
        command.add_argument("--config", metavar="FILE", help="the TOML file (FASTPRESENCE_CONFIG)")
    return parser


def _of_setting(key: str) -> Callable[[str], str]:
    """A check of a flag's text by the setting's own type; the text itself goes on to `load`."""

    def check(text: str) -> str:
        try:
            settings_module.check(key, text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None
        return text

    return check


def _of_type(kind: Any, name: str) -> Callable[[str], str]:
    def check(text: str) -> str:
        try:
            return msgspec.convert(text, kind, strict=True)  # type: ignore[no-any-return]
        except msgspec.ValidationError:
            raise argparse.ArgumentTypeError(f"{name} is 1 to 128 of A-Z a-z 0-9 _ . : @ -") from None

    return check


def _expire_time(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text[:9]) <= MAX_EXPIRE_TIME:
        raise argparse.ArgumentTypeError(f"seconds, 1 to {MAX_EXPIRE_TIME}")
    return int(text)


def _load(arguments: argparse.Namespace) -> Loaded:
    given = vars(arguments)
    flags = {key: given[key] for key in ("config", *(key for key, _, _ in SERVE_FLAGS.values())) if key in given}
    return load(flags, os.environ, dev=given.get("dev", False))


# The commands.


def _token(arguments: argparse.Namespace) -> int:
    loaded = _load(arguments)
    settings = loaded.settings
    if not settings.auth.token_keys:
        raise StartError(
            "auth.token_keys is not set: put the server's own kid:secret into FASTPRESENCE_AUTH_TOKEN_KEYS"
        )
    if arguments.user_type not in settings.presence.user_types:
        arguments.refuse(f"argument --user-type: one of {', '.join(settings.presence.user_types)}")
    print(
        _issue(settings, arguments.user_id, arguments.user_type, room=arguments.room_id, s=arguments.expire_time),
        flush=True,
    )
    return 0


def _issue(settings: Settings, user_id: str, user_type: str, *, s: int, room: str | None = None) -> str:
    from fastpresence.tokens import TokenKeys  # brings joserfc: only who needs it waits for it

    keys = TokenKeys(settings.auth.token_keys)
    try:
        return keys.issue(user_id, user_type, room=room, expire_time=s, now=int(time.time()))[0]
    except TokenError as error:
        raise StartError(str(error)) from None


def _config(arguments: argparse.Namespace) -> int:
    loaded = _load(arguments)
    width = max(map(len, loaded.sources))
    for key in settings_module.types():
        section, _, name = key.partition(".")
        value = masked(key, getattr(getattr(loaded.settings, section), name))
        print(f"{key:{width}} = {_shown(value):24}  # {loaded.sources[key]}")
    sys.stdout.flush()
    return 0


def _shown(value: object) -> str:
    """A value as TOML writes it; what is not set is said in a word."""
    if value is None:
        return "not set"
    return msgspec.json.encode(value).decode()


def _serve(arguments: argparse.Namespace) -> int:
    from fastpresence import logs
    from fastpresence.node.supervisor import run

    if arguments.tour and not arguments.dev:
        arguments.refuse("--tour needs --dev")
    loaded, jwks, warnings = _ready(arguments)
    settings = loaded.settings
    # The tour gets its key as an argument, which other users of the machine can see: only one of this run will do.
    if arguments.tour and not _is_made(loaded, "auth.api_keys"):
        raise StartError("--tour needs the API key that --dev makes: unset auth.api_keys")
    if settings.server.workers != 1 and loaded.sources["server.workers"] != "default":
        warnings.append(f"server.workers is {settings.server.workers}, but this version runs one worker")
    stop_logs = logs.setup(settings.log.level, settings.log.format)
    log = logging.getLogger("fastpresence.node")
    for warning in warnings:
        logs.event(log, logging.WARNING, "setting without effect", reason=warning)
    try:
        visit = _Visit(loaded, is_tour=arguments.tour) if arguments.dev else None
        return run(
            settings,
            login_jwks=jwks,
            read_again=lambda: _read_again(arguments),
            on_listening=visit.begin if visit else None,
            is_dev=arguments.dev,
            is_admin_port_given=loaded.sources["admin.port"] != "default",
        )
    finally:
        stop_logs()


def _ready(arguments: argparse.Namespace) -> tuple[Loaded, str | None, list[str]]:
    """Settings that a server can start with, the text of the JWKS file, and warnings."""
    loaded = _load(arguments)
    warnings = check_start(loaded.settings)
    auth = loaded.settings.auth
    jwks = login_jwks(auth)
    if auth.login_keys or jwks is not None:
        from fastpresence.tokens import LoginKeys  # brings joserfc: only who needs it waits for it

        LoginKeys(auth, jwks)
    server = loaded.settings.server
    if server.tls_cert is not None and server.tls_key is not None:
        from fastpresence.worker.tls import context

        context(server.tls_cert, server.tls_key)
    return loaded, jwks, warnings


def _read_again(arguments: argparse.Namespace) -> tuple[Settings, str | None]:
    """The same file, environment and flags once more, while the server runs."""
    loaded, jwks, _ = _ready(arguments)
    return loaded.settings, jwks


class _Visit:
    """What `--dev` tells and shows whoever tries the server out."""

    def __init__(self, loaded: Loaded, *, is_tour: bool) -> None:
        self._loaded = loaded
        self._is_tour = is_tour
        self._tour: asyncio.Task[None] | None = None

    def begin(self, port: int, admin_port: int | None) -> None:
        """The server listens: say so, and start the tour."""
        settings = self._loaded.settings
        address = _address(settings.server.host, port)
        admin = None if admin_port is None else _address(settings.admin.host, admin_port)
        print(_welcome(self._loaded, address, admin), flush=True)
        if self._is_tour:
            self._tour = asyncio.get_running_loop().create_task(self._guide(f"ws://{address}/ws"))

    async def _guide(self, url: str) -> None:
        """The tour, as a process of its own; it ends with the server, and the server goes on without it."""
        from fastpresence.node.supervisor import module_argv

        api_key = self._loaded.settings.auth.api_keys[0]
        argv = [*module_argv(TOUR), "--url", url, "--api-key", api_key]
        process = await asyncio.create_subprocess_exec(*argv, stdin=asyncio.subprocess.DEVNULL)
        try:
            await process.wait()
        finally:
            if process.returncode is None:
                process.terminate()


def _address(host: str, port: int) -> str:
    """Where to connect to what listens on `host`."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - what to connect to instead
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _welcome(loaded: Loaded, address: str, admin: str | None) -> str:
    """What was made for this run, and commands to paste. The tokens are real and good for a day.

    `admin`: where the admin face listens, if it does.
    """
    settings = loaded.settings
    types = settings.presence.user_types
    host_type = "kol" if "kol" in types else types[0]
    user_type = "user" if "user" in types else types[-1]
    python = "python" if shutil.which("python") == sys.executable else shlex.quote(sys.executable)
    client = f"{python} -m fastpresence.client ws://{address}/ws"
    host_token, user_token = (
        _issue(settings, user_id, user_type, s=MAX_EXPIRE_TIME)
        for user_id, user_type in (("demo_host", host_type), ("demo_user", user_type))
    )
    made = [
        *(f"  token key  {k.kid}:{k.secret}" for k in settings.auth.token_keys if _is_made(loaded, "auth.token_keys")),
        *(f"  API key    {key}" for key in settings.auth.api_keys if _is_made(loaded, "auth.api_keys")),
        *([f"  admin key  {settings.admin.key}"] if _is_made(loaded, "admin.key") else []),
    ]
    admin_key = settings.admin.key if _is_made(loaded, "admin.key") else "YOUR_ADMIN_KEY"
    api_key = settings.auth.api_keys[0] if _is_made(loaded, "auth.api_keys") else "YOUR_API_KEY"
    return "\n".join(
        [
            f"fastpresence {fastpresence.__version__} listens on ws://{address}/ws (--dev: a try, not a service)",
            *(["", "Made for this run only:", *made] if made else []),
            "",
            "Watch who is online, in a second terminal:",
            f"  FASTPRESENCE_TOKEN={user_token} {client}",
            "",
            "Be a host, in a third one:",
            f"  FASTPRESENCE_TOKEN={host_token} {client} --user-id demo_host --user-type {host_type} --online busy",
            "",
            "A token for anyone else, as your own server would ask for it:",
            f"  curl -s http://{address}/api/online-status/rts-token -H 'Authorization: Bearer {api_key}' \\",
            f"""    -d '{{"user_id": "kol_1", "user_type": "{host_type}"}}'""",
            "",
            *(
                []
                if admin is None
                else [
                    "Why is demo_host offline (or online)? His last transitions, the newest first:",
                    f"  curl -s http://{admin}/api/users/demo_host/timeline -H 'Authorization: Bearer {admin_key}'",
                    "",
                ]
            ),
            "Ctrl-C ends it.",
        ]
    )


def _is_made(loaded: Loaded, key: str) -> bool:
    sources: Mapping[str, str] = loaded.sources
    return sources[key] == "--dev"
