"""The stamp of a machine: the same for the same machine, another one for another."""

import msgspec
import pytest

from bench.load.setting import Cpus
from bench.machine import Machine, cpu_name

HERE = Machine.here(Cpus(0, 1, 2))

AMD = "model name\t: AMD EPYC\ncpu family\t: 26\nmodel\t\t: 2\nstepping\t: 1\ncpu MHz\t\t: {mhz}\n"
INTEL = "model name\t: Intel(R) Xeon(R) CPU @ {mhz}MHz\ncpu family\t: 6\nmodel\t\t: {model}\nstepping\t: 7\n"


@pytest.mark.parametrize("told", [AMD, INTEL])
def test_the_name_of_a_cpu_does_not_change_with_its_clock(told: str) -> None:
    assert cpu_name(told.format(mhz="2596.1", model=85)) == cpu_name(told.format(mhz="3000.0", model=85))


def test_two_models_of_one_name_are_told_apart() -> None:
    assert cpu_name(INTEL.format(mhz="2000", model=85)) == "Intel Xeon (6-85-7)"
    assert cpu_name(INTEL.format(mhz="2000", model=106)) == "Intel Xeon (6-106-7)"


def test_a_cpu_without_a_name_has_one() -> None:
    assert "0xd0c" in cpu_name("processor\t: 0\nCPU part\t: 0xd0c\n")


def test_who_runs_where_and_before_whom_is_a_part_of_the_machine() -> None:
    assert HERE.settings["pinned"] == "server to CPU 0, swarm to CPU 1"
    assert HERE.settings["priority"] in ("session -15", "none")
    moved = msgspec.structs.replace(HERE, settings=HERE.settings | {"pinned": "elsewhere"})
    assert moved.unlike(HERE) == ["pinned: server to CPU 0, swarm to CPU 1, now elsewhere"]
    assert HERE.unlike(HERE) == []


def test_the_stamp_has_the_native_build_and_the_rivals_that_are_here() -> None:
    assert len(HERE.versions["native build"]) == 12
    for rival in ("picows", "websockets"):
        assert HERE.versions[rival][0].isdigit()


def test_our_own_build_is_no_version_that_was_exchanged_but_a_rival_is() -> None:
    older = msgspec.structs.replace(HERE, versions=HERE.versions | {"native build": "another", "picows": "1.0"})
    assert HERE.newer_versions(older) == [f"picows: 1.0, now {HERE.versions['picows']}"]
    gone = msgspec.structs.replace(HERE, versions={k: v for k, v in HERE.versions.items() if k != "picows"})
    assert gone.newer_versions(older) == ["picows: 1.0, now None"]
