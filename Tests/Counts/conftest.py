"""A server on which a count is not disturbed: no autovacuum, no checkpoints, no page images in the log."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import databases
import pytest
from counting import Load
from databases import Database
from servers import Server, temporary_server

QUIET = {
    "autovacuum": "off",
    "full_page_writes": "off",
    "checkpoint_timeout": "1h",
    "max_wal_size": "8GB",
    "shared_buffers": "256MB",
    "log_line_prefix": "%u@%d|",
}


@pytest.fixture(scope="session")
def quiet_server() -> Iterator[Server]:
    """A server that does nothing by itself."""
    with temporary_server("quiet") as server:
        server.set(**QUIET)
        server.restart()
        yield server


@pytest.fixture(scope="session")
def quiet_template(quiet_server: Server, martlet_bin: Path) -> Iterator[str]:
    """Name of a migrated database of the quiet server, to be copied."""
    with databases.temporary(quiet_server.url) as database:
        database.migrate(martlet_bin)
        yield database.name


@pytest.fixture
def quiet(quiet_server: Server, quiet_template: str) -> Iterator[Database]:
    """A migrated database of this test's own on the quiet server."""
    with databases.temporary(quiet_server.url, quiet_template) as database:
        yield database


@pytest.fixture
def load(quiet: Database) -> Load:
    """Somebody who asks and somebody who answers on it."""
    return Load(quiet)
