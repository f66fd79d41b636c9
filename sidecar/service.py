"""The service: composes the parts, supervises their tasks, and leaves in order.

The HTTP interface comes up first, so that probes have somebody to ask; then the evidence of earlier lives is read; then
the targets are measured, whether their databases can be reached or not. A supervised task that dies is a fault in the
program: it is logged, `/livez` names it, and Kubernetes restarts the container. The others go on until then.

One task keeps house: whenever something was recorded, and at least once a second, it takes up what the wall clock has
become and has every target draw its conclusions. Everybody else only looks, as often as they like.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import inf

from sidecar import documents, logs
from sidecar.clock import Clock
from sidecar.core.availability.readiness import Readiness
from sidecar.core.evidence import Observation, Outage
from sidecar.core.idle.planning import Stage
from sidecar.core.journal import Journal
from sidecar.core.pause import Pause
from sidecar.core.views import TargetView
from sidecar.metrics import Metrics
from sidecar.probes.postgresql.connect import forgive_abandoned_connects
from sidecar.settings.model import Settings
from sidecar.sharing import Sharing
from sidecar.store.evidence_store import EvidenceStore
from sidecar.target import Target
from sidecar.tasks import SupervisedTasks
from sidecar.threads import Threads
from sidecar.web.server import HttpServer

log = logging.getLogger("sidecar.service")

REFRESH_SECONDS = 1.0
"""Between two refreshes of the targets while nothing is recorded."""

REFRESH_PAUSE_SECONDS = 0.2
"""After a refresh, however much is recorded meanwhile."""

VIEW_SECONDS = 0.2
"""A view may be this old: probes and dashboards ask more often than anything changes."""

# Leaving takes at most the sum of these: Kubernetes and operators expect less than five seconds.
TASKS_GRACE_SECONDS = 2.0
STORE_GRACE_SECONDS = 1.5
HTTP_GRACE_SECONDS = 0.5


def run(settings: Settings) -> int:
    """Run the service until SIGTERM, SIGINT or /quitquitquit; the exit status."""
    logs.configure(settings.log)
    return asyncio.run(Service(settings).run())


class Service:
    """The running whole. It is the `Source` that web and metrics read, and owns the clock that all its parts share."""

    def __init__(self, settings: Settings, *, clock: Clock | None = None) -> None:
        self._settings = settings
        self._clock = clock or Clock()
        self._leaving = asyncio.Event()
        self._news = asyncio.Event()  # something was recorded since the last refresh
        self._targets: dict[str, Target] = {}
        self._views: Mapping[str, TargetView] = {}
        self._viewed_at = -inf  # monotonic
        self._tasks = SupervisedTasks(log)
        self._started = False
        self._status = 0
        self._journal = Journal(self._clock.run_id())
        self._metrics = Metrics(self, settings.targets)
        self._sharing = Sharing(
            cap=settings.fleet.max_connections, monotonic=self._clock.monotonic, wall=self._clock.wall
        )
        self._store = EvidenceStore(
            settings.store.url.get_secret_value(),
            databases={name: target.display for name, target in settings.targets.items()},
            process=f"{socket.gethostname()}:{settings.http.admin_port}",
        )
        self._pause: Pause | None = None
        self._pause_ends = inf  # monotonic
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
        # The store may keep us waiting; who is told to leave does not wait for it.
        starting = asyncio.create_task(self._start(), name="start")
        leaving = asyncio.create_task(self._leaving.wait(), name="leaving")
        try:
            await asyncio.wait((starting, leaving), return_when=asyncio.FIRST_COMPLETED)
            if starting.done():
                starting.result()
            await leaving
            log.info("leaving")
        finally:
            starting.cancel()
            await self._stop(starting)
        return self._status

    async def _start(self) -> None:
        history = await self._store.load()
        self._create_targets({name: (past.observations, past.outages) for name, past in history.items()})
        self._tasks.start("store", self._store.run())
        self._tasks.start("housekeeping", self._refresh_loop())
        earlier = self._store.pause
        if self._pause is None and earlier is not None:
            self._begin(earlier.taken_up(self._clock.wall()))
        elif self._pause is not None:
            self._begin(self._pause)  # of the targets that have just been made, too
        for target in self._targets.values():
            for name, work in target.tasks():
                self._tasks.start(name, work)
        self._tasks.start("sharing", self._sharing.run())
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
                clock=self._clock,
                sharing=self._sharing,
                keep=self._keep,
                observations=observations,
                outages=outages,
            )
        self._viewed_at = -inf

    def _keep(self, record: Observation | Outage) -> None:
        self._store.add(record)
        self._journal.add(record)
        self._news.set()

    async def _refresh_loop(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(REFRESH_SECONDS - REFRESH_PAUSE_SECONDS):
                    await self._news.wait()
            self._news.clear()
            self._clock.follow_wall()
            if self._pause is not None and self._pause_is_over(self._pause):
                self.resume()
            for target in self._targets.values():
                target.refresh()
            self._viewed_at = -inf
            await asyncio.sleep(REFRESH_PAUSE_SECONDS)

    async def _stop(self, starting: asyncio.Task[None]) -> None:
        self._leaving.set()
        await asyncio.gather(
            asyncio.wait((starting,), timeout=TASKS_GRACE_SECONDS), self._tasks.stop(TASKS_GRACE_SECONDS)
        )
        await asyncio.gather(*(target.close() for target in self._targets.values()), return_exceptions=True)
        await self._store.close(STORE_GRACE_SECONDS)
        await self.http.stop(HTTP_GRACE_SECONDS)

    # -- Source ---------------------------------------------------------------------------------------------------

    @property
    def started(self) -> bool:
        return self._started

    @property
    def faults(self) -> Mapping[str, str]:
        return self._tasks.faults

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
        if (now := self._clock.monotonic()) - self._viewed_at >= VIEW_SECONDS:
            views = {name: target.view for name, target in self._targets.items()}
            if self._pause is not None:
                views = {name: _while_paused(view, self._pause) for name, view in views.items()}
            self._views, self._viewed_at = views, now
        return self._views

    def observations(self, target: str) -> Sequence[Observation]:
        return self._targets[target].records.observations

    def outages(self, target: str) -> Sequence[Outage]:
        return self._targets[target].records.outages

    def measure_afresh(self, target: str) -> None:
        self._targets[target].measure_afresh()

    def try_again(self, target: str) -> None:
        self._targets[target].try_again()

    @property
    def paused(self) -> Pause | None:
        return self._pause

    def pause(self, seconds: float) -> Pause:
        now = self._clock.wall()
        pause = Pause(since=now if self._pause is None else self._pause.since, until=now + seconds)
        self._begin(pause)
        self._store.keep_pause(pause)
        return pause

    def resume(self) -> None:
        if self._pause is None:
            return
        self._pause, self._viewed_at = None, -inf
        self._store.keep_pause(None)
        log.info("resumed")
        for target in self._targets.values():
            target.resume()

    def _begin(self, pause: Pause | None) -> None:
        """Give everything back at once. None is the rest of a pause of which nothing is left."""
        if pause is None:
            self._store.keep_pause(None)
            return
        remaining = pause.remaining_seconds(self._clock.wall())
        self._pause, self._pause_ends = pause, self._clock.monotonic() + remaining
        self._viewed_at = -inf
        log.info("paused", extra={"until": documents.instant(pause.until), "reason": pause.reason})
        for target in self._targets.values():
            target.pause(pause.reason)

    def _pause_is_over(self, pause: Pause) -> bool:
        """Whichever clock says so: one stands still while the machine sleeps, the other may be set back."""
        return self._clock.wall() >= pause.until or self._clock.monotonic() >= self._pause_ends

    def quit(self) -> None:
        self._leaving.set()

    def _interrupt(self) -> None:
        self._status = 130
        self.quit()


def _while_paused(view: TargetView, pause: Pause) -> TargetView:
    """What is shown of a target on which nothing is held: nothing speaks against traffic, and nothing is known anew."""
    reason = f"paused until {documents.instant(pause.until)}: no connection is held, and nothing is measured"
    readiness = Readiness(ready=True, reason=reason, since=pause.since)
    return replace(view, readiness=readiness, reachable=None, stage=Stage.PAUSED)
