"""How things stand with one target, and what leads from one state to another.

Two witnesses are heard: the *session*, one connection that is kept open and asked regularly (a beat), and the *connect
path*, tried with fresh connections. They fail separately. `max_connections` exhausted or a rotated password block the
connect path and leave the session alone; `pg_terminate_backend` ends the session and leaves the connect path open; a
stop, a crash or a partition takes both. Hence the states:

- unknown: never reached yet. Nothing is recorded, since nothing was seen to begin.
- healthy: both witnesses are content, and a write was possible.
- suspect: the session is lost, the connect path not yet tried.
- connect_blocked: the session lives, but no fresh connection can be had.
- down: neither.
- read_only: the session lives, but writing is refused, or not yet proven after (re)connecting. A read replica stays
  here, at peace: only what could be written before can have an outage of writing.
- suspended: neither is wanted. A look now and then may tell whether the database is there; nothing is timed by it.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType


class State(StrEnum):
    """What is known of the two witnesses (see the module)."""

    UNKNOWN = "unknown"
    HEALTHY = "healthy"
    SUSPECT = "suspect"
    CONNECT_BLOCKED = "connect_blocked"
    DOWN = "down"
    READ_ONLY = "read_only"
    SUSPENDED = "suspended"


class Event(StrEnum):
    """What a fact means to the machine."""

    ANSWERED = "beat answered"
    LOST = "session lost"
    CONNECTED = "connected"
    NOT_CONNECTED = "not connected"
    WRITABLE = "write possible"
    NOT_WRITABLE = "write refused"
    SUSPENDED = "suspended"
    RESUMED = "resumed"


_WATCHING: Mapping[State, Mapping[Event, State]] = MappingProxyType(
    {
        State.UNKNOWN: {
            Event.CONNECTED: State.READ_ONLY,
            Event.NOT_CONNECTED: State.UNKNOWN,
        },
        State.HEALTHY: {
            Event.ANSWERED: State.HEALTHY,
            Event.LOST: State.SUSPECT,
            Event.CONNECTED: State.HEALTHY,
            Event.NOT_CONNECTED: State.CONNECT_BLOCKED,
            Event.WRITABLE: State.HEALTHY,
            Event.NOT_WRITABLE: State.READ_ONLY,
        },
        State.SUSPECT: {
            Event.CONNECTED: State.READ_ONLY,
            Event.NOT_CONNECTED: State.DOWN,
        },
        State.CONNECT_BLOCKED: {
            Event.ANSWERED: State.CONNECT_BLOCKED,
            Event.LOST: State.DOWN,
            Event.CONNECTED: State.READ_ONLY,
            Event.NOT_CONNECTED: State.CONNECT_BLOCKED,
            Event.WRITABLE: State.CONNECT_BLOCKED,
            Event.NOT_WRITABLE: State.CONNECT_BLOCKED,
        },
        State.DOWN: {
            Event.CONNECTED: State.READ_ONLY,
            Event.NOT_CONNECTED: State.DOWN,
        },
        State.READ_ONLY: {
            Event.ANSWERED: State.READ_ONLY,
            Event.LOST: State.SUSPECT,
            Event.CONNECTED: State.READ_ONLY,
            Event.NOT_CONNECTED: State.CONNECT_BLOCKED,
            Event.WRITABLE: State.HEALTHY,
            Event.NOT_WRITABLE: State.READ_ONLY,
        },
    }
)

TRANSITIONS: Mapping[State, Mapping[Event, State]] = MappingProxyType(
    {
        **{state: {**ways, Event.SUSPENDED: State.SUSPENDED} for state, ways in _WATCHING.items()},
        State.SUSPENDED: {
            Event.CONNECTED: State.SUSPENDED,
            Event.NOT_CONNECTED: State.SUSPENDED,
            Event.SUSPENDED: State.SUSPENDED,
            Event.RESUMED: State.UNKNOWN,
        },
    }
)
"""Where an event leads from each state. What is missing cannot happen there."""


def diagram() -> str:
    """The transition table as a Mermaid state diagram, for the documentation."""
    lines = ["stateDiagram-v2", f"    [*] --> {State.UNKNOWN}"]
    for state, ways in TRANSITIONS.items():
        for target in dict.fromkeys(ways.values()):
            if target is not state:
                events = " / ".join(event for event, to in ways.items() if to is target)
                lines.append(f"    {state} --> {target}: {events}")
    return "\n".join(lines) + "\n"


class IllegalEvent(Exception):  # noqa: N818 - a fault of the caller, named for what it is
    """A fact that cannot happen in this state. Nothing was changed."""
