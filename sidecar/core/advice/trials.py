"""Trials: what a pool with given settings really lives through on this path.

The advice is not believed because it was derived well, but because a pool with exactly these settings was left to rest
beyond the limit, on this very path, and handed out a working connection. Beside it the counterfactuals are tried: what
the application would have met with the defaults, with pre-ping only, with the right age but no ping, with TCP
keepalive and nothing else, with its own settings.

The trial with keepalive alone does more: a connection that was never replaced and still lives after a rest beyond the
limit proves that age for every pool with the same keepalive. So its rest is raised to the longest age the policy
allows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from sidecar.core.advice.ping_cost import milliseconds
from sidecar.core.advice.recommendation import (
    Recommendation,
    SetupName,
    Trial,
    TrialOutcome,
    Verification,
    VerificationOutcome,
)
from sidecar.core.advice.verdict import ApplicationSettings
from sidecar.core.evidence import Keepalive, Status

REST_BEYOND = 1.05  # of the shortest fatal rest
EVERY_SECONDS = 86400.0  # the same settings are tried again once a day
AFTER_FAILURE_SECONDS = 900.0  # the advice that failed; what others would set is expected to


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """The settings of one pool under trial. `pool_recycle` is seconds, -1 for never."""

    name: SetupName
    pool_recycle: float
    pool_pre_ping: bool
    selective_pre_ping_after: float | None = None
    keepalive: Keepalive | None = None
    user_timeout_ms: int | None = None
    statement_caches: bool = True
    drops: bool = False  # connections given up are dropped, as the module `python` does, not closed gracefully


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialResult:
    """What one pool lived through: check out, use, rest, check out again, use."""

    setup: Setup
    at: float  # wall clock
    idle_seconds: float  # what it really rested
    outcome: TrialOutcome
    checkout_seconds: float | None  # of the second checkout, its query included; None when it failed or hung
    reconnected: bool | None  # whether the second query ran on another connection than the first
    error: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """A trial that is due."""

    setup: Setup
    rest_seconds: float


def recommended(advice: Recommendation) -> Setup:
    """The settings of the advice, as the engine of the format `python` has them."""
    settings, socket = advice.settings, advice.socket
    return Setup(
        name=SetupName.RECOMMENDED,
        pool_recycle=settings.pool_recycle_with_keepalive or settings.pool_recycle,
        pool_pre_ping=settings.pool_pre_ping,
        selective_pre_ping_after=settings.selective_pre_ping_after,
        keepalive=socket.keepalive,
        user_timeout_ms=socket.user_timeout_ms,
        statement_caches=advice.connect_args.get("statement_cache_size") != 0,
        drops=True,
    )


def counterfactuals(advice: Recommendation, application: ApplicationSettings | None) -> tuple[Setup, ...]:
    """What others would set. Statement caches are as the path needs them: they are not what is compared here."""
    caches = advice.connect_args.get("statement_cache_size") != 0
    setups = [
        Setup(
            name=SetupName.KEEPALIVE_ONLY,
            pool_recycle=-1,
            pool_pre_ping=False,
            keepalive=advice.socket.keepalive,
            user_timeout_ms=advice.socket.user_timeout_ms,
            statement_caches=caches,
        ),
        Setup(name=SetupName.DEFAULTS, pool_recycle=-1, pool_pre_ping=False, statement_caches=caches),
        Setup(name=SetupName.PRE_PING_ONLY, pool_recycle=-1, pool_pre_ping=True, statement_caches=caches),
        Setup(
            name=SetupName.RECYCLE_ONLY,
            pool_recycle=advice.settings.pool_recycle,
            pool_pre_ping=False,
            statement_caches=caches,
        ),
    ]
    if application is not None and application.pool_recycle is not None and application.pool_pre_ping is not None:
        setups.append(
            Setup(
                name=SetupName.APPLICATION,
                pool_recycle=_plain(application.pool_recycle),
                pool_pre_ping=application.pool_pre_ping,
                statement_caches=caches,
            )
        )
    return tuple(setups)


def _plain(seconds: float) -> float:
    """The same number, whole where it is."""
    return int(seconds) if seconds.is_integer() else seconds


def rest_for(advice: Recommendation) -> float | None:
    """How long a pool must rest to put the advice to the test, in seconds; None while there is nothing to test."""
    if advice.status is not Status.VERIFIED:
        return None  # the measurement still needs every connection
    for limit in (advice.idle_limit, advice.lifetime_limit):  # at rest it gets as old
        if limit is not None and limit.dead_by_seconds is not None:
            return limit.dead_by_seconds * REST_BEYOND
    return None  # no limit seen: every rest would be survived, and prove nothing


def attempts(
    advice: Recommendation,
    application: ApplicationSettings | None,
    results: Sequence[TrialResult],
    now_at: float,
    *,
    longest_age: float,
) -> Iterator[Attempt]:
    """The trials due now, most wanted first. `longest_age` is the age in seconds worth proving for connections kept
    alive."""
    rest = rest_for(advice)
    if rest is None:
        return
    for setup in (recommended(advice), *counterfactuals(advice, application)):
        wanted = rest
        if setup.name == SetupName.KEEPALIVE_ONLY and advice.settings.pool_recycle_with_keepalive is not None:
            wanted = max(rest, longest_age)  # it has been seen to help: now for how long
        if due_in(results, setup, now_at, rest_seconds=wanted) == 0:
            yield Attempt(setup=setup, rest_seconds=wanted)


def due_in(results: Sequence[TrialResult], setup: Setup, now_at: float, *, rest_seconds: float = 0.0) -> float:
    """Seconds until this setup should be tried; 0 = now. Results count only for exactly these settings, and for a
    rest as long."""
    last = latest((result for result in results if result.idle_seconds >= rest_seconds), setup)
    if last is None:
        return 0.0
    again = setup.name == SetupName.RECOMMENDED and last.outcome != TrialOutcome.OK
    return max(0.0, last.at + (AFTER_FAILURE_SECONDS if again else EVERY_SECONDS) - now_at)


def kept_alive(result: TrialResult) -> bool:
    """Whether keepalive alone carried one and the same connection through the rest."""
    return (
        result.setup.name == SetupName.KEEPALIVE_ONLY
        and result.outcome == TrialOutcome.OK
        and result.reconnected is False
    )


def verification(result: TrialResult) -> Verification:
    """A trial of the advice's own settings, as the advice carries it."""
    return Verification(
        outcome=VerificationOutcome.OK if result.outcome == TrialOutcome.OK else VerificationOutcome.FAILED,
        idle_seconds=round(result.idle_seconds, 3),
        checkout_ms=milliseconds(result.checkout_seconds),
        at=result.at,
    )


def table(results: Sequence[TrialResult]) -> tuple[Trial, ...]:
    """The latest result under each name, to be shown; the advice's own first."""
    by_name: dict[str, TrialResult] = {}
    for result in sorted(results, key=lambda result: result.at):
        by_name[result.setup.name] = result
    ordered = sorted(
        by_name.values(), key=lambda result: (result.setup.name != SetupName.RECOMMENDED, result.setup.name)
    )
    return tuple(
        Trial(
            name=result.setup.name,
            pool_recycle=result.setup.pool_recycle,
            pool_pre_ping=result.setup.pool_pre_ping,
            keepalive=result.setup.keepalive is not None,
            outcome=result.outcome,
            idle_seconds=round(result.idle_seconds, 3),
            checkout_ms=milliseconds(result.checkout_seconds),
            reconnected=result.reconnected,
            error=result.error,
            at=result.at,
        )
        for result in ordered
    )


def latest(results: Iterable[TrialResult], setup: Setup | None) -> TrialResult | None:
    """The newest trial of exactly these settings."""
    return max((result for result in results if result.setup == setup), key=lambda result: result.at, default=None)
