"""Counts the paths of two trees and says which one costs more. `python -m bench guard [--base REVISION]`

    change: the working tree                        base: the merge base with origin/main; where that is the change
                                                    itself (it has landed), the commit before it
    both are built in a folder of their own, with the same compiler and flags, and counted at the same time

More than the tolerance fails, unless a commit message between the two has a line that says why:

    Instructions: NAME: REASON
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from bench.guard.paths import ROUNDS
from bench.outcome import BenchError, table

__all__ = ["base_of_change", "guard", "judge", "read_counts", "waivers"]

HERE: Final = Path(__file__).resolve().parent
ROOT: Final = HERE.parents[1]
TOLERANCE: Final = 0.05
TIMEOUT_S: Final = 300
WAIVER: Final = re.compile(r"^Instructions: *(?P<name>[a-z-]+): *(?P<reason>\S.*)$", re.MULTILINE)
MAIN: Final = ("origin/main", "main")


def guard(base: str | None = None) -> int:
    """Prints the comparison. 0: nothing costs more, or what does is waived; 1: something does."""
    if shutil.which("valgrind") is None:
        raise BenchError("the guard counts with valgrind, which is not here (Debian: apt-get install valgrind)")
    revision = base or base_of_change()
    with tempfile.TemporaryDirectory(prefix="fastpresence-guard-") as name, ThreadPoolExecutor(2) as pool:
        folder = Path(name)
        marks = _marks(folder)
        trees = {"change": folder / "change", "base": folder / "base"}
        _copy_working_tree(trees["change"])
        if revision is None:
            print("no commit before this one is known here: counts only")
            del trees["base"]
        else:
            _check_out(revision, trees["base"])
        list(pool.map(_build, trees.values()))
        counts = dict(zip(trees, pool.map(lambda tree: _count(tree, marks), trees.values()), strict=True))
    if revision is None:
        print("\n".join(table(["path", "instructions"], [[n, f"{c:,.0f}"] for n, c in counts["change"].items()])))
        return 0
    waived = waivers(_git("log", "--format=%B", f"{revision}..HEAD"))
    rows, worse = judge(counts["base"], counts["change"], waived)
    print(f"instructions, base {_git('rev-parse', '--short', revision).strip()}, change {_name_of_change()}")
    print("\n".join(table(["path", "base", "change", "difference", ""], rows)))
    if worse:
        print(
            f"over the tolerance of {100 * TOLERANCE:.0f} %: {', '.join(worse)}. If that is meant, say so in a line of "
            f"a commit message: Instructions: {worse[0]}: REASON"
        )
    return int(bool(worse))


def judge(
    base: dict[str, float], change: dict[str, float], waived: dict[str, str]
) -> tuple[list[list[str]], list[str]]:
    """Rows of the table, and the paths that cost too much without a reason."""
    rows, worse = [], []
    for name, count in change.items():
        before = base.get(name)
        if before is None:
            rows.append([name, "-", f"{count:,.0f}", "-", "new"])
            continue
        difference = count / before - 1
        word = ""
        if difference > TOLERANCE:
            word = f"waived: {waived[name]}" if name in waived else "MORE"
            if name not in waived:
                worse.append(name)
        elif difference < -TOLERANCE:
            word = "less"
        rows.append([name, f"{before:,.0f}", f"{count:,.0f}", f"{100 * difference:+.1f} %", word])
    for name in base.keys() - change.keys():
        rows.append([name, f"{base[name]:,.0f}", "-", "-", "GONE"])
        if name not in waived:
            worse.append(name)
    return rows, worse


def waivers(messages: str) -> dict[str, str]:
    """Reasons by path, from commit messages."""
    return {found["name"]: found["reason"].strip() for found in WAIVER.finditer(messages)}


def read_counts(dumps: list[str]) -> dict[str, float]:
    """Instructions a round by path, from callgrind's dumps."""
    counts = {}
    for dump in dumps:
        trigger = re.search(r"^desc: Trigger: Client Request: (\S+)", dump, re.MULTILINE)
        totals = re.search(r"^(?:totals|summary): (\d+)", dump, re.MULTILINE)
        if trigger and totals:
            counts[trigger[1]] = int(totals[1]) / ROUNDS
    return counts


def _git(*words: str) -> str:
    return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout


def _revision(name: str) -> str | None:
    try:
        return _git("rev-parse", "--verify", "--quiet", f"{name}^{{commit}}").strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def base_of_change() -> str | None:
    """What to compare with; None when there is nothing before HEAD, or no history at all."""
    head = _revision("HEAD")
    for main in MAIN:
        if head is None or _revision(main) is None:
            continue
        try:
            found = _git("merge-base", "HEAD", main).strip()
        except subprocess.CalledProcessError:
            continue  # no common history: a shallow clone
        if found != head or _git("status", "--porcelain").strip():
            return found
        break
    return _revision("HEAD^")


def _name_of_change() -> str:
    return _git("rev-parse", "--short", "HEAD").strip() + ("+" if _git("status", "--porcelain").strip() else "")


def _copy_working_tree(to: Path) -> None:
    """Everything that is, or would be, part of a commit."""
    try:
        names = _git("ls-files", "-z", "--cached", "--others", "--exclude-standard").split("\0")
    except (OSError, subprocess.CalledProcessError):
        raise BenchError("the guard compares git trees, and this is none") from None
    for name in filter(None, names):
        if (ROOT / name).is_file():
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, to / name)


def _check_out(revision: str, to: Path) -> None:
    to.mkdir()
    archive = subprocess.run(["git", "archive", revision], cwd=ROOT, capture_output=True, check=True)
    subprocess.run(["tar", "-x"], cwd=to, input=archive.stdout, check=True)


def _build(tree: Path) -> None:
    """The native modules, in place."""
    result = subprocess.run(
        [sys.executable, "-c", "import setuptools; setuptools.setup()", "-q", "build_ext", "--inplace"],
        cwd=tree,
        capture_output=True,
        text=True,
    )
    if result.returncode:
        raise BenchError(f"{tree.name} does not build:\n{result.stderr[-2000:]}")


def _marks(folder: Path) -> Path:
    library = folder / "marks.so"
    command = ["cc", "-O2", "-shared", "-fPIC", "-o", str(library), str(HERE / "marks.c")]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        raise BenchError(f"cc could not build the guard's marks (valgrind's headers?):\n{result.stderr}")
    return library


def _count(tree: Path, marks: Path) -> dict[str, float]:
    """Run the paths of this tree beneath callgrind."""
    dumps = tree / "callgrind.out"
    command = [
        *(["setarch", "--addr-no-randomize"] if shutil.which("setarch") else []),
        *("valgrind", "--tool=callgrind", "--instr-atstart=no", f"--callgrind-out-file={dumps}", "--quiet"),
        *(sys.executable, str(HERE / "paths.py"), str(marks)),
    ]
    # The same environment on either side, down to its length: it is on the stack. PYTHONPATH comes before an editable
    # install; without PYTHONSAFEPATH the folder of the script would as well.
    env = {
        "PATH": os.environ.get("PATH", ""),
        "PYTHONPATH": str(tree).ljust(200, "/"),
        "PYTHONHASHSEED": "0",
        "PYTHONSAFEPATH": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    result = subprocess.run(command, cwd=tree, env=env, capture_output=True, text=True, timeout=TIMEOUT_S)
    if result.returncode or "done" not in result.stdout:
        raise BenchError(f"the paths of {tree.name} did not run:\n{(result.stdout + result.stderr)[-2000:]}")
    for line in result.stdout.splitlines():
        if line.startswith("missing"):
            print(f"{tree.name}: {line}")
    return read_counts([path.read_text() for path in sorted(tree.glob("callgrind.out.*"))])
