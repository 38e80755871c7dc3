"""The matrix of rights where Supabase's and PostgREST's roles exist before Martlet is installed."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
# As those stacks make them: the authenticator logs in and inherits nothing; no role inherits by itself.
ROLES = """
create role anon nologin noinherit;
create role authenticated nologin noinherit;
create role service_role nologin noinherit bypassrls;
create role authenticator login noinherit;
grant anon, authenticated, service_role to authenticator;
"""


@pytest.fixture
def gateway_server() -> Iterator[str]:
    """A server of its own: roles belong to all databases of a server, and other tests are not to meet these."""
    state = subprocess.run([REPOSITORY / "scripts/state"], capture_output=True, text=True, check=True).stdout.strip()
    folder = tempfile.mkdtemp(prefix=f"run.{os.getpid()}.", dir=state)
    Path(folder).chmod(0o755)
    script = [REPOSITORY / "scripts/server", folder]
    version = os.environ.get("MARTLET_PG_VERSION", "18")
    try:
        subprocess.run([*script, "start", version if version in ("16", "18") else "18"], check=True, timeout=120)
        url = subprocess.run([*script, "url"], capture_output=True, text=True, check=True).stdout.strip()
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(ROLES)
        yield url
    finally:
        subprocess.run([*script, "stop", "immediate"], check=False, timeout=60)
        shutil.rmtree(folder, ignore_errors=True)


def test_the_roles_of_a_gateway_have_what_their_groups_have(gateway_server: str, martlet_bin: Path) -> None:
    environment = {
        key: value for key, value in os.environ.items() if key not in ("DATABASE_URL", "MARTLET_TEST_COUNTS")
    }
    run = subprocess.run(
        [REPOSITORY / "scripts/test-sql", "Tests/SQL/matrix.sql"],
        env={**environment, "MARTLET_TEST_DATABASE_URL": gateway_server, "MARTLET_BIN": str(martlet_bin)},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert "Result: PASS" in run.stdout


def test_what_is_made_later_is_nobodys(gateway_server: str, martlet_bin: Path) -> None:
    """Such stacks grant to their roles, by default, what is made in the schemas of theirs."""
    with psycopg.connect(gateway_server, autocommit=True) as connection:
        connection.execute("alter default privileges in schema public grant all on tables to anon, authenticated")
        connection.execute("alter default privileges in schema public grant all on functions to anon, authenticated")
        subprocess.run(
            [martlet_bin, "migrate"], env={**os.environ, "DATABASE_URL": gateway_server}, check=True, timeout=120
        )
        connection.execute("create table ai.made_later (id integer)")
        granted = connection.execute(
            """
            select c.relname, r.rolname from pg_class c cross join unnest(array['anon', 'authenticated']) r (rolname)
             where c.relnamespace = 'ai'::regnamespace and c.relkind in ('r', 'p')
               and (r.rolname = 'anon' and has_any_column_privilege(r.rolname, c.oid, 'select, insert, update')
                    or c.relname = 'made_later' and has_table_privilege(r.rolname, c.oid, 'select'))
            """
        ).fetchall()
        assert granted == []
