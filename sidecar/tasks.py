"""Supervision: tasks with names, of which none ends unnoticed.

Background tasks are meant to run until they are cancelled. One that ends before is a fault in the program: it is logged
with its traceback, and `faults` names it from then on. It is not started again; that would hide the fault, and whoever
looks at the faults can decide better (Kubernetes does, by `/livez`).

A task that runs a group of its own dies of an ExceptionGroup, which says nothing: what is told is the error inside.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Mapping
from typing import Any


def leaf_error(error: BaseException) -> BaseException:
    """The error itself, or the first that a group of them, however nested, is about."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


class SupervisedTasks:
    """The background tasks of a process; what ends is told to `log`."""

    def __init__(self, log: logging.Logger) -> None:
        self._log = log
        self._tasks: set[asyncio.Task[None]] = set()
        self._faults: dict[str, str] = {}
        self._stopping = False

    @property
    def faults(self) -> Mapping[str, str]:
        """The tasks that died: name -> why. Empty while all live."""
        return self._faults

    def start(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        """Run it under this name until `stop`."""
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    async def stop(self, grace_seconds: float) -> None:
        """Cancel all and wait for their ends, for so long at most."""
        self._stopping = True
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=grace_seconds)

    def _ended(self, task: asyncio.Task[None]) -> None:
        error = None if task.cancelled() else task.exception()
        if self._stopping:
            if error is not None:
                self._log.error("task failed while leaving", extra={"task": task.get_name()}, exc_info=error)
            return
        # The type and place are in the log; the text of an unforeseen error might hold anything, so others get less.
        died = "ended by itself" if error is None else f"died of {type(leaf_error(error)).__name__}"
        self._faults[task.get_name()] = died
        self._log.critical("task died", extra={"task": task.get_name()}, exc_info=error)
