"""Trials: what a pool with given settings really lives through on this path.

The advice is not believed because it was derived well, but because a pool with exactly these settings was left to rest
beyond the limit, on this very path, and handed out a working connection. Beside it the counterfactuals are tried: what
the application would have met with the defaults, with pre-ping only, with the article's settings, with its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

from sidecar.core.recommendation import Keepalive, Recommendation, Status, Verification
from sidecar.core.verdict import ApplicationSettings

REST_BEYOND = 1.05  # of the shortest fatal rest
EVERY_SECONDS = 86400.0  # the same settings are tried again once a day
AFTER_FAILURE_SECONDS = 900.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """The settings of one pool under trial. `pool_recycle` is seconds, -1 for never."""

    name: str
    pool_recycle: float
    pool_pre_ping: bool
    keepalive: Keepalive | None = None
    user_timeout_ms: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialResult:
    """What one pool lived through: check out, use, rest, check out again, use."""

    setup: Setup
    at: float  # wall clock
    idle_seconds: float  # what it really rested
    outcome: str  # ok | error | hang
    checkout_seconds: float | None  # of the second checkout, its query included; None when it failed or hung
    reconnected: bool | None  # whether the second query ran on another connection than the first
    error: str | None = None


def recommended(advice: Recommendation) -> Setup:
    """The settings of the advice, as a pool under trial."""
    return Setup(
        name="recommended",
        pool_recycle=advice.settings.pool_recycle,
        pool_pre_ping=advice.settings.pool_pre_ping,
        keepalive=advice.socket.keepalive,
        user_timeout_ms=advice.socket.user_timeout_ms,
    )


def counterfactuals(advice: Recommendation, application: ApplicationSettings | None) -> tuple[Setup, ...]:
    """What others would set: SQLAlchemy's defaults, pre-ping only, recycle only, and the application's own."""
    setups = [
        Setup(name="defaults", pool_recycle=-1, pool_pre_ping=False),
        Setup(name="pre_ping_only", pool_recycle=-1, pool_pre_ping=True),
        Setup(name="recycle_only", pool_recycle=advice.settings.pool_recycle, pool_pre_ping=False),
    ]
    if application is not None and application.pool_recycle is not None and application.pool_pre_ping is not None:
        setups.append(
            Setup(
                name="application",
                pool_recycle=application.pool_recycle,
                pool_pre_ping=application.pool_pre_ping,
            )
        )
    return tuple(setups)


def rest_for(advice: Recommendation) -> float | None:
    """How long a pool must rest to put the advice to the test, in seconds; None while there is nothing to test."""
    limit = advice.idle_limit
    if limit is None or advice.status is Status.MEASURING:
        return None
    if limit.dead_by_seconds is None:
        return None  # no limit seen: every rest would be survived, and prove nothing
    return limit.dead_by_seconds * REST_BEYOND


def due_in(results: Sequence[TrialResult], setup: Setup, now_at: float) -> float:
    """Seconds until this setup should be tried; 0 = now. Results count only for exactly these settings."""
    last = max((result.at for result in results if result.setup == setup), default=-inf)
    failed = any(result.setup == setup and result.at == last and result.outcome != "ok" for result in results)
    return max(0.0, last + (AFTER_FAILURE_SECONDS if failed else EVERY_SECONDS) - now_at)


def verification(results: Sequence[TrialResult], setup: Setup) -> Verification | None:
    """The latest trial of exactly these settings."""
    trials = [result for result in results if result.setup == setup]
    if not trials:
        return None
    last = max(trials, key=lambda result: result.at)
    return Verification(
        outcome="ok" if last.outcome == "ok" else "failed",
        idle_seconds=round(last.idle_seconds, 3),
        checkout_ms=None if last.checkout_seconds is None else round(last.checkout_seconds * 1000, 3),
        at=last.at,
    )
