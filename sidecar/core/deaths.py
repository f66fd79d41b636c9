"""Why did this connection end? Judged from all the evidence, not from the last message alone.

Only an idle limit and a lifetime limit testify about the path. Everything else is an accident, and an accident taken
for a limit is the classic way to publish nonsense. The evidence, strongest first:

- The server or the pooler said so. 57P05 (idle_session_timeout) and PgBouncer's client_idle_timeout are true idle
  limits. 57P01 and 57P02 come with a stop, a crash or pg_terminate_backend, and say nothing about idleness; 25P03 and
  25P04 concern transactions.
- No fresh connection can be had either: the path or the server is gone for everybody.
- The fresh connection finds another server, or the same one started anew.
- Other connections were closed in the same moment after different rests: somebody cleared the table.
- Otherwise rest is the likeliest cause. It needs a second witness before it is believed (see `idle`).
"""

from __future__ import annotations

from collections.abc import Collection

from sidecar.core.facts import Cause, Ending, Identity

_STOPPED = {"57P01", "57P02", "57P03"}  # admin_shutdown, crash_shutdown, cannot_connect_now
_IDLE_SESSION_TIMEOUT = "57P05"
_POOLER_SAYS = "08P01"  # protocol_violation: PgBouncer uses it for everything it has to say
_IN_TRANSACTION = {"25P03", "25P04"}


def says_idle(ending: Ending) -> bool:
    """Whether the message before the end named an idle timeout as the reason."""
    if ending.sqlstate == _IDLE_SESSION_TIMEOUT:
        return True
    return ending.sqlstate == _POOLER_SAYS and "idle_timeout" in (ending.message or "")


def moved(before: Identity, after: Identity, known: Collection[tuple[str | None, float | None]]) -> Cause | None:
    """RESTART or FAILOVER when `after` is a server life never seen before (`known` holds the keys of those seen).

    Behind a load balancer over several replicas two answers may differ although nothing happened; a life that was
    known before is therefore no evidence.
    """
    if after.key in known or before.key == after.key or None in (before.started_at, after.started_at):
        return None
    other_cluster = before.system_identifier != after.system_identifier or before.timeline != after.timeline
    return Cause.FAILOVER if other_cluster or before.address != after.address else Cause.RESTART


def judge(ending: Ending, *, doubt: Cause | None, in_company: bool) -> Cause:
    """Why a connection ended.

    `doubt` is what else happened while it was open (a new life of the server, a time in which no connection could be
    had, a disturbance reported by others). `in_company` tells that others ended in the same moment after clearly
    different rests.
    """
    if says_idle(ending):
        return Cause.IDLE_LIMIT
    if doubt is not None:
        return doubt
    if ending.sqlstate in _STOPPED:
        return Cause.CULL
    if ending.sqlstate in _IN_TRANSACTION:
        return Cause.UNKNOWN
    return Cause.CULL if in_company else Cause.IDLE_LIMIT
