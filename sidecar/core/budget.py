"""How many connections may be held on a server: a table of its sessions and limits in, grants out.

Theory of operation
===================

A sidecar that takes the application's last connections is worse than none. So nothing is held beyond what a few rules
allow, whatever was wished for. They are told of one *ceiling*, a limit on the number of sessions; several lie above
every connection (the server's, its role's, its database's, what a refusal has shown), and the tightest decides:

1. *Free slots.* The last `SLOTS_LEFT_FREE` are nobody's but the application's.
2. *Thresholds.* Let *base* be what measuring has to respect: the sessions of others, and the standing heartbeats of
   sidecars. Where base and a full share together exceed `FULL_BELOW` of what is usable, sidecars hold `REDUCED`
   connections beside their heartbeats; where base and those exceed `REDUCED_BELOW`, none, and one heartbeat.
3. *Budgets.* All heartbeats together take a tenth, all else together a twelfth or so and never many.
4. *At least.* Both come to some small number even where a share of a small server would be none.

Where they collide the earlier wins. What has to be given back is given back at once. What may be taken again is taken
only when it would have been allowed throughout the last `CALM_SECONDS`, by thresholds that are lower by `MARGIN`: the
application breathes, and nobody shall open and close in time with it.

What remains for this process is what others that follow the same rule, and sessions left over on the server after they
died unseen, do not hold already. Where all together hold more than is allowed, the sessions of the lowest pids stay:
everybody sees the same table, so nobody closes what nobody had to, and no two close and open by turns. It is given out
in the order of the claims made (see `claims`): heartbeats, then for each target what measuring it takes, then the rest.
Of what is of no use below some number (one resting connection compares nothing) less is not granted.

Room is kept for one connection of a moment (`LOOKS`), with which a sidecar sees that others can log in. What the rules
come to in the course of time, for all targets of one server, is up to `server_budget`.

Time is an argument, and nothing here opens or closes anything.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from math import floor, inf

SLOTS_LEFT_FREE = 2
"""Sessions: never taken by a sidecar."""

FULL_BELOW = 0.80
"""Share of usable that base and a full share may take up together."""

REDUCED_BELOW = 0.90
"""The same for base and `REDUCED` connections."""

REDUCED = 2
"""Connections beside heartbeats above the first threshold: with fewer nothing can be compared."""

HEARTBEAT_SHARE = 0.10
"""Of usable: all heartbeats together, at least one."""

ELSE_SHARE = 0.08
"""Of usable: all other connections of sidecars together."""

ELSE_AT_LEAST, ELSE_AT_LEAST_FROM_50, ELSE_AT_MOST = 2, 4, 24
"""Connections: the bounds of that share, the second from a usable of `ROOMY` on."""

ROOMY = 50
"""Sessions."""

MARGIN = 0.05
"""Share of usable by which a threshold must be undercut before more is taken again."""

CALM_SECONDS = 60.0
"""For so long more must have been allowed before it is taken."""

LOOKS = 1
"""Connections of a moment for which room is kept beside what is held."""

REFUSAL_REMEMBERED_SECONDS = 600.0
"""What a refusal showed of a ceiling nobody declares holds for so long, unless more sessions are seen before."""

TURN_SECONDS = 300.0
"""How long a target has the connections that go round."""

GOES_ROUND = 6
"""One of so many connections goes round by turns, for the others to check their own paths."""


APPLICATION = "connhealth"
"""What every session of a sidecar is called on the server, followed by a slash and its role. Short, because a name has
63 bytes there, and a heartbeat shall be able to say more in them."""


class ConnectionRole(StrEnum):
    """What a sidecar opens a connection for."""

    POOL = "pool"
    PROBE = "probe"
    HEARTBEAT = "heartbeat"
    TRIAL = "trial"
    OBSERVER = "observer"
    LOOK = "look"
    STORE = "store"

    @property
    def session_name(self) -> str:
        """`application_name` of such a session."""
        return f"{APPLICATION}/{self}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Declared:
    """What the server says of itself, read without privileges. Seconds; 0 = switched off; None = not known."""

    server_version: str | None = None
    idle_session_timeout: float | None = None
    idle_in_transaction_timeout: float | None = None
    tcp_keepalives_idle: float | None = None
    max_connections: int | None = None
    reserved_connections: int | None = None
    used_connections: int | None = None
    in_recovery: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """A session under a sidecar's name, as the server's table shows it. Anybody may take such a name."""

    pid: int
    name: str
    in_database: bool  # in the database of who looks
    own_role: bool = True  # of the role of who looks

    @property
    def is_heartbeat(self) -> bool:
        return self.name.partition(" ")[0] == ConnectionRole.HEARTBEAT.session_name


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftSession:
    """A session that this process opened itself, directly, and whose connection died without the server's knowledge.

    All times are the server's own, in seconds since the epoch. What a session did later than `last_used_by` was not
    done by us, whoever has it now.
    """

    pid: int
    server_started_at: float
    last_used_by: float
    backend_started_at: float | None = None  # where it was learnt


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionTable:
    """What one look at a server shows. A limit is None where there is none that binds this role."""

    usable: int  # max_connections, less what is reserved from this role
    used: int
    role: str
    role_limit: int | None
    role_used: int
    database: str
    database_limit: int | None
    database_used: int
    sidecars: tuple[Session, ...] = ()


class CeilingKind(StrEnum):
    """What limits the number of sessions."""

    SERVER = "server"  # max_connections, less what is reserved from this role
    ROLE = "role"  # CONNECTION LIMIT of the role
    DATABASE = "database"  # CONNECTION LIMIT of the database
    REFUSAL = "refusal"  # none of those, but a login was refused for want of a slot


@dataclass(frozen=True, slots=True, kw_only=True)
class Ceiling:
    """One limit on the number of sessions, and what is counted against it at one moment.

    Of the sessions `used`, `heartbeats` are heartbeats of sidecars (ours among them) and `measuring` their other
    connections, those included that died unseen and that the server still holds. `ours` are this process's own living
    ones among the latter, `our_heartbeats` among the former; their `places` are counted from 0 in the order of pids.
    """

    kind: CeilingKind
    name: str  # of the role or the database; tells two ceilings of a kind apart
    usable: int
    used: int
    heartbeats: int = 0
    measuring: int = 0
    our_heartbeats: int = 0
    ours: int = 0
    heartbeat_places: tuple[int, ...] = ()
    places: tuple[int, ...] = ()

    @property
    def key(self) -> tuple[CeilingKind, str]:
        return (self.kind, self.name)

    @property
    def others(self) -> int:
        """Sessions that are no sidecar's."""
        return max(0, self.used - self.heartbeats - self.measuring)

    @property
    def base(self) -> int:
        """Sessions that a sidecar's measuring has to respect: others, and the heartbeats."""
        return max(0, self.used - self.measuring)

    @property
    def free(self) -> int:
        return max(0, self.usable - self.used)


def ceilings(table: SessionTable, ours: Collection[int]) -> tuple[Ceiling, ...]:
    """The limits above a connection of who looked. `ours` are the pids of this process's living connections.

    Only names of one's own role are believed: whoever has that role could do worse than to take such a name. A name of
    another role is a session like any other, unless its pid is one of ours.
    """
    known = [session for session in table.sidecars if session.own_role or session.pid in ours]

    def ceiling(kind: CeilingKind, name: str, usable: int, used: int, sessions: Iterable[Session]) -> Ceiling:
        by_pid = sorted(sessions, key=lambda session: session.pid)
        beating = [session.pid for session in by_pid if session.is_heartbeat]
        measuring = [session.pid for session in by_pid if not session.is_heartbeat]
        heartbeat_places = tuple(place for place, pid in enumerate(beating) if pid in ours)
        places = tuple(place for place, pid in enumerate(measuring) if pid in ours)
        return Ceiling(
            kind=kind,
            name=name,
            usable=usable,
            used=used,
            heartbeats=len(beating),
            measuring=len(measuring),
            our_heartbeats=len(heartbeat_places),
            ours=len(places),
            heartbeat_places=heartbeat_places,
            places=places,
        )

    found = [ceiling(CeilingKind.SERVER, "", table.usable, table.used, known)]
    if table.role_limit is not None:
        same_role = [session for session in known if session.own_role]
        found.append(ceiling(CeilingKind.ROLE, table.role, table.role_limit, table.role_used, same_role))
    if table.database_limit is not None:
        here = [session for session in known if session.in_database]
        found.append(ceiling(CeilingKind.DATABASE, table.database, table.database_limit, table.database_used, here))
    return tuple(found)


def heartbeat_budget(usable: int) -> int:
    """Heartbeats, all sidecars together, where nothing else is in the way."""
    return max(1, floor(HEARTBEAT_SHARE * usable))


def full_share(usable: int) -> int:
    """All other connections, all sidecars together, where nothing else is in the way."""
    at_least = ELSE_AT_LEAST if usable < ROOMY else ELSE_AT_LEAST_FROM_50
    return min(ELSE_AT_MOST, max(at_least, floor(ELSE_SHARE * usable)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Allowance:
    """What all sidecars together may hold under one ceiling."""

    heartbeats: int
    measuring: int

    def __le__(self, other: Allowance) -> bool:
        return self.heartbeats <= other.heartbeats and self.measuring <= other.measuring


def allowance(ceiling: Ceiling, *, margin: float = 0.0) -> Allowance:
    """What the rules allow at this moment, with thresholds lowered by `margin` (a share of usable)."""
    usable, full = ceiling.usable, full_share(ceiling.usable)
    crowded = False
    if ceiling.base + full <= (FULL_BELOW - margin) * usable:
        measuring = full
    elif ceiling.base + REDUCED <= (REDUCED_BELOW - margin) * usable:
        measuring = min(full, REDUCED)
    else:
        measuring, crowded = 0, ceiling.base > (REDUCED_BELOW - margin) * usable
    heartbeats = 1 if crowded else heartbeat_budget(usable)
    room = usable - SLOTS_LEFT_FREE
    heartbeats = max(0, min(heartbeats, room - ceiling.others))
    standing = max(ceiling.heartbeats, 1) if heartbeats else 0  # room is kept for one that is about to log in
    left = room - ceiling.others - min(standing, heartbeats) - LOOKS
    return Allowance(heartbeats=heartbeats, measuring=max(0, min(measuring, left)))


@dataclass(slots=True)
class _Calm:
    """One number that falls at once and rises only after it could have been higher for a while."""

    value: int | None = None
    _seen: deque[tuple[float, int]] = field(default_factory=deque)

    def settle(self, at_once: int, at_leisure: int, now: float) -> int:
        self._seen.append((now, at_leisure))
        while len(self._seen) > 1 and self._seen[1][0] <= now - CALM_SECONDS:
            self._seen.popleft()
        calm_since = self._seen[0][0]
        if self.value is None or at_once < self.value:
            self.value = at_once
        elif now - calm_since >= CALM_SECONDS:
            self.value = max(self.value, min(at_once, *(seen for _, seen in self._seen)))
        return self.value

    def drop(self, now: float) -> None:
        """To nothing, at once: somebody was refused."""
        self.value = 0
        self._seen.clear()
        self._seen.append((now, 0))


class CeilingWatch:
    """What is allowed under one ceiling in the course of time."""

    def __init__(self) -> None:
        self._heartbeats, self._measuring = _Calm(), _Calm()
        self.is_refused = False  # nothing was allowed since a login was refused

    def observe(self, ceiling: Ceiling, now: float) -> Allowance:
        """Take the ceiling as it was seen just now; what is allowed from now on."""
        strict, lenient = allowance(ceiling, margin=MARGIN), allowance(ceiling)
        allowed = Allowance(
            heartbeats=self._heartbeats.settle(lenient.heartbeats, strict.heartbeats, now),
            measuring=self._measuring.settle(lenient.measuring, strict.measuring, now),
        )
        self.is_refused = self.is_refused and allowed.measuring == 0
        return allowed

    def refused(self, now: float) -> None:
        """A login was refused under it: everything but heartbeats is given back, and stays so for a while."""
        self._measuring.drop(now)
        self.is_refused = True


class RefusedCeiling:
    """The ceiling that nobody declares: as many sessions as there were when a login was refused for want of a slot.

    A pooler, a proxy or the provider's own reserve may lie below what the server says of itself.
    """

    def __init__(self) -> None:
        self._usable, self._until = inf, -inf

    def shown(self, used: int, now: float) -> None:
        """A login was refused while `used` sessions were open."""
        self._usable = min(used, self._usable if now < self._until else inf)
        self._until = now + REFUSAL_REMEMBERED_SECONDS

    def over(self, server: Ceiling, now: float) -> Ceiling | None:
        """The ceiling beside the server's own, None while none is known; more sessions than it allows refute it."""
        if now >= self._until:
            return None
        self._usable = max(self._usable, server.used)
        if self._usable >= server.usable:
            return None
        return Ceiling(
            kind=CeilingKind.REFUSAL,
            name="",
            usable=int(self._usable),
            used=server.used,
            heartbeats=server.heartbeats,
            measuring=server.measuring,
            our_heartbeats=server.our_heartbeats,
            ours=server.ours,
            heartbeat_places=server.heartbeat_places,
            places=server.places,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """What this process may hold under one ceiling: what is allowed to all, less what others and the dead hold."""

    heartbeats: int
    measuring: int

    @classmethod
    def of(cls, allowed: Allowance, ceiling: Ceiling) -> Room:
        kept = sum(place < allowed.measuring for place in ceiling.places)
        seats = sum(place < allowed.heartbeats for place in ceiling.heartbeat_places)
        return cls(
            heartbeats=max(seats, allowed.heartbeats - (ceiling.heartbeats - ceiling.our_heartbeats)),
            measuring=max(kept, allowed.measuring - (ceiling.measuring - ceiling.ours)),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What one target would hold if nothing were in the way.

    `searching` while its idle limit is not verified: then `probes` come before everything but the pool's first.
    """

    target: str
    heartbeat: bool = True
    searching: bool = True
    probes: int = 0
    pool: int = 0
    trials: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """What one target may hold from now on. What exceeds it is closed, and nothing beyond it is opened."""

    heartbeat: bool = False
    probes: int = 0
    pool: int = 0
    trials: int = 0

    @property
    def measuring(self) -> int:
        """All but the heartbeat."""
        return self.probes + self.pool + self.trials


class Hindrance(StrEnum):
    """Why a target holds less than it would."""

    CROWDED = "crowded"  # others use most of what is usable
    FEW_SLOTS = "few_slots"  # little is usable at all, or other targets and sidecars have it
    REFUSED = "refused"  # a login was refused, lately or still
    POOLER = "pooler"  # what is held through a pooler is taken from its queue
    CAPPED = "capped"  # fleet.max_connections
    PAUSED = "paused"  # by an operator
    NOT_LOOKED_YET = "not_looked_yet"  # who holds the sessions is not known yet
    UNSEEN = "unseen"  # the server does not show who holds its sessions
    NO_SEAT = "no_seat"  # no heartbeat may stand, or none is wanted: nobody looks often enough to measure


class PauseReason(StrEnum):
    """Why nothing at all is held."""

    BY_HAND = "by_hand"  # an operator asked for it


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetStatus:
    """What a target is granted, and why it is not more. Numbers of the ceiling are None while nobody has looked."""

    usable: int | None = None  # under the tightest ceiling
    used: int | None = None
    others: int | None = None  # of those used, no sidecar's
    ceiling: CeilingKind | None = None  # which one it is
    joint: int | None = None  # connections beside heartbeats that all sidecars together may hold under it
    granted: Grant = field(default_factory=Grant)
    wished: Grant = field(default_factory=Grant)
    hindrance: Hindrance | None = None
    since_at: float = 0.0  # wall clock: since when it has been this hindrance, or none

    @property
    def is_pausing(self) -> bool:
        """Whether nothing is measured, and not only because other targets and sidecars have what there is."""
        if self.hindrance is None or self.granted.measuring:
            return False
        return self.hindrance not in (Hindrance.FEW_SLOTS, Hindrance.NO_SEAT) or not self.joint


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """`target` wants to have `up_to` connections in the role `holding`; fewer than `at_least` gain nothing."""

    target: str
    holding: ConnectionRole
    up_to: int
    at_least: int = 1


PROBES_AT_LEAST = 2
"""Resting connections: with one, nothing can be compared."""


def claims(wishes: Sequence[Wish], *, turn: int, going_round: int) -> list[Claim]:
    """All that is wished for, the most important first. `wishes` come in the order of their rank.

    The lowest rank has what it needs first, and so on; once its limit is verified, that is two connections.
    `going_round` connections are for the target whose `turn` it is, whatever its rank.
    """
    if not wishes:
        return []
    first = turn % len(wishes)
    in_turn = (*wishes[first:], *wishes[:first])
    made = [Claim(target=wish.target, holding=ConnectionRole.HEARTBEAT, up_to=1) for wish in wishes if wish.heartbeat]
    if len(wishes) > 1:
        made += _check(in_turn[0], going_round)
    for wish in wishes:
        made += _essential(wish)
    for wish in in_turn:
        made += _rest(wish)
    return [claim for claim in made if claim.up_to > 0]


def _probes(wish: Wish, up_to: int) -> Claim:
    at_least = min(wish.probes, PROBES_AT_LEAST)
    return Claim(target=wish.target, holding=ConnectionRole.PROBE, up_to=up_to, at_least=at_least)


def _check(wish: Wish, connections: int) -> Iterable[Claim]:
    pair = min(wish.probes, PROBES_AT_LEAST) if connections >= PROBES_AT_LEAST else 0
    yield _probes(wish, pair)
    yield Claim(target=wish.target, holding=ConnectionRole.POOL, up_to=min(wish.pool, 1, connections - pair))


def _essential(wish: Wish) -> Iterable[Claim]:
    yield _probes(wish, min(wish.probes, PROBES_AT_LEAST))
    if wish.searching:
        yield Claim(target=wish.target, holding=ConnectionRole.POOL, up_to=min(wish.pool, 1))
        yield _probes(wish, wish.probes)


def _rest(wish: Wish) -> Iterable[Claim]:
    yield Claim(target=wish.target, holding=ConnectionRole.POOL, up_to=min(wish.pool, 1))
    yield Claim(target=wish.target, holding=ConnectionRole.TRIAL, up_to=min(wish.trials, 1))
    yield _probes(wish, wish.probes)
    yield Claim(target=wish.target, holding=ConnectionRole.POOL, up_to=wish.pool)
    yield Claim(target=wish.target, holding=ConnectionRole.TRIAL, up_to=wish.trials)


def grants(
    made: Iterable[Claim],
    ceilings: Mapping[str, Sequence[Hashable]],
    rooms: Mapping[Hashable, Room],
) -> dict[tuple[str, ConnectionRole], int]:
    """Who may hold how many: each claim in its turn, as far as every ceiling above its target (`ceilings`) has room."""
    left = {key: {True: room.heartbeats, False: room.measuring} for key, room in rooms.items()}
    granted: dict[tuple[str, ConnectionRole], int] = {}
    for claim in made:
        holder = (claim.target, claim.holding)
        is_heartbeat = claim.holding is ConnectionRole.HEARTBEAT
        held = granted.get(holder, 0)
        missing = claim.up_to - held
        room = min((left[key][is_heartbeat] for key in ceilings[claim.target]), default=missing)
        more = min(missing, room)
        if more <= 0 or held + more < claim.at_least:
            continue
        granted[holder] = held + more
        for key in ceilings[claim.target]:
            left[key][is_heartbeat] -= more
    return granted


def grant_of(target: str, granted: Mapping[tuple[str, ConnectionRole], int]) -> Grant:
    """What `grants` gave to one target."""
    return Grant(
        heartbeat=granted.get((target, ConnectionRole.HEARTBEAT), 0) > 0,
        probes=granted.get((target, ConnectionRole.PROBE), 0),
        pool=granted.get((target, ConnectionRole.POOL), 0),
        trials=granted.get((target, ConnectionRole.TRIAL), 0),
    )


def within_cap(granted: Mapping[str, Grant], cap: int) -> dict[str, Grant]:
    """What remains of grants, in the order of their targets, where the process may hold no more than `cap`.

    One of them is the connection of a moment; heartbeats come first here, too.
    """
    wishes = [
        Wish(target=target, heartbeat=one.heartbeat, probes=one.probes, pool=one.pool, trials=one.trials)
        for target, one in granted.items()
    ]
    heartbeats = min(sum(wish.heartbeat for wish in wishes), max(0, cap - LOOKS))
    room = Room(heartbeats=heartbeats, measuring=max(0, cap - LOOKS - heartbeats))
    capped = grants(claims(wishes, turn=0, going_round=0), dict.fromkeys(granted, ("cap",)), {"cap": room})
    return {target: grant_of(target, capped) for target in granted}
