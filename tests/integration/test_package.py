"""The package as others get it: sdist and wheel, built without the network, and the wheel at work somewhere else."""

import asyncio
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path, PurePosixPath

import pytest

from tests.support.clients import Clients
from tests.support.server import Server

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[2]
EXTENSIONS = {"engine", "framing", "wheel"}
NOT_SOURCE = shutil.ignore_patterns(
    ".git", "build", "dist", ".*_cache", "__pycache__", "*.egg-info", "*.so", ".hypothesis", ".benchmarks", "results"
)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with an sdist, and the wheel that was built from it, of a tree as it is after a clone."""
    tree, out = tmp_path_factory.mktemp("tree") / "clone", tmp_path_factory.mktemp("dist")
    shutil.copytree(ROOT, tree, ignore=NOT_SOURCE)
    subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(tree)],
        check=True,
        stdout=subprocess.DEVNULL,
        cwd=out,
    )
    # The build leaves no generated C among the sources.
    assert not {path.stem for path in (tree / "native").glob("*.c")}
    assert not list((tree / "fastpresence").rglob("*.so"))
    return out


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    return next(built.glob("*.whl"))


def in_sdist(built: Path) -> set[str]:
    with tarfile.open(next(built.glob("*.tar.gz"))) as archive:
        return {name.partition("/")[2] for name in archive.getnames()}


def in_wheel(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def sources(*patterns: str) -> set[str]:
    found = {path.relative_to(ROOT).as_posix() for pattern in patterns for path in ROOT.glob(pattern)}
    return {path for path in found if "__pycache__" not in path}


def test_the_sdist_has_every_source_and_nothing_that_was_made_of_them(built: Path) -> None:
    names = in_sdist(built)
    wanted = sources(
        "fastpresence/**/*.py", "fastpresence/**/*.pyi", "native/*.pyx", "native/kernel/*.c", "native/include/*.h"
    )
    assert wanted
    assert wanted <= names
    assert {"pyproject.toml", "README.md", "LICENSE", "fastpresence/py.typed"} <= names
    assert not {name for name in names if name.endswith((".so", ".o", ".pyc"))}
    generated = {f"native/{name}.c" for name in EXTENSIONS} | {f"fastpresence/_native/{name}.c" for name in EXTENSIONS}
    assert not generated & names


def test_the_wheel_has_the_package_its_faces_and_its_extensions_and_nothing_else(wheel: Path) -> None:
    names = in_wheel(wheel)
    assert sources("fastpresence/**/*.py", "fastpresence/**/*.pyi") <= names
    assert "fastpresence/py.typed" in names
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    assert {f"fastpresence/_native/{name}{suffix}" for name in EXTENSIONS} <= names
    assert {PurePosixPath(name).parts[0] for name in names if ".dist-info/" not in name} == {"fastpresence"}
    kinds = {PurePosixPath(name).suffix for name in names if ".dist-info/" not in name}
    assert kinds == {".py", ".pyi", ".so", ".typed"}
    assert any(re.search(r"\.dist-info/(licenses/)?LICENSE$", name) for name in names)


def test_the_wheel_says_what_it_needs_and_what_it_brings(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        metadata = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        text = archive.read(metadata).decode()
        entry_points = archive.read(metadata.replace("METADATA", "entry_points.txt")).decode()
    assert "Requires-Python: >=3.11" in text
    assert "License-Expression: MIT" in text
    assert "fastpresence = fastpresence.cli:main" in entry_points
    needs = set(re.findall(r"^Requires-Dist: ([A-Za-z0-9_-]+)[^;\n]*$", text, re.MULTILINE))
    assert needs == {"uvloop", "msgspec", "picows", "httptools", "joserfc"}


def test_the_installed_wheel_serves_from_another_directory(wheel: Path, tmp_path: Path) -> None:
    home = tmp_path / "venv"
    venv.create(home, with_pip=False, symlinks=True)
    python = str(home / "bin/python")
    subprocess.run(
        [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index", str(wheel)],
        check=True,
    )
    installed = Path(
        subprocess.check_output(
            [python, "-c", "import sysconfig; print(sysconfig.get_path('platlib'))"], text=True
        ).strip()
    )
    # What it depends on is taken from here, so that nothing is downloaded; of the package itself nothing is.
    (installed / "dependencies.pth").write_text(f"{sysconfig.get_path('platlib')}\n")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    code = "import fastpresence._native.engine as e, fastpresence.client, fastpresence.worker.main; print(e.__file__)"
    assert subprocess.check_output([python, "-c", code], cwd=elsewhere, text=True).startswith(str(home))
    version = subprocess.run([home / "bin/fastpresence", "--help"], cwd=elsewhere, capture_output=True, text=True)
    assert version.returncode == 0
    assert "serve" in version.stdout

    async def story(server: Server) -> None:
        async with Clients(server) as clients:
            host = await clients.online("kol_1", "kol", status="busy", codec="msgpack")
            watcher = await clients.connect("user_1")
            assert watcher.view.status("kol_1") == "busy"
            await host.do("user_offline")
            await watcher.sees("kol_1", "offline")

    with Server(python=python, cwd=elsewhere) as server:
        asyncio.run(story(server))
