"""`martlet doctor`: it finds what is wrong, and nothing where nothing is."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from pathlib import Path

import pytest
import waiting
from checkups import Doctor, states
from databases import Database, Member
from processes import Worker
from psycopg import sql


def bind_the_owner(database: Database) -> None:
    database.execute(
        "insert into ai.role_bindings (role_name, tenant_id, user_id) values (session_user, %s, 'owner')",
        database.value(
            "insert into ai.members (tenant_id, user_id, role) values (%s, 'owner', 'admin') returning tenant_id",
            database.tenant(),
        ),
    )


def test_a_healthy_installation_has_no_findings(
    database: Database, worker: Callable[..., Worker], doctor: Doctor
) -> None:
    bind_the_owner(database)
    worker(database)
    waiting.until(lambda: database.value("select count(*) from ai.workers"), "the worker to register")
    code, findings = doctor(database.url)
    assert set(states(findings).values()) == {"ok"}, findings
    assert code == 0
    assert database.value("select status from ai.generations") == "succeeded"


def test_no_worker_is_a_failure_with_a_hint(database: Database, doctor: Doctor) -> None:
    code, findings = doctor(database.url)
    assert code == 1
    assert states(findings)["worker"] == "fail"
    assert "martlet work" in findings["worker"][0]["hint"]
    assert states(findings)["round trip"] == "warn"


def test_an_app_role_is_told_what_it_may_not_see(
    database: Database, member: Member, worker: Callable[..., Worker], doctor: Doctor
) -> None:
    worker(database)
    waiting.until(lambda: database.value("select count(*) from ai.workers"), "the worker to register")
    code, findings = doctor(member.url)
    assert code == 0, findings
    assert states(findings)["identity"] == "ok"
    assert states(findings)["round trip"] == "ok"
    assert states(findings)["schema"] == "warn"
    assert states(findings)["worker"] == "warn"
    assert "ai_monitor" in findings["worker"][0]["hint"]
    for check in ("partitions", "secrets", "master keys"):
        assert states(findings)[check] == "warn"
        assert findings[check][0]["hint"] == "Connect as the role that owns the schema ai."


@pytest.mark.parametrize(
    ("damage", "check", "named"),
    [
        ("alter table ai.members disable row level security", "rls", "members"),
        ("create table ai.extra (x int)", "rls", "extra"),
        ("grant select on ai.tenants to public", "rls", "tenants"),
        ("create policy open on ai.members using (true)", "rls", "members"),
        ("alter function ai.whoami() reset search_path", "functions", "whoami"),
        ("grant execute on function ai.worker_stop(uuid) to public", "functions", "worker_stop"),
        ("insert into ai.migrations (version, name, checksum, door) values ('29990101000000', 'x', 'x', 'martlet')",
         "schema", "29990101000000"),
        ("update ai.migrations set checksum = 'x' where version = 'sql'", "schema", "sql"),
    ],
)  # fmt: skip
def test_damage_is_found_and_named(database: Database, doctor: Doctor, damage: str, check: str, named: str) -> None:
    assert states(doctor(database.url)[1])[check] == "ok"
    database.execute(damage)
    code, findings = doctor(database.url)
    assert code == 1
    assert findings[check][0]["state"] == "fail"
    assert named in findings[check][0]["message"]
    assert findings[check][0]["hint"]


def test_missing_prices_and_secrets_are_warnings(database: Database, doctor: Doctor, tmp_path: Path) -> None:
    variable = "EXAMPLE_API_KEY"
    provider = database.provider("p", "https://api.example.org/v1", secret=variable)
    database.model(provider, "p/free", rates=None)
    _, findings = doctor(database.url)
    assert states(findings)["prices"] == "warn"
    assert "p/free" in findings["prices"][0]["message"]
    assert states(findings)["secrets"] == "warn"
    assert "EXAMPLE_API_KEY" in findings["secrets"][0]["message"]
    _, findings = doctor(database.url, EXAMPLE_API_KEY="hunter2")
    assert states(findings)["secrets"] == "ok"
    assert "hunter2" not in json.dumps(findings)
    (tmp_path / "EXAMPLE_API_KEY").write_text("hunter2\n")
    _, findings = doctor(database.url, MARTLET_SECRETS_DIR=str(tmp_path))
    assert states(findings)["secrets"] == "ok"


def test_an_empty_database_is_told_to_be_migrated(empty_database: Database, doctor: Doctor) -> None:
    code, findings = doctor(empty_database.url)
    assert code == 1
    assert findings["schema"][0]["hint"] == "martlet migrate"


def test_an_unreachable_database_is_the_only_finding(doctor: Doctor) -> None:
    code, findings = doctor("postgresql://me:hunter2@127.0.0.1:1/x")
    assert code == 1
    assert list(findings) == ["connection"]
    assert findings["connection"][0]["hint"]
    assert "hunter2" not in json.dumps(findings)


def test_what_keeps_partitions_from_being_made_is_told(database: Database, doctor: Doctor) -> None:
    """A partition that is in the way, then somebody who holds a lock."""
    upkeep = "select ai.tend_partitions(now())"
    what = "ai.make_partitions() of ai.llm_calls"
    last = (
        "select ai.partition_time('llm_calls', relname) as time from pg_class"
        " where relname ~ '^llm_calls_p[0-9]{6}$' order by 1 desc limit 1"
    )
    until = database.value(f"select upper(l.time) from ({last}) l")
    name = database.value(f"select 'llm_calls_p' || to_char(lower(l.time), 'YYYYMM') from ({last}) l")
    database.execute(named("drop table ai.{}", name))
    database.execute(
        "create table ai.llm_calls_mine partition of ai.llm_calls"
        f" for values from ('{until - timedelta(days=1)}+00') to ('{until}+00')"
    )
    database.execute("alter table ai.llm_calls_mine enable row level security")
    assert states(doctor(database.url)[1])["partitions"] == "ok"
    database.execute(upkeep)
    code, findings = doctor(database.url)
    assert code == 1
    assert findings["partitions"][0]["state"] == "fail"
    assert findings["partitions"][0]["message"].startswith(f"{what} fails since ")
    assert "llm_calls_mine" in findings["partitions"][0]["message"]
    assert "ai.llm_calls_default" in findings["partitions"][0]["hint"]

    database.execute("drop table ai.llm_calls_mine")
    with database.connect() as session, session.transaction():
        session.execute("lock table ai.llm_calls_default in row exclusive mode")
        database.execute(upkeep)
        _, findings = doctor(database.url)
        assert [finding["state"] for finding in findings["partitions"]] == ["warn"]
        assert findings["partitions"][0]["message"].startswith(f"{what} fails since ")
        # The hint is the cure.
        query = findings["partitions"][0]["hint"].partition(": ")[2]
        assert session.info.backend_pid in [row["pid"] for row in database.execute(query)]
    database.execute(upkeep)
    assert states(doctor(database.url)[1])["partitions"] == "ok"


def named(statement: str, *names: str) -> str:
    return sql.SQL(statement).format(*map(sql.Identifier, names)).as_string()


def test_a_database_that_is_read_only_is_found_with_the_way_back(database: Database, doctor: Doctor) -> None:
    change = "alter database {} set default_transaction_read_only = "
    database.superuser  # noqa: B018  # a session that may write
    assert states(doctor(database.url)[1])["writable"] == "ok"
    database.execute(named(change + "yes", database.name))
    code, findings = doctor(database.url)
    database.execute(named(change + "off", database.name))
    assert code == 1
    assert findings["writable"][0]["state"] == "fail"
    assert "(database)" in findings["writable"][0]["message"]
    assert "alter database" in findings["writable"][0]["hint"]
    assert states(doctor(database.url)[1])["writable"] == "ok"


@pytest.mark.parametrize("here", [False, True], ids=["everywhere", "in this database"])
def test_a_worker_whose_sessions_begin_read_only_is_named(database: Database, doctor: Doctor, here: bool) -> None:
    role, place = database.worker.name, named("in database {}", database.name) if here else ""
    database.execute(named("alter role {} ", role) + f"{place} set default_transaction_read_only = 'on'")
    code, findings = doctor(database.url)
    assert code == 1
    assert findings["writable"][0]["state"] == "fail"
    assert role in findings["writable"][0]["message"]
    # The hint is the cure.
    database.execute(findings["writable"][0]["hint"])
    assert states(doctor(database.url)[1])["writable"] == "ok"


def connections(found: tuple[int, dict]) -> tuple[str, str]:
    return found[1]["connections"][0]["state"], found[1]["connections"][0]["message"]


@contextmanager
def sessions(database: Database, count: int) -> Iterator[None]:
    """So many of the worker's role."""
    with ExitStack() as stack:
        for _ in range(count):
            stack.enter_context(database.connect(user=database.worker))
        yield


def test_a_limit_of_connections_is_found_before_it_is_reached(database: Database, doctor: Doctor) -> None:
    role = database.worker.name

    def limit(connections: int) -> None:
        database.execute(named("alter role {} connection limit ", role) + str(connections))

    assert connections(doctor(database.url))[0] == "ok"
    limit(7)
    assert connections(doctor(database.url)) == ("fail", f"role {role} may have 7, and a worker needs 8")
    for most in (8, 10):
        limit(most)
        message = f"role {role} may have {most}, and a worker that streams and looks at answers needs 11"
        assert connections(doctor(database.url)) == ("warn", message)
    limit(11)
    assert connections(doctor(database.url))[0] == "ok"
    limit(12)
    with sessions(database, 8):
        assert connections(doctor(database.url))[0] == "ok"
    with sessions(database, 9):
        state, message = connections(doctor(database.url))
        assert (state, message[: message.index(";")]) == ("warn", f"role {role} has 3 of 12 left")
    with sessions(database, 12):
        code, findings = doctor(database.url)
        assert code == 1
        assert connections((code, findings)) == ("fail", f"role {role} has all of its 12 taken: nobody can connect")
        assert f"alter role {role} connection limit" in findings["connections"][0]["hint"]
    limit(-1)
    database.execute(named("alter database {} connection limit 5", database.name))
    assert connections(doctor(database.url)) == ("fail", "the database may have 5, and a worker needs 8")
