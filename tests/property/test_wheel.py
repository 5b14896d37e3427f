"""The wheel against a dictionary of deadlines: whatever is done in whatever order, the same timers run out."""

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from fastpresence._native.wheel import Wheel

TIMERS = 12


class WheelMachine(RuleBasedStateMachine):
    """The model knows of each timer the tick at which it has to run out: no earlier, no later, once."""

    @initialize(tick_ms=st.sampled_from([1, 7, 250]), slots=st.integers(1, 9), start_ms=st.integers(0, 10_000))
    def begin(self, tick_ms: int, slots: int, start_ms: int) -> None:
        self.wheel = Wheel(tick_ms, slots, start_ms)
        self.tick_ms = tick_ms
        self.slots = slots
        self.now_ms = start_ms
        self.due: dict[int, int] = {}

    @rule(timer=st.integers(0, TIMERS - 1), ticks=st.floats(-3, 40))
    def arm(self, timer: int, ticks: float) -> None:
        deadline_ms = max(0, self.now_ms + round(ticks * self.tick_ms))
        self.wheel.arm(timer, deadline_ms)
        # A deadline whose tick has gone by runs out at the next one.
        self.due[timer] = max(-(-deadline_ms // self.tick_ms), self.now_ms // self.tick_ms + 1)

    @rule(timer=st.integers(0, TIMERS - 1))
    def cancel(self, timer: int) -> None:
        self.wheel.cancel(timer)
        self.due.pop(timer, None)

    @rule(ticks=st.one_of(st.floats(0, 3), st.floats(0, 200)), limit=st.integers(1, 5))
    def advance(self, ticks: float, limit: int) -> None:
        """By a tick or so, or by a pause of many turns; in batches as small as `limit`."""
        self.now_ms += round(ticks * self.tick_ms)
        found: list[int] = []
        while True:
            batch = self.wheel.advance(self.now_ms, limit)
            assert len(batch) <= limit
            found += batch
            if len(batch) < limit:
                break
        expected = [timer for timer, tick in self.due.items() if tick <= self.now_ms // self.tick_ms]
        assert sorted(found) == sorted(expected)
        for timer in found:
            del self.due[timer]

    @rule(limit=st.integers(1, 3), timer=st.integers(0, TIMERS - 1), ticks=st.floats(0, 40), cancels=st.booleans())
    def interrupted(self, limit: int, timer: int, ticks: float, cancels: bool) -> None:
        """A decision falls between two batches of one moment, as a hook's does."""
        self.now_ms += 3 * self.tick_ms
        for found in self.wheel.advance(self.now_ms, limit):
            assert self.due.pop(found) <= self.now_ms // self.tick_ms
        if cancels:
            self.cancel(timer)
        else:
            # In the future, so that it is not said to be due at a tick that the wheel has yet to come to.
            deadline_ms = self.now_ms + round((1 + ticks) * self.tick_ms)
            self.wheel.arm(timer, deadline_ms)
            self.due[timer] = -(-deadline_ms // self.tick_ms)
        self.advance(0, 1024)

    @invariant()
    def counted(self) -> None:
        assert len(self.wheel) == len(self.due)

    def teardown(self) -> None:
        if hasattr(self, "wheel"):
            self.advance(1_000, 1024)
            assert len(self.wheel) == 0


WheelMachine.TestCase.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
TestWheel = WheelMachine.TestCase


@settings(deadline=None)
@given(st.integers(1, 300), st.integers(1, 20), st.lists(st.integers(0, 20_000), max_size=30))
def test_advanced_every_tick_no_timer_is_early_or_late_by_a_tick(
    tick_ms: int, slots: int, deadlines_ms: list[int]
) -> None:
    wheel = Wheel(tick_ms, slots)
    for timer, deadline_ms in enumerate(deadlines_ms):
        wheel.arm(timer, deadline_ms)
    left = set(range(len(deadlines_ms)))
    now_ms = 0
    while left:
        now_ms += tick_ms
        for timer in wheel.advance(now_ms):
            assert now_ms >= deadlines_ms[timer]
            # One whose tick was not to come any more when it was armed has the next: at most one tick.
            assert now_ms - deadlines_ms[timer] < tick_ms or (deadlines_ms[timer] == 0 and now_ms == tick_ms)
            left.remove(timer)
        assert now_ms <= 20_000 + tick_ms
