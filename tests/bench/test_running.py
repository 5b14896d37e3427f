"""Running scenarios: what fails does not take the others with it, and what is stopped is seen."""

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from bench.__main__ import measure
from bench.histogram import edge_ns
from bench.load.driver import Swarm
from bench.load.servers import real
from bench.load.setting import Cpus, Setting
from bench.load.tokens import write_tokens
from bench.outcome import BenchError, Outcome
from bench.profiling import Profiler
from bench.results import Results


def whole(setting: Setting) -> Outcome:
    outcome = Outcome("whole", "What?", "nothing", "none")
    outcome.figure("cost", "µs CPU", [1.0])
    return outcome


def broken(setting: Setting) -> Outcome:
    raise BenchError("the server did not start")


def dead(setting: Setting) -> Outcome:
    raise BrokenPipeError(32, "Broken pipe")


@pytest.mark.parametrize(
    ("fails", "why"), [(broken, "it failed: the server did not start"), (dead, "it failed: BrokenPipeError: ")]
)
def test_a_scenario_that_fails_is_told_and_the_next_one_runs(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    fails: Callable[[Setting], Outcome],
    why: str,
) -> None:
    chosen = {"fails": (fails, "Does it?"), "whole": (whole, "What?")}
    assert measure(chosen, Cpus.allowed(), quick=True, folder=tmp_path) == 1
    (file,) = tmp_path.glob("*.jsonl")
    assert list(Results.read(file).scenarios) == ["fails", "whole"]
    assert f"FAULT: {why}" in capsys.readouterr().out


def test_when_nothing_could_be_measured_the_exit_code_is_2(tmp_path: Path) -> None:
    assert measure({"fails": (broken, "Does it?")}, Cpus.allowed(), quick=True, folder=tmp_path) == 2


STALL_S, RATE = 0.5, 200


def test_a_bystander_s_beats_stay_due_while_the_server_stands_still(tmp_path: Path) -> None:
    setting = Setting(Cpus.allowed(), tmp_path, quick=True)
    tokens = write_tokens(tmp_path / "tokens", ["bystander"])
    with real(setting, {}) as server:
        options = ["--present", "--rate", str(RATE)]
        with Swarm("pulse", server, setting.cpus, connections=1, tokens=tokens, options=options) as pulse:
            pulse.begin(1.5)
            os.kill(server.pid, signal.SIGSTOP)
            time.sleep(STALL_S)  # that long it answers nothing
            os.kill(server.pid, signal.SIGCONT)
            run = pulse.result(60)
    assert run.histogram is not None
    slow = sum(count for index, count in run.histogram.buckets if edge_ns(index) > STALL_S / 2 * 1e9)
    # Half of those that were due meanwhile waited for half of it: sent each after another, one would have.
    assert slow >= RATE * STALL_S / 4
    assert not run.faults()


@pytest.mark.skipif(not Path(sys.executable).with_name("py-spy").exists(), reason="py-spy is of the bench extra")
def test_a_profile_that_can_t_be_is_refused_before_anything_runs(tmp_path: Path) -> None:
    try:
        profiler = Profiler("fanout", tmp_path)
    except BenchError as error:
        pytest.skip(f"this machine does not allow it: {error}")
    with pytest.raises(BenchError, match=r"may not look at other processes: Error: .*No such file"):
        profiler.probe(2**22)  # nobody's: ids end before
