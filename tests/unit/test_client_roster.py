"""The client's copy of the roster: fences, full answers, scopes, rooms, cursors."""

import pytest

from fastpresence.client import roster as roster_module
from fastpresence.client.roster import RosterCopy
from fastpresence.messages import Status, StatusEntry, UserOnlineStatus


def entry(
    user_id: str, status: Status = "online", rev: int = 1, *, left: bool = False, user_type: str = "kol"
) -> StatusEntry:
    return StatusEntry(user_id, user_type, status, status != "offline", 1_700_000_000, rev, left)


def full(*entries: StatusEntry, more: bool = False, cursor: str = "c1", room: str | None = None) -> UserOnlineStatus:
    if more:
        return UserOnlineStatus(list(entries), full=True, more=True, room=room)
    return UserOnlineStatus(list(entries), full=True, cursor=cursor, room=room)


def delta(*entries: StatusEntry, cursor: str = "c2", room: str | None = None) -> UserOnlineStatus:
    return UserOnlineStatus(list(entries), full=False, cursor=cursor, room=room)


def shows(copy: RosterCopy) -> dict[str, str]:
    return {user_id: held.status for user_id, held in copy.entries.items()}


@pytest.fixture
def copy() -> RosterCopy:
    copy = RosterCopy()
    copy.connected("epoch 1")
    return copy


def test_nobody_is_known_at_first_and_everybody_offline_with_rev_0(copy: RosterCopy) -> None:
    nobody = copy.status_of("kol_1")
    assert (nobody.status, nobody.online, nobody.rev, nobody.last_seen) == ("offline", False, 0, None)


def test_a_lower_rev_is_refused_and_an_equal_one_is_taken(copy: RosterCopy) -> None:
    copy.take(full(entry("kol_1", "online", 5)))
    assert copy.take(delta(entry("kol_1", "offline", 4))) == []
    assert copy.status_of("kol_1").status == "online"
    copy.take(delta(entry("kol_1", "busy", 5)))
    assert copy.status_of("kol_1").status == "busy"


def test_rev_0_always_wins(copy: RosterCopy) -> None:
    copy.take(full(entry("kol_1", "online", 5)))
    (change,) = copy.take(delta(entry("kol_1", "offline", 0)))
    assert change.entry.rev == 0
    assert not copy.status_of("kol_1").online


def test_another_epoch_drops_the_fences_and_the_same_one_keeps_them(copy: RosterCopy) -> None:
    copy.take(full(entry("kol_1", "online", 5)))
    copy.connected("epoch 1")
    assert copy.take(delta(entry("kol_1", "away", 4))) == []
    copy.connected("epoch 2")
    copy.take(delta(entry("kol_1", "away", 4)))
    assert copy.status_of("kol_1").status == "away"
    assert copy.take(delta(entry("kol_1", "online", 3))) == []


def test_a_change_carries_what_was_before(copy: RosterCopy) -> None:
    (first,) = copy.take(full(entry("kol_1", "online", 1)))
    assert first.previous is None
    (second,) = copy.take(delta(entry("kol_1", "busy", 2)))
    assert (second.previous, second.entry) == (entry("kol_1", "online", 1), entry("kol_1", "busy", 2))


def test_what_changes_nothing_is_no_change(copy: RosterCopy) -> None:
    copy.take(full(entry("kol_1")))
    assert copy.take(delta(entry("kol_1"))) == []
    assert copy.take(delta(entry("kol_9", "offline", 3))) == []


def test_pages_are_collected_and_replace_the_scope_at_the_last_one(copy: RosterCopy) -> None:
    copy.take(full(entry("kol_1"), entry("kol_2")))
    copy.connected("epoch 1")
    assert copy.take(full(entry("kol_3", rev=2), more=True)) == []
    assert copy.collecting
    assert shows(copy) == {"kol_1": "online", "kol_2": "online"}
    changes = copy.take(full(entry("kol_2", "busy", 2)))
    assert not copy.collecting
    assert {change.user_id: change.entry.status for change in changes} == {
        "kol_1": "offline",
        "kol_2": "busy",
        "kol_3": "online",
    }


def test_a_delta_between_two_pages_is_neither_lost_nor_taken_for_missing(copy: RosterCopy) -> None:
    copy.take(full(entry("kol_1"), more=True))
    copy.take(delta(entry("kol_9", rev=7)))
    copy.take(full(entry("kol_2")))
    assert shows(copy) == {"kol_1": "online", "kol_9": "online", "kol_2": "online"}


def test_half_a_snapshot_is_void_after_a_reconnect(copy: RosterCopy) -> None:
    copy.take(full(entry("kol_1"), more=True))
    copy.connected("epoch 1")
    copy.take(full(entry("kol_2")))
    assert shows(copy) == {"kol_2": "online"}
    assert not copy.collecting


def test_who_is_offline_keeps_last_seen_through_a_snapshot(copy: RosterCopy) -> None:
    copy.take(full(entry("kol_1")))
    copy.connected("epoch 1")
    (change,) = copy.take(full())
    assert change.entry == entry("kol_1", "offline", 1)
    assert copy.status_of("kol_1").last_seen == 1_700_000_000


def test_the_cursor_is_kept_from_whole_answers_and_deltas_but_not_from_half_a_snapshot(copy: RosterCopy) -> None:
    copy.take(full(entry("kol_1"), more=True))
    copy.take(delta(entry("kol_1", "busy", 2), cursor="between"))
    assert copy.cursor is None
    copy.take(full(cursor="whole"))
    assert copy.cursor == "whole"
    copy.take(delta(cursor="later"))
    assert copy.cursor == "later"


def test_a_subscriptions_full_answer_covers_just_the_users_asked_for(copy: RosterCopy) -> None:
    copy.take(full(entry("kol_1")))
    copy.watch(["user_1", "user_2"])
    copy.answering(["user_1", "user_2"])
    copy.take(full(entry("user_1", user_type="user")))
    assert shows(copy) == {"kol_1": "online", "user_1": "online"}
    assert copy.watched == {"user_1": True, "user_2": True}


def test_a_public_snapshot_leaves_watched_users_and_room_members_alone(copy: RosterCopy) -> None:
    copy.take(full())
    copy.watch(["user_1"])
    copy.answering(["user_1"])
    copy.take(full(entry("user_1")))
    copy.take(full(entry("user_2"), room="r"))
    copy.connected("epoch 1")
    copy.take(full(entry("kol_1")))
    assert shows(copy) == {"user_1": "online", "user_2": "online", "kol_1": "online"}


def test_an_unasked_full_frame_is_about_the_public_users_unless_it_names_just_everyone_watched(
    copy: RosterCopy,
) -> None:
    copy.take(full(entry("kol_1")))
    copy.watch(["user_1"])
    copy.answering(["user_1"])
    copy.take(full(entry("user_1")))
    copy.take(full(entry("user_2"), room="r"))
    changes = copy.take(full(entry("kol_2")))
    assert {change.user_id for change in changes} == {"kol_1", "kol_2"}
    assert copy.take(full(entry("user_1", "offline", 2)))[0].user_id == "user_1"
    assert shows(copy) == {"kol_1": "offline", "kol_2": "online", "user_1": "offline", "user_2": "online"}


def test_cursors_are_kept_for_the_scope_that_their_frames_are_about(copy: RosterCopy) -> None:
    copy.take(full(entry("kol_1"), cursor="p1"))
    copy.watch(["user_1", "kol_1"])
    copy.answering(["user_1", "kol_1"])
    copy.take(full(entry("user_1"), entry("kol_1"), cursor="w1"))
    assert (copy.cursor, copy.watch_cursor) == ("p1", "w1")
    copy.take(delta(entry("kol_1", "busy", 2), cursor="p2"))
    copy.take(delta(entry("user_1", "busy", 2), cursor="w2"))
    assert (copy.cursor, copy.watch_cursor) == ("p2", "w2")


def test_a_delta_that_overtakes_the_first_snapshot_counts_with_it(copy: RosterCopy) -> None:
    assert copy.take(delta(entry("kol_1", rev=2))) == []
    copy.take(full(entry("kol_2")))
    assert shows(copy) == {"kol_1": "online", "kol_2": "online"}


def test_a_public_expectation_that_nothing_answered_does_not_swallow_a_subscriptions_answer(copy: RosterCopy) -> None:
    copy.take(full(entry("kol_1")))
    copy.connected("epoch 1")  # with a cursor, and nothing changed: no frame comes
    copy.watch(["user_1"])
    copy.answering(["user_1"])
    copy.take(full(entry("user_1")))
    assert shows(copy) == {"kol_1": "online", "user_1": "online"}


def test_a_subscriptions_answer_may_come_between_the_pages_of_the_public_snapshot(copy: RosterCopy) -> None:
    copy.take(full(entry("kol_1"), more=True))
    copy.watch(["user_1"])
    copy.answering(["user_1"])
    copy.take(full(entry("user_1")))
    assert shows(copy) == {"user_1": "online"}
    assert copy.collecting
    copy.take(full(entry("kol_2")))
    assert shows(copy) == {"kol_1": "online", "kol_2": "online", "user_1": "online"}
    assert not copy.collecting


def test_answers_to_a_question_update_whom_the_copy_holds_and_nobody_else(copy: RosterCopy) -> None:
    copy.take(full(entry("kol_1", "online", 5)))
    answer = UserOnlineStatus([entry("kol_1", "busy", 6), entry("stranger")], full=True, reply_to=7)
    (change,) = copy.take(answer)
    assert change.user_id == "kol_1"
    assert shows(copy) == {"kol_1": "busy"}
    assert copy.cursor == "c1"


def test_who_left_the_room_is_dropped_whatever_the_status(copy: RosterCopy) -> None:
    copy.take(full(entry("user_1"), entry("user_2"), room="r"))
    (change,) = copy.take(delta(entry("user_1", "online", 2, left=True), room="r"))
    assert change.left
    assert change.room == "r"
    assert set(copy.rooms["r"]) == {"user_2"}
    assert shows(copy) == {"user_2": "online"}


def test_who_left_the_room_but_is_public_stays_known(copy: RosterCopy) -> None:
    copy.take(full(entry("kol_1")))
    copy.take(full(entry("kol_1"), room="r"))
    copy.take(delta(entry("kol_1", "busy", 2, left=True), room="r"))
    assert copy.status_of("kol_1") == entry("kol_1", "busy", 2)
    assert copy.rooms["r"] == {}


def test_an_older_goodbye_does_not_take_a_member_out_of_the_room(copy: RosterCopy) -> None:
    copy.take(full(entry("user_1", rev=5), room="r"))
    assert copy.take(delta(entry("user_1", "offline", 4, left=True), room="r")) == []
    assert set(copy.rooms["r"]) == {"user_1"}


def test_a_rooms_full_roster_replaces_its_members_and_rooms_have_their_own_cursors(copy: RosterCopy) -> None:
    copy.take(full(entry("kol_1")))
    copy.take(full(entry("user_1"), entry("kol_1"), room="r", cursor="r1"))
    copy.take(full(entry("user_2"), room="r", more=True))
    changes = copy.take(full(entry("user_3"), room="r", cursor="r2"))
    assert set(copy.rooms["r"]) == {"user_2", "user_3"}
    assert {change.user_id for change in changes if change.left} == {"user_1", "kol_1"}
    assert copy.status_of("kol_1").online
    assert (copy.cursor, copy.room_cursors) == ("c1", {"r": "r2"})


def test_a_room_too_big_tells_its_occupancy_instead(copy: RosterCopy) -> None:
    copy.take(full(entry("user_1"), room="r"))
    copy.crowded("r", 900)
    assert (copy.occupancy, copy.entries) == ({"r": 900}, {})


def test_who_is_watched_no_more_is_dropped_unless_public(copy: RosterCopy) -> None:
    copy.take(full(entry("kol_1")))
    copy.watch(["user_1", "kol_2"])
    copy.answering(["user_1", "kol_2"])
    copy.take(full(entry("user_1", user_type="user"), entry("kol_2")))
    copy.unwatch(["user_1", "kol_2"])
    assert shows(copy) == {"kol_1": "online", "kol_2": "online"}


def test_without_the_public_users_a_frame_about_nobody_watched_is_not_taken() -> None:
    copy = RosterCopy(public=False)
    copy.connected("epoch 1")
    assert copy.take(delta(entry("user_1"))) == []
    assert copy.entries == {}


def test_in_the_dark_everyone_shows_offline_and_the_next_answers_are_full(copy: RosterCopy) -> None:
    copy.take(full(entry("kol_1"), entry("kol_2", "offline", 2)))
    copy.watch(["user_1"])
    copy.settled(["user_1"])
    (change,) = copy.go_dark()
    assert (change.user_id, change.stale, change.entry.status) == ("kol_1", True, "offline")
    assert copy.cursor is None
    assert copy.watched == {"user_1": False}
    copy.connected("epoch 1")
    (change,) = copy.take(full(entry("kol_1")))
    assert change.entry.online


def test_users_who_went_offline_are_forgotten_in_the_end(copy: RosterCopy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roster_module, "OFFLINE_KEPT", 2)
    copy.take(full(*(entry(f"kol_{n}") for n in range(4))))
    copy.take(delta(*(entry(f"kol_{n}", "offline", 2) for n in range(4))))
    assert set(copy.entries) == {"kol_2", "kol_3"}


def test_a_public_user_in_a_room_who_is_in_neither_snapshot_is_offline(copy: RosterCopy) -> None:
    copy.take(full(entry("kol_1"), entry("kol_2")))
    copy.take(full(entry("kol_1"), entry("kol_2"), room="r"))
    copy.connected("epoch 2", brought=None)
    changes = [*copy.take(full(entry("kol_2"))), *copy.take(full(room="r"))]
    assert shows(copy) == {"kol_1": "offline", "kol_2": "online"}
    assert copy.rooms["r"] == {}
    assert {(change.user_id, change.entry.online) for change in changes} == {("kol_1", False), ("kol_2", True)}
