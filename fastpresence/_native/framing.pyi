from typing import NamedTuple, final

TEXT: int
BINARY: int
CLOSE: int
PING: int
PONG: int
COMPRESSED: int

class Frame(NamedTuple):
    opcode: int
    payload: bytes

class FrameError(Exception):
    close_code: int
    reason: str
    def __init__(self, close_code: int, reason: str) -> None: ...

@final
class Stream:
    def __new__(
        cls,
        *,
        masked: bool = True,
        frame_size: int = 65536,
        message_size: int = 65536,
        fragments: int = 1024,
        deflate: bool = False,
    ) -> Stream: ...
    def feed(self, data: bytes | bytearray | memoryview) -> list[Frame]: ...
    @property
    def idle(self) -> bool: ...
    @property
    def buffered(self) -> int: ...

def build(opcode: int, payload: bytes) -> bytes: ...
def build_masked(opcode: int, payload: bytes, key: bytes, *, fin: bool = True) -> bytes: ...
def check_close(payload: bytes) -> int: ...
