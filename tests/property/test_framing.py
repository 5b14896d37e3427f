"""However a message is cut, into frames or reads, the same messages come out; and no bytes do worse than fail."""

from hypothesis import given, settings
from hypothesis import strategies as st

from fastpresence._native.framing import BINARY, PING, PONG, TEXT, Frame, FrameError, Stream, build, build_masked

FRAME_SIZE = 1_000
MESSAGE_SIZE = 2_000

keys = st.binary(min_size=4, max_size=4)
messages = st.one_of(
    st.tuples(st.just(TEXT), st.text(max_size=200).map(str.encode)),
    st.tuples(st.just(BINARY), st.binary(max_size=900)),
)
controls = st.tuples(st.sampled_from([PING, PONG]), st.binary(max_size=125))
sizes = st.lists(st.integers(1, 400), max_size=60)


def new_stream() -> Stream:
    return Stream(frame_size=FRAME_SIZE, message_size=MESSAGE_SIZE, fragments=50)


def feed(stream: Stream, data: bytes, chunks: list[int]) -> list[Frame]:
    """Feed in chunks of these sizes, the rest at once; memory stays within its bound all the while."""
    frames: list[Frame] = []
    at = 0
    for size in [*chunks, len(data)]:
        if at >= len(data):
            break
        frames += stream.feed(data[at : at + size])
        at += size
        assert stream.buffered <= 2 * MESSAGE_SIZE + 256
    return frames


@settings(deadline=None)
@given(st.data(), st.lists(messages, max_size=8), sizes)
def test_messages_come_out_as_they_went_in(
    data: st.DataObject, sent: list[tuple[int, bytes]], chunks: list[int]
) -> None:
    wire = b""
    whole: list[tuple[int, bytes]] = []
    for opcode, payload in sent:
        cuts = sorted(data.draw(st.lists(st.integers(0, len(payload)), max_size=5)))
        parts = [payload[a:b] for a, b in zip([0, *cuts], [*cuts, len(payload)], strict=True)]
        for number, part in enumerate(parts):
            last = number == len(parts) - 1
            wire += build_masked(opcode if number == 0 else 0, part, data.draw(keys), fin=last)
            between = None if last else data.draw(st.none() | controls)
            if between is not None:
                wire += build_masked(*between, data.draw(keys))
                whole.append(between)
        whole.append((opcode, payload))
    stream = new_stream()
    assert feed(stream, wire, chunks) == whole
    assert stream.idle


@settings(deadline=None)
@given(st.lists(messages, max_size=8), sizes)
def test_what_a_server_builds_a_client_reads(sent: list[tuple[int, bytes]], chunks: list[int]) -> None:
    stream = Stream(masked=False, frame_size=FRAME_SIZE, message_size=MESSAGE_SIZE)
    assert feed(stream, b"".join(build(*message) for message in sent), chunks) == sent


def outcome(data: bytes, chunks: list[int]) -> int | list[Frame]:
    try:
        return feed(new_stream(), data, chunks)
    except FrameError as error:
        return error.close_code


@settings(deadline=None)
@given(st.binary(max_size=3_000), sizes)
def test_any_bytes_give_frames_or_a_close_code_and_cuts_change_nothing(data: bytes, chunks: list[int]) -> None:
    came = outcome(data, chunks)
    assert came == outcome(data, [])
    assert isinstance(came, list) or came in (1002, 1007, 1009)


# Nearly valid: a header whose fields are each likely to be right, before whatever payload.
nearly = st.builds(
    lambda first, mask, length, extended, rest: bytes([first, mask | length]) + extended + rest,
    st.sampled_from([0x00, 0x01, 0x02, 0x80, 0x81, 0x82, 0x88, 0x89, 0x8A, 0xC1, 0x83, 0x09]),
    st.sampled_from([0x80, 0x80, 0x80, 0x80, 0]),
    st.sampled_from([0, 1, 5, 125, 126, 127]),
    st.sampled_from(
        [b"", b"\0\x7e", b"\x03\xe8", b"\x03\xe9", b"\0" * 7 + b"\x05", b"\0" * 5 + b"\1\0\0", b"\xff" * 8]
    ),
    st.binary(max_size=140),
)


@settings(deadline=None, max_examples=300)
@given(st.lists(nearly, max_size=6).map(b"".join), sizes)
def test_nearly_valid_bytes_give_frames_or_a_close_code_and_cuts_change_nothing(data: bytes, chunks: list[int]) -> None:
    came = outcome(data, chunks)
    assert came == outcome(data, [])
    assert isinstance(came, list) or came in (1002, 1007, 1009)


@settings(deadline=None)
@given(st.binary(max_size=300), sizes)
def test_a_text_is_taken_exactly_when_it_is_utf8(payload: bytes, chunks: list[int]) -> None:
    try:
        payload.decode()
    except UnicodeDecodeError:
        assert outcome(build_masked(TEXT, payload, b"mask"), chunks) == 1007
    else:
        assert outcome(build_masked(TEXT, payload, b"mask"), chunks) == [(TEXT, payload)]


# Bytes at the edges of what UTF-8 allows, which uniformly random ones hardly ever combine.
edges = st.lists(
    st.sampled_from(b"a\x7f\x80\x8f\x90\x9f\xa0\xbf\xc0\xc1\xc2\xdf\xe0\xed\xef\xf0\xf4\xf5\xff"), max_size=8
)


@settings(deadline=None, max_examples=500)
@given(edges.map(bytes), st.integers(0, 20), sizes)
def test_utf8_is_judged_as_python_judges_it(edge: bytes, ascii_before: int, chunks: list[int]) -> None:
    payload = b"x" * ascii_before + edge
    try:
        payload.decode()
        expected: int | list[tuple[int, bytes]] = [(TEXT, payload)]
    except UnicodeDecodeError:
        expected = 1007
    assert outcome(build_masked(TEXT, payload, b"mask"), chunks) == expected
