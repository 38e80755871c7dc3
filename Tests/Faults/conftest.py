"""Database servers of a test's own, which may be stopped, killed and starved."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import databases
import pytest
from databases import Database
from servers import Server, embedded_version, temporary_server

# As little as PostgreSQL accepts of everything that it may run out of, and nobody who tidies up.
POVERTY = {
    "shared_buffers": "4MB",
    "work_mem": "64kB",
    "hash_mem_multiplier": "1",
    "temp_buffers": "800kB",
    "maintenance_work_mem": "1MB",
    "max_connections": "40",
    "autovacuum": "off",
}
# Of notifications, 512 kB. Before 17 the queue has 8 GB, whatever anybody says.
SHORT_QUEUE = {"max_notify_queue_pages": "64"}


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[Server]:
    """An embedded server of this test's own: call it with the words that scripts/server takes."""
    with temporary_server(tmp_path.name) as server:
        yield server


@pytest.fixture(scope="session")
def poor_server() -> Iterator[Server]:
    """A server with as little of everything as PostgreSQL accepts, without autovacuum."""
    with temporary_server("poor") as server:
        server.set(**POVERTY, **(SHORT_QUEUE if embedded_version() != "16" else {}))
        server.restart()
        yield server


@pytest.fixture(scope="session")
def poor_template(poor_server: Server, martlet_bin: Path) -> Iterator[str]:
    """Name of a migrated database of the poor server, to be copied."""
    with databases.temporary(poor_server.url) as database:
        database.migrate(martlet_bin)
        yield database.name


@pytest.fixture
def poor(poor_server: Server, poor_template: str) -> Iterator[Database]:
    """A migrated database of this test's own on the poor server."""
    with databases.temporary(poor_server.url, poor_template) as database:
        yield database
