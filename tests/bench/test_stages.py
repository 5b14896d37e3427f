"""Samples of a stack, sorted into stages and drawn."""

import xml.etree.ElementTree as ElementTree

import pytest

from bench.stages import flame, read_samples, sorted_by_stage, stage_of

BATCH = ["run (asyncio/runners.py:118)", "_on_batch (fastpresence/worker/worker.py:190)"]


def test_raw_lines_are_stacks_and_counts() -> None:
    assert read_samples("a (x.py:1);b c (y.c) 12\n\nnonsense\n") == [(["a (x.py:1)", "b c (y.c)"], 12)]


@pytest.mark.parametrize(
    ("frames", "stage", "kernel"),
    [
        ([*BATCH, "handle_heartbeat (fastpresence/presence/service.py:150)"], "decide", False),
        ([*BATCH, "decode_request (fastpresence/codec.py:60)", "json_decode (msgspec/_core.so)"], "decode", False),
        ([*BATCH, "_begin (fastpresence/worker/flush.py:99)", "json_encode (msgspec/_core.so)"], "encode", False),
        ([*BATCH, "Record.entry (fastpresence/presence/roster.py:223)", "malloc (libc.so.6)"], "encode", False),
        (["fp_engine_poll (engine.so)", "recv (libc.so.6)"], "read", True),
        (["fp_engine_poll (engine.so)", "fp_stream_feed (frame.c:90)"], "parse", False),
        (["fp_flush_step (engine.so)", "__libc_send (libc.so.6)"], "send", True),
        (["fp_flush_step (engine.so)"], "send", False),
        (["_PyEval_EvalFrameDefault (python3.11)"], "other", False),
    ],
)
def test_the_innermost_frame_that_a_stage_claims_decides(frames: list[str], stage: str, *, kernel: bool) -> None:
    assert stage_of(frames) == (stage, kernel)


def test_a_thread_that_waits_for_another_is_left_out() -> None:
    assert (
        read_samples("run (threading.py:1);PyThread_acquire_lock_timed (libpython3.11.so);0x7efd (libc.so.6) 36\n")
        == []
    )


def test_a_loop_that_waits_for_its_sockets_is_left_out_and_what_it_calls_is_not() -> None:
    assert read_samples("uv__io_poll (linux.c:1452);epoll_pwait (libc.so.6) 17\n") == []
    called = ["uv__io_poll (linux.c:1500)", "fp_engine_poll (engine.c:745)", "recv (libc.so.6)"]
    assert read_samples(";".join(called) + " 3\n") == [(called, 3)]


def test_user_and_kernel_are_told_apart_and_every_stage_is_there() -> None:
    samples = [(["fp_flush_step", "send (libc.so.6)"], 7), (["fp_flush_step"], 3)]
    sorted_ = sorted_by_stage(samples)
    assert sorted_["send"] == (3, 7)
    assert list(sorted_) == ["read", "parse", "decode", "decide", "encode", "send", "other"]


def test_a_flame_graph_is_well_formed_and_as_wide_as_its_samples() -> None:
    picture = flame([(["main", "a <b>"], 75), (["main", "c & d"], 25)], "sync")
    root = ElementTree.fromstring(picture)
    titles = [title.text for title in root.iter("{http://www.w3.org/2000/svg}title")]
    assert titles == ["main: 100.0 %", "a <b>: 75.0 %", "c & d: 25.0 %"]
