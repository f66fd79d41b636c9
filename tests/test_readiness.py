"""Readiness follows the database, with grace, and says why."""

from __future__ import annotations

import pytest

from sidecar.core.availability.readiness import readiness
from sidecar.core.availability.states import State
from sidecar.core.availability.status import AvailabilityStatus
from sidecar.core.signals import ServerSignal
from sidecar.probes.postgresql.signals import signal_of

AT = 1_000_000.0
REFUSED = "db:5432/app refused the connection: sorry, too many clients already (SQLSTATE 53300)"


def status(state: State, *, trouble: float | None = None, **known: object) -> AvailabilityStatus:
    reachable = state in (State.HEALTHY, State.CONNECT_BLOCKED, State.READ_ONLY)
    return AvailabilityStatus(
        **{
            "state": state,
            "since_at": AT - 100,
            "reachable": reachable,
            "writable": state is State.HEALTHY,
            "out_since_at": None if trouble is None else AT - trouble,
            "out_seconds": trouble,
            **known,
        }
    )


# state, how long in trouble, ready, since
TABLE = [
    (State.UNKNOWN, 0.0, False, AT),
    (State.UNKNOWN, 3.0, False, AT - 3),
    (State.UNKNOWN, 3000.0, False, AT - 3000),
    (State.HEALTHY, None, True, AT - 100),
    (State.READ_ONLY, None, True, AT - 100),
    (State.SUSPECT, 0.0, True, AT),
    (State.DOWN, 9.9, True, AT - 9.9),
    (State.DOWN, 10.0, False, AT),
    (State.DOWN, 25.0, False, AT - 15),
    (State.CONNECT_BLOCKED, 5.0, True, AT - 5),
    (State.CONNECT_BLOCKED, 12.0, False, AT - 2),
    (State.SUSPENDED, 12.0, False, AT - 2),
    (State.READ_ONLY, 3600.0, True, AT - 100),
]


@pytest.mark.parametrize(("state", "trouble", "ready", "since"), TABLE)
def test_follows_the_database_with_grace(state: State, trouble: float | None, ready: bool, since: float) -> None:
    verdict = readiness(status(state, trouble=trouble), depends_on="database", grace_seconds=10)
    assert (verdict.ready, verdict.since) == (ready, pytest.approx(since))


@pytest.mark.parametrize("state", State)
def test_process_does_not_ask_the_database(state: State) -> None:
    assert readiness(status(state, trouble=3600.0), depends_on="process", grace_seconds=0).ready


def test_without_grace_the_first_bad_sign_counts() -> None:
    assert not readiness(status(State.SUSPECT, trouble=0.0), depends_on="database", grace_seconds=0).ready


@pytest.mark.parametrize(
    ("sqlstate", "remedy"),
    [("53300", "max_connections"), ("28P01", "password file"), ("3D000", "name of the database")],
)
@pytest.mark.parametrize("trouble", [1.0, 60.0])
def test_the_reason_names_the_error_and_what_to_do(sqlstate: str, remedy: str, trouble: float) -> None:
    blocked = status(State.CONNECT_BLOCKED, trouble=trouble, error=REFUSED, said=signal_of(sqlstate))
    verdict = readiness(blocked, depends_on="database", grace_seconds=10)
    assert REFUSED in verdict.reason
    assert remedy in verdict.reason
    assert ("grace of 10 s" in verdict.reason) == (verdict.ready and sqlstate != "53300")
    assert verdict.ready or sqlstate != "53300"


@pytest.mark.parametrize(
    "known",
    [{"said": ServerSignal.FULL}, {"said": ServerSignal.QUEUED}, {"exhausted": True}],
    ids=["full", "queue", "ourselves"],
)
def test_exhaustion_makes_nobody_unready_while_the_session_is_answered(known: dict[str, object]) -> None:
    def ready(state: State) -> bool:
        stands = status(state, trouble=3600.0, error=REFUSED, met=True, suspended=state is State.SUSPENDED, **known)
        return readiness(stands, depends_on="database", grace_seconds=0).ready

    assert {state for state in State if ready(state)} == {State.CONNECT_BLOCKED, State.SUSPENDED, State.READ_ONLY}


def test_suspended_it_is_as_the_last_look_found_it() -> None:
    def verdict(**known: object) -> tuple[bool, str]:
        stands = status(State.SUSPENDED, suspended=True, **known)
        found = readiness(stands, depends_on="database", grace_seconds=10)
        return found.ready, found.reason

    assert verdict(reachable=None) == (False, "no contact with the database yet")
    assert verdict(reachable=True, met=True) == (
        True,
        "the database was reachable at the last look; failovers are not timed",
    )
    assert verdict(reachable=False, trouble=5.0, error="gone") == (
        True, "the last look found no database, for less than the grace of 10 s: gone"
    )  # fmt: skip
    assert verdict(reachable=False, trouble=15.0, error="gone") == (False, "the last look found no database: gone")
    refused = {"reachable": False, "trouble": 15.0, "error": REFUSED, "said": ServerSignal.LOGIN_REFUSED}
    assert not verdict(**refused)[0]


def test_a_pause_evicts_nobody() -> None:
    paused = status(State.SUSPENDED, suspended=True, paused=True, reachable=None)
    assert readiness(paused, depends_on="database", grace_seconds=0).ready


def test_resumed_it_has_the_grace_again() -> None:
    verdicts = [
        readiness(status(State.UNKNOWN, trouble=trouble, met=True), depends_on="database", grace_seconds=10)
        for trouble in (1.0, 11.0)
    ]
    assert [verdict.ready for verdict in verdicts] == [True, False]
    assert "resumed" in verdicts[0].reason


def test_the_reason_only_changes_with_news() -> None:
    verdicts = {
        readiness(status(State.DOWN, trouble=trouble, error="gone"), depends_on="database", grace_seconds=10).reason
        for trouble in (11.0, 12.5, 400.0)
    }
    assert len(verdicts) == 1


def test_says_what_is_not_possible() -> None:
    reasons = [
        readiness(status(state, trouble=trouble), depends_on="database", grace_seconds=10).reason
        for state, trouble in [(State.HEALTHY, None), (State.READ_ONLY, None), (State.READ_ONLY, 5.0)]
    ]
    assert reasons == [
        "the database is reachable",
        "the database is reachable, for reading only",
        "the database is reachable, but cannot be written to",
    ]
