"""What the dialects share: how an advice introduces itself, and the figures several of them derive from it."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping

from sidecar.core.advice.deaths_told import DEATHS_TOLD
from sidecar.core.advice.recommendation import Recommendation

WIDTH = 100
"""Of comments, in characters."""


def preamble(advice: Recommendation) -> tuple[str, ...]:
    """What every rendering opens with: whose advice this is, what it stands on, and what it warns of."""
    return (
        f"For target {advice.target}, advised by connection-health-sidecar. Status: {advice.status}.",
        _evidence(advice),
        *_about_keepalive(advice),
        *(f"Warning: {warning.text}" for warning in advice.warnings),
    )


def _about_keepalive(advice: Recommendation) -> tuple[str, ...]:
    kept = advice.settings.pool_recycle_with_keepalive
    if kept is None or advice.socket.keepalive is None:
        return ()
    return (
        f"TCP keepalive holds this path, seen for {kept} s. Where it is not set as below, the age of a connection must"
        f" stay within {advice.settings.pool_recycle} s.",
    )


def _evidence(advice: Recommendation) -> str:
    limit = advice.idle_limit
    if limit is None:
        return "Nothing is proven yet: these settings are cautious and grow with the evidence."
    if limit.dead_by_seconds is None:
        return f"Connections survived {plain(limit.proven_seconds)} s of rest; no idle limit is known yet."
    told = f"Resting connections live {plain(limit.proven_seconds)} s and are dead by {plain(limit.dead_by_seconds)} s"
    if limit.death is not None:
        told += f", {DEATHS_TOLD[limit.death].in_comment}"
    return told + (". TCP keepalives do not restart this limit." if limit.keepalive_helps is False else ".")


def comment(mark: str, *paragraphs: str) -> str:
    """The paragraphs, wrapped, each line behind `mark`."""
    return "".join(f"{mark} {line}\n" for paragraph in paragraphs for line in wrapped(paragraph, len(mark) + 1))


def wrapped(paragraph: str, taken: int = 0) -> list[str]:
    # Some languages break lines, and some parsers stumble, where textwrap sees an ordinary character.
    printable = "".join(character if character.isprintable() else " " for character in paragraph)
    return textwrap.wrap(printable, WIDTH - taken, break_long_words=False, break_on_hyphens=False)


def plain(number: float) -> str:
    """Without an exponent, which not every reader of a setting understands, and without zeros that say nothing."""
    return f"{number:.6f}".rstrip("0").rstrip(".")


def check_after(advice: Recommendation) -> float | None:
    """After how many seconds of rest a connection is to be asked whether it lives: 0 always, None never."""
    return 0.0 if advice.settings.pool_pre_ping else advice.settings.selective_pre_ping_after


def swept(seconds: float) -> tuple[float, float]:
    """(limit, period) for a pool that looks at its connections only once a period: together `seconds`."""
    period = min(60, int(seconds) // 4) or seconds / 4
    return seconds - period, period


def ping_every(advice: Recommendation) -> int:
    """How often (seconds) a pool that pings its resting connections is to do so; it takes whole seconds."""
    keepalive, recycle = advice.socket.keepalive, advice.settings.pool_recycle
    return max(1, int(min(keepalive.idle, recycle) if keepalive else recycle // 2))


def user_timeout_seconds(advice: Recommendation) -> float | None:
    timeout = advice.socket.user_timeout_ms
    return None if timeout is None else timeout / 1000


def libpq(advice: Recommendation) -> Mapping[str, int]:
    """The socket options as libpq's connection parameters: seconds, and milliseconds for `tcp_user_timeout`.

    Source: PostgreSQL documentation, Parameter Key Words.
    """
    keepalive = advice.socket.keepalive
    options = {}
    if keepalive is not None:
        options = {
            "keepalives": 1,
            "keepalives_idle": keepalive.idle,
            "keepalives_interval": keepalive.interval,
            "keepalives_count": keepalive.count,
        }
    if advice.socket.user_timeout_ms is not None:
        options["tcp_user_timeout"] = advice.socket.user_timeout_ms
    return options
