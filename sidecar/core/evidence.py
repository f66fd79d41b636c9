"""The durable records: what was observed, in a form that outlives the process and can be shown to people.

The evidence *is* the state: the limit published is computed from the observations of the current regime, so a
restarted sidecar that reads them back knows what its predecessor knew.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from sidecar.core.facts import Cause, Death, Identity

STALE_WRITER = "stale_writer"
"""A connection lost to writing: it lives and answers, and its server takes no writes any more."""

OF_AGE = "lifetime"
"""The kind of an outage that was no more than one session's end at the age at which all end on that path."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """One rest of one connection, ended by use, by death, or without testimony (censored)."""

    id: str  # unique over restarts: "<run>-<serial>"; storing the same one twice is harmless
    target: str
    at: float  # wall clock, seconds since the epoch
    regime: int  # counts up whenever new evidence contradicts what was held true
    arm: str  # search | sentinel | confirm | volley | guard | ruler | keepalive | lifetime
    outcome: str  # survived | died | censored
    idle_seconds: float
    age_seconds: float
    death: Death | None = None
    cause: Cause | None = None
    sqlstate: str | None = None
    message: str | None = None
    identity: Identity = field(default_factory=Identity)


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """An instant known only to lie between two wall-clock times: `after` < instant <= `until`."""

    after: float
    until: float

    @property
    def width_seconds(self) -> float:
        return self.until - self.after


@dataclass(frozen=True, slots=True, kw_only=True)
class Spell:
    """A time in which something (connecting, reading, writing) was not possible. `ended` is None while it lasts.

    `watched` is False where the sidecar was away when it ended: it was over at the next contact, and how long before is
    anybody's guess.
    """

    began: Interval
    ended: Interval | None = None
    watched: bool = True

    @property
    def shortest_seconds(self) -> float | None:
        return None if self.ended is None else max(0.0, self.ended.after - self.began.until)

    @property
    def longest_seconds(self) -> float | None:
        return None if self.ended is None else self.ended.until - self.began.after

    @property
    def middle_seconds(self) -> float | None:
        """Between shortest and longest: the least wrong single number. None where any would be wrong."""
        shortest, longest = self.shortest_seconds, self.longest_seconds
        return None if shortest is None or longest is None or not self.watched else (shortest + longest) / 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Outage:
    """One disturbance of a target: a restart, a failover, a cull, a partition, a refusal, …

    The same `id` may be stored again as more becomes known; the last version counts.
    """

    id: str
    target: str
    # restart | failover | switchover | cull | partition | refusal | authentication | role_flip | lifetime | unknown
    kind: str
    detail: str | None = None  # fast | immediate | crash | … where it can be told
    connect: Spell | None = None
    read: Spell | None = None
    write: Spell | None = None
    before: Identity | None = None
    after: Identity | None = None
    addresses_before: tuple[str, ...] = ()
    addresses_after: tuple[str, ...] = ()
    dns_changed: Interval | None = None  # when the name came to lead to other addresses, where it did
    connections_lost: Mapping[str, int] = field(default_factory=dict)  # by kind of death, or STALE_WRITER
    errors: Mapping[str, int] = field(default_factory=dict)  # by SQLSTATE, or by error name where there is none

    @property
    def dns_lag_seconds(self) -> float | None:
        """For how long the name led to the old address after the outage had begun: the middle of what is possible.

        None where it always led to the same one, or nobody looked.
        """
        if self.dns_changed is None:
            return None
        spells = [spell for spell in (self.connect, self.read, self.write) if spell is not None]
        began = min((spell.began for spell in spells), key=lambda interval: interval.until)
        shortest = max(0.0, self.dns_changed.after - began.until)
        return (shortest + max(0.0, self.dns_changed.until - began.after)) / 2
