"""Which server answered, and how two answers are related: the same life of one server, another life, another server.

How two answers are compared
============================

A server's start time is the surest mark it has: two that are equal, to the microsecond, are one life of one server, by
whatever address it was reached and whatever else differs. Otherwise it is another server where

- the system identifier differs, which is given to a data directory once: another cluster;
- the timeline is later: a standby was promoted. Only upwards, because what a server tells of its timeline may lag
  behind a promotion until its next checkpoint;
- the address differs.

What is left, with another start time, is another life of the same server. Nothing is concluded from what only one of
the two tells: the answers come from servers that keep some of it to themselves, and from poolers that know none of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Which server answered, as far as it can be known without privileges.

    Two answers come from the same life of the same server when `key` is equal.
    """

    address: str | None = None  # inet_server_addr():port, as the server sees itself
    started_at: float | None = None  # pg_postmaster_start_time()
    system_identifier: str | None = None
    timeline: int | None = None
    in_recovery: bool | None = None
    backend_pid: int | None = None  # of the backend that answered; a change on one connection betrays a pooler

    @property
    def key(self) -> tuple[str | None, float | None]:
        """Where it is not equal, it may be the same life all the same: `compare` tells."""
        return (self.address, self.started_at)


class Kinship(StrEnum):
    """How the server that answers is related to the one that answered before."""

    SAME_LIFE = "same life"  # it was never gone
    ANOTHER_LIFE = "another life"  # the same server, started anew
    ANOTHER_SERVER = "another server"
    UNKNOWN = "unknown"  # no difference is known, nor that there is none


@dataclass(frozen=True, slots=True)
class Comparison:
    """What two answers say together. `respect` is that in which another server differs, in words for people."""

    kinship: Kinship
    respect: str | None = None


def compare(before: Identity | None, after: Identity | None) -> Comparison:
    """How the server that answered `after` is related to the one `before` (see the module). None: nobody answered."""
    if before is None or after is None:
        return Comparison(Kinship.UNKNOWN)
    lives_known = before.started_at is not None and after.started_at is not None
    if lives_known and before.started_at == after.started_at:
        return Comparison(Kinship.SAME_LIFE)
    if (respect := _moved(before, after)) is not None:
        return Comparison(Kinship.ANOTHER_SERVER, respect)
    return Comparison(Kinship.ANOTHER_LIFE if lives_known else Kinship.UNKNOWN)


def _moved(before: Identity, after: Identity) -> str | None:
    if _differ(before.system_identifier, after.system_identifier):
        return "another cluster"
    if before.timeline is not None and after.timeline is not None and before.timeline < after.timeline:
        return f"timeline {before.timeline} to {after.timeline}"
    return "another server" if _differ(before.address, after.address) else None


def _differ(one: str | None, other: str | None) -> bool:
    return None not in (one, other) and one != other
