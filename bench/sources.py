"""The sources that are measured: what git says of them, and whether the native build is theirs."""

import hashlib
import importlib.util
import subprocess
import tomllib
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Final

from bench.outcome import BenchError

__all__ = ["MEASURED", "ROOT", "commit", "git", "native_hash", "need_fresh_build"]

ROOT: Final = Path(__file__).resolve().parents[1]
#: What costs of the server can come from.
MEASURED: Final = ("fastpresence", "native", "pyproject.toml")


def git(*words: str) -> str:
    """What git prints of this repository. Raises BenchError, in git's words."""
    try:
        done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True)
    except OSError as error:
        raise BenchError(f"git is needed: {error.strerror} (Debian: apt-get install git)") from None
    except subprocess.CalledProcessError as error:
        raise BenchError(f"git {words[0]}: {error.stderr.strip()}") from None
    return done.stdout.strip()


def commit() -> str:
    """The commit in short; "+" when there are changes on top, "unknown" without git."""
    try:
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "--short", "HEAD") + ("+" if changed else "")
    except BenchError:
        return "unknown"


def native_hash() -> str:
    """Of the compiled modules, as they are loaded."""
    built = hashlib.sha256()
    for name in sorted(_modules()):
        built.update(_built(name).read_bytes())
    return built.hexdigest()[:12]


def need_fresh_build() -> None:
    """Raises BenchError where a source is newer than what was compiled from it: that would be measured instead."""
    for name, sources in _modules().items():
        built = _built(name)
        newer = [path for path in sources if (ROOT / path).stat().st_mtime > built.stat().st_mtime]
        if newer:
            raise BenchError(f"{newer[0]} is newer than {built.name}, which was built from it: pip install -e .")


def _modules() -> dict[str, list[str]]:
    """What each compiled module is made from."""
    told = tomllib.loads((ROOT / "pyproject.toml").read_text())
    return {each["name"]: each["sources"] + each["depends"] for each in told["tool"]["setuptools"]["ext-modules"]}


def _built(module: str) -> Path:
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None or not spec.origin.endswith(tuple(EXTENSION_SUFFIXES)):
        raise BenchError(f"{module} is not built: pip install -e .")
    return Path(spec.origin)
