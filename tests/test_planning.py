"""Goals as functions of stage, knowledge and probes: nothing is changed by asking for a plan."""

from __future__ import annotations

from collections.abc import Iterable
from copy import deepcopy

import pytest

from sidecar.core.evidence import Arm, Death, Status
from sidecar.core.idle.knowledge import BEYOND_RATIO, JUST_BEYOND_RATIO, Knowledge, Trial
from sidecar.core.idle.ladder import Prior
from sidecar.core.idle.planning import (
    RULER_RATIOS,
    Assignment,
    MonitorRound,
    Plan,
    Search,
    Stage,
    longest_rest,
    monitor_arms,
    monitor_plan,
    search_plan,
    stage_of,
)
from sidecar.core.idle.probes import Probe, ProbeState

NOW = 1000.0
FLOOR = 5.0


def knowledge(survived: Iterable[float] = (), killed: Iterable[float] = ()) -> Knowledge:
    known = Knowledge(volley=7, cap=10_000.0)
    trials = [Trial(idle_seconds=rest, at=rest) for rest in survived]
    trials += [Trial(idle_seconds=rest, at=1000.0 + rest, death=Death.RESET_ON_USE) for rest in killed]
    for trial in trials:
        known.add(trial)
    return known


def verified() -> Knowledge:
    known = knowledge([50.0, 99.0], [101.0, 102.0, 107.0])
    for number in range(7):
        known.add(Trial(idle_seconds=known.volley_rest, at=2000.0 + number))
    assert known.status is Status.VERIFIED
    return known


def resting(connection: int, idle_seconds: float, arm: Arm = Arm.SEARCH, goal: float | None = None) -> Probe:
    began = NOW - idle_seconds
    return Probe(
        connection=connection, arm=arm, state=ProbeState.RESTING, opened_at=began, since=began, goal_seconds=goal
    )


def search(connections: int, *, deaths_pending: bool = False) -> Search:
    ladder = (5.0, 10.0, 20.0, 40.0, 80.0, 160.0)
    return Search(
        connections=connections,
        ladder=ladder,
        prior=Prior(),
        ladder_floor_seconds=10.0,
        deaths_pending=deaths_pending,
    )


def planned(known: Knowledge, probes: list[Probe], connections: int, **how: bool) -> Plan:
    before = deepcopy((probes, vars(known)))
    plan = search_plan(stage_of(known), known, probes, search(connections, **how), NOW)
    assert (probes, vars(known)) == before, "asking changes nothing"
    return plan


def goals(plan: Plan) -> dict[int, tuple[Arm, float | None]]:
    return {assigned.connection: (assigned.arm, assigned.goal_seconds) for assigned in plan.assign}


def test_the_stage_follows_from_the_knowledge() -> None:
    assert stage_of(knowledge([50.0])) is Stage.LADDER
    assert stage_of(knowledge([50.0], [101.0])) is Stage.REFINE
    assert stage_of(knowledge([50.0, 99.0], [101.0])) is Stage.CONFIRM
    assert stage_of(knowledge([50.0, 99.0], [101.0, 102.0, 103.0])) is Stage.VOLLEY
    assert stage_of(verified()) is Stage.MONITOR


def test_on_the_ladder_the_oldest_takes_the_lowest_rung_and_the_missing_are_opened() -> None:
    plan = planned(knowledge([10.0]), [resting(1, 3.0), resting(2, 8.0)], connections=4)
    assert goals(plan) == {2: (Arm.SEARCH, 20.0), 1: (Arm.SEARCH, 40.0)}
    assert (plan.drop, plan.open) == ((), (Arm.SEARCH, Arm.SEARCH))


def test_with_enough_connections_the_youngest_is_spared() -> None:
    plan = planned(knowledge([10.0]), [resting(n, 10.0 - n) for n in range(1, 7)], connections=6)
    assert goals(plan)[6] == (Arm.SENTINEL, None)
    assert [goal for _, goal in goals(plan).values() if goal is not None] == [20.0, 40.0, 80.0, 160.0]


def test_a_smaller_budget_costs_the_youngest_and_those_who_cannot_stand_in() -> None:
    probes = [resting(1, 9.0), resting(2, 1.0), resting(3, 5.0), resting(4, 99.0, Arm.LIFETIME)]
    plan = planned(knowledge([10.0]), probes, connections=2)
    assert (plan.drop, plan.open, set(goals(plan))) == ((4, 2), (), {1, 3})


def test_in_the_bracket_one_is_asked_and_the_others_rest_on() -> None:
    known = knowledge([50.0], [100.0])
    plan = planned(known, [resting(1, 70.0, goal=80.0), resting(2, 20.0, goal=90.0)], connections=2)
    asked = [goal for _, goal in goals(plan).values() if goal is not None]
    assert len(asked) == 1
    assert 50.0 < asked[0] < 100.0
    assert planned(known, [resting(1, 70.0)], connections=1, deaths_pending=True).assign == ()


def test_a_late_answer_is_planned_for_as_a_death() -> None:
    overdue = Probe(connection=1, arm=Arm.SEARCH, state=ProbeState.OVERDUE, rested_seconds=40.0, goal_seconds=40.0)
    plan = planned(knowledge([10.0]), [overdue, resting(2, 15.0)], connections=2)
    ((connection, (_, goal)),) = goals(plan).items()
    assert connection == 2
    assert goal is not None
    assert 10.0 < goal < 40.0


def test_in_a_volley_all_rest_below_the_limit_one_beyond_and_who_is_too_old_goes() -> None:
    known = knowledge([50.0, 99.0], [101.0, 102.0, 109.0])
    probes = [resting(1, 150.0), resting(2, 103.0), resting(3, 10.0), resting(4, 0.0)]
    plan = planned(known, probes, connections=4)
    assert goals(plan) == {
        2: (Arm.CONFIRM, BEYOND_RATIO * 101.0),
        3: (Arm.VOLLEY, known.volley_rest),
        4: (Arm.VOLLEY, known.volley_rest),
    }
    assert (plan.drop, plan.open) == ((1,), (Arm.SEARCH,))


def test_in_monitoring_each_arm_has_its_rest_and_the_ruler_goes_on() -> None:
    known = verified()
    probes = [resting(1, 0.0, Arm.GUARD), resting(2, 0.0, Arm.RULER), resting(3, 50.0, Arm.VOLLEY)]
    plan, after = monitor_plan(known, probes, MonitorRound(step=2), connections=8, floor_seconds=FLOOR, now=NOW)
    assert plan.drop == (3,)
    assert plan.open == (Arm.KEEPALIVE, Arm.LIFETIME)
    assert plan.assign == (
        Assignment(connection=1, arm=Arm.GUARD, goal_seconds=known.volley_rest),
        Assignment(connection=2, arm=Arm.RULER, goal_seconds=RULER_RATIOS[2] * 101.0),
    )
    assert after == MonitorRound(step=3)


def test_the_ruler_tells_when_its_round_is_done() -> None:
    ruler = MonitorRound()
    for _ in RULER_RATIOS:
        assert not ruler.busy_next
        ruler = ruler.after_ruler()
    assert ruler.busy_next
    assert ruler.ratio == RULER_RATIOS[0]
    assert not ruler.after_busy().busy_next


# -- how long a connection opened now may come to rest ----------------------------------------------------------------


def longest(known: Knowledge, connections: int, arm: Arm = Arm.SEARCH, *, spared: bool = True) -> float:
    return longest_rest(stage_of(known), arm, known, search(connections), sentinel_spared=spared, floor_seconds=FLOOR)


def test_on_the_ladder_as_many_rungs_as_there_are_connections() -> None:
    assert longest(knowledge([10.0]), 2) == 40.0
    assert longest(knowledge([10.0]), 4) == 160.0
    assert longest(knowledge([10.0]), 8) == 160.0, "the last"
    assert longest(knowledge([10.0]), 8, spared=False) == 160.0


def test_a_bracket_may_be_an_accidents_and_the_ladder_go_on() -> None:
    assert longest(knowledge([10.0], [19.0]), 4) == 160.0
    assert longest(knowledge([10.0], [1000.0]), 4) == JUST_BEYOND_RATIO * 1000.0


def test_what_is_confirmed_is_not_outlived_by_much() -> None:
    for known in (knowledge([50.0, 99.0], [101.0, 102.0, 109.0]), verified()):
        assert longest(known, 8) == JUST_BEYOND_RATIO * 101.0
        assert known.volley_rest < longest(known, 8)
    assert longest(verified(), 8, Arm.KEEPALIVE) == pytest.approx(1.3 * 101.0)
    assert longest(verified(), 8, Arm.LIFETIME) < 0.3 * 101.0


def test_behind_a_pooler_no_connection_is_kept_busy() -> None:
    known = verified()
    assert Arm.LIFETIME in monitor_arms(known, [], MonitorRound(), 8)
    for connections in (2, 8):
        assert Arm.LIFETIME not in monitor_arms(known, [], MonitorRound(busy_next=True), connections, pooled=True)
