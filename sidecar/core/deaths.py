"""Why did this connection end? Judged from all the evidence, not from the last message alone.

Only an idle limit and a lifetime limit testify about the path. Everything else is an accident, and an accident taken
for a limit is the classic way to publish nonsense. The evidence, strongest first:

- The server or the pooler said so. 57P05 (idle_session_timeout) and PgBouncer's client_idle_timeout are true idle
  limits. 57P01 and 57P02 come with a stop, a crash or pg_terminate_backend, and say nothing about idleness; 25P03 and
  25P04 concern transactions.
- No fresh connection can be had either: the path or the server is gone for everybody.
- The fresh connection finds another server, or the same one started anew.
- Other connections were closed in the same moment after different rests: somebody cleared the table.
- Otherwise rest is the likeliest cause. It needs further witnesses before it is believed (see `knowledge`).

No death is judged on the spot: `Inquest` keeps it until a fresh connection has answered.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from sidecar.core.facts import Cause, Died, Ending, Identity

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


SETTLE_SECONDS = 0.25
"""After an end noticed at rest, before it is judged: others of the same moment must have time to show."""

_REMEMBERED_LIVES = 32


@dataclass(slots=True, kw_only=True)
class Case:
    """A death that waits for its judgement."""

    died: Died
    arm: str
    identity: Identity
    at: float
    doubt: Cause | None
    answered: bool = False  # a fresh connection was opened since

    @property
    def settled_at(self) -> float:
        """When others of the same moment would have shown. Only ends noticed at rest have a moment in common."""
        return self.at + (SETTLE_SECONDS if self.died.ending.noticed == "reading" else 0.0)


class Inquest:
    """Keeps the dead until a fresh connection has answered, then says what they died of.

    Every place of a dead connection is taken by a fresh one sooner or later, so the control costs no connection.
    """

    def __init__(self) -> None:
        self._cases: list[Case] = []
        self._lives: dict[tuple[str | None, float | None], Identity] = {}  # of the server; the last one met last
        self._ends: list[tuple[float, float]] = []  # (when, after which rest) of ends noticed at rest

    @property
    def waiting(self) -> bool:
        """Whether any death is not judged yet."""
        return bool(self._cases)

    @property
    def next_deadline(self) -> float | None:
        """When the next case is ripe; None while none was answered."""
        return min((case.settled_at for case in self._cases if case.answered), default=None)

    def report(self, died: Died, *, arm: str, identity: Identity, doubt: Cause | None, now: float) -> None:
        """Take a death. `doubt` is what else is known to have happened while the connection was open."""
        if died.ending.noticed == "reading":
            self._ends = [end for end in self._ends if now - end[0] < 10 * SETTLE_SECONDS]
            self._ends.append((now, died.idle_seconds))
        self._cases.append(Case(died=died, arm=arm, identity=identity, at=now, doubt=doubt))

    def answered(self, identity: Identity) -> Cause | None:
        """A fresh connection answered, which tells about all the dead. The cause, if it met a new server life."""
        last = next(reversed(self._lives.values()), None)
        cause = None if last is None else moved(last, identity, self._lives)
        self._lives.pop(identity.key, None)
        self._lives[identity.key] = identity
        while len(self._lives) > _REMEMBERED_LIVES:
            del self._lives[next(iter(self._lives))]
        for case in self._cases:
            case.answered = True
            if cause is not None and case.identity.key != identity.key:
                case.doubt = cause
        return cause

    def cast_doubt(self, cause: Cause) -> None:
        """Something happened that may have killed all those not judged yet."""
        for case in self._cases:
            case.doubt = case.doubt or cause

    def verdicts(self, now: float) -> list[tuple[Case, Cause]]:
        """The cases that are ripe, and what they died of."""
        ripe = [case for case in self._cases if case.answered and now >= case.settled_at]
        self._cases = [case for case in self._cases if case not in ripe]
        return [(case, judge(case.died.ending, doubt=case.doubt, in_company=self._in_company(case))) for case in ripe]

    def adjourn(self) -> list[Case]:
        """Give up all open cases: nobody will come to answer."""
        cases, self._cases = self._cases, []
        return cases

    def _in_company(self, case: Case) -> bool:
        rest = max(case.died.idle_seconds, 1e-9)
        return case.died.ending.noticed == "reading" and any(
            abs(when - case.at) <= SETTLE_SECONDS and not 0.9 < other / rest < 1.1 for when, other in self._ends
        )
