"""Polls: whatever somebody polls for and however seldom, he ends with what is so, and is told no more than he asked."""

from typing import Any

import pytest

from fastpresence.presence.roster import PUBLIC_SCOPE, make_cursor
from fastpresence.presence.service import OnlineStatusService
from fastpresence.presence.sessions import Now, Session
from fastpresence.worker import poll as poll_module
from fastpresence.worker.poll import PAGE, changes

LIMIT = 3
NOW = Now(1_000_000, 1_640_995_200_000_000)
RETENTION_MS = 300_000


def later(ms: int) -> Now:
    return Now(NOW.ms + ms, NOW.wall_us + ms * 1000)


class Poller:
    """One client of the fallback: a scope, a cursor, and what it believes."""

    def __init__(self, service: OnlineStatusService, rooms: list[str] | None = None, *user_ids: str) -> None:
        self.service = service
        self.rooms, self.user_ids = rooms or [], list(user_ids)
        self.cursor: str | None = None
        self.believes: dict[str, str] = {}

    def poll(self) -> dict[str, Any]:
        body = changes(self.service, self.cursor, self.rooms, self.user_ids)
        self.cursor = body["cursor"]
        if body["full"]:
            self.believes.clear()
        for entry in body["user_status"]:
            self.believes[entry.user_id] = entry.status
            if entry.left:
                del self.believes[entry.user_id]
        return body

    def told(self) -> list[tuple[str, str, bool]]:
        """Who, what, and whether he left, by one more poll."""
        return [(entry.user_id, entry.status, entry.left) for entry in self.poll()["user_status"]]


@pytest.fixture
def service() -> OnlineStatusService:
    return OnlineStatusService(
        epoch="e",
        public_types={"kol"},
        heartbeat_timeout_ms=60_000,
        disconnect_grace_ms=None,
        retention_ms=RETENTION_MS,
        room_roster_limit=LIMIT,
    )


def online(service: OnlineStatusService, user_id: str, *rooms: str) -> Session:
    kind = "kol" if user_id.startswith("kol") else "user"
    return service.handle_user_online(user_id, kind, connection=f"socket of {user_id}", rooms=rooms, now=NOW)


def flush(service: OnlineStatusService, since: int = 0) -> None:
    """What the worker does soon after a change: only then a room is crowded, or no longer."""
    service.collect(since)


def test_the_first_poll_is_full_and_the_next_tell_what_changed_since(service: OnlineStatusService) -> None:
    host, _ = online(service, "kol_1"), online(service, "user_1")
    poller = Poller(service)
    body = poller.poll()
    assert (body["full"], poller.believes) == (True, {"kol_1": "online"})
    assert set(body) == {"user_status", "cursor", "full"}
    assert poller.told() == []
    service.handle_status_change(host, "busy", now=NOW)
    online(service, "kol_2")
    body = poller.poll()
    assert body["full"] is False
    assert [entry.user_id for entry in body["user_status"]] == ["kol_1", "kol_2"]
    service.handle_user_offline(host, now=NOW)
    assert poller.told() == [("kol_1", "offline", False)]


def test_a_full_answer_lists_watched_users_who_are_offline_or_unknown_and_no_others(
    service: OnlineStatusService,
) -> None:
    for user_id in ("kol_1", "user_1", "user_2"):
        service.handle_user_offline(online(service, user_id), now=NOW)
    poller = Poller(service, None, "user_1", "nobody")
    assert sorted(poller.told()) == [("nobody", "offline", False), ("user_1", "offline", False)]
    assert poller.told() == []


@pytest.mark.parametrize(
    "cursor",
    ["", "~", "e~p~", "e~p~-1", "e~p~01", "e~p~999", "x~p~0", "e~r0000000000000000~0", "e~p~0\n", "p" * 257],
)
def test_a_text_that_is_no_cursor_costs_a_full_answer(service: OnlineStatusService, cursor: str) -> None:
    online(service, "kol_1")
    poller = Poller(service)
    poller.cursor = cursor
    assert poller.poll()["full"] is True


def test_a_cursor_of_another_scope_costs_a_full_answer_also_of_a_wider_one(service: OnlineStatusService) -> None:
    """Who polls for less knows users who are not in his scope any more: he has to be rid of them."""
    online(service, "kol_1")
    online(service, "user_1", "r")
    wide = Poller(service, ["r"], "user_1")
    wide.poll()
    for rooms, user_ids, full in [
        ([], [], True),
        (["r"], ["user_1"], False),
        (["r"], [], True),
        ([], ["user_1"], True),
        (["user_1"], ["r"], True),
        (["r", "s"], ["user_1"], True),
    ]:
        other = Poller(service, rooms, *user_ids)
        other.cursor = wide.cursor
        assert other.poll()["full"] is full, (rooms, user_ids)


def test_a_socket_s_cursor_of_the_public_users_serves_a_poll_without_more(service: OnlineStatusService) -> None:
    host = online(service, "kol_1")
    poller = Poller(service)
    poller.cursor = make_cursor("e", PUBLIC_SCOPE, service.version)
    service.handle_status_change(host, "busy", now=NOW)
    body = poller.poll()
    assert (body["full"], [entry.status for entry in body["user_status"]]) == (False, ["busy"])


def test_each_user_comes_once_with_his_latest_state_whatever_the_reasons(service: OnlineStatusService) -> None:
    host = online(service, "kol_1", "r", "s")
    poller = Poller(service, ["r", "s"], "kol_1")
    assert poller.told() == [("kol_1", "online", False)]
    service.handle_status_change(host, "away", now=NOW)
    service.handle_status_change(host, "busy", now=NOW)
    assert poller.told() == [("kol_1", "busy", False)]


def test_one_who_leaves_is_told_as_left_unless_he_is_in_the_scope_for_another_reason(
    service: OnlineStatusService,
) -> None:
    sessions = {user: online(service, user, "r") for user in ("user_1", "user_2", "kol_1")}
    online(service, "keeper", "r", "s")
    service.join_room(sessions["user_2"], None, "s", now=NOW)
    poller = Poller(service, ["r", "s"], "nobody")
    watcher = Poller(service, ["r", "s"], "user_1")
    assert set(poller.poll() and poller.believes) == {"user_1", "user_2", "kol_1", "keeper", "nobody"}
    watcher.poll()
    for session in sessions.values():
        service.leave_room(session, None, "r", now=NOW)
    assert sorted(poller.told()) == [
        ("kol_1", "online", False), ("user_1", "online", True), ("user_2", "online", False),
    ]  # fmt: skip
    assert ("user_1", "online", False) in watcher.told()
    service.leave_room(sessions["user_2"], None, "s", now=NOW)
    assert poller.told() == [("user_2", "online", True)]
    # A change outside of the scope is none.
    service.handle_status_change(sessions["user_1"], "busy", now=NOW)
    assert poller.told() == []
    assert ("user_1", "busy", False) in watcher.told()


def test_one_who_hides_leaves_a_poller_s_rooms_like_one_who_goes(service: OnlineStatusService) -> None:
    going, hiding = online(service, "user_1", "r"), online(service, "user_2", "r")
    online(service, "keeper", "r")
    poller = Poller(service, ["r"])
    poller.poll()
    service.handle_user_offline(going, now=NOW)
    service.handle_status_change(hiding, "offline", now=NOW)
    gone, hidden = poller.poll()["user_status"]
    assert (gone.status, gone.left, gone.last_seen) == (hidden.status, hidden.left, hidden.last_seen)
    service.handle_heartbeat(hiding, now=later(5_000))
    assert poller.told() == []


def test_a_room_that_lost_its_last_member_is_told_by_a_full_answer(service: OnlineStatusService) -> None:
    session = online(service, "user_1", "r")
    poller = Poller(service, ["r"])
    poller.poll()
    assert poller.believes == {"user_1": "online"}
    service.handle_user_offline(session, now=NOW)
    service.forget("socket of user_1")
    assert "r" not in service.audience.rooms
    assert poller.poll()["full"] is True
    assert poller.believes == {}


def test_a_room_that_nobody_is_in_costs_no_full_answers(service: OnlineStatusService) -> None:
    poller = Poller(service, ["r"])
    poller.poll()
    online(service, "kol_1")
    assert poller.poll()["full"] is False
    session = online(service, "user_1", "r")
    poller.poll()
    assert poller.believes == {"kol_1": "online", "user_1": "online"}
    service.handle_user_offline(session, now=NOW)
    service.forget("socket of user_1")
    assert poller.poll()["full"] is True
    assert poller.poll()["full"] is False
    assert poller.believes == {"kol_1": "online"}


def test_a_cursor_from_before_something_was_dropped_costs_a_full_answer(service: OnlineStatusService) -> None:
    keeper = online(service, "keeper", "r")
    pollers = [Poller(service), Poller(service, ["r"]), Poller(service, None, "user_1")]
    gone = [online(service, "kol_1"), online(service, "user_1", "r")]
    for poller in pollers:
        poller.poll()
    for session in gone:
        service.handle_user_offline(session, now=NOW)
    service.cleanup_expired_status(now=later(RETENTION_MS))
    service.handle_status_change(keeper, "busy", now=later(RETENTION_MS))
    for poller in pollers:
        assert poller.poll()["full"] is True
        assert poller.poll()["full"] is False
    assert [poller.believes for poller in pollers] == [{}, {"keeper": "busy"}, {"user_1": "offline"}]


# Crowded rooms.


def test_a_crowded_room_is_told_as_a_number_whose_members_are_not(service: OnlineStatusService) -> None:
    sessions = [online(service, f"user_{number}", "r") for number in range(LIMIT)]
    poller = Poller(service, ["r"])
    assert "room_occupancy" not in poller.poll()
    online(service, "user_9", "r")
    flush(service)
    body = poller.poll()
    assert body["room_occupancy"] == [{"room": "r", "count": LIMIT + 1}]
    # Those whom he knew by the room alone are in his scope no more: nothing will be told of them.
    assert (body["full"], poller.believes) == (True, {})
    service.handle_status_change(sessions[0], "busy", now=NOW)
    flush(service)
    body = poller.poll()
    assert (body["full"], body["user_status"]) == (False, [])
    assert body["room_occupancy"] == [{"room": "r", "count": LIMIT + 1}]


@pytest.mark.parametrize("flushed", [True, False], ids=["after the flush", "just before the flush"])
def test_one_who_polls_while_a_crowd_goes_gets_the_whole_roster(service: OnlineStatusService, flushed: bool) -> None:
    """Whether a room is crowded is settled with a flush: a poll may come between the last one's leaving and that."""
    sessions = [online(service, f"user_{number}", "r") for number in range(LIMIT + 1)]
    flush(service)
    poller = Poller(service, ["r"])
    poller.poll()
    version = service.version
    for session in sessions[2:]:
        service.leave_room(session, None, "r", now=NOW)
    if flushed:
        flush(service, version)
    poller.poll()
    flush(service, version)
    poller.poll()
    assert poller.believes == {"user_0": "online", "user_1": "online"}


# More than an answer holds.


def read_on(poller: Poller) -> int:
    """Polls for as long as there is more; how many answers that took."""
    answers = 1
    while True:
        body = poller.poll()
        assert len(body["user_status"]) <= PAGE
        if "more" not in body:
            return answers
        answers += 1
        assert answers < 100


def test_many_come_in_pages_each_once_and_in_the_end_all(service: OnlineStatusService) -> None:
    many = 2 * PAGE + 7
    for number in range(many):
        online(service, f"kol_{number}", "r")
    poller = Poller(service)
    assert read_on(poller) == 3
    assert len(poller.believes) == many
    assert poller.told() == []


def test_who_changes_between_two_pages_is_told_again_and_nobody_is_left_out(service: OnlineStatusService) -> None:
    sessions = [online(service, f"kol_{number}") for number in range(2 * PAGE)]
    poller = Poller(service)
    body = poller.poll()
    assert (body["full"], body["more"], len(body["user_status"])) == (True, True, PAGE)
    changing = [*sessions[:10], *sessions[PAGE : PAGE + 10], sessions[-1]]
    for session in changing:
        service.handle_status_change(session, "busy", now=NOW)
    service.handle_user_offline(sessions[PAGE + 20], now=NOW)
    read_on(poller)
    truth = {session.record.user_id: session.record.status for session in sessions}
    assert poller.believes == truth


def test_pages_of_a_wide_scope_tell_everything_of_every_view(service: OnlineStatusService) -> None:
    """The views are paged side by side: one that is far ahead must not let the cursor pass the others by."""
    service.audience._roster_limit = 10 * PAGE
    everybody = {}
    for number in range(PAGE + 500):
        for user_id, room in ((f"kol_{number}", "nowhere"), (f"user_{number}", "r"), (f"guest_{number}", "s")):
            everybody[user_id] = online(service, user_id, room)
    watched = [f"guest_{number}" for number in range(0, PAGE, 7)]
    poller = Poller(service, ["r"], *watched)
    read_on(poller)
    expected = {user for user in everybody if user.startswith(("kol", "user")) or user in watched}
    assert set(poller.believes) == expected
    for number in range(0, PAGE, 3):
        service.handle_status_change(everybody[f"kol_{number}"], "busy", now=NOW)
        service.leave_room(everybody[f"user_{number}"], None, "r", now=NOW)
        service.handle_status_change(everybody[f"guest_{number}"], "away", now=NOW)
    read_on(poller)
    assert set(poller.believes) == expected.difference(f"user_{number}" for number in range(0, PAGE, 3))
    for user_id, status in poller.believes.items():
        assert status == service.get_user_status(user_id).status


def test_old_departures_do_not_make_a_full_answer_begin_again_with_every_page(
    service: OnlineStatusService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(poll_module, "PAGE", 2)
    hosts = [f"kol_{number}" for number in range(7)]
    for user_id in hosts:
        online(service, user_id)
    gone = online(service, "kol_gone")
    service.handle_user_offline(gone, now=NOW)
    service.cleanup_expired_status(now=later(RETENTION_MS + 1))
    online(service, "user_1", "lobby")  # a room that is younger than most
    poller = Poller(service, ["lobby"])
    first = poller.poll()
    assert (first["full"], first["more"]) == (True, True)
    told = [entry.user_id for entry in first["user_status"]]
    for _ in range(3):
        body = poller.poll()
        assert not body["full"]
        told += [entry.user_id for entry in body["user_status"]]
    assert told == [*hosts, "user_1"]
    assert "more" not in body
    assert poller.poll()["user_status"] == []


def test_one_who_was_listed_and_is_dropped_before_the_last_page_makes_it_begin_again(
    service: OnlineStatusService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(poll_module, "PAGE", 2)
    first, *_ = [online(service, f"kol_{number}") for number in range(5)]
    poller = Poller(service)
    assert "kol_0" in [entry.user_id for entry in poller.poll()["user_status"]]
    service.handle_user_offline(first, now=NOW)
    service.cleanup_expired_status(now=later(RETENTION_MS + 1))
    while poller.poll().get("more"):
        pass
    assert sorted(poller.believes) == [f"kol_{number}" for number in range(1, 5)]


@pytest.mark.parametrize("tail", ["~x", "~-1", "~99999999999999999", "~999999"])
def test_halfway_cursors_that_we_never_gave_cost_a_full_answer(service: OnlineStatusService, tail: str) -> None:
    online(service, "kol_1")
    cursor = make_cursor("e", PUBLIC_SCOPE, service.version)
    assert not changes(service, cursor, (), ())["full"]
    assert changes(service, cursor + tail, (), ())["full"]


def test_a_full_answer_in_pages_ends_when_a_room_of_its_scope_is_not_there_and_much_changes_meanwhile(
    service: OnlineStatusService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(poll_module, "PAGE", 2)
    sessions = [online(service, f"kol_{number}") for number in range(6)]
    poller = Poller(service, ["nowhere"], "nobody", "no one", "none")
    assert poller.poll()["full"] is True
    for session in sessions:
        service.handle_status_change(session, "busy", now=NOW)
    assert [poller.poll()["full"] for _ in range(3)] == [False] * 3
    assert {user for user, status in poller.believes.items() if status == "busy"} == {f"kol_{n}" for n in range(6)}
