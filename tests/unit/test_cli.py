"""The command line: what it prints, where, and with which exit status."""

import contextlib
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fastpresence.cli import main
from fastpresence.settings import TokenKey
from fastpresence.tokens import TokenKeys

ROOT = Path(__file__).parents[2]
SECRET = "0123456789abcdef0123456789abcdef"
KEYS = TokenKeys([TokenKey("k1", SECRET)])
DEADLINE = 20.0


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [*os.environ]:
        if name.startswith("FASTPRESENCE_") or name == "CREDENTIALS_DIRECTORY":
            monkeypatch.delenv(name)


def usage(argv: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line of a refused command line."""
    with pytest.raises(SystemExit) as caught:
        main(argv)
    assert caught.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith("fastpresence: ")
    return err


@pytest.mark.parametrize(
    ("argv", "word"),
    [
        ([], "COMMAND"),
        (["nonsense"], "nonsense"),
        (["watch"], "watch"),
        (["serve", "--port", "x"], "--port"),
        (["serve", "--port", "65536"], "65535"),
        (["serve", "--workers", "0"], "--workers"),
        (["serve", "--log-level", "loud"], "debug"),
        (["serve", "--redis-url", "http://x"], "redis://"),
        (["serve", "--tour"], "--dev"),
        (["serve", "--nonsense"], "--nonsense"),
        (["serve", "extra"], "extra"),
        (["token"], "--user-id"),
        (["token", "--user-id", "a b"], "--user-id"),
        (["token", "--user-id", "x" * 129], "--user-id"),
        (["token", "--user-id", "a", "--room-id", ""], "--room-id"),
        (["token", "--user-id", "a", "--expire-time", "0"], "86400"),
        (["token", "--user-id", "a", "--expire-time", "86401"], "86400"),
        (["token", "--user-id", "a", "--expire-time", "-5"], "--expire-time"),
        (["token", "--user-id", "a", "--expire-time", "9" * 5000], "86400"),
        (["config", "--nonsense"], "--nonsense"),
    ],
)
def test_bad_usage_is_one_line_and_exit_2(argv: list[str], word: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert word in usage(argv, capsys)


@pytest.mark.parametrize("argv", [["--help"], ["serve", "--help"], ["token", "--help"], ["config", "--help"]])
def test_every_command_has_help(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(argv)
    assert caught.value.code == 0
    assert "usage:" in capsys.readouterr().out


def test_a_token_made_here_verifies_with_the_configured_key(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FASTPRESENCE_AUTH_TOKEN_KEYS", f"k1:{SECRET}")
    argv = ["token", "--user-id", "kol_1", "--user-type", "kol", "--room-id", "r1", "--expire-time", "90"]
    assert main(argv) == 0
    out = capsys.readouterr().out
    claims = KEYS.verify(out.strip(), now=int(time.time()))
    assert (claims.user_id, claims.user_type, claims.room) == ("kol_1", "kol", "r1")
    assert claims.expires_at - claims.issued_at == 90


def test_a_token_is_for_a_user_and_an_hour_when_nothing_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FASTPRESENCE_AUTH_TOKEN_KEYS", f"k1:{SECRET}")
    assert main(["token", "--user-id", "a"]) == 0
    claims = KEYS.verify(capsys.readouterr().out.strip(), now=int(time.time()))
    assert (claims.user_type, claims.room, claims.expires_at - claims.issued_at) == ("user", None, 3600)


def test_a_user_type_that_is_not_configured_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FASTPRESENCE_AUTH_TOKEN_KEYS", f"k1:{SECRET}")
    assert "kol, user" in usage(["token", "--user-id", "a", "--user-type", "admin"], capsys)


@pytest.mark.parametrize("argv", [["token", "--user-id", "a"], ["serve"]])
def test_without_a_token_key_it_says_in_one_line_what_to_do(
    argv: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(argv) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert "FASTPRESENCE_AUTH_TOKEN_KEYS" in err


def test_every_fault_of_the_settings_is_a_line_of_its_own(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FASTPRESENCE_SERVER_PORT", "x")
    monkeypatch.setenv("FASTPRESENCE_NONSENSE", "x")
    assert main(["serve"]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert all(line.startswith("fastpresence: ") for line in lines)


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("FASTPRESENCE_AUTH_LOGIN_KEYS", "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----"),
        ("FASTPRESENCE_AUTH_LOGIN_JWKS_FILE", "/nonexistent/keys.json"),
        ("FASTPRESENCE_AUTH_LOGIN_JWKS_FILE", __file__),
    ],
)
def test_a_login_key_that_cannot_be_read_fails_the_start_in_one_line_that_names_its_setting(
    variable: str, value: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FASTPRESENCE_AUTH_TOKEN_KEYS", f"k1:{SECRET}")
    monkeypatch.setenv(variable, value)
    assert main(["serve"]) == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    name = variable.removeprefix("FASTPRESENCE_AUTH_").lower()
    assert err.startswith(f"fastpresence: auth.{name}: ")


def test_the_tour_is_not_given_a_key_that_outlives_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FASTPRESENCE_AUTH_API_KEYS", SECRET)
    assert main(["serve", "--dev", "--tour"]) == 1
    assert "--tour" in capsys.readouterr().err


def test_config_shows_every_setting_its_place_and_no_secret(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "f.toml"
    file.write_text("[presence]\nuser_types = ['kol', 'user', 'guest']\n")
    monkeypatch.setenv("FASTPRESENCE_AUTH_TOKEN_KEYS", f"k1:{SECRET}")
    monkeypatch.setenv("FASTPRESENCE_REDIS_URL", f"redis://:{SECRET}@host")
    assert main(["config", "--config", str(file)]) == 0
    out = capsys.readouterr().out
    assert SECRET not in out
    lines = {line.split("=")[0].strip(): line for line in out.splitlines()}
    assert len(lines) == 45
    assert '["kol","user","guest"]' in lines["presence.user_types"]
    assert lines["presence.user_types"].endswith(f"# {file}")
    assert '["k1:***"]' in lines["auth.token_keys"]
    assert lines["auth.token_keys"].endswith("# environment FASTPRESENCE_AUTH_TOKEN_KEYS")
    assert lines["server.port"].endswith("# default")


def test_config_of_a_dev_run_says_what_dev_would_make(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "--dev"]) == 0
    assert re.search(r'auth\.token_keys += \["dev:\*\*\*"\] +# --dev', capsys.readouterr().out)


def test_output_that_nobody_reads_is_no_traceback() -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "fastpresence", "config"],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout
    process.stdout.close()
    assert process.wait(DEADLINE) in (0, 1)
    assert process.stderr
    assert process.stderr.read() == ""
    process.stderr.close()


# The server itself, with the supervisor's stub in the place of its worker.

SERVE = """
import sys
import fastpresence.cli as cli, fastpresence.node.supervisor as supervisor
stub, tour = sys.argv[1:3]
supervisor.module_argv = lambda m: [sys.executable, "-c", tour] if m == cli.TOUR else [sys.executable, stub, "serve"]
sys.exit(cli.main(sys.argv[3:]))
"""


class Served:
    """A `serve` process and what it printed."""

    def __init__(self, *argv: str, tour: str = "", env: dict[str, str] | None = None) -> None:
        stub = str(ROOT / "tests/support/dying_worker.py")
        self.process = subprocess.Popen(
            [sys.executable, "-c", SERVE, stub, tour, "serve", *argv],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT), "FASTPRESENCE_ADMIN_PORT": "0", **(env or {})},
        )  # fmt: skip
        self.out = ""
        self._changed = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout
        for line in self.process.stdout:
            with self._changed:
                self.out += line
                self._changed.notify_all()

    def until(self, text: str) -> str:
        with self._changed:
            assert self._changed.wait_for(lambda: text in self.out, DEADLINE), self.out
            return self.out

    def end(self) -> tuple[int, str]:
        """Its exit status, and what it logged."""
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGINT)
        status = self.process.wait(DEADLINE)
        self._reader.join(DEADLINE)
        assert self.process.stderr
        assert self.process.stdout
        self.process.stdout.close()
        with self.process.stderr as stream:
            return status, stream.read()


@pytest.fixture
def dev() -> Iterator[Served]:
    served = Served("--dev", "--port", "0")
    yield served
    if not served.process.stderr or not served.process.stderr.closed:
        served.end()


def test_dev_prints_the_keys_it_made_and_commands_with_real_tokens(dev: Served) -> None:
    out = dev.until("Ctrl-C")
    key = re.search(r"token key +(dev):(\S{32,})", out)
    assert key
    ring = TokenKeys([TokenKey(key[1], key[2])])
    tokens = re.findall(r"FASTPRESENCE_TOKEN=(\S+) \S*python\S* -m fastpresence.client ws://127.0.0.1:\d+/ws", out)
    now = int(time.time())
    said = [ring.verify(token, now=now) for token in tokens]
    assert {(claims.user_id, claims.user_type) for claims in said} == {("demo_host", "kol"), ("demo_user", "user")}
    assert all(claims.expires_at - now > 80_000 for claims in said)
    api_key = re.search(r"API key +(\S+)", out)
    assert api_key
    assert f"Bearer {api_key[1]}" in out
    assert "--online busy" in out


def test_dev_makes_an_admin_key_and_prints_a_command_that_shows_a_timeline(dev: Served) -> None:
    out = dev.until("Ctrl-C")
    key = re.search(r"admin key +(\S{32})", out)
    assert key
    command = re.search(r"curl -s http://127\.0\.0\.1:(\d+)(/api/users/demo_host/timeline) -H '(.*)'", out)
    assert command
    assert command[3] == f"Authorization: Bearer {key[1]}"
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", int(command[1]), timeout=DEADLINE)) as connection:
        connection.request("GET", command[2], headers={"Authorization": f"Bearer {key[1]}"})
        assert json.loads(connection.getresponse().read()) == {"user_id": "demo_host", "timeline": []}


def test_without_an_admin_face_dev_prints_no_command_for_it() -> None:
    served = Served("--dev", "--port", "0", env={"FASTPRESENCE_ADMIN_ENABLED": "false"})
    out = served.until("Ctrl-C")
    assert "timeline" not in out
    assert served.end()[0] == 0


def test_a_taken_admin_port_that_somebody_chose_is_one_line_and_exit_1() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        served = Served("--dev", "--port", "0", "--admin-port", str(port))
        assert served.process.wait(DEADLINE) == 1
        status, err = served.end()
    assert status == 1
    assert err.count("\n") == 1
    assert f"port {port} is taken" in err
    assert "--admin-port" in err


def test_what_dev_prints_never_reaches_the_log(dev: Served) -> None:
    out = dev.until("Ctrl-C")
    status, log = dev.end()
    assert status == 0
    events = [json.loads(line) for line in log.splitlines()]
    assert [event["event"] for event in events] == ["admin listening", "listening", "stopping", "stopped"]
    for secret in re.findall(r"(?:dev:|API key +|admin key +|TOKEN=)(\S+)", out):
        assert secret not in log


def test_the_server_goes_on_when_the_tour_is_over() -> None:
    served = Served("--dev", "--tour", "--port", "0", tour="import sys; print('toured', *sys.argv[1:])")
    try:
        out = served.until("toured")
        assert re.search(r"toured --url ws://127.0.0.1:\d+/ws --api-key \S+", out)
        assert served.process.poll() is None
    finally:
        assert served.end()[0] == 0


def test_the_tour_ends_with_the_server() -> None:
    tour = "import os, signal; print('pid', os.getpid(), '', flush=True); signal.pause()"
    served = Served("--dev", "--tour", "--port", "0", tour=tour)
    pid = int(re.findall(r"pid (\d+) ", served.until("pid "))[0])
    fd = os.pidfd_open(pid)
    try:
        assert served.end()[0] == 0
        import select

        assert select.select([fd], [], [], DEADLINE)[0]
    finally:
        os.close(fd)


def test_a_setting_without_effect_is_told_in_the_log() -> None:
    served = Served("--dev", "--port", "0", "--workers", "3", "--redis-url", "redis://localhost")
    served.until("Ctrl-C")
    _, log = served.end()
    reasons = [event["reason"] for event in map(json.loads, log.splitlines()) if "reason" in event]
    assert [reason.partition(" ")[0] for reason in reasons] == ["redis.url", "server.workers"]


def test_a_taken_port_is_one_line_and_exit_1(dev: Served) -> None:
    port = re.findall(r"ws://127.0.0.1:(\d+)/ws", dev.until("Ctrl-C"))[0]
    second = Served("--dev", "--port", port)
    assert second.process.wait(DEADLINE) == 1
    status, err = second.end()
    assert status == 1
    assert err.count("\n") == 1
    assert f"port {port} is taken" in err


def test_python_m_fastpresence_is_the_same_program() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "fastpresence", "--version"], cwd=ROOT, capture_output=True, text=True, timeout=DEADLINE
    )
    assert done.returncode == 0
    assert done.stdout.startswith("fastpresence ")


def test_importing_the_package_costs_a_worker_nothing_of_the_client_or_of_joserfc() -> None:
    code = "import fastpresence, sys; print(sorted(m for m in sys.modules if m.startswith(('fastp', 'jose', 'msg'))))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=DEADLINE)
    assert done.stdout.strip() == "['fastpresence']"


def test_the_public_names_are_those_of_all() -> None:
    import fastpresence

    assert fastpresence.FastPresenceError.__module__ == "fastpresence.errors"
    assert set(fastpresence.__all__) <= set(dir(fastpresence))
    assert isinstance(fastpresence.__version__, str)
    with pytest.raises(AttributeError):
        _ = fastpresence.nonsense
