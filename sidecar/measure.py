"""One path, measured once: what the service does for a target, shown as it goes, without store and HTTP interface.

Progress goes to standard error, the result to standard output: a picture and the snippet, or one JSON document. What is
proven by the time it ends is told however it ends: the goal reached, the time over, or an interruption.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from rich.console import Console

from sidecar import documents, logs, terminal
from sidecar.catalogue import known_limits
from sidecar.clock import Clock
from sidecar.core.advice.attribution import defaults
from sidecar.core.advice.recommendation import Recommendation
from sidecar.core.advice.render import FORMATS, FormatName
from sidecar.core.advice.render.python import sqlalchemy as engine_arguments
from sidecar.core.budget import BudgetStatus, CeilingKind, Hindrance
from sidecar.core.evidence import MILESTONES, Observation, Status
from sidecar.core.idle.forecast import forecast
from sidecar.core.views import TargetView
from sidecar.documents import TargetSummary
from sidecar.metrics import Counts
from sidecar.probes.errors import CannotConnect, ConnectionEnded
from sidecar.probes.observer import observe
from sidecar.probes.postgresql.connect import PostgresDriver, forgive_abandoned_connects
from sidecar.settings.model import Settings
from sidecar.sharing import Sharing
from sidecar.target import Target
from sidecar.tasks import SupervisedTasks
from sidecar.threads import Threads

TARGET = "default"
"""What the one target is called, as in the settings that the command's flags set."""

_LOOK_SECONDS = 0.25
"""Between two looks at how it stands."""
_LINE_EVERY_SECONDS = 30.0
"""Without a terminal: a measurement may take hours."""
_TASKS_GRACE_SECONDS = 2.0
"""For tasks that were told to end."""
_INTERRUPTED = 130
"""The exit status of a command ended by SIGINT, as shells have it."""

End = Literal["reached", "out_of_time", "interrupted", "unreachable", "failed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """How it ended, and what was known by then. `view` is None where nothing could be measured at all."""

    end: End
    elapsed_seconds: float
    because: str | None = None  # where it was unreachable, or failed
    view: TargetView | None = None
    observations: Sequence[Observation] = ()

    @property
    def exit_status(self) -> int:
        return {"reached": 0, "interrupted": _INTERRUPTED}.get(self.end, 1)


def run(settings: Settings, *, goal: Status, budget_seconds: float, dialect: FormatName, as_json: bool) -> int:
    """Measure the target `default` until its status is `goal`, and tell the result; returns the exit status.

    0: the goal was reached. 1: it was not within `budget_seconds`, or the database cannot be reached. 130: interrupted.
    """
    progress = terminal.console(sys.stderr)
    log = _Log(progress)
    logging.getLogger().addHandler(log)
    try:
        result = asyncio.run(_Measurement(settings, goal, budget_seconds, progress).run())
    finally:
        logging.getLogger().removeHandler(log)
    if result.view is not None:
        if as_json:
            sys.stdout.buffer.write(_document(result, result.view, goal, dialect) + b"\n")
            sys.stdout.flush()
        else:
            _tell(result, result.view, dialect)
    if complaint := _complaint(result, goal, budget_seconds):
        sys.stderr.write(complaint + "\n")
    return result.exit_status


class _Log(logging.Handler):
    """What the parts have to say, such as that an outage began, above the moving picture."""

    def __init__(self, console: Console) -> None:
        super().__init__(logging.WARNING)
        self.setFormatter(logs.Console())
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        self._console.print(self.format(record), soft_wrap=True)


class _Measurement:
    def __init__(self, settings: Settings, goal: Status, budget_seconds: float, progress: Console) -> None:
        self._settings = settings
        self._goal = goal
        self._budget_seconds = budget_seconds
        self._progress = progress
        self._clock = Clock()
        self._began = self._clock.monotonic()
        self._interrupted = asyncio.Event()

    @property
    def _elapsed(self) -> float:
        return self._clock.monotonic() - self._began

    async def run(self) -> Result:
        loop = asyncio.get_running_loop()
        loop.set_default_executor(Threads())
        loop.set_exception_handler(forgive_abandoned_connects)
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._interrupted.set)
        if (why_not := await self._first_contact()) is not None:
            return why_not
        sharing = Sharing(
            cap=self._settings.fleet.max_connections, monotonic=self._clock.monotonic, wall=self._clock.wall
        )
        target = Target(
            TARGET,
            self._settings,
            metrics=Counts((TARGET,)),
            clock=self._clock,
            sharing=sharing,
            keep=lambda record: None,
        )
        tasks = SupervisedTasks(logging.getLogger("sidecar.measure"))
        for name, work in target.tasks():
            tasks.start(name, work)
        tasks.start("sharing", sharing.run())
        try:
            end, because = await self._watch(target, tasks)
            target.refresh()
            return self._result(end, because, target)
        finally:
            await tasks.stop(_TASKS_GRACE_SECONDS)
            await target.close()

    async def _first_contact(self) -> Result | None:
        """None when the database answers. A typing error should show at once, not after the whole budget."""
        trying = asyncio.create_task(observe(PostgresDriver(self._settings.targets[TARGET])))
        interrupted = asyncio.create_task(self._interrupted.wait())
        await asyncio.wait({trying, interrupted}, return_when=asyncio.FIRST_COMPLETED)
        interrupted.cancel()
        if not trying.done():
            trying.cancel()
            return self._result("interrupted")
        try:
            trying.result()
        except CannotConnect as error:
            return self._result("unreachable", error.reason)
        except ConnectionEnded as error:
            what = error.ending.message or "the connection ended before the first answer"
            return self._result("unreachable", f"{self._settings.targets[TARGET].display}: {what}")
        return None

    async def _watch(self, target: Target, tasks: SupervisedTasks) -> tuple[End, str | None]:
        """Keep house, and show how it stands, until it is over."""
        cap = self._settings.targets[TARGET].idle.cap
        common = [limit for limit in defaults(known_limits()) if limit <= cap]  # none beyond it will be found
        with terminal.progress(self._progress, line_every_seconds=_LINE_EVERY_SECONDS) as show:
            while True:
                self._clock.follow_wall()
                target.refresh()
                view = target.view
                show(self._elapsed, TargetSummary.of(view), self._remark(view, common))
                if view.recommendation.status in MILESTONES[MILESTONES.index(self._goal) :]:
                    return "reached", None
                if (left := self._budget_seconds - self._elapsed) <= 0:
                    return "out_of_time", None
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(min(left, _LOOK_SECONDS)):
                        await self._interrupted.wait()
                        return "interrupted", None
                for name, why in tasks.faults.items():
                    return "failed", f"a fault in the program: {name} {why}"

    def _remark(self, view: TargetView, common: Sequence[float]) -> str:
        if view.reachable is False:
            return view.readiness.reason
        if view.stage == "paused":
            return _waits(view.budget)
        if view.recommendation.status in MILESTONES[MILESTONES.index(self._goal) :]:
            return ""
        togo = forecast(
            goal=self._goal,
            stage=view.stage,
            limit=view.recommendation.idle_limit,
            elapsed_seconds=view.elapsed_seconds,
            probes=view.probes,
            defaults=common,
        )
        left = f"at most {terminal.about(max(0.0, self._budget_seconds - self._elapsed))} left"
        if togo is None:
            return left
        guess = f"about {terminal.about(togo.seconds)} to go"
        if togo.if_limit_seconds is not None:
            guess += f" if the limit is {togo.if_limit_seconds:g} s, the next well-known one"
        return f"{guess}; {left}"

    def _result(self, end: End, because: str | None = None, target: Target | None = None) -> Result:
        return Result(
            end=end,
            because=because,
            elapsed_seconds=self._elapsed,
            view=None if target is None else target.view,
            observations=() if target is None else target.records.observations,
        )


def _waits(budget: BudgetStatus | None) -> str:
    """Why nothing is measured at the moment."""
    if budget is None or budget.hindrance is Hindrance.NOT_LOOKED_YET:
        return "waits for a look at who holds the server's connections"
    if budget.hindrance is Hindrance.REFUSED:
        return "waits: a connection was refused"
    if budget.usable is None or budget.used is None:
        return "waits until the server has connections to spare"
    whose = "" if budget.ceiling in (None, CeilingKind.SERVER) else f" under the limit of the {budget.ceiling}"
    return f"waits: {budget.used} of {budget.usable} in use{whose}"


def _snippet(advice: Recommendation, dialect: FormatName) -> str:
    rendered = FORMATS[dialect].render(advice)
    return rendered if isinstance(rendered, str) else documents.dumps(rendered).decode() + "\n"


def _document(result: Result, view: TargetView, goal: Status, dialect: FormatName) -> bytes:
    """What `/recommendation` would serve, and how it came about under `measurement`."""
    measurement = {
        "database": view.database,
        "end": result.end,
        "because": result.because,
        "goal": goal,
        "elapsed_seconds": round(result.elapsed_seconds, 3),
        "stage": view.stage,
        "regime": view.regime,
        "observations": result.observations,
        "snippet": {"format": dialect, "text": _snippet(view.recommendation, dialect)},
    }
    return documents.dumps(documents.recommendation(view) | {"measurement": measurement})


def _tell(result: Result, view: TargetView, dialect: FormatName) -> None:
    # What is printed last is what remains to be seen: so the snippet, which may be long, comes first.
    console = terminal.console(sys.stdout)
    console.print(_snippet(view.recommendation, dialect), soft_wrap=True)
    with console.capture() as captured:
        console.print(
            terminal.picture(
                TargetSummary.of(view),
                view.recommendation,
                engine_arguments(view.recommendation),
                result.observations,
                known_limits(),
                ascii_only=console.options.ascii_only,
            )
        )
    # Tables pad their last column, which is of no use in a file.
    sys.stdout.writelines(f"{line.rstrip()}\n" for line in captured.get().splitlines())


def _complaint(result: Result, goal: Status, budget_seconds: float) -> str | None:
    match result.end:
        case "unreachable":
            return result.because
        case "failed":
            return f"stopped by {result.because}"
        case "interrupted":
            what = "nothing was measured yet" if result.view is None else "what is proven so far is told above"
            return f"interrupted after {result.elapsed_seconds:.0f} s: {what}"
        case "out_of_time":
            return f"not {goal} within {terminal.about(budget_seconds)}: a longer --budget looks further"
    return None
