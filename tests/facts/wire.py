"""A relay in front of PostgreSQL that notes what a client sends, flight by flight."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

_SSL_REQUEST, _GSS_REQUEST = 80877103, 80877104


class Recorder:
    """Listens on `port`. Meant for one busy connection at a time: the flights of several would mix.

    `flights` holds one entry for each time the client spoke after having been answered: a network round trip. An entry
    is the types of the messages sent, in order: `Q` simple query, `P` Parse, `D` Describe, `B` Bind, `E` Execute,
    `H` Flush, `S` Sync, `X` Terminate. What comes before authentication has no type and is left out.
    """

    def __init__(self) -> None:
        self.port = 0
        self.accepted = 0
        self.flights: list[str] = []
        self.messages: list[tuple[str, bytes]] = []  # all messages with their bodies
        self.speaker: int | None = None  # the number of the connection that spoke last, in order of acceptance
        self._answered = True

    def take(self) -> list[str]:
        """The flights since the last call."""
        taken, self.flights = self.flights, []
        self.messages.clear()
        return taken

    async def carry(
        self, number: int, host: str, port: int, reader: asyncio.StreamReader, client: asyncio.StreamWriter
    ) -> None:
        from_server, server = await asyncio.open_connection(host, port)
        ways = (
            asyncio.create_task(self._from_client(number, reader, server)),
            asyncio.create_task(self._from_server(from_server, client)),
        )
        try:
            # The end of one way is the end of both: nobody here closes a connection by halves.
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            for writer in (server, client):
                writer.close()
                with suppress(OSError):
                    await writer.wait_closed()

    async def _from_client(self, number: int, reader: asyncio.StreamReader, server: asyncio.StreamWriter) -> None:
        typed = False
        while True:
            kind = (await reader.readexactly(1)) if typed else b""
            length = await reader.readexactly(4)
            body = await reader.readexactly(int.from_bytes(length) - 4)
            if typed:
                self._sent(number, kind.decode("ascii"), body)
            else:
                typed = int.from_bytes(body[:4]) not in (_SSL_REQUEST, _GSS_REQUEST)
            server.write(kind + length + body)

    async def _from_server(self, from_server: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        while data := await from_server.read(65536):
            self._answered = True
            client.write(data)

    def _sent(self, number: int, kind: str, body: bytes) -> None:
        if self._answered:
            self.flights.append("")
            self._answered = False
        self.flights[-1] += kind
        self.messages.append((kind, body))
        self.speaker = number


@asynccontextmanager
async def recording(host: str, port: int) -> AsyncIterator[Recorder]:
    """A recorder in front of that server."""
    recorder = Recorder()
    tasks: set[asyncio.Task[None]] = set()

    def welcome(reader: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        tasks.add(asyncio.create_task(recorder.carry(recorder.accepted, host, port, reader, client)))
        recorder.accepted += 1

    server = await asyncio.start_server(welcome, "127.0.0.1", 0)
    recorder.port = server.sockets[0].getsockname()[1]
    try:
        yield recorder
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
