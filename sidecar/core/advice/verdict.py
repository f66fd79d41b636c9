"""Is the application safe with what it runs today? And what would have happened to it.

`pool_recycle` at or below the proven rest protects by itself: whatever is handed out is younger. Beyond it lies a
window in which dead connections are handed out; there pre-ping decides, and pre-ping is blind to a silent death.

What the application declares is judged first; a trial of a pool with the same settings then has the last word. Where
nothing is declared, its sessions as the server shows them can still convict it: one that has rested longer than
connections live here is dead, and nobody has noticed yet. They cannot acquit it: what was not seen may still come.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from sidecar.core.advice.bounds import at_least, at_most
from sidecar.core.advice.recommendation import IdleLimit, LifetimeLimit, Remark, Verdict
from sidecar.core.evidence import Death

HANG = "hangs until the kernel gives up, about 15 minutes by default"
LEAKED_AFTER_SECONDS = 60.0  # idle in a transaction for so long is no pause between two statements
STUCK_AFTER_SECONDS = 10.0  # the same, where no connection is left to check out

_MEETS = {
    Death.SILENT: HANG,
    Death.RESET_ON_USE: 'fails with a disconnect ("connection was closed in the middle of operation")',
    Death.CLOSED: 'fails with a disconnect ("connection is closed")',
    Death.FATAL: 'fails with a disconnect ("connection is closed")',
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ApplicationSettings:
    """What the application's pool runs with; None where it was not told."""

    pool_recycle: float | None = None  # seconds; -1 = never
    pool_pre_ping: bool | None = None
    checkout_p99: float | None = None  # seconds its checkouts should stay below


@dataclass(frozen=True, slots=True, kw_only=True)
class Activity:
    """The application's sessions as the server shows them to their own role.

    Those from our own address, which are the ones of the application beside us; and under `role_…` all of that role in
    this database, wherever they come from, those included whose client is gone. None where they cannot be seen.
    """

    connections: Mapping[str, int] = field(default_factory=dict)  # by state, as pg_stat_activity names it
    longest_idle_seconds: float | None = None
    oldest_seconds: float | None = None
    longest_idle_in_transaction_seconds: float | None = None
    role_sessions: int | None = None
    role_resting: int | None = None
    role_longest_rest_seconds: float | None = None


def judge_application(
    settings: ApplicationSettings | None,
    limit: IdleLimit | None,
    activity: Activity | None = None,
    lifetime: LifetimeLimit | None = None,
) -> Verdict:
    """`protected`, `exposed` or `unknown`, with a sentence that says what happens."""
    if limit is None or limit.proven_seconds <= 0:
        return Verdict(verdict="unknown", because="Nothing is proven about this path yet.")
    if settings is None or (settings.pool_recycle is None and settings.pool_pre_ping is None):
        return _by_activity(activity, limit)
    recycle = settings.pool_recycle
    oldest = limit.proven_seconds if lifetime is None else min(limit.proven_seconds, lifetime.proven_seconds)
    if recycle is not None and 0 <= recycle <= oldest:
        return Verdict(
            verdict="protected",
            because=f"pool_recycle = {recycle:g} s: no connection older than that is handed out, and"
            f" {at_least(limit.proven_seconds)} s of rest are proven to survive.",
        )
    if limit.death is not None:
        return _without_recycle(settings, f"connections that rested longer than {at_least(oldest)} s", limit.death)
    if lifetime is not None and lifetime.death is not None:
        return _without_recycle(
            settings, f"connections older than {at_most(lifetime.dead_by_seconds or oldest)} s", lifetime.death
        )
    return Verdict(
        verdict="unknown",
        because=f"Connections survived {at_least(limit.proven_seconds)} s of rest so far; whether they survive until"
        f" {_age(recycle)} is not known yet.",
    )


def _without_recycle(settings: ApplicationSettings, dead: str, death: Death) -> Verdict:
    limited = f"{dead} are dead, and"
    handed_out = f"pool_recycle ({_age(settings.pool_recycle)}) lets the pool hand them out"
    if settings.pool_recycle is None or settings.pool_pre_ping is None:
        missing = "pool_recycle" if settings.pool_recycle is None else "pool_pre_ping"
        return Verdict(verdict="unknown", because=f"The application's {missing} is not known, and it decides here.")
    if not settings.pool_pre_ping:
        return Verdict(
            verdict="exposed", because=f"On this path {limited} {handed_out}: the next query on one {_MEETS[death]}."
        )
    if death is Death.SILENT:
        return Verdict(
            verdict="exposed",
            because=f"On this path {limited} {handed_out}. The pre-ping does not help: it {HANG}, because nothing"
            " answers it.",
        )
    return Verdict(
        verdict="protected",
        because=f"On this path {limited} {handed_out}; pre-ping finds them at checkout and reconnects.",
    )


def _by_activity(activity: Activity | None, limit: IdleLimit) -> Verdict:
    untold = "The application's settings are not declared (targets.*.application)"
    if activity is None or not sum(activity.connections.values()):
        return Verdict(
            verdict="unknown", because=f"{untold}, and none of its sessions shows (same role, same address)."
        )
    rest = activity.longest_idle_seconds or 0.0
    if limit.dead_by_seconds is not None and limit.death is not None and rest > limit.dead_by_seconds:
        unless = ", unless its own keepalives have held it" if limit.keepalive_helps is not False else ""
        return Verdict(
            verdict="exposed",
            because=f"{untold}, but the server shows a session of it that has rested longer than the"
            f" {at_most(limit.dead_by_seconds)} s a connection lives here: its next query"
            f" {_MEETS[limit.death]}{unless}.",
        )
    return Verdict(
        verdict="unknown",
        because=f"{untold}. The server shows none of its sessions at rest for longer than connections live here.",
    )


def about_activity(activity: Activity, limit: IdleLimit | None) -> tuple[Remark, ...]:
    """What the server shows of the application's sessions, where it points to trouble no pool setting cures."""
    remarks = []
    in_transaction = activity.longest_idle_in_transaction_seconds or 0.0
    held = activity.connections.get("idle_in_transaction", 0)
    if held > 1 and not activity.connections.get("idle", 0) and in_transaction > STUCK_AFTER_SECONDS:
        remarks.append(
            Remark(
                code="pool_exhausted",
                text=f"No session of the application is free: {held} are idle in a transaction, the longest for"
                f" {in_transaction:.0f} s. A pool in this state answers with TimeoutError (QueuePool limit reached)."
                " That is a leak or slow work between statements; neither pre-ping nor recycle cures it.",
            )
        )
    elif in_transaction > LEAKED_AFTER_SECONDS:
        remarks.append(
            Remark(
                code="idle_in_transaction",
                text=f"A session of the application has been idle in a transaction for {in_transaction:.0f} s: a leaked"
                " or forgotten connection. Neither pre-ping nor recycle cures that; find the code that holds it.",
            )
        )
    rest = activity.longest_idle_seconds
    if rest is not None and limit is not None and limit.dead_by_seconds is not None and rest > limit.dead_by_seconds:
        remarks.append(
            Remark(
                code="application_rests_too_long",
                text=f"The server still counts a session of the application that has rested {rest:.0f} s, longer than"
                f" connections live on this path ({at_most(limit.dead_by_seconds)} s): its client's end is probably"
                " dead.",
            )
        )
    return tuple(remarks)


def _age(recycle: float | None) -> str:
    if recycle is None:
        return "not known"
    return "never" if recycle < 0 else f"{recycle:g} s"
