"""Two of a tenant who set limits and switch guardrails on at once: together they get no more than one alone."""

from __future__ import annotations

import threading

import psycopg
import pytest
from databases import Database
from waiting import until

MOST = 100
INSERTS = {
    "limits": (
        "insert into ai.limits (metric, period, amount) select 'requests', 'hour', n from generate_series(1, %s) n"
    ),
    "guardrails": (
        "insert into ai.guardrails (tenant_id, name, scope, detector, action)"
        " select ai.tenant_id(), gen_random_uuid(), 'output', 'length', 'flag' from generate_series(1, %s) n"
    ),
}
ISOLATION = {
    "read committed": "PT409",
    "repeatable read": "40001",
    "serializable": "40001",
}


@pytest.mark.parametrize("isolation", ISOLATION)
@pytest.mark.parametrize("table", INSERTS)
def test_two_at_once_do_not_pass_the_bound(database: Database, table: str, isolation: str) -> None:
    admin = database.member(role="admin")
    first, second = (database.connect(user=admin, autocommit=False) for _ in range(2))
    first.execute(INSERTS[table], [MOST - 1])
    first.commit()
    second.execute(f"set transaction isolation level {isolation}")
    second.execute("select ai.whoami()")
    first.execute(INSERTS[table], [1])
    outcome: list[str | None] = []

    def insert() -> None:
        try:
            second.execute(INSERTS[table], [1])
            second.commit()
            outcome.append(None)
        except psycopg.Error as error:
            outcome.append(error.sqlstate)

    thread = threading.Thread(target=insert)
    thread.start()
    until(
        lambda: database.value("select cardinality(pg_blocking_pids(%s)) > 0", second.info.backend_pid),
        "the second to wait for the first",
    )
    first.commit()
    thread.join(30)
    assert outcome == [ISOLATION[isolation]]
    assert database.value(f"select count(*) from ai.{table} where tenant_id = %s", admin.tenant_id) == MOST
