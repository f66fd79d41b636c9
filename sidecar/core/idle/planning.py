"""What the probe connections are for at the moment: who rests how long, who is closed, what is opened.

Theory of operation
===================

The stage of the measurement follows from the knowledge alone:

    LADDER   all connections age towards the next untested rungs, until one dies
    REFINE   the staggered ages are used to narrow the bracket to a few percent      -> status `provisional`
    CONFIRM  a second, independent death just above the bracket                      -> status `confirmed`
    VOLLEY   as many connections as there are rest just below the bracket, one above -> status `verified`
    MONITOR  two connections at a time: a guard just below the limit, and a ruler at fractions of it, which would
             meet a shorter limit early and a longer one at the end

A change of stage closes nothing: connections were never used, so whatever their age, they serve the next stage too.
Only those with keepalive and the busy ones rest like no other, and cannot stand in for any.

Once the limit is verified, a connection with TCP keepalive well below it rests beyond it. If it lives, keepalive helps,
and the limit belongs to something that looks at packets; if such connections die, to something that counts bytes.

Beside these, one connection is used all the time and grows old: if such connections die at one age, it is a limit on
age (see `lifetime`). The heartbeat's session testifies to that, too; where only two connections are allowed it is left
to that, until one has died: then a busy connection and the ruler take turns.

Where a use gets no answer, waiting for its deadline would delay the search; after a moment it is planned as if the
connection had died, but believed only when it has.

How long a connection may come to rest is bounded when it is opened, because its session is told to end by itself
somewhat later (`longest_rest`). A connection that is never used serves later stages, so what counts is the longest rest
of those that may follow: on the ladder the rungs up to its own, and one more, since the sentinel joins the climbers;
once something has died, what the volley rests beyond the limit. One that is asked for more all the same, because deaths
were taken back or contradicted, is given up for a fresh one.

Nothing here changes anything. A plan names what is to be dropped, opened and assigned; the machine carries it out, in
this order.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from math import inf

from sidecar.core.evidence import Arm, Status
from sidecar.core.idle.knowledge import BEYOND_RATIO, CONFIRM_RATIO, JUST_BEYOND_RATIO, Knowledge
from sidecar.core.idle.ladder import (
    SAME_REST_RATIO,
    Prior,
    best_test,
    settled,
    spared_rest,
    spares_sentinel,
)
from sidecar.core.idle.probes import Probe, ProbeState

LEAST_CONNECTIONS = 2
"""Fewer can compare nothing: then the measurement pauses."""

TOO_OLD_RATIO = 1.03
"""A connection that rested this much more than the rest in question says little about it."""

RULER_RATIOS = (1 / 8, 1 / 4, 1 / 8, 1 / 2, 1 / 8, 1 / 4, 1 / 8, JUST_BEYOND_RATIO)
"""Of the shortest fatal rest: the ruler's rests, one after the other. A much shorter limit is met soon, a longer one at
the end of each round."""

KEEPALIVE_REST_RATIO = 1.3
"""Of the shortest fatal rest: where a connection with TCP keepalive shows whether that holds it open."""

BUSY_SHARE = 0.3
"""Of the longest rest survived: what a busy connection rests at most. Whatever ends it, it was not idleness."""

BUSY_STEP_SHARE = 0.02
"""Of its age: what a busy connection rests, which is how exactly its death tells the limit on age."""

BUSY_LEAST_SECONDS = 1.0
"""What a busy connection rests at least: a young one would be used without pause."""


class Stage(StrEnum):
    """Where the measurement is."""

    LADDER = "ladder"
    REFINE = "refine"
    CONFIRM = "confirm"
    VOLLEY = "volley"
    MONITOR = "monitor"
    PAUSED = "paused"  # the budget allows no connections at the moment


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """What a probe is for from now on; `goal_seconds` is the rest to reach, None to rest only."""

    connection: int
    arm: Arm
    goal_seconds: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Drop these connections, then open one for each of these arms, then assign."""

    drop: tuple[int, ...] = ()
    open: tuple[Arm, ...] = ()
    assign: tuple[Assignment, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Search:
    """What the search may use and what it knows besides the evidence."""

    connections: int  # that may be open
    ladder: tuple[float, ...]  # rests to try, seconds, ascending
    prior: Prior
    ladder_floor_seconds: float  # the longest rest survived since all connections were young
    deaths_pending: bool  # some deaths are not judged yet


@dataclass(frozen=True, slots=True, kw_only=True)
class MonitorRound:
    """How far the ruler is in its round of rests."""

    step: int = 0
    busy_next: bool = False  # the round is done: where the ruler shares its place, a busy connection is next

    @property
    def ratio(self) -> float:
        """Of the shortest fatal rest: what the ruler rests next."""
        return RULER_RATIOS[self.step % len(RULER_RATIOS)]

    def after_ruler(self) -> MonitorRound:
        step = self.step + 1
        return MonitorRound(step=step, busy_next=step % len(RULER_RATIOS) == 0)

    def after_busy(self) -> MonitorRound:
        return MonitorRound(step=self.step)


def stage_of(known: Knowledge) -> Stage:
    """The stage that the knowledge asks for."""
    if known.status is Status.VERIFIED:
        return Stage.MONITOR
    if known.suspect or known.confirmed or known.several_populations or known.exhausted:
        return Stage.VOLLEY
    if known.found:
        return Stage.CONFIRM
    return Stage.REFINE if known.high < inf else Stage.LADDER


def longest_rest(
    stage: Stage,
    arm: Arm,
    known: Knowledge,
    search: Search,
    *,
    sentinel_spared: bool,
    floor_seconds: float,
) -> float:
    """The longest rest, in seconds, that a connection opened now for this stage may come to be asked for.

    `sentinel_spared`: there is a sentinel, or a connection that is to be one. What came after the ladder may have begun
    with an accident, and then it goes on.
    """
    if arm is Arm.LIFETIME:
        return _busy_rest(known, BEYOND_RATIO * search.ladder[-1], floor_seconds)
    if arm is Arm.KEEPALIVE:
        return min(KEEPALIVE_REST_RATIO * known.high, known.fatal_age)
    beyond = max(floor_seconds, JUST_BEYOND_RATIO * (known.high if known.high < inf else known.longest))
    if stage in (Stage.VOLLEY, Stage.MONITOR):
        return beyond
    low = min(search.ladder_floor_seconds, known.low)
    if stage is Stage.LADDER and spares_sentinel(search.connections, low) and not sentinel_spared:
        return spared_rest(search.ladder)
    ahead = [rung for rung in search.ladder if rung > SAME_REST_RATIO * low][: search.connections]
    climb = ahead[-1] if ahead else search.ladder[-1]
    return climb if stage is Stage.LADDER else max(climb, beyond)


# -- the search: all stages but the last ------------------------------------------------------------------------------


def search_plan(stage: Stage, known: Knowledge, probes: Iterable[Probe], search: Search, now: float) -> Plan:
    """Bring connections and goals in line with a stage before MONITOR."""
    usable, drop = [], []
    for probe in probes:
        if probe.arm in (Arm.KEEPALIVE, Arm.LIFETIME):
            drop.append(probe.connection)
        else:
            usable.append(probe)
    surplus = max(0, len(usable) - search.connections)
    youngest = [probe.connection for probe in sorted(usable, key=lambda probe: probe.idle_seconds(now))[:surplus]]
    usable = [probe for probe in usable if probe.connection not in youngest]
    drop += youngest
    if stage is Stage.VOLLEY:
        assign, too_old = volley_goals(known, usable, now)
        drop += too_old
    else:
        assign, too_old = _search_goals(stage, known, usable, search, now), []
    missing = search.connections - len(usable) + len(too_old)
    return Plan(drop=tuple(drop), open=(Arm.SEARCH,) * missing, assign=tuple(assign))


def _search_goals(
    stage: Stage, known: Knowledge, probes: Sequence[Probe], search: Search, now: float
) -> list[Assignment]:
    unanswered = [probe.rested_seconds for probe in probes if probe.state == ProbeState.OVERDUE]
    high = min([known.high, *(rest for rest in unanswered if rest > known.low)])
    if high == inf:
        return ladder_goals(known, probes, search)
    if search.deaths_pending:
        return []
    return bracket_goals(stage, known.low, high, probes, search.prior, now)


def ladder_goals(known: Knowledge, probes: Iterable[Probe], search: Search) -> list[Assignment]:
    """The older a connection, the lower its rung: so each rung is reached as soon as can be."""
    low = min(search.ladder_floor_seconds, known.low)
    by_age = sorted(probes, key=lambda probe: probe.since)
    goals: list[Assignment] = []
    sentinel = None
    if spares_sentinel(search.connections, low) and by_age:
        # When the last sentinel was asked, the connection with the least rest behind it takes its place.
        sentinel = next((probe for probe in by_age if probe.arm is Arm.SENTINEL), None)
        spared_seconds = spared_rest(search.ladder)
        sentinel = sentinel or max(
            by_age,
            key=lambda probe: (probe.longest_goal_seconds >= spared_seconds, probe.goal_seconds is None, probe.since),
        )
        goals.append(Assignment(connection=sentinel.connection, arm=Arm.SENTINEL, goal_seconds=None))
    asked = {probe.goal_seconds for probe in by_age if probe.state.asked and probe is not sentinel}
    free = (rung for rung in search.ladder if rung > SAME_REST_RATIO * low and rung not in asked)
    goals += [
        Assignment(connection=probe.connection, arm=Arm.SEARCH, goal_seconds=next(free, None))
        for probe in by_age
        if probe.is_resting and probe is not sentinel
    ]
    return goals


def bracket_goals(
    stage: Stage, low: float, high: float, probes: Sequence[Probe], prior: Prior, now: float
) -> list[Assignment]:
    """Ask the one connection whose answer narrows the bracket soonest; the others go on resting, without a goal."""
    goals = {probe.connection: _goal(probe, None) for probe in probes if probe.is_resting}
    ages = {probe.connection: probe.idle_seconds(now) for probe in probes if probe.is_resting}
    sentinel = next((probe.connection for probe in probes if probe.is_resting and probe.arm is Arm.SENTINEL), None)
    if sentinel is not None and ages[sentinel] >= high:
        # The witness is asked at once.
        goals[sentinel] = Assignment(connection=sentinel, arm=Arm.CONFIRM, goal_seconds=ages[sentinel])
    elif not ages or any(probe.state == ProbeState.USING for probe in probes):
        pass  # the answer decides what is worth asking next
    elif stage is Stage.CONFIRM:
        # Who is too old to testify there is asked at once: it may contradict, and its place is needed.
        rest = (1 + CONFIRM_RATIO) / 2 * high
        for connection, age in ages.items():
            goals[connection] = Assignment(connection=connection, arm=Arm.CONFIRM, goal_seconds=max(age, rest))
    elif not settled(low, high):
        test = best_test(low, high, ages, prior)
        goals[test.connection] = Assignment(
            connection=test.connection, arm=goals[test.connection].arm, goal_seconds=test.rest_seconds
        )
    return list(goals.values())


def volley_goals(known: Knowledge, probes: Sequence[Probe], now: float) -> tuple[list[Assignment], list[int]]:
    """All rest just below the limit, one clearly beyond it where that is wanted; and who is too old for either."""
    goals: list[Assignment] = []
    too_old: list[int] = []
    rest, top = known.volley_rest, BEYOND_RATIO * known.high
    wants_top = known.needs_top and not any(probe.arm is Arm.CONFIRM and not probe.is_resting for probe in probes)
    for probe in sorted((probe for probe in probes if probe.is_resting), key=lambda probe: probe.since):
        age = probe.idle_seconds(now)
        if wants_top and age <= TOO_OLD_RATIO * top:
            # Should it survive, the limit is void at once.
            goals.append(Assignment(connection=probe.connection, arm=Arm.CONFIRM, goal_seconds=max(age, top)))
            wants_top = False
        elif age <= TOO_OLD_RATIO * rest:
            goals.append(Assignment(connection=probe.connection, arm=Arm.VOLLEY, goal_seconds=max(age, rest)))
        else:
            too_old.append(probe.connection)
    return goals, too_old


# -- once the limit is verified ---------------------------------------------------------------------------------------


def monitor_plan(
    known: Knowledge,
    probes: Sequence[Probe],
    ruler: MonitorRound,
    *,
    connections: int,
    floor_seconds: float,
    now: float,
    pooled: bool = False,
) -> tuple[Plan, MonitorRound]:
    """Watch what was verified. Returns the plan, and how far the ruler is once it is carried out.

    `floor_seconds` is the shortest rest worth trying, `pooled` tells of a pooler before the server.
    """
    arms = monitor_arms(known, probes, ruler, connections, pooled=pooled)
    held = {probe.arm for probe in probes}
    goals: list[Assignment] = []
    for probe in probes:
        if not probe.is_resting or probe.goal_seconds is not None or probe.arm not in arms:
            continue
        match probe.arm:
            case Arm.GUARD:
                goals.append(_goal(probe, known.volley_rest))
            case Arm.KEEPALIVE:
                goals.append(_goal(probe, min(KEEPALIVE_REST_RATIO * known.high, known.fatal_age)))
            case Arm.LIFETIME:
                rest = _busy_rest(known, now - probe.opened_at, floor_seconds)
                goals.append(_goal(probe, min(rest, probe.longest_goal_seconds)))
                ruler = ruler.after_busy()
            case _:
                limit = known.high if known.high < inf else known.longest
                goals.append(_goal(probe, max(floor_seconds, ruler.ratio * limit)))
                ruler = ruler.after_ruler()
    plan = Plan(
        drop=tuple(probe.connection for probe in probes if probe.arm not in arms),
        open=tuple(arm for arm in arms if arm not in held),
        assign=tuple(goals),
    )
    return plan, ruler


def monitor_arms(
    known: Knowledge, probes: Iterable[Probe], ruler: MonitorRound, connections: int, *, pooled: bool = False
) -> list[Arm]:
    """What to hold a connection for, as far as they go.

    Each is opened anew when its rest has ended, or in place of another: nothing opens beside that. Behind a pooler none
    is kept busy, because it would hold one of the pooler's connections for all its life.
    """
    arms = [Arm.GUARD, Arm.RULER, Arm.LIFETIME]
    if pooled:
        arms.remove(Arm.LIFETIME)
    in_question = known.high < inf and not known.several_populations and known.keepalive_helps is None
    if in_question and BEYOND_RATIO * known.high < known.fatal_age:
        arms.insert(1, Arm.KEEPALIVE)
    arms = arms[:connections]
    if arms == [Arm.GUARD, Arm.RULER] and not pooled and known.lifetimes.suspected:
        # After each of its rounds the ruler leaves its place to a busy connection, for one life.
        held = {probe.arm for probe in probes}
        if Arm.LIFETIME in held or (ruler.busy_next and Arm.RULER not in held):
            return [Arm.GUARD, Arm.LIFETIME]
    return arms


def _busy_rest(known: Knowledge, age_seconds: float, floor_seconds: float) -> float:
    """What a busy connection of this age rests."""
    step = max(BUSY_LEAST_SECONDS, BUSY_STEP_SHARE * age_seconds)
    return min(step, BUSY_SHARE * (known.low or floor_seconds))


def _goal(probe: Probe, goal_seconds: float | None) -> Assignment:
    """The same arm, another goal."""
    return Assignment(connection=probe.connection, arm=probe.arm, goal_seconds=goal_seconds)
