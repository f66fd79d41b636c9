"""Ends on the server what this process has left behind there.

A connection whose path died is gone for us, and not for the server: it keeps the session until its own keepalive fails,
two hours later by default. So sessions that were found dead and that nobody told the server of are ended, one at a
time, over the session of the heartbeat; what may be ended and what must be spared is the driver's to know. Without a
heartbeat's session they wait, and not for ever: each had itself limited by the server, too.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from sidecar.core.budget import LeftSession
from sidecar.probes.driver import WatchedConnection
from sidecar.probes.errors import ConnectionEnded

DEADLINE_SECONDS = 5.0
"""For ending one."""

RETRY_SECONDS = 1.0
"""Between two looks for a session that can do it."""

PATIENCE_SECONDS = 300.0
"""For a session that can do it: after that the server has done so itself."""

REMEMBERED = 64
"""Sessions that wait, at most: as many as a process may have resting."""


class Orphans:
    """The sessions left behind by one target. `ended` is told of each that was ended."""

    def __init__(self, session: Callable[[], WatchedConnection | None], *, ended: Callable[[], None]) -> None:
        self._session, self._ended = session, ended
        self._left: deque[tuple[float, LeftSession]] = deque(maxlen=REMEMBERED)
        self._news = asyncio.Event()

    def add(self, left: LeftSession) -> None:
        """Have it ended as soon as possible."""
        self._left.append((asyncio.get_running_loop().time(), left))
        self._news.set()

    async def run(self) -> None:
        """End them until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            await self._news.wait()
            while self._left:
                since, left = self._left[0]
                session = self._session()
                if session is None and loop.time() - since < PATIENCE_SECONDS:
                    await asyncio.sleep(RETRY_SECONDS)
                    continue
                self._left.popleft()
                if session is not None and await self._end(session, left):
                    self._ended()
            self._news.clear()

    async def _end(self, session: WatchedConnection, left: LeftSession) -> bool:
        try:
            return await session.end_session(left, DEADLINE_SECONDS)
        except ConnectionEnded:
            return False
