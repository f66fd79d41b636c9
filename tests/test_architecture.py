"""The direction of imports, and that whoever turns one round is caught."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import sidecar

PACKAGE = Path(sidecar.__file__).parent
PROJECT = PACKAGE.parent
CORE = sorted((PACKAGE / "core").rglob("*.py"))

# What would make a decision depend on when, where or by luck it is taken, or let it act.
IMPURE = {
    *("_thread", "asyncio", "atexit", "concurrent", "contextvars", "ctypes", "datetime", "fcntl", "gc", "getpass"),
    *("http", "importlib", "io", "locale", "logging", "mmap", "multiprocessing", "os", "pathlib", "platform", "queue"),
    *("random", "resource", "sched", "secrets", "select", "selectors", "shutil", "signal", "socket", "socketserver"),
    *("sqlite3", "ssl", "subprocess", "sys", "syslog", "tempfile", "threading", "time", "timeit", "urllib", "uuid"),
    *("warnings", "weakref"),
}
ACTING = {"open", "print", "input", "exec", "eval", "__import__"}


def lint(directory: Path) -> subprocess.CompletedProcess[str]:
    """What `lint-imports` says of the package and the contracts found there."""
    command = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    return subprocess.run(
        [sys.executable, "-c", command, "--no-cache"], cwd=directory, capture_output=True, text=True, check=False
    )


def test_the_contracts_hold() -> None:
    linted = lint(PROJECT)
    assert linted.returncode == 0, linted.stdout + linted.stderr
    assert " 0 broken" in linted.stdout


@pytest.mark.parametrize(
    ("module", "line", "contract"),
    [
        ("core/advice/advice.py", "import time", "the core knows no clock"),
        ("core/idle/machine.py", "import asyncio", "the core knows no clock"),
        ("core/idle/knowledge.py", "import random", "the core knows no clock"),
        ("core/views.py", "from sidecar import logs", "imports point one way"),
        ("store/queries.py", "from sidecar.probes.postgresql import wire", "imports point one way"),
        ("web/routes.py", "import asyncpg", "asyncpg is known to the PostgreSQL driver"),
        ("probes/pool.py", "import asyncpg", "asyncpg is known to the PostgreSQL driver"),
        ("probes/driver.py", "from asyncpg import Connection", "asyncpg is known to the PostgreSQL driver"),
        ("probes/idle.py", "from sidecar.probes.postgresql import wire", "the probes know the driver"),
        ("probes/errors.py", "from sidecar.probes.postgresql.errors import ERRORS", "the probes know the driver"),
        ("cli.py", "from sidecar.probes.postgresql.connect import PostgresDriver", "the probes know the driver"),
    ],
)
def test_a_contract_fails_when_it_is_broken(module: str, line: str, contract: str, tmp_path: Path) -> None:
    copy = tmp_path / "sidecar"
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(PROJECT / "pyproject.toml", tmp_path)
    file = copy / module
    file.write_text(file.read_text() + f"\n{line}\n")
    linted = lint(tmp_path)
    assert linted.returncode == 1, linted.stdout + linted.stderr
    broken = [told for told in linted.stdout.splitlines() if told.endswith("BROKEN")]
    assert any(told.startswith(contract) for told in broken), linted.stdout


@pytest.mark.parametrize("module", CORE, ids=lambda module: module.stem)
def test_the_core_imports_nothing_but_what_is_pure(module: Path) -> None:
    tree = ast.parse(module.read_text())
    for name in imported(tree):
        top = name.partition(".")[0]
        if top == "sidecar":
            assert name.startswith("sidecar.core"), name
        else:
            assert top in sys.stdlib_module_names - IMPURE, name
    called = {node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}
    assert not called & ACTING


def imported(tree: ast.AST) -> Iterator[str]:
    """The full names of all modules imported anywhere in a module, inside functions too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide where a name comes from"
            assert node.module is not None
            yield node.module
