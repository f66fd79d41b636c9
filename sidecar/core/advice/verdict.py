"""Is the application safe with what it runs today? And what would have happened to it.

`pool_recycle` at or below the proven rest protects by itself: whatever is handed out is younger. Beyond it lies a
window in which dead connections are handed out; there pre-ping decides, and pre-ping is blind to a silent death.

What the application declares is judged first; a trial of a pool with the same settings then has the last word. Where
nothing is declared, its sessions as the server shows them can still convict it: one that has rested longer than
connections live here is dead, and nobody has noticed yet. They cannot acquit it: what was not seen may still come.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from sidecar.core.advice.findings import Code, Finding, Ground, Judgement, found, judged
from sidecar.core.advice.recommendation import IdleLimit, LifetimeLimit, VerdictKind
from sidecar.core.evidence import Death

LEAKED_AFTER_SECONDS = 60.0
"""Idle in a transaction for so long is no pause between two statements."""

STUCK_AFTER_SECONDS = 10.0
"""The same, where no connection is left to check out."""


LEFT_AFTER_RATIO = 1.05
"""Times the shortest fatal rest: at rest for longer, a session on the server has no living connection any more."""


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
) -> Judgement:
    """The verdict before any trial."""
    if limit is None or limit.proven_seconds <= 0:
        return judged(VerdictKind.UNKNOWN, Ground.NOTHING_PROVEN)
    if settings is None or (settings.pool_recycle is None and settings.pool_pre_ping is None):
        return _by_activity(activity, limit)
    recycle, proven = settings.pool_recycle, limit.proven_seconds
    oldest = proven if lifetime is None else min(proven, lifetime.proven_seconds)
    if recycle is not None and 0 <= recycle <= oldest:
        return judged(VerdictKind.PROTECTED, Ground.YOUNG_ENOUGH, pool_recycle=recycle, proven_seconds=proven)
    if limit.death is not None:
        return _beyond(settings, limit.death, beyond_seconds=oldest, of_age=False)
    if lifetime is not None and lifetime.death is not None:
        return _beyond(settings, lifetime.death, beyond_seconds=lifetime.dead_by_seconds or oldest, of_age=True)
    return judged(VerdictKind.UNKNOWN, Ground.NO_DEATH_SEEN, pool_recycle=recycle, proven_seconds=proven)


def _beyond(settings: ApplicationSettings, death: Death, *, beyond_seconds: float, of_age: bool) -> Judgement:
    """Where the pool may hand out what is dead by then."""
    recycle, pre_ping = settings.pool_recycle, settings.pool_pre_ping
    if recycle is None or pre_ping is None:
        missing = "pool_recycle" if recycle is None else "pool_pre_ping"
        return judged(VerdictKind.UNKNOWN, Ground.SETTING_UNKNOWN, setting=missing)
    dead: dict[str, object] = {"pool_recycle": recycle, "beyond_seconds": beyond_seconds, "of_age": of_age}
    if not pre_ping:
        return judged(VerdictKind.EXPOSED, Ground.UNPINGED, death=death, **dead)
    if death is Death.SILENT:
        return judged(VerdictKind.EXPOSED, Ground.PING_HANGS, **dead)
    return judged(VerdictKind.PROTECTED, Ground.PING_FINDS, **dead)


def _by_activity(activity: Activity | None, limit: IdleLimit) -> Judgement:
    if activity is None or not sum(activity.connections.values()):
        return judged(VerdictKind.UNKNOWN, Ground.NO_SESSION_SEEN)
    rest, dead_by = activity.longest_idle_seconds or 0.0, limit.dead_by_seconds
    if dead_by is not None and limit.death is not None and rest > dead_by:
        return judged(
            VerdictKind.EXPOSED,
            Ground.SESSION_DEAD,
            dead_by_seconds=dead_by,
            death=limit.death,
            keepalive_helps=limit.keepalive_helps,
        )
    return judged(VerdictKind.UNKNOWN, Ground.SESSIONS_YOUNG)


def about_activity(activity: Activity, limit: IdleLimit | None, *, pooled: bool = False) -> Iterator[Finding]:
    """What the server shows of the application's sessions, where it points to trouble no pool setting cures."""
    in_transaction = activity.longest_idle_in_transaction_seconds or 0.0
    held = activity.connections.get("idle_in_transaction", 0)
    if held > 1 and not activity.connections.get("idle", 0) and in_transaction > STUCK_AFTER_SECONDS:
        yield found(Code.POOL_EXHAUSTED, sessions=held, in_transaction_seconds=in_transaction)
    elif in_transaction > LEAKED_AFTER_SECONDS:
        yield found(Code.IDLE_IN_TRANSACTION, in_transaction_seconds=in_transaction)
    rest, dead_by = activity.longest_idle_seconds, None if limit is None else limit.dead_by_seconds
    if rest is not None and dead_by is not None and rest > dead_by:
        yield found(Code.APPLICATION_RESTS_TOO_LONG, rested_seconds=rest, dead_by_seconds=dead_by)
    if limit is not None and not pooled:
        yield from _about_left_sessions(activity, limit)


def _about_left_sessions(activity: Activity, limit: IdleLimit) -> Iterator[Finding]:
    """Sessions at rest for longer than anything lives here have lost their clients, and count against every limit.

    Not so where the server itself ends what rests (it would have ended these), where keepalives may hold them, and
    behind a pooler, whose own connections rest as long as it likes.
    """
    rest, dead_by = activity.role_longest_rest_seconds, limit.dead_by_seconds
    if rest is None or dead_by is None or limit.death is Death.FATAL or limit.keepalive_helps:
        return
    if rest > LEFT_AFTER_RATIO * dead_by:
        yield found(
            Code.APPLICATION_LEAVES_SESSIONS,
            rested_seconds=rest,
            dead_by_seconds=dead_by,
            sessions=activity.role_sessions,
            resting=activity.role_resting,
        )
