"""Fixtures of the tests of installing and upgrading."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import databases
import pytest
from databases import Database
from installations import REPOSITORY, Packaged, Programs, can_install, installation, programs_of


@pytest.fixture(scope="session")
def programs(server: str) -> Programs:
    return programs_of(server)


@pytest.fixture(scope="session")
def fresh(server: str, template: str, programs: Programs) -> str:
    """The dump of a schema that `martlet migrate` made in an empty database."""
    return programs.dump(databases.with_database(server, template), "--schema-only")


@pytest.fixture(scope="session")
def packaged(server: str, martlet_bin: Path) -> Iterator[Packaged]:
    """The server under test, or, where nothing can be installed into that one, an embedded server of its own."""
    if can_install(server):
        yield from _install(server, martlet_bin)
        return
    state = subprocess.run([REPOSITORY / "scripts/state"], capture_output=True, text=True, check=True).stdout.strip()
    folder = tempfile.mkdtemp(prefix=f"run.{os.getpid()}.", dir=state)
    Path(folder).chmod(0o755)
    own = [REPOSITORY / "scripts/server", folder]
    try:
        subprocess.run([*own, "start", "18"], check=True, timeout=120)
        url = subprocess.run([*own, "url"], capture_output=True, text=True, check=True).stdout.strip()
        yield from _install(url, martlet_bin)
    finally:
        subprocess.run([*own, "stop", "immediate"], check=False, timeout=120)
        subprocess.run(["rm", "-rf", "--", folder], check=False)


def _install(url: str, martlet_bin: Path) -> Iterator[Packaged]:
    folders = installation(url)
    make = [
        "make",
        "-C",
        str(REPOSITORY / "extension"),
        f"PG_CONFIG={folders['BINDIR'] / 'pg_config'}",
        f"MARTLET={martlet_bin}",
    ]
    subprocess.run([*make, "install"], check=True, timeout=120)
    shared = folders["SHAREDIR"] / "extension"
    version = subprocess.run([martlet_bin, "version"], capture_output=True, text=True, check=True).stdout
    try:
        yield Packaged(url, programs_of(url), shared, version.removeprefix("martlet ").partition(",")[0])
    finally:
        subprocess.run([*make, "uninstall", "clean"], check=True, timeout=120)


@pytest.fixture
def packaged_database(packaged: Packaged) -> Iterator[Database]:
    """An empty database of this test's own, on the server that has the extension."""
    with databases.temporary(packaged.url) as database:
        yield database


@pytest.fixture
def bundle(martlet_bin: Path, tmp_path: Path) -> Path:
    """The file that `martlet schema` prints."""
    file = tmp_path / "martlet.sql"
    file.write_bytes(subprocess.run([martlet_bin, "schema"], capture_output=True, check=True, timeout=60).stdout)
    return file


@pytest.fixture
def migrate(martlet_bin: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs `martlet migrate` on a database to its end."""

    def run(database: Database, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [martlet_bin, "migrate", "--database-url", database.url, *arguments],
            capture_output=True,
            text=True,
            timeout=120,
        )

    return run
