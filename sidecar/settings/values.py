"""What a setting may be: durations, whole numbers, shares, paths of files and names.

Each kind is a mark on a field. It knows what it `takes` in words, which complaints and docs/settings.md repeat, and how
to read a value and, where it matters, to write it. No complaint repeats a value, since a secret may stand in the wrong
place.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Annotated

from pydantic import BeforeValidator, GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

_UNIT_SECONDS = {"ms": Decimal("0.001"), "s": Decimal(1), "m": Decimal(60), "h": Decimal(3600), "d": Decimal(86400)}
"""Seconds of each unit that a duration may be written in."""


def parse_duration(text: str) -> float:
    """Seconds meant by `350s`, `10m`, `8h`, `1d`, `100ms` or a bare number of seconds. Raises ValueError."""
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?) ?(ms|s|m|h|d)?", text, re.ASCII)
    if match is None:
        raise ValueError("not a duration: takes 350s, 10m, 8h, 100ms, 1d or a number of seconds")
    return float(Decimal(match[1]) * _UNIT_SECONDS[match[2] or "s"])


def format_duration(seconds: float) -> str:
    """The shortest way of writing it that `parse_duration` reads back to exactly the same number."""
    amount = Decimal(repr(seconds))
    for unit in ("d", "h", "m", "s", "ms"):
        number = amount / _UNIT_SECONDS[unit]
        if number == number.to_integral_value() and (amount or unit == "s"):
            return f"{number:.0f}{unit}"
    return f"{amount:f}s"


@dataclass(frozen=True)
class Duration:
    """Marks a field as a duration between two others, kept in seconds. `also` are values that mean something else."""

    least: str
    most: str
    also: tuple[str | int, ...] = ()

    @property
    def takes(self) -> str:
        return f"{self.least} to {self.most}" + "".join(f", or {value}" for value in self.also)

    def read(self, value: object) -> object:
        for other in self.also:
            if value in (other, str(other)):
                return other
        try:
            seconds = parse_duration(str(value))
        except ValueError:
            raise ValueError(f"not a duration: takes {self.takes}") from None
        if not parse_duration(self.least) <= seconds <= parse_duration(self.most):
            raise ValueError(f"out of range: takes {self.takes}")
        return seconds

    def write(self, value: object) -> object:
        return format_duration(value) if isinstance(value, float) and value not in self.also else value

    def __get_pydantic_core_schema__(self, source: object, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_before_validator_function(
            self.read,
            handler(source),
            serialization=core_schema.plain_serializer_function_ser_schema(self.write, when_used="json"),
        )


@dataclass(frozen=True)
class Whole:
    """Marks a field as a whole number between two others."""

    least: int
    most: int

    @property
    def takes(self) -> str:
        return f"a whole number from {self.least} to {self.most}"

    def read(self, value: object) -> int:
        if not re.fullmatch(r"-?[0-9]{1,9}", str(value), re.ASCII):
            raise ValueError(f"not a whole number: takes {self.takes}")
        number = int(str(value))
        if not self.least <= number <= self.most:
            raise ValueError(f"out of range: takes {self.takes}")
        return number

    def __get_pydantic_core_schema__(self, source: object, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_before_validator_function(self.read, handler(source))


@dataclass(frozen=True)
class Share:
    """Marks a field as a part of a whole."""

    takes = "a number above 0 and at most 1"

    def read(self, value: object) -> float:
        try:
            share = float(str(value))
        except ValueError:
            share = 0.0
        if not 0 < share <= 1:
            raise ValueError(f"not a share: takes {self.takes}")
        return share

    def __get_pydantic_core_schema__(self, source: object, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_before_validator_function(self.read, handler(source))


def _nonempty(value: object) -> object:
    if value in ("", Path()):
        raise ValueError("empty: takes the path of a file")
    return value


def _target_name(value: object) -> object:
    # Names become metric labels, path segments of queries and parts of environment variables.
    if not isinstance(value, str) or not re.fullmatch(r"[a-z0-9][a-z0-9_-]{0,62}", value, re.ASCII):
        raise ValueError("bad target name: takes 1 to 63 of a-z, 0-9, - and _, the first a letter or a digit")
    return value


FilePath = Annotated[Path, BeforeValidator(_nonempty)]
TargetName = Annotated[str, BeforeValidator(_target_name)]
