"""The page for people: what a browser loads, as it lies beside this module, with nothing from elsewhere.

One module for it is made here, `words.js`: what it shares with the rest of the program in vocabulary and wording.

The browser is told to hold it to that: it may load and connect to nothing but what this server answers itself, and run
no script that came with the data.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from sidecar.core.advice.deaths_told import DEATHS_TOLD
from sidecar.core.evidence import Status
from sidecar.web.answers import Answer

_TYPES: Mapping[str, str] = {
    "index.html": "text/html; charset=utf-8",
    "page.css": "text/css; charset=utf-8",
    "page.js": "text/javascript; charset=utf-8",
    "live.js": "text/javascript; charset=utf-8",
    "pictures.js": "text/javascript; charset=utf-8",
    "units.js": "text/javascript; charset=utf-8",
    "words.js": "text/javascript; charset=utf-8",
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
    """One part, read or made when first asked for."""
    body = _words().encode() if name == "words.js" else Path(__file__).with_name(name).read_bytes()
    return Answer.tagged(body, _TYPES[name])


def _words() -> str:
    deaths = {death: {"label": told.label, "byItself": told.by_itself} for death, told in DEATHS_TOLD.items()}
    return (
        "// How far the evidence reaches, in order, and how each death is told: made from the tables of the program.\n"
        f"export const STATUSES = {json.dumps(list(Status))};\n"
        f"export const DEATHS = {json.dumps(deaths)};\n"
    )
