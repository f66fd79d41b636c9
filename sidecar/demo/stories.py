"""The stories that can be told, by their names on the command line, which loads nothing else of the demo."""

from __future__ import annotations

from enum import StrEnum


class Story(StrEnum):
    """What happens to the connections."""

    SILENT = "silent"  # a firewall on the path forgets those that rest
    RESET = "reset"  # a NAT gateway on the path resets them
    CLOSE = "close"  # a proxy on the path closes them
    SERVER = "server"  # the server itself ends idle sessions
    FAILOVER = "failover"  # the database moves to its standby, and is later demoted
