"""The advice in the reader's own dialect: one pure function per format.

A new dialect is a function and a line in `FORMATS`. A function returns text, or, where the format is JSON, the object
to encode. (The full document, format `json`, is written by the web: it carries a wall-clock time.)
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from sidecar.core.recommendation import Recommendation


@dataclass(frozen=True, slots=True)
class Format:
    content_type: str
    render: Callable[[Recommendation], object]


def sqlalchemy(advice: Recommendation) -> dict[str, object]:
    """Keyword arguments for `create_async_engine`, and nothing else.

    The socket options are not among them: SQLAlchemy and asyncpg take none, they need a `connect` listener.
    """
    arguments: dict[str, object] = {
        "pool_recycle": advice.settings.pool_recycle,
        "pool_pre_ping": advice.settings.pool_pre_ping,
    }
    if advice.connect_args:
        arguments["connect_args"] = advice.connect_args
    return arguments


def env(advice: Recommendation) -> str:
    """`KEY=value` lines for a shell or an environment file. What is not advised is left out.

    POOL_RECYCLE and POOL_SELECTIVE_PRE_PING_AFTER are seconds, POOL_PRE_PING is true or false. TCP_KEEPIDLE,
    TCP_KEEPINTVL (seconds), TCP_KEEPCNT and TCP_USER_TIMEOUT (milliseconds) are named after the socket options they
    set: libpq has connection parameters for these, but reads none of them from the environment. CONNECT_ARGS is JSON,
    quoted for the shell.
    """
    keepalive = advice.socket.keepalive
    values = {
        "POOL_RECYCLE": advice.settings.pool_recycle,
        "POOL_PRE_PING": "true" if advice.settings.pool_pre_ping else "false",
        "POOL_SELECTIVE_PRE_PING_AFTER": advice.settings.selective_pre_ping_after,
        "TCP_KEEPIDLE": keepalive and keepalive.idle,
        "TCP_KEEPINTVL": keepalive and keepalive.interval,
        "TCP_KEEPCNT": keepalive and keepalive.count,
        "TCP_USER_TIMEOUT": advice.socket.user_timeout_ms,
        "CONNECT_ARGS": shlex.quote(json.dumps(advice.connect_args)) if advice.connect_args else None,
    }
    return "".join(f"{name}={value}\n" for name, value in values.items() if value is not None)


FORMATS: Mapping[str, Format] = {
    "sqlalchemy": Format("application/json", sqlalchemy),
    "env": Format("text/plain; charset=utf-8", env),
}
