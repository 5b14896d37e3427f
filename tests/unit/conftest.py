"""Fixtures of the unit tests."""

from collections.abc import Iterator

import pytest

from tests.support.engine import MakeRig, Rig


@pytest.fixture
def make_rig() -> Iterator[MakeRig]:
    """Engines, whose connections must all be gone at the end of the test."""
    rigs: list[Rig] = []

    def make(**settings: int) -> Rig:
        rigs.append(Rig(**settings))
        return rigs[-1]

    yield make
    for rig in rigs:
        rig.on_event = None
        rig.end()


@pytest.fixture
def rig(make_rig: MakeRig) -> Rig:
    return make_rig()
