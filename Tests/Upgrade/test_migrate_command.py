"""`martlet migrate` as scripts see it: exit codes, JSON, many at once, sudden deaths."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest
from databases import Database
from installations import REPOSITORY, Programs
from waiting import until

Migrate = Callable[..., subprocess.CompletedProcess[str]]


def has_schema(database: Database) -> bool:
    return database.value("select to_regnamespace('ai') is not null")


def test_exit_codes_follow_the_state_of_the_schema(empty_database: Database, migrate: Migrate) -> None:
    assert migrate(empty_database, "--status").returncode == 3
    assert migrate(empty_database, "--dry-run").returncode == 0
    assert not has_schema(empty_database)
    assert migrate(empty_database).returncode == 0
    assert migrate(empty_database, "--status").returncode == 0
    assert migrate(empty_database).returncode == 0


def test_a_wrong_call_is_2_and_touches_nothing(empty_database: Database, migrate: Migrate) -> None:
    for arguments in (["--status", "--dry-run"], ["--no-such-flag"], ["surplus"]):
        result = migrate(empty_database, *arguments)
        assert result.returncode == 2, arguments
        assert result.stdout == ""
        assert result.stderr != ""
    assert not has_schema(empty_database)


def test_help_is_0(martlet_bin: Path) -> None:
    result = subprocess.run([martlet_bin, "migrate", "--help"], capture_output=True, text=True, timeout=60)
    assert result.returncode == 0
    assert "--database-url" in result.stdout


def test_a_server_that_is_not_there_is_1_and_the_password_stays_out(martlet_bin: Path) -> None:
    for url in ("postgresql://someone:hunter2@127.0.0.1:1/x", "postgresql://someone:p@hunter2@127.0.0.1/x"):
        for source in (["--database-url", url], []):
            result = subprocess.run(
                [martlet_bin, "migrate", "--json", *source],
                env={**os.environ, "DATABASE_URL": url},
                capture_output=True,
                text=True,
                timeout=60,
            )
            assert result.returncode == 1
            assert "hunter2" not in result.stdout + result.stderr
            assert json.loads(result.stdout)["error"]["message"]


def test_json_says_what_was_done(empty_database: Database, migrate: Migrate) -> None:
    files = sorted(file.name for file in (REPOSITORY / "migrations").glob("*.sql"))
    versions = [name.partition("_")[0] for name in files]

    pending = json.loads(migrate(empty_database, "--status", "--json").stdout)
    assert [item["version"] for item in pending["pending"]] == versions
    assert (pending["applied"], pending["current"], pending["sql"]) == ([], False, "pending")

    done = json.loads(migrate(empty_database, "--json").stdout)
    assert [f"{item['version']}_{item['name']}.sql" for item in done["applied"]] == files
    assert (done["pending"], done["current"], done["sql"], done["schema"]) == ([], True, "applied", versions[-1])

    again = json.loads(migrate(empty_database, "--json").stdout)
    assert (again["applied"], again["pending"], again["current"], again["sql"]) == ([], [], True, "current")


def test_no_progress_line_where_nobody_sees_it(empty_database: Database, migrate: Migrate) -> None:
    assert migrate(empty_database).stderr == ""


def test_a_changed_migration_is_refused_by_name(empty_database: Database, migrate: Migrate) -> None:
    assert migrate(empty_database).returncode == 0
    version, name = next(
        iter(
            empty_database.superuser.execute(
                "update ai.migrations set checksum = repeat('0', 64) where version ="
                " (select max(version) from ai.migrations where version <> 'sql') returning version, name"
            )
        )
    ).values()
    result = migrate(empty_database, "--json")
    assert result.returncode == 1
    error = json.loads(result.stdout)["error"]
    assert error["code"] == "PT409"
    assert f"{version}_{name}.sql" in error["message"]
    assert f"{version}_{name}.sql" in result.stderr


def test_a_newer_database_is_refused_and_says_which_side_to_upgrade(empty_database: Database, migrate: Migrate) -> None:
    assert migrate(empty_database).returncode == 0
    empty_database.execute(
        "insert into ai.migrations (version, name, checksum, door) values ('29991231235959', 'future', 'x', 'martlet')"
    )
    for arguments in ([], ["--status"]):
        result = migrate(empty_database, "--json", *arguments)
        assert result.returncode == 1
        error = json.loads(result.stdout)["error"]
        assert error["code"] == "PT409"
        assert "29991231235959" in error["message"]
        assert "upgrade Martlet" in error["hint"]


def test_twenty_processes_at_once_leave_one_clean_schema(
    empty_database: Database, fresh: str, martlet_bin: Path, programs: Programs
) -> None:
    command = [martlet_bin, "migrate", "--json"]
    environment = {**os.environ, "DATABASE_URL": empty_database.url}
    running = [
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(20)
    ]
    results = [process.communicate(timeout=180) for process in running]
    assert [process.returncode for process in running] == [0] * 20, results
    assert sum(bool(json.loads(out)["applied"]) for out, _ in results) == 1
    assert programs.dump(empty_database.url, "--schema-only") == fresh


@pytest.fixture
def stuck(empty_database: Database, martlet: Callable, request: pytest.FixtureRequest) -> Iterator[tuple]:
    """A `martlet migrate` that waits in the middle of its first migration for a schema that nobody commits."""
    with psycopg.connect(empty_database.url) as holder:
        holder.execute("create schema ai")
        process = martlet("migrate", env={"DATABASE_URL": empty_database.url})
        until(
            lambda: empty_database.value(
                "select exists (select from pg_stat_activity where datname = current_database()"
                " and application_name = 'martlet migrate' and wait_event_type = 'Lock')"
            ),
            "the migration waits",
        )
        yield process, holder
        if not holder.closed:
            holder.rollback()


def test_a_process_killed_in_a_migration_leaves_nothing(
    empty_database: Database, migrate: Migrate, stuck: tuple
) -> None:
    process, holder = stuck
    process.kill()
    holder.rollback()
    assert migrate(empty_database, "--json").returncode == 0
    assert migrate(empty_database, "--status").returncode == 0


def test_a_server_process_killed_in_a_migration_is_an_error_and_leaves_nothing(
    empty_database: Database, migrate: Migrate, stuck: tuple
) -> None:
    process, holder = stuck
    empty_database.execute(
        "select pg_terminate_backend(pid) from pg_stat_activity"
        " where datname = current_database() and application_name = 'martlet migrate'"
    )
    assert process.wait() == 1
    assert re.search("57P01|connection", process.text)
    holder.rollback()
    assert not has_schema(empty_database)
    assert migrate(empty_database).returncode == 0
