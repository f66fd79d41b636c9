"""An example application: asks the sidecar beside it how to pool, and pools so.

`app.py serve` answers requests, `app.py report` does one piece of work and ends. Environment: DATABASE_URL,
PASSWORD_FILE, HEALTH_URL (none where no sidecar is) and QUIT_URL (where the sidecar must be told to leave).
"""

import asyncio
import json
import os
import sys
import time
from contextlib import suppress
from pathlib import Path
from urllib.error import URLError
from urllib.request import Request, urlopen

from aiohttp import web
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

# What to do without advice: young connections, each tried before it is used.
CAUTIOUS = {"pool_recycle": 60, "pool_pre_ping": True}


def advice() -> dict:
    """Keyword arguments for create_async_engine. Nobody to ask is no reason not to start."""
    base = os.environ.get("HEALTH_URL")
    if not base:
        return CAUTIOUS
    try:
        with urlopen(f"{base}/recommendation?format=sqlalchemy", timeout=2) as reply:
            return json.load(reply)
    except (URLError, TimeoutError, ValueError) as error:
        print(f"no advice from {base}: {error}", file=sys.stderr, flush=True)
        return CAUTIOUS


def engine(settings: dict) -> AsyncEngine:
    connect_args = dict(settings.get("connect_args") or {})
    if file := os.environ.get("PASSWORD_FILE"):
        connect_args["password"] = lambda: Path(file).read_text().strip()  # asyncpg asks at every connect
    return create_async_engine(os.environ["DATABASE_URL"], **{**settings, "connect_args": connect_args})


async def ask(database: AsyncEngine) -> dict:
    began = time.perf_counter()
    async with database.connect() as connection:
        version = await connection.scalar(text("SHOW server_version"))
    return {"server_version": version, "milliseconds": round(1000 * (time.perf_counter() - began), 1)}


async def report(database: AsyncEngine) -> None:
    print(json.dumps(await ask(database)), flush=True)
    await database.dispose()


def serve(database: AsyncEngine, settings: dict) -> None:
    async def index(request: web.Request) -> web.Response:
        return web.json_response({"pool": settings, **await ask(database)})

    application = web.Application()
    application.router.add_get("/", index)
    web.run_app(application, port=int(os.environ.get("PORT", "8000")), print=None)


def main() -> None:
    settings = advice()
    print(f"pooling with {settings}", flush=True)
    database = engine(settings)
    if sys.argv[1:] == ["serve"]:
        serve(database, settings)
        return
    try:
        asyncio.run(report(database))
    finally:
        # An ordinary container in a Job's pod keeps the Job from ending, unless told to leave.
        if url := os.environ.get("QUIT_URL"):
            with suppress(URLError):
                urlopen(Request(f"{url}/quitquitquit", method="POST"), timeout=2).close()


if __name__ == "__main__":
    main()
