"""What the tests of installing need of a server beyond a connection: its programs, and its folder of extensions."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import psycopg

REPOSITORY = Path(__file__).resolve().parent.parent


@dataclass
class Programs:
    """psql and pg_dump of the server's version where the server is on this machine, else those on PATH."""

    folder: Path | None

    def path(self, program: str) -> str:
        if self.folder and (self.folder / program).exists():
            return str(self.folder / program)
        found = shutil.which(program)
        assert found, f"{program} is neither beside the server nor on PATH"
        return found

    def psql(self, url: str, *arguments: object, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
        """Runs psql, which stops at the first error."""
        command = [self.path("psql"), "-X", "-q", "-v", "ON_ERROR_STOP=1", "-v", "VERBOSITY=verbose", "-d", url]
        return subprocess.run(
            [*command, *map(str, arguments)], input=stdin, capture_output=True, text=True, timeout=120
        )

    def dump(self, url: str, *arguments: str) -> str:
        """What pg_dump says, without what differs between two dumps of one database."""
        text = subprocess.run(
            [self.path("pg_dump"), *arguments, "-d", url], capture_output=True, text=True, timeout=120, check=True
        ).stdout
        return re.sub(r"^\\(un)?restrict .*\n", "", text, flags=re.MULTILINE)


def installation(url: str) -> dict[str, Path]:
    """The server's folders, by pg_config's names."""
    with psycopg.connect(url) as connection:
        return {name: Path(value) for name, value in connection.execute("select name, setting from pg_config")}


def programs_of(url: str) -> Programs:
    folder = installation(url)["BINDIR"]
    return Programs(folder if folder.is_dir() else None)


def can_install(url: str) -> bool:
    """Whether extensions can be installed into this server: it is here, and its folder can be written."""
    folders = installation(url)
    shared = folders["SHAREDIR"] / "extension"
    return (folders["BINDIR"] / "pg_config").exists() and folders["PGXS"].exists() and os.access(shared, os.W_OK)


@dataclass
class Packaged:
    """A server into which `make extension` and `make install` have put the extension."""

    url: str
    programs: Programs
    shared: Path
    version: str

    def script(self, name: str) -> Path:
        return self.shared / name
