"""A limit on age, told apart from one on rest: by the lives of busy connections, in virtual time and on a real path."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from itertools import pairwise
from math import inf
from typing import Any

import pytest
from facts.client import MakePath

from sidecar.core.advice.advice import Policy, advise, after_trials
from sidecar.core.advice.attribution import KnownLimit
from sidecar.core.advice.recommendation import LifetimeLimit, Recommendation
from sidecar.core.advice.trials import REST_BEYOND, attempts, rest_for
from sidecar.core.advice.verdict import ApplicationSettings
from sidecar.core.evidence import Aged, Cause, Death, Disturbed, Ending, Status
from sidecar.core.identity import Identity
from sidecar.core.idle.lifetime import BEYOND_RATIO, OUTLIVED_TIMES, AgeLimit, Life, Lifetimes
from sidecar.core.idle.machine import IdleMachine, IdleStatus
from sidecar.core.idle.planning import BUSY_SHARE, RULER_RATIOS
from sidecar.demo.server import PostgresServer
from sidecar.demo.service import run_service
from sidecar.remote import ask
from testing.simulation import Simulation, World

# -- what lives tell --------------------------------------------------------------------------------------------------


def died(age: float, at: float, lived: float | None = None, death: Death = Death.RESET_ON_USE) -> Life:
    lived = 0.99 * age if lived is None else lived
    return Life(id=f"died at {at}", lived_seconds=lived, age_seconds=age, at=at, busy=True, death=death)


def lived(age: float, at: float, *, busy: bool = True) -> Life:
    return Life(id=f"lived at {at}", lived_seconds=age, age_seconds=age, at=at, busy=busy)


def after(*lives: Life) -> Lifetimes:
    known = Lifetimes()
    for life in lives:
        known = known.add(life)
    return known


def test_one_death_is_a_suspicion_and_a_longer_life_refutes_it() -> None:
    one = after(lived(500, 0), died(100, 600))
    assert (one.suspected, one.known, one.proven) == (True, False, 99)
    assert not after(died(100, 600), lived(BEYOND_RATIO * 100, 800)).suspected
    assert not after(died(100, 600), lived(BEYOND_RATIO * 100, 800, busy=False)).suspected
    assert after(died(100, 600), lived(101, 800)).suspected


def test_a_limit_is_known_when_it_repeats_itself() -> None:
    two = after(died(100, 600), died(101, 800))
    assert two.known
    assert (two.proven, two.witness.age_seconds) == (99.99, 100)
    assert not after(died(100, 600), died(120, 800)).known
    assert not after(died(100, 600), died(101, 600.5)).known, "one event may have killed both"
    assert not after(died(100, 600), died(101, 800), lived(110, 1000)).suspected, "they agreed by chance"


def test_a_limit_that_three_have_met_is_history_only_when_it_is_outlived_time_and_again() -> None:
    three = [died(100, 600), died(101, 800), died(100, 1500)]
    others = [lived(1000, 2000.0 + number) for number in range(OUTLIVED_TIMES + 1)]
    assert after(*three, *others[:-1]).known
    assert not after(*three, *others).suspected
    assert after(*three, *(replace(life, id="the same", lived_seconds=900.0 + life.at) for life in others)).known
    assert after(*three, *(replace(life, busy=False) for life in others)).known, "they may have been lucky"
    assert after(*others, *(replace(death, at=death.at + 5000) for death in three)).known, "they came before"
    younger = [died(20.0 + 5 * number, 10.0 * number) for number in range(3)]
    assert not after(*younger, *three, others[0]).suspected, "where all die of something, age is no limit"
    assert after(*younger[1:], *three, others[0]).known


def test_the_lowest_limit_counts() -> None:
    both = after(died(1000, 2000), died(1001, 4000), died(100, 4200), died(101, 4400))
    assert (both.witness.age_seconds, both.proven) == (100, 99.99)


def test_a_vague_death_says_nothing() -> None:
    assert died(100, 0, lived=60).vague
    assert not died(100, 0, lived=70).vague


# -- the machine ------------------------------------------------------------------------------------------------------

LIMIT = 350.0
DEATHS = {
    "silent": Death.SILENT,
    "reset": Death.RESET_ON_USE,
    "close": Death.CLOSED,
}


def world(rest: float = inf, age: float = LIMIT, **behaviour: Any) -> World:
    return World(limit=lambda draw, now: rest, lifetime=lambda draw, now: age, **behaviour)


def status(simulation: Simulation) -> IdleStatus:
    return simulation.machine.status(simulation.now)


def known(simulation: Simulation) -> bool:
    return status(simulation).lifetime is not None and status(simulation).status is Status.VERIFIED


def at(seconds: float):
    return lambda simulation: simulation.now >= seconds


def found(simulation: Simulation) -> AgeLimit:
    limit = status(simulation).lifetime
    assert limit is not None
    assert limit.dead_by_seconds is not None
    return limit


@pytest.mark.parametrize("death", DEATHS)
@pytest.mark.parametrize(("beats", "connections"), [(0.0, 3), (0.0, 8), (1.0, 2), (1.0, 3), (1.0, 8)])
def test_an_age_is_not_taken_for_a_rest(death: str, beats: float, connections: int) -> None:
    """Resting connections are as old as they are rested, and die in the same moment as busy ones."""
    path = world(death=death, beats=beats, connections=connections, deadline=2.0 if death == "silent" else 0.0)
    run = path.run(known, give_up=20 * LIMIT)
    assert run.now < 11 * LIMIT
    limit = found(run)
    assert limit.proven_seconds < LIMIT <= limit.dead_by_seconds + 1e-6 <= 1.04 * LIMIT
    assert limit.estimate_seconds == pytest.approx(LIMIT, rel=0.02)
    assert limit.death is DEATHS[death]
    rests = status(run)
    assert rests.proven_seconds is not None
    assert 0.9 * LIMIT < rests.proven_seconds < LIMIT
    assert (rests.dead_by_seconds, rests.estimate_seconds, rests.death) == (None, None, None)
    assert rests.keepalive_helps is None
    assert rests.regime == 1
    assert run.most_open <= connections
    before = len(run.observations)
    run.drive(at(run.now + 20 * LIMIT), give_up=run.now + 20 * LIMIT)
    later = run.observations[before:]
    assert {o.cause for o in later if o.outcome == "died"} == {Cause.LIFETIME_LIMIT}
    assert status(run).regime == 1


@pytest.mark.parametrize("death", DEATHS)
@pytest.mark.parametrize("beats", [0.0, 1.0])
@pytest.mark.parametrize(("rest", "age"), [(100.0, LIMIT), (320.0, LIMIT), (100.0, 112.0)])
def test_both_limits_of_one_path_are_found(death: str, beats: float, rest: float, age: float) -> None:
    path = world(rest, age, death=death, beats=beats, keepalive_helps=True)
    run = path.run(lambda s: known(s) and status(s).keepalive_helps is not None, give_up=40 * LIMIT)
    rests = status(run)
    assert rests.proven_seconds is not None
    assert rests.dead_by_seconds is not None
    assert rests.proven_seconds < rest <= rests.dead_by_seconds + 1e-6
    assert rests.estimate_seconds == pytest.approx(rest, rel=0.02)
    assert rests.keepalive_helps is True, "what died of age beyond the limit does not testify against keepalive"
    limit = found(run)
    assert limit.proven_seconds < age <= limit.dead_by_seconds + 1e-6
    assert limit.estimate_seconds == pytest.approx(age, rel=0.02)


@pytest.mark.parametrize("death", DEATHS)
def test_a_limit_on_rest_is_none_on_age(death: str) -> None:
    run = world(LIMIT, inf, death=death, beats=1.0).run(at(60 * LIMIT), give_up=60 * LIMIT)
    rests = status(run)
    assert rests.estimate_seconds == pytest.approx(LIMIT, rel=0.02)
    assert (rests.lifetime, rests.suspected_age_seconds) == (None, None)
    assert (rests.busy_seconds or 0.0) > 50 * LIMIT
    busy = [o for o in run.observations if o.arm == "lifetime"]
    assert len({o.id for o in busy}) == 1, "one record, kept up to date"
    assert len(busy) < 150
    assert all(o.idle_seconds <= BUSY_SHARE * LIMIT for o in busy)


def test_two_connections_measure_rests_and_ages_in_turns() -> None:
    run = world(100.0, 300.0, connections=2, beats=1.0).run(known, give_up=9000.0)
    before = len(run.observations)
    run.drive(at(run.now + 9000.0), give_up=run.now + 9000.0)
    arms = [o.arm for o in run.observations[before:] if o.arm in ("ruler", "lifetime") and "session" not in o.id]
    ended = [arm for arm, after in pairwise(arms) if (arm, after) != ("lifetime", "lifetime")]
    rounds = "".join(arm[0] for arm in ended).split("l")
    assert len(rounds) > 8
    assert {len(rulers) for rulers in rounds[1:-1]} == {len(RULER_RATIOS)}
    assert run.most_open == 2
    alone = world(100.0, inf, connections=2, beats=1.0).run(at(9000.0), give_up=9000.0)
    assert "lifetime" not in {o.arm for o in alone.observations}, "the session is witness enough until it dies"


def test_busy_connections_end_at_the_cap_and_begin_anew() -> None:
    run = world(LIMIT, inf, cap=2000.0).run(at(20_000.0), give_up=20_000.0)
    busy = {o.id: o for o in run.observations if o.arm == "lifetime"}
    assert len(busy) > 5
    assert max(o.age_seconds for o in busy.values()) == pytest.approx(BEYOND_RATIO * 2000.0, rel=0.05)
    assert run.most_open <= 8


def test_kills_of_busy_connections_are_no_limit_on_age() -> None:
    """Two may agree by chance, but not often."""
    mistaken = deaths = 0
    for seed in range(8):
        path = World(limit=lambda draw, now: LIMIT, seed=seed, kill_rate=0.03 / LIMIT)
        run = path.run(at(100 * LIMIT), give_up=100 * LIMIT)
        deaths += sum(o.cause is Cause.LIFETIME_LIMIT for o in run.observations)
        mistaken += status(run).lifetime is not None
    assert deaths > 8, "or nothing is shown"
    assert mistaken <= 2


def test_the_shorter_of_two_ages_is_published() -> None:
    """Each connection is led one way or the other: now and then many in a row live long, which looks like a change."""
    published = []
    for seed in range(4):
        path = World(
            limit=lambda draw, now: 100.0, lifetime=lambda draw, now: 300.0 if draw < 0.5 else 1500.0, seed=seed
        )
        run = path.start()
        for until in range(6_000, 16_000, 2_000):
            run.drive(at(until), give_up=until)
            limit = status(run).lifetime
            published.append(limit is not None and limit.proven_seconds < 300 <= limit.dead_by_seconds <= 310)
    assert sum(published) > 0.8 * len(published)


@pytest.mark.parametrize("connections", [2, 8])
def test_a_limit_that_was_lifted_is_forgotten(connections: int) -> None:
    path = World(
        limit=lambda draw, now: 100.0,
        lifetime=lambda draw, now: 300.0 if now < 3000.0 else inf,
        connections=connections,
        beats=1.0 if connections == 2 else 0.0,
    )
    run = path.run(at(3000.0), give_up=3000.0)
    assert status(run).lifetime is not None
    run.drive(lambda s: status(s).lifetime is None, give_up=6000.0 if connections == 8 else 9000.0)
    assert status(run).lifetime is None
    assert status(run).suspected_age_seconds is None


def test_restarts_and_outages_age_nobody() -> None:
    path = world(LIMIT, inf, death="reset", restarts=(1500.0, 3000.0), outages=((4500.0, 4520.0),))
    run = path.run(at(9000.0), give_up=9000.0)
    last = {o.id: o for o in run.observations}.values()
    assert not any(o.cause is Cause.LIFETIME_LIMIT for o in last)
    assert any(o.arm == "lifetime" and o.outcome == "censored" for o in last)
    assert status(run).suspected_age_seconds is None


@pytest.mark.parametrize(
    "path",
    [
        world(),
        world(100.0, 1000.0, beats=1.0, death="close"),
        world(100.0, 1000.0, kill_rate=0.02 / LIMIT, seed=4),
        world(LIMIT, inf, beats=1.0, cap=2000.0),
        World(limit=lambda draw, now: 100.0, lifetime=lambda draw, now: 300.0 if draw < 0.5 else 900.0, seed=3),
    ],
)
def test_a_restarted_sidecar_knows_the_ages_its_predecessor_knew(path: World) -> None:
    told = 0

    def agrees(simulation: Simulation) -> bool:
        nonlocal told
        if len(simulation.observations) == told:
            return simulation.now > 4000.0
        told = len(simulation.observations)
        records = list({observation.id: observation for observation in simulation.observations}.values())
        machine = IdleMachine(
            target="simulated", run="next", epoch=-simulation.now, connections=path.connections, floor=path.floor,
            cap=path.cap, history=records,
        )  # fmt: skip
        before, after = status(simulation), machine.status(0.0)
        for name in ("lifetime", "suspected_age_seconds", "busy_seconds", "dead_by_seconds", "keepalive_helps"):
            assert _plain(getattr(after, name)) == pytest.approx(_plain(getattr(before, name))), name
        return simulation.now > 4000.0

    path.run(agrees, give_up=4000.0)


def _plain(value: object) -> object:
    numbers = ("proven_seconds", "dead_by_seconds", "estimate_seconds")
    return [getattr(value, name) for name in numbers] if isinstance(value, LifetimeLimit) else value


SESSION = Aged(
    outage="1",
    lived_seconds=99.0,
    age_seconds=100.0,
    ending=Ending(noticed="using", signal="rst"),
    identity=Identity(address="10.0.0.1:5432", started_at=0.0),
)


def test_the_heartbeats_session_testifies_once_it_was_busy_enough() -> None:
    run = world(1000.0, inf).start()
    run.tell(SESSION)
    assert status(run).suspected_age_seconds is None, "nothing is proven yet of what a busy one may rest"
    run.drive(at(200.0), give_up=200.0)
    run.tell(replace(SESSION, lived_seconds=60.0))
    assert status(run).suspected_age_seconds is None, "its end is too vague"
    run.tell(SESSION)
    assert status(run).suspected_age_seconds == 99.0
    run.now += 150.0
    run.tell(replace(SESSION, outage="2"))
    assert found(run).proven_seconds == 99.0


def test_ends_of_the_session_at_the_known_age_are_explained_by_it() -> None:
    run = world(1000.0, inf).start()
    run.drive(at(200.0), give_up=200.0)
    run.tell(replace(SESSION, outage="early", lived_seconds=49.5, age_seconds=50.0))
    run.now += 100.0
    run.tell(SESSION)
    assert not run.machine.is_lifetime_expiry(SESSION.outage), "one is a suspicion"
    run.now += 150.0
    run.tell(replace(SESSION, outage="2"))
    assert [run.machine.is_lifetime_expiry(outage) for outage in ("1", "2", "early", "another")] == [
        True,
        True,
        False,
        False,
    ]
    next_life = IdleMachine(
        target="simulated", run="next", epoch=0.0, connections=8, floor=5.0, cap=1000.0, history=run.observations
    )
    assert [next_life.is_lifetime_expiry(outage) for outage in ("1", "early")] == [True, False]
    run.machine.measure_afresh(run.now)
    assert not run.machine.is_lifetime_expiry(SESSION.outage)


def test_a_session_that_dies_of_age_casts_no_doubt_on_others() -> None:
    """Or nothing would ever be learned on such a path: whatever else was opened with it dies with it."""
    run = world(1000.0, inf).start()
    run.drive(at(200.0), give_up=200.0)
    disturbed = Disturbed(cause=Cause.UNKNOWN, aged=SESSION)
    assert not run.machine.is_expected_expiry(disturbed)
    assert not run.machine.is_expected_expiry(Disturbed(cause=Cause.UNKNOWN))
    run.tell(SESSION)
    assert run.machine.is_expected_expiry(disturbed)
    assert not run.machine.is_expected_expiry(
        replace(disturbed, aged=replace(SESSION, age_seconds=50.0, lived_seconds=49.0))
    )
    assert not run.machine.is_expected_expiry(Disturbed(cause=Cause.RESTART))


# -- the advice -------------------------------------------------------------------------------------------------------

POLICY = Policy(safety=0.5, max_pool_recycle=1800.0, min_pool_recycle=30.0, ping_overhead=0.1)


def advice_in(path: World, seconds: float, **how: Any) -> Recommendation:
    run = path.run(at(seconds), give_up=seconds)
    return advise(target="t", policy=POLICY, shortest_rest=5.0, idle=status(run), **how)


def codes(advice: Recommendation) -> set[str]:
    return {remark.code for remark in (*advice.reasons, *advice.warnings)}


def test_recycle_stays_below_both_limits_and_says_why() -> None:
    only_age = advice_in(world(), 10 * LIMIT)
    assert only_age.lifetime_limit is not None
    assert only_age.idle_limit is not None
    assert 0.4 * LIMIT < only_age.settings.pool_recycle <= 0.5 * LIMIT
    assert codes(only_age) >= {"share_of_proven", "lifetime_limit_measured", "no_limit_seen"}
    both = advice_in(world(100.0, 1000.0), 20_000.0)
    assert both.settings.pool_recycle <= 50
    assert codes(both) >= {"share_of_proven", "lifetime_limit_measured", "idle_limit_measured"}
    assert all(remark.evidence for remark in (*both.reasons, *both.warnings))


def test_one_death_of_age_lowers_the_advice_until_it_is_refuted() -> None:
    run = world(inf, inf, cap=1000.0).run(at(5000.0), give_up=5000.0)

    def recycle() -> tuple[int, set[str]]:
        advice = advise(target="t", policy=POLICY, shortest_rest=5.0, idle=status(run))
        assert advice.lifetime_limit is None
        return advice.settings.pool_recycle, {remark.code for remark in advice.reasons}

    before, _ = recycle()
    assert before >= 500
    run.tell(SESSION)
    lowered, why = recycle()
    assert lowered == 49
    assert "lifetime_suspected" in why
    run.drive(at(run.now + 400.0), give_up=run.now + 400.0)
    assert recycle()[0] == before


def test_an_age_bounds_connections_kept_alive_too() -> None:
    path = world(100.0, 1000.0, keepalive_helps=True)
    limits = {"keepalive_survival_seconds": 900.0}
    assert advice_in(world(100.0, inf, keepalive_helps=True), 20_000.0, **limits).settings == replace(
        advice_in(path, 20_000.0, **limits).settings, pool_recycle_with_keepalive=900
    )
    kept = advice_in(path, 20_000.0, **limits).settings.pool_recycle_with_keepalive
    assert kept is not None
    assert 480 <= kept <= 500


def test_a_silent_death_of_age_warns_like_one_of_rest() -> None:
    advice = advice_in(world(death="silent"), 10 * LIMIT)
    assert "silent_death" in codes(advice)
    assert advice.settings.pool_pre_ping


def test_known_limits_on_age_are_named() -> None:
    catalogue = [
        KnownLimit(
            id=limits, component=limits, limits=limits, default_seconds=LIMIT, death="rst-on-use",
            tcp_keepalive_resets="no", configurable=False,
        )
        for limits in ("idle", "lifetime")
    ]  # fmt: skip
    advice = advice_in(world(), 10 * LIMIT, catalogue=catalogue)
    assert advice.lifetime_limit is not None
    assert [culprit.id for culprit in advice.lifetime_limit.likely] == ["lifetime"]
    assert advice.idle_limit is not None
    assert advice.idle_limit.likely == ()


def test_without_a_limit_on_age_that_is_told() -> None:
    assert "no_lifetime_limit_seen" in codes(advice_in(world(100.0, inf), 20_000.0))


@pytest.mark.parametrize(
    ("recycle", "pre_ping", "verdict"),
    [(100, False, "protected"), (1800, False, "exposed"), (1800, True, "protected"), (-1, False, "exposed")],
)
def test_the_application_is_judged_by_age(recycle: float, pre_ping: bool, verdict: str) -> None:
    application = ApplicationSettings(pool_recycle=recycle, pool_pre_ping=pre_ping)
    judged = advice_in(world(), 10 * LIMIT, application=application).application
    assert judged is not None
    assert judged.verdict == verdict


def test_the_advice_is_tried_beyond_the_age() -> None:
    advice = advice_in(world(), 10 * LIMIT)
    assert advice.lifetime_limit is not None
    assert advice.lifetime_limit.dead_by_seconds is not None
    assert rest_for(advice) == advice.lifetime_limit.dead_by_seconds * REST_BEYOND
    assert list(attempts(advice, None, (), 0.0, longest_age=1800.0))
    assert after_trials(advice, (), policy=POLICY, shortest_rest=5.0).settings == advice.settings


# -- on a real path ---------------------------------------------------------------------------------------------------

AGE = 5.0
QUICK = {
    "TARGETS__DEFAULT__IDLE__FLOOR": "300ms",
    "TARGETS__DEFAULT__IDLE__DEADLINE": "1s",
    "TARGETS__DEFAULT__HEARTBEAT__EVERY": "200ms",
    "TARGETS__DEFAULT__HEARTBEAT__DEADLINE": "1s",
}


async def test_the_service_tells_an_age_from_a_rest(postgres: PostgresServer, make_path: MakePath) -> None:
    """All connections of the service come this way, and all die of age: what rests, what is used, what watches."""
    path = await make_path(postgres, "close", lifetime_limit=AGE)
    with run_service({"TARGET_URL": postgres.url(port=path.port), **QUICK}) as service:
        advice = None
        async with asyncio.timeout(60):
            while advice is None or advice["lifetime_limit"] is None or advice["status"] == "measuring":
                await asyncio.sleep(0.1)
                service.must_run()
                advice = await service.ask("/recommendation")
        aged = (await service.ask("/evidence?arm=lifetime&outcome=died"))["observations"]
        await asyncio.sleep(3 * AGE)  # in which three more sessions would die
        later = (await service.ask("/evidence?arm=lifetime&outcome=died"))["observations"]
        outages = (await service.ask("/outages"))["outages"]
        figures = (await service.ask("/recommendation"))["failover"]
        metrics = (await asyncio.to_thread(ask, service.address, "/metrics")).text
    limit, rests = advice["lifetime_limit"], advice["idle_limit"]
    # The path counts from its own accepting, the service from the first answer: the difference is a handshake.
    assert limit["proven_seconds"] <= AGE
    assert limit["dead_by_seconds"] >= AGE - 1
    assert limit["dead_by_seconds"] == min(each["age_seconds"] for each in aged) or limit["dead_by_seconds"] < 2 * AGE
    assert limit["death"] == "closed"
    assert (rests["dead_by_seconds"], rests["estimate_seconds"], rests["death"]) == (None, None, None)
    assert rests["proven_seconds"] <= AGE
    assert 1 <= advice["settings"]["pool_recycle"] <= AGE / 2
    assert {"lifetime_limit_measured", "no_limit_seen"} <= {reason["code"] for reason in advice["reasons"]}
    assert len(aged) >= 2
    assert {each["cause"] for each in aged} == {"lifetime_limit"}
    # What ended the session at first was no outage, and does not end it again.
    ended = {each["id"] for each in aged} & {outage["id"] for outage in outages}
    assert ended
    assert all(outage["kind"] == "lifetime" for outage in outages if outage["id"] in ended)
    again = {each["id"] for each in later} & {outage["id"] for outage in outages} - ended
    assert len(again) <= 1, "a machine that stands still may be late once"
    others = [outage for outage in outages if outage["kind"] != "lifetime"]
    assert (0 if figures is None else figures["outages"]) == len(others)
    assert others or "last_outage_timestamp_seconds{" not in metrics
