"""What is shipped: the wheel, installed in an environment that has never seen this directory, does what it promises."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

from sidecar.demo.server import HOST, free_port
from sidecar.remote import Unreachable, ask

PROJECT = Path(__file__).parent.parent

pytestmark = [pytest.mark.real_time, pytest.mark.timeout(400)]


def environment() -> dict[str, str]:
    """Ours, without what could lead Python back to this directory, and without settings for another sidecar."""
    return {
        name: value for name, value in os.environ.items() if not name.startswith(("SIDECAR_", "PYTHON", "VIRTUAL_ENV"))
    }


def run(*command: str | Path, cwd: Path) -> str:
    done = subprocess.run(command, cwd=cwd, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("dist")
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet")
    run(*pip, "wheel", "--no-deps", "--wheel-dir", directory, PROJECT, cwd=directory)
    [built] = directory.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of commands of an environment with the wheel, its demo and nothing else."""
    directory = tmp_path_factory.mktemp("environment")
    run(sys.executable, "-m", "venv", "--without-pip", directory / "venv", cwd=directory)
    python = directory / "venv/bin/python"
    pip = (sys.executable, "-m", "pip", "--python", python, "--disable-pip-version-check", "--quiet")
    run(*pip, "install", "--no-compile", f"{wheel}[demo]", cwd=directory)
    run(*pip, "check", cwd=directory)
    return directory / "venv/bin"


def test_it_holds_the_package_whole_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
        metadata = {name.partition(".dist-info/")[2]: name for name in archive.namelist() if ".dist-info/" in name}
        about = archive.read(metadata["METADATA"]).decode()
    listed = run("git", "-c", "safe.directory=*", "ls-files", "sidecar", cwd=PROJECT).splitlines()
    assert held >= set(listed), "tracked, but not in the wheel"
    assert {name for name in held - set(listed) if not (PROJECT / name).is_file()} == set()
    assert {name.split("/")[0] for name in held} == {"sidecar"}
    assert {"sidecar/py.typed", "sidecar/catalogue.toml"} <= held
    assert any(re.match(r"sidecar/store/migrations/.*\.py", name) for name in held)
    assert not [name for name in held if "test" in name or name.endswith(".pyc")]
    assert "licenses/LICENSE" in metadata
    assert "Requires-Python: >=3.11" in about


def test_its_demo_finds_the_limit(installed: Path, tmp_path: Path) -> None:
    told = run(installed / "sidecar", "demo", "--once", "--limit", "5", "--path", "close", cwd=tmp_path)
    assert re.search(r"^True limit: +5\.0 s\b", told, flags=re.MULTILINE), told
    assert re.search(r"^Advice: .*pool_recycle=\d", told, flags=re.MULTILINE), told


def test_its_service_answers_and_leaves(installed: Path, tmp_path: Path) -> None:
    port = free_port()
    settings = {
        "SIDECAR_TARGET_URL": f"postgresql+asyncpg://app@{HOST}:1/app",
        "SIDECAR_HTTP__HOST": HOST,
        "SIDECAR_HTTP__PORT": str(port),
        "SIDECAR_HTTP__ADMIN_PORT": "0",
    }
    with (tmp_path / "log").open("wb") as log:
        service = subprocess.Popen(
            [installed / "sidecar", "run"], cwd=tmp_path, env=environment() | settings, stdout=log, stderr=log
        )
    try:
        deadline = time.monotonic() + 60
        while True:
            assert service.poll() is None, (tmp_path / "log").read_text()
            try:
                assert ask(f"http://{HOST}:{port}", "/livez").ok
                break
            except Unreachable:
                assert time.monotonic() < deadline
                time.sleep(0.1)
        assert ask(f"http://{HOST}:{port}", "/").ok
        service.send_signal(signal.SIGTERM)
        assert service.wait(30) == 0, (tmp_path / "log").read_text()
    finally:
        service.kill()
        service.wait()
