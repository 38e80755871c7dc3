"""The audit log while many change policy at once: no gap, no deadlock, and nobody waits for an open transaction."""

from __future__ import annotations

import hashlib
import json
import random
import threading
import uuid
from datetime import UTC

import psycopg
from crowd import at_once
from databases import Database
from protocol import PlainWorker

SESSIONS = 8
ROUNDS = 40
INSERT = "insert into ai.limits (tenant_id, metric, period, amount) values (%s, 'requests', 'day', %s) returning id"


def problems(database: Database) -> list[dict[str, object]]:
    return database.execute("select * from ai.audit_verify()")


def entries(database: Database, tenant: uuid.UUID) -> int:
    return database.value("select count(*) from ai.audit_log where tenant_id = %s and object = 'limits'", tenant)


def test_whatever_commits_at_once_is_chained_once(database: Database, dice: random.Random) -> None:
    tenants = [database.tenant() for _ in range(3)]
    committed = dict.fromkeys(tenants, 0)
    lock = threading.Lock()

    def run(number: int, dice: random.Random) -> None:
        """Changes in several chains, in any order, of rows of one's own: only the chains are shared."""
        connection = database.connect(autocommit=False)
        limits: list[tuple[uuid.UUID, int]] = []
        for _ in range(ROUNDS):
            done: list[uuid.UUID] = []
            new: list[tuple[uuid.UUID, int]] = []
            for _ in range(dice.randrange(1, 5)):
                if limits and dice.random() < 0.5:
                    tenant, limit = dice.choice(limits)
                    connection.execute("update ai.limits set amount = amount + 1 where id = %s", [limit])
                else:
                    tenant = dice.choice(tenants)
                    row = connection.execute(INSERT, [tenant, number]).fetchone()
                    assert row
                    new.append((tenant, row["id"]))
                done.append(tenant)
            if dice.random() < 0.2:
                connection.rollback()
                continue
            connection.commit()
            limits += new
            with lock:
                for tenant in done:
                    committed[tenant] += 1

    at_once(SESSIONS, run, dice)
    assert {tenant: entries(database, tenant) for tenant in tenants} == committed
    assert database.value("select count(*) from ai.audit_pending") == 0
    assert problems(database) == []
    assert (
        database.value(
            "select count(*) from (select seq - lag(seq, 1, 0::bigint) over (partition by chain order by seq) as step"
            " from ai.audit_log) s where step <> 1"
        )
        == 0
    )


def test_admins_of_one_tenant_at_once_are_each_named(database: Database, dice: random.Random) -> None:
    tenant = database.tenant()
    admins = [database.member(tenant, role="admin") for _ in range(SESSIONS)]

    def run(number: int, dice: random.Random) -> None:
        connection = database.connect(user=admins[number])
        for _ in range(10):
            connection.execute("insert into ai.limits (metric, period, amount) values ('requests', 'day', 1)")

    at_once(SESSIONS, run, dice)
    named = database.execute(
        "select login, user_id, count(*) n from ai.audit_log where tenant_id = %s and object = 'limits' group by 1, 2",
        tenant,
    )
    assert {(row["login"], row["user_id"], row["n"]) for row in named} == {
        (admin.login.name, admin.user_id, 10) for admin in admins
    }
    assert problems(database) == []
    own = database.connect(user=admins[0])
    assert own.execute("select * from ai.audit_verify()").fetchall() == []
    head = own.execute("select seq, hash from ai.audit_head()").fetchone()
    assert head
    assert own.execute("select * from ai.audit_verify(null, %s, %s)", [head["seq"], head["hash"]]).fetchall() == []


def test_nobody_waits_for_an_open_change_of_policy(database: Database) -> None:
    tenant = database.tenant()
    with database.connect(autocommit=False) as slow, database.connect() as other:
        slow.execute(INSERT, [tenant, 1])
        slow.execute("update ai.settings set lease_ms = lease_ms + 1")
        other.execute("set lock_timeout = '1ms'")
        other.execute(INSERT, [tenant, 2])
        slow.commit()
    amounts = database.execute(
        "select (after ->> 'amount')::integer as n from ai.audit_log where tenant_id = %s and object = 'limits'"
        " order by seq",
        tenant,
    )
    assert [row["n"] for row in amounts] == [2, 1], "in the order of commits"
    assert problems(database) == []


def test_who_keeps_a_chain_to_itself_keeps_nobody_from_changing_policy(database: Database) -> None:
    tenant = database.tenant()
    worker = PlainWorker(database)
    with database.connect(autocommit=False) as keeper, database.connect() as other:
        keeper.execute("set constraints all immediate")
        keeper.execute(INSERT, [tenant, 1])  # and holds the head
        other.execute(INSERT, [tenant, 2])
        other.execute(INSERT, [tenant, 3])
        assert entries(database, tenant) == 0
        assert database.value("select count(*) from ai.audit_pending") == 2
        worker.maintain()  # passes it over
        keeper.commit()
    assert entries(database, tenant) == 1
    database.execute(INSERT, tenant, 4)  # takes along what was left
    amounts = database.execute(
        "select (after ->> 'amount')::integer as n from ai.audit_log where tenant_id = %s and object = 'limits'"
        " order by seq",
        tenant,
    )
    assert [row["n"] for row in amounts] == [1, 2, 3, 4]
    assert database.value("select count(*) from ai.audit_pending") == 0
    assert problems(database) == []


def test_what_was_left_is_chained_by_maintenance(database: Database) -> None:
    tenant = database.tenant()
    worker = PlainWorker(database)
    with database.connect(autocommit=False) as keeper, database.connect() as other:
        keeper.execute("set constraints all immediate")
        keeper.execute(INSERT, [tenant, 1])
        other.execute(INSERT, [tenant, 2])
        keeper.rollback()
    assert entries(database, tenant) == 0
    database.execute("update ai.maintenance set partitions_at = '-infinity'")
    worker.maintain()
    assert entries(database, tenant) == 1
    assert problems(database) == []


def test_an_old_snapshot_may_change_policy(database: Database) -> None:
    tenant = database.tenant()
    for level in (psycopg.IsolationLevel.REPEATABLE_READ, psycopg.IsolationLevel.SERIALIZABLE):
        with database.connect(autocommit=False) as old:
            old.isolation_level = level
            old.execute("select 1 from ai.tenants")
            database.execute(INSERT, tenant, 1)
            old.execute(INSERT, [tenant, 2])
            old.commit()
    database.execute(INSERT, tenant, 3)
    assert entries(database, tenant) == 5
    assert problems(database) == []


def test_anybody_can_compute_the_chain_from_what_the_documentation_says(database: Database) -> None:
    tenant = database.tenant('Zoë \\ "q"\n\t\x01\x7f 🐦')
    admin = database.member(tenant, user_id="ü\u2028\x1f", role="admin")
    connection = database.connect(user=admin)
    connection.execute("insert into ai.limits (metric, period, amount) values ('cost', 'day', 1.500)")
    connection.execute("update ai.limits set amount = 0.10")
    rows = database.execute(
        "select tenant_id::text, seq::text, at, login, user_tenant_id::text, user_id, source, api_key_id::text, action,"
        " object, key::text, before::text, after::text, hash from ai.audit_log where tenant_id = %s order by seq",
        tenant,
    )
    assert len(rows) >= 5
    previous = bytes(32)
    for row in rows:
        known = row.pop("hash")
        row["at"] = row["at"].astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        fields = json.dumps(list(row.values()), ensure_ascii=False, separators=(",", ":"))
        previous = hashlib.sha256(previous + fields.encode()).digest()
        assert previous == known
