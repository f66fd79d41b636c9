"""A real PgBouncer, where there is one."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest

from sidecar.demo.server import HOST, PostgresServer, free_port


@contextmanager
def pgbouncer(server: PostgresServer, settings: str) -> Iterator[str]:
    """PgBouncer in front of a server, with an ini file that ends in its section; the URL without the database's name.

    Skips the test where PgBouncer is not installed.
    """
    program = shutil.which("pgbouncer", path=f"{os.environ['PATH']}:/usr/sbin")
    if program is None:
        pytest.skip("needs pgbouncer")
    account: dict[str, Any] = {}
    if os.geteuid() == 0:  # which it refuses to be
        nobody = pwd.getpwnam("nobody")
        account = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
    port = free_port()
    config = os.memfd_create("pgbouncer.ini")
    os.write(
        config,
        (
            f"{settings}\nlisten_addr = {HOST}\nlisten_port = {port}\nunix_socket_dir =\nauth_type = any\n"
            "admin_users = postgres\n[databases]\n"
            f"postgres = host={HOST} port={server.port} user=postgres\nsmall = host={HOST} port={server.port}"
            " user=postgres dbname=postgres pool_size=1\n"
        ).encode(),
    )
    process = subprocess.Popen(
        [program, "-q", f"/dev/fd/{config}"], pass_fds=[config], stderr=subprocess.DEVNULL, **account
    )
    os.close(config)
    url = f"postgresql://postgres@{HOST}:{port}/"
    try:
        while True:
            try:
                psycopg.connect(url + "pgbouncer").close()
                break
            except psycopg.OperationalError:
                assert process.poll() is None
                time.sleep(0.02)
        yield url
    finally:
        process.terminate()
        process.wait(10)
