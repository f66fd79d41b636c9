"""The advice as data: what `/recommendation` serves, field for field. `advice` decides what is in it.

A number that is not known is None, never a default that poses as a measurement.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from sidecar.core.evidence import Death, Keepalive, Status


class VerdictKind(StrEnum):
    """Whether the application survives this path with the settings it has."""

    PROTECTED = "protected"
    EXPOSED = "exposed"
    UNKNOWN = "unknown"


class SetupName(StrEnum):
    """Whose settings a trial puts to the test."""

    RECOMMENDED = "recommended"  # the advice itself
    KEEPALIVE_ONLY = "keepalive_only"
    DEFAULTS = "defaults"
    PRE_PING_ONLY = "pre_ping_only"
    RECYCLE_ONLY = "recycle_only"
    APPLICATION = "application"  # what the application declares


class TrialOutcome(StrEnum):
    """What the checkout after the rest came to."""

    OK = "ok"
    ERROR = "error"  # it failed at once, or after a while
    HANG = "hang"  # nobody answered, and nothing ended the wait


class VerificationOutcome(StrEnum):
    """What the advice's own trial came to: an error and a hang are the same here, both withdraw it."""

    OK = "ok"
    FAILED = "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolSettings:
    """`pool_recycle` protects by itself; the longer age only together with the keepalive advised beside it."""

    pool_recycle: float  # seconds since connect, as SQLAlchemy counts it; whole from 1 on, never 0
    pool_pre_ping: bool
    selective_pre_ping_after: float | None = None  # seconds of rest; None = ping always (or never)
    pool_recycle_with_keepalive: int | None = None  # seconds; None where keepalive is not proven to hold the path


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
    likely: tuple[LikelyCulprit, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class PrePingCost:
    """`overhead_ratio` is the part of a checkout with one query that the ping takes up; with 95 % confidence the true
    one lies between `overhead_low` and `overhead_high`.
    """

    round_trips: int | None
    p50_ms: float | None
    p99_ms: float | None
    overhead_ratio: float | None
    overhead_low: float | None = None
    overhead_high: float | None = None
    round_trips_autocommit: int | None = None  # under isolation_level="AUTOCOMMIT"


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
    verdict: VerdictKind
    because: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """A trial of exactly these settings on this very path."""

    outcome: VerificationOutcome
    idle_seconds: float
    checkout_ms: float | None
    at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """What a pool with these settings lived through on this path: checked out, left to rest, checked out again."""

    name: SetupName
    pool_recycle: float  # seconds; -1 = never
    pool_pre_ping: bool
    keepalive: bool  # with the socket options of the advice
    outcome: TrialOutcome
    idle_seconds: float
    checkout_ms: float | None  # of the second checkout and its query; None when it failed or hung
    reconnected: bool | None  # whether it was served by another connection than the first
    error: str | None  # what the application would have met
    at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Remark:
    """A reason or a warning: a stable code for scripts, a sentence for people, and where to look at what it is from."""

    code: str
    text: str
    evidence: str | None = None  # a path below the sidecar's own address


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
    trials: tuple[Trial, ...] = ()
    reasons: tuple[Remark, ...] = ()
    warnings: tuple[Remark, ...] = ()
