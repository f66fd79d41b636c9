"""Why connections end: the judgement, and the deaths that wait for a fresh connection's answer."""

from __future__ import annotations

import pytest

from sidecar.core.evidence import Arm, Cause, Ending
from sidecar.core.identity import Identity
from sidecar.core.idle.deaths import SETTLE_SECONDS, PendingDeaths, judge, moved
from sidecar.core.idle.facts import Died
from testing.endings import fatal

HERE = Identity(address="10.0.0.1:5432", started_at=1.0, system_identifier="7", timeline=1)
SILENT = Ending(noticed="deadline")
RESET = Ending(noticed="using", signal="rst")
CLOSED = Ending(noticed="reading", signal="fin")


def said(sqlstate: str, message: str = "", noticed: str = "reading") -> Ending:
    return fatal(sqlstate, message, noticed=noticed)


@pytest.mark.parametrize(
    ("ending", "doubt", "in_company", "cause"),
    [
        (SILENT, None, False, Cause.IDLE_LIMIT),
        (RESET, None, False, Cause.IDLE_LIMIT),
        (CLOSED, None, False, Cause.IDLE_LIMIT),
        (said("57P05"), None, False, Cause.IDLE_LIMIT),
        # Who says so himself is believed, whatever else happened.
        (said("57P05"), Cause.RESTART, True, Cause.IDLE_LIMIT),
        (said("08P01", "client_idle_timeout"), Cause.PARTITION, True, Cause.IDLE_LIMIT),
        # PgBouncer uses the same state for everything it has to say.
        (said("08P01", "server conn crashed?"), Cause.RESTART, False, Cause.RESTART),
        (said("57P01"), None, False, Cause.CULL),
        (said("57P01", noticed="using"), None, False, Cause.CULL),
        (said("57P02"), None, False, Cause.CULL),
        (said("57P01"), Cause.RESTART, False, Cause.RESTART),
        (said("25P03"), None, False, Cause.UNKNOWN),
        (said("25P04"), None, False, Cause.UNKNOWN),
        (SILENT, Cause.FAILOVER, False, Cause.FAILOVER),
        (RESET, Cause.PARTITION, False, Cause.PARTITION),
        (CLOSED, None, True, Cause.CULL),
        (CLOSED, Cause.RESTART, True, Cause.RESTART),
    ],
)
def test_judgement(ending: Ending, doubt: Cause | None, in_company: bool, cause: Cause) -> None:
    assert judge(ending, doubt=doubt, in_company=in_company) is cause


def identity(address: str = "10.0.0.1:5432", started_at: float | None = 1.0, timeline: int = 1) -> Identity:
    return Identity(address=address, started_at=started_at, system_identifier="7", timeline=timeline)


@pytest.mark.parametrize(
    ("after", "known", "cause"),
    [
        (identity(), (), None),
        (identity(started_at=2.0), (), Cause.RESTART),
        (identity(address="10.0.0.2:5432", started_at=2.0), (), Cause.FAILOVER),
        (identity(started_at=2.0, timeline=2), (), Cause.FAILOVER),
        # A replica behind the same name that was met before: nothing happened.
        (identity(address="10.0.0.2:5432", started_at=0.5), {("10.0.0.2:5432", 0.5)}, None),
        (identity(started_at=None), (), None),  # a server that does not tell cannot testify
        # One start time is one life, by whatever address; and a timeline that is told late, or not, is no sign.
        (identity(address="[::1]:5432"), (), None),
        (identity(started_at=2.0, timeline=0), (), Cause.RESTART),
        (Identity(address="10.0.0.1:5432", started_at=2.0), (), Cause.RESTART),
    ],
)
def test_a_server_life_never_met_before_is_a_restart_or_a_failover(
    after: Identity, known: set[tuple[str | None, float | None]], cause: Cause | None
) -> None:
    assert moved(HERE, after, known) is cause


def died(connection: int, idle_seconds: float, ending: Ending) -> Died:
    return Died(connection=connection, idle_seconds=idle_seconds, age_seconds=idle_seconds, ending=ending)


def report(pending: PendingDeaths, case: Died, now: float, doubt: Cause | None = None) -> None:
    pending.report(case, arm=Arm.SEARCH, identity=HERE, doubt=doubt, now=now)


def test_nobody_is_judged_before_a_fresh_connection_answers() -> None:
    pending = PendingDeaths()
    report(pending, died(1, 60.0, RESET), 100.0)
    assert pending.waiting
    assert pending.next_deadline is None
    assert pending.judge_ripe(1000.0) == []
    pending.answered(HERE)
    assert pending.next_deadline == 100.0  # found by use: nothing more can show
    assert [(case.died.connection, cause) for case, cause in pending.judge_ripe(1000.0)] == [(1, Cause.IDLE_LIMIT)]
    assert not pending.waiting


def test_ends_of_one_moment_after_different_rests_are_a_cull() -> None:
    pending = PendingDeaths()
    report(pending, died(1, 60.0, CLOSED), 100.0)
    pending.answered(HERE)
    report(pending, died(2, 20.0, CLOSED), 100.0 + SETTLE_SECONDS / 2)
    assert [cause for _, cause in pending.judge_ripe(100.0 + SETTLE_SECONDS)] == [Cause.CULL]
    pending.answered(HERE)
    assert [cause for _, cause in pending.judge_ripe(101.0)] == [Cause.CULL]


def test_ends_of_one_moment_after_the_same_rest_are_a_limit() -> None:
    pending = PendingDeaths()
    report(pending, died(1, 60.0, CLOSED), 100.0)
    report(pending, died(2, 60.1, CLOSED), 100.1)
    pending.answered(HERE)
    assert [cause for _, cause in pending.judge_ripe(101.0)] == [Cause.IDLE_LIMIT, Cause.IDLE_LIMIT]


def test_a_new_life_of_the_server_explains_those_who_died_before_it_answered() -> None:
    pending = PendingDeaths()
    pending.answered(HERE)
    report(pending, died(1, 60.0, RESET), 100.0)
    assert pending.answered(identity(started_at=90.0)) is Cause.RESTART
    assert [cause for _, cause in pending.judge_ripe(101.0)] == [Cause.RESTART]


def test_the_first_doubt_stands() -> None:
    pending = PendingDeaths()
    report(pending, died(1, 60.0, SILENT), 100.0)
    pending.cast_doubt(Cause.PARTITION)
    pending.cast_doubt(Cause.CULL)
    pending.answered(HERE)
    assert [cause for _, cause in pending.judge_ripe(101.0)] == [Cause.PARTITION]


def test_draining_hands_back_what_is_not_judged() -> None:
    pending = PendingDeaths()
    report(pending, died(1, 60.0, SILENT), 100.0)
    assert [case.died.connection for case in pending.drain()] == [1]
    assert not pending.waiting
