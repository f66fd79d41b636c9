"""Threads for what cannot be awaited, and nobody should wait for either."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

_R = TypeVar("_R")


class Threads(ThreadPoolExecutor):
    """An event loop's threads, one for each call, for whose end nobody waits.

    What they do is look up names, and nothing can end a look-up that a name server leaves unanswered. The standard
    executor would have the process wait for it before it can exit; besides, it keeps idle threads.
    """

    def submit(self, fn: Callable[..., _R], /, *args: Any, **kwargs: Any) -> Future[_R]:
        future: Future[_R] = Future()

        def call() -> None:
            try:
                future.set_result(fn(*args, **kwargs))
            except BaseException as error:  # noqa: BLE001 - it belongs to whoever waits
                future.set_exception(error)

        future.set_running_or_notify_cancel()
        threading.Thread(target=call, name="look-up", daemon=True).start()
        return future
