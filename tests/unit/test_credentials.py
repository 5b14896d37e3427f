"""API keys, and whose tokens were revoked."""

import hashlib

from fastpresence.credentials import ApiKeys, Revocations


def test_an_api_key_is_known_whole_and_not_in_part() -> None:
    keys = ApiKeys(["first-key-of-the-app", "second-key-of-the-app"])
    assert keys.contains("first-key-of-the-app")
    assert keys.contains(b"second-key-of-the-app")
    for wrong in ("", "first-key", "first-key-of-the-app ", "ä", "\ud800", b"\xff", hashlib.sha256(b"x").hexdigest()):
        assert not keys.contains(wrong)
    assert not ApiKeys([]).contains("")


def test_a_token_of_the_revoked_second_is_dead_and_one_of_the_next_lives() -> None:
    revocations = Revocations()
    revocations.add("user_1", 1000, 1000)
    assert revocations.is_revoked("user_1", 1000)
    assert revocations.is_revoked("user_1", 0)
    assert not revocations.is_revoked("user_1", 1001)
    assert not revocations.is_revoked("user_2", 0)


def test_an_older_revocation_takes_nothing_back() -> None:
    revocations = Revocations()
    for before in (1000, 900, 1000):
        revocations.add("user_1", before, 1000)
    assert list(revocations.items()) == [("user_1", 1000)]


def test_who_was_revoked_longest_ago_is_forgotten_first() -> None:
    revocations = Revocations(size=2)
    for second, user_id in enumerate(["a", "b", "a", "c"]):
        revocations.add(user_id, second, second)
    assert revocations.users() == ["a", "c"]
    assert revocations.before("b") is None


def test_what_no_token_can_outlive_is_forgotten_a_few_at_a_time() -> None:
    revocations = Revocations()
    for number in range(10):
        revocations.add(f"user_{number}", 1000, 1000)
    later = 1000 + Revocations.KEEP_S + 1
    revocations.add("late_1", later, later)
    assert len(revocations) == 9
    for number in range(2, 10):
        revocations.add(f"late_{number}", later, later)
    assert all(user_id.startswith("late") for user_id in revocations.users())
