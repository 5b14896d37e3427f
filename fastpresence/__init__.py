"""fastpresence: a presence server for asyncio, and its Python client.

Importing the package imports nothing else, so that a worker starts with what it needs: the public names come when
they are asked for.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastpresence.client import PresenceClient
    from fastpresence.errors import ConnectionFailed, FastPresenceError, RequestRefused

    __version__: str

__all__ = ["ConnectionFailed", "FastPresenceError", "PresenceClient", "RequestRefused", "__version__"]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return _version()
    if name not in __all__:
        raise AttributeError(f"module 'fastpresence' has no attribute {name!r}")
    from importlib import import_module

    home = "fastpresence.client" if name == "PresenceClient" else "fastpresence.errors"
    return getattr(import_module(home), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("fastpresence")
    except PackageNotFoundError:  # a source tree that was never installed
        return "0+unknown"
