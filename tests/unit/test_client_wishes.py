"""What a client wants to see: asked for again on each connection, and no more than the server allows."""

from fastpresence.client.roster import RosterCopy
from fastpresence.client.wishes import HALVINGS_MAX, Wishes
from fastpresence.messages import StatusEntry, Subscribe, Unsubscribe, UserOnlineStatus


def wishes() -> tuple[Wishes, RosterCopy]:
    copy = RosterCopy()
    copy.connected("e")
    return Wishes(copy), copy


def test_only_what_was_not_wanted_before_is_new() -> None:
    wants, copy = wishes()
    assert not wants.any
    assert wants.watch(["user_1", "user_2"]) == ("user_1", "user_2")
    assert wants.watch(["user_2", "user_3"]) == ("user_3",)
    assert (wants.join("lobby"), wants.join("lobby")) == (("lobby",), ())
    assert wants.any
    assert set(copy.watched) == {"user_1", "user_2", "user_3"}


def test_everything_is_asked_for_again_from_the_cursors_and_what_has_none_anew() -> None:
    wants, copy = wishes()
    wants.watch(["user_1"])
    copy.settled(["user_1"])
    copy.watch_cursor = "w"
    wants.watch(["user_2"])
    wants.join("lobby")
    wants.join("studio")
    copy.room_cursors["lobby"] = "r"
    requests, covers = wants.again()
    assert requests == [
        Subscribe(user_ids=["user_1"], cursor="w"),
        Subscribe(user_ids=["user_2"]),
        Subscribe(rooms=["lobby"], cursor="r"),
        Subscribe(rooms=["studio"]),
    ]
    assert covers == ("user_1",)
    assert wants.again()[1] == ()  # lost before all was answered


def test_a_thousand_users_to_a_request() -> None:
    wants, _ = wishes()
    wants.watch([f"user_{number}" for number in range(2_500)])
    assert [len(request.user_ids or []) for request in wants.again()[0]] == [1000, 1000, 500]


def test_of_many_who_are_refused_together_halves_are_asked_for_and_one_alone_is_dropped() -> None:
    wants, copy = wishes()
    wants.watch(["a", "b", "c"])
    first, second = wants.refused(Subscribe(id=7, user_ids=["a", "b", "c"], cursor="w"))
    assert (first, second) == (Subscribe(user_ids=["a"], cursor="w"), Subscribe(user_ids=["b", "c"], cursor="w"))
    assert wants.refused(first) == []
    assert set(copy.watched) == {"b", "c"}
    copy.unwatch(["b"])  # meanwhile its user wants it no more
    assert wants.refused(second) == []
    assert copy.watched == {}


def test_halving_has_an_end() -> None:
    wants, copy = wishes()
    wants.watch([f"user_{number}" for number in range(1_000)])
    requests, _ = wants.again()
    asked = 0
    while requests:
        asked += 1
        requests.extend(wants.refused(requests.pop()))
    assert asked == 1 + 2 * HALVINGS_MAX
    assert copy.watched == {}


def test_a_refused_room_is_forgotten_with_its_members() -> None:
    wants, copy = wishes()
    wants.join("lobby")
    user_1 = StatusEntry("user_1", "user", "online", True, 1, 1)
    copy.take(UserOnlineStatus([user_1], full=True, cursor="r", room="lobby"))
    assert wants.refused(Subscribe(rooms=["lobby"])) == []
    assert (wants.rooms, copy.rooms, copy.entries, copy.room_cursors) == ({}, {}, {}, {})


def test_a_room_that_was_left_and_is_wanted_again_stays_wanted() -> None:
    wants, _ = wishes()
    wants.join("lobby")
    wants.see_no_more(Unsubscribe(rooms=["lobby"]))
    assert list(wants.rooms) == ["lobby"]
