"""A network path with a fault, inside one process: a TCP relay in front of a server, with an idle and a lifetime limit.

What it does at the limit is its `fault`:

- `silent`: nothing in either direction any more, not even the end of the connection. A firewall that forgot the flow.
- `reset`: nothing is to be noticed until the client sends its next byte, which is answered by RST. A NAT gateway.
- `close`: FIN to the client at that moment. A proxy.

Every byte, whichever way it goes, restarts the idle timer. The server is never told why its side ends.

Being a relay in user space, it has two traits no middlebox has. The kernel goes on acknowledging what the client sends,
so TCP_USER_TIMEOUT and TCP keepalive notice nothing of `silent`, and a keepalive does not restart the timer. And a
connection is accepted before the server is asked: if that refuses, the client sees RST instead of a refusal.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import math
import socket
import struct
from collections.abc import Callable
from typing import Literal, Self

from sidecar.demo.server import HOST, free_port

Fault = Literal["silent", "reset", "close"]

Limit = float | Callable[[int], float]
"""Seconds, or seconds by the number of the connection, counted from 0: several populations behind one address."""

_CHUNK_BYTES = 65536
_LINGER_ZERO = struct.pack("ii", 1, 0)  # makes closing a socket send RST


class FaultyPath:
    """The relay, listening on `port` of 127.0.0.1 while its context is entered.

    `fault`, `idle_limit` and `lifetime_limit` may be changed at any time and hold for connections accepted from then
    on, as with real middleboxes, where a changed setting seldom touches what is already open. Without limits (infinity)
    it is a plain relay.
    """

    def __init__(
        self,
        host: str,
        port: int,
        fault: Fault = "silent",
        *,
        idle_limit: Limit = math.inf,
        lifetime_limit: Limit = math.inf,
    ) -> None:
        self.fault = fault
        self.idle_limit = idle_limit
        self.lifetime_limit = lifetime_limit
        self.accepted = 0
        self.port = free_port()
        self._target = (host, port)
        self._listener: asyncio.Server | None = None
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._connections: dict[asyncio.Task[None], asyncio.StreamWriter] = {}

    @property
    def connections(self) -> int:
        """How many are open, dead ones whose client has not noticed among them."""
        return len(self._connections)

    def retarget(self, host: str, port: int) -> None:
        """Lead new connections to another server; `reset_all` as well if the old ones shall not stay where they are."""
        self._target = (host, port)

    def reset_all(self) -> None:
        """End every connection by RST, now."""
        for task, client in self._connections.items():
            _reset(client)
            task.cancel()

    def pause(self) -> None:
        """Let nothing pass in either direction, new connections and the ends of old ones included, until `resume`."""
        self._flowing.clear()

    def resume(self) -> None:
        """Heal what `pause` did: what was held back arrives now, as TCP would have sent it again."""
        self._flowing.set()

    def refuse(self) -> None:
        """Refuse new connections until `accept`; those open stay."""
        if self._listener is not None:
            self._listener.close()
            self._listener = None

    async def accept(self) -> None:
        """Accept connections, on the same port as ever."""
        if self._listener is None:
            self._listener = await asyncio.start_server(self._welcome, HOST, self.port)

    async def __aenter__(self) -> Self:
        while self._listener is None:
            try:
                await self.accept()
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
                self.port = free_port()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self.refuse()
        self.reset_all()
        if self._connections:
            await asyncio.wait(self._connections)

    def _welcome(self, reader: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._carry(self.accepted, reader, client), name=f"path-{self.port}-{self.accepted}")
        self.accepted += 1
        self._connections[task] = client
        task.add_done_callback(self._connections.pop)

    async def _carry(self, number: int, from_client: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        """One connection, from its acceptance to its end."""
        now = asyncio.get_running_loop().time
        fault, idle_limit = self.fault, _seconds(self.idle_limit, number)
        dies_at = now() + _seconds(self.lifetime_limit, number)
        async with contextlib.AsyncExitStack() as ends:
            ends.push_async_callback(_close, client)
            try:
                await self._flowing.wait()
                from_server, server = await asyncio.open_connection(*self._target)
                ends.push_async_callback(_close, server)
                try:
                    async with asyncio.timeout_at(min(now() + idle_limit, dies_at)) as limit:

                        def used() -> None:
                            if not limit.expired():
                                limit.reschedule(min(now() + idle_limit, dies_at))

                        async with asyncio.TaskGroup() as ways:
                            ways.create_task(self._forward(from_client, server, used))
                            ways.create_task(self._forward(from_server, client, used))
                except TimeoutError:
                    await self._fail(fault, from_client, client)
            except* OSError:  # the server refused, or one of the two reset the connection
                await self._flowing.wait()
                _reset(client)

    async def _forward(
        self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, used: Callable[[], None]
    ) -> None:
        while data := await source.read(_CHUNK_BYTES):
            await self._flowing.wait()
            used()
            sink.write(data)
            await sink.drain()
        await self._flowing.wait()
        sink.write_eof()

    async def _fail(self, fault: Fault, from_client: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        """What happens to a connection once its limit is reached. The caller closes both sides afterwards."""
        if fault == "silent":
            while await from_client.read(_CHUNK_BYTES):
                pass
        elif fault == "reset":
            await from_client.read(1)
            await self._flowing.wait()
            _reset(client)
        else:
            await self._flowing.wait()


def _seconds(limit: Limit, number: int) -> float:
    return limit(number) if callable(limit) else limit


def _reset(writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):  # closed already
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_ZERO)
    writer.transport.abort()


async def _close(writer: asyncio.StreamWriter) -> None:
    """FIN at once, waiting for nobody: what a peer that does not read would still have to get is dropped."""
    writer.transport.abort()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
