"""Installing where somebody was before: a schema `ai` of another role, operators in a schema that all may write to,
strings in which a backslash escapes.
"""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from databases import Database
from installations import Packaged, Programs
from psycopg import sql

Migrate = Callable[..., subprocess.CompletedProcess[str]]


def squat(database: Database) -> str:
    """A schema `ai` of a role that could change whatever is made in it; gives the role's name."""
    role = database.login().name
    database.superuser.execute(sql.SQL("create schema ai authorization {}").format(sql.Identifier(role)))
    return role


def tables(database: Database) -> int:
    return database.value("select count(*) from pg_class where relnamespace = 'ai'::regnamespace")


def test_the_command_refuses_a_schema_of_another_role(empty_database: Database, migrate: Migrate) -> None:
    squat(empty_database)
    for arguments in ([], ["--status"], ["--dry-run"]):
        result = migrate(empty_database, *arguments)
        assert result.returncode == 1
        assert "the schema ai belongs to another role" in result.stderr
    assert tables(empty_database) == 0


def test_the_bundle_refuses_a_schema_of_another_role(
    empty_database: Database, bundle: Path, programs: Programs
) -> None:
    squat(empty_database)
    result = programs.psql(empty_database.url, "-1", "-f", bundle)
    assert result.returncode == 3
    assert "PT409" in result.stderr
    assert tables(empty_database) == 0


def test_the_extension_refuses_a_schema_of_another_role(packaged: Packaged, packaged_database: Database) -> None:
    squat(packaged_database)
    with pytest.raises(psycopg.Error) as refused:
        packaged_database.execute("create extension martlet cascade")
    assert refused.value.sqlstate == "PT409"
    assert tables(packaged_database) == 0


def test_an_empty_schema_of_ones_own_will_do(empty_database: Database, migrate: Migrate) -> None:
    empty_database.execute("create schema ai")
    assert migrate(empty_database).returncode == 0


def test_who_took_the_schema_later_is_noticed(database: Database, migrate: Migrate) -> None:
    role = database.login().name
    database.superuser.execute(sql.SQL("alter schema ai owner to {}").format(sql.Identifier(role)))
    result = migrate(database)
    assert result.returncode == 1
    assert "the schema ai belongs to another role" in result.stderr


HOSTILE_OPERATOR = """
create schema extensions;
create extension vector schema extensions;
create function public.evil(extensions.vector, extensions.vector) returns double precision
  language plpgsql as $$ begin raise exception 'run as %', current_user using errcode = 'P0666'; end $$;
create operator public.<=> (leftarg = extensions.vector, rightarg = extensions.vector, function = public.evil);
create function public.vector_dims(extensions.vector) returns integer
  language plpgsql as $$ begin raise exception 'run as %', current_user using errcode = 'P0666'; end $$;
"""


@pytest.mark.parametrize("door", ["martlet", "bundle"])
def test_operators_of_the_sessions_path_are_not_bound(
    empty_database: Database, migrate: Migrate, bundle: Path, programs: Programs, door: str
) -> None:
    empty_database.execute(HOSTILE_OPERATOR)
    path = sql.SQL("alter database {} set search_path = public, extensions")
    empty_database.superuser.execute(path.format(sql.Identifier(empty_database.name)))
    result = migrate(empty_database) if door == "martlet" else programs.psql(empty_database.url, "-1", "-f", bundle)
    assert result.returncode == 0, result.stderr
    with empty_database.connect() as session:
        found = session.execute(
            "select ai.cosine_distance('[1,0]'::extensions.vector, '[0,1]'::extensions.vector) as far,"
            " ai.vector_size('[1,0]'::extensions.vector) as size, current_setting('search_path') as path"
        ).fetchone()
    assert found == {"far": 1, "size": 2, "path": "public, extensions"}
    bound = empty_database.execute(
        "select pg_describe_object(classid, objid, 0) as what from pg_depend"
        " where refclassid in ('pg_proc'::regclass, 'pg_operator'::regclass)"
        "   and pg_describe_object(refclassid, refobjid, 0) ~ 'public.(evil|<=>|vector_dims)'"
        "   and pg_describe_object(classid, objid, 0) !~ 'public[.]'"
    )
    assert bound == []


@contextlib.contextmanager
def escape_strings(database: Database) -> Iterator[None]:
    """Lets sessions of the database begin as those of old applications do."""
    name = sql.Identifier(database.name)
    setting = sql.SQL("alter database {} {} standard_conforming_strings")
    database.superuser.execute(setting.format(name, sql.SQL("set")) + sql.SQL(" = off"))
    yield
    database.superuser.execute(setting.format(name, sql.SQL("reset")))
    database.forget_connections()


def strings(session: psycopg.Connection[dict[str, Any]]) -> str:
    return session.execute("show standard_conforming_strings").fetchone()["standard_conforming_strings"]


@pytest.mark.parametrize("door", ["martlet", "bundle", "bundle in one statement"])
def test_backslashes_in_strings_stay_what_they_are(
    fresh: str, empty_database: Database, migrate: Migrate, bundle: Path, programs: Programs, door: str
) -> None:
    with escape_strings(empty_database):
        if door == "bundle in one statement":  # as migration tools do
            with empty_database.connect() as session:
                session.execute(bundle.read_bytes())
                assert strings(session) == "off"
        else:
            result = migrate(empty_database) if door == "martlet" else programs.psql(empty_database.url, "-f", bundle)
            assert result.returncode == 0, result.stderr
    assert programs.dump(empty_database.url, "--schema-only") == fresh


def test_backslashes_in_strings_stay_what_they_are_for_the_extension(packaged_database: Database) -> None:
    with escape_strings(packaged_database), packaged_database.connect() as session:
        session.execute("create extension martlet cascade")
        session.execute("call ai.migrate()")
        assert strings(session) == "off"
    assert "\\[\\]" in packaged_database.value(
        "select pg_get_constraintdef(oid) from pg_constraint where conname = 'artifact_stores_endpoint'"
    )
