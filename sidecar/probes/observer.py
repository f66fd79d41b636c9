"""Asks the server, now and then, what it declares: timeouts, keepalive, how full it is, and how long the
application's own sessions have rested.

One short connection a minute, two queries, no privileges. What the server declares is no measurement: a pooler passes
PostgreSQL's value on although its own timer decides. It is compared with what was measured, and it bounds the advice
while nothing has been measured.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable

from sidecar.core.advice.verdict import Activity
from sidecar.core.budget import ConnectionRole, Declared
from sidecar.probes.driver import Driver
from sidecar.probes.errors import CannotConnect, ConnectionEnded

log = logging.getLogger("sidecar.observer")

EVERY_SECONDS = 60.0
"""Pause between two looks: settings change seldom, and how full a server is changes slowly enough."""

RETRY_SECONDS = 5.0
"""Pause after a look that failed: nothing is measured before the server has said how much it can spare."""

DEADLINE_SECONDS = 5.0
"""For connecting, and for each question."""

_JITTER_SHARE = 0.1
"""Of the pause, up or down: many sidecars started together shall not ask together."""


async def observe(driver: Driver) -> tuple[Declared, Activity | None]:
    """Ask once. A server that would not tell declares nothing; raises CannotConnect or ConnectionEnded."""
    connection = await driver.open(ConnectionRole.OBSERVER, deadline_seconds=DEADLINE_SECONDS)
    try:
        declared = await connection.declared(DEADLINE_SECONDS)
        if declared is None:
            log.info("server declares nothing", extra={"refusal": connection.refusal})
            declared = Declared()
        return declared, await connection.activity(DEADLINE_SECONDS)
    finally:
        connection.terminate()


async def keep_observing(driver: Driver, tell: Callable[[Declared, Activity | None], None]) -> None:
    """Ask for ever. A database that cannot be reached is asked again soon; the heartbeat tells about outages."""
    while True:
        pause_seconds = EVERY_SECONDS
        try:
            declared, activity = await observe(driver)
        except (CannotConnect, ConnectionEnded):
            pause_seconds = RETRY_SECONDS
        else:
            tell(declared, activity)
        await asyncio.sleep(pause_seconds * random.uniform(1 - _JITTER_SHARE, 1 + _JITTER_SHARE))  # noqa: S311 - no secret
