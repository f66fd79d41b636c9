"""Cleaning up whatever happens: a child process that notices when its parent is gone, kill -9 included."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

# Reads the id of the process to end, one a line, an empty one for none, until its standard input ends. That ends when
# the owner closes it or dies in any way. Plain sh, because Linux and macOS share no other way of being told that one's
# parent is gone.
_SCRIPT = """
while read -r line; do pid=$line; done
if [ -n "$pid" ]; then
    kill -"$1" "$pid"
    for _ in 1 2 3 4 5 6 7 8 9 10; do kill -0 "$pid" 2>/dev/null || break; sleep 0.2; done
fi
rm -rf "$0"
"""

_TIMEOUT_SECONDS = 30.0


class Guardian:
    """Removes `directory` at `close`, or when this process dies; then it also ends the process it watches, by `signal`.

    Its own session keeps it out of reach of Ctrl-C at the terminal.
    """

    def __init__(self, directory: Path, signal: str) -> None:
        reading, writing = os.pipe()
        self._lifeline = os.fdopen(writing, "wb", buffering=0)
        with os.fdopen(reading, "rb") as stdin:
            self._process = subprocess.Popen(  # noqa: S603 - a constant script
                ["/bin/sh", "-c", _SCRIPT, str(directory), signal],
                stdin=stdin,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd="/",
                start_new_session=True,
            )

    def watch(self, pid: int | None) -> None:
        """Which process to end with this one; None once it has ended by itself."""
        self._lifeline.write(b"\n" if pid is None else b"%d\n" % pid)

    def close(self) -> None:
        """Harmless when done already."""
        self._lifeline.close()
        self._process.wait(_TIMEOUT_SECONDS)
