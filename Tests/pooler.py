"""A PgBouncer of a test's own, in transaction mode: its clients take turns on few connections to the server."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlunsplit

import psycopg
import waiting
from databases import Database, Login
from psycopg.rows import dict_row

REPOSITORY = Path(__file__).resolve().parent.parent
# Debian has it where ordinary users do not look.
PROGRAM = shutil.which("pgbouncer", path=os.environ["PATH"] + ":/usr/sbin")


@dataclass
class Pooler:
    """Where it listens, and for which database."""

    port: int
    database: Database
    stack: contextlib.ExitStack

    def connect(self, login: Login, **options: Any) -> psycopg.Connection[dict[str, Any]]:
        """A client of it, not in autocommit mode. It prepares nothing, because its server connection changes."""
        netloc = f"{quote(login.name)}:{quote(login.password)}@127.0.0.1:{self.port}"
        url = urlunsplit(("postgres", netloc, "/" + quote(self.database.name), "", ""))
        options = {"row_factory": dict_row, "prepare_threshold": None, "connect_timeout": 5, **options}
        return self.stack.enter_context(contextlib.closing(psycopg.connect(url, **options)))


def _quoted(text: str) -> str:
    return '"' + text.replace('"', '""') + '"'


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def _write(folder: Path, database: Database, logins: list[Login], port: int, size: int) -> Path:
    info = database.superuser.info
    host = info.host if info.host.startswith("/") else info.hostaddr
    (folder / "users.txt").write_text("".join(f"{_quoted(x.name)} {_quoted(x.password)}\n" for x in logins))
    settings = folder / "pgbouncer.ini"
    settings.write_text(
        f"[databases]\n{database.name} = host={host} port={info.port} dbname={database.name}\n"
        f"[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\n"
        f"auth_type = scram-sha-256\nauth_file = {folder}/users.txt\nserver_tls_sslmode = prefer\n"
        f"pool_mode = transaction\ndefault_pool_size = {size}\nreserve_pool_size = 0\n"
    )
    return settings


@contextlib.contextmanager
def pooler(database: Database, logins: list[Login], size: int = 1) -> Iterator[Pooler]:
    """Starts it for these login roles, with so many connections to the server for each. It refuses to run as root."""
    assert PROGRAM, "pgbouncer is not installed: scripts/setup-packages tests"
    user = subprocess.run(
        [REPOSITORY / "scripts/as-database-user"], check=True, capture_output=True, text=True
    ).stdout.strip()
    account = pwd.getpwnam(user)
    identity: dict[str, Any] = {}
    if os.geteuid() == 0:
        identity = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="martlet-pooler-")))
        folder.chmod(0o755)
        for _ in range(5):  # another process may take the port between its choice and its use
            port = _free_port()
            settings = _write(folder, database, logins, port, size)
            with (folder / "log").open("wb") as log:
                process = subprocess.Popen(
                    [PROGRAM, settings], stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd="/", **identity
                )
            answering = waiting.until(lambda p=process, n=port: p.poll() is not None or _listens(n), "pgbouncer")
            if process.poll() is None and answering:
                break
        else:
            raise AssertionError("pgbouncer does not start:\n" + (folder / "log").read_text())
        stack.callback(_stop, process)
        clients = stack.enter_context(contextlib.ExitStack())
        yield Pooler(port, database, clients)


def _listens(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1):
            return True
    except OSError:
        return False


def _stop(process: subprocess.Popen[bytes]) -> None:
    """SIGTERM ends it at once, whatever is in progress."""
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
