"""The Python client: one user's presence, or an observer's view of everyone's.

Stands on messages, codec and errors alone. Layers: schedule, roster, machine and core are pure; link is the socket;
connection is what applications use. Reference: docs/protocol.md.
"""

from fastpresence.client.connection import PresenceClient, TokenProvider
from fastpresence.client.machine import State
from fastpresence.client.roster import Change
from fastpresence.client.schedule import Timing
from fastpresence.client.streams import Changes, Mailbox
from fastpresence.errors import ConnectionFailed, RequestRefused
from fastpresence.messages import Message, Status, StatusEntry

__all__ = [
    "Change",
    "Changes",
    "ConnectionFailed",
    "Mailbox",
    "Message",
    "PresenceClient",
    "RequestRefused",
    "State",
    "Status",
    "StatusEntry",
    "Timing",
    "TokenProvider",
]
