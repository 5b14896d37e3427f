"""What the timeline says of a crash, and what it holds."""

from fastpresence.link import JournalLine, PresentUser
from fastpresence.node.timeline import Chronicle, Roll

SECOND = 1_000_000


def online(user_id: str, session: int, at_s: int, status: str = "online", was: str = "offline") -> JournalLine:
    at_us = at_s * SECOND
    return JournalLine(user_id, "kol", session, "online", was, status, "user_online", at_us, at_us, attempt=2)


def test_a_crash_says_when_who_where_from_what_to_what_and_why() -> None:
    chronicle, roll = Chronicle(100), Roll(3)
    chronicle.note(roll, [online("kol_1", 7, 1000, "busy"), online("user_2", 8, 1001)])
    chronicle.died(roll, 1002 * SECOND + 500_000)
    ((line, worker),) = chronicle.settle("kol_1")
    assert (line.user_id, line.user_type, line.reason, worker) == ("kol_1", "kol", "crash", 3)
    assert chronicle.of("kol_1", 10) == [
        {
            "at": 1002.5, "event": "offline", "was": "busy", "status": "offline", "cause": "crash",
            "rev": 1000 * SECOND, "user_type": "kol", "session": 7, "worker": 3,
        },
        {
            "at": 1000.0, "event": "online", "was": "offline", "status": "busy", "cause": "user_online",
            "rev": 1000 * SECOND, "user_type": "kol", "session": 7, "worker": 3, "attempt": 2,
        },
    ]  # fmt: skip


def test_who_comes_back_before_his_crash_is_written_has_it_written_first() -> None:
    chronicle, dead, young = Chronicle(100), Roll(0), Roll(0)
    chronicle.note(dead, [online(f"user_{number}", number, 1000) for number in range(1, 50)])
    chronicle.died(dead, 1001 * SECOND)
    crashed = chronicle.note(young, [online("user_7", 1, 1002)])
    assert [line.user_id for line, _ in crashed] == ["user_7"]
    assert [entry["cause"] for entry in chronicle.of("user_7", 10)] == ["user_online", "crash", "user_online"]
    others = {line.user_id for crashed in iter(chronicle.settle, []) for line, _ in crashed}
    assert others == {f"user_{number}" for number in range(1, 50) if number != 7}
    assert len(young) == 1


def test_every_session_of_a_user_has_a_crash_of_its_own() -> None:
    chronicle, roll = Chronicle(100), Roll(0)
    chronicle.note(roll, [online("kol_1", 1, 1000), online("kol_1", 2, 1000, "busy", was="online")])
    chronicle.died(roll, 1001 * SECOND)
    assert [(line.session, line.was, line.status) for line, _ in chronicle.settle("kol_1")] == [
        (1, "busy", "offline"),
        (2, "busy", "offline"),
    ]


def test_after_lost_lines_the_pages_say_who_is_there() -> None:
    chronicle, roll = Chronicle(100), Roll(0)
    chronicle.note(roll, [online("gone", 1, 1000), online("stays", 2, 1000)])
    roll.replace([PresentUser("stays", "user", "busy", 5, [2, 9])], is_first=True)
    roll.replace([PresentUser("new", "user", "away", 6, [10])], is_first=False)
    chronicle.died(roll, 1001 * SECOND)
    crashed = [(line.user_id, line.session) for pair in iter(chronicle.settle, []) for line, _ in pair]
    assert sorted(crashed) == [("new", 10), ("stays", 2), ("stays", 9)]


def test_a_change_without_a_session_makes_nobody_present() -> None:
    chronicle, roll = Chronicle(100), Roll(0)
    busy = JournalLine("kol_1", "kol", 0, "status", "online", "busy", "call", 1, 1)
    chronicle.note(roll, [busy])
    assert len(roll) == 0
    chronicle.note(roll, [online("kol_1", 1, 1000), busy])
    chronicle.died(roll, 2)
    assert [(line.was, line.session) for line, _ in chronicle.settle()] == [("busy", 1)]
