"""However frames are interleaved, doubled or paged: the copy ends up equal to the truth, and no `rev` goes back."""

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from fastpresence.client.roster import RosterCopy
from fastpresence.messages import Status, StatusEntry, UserOnlineStatus

USERS = [f"kol_{n}" for n in range(4)]
STATUSES: list[Status] = ["online", "busy", "away", "offline"]


def entry(user_id: str, status: Status, rev: int) -> StatusEntry:
    return StatusEntry(user_id, "kol", status, status != "offline", 0 if status == "offline" else 1, rev)


def frame(*entries: StatusEntry, full: bool = False, more: bool = False) -> UserOnlineStatus:
    if more:
        return UserOnlineStatus(list(entries), full=full, more=True)
    return UserOnlineStatus(list(entries), full=full, cursor="c")


histories = st.lists(st.tuples(st.sampled_from(USERS), st.sampled_from(STATUSES)), max_size=30)


@given(histories, st.data())
def test_any_order_and_any_doubles_of_the_same_entries_end_in_the_last_state(
    history: list[tuple[str, Status]], data: st.DataObject
) -> None:
    entries = [entry(user_id, status, rev) for rev, (user_id, status) in enumerate(history, start=1)]
    doubles = data.draw(st.lists(st.sampled_from(entries), max_size=20)) if entries else []
    copy = RosterCopy()
    copy.connected("e")
    copy.take(frame(full=True))
    for told in data.draw(st.permutations(entries + doubles)):
        before = copy.status_of(told.user_id).rev
        for change in copy.take(frame(told)):
            assert change.entry.rev >= before
        assert copy.status_of(told.user_id).rev >= before
    last = {told.user_id: told for told in entries}
    assert copy.entries == last


class CopyMachine(RuleBasedStateMachine):
    """A server with public users behind one connection that breaks, comes back with its cursor, and gets doubles."""

    @initialize()
    def first(self) -> None:
        self.truth: dict[str, StatusEntry] = {}
        self.rev = 0
        self.copy = RosterCopy()
        self.shown: dict[str, StatusEntry] = {}
        self.told: list[StatusEntry] = []  # on this connection, for doubles: the later one is never older
        self.missed: set[str] = set()
        self.up = False
        self.pages: list[UserOnlineStatus] = []

    def take(self, told: UserOnlineStatus) -> None:
        for change in self.copy.take(told):
            shown = self.shown.get(change.user_id)
            # That somebody unknown is offline is told to nobody.
            assert change.previous == shown or (shown is None and change.previous and not change.previous.online)
            self.shown[change.user_id] = change.entry

    @precondition(lambda self: not self.up)
    @rule(cut=st.integers(0, 4), resume=st.booleans())
    def connect(self, cut: int, resume: bool) -> None:
        self.up = True
        self.copy.connected("e")
        if resume and self.copy.cursor is not None:
            self.take(frame(*(self.truth[user_id] for user_id in sorted(self.missed))))
            self.missed.clear()
            return
        present = [told for told in self.truth.values() if told.online]
        pages = [frame(*present[:cut], full=True, more=True)] if cut else []
        self.pages = [*pages, frame(*present[cut:], full=True)]

    @precondition(lambda self: self.up and self.pages)
    @rule()
    def page(self) -> None:
        self.take(self.pages.pop(0))
        if not self.pages:
            self.missed.clear()

    @rule(user_id=st.sampled_from(USERS), status=st.sampled_from(STATUSES))
    def change(self, user_id: str, status: Status) -> None:
        self.rev += 1
        self.truth[user_id] = entry(user_id, status, self.rev)
        if self.up and not self.pages:
            self.take(frame(self.truth[user_id]))
        elif self.up and len(self.pages) == 1 and self.copy.collecting:
            self.take(frame(self.truth[user_id]))  # between two pages
        elif not self.up:
            self.missed.add(user_id)
        else:
            self.pages[-1].user_status.append(self.truth[user_id])

    @precondition(lambda self: self.up and not self.pages and self.truth)
    @rule(data=st.data())
    def double(self, data: st.DataObject) -> None:
        told = data.draw(st.sampled_from(sorted(self.truth.values(), key=lambda e: e.rev)))
        self.take(frame(told))

    @precondition(lambda self: self.up)
    @rule()
    def lose(self) -> None:
        self.up = False
        if self.pages:  # nothing is known for sure until a full answer has come
            self.missed = set(self.truth)
            self.pages = []

    @precondition(lambda self: not self.up)
    @rule()
    def give_up(self) -> None:
        for change in self.copy.go_dark():
            self.shown[change.user_id] = change.entry
        assert not any(held.online for held in self.copy.entries.values())

    @invariant()
    def shows_the_truth_when_caught_up(self) -> None:
        if self.up and not self.pages:
            for user_id, true in self.truth.items():
                held = self.copy.status_of(user_id)
                assert held == true or (not true.online and not held.online)

    @invariant()
    def changes_add_up_to_the_copy(self) -> None:
        for user_id, held in self.copy.entries.items():
            shown = self.shown.get(user_id)
            assert shown == held or (shown is None and not held.online)


TestCopyMachine = CopyMachine.TestCase
