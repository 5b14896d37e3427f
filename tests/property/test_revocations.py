"""Revocations against a plain model: a list of everything that was ever added."""

from hypothesis import given
from hypothesis import strategies as st

from fastpresence.credentials import Revocations

USERS = st.sampled_from([f"user_{number}" for number in range(8)])
DAY = 86_400
#: What happens: a user's tokens are revoked up to some seconds ago, some seconds after the last time.
STEPS = st.lists(st.tuples(USERS, st.integers(0, 3 * DAY), st.sampled_from([0, 1, 7, DAY, 16 * DAY, 31 * DAY])))


@given(STEPS, st.integers(1, 10))
def test_it_says_what_was_revoked_and_holds_no_more_than_its_size(steps: list[tuple[str, int, int]], size: int) -> None:
    now = 1_700_000_000
    revocations = Revocations(size)
    latest: dict[str, int] = {}
    order: list[str] = []  # by when their second moved last
    for user_id, ago, after in steps:
        now += after
        before = now - ago
        if latest.get(user_id, -1) < before:
            latest[user_id] = before
            order = [each for each in order if each != user_id] + [user_id]
        revocations.add(user_id, before, now)
        known = dict(revocations.items())
        assert len(revocations) == len(known) <= size
        assert revocations.users() == list(known) == [each for each in order if each in known]
        for each, second in known.items():
            assert revocations.before(each) == second <= latest[each]
            assert revocations.is_revoked(each, second)
            assert not revocations.is_revoked(each, second + 1)
        for each in order[-size:]:
            if latest[each] >= now - Revocations.KEEP_S:  # among the latest, and young: it must be there
                assert known.get(each) == latest[each]
        for each in set(order) - set(known):
            assert not revocations.is_revoked(each, 0)
            order.remove(each)  # adding it again is news
            del latest[each]
