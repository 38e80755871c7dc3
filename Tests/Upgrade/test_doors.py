"""Three ways to the schema, and every way to an upgrade, end at the same one. A database has one of them."""

from __future__ import annotations

import hashlib
import subprocess
import unicodedata
from collections.abc import Callable
from pathlib import Path

import earlier
import psycopg
import pytest
from databases import Database
from earlier import EARLIER, MIGRATIONS, checksum
from installations import REPOSITORY, Packaged, Programs

Migrate = Callable[..., subprocess.CompletedProcess[str]]


def expected_record() -> dict[str, str]:
    """Version → checksum, as sha256sum has them."""
    expected = {file.name.partition("_")[0]: checksum(file) for file in MIGRATIONS}
    lines = "".join(f"{checksum(file)}  {file.name}\n" for file in sorted((REPOSITORY / "sql").glob("*.sql")))
    return {**expected, "sql": hashlib.sha256(lines.encode()).hexdigest()}


def record(database: Database) -> dict[str, str]:
    return {row["version"]: row["checksum"] for row in database.execute("select version, checksum from ai.migrations")}


def test_checksums_are_those_of_sha256sum(database: Database) -> None:
    assert record(database) == expected_record()


@pytest.mark.parametrize("options", [["-1"], []], ids=["one transaction", "autocommit"])
def test_the_bundle_makes_the_same_schema_and_can_be_applied_again(
    fresh: str, empty_database: Database, bundle: Path, programs: Programs, options: list[str]
) -> None:
    for _ in range(2):
        result = programs.psql(empty_database.url, *options, "-f", bundle)
        assert result.returncode == 0, result.stderr
        assert result.stderr == ""
    assert programs.dump(empty_database.url, "--schema-only") == fresh
    assert record(empty_database) == expected_record()
    assert {row["door"] for row in empty_database.execute("select door from ai.migrations")} == {"bundle"}


@pytest.mark.parametrize("applied", range(1, len(MIGRATIONS) + 1))
@pytest.mark.parametrize("door", ["martlet", "bundle"])
def test_an_upgrade_from_any_older_schema_ends_where_a_fresh_one_does(
    fresh: str,
    empty_database: Database,
    bundle: Path,
    programs: Programs,
    migrate: Migrate,
    door: str,
    applied: int,
) -> None:
    for file in MIGRATIONS[:applied]:
        version, _, name = file.stem.partition("_")
        with empty_database.superuser.transaction():
            empty_database.superuser.execute(file.read_text().encode())
            empty_database.execute(
                "insert into ai.migrations (version, name, checksum, door) values (%s, %s, %s, %s)",
                version,
                name,
                checksum(file),
                door,
            )
    result = migrate(empty_database) if door == "martlet" else programs.psql(empty_database.url, "-1", "-f", bundle)
    assert result.returncode == 0, result.stderr
    assert programs.dump(empty_database.url, "--schema-only") == fresh
    assert record(empty_database) == expected_record()


@pytest.mark.parametrize("version", EARLIER, ids=[file.stem for file in EARLIER])
@pytest.mark.parametrize("door", ["martlet", "bundle"])
def test_an_upgrade_of_an_earlier_version_with_its_functions_and_rows_ends_where_a_fresh_one_does(
    fresh: str,
    empty_database: Database,
    bundle: Path,
    programs: Programs,
    migrate: Migrate,
    door: str,
    version: Path,
) -> None:
    earlier.install(empty_database, version, door)
    member = empty_database.member()
    provider = empty_database.provider("then", "http://127.0.0.1:9/v1")
    empty_database.model(provider, "then/model")
    with empty_database.connect(user=member) as app:
        app.execute(
            "insert into ai.generations (prompt, model) select 'old ' || n, 'then/model' from generate_series(1, 20) n"
        )
    result = migrate(empty_database) if door == "martlet" else programs.psql(empty_database.url, "-1", "-f", bundle)
    assert result.returncode == 0, result.stderr
    assert programs.dump(empty_database.url, "--schema-only") == fresh
    with empty_database.connect(user=member) as app:
        app.execute("insert into ai.generations (prompt, model) values ('new', 'then/model')")
        found = app.execute("select count(*) as n from ai.generations where status = 'queued'").fetchone()
        assert found == {"n": 21}
        assert app.execute("select source from ai.whoami()").fetchone() == {"source": "binding"}
    assert empty_database.value("select count(*) from ai.queue") == 21


def test_an_upgrade_makes_the_expressions_of_terms_anew(empty_database: Database, migrate: Migrate) -> None:
    earlier.install(empty_database, EARLIER[-1], "martlet")
    rule = """insert into ai.guardrails (name, detector, options) values ('names', 'terms', '{"terms": ["Café"]}')"""
    empty_database.value(f"{rule} returning id")
    assert migrate(empty_database).returncode == 0
    decomposed = unicodedata.normalize("NFD", "un café")
    assert empty_database.value('select %s collate "C" ~ compiled from ai.guardrails', decomposed)


def test_the_bundle_refuses_what_the_command_made(database: Database, bundle: Path, programs: Programs) -> None:
    before = programs.dump(database.url)
    result = programs.psql(database.url, "-f", bundle)
    assert result.returncode == 3
    assert "PT409" in result.stderr
    assert "'martlet'" in result.stderr
    assert programs.dump(database.url) == before


def test_the_command_refuses_what_the_bundle_made(
    empty_database: Database, bundle: Path, programs: Programs, migrate: Migrate
) -> None:
    assert programs.psql(empty_database.url, "-1", "-f", bundle).returncode == 0
    before = programs.dump(empty_database.url)
    for arguments in ([], ["--status"], ["--dry-run"]):
        result = migrate(empty_database, *arguments)
        assert result.returncode == 1
        assert "'bundle'" in result.stderr
    assert programs.dump(empty_database.url) == before


def test_the_extension_refuses_what_another_door_made(
    packaged: Packaged, packaged_database: Database, bundle: Path, migrate: Migrate
) -> None:
    assert packaged.programs.psql(packaged_database.url, "-1", "-f", bundle).returncode == 0
    with pytest.raises(psycopg.Error) as refused:
        packaged_database.execute("create extension martlet")
    assert refused.value.sqlstate == "PT409"
    packaged_database.execute("drop schema ai cascade")
    assert migrate(packaged_database).returncode == 0
    with pytest.raises(psycopg.Error) as refused:
        packaged_database.execute("create extension martlet")
    assert refused.value.sqlstate == "PT409"


@pytest.mark.parametrize("migrated", [False, True], ids=["functions only", "with tables"])
def test_the_other_doors_refuse_what_the_extension_made(
    packaged: Packaged, packaged_database: Database, bundle: Path, migrate: Migrate, migrated: bool
) -> None:
    packaged_database.execute("create extension martlet cascade")
    if migrated:
        packaged_database.execute("call ai.migrate()")
    before = packaged.programs.dump(packaged_database.url)
    result = migrate(packaged_database)
    assert result.returncode == 1
    assert "'extension'" in result.stderr
    result = packaged.programs.psql(packaged_database.url, "-f", bundle)
    assert result.returncode == 3
    assert "PT409" in result.stderr
    assert packaged.programs.dump(packaged_database.url) == before


def test_dropping_the_extension_does_not_open_the_other_doors(
    packaged: Packaged, packaged_database: Database, bundle: Path, migrate: Migrate
) -> None:
    packaged_database.execute("create extension martlet cascade")
    packaged_database.execute("call ai.migrate()")
    packaged_database.execute("drop extension martlet cascade")
    assert migrate(packaged_database).returncode == 1
    assert packaged.programs.psql(packaged_database.url, "-f", bundle).returncode == 3
