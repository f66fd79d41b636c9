"""What the server declares, held against what was measured: who cut the connection, and what a keepalive may hide."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from math import inf
from typing import Any

import pytest
from facts.client import MakePath

from sidecar.core.advice.advice import Policy, advise
from sidecar.core.advice.recommendation import Recommendation, Remark
from sidecar.core.budget import Declared
from sidecar.demo.server import PostgresServer
from sidecar.demo.service import Service, run_service
from testing.simulation import World

POLICY = Policy(safety=0.5, max_pool_recycle=1800.0, min_pool_recycle=30.0, ping_overhead=0.1)
LIMIT = 350.0


def advice_after(seconds: float, declared: Declared | None, limit: float = LIMIT) -> Recommendation:
    run = World(limit=lambda draw, now: limit).run(lambda s: s.now >= seconds, give_up=seconds)
    idle = run.machine.status(run.now)
    return advise(target="t", policy=POLICY, shortest_rest=5.0, idle=idle, declared=declared)


def warning(advice: Recommendation, code: str) -> Remark | None:
    return next((remark for remark in advice.warnings if remark.code == code), None)


@pytest.mark.parametrize(
    ("declared", "says"),
    [
        (3600.0, "idle_session_timeout = 3600 s"),
        (0.0, "no idle_session_timeout"),
        (300.0, "idle_session_timeout = 300 s"),
        (LIMIT, None),  # the server's own
        (LIMIT * 1.03, None),  # and measured a little early
        (None, None),  # not told: older servers have no such setting
    ],
)
def test_a_measured_limit_is_the_servers_only_if_it_declares_that(declared: float | None, says: str | None) -> None:
    found = warning(advice_after(10 * LIMIT, Declared(idle_session_timeout=declared)), "not_the_server")
    assert (found is not None) is (says is not None)
    if found is not None and says is not None:
        (measured,) = re.findall(rf"declares {says}, measured were ([\d.]+) s", found.text)
        assert float(measured) == pytest.approx(LIMIT, rel=0.02)
        assert found.evidence == "/evidence?target=t&outcome=died"


def test_nobody_is_acquitted_before_the_limit_is_found() -> None:
    assert warning(advice_after(0.5 * LIMIT, Declared(idle_session_timeout=3600.0)), "not_the_server") is None
    assert warning(advice_after(10 * LIMIT, None), "not_the_server") is None


@pytest.mark.parametrize(
    ("keepalive", "limit", "masked"),
    [
        (120.0, inf, True),
        (7200.0, inf, False),  # no rest was long enough for one to be sent
        (0.0, inf, False),  # not told, as over a Unix socket
        (None, inf, False),
        (120.0, LIMIT, False),  # the limit shows in spite of it
    ],
)
def test_the_servers_keepalive_may_hide_a_limit(keepalive: float | None, limit: float, masked: bool) -> None:
    advice = advice_after(10 * LIMIT, Declared(tcp_keepalives_idle=keepalive), limit)
    assert advice.idle_limit is not None
    assert 120.0 < advice.idle_limit.proven_seconds < 7200.0, "or nothing is shown"
    found = warning(advice, "masked_by_server_keepalive")
    assert (found is not None) is masked
    if found is not None:
        assert "after 120 s of silence" in found.text
        assert found.evidence == "/evidence?target=t&outcome=survived"


def test_nothing_is_hidden_while_rests_are_shorter_than_the_keepalive() -> None:
    advice = advice_after(100.0, Declared(tcp_keepalives_idle=120.0), inf)
    assert warning(advice, "masked_by_server_keepalive") is None


async def warned_of(service: Service, code: str) -> str:
    """The text of this warning, once it is given."""
    async with asyncio.timeout(60):
        while True:
            await asyncio.sleep(0.1)
            service.must_run()
            advice: Any = await service.ask("/recommendation")
            for found in [] if advice is None else advice["warnings"]:
                if found["code"] == code:
                    return str(found["text"])


async def test_a_real_server_is_asked_and_compared(
    make_server: Callable[..., PostgresServer], make_path: MakePath
) -> None:
    server = make_server({"idle_session_timeout": "1h", "tcp_keepalives_idle": 1, "max_connections": 300})
    path = await make_path(server, "close", idle_limit=1.5)
    quick = {"TARGETS__DEFAULT__IDLE__FLOOR": "300ms", "TARGETS__DEFAULT__IDLE__DEADLINE": "1s"}
    with (
        run_service({"TARGET_URL": server.url(port=path.port), **quick}) as cut,
        run_service({"TARGET_URL": server.url(), **quick}) as uncut,
    ):
        not_the_server, masked = await asyncio.gather(
            warned_of(cut, "not_the_server"), warned_of(uncut, "masked_by_server_keepalive")
        )
    assert "declares idle_session_timeout = 3600 s, measured were " in not_the_server
    assert "after 1 s of silence" in masked
