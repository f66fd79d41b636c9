"""The whole story on a laptop: a database, a path with a limit, the service as anyone would run it, and what it finds.

The service is a process of its own, asked over HTTP. It is told where to connect and how far to look, never what the
path does.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Mapping

from rich.console import Console

from sidecar.core.advice.recommendation import Recommendation
from sidecar.core.evidence import Status
from sidecar.demo import failover
from sidecar.demo.application import query_after_rest
from sidecar.demo.path import Fault, FaultyPath
from sidecar.demo.server import HOST, PostgresServer, ServerError
from sidecar.demo.service import Service, ServiceError, run_service
from sidecar.demo.standby import StandbyServer
from sidecar.demo.stories import Story
from sidecar.documents import TargetSummary, read
from sidecar.terminal import Show, dead, findings, lived, progress, seconds

_FAULTS: Mapping[Story, Fault | None] = {
    Story.SILENT: "silent",
    Story.RESET: "reset",
    Story.CLOSE: "close",
    Story.SERVER: None,
}
"""What the path does at the limit. None: a plain connection, on which PostgreSQL itself ends idle sessions."""

_TOLERANCE = 0.05  # of the true limit, for exit status 0
_POLL_SECONDS = 0.5
_VERIFIED_WITHIN = 4.0  # limits; what is known by then is the result
_INTERRUPTED = 130


def run(path: Story, limit_seconds: float, once: bool) -> int:
    """Tell the story of one `--path`, on standard output; returns the exit status.

    0: told once, and the limit found is within 5 % of the true one; on the path `failover`, every outage was recorded
    with the truth inside. 1: it is not so, or nothing was found within six limits and a minute. 130:
    interrupted, which is how it ends unless told once.
    """
    began = time.monotonic()
    console = Console(soft_wrap=True, markup=False, highlight=False, emoji=False)
    try:
        console.print("Starting PostgreSQL ...")
        if path is Story.FAILOVER:
            with PostgresServer() as primary, StandbyServer(primary) as standby:
                return 0 if asyncio.run(failover.tell(console, primary, standby, once=once)) else 1
        fault = _FAULTS[path]
        settings = {} if fault else {"idle_session_timeout": f"{limit_seconds * 1000:.0f}ms"}
        with PostgresServer(settings) as server:
            return asyncio.run(_Story(console, server, path, limit_seconds, began).tell(once))
    except (ServerError, ServiceError) as failure:
        console.print(f"The demo failed: {failure}")
        return 1
    except KeyboardInterrupt:
        console.print("Interrupted. Everything is stopped and removed.")
        return _INTERRUPTED


class _Story:
    def __init__(
        self, console: Console, server: PostgresServer, path: Story, limit_seconds: float, began: float
    ) -> None:
        self._console = console
        self._server = server
        self._path = path
        self._limit_seconds = limit_seconds
        self._began = began

    @property
    def _elapsed(self) -> float:
        return time.monotonic() - self._began

    async def tell(self, once: bool) -> int:
        limit = self._limit_seconds
        floor, cap = max(1.0, limit / 8), 20 * limit
        async with contextlib.AsyncExitStack() as stack:
            port, fault = self._server.port, _FAULTS[self._path]
            if fault is not None:
                port = (await stack.enter_async_context(FaultyPath(HOST, port, fault, idle_limit=limit))).port
            url = self._server.url(port=port, scheme="postgresql+asyncpg")
            service = stack.enter_context(
                run_service(
                    {
                        "TARGET_URL": url,
                        "TARGETS__DEFAULT__IDLE__FLOOR": f"{floor}s",
                        "TARGETS__DEFAULT__IDLE__CAP": f"{cap}s",
                        "TARGETS__DEFAULT__IDLE__DEADLINE": "2s",
                        "TARGETS__DEFAULT__APPLICATION__POOL_RECYCLE": "-1",
                        "TARGETS__DEFAULT__APPLICATION__POOL_PRE_PING": "false",
                    }
                )
            )
            told = "is not told" if fault else "can read it from the server, but goes by what it measures"
            self._console.print(
                f"Path {self._path.value!r}: idle limit {limit:g} s. The service {told}; it looks for a limit between "
                f"{floor:g} s and {cap:g} s, and a connection that answers nothing for 2 s is dead to it.\n"
                f"It answers at {service.address}\n"
            )
            application = asyncio.create_task(query_after_rest(url, _application_rest(limit)))
            stack.callback(application.cancel)
            patience = 6 * limit + 60 - self._elapsed
            try:
                async with asyncio.timeout(patience):
                    with progress(self._console) as show:
                        await self._watch(service, show, self._is_told)
                    within = await self._conclude(service, await application)
            except TimeoutError:
                raise service.failure(f"nothing found after {self._elapsed:.0f} s") from None
            if not once:
                self._console.print(f"Look around at {service.address}; Ctrl-C ends everything.\n")
                with progress(self._console) as show:
                    await self._watch(service, show, lambda target: False)
            return 0 if within else 1

    async def _watch(self, service: Service, show: Show, done: Callable[[TargetSummary], bool]) -> None:
        """Show how the measurement stands until it is done."""
        while True:
            service.must_run()
            answer = await service.ask("/targets")
            if answer is not None:
                target = read(TargetSummary, answer["targets"][0])
                show(self._elapsed, target, "")
                if done(target):
                    return
            await asyncio.sleep(_POLL_SECONDS)

    def _is_told(self, target: TargetSummary) -> bool:
        """Whether the result stands: verified, or as good as it has got after a while."""
        found = target.idle_limit is not None and target.idle_limit.estimate_seconds is not None
        return found and (target.status is Status.VERIFIED or self._elapsed > _VERIFIED_WITHIN * self._limit_seconds)

    async def _conclude(self, service: Service, application: str) -> bool:
        """Print what was found and what to do about it; whether it is within the tolerance of the truth."""
        answer = await service.ask("/recommendation")
        arguments = await service.ask("/recommendation?format=sqlalchemy")
        if answer is None or arguments is None:
            raise service.failure("the service no longer answers")
        advice = read(Recommendation, answer)
        limit = advice.idle_limit
        if limit is None or limit.estimate_seconds is None:
            raise service.failure("the limit that was found is no longer held true")
        error = limit.estimate_seconds / self._limit_seconds - 1
        lines = {
            "Limit found": f"{seconds(limit.estimate_seconds)}: proven to live {lived(limit.proven_seconds)}, "
            f"dead by {dead(limit.dead_by_seconds)}; {advice.status} after {self._elapsed:.0f} s",
            "True limit": f"{seconds(self._limit_seconds)}, so the error is {error:+.1%}",
            "An application": f"with SQLAlchemy's defaults, on this path all the while: its query after "
            f"{seconds(_application_rest(self._limit_seconds))} of rest {application}",
        } | findings(advice, arguments)
        if advice.application is not None:
            lines["Verdict on it"] = f"{advice.application.verdict}: {advice.application.because}"
        if _FAULTS[self._path] and "On each socket" in lines:
            lines["On each socket"] += " (for real paths: the relay of this demo takes no notice)"
        self._console.print()
        for heading, text in lines.items():
            self._console.print(f"{heading + ':':<15} {text}")
        for remark in advice.reasons + advice.warnings:
            self._console.print(f"  - {remark.text}")
        self._console.print()
        return abs(error) <= _TOLERANCE


def _application_rest(limit_seconds: float) -> float:
    return limit_seconds + max(1.0, limit_seconds / 4)
