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


def test_the_keys_of_vectorized_tables_are_noted_with_their_types(empty_database: Database, migrate: Migrate) -> None:
    database = empty_database
    earlier.install(database, BEFORE)
    database.execute("create table public.sizes (shop uuid, code varchar(9), size text, primary key (code, shop))")
    database.execute("create table public.gone (id integer primary key, size text)")
    member = database.member()
    for table in ("sizes", "gone"):
        database.execute(
            "select ai.vectorize(%s::text::regclass, '{size}', tenant_id => %s, user_id => %s)",
            f"public.{table}",
            member.tenant_id,
            member.user_id,
        )
    database.execute("alter table public.gone drop column id")
    assert migrate(database).returncode == 0
    assert database.execute("select name, key_types::text[] as types from ai.vectorizers order by id") == [
        {"name": "sizes", "types": ["character varying", "uuid"]},
        {"name": "gone", "types": None},
    ]
