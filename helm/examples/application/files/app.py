"""An example application: asks the sidecar beside it how to pool, and pools so.

It does not wait for the advice, and takes none that stands on little (`status` below `provisional`): until there is
some, its connections are young and tried before use. What runs for long asks again and takes the advice when it comes.

`app.py serve` answers requests, `app.py report` does one piece of work and ends. Environment: DATABASE_URL,
PASSWORD_FILE, HEALTH_URL (none where no sidecar is) and QUIT_URL (where the sidecar must be told to leave).
"""

import asyncio
import json
import os
import sys
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from urllib.error import URLError
from urllib.request import Request, urlopen

from aiohttp import web
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

# What to do without advice: young connections, each tried before it is used.
CAUTIOUS = {"pool_recycle": 60, "pool_pre_ping": True}
# Less is no advice to live with: the sidecar has only begun to look.
ENOUGH = ("provisional", "confirmed", "verified")
ASK_AGAIN_SECONDS = 60


def advice() -> dict | None:
    """Keyword arguments for create_async_engine; None while there is no advice that stands on enough, or nobody to ask.

    From one document, so that they are of the very advice whose status was looked at.
    """
    base = os.environ.get("HEALTH_URL")
    if not base:
        return None
    try:
        with urlopen(f"{base}/recommendation", timeout=2) as reply:
            found = json.load(reply)
        if found["status"] not in ENOUGH:
            return None
        settings = {name: found["settings"][name] for name in ("pool_recycle", "pool_pre_ping")}
        # Without the listener that would try the rested ones only, all are tried.
        settings["pool_pre_ping"] |= found["settings"]["selective_pre_ping_after"] is not None
        return settings | ({"connect_args": found["connect_args"]} if found["connect_args"] else {})
    except (URLError, TimeoutError, ValueError, LookupError, TypeError) as error:
        print(f"no advice from {base}: {error}", file=sys.stderr, flush=True)
        return None


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


class Pool:
    """The engine in use, and the settings it was made with."""

    def __init__(self, settings: dict) -> None:
        self.take(settings)

    def take(self, settings: dict) -> None:
        self.settings, self.database = settings, engine(settings)
        print(f"pooling with {settings}", flush=True)

    async def follow(self) -> None:
        """Take the advice when it comes, and when it changes: in the background, while requests are answered."""
        while True:
            await asyncio.sleep(ASK_AGAIN_SECONDS)
            settings = await asyncio.to_thread(advice)
            if settings is not None and settings != self.settings:
                former = self.database
                self.take(settings)
                await former.dispose()  # what is in use goes on, and is closed when it is given back


def application(pool: Pool) -> web.Application:
    async def index(request: web.Request) -> web.Response:
        return web.json_response({"pool": pool.settings, **await ask(pool.database)})

    async def following(_: web.Application) -> AsyncIterator[None]:
        task = asyncio.create_task(pool.follow())
        yield
        task.cancel()

    served = web.Application()
    served.router.add_get("/", index)
    served.cleanup_ctx.append(following)
    return served


def main() -> None:
    pool = Pool(advice() or CAUTIOUS)
    if sys.argv[1:] == ["serve"]:
        web.run_app(application(pool), port=int(os.environ.get("PORT", "8000")), print=None)
        return
    try:
        asyncio.run(report(pool.database))
    finally:
        # An ordinary container in a Job's pod keeps the Job from ending, unless told to leave.
        if url := os.environ.get("QUIT_URL"):
            with suppress(URLError):
                urlopen(Request(f"{url}/quitquitquit", method="POST"), timeout=2).close()


if __name__ == "__main__":
    main()
