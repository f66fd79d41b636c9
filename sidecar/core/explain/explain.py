"""From an error message or a traceback to the known error at its root.

Each line is held against every known error. What lines of a traceback only quote (the source under `File "…"`) is no
error. Of all that is recognised the deepest wins (`Depth`), then what was said first: consequences come later.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from textwrap import fill

from sidecar.core.explain.known_errors import KNOWN_ERRORS, Helps, KnownError

_WIDTH = 92
"""Of what is written to a terminal, in characters."""

_QUOTED_AT_MOST = 240
"""Characters quoted of the line that was recognised."""

_SECRETS = (
    # The last @ ends it, and too much is better than too little: passwords hold what URLs should not.
    (re.compile(r"(\b[a-z][\w+.-]*://[^\s:/@'\"]*):[^\s'\"]*@", re.IGNORECASE), r"\1:***@"),
    (
        re.compile(r"(\b(?:pg|ssl)?passw(?:or)?d['\"]?\s*[=:]\s*)('[^']*'|\"[^\"]*\"|[^\s,;&)}\]]+)", re.IGNORECASE),
        r"\1***",
    ),
)
_PREFIX = re.compile(r"^[\w.-]*\s*\| ?(?:\s*\| ?)?")  # of a container's log, of an exception group
_FRAME = re.compile(r'^(\s*)File ".*", line \d+')
_TRACEBACK = "Traceback (most recent call last)"
_CHAINED = ("The above exception was the direct cause", "During handling of the above exception")

_HELP_TOLD = {
    Helps.PRE_PING: "Pre-ping helps, recycling does not.",
    Helps.RECYCLE: "Recycling helps, pre-ping does not.",
    Helps.BOTH: "Pre-ping and recycling both help.",
    Helps.NEITHER: "Neither pre-ping nor recycling helps.",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    error: KnownError
    line_number: int  # of the text, from 1
    line: str  # as it stands there, shortened, secrets masked
    others: tuple[KnownError, ...]  # what else was recognised, deepest first


def root_cause(text: str) -> Explanation | None:
    """The known error at the root of what the text tells, or None where nothing is recognised."""
    found: list[tuple[int, int, int, str]] = []
    for number, line, frames in _messages(text):
        for index, error in enumerate(KNOWN_ERRORS):
            at = _position(error, line, frames)
            if at is not None:
                found.append((error.depth, number, index, _quote(line, at)))
    if not found:
        return None
    found.sort()
    _, number, index, line = found[0]
    others = dict.fromkeys(entry[2] for entry in found)
    return Explanation(
        error=KNOWN_ERRORS[index],
        line_number=number,
        line=line,
        others=tuple(KNOWN_ERRORS[other] for other in others if other != index),
    )


def as_text(explanation: Explanation) -> str:
    """For people at a terminal."""
    error = explanation.error
    parts = [
        error.name,
        _paragraph(f"Recognised in line {explanation.line_number}: {explanation.line}"),
        _paragraph(f"Root cause: {error.cause}"),
        _paragraph(f"{_HELP_TOLD[error.helps]} {error.because}"),
        "What to do:\n" + "\n".join(_paragraph(remedy, "- ") for remedy in error.remedies),
    ]
    if explanation.others:
        parts.append("Also in this text, less deep or later:\n" + "\n".join(f"- {e.name}" for e in explanation.others))
    return "\n\n".join(parts) + "\n"


def as_markdown() -> str:
    """All known errors: docs/errors.md."""
    sections = [
        f"## {error.name}\n\n{fill(error.cause, 120)}\n\n**{_HELP_TOLD[error.helps]}**\n{fill(error.because, 120)}\n\n"
        + "".join(_paragraph(remedy, "- ", 120) + "\n" for remedy in error.remedies)
        for error in KNOWN_ERRORS
    ]
    rows = "".join(f"| {error.name} | {error.helps} |\n" for error in KNOWN_ERRORS)
    return (
        "# What an error means\n\n"
        "`sidecar explain TEXT` (`-` reads standard input) finds these in a message or a traceback, of several the\n"
        "root cause. Made of the same data (`sidecar/core/explain/known_errors.py`) by\n"
        "`UPDATE_GOLDEN=1 pytest tests/test_explain.py`.\n\n"
        f"| error | of pre-ping and recycling helps |\n| --- | --- |\n{rows}\n" + "\n".join(sections)
    )


def mask(text: str) -> str:
    """The text without passwords, as they stand in URLs and connection strings."""
    for pattern, replacement in _SECRETS:
        text = pattern.sub(replacement, text)
    return text


def _messages(text: str) -> Iterator[tuple[int, str, str]]:
    """The lines that say something: (number, line, the frames of the traceback, or chain of them, that it ends)."""
    lines = text.splitlines()
    if len(lines) == 1:
        lines = lines[0].replace("\\n", "\n").splitlines()  # from a log in JSON
    frames: list[str] = []
    quoted_beyond: int | None = None
    chained = False
    for number, raw in enumerate(lines, 1):
        line = _PREFIX.sub("", raw)
        if _TRACEBACK in line:
            frames, quoted_beyond = frames if chained else [], None
            chained = False
        elif frame := _FRAME.match(line):
            frames.append(line)
            quoted_beyond = len(frame[1])
        elif quoted_beyond is None or len(line) - len(line.lstrip()) <= quoted_beyond:
            quoted_beyond = None
            chained = chained or line.startswith(_CHAINED)
            yield number, line.strip(), "\n".join(frames)


def _position(error: KnownError, line: str, frames: str) -> int | None:
    """Where in the line the error shows."""
    for pattern, context in _signs(error):
        if (match := pattern.search(line)) and (context is None or context.search(frames)):
            return match.start()
    return None


@cache
def _signs(error: KnownError) -> tuple[tuple[re.Pattern[str], re.Pattern[str] | None], ...]:
    signs = [(sign, None) if isinstance(sign, str) else sign for sign in error.signs]
    signs += [(_sqlstate(code), None) for code in error.sqlstates]
    return tuple(
        (re.compile(line, re.IGNORECASE), None if frames is None else re.compile(frames)) for line, frames in signs
    )


def _sqlstate(code: str) -> str:
    """A code with a letter stands for itself. One of digits could be any number, so something must call it a code."""
    if not code.isdigit():
        return rf"\b{code}\b"
    return (
        rf"^{code}$|[(\[]{code}[)\]]"
        rf"|\b(?:sqlstate|pgcode|code)\W{{1,4}}{code}\b"
        rf"|\b(?:error|fatal|warning)\W{{1,4}}{code}:"
    )


def _quote(line: str, at: int) -> str:
    # Masked as a whole: a part of it could begin in the middle of a password.
    masked = mask(line)
    if len(masked) <= _QUOTED_AT_MOST:
        return masked
    start = max(0, min(at - _QUOTED_AT_MOST // 2, len(masked) - _QUOTED_AT_MOST))
    return ("…" if start else "") + masked[start : start + _QUOTED_AT_MOST] + "…"


def _paragraph(text: str, bullet: str = "", width: int = _WIDTH) -> str:
    return fill(
        text,
        width,
        initial_indent=bullet,
        subsequent_indent=" " * len(bullet),
        break_long_words=False,
        break_on_hyphens=False,
    )
