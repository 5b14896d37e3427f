"""What do a deadline that moves and a deadline that runs out cost, among 200,000 timers?

Units: nanoseconds a rearm (bar: 150), milliseconds for 100,000 due timers (bar: 30), of the best round; not asserted,
as a busy machine misses them: `python -m bench micro` judges. Measured from Python through the Cython face, the loop's
own cost included, which is some 20 ns a call; leaves out: cold caches (timers are moved in a shuffled order, but
nothing else runs in between) and what the owner of a due timer does about it.
"""

import random

from pytest_benchmark.fixture import BenchmarkFixture

from fastpresence._native.wheel import Wheel

ARMED = 200_000
DUE = 100_000
TIMEOUT_MS = 60_000
REARM_BAR_NS = 150
EXPIRY_BAR_MS = 30


def armed(now_ms: int = 0) -> Wheel:
    wheel = Wheel(now_ms=now_ms)
    for timer in range(ARMED):
        wheel.arm(timer, now_ms + TIMEOUT_MS)
    return wheel


def test_rearm(benchmark: BenchmarkFixture) -> None:
    """A heartbeat's: every deadline moves later, in an order that is not the timers' own."""
    wheel = armed()
    timers = list(range(ARMED))
    random.Random(1).shuffle(timers)
    now_ms = 0

    def rearm_all() -> None:
        nonlocal now_ms
        now_ms += 250
        wheel.advance(now_ms)
        arm, deadline_ms = wheel.arm, now_ms + TIMEOUT_MS
        for timer in timers:
            arm(timer, deadline_ms)

    benchmark.pedantic(rearm_all, rounds=20, warmup_rounds=2)  # type: ignore[no-untyped-call]
    assert len(wheel) == ARMED
    assert benchmark.stats is not None
    each_ns = benchmark.stats.stats.min / ARMED * 1e9
    benchmark.extra_info |= {"ns a rearm": round(each_ns, 1), "bar": ("ns a rearm", REARM_BAR_NS)}


def test_expiry(benchmark: BenchmarkFixture) -> None:
    """Half of all timers run out in the same tick, in batches of 1,024."""

    def begin() -> tuple[tuple[Wheel], dict[str, object]]:
        wheel = armed()
        for timer in range(DUE):
            wheel.arm(timer, 30_000)
        wheel.advance(29_999)
        return (wheel,), {}

    def expire(wheel: Wheel) -> None:
        count = 0
        while True:
            due = wheel.advance(30_000)
            count += len(due)
            if len(due) < 1024:
                break
        assert count == DUE

    benchmark.pedantic(expire, setup=begin, rounds=10)  # type: ignore[no-untyped-call]
    assert benchmark.stats is not None
    best_ms = benchmark.stats.stats.min * 1000
    benchmark.extra_info |= {"ms for 100,000": round(best_ms, 2), "bar": ("ms for 100,000", EXPIRY_BAR_MS)}


def test_idle_tick(benchmark: BenchmarkFixture) -> None:
    """A tick at which nobody's time is up, while all 200,000 beat every 30 s: what the lazy links cost."""
    wheel = armed()
    now_ms = 0
    per_tick = ARMED * 250 // 30_000
    next_timer = 0

    def tick() -> None:
        assert wheel.advance(now_ms) == []

    def beat() -> None:
        nonlocal now_ms, next_timer
        now_ms += 250
        for _ in range(per_tick):
            wheel.arm(next_timer, now_ms + TIMEOUT_MS)
            next_timer = (next_timer + 1) % ARMED

    benchmark.pedantic(tick, setup=beat, rounds=480)  # type: ignore[no-untyped-call]
