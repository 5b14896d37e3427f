"""Settings: layers, places, refusals. Every test passes its own environment: the machine's own is never read."""

import os
from pathlib import Path

import msgspec
import pytest

from fastpresence.errors import SettingsError, StartError
from fastpresence.settings import (
    MAX_JWKS,
    RELOADABLE,
    AuthSettings,
    LimitsSettings,
    ServerSettings,
    Settings,
    TokenKey,
    changed,
    check_start,
    connection_limit,
    database_url,
    load,
    login_jwks,
    masked,
    reloaded,
    replaceable,
    state_directory,
    types,
)

SECRET = "0123456789abcdef0123456789abcdef"


def toml(tmp_path: Path, text: str) -> dict[str, str]:
    """An environment that names a file with this text."""
    path = tmp_path / "fastpresence.toml"
    path.write_text(text)
    return {"FASTPRESENCE_CONFIG": str(path)}


def problems(env: dict[str, str], **flags: object) -> list[str]:
    with pytest.raises(SettingsError) as caught:
        load({key.replace("__", "."): value for key, value in flags.items()}, env)
    return caught.value.problems


def test_without_any_layer_every_setting_has_the_default_of_the_operations_page() -> None:
    loaded = load({}, {})
    settings = loaded.settings
    assert (settings.server.host, settings.server.port, settings.server.drain_time) == ("0.0.0.0", 8080, 30)
    assert settings.server.workers == len(os.sched_getaffinity(0))
    assert settings.presence.user_types == ("kol", "user")
    assert settings.presence.public_types == ("kol",)
    assert settings.limits.connections is None
    assert (settings.limits.rate, settings.limits.burst) == (50, 100)
    assert (settings.admin.host, settings.admin.port, settings.admin.key) == ("127.0.0.1", 9090, None)
    assert set(loaded.sources.values()) == {"default"}
    assert set(loaded.sources) == set(types())


def test_the_later_layer_wins_and_says_that_it_did(tmp_path: Path) -> None:
    env = toml(tmp_path, "[server]\nport = 1\nhost = '::1'\nworkers = 3\n")
    env |= {"FASTPRESENCE_SERVER_PORT": "2", "FASTPRESENCE_SERVER_WORKERS": "4"}
    loaded = load({"server.port": "3", "server.host": None}, env)
    assert (loaded.settings.server.port, loaded.settings.server.workers, loaded.settings.server.host) == (3, 4, "::1")
    assert loaded.sources["server.port"] == "flag --port"
    assert loaded.sources["server.workers"] == "environment FASTPRESENCE_SERVER_WORKERS"
    assert loaded.sources["server.host"] == env["FASTPRESENCE_CONFIG"]


def test_the_file_that_a_flag_names_beats_the_one_of_the_environment(tmp_path: Path) -> None:
    named = tmp_path / "named.toml"
    named.write_text("[server]\nport = 7\n")
    env = toml(tmp_path, "[server]\nport = 1\n")
    assert load({"config": str(named)}, env).settings.server.port == 7


def test_a_file_that_is_named_and_missing_is_refused() -> None:
    (problem,) = problems({"FASTPRESENCE_CONFIG": "/nonexistent/x.toml"})
    assert problem == "/nonexistent/x.toml: cannot be read: No such file or directory"


def test_a_file_that_is_not_toml_is_refused_with_its_line(tmp_path: Path) -> None:
    (problem,) = problems(toml(tmp_path, "[server]\nport = = 1\n"))
    assert "not TOML" in problem
    assert "line 2" in problem


def test_every_fault_of_every_layer_is_told_in_one_go_with_its_name_and_place(tmp_path: Path) -> None:
    env = toml(
        tmp_path,
        "stray = 1\n[server]\nprot = 1\nport = 'x'\n[severs]\nport = 1\n[log]\nlevel = 'loud'\n",
    )
    env |= {
        "FASTPRESENCE_SERVER_PROT": "1",
        "FASTPRESENCE_LIMITS_RATE": "fast",
        "FASTPRESENCE_PRESENCE_HEARTBEAT_TIMEOUT": "30",
    }
    found = problems(env, server__workers="0")
    path = env["FASTPRESENCE_CONFIG"]
    assert f"server.prot ({path}): no such setting; did you mean server.port?" in found
    assert f"server.port ({path}): expected int, not 'x'" in found
    assert f"severs ({path}): no such section; did you mean server?" in found
    assert f"log.level ({path}): expected one of 'debug', 'info', 'warning', 'error', not 'loud'" in found
    assert "environment FASTPRESENCE_SERVER_PROT: no such setting; did you mean FASTPRESENCE_SERVER_PORT?" in found
    assert "limits.rate (environment FASTPRESENCE_LIMITS_RATE): expected float, not 'fast'" in found
    assert "server.workers (flag --workers): expected int >= 1, not '0'" in found
    assert any(problem.startswith("presence.heartbeat_timeout must be longer") for problem in found)
    assert len(found) == 9


def test_a_fault_does_not_hide_behind_a_later_layer(tmp_path: Path) -> None:
    env = toml(tmp_path, "[server]\nport = -1\n") | {"FASTPRESENCE_SERVER_PORT": "2"}
    assert len(problems(env)) == 1


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("server.host", "not a host"),
        ("server.host", "12345"),
        ("server.port", "65536"),
        ("server.public_url", "presence.example.com"),
        ("server.allowed_origins", "https://example.com/path"),
        ("server.allowed_origins", "HTTPS://EXAMPLE.COM"),
        ("server.trusted_proxies", "10.0.0.0/8,proxy"),
        ("server.drain_time", "-1"),
        ("server.drain_time", "nan"),
        ("auth.token_keys", SECRET),
        ("auth.token_keys", "k1:short"),
        ("auth.token_keys", f"k1:{SECRET},k1:{SECRET}"),
        ("auth.token_keys", f":{SECRET}"),
        ("auth.api_keys", "short"),
        ("auth.login_keys", "short"),
        ("admin.key", "short"),
        ("admin.port", "8080"),
        ("presence.heartbeat_interval", "0"),
        ("presence.heartbeat_interval", "inf"),
        ("presence.disconnect_grace", "61"),
        ("presence.user_types", ""),
        ("presence.user_types", "kol,kol"),
        ("presence.user_types", "kol,User"),
        ("presence.user_types", "kol,a b"),
        ("presence.public_types", "guest"),
        ("presence.flush_window_ms", "0"),
        ("limits.frame_size", "1"),
        ("limits.frame_size", "65537"),
        ("limits.connections", "0"),
        ("limits.burst", "1.5"),
        ("limits.send_buffer", "1"),
        ("redis.url", "http://localhost"),
        ("redis.mirror_ttl", "1"),
        ("database.url", "oracle://x"),
        ("database.url", "sqlite://relative"),
        ("log.level", "INFO"),
        ("log.format", "xml"),
    ],
)
def test_a_value_out_of_bounds_is_refused_by_name(key: str, value: str) -> None:
    (problem,) = problems({f"FASTPRESENCE_{key.replace('.', '_').upper()}": value})
    assert key in problem
    assert "\n" not in problem


@pytest.mark.parametrize(
    ("key", "value", "meant"),
    [
        ("server.host", "presence.example.com", "presence.example.com"),
        (
            "server.allowed_origins",
            "https://a.example, http://localhost:*",
            ("https://a.example", "http://localhost:*"),
        ),
        ("server.allowed_origins", "http://[::1]:8080", ("http://[::1]:8080",)),
        ("server.trusted_proxies", "10.0.0.0/8,::1", ("10.0.0.0/8", "::1")),
        ("auth.token_keys", f"k1:{SECRET},k0:{SECRET}:x", (TokenKey("k1", SECRET), TokenKey("k0", f"{SECRET}:x"))),
        ("presence.disconnect_grace", "0", 0),
        ("presence.public_types", "", ()),
        ("limits.connections", "", None),
        ("redis.url", "redis+sentinel://a:1,b:2/main", "redis+sentinel://a:1,b:2/main"),
        ("database.url", "none", "none"),
        ("log.format", "json", "json"),
    ],
)
def test_a_text_from_the_environment_becomes_what_it_means(key: str, value: str, meant: object) -> None:
    loaded = load({}, {f"FASTPRESENCE_{key.replace('.', '_').upper()}": value})
    section, _, name = key.partition(".")
    assert getattr(getattr(loaded.settings, section), name) == meant


def test_lists_in_the_file_are_arrays_and_a_bare_text_is_refused(tmp_path: Path) -> None:
    good = load({}, toml(tmp_path, f"[auth]\ntoken_keys = ['k1:{SECRET}']\n[presence]\nuser_types = ['kol']\n"))
    assert good.settings.auth.token_keys == (TokenKey("k1", SECRET),)
    assert len(problems(toml(tmp_path, f"[auth]\ntoken_keys = 'k1:{SECRET}'\n[presence]\nuser_types = 'kol'\n"))) == 2


def test_a_number_in_the_file_is_not_taken_for_a_truth_value_or_a_text(tmp_path: Path) -> None:
    assert len(problems(toml(tmp_path, "[server]\nport = true\nworkers = '2'\n"))) == 2


def test_one_half_of_a_certificate_is_refused_and_both_are_taken(tmp_path: Path) -> None:
    (problem,) = problems({"FASTPRESENCE_SERVER_TLS_CERT": "/c.pem"})
    assert "server.tls_key: default" in problem
    load({}, {"FASTPRESENCE_SERVER_TLS_CERT": "/c.pem", "FASTPRESENCE_SERVER_TLS_KEY": "/k.pem"})


def test_a_secret_comes_from_a_file_of_its_own_one_item_a_line(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text(f"k2:{SECRET}\nk1:{SECRET}\n")
    loaded = load({}, {"FASTPRESENCE_AUTH_TOKEN_KEYS_FILE": str(path)})
    assert [key.kid for key in loaded.settings.auth.token_keys] == ["k2", "k1"]
    assert loaded.sources["auth.token_keys"] == f"environment FASTPRESENCE_AUTH_TOKEN_KEYS_FILE, file {path}"


def test_a_pem_key_is_one_item_whatever_its_lines(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    pem = "-----BEGIN PUBLIC KEY-----\nAAAA\nBBBB\n-----END PUBLIC KEY-----"
    path.write_text(f"{SECRET}\n{pem}\n{SECRET}x\n")
    loaded = load({}, {"FASTPRESENCE_AUTH_LOGIN_KEYS_FILE": str(path)})
    assert loaded.settings.auth.login_keys == (SECRET, pem, f"{SECRET}x")


@pytest.mark.parametrize("text", [None, "", "\n"])
def test_a_missing_or_empty_secret_file_is_refused(tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "keys"
    if text is not None:
        path.write_text(text)
    (problem,) = problems({"FASTPRESENCE_AUTH_API_KEYS_FILE": str(path)})
    assert problem.startswith("auth.api_keys (")


def test_a_secret_given_both_ways_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_text(SECRET)
    (problem,) = problems({"FASTPRESENCE_ADMIN_KEY": SECRET, "FASTPRESENCE_ADMIN_KEY_FILE": str(path)})
    assert "given twice" in problem


def test_only_secrets_may_come_from_files_of_their_own() -> None:
    (problem,) = problems({"FASTPRESENCE_SERVER_PORT_FILE": "/etc/hostname"})
    assert "no such setting" in problem


@pytest.mark.parametrize("name", ["FASTPRESENCE_REDIS_URL", "fastpresence_redis_url"])
def test_a_systemd_credential_is_taken_and_the_environment_wins_over_it(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("redis://credential\n")
    env = {"CREDENTIALS_DIRECTORY": str(tmp_path)}
    loaded = load({}, env)
    assert loaded.settings.redis.url == "redis://credential"
    assert loaded.sources["redis.url"] == f"credential {name}"
    assert load({}, env | {"FASTPRESENCE_REDIS_URL": "redis://env"}).settings.redis.url == "redis://env"


def test_no_problem_ever_repeats_a_secret() -> None:
    found = problems(
        {
            "FASTPRESENCE_AUTH_TOKEN_KEYS": "k1:hush-hush",
            "FASTPRESENCE_AUTH_API_KEYS": "hush-hush",
            "FASTPRESENCE_ADMIN_KEY": "hush-hush",
            "FASTPRESENCE_REDIS_URL": "hush-hush",
            "FASTPRESENCE_DATABASE_URL": "hush-hush",
        }
    )
    assert len(found) == 5
    assert "hush" not in "".join(found)


def test_neither_repr_nor_mask_shows_a_secret() -> None:
    env = {
        "FASTPRESENCE_AUTH_TOKEN_KEYS": f"k1:{SECRET}",
        "FASTPRESENCE_AUTH_API_KEYS": f"{SECRET},{SECRET}1",
        "FASTPRESENCE_ADMIN_KEY": SECRET,
        "FASTPRESENCE_REDIS_URL": f"redis://user:{SECRET}@host/0",
        "FASTPRESENCE_DATABASE_URL": f"postgresql://host/db?password={SECRET}&user=x",
    }
    settings = load({}, env).settings
    assert SECRET not in repr(settings)
    assert masked("auth.token_keys", settings.auth.token_keys) == ("k1:***",)
    assert masked("auth.api_keys", settings.auth.api_keys) == ("***", "***")
    assert masked("redis.url", settings.redis.url) == "redis://***@host/0"
    assert masked("redis.url", f"redis://:{SECRET}/@host") == "redis://***@host"
    assert masked("database.url", settings.database.url) == "postgresql://host/db?password=***&user=x"
    assert masked("server.host", "x") == "x"


def test_other_programs_variables_and_the_clients_token_are_none_of_our_business() -> None:
    load({}, {"FASTPRESENCE_TOKEN": "abc", "PATH": "/bin", "FASTPRESENCEX": "1"})


def test_settings_reach_a_worker_unchanged() -> None:
    settings = load({}, {"FASTPRESENCE_AUTH_TOKEN_KEYS": f"k1:{SECRET}"}, dev=True).settings
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(settings), type=Settings) == settings


def test_a_production_start_without_a_token_key_is_refused_with_what_to_do() -> None:
    with pytest.raises(StartError) as caught:
        check_start(load({}, {}).settings)
    assert "FASTPRESENCE_AUTH_TOKEN_KEYS" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert check_start(load({}, {"FASTPRESENCE_AUTH_TOKEN_KEYS": f"k1:{SECRET}"}).settings) == []


def test_what_this_version_cannot_do_is_told_at_the_start() -> None:
    env = {"FASTPRESENCE_AUTH_TOKEN_KEYS": f"k1:{SECRET}"}
    more = {"FASTPRESENCE_REDIS_URL": "redis://x", "FASTPRESENCE_SERVER_TRUSTED_PROXIES": "10.0.0.1"}
    assert len(check_start(load({}, env | more).settings)) == 2


def test_dev_makes_what_is_missing_for_this_run_only() -> None:
    one, two = (load({}, {}, dev=True) for _ in range(2))
    assert one.settings.server.host == "127.0.0.1"
    assert "http://localhost:*" in one.settings.server.allowed_origins
    assert one.settings.auth.token_keys != two.settings.auth.token_keys
    assert one.settings.auth.api_keys != two.settings.auth.api_keys
    assert one.sources["auth.token_keys"] == "--dev"
    assert check_start(one.settings) == []


def test_dev_replaces_nothing_that_was_given() -> None:
    env = {"FASTPRESENCE_AUTH_TOKEN_KEYS": f"k1:{SECRET}", "FASTPRESENCE_SERVER_HOST": "::"}
    settings = load({}, env, dev=True).settings
    assert settings.auth.token_keys == (TokenKey("k1", SECRET),)
    assert settings.server.host == "::"


@pytest.mark.parametrize(
    ("env", "path"),
    [
        ({"STATE_DIRECTORY": "/var/lib/a:/var/lib/b", "HOME": "/h"}, "/var/lib/a"),
        ({"XDG_STATE_HOME": "/x", "HOME": "/h"}, "/x/fastpresence"),
        ({"HOME": "/h"}, "/h/.local/state/fastpresence"),
    ],
)
def test_the_state_directory_is_systemds_else_xdgs_else_at_home(env: dict[str, str], path: str) -> None:
    assert state_directory(env) == Path(path)
    assert database_url(Settings().database, env) == f"sqlite:///{path}/fastpresence.db"


def test_no_database_is_a_choice() -> None:
    assert database_url(load({}, {"FASTPRESENCE_DATABASE_URL": "none"}).settings.database, {}) is None


def test_the_connection_limit_never_exceeds_what_the_file_limit_allows() -> None:
    possible = connection_limit(LimitsSettings())
    assert possible >= 1
    assert connection_limit(LimitsSettings(connections=1)) == 1
    assert connection_limit(LimitsSettings(connections=100_000_000)) == possible


def test_a_setting_cannot_be_changed_after_the_start() -> None:
    with pytest.raises(AttributeError):
        ServerSettings().port = 1  # type: ignore[misc]


# What changes while a server runs.


def test_what_differs_is_told_by_name() -> None:
    assert changed(Settings(), Settings()) == []
    other = Settings(server=ServerSettings(port=1), limits=LimitsSettings(rate=1))
    assert changed(Settings(), other) == ["server.port", "limits.rate"]


def test_a_reload_takes_what_can_be_replaced_and_leaves_the_rest() -> None:
    env = {"FASTPRESENCE_AUTH_TOKEN_KEYS": f"k1:{SECRET}", "FASTPRESENCE_SERVER_TLS_CERT": "/c"}
    env |= {"FASTPRESENCE_SERVER_TLS_KEY": "/k", "FASTPRESENCE_LIMITS_RATE": "7", "FASTPRESENCE_LOG_LEVEL": "debug"}
    running = Settings(server=ServerSettings(tls_cert="/old", tls_key="/old"))
    wanted = load({"server.port": "1"}, env).settings
    after = reloaded(running, wanted)
    assert set(changed(running, after)) == {"auth.token_keys", "server.tls_cert", "server.tls_key", "log.level"}
    assert "server.port" in changed(after, wanted)
    assert set(changed(after, wanted)).isdisjoint(RELOADABLE)
    assert types().keys() >= RELOADABLE


@pytest.mark.parametrize("tls", [{}, {"tls_cert": "/c", "tls_key": "/k"}])
def test_tls_neither_comes_nor_goes_without_a_restart(tls: dict[str, str]) -> None:
    with_tls, without = Settings(server=ServerSettings(tls_cert="/c", tls_key="/k")), Settings()
    running, wanted = (with_tls, without) if tls else (without, with_tls)
    assert reloaded(running, wanted) == running
    assert RELOADABLE - replaceable(running, wanted) == {"server.tls_cert", "server.tls_key"}


def test_a_jwks_file_is_read_whole_or_refused_by_the_settings_name(tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    auth = AuthSettings(login_jwks_file=str(file))
    assert login_jwks(AuthSettings()) is None
    file.write_bytes(b'\xef\xbb\xbf{"keys": []}')  # as some editors begin a file
    assert login_jwks(auth) == '{"keys": []}'
    file.write_bytes(b"x" * (MAX_JWKS + 1))

    def refused() -> str:
        with pytest.raises(StartError) as caught:
            login_jwks(auth)
        return str(caught.value).removeprefix(f"auth.login_jwks_file: {file} ")

    assert refused() == f"is over {MAX_JWKS} bytes"
    file.write_bytes(b"\xff")
    assert refused() == "cannot be read: not UTF-8"
    file.unlink()
    assert refused() == "cannot be read: No such file or directory"
    file.mkdir()
    assert refused() == "cannot be read: Is a directory"
