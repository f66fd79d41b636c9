"""How exactly outages are timed: the service's records beside the truth. `make bench-failover`; about two minutes.

Real servers are restarted (fast) and replaced (killed, the standby promoted, the address moved by a relay). The
service runs as anyone would start it, with default settings, and is told nothing. The truth comes from a client of its
own that connects and takes a transaction id every few milliseconds (`bench.clients`); beside it, one that polls once a
second, as a health check does. The figure of a record is the middle of its interval for writing. The exit status is 1
when the goal was missed, or an outage was.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sidecar.demo.path import FaultyPath
from sidecar.demo.server import HOST, PostgresServer
from sidecar.demo.service import Service, run_service
from sidecar.demo.standby import StandbyServer

GOAL_SECONDS = 0.050
DOWN_SECONDS = (0.5, 3.0)  # between the end of a server and what ends the outage
PATIENCE_SECONDS = 60.0
SETTLING_SECONDS = 1.5  # healthy for longer than a poll takes

Interval = tuple[float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Timed:
    """An outage as somebody saw it: when it began and when it ended (wall clock)."""

    began: Interval
    ended: Interval

    @property
    def seconds(self) -> float:
        return sum(self.ended) / 2 - sum(self.began) / 2

    @property
    def uncertainty_seconds(self) -> float:
        """The true length differs from `seconds` by no more than this."""
        return (self.began[1] - self.began[0] + self.ended[1] - self.ended[0]) / 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Happened:
    kind: str
    window: Interval  # all of it lies between these times
    record: Timed


def seen(turns: Sequence[tuple[float, float, bool]], window: Interval) -> Timed | None:
    """What the turns of one client tell of the outage in this window; None where none of them failed."""
    bad = [turn for turn in turns if not turn[2] and window[0] <= turn[0] <= window[1]]
    if not bad:
        return None
    first, last = bad[0], bad[-1]
    good_before = max(began for began, over, good in turns if good and over <= first[1] and began < first[0])
    good_after = min(over for began, over, good in turns if good and began > last[0])
    return Timed(began=(good_before, first[1]), ended=(last[0], good_after))


async def until_over(service: Service, count: int) -> Mapping[str, Any]:
    """Wait for the record of this outage; raises ServiceError if it does not come, or another one does."""
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            while True:
                service.must_run()
                answer = await service.ask("/outages")
                outages = [] if answer is None else answer["outages"]
                if len(outages) > count:
                    raise service.failure("an outage was recorded that did not happen")
                if len(outages) == count and outages[0]["write"] and outages[0]["write"]["ended"]:
                    newest: Mapping[str, Any] = outages[0]
                    return newest
                await asyncio.sleep(0.1)
    except TimeoutError:
        raise service.failure("an outage was missed") from None


def interval(document: Mapping[str, str]) -> Interval:
    after, until = (datetime.fromisoformat(document[end]).timestamp() for end in ("after", "until"))
    return after, until


async def until_ready(service: Service) -> None:
    async with asyncio.timeout(PATIENCE_SECONDS):
        while (answer := await service.ask("/targets")) is None or not answer["targets"][0]["readiness"]["ready"]:
            service.must_run()
            await asyncio.sleep(0.1)


@contextlib.asynccontextmanager
async def clients(url: str) -> AsyncIterator[dict[str, list[tuple[float, float, bool]]]]:
    """Their turns, there once the context is left."""
    turns: dict[str, list[tuple[float, float, bool]]] = {}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "bench.clients", url, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        yield turns
        told, _ = await process.communicate(b"")
        if process.returncode:
            raise RuntimeError(f"the clients ended with status {process.returncode}")
        turns.update(json.loads(told))
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


class Bench:
    """The present primary behind the relay, and what is done to it."""

    def __init__(self, path: FaultyPath, primary: PostgresServer) -> None:
        self._path, self._primary = path, primary

    async def restart(self) -> None:
        await asyncio.to_thread(self._primary.stop, "fast")
        await asyncio.sleep(random.uniform(*DOWN_SECONDS))
        await asyncio.to_thread(self._primary.start)

    async def prepare_standby(self) -> StandbyServer:
        standby = await asyncio.to_thread(StandbyServer, self._primary)
        await asyncio.to_thread(standby.start)
        return standby

    async def promote(self, standby: StandbyServer) -> None:
        await asyncio.to_thread(self._primary.stop, "crash")
        await asyncio.sleep(random.uniform(*DOWN_SECONDS))
        await asyncio.to_thread(standby.promote)
        self._path.retarget(HOST, standby.port)
        old, self._primary = self._primary, standby
        await asyncio.to_thread(old.close)

    async def close(self) -> None:
        await asyncio.to_thread(self._primary.close)


async def measure(restarts: int, promotions: int) -> tuple[list[Happened], dict[str, list[tuple[float, float, bool]]]]:
    happened: list[Happened] = []
    primary = await asyncio.to_thread(PostgresServer)
    async with contextlib.AsyncExitStack() as ends:
        ends.callback(primary.close)
        await asyncio.to_thread(primary.start)
        path = await ends.enter_async_context(FaultyPath(HOST, primary.port))
        bench = Bench(path, primary)
        ends.push_async_callback(bench.close)
        service = ends.enter_context(run_service({"TARGET_URL": primary.url(port=path.port)}))
        turns = await ends.enter_async_context(clients(primary.url(port=path.port)))
        await until_ready(service)

        async def happen(kind: str, what: Callable[[], Awaitable[None]]) -> None:
            await asyncio.sleep(SETTLING_SECONDS + random.random())  # at no particular moment of anybody's rhythm
            began = time.time()
            await what()
            spell = (await until_over(service, len(happened) + 1))["write"]
            await asyncio.sleep(SETTLING_SECONDS)
            record = Timed(began=interval(spell["began"]), ended=interval(spell["ended"]))
            happened.append(Happened(kind=kind, window=(began, time.time()), record=record))

        for _ in range(restarts):
            await happen("fast restart", bench.restart)
        for _ in range(promotions):
            standby = await bench.prepare_standby()
            await happen("promotion", lambda standby=standby: bench.promote(standby))  # type: ignore[misc]
    return happened, turns


def report(happened: Sequence[Happened], turns: Mapping[str, Sequence[tuple[float, float, bool]]]) -> bool:
    """Print the table; whether the goal was met."""
    met = True
    print("| | outages | lasted | recorded: median error | worst | truth inside | known to | polling: median | worst |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for kind in dict.fromkeys(one.kind for one in happened):
        lengths, errors, polled, unsure = [], [], [], []
        inside = 0
        for one in (one for one in happened if one.kind == kind):
            truth = seen(turns["truth"], one.window)
            if truth is None:
                raise RuntimeError(f"the tight loop did not see a {kind}")
            lengths.append(truth.seconds)
            unsure.append(truth.uncertainty_seconds)
            errors.append(abs(one.record.seconds - truth.seconds))
            inside += all(
                ours[0] <= theirs[1] and theirs[0] <= ours[1]
                for ours, theirs in ((one.record.began, truth.began), (one.record.ended, truth.ended))
            )
            poll = seen(turns["poll"], one.window)
            polled.append(truth.seconds if poll is None else abs(poll.seconds - truth.seconds))  # unseen: all of it
        median = statistics.median(errors)
        met &= median <= GOAL_SECONDS and inside == len(errors)
        print(
            f"| {kind} | {len(errors)} | {min(lengths):.2f} to {max(lengths):.2f} s"
            f" | {_ms(median)} | {_ms(max(errors))} | {inside} of {len(errors)} | ±{_ms(statistics.median(unsure))}"
            f" | {_ms(statistics.median(polled))} | {_ms(max(polled))} |"
        )
    print(
        f"\nGoal: a median error of at most {_ms(GOAL_SECONDS)}, the truth always inside: {'met' if met else 'MISSED'}"
    )
    return met


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.0f} ms"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.failover", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--restarts", type=int, default=10, metavar="N", help="fast restarts (default: 10)")
    parser.add_argument("--promotions", type=int, default=10, metavar="N", help="promotions (default: 10)")
    arguments = parser.parse_args()
    load_average = ", ".join(f"{load:.1f}" for load in os.getloadavg())
    print(f"Python {sys.version.split()[0]}, {os.cpu_count()} CPUs, load average at the start {load_average}\n")
    return 0 if report(*asyncio.run(measure(arguments.restarts, arguments.promotions))) else 1


if __name__ == "__main__":
    sys.exit(main())
