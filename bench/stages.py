"""Where the CPU goes: samples of a worker's stack, sorted into the stages that every frame goes through.

A sample belongs to the innermost frame that a stage claims. What is in a system call when it is sampled is the
kernel's, all else the user's: `send` in the kernel is TCP, `send` in user space is ours.
"""

import re
from collections.abc import Iterable
from html import escape
from typing import Final

__all__ = ["STAGES", "Sample", "flame", "read_samples", "sorted_by_stage"]

Sample = tuple[list[str], int]  #: frames, outermost first; how often it was seen

#: By stage, what its functions are called: ours (C and Python), msgspec's, the kernel's.
STAGES: Final = {
    "read": r"^(__)?(libc_)?(recv|recvmsg|recvfrom|read|accept4?|epoll_p?wait)\b"
    r"|^fp_engine_poll|^(read_ready|uv__io_poll)",
    "parse": r"\((frame|mask|utf8)\.c:|\bupgrade_key\b|httptools|\(fastpresence/http\.py",
    "decode": r"\bdecode_request\b|^(json|mpack)_decode|Decoder_decode|\b_inflate\b",
    "encode": r"\(fastpresence/(codec|worker/deflate)\.py|^(json|mpack)_encode|Encoder_encode"
    r"|\b(frame_of|_frames?|entry|make_cursor) \(",
    "send": r"^(__)?(libc_)?(send|sendmsg|sendto|writev?)\b|\(audience\.c:|^flush_(begin|step)"
    r"|^fp_(conn_send|flush|engine_(send|answer|tell|write))",
    "decide": r"\(fastpresence/(presence|worker|tokens)|\(wheel\.c:|joserfc",
}
#: A thread that has one of these on its stack waits for another, and one whose loop's own poll is in the kernel waits
#: for its sockets: they use (next to) no CPU.
WAITING: Final = re.compile(r"^(PyThread_acquire_lock|take_gil|pthread_cond_\w*wait)")
POLLING: Final = re.compile(r"^uv__io_poll")
#: A leaf of that name is in the kernel.
KERNEL: Final = re.compile(
    r"^(__)?(libc_)?(recv|recvmsg|recvfrom|read|accept4?|epoll_p?wait\d?|epoll_ctl|send|sendmsg|sendto|writev?|close|"
    r"setsockopt|getsockopt|getpeername|socket|shutdown|syscall|poll|futex\w*|mmap|munmap|madvise|sched_yield)\b"
)
_PATTERNS: Final = {stage: re.compile(pattern) for stage, pattern in STAGES.items()}


def read_samples(raw: str) -> list[Sample]:
    """py-spy's raw format: `outermost;...;innermost COUNT` a line. What waits is left out."""
    samples = []
    for line in raw.splitlines():
        frames, _, count = line.rpartition(" ")
        stack = frames.split(";")
        waits = any(map(WAITING.match, stack)) or any(map(POLLING.match, stack[-2:-1]))
        if frames and count.isdigit() and not waits:
            samples.append((stack, int(count)))
    return samples


def stage_of(frames: list[str]) -> tuple[str, bool]:
    """The stage, and whether the sample is the kernel's."""
    kernel = KERNEL.search(frames[-1]) is not None
    for frame in reversed(frames):
        for stage, pattern in _PATTERNS.items():
            if pattern.search(frame):
                return stage, kernel
    return "other", kernel


def sorted_by_stage(samples: Iterable[Sample]) -> dict[str, tuple[int, int]]:
    """Samples in user space and in the kernel, by stage; every stage is there."""
    counts = {stage: [0, 0] for stage in ("read", "parse", "decode", "decide", "encode", "send", "other")}
    for frames, count in samples:
        stage, kernel = stage_of(frames)
        counts[stage][kernel] += count
    return {stage: (user, kernel) for stage, (user, kernel) in counts.items()}


ROW_PX: Final = 17
WIDTH_PX: Final = 1400
#: Narrower than that is not drawn.
LEAST_PX: Final = 0.6
COLORS: Final = {
    "read": "#7fb3d5", "parse": "#76d7c4", "decode": "#f7dc6f", "decide": "#f0b27a", "encode": "#c39bd3",
    "send": "#ec7063", "other": "#d5d8dc",
}  # fmt: skip


def flame(samples: Iterable[Sample], title: str) -> str:
    """An SVG flame graph: width is time, colour is stage, what was called stands above its caller."""
    root: dict[str, list[object]] = {}
    total = 0
    for frames, count in samples:
        total += count
        level = root
        for depth, frame in enumerate(frames):
            node = level.setdefault(frame, [0, {}, stage_of(frames[: depth + 1])[0]])
            node[0] += count  # type: ignore[operator]
            level = node[1]  # type: ignore[assignment]
    boxes: list[str] = []
    depth = _boxes(root, 0.0, 0, max(1, total), boxes)
    height = (depth + 3) * ROW_PX
    keys = "".join(
        f'<rect x="{10 + 90 * at}" y="4" width="10" height="10" fill="{color}"/>'
        f'<text x="{24 + 90 * at}" y="13">{stage}</text>'
        for at, (stage, color) in enumerate(COLORS.items())
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH_PX}" height="{height}" font-family="monospace" '
        f'font-size="11"><rect width="100%" height="100%" fill="#fff"/>{keys}'
        f'<text x="{WIDTH_PX - 10}" y="13" text-anchor="end">{escape(title)}: {total:,} samples</text>'
        f'<g transform="translate(0 {height}) scale(1 1)">{"".join(boxes)}</g></svg>\n'
    )


def _boxes(level: dict[str, list[object]], left: float, depth: int, total: int, boxes: list[str]) -> int:
    deepest = depth
    for name, (count, inner, stage) in sorted(level.items()):
        assert isinstance(count, int)
        assert isinstance(inner, dict)
        width = count / total * WIDTH_PX
        if width >= LEAST_PX:
            y = -(depth + 1) * ROW_PX
            label = escape(name[: int(width / 7)]) if width > 30 else ""
            boxes.append(
                f'<g><title>{escape(name)}: {100 * count / total:.1f} %</title><rect x="{left:.1f}" y="{y}" '
                f'width="{max(0.3, width - 0.5):.1f}" height="{ROW_PX - 1}" fill="{COLORS[str(stage)]}"/>'
                f'<text x="{left + 3:.1f}" y="{y + 12}">{label}</text></g>'
            )
            deepest = max(deepest, _boxes(inner, left, depth + 1, total, boxes))
        left += width
    return deepest
