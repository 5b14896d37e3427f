"""Timeline and roll against plain lists: what a user's entries are, who is there, and who crashes."""

from hypothesis import given, settings
from hypothesis import strategies as st

from fastpresence.link import JournalLine, PresentUser
from fastpresence.node.timeline import Chronicle, Roll, Timeline

USERS = [f"user_{number}" for number in range(5)]


def line(user_id: str, number: int, kind: str = "online", session: int = 1, superseded: int = 0) -> JournalLine:
    status = "offline" if kind == "offline" else "online"
    return JournalLine(user_id, "user", session, kind, "away", status, "why", number, number, None, superseded)


@given(st.lists(st.sampled_from(USERS), max_size=60), st.integers(1, 20), st.integers(1, 8))
def test_a_users_entries_are_his_among_the_last_ones_and_the_newest_comes_first(
    users: list[str], size: int, limit: int
) -> None:
    timeline = Timeline(size)
    told: list[JournalLine] = []
    for number, user_id in enumerate(users, 1):
        told.append(line(user_id, number))
        timeline.add(told[-1], number % 3)
        kept = told[-size:]
        assert len(timeline) == len(kept)
        for each in USERS:
            his = [(one, one.rev % 3) for one in reversed(kept) if one.user_id == each]
            assert timeline.of(each, limit) == his[:limit]
        assert set(timeline._latest) == {one.user_id for one in kept}  # the index holds nobody else


#: A step: which worker, which user, and what: a new session, one that supersedes the oldest, an end, a change, a death,
#: a page of the whole truth, or some crashes written.
STEP = st.tuples(
    st.integers(0, 1),
    st.sampled_from(USERS),
    st.sampled_from(["online", "reconnect", "offline", "status", "died", "present", "settle"]),
)


@settings(max_examples=300)
@given(st.lists(STEP, max_size=80))
def test_who_was_there_when_a_worker_died_and_nobody_else_has_a_crash_before_anything_else_of_his(
    steps: list[tuple[int, str, str]],
) -> None:
    chronicle = Chronicle(1000)
    rolls = [Roll(0), Roll(1)]
    sessions: list[dict[str, list[int]]] = [{}, {}]  # what is true
    expected: dict[str, list[tuple[str, int, int]]] = {user_id: [] for user_id in USERS}  # event, session, worker
    number = 0
    for worker, user_id, what in steps:
        number += 1
        his = sessions[worker].get(user_id, [])
        if what == "died":
            for each, numbers in sessions[worker].items():
                expected[each] += [("offline", one, worker) for one in numbers]
            sessions[worker] = {}
            chronicle.died(rolls[worker], number)
            rolls[worker] = Roll(worker)
            continue
        if what == "settle":
            chronicle.settle()
            continue
        if what == "present":
            users = [PresentUser(each, "user", "online", number, numbers) for each, numbers in sessions[worker].items()]
            rolls[worker].replace(users[:1], is_first=True)
            rolls[worker].replace(users[1:], is_first=False)
            continue
        session = superseded = 0
        if what == "online":
            session = number
            sessions[worker][user_id] = [*his, number]
        elif not his:
            continue
        elif what == "reconnect":
            session, superseded = number, his[0]
            sessions[worker][user_id] = [*his[1:], number]
        elif what == "offline":
            session = his[-1]
            sessions[worker][user_id] = his[:-1]
            if not his[:-1]:
                del sessions[worker][user_id]
        else:
            session = his[0]
        expected[user_id].append((what, session, worker))
        chronicle.note(rolls[worker], [line(user_id, number, what, session, superseded)])
        assert {name: [*user.sessions] for name, user in rolls[worker]._users.items()} == sessions[worker]
    for user_id in USERS:
        chronicle.settle(user_id)
        shown = [(one["event"], one["session"], one["worker"]) for one in chronicle.of(user_id, 1000)]
        assert sorted(shown) == sorted(expected[user_id])
        if [entry for entry in expected[user_id] if entry[2] == 0] == expected[user_id]:  # one worker: in order, too
            assert shown == expected[user_id][::-1]
    assert chronicle.settle() == []
    assert not chronicle._dead
