"""From what was measured to what should be set.

Theory of operation
===================

`pool_recycle` counts age since connect and is looked at only at checkout. So every connection handed out is younger
than it, and one that is younger than the idle limit cannot have died of idleness: a recycle below the limit protects
by itself. The advice is a share (`policy.safety`) of the *proven* rest, never of the estimate, and of the proven age
where one is found at which busy connections die, whichever is shorter. One death at an age is enough to lower it.

Many read the advice once, at their start, and live with it. So while nothing shows that connections do not live so
long, it is not less than `policy.min_pool_recycle`, however little is proven: a share of the first rests would have its
reader reconnect every few seconds for life. What dies sooner all the same is met by pre-ping and by the socket options
meanwhile, and the reasons say so. Three things lower it at once: a death, by rest or by age, whose share is less; a
limit that is found, whatever its share; and a shorter limit that the server declares. Beyond that least the advice
grows with the proof. It is never rounded up: below one second it is a fraction of one, and a warning says that such a
path is hardly one to pool on.

Pre-ping finds every death that shows itself when asked. A silent one does not: the ping hangs until the kernel gives
up, a quarter of an hour by default. There the socket options are the cure: TCP keepalive below the limit keeps a
layer-4 path from forgetting the connection at all, and TCP_USER_TIMEOUT turns the hang into an error that the pool
handles. They harm nowhere, so they are always part of the advice.

Where keepalive has been seen to hold a connection beyond the limit, the limit no longer bounds the age of those that
use it. They get an age of their own, `pool_recycle_with_keepalive`: the oldest at which one was seen alive, so they
outlive their rests and nothing is opened anew.

What is decided here are numbers, and why they are these: each reason and warning is a finding, a code with the values
it was decided from. `remarks` has the sentences.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf

from sidecar.core.advice.attribution import KnownLimit, likely_culprits
from sidecar.core.advice.bounds import above, below
from sidecar.core.advice.findings import Code, Finding, WhyPing, WhyWaiting, found
from sidecar.core.advice.ping_cost import PingCost, milliseconds, round_trips
from sidecar.core.advice.recommendation import (
    FailoverFigures,
    IdleLimit,
    LifetimeLimit,
    LikelyCulprit,
    PoolSettings,
    PrePingCost,
    Quantiles,
    Recommendation,
    SetupName,
    SocketOptions,
    TrialOutcome,
)
from sidecar.core.advice.remarks import remark, verdict
from sidecar.core.advice.trials import (
    TrialResult,
    counterfactuals,
    judge_trial,
    latest,
    recommended,
    table,
    verification,
)
from sidecar.core.advice.verdict import Activity, ApplicationSettings, about_activity, judge_application
from sidecar.core.availability.outages import took_the_database_away
from sidecar.core.budget import BudgetStatus, Declared, Hindrance
from sidecar.core.evidence import STALE_WRITER, Death, Downtime, Keepalive, Outage, OutageKind, Status
from sidecar.core.idle.machine import KEEPALIVE_SHARE, IdleStatus  # what is advised is what was tried
from sidecar.core.idle.probes import ProbeState

USER_TIMEOUT_MS = 5000
"""TCP_USER_TIMEOUT, in milliseconds: longer than a few retransmissions, shorter than anybody's patience."""

LONGEST_KEEPALIVE_IDLE_SECONDS = 120
"""TCP_KEEPIDLE at most, in seconds: well below every layer-4 default in the catalogue."""

UNPROVEN_KEEPALIVE_IDLE_SECONDS = 30
"""TCP_KEEPIDLE while nothing is proven, in seconds: half the shortest layer-4 default known."""

LONGEST_UNPINGED_REST_SECONDS = 30.0
"""Seconds. A connection used so recently is worth the risk of one retry."""

UNPINGED_SHARE = 0.1
"""The part of the proven rest that goes unpinged, where pinging is selective."""

DECLARED_TOLERANCE = 0.05
"""A limit measured within this share of the one declared is the server's own."""

LEAST_AGE_SECONDS = 0.001
"""The shortest age advised, in seconds: no clock in a pool is finer."""

NO_STATEMENT_CACHES: Mapping[str, object] = {"statement_cache_size": 0, "prepared_statement_cache_size": 0}
"""Connect arguments for SQLAlchemy on asyncpg where the path forgets statements: asyncpg's cache, whose statements have
names that only one backend knows, and the dialect's own."""

_MOVES = (OutageKind.FAILOVER, OutageKind.SWITCHOVER, OutageKind.ROLE_FLIP)
"""Outages after which an open connection may lead to the wrong server."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """What the operator asks of the advice."""

    safety: float  # share of the proven limit
    max_pool_recycle: float  # seconds
    min_pool_recycle: float  # seconds, until something shorter is measured or declared
    ping_overhead: float  # share of a checkout's time that pre-ping may cost


def advise(
    *,
    target: str,
    policy: Policy,
    shortest_rest: float,
    idle: IdleStatus,
    declared: Declared | None = None,
    ping: PingCost | None = None,
    outages: Sequence[Outage] = (),
    application: ApplicationSettings | None = None,
    activity: Activity | None = None,
    catalogue: Iterable[KnownLimit] = (),
    keepalive_survival_seconds: float | None = None,
    budget: BudgetStatus | None = None,
    measures_idle: bool = True,
) -> Recommendation:
    """The advice for one target, before it has been tried (see `after_trials`).

    `shortest_rest` is the first rest under test (seconds), for the time before proof; `keepalive_survival_seconds` the
    longest rest that a connection with TCP keepalive survived. `budget` is what may be held on the server, and why
    not more; `measures_idle` whether rests are tested at all.
    """
    # A session that was too old was out alone: the database was there all the time.
    outages = tuple(outage for outage in outages if outage.kind != OutageKind.LIFETIME)
    limit, lifetime = _idle_limit(idle, catalogue), _lifetime_limit(idle, catalogue)
    forgets_statements = idle.transaction_pooler
    recycle, why = _pool_recycle(policy, shortest_rest, limit, idle, declared)
    kept, why_kept = _recycle_with_keepalive(policy, limit, keepalive_survival_seconds, recycle, lifetime)
    ping_after, why_ping = _selective_pre_ping(policy, idle, limit, ping, outages, application, recycle)
    reasons = (
        why,
        *why_kept,
        *_about_rest(idle, _why_waiting(idle, budget, measures_idle=measures_idle)),
        *_about_age(idle, lifetime),
        *_about_ping_cost(ping, forgets_statements),
        why_ping,
    )
    warnings = (
        *_warnings(idle),
        *_about_declared(idle, declared),
        *_about_short_lives(recycle, kept, limit, lifetime),
        *([found(Code.TRANSACTION_POOLER)] if forgets_statements else []),
        *_about_stale_writers(outages),
        *(() if activity is None else about_activity(activity, limit, pooled=_is_pooled(idle, budget))),
        *_about_budget(budget),
    )
    return Recommendation(
        target=target,
        status=idle.status,
        settings=PoolSettings(
            pool_recycle=recycle,
            pool_pre_ping=ping_after is None,
            selective_pre_ping_after=ping_after,
            pool_recycle_with_keepalive=kept,
        ),
        socket=SocketOptions(keepalive=_keepalive(limit), user_timeout_ms=USER_TIMEOUT_MS),
        connect_args=dict(NO_STATEMENT_CACHES) if forgets_statements else {},
        forgets_statements=forgets_statements,
        idle_limit=limit,
        lifetime_limit=lifetime,
        pre_ping_cost=_ping_cost(ping, forgets_statements),
        failover=_failover(outages),
        application=verdict(judge_application(application, limit, activity, lifetime)),
        reasons=tuple(remark(finding, target) for finding in reasons),
        warnings=tuple(remark(finding, target) for finding in warnings),
    )


def after_trials(
    advice: Recommendation,
    trials: Sequence[TrialResult],
    *,
    policy: Policy,
    shortest_rest: float,
    application: ApplicationSettings | None = None,
) -> Recommendation:
    """The advice with what trials showed; withdrawn to the cautious answer when its own latest trial failed."""
    setup = recommended(advice)
    last = latest(trials, setup)
    of_application = _application_trial(advice, trials, application)
    if of_application is not None and advice.application is not None:  # that has the last word
        advice = replace(advice, application=verdict(judge_trial(of_application, advice.application)))
    advice = replace(advice, verification=None if last is None else verification(last), trials=table(trials))
    if last is None or last.outcome == TrialOutcome.OK:
        return advice
    cautious = _age(min(_after_failure(policy, shortest_rest, advice), advice.settings.pool_recycle))
    withdrawn = found(
        Code.TRIAL_FAILED, pool_recycle=setup.pool_recycle, rested_seconds=last.idle_seconds, error=last.error
    )
    return replace(
        advice,
        status=Status.PROVISIONAL,
        settings=PoolSettings(pool_recycle=cautious, pool_pre_ping=True),
        warnings=(remark(withdrawn, advice.target), *advice.warnings),
    )


def _application_trial(
    advice: Recommendation, trials: Sequence[TrialResult], application: ApplicationSettings | None
) -> TrialResult | None:
    """The latest trial of a pool with the application's own settings."""
    own = next((setup for setup in counterfactuals(advice, application) if setup.name == SetupName.APPLICATION), None)
    return latest(trials, own)


# -- the limits, as they are published --------------------------------------------------------------------------------


def _idle_limit(idle: IdleStatus, catalogue: Iterable[KnownLimit]) -> IdleLimit | None:
    if idle.proven_seconds is None and idle.dead_by_seconds is None:
        return None
    likely: tuple[LikelyCulprit, ...] = ()
    if idle.dead_by_seconds is not None and idle.death is not None and idle.status is not Status.MEASURING:
        likely = likely_culprits(
            catalogue,
            limits="idle",
            low_seconds=idle.proven_seconds or 0.0,
            high_seconds=idle.dead_by_seconds,
            death=idle.death,
            sqlstate=idle.sqlstate,
            keepalive_helps=idle.keepalive_helps,
        )
    return IdleLimit(
        proven_seconds=below(idle.proven_seconds or 0.0),
        dead_by_seconds=None if idle.dead_by_seconds is None else above(idle.dead_by_seconds),
        estimate_seconds=None if idle.estimate_seconds is None else round(idle.estimate_seconds, 3),
        death=idle.death,
        sqlstate=idle.sqlstate,
        keepalive_helps=idle.keepalive_helps,
        likely=likely,
    )


def _lifetime_limit(idle: IdleStatus, catalogue: Iterable[KnownLimit]) -> LifetimeLimit | None:
    age = idle.lifetime
    if age is None or age.death is None:
        return None
    return LifetimeLimit(
        proven_seconds=below(age.proven_seconds),
        dead_by_seconds=above(age.dead_by_seconds),
        estimate_seconds=round(age.estimate_seconds, 3),
        death=age.death,
        sqlstate=age.sqlstate,
        likely=likely_culprits(
            catalogue,
            limits="lifetime",
            low_seconds=age.proven_seconds,
            high_seconds=age.dead_by_seconds,
            death=age.death,
            sqlstate=age.sqlstate,
            keepalive_helps=None,
        ),
    )


# -- the age ----------------------------------------------------------------------------------------------------------


def _pool_recycle(
    policy: Policy, shortest_rest: float, limit: IdleLimit | None, idle: IdleStatus, declared: Declared | None
) -> tuple[float, Finding]:
    by_age = _share_of_age(policy, idle)
    by_rest, why = _share_of_rest(policy, shortest_rest, limit, idle, declared)
    return (by_rest, why) if by_age is None or by_rest <= by_age[0] else by_age


def _share(policy: Policy, seconds: float) -> float:
    """What is advised where connections live so long."""
    return _age(min(policy.safety * seconds, policy.max_pool_recycle))


def _age(seconds: float) -> float:
    """As an age is advised: rounded down to whole seconds, below one second to milliseconds.

    Never 0, which most pools take for no limit; no clock in a pool is finer than a millisecond.
    """
    return int(seconds) if seconds >= 1 else max(LEAST_AGE_SECONDS, below(seconds))


def _share_of_age(policy: Policy, idle: IdleStatus) -> tuple[float, Finding] | None:
    """What the age allows at which busy connections die; None while none was seen to die of age."""
    if idle.lifetime is not None:
        code, age = Code.SHARE_OF_LIFETIME, idle.lifetime.proven_seconds
    elif idle.suspected_age_seconds is not None:
        code, age = Code.LIFETIME_SUSPECTED, idle.suspected_age_seconds
    else:
        return None
    return _share(policy, age), found(code, safety=policy.safety, age_seconds=age)


def _share_of_rest(
    policy: Policy, shortest_rest: float, limit: IdleLimit | None, idle: IdleStatus, declared: Declared | None
) -> tuple[float, Finding]:
    least = _least(policy, idle)
    # Where longer rests were survived, what is declared is not what the connection to it has (a pooler is between).
    timeout = declared.idle_session_timeout if declared is not None else None
    if limit is not None and limit.proven_seconds > 0:
        proven = limit.proven_seconds
        recycle = _share(policy, proven)
        if timeout and proven < timeout and recycle <= (by_declaration := _share(policy, timeout)) < least:
            return by_declaration, found(
                Code.DECLARED_LIMIT, safety=policy.safety, declared_seconds=timeout, proven_seconds=proven
            )
        if recycle < least:
            return least, found(Code.RAISED_BY_POLICY, proven_seconds=proven, pool_recycle=least)
        if policy.safety * proven > policy.max_pool_recycle:
            return recycle, found(Code.CAPPED_BY_POLICY, proven_seconds=proven, pool_recycle=recycle)
        return recycle, found(Code.SHARE_OF_PROVEN, safety=policy.safety, proven_seconds=proven)
    shown = exact = shortest_rest
    if idle.dead_by_seconds is not None:
        # By now shorter ones are under test. The bound as it is shown is rounded up, the advice never is.
        shown, exact = min(shown, above(idle.dead_by_seconds)), min(exact, idle.dead_by_seconds)
    recycle = _share(policy, exact)
    if timeout and (by_declaration := _share(policy, timeout)) < max(recycle, least):
        return by_declaration, found(
            Code.DECLARED_LIMIT, safety=policy.safety, declared_seconds=timeout, proven_seconds=None
        )
    raised = recycle < least
    return max(recycle, least), found(
        Code.NOTHING_PROVEN,
        safety=policy.safety,
        shortest_rest_seconds=shown,
        raised_to_seconds=least if raised else None,
    )


def _least(policy: Policy, idle: IdleStatus) -> float:
    """What is advised at least (seconds); 0 once it is measured that less is called for."""
    least = min(policy.min_pool_recycle, policy.max_pool_recycle)
    if idle.dead_by_seconds is not None and idle.status is not Status.MEASURING:
        return 0.0
    if any(death is not None and policy.safety * death < least for death in (idle.dead_by_seconds, idle.stray_seconds)):
        return 0.0
    earlier = idle.earlier_dead_by_seconds  # all is measured anew, but that was a measurement too
    return _age(least if earlier is None else min(least, policy.safety * earlier))


def _after_failure(policy: Policy, shortest_rest: float, advice: Recommendation) -> float:
    """The age (seconds) for who must not trust the advice; short only where something has been seen to die."""
    cautious = policy.safety * shortest_rest
    limits = (advice.idle_limit, advice.lifetime_limit)
    if any(limit is not None and limit.dead_by_seconds is not None for limit in limits):
        return cautious
    return max(cautious, policy.min_pool_recycle)


def _recycle_with_keepalive(
    policy: Policy,
    limit: IdleLimit | None,
    survived_seconds: float | None,
    recycle: float,
    lifetime: LifetimeLimit | None,
) -> tuple[int | None, tuple[Finding, ...]]:
    """The age (seconds) for connections with the keepalive advised; None while that is not proven to be longer."""
    if limit is None or limit.dead_by_seconds is None or limit.keepalive_helps is False:
        return None, ()
    if survived_seconds is None or survived_seconds <= limit.dead_by_seconds:
        return None, ()  # it lived no longer than others
    longest = inf if lifetime is None else policy.safety * lifetime.proven_seconds
    age = int(min(survived_seconds, policy.max_pool_recycle, longest))
    if age <= recycle:
        return None, ()
    why = found(
        Code.KEPT_BY_KEEPALIVE,
        keepalive_survival_seconds=survived_seconds,
        dead_by_seconds=limit.dead_by_seconds,
        pool_recycle=age,
    )
    return age, (why,)


def _about_short_lives(
    recycle: float, kept: int | None, limit: IdleLimit | None, lifetime: LifetimeLimit | None
) -> Iterator[Finding]:
    seen = [each.dead_by_seconds for each in (limit, lifetime) if each is not None and each.dead_by_seconds is not None]
    if recycle < 1 and kept is None and seen:
        yield found(Code.TOO_SHORT_TO_POOL, dead_by_seconds=min(seen), pool_recycle=recycle)


def _keepalive(limit: IdleLimit | None) -> Keepalive:
    if limit is None or limit.proven_seconds <= 0:
        idle = UNPROVEN_KEEPALIVE_IDLE_SECONDS
    elif limit.dead_by_seconds is None:  # the true limit is longer still
        idle = max(UNPROVEN_KEEPALIVE_IDLE_SECONDS, int(KEEPALIVE_SHARE * limit.proven_seconds))
    else:
        idle = int(KEEPALIVE_SHARE * limit.proven_seconds)
    idle = max(1, min(LONGEST_KEEPALIVE_IDLE_SECONDS, idle))
    return Keepalive(idle=idle, interval=min(15, idle), count=3)


# -- the ping ---------------------------------------------------------------------------------------------------------


def _selective_pre_ping(
    policy: Policy,
    idle: IdleStatus,
    limit: IdleLimit | None,
    ping: PingCost | None,
    outages: Sequence[Outage],
    application: ApplicationSettings | None,
    recycle: float,
) -> tuple[float | None, Finding]:
    """The rest after which pinging is worth its price (seconds); None = ping at every checkout."""
    why, dear = _why_ping(idle, outages), _dear(policy, ping, application)
    if why is None and dear and limit is not None:
        after = min(recycle, max(1.0, min(LONGEST_UNPINGED_REST_SECONDS, UNPINGED_SHARE * limit.proven_seconds)))
        in_transaction, autocommit = round_trips(parsed_anew=idle.transaction_pooler)
        return after, found(
            Code.PRE_PING_SELECTIVE,
            after_seconds=after,
            round_trips=in_transaction,
            round_trips_autocommit=autocommit,
            **dear,
        )
    if why is None:
        known = ping is not None and ping.overhead_low is not None
        why = WhyPing.CHEAP if known else WhyPing.PRICE_UNKNOWN
    return None, found(Code.PRE_PING_KEPT, why=why, outages=len(outages))


def _why_ping(idle: IdleStatus, outages: Sequence[Outage]) -> WhyPing | None:
    """Why a ping at every checkout is wanted here whatever it costs."""
    if _death(idle) is None:
        return WhyPing.DEATH_UNKNOWN
    if idle.status is not Status.VERIFIED:
        return WhyPing.NOT_VERIFIED
    if outages:
        return WhyPing.OUTAGES
    return WhyPing.SILENT if _death(idle) is Death.SILENT else None


def _dear(policy: Policy, ping: PingCost | None, application: ApplicationSettings | None) -> Mapping[str, object]:
    """What makes the ping too dear for every checkout, beside what is allowed; nothing where it is not."""
    if ping is None:
        return {}
    if ping.overhead_low is not None and ping.overhead_low > policy.ping_overhead:
        return {"overhead_ratio": ping.overhead_ratio or 0.0, "overhead_allowed": policy.ping_overhead}
    allowed = None if application is None else application.checkout_p99
    if allowed is not None and ping.p99_seconds is not None and ping.p99_seconds > allowed:
        return {"p99_seconds": ping.p99_seconds, "p99_allowed_seconds": allowed}
    return {}


def _ping_cost(ping: PingCost | None, forgets_statements: bool) -> PrePingCost | None:
    if ping is None:
        return None
    in_transaction, autocommit = round_trips(parsed_anew=forgets_statements)
    return PrePingCost(
        round_trips=in_transaction,
        round_trips_autocommit=autocommit,
        p50_ms=milliseconds(ping.p50_seconds),
        p99_ms=milliseconds(ping.p99_seconds),
        overhead_ratio=_rounded(ping.overhead_ratio),
        overhead_low=_rounded(ping.overhead_low),
        overhead_high=_rounded(ping.overhead_high),
    )


def _rounded(share: float | None) -> float | None:
    return None if share is None else round(share, 3)


def _about_ping_cost(ping: PingCost | None, forgets_statements: bool) -> Iterator[Finding]:
    if ping is not None:
        in_transaction, autocommit = round_trips(parsed_anew=forgets_statements)
        yield found(
            Code.PRE_PING_COST,
            cost=ping,
            round_trips=in_transaction,
            round_trips_autocommit=autocommit,
            parsed_anew=forgets_statements,
        )


# -- outages ----------------------------------------------------------------------------------------------------------


def _failover(outages: Sequence[Outage]) -> FailoverFigures | None:
    """How long outages lasted: the middle of each interval, because that is the least wrong single number.

    All are counted that took the database away: a refusal beside a session that works, which our own opening may have
    brought about, is none. Those whose end nobody watched have no length to tell.
    """
    outages = tuple(filter(took_the_database_away, outages))
    if not outages:
        return None
    return FailoverFigures(
        outages=len(outages),
        outage_seconds=_quantiles([_middle(outage.connect or outage.read) for outage in outages]),
        write_outage_seconds=_quantiles([_middle(outage.write) for outage in outages]),
    )


def _middle(downtime: Downtime | None) -> float | None:
    return None if downtime is None else downtime.middle_seconds


def _quantiles(seconds: Iterable[float | None]) -> Quantiles | None:
    ordered = sorted(duration for duration in seconds if duration is not None)
    if not ordered:
        return None
    return Quantiles(p50=round(ordered[(len(ordered) - 1) // 2], 3), max=round(ordered[-1], 3))


def _about_stale_writers(outages: Sequence[Outage]) -> Iterator[Finding]:
    stale = sum(outage.connections_lost.get(STALE_WRITER, 0) for outage in outages)
    changes = sum(outage.kind in _MOVES for outage in outages)
    if stale or changes:
        yield found(Code.STALE_WRITER, stale_writers=stale, role_changes=changes)


# -- what is known of the path ----------------------------------------------------------------------------------------


def _about_rest(idle: IdleStatus, waiting: WhyWaiting | None) -> Iterator[Finding]:
    yield _about_limit(idle, waiting)
    if idle.death is not None:
        yield found(Code.of_death(idle.death), death=idle.death)


def _why_waiting(idle: IdleStatus, budget: BudgetStatus | None, *, measures_idle: bool) -> WhyWaiting | None:
    """Why no connection rests; None while one does."""
    if not measures_idle:
        return WhyWaiting.OFF
    if any(probe.state is not ProbeState.OPENING for probe in idle.probes):
        return None
    hindrance = None if budget is None or budget.granted.probes else budget.hindrance
    if hindrance is Hindrance.PAUSED:
        return WhyWaiting.PAUSED
    return WhyWaiting.NOT_OPEN if hindrance in (None, Hindrance.NOT_LOOKED_YET) else WhyWaiting.NO_ROOM


def _is_pooled(idle: IdleStatus, budget: BudgetStatus | None) -> bool:
    return idle.transaction_pooler or (budget is not None and budget.hindrance is Hindrance.POOLER)


def _about_budget(budget: BudgetStatus | None) -> Iterator[Finding]:
    """Why less is measured than was wished for."""
    if budget is None or budget.hindrance in (None, Hindrance.NOT_LOOKED_YET):
        return
    granted, wished = budget.granted, budget.wished
    beats = granted.heartbeat or not wished.heartbeat
    if granted.measuring >= wished.measuring and beats:
        return
    rests = granted.probes > 0 or not wished.probes
    paused = wished.measuring > 0 and not (granted.measuring > 0 and rests)
    yield found(
        Code.MEASURING_IS_PAUSED if paused else Code.MEASURING_IS_SMALL,
        hindrance=budget.hindrance,
        ceiling=budget.ceiling,
        used=budget.used,
        usable=budget.usable,
        granted=granted.measuring,
        wished=wished.measuring,
        beats=beats,
    )


def _about_limit(idle: IdleStatus, waiting: WhyWaiting | None) -> Finding:
    proven, dead_by = idle.proven_seconds, idle.dead_by_seconds
    if idle.exhausted:
        return found(Code.NO_LIMIT_SEEN, proven_seconds=proven or 0.0, age_ends_them=False)
    if dead_by is None and idle.lifetime is not None:
        return found(Code.NO_LIMIT_SEEN, proven_seconds=proven or 0.0, age_ends_them=True)
    if dead_by is None:
        return found(Code.MEASURING, proven_seconds=proven, waiting=waiting)
    if idle.status is Status.MEASURING or idle.estimate_seconds is None:
        return found(Code.LIMIT_BRACKETED, proven_seconds=proven or 0.0, dead_by_seconds=dead_by)
    return found(
        Code.IDLE_LIMIT_MEASURED,
        estimate_seconds=idle.estimate_seconds,
        proven_seconds=proven or 0.0,
        dead_by_seconds=dead_by,
        status=idle.status,
        fresh_survivals=idle.fresh_survivals,
        fresh_deaths=idle.fresh_deaths,
    )


def _about_age(idle: IdleStatus, lifetime: LifetimeLimit | None) -> Iterator[Finding]:
    if lifetime is not None and lifetime.death is not None:
        yield found(
            Code.LIFETIME_LIMIT_MEASURED,
            estimate_seconds=lifetime.estimate_seconds or 0.0,
            proven_seconds=lifetime.proven_seconds,
            dead_by_seconds=lifetime.dead_by_seconds or 0.0,
            death=lifetime.death,
        )
        return
    busy = idle.busy_seconds or 0.0
    if busy > (idle.dead_by_seconds or idle.proven_seconds or 0.0):  # else no news: resting ones got as old
        yield found(Code.NO_LIFETIME_LIMIT_SEEN, age_seconds=busy)


def _death(idle: IdleStatus) -> Death | None:
    """How connections die on this path, of rest or else of age."""
    return idle.death or (None if idle.lifetime is None else idle.lifetime.death)


def _warnings(idle: IdleStatus) -> Iterator[Finding]:
    if _death(idle) is Death.SILENT:
        yield found(Code.SILENT_DEATH, user_timeout_ms=USER_TIMEOUT_MS)
    if idle.suspect:
        yield found(Code.LIMIT_SUSPECT)
    if idle.several_populations:
        yield found(Code.SEVERAL_POPULATIONS)


def _about_declared(idle: IdleStatus, declared: Declared | None) -> Iterator[Finding]:
    if declared is None:
        return
    keepalive = declared.tcp_keepalives_idle
    if keepalive and idle.dead_by_seconds is None and (idle.proven_seconds or 0) > keepalive:
        yield found(Code.MASKED_BY_SERVER_KEEPALIVE, keepalive_seconds=keepalive)
    timeout, measured = declared.idle_session_timeout, idle.estimate_seconds
    if timeout is None or measured is None or idle.status is Status.MEASURING:
        return
    if timeout == 0 or abs(timeout - measured) > DECLARED_TOLERANCE * measured:
        yield found(Code.NOT_THE_SERVER, declared_seconds=timeout, measured_seconds=measured)
