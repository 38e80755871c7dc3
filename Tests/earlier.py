"""Schemas of earlier versions: the migrations up to one, and the sql/ of then, which Tests/Upgrade/earlier keeps."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from databases import Database

_REPOSITORY = Path(__file__).resolve().parent.parent
SQL = _REPOSITORY / "sql"
MIGRATIONS = sorted((_REPOSITORY / "migrations").glob("*.sql"))
EARLIER = sorted((_REPOSITORY / "Tests/Upgrade/earlier").glob("*.sql"))
_PROTOCOL = re.compile(
    r"\bc_protocol\s+constant integer := (\d+)|replace function ai\.worker_protocol\(\).*?select (\d+)", re.DOTALL
)


def checksum(file: Path) -> str:
    """As sha256sum has it."""
    return hashlib.sha256(file.read_bytes()).hexdigest()


def install(database: Database, earlier: Path, door: str = "martlet") -> None:
    """Makes the schema as that version's `door` left it, in an empty database."""
    record = "insert into ai.migrations (version, name, checksum, door) values (%s, %s, %s, %s)"
    with database.superuser.transaction():
        database.execute("set local check_function_bodies = off")
        for file in MIGRATIONS:
            version, _, name = file.stem.partition("_")
            if version <= earlier.stem:
                database.superuser.execute(file.read_text().encode())
                database.execute(record, version, name, checksum(file), door)
        database.superuser.execute(earlier.read_text().encode())
        database.execute(record, "sql", "sql", "of then", door)


def protocol(sql: str) -> int:
    """The number of the worker protocol that a version's sql/ speaks."""
    found = _PROTOCOL.findall(sql)
    assert len(found) == 1, f"the number of the worker protocol is said {len(found)} times"
    return int(found[0][0] or found[0][1])


def protocol_of_now() -> int:
    """The number that sql/ of now speaks."""
    return protocol((SQL / "40_workers.sql").read_text())
