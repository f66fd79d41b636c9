"""The service: composes the parts, supervises their tasks, and leaves in order.

The HTTP interface comes up first, so that probes have somebody to ask; then the evidence of earlier lives is read; then
the targets are measured, whether their databases can be reached or not. A supervised task that dies is a fault in the
program: it is logged, `/livez` names it, and Kubernetes restarts the container. The others go on until then.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
import time
from collections.abc import Coroutine, Mapping, Sequence
from typing import Any

from sidecar import logs
from sidecar.core.evidence import Observation, Outage
from sidecar.core.journal import Journal
from sidecar.core.views import TargetView
from sidecar.metrics import Metrics
from sidecar.probes.postgresql.endpoint import forgive_abandoned_connects
from sidecar.settings.model import Settings
from sidecar.store.evidence_store import EvidenceStore
from sidecar.target import Target
from sidecar.threads import Threads
from sidecar.web.server import HttpServer

log = logging.getLogger("sidecar.service")

HOUSEKEEPING_SECONDS = 1.0
# Leaving takes at most the sum of these: Kubernetes and operators expect less than five seconds.
TASKS_GRACE_SECONDS = 2.0
STORE_GRACE_SECONDS = 1.5
HTTP_GRACE_SECONDS = 0.5


def run(settings: Settings) -> int:
    """Run the service until SIGTERM, SIGINT or /quitquitquit; the exit status."""
    logs.configure(settings.log)
    return asyncio.run(Service(settings).run())


class Service:
    """The running whole. It is the `Source` that web and metrics read."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._leaving = asyncio.Event()
        self._targets: dict[str, Target] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._faults: dict[str, str] = {}
        self._started = False
        self._status = 0
        self._journal = Journal(f"{time.time_ns():x}")
        self._metrics = Metrics(self, settings.targets)
        self._store = EvidenceStore(
            settings.store.url.get_secret_value(),
            databases={name: target.display for name, target in settings.targets.items()},
        )
        self.http = HttpServer(self, self._metrics.render)

    async def run(self) -> int:
        """Serve until told to leave; the exit status."""
        loop = asyncio.get_running_loop()
        loop.set_default_executor(Threads())
        loop.set_exception_handler(forgive_abandoned_connects)
        loop.add_signal_handler(signal.SIGTERM, self.quit)
        loop.add_signal_handler(signal.SIGINT, self._interrupt)
        http = self._settings.http
        self._create_targets({})
        try:
            await self.http.start(http.host, http.port, http.admin_port)
        except OSError as error:
            # The one failure an operator meets at start: say it in one line, like a fault of the settings.
            sys.stderr.write(f"{error.strerror}: takes a port that is free, and an address of this machine\n")
            return 2
        log.info("listening", extra={"host": http.host, "port": self.http.port, "admin_port": self.http.admin_port})
        try:
            # The store may keep us waiting; who is told to leave does not wait for it.
            starting = self._tasks["start"] = asyncio.create_task(self._start())
            leaving = asyncio.create_task(self._leaving.wait())
            await asyncio.wait((starting, leaving), return_when=asyncio.FIRST_COMPLETED)
            if starting.done():
                starting.result()
            await leaving
            log.info("leaving")
        finally:
            await self._stop()
        return self._status

    async def _start(self) -> None:
        history = await self._store.load()
        self._create_targets({name: (past.observations, past.outages) for name, past in history.items()})
        self._supervise("store", self._store.run())
        self._supervise("housekeeping", self._keep_house())
        for target in self._targets.values():
            for name, work in target.tasks():
                self._supervise(name, work)
        self._started = True

    def _create_targets(self, history: Mapping[str, tuple[Sequence[Observation], Sequence[Outage]]]) -> None:
        for name in self._settings.targets:
            observations, outages = history.get(name, ((), ()))
            if name in self._targets and not observations and not outages:
                continue
            self._targets[name] = Target(
                name,
                self._settings,
                metrics=self._metrics,
                keep=self._keep,
                observations=observations,
                outages=outages,
            )

    def _keep(self, record: Observation | Outage) -> None:
        self._store.add(record)
        self._journal.add(record)

    async def _stop(self) -> None:
        self._leaving.set()
        for task in self._tasks.values():
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks.values(), timeout=TASKS_GRACE_SECONDS)
        await asyncio.gather(*(target.close() for target in self._targets.values()), return_exceptions=True)
        await self._store.close(STORE_GRACE_SECONDS)
        await self.http.stop(HTTP_GRACE_SECONDS)

    def _supervise(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work, name=name)
        self._tasks[name] = task
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        error = None if task.cancelled() else task.exception()
        if self._leaving.is_set():
            if error is not None:
                log.error("task failed while leaving", extra={"task": task.get_name()}, exc_info=error)
            return
        # The type and place are in the log; the text of an unforeseen error might hold anything, so HTTP gets less.
        self._faults[task.get_name()] = "ended by itself" if error is None else f"died of {type(error).__name__}"
        log.critical("task died", extra={"task": task.get_name()}, exc_info=error)

    async def _keep_house(self) -> None:
        while True:
            await asyncio.sleep(HOUSEKEEPING_SECONDS)
            for target in self._targets.values():
                target.refresh()

    # -- Source ---------------------------------------------------------------------------------------------------

    @property
    def started(self) -> bool:
        return self._started

    @property
    def faults(self) -> Mapping[str, str]:
        return self._faults

    @property
    def store_pending_writes(self) -> int:
        return self._store.pending_writes

    @property
    def store_warning(self) -> str | None:
        return self._store.warning

    @property
    def journal(self) -> Journal:
        return self._journal

    def targets(self) -> Mapping[str, TargetView]:
        return {name: target.view for name, target in self._targets.items()}

    def observations(self, target: str) -> Sequence[Observation]:
        return tuple(self._targets[target].observations.values())

    def outages(self, target: str) -> Sequence[Outage]:
        return tuple(self._targets[target].outages.values())

    def measure_afresh(self, target: str) -> None:
        self._targets[target].measure_afresh()

    def try_again(self, target: str) -> None:
        self._targets[target].try_again()

    def quit(self) -> None:
        self._leaving.set()

    def _interrupt(self) -> None:
        self._status = 130
        self.quit()
