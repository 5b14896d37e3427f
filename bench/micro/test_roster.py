"""What do a change and a look at what changed cost in a roster, by how many there are and how many changed?

Unit: time an operation; entries are looked at, not made into messages (test_flush.py). Leaves out: sessions, and what
they add up to (test_presence.py).
"""

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from fastpresence.presence.roster import Counter, View

sizes = pytest.mark.parametrize("users", [1_000, 100_000])


class Item:
    """The least that a view holds."""

    __slots__ = ("version",)

    def __init__(self) -> None:
        self.version = 0


def filled(users: int) -> tuple[Counter, View[Item], list[tuple[str, Item]]]:
    counter = Counter()
    view: View[Item] = View(counter)
    items = [(f"user_{n}", Item()) for n in range(users)]
    for name, item in items:
        view.move(name, item, counter.next_version())
    return counter, view, items


@sizes
def test_change(benchmark: BenchmarkFixture, users: int) -> None:
    """One that is somewhere becomes the latest."""
    counter, view, items = filled(users)
    number = 0

    def change() -> None:
        nonlocal number
        number = (number + 7919) % users
        view.move(*items[number], counter.next_version())

    benchmark(change)


@sizes
@pytest.mark.parametrize("changed", [1, 16, 500])
def test_changes_since(benchmark: BenchmarkFixture, users: int, changed: int) -> None:
    """What changed has to matter, not what exists."""
    counter, view, items = filled(users)
    since = counter.version
    for name, item in items[:: users // changed][:changed]:
        view.move(name, item, counter.next_version())
    found = benchmark(view.changes_since, since)
    assert found is not None
    assert len(found) == changed
