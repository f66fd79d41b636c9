"""What the targets that lead to one server may hold, in the course of time: looks and wishes in, grants out.

Theory of operation
===================

`budget` says what is allowed at a moment. Here is what becomes of it while looks come in, one after the other, from any
of the targets, and each a little late.

- *What is given back is given back at once.* Whatever a look, a refusal or another wish takes away is gone from the
  next grants.
- *What is taken is taken on good grounds only.* A table is older than what we know ourselves: it may hold sessions of
  ours that we do not know yet, since their first answer is under way, and sessions that we have dropped and the server
  has not. For `SETTLE_SECONDS` those are no reason to close anything, and a reason to open nothing. Without a look for
  `STALE_SECONDS`, and before the first one, nothing is opened at all; what is held stays.
- *Who does not look often holds nothing.* Looks come over a heartbeat's session, every two seconds or so. Where none of
  the targets has one, be it that there is no seat or that none is wanted, only heartbeats are granted: somebody who
  looks once a minute would notice for a minute what he takes from others.
- *One introduces itself after the other.* Of targets that were told the same address, the first logs in and looks; the
  others follow by what it saw, and at the latest when it has had time to. A limit of a role or a database that was seen
  by one is taken to be above those, too, that have not looked themselves.
- *An answered refusal* takes all but the heartbeat: of that target while its connect path is answered so, and where the
  server is full, of all that stand under the same ceilings, for the calm minute that follows any crowd. Where looks
  show room under a ceiling and the target is refused all the same, again and again, that ceiling is not the one.
- *A ceiling that nobody declares* shows when a login is refused for want of a slot, and a session that lived through it
  sees slots free under every ceiling declared. It is above those that log in as the same role to the same database.
- *Through a pooler* nothing can be told from a table: its sessions are the pooler's own. A heartbeat and two probes.

Time is an argument, and nothing here opens or closes anything.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import inf

from sidecar.core.budget import (
    CALM_SECONDS,
    ELSE_AT_LEAST_FROM_50,
    GOES_ROUND,
    PROBES_AT_LEAST,
    SLOTS_LEFT_FREE,
    TURN_SECONDS,
    Allowance,
    BudgetStatus,
    Ceiling,
    CeilingKind,
    CeilingWatch,
    Grant,
    Hindrance,
    RefusedCeiling,
    Room,
    SessionTable,
    Wish,
    allowance,
    ceilings,
    claims,
    grant_of,
    grants,
)
from sidecar.core.signals import ServerSignal

SETTLE_SECONDS = 3.0
"""For so long a session may be new to us, or to the server gone: a handshake with its first answer over a long path."""

STALE_SECONDS = 10.0
"""After so long without a look nothing is opened: an application that grows waits for no longer than that."""

INTRODUCTION_SECONDS = 5.0
"""For so long one target is waited for before the next of the same address logs in, too."""

SOON_SECONDS = 5.0
"""A look explains a refusal when it comes so soon after it; looks come every two seconds or so."""

LEAST = Grant(heartbeat=True, probes=PROBES_AT_LEAST, pool=1)
"""What is held at most where the server does not show who holds its sessions."""

NOTHING = Grant()

Key = tuple[CeilingKind, str]
Login = tuple[str, str]
"""Role and database."""


@dataclass(slots=True)
class _Outlook:
    """What is known of one target."""

    looked_at: float = -inf
    seen: bool = False  # the latest look showed a table
    above: tuple[Key, ...] = ()
    introduced_at: float | None = None
    refused_until: float = -inf
    refused_at: float = -inf  # for want of a slot
    used_when_refused: int | None = None  # sessions then, until the refusal is explained
    was_refused: bool = False  # its connect path, when grants were drawn last
    granted: Grant = NOTHING
    status: BudgetStatus = field(default_factory=BudgetStatus)


@dataclass(slots=True)
class _Level:
    """What is known of one ceiling."""

    watch: CeilingWatch = field(default_factory=CeilingWatch)
    allowed: Allowance = field(default_factory=lambda: Allowance(heartbeats=0, measuring=0))
    ceiling: Ceiling | None = None  # of our sessions those among it that may be ours
    certain: Ceiling | None = None  # and those that certainly are
    seen_at: float = -inf

    def had_room_since(self, at: float) -> bool:
        return self.ceiling is not None and self.seen_at > at and self.ceiling.free > SLOTS_LEFT_FREE

    def room(self, *, certain: bool) -> Room:
        ceiling = self.certain if certain else self.ceiling
        return Room(heartbeats=0, measuring=0) if ceiling is None else Room.of(self.allowed, ceiling)


@dataclass(frozen=True, slots=True, kw_only=True)
class Circumstances:
    """What else decides about a target's grant: how it stands right now."""

    refused: bool = False  # its connect path is answered with a refusal, or waits in a pooler's queue
    pooled: bool = False
    paused: bool = False


USUAL = Circumstances()


class ServerBudget:
    """See the module's theory of operation. `now` is monotonic; `at`, the wall clock, is for `since_at` alone."""

    def __init__(self) -> None:
        self._outlooks: dict[str, _Outlook] = {}
        self._levels: dict[Key, _Level] = {}
        self._refused: dict[Login, RefusedCeiling] = {}  # what nobody declares
        self._first_seen: dict[int, float] = {}  # by pid, sessions under a sidecar's name
        self._last_ours: dict[int, float] = {}

    def looked(self, target: str, table: SessionTable | None, ours: Collection[int], now: float) -> None:
        """A target has looked: `table` is None where it was shown none. `ours` are all pids of this process there."""
        outlook = self._outlook(target)
        outlook.looked_at, outlook.seen = now, table is not None
        if table is None:
            outlook.above = ()
            return
        may_be_ours = self._may_be_ours(table, ours, now)
        declared = ceilings(table, may_be_ours)
        self._explain(outlook, table, declared, ours, now)
        outlook.above = tuple(
            self._observe(ceiling, certain, now)
            for ceiling, certain in zip(
                self._with_refused(table, declared, now),
                self._with_refused(table, ceilings(table, ours), now),
                strict=True,
            )
        )

    def refused(self, target: str, said: ServerSignal, now: float) -> None:
        """A login of that target was refused by an answer. A server that only starts has refused nothing."""
        if not said.is_refusal:
            return
        outlook = self._outlook(target)
        outlook.refused_until = now + CALM_SECONDS
        if said is not ServerSignal.FULL:
            return
        before, outlook.refused_at = outlook.refused_at, now
        above = [self._levels[key] for key in self._above(target)]
        for level in above:
            if before > -inf and level.had_room_since(before):
                continue  # it was refused before, and that was not for this one
            level.watch.refused(now)
            level.allowed = replace(level.allowed, measuring=0)
        known = [level.ceiling.used for level in above if level.ceiling is not None]
        outlook.used_when_refused = max(known, default=None)

    def forget(self, target: str) -> None:
        """The target leads elsewhere."""
        self._outlooks.pop(target, None)

    def grants(
        self, wishes: Sequence[Wish], now: float, *, at: float, circumstances: Mapping[str, Circumstances] | None = None
    ) -> dict[str, BudgetStatus]:
        """What each target may hold from now on. `wishes` come in the order of their rank."""
        standing = {wish.target: (circumstances or {}).get(wish.target, USUAL) for wish in wishes}
        for wish in wishes:
            self._note_readmission(self._outlook(wish.target), standing[wish.target])
        admitted = self._introduced(wishes, standing, now)
        asked = [
            self._asked(wish, standing[wish.target], now) for wish in wishes if wish.target in admitted
        ]  # what is of no use to ask for is not asked for
        direct = [wish for wish in asked if not standing[wish.target].pooled]
        most = self._share(direct, now, certain=False)
        is_fresh = any(now - self._outlook(wish.target).looked_at <= STALE_SECONDS for wish in direct)
        safe = self._share(direct, now, certain=True) if is_fresh else {}
        found = {}
        for wish in wishes:
            outlook, how = self._outlook(wish.target), standing[wish.target]
            if wish.target not in admitted:
                granted = NOTHING
            elif how.pooled:
                (mine,) = (each for each in asked if each.target == wish.target)
                granted = _pooled(mine)
            elif not is_fresh and outlook.looked_at == -inf:
                granted = most[wish.target]  # a heartbeat at most, to have a look
            else:
                granted = _risen(outlook.granted, most[wish.target], safe.get(wish.target, NOTHING))
            outlook.granted = granted
            outlook.status = self._status(wish, granted, how, outlook, now, at)
            found[wish.target] = outlook.status
        return found

    # -- what is known ----------------------------------------------------------------------------------------------

    def _outlook(self, target: str) -> _Outlook:
        return self._outlooks.setdefault(target, _Outlook())

    def _above(self, target: str) -> tuple[Key, ...]:
        """The ceilings above a target: those it saw, and before it did all that others have seen."""
        outlook = self._outlook(target)
        return outlook.above if outlook.seen else tuple(self._levels)

    def _may_be_ours(self, table: SessionTable, ours: Collection[int], now: float) -> set[int]:
        listed = {session.pid for session in table.sidecars}
        self._first_seen = {pid: self._first_seen.get(pid, now) for pid in listed}
        self._last_ours = {pid: at for pid, at in self._last_ours.items() if pid in listed} | dict.fromkeys(ours, now)
        unsettled = {
            session.pid
            for session in table.sidecars
            if session.own_role
            and (
                now - self._first_seen[session.pid] < SETTLE_SECONDS
                or now - self._last_ours.get(session.pid, -inf) < SETTLE_SECONDS
            )
        }
        return unsettled | set(ours)

    def _explain(
        self,
        outlook: _Outlook,
        table: SessionTable,
        declared: Sequence[Ceiling],
        ours: Collection[int],
        now: float,
    ) -> None:
        """Was the latest refusal for a ceiling that shows? Who logged in afterwards sees what has changed since."""
        used, outlook.used_when_refused = outlook.used_when_refused, None
        if used is None or now - outlook.refused_at > SOON_SECONDS:
            return
        lived_through = any(
            session.is_heartbeat and session.pid in ours and self._first_seen[session.pid] < outlook.refused_at
            for session in table.sidecars
        )
        if lived_through and all(ceiling.free > SLOTS_LEFT_FREE for ceiling in declared):
            login = (table.role, table.database)
            self._refused.setdefault(login, RefusedCeiling()).shown(max(used, table.used), now)

    def _with_refused(self, table: SessionTable, found: tuple[Ceiling, ...], now: float) -> tuple[Ceiling, ...]:
        server = next(ceiling for ceiling in found if ceiling.kind is CeilingKind.SERVER)
        undeclared = self._refused.get((table.role, table.database))
        shown = None if undeclared is None else undeclared.over(server, now)
        return found if shown is None else (*found, replace(shown, name=f"{table.role}@{table.database}"))

    def _observe(self, ceiling: Ceiling, certain: Ceiling, now: float) -> Key:
        level = self._levels.setdefault(ceiling.key, _Level())
        level.ceiling, level.certain, level.seen_at = ceiling, certain, now
        level.allowed = level.watch.observe(ceiling, now)
        return ceiling.key

    def _note_readmission(self, outlook: _Outlook, how: Circumstances) -> None:
        if outlook.was_refused and not how.refused:  # the connect path works again: that is proof enough
            outlook.refused_until = outlook.refused_at = -inf
            outlook.used_when_refused = None
        outlook.was_refused = how.refused

    # -- who gets what ------------------------------------------------------------------------------------------------

    def _introduced(self, wishes: Sequence[Wish], standing: Mapping[str, Circumstances], now: float) -> Collection[str]:
        """The targets that may log in: all, once somebody has looked or there was time to."""
        present = [wish.target for wish in wishes if not standing[wish.target].paused]
        if any(self._outlook(target).looked_at > -inf for target in present):
            return present
        admitted = []
        for target in present:
            outlook = self._outlook(target)
            if outlook.introduced_at is None:
                outlook.introduced_at = now
            admitted.append(target)
            if now - outlook.introduced_at < INTRODUCTION_SECONDS and not self._is_refused(
                outlook, standing[target], now
            ):
                break
        return admitted

    def _is_refused(self, outlook: _Outlook, how: Circumstances, now: float) -> bool:
        return how.refused or now < outlook.refused_until

    def _asked(self, wish: Wish, how: Circumstances, now: float) -> Wish:
        """What it is of use to ask for, as things stand."""
        outlook = self._outlook(wish.target)
        if outlook.looked_at == -inf or self._is_refused(outlook, how, now):
            return replace(wish, probes=0, pool=0, trials=0)
        if not outlook.seen:
            return replace(wish, probes=min(wish.probes, LEAST.probes), pool=min(wish.pool, LEAST.pool), trials=0)
        return wish

    def _share(self, asked: Sequence[Wish], now: float, *, certain: bool) -> dict[str, Grant]:
        above = {wish.target: self._above(wish.target) for wish in asked}
        rooms: dict[Hashable, Room] = {key: level.room(certain=certain) for key, level in self._levels.items()}
        joint = min((self._levels[key].allowed.measuring for keys in above.values() for key in keys), default=0)
        made = claims(asked, turn=int(now // TURN_SECONDS), going_round=joint // GOES_ROUND)
        shared = grants(made, above, rooms)
        found = {wish.target: grant_of(wish.target, shared) for wish in asked}
        if not any(grant.heartbeat for grant in found.values()):
            return dict.fromkeys(found, NOTHING)
        return found

    # -- and why ------------------------------------------------------------------------------------------------------

    def _status(
        self, wish: Wish, granted: Grant, how: Circumstances, outlook: _Outlook, now: float, at: float
    ) -> BudgetStatus:
        wished = Grant(heartbeat=wish.heartbeat, probes=wish.probes, pool=wish.pool, trials=wish.trials)
        hindrance = self._hindrance(wish, wished, granted, how, outlook, now)
        before = outlook.status
        tightest = None if how.pooled else self._tightest(wish.target)
        ceiling = None if tightest is None else tightest.ceiling
        return BudgetStatus(
            usable=None if ceiling is None else ceiling.usable,
            used=None if ceiling is None else ceiling.used,
            others=None if ceiling is None else ceiling.others,
            ceiling=None if ceiling is None else ceiling.kind,
            joint=None if tightest is None else tightest.allowed.measuring,
            granted=granted,
            wished=wished,
            hindrance=hindrance,
            since_at=before.since_at if before.hindrance is hindrance and before.since_at else at,
        )

    def _hindrance(
        self, wish: Wish, wished: Grant, granted: Grant, how: Circumstances, outlook: _Outlook, now: float
    ) -> Hindrance | None:
        levels = [self._levels[key] for key in self._above(wish.target)]
        enough = min(wished.measuring, ELSE_AT_LEAST_FROM_50)
        if how.paused:
            return Hindrance.PAUSED
        if granted.heartbeat == wished.heartbeat and granted.measuring >= enough and not how.pooled:
            return None
        if self._is_refused(outlook, how, now) or any(level.watch.is_refused for level in levels):
            return Hindrance.REFUSED
        if how.pooled:
            return Hindrance.POOLER
        if outlook.looked_at == -inf:
            has_no_seat = wished.heartbeat and not granted.heartbeat and levels
            return Hindrance.NO_SEAT if has_no_seat else Hindrance.NOT_LOOKED_YET
        if not outlook.seen:
            return Hindrance.UNSEEN
        if any(_is_crowded(level) for level in levels):
            return Hindrance.CROWDED
        return Hindrance.FEW_SLOTS if granted.heartbeat else Hindrance.NO_SEAT

    def _tightest(self, target: str) -> _Level | None:
        def slack(level: _Level) -> tuple[int, int]:
            return (level.allowed.measuring, 0 if level.ceiling is None else level.ceiling.free)

        if not self._outlook(target).seen:
            return None
        return min((self._levels[key] for key in self._above(target)), key=slack, default=None)


def _pooled(asked: Wish) -> Grant:
    if not asked.heartbeat:
        return NOTHING
    return Grant(heartbeat=True, probes=min(asked.probes, PROBES_AT_LEAST))


def _risen(before: Grant, most: Grant, safe: Grant) -> Grant:
    """Down to `most` at once; above what it was only as far as that is `safe`."""

    def number(held: int, at_most: int, surely: int) -> int:
        return min(at_most, max(held, surely))

    return Grant(
        heartbeat=most.heartbeat and (before.heartbeat or safe.heartbeat),
        probes=number(before.probes, most.probes, safe.probes),
        pool=number(before.pool, most.pool, safe.pool),
        trials=number(before.trials, most.trials, safe.trials),
    )


def _is_crowded(level: _Level) -> bool:
    """Whether less is allowed than would be if the sidecars were alone."""
    if level.ceiling is None:
        return False
    alone = replace(level.ceiling, used=level.ceiling.heartbeats + level.ceiling.measuring)
    return level.allowed.measuring < allowance(alone).measuring
