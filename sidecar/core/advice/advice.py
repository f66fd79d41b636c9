"""From what was measured to what should be set.

Theory of operation
===================

`pool_recycle` counts age since connect and is looked at only at checkout. So every connection handed out is younger
than it, and one that is younger than the idle limit cannot have died of idleness: a recycle below the limit protects
by itself. The advice is a share (`policy.safety`) of the *proven* rest, never of the estimate, and of the proven age
where one is found at which busy connections die, whichever is shorter. One death at an age is enough to lower it.

Before anything is proven, the answer is the same share of the shortest rest under test, less where the server declares
a shorter limit. It costs reconnects and protects: that is what cautious means here. From the first survival on the
advice grows with the proof. It is never rounded up: below one second it is a fraction of one, and a warning says that
such a path is hardly one to pool on.

Pre-ping finds every death that shows itself when asked. A silent one does not: the ping hangs until the kernel gives
up, a quarter of an hour by default. There the socket options are the cure: TCP keepalive below the limit keeps a
layer-4 path from forgetting the connection at all, and TCP_USER_TIMEOUT turns the hang into an error that the pool
handles. They harm nowhere, so they are always part of the advice.

Where keepalive has been seen to hold a connection beyond the limit, the limit no longer bounds the age of those that
use it. They get an age of their own, `pool_recycle_with_keepalive`: the oldest at which one was seen alive, so they
outlive their rests and nothing is opened anew.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf

from sidecar.core.advice.attribution import KnownLimit, likely_culprits
from sidecar.core.advice.bounds import above, at_least, at_most, below
from sidecar.core.advice.ping_cost import (
    PING_ROUND_TRIPS,
    PING_ROUND_TRIPS_AUTOCOMMIT,
    PING_ROUND_TRIPS_UNCACHED,
    PING_ROUND_TRIPS_UNCACHED_AUTOCOMMIT,
    PingCost,
    milliseconds,
)
from sidecar.core.advice.recommendation import (
    FailoverFigures,
    IdleLimit,
    LifetimeLimit,
    LikelyCulprit,
    PoolSettings,
    PrePingCost,
    Quantiles,
    Recommendation,
    Remark,
    SetupName,
    SocketOptions,
    TrialOutcome,
    Verdict,
    VerdictKind,
)
from sidecar.core.advice.trials import (
    TrialResult,
    counterfactuals,
    latest,
    recommended,
    table,
    verification,
)
from sidecar.core.advice.verdict import Activity, ApplicationSettings, about_activity, judge_application
from sidecar.core.budget import Declared
from sidecar.core.evidence import STALE_WRITER, Death, Downtime, Keepalive, Outage, OutageKind, Status
from sidecar.core.idle.machine import KEEPALIVE_SHARE, IdleStatus  # what is advised is what was tried

USER_TIMEOUT_MS = 5000  # longer than a few retransmissions, shorter than anybody's patience
LONGEST_KEEPALIVE_IDLE = 120  # seconds; well below every layer-4 default in the catalogue
UNPROVEN_KEEPALIVE_IDLE = 30  # half the shortest layer-4 default known
LONGEST_UNPINGED_REST = 30.0  # seconds; a connection used so recently is worth the risk of one retry
UNPINGED_SHARE = 0.1  # of the proven rest
DECLARED_TOLERANCE = 0.05
LEAST_AGE = 0.001  # seconds
NO_STATEMENT_CACHES: Mapping[str, object] = {"statement_cache_size": 0, "prepared_statement_cache_size": 0}
"""Connect arguments for SQLAlchemy on asyncpg: asyncpg's cache, whose statements have names that only one backend
knows, and the dialect's own."""

_MOVES = ("failover", "switchover", "role_flip")  # outages after which an open connection may lead to the wrong server

_SURVIVED, _DIED, _AGED = "/evidence?outcome=survived", "/evidence?outcome=died", "/evidence?arm=lifetime"
EVIDENCE: Mapping[str, str] = {
    "measuring": _SURVIVED,
    "nothing_proven": _SURVIVED,
    "share_of_proven": _SURVIVED,
    "capped_by_policy": _SURVIVED,
    "share_of_lifetime": _AGED,
    "lifetime_suspected": _AGED,
    "lifetime_limit_measured": _AGED,
    "no_lifetime_limit_seen": _AGED,
    "no_limit_seen": _SURVIVED,
    "declared_limit": "/evidence",
    "limit_bracketed": _DIED,
    "idle_limit_measured": _DIED,
    "death_silent": _DIED,
    "death_reset_on_use": _DIED,
    "death_closed": _DIED,
    "death_fatal": _DIED,
    "silent_death": _DIED,
    "limit_suspect": _DIED,
    "several_populations": _DIED,
    "not_the_server": _DIED,
    "too_short_to_pool": _DIED,
    "masked_by_server_keepalive": _SURVIVED,
    "kept_by_keepalive": "/evidence?arm=keepalive",
    "transaction_pooler": "/evidence",
    "pre_ping_cost": "/metrics",
    "pre_ping_kept": "/evidence",
    "pre_ping_selective": "/metrics",
    "stale_writer": "/outages",
    "trial_failed": "/recommendation",
    "idle_in_transaction": "/metrics",
    "pool_exhausted": "/metrics",
    "application_rests_too_long": "/metrics",
}
"""Where to look at what a remark is from, by its code. The target is added."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """What the operator asks of the advice."""

    safety: float  # share of the proven limit
    max_pool_recycle: float  # seconds
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
    kept_seconds: float | None = None,
) -> Recommendation:
    """The advice for one target, before it has been tried (see `after_trials`).

    `shortest_rest` is the first rest under test (seconds), for the time before proof; `kept_seconds` the longest rest
    that a connection with TCP keepalive survived.
    """
    # A session that was too old was out alone: the database was there all the time.
    outages = tuple(outage for outage in outages if outage.kind != OutageKind.LIFETIME)
    limit, lifetime = _idle_limit(idle, catalogue), _lifetime_limit(idle, catalogue)
    pooler = idle.transaction_pooler
    recycle, why = _pool_recycle(policy, shortest_rest, limit, idle, declared)
    kept, about_kept = _recycle_with_keepalive(policy, limit, kept_seconds, recycle, lifetime)
    ping_after, about_ping = _selective_pre_ping(policy, idle, limit, ping, outages, application, pooler, recycle)
    reasons = (
        why,
        *about_kept,
        *_about_idleness(idle),
        *_about_age(idle, lifetime),
        *_about_ping_cost(ping, pooler),
        about_ping,
    )
    warnings = (
        *_warnings(idle, declared),
        *(() if kept is not None else _about_short_lives(recycle, limit, lifetime)),
        *_about_pooler(pooler),
        *_about_stale_writers(outages),
        *(() if activity is None else about_activity(activity, limit)),
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
        connect_args=dict(NO_STATEMENT_CACHES) if pooler else {},
        idle_limit=limit,
        lifetime_limit=lifetime,
        pre_ping_cost=_ping_cost(ping, pooler),
        failover=_failover(outages),
        application=judge_application(application, limit, activity, lifetime),
        reasons=_linked(target, reasons),
        warnings=_linked(target, warnings),
    )


def _linked(target: str, remarks: Iterable[Remark]) -> tuple[Remark, ...]:
    """Each remark with the address of its evidence."""
    linked = []
    for remark in remarks:
        path, _, query = (remark.evidence or EVIDENCE[remark.code]).partition("?")
        if path != "/metrics":
            path += f"?target={target}" + (f"&{query}" if query else "")  # names of targets need no encoding
        linked.append(replace(remark, evidence=path))
    return tuple(linked)


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
    verified = None if last is None else verification(last)
    verdict = _tried(advice, trials, application)
    advice = replace(advice, verification=verified, trials=table(trials), application=verdict)
    if last is None or last.outcome == TrialOutcome.OK:
        return advice
    cautious = _age(min(policy.safety * shortest_rest, advice.settings.pool_recycle))
    withdrawn = Remark(
        code="trial_failed",
        text=f"The advice (pool_recycle = {setup.pool_recycle} s) is withdrawn: a pool with exactly these settings"
        f" failed after {last.idle_seconds:.1f} s of rest ({last.error}). Until a trial succeeds, the cautious"
        " setting stands.",
    )
    return replace(
        advice,
        status=Status.PROVISIONAL,
        settings=PoolSettings(pool_recycle=cautious, pool_pre_ping=True),
        warnings=(*_linked(advice.target, (withdrawn,)), *advice.warnings),
    )


def _tried(
    advice: Recommendation, trials: Sequence[TrialResult], application: ApplicationSettings | None
) -> Verdict | None:
    """The verdict on the application, where a pool with its settings has been tried: that has the last word."""
    own = next((setup for setup in counterfactuals(advice, application) if setup.name == SetupName.APPLICATION), None)
    last = latest(trials, own)
    if last is None or advice.application is None:
        return advice.application
    rested = f"A pool with its settings was tried on this path: after {last.idle_seconds:.1f} s of rest"
    if last.outcome == TrialOutcome.OK:
        took = 1000 * (last.checkout_seconds or 0)
        return Verdict(
            verdict=VerdictKind.PROTECTED,
            because=f"{rested} a checkout and its first query succeeded, in {took:.0f} ms.",
        )
    happened = "the query hung" if last.outcome == TrialOutcome.HANG else "the query failed"
    return Verdict(
        verdict=VerdictKind.EXPOSED, because=f"{rested} {happened} ({last.error}). {advice.application.because}"
    )


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


def _told(seconds: float) -> str:
    """For people; what is short would be lost in the rounding that suits the long."""
    return f"{seconds:.1f}" if seconds >= 1 else f"{seconds:.2g}"


def _lifetime_limit(idle: IdleStatus, catalogue: Iterable[KnownLimit]) -> LifetimeLimit | None:
    found = idle.lifetime
    if found is None or found.death is None:
        return None
    return LifetimeLimit(
        proven_seconds=below(found.proven_seconds),
        dead_by_seconds=above(found.dead_by_seconds),
        estimate_seconds=round(found.estimate_seconds, 3),
        death=found.death,
        sqlstate=found.sqlstate,
        likely=likely_culprits(
            catalogue,
            limits="lifetime",
            low_seconds=found.proven_seconds,
            high_seconds=found.dead_by_seconds,
            death=found.death,
            sqlstate=found.sqlstate,
            keepalive_helps=None,
        ),
    )


def _pool_recycle(
    policy: Policy, shortest_rest: float, limit: IdleLimit | None, idle: IdleStatus, declared: Declared | None
) -> tuple[float, Remark]:
    by_age = _share_of_age(policy, idle)
    by_rest, why = _share_of_rest(policy, shortest_rest, limit, declared)
    return (by_rest, why) if by_age is None or by_rest <= by_age[0] else by_age


def _share(policy: Policy, seconds: float) -> float:
    """What is advised where connections live so long."""
    return _age(min(policy.safety * seconds, policy.max_pool_recycle))


def _age(seconds: float) -> float:
    """As an age is advised: rounded down to whole seconds, below one second to milliseconds.

    Never 0, which most pools take for no limit; no clock in a pool is finer than a millisecond.
    """
    return int(seconds) if seconds >= 1 else max(LEAST_AGE, below(seconds))


def _share_of_age(policy: Policy, idle: IdleStatus) -> tuple[float, Remark] | None:
    """What the age allows at which busy connections die; None while none was seen to die of age."""
    if idle.lifetime is not None:
        age = idle.lifetime.proven_seconds
        because = Remark(
            code="share_of_lifetime",
            text=f"pool_recycle is {policy.safety:g} of the age that connections are proven to reach,"
            f" {at_least(age)} s.",
        )
    elif idle.suspected_age_seconds is not None:
        age = idle.suspected_age_seconds
        because = Remark(
            code="lifetime_suspected",
            text=f"A connection in constant use lived to the age of {at_least(age)} s and died soon after, for no"
            " reason that shows. Until it is known whether that repeats itself, pool_recycle is"
            f" {policy.safety:g} of that age.",
        )
    else:
        return None
    return _share(policy, age), because


def _share_of_rest(
    policy: Policy, shortest_rest: float, limit: IdleLimit | None, declared: Declared | None
) -> tuple[float, Remark]:
    if limit is not None and limit.proven_seconds > 0:
        share = policy.safety * limit.proven_seconds
        recycle = _share(policy, limit.proven_seconds)
        if share > policy.max_pool_recycle:
            return recycle, Remark(
                code="capped_by_policy",
                text=f"Connections resting {at_least(limit.proven_seconds)} s survive; policy.max_pool_recycle caps the"
                f" advice at {recycle} s.",
            )
        return recycle, Remark(
            code="share_of_proven",
            text=f"pool_recycle is {policy.safety:g} of the longest rest proven to survive,"
            f" {at_least(limit.proven_seconds)} s.",
        )
    if limit is not None and limit.dead_by_seconds is not None:
        shortest_rest = min(shortest_rest, limit.dead_by_seconds)  # by now shorter ones are under test
    told = declared.idle_session_timeout if declared is not None else None
    if told and told < shortest_rest:
        return _share(policy, told), Remark(
            code="declared_limit",
            text=f"Nothing is proven yet. The server declares idle_session_timeout = {told:g} s; pool_recycle stays at"
            f" {policy.safety:g} of it.",
        )
    return _share(policy, shortest_rest), Remark(
        code="nothing_proven",
        text=f"Nothing is proven yet: pool_recycle is {policy.safety:g} of the shortest rest under test"
        f" ({shortest_rest:g} s) and grows with every rest survived.",
    )


def _recycle_with_keepalive(
    policy: Policy,
    limit: IdleLimit | None,
    kept_seconds: float | None,
    recycle: float,
    lifetime: LifetimeLimit | None,
) -> tuple[int | None, tuple[Remark, ...]]:
    """The age (seconds) for connections with the keepalive advised; None while that is not proven to be longer."""
    if limit is None or limit.dead_by_seconds is None or limit.keepalive_helps is False:
        return None, ()
    if kept_seconds is None or kept_seconds <= limit.dead_by_seconds:
        return None, ()  # it lived no longer than others
    longest = inf if lifetime is None else policy.safety * lifetime.proven_seconds
    age = int(min(kept_seconds, policy.max_pool_recycle, longest))
    if age <= recycle:
        return None, ()
    return age, (
        Remark(
            code="kept_by_keepalive",
            text=f"TCP keepalive holds this path: a connection with it rested {at_least(kept_seconds)} s and lived,"
            f" where others are dead by {at_most(limit.dead_by_seconds)} s. With the socket options advised,"
            f" pool_recycle can be {age} s, and no rest up to that costs a reconnect.",
        ),
    )


def _about_short_lives(recycle: float, limit: IdleLimit | None, lifetime: LifetimeLimit | None) -> tuple[Remark, ...]:
    seen = [each.dead_by_seconds for each in (limit, lifetime) if each is not None and each.dead_by_seconds is not None]
    if recycle >= 1 or not seen:
        return ()
    coarse = " No setting in whole seconds can be short enough, and TCP keepalive, after a second at best, is too late."
    return (
        Remark(
            code="too_short_to_pool",
            text=f"Connections here are dead by {at_most(min(seen))} s, too soon for most pools: with pool_recycle ="
            f" {recycle:g} s every connection is replaced when it is wanted after that."
            f"{coarse if min(seen) <= 1 else ''} Find what ends connections so soon and have it wait longer, or do"
            " without a pool (SQLAlchemy: NullPool).",
        ),
    )


def _keepalive(limit: IdleLimit | None) -> Keepalive:
    if limit is None or limit.proven_seconds <= 0:
        idle = UNPROVEN_KEEPALIVE_IDLE
    elif limit.dead_by_seconds is None:  # the true limit is longer still
        idle = max(UNPROVEN_KEEPALIVE_IDLE, int(KEEPALIVE_SHARE * limit.proven_seconds))
    else:
        idle = int(KEEPALIVE_SHARE * limit.proven_seconds)
    idle = max(1, min(LONGEST_KEEPALIVE_IDLE, idle))
    return Keepalive(idle=idle, interval=min(15, idle), count=3)


def _round_trips(pooler: bool) -> tuple[int, int]:
    """Of one ping, in a transaction and under AUTOCOMMIT."""
    if pooler:
        return PING_ROUND_TRIPS_UNCACHED, PING_ROUND_TRIPS_UNCACHED_AUTOCOMMIT
    return PING_ROUND_TRIPS, PING_ROUND_TRIPS_AUTOCOMMIT


def _ping_cost(ping: PingCost | None, pooler: bool) -> PrePingCost | None:
    if ping is None:
        return None
    in_transaction, autocommit = _round_trips(pooler)
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


def _about_ping_cost(ping: PingCost | None, pooler: bool) -> tuple[Remark, ...]:
    if ping is None:
        return ()
    in_transaction, autocommit = _round_trips(pooler)
    sent = "BEGIN, an empty query, ROLLBACK" + (", the query parsed anew every time" if pooler else "")
    text = f"A pre-ping takes {in_transaction} round trips ({sent}), {autocommit} under AUTOCOMMIT; here"
    text += f" {1000 * ping.p50_seconds:.1f} ms"
    if ping.p99_seconds is not None:
        text += f", {1000 * ping.p99_seconds:.1f} ms at the 99th percentile"
    if ping.overhead_ratio is not None and ping.overhead_low is not None and ping.overhead_high is not None:
        text += (
            f". That is {100 * ping.overhead_ratio:.0f} % of a checkout with one query (95 % confidence:"
            f" {100 * ping.overhead_low:.0f} to {100 * ping.overhead_high:.0f} %)"
        )
    return (Remark(code="pre_ping_cost", text=text + "."),)


def _failover(outages: Sequence[Outage]) -> FailoverFigures | None:
    """How long outages lasted: the middle of each interval, because that is the least wrong single number.

    All are counted, but those whose end nobody watched have no length to tell.
    """
    if not outages:
        return None
    return FailoverFigures(
        outages=len(outages),
        outage_seconds=_quantiles([_middle(outage.connect or outage.read) for outage in outages]),
        write_outage_seconds=_quantiles([_middle(outage.write) for outage in outages]),
    )


def _middle(spell: Downtime | None) -> float | None:
    return None if spell is None else spell.middle_seconds


def _quantiles(seconds: Iterable[float | None]) -> Quantiles | None:
    ordered = sorted(duration for duration in seconds if duration is not None)
    if not ordered:
        return None
    return Quantiles(p50=round(ordered[(len(ordered) - 1) // 2], 3), max=round(ordered[-1], 3))


_DEATH_TOLD = {
    Death.SILENT: "without any sign: neither FIN nor RST, the next query gets no answer at all",
    Death.RESET_ON_USE: "unseen; the next query is answered with a reset",
    Death.CLOSED: "in plain sight: the connection is closed the moment the timer fires",
    Death.FATAL: "in plain sight: the server says why and closes",
}


def _about_idleness(idle: IdleStatus) -> tuple[Remark, ...]:
    if idle.death is None:
        return (_about_the_limit(idle),)
    dies = Remark(code=f"death_{idle.death}", text=f"Idle connections die {_DEATH_TOLD[idle.death]}.")
    return _about_the_limit(idle), dies


def _about_age(idle: IdleStatus, lifetime: LifetimeLimit | None) -> tuple[Remark, ...]:
    if lifetime is None or lifetime.death is None:
        busy = idle.busy_seconds or 0.0
        if busy <= (idle.dead_by_seconds or idle.proven_seconds or 0.0):
            return ()  # no news: resting connections got as old
        return (
            Remark(
                code="no_lifetime_limit_seen",
                text=f"A connection in constant use has reached the age of {at_least(busy)} s: no limit on age up to"
                " there.",
            ),
        )
    return (
        Remark(
            code="lifetime_limit_measured",
            text=f"Connections die at an age of {lifetime.estimate_seconds or 0:.1f} s, however busy they are (lived"
            f" {at_least(lifetime.proven_seconds)} s, dead by {at_most(lifetime.dead_by_seconds or 0)} s),"
            f" {_DEATH_TOLD[lifetime.death]}. Neither use nor keepalive helps: only a pool_recycle below it does.",
        ),
    )


def _death(idle: IdleStatus) -> Death | None:
    """How connections die on this path, of rest or else of age."""
    return idle.death or (None if idle.lifetime is None else idle.lifetime.death)


def _warnings(idle: IdleStatus, declared: Declared | None) -> tuple[Remark, ...]:
    warnings: list[Remark] = []
    if _death(idle) is Death.SILENT:
        warnings.append(
            Remark(
                code="silent_death",
                text="Pre-ping alone does not protect: on a silently dropped connection the ping itself hangs, about"
                f" 15 minutes by default. Set TCP_USER_TIMEOUT ({USER_TIMEOUT_MS} ms) and TCP keepalive on the client's"
                " sockets, and keep pool_recycle below the limit. Recycling a dropped connection still waits 2 s for"
                " its goodbye, unless the pool drops it: the format `python` does all of this.",
            )
        )
    if idle.suspect:
        warnings.append(
            Remark(
                code="limit_suspect",
                text="A fresh connection has just died below the limit held true so far. It is being checked whether"
                " the limit has changed; the advice is lowered meanwhile.",
            )
        )
    if idle.several_populations:
        warnings.append(
            Remark(
                code="several_populations",
                text="Connections to this target do not all share one limit (several gateways or proxies?). The advice"
                " follows the shortest.",
            )
        )
    warnings += _about_declared(idle, declared)
    return tuple(warnings)


def _about_pooler(pooler: bool) -> tuple[Remark, ...]:
    if not pooler:
        return ()
    return (
        Remark(
            code="transaction_pooler",
            text="Connections and server processes do not belong together: a pooler in transaction mode is between."
            " Prepared statements fail there unless both statement caches are off (connect_args), and settings the"
            " server declares are not those of the connection to the pooler.",
        ),
    )


def _about_stale_writers(outages: Sequence[Outage]) -> tuple[Remark, ...]:
    stale = sum(outage.connections_lost.get(STALE_WRITER, 0) for outage in outages)
    moves = sum(outage.kind in _MOVES for outage in outages)
    if not stale and not moves:
        return ()
    seen = f"The role of the server changed {moves} times" if moves != 1 else "The role of the server changed once"
    if stale:
        seen = f"Connections of the held pool ({stale} so far) answered reads while they would have refused writes"
    return (
        Remark(
            code="stale_writer",
            text=f"{seen}. A connection to a demoted primary answers every pre-ping, and every write on it fails until"
            " it is recycled. A handle_error listener that makes 25006 a disconnect has the pool leave it after one"
            " refused write: see the format `python`.",
        ),
    )


def _about_the_limit(idle: IdleStatus) -> Remark:
    proven, dead_by = idle.proven_seconds, idle.dead_by_seconds
    if idle.exhausted:
        return Remark(
            code="no_limit_seen", text=f"Connections survived {at_least(proven or 0)} s of rest: no idle limit seen."
        )
    if dead_by is None and idle.lifetime is not None:
        return Remark(
            code="no_limit_seen",
            text=f"Connections survived {at_least(proven or 0)} s of rest: no idle limit shows before age ends them.",
        )
    if dead_by is None:
        if proven is None:
            return Remark(code="measuring", text="The first connections are still resting; nothing is known yet.")
        return Remark(
            code="measuring", text=f"Connections survived {at_least(proven)} s of rest so far; none has died of it."
        )
    if idle.status is Status.MEASURING or idle.estimate_seconds is None:
        return Remark(
            code="limit_bracketed",
            text=f"The idle limit lies between {at_least(proven or 0)} s and {at_most(dead_by)} s; it is being narrowed"
            " down.",
        )
    told = {
        Status.PROVISIONAL: "one chain of observations; a second witness is awaited",
        Status.CONFIRMED: "a second, independent connection died at the same rest",
        Status.VERIFIED: f"{idle.fresh_survivals} rests of fresh connections just below it survived,"
        f" {idle.fresh_deaths} did not",
    }[idle.status]
    return Remark(
        code="idle_limit_measured",
        text=f"The idle limit of this path is {_told(idle.estimate_seconds)} s (survived {at_least(proven or 0)} s,"
        f" dead by {at_most(dead_by)} s): {told}.",
    )


def _selective_pre_ping(
    policy: Policy,
    idle: IdleStatus,
    limit: IdleLimit | None,
    ping: PingCost | None,
    outages: Sequence[Outage],
    application: ApplicationSettings | None,
    pooler: bool,
    recycle: float,
) -> tuple[float | None, Remark]:
    """The rest after which pinging is worth its price (seconds); None = ping at every checkout."""
    kept = _why_pre_ping_is_kept(idle, outages)
    dear = _why_ping_is_dear(policy, ping, application)
    if kept is not None or dear is None or limit is None:
        return None, Remark(
            code="pre_ping_kept",
            text=f"Pre-ping stays on: {kept or _why_ping_is_cheap(ping)}",
            evidence="/outages" if outages else None,
        )
    in_transaction, autocommit = _round_trips(pooler)
    after = min(recycle, max(1.0, min(LONGEST_UNPINGED_REST, UNPINGED_SHARE * limit.proven_seconds)))
    return after, Remark(
        code="pre_ping_selective",
        text=f"{dear} pool_recycle below the proven limit is the first defence; ping only connections that rested"
        f" longer than {after:g} s. Under AUTOCOMMIT a ping takes {autocommit} instead of {in_transaction} round"
        " trips, which may make it cheap enough.",
    )


def _why_pre_ping_is_kept(idle: IdleStatus, outages: Sequence[Outage]) -> str | None:
    if _death(idle) is None:
        return "how connections die on this path is not known yet."
    if idle.status is not Status.VERIFIED:
        return "the limit is not verified yet."
    if outages:
        seen = "one outage was" if len(outages) == 1 else f"{len(outages)} outages were"
        return f"{seen} seen, and it finds the connections they leave dead."
    if _death(idle) is Death.SILENT:
        return "together with TCP_USER_TIMEOUT it turns a hang into a reconnect."
    return None


def _why_ping_is_cheap(ping: PingCost | None) -> str:
    known = ping is not None and ping.overhead_low is not None
    return "it costs little here." if known else "what share of a checkout it takes up here is not known yet."


def _why_ping_is_dear(policy: Policy, ping: PingCost | None, application: ApplicationSettings | None) -> str | None:
    if ping is None:
        return None
    if ping.overhead_low is not None and ping.overhead_low > policy.ping_overhead:
        return (
            f"Pre-ping takes {100 * (ping.overhead_ratio or 0):.0f} % of the time of a checkout with one query, more"
            f" than the {100 * policy.ping_overhead:.0f} % allowed."
        )
    target = application.checkout_p99 if application is not None else None
    if target is not None and ping.p99_seconds is not None and ping.p99_seconds > target:
        return (
            f"A pre-ping takes {1000 * ping.p99_seconds:.1f} ms at the 99th percentile, more than the application's"
            f" target for a checkout ({1000 * target:g} ms)."
        )
    return None


def _about_declared(idle: IdleStatus, declared: Declared | None) -> list[Remark]:
    if declared is None:
        return []
    warnings = []
    keepalive = declared.tcp_keepalives_idle
    if keepalive and idle.dead_by_seconds is None and (idle.proven_seconds or 0) > keepalive:
        warnings.append(
            Remark(
                code="masked_by_server_keepalive",
                text=f"The server sends TCP keepalives after {keepalive:.0f} s of silence. They hold the path open, so"
                " a longer limit of a gateway would not show; they protect the application just as well.",
            )
        )
    told, measured = declared.idle_session_timeout, idle.estimate_seconds
    if measured is None or told is None or idle.status is Status.MEASURING:
        return warnings
    if told == 0 or abs(told - measured) > DECLARED_TOLERANCE * measured:
        says = "no idle_session_timeout" if told == 0 else f"idle_session_timeout = {told:g} s"
        warnings.append(
            Remark(
                code="not_the_server",
                text=f"The server declares {says}, measured were {measured:.1f} s: something on the path cuts the"
                " connections, not the server.",
            )
        )
    return warnings
