"""Views, stamps, retention and cursors: what changed since, and when only everything will do."""

import pytest

from fastpresence.presence.roster import (
    PUBLIC_SCOPE,
    UNLISTED,
    Counter,
    Record,
    Roster,
    View,
    make_cursor,
    read_cursor,
    room_scope,
    toggled_scope,
    union_scope,
    watch_scope,
)
from fastpresence.presence.sessions import Now

RETENTION_MS = 300_000
WALL_US = 1_640_995_200_000_000


class Item:
    def __init__(self, name: str) -> None:
        self.name = name
        self.version = UNLISTED


def names(items: list[Item] | None) -> list[str] | None:
    return None if items is None else [item.name for item in items]


@pytest.fixture
def counter() -> Counter:
    return Counter()


@pytest.fixture
def view(counter: Counter) -> View[Item]:
    return View(counter)


def change(view: View[Item], counter: Counter, name: str) -> None:
    view.move(name, view.get(name) or Item(name), counter.next_version())


def test_what_changed_comes_oldest_first_and_each_once(view: View[Item], counter: Counter) -> None:
    for name in "abcab":
        change(view, counter, name)
    assert names(view.changes_since(0)) == ["c", "a", "b"]
    assert names(view.changes_since(3)) == ["a", "b"]
    assert names(view.changes_since(4)) == ["b"]
    assert names(view.changes_since(5)) == []


def test_a_version_from_the_future_is_none_of_ours(view: View[Item], counter: Counter) -> None:
    change(view, counter, "a")
    assert view.changes_since(2) is None


def test_a_change_elsewhere_makes_a_cursor_newer_and_no_answer_longer(view: View[Item], counter: Counter) -> None:
    change(view, counter, "a")
    counter.next_version()
    assert names(view.changes_since(2)) == []


def test_a_cursor_below_the_dropped_item_needs_everything_and_one_at_it_does_not(
    view: View[Item], counter: Counter
) -> None:
    for name in "abc":
        change(view, counter, name)
    view.drop("b", 2)
    assert view.changes_since(1) is None
    assert names(view.changes_since(2)) == ["c"]


def test_the_floor_does_not_sink_when_an_older_item_is_dropped_later(view: View[Item], counter: Counter) -> None:
    for name in "abc":
        change(view, counter, name)
    view.drop("c", 3)
    view.drop("a", 1)
    assert view.floor == 3


def test_the_order_survives_ten_thousand_moves_and_keeps_no_more_than_twice_what_lives(
    view: View[Item], counter: Counter
) -> None:
    for step in range(10_000):
        change(view, counter, f"{step % 100}")
    assert names(view.changes_since(counter.version - 100)) == [f"{step % 100}" for step in range(9_900, 10_000)]
    assert len(view._items) == len(view._stamps) <= 2 * 100 + 32


def test_the_newest_version_never_goes_back_not_even_when_its_item_is_dropped_and_tidied_away(
    view: View[Item], counter: Counter
) -> None:
    assert view.newest == 0
    for step in range(100):
        change(view, counter, f"{step}")
    for step in range(99, 0, -1):
        item = view[f"{step}"]
        view.drop(f"{step}", item.version)
        item.version = UNLISTED
        assert view.newest == 100
    assert len(view._items) < 100


@pytest.mark.parametrize("pattern", ["round", "few", "skewed"])
def test_a_log_that_is_tidied_in_slices_answers_every_question_as_before(
    view: View[Item], counter: Counter, pattern: str
) -> None:
    count = 2_000
    for name in range(count):
        change(view, counter, f"{name}")
    latest = {f"{name}": name + 1 for name in range(count)}
    for step in range(3 * count):
        name = {"round": step % count, "few": step % 16, "skewed": (step * step) % count}[pattern]
        change(view, counter, f"{name}")
        latest[f"{name}"] = counter.version
        if step % 97 == 0:
            since = counter.version - step // 2
            expected = sorted((name for name in latest if latest[name] > since), key=latest.__getitem__)
            assert names(view.changes_since(since)) == expected
    assert len(view._items) <= 2.1 * count + 32


def test_one_who_changes_again_and_again_takes_one_place(view: View[Item], counter: Counter) -> None:
    change(view, counter, "b")
    for _ in range(1_000):
        change(view, counter, "a")
    assert len(view._items) == 2
    assert names(view.changes_since(counter.version - 1)) == ["a"]
    assert names(view.changes_since(0)) == ["b", "a"]


def test_an_item_that_was_dropped_is_never_told_of_again(view: View[Item], counter: Counter) -> None:
    for name in "abab":
        change(view, counter, name)
    item = view["a"]
    view.drop("a", item.version)
    item.version = UNLISTED
    assert names(view.changes_since(view.floor)) == ["b"]
    change(view, counter, "a")
    assert names(view.changes_since(view.floor)) == ["b", "a"]


# Pages.


def pages(view: View[Item], after: int, until: int, limit: int) -> tuple[list[str], int]:
    """All of them, one after the other, and how many there were."""
    found: list[str] = []
    for count in range(1, 10_000):
        items, reached = view.page(after, until, limit)
        assert len(items) <= limit
        assert after < reached <= until or (reached == until == after)
        found += [item.name for item in items]
        after = reached
        if reached == until:
            return found, count
    raise AssertionError("no end")


@pytest.mark.parametrize("limit", [1, 2, 3, 7, 100])
def test_pages_of_any_size_tell_what_one_question_tells(view: View[Item], counter: Counter, limit: int) -> None:
    for name in "ABCDEFGHCAHA":
        change(view, counter, name)
    for after in range(UNLISTED, counter.version):
        for until in range(max(after, 0), counter.version + 1):
            expected = [item.name for item in view.newer_than(after) if item.version <= until]
            assert pages(view, after, until, limit)[0] == expected, (after, until)


def test_a_page_that_is_full_says_where_to_go_on_and_the_last_one_that_it_is_done(
    view: View[Item], counter: Counter
) -> None:
    for name in "ABC":
        change(view, counter, name)
    assert (names(view.page(0, 3, 2)[0]), view.page(0, 3, 2)[1]) == (["A", "B"], 2)
    assert (names(view.page(2, 3, 2)[0]), view.page(2, 3, 2)[1]) == (["C"], 3)
    assert view.page(3, 3, 2) == ([], 3)
    # What changed after `until` is the next reading's.
    change(view, counter, "B")
    assert (names(view.page(0, 3, 2)[0]), view.page(0, 3, 2)[1]) == (["A", "C"], 3)


def test_a_page_of_a_log_that_is_mostly_dead_is_short_and_the_reading_goes_on(
    view: View[Item], counter: Counter
) -> None:
    change(view, counter, "first")
    for _ in range(30):  # two who take turns leave a dead entry each time
        change(view, counter, "A")
        change(view, counter, "B")
    found, count = pages(view, UNLISTED, counter.version, 2)
    assert found == ["first", "A", "B"]
    assert 3 <= count < 30


def test_pages_go_on_where_they_were_while_others_change_and_are_dropped(view: View[Item], counter: Counter) -> None:
    for number in range(1_000):
        change(view, counter, f"n{number}")
    until, after = counter.version, UNLISTED
    found: list[str] = []
    step = 0
    while after < until:
        items, after = view.page(after, until, 10)
        found += [item.name for item in items]
        for number in range(step, step + 20):  # some who were told already, some who were not
            change(view, counter, f"n{(number * 37) % 1_000}")
        step += 20
    assert len(found) == len(set(found))
    later = {item.name for item in view.newer_than(until)}
    assert set(found) | later == set(view)
    assert view.page(0, 0, 10) == ([], 0)


def test_rev_follows_the_wall_and_never_goes_back_with_it(counter: Counter) -> None:
    revs = [counter.next_rev(wall_us) for wall_us in (1_000, 1_000, 400, 5_000, 4_999)]
    assert revs == [1_000, 1_001, 1_002, 5_000, 5_001]


def roster_with(*ids: str, user_type: str = "kol", ms: int = 0) -> Roster:
    roster = Roster({"kol"}, RETENTION_MS)
    for user_id in ids:
        roster.change(roster.admit(user_id, user_type), "online", Now(ms, WALL_US))
    return roster


def test_only_public_types_are_in_the_public_view() -> None:
    roster = roster_with("kol_1")
    roster.change(roster.admit("user_1", "user"), "online", Now(0, WALL_US))
    assert list(roster.public) == ["kol_1"]
    assert list(roster.everyone) == ["kol_1", "user_1"]


def test_one_who_was_listed_publicly_stays_so_until_he_is_dropped() -> None:
    roster = roster_with("kol_1")
    record = roster.everyone["kol_1"]
    record.user_type = "user"
    roster.change(record, "offline", Now(0, WALL_US))
    assert [each.status for each in roster.public.changes_since(1) or ()] == ["offline"]


def test_an_offline_record_stays_for_the_retention_and_not_longer() -> None:
    roster = roster_with("kol_1", "kol_2")
    roster.change(roster.everyone["kol_1"], "offline", Now(1_000, WALL_US))
    roster.drop_expired(1_000 + RETENTION_MS - 1, 10)
    assert "kol_1" in roster.everyone
    roster.drop_expired(1_000 + RETENTION_MS, 10)
    assert "kol_1" not in roster.everyone
    assert "kol_1" not in roster.public
    assert roster.public.floor == roster.everyone.floor == 3
    assert roster.public.changes_since(2) is None


def test_one_who_comes_back_within_the_retention_is_not_dropped_at_its_end() -> None:
    roster = roster_with("kol_1")
    record = roster.everyone["kol_1"]
    roster.change(record, "offline", Now(1_000, WALL_US))
    roster.change(record, "online", Now(2_000, WALL_US))
    roster.drop_expired(1_000 + RETENTION_MS, 10)
    assert roster.find("kol_1") is record
    roster.change(record, "offline", Now(900_000, WALL_US))
    roster.drop_expired(900_000 + RETENTION_MS - 1, 10)
    assert roster.find("kol_1") is record
    roster.drop_expired(900_000 + RETENTION_MS, 10)
    assert roster.find("kol_1") is None


def test_dropping_a_crowd_is_done_in_portions_oldest_first() -> None:
    roster = roster_with(*(f"kol_{number}" for number in range(10)))
    for number, record in enumerate(list(roster.everyone.values())):
        roster.change(record, "offline", Now(number, WALL_US))
    roster.drop_expired(RETENTION_MS + 1_000, 4)
    assert list(roster.everyone) == [f"kol_{number}" for number in range(4, 10)]
    assert roster.everyone.floor == 14


def test_a_record_that_nobody_was_told_of_is_in_no_view_and_leaves_no_trace() -> None:
    roster = Roster({"kol"}, RETENTION_MS)
    record = roster.admit("kol_1", "kol")
    assert roster.find("kol_1") is record
    assert not roster.everyone
    assert roster.version == 0
    roster.release(record)
    assert roster.find("kol_1") is None


def test_an_entry_says_online_for_every_status_but_offline() -> None:
    record = Record("kol_1", "kol")
    assert not record.entry().online
    for record.status in ("online", "busy", "away"):
        assert record.entry().online
    assert record.entry(left=True).left


# Cursors.


def test_a_cursor_comes_back_as_the_version_it_stands_for() -> None:
    for version in (0, 1, 9, 10, 2**53):
        assert read_cursor(make_cursor("e1", PUBLIC_SCOPE, version), "e1", PUBLIC_SCOPE) == version


@pytest.mark.parametrize(
    "text",
    [
        "",
        "~",
        "~~",
        "e1",
        "e1~p",
        "e1~p~",
        "e2~p~5",
        "e1~r0~5",
        "e1~p~-5",
        "e1~p~05",
        "e1~p~5~",
        "e1~p~5.0",
        "e1~p~ 5",
        "e1~p~+5",
        "e1~p~5\n",
        "e1~p~٥",
        "e1~p~5_0",
        "e1~p~0x5",
        "p~e1~5",
        "E1~p~5",
        "e1~p~" + "9" * 250,
        "~" * 256,
    ],
)
def test_any_other_text_is_no_cursor_and_no_error(text: str) -> None:
    assert read_cursor(text, "e1", "p") is None


def test_cursors_are_made_of_the_characters_that_a_url_leaves_alone() -> None:
    allowed = set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_.~")
    for scope in (PUBLIC_SCOPE, room_scope("room:1@x"), watch_scope(["a@b", "c:d"])):
        cursor = make_cursor("deadbeef", scope, 2**53)
        assert set(cursor) <= allowed
        assert len(cursor) <= 256


def test_scopes_tell_rooms_and_sets_of_users_apart_and_not_their_order() -> None:
    assert room_scope("a") != room_scope("b")
    assert watch_scope(["a", "b"]) == watch_scope(["b", "a"]) == watch_scope(["b", "a", "b"])
    assert len({watch_scope(ids) for ids in (["a"], ["b"], ["a", "b"], ["ab"], [])}) == 5


def test_scopes_are_the_same_in_every_process() -> None:
    assert room_scope("room_456") == "rf92215fe4ef0c6ae"  # printf room_456 | b2sum -l 64
    assert watch_scope(["kol_123"]) == "wa013157f53fe0b6e"
    both = toggled_scope(watch_scope(["a"]), ["b", "c"])
    assert both == watch_scope(["a", "b", "c"])
    assert toggled_scope(both, ["a", "c"]) == watch_scope(["b"])
    assert toggled_scope(None, ["a"]) == watch_scope(["a"])


def test_the_scope_of_polls_is_that_of_all_it_names_and_of_which_rooms_are_crowded() -> None:
    assert union_scope([], []) == PUBLIC_SCOPE
    scopes = [
        union_scope(["a"], []),
        union_scope([], ["a"]),
        union_scope(["a", "b"], []),
        union_scope(["a"], ["b"]),
        union_scope(["a"], ["b"], ["a"]),
    ]
    assert len(set(scopes)) == len(scopes)
    assert union_scope(["a", "b"], ["c", "d"]) == union_scope(["b", "a", "b"], ["d", "c", "c"])
    assert all(scope.startswith(f"{PUBLIC_SCOPE}.") for scope in scopes)


def test_a_cursor_of_a_poll_stands_for_the_public_users_too_and_not_the_other_way_round() -> None:
    scope = union_scope(["a"], ["b"])
    assert read_cursor(make_cursor("e", scope, 7), "e", PUBLIC_SCOPE) == 7
    assert read_cursor(make_cursor("e", scope, 7), "e", scope) == 7
    assert read_cursor(make_cursor("e", PUBLIC_SCOPE, 7), "e", scope) is None
    assert read_cursor(make_cursor("x", scope, 7), "e", PUBLIC_SCOPE) is None
    assert read_cursor(make_cursor("e", scope.upper(), 7), "e", PUBLIC_SCOPE) is None
