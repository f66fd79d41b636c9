"""A program like any other: SQLAlchemy with its defaults, on the same path, to see what it would have met."""

from __future__ import annotations

import asyncio
import time

from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import create_async_engine

_PATIENCE_SECONDS = 5.0


async def query_after_rest(url: str, rest_seconds: float) -> str:
    """Query, rest, query again on the pooled connection; what the second one met, as the end of a sentence."""
    engine = create_async_engine(url)

    async def query() -> None:
        async with engine.connect() as connection:
            await connection.execute(text("SELECT 1"))

    try:
        await query()
        await asyncio.sleep(rest_seconds)
        began = time.monotonic()
        async with asyncio.timeout(_PATIENCE_SECONDS):
            await query()
    except TimeoutError:
        return f"hung: still no answer after {_PATIENCE_SECONDS:.0f} s, and nothing in it would have ended the wait"
    except (DBAPIError, OSError) as error:
        return f"failed: {str(error).splitlines()[0]}"
    else:
        return f"was answered after {1000 * (time.monotonic() - began):.0f} ms"
    finally:
        await engine.dispose()
