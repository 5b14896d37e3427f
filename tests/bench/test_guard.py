"""The instruction guard: what it reads, what it lets pass."""

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
