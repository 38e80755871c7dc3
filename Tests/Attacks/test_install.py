"""Before and beside an installation: a schema made first, names in the installer's way, a breaker that others open."""

# ruff: noqa: E501 (a statement of an attack is read in one piece)
from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from Attacks.tenants import World
from databases import Database
from protocol import PlainWorker
from psycopg import sql


def migrate(martlet_bin: Path, database: Database) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [martlet_bin, "migrate"],
        env={**os.environ, "DATABASE_URL": database.url},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_a_schema_that_somebody_else_made_first_is_not_installed_into(
    empty_database: Database, martlet_bin: Path
) -> None:
    """Who may CREATE in the database makes the schema ai before the operator does, and would own what is put into it: refused, and nothing is there."""
    squatter = empty_database.login()
    empty_database.execute(
        sql.SQL("grant create on database {} to {}")
        .format(sql.Identifier(empty_database.name), sql.Identifier(squatter.name))
        .as_string()
    )
    empty_database.connect(user=squatter).execute("create schema ai")
    done = migrate(martlet_bin, empty_database)
    assert done.returncode != 0
    assert empty_database.value("select count(*) from pg_class where relnamespace = 'ai'::regnamespace") == 0
    empty_database.connect(user=squatter).execute("drop schema ai")
    assert migrate(martlet_bin, empty_database).returncode == 0, "control"
    empty_database.execute(
        sql.SQL("revoke create on database {} from {}")
        .format(sql.Identifier(empty_database.name), sql.Identifier(squatter.name))
        .as_string()
    )


def test_operators_in_the_installers_way_are_not_bound(empty_database: Database, martlet_bin: Path) -> None:
    """A writable public before pgvector's schema in the search path, with operators and functions of the same names: Martlet's are bound to pgvector's."""
    db = empty_database
    squatter = db.login()
    for statement in (
        "create schema extensions",
        "create extension vector schema extensions",
        "grant usage on schema extensions to public",
        "grant create on schema public to public",
    ):
        db.execute(statement)
    db.execute(
        sql.SQL("alter database {} set search_path = public, extensions").format(sql.Identifier(db.name)).as_string()
    )
    thief = db.connect(user=squatter)
    thief.execute(
        "create function public.near(extensions.vector, extensions.vector) returns float8 language plpgsql as $$ begin raise 'ran as %', current_user; end $$"
    )
    thief.execute(
        "create operator public.<=> (leftarg = extensions.vector, rightarg = extensions.vector, function = public.near)"
    )
    thief.execute(
        "create function public.vector_dims(extensions.vector) returns integer language plpgsql as $$ begin raise 'ran as %', current_user; end $$"
    )
    done = migrate(martlet_bin, db)
    assert done.returncode == 0, done.stderr
    assert db.value("select ai.cosine_distance('[1]'::extensions.vector, '[1]'::extensions.vector)") == 0
    assert db.value("select ai.vector_size('[1]'::extensions.vector)") == 1
    db.execute(sql.SQL("drop owned by {}").format(sql.Identifier(squatter.name)).as_string())


@pytest.mark.parametrize("signal", ["timeout", "slow"])
def test_a_tenants_own_impatience_opens_no_breaker_of_a_shared_model(world: World, signal: str) -> None:
    """Deadlines of some milliseconds, or an own profile with a first_token_ms of one: what was broken off for them says nothing about the model, which others go on using."""
    if signal == "slow":
        world.connect("adm").execute(
            "insert into ai.profiles (tenant_id, name, first_token_ms) values (%s, 'hasty', 1)", [world.alpha]
        )
        world.connect("adm").execute(
            "insert into ai.routes (tenant_id, profile, model_id, position) select %s, 'hasty', id, n from ai.models cross join generate_series(1, 2) n where name = 'shared/model'",
            [world.alpha],
        )
    worker, ann = PlainWorker(world.database), world.connect("ann")
    for n in range(12):
        if signal == "slow":
            ann.execute("insert into ai.generations (prompt, profile) values (%s, 'hasty')", [f"{n}"])
        else:
            ann.execute(
                "insert into ai.generations (prompt, model, deadline_ms) values (%s, 'shared/model', 900)", [f"{n}"]
            )
        attempts = worker.claim(look_at_everything=True)
        worker.settle(attempts, outcome="failed", signal=signal, output=None, latency_ms=2 if signal == "slow" else 900)
    assert world.database.execute("select state, why from ai.breakers where state <> 'closed'") == []
    asked = (
        world.connect("bob")
        .execute("insert into ai.generations (prompt, model) values ('x', 'shared/model') returning id")
        .fetchone()
    )
    assert asked is not None
    assert asked["id"] in {attempt.generation_id for _ in range(3) for attempt in worker.claim(look_at_everything=True)}
