"""The idle limits of real middleboxes, found by the real measurement, which is told nothing about them.

All paths are measured at the same time, so the module takes little longer than the slowest of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import inf
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from lab.test_lab import pooled_idle_session_timeout
from sidecar.core.budget import ConnectionRole
from sidecar.core.evidence import Cause, Death, Observation, Status
from sidecar.core.idle.machine import IdleStatus
from sidecar.demo.service import Service, run_service
from sidecar.probes.pool import CanaryPool, CheckedOut, PoolFact, PrePinged, TurnFailed
from sidecar.probes.postgresql.connect import PostgresDriver
from sidecar.remote import ask
from sidecar.settings.model import TargetSettings
from testing.lab import Endpoint, Lab, Path, boxes
from testing.lab.measure import measuring

pytestmark = [pytest.mark.lab, pytest.mark.timeout(300)]  # what is waited for together counts for the first test
if sys.platform != "linux":
    pytest.skip("the lab is made of Linux network namespaces", allow_module_level=True)

AT_MOST_SECONDS = 120.0  # for one measurement; most know everything in half that time
WITHOUT_LIMIT_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Limited:
    """A box with its limit, and how a connection dies of it. It may act a little early or late."""

    box: Callable[[Path, Any], Endpoint]
    seconds: float
    death: Death
    sqlstate: str | None = None
    keepalive_helps: bool = False
    early_seconds: float = 0.01  # the kernel counts in ticks of 1 to 10 ms, and the first one has begun already
    late_seconds: float = 0.1  # a busy machine, or the box's own delayed acknowledgement


LIMITED: Mapping[str, Limited] = {
    "conntrack drop": Limited(partial(boxes.conntrack, answer="drop"), 7, Death.SILENT, keepalive_helps=True),
    "conntrack reset": Limited(partial(boxes.conntrack, answer="reset"), 9, Death.RESET_ON_USE, keepalive_helps=True),
    "haproxy timeout client": Limited(partial(boxes.haproxy, timeout="client"), 8.3, Death.CLOSED),
    "haproxy timeout server": Limited(partial(boxes.haproxy, timeout="server"), 6.2, Death.CLOSED),
    # It does not set a timer anew that would move by less than 300 ms.
    "nginx": Limited(boxes.nginx, 9.4, Death.CLOSED, early_seconds=0.3),
    # The proxy is patient for an hour: of two limits on one path the shorter one counts. Keepalives end at the proxy.
    "haproxy before conntrack": Limited(boxes.haproxy_before_conntrack, 6, Death.SILENT),
    # It looks at its clients three times a second.
    "pgbouncer transaction": Limited(
        partial(boxes.pgbouncer, pool_mode="transaction"), 10, Death.FATAL, "08P01", late_seconds=0.4
    ),
    "idle_session_timeout": Limited(boxes.idle_session_timeout, 6.5, Death.FATAL, "57P05"),
    # The server's reason comes first, the pooler's is a consequence.
    "session pooler before idle_session_timeout": Limited(
        partial(pooled_idle_session_timeout, pool_mode="session"), 8.7, Death.FATAL, "57P05"
    ),
    # Its server is restarted twice meanwhile.
    "restarted": Limited(partial(boxes.conntrack, answer="reset"), 8, Death.RESET_ON_USE, keepalive_helps=True),
}
UNLIMITED: Mapping[str, Callable[[Path], Endpoint]] = {
    "none": lambda path: path.endpoint,
    # Its client_idle_timeout is for clients not linked to a server; one that has asked anything stays linked.
    "pgbouncer session": partial(boxes.pgbouncer, limit_seconds=6, pool_mode="session"),
    # The pooler loses its server connection, the client does not.
    "transaction pooler before idle_session_timeout": partial(
        pooled_idle_session_timeout, limit_seconds=6, pool_mode="transaction"
    ),
}


@dataclass(frozen=True, slots=True)
class Measured:
    """What a measurement came to, and from what."""

    status: IdleStatus
    observations: Sequence[Observation]


async def measure(endpoint: Endpoint, *, seconds: float, upset: Callable[[], object] | None = None) -> Measured:
    """Measure until everything is known, for so many seconds at most; `upset` the path at 4 s and at 12 s."""
    async with measuring(endpoint) as survey:
        for pause in (4, 8) if upset else ():
            await asyncio.sleep(pause)
            await asyncio.to_thread(upset)
        status = await survey.until(
            lambda status: status.status is Status.VERIFIED and status.keepalive_helps is not None, at_most=seconds
        )
        return Measured(status, list(survey.observations.values()))


@pytest.fixture(scope="module")
def measured(lab: Lab) -> Mapping[str, Measured]:
    """Every path, measured once."""
    server, restarted = lab.postgres(max_connections=200), lab.postgres()
    modes = iter(("fast", "immediate"))
    measurements = {
        name: measure(
            limited.box(lab.path(restarted if name == "restarted" else server), limited.seconds),
            seconds=AT_MOST_SECONDS,
            upset=(lambda: restarted.restart(next(modes))) if name == "restarted" else None,
        )
        for name, limited in LIMITED.items()
    }
    measurements |= {
        name: measure(box(lab.path(server)), seconds=WITHOUT_LIMIT_SECONDS) for name, box in UNLIMITED.items()
    }

    async def measure_all() -> Mapping[str, Measured]:
        return dict(zip(measurements, await asyncio.gather(*measurements.values()), strict=True))

    return asyncio.run(measure_all())


paths_with_a_limit = pytest.mark.parametrize(("name", "limited"), LIMITED.items(), ids=LIMITED)


@paths_with_a_limit
def test_the_limit_is_found(measured: Mapping[str, Measured], name: str, limited: Limited) -> None:
    found = measured[name].status
    assert found.proven_seconds is not None
    assert found.dead_by_seconds is not None
    assert found.proven_seconds <= limited.seconds + limited.late_seconds
    assert found.dead_by_seconds >= limited.seconds - limited.early_seconds
    assert found.estimate_seconds == pytest.approx(limited.seconds, abs=max(0.3, 0.02 * limited.seconds))
    assert found.status is Status.VERIFIED
    assert not found.several_populations
    assert not found.exhausted


@paths_with_a_limit
def test_every_death_is_seen_for_what_it_is(measured: Mapping[str, Measured], name: str, limited: Limited) -> None:
    found = measured[name]
    assert (found.status.death, found.status.sqlstate) == (limited.death, limited.sqlstate)
    died = [observation for observation in found.observations if observation.outcome == "died"]
    assert len(died) >= 2
    for observation in died:
        assert (observation.death, observation.sqlstate) == (limited.death, limited.sqlstate)
        assert observation.cause is Cause.IDLE_LIMIT
        assert observation.idle_seconds >= limited.seconds - limited.early_seconds
    for observation in found.observations:
        if observation.outcome == "survived" and observation.arm != "keepalive":
            assert observation.idle_seconds <= limited.seconds + limited.late_seconds


@paths_with_a_limit
def test_keepalive_helps_where_packets_are_watched_and_nowhere_else(
    measured: Mapping[str, Measured], name: str, limited: Limited
) -> None:
    assert measured[name].status.keepalive_helps is limited.keepalive_helps


@pytest.mark.parametrize("name", [*LIMITED, *UNLIMITED])
def test_a_transaction_pooler_is_recognised(measured: Mapping[str, Measured], name: str) -> None:
    pooled = name in ("pgbouncer transaction", "transaction pooler before idle_session_timeout")
    assert measured[name].status.transaction_pooler is pooled


def test_restarts_testify_to_nothing(measured: Mapping[str, Measured]) -> None:
    censored = [o for o in measured["restarted"].observations if o.outcome == "censored"]
    moments = sorted(observation.at for observation in censored)
    assert sum(later - earlier > 3 for earlier, later in zip([-inf, *moments], moments, strict=False)) == 2
    assert {observation.cause for observation in censored} <= {Cause.RESTART, Cause.CULL, Cause.PARTITION}


@pytest.mark.parametrize("name", UNLIMITED)
def test_without_a_limit_only_what_is_proven_is_told(measured: Mapping[str, Measured], name: str) -> None:
    found = measured[name]
    assert {observation.outcome for observation in found.observations} == {"survived"}
    longest = max(observation.idle_seconds for observation in found.observations)
    assert WITHOUT_LIMIT_SECONDS / 2 < longest < WITHOUT_LIMIT_SECONDS
    assert found.status.proven_seconds == longest
    assert found.status.dead_by_seconds is found.status.estimate_seconds is found.status.death is None
    assert found.status.status is Status.MEASURING
    assert not found.status.exhausted


async def test_past_the_cap_the_search_ends_without_a_limit(lab: Lab) -> None:
    async with measuring(lab.path(lab.postgres()).endpoint, floor=0.5, cap=3) as survey:
        found = await survey.until(lambda status: status.status is Status.VERIFIED, at_most=20)
    assert found.exhausted
    assert found.status is Status.VERIFIED
    assert found.proven_seconds is not None
    assert 3 <= found.proven_seconds < 3.5
    assert found.dead_by_seconds is found.estimate_seconds is found.death is None


STALLED = {
    name: Limited(limited.box, 3, limited.death, limited.sqlstate)
    for name, limited in LIMITED.items()
    if name in ("haproxy timeout client", "nginx", "pgbouncer transaction", "idle_session_timeout")
}


async def test_a_process_that_was_stopped_still_reads_what_happened_meanwhile(lab: Lab) -> None:
    """Throttled, suspended, or just late: the end, its reason and the timer are all there when it looks again."""
    server = lab.postgres()
    async with contextlib.AsyncExitStack() as stack:
        surveys = {
            name: await stack.enter_async_context(
                measuring(limited.box(lab.path(server), limited.seconds), connections=2, floor=3.3)
            )
            for name, limited in STALLED.items()
        }
        while min((p.idle_seconds for s in surveys.values() for p in s.status.probes), default=0) < 2.4:  # noqa: ASYNC110 - an age is no event
            await asyncio.sleep(0.05)
        time.sleep(1.5)  # noqa: ASYNC251 - to stop the process is the point: past the limit, and past the rest after which one connection is to be used
        for name, limited in STALLED.items():
            await surveys[name].until(lambda status: status.death is not None, at_most=5)
            died = [(seen.death, seen.sqlstate) for seen in surveys[name].observations.values()]
            assert died[0] == died[-1] == (limited.death, limited.sqlstate), name


async def test_an_answer_read_late_is_an_answer(lab: Lab) -> None:
    """The deadline is for the other side: a process that was stopped beyond it finds the answer waiting."""
    driver = PostgresDriver(TargetSettings(url=lab.path(lab.postgres()).endpoint.url, tls={"mode": "disable"}))
    connection = await driver.open(ConnectionRole.PROBE, deadline_seconds=5)
    using = asyncio.create_task(connection.use(0.2))
    for _ in range(3):  # a question is a task of its own
        await asyncio.sleep(0)
    assert not connection._tap.answered, "the query is sent"
    time.sleep(0.5)  # noqa: ASYNC251 - to stop the process is the point
    assert await using == await connection.use(5)
    connection.terminate()


async def test_the_held_pool_outlives_silent_deaths_and_never_hangs(lab: Lab) -> None:
    endpoint = boxes.conntrack(lab.path(lab.postgres()), 2, answer="drop")  # its rounds are further apart
    target = TargetSettings(url=endpoint.url, tls={"mode": "disable"}, pool={"size": 1, "timeout": 2})
    facts: list[PoolFact] = []
    pool = CanaryPool(target, PostgresDriver(target), facts.append)
    running = asyncio.create_task(pool.run())
    async with asyncio.timeout(60):
        while not (isinstance(facts[-1], TurnFailed) if facts else False):
            await asyncio.sleep(0.1)
            assert not running.done()
    running.cancel()
    await pool.close()
    opened, unanswered_ping, replaced, unanswered_use = (
        fact for fact in facts if isinstance(fact, CheckedOut | PrePinged | TurnFailed)
    )
    assert isinstance(opened, CheckedOut)
    # Pinged first: the turn is saved. Not pinged: it is lost. Neither takes longer than it may, with some room for a
    # busy machine.
    assert isinstance(unanswered_ping, PrePinged)
    assert not unanswered_ping.ok
    assert isinstance(replaced, CheckedOut)
    assert replaced.connected
    assert 1 <= replaced.seconds < 3
    assert isinstance(unanswered_use, TurnFailed)
    assert unanswered_use.stage == "use"
    assert 2 <= unanswered_use.seconds < 3


SECRET = "correct-horse-battery-staple"


async def test_the_service_finds_a_silent_limit(lab: Lab) -> None:
    endpoint = boxes.conntrack(lab.path(lab.postgres(max_connections=300)), 6, answer="drop")
    with run_service(
        {
            "TARGET_URL": endpoint.url.replace("@", f":{SECRET}@"),
            "TARGETS__DEFAULT__IDLE__FLOOR": "1.5s",
            "TARGETS__DEFAULT__IDLE__CAP": "120s",
            "TARGETS__DEFAULT__IDLE__DEADLINE": "2s",
            "LOG__LEVEL": "debug",
        }
    ) as service:
        try:
            async with asyncio.timeout(90):
                advice = await told(service)
        except TimeoutError:
            pytest.fail(service.log_tail())
        said = {
            route: (await asyncio.to_thread(ask, service.address, route)).text
            for route in ("/", "/targets", "/recommendation", "/evidence", "/outages", "/metrics", "/readyz")
        } | {"log": service.log.read_text()}
    limit = advice["idle_limit"]
    assert limit["proven_seconds"] <= 6 <= limit["dead_by_seconds"]
    assert limit["estimate_seconds"] == pytest.approx(6, abs=0.3)
    assert (limit["death"], limit["sqlstate"]) == ("silent", None)
    assert 1 <= advice["settings"]["pool_recycle"] <= 3
    assert "silent_death" in [warning["code"] for warning in advice["warnings"]]
    shown = {
        sample.labels["bound"]: sample.value
        for family in text_string_to_metric_families(said["/metrics"])
        for sample in family.samples
        if sample.name == "connection_health_idle_limit_seconds"
    }
    assert shown["proven"] <= 6 <= shown["dead_by"]
    assert shown["estimate"] == pytest.approx(6, abs=0.3)
    assert len(said["log"]) > 1000
    for place, text in said.items():
        assert SECRET not in text, place


async def told(service: Service) -> Any:
    """The advice once a limit is told."""
    while True:
        await asyncio.sleep(0.2)
        advice = await service.ask("/recommendation")
        if advice is not None and advice["status"] != "measuring":
            return advice
