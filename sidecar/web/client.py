"""Asks a running sidecar, one short request at a time.

The standard library's client is enough for that, and it matters that it is small: `sidecar wait` and `sidecar shutdown`
run as exec hooks inside the sidecar's own container, on its memory limit.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from urllib.parse import urlsplit

TARGET_NEEDED = "urn:connection-health:problem:target-needed"


class Unreachable(Exception):  # noqa: N818 - the state of the sidecar, not an error of this program
    """No answer came. `refused` tells that nobody listens there, as opposed to somebody who keeps silent."""

    def __init__(self, reason: str, *, refused: bool) -> None:
        super().__init__(reason)
        self.refused = refused


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    status: int
    text: str

    @property
    def ok(self) -> bool:
        return 200 <= self.status < 300

    @property
    def reason(self) -> str:
        """Why it is not ok, in the sidecar's own words where it has any."""
        try:
            return str(json.loads(self.text)["detail"])
        except (ValueError, LookupError, TypeError):
            return f"HTTP status {self.status}, which is not how a sidecar answers"

    @property
    def lacks_target(self) -> Sequence[str] | None:
        """The targets to choose from, where the request had to name one and did not."""
        try:
            problem = json.loads(self.text)
            return tuple(map(str, problem["available"])) if problem["type"] == TARGET_NEEDED else None
        except (ValueError, LookupError, TypeError):
            return None


def ask(base: str, path: str, *, method: str = "GET", timeout_seconds: float = 5.0) -> Reply:
    """The answer of the sidecar at `base` (`http://host:port`) to one request. Raises Unreachable.

    Proxies of the environment are not used: what is asked is next door.
    """
    place = urlsplit(base)
    connect = HTTPSConnection if place.scheme == "https" else HTTPConnection
    connection = connect(place.hostname or "", place.port, timeout=timeout_seconds)
    try:
        connection.request(method, place.path.rstrip("/") + path)
        response = connection.getresponse()
        return Reply(
            status=response.status,
            text=response.read().decode("utf-8", "replace"),
        )
    except TimeoutError:
        raise Unreachable(f"no answer from {base} within {timeout_seconds:.3g} s", refused=False) from None
    except (OSError, HTTPException) as error:
        what = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise Unreachable(f"no sidecar answers at {base}: {what}", refused=isinstance(error, OSError)) from error
    finally:
        connection.close()
