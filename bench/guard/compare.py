"""Counts the paths of two trees and says which one costs more: `python -m bench guard`.

    change  the working tree
    base    what --base or GUARD_BASE names; else where HEAD left the upstream main; where HEAD is a part of that (it
            has landed), HEAD if the working tree differs from it, the commit before HEAD if not
    Both are built in a folder of their own, with the same compiler and flags, and counted at the same time.

More than the tolerance fails, unless a commit message between the two has a line that says why:

    Instructions: NAME: REASON

Only what is measured makes trees differ (`sources.MEASURED`): without such a difference nothing is compared.
"""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from bench.guard.paths import PATHS, ROUNDS
from bench.load.build import library
from bench.load.setting import Setting
from bench.outcome import Bar, BenchError, Outcome
from bench.sources import MEASURED, ROOT, commit, git

__all__ = ["base_of_change", "differs", "guard", "judge", "read_counts", "waivers"]

PATHS_FILE: Final = Path(__file__).resolve().parent / "paths.py"
TOLERANCE: Final = 0.05
TIMEOUT_S: Final = 300
WAIVER: Final = re.compile(r"^Instructions: *(?P<name>[a-z-]+): *(?P<reason>\S.*)$", re.MULTILINE)
MAIN: Final = ("origin/main", "main")
NOTHING: Final = "NOTHING IS COMPARED, these are counts only:"


def guard(setting: Setting, *, base: str | None = None) -> Outcome:
    """Counts, and what became more. Raises BenchError where that can't be told."""
    if shutil.which("valgrind") is None:
        raise BenchError("the guard counts with valgrind, which is not here (Debian: apt-get install valgrind)")
    revision, why = base_of_change(base)
    outcome = Outcome(
        "guard",
        "How many instructions do the hot paths take, beside what this was made from?",
        "the kernel's, caches, and what a mispredicted branch costs",
        f"{ROUNDS} rounds of each beneath callgrind, change {commit()}; {why}",
        ["path", "base", "change", "difference", ""],
    )
    marks, steady = library("marks"), _steady()
    if not steady:
        outcome.notes.append("setarch -R is not to be had: addresses are others each time, and counts a little")
    trees = [setting.directory / "this"]  # as long as "base": paths of modules are in memory, and move what is behind
    _copy_working_tree(trees[0])
    if revision is not None:
        trees.append(setting.directory / "base")
        _check_out(revision, trees[1])
    with ThreadPoolExecutor(len(trees)) as pool:
        list(pool.map(_build, trees))
        counted = list(pool.map(lambda tree: _count(tree, marks, steady, outcome.notes), trees))
    waived = waivers(git("log", "--format=%B", f"{revision}..HEAD")) if revision else {}
    outcome.rows, worse = judge(counted[1] if revision else {}, counted[0], waived)
    for name, count in counted[0].items():
        outcome.figure(name, "instructions", [] if count is None else [count])
    text = f"every path runs, and none takes over {100 * TOLERANCE:.0f} % more than its base"
    outcome.bars.append(Bar(f"{text} (here {', '.join(worse) or 'none'})", not worse, by_time=False))
    if worse:
        outcome.notes.append(f"if that is meant, a line of a commit message says so: Instructions: {worse[0]}: REASON")
    return outcome


def judge(
    base: dict[str, float | None], change: dict[str, float | None], waived: dict[str, str]
) -> tuple[list[list[str]], list[str]]:
    """Rows of the table, and the paths that cost too much, or do not run any more, without a reason."""
    rows, worse = [], []
    for name, count in change.items():
        before = base.get(name)
        difference = count / before - 1 if count is not None and before is not None else None
        if count is None or (difference is not None and difference > TOLERANCE):
            word = "MORE" if count is not None else "DOES NOT RUN"
            if name in waived:
                word = f"waived: {waived[name]}"
            else:
                worse.append(name)
        elif difference is None:
            word = "new, not compared"
        else:
            word = "less" if difference < -TOLERANCE else ""
        cells = ["-" if each is None else f"{each:,.0f}" for each in (before, count)]
        rows.append([name, *cells, "-" if difference is None else f"{100 * difference:+.1f} %", word])
    return rows, worse


def waivers(messages: str) -> dict[str, str]:
    """Reasons by path, from commit messages."""
    return {found["name"]: found["reason"].strip() for found in WAIVER.finditer(messages)}


def read_counts(dumps: Sequence[str]) -> dict[str, float]:
    """Instructions a round by path, from callgrind's dumps."""
    counts = {}
    for dump in dumps:
        trigger = re.search(r"^desc: Trigger: Client Request: (\S+)", dump, re.MULTILINE)
        totals = re.search(r"^(?:totals|summary): (\d+)", dump, re.MULTILINE)
        if trigger and totals:
            counts[trigger[1]] = int(totals[1]) / ROUNDS
    return counts


def base_of_change(named: str | None) -> tuple[str | None, str]:
    """What to compare with, and a word for a person on why; None where there is nothing to compare.

    Raises BenchError for a name that git does not know here.
    """
    found, why = _find_base(named)
    if found is None:
        return None, f"{NOTHING} {why}"
    short = git("rev-parse", "--short", found)
    if not differs(found):
        return None, f"{NOTHING} {', '.join(MEASURED)} are those of the base {short} ({why})"
    return found, f"BASE {short}: {why}"


def _find_base(named: str | None) -> tuple[str | None, str]:
    if named is not None:
        found = _revision(named)
        if found is None:
            raise BenchError(f"there is no commit {named!r} here to be the guard's base (not fetched?)")
        return found, f"named as {named}"
    head = _revision("HEAD")
    for main in MAIN:
        fork = _revision(main) and _output("merge-base", "HEAD", main)
        if fork and fork != head:
            return fork, f"where HEAD left {main}"
        if fork:
            break
    if head and differs(head):
        return head, "HEAD, from which the working tree differs"
    return _revision("HEAD^"), "the commit before HEAD" if _revision("HEAD^") else "no commit before HEAD is known here"


def differs(revision: str) -> bool:
    """Whether what is measured is another one in the working tree, files that git does not know yet included."""
    changed = git("diff", "--name-only", revision, "--", *MEASURED)
    return bool(changed or git("ls-files", "--others", "--exclude-standard", "--", *MEASURED))


def _output(*words: str) -> str | None:
    """What git prints, or None where it says no."""
    try:
        return git(*words)
    except BenchError:
        return None


def _revision(name: str) -> str | None:
    return _output("rev-parse", "--verify", "--quiet", f"{name}^{{commit}}")


def _copy_working_tree(to: Path) -> None:
    """Everything that is, or would be, part of a commit."""
    for name in git("ls-files", "-z", "--cached", "--others", "--exclude-standard").split("\0"):
        if name and (ROOT / name).is_file():
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


def _steady() -> list[str]:
    """What gives a program the same addresses each time, where we may: in many a container we may not."""
    words = ["setarch", "-R"]
    try:
        return words if subprocess.run([*words, "true"], capture_output=True).returncode == 0 else []
    except OSError:
        return []


def _count(tree: Path, marks: Path, steady: list[str], notes: list[str]) -> dict[str, float | None]:
    """Run the paths of this tree beneath callgrind: instructions a round, None for one that does not run."""
    dumps = tree / "callgrind.out"
    command = [
        *(*steady, "valgrind", "--tool=callgrind", "--instr-atstart=no", f"--callgrind-out-file={dumps}", "--quiet"),
        *(sys.executable, str(PATHS_FILE), str(marks)),
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
    try:
        result = subprocess.run(command, cwd=tree, env=env, capture_output=True, text=True, timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired:
        raise BenchError(f"the paths of {tree.name} did not end within {TIMEOUT_S} s") from None
    if result.returncode or "done" not in result.stdout:
        raise BenchError(f"the paths of {tree.name} did not run:\n{(result.stdout + result.stderr)[-2000:]}")
    notes += [f"{tree.name}: {line}" for line in result.stdout.splitlines() if line.startswith("missing")]
    return dict.fromkeys(PATHS) | read_counts([path.read_text() for path in sorted(tree.glob("callgrind.out.*"))])
