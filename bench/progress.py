"""A bar on long runs: which scenario, which of its runs, how long it has taken. On a terminal only, and on stderr.

It draws twice a second, which costs the swarm's core next to nothing.
"""

import contextlib
import importlib.util
import sys
from collections.abc import Iterator
from typing import Any

__all__ = ["Progress"]


class Progress:
    """Told by the scenarios how many runs there are and which one begins. Silent unless it was `shown`."""

    def __init__(self) -> None:
        self._bars: Any = None
        self._scenario: Any = None
        self._all: Any = None

    @contextlib.contextmanager
    def shown(self, scenarios: int) -> Iterator[None]:
        """Show it while the context lasts, where somebody is looking and `rich` (the bench extra) is installed."""
        if not sys.stderr.isatty() or importlib.util.find_spec("rich") is None:
            yield
            return
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as Bars

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        console = Console(stderr=True)
        with Bars(*columns, console=console, refresh_per_second=2, transient=True, redirect_stdout=True) as self._bars:
            self._all = self._bars.add_task("scenarios", total=scenarios)
            self._scenario = self._bars.add_task("", total=None, visible=False)
            try:
                yield
            finally:
                self._bars = None

    def scenario(self, name: str) -> None:
        """A scenario begins."""
        if self._bars is not None:
            self._bars.reset(self._scenario, description=name, total=None, visible=True)

    def expect(self, runs: int) -> None:
        """So many runs more are to come."""
        if self._bars is not None:
            task = self._bars.tasks[self._scenario]
            self._bars.update(self._scenario, total=(task.total or 0) + runs)

    def ran(self) -> None:
        """One run is over."""
        if self._bars is not None:
            self._bars.advance(self._scenario)

    def ended(self) -> None:
        """The scenario is over."""
        if self._bars is not None:
            self._bars.update(self._scenario, visible=False)
            self._bars.advance(self._all)
