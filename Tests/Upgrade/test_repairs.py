"""What an earlier version left as it should not be is mended by the upgrade."""

from __future__ import annotations

import subprocess
from collections.abc import Callable

import databases
import earlier
from databases import Database
from installations import Programs

Migrate = Callable[..., subprocess.CompletedProcess[str]]
BEFORE = earlier.EARLIER[-1]
STORE = (
    "insert into ai.artifact_stores (name, endpoint, bucket, secret, is_current)"
    " values (%s, %s, 'files', 'S3_KEY', false)"
)


def test_the_check_of_endpoints_gets_its_backslashes_back(
    empty_database: Database, fresh: str, programs: Programs, migrate: Migrate
) -> None:
    database = empty_database
    earlier.install(database, BEFORE)
    database.execute(
        r"alter table ai.artifact_stores drop constraint artifact_stores_endpoint,"
        r" add constraint artifact_stores_endpoint"
        r" check (endpoint ~ E'^https?://[A-Za-z0-9.:_\[\]-]+$' and length(endpoint) <= 300)"
    )
    with databases.refused("23514"):
        database.execute(STORE, "sane", "https://s3.example.org")
    database.execute(STORE, "odd", "http://a-]")
    assert migrate(database).returncode == 0
    database.execute(STORE, "sane", "https://s3.example.org")
    database.execute(STORE, "by_address", "http://[::1]:9000")
    with databases.refused("23514"):
        database.execute(STORE, "none", "https://s3.example.org/path")
    database.execute("delete from ai.artifact_stores")
    assert programs.dump(database.url, "--schema-only") == fresh
