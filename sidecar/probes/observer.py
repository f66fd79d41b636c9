"""Asks the server, now and then, what it declares: timeouts, keepalive, how full it is, and how long the
application's own sessions have rested.

Two queries a minute over the heartbeat's session, no privileges. Where no heartbeat may stand, a short connection takes
its place; while none is to be opened (paused, refused, an outage) nobody asks. What the server declares is no
measurement: a pooler passes PostgreSQL's value on although its own timer decides. It is compared with what was
measured, and it bounds the advice while nothing has been measured.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable

from sidecar.core.advice.verdict import Activity
from sidecar.core.budget import ConnectionRole, Declared
from sidecar.probes.driver import Driver, WatchedConnection
from sidecar.probes.errors import CannotConnect, ConnectionEnded

log = logging.getLogger("sidecar.observer")

EVERY_SECONDS = 60.0
"""Pause between two looks: settings change seldom, and how long sessions rest changes slowly enough."""

RETRY_SECONDS = 1.0
"""Between two looks for a session to ask over."""

DEADLINE_SECONDS = 5.0
"""For connecting, and for each question."""

_JITTER_SHARE = 0.1
"""Of the pause, up or down: many sidecars started together shall not ask together."""


async def ask(connection: WatchedConnection) -> tuple[Declared, Activity | None]:
    """Ask once. A server that would not tell declares nothing; raises ConnectionEnded."""
    declared = await connection.declared(DEADLINE_SECONDS)
    if declared is None:
        log.info("server declares nothing", extra={"refusal": connection.refusal})
        declared = Declared()
    return declared, await connection.activity(DEADLINE_SECONDS)


async def observe(driver: Driver) -> tuple[Declared, Activity | None]:
    """Ask once over a short connection; raises CannotConnect or ConnectionEnded."""
    connection = await driver.open(ConnectionRole.OBSERVER, deadline_seconds=DEADLINE_SECONDS)
    try:
        return await ask(connection)
    finally:
        connection.terminate()


async def keep_observing(
    driver: Driver,
    tell: Callable[[Declared, Activity | None], None],
    *,
    session: Callable[[], WatchedConnection | None],
    may_connect: Callable[[], bool],
) -> None:
    """Ask for ever. Once a minute, as soon as there is somebody to ask."""
    while True:
        pause_seconds = EVERY_SECONDS
        try:
            if (standing := session()) is not None:
                tell(*await ask(standing))
            elif may_connect():
                tell(*await observe(driver))
            else:
                pause_seconds = RETRY_SECONDS
        except CannotConnect:
            pass  # it is the heartbeat's to tell about outages
        except ConnectionEnded:
            pause_seconds = RETRY_SECONDS
        await asyncio.sleep(pause_seconds * random.uniform(1 - _JITTER_SHARE, 1 + _JITTER_SHARE))  # noqa: S311 - no secret
