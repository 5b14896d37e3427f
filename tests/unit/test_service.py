"""The core's front door: the lifecycle and section 3 of the protocol, operation by operation."""

import ast
import gc
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import fastpresence.presence.service
from fastpresence.errors import NotOnline, TooMany
from fastpresence.messages import Status, StatusEntry
from fastpresence.presence.roster import Record
from fastpresence.presence.service import OnlineStatusService
from fastpresence.presence.sessions import Now, Phase, Session, Transition

HEARTBEAT_MS = 60_000
RETENTION_MS = 300_000
WALL_S = 1_640_995_200


class Clock:
    """Both clocks of a test; `step` moves the wall alone."""

    def __init__(self) -> None:
        self.now = Now(1_000_000, WALL_S * 1_000_000)

    def at(self, second: float) -> Now:
        """The moment `second` seconds after the start."""
        self.now = Now(1_000_000 + int(second * 1_000), int((WALL_S + second) * 1_000_000))
        return self.now

    def advance(self, ms: int) -> Now:
        self.now = Now(self.now.ms + ms, self.now.wall_us + ms * 1_000)
        return self.now

    def step(self, seconds: int) -> Now:
        self.now = Now(self.now.ms, self.now.wall_us + seconds * 1_000_000)
        return self.now


class Socket:
    """Stands for a connection; only its identity counts."""


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def journal() -> list[Transition]:
    return []


Make = Callable[..., OnlineStatusService]


@pytest.fixture
def make(journal: list[Transition]) -> Make:
    def make(
        *, disconnect_grace_ms: int | None = None, heard_ms: Callable[[Socket], int] | None = None
    ) -> OnlineStatusService:
        return OnlineStatusService(
            epoch="e",
            public_types={"kol"},
            heartbeat_timeout_ms=HEARTBEAT_MS,
            disconnect_grace_ms=disconnect_grace_ms,
            retention_ms=RETENTION_MS,
            journal=journal.append,
            heard_ms=heard_ms,
        )

    return make


@pytest.fixture
def service(make: Make) -> OnlineStatusService:
    return make()


def online(service: OnlineStatusService, now: Now, device: str | None = None, status: Status | None = None) -> Session:
    return service.handle_user_online("kol_1", "kol", device=device, status=status, connection=Socket(), now=now)


def status_of(service: OnlineStatusService) -> Status:
    return service.get_user_status("kol_1").status


# Coming, changing, going.


def test_unknown_is_offline_with_nothing_known(service: OnlineStatusService) -> None:
    assert service.get_user_status("nobody") == StatusEntry("nobody", "", "offline", False, None, 0)
    assert service.sessions_of("nobody") == ()
    assert service.record("nobody") is None


def test_one_who_comes_online_is_seen_at_once_with_the_time_and_a_rev(
    service: OnlineStatusService, clock: Clock
) -> None:
    online(service, clock.now)
    assert service.get_user_status("kol_1") == StatusEntry("kol_1", "kol", "online", True, WALL_S, WALL_S * 1_000_000)
    assert [record.user_id for record in service.collect(0).public] == ["kol_1"]


def test_user_is_the_type_of_one_who_names_none_and_is_not_public(service: OnlineStatusService, clock: Clock) -> None:
    service.handle_user_online("user_1", now=clock.now)
    assert service.get_user_status("user_1").user_type == "user"
    assert service.collect(0).public == []


def test_a_heartbeat_changes_nothing_that_others_see(service: OnlineStatusService, clock: Clock) -> None:
    session = online(service, clock.now)
    before, version = service.get_user_status("kol_1"), service.version
    service.handle_heartbeat(session, now=clock.advance(30_000))
    assert service.get_user_status("kol_1") == before
    assert service.version == version
    assert session.last_heard_ms == clock.now.ms


def test_a_status_that_is_the_same_is_no_change(
    service: OnlineStatusService, clock: Clock, journal: list[Transition]
) -> None:
    session = online(service, clock.now)
    before, version, lines = service.get_user_status("kol_1"), service.version, len(journal)
    service.handle_status_change(session, "online", now=clock.advance(10))
    assert (service.get_user_status("kol_1"), service.version, len(journal)) == (before, version, lines)


def test_several_changes_between_flushes_are_told_once_as_the_last(service: OnlineStatusService, clock: Clock) -> None:
    session = online(service, clock.now)
    since = service.version
    statuses: tuple[Status, ...] = ("busy", "away", "online", "busy")
    for status in statuses:
        service.handle_status_change(session, status, now=clock.advance(1))
    delta = service.collect(since)
    assert [(record.user_id, record.status) for record in delta.public] == [("kol_1", "busy")]
    assert delta.version == service.version
    assert service.collect(delta.version).public == []


def test_goodbye_ends_at_once_and_twice_is_once(
    service: OnlineStatusService, clock: Clock, journal: list[Transition]
) -> None:
    session = online(service, clock.now)
    service.handle_user_offline(session, now=clock.advance(10))
    gone, lines = service.get_user_status("kol_1"), len(journal)
    assert not gone.online
    assert session.phase is Phase.GONE
    service.handle_user_offline(session, now=clock.advance(10))
    assert (service.get_user_status("kol_1"), len(journal)) == (gone, lines)


def test_what_needs_presence_is_refused_to_a_gone_session_and_changes_nothing(
    service: OnlineStatusService, clock: Clock
) -> None:
    session = online(service, clock.now)
    service.handle_user_offline(session, now=clock.now)
    gone = service.get_user_status("kol_1")
    with pytest.raises(NotOnline):
        service.handle_status_change(session, "busy", now=clock.now)
    with pytest.raises(NotOnline):
        service.handle_update(session, status="busy", device="phone", now=clock.now)
    service.handle_heartbeat(session, now=clock.now)
    service.handle_connection_lost(session, last_heard_ms=clock.now.ms, now=clock.now)
    service.handle_timeout(session, last_heard_ms=clock.now.ms, now=clock.now)
    assert service.get_user_status("kol_1") == gone


def test_a_second_user_online_only_updates(service: OnlineStatusService, clock: Clock) -> None:
    session = online(service, clock.now)
    service.handle_update(session, status="away", device="phone", now=clock.now)
    assert status_of(service) == "away"
    service.handle_update(session, status=None, device=None, now=clock.now)
    assert (status_of(service), session.device) == ("away", "phone")
    assert service.sessions_of("kol_1") == (session,)


def test_an_update_that_takes_a_devices_name_supersedes_its_session(service: OnlineStatusService, clock: Clock) -> None:
    phone = online(service, clock.now, "phone", "busy")
    other = online(service, clock.now, "tablet")
    service.handle_update(other, status=None, device="phone", now=clock.now)
    assert phone.phase is Phase.GONE
    assert service.sessions_of("kol_1") == (other,)
    assert status_of(service) == "online"


def test_the_type_is_that_of_the_latest_session_and_the_public_is_told(
    service: OnlineStatusService, clock: Clock
) -> None:
    online(service, clock.now)
    since = service.version
    service.handle_user_online("kol_1", "user", connection=Socket(), now=clock.now)
    assert [record.user_type for record in service.collect(since).public] == ["user"]


# Being lost, and silence.


def test_a_broken_connection_shows_nobody_anything_until_60_s_after_the_last_sign_of_life(
    service: OnlineStatusService, clock: Clock
) -> None:
    session = online(service, clock.at(0))
    service.handle_connection_lost(session, last_heard_ms=clock.at(20).ms, now=clock.at(25))
    version = service.version
    assert session.connection is None
    assert service.cleanup_expired_status(now=clock.at(79.999)) == 0
    assert service.version == version
    assert service.cleanup_expired_status(now=clock.at(80.25)) == 1
    assert service.get_user_status("kol_1").last_seen == WALL_S + 20
    assert service.cleanup_expired_status(now=clock.at(90)) == 0


def test_the_disconnect_grace_shortens_the_wait_and_never_lengthens_it(make: Make, clock: Clock) -> None:
    service = make(disconnect_grace_ms=10_000)
    short, long = online(service, clock.at(0), "phone"), online(service, clock.at(0), "tablet")
    service.handle_connection_lost(short, last_heard_ms=clock.at(0).ms, now=clock.at(0))
    service.handle_connection_lost(long, last_heard_ms=clock.at(0).ms, now=clock.at(55))
    assert short.phase is long.phase is Phase.DETACHED
    assert service.cleanup_expired_status(now=clock.at(60.25)) == 2


def test_a_connection_lost_after_its_time_ends_by_timeout_at_the_next_cleanup(
    service: OnlineStatusService, clock: Clock, journal: list[Transition]
) -> None:
    session = online(service, clock.at(0))
    service.handle_connection_lost(session, last_heard_ms=clock.at(0).ms, now=clock.at(65))
    assert session.phase is Phase.DETACHED
    assert service.cleanup_expired_status(now=clock.at(65.25)) == 1
    assert (journal[-1].kind, journal[-1].reason) == ("offline", "timeout")
    assert service.get_user_status("kol_1").last_seen == WALL_S


def test_one_who_comes_back_before_that_cleanup_was_never_gone(
    service: OnlineStatusService, clock: Clock, journal: list[Transition]
) -> None:
    session = online(service, clock.at(0))
    service.handle_connection_lost(session, last_heard_ms=clock.at(0).ms, now=clock.at(65))
    version = service.version
    online(service, clock.at(65))
    service.cleanup_expired_status(now=clock.at(65.25))
    assert service.version == version
    assert [transition.kind for transition in journal].count("offline") == 0


def test_no_grace_at_all_ends_at_once(make: Make, clock: Clock) -> None:
    service = make(disconnect_grace_ms=0)
    session = online(service, clock.at(0))
    service.handle_connection_lost(session, last_heard_ms=clock.at(5).ms, now=clock.at(5))
    assert not service.get_user_status("kol_1").online


def test_a_silent_connection_ends_and_was_last_seen_when_it_was_last_heard(
    service: OnlineStatusService, clock: Clock
) -> None:
    session = online(service, clock.at(0))
    service.handle_timeout(session, last_heard_ms=clock.at(30).ms, now=clock.at(90))
    entry = service.get_user_status("kol_1")
    assert (entry.status, entry.last_seen) == ("offline", WALL_S + 30)
    assert entry.rev == (WALL_S + 90) * 1_000_000


def test_last_seen_is_that_of_the_session_heard_last_even_if_it_ended_first(
    service: OnlineStatusService, clock: Clock
) -> None:
    phone, tablet = online(service, clock.at(0), "phone"), online(service, clock.at(0), "tablet")
    service.handle_user_offline(tablet, now=clock.at(40))
    service.handle_timeout(phone, last_heard_ms=clock.at(10).ms, now=clock.at(70))
    assert service.get_user_status("kol_1").last_seen == WALL_S + 40


def test_one_who_is_ended_while_detached_was_last_seen_when_he_was_last_heard(
    service: OnlineStatusService, clock: Clock
) -> None:
    session = online(service, clock.at(0))
    service.handle_connection_lost(session, last_heard_ms=clock.at(20).ms, now=clock.at(25))
    service.handle_user_offline(session, now=clock.at(40), reason="kicked")
    assert service.get_user_status("kol_1").last_seen == WALL_S + 20


def test_a_user_was_last_seen_when_any_of_his_connections_was_last_heard(make: Make, clock: Clock) -> None:
    """An owner that answers heartbeats by itself tells of them when something changes, and not before."""
    phone, tablet = Socket(), Socket()
    heard_ms = {phone: clock.now.ms, tablet: clock.now.ms}
    service = make(heard_ms=heard_ms.__getitem__)
    service.handle_user_online("kol_1", "kol", connection=phone, now=clock.at(0))
    busy = service.handle_user_online("kol_1", "kol", status="busy", connection=tablet, now=clock.at(1))
    heard_ms[phone] = clock.at(50).ms
    assert service.get_user_status("kol_1").last_seen == WALL_S + 1
    service.handle_timeout(busy, last_heard_ms=busy.last_heard_ms, now=clock.at(61))
    entry = service.get_user_status("kol_1")
    assert (entry.status, entry.last_seen) == ("online", WALL_S + 50)


def test_a_session_without_a_connection_lives_by_its_heartbeats(service: OnlineStatusService, clock: Clock) -> None:
    polling = service.handle_user_online("kol_1", "kol", now=clock.at(0))
    for second in range(30, 300, 30):
        service.handle_heartbeat(polling, now=clock.at(second))
        assert service.cleanup_expired_status(now=clock.now) == 0
    assert service.cleanup_expired_status(now=clock.at(329.9)) == 0
    assert service.cleanup_expired_status(now=clock.at(330.25)) == 1


def test_a_crowd_that_times_out_ends_in_portions(service: OnlineStatusService, clock: Clock) -> None:
    for number in range(25):
        service.handle_user_online(f"kol_{number}", "kol", now=clock.at(0))
    clock.at(61)
    assert [service.cleanup_expired_status(now=clock.now, limit=10) for _ in range(4)] == [10, 10, 5, 0]


def test_no_lasting_rate_of_leaving_outruns_the_dropping_of_the_offline(
    service: OnlineStatusService, clock: Clock
) -> None:
    ticks, a_tick = RETENTION_MS // 250, 8
    for tick in range(3 * ticks):
        for number in range(a_tick):
            session = service.handle_user_online(
                f"user_{tick}_{number}", connection=Socket(), rooms=["r"], now=clock.now
            )
            service.handle_user_offline(session, now=clock.now)
        service.cleanup_expired_status(now=clock.advance(250), limit=1)
    assert len(service.roster.everyone) <= 1.1 * ticks * a_tick


# Coming back, and several devices.


def test_a_reconnect_in_time_shows_nobody_a_flicker(
    service: OnlineStatusService, clock: Clock, journal: list[Transition]
) -> None:
    old = online(service, clock.at(0), "phone", "busy")
    service.handle_connection_lost(old, last_heard_ms=clock.at(30).ms, now=clock.at(31))
    before, version = service.get_user_status("kol_1"), service.version
    new = service.handle_user_online(
        "kol_1", "kol", device="phone", status="busy", connection=Socket(), now=clock.at(40), attempt=2
    )
    assert (service.get_user_status("kol_1"), service.version) == (before, version)
    assert (journal[-1].kind, journal[-1].session, journal[-1].attempt) == ("reconnect", new.number, 2)
    assert service.cleanup_expired_status(now=clock.at(120)) == 0
    assert service.get_user_status("kol_1") == before


def test_a_device_supersedes_its_own_attached_session_and_no_other(service: OnlineStatusService, clock: Clock) -> None:
    phone, tablet = online(service, clock.now, "phone"), online(service, clock.now, "tablet")
    again = online(service, clock.now, "phone")
    assert phone.phase is Phase.GONE
    assert phone.connection is None
    assert set(service.sessions_of("kol_1")) == {tablet, again}


def test_without_a_device_an_attached_session_stays_beside_the_new_one(
    service: OnlineStatusService, clock: Clock
) -> None:
    first, second = online(service, clock.now), online(service, clock.now)
    assert service.sessions_of("kol_1") == (first, second)


def test_without_a_device_the_latest_detached_one_is_taken_over(service: OnlineStatusService, clock: Clock) -> None:
    first, second = online(service, clock.at(0)), online(service, clock.at(0))
    service.handle_connection_lost(first, last_heard_ms=clock.at(5).ms, now=clock.at(10))
    service.handle_connection_lost(second, last_heard_ms=clock.at(3).ms, now=clock.at(10))
    third = online(service, clock.at(11))
    assert first.phase is Phase.GONE
    assert service.sessions_of("kol_1") == (second, third)


def test_a_late_goodbye_of_an_old_session_does_not_end_the_new_one(service: OnlineStatusService, clock: Clock) -> None:
    old = online(service, clock.now, "phone")
    online(service, clock.advance(50), "phone")
    service.handle_user_offline(old, now=clock.advance(50))
    service.handle_connection_lost(old, last_heard_ms=0, now=clock.advance(50))
    assert service.get_user_status("kol_1").online


def test_the_strongest_status_shows_and_only_its_changes_are_told(service: OnlineStatusService, clock: Clock) -> None:
    phone, tablet = online(service, clock.now, "phone", "busy"), online(service, clock.now, "tablet", "away")
    version = service.version
    service.handle_status_change(tablet, "online", now=clock.now)
    assert (status_of(service), service.version) == ("busy", version)
    service.handle_user_offline(phone, now=clock.now)
    assert (status_of(service), service.version) == ("online", version + 1)


# Appearing offline.


def test_one_who_hides_looks_like_one_who_went(service: OnlineStatusService, make: Make, clock: Clock) -> None:
    hiding, going = service, make()
    hider, goer = online(hiding, clock.at(0)), online(going, clock.at(0))
    hiding.handle_status_change(hider, "offline", now=clock.at(5))
    going.handle_user_offline(goer, now=clock.at(5))
    hiding.handle_heartbeat(hider, now=clock.at(20))
    for second in (5, 30, 304, 306, 1_000):
        hiding.cleanup_expired_status(now=clock.at(second))
        going.cleanup_expired_status(now=clock.now)
        assert hiding.get_user_status("kol_1") == going.get_user_status("kol_1")
        assert list(hiding.roster.public) == list(going.roster.public)
        assert hiding.roster.public.floor == going.roster.public.floor
        assert hiding.version == going.version
        assert hiding.sessions_of("kol_1") == ()
    record = hiding.record("kol_1")
    assert record is not None
    assert record.sessions == (hider,)


def test_one_hides_on_all_devices_until_any_of_them_says_otherwise(service: OnlineStatusService, clock: Clock) -> None:
    phone, tablet = online(service, clock.now, "phone"), online(service, clock.now, "tablet", "away")
    service.handle_status_change(phone, "offline", now=clock.now)
    assert status_of(service) == "offline"
    service.handle_status_change(tablet, "away", now=clock.now)
    assert status_of(service) == "online"  # the phone's own status went on beneath


def test_a_default_user_online_of_another_device_does_not_unhide(service: OnlineStatusService, clock: Clock) -> None:
    phone = online(service, clock.now, "phone")
    service.handle_status_change(phone, "offline", now=clock.now)
    hidden = service.get_user_status("kol_1")
    tablet = online(service, clock.advance(1_000), "tablet")
    assert service.get_user_status("kol_1") == hidden
    service.handle_update(tablet, status=None, device=None, now=clock.advance(1_000))
    assert service.get_user_status("kol_1") == hidden
    online(service, clock.advance(1_000), "desk", "busy")
    assert status_of(service) == "busy"


def test_a_hidden_user_who_reconnects_by_default_stays_hidden(service: OnlineStatusService, clock: Clock) -> None:
    phone = online(service, clock.now, "phone")
    service.handle_status_change(phone, "offline", now=clock.now)
    service.handle_connection_lost(phone, last_heard_ms=clock.now.ms, now=clock.now)
    version = service.version
    online(service, clock.advance(1_000), "phone")
    assert (status_of(service), service.version) == ("offline", version)


def test_sessions_of_a_hidden_user_end_unseen_and_hiding_ends_with_the_last(
    service: OnlineStatusService, clock: Clock
) -> None:
    phone, tablet = online(service, clock.now, "phone"), online(service, clock.now, "tablet")
    service.handle_status_change(phone, "offline", now=clock.now)
    hidden, version = service.get_user_status("kol_1"), service.version
    service.handle_user_offline(phone, now=clock.advance(1_000))
    service.handle_timeout(tablet, last_heard_ms=clock.now.ms, now=clock.advance(1_000))
    assert (service.get_user_status("kol_1"), service.version) == (hidden, version)
    online(service, clock.advance(1_000))
    assert status_of(service) == "online"


def test_one_who_comes_hidden_was_never_there(service: OnlineStatusService, clock: Clock) -> None:
    session = online(service, clock.now, status="offline")
    assert service.get_user_status("kol_1") == StatusEntry("kol_1", "", "offline", False, None, 0)
    assert service.collect(0).public == []
    service.handle_status_change(session, "online", now=clock.now)
    assert status_of(service) == "online"


def test_one_who_hid_for_longer_than_the_retention_comes_back_with_a_higher_rev(
    service: OnlineStatusService, clock: Clock
) -> None:
    session = online(service, clock.at(0))
    service.handle_status_change(session, "offline", now=clock.at(1))
    rev = service.get_user_status("kol_1").rev
    service.cleanup_expired_status(now=clock.at(302))
    assert service.get_user_status("kol_1").rev == 0
    clock.step(-1_000)
    service.handle_status_change(session, "online", now=clock.now)
    assert service.get_user_status("kol_1").rev > rev


# Clocks.


def test_rev_and_last_seen_do_not_go_back_with_the_wall_clock(service: OnlineStatusService, clock: Clock) -> None:
    session = online(service, clock.at(10))
    first = service.get_user_status("kol_1")
    service.handle_status_change(session, "busy", now=clock.step(-3_600))
    second = service.get_user_status("kol_1")
    assert second.rev == first.rev + 1
    assert second.last_seen == first.last_seen


# The journal.


def test_the_journal_tells_who_what_why_and_how_it_looked(
    service: OnlineStatusService, clock: Clock, journal: list[Transition]
) -> None:
    phone = online(service, clock.at(0), "phone", "away")
    tablet = online(service, clock.at(1), "tablet", "busy")
    service.handle_status_change(phone, "online", now=clock.at(2))
    service.handle_user_offline(tablet, now=clock.at(3), reason="kicked")
    service.handle_status_change(phone, "offline", now=clock.at(4))
    service.handle_timeout(phone, last_heard_ms=clock.at(4).ms, now=clock.at(70))
    assert [(line.session, line.kind, line.was, line.status, line.reason) for line in journal] == [
        (phone.number, "online", "offline", "away", "user_online"),
        (tablet.number, "online", "away", "busy", "user_online"),
        (phone.number, "status", "busy", "busy", "status_change"),
        (tablet.number, "offline", "busy", "online", "kicked"),
        (phone.number, "status", "online", "offline", "status_change"),
        (phone.number, "offline", "offline", "offline", "timeout"),
    ]
    assert journal[-1].at_us == (WALL_S + 70) * 1_000_000
    assert journal[-1].rev == journal[-2].rev


# The lifecycle document's own timeline.


def test_the_lifecycle_timeline_with_the_reconnect_in_time_and_past_it(make: Make) -> None:
    for back_at, flickers in ((360, False), (400, True)):
        service, clock = make(), Clock()
        seen: list[tuple[float, str]] = []
        version = 0

        def flush(second: float, service: OnlineStatusService = service, seen: list[tuple[float, str]] = seen) -> None:
            nonlocal version
            delta = service.collect(version)
            version = delta.version
            seen.extend((second, record.status) for record in delta.public)

        session = service.handle_user_online("kol_123", "kol", device="phone", connection=Socket(), now=clock.at(4))
        flush(4)
        for second in range(30, 330, 30):
            service.handle_heartbeat(session, now=clock.at(second))
            if second == 120:
                service.handle_status_change(session, "busy", now=clock.now)
            flush(second)
        service.handle_connection_lost(session, last_heard_ms=clock.at(315).ms, now=clock.at(330))
        for quarter in range(330 * 4, back_at * 4):
            service.cleanup_expired_status(now=clock.at(quarter / 4))
            flush(quarter / 4)
        session = service.handle_user_online(
            "kol_123", "kol", device="phone", status="busy", connection=Socket(), now=clock.at(back_at), attempt=1
        )
        flush(back_at)
        for second in range(420, 480, 30):
            service.handle_heartbeat(session, now=clock.at(second))
            service.cleanup_expired_status(now=clock.now)
            flush(second)
        service.handle_user_offline(session, now=clock.at(480))
        flush(480)
        flicker = [(375, "offline"), (400, "busy")] if flickers else []
        assert seen == [(4, "online"), (120, "busy"), *flicker, (480, "offline")]
        assert service.get_user_status("kol_123").last_seen == WALL_S + 480


# Memory and purity.


@pytest.fixture
def no_gc() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def count(kind: type) -> int:
    return sum(type(each) is kind for each in gc.get_objects())


@pytest.mark.usefixtures("no_gc")
def test_what_ended_is_freed_by_reference_counting_alone(make: Make, clock: Clock) -> None:
    service = make()
    sessions, records = count(Session), count(Record)
    sockets: list[weakref.ref[Socket]] = []
    for number in range(200):
        for device in ("phone", "tablet", "phone"):
            socket = Socket()
            sockets.append(weakref.ref(socket))
            session = service.handle_user_online(
                f"user_{number}", "user", device=device, connection=socket, rooms=["r", f"r{number}"], now=clock.now
            )
            service.watch(socket, ["kol_1"])
            if number % 3 == 0:
                service.handle_status_change(session, "offline", now=clock.now)
            service.handle_connection_lost(session, last_heard_ms=clock.now.ms, now=clock.now)
            service.forget(socket)
            del socket, session
    assert not any(socket() for socket in sockets)
    assert count(Session) == sessions + 400
    while service.cleanup_expired_status(now=clock.advance(HEARTBEAT_MS + 250)):
        pass
    assert count(Session) == sessions
    service.cleanup_expired_status(now=clock.advance(RETENTION_MS))
    assert not service.roster.everyone
    assert not service.roster.unlisted
    assert not service.audience.rooms
    assert not service.audience.watchers
    assert count(Record) <= records + 32  # what the log of an emptied view may still hold


def test_the_core_imports_no_clock_no_chance_and_no_io() -> None:
    allowed = {"array", "bisect", "collections", "collections.abc", "enum", "hashlib", "msgspec", "re", "typing"}
    allowed |= {"fastpresence.errors", "fastpresence.messages", "fastpresence._native.wheel"}
    for path in sorted(Path(fastpresence.presence.service.__file__).parent.glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                modules = {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                modules = {node.module or ""}
            else:
                continue
            strange = {name for name in modules - allowed if not name.startswith("fastpresence.presence.")}
            assert not strange, f"{path.name} imports {strange}"


def test_a_page_left_for_another_leaves_its_room_once_the_older_session_would_have_gone(
    service: OnlineStatusService, clock: Clock
) -> None:
    first, watcher = Socket(), Socket()
    room = service.join_room(None, watcher, "room_1", now=clock.now)
    page = service.handle_user_online("user_1", connection=first, rooms=["room_1"], now=clock.now)
    service.handle_connection_lost(page, last_heard_ms=clock.now.ms, now=clock.now)
    clock.advance(1_000)
    other = service.handle_user_online("user_1", connection=Socket(), rooms=["room_2"], now=clock.now)
    assert other.rooms == {"room_1", "room_2"}  # nobody sees a flicker
    clock.advance(HEARTBEAT_MS - 1_000)
    service.cleanup_expired_status(now=clock.now)
    assert room.shown == 1
    clock.advance(2_000)
    service.cleanup_expired_status(now=clock.now)
    assert other.rooms == {"room_2"}
    assert room.shown == 0
    assert status_of_user(service, "user_1") == "online"


def test_a_room_that_a_reconnected_client_asks_for_again_stays(service: OnlineStatusService, clock: Clock) -> None:
    page = service.handle_user_online("user_1", connection=Socket(), rooms=["room_1"], now=clock.now)
    service.handle_connection_lost(page, last_heard_ms=clock.now.ms, now=clock.now)
    connection = Socket()
    other = service.handle_user_online("user_1", connection=connection, now=clock.advance(1_000))
    service.join_room(other, connection, "room_1", now=clock.now)
    service.cleanup_expired_status(now=clock.advance(2 * HEARTBEAT_MS))
    assert other.rooms == {"room_1"}
    assert other.phase is Phase.ATTACHED


def status_of_user(service: OnlineStatusService, user_id: str) -> Status:
    return service.get_user_status(user_id).status


# Polls: a session without a connection.


def poll(service: OnlineStatusService, now: Now, device: str | None = None, **asked: Any) -> Session:
    return service.handle_poll("kol_1", "kol", device=device, now=now, **asked)


def test_a_poll_makes_a_session_and_the_next_one_keeps_it(service: OnlineStatusService, clock: Clock) -> None:
    first = poll(service, clock.now)
    assert (first.phase, status_of(service)) == (Phase.DETACHED, "online")
    for _ in range(3):
        assert poll(service, clock.advance(HEARTBEAT_MS - 1_000)) is first
        service.cleanup_expired_status(now=clock.now)
    assert status_of(service) == "online"
    service.cleanup_expired_status(now=clock.advance(HEARTBEAT_MS))
    assert (first.phase, status_of(service)) == (Phase.GONE, "offline")
    assert poll(service, clock.now) is not first


def test_a_poll_takes_up_the_session_of_a_socket_that_broke_and_a_socket_that_of_the_polls(
    service: OnlineStatusService, clock: Clock
) -> None:
    for device in (None, "phone"):
        socket = online(service, clock.now, device, "busy")
        service.handle_connection_lost(socket, last_heard_ms=clock.now.ms, now=clock.now)
        version = service.version
        assert poll(service, clock.advance(50_000), device) is socket
        service.cleanup_expired_status(now=clock.advance(20_000))
        back = online(service, clock.now, device, "busy")
        assert (socket.phase, back.phase) == (Phase.GONE, Phase.ATTACHED)
        assert service.version == version
        service.handle_user_offline(back, now=clock.now)


def test_a_late_poll_leaves_the_socket_s_session_alone_and_counts_as_its_sign_of_life(
    service: OnlineStatusService, clock: Clock
) -> None:
    socket = online(service, clock.now)
    assert poll(service, clock.advance(1_000)) is socket
    assert socket.phase is Phase.ATTACHED
    poll(service, clock.now, rooms=["r"])
    poll(service, clock.now, rooms=[])
    assert socket.rooms is None  # those of an attached one are its connection's to say
    # The connection turns out to be dead: what polls is not.
    service.handle_timeout(socket, last_heard_ms=clock.now.ms - 1_000, now=clock.advance(HEARTBEAT_MS - 1_000))
    assert (socket.phase, status_of(service)) == (Phase.DETACHED, "online")
    service.cleanup_expired_status(now=clock.advance(1_000))
    assert status_of(service) == "offline"


def test_a_poll_s_status_is_its_session_s_and_left_out_it_stays(service: OnlineStatusService, clock: Clock) -> None:
    poll(service, clock.now, status="away")
    assert status_of(service) == "away"
    poll(service, clock.now)
    assert status_of(service) == "away"
    poll(service, clock.now, status="offline")
    poll(service, clock.now)
    assert status_of(service) == "offline"
    poll(service, clock.now, "tablet")
    assert status_of(service) == "offline"  # it is the user who hides
    poll(service, clock.now, status="busy")
    assert status_of(service) == "busy"


def test_a_user_has_so_many_sessions_and_one_that_takes_another_s_place_is_none_more(clock: Clock) -> None:
    service = OnlineStatusService(
        epoch="e",
        public_types={"kol"},
        heartbeat_timeout_ms=HEARTBEAT_MS,
        disconnect_grace_ms=None,
        sessions_per_user=2,
    )
    phone, _ = online(service, clock.now, "phone"), online(service, clock.now, "tablet")
    version = service.version
    for device in (None, "desk"):
        with pytest.raises(TooMany):
            online(service, clock.now, device, "busy")
        with pytest.raises(TooMany):
            poll(service, clock.now, device, status="busy")
    assert service.version == version
    online(service, clock.now, "phone", "busy")
    poll(service, clock.now, "tablet")
    service.handle_user_offline(phone, now=clock.now)  # it was superseded
    with pytest.raises(TooMany):
        online(service, clock.now)
    service.cleanup_expired_status(now=clock.advance(HEARTBEAT_MS))
    assert service.handle_user_online("kol_2", "kol", connection=Socket(), now=clock.now)


# A status that the application forces.


def test_a_forced_status_is_every_session_s_until_it_says_its_own(service: OnlineStatusService, clock: Clock) -> None:
    phone, tablet = online(service, clock.now, "phone"), online(service, clock.now, "tablet", "busy")
    service.force_status("kol_1", "away", now=clock.now)
    assert status_of(service) == "away"
    service.handle_status_change(phone, "online", now=clock.now)
    assert status_of(service) == "online"
    service.handle_user_offline(phone, now=clock.now)
    assert status_of(service) == "away"
    service.force_status("kol_1", "offline", now=clock.now)
    assert status_of(service) == "offline"
    service.force_status("kol_1", "online", now=clock.now)
    assert status_of(service) == "online"
    service.handle_user_offline(tablet, now=clock.now)
    with pytest.raises(NotOnline):
        service.force_status("kol_1", "online", now=clock.now)
    with pytest.raises(NotOnline):
        service.force_status("nobody", "online", now=clock.now)


@pytest.mark.parametrize("broken", [False, True])
def test_rooms_of_an_older_session_go_in_time_however_often_their_user_reconnects(
    service: OnlineStatusService, clock: Clock, broken: bool
) -> None:
    service.handle_user_online("kol_1", "kol", device="phone", connection=Socket(), rooms=["r"], now=clock.now)
    members = service.audience.rooms["r"].members
    for second in range(10, 70, 10):  # the first of them has the room for another 60 s
        session = service.handle_user_online("kol_1", "kol", device="phone", connection=Socket(), now=clock.at(second))
        if broken:
            service.handle_connection_lost(session, last_heard_ms=clock.now.ms, now=clock.at(second + 5))
        service.cleanup_expired_status(now=clock.now)
        assert not members["kol_1"].left
    service.handle_user_online("kol_1", "kol", device="phone", connection=Socket(), now=clock.at(70))
    service.cleanup_expired_status(now=clock.at(70.5))
    assert members["kol_1"].left
    assert status_of(service) == "online"


def test_a_poll_leaves_the_rooms_of_a_connection_alone(service: OnlineStatusService, clock: Clock) -> None:
    session = service.handle_user_online("kol_1", "kol", connection=Socket(), rooms=["r"], now=clock.now)
    for number in range(3):
        assert service.handle_poll("kol_1", "kol", rooms=[f"r{number}"], now=clock.advance(1_000)) is session
    assert session.rooms == {"r"}
    assert service.handle_poll("kol_1", "kol", rooms=[], now=clock.advance(1_000)).rooms == {"r"}
