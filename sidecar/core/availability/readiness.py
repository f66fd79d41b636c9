"""May traffic come? Judged for one target from what is known of its availability.

With `depends_on: process` always: the sidecar works, and that is all that was asked for. With `database`:

- before the first contact: no. Nothing is known, and an application that starts now would fail.
- while no connection can be had, or no fresh one: yes within the grace period, which rides out restarts, then no. A
  refused password or a missing database counts like a dead one: the application could not connect again, nor start
  anew. The reason says so.
- while fresh connections are refused for want of a slot, in the server, in a pooler's queue or in this process, and the
  session is answered: yes. The application works on the connections it has, another pod would not get any more, and
  that one connection too many may have been ours.
- while only writing is out: yes. Reading works, and no other pod could write either.
- while the watch is suspended: as the last look found it, with the same grace and the same exception. Where nobody
  looks, during a pause, yes: to ask for a maintenance is not to ask for an eviction.
"""

from __future__ import annotations

from dataclasses import dataclass

from sidecar.core.availability.states import State
from sidecar.core.availability.status import AvailabilityStatus
from sidecar.core.signals import ServerSignal


@dataclass(frozen=True, slots=True, kw_only=True)
class Readiness:
    """Whether traffic may come, and why (not). `reason` is a sentence for an operator, without secrets."""

    ready: bool
    reason: str
    since: float  # wall clock


_REMEDIES = {
    ServerSignal.LOGIN_REFUSED: "check the user, and that the password file holds the present password",
    ServerSignal.FULL: "close unused connections, or raise max_connections",
    ServerSignal.QUEUED: "close unused connections, or give the pooler more",
    ServerSignal.NO_DATABASE: "check the name of the database",
}
"""What to do about that which the server says."""


def readiness(status: AvailabilityStatus, *, depends_on: str, grace_seconds: float) -> Readiness:
    """The verdict. `depends_on` is `database` or `process`.

    `since` of the result is when this verdict began to hold. The reason holds no counting numbers, so that it changes
    only when there is news.
    """
    if depends_on == "process":
        return Readiness(ready=True, reason="readiness does not depend on the database", since=status.since_at)
    if status.paused:
        return Readiness(ready=True, reason="measuring is paused, nobody looks", since=status.since_at)
    if status.out_since_at is None or status.out_seconds is None:
        if status.suspended:
            return _suspended(status)
        ability = "" if status.writable else ", for reading only"
        return Readiness(ready=True, reason=f"the database is reachable{ability}", since=status.since_at)
    if status.state is State.UNKNOWN and not status.met:
        return Readiness(
            ready=False, reason=f"no contact with the database yet{_why(status)}", since=status.out_since_at
        )
    if status.state is State.READ_ONLY:
        return Readiness(
            ready=True, reason="the database is reachable, but cannot be written to", since=status.since_at
        )
    what = _WHAT.get(status.state, "the connection to the database is lost")
    if status.state in (State.CONNECT_BLOCKED, State.SUSPENDED) and _is_exhaustion(status):
        return Readiness(
            ready=True, reason=f"{what}, those that are open work{_why(status)}", since=status.out_since_at
        )
    if status.out_seconds < grace_seconds:
        return Readiness(
            ready=True,
            reason=f"{what}, for less than the grace of {grace_seconds:g} s{_why(status)}",
            since=status.out_since_at,
        )
    return Readiness(ready=False, reason=f"{what}{_why(status)}", since=status.out_since_at + grace_seconds)


_WHAT = {
    State.CONNECT_BLOCKED: "no new connection can be opened",
    State.SUSPENDED: "the last look found no database",
    State.UNKNOWN: "no contact with the database since watching was resumed",
}


def _suspended(status: AvailabilityStatus) -> Readiness:
    if status.reachable:
        reason = "the database was reachable at the last look; failovers are not timed"
        return Readiness(ready=True, reason=reason, since=status.since_at)
    return Readiness(ready=False, reason=f"no contact with the database yet{_why(status)}", since=status.since_at)


def _is_exhaustion(status: AvailabilityStatus) -> bool:
    return status.exhausted or (status.said is not None and status.said.is_exhaustion)


def _why(status: AvailabilityStatus) -> str:
    if status.error is None:
        return ""
    remedy = None if status.said is None else _REMEDIES.get(status.said)
    return f": {status.error}" + (f"; {remedy}" if remedy else "")
