"""A database's URL: taken apart strictly, told without its password."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import unquote

from pydantic import GetCoreSchemaHandler, SecretStr
from pydantic_core import CoreSchema, core_schema

URL_FORM = "postgresql+asyncpg://user@host:5432/database"
"""What a URL looks like, for complaints."""

_URL = re.compile(
    r"(?P<scheme>[^:]+)://(?:(?P<user>[^:/?#@]*)(?::(?P<password>[^/?#]*))?@)?"
    r"(?P<host>\[[0-9A-Fa-f:.]+\]|[^:/?#@\[\]]*)(?::(?P<port>[^/?#@]*))?"
    r"(?:/(?P<database>[^/?#@]*))?(?:\?(?P<query>[^#]*))?"
)
"""Its parts, still percent-encoded. A password may hold `@` and `:` unencoded: the last `@` ends it."""

_TLS_PARAMETERS = {
    "sslmode": "mode",
    "ssl": "mode",
    "sslrootcert": "ca_file",
    "sslcert": "cert_file",
    "sslkey": "key_file",
}
"""The parameters understood, as libpq and asyncpg call them, and the key of the `tls` section that each sets."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DatabaseUrl:
    """A PostgreSQL URL, taken apart. Its text form hides the password."""

    scheme: str
    host: str
    port: int
    database: str
    user: str
    password: SecretStr | None = None
    tls: Mapping[str, str] = field(default_factory=dict)  # keys of the `tls` section that its parameters set

    @property
    def display(self) -> str:
        """`host:port/database`, fit for logs and metrics."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}/{self.database}"

    def __str__(self) -> str:
        return f"{self.scheme}://{self.user}{':***' if self.password else ''}@{self.display}"

    @classmethod
    def parse(cls, value: object) -> DatabaseUrl:
        """Raises ValueError with a complaint that repeats no part of the value."""
        if isinstance(value, cls):
            return value
        if not isinstance(value, str) or "://" not in value:
            raise ValueError(f"not a URL: takes {URL_FORM}")
        if re.search(r"\s", value):
            raise ValueError("holds white space (a line break at its end?): percent-encode it or take it out")
        if re.search(r"%(?![0-9A-Fa-f]{2})", value):
            raise ValueError("holds a % that begins no percent-encoded byte: write a literal % as %25")
        match = _URL.fullmatch(value)
        if match is None:
            raise ValueError(
                f"cannot be taken apart: takes {URL_FORM}; percent-encode @ : / ? # % in user and password"
            )
        parts = {name: unquote(text or "") for name, text in match.groupdict().items() if name != "query"}
        if parts["scheme"] not in ("postgresql+asyncpg", "postgresql", "postgres"):
            raise ValueError(f"unknown scheme: takes {URL_FORM}, postgresql:// or postgres://")
        tls = cls._tls_parameters(match["query"] or "")
        if "," in parts["host"] + parts["port"]:
            raise ValueError("names several hosts: takes one; make each host a target of its own")
        if parts["host"].startswith("/"):
            raise ValueError(f"names a unix socket, which no network path can cut off: takes {URL_FORM}")
        if not parts["host"] or not parts["user"]:
            raise ValueError(f"names no {'user' if parts['host'] else 'host'}: takes {URL_FORM}")
        port = parts["port"] or "5432"
        if not re.fullmatch(r"[0-9]{1,5}", port, re.ASCII) or not 1 <= int(port) <= 65535:
            raise ValueError("names no port that exists: takes 1 to 65535")
        return cls(
            scheme=parts["scheme"],
            host=parts["host"].strip("[]"),
            port=int(port),
            database=parts["database"] or parts["user"],  # as in libpq
            user=parts["user"],
            password=SecretStr(parts["password"]) if parts["password"] else None,
            tls=tls,
        )

    @staticmethod
    def _tls_parameters(query: str) -> dict[str, str]:
        found: dict[str, str] = {}
        for parameter in filter(None, query.split("&")):
            name, _, text = parameter.partition("=")
            if name == "host" and unquote(text).startswith("/"):
                raise ValueError(f"names a unix socket, which no network path can cut off: takes {URL_FORM}")
            if name == "application_name":
                raise ValueError("sets application_name: leave it out, every connection carries the sidecar's own")
            if name not in _TLS_PARAMETERS:
                raise ValueError(
                    f"has a parameter that is not supported: takes {', '.join(_TLS_PARAMETERS)} and no other"
                )
            if found.setdefault(_TLS_PARAMETERS[name], unquote(text)) != unquote(text):
                raise ValueError(f"contradicts itself: its parameters set tls.{_TLS_PARAMETERS[name]} twice")
        return found

    @classmethod
    def __get_pydantic_core_schema__(cls, source: object, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(
            cls.parse, serialization=core_schema.to_string_ser_schema(when_used="json")
        )
