"""One real measurement as a picture: which connection rested how long, and what became of it.

    python -m bench.picture [--limit SECONDS] [--path reset|silent|close] > docs/discovery.svg

Runs `sidecar measure` against an embedded PostgreSQL behind a path that forgets connections after that rest, and draws
the observations it printed. With the default limit it takes about a minute.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from typing import Any

from sidecar.demo.path import FaultyPath
from sidecar.demo.server import HOST, PostgresServer
from testing.drawing import draw


async def measure(limit: float, fault: str) -> list[dict[str, Any]]:
    """The observations of one real measurement until the limit is verified."""
    with PostgresServer() as server:
        async with FaultyPath(HOST, server.port, fault, idle_limit=limit) as path:  # type: ignore[arg-type]  # argparse chose
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "sidecar", "measure", server.url(port=path.port), "--json"),
                stdout=asyncio.subprocess.PIPE,
            )
            output, _ = await process.communicate()
    if process.returncode:
        raise SystemExit(process.returncode)
    observations: list[dict[str, Any]] = json.loads(output)["measurement"]["observations"]
    return observations


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--limit", type=float, default=20.0, help="the idle limit of the path, seconds (default 20)")
    options.add_argument("--path", choices=("reset", "silent", "close"), default="reset", help="default reset")
    chosen = options.parse_args()
    sys.stdout.write(draw(asyncio.run(measure(chosen.limit, chosen.path)), chosen.limit))
    return 0


if __name__ == "__main__":
    sys.exit(main())
