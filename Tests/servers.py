"""Database servers of a test's own, which may be configured as badly as can be, stopped, killed and starved."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psycopg
from psycopg import sql

REPOSITORY = Path(__file__).resolve().parent.parent


class Server:
    """An embedded server. Call it with the words that scripts/server takes."""

    def __init__(self, directory: Path, *, inside: tuple[str, ...] = ()) -> None:
        self.directory = directory
        # The command that scripts run under: it may lead to another mount namespace.
        self._inside = inside

    def __call__(self, *words: str) -> str:
        command = [*self._inside, REPOSITORY / "scripts/server", self.directory, *words]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    @property
    def url(self) -> str:
        """For its administrator."""
        return self("url")

    @property
    def running(self) -> bool:
        command = [*self._inside, REPOSITORY / "scripts/server", self.directory, "status"]
        return subprocess.run(command, capture_output=True, check=False, timeout=120).returncode == 0

    def set(self, **settings: object) -> None:
        """Changes its settings for good. Most work at once; some (max_connections, …) after `restart()`."""
        with psycopg.connect(self.url, autocommit=True) as connection:
            for name, value in settings.items():
                connection.execute(
                    sql.SQL("alter system set {} = {}").format(sql.Identifier(name), sql.Literal(str(value)))
                )
            connection.execute("select pg_reload_conf()")

    def start_as_standby(self) -> None:
        """It waits for a primary, which there is none of, until `select pg_promote()`. It must be stopped before."""
        signal = self.directory / "data" / "standby.signal"
        signal.touch()
        os.chown(signal, pwd.getpwnam(database_user()).pw_uid, -1)
        self("start")

    def restart(self) -> None:
        self("stop", "fast")
        self("start")


def _said_by(script: str) -> str:
    done = subprocess.run([REPOSITORY / "scripts" / script], check=True, capture_output=True, text=True)
    return done.stdout.strip()


def database_user() -> str:
    """The user that embedded servers run as, who is not root."""
    return _said_by("as-database-user")


def embedded_version() -> str:
    """The version of PostgreSQL that this run tests, as scripts/server takes it."""
    return "16" if os.environ.get("MARTLET_PG_VERSION") == "16" else "18"


def state_folder() -> Path:
    """Where whatever this clone runs has its folders."""
    return Path(_said_by("state"))


@contextlib.contextmanager
def temporary_server(name: str, *, inside: tuple[str, ...] = (), below: Path | None = None) -> Iterator[Server]:
    """A server for as long as the block runs."""
    # Beside the other throw-away servers, where a killed run's remains are found and removed.
    server = Server((below or state_folder()) / f"run.{os.getpid()}.{name}", inside=inside)
    server("start", embedded_version())
    try:
        yield server
    finally:
        server("stop", "immediate")
        shutil.rmtree(server.directory, ignore_errors=True)
