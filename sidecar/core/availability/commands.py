"""What the availability machine has the shell do."""

from __future__ import annotations

from dataclasses import dataclass

from sidecar.core.budget import ConnectionRole
from sidecar.core.evidence import Aged, Disturbed, Outage
from sidecar.core.signals import ServerSignal


@dataclass(frozen=True, slots=True)
class Beat:
    """Ask the session for a sign of life."""


@dataclass(frozen=True, slots=True)
class Look:
    """Ask the session who holds the server's sessions: a beat that brings more than life."""


@dataclass(frozen=True, slots=True)
class CheckWrite:
    """Ask the session whether it can write."""


@dataclass(frozen=True, slots=True)
class Drop:
    """Give up the session and all attempts under way; their facts are no longer of interest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """Try a fresh connection, under the name of this role."""

    number: int
    role: ConnectionRole = ConnectionRole.HEARTBEAT


@dataclass(frozen=True, slots=True, kw_only=True)
class AskTable:
    """Ask the connection of this attempt who holds the server's sessions. To be told by TableAnswered, after which it
    is discarded, or by NotConnected."""

    number: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Adopt:
    """The connection of this attempt is the session from now on; give up the former one, and all other attempts."""

    number: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Discard:
    """Close the connection of this attempt, it was good."""

    number: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """Keep this version of the outage. It is over when every downtime has ended (see `over`)."""

    outage: Outage


@dataclass(frozen=True, slots=True, kw_only=True)
class TellRefused:
    """Tell those who hold connections to this target that fresh ones are refused, and what was meant by it."""

    said: ServerSignal


@dataclass(frozen=True, slots=True, kw_only=True)
class Tell:
    """Tell those who draw conclusions from connections that end."""

    disturbed: Disturbed


@dataclass(frozen=True, slots=True, kw_only=True)
class Witness:
    """Tell how old a session got that ended while nothing else was amiss: a fresh connection worked at once."""

    aged: Aged


Command = Beat | Look | CheckWrite | Drop | Attempt | AskTable | Adopt | Discard | Record | TellRefused | Tell | Witness
