"""Two plain clients of one database: what `bench.failover` holds records against, in a process of its own.

    python -m bench.clients URL

Both connect, take a transaction id, which only a server that takes writes can give, and leave. The tight one begins
anew every 5 ms, or as soon as it is done: its turns are the truth. The other one does it once a second, as an
application's health check would. At the end of standard input their turns are printed as JSON: when each began and was
over (wall clock), and whether it succeeded.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time

import asyncpg

TIGHT_SECONDS = 0.005
POLL_SECONDS = 1.0
DEADLINE_SECONDS = 2.0

Turns = list[tuple[float, float, bool]]


async def call(url: str, every: float, turns: Turns) -> None:
    while True:
        began = time.time()
        try:
            async with asyncio.timeout(DEADLINE_SECONDS):
                connection = await asyncpg.connect(url)
                try:
                    await connection.fetchval("SELECT pg_current_xact_id()")
                finally:
                    connection.terminate()
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError):
            # The last is what asyncpg says when the server's farewell arrives between connecting and the first query.
            turns.append((began, time.time(), False))
        else:
            turns.append((began, time.time(), True))
        await asyncio.sleep(max(0.0, began + every - time.time()))


async def main(url: str) -> dict[str, Turns]:
    turns: dict[str, Turns] = {"truth": [], "poll": []}
    callers = [
        asyncio.create_task(call(url, TIGHT_SECONDS, turns["truth"])),
        asyncio.create_task(call(url, POLL_SECONDS, turns["poll"])),
    ]
    end = asyncio.create_task(asyncio.to_thread(sys.stdin.read))
    await asyncio.wait([end, *callers], return_when=asyncio.FIRST_COMPLETED)
    for caller in callers:
        if caller.done():
            caller.result()  # raises what it died of
        caller.cancel()
    await asyncio.gather(*callers, return_exceptions=True)
    return turns


if __name__ == "__main__":
    print(json.dumps(asyncio.run(main(sys.argv[1]))))
