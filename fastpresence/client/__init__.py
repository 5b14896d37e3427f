"""The Python client: one user's presence, or an observer's view of everyone's.

Stands on messages, codec and errors alone. Pure are core and what it is made of: machine, requests, schedule, pulse;
roster, wishes; calls; polling, fallback. link is the socket, http what polls; driver runs them all; connection, phone
and streams are what applications use. Reference: docs/protocol.md.
"""

from fastpresence.client.calls import CallMoved, CallOutcome, CallState, Signal
from fastpresence.client.connection import PresenceClient, TokenProvider
from fastpresence.client.machine import Freshness, State
from fastpresence.client.phone import Call
from fastpresence.client.roster import Change
from fastpresence.client.schedule import Timing
from fastpresence.client.streams import Changes, Mailbox
from fastpresence.errors import ConnectionFailed, RequestRefused
from fastpresence.messages import Message, Status, StatusEntry

__all__ = [
    "Call",
    "CallMoved",
    "CallOutcome",
    "CallState",
    "Change",
    "Changes",
    "ConnectionFailed",
    "Freshness",
    "Mailbox",
    "Message",
    "PresenceClient",
    "RequestRefused",
    "Signal",
    "State",
    "Status",
    "StatusEntry",
    "Timing",
    "TokenProvider",
]
