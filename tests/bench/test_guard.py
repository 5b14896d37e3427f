"""The instruction guard: what it reads, what it lets pass, what it compares with."""

import subprocess
import sys
from pathlib import Path

import pytest

from bench import sources
from bench.guard import paths
from bench.guard.compare import base_of_change, judge, read_counts, waivers
from bench.guard.paths import CLOSING, PATHS, ROUNDS, prepared
from bench.outcome import BenchError

DUMP = """# callgrind format
version: 1
desc: Trigger: Client Request: {name}
events: Ir
summary: {total}
"""


def test_counts_are_instructions_a_round_by_name() -> None:
    dumps = [DUMP.format(name="wheel", total=1000 * ROUNDS), DUMP.format(name="token", total=5 * ROUNDS)]
    assert read_counts(dumps) == {"wheel": 1000, "token": 5}


def test_a_dump_without_a_name_is_none_of_ours() -> None:
    assert read_counts(["desc: Trigger: Program termination\ntotals: 5\n"]) == {}


def test_more_than_the_tolerance_fails_and_less_does_not() -> None:
    rows, worse = judge({"a": 100, "b": 100, "c": 100}, {"a": 104, "b": 106, "c": 50}, {})
    assert worse == ["b"]
    assert [row[-1] for row in rows] == ["", "MORE", "less"]


def test_a_reason_waives_what_it_names_and_nothing_else() -> None:
    rows, worse = judge({"a": 100, "b": 100}, {"a": 200, "b": 200}, {"a": "it checks more"})
    assert worse == ["b"]
    assert rows[0][-1] == "waived: it checks more"


def test_a_new_path_is_not_compared_and_one_that_does_not_run_any_more_fails() -> None:
    rows, worse = judge({"new": None, "gone": 100}, {"new": 100, "newer": 100, "gone": None}, {})
    assert worse == ["gone"]
    assert [row[-1] for row in rows] == ["new, not compared", "new, not compared", "DOES NOT RUN"]


def test_a_path_that_does_not_run_any_more_can_be_waived() -> None:
    rows, worse = judge({"gone": 100}, {"gone": None}, {"gone": "there is no such thing any more"})
    assert worse == []
    assert rows[0][-1] == "waived: there is no such thing any more"


def test_a_waiver_is_a_line_of_a_commit_message_with_a_reason() -> None:
    message = "Flush: one more check\n\nInstructions: flush: entries are checked twice now\nInstructions: wheel:\n"
    assert waivers(message) == {"flush": "entries are checked twice now"}


def test_every_path_runs_twice() -> None:
    with CLOSING:
        ran = dict(prepared())
        assert list(ran) == list(PATHS)
        for path in ran.values():
            path()
            path()


def test_a_path_whose_call_fails_is_told_and_the_others_go_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def missing() -> None:
        raise AttributeError("no such call in this revision")

    called: list[str] = []
    monkeypatch.setattr(paths, "PATHS", {"new": lambda: missing, "old": lambda: lambda: called.append("old")})
    monkeypatch.setattr(sys, "argv", ["paths.py", str(marks(tmp_path))])
    paths.main()
    assert capsys.readouterr().out.splitlines() == [
        "missing new AttributeError('no such call in this revision')",
        "done",
    ]
    assert len(called) > ROUNDS


def marks(folder: Path) -> Path:
    """The guard's marks without valgrind's header: outside of valgrind they do nothing."""
    words = "void mark_on(void) {} void mark_begin(void) {} void mark_end(const char *name) { (void)name; }"
    (folder / "marks.c").write_text(words)
    library = folder / "marks.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", str(library), str(folder / "marks.c")], check=True)
    return library


class Repository:
    """A git repository that stands for ours."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        self.git("init", "-q", "-b", "main")

    def git(self, *words: str) -> str:
        identity = ["-c", "user.name=test", "-c", "user.email=test@localhost"]
        return subprocess.run(
            ["git", *identity, *words], cwd=self.folder, check=True, capture_output=True, text=True
        ).stdout.strip()

    def write(self, name: str, text: str) -> None:
        (self.folder / name).parent.mkdir(exist_ok=True)
        (self.folder / name).write_text(text)

    def commit(self, text: str, name: str = "native/file") -> str:
        self.write(name, text)
        self.git("add", name)
        self.git("commit", "-q", "-m", text)
        return self.git("rev-parse", "HEAD")


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Repository:
    monkeypatch.setattr(sources, "ROOT", tmp_path / "repository")
    return Repository(tmp_path / "repository")


def test_the_first_commit_has_nothing_to_be_compared_with(repository: Repository) -> None:
    repository.commit("one")
    base, why = base_of_change(None)
    assert base is None
    assert why.startswith("NOTHING IS COMPARED")


def test_what_has_landed_is_compared_with_the_commit_before_it(repository: Repository) -> None:
    before = repository.commit("one")
    repository.commit("two")
    base, why = base_of_change(None)
    assert base == before
    assert before[:7] in why


def test_a_branch_is_compared_with_where_it_left_main(repository: Repository) -> None:
    fork = repository.commit("one")
    repository.git("checkout", "-q", "-b", "change")
    repository.commit("two")
    repository.commit("three")
    assert base_of_change(None)[0] == fork


@pytest.mark.parametrize("name", ["native/file", "native/untracked", "fastpresence/untracked", "pyproject.toml"])
def test_changes_that_are_no_commit_yet_are_compared_with_the_last_one(repository: Repository, name: str) -> None:
    repository.commit("one")
    head = repository.commit("two")
    repository.write(name, "three")
    assert base_of_change(None)[0] == head


def test_a_file_that_costs_nothing_is_no_difference(repository: Repository) -> None:
    before = repository.commit("one")
    repository.commit("two")
    repository.write("docs/untracked", "three")
    assert base_of_change(None)[0] == before


def test_a_base_may_be_named(repository: Repository) -> None:
    first = repository.commit("one")
    repository.commit("two")
    repository.commit("three")
    assert base_of_change("HEAD~2")[0] == first
    with pytest.raises(BenchError, match="no commit 'nosuch'"):
        base_of_change("nosuch")


def test_a_base_with_the_same_sources_is_nothing_to_compare_with(repository: Repository) -> None:
    before = repository.commit("one")
    repository.commit("words", "README.md")
    base, why = base_of_change(None)
    assert base is None
    assert why.startswith("NOTHING IS COMPARED")
    assert before[:7] in why


def test_a_shallow_clone_of_what_has_landed_has_nothing_to_be_compared_with(
    repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository.commit("one")
    repository.commit("two")
    clone = tmp_path / "clone"
    repository.git("clone", "-q", "--depth", "1", f"file://{repository.folder}", str(clone))
    monkeypatch.setattr(sources, "ROOT", clone)
    base, why = base_of_change(None)
    assert base is None
    assert why == "NOTHING IS COMPARED, these are counts only: no commit before HEAD is known here"


def test_a_folder_without_history_is_told_in_git_s_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "ROOT", tmp_path)
    assert base_of_change(None)[0] is None
    with pytest.raises(BenchError, match="not a git repository"):
        sources.git("log")
