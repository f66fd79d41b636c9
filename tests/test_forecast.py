"""The forecast, held against simulated runs of the machine it speaks of."""

from __future__ import annotations

import statistics

import pytest

from sidecar.core.advice.recommendation import IdleLimit
from sidecar.core.evidence import MILESTONES, Arm, Death, Status
from sidecar.core.idle.forecast import Forecast, forecast
from sidecar.core.idle.planning import Stage
from sidecar.core.idle.probes import ProbeState, ProbeView
from testing.simulation import Simulation, World

RESTING = ProbeView(connection=1, arm=Arm.SEARCH, state=ProbeState.RESTING, idle_seconds=40.0, until_seconds=60.0)


def told(simulation: Simulation, goal: Status) -> Forecast | None:
    status = simulation.machine.status(simulation.now)
    limit = None
    if status.proven_seconds is not None or status.dead_by_seconds is not None:
        limit = IdleLimit(
            proven_seconds=status.proven_seconds or 0.0, dead_by_seconds=status.dead_by_seconds, death=status.death
        )
    return forecast(
        goal=goal,
        stage=status.stage,
        limit=limit,
        elapsed_seconds=simulation.now,
        probes=status.probes,
        defaults=(60.0, 350.0),
    )


@pytest.mark.parametrize("death", ["reset", "close"])
@pytest.mark.parametrize("connections", [4, 8, 16])
def test_from_the_first_death_on_it_is_about_right(connections: int, death: str) -> None:
    off = []
    for seed in range(15):
        true = 100.0 + 61 * seed
        world = World(limit=lambda draw, now, true=true: true, death=death, seed=seed, connections=connections)
        simulation = world.run(lambda s: s.machine.status(s.now).dead_by_seconds is not None, give_up=1e5)
        guess = told(simulation, Status.VERIFIED)
        assert guess is None or guess.if_limit_seconds is None
        began = simulation.now
        simulation.drive(lambda s: s.machine.status(s.now).status is Status.VERIFIED, give_up=1e5)
        if guess is not None:
            off.append((guess.seconds - (simulation.now - began)) / true)
    assert len(off) > 5
    assert abs(statistics.median(off)) < 0.5  # of the limit: enough to decide whether to wait or to go for lunch


def test_before_anything_has_died_it_says_which_limit_it_takes_for_granted() -> None:
    simulation = World(limit=lambda draw, now: 350.0).run(lambda s: s.now > 120, give_up=121)
    guess = told(simulation, Status.PROVISIONAL)
    assert guess is not None
    assert guess.if_limit_seconds == 350.0
    assert 350 <= guess.seconds + simulation.now <= 700


def test_a_better_proof_takes_longer() -> None:
    simulation = World(limit=lambda draw, now: 350.0).run(lambda s: s.now > 120, give_up=121)
    guesses = [told(simulation, goal).seconds for goal in MILESTONES]
    assert guesses == sorted(guesses)


def test_a_volley_says_itself_when_it_is_due() -> None:
    guess = forecast(
        goal=Status.VERIFIED,
        stage=Stage.VOLLEY,
        limit=IdleLimit(proven_seconds=60.0, dead_by_seconds=61.0, death=Death.SILENT),
        elapsed_seconds=1000.0,
        probes=(RESTING,),
        defaults=(),
    )
    assert guess == Forecast(seconds=20.0, if_limit_seconds=None)


@pytest.mark.parametrize("proven", [0.0, 400.0])
def test_nothing_is_said_where_nothing_can_be(proven: float) -> None:
    limit = IdleLimit(proven_seconds=proven) if proven else None
    probes = (RESTING,) if proven else ()  # past every default, or before the first connection
    guess = forecast(
        goal=Status.VERIFIED,
        stage=Stage.LADDER,
        limit=limit,
        elapsed_seconds=1.0,
        probes=probes,
        defaults=(60.0, 350.0),
    )
    assert guess is None


def test_it_never_promises_less_than_the_next_answer_takes() -> None:
    guess = forecast(
        goal=Status.PROVISIONAL,
        stage=Stage.REFINE,
        limit=IdleLimit(proven_seconds=60.0, dead_by_seconds=61.0, death=Death.CLOSED),
        elapsed_seconds=10_000.0,
        probes=(RESTING,),
        defaults=(),
    )
    assert guess is not None
    assert guess.seconds == 20.0
