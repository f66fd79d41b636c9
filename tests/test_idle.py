"""The idle-limit machine, driven in virtual time: nothing here sleeps."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from math import exp, inf, log

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.core.evidence import Aged, Cause, Death, Disturbed, Ending, Observation, Status
from sidecar.core.identity import Identity
from sidecar.core.idle.commands import Budget, Close, Command, Open, Record, Use
from sidecar.core.idle.facts import ClockSet, Died, Fact, Opened, OpenFailed, Pooled, Survived
from sidecar.core.idle.ladder import SPARED_UNTIL_SECONDS
from sidecar.core.idle.machine import BACKOFF_SECONDS, REST_SLACK_SECONDS, IdleMachine, IdleStatus
from sidecar.core.idle.planning import Stage
from sidecar.core.idle.probes import PATIENCE_SECONDS
from sidecar.core.signals import ServerSignal
from testing.endings import ending
from testing.simulation import OWN_LIMIT, Simulation, World

LIMIT = 350.0
DEATHS = {
    "silent": Death.SILENT,
    "reset": Death.RESET_ON_USE,
    "close": Death.CLOSED,
    "fatal": Death.FATAL,
}
STAGES = list(Status)
HERE = Identity(address="10.0.0.1:5432", started_at=1.0, system_identifier="7", timeline=1)


def world(limit: float = LIMIT, **behaviour: object) -> World:
    return World(limit=lambda draw, now: limit, **behaviour)  # type: ignore[arg-type]


def status(simulation: Simulation) -> IdleStatus:
    return simulation.machine.status(simulation.now)


def reaches(wanted: Status):
    return lambda simulation: STAGES.index(status(simulation).status) >= STAGES.index(wanted)


def at(seconds: float):
    return lambda simulation: simulation.now >= seconds


def records(simulation: Simulation) -> list[Observation]:
    """As the store keeps them: the last version of each, in the order of their first."""
    return list({observation.id: observation for observation in simulation.observations}.values())


# -- the course of a measurement --------------------------------------------------------------------------------------


@pytest.mark.parametrize("death", DEATHS)
@pytest.mark.parametrize("connections", [2, 4, 8, 16])
def test_each_kind_of_death_shows_the_limit(death: str, connections: int) -> None:
    run = world(death=death, connections=connections, deadline=10.0).run(reaches(Status.VERIFIED), give_up=40 * LIMIT)
    found = status(run)
    assert found.status is Status.VERIFIED
    assert found.estimate_seconds == pytest.approx(LIMIT, rel=0.02)
    assert found.proven_seconds is not None
    assert found.dead_by_seconds is not None
    assert found.proven_seconds < LIMIT <= found.dead_by_seconds
    assert found.death is DEATHS[death]
    assert found.sqlstate == ("57P05" if death == "fatal" else None)
    assert found.fresh_deaths == 0
    assert run.most_open <= connections


def test_the_status_climbs_and_the_stages_follow() -> None:
    seen: list[tuple[str, str]] = []

    def note(simulation: Simulation) -> bool:
        now = status(simulation)
        if not seen or seen[-1] != (now.stage, now.status):
            seen.append((now.stage, now.status))
        return now.status is Status.VERIFIED

    world().run(note, give_up=10 * LIMIT)
    assert seen == [
        (Stage.LADDER, Status.MEASURING),
        (Stage.REFINE, Status.MEASURING),
        (Stage.CONFIRM, Status.PROVISIONAL),
        (Stage.VOLLEY, Status.CONFIRMED),
        (Stage.MONITOR, Status.VERIFIED),
    ]


def test_a_visible_death_is_known_the_moment_it_happens() -> None:
    run = world(death="close").run(reaches(Status.PROVISIONAL), give_up=10 * LIMIT)
    assert run.now == pytest.approx(LIMIT, abs=2.0)
    assert status(run).estimate_seconds == pytest.approx(LIMIT, abs=0.01)


@pytest.mark.parametrize("limit", [100.0, 700.0, 1700.0])
def test_the_sentinel_shows_a_visible_death_as_long_as_it_is_spared(limit: float) -> None:
    run = world(limit, death="close").run(reaches(Status.PROVISIONAL), give_up=10 * limit)
    assert run.now == pytest.approx(limit, abs=0.5)


def test_the_sentinel_takes_the_first_rung_after_it_was_spared() -> None:
    """It is the oldest of all: that rung is reached at no more than its own length."""
    run = world(2500.0, defaults=(SPARED_UNTIL_SECONDS, 1800.0)).run(at(2400.0), give_up=2400.0)
    ended = next(o for o in run.observations if o.idle_seconds > 1800.0)
    assert (ended.arm, ended.outcome) == ("search", "survived")
    assert ended.at == pytest.approx(ended.idle_seconds, abs=1.0)


def test_no_rung_is_climbed_to_twice() -> None:
    run = world(inf, cap=5000.0).run(reaches(Status.VERIFIED), give_up=20_000.0)
    climbed = sorted(o.idle_seconds for o in run.observations if o.arm == "search" and o.idle_seconds < 4900.0)
    assert len(climbed) > 15
    assert all(high > 1.05 * low for low, high in pairwise(climbed))


def test_a_silent_death_delays_the_search_by_a_moment_only() -> None:
    """An unanswered use is believed at its deadline, but planned for at once: only the last deadline is waited for."""
    quick = world(30.0, death="silent", deadline=0.0).run(reaches(Status.PROVISIONAL), give_up=500.0)
    slow = world(30.0, death="silent", deadline=10.0).run(reaches(Status.PROVISIONAL), give_up=500.0)
    deaths = sum(observation.outcome == "died" for observation in slow.observations)
    assert deaths >= 3
    assert slow.now - quick.now < 10.0 + (deaths + 1) * PATIENCE_SECONDS


def test_no_limit_is_an_answer() -> None:
    run = world(inf, cap=1000.0).run(reaches(Status.VERIFIED), give_up=10_000.0)
    found = status(run)
    assert (found.status, found.exhausted) == (Status.VERIFIED, True)
    assert found.proven_seconds is not None
    assert found.proven_seconds >= 1000.0
    assert (found.dead_by_seconds, found.estimate_seconds, found.death) == (None, None, None)


def test_every_probe_rests_once() -> None:
    run = world().run(at(6 * LIMIT), give_up=6 * LIMIT)
    rested = [o for o in run.observations if o.outcome != "censored" and o.arm != "lifetime"]
    assert all(o.age_seconds == pytest.approx(o.idle_seconds, abs=1e-6) for o in rested)


# -- what is not idleness ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("death", DEATHS)
def test_restarts_in_the_middle_change_nothing(death: str) -> None:
    run = world(death=death, restarts=(200.0, 500.0)).run(reaches(Status.VERIFIED), give_up=20 * LIMIT)
    found = status(run)
    assert found.status is Status.VERIFIED
    assert found.estimate_seconds == pytest.approx(LIMIT, rel=0.02)
    assert found.regime == 1
    lost = [o for o in records(run) if o.outcome == "censored"]
    assert lost
    assert {o.cause for o in lost} <= {Cause.RESTART, Cause.PARTITION, Cause.CULL}
    assert all(o.idle_seconds >= LIMIT * 0.999 for o in records(run) if o.outcome == "died")


def test_an_outage_of_the_path_censors_and_heals() -> None:
    run = world(outages=((180.0, 220.0), (400.0, 405.0))).run(reaches(Status.VERIFIED), give_up=20 * LIMIT)
    assert status(run).estimate_seconds == pytest.approx(LIMIT, rel=0.02)
    assert all(o.idle_seconds >= LIMIT * 0.999 for o in records(run) if o.outcome == "died")


def test_a_silent_flush_of_the_path_is_contradicted() -> None:
    """A gateway that forgets everything at once kills all that is open, at every age: no limit."""
    run = world(flushes=(150.0,)).run(reaches(Status.VERIFIED), give_up=20 * LIMIT)
    found = status(run)
    assert not found.several_populations
    assert found.estimate_seconds == pytest.approx(LIMIT, rel=0.02)


@pytest.mark.parametrize("seed", range(12))
def test_a_kill_is_not_believed(seed: int) -> None:
    run = world(seed=seed, kill_rate=0.03 / LIMIT).run(reaches(Status.CONFIRMED), give_up=40 * LIMIT)
    assert status(run).estimate_seconds == pytest.approx(LIMIT, rel=0.05)


def test_a_disturbance_reported_late_takes_deaths_back() -> None:
    run = world(death="reset").run(lambda s: status(s).dead_by_seconds is not None, give_up=10 * LIMIT)
    before = status(run)
    run.now += 5.0
    run.tell(Disturbed(cause=Cause.FAILOVER))
    after = status(run)
    assert before.dead_by_seconds is not None
    assert (after.dead_by_seconds, after.proven_seconds) == (None, before.proven_seconds)
    taken_back = [o for o in records(run) if o.death is not None]
    assert taken_back
    assert all((o.outcome, o.cause) == ("censored", Cause.FAILOVER) for o in taken_back)
    run.drive(reaches(Status.CONFIRMED), give_up=20 * LIMIT)
    assert status(run).estimate_seconds == pytest.approx(LIMIT, rel=0.02)


# -- several limits, and limits that change ---------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(8))
def test_several_populations_publish_the_lowest(seed: int) -> None:
    two = World(limit=lambda draw, now: LIMIT if draw < 0.5 else LIMIT / 5, seed=seed)
    run = two.run(reaches(Status.VERIFIED), give_up=60 * LIMIT)
    found = status(run)
    assert found.proven_seconds is not None
    assert found.dead_by_seconds is not None
    assert found.proven_seconds <= LIMIT / 5 <= found.dead_by_seconds <= 1.2 * found.proven_seconds


@pytest.mark.parametrize("death", DEATHS)
@pytest.mark.parametrize("factor", [0.5, 0.2, 3.0])
def test_a_changed_limit_opens_a_new_regime(death: str, factor: float) -> None:
    changes = 6 * LIMIT
    path = World(limit=lambda draw, now: LIMIT if now < changes else factor * LIMIT, death=death)
    run = path.run(at(changes), give_up=20 * LIMIT)
    assert status(run).status is Status.VERIFIED
    run.drive(lambda s: status(s).suspect or status(s).regime == 2, give_up=changes + 60 * LIMIT)
    assert run.now < changes + 12 * LIMIT
    if status(run).suspect:
        assert status(run).status is Status.PROVISIONAL
        assert (status(run).proven_seconds or 0.0) < factor * LIMIT  # the advice is lowered at once
    run.drive(lambda s: status(s).regime == 2, give_up=changes + 60 * LIMIT)
    run.drive(reaches(Status.VERIFIED), give_up=changes + 60 * LIMIT)
    found = status(run)
    assert (found.status, found.regime) == (Status.VERIFIED, 2)
    assert found.estimate_seconds == pytest.approx(factor * LIMIT, rel=0.02)


def test_a_steady_limit_stays_one_regime() -> None:
    run = world().run(at(100 * LIMIT), give_up=100 * LIMIT)
    found = status(run)
    assert (found.status, found.regime, found.fresh_deaths) == (Status.VERIFIED, 1, 0)
    assert found.fresh_survivals > 50


def test_measuring_afresh_keeps_the_records_and_forgets_the_result() -> None:
    run = world().run(reaches(Status.VERIFIED), give_up=10 * LIMIT)
    kept = len(run.observations)
    run.obey(run.machine.measure_afresh(run.now))
    assert (status(run).regime, status(run).proven_seconds, status(run).status) == (2, None, Status.MEASURING)
    started = run.now
    run.drive(reaches(Status.VERIFIED), give_up=20 * LIMIT)
    assert run.now - started < 4 * LIMIT
    assert {o.regime for o in run.observations[kept:]} == {2}


@pytest.mark.parametrize("death", DEATHS)
@pytest.mark.parametrize("helps", [True, False])
@pytest.mark.parametrize("connections", [2, 8])
def test_keepalive_is_tried_beyond_the_limit(death: str, helps: bool, connections: int) -> None:
    path = world(death=death, keepalive_helps=helps, connections=connections)
    run = path.run(lambda s: status(s).keepalive_helps is not None, give_up=40 * LIMIT)
    found = status(run)
    assert (found.keepalive_helps, found.status, found.regime) == (helps, Status.VERIFIED, 1)
    tried = [o for o in records(run) if o.arm == "keepalive"]
    assert len(tried) == (1 if helps else 2)
    run.drive(at(run.now + 5 * LIMIT), give_up=run.now + 5 * LIMIT)
    assert [o for o in records(run) if o.arm == "keepalive"] == tried


# -- budget -----------------------------------------------------------------------------------------------------------


def test_the_budget_shrinks_pauses_and_comes_back() -> None:
    run = world().run(at(100.0), give_up=LIMIT)
    assert run.open_connections == 8
    for spare, then in [(2, 2), (0, 0), (1, 0), (4, 4), (100, 8)]:
        run.tell(Budget(connections=spare))
        assert run.open_connections <= then
        run.drive(at(run.now + 5.0), give_up=run.now + 5.0)
        assert run.open_connections == then
        assert (status(run).stage is Stage.PAUSED) == (then == 0)
    run.drive(reaches(Status.VERIFIED), give_up=20 * LIMIT)
    assert status(run).estimate_seconds == pytest.approx(LIMIT, rel=0.02)


def test_a_wavering_budget_does_not_keep_a_volley_from_ending() -> None:
    run = world().run(lambda s: status(s).stage is Stage.VOLLEY, give_up=10 * LIMIT)
    spare, started = 8, run.now
    while status(run).status is not Status.VERIFIED and run.now < started + 5 * LIMIT:
        spare = 15 - spare
        run.tell(Budget(connections=spare))
        run.drive(at(run.now + 20.0), give_up=run.now + 20.0)
    assert run.now < started + 3 * LIMIT


# -- facts and commands, by hand --------------------------------------------------------------------------------------


class Hands:
    """Carries commands out by hand."""

    def __init__(self, connections: int = 2, **how: object) -> None:
        self.machine = IdleMachine(
            target="t", run="r", epoch=1e9, connections=connections, floor=5.0, **{"cap": 1000.0, **how}  # type: ignore[arg-type]
        )  # fmt: skip
        self.now = 0.0
        self.commands = self.tell(Budget(connections=connections))

    def tell(self, fact: Fact | Budget, after: float = 0.0) -> list[Command]:
        self.now += after
        self.commands = self.machine.observe(fact, self.now)
        return self.commands

    def tick(self) -> list[Command]:
        deadline = self.machine.next_deadline()
        assert deadline is not None
        self.now = max(self.now, deadline)
        self.commands = self.machine.handle_timer(self.now)
        return self.commands

    def open(self, *connections: int, identity: Identity = HERE) -> None:
        for connection in connections:
            self.tell(Opened(connection=connection, identity=identity, seconds=0.01))

    def records(self) -> list[Observation]:
        return [command.observation for command in self.commands if isinstance(command, Record)]


def test_records_follow_the_wall_clock_when_it_is_set() -> None:
    hands = Hands(2)
    hands.open(1, 2)
    hands.tick()
    hands.tell(Survived(connection=1, idle_seconds=5.0, seconds=0.01, identity=HERE))
    assert [observation.at for observation in hands.records()] == [hands.now + 1e9]
    assert hands.tell(ClockSet(offset_seconds=1e9 - 3600.0)) == [], "that moves no connection"
    hands.tick()
    hands.tell(Survived(connection=2, idle_seconds=7.0, seconds=0.01, identity=HERE))
    assert [observation.at for observation in hands.records()] == [hands.now + 1e9 - 3600.0]


@pytest.mark.parametrize("step", [-7200.0, 7200.0])
def test_a_wall_clock_that_is_set_changes_nothing_of_what_is_learned(step: float) -> None:
    """Not even where deaths believed before it are taken back after it."""
    path = world(restarts=(600.0,), kill_rate=0.1 / LIMIT, seed=3)
    plain, stepped = path.start(), path.start()
    for clock in range(1, 100):
        stepped.tell(ClockSet(offset_seconds=step * (clock % 3)))
        for run in (plain, stepped):
            run.drive(at(70.0 * clock), give_up=70.0 * clock)
            if clock % 25 == 0:
                run.tell(Disturbed(cause=Cause.PARTITION))
        assert status(stepped) == status(plain)
    assert [replace(seen, at=0.0) for seen in stepped.observations] == [
        replace(seen, at=0.0) for seen in plain.observations
    ]


def test_opening_is_spread_out() -> None:
    opens = [command for command in Hands(8).commands if isinstance(command, Open)]
    assert [round(command.after_seconds, 3) for command in opens] == [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7]


def test_each_connection_backs_off_by_itself() -> None:
    hands = Hands(2)
    for pause in (*BACKOFF_SECONDS, BACKOFF_SECONDS[-1]):
        (again,) = hands.tell(OpenFailed(connection=1, error="refused"), after=60.0)
        assert isinstance(again, Open)
        assert (again.connection, again.after_seconds) == (1, pytest.approx(pause, abs=0.11))
    (other,) = hands.tell(OpenFailed(connection=2, error="refused"), after=60.0)
    assert isinstance(other, Open)
    assert other.after_seconds == pytest.approx(BACKOFF_SECONDS[0], abs=0.11)


def test_who_died_while_nobody_got_through_does_not_testify() -> None:
    hands = Hands(2)
    hands.open(1, 2)
    hands.tick()
    (opening,) = [c for c in hands.tell(_died(1, 5.0, Ending(noticed="using", signal="rst"))) if isinstance(c, Open)]
    hands.tell(OpenFailed(connection=opening.connection, error="timed out"), after=3.0)
    hands.tell(Opened(connection=opening.connection, identity=HERE, seconds=0.1), after=1.0)
    hands.tick()
    (censored,) = hands.records()
    assert (censored.outcome, censored.cause, censored.death) == ("censored", Cause.PARTITION, Death.RESET_ON_USE)
    assert hands.machine.status(hands.now).dead_by_seconds is None


def test_a_full_server_is_no_partition() -> None:
    hands = Hands(2)
    hands.open(1, 2)
    hands.tick()
    (opening,) = [c for c in hands.tell(_died(1, 5.0, Ending(noticed="using", signal="rst"))) if isinstance(c, Open)]
    hands.tell(OpenFailed(connection=opening.connection, error="too many clients", said=ServerSignal.FULL))
    hands.tell(Opened(connection=opening.connection, identity=HERE, seconds=0.1), after=1.0)
    hands.tick()
    assert [o.cause for o in hands.records()] == [Cause.IDLE_LIMIT]


def test_deaths_nobody_can_answer_for_stay_unexplained() -> None:
    hands = Hands(2)
    hands.open(1, 2)
    hands.tick()
    hands.tell(_died(1, 5.0, Ending(noticed="using", signal="rst")))
    hands.tell(Budget(connections=0))
    assert [(o.outcome, o.cause) for o in hands.records()] == [("censored", Cause.UNKNOWN)]


THERE = replace(HERE, address="replica:5432", started_at=None)


@pytest.mark.parametrize(
    ("backends", "answering", "recognised"),
    [
        ((HERE, 11, HERE, 12), 11, False),
        ((HERE, 11, HERE, 12), 13, True),  # two backends behind one connection
        ((HERE, 11, HERE, 11), 11, True),  # one backend behind two connections
        ((HERE, 11, THERE, 11), 11, False),  # behind a balancer: of another server
        ((HERE, None, HERE, None), None, False),  # nobody tells
    ],
)
def test_a_transaction_pooler_is_recognised_by_its_backends(
    backends: tuple[Identity, int | None, Identity, int | None], answering: int | None, recognised: bool
) -> None:
    hands = Hands(2)
    first, pid, second, other_pid = backends
    hands.open(1, identity=replace(first, backend_pid=pid))
    hands.now += 0.1
    hands.open(2, identity=replace(second, backend_pid=other_pid))
    (use,) = [command for command in hands.tick() if isinstance(command, Use)]
    assert use.connection == 1
    assert not hands.machine.status(hands.now).transaction_pooler
    answer = replace(first, backend_pid=answering)
    hands.tell(Survived(connection=1, idle_seconds=5.0, seconds=0.01, identity=answer))
    assert hands.machine.status(hands.now).transaction_pooler is recognised


def test_a_backend_passed_on_unseen_betrays_no_pooler() -> None:
    """The younger connection lives; the elder may be dead, and its backend given to the younger."""
    hands = Hands(2)
    hands.open(1, identity=replace(HERE, backend_pid=11))
    hands.now += 0.1
    hands.open(2, identity=replace(HERE, backend_pid=11))
    while Use(connection=2) not in hands.tick():
        pass
    hands.tell(Survived(connection=2, idle_seconds=7.0, seconds=0.01, identity=replace(HERE, backend_pid=11)))
    assert not hands.machine.status(hands.now).transaction_pooler


# -- what is left on the server ---------------------------------------------------------------------------------------


def opens(commands: list[Command]) -> list[Open]:
    return [command for command in commands if isinstance(command, Open)]


def test_a_session_may_rest_a_minute_and_a_deadline_longer_than_it_may_come_to_be_asked_for() -> None:
    first, second = opens(Hands(2, deadline_seconds=7.0).commands)
    assert first.rest_at_most_seconds == second.rest_at_most_seconds
    (rung,) = {opening.rest_at_most_seconds for opening in (first, second)}
    assert rung is not None
    assert 5.0 < rung - 7.0 - REST_SLACK_SECONDS < 5.0 * 1.85**2, "the second rung of the ladder"


def test_only_the_sentinel_may_rest_for_long_from_the_start() -> None:
    sentinel, *climbers = [opening.rest_at_most_seconds or 0.0 for opening in opens(Hands(8, cap=86400.0).commands)]
    assert sentinel > SPARED_UNTIL_SECONDS
    assert max(climbers) < 200.0


@pytest.mark.parametrize("stage", [Stage.VOLLEY, Stage.MONITOR])
def test_once_the_limit_is_found_no_session_outlives_it_by_much(stage: Stage) -> None:
    run = world().run(lambda s: status(s).stage is stage, give_up=10 * LIMIT)
    told: list[float] = []
    obey = run.obey

    def note(commands: list[Command]) -> None:
        told.extend(opening.rest_at_most_seconds or inf for opening in opens(commands) if opening.keepalive is None)
        obey(commands)

    run.obey = note  # type: ignore[method-assign]
    run.drive(lambda s: status(s).stage is not stage, give_up=run.now + 3 * LIMIT)
    assert told
    assert max(told) <= 1.08 * LIMIT + 10.0 + REST_SLACK_SECONDS


def test_who_would_have_to_rest_for_longer_is_given_up_for_a_fresh_one() -> None:
    """An accident was taken for the limit, and is contradicted when those who know of it only are under way."""
    hands = Hands(2)
    hands.open(1, 2)
    hands.tick()
    hands.tell(Survived(connection=1, idle_seconds=900.0, seconds=0.01, identity=HERE))  # after the machine had slept
    (given_up,) = [command.connection for command in hands.commands if command == Close(connection=2)]
    assert given_up == 2
    longest = [opening.rest_at_most_seconds or 0.0 for opening in opens(hands.commands)]
    assert min(longest) >= 1000.0


def test_who_rests_for_nothing_rests_no_longer_than_its_session() -> None:
    run = World(limit=lambda draw, now: inf, cap=1e6).run(at(3e5), give_up=3e5)
    assert run.cut_short == 0
    bounds = {probe.connection: probe.longest_goal_seconds for probe in run.machine._probes.values()}
    for probe in status(run).probes:
        assert probe.idle_seconds <= bounds[probe.connection]


def test_an_end_by_our_own_limit_says_nothing_and_dooms_nobody() -> None:
    hands = Hands(3)
    hands.open(1, 2, 3)
    hands.tell(_died(1, 4.0, OWN_LIMIT), after=4.0)
    assert [(o.outcome, o.cause, o.sqlstate) for o in hands.records()] == [("censored", Cause.UNKNOWN, "57P05")]
    (again,) = opens(hands.commands)
    hands.open(again.connection)
    # Others that end in that moment, at another age, are judged as if they were alone.
    hands.tell(_died(2, 1.0, Ending(noticed="reading", signal="fin")))
    (again,) = opens(hands.commands)
    hands.open(again.connection)
    hands.now += 1.0
    hands.commands = hands.machine.handle_timer(hands.now)
    assert [o.cause for o in hands.records()] == [Cause.IDLE_LIMIT]


def test_a_server_that_ends_our_sessions_too_soon_teaches_us_no_limit() -> None:
    """Its clock runs ahead, so that rests are cut short: what they would have shown stays open."""
    run = World(limit=lambda draw, now: inf, hurry=0.5, cap=2000.0).run(at(20_000.0), give_up=20_000.0)
    assert run.cut_short > 10
    found = status(run)
    assert (found.dead_by_seconds, found.death, found.regime) == (None, None, 1)
    assert not [o for o in records(run) if o.outcome == "died"]


@pytest.mark.parametrize("limit", [6.0, 350.0, 5000.0])
def test_on_a_path_that_dies_unseen_our_own_limit_is_never_met(limit: float) -> None:
    path = world(limit, death="silent", deadline=10.0)
    run = path.run(reaches(Status.VERIFIED), give_up=40 * limit + 600.0)
    assert run.cut_short == 0
    assert status(run).estimate_seconds == pytest.approx(limit, rel=0.02)


# -- how many it wishes for -------------------------------------------------------------------------------------------


def test_it_wishes_for_what_it_can_use_whatever_it_is_granted() -> None:
    run = world().run(at(100.0), give_up=LIMIT)
    assert status(run).wished_connections == 8
    run.tell(Budget(connections=0))
    assert (status(run).wished_connections, status(run).resting_connections) == (8, 0)
    run.tell(Budget(connections=8))
    run.drive(lambda s: status(s).keepalive_helps is not None, give_up=20 * LIMIT)
    assert status(run).status is Status.VERIFIED
    assert status(run).wished_connections == 3  # guard, ruler, and a busy one
    assert status(run).resting_connections == 3


def test_while_it_watches_nothing_opens_but_in_place_of_what_has_ended() -> None:
    run = world().run(lambda s: status(s).keepalive_helps is not None, give_up=20 * LIMIT)
    opened, ended, started = run.opened, run.used - _busy_uses(run), run.now
    run.drive(at(started + 20 * LIMIT), give_up=started + 20 * LIMIT)
    assert run.opened - opened <= run.used - _busy_uses(run) - ended + 1


def _busy_uses(run: Simulation) -> int:
    return run.used - sum(o.outcome != "censored" and o.arm != "lifetime" for o in records(run))


# -- behind a pooler --------------------------------------------------------------------------------------------------


def behind_a_pooler() -> Hands:
    hands = Hands(8)
    hands.open(*range(1, 9))
    hands.tell(Pooled())
    return hands


def test_behind_a_pooler_two_log_in_without_a_word() -> None:
    hands = behind_a_pooler()
    assert {c.connection for c in hands.commands if isinstance(c, Close)} == set(range(1, 9)), "they hold sessions"
    assert [(o.ask, o.rest_at_most_seconds) for o in opens(hands.commands)] == [(False, None)] * 2
    hands.tell(Budget(connections=8))
    assert hands.commands == []
    assert hands.tell(Pooled()) == []
    found = hands.machine.status(hands.now)
    assert (found.wished_connections, found.transaction_pooler) == (2, False)
    hands.tell(Pooled(transaction=True))
    assert hands.machine.status(hands.now).transaction_pooler


def test_a_login_answers_for_the_dead_but_tells_of_no_server() -> None:
    hands = behind_a_pooler()
    first, second = (opening.connection for opening in opens(hands.commands))
    hands.open(first, second, identity=Identity())
    hands.tell(_died(first, 4.0, Ending(noticed="reading", signal="fin")), after=4.0)
    (again,) = opens(hands.commands)
    assert not again.ask
    hands.open(again.connection, identity=Identity())
    hands.now += 1.0
    hands.commands = hands.machine.handle_timer(hands.now)
    assert [(o.outcome, o.cause) for o in hands.records()] == [("died", Cause.IDLE_LIMIT)]


def test_a_use_without_an_answer_may_have_queued_and_counts_when_a_fresh_one_was_answered() -> None:
    hands = behind_a_pooler()
    first, second = (opening.connection for opening in opens(hands.commands))
    hands.open(first, second, identity=Identity())
    hands.tick()
    hands.tell(_died(first, 5.0, Ending(noticed="deadline")), after=10.0)
    (control,) = opens(hands.commands)
    assert control.ask
    hands.open(control.connection)
    assert Close(connection=control.connection) in hands.commands, "it holds one of the pooler's"
    assert [opening.ask for opening in opens(hands.commands)] == [False]
    hands.commands = hands.machine.handle_timer(hands.now)
    assert [o.cause for o in hands.records()] == [Cause.IDLE_LIMIT]


def test_while_a_pooler_is_full_nothing_is_learnt_and_one_attempt_waits() -> None:
    hands = behind_a_pooler()
    first, second = (opening.connection for opening in opens(hands.commands))
    hands.open(first, second, identity=Identity())
    hands.tick()
    assert hands.commands == [Use(connection=first)]
    hands.now += 3.0
    assert hands.machine.handle_timer(hands.now) == [], "the other's turn comes when this one's answer has"
    hands.tell(_died(first, 5.0, Ending(noticed="deadline")), after=10.0)
    (control,) = opens(hands.commands)
    hands.tell(OpenFailed(connection=control.connection, error="query_wait_timeout", said=ServerSignal.QUEUED))
    (control,) = opens(hands.commands)
    assert control.ask
    assert control.after_seconds > 0.4
    hands.open(control.connection)
    hands.commands = [*hands.commands, *hands.machine.handle_timer(hands.now)]
    assert [(o.outcome, o.cause) for o in hands.records()] == [("censored", Cause.PARTITION)]


def test_what_a_pooler_says_in_answer_to_a_use_is_no_death_by_rest() -> None:
    hands = behind_a_pooler()
    first, second = (opening.connection for opening in opens(hands.commands))
    hands.open(first, second, identity=Identity())
    hands.tick()
    hands.tell(_died(first, 5.0, ending("using", severity="FATAL", sqlstate="08P01", message="query_wait_timeout")))
    (again,) = opens(hands.commands)
    hands.open(again.connection, identity=Identity())
    hands.commands = hands.machine.handle_timer(hands.now)
    assert [(o.outcome, o.cause) for o in hands.records()] == [("censored", Cause.UNKNOWN)]


def test_behind_a_pooler_none_is_kept_busy() -> None:
    run = world().start()
    run.tell(Pooled())
    run.drive(reaches(Status.VERIFIED), give_up=60 * LIMIT)
    assert status(run).estimate_seconds == pytest.approx(LIMIT, rel=0.02)
    run.drive(at(run.now + 10 * LIMIT), give_up=run.now + 10 * LIMIT)
    assert not [o for o in records(run) if o.arm == "lifetime"]
    assert status(run).wished_connections == 2
    assert len(status(run).probes) == 2


def _died(connection: int, rest: float, ending: Ending) -> Died:
    return Died(connection=connection, idle_seconds=rest, age_seconds=rest, ending=ending)


# -- resuming ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    [
        world(),
        world(death="close", restarts=(200.0,)),
        world(kill_rate=0.1 / LIMIT, seed=3),
        world(jitter=0.01, seed=5),
        world(inf, cap=400.0),
        World(limit=lambda draw, now: LIMIT if draw < 0.5 else LIMIT / 5, seed=1),
        World(limit=lambda draw, now: LIMIT if now < 2000.0 else LIMIT / 2),
        World(limit=lambda draw, now: LIMIT if now < 2000.0 else LIMIT * 2),
    ],
)
def test_a_restarted_sidecar_knows_at_every_point_what_its_predecessor_knew(path: World) -> None:
    def agrees(simulation: Simulation) -> bool:
        before = status(simulation)
        machine = IdleMachine(
            target="simulated", run="next", epoch=-simulation.now, connections=path.connections, floor=path.floor,
            cap=path.cap, history=records(simulation),
        )  # fmt: skip
        after = machine.status(0.0)
        assert _lasting(after) == _lasting(before)
        return simulation.now > 5000.0

    path.run(agrees, give_up=5000.0)


def _lasting(status: IdleStatus) -> dict[str, object]:
    passing = {"stage", "probes", "transaction_pooler"}
    return {name: getattr(status, name) for name in IdleStatus.__slots__ if name not in passing}


# -- any world, any order ---------------------------------------------------------------------------------------------


@st.composite
def worlds(draw: st.DrawFn) -> tuple[World, tuple[float, ...], float]:
    """A random path, its idle limits, the lowest last, and the age at which connections die."""
    limits = [exp(draw(st.floats(log(10.0), log(3000.0)))) for _ in range(draw(st.integers(1, 2)))]
    limits.sort(reverse=True)
    share = draw(st.floats(0.2, 0.8))
    age = limits[0] * draw(st.sampled_from([inf, inf, 0.7, 1.1, 5.0]))
    path = World(
        limit=lambda chance, now: limits[0] if chance < share else limits[-1],
        lifetime=lambda chance, now: age,
        beats=draw(st.sampled_from([0.0, 2.0])),
        death=draw(st.sampled_from(sorted(DEATHS))),
        seed=draw(st.integers(0, 10_000)),
        kill_rate=draw(st.sampled_from([0.0, 0.01, 0.1])) / limits[0],
        deadline=draw(st.sampled_from([0.0, 10.0])),
        restarts=tuple(draw(st.lists(st.floats(1.0, 5000.0), max_size=2))),
        flushes=tuple(draw(st.lists(st.floats(1.0, 5000.0), max_size=1))),
        connections=draw(st.integers(2, 16)),
        cap=4000.0,
        defaults=draw(st.sampled_from([(), (60.0, 350.0, 3600.0)])),
    )
    return path, tuple(limits), age


@settings(max_examples=60, deadline=None)
@given(worlds())
def test_in_any_world_proven_is_what_fresh_connections_survived(case: tuple[World, tuple[float, ...], float]) -> None:
    path, limits, age = case
    told = 0

    def holds(simulation: Simulation) -> bool:
        nonlocal told
        if len(simulation.observations) == told:  # nothing was learned
            return simulation.now > 25 * limits[0]
        told = len(simulation.observations)
        found = status(simulation)
        assert simulation.open_connections <= path.connections
        proven = found.proven_seconds or 0.0
        assert proven <= min(limits[0], age)  # nobody lives beyond the longest limit
        if found.lifetime is not None:
            assert found.lifetime.proven_seconds <= age
        if found.status is not Status.VERIFIED and found.fresh_deaths == 0 and not found.several_populations:
            # Of the deaths below it none is unexplained: a volley that met a shorter limit has lowered it.
            deaths = [o for o in records(simulation) if o.regime == found.regime and o.outcome == "died"]
            assert all(proven < o.idle_seconds for o in deaths if o.arm not in ("keepalive", "lifetime"))
        return simulation.now > 25 * limits[0]

    run = path.run(holds, give_up=25 * limits[0])
    assert run.most_open <= path.connections
    assert run.cut_short == 0, "no session is ended by the server while its rest is under way"
    ids = [observation.id for observation in records(run)]
    assert len(ids) == len(set(ids))


IDENTITIES = [HERE, replace(HERE, started_at=2.0), replace(HERE, backend_pid=5), Identity()]
ENDINGS = [
    Ending(noticed="deadline"),
    Ending(noticed="using", signal="rst"),
    Ending(noticed="reading", signal="fin"),
    ending("reading", severity="FATAL", sqlstate="57P01"),
    ending("reading", severity="FATAL", sqlstate="57P05"),
    OWN_LIMIT,
]
NUMBERS = st.integers(0, 30)
RESTS = st.floats(0.0, 500.0)
SESSIONS = st.builds(
    Aged,
    lived_seconds=RESTS,
    age_seconds=RESTS,
    ending=st.sampled_from(ENDINGS),
    identity=st.sampled_from(IDENTITIES),
)
FACTS = st.one_of(
    st.builds(Opened, connection=NUMBERS, identity=st.sampled_from(IDENTITIES), seconds=st.just(0.01)),
    st.builds(
        OpenFailed,
        connection=NUMBERS,
        error=st.just("x"),
        said=st.sampled_from([None, ServerSignal.FULL, ServerSignal.STARTING]),
    ),
    st.builds(
        Survived, connection=NUMBERS, idle_seconds=RESTS, seconds=st.just(0.01), identity=st.sampled_from(IDENTITIES)
    ),
    st.builds(Died, connection=NUMBERS, idle_seconds=RESTS, age_seconds=RESTS, ending=st.sampled_from(ENDINGS)),
    SESSIONS,
    st.builds(Disturbed, cause=st.sampled_from(Cause), aged=st.none() | SESSIONS),
    st.builds(Budget, connections=st.integers(0, 10)),
    st.builds(ClockSet, offset_seconds=st.floats(-1e9, 1e9)),
    st.builds(Pooled, transaction=st.booleans()),
    st.none(),  # the timer
)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(FACTS, st.floats(0.0, 100.0)), max_size=80))
def test_no_order_of_events_breaks_the_machine(events: list[tuple[Fact | Budget | None, float]]) -> None:
    """Unknown connections, facts told twice, facts after Close, early timers: commands stay sound."""
    hands = Hands(4)
    alive, ids = {c.connection for c in hands.commands if isinstance(c, Open)}, set[str]()
    spare, pooled = 4, False
    for fact, after in events:
        if fact is None:
            hands.now += after
            commands = hands.machine.handle_timer(hands.now)
        else:
            commands = hands.tell(fact, after)
        if isinstance(fact, Budget):
            spare = min(4, fact.connections)
        pooled = pooled or isinstance(fact, Pooled)
        if isinstance(fact, Died) and not any(p.connection == fact.connection for p in _probes(hands)):
            alive.discard(fact.connection)
        for command in commands:
            match command:
                case Open():
                    assert command.after_seconds >= 0.0
                    assert (command.rest_at_most_seconds is None) is pooled
                    alive.add(command.connection)
                case Close():
                    alive.discard(command.connection)
                case Use():
                    assert command.connection in alive
                case Record():
                    if command.observation.outcome != "censored" and "-age-" not in command.observation.id:
                        assert command.observation.id not in ids
                    ids.add(command.observation.id)
        assert {probe.connection for probe in _probes(hands)} == alive
        assert len(alive) <= ((min(spare, 2) if pooled else spare) if spare >= 2 else 0)
        deadline = hands.machine.next_deadline()
        assert deadline is None or deadline > 0.0


def _probes(hands: Hands):
    return hands.machine.status(hands.now).probes
