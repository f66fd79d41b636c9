"""Log records as one JSON object a line, or as text for people. Keys given in `extra` are part of the record."""

from __future__ import annotations

import logging
import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import orjson

if TYPE_CHECKING:
    from sidecar.settings.model import LogSettings

_STANDARD = set(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


def configure(settings: LogSettings) -> None:
    """Send all records to standard error, in the form asked for."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Json() if settings.format == "json" else Console())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    # Libraries speak up only when something is wrong; their own chatter (SQL, requests) may carry data.
    root.setLevel(logging.WARNING)
    logging.getLogger("sidecar").setLevel(settings.level.upper())


def _keys(record: logging.LogRecord) -> dict[str, object]:
    return {name: value for name, value in vars(record).items() if name not in _STANDARD}


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        entry: dict[str, object] = {
            "at": datetime.fromtimestamp(record.created, UTC),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_keys(record),
        }
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return orjson.dumps(entry, default=str, option=orjson.OPT_UTC_Z).decode()


class Console(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        at = datetime.fromtimestamp(record.created).astimezone()
        keys = "".join(f" {name}={value}" for name, value in _keys(record).items())
        text = f"{at:%H:%M:%S} {record.levelname.lower():7} {record.getMessage()}{keys}"
        return f"{text}\n{self.formatException(record.exc_info)}" if record.exc_info else text
