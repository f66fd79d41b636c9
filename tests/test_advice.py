"""The advice against everything that can be known: how far it may exceed what is proven, withdrawn when tried in
vain; and the application's verdict, from what it declares and from what a real server shows of it."""

from __future__ import annotations

import asyncio
import contextlib
import re
from dataclasses import replace
from math import inf
from typing import Any

import asyncpg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.catalogue import known_limits
from sidecar.core.advice import remarks
from sidecar.core.advice.advice import (
    LEAST_AGE_SECONDS,
    LONGEST_KEEPALIVE_IDLE_SECONDS,
    UNPROVEN_KEEPALIVE_IDLE_SECONDS,
    Policy,
    advise,
    after_trials,
)
from sidecar.core.advice.bounds import above, at_least, at_most, below
from sidecar.core.advice.findings import Code, Finding, Ground, Judgement, WhyPing, WhyWaiting, found, judged
from sidecar.core.advice.ping_cost import PingCost
from sidecar.core.advice.recommendation import IdleLimit, Recommendation, Remark, TrialOutcome, Verdict, VerdictKind
from sidecar.core.advice.render import FORMATS
from sidecar.core.advice.trials import Setup, TrialResult, counterfactuals, recommended
from sidecar.core.advice.verdict import Activity, ApplicationSettings, about_activity, judge_application
from sidecar.core.budget import BudgetStatus, CeilingKind, Declared, Grant, Hindrance
from sidecar.core.evidence import STALE_WRITER, Arm, Death, Downtime, Interval, Outage, OutageKind, Status
from sidecar.core.idle.lifetime import AgeLimit
from sidecar.core.idle.machine import IdleStatus
from sidecar.core.idle.planning import Stage
from sidecar.core.idle.probes import ProbeState, ProbeView
from sidecar.demo.server import PostgresServer
from sidecar.probes.observer import observe
from sidecar.probes.postgresql.connect import PostgresDriver
from sidecar.settings.model import TargetSettings
from testing.simulation import World

PROTECTED, EXPOSED, UNKNOWN = VerdictKind
POLICY = Policy(safety=0.5, max_pool_recycle=1800.0, min_pool_recycle=30.0, ping_overhead=0.1)
LIMIT = IdleLimit(proven_seconds=19.5, dead_by_seconds=20.1, estimate_seconds=19.8, death=Death.CLOSED)
DEAR = PingCost(
    p50_seconds=0.004, p99_seconds=0.009, overhead_ratio=0.5, overhead_low=0.4, overhead_high=0.6, pings=500
)


def status(
    proven: float | None = 19.5, dead_by: float | None = 20.1, death: Death | None = Death.CLOSED, **known: object
) -> IdleStatus:
    at = Status.VERIFIED if dead_by is not None else Status.MEASURING
    return replace(
        IdleStatus(
            status=at,
            stage=Stage.MONITOR,
            suspect=False,
            regime=1,
            proven_seconds=proven,
            dead_by_seconds=dead_by,
            estimate_seconds=None if dead_by is None else ((proven or 0.0) + dead_by) / 2,
            death=death if dead_by is not None else None,
            sqlstate=None,
            several_populations=False,
            exhausted=False,
            fresh_survivals=8,
            fresh_deaths=0,
            keepalive_helps=None,
            transaction_pooler=False,
            probes=(),
            wished_connections=8,
        ),
        **known,  # type: ignore[arg-type]
    )


def advised(idle: IdleStatus | None = None, **known: object) -> Recommendation:
    return advise(
        target="default",
        policy=POLICY,
        shortest_rest=5.0,
        idle=idle or status(),
        **known,  # type: ignore[arg-type]
    )


def said(code: Code, **values: object) -> Remark:
    """The remark that these values make; how it reads is the matter of test_remarks.py."""
    return remarks.remark(found(code, **values), "default")


# --- how much is advised ----------------------------------------------------------------------------------------------


@st.composite
def worlds(draw: st.DrawFn) -> dict[str, object]:
    proven = draw(st.none() | st.floats(0.01, 2.5) | st.floats(0.01, 1e5))
    dead_by = draw(st.none() | st.floats(1.001, 2.0).map(lambda factor: (proven or 5.0) * factor))
    return {
        "idle": status(
            proven,
            dead_by,
            draw(st.sampled_from(Death)),
            status=draw(st.sampled_from(Status)),
            keepalive_helps=draw(st.none() | st.booleans()),
            transaction_pooler=draw(st.booleans()),
            suspect=draw(st.booleans()),
            stray_seconds=draw(st.none() | st.floats(0.01, 1e3)),
            earlier_dead_by_seconds=draw(st.none() | st.floats(0.01, 1e3)),
        ),
        "policy": Policy(
            safety=draw(st.floats(0.05, 1.0)),
            max_pool_recycle=draw(st.floats(1.0, 1e5)),
            min_pool_recycle=draw(st.floats(1.0, 1e3)),
            ping_overhead=0.1,
        ),
        "shortest_rest": draw(st.floats(0.01, 60.0)),
        "declared": draw(st.none() | st.builds(Declared, idle_session_timeout=st.none() | st.floats(0, 1e5))),
        "ping": draw(st.none() | st.just(DEAR)),
        "keepalive_survival_seconds": draw(st.none() | st.floats(0.01, 2e5)),
    }


@given(worlds())
def test_the_advice_exceeds_what_is_proven_only_up_to_the_least_and_while_nothing_shorter_is_known(
    world: dict[str, object],
) -> None:
    """However soon connections die: advised is a share of what lived, and never 0, which would mean no limit. The least
    of the policy, which may be more, holds only while no death, no limit and no declaration calls for less."""
    advice = advise(target="default", **world)  # type: ignore[arg-type]
    idle, policy, kept = world["idle"], world["policy"], world["keepalive_survival_seconds"]
    assert isinstance(idle, IdleStatus)
    assert isinstance(policy, Policy)
    proven = idle.proven_seconds
    recycle = advice.settings.pool_recycle
    assert 0 < recycle <= policy.max_pool_recycle
    assert isinstance(recycle, int) == (recycle >= 1)
    basis = proven if proven is not None else min(world["shortest_rest"], idle.dead_by_seconds or inf)
    if recycle > max(LEAST_AGE_SECONDS, policy.safety * basis):
        assert recycle <= policy.min_pool_recycle
        assert idle.dead_by_seconds is None or idle.status is Status.MEASURING
        declared = world["declared"]
        timeout = None if declared is None else declared.idle_session_timeout
        bounds = [idle.dead_by_seconds, idle.stray_seconds, idle.earlier_dead_by_seconds]
        bounds.append(timeout if timeout and timeout > (proven or 0.0) else None)
        assert recycle <= policy.safety * min(bound for bound in (*bounds, inf) if bound is not None)
    elif idle.dead_by_seconds is None and not any(
        (idle.stray_seconds, idle.earlier_dead_by_seconds, world["declared"])
    ):
        assert recycle >= int(min(policy.min_pool_recycle, policy.max_pool_recycle))
    warned = "too_short_to_pool" in {warning.code for warning in advice.warnings}
    assert warned == (
        recycle < 1 and idle.dead_by_seconds is not None and not advice.settings.pool_recycle_with_keepalive
    )
    age = advice.settings.pool_recycle_with_keepalive
    if age is not None:
        assert isinstance(kept, float)
        assert recycle < age <= min(kept, policy.max_pool_recycle)
        assert idle.keepalive_helps is not False
    keepalive = advice.socket.keepalive
    assert keepalive is not None
    assert keepalive.idle <= LONGEST_KEEPALIVE_IDLE_SECONDS
    if proven is not None and idle.dead_by_seconds is not None:
        assert keepalive.idle <= max(1, proven / 2)
    elif proven is None:
        assert keepalive.idle == UNPROVEN_KEEPALIVE_IDLE_SECONDS
    after = advice.settings.selective_pre_ping_after
    assert after is None or after <= recycle


@given(worlds(), st.data())
def test_there_are_words_for_whatever_is_found(world: dict[str, object], data: st.DataObject) -> None:
    """Each code's sentence takes the values with which it is found, in every combination."""
    draw, idle = data.draw, world["idle"]
    assert isinstance(idle, IdleStatus)
    seconds = st.floats(0.01, 1e5)
    ages = st.builds(
        AgeLimit,
        proven_seconds=seconds,
        dead_by_seconds=seconds,
        estimate_seconds=seconds,
        death=st.sampled_from(Death),
        sqlstate=st.none(),
    )
    world["idle"] = replace(
        idle,
        exhausted=idle.dead_by_seconds is None and draw(st.booleans()),
        several_populations=draw(st.booleans()),
        lifetime=draw(st.none() | ages),
        suspected_age_seconds=draw(st.none() | seconds),
        busy_seconds=draw(st.none() | seconds),
    )
    world["declared"] = draw(
        st.builds(
            Declared,
            idle_session_timeout=st.sampled_from([None, 0.0, 3.0, 300.0]),
            tcp_keepalives_idle=st.sampled_from([None, 0.0, 60.0]),
        )
    )
    world["outages"] = draw(
        st.lists(
            st.builds(
                Outage,
                id=st.just("1"),
                target=st.just("default"),
                kind=st.sampled_from(OutageKind),
                connections_lost=st.sampled_from([{}, {STALE_WRITER: 1}]),
            ),
            max_size=2,
        )
    )
    application = world["application"] = draw(
        st.builds(
            ApplicationSettings,
            pool_recycle=st.sampled_from([None, -1.0, 10.0, 1800.0]),
            pool_pre_ping=st.sampled_from([None, True, False]),
            checkout_p99=st.sampled_from([None, 0.001]),
        )
    )
    world["activity"] = draw(
        st.builds(
            Activity,
            connections=st.sampled_from([{}, {"idle": 1}, {"idle_in_transaction": 2}]),
            longest_idle_seconds=st.none() | seconds,
            longest_idle_in_transaction_seconds=st.none() | seconds,
        )
    )
    world["budget"] = draw(
        st.builds(
            BudgetStatus,
            usable=st.none() | st.just(97),
            used=st.none() | st.just(84),
            ceiling=st.none() | st.sampled_from(CeilingKind),
            granted=st.sampled_from([FULL, Grant(), Grant(heartbeat=True, probes=2)]),
            wished=st.just(FULL),
            hindrance=st.none() | st.sampled_from(Hindrance),
        )
    )
    advice = advise(target="default", **world)  # type: ignore[arg-type]
    setups = (recommended(advice), *counterfactuals(advice, application))
    results = [tried(setup, draw(st.sampled_from(TrialOutcome)), 1.0) for setup in setups]
    after = after_trials(advice, results, policy=POLICY, shortest_rest=5.0, application=application)
    for found_out in (*advice.reasons, *after.reasons, *after.warnings):
        assert found_out.text.endswith(".")
        assert (found_out.evidence or "").startswith("/")
    assert advice.application is not None
    assert after.application is not None
    assert advice.application.because.endswith(".")
    assert after.application.because.endswith(".")


AGES = {
    "python": "pool_recycle=",
    "env": "^POOL_RECYCLE=",
    "psycopg": "max_lifetime=",
    "asyncpg": "max_inactive_connection_lifetime=",
    "django": "CONN_MAX_AGE=",
    "rails": "idle_timeout: ",
    "pgbouncer": "server_lifetime = ",
    "node-postgres": "maxLifetimeSeconds: ",
    "sqlalchemy": "'pool_recycle': ",
}
WHOLE_AGES = {"npgsql": "Connection Lifetime=", "rails": "max_age: "}
"""Settings of which the whole seconds are taken; they are left out where one would be too long."""


@given(worlds())
def test_no_format_says_more_than_the_advice(world: dict[str, object]) -> None:
    advice = advise(target="default", **world)  # type: ignore[arg-type]
    longest = advice.settings.pool_recycle_with_keepalive or advice.settings.pool_recycle
    for name, setting in AGES.items():
        (said,) = ages_said(name, setting, advice)
        assert 0 < said <= longest, name
    for name, setting in WHOLE_AGES.items():
        assert all(1 <= said <= longest for said in ages_said(name, setting, advice)), name
    text = str(FORMATS["npgsql"].render(advice))
    assert ("Connection Lifetime=" in text) == (longest >= 1) != ("Pooling=false" in text)


def ages_said(name: str, setting: str, advice: Recommendation) -> list[float]:
    return [
        float(said) for said in re.findall(rf"{setting}([^,;}}\s]+)", str(FORMATS[name].render(advice)), re.MULTILINE)
    ]


def test_a_path_that_forgets_within_a_second_is_said_to_be_none_to_pool_on() -> None:
    advice = advised(status(0.7, 0.71))
    assert advice.settings.pool_recycle == 0.35
    assert said(Code.TOO_SHORT_TO_POOL, dead_by_seconds=0.71, pool_recycle=0.35) in advice.warnings
    assert FORMATS["sqlalchemy"].render(advice) == {"pool_recycle": 0.35, "pool_pre_ping": True}
    assert "POOL_RECYCLE=0.35\n" in str(FORMATS["env"].render(advice))
    assert "SetConnMaxLifetime(350 * time.Millisecond)" in str(FORMATS["database-sql"].render(advice))
    slower = advised(status(1.9, 2.0))
    assert said(Code.TOO_SHORT_TO_POOL, dead_by_seconds=2.0, pool_recycle=0.95) in slower.warnings
    assert not [each for each in advised(status(0.7, None)).warnings if each.code == "too_short_to_pool"]


@given(st.floats(0.001, 1e6))
def test_no_digit_of_a_bound_claims_more_than_was_seen(seconds: float) -> None:
    assert float(at_least(seconds)) <= seconds <= float(at_most(seconds))
    assert float(at_most(seconds)) - float(at_least(seconds)) < 0.101
    assert below(seconds) <= seconds <= above(seconds)


@pytest.mark.parametrize(
    ("seconds", "least", "most"),
    [
        (19.97, "19.9", "20.0"),
        (1.1, "1.1", "1.1"),
        (343.0, "343.0", "343.0"),
        (0.7, "0.7", "0.7"),
        (0.71044, "0.71", "0.711"),
    ],
)
def test_bounds_as_people_read_them(seconds: float, least: str, most: str) -> None:
    assert (at_least(seconds), at_most(seconds)) == (least, most)


CLIMBING = {"status": Status.MEASURING}


@pytest.mark.parametrize(
    ("idle", "recycle", "why"),
    [
        (
            status(None, None),
            30,
            found(Code.NOTHING_PROVEN, safety=0.5, shortest_rest_seconds=5.0, raised_to_seconds=30),
        ),
        (status(5.0, None), 30, found(Code.RAISED_BY_POLICY, proven_seconds=5.0, pool_recycle=30)),
        (status(61.0, None), 30, found(Code.SHARE_OF_PROVEN, safety=0.5, proven_seconds=61.0)),
        (status(80.0, None), 40, found(Code.SHARE_OF_PROVEN, safety=0.5, proven_seconds=80.0)),
        # A death far beyond says nothing of half a minute; one whose share is less does.
        (
            status(5.0, 350.0, **CLIMBING),
            30,
            found(Code.RAISED_BY_POLICY, proven_seconds=5.0, pool_recycle=30),
        ),
        (status(5.0, 59.0, **CLIMBING), 2, found(Code.SHARE_OF_PROVEN, safety=0.5, proven_seconds=5.0)),
        # What is found is found, though others would call the age of half a minute safe.
        (status(58.0, 62.0), 29, found(Code.SHARE_OF_PROVEN, safety=0.5, proven_seconds=58.0)),
        # A death that is contradicted is not explained by that.
        (status(9.0, None, stray_seconds=10.0), 4, found(Code.SHARE_OF_PROVEN, safety=0.5, proven_seconds=9.0)),
        # What was measured before all began anew is not forgotten.
        (
            status(5.0, None, earlier_dead_by_seconds=20.0),
            10,
            found(Code.RAISED_BY_POLICY, proven_seconds=5.0, pool_recycle=10),
        ),
        (
            status(5.0, None, suspected_age_seconds=40.0),
            20,
            found(Code.LIFETIME_SUSPECTED, safety=0.5, age_seconds=40.0),
        ),
    ],
)
def test_who_reads_it_at_his_start_is_not_made_to_reconnect_for_life(
    idle: IdleStatus, recycle: float, why: Finding
) -> None:
    advice = advised(idle)
    assert advice.settings.pool_recycle == recycle
    assert said(why.code, **why.values) in advice.reasons
    assert advice.settings.pool_pre_ping, "which protects meanwhile"


@pytest.mark.parametrize(
    ("timeout", "proven", "recycle", "code"),
    [
        (3.0, None, 1, Code.DECLARED_LIMIT),
        (40.0, None, 20, Code.DECLARED_LIMIT),
        (40.0, 5.0, 20, Code.DECLARED_LIMIT),
        (40.0, 50.0, 30, Code.RAISED_BY_POLICY),  # outlived: a pooler is between
        (3600.0, None, 30, Code.NOTHING_PROVEN),
        (0.0, None, 30, Code.NOTHING_PROVEN),
    ],
)
def test_a_shorter_limit_that_the_server_declares_lowers_it(
    timeout: float, proven: float | None, recycle: float, code: Code
) -> None:
    advice = advised(status(proven, None), declared=Declared(idle_session_timeout=timeout))
    assert advice.settings.pool_recycle == recycle
    assert code in codes(advice)


def test_what_was_measured_holds_while_all_is_measured_anew() -> None:
    """A limit that falls, and one that is measured afresh: neither raises the advice to the least of the policy."""
    run = World(limit=lambda draw, now: 20.0 if now < 400.0 else 12.0).run(lambda s: s.now >= 300.0, give_up=300.0)
    assert advised(run.machine.status(run.now)).settings.pool_recycle == 9
    highest = 0.0
    for at in range(301, 1200):
        run.drive(lambda s, at=at: s.now >= at, give_up=at)
        highest = max(highest, advised(run.machine.status(run.now)).settings.pool_recycle)
    assert highest <= 10
    assert advised(run.machine.status(run.now)).settings.pool_recycle == 5
    run.machine.measure_afresh(run.now)
    assert run.machine.status(run.now).proven_seconds is None
    assert advised(run.machine.status(run.now)).settings.pool_recycle == 6, "half of what was the shortest fatal rest"


def test_the_least_is_never_above_the_most() -> None:
    brief = replace(POLICY, max_pool_recycle=10.0)
    assert advise(target="default", policy=brief, shortest_rest=5.0, idle=status(5.0, None)).settings.pool_recycle == 10


def test_a_first_death_lowers_what_nothing_is_proven_for() -> None:
    assert advised(status(None, 3.0)).settings.pool_recycle == 1
    assert advised(status(None, 0.7)).settings.pool_recycle == 0.35
    cautious = replace(POLICY, safety=0.05)
    exact = advise(target="default", policy=cautious, shortest_rest=7.0, idle=status(None, 6.8194))
    assert exact.settings.pool_recycle == 0.34, "never more than the share, not even by a rounded bound"


def test_of_culprits_that_fit_alike_the_one_first_in_the_catalogue_is_named_first() -> None:
    told = advised(status(5.9, 6.0, Death.FATAL, sqlstate="57P05"), catalogue=known_limits()).idle_limit
    assert told is not None
    assert told.likely[0].component == "PostgreSQL idle_session_timeout (14+)"


# --- what a ping costs decides ----------------------------------------------------------------------------------------


def codes(advice: Recommendation) -> set[str]:
    return {remark.code for remark in (*advice.reasons, *advice.warnings)}


def test_a_dear_ping_is_for_the_rested_only_and_the_round_trips_are_told() -> None:
    advice = advised(ping=DEAR)
    assert advice.settings.pool_pre_ping is False
    assert advice.settings.selective_pre_ping_after == pytest.approx(1.95)
    why = said(
        Code.PRE_PING_SELECTIVE,
        after_seconds=1.95,
        round_trips=3,
        round_trips_autocommit=1,
        overhead_ratio=0.5,
        overhead_allowed=0.1,
    )
    assert why in advice.reasons
    assert advice.pre_ping_cost is not None
    assert (advice.pre_ping_cost.round_trips, advice.pre_ping_cost.round_trips_autocommit) == (3, 1)


def test_a_ping_above_the_application_s_target_is_dear_too() -> None:
    cheap = replace(DEAR, overhead_ratio=0.05, overhead_low=0.04)
    assert advised(ping=cheap).settings.pool_pre_ping is True
    impatient = ApplicationSettings(checkout_p99=0.005)
    assert advised(ping=cheap, application=impatient).settings.pool_pre_ping is False
    assert advised(ping=cheap, application=ApplicationSettings(checkout_p99=0.01)).settings.pool_pre_ping is True


@pytest.mark.parametrize("idle", [status(status=Status.CONFIRMED), status(death=Death.SILENT), status(9.0, None)])
def test_pre_ping_is_kept_where_more_depends_on_it(idle: IdleStatus) -> None:
    advice = advised(idle, ping=DEAR)
    assert advice.settings.pool_pre_ping is True
    assert "pre_ping_kept" in codes(advice)


@pytest.mark.parametrize("ping", [None, replace(DEAR, overhead_ratio=None, overhead_low=None, overhead_high=None)])
def test_a_price_not_known_is_not_called_little(ping: PingCost | None) -> None:
    (why,) = [reason for reason in advised(ping=ping).reasons if reason.code == "pre_ping_kept"]
    assert why == said(Code.PRE_PING_KEPT, why=WhyPing.PRICE_UNKNOWN, outages=0)
    cheap = replace(DEAR, overhead_ratio=0.05, overhead_low=0.04)
    assert said(Code.PRE_PING_KEPT, why=WhyPing.CHEAP, outages=0) in advised(ping=cheap).reasons


# --- trials have the last word ----------------------------------------------------------------------------------------


def tried(setup: Setup, outcome: str, at: float) -> TrialResult:
    error = None if outcome == "ok" else "ConnectionDoesNotExistError: it was closed"
    return TrialResult(
        setup=setup,
        at=at,
        idle_seconds=21.1,
        outcome=outcome,
        checkout_seconds=0.01 if outcome == "ok" else None,
        reconnected=None,
        error=error,
    )


def test_a_failed_trial_withdraws_the_advice_until_one_succeeds() -> None:
    advice = advised()
    setup = recommended(advice)

    def after(*results: TrialResult) -> Recommendation:
        return after_trials(advice, results, policy=POLICY, shortest_rest=5.0)

    withdrawn = after(tried(setup, "ok", 1.0), tried(setup, "error", 2.0))
    assert (withdrawn.status, withdrawn.settings.pool_recycle) == (Status.PROVISIONAL, 2)
    assert withdrawn.warnings[0].code == "trial_failed"
    assert withdrawn.warnings[0] == said(
        Code.TRIAL_FAILED,
        pool_recycle=advice.settings.pool_recycle,
        rested_seconds=21.1,
        error="ConnectionDoesNotExistError: it was closed",
    )
    assert withdrawn.warnings[0].evidence == "/recommendation?target=default"
    assert withdrawn.verification is not None
    assert withdrawn.verification.outcome == "failed"
    restored = after(tried(setup, "error", 2.0), tried(setup, "ok", 3.0))
    assert (restored.status, restored.settings) == (advice.status, advice.settings)
    unlimited = advised(status(5000.0, None))
    failed = tried(recommended(unlimited), "error", 2.0)
    withdrawn = after_trials(unlimited, [failed], policy=POLICY, shortest_rest=5.0)
    assert withdrawn.settings.pool_recycle == 30, "nothing has been seen to die"
    others = after(tried(replace(setup, name="defaults", pool_recycle=-1), "error", 4.0))
    assert (others.status, others.verification) == (advice.status, None)


# --- what may be held -------------------------------------------------------------------------------------------------

FULL = Grant(heartbeat=True, probes=8, pool=2, trials=1)


def budget(hindrance: Hindrance | None, granted: Grant) -> BudgetStatus:
    return BudgetStatus(
        usable=97,
        used=84,
        others=80,
        ceiling=CeilingKind.SERVER,
        granted=granted,
        wished=FULL,
        hindrance=hindrance,
        since_at=0.0,
    )


def warned_of_measuring(held: BudgetStatus | None) -> list[str]:
    return [each.code for each in advised(budget=held).warnings if each.code.startswith("measuring_")]


def test_why_less_is_measured_is_told_with_numbers() -> None:
    two = Grant(heartbeat=True, probes=2)
    assert warned_of_measuring(budget(Hindrance.CROWDED, two)) == ["measuring_is_small"]
    assert warned_of_measuring(budget(Hindrance.CROWDED, Grant(heartbeat=True))) == ["measuring_is_paused"]
    assert warned_of_measuring(budget(Hindrance.FEW_SLOTS, Grant(heartbeat=True, pool=1))) == ["measuring_is_paused"]
    assert warned_of_measuring(budget(Hindrance.NO_SEAT, replace(FULL, heartbeat=False))) == ["measuring_is_small"]
    (told,) = [each for each in advised(budget=budget(Hindrance.CROWDED, two)).warnings if "measuring" in each.code]
    assert told == said(
        Code.MEASURING_IS_SMALL,
        hindrance=Hindrance.CROWDED,
        ceiling=CeilingKind.SERVER,
        used=84,
        usable=97,
        granted=2,
        wished=11,
        beats=True,
    )


@pytest.mark.parametrize(
    "held",
    [
        None,
        budget(None, FULL),
        budget(None, replace(FULL, probes=4)),  # all that there is for one: nothing is in the way
        budget(Hindrance.CROWDED, FULL),
        budget(Hindrance.NOT_LOOKED_YET, Grant()),
    ],
)
def test_who_holds_what_there_is_says_nothing_of_it(held: BudgetStatus | None) -> None:
    assert warned_of_measuring(held) == []


RESTING = ProbeView(connection=1, arm=Arm.SEARCH, state=ProbeState.RESTING, idle_seconds=1.0, until_seconds=5.0)


@pytest.mark.parametrize(
    ("known", "waiting"),
    [
        ({"idle": status(None, None, probes=(RESTING,))}, None),
        ({"idle": status(None, None, probes=(replace(RESTING, state=ProbeState.OPENING),))}, WhyWaiting.NOT_OPEN),
        ({}, WhyWaiting.NOT_OPEN),
        ({"measures_idle": False}, WhyWaiting.OFF),
        ({"budget": budget(Hindrance.NOT_LOOKED_YET, Grant())}, WhyWaiting.NOT_OPEN),
        ({"budget": budget(Hindrance.CROWDED, Grant(probes=2))}, WhyWaiting.NOT_OPEN),
        ({"budget": budget(Hindrance.CROWDED, Grant(heartbeat=True))}, WhyWaiting.NO_ROOM),
        ({"budget": budget(Hindrance.PAUSED, Grant())}, WhyWaiting.PAUSED),
    ],
)
def test_nothing_is_said_to_rest_where_nothing_rests(known: dict[str, Any], waiting: WhyWaiting | None) -> None:
    advice = advised(**{"idle": status(None, None), **known})
    assert said(Code.MEASURING, proven_seconds=None, waiting=waiting) in advice.reasons


@pytest.mark.parametrize(
    ("rested", "limit", "pooled", "left"),
    [
        (22.0, LIMIT, False, True),
        (21.0, LIMIT, False, False),  # in time: the next use finds it
        (None, LIMIT, False, False),  # the role may not see it
        (22.0, replace(LIMIT, death=Death.SILENT, keepalive_helps=False), False, True),
        (22.0, replace(LIMIT, death=Death.SILENT, keepalive_helps=True), False, False),  # one may have held it
        (22.0, replace(LIMIT, death=Death.FATAL), False, False),  # the server would have ended it
        (22.0, replace(LIMIT, dead_by_seconds=None, death=None), False, False),
        (22.0, LIMIT, True, False),
    ],
)
def test_sessions_that_outlast_the_path_have_lost_their_clients(
    rested: float | None, limit: IdleLimit, pooled: bool, left: bool
) -> None:
    activity = Activity(role_sessions=23, role_resting=17, role_longest_rest_seconds=rested)
    told = list(about_activity(activity, limit, pooled=pooled))
    expected = found(
        Code.APPLICATION_LEAVES_SESSIONS, rested_seconds=rested, dead_by_seconds=20.1, sessions=23, resting=17
    )
    assert told == ([expected] if left else [])


def test_a_refusal_beside_a_session_that_works_is_no_outage_of_the_database() -> None:
    lasted = Downtime(began=Interval(after=0.0, until=0.0), ended=Interval(after=60.0, until=60.0))
    refused = Outage(id="1", target="default", kind=OutageKind.REFUSAL, connect=lasted)
    assert advised(outages=(refused,)).failover is None
    lost = replace(refused, id="2", read=lasted)
    figures = advised(outages=(refused, lost)).failover
    assert figures is not None
    assert figures.outages == 1


# --- the verdict ------------------------------------------------------------------------------------------------------

BEYOND = {"beyond_seconds": 19.5, "of_age": False}


@pytest.mark.parametrize(
    ("recycle", "ping", "death", "verdict"),
    [
        (10.0, False, Death.SILENT, judged(PROTECTED, Ground.YOUNG_ENOUGH, pool_recycle=10.0, proven_seconds=19.5)),
        *(
            (1800.0, False, death, judged(EXPOSED, Ground.UNPINGED, pool_recycle=1800.0, **BEYOND, death=death))
            for death in (Death.CLOSED, Death.RESET_ON_USE)
        ),
        (-1.0, False, Death.SILENT, judged(EXPOSED, Ground.UNPINGED, pool_recycle=-1.0, **BEYOND, death=Death.SILENT)),
        (-1.0, True, Death.SILENT, judged(EXPOSED, Ground.PING_HANGS, pool_recycle=-1.0, **BEYOND)),
        (-1.0, True, Death.CLOSED, judged(PROTECTED, Ground.PING_FINDS, pool_recycle=-1.0, **BEYOND)),
        (None, True, Death.CLOSED, judged(UNKNOWN, Ground.SETTING_UNKNOWN, setting="pool_recycle")),
        (1800.0, True, None, judged(UNKNOWN, Ground.NO_DEATH_SEEN, pool_recycle=1800.0, proven_seconds=19.5)),
    ],
)
def test_the_verdict_on_what_is_declared(
    recycle: float | None, ping: bool, death: Death | None, verdict: Judgement
) -> None:
    settings = ApplicationSettings(pool_recycle=recycle, pool_pre_ping=ping)
    assert judge_application(settings, replace(LIMIT, death=death)) == verdict


def test_a_trial_with_the_application_s_own_settings_has_the_last_word() -> None:
    application = ApplicationSettings(pool_recycle=1800.0, pool_pre_ping=False)
    advice = advised(application=application)
    assert advice.application is not None
    (own,) = [setup for setup in counterfactuals(advice, application) if setup.name == "application"]

    def after(result: TrialResult) -> Verdict | None:
        return after_trials(advice, [result], policy=POLICY, shortest_rest=5.0, application=application).application

    lived = judged(PROTECTED, Ground.TRIAL_SUCCEEDED, rested_seconds=21.1, checkout_seconds=0.01)
    assert after(tried(own, "ok", 1.0)) == remarks.verdict(lived)
    failed = tried(own, "hang", 1.0)
    hung = judged(
        EXPOSED,
        Ground.TRIAL_FAILED,
        rested_seconds=21.1,
        outcome="hang",
        error=failed.error,
        untried=advice.application.because,
    )
    assert after(failed) == remarks.verdict(hung)
    assert after(tried(replace(own, pool_recycle=7), "ok", 1.0)) == advice.application


async def seen(server: PostgresServer) -> Activity:
    target = TargetSettings(url=server.url(), tls={"mode": "disable"})  # type: ignore[arg-type]
    _, activity = await observe(PostgresDriver(target))
    assert activity is not None
    return activity


async def test_the_sessions_a_real_server_shows_convict_and_point_to_leaks(
    make_server: type[PostgresServer],
) -> None:
    """Those of the application alone: same role, and neither the sidecar's own nor another role's."""
    server = make_server()
    async with contextlib.AsyncExitStack() as stack:

        async def session(**arguments: object) -> asyncpg.Connection:
            connection = await asyncpg.connect(server.url(), **arguments)
            stack.callback(connection.terminate)
            return connection

        administrator = await session(server_settings={"application_name": "connhealth/trial"})
        await administrator.execute("CREATE ROLE another LOGIN")
        await session(user="another")
        nobody = await seen(server)
        assert sum(nobody.connections.values()) == 0
        assert judge_application(None, LIMIT, nobody) == judged(UNKNOWN, Ground.NO_SESSION_SEEN)

        first, second = await session(), await session()
        await asyncio.sleep(0.3)
        resting = await seen(server)
        assert resting.connections == {"active": 0, "idle": 2, "idle_in_transaction": 0}
        assert resting.longest_idle_seconds is not None
        assert resting.longest_idle_seconds >= 0.3
        # On a path where connections live a quarter of a second at rest, they are dead and nobody has noticed yet.
        short = replace(LIMIT, proven_seconds=0.2, dead_by_seconds=0.25)
        convicted = judge_application(None, short, resting)
        assert (convicted.verdict, convicted.ground) == (EXPOSED, Ground.SESSION_DEAD)
        assert convicted.values["death"] == Death.CLOSED
        silent = judge_application(None, replace(short, death=Death.SILENT), resting)
        assert (silent.ground, silent.values["death"]) == (Ground.SESSION_DEAD, Death.SILENT)
        assert judge_application(None, LIMIT, resting).verdict == UNKNOWN
        told = [remark.code for remark in about_activity(resting, short)]
        assert told == ["application_rests_too_long", "application_leaves_sessions"]

        for connection in (first, second):
            await connection.execute("BEGIN; SELECT 1")
        held = await seen(server)
        assert held.connections == {"active": 0, "idle": 0, "idle_in_transaction": 2}
        assert held.longest_idle_in_transaction_seconds is not None
        # The same sessions a minute later, without waiting for it.
        (exhausted,) = about_activity(replace(held, longest_idle_in_transaction_seconds=61.0), LIMIT)
        assert exhausted == found(Code.POOL_EXHAUSTED, sessions=2, in_transaction_seconds=61.0)
        await second.execute("ROLLBACK")
        leak = replace(await seen(server), longest_idle_in_transaction_seconds=61.0)
        assert [remark.code for remark in about_activity(leak, LIMIT)] == ["idle_in_transaction"]
