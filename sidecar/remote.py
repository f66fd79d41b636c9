"""The commands that ask a running sidecar, one short request at a time, over the HTTP interface that anyone may ask.

The standard library's client is enough for that, and it matters that it is small: `sidecar wait` and `sidecar shutdown`
run as exec hooks inside the sidecar's own container, on its memory limit. For the same reason that client is loaded
when something is asked, and the settings only to learn from them where the sidecar beside us listens.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlencode, urlsplit

from sidecar.core.evidence import MILESTONES

if TYPE_CHECKING:
    from sidecar.settings.model import HttpSettings

TARGET_NEEDED = "urn:connection-health:problem:target-needed"
"""The type of the problem with which the sidecar answers where a target has to be named."""

POLL_SECONDS = 0.2
"""Between two questions, while waiting for the answer to change."""

_STATES = {"ready": "/readyz", "started": "/startupz"}
"""What can be waited for beside the milestones, and which path answers 200 once it holds."""

GOALS: tuple[str, ...] = (*_STATES, *(status.value for status in MILESTONES))
"""Everything that can be waited for."""


class Unanswered(Exception):  # noqa: N818 - the state of the sidecar, not an error of this program
    """What was asked for did not come, and why, in one line."""


class TargetNeeded(Exception):  # noqa: N818 - likewise
    """The request has to name one of these targets."""

    def __init__(self, available: Sequence[str]) -> None:
        super().__init__(*available)
        self.available = available


class Unreachable(Unanswered):
    """No answer came. `refused` tells that nobody listens there, as opposed to somebody who keeps silent."""

    def __init__(self, reason: str, *, refused: bool) -> None:
        super().__init__(reason)
        self.refused = refused


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What a sidecar answered."""

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
    from http.client import HTTPConnection, HTTPException, HTTPSConnection

    place = urlsplit(base)
    connect = HTTPSConnection if place.scheme == "https" else HTTPConnection
    connection = connect(place.hostname or "", place.port, timeout=timeout_seconds)
    try:
        connection.request(method, place.path.rstrip("/") + path)
        response = connection.getresponse()
        return Reply(status=response.status, text=response.read().decode("utf-8", "replace"))
    except TimeoutError:
        raise Unreachable(f"no answer from {base} within {timeout_seconds:.3g} s", refused=False) from None
    except (OSError, HTTPException) as error:
        what = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise Unreachable(f"no sidecar answers at {base}: {what}", refused=isinstance(error, OSError)) from error
    finally:
        connection.close()


def recommendation(base: str, *, target: str | None, dialect: str | None) -> str:
    """The advice as the sidecar serves it. Raises Unanswered, or TargetNeeded."""
    given = {"target": target, "format": dialect}
    query = urlencode({name: value for name, value in given.items() if value is not None})
    reply = ask(base, "/recommendation" + (query and f"?{query}"))
    if reply.lacks_target is not None:
        raise TargetNeeded(reply.lacks_target)
    if not reply.ok:
        raise Unanswered(reply.reason)
    return reply.text


def wait(base: str, goal: str, timeout_seconds: float) -> None:
    """Return once the sidecar has got as far as `goal`, one of `GOALS`. Raises Unanswered when it has not in time."""
    deadline = time.monotonic() + timeout_seconds
    while (reason := _why_not(goal, base, deadline)) is not None:
        if time.monotonic() + POLL_SECONDS > deadline:
            raise Unanswered(f"not {goal} within {timeout_seconds:g} s: {reason}")
        time.sleep(POLL_SECONDS)


def _why_not(goal: str, base: str, deadline: float) -> str | None:
    """None when the sidecar has got as far as `goal`."""
    path = _STATES.get(goal, "/targets")
    try:
        reply = ask(base, path, timeout_seconds=min(5.0, max(POLL_SECONDS, deadline - time.monotonic())))
    except Unreachable as unreachable:
        return str(unreachable)
    if not reply.ok:
        return reply.reason
    if goal in _STATES:
        return None
    enough = MILESTONES[MILESTONES.index(goal) :]
    try:
        statuses = {target["name"]: target["status"] for target in json.loads(reply.text)["targets"]}
    except (ValueError, LookupError, TypeError):
        return f"what answers at {base} is no sidecar"
    return "; ".join(f"{name} is {status}" for name, status in statuses.items() if status not in enough) or None


def shutdown(admin: str, timeout_seconds: float) -> None:
    """Have the sidecar leave, and return once it has. Raises Unanswered when it does not."""
    deadline = time.monotonic() + timeout_seconds
    reply = ask(admin, "/quitquitquit", method="POST")
    if not reply.ok:
        raise Unanswered(reply.reason)
    while time.monotonic() < deadline:
        try:
            ask(admin, "/", timeout_seconds=1)
        except Unreachable as unreachable:
            if unreachable.refused:
                return
        time.sleep(POLL_SECONDS)
    raise Unanswered(f"the sidecar at {admin} was told to leave, but is still there after {timeout_seconds:g} s")


def pause(admin: str, seconds: float) -> str:
    """Have the sidecar give every connection back for so long; until when, in words. Raises Unanswered."""
    reply = ask(admin, f"/pause?for={seconds:g}s", method="POST")
    try:
        until = str(json.loads(reply.text)["until"]) if reply.ok else None
    except (ValueError, LookupError, TypeError):
        until = None
    if until is None:
        raise Unanswered(reply.reason)
    return f"paused until {until}: no connection is held"


def resume(admin: str) -> None:
    """Have the sidecar take up again. Raises Unanswered."""
    reply = ask(admin, "/resume", method="POST")
    if not reply.ok:
        raise Unanswered(reply.reason)


def public_address(environ: Mapping[str, str]) -> str:
    """Where a sidecar with this environment answers, from beside it. Raises ConfigurationError."""
    http = _http(environ)
    # Who listens on every address listens on the loopback one too.
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(http.host, http.host)  # noqa: S104 - compared, not bound
    return _address(host, "port", http.port)


def admin_address(environ: Mapping[str, str]) -> str:
    """Where it is told to leave. Raises ConfigurationError."""
    return _address("127.0.0.1", "admin_port", _http(environ).admin_port)


def _http(environ: Mapping[str, str]) -> HttpSettings:
    from sidecar.settings.loading import load_http

    return load_http(environ)


def _address(host: str, key: str, port: int) -> str:
    if port == 0:
        from sidecar.settings.loading import ConfigurationError

        raise ConfigurationError((f"http.{key}: 0 takes any free port, so nobody knows which: say --from",))
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
