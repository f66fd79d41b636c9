"""The words of the advice: a finding's sentence and where to look at what it is from; a judgement's sentence.

Every code has one function here that takes the finding's values as its arguments and returns the sentence. This is the
only place where findings become remarks and judgements verdicts, and tests/test_remarks.py the only one where the
wording is asserted.

Bounds are rounded away from the limit between them (`bounds`), everything else to what people can take in.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from sidecar.core.advice.bounds import at_least, at_most
from sidecar.core.advice.deaths_told import DEATHS_TOLD, HANGS
from sidecar.core.advice.findings import Code, Finding, Ground, Judgement, WhyPing, WhyWaiting
from sidecar.core.advice.ping_cost import PingCost
from sidecar.core.advice.recommendation import Remark, TrialOutcome, Verdict
from sidecar.core.budget import CALM_SECONDS, FULL_BELOW, REDUCED_BELOW, SLOTS_LEFT_FREE, CeilingKind, Hindrance
from sidecar.core.evidence import Death, Status


def remark(finding: Finding, target: str) -> Remark:
    """The finding in words, with the address of its evidence about this target."""
    sentence, evidence = REMARKS[finding.code], EVIDENCE[finding.code]
    if finding.code == Code.PRE_PING_KEPT and finding.values["outages"]:
        evidence = _OUTAGES
    return Remark(code=finding.code, text=sentence(**finding.values), evidence=_address(evidence, target))


def verdict(judgement: Judgement) -> Verdict:
    """The judgement in words."""
    return Verdict(verdict=judgement.verdict, because=GROUNDS[judgement.ground](**judgement.values))


def _address(evidence: str, target: str) -> str:
    path, _, query = evidence.partition("?")
    if path == _METRICS:
        return path  # of all targets
    return f"{path}?target={target}" + (f"&{query}" if query else "")  # names of targets need no encoding


# -- what is known of rests -------------------------------------------------------------------------------------------


def _measuring(*, proven_seconds: float | None, waiting: WhyWaiting | None) -> str:
    if proven_seconds is None:
        return _WAITING[waiting]
    return f"Connections survived {at_least(proven_seconds)} s of rest so far; none has died of it."


_WAITING: Mapping[WhyWaiting | None, str] = {
    None: "The first connections are still resting; nothing is known yet.",
    WhyWaiting.OFF: "Rests are not tested (targets.*.idle.enabled is false), and nothing is known of them.",
    WhyWaiting.PAUSED: "Measuring is paused: no connection rests, and nothing is known yet.",
    WhyWaiting.NO_ROOM: "There is no room on the server for a connection at rest, and nothing is known yet.",
    WhyWaiting.NOT_OPEN: "No connection is open yet that could rest; nothing is known.",
}


def _limit_bracketed(*, proven_seconds: float, dead_by_seconds: float) -> str:
    return (
        f"The idle limit lies between {at_least(proven_seconds)} s and {at_most(dead_by_seconds)} s; it is being"
        " narrowed down."
    )


def _idle_limit_measured(
    *,
    estimate_seconds: float,
    proven_seconds: float,
    dead_by_seconds: float,
    status: Status,
    fresh_survivals: int,
    fresh_deaths: int,
) -> str:
    stands_on = {
        Status.PROVISIONAL: "one chain of observations; a second witness is awaited",
        Status.CONFIRMED: "a second, independent connection died at the same rest",
        Status.VERIFIED: f"{fresh_survivals} rests of fresh connections just below it survived, {fresh_deaths} did not",
    }[status]
    return (
        f"The idle limit of this path is {_about(estimate_seconds)} s (survived {at_least(proven_seconds)} s,"
        f" dead by {at_most(dead_by_seconds)} s): {stands_on}."
    )


def _about(seconds: float) -> str:
    """What is short would be lost in the rounding that suits the long."""
    return f"{seconds:.1f}" if seconds >= 1 else f"{seconds:.2g}"


def _no_limit_seen(*, proven_seconds: float, age_ends_them: bool) -> str:
    seen = "no idle limit shows before age ends them" if age_ends_them else "no idle limit seen"
    return f"Connections survived {at_least(proven_seconds)} s of rest: {seen}."


def _idle_death(*, death: Death) -> str:
    return f"Idle connections die {DEATHS_TOLD[death].in_sentence}."


# -- what is known of ages --------------------------------------------------------------------------------------------


def _lifetime_limit_measured(
    *, estimate_seconds: float, proven_seconds: float, dead_by_seconds: float, death: Death
) -> str:
    return (
        f"Connections die at an age of {estimate_seconds:.1f} s, however busy they are (lived"
        f" {at_least(proven_seconds)} s, dead by {at_most(dead_by_seconds)} s), {DEATHS_TOLD[death].in_sentence}."
        " Neither use nor keepalive helps: only a pool_recycle below it does."
    )


def _no_lifetime_limit_seen(*, age_seconds: float) -> str:
    return (
        f"A connection in constant use has reached the age of {at_least(age_seconds)} s: no limit on age up to there."
    )


# -- why pool_recycle is what it is -----------------------------------------------------------------------------------


def _share_of_proven(*, safety: float, proven_seconds: float) -> str:
    return f"pool_recycle is {safety:g} of the longest rest proven to survive, {at_least(proven_seconds)} s."


def _share_of_lifetime(*, safety: float, age_seconds: float) -> str:
    return f"pool_recycle is {safety:g} of the age that connections are proven to reach, {at_least(age_seconds)} s."


def _lifetime_suspected(*, safety: float, age_seconds: float) -> str:
    return (
        f"A connection in constant use lived to the age of {at_least(age_seconds)} s and died soon after, for no"
        f" reason that shows. Until it is known whether that repeats itself, pool_recycle is {safety:g} of that age."
    )


def _capped_by_policy(*, proven_seconds: float, pool_recycle: float) -> str:
    return (
        f"Connections resting {at_least(proven_seconds)} s survive; policy.max_pool_recycle caps the advice at"
        f" {pool_recycle} s."
    )


def _raised_by_policy(*, proven_seconds: float, pool_recycle: float) -> str:
    return (
        f"Connections survived {at_least(proven_seconds)} s of rest so far, and nothing shows that they do not live"
        f" longer: {_least(pool_recycle)}"
    )


def _least(pool_recycle: float) -> str:
    """What holds while little is proven, why it is not less, and what protects meanwhile."""
    return (
        f"pool_recycle is {pool_recycle:g} s (policy.min_pool_recycle) until something shorter is measured. Less would"
        " have who reads it at his start reconnect that often for life; should connections die sooner, pre-ping and the"
        " socket options protect meanwhile."
    )


def _nothing_proven(*, safety: float, shortest_rest_seconds: float, raised_to_seconds: float | None) -> str:
    if raised_to_seconds is not None:
        return f"Nothing is proven yet: {_least(raised_to_seconds)}"
    return (
        f"Nothing is proven yet: pool_recycle is {safety:g} of the shortest rest under test"
        f" ({shortest_rest_seconds:g} s) and grows with every rest survived."
    )


def _declared_limit(*, safety: float, declared_seconds: float, proven_seconds: float | None) -> str:
    known = "Nothing is" if proven_seconds is None else f"No more than {at_least(proven_seconds)} s of rest are"
    return (
        f"{known} proven yet. The server declares idle_session_timeout = {declared_seconds:g} s; pool_recycle stays"
        f" at {safety:g} of it."
    )


def _kept_by_keepalive(*, keepalive_survival_seconds: float, dead_by_seconds: float, pool_recycle: int) -> str:
    return (
        f"TCP keepalive holds this path: a connection with it rested {at_least(keepalive_survival_seconds)} s and"
        f" lived, where others are dead by {at_most(dead_by_seconds)} s. With the socket options advised, pool_recycle"
        f" can be {pool_recycle} s, and no rest up to that costs a reconnect."
    )


# -- why the ping is on, or not ---------------------------------------------------------------------------------------


def _pre_ping_cost(*, cost: PingCost, round_trips: int, round_trips_autocommit: int, parsed_anew: bool) -> str:
    sent = "BEGIN, an empty query, ROLLBACK" + (", the query parsed anew every time" if parsed_anew else "")
    text = f"A pre-ping takes {round_trips} round trips ({sent}), {round_trips_autocommit} under AUTOCOMMIT; here"
    text += f" {1000 * cost.p50_seconds:.1f} ms"
    if cost.p99_seconds is not None:
        text += f", {1000 * cost.p99_seconds:.1f} ms at the 99th percentile"
    if cost.overhead_ratio is not None and cost.overhead_low is not None and cost.overhead_high is not None:
        text += (
            f". That is {100 * cost.overhead_ratio:.0f} % of a checkout with one query (95 % confidence:"
            f" {100 * cost.overhead_low:.0f} to {100 * cost.overhead_high:.0f} %)"
        )
    return text + "."


def _pre_ping_kept(*, why: WhyPing, outages: int) -> str:
    because = {
        WhyPing.DEATH_UNKNOWN: "how connections die on this path is not known yet",
        WhyPing.NOT_VERIFIED: "the limit is not verified yet",
        WhyPing.OUTAGES: f"{'one outage was' if outages == 1 else f'{outages} outages were'} seen, and it finds the"
        " connections they leave dead",
        WhyPing.SILENT: "together with TCP_USER_TIMEOUT it turns a hang into a reconnect",
        WhyPing.CHEAP: "it costs little here",
        WhyPing.PRICE_UNKNOWN: "what share of a checkout it takes up here is not known yet",
    }[why]
    return f"Pre-ping stays on: {because}."


def _pre_ping_selective(
    *,
    after_seconds: float,
    round_trips: int,
    round_trips_autocommit: int,
    overhead_ratio: float | None = None,
    overhead_allowed: float = 0.0,
    p99_seconds: float = 0.0,
    p99_allowed_seconds: float = 0.0,
) -> str:
    if overhead_ratio is not None:
        dear = (
            f"Pre-ping takes {100 * overhead_ratio:.0f} % of the time of a checkout with one query, more than the"
            f" {100 * overhead_allowed:.0f} % allowed."
        )
    else:
        dear = (
            f"A pre-ping takes {1000 * p99_seconds:.1f} ms at the 99th percentile, more than the application's target"
            f" for a checkout ({1000 * p99_allowed_seconds:g} ms)."
        )
    return (
        f"{dear} pool_recycle below the proven limit is the first defence; ping only connections that rested longer"
        f" than {after_seconds:g} s. Under AUTOCOMMIT a ping takes {round_trips_autocommit} instead of {round_trips}"
        " round trips, which may make it cheap enough."
    )


# -- warnings ---------------------------------------------------------------------------------------------------------


def _trial_failed(*, pool_recycle: float, rested_seconds: float, error: str | None) -> str:
    return (
        f"The advice (pool_recycle = {pool_recycle} s) is withdrawn: a pool with exactly these settings failed after"
        f" {rested_seconds:.1f} s of rest ({error}). Until a trial succeeds, the cautious setting stands."
    )


def _silent_death(*, user_timeout_ms: int) -> str:
    return (
        "Pre-ping alone does not protect: on a silently dropped connection the ping itself hangs, about 15 minutes by"
        f" default. Set TCP_USER_TIMEOUT ({user_timeout_ms} ms) and TCP keepalive on the client's sockets, and keep"
        " pool_recycle below the limit. Recycling a dropped connection still waits 2 s for its goodbye, unless the pool"
        " drops it: the format `python` does all of this."
    )


def _limit_suspect() -> str:
    return (
        "A fresh connection has just died below the limit held true so far. It is being checked whether the limit has"
        " changed; the advice is lowered meanwhile."
    )


def _several_populations() -> str:
    return (
        "Connections to this target do not all share one limit (several gateways or proxies?). The advice follows the"
        " shortest."
    )


def _transaction_pooler() -> str:
    return (
        "Connections and server processes do not belong together: a pooler in transaction mode is between. Prepared"
        " statements fail there unless both statement caches are off (connect_args), and settings the server declares"
        " are not those of the connection to the pooler."
    )


def _too_short_to_pool(*, dead_by_seconds: float, pool_recycle: float) -> str:
    coarse = " No setting in whole seconds can be short enough, and TCP keepalive, after a second at best, is too late."
    return (
        f"Connections here are dead by {at_most(dead_by_seconds)} s, too soon for most pools: with pool_recycle ="
        f" {pool_recycle:g} s every connection is replaced when it is wanted after that."
        f"{coarse if dead_by_seconds <= 1 else ''} Find what ends connections so soon and have it wait longer, or do"
        " without a pool (SQLAlchemy: NullPool)."
    )


def _masked_by_server_keepalive(*, keepalive_seconds: float) -> str:
    return (
        f"The server sends TCP keepalives after {keepalive_seconds:.0f} s of silence. They hold the path open, so a"
        " longer limit of a gateway would not show; they protect the application just as well."
    )


def _not_the_server(*, declared_seconds: float, measured_seconds: float) -> str:
    declared = "no idle_session_timeout" if declared_seconds == 0 else f"idle_session_timeout = {declared_seconds:g} s"
    return (
        f"The server declares {declared}, measured were {measured_seconds:.1f} s: something on the path cuts the"
        " connections, not the server."
    )


def _stale_writer(*, stale_writers: int, role_changes: int) -> str:
    if stale_writers:
        seen = f"Connections of the held pool ({stale_writers} so far) answered reads while they would have refused"
        seen += " writes"
    else:
        seen = f"The role of the server changed {'once' if role_changes == 1 else f'{role_changes} times'}"
    return (
        f"{seen}. A connection to a demoted primary answers every pre-ping, and every write on it fails until it is"
        " recycled. A handle_error listener that makes 25006 a disconnect has the pool leave it after one refused"
        " write: see the format `python`."
    )


def _pool_exhausted(*, sessions: int, in_transaction_seconds: float) -> str:
    return (
        f"No session of the application is free: {sessions} are idle in a transaction, the longest for"
        f" {in_transaction_seconds:.0f} s. A pool in this state answers with TimeoutError (QueuePool limit reached)."
        " That is a leak or slow work between statements; neither pre-ping nor recycle cures it."
    )


def _idle_in_transaction(*, in_transaction_seconds: float) -> str:
    return (
        f"A session of the application has been idle in a transaction for {in_transaction_seconds:.0f} s: a leaked or"
        " forgotten connection. Neither pre-ping nor recycle cures that; find the code that holds it."
    )


def _application_rests_too_long(*, rested_seconds: float, dead_by_seconds: float) -> str:
    return (
        f"The server still counts a session of the application that has rested {rested_seconds:.0f} s, longer than"
        f" connections live on this path ({at_most(dead_by_seconds)} s): its client's end is probably dead."
    )


def _application_leaves_sessions(
    *, rested_seconds: float, dead_by_seconds: float, sessions: int | None, resting: int | None
) -> str:
    of = f" Of the {sessions} sessions of its role in this database {resting} are at rest." if resting else ""
    return (
        "The application leaves sessions behind: the server holds one of its role that has rested"
        f" {rested_seconds:.0f} s, longer than anything lives on this path ({at_most(dead_by_seconds)} s).{of}"
        " What dies here unseen stays on the server, for 2 h 11 min by default, and counts against its limits. On the"
        " server, tcp_keepalives_idle = 60 ends it, or ALTER ROLE … SET idle_session_timeout (to longer than the"
        " application means to rest); on the client, TCP keepalive and TCP_USER_TIMEOUT keep it from coming about."
    )


# -- why less is measured ---------------------------------------------------------------------------------------------


def _measuring_is_small(*, granted: int, wished: int, beats: bool, **figures: Any) -> str:
    held = f"Measuring is small ({granted} of {wished} connections)" if granted < wished else "No heartbeat is held"
    return f"{held}: {_hindrance(**figures)}{_untimed(beats)}"


def _measuring_is_paused(*, granted: int, wished: int, beats: bool, **figures: Any) -> str:
    held = f" ({granted} of {wished} connections)" if granted else ""
    return f"Measuring is paused{held}: {_hindrance(**figures)}{_untimed(beats)}"


def _untimed(beats: bool) -> str:
    return "" if beats else " Without a heartbeat failovers are not timed."


def _hindrance(*, hindrance: Hindrance, ceiling: CeilingKind | None, used: int | None, usable: int | None) -> str:
    words = _HINDRANCES[hindrance]
    if hindrance not in _COUNTED or ceiling is None or used is None or usable is None:
        return words
    return f"{used} of {usable} in use; {words} {_CEILINGS[ceiling]}"


_COUNTED = (Hindrance.CROWDED, Hindrance.FEW_SLOTS, Hindrance.REFUSED)
"""Those that are a matter of numbers."""

_HINDRANCES: Mapping[Hindrance, str] = {
    Hindrance.CROWDED: (
        f"measures in full below {FULL_BELOW:.0%} and not at all above {REDUCED_BELOW:.0%}, and takes up again after"
        f" {CALM_SECONDS:.0f} s of less."
    ).replace("%", " %"),
    Hindrance.FEW_SLOTS: (
        f"what sidecars may hold together is taken, and the last {SLOTS_LEFT_FREE} are left to the application."
    ),
    Hindrance.REFUSED: (
        "a login was refused, so all but the heartbeat was given back; it is taken again when logins have succeeded for"
        " a while."
    ),
    Hindrance.POOLER: (
        "a pooler is between, and what is held through it is taken from its clients. To measure in full, add a target"
        " whose URL leads past it."
    ),
    Hindrance.CAPPED: "fleet.max_connections has it so.",
    Hindrance.PAUSED: "an operator asked for it. It ends by itself, or at once with `sidecar resume`.",
    Hindrance.UNSEEN: (
        "the server does not show this role who holds its sessions. GRANT SELECT ON pg_stat_activity lets it see."
    ),
    Hindrance.NO_SEAT: (
        "no heartbeat stands, so nobody looks often enough to hold more. Other sidecars have the seats there are, or"
        " targets.*.heartbeat.enabled is false."
    ),
    Hindrance.NOT_LOOKED_YET: "it is not known yet who holds the sessions of the server.",
}
"""Why less is held than was wished for, and what changes it."""

_CEILINGS: Mapping[CeilingKind, str] = {
    CeilingKind.SERVER: "The limit is max_connections less what is reserved (ALTER SYSTEM SET max_connections).",
    CeilingKind.ROLE: "The limit is the role's (ALTER ROLE … CONNECTION LIMIT).",
    CeilingKind.DATABASE: "The limit is the database's (ALTER DATABASE … CONNECTION LIMIT).",
    CeilingKind.REFUSAL: "The server declares no such limit: a pooler, a proxy or the provider has it.",
}
"""Which limit the numbers are of, and what changes it."""


REMARKS: Mapping[Code, Callable[..., str]] = {
    Code.MEASURING: _measuring,
    Code.LIMIT_BRACKETED: _limit_bracketed,
    Code.IDLE_LIMIT_MEASURED: _idle_limit_measured,
    Code.NO_LIMIT_SEEN: _no_limit_seen,
    Code.DEATH_SILENT: _idle_death,
    Code.DEATH_RESET_ON_USE: _idle_death,
    Code.DEATH_CLOSED: _idle_death,
    Code.DEATH_FATAL: _idle_death,
    Code.LIFETIME_LIMIT_MEASURED: _lifetime_limit_measured,
    Code.NO_LIFETIME_LIMIT_SEEN: _no_lifetime_limit_seen,
    Code.SHARE_OF_PROVEN: _share_of_proven,
    Code.SHARE_OF_LIFETIME: _share_of_lifetime,
    Code.LIFETIME_SUSPECTED: _lifetime_suspected,
    Code.CAPPED_BY_POLICY: _capped_by_policy,
    Code.RAISED_BY_POLICY: _raised_by_policy,
    Code.NOTHING_PROVEN: _nothing_proven,
    Code.DECLARED_LIMIT: _declared_limit,
    Code.KEPT_BY_KEEPALIVE: _kept_by_keepalive,
    Code.PRE_PING_COST: _pre_ping_cost,
    Code.PRE_PING_KEPT: _pre_ping_kept,
    Code.PRE_PING_SELECTIVE: _pre_ping_selective,
    Code.TRIAL_FAILED: _trial_failed,
    Code.SILENT_DEATH: _silent_death,
    Code.LIMIT_SUSPECT: _limit_suspect,
    Code.SEVERAL_POPULATIONS: _several_populations,
    Code.TRANSACTION_POOLER: _transaction_pooler,
    Code.TOO_SHORT_TO_POOL: _too_short_to_pool,
    Code.MASKED_BY_SERVER_KEEPALIVE: _masked_by_server_keepalive,
    Code.NOT_THE_SERVER: _not_the_server,
    Code.STALE_WRITER: _stale_writer,
    Code.POOL_EXHAUSTED: _pool_exhausted,
    Code.IDLE_IN_TRANSACTION: _idle_in_transaction,
    Code.APPLICATION_RESTS_TOO_LONG: _application_rests_too_long,
    Code.APPLICATION_LEAVES_SESSIONS: _application_leaves_sessions,
    Code.MEASURING_IS_SMALL: _measuring_is_small,
    Code.MEASURING_IS_PAUSED: _measuring_is_paused,
}
"""The sentence of each code. Its function's arguments are the finding's values."""

_EVIDENCE, _METRICS, _OUTAGES, _RECOMMENDATION = "/evidence", "/metrics", "/outages", "/recommendation"
_SURVIVED, _DIED = "/evidence?outcome=survived", "/evidence?outcome=died"
_KEEPALIVE, _AGED = "/evidence?arm=keepalive", "/evidence?arm=lifetime"
EVIDENCE: Mapping[Code, str] = {
    Code.MEASURING: _SURVIVED,
    Code.LIMIT_BRACKETED: _DIED,
    Code.IDLE_LIMIT_MEASURED: _DIED,
    Code.NO_LIMIT_SEEN: _SURVIVED,
    Code.DEATH_SILENT: _DIED,
    Code.DEATH_RESET_ON_USE: _DIED,
    Code.DEATH_CLOSED: _DIED,
    Code.DEATH_FATAL: _DIED,
    Code.LIFETIME_LIMIT_MEASURED: _AGED,
    Code.NO_LIFETIME_LIMIT_SEEN: _AGED,
    Code.SHARE_OF_PROVEN: _SURVIVED,
    Code.SHARE_OF_LIFETIME: _AGED,
    Code.LIFETIME_SUSPECTED: _AGED,
    Code.CAPPED_BY_POLICY: _SURVIVED,
    Code.RAISED_BY_POLICY: _SURVIVED,
    Code.NOTHING_PROVEN: _SURVIVED,
    Code.DECLARED_LIMIT: _EVIDENCE,
    Code.KEPT_BY_KEEPALIVE: _KEEPALIVE,
    Code.PRE_PING_COST: _METRICS,
    Code.PRE_PING_KEPT: _EVIDENCE,  # or the outages, where there were any
    Code.PRE_PING_SELECTIVE: _METRICS,
    Code.TRIAL_FAILED: _RECOMMENDATION,
    Code.SILENT_DEATH: _DIED,
    Code.LIMIT_SUSPECT: _DIED,
    Code.SEVERAL_POPULATIONS: _DIED,
    Code.TRANSACTION_POOLER: _EVIDENCE,
    Code.TOO_SHORT_TO_POOL: _DIED,
    Code.MASKED_BY_SERVER_KEEPALIVE: _SURVIVED,
    Code.NOT_THE_SERVER: _DIED,
    Code.STALE_WRITER: _OUTAGES,
    Code.POOL_EXHAUSTED: _METRICS,
    Code.IDLE_IN_TRANSACTION: _METRICS,
    Code.APPLICATION_RESTS_TOO_LONG: _METRICS,
    Code.APPLICATION_LEAVES_SESSIONS: _METRICS,
    Code.MEASURING_IS_SMALL: _METRICS,
    Code.MEASURING_IS_PAUSED: _METRICS,
}
"""Where to look at what a remark is from. The target is added."""


# -- the verdict ------------------------------------------------------------------------------------------------------

_UNDECLARED = "The application's settings are not declared (targets.*.application)"


def _path_unproven() -> str:
    return "Nothing is proven about this path yet."


def _young_enough(*, pool_recycle: float, proven_seconds: float) -> str:
    return (
        f"pool_recycle = {pool_recycle:g} s: no connection older than that is handed out, and"
        f" {at_least(proven_seconds)} s of rest are proven to survive."
    )


def _no_death_seen(*, pool_recycle: float | None, proven_seconds: float) -> str:
    return (
        f"Connections survived {at_least(proven_seconds)} s of rest so far; whether they survive until"
        f" {_age(pool_recycle)} is not known yet."
    )


def _setting_unknown(*, setting: str) -> str:
    return f"The application's {setting} is not known, and it decides here."


def _unpinged(*, pool_recycle: float, beyond_seconds: float, of_age: bool, death: Death) -> str:
    handed_out = _dead_are_handed_out(pool_recycle, beyond_seconds, of_age)
    return f"{handed_out}: the next query on one {DEATHS_TOLD[death].next_query}."


def _ping_hangs(*, pool_recycle: float, beyond_seconds: float, of_age: bool) -> str:
    handed_out = _dead_are_handed_out(pool_recycle, beyond_seconds, of_age)
    return f"{handed_out}. The pre-ping does not help: it {HANGS}, because nothing answers it."


def _ping_finds(*, pool_recycle: float, beyond_seconds: float, of_age: bool) -> str:
    handed_out = _dead_are_handed_out(pool_recycle, beyond_seconds, of_age)
    return f"{handed_out}; pre-ping finds them at checkout and reconnects."


def _dead_are_handed_out(pool_recycle: float, beyond_seconds: float, of_age: bool) -> str:
    if of_age:
        dead = f"connections older than {at_most(beyond_seconds)} s"
    else:
        dead = f"connections that rested longer than {at_least(beyond_seconds)} s"
    return f"On this path {dead} are dead, and pool_recycle ({_age(pool_recycle)}) lets the pool hand them out"


def _no_session_seen() -> str:
    return f"{_UNDECLARED}, and none of its sessions shows (same role, same address)."


def _session_dead(*, dead_by_seconds: float, death: Death, keepalive_helps: bool | None) -> str:
    unless = ", unless its own keepalives have held it" if keepalive_helps is not False else ""
    return (
        f"{_UNDECLARED}, but the server shows a session of it that has rested longer than the"
        f" {at_most(dead_by_seconds)} s a connection lives here: its next query {DEATHS_TOLD[death].next_query}"
        f"{unless}."
    )


def _sessions_young() -> str:
    return f"{_UNDECLARED}. The server shows none of its sessions at rest for longer than connections live here."


def _tried_and_lived(*, rested_seconds: float, checkout_seconds: float) -> str:
    return f"{_tried(rested_seconds)} a checkout and its first query succeeded, in {1000 * checkout_seconds:.0f} ms."


def _tried_and_failed(*, rested_seconds: float, outcome: TrialOutcome, error: str | None, untried: str) -> str:
    """`untried` is what was said before the trial."""
    happened = "the query hung" if outcome == TrialOutcome.HANG else "the query failed"
    return f"{_tried(rested_seconds)} {happened} ({error}). {untried}"


def _tried(rested_seconds: float) -> str:
    return f"A pool with its settings was tried on this path: after {rested_seconds:.1f} s of rest"


def _age(pool_recycle: float | None) -> str:
    if pool_recycle is None:
        return "not known"
    return "never" if pool_recycle < 0 else f"{pool_recycle:g} s"


GROUNDS: Mapping[Ground, Callable[..., str]] = {
    Ground.NOTHING_PROVEN: _path_unproven,
    Ground.YOUNG_ENOUGH: _young_enough,
    Ground.NO_DEATH_SEEN: _no_death_seen,
    Ground.SETTING_UNKNOWN: _setting_unknown,
    Ground.UNPINGED: _unpinged,
    Ground.PING_HANGS: _ping_hangs,
    Ground.PING_FINDS: _ping_finds,
    Ground.NO_SESSION_SEEN: _no_session_seen,
    Ground.SESSION_DEAD: _session_dead,
    Ground.SESSIONS_YOUNG: _sessions_young,
    Ground.TRIAL_SUCCEEDED: _tried_and_lived,
    Ground.TRIAL_FAILED: _tried_and_failed,
}
"""The sentence of each ground. Its function's arguments are the judgement's values."""
