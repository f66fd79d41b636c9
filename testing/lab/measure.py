"""The real measurement over a path of the lab, wired as the service wires it, in this process."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from sidecar.catalogue import known_limits
from sidecar.core.advice.attribution import defaults
from sidecar.core.evidence import Observation
from sidecar.core.idle.machine import Budget, IdleMachine, IdleStatus
from sidecar.probes.idle import IdleProbeRunner
from sidecar.probes.postgresql.connect import PostgresDriver
from sidecar.settings.model import TargetSettings
from testing.lab import Endpoint

CONNECTIONS = 8


@dataclass
class Survey:
    """A measurement that runs. `observations` holds what was recorded last under each id."""

    machine: IdleMachine
    observations: dict[str, Observation] = field(default_factory=dict)
    _news: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def status(self) -> IdleStatus:
        return self.machine.status(asyncio.get_running_loop().time())

    def record(self, observation: Observation) -> None:
        self.observations[observation.id] = observation
        self._news.set()

    async def until(self, holds: Callable[[IdleStatus], bool], at_most: float) -> IdleStatus:
        """The status once it `holds`, or after `at_most` seconds, whatever it is then."""
        try:
            async with asyncio.timeout(at_most):
                while not holds(self.status):
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError:
            pass
        return self.status


@asynccontextmanager
async def measuring(
    endpoint: Endpoint, *, connections: int = CONNECTIONS, floor: float = 1.5, cap: float = 120, deadline: float = 2
) -> AsyncIterator[Survey]:
    """Measure one path in the background; raises what the measurement died of, if it did. Times are seconds."""
    target = TargetSettings(url=endpoint.url, tls={"mode": "disable"})
    machine = IdleMachine(
        target="lab",
        run="lab",
        epoch=time.time() - asyncio.get_running_loop().time(),
        connections=connections,
        floor=floor,
        cap=cap,
        defaults=defaults(known_limits()),
        deadline_seconds=deadline,
    )
    survey = Survey(machine)
    surveyor = IdleProbeRunner(machine, PostgresDriver(target), deadline_seconds=deadline, record=survey.record)
    async with asyncio.TaskGroup() as group:
        running = group.create_task(surveyor.run(Budget(connections=connections)))
        yield survey
        running.cancel()
