"""Whether the native build is that of the sources, and what the stamp says of both."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench import sources
from bench.__main__ import main
from bench.outcome import BenchError
from bench.sources import native_hash, need_fresh_build

PYPROJECT = """
[[tool.setuptools.ext-modules]]
name = "fastpresence._native.wheel"
sources = ["native/wheel.pyx"]
depends = ["native/include/wheel.h"]
"""


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Sources as old as time, and a build of this minute: the real module's."""
    (tmp_path / "pyproject.toml").write_text(PYPROJECT)
    for name in ("native/wheel.pyx", "native/include/wheel.h"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (0, 0))
    monkeypatch.setattr(sources, "ROOT", tmp_path)
    return tmp_path


def test_a_build_after_its_sources_is_fresh(tree: Path) -> None:
    need_fresh_build()
    assert len(native_hash()) == 12


@pytest.fixture
def handlers() -> Iterator[None]:
    """The command sets handlers of its own."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("handlers")
@pytest.mark.parametrize("name", ["native/wheel.pyx", "native/include/wheel.h"])
def test_a_source_newer_than_its_build_is_named_and_nothing_is_measured(
    tree: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    os.utime(tree / name, (1 << 33, 1 << 33))
    with pytest.raises(BenchError, match=name):
        need_fresh_build()
    for words in (["run", "idle"], ["rivals"], ["scale"], ["micro"]):  # and `profile`, once it has its tools
        assert main([*words, "--results", str(tree)]) == 2
        assert f"{name} is newer than wheel." in capsys.readouterr().err


def test_a_module_that_was_never_built_is_named(tree: Path) -> None:
    (tree / "pyproject.toml").write_text(PYPROJECT.replace("wheel", "nosuch"))
    with pytest.raises(BenchError, match=r"fastpresence\._native\.nosuch is not built: pip install"):
        need_fresh_build()
