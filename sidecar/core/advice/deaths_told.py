"""How a death is told to people, by the place where they read of it. One table, so that a new kind is told everywhere.

Advice, renderings, verdict and terminal read it here; the page is handed its two columns (`sidecar.web.page`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sidecar.core.evidence import Death

HANGS = "hangs until the kernel gives up, about 15 minutes by default"
"""What a query does that nothing answers. The quarter of an hour is Linux's `net.ipv4.tcp_retries2` = 15: tcp(7)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeathTold:
    """One kind of death in words."""

    label: str  # at the marks of a picture
    in_sentence: str  # after "connections die"
    in_comment: str  # the same, shorter: at the head of a rendering
    by_itself: str  # under the heading "how they die"
    next_query: str  # after "the next query": what the application meets


DEATHS_TOLD: Mapping[Death, DeathTold] = {
    Death.SILENT: DeathTold(
        label="died silently",
        in_sentence="without any sign: neither FIN nor RST, the next query gets no answer at all",
        in_comment="silently: the next query gets no answer at all",
        by_itself="silently: nothing shows until a connection is used, and then no answer ever comes",
        next_query=HANGS,
    ),
    Death.RESET_ON_USE: DeathTold(
        label="died, reset on use",
        in_sentence="unseen; the next query is answered with a reset",
        in_comment="unseen: the next query is answered by a reset",
        by_itself="by reset on use: nothing shows until a connection is used, and then it is refused at once",
        next_query='fails with a disconnect ("connection was closed in the middle of operation")',
    ),
    Death.CLOSED: DeathTold(
        label="died, closed at rest",
        in_sentence="in plain sight: the connection is closed the moment the timer fires",
        in_comment="in plain sight: they are closed when the time is up",
        by_itself="closed at the limit, which whoever reads the connection notices",
        next_query='fails with a disconnect ("connection is closed")',
    ),
    Death.FATAL: DeathTold(
        label="died, told by the server",
        in_sentence="in plain sight: the server says why and closes",
        in_comment="in plain sight: the server says why and closes",
        by_itself="ended by the server, which says why and closes",
        next_query='fails with a disconnect ("connection is closed")',
    ),
}
