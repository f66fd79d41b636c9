"""Why did this connection end? Judged from all the evidence, not from the last message alone.

Only an idle limit and a lifetime limit testify about the path. Everything else is an accident, and an accident taken
for a limit is the classic way to publish nonsense. The evidence, strongest first:

- The session had been told by ourselves to end after such a rest (`own_limit`): nothing follows from that.
- The server or the pooler said so. 57P05 (idle_session_timeout) and PgBouncer's client_idle_timeout are true idle
  limits. 57P01 and 57P02 come with a stop, a crash or pg_terminate_backend, and say nothing about idleness; 25P03 and
  25P04 concern transactions.
- No fresh connection can be had either: the path or the server is gone for everybody.
- The fresh connection finds another server, or the same one started anew.
- Other connections were closed in the same moment, neither equally rested nor equally old: somebody cleared the table.
- It was not left to rest for as long as rests are survived, or others die at that age however busy they are: its age.
- Otherwise rest is the likeliest cause. It needs further witnesses before it is believed (see `knowledge`), and so does
  age (see `lifetime`).

No death is judged on the spot: `PendingDeaths` keeps it until a fresh connection has answered. Behind a pooler a login
is enough for that, with one exception: a use that got no answer may have waited for one of the pooler's connections
while all were taken. So there the fresh one is asked, too.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from math import inf

from sidecar.core.evidence import Arm, Cause, Ending, Noticed
from sidecar.core.identity import Identity, Kinship, compare
from sidecar.core.idle.facts import Died
from sidecar.core.independence import EndAtRest, in_company
from sidecar.core.signals import ServerSignal


def moved(before: Identity, after: Identity, known: Collection[tuple[str | None, float | None]]) -> Cause | None:
    """RESTART or FAILOVER when `after` is a server life never seen before (`known` holds the keys of those seen).

    Behind a load balancer over several replicas two answers may differ although nothing happened. A life that was
    known before is therefore no evidence, nor is an answer that does not tell of which life it is.
    """
    if after.key in known or None in (before.started_at, after.started_at):
        return None
    match compare(before, after).kinship:
        case Kinship.ANOTHER_SERVER:
            return Cause.FAILOVER
        case Kinship.ANOTHER_LIFE:
            return Cause.RESTART
        case _:
            return None


def judge(ending: Ending, *, doubt: Cause | None, in_company: bool, aged: bool = False) -> Cause:
    """Why a connection ended.

    `doubt` is what else happened while it was open (a new life of the server, a time in which no connection could be
    had, a disturbance reported by others). `in_company` tells that others ended in the same moment at clearly
    different rests and ages. `aged` tells that its age explains its end, where its rest does not or need not.
    """
    if ending.own_limit:
        return Cause.UNKNOWN
    if ending.said is ServerSignal.IDLE_TIMEOUT:
        return Cause.IDLE_LIMIT
    if doubt is not None:
        return doubt
    if ending.said is not None and ending.said.out_of_service:
        return Cause.CULL
    if ending.said is ServerSignal.IN_TRANSACTION_TIMEOUT:
        return Cause.UNKNOWN
    if in_company:
        return Cause.CULL
    return Cause.LIFETIME_LIMIT if aged else Cause.IDLE_LIMIT


SETTLE_SECONDS = 0.2
"""After an end noticed at rest, before it is judged: others of the same moment must have time to show."""

_ENDS_KEPT_SECONDS = 10 * SETTLE_SECONDS
"""How long an end is kept as company for others: until all of its moment are judged, and then some."""

_REMEMBERED_LIVES = 32
"""Lives of the server, the latest: more than there are replicas behind one name."""


@dataclass(slots=True, kw_only=True)
class PendingDeath:
    """A death that waits for its judgement."""

    died: Died
    arm: Arm
    identity: Identity
    at: float
    doubt: Cause | None
    busy: bool = False  # its last rest was too short to kill
    answered: bool = False  # a fresh connection was opened since
    needs_answer: bool = False  # that a fresh one can be opened does not tell; it has to be asked

    @property
    def settled_at(self) -> float:
        """When others of the same moment would have shown. Only ends noticed at rest have a moment in common."""
        return self.at + (SETTLE_SECONDS if self.died.ending.noticed == Noticed.READING else 0.0)


class PendingDeaths:
    """Keeps deaths until a fresh connection has answered, then says what their causes are.

    Every place of a dead connection is taken by a fresh one sooner or later, so the control costs no connection.
    """

    def __init__(self) -> None:
        self._pending: list[PendingDeath] = []
        self._lives: dict[tuple[str | None, float | None], Identity] = {}  # of the server; the last one met last
        self._ends: list[EndAtRest] = []

    @property
    def waiting(self) -> bool:
        """Whether any death is not judged yet."""
        return bool(self._pending)

    @property
    def next_deadline(self) -> float | None:
        """When the next death is ripe for judgement; None while no fresh connection has answered."""
        return min((pending.settled_at for pending in self._pending if pending.answered), default=None)

    def report(
        self,
        died: Died,
        *,
        arm: Arm,
        identity: Identity,
        doubt: Cause | None,
        now: float,
        busy: bool = False,
        pooled: bool = False,
    ) -> None:
        """Take a death. `doubt` is what else is known to have happened while the connection was open, `busy` that it
        was used so often that rest cannot have killed it, `pooled` that its use may have waited in a pooler's queue."""
        if died.ending.noticed == Noticed.READING and not died.ending.own_limit:
            self._ends = [end for end in self._ends if now - end.at < _ENDS_KEPT_SECONDS]
            self._ends.append(_end_at_rest(died, now))
        unanswered = died.ending.noticed == Noticed.DEADLINE
        self._pending.append(
            PendingDeath(
                died=died,
                arm=arm,
                identity=identity,
                at=now,
                doubt=doubt,
                busy=busy,
                needs_answer=pooled and unanswered,
            )
        )

    @property
    def needs_answer(self) -> bool:
        """Whether a fresh connection must be asked before all can be judged."""
        return any(pending.needs_answer and not pending.answered for pending in self._pending)

    def logged_in(self) -> None:
        """A fresh connection was opened, and not asked: the path leads somewhere, and no server told of its life."""
        for pending in self._pending:
            pending.answered = pending.answered or not pending.needs_answer

    def answered(self, identity: Identity) -> Cause | None:
        """A fresh connection answered, which tells about all the dead. The cause, if it met a new server life."""
        last = next(reversed(self._lives.values()), None)
        cause = None if last is None else moved(last, identity, self._lives)
        self._lives.pop(identity.key, None)
        self._lives[identity.key] = identity
        while len(self._lives) > _REMEMBERED_LIVES:
            del self._lives[next(iter(self._lives))]
        for pending in self._pending:
            pending.answered = True
            if cause is not None and pending.identity.key != identity.key:
                pending.doubt = cause
        return cause

    def cast_doubt(self, cause: Cause) -> None:
        """Something happened that may have killed all those not judged yet."""
        for pending in self._pending:
            pending.doubt = pending.doubt or cause

    def judge_ripe(self, now: float, *, fatal_age_seconds: float = inf) -> list[tuple[PendingDeath, Cause]]:
        """The deaths that are ripe, and their causes. From `fatal_age_seconds` on, age explains a death."""
        ripe = [pending for pending in self._pending if pending.answered and now >= pending.settled_at]
        self._pending = [pending for pending in self._pending if pending not in ripe]
        return [(pending, self._cause_of(pending, fatal_age_seconds)) for pending in ripe]

    def drain(self) -> list[PendingDeath]:
        """Hand back all that are not judged: nobody will come to answer."""
        pending, self._pending = self._pending, []
        return pending

    def _cause_of(self, pending: PendingDeath, fatal_age_seconds: float) -> Cause:
        died = pending.died
        together = died.ending.noticed == Noticed.READING and in_company(
            _end_at_rest(died, pending.at), self._ends, within_seconds=SETTLE_SECONDS
        )
        aged = pending.busy or died.age_seconds >= fatal_age_seconds
        return judge(died.ending, doubt=pending.doubt, in_company=together, aged=aged)


def _end_at_rest(died: Died, at: float) -> EndAtRest:
    return EndAtRest(at=at, idle_seconds=died.idle_seconds, age_seconds=died.age_seconds)
