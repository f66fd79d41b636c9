"""The pages against the code: nothing is missing there, nothing stale, and nothing spoken of that does not exist."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from xml.etree import ElementTree

import pytest

from sidecar.core.advice.render import FORMATS
from sidecar.core.evidence import Status
from sidecar.core.idle.ladder import settled
from sidecar.settings.model import keys
from sidecar.web.routes import ADMIN, PUBLIC
from testing.drawing import draw
from testing.pages import PAGES, command_parsers
from testing.simulation import World

ROOT = Path(__file__).parent.parent
DOCS = sorted((ROOT / "docs").glob("*.md"))
TEXTS = (ROOT / "README.md", *DOCS)


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


pages = pytest.mark.parametrize("page", TEXTS, ids=name_of)


@pytest.mark.parametrize("name", PAGES)
def test_what_is_made_from_the_code_is_as_the_code_is(name: str) -> None:
    page = ROOT / "docs" / name
    assert page.read_text() == PAGES[name](), f"{name_of(page)} is stale: make docs"


def test_the_readme_leads_to_every_page() -> None:
    linked = set(re.findall(r"\]\(docs/([\w-]+\.md)", (ROOT / "README.md").read_text()))
    assert linked >= {page.name for page in DOCS}


@pages
def test_every_link_leads_somewhere(page: Path) -> None:
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if re.match(r"[a-z]+:", link):
            continue  # elsewhere
        file, _, anchor = link.partition("#")
        there = (page.parent / file).resolve() if file else page
        if not there.exists() or (anchor and anchor not in anchors(there)):
            broken.append(link)
    assert not broken


def anchors(page: Path) -> set[str]:
    """The headings, as GitHub makes anchors of them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pages
def test_variables_exist(page: Path) -> None:
    known = {"__".join(path).replace("*", "[A-Z0-9_-]+?").upper() for path, _ in keys()} | {"CONFIG", "TARGET_URL"}
    pattern = re.compile("|".join(f"SIDECAR_{name}" for name in known).replace("A-Z0-9_-", "A-Za-z0-9_-"))
    spoken_of = set(re.findall(r"\bSIDECAR_\w*\w", page.read_text()))
    assert not {name for name in spoken_of if not pattern.fullmatch(name) and name != "SIDECAR_"}


@pages
def test_keys_exist(page: Path) -> None:
    known = {".".join(path).replace("*", "default") for path, _ in keys()}
    sections = {key.partition(".")[0] for key in known}
    text = re.sub(r"\btargets\.[\w*]+", "targets.default", page.read_text())
    spoken_of = re.findall(r"`(\w+(?:\.\w+)+)`", text)
    for key in spoken_of:
        if key.partition(".")[0] in sections and not key.endswith((".md", ".py", ".db")):
            assert any(each == key or each.startswith(f"{key}.") for each in known), key


@pages
def test_metrics_exist(page: Path) -> None:
    known = set(re.findall(r"`(connection_health_\w+)`", PAGES["metrics.md"]()))
    histograms = {name for name in known if name.endswith("_seconds")}
    known |= {f"{name}_{part}" for name in histograms for part in ("bucket", "count", "sum")}
    spoken_of = set(re.findall(r"\bconnection_health_\w+", page.read_text()))
    assert spoken_of <= known


@pages
def test_routes_exist(page: Path) -> None:
    known = {route.path for route in (*PUBLIC, *ADMIN)}
    # A path of one word in backticks is a route, as is what follows an address of this machine.
    spoken_of = re.findall(r"`(?:GET |POST )?(/[a-z.]+)(?:\?[^`]*)?`|localhost:\d+(/[a-z.]+)", page.read_text())
    assert {path for pair in spoken_of for path in pair if path} <= known


@pages
def test_commands_and_flags_exist(page: Path) -> None:
    parsers = command_parsers()
    for command, rest in commands_in(page.read_text()):
        assert command in parsers, command
        known = {option for action in parsers[command]._actions for option in action.option_strings}
        assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", rest)) <= known, f"{command}{rest}"


def commands_in(text: str) -> Iterator[tuple[str, str]]:
    """What is written as to be typed: `sidecar …` in backticks, and on lines of a console."""
    for command, rest in re.findall(r"`sidecar ([a-z][a-z-]*)([^`]*)`", text):
        yield command, rest
    for line in re.findall(r"^\$ (.*)$", text, re.MULTILINE):
        for command, rest in re.findall(r"\bsidecar ([a-z][a-z-]*)([^|#;&]*)", line):
            yield command, rest


@pages
def test_formats_exist(page: Path) -> None:
    spoken_of = re.findall(r"format[= ]([a-z][a-z-]+)", page.read_text())
    named = {name for name in spoken_of if re.search(rf"(?:\?|--)format[= ]{name}", page.read_text())}
    assert named <= {"json", *FORMATS}


def test_every_bench_is_told_of_and_every_make_target_exists() -> None:
    targets = set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    told = re.findall(
        r"^\| `(?:make|python -m) (bench[\w.-]*)` \|", (ROOT / "docs" / "contributing.md").read_text(), re.M
    )
    assert {name for name in targets if name.startswith("bench")} == {name for name in told if "." not in name}
    for page in TEXTS:
        text = page.read_text()
        spoken_of = re.findall(r"^\$ make ([a-z][a-z-]*)|`make ([a-z][a-z-]*)", text, re.MULTILINE)
        assert {name for pair in spoken_of for name in pair if name} <= targets, name_of(page)
        for module in re.findall(r"python -m (bench\.\w+)", text):
            assert (ROOT / f"{module.replace('.', '/')}.py").exists(), name_of(page)


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_make_help_lists_every_target_whole() -> None:
    help_lines = subprocess.run(["make", "-s", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    listed = dict(re.findall(r"^make ([a-z-]+) +(\S.*)$", help_lines, re.MULTILINE))
    described = re.findall(r"^([a-z][a-z-]*):.*## (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert listed == dict(described)
    assert len(listed) > 10


def test_the_picture_of_a_measurement_shows_every_rest() -> None:
    """Drawn of a simulated run; the one in `docs/`, of a real one, closes in on the limit that its title tells."""
    path = World(limit=lambda draw, now: 20.0)
    run = path.run(lambda s: s.machine.status(s.now).status is Status.VERIFIED, give_up=1000.0)
    rests = [o for o in run.observations if o.outcome != "censored"]
    drawn = _rests_in(
        draw(
            [
                {
                    "at": datetime.fromtimestamp(o.at, UTC).isoformat(),
                    "idle_seconds": o.idle_seconds,
                    "outcome": o.outcome,
                    "arm": o.arm,
                }
                for o in rests
            ],
            20.0,
        )
    )
    assert len(drawn) == len(rests) > 10
    in_docs = _rests_in((ROOT / "docs" / "discovery.svg").read_text())
    survived = max(rest for outcome, rest in in_docs if outcome == "survived")
    died = min(rest for outcome, rest in in_docs if outcome == "died")
    assert survived < 20.0 < died
    assert settled(survived, died)


def _rests_in(svg: str) -> list[tuple[str, float]]:
    """Outcome and seconds of each rest in a picture of `bench.picture`."""
    titles = [each.text or "" for each in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}title")]
    found = (re.fullmatch(r"\w+: (\w+) after ([\d.]+) s", title) for title in titles)
    return [(match[1], float(match[2])) for match in found if match]


def test_the_checks_would_see_what_they_look_for() -> None:
    """They find something to check: a pattern that matches nothing proves nothing."""
    everything = "\n".join(page.read_text() for page in TEXTS)
    assert len(list(commands_in(everything))) > 15
    assert len(set(re.findall(r"\bconnection_health_\w+", everything))) > 15
    assert len(set(re.findall(r"\bSIDECAR_\w*\w", everything))) > 30
