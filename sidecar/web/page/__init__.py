"""The page for people: what a browser loads, as it lies beside this module, with nothing from elsewhere.

The browser is told to hold it to that: it may load and connect to nothing but what this server answers itself, and run
no script that came with the data.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path

from sidecar.web.answers import Answer

_TYPES: Mapping[str, str] = {
    "index.html": "text/html; charset=utf-8",
    "page.css": "text/css; charset=utf-8",
    "page.js": "text/javascript; charset=utf-8",
    "live.js": "text/javascript; charset=utf-8",
    "pictures.js": "text/javascript; charset=utf-8",
    "units.js": "text/javascript; charset=utf-8",
    "icon.svg": "image/svg+xml",
}
ASSETS: tuple[str, ...] = tuple(name for name in _TYPES if name != "index.html")

HEADERS: Mapping[str, str] = {
    "Content-Security-Policy": "; ".join(
        (
            "default-src 'none'",
            "script-src 'self'",
            "style-src 'self'",
            "img-src 'self'",
            "connect-src 'self'",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
            "require-trusted-types-for 'script'",
            "trusted-types 'none'",
        )
    ),
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
}
"""Of the page itself."""


@cache
def asset(name: str) -> Answer:
    """One file, read when first asked for."""
    return Answer.tagged(Path(__file__).with_name(name).read_bytes(), _TYPES[name])
