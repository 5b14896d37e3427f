"""Requests that wait: each has an id of its own, and is taken out once."""

from fastpresence.client.requests import Pending, Requests
from fastpresence.messages import Heartbeat, StatusChange


def test_each_request_bears_an_id_of_its_own_and_is_taken_once() -> None:
    requests = Requests()
    first, sent = requests.add(Pending(Heartbeat(), 10.0))
    second, _ = requests.add(Pending(Heartbeat(), 20.0, covers=("user_1",)))
    assert (sent, requests.ids()) == (Heartbeat(id=first), [first, second])
    found = requests.find(second)
    assert found is not None
    assert (found.request.id, found.covers) == (second, ("user_1",))
    assert requests.take(second) is found
    assert (requests.take(second), requests.find(second), requests.find(None)) == (None, None, None)
    third, _ = requests.add(Pending(Heartbeat(), 30.0))
    assert third not in (first, second)


def test_those_whose_time_is_up_are_overdue_and_the_next_deadline_is_the_earliest() -> None:
    requests = Requests()
    assert requests.next_deadline_ms() is None
    late, _ = requests.add(Pending(Heartbeat(), 20.0))
    early, _ = requests.add(Pending(Heartbeat(), 10.0))
    assert requests.next_deadline_ms() == 10.0
    assert (requests.overdue(9.9), requests.overdue(10.0), requests.overdue(20.0)) == ([], [early], [late, early])
    requests.take(early)
    assert requests.next_deadline_ms() == 20.0


def test_what_polls_tell_is_known() -> None:
    requests = Requests()
    requests.add(Pending(Heartbeat(), 10.0))
    polled, _ = requests.add(Pending(StatusChange(status="away"), 10.0, polled=True))
    assert requests.told_by_polls() == [polled]
