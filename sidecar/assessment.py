"""From how the parts of a target stand to what is advised and shown. Pure: no clock, no log, and nothing changes.

So anybody may look at a target as often as they like. What an assessment means for the parts (the pool follows the
advice, say) is up to the target's housekeeping.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sidecar.catalogue import known_limits
from sidecar.core.advice.advice import Policy, advise, after_trials
from sidecar.core.advice.ping_cost import PingCost, Spread
from sidecar.core.advice.recommendation import Recommendation
from sidecar.core.advice.trials import TrialResult
from sidecar.core.advice.verdict import Activity, ApplicationSettings
from sidecar.core.availability.readiness import readiness
from sidecar.core.availability.status import AvailabilityStatus
from sidecar.core.budget import BudgetStatus, ConnectionRole, Declared, PauseReason
from sidecar.core.evidence import Outage
from sidecar.core.idle.machine import IdleStatus
from sidecar.core.idle.planning import Stage
from sidecar.core.views import ConnectionState, TargetView
from sidecar.settings.model import Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What the operator set for one target, so far as advice and view depend on it."""

    target: str
    database: str  # host:port/dbname, never credentials
    policy: Policy
    shortest_rest_seconds: float
    application: ApplicationSettings | None  # as declared
    measures_idle: bool
    depends_on: str  # of readiness: database | process
    grace_seconds: float

    @classmethod
    def of(cls, name: str, settings: Settings) -> Terms:
        """Those of the target of that name."""
        target, policy = settings.targets[name], settings.policy
        declared = target.application
        return cls(
            target=name,
            database=target.display,
            policy=Policy(
                safety=policy.safety,
                max_pool_recycle=policy.max_pool_recycle,
                min_pool_recycle=policy.min_pool_recycle,
                ping_overhead=policy.ping_overhead,
            ),
            shortest_rest_seconds=target.idle.floor,
            application=None if declared is None else ApplicationSettings(**declared.model_dump()),
            measures_idle=target.idle.enabled,
            depends_on=settings.readiness.depends_on,
            grace_seconds=settings.readiness.grace,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Assessment:
    """The advice, and what it was before trials had their say: that is what trials put to the test."""

    derived: Recommendation
    advice: Recommendation


def assess(
    terms: Terms,
    *,
    idle: IdleStatus,
    outages: tuple[Outage, ...],
    keepalive_survival_seconds: float | None,
    trials: tuple[TrialResult, ...],
    declared: Declared | None,
    activity: Activity | None,
    ping_cost: PingCost | None,
    budget: BudgetStatus | None = None,
) -> Assessment:
    """What is advised in view of all that is known."""
    derived = advise(
        target=terms.target,
        policy=terms.policy,
        shortest_rest=terms.shortest_rest_seconds,
        idle=idle,
        declared=declared,
        ping=ping_cost,
        outages=outages,
        application=terms.application,
        activity=activity,
        catalogue=known_limits(),
        keepalive_survival_seconds=keepalive_survival_seconds,
        budget=budget,
        measures_idle=terms.measures_idle,
    )
    tried = after_trials(
        derived,
        trials,
        policy=terms.policy,
        shortest_rest=terms.shortest_rest_seconds,
        application=terms.application,
    )
    return Assessment(derived=derived, advice=tried)


def view_of(
    terms: Terms,
    *,
    advice: Recommendation,
    generated_at: float,
    idle: IdleStatus,
    availability: AvailabilityStatus,
    elapsed_seconds: float,
    connections: Mapping[tuple[ConnectionRole, ConnectionState], int],
    checkout: Spread | None,
    checkout_with_ping: Spread | None,
    budget: BudgetStatus | None = None,
    paused: PauseReason | None = None,
) -> TargetView:
    """How the target stands, for everyone who asks. `generated_at` is the (wall-clock) time of the advice."""
    return TargetView(
        name=terms.target,
        database=terms.database,
        recommendation=advice,
        generated_at=generated_at,
        readiness=readiness(availability, depends_on=terms.depends_on, grace_seconds=terms.grace_seconds),
        reachable=availability.reachable,
        stage=idle.stage if terms.measures_idle else Stage.PAUSED,
        suspect=idle.suspect,
        regime=idle.regime,
        elapsed_seconds=elapsed_seconds,
        probes=idle.probes,
        connections=connections,
        checkout=checkout,
        checkout_with_ping=checkout_with_ping,
        budget=budget,
        paused=paused,
    )
