"""The instruction guard: what it reads, what it lets pass, what it compares with."""

import subprocess
from pathlib import Path

import pytest

from bench.guard import compare
from bench.guard.compare import judge, read_counts, waivers
from bench.guard.paths import CLOSING, PATHS, ROUNDS, prepared

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


def test_a_new_path_passes_and_one_that_is_gone_does_not() -> None:
    rows, worse = judge({"old": 100}, {"new": 100}, {})
    assert worse == ["old"]
    assert [row[-1] for row in rows] == ["new", "GONE"]


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


class Repository:
    """A git repository of one file, for which the guard's root stands."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.git("init", "-q", "-b", "main")

    def git(self, *words: str) -> str:
        identity = ["-c", "user.name=test", "-c", "user.email=test@localhost"]
        return subprocess.run(
            ["git", *identity, *words], cwd=self.folder, check=True, capture_output=True, text=True
        ).stdout.strip()

    def commit(self, text: str) -> str:
        (self.folder / "file").write_text(text)
        self.git("add", "file")
        self.git("commit", "-q", "-m", text)
        return self.git("rev-parse", "HEAD")


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Repository:
    monkeypatch.setattr(compare, "ROOT", tmp_path)
    return Repository(tmp_path)


def test_the_first_commit_has_nothing_to_be_compared_with(repository: Repository) -> None:
    repository.commit("one")
    assert compare.base_of_change() is None


def test_what_has_landed_is_compared_with_the_commit_before_it(repository: Repository) -> None:
    before = repository.commit("one")
    repository.commit("two")
    assert compare.base_of_change() == before


def test_a_branch_is_compared_with_where_it_left_main(repository: Repository) -> None:
    fork = repository.commit("one")
    repository.git("checkout", "-q", "-b", "change")
    repository.commit("two")
    repository.commit("three")
    assert compare.base_of_change() == fork


def test_changes_that_are_no_commit_yet_are_compared_with_the_last_one(repository: Repository) -> None:
    repository.commit("one")
    head = repository.commit("two")
    (repository.folder / "file").write_text("three")
    assert compare.base_of_change() == head


def test_a_shallow_clone_of_what_has_landed_has_nothing_to_be_compared_with(
    repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository.commit("one")
    repository.commit("two")
    clone = tmp_path / "clone"
    repository.git("clone", "-q", "--depth", "1", f"file://{repository.folder}", str(clone))
    monkeypatch.setattr(compare, "ROOT", clone)
    assert compare.base_of_change() is None


def test_a_folder_without_history_has_nothing_to_be_compared_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compare, "ROOT", tmp_path)
    assert compare.base_of_change() is None
