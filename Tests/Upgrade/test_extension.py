"""`create extension martlet` and `call ai.migrate()`, from the first install to a restored dump."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import databases
import psycopg
import pytest
from databases import Database, Login
from installations import Packaged


def install(database: Database, version: str | None = None) -> None:
    database.execute("create extension martlet" + (f" version '{version}'" if version else "") + " cascade")


def members(database: Database) -> list[dict]:
    return database.execute(
        """
        select classid::regclass::text as class, pg_describe_object(classid, objid, objsubid) as what
          from pg_depend
         where refclassid = 'pg_extension'::regclass and deptype = 'e'
           and refobjid = (select oid from pg_extension where extname = 'martlet')
         order by 2
        """
    )


def without_the_extension(packaged: Packaged, database: Database) -> str:
    """The dump of the schema after the extension has given up what it owns, which would not be in a dump."""
    for member in members(database):
        database.execute(f"alter extension martlet drop routine {member['what'].partition(' ')[2]}")
    database.execute("drop extension martlet")
    database.execute("drop procedure ai.migrate")
    return packaged.programs.dump(database.url, "--schema-only")


@pytest.fixture(scope="module")
def commanded(packaged: Packaged, martlet_bin: Path) -> Iterator[str]:
    """The dump of a schema that `martlet migrate` made on the same server."""
    with databases.temporary(packaged.url) as database:
        subprocess.run([martlet_bin, "migrate", "--database-url", database.url], check=True, timeout=120)
        yield packaged.programs.dump(database.url, "--schema-only")


def test_it_makes_the_same_schema_as_the_command(
    packaged: Packaged, packaged_database: Database, commanded: str
) -> None:
    install(packaged_database)
    packaged_database.execute("call ai.migrate()")
    assert without_the_extension(packaged, packaged_database) == commanded


def test_it_owns_functions_and_nothing_else(packaged_database: Database) -> None:
    install(packaged_database)
    before = members(packaged_database)
    packaged_database.execute("call ai.migrate()")
    assert members(packaged_database) == before
    assert {member["class"] for member in before} == {"pg_proc"}
    assert packaged_database.value("select extrelocatable from pg_extension where extname = 'martlet'") is False
    assert packaged_database.execute(
        "select superuser, trusted from pg_available_extension_versions where name = 'martlet' and version = "
        "(select default_version from pg_available_extensions where name = 'martlet')"
    ) == [{"superuser": False, "trusted": False}]


def test_migrating_again_changes_nothing(packaged: Packaged, packaged_database: Database) -> None:
    install(packaged_database)
    packaged_database.execute("call ai.migrate()")
    before = packaged.programs.dump(packaged_database.url)
    packaged_database.execute("call ai.migrate()")
    assert packaged.programs.dump(packaged_database.url) == before


@pytest.fixture
def owner(packaged_database: Database) -> Login:
    """A role that may make roles and no more; pgvector, which this server does not trust, is there already."""
    packaged_database.execute("create extension vector")
    owner = packaged_database.login()
    packaged_database.execute(f"alter role {owner.name} createrole")
    packaged_database.execute(f"grant create on database {packaged_database.name} to {owner.name}")
    return owner


def test_no_superuser_is_needed_and_none_appears(packaged_database: Database, owner: Login) -> None:
    session = packaged_database.connect(user=owner)
    session.execute("create extension martlet")
    session.execute("call ai.migrate()")
    owners = packaged_database.execute(
        """
        select distinct pg_get_userbyid(o) as owner from (
          select proowner from pg_proc where pronamespace = 'ai'::regnamespace union all
          select relowner from pg_class where relnamespace = 'ai'::regnamespace union all
          select nspowner from pg_namespace where nspname = 'ai') s (o)
        """
    )
    assert owners == [{"owner": owner.name}]


def test_only_the_owner_of_the_extension_may_migrate(packaged_database: Database, owner: Login) -> None:
    packaged_database.connect(user=owner).execute("create extension martlet")
    with pytest.raises(psycopg.Error) as refused:
        packaged_database.execute("call ai.migrate()")  # a superuser would own the tables
    assert refused.value.sqlstate == "PT403"
    somebody = packaged_database.login("ai_admin")
    packaged_database.execute(f"grant usage on schema ai to {somebody.name}")
    with pytest.raises(psycopg.Error) as refused:
        packaged_database.connect(user=somebody).execute("call ai.migrate()")
    assert refused.value.sqlstate == "42501"
    assert packaged_database.value("select to_regclass('ai.migrations') is null")


def test_what_was_dropped_with_the_extension_comes_back(
    packaged: Packaged, packaged_database: Database, commanded: str
) -> None:
    install(packaged_database)
    packaged_database.execute("call ai.migrate()")
    tenant = packaged_database.tenant()
    packaged_database.execute("drop extension martlet cascade")
    install(packaged_database)
    packaged_database.execute("call ai.migrate()")
    assert packaged_database.value("select id from ai.tenants where id = %s", tenant) == tenant
    assert without_the_extension(packaged, packaged_database) == commanded


@pytest.fixture
def older(packaged: Packaged) -> Iterator[str]:
    """Version 0.0.0: without ai.cancel() and one comment, with a function that is gone since."""
    text = packaged.script(f"martlet--{packaged.version}.sql").read_text()
    text, count = re.subn(r"^-- sql/70_cancel\.sql$.*?(?=^-- sql/)", "", text, flags=re.MULTILINE | re.DOTALL)
    assert count == 1
    text = text.replace("comment on function ai.whoami() is 'What this session is, and why.'", "select 1")
    # Its ai.migrate() makes one trigger less, so that an update alone is not enough.
    text, count = re.subn(
        r"create or replace trigger keep_roles_apart after insert or update on ai\.authenticators[^;]*;", "", text
    )
    assert count == 1
    text += "\ncreate function ai.of_old() returns int language sql as 'select 1';\n"
    file = packaged.script("martlet--0.0.0.sql")
    file.write_text(text)
    yield "0.0.0"
    file.unlink()


def test_an_update_brings_functions_and_the_next_migrate_the_rest(
    packaged: Packaged, packaged_database: Database, older: str, commanded: str
) -> None:
    install(packaged_database, older)
    packaged_database.execute("call ai.migrate()")
    tenant = packaged_database.tenant()
    number = len(members(packaged_database))
    packaged_database.execute("alter extension martlet update")
    assert packaged_database.value("select extversion from pg_extension where extname = 'martlet'") == packaged.version
    assert len(members(packaged_database)) > number
    packaged_database.execute("call ai.migrate()")
    assert packaged_database.value("select id from ai.tenants where id = %s", tenant) == tenant
    assert {member["class"] for member in members(packaged_database)} == {"pg_proc"}
    packaged_database.execute("alter extension martlet drop function ai.of_old()")
    packaged_database.execute("drop function ai.of_old()")
    assert without_the_extension(packaged, packaged_database) == commanded


def test_a_dump_is_restored_with_its_rows_and_triggers(packaged: Packaged, packaged_database: Database) -> None:
    install(packaged_database)
    packaged_database.execute("call ai.migrate()")
    member = packaged_database.member()
    dump = packaged.programs.dump(packaged_database.url)
    with databases.temporary(packaged.url) as restored:
        result = packaged.programs.psql(restored.url, "-1", stdin=dump)
        assert result.returncode == 0, result.stderr
        assert packaged.programs.dump(restored.url) == dump
        before = restored.execute("table ai.migrations order by version")
        restored.execute("call ai.migrate()")
        assert restored.execute("table ai.migrations order by version") == before
        assert restored.value("select user_id from ai.members where tenant_id = %s", member.tenant_id) == member.user_id
        with restored.connect() as session, pytest.raises(psycopg.Error) as refused:
            session.execute("insert into ai.authenticators (role_name) values (%s)", [member.login.name])
        assert refused.value.sqlstate == "PT409"  # a trigger of the extension's door still stands guard
