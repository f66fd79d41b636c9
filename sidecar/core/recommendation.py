"""The advice as data: what `/recommendation` serves, field for field. `sidecar.core.advice` decides what stands in it.

A number that is not known is None, never a default that poses as a measurement.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from sidecar.core.facts import Death


class Status(StrEnum):
    """How far the evidence reaches."""

    MEASURING = "measuring"  # no limit found yet
    PROVISIONAL = "provisional"  # a bracket, from one chain of witnesses
    CONFIRMED = "confirmed"  # a second, independent death at the same idle time
    VERIFIED = "verified"  # a whole volley of fresh connections agreed


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolSettings:
    pool_recycle: int  # seconds since connect, as SQLAlchemy counts it
    pool_pre_ping: bool
    selective_pre_ping_after: float | None = None  # seconds of rest; None = ping always (or never)


@dataclass(frozen=True, slots=True, kw_only=True)
class Keepalive:
    """TCP keepalive, in seconds and probes: TCP_KEEPIDLE, TCP_KEEPINTVL, TCP_KEEPCNT."""

    idle: int
    interval: int
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SocketOptions:
    keepalive: Keepalive | None
    user_timeout_ms: int | None  # TCP_USER_TIMEOUT


@dataclass(frozen=True, slots=True, kw_only=True)
class LikelyCulprit:
    id: str  # as in the catalogue
    component: str


@dataclass(frozen=True, slots=True, kw_only=True)
class IdleLimit:
    """What is known of the idle limit. The three numbers are never merged."""

    proven_seconds: float  # longest rest survived, with no accepted death at or below it
    dead_by_seconds: float | None = None  # shortest rest with an accepted death
    estimate_seconds: float | None = None
    death: Death | None = None
    sqlstate: str | None = None
    keepalive_helps: bool | None = None
    likely: tuple[LikelyCulprit, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class LifetimeLimit:
    """A connection dies at this age however busy it is."""

    proven_seconds: float
    dead_by_seconds: float | None = None
    estimate_seconds: float | None = None
    death: Death | None = None
    sqlstate: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PrePingCost:
    round_trips: int | None
    p50_ms: float | None
    p99_ms: float | None
    overhead_ratio: float | None  # of a checkout's time


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantiles:
    p50: float
    max: float


@dataclass(frozen=True, slots=True, kw_only=True)
class FailoverFigures:
    outages: int
    outage_seconds: Quantiles | None
    write_outage_seconds: Quantiles | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    verdict: str  # protected | exposed | unknown
    because: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """A trial of exactly these settings on this very path."""

    outcome: str  # ok | failed
    idle_seconds: float
    checkout_ms: float | None
    at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Remark:
    """A reason or a warning: a stable code for scripts, a sentence for people."""

    code: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Recommendation:
    target: str
    status: Status
    settings: PoolSettings
    socket: SocketOptions
    connect_args: dict[str, object] = field(default_factory=dict)
    idle_limit: IdleLimit | None = None
    lifetime_limit: LifetimeLimit | None = None
    pre_ping_cost: PrePingCost | None = None
    failover: FailoverFigures | None = None
    application: Verdict | None = None
    verification: Verification | None = None
    reasons: tuple[Remark, ...] = ()
    warnings: tuple[Remark, ...] = ()
